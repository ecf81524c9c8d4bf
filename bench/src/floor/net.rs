//! What TCP over loopback, or from one namespace to another, does, with blocking calls: throughput, round trips, a file
//! from tmpfs to tmpfs.
//!
//! Always: two threads, one connection, Nagle's delay off. Never: a read that waits for more than `PATIENCE`.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{SpliceFFlags, splice},
    sched::{CloneFlags, setns},
};
use ringpair_tests::pair::Network;
use tempfile::TempDir;

use super::{
    cpu::fill,
    disk::{histogram, nanoseconds},
    ring,
};
use crate::{
    error::{Doing, Error, Result},
    figure::Spread,
};

/// The longest that one end waits for the other.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Where a stream between namespaces is received.
const STREAM_PORT: u16 = 5201;
const PIECE_BYTES: usize = 64 << 10;
const FILE_PIECE_BYTES: usize = 512 << 10;
const PIPE_BYTES: i32 = 1 << 20;
const MESSAGE_BYTES: usize = 100;

fn connected() -> Result<(TcpStream, TcpStream)> {
    let connect = || -> io::Result<_> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let near = TcpStream::connect(listener.local_addr()?)?;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        Ok((near, far))
    };
    connect().doing("a connection over loopback")
}

/// Runs `far` in a thread beside `near`; what `near` gives, if neither failed.
fn both<T>(near: impl FnOnce() -> io::Result<T>, far: impl FnOnce() -> io::Result<()> + Send, what: &str) -> Result<T> {
    std::thread::scope(|scope| {
        let far = scope.spawn(far);
        let result = near().doing(what);
        let died = |_| Err(io::Error::other("the other end died"));
        far.join().unwrap_or_else(died).doing(what)?;
        result
    })
}

/// Bytes a second of one plain TCP stream from A to B over the main cable of `network`, once it has run for a while.
///
/// # Errors
/// When a call fails.
pub fn stream_between(network: &Network, span: Duration) -> Result<f64> {
    /// The first share of the span, which is slow start's.
    const FIRST: u32 = 5;
    let [near, far] = network.places();
    let address = (far.main.ip(), STREAM_PORT);
    let (listening, listens) = std::sync::mpsc::channel();
    let receive = move || {
        enter(&far.namespace)?;
        let listener = TcpListener::bind(address)?;
        // Whoever waits is gone only after a failure of its own.
        let _ = listening.send(());
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut piece, mut bytes, start) = (vec![0; PIECE_BYTES], 0, Instant::now());
        let mut counted = None;
        while start.elapsed() < span {
            match stream.read(&mut piece)? {
                0 => return Err(io::Error::other("the stream ended early")),
                more => bytes += more,
            }
            if start.elapsed() > span / FIRST {
                counted.get_or_insert((bytes, Instant::now()));
            }
        }
        let (before, since) = counted.ok_or_else(|| io::Error::other("nothing came over the cable"))?;
        Ok((bytes - before) as f64 / since.elapsed().as_secs_f64())
    };
    let send = move || {
        enter(&near.namespace)?;
        let mut stream = TcpStream::connect(address)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let piece = vec![0; PIECE_BYTES];
        // Ends when the other side closes.
        while stream.write_all(&piece).is_ok() {}
        Ok(())
    };
    // Each thread is in a namespace of its own.
    std::thread::scope(|scope| {
        let receiver = scope.spawn(receive);
        if listens.recv_timeout(PATIENCE).is_ok() {
            let sender = scope.spawn(send);
            let died = |_| Err(io::Error::other("the sender died"));
            sender.join().unwrap_or_else(died).doing("a stream between namespaces")?;
        }
        receiver
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the receiver died")))
            .doing("a stream between namespaces")
    })
}

fn enter(namespace: &str) -> io::Result<()> {
    setns(File::open(format!("/run/netns/{namespace}"))?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

/// Bytes a second in pieces of 64 KiB, from the first to the last one read.
///
/// # Errors
/// When a call fails.
pub fn throughput(span: Duration) -> Result<f64> {
    pieces(|mut far| {
        let mut piece = vec![0; PIECE_BYTES];
        fill(1, &mut piece);
        let start = Instant::now();
        while start.elapsed() < span {
            far.write_all(&piece)?;
        }
        Ok(())
    })
}

/// As [`throughput`], sent by the product's ring out of registered memory, without a copy where the kernel can.
///
/// # Errors
/// When a call fails.
pub fn ring_throughput(span: Duration, zero_copy: bool) -> Result<f64> {
    pieces(|far| ring::send_pieces(far, span, zero_copy))
}

fn pieces(send: impl FnOnce(TcpStream) -> io::Result<()> + Send) -> Result<f64> {
    let (mut near, far) = connected()?;
    let start = Instant::now();
    let receive = || {
        let (mut piece, mut bytes) = (vec![0; PIECE_BYTES], 0);
        loop {
            match near.read(&mut piece)? {
                0 => return Ok(bytes),
                more => bytes += more,
            }
        }
    };
    let bytes = both(receive, move || send(far), "throughput over loopback")?;
    Ok(bytes as f64 / start.elapsed().as_secs_f64())
}

/// The median time, in microseconds, until 100 bytes have come back.
///
/// # Errors
/// When a call fails.
pub fn round_trip_p50_us(span: Duration) -> Result<f64> {
    let (mut near, mut far) = connected()?;
    let echo = move || {
        let mut message = [0; MESSAGE_BYTES];
        loop {
            match far.read_exact(&mut message) {
                Ok(()) => far.write_all(&message)?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    };
    let mut times = histogram()?;
    let ask = || {
        let mut message = [1; MESSAGE_BYTES];
        let start = Instant::now();
        while start.elapsed() < span {
            let before = Instant::now();
            near.write_all(&message)?;
            near.read_exact(&mut message)?;
            times.saturating_record(nanoseconds(before.elapsed()));
        }
        drop(near);
        Ok(())
    };
    both(ask, echo, "a round trip over loopback")?;
    Ok(times.value_at_quantile(0.5) as f64 / 1000.0)
}

/// How a file gets into a socket, and what comes out of one into a file.
#[derive(Clone, Copy)]
enum Way {
    /// Reading and writing pieces.
    ReadWrite,
    /// sendfile, or splice by way of a pipe: without a copy of its own in user space.
    Spliced,
    /// The product's own ring, from registered buffers, zero-copy where the kernel has that.
    Ring,
}

/// Every way to send beside every way to receive that is worth trying.
const WAYS: [(&str, Way, Way); 5] = [
    ("read and write", Way::ReadWrite, Way::ReadWrite),
    ("read, splice", Way::ReadWrite, Way::Spliced),
    ("sendfile, write", Way::Spliced, Way::ReadWrite),
    ("sendfile, splice", Way::Spliced, Way::Spliced),
    ("zero-copy sends, write", Way::Ring, Way::ReadWrite),
];

/// Bytes a second by each of `WAYS`.
pub type ByWay = [f64; WAYS.len()];

/// What several runs gave.
#[derive(Debug, Default)]
pub struct Ways(Vec<ByWay>);

impl Ways {
    /// Adds a run.
    pub fn add(&mut self, run: ByWay) {
        self.0.push(run);
    }

    /// The way with the best median, and what each run gave by it. Not the best of each run: that would be the luckiest
    /// of several samples where the other side of the ratio has one.
    ///
    /// # Errors
    /// When there was no run.
    pub fn best(&self) -> Result<(&'static str, Vec<f64>)> {
        let by_way = WAYS.iter().enumerate().map(|(way, (name, ..))| {
            let rates: Vec<f64> = self.0.iter().map(|run| run[way]).collect();
            let median = Spread::of(&rates).map_or(0.0, |spread| spread.median);
            (*name, rates, median)
        });
        let best = by_way.max_by(|a, b| a.2.total_cmp(&b.2)).filter(|(_, rates, _)| !rates.is_empty());
        best.map(|(name, rates, _)| (name, rates)).ok_or_else(|| Error::Failed("no file was copied".into()))
    }
}

/// A file of `bytes` from tmpfs over loopback into tmpfs, by each of `WAYS`. What arrives is compared.
///
/// # Errors
/// When there is no tmpfs, a call fails, or the copy differs.
pub fn copy_file(bytes: usize) -> Result<ByWay> {
    let dir = TempDir::with_prefix_in("ringpair-floor-", "/dev/shm").doing("a directory in /dev/shm")?;
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let mut data = vec![0; bytes];
    fill(1, &mut data);
    fs::write(&from, &data).doing("a file in tmpfs")?;
    let mut rates = [0.0; WAYS.len()];
    for (rate, (_, send, receive)) in rates.iter_mut().zip(WAYS) {
        let took = copy_once(&from, &to, send, receive)?;
        if fs::read(&to).doing("the copy")? != data {
            return Err(Error::Failed("a file copied over loopback differs".into()));
        }
        *rate = bytes as f64 / took.as_secs_f64();
        fs::remove_file(&to).doing("removing the copy")?;
    }
    Ok(rates)
}

fn copy_once(from: &Path, to: &Path, send: Way, receive: Way) -> Result<Duration> {
    let (mut near, mut far) = connected()?;
    let start = Instant::now();
    let sender = move || {
        let mut file = File::open(from)?;
        match send {
            Way::ReadWrite => pass(&mut file, &mut far),
            Way::Spliced => io::copy(&mut file, &mut far).map(drop),
            Way::Ring => ring::send_file(file, far),
        }
    };
    let receiver = || {
        let mut file = File::create(to)?;
        match receive {
            Way::Spliced => splice_all(&near, &file),
            Way::ReadWrite | Way::Ring => pass(&mut near, &mut file),
        }
    };
    both(receiver, sender, "a file over loopback")?;
    Ok(start.elapsed())
}

/// Moves everything from a socket into a file by way of a pipe.
fn splice_all(from: &TcpStream, to: &File) -> io::Result<()> {
    let (out, into) = nix::unistd::pipe()?;
    nix::fcntl::fcntl(&into, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_BYTES))?;
    let flags = SpliceFFlags::SPLICE_F_MOVE;
    loop {
        let mut got = splice(from, None, &into, None, PIPE_BYTES as usize, flags)?;
        if got == 0 {
            return Ok(());
        }
        while got > 0 {
            got -= splice(&out, None, to, None, got, flags)?;
        }
    }
}

/// Reads and writes pieces of 512 KiB until the end.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; FILE_PIECE_BYTES];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            more => to.write_all(&piece[..more])?,
        }
    }
}

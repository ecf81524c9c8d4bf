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

use nix::sched::{CloneFlags, setns};
use ringpair_tests::pair::Network;
use tempfile::TempDir;

use super::{
    cpu::fill,
    disk::{histogram, nanoseconds},
};
use crate::error::{Doing, Error, Result};

/// The longest that one end waits for the other.
const PATIENCE: Duration = Duration::from_secs(20);
/// Where a stream between namespaces is received.
const STREAM_PORT: u16 = 5201;
const PIECE_BYTES: usize = 64 << 10;
const FILE_PIECE_BYTES: usize = 256 << 10;
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
    let (mut near, mut far) = connected()?;
    let send = move || {
        let mut piece = vec![0; PIECE_BYTES];
        fill(1, &mut piece);
        let start = Instant::now();
        while start.elapsed() < span {
            far.write_all(&piece)?;
        }
        Ok(())
    };
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
    let bytes = both(receive, send, "throughput over loopback")?;
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

/// A file of `bytes` from tmpfs over loopback into tmpfs: bytes a second by the better of two ways to send it. What
/// arrives is compared.
///
/// # Errors
/// When there is no tmpfs, a call fails, or the copy differs.
pub fn copy_file(bytes: usize) -> Result<f64> {
    let dir = TempDir::with_prefix_in("ringpair-floor-", "/dev/shm").doing("a directory in /dev/shm")?;
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let mut data = vec![0; bytes];
    fill(1, &mut data);
    fs::write(&from, &data).doing("a file in tmpfs")?;
    let sendfile: fn(&mut File, &mut TcpStream) -> io::Result<()> = |file, end| io::copy(file, end).map(|_| ());
    let read_write: fn(&mut File, &mut TcpStream) -> io::Result<()> = |file, end| pass(file, end);
    let mut best = 0.0_f64;
    for send in [sendfile, read_write] {
        let took = copy_once(&from, &to, send)?;
        if fs::read(&to).doing("the copy")? != data {
            return Err(Error::Failed("a file copied over loopback differs".into()));
        }
        best = best.max(bytes as f64 / took.as_secs_f64());
        fs::remove_file(&to).doing("removing the copy")?;
    }
    Ok(best)
}

fn copy_once(from: &Path, to: &Path, send: fn(&mut File, &mut TcpStream) -> io::Result<()>) -> Result<Duration> {
    let (mut near, mut far) = connected()?;
    let start = Instant::now();
    let sender = move || send(&mut File::open(from)?, &mut far);
    let receiver = || pass(&mut near, &mut File::create(to)?);
    both(receiver, sender, "a file over loopback")?;
    Ok(start.elapsed())
}

/// Reads and writes pieces of 256 KiB until the end.
fn pass(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; FILE_PIECE_BYTES];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            more => to.write_all(&piece[..more])?,
        }
    }
}

//! The driver without io_uring: sockets over epoll, tried at once and again when ready; files on a helper thread.
//!
//! Same behaviour as the ring: nothing blocks but the wait of a turn, an operation owns what it works on, what is short
//! or interrupted is continued, and of two operations that wait for the same thing the older goes first.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    io::{self, IoSlice, IoSliceMut},
    marker::PhantomData,
    mem,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{
            MsgFlags, SockaddrLike, SockaddrStorage, connect, getsockopt, recv, recvmsg, sendmsg, sockopt::SocketError,
        },
    },
    unistd::read,
};

use super::{
    BufPool, Carried, Completion, DriverOptions, DriverReport, Fd, Op, Rejected, RejectedWhy, Token, Turned, Waker,
    plain_files::FileThread, slot::peer_of,
};

/// The event data of the waker; no descriptor has this number.
const WAKE: u64 = u64::MAX;

/// One operation in flight.
#[derive(Default)]
struct Entry {
    token: Token,
    busy: bool,
    cancelled: bool,
    /// `None` while the helper thread has it.
    op: Option<Op>,
    /// Bytes sent so far; for a connect: 1 once begun.
    moved: usize,
}

/// Who waits for a descriptor.
struct Waiting {
    /// Keeps the number from being reused while epoll knows it.
    fd: Fd,
    readers: VecDeque<u32>,
    writers: VecDeque<u32>,
    /// What epoll has been told.
    interest: EpollFlags,
}

/// The driver over epoll and a helper thread. Stays in the thread that made it.
pub struct PlainDriver {
    epoll: Epoll,
    entries: Box<[Entry]>,
    free: Vec<u32>,
    queue: VecDeque<u32>,
    waiting: HashMap<RawFd, Waiting>,
    /// Descriptors whose waiters have changed since epoll was told.
    changed: Vec<RawFd>,
    files: FileThread,
    pool: BufPool,
    waker: Waker,
    report: DriverReport,
    thread_bound: PhantomData<*const ()>,
}

impl fmt::Debug for PlainDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlainDriver({} in flight, {:?})", self.in_flight(), self.report)
    }
}

impl PlainDriver {
    pub(super) fn new(options: &DriverOptions, why: &str) -> io::Result<Self> {
        if !(1..=32_768).contains(&options.in_flight) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "in_flight is not 1 to 32768"));
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let waker = Waker::new()?;
        epoll.add(&waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Self {
            epoll,
            entries: (0..options.in_flight).map(|_| Entry::default()).collect(),
            free: (0..options.in_flight).rev().collect(),
            queue: VecDeque::new(),
            waiting: HashMap::new(),
            changed: Vec::new(),
            files: FileThread::start(options.in_flight as usize, waker.clone())?,
            pool: BufPool::new(options.buf_count, options.buf_bytes)?,
            waker,
            report: DriverReport {
                driver: "plain",
                features: vec!["epoll".into(), "file_thread".into()],
                why: why.to_owned(),
            },
            thread_bound: PhantomData,
        })
    }

    pub(super) fn submit(&mut self, token: Token, op: Op) -> Result<(), Rejected<Op>> {
        if !op.is_sound() {
            return Err(Rejected { op, why: RejectedWhy::Unsound });
        }
        let Some(index) = self.free.pop() else { return Err(Rejected { op, why: RejectedWhy::Full }) };
        self.entries[index as usize] = Entry { token, busy: true, cancelled: false, op: Some(op), moved: 0 };
        self.queue.push_back(index);
        Ok(())
    }

    pub(super) fn cancel(&mut self, token: Token) -> usize {
        let mut found = 0;
        for (index, entry) in self.entries.iter_mut().enumerate() {
            let Some(op) = entry.op.as_ref().filter(|op| entry.busy && entry.token == token && !op.is_on_file()) else {
                continue;
            };
            found += 1;
            if mem::replace(&mut entry.cancelled, true) {
                continue;
            }
            let index = index as u32;
            if let Some(waiting) = self.waiting.get_mut(&op.fd().as_raw_fd()) {
                let before = waiting.readers.len() + waiting.writers.len();
                waiting.readers.retain(|waiter| *waiter != index);
                waiting.writers.retain(|waiter| *waiter != index);
                if waiting.readers.len() + waiting.writers.len() < before {
                    self.changed.push(op.fd().as_raw_fd());
                    self.queue.push_back(index);
                }
            }
        }
        found
    }

    pub(super) fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<Turned> {
        let before = completions.len();
        // Only what is queued now: what a completion leads to belongs to the next turn.
        for _ in 0..self.queue.len() {
            if let Some(index) = self.queue.pop_front() {
                self.start(index, completions);
            }
        }
        self.tell_epoll()?;
        let wait = match completions.len() > before || self.files.has_done() {
            true => Some(Duration::ZERO),
            false => wait,
        };
        let woken = self.wait(wait, completions)?;
        while let Some(done) = self.files.next_done() {
            match done.op {
                None => {
                    let token = self.entries[done.index as usize].token;
                    completions.push(Completion { token, result: done.result, carried: Carried::Nothing, more: true });
                }
                Some(op) => self.complete(done.index, done.result, op.into_carried(), completions),
            }
        }
        Ok(Turned { completions: completions.len() - before, woken })
    }

    fn complete(&mut self, index: u32, result: io::Result<usize>, carried: Carried, completions: &mut Vec<Completion>) {
        let entry = &mut self.entries[index as usize];
        entry.busy = false;
        completions.push(Completion { token: entry.token, result, carried, more: false });
        self.free.push(index);
    }

    /// Hands a file operation over, tries a socket operation, or lets it wait behind an older one.
    fn start(&mut self, index: u32, completions: &mut Vec<Completion>) {
        let entry = &mut self.entries[index as usize];
        let Some(op) = entry.op.take() else { return };
        if entry.cancelled {
            return self.complete(index, Err(Errno::ECANCELED.into()), op.into_carried(), completions);
        }
        if op.is_on_file() {
            if let Err(op) = self.files.hand_over(index, op) {
                self.complete(index, Err(io::ErrorKind::BrokenPipe.into()), op.into_carried(), completions);
            }
            return;
        }
        let (number, sends) = (op.fd().as_raw_fd(), op.sends());
        let older = self.waiting.get(&number).is_some_and(|w| !if sends { &w.writers } else { &w.readers }.is_empty());
        entry.op = Some(op);
        if older || !self.attempt(index, completions) {
            self.let_wait(index, number, sends);
        }
    }

    fn let_wait(&mut self, index: u32, number: RawFd, sends: bool) {
        let Some(op) = &self.entries[index as usize].op else { return };
        let waiting = self.waiting.entry(number).or_insert_with(|| Waiting {
            fd: op.fd().clone(),
            readers: VecDeque::new(),
            writers: VecDeque::new(),
            interest: EpollFlags::empty(),
        });
        if sends { &mut waiting.writers } else { &mut waiting.readers }.push_back(index);
        self.changed.push(number);
    }

    /// Tries the operation; false: it must wait.
    fn attempt(&mut self, index: u32, completions: &mut Vec<Completion>) -> bool {
        let entry = &mut self.entries[index as usize];
        let Some(mut op) = entry.op.take() else { return true };
        loop {
            match attempt(&mut op, &mut entry.moved) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    entry.op = Some(op);
                    return false;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.complete(index, Err(error), op.into_carried(), completions);
                    return true;
                }
                Ok(Success::Count(count)) => {
                    if matches!(op, Op::SendZeroCopy { .. }) {
                        let (token, carried) = (entry.token, Carried::Nothing);
                        completions.push(Completion { token, result: Ok(count), carried, more: true });
                    }
                    self.complete(index, Ok(count), op.into_carried(), completions);
                    return true;
                }
                Ok(Success::Socket(fd, peer)) => {
                    self.complete(index, Ok(0), Carried::Socket { fd, peer }, completions);
                    return true;
                }
                Ok(Success::Datagram(count, peer)) => {
                    let carried = match op.into_carried() {
                        Carried::Buf(buf) => Carried::Datagram { buf, peer },
                        other => other,
                    };
                    self.complete(index, Ok(count), carried, completions);
                    return true;
                }
            }
        }
    }

    /// Tells epoll what is waited for now, and lets go of descriptors nobody waits for.
    fn tell_epoll(&mut self) -> io::Result<()> {
        for number in mem::take(&mut self.changed) {
            let Some(waiting) = self.waiting.get_mut(&number) else { continue };
            let mut wanted = EpollFlags::empty();
            wanted.set(EpollFlags::EPOLLIN, !waiting.readers.is_empty());
            wanted.set(EpollFlags::EPOLLOUT, !waiting.writers.is_empty());
            if wanted != waiting.interest {
                let mut event = EpollEvent::new(wanted, number as u64);
                match (waiting.interest.is_empty(), wanted.is_empty()) {
                    (true, _) => self.epoll.add(&waiting.fd, event)?,
                    (_, true) => self.epoll.delete(&waiting.fd)?,
                    _ => self.epoll.modify(&waiting.fd, &mut event)?,
                }
                waiting.interest = wanted;
            }
            if wanted.is_empty() {
                self.waiting.remove(&number);
            }
        }
        Ok(())
    }

    /// Waits, then tries again what has become ready; whether a wake was among it.
    fn wait(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<bool> {
        let limit = match wait {
            None => EpollTimeout::NONE,
            // Rounded up: an early return would make the caller turn without need.
            Some(wait) => {
                EpollTimeout::try_from(wait.as_nanos().div_ceil(1_000_000) as u64).unwrap_or(EpollTimeout::MAX)
            }
        };
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, limit) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut woken = false;
        for event in &events[..count] {
            if event.data() == WAKE {
                // A counter of 8 bytes that is known to be above zero: this does not block.
                read(&self.waker, &mut [0; 8])?;
                self.waker.heard();
                woken = true;
                continue;
            }
            let ended = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
            let number = event.data() as RawFd;
            if event.events().intersects(EpollFlags::EPOLLIN | ended) {
                self.try_waiters(number, false, completions);
            }
            if event.events().intersects(EpollFlags::EPOLLOUT | ended) {
                self.try_waiters(number, true, completions);
            }
        }
        Ok(woken)
    }

    fn try_waiters(&mut self, number: RawFd, sends: bool, completions: &mut Vec<Completion>) {
        self.changed.push(number);
        loop {
            let Some(waiting) = self.waiting.get_mut(&number) else { return };
            let waiters = if sends { &mut waiting.writers } else { &mut waiting.readers };
            let Some(index) = waiters.pop_front() else { return };
            if !self.attempt(index, completions) {
                if let Some(waiting) = self.waiting.get_mut(&number) {
                    if sends { &mut waiting.writers } else { &mut waiting.readers }.push_front(index);
                }
                return;
            }
        }
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn pool(&self) -> &BufPool {
        &self.pool
    }

    pub(super) fn in_flight(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    pub(super) fn report(&self) -> &DriverReport {
        &self.report
    }
}

/// What an attempt brought.
enum Success {
    Count(usize),
    Socket(Fd, Option<std::net::SocketAddr>),
    Datagram(usize, Option<std::net::SocketAddr>),
}

/// Makes a descriptor non-blocking, for the calls that have no flag of their own for it.
fn set_nonblocking(fd: &Fd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// One attempt at a socket operation. `WouldBlock`: try again when the descriptor is ready.
fn attempt(op: &mut Op, moved: &mut usize) -> io::Result<Success> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    match op {
        Op::Accept { fd } => accept(fd),
        Op::Connect { fd, peer } => attempt_connect(fd, *peer, moved),
        Op::Recv { fd, buf } => {
            let count = recv(fd.as_raw_fd(), buf.spare_mut(), MsgFlags::MSG_DONTWAIT)?;
            buf.set_len(buf.len() + count);
            Ok(Success::Count(count))
        }
        Op::Send { fd, slices } | Op::SendZeroCopy { fd, slices } => loop {
            let mut parts: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
            let mut left = &mut parts[..];
            IoSlice::advance_slices(&mut left, *moved);
            if left.is_empty() {
                return Ok(Success::Count(*moved));
            }
            *moved += sendmsg::<SockaddrStorage>(fd.as_raw_fd(), left, &[], flags, None)?;
        },
        Op::RecvFrom { fd, buf } => {
            let mut parts = [IoSliceMut::new(buf.spare_mut())];
            let got = recvmsg::<SockaddrStorage>(fd.as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT)?;
            let (count, peer) = (got.bytes, got.address.and_then(|address| to_socket_addr(&address)));
            buf.set_len(buf.len() + count);
            Ok(Success::Datagram(count, peer))
        }
        Op::SendTo { fd, data, peer } => {
            let to = SockaddrStorage::from(*peer);
            Ok(Success::Count(sendmsg(fd.as_raw_fd(), &[IoSlice::new(data)], &[], flags, Some(&to))?))
        }
        Op::PollReadable { fd } => {
            let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::ZERO)? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(Success::Count(polled[0].revents().map_or(0, |mask| mask.bits() as usize))),
            }
        }
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

fn accept(fd: &Fd) -> io::Result<Success> {
    set_nonblocking(fd)?;
    // SAFETY: zero bytes are a valid, empty address.
    let mut addr: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    // SAFETY: both pointers are valid for the call, and `len` says how much room there is.
    let number = unsafe { libc::accept4(fd.as_raw_fd(), (&raw mut addr).cast(), &mut len, libc::SOCK_CLOEXEC) };
    let number = Errno::result(number)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    let accepted = Fd::new(unsafe { OwnedFd::from_raw_fd(number) });
    // SAFETY: the kernel has written `len` bytes of the address.
    Ok(Success::Socket(accepted, unsafe { peer_of(&addr, len) }))
}

fn attempt_connect(fd: &Fd, peer: std::net::SocketAddr, begun: &mut usize) -> io::Result<Success> {
    set_nonblocking(fd)?;
    if *begun > 0 {
        match getsockopt(fd, SocketError)? {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(peer)) {
        Ok(()) => Ok(Success::Count(0)),
        Err(Errno::EISCONN) if *begun > 0 => Ok(Success::Count(0)),
        Err(Errno::EINPROGRESS | Errno::EALREADY | Errno::EINTR) => {
            *begun = 1;
            Err(io::ErrorKind::WouldBlock.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn to_socket_addr(address: &SockaddrStorage) -> Option<std::net::SocketAddr> {
    // SAFETY: a checked address and its own length.
    unsafe { peer_of(address.as_ptr().cast(), address.len()) }
}

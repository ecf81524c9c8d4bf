//! Lanes for a process that only now and then speaks to the peer, and then waits: the supervisor (protocol §7).
//!
//! Always: every call has a deadline; a stranger gets the same bounds of bytes and time as in the loop's transport;
//! memory is what one connection needs. Never: a thread, a ring, more than one connection.
#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use ringpair_wire::{
    hello::Hello,
    lane::{LaneKind, MessageKind, PathKind},
};

use super::{
    TransportError,
    session::{Session, SessionEvent},
    socket,
    tls::TlsConfigs,
    types::{DownReason, LaneOptions, Protection, StrangerLimits},
};
use crate::ring::Shared;

/// What is received at a time.
const RECEIVE_BYTES: usize = 4 << 10;
/// What is sent at a time.
const SEND_BYTES: usize = 64 << 10;

/// Makes blocking lanes; holds the keys.
pub struct Endpoint {
    tls: Option<TlsConfigs>,
    hello: Hello,
    limits: StrangerLimits,
    options: LaneOptions,
}

impl Endpoint {
    /// An end of blocking lanes. `hello` says who speaks; its lane and path are filled in. `options` are the ping
    /// lane's, whose mark all of them carry.
    ///
    /// # Errors
    /// Keys that TLS cannot use.
    pub fn new(
        protection: &Protection,
        hello: Hello,
        limits: StrangerLimits,
        options: LaneOptions,
    ) -> Result<Self, TransportError> {
        let tls = match protection {
            Protection::MutualTls(identity) => Some(TlsConfigs::new(identity)?),
            Protection::Off => None,
        };
        Ok(Self { tls, hello, limits, options })
    }

    /// Takes an accepted connection through handshake and hello. The limit of a stranger's time applies, or
    /// `deadline` if that is earlier.
    ///
    /// # Errors
    /// [`DownReason`]: whoever it was, it is not the peer, or took too long.
    pub fn accept(&self, stream: TcpStream, deadline: Instant) -> Result<BlockingLane, DownReason> {
        let _ = socket::mark(&stream, self.options.dscp_main, self.options.priority);
        socket::tune(&stream, &self.options);
        let session = Session::accept(self.tls.as_ref(), &self.hello, self.limits.bytes)?;
        BlockingLane::open(stream, session, deadline.min(Instant::now() + self.limits.time))
    }

    /// Dials the peer.
    ///
    /// # Errors
    /// [`DownReason`].
    pub fn dial(
        &self,
        peer: std::net::SocketAddr,
        lane: LaneKind,
        path: PathKind,
        deadline: Instant,
    ) -> Result<BlockingLane, DownReason> {
        let session = Session::dial(self.tls.as_ref(), &self.hello, lane, path, self.limits.bytes)?;
        let stream = TcpStream::connect_timeout(&peer, left(deadline)?).map_err(DownReason::from_io)?;
        let _ = socket::mark(&stream, self.options.dscp(path), self.options.priority);
        socket::tune(&stream, &self.options);
        BlockingLane::open(stream, session, deadline)
    }
}

/// An open lane.
#[derive(Debug)]
pub struct BlockingLane {
    stream: TcpStream,
    session: Session,
    hello: Option<Box<Hello>>,
    inbox: VecDeque<(MessageKind, Shared)>,
    finished: bool,
}

/// The time until `deadline`; none left is a time-out.
fn left(deadline: Instant) -> Result<Duration, DownReason> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(DownReason::TimedOut) } else { Ok(left) }
}

/// A blocking socket that ran into its time-out says `WouldBlock`.
fn reason(error: std::io::Error) -> DownReason {
    if error.kind() == std::io::ErrorKind::WouldBlock { DownReason::TimedOut } else { DownReason::from_io(error) }
}

impl BlockingLane {
    fn open(stream: TcpStream, session: Session, deadline: Instant) -> Result<Self, DownReason> {
        stream.set_nonblocking(false).map_err(DownReason::from_io)?;
        let mut lane = Self { stream, session, hello: None, inbox: VecDeque::new(), finished: false };
        while lane.hello.is_none() {
            lane.flush(deadline)?;
            if lane.finished {
                return Err(DownReason::Eof);
            }
            if let Err(reason) = lane.fill(deadline) {
                // An alert, or our hello, for the other side's log.
                let _ = lane.flush(deadline);
                return Err(reason);
            }
        }
        lane.flush(deadline)?;
        Ok(lane)
    }

    /// What the peer said of itself.
    ///
    /// # Panics
    /// Never: a lane is given out only with a hello.
    #[must_use]
    #[expect(clippy::expect_used, reason = "`open` returns a lane only once the hello is there")]
    pub fn hello(&self) -> &Hello {
        self.hello.as_deref().expect("an open lane has a hello")
    }

    /// Sends one message and waits until the kernel has taken it.
    ///
    /// # Errors
    /// [`DownReason`], after which the lane is of no more use.
    pub fn send(&mut self, kind: MessageKind, body: &[u8], deadline: Instant) -> Result<(), DownReason> {
        self.session
            .send(kind, &[body], usize::MAX)
            .map_err(|error| DownReason::Malformed(format!("not sent: {error}")))?;
        self.flush(deadline)
    }

    /// Waits for one message; `None`: the peer has finished.
    ///
    /// # Errors
    /// [`DownReason`]; [`DownReason::TimedOut`] leaves the lane usable.
    pub fn receive(&mut self, deadline: Instant) -> Result<Option<(MessageKind, Shared)>, DownReason> {
        loop {
            if let Some(message) = self.inbox.pop_front() {
                return Ok(Some(message));
            }
            if self.finished {
                return Ok(None);
            }
            self.fill(deadline)?;
        }
    }

    /// Says goodbye.
    pub fn close(mut self, deadline: Instant) {
        self.session.close();
        // The peer learns of the end by the closed socket anyway.
        let _ = self.flush(deadline);
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    fn flush(&mut self, deadline: Instant) -> Result<(), DownReason> {
        while self.session.wants_output() {
            for slice in self.session.output(SEND_BYTES, None)? {
                let mut rest = &slice[..];
                while !rest.is_empty() {
                    self.stream.set_write_timeout(Some(left(deadline)?)).map_err(DownReason::from_io)?;
                    match self.stream.write(rest) {
                        Ok(0) => return Err(DownReason::Eof),
                        Ok(count) => rest = &rest[count..],
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(reason(error)),
                    }
                }
            }
        }
        Ok(())
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), DownReason> {
        let mut buffer = [0; RECEIVE_BYTES];
        self.stream.set_read_timeout(Some(left(deadline)?)).map_err(DownReason::from_io)?;
        let count = match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.finished = true;
                return Ok(());
            }
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(error) => return Err(reason(error)),
        };
        let mut events = Vec::new();
        let result = self.session.receive(&mut buffer[..count], None, &mut events);
        for event in events {
            match event {
                SessionEvent::Open(hello, _) => self.hello = Some(hello),
                SessionEvent::Message(kind, body) => self.inbox.push_back((kind, body)),
                SessionEvent::Finished => self.finished = true,
                SessionEvent::Lane(_) | SessionEvent::Secured => {}
            }
        }
        result
    }
}

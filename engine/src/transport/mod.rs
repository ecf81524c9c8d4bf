//! The lanes between the two members: connections, their TLS and hello, messages on them, and heartbeat datagrams.
//!
//! Driven by the loop that owns it, over a [`Driver`]: completions in ([`Transport::on_completion`]), work once a turn
//! ([`Transport::pump`]), events out ([`Transport::poll_event`]). Who dials when is the caller's (core's) decision.
//!
//! Always: one send in flight a socket; every queue bounded, and a full one refuses ([`SendError::Full`]); ping before
//! ds before bulk before strangers in every turn (REP-307); strangers bounded in number, bytes, time and work, and
//! never in the way of the peer. Of two connections for one place both members keep the same (see `table`).
//! Never: a blocking call, a decision about roles, a message to or from anybody but the authenticated peer (OPS-095).
#![forbid(unsafe_code)]

mod conn;
mod datagrams;
mod heartbeat;
mod inbound;
mod outgoing;
mod probes;
mod secure;
mod session;
mod socket;
mod strangers;
mod table;
mod tls;
mod turn;
mod types;

pub mod blocking;

use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use ringpair_wire::{
    dscp::Dscp,
    heartbeat::{PLAIN_BYTES, SealedKind},
    lane::{LaneKind, MessageKind, PathKind},
};

use self::{
    conn::{State, Table},
    datagrams::Datagrams,
    heartbeat::Keyring,
    probes::Probes,
    session::Session,
    strangers::Limiter,
    table::Lanes,
    tls::TlsConfigs,
};
pub use self::{
    table::Detached,
    types::{
        ConnId, ConnInfo, DownReason, LaneOptions, PathAddress, Protection, SendError, StrangerLimits, TcpState,
        TransportConfig, TransportEvent, TransportStats,
    },
};
use crate::{
    keys::Identity,
    ring::{Completion, Driver, Fd, Shared, Token},
};

/// How long a closed connection may take to send what was queued.
const CLOSING_TIME: Duration = Duration::from_secs(1);
/// A connection receives no more while so many bytes of its messages wait to be polled.
const UNDELIVERED_MAX_BYTES: usize = 1 << 20;

/// Why a transport cannot be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The keys are of no use for TLS.
    #[error("the keys cannot be used: {0}. Try: ringpair keys show")]
    Keys(#[from] rustls::Error),
    /// A listener or datagram socket.
    #[error(
        "cannot use the address {address} for heartbeats: {error}. Try: is another process bound to this UDP port?"
    )]
    Socket {
        /// Which.
        address: String,
        /// Why.
        error: std::io::Error,
    },
}

/// Why no attempt to connect was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The configuration has no such path.
    #[error("no address is configured for this path")]
    NoPath,
    /// An attempt is going on.
    #[error("an attempt to connect is going on")]
    Dialing,
    /// The lane is up.
    #[error("the lane is up")]
    Up,
}

/// A listening socket.
struct Listener {
    fd: Fd,
    index: u32,
    /// How many accepts are in flight.
    accepting: usize,
    /// After a failure of `accept`: not before this.
    not_before: Option<Instant>,
}

/// See the module.
pub struct Transport {
    config: TransportConfig,
    tls: Option<TlsConfigs>,
    listeners: Vec<Listener>,
    datagrams: Datagrams,
    probes: Probes,
    keyring: Keyring,
    table: Table,
    /// The connection that stands for each lane and path.
    up: Lanes,
    /// The attempt that goes on for each lane and path.
    dialing: Lanes,
    events: VecDeque<TransportEvent>,
    stats: TransportStats,
    limiter: Limiter,
    /// Operations of connections that are gone.
    cancels: Vec<Token>,
    /// Strangers' bytes wait for the next turn.
    strangers_wait: bool,
}

impl Transport {
    /// A transport over `listeners` (none: it only dials and adopts). Binds a datagram socket beside each listener
    /// where [`TransportConfig::heartbeats`] is set.
    ///
    /// # Errors
    /// Keys that TLS cannot use; a datagram address that is taken.
    pub fn new(config: TransportConfig, listeners: Vec<TcpListener>) -> Result<Self, TransportError> {
        let tls = match &config.protection {
            Protection::MutualTls(identity) => Some(TlsConfigs::new(identity)?),
            Protection::Off => None,
        };
        let datagrams = Datagrams::new(&config, &listeners)?;
        let mut kept = Vec::new();
        for (index, listener) in (0_u32..).zip(listeners) {
            // What is sent before the lane is known (SYN-ACK, handshake) carries the ping mark.
            if let Err(error) = socket::mark(&listener, config.ping.dscp_main, config.ping.priority) {
                tracing::warn!(%error, "the listening socket could not be marked");
            }
            socket::deepen_backlog(&listener);
            kept.push(Listener { fd: Fd::new(listener), index, accepting: 0, not_before: None });
        }
        Ok(Self {
            keyring: Keyring::new(config.member(), 0),
            tls,
            listeners: kept,
            datagrams,
            probes: Probes::default(),
            table: Table::default(),
            up: Lanes::default(),
            dialing: Lanes::default(),
            events: VecDeque::new(),
            stats: TransportStats::default(),
            limiter: Limiter::default(),
            cancels: Vec::new(),
            strangers_wait: false,
            config,
        })
    }

    /// Uses renewed keys from the next connection on.
    ///
    /// # Errors
    /// Keys that TLS cannot use: the old ones stay.
    pub fn set_identity(&mut self, identity: std::sync::Arc<Identity>) -> Result<(), TransportError> {
        if matches!(self.config.protection, Protection::MutualTls(_)) {
            self.tls = Some(TlsConfigs::new(&identity)?);
            self.config.protection = Protection::MutualTls(identity);
        }
        Ok(())
    }

    /// Takes another address of the peer (a name was resolved anew). Connections that are up stay.
    pub fn set_peer_address(&mut self, path: PathKind, peer: SocketAddr) {
        if let Some(address) = self.config.paths.iter_mut().find(|address| address.path == path) {
            address.peer = peer;
        }
    }

    /// Sets how long an attempt to connect may take from now on.
    pub fn set_connect_timeout(&mut self, timeout: Duration) {
        self.config.connect_timeout = timeout;
    }

    /// Marks a lane anew on one path: its open connection, and the datagram socket with the ping lane.
    pub fn set_dscp(&mut self, lane: LaneKind, path: PathKind, dscp: Dscp) {
        let options = match lane {
            LaneKind::Ping => &mut self.config.ping,
            LaneKind::Ds => &mut self.config.ds,
            LaneKind::Bulk => &mut self.config.bulk,
        };
        match path {
            PathKind::Main => options.dscp_main = dscp,
            PathKind::Aux => options.dscp_aux = dscp,
        }
        if lane == LaneKind::Ping {
            self.datagrams.mark(path, &self.config);
        }
        if let Some(id) = self.up.get(lane, path) {
            self.mark(id);
        }
    }

    /// Begins an attempt to connect. It ends with `Up` or with `DialFailed`.
    ///
    /// # Errors
    /// [`DialError`], in which case neither event follows.
    pub fn dial(&mut self, lane: LaneKind, path: PathKind, now: Instant) -> Result<(), DialError> {
        let address = *self.config.path(path).ok_or(DialError::NoPath)?;
        if self.up.get(lane, path).is_some() {
            return Err(DialError::Up);
        }
        if self.dialing.get(lane, path).is_some() {
            return Err(DialError::Dialing);
        }
        self.stats.dials += 1;
        let options = self.config.lane(lane);
        let session = Session::dial(self.tls.as_ref(), &self.config.hello, lane, path, self.config.strangers.bytes);
        let made = session.and_then(|session| {
            socket::dialing(&address, options).map(|fd| (session, fd)).map_err(DownReason::from_io)
        });
        match made {
            Err(reason) => self.dial_failed(lane, path, reason),
            Ok((session, fd)) => {
                let deadline = now + self.config.connect_timeout;
                let id = self.table.insert(|id| {
                    let mut conn = conn::Conn::new(id, Fd::new(fd), session, address.peer, now);
                    (conn.state, conn.dialed, conn.path) = (State::Connecting, true, Some(path));
                    conn.deadline = Some(deadline);
                    conn.from_known_address = true;
                    conn
                });
                self.dialing.set(lane, path, Some(id));
            }
        }
        Ok(())
    }

    /// The connection that is up for a lane and path.
    #[must_use]
    pub fn conn(&self, lane: LaneKind, path: PathKind) -> Option<ConnId> {
        self.up.get(lane, path)
    }

    /// What a connection is, as read back from its socket; `None` if it is not up.
    #[must_use]
    pub fn info(&self, conn: ConnId) -> Option<&ConnInfo> {
        self.table.get(conn)?.info.as_deref()
    }

    /// What TCP measured of a connection that is up.
    #[must_use]
    pub fn tcp(&self, conn: ConnId) -> Option<TcpState> {
        socket::tcp_state(&self.table.get(conn).filter(|conn| conn.state == State::Up)?.fd)
    }

    /// Lets the peer have no more than `bytes` under way on a connection; `None`: as much as TCP likes.
    pub fn set_credit(&mut self, conn: ConnId, bytes: Option<u32>) {
        if let Some(conn) = self.table.get(conn) {
            socket::set_window(&conn.fd, bytes);
        }
    }

    /// The options of a lane.
    #[must_use]
    pub const fn options(&self, lane: LaneKind) -> &LaneOptions {
        self.config.lane(lane)
    }

    /// Queues a message of several parts, copied. It leaves with the next [`pump`](Self::pump).
    ///
    /// # Errors
    /// [`SendError`]; nothing was queued. A message always fits into an empty queue.
    pub fn send(&mut self, conn: ConnId, kind: MessageKind, parts: &[&[u8]]) -> Result<(), SendError> {
        let (session, max_bytes) = self.open_session(conn)?;
        session.send(kind, parts, max_bytes)
    }

    /// As [`send`](Self::send); parts over 8 KiB are kept, not copied (a frame from the journal's buffer).
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_shared(&mut self, conn: ConnId, kind: MessageKind, parts: &[Shared]) -> Result<(), SendError> {
        let (session, max_bytes) = self.open_session(conn)?;
        session.send_shared(kind, parts, max_bytes)
    }

    /// The session of a connection that is up, and its queue's bound.
    fn open_session(&mut self, conn: ConnId) -> Result<(&mut Session, usize), SendError> {
        let conn = self.table.get_mut(conn).filter(|conn| conn.state == State::Up).ok_or(SendError::NotUp)?;
        let lane = conn.session.lane().ok_or(SendError::NotUp)?;
        Ok((&mut conn.session, self.config.lane(lane).queue_max_bytes))
    }

    /// How many bytes of messages wait on a connection (without those in flight).
    #[must_use]
    pub fn queued_bytes(&self, conn: ConnId) -> usize {
        self.table.get(conn).map_or(0, |conn| conn.session.queued_bytes())
    }

    /// Whether everything queued on a connection has been given to the kernel.
    #[must_use]
    pub fn is_drained(&self, conn: ConnId) -> bool {
        self.table.get(conn).is_none_or(|conn| !conn.sending && conn.unsent.is_empty() && !conn.session.wants_output())
    }

    /// Stops or resumes receiving on a connection: back-pressure towards the peer.
    pub fn set_reading(&mut self, conn: ConnId, reading: bool) {
        if let Some(conn) = self.table.get_mut(conn) {
            conn.reading = reading;
        }
    }

    /// Closes a connection; what is queued is still sent, for a second at most. `Down` follows at once.
    pub fn close(&mut self, conn: ConnId, now: Instant) {
        let Some(closed) = self.table.get_mut(conn).filter(|conn| conn.state == State::Up) else { return };
        closed.session.close();
        closed.state = State::Closing;
        closed.deadline = Some(now + CLOSING_TIME);
        let (lane, path) = (closed.session.lane(), closed.path);
        self.announce_down(conn, lane, path, DownReason::Closed, now);
    }

    /// Sends a heartbeat on `path`, sealed. Whether it could be: only while the path's ping lane is up.
    pub fn send_heartbeat(&mut self, path: PathKind, plaintext: &[u8; PLAIN_BYTES]) -> bool {
        let target = self.config.path(path).map(|address| self.keyring.target(path, address.peer));
        let sent = match (target, self.keyring.seal(SealedKind::Heartbeat, path, plaintext)) {
            (Some(target), Some(sealed)) => self.datagrams.queue(path, &sealed, target),
            _ => false,
        };
        if sent {
            self.stats.heartbeats_sent += 1;
        } else {
            self.stats.heartbeats_unsent += 1;
        }
        sent
    }

    /// What happened, in order. Poll until `None`, after each [`pump`](Self::pump).
    pub fn poll_event(&mut self) -> Option<TransportEvent> {
        let event = self.events.pop_front()?;
        if let TransportEvent::Message { conn, body, .. } = &event
            && let Some(conn) = self.table.get_mut(*conn)
        {
            conn.undelivered_bytes = conn.undelivered_bytes.saturating_sub(body.len());
        }
        Some(event)
    }

    /// Takes a completion of an operation with the owner [`Token::TRANSPORT`].
    pub fn on_completion(&mut self, driver: &mut Driver, completion: Completion, now: Instant) {
        self.complete(driver, completion, now);
    }

    /// Does the work of a turn: time-outs, bytes that came, what is to be sent, new receives and accepts.
    pub fn pump(&mut self, driver: &mut Driver, now: Instant) {
        self.turn(driver, now);
    }

    /// How long the loop may wait before the next [`pump`](Self::pump); `None`: until something completes.
    #[must_use]
    pub fn next_timeout(&self, now: Instant) -> Option<Duration> {
        if self.strangers_wait {
            return Some(Duration::ZERO);
        }
        let deadlines = self.table.iter().filter_map(|conn| conn.deadline);
        let listeners = self.listeners.iter().filter_map(|listener| listener.not_before);
        deadlines.chain(listeners).min().map(|at| at.saturating_duration_since(now))
    }

    /// Counters since the start.
    #[must_use]
    pub const fn stats(&self) -> &TransportStats {
        &self.stats
    }

    /// How many connections have not shown who they are.
    #[must_use]
    pub fn stranger_count(&self) -> usize {
        self.table.iter().filter(|conn| conn.is_stranger()).count()
    }

    /// The local addresses of the listeners.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| socket::local_address(&listener.fd)).collect()
    }

    /// The mark that this member's heartbeats on `path` leave with, and the one that the peer's newest arrived with, once
    /// one has (OPS-197).
    #[must_use]
    pub fn sent_and_arrived_marks(&self, path: PathKind) -> Option<(Dscp, Dscp)> {
        self.datagrams.sent_and_arrived(path, &self.config)
    }

    /// The mark and priority of the datagram socket of `path`, read back.
    #[must_use]
    pub fn heartbeat_marks(&self, path: PathKind) -> Option<(Dscp, u8)> {
        self.datagrams.marks(path)
    }
}

#[cfg(test)]
mod tests;

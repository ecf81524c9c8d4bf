//! Which connection stands for which lane: opening, replacing, giving away, taking over, failing.
//!
//! Always: one connection is up at most for each path's ping lane, for ds and for bulk, and both members keep the same
//! one: of two that cross, the one on main before aux, then the one that A dialed. `Up` of a new one comes before `Down`
//! of the one it replaces.
#![forbid(unsafe_code)]

use std::{
    net::SocketAddr,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use nix::sys::socket::MsgFlags;
use ringpair_wire::{
    hello::{Hello, ProtocolVersion},
    id::MemberId,
    lane::{LaneKind, MessageKind, PathKind},
};

use super::{
    Transport,
    conn::{Conn, OpKind, State},
    session::Session,
    socket,
    types::{ConnId, ConnInfo, DownReason, TransportEvent},
};
use crate::ring::{Fd, Shared};

/// Connections that were dialed at once meet within this time; a later one means that the older is dead.
const CROSSING: Duration = Duration::from_millis(500);
/// What a failed session may still say (an alert).
const LAST_WORDS_BYTES: usize = 16 << 10;

/// A connection for each lane and path.
#[derive(Default)]
pub(super) struct Lanes([[Option<ConnId>; 2]; 3]);

impl Lanes {
    const fn place(lane: LaneKind, path: PathKind) -> (usize, usize) {
        let lane = match lane {
            LaneKind::Ping => 0,
            LaneKind::Ds => 1,
            LaneKind::Bulk => 2,
        };
        (lane, matches!(path, PathKind::Aux) as usize)
    }

    pub(super) const fn get(&self, lane: LaneKind, path: PathKind) -> Option<ConnId> {
        let (lane, path) = Self::place(lane, path);
        self.0[lane][path]
    }

    pub(super) const fn set(&mut self, lane: LaneKind, path: PathKind, conn: Option<ConnId>) {
        let (lane, path) = Self::place(lane, path);
        self.0[lane][path] = conn;
    }
}

/// An open connection on its way from the transport that accepted it to the one that keeps it
/// ([`Transport::adopt`]); no operation is in flight on it.
#[derive(Debug)]
pub struct Detached {
    fd: Fd,
    session: Session,
    peer: SocketAddr,
    hello: Box<Hello>,
    info: Box<ConnInfo>,
    /// Messages that came together with the hello.
    messages: Vec<(MessageKind, Shared)>,
}

impl Detached {
    /// The lane.
    #[must_use]
    pub const fn lane(&self) -> LaneKind {
        self.hello.lane
    }

    /// The path.
    #[must_use]
    pub const fn path(&self) -> PathKind {
        self.hello.path
    }
}

impl Transport {
    /// Takes over a connection that another transport of this member accepted; `Up` follows (or nothing, where the
    /// connection that this member dialed stays).
    pub fn adopt(&mut self, detached: Detached, now: Instant) {
        let Detached { fd, session, peer, hello, info, messages } = detached;
        let id = self.table.insert(|id| {
            let mut conn = Conn::new(id, fd, session, peer, now);
            (conn.path, conn.hello, conn.info) = (Some(hello.path), Some(hello), Some(info));
            conn
        });
        self.take_place(id, now);
        messages.into_iter().for_each(|(kind, body)| self.deliver(id, kind, body));
    }

    /// Marks the socket of an accepted or re-marked connection.
    pub(super) fn mark(&mut self, id: ConnId) {
        let Some(conn) = self.table.get_mut(id) else { return };
        let Some(lane) = conn.session.lane() else { return };
        let options = self.config.lane(lane);
        if let Err(error) = socket::mark(&conn.fd, options.dscp(conn.path.unwrap_or(PathKind::Main)), options.priority)
        {
            tracing::warn!(%error, lane = lane.name(), "a lane's socket could not be marked");
        }
        if let Some(info) = &mut conn.info {
            let marks = socket::read_back(&conn.fd);
            (info.dscp, info.priority) = (marks.dscp, marks.priority);
        }
    }

    /// The lane of an accepted connection is known: its socket is marked before anything more is sent.
    pub(super) fn lane_known(&mut self, id: ConnId, lane: LaneKind) {
        self.mark(id);
        if let Some(conn) = self.table.get(id) {
            socket::tune(&conn.fd, self.config.lane(lane));
        }
    }

    /// The handshake of a connection is done.
    pub(super) fn secured(&mut self, id: ConnId) {
        let is_dialed_ping =
            self.table.get(id).is_some_and(|conn| conn.dialed && conn.session.lane() == Some(LaneKind::Ping));
        if is_dialed_ping {
            self.install_keys(id, None, true);
        }
    }

    /// The peer's hello is valid.
    pub(super) fn opened(&mut self, id: ConnId, hello: Box<Hello>, version: ProtocolVersion, now: Instant) {
        let Some(conn) = self.table.get_mut(id) else { return };
        let (lane, path) = (hello.lane, hello.path);
        conn.path = Some(path);
        conn.hello = Some(hello);
        let options = self.config.lane(lane);
        if !conn.dialed && options.dscp(path) != options.dscp(PathKind::Main) {
            self.mark(id);
        }
        let Some(conn) = self.table.get_mut(id) else { return };
        let marks = socket::read_back(&conn.fd);
        conn.info = Some(Box::new(ConnInfo {
            lane,
            path,
            dialed_by_us: conn.dialed,
            peer_address: conn.peer,
            local_address: socket::local_address(&conn.fd),
            dscp: marks.dscp,
            priority: marks.priority,
            congestion: marks.congestion,
            user_timeout_ms: marks.user_timeout_ms,
            notsent_lowat_bytes: marks.notsent_lowat_bytes,
            pacing_bytes_per_s: marks.pacing_bytes_per_s,
            tls: conn.session.is_tls(),
            peer_fingerprint: conn.session.peer_fingerprint(),
            version: version.0,
            zero_copy: conn.zero_copy.is_used(),
        }));
        if !conn.dialed && self.config.hand_over.contains(&lane) {
            conn.state = State::Leaving;
            return;
        }
        self.take_place(id, now);
    }

    /// Makes an open connection the one of its lane and path, unless the one that is up stays.
    fn take_place(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.table.get(id) else { return };
        let Some(hello) = conn.hello.clone() else { return };
        let (lane, path, dialed) = (hello.lane, hello.path, conn.dialed);
        if self.dialing.get(lane, path) == Some(id) {
            self.dialing.set(lane, path, None);
        }
        let old = self.standing(lane, path);
        if old.and_then(|old| self.table.get(old)).is_some_and(|old| self.stays(old, dialed, &hello, now)) {
            self.fail(id, DownReason::Replaced, now);
            return;
        }
        // A dial of our own that would lose anyway is given up.
        if let Some(own) = self.dialing.get(lane, path)
            && !dialed
            && self.config.member() == MemberId::B
        {
            self.fail(own, DownReason::Replaced, now);
        }
        let Some(conn) = self.table.get_mut(id) else { return };
        (conn.state, conn.deadline, conn.up_since) = (State::Up, None, Some(now));
        let early = conn.early_heartbeat.take();
        self.up.set(lane, path, Some(id));
        let instance = hello.instance;
        self.events.push_back(TransportEvent::Up { conn: id, lane, path, hello, dialed_by_us: dialed });
        if lane == LaneKind::Ping {
            self.install_keys(id, Some(instance), false);
        }
        if let Some(plaintext) = early {
            self.events.push_back(TransportEvent::Heartbeat { path, plaintext });
        }
        if let Some(old) = old {
            self.fail(old, DownReason::Replaced, now);
        }
    }

    /// The connection that is up where one on `path` would take its place: ds and bulk run over one path at a time.
    fn standing(&self, lane: LaneKind, path: PathKind) -> Option<ConnId> {
        let elsewhere = || self.up.get(lane, path.other()).filter(|_| lane != LaneKind::Ping);
        self.up.get(lane, path).or_else(elsewhere)
    }

    /// Whether `old` stays when a connection opens that was dialed by us or not.
    fn stays(&self, old: &Conn, new_dialed: bool, new_hello: &Hello, now: Instant) -> bool {
        let same_peer = old
            .hello
            .as_ref()
            .is_some_and(|hello| hello.instance == new_hello.instance && hello.speaker == new_hello.speaker);
        let crossing = CROSSING.max(2 * self.config.connect_timeout);
        let fresh = old.up_since.is_some_and(|since| now.saturating_duration_since(since) < crossing);
        let dialed_by_a = |dialed: bool| dialed == (self.config.member() == MemberId::A);
        let preferred = if old.path == Some(new_hello.path) {
            old.dialed != new_dialed && dialed_by_a(old.dialed)
        } else {
            old.path == Some(PathKind::Main)
        };
        same_peer && fresh && preferred
    }

    /// Passes a message on.
    pub(super) fn deliver(&mut self, id: ConnId, kind: MessageKind, body: Shared) {
        let Some(conn) = self.table.get_mut(id) else { return };
        match conn.state {
            State::Up => {
                conn.undelivered_bytes += body.len();
                self.events.push_back(TransportEvent::Message { conn: id, kind, body });
            }
            State::Leaving => conn.early_messages.push((kind, body)),
            _ => {}
        }
    }

    /// Gives an accepted connection away.
    pub(super) fn hand_over(&mut self, id: ConnId) {
        let Some(conn) = self.table.remove(id) else { return };
        let Conn { fd, session, peer, hello: Some(hello), info: Some(info), early_messages: messages, .. } = *conn
        else {
            return;
        };
        let detached = Detached { fd, session, peer, hello, info, messages };
        self.events.push_back(TransportEvent::HandOver(Box::new(detached)));
    }

    /// Ends a connection, whatever its state, and tells whom it concerns.
    pub(super) fn fail(&mut self, id: ConnId, reason: DownReason, now: Instant) {
        let Some(mut conn) = self.table.remove(id) else { return };
        if !conn.sending && conn.unsent.is_empty() && conn.state != State::Connecting {
            say_last_words(&mut conn);
        }
        self.end(&conn);
        if matches!(reason, DownReason::Replaced) {
            self.stats.replaced += 1;
        }
        match conn.state {
            State::Connecting | State::Greeting if conn.dialed => {
                if let (Some(lane), Some(path)) = (conn.session.lane(), conn.path) {
                    if self.dialing.get(lane, path) == Some(id) {
                        self.dialing.set(lane, path, None);
                    }
                    self.keyring.retire(id, now);
                    self.dial_failed(lane, path, reason);
                }
            }
            State::Connecting | State::Greeting | State::Leaving => self.refuse(conn.peer, &reason, now),
            State::Up => self.announce_down(id, conn.session.lane(), conn.path, reason, now),
            State::Closing => {}
        }
    }

    /// An attempt to connect came to nothing.
    pub(super) fn dial_failed(&mut self, lane: LaneKind, path: PathKind, reason: DownReason) {
        self.stats.dials_failed += 1;
        self.events.push_back(TransportEvent::DialFailed { lane, path, reason });
    }

    /// A connection that was up no longer is.
    pub(super) fn announce_down(
        &mut self,
        id: ConnId,
        lane: Option<LaneKind>,
        path: Option<PathKind>,
        reason: DownReason,
        now: Instant,
    ) {
        let (Some(lane), Some(path)) = (lane, path) else { return };
        if self.up.get(lane, path) == Some(id) {
            self.up.set(lane, path, None);
        }
        self.keyring.retire(id, now);
        self.events.push_back(TransportEvent::Down { conn: id, lane, path, reason });
    }

    /// Ends what is in flight on a connection that is out of the table; its socket closes with the last completion.
    fn end(&mut self, conn: &Conn) {
        // Ends receives and sends at once; cancelling reaches an attempt to connect as well.
        let _ = nix::sys::socket::shutdown(conn.fd.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if conn.state == State::Connecting {
            self.cancels.push(conn.token(OpKind::Connect));
        }
        if conn.receiving {
            self.cancels.push(conn.token(OpKind::Receive));
        }
        if conn.sending {
            self.cancels.push(conn.token(OpKind::Send));
            self.cancels.push(conn.token(OpKind::SendZeroCopy));
        }
    }

    /// A closed connection has sent everything.
    pub(super) fn closed(&mut self, id: ConnId) {
        if let Some(conn) = self.table.remove(id) {
            self.end(&conn);
        }
    }
}

/// What the session has to say yet (an alert, a hello with our versions), if the socket takes it at once.
fn say_last_words(conn: &mut Conn) {
    for slice in conn.session.output(LAST_WORDS_BYTES, None).unwrap_or_default() {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if nix::sys::socket::send(conn.fd.as_raw_fd(), &slice, flags).is_err() {
            break;
        }
    }
}

//! The table of connections: slots with tags, so that the completion of an old connection never reaches a new one.
#![forbid(unsafe_code)]

use std::{net::SocketAddr, time::Instant};

use ringpair_wire::{
    heartbeat::PLAIN_BYTES,
    hello::Hello,
    lane::{LaneKind, MessageKind, PathKind},
};

use super::{
    session::Session,
    types::{ConnId, ConnInfo, DownReason},
};
use crate::ring::{Buf, Fd, Shared, Token};

/// What an operation of the transport is; the kind of its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum OpKind {
    Accept = 1,
    Connect,
    Receive,
    Send,
    DatagramReceive,
    DatagramSend,
    SendZeroCopy,
}

impl OpKind {
    pub(super) fn of(token: Token) -> Option<Self> {
        let all = [
            Self::Accept,
            Self::Connect,
            Self::Receive,
            Self::Send,
            Self::DatagramReceive,
            Self::DatagramSend,
            Self::SendZeroCopy,
        ];
        all.into_iter().find(|kind| *kind as u8 == token.kind())
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The dialed socket is connecting.
    Connecting,
    /// TLS and hello.
    Greeting,
    /// Open, and announced by `Up`.
    Up,
    /// Open, waits for its last send to end, then goes to another transport.
    Leaving,
    /// Closed by this member: what is queued is still sent.
    Closing,
}

/// What the kernel made of sends that it was asked not to copy. It copies on loopback, and then more dearly than by
/// itself; a network card's driver that can gather does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ZeroCopy {
    /// Sends whose memory was used as it was.
    direct: u32,
    /// Sends that were copied all the same, since the last that was not.
    copied: u32,
}

impl ZeroCopy {
    /// After so many copied sends it is not asked for again.
    const GIVEN_UP: u32 = 4;
    /// Shorter sends are cheaper to copy than to account for.
    pub(super) const LEAST_BYTES: usize = 16 << 10;

    /// Whether the next large send is to be asked for.
    pub(super) const fn pays(self) -> bool {
        self.copied < Self::GIVEN_UP
    }

    /// Takes what the kernel said of one.
    pub(super) const fn note(&mut self, copied: bool) {
        if copied {
            self.copied = self.copied.saturating_add(1);
        } else {
            (self.direct, self.copied) = (self.direct.saturating_add(1), 0);
        }
    }

    /// What is shown; `None`: nothing was said yet.
    pub(super) const fn is_used(self) -> Option<bool> {
        match self {
            Self { direct: 0, copied: 0 } => None,
            Self { direct, .. } => Some(direct > 0 && self.pays()),
        }
    }
}

/// One connection.
pub(super) struct Conn {
    pub id: ConnId,
    pub fd: Fd,
    pub session: Session,
    pub state: State,
    pub dialed: bool,
    pub peer: SocketAddr,
    pub born: Instant,
    /// When it is given up, in the states that do not last.
    pub deadline: Option<Instant>,
    /// Received and not yet processed: the buffer, and how many bytes of it are new.
    pub inbox: Option<Result<(Buf, usize), DownReason>>,
    /// The buffer being received into is the session's ([`Session::lend`]).
    pub lent: bool,
    /// Whether large sends avoid copies, as far as is known.
    pub zero_copy: ZeroCopy,
    pub receiving: bool,
    pub sending: bool,
    /// What the driver had no room for.
    pub unsent: Vec<Shared>,
    /// Message bytes that the caller has not polled yet.
    pub undelivered_bytes: usize,
    /// Whether the caller wants more messages.
    pub reading: bool,
    /// Whether it comes from an address that the configuration names.
    pub from_known_address: bool,
    /// Known from the hello on.
    pub path: Option<PathKind>,
    pub hello: Option<Box<Hello>>,
    pub info: Option<Box<ConnInfo>>,
    pub up_since: Option<Instant>,
    /// A heartbeat that came before the peer's hello.
    pub early_heartbeat: Option<[u8; PLAIN_BYTES]>,
    /// Messages that came before a connection was given away.
    pub early_messages: Vec<(MessageKind, Shared)>,
    /// A send failed: what the peer sent before is still read.
    pub send_failed: Option<DownReason>,
    /// The buffer for the next receive.
    pub spare: Option<Buf>,
}

impl Conn {
    /// A connection that has done nothing yet.
    pub(super) fn new(id: ConnId, fd: Fd, session: Session, peer: SocketAddr, now: Instant) -> Self {
        Self {
            id,
            fd,
            session,
            state: State::Greeting,
            dialed: false,
            peer,
            born: now,
            deadline: None,
            inbox: None,
            lent: false,
            zero_copy: ZeroCopy::default(),
            receiving: false,
            sending: false,
            unsent: Vec::new(),
            undelivered_bytes: 0,
            reading: true,
            from_known_address: false,
            path: None,
            hello: None,
            info: None,
            up_since: None,
            early_heartbeat: None,
            early_messages: Vec::new(),
            send_failed: None,
            spare: None,
        }
    }

    pub(super) fn token(&self, kind: OpKind) -> Token {
        token(self.id, kind)
    }

    /// Whether it was accepted and has not shown who it is.
    pub(super) fn is_stranger(&self) -> bool {
        !self.dialed && self.state == State::Greeting
    }

    /// The order in which work is done: ping before ds before bulk before strangers (REP-307).
    pub(super) fn class(&self) -> u8 {
        match self.session.lane() {
            _ if self.is_stranger() => 3,
            Some(LaneKind::Ping) => 0,
            Some(LaneKind::Ds) => 1,
            _ => 2,
        }
    }

    /// Which stranger gives way first: the least.
    pub(super) fn worth(&self) -> (bool, bool, Instant) {
        (self.from_known_address, self.session.lane().is_some(), self.born)
    }
}

/// The token of an operation on `id`.
pub(super) fn token(id: ConnId, kind: OpKind) -> Token {
    Token::new(Token::TRANSPORT, kind as u8, id.index).tagged(id.tag)
}

#[derive(Default)]
struct Slot {
    tag: u16,
    conn: Option<Box<Conn>>,
}

/// All connections of a transport.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Table {
    /// Puts a connection in; `make` is told its id.
    pub(super) fn insert(&mut self, make: impl FnOnce(ConnId) -> Conn) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[index as usize];
        slot.tag = slot.tag.wrapping_add(1);
        let id = ConnId { index, tag: slot.tag };
        slot.conn = Some(Box::new(make(id)));
        id
    }

    pub(super) fn get(&self, id: ConnId) -> Option<&Conn> {
        self.slots.get(id.index as usize)?.conn.as_deref().filter(|conn| conn.id == id)
    }

    pub(super) fn get_mut(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.slots.get_mut(id.index as usize)?.conn.as_deref_mut().filter(|conn| conn.id == id)
    }

    pub(super) fn remove(&mut self, id: ConnId) -> Option<Box<Conn>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        let conn = slot.conn.take_if(|conn| conn.id == id)?;
        self.free.push(id.index);
        Some(conn)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Conn> {
        self.slots.iter().filter_map(|slot| slot.conn.as_deref())
    }

    /// The ids of all connections that `wanted` picks.
    pub(super) fn ids(&self, wanted: impl Fn(&Conn) -> bool) -> Vec<ConnId> {
        self.iter().filter(|conn| wanted(conn)).map(|conn| conn.id).collect()
    }
}

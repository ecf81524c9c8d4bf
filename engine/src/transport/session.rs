//! One connection without its socket: bytes in, events out; messages in, bytes out. TLS (or none), then the hello,
//! then messages.
//!
//! Always: nothing of a peer is believed before TLS is done and its hello fits the certificate, the lane and the pair.
//! Until then it may send only so many bytes. Never: a clock, a socket, an unbounded buffer.
#![forbid(unsafe_code)]

use ringpair_wire::{
    hello::{Hello, HelloError, ProtocolVersion},
    id::MemberId,
    lane::{LaneKind, MESSAGE_HEADER_BYTES, MessageKind, PathKind, message_header},
};
use rustls::CommonState;

use super::{
    inbound::Inbound,
    outgoing::Outgoing,
    secure::{Came, Secure, Taker},
    tls::{HEARTBEAT_SECRET_BYTES, TlsConfigs},
    types::{DownReason, SendError},
};
use crate::ring::{Buf, BufPool, Shared};

/// What a session tells after bytes came.
#[derive(Debug)]
pub(super) enum SessionEvent {
    /// The lane is known (ALPN, or the hello where TLS is off): time to mark the socket.
    Lane(LaneKind),
    /// The handshake is done.
    Secured,
    /// The peer's hello is valid; the lane is open.
    Open(Box<Hello>, ProtocolVersion),
    /// A message.
    Message(MessageKind, Shared),
    /// The peer will send no more.
    Finished,
}

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Handshaking,
    Greeting,
    Open,
}

/// See the module.
pub(super) struct Session {
    tls: Option<Box<Secure>>,
    dialed: bool,
    stage: Stage,
    ours: Hello,
    lane: Option<LaneKind>,
    hello_in: Vec<u8>,
    inbound: Option<Inbound>,
    outgoing: Outgoing,
    received_bytes: usize,
    stranger_bytes: usize,
    said_hello: bool,
    /// Closed by this member: a farewell follows what is queued.
    closing: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("stage", &self.stage).field("lane", &self.lane).finish_non_exhaustive()
    }
}

impl Session {
    /// A session that dials `lane` over `path`. `ours` is this member's hello.
    pub(super) fn dial(
        tls: Option<&TlsConfigs>,
        ours: &Hello,
        lane: LaneKind,
        path: PathKind,
        stranger_bytes: usize,
    ) -> Result<Self, DownReason> {
        let connection = tls.map(|tls| Secure::dial(tls, lane)).transpose();
        let connection = connection.map_err(|error| DownReason::Tls(error.to_string()))?;
        let mut session = Self::new(connection, true, Hello { lane, path, ..ours.clone() }, stranger_bytes);
        session.lane = Some(lane);
        if session.tls.is_none() {
            session.say_hello();
        }
        Ok(session)
    }

    /// A session that was dialed by somebody.
    pub(super) fn accept(tls: Option<&TlsConfigs>, ours: &Hello, stranger_bytes: usize) -> Result<Self, DownReason> {
        Ok(Self::new(tls.map(Secure::accept), false, ours.clone(), stranger_bytes))
    }

    fn new(tls: Option<Secure>, dialed: bool, ours: Hello, stranger_bytes: usize) -> Self {
        Self {
            stage: if tls.is_some() { Stage::Handshaking } else { Stage::Greeting },
            tls: tls.map(Box::new),
            dialed,
            ours,
            lane: None,
            hello_in: Vec::new(),
            inbound: None,
            outgoing: Outgoing::default(),
            received_bytes: 0,
            stranger_bytes,
            said_hello: false,
            closing: false,
        }
    }

    /// The lane, once it is known.
    pub(super) const fn lane(&self) -> Option<LaneKind> {
        self.lane
    }

    /// Whether the peer has shown who it is.
    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether TLS protects it.
    pub(super) const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The SHA-256 of the peer's certificate.
    pub(super) fn peer_fingerprint(&self) -> Option<String> {
        let certificate = self.tls.as_ref()?.state()?.peer_certificates()?.first()?;
        Some(crate::keys::fingerprint(certificate))
    }

    /// Key and key id of the heartbeats that `sender` sends; `None` where TLS is off or not done.
    pub(super) fn heartbeat_secret(&self, sender: MemberId) -> Option<[u8; HEARTBEAT_SECRET_BYTES]> {
        self.tls.as_ref()?.heartbeat_secret(sender)
    }

    /// Takes bytes that came, which are decrypted where they are; large bodies go to buffers of `pool`. After an error the session is of no more use, but [`output`](Self::output) may still
    /// have an alert for the peer.
    pub(super) fn receive(
        &mut self,
        bytes: &mut [u8],
        pool: Option<&BufPool>,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), DownReason> {
        self.received_bytes = self.received_bytes.saturating_add(bytes.len());
        if self.stage != Stage::Open && self.received_bytes > self.stranger_bytes {
            return Err(DownReason::Stranger("more bytes than it may send before its hello"));
        }
        let Some(mut connection) = self.tls.take() else { return self.plaintext(bytes, pool, events) };
        let result = connection.receive(bytes, &mut Receiving { session: self, pool, events });
        self.tls = Some(connection);
        result
    }

    /// The buffer that the next bytes may be received into, behind those that it holds: the body of a large message
    /// that is under way without TLS.
    pub(super) fn lend(&mut self) -> Option<Buf> {
        if self.tls.is_some() { None } else { self.inbound.as_mut()?.lend() }
    }

    /// Takes a lent buffer back, with what came.
    pub(super) fn take_back(
        &mut self,
        buf: Buf,
        pool: Option<&BufPool>,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), DownReason> {
        match &mut self.inbound {
            Some(inbound) => inbound.take_back(buf, pool, &mut message_to(events)),
            None => Err(DownReason::Malformed("data before the end of the handshake".into())),
        }
    }

    /// Notes the lane and the end of the handshake.
    fn handshake_progress(
        &mut self,
        connection: &CommonState,
        has_exporter: bool,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), DownReason> {
        if self.lane.is_none()
            && let Some(alpn) = connection.alpn_protocol()
        {
            let lane = LaneKind::from_alpn(alpn).ok_or_else(|| DownReason::Tls("no lane of that name".into()))?;
            self.lane = Some(lane);
            events.push(SessionEvent::Lane(lane));
        }
        if connection.is_handshaking() {
            return Ok(());
        }
        let Some(lane) = self.lane else {
            return Err(DownReason::Tls("the peer named no lane (ALPN)".into()));
        };
        if connection.alpn_protocol() != Some(lane.alpn()) {
            return Err(DownReason::Tls(format!("the peer does not know the {} lane", lane.name())));
        }
        if lane == LaneKind::Ping && !has_exporter {
            return Err(DownReason::Tls("the lane was not named in the first record (ALPN)".into()));
        }
        self.stage = Stage::Greeting;
        events.push(SessionEvent::Secured);
        if self.dialed {
            self.say_hello();
        }
        Ok(())
    }

    /// Takes bytes after decryption: the hello, then messages.
    fn plaintext(
        &mut self,
        bytes: &[u8],
        pool: Option<&BufPool>,
        events: &mut Vec<SessionEvent>,
    ) -> Result<(), DownReason> {
        let rest;
        let mut bytes = bytes;
        if self.stage == Stage::Greeting {
            self.hello_in.extend_from_slice(bytes);
            let Some(used) = self.greet(events)? else { return Ok(()) };
            rest = self.hello_in.split_off(used);
            self.hello_in = Vec::new();
            bytes = &rest;
        }
        match &mut self.inbound {
            Some(inbound) => inbound.feed(bytes, pool, &mut message_to(events)),
            None => Err(DownReason::Malformed("data before the end of the handshake".into())),
        }
    }

    /// Reads the peer's hello and answers it; how many bytes it took.
    fn greet(&mut self, events: &mut Vec<SessionEvent>) -> Result<Option<usize>, DownReason> {
        let parsed = Hello::parse(&self.hello_in, self.ours.versions);
        let (hello, version, used) = match parsed {
            Ok(None) => return Ok(None),
            Ok(Some(parsed)) => parsed,
            Err(error @ HelloError::Versions { .. }) => {
                // So that the peer's log names both ranges too.
                self.say_hello();
                return Err(DownReason::Version(error.to_string()));
            }
            Err(error) => return Err(DownReason::Malformed(error.to_string())),
        };
        self.check(&hello)?;
        if self.tls.is_none() && self.lane.is_none() && !self.dialed {
            self.lane = Some(hello.lane);
            events.push(SessionEvent::Lane(hello.lane));
        }
        self.stage = Stage::Open;
        self.inbound = Some(Inbound::new(hello.lane));
        if !self.dialed {
            self.ours = Hello { lane: hello.lane, path: hello.path, ..self.ours.clone() };
            self.say_hello();
        }
        events.push(SessionEvent::Open(Box::new(hello), version));
        Ok(Some(used))
    }

    /// Whether the hello is our peer's, for this lane.
    fn check(&self, hello: &Hello) -> Result<(), DownReason> {
        let wrong = |text: String| Err(DownReason::WrongPeer(text));
        if hello.member != self.ours.member.peer() {
            return wrong(format!(
                "the other end is member {} as this one is. Try: check the addresses of [members]",
                hello.member
            ));
        }
        if hello.pair != self.ours.pair {
            return wrong(format!(
                "the other end belongs to pair {:?}, this member to {:?}. Try: the same [pair] name in both files",
                hello.pair, self.ours.pair
            ));
        }
        if self.lane.is_some_and(|lane| lane != hello.lane) || self.dialed && hello.path != self.ours.path {
            return wrong("the hello names another lane or path than the connection".into());
        }
        Ok(())
    }

    fn say_hello(&mut self) {
        if !std::mem::replace(&mut self.said_hello, true) {
            self.outgoing.push(&self.ours.to_bytes());
        }
    }

    /// How many bytes of messages wait to be sent.
    pub(super) const fn queued_bytes(&self) -> usize {
        self.outgoing.bytes()
    }

    /// Queues a message of several parts.
    pub(super) fn send(&mut self, kind: MessageKind, parts: &[&[u8]], max_bytes: usize) -> Result<(), SendError> {
        let body_bytes = self.check_send(kind, parts.iter().map(|part| part.len()).sum(), max_bytes)?;
        self.outgoing.push(&message_header(kind, body_bytes));
        parts.iter().for_each(|part| self.outgoing.push(part));
        Ok(())
    }

    /// Queues a message whose large parts are kept, not copied.
    pub(super) fn send_shared(
        &mut self,
        kind: MessageKind,
        parts: &[Shared],
        max_bytes: usize,
    ) -> Result<(), SendError> {
        let body_bytes = self.check_send(kind, parts.iter().map(|part| part.len()).sum(), max_bytes)?;
        self.outgoing.push(&message_header(kind, body_bytes));
        parts.iter().for_each(|part| self.outgoing.push_shared(part.clone()));
        Ok(())
    }

    /// Whether a message may be queued: a message always fits into an empty queue.
    fn check_send(&self, kind: MessageKind, body_bytes: usize, max_bytes: usize) -> Result<usize, SendError> {
        let Some(lane) = self.lane.filter(|_| self.is_open()) else { return Err(SendError::NotUp) };
        if body_bytes > lane.max_body_bytes() || !kind.allowed_on(lane) {
            return Err(SendError::Unfit);
        }
        let queued = self.outgoing.bytes();
        if queued > 0 && queued + MESSAGE_HEADER_BYTES + body_bytes > max_bytes {
            return Err(SendError::Full);
        }
        Ok(body_bytes)
    }

    /// Whether there is something to send now.
    pub(super) fn wants_output(&self) -> bool {
        match &self.tls {
            None => !self.outgoing.is_empty(),
            Some(tls) => {
                tls.wants_output() || self.stage != Stage::Handshaking && (!self.outgoing.is_empty() || self.closing)
            }
        }
    }

    /// Takes up to about `max_bytes` to send, encrypted into buffers of `pool`; empty if there is nothing.
    ///
    /// # Errors
    /// What was to be sent is lost, and with it the session.
    pub(super) fn output(&mut self, max_bytes: usize, pool: Option<&BufPool>) -> Result<Vec<Shared>, DownReason> {
        let Some(tls) = &mut self.tls else { return Ok(self.outgoing.take(max_bytes)) };
        if self.stage == Stage::Handshaking {
            return tls.output(&[], false, pool);
        }
        let plain = if self.outgoing.is_empty() { Vec::new() } else { self.outgoing.take(max_bytes) };
        let close = self.closing && self.outgoing.is_empty();
        self.closing &= !close;
        tls.output(&plain, close, pool)
    }

    /// Says goodbye: the last thing that [`output`](Self::output) gives.
    pub(super) fn close(&mut self) {
        self.closing = self.tls.is_some();
    }
}

/// Where messages go.
fn message_to(events: &mut Vec<SessionEvent>) -> impl FnMut(MessageKind, Shared) {
    |kind, body| events.push(SessionEvent::Message(kind, body))
}

/// A session that takes what its TLS gives.
struct Receiving<'a> {
    session: &'a mut Session,
    pool: Option<&'a BufPool>,
    events: &'a mut Vec<SessionEvent>,
}

impl Taker for Receiving<'_> {
    fn take(&mut self, came: Came<'_>) -> Result<(), DownReason> {
        match came {
            Came::Progress(state, has_exporter) if self.session.stage == Stage::Handshaking => {
                self.session.handshake_progress(state, has_exporter, self.events)
            }
            Came::Progress(..) => Ok(()),
            Came::Plain(bytes) => self.session.plaintext(bytes, self.pool, self.events),
            Came::Finished => {
                self.events.push(SessionEvent::Finished);
                Ok(())
            }
        }
    }
}

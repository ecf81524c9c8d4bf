//! The datagram sockets of the heartbeats: one for each local address, marked as pings are.
//!
//! Always: a datagram that came is read in the turn that notices it, and with it what else is there, up to a bound.
//! Never: more than a few datagrams wait to be sent; the oldest gives way, for heartbeats age.
#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    time::Instant,
};

use ringpair_wire::{
    dscp::Dscp,
    heartbeat::{SEALED_BYTES, SealedKind},
    lane::PathKind,
};

use super::{
    Transport, TransportError,
    conn::{OpKind, State},
    heartbeat::Dropped,
    socket,
    types::{ConnId, TransportConfig, TransportEvent},
};
use crate::ring::{Driver, Fd, Op, Shared, Token};

/// So many wait at most.
const QUEUE: usize = 8;
/// So many are read at once.
const BURST: usize = 64;

struct Socket {
    fd: Fd,
    local: SocketAddr,
    receiving: bool,
    sending: bool,
    queue: VecDeque<(Shared, SocketAddr)>,
}

/// All datagram sockets of a transport.
pub(super) struct Datagrams {
    sockets: Vec<Socket>,
    /// Which socket main and aux use.
    by_path: [Option<usize>; 2],
    /// The mark that the peer's newest heartbeat on main and aux arrived with.
    arrived: [Option<Dscp>; 2],
}

const fn slot(path: PathKind) -> usize {
    match path {
        PathKind::Main => 0,
        PathKind::Aux => 1,
    }
}

fn token(index: usize, kind: OpKind) -> Token {
    Token::new(Token::TRANSPORT, kind as u8, u32::try_from(index).unwrap_or(u32::MAX))
}

impl Datagrams {
    pub(super) fn new(config: &TransportConfig, listeners: &[TcpListener]) -> Result<Self, TransportError> {
        let mut sockets = Vec::new();
        for listener in listeners.iter().filter(|_| config.heartbeats) {
            let made = socket::heartbeats(listener, config.ping.dscp_main, config.ping.priority).and_then(|made| {
                let local = made.local_addr()?;
                Ok(Socket { fd: Fd::new(made), local, receiving: false, sending: false, queue: VecDeque::new() })
            });
            sockets.push(made.map_err(|error| TransportError::Socket {
                address: listener.local_addr().map_or_else(|_| "?".into(), |address| address.to_string()),
                error,
            })?);
        }
        let locals: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local).collect();
        let pick = |path| config.path(path).and_then(|address| socket::pick_local(&locals, address));
        let datagrams = Self { by_path: [pick(PathKind::Main), pick(PathKind::Aux)], sockets, arrived: [None; 2] };
        datagrams.mark(PathKind::Aux, config);
        datagrams.mark(PathKind::Main, config);
        Ok(datagrams)
    }

    /// Marks the socket of `path`. A socket that both paths share has main's mark.
    pub(super) fn mark(&self, path: PathKind, config: &TransportConfig) {
        if path == PathKind::Aux && self.is_shared(config) {
            return;
        }
        let Some(socket) = self.by_path[slot(path)].and_then(|index| self.sockets.get(index)) else { return };
        if let Err(error) = socket::mark(&socket.fd, config.ping.dscp(path), config.ping.priority) {
            tracing::warn!(%error, "the heartbeats' socket could not be marked");
        }
    }

    /// Whether both paths use one socket.
    fn is_shared(&self, config: &TransportConfig) -> bool {
        self.by_path[0] == self.by_path[1] && config.path(PathKind::Main).is_some()
    }

    /// The mark that heartbeats on `path` leave with, and the one that the peer's arrived with, once one has.
    pub(super) fn sent_and_arrived(&self, path: PathKind, config: &TransportConfig) -> Option<(Dscp, Dscp)> {
        let marked = if self.is_shared(config) { PathKind::Main } else { path };
        Some((config.ping.dscp(marked), self.arrived[slot(path)]?))
    }

    pub(super) fn marks(&self, path: PathKind) -> Option<(Dscp, u8)> {
        let socket = self.sockets.get(self.by_path[slot(path)]?)?;
        let marks = socket::read_back(&socket.fd);
        Some((marks.dscp?, marks.priority?))
    }

    /// Sends a datagram with a mark of its own, at once or not at all: it was a probe, the next one follows.
    pub(super) fn send_marked(&self, path: PathKind, datagram: &[u8], target: SocketAddr, dscp: Dscp) -> bool {
        let Some(socket) = self.by_path[slot(path)].and_then(|index| self.sockets.get(index)) else { return false };
        let target = socket::fit_family(target, socket.local);
        socket::send_marked(&socket.fd, datagram, target, dscp).is_ok()
    }

    /// Queues a datagram; whether there is a socket for it.
    pub(super) fn queue(&mut self, path: PathKind, datagram: &[u8], target: SocketAddr) -> bool {
        let Some(socket) = self.by_path[slot(path)].and_then(|index| self.sockets.get_mut(index)) else { return false };
        if socket.queue.len() >= QUEUE {
            socket.queue.pop_front();
        }
        socket.queue.push_back((Shared::copy_from_slice(datagram), socket::fit_family(target, socket.local)));
        true
    }

    /// Submits what is to be sent, and a receive where none is in flight.
    pub(super) fn submit(&mut self, driver: &mut Driver) {
        for (index, socket) in self.sockets.iter_mut().enumerate() {
            if !socket.receiving {
                // Not received by the driver: the mark comes beside the datagram.
                let op = Op::PollReadable { fd: socket.fd.clone() };
                socket.receiving = driver.submit(token(index, OpKind::DatagramReceive), op).is_ok();
            }
            if !socket.sending
                && let Some((data, peer)) = socket.queue.pop_front()
            {
                let op = Op::SendTo { fd: socket.fd.clone(), data, peer };
                match driver.submit(token(index, OpKind::DatagramSend), op) {
                    Ok(()) => socket.sending = true,
                    Err(rejected) => {
                        if let Op::SendTo { data, peer, .. } = rejected.op {
                            socket.queue.push_front((data, peer));
                        }
                    }
                }
            }
        }
    }
}

impl Transport {
    /// A datagram left, or did not: it was a heartbeat, the next one follows.
    pub(super) fn datagram_sent(&mut self, index: u32, failed: bool) {
        if let Some(socket) = self.datagrams.sockets.get_mut(index as usize) {
            socket.sending = false;
        }
        if failed {
            self.stats.heartbeats_unsent += 1;
        }
    }

    /// Datagrams came: all that are there, up to a bound.
    pub(super) fn datagram_came(&mut self, index: u32) {
        let Some(socket) = self.datagrams.sockets.get_mut(index as usize) else { return };
        socket.receiving = false;
        let fd = socket.fd.clone();
        let mut buffer = [0; SEALED_BYTES + 1];
        for _ in 0..BURST {
            let Some(datagram) = socket::receive_now(&fd.as_fd(), &mut buffer) else { break };
            self.open_heartbeat(&buffer[..datagram.len], datagram);
        }
    }

    fn open_heartbeat(&mut self, sealed: &[u8], came: socket::Datagram) {
        let (path, conn, kind, plaintext) = match self.keyring.open(sealed) {
            Ok(opened) => opened,
            Err(dropped) => {
                let counter = match dropped {
                    Dropped::Malformed => &mut self.stats.heartbeats_malformed,
                    Dropped::UnknownKey => &mut self.stats.heartbeats_unknown_key,
                    Dropped::Forged => &mut self.stats.heartbeats_forged,
                    Dropped::Replayed => &mut self.stats.heartbeats_replayed,
                };
                *counter += 1;
                return;
            }
        };
        self.keyring.heard_from(path, came.peer);
        if kind == SealedKind::Probe {
            return self.probe_came(path, &plaintext, came.mark);
        }
        self.stats.heartbeats_received += 1;
        self.datagrams.arrived[slot(path)] = came.mark;
        match self.table.get_mut(conn) {
            // The peer's hello is still on its way: `Up` comes first.
            Some(early) if early.state == State::Greeting => early.early_heartbeat = Some(plaintext),
            _ => self.events.push_back(TransportEvent::Heartbeat { path, plaintext }),
        }
    }

    /// Takes the keys of a ping lane. `opening` alone: the peer may send already, this member not yet.
    pub(super) fn install_keys(&mut self, id: ConnId, peer_instance: Option<u64>, opening_only: bool) {
        let Some(conn) = self.table.get(id) else { return };
        let Some(path) = conn.path else { return };
        let member = self.keyring.member();
        let ours = self.config.hello.instance;
        let (open, seal) = (conn.session.heartbeat_secret(member.peer()), conn.session.heartbeat_secret(member));
        // Without TLS there is no key to name: the stream is named by who speaks to whom, and where.
        let stream = |from: u64, to: u64| {
            let mut name = [0; 17];
            name[..8].copy_from_slice(&from.to_le_bytes());
            name[8..16].copy_from_slice(&to.to_le_bytes());
            name[16] = u8::from(path == PathKind::Aux);
            ringpair_wire::checksum::checksum(0, &name)
        };
        let theirs = peer_instance.unwrap_or_default();
        if open.is_some() || peer_instance.is_some() {
            self.keyring.install_open(id, path, open, stream(theirs, ours));
        }
        if !opening_only {
            self.keyring.install_seal(id, path, seal, stream(ours, theirs));
        }
    }

    /// Drops keys that are over.
    pub(super) fn expire_keys(&mut self, now: Instant) {
        self.keyring.expire(now);
    }
}

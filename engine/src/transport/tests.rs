//! Two transports over loopback, on both drivers, over IPv4 and IPv6, with and without TLS; and what strangers may do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod figures;
mod lanes;
mod strangers;

use std::{
    net::{IpAddr, TcpListener},
    sync::{Arc, OnceLock},
};

use ringpair_wire::{
    hello::{Hello, Speaker, VERSIONS},
    id::MemberId,
};

use super::*;
use crate::{
    keys,
    ring::{DriverChoice, DriverOptions},
};

/// No test waits longer for anything.
const BOUND: Duration = Duration::from_secs(20);

/// Keys of two pairs, made once: `0` is ours, `1` foreign.
pub(super) fn identity(pair: usize, member: MemberId) -> Arc<Identity> {
    static DIRS: OnceLock<Vec<tempfile::TempDir>> = OnceLock::new();
    let dirs = DIRS.get_or_init(|| {
        let make = |name: &str| {
            let dir = tempfile::tempdir().unwrap();
            let members = ["A=127.0.0.1", "B=::1"].map(|text| keys::parse_member(text).unwrap()).to_vec();
            keys::init(&keys::Init { dir: dir.path().into(), members, pair: Some(name.into()), years: 1 }).unwrap();
            dir
        };
        vec![make("ours"), make("foreign")]
    });
    let dir = dirs[pair].path().join(member.to_string());
    Arc::new(keys::load(&dir, member, time::OffsetDateTime::now_utc()).unwrap())
}

fn tls(member: MemberId) -> Protection {
    Protection::MutualTls(identity(0, member))
}

fn hello(member: MemberId) -> Hello {
    static INSTANCE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    Hello {
        versions: VERSIONS,
        pair: "contact-center".into(),
        member,
        instance: INSTANCE.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
        lane: LaneKind::Ping,
        path: PathKind::Main,
        speaker: Speaker::Worker,
    }
}

fn config(member: MemberId, protection: Protection, paths: Vec<PathAddress>) -> TransportConfig {
    TransportConfig {
        protection,
        hello: hello(member),
        paths,
        ping: LaneOptions::default_for(LaneKind::Ping),
        ds: LaneOptions::default_for(LaneKind::Ds),
        bulk: LaneOptions::default_for(LaneKind::Bulk),
        // Tests share two cores with others.
        connect_timeout: Duration::from_secs(5),
        strangers: StrangerLimits::default(),
        hand_over: Vec::new(),
        heartbeats: true,
    }
}

fn driver(choice: DriverChoice) -> Driver {
    Driver::new(&DriverOptions { choice, in_flight: 256, buf_count: 4, ..DriverOptions::default() }).unwrap()
}

/// The drivers that this host allows; the plain one always.
fn choices() -> Vec<DriverChoice> {
    let ring = Driver::new(&DriverOptions { choice: DriverChoice::IoUring, ..DriverOptions::default() });
    let mut choices = vec![DriverChoice::Plain];
    if ring.is_ok() {
        choices.push(DriverChoice::IoUring);
    }
    choices
}

/// A transport, its driver, and the events that it gave.
struct Node {
    driver: Driver,
    transport: Transport,
    events: Vec<TransportEvent>,
    addresses: Vec<SocketAddr>,
    /// Whether events are taken; not to take them is back-pressure.
    polling: bool,
}

impl Node {
    fn new(choice: DriverChoice, config: TransportConfig, listeners: Vec<TcpListener>) -> Self {
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let transport = Transport::new(config, listeners).unwrap();
        Self { driver: driver(choice), transport, events: Vec::new(), addresses, polling: true }
    }

    fn turn(&mut self, wait: Duration) {
        self.transport.pump(&mut self.driver, Instant::now());
        let wait = self.transport.next_timeout(Instant::now()).map_or(wait, |timeout| timeout.min(wait));
        let mut completions = Vec::new();
        self.driver.turn(Some(wait), &mut completions).unwrap();
        for completion in completions {
            self.transport.on_completion(&mut self.driver, completion, Instant::now());
        }
        self.transport.pump(&mut self.driver, Instant::now());
        while self.polling
            && let Some(event) = self.transport.poll_event()
        {
            self.events.push(event);
        }
    }

    fn dial(&mut self, lane: LaneKind, path: PathKind) {
        self.transport.dial(lane, path, Instant::now()).unwrap();
    }

    fn conn(&self, lane: LaneKind) -> ConnId {
        self.transport.conn(lane, PathKind::Main).unwrap()
    }

    fn take_messages(&mut self) -> Vec<(MessageKind, Shared)> {
        let mut messages = Vec::new();
        self.events.retain(|event| {
            let TransportEvent::Message { kind, body, .. } = event else { return true };
            messages.push((*kind, body.clone()));
            false
        });
        messages
    }

    fn dial_failure(&self) -> Option<&DownReason> {
        self.events.iter().find_map(|event| match event {
            TransportEvent::DialFailed { reason, .. } => Some(reason),
            _ => None,
        })
    }
}

/// Turns every node until `done`, within [`BOUND`].
fn until<const N: usize>(mut nodes: [&mut Node; N], what: &str, mut done: impl FnMut(&mut [&mut Node; N]) -> bool) {
    let end = Instant::now() + BOUND;
    while !done(&mut nodes) {
        assert!(
            Instant::now() < end,
            "not within {BOUND:?}: {what}; events: {:?}",
            nodes.map(|node| format!("{:?}", node.events))
        );
        nodes.iter_mut().for_each(|node| node.turn(Duration::from_micros(200)));
    }
}

fn listen(ip: &str) -> TcpListener {
    TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap()
}

fn path(path: PathKind, local: &str, peer: SocketAddr) -> PathAddress {
    PathAddress { path, local: Some(local.parse().unwrap()), peer }
}

/// Two members, main over `ip`, aux over another loopback address of that family (IPv4) or the same (IPv6).
fn members_with(
    choice: DriverChoice,
    ip: &str,
    protection: impl Fn(MemberId) -> Protection,
    tweak: impl Fn(&mut TransportConfig),
) -> (Node, Node) {
    let aux_ip = if ip == "127.0.0.1" { "127.0.0.2" } else { ip };
    let listeners: Vec<[TcpListener; 2]> = (0..2).map(|_| [listen(ip), listen(aux_ip)]).collect();
    let at = |member: usize, way: usize| listeners[member][way].local_addr().unwrap();
    let paths = |peer: usize| vec![path(PathKind::Main, ip, at(peer, 0)), path(PathKind::Aux, aux_ip, at(peer, 1))];
    let (mut a, mut b) = (
        config(MemberId::A, protection(MemberId::A), paths(1)),
        config(MemberId::B, protection(MemberId::B), paths(0)),
    );
    tweak(&mut a);
    tweak(&mut b);
    let mut listeners = listeners.into_iter();
    let (of_a, of_b) = (listeners.next().unwrap(), listeners.next().unwrap());
    (Node::new(choice, a, of_a.into()), Node::new(choice, b, of_b.into()))
}

fn members(choice: DriverChoice, ip: &str, protection: impl Fn(MemberId) -> Protection) -> (Node, Node) {
    members_with(choice, ip, protection, |_| {})
}

/// Two members with a lane up on main, dialed by A.
fn connected(choice: DriverChoice, lane: LaneKind, tweak: impl Fn(&mut TransportConfig)) -> (Node, Node) {
    let (mut a, mut b) = members_with(choice, "127.0.0.1", tls, tweak);
    a.dial(lane, PathKind::Main);
    until([&mut a, &mut b], "lane up", |nodes| {
        nodes.iter().all(|node| node.transport.conn(lane, PathKind::Main).is_some())
    });
    (a, b)
}

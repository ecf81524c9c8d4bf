//! The world of one seed: two members, a network, clients, a schedule of faults, and one queue of events.
//!
//! Always: events happen in the order of (time, number), so that one seed is one story. Never: an iteration over a hash
//! table, a system clock, a thread.

use std::{cmp::Reverse, collections::BinaryHeap};

use ringpair_core::{Config, supervisor::Input};
use ringpair_wire::{
    id::{Epoch, MemberId},
    lane::PathKind,
};

use super::{
    checkers::{Checkers, Verdict, Violation},
    client::{Asked, Clients},
    disk::{Death, Disk, OpId},
    faults::{Fault, Plan},
    member::{Local, Member},
    network::{Datagram, Network, Slot},
    rng::Rng,
    time::{Clock, MS, SEC, Speed},
    trace::Trace,
};

/// Something that will happen: to whom (`m`: A or B; `inc`: to this process only), and what.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields are named by what they carry")]
pub enum Ev {
    /// A datagram arrives.
    Datagram(Box<Datagram>),
    /// A connection may have something that is due.
    Deliver { conn: u32, from: usize },
    /// An end learns that its connection stands.
    ConnUp { conn: u32, end: usize },
    /// A connection is reset.
    Reset(u32),
    /// TCP's patience ends.
    GiveUp { conn: u32, end: usize, changes: u64 },
    /// An attempt to connect begins.
    Dial { m: usize, inc: u64, slot: Slot, attempt: u64 },
    /// It may succeed.
    DialTry { m: usize, inc: u64, slot: Slot, attempt: u64, path: PathKind, until: u64 },
    /// A worker's timer.
    Timer { m: usize, inc: u64, at: u64 },
    /// A worker's work ended.
    Local { m: usize, inc: u64, done: Local },
    /// A worker reads its sockets dry.
    Drain { m: usize, inc: u64 },
    /// A supervisor's timer.
    KeeperTimer { m: usize, inc: u64, at: u64 },
    /// Something for a supervisor.
    Keeper { m: usize, inc: u64, input: Input },
    /// A supervisor's hook ended.
    KeeperHook { m: usize, inc: u64, epoch: Epoch, ok: bool },
    /// A client's turn.
    Client(usize),
    /// A client's patience with an operation ends.
    ClientGivesUp { client: usize, op: OpId },
    /// A request arrives.
    Request { m: usize, asked: Asked },
    /// The next fault of the plan.
    Fault(usize),
    /// The end of one, or a step of it.
    Undo(Fault),
    /// A supervisor is started once no orphan holds the storage.
    EnsureKeeper(usize),
    /// Somebody looks at `/active` on both members.
    Look,
    /// Segments are dropped.
    Trim,
}

struct Item {
    at: u64,
    number: u64,
    ev: Ev,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Item {}
impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// The world.
pub struct World {
    /// Simulated time.
    pub now: u64,
    queue: BinaryHeap<Reverse<Item>>,
    numbers: u64,
    incarnations: u64,
    /// Chance.
    pub rng: Rng,
    /// How long things take.
    pub speed: Speed,
    /// The network.
    pub net: Network,
    /// A and B.
    pub members: [Member; 2],
    /// The clients.
    pub clients: Clients,
    /// The checkers.
    pub checks: Checkers,
    /// What happened last.
    pub trace: Trace,
    /// The first rule that was broken.
    pub violation: Option<Violation>,
    /// The faults of this seed.
    pub plan: Plan,
    /// An operator forced this member's next promotion.
    pub forced: [bool; 2],
    /// Older copies of the members' storage.
    pub copies: [Vec<Disk>; 2],
    /// When each member last took a heartbeat that was no answer.
    pub heard_at: [u64; 2],
    /// When each member last said that its role is released.
    pub released_at: [u64; 2],
    /// Events that happened.
    pub events: u64,
    /// How often somebody looks at `/active`.
    pub look_every: u64,
}

impl World {
    /// A world before anything runs.
    #[must_use]
    pub fn new(seed: u64, speed: Speed, configs: [Config; 2]) -> Self {
        let [a, b] = configs;
        debug_assert!(a.member == MemberId::A && b.member == MemberId::B, "in this order");
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            numbers: 0,
            incarnations: 0,
            rng: Rng::new(seed),
            speed,
            net: Network::default(),
            members: [Member::new(a), Member::new(b)],
            clients: Clients::default(),
            checks: Checkers::default(),
            trace: Trace::default(),
            violation: None,
            plan: Plan::default(),
            forced: [false; 2],
            copies: [Vec::new(), Vec::new()],
            heard_at: [0; 2],
            released_at: [0; 2],
            events: 0,
            look_every: 40 * MS,
        }
    }

    /// A number for a process.
    pub fn next_incarnation(&mut self) -> u64 {
        self.incarnations += 1;
        self.incarnations
    }

    /// Something happens at this time.
    pub fn at(&mut self, at: u64, ev: Ev) {
        self.numbers += 1;
        self.queue.push(Reverse(Item { at, number: self.numbers, ev }));
    }

    /// A checker's verdict.
    pub fn judge(&mut self, verdict: Verdict) {
        if let Err(violation) = verdict
            && self.violation.is_none()
        {
            self.trace.text(self.now, None, format!("VIOLATION {violation}"));
            self.violation = Some(violation);
        }
    }

    /// Runs until this time, or until a rule is broken.
    pub fn run_until(&mut self, until: u64) {
        while self.violation.is_none() && self.queue.peek().is_some_and(|Reverse(item)| item.at <= until) {
            let Some(Reverse(item)) = self.queue.pop() else { break };
            self.now = item.at;
            self.events += 1;
            self.happen(item.ev);
        }
        if self.violation.is_none() {
            self.now = self.now.max(until);
        }
    }

    /// Runs until `done`, at most until this time; whether it came.
    pub fn run_while(&mut self, until: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        while self.violation.is_none() && !done(self) {
            match self.queue.peek() {
                Some(Reverse(item)) if item.at <= until => self.run_until(item.at),
                _ => return false,
            }
        }
        self.violation.is_none()
    }

    fn happen(&mut self, ev: Ev) {
        match ev {
            Ev::Datagram(datagram) => {
                if self.admits_datagram(&datagram) {
                    let Datagram { to, path, beat, .. } = *datagram;
                    self.give(to, super::member::Inbound::Beat(path, Box::new(beat)));
                }
            }
            Ev::Deliver { conn, from } => self.deliver(conn, from),
            Ev::ConnUp { conn, end } => self.conn_up(end, conn),
            Ev::Reset(conn) => self.reset(conn),
            Ev::GiveUp { conn, end, changes } => self.give_up(conn, end, changes),
            Ev::Dial { m, inc, slot, attempt } => self.dial(m, inc, slot, attempt),
            Ev::DialTry { m, inc, slot, attempt, path, until } => self.dial_try(m, inc, slot, attempt, path, until),
            Ev::Timer { m, inc, at } => self.timer(m, inc, at),
            Ev::Local { m, inc, done } => self.local(m, inc, done),
            Ev::Drain { m, inc } => self.drain(m, inc),
            Ev::KeeperTimer { m, inc, at } => self.keeper_timer(m, inc, at),
            Ev::Keeper { m, inc, input } => self.keeper_input(m, inc, input),
            Ev::KeeperHook { m, inc, epoch, ok } => self.keeper_hook(m, inc, epoch, ok),
            Ev::Client(client) => self.client(client),
            Ev::ClientGivesUp { client, op } => self.client_gives_up(client, op),
            Ev::Request { m, asked } => self.request(m, asked),
            Ev::Fault(index) => self.fault(index),
            Ev::Undo(fault) => self.undo(fault),
            Ev::EnsureKeeper(m) => self.ensure_keeper(m),
            Ev::Look => {
                self.observe(0);
                self.observe(1);
                self.at(self.now + self.look_every, Ev::Look);
            }
            Ev::Trim => {
                self.trim(0);
                self.trim(1);
                let wait = self.rng.within((5 * SEC, 60 * SEC));
                self.at(self.now + wait, Ev::Trim);
            }
        }
    }

    /// A host boots: its clock begins anew, its supervisor starts.
    pub fn boot(&mut self, m: usize) {
        if self.members[m].host_down() {
            let shown = self.rng.within((SEC, 5 * SEC));
            let drift = self.rng.within((0, 2 * self.speed.drift_ppm)) as i64 - self.speed.drift_ppm as i64;
            self.members[m].clock = Some(Clock::new(self.now, shown, drift));
            self.begin_keeper(m);
        }
    }

    /// A host loses its power.
    pub fn power_off(&mut self, m: usize) {
        if self.members[m].host_down() {
            return;
        }
        let keeper = self.members[m].keeper.take();
        if let Some(keeper) = keeper {
            self.drop_ends(m, super::network::End::Supervisor(keeper.inc), true);
        }
        if self.members[m].worker.is_some() {
            self.worker_ends(m, None, Death::Host);
        } else {
            let gone = self.members[m].disk.die(Death::Host, &mut self.rng);
            self.checks.acknowledged.lost(&gone, Death::Host);
        }
        self.members[m].clock = None;
    }

    /// A supervisor is started where none runs and no orphan holds the storage.
    pub fn ensure_keeper(&mut self, m: usize) {
        if self.members[m].host_down() || self.members[m].keeper.is_some() {
            return;
        }
        if self.members[m].worker.is_some() {
            self.at(self.now + 100 * MS, Ev::EnsureKeeper(m));
        } else {
            self.begin_keeper(m);
        }
    }
}

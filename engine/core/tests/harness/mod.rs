//! The world of two cores: one event queue, disks that are written at once, connections that hold what a cut stops.

mod asked;
mod faults;
mod shell;

use std::collections::{BTreeMap, VecDeque};

use ringpair_core::{
    Completion, Config, Effect, Evidence, FrameMeta, Instant, Node, Persisted, Start,
    effect::{Hook, WriteOutcome},
    input::{Channel, Command, CommandToken, FrameVerdict, JournalView, Location, Refusal, WorkToken, WriteToken},
    status::Status,
};
use ringpair_wire::{
    control::{Control, EpochStart, GiveBackReason, GrantId, Role},
    heartbeat::Heartbeat,
    id::{AckLevel, ChainHash, Epoch, HistoryId, MemberId, Position, Seq},
    lane::{LaneKind, PathKind},
};

pub const A: usize = 0;
pub const B: usize = 1;
const MS: u64 = 1_000_000;
const LANES: [(PathKind, LaneKind); 3] =
    [(PathKind::Main, LaneKind::Ping), (PathKind::Aux, LaneKind::Ping), (PathKind::Main, LaneKind::Ds)];

enum Item {
    Message(Channel, Control),
    Frame(FrameMeta),
    Beat(PathKind, Heartbeat),
    Lane(PathKind, LaneKind, bool),
    Complete(Completion),
    /// A comparison by digests has come to its end, if the peer served it.
    Compared(WorkToken),
}

#[derive(Default)]
struct Member {
    node: Option<Node>,
    connects: bool,
    supervised: bool,
    frozen: bool,
    /// What came while frozen.
    backlog: VecDeque<Item>,
    persisted: Option<Persisted>,
    base: Position,
    journal: Vec<FrameMeta>,
    /// Every record that the member's state stands on, also before `base`.
    history: BTreeMap<u64, u128>,
    streaming: bool,
    serves: bool,
    archived: Vec<u64>,
    resyncs: usize,
    exited: bool,
    hooks: Vec<(Hook, Epoch)>,
    hooks_fail: bool,
    archive_fails: bool,
    control_fails: bool,
}

/// A member's disk at one moment.
pub struct Disk(Option<Persisted>, Position, Vec<FrameMeta>, BTreeMap<u64, u128>);

pub struct Pair {
    now: u64,
    zero: u64,
    order: u64,
    queue: BTreeMap<(u64, u64), (usize, Item)>,
    members: [Member; 2],
    cut: [bool; 2],
    /// Lane messages that a cut direction holds: TCP sends them again.
    held: [VecDeque<Item>; 2],
    lanes_up: bool,
    next: u64,
    nonce: u128,
    pub outcomes: BTreeMap<u64, WriteOutcome>,
    /// Where each write ended.
    pub written: BTreeMap<u64, (u64, u128)>,
    /// How long messages, and the disk, take.
    pub delay: (u64, u64),
    /// How long a comparison by digests takes.
    pub compare_ms: u64,
    /// What each member's configuration changes of the `fast` profile, from its next start on.
    pub configure: [fn(&mut Config); 2],
    done: BTreeMap<u64, Result<(), Refusal>>,
    pub log: Vec<String>,
    steps: u32,
}

fn id(member: usize) -> MemberId {
    if member == A { MemberId::A } else { MemberId::B }
}

impl Pair {
    pub fn new() -> Self {
        Self {
            now: 1_000_000 * MS,
            zero: 1_000_000 * MS,
            order: 0,
            queue: BTreeMap::new(),
            members: [Member::default(), Member::default()],
            cut: [false; 2],
            held: [VecDeque::new(), VecDeque::new()],
            lanes_up: false,
            next: 0,
            nonce: 0,
            outcomes: BTreeMap::new(),
            written: BTreeMap::new(),
            delay: (0, 0),
            compare_ms: 0,
            configure: [|_| {}; 2],
            done: BTreeMap::new(),
            log: Vec::new(),
            steps: 0,
        }
    }

    /// Makes now the zero of `run_until_ms`: the moment of the newest heartbeat of A.
    pub fn zero(&mut self) {
        while !self.step(u64::MAX) {}
        self.zero = self.now;
    }

    pub fn now(&self, _member: usize) -> Instant {
        Instant(self.now)
    }

    fn at(&mut self, when: u64, member: usize, item: Item) {
        self.order += 1;
        self.queue.insert((when, self.order), (member, item));
    }

    pub fn start(&mut self, member: usize) {
        let m = &mut self.members[member];
        m.exited = false;
        m.supervised = false;
        let mut config = Config { release: "1".into(), ..Config::fast(id(member)) };
        (self.configure[member])(&mut config);
        let mut node = Node::new(config);
        let mut epochs: Vec<EpochStart> = Vec::new();
        let mut end = m.base;
        for frame in &m.journal {
            if epochs.last().is_none_or(|last| last.epoch < frame.epoch) {
                epochs.push(EpochStart { epoch: frame.epoch, after: end });
            }
            end = frame.end;
        }
        let journal = JournalView { base: m.base, end, epochs, filtered: false, applied: end.seq };
        let start =
            Start { persisted: m.persisted.clone(), journal, fresh_history: HistoryId([9; 16]), unix_ms_at_zero: 0 };
        node.start(Instant(self.now), start);
        m.node = Some(node);
        self.effects(member);
    }

    fn lanes(&mut self) {
        let up = self.members.iter().all(|m| m.connects && m.node.is_some()) && !self.cut[A] && !self.cut[B];
        if up && !self.lanes_up {
            self.lanes_up = true;
            for (path, lane) in LANES {
                for member in [A, B] {
                    self.at(self.now, member, Item::Lane(path, lane, true));
                }
            }
        }
    }

    fn end(&self, member: usize) -> Position {
        self.members[member].journal.last().map_or(self.members[member].base, |frame| frame.end)
    }

    pub fn run_ms(&mut self, ms: u64) {
        let until = self.now + ms * MS;
        while !self.step(until) {}
        self.now = until;
    }

    pub fn run_until_ms(&mut self, ms: u64) {
        let until = self.zero + ms * MS;
        assert!(until >= self.now, "time runs forward");
        while !self.step(until) {}
        self.now = until;
    }

    /// One event; `true` when nothing is left up to `until`. With `u64::MAX`: up to A's next heartbeat's answer.
    fn step(&mut self, until: u64) -> bool {
        let timeout = (0..2)
            .filter(|member| !self.members[*member].frozen)
            .filter_map(|member| Some((self.members[member].node.as_ref()?.next_timeout()?.0, member)))
            .min();
        self.steps += 1;
        let recent = || self.log.iter().rev().take(40).rev().collect::<Vec<_>>();
        assert!(self.steps < 500_000, "the pair never rests: {:#?}", recent());
        let queued = self.queue.first_key_value().map(|(key, _)| key.0);
        let mut beat = false;
        match (queued, timeout) {
            (Some(at), timeout) if timeout.is_none_or(|(due, _)| at <= due) => {
                if at > until {
                    return true;
                }
                self.now = self.now.max(at);
                let (_, (member, item)) = self.queue.pop_first().expect("seen");
                beat = matches!(item, Item::Beat(PathKind::Aux, beat) if beat.answers.is_some()) && member == A;
                self.feed(member, item);
            }
            (_, Some((due, member))) if due <= until => {
                self.now = self.now.max(due);
                let node = self.members[member].node.as_mut().expect("it had a timeout");
                node.handle_timeout(Instant(due));
                assert!(node.next_timeout().is_none_or(|next| next.0 > due), "a core that spins at {due}");
                self.effects(member);
            }
            _ => return true,
        }
        let both = (0..2).all(|member| {
            let m = &self.members[member];
            !m.frozen && m.node.as_ref().and_then(|node| node.status(Instant(self.now))).is_some_and(|s| s.exclusive)
        });
        assert!(!both, "both exclusive: {:#?}", self.log);
        until == u64::MAX && beat
    }

    fn feed(&mut self, member: usize, item: Item) {
        if self.members[member].frozen {
            return self.members[member].backlog.push_back(item);
        }
        if let Item::Compared(work) = item {
            return self.compared(member, work);
        }
        let now = Instant(self.now);
        let Some(node) = self.members[member].node.as_mut() else { return };
        match item {
            Item::Message(from, message) => node.handle_message(now, from, message),
            Item::Beat(path, beat) => node.handle_heartbeat(now, path, &beat),
            Item::Lane(path, lane, up) => node.handle_connection(now, path, lane, up),
            Item::Complete(completion) => node.handle_completion(now, completion),
            Item::Compared(_) => {}
            Item::Frame(frame) => {
                if node.handle_frame(now, Channel::Ds, &frame, true) == FrameVerdict::Accept {
                    self.members[member].journal.push(frame);
                    self.journalled(member, frame.end);
                }
            }
        }
        self.effects(member);
    }
}

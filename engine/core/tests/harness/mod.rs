//! The world of two cores: one event queue, disks that are written at once, connections that hold what a cut stops.

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

    /// The process dies: the peer sees EOF after a millisecond.
    pub fn kill(&mut self, member: usize) {
        self.power_off(member);
        for (path, lane) in LANES {
            self.at(self.now + MS, 1 - member, Item::Lane(path, lane, false));
        }
    }

    /// The host goes: the peer sees nothing until the member is back.
    pub fn power_off(&mut self, member: usize) {
        self.log.push(format!("{} off at {}", id(member), (self.now - self.zero) / MS));
        let m = &mut self.members[member];
        (m.node, m.connects, m.streaming, m.frozen) = (None, false, false, false);
        m.backlog.clear();
        let kept: Vec<_> = self.queue.iter().filter(|(_, (to, _))| *to == member).map(|(key, _)| *key).collect();
        kept.into_iter().for_each(|key| drop(self.queue.remove(&key)));
        if self.lanes_up {
            self.lanes_up = false;
            self.held = [VecDeque::new(), VecDeque::new()];
        }
    }

    pub fn freeze(&mut self, member: usize, frozen: bool) {
        self.members[member].frozen = frozen;
        if !frozen {
            let (now, node) = (self.now, self.members[member].node.as_mut().expect("runs"));
            node.handle_timeout(Instant(now));
            // `DrainSockets`, if the pause was long enough, is answered behind what waits.
            let waiting = std::mem::take(&mut self.members[member].backlog);
            waiting.into_iter().for_each(|item| self.feed(member, item));
            self.effects(member);
        }
    }

    /// Cuts or heals one direction.
    pub fn cut(&mut self, from: usize, _to: usize, cut: bool) {
        self.cut[from] = cut;
        if !cut {
            for item in std::mem::take(&mut self.held[from]) {
                self.at(self.now, 1 - from, item);
            }
            self.lanes();
        }
    }

    pub fn supervisor_up(&mut self, member: usize) {
        self.members[member].supervised = true;
        for (path, lane) in LANES {
            self.at(self.now, 1 - member, Item::Lane(path, lane, true));
        }
    }

    fn supervisor_says(&mut self, member: usize, message: Control) {
        self.at(self.now, 1 - member, Item::Message(Channel::Ping(PathKind::Main), message));
    }

    pub fn supervisor_says_dying(&mut self, member: usize, epoch: Epoch, hold_ms: u32) {
        self.supervisor_says(member, Control::Dying { epoch, hold_ms });
    }

    pub fn supervisor_says_released(&mut self, member: usize, epoch: Epoch) {
        let end = self.end(member);
        self.supervisor_says(member, Control::Released { epoch, end, controlled: false });
    }

    pub fn supervisor_gives_back(&mut self, member: usize, grant: GrantId) {
        self.supervisor_says(member, Control::GiveBack { id: grant, reason: GiveBackReason::WorkerDied });
        for (path, lane) in LANES {
            self.at(self.now + MS, 1 - member, Item::Lane(path, lane, false));
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
                if node.handle_frame(now, Channel::Ds, &frame) == FrameVerdict::Accept {
                    self.members[member].journal.push(frame);
                    self.journalled(member, frame.end);
                }
            }
        }
        self.effects(member);
    }

    /// The peer's state is taken over; a peer that does not serve leaves one waiting.
    fn compared(&mut self, member: usize, work: WorkToken) {
        if self.members[1 - member].serves {
            let position = self.end(1 - member);
            let history = self.members[1 - member].history.clone();
            let m = &mut self.members[member];
            (m.base, m.resyncs) = (position, m.resyncs + 1);
            m.journal.clear();
            m.history = history;
            self.complete(member, Completion::Resynced(work, position));
        }
    }

    /// Both ping connections of a member end, or stand again.
    pub fn pings(&mut self, member: usize, up: bool) {
        for (path, lane) in LANES.into_iter().filter(|(_, lane)| *lane == LaneKind::Ping) {
            self.at(self.now, member, Item::Lane(path, lane, up));
        }
    }

    /// A frame comes on a member's ds lane that would continue its journal.
    pub fn offer_frame(&mut self, member: usize) -> FrameVerdict {
        let (end, history) = (self.end(member), self.persisted(member).history.unwrap_or_default());
        let position = Position { seq: Seq(end.seq.0 + 1), chain: ChainHash(1), ..end };
        let (epoch, prev) = (end.epoch, end.chain);
        let frame = FrameMeta { history, epoch, first: position.seq, count: 1, prev, end: position, bytes: 100 };
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").handle_frame(now, Channel::Ds, &frame)
    }

    /// Both members take a newer connection for their ds lane.
    pub fn replace_ds_lane(&mut self) {
        let (path, lane) = (PathKind::Main, LaneKind::Ds);
        [A, B].into_iter().for_each(|member| self.at(self.now, member, Item::Lane(path, lane, true)));
    }

    fn journalled(&mut self, member: usize, end: Position) {
        self.members[member].history.insert(end.seq.0, end.chain.0);
        self.complete(member, Completion::Written(end));
        self.complete(member, Completion::Synced(end));
        self.complete(member, Completion::Applied(end.seq));
    }

    fn complete(&mut self, member: usize, completion: Completion) {
        self.at(self.now + self.delay.1, member, Item::Complete(completion));
    }

    fn transmit(&mut self, from: usize, item: Item) {
        if !self.lanes_up {
            return self.ask_supervisor(1 - from, &item);
        }
        if self.cut[from] {
            if !matches!(item, Item::Beat(..)) {
                self.held[from].push_back(item);
            }
            return;
        }
        self.at(self.now + self.delay.0, 1 - from, item);
    }

    fn close_frame(&mut self, member: usize, epoch: Epoch, first: Seq, records: u32) {
        let end = self.end(member);
        self.nonce += 1;
        let chain = ChainHash(end.chain.0.wrapping_mul(31).wrapping_add((self.nonce << 8) | (member as u128 + 1)));
        let last = Seq(first.0 + u64::from(records) - 1);
        let history = self.members[member].persisted.as_ref().and_then(|p| p.history).unwrap_or(HistoryId([9; 16]));
        let position = Position { epoch, seq: last, chain };
        let frame = FrameMeta { history, epoch, first, count: records, prev: end.chain, end: position, bytes: 100 };
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").frame_closed(now, &frame);
        self.members[member].journal.push(frame);
        self.journalled(member, position);
        if self.members[member].streaming {
            self.transmit(member, Item::Frame(frame));
        }
    }

    fn effects(&mut self, member: usize) {
        while let Some(effect) = self.members[member].node.as_mut().and_then(Node::poll_effect) {
            self.effect(member, effect);
        }
    }

    fn effect(&mut self, member: usize, effect: Effect) {
        let ms = (self.now - self.zero) / MS;
        match effect {
            Effect::Persist { token, .. } if self.members[member].control_fails => {
                self.complete(member, Completion::PersistFailed(token, "input/output error".into()));
            }
            Effect::Persist { token, state } => {
                let bytes = ringpair_wire::codec::Codec::to_bytes(&*state);
                let read = ringpair_wire::codec::Codec::from_bytes(&bytes).expect("reads what it wrote");
                self.members[member].persisted = Some(read);
                self.complete(member, Completion::Persisted(token));
            }
            Effect::Send { to, message } => self.transmit(member, Item::Message(to, message)),
            Effect::SendHeartbeat { path, heartbeat } => self.transmit(member, Item::Beat(path, heartbeat)),
            Effect::Connect => {
                self.members[member].connects = true;
                // A peer that never saw the old connections end sees it now.
                if self.members[1 - member].node.is_some() {
                    for (path, lane) in LANES {
                        self.at(self.now, 1 - member, Item::Lane(path, lane, false));
                    }
                }
                self.lanes();
            }
            Effect::Answer { write, outcome, .. } => {
                assert!(self.outcomes.insert(write.0, outcome).is_none(), "answered once");
            }
            Effect::CommandDone { command, result } => {
                assert!(self.done.insert(command.0, result).is_none(), "ended once");
            }
            Effect::AppendEpoch { start } => self.close_frame(member, start.epoch, Seq(start.after.seq.0 + 1), 1),
            Effect::StopAppliers => {
                let applied = self.end(member).seq;
                self.complete(member, Completion::AppliersStopped(applied));
            }
            Effect::Replay { work, .. } => self.complete(member, Completion::Replayed(work)),
            Effect::SettleFiles { work, .. } => {
                self.complete(member, Completion::FilesSettled { work, renamed: 0, missing: 0 });
            }
            Effect::RunHook { hook, epoch } => {
                let name = if hook == Hook::Commence { "commence" } else { "discontinue" };
                self.log.push(format!("{} hook {name} of {epoch} ended at {ms}", id(member)));
                self.members[member].hooks.push((hook, epoch));
                let ok = !self.members[member].hooks_fail || hook == Hook::Commence;
                self.complete(member, Completion::HookFinished { hook, epoch, ok });
            }
            Effect::Locate { work, position } => {
                let location = self.locate(member, position);
                self.complete(member, Completion::Located(work, location));
            }
            Effect::StreamFrom { after } => {
                self.members[member].streaming = true;
                for frame in self.frames_after(member, after.seq) {
                    self.transmit(member, Item::Frame(frame));
                }
            }
            Effect::StopStream => self.members[member].streaming = false,
            Effect::ServeTail { after, .. } => {
                for frame in self.frames_after(member, after.seq) {
                    self.transmit(member, Item::Frame(frame));
                }
                let end = self.end(member);
                self.transmit(member, Item::Message(Channel::Ds, Control::TailEnd { end, served: true }));
            }
            Effect::Archive { work, after, .. } if self.members[member].archive_fails => {
                let _ = after;
                self.complete(member, Completion::ArchiveFailed(work, "no room".into()));
            }
            Effect::Archive { work, after, .. } => {
                let records: Vec<u64> = self.frames_after(member, after).iter().map(|f| f.end.seq.0).collect();
                let count = records.len() as u64;
                self.members[member].archived.extend(records);
                self.complete(member, Completion::Archived { work, records: count, files: 0 });
            }
            Effect::Resync { work, .. } => self.at(self.now + self.compare_ms * MS, member, Item::Compared(work)),
            Effect::DrainSockets => self.at(self.now, member, Item::Complete(Completion::SocketsDrained)),
            Effect::DrainFiles { work } => self.complete(member, Completion::FilesDrained { work, left: 0 }),
            Effect::Report(event) => {
                self.log.push(format!("{} {ms} {}: {}", id(member), event.code.name(), event.reason));
            }
            Effect::Exit => {
                self.members[member].exited = true;
                self.kill(member);
            }
            Effect::DialNow | Effect::CreateHistory { .. } | Effect::DropUnframed | Effect::StartAppliers => {}
            Effect::ServeResync(serves) => self.members[member].serves = serves,
        }
    }

    /// A dead member's supervisor serves its journal's tail.
    fn ask_supervisor(&mut self, member: usize, item: &Item) {
        let Item::Message(_, Control::FetchTail { after }) = item else { return };
        if self.members[member].supervised {
            for frame in self.frames_after(member, after.seq) {
                self.at(self.now, 1 - member, Item::Frame(frame));
            }
            let end = self.end(member);
            self.at(self.now, 1 - member, Item::Message(Channel::Ds, Control::TailEnd { end, served: true }));
        }
    }

    fn frames_after(&self, member: usize, seq: Seq) -> Vec<FrameMeta> {
        self.members[member].journal.iter().filter(|frame| frame.end.seq > seq).copied().collect()
    }

    fn locate(&self, member: usize, position: Position) -> Location {
        let m = &self.members[member];
        if position.seq < m.base.seq {
            Location::Gone
        } else if position == m.base || m.journal.iter().any(|frame| frame.end == position) {
            Location::Match
        } else {
            Location::Mismatch
        }
    }

    pub fn try_write(&mut self, member: usize, level: AckLevel) -> Result<u64, Refusal> {
        self.next += 1;
        let token = self.next;
        let now = Instant(self.now);
        let node = self.members[member].node.as_mut().expect("runs");
        let admission = node.admit(now, WriteToken(token), 1, level)?;
        self.effects(member);
        self.close_frame(member, admission.epoch, admission.first, 1);
        self.effects(member);
        let end = self.end(member);
        self.written.insert(token, (end.seq.0, end.chain.0));
        Ok(token)
    }

    pub fn write(&mut self, member: usize, level: AckLevel) -> u64 {
        self.try_write(member, level).expect("admitted")
    }

    /// A record that is in the member's journal and was never sent.
    pub fn write_unsent(&mut self, member: usize) -> Seq {
        self.members[member].streaming = false;
        self.write(member, AckLevel::Local);
        self.end(member).seq
    }

    pub fn has_record(&self, member: usize, seq: Seq) -> bool {
        self.members[member].journal.iter().any(|frame| frame.end.seq == seq && frame.epoch == Epoch(65_537))
    }

    pub fn command(&mut self, member: usize, command: Command) -> u64 {
        self.next += 1;
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").handle_command(now, CommandToken(self.next), command);
        self.effects(member);
        self.next
    }

    pub fn evidence(&mut self, member: usize, evidence: Evidence) {
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").handle_evidence(now, evidence);
        self.effects(member);
    }

    pub fn fail_sync(&mut self, member: usize) {
        self.complete(member, Completion::SyncFailed("EIO".into()));
    }

    pub fn fail_control_file(&mut self, member: usize) {
        self.members[member].control_fails = true;
    }

    pub fn fail_hooks(&mut self, member: usize, fail: bool) {
        self.members[member].hooks_fail = fail;
    }

    pub fn fail_archive(&mut self, member: usize, fail: bool) {
        self.members[member].archive_fails = fail;
    }

    pub fn empty_storage(&mut self, member: usize) {
        self.restore(member, Disk(None, Position::default(), Vec::new(), BTreeMap::new()));
    }

    pub fn snapshot(&self, member: usize) -> Disk {
        let m = &self.members[member];
        Disk(m.persisted.clone(), m.base, m.journal.clone(), m.history.clone())
    }

    pub fn restore(&mut self, member: usize, disk: Disk) {
        let m = &mut self.members[member];
        Disk(m.persisted, m.base, m.journal, m.history) = disk;
    }

    pub fn outcome(&self, write: u64) -> Option<WriteOutcome> {
        self.outcomes.get(&write).copied()
    }

    pub fn done(&self, command: u64) -> Option<Result<(), Refusal>> {
        self.done.get(&command).cloned()
    }

    pub fn node(&self, member: usize) -> &Node {
        self.members[member].node.as_ref().expect("runs")
    }

    pub fn status(&self, member: usize) -> Status {
        self.node(member).status(Instant(self.now)).expect("started")
    }

    pub fn role(&self, member: usize) -> Role {
        self.members[member].node.as_ref().map_or(Role::None, |_| self.status(member).role)
    }

    pub fn persisted(&self, member: usize) -> Persisted {
        self.members[member].persisted.clone().unwrap_or_default()
    }

    pub fn archived(&self, member: usize) -> Vec<u64> {
        self.members[member].archived.clone()
    }

    pub fn hooks(&self, member: usize) -> Vec<(Hook, Epoch)> {
        self.members[member].hooks.clone()
    }

    pub fn resyncs(&self, member: usize) -> usize {
        self.members[member].resyncs
    }

    pub fn runs(&self, member: usize) -> bool {
        self.members[member].node.is_some()
    }

    pub fn is_frozen(&self, member: usize) -> bool {
        self.members[member].frozen
    }

    /// Whether the member's state stands on this record.
    pub fn stands_on(&self, member: usize, (seq, chain): (u64, u128)) -> bool {
        self.members[member].history.get(&seq) == Some(&chain)
    }

    pub fn exited(&self, member: usize) -> bool {
        self.members[member].exited
    }
}

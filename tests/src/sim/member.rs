//! A member: its host, its disk, its supervisor and its worker, which is the shell around the product's own core.
//!
//! Always: every effect of the core is begun in its order, and ends by a completion or by the process's death. Never: a
//! decision of the pair taken here.

use std::collections::BTreeMap;

use ringpair_core::{
    Completion, Config, Effect, FrameMeta, Node, Persisted, Start,
    effect::{Hook, WriteOutcome},
    input::{Channel, Command, CommandToken, FrameVerdict, PersistToken, WorkToken, WriteToken},
    status::Status,
};
use ringpair_wire::{
    control::{Control, Role},
    heartbeat::Heartbeat,
    id::{AckLevel, Epoch, HistoryId, MemberId, Position, Seq, Version},
    lane::{LaneKind, PathKind},
};

use super::{
    client::Asked,
    disk::{Death, Disk, Frame, OpId},
    keeper::Keeper,
    network::{End, Slot, Words},
    time::{Clock, MS},
    world::{Ev, World},
};

/// Stands for the office of a frame that is served as a tail: of no office any more.
const TAIL: Epoch = Epoch(u64::MAX);
/// Datagrams that a socket holds while its process sleeps.
const SOCKET_DATAGRAMS: usize = 200;

/// One of the two members, with everything that outlives its processes.
#[derive(Debug)]
pub struct Member {
    /// Its configuration.
    pub config: Config,
    /// Its host's clock; `None`: the host is down.
    pub clock: Option<Clock>,
    /// Its storage.
    pub disk: Disk,
    /// Its supervisor.
    pub keeper: Option<Keeper>,
    /// Its worker.
    pub worker: Option<Worker>,
    /// Hooks that fail, per mille.
    pub hook_failures: u64,
    /// What its dead workers had applied.
    pub applied_once: Seq,
    /// The newest answer to `/active`, for scenarios.
    pub seen: Option<Status>,
}

impl Member {
    /// A member whose host is down and whose storage is empty.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let disk = Disk::default();
        Self {
            config,
            clock: None,
            disk,
            keeper: None,
            worker: None,
            hook_failures: 0,
            applied_once: Seq(0),
            seen: None,
        }
    }

    /// Whether nothing of it answers at all.
    #[must_use]
    pub const fn host_down(&self) -> bool {
        self.clock.is_none()
    }

    /// Whether its port refuses at once: nobody holds the listening socket.
    #[must_use]
    pub const fn refuses(&self) -> bool {
        self.keeper.is_none() && self.worker.is_none()
    }

    /// Who would answer a dial now.
    #[must_use]
    pub fn answers(&self) -> Option<End> {
        match (&self.worker, &self.keeper) {
            (Some(worker), _) => (worker.doors_open && !worker.frozen).then_some(End::Worker(worker.inc)),
            (None, Some(keeper)) => (keeper.core.listens() && !keeper.frozen).then_some(End::Supervisor(keeper.inc)),
            (None, None) => None,
        }
    }
}

/// What comes to a worker.
#[derive(Debug)]
pub enum Inbound {
    /// A lane came up or went down.
    Lane(Slot, bool),
    /// A heartbeat.
    Beat(PathKind, Box<Heartbeat>),
    /// A control message.
    Control(Slot, u32, Box<Control>),
    /// A frame, and the epoch of the office that sent it.
    Frame(Slot, u32, Frame, Epoch),
    /// Something that it had begun.
    Local(Local),
    /// A client's write.
    Write(Asked),
    /// A command.
    Command(Command),
}

impl Inbound {
    const fn from_socket(&self) -> bool {
        matches!(self, Self::Lane(..) | Self::Beat(..) | Self::Control(..) | Self::Frame(..))
    }
}

/// Work that a worker began and that has ended.
#[derive(Clone, Debug)]
pub enum Local {
    /// Its first turn.
    Start,
    /// The control file holds this state; `false`: it does not.
    Stored(PersistToken, bool),
    /// The journal is written through here.
    Written(Position),
    /// There was no room.
    NoRoom,
    /// Another try to write.
    WriteAgain,
    /// The journal is synced through here.
    Synced(Position),
    /// The fsync failed.
    SyncFailed,
    /// The state has applied through here.
    Applied(Seq),
    /// The appliers stand still.
    Stopped,
    /// The state is at the journal's end.
    Replayed(WorkToken, Seq),
    /// A frame is to be closed.
    CloseFrame,
    /// Write the archive.
    Archive(WorkToken, Seq),
    /// Apply the snapshot.
    Resync(WorkToken, HistoryId, Box<Snapshot>),
    /// Any other completion.
    Done(Completion),
    /// A hook's process ended.
    Hook(Hook, Epoch, bool),
    /// The supervisor is gone.
    Orphaned,
}

/// The peer's state at a position.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The position.
    pub at: Position,
    /// Every record through it.
    pub log: Vec<OpId>,
    /// The peer's incarnation.
    pub of: u64,
    /// The ds lane that stood when it began.
    pub lane: Option<u32>,
}

/// A write that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Which operation.
    pub op: OpId,
    /// The level asked for.
    pub level: AckLevel,
}

/// A worker process.
#[derive(Debug)]
pub struct Worker {
    /// The core.
    pub node: Node,
    /// Which process this is; each number is used once.
    pub inc: u64,
    /// Stopped by a signal or by its host.
    pub frozen: bool,
    /// What waits for a frozen one.
    pub backlog: Vec<Inbound>,
    /// Dials and is dialled.
    pub doors_open: bool,
    /// Attempts to connect, by slot: an older attempt's events mean nothing.
    pub dials: [u64; 3],
    /// The start's discontinue has ended.
    pub discontinued: bool,
    /// Writes that wait.
    pub waiting: BTreeMap<WriteToken, Waiting>,
    timer: Option<u64>,
    unframed: Vec<OpId>,
    frame_due: bool,
    storing: bool,
    store_next: Option<(PersistToken, Persisted)>,
    writing: bool,
    syncing: bool,
    sync_dead: bool,
    pub(super) applied: Seq,
    applying: bool,
    appliers_on: bool,
    stream: Option<Seq>,
    serves: bool,
    writes: u64,
    commands: u64,
    quiet: bool,
}

impl World {
    /// The supervisor's wish: a worker process with a first turn.
    pub fn begin_worker(&mut self, m: usize) -> u64 {
        let inc = self.next_incarnation();
        let config = self.members[m].config.clone();
        self.members[m].worker = Some(Worker {
            node: Node::new(config),
            inc,
            frozen: false,
            backlog: Vec::new(),
            doors_open: false,
            dials: [0; 3],
            discontinued: false,
            waiting: BTreeMap::new(),
            timer: None,
            unframed: Vec::new(),
            frame_due: false,
            storing: false,
            store_next: None,
            writing: false,
            syncing: false,
            sync_dead: false,
            applied: Seq(0),
            applying: false,
            appliers_on: false,
            stream: None,
            serves: false,
            writes: 0,
            commands: 0,
            quiet: true,
        });
        let span = self.speed.spawn;
        self.local_in(m, span, Local::Start);
        inc
    }

    fn local_in(&mut self, m: usize, span: (u64, u64), done: Local) {
        let at = self.now + self.rng.within(span);
        if let Some(worker) = &self.members[m].worker {
            let inc = worker.inc;
            self.at(at, Ev::Local { m, inc, done });
        }
    }

    /// Kernel work goes on while a process is stopped: its effect on the disk is now, the word of it waits.
    pub fn local(&mut self, m: usize, inc: u64, done: Local) {
        if self.members[m].worker.as_ref().is_none_or(|worker| worker.inc != inc) {
            return;
        }
        let disk = &mut self.members[m].disk;
        match &done {
            Local::Stored(_, true) => disk.control = disk.control_writing.take(),
            Local::Written(at) => disk.journal.written = disk.journal.written.max(at.seq),
            Local::Synced(at) => disk.journal.synced = disk.journal.synced.max(at.seq),
            _ => {}
        }
        self.give(m, Inbound::Local(done));
    }

    /// A lane's word for the worker.
    pub fn lane_for_worker(&mut self, m: usize, slot: Slot, up: bool) {
        self.give(m, Inbound::Lane(slot, up));
    }

    /// A connection's word for the worker.
    pub fn words_for_worker(&mut self, m: usize, slot: Slot, conn: u32, words: Words) {
        match words {
            Words::Control(control) => self.give(m, Inbound::Control(slot, conn, Box::new(control))),
            Words::Frame(frame, sender) => self.give(m, Inbound::Frame(slot, conn, frame, sender)),
            Words::Fin => {}
        }
    }

    /// Gives a worker what comes, or lays it up.
    pub fn give(&mut self, m: usize, inbound: Inbound) {
        let Some(worker) = &mut self.members[m].worker else { return };
        if worker.frozen {
            let beats = worker.backlog.iter().filter(|waiting| matches!(waiting, Inbound::Beat(..))).count();
            if !matches!(inbound, Inbound::Beat(..)) || beats < SOCKET_DATAGRAMS {
                worker.backlog.push(inbound);
            }
            return;
        }
        self.take(m, inbound);
    }

    /// Wakes a stopped worker: whatever it looks at first, the core has it read its sockets dry.
    pub fn thaw(&mut self, m: usize) {
        let Some(worker) = self.members[m].worker.as_mut().filter(|worker| worker.frozen) else { return };
        worker.frozen = false;
        self.observe(m);
        let Some(worker) = &mut self.members[m].worker else { return };
        let count = worker.backlog.len() as u64;
        let first = self.rng.below(count * 2 + 1) as usize;
        let inc = worker.inc;
        if (first as u64) < count {
            let inbound = worker.backlog.remove(first);
            // Only the head of a connection can be read first.
            if inbound.from_socket() {
                worker.backlog.insert(first, inbound);
                self.turn(m, |node, now| node.handle_timeout(now));
            } else {
                self.take(m, inbound);
            }
        } else {
            self.turn(m, |node, now| node.handle_timeout(now));
        }
        self.drain_backlog(m, inc, |_| true);
    }

    fn drain_backlog(&mut self, m: usize, inc: u64, which: impl Fn(&Inbound) -> bool) {
        loop {
            let Some(worker) = self.members[m].worker.as_mut().filter(|worker| worker.inc == inc) else { return };
            let Some(index) = worker.backlog.iter().position(&which) else { return };
            let inbound = worker.backlog.remove(index);
            self.take(m, inbound);
        }
    }

    fn take(&mut self, m: usize, inbound: Inbound) {
        match inbound {
            Inbound::Lane(slot, up) => {
                let (path, lane) = match slot {
                    Slot::PingMain => (PathKind::Main, LaneKind::Ping),
                    Slot::PingAux => (PathKind::Aux, LaneKind::Ping),
                    Slot::Ds => (PathKind::Main, LaneKind::Ds),
                };
                if slot == Slot::Ds
                    && !up
                    && let Some(worker) = &mut self.members[m].worker
                {
                    worker.stream = None;
                }
                self.turn(m, |node, now| node.handle_connection(now, path, lane, up));
            }
            Inbound::Beat(path, beat) => {
                if beat.answers.is_none() {
                    self.heard_at[m] = self.now;
                }
                self.turn(m, |node, now| node.handle_heartbeat(now, path, &beat));
            }
            Inbound::Control(slot, conn, control) => {
                if self.net.up[m][slot as usize] == Some(conn) {
                    self.turn(m, |node, now| node.handle_message(now, slot.channel(), *control));
                    self.pump(m);
                }
            }
            Inbound::Frame(slot, conn, frame, sender) => {
                if self.net.up[m][slot as usize] == Some(conn) {
                    self.take_frame(m, slot.channel(), &frame, sender);
                }
            }
            Inbound::Local(done) => self.take_local(m, done),
            Inbound::Write(asked) => self.take_write(m, asked),
            Inbound::Command(command) => {
                let Some(worker) = &mut self.members[m].worker else { return };
                worker.commands += 1;
                let token = CommandToken(worker.commands);
                self.turn(m, |node, now| node.handle_command(now, token, command));
            }
        }
    }

    fn take_frame(&mut self, m: usize, from: Channel, frame: &Frame, sender: Epoch) {
        let mut verdict = FrameVerdict::Duplicate;
        self.turn(m, |node, now| verdict = node.handle_frame(now, from, &frame.meta));
        if verdict != FrameVerdict::Accept {
            return;
        }
        let member = &mut self.members[m];
        let highest = member.disk.control.as_ref().map_or(Epoch(0), |control| control.highest_epoch);
        let continues = member.disk.journal.continues(&frame.meta);
        let verdict = self.checks.prefix.accepted(m, &frame.meta, continues);
        self.judge(verdict);
        let verdict = self.checks.epochs.accepted(m, sender, highest);
        self.judge(verdict);
        self.members[m].disk.journal.frames.push(frame.clone());
        self.write_journal(m);
    }

    fn take_write(&mut self, m: usize, asked: Asked) {
        let Some(worker) = &mut self.members[m].worker else { return };
        worker.writes += 1;
        let token = WriteToken(worker.writes);
        let mut admitted = None;
        let (records, level, op) = (asked.records, asked.level, asked.op);
        self.turn(m, |node, now| admitted = Some(node.admit(now, token, records, level)));
        let Some(Ok(numbers)) = admitted else { return self.refused(asked) };
        let verdict = self.checks.prefix.admitted(m, numbers);
        self.judge(verdict);
        let span = self.speed.frame;
        let Some(worker) = &mut self.members[m].worker else { return };
        worker.waiting.insert(token, Waiting { op, level });
        worker.unframed.extend((0..records).map(|_| op));
        if !std::mem::replace(&mut worker.frame_due, true) {
            self.local_in(m, span, Local::CloseFrame);
        }
    }

    /// Runs the core and carries out what it wants.
    pub fn turn(&mut self, m: usize, input: impl FnOnce(&mut Node, ringpair_core::Instant)) {
        let now = self.now;
        let member = &mut self.members[m];
        let (Some(worker), Some(clock)) = (&mut member.worker, member.clock) else { return };
        input(&mut worker.node, clock.read(now));
        let inc = worker.inc;
        worker.quiet = true;
        self.carry_out(m, inc);
        let quiet = self.members[m].worker.as_ref().is_none_or(|worker| worker.quiet);
        if !quiet {
            self.observe(m);
        }
        self.set_timer(m);
    }

    fn carry_out(&mut self, m: usize, inc: u64) {
        loop {
            let Some(worker) = self.members[m].worker.as_mut().filter(|worker| worker.inc == inc) else { return };
            let Some(effect) = worker.node.poll_effect() else { return };
            worker.quiet &=
                matches!(effect, Effect::SendHeartbeat { .. } | Effect::Send { .. } | Effect::Answer { .. });
            self.effect(m, effect);
        }
    }

    fn set_timer(&mut self, m: usize) {
        let now = self.now;
        let member = &mut self.members[m];
        let (Some(worker), Some(clock)) = (&mut member.worker, member.clock) else { return };
        let Some(due) = worker.node.next_timeout() else { return };
        let at = clock.when(due).max(now) + 1;
        if worker.timer.is_some_and(|timer| timer <= at && timer > now) {
            return;
        }
        let inc = worker.inc;
        worker.timer = Some(at);
        let late = self.rng.within(self.speed.late);
        self.at(at + late, Ev::Timer { m, inc, at });
    }

    /// A worker's timer fired.
    pub fn timer(&mut self, m: usize, inc: u64, at: u64) {
        let now = self.now;
        let member = &mut self.members[m];
        let (Some(worker), Some(clock)) = (&mut member.worker, member.clock) else { return };
        if worker.inc != inc || worker.timer != Some(at) {
            return;
        }
        worker.timer = None;
        if worker.frozen {
            let later = now + 20 * MS;
            worker.timer = Some(later);
            return self.at(later, Ev::Timer { m, inc, at: later });
        }
        if worker.node.next_timeout().is_some_and(|due| due <= clock.read(now)) {
            self.turn(m, |node, now| node.handle_timeout(now));
        } else {
            self.set_timer(m);
        }
    }

    fn complete(&mut self, m: usize, span: (u64, u64), completion: Completion) {
        self.local_in(m, span, Local::Done(completion));
    }

    fn effect(&mut self, m: usize, effect: Effect) {
        let speed = self.speed;
        match effect {
            Effect::Persist { token, state } => self.store(m, token, *state),
            Effect::Send { to, message } => self.say(m, to, message),
            Effect::SendHeartbeat { path, heartbeat } => self.send_datagram(m, path, heartbeat),
            Effect::Connect => {
                let Some(worker) = &mut self.members[m].worker else { return };
                worker.doors_open = true;
                let discontinued = worker.discontinued;
                let verdict = self.checks.hooks.connects(m, discontinued);
                self.judge(verdict);
                Slot::ALL.into_iter().for_each(|slot| self.dial_soon(m, slot, 0));
                self.keeper_hears_ready(m);
            }
            Effect::DialNow => {
                for slot in [Slot::PingMain, Slot::PingAux] {
                    if self.net.up[m][slot as usize].is_none() {
                        self.dial_soon(m, slot, 0);
                    }
                }
            }
            Effect::Answer { write, version, outcome } => self.answer(m, write, version, outcome),
            Effect::CommandDone { .. } => {}
            Effect::CreateHistory { history } => {
                let peer = self.members[1 - m].disk.control.as_ref().and_then(|control| control.history).is_some();
                let bootstrap = self.members[m].config.bootstrap;
                let verdict = self.checks.complete.created(m, peer, bootstrap);
                self.judge(verdict);
                self.members[m].disk.history = Some(history);
            }
            Effect::AppendEpoch { start } => self.append_epoch(m, start.epoch),
            Effect::DropUnframed => {
                if let Some(worker) = &mut self.members[m].worker {
                    worker.unframed.clear();
                    worker.waiting.clear();
                }
            }
            Effect::StopAppliers => {
                if let Some(worker) = &mut self.members[m].worker {
                    worker.appliers_on = false;
                }
                self.local_in(m, speed.apply, Local::Stopped);
            }
            Effect::StartAppliers => self.start_appliers(m),
            Effect::Replay { work, through } => self.local_in(m, speed.apply, Local::Replayed(work, through)),
            Effect::SettleFiles { work, .. } => {
                self.complete(m, speed.apply, Completion::FilesSettled { work, renamed: 0, missing: 0 });
            }
            Effect::RunHook { hook, epoch } => self.run_hook(m, hook, epoch),
            Effect::Locate { work, position } => {
                let location = self.members[m].disk.journal.locate(position);
                self.complete(m, speed.apply, Completion::Located(work, location));
            }
            Effect::StreamFrom { after } => {
                if let Some(worker) = &mut self.members[m].worker {
                    worker.stream = Some(after.seq);
                }
                self.pump(m);
            }
            Effect::StopStream => {
                if let Some(worker) = &mut self.members[m].worker {
                    worker.stream = None;
                }
            }
            Effect::ServeTail { work, to, after } => {
                self.serve_tail(m, self.net.up[m][Slot::of(to) as usize], after);
                self.complete(m, speed.apply, Completion::TailServed(work));
            }
            Effect::Archive { work, after, .. } => self.local_in(m, speed.bulk, Local::Archive(work, after)),
            Effect::Resync { work, history, .. } => self.begin_resync(m, work, history),
            Effect::ServeResync(serves) => {
                if let Some(worker) = &mut self.members[m].worker {
                    worker.serves = serves;
                }
            }
            Effect::DrainSockets => {
                if let Some(inc) = self.members[m].worker.as_ref().map(|worker| worker.inc) {
                    // What waits is fed in by turns of its own; their effects follow those of this turn.
                    self.at(self.now, Ev::Drain { m, inc });
                }
            }
            Effect::DrainFiles { work } => {
                let left = u64::from(self.rng.per_mille(100));
                self.complete(m, speed.bulk, Completion::FilesDrained { work, left });
            }
            Effect::Report(event) => self.trace.report(self.now, m, event),
            Effect::Exit => self.worker_ends(m, Some(0), Death::Process),
        }
    }

    /// Reads a worker's sockets dry.
    pub fn drain(&mut self, m: usize, inc: u64) {
        if self.members[m].worker.as_ref().is_none_or(|worker| worker.inc != inc || worker.frozen) {
            return;
        }
        self.drain_backlog(m, inc, Inbound::from_socket);
        self.take(m, Inbound::Local(Local::Done(Completion::SocketsDrained)));
    }

    fn say(&mut self, m: usize, to: Channel, message: Control) {
        if let Control::Released { epoch, .. } = message {
            self.released_at[m] = self.now;
            let verdict = self.checks.hooks.released(m, epoch, self.members[m].config.on_hook_failure);
            self.judge(verdict);
        }
        if self.trace.verbose && !matches!(message, Control::Report(_) | Control::Ack { .. }) {
            self.trace.text(self.now, Some(m), format!("says on {to:?}: {message:?}"));
        }
        if let Some(conn) = self.net.up[m][Slot::of(to) as usize] {
            self.send_words(m, conn, Words::Control(message));
        }
    }

    fn store(&mut self, m: usize, token: PersistToken, state: Persisted) {
        let verdict = self.checks.epochs.persists(m, &state);
        self.judge(verdict);
        let member = &mut self.members[m];
        let Some(worker) = &mut member.worker else { return };
        if worker.storing {
            worker.store_next = Some((token, state));
            return;
        }
        worker.storing = true;
        member.disk.control_writing = Some(state);
        let span = self.speed.persist;
        self.local_in(m, span, Local::Stored(token, true));
    }

    fn append_epoch(&mut self, m: usize, epoch: Epoch) {
        let member = &self.members[m];
        let control = member.disk.control.clone().unwrap_or_default();
        let verdict = self.checks.epochs.begins(m, epoch, &control);
        self.judge(verdict);
        let verdict = self.checks.complete.promoted(m, &self.members[m].disk, self.forced[m]);
        self.judge(verdict);
        self.forced[m] = false;
        self.close_frame(m, epoch, &[0]);
        self.checks.hooks.begins(m, epoch);
    }

    fn close_frame(&mut self, m: usize, epoch: Epoch, ops: &[OpId]) {
        let journal = &self.members[m].disk.journal;
        let history = self.members[m].disk.history.unwrap_or_default();
        let frame = Frame::new(history, epoch, journal.end(), ops);
        let verdict = self.checks.prefix.closed(m, &frame);
        self.judge(verdict);
        let meta: FrameMeta = frame.meta;
        self.members[m].disk.journal.frames.push(frame);
        let now = self.now;
        let member = &mut self.members[m];
        if let (Some(worker), Some(clock)) = (&mut member.worker, member.clock) {
            worker.node.frame_closed(clock.read(now), &meta);
        }
        self.write_journal(m);
        self.pump(m);
    }

    fn write_journal(&mut self, m: usize) {
        let span = self.speed.write;
        let disk = &self.members[m].disk;
        let (end, written, full) = (disk.journal.end(), disk.journal.written, disk.full);
        let Some(worker) = &mut self.members[m].worker else { return };
        if worker.writing || end.seq <= written {
            return;
        }
        worker.writing = true;
        self.local_in(m, span, if full { Local::NoRoom } else { Local::Written(end) });
    }

    fn sync_journal(&mut self, m: usize) {
        let span = self.speed.sync;
        let disk = &mut self.members[m].disk;
        let through = disk.journal.position(disk.journal.written);
        let Some(worker) = &mut self.members[m].worker else { return };
        if worker.syncing || worker.sync_dead || through.seq <= disk.journal.synced {
            return;
        }
        worker.syncing = true;
        let fails = std::mem::take(&mut disk.sync_fails);
        disk.sync_failed |= fails;
        self.local_in(m, span, if fails { Local::SyncFailed } else { Local::Synced(through) });
    }

    fn start_appliers(&mut self, m: usize) {
        if let Some(worker) = &mut self.members[m].worker {
            worker.appliers_on = true;
        }
        self.apply(m);
    }

    fn apply(&mut self, m: usize) {
        let span = self.speed.apply;
        let written = self.members[m].disk.journal.written;
        let Some(worker) = &mut self.members[m].worker else { return };
        if worker.appliers_on && !worker.applying && worker.applied < written {
            worker.applying = true;
            self.local_in(m, span, Local::Applied(written));
        }
    }

    fn pump(&mut self, m: usize) {
        let Some(lane) = self.net.up[m][Slot::Ds as usize] else { return };
        let member = &mut self.members[m];
        let Some(worker) = &mut member.worker else { return };
        let Some(cursor) = worker.stream else { return };
        let through = worker.node.send_through();
        let sender = worker.node.epoch();
        let due: Vec<Frame> = member
            .disk
            .journal
            .after(cursor)
            .iter()
            .take_while(|frame| frame.meta.end.seq <= through)
            .cloned()
            .collect();
        if let Some(last) = due.last() {
            worker.stream = Some(last.meta.end.seq);
        }
        for frame in due {
            self.send_words(m, lane, Words::Frame(frame, sender));
        }
    }

    /// Sends the frames after a position, and the end.
    pub fn serve_tail(&mut self, m: usize, lane: Option<u32>, after: Position) {
        let Some(lane) = lane else { return };
        let journal = &self.members[m].disk.journal;
        let end = journal.end();
        let sender = TAIL;
        for frame in journal.after(after.seq).to_vec() {
            self.send_words(m, lane, Words::Frame(frame, sender));
        }
        self.send_words(m, lane, Words::Control(Control::TailEnd { end, served: true }));
    }

    fn run_hook(&mut self, m: usize, hook: Hook, epoch: Epoch) {
        self.keeper_hears_hook(m);
        let span = self.speed.hook;
        let slow = if self.rng.per_mille(self.members[m].hook_failures / 2) { 20 } else { 1 };
        let ok = !self.rng.per_mille(self.members[m].hook_failures);
        let verdict = self.checks.hooks.runs(m, hook, epoch);
        self.judge(verdict);
        self.local_in(m, (span.0 * slow, span.1 * slow), Local::Hook(hook, epoch, ok));
    }

    fn begin_resync(&mut self, m: usize, work: WorkToken, history: HistoryId) {
        let span = self.speed.bulk;
        let lane = self.net.up[m][Slot::Ds as usize];
        let peer = &self.members[1 - m];
        let open = lane.is_some() && self.net.any_whole();
        self.checks.complete.begins_resync(m);
        match &peer.worker {
            Some(worker) if open && worker.serves && !worker.frozen && peer.disk.history == Some(history) => {
                let journal = &peer.disk.journal;
                let snapshot = Snapshot { at: journal.end(), log: journal.log(), of: worker.inc, lane };
                self.local_in(m, span, Local::Resync(work, history, Box::new(snapshot)));
            }
            _ => self.complete(m, span, Completion::ResyncFailed(work, "the peer does not serve".into())),
        }
    }

    fn take_local(&mut self, m: usize, done: Local) {
        let member = &mut self.members[m];
        let Some(worker) = &mut member.worker else { return };
        match done {
            Local::Start => self.first_turn(m),
            Local::Stored(token, ok) => {
                worker.storing = false;
                if let Some((token, state)) = worker.store_next.take() {
                    worker.storing = true;
                    member.disk.control_writing = Some(state);
                    let span = self.speed.persist;
                    self.local_in(m, span, Local::Stored(token, true));
                }
                debug_assert!(ok, "the control file is preallocated");
                self.completed(m, Completion::Persisted(token));
            }
            Local::Written(at) => {
                worker.writing = false;
                self.write_journal(m);
                self.sync_journal(m);
                self.apply(m);
                self.completed(m, Completion::Written(at));
            }
            Local::NoRoom => {
                self.local_in(m, (100 * MS, 300 * MS), Local::WriteAgain);
                self.completed(m, Completion::JournalFull("no space left on device".into()));
            }
            Local::WriteAgain => {
                worker.writing = false;
                self.write_journal(m);
            }
            Local::Synced(at) => {
                worker.syncing = false;
                self.sync_journal(m);
                self.completed(m, Completion::Synced(at));
            }
            Local::SyncFailed => {
                worker.sync_dead = true;
                self.completed(m, Completion::SyncFailed("input/output error".into()));
            }
            Local::Applied(through) => {
                worker.applying = false;
                if worker.appliers_on {
                    worker.applied = worker.applied.max(through);
                    self.apply(m);
                    self.completed(m, Completion::Applied(through));
                }
            }
            Local::Stopped => {
                let applied = worker.applied;
                self.completed(m, Completion::AppliersStopped(applied));
            }
            Local::Replayed(work, through) => {
                worker.applied = worker.applied.max(through);
                self.completed(m, Completion::Replayed(work));
                self.start_appliers(m);
            }
            Local::CloseFrame => {
                worker.frame_due = false;
                let ops = std::mem::take(&mut worker.unframed);
                let epoch = worker.node.epoch();
                if !ops.is_empty() {
                    self.close_frame(m, epoch, &ops);
                    self.turn(m, |node, now| node.handle_timeout(now));
                }
            }
            Local::Archive(work, after) => self.archive(m, work, after),
            Local::Resync(work, history, snapshot) => self.resync(m, work, history, *snapshot),
            Local::Done(completion) => self.completed(m, completion),
            Local::Hook(hook, epoch, ok) => {
                worker.discontinued |= hook == Hook::Discontinue;
                self.checks.hooks.ended(m, hook, epoch, ok);
                self.completed(m, Completion::HookFinished { hook, epoch, ok });
            }
            Local::Orphaned => self.take(m, Inbound::Command(Command::Stop)),
        }
    }

    fn completed(&mut self, m: usize, completion: Completion) {
        self.turn(m, |node, now| node.handle_completion(now, completion));
    }

    fn first_turn(&mut self, m: usize) {
        let start = Start {
            persisted: self.members[m].disk.control.clone(),
            journal: self.members[m].disk.view(),
            fresh_history: HistoryId(u128::from(self.rng.next()).to_le_bytes()),
            unix_ms_at_zero: 0,
        };
        let applied = start.journal.applied;
        if let Some(worker) = &mut self.members[m].worker {
            worker.applied = applied;
        }
        self.turn(m, |node, now| node.start(now, start));
    }

    fn archive(&mut self, m: usize, work: WorkToken, after: Seq) {
        let disk = &mut self.members[m].disk;
        if disk.full {
            return self.completed(m, Completion::ArchiveFailed(work, "no space left on device".into()));
        }
        let ops: Vec<OpId> = disk.journal.ops_after(after).collect();
        let records = ops.len() as u64;
        disk.archive.extend(ops);
        self.completed(m, Completion::Archived { work, records, files: 0 });
    }

    fn resync(&mut self, m: usize, work: WorkToken, history: HistoryId, snapshot: Snapshot) {
        let peer = &self.members[1 - m];
        let serves = peer.worker.as_ref().is_some_and(|worker| worker.inc == snapshot.of && worker.serves);
        let same_lane = snapshot.lane.is_some() && self.net.up[m][Slot::Ds as usize] == snapshot.lane;
        if !serves || !same_lane || self.members[m].disk.full {
            return self.completed(m, Completion::ResyncFailed(work, "the connection was lost".into()));
        }
        let verdict = self.checks.archive.overwrites(m, &self.members[m].disk, &snapshot.log);
        self.judge(verdict);
        let disk = &mut self.members[m].disk;
        disk.journal.reset(snapshot.at, snapshot.log);
        disk.history = Some(history);
        disk.sync_failed = false;
        self.checks.complete.ends_resync(m);
        if let Some(worker) = &mut self.members[m].worker {
            worker.applied = snapshot.at.seq;
            (worker.writing, worker.syncing, worker.sync_dead, worker.applying) = (false, false, false, false);
        }
        self.completed(m, Completion::Resynced(work, snapshot.at));
    }

    fn answer(&mut self, m: usize, write: WriteToken, version: Version, outcome: WriteOutcome) {
        let Some(worker) = &mut self.members[m].worker else { return };
        let Some(waiting) = worker.waiting.remove(&write) else { return };
        if let WriteOutcome::Reached { level, alone } = outcome {
            let verdict = self.checks.acknowledged.told(m, waiting, version, (level, alone), &self.members);
            self.judge(verdict);
        }
        self.answered(waiting.op, outcome);
    }

    /// Looks at `/active` as a client would, and holds the member to it.
    pub fn observe(&mut self, m: usize) {
        let now = self.now;
        let member = &mut self.members[m];
        let (Some(worker), Some(clock)) = (&member.worker, member.clock) else { return };
        if worker.frozen || !worker.doors_open {
            return;
        }
        let Some(status) = worker.node.status(clock.read(now)) else { return };
        let highest = member.disk.control.as_ref().map_or(Epoch(0), |control| control.highest_epoch);
        let verdict = self.checks.exclusive.observed(now, m, &status);
        self.judge(verdict);
        let verdict = self.checks.epochs.observed(m, &status, highest);
        self.judge(verdict);
        let active = status.role == Role::Active;
        self.checks.hooks.observed(m, active, status.epoch);
        self.keeper_hears_status(m, &status);
        self.members[m].seen = Some(status);
    }

    /// Drops journal segments that nobody needs.
    pub fn trim(&mut self, m: usize) {
        let member = &mut self.members[m];
        let Some(worker) = member.worker.as_ref().filter(|worker| !worker.frozen && worker.doors_open) else { return };
        let through = worker.node.needed_after().min(worker.applied).min(member.disk.journal.synced);
        let before = member.disk.journal.base;
        member.disk.journal.trim(through);
        let base = member.disk.journal.base;
        if base != before {
            self.completed(m, Completion::Trimmed(base));
        }
    }

    /// The worker's process is gone, by itself (with a code) or killed.
    pub fn worker_ends(&mut self, m: usize, code: Option<i32>, death: Death) {
        let Some(worker) = self.members[m].worker.take() else { return };
        self.members[m].seen = None;
        self.members[m].applied_once = self.members[m].applied_once.max(worker.applied);
        self.drop_ends(m, End::Worker(worker.inc), death == Death::Host);
        let gone = self.members[m].disk.die(death, &mut self.rng);
        self.checks.acknowledged.lost(&gone, death);
        for waiting in worker.waiting.into_values() {
            self.answered(waiting.op, WriteOutcome::Unknown);
        }
        for inbound in worker.backlog {
            if let Inbound::Write(asked) = inbound {
                self.answered(asked.op, WriteOutcome::Unknown);
            }
        }
        if death == Death::Process {
            self.keeper_loses_worker(m, code);
        }
    }
}

/// The member's name.
#[must_use]
pub const fn name(m: usize) -> MemberId {
    if m == 0 { MemberId::A } else { MemberId::B }
}

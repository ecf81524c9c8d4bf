//! A member: its host, its disk, its supervisor and its worker, which is the shell around the product's own core.
//!
//! Always: every effect of the core is begun in its order, and ends by a completion or by the process's death. Never: a
//! decision of the pair taken here.

use std::collections::BTreeMap;

use ringpair_core::{
    Completion, Config, Effect, Node, Persisted,
    effect::Hook,
    input::{Channel, Command, CommandToken, FrameVerdict, PersistToken, WorkToken, WriteToken},
    status::Status,
};
use ringpair_wire::{
    control::Control,
    heartbeat::Heartbeat,
    id::{AckLevel, Epoch, HistoryId, MemberId, Position, Seq},
    lane::{LaneKind, PathKind},
};

use super::{
    client::Asked,
    disk::{Disk, Frame, OpId},
    keeper::Keeper,
    network::{End, Slot, Words},
    time::{Clock, MS},
    world::{Ev, World},
};

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
    /// Whether it waits in a socket.
    pub(super) const fn of_socket(&self) -> bool {
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
    /// Ask again whether the peer serves.
    Compare(WorkToken, HistoryId),
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
    pub(super) timer: Option<u64>,
    pub(super) unframed: Vec<OpId>,
    pub(super) frame_due: bool,
    pub(super) storing: bool,
    pub(super) store_next: Option<(PersistToken, Persisted)>,
    pub(super) writing: bool,
    pub(super) syncing: bool,
    pub(super) sync_dead: bool,
    pub(super) applied: Seq,
    pub(super) applying: bool,
    pub(super) appliers_on: bool,
    pub(super) stream: Option<Seq>,
    pub(super) serves: bool,
    pub(super) resync: Option<WorkToken>,
    pub(super) writes: u64,
    pub(super) commands: u64,
    pub(super) quiet: bool,
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
            resync: None,
            writes: 0,
            commands: 0,
            quiet: true,
        });
        let span = self.speed.spawn;
        self.local_in(m, span, Local::Start);
        inc
    }

    pub(super) fn local_in(&mut self, m: usize, span: (u64, u64), done: Local) {
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
            if inbound.of_socket() {
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

    pub(super) fn drain_backlog(&mut self, m: usize, inc: u64, which: impl Fn(&Inbound) -> bool) {
        loop {
            let Some(worker) = self.members[m].worker.as_mut().filter(|worker| worker.inc == inc) else { return };
            let Some(index) = worker.backlog.iter().position(&which) else { return };
            let inbound = worker.backlog.remove(index);
            self.take(m, inbound);
        }
    }

    pub(super) fn take(&mut self, m: usize, inbound: Inbound) {
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
        self.turn(m, |node, now| verdict = node.handle_frame(now, from, &frame.meta, true));
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
}

/// The member's name.
#[must_use]
pub const fn name(m: usize) -> MemberId {
    if m == 0 { MemberId::A } else { MemberId::B }
}

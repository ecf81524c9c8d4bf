//! What the core wants done, and how the simulated member begins it.
//!
//! Always: effects are begun in the order in which they were handed out. Never: a completion in the turn that asked for
//! the work.

use ringpair_core::{
    Completion, Effect, FrameMeta, Persisted,
    effect::Hook,
    input::{Channel, PersistToken, WorkToken},
};
use ringpair_wire::{
    control::Control,
    id::{Epoch, HistoryId, Position},
};

use super::{
    disk::{Death, Frame, OpId},
    member::{Inbound, Local, Snapshot, Worker},
    network::{Slot, Words},
    world::{Ev, World},
};

/// Whether a comparison's bulk lane outlives the ds lane.
pub(super) const fn bulk_stands_alone(work: WorkToken) -> bool {
    work.0.is_multiple_of(2)
}

/// Stands for the office of a frame that is served as a tail: of no office any more.
const TAIL: Epoch = Epoch(u64::MAX);

impl World {
    pub(super) fn complete(&mut self, m: usize, span: (u64, u64), completion: Completion) {
        self.local_in(m, span, Local::Done(completion));
    }

    pub(super) fn effect(&mut self, m: usize, effect: Effect) {
        let speed = self.speed;
        match effect {
            Effect::Persist { token, state } => self.store(m, token, *state),
            Effect::Send { to, message } => self.say(m, to, message),
            Effect::SendHeartbeat { path, heartbeat } => self.send_datagram(m, path, heartbeat),
            Effect::Connect => self.open_doors(m),
            Effect::DialNow => self.dial_pings(m),
            Effect::Answer { write, version, outcome } => self.answer(m, write, version, outcome),
            Effect::CommandDone { .. } => {}
            Effect::CreateHistory { history } => self.create_history(m, history),
            Effect::AppendEpoch { start } => self.append_epoch(m, start.epoch),
            Effect::DropUnframed => self.on_worker(m, |worker| {
                worker.unframed.clear();
                worker.waiting.clear();
            }),
            Effect::StopAppliers => {
                // Nothing of a resynchronization is applied any more.
                self.on_worker(m, |worker| (worker.appliers_on, worker.resync) = (false, None));
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
                self.on_worker(m, |worker| worker.stream = Some(after.seq));
                self.pump(m);
            }
            Effect::StopStream => self.on_worker(m, |worker| worker.stream = None),
            Effect::ServeTail { work, to, after } => {
                self.serve_tail(m, self.net.up[m][Slot::of(to) as usize], after);
                self.complete(m, speed.apply, Completion::TailServed(work));
            }
            Effect::Archive { work, after, .. } => self.local_in(m, speed.bulk, Local::Archive(work, after)),
            Effect::Resync { work, history, .. } => {
                self.on_worker(m, |worker| worker.resync = Some(work));
                self.checks.complete.begins_resync(m);
                self.compare(m, work, history);
            }
            Effect::ServeResync(serves) => self.on_worker(m, |worker| worker.serves = serves),
            Effect::DrainSockets => self.drain_soon(m),
            Effect::DrainFiles { work } => {
                let left = u64::from(self.rng.per_mille(100));
                self.complete(m, speed.bulk, Completion::FilesDrained { work, left });
            }
            Effect::Report(event) => self.trace.report(self.now, m, event),
            Effect::Exit => self.worker_ends(m, Some(0), Death::Process),
        }
    }

    fn on_worker(&mut self, m: usize, change: impl FnOnce(&mut Worker)) {
        if let Some(worker) = &mut self.members[m].worker {
            change(worker);
        }
    }

    fn open_doors(&mut self, m: usize) {
        let Some(worker) = &mut self.members[m].worker else { return };
        worker.doors_open = true;
        let discontinued = worker.discontinued;
        let verdict = self.checks.hooks.connects(m, discontinued);
        self.judge(verdict);
        Slot::ALL.into_iter().for_each(|slot| self.dial_soon(m, slot, 0));
        self.keeper_hears_ready(m);
    }

    fn dial_pings(&mut self, m: usize) {
        for slot in [Slot::PingMain, Slot::PingAux] {
            if self.net.up[m][slot as usize].is_none() {
                self.dial_soon(m, slot, 0);
            }
        }
    }

    fn create_history(&mut self, m: usize, history: HistoryId) {
        let peer = self.members[1 - m].disk.control.as_ref().and_then(|control| control.history).is_some();
        let bootstrap = self.members[m].config.bootstrap;
        let verdict = self.checks.complete.created(m, peer, bootstrap);
        self.judge(verdict);
        self.members[m].disk.history = Some(history);
    }

    /// What waits is fed in by turns of its own; their effects follow those of this turn.
    fn drain_soon(&mut self, m: usize) {
        if let Some(inc) = self.members[m].worker.as_ref().map(|worker| worker.inc) {
            self.at(self.now, Ev::Drain { m, inc });
        }
    }

    /// Reads a worker's sockets dry.
    pub fn drain(&mut self, m: usize, inc: u64) {
        if self.members[m].worker.as_ref().is_none_or(|worker| worker.inc != inc || worker.frozen) {
            return;
        }
        self.drain_backlog(m, inc, Inbound::of_socket);
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
        self.write_control(m, token, state);
    }

    pub(super) fn write_control(&mut self, m: usize, token: PersistToken, state: Persisted) {
        let member = &mut self.members[m];
        let Some(worker) = &mut member.worker else { return };
        worker.storing = true;
        member.disk.control_writing = Some(state);
        let (span, ok) = (self.speed.persist, !member.disk.control_fails);
        self.local_in(m, span, Local::Stored(token, ok));
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

    pub(super) fn close_frame(&mut self, m: usize, epoch: Epoch, ops: &[OpId]) {
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

    pub(super) fn write_journal(&mut self, m: usize) {
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

    pub(super) fn sync_journal(&mut self, m: usize) {
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

    pub(super) fn start_appliers(&mut self, m: usize) {
        if let Some(worker) = &mut self.members[m].worker {
            worker.appliers_on = true;
        }
        self.apply(m);
    }

    pub(super) fn apply(&mut self, m: usize) {
        let span = self.speed.apply;
        let written = self.members[m].disk.journal.written;
        let Some(worker) = &mut self.members[m].worker else { return };
        if worker.appliers_on && !worker.applying && worker.applied < written {
            worker.applying = true;
            self.local_in(m, span, Local::Applied(written));
        }
    }

    pub(super) fn pump(&mut self, m: usize) {
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

    /// Asks the peer to compare. The wish waits until the peer serves; the bulk lane that carries it shares the fate of
    /// the ds lane, or stands for itself.
    pub(super) fn compare(&mut self, m: usize, work: WorkToken, history: HistoryId) {
        let span = self.speed.bulk;
        if self.members[m].worker.as_ref().is_none_or(|worker| worker.resync != Some(work)) {
            return;
        }
        let (lane, alone) = (self.net.up[m][Slot::Ds as usize], bulk_stands_alone(work));
        let peer = &self.members[1 - m];
        let open = (alone || lane.is_some()) && self.net.any_whole();
        match &peer.worker {
            Some(worker) if open && !worker.serves && !worker.frozen => {
                self.local_in(m, span, Local::Compare(work, history));
            }
            Some(worker) if open && !worker.frozen && peer.disk.history == Some(history) => {
                let journal = &peer.disk.journal;
                let snapshot = Snapshot { at: journal.end(), log: journal.log(), of: worker.inc, lane };
                self.local_in(m, span, Local::Resync(work, history, Box::new(snapshot)));
            }
            _ => self.complete(m, span, Completion::ResyncFailed(work, "the peer does not serve".into())),
        }
    }
}

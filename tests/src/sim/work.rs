//! How work ends: what a worker's disk, appliers, hooks and long errands bring back to its core, and the process's end.
//!
//! Always: a completion tells what is true on the simulated disk. Never: a word to a process that did not begin the work.

use ringpair_core::{
    Command, Completion, Start,
    effect::{Hook, WriteOutcome},
    input::{PersistToken, WorkToken, WriteToken},
};
use ringpair_wire::{
    control::Role,
    id::{Epoch, HistoryId, Seq, Version},
};

use super::{
    disk::{Death, OpId},
    effects::bulk_stands_alone,
    member::{Inbound, Local, Snapshot},
    network::{End, Slot},
    time::MS,
    world::World,
};

impl World {
    pub(super) fn take_local(&mut self, m: usize, done: Local) {
        let Some(worker) = &mut self.members[m].worker else { return };
        match done {
            Local::Start => self.first_turn(m),
            Local::Stored(token, ok) => self.stored(m, token, ok),
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
            Local::CloseFrame => self.close_due_frame(m),
            Local::Archive(work, after) => self.archive(m, work, after),
            Local::Compare(work, history) => self.compare(m, work, history),
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

    fn stored(&mut self, m: usize, token: PersistToken, ok: bool) {
        let Some(worker) = &mut self.members[m].worker else { return };
        worker.storing = false;
        if let Some((next, state)) = worker.store_next.take() {
            self.write_control(m, next, state);
        }
        let failed = || Completion::PersistFailed(token, "input/output error".into());
        self.completed(m, if ok { Completion::Persisted(token) } else { failed() });
    }

    fn close_due_frame(&mut self, m: usize) {
        let Some(worker) = &mut self.members[m].worker else { return };
        worker.frame_due = false;
        let ops = std::mem::take(&mut worker.unframed);
        let epoch = worker.node.epoch();
        if !ops.is_empty() {
            self.close_frame(m, epoch, &ops);
            self.turn(m, |node, now| node.handle_timeout(now));
        }
    }

    pub(super) fn completed(&mut self, m: usize, completion: Completion) {
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
        if self.members[m].worker.as_ref().is_none_or(|worker| worker.resync != Some(work)) {
            return;
        }
        let peer = &self.members[1 - m];
        let same_process = peer.worker.as_ref().is_some_and(|worker| worker.inc == snapshot.of);
        let serves = peer.worker.as_ref().is_some_and(|worker| worker.serves);
        let same_lane = bulk_stands_alone(work) || self.net.up[m][Slot::Ds as usize] == snapshot.lane;
        if !same_process || !same_lane || self.members[m].disk.full {
            return self.completed(m, Completion::ResyncFailed(work, "the connection was lost".into()));
        }
        if !serves {
            return self.compare(m, work, history); // begun anew once the peer serves
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

    pub(super) fn answer(&mut self, m: usize, write: WriteToken, version: Version, outcome: WriteOutcome) {
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
        let verdict = self.checks.hooks.observed(m, active, status.epoch);
        self.judge(verdict);
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
        self.checks.epochs.died(m, self.members[m].disk.control.as_ref());
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

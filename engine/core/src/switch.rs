//! Commands and orderly ends: the controlled switch (protocol §9), stop, mode, fencing, the sync barrier, and stepping
//! down where there is no order left (§2, §5, §10).
//!
//! Always in the order drain, refuse writes, discontinue, final barrier, release, and the release persisted before it is
//! said. Never: a release of a role whose discontinue failed, unless forced or configured.

use ringpair_wire::{
    control::{Blocker, BlockerKind, Control, NumberedMode, SwitchMode, SwitchOutcome},
    id::{Epoch, Seq},
};

use crate::{
    config::OnHookFailure,
    effect::{Effect, Hook},
    event::{EventCode, SwitchReason},
    input::{Channel, Command, CommandToken, Refusal, RefusalKind, WorkToken},
    node::{After, Node},
    persisted::Right,
    promotion::Basis,
    roles::Cause,
    time::Instant,
};

/// How many barriers may wait: more than the shell has at once, whose deadlines the core does not know.
const MAX_SYNCS: usize = 1024;

/// Who waits for a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    Here(CommandToken),
    Peer(Channel, u64),
    /// The member stops.
    Stop,
    /// Its storage failed.
    Storage,
}

/// The steps of a release, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Writes still come; files and records are brought over in advance.
    Draining,
    /// The discontinue hook runs; writes are refused.
    Discontinuing,
    /// Everything that was accepted goes over.
    Barrier,
    /// The release is being persisted.
    Releasing,
}

/// A release of the role under way.
#[derive(Debug)]
pub(crate) struct SwitchRun {
    asker: Asker,
    step: Step,
    forced: bool,
    files: Option<WorkToken>,
    files_left: u64,
    deadline: Instant,
}

/// The member stops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    command: CommandToken,
    done: bool,
}

/// A switch that was forwarded to the active.
#[derive(Clone, Debug)]
pub(crate) struct Forwarded {
    pub id: u64,
    pub user: String,
    command: CommandToken,
    deadline: Instant,
}

fn refusal(kind: RefusalKind, reason: impl Into<String>) -> Refusal {
    Refusal { kind, reason: reason.into(), active: None, blockers: Vec::new() }
}

impl Node {
    pub(crate) fn on_command(&mut self, token: CommandToken, command: Command) {
        if self.stopping.is_some() {
            return self.done(token, Err(refusal(RefusalKind::State, "the member is stopping")));
        }
        match command {
            Command::Switch { immediate, force, fenced, blockers, user } if self.office.is_some() => {
                if fenced {
                    self.fence();
                }
                self.note(format!("switch command by {user}, immediate {immediate}, force {force}"));
                self.begin_switch(Asker::Here(token), immediate, force, blockers);
            }
            Command::Switch { force: true, fenced, user, .. } => self.force_promotion(token, fenced, user),
            Command::Switch { immediate, user, .. } => self.forward_switch(token, immediate, user),
            Command::SetMode(mode) => {
                self.set_mode(NumberedMode { number: self.p.mode.number + 1, mode });
                let mode = self.p.mode;
                self.send_everywhere(&Control::Mode(mode));
                self.done(token, Ok(()));
            }
            Command::Fenced => {
                self.fence();
                self.done(token, Ok(()));
            }
            Command::Sync => self.begin_sync(token),
            Command::Stop => self.begin_stop(token),
        }
    }

    fn done(&mut self, command: CommandToken, result: Result<(), Refusal>) {
        self.push(Effect::CommandDone { command, result });
    }

    /// The higher number holds, here and there.
    pub(crate) fn on_mode(&mut self, mode: NumberedMode) {
        if mode.number > self.p.mode.number {
            self.set_mode(mode);
        }
    }

    fn set_mode(&mut self, mode: NumberedMode) {
        let name = if mode.mode == SwitchMode::Manual { "manual" } else { "auto" };
        self.p.mode = mode;
        self.report(EventCode::Mode, format!("mode {name}, change number {}", mode.number));
        self.persist(After::Nothing);
    }

    /// The operator says that the peer is dead.
    fn fence(&mut self) {
        self.report(EventCode::Right, "the operator says that the peer is dead (--fenced)".into());
        self.p.contested = false;
        if self.p.out().is_some() {
            self.right_returned();
        } else {
            self.persist(After::Nothing);
        }
    }

    fn begin_sync(&mut self, token: CommandToken) {
        let alone = self.is_alone();
        let end = self.office.as_ref().map(|office| Seq(office.next_seq.0 - 1));
        match (&mut self.office, end) {
            (Some(office), Some(_)) if !alone && office.syncs.len() >= MAX_SYNCS => {
                let reason = format!("{MAX_SYNCS} barriers wait already for the backup. Try: ringpair status");
                self.done(token, Err(refusal(RefusalKind::Busy, reason)));
            }
            (Some(office), Some(end)) if !alone => office.syncs.push((token, end)),
            (Some(_), _) => {
                self.done(token, Err(refusal(RefusalKind::State, "alone: there is no backup to sync with")))
            }
            _ => {
                let refusal = self.not_active();
                self.done(token, Err(refusal));
            }
        }
    }

    pub(crate) fn finish_syncs(&mut self) {
        let Some(office) = &mut self.office else { return };
        let durable = office.progress.reached(ringpair_wire::id::AckLevel::Durable);
        let (done, left): (Vec<_>, Vec<_>) = office.syncs.drain(..).partition(|(_, seq)| *seq <= durable);
        office.syncs = left;
        for (token, _) in done {
            self.done(token, Ok(()));
        }
    }

    /// What, as far as the core knows, speaks against a switch now.
    pub(crate) fn state_blockers(&self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        let mut add = |reason: String| {
            blockers.push(Blocker { kind: BlockerKind::State, path: String::new(), reason });
        };
        let Some(office) = &self.office else {
            add(format!("this member is not active ({})", self.state.name()));
            return blockers;
        };
        if !office.serving {
            add("the promotion is not finished".into());
        }
        if !self.hears() {
            add("the backup is not heard".into());
        } else if office.follower.is_behind() {
            add("the backup is being resynchronized".into());
        } else if self.is_alone() {
            add("the backup has not caught up: this member is alone".into());
        }
        if self.peer.report.as_ref().is_some_and(|report| !report.eligible) {
            add("the backup may not become active (forced to be backup, or its storage failed)".into());
        }
        blockers
    }

    fn begin_switch(&mut self, asker: Asker, immediate: bool, forced: bool, mut blockers: Vec<Blocker>) {
        if self.office.as_ref().is_some_and(|office| office.switch.is_some()) {
            return self.end_switch(asker, Err(refusal(RefusalKind::Busy, "a switch is under way already")));
        }
        blockers.extend(self.state_blockers());
        if !blockers.is_empty() && !forced {
            let reason = blockers[0].reason.clone();
            let refusal = Refusal { blockers, ..refusal(RefusalKind::State, format!("not switched: {reason}")) };
            return self.end_switch(asker, Err(refusal));
        }
        self.report(EventCode::Switch, "controlled switch: drains".into());
        let deadline = self.now.plus(self.config.switch_step);
        let files = (!immediate).then(|| self.work());
        let Some(office) = &mut self.office else { return };
        office.switch = Some(SwitchRun { asker, step: Step::Draining, forced, files, files_left: 0, deadline });
        if let Some(work) = files {
            self.push(Effect::DrainFiles { work });
        }
    }

    pub(crate) fn on_files_drained(&mut self, work: WorkToken, left: u64) {
        let Some(run) = self.office.as_mut().and_then(|office| office.switch.as_mut()) else { return };
        if run.files == Some(work) {
            (run.files, run.files_left) = (None, left);
        }
    }

    /// Moves a release from step to step.
    pub(crate) fn check_switch(&mut self) {
        self.check_forwarded();
        let now = self.now;
        let Some(office) = &self.office else { return };
        let Some(run) = &office.switch else { return };
        let records_over = office.progress.reached(ringpair_wire::id::AckLevel::Durable).0 + 1 >= office.next_seq.0;
        let (late, forced, asker) = (now >= run.deadline, run.forced, run.asker);
        let files_over = run.files.is_none();
        let clean = run.files_left == 0;
        match run.step {
            Step::Draining if files_over || late => self.discontinue_for_switch(),
            Step::Barrier if matches!(asker, Asker::Storage) && self.p.out().is_none() => self.keep_failed_storage(),
            Step::Barrier if records_over && files_over && (clean || forced) && self.hears() => self.release(),
            Step::Barrier if late && (forced || matches!(asker, Asker::Stop)) => self.release(),
            Step::Barrier if matches!(asker, Asker::Storage) => self.release(),
            Step::Barrier if matches!(asker, Asker::Stop) && !self.hears() => self.release(),
            Step::Barrier if late => self.give_up_switch("the backup did not get everything in time"),
            Step::Barrier if files_over && !clean && records_over => self.drain_again(),
            _ => {}
        }
    }

    fn discontinue_for_switch(&mut self) {
        let deadline = self.now.plus(self.config.switch_step);
        let Some(office) = &mut self.office else { return };
        let epoch = office.epoch;
        office.admitting = false;
        if let Some(run) = &mut office.switch {
            (run.step, run.deadline, run.files) = (Step::Discontinuing, deadline, None);
        }
        self.report(EventCode::Switch, "writes are refused; runs discontinue".into());
        self.push(Effect::RunHook { hook: Hook::Discontinue, epoch });
    }

    pub(crate) fn on_switch_discontinued(&mut self, epoch: Epoch, ok: bool) {
        let promote_anyway = self.config.on_hook_failure == OnHookFailure::Promote;
        let work = self.work();
        let deadline = self.now.plus(self.config.switch_step);
        let Some(office) = self.office.as_mut().filter(|office| office.epoch == epoch) else { return };
        let Some(run) = office.switch.as_mut().filter(|run| run.step == Step::Discontinuing) else { return };
        if !ok && !run.forced && !promote_anyway {
            return self.give_up_switch("discontinue failed");
        }
        (run.step, run.files, run.deadline) = (Step::Barrier, Some(work), deadline);
        self.push(Effect::DrainFiles { work });
    }

    /// The backup gave its right back meanwhile: without a current peer the member stays and refuses writes (protocol §10).
    fn keep_failed_storage(&mut self) {
        self.p.complete = true;
        self.persist(After::Nothing);
        self.give_up_switch("the backup cannot take over any more");
    }

    fn drain_again(&mut self) {
        let work = self.work();
        if let Some(run) = self.office.as_mut().and_then(|office| office.switch.as_mut()) {
            run.files = Some(work);
            self.push(Effect::DrainFiles { work });
        }
    }

    /// Stays active: commences again.
    fn give_up_switch(&mut self, why: &str) {
        let Some(office) = &mut self.office else { return };
        let epoch = office.epoch;
        let Some(run) = office.switch.take() else { return };
        office.admitting = true;
        self.report(EventCode::Switch, format!("stays active: {why}; commences again"));
        self.push(Effect::RunHook { hook: Hook::Commence, epoch });
        if matches!(run.asker, Asker::Stop) {
            // The process ends all the same, as a death would: nothing is released (on_failure = "hold").
            return self.exit();
        }
        self.end_switch(run.asker, Err(refusal(RefusalKind::Failed, format!("not switched: {why}"))));
    }

    /// `/active` says 503 from here on; the release is persisted, then said.
    fn release(&mut self) {
        let Some(office) = &mut self.office else { return };
        office.serving = false;
        office.lease.right = None;
        let epoch = office.epoch;
        if let Some(run) = &mut office.switch {
            run.step = Step::Releasing;
        }
        self.p.released = Some(epoch);
        self.p.right = Right::None;
        self.persist(After::ReleaseSaid(epoch));
    }

    pub(crate) fn on_release_stored(&mut self, epoch: Epoch) {
        let Some(office) = self.office.as_mut().filter(|office| office.epoch == epoch) else { return };
        let Some(run) = office.switch.take() else { return };
        let end = self.journal.end;
        let controlled = matches!(run.asker, Asker::Here(_) | Asker::Peer(..));
        self.report(EventCode::Release, format!("releases epoch {epoch} at record {}", end.seq));
        self.send_everywhere(&Control::Released { epoch, end, controlled });
        self.end_office("the role is released");
        self.peer.report = None;
        self.enter(Cause::Seeks, "waits for the peer to take the role over".into());
        match run.asker {
            Asker::Stop => self.exit(),
            asker => self.end_switch(asker, Ok(())),
        }
    }

    fn end_switch(&mut self, asker: Asker, result: Result<(), Refusal>) {
        match asker {
            Asker::Here(token) => self.done(token, result),
            Asker::Peer(to, id) => {
                let outcome = match result {
                    Ok(()) => SwitchOutcome::Released(self.p.own_epoch),
                    Err(refusal) => SwitchOutcome::Refused { reason: refusal.reason, blockers: refusal.blockers },
                };
                self.send(to, Control::SwitchAnswer { id, outcome });
            }
            Asker::Stop | Asker::Storage => {}
        }
    }

    /// The office is over: nothing is served, what waited is unknown, the lanes go on without it.
    pub(crate) fn end_office(&mut self, why: &str) {
        if self.office.is_none() {
            return;
        }
        self.end_writes();
        self.push(Effect::StopStream);
        self.push(Effect::ServeResync(false));
        let Some(office) = self.office.take() else { return };
        for (token, _) in office.syncs {
            self.done(token, Err(refusal(RefusalKind::Failed, format!("not active any more: {why}"))));
        }
        if let Some(run) = office.switch {
            self.end_switch(run.asker, Err(refusal(RefusalKind::Failed, format!("not active any more: {why}"))));
        }
        self.enter(Cause::SteppedDown, why.into());
    }

    /// Ceases to be active without an order: nothing more is served or acknowledged, discontinue runs, and then this
    /// member looks for an active (SM-093, SM-165).
    pub(crate) fn step_down(&mut self, why: &str) {
        let Some(office) = &self.office else { return };
        let epoch = office.epoch;
        self.report(EventCode::SteppedDown, format!("ceases to be active in epoch {epoch}: {why}"));
        self.note(format!("stepped down: {why}"));
        self.end_office(why);
        // What the peer said of itself was said to an active: a decision without one needs a new word.
        self.peer.report = None;
        self.stepping = Some(epoch);
        self.seeking_since = self.seeking_since.map(|_| self.now);
        self.push(Effect::RunHook { hook: Hook::Discontinue, epoch });
    }

    pub(crate) fn on_discontinued(&mut self) {
        self.stepping = None;
        self.enter(Cause::Seeks, "looks for an active".into());
        self.enter_following("follows the active");
        self.ask();
    }

    /// An fsync failed: never retried. With a current peer the role goes to it; without one writes are refused.
    pub(crate) fn on_sync_failed(&mut self, why: String) {
        self.report(EventCode::Storage, format!("an fsync of the journal failed: {why}; it is not tried again"));
        self.journal.failed = Some(why);
        if self.office.is_some() {
            return self.hand_over_failed_storage();
        }
        if let Right::Held(id) = self.p.right {
            self.give_back(id, ringpair_wire::control::GiveBackReason::StorageFailed);
        }
        self.p.complete = false;
        self.persist(After::Nothing);
        self.restart_following();
    }

    /// An active whose journal failed gives its role away as soon as there is a backup that has everything.
    pub(crate) fn hand_over_failed_storage(&mut self) {
        let idle = self.office.as_ref().is_some_and(|office| office.switch.is_none());
        if self.journal.failed.is_none() || !idle || !self.state_blockers().is_empty() {
            return;
        }
        let Some(office) = &mut self.office else { return };
        let (deadline, asker, step) = (self.now, Asker::Storage, Step::Draining);
        office.switch = Some(SwitchRun { asker, step, forced: true, files: None, files_left: 0, deadline });
        self.p.complete = false;
    }

    fn force_promotion(&mut self, token: CommandToken, fenced: bool, user: String) {
        if self.p.history.is_none() {
            let reason = "the storage is empty: there is nothing to serve. Try: run --bootstrap on A";
            return self.done(token, Err(refusal(RefusalKind::State, reason)));
        }
        if self.promotion.is_some() || self.stepping.is_some() {
            return self.done(token, Err(refusal(RefusalKind::Busy, "a promotion or a stepping down is under way")));
        }
        let current = if self.p.complete { "whole" } else { "NOT whole" };
        let sentence = format!("--force by {user}, fenced: {fenced}; the own copy is {current}");
        let basis = Basis { forced: true, user, ..Basis::new(SwitchReason::Forced, !fenced, sentence) };
        if let Some(older) = self.forwarded.take() {
            let reason = "a forced switch has taken the place of this one";
            self.done(older.command, Err(refusal(RefusalKind::Busy, reason)));
        }
        if self.held_stored.is_none() {
            self.outwait_answers();
        }
        self.forwarded = Some(Forwarded {
            id: 0,
            user: String::new(),
            command: token,
            deadline: self.now.plus(self.config.switch_step),
        });
        self.begin_promotion(basis);
    }

    fn forward_switch(&mut self, token: CommandToken, immediate: bool, user: String) {
        let reachable = self.leader.is_some() && self.hears();
        let Some(to) = self.ping().filter(|_| reachable) else {
            let reason = "the active cannot be reached. Try: --force, with --fenced if it is surely dead";
            let blockers = self.state_blockers();
            return self.done(token, Err(Refusal { blockers, ..refusal(RefusalKind::State, reason) }));
        };
        if self.forwarded.is_some() {
            return self.done(token, Err(refusal(RefusalKind::Busy, "a switch is under way already")));
        }
        let id = self.work().0;
        let deadline = self.now.plus(self.config.switch_step * 3);
        self.forwarded = Some(Forwarded { id, user, command: token, deadline });
        self.send(to, Control::SwitchRequest { id, immediate });
    }

    pub(crate) fn on_switch_request(&mut self, from: Channel, id: u64, immediate: bool) {
        let asker = Asker::Peer(from, id);
        if self.office.is_some() {
            self.begin_switch(asker, immediate, false, Vec::new());
        } else {
            let refusal = self.not_active();
            self.end_switch(asker, Err(refusal));
        }
    }

    pub(crate) fn on_switch_answer(&mut self, id: u64, outcome: SwitchOutcome) {
        if let SwitchOutcome::Refused { reason, blockers } = outcome
            && let Some(forwarded) = self.forwarded.take_if(|forwarded| forwarded.id == id)
        {
            self.done(forwarded.command, Err(Refusal { blockers, ..refusal(RefusalKind::State, reason) }));
        }
    }

    /// The switch that was asked for here has ended: this member serves.
    pub(crate) fn finish_forwarded(&mut self) {
        if let Some(forwarded) = self.forwarded.take() {
            self.done(forwarded.command, Ok(()));
        }
    }

    fn check_forwarded(&mut self) {
        let now = self.now;
        if let Some(forwarded) = self.forwarded.take_if(|forwarded| now >= forwarded.deadline) {
            self.done(forwarded.command, Err(refusal(RefusalKind::Failed, "the switch did not end in time")));
        }
    }

    fn begin_stop(&mut self, token: CommandToken) {
        self.stopping = Some(Stop { command: token, done: false });
        self.report(EventCode::StateChanged, "stops".into());
        let (has_right_out, deadline) = (self.p.out().is_some(), self.now.plus(self.config.lease(256)));
        if let Some(office) = &mut self.office {
            if has_right_out && office.serving {
                let (asker, step) = (Asker::Stop, Step::Draining);
                let run = SwitchRun { asker, step, forced: false, files: None, files_left: 0, deadline };
                if let Some(other) = office.switch.replace(run) {
                    self.end_switch(other.asker, Err(refusal(RefusalKind::Failed, "the member is stopping")));
                }
                return;
            }
            self.step_down("the member stops");
        } else if let Right::Held(id) = self.p.right {
            self.promotion = None;
            self.give_back(id, ringpair_wire::control::GiveBackReason::Stopping);
        }
    }

    /// Ends a stop once nothing is under way that must end first.
    pub(crate) fn check_stop(&mut self) {
        let Some(stop) = self.stopping else { return };
        let busy = self.office.is_some() || self.stepping.is_some() || self.store.is_busy();
        if !stop.done && !busy {
            self.exit();
        }
    }

    fn exit(&mut self) {
        if let Some(stop) = self.stopping.as_mut().filter(|stop| !stop.done) {
            stop.done = true;
            let command = stop.command;
            self.done(command, Ok(()));
            self.end_office("the member stops");
            self.leader = None;
            self.enter(Cause::Stops, "stopped".into());
            self.push(Effect::Exit);
        }
    }

    pub(crate) fn switch_deadline(&self) -> Option<Instant> {
        let run = self.office.as_ref().and_then(|office| office.switch.as_ref()).map(|run| run.deadline);
        let forwarded = self.forwarded.as_ref().map(|forwarded| forwarded.deadline);
        run.into_iter().chain(forwarded).min()
    }
}

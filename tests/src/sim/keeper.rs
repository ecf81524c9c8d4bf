//! The shell around the product's own supervisor: starts workers, watches them, answers the peer for a dead one.
//!
//! Always: decisions come from `ringpair_core::supervisor`. Never: a frame served before the release is persisted.

use std::{collections::BTreeSet, time::Duration};

use ringpair_core::{
    effect::Hook,
    status::Status,
    supervisor::{self, Effect, Input, Left, PeerLink, Supervisor, SupervisorConfig, WorkerExit, WorkerStatus},
};
use ringpair_wire::{
    control::{Control, GiveBackReason},
    id::{Epoch, Position},
};

use super::{
    disk::Death,
    member::{Inbound, Local},
    network::{End, Slot, Words},
    time::MS,
    world::{Ev, World},
};

/// A supervisor process.
#[derive(Debug)]
pub struct Keeper {
    /// Its decisions.
    pub core: Supervisor,
    /// Which process this is.
    pub inc: u64,
    /// Stopped by a signal or by its host.
    pub frozen: bool,
    backlog: Vec<Input>,
    /// Whether its worker turned since the last look.
    status: WorkerStatus,
    timer: Option<u64>,
    /// The peer's lanes that it answers.
    lanes: BTreeSet<u32>,
    told: BTreeSet<u32>,
    released: Option<(Epoch, Position)>,
    /// The tail was asked for before the release.
    asked: Option<(u32, Position)>,
}

impl World {
    /// The supervisor of a member starts.
    pub fn begin_keeper(&mut self, m: usize) {
        let Some(clock) = self.members[m].clock else { return };
        if self.members[m].keeper.is_some() || self.members[m].worker.is_some() {
            return;
        }
        let config = &self.members[m].config;
        let hooks = Duration::from_nanos(self.speed.hook.1 * 20);
        let config = SupervisorConfig {
            heartbeat: config.heartbeat,
            lease: config.heartbeat * config.misses,
            start_limit: Duration::from_secs(10),
            stop_limit: Duration::from_secs(10) + hooks,
            hook_limit: hooks,
            tail_limit: Duration::from_secs(5),
            on_hook_failure: config.on_hook_failure,
        };
        let inc = self.next_incarnation();
        let mut core = Supervisor::new(config, clock.read(self.now));
        let effects = core.begin(clock.read(self.now));
        self.members[m].keeper = Some(Keeper {
            core,
            inc,
            frozen: false,
            backlog: Vec::new(),
            status: WorkerStatus::default(),
            timer: None,
            lanes: BTreeSet::new(),
            told: BTreeSet::new(),
            released: None,
            asked: None,
        });
        self.keeper_effects(m, effects);
        self.set_keeper_timer(m);
    }

    /// Gives the supervisor an input, or lays it up.
    pub fn keeper_input(&mut self, m: usize, inc: u64, input: Input) {
        let now = self.now;
        let member = &mut self.members[m];
        let (Some(keeper), Some(clock)) = (&mut member.keeper, member.clock) else { return };
        if keeper.inc != inc {
            return;
        }
        if keeper.frozen {
            keeper.backlog.push(input);
            return;
        }
        let effects = keeper.core.handle(clock.read(now), input);
        self.keeper_effects(m, effects);
        self.set_keeper_timer(m);
    }

    fn keeper_now(&mut self, m: usize, input: Input) {
        if let Some(inc) = self.members[m].keeper.as_ref().map(|keeper| keeper.inc) {
            self.keeper_input(m, inc, input);
        }
    }

    fn keeper_later(&mut self, m: usize, wait: u64, input: Input) {
        if let Some(inc) = self.members[m].keeper.as_ref().map(|keeper| keeper.inc) {
            self.at(self.now + wait, Ev::Keeper { m, inc, input });
        }
    }

    fn set_keeper_timer(&mut self, m: usize) {
        let now = self.now;
        let member = &mut self.members[m];
        let (Some(keeper), Some(clock)) = (&mut member.keeper, member.clock) else { return };
        let Some(due) = keeper.core.poll_timeout() else { return };
        let at = clock.when(due).max(now) + 1;
        if keeper.timer.is_none_or(|timer| timer > at || timer <= now) {
            keeper.timer = Some(at);
            let inc = keeper.inc;
            self.at(at, Ev::KeeperTimer { m, inc, at });
        }
    }

    /// A supervisor's timer fired. It reads its worker's word first (protocol §5).
    pub fn keeper_timer(&mut self, m: usize, inc: u64, at: u64) {
        let now = self.now;
        let member = &mut self.members[m];
        let (Some(keeper), Some(clock)) = (&mut member.keeper, member.clock) else { return };
        if keeper.inc != inc || keeper.timer != Some(at) {
            return;
        }
        keeper.timer = None;
        if keeper.frozen {
            let later = now + 20 * MS;
            keeper.timer = Some(later);
            return self.at(later, Ev::KeeperTimer { m, inc, at: later });
        }
        let mut effects = Vec::new();
        if member.worker.as_ref().is_some_and(|worker| !worker.frozen) {
            effects.extend(keeper.core.handle(clock.read(now), Input::Turn));
        }
        effects.extend(keeper.core.handle_timeout(clock.read(now)));
        self.keeper_effects(m, effects);
        self.set_keeper_timer(m);
    }

    /// A stopped supervisor goes on.
    pub fn thaw_keeper(&mut self, m: usize) {
        let Some(keeper) = self.members[m].keeper.as_mut().filter(|keeper| keeper.frozen) else { return };
        keeper.frozen = false;
        let inc = keeper.inc;
        for input in std::mem::take(&mut keeper.backlog) {
            self.keeper_input(m, inc, input);
        }
        self.set_keeper_timer(m);
    }

    fn keeper_effects(&mut self, m: usize, effects: Vec<Effect>) {
        for effect in effects {
            self.keeper_effect(m, effect);
        }
    }

    fn keeper_effect(&mut self, m: usize, effect: Effect) {
        match effect {
            Effect::StartWorker => {
                self.keeper_closes(m);
                self.begin_worker(m);
                self.keeper_later(m, 0, Input::Started);
            }
            Effect::KillWorker(reason) => {
                self.trace.text(self.now, Some(m), format!("supervisor kills the worker: {reason}"));
                self.worker_ends(m, None, Death::Process);
            }
            Effect::TellStop => self.give(m, Inbound::Command(ringpair_core::Command::Stop)),
            Effect::Listen => {}
            Effect::SendDying(link, epoch, hold) => {
                let hold_ms = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX);
                self.send_words(m, link.0 as u32, Words::Control(Control::Dying { epoch, hold_ms }));
            }
            Effect::RunDiscontinue(epoch) => {
                let ok = !self.rng.per_mille(self.members[m].hook_failures);
                let wait = self.rng.within(self.speed.hook);
                let verdict = self.checks.hooks.runs(m, Hook::Discontinue, epoch);
                self.judge(verdict);
                if let Some(inc) = self.members[m].keeper.as_ref().map(|keeper| keeper.inc) {
                    self.at(self.now + wait, Ev::KeeperHook { m, inc, epoch, ok });
                }
            }
            Effect::PersistRelease(_) => {
                let wait = self.rng.within(self.speed.persist);
                if let Some(control) = &mut self.members[m].disk.control {
                    *control = supervisor::released(control);
                }
                self.keeper_later(m, wait, Input::Persisted(true));
            }
            Effect::SendReleased(epoch, end) => {
                self.released_at[m] = self.now;
                let verdict = self.checks.hooks.released(m, epoch, self.members[m].config.on_hook_failure);
                self.judge(verdict);
                if let Some(keeper) = &mut self.members[m].keeper {
                    keeper.released = Some((epoch, end));
                }
                self.say_released(m);
            }
            Effect::PersistGiveBack(grant) => {
                let wait = self.rng.within(self.speed.persist);
                if let Some(control) = &mut self.members[m].disk.control {
                    *control = supervisor::given_back(control, grant);
                }
                self.keeper_later(m, wait, Input::Persisted(true));
            }
            Effect::SendGivenBack(link, id) => {
                let message = Control::GiveBack { id, reason: GiveBackReason::WorkerDied };
                self.send_words(m, link.0 as u32, Words::Control(message));
            }
            Effect::Alarm(alarm) => self.trace.text(self.now, Some(m), format!("supervisor: {alarm}")),
            Effect::End(code) => {
                self.trace.text(self.now, Some(m), format!("supervisor ends with {code}"));
                self.keeper_closes(m);
                self.members[m].keeper = None;
            }
        }
    }

    /// A hook that the supervisor ran has ended.
    pub fn keeper_hook(&mut self, m: usize, inc: u64, epoch: Epoch, ok: bool) {
        if self.members[m].keeper.as_ref().is_some_and(|keeper| keeper.inc == inc) {
            self.checks.hooks.ended(m, Hook::Discontinue, epoch, ok);
            self.keeper_input(m, inc, Input::HookFinished(ok));
        }
    }

    fn say_released(&mut self, m: usize) {
        let Some(keeper) = &mut self.members[m].keeper else { return };
        let Some((epoch, end)) = keeper.released else { return };
        let untold: Vec<u32> = keeper.lanes.difference(&keeper.told).copied().collect();
        keeper.told.extend(&untold);
        let asked = keeper.asked.take();
        for lane in untold {
            if self.net.conns.get(&lane).is_some_and(|conn| conn.slot != Slot::Ds) {
                self.send_words(m, lane, Words::Control(Control::Released { epoch, end, controlled: false }));
            }
        }
        if let Some((lane, after)) = asked {
            self.keeper_tail(m, lane, after);
        }
    }

    fn keeper_tail(&mut self, m: usize, lane: u32, after: Position) {
        let end = self.members[m].disk.journal.end();
        if self.members[m].disk.journal.locate(after) == ringpair_core::input::Location::Match {
            self.serve_tail(m, Some(lane), after);
        } else {
            self.send_words(m, lane, Words::Control(Control::TailEnd { end, served: false }));
        }
        self.keeper_later(m, MS, Input::TailServed);
    }

    /// The peer says something to a supervisor: only the tail can be asked of it.
    pub fn words_for_keeper(&mut self, m: usize, lane: u32, words: Words) {
        let Words::Control(Control::FetchTail { after }) = words else { return };
        let Some(keeper) = &mut self.members[m].keeper else { return };
        if keeper.released.is_some() {
            self.keeper_tail(m, lane, after);
        } else {
            keeper.asked = Some((lane, after));
        }
    }

    /// A lane of the peer is up at the supervisor.
    pub fn keeper_met(&mut self, m: usize, lane: u32) {
        let Some(keeper) = &mut self.members[m].keeper else { return };
        keeper.lanes.insert(lane);
        if self.net.conns.get(&lane).is_some_and(|conn| conn.slot != Slot::Ds) {
            self.keeper_now(m, Input::PeerDialed(PeerLink(lane.into())));
        }
        self.say_released(m);
    }

    /// A lane of the peer is gone.
    pub fn keeper_lost(&mut self, m: usize, lane: u32) {
        let Some(keeper) = &mut self.members[m].keeper else { return };
        keeper.lanes.remove(&lane);
        self.keeper_now(m, Input::PeerLeft(PeerLink(lane.into())));
    }

    fn keeper_closes(&mut self, m: usize) {
        let Some(keeper) = &mut self.members[m].keeper else { return };
        keeper.lanes.clear();
        keeper.told.clear();
        keeper.released = None;
        keeper.asked = None;
        let inc = keeper.inc;
        self.drop_ends(m, End::Supervisor(inc), false);
    }

    /// The worker ended: what it left is read from its disk.
    pub fn keeper_loses_worker(&mut self, m: usize, code: Option<i32>) {
        let disk = &self.members[m].disk;
        let left = disk.control.as_ref().map(|control| Left::new(control, disk.journal.end()));
        let exit = code.map_or(WorkerExit::Signal(9), WorkerExit::Code);
        if let Some(keeper) = &mut self.members[m].keeper {
            keeper.status = WorkerStatus::default();
        }
        let wait = self.rng.within(self.speed.late);
        self.keeper_later(m, wait, Input::Exited(exit, left));
    }

    /// The supervisor's process dies: its worker, if any, is an orphan and stops.
    pub fn keeper_dies(&mut self, m: usize) {
        let Some(keeper) = self.members[m].keeper.take() else { return };
        self.drop_ends(m, End::Supervisor(keeper.inc), false);
        self.give(m, Inbound::Local(Local::Orphaned));
    }

    /// The worker's first word.
    pub fn keeper_hears_ready(&mut self, m: usize) {
        self.keeper_now(m, Input::Ready);
    }

    /// The worker announces a hook.
    pub fn keeper_hears_hook(&mut self, m: usize) {
        let limit = Duration::from_nanos(self.speed.hook.1 * 20);
        self.keeper_now(m, Input::HookRunning(limit));
    }

    /// The worker's word about itself, where it changed.
    pub fn keeper_hears_status(&mut self, m: usize, status: &Status) {
        let Some(keeper) = &mut self.members[m].keeper else { return };
        let said = WorkerStatus::of(status);
        if keeper.status != said {
            keeper.status = said;
            self.keeper_now(m, Input::Status(said));
        }
    }
}

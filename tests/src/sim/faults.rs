//! The faults of a seed, drawn beforehand: what breaks, when, and for how long.
//!
//! Always: every fault ends, and everything is whole again before the liveness phase. Never: an operator's word that is
//! not true (`--fenced` is said only of a host that is down).

use std::fmt;

use ringpair_core::{Command, config::OnPeerLoss};
use ringpair_wire::{control::SwitchMode, lane::PathKind};

use super::{
    disk::{Death, Disk},
    member::Inbound,
    network::Slot,
    rng::Rng,
    time::{MS, SEC},
    world::{Ev, World},
};

/// What may break. The member concerned comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Datagrams of both paths, or one, are lost, per mille.
    Loss(Option<PathKind>, u64),
    /// Everything takes longer, up to this.
    Delay(Option<PathKind>, u64),
    /// Datagrams arrive twice, per mille.
    Twice(u64),
    /// What this member sends is lost on one path, or both.
    CutFrom(usize, Option<PathKind>),
    /// Nothing passes on one path, or both.
    Cut(Option<PathKind>),
    /// The worker is stopped.
    PauseWorker(usize),
    /// Worker and supervisor are stopped.
    PauseBoth(usize),
    /// All processes of both members are stopped.
    PauseAll,
    /// The worker is killed.
    WorkerGone(usize),
    /// The supervisor is killed; it comes back at the end.
    SupervisorGone(usize),
    /// Both are killed at once.
    BothGone(usize),
    /// SIGTERM; started again at the end.
    Stop(usize),
    /// The host loses power; it boots at the end.
    HostGone(usize),
    /// Both do; the second boots this much later than the first.
    HostsGone(usize, u64),
    /// The host loses power and comes back with an older copy of its storage.
    RolledBack(usize),
    /// The host loses power and comes back with empty storage.
    Emptied(usize),
    /// No room.
    DiskFull(usize),
    /// The next fsync fails; the worker is killed at the end, its disk replaced by a good one.
    SyncFails(usize),
    /// A controlled switch, asked for here.
    Switch(usize, bool),
    /// A switch by force, asked for here; with the word that the peer is dead only if it is.
    Force(usize),
    /// The mode changes, and back at the end.
    Manual(usize),
    /// Hooks fail now and then.
    HookFails(usize),
    /// One lane's connection is reset between living processes; if so said, each that is made in its place, too.
    LaneLost(Slot, bool),
    /// The control file cannot be written; the worker is killed at the end.
    ControlFails(usize),
}

impl Fault {
    /// Whether it destroys a copy, or has an operator override the rules: then the loss it means is not the pair's.
    #[must_use]
    pub const fn destroys(&self) -> bool {
        matches!(self, Self::RolledBack(_) | Self::Emptied(_) | Self::Force(_))
    }
}

/// The schedule.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// When, what, for how long.
    pub faults: Vec<(u64, Fault, u64)>,
    /// Whether copies may be destroyed or rules overridden in this seed.
    pub destructive: bool,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault, lasts) in &self.faults {
            writeln!(f, "{:10} ms {fault:?} for {} ms", at / MS, lasts / MS)?;
        }
        Ok(())
    }
}

impl Plan {
    /// Draws a plan for this time, from and to, of at least 20 faults.
    #[must_use]
    pub fn draw(rng: &mut Rng, span: (u64, u64)) -> Self {
        let destructive = rng.per_mille(350);
        let count = rng.within((20, 34));
        let mut faults: Vec<_> = (0..count)
            .map(|_| {
                let fault = draw_fault(rng, destructive);
                (rng.within(span), fault, draw_length(rng, &fault))
            })
            .collect();
        faults.sort_by_key(|(at, ..)| *at);
        Self { faults, destructive }
    }

    /// Adds losses of single lanes, most of them where the pair is about to recover from something else, many late.
    pub fn lose_lanes(&mut self, rng: &mut Rng, span: (u64, u64)) {
        let count = rng.within((12, 24));
        let late = self.faults.len() * 3 / 4; // what nothing later repairs shows at the end
        let lost: Vec<_> = (0..count)
            .map(|_| {
                let among = if rng.coin() { late } else { 0 };
                let (at, _, lasts) = rng.pick(&self.faults[among..]);
                let recovers = (at + lasts + rng.within((0, 2 * SEC))).min(span.1);
                let at = if rng.per_mille(250) { rng.within(span) } else { recovers };
                let slot = rng.pick(&[Slot::Ds, Slot::Ds, Slot::PingMain, Slot::PingAux]);
                if rng.per_mille(80) {
                    return (at, Fault::ControlFails(rng.below(2) as usize), rng.within((200 * MS, 10 * SEC)));
                }
                let again = rng.coin();
                (at, Fault::LaneLost(slot, again), if again { rng.within((200 * MS, 10 * SEC)) } else { 0 })
            })
            .collect();
        self.faults.extend(lost);
        self.faults.sort_by_key(|(at, ..)| *at);
    }
}

fn draw_path(rng: &mut Rng) -> Option<PathKind> {
    [None, None, Some(PathKind::Main), Some(PathKind::Aux)][rng.below(4) as usize]
}

fn draw_fault(rng: &mut Rng, destructive: bool) -> Fault {
    let m = rng.below(2) as usize;
    match rng.below(if destructive { 27 } else { 24 }) {
        0 => Fault::Loss(draw_path(rng), rng.within((50, 700))),
        1 => Fault::Delay(draw_path(rng), rng.within((MS, 400 * MS))),
        2 => Fault::Twice(rng.within((50, 500))),
        3 | 4 => Fault::CutFrom(m, draw_path(rng)),
        5 | 6 => Fault::Cut(draw_path(rng)),
        7 => Fault::PauseWorker(m),
        8 | 9 => Fault::PauseBoth(m),
        10 => Fault::PauseAll,
        11..=13 => Fault::WorkerGone(m),
        14 => Fault::SupervisorGone(m),
        15 => Fault::BothGone(m),
        16 => Fault::Stop(m),
        17 | 18 => Fault::HostGone(m),
        19 => Fault::HostsGone(m, rng.below(20 * SEC)),
        20 => Fault::DiskFull(m),
        21 => Fault::SyncFails(m),
        22 => Fault::Switch(m, rng.coin()),
        23 => {
            if rng.coin() {
                Fault::Manual(m)
            } else {
                Fault::HookFails(m)
            }
        }
        24 => Fault::RolledBack(m),
        25 => Fault::Emptied(m),
        _ => Fault::Force(m),
    }
}

fn draw_length(rng: &mut Rng, fault: &Fault) -> u64 {
    match fault {
        Fault::PauseWorker(_) | Fault::PauseBoth(_) | Fault::PauseAll if rng.coin() => rng.within((20 * MS, 900 * MS)),
        Fault::PauseWorker(_) | Fault::PauseBoth(_) | Fault::PauseAll => rng.within((SEC, 30 * SEC)),
        Fault::Cut(_) | Fault::CutFrom(..) if rng.coin() => rng.within((50 * MS, 1500 * MS)),
        Fault::WorkerGone(_) | Fault::Switch(..) | Fault::Force(_) => 0,
        _ => rng.within((500 * MS, 25 * SEC)),
    }
}

fn lines(path: Option<PathKind>) -> impl Iterator<Item = PathKind> {
    PathKind::ALL.into_iter().filter(move |one| path.is_none_or(|path| path == *one))
}

impl World {
    /// Puts the plan's faults into the queue.
    pub fn schedule(&mut self, plan: Plan) {
        self.checks.tainted(plan.destructive);
        for (index, (at, ..)) in plan.faults.iter().enumerate() {
            self.at(*at, Ev::Fault(index));
        }
        self.plan = plan;
    }

    /// A fault of the plan begins.
    pub fn fault(&mut self, index: usize) {
        let (_, fault, lasts) = self.plan.faults[index];
        self.begin(fault);
        if lasts > 0 {
            self.at(self.now + lasts, Ev::Undo(fault));
        }
    }

    /// A fault begins.
    pub fn begin(&mut self, fault: Fault) {
        self.trace.text(self.now, None, format!("fault {fault:?}"));
        match fault {
            Fault::Loss(path, chance) => lines(path).for_each(|line| self.net.paths[line as usize].loss = chance),
            Fault::Delay(path, up_to) => {
                lines(path).for_each(|line| self.net.paths[line as usize].delay = (0, up_to));
            }
            Fault::Twice(chance) => self.net.paths.iter_mut().for_each(|line| line.twice = chance),
            Fault::CutFrom(m, path) => lines(path).for_each(|line| self.set_cut(line, m, true)),
            Fault::Cut(path) => lines(path).for_each(|line| {
                self.set_cut(line, 0, true);
                self.set_cut(line, 1, true);
            }),
            Fault::PauseWorker(m) => self.freeze(m, false),
            Fault::PauseBoth(m) => self.freeze(m, true),
            Fault::PauseAll => (0..2).for_each(|m| self.freeze(m, true)),
            Fault::WorkerGone(m) => self.worker_ends(m, None, Death::Process),
            Fault::SupervisorGone(m) => self.keeper_dies(m),
            Fault::BothGone(m) => {
                self.keeper_dies(m);
                self.worker_ends(m, None, Death::Process);
            }
            Fault::Stop(m) => {
                if let Some(inc) = self.members[m].keeper.as_ref().map(|keeper| keeper.inc) {
                    self.keeper_input(m, inc, ringpair_core::supervisor::Input::StopAsked);
                }
            }
            Fault::HostGone(m) => self.power_off(m),
            Fault::HostsGone(..) => (0..2).for_each(|m| self.power_off(m)),
            Fault::RolledBack(m) => self.replace_storage(m, true),
            Fault::Emptied(m) => self.replace_storage(m, false),
            Fault::DiskFull(m) => self.members[m].disk.full = true,
            Fault::SyncFails(m) => self.members[m].disk.sync_fails = true,
            Fault::Switch(m, immediate) => self.command(m, switch(immediate, false, false)),
            Fault::Force(m) => {
                let dead = self.members[1 - m].host_down();
                self.forced[m] = true;
                self.command(m, switch(true, true, dead));
            }
            Fault::Manual(m) => self.command(m, Command::SetMode(SwitchMode::Manual)),
            Fault::HookFails(m) => self.members[m].hook_failures = 300,
            Fault::ControlFails(m) => self.members[m].disk.control_fails = true,
            Fault::LaneLost(slot, again) => {
                self.net.resets[slot as usize] |= again;
                self.reset_lane(slot);
            }
        }
    }

    fn command(&mut self, m: usize, command: Command) {
        if self.members[m].worker.as_ref().is_some_and(|worker| worker.doors_open) {
            self.give(m, Inbound::Command(command));
        }
    }

    fn freeze(&mut self, m: usize, both: bool) {
        if let Some(worker) = &mut self.members[m].worker {
            worker.frozen = true;
        }
        if let Some(keeper) = self.members[m].keeper.as_mut().filter(|_| both) {
            keeper.frozen = true;
        }
    }

    fn thaw_all(&mut self, m: usize) {
        if self.rng.coin() {
            self.thaw_keeper(m);
            self.thaw(m);
        } else {
            self.thaw(m);
            self.thaw_keeper(m);
        }
    }

    fn replace_storage(&mut self, m: usize, by_copy: bool) {
        self.power_off(m);
        let index = self.rng.below(self.copies[m].len() as u64) as usize;
        let copy = if by_copy { self.copies[m].get(index).cloned() } else { None };
        let old = std::mem::replace(&mut self.members[m].disk, copy.unwrap_or_else(Disk::default));
        self.members[m].applied_once = ringpair_wire::id::Seq(0);
        self.checks.replaced(m, &old, &self.members[m].disk);
    }

    /// A fault ends.
    pub fn undo(&mut self, fault: Fault) {
        self.trace.text(self.now, None, format!("end of {fault:?}"));
        match fault {
            Fault::Loss(path, _) => lines(path).for_each(|line| self.net.paths[line as usize].loss = 0),
            Fault::Delay(path, _) => lines(path).for_each(|line| self.net.paths[line as usize].delay = (0, 0)),
            Fault::Twice(_) => self.net.paths.iter_mut().for_each(|line| line.twice = 0),
            Fault::CutFrom(m, path) => lines(path).for_each(|line| self.set_cut(line, m, false)),
            Fault::Cut(path) => lines(path).for_each(|line| {
                self.set_cut(line, 0, false);
                self.set_cut(line, 1, false);
            }),
            Fault::PauseWorker(m) => self.thaw(m),
            Fault::PauseBoth(m) => self.thaw_all(m),
            Fault::PauseAll => (0..2).for_each(|m| self.thaw_all(m)),
            Fault::SupervisorGone(m) | Fault::BothGone(m) | Fault::Stop(m) => self.ensure_keeper(m),
            Fault::HostGone(m) | Fault::RolledBack(m) | Fault::Emptied(m) => self.boot(m),
            Fault::HostsGone(m, later) => {
                self.boot(m);
                self.at(self.now + later, Ev::Undo(Fault::HostGone(1 - m)));
            }
            Fault::DiskFull(m) => self.members[m].disk.full = false,
            Fault::SyncFails(m) => {
                self.members[m].disk.sync_fails = false;
                self.worker_ends(m, None, Death::Process);
            }
            Fault::Manual(m) => self.command(m, Command::SetMode(SwitchMode::Auto)),
            Fault::HookFails(m) => self.members[m].hook_failures = 0,
            Fault::ControlFails(m) => {
                self.members[m].disk.control_fails = false;
                self.worker_ends(m, None, Death::Process);
            }
            Fault::LaneLost(slot, _) => self.net.resets[slot as usize] = false,
            Fault::WorkerGone(_) | Fault::Switch(..) | Fault::Force(_) => {}
        }
    }

    /// Everything is whole: the liveness phase begins.
    pub fn heal(&mut self) {
        self.trace.text(self.now, None, "all faults end".into());
        for line in &mut self.net.paths {
            (line.loss, line.twice, line.delay) = (0, 0, (0, 0));
        }
        self.net.resets = [false; 3];
        for path in PathKind::ALL {
            (0..2).for_each(|m| self.set_cut(path, m, false));
        }
        for m in 0..2 {
            let disk = &mut self.members[m].disk;
            (disk.full, disk.control_fails, disk.sync_fails) = (false, false, false);
            self.members[m].hook_failures = 0;
            self.members[m].config.on_peer_loss = OnPeerLoss::Continue;
            self.thaw_all(m);
            self.boot(m);
            self.ensure_keeper(m);
            // A stop that a sleeping process had not heard yet ends it now.
            (1..6).for_each(|n| self.at(self.now + n * 10 * SEC, Ev::EnsureKeeper(m)));
        }
    }
}

fn switch(immediate: bool, force: bool, fenced: bool) -> Command {
    Command::Switch { immediate, force, fenced, blockers: Vec::new(), user: "operator".into() }
}

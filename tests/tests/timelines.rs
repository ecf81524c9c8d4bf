//! The timelines of protocol §12, to the millisecond: half a millisecond one way, no jitter, a hook of two.
//!
//! Always measured from the moment 0 at which B has just heard a heartbeat of A (r0 = 0), as an outside client sees it.

use ringpair_core::{Config, status::Status};
use ringpair_tests::sim::{
    faults::Fault,
    network::Slot,
    time::{MS, SEC, Speed, US},
    world::{Ev, World},
};
use ringpair_wire::{
    control::{Role, State},
    id::MemberId,
    lane::PathKind,
};

const A: usize = 0;
const B: usize = 1;

/// A pair in sync, and the moment at which B has just heard A.
struct Timeline {
    world: World,
    zero: u64,
}

impl Timeline {
    fn new() -> Self {
        let mut world = World::new(1, Speed::FIXED, [Config::fast(MemberId::A), Config::fast(MemberId::B)]);
        world.look_every = 100 * US;
        world.boot(A);
        world.boot(B);
        world.at(0, Ev::Look);
        world.run_until(5 * SEC);
        let before = world.heard_at[B];
        assert!(world.run_while(6 * SEC, |world| world.heard_at[B] > before), "A's heartbeats come");
        let zero = world.now;
        // The answers are under way, and nothing else.
        world.run_until(zero + 1500 * US);
        let timeline = Self { world, zero };
        let (a, b) = (timeline.status(A), timeline.status(B));
        assert!(
            a.exclusive && !a.alone && a.right.is_some() && a.right == b.right,
            "in sync: {a:?} {b:?}\n{}",
            timeline.world.trace.print()
        );
        timeline
    }

    fn begin(fault: Fault) -> Self {
        let mut timeline = Self::new();
        timeline.world.begin(fault);
        timeline
    }

    fn status(&self, m: usize) -> Status {
        self.world.members[m].seen.clone().unwrap_or_else(|| panic!("member {m} answers nothing"))
    }

    fn ms(&self, at: u64) -> f64 {
        (at.saturating_sub(self.zero)) as f64 / MS as f64
    }

    fn run_to(&mut self, ms: u64) {
        self.world.run_until(self.zero + ms * MS);
        assert_eq!(self.world.violation, None);
    }

    /// The first moment at which this is seen, in milliseconds from zero.
    fn first(&mut self, what: &str, seen: impl Fn(&World) -> bool) -> f64 {
        let came = self.world.run_while(self.zero + 60 * SEC, seen);
        assert!(came, "{what} comes: {:?}\n{}", self.world.violation, self.world.trace.print());
        self.ms(self.world.now)
    }
}

fn active(m: usize) -> impl Fn(&World) -> bool {
    move |world| world.members[m].seen.as_ref().is_some_and(|status| status.role == Role::Active)
}

fn exclusive(m: usize) -> impl Fn(&World) -> bool {
    move |world| world.members[m].seen.as_ref().is_some_and(|status| status.exclusive)
}

fn within(what: &str, ms: f64, from: f64, to: f64) {
    assert!((from..=to).contains(&ms), "{what} at {ms} ms, expected from {from} to {to}");
}

#[test]
fn the_actives_worker_is_killed() {
    // REQ: protocol §12 row 1, protocol §7
    let mut line = Timeline::begin(Fault::WorkerGone(A));
    let mark = line.zero;
    let released = line.first("the release", move |world| world.released_at[A] > mark);
    within("released", released, 5.0, 10.0);
    let answers = line.first("200 on B", active(B));
    within("200", answers, released, 30.0);
    assert!(!line.status(B).exclusive, "a client of A may still hold a valid answer");
    within("exclusive", line.first("exclusive", exclusive(B)), 449.0, 451.0);
    line.run_to(10_000);
    assert_eq!((line.status(A).role, line.status(A).right), (Role::Backup, line.status(B).right));
}

#[test]
fn the_actives_host_loses_power() {
    // REQ: protocol §12 row 2, protocol §5
    let mut line = Timeline::begin(Fault::HostGone(A));
    let suspects = |world: &World| world.members[B].seen.as_ref().is_some_and(|s| s.state == State::Reconnecting);
    within("suspicion", line.first("suspicion", suspects), 400.0, 401.0);
    within("200", line.first("200", active(B)), 700.0, 720.0);
    assert!(line.status(B).exclusive, "with 200");
}

#[test]
fn both_directions_are_cut() {
    // REQ: protocol §12 row 3, protocol §5
    let mut line = Timeline::begin(Fault::Cut(None));
    within("lapse", line.first("lapse", |world| !exclusive(A)(world)), 398.0, 400.0);
    assert_eq!(line.status(A).role, Role::Active, "200 goes on");
    within("200 on B", line.first("200", active(B)), 700.0, 705.0);
    assert!(line.status(B).exclusive && !line.status(A).exclusive);
    let alone = line.first("alone", |world| world.members[A].seen.as_ref().is_some_and(|status| status.alone));
    within("alone", alone, 849.0, 851.0);
    assert!(line.status(A).may_be_split && !line.status(A).exclusive && line.status(B).alone);
    line.run_to(5_000);
    assert!(active(A)(&line.world) && active(B)(&line.world) && !line.status(A).exclusive);
    line.world.undo(Fault::Cut(None));
    let healed = line.ms(line.world.now);
    let gone = line.first("503 on A", |world| !active(A)(world)) - healed;
    assert!(gone <= 1000.0, "one active within a second: {gone} ms");
    line.run_to(15_000);
    assert_eq!(line.status(A).role, Role::Backup);
    assert!(line.status(B).exclusive && line.status(A).right == line.status(B).right);
}

#[test]
fn what_a_sends_is_cut() {
    // REQ: protocol §12 row 4, protocol §4
    let mut line = Timeline::begin(Fault::CutFrom(A, None));
    within("200 on B", line.first("200", active(B)), 700.0, 705.0);
    let gone = line.first("503 on A", |world| !active(A)(world));
    within("503 on A", gone, 700.0, 705.0);
    line.run_to(3_000);
    assert!(!active(A)(&line.world) && line.status(B).exclusive, "A does not go alone");
}

#[test]
fn what_b_sends_is_cut() {
    // REQ: protocol §12 row 5, protocol §5
    let mut line = Timeline::begin(Fault::CutFrom(B, None));
    within("lapse", line.first("lapse", |world| !exclusive(A)(world)), 398.0, 400.0);
    let alone = line.first("alone", |world| world.members[A].seen.as_ref().is_some_and(|status| status.alone));
    within("alone", alone, 849.0, 851.0);
    let stood = line.world.run_while(line.zero + 1900 * MS, |world| active(B)(world) || exclusive(A)(world));
    assert!(!stood, "B hears A and does not promote; A is not exclusive");
    assert_eq!(line.status(B).role, Role::Backup);
}

#[test]
fn both_processes_sleep_for_30_seconds() {
    // REQ: protocol §12 row 6, protocol §5
    let mut line = Timeline::begin(Fault::PauseBoth(A));
    within("200 on B", line.first("200", active(B)), 700.0, 705.0);
    line.run_to(30_000);
    line.world.undo(Fault::PauseBoth(A));
    assert!(!active(A)(&line.world) && !line.status(A).exclusive, "woken, it reads the announcement first");
    line.run_to(45_000);
    assert_eq!(line.status(A).role, Role::Backup);
}

#[test]
fn the_backups_worker_dies() {
    // REQ: protocol §12 row 7, protocol §3, §7
    let mut line = Timeline::begin(Fault::WorkerGone(B));
    let returned = line.first("the right's return", |world| {
        world.members[A].seen.as_ref().is_some_and(|status| status.right.is_none() && status.exclusive)
    });
    within("the right's return", returned, 1.0, 30.0);
    let paused = line.world.run_while(line.zero + 10 * SEC, |world| {
        !exclusive(A)(world) || world.members[A].seen.as_ref().is_some_and(|status| status.right.is_some())
    });
    assert!(paused && line.status(A).exclusive, "no pause until the right is granted again");
    line.run_to(12_000);
    assert!(line.status(A).right.is_some() && line.status(A).right == line.status(B).right);
}

#[test]
fn one_lane_is_reset() {
    // REQ: protocol §3, §5: one connection that ends is neither silence nor a return of the right
    for slot in Slot::ALL {
        let mut line = Timeline::new();
        let (epoch, right) = (line.status(A).epoch, line.status(A).right);
        line.world.begin(Fault::LaneLost(slot, false));
        line.world.run_until(line.zero + 2 * MS);
        assert!((0..2).any(|m| line.world.net.up[m][slot as usize].is_none()), "{slot:?} is down");
        for ms in 3..2_000 {
            line.run_to(ms);
            assert!(line.status(A).exclusive && !line.status(A).alone, "{slot:?} at {ms} ms");
        }
        assert!((0..2).all(|m| line.world.net.up[m][slot as usize].is_some()), "{slot:?} is up again");
        let (a, b) = (line.status(A), line.status(B));
        assert_eq!((a.epoch, a.right, b.right), (epoch, right, right), "{slot:?}: the same right");
    }
}

#[test]
fn one_path_is_enough() {
    // REQ: SM-229, protocol §5: no suspicion while either address is heard
    for path in PathKind::ALL {
        let mut line = Timeline::begin(Fault::Cut(Some(path)));
        let (epoch, right) = (line.status(A).epoch, line.status(A).right);
        for ms in 1..2_000 {
            line.run_to(ms);
            assert!(line.status(A).exclusive && !line.status(A).alone, "without {path:?} at {ms} ms");
            assert_eq!((line.status(B).state, line.status(B).right), (State::Backup, right), "at {ms} ms");
        }
        assert_eq!(line.status(B).epoch, epoch);
    }
}

//! The supervisor's decisions, to the millisecond. Times are ms of the `fast` profile: H 100, L 400, margin 50.

use ringpair_wire::{
    control::GrantId,
    id::{ChainHash, Epoch, Position, Seq},
};

use super::*;
use crate::persisted::{Persisted, Right};

const EPOCH: Epoch = Epoch(65_537);
const GRANT: GrantId = GrantId { epoch: EPOCH, number: 3 };
const END: Position = Position { epoch: EPOCH, seq: Seq(1042), chain: ChainHash(9) };
const LINK: PeerLink = PeerLink(1);
const OTHER: PeerLink = PeerLink(2);
const HOLD: Duration = Duration::from_millis(10_500);
const KILLED: WorkerExit = WorkerExit::Signal(9);

fn config() -> SupervisorConfig {
    SupervisorConfig {
        heartbeat: Duration::from_millis(100),
        lease: Duration::from_millis(400),
        start_limit: Duration::from_secs(60),
        stop_limit: Duration::from_secs(15),
        hook_limit: Duration::from_secs(10),
        tail_limit: Duration::from_secs(5),
        on_hook_failure: OnHookFailure::Hold,
    }
}

fn active(right: Option<GrantId>) -> Option<Left> {
    Some(Left { role: Role::Active, epoch: EPOCH, right, end: END })
}

fn backup(right: Option<GrantId>) -> Option<Left> {
    Some(Left { role: Role::Backup, epoch: EPOCH, right, end: END })
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

/// A supervisor whose worker runs and was last heard at 0.
fn running_with(config: SupervisorConfig) -> Supervisor {
    let mut s = Supervisor::new(config, at(0));
    assert_eq!(s.begin(at(0)), [Effect::StartWorker]);
    assert_eq!(s.handle(at(0), Input::Started), []);
    assert_eq!(s.handle(at(0), Input::Ready), []);
    s
}

fn running() -> Supervisor {
    running_with(config())
}

/// Sends inputs, each with its time and what must follow.
fn play(s: &mut Supervisor, steps: &[(u64, Input, &[Effect])]) {
    for (ms, input, effects) in steps {
        assert_eq!(s.handle(at(*ms), *input), *effects, "{input:?} at {ms}");
    }
}

/// Lets time pass as the shell does, waking at every time-out, and returns when the first effects came, with them.
fn pass(s: &mut Supervisor, from: u64, to: u64) -> Option<(u64, Vec<Effect>)> {
    let mut now = at(from);
    while let Some(due) = s.poll_timeout().filter(|&due| due <= at(to)) {
        now = now.max(due);
        let effects = s.handle_timeout(now);
        if !effects.is_empty() {
            return Some((now.millis(), effects));
        }
    }
    None
}

// REQ: OPS-211, OPS-212, SM-161
#[test]
fn the_release_comes_after_the_hook_and_is_said_after_it_is_persisted() {
    let mut s = running();
    play(
        &mut s,
        &[
            (50, Input::Exited(KILLED, active(Some(GRANT))), &[Effect::Listen]),
            (51, Input::PeerDialed(LINK), &[Effect::SendDying(LINK, EPOCH, HOLD), Effect::RunDiscontinue(EPOCH)]),
            (52, Input::PeerDialed(OTHER), &[Effect::SendDying(OTHER, EPOCH, HOLD)]),
            (60, Input::HookFinished(true), &[Effect::PersistRelease(EPOCH)]),
            (61, Input::Persisted(true), &[Effect::SendReleased(EPOCH, END)]),
            (70, Input::TailServed, &[Effect::StartWorker]),
        ],
    );
}

#[test]
fn a_lonely_member_releases_nothing() {
    let mut s = running();
    play(&mut s, &[(50, Input::Exited(KILLED, active(Some(GRANT))), &[Effect::Listen])]);
    assert!(s.listens());
    let nobody = vec![Effect::Alarm(Alarm::NobodyDialed), Effect::StartWorker];
    assert_eq!(pass(&mut s, 50, 10_000), Some((50 + 450, nobody)));
    assert_eq!(s.handle(at(501), Input::PeerDialed(LINK)), [], "too late: the worker is being started");
}

#[test]
fn the_wait_for_a_dial_uses_the_lease_that_the_worker_had_learned() {
    let mut s = running();
    let status =
        WorkerStatus { role: Role::Active, epoch: EPOCH, right: Some(GRANT), lease_ms: 600, ..Default::default() };
    play(
        &mut s,
        &[(10, Input::Status(status), &[]), (50, Input::Exited(KILLED, active(Some(GRANT))), &[Effect::Listen])],
    );
    assert_eq!(pass(&mut s, 50, 10_000).map(|(ms, _)| ms), Some(50 + 650));
}

#[test]
fn a_peer_that_left_during_the_hook_gets_nothing_until_it_dials_again() {
    let mut s = running();
    play(
        &mut s,
        &[
            (50, Input::Exited(KILLED, active(Some(GRANT))), &[Effect::Listen]),
            (51, Input::PeerDialed(LINK), &[Effect::SendDying(LINK, EPOCH, HOLD), Effect::RunDiscontinue(EPOCH)]),
            (55, Input::PeerLeft(LINK), &[]),
            (60, Input::HookFinished(true), &[]),
            (90, Input::PeerDialed(OTHER), &[Effect::SendDying(OTHER, EPOCH, HOLD), Effect::PersistRelease(EPOCH)]),
            (91, Input::Persisted(true), &[Effect::SendReleased(EPOCH, END)]),
        ],
    );
    assert_eq!(
        pass(&mut s, 91, 10_000),
        Some((5_091, vec![Effect::StartWorker])),
        "the tail is offered for a bounded time"
    );
}

#[test]
fn a_peer_that_wants_no_tail_holds_nobody_up() {
    let mut s = running();
    s.handle(at(50), Input::Exited(KILLED, active(Some(GRANT))));
    s.handle(at(51), Input::PeerDialed(LINK));
    s.handle(at(52), Input::PeerDialed(OTHER));
    s.handle(at(60), Input::HookFinished(true));
    s.handle(at(61), Input::Persisted(true));
    assert_eq!(s.handle(at(62), Input::PeerLeft(LINK)), []);
    assert_eq!(s.handle(at(63), Input::PeerLeft(OTHER)), [Effect::StartWorker]);
}

#[test]
fn a_failed_hook_holds_the_role_or_not_as_configured() {
    for (policy, effects) in [
        (OnHookFailure::Hold, vec![Effect::Alarm(Alarm::HookHeld), Effect::StartWorker]),
        (OnHookFailure::Promote, vec![Effect::PersistRelease(EPOCH)]),
    ] {
        let mut s = running_with(SupervisorConfig { on_hook_failure: policy, ..config() });
        s.handle(at(50), Input::Exited(KILLED, active(Some(GRANT))));
        s.handle(at(51), Input::PeerDialed(LINK));
        assert_eq!(s.handle(at(60), Input::HookFinished(false)), effects, "{policy:?}");
    }
}

#[test]
fn what_cannot_be_persisted_is_not_said() {
    let refused = [Effect::Alarm(Alarm::NotPersisted), Effect::StartWorker];
    let mut s = running();
    s.handle(at(50), Input::Exited(KILLED, active(Some(GRANT))));
    s.handle(at(51), Input::PeerDialed(LINK));
    s.handle(at(60), Input::HookFinished(true));
    assert_eq!(s.handle(at(61), Input::Persisted(false)), refused);
    let mut s = running();
    s.handle(at(50), Input::Exited(KILLED, backup(Some(GRANT))));
    assert_eq!(s.handle(at(51), Input::Persisted(false)), refused);
}

#[test]
fn the_backups_right_is_given_back_persisted_first() {
    let mut s = running();
    play(
        &mut s,
        &[
            (50, Input::Exited(KILLED, backup(Some(GRANT))), &[Effect::PersistGiveBack(GRANT)]),
            (51, Input::Persisted(true), &[Effect::Listen]),
            (53, Input::PeerDialed(LINK), &[Effect::SendGivenBack(LINK, GRANT), Effect::StartWorker]),
        ],
    );
    let mut s = running();
    s.handle(at(50), Input::Exited(KILLED, backup(Some(GRANT))));
    s.handle(at(51), Input::Persisted(true));
    assert_eq!(pass(&mut s, 51, 10_000), Some((51 + 450, vec![Effect::StartWorker])), "its worker says it then");
}

#[test]
fn a_worker_with_nothing_out_is_started_again_at_once() {
    for left in [active(None), backup(None), Some(Left::default()), None] {
        let mut s = running();
        assert_eq!(s.handle(at(50), Input::Exited(KILLED, left)), [Effect::StartWorker], "{left:?}");
    }
    let mut s = running();
    s.handle(at(10), Input::Status(WorkerStatus { role: Role::Active, ..WorkerStatus::default() }));
    let effects = [Effect::Alarm(Alarm::NothingLeft), Effect::StartWorker];
    assert_eq!(s.handle(at(50), Input::Exited(KILLED, None)), effects, "an unreadable control file is said");
}

#[test]
fn a_worker_silent_for_a_lease_is_killed_to_the_millisecond() {
    let mut s = running();
    s.handle(at(30), Input::Turn);
    let killed = vec![Effect::Alarm(Alarm::Killed(KillReason::Silent)), Effect::KillWorker(KillReason::Silent)];
    assert_eq!(pass(&mut s, 30, 10_000), Some((430, killed)));
    assert_eq!(s.poll_timeout(), None, "only its exit goes on");
    assert_eq!(s.handle(at(431), Input::Exited(KILLED, active(Some(GRANT)))), [Effect::Listen]);
}

// The supervisor itself did not run: silence counts anew (protocol §5).
#[test]
fn a_pause_of_its_own_kills_nobody() {
    let mut s = running();
    assert_eq!(s.handle_timeout(at(5_000)), []);
    assert_eq!(pass(&mut s, 5_000, 60_000).map(|(ms, _)| ms), Some(5_400));
    // A gap of exactly H is no pause.
    let mut s = running();
    for ms in [100, 200, 300, 399] {
        assert_eq!(s.handle_timeout(at(ms)), [], "{ms}");
    }
    assert_eq!(s.handle_timeout(at(400)).len(), 2);
}

#[test]
fn the_supervisor_rests_until_the_workers_word_and_no_pause_of_both_costs_the_worker_its_life() {
    let mut s = running();
    assert_eq!(s.poll_timeout(), Some(at(125)), "a word every 100 ms comes first");
    let mut now = 0;
    for pause in (0..2_000).step_by(7) {
        // Both slept for so long; the supervisor wakes first, late for its own turn, and the worker's word follows.
        now += pause.max(125);
        assert_eq!(s.handle_timeout(at(now)), [], "{pause}");
        assert_eq!(s.handle(at(now + 20), Input::Turn), []);
        now += 20;
    }
}

#[test]
fn a_worker_that_never_speaks_is_killed_at_the_start_limit() {
    let mut s = Supervisor::new(config(), at(0));
    s.begin(at(0));
    s.handle(at(5), Input::Started);
    let (ms, effects) = pass(&mut s, 5, 100_000).unwrap();
    assert_eq!((ms, effects[1]), (60_005, Effect::KillWorker(KillReason::NeverSpoke)));
}

#[test]
fn three_restarts_a_minute_then_a_pause_and_an_alarm() {
    let mut s = running();
    let die = |s: &mut Supervisor, ms| {
        let effects = s.handle(at(ms), Input::Exited(WorkerExit::Code(1), active(None)));
        if effects == [Effect::StartWorker] {
            s.handle(at(ms), Input::Started);
            s.handle(at(ms), Input::Turn);
        }
        effects
    };
    for ms in [1_000, 2_000, 3_000] {
        assert_eq!(die(&mut s, ms), [Effect::StartWorker], "{ms}");
    }
    let wait = Duration::from_millis(57_000);
    assert_eq!(die(&mut s, 4_000), [Effect::Alarm(Alarm::RestartsExhausted(wait))]);
    assert_eq!(pass(&mut s, 4_000, 100_000), Some((61_000, vec![Effect::StartWorker])));
    s.handle(at(61_000), Input::Started);
    assert_eq!(die(&mut s, 61_500), [Effect::Alarm(Alarm::RestartsExhausted(Duration::from_millis(500)))]);
    assert_eq!(pass(&mut s, 61_500, 100_000), Some((62_000, vec![Effect::StartWorker])));
}

#[test]
fn stopping_waits_for_the_worker_and_no_longer() {
    let mut s = running();
    play(
        &mut s,
        &[
            (10, Input::StopAsked, &[Effect::TellStop]),
            (11, Input::StopAsked, &[]),
            (500, Input::Exited(WorkerExit::Code(0), active(None)), &[Effect::End(0)]),
        ],
    );
    let mut s = running();
    s.handle(at(10), Input::StopAsked);
    for ms in (60..20_000).step_by(50) {
        s.handle(at(ms), Input::Turn);
        let effects = s.handle_timeout(at(ms));
        if !effects.is_empty() {
            assert_eq!((ms, effects[1]), (15_010, Effect::KillWorker(KillReason::StopTooSlow)));
            break;
        }
    }
    assert_eq!(s.handle(at(15_020), Input::Exited(KILLED, active(None))), [Effect::RunDiscontinue(EPOCH)]);
    assert_eq!(
        s.handle(at(15_030), Input::HookFinished(false)),
        [Effect::End(0)],
        "the service is stopped all the same"
    );
}

#[test]
fn a_hook_of_a_stopping_worker_is_waited_for() {
    let mut s = running();
    s.handle(at(10), Input::StopAsked);
    s.handle(at(20), Input::HookRunning(Duration::from_secs(30)));
    let mut ms = 20;
    loop {
        ms += 50;
        s.handle(at(ms), Input::Turn);
        if !s.handle_timeout(at(ms)).is_empty() {
            break;
        }
    }
    assert_eq!(ms, 30_520);
}

#[test]
fn a_worker_killed_while_stopping_still_releases_to_a_peer_that_dials() {
    let mut s = running();
    play(
        &mut s,
        &[
            (10, Input::StopAsked, &[Effect::TellStop]),
            (50, Input::Exited(KILLED, active(Some(GRANT))), &[Effect::Listen]),
            (51, Input::PeerDialed(LINK), &[Effect::SendDying(LINK, EPOCH, HOLD), Effect::RunDiscontinue(EPOCH)]),
            (60, Input::HookFinished(true), &[Effect::PersistRelease(EPOCH)]),
            (61, Input::Persisted(true), &[Effect::SendReleased(EPOCH, END)]),
            (70, Input::TailServed, &[Effect::End(0)]),
        ],
    );
    let mut s = running();
    s.handle(at(10), Input::StopAsked);
    s.handle(at(50), Input::Exited(KILLED, active(Some(GRANT))));
    let effects = vec![Effect::Alarm(Alarm::NobodyDialed), Effect::RunDiscontinue(EPOCH)];
    assert_eq!(pass(&mut s, 50, 10_000), Some((500, effects)), "nobody dials: the service ends, nothing is released");
}

#[test]
fn a_stop_during_the_pause_before_a_start_ends_at_once() {
    let mut s = running();
    for ms in [1, 2, 3] {
        s.handle(at(ms), Input::Exited(WorkerExit::Code(1), active(None)));
        s.handle(at(ms), Input::Started);
    }
    s.handle(at(4), Input::Exited(WorkerExit::Code(1), active(None)));
    assert_eq!(s.handle(at(5), Input::StopAsked), [Effect::RunDiscontinue(EPOCH)], "its service still runs");
    assert_eq!(s.handle(at(6), Input::HookFinished(true)), [Effect::End(0)]);
}

#[test]
fn a_configuration_error_is_final() {
    let mut s = Supervisor::new(config(), at(0));
    s.begin(at(0));
    s.handle(at(1), Input::Started);
    assert_eq!(s.handle(at(9), Input::Exited(WorkerExit::Code(2), active(None))), [Effect::End(2)]);
    let mut s = running();
    assert_eq!(s.handle(at(9), Input::Exited(WorkerExit::Code(2), active(None))), [Effect::RunDiscontinue(EPOCH)]);
    assert_eq!(s.handle(at(10), Input::HookFinished(true)), [Effect::End(2)]);
}

#[test]
fn a_first_worker_that_cannot_be_made_ends_the_supervisor_and_a_later_one_is_tried_again() {
    let mut s = Supervisor::new(config(), at(0));
    s.begin(at(0));
    assert_eq!(s.handle(at(1), Input::StartFailed), [Effect::End(1)]);
    let mut s = running();
    s.handle(at(9), Input::Exited(KILLED, active(None)));
    assert_eq!(s.handle(at(10), Input::StartFailed), [Effect::StartWorker]);
}

#[test]
fn completions_out_of_place_change_nothing() {
    for input in [
        Input::HookFinished(true),
        Input::Persisted(true),
        Input::Persisted(false),
        Input::TailServed,
        Input::PeerDialed(LINK),
        Input::PeerLeft(LINK),
    ] {
        let mut s = running();
        assert_eq!(s.handle(at(10), input), [], "{input:?}");
        assert_eq!(s.handle(at(50), Input::Exited(KILLED, active(Some(GRANT)))), [Effect::Listen], "{input:?}");
        assert_eq!(s.handle(at(51), Input::PeerDialed(OTHER))[1], Effect::RunDiscontinue(EPOCH), "{input:?}");
    }
}

fn persisted() -> Persisted {
    Persisted {
        highest_epoch: EPOCH,
        own_epoch: EPOCH,
        last_role: Role::Active,
        right: Right::Out(GRANT),
        alone: Some((EPOCH, Seq(1))),
        ..Persisted::default()
    }
}

#[test]
fn what_is_left_is_read_from_what_was_persisted() {
    assert_eq!(Left::new(&persisted(), END), active(Some(GRANT)).unwrap());
    assert_eq!(Left::new(&Persisted { right: Right::None, ..persisted() }, END), active(None).unwrap());
    let outdone = Persisted { highest_epoch: Epoch(131_072), ..persisted() };
    assert_eq!(Left::new(&outdone, END).right, None, "a higher epoch was seen: nothing of the old one is released");
    assert_eq!(Left::new(&outdone, END).role, Role::None);
    let held = Persisted { last_role: Role::Backup, own_epoch: Epoch(0), right: Right::Held(GRANT), ..persisted() };
    assert_eq!(Left::new(&held, END), backup(Some(GRANT)).unwrap());
    let back = given_back(&held, GRANT);
    assert_eq!((back.right, Left::new(&back, END).right), (Right::GivenBack(GRANT), None));
}

#[test]
fn a_release_ends_the_role_for_whoever_reads_the_file_next() {
    let after = released(&persisted());
    assert_eq!((after.released, after.right), (Some(EPOCH), Right::None));
    assert_eq!(Left::new(&after, END).role, Role::None);
    assert_eq!(after.last_role, Role::Active, "its records stay to be archived or followed");
}

#[test]
fn a_backups_worker_that_dies_over_and_over_is_started_once_a_second() {
    let mut s = running();
    let backup = Some(Left { role: Role::Backup, ..Left::default() });
    let die = |s: &mut Supervisor, ms| {
        let effects = s.handle(at(ms), Input::Exited(WorkerExit::Signal(9), backup));
        s.handle(at(ms), Input::Started);
        effects
    };
    for ms in [1_000, 1_100, 1_200] {
        assert_eq!(die(&mut s, ms), [Effect::StartWorker], "{ms}");
    }
    let wait = Duration::from_millis(900);
    let effects = s.handle(at(1_300), Input::Exited(WorkerExit::Signal(9), backup));
    assert_eq!(effects, [Effect::Alarm(Alarm::RestartsExhausted(wait))]);
    assert_eq!(pass(&mut s, 1_300, 10_000), Some((2_200, vec![Effect::StartWorker])));
}

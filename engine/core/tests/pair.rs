//! Two cores in one simulated time: the timelines of protocol §12 to the millisecond, and the ways back together.
//!
//! The harness is small on purpose: it carries messages, heartbeats and frames with a fixed delay, drops or holds them
//! while a direction is cut, keeps what was persisted across a kill, and answers every effect at once. After every step
//! it checks that the two members are not both exclusive.

#![expect(clippy::expect_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the other test of this package")]
mod harness;

use harness::{A, B, Pair};
use ringpair_core::{
    Evidence,
    effect::WriteOutcome,
    event::SwitchReason,
    input::{Command, RefusalKind},
    persisted::Right,
};
use ringpair_wire::{
    control::{Role, State, SwitchMode},
    id::{AckLevel, Epoch, Seq},
};

const DURABLE: WriteOutcome = WriteOutcome::Reached { level: AckLevel::Durable, alone: false };
const LOCAL_ALONE: WriteOutcome = WriteOutcome::Reached { level: AckLevel::Local, alone: true };

/// A pair in sync, A active, aligned so that A has just sent heartbeats, and B has answered: r0 = 0.
fn in_sync() -> Pair {
    let mut pair = Pair::new();
    pair.start(A);
    pair.start(B);
    pair.run_until_ms(5_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Active, Role::Backup), "{:#?}", pair.log);
    assert!(matches!(pair.persisted(B).right, Right::Held(_)), "{:#?}", pair.log);
    assert!(!pair.status(A).alone);
    pair.zero();
    pair
}

#[test]
fn two_empty_members_make_a_pair() {
    // REQ: protocol §2, §3, §8; SM-070, SM-071
    let mut pair = in_sync();
    assert_eq!(pair.status(A).epoch, Epoch(65_537));
    assert_eq!(pair.status(B).state, State::Backup);
    assert!(pair.status(A).exclusive && pair.status(A).ready);
    let write = pair.write(A, AckLevel::Durable);
    pair.run_ms(1);
    assert_eq!(pair.outcome(write), Some(DURABLE));
    let refused = pair.try_write(B, AckLevel::Local).expect_err("a backup refuses writes");
    assert_eq!(refused.kind, RefusalKind::NotActive);
    assert_eq!(refused.active.map(|(name, _)| name), Some("A".into()));
}

#[test]
fn the_host_loses_power() {
    // REQ: protocol §12 row 2, SM-021, SM-084, SM-087, SM-099
    let mut pair = in_sync();
    pair.power_off(A);
    pair.run_until_ms(399);
    assert_eq!(pair.status(B).state, State::Backup);
    pair.run_until_ms(400);
    assert_eq!(pair.status(B).state, State::Reconnecting, "suspicion at r0 + 400");
    assert_eq!(pair.role(B), Role::Backup, "a backup that reconnects, and says so");
    pair.run_until_ms(699);
    assert_ne!(pair.role(B), Role::Active);
    pair.run_until_ms(700);
    assert_eq!(pair.role(B), Role::Active, "promotes at r0 + 700: {:#?}", pair.log);
    assert!(pair.status(B).exclusive);
    assert_eq!(pair.status(B).epoch, Epoch(131_072), "B's epochs are even");
    let record = pair.node(B).last_switch().expect("a switch took place").clone();
    assert_eq!(record.reason, SwitchReason::ReconnectExpired);
    assert_eq!((record.detect_ms, record.promote_ms), (700, 0));
    assert!(record.evidence.iter().any(|(ms, line)| *ms == -300 && line.contains("suspicion")), "{record:?}");
}

#[test]
fn heartbeats_that_nobody_answers_in_time_are_counted() {
    let mut pair = in_sync();
    let counted = |pair: &Pair| pair.status(A).paths.map(|path| (path.answered, path.missed));
    let before = counted(&pair);
    assert!(before.iter().all(|(answered, missed)| *answered > 30 && *missed == 0), "{before:?}");
    assert_eq!(pair.status(B).paths.map(|path| path.answered + path.missed), [0; 2], "a backup is not answered");
    pair.run_until_ms(50);
    pair.freeze(B, true);
    // Those of 100 and 200 are answered late; that of 300 in time.
    pair.run_until_ms(310);
    pair.freeze(B, false);
    pair.run_until_ms(990);
    let during: Vec<_> =
        counted(&pair).iter().zip(before).map(|(after, before)| (after.0 - before.0, after.1)).collect();
    assert_eq!(during, [(7, 2); 2], "of those of 100 to 900: {:#?}", pair.log);
}

#[test]
fn the_worker_is_killed_and_the_supervisor_releases() {
    // REQ: protocol §7, §12 row 1, SM-037
    let mut pair = in_sync();
    let epoch = pair.status(A).epoch;
    let fetched = pair.write_unsent(A);
    pair.kill(A);
    pair.run_until_ms(1);
    assert_eq!(pair.status(B).state, State::Reconnecting, "EOF at 1");
    pair.supervisor_up(A);
    pair.supervisor_says_dying(A, epoch, 10_000);
    pair.run_until_ms(500);
    assert_ne!(pair.role(B), Role::Active, "waits for the release while it is promised");
    pair.supervisor_says_released(A, epoch);
    pair.run_until_ms(503);
    assert_eq!(pair.role(B), Role::Active, "{:#?}", pair.log);
    assert!(pair.has_record(B, fetched), "the tail was taken");
    assert_eq!(pair.node(B).last_switch().map(|record| record.reason), Some(SwitchReason::EpochReleased));
}

#[test]
fn a_release_at_once_is_exclusive_only_after_the_promise() {
    // REQ: protocol §6, §12 row 1: exclusive by 450
    let mut pair = in_sync();
    let epoch = pair.status(A).epoch;
    pair.kill(A);
    pair.run_until_ms(2);
    pair.supervisor_up(A);
    pair.supervisor_says_released(A, epoch);
    pair.run_until_ms(10);
    assert_eq!(pair.role(B), Role::Active);
    pair.run_until_ms(449);
    assert!(!pair.status(B).exclusive, "a client of A may still hold a valid answer");
    pair.run_until_ms(450);
    assert!(pair.status(B).exclusive);
}

#[test]
fn both_directions_are_cut() {
    // REQ: protocol §12 row 3, §5, SM-040, SM-162, SM-163, REP-230
    let mut pair = in_sync();
    pair.cut(A, B, true);
    pair.cut(B, A, true);
    pair.run_until_ms(399);
    assert!(pair.status(A).exclusive);
    pair.run_until_ms(400);
    assert!(!pair.status(A).exclusive, "the lease lapses by 400");
    let write = pair.write(A, AckLevel::Async);
    pair.run_until_ms(849);
    assert_eq!(pair.outcome(write), None, "nothing is acknowledged at any level");
    assert_eq!(pair.role(B), Role::Active, "B promoted at 700");
    assert!(pair.status(B).exclusive);
    pair.run_until_ms(850);
    assert!(matches!(pair.outcome(write), Some(WriteOutcome::Reached { alone: true, .. })));
    assert!(pair.status(A).may_be_split && !pair.status(A).exclusive);
    let lost = pair.write(A, AckLevel::Durable);
    pair.run_until_ms(2_000);
    assert_eq!(pair.outcome(lost), Some(LOCAL_ALONE));
    pair.cut(A, B, false);
    pair.cut(B, A, false);
    pair.run_until_ms(2_101);
    assert_ne!(pair.role(A), Role::Active, "at heal 503");
    let logged = |member: &str, what: &str| pair.log.iter().any(|line| line.starts_with(member) && line.contains(what));
    assert!(logged("A", "stepped-down: ceases to be active in epoch 65537: epoch 131072 exists"), "{:#?}", pair.log);
    assert!(logged("B", "promotion: Loss of Connection to Notifier: switch initiated"), "{:#?}", pair.log);
    pair.run_until_ms(6_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Backup, Role::Active), "{:#?}", pair.log);
    assert_eq!(pair.archived(A), vec![2, 3], "what A had alone is in its archive");
    assert_eq!(pair.status(A).position, pair.status(B).position);
    assert!(matches!(pair.persisted(A).right, Right::Held(_)), "granted again");
}

#[test]
fn only_a_to_b_is_cut() {
    // REQ: protocol §12 row 4, SM-040
    let mut pair = in_sync();
    pair.cut(A, B, true);
    pair.run_until_ms(699);
    assert_eq!(pair.role(A), Role::Active);
    pair.run_until_ms(701);
    assert_eq!(pair.role(B), Role::Active);
    assert_ne!(pair.role(A), Role::Active, "stops at the announcement");
    assert!(!pair.log.iter().any(|line| line.contains("alone from record")), "A is told that it is not heard");
}

#[test]
fn only_b_to_a_is_cut() {
    // REQ: protocol §12 row 5
    let mut pair = in_sync();
    pair.cut(B, A, true);
    pair.run_until_ms(400);
    assert!(!pair.status(A).exclusive);
    pair.run_until_ms(849);
    assert!(!pair.status(A).alone);
    pair.run_until_ms(850);
    assert!(pair.status(A).alone && !pair.status(A).exclusive);
    pair.run_until_ms(3_000);
    assert_eq!(pair.role(B), Role::Backup, "hears A and does not promote");
    pair.cut(B, A, false);
    pair.run_until_ms(4_000);
    assert!(!pair.status(A).alone && pair.status(A).exclusive && !pair.status(A).may_be_split, "{:#?}", pair.log);
}

#[test]
fn both_processes_are_frozen() {
    // REQ: protocol §12 row 6, §5 own pauses
    let mut pair = in_sync();
    let pending = pair.write(A, AckLevel::Durable);
    pair.freeze(A, true);
    pair.run_until_ms(700);
    assert_eq!(pair.role(B), Role::Active);
    pair.run_until_ms(30_000);
    pair.freeze(A, false);
    pair.run_until_ms(30_001);
    assert_ne!(pair.role(A), Role::Active, "reads the announcement before it answers");
    assert!(matches!(pair.outcome(pending), Some(WriteOutcome::Unknown | DURABLE)));
    pair.run_until_ms(40_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Backup, Role::Active), "{:#?}", pair.log);
}

#[test]
fn the_backup_worker_dies() {
    // REQ: protocol §12 row 7, §3
    let mut pair = in_sync();
    let Right::Held(id) = pair.persisted(B).right else { panic!("B holds the right") };
    pair.kill(B);
    pair.run_until_ms(1);
    pair.supervisor_up(B);
    pair.supervisor_gives_back(B, id);
    pair.run_until_ms(2);
    let status = pair.status(A);
    assert!(status.alone && status.exclusive, "no pause");
    let write = pair.write(A, AckLevel::Durable);
    pair.run_until_ms(4);
    assert_eq!(pair.outcome(write), Some(LOCAL_ALONE));
    pair.start(B);
    pair.run_until_ms(1_500);
    assert!(!pair.status(A).alone, "granted again: {:#?}", pair.log);
    assert!(matches!(pair.persisted(B).right, Right::Held(new) if new > id));
    let write = pair.write(A, AckLevel::Applied);
    pair.run_ms(1);
    assert_eq!(pair.outcome(write), Some(WriteOutcome::Reached { level: AckLevel::Applied, alone: false }));
}

#[test]
fn a_backup_that_pauses_does_not_promote() {
    // REQ: protocol §5: silence counts only while the listener ran
    let mut pair = in_sync();
    pair.freeze(B, true);
    pair.run_until_ms(5_000);
    pair.freeze(B, false);
    pair.run_until_ms(5_400);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Active, Role::Backup), "{:#?}", pair.log);
}

#[test]
fn a_controlled_switch() {
    // REQ: protocol §9, SM-085, SM-161
    let mut pair = in_sync();
    let before = pair.write(A, AckLevel::Durable);
    let switch = pair.command(A, switch(false));
    pair.run_ms(50);
    assert_eq!(pair.outcome(before), Some(DURABLE));
    assert_eq!(pair.done(switch), Some(Ok(())));
    assert_eq!(pair.role(B), Role::Active);
    pair.run_ms(3_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Backup, Role::Active), "{:#?}", pair.log);
    assert!(pair.archived(A).is_empty());
    let hooks = pair.hooks(A);
    let released = pair.log.iter().position(|line| line.starts_with("A") && line.contains("releases epoch"));
    let discontinued = pair.log.iter().position(|line| line.starts_with("A hook discontinue of 65537 ended"));
    assert!(discontinued.is_some() && discontinued < released, "{hooks:?} {:#?}", pair.log);
    assert_eq!(pair.node(B).last_switch().map(|record| record.reason), Some(SwitchReason::Operator));
}

#[test]
fn a_switch_asked_for_on_the_backup_is_forwarded() {
    // REQ: protocol §9, SM-097
    let mut pair = in_sync();
    let switch = pair.command(B, switch(false));
    pair.run_ms(50);
    assert_eq!(pair.done(switch), Some(Ok(())), "{:#?}", pair.log);
    assert_eq!(pair.role(B), Role::Active);
}

#[test]
fn a_failing_discontinue_keeps_the_role() {
    // REQ: protocol §9, §7
    let mut pair = in_sync();
    pair.fail_hooks(A, true);
    let switch = pair.command(A, switch(false));
    pair.run_ms(50);
    assert_eq!(pair.done(switch).map(|done| done.map_err(|refusal| refusal.kind)), Some(Err(RefusalKind::Failed)));
    assert_eq!((pair.role(A), pair.role(B)), (Role::Active, Role::Backup));
    let write = pair.write(A, AckLevel::Durable);
    pair.run_ms(5);
    assert_eq!(pair.outcome(write), Some(DURABLE), "commenced again");
}

#[test]
fn a_switch_is_refused_while_alone() {
    // REQ: interface §2 switch
    let mut pair = in_sync();
    pair.kill(B);
    pair.run_until_ms(1_000);
    let switch = pair.command(A, switch(false));
    pair.run_ms(1);
    let Some(Err(refusal)) = pair.done(switch) else { panic!("refused") };
    assert_eq!(refusal.kind, RefusalKind::State);
    assert!(!refusal.blockers.is_empty());
}

#[test]
fn every_switch_that_is_asked_for_is_answered_also_when_another_comes() {
    // REQ: protocol §9
    let mut pair = in_sync();
    pair.freeze(A, true);
    let first = pair.command(B, switch(false));
    let second = pair.command(B, switch(false));
    let kind = |pair: &Pair, command| pair.done(command).and_then(Result::err).map(|refusal| refusal.kind);
    assert_eq!((kind(&pair, first), kind(&pair, second)), (None, Some(RefusalKind::Busy)));
    let forced = pair.command(B, switch(true));
    assert_eq!(kind(&pair, first), Some(RefusalKind::Busy), "the forced one took its place");
    pair.run_until_ms(300);
    assert_eq!((pair.role(B), pair.done(forced)), (Role::Active, Some(Ok(()))));
}

#[test]
fn barriers_that_nobody_reaches_are_bounded() {
    let mut pair = in_sync();
    pair.cut(A, B, true);
    pair.cut(B, A, true);
    pair.write(A, AckLevel::Async);
    let barriers: Vec<u64> = (0..1025).map(|_| pair.command(A, Command::Sync)).collect();
    assert_eq!(pair.done(barriers[0]), None);
    let last = pair.done(barriers[1024]).and_then(Result::err).expect("refused");
    assert_eq!(last.kind, RefusalKind::Busy);
}

#[test]
fn force_on_the_backup_is_contested_until_fenced_or_met() {
    // REQ: protocol §9
    let mut pair = in_sync();
    pair.cut(A, B, true);
    pair.cut(B, A, true);
    pair.command(B, switch(true));
    pair.run_until_ms(300);
    assert_eq!(pair.role(B), Role::Active);
    pair.run_until_ms(1_500);
    assert!(!pair.status(B).exclusive && pair.status(B).may_be_split);
    pair.cut(A, B, false);
    pair.cut(B, A, false);
    pair.run_until_ms(2_600);
    assert!(pair.status(B).exclusive, "A knows the epoch and is not active: {:#?}", pair.log);
    let fenced = Command::Switch { immediate: true, force: true, fenced: true, blockers: vec![], user: "op".into() };
    let mut pair = in_sync();
    pair.power_off(A);
    pair.command(B, fenced);
    pair.run_until_ms(460);
    assert!(pair.status(B).exclusive);
}

#[test]
fn the_old_active_comes_back_and_is_granted_the_right() {
    // REQ: SM-053, SM-165, REP-008
    let mut pair = in_sync();
    let write = pair.write(A, AckLevel::Durable);
    pair.run_ms(1);
    assert_eq!(pair.outcome(write), Some(DURABLE));
    pair.power_off(A);
    pair.run_until_ms(2_000);
    pair.write(B, AckLevel::Durable);
    pair.start(A);
    pair.run_until_ms(6_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Backup, Role::Active), "{:#?}", pair.log);
    assert_eq!(pair.status(A).position, pair.status(B).position);
    assert!(!pair.status(B).alone);
    assert_eq!(pair.resyncs(A), 0, "its position was in the history");
}

#[test]
fn alone_restart_needs_the_newest_data() {
    // REQ: protocol §8 if-current
    let mut pair = in_sync();
    pair.power_off(A);
    pair.power_off(B);
    pair.run_ms(100);
    pair.start(B);
    pair.run_ms(30_000);
    assert_ne!(pair.role(B), Role::Active, "B was not active last");
    pair.start(A);
    pair.run_ms(5_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Active, Role::Backup), "{:#?}", pair.log);
    assert_eq!(pair.status(A).epoch, Epoch(65_539), "a restart adds 2");
}

#[test]
fn a_lonely_restart_waits_ten_seconds_with_the_right_out() {
    // REQ: protocol §8
    let mut pair = in_sync();
    pair.power_off(A);
    pair.power_off(B);
    pair.run_ms(100);
    pair.start(A);
    pair.run_ms(9_999);
    assert_ne!(pair.role(A), Role::Active);
    pair.run_ms(2);
    assert_eq!(pair.role(A), Role::Active);
    assert!(!pair.status(A).exclusive && pair.status(A).may_be_split && pair.status(A).alone);
    let fenced = pair.command(A, Command::Fenced);
    pair.run_ms(1);
    assert_eq!(pair.done(fenced), Some(Ok(())));
    assert!(pair.status(A).exclusive && !pair.status(A).may_be_split);
}

#[test]
fn an_emptied_storage_is_never_elected() {
    // REQ: protocol §8
    let mut pair = in_sync();
    pair.write(A, AckLevel::Durable);
    pair.run_ms(1);
    pair.power_off(A);
    pair.power_off(B);
    pair.empty_storage(A);
    pair.start(A);
    pair.run_ms(20_000);
    assert_ne!(pair.role(A), Role::Active);
    pair.start(B);
    pair.run_ms(5_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Backup, Role::Active), "{:#?}", pair.log);
    assert_eq!(pair.resyncs(A), 1);
    assert_eq!(pair.status(A).position, pair.status(B).position);
}

#[test]
fn a_comparison_outlives_the_ds_lane() {
    let mut pair = in_sync();
    pair.write(A, AckLevel::Durable);
    pair.power_off(B);
    pair.empty_storage(B);
    pair.compare_ms = 100;
    let before = pair.resyncs(B);
    pair.start(B);
    pair.run_ms(50);
    assert!(pair.log.iter().any(|line| line.contains("compares with the active")), "{:#?}", pair.log);
    pair.replace_ds_lane();
    pair.run_ms(1_000);
    assert_eq!(pair.resyncs(B), before + 1, "{:#?}", pair.log);
    assert!(matches!(pair.persisted(B).right, Right::Held(_)), "{:#?}", pair.log);
}

#[test]
fn a_rolled_back_storage_gives_way() {
    // REQ: protocol §2
    let mut pair = in_sync();
    let old = pair.snapshot(A);
    for _ in 0..5 {
        pair.write(A, AckLevel::Durable);
    }
    pair.run_ms(1);
    pair.power_off(A);
    pair.power_off(B);
    pair.restore(A, old);
    pair.start(A);
    pair.start(B);
    pair.run_ms(20_000);
    let (a, b) = (pair.status(A), pair.status(B));
    assert_eq!(a.position, b.position, "{:#?}", pair.log);
    assert!(a.position.seq >= Seq(6), "the newest data is in service");
}

/// A and B in epoch 65,539, B's journal beginning within it; A's storage is an older copy, which has started alone, taken
/// the number 65,539 again, and written `alone` records. Then B starts. With the number of B's last record.
fn an_epoch_used_again(alone: usize) -> (Pair, Seq) {
    let mut pair = in_sync();
    let old = pair.snapshot(A);
    pair.power_off(A);
    pair.power_off(B);
    pair.empty_storage(B);
    [A, B].into_iter().for_each(|member| pair.start(member));
    pair.run_ms(15_000);
    for _ in 0..5 {
        pair.write(A, AckLevel::Durable);
    }
    pair.run_ms(1);
    let first = pair.status(B).position;
    assert_eq!(first.epoch, Epoch(65_539), "{:#?}", pair.log);
    pair.power_off(A);
    pair.power_off(B);
    pair.restore(A, old);
    pair.start(A);
    pair.run_ms(10_100);
    assert_eq!((pair.role(A), pair.status(A).epoch), (Role::Active, Epoch(65_539)), "{:#?}", pair.log);
    for _ in 0..alone {
        pair.write(A, AckLevel::Local);
    }
    pair.run_ms(1);
    pair.start(B);
    pair.run_ms(10_000);
    let (a, b) = (pair.status(A), pair.status(B));
    assert_eq!(a.position, b.position, "{:#?}", pair.log);
    (pair, first.seq)
}

#[test]
fn an_active_whose_backup_is_ahead_of_it_gives_way() {
    // REQ: protocol §2, §11
    let (pair, newest) = an_epoch_used_again(1);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Backup, Role::Active), "{:#?}", pair.log);
    assert!(pair.status(B).position.seq > newest, "what both had is in service");
    assert_eq!(pair.archived(A), vec![2, 3], "what the older copy wrote is in its archive");
}

#[test]
fn records_of_an_epoch_used_again_are_archived() {
    // REQ: protocol §11
    let (pair, newest) = an_epoch_used_again(20);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Active, Role::Backup), "nobody can know: {:#?}", pair.log);
    assert_eq!(pair.archived(B).last(), Some(&newest.0), "{:#?}", pair.log);
    assert!(pair.archived(B).len() >= 5, "what was written before, too: {:?}", pair.archived(B));
}

#[test]
fn manual_mode_never_promotes_by_itself() {
    // REQ: SM-087, SM-129, SM-141
    let mut pair = in_sync();
    pair.command(A, Command::SetMode(SwitchMode::Manual));
    pair.run_ms(10);
    assert_eq!(pair.persisted(B).mode.mode, SwitchMode::Manual);
    pair.power_off(A);
    pair.run_ms(10_000);
    assert_eq!(pair.status(B).state, State::Reconnecting);
    assert_ne!(pair.role(B), Role::Active);
    assert!(pair.node(B).why_not(pair.now(B)).iter().any(|line| line.contains("manual")));
    pair.command(B, switch(true));
    pair.run_ms(10);
    assert_eq!(pair.role(B), Role::Active, "SM-130");
}

#[test]
fn an_isolated_backup_does_not_promote_and_an_isolated_active_demotes_itself() {
    // REQ: SM-087, SM-128, REP-209, protocol §5
    let mut pair = in_sync();
    pair.cut(A, B, true);
    pair.cut(B, A, true);
    pair.evidence(B, Evidence::Isolated(Some(true)));
    pair.evidence(A, Evidence::Isolated(Some(true)));
    pair.run_until_ms(3_000);
    assert_ne!(pair.role(B), Role::Active);
    assert_ne!(pair.role(A), Role::Active);
    pair.cut(A, B, false);
    pair.cut(B, A, false);
    pair.run_until_ms(8_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Active, Role::Backup), "{:#?}", pair.log);
}

#[test]
fn a_stop_of_the_active_releases_and_of_the_backup_gives_back() {
    // REQ: protocol §7, §3, SM-041
    let mut pair = in_sync();
    pair.command(A, Command::Stop);
    pair.run_until_ms(60);
    assert!(pair.exited(A));
    assert_eq!(pair.role(B), Role::Active, "{:#?}", pair.log);
    let mut pair = in_sync();
    pair.command(B, Command::Stop);
    pair.run_until_ms(5);
    assert!(pair.exited(B));
    assert!(pair.status(A).alone && pair.status(A).exclusive, "{:#?}", pair.log);
}

#[test]
fn a_failed_archive_keeps_the_member_inactive_until_there_is_room() {
    // REQ: protocol §11
    let mut pair = in_sync();
    pair.cut(A, B, true);
    pair.cut(B, A, true);
    pair.run_until_ms(900);
    pair.write(A, AckLevel::Local);
    pair.run_until_ms(1_000);
    pair.fail_archive(A, true);
    pair.cut(A, B, false);
    pair.cut(B, A, false);
    pair.run_until_ms(5_000);
    assert_eq!(pair.status(A).state, State::Inactive);
    assert_eq!(pair.resyncs(A), 0, "nothing is touched");
    pair.fail_archive(A, false);
    pair.run_until_ms(20_000);
    assert_eq!(pair.role(A), Role::Backup, "{:#?}", pair.log);
    assert_eq!(pair.archived(A), vec![2]);
}

#[test]
fn a_backup_whose_fsync_fails_gives_the_right_back() {
    // REQ: protocol §10, §3
    let mut pair = in_sync();
    pair.fail_sync(B);
    pair.run_ms(5);
    assert!(pair.log.iter().any(|line| line.contains("back: StorageFailed")), "{:#?}", pair.log);
    pair.run_ms(3_000);
    assert_eq!(pair.resyncs(B), 2, "the first was its joining");
    assert!(matches!(pair.persisted(B).right, Right::Held(_)), "recovered from its peer: {:#?}", pair.log);
}

#[test]
fn an_active_whose_fsync_fails_hands_over() {
    // REQ: protocol §10
    let mut pair = in_sync();
    pair.fail_sync(A);
    pair.run_until_ms(3_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Backup, Role::Active), "{:#?}", pair.log);
    assert!(!pair.status(B).alone);
    let mut pair = in_sync();
    pair.kill(B);
    pair.run_until_ms(2_000);
    pair.fail_sync(A);
    pair.run_until_ms(2_100);
    assert_eq!(pair.role(A), Role::Active, "without a peer it stays");
    assert_eq!(pair.try_write(A, AckLevel::Async).expect_err("refuses writes").kind, RefusalKind::State);
}

fn switch(force: bool) -> Command {
    Command::Switch { immediate: false, force, fenced: false, blockers: Vec::new(), user: "operator".into() }
}

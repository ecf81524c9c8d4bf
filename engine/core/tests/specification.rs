//! What the specification says of states, modes, releases and times, with two cores in one simulated time.
//!
//! As `pair.rs`, whose harness it shares; there stand the timelines and the ways back together.

#![expect(clippy::expect_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the other tests of this package")]
mod harness;

use std::time::Duration;

use harness::{A, B, Pair};
use ringpair_core::{
    event::SwitchReason,
    input::{Command, FrameVerdict, RefusalKind},
    persisted::Right,
    status::PairMode,
};
use ringpair_wire::{
    control::{Role, State, SwitchMode},
    id::AckLevel,
};

/// A pair in sync, A active: r0 = 0.
fn in_sync(configure: [fn(&mut ringpair_core::Config); 2]) -> Pair {
    let mut pair = Pair::new();
    pair.configure = configure;
    pair.start(A);
    pair.start(B);
    pair.run_until_ms(60_000);
    assert_eq!((pair.role(A), pair.role(B)), (Role::Active, Role::Backup), "{:#?}", pair.log);
    assert!(matches!(pair.persisted(B).right, Right::Held(_)), "{:#?}", pair.log);
    pair.zero();
    pair
}

fn switch(force: bool) -> Command {
    Command::Switch { immediate: false, force, fenced: false, blockers: Vec::new(), user: "operator".into() }
}

fn modes(pair: &Pair) -> (PairMode, PairMode) {
    (pair.status(A).pair_mode, pair.status(B).pair_mode)
}

fn states(pair: &Pair) -> (State, State) {
    (pair.status(A).state, pair.status(B).state)
}

#[test]
fn a_start_goes_from_init_to_its_role() {
    // REQ: SM-010, SM-011, SM-038, REP-140
    let mut pair = Pair::new();
    pair.start(A);
    pair.run_ms(100);
    assert_eq!((pair.status(A).state, pair.status(A).pair_mode), (State::Init, PairMode::None));
    pair.start(B);
    assert_eq!(pair.status(B).state, State::Init);
    pair.run_ms(2_000);
    assert_eq!(states(&pair), (State::Primary, State::Backup), "{:#?}", pair.log);
    assert_eq!(pair.role(A), Role::Active, "runs as the active host");
    assert_eq!(modes(&pair), (PairMode::Auto, PairMode::Auto));
    assert_eq!(pair.status(A).position, pair.status(B).position);
}

#[test]
fn changes_go_from_the_active_to_the_backup_only() {
    // REQ: REP-002
    let mut pair = in_sync([|_| {}; 2]);
    let refused = pair.try_write(B, AckLevel::Async).expect_err("a backup refuses writes");
    assert_eq!(refused.kind, RefusalKind::NotActive);
    assert!(matches!(pair.offer_frame(A, true), FrameVerdict::Refuse(_)), "an active takes no frames");
    let end = pair.status(B).position;
    assert_eq!(pair.offer_frame(B, false), FrameVerdict::Await, "not before its contents");
    assert_eq!(pair.status(B).position, end);
    assert_eq!(pair.offer_frame(B, true), FrameVerdict::Accept, "a backup does");
}

#[test]
fn the_mode_is_switched_while_running() {
    // REQ: REP-215, SM-020
    let mut pair = in_sync([|_| {}; 2]);
    pair.command(A, Command::SetMode(SwitchMode::Manual));
    pair.run_ms(10);
    assert_eq!(modes(&pair), (PairMode::Manual, PairMode::Manual));
    pair.command(B, Command::SetMode(SwitchMode::Auto));
    pair.run_ms(10);
    assert_eq!(modes(&pair), (PairMode::Auto, PairMode::Auto));
    pair.power_off(A);
    pair.run_ms(1_000);
    assert_eq!(pair.role(B), Role::Active, "automatic again: {:#?}", pair.log);
}

#[test]
fn an_older_backup_never_takes_over_by_itself() {
    // REQ: SM-020, SM-054, SM-073, SM-091, SM-092, SM-129
    let mut pair = in_sync([|config| config.release = "2".into(), |_| {}]);
    assert_eq!(states(&pair), (State::Primary, State::UpgradeLower));
    assert_eq!(modes(&pair), (PairMode::UpgradeLower, PairMode::UpgradeLower));
    pair.power_off(A);
    pair.run_ms(20_000);
    assert_eq!(pair.status(B).state, State::UpgradeLower, "{:#?}", pair.log);
    assert!(pair.node(B).why_not(pair.now(B)).iter().any(|line| line.contains("only an operator switches")));
    pair.command(B, switch(true));
    pair.run_ms(10);
    assert_eq!(pair.status(B).state, State::Primary, "{:#?}", pair.log);
}

#[test]
fn a_release_is_brought_to_one_member_after_the_other() {
    // REQ: SM-020, SM-054, SM-072, SM-073, SM-092, OPS-174, OPS-177, OPS-179, REP-147, REP-151
    let newer: fn(&mut ringpair_core::Config) = |config| config.release = "2".into();
    let mut pair = in_sync([|_| {}; 2]);
    let restart = |pair: &mut Pair, member| {
        pair.command(member, Command::Stop);
        pair.run_ms(200);
        pair.start(member);
        pair.run_ms(5_000);
    };
    let switched = |pair: &mut Pair, member| {
        let asked = pair.command(member, switch(false));
        pair.run_ms(100);
        assert_eq!(pair.done(asked), Some(Ok(())), "{:#?}", pair.log);
        pair.run_ms(5_000);
    };
    pair.configure[B] = newer;
    restart(&mut pair, B);
    assert_eq!(states(&pair), (State::Primary, State::UpgradeHigher), "{:#?}", pair.log);
    assert_eq!(modes(&pair), (PairMode::UpgradeHigher, PairMode::UpgradeHigher));
    switched(&mut pair, A);
    restart(&mut pair, A);
    assert_eq!(states(&pair), (State::UpgradeLower, State::Primary), "the new one serves: {:#?}", pair.log);
    assert_eq!(modes(&pair), (PairMode::UpgradeLower, PairMode::UpgradeLower));
    switched(&mut pair, B);
    restart(&mut pair, B);
    assert_eq!(states(&pair), (State::Primary, State::UpgradeHigher), "and back: {:#?}", pair.log);
    switched(&mut pair, A);
    pair.configure[A] = newer;
    restart(&mut pair, A);
    assert_eq!(states(&pair), (State::Backup, State::Primary), "{:#?}", pair.log);
    assert_eq!(modes(&pair), (PairMode::Auto, PairMode::Auto), "both on the same release");
}

#[test]
fn a_backup_that_starts_or_is_unwell_does_not_take_over() {
    // REQ: SM-151
    let mut pair = in_sync([|_| {}; 2]);
    pair.kill(B);
    pair.run_ms(1_000);
    pair.delay = (20_000_000, 20_000_000);
    pair.start(B);
    pair.run_ms(60);
    assert!(!matches!(pair.persisted(B).right, Right::Held(_)), "not granted yet: {:#?}", pair.log);
    pair.power_off(A);
    pair.run_ms(30_000);
    assert_ne!(pair.role(B), Role::Active, "it was starting: {:#?}", pair.log);
    let mut pair = in_sync([|_| {}; 2]);
    pair.delay = (20_000_000, 20_000_000);
    pair.fail_sync(B);
    pair.run_ms(50);
    pair.power_off(A);
    pair.run_ms(30_000);
    assert_ne!(pair.role(B), Role::Active, "its storage had failed: {:#?}", pair.log);
}

#[test]
fn a_control_file_that_cannot_be_written_ends_an_office() {
    // REQ: SM-018, SM-096, protocol §1, §7: the service is discontinued at every change of role
    let mut pair = in_sync([|_| {}; 2]);
    pair.fail_control_file(A);
    pair.command(A, Command::SetMode(SwitchMode::Manual));
    pair.run_ms(10);
    let failed = pair.log.iter().position(|line| line.starts_with("A") && line.contains("to error: the control file"));
    let discontinued = pair.log.iter().position(|line| line.starts_with("A hook discontinue of 65537 ended"));
    assert!(failed.is_some() && discontinued.is_some(), "{:#?}", pair.log);
    assert!(pair.role(A) != Role::Active && !pair.status(A).exclusive);
    assert!(pair.try_write(A, AckLevel::Async).is_err());
    pair.run_ms(5_000);
    assert_eq!(pair.role(B), Role::Active, "{:#?}", pair.log);
}

#[test]
fn a_flapping_link_keeps_the_first_deadline() {
    // REQ: SM-127
    let slow: fn(&mut ringpair_core::Config) = |config| config.reconnect = Duration::from_secs(2);
    let mut pair = in_sync([slow; 2]);
    pair.pings(B, false);
    pair.run_until_ms(1);
    assert_eq!(pair.status(B).state, State::Reconnecting, "deadline at 2,000: {:#?}", pair.log);
    pair.run_until_ms(150);
    pair.pings(B, true);
    pair.run_until_ms(210);
    assert_eq!(pair.status(B).state, State::Backup, "heard at 200: {:#?}", pair.log);
    pair.power_off(A);
    pair.pings(B, false);
    pair.run_until_ms(211);
    assert_eq!(pair.status(B).state, State::Reconnecting);
    pair.run_until_ms(1_999);
    assert_ne!(pair.role(B), Role::Active);
    pair.run_until_ms(2_001);
    assert_eq!(pair.role(B), Role::Active, "the first deadline, not 2,210: {:#?}", pair.log);
}

#[test]
fn a_deadline_ends_with_its_outage() {
    // REQ: SM-086, SM-127
    let mut pair = in_sync([|_| {}; 2]);
    let cut = |pair: &mut Pair, cut| {
        pair.cut(A, B, cut);
        pair.cut(B, A, cut);
    };
    cut(&mut pair, true);
    pair.run_until_ms(450);
    assert_eq!(pair.status(B).state, State::Reconnecting);
    let write = pair.write(A, AckLevel::Durable);
    pair.run_until_ms(550);
    cut(&mut pair, false);
    pair.run_until_ms(5_000);
    assert_eq!(states(&pair), (State::Primary, State::Backup), "{:#?}", pair.log);
    assert!(pair.outcome(write).is_some() && pair.status(A).position == pair.status(B).position);
}

#[test]
fn the_times_of_the_original() {
    // REQ: SM-084, SM-276, SM-277
    let original: fn(&mut ringpair_core::Config) = |config| {
        (config.heartbeat, config.misses) = (Duration::from_secs(5), 3);
        config.reconnect = Duration::from_secs(30);
    };
    for (sockets_fail, suspects, promotes) in [(true, 1, 30_001), (false, 15_000, 45_000)] {
        let mut pair = in_sync([original; 2]);
        if sockets_fail {
            pair.kill(A)
        } else {
            pair.power_off(A)
        }
        pair.run_until_ms(suspects - 1);
        assert_eq!(pair.status(B).state, State::Backup);
        pair.run_until_ms(suspects);
        assert_eq!(pair.status(B).state, State::Reconnecting, "{:#?}", pair.log);
        pair.run_until_ms(promotes - 1);
        assert_ne!(pair.role(B), Role::Active);
        pair.run_until_ms(promotes);
        assert_eq!(pair.role(B), Role::Active, "{:#?}", pair.log);
        assert_eq!(pair.node(B).last_switch().map(|record| record.reason), Some(SwitchReason::ReconnectExpired));
    }
}

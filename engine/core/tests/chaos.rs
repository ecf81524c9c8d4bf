//! Two cores under cuts, kills, pauses, switches and writes drawn from a seed: never both exclusive, every durable
//! acknowledgement in service at the end, and one active with one backup once the faults end. The simulator proper
//! lives in `tests/`; this is its smallest ancestor, for this package alone.
#![expect(clippy::expect_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "shared with the other test of this package")]
mod harness;

use harness::{A, B, Pair};
use ringpair_core::{effect::WriteOutcome, input::Command};
use ringpair_wire::{control::Role, id::AckLevel};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

fn play(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut pair = Pair::new();
    pair.delay = (dice.roll(4) * 500_000, dice.roll(4) * 500_000);
    pair.start(A);
    pair.start(B);
    pair.run_ms(3_000);
    for _ in 0..60 {
        let member = usize::from(dice.roll(2) == 1);
        act(&mut pair, &mut dice, member);
        pair.run_ms([1, 20, 150, 450, 1_200][dice.roll(5) as usize]);
    }
    for member in [A, B] {
        if pair.is_frozen(member) {
            pair.freeze(member, false);
        }
        pair.cut(member, 1 - member, false);
        if !pair.runs(member) {
            pair.start(member);
        }
    }
    pair.run_ms(40_000);
    let roles = [pair.role(A), pair.role(B)];
    let context = || format!("seed {seed}: {roles:?} {:#?}", pair.log.iter().rev().take(60).rev().collect::<Vec<_>>());
    assert!(roles.contains(&Role::Active) && roles.contains(&Role::Backup), "{}", context());
    let active = if roles[A] == Role::Active { A } else { B };
    let status = pair.status(active);
    assert_eq!(pair.status(A).position, pair.status(B).position, "{}", context());
    assert!(!status.alone && status.exclusive && !status.may_be_split, "{status:?} {}", context());
    for (write, outcome) in &pair.outcomes {
        if matches!(outcome, WriteOutcome::Reached { level: AckLevel::Durable | AckLevel::Applied, .. }) {
            assert!(
                pair.stands_on(active, pair.written[write]),
                "write {write} {:?} {}",
                pair.written[write],
                context()
            );
        }
    }
}

fn act(pair: &mut Pair, dice: &mut Dice, member: usize) {
    let runs = pair.runs(member);
    match dice.roll(12) {
        0 if runs => pair.power_off(member),
        1 if runs => pair.kill(member),
        0..=2 if !runs => pair.start(member),
        3 => pair.cut(member, 1 - member, true),
        4 | 5 => pair.cut(member, 1 - member, false),
        6 if runs => {
            let frozen = pair.is_frozen(member);
            pair.freeze(member, !frozen);
        }
        7 if runs && !pair.is_frozen(member) => {
            let force = dice.roll(3) == 0;
            let user = "operator".to_owned();
            pair.command(member, Command::Switch { immediate: false, force, fenced: false, blockers: vec![], user });
        }
        _ if runs && !pair.is_frozen(member) => {
            for _ in 0..dice.roll(4) {
                let level = [AckLevel::Local, AckLevel::Durable, AckLevel::Applied][dice.roll(3) as usize];
                let _ = pair.try_write(member, level);
            }
        }
        _ => {}
    }
}

#[test]
fn a_thousand_seeds() {
    // REQ: protocol §2 to §11, design §11
    for seed in 1..=1_000 {
        play(seed);
    }
}

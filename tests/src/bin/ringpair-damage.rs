//! Cuts and flips a real member's journal: `ringpair-damage [CUT_EVERY] [FLIPS] [SEED]` (1, 300, 1). Takes the executable
//! from `$RINGPAIR_BIN`.

use ringpair_tests::pair::{Damage, damage};

fn main() {
    let arguments: Result<Vec<u64>, _> = std::env::args().skip(1).map(|argument| argument.parse()).collect();
    let Ok(arguments) = arguments else {
        eprintln!("usage: ringpair-damage [CUT_EVERY] [FLIPS] [SEED]");
        std::process::exit(2);
    };
    let argument = |index: usize, default: u64| arguments.get(index).copied().unwrap_or(default);
    let count = |index, default| usize::try_from(argument(index, default)).unwrap_or(usize::MAX);
    damage(Damage { cut_every: count(0, 1).max(1), flips: count(1, 300), seed: argument(2, 1) }, |line| {
        println!("{line}")
    });
}

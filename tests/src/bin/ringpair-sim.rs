//! Replays seeds of the simulator: `ringpair-sim --seed N [--count N] [--verbose]`.
//!
//! Always: exit 0 if every seed holds, 1 at the first that does not, 2 for a wrong command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use ringpair_tests::sim;

const USAGE: &str = "usage: ringpair-sim --seed N [--count N] [--verbose]";

fn main() -> ExitCode {
    let (mut seed, mut count, mut verbose) = (0_u64, 1_u64, false);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "--verbose" => {
                verbose = true;
                continue;
            }
            "--seed" => &mut seed,
            "--count" => &mut count,
            _ => {
                eprintln!("{word}: unknown. {USAGE}");
                return ExitCode::from(2);
            }
        };
        match words.next().map(|number| number.parse()) {
            Some(Ok(number)) => *value = number,
            _ => {
                eprintln!("{word}: needs a number. {USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    for seed in seed..seed.saturating_add(count) {
        match sim::run(seed, verbose) {
            Ok(outcome) => println!("seed {seed}: {outcome:?}"),
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

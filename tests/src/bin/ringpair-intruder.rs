//! Attacks the ports of a real pair under load: `ringpair-intruder [MIB] [HALF_OPEN]` (1024, 10000). Takes the
//! executable from `$RINGPAIR_BIN`.

use ringpair_tests::pair::{Attack, intrude};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (mib, half_open) = match (arguments.next().unwrap_or(Ok(1024)), arguments.next().unwrap_or(Ok(10_000))) {
        (Ok(mib), Ok(half_open)) => (mib, half_open),
        _ => {
            eprintln!("usage: ringpair-intruder [MIB] [HALF_OPEN]");
            std::process::exit(2);
        }
    };
    let half_open = usize::try_from(half_open).unwrap_or(usize::MAX);
    intrude(Attack { noise_bytes: mib << 20, half_open }, |line| println!("{line}"));
    println!("{mib} MiB of noise and {half_open} half-open connections survived");
}

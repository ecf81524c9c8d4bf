//! Kills random members of a real pair under load, as often as asked, and checks every acknowledged change after each:
//! `ringpair-kills [COUNT] [SEED]` (100, 1). Takes the executable from `$RINGPAIR_BIN`.

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (count, seed) = match (arguments.next().unwrap_or(Ok(100)), arguments.next().unwrap_or(Ok(1))) {
        (Ok(count), Ok(seed)) => (count, seed),
        _ => {
            eprintln!("usage: ringpair-kills [COUNT] [SEED]");
            std::process::exit(2);
        }
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    ringpair_tests::pair::storm(seed, count, |line| println!("{line}"));
    println!("{count} kills survived (seed {seed})");
}

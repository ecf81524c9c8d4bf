//! Processes that do not run for a while: never two exclusive members, nothing acknowledged as durable after waking
//! that the other does not have, one active soon after.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Load, Options, Pair, Victim, Witness, merge, overlap, wait_until};

/// How long a member that wakes is looked at before anything else is asked of the pair.
const LOOKED_AT_FOR: Duration = Duration::from_secs(1);

fn freeze(victim: Victim) {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let witnesses = pair.members().map(Witness::of);
    let load = Load::start([pair.a.socket(), pair.b.socket()], 2, 20);
    // These never turn to B: what they sent before the pause and what they send after it, A answers.
    let stubborn = Load::start_numbered([pair.a.socket(), pair.a.socket()], 2..4, 20);
    // A member that has just started may have given a promise, and is exclusive only when that has run out.
    wait_until("the load runs and A excludes any other", || load.progress() > 100 && witnesses[0].count() > 20);
    let worker = pair.a.worker_pid();
    assert!(pair.a.signal(victim, Signal::SIGSTOP));
    pair.b.wait_active();
    let before = load.progress();
    wait_until("the new active acknowledges", || load.progress() > before + 50);
    wait_until("and excludes any other", || witnesses[1].count() > 20);
    if pair.a.worker_pid() == worker {
        pair.a.signal(victim, Signal::SIGCONT);
    }
    let begun = Instant::now();
    let overlapping = || overlap(&witnesses[0].so_far(), &witnesses[1].so_far());
    while begun.elapsed() < LOOKED_AT_FOR {
        assert_eq!(overlapping(), None, "both were exclusive at one time\n{}", pair.logs());
        std::thread::park_timeout(Duration::from_millis(50));
    }
    pair.wait_in_sync();
    let mut writes = load.stop();
    merge(&mut writes, stubborn.stop());
    let [a, b] = witnesses.map(Witness::claims);
    assert!(!a.is_empty() && !b.is_empty(), "both were exclusive at some time");
    assert_eq!(overlap(&a, &b), None, "both were exclusive at one time\n{}", pair.logs());
    ringpair_tests::pair::check_served(&pair, &writes);
}

// REQ: SM-166
#[test]
fn a_frozen_worker_is_never_exclusive_beside_its_successor() {
    freeze(Victim::Worker);
}

// REQ: SM-163
#[test]
fn a_frozen_member_is_never_exclusive_beside_its_successor() {
    freeze(Victim::Both);
}

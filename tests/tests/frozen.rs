//! Processes that do not run for a while: never two exclusive members, nothing acknowledged as durable after waking
//! that the other does not have, one active soon after.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Load, Member, Options, Pair, Victim, request, wait_until};

/// When a member's claim to be exclusive was asked for, and until when its answer held.
type Claim = (Instant, Instant);

/// Asks `/active` without pause, and records for how long each answer holds.
fn witness(member: &Member, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<Vec<Claim>> {
    let socket = member.socket();
    std::thread::spawn(move || {
        let mut claims = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let asked = Instant::now();
            if let Ok(answer) = request(&socket, "GET", "/active", b"", Duration::from_millis(500))
                && answer.status == 200
                && answer.json()["exclusive"] == true
            {
                let valid = Duration::from_millis(answer.json()["valid_for_ms"].as_u64().unwrap_or_default());
                claims.push((asked, asked + valid));
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        claims
    })
}

fn overlap(a: &[Claim], b: &[Claim]) -> Option<(Claim, Claim)> {
    a.iter().find_map(|x| b.iter().find(|y| x.0 < y.1 && y.0 < x.1).map(|y| (*x, *y)))
}

fn freeze(victim: Victim) {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let stop = Arc::new(AtomicBool::new(false));
    let witnesses = [witness(&pair.a, stop.clone()), witness(&pair.b, stop.clone())];
    let load = Load::start([pair.a.socket(), pair.b.socket()], 2, 20);
    wait_until("the load runs", || load.progress() > 100);
    let worker = pair.a.worker_pid();
    assert!(pair.a.signal(victim, Signal::SIGSTOP));
    pair.b.wait_active();
    let before = load.progress();
    wait_until("the new active acknowledges", || load.progress() > before + 50);
    if pair.a.worker_pid() == worker {
        pair.a.signal(victim, Signal::SIGCONT);
    }
    pair.wait_in_sync();
    let writes = load.stop();
    stop.store(true, Ordering::Relaxed);
    let [a, b] = witnesses.map(|witness| witness.join().unwrap());
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

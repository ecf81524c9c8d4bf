//! A peer that takes nothing: its processes are stopped, or its ds lane alone is cut off while pings go on. Whoever writes
//! is not made to wait for it, and afterwards both members are equal again.
//!
//! Skips, and says so, where namespaces or nft are not to be had.
#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Family, Network, Options, Pair, Victim, wait_until};

fn pair() -> Option<(Network, Pair)> {
    let network = match Network::new(Family::V4) {
        Ok(network) => network,
        Err(why) => {
            println!("skipped: {why}");
            return None;
        }
    };
    let pair = Pair::start(&Options { places: Some(network.places()), ..Options::default() });
    pair.wait_in_sync();
    Some((network, pair))
}

/// Changes at `async`: each must be answered as asked for.
fn write(pair: &Pair, name: &str, count: usize) {
    for number in 0..count {
        let body = format!(r#"{{"attributes":{{"N":["{number}"]}}}}"#);
        let answer = pair.a.ask("PUT", &format!("/v1/ds/{name}?ack=async"), body.as_bytes()).unwrap();
        assert_eq!((answer.status, &answer.json()["level"]), (200, &"async".into()), "{}", answer.text());
    }
}

fn equal_again(pair: &Pair) {
    pair.wait_in_sync();
    wait_until("both trees are equal", || {
        let [a, b] = pair.digests();
        a.is_some() && a == b
    });
}

// REQ: REP-310
#[test]
fn writers_go_on_while_the_ds_lane_alone_is_cut() {
    let Some((network, pair)) = pair() else { return };
    if let Err(why) = network.lose(1, "af31") {
        return println!("skipped: {why}");
    }
    write(&pair, "X", 200);
    wait_until("the active goes on alone", || pair.a.status().is_some_and(|status| status["alone"] == true));
    write(&pair, "X", 200);
    assert_eq!(network.keep_all(1), Ok(()));
    equal_again(&pair);
    assert!(pair.a.is_active(), "nobody took over");
}

// REQ: REP-310
#[test]
fn writers_go_on_while_the_peer_is_frozen() {
    let Some((_network, pair)) = pair() else { return };
    assert!(pair.b.signal(Victim::Both, Signal::SIGSTOP));
    write(&pair, "X", 200);
    wait_until("the active goes on alone", || pair.a.status().is_some_and(|status| status["alone"] == true));
    write(&pair, "X", 200);
    assert!(pair.b.signal(Victim::Both, Signal::SIGCONT));
    equal_again(&pair);
    assert!(pair.a.is_active(), "nobody took over");
}

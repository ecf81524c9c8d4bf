//! Resynchronization by digests between real members, each in a network namespace: histories that parted become one by
//! what differs, and a lane that is cut again and again still leads to an end. Skips, and says so, without root.

#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use std::process::Command;

use ringpair_tests::pair::{Cut, Family, Member, Network, Options, Pair, wait_until};

fn network() -> Option<Network> {
    Network::new(Family::V4).inspect_err(|why| eprintln!("skipped: {why}")).ok()
}

fn options(network: &Network, set: &[(&str, &str)]) -> Options {
    let set = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Options { places: Some(network.places()), set, ..Options::default() }
}

/// Makes objects `/R/o…`, each with a value of `bytes` bytes that does not shrink much.
fn fill(member: &Member, objects: std::ops::Range<usize>, bytes: usize) {
    for first in objects.clone().step_by(500) {
        let lines: String = (first..(first + 500).min(objects.end))
            .map(|n| {
                let value: String =
                    (0..bytes).map(|at| char::from(b'a' + ((n * 31 + at * at + at / 7) % 26) as u8)).collect();
                format!(r#"{{"path":"/R/o{n:06}","class":"R","attributes":{{"V":["{value}"]}}}}"#) + "\n"
            })
            .collect();
        let answer = member.ask("POST", "/v1/ds?ack=local", lines.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

fn change(member: &Member, object: usize, text: &str) {
    let body = format!(r#"{{"attributes":{{"V":["{text}"]}}}}"#);
    wait_until("the member takes a change", || {
        member
            .ask("PUT", &format!("/v1/ds/R/o{object:06}?ack=local"), body.as_bytes())
            .is_ok_and(|answer| answer.status == 200)
    });
}

fn remove(member: &Member, object: usize) {
    let answer = member.ask("DELETE", &format!("/v1/ds/R/o{object:06}?ack=local"), b"").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn counter(member: &Member, name: &str) -> u64 {
    member.status().unwrap_or_default()["counters"][name].as_u64().unwrap_or_default()
}

/// Both members are one again: same digest, versions included.
fn are_equal(pair: &Pair) {
    pair.wait_in_sync();
    let [a, b] = pair.digests();
    assert!(a.is_some() && a == b, "A {a:?}, B {b:?}\n{}", pair.logs());
    let (code, out, err) = pair.active().unwrap().command(&["verify"]);
    assert_eq!(code, 0, "verify: {out}{err}\n{}", pair.logs());
}

// REQ: REP-003, REP-004, REP-008, REP-310
#[test]
fn histories_that_parted_become_one_by_what_differs() {
    const OBJECTS: usize = 4000;
    let Some(network) = network() else { return };
    let pair = Pair::start(&options(&network, &[("compression.bulk", "off")]));
    pair.wait_in_sync();
    fill(&pair.a, 0..OBJECTS, 400);
    pair.wait_in_sync();
    // What is kept from before has to be brought forward: it follows the checkpoints.
    for round in 0..2 {
        let (old, new) = if round == 0 { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        network.cut(Cut::Both);
        new.wait_active();
        for n in 0..20 {
            change(old, 100 * n + round, "of the old active");
            change(new, 100 * n + 50 + round, "of the new active");
        }
        remove(old, 7 + round);
        remove(new, 77 + round);
        fill(old, OBJECTS + 20 * round..OBJECTS + 20 * round + 10, 40);
        let before = counter(old, "bulk_lane_received_bytes");
        network.heal();
        are_equal(&pair);
        assert!(new.is_active());
        let came = counter(old, "bulk_lane_received_bytes") - before;
        assert!(came < 400_000, "{came} bytes came for some fifty objects of {OBJECTS}, which take 1.6 MB");
        let [kept, taken, gone] = [100, 150, 77].map(|n| pair.a.get(&format!("/v1/ds/R/o{:06}", n + round)).unwrap());
        assert!(taken.text().contains("of the new active") && !kept.text().contains("of the old active"));
        assert_eq!((gone.status, pair.a.get(&format!("/v1/ds/R/o{:06}", 7 + round)).unwrap().status), (404, 200));
        let archived = old.status().unwrap()["divergence"]["records"].as_u64();
        assert!(archived >= Some(31), "what only the old active had is in its archive: {archived:?}");
    }
}

/// Kills the connection that carries the mark of bulk (LE, 1), if there is one.
fn kill_bulk(namespace: &str) -> bool {
    let ss = |arguments: &[&str]| {
        let output = Command::new("ip").args(["netns", "exec", namespace, "ss"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let listed = ss(&["-Htn", "--tos", "state", "established"]);
    let Some(line) = listed.lines().find(|line| line.contains("tos:0x4 ") || line.trim_end().ends_with("tos:0x4"))
    else {
        return false;
    };
    let ends: Vec<&str> = line.split_whitespace().filter(|field| field.starts_with("10.")).collect();
    ss(&["-K", "-tn", "src", ends[0], "dst", ends[1]]);
    true
}

// REQ: REP-008, REP-310
#[test]
fn a_lane_that_is_cut_again_and_again_leads_to_an_end() {
    const BYTES_A_LANE: u64 = 1_200_000;
    let Some(network) = network() else { return };
    // The whole tree takes seven seconds, and some lanes.
    let set = [("compression.bulk", "off"), ("transport.bulk_rate_bytes_per_s", "1500000")];
    let mut pair = Pair::prepare(&options(&network, &set));
    pair.a.start(&["--bootstrap"]);
    pair.a.wait_active();
    fill(&pair.a, 0..10_000, 1000);
    pair.b.start(&[]);
    let (mut kills, mut seen) = (0, 0);
    wait_until("the backup is complete, though its lane is cut after each part", || {
        let status = pair.b.status().unwrap_or_default();
        if status["complete"] == true && status["role"] == "backup" {
            return true;
        }
        let now = status["counters"]["bulk_lane_received_bytes"].as_u64().unwrap_or_default();
        if now >= seen + BYTES_A_LANE && kill_bulk(network.namespace(&pair.b)) {
            (kills, seen) = (kills + 1, now);
        }
        false
    });
    assert!(kills >= 3, "{kills} lanes were cut");
    are_equal(&pair);
}

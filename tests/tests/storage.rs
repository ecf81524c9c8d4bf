//! Storage that is emptied, rolled back or restarted in any order: the newest data becomes active wherever that can be
//! known, and nothing is overwritten that is not in an archive first.

#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use std::{fs, path::Path, process::Command, time::Duration};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Member, Options, PATIENCE, Pair, Victim, wait_until};

fn put(member: &Member, path: &str, value: &str) -> serde_json::Value {
    let body = format!(r#"{{"attributes":{{"Counter":["{value}"]}}}}"#);
    let answer = member.ask("PUT", &format!("/v1/ds{path}?ack=durable"), body.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn value(member: &Member, path: &str) -> Option<String> {
    let answer = member.get(&format!("/v1/ds{path}")).ok()?;
    answer.json()["attributes"]["Counter"][0].as_str().map(str::to_owned)
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

fn kill(member: &mut Member) {
    member.signal(Victim::Both, Signal::SIGKILL);
    assert!(member.reap(PATIENCE));
}

// REQ: SM-052
#[test]
fn after_a_double_crash_the_newest_data_is_served_whatever_the_order() {
    for b_first in [false, true] {
        let mut pair = Pair::start(&Options::default());
        pair.wait_in_sync();
        put(&pair.a, "/X", "1");
        // B is away while A goes on alone: only A has the newest data.
        kill(&mut pair.b);
        wait_until("A is alone", || pair.a.status().is_some_and(|status| status["alone"] == true));
        put(&pair.a, "/X", "2");
        kill(&mut pair.a);
        if b_first {
            pair.b.start(&[]);
            wait_until("B answers", || pair.b.status().is_some());
            // It cannot know what A has. Once it may decide alone, it says why it waits for A.
            let decided = || pair.b.status().unwrap_or_default().to_string().contains("may have newer data");
            wait_until("B has decided", || pair.b.is_active() || decided());
            assert!(!pair.b.is_active(), "B became active on older data\n{}", pair.logs());
            pair.a.start(&[]);
        } else {
            pair.a.start(&[]);
            pair.b.start(&[]);
        }
        pair.wait_in_sync();
        for member in pair.members() {
            assert_eq!(value(member, "/X").as_deref(), Some("2"), "member {}\n{}", member.name(), pair.logs());
        }
    }
}

// REQ: SM-060
#[test]
fn an_emptied_member_takes_everything_from_the_other() {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    put(&pair.a, "/X", "1");
    kill(&mut pair.a);
    fs::remove_dir_all(pair.a.storage()).unwrap();
    pair.b.wait_active();
    pair.a.start(&[]);
    pair.wait_in_sync();
    assert!(pair.b.is_active());
    assert_eq!(value(&pair.a, "/X").as_deref(), Some("1"));
    // Both down, and the emptied one starts alone: it is nobody's active.
    kill(&mut pair.a);
    kill(&mut pair.b);
    fs::remove_dir_all(pair.a.storage()).unwrap();
    pair.a.start(&[]);
    wait_until("A answers", || pair.a.status().is_some());
    std::thread::park_timeout(Duration::from_secs(1));
    assert!(!pair.a.is_active(), "an empty member elected itself\n{}", pair.logs());
    pair.b.start(&[]);
    pair.wait_in_sync();
    assert_eq!(value(&pair.a, "/X").as_deref(), Some("1"));
}

// REQ: SM-166
#[test]
fn a_rolled_back_member_does_not_become_active_beside_newer_data() {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    put(&pair.a, "/X", "1");
    pair.a.stop();
    let old = pair.dir().join("older");
    copy(&pair.a.storage(), &old);
    pair.a.start(&[]);
    pair.wait_in_sync();
    let active = pair.active().expect("one active");
    put(active, "/X", "2");
    pair.wait_in_sync();
    kill(&mut pair.a);
    kill(&mut pair.b);
    fs::remove_dir_all(pair.a.storage()).unwrap();
    copy(&old, &pair.a.storage());
    pair.a.start(&[]);
    pair.b.start(&[]);
    pair.wait_in_sync();
    for member in pair.members() {
        assert_eq!(value(member, "/X").as_deref(), Some("2"), "member {}\n{}", member.name(), pair.logs());
    }
}

// REQ: OPS-145
#[test]
fn a_storage_directory_is_used_by_one_process_and_never_mirrored() {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let (code, _, err) = pair.a.command(&["run"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("in use"), "{err}");
    let inside = pair.a.root().join("srv/storage");
    let set = format!("storage.dir={}", inside.display());
    let (code, _, err) = pair.a.command(&["run", "--set", &set, "--set", "parameters.CustomMirrorDir=+/srv"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("storage.dir") && err.contains("Try:"), "{err}");
}

/// The longest time for which a member says that it did not run, in milliseconds.
fn longest_pause_ms(member: &Member) -> u64 {
    let events = member.get("/v1/events").map(|answer| answer.text()).unwrap_or_default();
    let paused = events.split("did not run for ").skip(1).filter_map(|rest| rest.split(' ').next()?.parse().ok());
    paused.max().unwrap_or_default()
}

// REQ: REP-006 SM-163
#[test]
fn an_import_far_beyond_a_frame_pauses_neither_member_and_is_seen_at_once() {
    const OBJECTS: usize = 100_000;
    // Before others on this machine, where that is permitted: it is the member's own pauses that count.
    let through = ["nice", "-n", "-15"].map(str::to_owned).to_vec();
    let mut pair = Pair::start(&Options { through, ..Options::default() });
    pair.wait_in_sync();
    let (worker, epoch) = (pair.a.worker_pid(), pair.a.status().unwrap()["epoch"].clone());
    let lines = |text: &str| -> String {
        let line = |n| {
            format!(
                "{{\"path\":\"/IMPORT/{}/{n}\",\"class\":\"C\",\"attributes\":{{\"V\":[\"{text}{n}\"]}}}}\n",
                n % 300
            )
        };
        (0..OBJECTS).map(line).collect()
    };
    let file = pair.dir().join("objects.jsonl");
    fs::write(&file, lines("x")).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut slowest = Duration::ZERO;
    std::thread::scope(|scope| {
        let import = scope.spawn(|| {
            let ended =
                pair.a.command(&["ds", "import", &file.display().to_string(), "--ack", "applied", "--timeout", "120"]);
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            ended
        });
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let start = std::time::Instant::now();
            pair.a.get("/active").unwrap();
            slowest = slowest.max(start.elapsed());
            // All or nothing, on either member: where the first is, the last is, and the other way round.
            for member in pair.members() {
                for [one, other] in [["0/0", "99/99999"], ["99/99999", "0/0"]] {
                    let there = |name: &str| {
                        member.get(&format!("/v1/ds/IMPORT/{name}")).is_ok_and(|answer| answer.status == 200)
                    };
                    assert!(!there(one) || there(other), "{one} without {other} on {}", member.name());
                }
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let (code, out, err) = import.join().unwrap();
        assert_eq!(code, 0, "{out}{err}\n{}", pair.logs());
    });
    assert_eq!((pair.a.worker_pid(), pair.a.status().unwrap()["epoch"].clone()), (worker, epoch), "nobody lost office");
    let pauses = [longest_pause_ms(&pair.a), longest_pause_ms(&pair.b)];
    println!("longest pauses {pauses:?} ms, slowest /active {slowest:?}");
    // More than the interval of heartbeats is named; after four the lease would be over.
    assert!(pauses.iter().all(|pause| *pause < 400), "{pauses:?}\n{}", pair.logs());
    pair.wait_in_sync();
    let answer = pair.b.get("/v1/ds/IMPORT?digest").unwrap().json();
    assert_eq!(answer["objects"], 100_301);
    assert_eq!(pair.digests()[0], pair.digests()[1]);
    // A stop, while all of that is being saved, is no loop that hangs.
    pair.a.stop();
    assert!(!pair.a.log_tail().contains("not turned"), "{}", pair.a.log_tail());
}

// REQ: REP-006 SM-163
#[test]
fn an_import_cut_by_a_kill_is_there_whole_or_not_at_all() {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let text: String = (0..30_000)
        .map(|n| format!("{{\"path\":\"/IMPORT/{n}\",\"attributes\":{{\"V\":[\"{}\"]}}}}\n", "x".repeat(n % 300)))
        .collect();
    let file = pair.dir().join("objects.jsonl");
    fs::write(&file, text).unwrap();
    for round in 1..=3 {
        let (active, other) = if pair.a.is_active() { (&pair.a, &pair.b) } else { (&pair.b, &pair.a) };
        let before = active.status().unwrap()["ds"]["seq"].as_u64().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| active.command(&["ds", "import", &file.display().to_string(), "--timeout", "20"]));
            // In the middle: some of its records are in the journal.
            wait_until("records are written", || {
                active.status().and_then(|status| status["ds"]["seq"].as_u64()).is_some_and(|seq| seq > before)
            });
            active.signal(Victim::Worker, Signal::SIGKILL);
        });
        other.wait_active();
        pair.wait_in_sync();
        let counts =
            pair.members().map(|member| member.get("/v1/ds/IMPORT?digest").unwrap().json()["objects"].as_u64());
        assert!(
            matches!(counts, [None | Some(0), None | Some(0)] | [Some(30_001), Some(30_001)]),
            "{counts:?} in {round}"
        );
        assert_eq!(pair.digests()[0], pair.digests()[1]);
        put(pair.active().unwrap(), "/X", &round.to_string());
        pair.wait_in_sync();
    }
    // A restart of both comes to the same state.
    let digests = pair.digests();
    kill(&mut pair.a);
    kill(&mut pair.b);
    pair.a.start(&[]);
    pair.b.start(&[]);
    pair.wait_in_sync();
    assert_eq!(pair.digests(), digests);
}

/// The files in a member's divergence archive: below its root, with their lengths.
fn archived(member: &Member) -> Vec<(String, u64)> {
    let listed = member.get("/v1/divergence").unwrap().json();
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_owned();
    let files = listed["files"].as_array().unwrap().iter();
    let mut files: Vec<_> =
        files.map(|file| (name(file["path"].as_str().unwrap()), file["bytes"].as_u64().unwrap())).collect();
    files.sort();
    files
}

// REQ: SM-060 REP-011
#[test]
fn files_that_the_new_active_never_got_are_archived_before_the_returning_one_loses_them() {
    let mut pair = Pair::start(&Options { mirror: vec!["+/m".into()], ..Options::default() });
    for name in ["same", "changed", "mode"] {
        fs::write(pair.a.root().join("m").join(name), "on both").unwrap();
    }
    pair.wait_in_sync();
    kill(&mut pair.a);
    pair.b.wait_active();
    // What the service writes last, too late for the backup; one of them like nothing that was there.
    fs::write(pair.a.root().join("m/changed"), "on A alone").unwrap();
    for number in 0..200 {
        fs::write(pair.a.root().join(format!("m/own-{number:03}")), vec![b'x'; number]).unwrap();
    }
    // The returning member dies again before its files are compared, at times of its choice.
    for delay_ms in [0, 5, 20, 60] {
        pair.a.start(&[]);
        wait_until("A is backup", || pair.a.status().is_some_and(|status| status["role"] == "backup"));
        std::thread::park_timeout(Duration::from_millis(delay_ms));
        kill(&mut pair.a);
    }
    pair.a.start(&[]);
    pair.wait_in_sync();
    assert_eq!(fs::read(pair.a.root().join("m/changed")).unwrap(), b"on both");
    assert!(!pair.a.root().join("m/own-007").exists());
    let mut wanted: Vec<_> = (0..200).map(|number| (format!("own-{number:03}"), number as u64)).collect();
    wanted.push(("changed".into(), 10));
    wanted.sort();
    let mut found = archived(&pair.a);
    // What was archived by one run and not overwritten before it died is archived by the next as well.
    found.dedup();
    assert_eq!(found, wanted, "{}", pair.logs());
    wait_until("the status tells of them", || {
        pair.a.status().is_some_and(|status| status["divergence"]["files"].as_u64() >= Some(201))
    });
    // What comes from the active from now on is no divergence.
    fs::write(pair.b.root().join("m/same"), "changed by the new active").unwrap();
    let answer = pair.b.ask("POST", "/v1/sync", b"").unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut found = archived(&pair.a);
    found.dedup();
    assert_eq!(found, wanted);
}

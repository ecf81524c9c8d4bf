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
            // It cannot know what A has, and waits for A.
            std::thread::park_timeout(Duration::from_millis(500));
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

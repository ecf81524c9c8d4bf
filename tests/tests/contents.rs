//! Values over 64 KiB: served byte-identical by both members, acknowledged as durable only where they are, fetched again
//! where they are lost, and gone when nothing refers to them.

#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Dice, Member, Options, PATIENCE, Pair, Victim, request, wait_until};

/// A value that does not compress and stands for itself in JSON.
fn value(bytes: usize, seed: u64) -> String {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    (0..bytes)
        .map(|_| {
            char::from(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"[dice.below(64) as usize])
        })
        .collect()
}

/// Puts a value; what it was acknowledged as: level and alone.
fn try_put(socket: &std::path::Path, path: &str, value: &str, level: &str) -> Option<(String, bool)> {
    let body = format!(r#"{{"attributes":{{"V":["{value}"]}}}}"#);
    let url = format!("/v1/ds{path}?ack={level}");
    let answer = request(socket, "PUT", &url, body.as_bytes(), Duration::from_secs(20)).ok()?;
    let json = answer.json();
    (answer.status == 200).then(|| (json["level"].as_str().unwrap().to_owned(), json["alone"] == true))
}

fn put(member: &Member, path: &str, value: &str, level: &str) {
    let said = try_put(&member.socket(), path, value, level);
    assert_eq!(said, Some((level.to_owned(), false)), "{path}");
}

/// The value served, if the answer is whole.
fn served(member: &Member, path: &str) -> Option<String> {
    let answer = member.get(&format!("/v1/ds{path}")).ok().filter(|answer| answer.status == 200)?;
    answer.json()["attributes"]["V"][0].as_str().map(str::to_owned)
}

fn serves(member: &Member, path: &str, value: &str) {
    let got = served(member, path);
    let shown = got.as_ref().map(|got| got.len());
    assert!(
        got.as_deref() == Some(value),
        "{path} on {}: {shown:?} of {} bytes, or others",
        member.name(),
        value.len()
    );
}

/// The files of a member's stored contents.
fn stored(member: &Member) -> Vec<PathBuf> {
    let dir = member.storage().join("content");
    let dirs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let dirs = dirs.filter(|path| path.file_name().is_some_and(|name| name.len() == 2));
    let mut files: Vec<PathBuf> =
        dirs.flat_map(|dir| fs::read_dir(dir).unwrap()).map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn kill(member: &mut Member) {
    member.signal(Victim::Both, Signal::SIGKILL);
    assert!(member.reap(PATIENCE));
}

fn equal_digests(pair: &Pair) {
    let [a, b] = pair.digests();
    assert!(a.is_some() && a == b, "{a:?} {b:?}");
}

// REQ: REP-012
#[test]
fn large_values_are_the_same_on_both_members() {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let values: Vec<(String, String)> = [65_536, 65_537, 1 << 20, 20 << 20]
        .into_iter()
        .enumerate()
        .map(|(n, bytes)| (format!("/LARGE/{n}"), value(bytes, n as u64)))
        .collect();
    for (path, value) in &values {
        // Readable on the backup when `applied` is said, not only named.
        put(&pair.a, path, value, "applied");
        serves(&pair.b, path, value);
        serves(&pair.a, path, value);
    }
    assert_eq!(stored(&pair.a).len(), 3, "what fits into a record is one");
    assert_eq!(stored(&pair.b).len(), 3);
    equal_digests(&pair);
    let (code, out, err) = pair.a.command(&["verify", "--timeout", "20"]);
    assert_eq!(code, 0, "{out}{err}");
}

/// What may be served, by path: the value that was acknowledged as durable last, then those whose end is unknown.
type Noted = BTreeMap<String, Vec<String>>;

/// The paths that are served with none of the values that they may have.
fn not_served(member: &Member, noted: &Noted) -> Vec<String> {
    let lost = |path: &str, values: &[String]| served(member, path).is_none_or(|got| !values.contains(&got));
    noted.iter().filter(|(path, values)| lost(path, values)).map(|(path, _)| path.clone()).collect()
}

/// Writers of large values that note what was acknowledged.
struct LargeLoad {
    stop: Arc<AtomicBool>,
    noted: Arc<Mutex<Noted>>,
    acknowledged: Arc<AtomicUsize>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl LargeLoad {
    fn start(active: &Member, writers: u64, seed: u64) -> Self {
        let (stop, noted) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Noted::new())));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let threads = (0..writers).map(|writer| {
            let (stop, noted, socket) = (Arc::clone(&stop), Arc::clone(&noted), active.socket());
            let acknowledged = Arc::clone(&acknowledged);
            std::thread::spawn(move || {
                let mut number = seed * 1_000_000 + writer * 10_000;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let path = format!("/LOAD/{writer}/{}", number % 4);
                    let value = value(400_000 + 100_000 * writer as usize, number);
                    // Before it is durable for the first time, it may as well not be there.
                    if let Some(values) = noted.lock().unwrap().get_mut(&path) {
                        values.push(value.clone());
                    }
                    if try_put(&socket, &path, &value, "durable") == Some(("durable".to_owned(), false)) {
                        noted.lock().unwrap().insert(path, vec![value]);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        let threads = threads.collect();
        Self { stop, noted, acknowledged, threads }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn stop(self) -> Noted {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::try_unwrap(self.noted).unwrap().into_inner().unwrap()
    }
}

// REQ: REP-012 SM-163
#[test]
fn what_was_durable_is_served_after_the_active_was_killed() {
    // Slow enough that most of the time a record is on the backup and its content is on the way.
    let slow = ("transport.bulk_rate_bytes_per_s".to_owned(), "20000000".to_owned());
    let mut pair = Pair::start(&Options { set: vec![slow], ..Options::default() });
    pair.wait_in_sync();
    for round in 1..=4 {
        let load = LargeLoad::start(pair.active().unwrap(), 3, round);
        wait_until("every value was acknowledged and is being overwritten", || load.acknowledged() >= 15);
        let a_was_active = pair.a.is_active();
        let (victim, other) = if a_was_active { (&mut pair.a, &pair.b) } else { (&mut pair.b, &pair.a) };
        // In the middle of writes.
        let hit = if round % 2 == 1 { Victim::Both } else { Victim::Worker };
        victim.signal(hit, Signal::SIGKILL);
        let noted = load.stop();
        other.wait_active();
        assert!(noted.values().filter(|values| values.len() == 1).count() >= 6, "nothing unknown behind it");
        if hit == Victim::Both {
            // The new active has every value by itself: its peer may never come back.
            assert_eq!(not_served(other, &noted), [""; 0], "lost by the new active");
            assert!(victim.reap(PATIENCE));
            victim.start(&[]);
        }
        // What the dead worker's supervisor served as its journal's tail has its contents on that host.
        wait_until("everything is served", || not_served(other, &noted).is_empty());
        pair.wait_in_sync();
        for member in pair.members() {
            assert_eq!(not_served(member, &noted), [""; 0], "on {}", member.name());
        }
        equal_digests(&pair);
    }
}

fn in_sync_with(values: &[(&str, String)]) -> Pair {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    for (path, value) in values {
        put(&pair.a, path, value, "applied");
    }
    pair
}

fn flip(file: &std::path::Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

// REQ: REP-026
#[test]
fn contents_lost_or_damaged_while_the_backup_was_stopped_are_fetched_again() {
    let values = [("/X/1", value(1 << 20, 1)), ("/X/2", value(2 << 20, 2)), ("/X/3", value(300_000, 3))];
    let mut pair = in_sync_with(&values);
    pair.b.stop();
    let files = stored(&pair.b);
    assert_eq!(files.len(), 3);
    fs::remove_file(&files[0]).unwrap();
    flip(&files[1]);
    pair.b.start(&[]);
    wait_until("the backup answers", || pair.b.status().is_some());
    let whole = || values.iter().all(|(path, value)| served(&pair.b, path).as_ref() == Some(value));
    wait_until("everything is served again", || {
        for (path, value) in &values {
            let got = served(&pair.b, path);
            assert!(got.is_none() || got.as_ref() == Some(value), "{path} is served wrong");
        }
        whole()
    });
    pair.wait_in_sync();
    assert_eq!(stored(&pair.b).len(), 3);
}

// REQ: REP-026
#[test]
fn a_content_damaged_on_a_running_member_is_never_served_whole_and_is_fetched_again() {
    let values = [("/X/1", value(1 << 20, 1))];
    let pair = in_sync_with(&values);
    for member in pair.members() {
        // Not before the check of the start has gone over it.
        let files = stored(member);
        std::thread::park_timeout(Duration::from_millis(500));
        flip(&files[0]);
        let first = served(member, values[0].0);
        assert!(first.is_none() || first.as_ref() == Some(&values[0].1), "served wrong on {}", member.name());
        wait_until("it is served again", || served(member, values[0].0).as_ref() == Some(&values[0].1));
    }
}

// REQ: SM-163 REP-026
#[test]
fn a_member_promoted_without_a_content_says_so_and_fetches_it_from_the_old_active() {
    let values = [("/X/1", value(1 << 20, 1)), ("/X/2", value(300_000, 2))];
    let mut pair = in_sync_with(&values);
    // Lost on the member that is about to be promoted, while it runs: nobody has looked since.
    let files = stored(&pair.b);
    kill(&mut pair.a);
    fs::remove_file(&files[0]).unwrap();
    pair.b.wait_active();
    kill(&mut pair.b);
    // As a new process, it knows what it lacks; alone, it was active last.
    pair.b.start(&[]);
    pair.b.wait_active();
    wait_until("the status names what is missing", || {
        pair.b.status().is_some_and(|status| status["warnings"].to_string().contains("contents-missing"))
    });
    let missing = values.iter().filter(|(path, _)| served(&pair.b, path).is_none()).count();
    assert_eq!(missing, 1);
    pair.a.start(&[]);
    wait_until("everything is served by the new active", || {
        values.iter().all(|(path, value)| served(&pair.b, path).as_ref() == Some(value))
    });
    pair.wait_in_sync();
    assert!(pair.b.is_active());
    wait_until("the warning is gone", || {
        pair.b.status().is_some_and(|status| !status["warnings"].to_string().contains("contents-missing"))
    });
    for (path, value) in &values {
        serves(&pair.a, path, value);
    }
    equal_digests(&pair);
}

// REQ: REP-012 SM-060
#[test]
fn a_backup_that_lacks_a_content_is_not_durable_and_an_emptied_one_fetches_all() {
    let values = [("/X/1", value(1 << 20, 1)), ("/X/2", value(5 << 20, 2))];
    let mut pair = in_sync_with(&values);
    kill(&mut pair.b);
    fs::remove_dir_all(pair.b.storage()).unwrap();
    pair.b.start(&[]);
    pair.wait_in_sync();
    // In sync means that it could be promoted now: with everything.
    kill(&mut pair.a);
    pair.b.wait_active();
    for (path, value) in &values {
        serves(&pair.b, path, value);
    }
}

// REQ: REP-012
#[test]
fn what_the_active_overwrote_and_removed_while_the_backup_was_away_holds_nothing_up() {
    let mut pair = in_sync_with(&[("/X", value(100_000, 1))]);
    kill(&mut pair.b);
    for number in 2..=20 {
        let said = try_put(&pair.a.socket(), "/X", &value(100_000, number), "local");
        assert_eq!(said.map(|(level, _)| level).as_deref(), Some("local"));
    }
    wait_until("what was overwritten is gone", || stored(&pair.a).len() == 1);
    // Out of the journal: every record comes, and all contents but the last are nowhere.
    pair.b.start(&[]);
    pair.wait_in_sync();
    kill(&mut pair.a);
    pair.b.wait_active();
    serves(&pair.b, "/X", &value(100_000, 20));
}

// REQ: REP-012
#[test]
fn values_that_nothing_refers_to_are_removed_on_both_members() {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    put(&pair.a, "/KEPT", &value(100_000, 1), "applied");
    let overwritten = |pair: &Pair, seed: u64| {
        for number in 0..40 {
            put(&pair.a, "/X", &value(500_000, seed + number), "applied");
        }
    };
    overwritten(&pair, 1000);
    let two = |pair: &Pair| {
        wait_until("what is not needed is gone", || pair.members().iter().all(|member| stored(member).len() == 2));
        for member in pair.members() {
            serves(member, "/KEPT", &value(100_000, 1));
        }
    };
    two(&pair);
    // What is left by members that are killed before they look goes after their start.
    overwritten(&pair, 2000);
    assert!(stored(&pair.a).len() > 2);
    kill(&mut pair.b);
    kill(&mut pair.a);
    pair.a.start(&[]);
    pair.b.start(&[]);
    pair.wait_in_sync();
    two(&pair);
    for member in pair.members() {
        serves(member, "/X", &value(500_000, 2039));
    }
    equal_digests(&pair);
    let active = pair.active().unwrap();
    for path in ["/X", "/KEPT"] {
        let answer = active.ask("DELETE", &format!("/v1/ds{path}?ack=applied"), b"").unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    wait_until("nothing is left", || pair.members().iter().all(|member| stored(member).is_empty()));
}

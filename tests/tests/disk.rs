//! Disks that are full, damaged, failing or gone: no crash, no acknowledgement that is not true, said in `status`, mended
//! by itself as soon as it can be.
//!
//! Skips, and says so, where file systems cannot be mounted or system calls not be made to fail.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "test code: a failed expectation is a failed test")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use ringpair_tests::pair::{Dice, Load, Member, Options, PATIENCE, Pair, SmallDisk, Victim, check_served, wait_until};

/// Room for what a small member needs: a few segments of the journal, the state, the logs.
const DISK_BYTES: u64 = 96 << 20;

fn warnings(member: &Member) -> String {
    member.status().map(|status| status["warnings"].to_string()).unwrap_or_default()
}

fn warned(member: &Member, what: &[&str]) -> String {
    let mut found = String::new();
    wait_until(&format!("member {} warns of {what:?}", member.name()), || {
        found = warnings(member);
        what.iter().any(|word| found.contains(word))
    });
    found
}

/// Writes values that do not compress until the member has taken `bytes` or refuses; what it acknowledged.
fn write_much(member: &Member, bytes: usize, level: &str, acknowledged: &mut BTreeMap<String, String>) -> String {
    let mut dice = Dice(7 + acknowledged.len() as u64);
    let mut said = "everything was taken".to_owned();
    let start = Instant::now();
    for number in 0..bytes / 48_000 {
        let value: String = (0..48_000).map(|_| char::from(b'0' + u8::try_from(dice.below(75)).unwrap())).collect();
        let value = value.replace('\\', "/");
        let path = format!("/FILL/{}", acknowledged.len());
        let body = serde_json::json!({ "attributes": { "V": [value] } }).to_string();
        let url = format!("/v1/ds{path}?ack={level}");
        let time_out = Duration::from_secs(3);
        match ringpair_tests::pair::request(&member.socket(), "PUT", &url, body.as_bytes(), time_out) {
            Ok(answer) if answer.status == 200 => {
                acknowledged.insert(path, value);
            }
            Ok(answer) => {
                said = format!("after {number}: {} {}", answer.status, answer.text());
                break;
            }
            Err(error) => {
                said = format!("after {number}: {error}");
                break;
            }
        }
        assert!(start.elapsed() < PATIENCE, "{number} values in {PATIENCE:?}");
    }
    said
}

/// Whether `member` serves everything that was acknowledged.
fn holds(member: &Member, acknowledged: &BTreeMap<String, String>) {
    for (path, value) in acknowledged {
        let object = member.get(&format!("/v1/ds{path}")).unwrap().json();
        assert_eq!(object["attributes"]["V"][0].as_str(), Some(value.as_str()), "{path} on {}", member.name());
    }
}

fn small_pair(which: char) -> Option<(Pair, SmallDisk)> {
    small_pair_with(which, &Options::default())
}

fn small_pair_with(which: char, options: &Options) -> Option<(Pair, SmallDisk)> {
    let mut pair = Pair::prepare(options);
    let member = if which == 'A' { &pair.a } else { &pair.b };
    let disk = match SmallDisk::mount(&member.storage(), DISK_BYTES) {
        Ok(disk) => disk,
        Err(why) => {
            println!("skipped: {why}");
            return None;
        }
    };
    pair.a.start(&[]);
    pair.b.start(&[]);
    pair.wait_in_sync();
    Some((pair, disk))
}

/// The workers' process ids: equal before and after when nothing crashed.
fn processes(pair: &Pair) -> Vec<Option<i32>> {
    pair.members().iter().flat_map(|member| [member.supervisor_pid(), member.worker_pid()]).collect()
}

// REQ: OPS-145
#[test]
fn an_active_with_a_full_disk_says_so_and_recovers_by_itself() {
    let Some((pair, disk)) = small_pair('A') else { return };
    let before = processes(&pair);
    let mut acknowledged = BTreeMap::new();
    disk.fill();
    let said = write_much(&pair.a, 40 << 20, "durable", &mut acknowledged);
    println!("full active: {} acknowledged, then {said}", acknowledged.len());
    assert!(acknowledged.len() > 100, "what is prepared is used up first: {said}");
    assert!(said.contains("429"), "refused, not failed: {said}");
    println!("{}", warned(&pair.a, &["no-room"]));
    assert_eq!(processes(&pair), before, "nothing crashed");
    holds(&pair.b, &acknowledged);
    disk.make_room();
    wait_until("changes are taken again", || {
        let put = pair.a.ask("PUT", "/v1/ds/AFTER?ack=durable", br#"{"attributes":{"A":["1"]}}"#);
        put.is_ok_and(|answer| answer.status == 200 && answer.json()["level"] == "durable")
    });
    wait_until("the warning is gone", || !warnings(&pair.a).contains("no-room"));
    pair.wait_in_sync();
    holds(&pair.a, &acknowledged);
    assert_eq!(pair.digests()[0], pair.digests()[1]);
    assert_eq!(processes(&pair), before, "nothing crashed");
}

// REQ: OPS-145
#[test]
fn a_backup_with_a_full_disk_is_left_behind_and_catches_up_by_itself() {
    let Some((pair, disk)) = small_pair('B') else { return };
    let before = processes(&pair);
    let mut acknowledged = BTreeMap::new();
    disk.fill();
    let said = write_much(&pair.a, 24 << 20, "durable", &mut acknowledged);
    println!("full backup: {} acknowledged, then {said}", acknowledged.len());
    println!("{}", warned(&pair.b, &["no-room"]));
    // The active goes on alone, and says so.
    wait_until("the active goes on", || {
        let put = pair.a.ask("PUT", "/v1/ds/ALONE?ack=durable", br#"{"attributes":{"A":["1"]}}"#);
        put.is_ok_and(|answer| answer.status == 200 && answer.json()["alone"] == true)
    });
    assert_eq!(processes(&pair), before, "nothing crashed");
    disk.make_room();
    pair.wait_in_sync();
    wait_until("the warning is gone", || !warnings(&pair.b).contains("no-room"));
    holds(&pair.b, &acknowledged);
    assert_eq!(pair.digests()[0], pair.digests()[1]);
    assert_eq!(processes(&pair), before, "nothing crashed");
}

/// The least that `storage.journal_max_bytes` may be.
const JOURNAL_MAX_BYTES: u64 = 64 << 20;

#[test]
fn a_backup_that_takes_nothing_holds_up_no_more_journal_than_is_configured() {
    let set = vec![("storage.journal_max_bytes".to_owned(), JOURNAL_MAX_BYTES.to_string())];
    let Some((pair, disk)) = small_pair_with('B', &Options { set, ..Options::default() }) else { return };
    disk.fill();
    // The same objects again and again: the state stays small, and the journal does not.
    let mut dice = Dice(11);
    let mut written = 0;
    while written < 3 * JOURNAL_MAX_BYTES {
        let lines: String = (0..100)
            .map(|object| {
                let value: String =
                    (0..10_000).map(|_| char::from(b'a' + u8::try_from(dice.below(26)).unwrap())).collect();
                serde_json::json!({"path": format!("/MUCH/o{object}"), "attributes": {"V": [value]}}).to_string() + "\n"
            })
            .collect();
        wait_until("the active takes more", || {
            pair.a.ask("POST", "/v1/ds?ack=local", lines.as_bytes()).is_ok_and(|answer| answer.status == 200)
        });
        // The frames are compressed to two thirds at best.
        written += lines.len() as u64 / 2;
    }
    let bytes = || pair.a.status().map_or(0, |status| status["counters"]["journal_bytes"].as_u64().unwrap_or(0));
    println!("{} MiB of journal after {} MiB of changes", bytes() >> 20, written >> 19);
    // Segments of 16 MiB, one of them prepared.
    let most = JOURNAL_MAX_BYTES + (48 << 20);
    wait_until("the journal is let go of", || (1..most).contains(&bytes()));
    disk.make_room();
    pair.wait_in_sync();
    assert_eq!(pair.digests()[0], pair.digests()[1]);
}

// REQ: OPS-145 SM-163
#[test]
fn a_backup_with_a_full_disk_can_still_be_promoted() {
    let Some((mut pair, disk)) = small_pair('B') else { return };
    let load = Load::start([pair.a.socket(), pair.b.socket()], 2, 20);
    wait_until("the load runs", || load.progress() > 100);
    disk.fill();
    let before = load.progress();
    wait_until("the load runs on", || load.progress() > before + 100);
    pair.a.signal(Victim::Both, Signal::SIGKILL);
    let took = pair.b.wait_active();
    println!("promoted on a full disk in {took:?}");
    let before = load.progress();
    wait_until("changes are acknowledged", || load.progress() > before + 20);
    assert!(pair.a.reap(PATIENCE));
    disk.make_room();
    pair.a.start(&[]);
    pair.wait_in_sync();
    println!("{}", check_served(&pair, &load.stop()));
}

/// The newest segment with frames of a stopped member's journal.
fn segments(member: &Member) -> Vec<PathBuf> {
    let dir = member.storage().join("journal");
    let listed = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut found: Vec<PathBuf> = listed.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    found.sort();
    found.retain(|path| used_bytes(path) > 4096);
    found
}

/// Where the zeroes at the end of a file begin.
fn used_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

/// Stops B for good, lets `damage` at its journal, starts it again: it must name the damage and be as A again.
fn after_damage(damage: impl Fn(&Path, u64), named: &[&str]) {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    // More than one group is written at once: damage far from the end is no write that a crash cut short.
    let mut acknowledged = BTreeMap::new();
    write_much(&pair.a, 5 << 20, "durable", &mut acknowledged);
    let load = Load::start([pair.a.socket(), pair.b.socket()], 4, 50);
    wait_until("the load runs", || load.progress() > 1000);
    pair.b.signal(Victim::Both, Signal::SIGKILL);
    assert!(pair.b.reap(PATIENCE));
    let files = segments(&pair.b);
    let file = files.last().expect("a segment with frames");
    damage(file, used_bytes(file));
    let before = load.progress();
    wait_until("the active goes on alone", || load.progress() > before + 50);
    pair.b.start(&[]);
    wait_until("the member answers", || pair.b.status().is_some());
    let mut events = String::new();
    wait_until(&format!("the damage is named, by one of {named:?}"), || {
        events = pair.b.get("/v1/events").map(|answer| answer.text()).unwrap_or_default();
        named.iter().any(|word| events.contains(word))
    });
    for line in events.lines().filter(|line| named.iter().any(|word| line.contains(word))).take(3) {
        println!("{line}");
    }
    pair.wait_in_sync();
    println!("{}", check_served(&pair, &load.stop()));
    holds(&pair.b, &acknowledged);
    let (code, out, err) = pair.a.command(&["verify", "--timeout", "20"]);
    assert_eq!(code, 0, "{out}{err}");
}

fn flip(file: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, at).unwrap();
    file.write_all_at(&bytes.map(|byte| byte ^ 0x10), at).unwrap();
}

// REQ: REP-026 SM-052
#[test]
fn a_journal_cut_inside_its_last_frame_is_fetched_again() {
    after_damage(
        |file, used| fs::File::options().write(true).open(file).unwrap().set_len(used - 20).unwrap(),
        &["half written", "damaged", "journal-torn"],
    );
}

// REQ: REP-026 SM-052
#[test]
fn bits_flipped_in_the_middle_of_a_journal_are_found_and_fetched_again() {
    after_damage(|file, used| flip(file, used / 3), &["journal-damaged"]);
}

/// Makes the next fdatasync of a worker fail, until dropped.
struct FailingDisk(Child);

impl FailingDisk {
    /// All from now on, as a failing disk does; `None`, said, where that cannot be done.
    fn under(member: &Member) -> Option<Self> {
        let worker = member.worker_pid()?.to_string();
        let mut command = Command::new("strace");
        // The journal's syncs are fdatasync; the control file is preallocated and written with O_DSYNC or synced likewise.
        command.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fdatasync",
            "-e",
            "inject=fdatasync:error=EIO:when=1+",
        ]);
        let child = command.args(["-p", &worker]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                println!("skipped: strace: {error}");
                return None;
            }
        };
        let traced = || {
            let status = fs::read_to_string(format!("/proc/{worker}/status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        };
        let start = Instant::now();
        while !traced() {
            if child.try_wait().is_ok_and(|ended| ended.is_some()) || start.elapsed() > Duration::from_secs(5) {
                println!("skipped: strace may not attach here");
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Some(Self(child))
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).map(Pid::from_raw);
        if let Ok(pid) = pid {
            // It detaches in order on SIGTERM.
            let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

fn plain() -> Options {
    Options { set: vec![("io.driver".into(), "plain".into())], ..Options::default() }
}

// REQ: SM-165
#[test]
fn an_active_whose_disk_fails_hands_over_to_its_backup() {
    let pair = Pair::start(&plain());
    pair.wait_in_sync();
    assert_eq!(pair.a.status().unwrap_or_default()["io"]["driver"], "plain");
    let load = Load::start([pair.a.socket(), pair.b.socket()], 2, 20);
    wait_until("the load runs", || load.progress() > 100);
    let Some(failing) = FailingDisk::under(&pair.a) else { return };
    let took = pair.b.wait_active();
    println!("handed over in {took:?}");
    assert!(!pair.a.is_active());
    let before = load.progress();
    wait_until("changes are acknowledged by the new active", || load.progress() > before + 50);
    drop(failing);
    pair.wait_in_sync();
    println!("{}", check_served(&pair, &load.stop()));
}

// REQ: SM-165
#[test]
fn an_active_whose_disk_fails_while_it_is_alone_refuses_writes_and_hands_over_as_soon_as_it_can() {
    let mut pair = Pair::start(&plain());
    pair.wait_in_sync();
    pair.b.stop();
    let put = |value: &str| {
        let body = format!(r#"{{"attributes":{{"A":["{value}"]}}}}"#);
        let time_out = Duration::from_secs(2);
        let answer =
            ringpair_tests::pair::request(&pair.a.socket(), "PUT", "/v1/ds/X?ack=local", body.as_bytes(), time_out);
        answer.map_or_else(|error| (0, error.to_string()), |answer| (answer.status, answer.text()))
    };
    wait_until("A is alone", || pair.a.status().is_some_and(|status| status["alone"] == true));
    assert_eq!(put("1").0, 200);
    let Some(failing) = FailingDisk::under(&pair.a) else { return };
    let (status, said) = put("2");
    assert_ne!(status, 200, "acknowledged though the sync failed: {said}");
    println!("first: {status} {said}");
    println!("{}", warned(&pair.a, &["storage-failed"]));
    let (status, said) = put("3");
    println!("then: {status} {said}");
    assert_eq!(status, 409, "{said}");
    assert!(said.contains("storage"), "it says why: {said}");
    assert!(pair.a.is_active(), "it stays");
    // As soon as a backup has everything, the role goes to it.
    pair.b.start(&[]);
    let took = pair.b.wait_active();
    println!("handed over {took:?} after the backup's start");
    drop(failing);
    pair.wait_in_sync();
    for member in pair.members() {
        let value = member.get("/v1/ds/X").unwrap().json()["attributes"]["A"][0].clone();
        assert!(value == "1" || value == "2", "{value} on {}", member.name());
    }
    assert_eq!(pair.digests()[0], pair.digests()[1]);
}

fn mirrored(through: Vec<String>) -> (Pair, PathBuf, PathBuf) {
    let pair = Pair::prepare(&Options { mirror: vec!["+/srv/app".into()], through, ..Options::default() });
    let (root, copy) = (pair.a.root().join("srv/app"), pair.b.root().join("srv/app"));
    (pair, root, copy)
}

fn synced(pair: &Pair) {
    pair.wait_in_sync();
    let (code, out, err) = pair.a.command(&["sync", "--timeout", "20"]);
    assert_eq!(code, 0, "{out}{err}");
}

/// What of the mirror's trouble `status` names: its own error and the warnings.
fn trouble(member: &Member) -> String {
    let status = member.status().unwrap_or_default();
    format!("{} {} {}", status["mirror"], status["warnings"], status["switch_blockers"])
}

/// Makes trouble on A's mirrored directory; `status` must name it, B's files must stay, and all be well after `mend`.
fn mirror_trouble(pair: &Pair, copy: &Path, make: impl FnOnce(), mend: impl FnOnce()) {
    assert_eq!(fs::read(copy.join("keep/file")).unwrap(), b"content");
    make();
    let (code, out, err) = pair.a.command(&["verify", "--timeout", "5"]);
    assert_eq!(code, 1, "verify sees nothing: {out}{err}");
    println!("verify meanwhile: {}{}", out.trim(), err.trim());
    wait_until("the status names the directory", || trouble(&pair.a).contains("srv/app"));
    println!("{}", trouble(&pair.a));
    assert_eq!(fs::read(copy.join("keep/file")).unwrap(), b"content", "deleted on the backup");
    mend();
    wait_until("the mirror is current again", || pair.a.status().unwrap_or_default()["mirror"]["state"] == "current");
    synced(pair);
    assert_eq!(fs::read(copy.join("keep/file")).unwrap(), b"content");
}

fn with_a_file(root: &Path) {
    fs::create_dir_all(root.join("keep")).unwrap();
    fs::write(root.join("keep/file"), b"content").unwrap();
}

// REQ: REP-064 OPS-030
#[test]
fn a_mirrored_directory_that_is_missing_deletes_nothing() {
    let (mut pair, root, copy) = mirrored(Vec::new());
    with_a_file(&root);
    pair.a.start(&[]);
    pair.b.start(&[]);
    synced(&pair);
    let aside = root.with_file_name("aside");
    mirror_trouble(&pair, &copy, || fs::rename(&root, &aside).unwrap(), || fs::rename(&aside, &root).unwrap());
}

// REQ: REP-064 OPS-030
#[test]
fn a_mirrored_directory_on_a_vanished_mount_deletes_nothing() {
    let (mut pair, root, copy) = mirrored(Vec::new());
    let place = pair.dir().join("disk");
    let mounted = SmallDisk::mount(&place, 1 << 20).and_then(|disk| Ok((disk.also_at(&root)?, disk)));
    let (view, disk) = match mounted {
        Ok(mounted) => mounted,
        Err(why) => return println!("skipped: {why}"),
    };
    with_a_file(&root);
    pair.a.start(&[]);
    pair.b.start(&[]);
    synced(&pair);
    let again = std::cell::Cell::new(None);
    mirror_trouble(&pair, &copy, || drop(view), || again.set(disk.also_at(&root).ok()));
}

// REQ: REP-064 OPS-030
#[test]
fn a_mirrored_directory_that_cannot_be_read_deletes_nothing() {
    // Root reads everything, unless it may not.
    let rights = "-dac_override,-dac_read_search";
    let through = ["setpriv", "--bounding-set", rights, "--inh-caps", rights].map(str::to_owned);
    let can = Command::new(&through[0]).args(&through[1..]).arg("true").output();
    if !can.is_ok_and(|output| output.status.success()) {
        return println!("skipped: setpriv cannot take rights away here");
    }
    let (mut pair, root, copy) = mirrored(through.to_vec());
    with_a_file(&root);
    pair.a.start(&[]);
    pair.b.start(&[]);
    synced(&pair);
    let mode = |mode| fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
    mirror_trouble(&pair, &copy, || mode(0o000), || mode(0o755));
}

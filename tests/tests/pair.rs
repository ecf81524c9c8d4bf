//! A real pair doing its main job: configuration and files replicated, switched over, taken over, rejoined.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Load, Member, Options, Pair, Victim, wait_until};

fn json(member: &Member, target: &str) -> serde_json::Value {
    member.get(target).map(|answer| answer.json()).unwrap_or_default()
}

fn mirrored() -> Options {
    Options { mirror: vec!["+/srv/app".into()], ..Options::default() }
}

/// Waits until both roots hold the same files, as `verify --deep` sees it.
fn synced(pair: &Pair, active: &Member) {
    let (code, out, err) = active.command(&["sync", "--timeout", "30"]);
    assert_eq!(code, 0, "sync: {out}{err}\n{}", pair.logs());
    let (code, out, err) = active.command(&["verify", "--deep", "--timeout", "30"]);
    assert_eq!(code, 0, "verify: {out}{err}\n{}", pair.logs());
}

// REQ: REP-001 REP-005 REP-020 REP-026 REP-027 PAR-004 REP-011
#[test]
fn changes_of_configuration_and_files_are_on_the_backup() {
    let pair = Pair::start(&mirrored());
    pair.wait_in_sync();
    let (active, backup) = (&pair.a, &pair.b);
    assert!(active.is_active(), "A is the intended first active");
    let (code, out, err) = active.command(&["ds", "put", "/CONFIG/Users/alice", "--class", "User", "Extension=101"]);
    assert_eq!(code, 0, "{out}{err}");
    let (code, _, err) = active.command(&["ds", "put", "/CONFIG/Users/alice", "Workgroups+=Sales", "--ack", "applied"]);
    assert_eq!(code, 0, "{err}");
    let object = json(backup, "/v1/ds/config/USERS/Alice");
    assert_eq!(object["attributes"]["Extension"][0], "101", "found whatever the case (REP-125): {object}");
    assert_eq!(object["attributes"]["Workgroups"][0], "Sales");
    let (code, _, err) = backup.command(&["ds", "put", "/CONFIG/Users/bob", "X=1"]);
    assert_eq!(code, 4, "a backup takes no writes");
    assert!(err.contains("host-a"), "and names the active: {err}");

    let root = active.root().join("srv/app");
    fs::create_dir_all(root.join("deep/er")).unwrap();
    fs::write(root.join("deep/er/file"), b"content").unwrap();
    fs::set_permissions(root.join("deep/er/file"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("deep/er/file", root.join("link")).unwrap();
    synced(&pair, active);
    let copy = backup.root().join("srv/app");
    assert_eq!(fs::read(copy.join("deep/er/file")).unwrap(), b"content");
    assert_eq!(fs::metadata(copy.join("deep/er/file")).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(fs::read_link(copy.join("link")).unwrap().to_str(), Some("deep/er/file"));
    fs::rename(root.join("deep"), root.join("moved")).unwrap();
    fs::remove_file(root.join("link")).unwrap();
    synced(&pair, active);
    assert_eq!(fs::read(copy.join("moved/er/file")).unwrap(), b"content");
    assert!(!copy.join("deep").exists() && fs::symlink_metadata(copy.join("link")).is_err());
    // What the backup's users change is found by the comparison.
    fs::write(copy.join("moved/er/file"), b"changed").unwrap();
    let (code, out, _) = active.command(&["verify", "--deep", "--timeout", "30"]);
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("moved/er/file"), "{out}");
}

// REQ: SM-085 SM-093 SM-165
#[test]
fn a_controlled_switch_moves_the_role_and_back() {
    let pair = Pair::start(&mirrored());
    pair.wait_in_sync();
    fs::write(pair.a.root().join("srv/app/before"), b"1").unwrap();
    let (code, out, err) = pair.a.command(&["switch", "--yes", "--timeout", "30"]);
    assert_eq!(code, 0, "{out}{err}\n{}", pair.logs());
    pair.b.wait_active();
    assert!(!pair.a.is_active());
    let before = fs::read(pair.b.root().join("srv/app/before"));
    assert_eq!(before.ok().as_deref(), Some(&b"1"[..]), "{}", pair.logs());
    pair.wait_in_sync();
    fs::write(pair.b.root().join("srv/app/after"), b"2").unwrap();
    synced(&pair, &pair.b);
    assert_eq!(fs::read(pair.a.root().join("srv/app/after")).unwrap(), b"2");
    // On the backup the command is forwarded.
    let (code, out, err) = pair.a.command(&["switch", "--yes", "--timeout", "30"]);
    assert_eq!(code, 0, "{out}{err}\n{}", pair.logs());
    pair.a.wait_active();
}

// REQ: SM-053 SM-094
#[test]
fn a_killed_active_is_replaced_and_comes_back_as_backup() {
    let mut pair = Pair::start(&mirrored());
    pair.wait_in_sync();
    let load = Load::start([pair.a.socket(), pair.b.socket()], 2, 20);
    wait_until("the load runs", || load.progress() > 100);
    assert!(pair.a.signal(Victim::Both, Signal::SIGKILL));
    pair.b.wait_active();
    let before = load.progress();
    wait_until("changes are acknowledged by the new active", || load.progress() > before + 50);
    assert!(pair.a.reap(Duration::from_secs(5)));
    pair.a.start(&[]);
    pair.wait_in_sync();
    let writes = load.stop();
    ringpair_tests::pair::check_served(&pair, &writes);
    synced(&pair, &pair.b);
}

// REQ: SM-161
#[test]
fn a_dead_worker_is_spoken_for_by_its_supervisor() {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    assert!(pair.a.signal(Victim::Worker, Signal::SIGKILL));
    let took = pair.b.wait_active();
    pair.wait_in_sync();
    let why = json(&pair.b, "/v1/status")["last_switch"]["reason"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("epoch released"), "a death notice, not a time-out ({took:?}): {why}");
}

// REQ: REP-310
#[test]
fn an_active_without_backup_says_that_it_is_alone() {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    pair.b.stop();
    let answer = pair.a.ask("PUT", "/v1/ds/X?ack=durable", br#"{"attributes":{"A":["1"]}}"#).unwrap();
    let json = answer.json();
    assert_eq!(
        (answer.status, json["level"].as_str(), json["alone"].as_bool()),
        (200, Some("local"), Some(true)),
        "{json}"
    );
    let (code, _, _) = pair.a.command(&["sync", "--timeout", "10"]);
    assert_eq!(code, 4, "there is nobody to be in sync with");
    pair.b.start(&[]);
    pair.wait_in_sync();
    assert_eq!(pair.digests()[0], pair.digests()[1]);
}

// REQ: REP-006
#[test]
fn a_long_import_keeps_the_active_in_office() {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let (before, worker) = (json(&pair.a, "/active"), pair.a.worker_pid());
    let load = Load::start([pair.a.socket(), pair.b.socket()], 1, 20);
    let file = pair.dir().join("objects.jsonl");
    let text: String = (0..20_000)
        .map(|n| format!("{{\"path\":\"/IMPORT/{}/{n}\",\"class\":\"File\",\"attributes\":{{\"Number\":[\"{n}\"],\"Text\":[\"{}\"]}}}}\n", n % 300, "x".repeat(100)))
        .collect();
    fs::write(&file, text).unwrap();
    let (code, out, err) = pair.a.command(&["ds", "import", &file.display().to_string(), "--ack", "applied"]);
    assert_eq!(code, 0, "{out}{err}\n{}", pair.logs());
    let after = json(&pair.a, "/active");
    assert_eq!(
        (&after["epoch"], pair.a.worker_pid()),
        (&before["epoch"], worker),
        "nobody lost office\n{}",
        pair.logs()
    );
    let writes = load.stop();
    assert!(writes.values().any(|written| written.durable > 0), "others' changes came through");
    pair.wait_in_sync();
    ringpair_tests::pair::check_served(&pair, &writes);
    assert_eq!(json(&pair.b, "/v1/ds/IMPORT?digest")["objects"], 20_301);
}

// REQ: REP-301
#[test]
fn records_and_files_are_replicated_on_every_path_of_the_driver() {
    let without = |names: &str| ("io.without".to_owned(), format!("[{names}]"));
    let paths = [
        vec![("io.driver".to_owned(), "\"plain\"".to_owned())],
        vec![without("\"zero_copy\"")],
        vec![without("\"defer_taskrun\"")],
        vec![without("\"registered_buffers\"")],
        vec![without("\"zero_copy\",\"defer_taskrun\",\"registered_buffers\",\"registered_files\"")],
        vec![("security.mode".to_owned(), "\"off\"".to_owned())],
    ];
    for set in paths {
        let pair = Pair::start(&Options { set: set.clone(), ..mirrored() });
        pair.wait_in_sync();
        let (active, backup) = (&pair.a, &pair.b);
        let status = active.status().unwrap();
        let (key, value) = &set[0];
        let features = status["io"]["features"].to_string();
        if key == "io.driver" {
            assert_eq!(status["io"]["driver"], "plain");
        } else if key == "io.without" {
            for name in value.trim_matches(['[', ']']).split(',').map(|name| name.trim_matches('"')) {
                assert!(!features.contains(name), "without {name}: {features}");
            }
        }
        for number in 0..20 {
            let target = format!("/v1/ds/CONFIG/Users/user{number}?ack=applied");
            let body =
                format!(r#"{{"class":"User","attributes":{{"Extension":["{}"]}}}}"#, number.to_string().repeat(900));
            assert_eq!(active.ask("PUT", &target, body.as_bytes()).unwrap().status, 200, "{set:?}");
        }
        let content: Vec<u8> = (0..5_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        let root = active.root().join("srv/app");
        fs::write(root.join("large"), &content).unwrap();
        fs::write(root.join("small"), "small").unwrap();
        synced(&pair, active);
        let copy = backup.root().join("srv/app");
        assert!(fs::read(copy.join("large")).unwrap() == content, "{set:?}");
        assert_eq!(fs::read(copy.join("small")).unwrap(), b"small");
        let [a, b] = pair.digests();
        assert!(a.is_some() && a == b, "{set:?}");
    }
}

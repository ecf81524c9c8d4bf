//! What is never done: a removal by accident, a step outside the roots, a word of a lower epoch taken.

use super::*;

#[test]
fn an_overflow_leads_to_a_comparison_that_is_counted() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    write(pair.a("f"), "1");
    pair.connect();
    pair.synced();
    // What the kernel lost: nobody tells of these.
    write(pair.a("lost/f"), "2");
    fs::remove_file(pair.a("f")).unwrap();
    while pair.source.watcher.as_mut().unwrap().read(&mut Vec::new()).unwrap() > 0 {}
    pair.source.handle_event(WatchEvent::Overflow);
    pair.synced();
    let status = pair.source.status();
    assert_eq!((status.overflows, status.rescans), (1, 1));
}

#[test]
fn a_root_that_vanished_or_was_emptied_removes_nothing() {
    for how in ["moved", "emptied", "missing", "replaced"] {
        let mut pair = Pair::new(roots("+/m/root", "", ""));
        write(pair.a("root/f"), "1");
        write(pair.a("root/d/g"), "1");
        if how == "missing" {
            fs::rename(pair.a("root"), pair.a("away")).unwrap();
            write(pair.b("root/f"), "1");
            write(pair.b("root/d/g"), "1");
        }
        pair.now += LOOK_EVERY;
        pair.connect();
        let problems = pair.sync();
        assert_eq!(problems.is_empty(), how != "missing", "{problems:?}");
        match how {
            "moved" => fs::rename(pair.a("root"), pair.a("away")).unwrap(),
            "emptied" => {
                fs::remove_dir_all(pair.a("root/d")).unwrap();
                fs::remove_file(pair.a("root/f")).unwrap();
            }
            "replaced" => {
                fs::rename(pair.a("root"), pair.a("away")).unwrap();
                fs::create_dir(pair.a("root")).unwrap();
            }
            _ => {}
        }
        for round in 0..3 {
            pair.now += LOOK_EVERY;
            let problems = pair.sync();
            assert_eq!(problems.len(), 1, "{how}: {problems:?}");
            assert!(pair.b("root/f").exists() && pair.b("root/d/g").exists(), "{how} {round}");
            let status = pair.source.status();
            assert_eq!(status.state, MirrorState::Failed, "{how}");
            assert!(status.problems[0].path == "/m/root" && status.problems[0].reason.contains("stay on the backup"));
            if round == 1 {
                pair.disconnect();
                pair.connect();
            }
        }
        fs::create_dir_all(pair.a("root")).unwrap();
        write(pair.a("root/h"), "there again");
        pair.now += LOOK_EVERY;
        pair.source.turn(pair.now);
        assert_eq!(pair.sync(), [], "{how}");
        assert!(pair.b("root/h").exists() && !pair.b("root/f").exists(), "{how}");
    }
}

// REQ: OPS-096
#[test]
fn a_link_swapped_in_on_the_backup_leads_nowhere() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    write(pair.a("d/f"), "1");
    write(pair.temp.path().join("outside/f"), "not yours");
    pair.connect();
    pair.synced();
    fs::rename(pair.b("d"), pair.temp.path().join("d")).unwrap();
    symlink(pair.temp.path().join("outside"), pair.b("d")).unwrap();
    write(pair.a("d/f"), "2");
    write(pair.a("d/g"), "3");
    assert_eq!(pair.sync(), []);
    assert_eq!(fs::read(pair.temp.path().join("outside/f")).unwrap(), b"not yours");
    assert!(!pair.temp.path().join("outside/g").exists());
    pair.source.rescan();
    pair.synced();
}

// REQ: OPS-096
#[test]
fn the_sink_refuses_what_lies_outside_and_a_lower_epoch() {
    let temp = tempfile::tempdir().unwrap();
    let mut sink = new_sink(temp.path(), 1, None);
    let at = |text: &str| MirrorPath::parse(text.as_bytes()).unwrap();
    let set = roots("+/m;/flat", "", "tmp");
    let hello = |epoch| MirrorMessage::Roots {
        epoch,
        session: 1,
        roots: set.roots().to_vec(),
        exceptions: vec![b"tmp".to_vec()],
        devices: false,
    };
    let meta = Meta { kind: Kind::Dir, mode: 0o755, uid: 0, gid: 0, size: 0, mtime_s: 1, mtime_ns: 0, rdev: 0 };
    let file = |kind, size| crate::mirror::Change::File { meta: Meta { kind, size, ..meta }, content: b"x".to_vec() };
    sink.handle_message(hello(EPOCH), Duration::ZERO).unwrap();
    assert!(matches!(sink.poll_message(), Some(MirrorMessage::RootsReady { .. })));
    use crate::mirror::Change;
    let device = Change::Special(Meta { kind: Kind::CharDevice, rdev: 259, ..meta });
    for (path, change) in [
        ("etc/x", file(Kind::File, 1)),
        ("m", Change::Remove),
        ("flat/d/x", file(Kind::File, 1)),
        ("flat/d", Change::Mkdir(meta)),
        ("m/x", file(Kind::File, 2)),
        ("m/x", file(Kind::Dir, 1)),
        ("m/x.tmp", file(Kind::File, 1)),
        ("m/.ringpair-1.tmp", file(Kind::File, 1)),
        ("m/dev", device),
        ("m/a", Change::Rename { to: at("etc/a") }),
        ("m", Change::Rename { to: at("m/a") }),
        ("m/none", Change::Meta(Meta { kind: Kind::File, ..meta })),
    ] {
        let items = vec![Item { generation: 7, path: at(path), change: change.clone() }];
        sink.handle_message(MirrorMessage::Items { epoch: EPOCH, items }, Duration::ZERO).unwrap();
        while sink.turn(Duration::ZERO).unwrap() {}
        let answer = sink.poll_message();
        assert!(matches!(answer, Some(MirrorMessage::Failed { generation: 7, .. })), "{path} {change:?}: {answer:?}");
    }
    assert_eq!(
        tree(temp.path()).keys().map(|k| k.escape_ascii().to_string()).collect::<Vec<_>>(),
        ["b", "b/flat", "b/m"]
    );
    let error = sink.handle_message(hello(Epoch(65_535)), Duration::ZERO).unwrap_err();
    assert!(matches!(error, MirrorError::LowerEpoch { .. }));
    assert_eq!(sink.poll_message(), Some(MirrorMessage::LowerEpoch { known: EPOCH }));
}

#[test]
fn forbidden_directories_are_never_roots() {
    let temp = tempfile::tempdir().unwrap();
    let mut base = base(temp.path().into());
    base.forbidden.push(temp.path().join("m/storage"));
    fs::create_dir_all(temp.path().join("m/storage")).unwrap();
    let options = SourceOptions { epoch: EPOCH, base, roots: roots("+/m", "", ""), force_inotify: false };
    let source = Source::new(options, pool());
    let status = source.status();
    assert_eq!(status.state, MirrorState::Failed);
    assert!(status.problems[0].reason.contains("storage"), "{status:?}");
}

/// Unmounts when dropped, whatever the test found.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: PathBuf) -> Option<Self> {
        let status = std::process::Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at).status();
        status.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

/// A file system below a root is mirrored and watched with it; when it vanishes, the backup keeps what it held.
#[test]
fn a_mount_below_a_root_is_watched_and_its_loss_removes_nothing() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    fs::create_dir_all(pair.a("data")).unwrap();
    write(pair.a("f"), "1");
    let Some(mounted) = Mounted::tmpfs(pair.a("data")) else {
        eprintln!("skipped: mounting is not permitted here");
        return;
    };
    write(pair.a("data/d/x"), "2");
    pair.connect();
    pair.synced();
    write(pair.a("data/d/y"), "3");
    pair.synced();
    // Marked, and gone before it was looked at.
    write(pair.a("data/d/y"), "4");
    drop(mounted);
    write(pair.a("g"), "5");
    let unreplicated = pair.sync();
    assert!(unreplicated.iter().any(|it| it.path.to_string() == "/m/data"), "{unreplicated:?}");
    let found = pair.verify();
    assert!(found.different.is_empty() && !found.problems.is_empty(), "{found:?}");
    pair.disconnect();
    pair.connect();
    pair.sync();
    assert!(pair.b("data/d/x").exists() && pair.b("data/d/y").exists() && pair.b("g").exists());
    let status = pair.source.status();
    assert_eq!(status.state, MirrorState::Failed);
    assert!(status.last_error.is_some_and(|text| text.contains("/m/data") && text.contains("Try")));
}

// REQ: REP-030
#[test]
fn what_is_left_out_of_the_mirror_stays_where_its_directory_is_removed() {
    for archives in [false, true] {
        let mut pair = Pair::new(roots("+/m", "", "keep"));
        if archives {
            let archive = crate::ds::archive::DivergenceArchive::open(pair.temp.path()).unwrap();
            let archive = crate::bulk::archive::file_archive(archive, EPOCH);
            pair.sink = new_sink(pair.temp.path(), 2, Some(archive));
        } else {
            pair.connect();
        }
        write(pair.a("f"), "1");
        for dir in ["d", "e"] {
            write(pair.a(&format!("{dir}/sub/x")), "1");
            write(pair.a(&format!("{dir}/y")), "1");
        }
        if archives {
            write(pair.b("d/sub/x"), "mine");
            fs::remove_dir_all(pair.a("d")).unwrap();
            fs::remove_dir_all(pair.a("e")).unwrap();
        } else {
            pair.synced();
        }
        write(pair.b("d/sub/mine.KEEP"), "local");
        write(pair.b("d/sub/.ringpair-1-1.tmp"), "a leftover");
        fs::create_dir_all(pair.b("e/mounted")).unwrap();
        let mounted = Mounted::tmpfs(pair.b("e/mounted"));
        write(pair.b("e/mounted/x"), "on another file system");
        if archives {
            pair.connect();
        } else {
            fs::remove_dir_all(pair.a("d")).unwrap();
            fs::remove_dir_all(pair.a("e")).unwrap();
        }
        assert_eq!(pair.sync(), []);
        assert_eq!(fs::read_dir(pair.b("d/sub")).unwrap().count(), 1, "{archives}");
        assert_eq!(fs::read(pair.b("d/sub/mine.KEEP")).unwrap(), b"local");
        assert!(!pair.b("d/y").exists() && !pair.b("e/y").exists() && !pair.b("e/sub").exists());
        assert_eq!(pair.b("e/mounted/x").exists(), mounted.is_some());
        let told = pair.sink.status().last_error.unwrap_or_default();
        assert!(told.contains("/m/") && told.contains("stays"), "{told}");
        // Nothing can take its place, and that is named; a directory goes on from what is there.
        write(pair.a("d"), "a file");
        let unreplicated = pair.sync();
        assert!(unreplicated.iter().any(|problem| problem.reason.contains("what is there stays")), "{unreplicated:?}");
        fs::remove_file(pair.a("d")).unwrap();
        write(pair.a("d/sub/new"), "2");
        for _ in 0..200 {
            pair.now += Duration::from_millis(100);
            pair.turn().unwrap();
        }
        assert_eq!(pair.sync(), []);
        assert_eq!(fs::read(pair.b("d/sub/new")).unwrap(), b"2");
        assert!(pair.b("d/sub/mine.KEEP").exists());
    }
}

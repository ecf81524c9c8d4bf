//! What happens to the active's files happens to the backup's, at once or after an absence.

use super::*;

// REQ: REP-020 REP-025 REP-026 REP-027 REP-028
#[test]
fn whatever_happens_to_a_tree_happens_on_the_backup() {
    for mut pair in variants() {
        write(pair.a("one"), "1");
        write(pair.a("d/e/two"), "22");
        write(pair.a("empty"), "");
        symlink("../nowhere", pair.a("link")).unwrap();
        pair.connect();
        pair.synced();
        assert_eq!(pair.source.status().state, MirrorState::Current);
        assert_eq!(pair.sink.status().state, MirrorState::Current);

        write(pair.a("new/deep/er/file"), "x");
        fs::OpenOptions::new().append(true).open(pair.a("one")).unwrap().write_all(b"more").unwrap();
        pair.synced();
        fs::rename(pair.a("one"), pair.a("uno")).unwrap();
        fs::rename(pair.a("new"), pair.a("d/old")).unwrap();
        pair.synced();
        fs::set_permissions(pair.a("uno"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::set_permissions(pair.a("d/e"), fs::Permissions::from_mode(0o1770)).unwrap();
        std::os::unix::fs::lchown(pair.a("link"), Some(12), Some(34)).unwrap();
        std::os::unix::fs::chown(pair.a("d/e/two"), Some(1234), Some(4321)).unwrap();
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH + Duration::new(5, 123_456_789));
        fs::File::open(pair.a("empty")).unwrap().set_times(times).unwrap();
        pair.synced();
        write(pair.a("aside"), "replaced");
        fs::rename(pair.a("aside"), pair.a("uno")).unwrap();
        fs::remove_file(pair.a("link")).unwrap();
        symlink("elsewhere", pair.a("link")).unwrap();
        fs::remove_file(pair.a("empty")).unwrap();
        fs::create_dir(pair.a("empty")).unwrap();
        pair.synced();
        fs::remove_dir_all(pair.a("d")).unwrap();
        fs::remove_dir(pair.a("empty")).unwrap();
        write(pair.a("empty"), "a file again");
        nix::unistd::mkfifo(&pair.a("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        pair.synced();
        let found = pair.verify();
        assert!(found.is_identical() && found.compared > 3, "{found:?}");
    }
}

// REQ: REP-020
#[test]
fn names_are_bytes_and_paths_may_be_long() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    let odd = |bytes: &[u8]| pair.temp.path().join("a/m").join(std::ffi::OsString::from_vec(bytes.to_vec()));
    for name in [&b"new\nline"[..], b"\xff\xfe", b" ", b"-rf", b"a\\b", &[b'n'; 255], b"*?", b"..."] {
        fs::write(odd(name), name).unwrap();
    }
    let mut deep = fs::File::open(pair.a("")).unwrap();
    for _ in 0..30 {
        let name = [b'd'; 200];
        nix::sys::stat::mkdirat(&deep, &name[..], nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        deep = nix::fcntl::openat(&deep, &name[..], flags, nix::sys::stat::Mode::empty()).unwrap().into();
    }
    pair.connect();
    assert_eq!(pair.sync(), []);
    let flags = nix::fcntl::OFlag::O_CREAT | nix::fcntl::OFlag::O_WRONLY;
    let file = nix::fcntl::openat(&deep, "far", flags, nix::sys::stat::Mode::S_IRWXU).unwrap();
    nix::unistd::write(&file, b"far down").unwrap();
    drop(file);
    assert_eq!(pair.sync(), []);
    let found = pair.verify();
    assert!(found.is_identical(), "{found:?}");
    assert_eq!(found.compared, 1 + 8 + 30 + 1);
    fs::rename(pair.a("*?"), pair.a("renamed")).unwrap();
    pair.source.set_roots(roots("+/m", "", ""));
    assert_eq!(pair.sync(), []);
    assert!(pair.b("renamed").exists() && !pair.b("*?").exists());
}

// REQ: REP-027 REP-030 REP-035 PAR-064
#[test]
fn lists_and_exceptions_decide_what_is_mirrored() {
    let mut pair = Pair::new(roots("/m;+/m/r;/m/flat", "+/init", "tmp;SWP"));
    write(pair.a("f"), "1");
    write(pair.a("not/f"), "1");
    write(pair.a("r/x/y"), "1");
    write(pair.a("r/x/y.TMP"), "1");
    write(pair.a("flat/g"), "1");
    write(pair.a("flat/no/g"), "1");
    write(pair.temp.path().join("a/init/i"), "1");
    write(pair.b("r/x/kept.tmp"), "the backup's own");
    write(pair.b("not/kept"), "the backup's own");
    pair.source.turn(pair.now + LOOK_EVERY);
    pair.connect();
    assert_eq!(pair.sync(), []);
    let there = |path: &str| pair.temp.path().join("b").join(path).exists();
    for path in ["m/f", "m/r/x/y", "m/flat/g", "init/i", "m/r/x/kept.tmp", "m/not/kept"] {
        assert!(there(path), "{path}");
    }
    for path in ["m/not/f", "m/r/x/y.TMP", "m/flat/no"] {
        assert!(!there(path), "{path}");
    }
    // REQ: REP-026
    write(pair.temp.path().join("a/init/later"), "1");
    write(pair.a("r/x/renamed"), "1");
    fs::rename(pair.a("r/x/renamed"), pair.a("r/x/renamed.swp")).unwrap();
    assert_eq!(pair.sync(), []);
    let there = |path: &str| pair.temp.path().join("b").join(path).exists();
    assert!(!there("init/later"), "initial directories are not watched");
    assert!(!there("m/r/x/renamed.swp") && !there("m/r/x/renamed"));
    pair.disconnect();
    pair.connect();
    assert_eq!(pair.sync(), []);
    assert!(!pair.temp.path().join("b/init/later").exists(), "the same backup");
    pair.disconnect();
    pair.sink = new_sink(pair.temp.path(), 2, None);
    pair.connect();
    assert_eq!(pair.sync(), []);
    assert!(pair.temp.path().join("b/init/later").exists(), "a backup that started anew");
}

// REQ: REP-031
#[test]
fn changed_lists_take_effect_at_once() {
    let mut pair = Pair::new(roots("+/m/one", "", ""));
    write(pair.a("one/f"), "1");
    write(pair.a("two/g"), "1");
    pair.connect();
    pair.source.turn(pair.now + LOOK_EVERY);
    assert_eq!(pair.sync(), []);
    assert!(pair.b("one/f").exists() && !pair.b("two").exists());
    pair.source.set_roots(roots("+/m/two", "", ""));
    assert_eq!(pair.sync(), []);
    assert!(pair.b("two/g").exists());
    write(pair.a("two/h"), "1");
    fs::remove_file(pair.a("one/f")).unwrap();
    assert_eq!(pair.sync(), []);
    assert!(pair.b("two/h").exists());
    assert!(pair.b("one/f").exists(), "the files of a removed entry stay");
}

// REQ: REP-025
#[test]
fn what_changed_without_a_backup_is_caught_up() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    for index in 0..200 {
        write(pair.a(&format!("d{}/f{index}", index % 7)), format!("{index}"));
    }
    pair.connect();
    pair.synced();
    assert_eq!((pair.source.status().files, pair.sink.status().files), (200, 200));
    let before = pair.wire_bytes;
    pair.disconnect();
    fs::remove_file(pair.a("d0/f0")).unwrap();
    fs::rename(pair.a("d1"), pair.a("d9")).unwrap();
    write(pair.a("d2/f2"), "other");
    write(pair.b("d3/stray"), "the backup's own");
    fs::set_permissions(pair.b("d3"), fs::Permissions::from_mode(0o700)).unwrap();
    pair.connect();
    pair.synced();
    assert!(pair.wire_bytes - before < before * 2);
    assert_eq!(pair.sink.status().files, 199);
}

// REQ: REP-049
#[test]
fn large_files_travel_in_pieces_and_appear_whole() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    write(pair.a("large"), &content);
    write(pair.a("small"), "1");
    pair.connect();
    let mut partial = false;
    for _ in 0..10_000 {
        pair.turn().unwrap();
        if let Ok(there) = fs::metadata(pair.b("large")) {
            assert_eq!(there.len(), content.len() as u64, "visible only when whole");
            break;
        }
        partial |= fs::read_dir(pair.b(""))
            .is_ok_and(|mut names| names.any(|name| name.unwrap().file_name().as_bytes().starts_with(b".ringpair-")));
    }
    assert!(partial);
    pair.synced();
    // Renamed, and removed, while it is under way.
    fs::OpenOptions::new().append(true).open(pair.a("large")).unwrap().write_all(b"x").unwrap();
    pair.turn().unwrap();
    fs::rename(pair.a("large"), pair.a("moved")).unwrap();
    pair.synced();
    fs::OpenOptions::new().append(true).open(pair.a("moved")).unwrap().write_all(b"y").unwrap();
    pair.turn().unwrap();
    fs::remove_file(pair.a("moved")).unwrap();
    pair.synced();
}

#[test]
fn a_renamed_directory_sends_no_content() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    for index in 0..500 {
        write(pair.a(&format!("dir/sub{}/f{index}", index % 5)), vec![7; 4096]);
    }
    write(pair.a("other/z"), "z");
    pair.connect();
    pair.synced();
    let before = pair.wire_bytes;
    let inode = fs::metadata(pair.b("dir/sub1/f1")).unwrap().ino();
    fs::rename(pair.a("dir"), pair.a("other/dir2")).unwrap();
    pair.synced();
    assert_eq!(fs::metadata(pair.b("other/dir2/sub1/f1")).unwrap().ino(), inode);
    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
    nix::fcntl::renameat2(
        nix::fcntl::AT_FDCWD,
        &pair.a("other/dir2/sub0"),
        nix::fcntl::AT_FDCWD,
        &pair.a("other/z"),
        flags,
    )
    .unwrap();
    pair.synced();
    assert!(pair.wire_bytes - before < 10 << 10, "{}", pair.wire_bytes - before);
}

#[test]
fn what_is_written_through_one_name_changes_all() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    write(pair.a("d/one"), "1");
    fs::hard_link(pair.a("d/one"), pair.a("two")).unwrap();
    pair.connect();
    pair.synced();
    fs::OpenOptions::new().append(true).open(pair.a("two")).unwrap().write_all(b"more").unwrap();
    pair.synced();
    fs::hard_link(pair.a("two"), pair.a("three")).unwrap();
    pair.synced();
    fs::OpenOptions::new().append(true).open(pair.a("d/one")).unwrap().write_all(b"again").unwrap();
    pair.synced();
    // A name that nobody knew of.
    write(pair.a("alone"), "1");
    pair.synced();
    fs::hard_link(pair.a("alone"), pair.a("d/second")).unwrap();
    pair.synced();
    fs::OpenOptions::new().append(true).open(pair.a("d/second")).unwrap().write_all(b"2").unwrap();
    pair.synced();
    // And one that is gone before anybody looks.
    write(pair.a("kept"), "1");
    pair.synced();
    fs::hard_link(pair.a("kept"), pair.a("brief")).unwrap();
    fs::OpenOptions::new().append(true).open(pair.a("brief")).unwrap().write_all(b"2").unwrap();
    fs::remove_file(pair.a("brief")).unwrap();
    pair.synced();
}

/// A backup that takes nothing while more changes than are kept: nothing grows, and nothing is lost.
#[test]
fn more_changes_than_are_kept_become_one_comparison() {
    // By inotify: no other test's changes are in its queue.
    let mut pair = Pair::at("/dev/shm", roots("+/m", "", ""), true);
    write(pair.a("f"), "1");
    pair.connect();
    pair.synced();
    let path = |text: String| MirrorPath::parse(text.as_bytes()).unwrap();
    let changed = |path| WatchEvent::Changed { path, unsettled: false, content: true, name: true, subtree: false };
    pair.source.handle_event(changed(path("m/f".into())));
    for number in 0..dirty::MAX_MARKS + 5000 {
        pair.source.handle_event(changed(path(format!("m/no/{number}"))));
    }
    pair.source.turn(pair.now);
    assert!(pair.source.dirty.len() <= dirty::MAX_MARKS, "{}", pair.source.dirty.len());
    // What no hint told of is found by the comparison.
    fs::write(pair.a("g"), "2").unwrap();
    while pair.source.watcher.as_mut().unwrap().read(&mut Vec::new()).unwrap() > 0 {}
    for number in 0..70_000 {
        let (from, to) = (path(format!("m/no/{number}")), path(format!("m/no/{}", number + 1)));
        pair.source.handle_event(WatchEvent::Renamed { from, to, is_dir: false });
    }
    for number in 0..20_000 {
        pair.source.compare_soon(path(format!("m/no/{number}")), true);
    }
    for _ in 0..3 {
        pair.source.turn(pair.now);
    }
    assert!(pair.source.moves.is_empty() && pair.source.to_compare.len() <= 1, "{}", pair.source.moves.len());
    assert_eq!(pair.source.status().rescans, 2, "one comparison for each time, not one a turn");
    pair.synced();
}

/// A file that changes faster than it can be compared is neither equal nor different; one that differs unnoticed is
/// different, whatever else goes on.
#[test]
fn verify_tells_what_changes_from_what_differs() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    for name in ["calm", "busy", "broken"] {
        write(pair.a(name), "1");
    }
    pair.connect();
    pair.synced();
    fs::write(pair.b("broken"), "damaged on the backup").unwrap();
    pair.source.verify(1, true);
    let mut writes = 0_u32;
    let found = loop {
        writes += 1;
        fs::write(pair.a("busy"), writes.to_string().repeat(1 + writes as usize % 7)).unwrap();
        pair.now += Duration::from_millis(1);
        pair.source.turn(pair.now);
        // Listings go through, contents do not: whatever is changed now stays on its way.
        while pair.source.poll_announcement().is_some() {}
        while let Some(message) = pair.source.poll_message() {
            if matches!(message, MirrorMessage::ManifestRequest { .. }) {
                pair.deliver(message).unwrap();
            }
        }
        pair.sink.turn(pair.now).unwrap();
        while let Some(message) = pair.sink.poll_message() {
            pair.source.handle_message(message, pair.now).unwrap();
        }
        match pair.source.poll_event() {
            Some(SourceEvent::Verified { differences, .. }) => break differences,
            Some(other) => panic!("{other:?}"),
            None => assert!(writes < 10_000, "it never ends"),
        }
    };
    let different: Vec<_> = found.different.iter().map(|it| it.path.to_string()).collect();
    assert_eq!(different, ["/m/broken"], "{found:?}");
    assert!(found.changing.iter().any(|path| path.to_string() == "/m/busy"), "{found:?}");
    assert!(!found.is_identical());
}

/// A file of several pieces, one of which is damaged on its way: it never gets its name, and is sent anew.
#[test]
fn a_damaged_piece_never_gets_a_name() {
    for bytes in [300_000, 6 << 20] {
        let mut pair = Pair::new(roots("+/m", "", ""));
        pair.connect();
        pair.synced();
        let content: Vec<u8> = (0..bytes).map(|at: u32| ((at * 13) >> 3) as u8).collect();
        fs::write(pair.a("large"), &content).unwrap();
        let (mut damaged, mut failed) = (false, false);
        while !failed {
            pair.now += Duration::from_millis(50);
            pair.source.turn(pair.now);
            while let Some(announcement) = pair.source.poll_announcement() {
                pair.deliver(announcement).unwrap();
            }
            while let Some(mut message) = pair.source.poll_message() {
                if let MirrorMessage::FileData { bytes, .. } = &mut message
                    && !std::mem::replace(&mut damaged, true)
                {
                    bytes[1000] ^= 1;
                }
                pair.deliver(message).unwrap();
            }
            pair.sink.turn(pair.now).unwrap();
            while let Some(message) = pair.sink.poll_message() {
                failed |= matches!(&message, MirrorMessage::Failed { reason, .. } if reason.contains("damaged"));
                pair.source.handle_message(message, pair.now).unwrap();
            }
            assert!(pair.now < Duration::from_secs(60), "the damage goes unnoticed");
        }
        assert!(!pair.b("large").exists());
        pair.synced();
        assert!(fs::read(pair.b("large")).unwrap() == content);
    }
}

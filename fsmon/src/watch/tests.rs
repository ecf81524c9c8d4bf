//! The same happenings, told by fanotify and by inotify.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use super::*;
use crate::scan::open_root;

fn watcher(dir: &Path, recursive: bool, inotify: bool) -> Option<Watcher> {
    let root = WatchRoot { path: MirrorPath::parse(b"m").unwrap(), dir: Arc::new(open_root(dir).unwrap()), recursive };
    let watcher = Watcher::new(vec![root], inotify).unwrap();
    if !inotify && watcher.kind() == WatchKind::Inotify {
        eprintln!("skipped: {}", watcher.why().unwrap_or_default());
        return None;
    }
    Some(watcher)
}

fn drain(watcher: &mut Watcher) -> Vec<WatchEvent> {
    let mut events = Vec::new();
    while watcher.read(&mut events).unwrap() > 0 {}
    events
}

fn changed(events: &[WatchEvent]) -> BTreeSet<String> {
    let path = |event: &WatchEvent| match event {
        WatchEvent::Changed { path, .. } => Some(path.to_string()),
        _ => None,
    };
    events.iter().filter_map(path).collect()
}

// REQ: REP-020 REP-027
#[test]
fn every_happening_is_told_by_both() {
    for (inotify, base) in [(false, "/var/tmp"), (false, "/dev/shm"), (true, "/var/tmp"), (true, "/dev/shm")] {
        let temp = tempfile::tempdir_in(base).unwrap();
        let root = temp.path().join("m");
        fs::create_dir_all(root.join("d/e")).unwrap();
        fs::write(root.join("f"), "1").unwrap();
        let Some(mut watcher) = watcher(&root, true, inotify) else { continue };
        assert_eq!(drain(&mut watcher), []);

        fs::write(root.join("d/new\nline"), "1").unwrap();
        fs::write(root.join(std::ffi::OsStr::from_bytes(b"d/\xff\xfe")), "1").unwrap();
        fs::set_permissions(root.join("f"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(root.join("d/made")).unwrap();
        fs::write(temp.path().join("outside"), "1").unwrap();
        fs::write(root.join(".ringpair-00.tmp"), "own").unwrap();
        let told = changed(&drain(&mut watcher));
        let expected = ["/m/d/made", "/m/d/new\\nline", "/m/d/\\xff\\xfe", "/m/f"];
        assert_eq!(told, expected.map(str::to_owned).into(), "inotify {inotify} in {base}");

        fs::rename(root.join("f"), root.join("d/made/g")).unwrap();
        fs::rename(root.join("d"), root.join("h")).unwrap();
        let at = |text: &str| MirrorPath::parse(text.as_bytes()).unwrap();
        assert_eq!(
            drain(&mut watcher),
            [
                WatchEvent::Renamed { from: at("m/f"), to: at("m/d/made/g"), is_dir: false },
                WatchEvent::Renamed { from: at("m/d"), to: at("m/h"), is_dir: true },
            ],
            "inotify {inotify} in {base}"
        );
        fs::write(root.join("h/made/g"), "2").unwrap();
        fs::remove_dir(root.join("h/e")).unwrap();
        assert_eq!(changed(&drain(&mut watcher)), ["/m/h/e", "/m/h/made/g"].map(str::to_owned).into());

        fs::rename(root.join("h"), temp.path().join("away")).unwrap();
        assert_eq!(changed(&drain(&mut watcher)), [String::from("/m/h")].into());
        fs::write(temp.path().join("away/made/g"), "3").unwrap();
        assert_eq!(drain(&mut watcher), [], "what left the mirror is not watched");
        fs::rename(temp.path().join("away"), root.join("back")).unwrap();
        let back = drain(&mut watcher);
        assert!(
            back.iter()
                .any(|event| matches!(event, WatchEvent::Changed { subtree: true, path, .. } if *path == at("m/back"))),
            "inotify {inotify}: {back:?}"
        );
        fs::write(root.join("back/made/g"), "4").unwrap();
        assert!(changed(&drain(&mut watcher)).contains("/m/back/made/g"));
    }
}

// REQ: REP-027
#[test]
fn a_flat_root_tells_only_of_files_directly_in_it() {
    for inotify in [false, true] {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("d")).unwrap();
        let Some(mut watcher) = watcher(temp.path(), false, inotify) else { continue };
        fs::write(temp.path().join("f"), "1").unwrap();
        fs::write(temp.path().join("d/g"), "1").unwrap();
        fs::create_dir(temp.path().join("e")).unwrap();
        assert_eq!(changed(&drain(&mut watcher)), [String::from("/m/f")].into(), "inotify {inotify}");
    }
}

#[test]
fn events_are_told_by_the_names_of_their_time() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    fs::write(root.join("a/b/c/f"), "1").unwrap();
    fs::create_dir(root.join("x")).unwrap();
    let Some(mut watcher) = watcher(root, true, false) else { return };
    fs::write(root.join("a/b/c/f"), "2").unwrap();
    fs::rename(root.join("a/b"), root.join("q")).unwrap();
    fs::rename(root.join("q/c/f"), root.join("a/f")).unwrap();
    fs::rename(root.join("a"), root.join("z")).unwrap();
    let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
    nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, &root.join("x"), nix::fcntl::AT_FDCWD, &root.join("z"), flags).unwrap();
    fs::write(root.join("x/f"), "3").unwrap();
    let at = |text: &str| MirrorPath::parse(text.as_bytes()).unwrap();
    let seen = drain(&mut watcher);
    let moves: Vec<_> = seen.iter().filter(|event| !matches!(event, WatchEvent::Changed { .. })).cloned().collect();
    assert_eq!(
        moves,
        [
            WatchEvent::Renamed { from: at("m/a/b"), to: at("m/q"), is_dir: true },
            WatchEvent::Renamed { from: at("m/q/c/f"), to: at("m/a/f"), is_dir: false },
            WatchEvent::Renamed { from: at("m/a"), to: at("m/z"), is_dir: true },
            WatchEvent::Exchanged { a: at("m/z"), b: at("m/x") },
        ]
    );
    assert_eq!(changed(&seen), ["/m/a/b/c/f", "/m/x/f"].map(str::to_owned).into());
}

//! A former active that comes back: what only it has is in an archive before it goes.

use super::*;
use crate::{bulk::archive::file_archive, ds::archive::DivergenceArchive};

/// An archive that holds against the disk what it is told.
struct Watched {
    host: PathBuf,
    /// Archived, not durable: still to be in its place.
    pending: Vec<(PathBuf, Vec<u8>)>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    kept: BTreeMap<String, Vec<u8>>,
    syncs: usize,
}

impl ArchiveFiles for Watched {
    fn archive(&mut self, path: &MirrorPath, _: &Meta, content: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        self.pending.push((self.host.join(std::ffi::OsStr::from_bytes(path.as_bytes())), bytes.clone()));
        self.seen.lock().unwrap().kept.insert(path.to_string(), bytes);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        for (place, content) in self.pending.drain(..) {
            assert!(place.is_symlink() || fs::read(&place).unwrap() == content, "{} went too soon", place.display());
        }
        self.seen.lock().unwrap().syncs += 1;
        Ok(())
    }

    fn finish(&mut self) {}
}

impl Pair {
    /// The backup is a former active: what it kept, and how often it made that durable.
    fn rejoins(&mut self) -> Arc<Mutex<Seen>> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let archive = Watched { host: self.temp.path().join("b"), pending: Vec::new(), seen: Arc::clone(&seen) };
        self.sink = new_sink(self.temp.path(), 2, Some(Box::new(archive)));
        self.connect();
        self.synced();
        let mut turns = 0;
        while self.sink.status().state != MirrorState::Current {
            self.turn().unwrap();
            turns += 1;
            assert!(turns < 1000, "{:?}", self.sink.status());
        }
        seen
    }
}

// REQ: REP-011
#[test]
fn a_rejoining_member_archives_what_it_loses() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    write(pair.a("same"), "same");
    write(pair.a("changed"), "theirs");
    write(pair.a("dir"), "a file here");
    write(pair.b("changed"), "mine");
    write(pair.b("only/mine"), "only mine");
    write(pair.b("dir/deep/er"), "in a directory");
    symlink("target", pair.b("link")).unwrap();
    let seen = pair.rejoins();
    write(pair.a("changed"), "again");
    pair.synced();
    let expected: BTreeMap<String, Vec<u8>> = [
        ("/m/changed", &b"mine"[..]),
        ("/m/dir/deep/er", b"in a directory"),
        ("/m/link", b"target"),
        ("/m/only/mine", b"only mine"),
    ]
    .map(|(path, content)| (path.to_owned(), content.to_vec()))
    .into();
    assert_eq!(seen.lock().unwrap().kept, expected);
}

#[test]
fn what_has_the_same_content_is_no_loss() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    let large = vec![7; 300_000];
    for (name, here, there) in [
        ("equal", &large[..], &large[..]),
        ("empty", b"", b""),
        ("differs at its end", b"abc", b"abd"),
        ("longer", b"abc", b"abcd"),
    ] {
        write(pair.a(name), here);
        write(pair.b(name), there);
        // Other times: they are sent, whatever they hold.
        fs::File::options().write(true).open(pair.b(name)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    symlink("target", pair.a("link")).unwrap();
    symlink("target", pair.b("link")).unwrap();
    let seen = pair.rejoins();
    let kept: Vec<String> = seen.lock().unwrap().kept.keys().cloned().collect();
    assert_eq!(kept, ["/m/differs at its end", "/m/longer"]);
}

#[test]
fn what_goes_together_is_made_durable_together() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    for n in 0..1500 {
        write(pair.b(&format!("mine{n}")), format!("{n}"));
        write(pair.b(&format!("dirs/{}/{n}", n / 10)), format!("in {n}"));
        write(pair.b(&format!("of its own {n}/x")), format!("alone {n}"));
        if n < 300 {
            write(pair.a(&format!("both{n}")), format!("theirs {n}"));
            write(pair.b(&format!("both{n}")), format!("mine {n}"));
        }
    }
    let seen = pair.rejoins();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.kept.len(), 4800);
    assert_eq!(seen.kept["/m/dirs/149/1499"], b"in 1499");
    assert!(seen.syncs <= 20, "{} syncs", seen.syncs);
}

#[test]
fn all_that_a_run_takes_away_is_in_one_archive() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    write(pair.a("theirs"), "1");
    for n in 0..700 {
        write(pair.b(&format!("mine{n}")), format!("/m/mine{n}"));
        write(pair.b(&format!("dir/{n}")), format!("/m/dir/{n}"));
    }
    fs::hard_link(pair.b("mine1"), pair.b("other name of mine1")).unwrap();
    let archive = DivergenceArchive::open(pair.temp.path()).unwrap();
    pair.sink = new_sink(pair.temp.path(), 2, Some(file_archive(archive.clone(), EPOCH)));
    pair.connect();
    pair.synced();
    let files = archive.files().unwrap();
    for file in &files {
        let (path, content) = (String::from_utf8_lossy(&file.path), fs::read_to_string(&file.stored).unwrap());
        assert!(content == format!("/{path}") || content == "/m/mine1", "{path}: {content}");
        assert!(file.id.starts_with("1-f"), "{}", file.id);
    }
    assert_eq!(files.len(), 1401);
    assert_eq!(fs::read_dir(pair.temp.path().join("divergence")).unwrap().count(), 1);
}

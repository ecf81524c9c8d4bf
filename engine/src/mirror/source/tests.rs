//! Source and sink connected in memory through the codec, over real directories.

mod broken;
mod follow;
mod guards;
mod random;
mod rejoin;

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use ringpair_fsmon::watch::WatchEvent;
use ringpair_wire::{
    codec::Codec,
    mirror::{Kind, Piece},
};

use super::*;
use crate::mirror::{ArchiveFiles, Meta, Sink, SinkOptions};

/// Two hosts in two directories, and the lanes between them.
struct Pair {
    temp: tempfile::TempDir,
    source: Source,
    sink: Sink,
    now: Duration,
    barrier: u64,
    verify: u64,
    /// Messages delivered until the connection is cut; `None`: never.
    cut_after: Option<u64>,
    delivered: u64,
    wire_bytes: u64,
}

const EPOCH: Epoch = Epoch(65_537);

fn roots(custom: &str, initial: &str, exceptions: &str) -> RootSet {
    RootSet::parse(custom, initial, exceptions, false).unwrap()
}

fn pool() -> BufPool {
    BufPool::new(2, 64 << 10).unwrap()
}

impl Source {
    /// What goes out next, read back.
    fn poll_message(&mut self) -> Option<MirrorMessage> {
        self.poll_encoded().map(|bytes| MirrorMessage::from_bytes(&bytes).unwrap())
    }
}

fn base(root: PathBuf) -> MirrorBase {
    MirrorBase { root, forbidden: Vec::new() }
}

impl Pair {
    fn new(set: RootSet) -> Self {
        Self::at("/var/tmp", set, false)
    }

    fn at(place: &str, set: RootSet, force_inotify: bool) -> Self {
        let temp = tempfile::tempdir_in(place).unwrap();
        for dir in ["a/m", "b"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        let options = SourceOptions { epoch: EPOCH, base: base(temp.path().join("a")), roots: set, force_inotify };
        let source = Source::new(options, pool());
        let sink = new_sink(temp.path(), 1, None);
        let now = Duration::from_secs(10);
        Self { temp, source, sink, now, barrier: 0, verify: 0, cut_after: None, delivered: 0, wire_bytes: 0 }
    }

    fn a(&self, path: &str) -> PathBuf {
        self.temp.path().join("a/m").join(path)
    }

    fn b(&self, path: &str) -> PathBuf {
        self.temp.path().join("b/m").join(path)
    }

    fn connect(&mut self) {
        self.source.connected(self.now);
    }

    fn disconnect(&mut self) {
        self.source.disconnected();
        self.sink.disconnected();
    }

    fn may_deliver(&mut self) -> bool {
        if self.cut_after.is_some_and(|cut| self.delivered >= cut) {
            return false;
        }
        self.delivered += 1;
        true
    }

    /// One turn of both sides; `None` once the connection is cut.
    fn turn(&mut self) -> Option<bool> {
        self.now += Duration::from_millis(1);
        let mut worked = self.source.turn(self.now);
        while let Some(message) = self.source.poll_announcement() {
            assert!(message.is_announcement());
            self.deliver(message)?;
            worked = true;
        }
        while self.sink.can_receive() {
            let Some(message) = self.source.poll_message() else { break };
            self.deliver(message)?;
            worked = true;
        }
        worked |= self.sink.turn(self.now).unwrap();
        while let Some(message) = self.sink.poll_message() {
            if !self.may_deliver() {
                return None;
            }
            let bytes = message.to_bytes();
            self.wire_bytes += bytes.len() as u64;
            self.source.handle_message(MirrorMessage::from_bytes(&bytes).unwrap(), self.now).unwrap();
            worked = true;
        }
        Some(worked)
    }

    fn deliver(&mut self, message: MirrorMessage) -> Option<()> {
        if !self.may_deliver() {
            return None;
        }
        let bytes = message.to_bytes();
        assert!(bytes.len() <= ringpair_wire::mirror::MAX_MESSAGE_BYTES);
        self.wire_bytes += bytes.len() as u64;
        match Piece::decode(&bytes).unwrap() {
            Some(piece) => self.sink.handle_piece(&piece, Shared::copy_from_slice(piece.bytes)).unwrap(),
            None => self.sink.handle_message(MirrorMessage::from_bytes(&bytes).unwrap(), self.now).unwrap(),
        }
        Some(())
    }

    /// Runs until an event comes; time passes by itself.
    fn event(&mut self) -> SourceEvent {
        for _ in 0..20_000 {
            self.turn().expect("not cut");
            if let Some(event) = self.source.poll_event() {
                return event;
            }
        }
        panic!("nothing came: {:?} {:?}", self.source.status(), self.sink.status());
    }

    fn sync(&mut self) -> Vec<Problem> {
        self.barrier += 1;
        self.source.barrier(self.barrier);
        match self.event() {
            SourceEvent::BarrierDone { id, unreplicated } if id == self.barrier => unreplicated,
            other => panic!("{other:?}"),
        }
    }

    fn synced(&mut self) {
        assert_eq!(self.sync(), []);
        assert_same(&self.temp.path().join("a"), &self.temp.path().join("b"));
    }

    fn verify(&mut self) -> MirrorDifferences {
        self.verify += 1;
        self.source.verify(self.verify, true);
        match self.event() {
            SourceEvent::Verified { differences, .. } => differences,
            other => panic!("{other:?}"),
        }
    }
}

fn new_sink(temp: &Path, instance: u64, archive: Option<Box<dyn ArchiveFiles>>) -> Sink {
    Sink::new(SinkOptions { base: base(temp.join("b")), epoch: Epoch(1), instance }, archive)
}

/// Everything that is kept of a tree.
fn tree(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut found = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_file() {
                blake3::hash(&fs::read(&path).unwrap()).to_string()
            } else if meta.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else {
                String::new()
            };
            let time = (meta.mtime(), meta.mtime_nsec());
            let shown = format!("{:o} {}:{} {time:?} {content}", meta.mode(), meta.uid(), meta.gid());
            found.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), shown);
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    found
}

fn assert_same(a: &Path, b: &Path) {
    let (a, b) = (tree(a), tree(b));
    for (path, shown) in &a {
        let name = path.escape_ascii();
        assert_eq!(Some(shown), b.get(path), "{name}: left the active's, right the backup's");
    }
    for path in b.keys() {
        assert!(a.contains_key(path), "{}: only on the backup", path.escape_ascii());
    }
}

fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn variants() -> impl Iterator<Item = Pair> {
    [("/var/tmp", false), ("/dev/shm", false), ("/var/tmp", true)].into_iter().filter_map(|(place, inotify)| {
        let mut pair = Pair::at(place, roots("+/m", "", ""), inotify);
        pair.source.turn(pair.now);
        let watch = pair.source.status().watch;
        if !inotify && !watch.starts_with("fanotify") {
            eprintln!("skipped in {place}: {watch}");
            return None;
        }
        Some(pair)
    })
}

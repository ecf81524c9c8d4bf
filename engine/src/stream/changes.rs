//! The newest changes in order, for those who watch: what has taken effect, released once it is durable.
//!
//! Always: a watcher gets every change behind its cursor once, in order, none before its whole transaction has reached
//! `durable` (or `local` while alone). Memory is bounded: the oldest changes give way, and a cursor behind them is
//! refused with the point from which one can go on. Never: a wait for a watcher; one that does not read loses its
//! stream and resumes from its cursor.

use std::{collections::VecDeque, ops::Range, sync::Arc};

use ringpair_wire::{
    codec::{Codec, Writer},
    ds::{Attribute, Change, DsPath, Object, Value},
    id::{AckLevel, Epoch, Seq, Version},
};
use tokio::sync::mpsc;

use crate::{
    api::backend::{Failure, WatchChange, WatchRequest, WatchWhat},
    ds::{Applied, Entry},
};

/// How many changes are kept at most, and of how many bytes.
const KEPT_CHANGES: usize = 10_000;
const KEPT_BYTES: usize = 16 << 20;
/// How many bytes of objects lie in one piece of memory: what comes is appended, what goes is let go of piece by piece.
const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug)]
struct Kept {
    version: Version,
    /// The last record of its transaction: with it the change takes effect.
    commit: Seq,
    what: Compact,
}

/// What changed, as small as it goes: an object in the tree takes a kilobyte, its bytes a tenth of that.
#[derive(Debug)]
enum Compact {
    /// The bytes of the object in the chunk of this number.
    Object(u64, Range<usize>),
    Removed(DsPath),
}

/// The bytes of the objects kept: chunks, numbered from the first that there ever was.
#[derive(Debug, Default)]
struct Chunks {
    chunks: VecDeque<Vec<u8>>,
    first: u64,
    bytes: usize,
}

impl Chunks {
    fn push(&mut self, object: &Object) -> Compact {
        let needed = bytes_of(object);
        if self.chunks.back().is_none_or(|chunk| chunk.capacity() - chunk.len() < needed) {
            let chunk = Vec::with_capacity(needed.max(CHUNK_BYTES));
            self.bytes += chunk.capacity();
            self.chunks.push_back(chunk);
        }
        let number = self.first + self.chunks.len() as u64 - 1;
        let Some(chunk) = self.chunks.back_mut() else { return Compact::Object(number, 0..0) };
        let (start, capacity) = (chunk.len(), chunk.capacity());
        object.encode(&mut Writer::new(chunk));
        // An estimate that was too low has made it grow.
        self.bytes += chunk.capacity() - capacity;
        Compact::Object(number, start..chunk.len())
    }

    fn get(&self, number: u64, range: &Range<usize>) -> Option<&[u8]> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.chunks.get(index)?.get(range.clone())
    }

    /// Lets go of all before the chunk of this number; the last stays.
    fn forget_before(&mut self, number: u64) {
        while self.first < number
            && self.chunks.len() > 1
            && let Some(gone) = self.chunks.pop_front()
        {
            self.bytes -= gone.capacity();
            self.first += 1;
        }
    }
}

#[derive(Debug)]
struct Watcher {
    path: DsPath,
    /// The next record it has not been given.
    next: Seq,
    changes: mpsc::Sender<WatchChange>,
}

/// The changes kept, and who watches.
#[derive(Debug)]
pub struct Changes {
    kept: VecDeque<Kept>,
    chunks: Chunks,
    /// The newest version that is not kept any more: a cursor must not lie before it.
    floor: Version,
    /// Each epoch behind the floor with its first record, in order: a cursor of a history that was left is recognised.
    epochs: Vec<(Epoch, Seq)>,
    watchers: Vec<Watcher>,
}

impl Changes {
    /// Keeps what comes after `floor`.
    #[must_use]
    pub fn new(floor: Version) -> Self {
        Self { kept: VecDeque::new(), chunks: Chunks::default(), floor, epochs: Vec::new(), watchers: Vec::new() }
    }

    /// Starts anew behind `floor` (the state was replaced): who watches has to begin again.
    pub fn restart(&mut self, floor: Version) {
        *self = Self::new(floor);
    }

    /// Notes that `epoch` begins with record `first`.
    pub fn note_epoch(&mut self, epoch: Epoch, first: Seq) {
        self.epochs.push((epoch, first));
    }

    /// Notes a change that took effect with record `commit`.
    pub fn note(&mut self, version: Version, commit: Seq, change: &Change, applied: &Applied) {
        match (change, &applied.object) {
            (_, Some(entry)) => self.note_object(version, commit, entry.object()),
            (Change::Put { path, .. } | Change::Remove { path }, None) => {
                self.keep(Kept { version, commit, what: Compact::Removed(path.clone()) });
            }
        }
    }

    /// Notes that an object became this with record `commit`.
    pub fn note_object(&mut self, version: Version, commit: Seq, object: &Object) {
        let what = self.chunks.push(object);
        self.keep(Kept { version, commit, what });
    }

    fn keep(&mut self, kept: Kept) {
        self.kept.push_back(kept);
        while (self.kept.len() > KEPT_CHANGES || self.chunks.bytes > KEPT_BYTES)
            && self.kept.len() > 1
            && let Some(gone) = self.kept.pop_front()
        {
            self.floor = gone.version;
            if let Some(Kept { what: Compact::Object(number, _), .. }) = self.kept.front() {
                self.chunks.forget_before(*number);
            }
        }
    }

    /// The changes from record `first` on took effect with record `commit`.
    pub fn commit(&mut self, first: Seq, commit: Seq) {
        let from = self.kept.partition_point(|kept| kept.version.seq < first);
        self.kept.range_mut(from..).for_each(|kept| kept.commit = commit);
    }

    /// The changes from record `first` on never took effect.
    pub fn forget_from(&mut self, first: Seq) {
        let from = self.kept.partition_point(|kept| kept.version.seq < first);
        self.kept.truncate(from);
    }

    /// Admits a watcher, or says from where it can go on.
    ///
    /// # Errors
    /// [`Failure::Refused`] with code `unknown-cursor`.
    pub fn admit(&self, from: Option<Version>, newest: Version) -> Result<Version, Failure> {
        let Some(from) = from else { return Ok(newest) };
        if (self.floor.seq..=newest.seq).contains(&from.seq) && self.epoch_at(from.seq) == from.epoch {
            return Ok(from);
        }
        // The last record that both histories have: within the cursor's own epoch, or before the first later one.
        let ended =
            self.epochs.iter().find(|(epoch, _)| *epoch > from.epoch).map_or(newest.seq.0, |(_, first)| first.0 - 1);
        let seq = Seq(ended.min(from.seq.0).max(self.floor.seq.0));
        let common = Version { epoch: self.epoch_at(seq), seq };
        Err(Failure::refused(
            "unknown-cursor",
            format!("cursor {from} is not in this history as far as it is kept. Try: export, then watch from {common}"),
        ))
    }

    fn epoch_at(&self, seq: Seq) -> Epoch {
        self.epochs.iter().rev().find(|(_, first)| *first <= seq).map_or(self.floor.epoch, |(epoch, _)| *epoch)
    }

    /// Takes a watcher in behind `from`, which was admitted.
    pub fn watch(&mut self, request: WatchRequest, newest: Version) {
        match self.admit(request.from, newest) {
            Err(refused) => drop(request.reply.send(Err(refused))),
            Ok(from) => {
                if request.reply.send(Ok(from)).is_ok() {
                    let next = Seq(from.seq.0 + 1);
                    self.watchers.push(Watcher { path: request.path, next, changes: request.changes });
                }
            }
        }
    }

    /// Gives watchers everything through `through`, which has reached `level`.
    pub fn release(&mut self, through: Seq, level: AckLevel, alone: bool) {
        if self.watchers.is_empty() {
            return;
        }
        let (kept, chunks) = (&self.kept, &self.chunks);
        self.watchers.retain_mut(|watcher| {
            let first = kept.partition_point(|kept| kept.version.seq < watcher.next);
            for kept in kept.range(first..).take_while(|kept| kept.commit <= through) {
                if let Some(what) = kept.what.expand(chunks)
                    && concerns(&what, &watcher.path)
                {
                    let change = WatchChange { version: kept.version, level, alone, what };
                    if watcher.changes.try_send(change).is_err() {
                        return false;
                    }
                }
                watcher.next = Seq(kept.version.seq.0 + 1);
            }
            !watcher.changes.is_closed()
        });
    }

    /// Whether anybody watches.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }
}

/// About how many bytes an object is encoded in: no fewer, but for lists and names of unusual length.
fn bytes_of(object: &Object) -> usize {
    let value = |value: &Value| match value {
        Value::Text(text) => 4 + text.len(),
        Value::Bytes(bytes) => 4 + bytes.len(),
        Value::Content { .. } => 42,
    };
    let attribute = |one: &Attribute| 5 + one.name.len() + one.values.iter().map(value).sum::<usize>();
    22 + object.path.as_str().len() + object.class.len() + object.attributes.iter().map(attribute).sum::<usize>()
}

impl Compact {
    fn expand(&self, chunks: &Chunks) -> Option<WatchWhat> {
        match self {
            // Its own bytes always come back.
            Self::Object(number, range) => {
                let object = Object::from_bytes(chunks.get(*number, range)?).ok()?;
                Some(WatchWhat::Object(Arc::new(Entry::new(object))))
            }
            Self::Removed(path) => Some(WatchWhat::Removed(path.clone())),
        }
    }
}

fn concerns(what: &WatchWhat, path: &DsPath) -> bool {
    match what {
        WatchWhat::Object(entry) => entry.path.starts_with(path),
        // A removal above the watched path takes it along.
        WatchWhat::Removed(removed) => removed.starts_with(path) || path.starts_with(removed),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const fn version(seq: u64) -> Version {
        Version { epoch: Epoch(5), seq: Seq(seq) }
    }

    fn note(changes: &mut Changes, seq: u64, commit: u64, path: &str) {
        let path = DsPath::parse(path).unwrap();
        let object =
            Object { path: path.clone(), class: "".into(), attributes: Default::default(), version: version(seq) };
        let applied = Applied { object: Some(Arc::new(Entry::new(object))), ..Applied::default() };
        let change = Change::Put { path, class: None, replace: false, attributes: Vec::new() };
        changes.note(version(seq), Seq(commit), &change, &applied);
    }

    fn watch(
        changes: &mut Changes,
        path: &str,
        from: u64,
        newest: u64,
    ) -> Result<mpsc::Receiver<WatchChange>, Failure> {
        let (sender, receiver) = mpsc::channel(16);
        let (reply, mut answer) = oneshot::channel();
        let path = DsPath::parse(path).unwrap();
        changes.watch(WatchRequest { path, from: Some(version(from)), changes: sender, reply }, version(newest));
        answer.try_recv().unwrap().map(|_| receiver)
    }

    fn seen(receiver: &mut mpsc::Receiver<WatchChange>) -> Vec<u64> {
        std::iter::from_fn(|| receiver.try_recv().ok()).map(|change| change.version.seq.0).collect()
    }

    #[test]
    fn a_watcher_gets_what_is_durable_once_and_whole_transactions_only() {
        let mut changes = Changes::new(version(0));
        note(&mut changes, 1, 1, "/a/x");
        note(&mut changes, 2, 3, "/a/y");
        note(&mut changes, 3, 3, "/b");
        let mut all = watch(&mut changes, "/", 0, 3).unwrap();
        let mut below = watch(&mut changes, "/a", 1, 3).unwrap();
        changes.release(Seq(2), AckLevel::Durable, false);
        assert_eq!(seen(&mut all), [1], "record 2 takes effect with record 3");
        changes.release(Seq(3), AckLevel::Durable, false);
        changes.release(Seq(3), AckLevel::Durable, false);
        assert_eq!(seen(&mut all), [2, 3]);
        assert_eq!(seen(&mut below), [2], "behind its cursor and below its path only");
    }

    #[test]
    fn what_is_not_committed_is_not_given_out_and_what_never_took_effect_is_gone() {
        let mut changes = Changes::new(version(0));
        note(&mut changes, 1, 1, "/a");
        note(&mut changes, 2, u64::MAX, "/b");
        note(&mut changes, 3, u64::MAX, "/c");
        let mut all = watch(&mut changes, "/", 0, 3).unwrap();
        changes.release(Seq(9), AckLevel::Durable, false);
        assert_eq!(seen(&mut all), [1]);
        changes.commit(Seq(2), Seq(3));
        changes.release(Seq(3), AckLevel::Durable, false);
        assert_eq!(seen(&mut all), [2, 3]);
        note(&mut changes, 4, 9, "/d");
        changes.forget_from(Seq(4));
        note(&mut changes, 4, 4, "/e");
        changes.release(Seq(9), AckLevel::Durable, false);
        assert_eq!(seen(&mut all), [4]);
    }

    #[test]
    fn an_unknown_cursor_is_refused_with_the_common_point() {
        let mut changes = Changes::new(version(10));
        note(&mut changes, 11, 11, "/a");
        note(&mut changes, 12, 12, "/a");
        assert!(watch(&mut changes, "/", 10, 12).is_ok());
        let Err(Failure::Refused { code, message, .. }) = watch(&mut changes, "/", 9, 12) else { panic!("taken") };
        assert_eq!(code, "unknown-cursor");
        assert!(message.contains("5:10"), "{message}");
        changes.note_epoch(Epoch(7), Seq(13));
        let newest = Version { epoch: Epoch(7), seq: Seq(13) };
        assert_eq!(changes.admit(Some(newest), newest), Ok(newest), "the record that begins an epoch is a cursor too");
        let left = Version { epoch: Epoch(5), seq: Seq(99) };
        let Err(Failure::Refused { message, .. }) = changes.admit(Some(left), newest) else { panic!("taken") };
        assert!(message.contains("5:12"), "{message}");
    }

    // REQ: REP-310
    #[test]
    fn what_is_kept_is_bounded_in_number_and_bytes_and_comes_back_whole() {
        let mut changes = Changes::new(version(0));
        let object = |seq: u64, count: usize, bytes: usize| {
            let value = |index| format!("{seq}-{index}-{}", "v".repeat(bytes));
            let attribute =
                |index| Attribute { name: format!("V{index}").into(), values: vec![Value::Text(value(index).into())] };
            let (path, attributes) = (DsPath::parse("/a").unwrap(), (0..count).map(attribute).collect());
            Object { path, class: "C".into(), attributes, version: version(seq) }
        };
        for seq in 1..=2 * KEPT_CHANGES as u64 {
            changes.note_object(version(seq), Seq(seq), &object(seq, 1, 10));
        }
        assert_eq!((changes.kept.len(), changes.floor), (KEPT_CHANGES, version(KEPT_CHANGES as u64)));
        let held: usize = changes.chunks.chunks.iter().map(Vec::capacity).sum();
        assert!(held == changes.chunks.bytes && held < 4 << 20, "{held}");
        let first = 2 * KEPT_CHANGES as u64 + 1;
        for seq in first..first + 100 {
            changes.note_object(version(seq), Seq(seq), &object(seq, 5, 60_000));
            let held: usize = changes.chunks.chunks.iter().map(Vec::capacity).sum();
            assert!(held == changes.chunks.bytes && held <= KEPT_BYTES + 2 * CHUNK_BYTES, "{held}");
        }
        let last = changes.kept.len() as u64;
        assert!((32..100).contains(&last), "{last}");
        for (kept, seq) in changes.kept.iter().zip(first + 100 - last..) {
            let Some(WatchWhat::Object(entry)) = kept.what.expand(&changes.chunks) else { panic!("gone") };
            assert_eq!(*entry.object(), object(seq, 5, 60_000));
        }
        changes.note(
            version(first + 100),
            Seq(first + 100),
            &Change::Remove { path: DsPath::root() },
            &Applied::default(),
        );
        assert!(matches!(changes.kept.back().unwrap().what, Compact::Removed(_)));
    }

    #[test]
    fn a_watcher_that_does_not_read_loses_its_stream() {
        let mut changes = Changes::new(version(0));
        let mut receiver = watch(&mut changes, "/", 0, 0).unwrap();
        for seq in 1..=20 {
            note(&mut changes, seq, seq, "/a");
        }
        changes.release(Seq(20), AckLevel::Durable, false);
        assert!(!changes.is_watched());
        assert_eq!(seen(&mut receiver).len(), 16, "what fitted stays readable; the cursor tells where to go on");
    }
}

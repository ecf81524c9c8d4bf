//! The state checkpoint: the tree's newest values with the position they belong to, written behind the served state.
//!
//! Always: a checkpoint is one transaction — after a crash the store holds the one before or this one, position and
//! count with it; what is read is checked value by value and as a whole. Never: on the path of a change, a checkpoint
//! beyond what the journal has synced (the caller says how far that is), or a guess about a damaged store: it is named,
//! set aside, and the state comes from the peer or the journal.

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use ringpair_wire::{
    checksum::checksum,
    codec::{Codec, Reader, Writer},
    ds::Object,
    id::{Position, Seq},
};

use crate::ds::{
    resync::KeptIndex,
    tree::{Difference, Entry, TreeSnapshot},
};

/// Memory that the store may use for pages, in bytes.
const CACHE_BYTES: usize = 8 << 20;
/// What the meta value begins with: changes with the layout.
const FORMAT: u64 = 1;

const OBJECTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("objects");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const META_KEY: &str = "checkpoint";

/// Why the store cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is damaged, or not what this version writes: rebuild from the peer ([`StateStore::set_aside`] first).
    #[error("state store {path} is damaged: {what}. Try: nothing, it is rebuilt from the peer or the journal")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Another process has it open.
    #[error("state store {0} is in use by another process. Try: ending that one, or another [storage] dir")]
    InUse(PathBuf),
    /// No room is left on the device.
    #[error("no room for the state store {0}. Try: making room there")]
    NoRoom(PathBuf),
    /// The system refused.
    #[error("state store {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A checkpoint that lies before the one stored, or whose thread has ended.
    #[error("checkpoint refused: {0}")]
    Refused(String),
}

/// What one checkpoint wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaveCost {
    /// Objects written.
    pub upserted: u64,
    /// Objects removed.
    pub removed: u64,
    /// How long it took.
    pub took: Duration,
}

/// Position, number of objects, and the sum of their checksums: what the objects table must agree with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Meta {
    position: Position,
    count: u64,
    sum: u64,
}

impl Meta {
    fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        let mut writer = Writer::new(&mut bytes);
        writer.u64(FORMAT);
        writer.position(self.position);
        writer.u64(self.count);
        writer.u64(self.sum);
        let sum = checksum(0, &bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let body = checked(0, bytes).ok_or("checksum of the checkpoint's head")?;
        let mut reader = Reader::new(body);
        let mut read = || {
            let format = reader.u64("format")?;
            let meta =
                Self { position: reader.position("position")?, count: reader.u64("count")?, sum: reader.u64("sum")? };
            Ok::<_, ringpair_wire::codec::DecodeError>((format, meta))
        };
        match read().map_err(|error| error.to_string())? {
            (FORMAT, meta) => Ok(meta),
            (format, _) => Err(format!("format {format}, expected {FORMAT}")),
        }
    }
}

/// What precedes the checksum, if it agrees.
fn checked(seed: u64, bytes: &[u8]) -> Option<&[u8]> {
    let (body, sum) = bytes.split_last_chunk::<8>()?;
    (checksum(seed, body) == u64::from_le_bytes(*sum)).then_some(body)
}

/// An object as stored, its checksum at the end; that is seeded with the key's, so that a value never passes for another's.
fn encode(entry: &Entry, bytes: &mut Vec<u8>) -> u64 {
    bytes.clear();
    entry.object().encode(&mut Writer::new(bytes));
    let sum = checksum(checksum(0, entry.path.key().as_bytes()), bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    sum
}

/// The store: one file, one owner.
#[derive(Debug)]
pub struct StateStore {
    path: PathBuf,
    /// Closed after an error, since redb refuses all work then; opened again by the next save.
    db: Option<Database>,
    stored: TreeSnapshot,
    meta: Meta,
    index: KeptIndex,
}

impl StateStore {
    /// Opens `<storage>/state.redb`, or creates it, and reads what it holds. About half a second for a million objects.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(storage: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(storage).map_err(|source| StoreError::Io { path: storage.to_owned(), source })?;
        let path = storage.join("state.redb");
        let (db, stored, meta) = guarded(&path, || {
            let db = open_db(&path)?;
            let (stored, meta) = load(&db, &path)?;
            Ok((db, stored, meta))
        })?;
        Ok(Self { path, db: Some(db), stored, meta, index: KeptIndex::default() })
    }

    /// Moves a damaged store out of the way (`state.redb.damaged`, replacing an earlier one), so that it can be opened
    /// anew, empty.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn set_aside(storage: &Path) -> Result<(), StoreError> {
        let path = storage.join("state.redb");
        let moved = fs::rename(&path, storage.join("state.redb.damaged"));
        let moved = moved.and_then(|()| fs::File::open(storage)?.sync_all());
        moved.map_err(|source| StoreError::Io { path, source })
    }

    /// The state stored, with its position: what the served tree starts from before the journal's tail is replayed.
    #[must_use]
    pub const fn stored(&self) -> &TreeSnapshot {
        &self.stored
    }

    /// The index by path hash that follows what is stored, once a [`Checkpointer`] runs.
    #[must_use]
    pub const fn index(&self) -> &KeptIndex {
        &self.index
    }

    /// Makes the store hold `state`, whatever that is: the differences to what it holds and the position, in one step.
    /// Serves checkpoints and whole states of a resynchronization alike. On an error the store holds what it held.
    ///
    /// # Errors
    /// [`StoreError`]; it can be tried again.
    pub fn save(&mut self, state: &TreeSnapshot) -> Result<SaveCost, StoreError> {
        let began = Instant::now();
        let db = match self.db.take() {
            Some(db) => db,
            None => guarded(&self.path, || open_db(&self.path))?,
        };
        let (meta, mut cost) = guarded(&self.path, || write(&db, &self.path, &self.stored, self.meta, state))?;
        self.db = Some(db);
        self.meta = meta;
        self.stored = state.clone();
        cost.took = began.elapsed();
        Ok(cost)
    }
}

/// Runs store code; a panic inside it (redb asserts where a file contradicts itself) is damage like any other.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(StoreError::Damaged { path: path.to_owned(), what: "the file contradicts itself".into() })
    })
}

fn failed(path: &Path) -> impl Fn(redb::Error) -> StoreError {
    move |error| {
        let path = path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen => StoreError::InUse(path),
            redb::Error::Io(source) => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::NoRoom(path),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    StoreError::Damaged { path, what: source.to_string() }
                }
                _ => StoreError::Io { path, source },
            },
            other => StoreError::Damaged { path, what: other.to_string() },
        }
    }
}

fn open_db(path: &Path) -> Result<Database, StoreError> {
    let fail = failed(path);
    Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|error| fail(error.into()))
}

fn load(db: &Database, path: &Path) -> Result<(TreeSnapshot, Meta), StoreError> {
    let fail = failed(path);
    let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), what };
    let read = db.begin_read().map_err(|error| fail(error.into()))?;
    let meta = match read.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((TreeSnapshot::default(), Meta::default())),
        Err(error) => return Err(fail(error.into())),
        Ok(table) => match table.get(META_KEY).map_err(|error| fail(error.into()))? {
            Some(bytes) => Meta::from_bytes(bytes.value()).map_err(damaged)?,
            None => return Err(damaged("the checkpoint's head is missing".into())),
        },
    };
    let table = read.open_table(OBJECTS).map_err(|error| fail(error.into()))?;
    let (mut objects, mut sum) = (Vec::new(), 0_u64);
    for row in table.iter().map_err(|error| fail(error.into()))? {
        let (key, value) = row.map_err(|error| fail(error.into()))?;
        let (key, value) = (key.value(), value.value());
        let body =
            checked(checksum(0, key.as_bytes()), value).ok_or_else(|| damaged(format!("checksum of {key:?}")))?;
        let object = Object::from_bytes(body).map_err(|error| damaged(format!("{key:?}: {error}")))?;
        if object.path.key() != key {
            return Err(damaged(format!("{key:?} holds {}", object.path)));
        }
        sum = sum.wrapping_add(tail(value));
        objects.push(object);
    }
    if (objects.len() as u64, sum) != (meta.count, meta.sum) {
        return Err(damaged(format!("{} objects, expected {}, or others than those", objects.len(), meta.count)));
    }
    Ok((TreeSnapshot::from_objects(objects, meta.position), meta))
}

/// The checksum at the end of a stored value.
fn tail(value: &[u8]) -> u64 {
    value.last_chunk::<8>().map_or(0, |tail| u64::from_le_bytes(*tail))
}

fn write(
    db: &Database,
    path: &Path,
    stored: &TreeSnapshot,
    mut meta: Meta,
    state: &TreeSnapshot,
) -> Result<(Meta, SaveCost), StoreError> {
    let fail = failed(path);
    let mut cost = SaveCost::default();
    let mut transaction = db.begin_write().map_err(|error| fail(error.into()))?;
    // One look at what a crash left suffices: no repair that reads everything.
    transaction.set_quick_repair(true);
    {
        let mut objects = transaction.open_table(OBJECTS).map_err(|error| fail(error.into()))?;
        let mut bytes = Vec::new();
        for difference in state.differences(stored) {
            let old = match difference {
                Difference::Added(new) | Difference::Changed { new, .. } => {
                    meta.sum = meta.sum.wrapping_add(encode(new, &mut bytes));
                    cost.upserted += 1;
                    objects.insert(new.path.key(), &bytes[..]).map_err(|error| fail(error.into()))?
                }
                Difference::Removed(old) => {
                    cost.removed += 1;
                    objects.remove(old.path.key()).map_err(|error| fail(error.into()))?
                }
            };
            meta.sum = meta.sum.wrapping_sub(old.map_or(0, |old| tail(old.value())));
        }
        meta.count = state.len() as u64;
        meta.position = state.position();
        let mut head = transaction.open_table(META).map_err(|error| fail(error.into()))?;
        head.insert(META_KEY, &meta.to_bytes()[..]).map_err(|error| fail(error.into()))?;
    }
    transaction.commit().map_err(|error| fail(error.into()))?;
    Ok((meta, cost))
}

/// What the checkpointer did.
#[derive(Debug)]
pub enum Checkpoint {
    /// The store holds a state of this position now: journal segments before it are not needed for the tree.
    Saved(Position, SaveCost),
    /// A whole state of a resynchronization has been stored ([`Checkpointer::replace`]).
    Replaced(Position, SaveCost),
    /// It failed; the store holds what it held. A replacement is tried again only when it is given again.
    Failed {
        /// Whether it was a replacement.
        replacing: bool,
        /// Why.
        error: StoreError,
    },
}

#[derive(Default)]
struct Mailbox {
    /// The newest state offered; one that was not begun gives way to a newer one.
    offered: Option<TreeSnapshot>,
    replacement: Option<TreeSnapshot>,
    durable: Seq,
    saved: Position,
    stop: bool,
}

struct Shared {
    mailbox: Mutex<Mailbox>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes checkpoints on a thread of its own. At most one state waits, the newest.
pub struct Checkpointer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread; `report` is called on it after each attempt (send and wake, no more).
    ///
    /// # Errors
    /// [`StoreError::Refused`] when no thread can be started.
    pub fn start(store: StateStore, report: impl Fn(Checkpoint) + Send + 'static) -> Result<Self, StoreError> {
        let saved = store.stored().position();
        let mailbox = Mutex::new(Mailbox { saved, durable: saved.seq, ..Mailbox::default() });
        let shared = Arc::new(Shared { mailbox, changed: Condvar::new() });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("checkpoint".into()).spawn(move || run(store, &shared, &report))
        };
        let thread = thread.map_err(|error| StoreError::Refused(format!("no thread: {error}")))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Offers the state for the next checkpoint; taken once the journal is synced up to its position. Never waits.
    /// False: it is not newer than what is stored.
    pub fn offer(&self, state: TreeSnapshot) -> bool {
        let mut mailbox = self.shared.lock();
        if state.position().seq <= mailbox.saved.seq {
            return false;
        }
        let old = mailbox.offered.replace(state);
        drop(mailbox);
        drop(old);
        self.shared.changed.notify_one();
        true
    }

    /// Says how far the journal is synced. Never waits.
    pub fn durable(&self, seq: Seq) {
        let mut mailbox = self.shared.lock();
        mailbox.durable = mailbox.durable.max(seq);
        let ready = mailbox.offered.as_ref().is_some_and(|state| state.position().seq <= seq);
        drop(mailbox);
        if ready {
            self.shared.changed.notify_one();
        }
    }

    /// Stores a whole state of a resynchronization in one step, whatever its position; states offered before are void.
    /// The report says when it is done.
    pub fn replace(&self, state: TreeSnapshot) {
        let mut mailbox = self.shared.lock();
        mailbox.offered = None;
        mailbox.durable = state.position().seq;
        mailbox.replacement = Some(state);
        drop(mailbox);
        self.shared.changed.notify_one();
    }

    /// The position stored.
    #[must_use]
    pub fn saved(&self) -> Position {
        self.shared.lock().saved
    }

    /// Whether a state waits or is being written.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        let mailbox = self.shared.lock();
        mailbox.offered.is_some() || mailbox.replacement.is_some()
    }
}

impl Drop for Checkpointer {
    /// Ends the thread after the transaction under way; what waits is left to the journal.
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It catches its own panics; there is nothing to report to from here.
            let _ = thread.join();
        }
    }
}

fn run(mut store: StateStore, shared: &Shared, report: &dyn Fn(Checkpoint)) {
    store.index.begin(&store.stored);
    loop {
        let (state, replacing) = {
            let mut mailbox = shared.lock();
            loop {
                if mailbox.stop {
                    return;
                }
                if let Some(state) = mailbox.replacement.take() {
                    break (state, true);
                }
                let durable = mailbox.durable;
                if let Some(state) = mailbox.offered.take_if(|state| state.position().seq <= durable) {
                    break (state, false);
                }
                mailbox = shared.changed.wait(mailbox).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let position = state.position();
        let outcome = match store.save(&state) {
            Ok(cost) => {
                shared.lock().saved = position;
                if replacing { Checkpoint::Replaced(position, cost) } else { Checkpoint::Saved(position, cost) }
            }
            Err(error) => Checkpoint::Failed { replacing, error },
        };
        drop(state);
        report(outcome);
        // Behind the report: a resynchronization waits for that.
        store.index.follow(&store.stored);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use proptest::prelude::*;
    use ringpair_wire::ds::Change;

    use super::*;
    use crate::ds::testing::{any_changes, apply_all, path, position, put, tree, version};

    fn equal(a: &TreeSnapshot, b: &TreeSnapshot) -> bool {
        a.differences(b).next().is_none() && a.position() == b.position()
    }

    #[test]
    fn a_checkpoint_is_read_back_with_its_position() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = tree(&["/a/b x=1", "/c y=2"]);
        let mut store = StateStore::open(dir.path()).unwrap();
        assert!(store.stored().is_empty() && store.stored().position() == Position::default());
        let cost = store.save(&state).unwrap();
        assert_eq!((cost.upserted, cost.removed), (3, 0));
        state.apply(&put("/a/b x=2"), version(3));
        state.apply(&Change::Remove { path: path("/c") }, version(4));
        state.set_position(position(4));
        let cost = store.save(&state).unwrap();
        assert_eq!((cost.upserted, cost.removed), (1, 1), "what did not change is not written");
        assert!(matches!(StateStore::open(dir.path()), Err(StoreError::InUse(_))));
        drop(store);
        assert!(equal(StateStore::open(dir.path()).unwrap().stored(), &state));
    }

    #[test]
    fn damage_is_named_never_served() {
        let dir = tempfile::tempdir().unwrap();
        let mut state = TreeSnapshot::default();
        for n in 0..500 {
            state.apply(&put(&format!("/objects/n{n} value=some-text-{n}")), version(n + 1));
        }
        StateStore::open(dir.path()).unwrap().save(&state).unwrap();
        let file = dir.path().join("state.redb");
        let sound = fs::read(&file).unwrap();
        let mut served = 0;
        for at in (0..sound.len()).step_by(sound.len() / 97) {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            fs::write(&file, &bytes).unwrap();
            match StateStore::open(dir.path()) {
                Ok(store) => {
                    let stored = store.stored();
                    assert!(stored.is_empty() || stored.differences(&state).next().is_none(), "at {at}");
                    served += 1;
                }
                Err(StoreError::Damaged { .. }) => {}
                Err(other) => panic!("at {at}: {other}"),
            }
        }
        assert!(served < 97, "some damage must be seen");
        for len in [0, 1, 100, sound.len() / 2, sound.len() - 1] {
            fs::write(&file, &sound[..len]).unwrap();
            if let Ok(store) = StateStore::open(dir.path()) {
                assert!(
                    store.stored().is_empty() || store.stored().differences(&state).next().is_none(),
                    "cut at {len}"
                );
            }
        }
        fs::write(&file, b"not a store at all, but long enough to be looked at").unwrap();
        assert!(matches!(StateStore::open(dir.path()), Err(StoreError::Damaged { .. })));
        StateStore::set_aside(dir.path()).unwrap();
        assert!(StateStore::open(dir.path()).unwrap().stored().is_empty());
    }

    fn wait(reports: &mpsc::Receiver<Checkpoint>) -> Checkpoint {
        reports.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn the_checkpointer_stays_behind_the_synced_journal_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (send, reports) = mpsc::channel();
        let store = StateStore::open(dir.path()).unwrap();
        let checkpointer = Checkpointer::start(store, move |report| drop(send.send(report))).unwrap();
        let early = tree(&["/a x=1"]);
        let late = tree(&["/a x=1", "/b x=1", "/c x=1"]);
        assert!(checkpointer.offer(late.clone()));
        checkpointer.durable(Seq(2));
        assert!(reports.try_recv().is_err() && checkpointer.is_pending(), "the journal is not synced that far");
        checkpointer.durable(Seq(3));
        assert!(matches!(wait(&reports), Checkpoint::Saved(at, cost) if at == position(3) && cost.upserted == 3));
        assert!(!checkpointer.offer(early.clone()), "not newer than what is stored");
        checkpointer.replace(early.clone());
        assert!(matches!(wait(&reports), Checkpoint::Replaced(at, cost) if at == position(1) && cost.removed == 2));
        assert_eq!(checkpointer.saved(), position(1));
        drop(checkpointer);
        assert!(equal(StateStore::open(dir.path()).unwrap().stored(), &early));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn any_two_states_follow_each_other(a in any_changes(30), b in any_changes(30)) {
            let dir = tempfile::tempdir().unwrap();
            let (mut first, mut second) = (TreeSnapshot::default(), TreeSnapshot::default());
            apply_all(&mut first, &a, 1);
            apply_all(&mut second, &b, 500);
            let mut store = StateStore::open(dir.path()).unwrap();
            store.save(&first).unwrap();
            store.save(&second).unwrap();
            drop(store);
            prop_assert!(equal(StateStore::open(dir.path()).unwrap().stored(), &second));
        }
    }
}

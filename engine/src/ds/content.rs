//! The content store: values of more than 64 KiB, each once, in a file named by its blake3 digest.
//!
//! Always: a file under its final name is whole, synced, and what its name says (written aside, synced, renamed, the
//! directory synced); reading checks it again, and what is found damaged goes and is named. Files that do not belong are
//! left alone. Never: a value readable half, a receiver that allocates for more than one chunk, more than [`MAX_PARTIAL`]
//! unfinished contents, or a removal of what was stored for a change that is still to be made.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ringpair_wire::ds::{CONTENT_FROM_BYTES, ContentId, MAX_VALUE_BYTES, Value};

/// The greatest number of contents being received at once.
pub const MAX_PARTIAL: usize = 64;
/// How long a value may lie stored before the change that refers to it is made (an upload, an import being parsed).
const UNCLAIMED_FOR: Duration = Duration::from_secs(3600);
/// How many contents one collection removes at most; the next goes on.
const COLLECTED_AT_ONCE: u64 = 10_000;
/// How much is read at once where a content is checked, in bytes.
const BLOCK_BYTES: usize = 1 << 20;

/// Why a content cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The system refused.
    #[error("content {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No room is left on the device (ENOSPC, EDQUOT).
    #[error("no room for content in {0}. Try: making room there")]
    NoRoom(PathBuf),
    /// The content is not stored here.
    #[error("content {0} is not stored here")]
    Missing(ContentId),
    /// The bytes are not what the name says.
    #[error("content {0} is damaged: its bytes have another digest")]
    Damaged(ContentId),
    /// A chunk starts beyond what has been received, or goes beyond the announced length.
    #[error("content {id}: chunk at {offset} of {bytes} bytes does not fit: {received} of {len} bytes received")]
    Chunk {
        /// Which content.
        id: ContentId,
        /// Where the chunk starts.
        offset: u64,
        /// How long it is.
        bytes: usize,
        /// How much there is already.
        received: u64,
        /// How long the content is.
        len: u64,
    },
    /// Longer than a value may be.
    #[error("content {0} of {1} bytes is longer than {MAX_VALUE_BYTES}")]
    TooLong(ContentId, u64),
    /// [`MAX_PARTIAL`] contents are being received already.
    #[error("{MAX_PARTIAL} contents are being received already")]
    TooMany,
}

impl ContentError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoRoom(path.to_owned()),
            _ => Self::Io { what, path: path.to_owned(), source },
        }
    }
}

/// The store. Cheap to clone; usable on any thread. Its methods block on the disk: not for the stream thread.
#[derive(Clone, Debug)]
pub struct ContentStore {
    dir: Arc<PathBuf>,
    next_temporary: Arc<AtomicU64>,
    ledger: Arc<Mutex<Ledger>>,
}

/// What must not be collected though nothing recorded refers to it yet.
#[derive(Debug, Default)]
struct Ledger {
    /// Stored for changes that are not made yet: how many, and since when.
    unclaimed: HashMap<ContentId, (u32, Instant)>,
    /// Referred to since the references of the last collection were gathered.
    held: HashSet<ContentId>,
    /// Found damaged, removed, and not told yet.
    damaged: Vec<ContentId>,
}

impl Ledger {
    fn spares(&self, id: &ContentId) -> bool {
        self.held.contains(id) || self.unclaimed.get(id).is_some_and(|(_, since)| since.elapsed() < UNCLAIMED_FOR)
    }

    /// A change refers to it, or the value was not stored after all.
    fn claim(&mut self, id: &ContentId) {
        if let Some((count, _)) = self.unclaimed.get_mut(id) {
            *count -= 1;
            if *count == 0 {
                self.unclaimed.remove(id);
            }
        }
    }
}

impl ContentStore {
    /// Opens `<storage>/content`, creating it, and removes what an earlier process left half written by [`put`]
    /// (partly received contents stay, to be resumed).
    ///
    /// # Errors
    /// [`ContentError::Io`], [`ContentError::NoRoom`].
    ///
    /// [`put`]: Self::put
    pub fn open(storage: &Path) -> Result<Self, ContentError> {
        let dir = storage.join("content");
        for part in ["", "partial", "temporary"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(ContentError::io("creating", &path))?;
        }
        let temporary = dir.join("temporary");
        for entry in fs::read_dir(&temporary).map_err(ContentError::io("listing", &temporary))?.flatten() {
            let name = entry.file_name();
            if ["put-", "gone-"].iter().any(|begin| name.to_string_lossy().starts_with(begin)) {
                let path = entry.path();
                fs::remove_file(&path).map_err(ContentError::io("removing", &path))?;
            }
        }
        Ok(Self { dir: Arc::new(dir), next_temporary: Arc::default(), ledger: Arc::default() })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The value that `bytes` become: inline up to [`CONTENT_FROM_BYTES`], else stored here and referred to.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn text_value(&self, text: &str) -> Result<Value, ContentError> {
        if text.len() <= CONTENT_FROM_BYTES {
            return Ok(Value::Text(text.into()));
        }
        let id = self.put(text.as_bytes())?;
        Ok(Value::Content { id, len: text.len() as u64, text: true })
    }

    /// As [`text_value`](Self::text_value), for bytes that are not text.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    pub fn bytes_value(&self, bytes: &[u8]) -> Result<Value, ContentError> {
        if bytes.len() <= CONTENT_FROM_BYTES {
            return Ok(Value::Bytes(bytes.into()));
        }
        let id = self.put(bytes)?;
        Ok(Value::Content { id, len: bytes.len() as u64, text: false })
    }

    /// Stores bytes and returns their name once they are durable. What is there already is not written again. It is
    /// spared by [`collect`](Self::collect) until [`hold`](Self::hold) claims it, an hour at most.
    ///
    /// # Errors
    /// [`ContentError::TooLong`], [`ContentError::NoRoom`], [`ContentError::Io`].
    pub fn put(&self, bytes: &[u8]) -> Result<ContentId, ContentError> {
        let id = ContentId(*blake3::hash(bytes).as_bytes());
        if bytes.len() > MAX_VALUE_BYTES {
            return Err(ContentError::TooLong(id, bytes.len() as u64));
        }
        {
            let mut ledger = self.ledger();
            let unclaimed = ledger.unclaimed.entry(id).or_insert((0, Instant::now()));
            *unclaimed = (unclaimed.0.saturating_add(1), Instant::now());
        }
        // Before it is looked for: a collection that runs beside either sees the claim or has removed it by now.
        let stored = if self.is_sound(&id, bytes.len() as u64) { Ok(()) } else { self.write(&id, bytes) };
        if let Err(error) = stored {
            self.ledger().claim(&id);
            return Err(error);
        }
        Ok(id)
    }

    fn write(&self, id: &ContentId, bytes: &[u8]) -> Result<(), ContentError> {
        let path = self.temporary_path("put");
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // What was begun must not keep the room that is missing.
            let _ = fs::remove_file(&path);
            return Err(ContentError::io("writing", &path)(error));
        }
        self.install(&path, id)
    }

    fn temporary_path(&self, kind: &str) -> PathBuf {
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        self.dir.join("temporary").join(format!("{kind}-{}-{number}", std::process::id()))
    }

    /// Says that changes refer to these from now on, so that no collection whose references were gathered before removes
    /// them; those that are not here. A look at each file's length, no reading: for any thread.
    pub fn hold(&self, contents: impl IntoIterator<Item = (ContentId, u64)>) -> Vec<(ContentId, u64)> {
        let contents = contents.into_iter();
        let mut ledger = self.ledger();
        let held: Vec<_> = contents
            .inspect(|(id, _)| {
                ledger.claim(id);
                ledger.held.insert(*id);
            })
            .collect();
        drop(ledger);
        self.missing(held)
    }

    /// Whether the content is here with this length and its bytes are what its name says. Reads it whole.
    #[must_use]
    pub fn is_sound(&self, id: &ContentId, len: u64) -> bool {
        if self.len(id) != Some(len) {
            return false;
        }
        let Ok(mut file) = self.open_content(id) else { return false };
        let (mut hasher, mut block) = (blake3::Hasher::new(), vec![0; BLOCK_BYTES.min(len as usize)]);
        loop {
            match file.read(&mut block) {
                Ok(0) => return hasher.finalize().as_bytes() == &id.0,
                Ok(count) => hasher.update(&block[..count]),
                Err(_) => return false,
            };
        }
    }

    /// Removes a content whose bytes were found to be others than its name says: it counts as missing from now on, and
    /// is fetched again by whoever hears of it from [`take_damaged`](Self::take_damaged).
    pub fn set_aside(&self, id: &ContentId) {
        tracing::error!(%id, "a stored content is damaged: it is removed and fetched from the peer");
        let gone = {
            let mut ledger = self.ledger();
            ledger.damaged.push(*id);
            self.remove(id, &mut ledger)
        };
        // What stays there goes with the next start.
        let _ = gone.map(fs::remove_file);
    }

    /// What was found damaged since the last call.
    #[must_use]
    pub fn take_damaged(&self) -> Vec<ContentId> {
        std::mem::take(&mut self.ledger().damaged)
    }

    /// Takes the file's name away under the ledger's lock, which is quick; its blocks are freed by the caller's next
    /// step, [`fs::remove_file`] of the path returned.
    fn remove(&self, id: &ContentId, _: &mut MutexGuard<'_, Ledger>) -> Option<PathBuf> {
        let gone = self.temporary_path("gone");
        fs::rename(self.path(id), &gone).ok().map(|()| gone)
    }

    /// Whether the content is here.
    #[must_use]
    pub fn contains(&self, id: &ContentId) -> bool {
        self.len(id).is_some()
    }

    /// Its length in bytes, where it is here.
    #[must_use]
    pub fn len(&self, id: &ContentId) -> Option<u64> {
        fs::metadata(self.path(id)).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
    }

    /// Those of `ids` that are not here, each once, in the order given.
    pub fn missing(&self, ids: impl IntoIterator<Item = (ContentId, u64)>) -> Vec<(ContentId, u64)> {
        let mut seen = HashSet::new();
        ids.into_iter().filter(|(id, len)| seen.insert(*id) && self.len(id) != Some(*len)).collect()
    }

    /// Opens a content for reading in pieces (sending it); the receiver checks the digest.
    ///
    /// # Errors
    /// [`ContentError::Missing`], [`ContentError::Io`].
    pub fn open_content(&self, id: &ContentId) -> Result<File, ContentError> {
        let path = self.path(id);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ContentError::Missing(*id),
            _ => ContentError::io("opening", &path)(error),
        })
    }

    /// Reads a content whole (up to 64 MiB) and checks it.
    ///
    /// # Errors
    /// [`ContentError::Missing`], [`ContentError::Damaged`], [`ContentError::Io`].
    pub fn read(&self, id: &ContentId) -> Result<Vec<u8>, ContentError> {
        let path = self.path(id);
        let mut bytes = Vec::new();
        let file = self.open_content(id)?;
        file.take(MAX_VALUE_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(ContentError::io("reading", &path))?;
        if blake3::hash(&bytes).as_bytes() != &id.0 {
            self.set_aside(id);
            return Err(ContentError::Damaged(*id));
        }
        Ok(bytes)
    }

    /// Begins a collection: what is held from now on is spared by it. Gather the references after this.
    pub fn begin_collection(&self) {
        self.ledger().held.clear();
    }

    /// Removes contents and parts of contents that nothing refers to: not among `referenced`, not held since
    /// [`begin_collection`](Self::begin_collection), not stored for a change that is still to be made. At most
    /// `COLLECTED_AT_ONCE`; how many were removed, and their bytes. Foreign files stay.
    ///
    /// # Errors
    /// [`ContentError::Io`]: what could not be listed or removed; the next run goes on.
    pub fn collect<S: std::hash::BuildHasher>(
        &self,
        referenced: &HashSet<ContentId, S>,
    ) -> Result<(u64, u64), ContentError> {
        let (mut count, mut bytes) = (0, 0);
        for (id, len) in self.listed()? {
            if referenced.contains(&id) {
                continue;
            }
            let gone = {
                let mut ledger = self.ledger();
                if ledger.spares(&id) { None } else { self.remove(&id, &mut ledger) }
            };
            let Some(gone) = gone else { continue };
            fs::remove_file(&gone).map_err(ContentError::io("removing", &gone))?;
            (count, bytes) = (count + 1, bytes + len);
            if count >= COLLECTED_AT_ONCE {
                break;
            }
        }
        let partial = self.dir.join("partial");
        for file in fs::read_dir(&partial).map_err(ContentError::io("listing", &partial))?.flatten() {
            let Some(id) = file.file_name().to_str().and_then(parse_id) else { continue };
            if !referenced.contains(&id) && !self.ledger().spares(&id) {
                let path = file.path();
                fs::remove_file(&path).map_err(ContentError::io("removing", &path))?;
            }
        }
        Ok((count, bytes))
    }

    /// Every content stored, with the length of its file.
    fn listed(&self) -> Result<Vec<(ContentId, u64)>, ContentError> {
        let mut listed = Vec::new();
        for dir in fs::read_dir(&*self.dir).map_err(ContentError::io("listing", &self.dir))?.flatten() {
            let prefix = dir.file_name();
            let Some(prefix) = prefix.to_str().filter(|name| name.len() == 2) else { continue };
            let Ok(files) = fs::read_dir(dir.path()) else { continue };
            for file in files.flatten() {
                let name = file.file_name();
                let Some(id) = name.to_str().and_then(|name| parse_id(&format!("{prefix}{name}"))) else { continue };
                let Some(metadata) = file.metadata().ok().filter(fs::Metadata::is_file) else { continue };
                listed.push((id, metadata.len()));
            }
        }
        Ok(listed)
    }

    /// `<dir>/ab/cdef…`.
    fn path(&self, id: &ContentId) -> PathBuf {
        let name = id.to_string();
        self.dir.join(&name[..2]).join(&name[2..])
    }

    fn partial_path(&self, id: &ContentId) -> PathBuf {
        self.dir.join("partial").join(id.to_string())
    }

    /// Renames a whole, synced file to its final name and syncs the directories.
    fn install(&self, from: &Path, id: &ContentId) -> Result<(), ContentError> {
        let to = self.path(id);
        let dir = to.parent().unwrap_or(&self.dir);
        if !dir.is_dir() {
            fs::create_dir_all(dir).map_err(ContentError::io("creating", dir))?;
            sync_dir(&self.dir)?;
        }
        fs::rename(from, &to).map_err(ContentError::io("renaming", &to))?;
        sync_dir(dir)
    }
}

fn sync_dir(dir: &Path) -> Result<(), ContentError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(ContentError::io("syncing", dir))
}

/// Reads the 64 hexadecimal digits that name a content.
#[must_use]
pub fn parse_id(text: &str) -> Option<ContentId> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return None;
    }
    let mut id = [0; 32];
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(ContentId(id))
}

#[derive(Debug)]
struct Partial {
    file: File,
    received: u64,
    len: u64,
}

/// Receives contents in chunks on the backup; resumable over restarts. One owner (the bulk thread).
#[derive(Debug)]
pub struct ContentReceiver {
    store: ContentStore,
    partial: HashMap<ContentId, Partial>,
}

impl ContentReceiver {
    /// A receiver into `store`.
    #[must_use]
    pub fn new(store: ContentStore) -> Self {
        Self { store, partial: HashMap::new() }
    }

    /// Begins or resumes a content; returns the offset from which to send: its length when it is here already.
    ///
    /// # Errors
    /// [`ContentError::TooLong`], [`ContentError::TooMany`], [`ContentError::NoRoom`], [`ContentError::Io`].
    pub fn begin(&mut self, id: ContentId, len: u64) -> Result<u64, ContentError> {
        if len > MAX_VALUE_BYTES as u64 {
            return Err(ContentError::TooLong(id, len));
        }
        if self.store.len(&id) == Some(len) {
            return Ok(len);
        }
        if let Some(partial) = self.partial.get(&id) {
            return Ok(partial.received);
        }
        if self.partial.len() >= MAX_PARTIAL {
            return Err(ContentError::TooMany);
        }
        let path = self.store.partial_path(&id);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(ContentError::io("opening", &path))?;
        let mut received = file.metadata().map_err(ContentError::io("reading", &path))?.len();
        if received >= len {
            // Whole but never installed, or of another length: cheaper to receive it again than to reason about it.
            file.set_len(0).map_err(ContentError::io("truncating", &path))?;
            received = 0;
        }
        self.partial.insert(id, Partial { file, received, len });
        Ok(received)
    }

    /// Takes a chunk. What was received before is skipped. True: the content is whole, checked, durable and readable.
    ///
    /// # Errors
    /// [`ContentError::Chunk`] (begin first; no gaps), [`ContentError::Damaged`] (what was received is dropped: begin
    /// again), [`ContentError::NoRoom`], [`ContentError::Io`].
    pub fn chunk(&mut self, id: ContentId, offset: u64, bytes: &[u8]) -> Result<bool, ContentError> {
        let Some(partial) = self.partial.get_mut(&id) else {
            if self.store.contains(&id) {
                return Ok(true);
            }
            return Err(ContentError::Chunk { id, offset, bytes: bytes.len(), received: 0, len: 0 });
        };
        let end = offset.saturating_add(bytes.len() as u64);
        if offset > partial.received || end > partial.len {
            let (received, len) = (partial.received, partial.len);
            return Err(ContentError::Chunk { id, offset, bytes: bytes.len(), received, len });
        }
        if end > partial.received {
            let path = self.store.partial_path(&id);
            partial.file.write_all_at(bytes, offset).map_err(ContentError::io("writing", &path))?;
            partial.received = end;
        }
        if partial.received < partial.len {
            return Ok(false);
        }
        self.finish(id)
    }

    /// Forgets an unfinished content in memory; what was received stays on disk, to be resumed.
    pub fn forget(&mut self, id: &ContentId) {
        self.partial.remove(id);
    }

    /// Gives an unfinished content up: nothing of it is kept.
    pub fn abandon(&mut self, id: &ContentId) {
        if self.partial.remove(id).is_some() {
            // What stays there is collected.
            let _ = fs::remove_file(self.store.partial_path(id));
        }
    }

    fn finish(&mut self, id: ContentId) -> Result<bool, ContentError> {
        let Some(partial) = self.partial.remove(&id) else { return Ok(false) };
        let path = self.store.partial_path(&id);
        let mut hasher = blake3::Hasher::new();
        let mut block = vec![0; 1 << 20];
        let mut at = 0;
        while at < partial.len {
            let read = partial.file.read_at(&mut block, at).map_err(ContentError::io("reading", &path))?;
            if read == 0 {
                break;
            }
            hasher.update(&block[..read]);
            at += read as u64;
        }
        if hasher.finalize().as_bytes() != &id.0 {
            fs::remove_file(&path).map_err(ContentError::io("removing", &path))?;
            return Err(ContentError::Damaged(id));
        }
        partial.file.sync_all().map_err(ContentError::io("syncing", &path))?;
        self.store.install(&path, &id)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, ContentStore) {
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        (dir, store)
    }

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect()
    }

    fn id_of(bytes: &[u8]) -> ContentId {
        ContentId(*blake3::hash(bytes).as_bytes())
    }

    #[test]
    fn values_up_to_the_bound_stay_inline_and_longer_ones_are_stored_once() {
        let (dir, store) = store();
        let text = "x".repeat(CONTENT_FROM_BYTES);
        assert_eq!(store.text_value(&text).unwrap(), Value::Text(text.as_str().into()));
        let long = text + "y";
        let Value::Content { id, len, text: true } = store.text_value(&long).unwrap() else { panic!() };
        assert_eq!((id, len), (id_of(long.as_bytes()), long.len() as u64));
        let name = id.to_string();
        let file = dir.path().join("content").join(&name[..2]).join(&name[2..]);
        assert_eq!(fs::read(&file).unwrap(), long.as_bytes());
        assert_eq!(store.put(long.as_bytes()).unwrap(), id);
        assert_eq!(store.read(&id).unwrap(), long.as_bytes());
        assert_eq!(fs::read_dir(dir.path().join("content/temporary")).unwrap().count(), 0);
        fs::write(&file, bytes(long.len(), 9)).unwrap();
        assert!(!store.is_sound(&id, long.len() as u64));
        assert_eq!(store.put(long.as_bytes()).unwrap(), id, "written anew where what lies there is damaged");
        assert!(store.is_sound(&id, long.len() as u64));
        fs::write(&file, bytes(long.len(), 9)).unwrap();
        assert!(matches!(store.read(&id), Err(ContentError::Damaged(_))));
        assert!(matches!(store.read(&id), Err(ContentError::Missing(_))), "what is damaged does not stay");
        assert_eq!((store.take_damaged(), store.take_damaged()), (vec![id], vec![]));
        assert!(matches!(store.read(&ContentId([1; 32])), Err(ContentError::Missing(_))));
        assert!(matches!(store.put(&vec![0; MAX_VALUE_BYTES + 1]), Err(ContentError::TooLong(..))));
    }

    #[test]
    fn receiving_resumes_where_it_was_and_checks_the_whole() {
        let (dir, store) = store();
        let content = bytes(200_000, 1);
        let (id, len) = (id_of(&content), 200_000);
        let mut receiver = ContentReceiver::new(store);
        assert_eq!(receiver.begin(id, len).unwrap(), 0);
        assert!(!receiver.chunk(id, 0, &content[..90_000]).unwrap());
        assert!(matches!(
            receiver.chunk(id, 90_001, &content[90_001..]),
            Err(ContentError::Chunk { received: 90_000, .. })
        ));
        assert!(
            matches!(receiver.chunk(id, 90_000, &bytes(110_001, 2)), Err(ContentError::Chunk { .. })),
            "beyond its length"
        );
        // The process ends; the next one resumes.
        let store = ContentStore::open(dir.path()).unwrap();
        assert_eq!(store.missing([(id, len), (id, len)]), [(id, len)]);
        let mut receiver = ContentReceiver::new(store.clone());
        assert_eq!(receiver.begin(id, len).unwrap(), 90_000);
        assert!(receiver.chunk(id, 80_000, &content[80_000..]).unwrap());
        assert_eq!(store.read(&id).unwrap(), content);
        assert_eq!((store.missing([(id, len)]), receiver.begin(id, len).unwrap()), (vec![], len));
        assert!(receiver.chunk(id, 0, &content[..10]).unwrap(), "a late chunk of what is here");
        let other = id_of(b"other");
        receiver.begin(other, 5).unwrap();
        assert!(matches!(receiver.chunk(other, 0, b"OTHER"), Err(ContentError::Damaged(_))));
        assert_eq!(receiver.begin(other, 5).unwrap(), 0, "nothing of the damaged one is kept");
        assert!(receiver.chunk(other, 0, b"other").unwrap());
    }

    #[test]
    fn receiving_is_bounded() {
        let (_dir, store) = store();
        let mut receiver = ContentReceiver::new(store);
        for n in 0..MAX_PARTIAL {
            receiver.begin(ContentId([n as u8; 32]), 10).unwrap();
        }
        assert!(matches!(receiver.begin(ContentId([255; 32]), 10), Err(ContentError::TooMany)));
        receiver.forget(&ContentId([0; 32]));
        assert!(receiver.begin(ContentId([255; 32]), 10).is_ok());
        assert!(matches!(receiver.begin(ContentId([254; 32]), u64::MAX), Err(ContentError::TooLong(..))));
    }

    #[test]
    fn garbage_goes_and_everything_else_stays() {
        let (dir, store) = store();
        let (kept, gone) = (store.put(&bytes(70_000, 1)).unwrap(), store.put(&bytes(70_000, 2)).unwrap());
        let foreign = dir.path().join("content/ab");
        fs::create_dir_all(&foreign).unwrap();
        fs::write(foreign.join("README"), "mine").unwrap();
        fs::write(dir.path().join("content/notes"), "mine").unwrap();
        let partial = |id: &ContentId| dir.path().join("content/partial").join(id.to_string());
        fs::write(partial(&kept), "part").unwrap();
        fs::write(partial(&gone), "part").unwrap();
        let referenced = HashSet::from([kept]);
        assert_eq!(store.collect(&referenced).unwrap(), (0, 0), "stored for a change that is still to be made");
        assert_eq!(store.hold([(gone, 70_000), (ContentId([1; 32]), 9)]), [(ContentId([1; 32]), 9)]);
        assert_eq!(store.collect(&referenced).unwrap(), (0, 0), "referred to since the references were gathered");
        assert!(partial(&gone).exists());
        store.begin_collection();
        assert_eq!(store.collect(&referenced).unwrap(), (1, 70_000));
        assert!(store.contains(&kept) && !store.contains(&gone));
        assert!(partial(&kept).exists() && !partial(&gone).exists());
        assert!(foreign.join("README").exists() && dir.path().join("content/notes").exists());
        assert_eq!(fs::read_dir(dir.path().join("content/temporary")).unwrap().count(), 0);
    }

    #[test]
    fn two_changes_that_store_the_same_value_spare_it_until_both_are_made() {
        let (_dir, store) = store();
        let id = store.put(&bytes(70_000, 1)).unwrap();
        store.put(&bytes(70_000, 1)).unwrap();
        for (made, collected) in [(1, 0), (2, 1)] {
            assert_eq!(store.hold([(id, 70_000)]), []);
            store.begin_collection();
            assert_eq!(store.collect(&HashSet::new()).unwrap().0, collected, "{made} of 2 made");
        }
    }
}

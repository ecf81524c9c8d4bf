//! The content store: values of more than 64 KiB, each once, in a file named by its blake3 digest.
//!
//! Always: a file under its final name is whole, synced, and what its name says (written aside, synced, renamed, the
//! directory synced); reading checks it again. Files that do not belong are left alone. Never: a value readable half,
//! a receiver that allocates for more than one chunk, or more than [`MAX_PARTIAL`] unfinished contents.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use ringpair_wire::ds::{CONTENT_FROM_BYTES, ContentId, MAX_VALUE_BYTES, Value};

/// The greatest number of contents being received at once.
pub const MAX_PARTIAL: usize = 64;

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
            if entry.file_name().to_string_lossy().starts_with("put-") {
                let path = entry.path();
                fs::remove_file(&path).map_err(ContentError::io("removing", &path))?;
            }
        }
        Ok(Self { dir: Arc::new(dir), next_temporary: Arc::default() })
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

    /// Stores bytes and returns their name once they are durable. What is there already is not written again.
    ///
    /// # Errors
    /// [`ContentError::TooLong`], [`ContentError::NoRoom`], [`ContentError::Io`].
    pub fn put(&self, bytes: &[u8]) -> Result<ContentId, ContentError> {
        let id = ContentId(*blake3::hash(bytes).as_bytes());
        if bytes.len() > MAX_VALUE_BYTES {
            return Err(ContentError::TooLong(id, bytes.len() as u64));
        }
        if self.len(&id) == Some(bytes.len() as u64) {
            // Touched, so that a collection of garbage that runs beside does not take it for old.
            if let Ok(file) = File::open(self.path(&id)) {
                file.set_modified(SystemTime::now()).map_err(ContentError::io("touching", &self.path(&id)))?;
                return Ok(id);
            }
        }
        let number = self.next_temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("temporary").join(format!("put-{}-{number}", std::process::id()));
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // What was begun must not keep the room that is missing.
            let _ = fs::remove_file(&path);
            return Err(ContentError::io("writing", &path)(error));
        }
        self.install(&path, &id)?;
        Ok(id)
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
            return Err(ContentError::Damaged(*id));
        }
        Ok(bytes)
    }

    /// Removes contents that nothing refers to and that have lain untouched for `older_than` (a value is stored before
    /// the record that refers to it exists). Returns how many were removed and their bytes. Foreign files stay.
    ///
    /// # Errors
    /// [`ContentError::Io`]: what could not be listed or removed; the next run goes on.
    pub fn collect<S: std::hash::BuildHasher>(
        &self,
        referenced: &HashSet<ContentId, S>,
        older_than: Duration,
    ) -> Result<(u64, u64), ContentError> {
        let (mut count, mut bytes) = (0, 0);
        let now = SystemTime::now();
        for dir in fs::read_dir(&*self.dir).map_err(ContentError::io("listing", &self.dir))?.flatten() {
            let prefix = dir.file_name();
            let Some(prefix) = prefix.to_str().filter(|name| name.len() == 2) else { continue };
            let Ok(files) = fs::read_dir(dir.path()) else { continue };
            for file in files.flatten() {
                let name = file.file_name();
                let Some(id) = name.to_str().and_then(|name| parse_id(&format!("{prefix}{name}"))) else { continue };
                let Ok(metadata) = file.metadata() else { continue };
                let age = metadata.modified().ok().and_then(|at| now.duration_since(at).ok()).unwrap_or_default();
                if metadata.is_file() && age >= older_than && !referenced.contains(&id) {
                    let path = file.path();
                    fs::remove_file(&path).map_err(ContentError::io("removing", &path))?;
                    count += 1;
                    bytes += metadata.len();
                }
            }
        }
        Ok((count, bytes))
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
        assert!(matches!(store.read(&id), Err(ContentError::Damaged(_))));
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
        let referenced = HashSet::from([kept]);
        assert_eq!(store.collect(&referenced, Duration::from_secs(3600)).unwrap(), (0, 0), "too young");
        assert_eq!(store.collect(&referenced, Duration::ZERO).unwrap(), (1, 70_000));
        assert!(store.contains(&kept) && !store.contains(&gone));
        assert!(foreign.join("README").exists() && dir.path().join("content/notes").exists());
    }
}

//! The divergence archive: what this member had accepted and the new active never got (protocol §11).
//!
//! Always: an archive is written and synced whole before anything it holds is overwritten; it never expires by itself;
//! only its owner can read it (mode 0700). Never: an archive that is half there — until it is sealed it has another
//! name and does not count, since what it would hold is still where it was; the same holds for each later part of it.

mod log;
mod writer;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use log::{LogEntry, UNSAVED_PART, read_log};
use ringpair_wire::{
    ds::{Change, ContentId, DsPath, Object, Value},
    id::{Epoch, Position, Version},
};
use serde_json::{Value as Json, json};
pub use writer::ArchiveWriter;
use writer::remove_unsaved;

use crate::ds::{
    json,
    tree::{Entry, TreeSnapshot},
};

/// How the name of an archive begins that is not sealed.
const UNSEALED: &str = "unsealed";

/// Why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// No room is left: nothing may be overwritten now, the member stays `inactive`.
    #[error("no room for the divergence archive in {0}. Try: making room there; nothing is overwritten before")]
    NoRoom(PathBuf),
    /// The system refused.
    #[error("divergence archive: {what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log of an archive is damaged at this entry; those before it can be read.
    #[error("divergence archive {path} is damaged at entry {entry}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The entry, from 0.
        entry: u64,
        /// What is wrong.
        what: String,
    },
    /// There is no such record or file.
    #[error("no divergence record or file {0:?}. Try: ringpair divergence ls")]
    NotFound(String),
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ArchiveError::NoRoom(path.to_owned()),
        _ => ArchiveError::Io { what, path: path.to_owned(), source },
    }
}

/// A record that only this member has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedRecord {
    /// What it is called in `divergence ls`: `ARCHIVE-rNUMBER`.
    pub id: String,
    /// Where.
    pub path: DsPath,
    /// The version it was accepted as.
    pub version: Version,
    /// The whole object as this member had it; `None`: it had been removed, with everything below.
    pub object: Option<Object>,
}

/// A file of the mirror that only this member had in this form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedFile {
    /// What it is called in `divergence ls`: `ARCHIVE-fNUMBER`.
    pub id: String,
    /// Its path as the parameters write it; bytes, not always UTF-8.
    pub path: Vec<u8>,
    /// Its length.
    pub bytes: u64,
    /// Where its content lies.
    pub stored: PathBuf,
}

/// What all archives hold together, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiveTotals {
    /// Records not removed.
    pub records: u64,
    /// Files not removed.
    pub files: u64,
    /// The bytes of those files.
    pub bytes: u64,
    /// The epoch in which the newest archive's records were accepted.
    pub epoch: Epoch,
}

/// The numbers of archives that this process writes.
#[derive(Debug, Default)]
struct Writers {
    /// The last that was given out; 0: none yet.
    last: u64,
    /// Those that may still grow.
    open: HashSet<u64>,
}

/// The file that says that files are to be archived.
const AWAITS_FILES: &str = "awaits-files";

/// All archives of this member. Cheap to clone; its methods block on the disk.
#[derive(Clone, Debug)]
pub struct DivergenceArchive {
    dir: Arc<PathBuf>,
    /// What the writers of this process have: two may write at a time, records and files.
    writers: Arc<Mutex<Writers>>,
}

impl DivergenceArchive {
    /// Opens `<storage>/divergence`, creating it with mode 0700.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(storage: &Path) -> Result<Self, ArchiveError> {
        let dir = storage.join("divergence");
        if !dir.is_dir() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(io_error("creating", &dir))?;
            sync_dir(storage)?;
        }
        Ok(Self { dir: Arc::new(dir), writers: Arc::default() })
    }

    /// Begins an archive of what this member accepted in `epoch` beyond `common`, the last position both histories
    /// share. Whatever was never sealed and is not being written is dropped: nothing was overwritten after it.
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`].
    pub fn begin(&self, epoch: Epoch, common: Position) -> Result<ArchiveWriter, ArchiveError> {
        let mut writers = self.writers();
        let number = self.numbers()?.last().map_or(1, |last| last + 1).max(writers.last + 1);
        if writers.last == 0 {
            self.remove_unsealed()?;
        }
        writers.last = number;
        writers.open.insert(number);
        // Before anything can fail: a writer that ends takes the lock.
        drop(writers);
        ArchiveWriter::new(self.clone(), number, epoch, common)
    }

    /// Notes, durably, that whatever the mirror overwrites from now on goes into an archive of `epoch` first, over
    /// restarts, until [`files_settled`](Self::files_settled).
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`].
    pub fn await_files(&self, epoch: Epoch) -> Result<(), ArchiveError> {
        let path = self.dir.join(AWAITS_FILES);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(epoch.0.to_string().as_bytes())?;
            file.sync_all()
        });
        written.map_err(io_error("writing", &path))?;
        sync_dir(&self.dir)
    }

    /// The epoch whose files are to be archived before the mirror overwrites them.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    pub fn awaited_files(&self) -> Result<Option<Epoch>, ArchiveError> {
        let path = self.dir.join(AWAITS_FILES);
        match fs::read_to_string(&path) {
            // One cut short by a crash: that they are awaited is what counts.
            Ok(epoch) => Ok(Some(Epoch(epoch.parse().unwrap_or_default()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("reading", &path)(error)),
        }
    }

    /// The first comparison of files is over: what the mirror overwrites from now on came from the active.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    pub fn files_settled(&self) -> Result<(), ArchiveError> {
        let path = self.dir.join(AWAITS_FILES);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", &path)(error)),
            _ => Ok(()),
        }
    }

    fn writers(&self) -> MutexGuard<'_, Writers> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer of an archive has ended: if all it holds was removed meanwhile, it goes.
    fn written(&self, number: u64) -> Result<(), ArchiveError> {
        self.writers().open.remove(&number);
        if self.dir.join(number.to_string()).exists() { self.remove_if_empty(number) } else { Ok(()) }
    }

    fn remove_if_empty(&self, number: u64) -> Result<(), ArchiveError> {
        let (records, files, _) = self.read_one(number)?;
        if !records.is_empty() || !files.is_empty() || self.writers().open.contains(&number) {
            return Ok(());
        }
        let dir = self.dir.join(number.to_string());
        fs::remove_dir_all(&dir).map_err(io_error("removing", &dir))?;
        sync_dir(&self.dir)
    }

    /// All records not removed, archive by archive, in the order they were added.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn records(&self) -> Result<Vec<ArchivedRecord>, ArchiveError> {
        Ok(self.read_all()?.0)
    }

    /// All files not removed.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn files(&self) -> Result<Vec<ArchivedFile>, ArchiveError> {
        Ok(self.read_all()?.1)
    }

    /// The totals for `status`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn totals(&self) -> Result<ArchiveTotals, ArchiveError> {
        let (records, files, epoch) = self.read_all()?;
        let bytes = files.iter().map(|file| file.bytes).sum();
        Ok(ArchiveTotals { records: records.len() as u64, files: files.len() as u64, bytes, epoch })
    }

    /// The contents that archived objects refer to: a collection of garbage has to spare them.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn contents(&self) -> Result<HashSet<ContentId>, ArchiveError> {
        let records = self.records()?;
        let values = records
            .iter()
            .filter_map(|record| record.object.as_ref())
            .flat_map(|object| object.attributes.iter().flat_map(|attribute| &attribute.values));
        Ok(values
            .filter_map(|value| match value {
                Value::Content { id, .. } => Some(*id),
                Value::Text(_) | Value::Bytes(_) => None,
            })
            .collect())
    }

    /// `divergence ls` (interface §8): whole objects, large values by their digest.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn to_json(&self) -> Result<Json, ArchiveError> {
        let (records, files, epoch) = self.read_all()?;
        let records: Vec<Json> = records.iter().map(record_json).collect();
        let files: Vec<Json> = files.iter().map(file_json).collect();
        Ok(json!({"epoch": epoch.0, "records": records, "files": files}))
    }

    /// `divergence show ID`: one record or file; a file's bytes are read from [`ArchivedFile::stored`].
    ///
    /// # Errors
    /// [`ArchiveError::NotFound`] and others.
    pub fn show_json(&self, id: &str) -> Result<Json, ArchiveError> {
        let (records, files, _) = self.read_all()?;
        let record = records.iter().find(|record| record.id == id).map(record_json);
        let found = record.or_else(|| files.iter().find(|file| file.id == id).map(file_json));
        found.ok_or_else(|| ArchiveError::NotFound(id.to_owned()))
    }

    /// Removes one record or file, durably; its archive goes with the last.
    ///
    /// # Errors
    /// [`ArchiveError::NotFound`] and others.
    pub fn remove(&self, id: &str) -> Result<(), ArchiveError> {
        self.show_json(id)?;
        let number = id.split_once('-').and_then(|(number, _)| number.parse::<u64>().ok());
        let number = number.ok_or_else(|| ArchiveError::NotFound(id.to_owned()))?;
        let dir = self.dir.join(number.to_string());
        let path = dir.join("removed");
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let written = opened.and_then(|mut file| {
            writeln!(file, "{id}")?;
            file.sync_all()
        });
        written.map_err(io_error("writing", &path))?;
        sync_dir(&dir)?;
        if let Some(file) = id.split_once("-f").map(|(_, file)| dir.join(format!("f{file}"))) {
            fs::remove_file(&file).map_err(io_error("removing", &file))?;
        }
        self.remove_if_empty(number)
    }

    /// Removes what an earlier process never sealed or saved; called before this one writes anything.
    fn remove_unsealed(&self) -> Result<(), ArchiveError> {
        let listed = fs::read_dir(&*self.dir).map_err(io_error("listing", &self.dir))?;
        for entry in listed.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(UNSEALED)) {
            let path = entry.path();
            fs::remove_dir_all(&path).map_err(io_error("removing", &path))?;
        }
        for number in self.numbers()? {
            let dir = self.dir.join(number.to_string());
            // Of a damaged log nobody knows which files it names: they stay.
            if dir.join(UNSAVED_PART).exists()
                && let Ok(entries) = read_log(&dir)
            {
                let files = entries.iter().filter(|entry| matches!(entry, LogEntry::File { .. })).count();
                remove_unsaved(&dir, files as u64)?;
            }
        }
        Ok(())
    }

    /// The numbers of the sealed archives, ascending. Foreign files are left alone.
    fn numbers(&self) -> Result<Vec<u64>, ArchiveError> {
        let listed = fs::read_dir(&*self.dir).map_err(io_error("listing", &self.dir))?;
        let mut numbers: Vec<u64> =
            listed.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read_all(&self) -> Result<(Vec<ArchivedRecord>, Vec<ArchivedFile>, Epoch), ArchiveError> {
        let (mut records, mut files, mut epoch) = (Vec::new(), Vec::new(), Epoch::default());
        for number in self.numbers()? {
            let (more_records, more_files, of) = self.read_one(number)?;
            records.extend(more_records);
            files.extend(more_files);
            epoch = of;
        }
        Ok((records, files, epoch))
    }

    fn read_one(&self, number: u64) -> Result<(Vec<ArchivedRecord>, Vec<ArchivedFile>, Epoch), ArchiveError> {
        let dir = self.dir.join(number.to_string());
        let removed: HashSet<String> = match fs::read_to_string(dir.join("removed")) {
            Ok(text) => text.lines().map(str::to_owned).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashSet::new(),
            Err(error) => return Err(io_error("reading", &dir.join("removed"))(error)),
        };
        let (mut records, mut files, mut epoch) = (Vec::new(), Vec::new(), Epoch::default());
        let (mut record_count, mut file_count) = (0_u64, 0_u64);
        for entry in read_log(&dir)? {
            match entry {
                LogEntry::Head { epoch: of, .. } => epoch = of,
                LogEntry::Record { version, path, object } => {
                    record_count += 1;
                    let id = format!("{number}-r{record_count}");
                    if !removed.contains(&id) {
                        records.push(ArchivedRecord { id, path, version, object });
                    }
                }
                LogEntry::File { path, bytes } => {
                    file_count += 1;
                    let id = format!("{number}-f{file_count}");
                    if !removed.contains(&id) {
                        files.push(ArchivedFile { id, path, bytes, stored: dir.join(file_name(file_count)) });
                    }
                }
            }
        }
        Ok((records, files, epoch))
    }
}

/// What a member's own records beyond the common position come to: for each path touched, its whole object now or its
/// removal, with the newest version; in the order of those versions. `changes` in the order they were accepted.
#[must_use]
pub fn collect_divergent<'a>(
    changes: impl IntoIterator<Item = (Version, &'a Change)>,
    tree: &TreeSnapshot,
) -> Vec<(Version, DsPath, Option<Arc<Entry>>)> {
    let mut newest: HashMap<DsPath, Version> = HashMap::new();
    for (version, change) in changes {
        let (Change::Put { path, .. } | Change::Remove { path }) = change;
        newest.insert(path.clone(), version);
    }
    let mut records: Vec<_> =
        newest.into_iter().map(|(path, version)| (version, path.clone(), tree.get(&path).cloned())).collect();
    records.sort_by(|(a, left, _), (b, right, _)| a.cmp(b).then_with(|| left.cmp(right)));
    records
}

fn record_json(record: &ArchivedRecord) -> Json {
    json!({
        "id": record.id,
        "path": record.path.as_str(),
        "version": json::version(record.version),
        "object": record.object.as_ref().map(json::summary),
    })
}

fn file_json(file: &ArchivedFile) -> Json {
    let mut shown = json!({"id": file.id, "path": String::from_utf8_lossy(&file.path), "bytes": file.bytes});
    if let (Err(_), Some(fields)) = (std::str::from_utf8(&file.path), shown.as_object_mut()) {
        fields.insert("path_base64".into(), STANDARD.encode(&file.path).into());
    }
    shown
}

/// The name in an archive's directory of the file of this number.
fn file_name(number: u64) -> String {
    format!("f{number}")
}

fn sync_dir(dir: &Path) -> Result<(), ArchiveError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("syncing", dir))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::ds::testing::{path, position, put, tree, version};

    // REQ: REP-011
    #[test]
    fn what_is_sealed_stays_and_is_listed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join("divergence")).unwrap().permissions().mode() & 0o777, 0o700);
        let tree = tree(&["/C/alice x=1,2"]);
        let alice = tree.get(&path("/C/alice")).unwrap();
        let mut writer = archive.begin(Epoch(65_537), position(7)).unwrap();
        writer.add_record(version(9), &alice.path, Some(alice)).unwrap();
        writer.add_record(version(10), &path("/C/gone"), None).unwrap();
        writer.add_file(b"/srv/\xff.txt", &mut &b"content"[..]).unwrap();
        assert_eq!(archive.totals().unwrap(), ArchiveTotals::default(), "not sealed: not there");
        assert_eq!(writer.seal().unwrap(), (2, 1));
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        let listed = archive.to_json().unwrap();
        assert_eq!(listed["epoch"], 65_537);
        assert_eq!(listed["records"][0]["object"], json::summary(alice));
        assert_eq!(listed["records"][0]["version"], json!({"epoch": 65_537, "seq": 9}));
        assert_eq!((&listed["records"][1]["object"], &listed["files"][0]["bytes"]), (&Json::Null, &json!(7)));
        assert_eq!(archive.show_json("1-f1").unwrap()["path_base64"], STANDARD.encode(b"/srv/\xff.txt"));
        assert_eq!(fs::read(&archive.files().unwrap()[0].stored).unwrap(), b"content");
        assert!(matches!(archive.show_json("1-r9"), Err(ArchiveError::NotFound(_))));
    }

    #[test]
    fn an_unsealed_or_empty_archive_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        let mut writer = archive.begin(Epoch(1), position(1)).unwrap();
        writer.add_record(version(2), &path("/a"), None).unwrap();
        drop(writer);
        assert_eq!(archive.begin(Epoch(1), position(1)).unwrap().seal().unwrap(), (0, 0));
        assert!(archive.records().unwrap().is_empty());
        assert_eq!(fs::read_dir(dir.path().join("divergence")).unwrap().count(), 0);
    }

    /// Records by the stream thread's job, files by the bulk thread.
    #[test]
    fn two_may_write_at_a_time_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        for leftover in ["unsealed", "unsealed-7"] {
            fs::create_dir(dir.path().join("divergence").join(leftover)).unwrap();
        }
        let mut files = archive.begin(Epoch(1), position(1)).unwrap();
        files.add_file(b"/f", &mut &b"12345"[..]).unwrap();
        let mut records = archive.clone().begin(Epoch(1), position(1)).unwrap();
        records.add_record(version(2), &path("/a"), None).unwrap();
        records.seal().unwrap();
        files.seal().unwrap();
        assert_eq!((archive.records().unwrap().len(), archive.files().unwrap().len()), (1, 1));
        assert_eq!(fs::read(&archive.files().unwrap()[0].stored).unwrap(), b"12345");
        assert_eq!(fs::read_dir(dir.path().join("divergence")).unwrap().count(), 2);
    }

    // REQ: REP-011
    #[test]
    fn a_run_saves_group_by_group_in_one_archive_and_a_crash_takes_the_unsaved_group_only() {
        let dir = tempfile::tempdir().unwrap();
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        let mut writer = archive.begin(Epoch(1), position(1)).unwrap();
        let group = |writer: &mut ArchiveWriter, names: std::ops::Range<u32>| {
            for name in names {
                let path = format!("/f{name}");
                writer.add_file(path.as_bytes(), &mut path.as_bytes()).unwrap();
            }
        };
        let listed = |archive: &DivergenceArchive| {
            let files = archive.files().unwrap();
            assert!(files.iter().all(|file| fs::read(&file.stored).unwrap() == file.path));
            files.into_iter().map(|file| file.id).collect::<Vec<_>>()
        };
        group(&mut writer, 0..20);
        writer.save().unwrap();
        writer.save().unwrap();
        group(&mut writer, 20..23);
        assert_eq!(listed(&archive).len(), 20, "not saved: not there");
        writer.save().unwrap();
        assert_eq!((listed(&archive).len(), &*listed(&archive)[22]), (23, "1-f23"));
        group(&mut writer, 23..25);
        // A crash: nothing is cleaned up before the next start.
        let crashed = dir.path().join("crashed");
        fs::create_dir_all(crashed.join("divergence/1")).unwrap();
        for entry in fs::read_dir(dir.path().join("divergence/1")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), crashed.join("divergence/1").join(entry.file_name())).unwrap();
        }
        let after = DivergenceArchive::open(&crashed).unwrap();
        assert_eq!(listed(&after).len(), 23);
        drop(after.begin(Epoch(3), position(1)).unwrap());
        assert_eq!(listed(&after).len(), 23);
        assert!(!crashed.join("divergence/1/f24").exists() && !crashed.join("divergence/1/f25").exists());
        assert!(!crashed.join("divergence/1/unsaved-log").exists());
        // A writer that is given up leaves the same.
        drop(writer);
        assert_eq!(listed(&archive).len(), 23);
        assert!(!dir.path().join("divergence/1/f24").exists());
    }

    #[test]
    fn what_is_removed_while_it_is_written_goes_with_the_writer() {
        let dir = tempfile::tempdir().unwrap();
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        let mut writer = archive.begin(Epoch(1), position(1)).unwrap();
        writer.add_file(b"/a", &mut &b"1"[..]).unwrap();
        writer.save().unwrap();
        archive.remove("1-f1").unwrap();
        writer.add_file(b"/b", &mut &b"2"[..]).unwrap();
        writer.save().unwrap();
        assert_eq!(archive.files().unwrap()[0].id, "1-f2");
        archive.remove("1-f2").unwrap();
        assert!(dir.path().join("divergence/1").exists());
        drop(writer);
        assert!(!dir.path().join("divergence/1").exists());
    }

    #[test]
    fn removing_is_by_id_and_the_archive_goes_with_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        for epoch in [1, 3] {
            let mut writer = archive.begin(Epoch(epoch), position(epoch)).unwrap();
            writer.add_record(version(epoch), &path("/a"), None).unwrap();
            writer.add_file(b"/f", &mut &b"12345"[..]).unwrap();
            writer.seal().unwrap();
        }
        let totals = ArchiveTotals { records: 2, files: 2, bytes: 10, epoch: Epoch(3) };
        assert_eq!(archive.totals().unwrap(), totals);
        archive.remove("1-r1").unwrap();
        assert!(matches!(archive.remove("1-r1"), Err(ArchiveError::NotFound(_))));
        assert_eq!(archive.records().unwrap().iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["2-r1"]);
        archive.remove("1-f1").unwrap();
        assert!(!dir.path().join("divergence/1").exists() && dir.path().join("divergence/2").exists());
        assert_eq!(
            archive.begin(Epoch(5), position(5)).unwrap().number,
            3,
            "numbers are not used again while any is left"
        );
    }

    #[test]
    fn a_damaged_log_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        let mut writer = archive.begin(Epoch(1), position(1)).unwrap();
        writer.add_record(version(2), &path("/a"), None).unwrap();
        writer.seal().unwrap();
        let log = dir.path().join("divergence/1/log");
        let sound = fs::read(&log).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x40;
            fs::write(&log, &bytes).unwrap();
            assert!(matches!(archive.records(), Err(ArchiveError::Damaged { .. })), "at {at}");
        }
        fs::write(&log, &sound[..sound.len() - 1]).unwrap();
        assert!(matches!(archive.records(), Err(ArchiveError::Damaged { entry: 1, .. })));
    }

    #[test]
    fn own_records_come_to_whole_objects_and_removals() {
        let mut state = tree(&["/a x=1", "/b x=1"]);
        let changes = [
            put("/a x=2"),
            put("/a y=3"),
            Change::Remove { path: path("/b") },
            put("/c x=1"),
            Change::Remove { path: path("/c") },
        ];
        for (change, seq) in changes.iter().zip(3..) {
            state.apply(change, version(seq));
        }
        let own = changes.iter().zip(3..).map(|(change, seq)| (version(seq), change));
        let records: Vec<_> = collect_divergent(own, &state)
            .into_iter()
            .map(|(version, path, entry)| (version.seq.0, path.to_string(), entry.map(|entry| entry.attributes.len())))
            .collect();
        assert_eq!(records, [(4, "/a".into(), Some(2)), (5, "/b".into(), None), (7, "/c".into(), None)]);
    }
}

//! An archive while it is written.
//!
//! Its log has parts, each of which counts with all its files from the moment at which it gets its name: a run that
//! archives thousands of files saves them group by group, in one archive.
//!
//! Always: what a part names is synced before the part counts. Never: a part that counts and is not whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use nix::unistd::syncfs;
use ringpair_wire::{
    ds::{DsPath, Object},
    id::{Epoch, Position, Version},
};

use super::{
    ArchiveError, DivergenceArchive, UNSEALED, file_name, io_error,
    log::{LogEntry, MAX_FILE_PATH_BYTES, UNSAVED_PART, part_name, write_entry},
    sync_dir,
};

/// From how many files on they are synced together.
const TOGETHER: usize = 8;

/// An archive being written. What was added since the last [`save`](Self::save) never was, if this is dropped.
#[derive(Debug)]
pub struct ArchiveWriter {
    archive: DivergenceArchive,
    /// Where it lies; under another name until it is saved for the first time.
    dir: PathBuf,
    pub(super) number: u64,
    /// How many parts of its log count.
    parts: u64,
    /// The part that is being written.
    part: Option<BufWriter<File>>,
    /// Files of this part, to be synced; beyond [`TOGETHER`] their file system is.
    unsynced: Vec<File>,
    records: u64,
    files: u64,
    /// How many of the files count.
    saved_files: u64,
}

impl Drop for ArchiveWriter {
    fn drop(&mut self) {
        let dropped = match self.parts {
            0 => fs::remove_dir_all(&self.dir).map_err(io_error("removing", &self.dir)),
            _ if self.part.is_some() => remove_unsaved(&self.dir, self.saved_files),
            _ => Ok(()),
        };
        if let Err(error) = dropped.and_then(|()| self.archive.written(self.number)) {
            tracing::warn!(%error, "what was not archived whole cannot be removed; the next start tries again");
        }
    }
}

impl ArchiveWriter {
    /// Begins the archive of this number.
    pub(super) fn new(
        archive: DivergenceArchive,
        number: u64,
        epoch: Epoch,
        common: Position,
    ) -> Result<Self, ArchiveError> {
        let dir = archive.dir.join(format!("{UNSEALED}-{number}"));
        DirBuilder::new().mode(0o700).create(&dir).map_err(io_error("creating", &dir))?;
        let mut writer = Self {
            archive,
            dir,
            number,
            parts: 0,
            part: None,
            unsynced: Vec::new(),
            records: 0,
            files: 0,
            saved_files: 0,
        };
        writer.append(&LogEntry::Head { epoch, common })?;
        Ok(writer)
    }

    /// Adds a record: the whole object as this member has it, or its removal. Returns its id.
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`].
    pub fn add_record(
        &mut self,
        version: Version,
        path: &DsPath,
        object: Option<&Object>,
    ) -> Result<String, ArchiveError> {
        self.append(&LogEntry::Record { version, path: path.clone(), object: object.cloned() })?;
        self.records += 1;
        Ok(format!("{}-r{}", self.number, self.records))
    }

    /// Adds a file, copied before this returns. Returns its id.
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`]; drop the writer then.
    pub fn add_file(&mut self, path: &[u8], content: &mut impl Read) -> Result<String, ArchiveError> {
        // The part is there before any of its files, so that what a crash leaves of them is found by it.
        self.part()?;
        let number = self.files + 1;
        let stored = self.dir.join(file_name(number));
        let mut file = create(&stored)?;
        let bytes = io::copy(content, &mut file).map_err(io_error("copying to", &stored))?;
        if self.unsynced.len() < TOGETHER {
            self.unsynced.push(file);
        }
        let shown = &path[..path.len().min(MAX_FILE_PATH_BYTES)];
        self.append(&LogEntry::File { path: shown.to_vec(), bytes })?;
        self.files = number;
        Ok(format!("{}-f{number}", self.number))
    }

    /// Syncs what was added and makes it count; only then may it be overwritten. More can be added afterwards.
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`]; drop the writer then.
    pub fn save(&mut self) -> Result<(), ArchiveError> {
        if self.records + self.files == 0 {
            return Ok(());
        }
        let Some(part) = &mut self.part else { return Ok(()) };
        let failed = || io_error("writing", &self.dir);
        part.flush().map_err(failed())?;
        if self.unsynced.len() < TOGETHER {
            self.unsynced.iter().chain([part.get_ref()]).try_for_each(File::sync_all).map_err(failed())?;
        } else {
            syncfs(part.get_ref()).map_err(io::Error::from).map_err(failed())?;
        }
        sync_dir(&self.dir)?;
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(io_error("renaming", to));
        if self.parts == 0 {
            let sealed = self.archive.dir.join(self.number.to_string());
            rename(&self.dir, &sealed)?;
            self.dir = sealed;
            self.parts = 1;
            sync_dir(&self.archive.dir)?;
        } else {
            rename(&self.dir.join(UNSAVED_PART), &self.dir.join(part_name(self.parts + 1)))?;
            self.parts += 1;
            sync_dir(&self.dir)?;
        }
        (self.part, self.saved_files) = (None, self.files);
        self.unsynced.clear();
        Ok(())
    }

    /// Saves what was added, and ends. An empty archive leaves nothing behind. Returns the number of records and files.
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`].
    pub fn seal(mut self) -> Result<(u64, u64), ArchiveError> {
        self.save()?;
        Ok((self.records, self.files))
    }

    /// The part of the log that is being written.
    fn part(&mut self) -> Result<&mut BufWriter<File>, ArchiveError> {
        let part = match self.part.take() {
            Some(part) => part,
            None if self.parts == 0 => BufWriter::new(create(&self.dir.join(part_name(1)))?),
            None => BufWriter::new(create(&self.dir.join(UNSAVED_PART))?),
        };
        Ok(self.part.insert(part))
    }

    fn append(&mut self, entry: &LogEntry) -> Result<(), ArchiveError> {
        let dir = self.dir.clone();
        write_entry(self.part()?, entry).map_err(io_error("writing", &dir))
    }
}

/// Removes what a writer left that did not come to save it: files beyond those that the log names, then the part.
pub(super) fn remove_unsaved(dir: &Path, named_files: u64) -> Result<(), ArchiveError> {
    let part = dir.join(UNSAVED_PART);
    if !part.exists() {
        // It got its name, and counts.
        return Ok(());
    }
    for number in named_files + 1.. {
        let file = dir.join(file_name(number));
        match fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(io_error("removing", &file)(error)),
        }
    }
    fs::remove_file(&part).map_err(io_error("removing", &part))
}

fn create(path: &Path) -> Result<File, ArchiveError> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map_err(io_error("creating", path))
}

//! An archive while it is written.
//!
//! Always: what is added is synced before the archive counts. Never: an archive that counts and is not whole.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use ringpair_wire::{
    ds::{DsPath, Object},
    id::{Epoch, Position, Version},
};

use super::{
    ArchiveError, DivergenceArchive, UNSEALED, io_error,
    log::{LogEntry, MAX_FILE_PATH_BYTES, write_entry},
    sync_dir,
};

/// An archive being written. Dropped without [`seal`](Self::seal), it never was.
#[derive(Debug)]
pub struct ArchiveWriter {
    archive: DivergenceArchive,
    unsealed: PathBuf,
    pub(super) number: u64,
    log: BufWriter<File>,
    records: u64,
    files: u64,
    sealed: bool,
}

impl Drop for ArchiveWriter {
    fn drop(&mut self) {
        if !self.sealed
            && let Err(error) = fs::remove_dir_all(&self.unsealed)
        {
            tracing::warn!(%error, path = %self.unsealed.display(), "what was not sealed cannot be removed; the next start tries again");
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
        let unsealed = archive.dir.join(format!("{UNSEALED}-{number}"));
        DirBuilder::new().mode(0o700).create(&unsealed).map_err(io_error("creating", &unsealed))?;
        let log = BufWriter::new(create(&unsealed.join("log"))?);
        let mut writer = Self { archive, unsealed, number, log, records: 0, files: 0, sealed: false };
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

    /// Adds a file, copied and synced before this returns. Returns its id.
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`].
    pub fn add_file(&mut self, path: &[u8], content: &mut impl Read) -> Result<String, ArchiveError> {
        let number = self.files + 1;
        let stored = self.unsealed.join(format!("f{number}"));
        let mut file = create(&stored)?;
        let copied = io::copy(content, &mut file).and_then(|bytes| file.sync_all().map(|()| bytes));
        let bytes = copied.map_err(io_error("copying to", &stored))?;
        let shown = &path[..path.len().min(MAX_FILE_PATH_BYTES)];
        self.append(&LogEntry::File { path: shown.to_vec(), bytes })?;
        self.files = number;
        Ok(format!("{}-f{number}", self.number))
    }

    /// Syncs everything and makes the archive count; only then may what it holds be overwritten. An empty one leaves
    /// nothing behind. Returns the number of its records and files.
    ///
    /// # Errors
    /// [`ArchiveError::NoRoom`], [`ArchiveError::Io`].
    pub fn seal(mut self) -> Result<(u64, u64), ArchiveError> {
        let path = self.unsealed.join("log");
        if self.records + self.files == 0 {
            return Ok((0, 0));
        }
        let synced = self.log.flush().and_then(|()| self.log.get_ref().sync_all());
        synced.map_err(io_error("writing", &path))?;
        sync_dir(&self.unsealed)?;
        let sealed = self.archive.dir.join(self.number.to_string());
        fs::rename(&self.unsealed, &sealed).map_err(io_error("renaming", &sealed))?;
        self.sealed = true;
        sync_dir(&self.archive.dir)?;
        Ok((self.records, self.files))
    }

    fn append(&mut self, entry: &LogEntry) -> Result<(), ArchiveError> {
        write_entry(&mut self.log, entry).map_err(io_error("writing", &self.unsealed.join("log")))
    }
}

fn create(path: &Path) -> Result<File, ArchiveError> {
    let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    created.map_err(io_error("creating", path))
}

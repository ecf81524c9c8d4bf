//! Puts files into the divergence archive before the mirror overwrites them (protocol §11).
//!
//! Always: an archive is sealed and synced before anything it holds is overwritten.

use std::io;

use ringpair_wire::id::{Epoch, Position};

use crate::{
    ds::archive::{ArchiveError, ArchiveWriter, DivergenceArchive},
    mirror::{ArchiveFiles, Meta, MirrorPath},
};

/// An archive of files that is begun with the first, and holds all of them.
struct FileArchive {
    archive: DivergenceArchive,
    epoch: Epoch,
    writer: Option<ArchiveWriter>,
}

/// Where the mirror puts what a former active of `epoch` had.
#[must_use]
pub fn file_archive(archive: DivergenceArchive, epoch: Epoch) -> Box<dyn ArchiveFiles> {
    Box::new(FileArchive { archive, epoch, writer: None })
}

fn io_error(error: ArchiveError) -> io::Error {
    match error {
        ArchiveError::Io { source, .. } => source,
        error => io::Error::other(error),
    }
}

impl FileArchive {
    /// Writes, by a writer that goes if it fails: what it had not saved is archived anew before it is overwritten.
    fn write(&mut self, write: impl FnOnce(&mut ArchiveWriter) -> Result<(), ArchiveError>) -> io::Result<()> {
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.archive.begin(self.epoch, Position::default()).map_err(io_error)?,
        };
        write(&mut writer).map_err(io_error)?;
        self.writer = Some(writer);
        Ok(())
    }
}

impl ArchiveFiles for FileArchive {
    fn archive(&mut self, path: &MirrorPath, _meta: &Meta, content: &mut dyn io::Read) -> io::Result<()> {
        let mut content = content;
        self.write(|writer| writer.add_file(path.as_bytes(), &mut content).map(drop))
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.writer.is_some() { self.write(ArchiveWriter::save) } else { Ok(()) }
    }

    fn finish(&mut self) {
        // Where it fails, the next start archives what it overwrites, though it needs not.
        if let Err(error) = self.archive.files_settled() {
            tracing::warn!(%error, "files will be archived again");
        }
    }
}

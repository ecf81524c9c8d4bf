//! Puts files into the divergence archive before the mirror overwrites them (protocol §11).
//!
//! Always: an archive is sealed and synced before anything it holds is overwritten.

use std::io;

use ringpair_wire::id::{Epoch, Position};

use crate::{
    ds::archive::{ArchiveError, ArchiveWriter, DivergenceArchive},
    mirror::{ArchiveFiles, Meta, MirrorPath},
};

/// An archive of files that is begun with the first.
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

impl ArchiveFiles for FileArchive {
    fn archive(&mut self, path: &MirrorPath, _meta: &Meta, content: &mut dyn io::Read) -> io::Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(self.archive.begin(self.epoch, Position::default()).map_err(io_error)?),
        };
        let mut content = content;
        writer.add_file(path.as_bytes(), &mut content).map(drop).map_err(io_error)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.writer.take().map_or(Ok(()), |writer| writer.seal().map(drop).map_err(io_error))
    }
}

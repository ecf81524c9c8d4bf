//! Files that come in pieces, each into a temporary file of its own.
//!
//! Always: pieces come in order, and the whole is compared with its checksum before it may get its name. Never: more
//! files at once than the bound, or a protocol error taken for a file's.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use nix::errno::Errno;
use ringpair_fsmon::begin_writing;
use ringpair_wire::mirror::Kind;
use xxhash_rust::xxh3::Xxh3;

use super::{
    Sink,
    group::Complete,
    tree::{TreeError, discard, set_meta_of_fd, write_all},
};
use crate::mirror::{Meta, MirrorError, MirrorPath};

/// So much is written to the page cache before the disk is told to begin with it.
const WRITE_BEHIND_BYTES: u64 = 8 << 20;
/// How many files may be in pieces at once.
const MAX_STREAMS: usize = 8;

/// A file that comes in pieces.
pub struct Stream {
    /// Whose content it is.
    pub path: MirrorPath,
    /// The directory that holds it.
    pub dir: Arc<OwnedFd>,
    /// Its name there by now.
    pub temporary: Vec<u8>,
    file: File,
    offset: u64,
    hasher: Box<Xxh3>,
    /// From where on the kernel was not told to write yet.
    unwritten: u64,
    /// The first thing that went wrong: the rest is dropped, and the end answered with this.
    failed: Option<String>,
}

impl Stream {
    /// Has the disk begin with what came, so that the sync at the end finds little left to write.
    fn begin_to_write(&mut self) {
        if self.offset - self.unwritten < WRITE_BEHIND_BYTES {
            return;
        }
        // Only a hint: what is not written by then is written by the sync, which tells of errors.
        begin_writing(&self.file, self.unwritten, self.offset - self.unwritten);
        self.unwritten = self.offset;
    }
}

impl Sink {
    pub(super) fn file_begin(&mut self, generation: u64, path: MirrorPath) -> Result<(), MirrorError> {
        if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&generation) {
            return Err(MirrorError::Protocol(format!(
                "more than {MAX_STREAMS} files in pieces at once, or one twice"
            )));
        }
        if self.group.removes(&path) {
            self.flush()?;
        }
        let tree = self.tree()?;
        let opened = tree.parent(&path, false, true).and_then(|(dir, name)| {
            if tree.set().left_out_by_name(name, Kind::File).is_some() {
                return Err(TreeError::Refused("it is left out of the mirror"));
            }
            let (temporary, file) = tree.create(dir.as_fd())?;
            Ok((dir, temporary, file))
        });
        match opened {
            Ok((dir, temporary, file)) => {
                let hasher = Box::new(Xxh3::new());
                let stream = Stream { path, dir, temporary, file, offset: 0, hasher, unwritten: 0, failed: None };
                self.streams.insert(generation, stream);
            }
            Err(TreeError::Archive(error)) => return Err(error),
            Err(error) => self.failed(generation, Some(&path), error.to_string()),
        }
        Ok(())
    }

    pub(super) fn file_data(&mut self, generation: u64, offset: u64, bytes: &[u8]) -> Result<(), MirrorError> {
        // A file that could not be begun was answered then.
        let Some(stream) = self.streams.get_mut(&generation) else { return Ok(()) };
        if stream.offset != offset {
            return Err(MirrorError::Protocol(format!("piece at {offset}, expected {}", stream.offset)));
        }
        stream.offset += bytes.len() as u64;
        if stream.failed.is_none() {
            stream.hasher.update(bytes);
            stream.failed = write_all(&mut stream.file, bytes).err().map(|errno| errno.desc().to_owned());
            stream.begin_to_write();
        }
        Ok(())
    }

    pub(super) fn file_end(&mut self, generation: u64, meta: &Meta, checksum: u128) -> Result<(), MirrorError> {
        let Some(stream) = self.streams.remove(&generation) else { return Ok(()) };
        let Stream { path, dir, temporary, file, offset, hasher, failed, .. } = stream;
        let wrong = failed
            .or_else(|| (meta.size != offset).then(|| format!("{offset} bytes came, {} were announced", meta.size)))
            .or_else(|| (hasher.digest128() != checksum).then(|| "its content was damaged on the way".into()))
            .or_else(|| set_meta_of_fd(&file, meta).err().map(|errno: Errno| errno.desc().to_owned()));
        if let Some(reason) = wrong {
            discard(dir.as_fd(), &temporary);
            self.failed(generation, Some(&path), reason);
            return Ok(());
        }
        self.group_paths.insert(generation, path.clone());
        self.group.file(Complete { generation, path, dir, temporary, file, bytes: offset });
        if self.group.is_full() { self.flush() } else { Ok(()) }
    }
}

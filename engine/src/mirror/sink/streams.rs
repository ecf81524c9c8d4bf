//! Files that come in pieces, each into a temporary file of its own.
//!
//! Always: pieces come in order, and the whole is compared with its checksum before it may get its name. Never: more
//! files at once than the bound, or a protocol error taken for a file's.

use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use nix::errno::Errno;
use ringpair_fsmon::begin_writing;
use ringpair_wire::mirror::{Kind, piece_checksum};

use super::{
    Sink,
    group::Complete,
    tree::{TreeError, discard, set_meta_of_fd, write_all},
};
use crate::{
    mirror::{Meta, MirrorError, MirrorPath},
    ring::Shared,
};

/// How many files may be in pieces at once.
const MAX_STREAMS: usize = 8;
/// So much is written to the page cache before the disk is told to begin with it.
const WRITE_BEHIND_BYTES: u64 = 8 << 20;
/// Files announced as so long are written by a thread of their own, while the next pieces are received and decrypted.
const APART_FROM_BYTES: u64 = 4 << 20;
/// How many pieces wait for that thread at most; then receiving waits.
const PIECES_WAITING: usize = 2;

/// A file that comes in pieces.
pub struct Stream {
    /// Whose content it is.
    pub path: MirrorPath,
    /// The directory that holds it.
    pub dir: Arc<OwnedFd>,
    /// Its name there by now.
    pub temporary: Vec<u8>,
    offset: u64,
    writing: Writing,
}

/// Who writes.
enum Writing {
    Here(Content),
    Apart(SyncSender<Shared>, JoinHandle<Content>),
}

/// What was written so far.
struct Content {
    file: File,
    bytes: u64,
    checksum: u128,
    /// From where on the disk was not told to write yet.
    unwritten: u64,
    /// The first thing that went wrong: the rest is dropped, and the end answered with this.
    failed: Option<String>,
}

impl Content {
    const fn new(file: File) -> Self {
        Self { file, bytes: 0, checksum: 0, unwritten: 0, failed: None }
    }

    fn append(&mut self, piece: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.checksum = piece_checksum(self.checksum, piece);
        self.failed = write_all(&mut self.file, piece).err().map(|errno| errno.desc().to_owned());
        self.bytes += piece.len() as u64;
        if self.bytes - self.unwritten >= WRITE_BEHIND_BYTES {
            // So that the sync at the end finds little left to write. Only a hint: errors are told by that sync.
            begin_writing(&self.file, self.unwritten, self.bytes - self.unwritten);
            self.unwritten = self.bytes;
        }
    }
}

impl Writing {
    /// Begins to write a file that will have about `size` bytes.
    fn begin(file: File, size: u64) -> Self {
        let mut content = Content::new(file);
        if size < APART_FROM_BYTES {
            return Self::Here(content);
        }
        let Ok(spare) = content.file.try_clone() else { return Self::Here(content) };
        let (sender, pieces) = sync_channel::<Shared>(PIECES_WAITING);
        let thread = std::thread::Builder::new().name("write".into()).spawn(move || {
            pieces.into_iter().for_each(|piece| content.append(&piece));
            content
        });
        match thread {
            Ok(thread) => Self::Apart(sender, thread),
            Err(_) => Self::Here(Content::new(spare)),
        }
    }

    fn append(&mut self, piece: Shared) {
        match self {
            Self::Here(content) => content.append(&piece),
            // A thread that is gone is noticed at the end.
            Self::Apart(sender, _) => drop(sender.send(piece)),
        }
    }

    /// Waits until everything is written; `None`: the thread died.
    fn finish(self) -> Option<Content> {
        match self {
            Self::Here(content) => Some(content),
            Self::Apart(sender, thread) => {
                drop(sender);
                thread.join().ok()
            }
        }
    }
}

impl Sink {
    pub(super) fn file_begin(&mut self, generation: u64, path: MirrorPath, size: u64) -> Result<(), MirrorError> {
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
                let writing = Writing::begin(file, size);
                self.streams.insert(generation, Stream { path, dir, temporary, offset: 0, writing });
            }
            Err(TreeError::Archive(error)) => return Err(error),
            Err(error) => self.failed(generation, Some(&path), error.to_string()),
        }
        Ok(())
    }

    pub(super) fn file_data(&mut self, generation: u64, offset: u64, bytes: Shared) -> Result<(), MirrorError> {
        // A file that could not be begun was answered then.
        let Some(stream) = self.streams.get_mut(&generation) else { return Ok(()) };
        if stream.offset != offset {
            return Err(MirrorError::Protocol(format!("piece at {offset}, expected {}", stream.offset)));
        }
        stream.offset += bytes.len() as u64;
        stream.writing.append(bytes);
        Ok(())
    }

    pub(super) fn file_end(&mut self, generation: u64, meta: &Meta, checksum: u128) -> Result<(), MirrorError> {
        let Some(stream) = self.streams.remove(&generation) else { return Ok(()) };
        let Stream { path, dir, temporary, offset, writing } = stream;
        let ended = writing.finish().ok_or_else(|| "the thread that wrote it died".to_owned());
        let written = ended.and_then(|Content { file, checksum: came, failed, .. }| match failed {
            Some(reason) => Err(reason),
            None if meta.size != offset => Err(format!("{offset} bytes came, {} were announced", meta.size)),
            None if came != checksum => Err("its content was damaged on the way".into()),
            None => set_meta_of_fd(&file, meta).map(|()| file).map_err(|errno: Errno| errno.desc().to_owned()),
        });
        let file = match written {
            Ok(file) => file,
            Err(reason) => {
                discard(dir.as_fd(), &temporary);
                self.failed(generation, Some(&path), reason);
                return Ok(());
            }
        };
        self.group_paths.insert(generation, path.clone());
        self.group.file(Complete { generation, path, dir, temporary, file, bytes: offset });
        if self.group.is_full() { self.flush() } else { Ok(()) }
    }
}

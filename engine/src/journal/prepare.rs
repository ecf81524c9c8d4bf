//! Makes the next segment ahead of its use: a file full of zeroes, in bounded pieces through the driver.
//!
//! Writing into zeroes costs 173 us where appending costs 353: no block is allocated, no size changes. The zeroes pass the
//! page cache by where the file system permits (O_DIRECT): nothing is copied, nothing of it waits in memory, and one sync
//! at the end has only metadata to write. Elsewhere each piece is synced by itself, so that no large sync delays a group.
//! At most one operation is in flight.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    libc,
};

use super::{
    JournalError,
    files::{ZERO_CHUNK_BYTES, failed},
    format::{PAGE_BYTES, segment_path},
};
use crate::ring::{Driver, Fd, Op, Shared, Token};

/// How many chunks of zeroes are one piece where nothing is copied.
const CHUNKS_AT_ONCE: u64 = 4;

/// The segment being prepared.
#[derive(Debug)]
pub(super) struct Preparation {
    index: u32,
    path: PathBuf,
    capacity: u64,
    stage: Stage,
    /// Whether the page cache may be passed by, as far as is known.
    may_bypass: bool,
}

#[derive(Debug)]
enum Stage {
    /// Nothing done yet.
    Begin,
    /// Zeroes up to byte `done` are written; `submitted`: the next piece is in flight.
    Zeroing { fd: Fd, bypasses: bool, done: u64, submitted: bool },
    /// What was written past the page cache is being made durable.
    Syncing { fd: Fd, submitted: bool },
    /// The name is being made durable.
    Naming { submitted: bool },
    /// Of use.
    Ready { fd: Fd },
    /// No room, or worse: waits for another try.
    Broken,
}

/// What a completion changed.
pub(super) enum Prepared {
    /// Nothing to tell.
    Underway,
    /// The segment is ready.
    Ready,
    /// It cannot be made now.
    Broken(JournalError),
}

impl Preparation {
    pub(super) fn new(dir: &Path, index: u32, capacity: u64) -> Self {
        let may_bypass = capacity.is_multiple_of(PAGE_BYTES);
        Self { index, path: segment_path(dir, index), capacity, stage: Stage::Begin, may_bypass }
    }

    /// Its number.
    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// How many bytes it takes on disk so far.
    pub(super) fn bytes(&self) -> u64 {
        match &self.stage {
            Stage::Begin | Stage::Broken => 0,
            // Its blocks are taken first.
            _ => self.capacity,
        }
    }

    /// The ready file; the preparation begins anew if it is not used.
    pub(super) fn take_ready(&mut self) -> Option<Fd> {
        match &self.stage {
            Stage::Ready { fd } => {
                let fd = fd.clone();
                self.stage = Stage::Broken;
                Some(fd)
            }
            _ => None,
        }
    }

    /// Leaves the broken stage.
    pub(super) fn retry(&mut self) {
        if matches!(self.stage, Stage::Broken) {
            self.stage = Stage::Begin;
        }
    }

    /// Submits the next piece if none is in flight.
    pub(super) fn pump(&mut self, driver: &mut Driver, dir: &Fd, zeroes: &Shared, token: Token) -> Prepared {
        if let Stage::Begin = self.stage {
            match self.create() {
                Ok((file, bypasses)) => {
                    self.stage = Stage::Zeroing { fd: Fd::new(file), bypasses, done: 0, submitted: false };
                }
                Err(error) => return self.give_up("create", error),
            }
        }
        match &mut self.stage {
            Stage::Zeroing { fd, bypasses, done, submitted: submitted @ false } => {
                let (fd, left, offset) = (fd.clone(), self.capacity - *done, *done);
                let op = if *bypasses {
                    let piece = left.min(CHUNKS_AT_ONCE * ZERO_CHUNK_BYTES as u64) as usize;
                    let slice = |at: usize| zeroes.slice(..(piece - at).min(ZERO_CHUNK_BYTES));
                    Op::WriteAt { fd, slices: (0..piece).step_by(ZERO_CHUNK_BYTES).map(slice).collect(), offset }
                } else {
                    let piece = left.min(ZERO_CHUNK_BYTES as u64) as usize;
                    Op::WriteSynced { fd, slices: vec![zeroes.slice(..piece)], offset }
                };
                *submitted = driver.submit(token, op).is_ok();
            }
            Stage::Syncing { fd, submitted: submitted @ false } => {
                *submitted = driver.submit(token, Op::Fsync { fd: fd.clone() }).is_ok();
            }
            Stage::Naming { submitted: submitted @ false } => {
                *submitted = driver.submit(token, Op::Fsync { fd: dir.clone() }).is_ok();
            }
            _ => {}
        }
        Prepared::Underway
    }

    /// An empty file with its blocks, and whether it passes the page cache by.
    fn create(&self) -> io::Result<(File, bool)> {
        let mut plainly = OpenOptions::new();
        plainly.write(true).read(true).create(true).truncate(true);
        let mut bypassing = plainly.clone();
        let opened = match self.may_bypass.then(|| bypassing.custom_flags(libc::O_DIRECT).open(&self.path)) {
            Some(Ok(file)) => (file, true),
            _ => (plainly.open(&self.path)?, false),
        };
        let bytes = libc::off_t::try_from(self.capacity).unwrap_or(libc::off_t::MAX);
        match fallocate(&opened.0, FallocateFlags::empty(), 0, bytes) {
            // Blocks in one piece are a help, no need; not every file system knows it.
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINTR) => Ok(opened),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the last completion of the operation in flight.
    pub(super) fn on_completion(&mut self, result: io::Result<usize>) -> Prepared {
        match (&mut self.stage, result) {
            (Stage::Zeroing { fd, bypasses, done, submitted }, Ok(count)) => {
                *done += count as u64;
                *submitted = false;
                if *done >= self.capacity {
                    self.stage = match *bypasses {
                        true => Stage::Syncing { fd: fd.clone(), submitted: false },
                        false => Stage::Naming { submitted: false },
                    };
                }
                Prepared::Underway
            }
            // A device with larger blocks than pages, or a file system that changed its mind.
            (Stage::Zeroing { bypasses: true, .. }, Err(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                (self.may_bypass, self.stage) = (false, Stage::Begin);
                Prepared::Underway
            }
            (Stage::Syncing { .. }, Ok(_)) => {
                self.stage = Stage::Naming { submitted: false };
                Prepared::Underway
            }
            // Frames go through the page cache, where readers find them.
            (Stage::Naming { .. }, Ok(_)) => match OpenOptions::new().read(true).write(true).open(&self.path) {
                Ok(file) => {
                    self.stage = Stage::Ready { fd: Fd::new(file) };
                    Prepared::Ready
                }
                Err(error) => self.give_up("open", error),
            },
            (Stage::Zeroing { .. } | Stage::Syncing { .. } | Stage::Naming { .. }, Err(error)) => {
                self.give_up("prepare", error)
            }
            _ => Prepared::Underway,
        }
    }

    /// Removes what there is, so that it takes no room.
    fn give_up(&mut self, what: &'static str, error: io::Error) -> Prepared {
        self.stage = Stage::Broken;
        // If even that fails, the next try truncates the file.
        let _ = std::fs::remove_file(&self.path);
        Prepared::Broken(failed(what, &self.path)(error))
    }
}

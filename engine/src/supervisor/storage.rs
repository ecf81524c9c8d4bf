//! The lock of the storage directory: one member at a time (interface §3 `[storage] dir`).
//!
//! Always: held by the supervisor and, through an inherited descriptor, by its worker, so that a worker that outlives
//! its supervisor keeps a new member out until it has ended. Never: a lock taken from a living process.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// The name of the lock file.
pub const LOCK_NAME: &str = "lock";
/// How often an orphaned worker is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why the storage directory is not this process's.
#[derive(Debug, Error)]
pub enum StorageError {
    /// Another member uses it.
    #[error("storage.dir = {dir:?} is in use by process {pid}. Try: another directory, or stop that member")]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// The holder's process id, as far as it is known.
        pid: String,
    },
    /// It cannot be made or locked.
    #[error(
        "storage.dir = {dir:?} cannot be used: {source}. Try: create it for this user (mode 0700), look at its file system"
    )]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A locked storage directory.
#[derive(Debug)]
pub struct StorageLock {
    file: Flock<File>,
}

impl StorageLock {
    /// Creates the directory (mode 0700) where it is missing, and locks it. Where the lock is held by a worker whose
    /// supervisor is dead, waits at most `orphan_wait` for it to end.
    ///
    /// # Errors
    /// If another process uses the directory, or it cannot be used at all.
    pub fn acquire(dir: &Path, orphan_wait: Duration) -> Result<Self, StorageError> {
        let failed = |source| StorageError::Io { dir: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let path = dir.join(LOCK_NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        let deadline = Instant::now() + orphan_wait;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Self::signed(locked).map_err(failed),
                Err((mut busy, nix::Error::EWOULDBLOCK)) => {
                    let pid = holder(&mut busy);
                    if is_alive(&pid) || Instant::now() >= deadline {
                        return Err(StorageError::InUse { dir: dir.to_owned(), pid });
                    }
                    file = busy;
                    thread::sleep(LOOK_AGAIN);
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    /// Writes this process's id into the lock file, for whoever finds it locked.
    fn signed(mut file: Flock<File>) -> io::Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", process::id())?;
        Ok(Self { file })
    }
}

impl AsFd for StorageLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    if read.is_err() || text.trim().is_empty() { "unknown".into() } else { text.trim().into() }
}

fn is_alive(pid: &str) -> bool {
    pid.parse::<u32>().is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_by_name_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("new/storage");
        let held = StorageLock::acquire(&storage, Duration::ZERO).unwrap();
        let started = Instant::now();
        let error = StorageLock::acquire(&storage, Duration::from_secs(60)).unwrap_err().to_string();
        assert!(started.elapsed() < Duration::from_secs(30), "the holder lives: there is nothing to wait for");
        assert!(error.contains(&process::id().to_string()) && error.contains("Try: "), "{error}");
        drop(held);
        StorageLock::acquire(&storage, Duration::ZERO).unwrap();
    }

    #[test]
    fn an_orphaned_worker_keeps_the_lock_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let held = StorageLock::acquire(dir.path(), Duration::ZERO).unwrap();
        // As a worker does whose supervisor, a process that is no more, held the lock.
        fs::write(dir.path().join(LOCK_NAME), "4194305\n").unwrap();
        assert!(StorageLock::acquire(dir.path(), Duration::from_millis(60)).is_err());
        let orphan = thread::spawn(move || drop(held));
        StorageLock::acquire(dir.path(), Duration::from_secs(60)).unwrap();
        orphan.join().unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let error = StorageLock::acquire(&dir.path().join("file/storage"), Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("file/storage"), "{error}");
    }
}

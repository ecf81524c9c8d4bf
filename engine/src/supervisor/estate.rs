//! What a dead worker leaves: its control file and its journal.
//!
//! Always: read and written only while no worker lives; a state is on disk before anything that depends on it is said.
//! Never: a write to the journal, or a word about a control file of which a slot is damaged: its owner may have seen a
//! higher epoch than the sound slot says (protocol §1).
#![forbid(unsafe_code)]

use std::{
    io,
    path::{Path, PathBuf},
};

use ringpair_core::{
    persisted::Persisted,
    supervisor::{Left, given_back, released},
};
use ringpair_wire::{
    codec::Codec,
    control::{GrantId, Role},
    id::Position,
};

use super::answer::Tail;
use crate::{
    control_file::{self, ControlFile, ControlLoad},
    journal::{JournalReader, ReadError},
};

/// Where the journal lies in a storage directory.
pub const JOURNAL_DIR: &str = "journal";

/// The control file of a dead worker, as far as the supervisor uses it.
pub trait Estate {
    /// What the worker left; `None`: its storage is empty.
    ///
    /// # Errors
    /// If control file or journal cannot be read.
    fn left(&mut self) -> io::Result<Option<Left>>;
    /// Persists that this member is not active in its epoch any more.
    ///
    /// # Errors
    /// If it is not on disk.
    fn persist_release(&mut self) -> io::Result<()>;
    /// Persists that this grant is given back.
    ///
    /// # Errors
    /// If it is not on disk.
    fn persist_give_back(&mut self, grant: GrantId) -> io::Result<()>;
}

/// The estate in a storage directory.
#[derive(Debug)]
pub struct DiskEstate {
    storage_dir: PathBuf,
}

impl DiskEstate {
    /// The estate in this storage directory.
    #[must_use]
    pub fn new(storage_dir: &Path) -> Self {
        Self { storage_dir: storage_dir.to_owned() }
    }

    fn change(&self, change: impl FnOnce(&Persisted) -> Persisted) -> io::Result<()> {
        let (mut file, load) = ControlFile::open(&self.storage_dir).map_err(io::Error::other)?;
        let state = decode(&load)?.ok_or_else(|| io::Error::other("the control file is empty"))?;
        file.store(&change(&state).to_bytes()).map_err(io::Error::other)
    }
}

fn decode(load: &ControlLoad) -> io::Result<Option<Persisted>> {
    if load.damaged {
        return Err(io::Error::other("a slot of the control file is damaged"));
    }
    if load.payload.is_empty() {
        return Ok(None);
    }
    Persisted::from_bytes(&load.payload).map(Some).map_err(io::Error::other)
}

impl Estate for DiskEstate {
    fn left(&mut self) -> io::Result<Option<Left>> {
        let Some(load) = control_file::load(&self.storage_dir).map_err(io::Error::other)? else { return Ok(None) };
        let Some(state) = decode(&load)? else { return Ok(None) };
        let mut left = Left::new(&state, Position::default());
        if left.role == Role::Active && left.right.is_some() {
            // Only a release names the end, and finding it reads the journal.
            let (journal, _) =
                JournalReader::open_dir(&self.storage_dir.join(JOURNAL_DIR)).map_err(io::Error::other)?;
            left.end = journal.end();
        }
        Ok(Some(left))
    }

    fn persist_release(&mut self) -> io::Result<()> {
        self.change(released)
    }

    fn persist_give_back(&mut self, grant: GrantId) -> io::Result<()> {
        self.change(|state| given_back(state, grant))
    }
}

/// The journal in a storage directory.
#[derive(Debug)]
pub struct DiskTail {
    journal_dir: PathBuf,
}

impl DiskTail {
    /// The journal in this storage directory.
    #[must_use]
    pub fn new(storage_dir: &Path) -> Self {
        Self { journal_dir: storage_dir.join(JOURNAL_DIR) }
    }
}

impl Tail for DiskTail {
    fn serve(&self, after: &Position, send: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Option<Position>> {
        let (journal, _) = JournalReader::open_dir(&self.journal_dir).map_err(io::Error::other)?;
        let mut cursor = match journal.after(after) {
            Ok(cursor) => cursor,
            Err(ReadError::Gone { .. } | ReadError::NotHeld(_)) => return Ok(None),
            Err(error) => return Err(io::Error::other(error)),
        };
        while let Some(frame) = cursor.next_frame().map_err(io::Error::other)? {
            send(&frame.bytes)?;
        }
        Ok(Some(cursor.position()))
    }
}

#[cfg(test)]
mod tests {
    use ringpair_core::persisted::Right;
    use ringpair_wire::id::{ChainHash, Epoch, Seq};

    use super::*;

    const EPOCH: Epoch = Epoch(65_537);
    const GRANT: GrantId = GrantId { epoch: EPOCH, number: 3 };

    fn store(dir: &Path, state: &Persisted) {
        ControlFile::open(dir).unwrap().0.store(&state.to_bytes()).unwrap();
    }

    fn active() -> Persisted {
        Persisted {
            highest_epoch: EPOCH,
            own_epoch: EPOCH,
            last_role: Role::Active,
            right: Right::Out(GRANT),
            ..Persisted::default()
        }
    }

    #[test]
    fn a_release_is_on_disk_for_the_next_worker() {
        let dir = tempfile::tempdir().unwrap();
        let mut estate = DiskEstate::new(dir.path());
        assert_eq!(estate.left().unwrap(), None, "empty storage");
        store(dir.path(), &active());
        assert!(estate.left().is_err(), "a journal that cannot be read names no end: nothing is released");
        std::fs::create_dir(dir.path().join(JOURNAL_DIR)).unwrap();
        assert_eq!(estate.left().unwrap().unwrap().right, Some(GRANT));
        estate.persist_release().unwrap();
        let left = estate.left().unwrap().unwrap();
        assert_eq!((left.role, left.right), (Role::None, None));
        let load = control_file::load(dir.path()).unwrap().unwrap();
        assert_eq!(Persisted::from_bytes(&load.payload).unwrap().released, Some(EPOCH));
    }

    #[test]
    fn a_right_given_back_is_on_disk_for_the_next_worker() {
        let dir = tempfile::tempdir().unwrap();
        let mut estate = DiskEstate::new(dir.path());
        store(
            dir.path(),
            &Persisted { last_role: Role::Backup, own_epoch: Epoch(0), right: Right::Held(GRANT), ..active() },
        );
        assert_eq!(estate.left().unwrap().unwrap().right, Some(GRANT));
        estate.persist_give_back(GRANT).unwrap();
        assert_eq!(estate.left().unwrap().unwrap().right, None);
    }

    #[test]
    fn nothing_is_said_about_a_damaged_control_file() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), &active());
        let path = control_file::control_path(dir.path());
        let sound = std::fs::read(&path).unwrap();
        for index in [0, sound.len() / 2, sound.len() - 1] {
            let mut damaged = sound.clone();
            damaged[index] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            std::fs::create_dir_all(dir.path().join(JOURNAL_DIR)).unwrap();
            let mut estate = DiskEstate::new(dir.path());
            assert!(estate.left().is_err() && estate.persist_release().is_err(), "byte {index}");
        }
    }

    #[test]
    fn an_unknown_position_has_no_tail() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(JOURNAL_DIR)).unwrap();
        let tail = DiskTail::new(dir.path());
        let unknown = Position { epoch: EPOCH, seq: Seq(9), chain: ChainHash(1) };
        assert_eq!(tail.serve(&unknown, &mut |_| unreachable!("there is no frame")).unwrap(), None);
    }
}

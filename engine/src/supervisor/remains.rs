//! The dead worker's control file and journal, as the supervisor reads and changes them.
//!
//! Always: opened anew for each use, since a worker writes them as long as it lives. Never: a write to the journal.
#![forbid(unsafe_code)]

use std::{io, path::PathBuf};

use ringpair_core::{
    persisted::{Persisted, Right},
    supervisor::Left,
};
use ringpair_wire::{codec::Codec, control::GrantId, id::Position};

use super::{answer::Tail, estate::Estate};
use crate::{
    control_file::{self, ControlFile},
    journal::JournalReader,
};

/// Where a worker keeps its journal, below the storage directory.
pub const JOURNAL_DIR: &str = "journal";

/// What lies in a storage directory.
#[derive(Clone, Debug)]
pub struct Remains {
    dir: PathBuf,
}

impl Remains {
    /// Those in `dir`.
    #[must_use]
    pub const fn of(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn persisted(&self) -> io::Result<Option<Persisted>> {
        let loaded = control_file::load(&self.dir).map_err(io::Error::other)?;
        let payload = loaded.map(|loaded| loaded.payload).filter(|payload| !payload.is_empty());
        payload.map(|payload| Persisted::from_bytes(&payload).map_err(io::Error::other)).transpose()
    }

    fn change(&self, change: impl FnOnce(&mut Persisted)) -> io::Result<()> {
        let mut persisted = self.persisted()?.ok_or_else(|| io::Error::other("there is no control file"))?;
        change(&mut persisted);
        let (mut file, _) = ControlFile::open(&self.dir).map_err(io::Error::other)?;
        file.store(&persisted.to_bytes()).map_err(io::Error::other)
    }
}

impl Estate for Remains {
    fn left(&mut self) -> io::Result<Option<Left>> {
        let Some(persisted) = self.persisted()? else { return Ok(None) };
        let (_, recovered) = JournalReader::open_dir(&self.dir.join(JOURNAL_DIR)).map_err(io::Error::other)?;
        Ok(Some(Left::new(&persisted, recovered.end)))
    }

    fn persist_release(&mut self) -> io::Result<()> {
        self.change(|persisted| persisted.released = Some(persisted.own_epoch))
    }

    fn persist_give_back(&mut self, grant: GrantId) -> io::Result<()> {
        self.change(|persisted| persisted.right = Right::GivenBack(grant))
    }
}

impl Tail for Remains {
    fn serve(&self, after: &Position, send: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Option<Position>> {
        let (reader, _) = JournalReader::open_dir(&self.dir.join(JOURNAL_DIR)).map_err(io::Error::other)?;
        let Ok(mut cursor) = reader.after(after) else { return Ok(None) };
        while let Some(frame) = cursor.next_frame().map_err(io::Error::other)? {
            send(&frame.bytes)?;
        }
        Ok(Some(cursor.position()))
    }
}

//! Reading frames back, from any thread.

use std::path::{Path, PathBuf};

use ringpair_wire::id::Position;

use super::{JournalError, ReadError, Recovered, StoredFrame};

/// Reads a journal: its owner's (up to what is written, which moves on), or a dead worker's directory.
#[derive(Clone, Debug)]
pub struct JournalReader {
    dir: PathBuf,
    recovered: Recovered,
}

impl JournalReader {
    /// Opens a directory to read only, changing nothing: for the tail of a worker that has died. Ends where a
    /// recovery would end.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn open_dir(dir: &Path) -> Result<(Self, Recovered), JournalError> {
        let reader = Self { dir: dir.to_owned(), recovered: Recovered::default() };
        Ok((reader.clone(), reader.recovered))
    }

    /// The end of what can be read now.
    #[must_use]
    pub fn end(&self) -> Position {
        self.recovered.end
    }

    /// The position before the oldest frame held.
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.recovered.oldest
    }

    /// Starts reading behind `after`, which must be the end of a frame held or the oldest position.
    ///
    /// # Errors
    /// [`ReadError::Gone`], [`ReadError::NotHeld`], [`ReadError::Damaged`], [`ReadError::Io`].
    pub fn after(&self, after: &Position) -> Result<Cursor, ReadError> {
        Err(ReadError::NotHeld(*after))
    }

    /// Whether `position` is the end of a frame held, or the oldest position.
    ///
    /// # Errors
    /// [`ReadError::Damaged`], [`ReadError::Io`].
    pub fn contains(&self, position: &Position) -> Result<bool, ReadError> {
        Ok(*position == self.recovered.end && self.dir.exists())
    }
}

/// A place in a journal that moves forward frame by frame. Blocks on the disk where the page cache misses: bulk or
/// control threads read far back, the stream thread only what is recent.
#[derive(Debug)]
pub struct Cursor {
    at: Position,
}

impl Cursor {
    /// The end of the last frame given out.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// The next frame, checked, or `None` at the end of what is written (ask again later).
    ///
    /// # Errors
    /// [`ReadError::Damaged`], [`ReadError::Changed`], [`ReadError::Io`].
    pub fn next_frame(&mut self) -> Result<Option<StoredFrame>, ReadError> {
        Ok(None)
    }
}

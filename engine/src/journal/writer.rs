//! The journal's one owner: appends with group commit and carries out what changes the journal as a whole.

use std::path::Path;

use ringpair_wire::id::{Epoch, HistoryId, Position, Seq};

use super::{AppendError, JournalError, JournalEvent, JournalOptions, JournalReader, Recovered};
use crate::ring::{Completion, Driver, Shared};

/// The journal, owned by the stream thread.
#[derive(Debug)]
pub struct Journal {
    recovered: Recovered,
    reader: JournalReader,
}

impl Journal {
    /// Locks the directory (made if missing), recovers what it holds, and leaves it ready to append. Synchronous: for
    /// the start.
    ///
    /// # Errors
    /// [`JournalError`]: in use by another process, unreadable, or options out of range. Damage is no error, see
    /// [`Recovered`].
    pub fn open(dir: &Path, _options: JournalOptions) -> Result<(Self, Recovered), JournalError> {
        let (reader, recovered) = JournalReader::open_dir(dir)?;
        Ok((Self { recovered: recovered.clone(), reader }, recovered))
    }

    /// Appends a frame that ends at `end`, in memory: [`pump`](Self::pump) writes it.
    ///
    /// # Errors
    /// [`AppendError`]; the frame was not taken.
    pub fn append(&mut self, _frame: Shared, _end: Position) -> Result<(), AppendError> {
        Err(AppendError::Empty)
    }

    /// Submits what can be: the next group if none is in flight, the next piece of the segment being prepared. Call
    /// once a turn, before the driver's turn.
    pub fn pump(&mut self, _driver: &mut Driver) {}

    /// Takes a completion whose token's owner is [`Token::JOURNAL`](crate::ring::Token::JOURNAL), and appends what it
    /// means to `events`. Call [`pump`](Self::pump) afterwards.
    pub fn on_completion(&mut self, _completion: Completion, _events: &mut Vec<JournalEvent>) {}

    /// The history; `None` while the journal is empty.
    #[must_use]
    pub fn history(&self) -> Option<HistoryId> {
        self.recovered.history
    }

    /// The end of the last frame appended.
    #[must_use]
    pub fn end(&self) -> Position {
        self.recovered.end
    }

    /// The end of the last frame written.
    #[must_use]
    pub fn written(&self) -> Position {
        self.recovered.end
    }

    /// The end of the last frame that is on disk.
    #[must_use]
    pub fn synced(&self) -> Position {
        self.recovered.end
    }

    /// The position before the oldest frame held.
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.recovered.oldest
    }

    /// Each epoch that begins in the frames held, with the end of its first frame; ascending.
    #[must_use]
    pub fn epochs(&self) -> &[(Epoch, Position)] {
        &self.recovered.epochs
    }

    /// Frames appended and not yet written, oldest first: what a reader cannot see yet.
    pub fn unwritten(&self) -> impl Iterator<Item = (&Shared, Position)> {
        std::iter::empty()
    }

    /// Bytes appended and not yet written.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        0
    }

    /// Whether `position` is the end of a frame appended, or the oldest position. Blocks on the disk where the page
    /// cache misses: for reconnects.
    pub fn contains(&self, position: &Position) -> bool {
        *position == self.recovered.end
    }

    /// Bytes of the journal's files, the segment being prepared included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        0
    }

    /// A reader of what is written.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        self.reader.clone()
    }

    /// Whether an operation of the journal is in flight or a frame waits: [`truncate_after`](Self::truncate_after) and
    /// [`reset`](Self::reset) are refused meanwhile.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        false
    }

    /// Removes everything behind `position`, durably. Synchronous, for a member that has archived what it removes. A
    /// crash in the middle leaves a journal that ends at `position` or later: do it again.
    ///
    /// # Errors
    /// [`JournalError::Busy`], [`JournalError::NotHeld`], [`JournalError::Io`].
    pub fn truncate_after(&mut self, position: &Position) -> Result<(), JournalError> {
        Err(JournalError::NotHeld(*position))
    }

    /// Starts anew: history `history`, nothing held, the next frame follows `position`. Durable; a crash leaves either
    /// the old journal or the new.
    ///
    /// # Errors
    /// [`JournalError::Busy`], [`JournalError::Io`].
    pub fn reset(&mut self, history: HistoryId, position: Position) -> Result<(), JournalError> {
        self.recovered = Recovered { history: Some(history), end: position, oldest: position, ..Recovered::default() };
        Ok(())
    }

    /// Removes the whole segments that hold only records before `seq` (retention, `journal_max_bytes`); how many bytes
    /// that gave back. The newest segment stays.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn drop_before(&mut self, _seq: Seq) -> Result<u64, JournalError> {
        Ok(0)
    }

    /// The last record of the oldest segment: dropping before the one after it gives back one segment. `None` while
    /// there is only one segment.
    #[must_use]
    pub fn oldest_segment_end(&self) -> Option<Seq> {
        None
    }

    /// Tries again to prepare a segment after [`JournalEvent::NoRoom`].
    pub fn retry(&mut self) {}
}

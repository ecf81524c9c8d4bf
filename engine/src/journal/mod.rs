//! The journal: the history of frames on disk, the same bytes as on the wire, and the source of truth for records.
//!
//! A directory of segment files of one fixed size, zero-filled ahead of use, each with a header and frames back to back.
//! [`Journal`] (one owner, the stream thread) appends through a [`Driver`](crate::ring::Driver) with group commit: one
//! write+fdatasync in flight while the next group gathers. [`JournalReader`]s read from any thread.
//!
//! What always holds: the frames held are one unbroken chain from `oldest` to `end`; a position is reported as synced only
//! after an fdatasync that covers it; a frame that fails its checksum or does not continue the chain is never given out;
//! bytes of a sealed segment never change in place (it is replaced or removed whole, so that mappings stay true).
//! What it must never do: retry a failed fsync, skip damage silently, grow without bound, wait for the disk in `append`,
//! `pump` and `on_completion`.
#![forbid(unsafe_code)]

mod catalog;
mod change;
mod error;
mod files;
mod format;
#[cfg(test)]
mod measure;
mod prepare;
mod reader;
mod scan;
#[cfg(test)]
mod tests;
mod writer;

use std::{ops::RangeInclusive, path::PathBuf};

use ringpair_wire::id::{Epoch, HistoryId, Position, Seq};

pub use error::{AppendError, JournalError, ReadError};
pub use reader::{Cursor, JournalReader};
pub use writer::Journal;

use crate::ring::Shared;

/// How a journal is kept.
#[derive(Clone, Debug)]
pub struct JournalOptions {
    /// The size of every segment, in bytes: a multiple of 4096, 64 KiB to 64 MiB.
    pub segment_bytes: u64,
    /// The greatest number of bytes in one group (one write+fdatasync).
    pub group_bytes: usize,
    /// The greatest number of bytes appended and not yet written; more are refused.
    pub pending_bytes: usize,
}

impl Default for JournalOptions {
    fn default() -> Self {
        Self { segment_bytes: 16 << 20, group_bytes: 1 << 20, pending_bytes: 8 << 20 }
    }
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The history; `None`: the journal is empty and takes nothing until [`Journal::reset`].
    pub history: Option<HistoryId>,
    /// The end of the last good frame: where the journal goes on.
    pub end: Position,
    /// The position before the oldest frame held: readers can start here or later.
    pub oldest: Position,
    /// Each epoch that begins in the frames held, with the position that its first frame follows; ascending.
    pub epochs: Vec<(Epoch, Position)>,
    /// Bytes at the very end that a crash left half written (never synced): discarded.
    pub torn_bytes: u64,
    /// Damage with history behind it, or missing segments. The journal ends before the first; what lies behind is kept
    /// in the directory's `quarantine`, out of use: fetch it from the peer again.
    pub corrupt: Vec<Corrupt>,
}

/// A damaged place of a journal, and what can no longer be read because of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corrupt {
    /// The segment's file.
    pub file: PathBuf,
    /// The first bad byte's frame begins here, in bytes.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// The records behind the damage as far as their numbers can be told: the first missing to the last that can be seen.
    pub lost: RangeInclusive<u64>,
    /// Whether all of it lies within the reach of the last group: then it may be a write that a crash cut short, of
    /// which nothing was ever reported as synced.
    pub maybe_torn: bool,
}

/// What happened to frames that were appended.
#[derive(Debug)]
pub enum JournalEvent {
    /// Everything through here is in the file: it survives the process, not the host.
    Written(Position),
    /// Everything through here is on disk.
    Synced(Position),
    /// A write or fsync failed: the journal takes nothing more until it is opened anew (protocol §10). What was synced
    /// can still be read.
    Failed {
        /// What failed, with the file.
        error: JournalError,
    },
    /// The next segment cannot be made, mostly for lack of room. Appending goes on until the current one is full; see
    /// [`Journal::retry`].
    NoRoom {
        /// What failed, with the file.
        error: JournalError,
    },
    /// The next segment is ready after [`NoRoom`](Self::NoRoom).
    Room,
}

/// A frame read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFrame {
    /// The bytes as they were appended; checked.
    pub bytes: Shared,
    /// The number of its first record.
    pub first: Seq,
    /// The position at its end.
    pub end: Position,
}

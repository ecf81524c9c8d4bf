//! What can go wrong with a journal. Each error names the file or position and, where there is one, what to try.

use std::{io, path::PathBuf};

use ringpair_wire::id::{Position, Seq};

/// Opening, writing or changing a journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process has the journal open.
    #[error("{0} is in use by another process. Try: ringpair status, or another storage.dir")]
    Locked(PathBuf),
    /// An operation on a file failed.
    #[error("cannot {what} {file}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// [`JournalOptions`](super::JournalOptions) out of range.
    #[error("{key} is {value}, not {range}")]
    Options {
        /// Which one.
        key: &'static str,
        /// What was given.
        value: u64,
        /// What is possible.
        range: &'static str,
    },
    /// The position is not the end of a frame held, nor the oldest position.
    #[error("position {epoch}:{seq} is not in the journal", epoch = .0.epoch, seq = .0.seq)]
    NotHeld(Position),
    /// A write is in flight: wait for its completion.
    #[error("the journal has writes in flight")]
    Busy,
    /// An earlier failure was final.
    #[error("the journal has failed before and must be opened anew")]
    Failed,
}

/// A frame was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// As many bytes wait to be written as may. Try again after the next `Written`.
    #[error("as many bytes wait for the journal as may")]
    Full,
    /// The frame does not follow the end of the journal: an error of the caller.
    #[error("the frame begins with record {got}, the journal goes on with {expected}")]
    NotNext {
        /// Its first record.
        got: Seq,
        /// What would follow.
        expected: Seq,
    },
    /// The bytes are no frame, or its chain is not that of the journal's end: an error of the caller.
    #[error("the bytes are no frame that continues the journal's chain")]
    NotChained,
    /// The frame does not fit into a segment: an error of the caller.
    #[error("the frame has {got} bytes, a segment holds {max}")]
    TooLarge {
        /// Its size.
        got: usize,
        /// What fits.
        max: usize,
    },
    /// There is no history yet: [`Journal::reset`](super::Journal::reset) first.
    #[error("the journal is empty and has no history yet")]
    Empty,
    /// An earlier failure was final (protocol §10).
    #[error("the journal has failed and takes nothing more")]
    Failed,
}

/// Frames could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Older than what is held: digests must resynchronize.
    #[error("records after {wanted} are asked for, the journal begins after {oldest}")]
    Gone {
        /// After which record.
        wanted: Seq,
        /// The oldest position's record.
        oldest: Seq,
    },
    /// No frame with that epoch, number and chain ends here: another history.
    #[error("position {epoch}:{seq} is not in the journal", epoch = .0.epoch, seq = .0.seq)]
    NotHeld(Position),
    /// The bytes at that place are not the frame that was written.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The segment's file.
        file: PathBuf,
        /// Where the frame begins.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The journal was reset or truncated meanwhile: position anew.
    #[error("the journal was cut back while it was read")]
    Changed,
    /// An operation on a file failed.
    #[error("cannot {what} {file}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

//! The file mirror: [`Source`] on the active member, [`Sink`] on the backup.
//!
//! Both are duty cycles for the bulk thread: `turn` does a bounded piece of work and says whether it did any,
//! `poll_*` hands out what is to be sent, `handle_message` takes what came. Always: a path is announced before its
//! content travels, and leaves the dirty set when the backup has it durably. Never: a socket, a thread, a clock of
//! their own, or a deletion because something could not be read.

mod base;
mod lister;
mod sink;
mod source;

use std::{collections::VecDeque, io};

pub use base::MirrorBase;
pub use ringpair_fsmon::roots::{LeftOut, RootProblem, RootSet};
use ringpair_wire::mirror::{Change, RootSpec};
pub use ringpair_wire::mirror::{Meta, MirrorMessage, MirrorPath, Problem};
use serde::{Deserialize, Serialize};
pub use sink::{Sink, SinkOptions, SinkReport};
pub use source::{Source, SourceEvent, SourceOptions};

/// How far the mirror is (interface §5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorState {
    /// Nothing is mirrored.
    #[default]
    Off,
    /// The first comparison is not finished.
    Initial,
    /// Everything announced is durable on the backup, every root is sound.
    Current,
    /// Changes are under way, or there is no backup.
    Behind,
    /// A root has a problem, or paths cannot be replicated.
    Failed,
}

/// What is shown of the mirror (interface §5); on the backup it speaks of the backup's own state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MirrorStatus {
    /// How far.
    pub state: MirrorState,
    /// Changed paths that are not durable on the backup.
    pub pending_files: u64,
    /// Their bytes, as far as known.
    pub pending_bytes: u64,
    /// Mirrored files: on the active as of the last comparison, on the backup with what came since.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The newest problem, in words.
    pub last_error: Option<String>,
    /// How often the kernel's queue overflowed.
    pub overflows: u64,
    /// How often everything was compared again.
    pub rescans: u64,
    /// What is used to watch: `fanotify`, `inotify`, or none, with the reason where it is not the first.
    pub watch: String,
    /// Roots and paths with problems, each named; at most [`MAX_PROBLEMS`].
    pub problems: Vec<PathProblem>,
    /// How many problems there are beyond those.
    pub more_problems: u64,
    /// Files sent (active) or applied (backup) since the start.
    pub files_moved: u64,
    /// Content bytes sent or applied since the start.
    pub bytes_moved: u64,
}

/// How many problems are named in a status.
pub const MAX_PROBLEMS: usize = 100;

/// A path and what is wrong with it, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PathProblem {
    /// The path as the parameters write it; bytes that are not ASCII are escaped.
    pub path: String,
    /// What is wrong and what to try.
    pub reason: String,
}

impl From<&Problem> for PathProblem {
    fn from(problem: &Problem) -> Self {
        Self { path: problem.path.to_string(), reason: problem.reason.clone() }
    }
}

/// Why the mirror cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The peer said something that this member's role or state does not allow.
    #[error("mirror: unexpected message from the peer: {0}")]
    Protocol(String),
    /// The peer's epoch is lower than one that is known: the message is dropped.
    #[error("mirror: the peer's epoch {got} is lower than {known}")]
    LowerEpoch {
        /// The message's.
        got: ringpair_wire::id::Epoch,
        /// The highest known.
        known: ringpair_wire::id::Epoch,
    },
    /// The archive has no room, or cannot be written: nothing was overwritten.
    #[error(
        "mirror: {path} cannot be archived before it is overwritten: {source}. Try: make room in the storage directory"
    )]
    Archive {
        /// The path that stays as it is.
        path: MirrorPath,
        /// Why.
        source: io::Error,
    },
}

/// Where files go before a rejoining former active has them overwritten or removed (protocol §11).
pub trait ArchiveFiles: Send {
    /// Keeps what is at `path`: metadata and, of a file, its content; of a symlink, its target as content.
    ///
    /// # Errors
    /// The file then stays as it is, and the mirror stops.
    fn archive(&mut self, path: &MirrorPath, meta: &Meta, content: &mut dyn io::Read) -> io::Result<()>;

    /// Makes everything archived durable; called before anything archived is overwritten.
    ///
    /// # Errors
    /// As [`Self::archive`].
    fn sync(&mut self) -> io::Result<()>;

    /// The first comparison is over, nothing more will come: what is overwritten from now on came from the active.
    fn finish(&mut self);
}

/// Differences between the two members' trees, found by `verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MirrorDifferences {
    /// Paths compared.
    pub compared: u64,
    /// Only on the active, only on the backup, or different: each with a word on how; at most [`MAX_PROBLEMS`].
    pub different: Vec<Problem>,
    /// How many differences there are beyond those.
    pub more: u64,
    /// Paths that differed at each of three looks and changed meanwhile; at most [`MAX_PROBLEMS`].
    pub changing: Vec<MirrorPath>,
    /// What could not be compared.
    pub problems: Vec<Problem>,
}

/// Messages on their way out, bounded by their sender.
type Outbox = VecDeque<MirrorMessage>;

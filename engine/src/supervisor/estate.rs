//! What a dead worker leaves: its control file and its journal.
//!
//! Always: nothing is read or written while a worker lives. Never: a write to the journal.
#![forbid(unsafe_code)]

use std::io;

use ringpair_core::supervisor::Left;
use ringpair_wire::control::GrantId;

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

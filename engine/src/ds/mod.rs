//! Directory services: the tree of objects, its edits, digests, contents, checkpoints and resynchronization.
//!
//! One writer ([`Tree`], the stream thread's) and any number of readers ([`TreeHandle`]): a reader takes a snapshot in
//! constant time and works on it for as long as it likes. What reaches [`Tree::apply`] is resolved and idempotent, so
//! that replaying a journal tail, or a notification twice, leaves what it leaves once (REP-006). Nothing here knows a
//! socket or a role: whether a change may be accepted is decided elsewhere.

pub mod archive;
pub mod content;
pub mod digest;
pub mod edit;
pub mod json;
mod key;
pub mod params;
pub mod resync;
pub mod store;
#[cfg(test)]
mod testing;
pub mod tree;

pub use content::ContentStore;
pub use digest::Digest;
pub use tree::{Applied, Entry, Tree, TreeHandle, TreeSnapshot};

//! The API: HTTP over the Unix socket and, where set, over TCP (interface §6).
//!
//! It talks to the rest of the member only through a `Backend`: reads go to snapshots and published documents,
//! everything else is a `Request` to the stream thread. Always holds: whatever a client sends or fails to read,
//! memory stays bounded and the stream thread never waits. Must never: answer from a role that was not checked freshly.

pub mod events;
pub mod status;

pub use events::{Event, EventLog};
pub use status::{Status, StatusCell};

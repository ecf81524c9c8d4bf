//! The supervisor: the tiny process that outlives its worker (protocol §7). It owns the listening sockets and the lock
//! of the storage directory, starts and watches the worker, and releases the role when an active worker dies.
//!
//! Always: decisions come from `ringpair_core::supervisor`; its loop waits with a bound; nothing is released before the
//! discontinue hook has ended. Never: a runtime, a ring, or a write to the journal.
#![forbid(unsafe_code)]

pub mod link;
pub mod sockets;

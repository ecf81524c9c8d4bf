//! Watching, scanning and describing mirrored directories.
//!
//! Always: every path below a root is reached through held directory descriptors, never followed through a symbolic
//! link; names are bytes. Never: a decision about roles, a socket, or a change of anything that is watched.
#![deny(unsafe_code)]

pub mod beneath;
pub mod manifest;
pub mod meta;
pub mod roots;
pub mod scan;
#[expect(unsafe_code, reason = "fanotify and file handles have no safe wrapper; each block has its proof")]
mod sys;
pub mod watch;

pub use sys::begin_writing;

//! Watching, scanning and describing mirrored directories.
//!
//! Always: every path below a root is reached through held directory descriptors, never followed through a symbolic
//! link; names are bytes. Never: a decision about roles, a socket, or a change of anything that is watched.

pub mod roots;

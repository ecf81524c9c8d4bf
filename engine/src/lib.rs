//! The ringpair sidecar: keeps a backup host identical to an active one and takes over from it.
pub mod api;
pub mod bulk;
pub mod cli;
pub mod config;
pub mod control_file;
pub mod ds;
pub mod hooks;
pub mod journal;
pub mod keys;
pub mod mirror;
pub mod pace;
pub mod ring;
pub mod stream;
pub mod supervisor;
pub mod transport;
pub mod worker;

//! The alternatives that users would pick instead, measured in the same run where they are installed.
//!
//! Always: configured to promise what the figure beside them promises, as nearly as they can. Never: installed by us.

pub mod redis;
pub mod rsync;

use crate::{process::is_installed, progress};

/// Whether `command` can be measured; says so when not.
#[must_use]
pub fn offers(wanted: bool, command: &str) -> bool {
    let there = wanted && is_installed(command);
    if wanted && !there {
        progress(&format!("{command} is not installed: skipped"));
    }
    there
}

/// A port on loopback that was free a moment ago.
///
/// # Errors
/// When there is none.
pub fn free_port() -> crate::error::Result<u16> {
    use crate::error::Doing;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").doing("a free port")?;
    listener.local_addr().map(|address| address.port()).doing("a free port")
}

//! The configuration of a member: the TOML file of interface §3, parsed into checked types.
//!
//! Always holds: a [`Config`] that exists is valid; every value was checked at the border, defaults are filled in, and
//! nobody further in asks again. All problems of a file are reported together, each with key, value, range and what
//! to try. Must never: start with half a configuration, or accept a key that it does not know.

pub mod defaults;
pub mod detection;
mod parse;
mod problem;
mod reader;
mod types;

pub use detection::{Timing, timing};
pub use parse::{host_name, read_token};
pub use problem::{Problem, Problems};
pub use types::*;

use std::path::Path;

/// Where the configuration file is looked for when neither `--config` nor `RINGPAIR_CONFIG` names one.
pub const DEFAULT_PATH: &str = "/etc/ringpair/ringpair.toml";
/// No configuration file is longer than this; a longer one is refused unread.
pub const MAX_FILE_BYTES: u64 = 4 << 20;

impl Config {
    /// Reads and checks the file at `path`, with `overrides` (`key=value`, as given to `--set`) on top.
    ///
    /// # Errors
    /// All problems at once: the file's, the overrides', unknown keys, wrong types, ranges, and contradictions.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, Problems> {
        let text = reader::read_file(path)?;
        Self::parse(path, &text, overrides, &host_name())
    }

    /// Checks `text` as if it had been read from `source`, on a host called `host`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(source: &Path, text: &str, overrides: &[String], host: &str) -> Result<Self, Problems> {
        parse::parse(source, text, overrides, host)
    }
}

#[cfg(test)]
mod tests;

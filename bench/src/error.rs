//! Why a benchmark gave no figure.
//!
//! Always: says what was being done. Never: carries on with a figure that is in doubt.

use std::io;

/// A benchmark that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something answered otherwise than it must, or not in time.
    #[error("{0}")]
    Failed(String),
}

/// What may fail in a benchmark.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was being done when the system refused it.
pub trait Doing<T> {
    /// The same result, whose error says `what`.
    ///
    /// # Errors
    /// The same error, named.
    fn doing(self, what: &str) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: &str) -> Result<T> {
        self.map_err(|error| Error::Io { what: what.into(), source: error.into() })
    }
}

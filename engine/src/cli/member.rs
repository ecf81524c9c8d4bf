//! `ringpair run`: the member itself.

use std::process::ExitCode;

use super::{
    args::{RunArgs, Shared},
    client::CliError,
};

/// Runs the member in the foreground until it is told to stop.
pub(super) fn run(shared: &Shared, options: RunArgs) -> Result<ExitCode, CliError> {
    let config = super::config(shared)?;
    let _ = (config, options);
    Err(CliError::Failed("this build has no member".into()))
}

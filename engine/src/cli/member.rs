//! `ringpair run`: the member itself; and the hidden subcommand that its supervisor starts as worker.

use std::{ffi::OsString, process::ExitCode};

use super::{
    args::{RunArgs, Shared},
    client::CliError,
};
use crate::{
    supervisor::{self, Start},
    worker::{self, RunOptions},
};

/// Runs the member in the foreground until it is told to stop.
pub(super) fn run(shared: &Shared, options: RunArgs) -> Result<ExitCode, CliError> {
    let config = super::config(shared)?;
    log_to_stderr();
    let again = shared.clone();
    let read_again = Box::new(move || super::config(&again).map_err(|error| error.to_string()));
    let start = Start::new(&config, worker_arguments(shared, options), read_again);
    match supervisor::run(&config, start) {
        Ok(code) => Ok(ExitCode::from(code)),
        Err(error) => Err(CliError::Failed(error.to_string())),
    }
}

/// Runs the worker; only a supervisor starts it.
pub(super) fn worker(shared: &Shared, options: RunArgs) -> Result<ExitCode, CliError> {
    let config = super::config(shared)?;
    log_to_stderr();
    let RunArgs { force_backup, manual_switch_only, bootstrap } = options;
    worker::run(config, RunOptions { force_backup, manual_switch_only, bootstrap })
        .map_err(|error| CliError::Failed(error.to_string()))
}

/// The worker reads the same configuration, with the same overrides.
fn worker_arguments(shared: &Shared, options: RunArgs) -> Vec<OsString> {
    let mut arguments = vec![OsString::from("worker")];
    if let Some(config) = &shared.config {
        arguments.extend(["--config".into(), config.into()]);
    }
    for set in &shared.overrides {
        arguments.extend(["--set".into(), set.into()]);
    }
    let switches = [
        (options.force_backup, "--force-backup"),
        (options.manual_switch_only, "--manual-switch-only"),
        (options.bootstrap, "--bootstrap"),
    ];
    arguments.extend(switches.into_iter().filter(|(set, _)| *set).map(|(_, switch)| switch.into()));
    arguments
}

/// Logs go to stderr: text on a terminal and in the journal, JSON where `RINGPAIR_LOG_FORMAT=json`; `RINGPAIR_LOG`
/// filters (default `info`).
fn log_to_stderr() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_env("RINGPAIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    // Set once; a second call in one process changes nothing.
    let _ = if std::env::var_os("RINGPAIR_LOG_FORMAT").is_some_and(|format| format == "json") {
        logs.json().try_init()
    } else {
        use std::io::IsTerminal;
        logs.with_ansi(std::io::stderr().is_terminal()).try_init()
    };
}

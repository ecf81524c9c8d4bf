//! The command line: `ringpair run` and every command that talks to a running member (interface §2).
//!
//! Always holds: results go to stdout, messages and progress to stderr; every failure has one of the exit codes of
//! interface §2. Must never: decide anything that the member decides.

pub mod args;
mod check;
pub mod client;
mod ds;
mod keys;
mod member;
mod native;
mod ops;
mod status;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{CommandFactory, Parser};
use serde_json::Value as Json;

use self::{
    args::{Cli, Command, DivergenceAction, MirrorAction, ParamsAction, Shared},
    client::{CliError, Client},
};
use crate::config::{Config, DEFAULT_PATH, defaults};

/// The executable's main function.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(args::original_switches(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are results (0); everything else is a usage error (2). A closed stdout is no reason to fail.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                eprintln!("ringpair: {text}");
            }
            error.code()
        }
    }
}

fn dispatch(cli: Cli) -> Result<ExitCode, CliError> {
    let shared = cli.shared;
    match cli.command {
        Command::Run(options) => return member::run(&shared, options),
        Command::Worker(options) => return member::worker(&shared, options),
        Command::Check => check::check(&shared)?,
        Command::Keys { action } => keys::keys(&shared, action)?,
        Command::Man => clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ringpair", &mut script);
            io::stdout().write_all(&script)?;
        }
        command => {
            let client = Client::new(socket(&shared)?, shared.timeout.map(Duration::from_secs_f64));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| CliError::Failed(format!("starting: {error}")))?;
            runtime.block_on(ask(command, &shared, &client))?;
            // A thread that still reads standard input must not hold up the end.
            runtime.shutdown_background();
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The commands that ask a running member.
async fn ask(command: Command, shared: &Shared, client: &Client) -> Result<(), CliError> {
    match command {
        Command::Status => status::status(shared, client).await,
        Command::Switch(options) => ops::switch(shared, client, options).await,
        Command::Sync => ops::sync(shared, client).await,
        Command::Verify { deep } => ops::verify(shared, client, deep).await,
        Command::Why => ops::why(shared, client).await,
        Command::Events { follow, limit } => ops::events(shared, client, follow, limit).await,
        Command::Mode { mode } => ops::mode(shared, client, mode).await,
        Command::Divergence { action } => match action {
            DivergenceAction::Ls => ops::divergence_ls(shared, client).await,
            DivergenceAction::Show { id } => ops::divergence_show(client, &id).await,
        },
        Command::Ds { action } => ds::ds(shared, client, action).await,
        Command::Params { action } => match action {
            ParamsAction::Ls => ops::params_ls(shared, client).await,
            ParamsAction::Get { name } => ops::params_get(shared, client, &name).await,
            ParamsAction::Set { name, value, ack } => ops::params_set(shared, client, &name, &value, ack).await,
        },
        Command::Mirror { action } => match action {
            MirrorAction::Status => ops::mirror_status(shared, client).await,
            MirrorAction::Ls => ops::mirror_ls(shared, client).await,
            MirrorAction::ExcludeTest { path } => ops::mirror_test(shared, client, &path).await,
        },
        // Handled before: they need no member.
        Command::Run(_)
        | Command::Worker(_)
        | Command::Check
        | Command::Keys { .. }
        | Command::Man
        | Command::Completions { .. } => Ok(()),
    }
}

/// The configuration that the shared options name.
fn config(shared: &Shared) -> Result<Config, CliError> {
    let path = shared.config.as_deref().unwrap_or_else(|| Path::new(DEFAULT_PATH));
    Config::load(path, &shared.overrides).map_err(|problems| CliError::Usage(problems.to_string()))
}

/// The member's socket: as given, else the configured one, else (no configuration here) the default.
fn socket(shared: &Shared) -> Result<PathBuf, CliError> {
    if let Some(socket) = &shared.socket {
        return Ok(socket.clone());
    }
    if shared.config.is_none() && shared.overrides.is_empty() && !Path::new(DEFAULT_PATH).exists() {
        return Ok(defaults::SOCKET.into());
    }
    Ok(config(shared)?.api.socket)
}

/// `name=value` pairs as a query, behind `target`.
fn with_query(target: &str, pairs: &[Option<String>]) -> String {
    let pairs: Vec<&str> = pairs.iter().flatten().map(String::as_str).collect();
    if pairs.is_empty() { target.to_owned() } else { format!("{target}?{}", pairs.join("&")) }
}

/// Prints a JSON document on one line.
fn print_json(value: &Json) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    Ok(out.write_all(b"\n").and_then(|()| out.flush())?)
}

/// Prints lines.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    Ok(out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush())?)
}

/// The text of a JSON value: without quotes where it is a text, `-` where there is none.
fn plain(value: &Json) -> String {
    match value {
        Json::Null => "-".into(),
        Json::String(text) => printable(text),
        other => other.to_string(),
    }
}

/// Text from outside on a terminal: control characters are shown, not obeyed.
fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text.to_owned() }
}

/// Rows as aligned columns; the last is not padded.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let pad = if column + 1 == row.len() { 0 } else { widths[column] - cell.chars().count() };
            format!("{cell}{}", " ".repeat(pad))
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests;

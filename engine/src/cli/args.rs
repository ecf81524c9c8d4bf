//! The one definition of the command line: parser, help, man pages and completions come from it (interface §2).
//!
//! Always holds: shared options may stand before or after the subcommand; a command that is listed works.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ringpair_wire::{
    ds::DsPath,
    id::{AckLevel, Version},
};

use crate::api::query;

const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed; 2 usage or configuration error; 3 no member reachable; \
                          4 refused because of the member's role or state; 5 timed out.";

/// Keeps a backup host identical to an active one and takes over from it.
#[derive(Debug, Parser)]
#[command(name = "ringpair", version, about, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub shared: Shared,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(Clone, Debug, Args)]
pub struct Shared {
    /// The configuration file [default: /etc/ringpair/ringpair.toml].
    #[arg(long, global = true, env = "RINGPAIR_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The member's API socket [default: the configured one].
    #[arg(long, global = true, env = "RINGPAIR_SOCKET", value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// One JSON document on stdout, or one a line for streams.
    #[arg(long, global = true)]
    pub json: bool,
    /// Give up after this many seconds (exit 5).
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub timeout: Option<f64>,
    /// Override a key of the configuration file, such as detection.misses=5; may be repeated.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

fn seconds(text: &str) -> Result<f64, String> {
    let range = "must be seconds from 0 to 86400. Try: --timeout 10";
    text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds)).ok_or_else(|| range.into())
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The member itself, in the foreground.
    Run(RunArgs),
    /// The worker of a member, started by its supervisor.
    #[command(hide = true)]
    Worker(RunArgs),
    /// Validates the configuration file and this host, and prints every problem at once.
    Check,
    /// What this member does, and what it knows of its peer.
    Status,
    /// Controlled switchover: drains, hands over, demotes.
    Switch(SwitchArgs),
    /// Returns when everything changed before the call is durable on the backup.
    Sync,
    /// Compares both members; exit 1 and a list of differences if they differ.
    Verify {
        /// Compare contents of files as well.
        #[arg(long)]
        deep: bool,
    },
    /// Explains the last switchover, or why none happened.
    Why,
    /// The event log.
    Events {
        /// Go on printing what happens.
        #[arg(long, short)]
        follow: bool,
        /// At most this many of the newest.
        #[arg(long, short = 'n', value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=4096))]
        limit: u64,
    },
    /// Automatic switching on or off, for the pair.
    Mode {
        /// auto or manual.
        mode: ModeArg,
    },
    /// What this member had accepted and the new active never got.
    Divergence {
        /// What to do.
        #[command(subcommand)]
        action: DivergenceAction,
    },
    /// The configuration tree.
    Ds {
        /// What to do.
        #[command(subcommand)]
        action: DsAction,
    },
    /// Server parameters, under the names that the specification gives.
    Params {
        /// What to do.
        #[command(subcommand)]
        action: ParamsAction,
    },
    /// What is mirrored, how far behind, what is left out and by which rule.
    Mirror {
        /// What to do.
        #[command(subcommand)]
        action: MirrorAction,
    },
    /// The pair's authority and the members' certificates.
    Keys {
        /// What to do.
        #[command(subcommand)]
        action: KeysAction,
    },
    /// Prints the manual page.
    #[command(hide = true)]
    Man,
    /// Prints completions for a shell.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// How the member starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct RunArgs {
    /// Never elect this member active at start (PAR-100).
    #[arg(long)]
    pub force_backup: bool,
    /// No automatic switching by monitors (PAR-101).
    #[arg(long)]
    pub manual_switch_only: bool,
    /// Create the pair's history here, on A with empty storage.
    #[arg(long)]
    pub bootstrap: bool,
}

/// How to switch.
#[derive(Clone, Copy, Debug, Args)]
pub struct SwitchArgs {
    /// Do not drain in advance, do not ask (PAR-103).
    #[arg(long)]
    pub immediate: bool,
    /// Do not ask for confirmation.
    #[arg(long, short)]
    pub yes: bool,
    /// Switch whatever would be lost; on the backup: promote it.
    #[arg(long)]
    pub force: bool,
    /// The other member is known to be dead (switched off, fenced).
    #[arg(long, requires = "force")]
    pub fenced: bool,
}

/// Automatic switching on or off.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// Monitors may switch.
    Auto,
    /// Only people switch.
    Manual,
}

/// `divergence`.
#[derive(Debug, Subcommand)]
pub enum DivergenceAction {
    /// Lists what is in the archive.
    Ls,
    /// Shows one entry whole.
    Show {
        /// Its id, as listed, such as 1-r2.
        id: String,
    },
}

/// `mirror`.
#[derive(Debug, Subcommand)]
pub enum MirrorAction {
    /// How mirroring is doing.
    Status,
    /// The mirrored directories, and what is left out.
    Ls,
    /// Says whether a path is mirrored, and by which rule not.
    ExcludeTest {
        /// The path; need not exist.
        path: PathBuf,
    },
}

/// `params`.
#[derive(Debug, Subcommand)]
pub enum ParamsAction {
    /// Lists them with type, range, default, value, and whether a change needs a restart.
    Ls,
    /// Shows one.
    Get {
        /// Its name.
        name: String,
    },
    /// Sets one, checked.
    Set {
        /// Its name.
        name: String,
        /// Its value.
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// How far the change must have come.
        #[arg(long, value_name = "LEVEL", value_parser = query::ack_level)]
        ack: Option<AckLevel>,
    },
}

/// `keys`.
#[derive(Debug, Subcommand)]
pub enum KeysAction {
    /// Makes the authority and a certificate for each member.
    Init {
        /// Where: authority/, A/ and B/ come into being below it.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// A member and its hosts; twice.
        #[arg(long = "member", value_name = "A=HOST[,HOST…]", required = true)]
        members: Vec<String>,
        /// The pair's name in the certificates.
        #[arg(long, value_name = "NAME")]
        pair: Option<String>,
        /// How long the members' certificates last.
        #[arg(long, value_name = "YEARS", default_value_t = crate::keys::DEFAULT_MEMBER_YEARS)]
        years: u32,
    },
    /// Signs new certificates with the names and keys that the members have.
    Renew {
        /// Where `keys init` made them.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// How long the new certificates last.
        #[arg(long, value_name = "YEARS", default_value_t = crate::keys::DEFAULT_MEMBER_YEARS)]
        years: u32,
    },
    /// Shows names, fingerprints and expiry.
    Show {
        /// Where [default: the configured directory].
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// `ds`.
#[derive(Debug, Subcommand)]
pub enum DsAction {
    /// Creates or changes an object's attributes.
    Put {
        /// Its path, as /CONFIG/Users/alice or ${CONFIG}\Users\alice.
        #[arg(value_parser = ds_path)]
        path: DsPath,
        /// Its class.
        #[arg(long, value_name = "CLASS")]
        class: Option<String>,
        /// Remove attributes that are not named.
        #[arg(long)]
        replace: bool,
        /// ATTR=VALUE (again for more values), ATTR+=VALUE, ATTR-=VALUE, ATTR=@FILE (ATTR=@@TEXT for a text that begins with @).
        #[arg(value_name = "ATTR=VALUE")]
        edits: Vec<OsString>,
        /// How far the change must have come: async, local, received, durable, applied.
        #[arg(long, value_name = "LEVEL", value_parser = query::ack_level)]
        ack: Option<AckLevel>,
    },
    /// Shows an object.
    Get {
        /// Its path.
        #[arg(value_parser = ds_path)]
        path: DsPath,
    },
    /// Removes an object.
    Rm {
        /// Its path.
        #[arg(value_parser = ds_path)]
        path: DsPath,
        /// With everything below.
        #[arg(long, short)]
        recursive: bool,
        /// How far the change must have come.
        #[arg(long, value_name = "LEVEL", value_parser = query::ack_level)]
        ack: Option<AckLevel>,
    },
    /// Removes attributes of an object.
    Unset {
        /// Its path.
        #[arg(value_parser = ds_path)]
        path: DsPath,
        /// The attributes.
        #[arg(required = true, value_name = "ATTR")]
        attributes: Vec<String>,
        /// How far the change must have come.
        #[arg(long, value_name = "LEVEL", value_parser = query::ack_level)]
        ack: Option<AckLevel>,
    },
    /// Lists the children of an object.
    Ls {
        /// Its path.
        #[arg(default_value = "/", value_parser = ds_path)]
        path: DsPath,
    },
    /// Shows a subtree.
    Tree {
        /// Its path.
        #[arg(default_value = "/", value_parser = ds_path)]
        path: DsPath,
    },
    /// Streams changes as JSON lines.
    Watch {
        /// The subtree.
        #[arg(default_value = "/", value_parser = ds_path)]
        path: DsPath,
        /// Everything after this cursor.
        #[arg(long, value_name = "EPOCH:SEQ", value_parser = query::cursor)]
        from: Option<Version>,
    },
    /// Prints a subtree as JSON lines, one object a line.
    Export {
        /// Its path.
        #[arg(default_value = "/", value_parser = ds_path)]
        path: DsPath,
    },
    /// Reads JSON lines, all or nothing.
    Import {
        /// The file, or - for standard input.
        file: PathBuf,
        /// How far the changes must have come.
        #[arg(long, value_name = "LEVEL", value_parser = query::ack_level)]
        ack: Option<AckLevel>,
    },
    /// The digest of a subtree, equal on both members exactly when the subtrees are equal.
    Digest {
        /// Its path.
        #[arg(default_value = "/", value_parser = ds_path)]
        path: DsPath,
    },
}

fn ds_path(text: &str) -> Result<DsPath, String> {
    DsPath::parse(text).map_err(|error| error.to_string())
}

/// The original's service and tool switches, whatever their case (OPS-040, OPS-041), as options of this program.
/// Only behind `run` and `switch`: elsewhere a word with a slash is a path.
#[must_use]
pub fn original_switches(args: Vec<OsString>) -> Vec<OsString> {
    let is = |arg: &OsString, word: &str| arg.to_str().is_some_and(|arg| arg == word);
    let command = args.iter().skip(1).position(|arg| is(arg, "run") || is(arg, "switch")).map(|at| at + 1);
    let Some(command) = command else { return args };
    let known = [
        ("/forcebackup", "--force-backup"),
        ("/manualswitchonly", "--manual-switch-only"),
        ("/immediate", "--immediate"),
        ("/notifier", ""),
        ("/?", "--help"),
    ];
    let mapped = args.into_iter().enumerate().map(|(at, arg)| {
        let folded = arg.to_str().map(str::to_ascii_lowercase).unwrap_or_default();
        match known.iter().find(|(original, _)| at > command && *original == folded) {
            Some((_, ours)) => OsString::from(ours),
            None => arg,
        }
    });
    mapped.filter(|arg| !arg.is_empty()).collect()
}

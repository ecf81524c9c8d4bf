//! The supervisor: the tiny process that outlives its worker (protocol §7). It owns the listening sockets and the lock
//! of the storage directory, starts and watches the worker, and releases the role when an active worker dies.
//!
//! Always: decisions come from `ringpair_core::supervisor`; its loop waits with a bound; nothing is released before the
//! discontinue hook has ended. Never: a runtime, a ring, or a write to the journal.
#![forbid(unsafe_code)]

pub mod answer;
pub mod door;
pub mod estate;
pub mod host;
pub mod link;
pub mod shell;
pub mod signals;
pub mod sockets;
pub mod storage;
pub mod worker;

use std::{ffi::OsString, io, net::SocketAddr, sync::Arc, time::Duration};

use ringpair_core::{config::OnHookFailure, supervisor::SupervisorConfig};
use thiserror::Error;

use self::{
    answer::{Answers, Tail},
    door::PeerDoor,
    estate::{DiskEstate, DiskTail, Estate},
    host::Systemd,
    shell::{Parts, Reloaded, Shell},
    signals::Signals,
    sockets::{SocketError, Sockets},
    storage::{StorageError, StorageLock},
    worker::WorkerCommand,
};
use crate::{
    config::{self, Config, Endpoint},
    hooks::Hooks,
};

/// How long a new worker may take before its first word: it says a turn between the steps of its start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// What a controlled stop may take beside its hooks.
const STOP_ALLOWANCE: Duration = Duration::from_secs(10);
/// How long the dead worker's tail is offered.
const TAIL_LIMIT: Duration = Duration::from_secs(5);

/// Why a member did not start or cannot go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// The storage directory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The listening sockets.
    #[error(transparent)]
    Sockets(#[from] SocketError),
    /// The member's own address has no meaning on this host.
    #[error("members.{member}.{key}: {source}. Try: an IP address")]
    Address {
        /// This member.
        member: ringpair_wire::id::MemberId,
        /// `address` or `aux`.
        key: &'static str,
        /// What the resolver said.
        source: io::Error,
    },
    /// The keys.
    #[error("{0}")]
    Keys(String),
    /// The system refused something basic.
    #[error("the supervisor cannot run: {0}")]
    Io(#[from] io::Error),
}

/// What a supervisor is started with.
pub struct Start {
    /// How workers are started; the hidden subcommand and its options.
    pub command: WorkerCommand,
    /// The control file.
    pub estate: Box<dyn Estate>,
    /// The journal.
    pub tail: Arc<dyn Tail>,
    /// Reads the configuration file again (SIGHUP); the error names what is wrong with it.
    pub read_again: Box<dyn FnMut() -> Result<Config, String>>,
}

impl Start {
    /// The member of a configuration: workers are this executable with `arguments`, the hidden subcommand first;
    /// `read_again` reads the configuration file on SIGHUP.
    #[must_use]
    pub fn new(
        config: &Config,
        arguments: Vec<OsString>,
        read_again: Box<dyn FnMut() -> Result<Config, String>>,
    ) -> Self {
        Self {
            command: WorkerCommand::this(arguments),
            estate: Box::new(DiskEstate::new(&config.storage.dir)),
            tail: Arc::new(DiskTail::new(&config.storage.dir)),
            read_again,
        }
    }
}

/// Runs this member until it ends; returns the exit code (0 stopped, 1 failed, 2 configuration error of the worker).
///
/// # Errors
/// What keeps the member from starting, before anything of it runs.
pub fn run(config: &Config, start: Start) -> Result<u8, RunError> {
    let signals = Signals::catch()?;
    let orphan_wait = config.hooks.timeout + STOP_ALLOWANCE;
    let lock = StorageLock::acquire(&config.storage.dir, orphan_wait)?;
    let member = config.own();
    let resolve = |key, endpoint: &Endpoint| -> Result<SocketAddr, RunError> {
        endpoint.resolve().map_err(|source| RunError::Address { member: config.member, key, source })
    };
    let main = resolve("address", &member.address)?;
    let aux = if member.has_aux() { Some(resolve("aux", &member.aux)?) } else { None };
    let sockets = Sockets::bind(main, aux)?;
    let Start { mut command, estate, tail, mut read_again } = start;
    let door = Arc::new(PeerDoor::new(config).map_err(RunError::Keys)?);
    let reload = move || {
        let config = read_again()?;
        Ok(Reloaded { hooks: hooks(&config), door: Arc::new(PeerDoor::new(&config)?) })
    };
    command.oom_score = host::lower_oom_score();
    let parts = Parts {
        core: core_config(config),
        command,
        sockets,
        lock,
        estate,
        storage_dir: config.storage.dir.clone(),
        hooks: hooks(config),
        answers: Answers::new(door, tail)?,
        signals,
        systemd: Systemd::from_env(),
        reload: Box::new(reload),
    };
    host::lock_memory();
    Ok(Shell::new(parts).run()?)
}

fn core_config(config: &Config) -> SupervisorConfig {
    let timing = config::timing(&config.detection, |_| None);
    SupervisorConfig {
        heartbeat: timing.heartbeat,
        lease: timing.heartbeat * timing.misses,
        start_limit: START_LIMIT,
        stop_limit: config.hooks.timeout + STOP_ALLOWANCE,
        hook_limit: if config.hooks.discontinue.is_some() { config.hooks.timeout } else { Duration::ZERO },
        tail_limit: TAIL_LIMIT,
        on_hook_failure: match config.hooks.on_failure {
            config::OnHookFailure::Promote => OnHookFailure::Promote,
            config::OnHookFailure::Hold => OnHookFailure::Hold,
        },
    }
}

/// The hooks of a configuration, for supervisor and worker alike.
#[must_use]
pub fn hooks(config: &Config) -> Hooks {
    Hooks {
        commence: config.hooks.commence.clone(),
        discontinue: config.hooks.discontinue.clone(),
        timeout: config.hooks.timeout,
        pair: config.pair.clone(),
        member: config.member,
        name: config.own().name.clone(),
    }
}

//! What the supervisor's core is told and what it asks for: plain values.
//!
//! Always: an effect that takes time or can fail names the input that ends it. Never: a decision, but what a persisted
//! state means for a dead worker.

use std::{fmt, time::Duration};

use ringpair_wire::{
    control::{GrantId, Role},
    id::{Epoch, Position},
};

use super::{RELEASE_ALLOWANCE, RESTARTS_PER_MINUTE};
use crate::{
    config::OnHookFailure,
    persisted::{Persisted, Right},
    status::Status,
};

/// What a worker says of itself over the link, whenever it changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerStatus {
    /// Its role.
    pub role: Role,
    /// Its epoch.
    pub epoch: Epoch,
    /// The grant that is out (as active) or held (as backup); `None`: the right is at home.
    pub right: Option<GrantId>,
    /// Active without a caught-up backup.
    pub alone: bool,
    /// The end of its journal.
    pub position: Position,
    /// L, as stretched by what was learned of the link (protocol §4), in milliseconds; 0: not known yet.
    pub lease_ms: u32,
}

impl WorkerStatus {
    /// What a worker says whose core is in this state.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        Self {
            role: status.role,
            epoch: status.epoch,
            right: status.right,
            alone: status.alone,
            position: Position::default(),
            lease_ms: u32::try_from(status.lease.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

/// What a dead worker left behind, read from the control file and the journal after its death.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// What it was: `Active` only while its epoch is neither released nor outdone.
    pub role: Role,
    /// The newest epoch in which it was active (as active), or the highest it knew.
    pub epoch: Epoch,
    /// The grant that is out (as active) or held (as backup).
    pub right: Option<GrantId>,
    /// The end of the journal.
    pub end: Position,
}

impl Left {
    /// What the persisted state and the journal's end say.
    #[must_use]
    pub fn new(persisted: &Persisted, end: Position) -> Self {
        let outdone = persisted.highest_epoch > persisted.own_epoch || persisted.released == Some(persisted.own_epoch);
        match (persisted.last_role, persisted.right) {
            (Role::Active, right) if !outdone => {
                let right = if let Right::Out(grant) = right { Some(grant) } else { None };
                Self { role: Role::Active, epoch: persisted.own_epoch, right, end }
            }
            (_, Right::Held(grant)) => {
                Self { role: Role::Backup, epoch: persisted.highest_epoch, right: Some(grant), end }
            }
            (role, _) => {
                let role = if role == Role::Active { Role::None } else { role };
                Self { role, epoch: persisted.highest_epoch, right: None, end }
            }
        }
    }
}

/// The state to persist for [`Effect::PersistRelease`]: this member is not active in its own epoch any more.
#[must_use]
pub fn released(persisted: &Persisted) -> Persisted {
    Persisted { released: Some(persisted.own_epoch), right: Right::None, alone: None, ..persisted.clone() }
}

/// The state to persist for [`Effect::PersistGiveBack`]: this grant is given back.
#[must_use]
pub fn given_back(persisted: &Persisted, grant: GrantId) -> Persisted {
    Persisted { right: Right::GivenBack(grant), ..persisted.clone() }
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerExit {
    /// It exited with this code; 2 is a configuration error.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// Times and choices that the configuration decides.
#[derive(Clone, Copy, Debug)]
pub struct SupervisorConfig {
    /// H (`heartbeat_ms`).
    pub heartbeat: Duration,
    /// L until the worker reports another one: K·H.
    pub lease: Duration,
    /// How long a new worker may take before its first word.
    pub start_limit: Duration,
    /// From SIGTERM until the worker is killed; lengthened by a hook that the worker announces.
    pub stop_limit: Duration,
    /// The time limit of the discontinue hook; zero where there is none.
    pub hook_limit: Duration,
    /// How long the dead worker's tail is offered after a release.
    pub tail_limit: Duration,
    /// What a failed discontinue does.
    pub on_hook_failure: OnHookFailure,
}

impl SupervisorConfig {
    /// The margin of protocol §4: H/2.
    #[must_use]
    pub fn margin(&self) -> Duration {
        self.heartbeat / 2
    }

    /// How long the peer is asked to wait for the release.
    #[must_use]
    pub fn hold(&self) -> Duration {
        self.hook_limit + RELEASE_ALLOWANCE
    }
}

/// A connection of the peer to the supervisor, numbered by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerLink(pub u64);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The worker process exists.
    Started,
    /// The worker process could not be made.
    StartFailed,
    /// The worker's loop turned.
    Turn,
    /// The worker's word about itself; counts as a turn.
    Status(WorkerStatus),
    /// The worker serves; counts as a turn.
    Ready,
    /// The worker runs a hook that may take this long; counts as a turn.
    HookRunning(Duration),
    /// The worker has ended; what it left is `None` where its control file cannot be read.
    Exited(WorkerExit, Option<Left>),
    /// The peer, authenticated, dialled this member while its worker is dead.
    PeerDialed(PeerLink),
    /// A connection of the peer ended.
    PeerLeft(PeerLink),
    /// The discontinue hook ended; `true`: successfully.
    HookFinished(bool),
    /// The release or the giving back was persisted; `false`: it could not be.
    Persisted(bool),
    /// The peer has taken what it lacked of the journal.
    TailServed,
    /// SIGTERM or SIGINT.
    StopAsked,
}

/// Why a worker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    /// No turn for L while the supervisor itself ran.
    Silent,
    /// No first word within the start limit.
    NeverSpoke,
    /// It did not end in time after it was told to stop.
    StopTooSlow,
}

impl fmt::Display for KillReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Silent => "its loop has not turned for a whole lease",
            Self::NeverSpoke => "it has not spoken since it was started",
            Self::StopTooSlow => "it did not stop in time",
        })
    }
}

/// What an operator must hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// The worker was killed by the supervisor.
    Killed(KillReason),
    /// The worker ended three times within a minute; the next start waits this long.
    RestartsExhausted(Duration),
    /// The right was out and nobody dialled: nothing is released.
    NobodyDialed,
    /// The discontinue hook failed and `on_failure` says hold: nothing is released.
    HookHeld,
    /// The release or the giving back could not be persisted: it is not said.
    NotPersisted,
    /// The control file of the dead worker cannot be read: nothing is released.
    NothingLeft,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(reason) => write!(f, "the worker was killed: {reason}"),
            Self::RestartsExhausted(wait) => {
                write!(
                    f,
                    "the worker ended {RESTARTS_PER_MINUTE} times within a minute; next start in {} ms",
                    wait.as_millis()
                )
            }
            Self::NobodyDialed => {
                f.write_str("the backup did not dial: the role is not released, the worker starts again")
            }
            Self::HookHeld => {
                f.write_str("the discontinue hook failed: the role is held (hooks.on_failure = \"hold\")")
            }
            Self::NotPersisted => f.write_str("the control file cannot be written: nothing was released or given back"),
            Self::NothingLeft => {
                f.write_str("the control file cannot be read: nothing is released, the worker starts again")
            }
        }
    }
}

/// What the shell must do, in the order given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Close what answers the peer, then start a worker; comes back as `Started` or `StartFailed`.
    StartWorker,
    /// Send SIGKILL to the worker; comes back as `Exited`.
    KillWorker(KillReason),
    /// Tell the worker to stop in a controlled way; comes back as `Exited`.
    TellStop,
    /// Accept the peer's dials on the listening sockets; comes back as `PeerDialed`.
    Listen,
    /// Say `dying(epoch, hold_ms)` on this connection.
    SendDying(PeerLink, Epoch, Duration),
    /// Run the discontinue hook for this epoch; comes back as `HookFinished` (at once where there is none).
    RunDiscontinue(Epoch),
    /// Persist [`released`]; comes back as `Persisted`.
    PersistRelease(Epoch),
    /// Say `released(epoch, journal end)` on every connection that has not heard it and serve the tail; comes back as
    /// `TailServed`.
    SendReleased(Epoch, Position),
    /// Persist [`given_back`]; comes back as `Persisted`.
    PersistGiveBack(GrantId),
    /// Say on this connection that this grant was given back.
    SendGivenBack(PeerLink, GrantId),
    /// Tell the operator.
    Alarm(Alarm),
    /// End the supervisor with this exit code.
    End(u8),
}

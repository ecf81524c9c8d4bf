//! Control messages: what the cores of two members, and a supervisor for its dead worker, say to each other over
//! the ping and ds lanes (protocol.md). Types only; the codec beside them bounds every length.
//!
//! Always: a message that speaks of a term of office names its epoch, and one that speaks of a right to promote
//! names its grant. Never: a clock of one member compared with the other's; durations only.

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, HistoryId, Position, Seq};

/// The greatest number of epochs that a [`Control::Follow`] or [`Control::MustResync`] lists; older ones are left out.
pub const MAX_EPOCHS: usize = 256;
/// The greatest length of a release name, in bytes.
pub const MAX_RELEASE_BYTES: usize = 128;
/// The greatest length of a reason sentence, in bytes.
pub const MAX_REASON_BYTES: usize = 512;
/// The greatest number of blockers in a refused switch; the rest is counted in the last one's reason.
pub const MAX_BLOCKERS: usize = 256;

/// Names one grant of the right to promote: grants are numbered within an epoch (protocol §3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantId {
    /// The epoch of the active that granted.
    pub epoch: Epoch,
    /// The number of the grant within that epoch, from 1.
    pub number: u64,
}

/// What a member has of the pair's one role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Neither: starting, reconnecting to nobody, inactive, stopping or in error.
    #[default]
    None,
    /// Serves; at most one member is exclusive at any moment.
    Active,
    /// Follows the active.
    Backup,
}

impl Role {
    /// The name in `status` (interface §5).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Active => "active",
            Self::Backup => "backup",
        }
    }
}

/// The states of the specification (SM-010 to SM-018), by which `status` and the peer know a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Started, role not yet known.
    #[default]
    Init,
    /// Active.
    Primary,
    /// Follows the active, same release.
    Backup,
    /// Lost the active, or has not found one yet.
    Reconnecting,
    /// Backup with a newer release than the active.
    UpgradeHigher,
    /// Backup with an older release than the active.
    UpgradeLower,
    /// Takes no part for a named reason; comes back by itself where it can.
    Inactive,
    /// Shutting down.
    Stopping,
    /// Cannot go on without an operator.
    Error,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 9] = [
        Self::Init,
        Self::Primary,
        Self::Backup,
        Self::Reconnecting,
        Self::UpgradeHigher,
        Self::UpgradeLower,
        Self::Inactive,
        Self::Stopping,
        Self::Error,
    ];

    /// The name in `status` (interface §5).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Reconnecting => "reconnecting",
            Self::UpgradeHigher => "upgrade-higher",
            Self::UpgradeLower => "upgrade-lower",
            Self::Inactive => "inactive",
            Self::Stopping => "stopping",
            Self::Error => "error",
        }
    }
}

/// Whether the pair switches by itself (interface §2 `mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwitchMode {
    /// A fault of the active promotes the backup.
    #[default]
    Auto,
    /// Only an operator does.
    Manual,
}

/// The mode and the number of its last change: of two, the higher number holds on both members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct NumberedMode {
    /// How many changes there were.
    pub number: u64,
    /// The mode.
    pub mode: SwitchMode,
}

/// Where an epoch begins in a journal: the position before its first record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EpochStart {
    /// The epoch.
    pub epoch: Epoch,
    /// The end of the frame before its first one; the zero position at the beginning of a history.
    pub after: Position,
}

/// What a member says of itself: the answer that a start asks for (protocol §8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Its history; `None`: its storage is empty.
    pub history: Option<HistoryId>,
    /// Its role now.
    pub role: Role,
    /// Its state now.
    pub state: State,
    /// The highest epoch it has seen, anybody's.
    pub epoch: Epoch,
    /// The highest epoch of the *receiver* that the sender has seen: tells a rolled-back member that it is one.
    pub yours: Epoch,
    /// The end of its journal.
    pub position: Position,
    /// The role it had last (persisted).
    pub last_role: Role,
    /// Whether its copy is whole.
    pub complete: bool,
    /// Whether it may become active at all by election: not forced to be backup, not rolled back, storage sound.
    pub eligible: bool,
    /// The right to promote that it holds.
    pub held: Option<GrantId>,
    /// The epoch it has released as its active, if that is its newest.
    pub released: Option<Epoch>,
    /// The pair's mode as it knows it.
    pub mode: NumberedMode,
    /// Its release, at most [`MAX_RELEASE_BYTES`].
    pub release: String,
    /// Whether an answer is wanted.
    pub ask: bool,
}

/// Why a right is given back (protocol §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GiveBackReason {
    /// The backup stops.
    Stopping,
    /// Its worker died; said by the supervisor or by the next worker.
    WorkerDied,
    /// Its storage failed.
    StorageFailed,
    /// Its ds lane stayed down for 3·H.
    DsLaneDown,
    /// It is not, or no longer, a whole copy of the active's history.
    NotCurrent,
    /// It met a higher epoch than the grant's.
    HigherEpoch,
}

/// A thing that would be lost or is unsafe if one switched now (interface §8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// Of what kind.
    pub kind: BlockerKind,
    /// The DS path, file or handler concerned; empty for `state`.
    #[serde(default)]
    pub path: String,
    /// One sentence, at most [`MAX_REASON_BYTES`].
    pub reason: String,
}

/// The kinds of [`Blocker`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockerKind {
    /// A DS change.
    Ds,
    /// A file.
    File,
    /// A handler.
    Handler,
    /// The state of a member.
    State,
}

impl BlockerKind {
    /// The name in `switch_blockers`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ds => "ds",
            Self::File => "file",
            Self::Handler => "handler",
            Self::State => "state",
        }
    }
}

/// How a forwarded switch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchOutcome {
    /// The role was released to the backup, in this epoch.
    Released(Epoch),
    /// Refused or failed: why.
    Refused {
        /// One sentence, at most [`MAX_REASON_BYTES`].
        reason: String,
        /// At most [`MAX_BLOCKERS`].
        blockers: Vec<Blocker>,
    },
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Ping lanes: what the sender is (protocol §8).
    Report(Box<Report>),
    /// Ping lanes: the sender is active in `epoch`, whose first record comes after `after` (protocol §6).
    Announce {
        /// The sender's epoch.
        epoch: Epoch,
        /// The history.
        history: HistoryId,
        /// Where the epoch begins.
        after: Position,
    },
    /// Ping lanes: the active grants its backup the right to promote.
    Grant {
        /// Which grant.
        id: GrantId,
        /// The backup must be durable through this record to take it.
        through: Seq,
    },
    /// Ping lanes: the backup gives a right back; persisted before it is said.
    GiveBack {
        /// Which grant.
        id: GrantId,
        /// Why.
        reason: GiveBackReason,
    },
    /// Ping lanes, from a supervisor: the active's worker is dead; wait this long for its release (protocol §7).
    Dying {
        /// The dead worker's epoch.
        epoch: Epoch,
        /// How long discontinue may take, in milliseconds.
        hold_ms: u32,
    },
    /// Ping lanes: the sender is not active in `epoch` any more; persisted before it is said.
    Released {
        /// The released epoch.
        epoch: Epoch,
        /// The end of the releasing member's journal.
        end: Position,
        /// Whether an operator asked for it (controlled switch); otherwise a death or a failure.
        controlled: bool,
    },
    /// Ping or ds lanes: send the frames after this position, if it is in your history (protocol §7, §8).
    FetchTail {
        /// The asker's journal end.
        after: Position,
    },
    /// Ping or ds lanes: the answer's end; the frames before it were sent on the same connection.
    TailEnd {
        /// The sender's journal end.
        end: Position,
        /// Whether the frames could be served: `false` means that the asked position is unknown or gone.
        served: bool,
    },
    /// Ds lane: stream to me from my position on.
    Follow {
        /// The follower's journal end.
        position: Position,
        /// Whether the follower's copy is whole.
        complete: bool,
        /// The newest [`MAX_EPOCHS`] epochs of its journal, in order.
        epochs: Vec<EpochStart>,
    },
    /// Ds lane: your position is in my history; frames after it follow.
    Resume {
        /// The active's epoch.
        epoch: Epoch,
        /// The follower's position, as asked.
        after: Position,
        /// The active's journal end at this moment.
        end: Position,
    },
    /// Ds lane: your position is not in my history, or its frames are gone: archive what you have alone, then
    /// compare by digests.
    MustResync {
        /// The active's epoch.
        epoch: Epoch,
        /// The active's history.
        history: HistoryId,
        /// What both surely have: records of the follower after this number are to be archived.
        common: Seq,
        /// Why: `true`, the histories differ after `common`; `false`, the follower is only behind.
        diverged: bool,
    },
    /// Ds lane: how far the follower has come; cumulative, positions of the epoch's history (protocol §10).
    Ack {
        /// The epoch followed.
        epoch: Epoch,
        /// In memory, contents included.
        received: Seq,
        /// Synced, contents included.
        durable: Seq,
        /// Readable.
        applied: Seq,
    },
    /// Ping lanes: the pair's mode has changed.
    Mode(NumberedMode),
    /// Ping lanes: a switch asked for on the backup.
    SwitchRequest {
        /// Names the request in its answer.
        id: u64,
        /// Without draining in advance.
        immediate: bool,
    },
    /// Ping lanes: how it ended.
    SwitchAnswer {
        /// The request.
        id: u64,
        /// How.
        outcome: SwitchOutcome,
    },
}

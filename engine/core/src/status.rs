//! What a member shows of itself: plain values for `status`, `/active`, `/readyz` and `why`.

use std::time::Duration;

use ringpair_wire::{
    control::{GrantId, Role, State},
    id::{Epoch, HistoryId, Position, Seq},
};

/// The pair's mode as `status` names it (SM-020).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairMode {
    /// Same release, automatic switching.
    Auto,
    /// An operator switches.
    Manual,
    /// The backup's release is newer.
    UpgradeHigher,
    /// The backup's release is older.
    UpgradeLower,
    /// No pair: the members have no common active.
    None,
}

impl PairMode {
    /// The name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
            Self::UpgradeHigher => "upgrade-higher",
            Self::UpgradeLower => "upgrade-lower",
            Self::None => "none",
        }
    }
}

/// A warning in `status`: stable code, sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// A stable code, such as `may-be-split`.
    pub code: &'static str,
    /// The sentence.
    pub text: String,
}

/// What is known of the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its role, as last said.
    pub role: Role,
    /// Its state, as last said.
    pub state: State,
    /// Its release, as last said.
    pub release: String,
    /// Whether a fresh heartbeat of it is here.
    pub reachable: bool,
    /// How far it has come, if it follows this member.
    pub received: Seq,
    /// The same, synced.
    pub durable: Seq,
    /// The same, readable.
    pub applied: Seq,
}

/// One connection of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStatus {
    /// After TLS, hello and a fresh heartbeat (protocol §4).
    pub up: bool,
    /// The newest round trip of a heartbeat.
    pub rtt: Option<Duration>,
}

/// The whole status at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The role: `Active` from the moment `/active` answers 200.
    pub role: Role,
    /// The state of the specification.
    pub state: State,
    /// Why the member is in that state: one sentence.
    pub state_reason: String,
    /// The pair's mode.
    pub pair_mode: PairMode,
    /// The own or followed epoch; the highest seen while neither.
    pub epoch: Epoch,
    /// The history; `None`: empty storage.
    pub history: Option<HistoryId>,
    /// Whether an answer that this member is active excludes every other.
    pub exclusive: bool,
    /// How long that holds, in milliseconds, from now; 0 if not exclusive. With the right not out: one lease.
    pub valid_for_ms: u64,
    /// What is left of the lease; zero if there is none or it lapsed.
    pub lease_left: Duration,
    /// L as it stands now.
    pub lease: Duration,
    /// The right to promote that is out (active) or held (backup).
    pub right: Option<GrantId>,
    /// Whether the commence hook is done and the member ready (`/readyz`).
    pub ready: bool,
    /// Acknowledges by itself.
    pub alone: bool,
    /// Whether the own copy is whole.
    pub complete: bool,
    /// Another member may be active too.
    pub may_be_split: bool,
    /// Whether writes are admitted.
    pub writable: bool,
    /// The journal's end.
    pub position: Position,
    /// Written, synced and applied here.
    pub local: [Seq; 3],
    /// The peer.
    pub peer: PeerStatus,
    /// Main and aux.
    pub paths: [PathStatus; 2],
    /// Warnings of the core.
    pub warnings: Vec<Warning>,
}

//! The status document (interface §5) and the cell through which the loop publishes it.
//!
//! Always holds: a reader gets one consistent document, as the loop last published it, and never waits for the loop.
//! Times are milliseconds unless the name says otherwise.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

pub use ringpair_core::status::PairMode;
pub use ringpair_wire::control::{Blocker, BlockerKind, Role, State, SwitchMode as Mode};
use serde::{Deserialize, Serialize};

pub use crate::mirror::MirrorState;

/// The document of interface §5.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The pair's name.
    pub pair: String,
    /// `A` or `B`.
    pub member: String,
    /// The member's host name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// The pair's mode.
    pub pair_mode: PairMode,
    /// Its state.
    pub state: State,
    /// Whether monitors may switch.
    pub mode: Mode,
    /// The highest epoch it takes part in.
    pub epoch: u64,
    /// Its release.
    pub release: String,
    /// What it knows of its peer.
    pub peer: PeerStatus,
    /// The two connections.
    pub connections: Connections,
    /// The configuration tree. On a backup: its own state (interface §8).
    pub ds: DsStatus,
    /// Mirrored directories. On a backup: its own state.
    pub mirror: MirrorStatus,
    /// The monitored module; `None` where none is configured.
    pub module: Option<ModuleStatus>,
    /// What an administrator should know.
    pub warnings: Vec<Warning>,
    /// What would be lost or is unsafe if one switched now; empty when safe.
    pub switch_blockers: Vec<Blocker>,
    /// Whether the active works without a caught-up backup.
    pub alone: bool,
    /// Whether the state is whole: `false` while a resynchronization is unfinished.
    pub complete: bool,
    /// What is in the divergence archive.
    pub divergence: DivergenceSummary,
    /// How IO is done.
    pub io: IoStatus,
    /// How faults are detected.
    pub detection: DetectionStatus,
    /// The last switchover this member knows of.
    pub last_switch: Option<LastSwitch>,
    /// `mutual-tls` or `off`.
    pub security: String,
    /// Counters since the worker's start, by name without prefix and `_total`: shown as metrics.
    pub counters: BTreeMap<String, u64>,
}

/// What a member knows of its peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerStatus {
    /// Its host name.
    pub name: String,
    /// Where it is reached: the configured main address.
    pub address: String,
    /// Its role, as it last said.
    pub role: Role,
    /// Its state, as it last said.
    pub state: State,
    /// Its release, as it last said.
    pub release: String,
    /// Whether it is heard now.
    pub reachable: bool,
}

/// The two connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Connections {
    /// Main.
    pub main: ConnectionStatus,
    /// Auxiliary.
    pub aux: ConnectionStatus,
}

/// One connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionStatus {
    /// TLS, hello and a fresh heartbeat.
    pub up: bool,
    /// Round trip of heartbeats in microseconds; `None` before the first.
    pub rtt_us: Option<u64>,
    /// On the active: own heartbeats there that the backup answered within H (`[detection] heartbeat_ms`).
    pub heartbeats_answered: u64,
    /// On the active: own heartbeats there that it did not answer within H, though it had answered before.
    pub heartbeats_missed: u64,
    /// The ping lane's mark, read back from the socket.
    pub dscp: Option<u8>,
    /// The mark that the peer's newest heartbeat arrived with (OPS-197): another than it was sent with, where the path
    /// changes marks. `None` before the first.
    pub received_dscp: Option<u8>,
    /// The marks that the peer's newest probes of its ds and bulk lane arrived with (OPS-197), by lane.
    pub received_lanes: BTreeMap<String, u8>,
    /// The marks of all lanes there, read back.
    pub lanes: BTreeMap<String, u8>,
    /// What the lanes' sockets say of themselves, by lane.
    pub sockets: BTreeMap<String, SocketStatus>,
}

/// The options of a lane's socket, read back from the kernel (REP-304, REP-308).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketStatus {
    /// The mark.
    pub dscp: Option<u8>,
    /// SO_PRIORITY.
    pub priority: Option<u8>,
    /// TCP_CONGESTION.
    pub congestion: Option<String>,
    /// TCP_USER_TIMEOUT in milliseconds.
    pub user_timeout_ms: Option<u32>,
    /// TCP_NOTSENT_LOWAT in bytes; `None`: the system's.
    pub notsent_lowat_bytes: Option<u32>,
    /// SO_MAX_PACING_RATE in bytes a second; `None`: unlimited.
    pub pacing_bytes_per_s: Option<u64>,
    /// Bulk: how many bytes the peer may have under way towards this member, while the path's delay is above its least;
    /// `None`: unlimited.
    pub credit_bytes: Option<u32>,
    /// Whether large sends go out without a copy: what the kernel reports; `None`: none was sent, or `io` lacks it.
    pub zero_copy: Option<bool>,
}

/// The configuration tree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DsStatus {
    /// The newest sequence number applied.
    pub seq: u64,
    /// The newest that is synced on the peer.
    pub peer_durable_seq: u64,
    /// Records on the way: not yet durable on the peer (active), not yet applied (backup).
    pub lag_records: u64,
    /// The age of the oldest of them.
    pub lag_ms: u64,
    /// The digest of the tree, in hexadecimal; filled in by the API when asked for.
    pub digest: String,
    /// Number of objects; filled in with the digest.
    pub objects: u64,
}

/// Mirrored directories.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MirrorStatus {
    /// The state.
    pub state: MirrorState,
    /// Files on the way.
    pub pending_files: u64,
    /// Their bytes, as far as known.
    pub pending_bytes: u64,
    /// Files mirrored.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The last error, naming the path; `None` when there is none.
    pub last_error: Option<String>,
}

/// The monitored module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModuleStatus {
    /// Its name.
    pub name: String,
    /// Whether it answers.
    pub up: bool,
    /// Its process, where known.
    pub pid: Option<u32>,
    /// How often its process has changed.
    pub restarts: u64,
}

/// Something an administrator should know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// A stable word, such as `may-be-split`.
    pub code: String,
    /// What it means here, and what to try.
    pub text: String,
}

/// What is in the divergence archive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DivergenceSummary {
    /// Archived records.
    pub records: u64,
    /// Archived files.
    pub files: u64,
    /// Bytes that the archive takes.
    pub bytes: u64,
    /// The epoch in which they were accepted; 0 when there are none.
    pub epoch: u64,
}

/// How IO is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoStatus {
    /// `io_uring` or `plain`.
    pub driver: String,
    /// What of it is in use.
    pub features: Vec<String>,
    /// Why this driver.
    pub why: String,
}

/// How faults are detected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DetectionStatus {
    /// `fast`, `classic` or `wan`.
    pub profile: String,
    /// L; 0 where there is no lease.
    pub lease_ms: u64,
    /// What is left of it; 0 when it lapsed or none runs.
    pub lease_left_ms: u64,
    /// Whether the right to promote is out (active) or held (backup).
    pub right_out: bool,
}

/// A switchover.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LastSwitch {
    /// When, RFC 3339.
    pub at: String,
    /// Who was active.
    pub from: String,
    /// Who became active.
    pub to: String,
    /// Why, in the words of OPS-057.
    pub reason: String,
    /// Whether it was asked for.
    pub controlled: bool,
    /// From the first evidence to the decision.
    pub detect_ms: u64,
    /// From the decision to `/active` 200.
    pub promote_ms: u64,
}

/// Where the loop publishes the status and everybody reads it. Cloning shares the cell.
#[derive(Clone, Debug, Default)]
pub struct StatusCell(Arc<Mutex<Arc<Status>>>);

impl StatusCell {
    /// A cell that holds `status`.
    #[must_use]
    pub fn new(status: Status) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(status))))
    }

    /// Publishes `status`. The lock is held for the exchange of a pointer only.
    pub fn publish(&self, status: Status) {
        let new = Arc::new(status);
        let old = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), new);
        drop(old);
    }

    /// The document last published.
    #[must_use]
    pub fn read(&self) -> Arc<Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

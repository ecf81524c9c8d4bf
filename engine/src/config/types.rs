//! The checked types that a configuration file becomes.
//!
//! Always holds: every value here is in its range; addresses have a port; paths are absolute; nothing is "unset" that
//! has a default.

use std::{
    fmt, io,
    net::{SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use ringpair_wire::{
    dscp::Dscp,
    id::{AckLevel, MemberId},
};

use crate::ring::Feature;

/// The configuration of one member (interface §3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file that it was read from.
    pub source: PathBuf,
    /// The pair's name, as in the members' certificates.
    pub pair: String,
    /// Which of the two this host is.
    pub member: MemberId,
    /// Both members.
    pub members: Members,
    /// Where journal and state live.
    pub storage: Storage,
    /// How the member is talked to.
    pub api: Api,
    /// How connections between the members are secured.
    pub security: Security,
    /// Which way of doing IO is used.
    pub driver: IoDriver,
    /// What io_uring is to do without.
    pub io_without: Vec<Feature>,
    /// The release that this host runs; releases that differ put the pair into an upgrade state (SM-054).
    pub release: String,
    /// Where mirrored directories are taken from.
    pub mirror: Mirror,
    /// What is monitored on the active member, if anything.
    pub module: Option<Module>,
    /// How faults are detected.
    pub detection: Detection,
    /// Programs that run at a change of role.
    pub hooks: Hooks,
    /// Marks, congestion control and pace of the lanes.
    pub transport: Transport,
    /// How records are gathered into batches.
    pub batch: Batch,
    /// What is compressed, and how hard.
    pub compression: Compression,
    /// What a writer is promised.
    pub ack: Ack,
    /// Initial values of server parameters, name and value as written, in the order of the names.
    pub parameters: Vec<(String, String)>,
}

impl Config {
    /// This host's member.
    #[must_use]
    pub const fn own(&self) -> &Member {
        self.members.get(self.member)
    }

    /// The other host's member.
    #[must_use]
    pub const fn peer(&self) -> &Member {
        self.members.get(self.member.peer())
    }
}

/// The two members of the pair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// The intended first active member (PAR-015).
    pub a: Member,
    /// The intended first backup member (PAR-016).
    pub b: Member,
}

impl Members {
    /// The member `id`.
    #[must_use]
    pub const fn get(&self, id: MemberId) -> &Member {
        match id {
            MemberId::A => &self.a,
            MemberId::B => &self.b,
        }
    }
}

/// One member: its name and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its host's name.
    pub name: String,
    /// The main connection.
    pub address: Endpoint,
    /// The auxiliary connection; equal to `address` when a second connection there stands in for it.
    pub aux: Endpoint,
}

impl Member {
    /// Whether the auxiliary connection has an address of its own.
    #[must_use]
    pub fn has_aux(&self) -> bool {
        self.aux != self.address
    }
}

/// A host (name or address) and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// A host name, or an IPv4 or IPv6 address without brackets.
    pub host: String,
    /// The port; never 0.
    pub port: u16,
}

impl Endpoint {
    /// The first address that the host has. Asks the resolver (and may block) when the host is not an address.
    ///
    /// # Errors
    /// What the resolver says, naming the endpoint.
    pub fn resolve(&self) -> io::Result<SocketAddr> {
        (self.host.as_str(), self.port)
            .to_socket_addrs()
            .and_then(|mut all| all.next().ok_or_else(|| io::Error::other("the name has no address")))
            .map_err(|error| io::Error::new(error.kind(), format!("{self}: {error}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// `[storage]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Journal, state, control file; never inside a mirrored directory.
    pub dir: PathBuf,
    /// Beyond this an absent peer is resynchronized by digests.
    pub journal_max_bytes: u64,
}

/// `[api]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// The Unix socket.
    pub socket: PathBuf,
    /// The TCP address, where set.
    pub http: Option<SocketAddr>,
    /// The file that the token is read from ([`crate::config::read_token`]); `Some` exactly where `http` is.
    pub token_file: Option<PathBuf>,
    /// The group that may use the socket, beside root.
    pub group: Option<String>,
}

/// `[security]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Security {
    /// How connections are secured.
    pub mode: SecurityMode,
    /// `ca.pem`, `cert.pem`, `key.pem` of this member.
    pub dir: PathBuf,
}

/// How connections between the members are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecurityMode {
    /// TLS 1.3, both sides with a certificate of the pair's authority.
    MutualTls,
    /// Nothing: only for a dedicated link, and said in every status.
    Off,
}

/// `[io] driver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoDriver {
    /// io_uring where the kernel permits it, else the plain path.
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// Ordinary system calls.
    Plain,
}

/// `[mirror]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The directory lists of the parameters are taken below this.
    pub root: PathBuf,
    /// What is done with device files (OPS-096).
    pub devices: Devices,
}

/// What is done with device files in a mirrored directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// They are left out, and named.
    Reject,
    /// They are created on the backup too.
    Recreate,
}

/// `[module]`: what is monitored on the active member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name (PAR-030).
    pub name: String,
    /// How it is asked whether it lives.
    pub probe: Probe,
    /// What its death leads to.
    pub on_exit: OnExit,
    /// How long a restart may take before its death counts.
    pub restart_grace: Duration,
}

/// How a module is asked whether it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection is accepted.
    Tcp(Endpoint),
    /// `GET` of the URL answers 2xx.
    Http(String),
    /// A connection to the Unix socket is accepted.
    Unix(PathBuf),
    /// The program exits 0.
    Exec(String),
    /// The process named in the file lives.
    PidFile(PathBuf),
    /// The systemd unit is active.
    Systemd(String),
}

/// What a module's death leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnExit {
    /// A switchover at once.
    Switch,
    /// Waiting for a restart, counted by the restart parameters.
    Wait,
}

/// `[detection]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detection {
    /// The profile.
    pub profile: Profile,
    /// H: how often each member sends a heartbeat on each path.
    pub heartbeat: Duration,
    /// K: this many missed on both connections make a suspicion.
    pub misses: u32,
    /// Who may become active alone at start (protocol §8).
    pub fail_safe_start: FailSafeStart,
}

/// A detection profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The default: the original's logic, at the pace of H and K.
    Fast,
    /// The original's timing to the letter.
    Classic,
    /// For slow and shared links (OPS-191).
    Wan,
}

impl Profile {
    /// The name used in configuration and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Classic => "classic",
            Self::Wan => "wan",
        }
    }
}

/// Who may become active alone at start (protocol §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailSafeStart {
    /// Only the member that was active last or holds a release of its peer.
    IfCurrent,
    /// Anybody: the original's rule (SM-051).
    Always,
    /// Nobody: it waits for its peer.
    Never,
}

/// `[hooks]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Runs when this member became active.
    pub commence: Option<PathBuf>,
    /// Runs when this member ceased to be active.
    pub discontinue: Option<PathBuf>,
    /// How long a hook may run.
    pub timeout: Duration,
    /// What a failed `discontinue` leads to.
    pub on_failure: OnHookFailure,
}

/// What a failed `discontinue` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHookFailure {
    /// The peer may promote all the same.
    Promote,
    /// The role is held.
    Hold,
}

/// `[transport]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The mark of each lane.
    pub dscp: LaneDscp,
    /// The congestion control of each lane that has one.
    pub congestion: LaneCongestion,
    /// The pace of bulk lanes; `None`: unlimited.
    pub bulk_rate_bytes_per_s: Option<u64>,
}

/// The mark of each lane (REP-304).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneDscp {
    /// The ping lanes and heartbeat datagrams.
    pub ping: Dscp,
    /// The ds lane.
    pub ds: Dscp,
    /// The bulk lanes.
    pub bulk: Dscp,
}

/// The congestion control of each lane, as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneCongestion {
    /// The ds lane.
    pub ds: String,
    /// The bulk lanes.
    pub bulk: String,
}

/// `[batch]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The greatest payload of one batch.
    pub max_bytes: u32,
    /// The greatest number of records in one batch.
    pub max_records: u32,
    /// How long a batch waits for more; zero: not at all.
    pub linger: Duration,
}

/// `[compression]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// Batches of records.
    pub ds: CompressionLevel,
    /// File content.
    pub bulk: CompressionLevel,
}

/// How hard something is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionLevel {
    /// Not at all.
    Off,
    /// Where it pays, at the level that pays.
    Auto,
    /// At this zstd level, 1 to 19.
    Level(u8),
}

/// `[ack]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The level that a writer gets who names none.
    pub level: AckLevel,
    /// What an active does that has lost its peer (protocol §5).
    pub on_peer_loss: OnPeerLoss,
}

/// What an active does that has lost its peer (protocol §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPeerLoss {
    /// It goes on alone, and says so.
    Continue,
    /// It answers that the level was not reached.
    Block,
}

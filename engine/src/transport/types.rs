//! What the transport is configured with, what it reports, and the events that it gives.
//!
//! Plain values only: nothing here touches a socket.
#![forbid(unsafe_code)]

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ringpair_wire::{
    dscp::Dscp,
    heartbeat::PLAIN_BYTES,
    hello::Hello,
    id::MemberId,
    lane::{LaneKind, MessageKind, PathKind},
};

use super::Detached;
use crate::{keys::Identity, ring::Shared};

/// One connection, for as long as the transport that gave it knows it; never used again for another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId {
    pub(super) index: u32,
    pub(super) tag: u16,
}

#[cfg(test)]
impl ConnId {
    /// The connection of this number, for tests without a transport.
    pub(crate) const fn numbered(index: u32) -> Self {
        Self { index, tag: 0 }
    }
}

impl fmt::Debug for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conn {}.{}", self.index, self.tag)
    }
}

/// How the lanes are protected (OPS-095).
#[derive(Clone, Debug)]
pub enum Protection {
    /// Mutual TLS 1.3 under the pair's authority.
    MutualTls(Arc<Identity>),
    /// Nothing: for a dedicated link only, and said in every status.
    Off,
}

/// One of the two ways between the members.
#[derive(Clone, Copy, Debug)]
pub struct PathAddress {
    /// Which.
    pub path: PathKind,
    /// The local address that dialed sockets are bound to and heartbeats leave from; `None`: the kernel's choice.
    pub local: Option<IpAddr>,
    /// Where the peer listens.
    pub peer: SocketAddr,
}

/// What the sockets of one lane are set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneOptions {
    /// The mark on main.
    pub dscp_main: Dscp,
    /// The mark on aux (the original's rule marks pings there only, OPS-199).
    pub dscp_aux: Dscp,
    /// SO_PRIORITY, 0 to 6: set after the mark, which would overwrite it.
    pub priority: u8,
    /// TCP_CONGESTION; `None`: the system's.
    pub congestion: Option<String>,
    /// TCP_USER_TIMEOUT: how long sent data may stay unacknowledged.
    pub user_timeout: Duration,
    /// SO_KEEPALIVE at half of that: whether the peer is still there, where it is only listened to. Not for pings, of
    /// which heartbeats tell more: a connection that is dead one way is a backup's evidence, and must not become dead
    /// both ways by itself.
    pub keepalive: bool,
    /// TCP_NOTSENT_LOWAT in bytes; `None`: the system's.
    pub notsent_lowat_bytes: Option<u32>,
    /// SO_MAX_PACING_RATE (REP-308); `None`: unlimited.
    pub pacing_bytes_per_s: Option<u64>,
    /// The greatest number of bytes queued for sending; `send` refuses beyond it.
    pub queue_max_bytes: usize,
    /// How many bytes one receive asks for.
    pub receive_bytes: usize,
    /// How many bytes one send carries at most.
    pub send_bytes: usize,
}

impl LaneOptions {
    /// The defaults of `lane` (design §4).
    #[must_use]
    pub fn default_for(lane: LaneKind) -> Self {
        let (dscp, priority) = match lane {
            LaneKind::Ping => (Dscp::AF41, 6),
            LaneKind::Ds => (Dscp::AF31, 4),
            LaneKind::Bulk => (Dscp::LE, 1),
        };
        let (queue_max_bytes, receive_bytes, send_bytes) = match lane {
            LaneKind::Ping => (256 << 10, 8 << 10, 16 << 10),
            LaneKind::Ds => (16 << 20, 64 << 10, 128 << 10),
            LaneKind::Bulk => (8 << 20, 256 << 10, 1 << 20),
        };
        Self {
            dscp_main: dscp,
            dscp_aux: dscp,
            priority,
            congestion: (lane != LaneKind::Ping).then(|| "cubic".into()),
            keepalive: lane != LaneKind::Ping,
            user_timeout: Duration::from_millis(if lane == LaneKind::Bulk { 10_000 } else { 2_000 }),
            // What is not sent yet waits here, where a later message of more weight passes it.
            notsent_lowat_bytes: match lane {
                LaneKind::Ping => None,
                LaneKind::Ds => Some(128 << 10),
                LaneKind::Bulk => Some(1 << 20),
            },
            pacing_bytes_per_s: None,
            queue_max_bytes,
            receive_bytes,
            send_bytes,
        }
    }

    /// The options of `lane` as `[transport]` of the configuration sets them.
    #[must_use]
    pub fn configured(lane: LaneKind, transport: &crate::config::Transport) -> Self {
        let (dscp, congestion, pacing_bytes_per_s) = match lane {
            LaneKind::Ping => (transport.dscp.ping, None, None),
            LaneKind::Ds => (transport.dscp.ds, Some(transport.congestion.ds.clone()), None),
            LaneKind::Bulk => {
                (transport.dscp.bulk, Some(transport.congestion.bulk.clone()), transport.bulk_rate_bytes_per_s)
            }
        };
        Self { dscp_main: dscp, dscp_aux: dscp, congestion, pacing_bytes_per_s, ..Self::default_for(lane) }
    }

    /// What the socket behind `info` refused of these options, in words; empty: it is as it should be (REP-304, REP-308).
    #[must_use]
    pub fn refused(&self, info: &ConnInfo) -> String {
        let mut refused = Vec::new();
        let mut compare = |what: &str, wanted: Option<String>, got: Option<String>| {
            if let Some(wanted) = wanted
                && got.as_ref() != Some(&wanted)
            {
                refused.push(format!("{what} is {}, not {wanted}", got.as_deref().unwrap_or("not set")));
            }
        };
        let text = |value: Option<u64>| value.map(|value| value.to_string());
        compare("DSCP", Some(self.dscp(info.path).to_string()), info.dscp.map(|dscp| dscp.to_string()));
        compare("SO_PRIORITY", Some(self.priority.to_string()), info.priority.map(|priority| priority.to_string()));
        compare("TCP_CONGESTION", self.congestion.clone(), info.congestion.clone());
        let timeout_ms = u64::try_from(self.user_timeout.as_millis()).ok();
        compare("TCP_USER_TIMEOUT", text(timeout_ms), text(info.user_timeout_ms.map(u64::from)));
        let lowat = |bytes: Option<u32>| text(bytes.map(u64::from));
        compare("TCP_NOTSENT_LOWAT", lowat(self.notsent_lowat_bytes), lowat(info.notsent_lowat_bytes));
        compare("SO_MAX_PACING_RATE", text(self.pacing_bytes_per_s), text(info.pacing_bytes_per_s));
        refused.join(", ")
    }

    /// The mark of this lane on `path`.
    #[must_use]
    pub const fn dscp(&self, path: PathKind) -> Dscp {
        match path {
            PathKind::Main => self.dscp_main,
            PathKind::Aux => self.dscp_aux,
        }
    }
}

/// What strangers may take: connections that have not shown a certificate of the pair and a valid hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrangerLimits {
    /// How many at once; the oldest gives way.
    pub count: usize,
    /// How many bytes each may send.
    pub bytes: usize,
    /// How long each may take.
    pub time: Duration,
}

impl Default for StrangerLimits {
    fn default() -> Self {
        Self { count: 32, bytes: 16 << 10, time: Duration::from_secs(2) }
    }
}

/// What a transport is made with.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// How the lanes are protected.
    pub protection: Protection,
    /// What this member says first on every connection; lane and path are filled in for each.
    pub hello: Hello,
    /// Main, and aux where it is another way.
    pub paths: Vec<PathAddress>,
    /// Options of the ping, ds and bulk lane.
    pub ping: LaneOptions,
    /// As above.
    pub ds: LaneOptions,
    /// As above.
    pub bulk: LaneOptions,
    /// How long an attempt to connect may take, up to the peer's hello: 100 ms or three round trips, whichever is
    /// more (protocol §4).
    pub connect_timeout: Duration,
    /// What strangers may take.
    pub strangers: StrangerLimits,
    /// Lanes whose accepted connections are not kept but given away: [`TransportEvent::HandOver`].
    pub hand_over: Vec<LaneKind>,
    /// Whether datagrams are sent and received on the listeners' addresses.
    pub heartbeats: bool,
}

impl TransportConfig {
    /// This member.
    #[must_use]
    pub const fn member(&self) -> MemberId {
        self.hello.member
    }

    /// The options of `lane`.
    #[must_use]
    pub const fn lane(&self, lane: LaneKind) -> &LaneOptions {
        match lane {
            LaneKind::Ping => &self.ping,
            LaneKind::Ds => &self.ds,
            LaneKind::Bulk => &self.bulk,
        }
    }

    /// Where `path` leads, if it is configured.
    #[must_use]
    pub fn path(&self, path: PathKind) -> Option<&PathAddress> {
        self.paths.iter().find(|address| address.path == path)
    }
}

/// Why a connection is no more, or never was.
#[derive(Debug, thiserror::Error)]
pub enum DownReason {
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Eof,
    /// The peer, or the kernel on its host, reset it: most likely its process is dead.
    #[error("reset by the peer")]
    Reset,
    /// Nobody listens there.
    #[error("connection refused")]
    Refused,
    /// No answer in time: to the attempt, or to data sent (TCP_USER_TIMEOUT).
    #[error("no answer in time")]
    TimedOut,
    /// Another failure of the socket.
    #[error("socket: {0}")]
    Io(io::Error),
    /// TLS failed here; `text` names the fault.
    #[error("TLS: {0}")]
    Tls(String),
    /// The peer refused us, in its own words.
    #[error("the peer refused this member: {0}")]
    RefusedByPeer(String),
    /// The certificate or hello names somebody else than the peer.
    #[error("{0}")]
    WrongPeer(String),
    /// No common protocol version.
    #[error("{0}")]
    Version(String),
    /// Bytes that are no hello or no message.
    #[error("malformed: {0}")]
    Malformed(String),
    /// A stranger's limits of number, bytes or time.
    #[error("stranger: {0}")]
    Stranger(&'static str),
    /// Another connection took its place: the one dialed by A, or the newer.
    #[error("replaced by another connection of the same lane")]
    Replaced,
    /// This member closed it.
    #[error("closed")]
    Closed,
}

impl DownReason {
    /// The reason that a failed socket operation stands for.
    #[must_use]
    pub fn from_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            _ => Self::Io(error),
        }
    }

    /// Whether the peer's process or host said so itself: it is gone now, no time-out is needed to know.
    #[must_use]
    pub const fn is_sudden(&self) -> bool {
        matches!(self, Self::Eof | Self::Reset | Self::Refused)
    }
}

/// What a connection is, as read back from its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    /// Its lane.
    pub lane: LaneKind,
    /// Its path.
    pub path: PathKind,
    /// Who dialed.
    pub dialed_by_us: bool,
    /// The other end.
    pub peer_address: SocketAddr,
    /// This end.
    pub local_address: Option<SocketAddr>,
    /// The mark read back from the socket; `None` where the kernel gave none (REP-304).
    pub dscp: Option<Dscp>,
    /// SO_PRIORITY read back.
    pub priority: Option<u8>,
    /// TCP_CONGESTION read back.
    pub congestion: Option<String>,
    /// TCP_USER_TIMEOUT read back, in milliseconds.
    pub user_timeout_ms: Option<u32>,
    /// TCP_NOTSENT_LOWAT read back, in bytes; `None`: the system's.
    pub notsent_lowat_bytes: Option<u32>,
    /// SO_MAX_PACING_RATE read back, in bytes a second; `None`: unlimited.
    pub pacing_bytes_per_s: Option<u64>,
    /// Whether TLS protects it.
    pub tls: bool,
    /// SHA-256 of the peer's certificate (OPS-093).
    pub peer_fingerprint: Option<String>,
    /// The protocol version that both speak.
    pub version: u16,
    /// Whether large sends go out of this member's memory uncopied; `None`: none was sent, or the driver cannot.
    pub zero_copy: Option<bool>,
}

/// What TCP measured of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpState {
    /// The smoothed round trip.
    pub rtt: Duration,
    /// The least round trip of late (`net.ipv4.tcp_min_rtt_wlen`).
    pub min_rtt: Duration,
    /// How long ago the last acknowledgement came.
    pub last_ack: Duration,
    /// How fast the peer's host acknowledged of late; 0: not known.
    pub delivery_bytes_per_s: u64,
}

/// What happened.
#[derive(Debug)]
pub enum TransportEvent {
    /// A lane is open: TLS and hello are done. (It counts as up only with a fresh heartbeat: that is the core's.)
    Up {
        /// Which connection.
        conn: ConnId,
        /// Its lane.
        lane: LaneKind,
        /// Its path.
        path: PathKind,
        /// What the peer said of itself.
        hello: Box<Hello>,
        /// Who dialed.
        dialed_by_us: bool,
    },
    /// A whole message came; `body` is read by [`ringpair_wire::lane::Message::decode`] or the owner of its kind.
    Message {
        /// On which connection.
        conn: ConnId,
        /// What it is.
        kind: MessageKind,
        /// Its body.
        body: Shared,
    },
    /// A connection that was up is no more. When another took its place, that one's `Up` comes first.
    Down {
        /// Which connection.
        conn: ConnId,
        /// Its lane.
        lane: LaneKind,
        /// Its path.
        path: PathKind,
        /// Why.
        reason: DownReason,
    },
    /// An attempt to connect failed; the caller says when to dial again.
    DialFailed {
        /// Which lane.
        lane: LaneKind,
        /// Over which path.
        path: PathKind,
        /// Why.
        reason: DownReason,
    },
    /// A connection was accepted on a lane of [`TransportConfig::hand_over`]: give it to the transport that keeps it.
    HandOver(Box<Detached>),
    /// An authenticated, new heartbeat came.
    Heartbeat {
        /// Over which path.
        path: PathKind,
        /// Read by [`ringpair_wire::heartbeat::Heartbeat`].
        plaintext: [u8; PLAIN_BYTES],
    },
}

/// Why nothing was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The lane's queue is full: back-pressure. Try again when [`queued_bytes`](super::Transport::queued_bytes) fell.
    #[error("the lane's queue is full")]
    Full,
    /// There is no such connection, or it is not up.
    #[error("the connection is not up")]
    NotUp,
    /// The body is longer than the lane's bound, or the kind does not belong on the lane.
    #[error("the message does not belong on this lane or is too long for it")]
    Unfit,
}

/// Counters since the start; none of them ever falls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct TransportStats {
    /// Connections accepted.
    pub accepted: u64,
    /// Strangers that gave way to a newer one.
    pub strangers_gave_way: u64,
    /// Strangers whose time was up.
    pub strangers_timed_out: u64,
    /// Strangers that sent more than they may.
    pub strangers_oversize: u64,
    /// Connections refused for their TLS: none, an old version, no certificate, a foreign one, another member's.
    pub refused_tls: u64,
    /// Connections refused for their hello.
    pub refused_hello: u64,
    /// Strangers that went away by themselves.
    pub strangers_left: u64,
    /// Attempts to connect.
    pub dials: u64,
    /// Of these, failed.
    pub dials_failed: u64,
    /// Connections closed because another of the same lane stays.
    pub replaced: u64,
    /// Bytes received on open lanes, before decryption.
    pub received_bytes: u64,
    /// Bytes sent on open lanes, after encryption.
    pub sent_bytes: u64,
    /// Heartbeats sent.
    pub heartbeats_sent: u64,
    /// Heartbeats that could not be sent.
    pub heartbeats_unsent: u64,
    /// Heartbeats received and authenticated.
    pub heartbeats_received: u64,
    /// Probes of marks sent.
    pub probes_sent: u64,
    /// Probes of marks received and authenticated.
    pub probes_received: u64,
    /// Datagrams that are no heartbeat.
    pub heartbeats_malformed: u64,
    /// Heartbeats sealed with a key that is not known (any more).
    pub heartbeats_unknown_key: u64,
    /// Heartbeats that do not authenticate.
    pub heartbeats_forged: u64,
    /// Heartbeats seen before, or too old to tell.
    pub heartbeats_replayed: u64,
    /// Failures of `accept` itself (descriptors used up, …).
    pub accept_failures: u64,
}

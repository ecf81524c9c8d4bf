//! Lanes and paths between the two members.

/// A class of traffic, on a connection of its own (design §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LaneKind {
    /// Control; its TLS session gives the key of the heartbeats.
    Ping,
    /// Frames, announcements, control of the stream.
    Ds,
    /// File content, large values, resynchronization.
    Bulk,
}

impl LaneKind {
    /// Every lane.
    pub const ALL: [Self; 3] = [Self::Ping, Self::Ds, Self::Bulk];

    /// The name used in configuration and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Ds => "ds",
            Self::Bulk => "bulk",
        }
    }

    /// The protocol name in the TLS handshake (ALPN).
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Ping => b"ringpair/ping",
            Self::Ds => b"ringpair/ds",
            Self::Bulk => b"ringpair/bulk",
        }
    }

    /// The lane that an ALPN name stands for.
    #[must_use]
    pub fn from_alpn(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.alpn() == alpn)
    }
}

/// Which of the two connections between the members a lane runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// The main address.
    Main,
    /// The auxiliary address.
    Aux,
}

impl PathKind {
    /// Both paths.
    pub const ALL: [Self; 2] = [Self::Main, Self::Aux];

    /// The name used in configuration and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Aux => "aux",
        }
    }
}

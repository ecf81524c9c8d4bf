//! Identifiers: newtypes, so that an epoch is never taken for a sequence number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the two members of a pair. Epochs of `A` are odd, those of `B` even (protocol §2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MemberId {
    /// The intended first active member.
    A,
    /// The intended first backup member.
    B,
}

impl MemberId {
    /// The other member.
    #[must_use]
    pub const fn peer(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// A term of office: grows with every promotion (to the next base) and every restart of the active (by 2).
/// Zero: none seen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The distance between the bases of two promotions.
    pub const BASE: u64 = 65_536;

    /// The epoch of `member`'s promotion over everything up to `self`: the next multiple of [`Self::BASE`],
    /// plus 1 on `A`.
    #[must_use]
    pub const fn promoted(self, member: MemberId) -> Self {
        let base = (self.0 / Self::BASE + 1) * Self::BASE;
        Self(match member {
            MemberId::A => base + 1,
            MemberId::B => base,
        })
    }

    /// The epoch of a restart of the member that was active in `self`.
    #[must_use]
    pub const fn restarted(self) -> Self {
        Self(self.0 + 2)
    }

    /// The promotion that this epoch belongs to: restarts of one term share it.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0 / Self::BASE
    }

    /// Whose epoch this is; `None` for the zero epoch.
    #[must_use]
    pub const fn owner(self) -> Option<MemberId> {
        match self.0 {
            0 => None,
            n if n % 2 == 1 => Some(MemberId::A),
            _ => Some(MemberId::B),
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a record within a history. Grows by one a record, over all epochs; the first record has 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What names a history: drawn at random when a pair's first active creates it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HistoryId(pub [u8; 16]);

impl fmt::Display for HistoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The hash of a frame and, through it, of everything before it: equal chains mean equal histories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainHash(pub u128);

/// A place in a history: the end of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the frame that ends here.
    pub epoch: Epoch,
    /// The number of its last record; 0: before the first.
    pub seq: Seq,
    /// The chain hash of that frame.
    pub chain: ChainHash,
}

/// What a change is known by outside: the epoch it was accepted in and its sequence number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The epoch in which the active accepted the change.
    pub epoch: Epoch,
    /// The number of the change.
    pub seq: Seq,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.seq)
    }
}

/// How far a change must have come before its writer is answered; each level includes those before it
/// (protocol §10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AckLevel {
    /// Accepted by the active and written, not synced.
    Async,
    /// Synced on the active.
    Local,
    /// Also in the backup's memory.
    Received,
    /// Synced on both members.
    Durable,
    /// Readable on the backup.
    Applied,
}

impl AckLevel {
    /// The name used in configuration, API and command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Local => "local",
            Self::Received => "received",
            Self::Durable => "durable",
            Self::Applied => "applied",
        }
    }
}

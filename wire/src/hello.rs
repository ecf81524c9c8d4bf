//! The first message on a lane, in both directions: who speaks, and which versions it speaks (SPEC.md §5).
//!
//! Always: the version range stands at the same place in every version, so that a refusal can name both ranges.
//! Never: more than [`MAX_HELLO_BYTES`] kept of what a peer says first.

use std::fmt;

use crate::{
    codec::{DecodeError, Reader, Writer, prefix},
    id::MemberId,
    lane::{LaneKind, PathKind},
};

/// The greatest length of a hello, in bytes (W-40).
pub const MAX_HELLO_BYTES: usize = 1 << 10;
/// The greatest length of a pair's name, in bytes.
pub const MAX_PAIR_BYTES: usize = 255;
/// The first bytes of a hello.
pub const MAGIC: [u8; 4] = *b"RPHI";
/// What this build speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };
/// Magic, then the length of the rest.
const HEADER_BYTES: usize = 6;

/// The protocol versions that a member speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VersionRange {
    /// The lowest.
    pub min: u16,
    /// The highest.
    pub max: u16,
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max { self.min.fmt(f) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// The version that both members speak on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProtocolVersion(pub u16);

/// Who speaks for a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// The worker.
    Worker,
    /// The supervisor, standing in for a worker that died (protocol §7).
    Supervisor,
}

/// The first message on a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the speaker speaks.
    pub versions: VersionRange,
    /// The pair's name; at most [`MAX_PAIR_BYTES`].
    pub pair: String,
    /// The speaker's member.
    pub member: MemberId,
    /// Drawn at random at each start of a worker: tells a restart from a reconnect.
    pub instance: u64,
    /// The lane, as in the handshake.
    pub lane: LaneKind,
    /// The path.
    pub path: PathKind,
    /// Who speaks.
    pub speaker: Speaker,
}

/// Why a first message is refused. The lane is closed; nothing is answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not a hello at all.
    #[error("first bytes {got:02x?} are no hello, expected {MAGIC:02x?}")]
    Magic {
        /// What came.
        got: [u8; 4],
    },
    /// Over the bound (W-40).
    #[error("hello of {got} bytes, expected at most {MAX_HELLO_BYTES}")]
    TooLong {
        /// What it says.
        got: usize,
    },
    /// No version in common (W-41).
    #[error("peer speaks protocol version {theirs}, this member {ours}. Try: upgrade the older member")]
    Versions {
        /// What this member speaks.
        ours: VersionRange,
        /// What the peer speaks.
        theirs: VersionRange,
    },
    /// Damaged.
    #[error("hello: {0}")]
    Body(#[from] DecodeError),
}

/// The highest version that both speak.
///
/// # Errors
/// [`HelloError::Versions`] names both ranges where there is none.
pub fn negotiate(ours: VersionRange, theirs: VersionRange) -> Result<ProtocolVersion, HelloError> {
    let version = ours.max.min(theirs.max);
    if version < ours.min || version < theirs.min {
        return Err(HelloError::Versions { ours, theirs });
    }
    Ok(ProtocolVersion(version))
}

impl Hello {
    /// The hello's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        let mut w = Writer::new(&mut out);
        w.raw(&MAGIC);
        w.u16(0);
        w.u16(self.versions.min);
        w.u16(self.versions.max);
        w.member(self.member);
        w.u8(match self.lane {
            LaneKind::Ping => 0,
            LaneKind::Ds => 1,
            LaneKind::Bulk => 2,
        });
        w.u8(match self.path {
            PathKind::Main => 0,
            PathKind::Aux => 1,
        });
        w.u8(match self.speaker {
            Speaker::Worker => 0,
            Speaker::Supervisor => 1,
        });
        w.u64(self.instance);
        w.text(prefix(&self.pair, MAX_PAIR_BYTES));
        let body = (out.len() - HEADER_BYTES) as u16;
        out[4..HEADER_BYTES].copy_from_slice(&body.to_le_bytes());
        out
    }

    /// Reads a hello from the front of what has come so far, and says how many bytes it took; `None` until it is
    /// whole. What cannot become a hello is refused at its first wrong byte.
    ///
    /// # Errors
    /// [`HelloError`]. A peer without a common version gets [`HelloError::Versions`] even where the rest of its hello
    /// makes no sense here.
    pub fn parse(bytes: &[u8], ours: VersionRange) -> Result<Option<(Self, ProtocolVersion, usize)>, HelloError> {
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            let mut got = [0; 4];
            got[..known].copy_from_slice(&bytes[..known]);
            return Err(HelloError::Magic { got });
        }
        let Some(&[_, _, _, _, low, high]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let end = HEADER_BYTES + usize::from(u16::from_le_bytes([low, high]));
        if end > MAX_HELLO_BYTES {
            return Err(HelloError::TooLong { got: end });
        }
        let Some(body) = bytes.get(HEADER_BYTES..end) else { return Ok(None) };
        let mut r = Reader::new(body);
        let theirs = VersionRange { min: r.u16("hello.min")?, max: r.u16("hello.max")? };
        let version = negotiate(ours, theirs)?;
        let hello = Self::decode_rest(&mut r, theirs)?;
        // A newer peer may say more than this version knows.
        if theirs.max <= ours.max {
            r.finish("hello")?;
        }
        Ok(Some((hello, version, end)))
    }

    fn decode_rest(r: &mut Reader<'_>, versions: VersionRange) -> Result<Self, DecodeError> {
        let member = r.member("hello.member")?;
        let lane = match r.u8("hello.lane")? {
            0 => LaneKind::Ping,
            1 => LaneKind::Ds,
            2 => LaneKind::Bulk,
            got => {
                let expected = "0 (ping), 1 (ds) or 2 (bulk)";
                return Err(DecodeError::Tag { what: "hello.lane", got: got.into(), expected });
            }
        };
        let path = if read_bit(r, "hello.path", "0 (main) or 1 (aux)")? { PathKind::Aux } else { PathKind::Main };
        let speaker = match read_bit(r, "hello.speaker", "0 (worker) or 1 (supervisor)")? {
            false => Speaker::Worker,
            true => Speaker::Supervisor,
        };
        let instance = r.u64("hello.instance")?;
        let pair = r.text("hello.pair", MAX_PAIR_BYTES)?.into();
        Ok(Self { versions, pair, member, instance, lane, path, speaker })
    }
}

fn read_bit(r: &mut Reader<'_>, what: &'static str, expected: &'static str) -> Result<bool, DecodeError> {
    match r.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        got => Err(DecodeError::Tag { what, got: got.into(), expected }),
    }
}

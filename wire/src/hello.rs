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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::golden;

    const OURS: VersionRange = VersionRange { min: 2, max: 4 };

    fn sample(versions: VersionRange) -> Hello {
        Hello {
            versions,
            pair: "contact-center".into(),
            member: MemberId::B,
            instance: 0x0102_0304_0506_0708,
            lane: LaneKind::Ds,
            path: PathKind::Aux,
            speaker: Speaker::Supervisor,
        }
    }

    #[test]
    fn golden_hello() {
        golden("hello", &sample(VERSIONS).to_bytes());
    }

    #[test]
    fn a_hello_round_trips_and_every_part_of_it_waits_for_the_rest() {
        for lane in LaneKind::ALL {
            for (path, speaker) in [(PathKind::Main, Speaker::Worker), (PathKind::Aux, Speaker::Supervisor)] {
                let hello = Hello { lane, path, speaker, ..sample(OURS) };
                let mut bytes = hello.to_bytes();
                let end = bytes.len();
                for cut in 0..end {
                    assert_eq!(Hello::parse(&bytes[..cut], OURS), Ok(None), "cut at {cut}");
                }
                bytes.extend_from_slice(b"what follows");
                assert_eq!(Hello::parse(&bytes, OURS), Ok(Some((hello, ProtocolVersion(4), end))));
            }
        }
    }

    #[test]
    fn no_common_version_names_both_ranges_w41() {
        for (min, max, text) in [(5, 9, "5 to 9"), (1, 1, "1"), (0, 1, "0 to 1")] {
            let theirs = VersionRange { min, max };
            assert_eq!(negotiate(OURS, theirs), Err(HelloError::Versions { ours: OURS, theirs }));
            let mut bytes = sample(theirs).to_bytes();
            bytes[10..].fill(0xff);
            let error = Hello::parse(&bytes, OURS).unwrap_err();
            assert_eq!(error, HelloError::Versions { ours: OURS, theirs }, "even where the rest makes no sense");
            let message = error.to_string();
            assert!(message.contains(&format!("version {text}, this member 2 to 4")), "{message}");
        }
        for (min, max, common) in [(1, 2, 2), (3, 3, 3), (4, 9, 4), (1, 9, 4)] {
            assert_eq!(negotiate(OURS, VersionRange { min, max }), Ok(ProtocolVersion(common)));
        }
    }

    #[test]
    fn a_range_that_is_none_is_refused_w41() {
        let theirs = VersionRange { min: 4, max: 3 };
        assert!(negotiate(OURS, theirs).is_err());
    }

    #[test]
    fn a_newer_peer_may_say_more_and_an_equal_one_may_not_w42() {
        for (max, more) in [(4, false), (5, true)] {
            let hello = sample(VersionRange { min: 2, max });
            let mut bytes = hello.to_bytes();
            bytes.push(1);
            bytes[4] += 1;
            assert_eq!(Hello::parse(&bytes, OURS).is_ok(), more);
        }
    }

    #[test]
    fn what_cannot_become_a_hello_is_refused_at_once_w40() {
        assert_eq!(Hello::parse(b"G", OURS), Err(HelloError::Magic { got: [b'G', 0, 0, 0] }));
        assert_eq!(Hello::parse(b"RPHX", OURS), Err(HelloError::Magic { got: *b"RPHX" }));
        let long = [b"RPHI".as_slice(), &1019_u16.to_le_bytes()].concat();
        assert_eq!(Hello::parse(&long, OURS), Err(HelloError::TooLong { got: 1025 }));
        let longest = Hello { pair: "ä".repeat(400), ..sample(OURS) }.to_bytes();
        assert!(longest.len() <= MAX_HELLO_BYTES);
        assert_eq!(Hello::parse(&longest, OURS).unwrap().unwrap().0.pair, "ä".repeat(127));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(mut bytes: Vec<u8>, framed: bool) {
            if framed && bytes.len() > 9 {
                let body = (bytes.len() - HEADER_BYTES) as u16;
                bytes[..4].copy_from_slice(&MAGIC);
                bytes[4..6].copy_from_slice(&body.to_le_bytes());
                bytes[6..10].copy_from_slice(&[2, 0, 4, 0]);
            }
            let _ = Hello::parse(&bytes, OURS);
        }

        #[test]
        fn a_flipped_hello_is_an_error_or_another_hello(bit in 0..(52_usize * 8)) {
            let (hello, mut bytes) = (sample(OURS), sample(OURS).to_bytes());
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(Some((other, _, _))) = Hello::parse(&bytes, OURS) {
                prop_assert_ne!(other, hello);
            }
        }
    }
}

//! The heartbeat: a datagram of fixed size, sealed with a key from the ping lane's TLS session (protocol §4, SPEC.md §7).
//!
//! Here are the plaintext's fields and the layout of the envelope. Sealing, opening and replay windows are the
//! transport's; what a heartbeat means is the core's. Times are microseconds of the CLOCK_BOOTTIME of whoever wrote
//! them, and only ever given back to the member that wrote them.

use crate::{
    codec::{Codec, DecodeError, Reader, Writer},
    control::Role,
    control_codec::read_role,
    id::{Epoch, MemberId},
};

/// The version of the plaintext's layout.
pub const HEARTBEAT_VERSION: u8 = 1;
/// The length of the plaintext in bytes (W-60).
pub const PLAIN_BYTES: usize = 96;
/// The length of the authentication tag in bytes.
pub const TAG_BYTES: usize = 16;
/// The length of the envelope's header in bytes: magic, version, zeros, key id, counter.
pub const SEALED_HEADER_BYTES: usize = 24;
/// The length of a sealed heartbeat in bytes: any other length is refused before anything is computed (W-61).
pub const SEALED_BYTES: usize = SEALED_HEADER_BYTES + PLAIN_BYTES + TAG_BYTES;
/// The first bytes of a sealed heartbeat.
pub const MAGIC: [u8; 4] = *b"RPHB";
/// The unit of [`Heartbeat::link_factor`]: f times 256.
pub const LINK_FACTOR_ONE: u16 = 256;

/// What one heartbeat named: its number, and its sender's time of sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The number of the heartbeat on its path.
    pub number: u64,
    /// When it was sent, by its sender's clock, in microseconds.
    pub sent_us: u64,
}

/// The newest heartbeat that the sender has heard from its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heard {
    /// What that heartbeat named: number and time are the peer's.
    pub stamp: Stamp,
    /// How long ago it came, in microseconds; saturated.
    pub age_us: u32,
}

/// The backup's promise, in an answer (protocol §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeldRight {
    /// The number of the grant that the backup holds, within the epoch.
    pub grant: u64,
    /// No promotion before this many milliseconds from the answer's sending.
    pub promise_ms: u32,
}

/// The plaintext of a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Heartbeat {
    /// Who sends it.
    pub sender: MemberId,
    /// What the sender is.
    pub role: Role,
    /// The sender acknowledges by itself, without its backup (active only).
    pub alone: bool,
    /// The sender's exclusiveness at the time of sending (active only).
    pub exclusive: bool,
    /// The sender does not hear its peer.
    pub not_heard: bool,
    /// The sender's epoch.
    pub epoch: Epoch,
    /// The highest epoch that the sender knows of, anybody's.
    pub highest_epoch: Epoch,
    /// Number of this heartbeat on its path, and the sender's time.
    pub stamp: Stamp,
    /// The newest heartbeat heard from the peer; `None`: none yet.
    pub heard: Option<Heard>,
    /// Set in an answer: the heartbeat of the peer that it answers.
    pub answers: Option<Stamp>,
    /// The right to promote that the sender holds, with its promise.
    pub held: Option<HeldRight>,
    /// What the sender has learned of the link: f times 256, from 256 to 768.
    pub link_factor: u16,
}

/// Bits of the flags field.
mod flag {
    pub const ALONE: u16 = 1;
    pub const EXCLUSIVE: u16 = 1 << 1;
    pub const NOT_HEARD: u16 = 1 << 2;
    pub const HEARD: u16 = 1 << 3;
    pub const ANSWERS: u16 = 1 << 4;
    pub const HELD: u16 = 1 << 5;
    pub const ALL: u16 = (1 << 6) - 1;
}

impl Heartbeat {
    fn flags(&self) -> u16 {
        [
            (self.alone, flag::ALONE),
            (self.exclusive, flag::EXCLUSIVE),
            (self.not_heard, flag::NOT_HEARD),
            (self.heard.is_some(), flag::HEARD),
            (self.answers.is_some(), flag::ANSWERS),
            (self.held.is_some(), flag::HELD),
        ]
        .into_iter()
        .filter_map(|(set, bit)| set.then_some(bit))
        .sum()
    }
}

impl Codec for Heartbeat {
    const NAME: &'static str = "heartbeat";

    fn encode(&self, w: &mut Writer<'_>) {
        let heard = self.heard.unwrap_or(Heard { stamp: Stamp::default(), age_us: 0 });
        let answers = self.answers.unwrap_or_default();
        let held = self.held.unwrap_or(HeldRight { grant: 0, promise_ms: 0 });
        w.u8(HEARTBEAT_VERSION);
        w.member(self.sender);
        w.u8(self.role as u8);
        w.u8(0);
        w.u16(self.flags());
        w.u16(self.link_factor);
        w.epoch(self.epoch);
        w.epoch(self.highest_epoch);
        for stamp in [self.stamp, heard.stamp, answers] {
            w.u64(stamp.number);
            w.u64(stamp.sent_us);
        }
        w.u64(held.grant);
        w.u32(held.promise_ms);
        w.u32(heard.age_us);
        w.u64(0);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let zero = |what, got: u64| match got {
            0 => Ok(()),
            got => Err(DecodeError::Tag { what, got, expected: "0" }),
        };
        match r.u8("heartbeat.version")? {
            HEARTBEAT_VERSION => {}
            got => return Err(DecodeError::Tag { what: "heartbeat.version", got: got.into(), expected: "1" }),
        }
        let sender = r.member("heartbeat.sender")?;
        let role = read_role(r, "heartbeat.role")?;
        zero("heartbeat.reserved", r.u8("heartbeat.reserved")?.into())?;
        let flags = r.u16("heartbeat.flags")?;
        if flags & !flag::ALL != 0 {
            return Err(DecodeError::Tag { what: "heartbeat.flags", got: flags.into(), expected: "bits 0 to 5" });
        }
        let has = |bit| flags & bit != 0;
        let link_factor = r.u16("heartbeat.link_factor")?;
        if !(LINK_FACTOR_ONE..=3 * LINK_FACTOR_ONE).contains(&link_factor) {
            let (what, expected) = ("heartbeat.link_factor", "256 to 768");
            return Err(DecodeError::Tag { what, got: link_factor.into(), expected });
        }
        let (epoch, highest_epoch) = (r.epoch("heartbeat.epoch")?, r.epoch("heartbeat.highest_epoch")?);
        let stamp = read_stamp(r)?;
        let (heard, answers) = (read_stamp(r)?, read_stamp(r)?);
        let held = HeldRight { grant: r.u64("heartbeat.grant")?, promise_ms: r.u32("heartbeat.promise_ms")? };
        let heard = Heard { stamp: heard, age_us: r.u32("heartbeat.age_us")? };
        zero("heartbeat.reserved", r.u64("heartbeat.reserved")?)?;
        // A field whose flag is not set is zero: one value, one encoding.
        if !has(flag::HEARD) {
            zero("heartbeat.heard", heard.stamp.number | heard.stamp.sent_us | u64::from(heard.age_us))?;
        }
        if !has(flag::ANSWERS) {
            zero("heartbeat.answers", answers.number | answers.sent_us)?;
        }
        if !has(flag::HELD) {
            zero("heartbeat.held", held.grant | u64::from(held.promise_ms))?;
        }
        Ok(Self {
            sender,
            role,
            alone: has(flag::ALONE),
            exclusive: has(flag::EXCLUSIVE),
            not_heard: has(flag::NOT_HEARD),
            epoch,
            highest_epoch,
            stamp,
            heard: has(flag::HEARD).then_some(heard),
            answers: has(flag::ANSWERS).then_some(answers),
            held: has(flag::HELD).then_some(held),
            link_factor,
        })
    }
}

fn read_stamp(r: &mut Reader<'_>) -> Result<Stamp, DecodeError> {
    Ok(Stamp { number: r.u64("heartbeat.number")?, sent_us: r.u64("heartbeat.sent_us")? })
}

/// What a sealed datagram is: the version in its clear part. Who does not know one drops it unread (W-61).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SealedKind {
    /// A [`Heartbeat`].
    Heartbeat = 1,
    /// A [`Probe`](crate::probe::Probe) of a mark.
    Probe = 2,
}

/// The clear part of a sealed datagram; authenticated as associated data, not encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SealedHeader {
    /// What is sealed.
    pub kind: SealedKind,
    /// Which exported key seals it.
    pub key_id: u64,
    /// The nonce's counter: never twice under one key.
    pub counter: u64,
}

impl SealedHeader {
    /// The header's bytes, which are also the associated data.
    #[must_use]
    pub fn to_bytes(self) -> [u8; SEALED_HEADER_BYTES] {
        let mut bytes = [0; SEALED_HEADER_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind as u8;
        bytes[8..16].copy_from_slice(&self.key_id.to_le_bytes());
        bytes[16..].copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }

    /// Splits a datagram into its header and the sealed part (ciphertext, then tag). Nothing is authenticated yet.
    ///
    /// # Errors
    /// [`DecodeError`] where length, magic or version are not those of a sealed heartbeat.
    pub fn parse(datagram: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut r = Reader::new(datagram);
        if datagram.len() > SEALED_BYTES {
            return Err(DecodeError::Trailing { what: "sealed heartbeat", got: datagram.len() - SEALED_BYTES });
        }
        let magic: [u8; 4] = r.array("sealed.magic")?;
        if magic != MAGIC {
            let got = u32::from_le_bytes(magic).into();
            return Err(DecodeError::Tag { what: "sealed.magic", got, expected: "\"RPHB\"" });
        }
        let kind = match r.u32("sealed.version")? {
            1 => SealedKind::Heartbeat,
            2 => SealedKind::Probe,
            got => return Err(DecodeError::Tag { what: "sealed.version", got: got.into(), expected: "1 or 2" }),
        };
        let header = Self { kind, key_id: r.u64("sealed.key_id")?, counter: r.u64("sealed.counter")? };
        Ok((header, r.raw("sealed.body", PLAIN_BYTES + TAG_BYTES)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{any_member, canonical, golden, round_trip};

    fn sample() -> Heartbeat {
        Heartbeat {
            sender: MemberId::B,
            role: Role::Backup,
            alone: false,
            exclusive: false,
            not_heard: false,
            epoch: Epoch(65_537),
            highest_epoch: Epoch(65_537),
            stamp: Stamp { number: 7, sent_us: 1_000_000 },
            heard: Some(Heard { stamp: Stamp { number: 9, sent_us: 2_000_000 }, age_us: 50_000 }),
            answers: Some(Stamp { number: 9, sent_us: 2_000_000 }),
            held: Some(HeldRight { grant: 1, promise_ms: 450 }),
            link_factor: 300,
        }
    }

    #[test]
    fn golden_heartbeat_w60() {
        let bytes = sample().to_bytes();
        assert_eq!(bytes.len(), PLAIN_BYTES);
        golden("heartbeat", &bytes);
        golden(
            "heartbeat_sealed_header",
            &SealedHeader { kind: SealedKind::Heartbeat, key_id: 0x0102_0304, counter: 5 }.to_bytes(),
        );
    }

    #[test]
    fn a_field_whose_flag_is_not_set_is_zero_w62() {
        let without = Heartbeat { heard: None, answers: None, held: None, ..sample() };
        for (from, with) in [
            (40, Heartbeat { heard: sample().heard, ..without }),
            (56, Heartbeat { answers: sample().answers, ..without }),
            (72, Heartbeat { held: sample().held, ..without }),
        ] {
            let mut bytes = without.to_bytes();
            bytes[from..from + 8].copy_from_slice(&with.to_bytes()[from..from + 8]);
            assert!(matches!(Heartbeat::from_bytes(&bytes), Err(DecodeError::Tag { expected: "0", .. })), "at {from}");
        }
    }

    #[test]
    fn fields_out_of_range_are_refused_w63() {
        for (at, value, what) in [
            (0, 2, "heartbeat.version"),
            (1, 2, "heartbeat.sender"),
            (2, 3, "heartbeat.role"),
            (3, 1, "heartbeat.reserved"),
            (4, 0xff, "heartbeat.flags"),
            (7, 0, "heartbeat.link_factor"),
            (7, 4, "heartbeat.link_factor"),
            (88, 1, "heartbeat.reserved"),
        ] {
            let mut bytes = sample().to_bytes();
            bytes[at] = value;
            let error = Heartbeat::from_bytes(&bytes).unwrap_err().to_string();
            assert!(error.starts_with(what), "byte {at}: {error}");
        }
    }

    #[test]
    fn an_envelope_of_another_length_magic_or_version_is_refused_w61() {
        let header = SealedHeader { kind: SealedKind::Probe, key_id: u64::MAX, counter: 3 };
        let mut datagram = header.to_bytes().to_vec();
        datagram.extend_from_slice(&[9; PLAIN_BYTES + TAG_BYTES]);
        assert_eq!(SealedHeader::parse(&datagram), Ok((header, &[9; PLAIN_BYTES + TAG_BYTES][..])));
        for end in 0..datagram.len() {
            assert!(SealedHeader::parse(&datagram[..end]).is_err(), "cut at {end}");
        }
        for at in 0..8 {
            let mut damaged = datagram.clone();
            damaged[at] ^= 1;
            assert!(matches!(SealedHeader::parse(&damaged), Err(DecodeError::Tag { .. })), "byte {at}");
        }
        datagram.push(0);
        assert!(matches!(SealedHeader::parse(&datagram), Err(DecodeError::Trailing { got: 1, .. })));
    }

    fn any_heartbeat() -> impl Strategy<Value = Heartbeat> {
        let stamp = || any::<(u64, u64)>().prop_map(|(number, sent_us)| Stamp { number, sent_us });
        let heard = (stamp(), any::<u32>()).prop_map(|(stamp, age_us)| Heard { stamp, age_us });
        let held = any::<(u64, u32)>().prop_map(|(grant, promise_ms)| HeldRight { grant, promise_ms });
        let options = (prop::option::of(heard), prop::option::of(stamp()), prop::option::of(held));
        (any_member(), any::<(bool, bool, bool, u64, u64)>(), stamp(), options, 256..=768_u16).prop_map(
            |(sender, (alone, exclusive, not_heard, epoch, highest), stamp, (heard, answers, held), link_factor)| {
                let role = Role::Active;
                let (epoch, highest_epoch) = (Epoch(epoch), Epoch(highest));
                Heartbeat {
                    sender,
                    role,
                    alone,
                    exclusive,
                    not_heard,
                    epoch,
                    highest_epoch,
                    stamp,
                    heard,
                    answers,
                    held,
                    link_factor,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn heartbeats_round_trip(heartbeat in any_heartbeat()) {
            prop_assert_eq!(heartbeat.to_bytes().len(), PLAIN_BYTES);
            round_trip(&heartbeat)?;
        }

        #[test]
        fn any_bytes_are_an_error_or_canonical(mut bytes in prop::collection::vec(any::<u8>(), PLAIN_BYTES)) {
            canonical::<Heartbeat>(&bytes)?;
            bytes[..8].copy_from_slice(&sample().to_bytes()[..8]);
            bytes[88..].fill(0);
            canonical::<Heartbeat>(&bytes)?;
        }
    }
}

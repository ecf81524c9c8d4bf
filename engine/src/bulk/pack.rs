//! Compression of what travels on the bulk lane: each large message by itself, as `[compression] bulk` says.
//!
//! Always: memory is one block each way; a packed message means what the plain one means, so that both ends may be set
//! differently. `auto` leaves plain what does not shrink (see [`Compressor`]) and, where the link takes bytes faster
//! than they can be compressed here, everything: the link's pace is what TCP measured, the compressor's what this thread
//! measured. Never: more memory for what comes than W-55 allows.

use std::time::{Duration, Instant};

use ringpair_wire::{
    compress::{Compression, Compressor, Decompressor, ExpandError, Totals},
    lane::{LaneKind, MAX_PACKED_BYTES, Message, MessageKind, PACKED_HEADER_BYTES, packed_header},
};

use crate::{
    config::CompressionLevel,
    ring::Shared,
    transport::{ConnId, Transport},
};

/// Shorter bodies stay plain: answers, single small files.
const PACK_FROM_BYTES: usize = 512;
/// Blocks from this length on tell the compressor's pace.
const PACE_FROM_BYTES: usize = 64 << 10;
/// While the link outruns the compressor, one block in this many is compressed, so that its pace stays known.
const MEASURE_EVERY: u32 = 64;
/// How long what TCP says of the link holds.
const LINK_HOLDS: Duration = Duration::from_millis(20);

/// Packs and unpacks messages.
#[derive(Debug)]
pub struct Packer {
    compressor: Compressor,
    expander: Decompressor,
    /// How fast blocks were compressed of late, in plain bytes a second.
    pace: Option<u64>,
    /// Blocks left plain since the pace was measured.
    passed: u32,
    link: Link,
}

/// How fast the link is, as TCP last said.
#[derive(Debug, Default)]
struct Link {
    bytes_per_s: Option<u64>,
    asked: Option<(ConnId, Instant)>,
}

impl Link {
    fn pace(&mut self, transport: &Transport, conn: ConnId, now: Instant) -> Option<u64> {
        if !self.asked.is_some_and(|(asked, at)| asked == conn && now < at + LINK_HOLDS) {
            self.bytes_per_s = transport.tcp(conn).map(|tcp| tcp.delivery_bytes_per_s).filter(|rate| *rate > 0);
            self.asked = Some((conn, now));
        }
        self.bytes_per_s
    }
}

impl Packer {
    /// Packs as `level` says.
    #[must_use]
    pub fn new(level: CompressionLevel) -> Self {
        Self {
            compressor: Compressor::new(level.into()),
            expander: Decompressor::new(),
            pace: None,
            passed: 0,
            link: Link::default(),
        }
    }

    /// Bytes of messages before and after, so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        self.compressor.totals()
    }

    /// The message as it is sent on `conn`: packed where that pays.
    pub fn pack(
        &mut self,
        kind: MessageKind,
        body: Shared,
        transport: &Transport,
        conn: ConnId,
    ) -> (MessageKind, Shared) {
        let now = Instant::now();
        let link = match self.compressor.setting() {
            Compression::Auto => self.link.pace(transport, conn, now),
            Compression::Off | Compression::Level(_) => None,
        };
        self.pack_for(kind, body, link)
    }

    /// As [`Self::pack`], for a link of this pace in bytes a second; `None`: not known, or of no concern.
    fn pack_for(&mut self, kind: MessageKind, body: Shared, link: Option<u64>) -> (MessageKind, Shared) {
        let fits = (PACK_FROM_BYTES..=MAX_PACKED_BYTES).contains(&body.len());
        if !fits || self.is_outrun(link) {
            self.compressor.pass(body.len());
            return (kind, body);
        }
        let began = Instant::now();
        let mut packed = Vec::with_capacity(PACKED_HEADER_BYTES + body.len());
        packed.extend_from_slice(&packed_header(kind, body.len()));
        let kept = self.compressor.compress(&body, &mut packed);
        if kept && body.len() >= PACE_FROM_BYTES {
            self.note_pace(body.len(), began.elapsed());
        }
        if !kept {
            return (kind, body);
        }
        // What is left of the room would wait in the queue with it.
        packed.shrink_to_fit();
        (MessageKind::Packed, Shared::from(packed))
    }

    /// Whether the link takes bytes faster than they were compressed: then compressing would only slow it down.
    fn is_outrun(&mut self, link: Option<u64>) -> bool {
        let outrun = link.zip(self.pace).is_some_and(|(link, pace)| link > pace);
        self.passed = if outrun { self.passed + 1 } else { 0 };
        if self.passed >= MEASURE_EVERY {
            self.passed = 0;
            return false;
        }
        outrun
    }

    fn note_pace(&mut self, bytes: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let new = (bytes as u64).saturating_mul(1_000_000_000) / nanos;
        self.pace = Some(self.pace.map_or(new, |old| (3 * old + new) / 4));
    }

    /// Expands what came packed (W-55): the body of the message inside.
    ///
    /// # Errors
    /// It is damaged, or does not have the length that it names: the lane is closed.
    pub fn unpack<'a>(
        &'a mut self,
        kind: MessageKind,
        plain_bytes: usize,
        stored: &[u8],
    ) -> Result<Message<'a>, String> {
        debug_assert!(kind.allowed_on(LaneKind::Bulk) && plain_bytes <= MAX_PACKED_BYTES, "the decoder checked it");
        let plain = self.expander.expand(stored, plain_bytes).map_err(|error: ExpandError| error.to_string())?;
        Message::decode(kind, plain).map_err(|error| error.to_string())
    }
}

impl From<CompressionLevel> for Compression {
    fn from(level: CompressionLevel) -> Self {
        match level {
            CompressionLevel::Off => Self::Off,
            CompressionLevel::Auto => Self::Auto,
            CompressionLevel::Level(level) => Self::Level(level),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: usize) -> Shared {
        Shared::from(b"a line of a log, as they are. ".iter().copied().cycle().take(bytes).collect::<Vec<u8>>())
    }

    fn unpacked(packer: &mut Packer, kind: MessageKind, body: &[u8]) -> Result<Vec<u8>, String> {
        match Message::decode(kind, body).unwrap() {
            Message::Packed { kind, plain_bytes, stored } => match packer.unpack(kind, plain_bytes, stored)? {
                Message::Mirror(bytes) => Ok(bytes.to_vec()),
                other => panic!("{other:?}"),
            },
            Message::Mirror(bytes) => Ok(bytes.to_vec()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_packed_is_smaller_and_the_same_w55() {
        let mut other = Packer::new(CompressionLevel::Off);
        for level in [CompressionLevel::Auto, CompressionLevel::Level(1), CompressionLevel::Level(19)] {
            let mut packer = Packer::new(level);
            for bytes in [PACK_FROM_BYTES, 300_000, 1 << 20] {
                let (kind, body) = packer.pack_for(MessageKind::Mirror, text(bytes), None);
                assert_eq!(kind, MessageKind::Packed);
                assert!(body.len() < bytes / 2, "{bytes} became {}", body.len());
                assert_eq!(unpacked(&mut other, kind, &body).unwrap(), text(bytes).to_vec());
            }
            let totals = packer.totals();
            assert!(totals.stored_bytes < totals.plain_bytes / 2 && totals.plain_bytes > 1 << 20, "{totals:?}");
        }
        let (kind, body) = other.pack_for(MessageKind::Mirror, text(300_000), None);
        assert_eq!((kind, body.len()), (MessageKind::Mirror, 300_000));
        for bytes in [PACK_FROM_BYTES - 1, MAX_PACKED_BYTES + 1] {
            let (kind, _) = Packer::new(CompressionLevel::Level(1)).pack_for(MessageKind::Mirror, text(bytes), None);
            assert_eq!(kind, MessageKind::Mirror, "{bytes} bytes stay plain");
        }
    }

    #[test]
    fn auto_leaves_plain_what_the_link_takes_faster() {
        let mut packer = Packer::new(CompressionLevel::Auto);
        let kinds = |packer: &mut Packer, link| {
            let packed = |_| packer.pack_for(MessageKind::Mirror, text(PACE_FROM_BYTES), link).0 == MessageKind::Packed;
            (0..2 * MEASURE_EVERY).map(packed).filter(|packed| *packed).count()
        };
        assert_eq!(kinds(&mut packer, Some(1)), 2 * MEASURE_EVERY as usize, "a slow link gets everything packed");
        assert_eq!(kinds(&mut packer, Some(u64::MAX)), 2, "a fast one only what keeps the pace known");
        assert_eq!(kinds(&mut packer, None), 2 * MEASURE_EVERY as usize, "and one that is not known what shrinks");
        let mut level = Packer::new(CompressionLevel::Level(1));
        assert_eq!(kinds(&mut level, None), 2 * MEASURE_EVERY as usize);
    }

    #[test]
    fn a_bomb_is_refused_without_its_memory_w55() {
        let mut stored = Vec::new();
        assert!(Compressor::new(Compression::Level(19)).compress(&vec![0; 64 << 20], &mut stored));
        let mut packer = Packer::new(CompressionLevel::Off);
        for claimed in [stored.len() + 1, 1 << 20] {
            let mut body = packed_header(MessageKind::Mirror, claimed).to_vec();
            body.extend_from_slice(&stored);
            let why = unpacked(&mut packer, MessageKind::Packed, &body).unwrap_err();
            assert!(why.contains("does not expand"), "{why}");
        }
    }
}

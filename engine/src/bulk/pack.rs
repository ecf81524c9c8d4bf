//! Compression of what travels on the bulk lane: each large message by itself, as `[compression] bulk` says.
//!
//! Always: memory is one block each way; a packed message means what the plain one means, so that both ends may be set
//! differently. `auto` leaves plain what does not shrink (see [`Compressor`]) and, where the link takes bytes faster
//! than they can be compressed here, everything: the link's pace is what TCP measured, the compressor's what this thread
//! measured. Never: more memory for what comes than W-55 allows.

use std::time::Instant;

use ringpair_wire::{
    compress::{Compression, Compressor, Decompressor, ExpandError, Totals},
    lane::{LaneKind, MAX_PACKED_BYTES, Message, MessageKind, PACKED_HEADER_BYTES, packed_header},
};

use crate::{
    config::CompressionLevel,
    pace::Pace,
    ring::Shared,
    transport::{ConnId, Transport},
};

/// Shorter bodies stay plain: answers, single small files.
const PACK_FROM_BYTES: usize = 512;
/// Blocks from this length on tell the compressor's pace.
const PACE_FROM_BYTES: usize = 64 << 10;

/// Packs and unpacks messages.
#[derive(Debug)]
pub struct Packer {
    compressor: Compressor,
    expander: Decompressor,
    pace: Pace,
}

impl Packer {
    /// Packs as `level` says.
    #[must_use]
    pub fn new(level: CompressionLevel) -> Self {
        Self { compressor: Compressor::new(level.into()), expander: Decompressor::new(), pace: Pace::default() }
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
        if self.compressor.setting() == Compression::Auto {
            self.pace.look_at(transport, conn, Instant::now());
        }
        self.pack_here(kind, body)
    }

    /// As [`Self::pack`], for the link that was looked at last.
    fn pack_here(&mut self, kind: MessageKind, body: Shared) -> (MessageKind, Shared) {
        let fits = (PACK_FROM_BYTES..=MAX_PACKED_BYTES).contains(&body.len());
        if !fits || self.pace.is_outrun() {
            self.compressor.pass(body.len());
            return (kind, body);
        }
        let began = Instant::now();
        let mut packed = Vec::with_capacity(PACKED_HEADER_BYTES + body.len());
        packed.extend_from_slice(&packed_header(kind, body.len()));
        let kept = self.compressor.compress(&body, &mut packed);
        if kept && body.len() >= PACE_FROM_BYTES {
            self.pace.note(body.len(), began.elapsed());
        }
        if !kept {
            return (kind, body);
        }
        // What is left of the room would wait in the queue with it.
        packed.shrink_to_fit();
        (MessageKind::Packed, Shared::from(packed))
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
                let (kind, body) = packer.pack_here(MessageKind::Mirror, text(bytes));
                assert_eq!(kind, MessageKind::Packed);
                assert!(body.len() < bytes / 2, "{bytes} became {}", body.len());
                assert_eq!(unpacked(&mut other, kind, &body).unwrap(), text(bytes).to_vec());
            }
            let totals = packer.totals();
            assert!(totals.stored_bytes < totals.plain_bytes / 2 && totals.plain_bytes > 1 << 20, "{totals:?}");
        }
        let (kind, body) = other.pack_here(MessageKind::Mirror, text(300_000));
        assert_eq!((kind, body.len()), (MessageKind::Mirror, 300_000));
        for bytes in [PACK_FROM_BYTES - 1, MAX_PACKED_BYTES + 1] {
            let (kind, _) = Packer::new(CompressionLevel::Level(1)).pack_here(MessageKind::Mirror, text(bytes));
            assert_eq!(kind, MessageKind::Mirror, "{bytes} bytes stay plain");
        }
    }

    #[test]
    fn auto_leaves_plain_what_the_link_takes_faster() {
        let mut packer = Packer::new(CompressionLevel::Auto);
        let packed = |packer: &mut Packer, link| {
            packer.pace.set_link(link);
            packer.pack_here(MessageKind::Mirror, text(1 << 20)).0 == MessageKind::Packed
        };
        assert!(packed(&mut packer, Some(1)), "a slow link");
        assert!(!packed(&mut packer, Some(u64::MAX)), "a fast one");
        assert!(packed(&mut packer, None), "one that is not known");
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

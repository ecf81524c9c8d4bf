//! The header of a frame: its layout, its ranges, and what it tells before and after the frame is checked (SPEC.md §2).
//!
//! Always: its own checksum is compared before a field is believed, and every range before it is used. Never: an
//! [`UncheckedHeader`] taken for a [`FrameHeader`], which only a checked frame has.

use crate::{
    checksum::{checksum, frame_seed},
    codec::Writer,
    frame::{FORMAT_VERSION, FrameError, MAGIC, MAX_PLAIN_BYTES, MAX_RECORDS, TRAILER_BYTES},
    id::{ChainHash, Epoch, HistoryId, Position, Seq},
};

/// The length of the header in bytes.
pub const HEADER_BYTES: usize = offset::END;

/// Where the header's fields begin; each from the one before.
pub(crate) mod offset {
    pub const VERSION: usize = 4;
    pub const FLAGS: usize = VERSION + 2;
    pub const STORED: usize = FLAGS + 2;
    pub const PLAIN: usize = STORED + 4;
    pub const COUNT: usize = PLAIN + 4;
    pub const SPAN: usize = COUNT + 4;
    pub const HISTORY: usize = SPAN + 4;
    pub const EPOCH: usize = HISTORY + 16;
    pub const FIRST_SEQ: usize = EPOCH + 8;
    pub const PREV_CHAIN: usize = FIRST_SEQ + 8;
    pub const RULE_SET: usize = PREV_CHAIN + 16;
    pub const END_CHAIN: usize = RULE_SET + 8;
    pub const HEADER_SUM: usize = END_CHAIN + 16;
    pub const END: usize = HEADER_SUM + 8;
}

/// Bits of the flags field.
pub(crate) mod flag {
    /// The payload is one zstd frame.
    pub const ZSTD: u16 = 1;
    /// Only survivors of a rule set are carried.
    pub const FILTERED: u16 = 1 << 1;
    /// The only record begins the epoch.
    pub const EPOCH: u16 = 1 << 2;
    pub const ALL: u16 = ZSTD | FILTERED | EPOCH;
}

/// The fields of a header, whether checked or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub flags: u16,
    pub stored: u32,
    pub plain: u32,
    pub count: u32,
    pub span: u32,
    pub history: HistoryId,
    pub epoch: Epoch,
    pub first_seq: Seq,
    pub prev_chain: ChainHash,
    pub rule_set: u64,
    pub end_chain: ChainHash,
}

impl Fields {
    /// The seed of its checksums.
    pub fn seed(&self) -> u64 {
        frame_seed(self.history, self.epoch, self.first_seq)
    }

    /// Whether a flag is set.
    pub const fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The last sequence number covered; `span` is at least 1 and does not overflow, see [`check_ranges`].
    pub const fn last_seq(&self) -> Seq {
        Seq(self.first_seq.0 + (self.span as u64 - 1))
    }

    /// The header's bytes, with their checksum.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        let mut w = Writer::new(&mut out);
        w.raw(&MAGIC);
        w.u16(FORMAT_VERSION);
        w.u16(self.flags);
        w.u32(self.stored);
        w.u32(self.plain);
        w.u32(self.count);
        w.u32(self.span);
        w.history(self.history);
        w.epoch(self.epoch);
        w.seq(self.first_seq);
        w.chain(self.prev_chain);
        w.u64(self.rule_set);
        w.chain(self.end_chain);
        let mut header = [0; HEADER_BYTES];
        header[..offset::HEADER_SUM].copy_from_slice(&out);
        let sum = checksum(self.seed(), &header[..offset::HEADER_SUM]);
        header[offset::HEADER_SUM..].copy_from_slice(&sum.to_le_bytes());
        header
    }
}

/// A header whose own checksum and ranges hold, before its payload was seen: enough to know how many bytes to wait
/// for, and what was lost where the payload is damaged; never enough to believe the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UncheckedHeader(pub(crate) Fields);

/// The header of a checked frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub(crate) fields: Fields,
    pub(crate) end: Position,
}

/// A field of `N` bytes at `at`; the header is longer than that.
fn field<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

impl UncheckedHeader {
    /// Reads the header at the front of `bytes`.
    ///
    /// # Errors
    /// [`FrameError`], each with got and expected. A version this build does not know is named before anything else
    /// of the header is looked at.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let truncated = FrameError::Truncated { got: bytes.len(), expected: HEADER_BYTES };
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(truncated)?;
        let magic = field::<4>(header, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic { got: magic });
        }
        let version = u16::from_le_bytes(field(header, offset::VERSION));
        if version != FORMAT_VERSION {
            return Err(FrameError::Version { got: version });
        }
        let u32_at = |at| u32::from_le_bytes(field(header, at));
        let u64_at = |at| u64::from_le_bytes(field(header, at));
        let chain_at = |at| ChainHash(u128::from_le_bytes(field(header, at)));
        let fields = Fields {
            flags: u16::from_le_bytes(field(header, offset::FLAGS)),
            stored: u32_at(offset::STORED),
            plain: u32_at(offset::PLAIN),
            count: u32_at(offset::COUNT),
            span: u32_at(offset::SPAN),
            history: HistoryId(field(header, offset::HISTORY)),
            epoch: Epoch(u64_at(offset::EPOCH)),
            first_seq: Seq(u64_at(offset::FIRST_SEQ)),
            prev_chain: chain_at(offset::PREV_CHAIN),
            rule_set: u64_at(offset::RULE_SET),
            end_chain: chain_at(offset::END_CHAIN),
        };
        let (got, expected) = (checksum(fields.seed(), &header[..offset::HEADER_SUM]), u64_at(offset::HEADER_SUM));
        if got != expected {
            return Err(FrameError::HeaderChecksum { got, expected });
        }
        check_ranges(&fields)?;
        Ok(Self(fields))
    }

    /// The length of the whole frame in bytes; at most [`crate::frame::MAX_FRAME_BYTES`].
    #[must_use]
    pub const fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.0.stored as usize + TRAILER_BYTES
    }

    /// The history it says it belongs to.
    #[must_use]
    pub const fn history(&self) -> HistoryId {
        self.0.history
    }

    /// The epoch it says it belongs to.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.0.epoch
    }

    /// The first and the last sequence number it says it covers.
    #[must_use]
    pub const fn seqs(&self) -> (Seq, Seq) {
        (self.0.first_seq, self.0.last_seq())
    }

    /// The chain hash it says the frame before it has.
    #[must_use]
    pub const fn prev_chain(&self) -> ChainHash {
        self.0.prev_chain
    }
}

/// The ranges and contradictions of W-11, W-15 and W-16.
fn check_ranges(f: &Fields) -> Result<(), FrameError> {
    let require = |holds: bool, field, got: u64, expected: &str| match holds {
        true => Ok(()),
        false => Err(FrameError::Field { field, got, expected: expected.into() }),
    };
    let filtered = f.is(flag::FILTERED);
    require(f.flags & !flag::ALL == 0, "flags", f.flags.into(), "bits 0 to 2")?;
    require(f.plain as usize <= MAX_PLAIN_BYTES, "plain length", f.plain.into(), "at most 1 MiB")?;
    if f.is(flag::ZSTD) {
        require(f.stored < f.plain, "stored length", f.stored.into(), "less than the plain length")?;
    } else {
        require(f.stored == f.plain, "stored length", f.stored.into(), "the plain length")?;
    }
    require(f.epoch.0 > 0, "epoch", f.epoch.0, "1 or more")?;
    require(f.first_seq.0 > 0, "first seq", f.first_seq.0, "1 or more")?;
    require(f.count as usize <= MAX_RECORDS, "record count", f.count.into(), "at most 65536")?;
    require(f.span > 0, "span", f.span.into(), "1 or more")?;
    let room = u64::from(f.span - 1) <= u64::MAX - f.first_seq.0;
    require(room, "span", f.span.into(), "no more than sequence numbers are left")?;
    if filtered {
        require(f.count <= f.span, "record count", f.count.into(), "at most the span")?;
        require(f.count > 0 || f.plain == 0, "plain length", f.plain.into(), "0 without records")?;
        require(!f.is(flag::EPOCH), "flags", f.flags.into(), "not both FILTERED and EPOCH")?;
    } else {
        require(f.count > 0, "record count", f.count.into(), "1 or more")?;
        require(f.count == f.span, "span", f.span.into(), "the record count")?;
        require(f.rule_set == 0, "rule set", f.rule_set, "0 where not FILTERED")?;
        require(f.end_chain.0 == 0, "end chain", f.end_chain.0 as u64, "0 where not FILTERED")?;
    }
    if f.is(flag::EPOCH) {
        require(f.count == 1, "record count", f.count.into(), "1 in an EPOCH frame")?;
    }
    let least = u64::from(f.count) * if filtered { 3 } else { 2 };
    require(
        u64::from(f.plain) >= least,
        "plain length",
        f.plain.into(),
        if filtered { "3 bytes or more for each record" } else { "2 bytes or more for each record" },
    )
}

impl FrameHeader {
    /// The history it belongs to.
    #[must_use]
    pub const fn history(&self) -> HistoryId {
        self.fields.history
    }

    /// The epoch of all its records.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.fields.epoch
    }

    /// The first sequence number it covers.
    #[must_use]
    pub const fn first_seq(&self) -> Seq {
        self.fields.first_seq
    }

    /// The last sequence number it covers.
    #[must_use]
    pub const fn last_seq(&self) -> Seq {
        self.fields.last_seq()
    }

    /// How many records it carries: as many as it covers, unless FILTERED.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.fields.count as usize
    }

    /// The chain hash of the frame before it.
    #[must_use]
    pub const fn prev_chain(&self) -> ChainHash {
        self.fields.prev_chain
    }

    /// The place where it ends. A FILTERED frame ends where the frames that it stands for end.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.end
    }

    /// The rule set that its records survived; `None`: it carries all of them.
    #[must_use]
    pub const fn rule_set(&self) -> Option<u64> {
        if self.fields.is(flag::FILTERED) { Some(self.fields.rule_set) } else { None }
    }

    /// Whether its only record begins the epoch.
    #[must_use]
    pub const fn begins_epoch(&self) -> bool {
        self.fields.is(flag::EPOCH)
    }

    /// The place where the frame ends.
    #[must_use]
    pub const fn end(&self) -> Position {
        self.end
    }

    /// Whether its payload is compressed.
    #[must_use]
    pub const fn is_compressed(&self) -> bool {
        self.fields.is(flag::ZSTD)
    }

    /// The length of its payload, expanded, in bytes.
    #[must_use]
    pub const fn plain_bytes(&self) -> usize {
        self.fields.plain as usize
    }

    /// Whether this frame comes directly after `position`: the chain says so, and so does the sequence number.
    #[must_use]
    pub fn follows(&self, position: &Position) -> bool {
        self.fields.prev_chain == position.chain
            && position.seq.0.checked_add(1) == Some(self.fields.first_seq.0)
            && self.fields.epoch >= position.epoch
    }
}

/// The length of the frame at the front of `bytes`: `None` until its header is there.
#[must_use]
pub fn peek_len(bytes: &[u8]) -> Option<Result<usize, FrameError>> {
    match UncheckedHeader::parse(bytes) {
        Err(FrameError::Truncated { .. }) => None,
        parsed => Some(parsed.map(|header| header.frame_bytes())),
    }
}

//! The batch frame: what the journal stores and the ds lane carries, the same bytes in both (design §3, SPEC.md §2, §3).
//!
//! Always: a frame is checked as a whole before any of it is believed; every length is bounded before it is used; a
//! set of records, with its place, has its chain hash from exactly the bytes that were journalled. Never: a header
//! taken for checked (an [`UncheckedHeader`] is another type), or bytes changed after sealing.

use crate::{
    checksum::{chain_hash, checksum, frame_seed},
    codec::{Codec, DecodeError, Reader, Writer},
    compress::{Decompressor, ExpandError},
    id::{ChainHash, Epoch, HistoryId, Position, Seq},
    record::{MAX_RECORD_BYTES, Record},
};

/// The first bytes of a frame.
pub const MAGIC: [u8; 4] = *b"RPFR";
/// The version of the layout.
pub const FORMAT_VERSION: u16 = 1;
/// The length of the header in bytes.
pub const HEADER_BYTES: usize = offset::END;
/// The length of the checksum behind the payload.
pub const TRAILER_BYTES: usize = 8;
/// The greatest length of a payload, stored or expanded, in bytes (W-11). Large enough for a catch-up to run at the
/// link's speed, small enough that a lane's buffer and an expansion cost a member 1 MiB each.
pub const MAX_PLAIN_BYTES: usize = 1 << 20;
/// The greatest length of a whole frame in bytes.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + MAX_PLAIN_BYTES + TRAILER_BYTES;
/// The greatest count of records in a frame.
pub const MAX_RECORDS: usize = 65_536;

/// Where the header's fields begin; each from the one before.
mod offset {
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

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Fewer bytes than the frame takes.
    #[error("frame truncated: got {got} bytes, expected {expected}")]
    Truncated {
        /// What is there.
        got: usize,
        /// What it takes, as far as is known.
        expected: usize,
    },
    /// Bytes after the frame's end, where it must be alone.
    #[error("frame of {expected} bytes in {got} bytes")]
    Trailing {
        /// What is there.
        got: usize,
        /// What the frame takes.
        expected: usize,
    },
    /// Not a frame at all.
    #[error("frame magic: got {got:02x?}, expected {MAGIC:02x?}")]
    Magic {
        /// What stands there.
        got: [u8; 4],
    },
    /// A layout of another version (W-10).
    #[error("frame format version: got {got}, expected {FORMAT_VERSION}")]
    Version {
        /// What stands there.
        got: u16,
    },
    /// The header is damaged (W-13).
    #[error("frame header checksum: got {got:016x}, expected {expected:016x}")]
    HeaderChecksum {
        /// What its bytes give.
        got: u64,
        /// What stands there.
        expected: u64,
    },
    /// The frame is damaged behind its header (W-13).
    #[error("frame checksum: got {got:016x}, expected {expected:016x}")]
    Checksum {
        /// What its bytes give.
        got: u64,
        /// What stands there.
        expected: u64,
    },
    /// A field outside its range, or two that contradict each other (W-11, W-15, W-16).
    #[error("frame {field}: got {got}, expected {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What stands there.
        got: u64,
        /// What may.
        expected: String,
    },
    /// The payload does not expand (W-12).
    #[error("frame payload: {0}")]
    Expand(#[from] ExpandError),
    /// The payload holds no records.
    #[error("frame record: {0}")]
    Record(#[from] DecodeError),
}

/// Why a record does not go into a frame.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// It goes into the next one.
    #[error("the frame is full")]
    Full,
    /// It goes into none (W-20).
    #[error(
        "record of {got} bytes, expected at most {MAX_RECORD_BYTES}. Try: split the change, or store its values as content"
    )]
    TooLong {
        /// Its length.
        got: usize,
    },
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

    const fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
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
pub struct UncheckedHeader(Fields);

/// The header of a checked frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    fields: Fields,
    end: Position,
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

    /// The length of the whole frame in bytes; at most [`MAX_FRAME_BYTES`].
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
        (self.0.first_seq, last_seq(&self.0))
    }

    /// The chain hash it says the frame before it has.
    #[must_use]
    pub const fn prev_chain(&self) -> ChainHash {
        self.0.prev_chain
    }
}

/// The last sequence number covered; `span` is at least 1 and does not overflow, see [`check_ranges`].
const fn last_seq(fields: &Fields) -> Seq {
    Seq(fields.first_seq.0 + (fields.span as u64 - 1))
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
        last_seq(&self.fields)
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

/// A frame whose checksums and ranges hold.
#[derive(Clone, Copy, Debug)]
pub struct CheckedFrame<'a> {
    header: FrameHeader,
    bytes: &'a [u8],
}

impl<'a> CheckedFrame<'a> {
    /// Checks a frame that takes all of `bytes`.
    ///
    /// # Errors
    /// [`FrameError`], each with got and expected.
    pub fn check(bytes: &'a [u8]) -> Result<Self, FrameError> {
        let (frame, rest) = Self::check_first(bytes)?;
        if !rest.is_empty() {
            return Err(FrameError::Trailing { got: bytes.len(), expected: frame.bytes.len() });
        }
        Ok(frame)
    }

    /// Checks the frame at the front of `bytes`, and gives what follows it.
    ///
    /// # Errors
    /// [`FrameError`], each with got and expected.
    pub fn check_first(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), FrameError> {
        let UncheckedHeader(fields) = UncheckedHeader::parse(bytes)?;
        let expected = UncheckedHeader(fields).frame_bytes();
        let truncated = FrameError::Truncated { got: bytes.len(), expected };
        let (bytes, rest) = bytes.split_at_checked(expected).ok_or(truncated)?;
        let mut reader = Reader::new(&bytes[expected - TRAILER_BYTES..]);
        let expected_sum = reader.u64("frame checksum")?;
        let got = checksum(fields.seed(), &bytes[..expected - TRAILER_BYTES]);
        if got != expected_sum {
            return Err(FrameError::Checksum { got, expected: expected_sum });
        }
        let end = end_of(&fields, bytes);
        Ok((Self { header: FrameHeader { fields, end }, bytes }, rest))
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// The place where it ends.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.header.end
    }

    /// All its bytes: what is journalled and sent.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The encoded records, each with its number, not yet decoded. `expander`'s buffer holds a compressed payload.
    ///
    /// # Errors
    /// [`FrameError::Expand`].
    pub fn raw_records<'b>(&self, expander: &'b mut Decompressor) -> Result<RawRecords<'b>, FrameError>
    where
        'a: 'b,
    {
        let stored = &self.bytes[HEADER_BYTES..self.bytes.len() - TRAILER_BYTES];
        let plain = match self.header.is_compressed() {
            true => expander.expand(stored, self.header.plain_bytes())?,
            false => stored,
        };
        let fields = &self.header.fields;
        Ok(RawRecords {
            reader: Reader::new(plain),
            left: self.header.count(),
            filtered: fields.is(flag::FILTERED),
            next: Some(fields.first_seq),
            last: last_seq(fields),
        })
    }

    /// The records, each with its number, decoded one by one.
    ///
    /// # Errors
    /// [`FrameError::Expand`].
    pub fn records<'b>(&self, expander: &'b mut Decompressor) -> Result<Records<'b>, FrameError>
    where
        'a: 'b,
    {
        Ok(Records { raw: self.raw_records(expander)?, epoch: self.header.epoch(), begins: self.header.begins_epoch() })
    }

    /// Decodes every record and keeps none: a frame that passes is safe to journal (W-17).
    ///
    /// # Errors
    /// The first [`FrameError`].
    pub fn validate(&self, expander: &mut Decompressor) -> Result<(), FrameError> {
        self.records(expander)?.try_for_each(|record| record.map(drop))
    }
}

fn end_of(fields: &Fields, bytes: &[u8]) -> Position {
    let chain = if fields.is(flag::FILTERED) { fields.end_chain } else { chain_hash(bytes) };
    Position { epoch: fields.epoch, seq: last_seq(fields), chain }
}

/// The encoded records of a frame. Ends after the first error.
#[derive(Clone, Debug)]
pub struct RawRecords<'a> {
    reader: Reader<'a>,
    left: usize,
    filtered: bool,
    /// The lowest number the next record may have.
    next: Option<Seq>,
    last: Seq,
}

impl<'a> RawRecords<'a> {
    fn read(&mut self) -> Result<(Seq, &'a [u8]), FrameError> {
        let skipped = if self.filtered { self.reader.varint("record.skipped")? } else { 0 };
        let seq = self.next.and_then(|next| next.0.checked_add(skipped)).filter(|seq| *seq <= self.last.0);
        let Some(seq) = seq else {
            let expected = format!("a number up to {}", self.last);
            return Err(FrameError::Field { field: "record seq", got: skipped, expected });
        };
        self.next = seq.checked_add(1).map(Seq);
        let bytes = self.reader.blob("record", MAX_RECORD_BYTES)?;
        self.left -= 1;
        if self.left == 0 {
            self.reader.clone().finish("frame payload")?;
        }
        Ok((Seq(seq), bytes))
    }
}

impl<'a> Iterator for RawRecords<'a> {
    type Item = Result<(Seq, &'a [u8]), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let read = self.read();
        if read.is_err() {
            self.left = 0;
        }
        Some(read)
    }
}

/// The records of a frame. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    raw: RawRecords<'a>,
    epoch: Epoch,
    begins: bool,
}

impl Records<'_> {
    /// Decodes a record, and compares it with what the header says of epochs (W-18).
    fn decode(&self, bytes: &[u8]) -> Result<Record, FrameError> {
        let record = Record::from_bytes(bytes)?;
        if record.is_epoch() != self.begins {
            let expected = "an epoch record in an EPOCH frame and nowhere else".into();
            return Err(FrameError::Field { field: "record type", got: record.is_epoch().into(), expected });
        }
        match &record {
            Record::Epoch(begun) if begun.epoch != self.epoch => {
                let expected = format!("{}, the frame's", self.epoch);
                Err(FrameError::Field { field: "record epoch", got: begun.epoch.0, expected })
            }
            _ => Ok(record),
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<(Seq, Record), FrameError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (seq, bytes) = match self.raw.next()? {
            Ok(raw) => raw,
            Err(error) => return Some(Err(error)),
        };
        let decoded = self.decode(bytes);
        if decoded.is_err() {
            self.raw.left = 0;
        }
        Some(decoded.map(|record| (seq, record)))
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

//! The batch frame: what the journal stores and the ds lane carries, the same bytes in both (design §3, SPEC.md §2, §3).
//!
//! Always: a frame is checked as a whole before any of it is believed; every length is bounded before it is used; a
//! set of records, with its place, has its chain hash from exactly the bytes that were journalled. Never: a header
//! taken for checked (an [`UncheckedHeader`] is another type), or bytes changed after sealing.

pub use crate::frame_header::{FrameHeader, HEADER_BYTES, UncheckedHeader, peek_len};
use crate::{
    checksum::{chain_hash, checksum},
    codec::{Codec, DecodeError, Reader},
    compress::{Decompressor, ExpandError},
    frame_header::{Fields, flag},
    id::{Epoch, Position, Seq},
    record::{MAX_RECORD_BYTES, Record},
};

/// The first bytes of a frame.
pub const MAGIC: [u8; 4] = *b"RPFR";
/// The version of the layout.
pub const FORMAT_VERSION: u16 = 1;
/// The length of the checksum behind the payload.
pub const TRAILER_BYTES: usize = 8;
/// The greatest length of a payload, stored or expanded, in bytes (W-11). Large enough for a catch-up to run at the
/// link's speed, small enough that a lane's buffer and an expansion cost a member 1 MiB each.
pub const MAX_PLAIN_BYTES: usize = 1 << 20;
/// The greatest length of a whole frame in bytes.
pub const MAX_FRAME_BYTES: usize = HEADER_BYTES + MAX_PLAIN_BYTES + TRAILER_BYTES;
/// The greatest count of records in a frame.
pub const MAX_RECORDS: usize = 65_536;

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

    /// The same frame once more, of which only the header was kept beside the bytes; `None`: these are not its bytes, as
    /// far as their number tells.
    #[must_use]
    pub fn checked_before(header: FrameHeader, bytes: &'a [u8]) -> Option<Self> {
        (UncheckedHeader(header.fields).frame_bytes() == bytes.len()).then_some(Self { header, bytes })
    }

    /// The header.
    #[must_use]
    pub const fn header(&self) -> &FrameHeader {
        &self.header
    }

    /// The place where it ends.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.header.end()
    }

    /// All its bytes: what is journalled and sent.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The payload as it is when it is not compressed. `expander`'s buffer holds a compressed one.
    ///
    /// # Errors
    /// [`FrameError::Expand`].
    pub fn payload<'b>(&self, expander: &'b mut Decompressor) -> Result<&'b [u8], FrameError>
    where
        'a: 'b,
    {
        let stored = &self.bytes[HEADER_BYTES..self.bytes.len() - TRAILER_BYTES];
        Ok(match self.header.is_compressed() {
            true => expander.expand(stored, self.header.plain_bytes())?,
            false => stored,
        })
    }

    /// The encoded records in its [`payload`](Self::payload), each with its number, not yet decoded.
    #[must_use]
    pub fn raw_records<'b>(&self, payload: &'b [u8]) -> RawRecords<'b> {
        let fields = &self.header.fields;
        RawRecords {
            reader: Reader::new(payload),
            left: self.header.count(),
            filtered: fields.is(flag::FILTERED),
            next: Some(fields.first_seq),
            last: fields.last_seq(),
        }
    }

    /// The records, each with its number, decoded one by one.
    ///
    /// # Errors
    /// [`FrameError::Expand`].
    pub fn records<'b>(&self, expander: &'b mut Decompressor) -> Result<Records<'b>, FrameError>
    where
        'a: 'b,
    {
        let raw = self.raw_records(self.payload(expander)?);
        Ok(Records { raw, rules: self.record_rules() })
    }

    /// What its header says of its records.
    #[must_use]
    pub const fn record_rules(&self) -> RecordRules {
        RecordRules { epoch: self.header.epoch(), begins: self.header.begins_epoch() }
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
    Position { epoch: fields.epoch, seq: fields.last_seq(), chain }
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
    rules: RecordRules,
}

/// What a frame's header says of the records in it.
#[derive(Clone, Copy, Debug)]
pub struct RecordRules {
    epoch: Epoch,
    begins: bool,
}

impl RecordRules {
    /// Whether the frame holds the record that begins its epoch, and no other.
    #[must_use]
    pub const fn begins_epoch(&self) -> bool {
        self.begins
    }

    /// Decodes a record, and compares it with what the header says of epochs (W-18).
    ///
    /// # Errors
    /// [`FrameError::Record`], [`FrameError::Field`].
    pub fn decode(&self, bytes: &[u8]) -> Result<Record, FrameError> {
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
        let decoded = self.rules.decode(bytes);
        if decoded.is_err() {
            self.raw.left = 0;
        }
        Some(decoded.map(|record| (seq, record)))
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

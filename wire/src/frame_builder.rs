//! Builds frames: records in, sealed bytes out, one frame after the other along the chain (SPEC.md §2).
//!
//! Always: what is built passes [`crate::frame::CheckedFrame::check`]; an epoch record is alone in its frame. Never: a
//! buffer that outgrows a frame's bound.

use std::mem;

use crate::{
    checksum::{chain_hash, checksum},
    codec::{Codec, Writer},
    compress::Compressor,
    frame::{HEADER_BYTES, MAX_PLAIN_BYTES, MAX_RECORDS, PushError, TRAILER_BYTES},
    frame_header::{Fields, FrameHeader, flag},
    id::{ChainHash, Epoch, HistoryId, Position, Seq},
    record::{MAX_RECORD_BYTES, Record, tag},
};

/// A sealed frame and the place where it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedFrame {
    /// What is journalled and sent.
    pub bytes: Vec<u8>,
    /// Its header, as a check of the bytes gives it.
    pub header: FrameHeader,
    /// The end of the history with it.
    pub position: Position,
}

/// Gathers records into a frame; sealed, it goes on with the next frame of the chain.
#[derive(Debug)]
pub struct FrameBuilder {
    history: HistoryId,
    epoch: Epoch,
    first_seq: Seq,
    prev_chain: ChainHash,
    count: u32,
    /// The only record begins the epoch.
    begins: bool,
    /// Room for the header, then the payload: what is not compressed becomes the frame where it lies.
    frame: Vec<u8>,
    scratch: Vec<u8>,
}

impl FrameBuilder {
    /// Begins the frame that follows `prev_chain` and whose first record gets `first_seq`.
    #[must_use]
    pub fn new(history: HistoryId, epoch: Epoch, first_seq: Seq, prev_chain: ChainHash) -> Self {
        let (frame, scratch) = (vec![0; HEADER_BYTES], Vec::new());
        Self { history, epoch, first_seq, prev_chain, count: 0, begins: false, frame, scratch }
    }

    /// Begins the frame that follows `position`, in `epoch`.
    #[must_use]
    pub fn after(history: HistoryId, epoch: Epoch, position: Position) -> Self {
        Self::new(history, epoch, Seq(position.seq.0 + 1), position.chain)
    }

    /// How many records it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many bytes its payload has so far, not compressed.
    #[must_use]
    pub const fn plain_bytes(&self) -> usize {
        self.frame.len() - HEADER_BYTES
    }

    /// The number that the next record gets.
    #[must_use]
    pub const fn next_seq(&self) -> Seq {
        Seq(self.first_seq.0 + self.count as u64)
    }

    /// Appends a record and gives its number.
    ///
    /// # Errors
    /// [`PushError::Full`]: seal this frame and push again; an epoch record needs an empty one.
    /// [`PushError::TooLong`]: no frame takes it.
    ///
    /// # Panics
    /// An epoch record of another epoch than the builder's.
    pub fn push(&mut self, record: &Record) -> Result<Seq, PushError> {
        if let Record::Epoch(begun) = record {
            assert_eq!(begun.epoch, self.epoch, "an epoch record begins the epoch of its frame");
        }
        let mut scratch = mem::take(&mut self.scratch);
        scratch.clear();
        record.encode(&mut Writer::new(&mut scratch));
        let pushed = self.push_encoded(&scratch);
        self.scratch = scratch;
        pushed
    }

    /// Appends a record that is encoded already.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn push_encoded(&mut self, record: &[u8]) -> Result<Seq, PushError> {
        let begins = record.first() == Some(&tag::EPOCH);
        if self.begins || (begins && self.count > 0) {
            return Err(PushError::Full);
        }
        append(&mut self.frame, HEADER_BYTES, self.count, None, record)?;
        let seq = self.next_seq();
        self.count += 1;
        self.begins = begins;
        Ok(seq)
    }

    /// Seals the frame, compressed if that pays, and goes on with the next; `None` where it holds no record.
    pub fn finish(&mut self, compressor: &mut Compressor) -> Option<SealedFrame> {
        if self.count == 0 {
            return None;
        }
        let mut fields = Fields {
            flags: if self.begins { flag::EPOCH } else { 0 },
            stored: 0,
            plain: self.plain_bytes() as u32,
            count: self.count,
            span: self.count,
            history: self.history,
            epoch: self.epoch,
            first_seq: self.first_seq,
            prev_chain: self.prev_chain,
            rule_set: 0,
            end_chain: ChainHash(0),
        };
        let mut bytes = vec![0; HEADER_BYTES];
        if compressor.compress(&self.frame[HEADER_BYTES..], &mut bytes) {
            fields.flags |= flag::ZSTD;
        } else {
            self.frame.reserve_exact(TRAILER_BYTES);
            // The next frame is likely to become as long.
            let mut next = Vec::with_capacity(self.frame.len() + TRAILER_BYTES);
            next.resize(HEADER_BYTES, 0);
            bytes = mem::replace(&mut self.frame, next);
        }
        let fields = complete(fields, &mut bytes, 0);
        if bytes.capacity() > 2 * bytes.len() {
            // What is kept of many short frames is not to take the room of long ones.
            bytes.shrink_to_fit();
        }
        let last = Seq(self.next_seq().0 - 1);
        let position = Position { epoch: self.epoch, seq: last, chain: chain_hash(&bytes) };
        self.restart(self.epoch, position);
        Some(SealedFrame { bytes, header: FrameHeader { fields, end: position }, position })
    }

    /// Drops what was gathered and begins the frame that follows `position`, in `epoch`; buffers are kept.
    pub fn restart(&mut self, epoch: Epoch, position: Position) {
        self.epoch = epoch;
        self.first_seq = Seq(position.seq.0 + 1);
        self.prev_chain = position.chain;
        self.count = 0;
        self.begins = false;
        self.frame.truncate(HEADER_BYTES);
    }
}

/// Gathers the survivors of a range of sequence numbers into a FILTERED frame (W-16).
#[derive(Debug)]
pub struct FilteredBuilder {
    history: HistoryId,
    epoch: Epoch,
    first_seq: Seq,
    prev_chain: ChainHash,
    rule_set: u64,
    count: u32,
    /// The lowest number that the next survivor may have.
    next_seq: Seq,
    payload: Vec<u8>,
}

impl FilteredBuilder {
    /// Begins a frame that covers `epoch` from `first_seq` on and follows `prev_chain`.
    #[must_use]
    pub fn new(history: HistoryId, epoch: Epoch, first_seq: Seq, prev_chain: ChainHash, rule_set: u64) -> Self {
        let (count, next_seq, payload) = (0, first_seq, Vec::new());
        Self { history, epoch, first_seq, prev_chain, rule_set, count, next_seq, payload }
    }

    /// Appends a survivor.
    ///
    /// # Errors
    /// As [`FrameBuilder::push`].
    ///
    /// # Panics
    /// Where `seq` is not above the one before, or is an epoch record: those are never filtered.
    pub fn push_encoded(&mut self, seq: Seq, record: &[u8]) -> Result<(), PushError> {
        assert!(seq >= self.next_seq, "survivors come in order: {seq} after {}", self.next_seq);
        assert!(record.first() != Some(&tag::EPOCH), "an epoch record has a frame of its own");
        append(&mut self.payload, 0, self.count, Some(seq.0 - self.next_seq.0), record)?;
        self.count += 1;
        self.next_seq = Seq(seq.0 + 1);
        Ok(())
    }

    /// Seals the frame, which covers everything up to `end` (the end of the original frames) and stands for them.
    ///
    /// # Panics
    /// Where `end` lies before the last survivor, in another epoch, or over 2^32 numbers away.
    pub fn finish_into(self, end: Position, compressor: &mut Compressor, out: &mut Vec<u8>) {
        assert!(end.epoch == self.epoch, "a frame covers one epoch");
        assert!(end.seq.0 + 1 >= self.next_seq.0 && end.seq >= self.first_seq, "the end is not before a survivor");
        let span = u32::try_from(end.seq.0 - self.first_seq.0 + 1);
        assert!(span.is_ok(), "a frame covers less than 2^32 numbers");
        let fields = Fields {
            flags: flag::FILTERED,
            stored: 0,
            plain: 0,
            count: self.count,
            span: span.unwrap_or(u32::MAX),
            history: self.history,
            epoch: self.epoch,
            first_seq: self.first_seq,
            prev_chain: self.prev_chain,
            rule_set: self.rule_set,
            end_chain: end.chain,
        };
        seal(fields, &self.payload, compressor, out);
    }
}

/// Appends a record with its length, and the count of numbers skipped before it in a FILTERED frame, to the payload that
/// begins at `start`.
fn append(
    payload: &mut Vec<u8>,
    start: usize,
    count: u32,
    skipped: Option<u64>,
    record: &[u8],
) -> Result<(), PushError> {
    /// The most that stands before a record: two varints.
    const PREFIX_BYTES: usize = 16;
    if record.len() > MAX_RECORD_BYTES {
        return Err(PushError::TooLong { got: record.len() });
    }
    if count as usize == MAX_RECORDS || payload.len() - start + PREFIX_BYTES + record.len() > MAX_PLAIN_BYTES {
        return Err(PushError::Full);
    }
    let mut w = Writer::new(payload);
    if let Some(skipped) = skipped {
        w.varint(skipped);
    }
    w.blob(record);
    Ok(())
}

/// Appends header, payload and checksum to `out`.
fn seal(mut fields: Fields, plain: &[u8], compressor: &mut Compressor, out: &mut Vec<u8>) {
    let start = out.len();
    out.reserve(HEADER_BYTES + plain.len() + TRAILER_BYTES);
    out.resize(start + HEADER_BYTES, 0);
    if compressor.compress(plain, out) {
        fields.flags |= flag::ZSTD;
    } else {
        out.extend_from_slice(plain);
    }
    fields.plain = plain.len() as u32;
    complete(fields, out, start);
}

/// Fills in the header of the frame that begins at `start`, in the room left for it, and appends the checksum.
fn complete(mut fields: Fields, out: &mut Vec<u8>, start: usize) -> Fields {
    fields.stored = (out.len() - start - HEADER_BYTES) as u32;
    out[start..start + HEADER_BYTES].copy_from_slice(&fields.encode());
    let sum = checksum(fields.seed(), &out[start..]);
    out.extend_from_slice(&sum.to_le_bytes());
    fields
}

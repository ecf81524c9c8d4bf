//! Changes of this member's own clients: resolved, numbered by the core, encoded into the frame that is being filled,
//! and answered when the core says so.
//!
//! Always: a change that was numbered is in a frame before the core hears of anything else, so that stepping down never
//! meets a change that is in the tree and in no frame; a long write, whose frames are closed over several turns, is in
//! the tree only with its last. Memory is bounded by the core's limit of waiting writes.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    ops::Range,
    time::{Duration, Instant as StdInstant},
};

use ringpair_core::{
    effect::WriteOutcome,
    input::{Admission, Refusal, RefusalKind, WriteToken},
};
use ringpair_wire::{
    codec::Writer,
    compress::{Compression, Compressor, Totals},
    ds::Change,
    frame::FrameHeader,
    frame_builder::FrameBuilder,
    id::{Epoch, HistoryId, Position, Version},
    record::{EpochRecord, MAX_RECORD_BYTES, Part, Record, encode_change},
    usual::UsualPut,
};

use crate::{
    api::backend::{ActiveMember, Failure, Reply, WriteDone},
    pace::Pace,
    ring::Shared,
    transport::{ConnId, Transport},
};

/// A frame that is ready for journal and peer.
#[derive(Debug)]
pub struct Closed {
    /// Its bytes.
    pub bytes: Shared,
    /// Its header.
    pub header: FrameHeader,
}

/// A write that waits for its level.
#[derive(Debug)]
struct Waiting {
    version: Version,
    reply: Reply<WriteDone>,
}

/// Frames closed so far, and the records in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCounts {
    /// Frames.
    pub frames: u64,
    /// Records.
    pub records: u64,
}

/// Records of one write, encoded back to back, and what they change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

/// The frame being filled, and the writes that wait.
#[derive(Debug)]
pub struct Writes {
    builder: Option<FrameBuilder>,
    sealer: Sealer,
    max_bytes: usize,
    max_records: usize,
    next_token: u64,
    waiting: HashMap<WriteToken, Waiting>,
    deadlines: BinaryHeap<Reverse<(StdInstant, WriteToken)>>,
}

/// Closes frames, compressed where that pays.
#[derive(Debug)]
struct Sealer {
    compressor: Compressor,
    pace: Pace,
    closed: FrameCounts,
}

impl Sealer {
    fn new(compression: Compression) -> Self {
        Self { compressor: Compressor::new(compression), pace: Pace::default(), closed: FrameCounts::default() }
    }

    fn seal(&mut self, builder: &mut FrameBuilder) -> Option<Closed> {
        let (records, plain_bytes) = (builder.len(), builder.plain_bytes());
        let sealed = if self.pace.is_outrun() {
            self.compressor.pass(plain_bytes);
            builder.finish(&mut Compressor::new(Compression::Off))?
        } else {
            let began = StdInstant::now();
            let sealed = builder.finish(&mut self.compressor)?;
            if sealed.header.is_compressed() {
                self.pace.note(plain_bytes, began.elapsed());
            }
            sealed
        };
        self.closed.frames += 1;
        self.closed.records += records as u64;
        Some(Closed { bytes: Shared::from(sealed.bytes), header: sealed.header })
    }
}

impl Encoded {
    /// Encodes one transaction.
    ///
    /// # Errors
    /// [`Failure::TooLarge`] names the object that no record can carry.
    pub fn of(changes: &[Change]) -> Result<Self, Failure> {
        let mut encoded = Self::default();
        for (index, change) in changes.iter().enumerate() {
            encoded.push(index, changes.len(), change)?;
        }
        Ok(encoded)
    }

    /// Forgets them; the memory is kept for the next.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// How many bytes they take at most.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many records there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Encodes a usual put, a transaction by itself.
    pub fn push_usual(&mut self, put: &UsualPut<'_>) {
        put.encode(Part::Whole, &mut Writer::new(&mut self.bytes));
        self.ends.push(self.bytes.len());
    }

    /// Encodes the change with this index of a transaction of `count`, behind those before it.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn push(&mut self, index: usize, count: usize, change: &Change) -> Result<(), Failure> {
        let start = self.bytes.len();
        encode_change(Part::of(index, count), change, &mut Writer::new(&mut self.bytes));
        let bytes = self.bytes.len() - start;
        if bytes > MAX_RECORD_BYTES {
            let (Change::Put { path, .. } | Change::Remove { path }) = change;
            return Err(Failure::TooLarge(format!(
                "the change of {path} takes {bytes} bytes, more than {MAX_RECORD_BYTES}. Try: fewer values at once"
            )));
        }
        self.ends.push(self.bytes.len());
        Ok(())
    }

    fn records(&self, part: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let start = |index: usize| index.checked_sub(1).map_or(0, |before| self.ends[before]);
        part.map(move |index| &self.bytes[start(index)..self.ends[index]])
    }
}

impl Writes {
    /// Frames of at most `max_bytes` of records and `max_records`, compressed as `compression` says.
    #[must_use]
    pub fn new(max_bytes: usize, max_records: usize, compression: Compression) -> Self {
        Self {
            builder: None,
            sealer: Sealer::new(compression),
            max_bytes,
            max_records,
            next_token: 0,
            waiting: HashMap::new(),
            deadlines: BinaryHeap::new(),
        }
    }

    /// Bytes of payloads before and after compression, so far.
    #[must_use]
    pub const fn compression(&self) -> Totals {
        self.sealer.compressor.totals()
    }

    /// Learns from `conn`, which carries the frames, whether compressing them pays.
    pub fn look_at_link(&mut self, transport: &Transport, conn: ConnId) {
        if self.sealer.compressor.setting() == Compression::Auto {
            self.sealer.pace.look_at(transport, conn, StdInstant::now());
        }
    }

    /// Frames closed so far.
    #[must_use]
    pub const fn closed(&self) -> FrameCounts {
        self.sealer.closed
    }

    /// A token that no write has had.
    pub fn token(&mut self) -> WriteToken {
        self.next_token += 1;
        WriteToken(self.next_token)
    }

    /// Begins an epoch behind `after`: its record, alone in its frame.
    pub fn begin_epoch(&mut self, history: HistoryId, record: EpochRecord, after: Position) -> Option<Closed> {
        let mut builder = FrameBuilder::after(history, record.epoch, after);
        // An empty builder takes any epoch record.
        let pushed = builder.push(&Record::Epoch(record));
        debug_assert!(pushed.is_ok(), "{pushed:?}");
        self.builder = Some(builder);
        self.close()
    }

    /// Appends an admitted write to the frame being filled; frames that became full are handed to `closed`.
    pub fn append(&mut self, encoded: &Encoded, closed: impl FnMut(Closed)) {
        self.append_part(encoded, 0..encoded.ends.len(), closed);
    }

    /// As [`append`](Self::append), only the records with these indices: a long write goes piece by piece.
    pub fn append_part(&mut self, encoded: &Encoded, part: Range<usize>, mut closed: impl FnMut(Closed)) {
        let Some(builder) = &mut self.builder else { return };
        for record in encoded.records(part) {
            let full = !builder.is_empty()
                && (builder.plain_bytes() + record.len() > self.max_bytes || builder.len() >= self.max_records);
            if full || builder.push_encoded(record).is_err() {
                self.sealer.seal(builder).into_iter().for_each(&mut closed);
                let pushed = builder.push_encoded(record);
                debug_assert!(pushed.is_ok(), "an empty frame takes any record that was measured: {pushed:?}");
            }
        }
    }

    /// Gives up what is numbered and in no frame: the office has ended, the next begins with a frame of its own.
    pub fn discard(&mut self) {
        self.builder = None;
    }

    /// Seals the frame being filled, if it holds anything.
    pub fn close(&mut self) -> Option<Closed> {
        self.sealer.seal(self.builder.as_mut()?)
    }

    /// Whether nothing is numbered that is in no frame.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.builder.as_ref().is_none_or(FrameBuilder::is_empty)
    }

    /// Remembers whom to answer.
    pub fn wait(&mut self, token: WriteToken, admission: Admission, deadline: StdInstant, reply: Reply<WriteDone>) {
        let version = Version { epoch: admission.epoch, seq: admission.last };
        self.waiting.insert(token, Waiting { version, reply });
        self.deadlines.push(Reverse((deadline, token)));
    }

    /// Answers a write. `may_answer`: whether the member may still speak as active.
    pub fn answer(&mut self, token: WriteToken, outcome: WriteOutcome, may_answer: bool) {
        let Some(Waiting { version, reply }) = self.waiting.remove(&token) else { return };
        let answer = answer(version, outcome, may_answer);
        // A client that has gone does not hear it.
        let _ = reply.send(answer);
    }

    /// Gives up the writes whose time is over: they are unknown, not undone.
    pub fn expire(&mut self, now: StdInstant) {
        while let Some(Reverse((deadline, token))) = self.deadlines.peek().copied() {
            // Entries of writes that were answered are skipped as they come up.
            if self.waiting.contains_key(&token) && deadline > now {
                break;
            }
            self.deadlines.pop();
            if let Some(Waiting { version, reply }) = self.waiting.remove(&token) {
                let _ = reply.send(Err(late(version)));
            }
        }
    }

    /// How long until the next write's time is over.
    #[must_use]
    pub fn next_timeout(&self, now: StdInstant) -> Option<Duration> {
        self.deadlines.peek().map(|Reverse((deadline, _))| deadline.saturating_duration_since(now))
    }
}

/// What a writer is told. `may_answer`: whether the member may still speak as active.
///
/// # Errors
/// [`Failure::NotReached`]: unknown, not undone.
pub fn answer(version: Version, outcome: WriteOutcome, may_answer: bool) -> Result<WriteDone, Failure> {
    match outcome {
        WriteOutcome::Reached { level, alone } if may_answer => Ok(WriteDone { version, level, alone }),
        WriteOutcome::NotReached(level) => Err(Failure::NotReached {
            version: Some(version),
            message: format!(
                "the backup is lost: the change stands at {} (ack.on_peer_loss = \"block\")",
                level.name()
            ),
        }),
        WriteOutcome::Reached { .. } | WriteOutcome::Unknown => Err(Failure::NotReached {
            version: Some(version),
            message: "this member ceased to be active before the level was reached: the change is unknown, not undone"
                .into(),
        }),
    }
}

/// What a writer is told whose time is over.
#[must_use]
pub fn late(version: Version) -> Failure {
    let message = "the level was not reached in time: the change is unknown, not undone".into();
    Failure::NotReached { version: Some(version), message }
}

/// A refusal of the core, as the API says it.
#[must_use]
pub fn failure(refusal: Refusal) -> Failure {
    let blockers = refusal.blockers;
    match refusal.kind {
        RefusalKind::NotActive => {
            Failure::NotActive { active: refusal.active.map(|(name, address)| ActiveMember { name, address }) }
        }
        RefusalKind::BackPressure => Failure::Busy { retry_after_s: 1 },
        RefusalKind::State => Failure::Refused { code: "state", message: refusal.reason, blockers },
        RefusalKind::Busy => Failure::Refused { code: "busy", message: refusal.reason, blockers },
        RefusalKind::Failed => Failure::NotReached { version: None, message: refusal.reason },
    }
}

/// The record that begins `epoch`.
#[must_use]
pub fn epoch_record(epoch: Epoch, after: Position, reason: &str) -> Option<EpochRecord> {
    Some(EpochRecord { epoch, member: epoch.owner()?, previous: after, reason: reason.into() })
}

#[cfg(test)]
mod tests {
    use ringpair_wire::{ds::DsPath, frame::CheckedFrame};

    use super::*;

    fn changes(count: usize) -> Vec<Change> {
        let path = |number| DsPath::parse(&format!("/CONFIG/Users/user{number:04}")).unwrap();
        (0..count).map(|number| Change::Remove { path: path(number) }).collect()
    }

    fn writes(max_bytes: usize, max_records: usize) -> Writes {
        let mut writes = Writes::new(max_bytes, max_records, Compression::Off);
        let after = Position::default();
        let epoch = Epoch(Epoch::BASE + 1);
        writes.begin_epoch(HistoryId([1; 16]), epoch_record(epoch, after, "test").unwrap(), after).unwrap();
        writes
    }

    /// How many records each frame of so many writes has.
    fn frames(mut writes: Writes, count: usize) -> Vec<usize> {
        let mut closed = Vec::new();
        for change in changes(count) {
            writes.append(&Encoded::of(&[change]).unwrap(), |frame| closed.push(frame));
        }
        closed.extend(writes.close());
        let counts: Vec<usize> =
            closed.iter().map(|frame| CheckedFrame::check(&frame.bytes).unwrap().header().count()).collect();
        let total = writes.closed();
        assert_eq!((total.frames, total.records), (counts.len() as u64 + 1, count as u64 + 1), "with the epoch's own");
        counts
    }

    #[test]
    fn a_frame_is_closed_at_the_records_or_bytes_set() {
        assert_eq!(frames(writes(65_536, 10), 25), [10, 10, 5]);
        assert_eq!(frames(writes(65_536, 1), 3), [1, 1, 1]);
        let record = Encoded::of(&changes(1)).unwrap().len();
        let by_bytes = frames(writes(10 * record, 4096), 25);
        assert_eq!(by_bytes.iter().sum::<usize>(), 25);
        assert!(by_bytes[..by_bytes.len() - 1].iter().all(|count| (8..=10).contains(count)), "{by_bytes:?}");
        assert_eq!(frames(writes(65_536, 4096), 25), [25], "what comes together shares a frame");
    }
}

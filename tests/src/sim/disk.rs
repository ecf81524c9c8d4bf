//! A member's storage: journal frames with written and synced watermarks, the control file, the divergence archive.
//!
//! Always: a dead process loses what was not written, a dead host what was not synced, but for a random beginning of
//! it. Never: a frame kept after one that is lost.

use std::rc::Rc;

use ringpair_core::{
    FrameMeta, Persisted,
    input::{JournalView, Location},
};
use ringpair_wire::{
    control::EpochStart,
    id::{ChainHash, Epoch, HistoryId, Position, Seq},
};

use super::rng::{Rng, mix};

/// A client's operation; 0 stands for an epoch record.
pub type OpId = u32;

/// A frame and what its records are.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What the core knows.
    pub meta: FrameMeta,
    /// The operation of each record.
    pub ops: Rc<[OpId]>,
}

impl Frame {
    /// The frame that follows `prev`.
    #[must_use]
    pub fn new(history: HistoryId, epoch: Epoch, prev: Position, ops: &[OpId]) -> Self {
        let first = Seq(prev.seq.0 + 1);
        let count = ops.len() as u32;
        let last = Seq(prev.seq.0 + u64::from(count));
        let mut low = mix(prev.chain.0 as u64 ^ epoch.0);
        let mut high = mix((prev.chain.0 >> 64) as u64 ^ first.0);
        for op in ops {
            low = mix(low ^ u64::from(*op));
            high = mix(high.rotate_left(7) ^ u64::from(*op));
        }
        let chain = ChainHash(u128::from(high) << 64 | u128::from(low));
        let end = Position { epoch, seq: last, chain };
        let bytes = 96 + 40 * u64::from(count);
        Self { meta: FrameMeta { history, epoch, first, count, prev: prev.chain, end, bytes }, ops: ops.into() }
    }
}

/// The journal: what lies before `base` is in the state only.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    /// The position before the first frame.
    pub base: Position,
    /// Every record through `base`.
    pub base_log: Vec<OpId>,
    /// The frames, those on their way to the disk included.
    pub frames: Vec<Frame>,
    /// Written through here.
    pub written: Seq,
    /// Synced through here.
    pub synced: Seq,
}

impl Journal {
    /// The end of the newest frame.
    #[must_use]
    pub fn end(&self) -> Position {
        self.frames.last().map_or(self.base, |frame| frame.meta.end)
    }

    /// The frames after this record.
    #[must_use]
    pub fn after(&self, seq: Seq) -> &[Frame] {
        let index = self.frames.partition_point(|frame| frame.meta.end.seq <= seq);
        &self.frames[index..]
    }

    /// The end of the newest frame that ends at this record or before.
    #[must_use]
    pub fn position(&self, through: Seq) -> Position {
        let index = self.frames.partition_point(|frame| frame.meta.end.seq <= through);
        if index == 0 { self.base } else { self.frames[index - 1].meta.end }
    }

    /// The operation of a record.
    #[must_use]
    pub fn op(&self, seq: Seq) -> Option<OpId> {
        if seq <= self.base.seq {
            return self.base_log.get((seq.0 as usize).checked_sub(1)?).copied();
        }
        let index = self.frames.partition_point(|frame| frame.meta.end.seq < seq);
        let frame = self.frames.get(index)?;
        frame.ops.get((seq.0 - frame.meta.first.0) as usize).copied()
    }

    /// Whether a frame ends exactly there, and everything after it is here.
    #[must_use]
    pub fn locate(&self, position: Position) -> Location {
        match position.seq.cmp(&self.base.seq) {
            std::cmp::Ordering::Less => Location::Gone,
            _ if self.position(position.seq) == position => Location::Match,
            _ => Location::Mismatch,
        }
    }

    /// Whether this frame continues the journal exactly.
    #[must_use]
    pub fn continues(&self, frame: &FrameMeta) -> bool {
        let end = self.end();
        frame.first.0 == end.seq.0 + 1 && frame.prev == end.chain && frame.epoch >= end.epoch
    }

    /// Every record, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<OpId> {
        let mut log = self.base_log.clone();
        log.extend(self.frames.iter().flat_map(|frame| frame.ops.iter().copied()));
        log
    }

    /// The operations of the records after this one.
    pub fn ops_after(&self, seq: Seq) -> impl Iterator<Item = OpId> + '_ {
        let from_base = self.base_log.iter().copied().skip(seq.0 as usize);
        let first = self.base.seq.max(seq);
        let frames = self.frames.iter().flat_map(move |frame| {
            let skip = (first.0 + 1).saturating_sub(frame.meta.first.0) as usize;
            frame.ops.iter().copied().skip(skip)
        });
        from_base.chain(frames)
    }

    /// Keeps the frames through this record; returns the operations of those that are gone.
    pub fn truncate(&mut self, through: Seq) -> Vec<OpId> {
        let keep = self.frames.partition_point(|frame| frame.meta.end.seq <= through);
        let gone = self.frames.drain(keep..).flat_map(|frame| frame.ops.to_vec()).collect();
        let end = self.end().seq;
        self.written = self.written.min(end);
        self.synced = self.synced.min(end);
        gone
    }

    /// Drops the oldest frames: the state holds them.
    pub fn trim(&mut self, through: Seq) {
        let count = self.frames.partition_point(|frame| frame.meta.end.seq <= through);
        for frame in self.frames.drain(..count) {
            self.base = frame.meta.end;
            self.base_log.extend(frame.ops.iter());
        }
    }

    /// Begins anew at a snapshot.
    pub fn reset(&mut self, base: Position, log: Vec<OpId>) {
        *self = Self { base, base_log: log, frames: Vec::new(), written: base.seq, synced: base.seq };
    }

    /// A random record from `from` on, through the journal's end: how far a lost write came.
    fn somewhere(&self, from: Seq, to: Seq, rng: &mut Rng) -> Seq {
        Seq(from.0 + rng.below(to.0.saturating_sub(from.0) + 1))
    }
}

/// A member's disk.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// The control file.
    pub control: Option<Persisted>,
    /// A state on its way to the control file.
    pub control_writing: Option<Persisted>,
    /// The journal.
    pub journal: Journal,
    /// The history that journal and tree are named by.
    pub history: Option<HistoryId>,
    /// What is in the divergence archive.
    pub archive: Vec<OpId>,
    /// No room.
    pub full: bool,
    /// The control file cannot be written: what is tried may be there at the next start, or not.
    pub control_fails: bool,
    /// The next fsync of the journal fails.
    pub sync_fails: bool,
    /// One did: what came after it may be gone at the next start.
    pub sync_failed: bool,
}

/// How a member's processes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The worker's process only.
    Process,
    /// The host.
    Host,
}

impl Disk {
    /// What is left after a death; returns the operations whose records are gone.
    pub fn die(&mut self, death: Death, rng: &mut Rng) -> Vec<OpId> {
        if let Some(state) = self.control_writing.take() {
            match (rng.below(3), death) {
                (0, _) => self.control = Some(state),
                // One slot is damaged: it counts as one epoch above the sound one (protocol §1).
                (1, Death::Host) => {
                    let mut sound = self.control.clone().unwrap_or_default();
                    if self.control.is_some() {
                        sound.highest_epoch = Epoch(sound.highest_epoch.0 + 1);
                    }
                    self.control = self.control.is_some().then_some(sound);
                }
                _ => {}
            }
        }
        let (written, synced, end) = (self.journal.written, self.journal.synced, self.journal.end().seq);
        let kept = match death {
            _ if self.sync_failed => self.journal.somewhere(synced, written, rng),
            Death::Process => self.journal.somewhere(written, end, rng),
            Death::Host => self.journal.somewhere(synced, end, rng),
        };
        self.sync_failed = false;
        let gone = self.journal.truncate(kept);
        // Recovery syncs what it finds.
        let end = self.journal.end().seq;
        (self.journal.written, self.journal.synced) = (end, end);
        gone
    }

    /// What a start finds.
    #[must_use]
    pub fn view(&self) -> JournalView {
        let journal = &self.journal;
        let mut epochs = Vec::new();
        let mut at = journal.base;
        if at.seq.0 > 0 {
            epochs.push(EpochStart { epoch: at.epoch, after: at });
        }
        for frame in &journal.frames {
            if epochs.last().is_none_or(|last: &EpochStart| last.epoch < frame.meta.epoch) {
                epochs.push(EpochStart { epoch: frame.meta.epoch, after: at });
            }
            at = frame.meta.end;
        }
        JournalView { base: journal.base, end: journal.end(), epochs, filtered: false, applied: journal.base.seq }
    }

    /// A copy as a backup tool takes it: what is synced.
    #[must_use]
    pub fn copy(&self) -> Self {
        let mut copy = self.clone();
        copy.control_writing = None;
        copy.journal.truncate(self.journal.synced);
        (copy.full, copy.control_fails, copy.sync_fails, copy.sync_failed) = (false, false, false, false);
        copy
    }

    /// Every operation that is somewhere on it: history or archive.
    #[must_use]
    pub fn all_ops(&self) -> Vec<OpId> {
        let mut all = self.journal.log();
        all.extend(&self.archive);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(frames: u32) -> Disk {
        let mut disk = Disk::default();
        for op in 1..=frames {
            let frame = Frame::new(HistoryId::default(), Epoch(1), disk.journal.end(), &[op, op]);
            disk.journal.frames.push(frame);
        }
        disk
    }

    #[test]
    fn a_process_keeps_what_was_written_and_a_host_what_was_synced() {
        for seed in 0..50 {
            let mut rng = Rng::new(seed);
            let mut one = disk(10);
            (one.journal.written, one.journal.synced) = (Seq(12), Seq(6));
            let mut other = one.clone();
            one.die(Death::Process, &mut rng);
            assert!(one.journal.end().seq >= Seq(12));
            other.die(Death::Host, &mut rng);
            assert!(other.journal.end().seq >= Seq(6));
        }
    }

    #[test]
    fn positions_are_located_by_chain() {
        let disk = disk(3);
        assert_eq!(disk.journal.locate(disk.journal.position(Seq(4))), Location::Match);
        assert_eq!(disk.journal.locate(Position::default()), Location::Match);
        let other = Position { chain: ChainHash(1), ..disk.journal.position(Seq(4)) };
        assert_eq!(disk.journal.locate(other), Location::Mismatch);
        let mut trimmed = disk.journal.clone();
        trimmed.trim(Seq(4));
        assert_eq!(trimmed.locate(Position::default()), Location::Gone);
        assert_eq!(trimmed.log(), disk.journal.log());
        assert_eq!(trimmed.ops_after(Seq(3)).collect::<Vec<_>>(), [2, 3, 3]);
    }
}

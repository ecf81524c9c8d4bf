//! A backup's records are a prefix of its active's, and no number names two different records of an epoch (invariant 3).

use std::collections::{BTreeMap, BTreeSet};

use ringpair_core::{FrameMeta, input::Admission};
use ringpair_wire::id::{ChainHash, Epoch, Seq};

use super::{
    super::{disk::Frame, member::name},
    Verdict, rule,
};

/// Every frame that was ever closed.
#[derive(Debug, Default)]
pub struct Prefix {
    closed: BTreeMap<(Epoch, Seq), ChainHash>,
    given: BTreeSet<(Epoch, Seq)>,
}

impl Prefix {
    /// An active gave a write its numbers.
    ///
    /// # Errors
    /// If one of them is given already.
    pub fn admitted(&mut self, m: usize, numbers: Admission) -> Verdict {
        for seq in numbers.first.0..=numbers.last.0 {
            rule("prefix", self.given.insert((numbers.epoch, Seq(seq))), || {
                format!("{} gives number {seq} of epoch {} a second time", name(m), numbers.epoch)
            })?;
        }
        Ok(())
    }

    /// An active closed a frame.
    ///
    /// # Errors
    /// If one of its numbers was used in this epoch for something else.
    pub fn closed(&mut self, m: usize, frame: &Frame) -> Verdict {
        let meta = &frame.meta;
        for seq in meta.first.0..=meta.end.seq.0 {
            let before = self.closed.insert((meta.epoch, Seq(seq)), meta.end.chain);
            rule("prefix", before.is_none_or(|chain| chain == meta.end.chain), || {
                format!("{} uses number {seq} of epoch {} again for another record", name(m), meta.epoch)
            })?;
        }
        Ok(())
    }

    /// A backup accepted a frame; `continues`: it follows its journal's end exactly.
    ///
    /// # Errors
    /// If it does not, or nobody closed such a frame.
    pub fn accepted(&mut self, m: usize, frame: &FrameMeta, continues: bool) -> Verdict {
        rule("prefix", continues, || {
            format!(
                "{} accepts records {} to {}, which do not continue its journal",
                name(m),
                frame.first,
                frame.end.seq
            )
        })?;
        let known = self.closed.get(&(frame.epoch, frame.end.seq)).is_none_or(|chain| *chain == frame.end.chain);
        rule("prefix", known, || format!("{} accepts a frame that no active closed: {frame:?}", name(m)))
    }

    /// A storage was replaced by an older copy: its member may number anew what it forgot (protocol §2).
    pub fn replaced(&mut self) {
        self.closed.clear();
        self.given.clear();
    }
}

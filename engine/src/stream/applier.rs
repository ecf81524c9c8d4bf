//! Brings the tree forward along the history: frames in, changes applied in order, each transaction whole.
//!
//! Always: what is applied is a prefix of the history; a transaction takes effect with its last record; nothing past a
//! record is applied while a content it refers to is missing, unless this member must serve without it (a promoted
//! member that nobody can give it). Never: a refusal of what is history already — it was validated before it became that.

use std::collections::VecDeque;

use ringpair_core::input::FrameMeta;
use ringpair_wire::{
    compress::Decompressor,
    ds::{Change, ContentId, Value},
    frame::{CheckedFrame, FrameError},
    id::{Position, Seq, Version},
    record::Record,
};

use super::changes::Changes;
use crate::{
    ds::{ContentStore, Tree, TreeSnapshot},
    ring::Shared,
};

/// A frame that waits for its turn.
#[derive(Debug)]
struct Waiting {
    bytes: Shared,
    end: Position,
}

/// Contents that a frame refers to and that are not stored here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingContents {
    /// The first record that refers to one of them.
    pub seq: Seq,
    /// Each with its length in bytes.
    pub contents: Vec<(ContentId, u64)>,
}

/// The state, and what is to be applied to it.
#[derive(Debug)]
pub struct Applier {
    tree: Tree,
    contents: ContentStore,
    expander: Decompressor,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// The changes of a transaction whose last record has not come.
    open: Vec<(Change, Version)>,
    /// The newest record that took effect.
    applied: Seq,
    missing: Option<MissingContents>,
    stopped: bool,
}

impl Applier {
    /// An applier that goes on behind `tree`'s position.
    #[must_use]
    pub fn new(tree: Tree, contents: ContentStore) -> Self {
        let applied = tree.position().seq;
        Self {
            tree,
            contents,
            expander: Decompressor::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            open: Vec::new(),
            applied,
            missing: None,
            stopped: false,
        }
    }

    /// The tree, for reading and for the changes of this member's own writers.
    pub fn tree(&mut self) -> &mut Tree {
        &mut self.tree
    }

    /// The newest record that took effect.
    #[must_use]
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// Contents that hold up the applying.
    #[must_use]
    pub fn missing(&self) -> Option<&MissingContents> {
        self.missing.as_ref()
    }

    /// The position applied.
    #[must_use]
    pub fn position(&self) -> Position {
        self.tree.position()
    }

    /// Whether [`turn`](Self::turn) would do anything.
    #[must_use]
    pub fn can_apply(&self, through: Seq) -> bool {
        !self.stopped && self.missing.is_none() && self.waiting.front().is_some_and(|frame| frame.end.seq <= through)
    }

    /// The buffer that compressed frames are expanded into, for checking them.
    pub fn expander(&mut self) -> &mut Decompressor {
        &mut self.expander
    }

    /// Whether a transaction is open: its first records are known, its last is not.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        !self.open.is_empty()
    }

    /// How many bytes of frames wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Says that this member's own writer changed the tree through `position` (active).
    pub fn wrote_through(&mut self, position: Position) {
        self.applied = position.seq;
        self.tree.advance(position);
    }

    /// Takes another state in one step (resynchronization): nothing that waited belongs to it.
    pub fn replace(&mut self, state: TreeSnapshot) {
        let position = state.position();
        drop(self.tree.replace(state));
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.open.clear();
        self.missing = None;
        self.applied = position.seq;
    }

    /// Applies nothing until [`start`](Self::start).
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Goes on.
    pub fn start(&mut self) {
        self.stopped = false;
    }

    /// Queues a checked frame that follows the last one.
    pub fn push(&mut self, bytes: Shared, end: Position) {
        self.waiting_bytes += bytes.len();
        self.waiting.push_back(Waiting { bytes, end });
    }

    /// Looks again for the contents that were missing.
    pub fn content_stored(&mut self) {
        if let Some(missing) = &mut self.missing {
            missing.contents = self.contents.missing(missing.contents.drain(..));
            if missing.contents.is_empty() {
                self.missing = None;
            }
        }
    }

    /// Applies waiting frames that end at or before `through`, at most about `budget_bytes` of them; whether any was.
    ///
    /// # Errors
    /// A frame that was checked before does not hold records: the journal's bytes changed underneath.
    pub fn turn(&mut self, through: Seq, budget_bytes: usize, changes: &mut Changes) -> Result<bool, FrameError> {
        let mut budget = budget_bytes;
        let before = self.applied;
        while !self.stopped && budget > 0 {
            let Some(next) = self.waiting.front().filter(|frame| frame.end.seq <= through) else { break };
            let (bytes, end) = (next.bytes.clone(), next.end);
            self.find_missing(&bytes)?;
            if self.missing.is_some() {
                break;
            }
            self.apply_frame(&bytes, end, changes)?;
            self.waiting.pop_front();
            self.waiting_bytes -= bytes.len();
            budget = budget.saturating_sub(bytes.len());
        }
        Ok(self.applied > before)
    }

    /// Applies one frame at once, whatever contents are missing: replay at a start or a promotion. What it refers to
    /// and is not here is returned.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn replay(&mut self, bytes: &[u8], end: Position, changes: &mut Changes) -> Result<(), FrameError> {
        self.apply_frame(bytes, end, changes)
    }

    /// Applies all waiting frames through `through`, whatever contents are missing (promotion: nobody else can say it).
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn replay_waiting(&mut self, through: Seq, changes: &mut Changes) -> Result<(), FrameError> {
        self.missing = None;
        while let Some(frame) = self.waiting.pop_front_if(|frame| frame.end.seq <= through) {
            self.waiting_bytes -= frame.bytes.len();
            self.apply_frame(&frame.bytes, frame.end, changes)?;
        }
        self.waiting.clear();
        self.waiting_bytes = 0;
        Ok(())
    }

    fn find_missing(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        if self.missing.is_some() {
            return Ok(());
        }
        let frame = CheckedFrame::check(bytes)?;
        let mut first = None;
        let mut contents = Vec::new();
        for record in frame.records(&mut self.expander)? {
            let (seq, record) = record?;
            let referred = contents_of(&record);
            if referred.is_empty() {
                continue;
            }
            let missing = self.contents.missing(referred);
            if !missing.is_empty() {
                first.get_or_insert(seq);
                contents.extend(missing);
            }
        }
        self.missing = first.map(|seq| MissingContents { seq, contents });
        Ok(())
    }

    fn apply_frame(&mut self, bytes: &[u8], end: Position, changes: &mut Changes) -> Result<(), FrameError> {
        let frame = CheckedFrame::check(bytes)?;
        let epoch = frame.header().epoch();
        for record in frame.records(&mut self.expander)? {
            let (seq, record) = record?;
            if record.is_epoch() {
                changes.note_epoch(epoch, seq);
            }
            apply_record(&mut self.tree, &mut self.open, changes, Version { epoch, seq }, record);
            if self.open.is_empty() {
                self.applied = seq;
            }
        }
        if self.open.is_empty() {
            self.applied = end.seq;
            self.tree.advance(end);
        }
        Ok(())
    }
}

/// Applies one record; the changes of an unfinished transaction gather in `open`.
fn apply_record(
    tree: &mut Tree,
    open: &mut Vec<(Change, Version)>,
    changes: &mut Changes,
    version: Version,
    record: Record,
) {
    match record {
        // A transaction never spans epochs: what its writer did not finish never takes effect.
        Record::Epoch(_) => open.clear(),
        Record::Interaction { .. } => {}
        Record::Ds { part, change } => {
            open.push((change, version));
            if part.is_last() {
                let commit = version.seq;
                for (change, version) in open.drain(..) {
                    let applied = tree.apply(&change, version);
                    changes.note(version, commit, &change, &applied);
                }
            }
        }
    }
}

/// The contents that a record refers to.
fn contents_of(record: &Record) -> Vec<(ContentId, u64)> {
    let Record::Ds { change: Change::Put { attributes, .. }, .. } = record else { return Vec::new() };
    let values = attributes.iter().flat_map(|attribute| &attribute.values);
    values
        .filter_map(|value| match value {
            Value::Content { id, len, .. } => Some((*id, *len)),
            Value::Text(_) | Value::Bytes(_) => None,
        })
        .collect()
}

/// What the core is told of a checked frame.
#[must_use]
pub fn meta_of(frame: &CheckedFrame<'_>) -> FrameMeta {
    let header = frame.header();
    FrameMeta {
        history: header.history(),
        epoch: header.epoch(),
        first: header.first_seq(),
        count: u32::try_from(header.last_seq().0 - header.first_seq().0 + 1).unwrap_or(u32::MAX),
        prev: header.prev_chain(),
        end: frame.position(),
        bytes: frame.bytes().len() as u64,
    }
}

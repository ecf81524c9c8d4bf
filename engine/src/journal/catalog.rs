//! What the journal's owner and its readers share: which segments there are, and how far each is written.
//!
//! Only what is written is in here; `changes` grows when positions that were readable cease to be.

use std::{
    collections::VecDeque,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ringpair_wire::id::{HistoryId, Position, Seq};

use super::format::FRAMES_OFFSET;

/// The distance between two marks, in bytes: how much is searched for a position.
const MARK_EVERY_BYTES: u64 = 128 << 10;

/// One segment as far as it is written.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Its number.
    pub index: u32,
    /// The position before its first frame.
    pub start: Position,
    /// The end of its last frame.
    pub end: Position,
    /// Where that frame ends, in bytes.
    pub end_offset: u64,
    /// The size of its file, in bytes.
    pub capacity: u64,
    /// Nothing more is written to it.
    pub sealed: bool,
    /// First records of some frames, and where those begin.
    pub marks: Vec<(Seq, u64)>,
}

impl Segment {
    /// A segment without frames.
    pub(super) fn begin(index: u32, start: Position, capacity: u64) -> Self {
        Self { index, start, end: start, end_offset: FRAMES_OFFSET, capacity, sealed: false, marks: Vec::new() }
    }

    /// Whether it holds no frame.
    pub(super) fn is_empty(&self) -> bool {
        self.end_offset == FRAMES_OFFSET
    }

    /// Adds a frame at the end.
    pub(super) fn extend(&mut self, first: Seq, end: Position, frame_bytes: u64) {
        if self.marks.last().is_none_or(|(_, offset)| self.end_offset - offset >= MARK_EVERY_BYTES) {
            self.marks.push((first, self.end_offset));
        }
        self.end = end;
        self.end_offset += frame_bytes;
    }

    /// Where to begin the search for the frame that ends with `seq`.
    pub(super) fn search_from(&self, seq: Seq) -> u64 {
        let after = self.marks.partition_point(|(first, _)| *first <= seq);
        after.checked_sub(1).map_or(FRAMES_OFFSET, |at| self.marks[at].1)
    }

    /// Takes back everything after the frame that ends at `end`.
    pub(super) fn cut(&mut self, end: Position, end_offset: u64) {
        self.marks.retain(|(_, offset)| *offset < end_offset);
        (self.end, self.end_offset) = (end, end_offset);
    }
}

/// The state shared.
#[derive(Debug)]
pub(super) struct State {
    /// The history, if there is one.
    pub history: Option<HistoryId>,
    /// Oldest first; the last is the active one.
    pub segments: VecDeque<Segment>,
    /// Grows when a position that was readable ceases to be, other than by retention.
    pub changes: u64,
}

impl State {
    /// The position before the oldest frame.
    pub(super) fn oldest(&self) -> Position {
        self.segments.front().map(|segment| segment.start).unwrap_or_default()
    }

    /// The end of the last frame written.
    pub(super) fn written(&self) -> Position {
        self.segments.back().map(|segment| segment.end).unwrap_or_default()
    }

    /// The segment with this number.
    pub(super) fn segment(&self, index: u32) -> Option<&Segment> {
        let first = self.segments.front()?.index;
        self.segments.get(index.checked_sub(first)? as usize)
    }
}

/// The state and the directory that it describes.
#[derive(Debug)]
pub(super) struct Catalog {
    /// The journal's directory.
    pub dir: PathBuf,
    state: Mutex<State>,
}

impl Catalog {
    pub(super) fn new(dir: PathBuf, history: Option<HistoryId>, segments: Vec<Segment>) -> Self {
        Self { dir, state: Mutex::new(State { history, segments: segments.into(), changes: 0 }) }
    }

    /// The state; locked for moments only, never over IO.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The journal's one owner: appends with group commit. What changes the journal as a whole stands in `change`.
//!
//! At most one group is in flight. A group goes into one segment, in one write linked with an fdatasync; a short one is
//! written by `pump` itself, into memory, which costs microseconds where handing it over costs two wake-ups. `append`,
//! `pump` and `on_completion` never wait for the disk, but for a short write that the kernel throttles, after which
//! none is made here for a while; the first failed write or sync ends the journal's taking.

use std::{
    collections::VecDeque,
    io::IoSlice,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{fcntl::Flock, sys::uio::pwritev};
use ringpair_wire::{
    frame::UncheckedHeader,
    id::{Epoch, HistoryId, Position, Seq},
};

use super::{
    AppendError, JournalError, JournalEvent, JournalOptions, JournalReader,
    catalog::{Catalog, Segment},
    files::{failed, zero_chunk},
    format::{Before, FRAMES_OFFSET, MARK_OFFSET, Mark, PAGE_BYTES, SegmentHeader, segment_path},
    prepare::{Preparation, Prepared},
};
use crate::ring::{Completion, Driver, Fd, MAX_SLICES, Op, Shared, Token};

/// Kinds of the journal's tokens.
const GROUP: u8 = 1;
const PREPARE: u8 = 2;
const MARK: u8 = 3;

/// How often it is noted how far the segment is synced: what was acknowledged longer ago is known after a crash.
const MARK_EVERY: Duration = Duration::from_millis(100);

/// What clients and the peer must leave of the last segment while no other can be made: more than a lane delivers after
/// it is no longer read.
const RESERVE_BYTES: u64 = 4 << 20;

/// Groups of at most so many bytes are written at once.
const AT_ONCE_BYTES: usize = 32 << 10;
/// One that took as long was held up by the kernel (too much else waits for the disk)…
const HELD_UP: Duration = Duration::from_millis(2);
/// …and for so long all groups are left to the driver, whose writes hold up nobody.
const LEFT_TO_DRIVER: Duration = Duration::from_secs(10);

/// What fills the last page of a group.
static ZERO_PAGE: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// The journal, owned by the stream thread.
#[derive(Debug)]
pub struct Journal {
    pub(super) options: JournalOptions,
    pub(super) catalog: Arc<Catalog>,
    pub(super) dir: Fd,
    /// Held as long as the journal is open.
    pub(super) _lock: Flock<std::fs::File>,
    pub(super) history: Option<HistoryId>,
    pub(super) generation: u64,
    pub(super) active: Option<Active>,
    pub(super) next: Option<Preparation>,
    /// Tells completions of a preparation that was given up from those of the current one.
    pub(super) tag: u16,
    /// The highest number that a segment file may have.
    pub(super) last_index: u32,
    pub(super) zeroes: Option<Shared>,
    pub(super) pending: VecDeque<Frame>,
    pub(super) pending_bytes: usize,
    pub(super) in_flight: Option<Group>,
    pub(super) end: Position,
    pub(super) synced: Position,
    pub(super) epochs: Vec<(Epoch, Position)>,
    pub(super) failed: bool,
    /// The next segment could not be made, and that was told.
    pub(super) no_room: bool,
    /// Told with the next completion: preparing failed outside of one.
    pub(super) untold: Option<JournalError>,
    /// The end of a group that was written at once, until it is told.
    pub(super) untold_written: Option<Position>,
    /// When groups may be written at once again.
    pub(super) at_once_from: Option<Instant>,
    pub(super) marks: Marks,
}

/// How far what is synced was noted.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Segment and byte noted last.
    noted: (u32, u64),
    /// When the last was submitted.
    at: Option<Instant>,
    in_flight: bool,
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    pub index: u32,
    pub fd: Fd,
    pub capacity: u64,
    /// Where the next group goes.
    pub offset: u64,
    /// The header page, until the first group takes it along.
    pub header: Option<Shared>,
    pub registered: bool,
}

#[derive(Debug)]
pub(super) struct Frame {
    bytes: Shared,
    first: Seq,
    end: Position,
}

/// The frames of one write.
#[derive(Debug)]
pub(super) struct Group {
    frames: Vec<Frame>,
    written: bool,
}

impl Journal {
    /// Appends a frame that ends at `end`, in memory: [`pump`](Self::pump) writes it.
    ///
    /// # Errors
    /// [`AppendError`]; the frame was not taken.
    pub fn append(&mut self, frame: Shared, end: Position) -> Result<(), AppendError> {
        let history = self.history.ok_or(AppendError::Empty)?;
        if self.failed {
            return Err(AppendError::Failed);
        }
        if self.pending_bytes + frame.len() > self.options.pending_bytes && self.pending_bytes > 0 {
            return Err(AppendError::Full);
        }
        let header = UncheckedHeader::parse(&frame).map_err(|_| AppendError::NotChained)?;
        let (first, last) = header.seqs();
        if first.0 != self.end.seq.0 + 1 {
            return Err(AppendError::NotNext { got: first, expected: Seq(self.end.seq.0 + 1) });
        }
        let continues = header.prev_chain() == self.end.chain && header.history() == history;
        let ends = last == end.seq && header.epoch() == end.epoch && end.epoch >= self.end.epoch;
        if !continues || !ends || header.frame_bytes() != frame.len() {
            return Err(AppendError::NotChained);
        }
        let max = (self.options.segment_bytes - FRAMES_OFFSET) as usize;
        if frame.len() > max {
            return Err(AppendError::TooLarge { got: frame.len(), max });
        }
        if end.epoch > self.end.epoch {
            self.epochs.push((end.epoch, self.end));
        }
        self.end = end;
        self.pending_bytes += frame.len();
        self.pending.push_back(Frame { bytes: frame, first, end });
        Ok(())
    }

    /// Submits what can be: the next group if none is in flight, the next piece of the segment being prepared. Call
    /// once a turn, before the driver's turn.
    pub fn pump(&mut self, driver: &mut Driver) {
        if self.failed {
            return;
        }
        // First, or a steady stream of groups would leave it no moment.
        self.mark(driver);
        if self.in_flight.is_none() && !self.pending.is_empty() {
            self.submit_group(driver);
        }
        let Some(next) = &mut self.next else { return };
        let zeroes = self.zeroes.get_or_insert_with(zero_chunk);
        let token = Token::new(Token::JOURNAL, PREPARE, next.index()).tagged(self.tag);
        if let Prepared::Broken(error) = next.pump(driver, &self.dir, zeroes, token) {
            self.untold = Some(error);
            // The events go out with a completion: make one come.
            driver.waker().wake();
        }
    }

    /// What there is to tell without a completion: call it once a turn as well.
    pub fn poll_events(&mut self, events: &mut Vec<JournalEvent>) {
        events.extend(self.untold_written.take().map(JournalEvent::Written));
        if let Some(error) = self.untold.take()
            && !std::mem::replace(&mut self.no_room, true)
        {
            events.push(JournalEvent::NoRoom { error });
        }
    }

    /// Whether [`poll_events`](Self::poll_events) has something to tell.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.untold_written.is_some()
    }

    /// Notes in the segment how far it is synced, now and then.
    fn mark(&mut self, driver: &mut Driver) {
        let Some(active) = &self.active else { return };
        // While a group is in flight, its end is not yet known to be on disk.
        let synced = (active.index, active.offset);
        let due = self.marks.at.is_none_or(|at| at.elapsed() >= MARK_EVERY);
        if self.in_flight.is_some() || active.header.is_some() || self.marks.in_flight || !due {
            return;
        }
        if synced == self.marks.noted || active.offset == FRAMES_OFFSET {
            return;
        }
        let mark =
            Mark { index: active.index, generation: self.generation, offset: active.offset, seq: self.synced.seq };
        let op = Op::WriteSynced { fd: active.fd.clone(), slices: vec![mark.bytes().into()], offset: MARK_OFFSET };
        if driver.submit(Token::new(Token::JOURNAL, MARK, active.index), op).is_ok() {
            self.marks = Marks { noted: synced, at: Some(Instant::now()), in_flight: true };
        }
    }

    fn submit_group(&mut self, driver: &mut Driver) {
        let Some(first) = self.pending.front().map(|frame| frame.bytes.len() as u64) else { return };
        if self.active.as_ref().is_none_or(|active| active.offset + first > active.capacity) && !self.roll() {
            return;
        }
        let Some(active) = &mut self.active else { return };
        if driver.room() == 0 {
            return;
        }
        if !active.registered {
            active.registered = true;
            driver.register(&active.fd);
        }
        let offset = if active.header.is_some() { 0 } else { active.offset };
        let (mut slices, mut frames) = (Vec::from_iter(active.header.take()), Vec::new());
        let mut bytes = 0;
        while let Some(frame) = self.pending.front() {
            let len = frame.bytes.len();
            let fits = active.offset + (bytes + len) as u64 <= active.capacity;
            if !fits || slices.len() + 1 == MAX_SLICES || (bytes > 0 && bytes + len > self.options.group_bytes) {
                break;
            }
            bytes += len;
            slices.push(frame.bytes.clone());
            frames.extend(self.pending.pop_front());
        }
        active.offset += bytes as u64;
        // To the end of the page, which is written whole: a part of one that is not in memory would be read first.
        let to_page_end = active.offset.next_multiple_of(PAGE_BYTES).min(active.capacity) - active.offset;
        if to_page_end > 0 {
            slices.push(Shared::from_static(&ZERO_PAGE).slice(..to_page_end as usize));
        }
        let (fd, token) = (active.fd.clone(), Token::new(Token::JOURNAL, GROUP, active.index));
        self.in_flight = Some(Group { frames, written: false });
        let op = if self.writes_at_once(&fd, &slices, offset) {
            self.untold_written = self.group_written();
            Op::Fdatasync { fd }
        } else {
            Op::WriteSynced { fd, slices, offset }
        };
        let submitted = driver.submit(token, op);
        assert!(submitted.is_ok(), "the driver has the room that it said");
    }

    /// Writes a short group; false: it is to be written by the driver, all of it.
    fn writes_at_once(&mut self, fd: &Fd, slices: &[Shared], offset: u64) -> bool {
        let bytes: usize = slices.iter().map(Shared::len).sum();
        let began = Instant::now();
        if bytes > AT_ONCE_BYTES || self.at_once_from.is_some_and(|from| began < from) {
            return false;
        }
        let slices: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
        let written = i64::try_from(offset).is_ok_and(|offset| pwritev(fd, &slices, offset) == Ok(bytes));
        self.at_once_from = (began.elapsed() >= HELD_UP).then(|| Instant::now() + LEFT_TO_DRIVER);
        // A failure comes once more, through the driver, and is told as any.
        written
    }

    /// Notes that the group in flight is in the file; its end.
    fn group_written(&mut self) -> Option<Position> {
        let group = self.in_flight.as_mut().filter(|group| !group.written)?;
        group.written = true;
        let mut state = self.catalog.state();
        for frame in &group.frames {
            self.pending_bytes -= frame.bytes.len();
            if let Some(segment) = state.segments.back_mut() {
                segment.extend(frame.first, frame.end, frame.bytes.len() as u64);
            }
        }
        group.frames.last().map(|frame| frame.end)
    }

    /// Goes on with the prepared segment; false if there is none yet. Nothing is in flight here.
    fn roll(&mut self) -> bool {
        let (Some(history), Some(next)) = (self.history, &mut self.next) else { return false };
        let Some(fd) = next.take_ready() else { return false };
        let (index, capacity) = (next.index(), self.options.segment_bytes);
        let mut state = self.catalog.state();
        let start = state.written();
        let mut before = Before::default();
        if let Some(last) = state.segments.back_mut() {
            last.sealed = true;
            let begun = |after: &Position| (last.start.seq..start.seq).contains(&after.seq);
            before.epochs = self.epochs.iter().filter(|(_, after)| begun(after)).copied().collect();
            before.end_offset = last.end_offset;
        }
        state.segments.push_back(Segment::begin(index, start, capacity));
        drop(state);
        let header = SegmentHeader { index, generation: self.generation, history, start, before: Some(before) };
        self.active = Some(Active {
            index,
            fd,
            capacity,
            offset: FRAMES_OFFSET,
            header: Some(header.page().into()),
            registered: false,
        });
        self.prepare_next();
        true
    }

    /// Begins to prepare the segment after the last.
    pub(super) fn prepare_next(&mut self) {
        self.last_index += 1;
        self.tag = self.tag.wrapping_add(1);
        self.next = Some(Preparation::new(&self.catalog.dir, self.last_index, self.options.segment_bytes));
    }

    /// Takes a completion whose token's owner is [`Token::JOURNAL`](crate::ring::Token::JOURNAL), and appends what it
    /// means to `events`. Call [`pump`](Self::pump) afterwards.
    pub fn on_completion(&mut self, completion: Completion, events: &mut Vec<JournalEvent>) {
        // Written comes before synced.
        events.extend(self.untold_written.take().map(JournalEvent::Written));
        match completion.token.kind() {
            GROUP => self.on_group(completion, events),
            MARK => {
                self.marks.in_flight &= completion.more;
                // The kernel tells an error of the file once: a group's sync would not hear of it.
                if let Err(source) = completion.result {
                    self.fail(source, completion.token.index(), events);
                }
            }
            PREPARE if completion.token.tag() == self.tag && !completion.more => {
                let Some(next) = &mut self.next else { return };
                match next.on_completion(completion.result) {
                    Prepared::Underway => {}
                    Prepared::Ready => {
                        self.zeroes = None;
                        if std::mem::take(&mut self.no_room) {
                            events.push(JournalEvent::Room);
                        }
                    }
                    Prepared::Broken(error) => self.untold = Some(error),
                }
            }
            _ => {}
        }
        self.poll_events(events);
    }

    fn on_group(&mut self, completion: Completion, events: &mut Vec<JournalEvent>) {
        let Some(group) = &self.in_flight else { return };
        let Some(end) = group.frames.last().map(|frame| frame.end) else { return };
        if self.failed || completion.result.is_err() {
            if !completion.more {
                self.in_flight = None;
            }
            if let Err(source) = completion.result {
                self.fail(source, completion.token.index(), events);
            }
            return;
        }
        events.extend(self.group_written().map(JournalEvent::Written));
        if !completion.more {
            self.in_flight = None;
            self.synced = end;
            events.push(JournalEvent::Synced(end));
        }
    }

    fn fail(&mut self, source: std::io::Error, index: u32, events: &mut Vec<JournalEvent>) {
        if !std::mem::replace(&mut self.failed, true) {
            let file = segment_path(&self.catalog.dir, index);
            events.push(JournalEvent::Failed { error: failed("write or sync", &file)(source) });
        }
    }

    /// The history; `None` while the journal is empty.
    #[must_use]
    pub fn history(&self) -> Option<HistoryId> {
        self.history
    }

    /// The end of the last frame appended.
    #[must_use]
    pub fn end(&self) -> Position {
        self.end
    }

    /// The end of the last frame written.
    #[must_use]
    pub fn written(&self) -> Position {
        self.catalog.state().written()
    }

    /// The end of the last frame that is on disk.
    #[must_use]
    pub fn synced(&self) -> Position {
        self.synced
    }

    /// The position before the oldest frame held.
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.catalog.state().oldest()
    }

    /// Each epoch that begins in the frames held, with the position that its first frame follows; ascending.
    #[must_use]
    pub fn epochs(&self) -> &[(Epoch, Position)] {
        &self.epochs
    }

    /// Frames appended and not yet written, oldest first: what a reader cannot see yet.
    pub fn unwritten(&self) -> impl Iterator<Item = (&Shared, Position)> {
        let flying = self.in_flight.iter().filter(|group| !group.written).flat_map(|group| &group.frames);
        flying.chain(&self.pending).map(|frame| (&frame.bytes, frame.end))
    }

    /// Bytes appended and not yet written.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Whether `position` is the end of a frame appended, or the oldest position. Blocks on the disk where the page
    /// cache misses: for reconnects. A place that cannot be read does not count.
    #[must_use]
    pub fn contains(&self, position: &Position) -> bool {
        self.unwritten().any(|(_, end)| end == *position) || self.reader().contains(position).unwrap_or(false)
    }

    /// Bytes of the journal's files, the segment being prepared included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let segments: u64 = self.catalog.state().segments.iter().map(|segment| segment.capacity).sum();
        segments + self.next.as_ref().map_or(0, Preparation::bytes)
    }

    /// A reader of what is written.
    #[must_use]
    pub fn reader(&self) -> JournalReader {
        JournalReader::new(self.catalog.clone())
    }

    /// Whether frames wait or are in flight: [`truncate_after`](Self::truncate_after) and [`reset`](Self::reset) are
    /// refused meanwhile.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.in_flight.is_some() || !self.pending.is_empty()
    }

    /// Whether the journal has failed and takes nothing more.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether the next segment cannot be made at the moment.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.no_room
    }

    /// Whether the next segment cannot be made and, with `more` bytes appended, less than `RESERVE_BYTES` of the
    /// current one are left: what is left is for the records of epochs and for what is under way already.
    #[must_use]
    pub fn is_short(&self, more: usize) -> bool {
        let left = self.active.as_ref().map_or(0, |active| active.capacity.saturating_sub(active.offset));
        self.no_room && left < (self.pending_bytes + more) as u64 + RESERVE_BYTES
    }

    /// Tries again to prepare a segment after [`JournalEvent::NoRoom`], with the next [`pump`](Self::pump).
    pub fn retry(&mut self) {
        if let Some(next) = &mut self.next {
            next.retry();
        }
    }
}

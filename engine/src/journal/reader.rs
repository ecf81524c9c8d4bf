//! Reading frames back, from any thread: sealed segments through a mapping, the one being written by reading.
//!
//! Every frame given out has passed its checksums and continues the chain of the one before. A reader sees what is
//! written, and follows the journal as it grows; where the journal was cut back it says so.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc};

use ringpair_wire::{
    frame::{CheckedFrame, HEADER_BYTES, MAX_FRAME_BYTES, UncheckedHeader, peek_len},
    id::{HistoryId, Position, Seq},
};

use super::{
    JournalError, JournalOptions, ReadError, Recovered, StoredFrame,
    catalog::Catalog,
    format::{FRAMES_OFFSET, segment_path},
    scan::scan,
};
use crate::ring::{Shared, map_sealed};

/// How much of the active segment is read at once, in bytes.
const WINDOW_BYTES: u64 = 256 << 10;

/// Reads a journal: its owner's (up to what is written, which moves on), or a dead worker's directory.
#[derive(Clone, Debug)]
pub struct JournalReader(Arc<Catalog>);

impl JournalReader {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self(catalog)
    }

    /// Opens a directory to read only, changing nothing: for the tail of a worker that has died. Ends where a
    /// recovery would end. The directory must not be in use by a writer.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn open_dir(dir: &Path) -> Result<(Self, Recovered), JournalError> {
        let scan = scan(dir, JournalOptions::default().group_bytes)?;
        let catalog = Catalog::new(dir.to_owned(), scan.recovered.history, scan.segments);
        Ok((Self(Arc::new(catalog)), scan.recovered))
    }

    /// The history; `None` while the journal is empty.
    #[must_use]
    pub fn history(&self) -> Option<HistoryId> {
        self.0.state().history
    }

    /// The end of what can be read now.
    #[must_use]
    pub fn end(&self) -> Position {
        self.0.state().written()
    }

    /// The position before the oldest frame held.
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.0.state().oldest()
    }

    /// A position at or before the end of record `seq` to start reading at, as near as is known without reading; the
    /// oldest where `seq` lies before it.
    #[must_use]
    pub fn start_before(&self, seq: Seq) -> Position {
        let state = self.0.state();
        let at = state.segments.partition_point(|segment| segment.start.seq <= seq);
        at.checked_sub(1).and_then(|at| state.segments.get(at)).map_or(state.oldest(), |segment| segment.start)
    }

    /// Starts reading behind `after`, which must be the end of a frame held or the oldest position.
    ///
    /// # Errors
    /// [`ReadError::Gone`], [`ReadError::NotHeld`], [`ReadError::Damaged`], [`ReadError::Io`].
    pub fn after(&self, after: &Position) -> Result<Cursor, ReadError> {
        let (changes, history, index, offset, start) = {
            let state = self.0.state();
            let Some(history) = state.history else { return Err(ReadError::NotHeld(*after)) };
            let oldest = state.oldest();
            if after.seq < oldest.seq {
                return Err(ReadError::Gone { wanted: after.seq, oldest: oldest.seq });
            }
            // The newest segment that begins at or before it: an end is the next one's start.
            let at = state.segments.partition_point(|segment| segment.start.seq <= after.seq);
            let Some(segment) = at.checked_sub(1).and_then(|at| state.segments.get(at)) else {
                return Err(ReadError::NotHeld(*after));
            };
            if segment.end.seq < after.seq || (segment.start.seq == after.seq && segment.start != *after) {
                return Err(ReadError::NotHeld(*after));
            }
            let (offset, start) = match (segment.start == *after, segment.end == *after) {
                (true, _) => (FRAMES_OFFSET, Some(*after)),
                (_, true) => (segment.end_offset, Some(*after)),
                _ => (segment.search_from(after.seq), None),
            };
            (state.changes, history, segment.index, offset, start)
        };
        let at = start.unwrap_or_default();
        let mut cursor = Cursor { catalog: self.0.clone(), changes, history, at, index, offset, source: Source::None };
        if start.is_none() {
            cursor.search(after)?;
        }
        Ok(cursor)
    }

    /// Whether `position` is the end of a frame held, or the oldest position.
    ///
    /// # Errors
    /// [`ReadError::Damaged`], [`ReadError::Changed`], [`ReadError::Io`].
    pub fn contains(&self, position: &Position) -> Result<bool, ReadError> {
        match self.after(position) {
            Ok(_) => Ok(true),
            Err(ReadError::NotHeld(_) | ReadError::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A place in a journal that moves forward frame by frame. Blocks on the disk where the page cache misses: bulk or
/// control threads read far back, the stream thread only what is recent.
#[derive(Debug)]
pub struct Cursor {
    catalog: Arc<Catalog>,
    changes: u64,
    history: HistoryId,
    at: Position,
    index: u32,
    offset: u64,
    source: Source,
}

/// Where the bytes of the current segment come from.
#[derive(Debug)]
enum Source {
    None,
    /// All of it.
    Mapped(Shared),
    /// A part of it, read while it was not sealed, from byte `from` on.
    Window {
        file: File,
        bytes: Shared,
        from: u64,
    },
}

impl Cursor {
    /// The end of the last frame given out.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// Where the next frame begins: segment and byte.
    pub(super) fn place(&self) -> (u32, u64) {
        (self.index, self.offset)
    }

    /// The next frame, checked, or `None` at the end of what is written (ask again later).
    ///
    /// # Errors
    /// [`ReadError::Damaged`], [`ReadError::Changed`], [`ReadError::Gone`], [`ReadError::Io`].
    pub fn next_frame(&mut self) -> Result<Option<StoredFrame>, ReadError> {
        let Some((limit, sealed)) = self.advance()? else { return Ok(None) };
        let bytes = self.frame_bytes(limit, sealed)?;
        let (first, end) = match CheckedFrame::check(&bytes) {
            Ok(frame) if frame.header().history() != self.history => return Err(self.damaged("another history")),
            Ok(frame) if !frame.header().follows(&self.at) => return Err(self.damaged("the chain is broken")),
            Ok(frame) => (frame.header().first_seq(), frame.position()),
            Err(error) => return Err(self.damaged(&error.to_string())),
        };
        self.offset += bytes.len() as u64;
        self.at = end;
        Ok(Some(StoredFrame { bytes, first, end }))
    }

    /// Moves on to the next segment if this one is read; how far the segment is written and whether it is sealed, or
    /// `None` at the end.
    fn advance(&mut self) -> Result<Option<(u64, bool)>, ReadError> {
        let catalog = self.catalog.clone();
        let state = catalog.state();
        if state.changes != self.changes {
            return Err(ReadError::Changed);
        }
        loop {
            let Some(segment) = state.segment(self.index) else {
                return Err(ReadError::Gone { wanted: self.at.seq, oldest: state.oldest().seq });
            };
            if self.offset < segment.end_offset {
                return Ok(Some((segment.end_offset, segment.sealed)));
            }
            if state.segment(self.index + 1).is_none() {
                return Ok(None);
            }
            (self.index, self.offset, self.source) = (self.index + 1, FRAMES_OFFSET, Source::None);
        }
    }

    /// The bytes of the frame at the current place.
    fn frame_bytes(&mut self, limit: u64, sealed: bool) -> Result<Shared, ReadError> {
        self.load(limit, sealed, HEADER_BYTES as u64)?;
        let len = match peek_len(self.loaded(limit)) {
            Some(Ok(len)) if self.offset + len as u64 <= limit => len,
            Some(Ok(_)) | None => return Err(self.damaged("the frame reaches beyond what was written")),
            Some(Err(error)) => return Err(self.damaged(&error.to_string())),
        };
        self.load(limit, sealed, len as u64)?;
        let (bytes, from) = match &self.source {
            Source::Mapped(bytes) => (bytes, 0),
            Source::Window { bytes, from, .. } => (bytes, *from),
            Source::None => return Err(self.damaged("nothing was read")),
        };
        let at = (self.offset - from) as usize;
        match bytes.len() >= at + len {
            true => Ok(bytes.slice(at..at + len)),
            false => Err(self.damaged("the file is shorter than what was written")),
        }
    }

    /// The loaded bytes from the current place on.
    fn loaded(&self, limit: u64) -> &[u8] {
        let (bytes, from) = match &self.source {
            Source::Mapped(bytes) => (bytes, 0),
            Source::Window { bytes, from, .. } => (bytes, *from),
            Source::None => return &[],
        };
        let end = bytes.len().min((limit - from) as usize);
        bytes.get((self.offset - from) as usize..end).unwrap_or_default()
    }

    /// Makes `count` bytes at the current place available, if the segment has as many.
    fn load(&mut self, limit: u64, sealed: bool, count: u64) -> Result<(), ReadError> {
        let end = limit.min(self.offset + count);
        match &self.source {
            Source::Mapped(_) => return Ok(()),
            Source::Window { bytes, from, .. } if *from <= self.offset && end <= from + bytes.len() as u64 => {
                return Ok(());
            }
            _ => {}
        }
        if sealed {
            let file = self.open()?;
            self.source = Source::Mapped(map_sealed(&file, limit).map_err(self.failed("map"))?);
            return Ok(());
        }
        let file = match std::mem::replace(&mut self.source, Source::None) {
            Source::Window { file, .. } => file,
            _ => self.open()?,
        };
        let wanted = (limit - self.offset).min(WINDOW_BYTES.max(count)).min((MAX_FRAME_BYTES as u64).max(WINDOW_BYTES));
        let mut bytes = vec![0; wanted as usize];
        file.read_exact_at(&mut bytes, self.offset).map_err(self.failed("read"))?;
        self.source = Source::Window { file, bytes: bytes.into(), from: self.offset };
        Ok(())
    }

    /// Opens the segment's file, which may be replaced or removed at any time: then what was opened is not used.
    fn open(&self) -> Result<File, ReadError> {
        let file = File::open(segment_path(&self.catalog.dir, self.index));
        let state = self.catalog.state();
        match file {
            _ if state.changes != self.changes => Err(ReadError::Changed),
            Err(error) if error.kind() == io::ErrorKind::NotFound && state.segment(self.index).is_none() => {
                Err(ReadError::Gone { wanted: self.at.seq, oldest: state.oldest().seq })
            }
            file => file.map_err(self.failed("open")),
        }
    }

    /// Goes forward from a mark to the end of the frame `after`.
    fn search(&mut self, after: &Position) -> Result<(), ReadError> {
        loop {
            let Some((limit, sealed)) = self.advance()? else { return Err(ReadError::NotHeld(*after)) };
            let bytes = self.frame_bytes(limit, sealed)?;
            let header = UncheckedHeader::parse(&bytes).map_err(|error| self.damaged(&error.to_string()))?;
            if header.seqs().1 >= after.seq {
                let frame = CheckedFrame::check(&bytes).map_err(|error| self.damaged(&error.to_string()))?;
                if frame.position() != *after {
                    return Err(ReadError::NotHeld(*after));
                }
                self.at = *after;
                self.offset += bytes.len() as u64;
                return Ok(());
            }
            self.offset += bytes.len() as u64;
        }
    }

    fn damaged(&self, what: &str) -> ReadError {
        let file = segment_path(&self.catalog.dir, self.index);
        ReadError::Damaged { file, offset: self.offset, what: what.to_owned() }
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> ReadError + use<> {
        let file = segment_path(&self.catalog.dir, self.index);
        move |source| ReadError::Io { what, file, source }
    }
}

//! Sends frames to the follower: stored ones first, then each as it is closed, on one connection in order.
//!
//! Always: frames leave in the order of the history, each once for a stream, never past what the core permits. Frames
//! that were closed a moment ago come from memory, older ones from the journal. Memory is bounded by what is kept.

use std::collections::VecDeque;

use ringpair_core::input::{Channel, WorkToken};
use ringpair_wire::id::{Position, Seq};

use crate::{
    journal::{Cursor, JournalReader, ReadError},
    ring::Shared,
};

/// How many bytes of frames are kept in memory for the stream.
const KEPT_BYTES: usize = 2 << 20;

#[derive(Debug)]
struct Recent {
    bytes: Shared,
    first: Seq,
    end: Position,
}

/// Reads frames one after the other, from memory where they are still there.
#[derive(Debug)]
struct Source {
    at: Position,
    cursor: Option<Cursor>,
}

/// A tail that is being served.
#[derive(Debug)]
pub struct Tail {
    /// Names the work.
    pub work: WorkToken,
    /// Who asked.
    pub to: Channel,
    source: Source,
    /// Where the journal ended when it was asked for.
    through: Position,
}

/// What the next frame to send is.
#[derive(Debug)]
pub enum Next {
    /// This one.
    Frame(Shared),
    /// None for now.
    Nothing,
}

/// The streams to the peer.
#[derive(Debug)]
pub struct Feed {
    reader: JournalReader,
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    stream: Option<Source>,
    tail: Option<Tail>,
}

impl Feed {
    /// Nothing to send; stored frames come from `reader`.
    #[must_use]
    pub fn new(reader: JournalReader) -> Self {
        Self { reader, recent: VecDeque::new(), recent_bytes: 0, stream: None, tail: None }
    }

    /// A journal was begun anew: nothing kept belongs to it.
    pub fn restart(&mut self, reader: JournalReader) {
        *self = Self::new(reader);
    }

    /// Keeps a frame that was closed just now.
    pub fn closed(&mut self, bytes: Shared, first: Seq, end: Position) {
        self.recent_bytes += bytes.len();
        self.recent.push_back(Recent { bytes, first, end });
        while self.recent_bytes > KEPT_BYTES
            && let Some(oldest) = self.recent.pop_front()
        {
            self.recent_bytes -= oldest.bytes.len();
        }
    }

    /// Streams everything after `after`, in place of an earlier stream.
    pub fn stream_from(&mut self, after: Position) {
        self.stream = Some(Source { at: after, cursor: None });
    }

    /// Whether frames go to a follower.
    #[must_use]
    pub fn streams(&self) -> bool {
        self.stream.is_some()
    }

    /// Ends the stream.
    pub fn stop(&mut self) {
        self.stream = None;
    }

    /// Serves the frames after `after` up to the journal's present end, once.
    pub fn serve_tail(&mut self, work: WorkToken, to: Channel, after: Position, through: Position) {
        self.tail = Some(Tail { work, to, source: Source { at: after, cursor: None }, through });
    }

    /// The next frame of the stream, not past `through`.
    ///
    /// # Errors
    /// The journal cannot be read there: the stream is over.
    pub fn next(&mut self, through: Seq) -> Result<Next, ReadError> {
        let Some(stream) = &mut self.stream else { return Ok(Next::Nothing) };
        match stream.next(&self.recent, &self.reader, through) {
            Ok(next) => Ok(next),
            Err(error) => {
                self.stream = None;
                Err(error)
            }
        }
    }

    /// The tail being served, if any.
    #[must_use]
    pub fn tail(&self) -> Option<&Tail> {
        self.tail.as_ref()
    }

    /// The next frame of the tail; `Nothing`: it is served, and given out by [`finish_tail`](Self::finish_tail).
    ///
    /// # Errors
    /// The journal cannot be read there.
    pub fn next_of_tail(&mut self) -> Result<Next, ReadError> {
        let Some(tail) = &mut self.tail else { return Ok(Next::Nothing) };
        tail.source.next(&self.recent, &self.reader, tail.through.seq)
    }

    /// Ends the tail: its work, who asked, and where it ended.
    pub fn finish_tail(&mut self) -> Option<(WorkToken, Channel, Position)> {
        self.tail.take().map(|tail| (tail.work, tail.to, tail.source.at))
    }
}

impl Source {
    fn next(&mut self, recent: &VecDeque<Recent>, reader: &JournalReader, through: Seq) -> Result<Next, ReadError> {
        let next_seq = self.at.seq.0 + 1;
        if let Ok(index) = recent.binary_search_by_key(&next_seq, |frame| frame.first.0) {
            let frame = &recent[index];
            if frame.end.seq > through {
                return Ok(Next::Nothing);
            }
            (self.at, self.cursor) = (frame.end, None);
            return Ok(Next::Frame(frame.bytes.clone()));
        }
        if self.at.seq >= through || self.at.seq >= reader.end().seq {
            return Ok(Next::Nothing);
        }
        let cursor = match &mut self.cursor {
            Some(cursor) => cursor,
            none => none.insert(reader.after(&self.at)?),
        };
        match cursor.next_frame()? {
            Some(frame) => {
                self.at = frame.end;
                Ok(Next::Frame(frame.bytes))
            }
            None => Ok(Next::Nothing),
        }
    }
}

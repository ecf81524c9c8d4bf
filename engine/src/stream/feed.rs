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

#[cfg(test)]
mod tests {
    use ringpair_wire::{
        compress::{Compression, Compressor},
        ds::{Change, DsPath},
        frame_builder::FrameBuilder,
        id::{Epoch, HistoryId},
        record::{Part, Record},
    };

    use super::*;
    use crate::{
        journal::{Journal, JournalOptions},
        ring::{Driver, DriverChoice, DriverOptions},
    };

    /// Appends `count` frames of 20 kB each behind `end`, all synced; their bytes.
    fn append(journal: &mut Journal, history: HistoryId, count: usize) -> Vec<(Shared, Position)> {
        let options = DriverOptions { choice: DriverChoice::Plain, ..DriverOptions::default() };
        let mut driver = Driver::new(&options).unwrap();
        let mut builder = FrameBuilder::after(history, Epoch(1), journal.end());
        let (mut appended, mut completions, mut events) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let class: String = (0..20_000).map(|at| char::from(b'a' + ((number * 7 + at * at) % 26) as u8)).collect();
            let path = DsPath::parse(&format!("/O{number}")).unwrap();
            let change = Change::Put { path, class: Some(class.into()), replace: true, attributes: Vec::new() };
            builder.push(&Record::Ds { part: Part::Whole, change }).unwrap();
            let sealed = builder.finish(&mut Compressor::new(Compression::Off)).unwrap();
            let bytes = Shared::from(sealed.bytes);
            journal.append(bytes.clone(), sealed.position).unwrap();
            appended.push((bytes, sealed.position));
            for _ in 0..10_000 {
                journal.pump(&mut driver);
                if journal.synced() == sealed.position {
                    break;
                }
                driver.turn(Some(std::time::Duration::from_millis(10)), &mut completions).unwrap();
                for completion in completions.drain(..) {
                    journal.on_completion(completion, &mut events);
                }
            }
            assert_eq!(journal.synced(), sealed.position, "{events:?}");
        }
        appended
    }

    // REQ: REP-310, REP-008
    #[test]
    fn a_follower_that_comes_back_gets_the_journal_as_it_lies_and_memory_holds_no_more_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let history = HistoryId([3; 16]);
        let (mut journal, _) = Journal::open(&dir.path().join("journal"), JournalOptions::default()).unwrap();
        journal.reset(history, Position::default()).unwrap();
        let frames = append(&mut journal, history, 400);
        let mut feed = Feed::new(journal.reader());
        let mut first = Seq(1);
        for (bytes, end) in &frames {
            feed.closed(bytes.clone(), first, *end);
            first = Seq(end.seq.0 + 1);
            assert!(feed.recent_bytes <= KEPT_BYTES);
        }
        assert!(feed.recent.len() < frames.len() / 2, "most of it lies on the disk only");
        feed.stream_from(Position::default());
        for (number, (bytes, _)) in frames.iter().enumerate() {
            let Next::Frame(sent) = feed.next(Seq(u64::MAX)).unwrap() else { panic!("no frame {number}") };
            assert_eq!(sent[..], bytes[..], "frame {number} is sent as it was written");
        }
        assert!(matches!(feed.next(Seq(u64::MAX)), Ok(Next::Nothing)));
        // Not past what is permitted, from wherever it comes.
        for from in [0, 399] {
            feed.stream_from(frames.get(from).map_or(Position::default(), |(_, end)| *end));
            let through = frames[from].1.seq;
            assert!(matches!(feed.next(through), Ok(Next::Nothing)), "from {from}");
        }
    }
}

//! Journals on a real disk, on both drivers: what is appended comes back, what is damaged is found.

mod changes;
mod damage;
mod disk;

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use ringpair_wire::{
    compress::{Compression, Compressor},
    frame_builder::FrameBuilder,
    id::{Epoch, HistoryId, MemberId, Position},
    record::{EpochRecord, Record},
};

use super::*;
use crate::ring::{Driver, DriverChoice, DriverOptions, Token};

const HISTORY: HistoryId = HistoryId([7; 16]);
const SMALL: JournalOptions = JournalOptions { segment_bytes: 64 << 10, group_bytes: 1 << 20, pending_bytes: 8 << 20 };

/// Makes the frames of a chain.
struct Chain {
    end: Position,
    frames: Vec<(Shared, Position)>,
}

impl Chain {
    fn new() -> Self {
        Self { end: Position::default(), frames: Vec::new() }
    }

    /// One frame with one record of about `bytes` bytes; the first of an epoch begins it.
    fn next(&mut self, epoch: u64, bytes: usize) -> (Shared, Position) {
        let mut builder = FrameBuilder::after(HISTORY, Epoch(epoch), self.end);
        let record = if epoch > self.end.epoch.0 {
            let reason = "test".into();
            Record::Epoch(EpochRecord { epoch: Epoch(epoch), member: MemberId::A, previous: self.end, reason })
        } else {
            // Noise, so that it stays as long as it is.
            let mut state = self.end.seq.0 + 1;
            let noise = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            });
            Record::Interaction { kind: 1, id: [1; 16], bytes: noise.take(bytes).collect() }
        };
        builder.push(&record).unwrap();
        let sealed = builder.finish(&mut Compressor::new(Compression::Off)).unwrap();
        self.end = sealed.position;
        self.frames.push((sealed.bytes.into(), sealed.position));
        self.frames.last().cloned().unwrap()
    }
}

struct Bench {
    journal: Journal,
    driver: Driver,
    events: Vec<JournalEvent>,
}

fn driver(choice: DriverChoice) -> Driver {
    let options =
        DriverOptions { in_flight: 32, buf_count: 1, registered_files: 4, choice, ..DriverOptions::default() };
    Driver::new(&options).unwrap()
}

impl Bench {
    fn open(dir: &Path, choice: DriverChoice) -> (Self, Recovered) {
        let (journal, recovered) = Journal::open(dir, SMALL).unwrap();
        (Self { journal, driver: driver(choice), events: Vec::new() }, recovered)
    }

    fn turn(&mut self) {
        let mut completions = Vec::new();
        self.journal.pump(&mut self.driver);
        self.driver.turn(Some(Duration::from_millis(100)), &mut completions).unwrap();
        for completion in completions {
            assert_eq!(completion.token.owner(), Token::JOURNAL);
            self.journal.on_completion(completion, &mut self.events);
        }
        self.journal.poll_events(&mut self.events);
    }

    fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < until, "no {what}: {:?}", self.events);
            self.turn();
        }
    }

    fn sync(&mut self) {
        self.until("sync", |bench| bench.journal.synced() == bench.journal.end());
    }

    fn append_all(&mut self, frames: &[(Shared, Position)]) {
        for (bytes, end) in frames {
            self.journal.append(bytes.clone(), *end).unwrap();
        }
        self.sync();
    }

    fn journal_dir(&self) -> std::path::PathBuf {
        self.journal.catalog.dir.clone()
    }
}

fn each(test: impl Fn(DriverChoice, &Path)) {
    for choice in [DriverChoice::Plain, DriverChoice::Auto] {
        let dir = tempfile::tempdir_in(".").unwrap();
        test(choice, dir.path());
    }
}

fn read_all(reader: &JournalReader, after: &Position) -> Vec<StoredFrame> {
    let mut cursor = reader.after(after).unwrap();
    std::iter::from_fn(|| cursor.next_frame().unwrap()).collect()
}

fn ends(frames: &[StoredFrame]) -> Vec<Position> {
    frames.iter().map(|frame| frame.end).collect()
}

/// A journal of several segments and two epochs, closed; its chain.
fn written(dir: &Path, choice: DriverChoice, frames: usize, bytes: usize) -> Chain {
    let mut chain = Chain::new();
    let (mut bench, recovered) = Bench::open(dir, choice);
    assert_eq!(recovered, Recovered::default());
    bench.journal.reset(HISTORY, Position::default()).unwrap();
    // Opening gives the bare first segment its full size.
    drop(bench);
    let (mut bench, _) = Bench::open(dir, choice);
    for n in 0..frames {
        let (frame, end) = chain.next(if n < frames / 2 { 1 } else { 3 }, bytes);
        bench.journal.append(frame, end).unwrap();
        if n % 3 == 0 {
            bench.sync();
        }
    }
    bench.sync();
    chain
}

/// The newest segment that holds a frame.
fn last_segment(dir: &Path) -> std::path::PathBuf {
    let (_, recovered) = JournalReader::open_dir(dir).unwrap();
    assert!(recovered.history.is_some());
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "seg") && fs::read(path).unwrap().starts_with(b"RPJS"))
        .collect();
    names.sort();
    names.pop().unwrap()
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy_dir(&entry.path(), &to.join(entry.file_name())),
            // A preparation may remove its file at any time.
            false => drop(fs::copy(entry.path(), to.join(entry.file_name()))),
        }
    }
}

// REQ: REP-048
#[test]
fn what_was_appended_comes_back_after_reopening() {
    each(|choice, dir| {
        let chain = written(dir, choice, 60, 4000);
        let (mut bench, recovered) = Bench::open(dir, choice);
        let positions: Vec<Position> = chain.frames.iter().map(|(_, end)| *end).collect();
        assert_eq!((recovered.history, recovered.end), (Some(HISTORY), chain.end));
        assert_eq!((recovered.torn_bytes, recovered.corrupt.len()), (0, 0));
        assert_eq!(recovered.epochs, [(Epoch(1), Position::default()), (Epoch(3), positions[29])]);
        assert_eq!(bench.journal.epochs(), recovered.epochs);
        assert!(bench.journal.bytes() >= 4 * SMALL.segment_bytes);
        // From every position, through mapped and unmapped segments.
        let reader = bench.journal.reader();
        assert_eq!(ends(&read_all(&reader, &Position::default())), positions);
        for (n, (_, end)) in chain.frames.iter().enumerate() {
            let rest = read_all(&reader, end);
            assert_eq!(ends(&rest), positions[n + 1..]);
            assert!(rest.iter().zip(&chain.frames[n + 1..]).all(|(got, (bytes, _))| got.bytes == *bytes));
            assert!(bench.journal.contains(end));
            let mut other = *end;
            other.chain.0 ^= 1;
            assert!(!bench.journal.contains(&other));
            assert!(matches!(reader.after(&other), Err(ReadError::NotHeld(_))));
        }
        // And it goes on, seen by a cursor that had come to the end.
        let mut chain = chain;
        let mut cursor = reader.after(&chain.end).unwrap();
        assert_eq!(cursor.next_frame().unwrap(), None);
        for _ in 0..40 {
            let (frame, end) = chain.next(3, 3000);
            bench.append_all(&[(frame.clone(), end)]);
            let got = cursor.next_frame().unwrap().unwrap();
            assert_eq!((got.bytes, got.end), (frame, end));
        }
    });
}

#[test]
fn written_comes_before_synced_and_groups_gather() {
    each(|choice, dir| {
        let (mut bench, _) = Bench::open(dir, choice);
        bench.journal.reset(HISTORY, Position::default()).unwrap();
        let mut chain = Chain::new();
        for _ in 0..30 {
            let (frame, end) = chain.next(1, 100);
            bench.journal.append(frame, end).unwrap();
        }
        assert_eq!(bench.journal.unwritten().count(), 30);
        bench.sync();
        let told: Vec<String> = bench.events.iter().map(|event| format!("{event:?}")).collect();
        assert_eq!(told.len(), 2, "one group: {told:?}");
        assert!(
            matches!((&bench.events[0], &bench.events[1]), (JournalEvent::Written(w), JournalEvent::Synced(s)) if w == s && *s == chain.end)
        );
        assert_eq!((bench.journal.unwritten().count(), bench.journal.pending_bytes()), (0, 0));
    });
}

#[test]
fn frames_that_do_not_continue_the_chain_are_refused() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let (mut bench, _) = Bench::open(dir.path(), DriverChoice::Plain);
    let mut chain = Chain::new();
    let (first, first_end) = chain.next(1, 10);
    let (second, second_end) = chain.next(1, 10);
    assert_eq!(bench.journal.append(first.clone(), first_end), Err(AppendError::Empty));
    bench.journal.reset(HISTORY, Position::default()).unwrap();
    let refused = bench.journal.append(second.clone(), second_end).unwrap_err();
    assert!(matches!(refused, AppendError::NotNext { .. }));
    bench.journal.append(first.clone(), first_end).unwrap();
    assert!(matches!(bench.journal.append(first, first_end), Err(AppendError::NotNext { .. })));
    assert_eq!(bench.journal.append(second.slice(1..), second_end), Err(AppendError::NotChained));
    assert_eq!(bench.journal.append(second.clone(), first_end), Err(AppendError::NotChained));
    let mut other = Chain { end: Position { chain: second_end.chain, ..first_end }, frames: Vec::new() };
    let (forged, end) = other.next(1, 10);
    assert_eq!(bench.journal.append(forged, end), Err(AppendError::NotChained));
    let mut large = Chain { end: first_end, frames: Vec::new() };
    let (large, end) = large.next(1, 70_000);
    assert!(matches!(bench.journal.append(large, end), Err(AppendError::TooLarge { .. })));
    bench.append_all(&[(second, second_end)]);
}

#[test]
fn only_so_much_waits_for_the_disk() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let options = JournalOptions { pending_bytes: 10_000, ..SMALL };
    let (mut journal, _) = Journal::open(dir.path(), options).unwrap();
    journal.reset(HISTORY, Position::default()).unwrap();
    let mut chain = Chain::new();
    let mut refused = None;
    for _ in 0..20 {
        let (frame, end) = chain.next(1, 1000);
        refused = refused.or(journal.append(frame, end).err());
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused, Some(AppendError::Full));
    assert!(journal.pending_bytes() <= 10_000);
}

#[test]
fn two_processes_cannot_have_it() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let _first = Journal::open(dir.path(), SMALL).unwrap();
    assert!(matches!(Journal::open(dir.path(), SMALL), Err(JournalError::Locked(_))));
    let wrong = JournalOptions { segment_bytes: 5000, ..SMALL };
    assert!(matches!(Journal::open(dir.path(), wrong), Err(JournalError::Options { .. })));
}

//! Journals on a real disk, on both drivers: what is appended comes back, what is damaged is found.

use std::{
    collections::BTreeSet,
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

#[test]
fn cut_at_every_byte_of_the_last_frame() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let chain = written(&dir.path().join("j"), DriverChoice::Auto, 5, 300);
    let path = last_segment(&dir.path().join("j"));
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let begin = 4096 + chain.frames[..4].iter().map(|(bytes, _)| bytes.len()).sum::<usize>();
    let mut chain = chain;
    let before = chain.frames[3].1;
    chain.end = before;
    let replacement = chain.next(3, 20);
    for at in begin..end {
        // The file ends there; or the rest of it was never written.
        let mut torn = whole.clone();
        torn[at..].fill(0);
        for bytes in [&whole[..at], &torn] {
            fs::write(&path, bytes).unwrap();
            let (journal, recovered) = Journal::open(&dir.path().join("j"), SMALL).unwrap();
            assert_eq!((recovered.end, recovered.corrupt.len()), (before, 0), "cut at {at}");
            drop(journal);
            assert_eq!(fs::metadata(&path).unwrap().len(), SMALL.segment_bytes);
        }
    }
    // What was torn does not come back, and the journal goes on.
    let (mut bench, recovered) = Bench::open(&dir.path().join("j"), DriverChoice::Auto);
    assert_eq!(recovered.torn_bytes, 0);
    bench.append_all(&[replacement]);
    drop(bench);
    assert_eq!(JournalReader::open_dir(&dir.path().join("j")).unwrap().1.end, chain.end);
}

#[test]
fn a_flipped_bit_anywhere_is_found() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let chain = written(&dir.path().join("j"), DriverChoice::Auto, 6, 60);
    let path = last_segment(&dir.path().join("j"));
    let whole = fs::read(&path).unwrap();
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut offsets = vec![4096];
    chain.frames.iter().for_each(|(bytes, _)| offsets.push(offsets[offsets.len() - 1] + bytes.len()));
    assert_eq!(offsets[6], end);
    let mut flipped = whole.clone();
    for at in (0..256).chain(2048..2304).chain(4096..end + 64) {
        let bit = 1 << (at % 8);
        flipped[at] ^= bit;
        fs::write(&path, &flipped).unwrap();
        flipped[at] ^= bit;
        let (reader, recovered) = JournalReader::open_dir(&dir.path().join("j")).unwrap();
        // The frames before the damaged one are kept, nothing else is given out.
        let kept = offsets.partition_point(|offset| *offset <= at).saturating_sub(1);
        let kept = if at < 4096 || at >= end { 6 } else { kept };
        let expected: Vec<Position> = chain.frames[..kept].iter().map(|(_, end)| *end).collect();
        assert_eq!(ends(&read_all(&reader, &Position::default())), expected, "byte {at}");
        match kept {
            6 => assert_eq!((recovered.corrupt.len(), recovered.torn_bytes > 0), (0, at >= end), "byte {at}"),
            5 => assert_eq!((recovered.corrupt.len(), recovered.torn_bytes > 0), (0, true), "byte {at}"),
            _ => {
                let corrupt = &recovered.corrupt[0];
                // That the first frame was synced is known from a mark; the others may have been cut short together.
                assert_eq!((corrupt.offset as usize, corrupt.maybe_torn), (offsets[kept], kept > 0), "byte {at}");
                assert_eq!(corrupt.lost, kept as u64 + 1..=6, "byte {at}");
            }
        }
    }
}

#[test]
fn damage_while_reading_is_an_error_and_never_a_wrong_frame() {
    each(|choice, dir| {
        let chain = written(dir, choice, 60, 4000);
        let (bench, _) = Bench::open(dir, choice);
        let reader = bench.journal.reader();
        let path = dir.join("00000002.seg");
        let mut bytes = fs::read(&path).unwrap();
        bytes[10_000] ^= 4;
        fs::write(&path, bytes).unwrap();
        let mut cursor = reader.after(&Position::default()).unwrap();
        let mut good = 0;
        let error = loop {
            match cursor.next_frame() {
                Ok(Some(frame)) => assert_eq!(frame.bytes, chain.frames[good].0),
                Ok(None) => panic!("the damage was not found"),
                Err(error) => break error,
            }
            good += 1;
        };
        assert!(matches!(&error, ReadError::Damaged { file, .. } if *file == path), "{error}");
        assert!((14..60).contains(&good));
    });
}

// REQ: REP-026
#[test]
fn damage_in_an_older_segment_is_named_when_it_is_read_kept_and_not_skipped() {
    each(|choice, dir| {
        let mut chain = written(dir, choice, 60, 4000);
        let path = dir.join("00000002.seg");
        let mut bytes = fs::read(&path).unwrap();
        bytes[30_000] ^= 4;
        fs::write(&path, bytes).unwrap();
        let (mut bench, recovered) = Bench::open(dir, choice);
        // Nobody has read there: the end, the epochs and what lies behind are known all the same.
        assert_eq!((recovered.end, recovered.corrupt.len(), recovered.torn_bytes), (chain.end, 0, 0));
        assert_eq!(recovered.epochs, [(Epoch(1), Position::default()), (Epoch(3), chain.frames[29].1)]);
        let reader = bench.journal.reader();
        let mut cursor = reader.after(&Position::default()).unwrap();
        let mut good = 0;
        let error = loop {
            match cursor.next_frame() {
                Ok(frame) => assert_eq!(frame.unwrap().bytes, chain.frames[good].0),
                Err(error) => break error,
            }
            good += 1;
        };
        let ReadError::Damaged { file, .. } = &error else { panic!("{error}") };
        assert_eq!(*file, path);
        assert!(bench.journal.give_up_through(file).unwrap());
        assert!(!bench.journal.give_up_through(file).unwrap(), "it is gone");
        assert_eq!(fs::read_dir(dir.join("quarantine")).unwrap().count(), 2, "the damaged segment and the one before");
        let oldest = bench.journal.oldest();
        assert!(oldest.seq.0 as usize > good && !bench.journal.contains(&chain.frames[good].1));
        assert!(matches!(cursor.next_frame(), Err(ReadError::Damaged { .. } | ReadError::Gone { .. })));
        assert!(matches!(reader.after(&Position::default()), Err(ReadError::Gone { .. })));
        // What lies behind is held, and it goes on.
        let held = chain.frames.len() - oldest.seq.0 as usize;
        assert_eq!(read_all(&reader, &oldest).len(), held);
        let (frame, end) = chain.next(3, 100);
        bench.append_all(&[(frame, end)]);
        let newest = last_segment(dir);
        assert!(!bench.journal.give_up_through(&newest).unwrap(), "the newest one is what it goes on with");
        drop(bench);
        let (reader, recovered) = JournalReader::open_dir(dir).unwrap();
        assert_eq!((recovered.oldest, recovered.end, recovered.corrupt.len()), (oldest, chain.end, 0));
        assert_eq!(read_all(&reader, &oldest).len(), held + 1);
    });
}

/// A journal whose last frames were synced and marked, closed; its chain.
fn marked(dir: &Path, choice: DriverChoice) -> Chain {
    let mut chain = written(dir, choice, 6, 60);
    let (mut bench, _) = Bench::open(dir, choice);
    for _ in 0..3 {
        let (frame, end) = chain.next(3, 60);
        bench.append_all(&[(frame, end)]);
    }
    let until = Instant::now() + Duration::from_secs(20);
    let path = last_segment(dir);
    let marked = || {
        let bytes = fs::read(&path).unwrap();
        format::Mark::read(&bytes, 1, 1).is_some_and(|mark| mark.seq == chain.end.seq)
    };
    while !marked() {
        assert!(Instant::now() < until, "no mark");
        bench.turn();
    }
    chain
}

// REQ: REP-026
#[test]
fn what_is_known_to_be_synced_is_damaged_and_not_torn() {
    each(|choice, dir| {
        let chain = marked(&dir.join("j"), choice);
        let path = last_segment(&dir.join("j"));
        let whole = fs::read(&path).unwrap();
        let end = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let last = end - chain.frames[8].0.len();
        let mut cases: Vec<(String, Vec<u8>, usize)> = Vec::new();
        for at in [last, last + 40, end - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            cases.push((format!("flipped at {at}"), flipped, 8));
            let mut zeroed = whole.clone();
            zeroed[at..].fill(0);
            cases.push((format!("zeroes from {at}"), zeroed, 8));
            cases.push((format!("cut at {at}"), whole[..at].to_vec(), 8));
        }
        let mut zeroed = whole.clone();
        zeroed[4096..].fill(0);
        cases.push(("all zeroes".into(), zeroed, 0));
        for (what, bytes, kept) in cases {
            fs::write(&path, bytes).unwrap();
            let expected = chain.frames[..kept].last().map_or(Position::default(), |(_, end)| *end);
            for recovered in
                [JournalReader::open_dir(&dir.join("j")).unwrap().1, Journal::open(&dir.join("j"), SMALL).unwrap().1]
            {
                let [corrupt] = &recovered.corrupt[..] else { panic!("{what}: {recovered:?}") };
                assert_eq!((recovered.end, recovered.torn_bytes), (expected, 0), "{what}");
                assert_eq!((corrupt.maybe_torn, corrupt.lost.clone()), (false, kept as u64 + 1..=9), "{what}");
            }
            // Told once: what was repaired goes on from where it ends.
            let (journal, recovered) = Journal::open(&dir.join("j"), SMALL).unwrap();
            assert_eq!((recovered.end, recovered.corrupt.len(), journal.end()), (expected, 0, expected), "{what}");
        }
    });
}

// REQ: REP-026
#[test]
fn what_comes_behind_a_mark_may_still_be_torn() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut chain = marked(dir.path(), DriverChoice::Auto);
    let path = last_segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let known = chain.end;
    // Two frames of one write, of which the second reached the disk and the first not.
    let (first, _) = chain.next(3, 60);
    let (second, _) = chain.next(3, 60);
    bytes[end + first.len()..][..second.len()].copy_from_slice(&second);
    fs::write(&path, bytes).unwrap();
    let (_, recovered) = Journal::open(dir.path(), SMALL).unwrap();
    assert_eq!((recovered.end, recovered.corrupt[0].maybe_torn), (known, true));
    assert!(JournalReader::open_dir(dir.path()).unwrap().1.corrupt.is_empty());
}

#[test]
fn a_journal_without_what_headers_tell_is_read_and_opened_the_same() {
    each(|choice, dir| {
        let chain = written(dir, choice, 60, 4000);
        let expected = JournalReader::open_dir(dir).unwrap().1;
        for name in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            let Some(index) = format::segment_index(&name.file_name().unwrap().to_string_lossy()) else { continue };
            let mut bytes = fs::read(&name).unwrap();
            let format::HeaderPage::Good(header) = format::SegmentHeader::read(&bytes, index) else { continue };
            let untold = format::SegmentHeader { before: None, ..header };
            bytes[..format::MARK_OFFSET as usize].copy_from_slice(&untold.page()[..format::MARK_OFFSET as usize]);
            fs::write(&name, bytes).unwrap();
        }
        let (reader, recovered) = JournalReader::open_dir(dir).unwrap();
        assert_eq!(recovered, expected);
        assert_eq!(read_all(&reader, &Position::default()).len(), chain.frames.len());
    });
}

#[test]
fn blank_segments_at_the_end_are_no_damage() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let chain = written(&dir.path().join("j"), DriverChoice::Plain, 60, 4000);
    let last =
        format::segment_index(&last_segment(&dir.path().join("j")).file_name().unwrap().to_string_lossy()).unwrap();
    // A crash while the first write into a new segment was under way, and the next was being prepared; or in the middle
    // of their removal.
    for blank in [vec![1], vec![1, 2], vec![2]] {
        let copy = dir.path().join(format!("{blank:?}"));
        copy_dir(&dir.path().join("j"), &copy);
        let _ = fs::remove_file(format::segment_path(&copy, last + 1));
        for n in &blank {
            fs::write(format::segment_path(&copy, last + n), vec![0; 64 << 10]).unwrap();
        }
        for recovered in [JournalReader::open_dir(&copy).unwrap().1, Journal::open(&copy, SMALL).unwrap().1] {
            assert_eq!((recovered.end, recovered.corrupt.len(), recovered.torn_bytes), (chain.end, 0, 0), "{blank:?}");
        }
    }
}

#[test]
fn a_missing_segment_is_named() {
    each(|choice, dir| {
        let chain = written(dir, choice, 60, 4000);
        fs::remove_file(dir.join("00000002.seg")).unwrap();
        let (bench, recovered) = Bench::open(dir, choice);
        assert_eq!(recovered.corrupt[0].file, dir.join("00000002.seg"));
        assert_eq!(recovered.corrupt[0].lost, recovered.end.seq.0 + 1..=60);
        assert!(bench.journal.contains(&recovered.end) && recovered.end.seq.0 > 10);
        assert!(!bench.journal.contains(&chain.end));
    });
}

#[test]
fn a_journal_without_any_header_is_empty_and_says_what_lay_there() {
    let dir = tempfile::tempdir_in(".").unwrap();
    written(dir.path(), DriverChoice::Plain, 6, 60);
    let path = last_segment(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[..4096].fill(0x55);
    fs::write(&path, bytes).unwrap();
    let (bench, recovered) = Bench::open(dir.path(), DriverChoice::Plain);
    assert_eq!((recovered.history, bench.journal.history()), (None, None));
    assert_eq!(recovered.corrupt[0].lost, 1..=6);
}

#[test]
fn copies_taken_at_any_moment_recover_to_what_was_synced_or_more() {
    each(|choice, dir| {
        let (mut bench, _) = Bench::open(&dir.join("j"), choice);
        bench.journal.reset(HISTORY, Position::default()).unwrap();
        let mut chain = Chain::new();
        for n in 0..40 {
            let (frame, end) = chain.next(1, 3000);
            bench.journal.append(frame, end).unwrap();
            for _ in 0..n % 4 {
                bench.turn();
            }
            let copy = dir.join(format!("copy{n}"));
            copy_dir(&bench.journal_dir(), &copy);
            let synced = bench.journal.synced();
            let (journal, recovered) = Journal::open(&copy, SMALL).unwrap();
            assert!(recovered.corrupt.iter().all(|corrupt| corrupt.maybe_torn), "{recovered:?}");
            assert!(recovered.end.seq >= synced.seq && recovered.end.seq <= end.seq);
            assert!(recovered.end.seq.0 == 0 || chain.frames.iter().any(|(_, end)| *end == recovered.end));
            drop(journal);
            fs::remove_dir_all(copy).unwrap();
        }
    });
}

impl Bench {
    fn journal_dir(&self) -> std::path::PathBuf {
        self.journal.catalog.dir.clone()
    }
}

#[test]
fn truncation_leaves_exactly_the_prefix() {
    each(|choice, dir| {
        let chain = written(&dir.join("j"), choice, 60, 4000);
        for keep in [1, 14, 15, 16, 30, 31, 59] {
            let copy = dir.join(format!("t{keep}"));
            copy_dir(&dir.join("j"), &copy);
            let (mut bench, _) = Bench::open(&copy, choice);
            let reader = bench.journal.reader();
            let mut behind = reader.after(&Position::default()).unwrap();
            let to = chain.frames[keep - 1].1;
            bench.journal.truncate_after(&to).unwrap();
            assert!(matches!(behind.next_frame(), Err(ReadError::Changed)));
            assert_eq!((bench.journal.end(), bench.journal.written(), bench.journal.synced()), (to, to, to));
            assert!(!bench.journal.contains(&chain.end));
            let mut other = Chain { end: to, frames: Vec::new() };
            for _ in 0..30 {
                other.next(5, 2000);
            }
            bench.append_all(&other.frames);
            let all = ends(&read_all(&reader, &Position::default()));
            drop(bench);
            let (reader, recovered) = JournalReader::open_dir(&copy).unwrap();
            assert_eq!((recovered.end, recovered.corrupt.len(), recovered.torn_bytes), (other.end, 0, 0));
            assert_eq!(ends(&read_all(&reader, &Position::default())), all);
            assert_eq!(all.len(), keep + 30);
            assert_eq!(recovered.epochs.last().unwrap().0, Epoch(5));
        }
    });
}

#[test]
fn an_interrupted_truncation_leaves_a_prefix_of_the_old_history() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let chain = written(&dir.path().join("j"), DriverChoice::Auto, 60, 4000);
    let positions: BTreeSet<u64> = chain.frames.iter().map(|(_, end)| end.seq.0).collect();
    let last = fs::read_dir(dir.path().join("j")).unwrap().count();
    // Its steps: the segments behind go one after the other from the last, then the cut one is replaced.
    for gone in 0..last {
        let copy = dir.path().join(format!("c{gone}"));
        copy_dir(&dir.path().join("j"), &copy);
        for index in (2..=last as u32).rev().take(gone) {
            let _ = fs::remove_file(format::segment_path(&copy, index));
        }
        fs::write(copy.join("00000001.tmp"), b"half a replacement").unwrap();
        let (mut journal, recovered) = Journal::open(&copy, SMALL).unwrap();
        assert_eq!((recovered.corrupt.len(), recovered.torn_bytes), (0, 0), "{gone} {recovered:?}");
        assert!(positions.contains(&recovered.end.seq.0) && !copy.join("00000001.tmp").exists());
        journal.truncate_after(&chain.frames[2].1).unwrap();
        drop(journal);
        assert_eq!(JournalReader::open_dir(&copy).unwrap().1.end, chain.frames[2].1);
    }
}

#[test]
fn a_reset_begins_anew_and_a_crash_leaves_the_old_or_the_new() {
    each(|choice, dir| {
        let chain = written(&dir.join("j"), choice, 60, 4000);
        let start = Position { epoch: Epoch(9), seq: ringpair_wire::id::Seq(1000), ..chain.end };
        let other = HistoryId([8; 16]);
        copy_dir(&dir.join("j"), &dir.join("done"));
        let (mut bench, _) = Bench::open(&dir.join("done"), choice);
        bench.journal.reset(other, start).unwrap();
        let new: Vec<_> = fs::read_dir(dir.join("done"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|e| e == "seg"))
            .collect();
        let [new] = &new[..] else { panic!("{new:?}") };
        assert_eq!((bench.journal.end(), bench.journal.oldest(), bench.journal.history()), (start, start, Some(other)));
        assert!(matches!(bench.journal.reader().after(&chain.end), Err(ReadError::Gone { .. })));
        // Before the rename: the old journal.
        copy_dir(&dir.join("j"), &dir.join("before"));
        fs::copy(new, dir.join("before").join(new.with_extension("tmp").file_name().unwrap())).unwrap();
        let (_, recovered) = Journal::open(&dir.join("before"), SMALL).unwrap();
        assert_eq!((recovered.end, recovered.corrupt.len()), (chain.end, 0));
        // After it, with any of the old ones still there: the new.
        for gone in 0..4 {
            let copy = dir.join(format!("after{gone}"));
            copy_dir(&dir.join("j"), &copy);
            (1..=gone).for_each(|index| fs::remove_file(format::segment_path(&copy, index)).unwrap());
            fs::copy(new, copy.join(new.file_name().unwrap())).unwrap();
            let (journal, recovered) = Journal::open(&copy, SMALL).unwrap();
            assert_eq!((recovered.history, recovered.end, recovered.corrupt.len()), (Some(other), start, 0));
            assert_eq!(journal.bytes(), SMALL.segment_bytes);
        }
    });
}

#[test]
fn retention_drops_whole_segments_from_the_front() {
    each(|choice, dir| {
        let chain = written(dir, choice, 60, 4000);
        let (mut bench, _) = Bench::open(dir, choice);
        let reader = bench.journal.reader();
        let mut slow = reader.after(&Position::default()).unwrap();
        slow.next_frame().unwrap().unwrap();
        let first = bench.journal.oldest_segment_end().unwrap();
        let before = bench.journal.bytes();
        assert_eq!(bench.journal.drop_before(first).unwrap(), 0, "its last record is still wanted");
        assert_eq!(bench.journal.drop_before(Seq(first.0 + 1)).unwrap(), SMALL.segment_bytes);
        assert_eq!(bench.journal.bytes(), before - SMALL.segment_bytes);
        assert_eq!(bench.journal.oldest(), chain.frames[first.0 as usize - 1].1);
        assert!(matches!(reader.after(&Position::default()), Err(ReadError::Gone { .. })));
        assert!(matches!(slow.next_frame(), Err(ReadError::Gone { .. })));
        bench.journal.drop_before(Seq(u64::MAX)).unwrap();
        assert_eq!((bench.journal.oldest_segment_end(), bench.journal.end()), (None, chain.end));
        drop(bench);
        let recovered = JournalReader::open_dir(dir).unwrap().1;
        assert_eq!((recovered.end, recovered.corrupt.len()), (chain.end, 0));
    });
}

#[test]
fn a_failed_write_ends_the_journal_until_it_starts_anew() {
    each(|choice, dir| {
        let mut chain = written(dir, choice, 6, 100);
        let (mut bench, _) = Bench::open(dir, choice);
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        bench.journal.active.as_mut().unwrap().fd = crate::ring::Fd::new(full);
        let synced = chain.end;
        let (frame, end) = chain.next(3, 100);
        bench.journal.append(frame, end).unwrap();
        bench.until("failure", |bench| bench.journal.has_failed() && bench.journal.in_flight.is_none());
        assert!(bench.events.iter().all(|event| matches!(event, JournalEvent::Failed { .. })), "{:?}", bench.events);
        assert_eq!(bench.journal.synced(), synced);
        let (frame, end) = chain.next(3, 100);
        assert_eq!(bench.journal.append(frame, end), Err(AppendError::Failed));
        assert!(matches!(bench.journal.truncate_after(&synced), Err(JournalError::Failed)));
        assert_eq!(read_all(&bench.journal.reader(), &Position::default()).len(), 6);
        // Only a copy from the peer goes on, in a file of its own.
        bench.journal.reset(HISTORY, end).unwrap();
        assert_eq!((bench.journal.end(), bench.journal.pending_bytes(), bench.journal.has_failed()), (end, 0, false));
        let (frame, end) = chain.next(3, 100);
        bench.append_all(&[(frame, end)]);
        assert_eq!(bench.journal.synced(), end);
    });
}

/// A small file system of its own; `None` where that is not permitted.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(bytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={bytes}");
        let flags = nix::mount::MsFlags::empty();
        match nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(&*options)) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                eprintln!("skipped: cannot mount a small tmpfs ({error})");
                None
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_stops_writing_and_room_lets_it_go_on() {
    for choice in [DriverChoice::Plain, DriverChoice::Auto] {
        let Some(disk) = Tmpfs::new(5 * SMALL.segment_bytes / 2) else { return };
        let mut chain = Chain::new();
        let (mut bench, _) = Bench::open(disk.0.path(), choice);
        bench.journal.reset(HISTORY, Position::default()).unwrap();
        let ballast = disk.0.path().join("ballast");
        fs::write(&ballast, vec![1; SMALL.segment_bytes as usize]).unwrap();
        while !bench.journal.lacks_room() {
            let (frame, end) = chain.next(1, 4000);
            bench.journal.append(frame, end).unwrap();
            bench.turn();
        }
        // The current segment is used up; then frames wait, and nothing is told that is not true.
        for _ in 0..30 {
            let (frame, end) = chain.next(1, 4000);
            bench.journal.append(frame, end).unwrap();
        }
        bench.until("rest", |bench| {
            let next = bench.journal.unwritten().next().map_or(0, |(bytes, _)| bytes.len() as u64);
            let used_up = bench.journal.active.as_ref().is_some_and(|active| active.offset + next > active.capacity);
            used_up && bench.journal.in_flight.is_none() && bench.driver.in_flight() == 0
        });
        for _ in 0..3 {
            bench.journal.retry();
            bench.turn();
        }
        let stuck = bench.journal.synced();
        assert!(stuck.seq.0 > 5 && stuck.seq < bench.journal.end().seq);
        assert_eq!(read_all(&bench.journal.reader(), &Position::default()).last().unwrap().end, stuck);
        let no_room =
            |events: &[JournalEvent]| events.iter().filter(|e| matches!(e, JournalEvent::NoRoom { .. })).count();
        assert_eq!(no_room(&bench.events), 1, "told once");
        fs::remove_file(ballast).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !bench.events.iter().any(|event| matches!(event, JournalEvent::Room)) {
            assert!(Instant::now() < until);
            bench.journal.retry();
            bench.turn();
        }
        let before = bench.journal.synced();
        bench.until("progress", |bench| bench.journal.synced().seq > before.seq);
    }
}

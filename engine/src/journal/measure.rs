//! Figures for ARCHITECTURE.md, by hand: `cargo test -p ringpair --release --lib journal::measure -- --ignored --nocapture`.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use ringpair_wire::{
    compress::{Compression, Compressor},
    frame_builder::FrameBuilder,
    id::{Epoch, HistoryId, Position},
    record::Record,
};

use super::*;
use crate::ring::{Driver, DriverChoice, DriverOptions};

const HISTORY: HistoryId = HistoryId([7; 16]);
const RECORD_BYTES: usize = 200;

fn frames(count: usize, records: usize, record_bytes: usize) -> Vec<(Shared, Position)> {
    let mut builder = FrameBuilder::after(HISTORY, Epoch(1), Position::default());
    let mut compressor = Compressor::new(Compression::Off);
    let record = Record::Interaction { kind: 1, id: [1; 16], bytes: vec![5; record_bytes - 24].into() };
    let make = |_| {
        for _ in 0..records {
            builder.push(&record).unwrap();
        }
        let sealed = builder.finish(&mut compressor).unwrap();
        (sealed.bytes.into(), sealed.position)
    };
    (0..count).map(make).collect()
}

struct Run {
    journal: Journal,
    driver: Driver,
    completions: Vec<crate::ring::Completion>,
    events: Vec<JournalEvent>,
}

impl Run {
    fn new(dir: &Path, choice: DriverChoice) -> Self {
        let (mut journal, _) = Journal::open(dir, JournalOptions::default()).unwrap();
        journal.reset(HISTORY, Position::default()).unwrap();
        let driver = Driver::new(&DriverOptions { choice, ..DriverOptions::default() }).unwrap();
        Self { journal, driver, completions: Vec::new(), events: Vec::new() }
    }

    fn turn(&mut self) {
        self.journal.pump(&mut self.driver);
        self.driver.turn(Some(Duration::from_secs(1)), &mut self.completions).unwrap();
        for completion in self.completions.drain(..) {
            self.journal.on_completion(completion, &mut self.events);
        }
    }
}

fn percentiles(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_micros();
    format!("p50 {} us, p99 {} us", at(50), at(99))
}

#[test]
#[ignore = "measures, by hand: cargo test -p ringpair --lib journal::measure -- --ignored --nocapture"]
fn measure() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let file = File::create(dir.path().join("floor")).unwrap();
    file.write_all_at(&vec![0; 16 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let floor = (0..1000u64).map(|n| {
        let start = Instant::now();
        file.write_all_at(&[1; 4096], n * 4096).unwrap();
        file.sync_data().unwrap();
        start.elapsed()
    });
    println!("floor, pwrite 4 KiB + fdatasync into zeroes: {}", percentiles(floor.collect()));
    for choice in [DriverChoice::Plain, DriverChoice::IoUring] {
        let mut run = Run::new(&dir.path().join(format!("latency {choice:?}")), choice);
        let mut times = Vec::new();
        for (frame, end) in frames(2000, 1, 4096 - 152) {
            let start = Instant::now();
            run.journal.append(frame, end).unwrap();
            while run.journal.synced() != end {
                run.turn();
            }
            times.push(start.elapsed());
        }
        println!("{choice:?}: one 4 KiB append to synced: {}", percentiles(times));

        let mut run = Run::new(&dir.path().join(format!("stream {choice:?}")), choice);
        let (count, records) = (2000, (64 << 10) / RECORD_BYTES);
        let all = frames(count, records, RECORD_BYTES);
        let bytes: usize = all.iter().map(|(frame, _)| frame.len()).sum();
        let start = Instant::now();
        for (frame, end) in &all {
            while run.journal.append(frame.clone(), *end).is_err() {
                run.turn();
            }
        }
        while run.journal.synced() != run.journal.end() {
            run.turn();
        }
        let seconds = start.elapsed().as_secs_f64();
        let groups = run.events.iter().filter(|event| matches!(event, JournalEvent::Synced(_))).count();
        println!(
            "{choice:?}: {:.0} records/s of {RECORD_BYTES} B, {:.0} MB/s, {groups} groups",
            (count * records) as f64 / seconds,
            bytes as f64 / seconds / 1e6,
        );
        let start = Instant::now();
        let mut cursor = run.journal.reader().after(&Position::default()).unwrap();
        while cursor.next_frame().unwrap().is_some() {}
        println!("{choice:?}: read back, checked: {:.0} MB/s", bytes as f64 / start.elapsed().as_secs_f64() / 1e6);
        let path = dir.path().join(format!("stream {choice:?}"));
        drop(run);
        let start = Instant::now();
        let (_, recovered) = Journal::open(&path, JournalOptions::default()).unwrap();
        assert_eq!(recovered.end, all[count - 1].1);
        println!("{choice:?}: opened in {} ms", start.elapsed().as_millis());
    }
}

/// How long opening takes with a journal of 1 GiB, as the worker and as the supervisor do; the page cache warm.
#[test]
#[ignore = "measures, by hand: cargo test -p ringpair --lib journal::measure::open -- --ignored --nocapture"]
fn open() {
    const GIB: usize = 1 << 30;
    let dir = tempfile::tempdir_in(".").unwrap();
    let path = dir.path().join("journal");
    let mut run = Run::new(&path, DriverChoice::Auto);
    let mut builder = FrameBuilder::after(HISTORY, Epoch(1), Position::default());
    let mut compressor = Compressor::new(Compression::Off);
    let record = Record::Interaction { kind: 1, id: [1; 16], bytes: vec![5; RECORD_BYTES - 24].into() };
    let mut bytes = 0;
    while bytes < GIB {
        for _ in 0..(64 << 10) / RECORD_BYTES {
            builder.push(&record).unwrap();
        }
        let sealed = builder.finish(&mut compressor).unwrap();
        let frame: Shared = sealed.bytes.into();
        bytes += frame.len();
        while run.journal.append(frame.clone(), sealed.position).is_err() {
            run.turn();
        }
    }
    while run.journal.synced() != run.journal.end() {
        run.turn();
    }
    let end = run.journal.end();
    drop(run);
    measure_open(&path, end, "end only");
    // Without what headers tell of the segment before, every byte is read, as it was once.
    for entry in std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()) {
        let Some(index) = format::segment_index(&entry.file_name().unwrap().to_string_lossy()) else { continue };
        let file = File::options().read(true).write(true).open(&entry).unwrap();
        let mut page = vec![0; format::FRAMES_OFFSET as usize];
        file.read_exact_at(&mut page, 0).unwrap();
        let format::HeaderPage::Good(header) = format::SegmentHeader::read(&page, index) else { continue };
        let untold = format::SegmentHeader { before: None, ..header };
        file.write_all_at(&untold.page(), 0).unwrap();
    }
    measure_open(&path, end, "everything");
}

fn measure_open(path: &Path, end: Position, what: &str) {
    for _ in 0..3 {
        let start = Instant::now();
        let (reader, _) = JournalReader::open_dir(path).unwrap();
        let supervisor = start.elapsed();
        assert_eq!(reader.end(), end);
        let start = Instant::now();
        let (journal, recovered) = Journal::open(path, JournalOptions::default()).unwrap();
        println!("{what}: supervisor {supervisor:?}, worker {:?}", start.elapsed());
        assert_eq!((journal.end(), recovered.corrupt.len()), (end, 0));
    }
}

//! What is torn, flipped, cut or missing is found, named, and never given out.

use super::*;

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

//! Copies taken at any moment, truncation, reset and retention: each leaves a whole journal, at whatever moment it ends.

use std::collections::BTreeSet;

use super::*;

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

//! A disk that fails, and one that is full.

use super::*;

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

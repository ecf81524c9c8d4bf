//! What changes a journal as a whole, synchronously and durably: opening with recovery, truncation, reset, retention.
//!
//! Every step leaves a directory that a recovery understands: files appear whole (renamed into place), and disappear from
//! the end (truncation) or the beginning (retention). Damaged files are kept in `quarantine`, never removed.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::fcntl::{Flock, FlockArg};
use ringpair_wire::id::{HistoryId, Position, Seq};

use super::{
    Journal, JournalError, JournalOptions, ReadError, Recovered,
    catalog::{Catalog, Segment},
    files::{failed, put_segment, read_prefix, remove, sync_dir},
    format::{FRAMES_OFFSET, HeaderPage, MARK_OFFSET, Mark, SegmentHeader, segment_path},
    scan::{MAX_SEGMENT_BYTES, Scan, scan},
    writer::Active,
};
use crate::ring::Fd;

/// Where files with damage are kept.
const QUARANTINE: &str = "quarantine";

impl JournalOptions {
    fn check(&self) -> Result<(), JournalError> {
        let wrong = |key, value, range| Err(JournalError::Options { key, value, range });
        if !self.segment_bytes.is_multiple_of(4096) || !(64 << 10..=MAX_SEGMENT_BYTES).contains(&self.segment_bytes) {
            return wrong("segment_bytes", self.segment_bytes, "a multiple of 4096 from 64 KiB to 64 MiB");
        }
        if self.group_bytes == 0 || self.pending_bytes == 0 {
            return wrong("group_bytes or pending_bytes", 0, "1 or more");
        }
        Ok(())
    }
}

impl Journal {
    /// Locks the directory (made if missing), recovers what it holds, and leaves it ready to append. Synchronous: for
    /// the start; reads every header and the newest segment.
    ///
    /// # Errors
    /// [`JournalError`]: in use by another process, unreadable, or options out of range. Damage is no error, see
    /// [`Recovered`]; damage in an older segment is found when that is read.
    pub fn open(dir: &Path, options: JournalOptions) -> Result<(Self, Recovered), JournalError> {
        options.check()?;
        fs::create_dir_all(dir).map_err(failed("create", dir))?;
        let lock = lock(dir)?;
        let scan = scan(dir, options.group_bytes)?;
        let active = repair(dir, &scan, options.segment_bytes)?;
        let recovered = scan.recovered;
        let mut segments = scan.segments;
        if let (Some(last), Some(active)) = (segments.last_mut(), &active) {
            last.capacity = active.capacity;
        }
        let mut journal = Self {
            catalog: Arc::new(Catalog::new(dir.to_owned(), recovered.history, segments)),
            dir: Fd::new(File::open(dir).map_err(failed("open", dir))?),
            options,
            _lock: lock,
            history: recovered.history,
            generation: scan.generation,
            active,
            next: None,
            tag: 0,
            last_index: scan.last_index,
            zeroes: None,
            pending: Default::default(),
            pending_bytes: 0,
            in_flight: None,
            end: recovered.end,
            synced: recovered.end,
            epochs: recovered.epochs.clone(),
            failed: false,
            no_room: false,
            untold: None,
            untold_written: None,
            at_once_from: None,
            marks: Default::default(),
        };
        // Continues the numbers in use: those of files just removed are free again.
        if let Some(active) = &journal.active {
            journal.last_index = active.index;
            journal.prepare_next();
        }
        Ok((journal, recovered))
    }

    fn check_idle(&self) -> Result<(), JournalError> {
        match (self.failed, self.is_busy()) {
            (true, _) => Err(JournalError::Failed),
            (_, true) => Err(JournalError::Busy),
            _ => Ok(()),
        }
    }

    /// Gives up the segment being prepared. A piece of it that is in flight writes into a file without a name.
    fn drop_preparation(&mut self) -> Result<(), JournalError> {
        self.tag = self.tag.wrapping_add(1);
        match self.next.take() {
            Some(next) => {
                self.last_index = next.index() - 1;
                remove(&segment_path(&self.catalog.dir, next.index()))
            }
            None => Ok(()),
        }
    }

    /// Removes everything behind `position`, durably. Synchronous (copies at most one segment), for a member that has
    /// archived what it removes and holds no lease. A crash in the middle leaves a journal that ends at `position` or later: do it again.
    ///
    /// # Errors
    /// [`JournalError::Busy`], [`JournalError::Failed`], [`JournalError::NotHeld`], [`JournalError::Io`]: after the
    /// last the journal has to be opened anew.
    pub fn truncate_after(&mut self, position: &Position) -> Result<(), JournalError> {
        self.check_idle()?;
        if *position == self.end {
            return Ok(());
        }
        let (index, offset) = match self.reader().after(position) {
            Ok(cursor) => cursor.place(),
            Err(ReadError::Io { what, file, source }) => return Err(JournalError::Io { what, file, source }),
            Err(_) => return Err(JournalError::NotHeld(*position)),
        };
        self.drop_preparation()?;
        // Whatever fails from here on: what is in memory no longer describes the directory.
        self.failed = true;
        let dir = self.catalog.dir.clone();
        let last = self.catalog.state().segments.back().map_or(index, |segment| segment.index);
        for behind in (index + 1..=last).rev() {
            remove(&segment_path(&dir, behind))?;
            // One by one: never a gap.
            sync_dir(&dir)?;
        }
        let path = segment_path(&dir, index);
        let mut prefix = Vec::new();
        read_prefix(&path, offset, &mut prefix)?;
        Mark::remove(&mut prefix);
        // No larger than it must be: the next frames go into the segment that is prepared in the background.
        let capacity = offset.next_multiple_of(FRAMES_OFFSET);
        put_segment(&path, &prefix, capacity)?;
        let mut state = self.catalog.state();
        state.changes += 1;
        state.segments.retain(|segment| segment.index <= index);
        if let Some(segment) = state.segments.back_mut() {
            segment.cut(*position, offset);
            segment.capacity = capacity;
            segment.sealed = false;
        }
        drop(state);
        self.active = Some(open_active(&path, index, capacity, offset)?);
        (self.last_index, self.marks) = (index, Default::default());
        self.epochs.retain(|(_, after)| after.seq < position.seq);
        (self.end, self.synced, self.failed) = (*position, *position, false);
        self.prepare_next();
        Ok(())
    }

    /// Starts anew, after a failure too: history `history`, nothing held, the next frame follows `position`. Synchronous, some four syncs and
    /// one removal a segment. Durable; a crash leaves either the old journal or the new.
    ///
    /// # Errors
    /// [`JournalError::Busy`], [`JournalError::Io`]: the old journal is still there, or, if
    /// only its removal failed, goes with the next opening.
    pub fn reset(&mut self, history: HistoryId, position: Position) -> Result<(), JournalError> {
        // What a failed journal had not written is given up: the failed file is not gone on with (protocol §10).
        if self.in_flight.is_some() || (!self.failed && !self.pending.is_empty()) {
            return Err(JournalError::Busy);
        }
        self.pending.clear();
        (self.pending_bytes, self.untold_written) = (0, None);
        self.drop_preparation()?;
        let dir = self.catalog.dir.clone();
        let old: Vec<u32> = self.catalog.state().segments.iter().map(|segment| segment.index).collect();
        // A header and no room: quick, and the first frames go into the segment that is prepared in the background.
        let (index, capacity) = (self.last_index + 1, FRAMES_OFFSET);
        let header = SegmentHeader { index, generation: self.generation + 1, history, start: position, before: None };
        let path = segment_path(&dir, index);
        // The rename in here is what decides.
        if let Err(error) = put_segment(&path, &header.page(), capacity) {
            if self.active.is_some() {
                self.prepare_next();
            }
            return Err(error);
        }
        (self.failed, self.last_index, self.marks) = (true, index, Default::default());
        self.active = Some(open_active(&path, index, capacity, FRAMES_OFFSET)?);
        let mut state = self.catalog.state();
        state.changes += 1;
        state.history = Some(history);
        state.segments = [Segment::begin(index, position, capacity)].into();
        drop(state);
        for index in old {
            remove(&segment_path(&dir, index))?;
        }
        sync_dir(&dir)?;
        (self.history, self.generation) = (Some(history), header.generation);
        (self.end, self.synced, self.failed) = (position, position, false);
        self.epochs.clear();
        self.prepare_next();
        Ok(())
    }

    /// Removes the whole segments that hold only records before `seq` (retention, `journal_max_bytes`); how many bytes
    /// that gave back. The newest segment stays. A crash may bring the removed back.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn drop_before(&mut self, seq: Seq) -> Result<u64, JournalError> {
        let mut freed = 0;
        loop {
            let oldest = {
                let mut state = self.catalog.state();
                match state.segments.front() {
                    Some(first) if state.segments.len() > 1 && first.end.seq < seq => state.segments.pop_front(),
                    _ => break,
                }
            };
            let Some(oldest) = oldest else { break };
            remove(&segment_path(&self.catalog.dir, oldest.index))?;
            freed += oldest.capacity;
        }
        let oldest = self.oldest();
        self.epochs.retain(|(_, after)| after.seq >= oldest.seq);
        Ok(freed)
    }

    /// Gives up a damaged segment and all before it: kept in `quarantine`, out of use, so that whoever asks for what lies
    /// there is told that it is gone, and not sent there again. False: it is the newest one, which cannot be given up,
    /// or none.
    ///
    /// # Errors
    /// [`JournalError::Io`].
    pub fn give_up_through(&mut self, file: &Path) -> Result<bool, JournalError> {
        let dir = self.catalog.dir.clone();
        let mut state = self.catalog.state();
        let damaged = state.segments.iter().position(|segment| segment_path(&dir, segment.index) == file);
        let Some(damaged) = damaged.filter(|at| at + 1 < state.segments.len()) else { return Ok(false) };
        let given_up: Vec<u32> = state.segments.drain(..=damaged).map(|segment| segment.index).collect();
        drop(state);
        let oldest = self.oldest();
        self.epochs.retain(|(_, after)| after.seq >= oldest.seq);
        // Oldest first: an interruption leaves a journal without a gap.
        for index in given_up {
            let path = segment_path(&dir, index);
            let kept = quarantine_name(&dir, &path)?;
            fs::rename(&path, &kept).map_err(failed("move to quarantine", &path))?;
        }
        sync_dir(&dir).map(|()| true)
    }

    /// The last record of the oldest segment: [`drop_before`](Self::drop_before) the one after it gives back that
    /// segment. `None` while there is only one segment.
    #[must_use]
    pub fn oldest_segment_end(&self) -> Option<Seq> {
        let state = self.catalog.state();
        state.segments.front().filter(|_| state.segments.len() > 1).map(|first| first.end.seq)
    }
}

fn lock(dir: &Path) -> Result<Flock<File>, JournalError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed("open", &path))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(JournalError::Locked(dir.to_owned())),
        Err((_, error)) => Err(failed("lock", &path)(error.into())),
    }
}

fn open_active(path: &Path, index: u32, capacity: u64, offset: u64) -> Result<Active, JournalError> {
    let file = File::options().read(true).write(true).open(path).map_err(failed("open", path))?;
    // What a dead process had written is in the kernel's memory: it counts as synced from here on.
    file.sync_data().map_err(failed("sync", path))?;
    Ok(Active { index, fd: Fd::new(file), capacity, offset, header: None, registered: false })
}

/// Brings the directory into the state that the scan describes, and opens the active segment.
fn repair(dir: &Path, scan: &Scan, segment_bytes: u64) -> Result<Option<Active>, JournalError> {
    let active = scan.segments.last();
    // Newest first: an interrupted repair finds the same damage again.
    for index in scan.behind.iter().rev() {
        let path = segment_path(dir, *index);
        let kept = quarantine_name(dir, &path)?;
        fs::rename(&path, &kept).map_err(failed("move to quarantine", &path))?;
    }
    for path in &scan.unused {
        remove(path)?;
    }
    sync_dir(dir)?;
    let Some(active) = active else { return Ok(None) };
    rewrite_headers(dir, scan)?;
    let path = segment_path(dir, active.index);
    if scan.active_damaged {
        let kept = quarantine_name(dir, &path)?;
        fs::hard_link(&path, &kept).map_err(failed("keep in quarantine", &path))?;
        sync_dir(&dir.join(QUARANTINE))?;
        let mut prefix = Vec::new();
        read_prefix(&path, active.end_offset, &mut prefix)?;
        Mark::remove(&mut prefix);
        let capacity = segment_bytes.max(active.end_offset.next_multiple_of(4096));
        put_segment(&path, &prefix, capacity)?;
        return Ok(Some(open_active(&path, active.index, capacity, active.end_offset)?));
    }
    let mut opened = open_active(&path, active.index, active.capacity, active.end_offset)?;
    if let Some((from, to)) = scan.torn {
        // Nothing valid lies there, so nothing becomes valid while it is zeroed.
        let file = File::options().write(true).open(&path).map_err(failed("open", &path))?;
        let zeroes = vec![0; (to - from) as usize];
        file.write_all_at(&zeroes, from)
            .and_then(|()| file.sync_all())
            .map_err(failed("zero the torn end of", &path))?;
    }
    if active.capacity < segment_bytes {
        opened.capacity = extend(&path, active.capacity, segment_bytes);
    }
    Ok(Some(opened))
}

/// Writes the header pages that are not as they should be: one damaged copy today, the other tomorrow.
fn rewrite_headers(dir: &Path, scan: &Scan) -> Result<(), JournalError> {
    let Some(history) = scan.recovered.history else { return Ok(()) };
    let mut found = Vec::new();
    for segment in &scan.segments {
        let (index, path) = (segment.index, segment_path(dir, segment.index));
        read_prefix(&path, FRAMES_OFFSET, &mut found)?;
        let header = SegmentHeader { index, generation: scan.generation, history, start: segment.start, before: None };
        let header = match SegmentHeader::read(&found, index) {
            HeaderPage::Good(sound) => SegmentHeader { before: sound.before, ..header },
            HeaderPage::Blank | HeaderPage::Bad => header,
        };
        if !header.is_in(&found) {
            let file = File::options().write(true).open(&path).map_err(failed("open", &path))?;
            file.write_all_at(&header.page()[..MARK_OFFSET as usize], 0)
                .and_then(|()| file.sync_all())
                .map_err(failed("repair the header of", &path))?;
        }
    }
    Ok(())
}

/// Fills a segment that was cut short with zeroes; its capacity then. Without room it stays as it is, and the next
/// segment takes over.
fn extend(path: &Path, from: u64, to: u64) -> u64 {
    let grow = || -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        file.write_all_at(&vec![0; (to - from) as usize], from)?;
        file.sync_all()
    };
    if grow().is_ok() { to } else { from }
}

/// A free name in the quarantine for a file.
fn quarantine_name(dir: &Path, path: &Path) -> Result<PathBuf, JournalError> {
    let quarantine = dir.join(QUARANTINE);
    fs::create_dir_all(&quarantine).map_err(failed("create", &quarantine))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (0u32..).map(|n| quarantine.join(format!("{name}.{n}"))).find(|path| !path.exists());
    Ok(free.unwrap_or(quarantine))
}

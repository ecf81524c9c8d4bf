//! Finds out what a journal's directory holds, changing nothing: which segments, which frames, where the history ends, and
//! what is damaged.
//!
//! Only what nobody tells is read. A segment behind which another one was begun is known by that one's header: it is
//! checked when it is read. The last is walked: a frame counts only with both checksums, the right history, and a chain
//! that continues the frame before, and the walk ends at the first place that is none. What follows there decides: a
//! place that the segment's mark says was synced, or anything valid of the same history behind, is damage, named with
//! the records that it costs; otherwise it is a torn tail.

use std::{fs, path::Path};

use ringpair_wire::{
    frame::{CheckedFrame, HEADER_BYTES, MAGIC, MAX_FRAME_BYTES, UncheckedHeader},
    id::{Epoch, HistoryId, Position, Seq},
};

use super::{
    Corrupt, JournalError, Recovered,
    catalog::Segment,
    files::{failed, read_prefix},
    format::{FRAMES_OFFSET, HeaderPage, Mark, SegmentHeader, segment_index, segment_path},
};

/// The greatest segment that is read.
pub(super) const MAX_SEGMENT_BYTES: u64 = 64 << 20;

/// What a directory holds.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// What to report.
    pub recovered: Recovered,
    /// Segments in use, oldest first; the last is the active one.
    pub segments: Vec<Segment>,
    /// The generation of all of them.
    pub generation: u64,
    /// Where garbage begins and ends in the active segment, in bytes: to be zeroed before it is written again.
    pub torn: Option<(u64, u64)>,
    /// Files of no use: blank segments, temporary files, older generations.
    pub unused: Vec<std::path::PathBuf>,
    /// Segments with history behind the first damage (the damaged one included, if nothing of it is in use).
    pub behind: Vec<u32>,
    /// The active segment has history behind the damage as well.
    pub active_damaged: bool,
    /// The highest number that any segment has.
    pub last_index: u32,
}

/// Where a walk over one segment ended.
struct Walk {
    segment: Segment,
    epochs: Vec<(Epoch, Position)>,
    /// Bytes in the file.
    len: u64,
    /// Why it ended before the file did; `None`: only zeroes follow.
    bad: Option<Bad>,
    /// The mark, where it says that more was synced than is there.
    mark: Option<Mark>,
}

/// A place where a frame should be and is not.
struct Bad {
    what: String,
    /// The end of the last byte that is not zero.
    garbage_end: u64,
    /// The last record of any valid header behind, and where its frame ends.
    seen: Option<(Seq, u64)>,
}

/// Reads the directory. `group_bytes` is the reach of one write, for [`Corrupt::maybe_torn`].
pub(super) fn scan(dir: &Path, group_bytes: usize) -> Result<Scan, JournalError> {
    let mut scan = Scan::default();
    let found = list(dir, &mut scan)?;
    let newest = found.iter().filter_map(|(_, page)| good(page)).max_by_key(|header| header.generation).cloned();
    let Some(newest) = &newest else { return without_header(dir, scan, &found) };
    scan.generation = newest.generation;
    let history = newest.history;
    let first =
        found.iter().position(|(_, page)| good(page).is_some_and(|header| header.generation == newest.generation));
    let (old, current) = found.split_at(first.unwrap_or(0));
    scan.unused.extend(old.iter().map(|(index, _)| segment_path(dir, *index)));
    scan.recovered.history = Some(history);
    let mut at = 0;
    let mut bytes = Vec::new();
    while let Some((index, page)) = current.get(at) {
        let last = scan.segments.last();
        let expected = last.map(|segment| segment.end);
        let path = segment_path(dir, *index);
        if let Some(last) = last.filter(|last| last.index + 1 != *index) {
            let (file, what) = (segment_path(dir, last.index + 1), "the segment is missing".to_owned());
            let behind = scan.behind.len();
            give_up(dir, &mut scan, &current[at..], Corrupt { file, offset: 0, what, ..nothing_lost() })?;
            if scan.behind.len() == behind {
                // Only blank ones follow: of two that were prepared the first was about to be used, or is removed.
                scan.recovered.corrupt.pop();
            }
            break;
        }
        let start = good(page).map(|header| header.start).or(expected);
        let continues = expected.is_none_or(|expected| Some(expected) == start);
        let same = good(page).is_none_or(|h| h.history == history && h.generation == newest.generation);
        let (Some(start), true, true) = (start, continues, same) else {
            let what = "the segment does not continue the one before".to_owned();
            give_up(dir, &mut scan, &current[at..], Corrupt { file: path, offset: 0, what, ..nothing_lost() })?;
            break;
        };
        if let Some((segment, epochs)) = told(&path, *index, start, current.get(at + 1), newest) {
            scan.recovered.epochs.extend(epochs);
            scan.segments.push(segment);
            at += 1;
            continue;
        }
        read_prefix(&path, MAX_SEGMENT_BYTES, &mut bytes)?;
        let mut walk = walk(&bytes, *index, start, history);
        walk.mark = Mark::read(&bytes, *index, newest.generation).filter(|mark| mark.offset > walk.segment.end_offset);
        let blank = walk.segment.is_empty() && good(page).is_none() && walk.mark.is_none();
        if blank && walk.bad.as_ref().is_none_or(|bad| bad.seen.is_none()) {
            // Prepared and never used, or its very first write was cut short.
            scan.recovered.torn_bytes += walk.bad.map_or(0, |bad| bad.garbage_end - FRAMES_OFFSET);
            scan.unused.push(path);
            at += 1;
            // Blank segments can only be last.
            if let Some(rest) = current[at..].iter().position(|(_, page)| good(page).is_some()) {
                let (file, what) = (segment_path(dir, *index), "the segment is blank".to_owned());
                give_up(dir, &mut scan, &current[at + rest..], Corrupt { file, offset: 0, what, ..nothing_lost() })?;
                break;
            }
            continue;
        }
        if !take(dir, &mut scan, walk, &current[at + 1..], group_bytes)? {
            break;
        }
        at += 1;
    }
    finish(&mut scan);
    Ok(scan)
}

/// A segment as the header of the one behind it tells of it; `None`: it does not, or the file is too short for it.
fn told(
    path: &Path,
    index: u32,
    start: Position,
    next: Option<&(u32, HeaderPage)>,
    newest: &SegmentHeader,
) -> Option<(Segment, Vec<(Epoch, Position)>)> {
    let (_, next) = next.filter(|(next, _)| *next == index + 1)?;
    let next = good(next).filter(|next| (next.generation, next.history) == (newest.generation, newest.history))?;
    let before = next.before.as_ref()?;
    let len = fs::metadata(path).ok()?.len();
    let plausible = (FRAMES_OFFSET..=len).contains(&before.end_offset) && next.start.seq >= start.seq;
    let (end, end_offset) = (next.start, before.end_offset);
    let segment = Segment { end, end_offset, ..Segment::begin(index, start, len) };
    plausible.then(|| (segment, before.epochs.clone()))
}

/// Adds a walked segment; false: the history ends in it.
fn take(
    dir: &Path,
    scan: &mut Scan,
    walk: Walk,
    rest: &[(u32, HeaderPage)],
    group_bytes: usize,
) -> Result<bool, JournalError> {
    let Walk { segment, epochs, len, bad, mark } = walk;
    let (index, end, offset) = (segment.index, segment.end, segment.end_offset);
    scan.recovered.epochs.extend(epochs);
    scan.segments.push(Segment { capacity: len.max(offset), ..segment });
    let more = rest.iter().any(|(_, page)| good(page).is_some_and(|header| header.generation == scan.generation));
    let continued = rest.first().and_then(|(_, page)| good(page)).is_some_and(|header| header.start == end);
    let bad = match (bad, mark) {
        (Some(bad), _) => bad,
        (None, Some(_)) => {
            Bad { what: "nothing is where frames were synced".to_owned(), garbage_end: offset, seen: None }
        }
        (None, None) => return Ok(true),
    };
    if continued {
        // Garbage between the last frame and the next segment's beginning: nothing is missing.
        return Ok(true);
    }
    if bad.seen.is_none() && !more && mark.is_none() {
        scan.recovered.torn_bytes += bad.garbage_end - offset;
        scan.torn = Some((offset, bad.garbage_end));
        return Ok(true);
    }
    scan.active_damaged = bad.seen.is_some() || bad.garbage_end > offset || mark.is_some();
    let in_reach = bad.seen.is_some_and(|(_, seen_end)| seen_end - offset <= (group_bytes + MAX_FRAME_BYTES) as u64);
    let maybe_torn = !more && mark.is_none() && in_reach;
    let last = bad.seen.map_or(end.seq, |(seq, _)| seq).max(mark.map_or(end.seq, |mark| mark.seq)).0;
    let corrupt =
        Corrupt { file: segment_path(dir, index), offset, what: bad.what, lost: end.seq.0 + 1..=last, maybe_torn };
    give_up(dir, scan, rest, corrupt)?;
    Ok(false)
}

/// Ends the history before `rest`, which holds more of it.
fn give_up(dir: &Path, scan: &mut Scan, rest: &[(u32, HeaderPage)], mut corrupt: Corrupt) -> Result<(), JournalError> {
    let end = scan.segments.last().map_or(0, |segment| segment.end.seq.0);
    let mut last = *corrupt.lost.end();
    let mut bytes = Vec::new();
    for (index, page) in rest {
        let path = segment_path(dir, *index);
        read_prefix(&path, MAX_SEGMENT_BYTES, &mut bytes)?;
        let seen =
            scan.recovered.history.and_then(|history| last_seen(&bytes, FRAMES_OFFSET as usize, Seq(end), history));
        match (seen, page) {
            (None, HeaderPage::Blank | HeaderPage::Bad) => scan.unused.push(path),
            _ => scan.behind.push(*index),
        }
        last = last.max(seen.map_or(0, |(seq, _)| seq.0)).max(good(page).map_or(0, |header| header.start.seq.0));
    }
    corrupt.lost = end + 1..=last;
    scan.recovered.corrupt.push(corrupt);
    Ok(())
}

fn finish(scan: &mut Scan) {
    if let (Some(first), Some(last)) = (scan.segments.first(), scan.segments.last()) {
        scan.recovered.oldest = first.start;
        scan.recovered.end = last.end;
    } else {
        scan.recovered.history = None;
    }
    if let Some((_, sealed)) = scan.segments.split_last_mut() {
        sealed.iter_mut().for_each(|segment| segment.sealed = true);
    }
}

/// No header can be read: an empty journal, unless frames lie there.
fn without_header(dir: &Path, mut scan: Scan, found: &[(u32, HeaderPage)]) -> Result<Scan, JournalError> {
    let mut bytes = Vec::new();
    for (index, page) in found {
        let path = segment_path(dir, *index);
        read_prefix(&path, MAX_SEGMENT_BYTES, &mut bytes)?;
        let frames = bytes.get(FRAMES_OFFSET as usize..).unwrap_or_default();
        match CheckedFrame::check_first(frames) {
            Ok((frame, _)) => {
                let (history, first) = (frame.header().history(), frame.header().first_seq());
                let last = last_seen(&bytes, FRAMES_OFFSET as usize, Seq(0), history).map_or(first, |(seq, _)| seq);
                let what = "both copies of the header are damaged".to_owned();
                let lost = first.0..=last.0;
                scan.recovered.corrupt.push(Corrupt { file: path, offset: 0, what, lost, maybe_torn: false });
                scan.behind.push(*index);
            }
            Err(_) => {
                scan.recovered.torn_bytes += u64::from(*page == HeaderPage::Bad) * FRAMES_OFFSET;
                scan.unused.push(path);
            }
        }
    }
    Ok(scan)
}

fn nothing_lost() -> Corrupt {
    Corrupt { file: Default::default(), offset: 0, what: String::new(), lost: 0..=0, maybe_torn: false }
}

fn good(page: &HeaderPage) -> Option<&SegmentHeader> {
    match page {
        HeaderPage::Good(header) => Some(header),
        HeaderPage::Blank | HeaderPage::Bad => None,
    }
}

/// The segment files in order of their numbers, each with its header page. Temporary files are unused.
fn list(dir: &Path, scan: &mut Scan) -> Result<Vec<(u32, HeaderPage)>, JournalError> {
    let mut found = Vec::new();
    let mut page = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("read", dir))? {
        let entry = entry.map_err(failed("read", dir))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(index) = segment_index(name) {
            read_prefix(&entry.path(), FRAMES_OFFSET, &mut page)?;
            found.push((index, SegmentHeader::read(&page, index)));
            scan.last_index = scan.last_index.max(index);
        } else if name.strip_suffix(".tmp").is_some_and(|stem| segment_index(&format!("{stem}.seg")).is_some()) {
            scan.unused.push(entry.path());
        }
    }
    found.sort_by_key(|(index, _)| *index);
    Ok(found)
}

/// Follows the chain through one segment.
fn walk(bytes: &[u8], index: u32, start: Position, history: HistoryId) -> Walk {
    let mut segment = Segment::begin(index, start, bytes.len() as u64);
    let mut epochs = Vec::new();
    let mut at = FRAMES_OFFSET as usize;
    loop {
        let rest = bytes.get(at..).unwrap_or_default();
        let what = match CheckedFrame::check_first(rest) {
            Ok((frame, _)) if frame.header().history() != history => "a frame of another history".to_owned(),
            Ok((frame, _)) if !frame.header().follows(&segment.end) => {
                "a frame that does not continue the chain".to_owned()
            }
            Ok((frame, _)) => {
                if frame.position().epoch > segment.end.epoch {
                    epochs.push((frame.position().epoch, segment.end));
                }
                segment.extend(frame.header().first_seq(), frame.position(), frame.bytes().len() as u64);
                at += frame.bytes().len();
                continue;
            }
            Err(error) => error.to_string(),
        };
        let bad = rest.iter().rposition(|byte| *byte != 0).map(|last| {
            let seen = last_seen(bytes, at, segment.end.seq, history);
            Bad { what, garbage_end: (at + last + 1) as u64, seen }
        });
        return Walk { segment, epochs, len: bytes.len() as u64, bad, mark: None };
    }
}

/// The last record of any frame of `history` after `seq` whose header holds, from byte `from` on, and where it ends.
fn last_seen(bytes: &[u8], from: usize, seq: Seq, history: HistoryId) -> Option<(Seq, u64)> {
    let mut seen = None;
    let mut at = from;
    while let Some(rest) = bytes.get(at..).filter(|rest| rest.len() >= HEADER_BYTES) {
        // The first byte of the magic stands for all of it while searching.
        let Some(next) = rest.iter().position(|byte| *byte == MAGIC[0]) else { break };
        at += next;
        match UncheckedHeader::parse(&bytes[at..]) {
            Ok(header) if header.history() == history && header.seqs().1 > seq => {
                let intact = CheckedFrame::check_first(&bytes[at..]).is_ok();
                // The damaged frame itself is not "behind": it may be the torn last one.
                if intact {
                    seen = Some((header.seqs().1, (at + header.frame_bytes()) as u64));
                }
                at += if intact { header.frame_bytes() } else { 1 };
            }
            _ => at += 1,
        }
    }
    seen
}

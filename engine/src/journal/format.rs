//! The layout of a segment file: a header page with two copies of the header and a mark, then frames back to back, then
//! zeroes.
//!
//! A header says what the segment before holds, so that this one need not be read to be known: where its last frame ends
//! and which epochs begin in it. The mark says how far this segment is known to be on disk. Either is believed only with
//! its checksum; one damaged copy of the header costs nothing. All numbers little-endian.

use std::path::{Path, PathBuf};

use ringpair_wire::{
    checksum::checksum,
    id::{ChainHash, Epoch, HistoryId, Position, Seq},
};

/// The unit in which files lie in memory and on disk, in bytes.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Where the first frame begins, in bytes.
pub(super) const FRAMES_OFFSET: u64 = PAGE_BYTES;
/// Where the second copy of the header lies: in another sector than the first.
const SECOND_COPY: usize = 2048;
/// Where the mark lies: in another sector than either copy.
pub(super) const MARK_OFFSET: u64 = 3584;
const MAGIC: [u8; 4] = *b"RPJS";
const MARK_MAGIC: [u8; 4] = *b"RPJW";
const VERSION: u16 = 2;
/// Epoch, and the position that its first frame follows (epoch, seq, chain).
const EPOCH_BYTES: usize = 8 + 8 + 8 + 16;
/// How many epochs of the segment before a header names; of more it says nothing, and that segment is read.
const MAX_EPOCHS: usize = 32;
/// Stands for the number of epochs where nothing is said about the segment before.
const UNTOLD: u16 = u16::MAX;
/// Magic, version, epochs of the segment before, index, dictionary, generation, history, start (epoch, seq, chain).
const FIXED_BYTES: usize = 4 + 2 + 2 + 4 + 4 + 8 + 16 + 8 + 8 + 16;
/// Then where the last frame of the segment before ends, and its epochs.
const SUMMED_BYTES: usize = FIXED_BYTES + 8 + MAX_EPOCHS * EPOCH_BYTES;
const COPY_BYTES: usize = SUMMED_BYTES + 8;
/// Magic, index, generation, offset, seq, checksum.
const MARK_BYTES: usize = 4 + 4 + 8 + 8 + 8 + 8;

/// What a segment says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Its number, as in its name.
    pub index: u32,
    /// Grows with every reset: segments of an older one are left over.
    pub generation: u64,
    /// The history of its frames.
    pub history: HistoryId,
    /// The position before its first frame.
    pub start: Position,
    /// What the segment before holds, if that is told.
    pub before: Option<Before>,
}

/// What a segment holds, as told by the one behind it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Before {
    /// Where its last frame ends, in bytes.
    pub end_offset: u64,
    /// Each epoch that begins in it, with the position that its first frame follows; ascending.
    pub epochs: Vec<(Epoch, Position)>,
}

/// How far a segment is known to be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// The segment's number.
    pub index: u32,
    /// Its generation.
    pub generation: u64,
    /// Everything before this byte was synced.
    pub offset: u64,
    /// The last record before it.
    pub seq: Seq,
}

impl Mark {
    /// The bytes at [`MARK_OFFSET`].
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut mark = Vec::with_capacity(MARK_BYTES);
        mark.extend_from_slice(&MARK_MAGIC);
        mark.extend_from_slice(&self.index.to_le_bytes());
        mark.extend_from_slice(&self.generation.to_le_bytes());
        mark.extend_from_slice(&self.offset.to_le_bytes());
        mark.extend_from_slice(&self.seq.0.to_le_bytes());
        mark.extend_from_slice(&checksum(1, &mark).to_le_bytes());
        mark
    }

    /// Reads the mark out of a segment file; `None`: there is none of this segment, or it was cut short.
    pub(super) fn read(file: &[u8], index: u32, generation: u64) -> Option<Self> {
        let bytes = file.get(MARK_OFFSET as usize..)?.get(..MARK_BYTES)?;
        let (summed, sum) = bytes.split_at(MARK_BYTES - 8);
        let mark = Self {
            index: u32::from_le_bytes(*summed[4..].first_chunk()?),
            generation: u64_at(summed, 8)?,
            offset: u64_at(summed, 16)?,
            seq: Seq(u64_at(summed, 24)?),
        };
        let sound = sum == checksum(1, summed).to_le_bytes() && summed[..4] == MARK_MAGIC;
        (sound && (mark.index, mark.generation) == (index, generation)).then_some(mark)
    }

    /// Takes the mark out of the beginning of a segment file that is about to be cut.
    pub(super) fn remove(prefix: &mut [u8]) {
        let from = prefix.len().min(MARK_OFFSET as usize);
        let to = prefix.len().min(MARK_OFFSET as usize + MARK_BYTES);
        prefix[from..to].fill(0);
    }
}

/// What the header page of a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HeaderPage {
    /// A header.
    Good(SegmentHeader),
    /// Nothing yet.
    Blank,
    /// Neither.
    Bad,
}

impl SegmentHeader {
    /// The whole header page, without a mark.
    pub(super) fn page(&self) -> Vec<u8> {
        let before = self.before.as_ref().filter(|before| before.epochs.len() <= MAX_EPOCHS);
        let epoch_count = before.map_or(UNTOLD, |before| before.epochs.len() as u16);
        let mut copy = Vec::with_capacity(COPY_BYTES);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&VERSION.to_le_bytes());
        copy.extend_from_slice(&epoch_count.to_le_bytes());
        copy.extend_from_slice(&self.index.to_le_bytes());
        // No dictionary: frames are compressed by themselves.
        copy.extend_from_slice(&[0; 4]);
        copy.extend_from_slice(&self.generation.to_le_bytes());
        copy.extend_from_slice(&self.history.0);
        push_position(&mut copy, &self.start);
        copy.extend_from_slice(&before.map_or(0, |before| before.end_offset).to_le_bytes());
        for (epoch, after) in before.iter().flat_map(|before| &before.epochs) {
            copy.extend_from_slice(&epoch.0.to_le_bytes());
            push_position(&mut copy, after);
        }
        copy.resize(SUMMED_BYTES, 0);
        copy.extend_from_slice(&checksum(0, &copy).to_le_bytes());
        let mut page = vec![0; FRAMES_OFFSET as usize];
        page[..COPY_BYTES].copy_from_slice(&copy);
        page[SECOND_COPY..SECOND_COPY + COPY_BYTES].copy_from_slice(&copy);
        page
    }

    /// Reads one copy. One of the first version, which told nothing of the segment before, is as good.
    fn parse(copy: &[u8]) -> Option<Self> {
        let version = u16::from_le_bytes(*copy.get(4..)?.first_chunk()?);
        let summed_bytes = match version {
            1 => FIXED_BYTES,
            VERSION => SUMMED_BYTES,
            _ => return None,
        };
        let (summed, sum) = copy.get(..summed_bytes + 8)?.split_at(summed_bytes);
        if sum != checksum(0, summed).to_le_bytes() || summed[..4] != MAGIC {
            return None;
        }
        let count = u16::from_le_bytes(*summed[6..].first_chunk()?);
        let before = if version == VERSION && usize::from(count) <= MAX_EPOCHS {
            let epochs = summed[FIXED_BYTES + 8..].chunks_exact(EPOCH_BYTES).take(count.into());
            let epochs = epochs.map(|entry| Some((Epoch(u64_at(entry, 0)?), position_at(entry, 8)?)));
            Some(Before { end_offset: u64_at(summed, FIXED_BYTES)?, epochs: epochs.collect::<Option<_>>()? })
        } else {
            None
        };
        Some(Self {
            index: u32::from_le_bytes(*summed[8..].first_chunk()?),
            generation: u64_at(summed, 16)?,
            history: HistoryId(*summed[24..].first_chunk()?),
            start: position_at(summed, 40)?,
            before,
        })
    }

    /// Reads the header page of the segment `index`; `file` may be cut short.
    pub(super) fn read(file: &[u8], index: u32) -> HeaderPage {
        let page = &file[..file.len().min(FRAMES_OFFSET as usize)];
        let copies = [Some(page), page.get(SECOND_COPY..)];
        match copies.into_iter().flatten().filter_map(Self::parse).find(|header| header.index == index) {
            Some(header) => HeaderPage::Good(header),
            None if page.iter().all(|byte| *byte == 0) => HeaderPage::Blank,
            None => HeaderPage::Bad,
        }
    }

    /// Whether a header page read back holds this header, twice and in this version.
    pub(super) fn is_in(&self, page: &[u8]) -> bool {
        page.get(..MARK_OFFSET as usize) == Some(&self.page()[..MARK_OFFSET as usize])
    }
}

fn push_position(bytes: &mut Vec<u8>, position: &Position) {
    bytes.extend_from_slice(&position.epoch.0.to_le_bytes());
    bytes.extend_from_slice(&position.seq.0.to_le_bytes());
    bytes.extend_from_slice(&position.chain.0.to_le_bytes());
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn position_at(bytes: &[u8], at: usize) -> Option<Position> {
    let chain = ChainHash(u128::from_le_bytes(*bytes.get(at + 16..)?.first_chunk()?));
    Some(Position { epoch: Epoch(u64_at(bytes, at)?), seq: Seq(u64_at(bytes, at + 8)?), chain })
}

/// The file of a segment.
pub(super) fn segment_path(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("{index:08}.seg"))
}

/// The number of a segment by its file name.
pub(super) fn segment_index(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".seg")?;
    (digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        let start = Position { epoch: Epoch(65_537), seq: Seq(77), chain: ChainHash(0x1234_5678_9abc) };
        let epochs = vec![(Epoch(3), Position { seq: Seq(9), ..start }), (Epoch(65_537), Position::default())];
        let before = Some(Before { end_offset: 50_000, epochs });
        SegmentHeader { index: 12, generation: 3, history: HistoryId([9; 16]), start, before }
    }

    #[test]
    fn a_header_of_the_first_version_is_read_and_one_with_too_many_epochs_tells_nothing() {
        let mut old = header().page()[..FIXED_BYTES].to_vec();
        old[4..8].copy_from_slice(&[1, 0, 0, 0]);
        let sum = checksum(0, &old);
        old.extend_from_slice(&sum.to_le_bytes());
        old.resize(4096, 0);
        let untold = SegmentHeader { before: None, ..header() };
        assert_eq!(SegmentHeader::read(&old, 12), HeaderPage::Good(untold.clone()));
        assert!(!untold.is_in(&old) && untold.is_in(&untold.page()));
        let epochs = vec![(Epoch(3), Position::default()); MAX_EPOCHS + 1];
        let many = SegmentHeader { before: Some(Before { end_offset: 5, epochs }), ..header() };
        assert_eq!(SegmentHeader::read(&many.page(), 12), HeaderPage::Good(untold));
    }

    #[test]
    fn a_mark_is_of_its_segment_and_whole_or_none() {
        let mark = Mark { index: 12, generation: 3, offset: 9000, seq: Seq(70) };
        let mut page = header().page();
        assert_eq!(Mark::read(&page, 12, 3), None);
        page[MARK_OFFSET as usize..][..MARK_BYTES].copy_from_slice(&mark.bytes());
        assert_eq!(Mark::read(&page, 12, 3), Some(mark));
        assert!(header().is_in(&page), "beside the header");
        assert_eq!((Mark::read(&page, 13, 3), Mark::read(&page, 12, 4)), (None, None));
        for bit in MARK_OFFSET as usize * 8..(MARK_OFFSET as usize + MARK_BYTES) * 8 {
            page[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::read(&page, 12, 3), None);
            page[bit / 8] ^= 1 << (bit % 8);
        }
        Mark::remove(&mut page);
        assert_eq!(page, header().page());
    }

    #[test]
    fn no_single_flipped_bit_costs_the_header() {
        let page = header().page();
        assert_eq!(page.len() as u64, FRAMES_OFFSET);
        for at in (0..COPY_BYTES * 8).chain(SECOND_COPY * 8..(SECOND_COPY + COPY_BYTES) * 8) {
            let mut flipped = page.clone();
            flipped[at / 8] ^= 1 << (at % 8);
            assert_eq!(SegmentHeader::read(&flipped, 12), HeaderPage::Good(header()));
        }
    }

    #[test]
    fn a_header_cut_short_blank_or_of_another_file_is_none() {
        let mut page = header().page();
        assert_eq!(SegmentHeader::read(&page, 13), HeaderPage::Bad);
        assert_eq!(SegmentHeader::read(&page[..COPY_BYTES - 1], 12), HeaderPage::Bad);
        assert_eq!(SegmentHeader::read(&[0; 4096], 12), HeaderPage::Blank);
        assert_eq!(SegmentHeader::read(&[], 12), HeaderPage::Blank);
        (page[0], page[SECOND_COPY]) = (0, 0);
        assert_eq!(SegmentHeader::read(&page, 12), HeaderPage::Bad);
    }

    #[test]
    fn names() {
        assert_eq!(segment_path(Path::new("/j"), 7), Path::new("/j/00000007.seg"));
        assert_eq!(segment_index("00000007.seg"), Some(7));
        for name in ["7.seg", "00000007.tmp", "0000000x.seg", "+0000007.seg", "lock"] {
            assert_eq!(segment_index(name), None, "{name}");
        }
    }
}

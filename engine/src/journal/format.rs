//! The layout of a segment file: a header page with two copies of the header, then frames back to back, then zeroes.
//!
//! A header is believed only with its checksum; one damaged copy costs nothing. All numbers little-endian.

use std::path::{Path, PathBuf};

use ringpair_wire::{
    checksum::checksum,
    id::{ChainHash, Epoch, HistoryId, Position, Seq},
};

/// Where the first frame begins, in bytes.
pub(super) const FRAMES_OFFSET: u64 = 4096;
/// Where the second copy of the header lies: in another sector than the first.
const SECOND_COPY: usize = 2048;
const MAGIC: [u8; 4] = *b"RPJS";
const VERSION: u16 = 1;
/// Magic, version, reserved, index, dictionary, generation, history, start (epoch, seq, chain).
const SUMMED_BYTES: usize = 4 + 2 + 2 + 4 + 4 + 8 + 16 + 8 + 8 + 16;
const COPY_BYTES: usize = SUMMED_BYTES + 8;

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    /// Its number, as in its name.
    pub index: u32,
    /// Grows with every reset: segments of an older one are left over.
    pub generation: u64,
    /// The history of its frames.
    pub history: HistoryId,
    /// The position before its first frame.
    pub start: Position,
}

/// What the header page of a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderPage {
    /// A header.
    Good(SegmentHeader),
    /// Nothing yet.
    Blank,
    /// Neither.
    Bad,
}

impl SegmentHeader {
    /// The whole header page.
    pub(super) fn page(&self) -> Vec<u8> {
        let mut copy = Vec::with_capacity(COPY_BYTES);
        copy.extend_from_slice(&MAGIC);
        copy.extend_from_slice(&VERSION.to_le_bytes());
        copy.extend_from_slice(&[0; 2]);
        copy.extend_from_slice(&self.index.to_le_bytes());
        // No dictionary: frames are compressed by themselves.
        copy.extend_from_slice(&[0; 4]);
        copy.extend_from_slice(&self.generation.to_le_bytes());
        copy.extend_from_slice(&self.history.0);
        copy.extend_from_slice(&self.start.epoch.0.to_le_bytes());
        copy.extend_from_slice(&self.start.seq.0.to_le_bytes());
        copy.extend_from_slice(&self.start.chain.0.to_le_bytes());
        copy.extend_from_slice(&checksum(0, &copy).to_le_bytes());
        let mut page = vec![0; FRAMES_OFFSET as usize];
        page[..COPY_BYTES].copy_from_slice(&copy);
        page[SECOND_COPY..SECOND_COPY + COPY_BYTES].copy_from_slice(&copy);
        page
    }

    /// Reads one copy.
    fn parse(copy: &[u8]) -> Option<Self> {
        let (summed, sum) = copy.get(..COPY_BYTES)?.split_at(SUMMED_BYTES);
        if sum != checksum(0, summed).to_le_bytes() || summed[..4] != MAGIC || summed[4..6] != VERSION.to_le_bytes() {
            return None;
        }
        let u64_at = |at: usize| summed[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        let epoch = Epoch(u64_at(40)?);
        let seq = Seq(u64_at(48)?);
        let chain = ChainHash(u128::from_le_bytes(*summed[56..].first_chunk()?));
        Some(Self {
            index: u32::from_le_bytes(*summed[8..].first_chunk()?),
            generation: u64_at(16)?,
            history: HistoryId(*summed[24..].first_chunk()?),
            start: Position { epoch, seq, chain },
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
        SegmentHeader { index: 12, generation: 3, history: HistoryId([9; 16]), start }
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

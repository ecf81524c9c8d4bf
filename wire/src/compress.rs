//! Compression of batches and of bulk blocks: independent zstd frames, contexts and buffers reused.
//!
//! Always: what does not shrink enough is left plain; expanding is bounded by a length that was checked before.
//! Never: state carried from one block into the next.

use std::{fmt, io, str::FromStr};

/// Blocks shorter than this are left plain: a zstd frame's own header eats the gain.
pub const MIN_BYTES: usize = 128;
/// After this many fruitless trials, `auto` tries one block in this many.
const MAX_SKIPPED: u32 = 16;
/// Of a block at least four times as long, `auto` tries this many bytes out of its middle first.
const SAMPLE_BYTES: usize = 16 << 10;

/// The setting of `[compression]`: `off`, `auto`, or a zstd level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Everything stays plain.
    Off,
    /// Level 1, kept where a block shrinks by a tenth or more; where blocks (or a sample of a long one) do not, fewer
    /// and fewer are tried. Callers that know how fast their link is leave it out where the link outruns it.
    #[default]
    Auto,
    /// This level, 1 to 19, kept where a block shrinks at all.
    Level(u8),
}

/// A compression setting that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("compression {0:?} is none of off, auto, 1..19. Try: auto")]
pub struct CompressionError(String);

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            _ => match text.parse() {
                Ok(level @ 1..=19) => Ok(Self::Level(level)),
                _ => Err(CompressionError(text.into())),
            },
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::Level(level) => level.fmt(f),
        }
    }
}

/// Compresses block after block, each by itself.
pub struct Compressor {
    setting: Compression,
    /// Made when first needed.
    context: Option<zstd::bulk::Compressor<'static>>,
    /// `auto`: how many blocks to pass over before the next trial.
    skip: u32,
    /// `auto`: how many were passed over last time.
    skipped: u32,
    totals: Totals,
}

/// Bytes before and after compression, of all blocks so far; what stays plain counts the same in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Before.
    pub plain_bytes: u64,
    /// After.
    pub stored_bytes: u64,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("setting", &self.setting).field("skip", &self.skip).finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor with this setting.
    #[must_use]
    pub const fn new(setting: Compression) -> Self {
        Self { setting, context: None, skip: 0, skipped: 0, totals: Totals { plain_bytes: 0, stored_bytes: 0 } }
    }

    /// The setting.
    #[must_use]
    pub const fn setting(&self) -> Compression {
        self.setting
    }

    /// Bytes before and after, so far.
    #[must_use]
    pub const fn totals(&self) -> Totals {
        self.totals
    }

    /// Counts a block that is left plain without asking.
    pub const fn pass(&mut self, plain_bytes: usize) {
        self.totals.plain_bytes += plain_bytes as u64;
        self.totals.stored_bytes += plain_bytes as u64;
    }

    /// Appends `plain`, compressed, to `out` if that pays; otherwise leaves `out` as it was. Says whether it did.
    pub fn compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let start = out.len();
        let kept = self.try_compress(plain, out);
        self.totals.plain_bytes += plain.len() as u64;
        self.totals.stored_bytes += if kept { out.len() - start } else { plain.len() } as u64;
        kept
    }

    fn try_compress(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        let (level, room) = match self.setting {
            Compression::Off => return false,
            _ if plain.len() < MIN_BYTES => return false,
            Compression::Auto if self.skip > 0 => {
                self.skip -= 1;
                return false;
            }
            Compression::Auto => (1, worthwhile(plain)),
            Compression::Level(level) => (i32::from(level), plain.len() - 1),
        };
        let hopeful = self.setting != Compression::Auto || self.sample_shrinks(plain, out);
        let kept = hopeful && self.compress_into_room(level, plain, out, room);
        if kept {
            self.skipped = 0;
        } else {
            self.skipped = (self.skipped * 2).clamp(1, MAX_SKIPPED - 1);
            self.skip = self.skipped;
        }
        kept
    }

    /// Whether a part of a long block shrinks: a short one is its own sample.
    fn sample_shrinks(&mut self, plain: &[u8], out: &mut Vec<u8>) -> bool {
        if plain.len() < 4 * SAMPLE_BYTES {
            return true;
        }
        let sample = &plain[plain.len() / 2..][..SAMPLE_BYTES];
        let start = out.len();
        let shrinks = self.compress_into_room(1, sample, out, worthwhile(sample));
        out.truncate(start);
        shrinks
    }

    /// Compresses into at most `room` bytes behind what `out` holds: what does not fit is not worth keeping.
    fn compress_into_room(&mut self, level: i32, plain: &[u8], out: &mut Vec<u8>, room: usize) -> bool {
        if self.context.is_none() {
            self.context = zstd::bulk::Compressor::new(level).ok();
        }
        let Some(context) = &mut self.context else { return false };
        let start = out.len();
        out.resize(start + room, 0);
        let written = context.compress_to_buffer(plain, &mut out[start..]).ok();
        out.truncate(start + written.unwrap_or(0));
        written.is_some()
    }
}

/// What `auto` keeps: a tenth less, at least.
const fn worthwhile(plain: &[u8]) -> usize {
    plain.len() - plain.len() / 10
}

/// Why a block cannot be expanded.
#[derive(Debug, thiserror::Error)]
pub enum ExpandError {
    /// Damaged, or longer than it says.
    #[error("compressed block of {stored} bytes does not expand to {expected} bytes: {source}")]
    Damaged {
        /// The length of the compressed block.
        stored: usize,
        /// The length it should expand to.
        expected: usize,
        /// What zstd says.
        source: io::Error,
    },
    /// Shorter than it says.
    #[error("compressed block expands to {got} bytes, expected {expected}")]
    Length {
        /// What came out.
        got: usize,
        /// What should have.
        expected: usize,
    },
}

/// Expands block after block into one reused buffer.
#[derive(Default)]
pub struct Decompressor {
    /// Made when first needed.
    context: Option<zstd::bulk::Decompressor<'static>>,
    buffer: Vec<u8>,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decompressor").field("buffer_bytes", &self.buffer.capacity()).finish_non_exhaustive()
    }
}

impl Decompressor {
    /// A decompressor with an empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Expands a block that must become exactly `expected` bytes. The caller has compared `expected` with its bound:
    /// that much is allocated, never more (W-12). The result lives until the next call.
    ///
    /// # Errors
    /// [`ExpandError`].
    pub fn expand(&mut self, stored: &[u8], expected: usize) -> Result<&[u8], ExpandError> {
        let damaged = |source| ExpandError::Damaged { stored: stored.len(), expected, source };
        let context = match &mut self.context {
            Some(context) => context,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(damaged)?),
        };
        if self.buffer.len() < expected {
            self.buffer.resize(expected, 0);
        }
        let room = &mut self.buffer[..expected];
        let got = context.decompress_to_buffer(stored, room).map_err(damaged)?;
        if got != expected {
            return Err(ExpandError::Length { got, expected });
        }
        Ok(&self.buffer[..expected])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that do not shrink.
    fn noise(count: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..count)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect()
    }

    #[test]
    fn settings_parse_and_print() {
        for text in ["off", "auto", "1", "19"] {
            assert_eq!(text.parse::<Compression>().unwrap().to_string(), text);
        }
        for bad in ["", "0", "20", "on", "-1"] {
            assert!(bad.parse::<Compression>().unwrap_err().to_string().contains("1..19"));
        }
    }

    #[test]
    fn what_does_not_shrink_stays_plain() {
        let mut out = b"head".to_vec();
        assert!(!Compressor::new(Compression::Auto).compress(&noise(4096), &mut out));
        assert!(!Compressor::new(Compression::Level(19)).compress(&noise(4096), &mut out));
        assert!(!Compressor::new(Compression::Off).compress(&[0; 4096], &mut out));
        assert_eq!(out, b"head");
    }

    #[test]
    fn auto_tries_less_often_where_nothing_shrinks_and_recovers() {
        let (mut auto, mut out) = (Compressor::new(Compression::Auto), Vec::new());
        for _ in 0..100 {
            assert!(!auto.compress(&noise(4096), &mut out));
        }
        let first = (0..MAX_SKIPPED).position(|_| auto.compress(&[7; 4096], &mut out));
        assert!(first.is_some(), "a block is tried at least every {MAX_SKIPPED}");
        assert!(auto.compress(&[7; 4096], &mut out), "and from then on each one");
    }

    #[test]
    fn a_long_block_is_judged_by_its_middle_and_everything_is_counted() {
        let (mut auto, mut out) = (Compressor::new(Compression::Auto), Vec::new());
        let mut block = vec![b'a'; 16 * SAMPLE_BYTES];
        let middle = block.len() / 2..block.len() / 2 + SAMPLE_BYTES;
        block[middle].copy_from_slice(&noise(SAMPLE_BYTES));
        assert!(!auto.compress(&block, &mut out), "its sample does not shrink");
        assert!(Compressor::new(Compression::Level(1)).compress(&block, &mut out), "a level tries the whole");
        let skipped = auto.totals();
        assert_eq!((skipped.plain_bytes, skipped.stored_bytes), (block.len() as u64, block.len() as u64));
        let text = vec![b'a'; 16 * SAMPLE_BYTES];
        out.clear();
        while !auto.compress(&text, &mut out) {}
        auto.pass(5);
        let totals = auto.totals();
        assert_eq!(totals.plain_bytes - totals.stored_bytes, (text.len() - out.len()) as u64);
    }

    #[test]
    fn expanding_is_bounded_and_exact_w12() {
        let plain = [b'a'; 10_000];
        let mut stored = Vec::new();
        assert!(Compressor::new(Compression::Level(3)).compress(&plain, &mut stored));
        let mut expander = Decompressor::new();
        assert_eq!(expander.expand(&stored, plain.len()).unwrap(), plain);
        assert!(matches!(expander.expand(&stored, 9_999), Err(ExpandError::Damaged { .. })));
        assert!(matches!(expander.expand(&stored, 10_001), Err(ExpandError::Length { got: 10_000, expected: 10_001 })));
        assert!(matches!(expander.expand(b"not zstd", 10), Err(ExpandError::Damaged { .. })));
    }
}

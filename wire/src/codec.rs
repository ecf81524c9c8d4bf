//! The byte reader and writer that every codec of this crate is built from (SPEC.md §1).
//!
//! Always: integers are fixed and little-endian, lengths and counts are minimal varints, each length is compared with
//! its bound *and* with the bytes that are there before anything is allocated. Never: a panic, or an allocation that
//! outgrows the input.

use crate::{
    ds::{ContentId, DsPath},
    id::{ChainHash, Epoch, HistoryId, MemberId, Position, Seq, Version},
};

/// Why bytes are not what they should be. `what` names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ends inside a field (W-1).
    #[error("{what}: needs {expected} bytes, got {got}")]
    Truncated {
        /// The field.
        what: &'static str,
        /// How many bytes it takes.
        expected: usize,
        /// How many are left.
        got: usize,
    },
    /// A length or count is over its bound (W-2).
    #[error("{what}: {got} is over the limit {max}")]
    TooLong {
        /// The field.
        what: &'static str,
        /// What the input says.
        got: u64,
        /// The greatest value accepted.
        max: u64,
    },
    /// A varint is longer than it must be, or over 64 bits (W-3).
    #[error("{what}: not a minimal varint of at most 64 bits")]
    Varint {
        /// The field.
        what: &'static str,
    },
    /// A tag, flag or enumerated value that this version does not know (W-4).
    #[error("{what}: got {got}, expected {expected}")]
    Tag {
        /// The field.
        what: &'static str,
        /// What the input says.
        got: u64,
        /// What is known, in words.
        expected: &'static str,
    },
    /// Text that is not UTF-8 (W-5).
    #[error("{what}: not UTF-8 at byte {at}")]
    Utf8 {
        /// The field.
        what: &'static str,
        /// The first byte that is wrong.
        at: usize,
    },
    /// A value that breaks the rule of its type: a path, a name, a duplicate.
    #[error("{what}: {why}")]
    Invalid {
        /// The field.
        what: &'static str,
        /// The rule that is broken.
        why: String,
    },
    /// Bytes follow the end of the value (W-6).
    #[error("{what}: {got} bytes after its end, expected none")]
    Trailing {
        /// The value.
        what: &'static str,
        /// How many.
        got: usize,
    },
}

/// A type with one encoding: whatever is decoded encodes to the same bytes again.
pub trait Codec: Sized {
    /// The name used in errors.
    const NAME: &'static str;

    /// Appends the encoding.
    fn encode(&self, writer: &mut Writer<'_>);

    /// Reads one value and leaves the reader behind it.
    ///
    /// # Errors
    /// [`DecodeError`] names the field, with got and expected.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// The encoding as bytes of its own.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut Writer::new(&mut out));
        out
    }

    /// Reads a value that takes all of `bytes`.
    ///
    /// # Errors
    /// As [`Self::decode`], and [`DecodeError::Trailing`].
    fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = Self::decode(&mut reader)?;
        reader.finish(Self::NAME)?;
        Ok(value)
    }
}

/// The longest prefix of `text` that is not over `max` bytes: for texts that are for people only.
#[must_use]
pub fn prefix(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Appends encoded fields to a vector.
#[derive(Debug)]
pub struct Writer<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// How many bytes `out` holds by now.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether `out` is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.out.push(value);
    }

    /// 0 or 1.
    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }

    /// Eight bytes, two's complement.
    pub fn i64(&mut self, value: i64) {
        self.raw(&value.to_le_bytes());
    }

    /// Sixteen bytes.
    pub fn u128(&mut self, value: u128) {
        self.raw(&value.to_le_bytes());
    }

    /// One to ten bytes, seven bits each, lowest first (W-3).
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    /// A count or length, as a varint.
    pub fn count(&mut self, value: usize) {
        self.varint(value as u64);
    }

    /// Bytes whose length the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Length, then bytes.
    pub fn blob(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }

    /// Length, then UTF-8.
    pub fn text(&mut self, text: &str) {
        self.blob(text.as_bytes());
    }

    /// 0, or 1 and what `some` writes.
    pub fn option<T>(&mut self, value: Option<T>, some: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            some(self, value);
        }
    }

    /// A member: 0 is A, 1 is B.
    pub fn member(&mut self, member: MemberId) {
        self.u8(match member {
            MemberId::A => 0,
            MemberId::B => 1,
        });
    }

    /// An epoch: eight bytes.
    pub fn epoch(&mut self, epoch: Epoch) {
        self.u64(epoch.0);
    }

    /// A sequence number: eight bytes.
    pub fn seq(&mut self, seq: Seq) {
        self.u64(seq.0);
    }

    /// A history id: sixteen bytes.
    pub fn history(&mut self, history: HistoryId) {
        self.raw(&history.0);
    }

    /// A chain hash: sixteen bytes.
    pub fn chain(&mut self, chain: ChainHash) {
        self.u128(chain.0);
    }

    /// Epoch, sequence number, chain hash: 32 bytes.
    pub fn position(&mut self, position: Position) {
        self.epoch(position.epoch);
        self.seq(position.seq);
        self.chain(position.chain);
    }

    /// Epoch and sequence number: sixteen bytes.
    pub fn version(&mut self, version: Version) {
        self.epoch(version.epoch);
        self.seq(version.seq);
    }

    /// A content digest: 32 bytes.
    pub fn content_id(&mut self, id: ContentId) {
        self.raw(&id.0);
    }

    /// A path, as the text of its `/` form.
    pub fn path(&mut self, path: &DsPath) {
        self.text(path.as_str());
    }
}

/// Reads fields off the front of untrusted bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

/// The greatest length of a path's text: every component with its slash.
pub const MAX_PATH_BYTES: usize = crate::ds::MAX_DEPTH * (crate::ds::MAX_NAME_BYTES + 1);

impl<'a> Reader<'a> {
    /// Reads `bytes` from the front.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.left.len()
    }

    /// Whether nothing is left.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes everything that is left.
    pub const fn rest(&mut self) -> &'a [u8] {
        let rest = self.left;
        self.left = &[];
        rest
    }

    /// Ends the reading: nothing may be left (W-6).
    ///
    /// # Errors
    /// [`DecodeError::Trailing`].
    pub const fn finish(self, what: &'static str) -> Result<(), DecodeError> {
        match self.left.len() {
            0 => Ok(()),
            got => Err(DecodeError::Trailing { what, got }),
        }
    }

    /// Takes `expected` bytes (W-1).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub const fn raw(&mut self, what: &'static str, expected: usize) -> Result<&'a [u8], DecodeError> {
        match self.left.split_at_checked(expected) {
            Some((taken, left)) => {
                self.left = left;
                Ok(taken)
            }
            None => Err(DecodeError::Truncated { what, expected, got: self.left.len() }),
        }
    }

    /// Takes an array.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub const fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        match self.left.split_first_chunk::<N>() {
            Some((taken, left)) => {
                self.left = left;
                Ok(*taken)
            }
            None => Err(DecodeError::Truncated { what, expected: N, got: self.left.len() }),
        }
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// 0 or 1, nothing else (W-4).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Tag`].
    pub fn bool(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            got => Err(DecodeError::Tag { what, got: got.into(), expected: "0 or 1" }),
        }
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Eight bytes, two's complement.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_le_bytes)
    }

    /// Sixteen bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        self.array(what).map(u128::from_le_bytes)
    }

    /// A varint in its shortest form (W-3).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Varint`].
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for index in 0..10 {
            let byte = self.u8(what)?;
            let overflows = index == 9 && byte > 1;
            let padded = index > 0 && byte == 0;
            if overflows || padded {
                return Err(DecodeError::Varint { what });
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Varint { what })
    }

    /// A length of at most `max`.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`], and as [`Self::varint`].
    pub fn length(&mut self, what: &'static str, max: usize) -> Result<usize, DecodeError> {
        let got = self.varint(what)?;
        match usize::try_from(got) {
            Ok(length) if length <= max => Ok(length),
            _ => Err(DecodeError::TooLong { what, got, max: max as u64 }),
        }
    }

    /// A count of at most `max` elements that take at least `element_bytes` each: a count that the remaining bytes
    /// cannot hold is refused before anything is allocated for it (W-2).
    ///
    /// # Errors
    /// [`DecodeError::TooLong`], [`DecodeError::Truncated`], and as [`Self::varint`].
    pub fn count(&mut self, what: &'static str, max: usize, element_bytes: usize) -> Result<usize, DecodeError> {
        let count = self.length(what, max)?;
        let expected = count.saturating_mul(element_bytes);
        if expected > self.left.len() {
            return Err(DecodeError::Truncated { what, expected, got: self.left.len() });
        }
        Ok(count)
    }

    /// Length and bytes, at most `max`.
    ///
    /// # Errors
    /// [`DecodeError::TooLong`], [`DecodeError::Truncated`], and as [`Self::varint`].
    pub fn blob(&mut self, what: &'static str, max: usize) -> Result<&'a [u8], DecodeError> {
        let length = self.length(what, max)?;
        self.raw(what, length)
    }

    /// Length and UTF-8 of at most `max` bytes (W-5).
    ///
    /// # Errors
    /// [`DecodeError::Utf8`], and as [`Self::blob`].
    pub fn text(&mut self, what: &'static str, max: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.blob(what, max)?).map_err(|e| DecodeError::Utf8 { what, at: e.valid_up_to() })
    }

    /// 0, or 1 and what `some` reads.
    ///
    /// # Errors
    /// As [`Self::bool`] and `some`.
    pub fn option<T>(
        &mut self,
        what: &'static str,
        some: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        Ok(if self.bool(what)? { Some(some(self)?) } else { None })
    }

    /// A member.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Tag`].
    pub fn member(&mut self, what: &'static str) -> Result<MemberId, DecodeError> {
        match self.u8(what)? {
            0 => Ok(MemberId::A),
            1 => Ok(MemberId::B),
            got => Err(DecodeError::Tag { what, got: got.into(), expected: "0 (A) or 1 (B)" }),
        }
    }

    /// An epoch.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn epoch(&mut self, what: &'static str) -> Result<Epoch, DecodeError> {
        self.u64(what).map(Epoch)
    }

    /// A sequence number.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn seq(&mut self, what: &'static str) -> Result<Seq, DecodeError> {
        self.u64(what).map(Seq)
    }

    /// A history id.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn history(&mut self, what: &'static str) -> Result<HistoryId, DecodeError> {
        self.array(what).map(HistoryId)
    }

    /// A chain hash.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn chain(&mut self, what: &'static str) -> Result<ChainHash, DecodeError> {
        self.u128(what).map(ChainHash)
    }

    /// A position.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn position(&mut self, what: &'static str) -> Result<Position, DecodeError> {
        Ok(Position { epoch: self.epoch(what)?, seq: self.seq(what)?, chain: self.chain(what)? })
    }

    /// A version.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn version(&mut self, what: &'static str) -> Result<Version, DecodeError> {
        Ok(Version { epoch: self.epoch(what)?, seq: self.seq(what)? })
    }

    /// A content digest.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn content_id(&mut self, what: &'static str) -> Result<ContentId, DecodeError> {
        self.array(what).map(ContentId)
    }

    /// A path, parsed by its own rules, in its `/` form only (W-22).
    ///
    /// # Errors
    /// [`DecodeError::Invalid`], and as [`Self::text`].
    pub fn path(&mut self, what: &'static str) -> Result<DsPath, DecodeError> {
        let text = self.text(what, MAX_PATH_BYTES)?;
        if !text.starts_with('/') {
            return Err(DecodeError::Invalid { what, why: format!("path {text:?} does not start with '/'") });
        }
        DsPath::parse(text).map_err(|e| DecodeError::Invalid { what, why: e.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut Writer::new(&mut out));
        out
    }

    #[test]
    fn varint_must_be_minimal_w3() {
        for (value, bytes) in [
            (0, vec![0]),
            (127, vec![0x7f]),
            (128, vec![0x80, 1]),
            (300, vec![0xac, 2]),
            (u64::MAX, {
                let mut all = vec![0xff; 9];
                all.push(1);
                all
            }),
        ] {
            assert_eq!(written(|w| w.varint(value)), bytes);
            assert_eq!(Reader::new(&bytes).varint("v"), Ok(value));
        }
        for bad in
            [&[0x80, 0][..], &[0xff, 0x80, 0], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]]
        {
            assert_eq!(Reader::new(bad).varint("v"), Err(DecodeError::Varint { what: "v" }), "{bad:?}");
        }
        assert!(matches!(Reader::new(&[0x80]).varint("v"), Err(DecodeError::Truncated { .. })));
    }

    #[test]
    fn counts_are_bounded_by_the_bytes_there_w2() {
        let bytes = written(|w| w.varint(1 << 40));
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.clone().count("n", 10, 1), Err(DecodeError::TooLong { what: "n", got: 1 << 40, max: 10 }));
        assert!(matches!(reader.count("n", usize::MAX, 8), Err(DecodeError::Truncated { got: 0, .. })));
    }

    #[test]
    fn each_kind_of_bad_bytes_has_its_error() {
        assert_eq!(Reader::new(&[1]).u16("x"), Err(DecodeError::Truncated { what: "x", expected: 2, got: 1 }));
        assert!(matches!(Reader::new(&[2]).bool("x"), Err(DecodeError::Tag { got: 2, .. })));
        assert!(matches!(Reader::new(&[2]).member("x"), Err(DecodeError::Tag { got: 2, .. })));
        assert_eq!(Reader::new(&[2, b'a', 0xff]).text("x", 9), Err(DecodeError::Utf8 { what: "x", at: 1 }));
        assert_eq!(Reader::new(&[0]).finish("x"), Err(DecodeError::Trailing { what: "x", got: 1 }));
        for bad in ["CONFIG", "${CONFIG}\\a", "/a//b", "/..", "/a\u{1}"] {
            let bytes = written(|w| w.text(bad));
            assert!(matches!(Reader::new(&bytes).path("p"), Err(DecodeError::Invalid { .. })), "W-22 {bad:?}");
        }
    }

    proptest! {
        #[test]
        fn fields_round_trip(a: u64, b: i64, c: u128, d: bool, e: Vec<u8>, f: String, g: Option<u32>) {
            let bytes = written(|w| {
                w.varint(a);
                w.i64(b);
                w.u128(c);
                w.bool(d);
                w.blob(&e);
                w.text(&f);
                w.option(g, Writer::u32);
            });
            let mut r = Reader::new(&bytes);
            prop_assert_eq!(r.varint("a"), Ok(a));
            prop_assert_eq!(r.i64("b"), Ok(b));
            prop_assert_eq!(r.u128("c"), Ok(c));
            prop_assert_eq!(r.bool("d"), Ok(d));
            prop_assert_eq!(r.blob("e", e.len()), Ok(&e[..]));
            prop_assert_eq!(r.text("f", f.len()), Ok(&f[..]));
            prop_assert_eq!(r.option("g", |r| r.u32("g")), Ok(g));
            prop_assert_eq!(r.finish("end"), Ok(()));
        }
    }
}

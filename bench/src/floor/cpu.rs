//! What a core does with bytes: copying, hashing, compressing, sealing.
//!
//! Always: the data is made from a fixed seed, so that runs are alike. Never: figures from data that stays in cache,
//! but for sealing, which happens on what was just written.

use std::{
    fmt::Write,
    hint::black_box,
    time::{Duration, Instant},
};

use ring::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::error::{Doing, Error, Result};

const PIECE_BYTES: usize = 64 << 10;
/// The most that a TLS record carries.
const TLS_RECORD_BYTES: usize = 16 << 10;

/// Pseudo-random bytes (xorshift64), the same for the same seed, which must not be 0.
pub fn fill(seed: u64, bytes: &mut [u8]) {
    let mut state = seed;
    for piece in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        piece.copy_from_slice(&state.to_le_bytes()[..piece.len()]);
    }
}

/// Memory to work on.
#[derive(Debug)]
pub struct Work {
    from: Vec<u8>,
    to: std::cell::RefCell<Vec<u8>>,
}

impl Work {
    /// Twice `megabytes`.
    #[must_use]
    pub fn new(megabytes: usize) -> Self {
        let mut from = vec![0; megabytes << 20];
        fill(1, &mut from);
        Self { to: std::cell::RefCell::new(from.clone()), from }
    }

    /// Copying, bytes a second.
    #[must_use]
    pub fn memcpy(&self, span: Duration) -> f64 {
        let mut to = self.to.borrow_mut();
        rate(span, || {
            for (from, to) in self.from.chunks(PIECE_BYTES).zip(to.chunks_mut(PIECE_BYTES)) {
                to.copy_from_slice(black_box(from));
            }
            black_box(to.last());
            self.from.len()
        })
    }

    /// xxh3, bytes a second.
    #[must_use]
    pub fn xxh3(&self, span: Duration) -> f64 {
        rate(span, || {
            let sums = self.from.chunks(PIECE_BYTES).map(xxhash_rust::xxh3::xxh3_64);
            black_box(sums.fold(0, |sum, next| sum ^ next));
            self.from.len()
        })
    }

    /// blake3, bytes a second.
    #[must_use]
    pub fn blake3(&self, span: Duration) -> f64 {
        rate(span, || {
            for piece in self.from.chunks(PIECE_BYTES) {
                black_box(blake3::hash(piece));
            }
            self.from.len()
        })
    }
}

/// zstd level 1 on text like records, in frames of 64 KiB by one context: bytes in a second, and bytes in for each out.
///
/// # Errors
/// When the compressor fails.
pub fn zstd1(span: Duration) -> Result<(f64, f64)> {
    let text = records_like(1, 1 << 20);
    let mut compressor = zstd::bulk::Compressor::new(1).doing("zstd")?;
    let mut out = vec![0; zstd::zstd_safe::compress_bound(PIECE_BYTES)];
    let (mut compressed, mut failed) = (0, None);
    let mut taken = 0;
    let rate = rate(span, || {
        for piece in text.chunks(PIECE_BYTES) {
            match compressor.compress_to_buffer(piece, &mut out) {
                Ok(bytes) => compressed += bytes,
                Err(error) => failed = Some(error),
            }
        }
        taken += text.len();
        text.len()
    });
    match failed {
        Some(error) => Err(error).doing("zstd"),
        None => Ok((rate, taken as f64 / compressed.max(1) as f64)),
    }
}

/// AES-128-GCM as TLS uses it: sealing records of 16 KiB in place, bytes a second.
///
/// # Errors
/// When the cipher fails.
pub fn aes_gcm(span: Duration) -> Result<f64> {
    let failed = |_| Error::Failed("AES-128-GCM failed".into());
    let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &[7; 16]).map_err(failed)?);
    let mut record = vec![0; TLS_RECORD_BYTES];
    let (mut number, mut result) = (0_u64, Ok(()));
    let rate = rate(span, || {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        number += 1;
        let sealed = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut record);
        result = black_box(sealed).map(|_| ());
        record.len()
    });
    result.map_err(failed).map(|()| rate)
}

/// Bytes a second of `step`, repeated for `span`, at least once.
fn rate(span: Duration, mut step: impl FnMut() -> usize) -> f64 {
    let start = Instant::now();
    let mut bytes = 0;
    loop {
        bytes += step();
        let took = start.elapsed();
        if took >= span {
            return bytes as f64 / took.as_secs_f64();
        }
    }
}

/// `bytes` of objects as `ds export` prints them, the same for the same seed, which must not be 0.
pub fn records_like(seed: u64, bytes: usize) -> Vec<u8> {
    /// No line is shorter.
    const LINE_BYTES: usize = 128;
    let mut random = vec![0; 8 * (bytes / LINE_BYTES + 1)];
    fill(seed, &mut random);
    let mut text = String::with_capacity(bytes + 2 * LINE_BYTES);
    for (user, number) in random.chunks_exact(8).enumerate() {
        let number = number.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            r#"{{"path":"/CONFIG/Users/user{user}","class":"User","attributes":{{"Extension":["{}"],"Workgroups":["Sales","Support"],"Token":["{number:016x}"]}}}}"#,
            number % 9000 + 1000
        );
        if text.len() >= bytes {
            break;
        }
    }
    text.truncate(bytes);
    text.into_bytes()
}

//! The two hashes of a frame: the checksum that finds damage and the chain that names a history (SPEC.md §3).
//!
//! Neither protects against a forger: that is the lane's TLS. Content is identified by blake3, never by these.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed, xxh3_128};

use crate::id::{ChainHash, Epoch, HistoryId, Seq};

/// The seed of a frame's checksums: xxh3-64 of history id, epoch and first sequence number (W-13). Bytes of another
/// history, or of a frame that lay elsewhere in a recycled segment, do not pass as this frame's.
#[must_use]
pub fn frame_seed(history: HistoryId, epoch: Epoch, first_seq: Seq) -> u64 {
    let mut bytes = [0; 32];
    bytes[..16].copy_from_slice(&history.0);
    bytes[16..24].copy_from_slice(&epoch.0.to_le_bytes());
    bytes[24..].copy_from_slice(&first_seq.0.to_le_bytes());
    xxh3_64(&bytes)
}

/// The checksum of a part of a frame, by its seed.
#[must_use]
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, seed)
}

/// The chain hash of a whole frame: xxh3-128 over all its bytes, which hold the chain hash of the one before (W-14).
#[must_use]
pub fn chain_hash(frame: &[u8]) -> ChainHash {
    ChainHash(xxh3_128(frame))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_seed_matters_w13() {
        let base = frame_seed(HistoryId([7; 16]), Epoch(3), Seq(9));
        assert_ne!(base, frame_seed(HistoryId([8; 16]), Epoch(3), Seq(9)));
        assert_ne!(base, frame_seed(HistoryId([7; 16]), Epoch(4), Seq(9)));
        assert_ne!(base, frame_seed(HistoryId([7; 16]), Epoch(3), Seq(10)));
        assert_ne!(checksum(base, b"x"), checksum(base + 1, b"x"));
    }
}

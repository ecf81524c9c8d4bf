//! Scenario `floor`: what this machine can do at best, so that every other figure has something to be held against.
//!
//! Always: one thread a job and blocking calls, as a simple program would; nothing is pinned. Never: data that the
//! next step does not read (a compiler would leave the work out).

pub mod cpu;
pub mod disk;
pub mod net;
mod ring;

use std::time::Duration;

use tempfile::TempDir;

use crate::{
    Plan,
    error::{Doing, Result},
    figure::{Figure, Samples},
    progress,
};

/// Name and unit of each figure.
const FIGURES: [(&str, &str); 14] = [
    (MEMCPY, "bytes/s (64 KiB pieces, more than fits in cache)"),
    (LOOPBACK, "bytes/s (blocking, plain TCP)"),
    ("loopback_ring_64k_bytes_per_s", "bytes/s (io_uring, registered memory, copied by the kernel)"),
    ("loopback_zero_copy_64k_bytes_per_s", "bytes/s (io_uring, registered memory, zero-copy sends)"),
    ("loopback_round_trip_100b_p50_us", "us (blocking, two threads)"),
    (FILE, "bytes/s (best of read and write, sendfile, splice, zero-copy sends)"),
    (FDATASYNC, "us (4 KiB into a zero-filled file)"),
    ("fdatasync_two_writers_p50_us", "us (4 KiB into a zero-filled file each)"),
    ("sequential_write_fsync_bytes_per_s", "bytes/s (1 MiB writes, one fsync)"),
    ("hash_xxh3_bytes_per_s", "bytes/s (64 KiB pieces, more than fits in cache)"),
    ("hash_blake3_bytes_per_s", "bytes/s (64 KiB pieces, more than fits in cache)"),
    ("zstd1_compress_bytes_per_s", "bytes/s in (record-like text, 64 KiB frames)"),
    ("zstd1_bytes_in_per_byte_out", ""),
    ("aes_128_gcm_bytes_per_s", "bytes/s (16 KiB records, sealed in place)"),
];
const FILE: &str = "tmpfs_file_over_loopback_bytes_per_s";
const MEMCPY: &str = "memcpy_bytes_per_s";
const LOOPBACK: &str = "loopback_tcp_64k_bytes_per_s";
const FDATASYNC: &str = "fdatasync_one_writer_p50_us";

/// Takes every figure `plan.runs` times, each once a run.
///
/// # Errors
/// When the system refuses something or a wait is over.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let dir = TempDir::with_prefix("ringpair-floor-").doing("a temporary directory")?;
    let span = Duration::from_millis(if plan.quick { 60 } else { 1000 });
    let megabytes = if plan.quick { 16 } else { 256 };
    let (mut samples, mut ways) = (Samples::default(), net::Ways::default());
    let work = cpu::Work::new(if plan.quick { 8 } else { 64 });
    for run in 1..=plan.runs {
        progress(&format!("floor: run {run} of {}", plan.runs));
        let memcpy = work.memcpy(span);
        let loopback = net::throughput(span)?;
        let synced = disk::fdatasync_p50_us(dir.path(), 1, 4096, span)?;
        let (zstd_rate, zstd_ratio) = cpu::zstd1(span)?;
        let taken = [
            (MEMCPY, memcpy, None),
            (LOOPBACK, loopback, Some(("floor memcpy", memcpy))),
            (
                "loopback_ring_64k_bytes_per_s",
                net::ring_throughput(span, false)?,
                Some(("floor loopback TCP", loopback)),
            ),
            (
                "loopback_zero_copy_64k_bytes_per_s",
                net::ring_throughput(span, true)?,
                Some(("floor loopback TCP", loopback)),
            ),
            ("loopback_round_trip_100b_p50_us", net::round_trip_p50_us(span)?, None),
            (FDATASYNC, synced, None),
            (
                "fdatasync_two_writers_p50_us",
                disk::fdatasync_p50_us(dir.path(), 2, 4096, span)?,
                Some(("floor fdatasync by one writer", synced)),
            ),
            ("sequential_write_fsync_bytes_per_s", disk::sequential(dir.path(), megabytes << 20)?, None),
            ("hash_xxh3_bytes_per_s", work.xxh3(span), Some(("floor memcpy", memcpy))),
            ("hash_blake3_bytes_per_s", work.blake3(span), Some(("floor memcpy", memcpy))),
            ("zstd1_compress_bytes_per_s", zstd_rate, Some(("floor memcpy", memcpy))),
            ("zstd1_bytes_in_per_byte_out", zstd_ratio, None),
            ("aes_128_gcm_bytes_per_s", cpu::aes_gcm(span)?, Some(("floor memcpy", memcpy))),
        ];
        ways.add(net::copy_file(megabytes << 20)?);
        samples.hold_against(FILE, "floor loopback TCP", loopback);
        for (name, value, reference) in taken {
            samples.add(name, value);
            if let Some((reference, value)) = reference {
                samples.hold_against(name, reference, value);
            }
        }
    }
    ways.best()?.1.into_iter().for_each(|rate| samples.add(FILE, rate));
    let figures: Result<Vec<_>> = FIGURES.iter().map(|(name, unit)| samples.figures(name, unit)).collect();
    Ok(figures?.concat())
}

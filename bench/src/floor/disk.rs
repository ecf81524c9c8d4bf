//! What the disk does: syncing small writes, by one and by two at once, and writing a lot.
//!
//! Always: synced writes go into files whose blocks were written and synced before, as a journal's are. Never: a file
//! left behind.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use crate::error::{Doing, Error, Result};

/// How large the file of a writer is; it is written round and round.
const FILE_BYTES: usize = 8 << 20;
/// A writer syncs so often at least, however slow the disk is.
const LEAST_SYNCS: usize = 5;
const MEGABYTE: usize = 1 << 20;

/// What the writers did together.
struct Synced {
    each: Histogram<u64>,
    per_writer_per_s: f64,
}

/// The median time, in microseconds, of writing and syncing `bytes`, by `writers` threads at once, each into a file of
/// its own in `dir`.
///
/// # Errors
/// When the disk refuses.
pub fn fdatasync_p50_us(dir: &Path, writers: usize, bytes: usize, span: Duration) -> Result<f64> {
    let synced = sync_all(dir, writers, bytes, span)?;
    Ok(synced.each.value_at_quantile(0.5) as f64 / 1000.0)
}

/// How often a second each of `writers` threads writes and syncs `bytes` while the others do, too.
///
/// # Errors
/// When the disk refuses.
pub fn synced_per_s(dir: &Path, writers: usize, bytes: usize, span: Duration) -> Result<f64> {
    Ok(sync_all(dir, writers, bytes, span)?.per_writer_per_s)
}

fn sync_all(dir: &Path, writers: usize, bytes: usize, span: Duration) -> Result<Synced> {
    let files: Result<Vec<File>> = (0..writers).map(|writer| zero_filled(&dir.join(format!("sync{writer}")))).collect();
    let files = files?;
    let results: Vec<Result<Histogram<u64>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|file| scope.spawn(move || sync_one(file, bytes, span))).collect();
        let died = |_| Err(Error::Failed("a writer died".into()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(died)).collect()
    });
    let mut each = histogram()?;
    for result in results {
        each.add(result?).map_err(|error| Error::Failed(format!("the histogram: {error}")))?;
    }
    let per_writer_per_s = 1e9 / each.mean().max(1.0);
    Ok(Synced { each, per_writer_per_s })
}

fn sync_one(file: &File, bytes: usize, span: Duration) -> Result<Histogram<u64>> {
    let mut each = histogram()?;
    let data = vec![0x5a; bytes];
    let start = Instant::now();
    let mut offset = 0;
    while start.elapsed() < span || each.len() < LEAST_SYNCS as u64 {
        let before = Instant::now();
        file.write_all_at(&data, offset as u64).doing("writing")?;
        file.sync_data().doing("fdatasync")?;
        each.saturating_record(nanoseconds(before.elapsed()));
        offset = if offset + 2 * bytes > FILE_BYTES { 0 } else { offset + bytes };
    }
    Ok(each)
}

fn zero_filled(path: &Path) -> Result<File> {
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).open(path).doing("a file to sync")?;
    for _ in 0..FILE_BYTES / MEGABYTE {
        file.write_all(&[0; MEGABYTE]).doing("filling a file with zeroes")?;
    }
    file.sync_all().doing("fsync")?;
    // It lives as long as its descriptor.
    fs::remove_file(path).doing("removing a file")?;
    Ok(file)
}

/// Writing `bytes` into a new file and syncing it once, bytes a second.
///
/// # Errors
/// When the disk refuses.
pub fn sequential(dir: &Path, bytes: usize) -> Result<f64> {
    let path = dir.join("sequential");
    let mut file = File::create(&path).doing("a file to write")?;
    let data = vec![0x5a; MEGABYTE];
    let start = Instant::now();
    for _ in 0..bytes / MEGABYTE {
        file.write_all(&data).doing("writing")?;
    }
    file.sync_all().doing("fsync")?;
    let took = start.elapsed();
    fs::remove_file(&path).doing("removing a file")?;
    Ok(bytes as f64 / took.as_secs_f64())
}

/// A histogram of nanoseconds, up to a minute.
///
/// # Errors
/// Never with these bounds.
pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(|error| Error::Failed(format!("the histogram: {error}")))
}

/// Whole nanoseconds.
#[must_use]
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

//! Names and whole files on disk, made durable: what the journal does synchronously, outside of the hot path.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use super::{JournalError, format::PAGE_BYTES};
use crate::ring::Shared;

/// The size of one write of zeroes, in bytes: small enough that nothing waits long behind it.
pub(super) const ZERO_CHUNK_BYTES: usize = 256 << 10;

/// A chunk of zeroes that begins with a page, as writing past the page cache wants it.
pub(super) fn zero_chunk() -> Shared {
    let page = PAGE_BYTES as usize;
    let zeroes = Shared::from(vec![0; ZERO_CHUNK_BYTES + page]);
    let start = zeroes.as_ptr().align_offset(page);
    zeroes.slice(start..start + ZERO_CHUNK_BYTES)
}

/// Names the operation and the file of an error.
pub(super) fn failed<'a>(what: &'static str, file: &'a Path) -> impl FnOnce(io::Error) -> JournalError + 'a {
    move |source| JournalError::Io { what, file: file.to_owned(), source }
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", dir))
}

/// Removes a file if it is there; durable with the next [`sync_dir`].
pub(super) fn remove(path: &Path) -> Result<(), JournalError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Reads at most `most` bytes of a file from its beginning.
pub(super) fn read_prefix(path: &Path, most: u64, into: &mut Vec<u8>) -> Result<(), JournalError> {
    into.clear();
    let file = File::open(path).map_err(failed("open", path))?;
    file.take(most).read_to_end(into).map_err(failed("read", path))?;
    Ok(())
}

/// Puts a segment of `capacity` bytes in place: `prefix`, then zeroes. Atomic (another name, synced, renamed over what
/// has been there) and durable.
pub(super) fn put_segment(path: &Path, prefix: &[u8], capacity: u64) -> Result<(), JournalError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(prefix)?;
        write_zeroes(&mut file, capacity - prefix.len() as u64)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        // Best effort: the room it takes is what may be missing; opening removes it as well.
        let _ = fs::remove_file(&temporary);
        return Err(failed("write", path)(error));
    }
    path.parent().map_or(Ok(()), sync_dir)
}

/// Writes `count` zeroes where the file stands.
pub(super) fn write_zeroes(file: &mut File, mut count: u64) -> io::Result<()> {
    let zeroes = vec![0; ZERO_CHUNK_BYTES];
    while count > 0 {
        let now = count.min(ZERO_CHUNK_BYTES as u64);
        file.write_all(&zeroes[..now as usize])?;
        count -= now;
    }
    Ok(())
}

//! Maps a sealed journal segment for reading.

use std::{fs::File, io};

use memmap2::{Advice, MmapOptions};

use super::Shared;

/// The first `len` bytes of a file as shared bytes; unmapped with the last clone.
///
/// Only for files that nobody changes in place any more: a sealed segment is replaced or removed whole, and its storage
/// directory is locked against other processes. Never for a mirrored source file: truncation there is SIGBUS.
///
/// # Errors
/// The file is shorter than `len`, or the kernel refused.
pub fn map_sealed(file: &File, len: u64) -> io::Result<Shared> {
    if file.metadata()?.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the bytes do not change while they are mapped, see above; the length was checked.
    let map = unsafe { MmapOptions::new().len(len).map(file) }?;
    // Only a hint: catch-up reads forward.
    let _ = map.advise(Advice::Sequential);
    Ok(Shared::from_owner(map))
}

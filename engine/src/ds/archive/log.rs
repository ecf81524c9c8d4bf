//! The log of an archive, in parts: entries with their lengths and checksums.
//!
//! Always: an entry is checked before it is believed, and its length bounded before it is read. Never: an entry after
//! a damaged one given out.

use std::{
    fs::File,
    io::{self, BufReader, Read, Write},
    path::Path,
};

use ringpair_wire::{
    checksum::checksum,
    codec::{Codec, DecodeError, Reader, Writer},
    ds::{DsPath, Object},
    id::{Epoch, Position, Version},
    record::MAX_RECORD_BYTES,
};

use super::{ArchiveError, io_error};

/// The greatest size of one entry of an archive's log, in bytes.
const MAX_ENTRY_BYTES: usize = 4 * MAX_RECORD_BYTES;

/// The greatest length of a file's path, in bytes (PATH_MAX).
pub const MAX_FILE_PATH_BYTES: usize = 4096;

/// The name of the part that is not saved.
pub const UNSAVED_PART: &str = "unsaved-log";

/// The name of a part, from 1.
pub fn part_name(part: u64) -> String {
    match part {
        1 => "log".to_owned(),
        more => format!("log-{more}"),
    }
}

/// An entry.
#[derive(Clone, Debug)]
pub enum LogEntry {
    /// The first: the epoch in which was accepted what follows, and the last position that both histories share.
    Head { epoch: Epoch, common: Position },
    /// A record.
    Record { version: Version, path: DsPath, object: Option<Object> },
    /// A file and its length.
    File { path: Vec<u8>, bytes: u64 },
}

impl LogEntry {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let mut writer = Writer::new(bytes);
        match self {
            Self::Head { epoch, common } => {
                writer.u8(1);
                writer.epoch(*epoch);
                writer.position(*common);
            }
            Self::Record { version, path, object } => {
                writer.u8(2);
                writer.version(*version);
                writer.path(path);
                writer.option(object.as_ref(), |writer, object| object.encode(writer));
            }
            Self::File { path, bytes } => {
                writer.u8(3);
                writer.blob(path);
                writer.u64(*bytes);
            }
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let entry = match reader.u8("entry kind")? {
            1 => Self::Head { epoch: reader.epoch("epoch")?, common: reader.position("common position")? },
            2 => Self::Record {
                version: reader.version("version")?,
                path: reader.path("path")?,
                object: reader.option("object", Object::decode)?,
            },
            3 => Self::File {
                path: reader.blob("file path", MAX_FILE_PATH_BYTES)?.to_vec(),
                bytes: reader.u64("file length")?,
            },
            got => return Err(DecodeError::Tag { what: "entry kind", got: got.into(), expected: "1 to 3" }),
        };
        reader.finish("entry")?;
        Ok(entry)
    }
}

/// Writes an entry.
pub fn write_entry(log: &mut impl Write, entry: &LogEntry) -> io::Result<()> {
    let mut bytes = Vec::new();
    entry.encode(&mut bytes);
    let length = (bytes.len() as u32).to_le_bytes();
    let sum = checksum(0, &bytes).to_le_bytes();
    [&length[..], &sum[..], &bytes[..]].iter().try_for_each(|part| log.write_all(part))
}

/// All entries of the log in an archive's directory.
pub fn read_log(dir: &Path) -> Result<Vec<LogEntry>, ArchiveError> {
    let mut entries = read_part(&dir.join(part_name(1)))?;
    for part in 2.. {
        let path = dir.join(part_name(part));
        if !path.exists() {
            break;
        }
        entries.extend(read_part(&path)?);
    }
    Ok(entries)
}

fn read_part(path: &Path) -> Result<Vec<LogEntry>, ArchiveError> {
    let file = File::open(path).map_err(io_error("opening", path))?;
    let mut reader = BufReader::new(file);
    let mut entries = Vec::new();
    loop {
        let damaged = |what: String| ArchiveError::Damaged { path: path.to_owned(), entry: entries.len() as u64, what };
        let mut head = [0; 12];
        let mut got = 0;
        while got < head.len() {
            match reader.read(&mut head[got..]).map_err(io_error("reading", path))? {
                0 if got == 0 => return Ok(entries),
                0 => return Err(damaged("it ends inside an entry".into())),
                more => got += more,
            }
        }
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        if length > MAX_ENTRY_BYTES {
            return Err(damaged(format!("an entry of {length} bytes, more than {MAX_ENTRY_BYTES}")));
        }
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).map_err(|error| damaged(error.to_string()))?;
        if checksum(0, &bytes).to_le_bytes() != head[4..] {
            return Err(damaged("checksum".into()));
        }
        let entry = LogEntry::decode(&bytes).map_err(|error| damaged(error.to_string()))?;
        entries.push(entry);
    }
}

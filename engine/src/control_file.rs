//! The control file: the little that a member must remember whatever happens (protocol §1), in two checksummed slots.
//!
//! Always: one of the two slots is sound while the other is written; a store overwrites blocks that exist already, so that
//! it needs no room on the disk; the newest sound slot counts, and a damaged one is told, for its caller to count one
//! epoch base above the sound one. Never: a failed sync tried again. The payload's meaning is the core's
//! (`ringpair_core::persisted`).
#![forbid(unsafe_code)]

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use ringpair_wire::checksum::checksum;

use crate::ring::{Fd, Op, Shared};

/// The size of one slot, in bytes.
const SLOT_BYTES: usize = 4096;
const MAGIC: [u8; 4] = *b"RPCF";
const VERSION: u16 = 1;
/// Magic, version, reserved, generation, length.
const HEAD_BYTES: usize = 4 + 2 + 2 + 8 + 4;
/// Where the checksum over all the rest of the slot stands.
const SUM_OFFSET: usize = SLOT_BYTES - 8;
/// The greatest payload, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = SUM_OFFSET - HEAD_BYTES;

/// What a control file said when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlLoad {
    /// The newest sound payload; empty if nothing was ever stored.
    pub payload: Vec<u8>,
    /// The other slot is damaged and may have been newer: count one epoch base above what the payload says.
    pub damaged: bool,
}

/// The control file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Both slots are damaged: what this member promised and released is not known.
    #[error("{0}: both slots are damaged. Try: move it away and let the member start empty, if its peer is active")]
    Damaged(PathBuf),
    /// A slot of another version.
    #[error("{file}: format version {got}, not {VERSION}. Try: the release that wrote it")]
    Version {
        /// The control file.
        file: PathBuf,
        /// What stands there.
        got: u16,
    },
    /// The payload does not fit.
    #[error("a control state of {0} bytes, at most {MAX_PAYLOAD_BYTES} fit")]
    TooLarge(usize),
    /// Another store is in flight.
    #[error("a store is in flight")]
    Busy,
    /// An earlier store failed, which is final (protocol §10).
    #[error("an earlier store failed; the control file must be opened anew")]
    Failed,
    /// An operation failed.
    #[error("cannot {what} {file}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The control file, open to be written. Its owner holds the storage directory's lock.
#[derive(Debug)]
pub struct ControlFile {
    path: PathBuf,
    fd: Fd,
    file: File,
    /// Of the newest sound slot.
    generation: u64,
    /// Which slot that is.
    newest: usize,
    in_flight: bool,
    failed: bool,
}

/// What one slot holds.
enum Slot {
    Sound { generation: u64, payload: Vec<u8> },
    OtherVersion(u16),
    Damaged,
}

fn slot_bytes(generation: u64, payload: &[u8]) -> Vec<u8> {
    let mut slot = Vec::with_capacity(SLOT_BYTES);
    slot.extend_from_slice(&MAGIC);
    slot.extend_from_slice(&VERSION.to_le_bytes());
    slot.extend_from_slice(&[0; 2]);
    slot.extend_from_slice(&generation.to_le_bytes());
    slot.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    slot.extend_from_slice(payload);
    slot.resize(SUM_OFFSET, 0);
    slot.extend_from_slice(&checksum(0, &slot).to_le_bytes());
    slot
}

fn read_slot(slot: &[u8]) -> Slot {
    let parse = || {
        let (summed, sum) = slot.split_at_checked(SUM_OFFSET)?;
        if checksum(0, summed).to_le_bytes() != sum || summed[..4] != MAGIC {
            return None;
        }
        let version = u16::from_le_bytes(*summed[4..].first_chunk()?);
        if version != VERSION {
            return Some(Slot::OtherVersion(version));
        }
        let generation = u64::from_le_bytes(*summed[8..].first_chunk()?);
        let len = u32::from_le_bytes(*summed[16..].first_chunk()?) as usize;
        let payload = summed[HEAD_BYTES..].get(..len)?.to_vec();
        Some(Slot::Sound { generation, payload })
    };
    parse().unwrap_or(Slot::Damaged)
}

/// The path of the control file in a storage directory.
#[must_use]
pub fn control_path(dir: &Path) -> PathBuf {
    dir.join("control")
}

/// Reads the control file of a storage directory, changing nothing; `None`: there is none yet.
///
/// # Errors
/// [`ControlError::Damaged`], [`ControlError::Version`], [`ControlError::Io`].
pub fn load(dir: &Path) -> Result<Option<ControlLoad>, ControlError> {
    let path = control_path(dir);
    let mut bytes = Vec::new();
    match File::open(&path).and_then(|file| file.take(2 * SLOT_BYTES as u64).read_to_end(&mut bytes)) {
        Ok(_) => parse(&path, &bytes).map(|(load, ..)| Some(load)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ControlError::Io { what: "read", file: path, source }),
    }
}

/// The load, the newest generation and its slot.
fn parse(path: &Path, bytes: &[u8]) -> Result<(ControlLoad, u64, usize), ControlError> {
    let mut newest: Option<(u64, usize, Vec<u8>)> = None;
    let mut damaged = false;
    for index in 0..2 {
        let slot = bytes.get(index * SLOT_BYTES..(index + 1) * SLOT_BYTES).unwrap_or_default();
        match read_slot(slot) {
            Slot::Sound { generation, payload } if newest.as_ref().is_none_or(|(most, ..)| generation > *most) => {
                newest = Some((generation, index, payload));
            }
            Slot::Sound { .. } => {}
            Slot::OtherVersion(got) => return Err(ControlError::Version { file: path.to_owned(), got }),
            Slot::Damaged => damaged = true,
        }
    }
    let (generation, index, payload) = newest.ok_or_else(|| ControlError::Damaged(path.to_owned()))?;
    Ok((ControlLoad { payload, damaged }, generation, index))
}

impl ControlFile {
    /// Opens the control file of a storage directory, or makes one with nothing stored (durably, whole or not at all).
    ///
    /// # Errors
    /// [`ControlError::Damaged`], [`ControlError::Version`], [`ControlError::Io`].
    pub fn open(dir: &Path) -> Result<(Self, ControlLoad), ControlError> {
        let path = control_path(dir);
        let failed = |what| {
            let file = path.clone();
            move |source| ControlError::Io { what, file, source }
        };
        if !path.try_exists().map_err(failed("find"))? {
            create(dir, &path).map_err(failed("create"))?;
        }
        let mut file = File::options().read(true).write(true).open(&path).map_err(failed("open"))?;
        let mut bytes = Vec::new();
        (&mut file).take(2 * SLOT_BYTES as u64).read_to_end(&mut bytes).map_err(failed("read"))?;
        let (load, generation, newest) = parse(&path, &bytes)?;
        let fd = Fd::new(file.try_clone().map_err(failed("open"))?);
        Ok((Self { path, fd, file, generation, newest, in_flight: false, failed: false }, load))
    }

    /// Stores a state and waits until it is on disk.
    ///
    /// # Errors
    /// [`ControlError`]; after [`ControlError::Io`] every later store fails.
    pub fn store(&mut self, payload: &[u8]) -> Result<(), ControlError> {
        let (slot, offset) = self.begin(payload)?;
        let result = self.file.write_all_at(&slot, offset).and_then(|()| self.file.sync_data());
        self.end_store(result.map(|()| SLOT_BYTES))
    }

    /// The operation that stores a state, for a driver; its last completion's result goes to
    /// [`end_store`](Self::end_store). One store at a time.
    ///
    /// # Errors
    /// [`ControlError::TooLarge`], [`ControlError::Busy`], [`ControlError::Failed`].
    pub fn begin_store(&mut self, payload: &[u8]) -> Result<Op, ControlError> {
        let (slot, offset) = self.begin(payload)?;
        Ok(Op::WriteSynced { fd: self.fd.clone(), slices: vec![Shared::from(slot)], offset })
    }

    /// The store in flight has ended. `Ok`: the state is on disk.
    ///
    /// # Errors
    /// [`ControlError::Io`]: it may not be, and every later store fails.
    pub fn end_store(&mut self, result: io::Result<usize>) -> Result<(), ControlError> {
        self.in_flight = false;
        match result {
            Ok(_) => {
                self.generation += 1;
                self.newest = 1 - self.newest;
                Ok(())
            }
            Err(source) => {
                self.failed = true;
                Err(ControlError::Io { what: "write", file: self.path.clone(), source })
            }
        }
    }

    /// The operation could not be submitted: nothing has happened.
    pub fn abandon_store(&mut self) {
        self.in_flight = false;
    }

    fn begin(&mut self, payload: &[u8]) -> Result<(Vec<u8>, u64), ControlError> {
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(ControlError::TooLarge(payload.len()));
        }
        match (self.failed, self.in_flight) {
            (true, _) => return Err(ControlError::Failed),
            (_, true) => return Err(ControlError::Busy),
            _ => self.in_flight = true,
        }
        Ok((slot_bytes(self.generation + 1, payload), ((1 - self.newest) * SLOT_BYTES) as u64))
    }
}

/// Both slots sound from the start, under another name until they are on disk.
fn create(dir: &Path, path: &Path) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&slot_bytes(1, &[]))?;
    file.write_all(&slot_bytes(2, &[]))?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ring::{Driver, DriverChoice, DriverOptions, Token};

    fn reload(dir: &Path) -> ControlLoad {
        load(dir).unwrap().unwrap()
    }

    fn sound(payload: &[u8]) -> ControlLoad {
        ControlLoad { payload: payload.to_vec(), damaged: false }
    }

    #[test]
    fn the_newest_state_comes_back_and_the_file_never_grows() {
        let dir = tempfile::tempdir_in(".").unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        let (mut file, first) = ControlFile::open(dir.path()).unwrap();
        assert_eq!(first, sound(b""));
        for n in 0..5u8 {
            file.store(&vec![n; 100 * usize::from(n)]).unwrap();
            assert_eq!(reload(dir.path()), sound(&vec![n; 100 * usize::from(n)]));
        }
        let (mut file, load) = ControlFile::open(dir.path()).unwrap();
        assert_eq!(load, sound(&[4; 400]));
        file.store(&[9; MAX_PAYLOAD_BYTES]).unwrap();
        assert!(matches!(file.store(&[9; MAX_PAYLOAD_BYTES + 1]), Err(ControlError::TooLarge(_))));
        assert_eq!(reload(dir.path()), sound(&[9; MAX_PAYLOAD_BYTES]));
        assert_eq!(fs::metadata(control_path(dir.path())).unwrap().len(), 2 * SLOT_BYTES as u64);
    }

    #[test]
    fn a_store_through_a_driver() {
        for choice in [DriverChoice::Plain, DriverChoice::Auto] {
            let dir = tempfile::tempdir_in(".").unwrap();
            let mut driver = Driver::new(&DriverOptions { choice, in_flight: 8, ..DriverOptions::default() }).unwrap();
            let (mut file, _) = ControlFile::open(dir.path()).unwrap();
            for n in 1..4u8 {
                driver.submit(Token::new(Token::LOOP, 0, 0), file.begin_store(&[n]).unwrap()).unwrap();
                assert!(matches!(file.begin_store(b"two"), Err(ControlError::Busy)));
                let mut completions = Vec::new();
                while completions.last().is_none_or(|last: &crate::ring::Completion| last.more) {
                    driver.turn(Some(Duration::from_secs(1)), &mut completions).unwrap();
                }
                file.end_store(completions.pop().unwrap().result).unwrap();
                assert_eq!(reload(dir.path()), sound(&[n]));
            }
            file.begin_store(&[9]).unwrap();
            file.abandon_store();
            file.begin_store(&[9]).unwrap();
            assert!(file.end_store(Err(io::ErrorKind::Other.into())).is_err());
            assert!(matches!(file.store(b"more"), Err(ControlError::Failed)));
            assert_eq!(reload(dir.path()), sound(&[3]));
        }
    }

    #[test]
    fn a_write_torn_at_any_sector_leaves_the_state_before_and_says_so() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = control_path(dir.path());
        let (mut file, _) = ControlFile::open(dir.path()).unwrap();
        for n in 1..3 {
            file.store(&[n; 3000]).unwrap();
        }
        for slot in 0..2 {
            let before = fs::read(&path).unwrap();
            let last = reload(dir.path()).payload;
            file.store(&[50 + slot; 3500]).unwrap();
            let after = fs::read(&path).unwrap();
            let offset =
                (0..2).find(|n| after[n * SLOT_BYTES..][..SLOT_BYTES] != before[n * SLOT_BYTES..][..SLOT_BYTES]);
            let offset = offset.unwrap() * SLOT_BYTES;
            // Any of the eight sectors may have come to the disk, in any order.
            for written in 0..256u32 {
                let mut torn = before.clone();
                for sector in (0..8).filter(|sector| written & 1 << sector != 0) {
                    let range = offset + sector * 512..offset + (sector + 1) * 512;
                    torn[range.clone()].copy_from_slice(&after[range]);
                }
                fs::write(&path, &torn).unwrap();
                let got = reload(dir.path());
                let expected = if torn == after { &[50 + slot; 3500][..] } else { &last };
                assert_eq!(got.payload, expected);
                assert_eq!(got.damaged, torn != after && torn != before);
            }
            // Cut short, as a file system may leave it.
            for len in (0..2 * SLOT_BYTES).step_by(512) {
                fs::write(&path, &after[..len]).unwrap();
                match load(dir.path()) {
                    Ok(Some(got)) => assert!(got.damaged && len >= SLOT_BYTES),
                    Ok(None) => panic!("the file is there"),
                    Err(error) => assert!(matches!(error, ControlError::Damaged(_)) && len < SLOT_BYTES),
                }
            }
            fs::write(&path, &after).unwrap();
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_told() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = control_path(dir.path());
        let (mut file, _) = ControlFile::open(dir.path()).unwrap();
        file.store(b"older").unwrap();
        file.store(b"newer").unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..2 * SLOT_BYTES {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            let (got, ..) = parse(&path, &flipped).unwrap();
            let expected: &[u8] = if at / SLOT_BYTES == file.newest { b"older" } else { b"newer" };
            assert_eq!((&got.payload[..], got.damaged), (expected, true), "byte {at}");
            flipped[(at + SLOT_BYTES) % (2 * SLOT_BYTES)] ^= 1;
            assert!(matches!(parse(&path, &flipped), Err(ControlError::Damaged(_))));
        }
    }

    #[test]
    fn a_damaged_slot_is_the_next_to_be_written() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = control_path(dir.path());
        let (mut file, _) = ControlFile::open(dir.path()).unwrap();
        file.store(b"older").unwrap();
        file.store(b"newer").unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[file.newest * SLOT_BYTES + 100] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (mut file, load) = ControlFile::open(dir.path()).unwrap();
        assert_eq!(load, ControlLoad { payload: b"older".to_vec(), damaged: true });
        file.store(b"repaired").unwrap();
        assert_eq!(reload(dir.path()), sound(b"repaired"));
    }

    #[test]
    fn another_version_is_named() {
        let mut slot = slot_bytes(1, b"x");
        slot[4] = 9;
        let sum = checksum(0, &slot[..SUM_OFFSET]).to_le_bytes();
        slot[SUM_OFFSET..].copy_from_slice(&sum);
        slot.extend(slot_bytes(2, b"y"));
        assert!(matches!(parse(Path::new("c"), &slot), Err(ControlError::Version { got: 9, .. })));
    }
}

//! Entries of a walk, with digests of the contents where they are asked for: what both members compare.
//!
//! Always: bounded work a step. Never: a followed link, or a FIFO opened.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use nix::{errno::Errno, fcntl::OFlag, sys::stat::Mode};
use ringpair_fsmon::{
    beneath,
    meta::Stat,
    roots::RootSet,
    scan::{Found, Walk},
};
use ringpair_wire::mirror::{Entry, Kind, MirrorPath, Problem, RootSpec, bounded_reason};

/// Content bytes hashed in one turn.
pub const TURN_BYTES: usize = 8 << 20;

/// Hashes a file bit by bit.
pub struct Digesting {
    file: File,
    hasher: Box<blake3::Hasher>,
}

impl Digesting {
    /// Opens a file below a root.
    pub fn open(root: &OwnedFd, relative: &[u8]) -> Result<Self, Errno> {
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
        let file = File::from(beneath::open(root.as_fd(), relative, flags, Mode::empty())?);
        Ok(Self { file, hasher: Box::new(blake3::Hasher::new()) })
    }

    /// Hashes on, at most `budget` bytes; the digest at the end.
    pub fn turn(&mut self, budget: &mut usize, buffer: &mut Vec<u8>) -> std::io::Result<Option<[u8; 32]>> {
        buffer.resize(256 << 10, 0);
        while *budget > 0 {
            match self.file.read(buffer)? {
                0 => return Ok(Some(*self.hasher.finalize().as_bytes())),
                read => {
                    self.hasher.update(&buffer[..read]);
                    *budget = budget.saturating_sub(read);
                }
            }
        }
        Ok(None)
    }
}

/// The digest of a symbolic link's target.
pub fn link_digest(root: &OwnedFd, relative: &[u8]) -> Result<[u8; 32], Errno> {
    let (parent, name) = match relative.iter().rposition(|&b| b == b'/') {
        Some(at) => (&relative[..at], &relative[at + 1..]),
        None => (&b""[..], relative),
    };
    let dir = beneath::open_dir(root.as_fd(), parent)?;
    let target = nix::fcntl::readlinkat(&dir, name)?;
    Ok(*blake3::hash(std::os::unix::ffi::OsStrExt::as_bytes(&*target)).as_bytes())
}

/// File systems that are mounted below roots, with their devices.
pub type Mounts = BTreeMap<MirrorPath, u64>;

/// What is to be listed.
pub struct Scope {
    /// The root.
    pub spec: RootSpec,
    /// Its directory.
    pub root: OwnedFd,
    /// What is mirrored, and what is left out.
    pub set: Arc<RootSet>,
    /// From where downwards.
    pub start: MirrorPath,
    /// With digests of the contents.
    pub deep: bool,
}

impl Scope {
    /// Whether it is all of the root.
    pub fn is_whole(&self) -> bool {
        self.start == self.spec.path
    }
}

/// Entries of a walk, with digests if they are asked for.
pub struct Lister {
    walk: Walk,
    /// Mounts that were seen before: where one is gone, what was in it is unknown, not gone.
    known: Arc<Mounts>,
    /// Mounts that this walk passed.
    mounts: Mounts,
    /// The directories that lead to where the walk is, with their devices.
    above: Vec<(MirrorPath, u64)>,
    root: OwnedFd,
    spec: RootSpec,
    deep: bool,
    digesting: Option<(MirrorPath, Stat, Digesting)>,
    buffer: Vec<u8>,
}

/// What one step of a [`Lister`] gave.
pub enum Listed {
    /// An entry; of a file with several names, its device and inode.
    Entry(Entry, Option<(u64, u64)>),
    /// A path that could not be listed.
    Unknown(Problem),
    /// A large file is being hashed: go on later.
    Busy,
    /// Nothing is left.
    End,
}

impl Lister {
    /// Lists what is in `scope`; `known`: mounts that were seen before.
    pub fn new(scope: Scope, known: Arc<Mounts>) -> Result<Self, Errno> {
        let Scope { spec, root, set, start, deep } = scope;
        let copy = root.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
        let walk = Walk::new(copy, spec.clone(), set, start);
        let (mounts, above) = (Mounts::new(), Vec::new());
        Ok(Self { walk, known, mounts, above, root, spec, deep, digesting: None, buffer: Vec::new() })
    }

    /// The root's directory.
    pub const fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// The root.
    pub const fn spec(&self) -> &RootSpec {
        &self.spec
    }

    /// Temporary files that were passed.
    pub fn take_temporaries(&mut self) -> Vec<MirrorPath> {
        self.walk.take_temporaries()
    }

    /// Mounts that were passed.
    pub fn take_mounts(&mut self) -> Mounts {
        std::mem::take(&mut self.mounts)
    }

    /// Notes a directory's device; the problem, if what was mounted there is not.
    fn enter(&mut self, path: &MirrorPath, device: u64) -> Option<Problem> {
        while self.above.pop_if(|(above, _)| !path.starts_with(above)).is_some() {}
        if self.above.last().is_some_and(|(_, above)| *above != device) {
            self.mounts.insert(path.clone(), device);
        }
        self.above.push((path.clone(), device));
        self.known.get(path).filter(|known| **known != device).map(|_| vanished(path))
    }

    /// The next entry.
    pub fn next(&mut self, budget: &mut usize) -> Listed {
        if self.digesting.is_none() {
            match self.walk.next() {
                None => return Listed::End,
                Some(Found::Unknown(problem)) => return Listed::Unknown(problem),
                Some(Found::Entry(path, stat)) => {
                    if stat.meta.kind == Kind::Dir
                        && let Some(problem) = self.enter(&path, stat.dev)
                    {
                        return Listed::Unknown(problem);
                    }
                    let relative = path.below(&self.spec.path).unwrap_or_default();
                    if !self.deep {
                        return Listed::Entry(Entry { path, meta: stat.meta, digest: None }, linked(&stat));
                    }
                    match stat.meta.kind {
                        Kind::File => match Digesting::open(&self.root, relative) {
                            Ok(digesting) => self.digesting = Some((path, stat, digesting)),
                            Err(errno) => return unreadable(path, errno),
                        },
                        Kind::Symlink => match link_digest(&self.root, relative) {
                            Ok(digest) => {
                                return Listed::Entry(
                                    Entry { path, meta: stat.meta, digest: Some(digest) },
                                    linked(&stat),
                                );
                            }
                            Err(errno) => return unreadable(path, errno),
                        },
                        _ => return Listed::Entry(Entry { path, meta: stat.meta, digest: None }, linked(&stat)),
                    }
                }
            }
        }
        let Some((path, stat, mut digesting)) = self.digesting.take() else { return Listed::Busy };
        match digesting.turn(budget, &mut self.buffer) {
            Ok(Some(digest)) => Listed::Entry(Entry { path, meta: stat.meta, digest: Some(digest) }, linked(&stat)),
            Ok(None) => {
                self.digesting = Some((path, stat, digesting));
                Listed::Busy
            }
            Err(error) => Listed::Unknown(Problem { path, reason: bounded_reason(format!("cannot be read: {error}")) }),
        }
    }
}

/// What is said of a mount that is gone.
pub fn vanished(path: &MirrorPath) -> Problem {
    let reason =
        "what was mounted here is not; its files stay on the backup. Try: mount it, or restart the member to accept it";
    Problem { path: path.clone(), reason: reason.into() }
}

fn linked(stat: &Stat) -> Option<(u64, u64)> {
    (stat.meta.kind == Kind::File && stat.nlink > 1).then_some((stat.dev, stat.ino))
}

fn unreadable(path: MirrorPath, errno: Errno) -> Listed {
    Listed::Unknown(Problem { path, reason: format!("cannot be read: {}", errno.desc()) })
}

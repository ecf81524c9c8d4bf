//! What goes from the backup: files that are replaced, paths and directories that are removed.
//!
//! Always: where it is archived, nothing goes that is not durably in the archive as it is at that moment; what is left
//! out of the mirror stays, and so does a mount, each with the directories that hold it. Never: the removal of a root.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat, renameat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};
use ringpair_fsmon::{beneath, meta::Stat, roots::LeftOut};
use ringpair_wire::mirror::{Kind, Meta, MirrorPath};

use super::tree::{Tree, TreeError};
use crate::mirror::{MAX_PROBLEMS, MirrorError};

/// Deeper than this below what is removed, a directory is moved up before it is emptied.
const REMOVE_DEPTH: usize = 64;
/// How many files are archived before they are removed together.
const TOGETHER: usize = 4096;
/// How often a directory is looked at again in which files changed after they were archived.
const CHANGES: usize = 3;
/// How many bytes of two files are compared at once.
const BLOCK: usize = 64 << 10;
/// Why nothing can take a place.
const IN_THE_WAY: &str =
    "what is there stays: it is left out of the mirror, or holds what is, or a mount. Try: move it away on the backup";

/// What came of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Removed {
    /// Nothing is there any more.
    Whole,
    /// Something in it is left out of the mirror, or mounted: that stays.
    Partly,
}

/// What came of emptying a directory.
#[derive(Clone, Copy, Debug, Default)]
struct Emptied {
    /// Something was moved up to the top, or not archived with the others for their number: another round.
    again: bool,
    /// Something was not as it had been archived: another round.
    changed: bool,
    /// Something in it stays.
    stays: bool,
}

impl Emptied {
    fn add(&mut self, other: Self) {
        self.again |= other.again;
        self.changed |= other.changed;
        self.stays |= other.stays;
    }

    const fn is_empty(self) -> bool {
        !self.again && !self.changed && !self.stays
    }
}

/// What was archived of paths that are to go, as it was then.
#[derive(Debug, Default)]
pub struct Kept {
    files: HashMap<MirrorPath, Stat>,
    /// There was more.
    full: bool,
}

/// Whether a file is as it was; that another of its names went meanwhile changes nothing.
fn is_as(now: &Stat, before: &Stat) -> bool {
    let content = |stat: &Stat| (stat.meta.size, stat.meta.mtime_s, stat.meta.mtime_ns);
    let same = if now.nlink == before.nlink { !now.changed_since(before) } else { content(now) == content(before) };
    (now.dev, now.ino) == (before.dev, before.ino) && same
}

/// Whether two names in a directory have files, or links, of one content; `meta` is that of the second.
fn is_equal(dir: BorrowedFd<'_>, one: &[u8], other: &[u8], meta: &Meta) -> io::Result<bool> {
    let first = Stat::of_name(dir, one)?.meta;
    if (first.kind, first.size) != (meta.kind, meta.size) {
        return Ok(false);
    }
    match meta.kind {
        Kind::File => have_equal_bytes(File::from(open_file(dir, one)?), File::from(open_file(dir, other)?)),
        Kind::Symlink => Ok(readlinkat(dir, one)? == readlinkat(dir, other)?),
        _ => Ok(false),
    }
}

fn have_equal_bytes(one: File, other: File) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::with_capacity(BLOCK, one), BufReader::with_capacity(BLOCK, other));
    loop {
        let (left, right) = (one.fill_buf()?, other.fill_buf()?);
        let length = left.len().min(right.len());
        if length == 0 {
            return Ok(left.len() == right.len());
        }
        if left[..length] != right[..length] {
            return Ok(false);
        }
        one.consume(length);
        other.consume(length);
    }
}

fn open_file(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())
}

impl Tree {
    /// Counts and, where asked for, archives what is about to be replaced; by what has the name `new`, where that is
    /// known: a file of the same content is no loss (protocol §11).
    pub fn before_overwrite(
        &mut self,
        dir: BorrowedFd<'_>,
        new: Option<&[u8]>,
        name: &[u8],
        path: &MirrorPath,
    ) -> Result<(), TreeError> {
        match Stat::of_name(dir, name) {
            Ok(stat) if stat.meta.kind != Kind::Dir => {
                let equal = || new.is_some_and(|new| is_equal(dir, new, name, &stat.meta).unwrap_or(false));
                if self.archives() && !equal() {
                    self.keep(dir, name, path, &stat.meta)?;
                }
                self.count_gone(path, &stat.meta);
                Ok(())
            }
            Ok(_) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn count_gone(&mut self, path: &MirrorPath, meta: &Meta) {
        if meta.kind == Kind::File {
            self.gone.push((path.clone(), meta.size));
        }
    }

    /// Archives what has a name, where that is asked for.
    fn keep(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &MirrorPath, meta: &Meta) -> Result<(), TreeError> {
        let Some(archive) = &mut self.archive else { return Ok(()) };
        let fail = |source: io::Error| MirrorError::Archive { path: path.clone(), source };
        let kept = match meta.kind {
            Kind::File => {
                let mut file = File::from(open_file(dir, name)?);
                archive.archive(path, meta, &mut file)
            }
            Kind::Symlink => {
                let target = readlinkat(dir, name)?;
                archive.archive(path, meta, &mut target.as_bytes())
            }
            _ => archive.archive(path, meta, &mut io::empty()),
        };
        kept.map_err(fail)?;
        self.archived = true;
        Ok(())
    }

    /// What is at a path that may be removed: its directory and what it is like.
    fn removable(&mut self, path: &MirrorPath) -> Result<Option<(Arc<OwnedFd>, Stat)>, TreeError> {
        if self.set.holds_root(path) {
            return Err(TreeError::Refused("a mirrored directory itself is never removed"));
        }
        let dir = match self.dir(&path.parent().unwrap_or_default(), false) {
            Err(TreeError::Kernel(Errno::ENOENT | Errno::ENOTDIR)) => return Ok(None),
            dir => dir?,
        };
        let stat = match Stat::of_name(dir.as_fd(), path.name().unwrap_or_default()) {
            Err(Errno::ENOENT) => return Ok(None),
            stat => stat?,
        };
        Ok(self.set.left_out(path, stat.meta.kind).is_none().then_some((dir, stat)))
    }

    /// Archives what is at and below a path that will be removed with others, as far as there is room in `kept`.
    pub fn before_remove(&mut self, path: &MirrorPath, kept: &mut Kept) -> Result<(), TreeError> {
        let Some((dir, stat)) = self.removable(path)? else { return Ok(()) };
        let name = path.name().unwrap_or_default();
        if stat.meta.kind != Kind::Dir {
            return self.keep_one(dir.as_fd(), name, path, stat, kept);
        }
        match beneath::open_dir_here(dir.as_fd(), name) {
            Err(Errno::EXDEV) => Ok(()),
            top => self.keep_in(top?.as_fd(), path, 0, kept),
        }
    }

    fn keep_one(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &MirrorPath,
        stat: Stat,
        kept: &mut Kept,
    ) -> Result<(), TreeError> {
        if kept.files.len() >= TOGETHER {
            kept.full = true;
        } else if !self.stays(name, stat.meta.kind) {
            self.keep(dir, name, path, &stat.meta)?;
            kept.files.insert(path.clone(), stat);
        }
        Ok(())
    }

    /// Removes what is at a path, if anything is, with everything below it but what stays. `kept`: what
    /// [`Self::before_remove`] archived of it; that must be durable.
    pub fn remove(
        &mut self,
        path: &MirrorPath,
        kept: Option<&Kept>,
    ) -> Result<Option<(MirrorPath, Arc<OwnedFd>)>, TreeError> {
        let Some((dir, stat)) = self.removable(path)? else { return Ok(None) };
        let name = path.name().unwrap_or_default();
        if kept.and_then(|kept| kept.files.get(path)).is_some_and(|before| is_as(&stat, before)) {
            unlinkat(&dir, name, UnlinkatFlags::NoRemoveDir)?;
            self.count_gone(path, &stat.meta);
        } else {
            self.remove_name(dir.as_fd(), name, path, kept)?;
        }
        Ok(Some((path.parent().unwrap_or_default(), dir)))
    }

    /// Removes what has a name, for something else to have it.
    pub fn clear_way(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &MirrorPath) -> Result<(), TreeError> {
        match self.remove_name(dir, name, path, None)? {
            Removed::Whole => Ok(()),
            Removed::Partly => Err(TreeError::Refused(IN_THE_WAY)),
        }
    }

    /// Removes a name with everything below it; nothing of it is visible half gone for longer than the removal takes.
    fn remove_name(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &MirrorPath,
        kept: Option<&Kept>,
    ) -> Result<Removed, TreeError> {
        if self.set.holds_root(path) {
            return Err(TreeError::Refused("a mirrored directory itself is never removed"));
        }
        let stat = Stat::of_name(dir, name)?;
        if self.stays(name, stat.meta.kind) {
            return Ok(Removed::Partly);
        }
        if stat.meta.kind != Kind::Dir {
            self.keep(dir, name, path, &stat.meta)?;
            self.sync_archive()?;
            unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
            self.count_gone(path, &stat.meta);
            return Ok(Removed::Whole);
        }
        self.names_changed();
        let emptied = match beneath::open_dir_here(dir, name) {
            Err(Errno::EXDEV) => Emptied { stays: true, ..Emptied::default() },
            top => self.empty_all(top?.as_fd(), path, kept)?,
        };
        if emptied.stays {
            self.note_staying(path);
            return Ok(Removed::Partly);
        }
        self.staying.remove(path);
        unlinkat(dir, name, UnlinkatFlags::RemoveDir)?;
        Ok(Removed::Whole)
    }

    /// Whether something stays where everything around it goes.
    fn stays(&self, name: &[u8], kind: Kind) -> bool {
        self.set.left_out_by_name(name, kind).is_some_and(|rule| rule != LeftOut::Temporary)
    }

    fn note_staying(&mut self, path: &MirrorPath) {
        if self.staying.len() < MAX_PROBLEMS && self.staying.insert(path.clone()) {
            tracing::warn!(%path, "is removed on the active, and stays here with what is left out of the mirror, or mounted");
            self.untold = Some(path.clone());
        }
    }

    /// A directory that stays though the active removed it, once each.
    pub fn take_staying(&mut self) -> Option<MirrorPath> {
        self.untold.take()
    }

    /// Empties a directory, round by round: first what was `kept` with others, then what is archived together, then what
    /// lay deeper than the held directories.
    fn empty_all(&mut self, top: BorrowedFd<'_>, path: &MirrorPath, kept: Option<&Kept>) -> Result<Emptied, TreeError> {
        let (mut changes, mut first) = (0, kept);
        loop {
            let now = match (first, &self.archive) {
                (None, Some(_)) => Some(self.keep_below(top, path)?),
                _ => None,
            };
            let emptied = self.empty(top, top, path, 0, first.take().or(now.as_ref()))?;
            changes += usize::from(emptied.changed);
            if changes > CHANGES {
                return Err(TreeError::Refused("it changes while it is removed. Try: stop what writes there"));
            }
            if !emptied.again && !emptied.changed {
                return Ok(emptied);
            }
        }
    }

    /// Archives what is to go from a directory, [`TOGETHER`] files at most, durably.
    fn keep_below(&mut self, top: BorrowedFd<'_>, path: &MirrorPath) -> Result<Kept, TreeError> {
        let mut kept = Kept::default();
        self.keep_in(top, path, 0, &mut kept)?;
        self.sync_archive()?;
        Ok(kept)
    }

    fn keep_in(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &MirrorPath,
        depth: usize,
        kept: &mut Kept,
    ) -> Result<(), TreeError> {
        for (name, _) in beneath::names(dir)? {
            let below = path.join(&name).unwrap_or_else(|_| path.clone());
            let stat = match Stat::of_name(dir, &name) {
                Err(Errno::ENOENT) => continue,
                stat => stat?,
            };
            if stat.meta.kind == Kind::Dir {
                match beneath::open_dir_here(dir, &name) {
                    Err(Errno::EXDEV) => {}
                    _ if depth >= REMOVE_DEPTH => {}
                    child => self.keep_in(child?.as_fd(), &below, depth + 1, kept)?,
                }
            } else {
                self.keep_one(dir, &name, &below, stat, kept)?;
            }
            if kept.full {
                break;
            }
        }
        Ok(())
    }

    /// Empties a directory of what may go: where it is archived, of what was `kept`.
    fn empty(
        &mut self,
        top: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
        path: &MirrorPath,
        depth: usize,
        kept: Option<&Kept>,
    ) -> Result<Emptied, TreeError> {
        let mut emptied = Emptied::default();
        for (name, _) in beneath::names(dir)? {
            let below = path.join(&name).unwrap_or_else(|_| path.clone());
            let stat = match Stat::of_name(dir, &name) {
                Err(Errno::ENOENT) => continue,
                stat => stat?,
            };
            if stat.meta.kind == Kind::Dir {
                emptied.add(self.empty_below(top, dir, &name, &below, depth, kept)?);
                continue;
            }
            if self.stays(&name, stat.meta.kind) {
                emptied.stays = true;
                continue;
            }
            if let Some(kept) = kept
                && !kept.files.get(&below).is_some_and(|before| is_as(&stat, before))
            {
                // Which of both it is, where not everything was archived, the next round tells.
                emptied.again |= kept.full;
                emptied.changed |= !kept.full;
                continue;
            }
            unlinkat(dir, &name[..], UnlinkatFlags::NoRemoveDir)?;
            self.count_gone(&below, &stat.meta);
        }
        Ok(emptied)
    }

    fn empty_below(
        &mut self,
        top: BorrowedFd<'_>,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &MirrorPath,
        depth: usize,
        kept: Option<&Kept>,
    ) -> Result<Emptied, TreeError> {
        let child = match beneath::open_dir_here(dir, name) {
            Err(Errno::EXDEV) => return Ok(Emptied { stays: true, ..Emptied::default() }),
            child => child?,
        };
        if depth >= REMOVE_DEPTH {
            let temporary = self.temporary();
            renameat(dir, name, top, &temporary[..])?;
            return Ok(Emptied { again: true, ..Emptied::default() });
        }
        let emptied = self.empty(top, child.as_fd(), path, depth + 1, kept)?;
        if emptied.is_empty() {
            unlinkat(dir, name, UnlinkatFlags::RemoveDir)?;
        }
        Ok(emptied)
    }
}

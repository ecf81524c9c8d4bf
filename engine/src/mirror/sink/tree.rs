//! The sink's hands: changes of the tree beneath held root directories.
//!
//! Always: a path is resolved beneath its root, and the last name is handled in its held directory, never followed.
//! Never: the removal of a root or of a directory above one, or anything outside the roots.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, symlinkat, unlinkat},
};
use ringpair_fsmon::{
    beneath,
    meta::Stat,
    roots::{RootSet, TEMPORARY_PREFIX, TEMPORARY_SUFFIX},
};
use ringpair_wire::mirror::{Kind, Meta, MirrorPath, RootSpec};

use crate::mirror::{ArchiveFiles, MirrorError};

/// An opened root.
#[derive(Debug)]
pub struct OpenRoot {
    /// What it is.
    pub spec: RootSpec,
    /// Its directory.
    pub dir: OwnedFd,
}

/// Why a change could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The kernel refused.
    #[error("{0}")]
    Kernel(#[from] Errno),
    /// A rule refused.
    #[error("{0}")]
    Refused(&'static str),
    /// The archive failed: the mirror stops.
    #[error("{0}")]
    Archive(#[from] MirrorError),
}

/// The backup's trees.
pub struct Tree {
    pub(super) set: Arc<RootSet>,
    roots: Vec<OpenRoot>,
    /// The directory opened last: changes come in the order of paths.
    last: Option<(MirrorPath, Arc<OwnedFd>)>,
    /// Directories made on the way, to be synced with the group.
    made: Vec<(MirrorPath, Arc<OwnedFd>)>,
    pub(super) archive: Option<Box<dyn ArchiveFiles>>,
    pub(super) archived: bool,
    /// Files and bytes that removals and replacements took away, for the status.
    pub(super) gone: Vec<(MirrorPath, u64)>,
    /// Directories that were to go and hold what stays.
    pub(super) staying: BTreeSet<MirrorPath>,
    /// The newest of them that nobody was told of.
    pub(super) untold: Option<MirrorPath>,
    salt: u64,
    temporaries: u64,
}

impl Tree {
    /// A tree over opened roots. `salt` makes the names of temporary files this tree's own.
    pub const fn new(
        set: Arc<RootSet>,
        roots: Vec<OpenRoot>,
        archive: Option<Box<dyn ArchiveFiles>>,
        salt: u64,
    ) -> Self {
        Self {
            set,
            roots,
            last: None,
            made: Vec::new(),
            archive,
            archived: false,
            gone: Vec::new(),
            staying: BTreeSet::new(),
            untold: None,
            salt,
            temporaries: 0,
        }
    }

    /// The rules.
    pub const fn set(&self) -> &Arc<RootSet> {
        &self.set
    }

    /// The first comparison is over: nothing is archived any more.
    pub fn stop_archiving(&mut self) {
        if let Some(mut archive) = self.archive.take() {
            archive.finish();
        }
    }

    /// Takes the archive along to the next session.
    pub fn take_archive(&mut self) -> Option<Box<dyn ArchiveFiles>> {
        self.archive.take()
    }

    /// Whether what goes is archived first.
    pub const fn archives(&self) -> bool {
        self.archive.is_some()
    }

    /// Makes durable what was archived; before anything that was archived is overwritten for good.
    pub fn sync_archive(&mut self) -> Result<(), MirrorError> {
        if std::mem::take(&mut self.archived)
            && let Some(archive) = &mut self.archive
        {
            archive.sync().map_err(|source| MirrorError::Archive { path: MirrorPath::default(), source })?;
        }
        Ok(())
    }

    /// Directories that were made since the last call, and those they were made in.
    pub fn take_made(&mut self) -> Vec<(MirrorPath, Arc<OwnedFd>)> {
        std::mem::take(&mut self.made)
    }

    /// Files and bytes that went since the last call.
    pub fn take_gone(&mut self) -> Vec<(MirrorPath, u64)> {
        std::mem::take(&mut self.gone)
    }

    /// The opened root that covers a path.
    pub fn root(&self, path: &MirrorPath, is_dir: bool) -> Result<&OpenRoot, TreeError> {
        let spec = self.set.covering(path, is_dir).ok_or(TreeError::Refused("no mirrored directory covers it"))?;
        self.roots
            .iter()
            .find(|root| root.spec == *spec)
            .ok_or(TreeError::Refused("its mirrored directory is not open"))
    }

    /// Opens a directory at or below a root; with `make`, missing ones come into being.
    pub fn dir(&mut self, path: &MirrorPath, make: bool) -> Result<Arc<OwnedFd>, TreeError> {
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(dir));
        }
        let nearest = |root: &&OpenRoot| path.starts_with(&root.spec.path);
        let root = self
            .roots
            .iter()
            .filter(nearest)
            .max_by_key(|root| root.spec.path.as_bytes().len())
            .ok_or(TreeError::Refused("no mirrored directory holds it"))?;
        let relative = path.below(&root.spec.path).unwrap_or_default();
        let dir = match beneath::open_dir(root.dir.as_fd(), relative) {
            Err(Errno::ENOENT) if make && !relative.is_empty() => {
                let parent_path = path.parent().unwrap_or_default();
                let parent = self.dir(&parent_path, true)?;
                let name = path.name().unwrap_or_default();
                match mkdirat(&parent, name, Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
                let dir = Arc::new(beneath::open_dir(parent.as_fd(), name)?);
                self.made.push((parent_path, parent));
                self.made.push((path.clone(), Arc::clone(&dir)));
                dir
            }
            opened => Arc::new(opened?),
        };
        self.last = Some((path.clone(), Arc::clone(&dir)));
        Ok(dir)
    }

    /// The directory that holds a path, which is not a root itself, and its last name there.
    pub fn parent<'a>(
        &mut self,
        path: &'a MirrorPath,
        is_dir: bool,
        make: bool,
    ) -> Result<(Arc<OwnedFd>, &'a [u8]), TreeError> {
        let root = self.root(path, is_dir)?;
        if root.spec.path == *path {
            return Err(TreeError::Refused("it is a mirrored directory's own place"));
        }
        let dir = self.dir(&path.parent().unwrap_or_default(), make)?;
        Ok((dir, path.name().unwrap_or_default()))
    }

    /// Forgets opened directories: names changed.
    pub fn names_changed(&mut self) {
        self.last = None;
    }

    /// The name of the next temporary file.
    pub fn temporary(&mut self) -> Vec<u8> {
        self.temporaries += 1;
        let unique = format!("{:016x}-{:x}", self.salt, self.temporaries);
        [TEMPORARY_PREFIX, unique.as_bytes(), TEMPORARY_SUFFIX].concat()
    }

    /// Makes an empty temporary file in a directory.
    pub fn create(&mut self, dir: BorrowedFd<'_>) -> Result<(Vec<u8>, File), TreeError> {
        let name = self.temporary();
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(dir, &name[..], flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
        Ok((name, File::from(fd)))
    }

    /// Gives a name in a directory to a temporary one, whatever has it now; after [`Self::before_overwrite`].
    pub fn put(
        &mut self,
        dir: BorrowedFd<'_>,
        temporary: &[u8],
        name: &[u8],
        path: &MirrorPath,
    ) -> Result<(), TreeError> {
        match renameat(dir, temporary, dir, name) {
            Err(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
                self.clear_way(dir, name, path)?;
                renameat(dir, temporary, dir, name)?;
            }
            done => done?,
        }
        Ok(())
    }

    /// Moves what is at `from` to `to`, whatever is there. Returns the two directories, to be synced.
    pub fn rename(&mut self, from: &MirrorPath, to: &MirrorPath) -> Result<[(MirrorPath, Arc<OwnedFd>); 2], TreeError> {
        if self.set.holds_root(from) || self.set.holds_root(to) {
            return Err(TreeError::Refused("a mirrored directory itself is never moved"));
        }
        let (from_parent, to_parent) = (from.parent().unwrap_or_default(), to.parent().unwrap_or_default());
        let (old_name, new_name) = (from.name().unwrap_or_default(), to.name().unwrap_or_default());
        let old = self.dir(&from_parent, false)?;
        let kind = Stat::of_name(old.as_fd(), old_name)?.meta.kind;
        if self.set.left_out(from, kind).is_some() || self.set.left_out(to, kind).is_some() {
            return Err(TreeError::Refused("it is left out of the mirror"));
        }
        let new = self.dir(&to_parent, true)?;
        self.before_overwrite(new.as_fd(), None, new_name, to)?;
        self.sync_archive()?;
        match renameat(&old, old_name, &new, new_name) {
            Err(Errno::EISDIR | Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {
                self.clear_way(new.as_fd(), new_name, to)?;
                renameat(&old, old_name, &new, new_name)?;
            }
            done => done?,
        }
        self.names_changed();
        Ok([(from_parent, old), (to_parent, new)])
    }

    /// Two paths change places.
    pub fn exchange(&mut self, a: &MirrorPath, b: &MirrorPath) -> Result<[(MirrorPath, Arc<OwnedFd>); 2], TreeError> {
        if self.set.holds_root(a) || self.set.holds_root(b) {
            return Err(TreeError::Refused("a mirrored directory itself is never moved"));
        }
        let (a_parent, b_parent) = (a.parent().unwrap_or_default(), b.parent().unwrap_or_default());
        let (a_dir, b_dir) = (self.dir(&a_parent, false)?, self.dir(&b_parent, false)?);
        let (a_name, b_name) = (a.name().unwrap_or_default(), b.name().unwrap_or_default());
        for (here, there, path) in [((&a_dir, a_name), b, a), ((&b_dir, b_name), a, b)] {
            let kind = Stat::of_name(here.0.as_fd(), here.1)?.meta.kind;
            if self.set.left_out(path, kind).is_some() || self.set.left_out(there, kind).is_some() {
                return Err(TreeError::Refused("it is left out of the mirror"));
            }
        }
        renameat2(&a_dir, a_name, &b_dir, b_name, RenameFlags::RENAME_EXCHANGE)?;
        self.names_changed();
        Ok([(a_parent, a_dir), (b_parent, b_dir)])
    }

    /// A directory that is there from now on; what else is there goes.
    pub fn mkdir(&mut self, path: &MirrorPath) -> Result<Arc<OwnedFd>, TreeError> {
        let root = self.root(path, true)?;
        if root.spec.path == *path {
            return self.dir(path, false);
        }
        let (parent, name) = self.parent(path, true, true)?;
        match Stat::of_name(parent.as_fd(), name) {
            Ok(stat) if stat.meta.kind == Kind::Dir => {}
            Ok(_) => self.clear_way(parent.as_fd(), name, path)?,
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.dir(path, true)
    }

    /// A symbolic link or special file, made aside and put in place.
    pub fn special(
        &mut self,
        path: &MirrorPath,
        meta: &Meta,
        target: &[u8],
    ) -> Result<(MirrorPath, Arc<OwnedFd>), TreeError> {
        if let Some(left_out) = self.set.left_out_by_name(path.name().unwrap_or_default(), meta.kind) {
            tracing::debug!(path = %path, rule = %left_out, "left out");
            return Err(TreeError::Refused("it is left out of the mirror (OPS-096)"));
        }
        let (dir, name) = self.parent(path, false, true)?;
        let temporary = self.temporary();
        let kind = match meta.kind {
            Kind::Symlink => None,
            Kind::Fifo => Some(SFlag::S_IFIFO),
            Kind::CharDevice => Some(SFlag::S_IFCHR),
            Kind::BlockDevice => Some(SFlag::S_IFBLK),
            Kind::File | Kind::Dir | Kind::Socket => return Err(TreeError::Refused("not a special file")),
        };
        match kind {
            None => symlinkat(target, &dir, &temporary[..])?,
            Some(kind) => mknodat(&dir, &temporary[..], kind, Mode::S_IRUSR, meta.rdev)?,
        }
        let done = set_meta(dir.as_fd(), &temporary, meta)
            .map_err(TreeError::from)
            .and_then(|()| self.before_overwrite(dir.as_fd(), Some(&temporary), name, path))
            .and_then(|()| Ok(self.sync_archive()?))
            .and_then(|()| self.put(dir.as_fd(), &temporary, name, path));
        if let Err(error) = done {
            discard(dir.as_fd(), &temporary);
            return Err(error);
        }
        Ok((path.parent().unwrap_or_default(), dir))
    }
}

/// Removes a temporary file that is of no more use.
pub fn discard(dir: BorrowedFd<'_>, temporary: &[u8]) {
    if let Err(errno) = unlinkat(dir, temporary, UnlinkatFlags::NoRemoveDir)
        && errno != Errno::ENOENT
    {
        tracing::warn!(error = errno.desc(), "a temporary file cannot be removed; the next start removes it");
    }
}

fn times(meta: &Meta) -> (TimeSpec, TimeSpec) {
    let mtime = TimeSpec::new(meta.mtime_s, i64::from(meta.mtime_ns));
    (TimeSpec::UTIME_OMIT, mtime)
}

fn mode(meta: &Meta) -> Mode {
    Mode::from_bits_truncate(meta.mode.into())
}

/// Gives a name in a directory its mode, owner and times, never following it.
pub fn set_meta(dir: BorrowedFd<'_>, name: &[u8], meta: &Meta) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
    fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if meta.kind != Kind::Symlink {
        fchmodat(dir, name, mode(meta), FchmodatFlags::NoFollowSymlink)?;
    }
    let (atime, mtime) = times(meta);
    utimensat(dir, name, &atime, &mtime, UtimensatFlags::NoFollowSymlink)
}

/// The same for an open file or directory.
pub fn set_meta_of_fd(fd: impl AsFd, meta: &Meta) -> Result<(), Errno> {
    let fd = fd.as_fd();
    fchown(fd, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))?;
    fchmod(fd, mode(meta))?;
    let (atime, mtime) = times(meta);
    futimens(fd, &atime, &mtime)
}

/// Writes all of `bytes` to a file.
pub fn write_all(file: &mut File, bytes: &[u8]) -> Result<(), Errno> {
    file.write_all(bytes).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}

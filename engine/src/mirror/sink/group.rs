//! Changes that become durable together.
//!
//! Always: contents are synced before they get their names, names before they are reported. Never: a report of
//! something whose sync failed; a failed sync is not tried again on the same file, its change is sent anew.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::fd::AsFd,
    os::fd::OwnedFd,
    sync::Arc,
};

use nix::{
    errno::Errno,
    unistd::{fsync, syncfs},
};
use ringpair_fsmon::meta::Stat;
use ringpair_wire::mirror::{Meta, MirrorPath};

use super::{
    removal::Kept,
    tree::{Tree, TreeError, discard, set_meta_of_fd},
};
use crate::mirror::MirrorError;

/// How many files a group holds at most: each holds a descriptor.
pub const MAX_FILES: usize = 512;
/// From how many files or directories on they are synced together.
const TOGETHER: usize = 8;
/// How many changes.
pub const MAX_CHANGES: usize = 2048;
/// How many bytes.
pub const MAX_BYTES: u64 = 32 << 20;

/// A complete file that does not have its name yet.
#[derive(Debug)]
pub struct Complete {
    /// The number of its change.
    pub generation: u64,
    /// Its path.
    pub path: MirrorPath,
    /// The directory that holds it.
    pub dir: Arc<OwnedFd>,
    /// Its name there by now.
    pub temporary: Vec<u8>,
    /// Itself.
    pub file: File,
    /// How long it is.
    pub bytes: u64,
}

/// What came of a group.
#[derive(Debug, Default)]
pub struct Flushed {
    /// Changes that are durable.
    pub applied: Vec<u64>,
    /// Changes that failed.
    pub failed: Vec<(u64, String)>,
    /// Files that got their names, and their bytes.
    pub files: Vec<(MirrorPath, u64)>,
}

impl Flushed {
    fn fail(&mut self, generation: u64, error: TreeError) -> Result<(), MirrorError> {
        match error {
            TreeError::Archive(error) => Err(error),
            error => {
                self.failed.push((generation, error.to_string()));
                Ok(())
            }
        }
    }
}

/// Changes that are applied or ready, but not durable.
#[derive(Debug, Default)]
pub struct Group {
    files: Vec<Complete>,
    /// Paths to be removed, after what is there is archived, with the numbers of their changes.
    removals: BTreeMap<MirrorPath, u64>,
    /// Directories whose names changed.
    dirs: BTreeMap<MirrorPath, Arc<OwnedFd>>,
    /// Directories' metadata, set after everything in them: their times would not last otherwise.
    metas: BTreeMap<MirrorPath, (Arc<OwnedFd>, Meta)>,
    /// Files whose metadata changed.
    touched: Vec<File>,
    /// Changes that wait for the directories' sync only.
    changes: Vec<u64>,
    bytes: u64,
}

impl Group {
    /// Whether there is nothing to make durable.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.changes.is_empty() && self.removals.is_empty()
    }

    /// Whether it is to be flushed before it grows.
    pub fn is_full(&self) -> bool {
        self.files.len() + self.touched.len() >= MAX_FILES
            || self.changes.len() + self.removals.len() >= MAX_CHANGES
            || self.bytes >= MAX_BYTES
    }

    /// Whether a change of the names at `path` must wait until this group is flushed: something in it lies at, below or
    /// above the path.
    pub fn concerns(&self, path: &MirrorPath) -> bool {
        let near = |other: &MirrorPath| other.starts_with(path) || path.starts_with(other);
        let first_below = self.removals.range(path.clone()..).next();
        self.files.iter().any(|file| near(&file.path))
            || first_below.is_some_and(|(below, _)| below.starts_with(path))
            || self.removes(path)
            || self.metas.range(path.clone()..).next().is_some_and(|(below, _)| below.starts_with(path))
    }

    /// Whether a file of this path waits for its name.
    pub fn holds(&self, path: &MirrorPath) -> bool {
        self.files.iter().any(|file| file.path == *path)
    }

    /// Whether this path, or a directory that holds it, waits for its removal.
    pub fn removes(&self, path: &MirrorPath) -> bool {
        !self.removals.is_empty()
            && std::iter::successors(Some(path.clone()), MirrorPath::parent).any(|at| self.removals.contains_key(&at))
    }

    /// A path is to be removed with the others of this group.
    pub fn remove(&mut self, path: MirrorPath, generation: u64) {
        self.removals.insert(path, generation);
    }

    /// Takes a complete file.
    pub fn file(&mut self, file: Complete) {
        self.bytes += file.bytes;
        self.files.push(file);
    }

    /// A directory's names changed.
    pub fn sync_dir(&mut self, path: MirrorPath, dir: Arc<OwnedFd>) {
        self.dirs.insert(path, dir);
    }

    /// A directory is to have this metadata.
    pub fn dir_meta(&mut self, path: MirrorPath, dir: Arc<OwnedFd>, meta: Meta) {
        self.metas.insert(path, (dir, meta));
    }

    /// A file's metadata changed.
    pub fn touched(&mut self, file: File) {
        self.touched.push(file);
    }

    /// A change was made that is durable once the directories are.
    pub fn changed(&mut self, generation: u64) {
        self.changes.push(generation);
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// Only the archive's: then nothing more is overwritten.
    pub fn flush(&mut self, tree: &mut Tree) -> Result<Flushed, MirrorError> {
        let group = std::mem::take(self);
        let mut flushed = Flushed::default();
        let mut dirs = group.dirs;
        dirs.extend(tree.take_made());
        let mut waiting = group.changes;

        let mut ready = Vec::with_capacity(group.files.len());
        let synced = sync_contents(&group.files);
        for (file, synced) in group.files.into_iter().zip(synced) {
            let name = file.path.name().unwrap_or_default();
            match synced
                .map_err(TreeError::from)
                .and_then(|()| tree.before_overwrite(file.dir.as_fd(), Some(&file.temporary), name, &file.path))
            {
                Ok(()) => ready.push(file),
                Err(error) => give_up(&file, error, &mut flushed)?,
            }
        }
        let mut kept = Kept::default();
        let removals = before_removals(group.removals, tree, &mut kept, &mut flushed)?;
        tree.sync_archive()?;
        for (path, generation) in removals {
            match tree.remove(&path, Some(&kept)) {
                Ok(dir) => {
                    waiting.push(generation);
                    dirs.extend(dir);
                }
                Err(error) => flushed.fail(generation, error)?,
            }
        }
        for file in ready {
            let name = file.path.name().unwrap_or_default();
            match tree.put(file.dir.as_fd(), &file.temporary, name, &file.path) {
                Ok(()) => {
                    waiting.push(file.generation);
                    dirs.insert(file.path.parent().unwrap_or_default(), file.dir);
                    flushed.files.push((file.path, file.bytes));
                }
                Err(error) => give_up(&file, error, &mut flushed)?,
            }
        }
        let mut worst = None;
        for (path, (dir, meta)) in group.metas {
            worst = worst.or(set_meta_of_fd(&*dir, &meta).err());
            dirs.insert(path, dir);
        }
        for file in group.touched {
            worst = worst.or(fsync(file).err());
        }
        worst = worst.or(sync_dirs(dirs).err());
        match worst {
            None => flushed.applied = waiting,
            Some(errno) => {
                let reason = format!("a directory on the backup could not be synced: {}", errno.desc());
                flushed.failed.extend(waiting.into_iter().map(|generation| (generation, reason.clone())));
            }
        }
        Ok(flushed)
    }

    /// Forgets everything; temporary files go.
    pub fn discard(&mut self) {
        for file in std::mem::take(self).files {
            discard(file.dir.as_fd(), &file.temporary);
        }
    }
}

fn give_up(file: &Complete, error: TreeError, flushed: &mut Flushed) -> Result<(), MirrorError> {
    discard(file.dir.as_fd(), &file.temporary);
    flushed.fail(file.generation, error)
}

/// Archives what is to be removed, and returns those paths with the numbers of their changes.
fn before_removals(
    removals: BTreeMap<MirrorPath, u64>,
    tree: &mut Tree,
    kept: &mut Kept,
    flushed: &mut Flushed,
) -> Result<Vec<(MirrorPath, u64)>, MirrorError> {
    let mut ready = Vec::with_capacity(removals.len());
    for (path, generation) in removals {
        match tree.before_remove(&path, kept) {
            Ok(()) => ready.push((path, generation)),
            Err(error) => flushed.fail(generation, error)?,
        }
    }
    Ok(ready)
}

/// Syncs contents: few one by one; many by one sync of their file system, which is one journal commit instead of many.
fn sync_contents(files: &[Complete]) -> Vec<Result<(), Errno>> {
    if files.len() < TOGETHER {
        return files.iter().map(|file| fsync(&file.file)).collect();
    }
    let mut synced: BTreeMap<u64, Result<(), Errno>> = BTreeMap::new();
    let mut sync = |file: &Complete| {
        let device = Stat::of_fd(&file.file)?.dev;
        *synced.entry(device).or_insert_with(|| syncfs(&file.file))
    };
    files.iter().map(&mut sync).collect()
}

/// The same for directories; the first error.
fn sync_dirs(dirs: BTreeMap<MirrorPath, Arc<OwnedFd>>) -> Result<(), Errno> {
    let together = dirs.len() >= TOGETHER;
    let mut synced = BTreeSet::new();
    dirs.into_values().try_for_each(|dir| {
        if !together {
            fsync(&*dir)
        } else if synced.insert(Stat::of_fd(&*dir)?.dev) {
            syncfs(&*dir)
        } else {
            Ok(())
        }
    })
}

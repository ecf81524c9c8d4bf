//! Changes that come whole: what each does to the tree and to the group that makes it durable.
//!
//! Always: a change whose path the group concerns waits until the group is flushed. Never: an error of one path that
//! ends anything but its change; only the archive's ends the mirror.

use std::{fs::File, os::fd::AsFd};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use ringpair_fsmon::meta::Stat;
use ringpair_wire::mirror::{Change, Item, Kind, bounded_reason};

use super::{
    Sink,
    group::Complete,
    tree::{TreeError, discard, set_meta, set_meta_of_fd, write_all},
};
use crate::mirror::{Meta, MirrorError, MirrorMessage, MirrorPath};

impl Sink {
    pub(super) fn item(&mut self, item: Item) -> Result<(), MirrorError> {
        let Item { generation, path, change } = item;
        let names = match &change {
            Change::Skip => false,
            Change::File { .. } => self.group.removes(&path),
            Change::Mkdir(_) | Change::Meta(_) => self.group.holds(&path) || self.group.removes(&path),
            Change::Rename { to } | Change::Exchange { with: to } => {
                self.group.concerns(to) || self.group.concerns(&path)
            }
            _ => self.group.concerns(&path),
        };
        if names || self.group.is_full() {
            self.flush()?;
        }
        if matches!(change, Change::Skip) {
            self.announced.settle(generation, Some(&path), false);
            return Ok(());
        }
        match self.apply(generation, &path, change) {
            Ok(()) => {
                self.group_paths.insert(generation, path);
                Ok(())
            }
            Err(TreeError::Archive(error)) => Err(error),
            Err(error) => {
                self.failed(generation, Some(&path), error.to_string());
                Ok(())
            }
        }
    }

    pub(super) fn failed(&mut self, generation: u64, path: Option<&MirrorPath>, reason: String) {
        let shown = path.map(ToString::to_string).unwrap_or_default();
        self.status.last_error = Some(format!("{shown}: {reason}"));
        self.announced.settle(generation, path, false);
        self.outbox.push_back(MirrorMessage::Failed { generation, reason: bounded_reason(reason) });
    }

    fn apply(&mut self, generation: u64, path: &MirrorPath, change: Change) -> Result<(), TreeError> {
        let tree = self.tree()?;
        match change {
            Change::File { meta, content } => {
                if meta.kind != Kind::File || meta.size != content.len() as u64 {
                    return Err(TreeError::Refused("its length is not what was announced"));
                }
                let (dir, name) = tree.parent(path, false, true)?;
                if tree.set().left_out_by_name(name, Kind::File).is_some() {
                    return Err(TreeError::Refused("it is left out of the mirror"));
                }
                let (temporary, mut file) = tree.create(dir.as_fd())?;
                let written = write_all(&mut file, &content).and_then(|()| set_meta_of_fd(&file, &meta));
                if let Err(errno) = written {
                    discard(dir.as_fd(), &temporary);
                    return Err(errno.into());
                }
                self.group.file(Complete { generation, path: path.clone(), dir, temporary, file, bytes: meta.size });
                return Ok(());
            }
            Change::Mkdir(meta) => {
                let dir = tree.mkdir(path)?;
                self.group.dir_meta(path.clone(), dir, meta);
            }
            Change::Meta(meta) => self.meta(path, &meta)?,
            Change::Symlink { meta, target } => {
                if meta.kind != Kind::Symlink || target.is_empty() {
                    return Err(TreeError::Refused("not a symbolic link"));
                }
                let (parent, dir) = tree.special(path, &meta, &target)?;
                self.group.sync_dir(parent, dir);
            }
            Change::Special(meta) => {
                let (parent, dir) = tree.special(path, &meta, b"")?;
                self.group.sync_dir(parent, dir);
            }
            // Archived with the others of its group, and removed after that.
            Change::Remove if tree.archives() => {
                self.group.remove(path.clone(), generation);
                return Ok(());
            }
            Change::Remove => {
                if let Some((parent, dir)) = tree.remove(path, None)? {
                    self.group.sync_dir(parent, dir);
                }
            }
            Change::Rename { to } => {
                let dirs = tree.rename(path, &to)?;
                dirs.into_iter().for_each(|(path, dir)| self.group.sync_dir(path, dir));
            }
            Change::Exchange { with } => {
                let dirs = tree.exchange(path, &with)?;
                dirs.into_iter().for_each(|(path, dir)| self.group.sync_dir(path, dir));
            }
            Change::Skip => return Ok(()),
        }
        self.group.changed(generation);
        Ok(())
    }

    fn meta(&mut self, path: &MirrorPath, meta: &Meta) -> Result<(), TreeError> {
        let tree = self.tree()?;
        if meta.kind == Kind::Dir {
            let dir = tree.dir(path, false)?;
            tree.root(path, true)?;
            self.group.dir_meta(path.clone(), dir, *meta);
            return Ok(());
        }
        let (dir, name) = tree.parent(path, false, false)?;
        let there = Stat::of_name(dir.as_fd(), name)?;
        if there.meta.kind != meta.kind || there.meta.size != meta.size {
            return Err(TreeError::Refused("what is there is something else"));
        }
        set_meta(dir.as_fd(), name, meta)?;
        if meta.kind == Kind::File {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            self.group.touched(File::from(openat(&dir, name, flags, Mode::empty())?));
        }
        Ok(())
    }
}

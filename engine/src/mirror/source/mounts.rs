//! File systems that are mounted below a root: mirrored with it, watched, and missed when they are gone.
//!
//! Always: what was seen mounted and is not any more is named, and what it held stays on the backup (invariant 7). Never:
//! more mounts than [`MAX_MOUNTS`]; one that vanished while no member ran is not known.

use std::{os::fd::AsFd, sync::Arc};

use ringpair_fsmon::{beneath, meta::Stat, watch::WatchRoot};

use super::{MirrorPath, Source};
use crate::mirror::lister::Mounts;

/// How many mounts below roots are known at most.
const MAX_MOUNTS: usize = 1024;

impl Source {
    /// Takes what a comparison passed: a new mount is watched, then compared once more, since nobody told of its changes.
    pub(super) fn found_mounts(&mut self, found: Mounts) {
        let new: Vec<_> = found.into_iter().filter(|(path, _)| !self.mounts.contains_key(path)).collect();
        if new.is_empty() || self.mounts.len() + new.len() > MAX_MOUNTS {
            return;
        }
        let paths: Vec<_> = new.iter().map(|(path, _)| path.clone()).collect();
        Arc::make_mut(&mut self.mounts).extend(new);
        self.rewatch();
        paths.into_iter().for_each(|path| self.compare_soon(path, true));
    }

    fn open_mount(&self, path: &MirrorPath) -> Option<(std::os::fd::OwnedFd, u64)> {
        let spec = self.set.covering(path, true)?;
        let root = self.roots.iter().find(|root| root.spec == *spec)?.dir.clone()?;
        let dir = beneath::open_dir(root.as_fd(), path.below(&spec.path)?).ok()?;
        let device = Stat::of_fd(&dir).ok()?.dev;
        Some((dir, device))
    }

    /// Looks whether what was mounted still is; what came back is compared.
    pub(super) fn look_at_mounts(&mut self) {
        let mounts = Arc::clone(&self.mounts);
        let mut back = Vec::new();
        for (path, device) in mounts.iter() {
            if self.set.covering(path, true).is_none_or(|spec| spec.path == *path) {
                continue;
            }
            let there = self.open_mount(path).is_some_and(|(_, now)| now == *device);
            if !there {
                self.vanished.insert(path.clone());
            } else if self.vanished.remove(path) {
                back.push(path.clone());
            }
        }
        if !back.is_empty() {
            self.rewatch();
            back.into_iter().for_each(|path| self.compare_soon(path, true));
        }
    }

    /// Whether a path lies in a mount that is gone; looked at now.
    pub(super) fn is_in_vanished_mount(&mut self, path: &MirrorPath) -> bool {
        if self.mounts.is_empty() {
            return false;
        }
        self.look_at_mounts();
        self.vanished.iter().any(|mount| path.starts_with(mount))
    }

    /// What is to be watched beside the roots: fanotify marks file systems, not trees.
    pub(super) fn watched_mounts(&self) -> Vec<WatchRoot> {
        let watched = |path: &MirrorPath| self.set.covering(path, true).is_some_and(|spec| spec.continuous);
        self.mounts
            .iter()
            .filter(|(path, _)| watched(path))
            .filter_map(|(path, device)| {
                let (dir, now) = self.open_mount(path)?;
                (now == *device).then(|| WatchRoot { path: path.clone(), dir: Arc::new(dir), recursive: true })
            })
            .collect()
    }
}

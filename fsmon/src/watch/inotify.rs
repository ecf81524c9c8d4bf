//! Watching by inotify, where fanotify is not permitted: one watch a directory.
//!
//! Always: a new directory is watched before it is looked into, and everything in it is then to be looked at; a
//! directory that could not be watched is named. Never: a watch through a symbolic link.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

use nix::{
    dir::Type,
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify as Kernel, InotifyEvent, WatchDescriptor},
};
use ringpair_wire::mirror::{Kind, MirrorPath, Problem};

use super::{WatchEvent, WatchRoot};
use crate::{beneath, meta::Stat, roots::is_temporary};

/// How many events are read at once; above the kernel's default limit of its queue.
const MAX_BATCH: usize = 65_536;
/// How many unwatched directories are named.
const MAX_PROBLEMS: usize = 100;

#[derive(Debug)]
struct Root {
    path: MirrorPath,
    dir: Arc<OwnedFd>,
    recursive: bool,
}

/// Half a rename.
#[derive(Debug)]
struct Moved {
    cookie: u32,
    from: MirrorPath,
    is_dir: bool,
}

/// An inotify instance and what its watches mean.
#[derive(Debug)]
pub struct Inotify {
    kernel: Kernel,
    roots: Vec<Root>,
    paths: HashMap<WatchDescriptor, MirrorPath>,
    watches: BTreeMap<MirrorPath, WatchDescriptor>,
    moved: Option<Moved>,
    problems: Vec<Problem>,
}

fn mask() -> AddWatchFlags {
    AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_ONLYDIR
}

impl Inotify {
    /// Watches every directory of every root.
    pub fn new(roots: &[WatchRoot]) -> io::Result<Self> {
        let kernel = Kernel::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut this = Self {
            kernel,
            roots: roots
                .iter()
                .map(|r| Root { path: r.path.clone(), dir: Arc::clone(&r.dir), recursive: r.recursive })
                .collect(),
            paths: HashMap::new(),
            watches: BTreeMap::new(),
            moved: None,
            problems: Vec::new(),
        };
        for root in roots {
            this.watch_tree(root.path.clone());
        }
        Ok(this)
    }

    /// As [`super::Watcher::problems`].
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn root_of(&self, path: &MirrorPath, is_dir: bool) -> Option<&Root> {
        let direct = |root: &&Root| match path.below(&root.path) {
            None => false,
            Some(rest) => root.recursive || rest.is_empty() || (!is_dir && !rest.contains(&b'/')),
        };
        self.roots.iter().find(direct)
    }

    /// Watches a directory and, where its root is recursive, all below it.
    fn watch_tree(&mut self, path: MirrorPath) {
        let mut todo = vec![path];
        while let Some(path) = todo.pop() {
            let Some(root) = self.root_of(&path, true) else { continue };
            let recursive = root.recursive;
            let opened = beneath::open_dir(root.dir.as_fd(), path.below(&root.path).unwrap_or_default());
            let below = opened.and_then(|dir| {
                let place = format!("/proc/self/fd/{}", dir.as_raw_fd());
                let watch = self.kernel.add_watch(place.as_str(), mask())?;
                if let Some(old) = self.paths.insert(watch, path.clone())
                    && old != path
                    && self.watches.get(&old) == Some(&watch)
                {
                    self.watches.remove(&old);
                }
                self.watches.insert(path.clone(), watch);
                if recursive { subdirectories(dir.as_fd(), &path) } else { Ok(Vec::new()) }
            });
            match below {
                Ok(below) => todo.extend(below),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(errno) => self.problem(path, errno),
            }
        }
    }

    fn problem(&mut self, path: MirrorPath, errno: Errno) {
        let reason = if matches!(errno, Errno::ENOSPC | Errno::ENOMEM) {
            let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").unwrap_or_default();
            format!(
                "not watched: fs.inotify.max_user_watches is {}. Try: sysctl fs.inotify.max_user_watches={}, or CAP_SYS_ADMIN for fanotify",
                limit.trim(),
                self.watches.len().max(65_536) * 4
            )
        } else {
            format!("not watched: {}", errno.desc())
        };
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(Problem { path, reason });
        }
    }

    fn subtree(&self, path: &MirrorPath) -> Vec<(MirrorPath, WatchDescriptor)> {
        self.watches
            .range(path.clone()..)
            .take_while(|(below, _)| below.starts_with(path))
            .map(|(path, watch)| (path.clone(), *watch))
            .collect()
    }

    fn rebase(&mut self, from: &MirrorPath, to: &MirrorPath) {
        for (path, watch) in self.subtree(to) {
            self.forget(&path, watch);
        }
        for (path, watch) in self.subtree(from) {
            self.watches.remove(&path);
            if let Some(path) = path.rebased(from, to) {
                self.paths.insert(watch, path.clone());
                self.watches.insert(path, watch);
            }
        }
    }

    fn forget(&mut self, path: &MirrorPath, watch: WatchDescriptor) {
        self.watches.remove(path);
        self.paths.remove(&watch);
        // The kernel drops the watches of directories that are gone by itself.
        let _ = self.kernel.rm_watch(watch);
    }

    /// As [`super::Watcher::read`].
    pub fn read(&mut self, out: &mut Vec<WatchEvent>) -> io::Result<usize> {
        let mut count = 0;
        while count < MAX_BATCH {
            match self.kernel.read_events() {
                Ok(events) => {
                    count += events.len();
                    events.iter().for_each(|event| self.tell(event, out));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.moved_out(out);
                    break;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(count)
    }

    /// A rename whose other half never came: out of the mirror.
    fn moved_out(&mut self, out: &mut Vec<WatchEvent>) {
        if let Some(Moved { from, .. }) = self.moved.take() {
            for (path, watch) in self.subtree(&from) {
                self.forget(&path, watch);
            }
            out.push(WatchEvent::Changed { path: from, unsettled: false, content: true, name: true, subtree: false });
        }
    }

    fn tell(&mut self, event: &InotifyEvent, out: &mut Vec<WatchEvent>) {
        let has = |flag| event.mask.contains(flag);
        if !has(AddWatchFlags::IN_MOVED_TO) || self.moved.as_ref().is_some_and(|moved| moved.cookie != event.cookie) {
            self.moved_out(out);
        }
        if has(AddWatchFlags::IN_Q_OVERFLOW) {
            out.push(WatchEvent::Overflow);
            return;
        }
        if has(AddWatchFlags::IN_UNMOUNT) {
            out.push(WatchEvent::Unmounted);
            return;
        }
        if has(AddWatchFlags::IN_IGNORED) {
            if let Some(path) = self.paths.remove(&event.wd)
                && self.watches.get(&path) == Some(&event.wd)
            {
                self.watches.remove(&path);
            }
            return;
        }
        let Some(dir) = self.paths.get(&event.wd) else { return };
        let is_dir = has(AddWatchFlags::IN_ISDIR);
        let path = match event.name.as_ref().map(|name| name.as_bytes()) {
            None => Some(dir.clone()),
            Some(name) if is_temporary(name) => None,
            Some(name) => dir.join(name).ok(),
        };
        let Some(path) = path.filter(|path| self.root_of(path, is_dir).is_some()) else {
            // Half of a rename between the mirror and what is left out of it.
            self.moved_out(out);
            return;
        };
        if has(AddWatchFlags::IN_MOVED_FROM) {
            self.moved = Some(Moved { cookie: event.cookie, from: path, is_dir });
        } else if let Some(Moved { from, is_dir, .. }) = self.moved.take() {
            let reverse = WatchEvent::Renamed { from: path.clone(), to: from.clone(), is_dir };
            if out.last() == Some(&reverse) {
                // There and back, or an exchange, which inotify cannot tell apart: both are looked at anew.
                for path in [from, path] {
                    self.watch_tree(path.clone());
                    out.push(WatchEvent::Changed { path, unsettled: false, content: true, name: true, subtree: true });
                }
                return;
            }
            if is_dir {
                self.rebase(&from, &path);
            }
            out.push(WatchEvent::Renamed { from, to: path, is_dir });
        } else {
            let named =
                has(AddWatchFlags::IN_CREATE) || has(AddWatchFlags::IN_DELETE) || has(AddWatchFlags::IN_MOVED_TO);
            let appeared = is_dir && (has(AddWatchFlags::IN_CREATE) || has(AddWatchFlags::IN_MOVED_TO));
            if appeared {
                self.watch_tree(path.clone());
            }
            let unsettled = !is_dir && (has(AddWatchFlags::IN_CREATE) || has(AddWatchFlags::IN_MODIFY));
            let content = !has(AddWatchFlags::IN_ATTRIB);
            out.push(WatchEvent::Changed { path, unsettled, content, name: named, subtree: appeared });
        }
    }
}

fn subdirectories(dir: BorrowedFd<'_>, path: &MirrorPath) -> Result<Vec<MirrorPath>, Errno> {
    let is_dir = |name: &[u8], kind: Option<Type>| match kind {
        Some(kind) => kind == Type::Directory,
        None => Stat::of_name(dir, name).is_ok_and(|stat| stat.meta.kind == Kind::Dir),
    };
    let names = beneath::names(dir)?;
    Ok(names
        .into_iter()
        .filter(|(name, kind)| is_dir(name, *kind))
        .filter_map(|(name, _)| path.join(&name).ok())
        .collect())
}

impl AsFd for Inotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}

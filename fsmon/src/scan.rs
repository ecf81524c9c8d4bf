//! Walking a root: every path with its metadata, a directory followed at once by what is below it.
//!
//! Always: names in byte order, so that two walks of equal trees give equal lists; memory for the names of the
//! directories on the way down only; what cannot be read is named, and its subtree counts as unknown, never as gone.
//! Never: a followed link, or more than [`HELD_DIRS`] open directories.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    vec,
};

use nix::{errno::Errno, fcntl::OFlag, sys::stat::Mode};
use ringpair_wire::mirror::{Kind, MirrorPath, Problem, RootSpec};

use crate::{
    beneath,
    meta::Stat,
    roots::{RootSet, is_temporary},
};

/// How many directories a walk holds open; those above are opened again on the way back.
pub const HELD_DIRS: usize = 64;

/// What a walk finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A path that is mirrored.
    Entry(MirrorPath, Stat),
    /// A path that cannot be read: it and everything below it are unknown.
    Unknown(Problem),
}

impl Found {
    /// Where.
    #[must_use]
    pub const fn path(&self) -> &MirrorPath {
        match self {
            Self::Entry(path, _) => path,
            Self::Unknown(problem) => &problem.path,
        }
    }
}

#[derive(Debug)]
struct Frame {
    path: MirrorPath,
    dir: Option<OwnedFd>,
    names: vec::IntoIter<Box<[u8]>>,
}

/// A walk of one root, or of a part of it.
#[derive(Debug)]
pub struct Walk {
    root: OwnedFd,
    spec: RootSpec,
    set: Arc<RootSet>,
    stack: Vec<Frame>,
    /// The beginning of the walk, until it is looked at.
    start: Option<MirrorPath>,
    /// Temporary files of the mirror that were passed.
    temporaries: Vec<MirrorPath>,
}

impl Walk {
    /// Walks from `start` (a path at or below the root `spec`, whose directory is `root`) downwards. Yields only what
    /// this root covers: not what a stronger root inside covers, nor what the rules leave out.
    #[must_use]
    pub const fn new(root: OwnedFd, spec: RootSpec, set: Arc<RootSet>, start: MirrorPath) -> Self {
        Self { root, spec, set, stack: Vec::new(), start: Some(start), temporaries: Vec::new() }
    }

    /// Temporary files that were passed since the last call: leftovers, unless their writer is still at work.
    pub fn take_temporaries(&mut self) -> Vec<MirrorPath> {
        std::mem::take(&mut self.temporaries)
    }

    /// The next path; `None` at the end.
    #[expect(clippy::should_implement_trait, reason = "not an iterator of values: each step may touch the disk")]
    pub fn next(&mut self) -> Option<Found> {
        if let Some(start) = self.start.take()
            && let Some(found) = self.look_at_start(start)
        {
            return Some(found);
        }
        loop {
            let frame = self.stack.last_mut()?;
            let Some(name) = frame.names.next() else {
                self.stack.pop();
                continue;
            };
            let Ok(path) = frame.path.join(&name) else {
                let problem = Problem { path: frame.path.clone(), reason: "a path below is too long to mirror".into() };
                return Some(Found::Unknown(problem));
            };
            if is_temporary(&name) {
                self.temporaries.push(path);
                continue;
            }
            if frame.dir.is_none() {
                let relative = frame.path.below(&self.spec.path).unwrap_or_default();
                match beneath::open_dir(self.root.as_fd(), relative) {
                    Ok(dir) => frame.dir = Some(dir),
                    Err(errno) => {
                        let path = frame.path.clone();
                        self.stack.pop();
                        if let Some(found) = unknown(path, errno) {
                            return Some(found);
                        }
                        continue;
                    }
                }
            }
            let Some(dir) = frame.dir.as_ref() else { continue };
            let stat = match Stat::of_name(dir.as_fd(), &name) {
                Ok(stat) => stat,
                Err(errno) => match unknown(path, errno) {
                    Some(found) => return Some(found),
                    None => continue,
                },
            };
            if stat.meta.kind == Kind::Dir
                && let Some(found) = self.descend(&path, &name)
            {
                return Some(found);
            }
            if self.covers(&path, &name, stat.meta.kind) {
                return Some(Found::Entry(path, stat));
            }
        }
    }

    fn look_at_start(&mut self, start: MirrorPath) -> Option<Found> {
        let relative = start.below(&self.spec.path)?;
        let (parent, name) = match relative.iter().rposition(|&b| b == b'/') {
            Some(at) => (&relative[..at], &relative[at + 1..]),
            None => (&b""[..], relative),
        };
        let looked = beneath::open_dir(self.root.as_fd(), parent).and_then(|dir| {
            let stat = if name.is_empty() { Stat::of_fd(&dir) } else { Stat::of_name(dir.as_fd(), name) };
            stat.map(|stat| (dir, stat))
        });
        let (dir, stat) = match looked {
            Ok(looked) => looked,
            Err(errno) => return unknown(start, errno),
        };
        if stat.meta.kind == Kind::Dir {
            let opened = if name.is_empty() { Ok(dir) } else { beneath::open_dir(dir.as_fd(), name) };
            match opened.and_then(|dir| beneath::names(dir.as_fd()).map(|names| (dir, names))) {
                Ok((dir, names)) => self.push(start.clone(), dir, names),
                Err(errno) => return unknown(start, errno),
            }
        }
        let root_itself = start == self.spec.path;
        let wanted = if root_itself {
            self.spec.recursive
        } else {
            self.covers(&start, start.name().unwrap_or_default(), stat.meta.kind)
        };
        wanted.then_some(Found::Entry(start, stat))
    }

    /// Opens the directory `name` of the innermost frame, if anything below it can be covered by this root.
    fn descend(&mut self, path: &MirrorPath, name: &[u8]) -> Option<Found> {
        let stronger = |root: &&RootSpec| {
            root.path == *path && root.recursive && root.continuous >= self.spec.continuous && **root != self.spec
        };
        if !self.spec.recursive || self.set.roots().iter().any(|root| stronger(&root)) {
            return None;
        }
        let dir = self.stack.last().and_then(|frame| frame.dir.as_ref())?;
        let opened = beneath::open_dir(dir.as_fd(), name);
        match opened.and_then(|dir| beneath::names(dir.as_fd()).map(|names| (dir, names))) {
            Ok((dir, names)) => {
                self.push(path.clone(), dir, names);
                None
            }
            Err(errno) => unknown(path.clone(), errno),
        }
    }

    fn push(&mut self, path: MirrorPath, dir: OwnedFd, names: Vec<beneath::Name>) {
        if let Some(above) = self.stack.len().checked_sub(HELD_DIRS) {
            self.stack[above].dir = None;
        }
        let names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
        self.stack.push(Frame { path, dir: Some(dir), names: names.into_iter() });
    }

    fn covers(&self, path: &MirrorPath, name: &[u8], kind: Kind) -> bool {
        self.set.left_out_by_name(name, kind).is_none()
            && self.set.covering(path, kind == Kind::Dir).is_some_and(|root| *root == self.spec)
    }
}

/// What a failed look means: a path that is gone or became another kind is no finding (an event tells), anything else
/// is unknown.
fn unknown(path: MirrorPath, errno: Errno) -> Option<Found> {
    if matches!(errno, Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) {
        return None;
    }
    Some(Found::Unknown(Problem { path, reason: format!("cannot be read: {}", errno.desc()) }))
}

/// Opens a root's directory by its full path on this host; the administrator's own path may lead through links.
///
/// # Errors
/// The kernel's.
pub fn open_root(path: &std::path::Path) -> Result<OwnedFd, Errno> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Whether a directory has no entries but temporary files of the mirror.
///
/// # Errors
/// The kernel's.
pub fn is_empty(dir: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(beneath::names(dir)?.iter().all(|(name, _)| is_temporary(name)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    fn walk(base: &Path, custom: &str, initial: &str, exceptions: &str, root: usize) -> Vec<String> {
        let set = Arc::new(RootSet::parse(custom, initial, exceptions, false).unwrap());
        let spec = set.roots()[root].clone();
        let fd = open_root(&base.join(std::str::from_utf8(spec.path.as_bytes()).unwrap())).unwrap();
        let mut walk = Walk::new(fd, spec.clone(), set, spec.path);
        let mut found = Vec::new();
        while let Some(next) = walk.next() {
            assert!(matches!(next, Found::Entry(..)), "{next:?}");
            found.push(next.path().to_string());
        }
        found
    }

    fn tree() -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        for dir in ["r/a/b", "r/a.b", "r/z"] {
            fs::create_dir_all(temp.path().join(dir)).unwrap();
        }
        for file in ["r/a/b/f", "r/a/g", "r/a.b/h", "r/i.tmp", "r/j", "r/z/k.TMP"] {
            fs::write(temp.path().join(file), file).unwrap();
        }
        symlink("/etc", temp.path().join("r/link")).unwrap();
        temp
    }

    // REQ: REP-027 REP-030
    #[test]
    fn a_walk_has_the_order_of_paths_and_follows_no_link() {
        let temp = tree();
        let all = walk(temp.path(), "+/r", "", "tmp", 0);
        assert_eq!(
            all,
            ["/r", "/r/a", "/r/a/b", "/r/a/b/f", "/r/a/g", "/r/a.b", "/r/a.b/h", "/r/j", "/r/link", "/r/z"]
        );
        assert_eq!(walk(temp.path(), "/r", "", "", 0), ["/r/i.tmp", "/r/j", "/r/link"]);
    }

    // REQ: REP-035
    #[test]
    fn each_path_is_found_by_one_root_only() {
        let temp = tree();
        let outer = walk(temp.path(), "/r/a;+/r/z", "+/r", "", 0);
        assert_eq!(outer, ["/r", "/r/a/b", "/r/a/b/f", "/r/a.b", "/r/a.b/h", "/r/i.tmp", "/r/j", "/r/link"]);
        assert_eq!(walk(temp.path(), "/r/a;+/r/z", "+/r", "", 1), ["/r/a/g"]);
        assert_eq!(walk(temp.path(), "/r/a;+/r/z", "+/r", "", 2), ["/r/z", "/r/z/k.TMP"]);
    }

    #[test]
    fn deeper_than_the_held_directories() {
        let temp = tempfile::tempdir().unwrap();
        let mut path = temp.path().join("r");
        for _ in 0..HELD_DIRS * 2 {
            path.push("d");
        }
        fs::create_dir_all(&path).unwrap();
        let mut up = path.clone();
        for _ in 0..HELD_DIRS * 2 {
            fs::write(up.join("z"), "").unwrap();
            up.pop();
        }
        assert_eq!(walk(temp.path(), "+/r", "", "", 0).len(), HELD_DIRS * 4 + 1);
    }
}

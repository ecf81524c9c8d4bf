//! Watching roots for changes: one descriptor to poll, one kind of event, whatever the kernel permits.
//!
//! Always: an event is a hint (look at the path); what could not be told is an [`WatchEvent::Overflow`]. Only what lies
//! beneath the watched roots is told. Never: an unbounded queue, or a path read as text.

mod fanotify;
mod inotify;

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use fanotify::Fanotify;
use inotify::Inotify;
use ringpair_wire::mirror::{MirrorPath, Problem};

/// A directory to watch.
#[derive(Clone, Debug)]
pub struct WatchRoot {
    /// Its path as the mirror names it; events carry paths below this.
    pub path: MirrorPath,
    /// Its open directory.
    pub dir: Arc<OwnedFd>,
    /// With everything below, or only what is directly in it.
    pub recursive: bool,
}

/// What happened, as a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// Look at this path: made, changed or gone.
    Changed {
        /// Where.
        path: MirrorPath,
        /// Whether its writer may still be at work: nobody closed it since.
        unsettled: bool,
        /// Whether the content may have changed, or only mode, owner and times.
        content: bool,
        /// Whether a name was made, or is gone: its directory's times changed too.
        name: bool,
        /// Whether everything below it is to be looked at too.
        subtree: bool,
    },
    /// What was at `from` is at `to` now.
    Renamed {
        /// The old path.
        from: MirrorPath,
        /// The new path.
        to: MirrorPath,
        /// Whether it is a directory.
        is_dir: bool,
    },
    /// What was at `a` and what was at `b` changed places.
    Exchanged {
        /// The one path.
        a: MirrorPath,
        /// The other.
        b: MirrorPath,
    },
    /// Events were lost: compare everything.
    Overflow,
    /// The file system of a root went away.
    Unmounted,
}

/// Which of the kernel's interfaces is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// One mark a file system.
    Fanotify,
    /// One watch a directory.
    Inotify,
}

impl fmt::Display for WatchKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fanotify => "fanotify",
            Self::Inotify => "inotify",
        })
    }
}

#[derive(Debug)]
enum Inner {
    Fanotify(Fanotify),
    Inotify(Inotify),
}

/// Watches a set of roots.
#[derive(Debug)]
pub struct Watcher {
    inner: Inner,
    why: Option<String>,
}

impl Watcher {
    /// Marks every root, by fanotify or, where that is not permitted or not wanted, by inotify. From the return on no
    /// change goes untold.
    ///
    /// # Errors
    /// Neither is possible: the reason of the second.
    pub fn new(roots: Vec<WatchRoot>, force_inotify: bool) -> io::Result<Self> {
        let why = if force_inotify {
            Some("asked for".to_owned())
        } else {
            match Fanotify::new(&roots) {
                Ok(fanotify) => return Ok(Self { inner: Inner::Fanotify(fanotify), why: None }),
                Err(reason) => Some(reason),
            }
        };
        Ok(Self { inner: Inner::Inotify(Inotify::new(&roots)?), why })
    }

    /// Which interface is in use.
    #[must_use]
    pub const fn kind(&self) -> WatchKind {
        match self.inner {
            Inner::Fanotify(_) => WatchKind::Fanotify,
            Inner::Inotify(_) => WatchKind::Inotify,
        }
    }

    /// Why it is not fanotify.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Directories that could not be watched, each with what to try; empty: all are.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match &self.inner {
            Inner::Fanotify(_) => &[],
            Inner::Inotify(inotify) => inotify.problems(),
        }
    }

    /// Reads once, without blocking, a bounded number of events. Returns how many events the kernel had told of; 0: the
    /// queue is empty.
    ///
    /// # Errors
    /// The kernel's; the watch is then of no more use.
    pub fn read(&mut self, out: &mut Vec<WatchEvent>) -> io::Result<usize> {
        match &mut self.inner {
            Inner::Fanotify(fanotify) => fanotify.read(out),
            Inner::Inotify(inotify) => inotify.read(out),
        }
    }
}

impl AsFd for Watcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.inner {
            Inner::Fanotify(fanotify) => fanotify.as_fd(),
            Inner::Inotify(inotify) => inotify.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests;

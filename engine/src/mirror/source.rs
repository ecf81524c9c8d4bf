//! The active member's half of the mirror.

use std::{os::fd::BorrowedFd, time::Duration};

use ringpair_wire::{id::Epoch, mirror::Problem};

use super::{MirrorBase, MirrorDifferences, MirrorError, MirrorMessage, MirrorStatus, Outbox, RootSet};

/// What a source is started with.
#[derive(Clone, Debug)]
pub struct SourceOptions {
    /// The epoch of this active.
    pub epoch: Epoch,
    /// Where the roots are on this host.
    pub base: MirrorBase,
    /// What is mirrored.
    pub roots: RootSet,
    /// Watch by inotify even where fanotify is permitted.
    pub force_inotify: bool,
}

/// What the loop is told; taken by [`Source::poll_event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceEvent {
    /// Everything that had changed before [`Source::barrier`] was called is durable on the backup, but for what is named.
    BarrierDone {
        /// The barrier's number.
        id: u64,
        /// Paths that are not, each with its reason; empty: all are.
        unreplicated: Vec<Problem>,
    },
    /// A comparison asked for by [`Source::verify`] ended.
    Verified {
        /// The number it was asked for with.
        id: u64,
        /// What it found.
        differences: MirrorDifferences,
    },
}

/// Watches the roots, keeps the set of changed paths, and sends them.
#[derive(Debug)]
pub struct Source {
    options: SourceOptions,
    outbox: Outbox,
}

impl Source {
    /// Opens the roots and marks the watches. A root that is missing or unreadable is named in the status, not an error.
    #[must_use]
    pub fn new(options: SourceOptions) -> Self {
        Self { options, outbox: Outbox::new() }
    }

    /// What becomes readable when files change, for the loop to poll; `None` while nothing is watched. Changes with
    /// [`Self::set_roots`].
    #[must_use]
    pub fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Replaces what is mirrored, at once: new roots are compared and copied, then watched; the files of removed ones
    /// stay (REP-031).
    pub fn set_roots(&mut self, roots: RootSet) {
        self.options.roots = roots;
    }

    /// The bulk lane to the backup is up: announces the roots, then compares everything.
    pub fn connected(&mut self, _now: Duration) {}

    /// The bulk lane is down: what was under way is changed again.
    pub fn disconnected(&mut self) {
        self.outbox.clear();
    }

    /// Does a bounded piece of work: reads watch events, walks, reads files into the outbox. Returns whether it did any;
    /// call again soon if so.
    pub fn turn(&mut self, _now: Duration) -> bool {
        false
    }

    /// When [`Self::turn`] wants to be called even if nothing happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        None
    }

    /// The next announcement, for the ds lane. Content is not handed out before its announcement was taken here.
    pub fn poll_announcement(&mut self) -> Option<MirrorMessage> {
        None
    }

    /// The next message for the bulk lane. Leave messages here while the lane is full: the outbox is bounded, and so
    /// is what is read ahead.
    pub fn poll_message(&mut self) -> Option<MirrorMessage> {
        self.outbox.pop_front()
    }

    /// What the loop is to be told.
    pub fn poll_event(&mut self) -> Option<SourceEvent> {
        None
    }

    /// Takes a message of the backup.
    ///
    /// # Errors
    /// [`MirrorError::Protocol`]: the connection is to be closed.
    pub fn handle_message(&mut self, message: MirrorMessage, _now: Duration) -> Result<(), MirrorError> {
        Err(MirrorError::Protocol(format!("{message:?}")))
    }

    /// Asks for a [`SourceEvent::BarrierDone`] once everything that has changed on the file system until now is durable
    /// on the backup.
    pub fn barrier(&mut self, _id: u64) {}

    /// Asks for a [`SourceEvent::Verified`]: both trees compared, with contents if `deep`.
    pub fn verify(&mut self, _id: u64, _deep: bool) {}

    /// What is shown.
    #[must_use]
    pub fn status(&self) -> MirrorStatus {
        MirrorStatus::default()
    }
}

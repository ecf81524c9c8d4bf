//! Work that would keep the loop from turning, done on threads of its own: hooks, archives and counting them, checkpoints.
//!
//! Always: at most one job of each kind at a time (the core asks for one after the other); every job ends with a
//! [`Done`] and a wake, even if it panics. Never: a job that touches the driver, the journal's writer or the core.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crossbeam::channel::{Receiver, Sender, bounded};
use ringpair_core::{effect::Hook, input::WorkToken};
use ringpair_wire::id::Epoch;

use super::contents::Looked;
use crate::{api::status::DivergenceSummary, ds::store::Checkpoint, hooks::HookReport, ring::Waker};

/// More jobs than ever run at once.
const QUEUED: usize = 64;

/// What a job ended with.
pub enum Done {
    /// A hook ended: the report, or why there is none.
    Hook {
        /// Which.
        hook: Hook,
        /// Its key.
        epoch: Epoch,
        /// `Ok(None)`: none is configured, or it ran for this epoch before.
        result: Result<Option<HookReport>, String>,
    },
    /// The archive of records is written and synced.
    Archived {
        /// The work.
        work: WorkToken,
        /// How many records.
        result: Result<u64, String>,
    },
    /// A look at the contents and the removal of those that nothing refers to.
    Contents(Result<Looked, String>),
    /// What the checkpointer did.
    Checkpoint(Checkpoint),
    /// What is in the divergence archive; `None`: it cannot be read.
    Divergence(Option<DivergenceSummary>),
}

/// Drops something large on a thread that has time; here, if none can be made.
pub fn free<T: Send + 'static>(what: T) {
    // An error gives nothing back: what could not be moved is dropped with the closure.
    drop(std::thread::Builder::new().name("free".into()).spawn(move || drop(what)));
}

/// As [`free`], some at a time: `shed` drops a part, true: only little is left. All threads share one allocator, and one
/// that frees without a pause keeps the loop from it.
pub fn free_by_parts<T: Send + 'static>(mut what: T, shed: impl Fn(&mut T) -> bool + Send + 'static) {
    let run = move || {
        while !shed(&mut what) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    };
    drop(std::thread::Builder::new().name("free".into()).spawn(run));
}

/// Starts jobs and hears of their ends.
pub struct Jobs {
    sender: Sender<Done>,
    receiver: Receiver<Done>,
    waker: Waker,
}

impl Jobs {
    /// Jobs whose ends call `waker`.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        let (sender, receiver) = bounded(QUEUED);
        Self { sender, receiver, waker }
    }

    /// Runs `job` on a thread named `name`; `failed` says what a panic, or a thread that cannot be made, ends it with.
    pub fn start(
        &self,
        name: &str,
        job: impl FnOnce() -> Done + Send + 'static,
        failed: impl Fn(String) -> Done + Send + Clone + 'static,
    ) {
        let (sender, waker, on_panic) = (self.sender.clone(), self.waker.clone(), failed.clone());
        let run = move || {
            let done = catch_unwind(AssertUnwindSafe(job)).unwrap_or_else(|_| on_panic("it panicked".into()));
            let _ = sender.send(done);
            waker.wake();
        };
        if let Err(error) = std::thread::Builder::new().name(name.into()).spawn(run) {
            let _ = self.sender.send(failed(format!("no thread for it: {error}")));
            self.waker.wake();
        }
    }

    /// Where the checkpointer reports to.
    pub fn checkpoints(&self) -> impl Fn(Checkpoint) + Send + 'static {
        let (sender, waker) = (self.sender.clone(), self.waker.clone());
        move |checkpoint| {
            // The loop takes every report before it asks for much more: there is room.
            let _ = sender.try_send(Done::Checkpoint(checkpoint));
            waker.wake();
        }
    }

    /// The next end.
    #[must_use]
    pub fn poll(&self) -> Option<Done> {
        self.receiver.try_recv().ok()
    }
}

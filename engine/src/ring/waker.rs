//! Rouses a driver from another thread, through an eventfd.
//!
//! Wakes coalesce: between two turns one write reaches the kernel, however many threads call. Whatever was put into a
//! channel before `wake` is seen by the loop that looks into the channel after the turn that `wake` ends.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Ends a driver's wait. Cheap to clone, usable from any thread, harmless after the driver is gone.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    event: EventFd,
    called: AtomicBool,
}

impl Waker {
    /// A waker of nobody yet.
    pub(super) fn new() -> io::Result<Self> {
        // Not EFD_NONBLOCK: a ring would answer a read with EAGAIN instead of waiting.
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?;
        Ok(Self(Arc::new(Inner { event, called: AtomicBool::new(false) })))
    }

    /// Makes the current turn end, or the next one not wait.
    pub fn wake(&self) {
        if !self.0.called.swap(true, Ordering::SeqCst) {
            // The counter cannot overflow: at most one write stands for each read.
            let _ = self.0.event.write(1);
        }
    }

    /// Notes that the eventfd has been read: the next call writes again.
    pub(super) fn heard(&self) {
        self.0.called.store(false, Ordering::SeqCst);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.event.as_fd().as_raw_fd()
    }
}

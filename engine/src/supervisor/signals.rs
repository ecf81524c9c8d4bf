//! SIGTERM, SIGINT and SIGHUP as a readable descriptor.
//!
//! Always: caught by handlers, which a child's exec clears, and never by a mask, which a worker or a hook would inherit.
//! Never: a decision about what a signal means.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::{flag, low_level::pipe};

/// The signals that came and were not taken yet.
#[derive(Debug)]
pub struct Signals {
    bell: UnixStream,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

impl Signals {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// If the handlers cannot be set.
    pub fn catch() -> io::Result<Self> {
        let (bell, ringer) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, raised) in [(SIGTERM, &stop), (SIGINT, &stop), (SIGHUP, &reload)] {
            // The flag first: whoever hears the bell finds it raised.
            flag::register(signal, Arc::clone(raised))?;
            pipe::register(signal, ringer.try_clone()?)?;
        }
        Ok(Self { bell, stop, reload })
    }

    /// Takes what came: whether to stop, whether to reload.
    pub fn take(&mut self) -> (bool, bool) {
        let mut rung = [0; 64];
        while matches!(self.bell.read(&mut rung), Ok(length) if length > 0) {}
        (self.stop.swap(false, Ordering::AcqRel), self.reload.swap(false, Ordering::AcqRel))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

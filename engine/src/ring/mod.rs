//! Asynchronous input and output for the loops: one [`Driver`] a thread, over io_uring or, where that is absent or
//! forbidden, over epoll and a helper thread for files, with the same behaviour (REP-301).
//!
//! Completion based: [`Driver::submit`] queues an operation, which owns its buffers and descriptor until its last
//! [`Completion`] comes out of [`Driver::turn`]. Submissions are coalesced: one system call a turn. Nothing blocks but
//! `turn`, and nothing there spins. Memory is bounded: so many operations in flight, so many pool buffers. No memory is
//! freed while the kernel may still use it, not even when a driver is dropped with operations in flight. A driver
//! stays in the thread that made it (`!Send`); other threads reach it through a [`Waker`].
//!
//! `unsafe` stands only in this directory, each block with its proof.

mod buf;
mod map;
mod op;
mod plain;
mod plain_files;
mod registry;
mod slot;
#[cfg(test)]
mod tests;
mod uring;
mod waker;

use std::{io, time::Duration};

pub use buf::{Buf, BufPool, Shared};
pub use map::map_sealed;
pub use op::{Carried, Completion, Fd, MAX_SLICES, Op, Rejected, RejectedWhy, Token};
pub use plain::PlainDriver;
pub use uring::RingDriver;
pub use waker::Waker;

/// Which driver to use (`io.driver` of the configuration).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// io_uring if this host allows it, else the plain driver.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll and a helper thread for files.
    Plain,
}

/// What io_uring can be told to do without (`io.without` of the configuration): for hosts where something of it is
/// broken, and to test that all works without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Feature {
    /// `zero_copy`: sends out of the caller's memory.
    ZeroCopy,
    /// `defer_taskrun`: results are worked on in the turn that takes them.
    DeferTaskrun,
    /// `registered_buffers`: the pool's memory is known to the kernel beforehand.
    RegisteredBuffers,
    /// `registered_files`: long-lived descriptors are known to the kernel beforehand.
    RegisteredFiles,
}

impl Feature {
    /// Every one with its name in the configuration.
    pub const NAMED: [(&str, Self); 4] = [
        ("zero_copy", Self::ZeroCopy),
        ("defer_taskrun", Self::DeferTaskrun),
        ("registered_buffers", Self::RegisteredBuffers),
        ("registered_files", Self::RegisteredFiles),
    ];
}

/// What a driver is made with. All of it is allocated at the start.
#[derive(Clone, Debug)]
pub struct DriverOptions {
    /// Which driver.
    pub choice: DriverChoice,
    /// The greatest number of operations in flight, 1 to 32,768.
    pub in_flight: u32,
    /// How many buffers the pool has, at least 1.
    pub buf_count: usize,
    /// The size of each, in bytes; rounded up to whole pages.
    pub buf_bytes: usize,
    /// How many descriptors can be registered at once (0: none).
    pub registered_files: u32,
    /// What io_uring is to do without.
    pub without: Vec<Feature>,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            choice: DriverChoice::Auto,
            in_flight: 512,
            buf_count: 64,
            buf_bytes: 64 << 10,
            registered_files: 64,
            without: Vec::new(),
        }
    }
}

/// Which driver is in use, with what, and why (`io` of `status` and `check`).
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DriverReport {
    /// `io_uring` or `plain`.
    pub driver: &'static str,
    /// What the driver uses of what the kernel offers.
    pub features: Vec<String>,
    /// Why this driver, and what it has to do without.
    pub why: String,
}

/// What a turn was for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turned {
    /// Completions appended.
    pub completions: usize,
    /// A [`Waker`] was called since the turn before.
    pub woken: bool,
}

impl Turned {
    /// Whether there is anything to deal with.
    #[must_use]
    pub const fn is_something(&self) -> bool {
        self.completions > 0 || self.woken
    }
}

/// One of the two drivers. Create it in the thread that uses it.
#[derive(Debug)]
pub enum Driver {
    /// Over io_uring.
    Ring(Box<RingDriver>),
    /// Over epoll and a helper thread.
    Plain(Box<PlainDriver>),
}

impl Driver {
    /// Makes the driver that `options` ask for.
    ///
    /// # Errors
    /// io_uring was demanded and is not to be had (the error says what the kernel said), or the host lacks even
    /// memory, epoll or threads.
    pub fn new(options: &DriverOptions) -> io::Result<Self> {
        match options.choice {
            DriverChoice::Plain => Ok(Self::Plain(Box::new(PlainDriver::new(options, "asked for by io.driver")?))),
            DriverChoice::IoUring => Ok(Self::Ring(Box::new(RingDriver::new(options)?))),
            DriverChoice::Auto => match RingDriver::new(options) {
                Ok(ring) => Ok(Self::Ring(Box::new(ring))),
                Err(error) => Ok(Self::Plain(Box::new(PlainDriver::new(options, &error.to_string())?))),
            },
        }
    }

    /// Queues an operation for the next turn. Never blocks and makes no system call.
    ///
    /// # Errors
    /// [`Rejected`] gives the operation back.
    pub fn submit(&mut self, token: Token, op: Op) -> Result<(), Rejected<Op>> {
        match self {
            Self::Ring(driver) => driver.submit(token, op),
            Self::Plain(driver) => driver.submit(token, op),
        }
    }

    /// Asks for the early end of every operation that carries `token`; how many there are. Each still completes: with
    /// `ECANCELED`, or as if nothing had been asked (a file operation that has begun always does).
    pub fn cancel(&mut self, token: Token) -> usize {
        match self {
            Self::Ring(driver) => driver.cancel(token),
            Self::Plain(driver) => driver.cancel(token),
        }
    }

    /// Submits what is queued, waits for the first completion or wake (`None`: for as long as it takes; zero: not at
    /// all), and appends what has completed. Returns early when a signal arrives.
    ///
    /// # Errors
    /// The ring or the epoll instance itself failed: the driver is of no more use.
    pub fn turn(&mut self, wait: Option<Duration>, completions: &mut Vec<Completion>) -> io::Result<Turned> {
        match self {
            Self::Ring(driver) => driver.turn(wait, completions),
            Self::Plain(driver) => driver.turn(wait, completions),
        }
    }

    /// Registers a long-lived descriptor, which makes operations on it cheaper where the driver can; undone when the
    /// last clone of `fd` is dropped. Whether it is registered now.
    pub fn register(&mut self, fd: &Fd) -> bool {
        match self {
            Self::Ring(driver) => driver.register(fd),
            Self::Plain(_) => false,
        }
    }

    /// Whether [`Op::SendZeroCopy`] may avoid copies here; otherwise it is a `Send` that completes twice.
    #[must_use]
    pub fn can_zero_copy(&self) -> bool {
        match self {
            Self::Ring(driver) => driver.can_zero_copy(),
            Self::Plain(_) => false,
        }
    }

    /// How other threads end a wait.
    #[must_use]
    pub fn waker(&self) -> Waker {
        match self {
            Self::Ring(driver) => driver.waker(),
            Self::Plain(driver) => driver.waker(),
        }
    }

    /// The pool whose buffers this driver moves fastest.
    #[must_use]
    pub fn pool(&self) -> &BufPool {
        match self {
            Self::Ring(driver) => driver.pool(),
            Self::Plain(driver) => driver.pool(),
        }
    }

    /// How many operations have been submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        match self {
            Self::Ring(driver) => driver.in_flight(),
            Self::Plain(driver) => driver.in_flight(),
        }
    }

    /// How many more operations [`submit`](Self::submit) would take now.
    #[must_use]
    pub fn room(&self) -> usize {
        match self {
            Self::Ring(driver) => driver.room(),
            Self::Plain(driver) => driver.room(),
        }
    }

    /// What `status` and `check` say about the driver.
    #[must_use]
    pub fn report(&self) -> &DriverReport {
        match self {
            Self::Ring(driver) => driver.report(),
            Self::Plain(driver) => driver.report(),
        }
    }
}

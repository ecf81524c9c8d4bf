//! The worker process as the supervisor sees it: started, spoken to, killed, reaped.
//!
//! Always: the worker is this very executable, even if the file was replaced since; its end is seen through a pidfd.
//! Never: a descriptor passed to it beside the standard ones and those that the link carries.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ringpair_core::supervisor::WorkerExit;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::host::OOM_SCORE_VARIABLE;
use super::link::Link;
use super::sockets::{SocketError, Sockets};
use super::storage::StorageLock;

/// How workers are started.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments, the hidden subcommand first.
    pub arguments: Vec<OsString>,
    /// The OOM score that the worker takes back.
    pub oom_score: Option<String>,
}

impl WorkerCommand {
    /// This executable with these arguments.
    #[must_use]
    pub fn this(arguments: Vec<OsString>) -> Self {
        Self { program: "/proc/self/exe".into(), arguments, oom_score: None }
    }
}

/// A worker process that has not been reaped.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    pidfd: OwnedFd,
    /// The supervisor's end of the link; `None` once the worker has closed its own.
    pub link: Option<Link>,
}

impl Worker {
    /// Starts a worker and lends it the sockets and the lock.
    ///
    /// # Errors
    /// If the process cannot be made; nothing of it is left then.
    pub fn start(command: &WorkerCommand, sockets: &Sockets, lock: &StorageLock) -> Result<Self, SocketError> {
        let (ours, theirs) = Link::pair()?;
        sockets.lend(&ours, lock.as_fd())?;
        let mut process = Command::new(&command.program);
        process.arg0("ringpair").args(&command.arguments).stdin(Stdio::from(theirs.into_fd()));
        for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"] {
            process.env_remove(variable);
        }
        if let Some(score) = &command.oom_score {
            process.env(OOM_SCORE_VARIABLE, score);
        }
        let mut child = process.spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd, link: Some(ours) }),
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(io::Error::from(errno).into())
            }
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when it has ended.
    #[must_use]
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// What the system says; a worker that has ended already is no error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reaps it if it has ended.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn try_exit(&mut self) -> io::Result<Option<WorkerExit>> {
        Ok(self.child.try_wait()?.map(|status| match status.code() {
            Some(code) => WorkerExit::Code(code),
            None => WorkerExit::Signal(status.signal().unwrap_or(0)),
        }))
    }
}

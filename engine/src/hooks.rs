//! Hooks: the executables that an administrator names for *commence* and *discontinue* (OPS-211, SM-161).
//!
//! Always: a hook has a time limit, after which its process group is killed (OPS-212); its output is kept only as far as
//! a log needs it; which epoch a hook last finished for is on disk, so that each change of role runs it at least once
//! (protocol §7). Never: a shell in between, an inherited descriptor beside the standard ones, or a call that blocks
//! without a bound. A program that a hook leaves in the background must redirect its own output.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringpair_wire::id::{Epoch, MemberId};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use thiserror::Error;

/// How much of a hook's output is kept: its last bytes.
pub const OUTPUT_BYTES: usize = 8 * 1024;
/// How long a killed hook may take to disappear before it is given up.
const KILL_WAIT: Duration = Duration::from_secs(1);
/// The most output that one call of [`HookRun::poll`] reads.
const READ_AT_ONCE_BYTES: usize = 256 * 1024;

/// What a hook is told about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookEvent {
    /// This member became active.
    Commence,
    /// This member ceased to be active, or is about to start.
    Discontinue,
}

impl HookEvent {
    /// The name on the command line and in `RINGPAIR_EVENT`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commence => "commence",
            Self::Discontinue => "discontinue",
        }
    }
}

impl fmt::Display for HookEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which executables there are (`[hooks]`), and who runs them.
#[derive(Clone, Debug)]
pub struct Hooks {
    /// `hooks.commence`.
    pub commence: Option<PathBuf>,
    /// `hooks.discontinue`.
    pub discontinue: Option<PathBuf>,
    /// `hooks.timeout_s`.
    pub timeout: Duration,
    /// `pair.name`, told as `RINGPAIR_PAIR`.
    pub pair: String,
    /// This member, told as `RINGPAIR_MEMBER`.
    pub member: MemberId,
    /// `members.X.name`, told as `RINGPAIR_NAME`.
    pub name: String,
}

/// Why a hook did not run.
#[derive(Debug, Error)]
pub enum HookError {
    /// The executable cannot be started.
    #[error(
        "hooks.{event} = {path:?} cannot be run: {source}. Try: chmod +x, a first line such as #!/bin/sh, an absolute path"
    )]
    Start {
        /// Which hook.
        event: HookEvent,
        /// Its executable.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A running hook cannot be watched.
    #[error("hooks.{event} runs but cannot be watched: {source}")]
    Watch {
        /// Which hook.
        event: HookEvent,
        /// What the system said.
        source: io::Error,
    },
    /// The file of finished hooks cannot be read or written.
    #[error("{path:?}, which remembers finished hooks, failed: {source}. Try: room and permission in storage.dir")]
    Ledger {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// How a hook ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookOutcome {
    /// Exit code 0.
    Succeeded,
    /// Another exit code.
    Failed(i32),
    /// A signal from elsewhere ended it.
    Signaled(i32),
    /// It was killed, with its process group, when its time was over.
    TimedOut,
}

impl fmt::Display for HookOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Succeeded => f.write_str("succeeded"),
            Self::Failed(code) => write!(f, "failed with exit code {code}"),
            Self::Signaled(signal) => write!(f, "was ended by signal {signal}"),
            Self::TimedOut => f.write_str("was killed: its time was over (hooks.timeout_s)"),
        }
    }
}

/// A finished hook, for the event log.
#[derive(Clone, Debug)]
pub struct HookReport {
    /// Which hook.
    pub event: HookEvent,
    /// For which epoch.
    pub epoch: Epoch,
    /// How it ended.
    pub outcome: HookOutcome,
    /// From its start to its end.
    pub duration: Duration,
    /// The last [`OUTPUT_BYTES`] of standard output and standard error together.
    pub output: String,
    /// How many bytes before them were dropped.
    pub dropped_bytes: u64,
}

impl HookReport {
    /// Whether it ended with exit code 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.outcome == HookOutcome::Succeeded
    }
}

impl fmt::Display for HookReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hook {} {} {} after {} ms", self.event, self.epoch, self.outcome, self.duration.as_millis())
    }
}

impl Hooks {
    /// The executable for `event`, if one is configured.
    #[must_use]
    pub fn path(&self, event: HookEvent) -> Option<&Path> {
        match event {
            HookEvent::Commence => self.commence.as_deref(),
            HookEvent::Discontinue => self.discontinue.as_deref(),
        }
    }

    /// Starts the hook for `event`, as `PATH EVENT EPOCH`, with `RINGPAIR_EVENT`, `RINGPAIR_EPOCH`, `RINGPAIR_MEMBER`,
    /// `RINGPAIR_NAME`, `RINGPAIR_PAIR` and `RINGPAIR_REASON` in its environment. `None`: no such hook is configured.
    ///
    /// # Errors
    /// If the executable cannot be started.
    pub fn start(&self, event: HookEvent, epoch: Epoch, reason: &str) -> Result<Option<HookRun>, HookError> {
        let Some(path) = self.path(event) else { return Ok(None) };
        let failed = |source| HookError::Start { event, path: path.to_owned(), source };
        let (output, writer) = io::pipe().map_err(failed)?;
        nonblocking(&output).map_err(failed)?;
        let errors = writer.try_clone().map_err(failed)?;
        let child = Command::new(path)
            .args([event.name(), &epoch.to_string()])
            .env("RINGPAIR_EVENT", event.name())
            .env("RINGPAIR_EPOCH", epoch.to_string())
            .env("RINGPAIR_MEMBER", self.member.to_string())
            .env("RINGPAIR_NAME", &self.name)
            .env("RINGPAIR_PAIR", &self.pair)
            .env("RINGPAIR_REASON", reason)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        HookRun::watch(event, epoch, self.timeout, child, output).map(Some)
    }
}

fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// A hook that runs. Poll it whenever one of its descriptors is readable and at its deadline.
#[derive(Debug)]
pub struct HookRun {
    event: HookEvent,
    epoch: Epoch,
    child: Child,
    pidfd: OwnedFd,
    output: Option<PipeReader>,
    started: Instant,
    deadline: Instant,
    killed: bool,
    tail: Vec<u8>,
    dropped_bytes: u64,
}

impl HookRun {
    fn watch(
        event: HookEvent,
        epoch: Epoch,
        timeout: Duration,
        mut child: Child,
        output: PipeReader,
    ) -> Result<Self, HookError> {
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                // Without a watch there is no time limit: the hook must not go on unseen.
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                return Err(HookError::Watch { event, source: errno.into() });
            }
        };
        let started = Instant::now();
        let deadline = started + timeout;
        Ok(Self {
            event,
            epoch,
            child,
            pidfd,
            output: Some(output),
            started,
            deadline,
            killed: false,
            tail: Vec::new(),
            dropped_bytes: 0,
        })
    }

    /// Which hook this is.
    #[must_use]
    pub fn event(&self) -> HookEvent {
        self.event
    }

    /// Readable when the hook has ended.
    #[must_use]
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Readable when there is output; `None` once the hook has closed it.
    #[must_use]
    pub fn output_fd(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }

    /// When [`Self::poll`] must be called at the latest.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Reads what output there is, enforces the time limit, and returns the report once the hook has ended. Never blocks.
    ///
    /// # Errors
    /// If the process cannot be waited for.
    pub fn poll(&mut self, now: Instant) -> Result<Option<HookReport>, HookError> {
        self.read_output();
        let status = self.child.try_wait().map_err(|source| HookError::Watch { event: self.event, source })?;
        if let Some(status) = status {
            self.read_output();
            let outcome = if self.killed { HookOutcome::TimedOut } else { outcome_of(status) };
            return Ok(Some(self.report(outcome)));
        }
        if now < self.deadline {
            return Ok(None);
        }
        if self.killed {
            // Not even SIGKILL ends a process that hangs in the kernel: the switch goes on without it (OPS-212).
            return Ok(Some(self.report(HookOutcome::TimedOut)));
        }
        self.killed = true;
        self.deadline = now + KILL_WAIT;
        // The group may be gone already: then the next poll finds the exit.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        Ok(None)
    }

    /// Waits for the end, at most its time limit and a second.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub fn wait(mut self) -> Result<HookReport, HookError> {
        loop {
            let now = Instant::now();
            if let Some(report) = self.poll(now)? {
                return Ok(report);
            }
            let left = self.deadline.saturating_duration_since(now) + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::from(1000_u16));
            let mut fds = vec![PollFd::new(self.exit_fd(), PollFlags::POLLIN)];
            fds.extend(self.output_fd().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(HookError::Watch { event: self.event, source: errno.into() }),
            }
        }
    }

    /// Takes the output that is there, a bounded amount at once, and keeps its end.
    fn read_output(&mut self) {
        let mut chunk = [0; 16 * 1024];
        let mut read_bytes = 0;
        while let Some(output) = self.output.as_mut().filter(|_| read_bytes < READ_AT_ONCE_BYTES) {
            match output.read(&mut chunk) {
                Ok(0) => self.output = None,
                Ok(length) => {
                    read_bytes += length;
                    self.tail.extend_from_slice(&chunk[..length]);
                    let excess = self.tail.len().saturating_sub(OUTPUT_BYTES);
                    self.tail.drain(..excess);
                    self.dropped_bytes += excess as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.output = None,
            }
        }
    }

    fn report(&mut self, outcome: HookOutcome) -> HookReport {
        HookReport {
            event: self.event,
            epoch: self.epoch,
            outcome,
            duration: self.started.elapsed(),
            output: String::from_utf8_lossy(&self.tail).into_owned(),
            dropped_bytes: self.dropped_bytes,
        }
    }
}

fn outcome_of(status: ExitStatus) -> HookOutcome {
    match (status.code(), status.signal()) {
        (Some(0), _) => HookOutcome::Succeeded,
        (Some(code), _) => HookOutcome::Failed(code),
        (None, signal) => HookOutcome::Signaled(signal.unwrap_or(0)),
    }
}

/// The file that remembers for which epoch each hook last finished.
#[derive(Debug)]
pub struct HookLedger {
    path: PathBuf,
    commence: Epoch,
    discontinue: Epoch,
}

impl HookLedger {
    /// The name of the file in the storage directory.
    pub const FILE_NAME: &'static str = "hooks.finished";

    /// Reads the ledger of a storage directory; a missing or damaged file means that nothing is known to have finished.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
    pub fn open(storage_dir: &Path) -> Result<Self, HookError> {
        let path = storage_dir.join(Self::FILE_NAME);
        let mut ledger = Self { path, commence: Epoch(0), discontinue: Epoch(0) };
        let text = match fs::read(&ledger.path) {
            Ok(bytes) => String::from_utf8(bytes).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ledger.error(source)),
        };
        for line in text.lines() {
            match line.split_once(' ').map(|(event, epoch)| (event, epoch.parse().map(Epoch))) {
                Some(("commence", Ok(epoch))) => ledger.commence = epoch,
                Some(("discontinue", Ok(epoch))) => ledger.discontinue = epoch,
                _ => {}
            }
        }
        Ok(ledger)
    }

    /// The epoch for which `event`'s hook last finished.
    #[must_use]
    pub fn finished(&self, event: HookEvent) -> Epoch {
        match event {
            HookEvent::Commence => self.commence,
            HookEvent::Discontinue => self.discontinue,
        }
    }

    /// Whether `event`'s hook has yet to finish for `epoch`.
    #[must_use]
    pub fn is_due(&self, event: HookEvent, epoch: Epoch) -> bool {
        self.finished(event) < epoch
    }

    /// Remembers that `event`'s hook finished for `epoch`, synced before it returns. On an error the hook counts as
    /// unfinished: it will run once more rather than not at all.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn record(&mut self, event: HookEvent, epoch: Epoch) -> Result<(), HookError> {
        let (commence, discontinue) = match event {
            HookEvent::Commence => (epoch, self.discontinue),
            HookEvent::Discontinue => (self.commence, epoch),
        };
        let text = format!("commence {commence}\ndiscontinue {discontinue}\n");
        replace_file(&self.path, text.as_bytes()).map_err(|source| self.error(source))?;
        (self.commence, self.discontinue) = (commence, discontinue);
        Ok(())
    }

    fn error(&self, source: io::Error) -> HookError {
        HookError::Ledger { path: self.path.clone(), source }
    }
}

/// Replaces a small file as a whole: written beside it, synced, renamed, the directory synced.
fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;

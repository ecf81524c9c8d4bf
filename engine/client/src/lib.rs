//! Changes the tree of a ringpair member over its API socket, pipelined: many changes under way, each reported once as
//! reached, unknown or failed.
//!
//! Always: a change is sent again by itself only where it was surely not taken (refused as not active, or never sent);
//! what was sent and not answered is *unknown*, never failed. Memory is bounded by the window. Never: a thread of its
//! own, or a wait without a bound where the options set one.
//!
//! ```no_run
//! use ringpair_client::{Client, Options, Outcome};
//!
//! # fn main() -> Result<(), ringpair_client::Error> {
//! let mut client = Client::connect(["/run/ringpair/ringpair.sock"], Options::default())?;
//! for extension in 100..200 {
//!     client.set(&format!("/CONFIG/Users/u{extension}"), "Extension", &extension.to_string())?;
//! }
//! while let Some(report) = client.wait() {
//!     match report.outcome {
//!         Outcome::Reached { version, level, alone } => {
//!             println!("{}: {version} at {}, alone: {alone}", report.number, level.name());
//!         }
//!         Outcome::Unknown { why, .. } => println!("{}: may or may not have been taken: {why}", report.number),
//!         Outcome::Failed(failure) => println!("{}: not taken: {failure}", report.number),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod connection;
mod kept;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

pub use ringpair_wire::client::{AttributeEdit, FailureCode, How, Operation, ValueRef};
use ringpair_wire::{
    client::{Answer, ClientError, Failed, MAX_OPERATIONS, MAX_REQUEST_BYTES, MAX_TIMEOUT_MS, Reached, encode_request},
    id::{AckLevel, Version},
};

use self::{connection::Connection, kept::Kept};

/// How long is waited between two rounds over the sockets at first; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// How long at most.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How changes are made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How far a change must have come; `None`: as the member is configured.
    pub ack: Option<AckLevel>,
    /// How long the member may take for each; `None`: as long as over HTTP (10 s). At most a day.
    pub timeout: Option<Duration>,
    /// For how long an active member is looked for, from the first refusal or loss until something is reached again;
    /// after it what was not taken has failed. Zero: the first refusal counts.
    pub patience: Duration,
    /// How many changes may be unanswered: [`Client::submit`] waits then. At least 1.
    pub window: usize,
    /// Whether what became unknown because a member or its connection went away is sent again, for as long as
    /// `patience` says. Only for changes that may come twice, and behind later ones of their client.
    pub repeat: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { ack: None, timeout: None, patience: Duration::from_secs(10), window: 4096, repeat: false }
    }
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The number that [`Client::submit`] gave.
    pub number: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It reached its level.
    Reached {
        /// Its version.
        version: Version,
        /// The level asked for, or `local` while the active is alone.
        level: AckLevel,
        /// Whether the active is alone.
        alone: bool,
    },
    /// It may or may not have been taken, or may not last.
    Unknown {
        /// Its version, where it was taken.
        version: Option<Version>,
        /// Why nobody knows.
        why: String,
    },
    /// It was not taken.
    Failed(Failure),
}

/// Why a change was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The member's reason; `None`: no member was reached.
    pub code: Option<FailureCode>,
    /// In words.
    pub message: String,
    /// Name and address of the active member, where one was named.
    pub active: Option<(String, String)>,
}

/// Why the client cannot go on, or a change cannot be sent at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No member answers on any of the sockets.
    #[error("no member answers at {}: {source}", path.display())]
    Unreachable {
        /// The socket tried last.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else than a member of this protocol answers.
    #[error("{} does not speak as a member does: {source}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is wrong.
        source: ClientError,
    },
    /// A change has no operation, too many, or too many bytes.
    #[error(
        "a change of {operations} operations and {bytes} bytes; at most {MAX_OPERATIONS} and {MAX_REQUEST_BYTES} are \
         sent at once. Try: an import"
    )]
    TooLarge {
        /// How many operations.
        operations: usize,
        /// How many bytes, encoded.
        bytes: usize,
    },
    /// There is no socket to connect to.
    #[error("no socket was named")]
    NoSocket,
}

/// A client. One thread uses it at a time.
#[derive(Debug)]
pub struct Client {
    sockets: Vec<PathBuf>,
    /// Which of them is used, or tried next.
    at: usize,
    options: Options,
    connection: Option<Connection>,
    kept: Kept,
    reports: VecDeque<Report>,
    /// Nothing more is sent on this connection: its member is not active.
    leaving: bool,
    /// Since when no member took anything, and why.
    seeking: Option<(Instant, Failure)>,
    pause: Duration,
    scratch: Vec<u8>,
}

impl Client {
    /// Connects to the first of `sockets` that answers: the API sockets of the members that can be reached from here.
    ///
    /// # Errors
    /// [`Error::Unreachable`] and [`Error::Protocol`] of the last one tried, [`Error::NoSocket`].
    pub fn connect<P: Into<PathBuf>>(sockets: impl IntoIterator<Item = P>, options: Options) -> Result<Self, Error> {
        let sockets: Vec<PathBuf> = sockets.into_iter().map(Into::into).collect();
        let mut last = Error::NoSocket;
        for (at, path) in sockets.iter().enumerate() {
            match Connection::open(path) {
                Ok(connection) => {
                    return Ok(Self {
                        at,
                        options,
                        connection: Some(connection),
                        kept: Kept::default(),
                        reports: VecDeque::new(),
                        leaving: false,
                        seeking: None,
                        pause: FIRST_PAUSE,
                        scratch: Vec::new(),
                        sockets,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Sets one attribute of the object at `path` to one text; creates what is missing. The change's number.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn set(&mut self, path: &str, name: &str, value: &str) -> Result<u64, Error> {
        let edit = AttributeEdit { name, how: How::Set, values: vec![ValueRef::Text(value)] };
        self.submit(&[Operation::Put { path, class: None, replace: false, attributes: vec![edit] }])
    }

    /// Queues a change, a transaction of 1 to [`MAX_OPERATIONS`] operations, at the level of the options. Its number:
    /// they count from 1. Sends when enough has gathered; waits while the window is full.
    ///
    /// # Errors
    /// [`Error::TooLarge`]; nothing is queued then.
    pub fn submit(&mut self, operations: &[Operation<'_>]) -> Result<u64, Error> {
        self.submit_at(self.options.ack, operations)
    }

    /// As [`submit`](Self::submit), at a level of its own.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn submit_at(&mut self, ack: Option<AckLevel>, operations: &[Operation<'_>]) -> Result<u64, Error> {
        self.scratch.clear();
        encode_request(operations, &mut self.scratch);
        if operations.is_empty() || operations.len() > MAX_OPERATIONS || self.scratch.len() > MAX_REQUEST_BYTES {
            return Err(Error::TooLarge { operations: operations.len(), bytes: self.scratch.len() });
        }
        while self.kept.len() >= self.options.window.max(1) {
            self.go_on(true);
        }
        let number = self.kept.push(ack, &self.scratch);
        if self.kept.has_batch() {
            self.go_on(false);
        }
        Ok(number)
    }

    /// How many changes are not answered.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.kept.len()
    }

    /// Sends what is queued, as far as the socket takes it, and hears what has come. Does not wait.
    pub fn flush(&mut self) {
        self.go_on(false);
    }

    /// The next report that has come; does not wait.
    pub fn poll(&mut self) -> Option<Report> {
        if self.reports.is_empty() {
            self.go_on(false);
        }
        self.reports.pop_front()
    }

    /// The next report, waiting for it; `None` when nothing is unanswered.
    pub fn wait(&mut self) -> Option<Report> {
        while self.reports.is_empty() && !self.kept.is_empty() {
            self.go_on(true);
        }
        self.reports.pop_front()
    }

    /// As [`wait`](Self::wait), but not much longer than `patience`: `None` also when nothing has come by then.
    pub fn wait_for(&mut self, patience: Duration) -> Option<Report> {
        let until = Instant::now() + patience;
        while self.reports.is_empty() && !self.kept.is_empty() && Instant::now() < until {
            self.go_on(true);
        }
        self.reports.pop_front()
    }

    /// Makes one change and waits for it; reports of others stay to be taken.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn change(&mut self, operations: &[Operation<'_>]) -> Result<Outcome, Error> {
        let number = self.submit(operations)?;
        loop {
            if let Some(at) = self.reports.iter().position(|report| report.number == number)
                && let Some(report) = self.reports.remove(at)
            {
                return Ok(report.outcome);
            }
            self.go_on(true);
        }
    }

    /// One step: connect if need be, send, hear; with `wait` until something has happened.
    fn go_on(&mut self, wait: bool) {
        if self.connection.is_none() && !self.reconnect(wait) {
            return;
        }
        let Some(connection) = &mut self.connection else { return };
        if !self.leaving {
            let timeout = self.options.timeout.map_or(0, |timeout| timeout.as_millis().clamp(1, MAX_TIMEOUT_MS.into()));
            self.kept.send(timeout as u32, connection.out());
        }
        let mut answers = Vec::new();
        let result = connection.exchange(wait && !self.kept.is_empty(), &mut answers);
        for answer in answers {
            self.hear(answer);
        }
        // A last word has ended it already.
        if let Err(error) = result
            && self.connection.is_some()
        {
            self.lost(Failure { code: None, message: format!("the member went away: {error}"), active: None });
        }
        if self.leaving && self.kept.sent() == 0 {
            // Everything that it had taken is answered: on to the next member.
            self.connection = None;
            self.leaving = false;
            self.at = (self.at + 1) % self.sockets.len();
            if self.at == 0 && wait {
                self.rest();
            }
        }
        self.give_up_if_late();
    }

    fn hear(&mut self, answer: Answer) {
        match answer {
            Answer::Reached(Reached { first, count, level, alone, versions }) => {
                (self.seeking, self.pause) = (None, FIRST_PAUSE);
                for index in 0..count {
                    let number = first + u64::from(index);
                    if self.kept.answer(number) {
                        let outcome = Outcome::Reached { version: versions.at(index), level, alone };
                        self.reports.push_back(Report { number, outcome });
                    }
                }
            }
            Answer::Failed(failed) => self.hear_failure(&failed),
            Answer::Goodbye { code, message } => {
                let failure = Failure { code: Some(code), message, active: None };
                // By any other code the member says that it took nothing (W-106).
                if code != FailureCode::Malformed {
                    self.kept.requeue_sent(false);
                }
                self.lost(failure);
            }
        }
    }

    fn hear_failure(&mut self, failed: &Failed) {
        let Failed { first, count, code, message, active, versions } = failed;
        for index in 0..*count {
            let number = first + u64::from(index);
            let outcome = match code {
                FailureCode::NotActive => {
                    self.kept.requeue(number, false);
                    continue;
                }
                FailureCode::NotReached if self.options.repeat => {
                    self.kept.requeue(number, true);
                    continue;
                }
                FailureCode::NotReached => {
                    Outcome::Unknown { version: versions.map(|versions| versions.at(index)), why: message.clone() }
                }
                // What became of it the first time, the refusal of a repetition does not tell.
                _ if self.kept.is_unknown(number) => Outcome::Unknown { version: None, why: message.clone() },
                code => {
                    let (message, active) = (message.clone(), active.clone());
                    Outcome::Failed(Failure { code: Some(*code), message, active })
                }
            };
            if self.kept.answer(number) {
                self.reports.push_back(Report { number, outcome });
            }
        }
        if matches!(code, FailureCode::NotActive | FailureCode::NotReached) {
            let failure = Failure { code: Some(*code), message: message.clone(), active: active.clone() };
            self.leaving |= *code == FailureCode::NotActive;
            // The newest reason is the one to be told.
            let since = self.seeking.take().map_or_else(Instant::now, |(since, _)| since);
            self.seeking = Some((since, failure));
        }
    }

    /// The connection is gone: what was sent on it is unknown, or to be sent again.
    fn lost(&mut self, failure: Failure) {
        self.connection = None;
        self.leaving = false;
        if self.options.repeat {
            self.kept.requeue_sent(true);
        } else {
            let reports = &mut self.reports;
            self.kept.take_sent(|number| {
                let outcome = Outcome::Unknown { version: None, why: failure.message.clone() };
                reports.push_back(Report { number, outcome });
            });
        }
        self.at = (self.at + 1) % self.sockets.len();
        self.seeking.get_or_insert((Instant::now(), failure));
        self.give_up_if_late();
    }

    /// Looks once at each socket; false: none answers.
    fn reconnect(&mut self, wait: bool) -> bool {
        let mut reason = None;
        for _ in 0..self.sockets.len() {
            match Connection::open(&self.sockets[self.at]) {
                Ok(connection) => {
                    self.connection = Some(connection);
                    return true;
                }
                Err(error) => reason = Some(Failure { code: None, message: error.to_string(), active: None }),
            }
            self.at = (self.at + 1) % self.sockets.len();
        }
        if let Some(reason) = reason {
            self.seeking.get_or_insert((Instant::now(), reason));
        }
        self.give_up_if_late();
        if wait && !self.kept.is_empty() {
            self.rest();
        }
        false
    }

    /// Lets the members settle, a little longer each time.
    fn rest(&mut self) {
        std::thread::sleep(self.pause);
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }

    /// After the patience is over what nobody took has failed.
    fn give_up_if_late(&mut self) {
        let Some((since, failure)) = &self.seeking else { return };
        if since.elapsed() < self.options.patience {
            return;
        }
        let reports = &mut self.reports;
        self.kept.take_queued(|number, was_sent| {
            let outcome = match was_sent {
                true => Outcome::Unknown { version: None, why: failure.message.clone() },
                false => Outcome::Failed(failure.clone()),
            };
            reports.push_back(Report { number, outcome });
        });
        if self.kept.is_empty() {
            self.seeking = None;
        }
    }
}

//! What the API asks of the rest of the member, and how: one bounded queue of [`Request`]s to the stream thread, each
//! with a oneshot for its answer; everything else is read without asking anybody.
//!
//! Always holds: a full queue is an answer (429), never a wait and never growth. A request whose caller has gone is
//! recognised by its closed reply and may be dropped. Must never: decide anything about roles here.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use ringpair_wire::{
    client::Limits,
    ds::DsPath,
    id::{AckLevel, Version},
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    api::{
        events::EventLog,
        status::{Blocker, MirrorStatus, Mode, Role, Status, StatusCell},
    },
    ds::{ContentStore, Entry, TreeHandle, archive::DivergenceArchive, edit::Operation},
};

/// How many requests may wait for the stream thread; beyond, callers are answered 429.
pub const MAX_QUEUED: usize = 1024;
/// How many changes may wait for a watcher who does not read; beyond, its stream ends and it resumes from its cursor.
pub const MAX_WATCH_QUEUED: usize = 1024;
/// How long a request waits for the loop's answer where it has no deadline of its own: longer means it hangs.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Where an answer goes.
pub type Reply<T> = oneshot::Sender<Result<T, Failure>>;

/// Why something was not done; each has its HTTP status (interface §6) and, through it, its exit code.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Failure {
    /// 400: the request is malformed; the text names what.
    #[error("{0}")]
    Malformed(String),
    /// 404: there is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// 409 `not-active`: this member is not active; the other one may be.
    #[error("this member is not active")]
    NotActive {
        /// Who is, as far as known.
        active: Option<ActiveMember>,
    },
    /// 409 with a code of its own: the member's role or state forbids it.
    #[error("{message}")]
    Refused {
        /// A stable word, such as `blocked`, `alone`, `no-room`, `incomplete`.
        code: &'static str,
        /// Why, and what to try.
        message: String,
        /// What stands in the way of a switchover; empty elsewhere.
        blockers: Vec<Blocker>,
    },
    /// 413: too large; the text names the limit.
    #[error("{0}")]
    TooLarge(String),
    /// 429: back-pressure.
    #[error("too much is waiting already")]
    Busy {
        /// When to come back.
        retry_after_s: u32,
    },
    /// 429: the disk of the storage directory is full; nothing was changed.
    #[error(
        "the disk of storage.dir = {dir:?} is full: nothing was changed. Try: making room there; writes are taken again by themselves"
    )]
    NoRoom {
        /// `[storage] dir`.
        dir: PathBuf,
        /// When to come back.
        retry_after_s: u32,
    },
    /// 504: not reached in time. A change is then *unknown*, not undone.
    #[error("{message}")]
    NotReached {
        /// The version of the change, where it has one.
        version: Option<Version>,
        /// What was not reached.
        message: String,
    },
    /// 500: something failed; the text says what.
    #[error("{0}")]
    Internal(String),
    /// 503: the member is starting or stopping.
    #[error("{0}")]
    Unavailable(String),
}

impl Failure {
    /// A refusal with a code and a message.
    #[must_use]
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::Refused { code, message: message.into(), blockers: Vec::new() }
    }
}

/// Who is active, as far as this member knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveMember {
    /// Its host name.
    pub name: String,
    /// Its main address.
    pub address: String,
}

/// Something that only the stream thread can answer or do.
#[derive(Debug)]
pub enum Request {
    /// One transaction. Resolved against the tree in order, all or nothing.
    Write(WriteRequest),
    /// Which role this member has *now*: the lease is checked before the answer (protocol §4).
    Role(Reply<RoleAnswer>),
    /// A connection of a native client whose credentials were checked: the stream thread serves it.
    Native(OwnedFd),
    /// Controlled or forced switchover (protocol §9). On a backup it is forwarded.
    Switch(SwitchRequest),
    /// Automatic switching on or off, for the pair, persisted.
    Mode(Mode, Reply<()>),
    /// A barrier over everything that was accepted before.
    Sync {
        /// When to give up.
        deadline: Instant,
        /// Answered when all of it is durable on the backup.
        reply: Reply<SyncDone>,
    },
    /// Comparison of both members.
    Verify {
        /// Whether contents are compared as well.
        deep: bool,
        /// When to give up.
        deadline: Instant,
        /// Answered with what differs.
        reply: Reply<VerifyReport>,
    },
    /// A subscription to changes.
    Watch(WatchRequest),
    /// What is mirrored and what is left out.
    MirrorList(Reply<MirrorList>),
    /// Whether a path is mirrored, and by which rule not. The path is bytes, not UTF-8.
    MirrorTest {
        /// An absolute path on this host.
        path: Vec<u8>,
        /// The rule that decided.
        reply: Reply<MirrorTest>,
    },
    /// Ends the worker in order: discontinue, release.
    Stop(Reply<()>),
}

/// [`Request::Write`].
#[derive(Debug)]
pub struct WriteRequest {
    /// The operations, each with its line number (1 where there is only one).
    pub operations: Vec<(u64, Operation)>,
    /// How far it must have come before the answer.
    pub ack: AckLevel,
    /// When to give up waiting: [`Failure::NotReached`] with the version.
    pub deadline: Instant,
    /// Answered once `ack` is reached, or once `local` while alone.
    pub reply: Reply<WriteDone>,
}

/// A change that reached its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteDone {
    /// The version of the transaction's last record.
    pub version: Version,
    /// The level that was reached: the one asked for, or `local` while alone (interface §8).
    pub level: AckLevel,
    /// Whether the active is alone.
    pub alone: bool,
}

/// What `/active` and `/backup` answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleAnswer {
    /// The role now.
    pub role: Role,
    /// The epoch.
    pub epoch: u64,
    /// Whether no other member can be active.
    pub exclusive: bool,
    /// How long `exclusive` holds, counted from the sending of the request; 0 when it does not.
    pub valid_for_ms: u64,
    /// Whether the service has commenced: what `/readyz` answers. Not part of the document.
    #[serde(skip)]
    pub ready: bool,
}

/// [`Request::Switch`].
#[derive(Debug)]
pub struct SwitchRequest {
    /// Do not wait for a drain in advance.
    pub immediate: bool,
    /// Go on whatever would be lost; on a backup: promote here.
    pub force: bool,
    /// The operator says that the other member is dead (protocol §9).
    pub fenced: bool,
    /// Who asked, for the log (OPS-020).
    pub origin: Origin,
    /// When to give up.
    pub deadline: Instant,
    /// Answered when the other member (or with force this one) is active.
    pub reply: Reply<SwitchDone>,
}

/// Who asked, for the log (OPS-020).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The user id at the other end of the Unix socket; `None` over TCP.
    pub uid: Option<u32>,
    /// `unix`, or the TCP peer's address.
    pub from: String,
}

/// A switchover that is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchDone {
    /// Who was active.
    pub from: String,
    /// Who is active.
    pub to: String,
    /// The new epoch.
    pub epoch: u64,
    /// From the command to the new active's answer.
    pub took_ms: u64,
    /// For how long no member accepted writes: from the refusal of writes here to the other member's word that it is
    /// active. Where the command was given on the backup, which does not see the first, the whole time.
    pub pause_ms: u64,
}

/// A barrier that was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncDone {
    /// How long it took.
    pub took_ms: u64,
    /// The sequence number through which the backup is durable.
    pub seq: u64,
}

/// What `verify` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Whether everything compared is equal: nothing differs, and nothing was changing.
    pub equal: bool,
    /// Objects compared.
    pub objects: u64,
    /// Files compared.
    pub files: u64,
    /// What differs.
    pub differences: Vec<Difference>,
    /// What changed meanwhile, three times looked at.
    pub changing: Vec<String>,
    /// What upgrade filters hold back.
    pub held_back: Vec<String>,
    /// Whether there were more differences than are listed.
    pub truncated: bool,
    /// How long it took.
    pub took_ms: u64,
}

/// Something that differs between the members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// `ds` or `file`.
    pub kind: String,
    /// The path.
    pub path: String,
    /// In what: `missing on backup`, `missing on active`, `content`, `mode` …
    pub what: String,
}

/// [`Request::Watch`].
#[derive(Debug)]
pub struct WatchRequest {
    /// The subtree.
    pub path: DsPath,
    /// Everything after this version; `None`: from now on.
    pub from: Option<Version>,
    /// Where changes go: `try_send` only. When it is full or closed the subscription ends.
    pub changes: mpsc::Sender<WatchChange>,
    /// Answered once the subscription stands; an unknown cursor is refused with code `unknown-cursor`, naming the
    /// common point.
    pub reply: Reply<Version>,
}

/// One change that has reached `durable`, or `local` while alone. Nothing is lost or repeated between cursors.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchChange {
    /// Its version: the cursor.
    pub version: Version,
    /// The level it has reached.
    pub level: AckLevel,
    /// Whether the active was alone.
    pub alone: bool,
    /// What changed.
    pub what: WatchWhat,
}

/// What changed.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchWhat {
    /// The object as it is after the change.
    Object(Arc<Entry>),
    /// It was removed, with everything below.
    Removed(DsPath),
}

/// What is mirrored and what is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MirrorList {
    /// The state, as in the status document.
    pub status: MirrorStatus,
    /// How changes are noticed: `fanotify`, `inotify`, `off`.
    pub watch: String,
    /// The directories.
    pub directories: Vec<MirrorDirectory>,
    /// What keeps it from being current: each with its path and what to try.
    pub problems: Vec<MirrorProblem>,
    /// What is left out, and by which rule.
    pub excluded: Vec<MirrorTest>,
}

/// One mirrored directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorDirectory {
    /// Its path on this host.
    pub path: String,
    /// Whether subdirectories are mirrored (`+`).
    pub recursive: bool,
    /// Whether it is watched, or only compared at start (`InitialMirrorDir`).
    pub watched: bool,
    /// The parameter that names it.
    pub parameter: String,
    /// `ok`, or what is wrong with it.
    pub state: String,
}

/// A path that is not mirrored as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorProblem {
    /// The path as the parameters write it.
    pub path: String,
    /// What is wrong and what to try.
    pub reason: String,
}

/// Whether a path is mirrored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorTest {
    /// The path; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Whether it is mirrored.
    pub mirrored: bool,
    /// The rule that decided, naming the parameter.
    pub rule: String,
}

/// What [`Backend::new`] is made of.
pub struct Parts {
    /// The tree, for reading.
    pub tree: TreeHandle,
    /// Large values.
    pub content: ContentStore,
    /// What diverged; read on threads that may block.
    pub archive: DivergenceArchive,
    /// The status document.
    pub status: StatusCell,
    /// The event log.
    pub events: EventLog,
    /// The level that a writer gets who names none (`[ack] level`).
    pub default_ack: AckLevel,
    /// What a native client is told of this member.
    pub limits: Limits,
    /// Wakes the stream thread after a request was queued; called from any thread, never blocks.
    pub wake: Box<dyn Fn() + Send + Sync>,
}

/// The API's handle on the member. Cloning shares it.
#[derive(Clone)]
pub struct Backend(Arc<Shared>);

struct Shared {
    parts: Parts,
    requests: Sender<Request>,
}

impl Backend {
    /// The handle, and the end of the request queue that the stream thread reads.
    #[must_use]
    pub fn new(parts: Parts) -> (Self, Receiver<Request>) {
        let (requests, receiver) = bounded(MAX_QUEUED);
        (Self(Arc::new(Shared { parts, requests })), receiver)
    }

    /// The tree, for reading.
    #[must_use]
    pub fn tree(&self) -> &TreeHandle {
        &self.0.parts.tree
    }

    /// Large values.
    #[must_use]
    pub fn content(&self) -> &ContentStore {
        &self.0.parts.content
    }

    /// What a native client is told first.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.0.parts.limits
    }

    /// What diverged.
    #[must_use]
    pub fn archive(&self) -> &DivergenceArchive {
        &self.0.parts.archive
    }

    /// The event log.
    #[must_use]
    pub fn events(&self) -> &EventLog {
        &self.0.parts.events
    }

    /// The status document last published.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.0.parts.status.read()
    }

    /// The level that a writer gets who names none.
    #[must_use]
    pub fn default_ack(&self) -> AckLevel {
        self.0.parts.default_ack
    }

    /// Queues a request and wakes the stream thread.
    ///
    /// # Errors
    /// [`Failure::Busy`] when too many wait already, [`Failure::Unavailable`] when the stream thread is gone.
    pub fn send(&self, request: Request) -> Result<(), Failure> {
        match self.0.requests.try_send(request) {
            Ok(()) => {
                (self.0.parts.wake)();
                Ok(())
            }
            Err(TrySendError::Full(_)) => Err(Failure::Busy { retry_after_s: 1 }),
            Err(TrySendError::Disconnected(_)) => Err(Failure::Unavailable("the member is stopping".into())),
        }
    }

    /// Sends the request that `make` builds around a reply, and waits for the answer, at most until `deadline` and a
    /// little (the loop itself answers at the deadline; the little is for a loop that hangs).
    ///
    /// # Errors
    /// The answer's, [`Backend::send`]'s, or that there was no answer.
    pub async fn ask<T>(&self, deadline: Instant, make: impl FnOnce(Reply<T>) -> Request) -> Result<T, Failure> {
        let (reply, answer) = oneshot::channel();
        self.send(make(reply))?;
        let give_up = tokio::time::Instant::from_std(deadline + ANSWER_WITHIN);
        match tokio::time::timeout_at(give_up, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Failure::Unavailable("the member stopped before it answered".into())),
            Err(_) => Err(Failure::NotReached { version: None, message: "the member did not answer in time".into() }),
        }
    }

    /// The role now, with the lease checked.
    ///
    /// # Errors
    /// As [`Backend::ask`].
    pub async fn role(&self) -> Result<RoleAnswer, Failure> {
        self.ask(Instant::now(), Request::Role).await
    }
}

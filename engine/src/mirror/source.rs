//! The active member's half of the mirror.
//!
//! Always: the watch is marked before anything is compared, so that no change falls in between; events are hints, the
//! truth is what a path is when it is read; a path is announced before its content is handed out; everything under way
//! is bounded, and an overfull set of changed paths becomes a comparison. Never: a removal because of a root that is
//! missing, replaced or emptied.

mod compare;
mod comparisons;
mod dirty;
mod hints;
mod mounts;
mod reader;
mod roots;
mod send;
mod session;
#[cfg(test)]
mod tests;
mod verify;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use compare::Comparing;
use dirty::Dirty;
use reader::{Reader, Stream};
use ringpair_fsmon::watch::Watcher;
use ringpair_wire::{
    codec::Codec,
    id::Epoch,
    mirror::{Item, Problem},
};
use roots::SourceRoot;
use verify::Verification;

use super::lister::{Mounts, vanished};
use super::{
    MAX_PROBLEMS, MirrorBase, MirrorDifferences, MirrorError, MirrorMessage, MirrorPath, MirrorState, MirrorStatus,
    RootSet,
};
use crate::ring::{BufPool, Shared};

/// How often the roots are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a file that is being written may be left alone.
const UNSETTLED: Duration = Duration::from_millis(20);
/// The first pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long to rest between searches for the names of files with several, at least; a barrier does not wait.
const SEARCH_EVERY: Duration = Duration::from_secs(5);
/// How many problems are remembered.
const MAX_REMEMBERED: usize = 10_000;

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

/// A change that was sent and is not known to be durable.
#[derive(Debug)]
struct InFlight {
    path: MirrorPath,
    stamp: u64,
    bytes: u64,
    attempts: u32,
    /// Of a rename or an exchange: the other path, and whether it is about directories.
    other: Option<(MirrorPath, bool)>,
    times_only: bool,
}

/// A file with several names.
#[derive(Debug, Default)]
struct Linked {
    /// Stands for its metadata when it was sent last.
    look: u64,
    names: BTreeSet<MirrorPath>,
    /// How many names it had when they were searched for; those that were not found lie outside the mirror.
    searched: u64,
}

/// How far a barrier is.
#[derive(Clone, Copy, Debug)]
enum BarrierStage {
    /// The watch queue is to be read empty once.
    Drain,
    /// Comparisons are to end.
    Compare,
    /// Everything stamped so far is to be durable.
    Settle(u64),
    /// The backup is to answer.
    Asked,
}

/// A change of names, to be sent before anything that was marked after it.
#[derive(Debug)]
struct Move {
    from: MirrorPath,
    to: MirrorPath,
    exchange: bool,
    is_dir: bool,
    stamp: u64,
}

/// How far the session with the backup is.
#[derive(Debug, Default)]
struct Session {
    /// Grows with every connection.
    number: u64,
    connected: bool,
    /// The backup's roots are open.
    ready: bool,
    /// The first comparison is over and everything it found is sent: at this stamp.
    compared_at: Option<u64>,
    synced: bool,
    /// Problems of the backup's roots.
    problems: Vec<Problem>,
    /// The backup whose initial directories were copied.
    initial_done: Option<u64>,
    instance: u64,
}

/// Watches the roots, keeps the set of changed paths, and sends them.
pub struct Source {
    options: SourceOptions,
    set: Arc<RootSet>,
    roots: Vec<SourceRoot>,
    next_look: Duration,
    watcher: Option<Watcher>,
    watch_error: Option<String>,
    session: Session,
    dirty: Dirty,
    moves: VecDeque<Move>,
    reader: Reader,
    stream: Option<Box<Stream>>,
    in_flight: HashMap<u64, InFlight>,
    in_flight_bytes: u64,
    generation: u64,
    batch: Vec<Item>,
    batch_bytes: usize,
    /// Messages with the generation that must have been announced before they go.
    outbox: VecDeque<(u64, Outgoing)>,
    /// Large files are read into its buffers.
    pool: BufPool,
    outbox_bytes: usize,
    unannounced: VecDeque<MirrorPath>,
    announced_through: u64,
    to_compare: BTreeSet<MirrorPath>,
    comparing: Option<Comparing>,
    requests: u64,
    verification: Option<Verification>,
    barriers: VecDeque<(u64, BarrierStage)>,
    /// Files with several names: what is written through one of them changes all.
    links: HashMap<(u64, u64), Linked>,
    /// File systems below the roots, as they were seen first.
    mounts: Arc<Mounts>,
    /// Those of them that are gone.
    vanished: BTreeSet<MirrorPath>,
    /// A file with a name that is not known was met: its names are to be searched for.
    search: bool,
    next_search: Duration,
    problems: BTreeMap<MirrorPath, String>,
    counts: BTreeMap<MirrorPath, (u64, u64)>,
    events: VecDeque<SourceEvent>,
    status: MirrorStatus,
    now: Duration,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("options", &self.options).field("status", &self.status).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens the roots and marks the watches. A root that is missing or unreadable is named in the status, not an error.
    #[must_use]
    pub fn new(options: SourceOptions, pool: BufPool) -> Self {
        let mut this = Self {
            pool,
            set: Arc::new(RootSet::default()),
            roots: Vec::new(),
            next_look: Duration::ZERO,
            watcher: None,
            watch_error: None,
            session: Session::default(),
            dirty: Dirty::default(),
            moves: VecDeque::new(),
            reader: Reader::default(),
            stream: None,
            in_flight: HashMap::new(),
            in_flight_bytes: 0,
            generation: 0,
            batch: Vec::new(),
            batch_bytes: 0,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            unannounced: VecDeque::new(),
            announced_through: 0,
            to_compare: BTreeSet::new(),
            comparing: None,
            requests: 0,
            verification: None,
            barriers: VecDeque::new(),
            links: HashMap::new(),
            mounts: Arc::default(),
            vanished: BTreeSet::new(),
            search: false,
            next_search: Duration::ZERO,
            problems: BTreeMap::new(),
            counts: BTreeMap::new(),
            events: VecDeque::new(),
            status: MirrorStatus::default(),
            now: Duration::ZERO,
            options,
        };
        let roots = this.options.roots.clone();
        this.open_roots(roots);
        this
    }

    fn open_roots(&mut self, set: RootSet) {
        let open = |spec: &super::RootSpec| {
            let mut root = SourceRoot::new(spec.clone(), &self.options.base);
            root.look();
            root
        };
        self.roots = set.roots().iter().map(open).collect();
        self.set = Arc::new(set);
        self.counts.retain(|path, _| self.roots.iter().any(|root| root.spec.path == *path));
        self.rewatch();
    }

    /// What becomes readable when files change, for the loop to poll; `None` while nothing is watched. Changes with
    /// [`Self::set_roots`], and when a root comes back.
    #[must_use]
    pub fn watch_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watcher.as_ref().map(AsFd::as_fd)
    }

    /// Replaces what is mirrored, at once: new roots are compared and copied, then watched; the files of removed ones
    /// stay (REP-031).
    pub fn set_roots(&mut self, roots: RootSet) {
        if roots == *self.set {
            return;
        }
        self.open_roots(roots);
        if self.session.connected {
            self.restart_session();
        }
    }

    /// The bulk lane to the backup is up: announces the roots, then compares everything.
    pub fn connected(&mut self, now: Duration) {
        self.now = now;
        self.session.connected = true;
        self.restart_session();
    }

    /// The bulk lane is down: what was under way is compared again at the next connection.
    pub fn disconnected(&mut self) {
        self.session.connected = false;
        self.reset_session();
    }

    /// Does a bounded piece of work: reads watch events, walks, reads files into the outbox. Returns whether it did any;
    /// call again soon if so.
    pub fn turn(&mut self, now: Duration) -> bool {
        self.now = now;
        self.reader.forget();
        if now >= self.next_look {
            self.next_look = now + LOOK_EVERY;
            self.look_at_roots();
        }
        let drained = self.drain_watch();
        let mut worked = drained > 0;
        self.advance_barriers();
        self.judge_verification();
        if self.session.ready {
            self.search_names();
            worked |= self.compare();
            worked |= self.send();
            self.finish_batch();
            self.announce_synced();
        }
        worked
    }

    /// When [`Self::turn`] wants to be called even if nothing happens.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Duration> {
        let waiting = self
            .dirty
            .next_timeout()
            .filter(|_| self.session.ready)
            .map(|at| at.max(self.now + Duration::from_millis(1)));
        (!self.roots.is_empty()).then_some(waiting.map_or(self.next_look, |at| at.min(self.next_look)))
    }

    /// The next announcement, for the ds lane. Content is not handed out before its announcement was taken here.
    pub fn poll_announcement(&mut self) -> Option<MirrorMessage> {
        if self.unannounced.is_empty() {
            return None;
        }
        let first_generation = self.announced_through + 1;
        let (mut paths, mut bytes) = (Vec::new(), 0);
        while paths.len() < ringpair_wire::mirror::MAX_LIST && bytes < 256 << 10 {
            let Some(path) = self.unannounced.pop_front() else { break };
            bytes += path.as_bytes().len();
            paths.push(path);
        }
        self.announced_through += paths.len() as u64;
        let more = (self.dirty.len() + self.unannounced.len()) as u64;
        Some(MirrorMessage::Announce { epoch: self.options.epoch, first_generation, more, paths })
    }

    /// The next message for the bulk lane, encoded. Leave messages here while the lane is full: the outbox is bounded,
    /// and so is what is read ahead.
    pub fn poll_encoded(&mut self) -> Option<Shared> {
        let (generation, _) = self.outbox.front()?;
        if *generation > self.announced_through {
            return None;
        }
        let (_, outgoing) = self.outbox.pop_front()?;
        self.outbox_bytes = self.outbox_bytes.saturating_sub(outgoing.weight());
        Some(match outgoing {
            Outgoing::Message(message) => Shared::from(message.to_bytes()),
            Outgoing::Encoded(bytes) => bytes,
        })
    }

    /// What the loop is to be told.
    pub fn poll_event(&mut self) -> Option<SourceEvent> {
        self.events.pop_front()
    }

    /// Asks for a [`SourceEvent::BarrierDone`] once everything that has changed on the file system until now is durable
    /// on the backup. `id` is at least 1.
    pub fn barrier(&mut self, id: u64) {
        self.look_at_roots();
        self.barriers.push_back((id, BarrierStage::Drain));
    }

    /// Forgets a barrier that nobody waits for any more.
    pub fn withdraw(&mut self, id: u64) {
        self.barriers.retain(|(other, _)| *other != id);
    }

    /// Everything that keeps the mirror from being current, named.
    fn named_problems(&self) -> impl Iterator<Item = Problem> + '_ {
        let roots = self.roots.iter().filter_map(SourceRoot::named);
        let unwatched = self.watcher.iter().flat_map(|watcher| watcher.problems().iter().cloned());
        let paths = self.problems.iter().map(|(path, reason)| Problem { path: path.clone(), reason: reason.clone() });
        let watch =
            self.watch_error.iter().map(|reason| Problem { path: MirrorPath::default(), reason: reason.clone() });
        let mounts = self.vanished.iter().map(vanished);
        roots.chain(mounts).chain(watch).chain(unwatched).chain(self.session.problems.iter().cloned()).chain(paths)
    }

    /// What is shown.
    #[must_use]
    pub fn status(&self) -> MirrorStatus {
        let mut problems: Vec<Problem> = self.named_problems().take(MAX_PROBLEMS + MAX_REMEMBERED).collect();
        let more_problems = problems.len().saturating_sub(MAX_PROBLEMS) as u64;
        problems.truncate(MAX_PROBLEMS);
        let pending = self.dirty.len() + self.in_flight.len() + self.moves.len() + usize::from(self.stream.is_some());
        let quiet = self.dirty.is_empty()
            && self.in_flight.is_empty()
            && self.moves.is_empty()
            && self.stream.is_none()
            && self.to_compare.is_empty()
            && !self.search
            && self.comparing.as_ref().is_none_or(|comparing| comparing.verify.is_some());
        let state = match () {
            () if self.roots.is_empty() => MirrorState::Off,
            () if !problems.is_empty() => MirrorState::Failed,
            () if !self.session.connected => MirrorState::Behind,
            () if !self.session.synced => MirrorState::Initial,
            () if quiet => MirrorState::Current,
            () => MirrorState::Behind,
        };
        let watch = match &self.watcher {
            None => String::new(),
            Some(watcher) => match watcher.why() {
                None => watcher.kind().to_string(),
                Some(why) => format!("{} ({why})", watcher.kind()),
            },
        };
        MirrorStatus {
            state,
            pending_files: pending as u64,
            pending_bytes: self.in_flight_bytes + self.stream.as_ref().map_or(0, |stream| stream.stat.meta.size),
            files: self.counts.values().map(|(files, _)| files).sum(),
            bytes: self.counts.values().map(|(_, bytes)| bytes).sum(),
            last_error: problems
                .first()
                .map(|p| format!("{}: {}", p.path, p.reason))
                .or_else(|| self.status.last_error.clone()),
            watch,
            problems: problems.iter().map(Into::into).collect(),
            more_problems,
            ..self.status.clone()
        }
    }
}

/// What waits to be sent.
#[derive(Debug)]
enum Outgoing {
    /// To be encoded when it is sent.
    Message(MirrorMessage),
    /// A piece of a large file, where it was read.
    Encoded(Shared),
}

impl Outgoing {
    /// What it weighs in the outbox.
    fn weight(&self) -> usize {
        match self {
            Self::Encoded(bytes) => bytes.len(),
            Self::Message(MirrorMessage::Items { items, .. }) => items.iter().map(item_weight).sum(),
            Self::Message(_) => 64,
        }
    }
}

fn item_weight(item: &Item) -> usize {
    let content = match &item.change {
        super::Change::File { content, .. } => content.len(),
        _ => 0,
    };
    content + item.path.as_bytes().len() + 48
}

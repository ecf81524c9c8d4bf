//! The stream thread: one driver, the core, the ping and ds lanes, the journal and the tree's writer.
//!
//! The loop feeds the core with what happened, carries out what it decides, and decides nothing itself. Always: one
//! system call a turn; the lease is checked in the turn that answers; a frame's bytes go to the journal and to the peer
//! as they are. Never: a wait for anything but the driver.

mod applier;
mod awaiting;
mod changes;
mod clock;
mod contents;
mod delay;
mod direct;
mod effects;
mod feed;
mod jobs;
mod lanes;
mod linger;
mod long;
mod native;
mod pending;
mod publish;
mod receive;
mod report;
mod requests;
mod storage;
mod supervised;
mod verify;
mod wait;
mod writes;

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use crossbeam::channel::Receiver;
use ringpair_core::{
    Completion as CoreCompletion, Config as CoreConfig, Instant, Node, Persisted, input::WorkToken,
    supervisor::WorkerStatus,
};
use ringpair_wire::{
    control::Role,
    heartbeat::LINK_FACTOR_ONE,
    id::{Epoch, Position, Seq},
    lane::PathKind,
};

pub use self::{
    applier::Applier, changes::Changes, clock::now, delay::Delay, native::limits as native_limits,
    storage::ControlWriter,
};
use self::{feed::Feed, jobs::Jobs, lanes::Lanes, linger::Linger, pending::Pending, verify::Verifier, writes::Writes};
use crate::{
    api::{
        backend::{Request, WriteRequest},
        events::EventLog,
        status::{DivergenceSummary, IoStatus, StatusCell, Warning},
    },
    bulk::link::{BulkCommand, StreamSide, Traffic},
    config::Config,
    ds::{
        ContentStore, Entry, TreeSnapshot,
        archive::DivergenceArchive,
        store::{Checkpointer, StateStore},
    },
    hooks::Hooks,
    journal::{Journal, JournalEvent},
    mirror::{MirrorStatus, RootSet},
    ring::{Completion, Driver, Fd, Token},
    supervisor::link::Link,
    transport::{ConnInfo, Transport},
};

/// How often the status is published at most, while nothing but heartbeats happens.
const PUBLISH_EVERY: Duration = Duration::from_millis(100);
/// How many bytes of frames are applied in one turn before the loop looks at its sockets again.
const APPLY_BYTES_A_TURN: usize = 256 << 10;
/// Writes are refused while so many bytes wait for the journal: less than it takes, so that every frame closed fits.
const APPEND_BELOW_BYTES: usize = 4 << 20;
/// How often a segment of the journal that could not be made is tried again.
const MAKE_ROOM_EVERY: Duration = Duration::from_secs(1);
/// How many requests are taken in one turn.
const REQUESTS_A_TURN: usize = 1024;
/// For how long no further one is begun: the loop has heartbeats to answer, and the frames so far are to leave.
const TAKE_FOR: Duration = Duration::from_millis(2);
/// How long the last words of a member that ends may take.
const LAST_WORDS_WITHIN: Duration = Duration::from_millis(500);
/// A turn that takes as long is noted: nothing in the loop should.
const LONG_TURN: Duration = Duration::from_millis(25);
/// How many turns are spent on reading the sockets dry after a pause.
const DRAIN_TURNS: usize = 64;

/// Kinds of the loop's own operations.
mod op_kind {
    /// The link to the supervisor is readable.
    pub const LINK: u8 = 1;
    /// The control file was written.
    pub const CONTROL: u8 = 2;
}

/// What the loop is made of; everything is opened before it starts.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// The core's view of it.
    pub core: CoreConfig,
    /// This thread's driver.
    pub driver: Driver,
    /// The lanes.
    pub transport: Transport,
    /// The journal.
    pub journal: Journal,
    /// The core, not started.
    pub node: Node,
    /// What the core is started with.
    pub start: ringpair_core::Start,
    /// The control file.
    pub control: ControlWriter,
    /// The state, brought forward through the journal.
    pub applier: Applier,
    /// The changes that were replayed, for watchers.
    pub changes: Changes,
    /// Keeps the state behind the journal.
    pub store: StateStore,
    /// The divergence archive.
    pub archive: DivergenceArchive,
    /// Large values.
    pub contents: ContentStore,
    /// The bulk thread.
    pub bulk: StreamSide,
    /// Requests of the API.
    pub requests: Receiver<Request>,
    /// The event log.
    pub events: EventLog,
    /// Where the status goes.
    pub status: StatusCell,
    /// The hooks.
    pub hooks: Hooks,
    /// The supervisor; closed: it has died.
    pub link: Link,
    /// Warnings of the start (damaged storage, keys that expire).
    pub warnings: Vec<Warning>,
}

/// The loop.
pub struct Stream {
    config: Arc<Config>,
    core: CoreConfig,
    driver: Driver,
    transport: Transport,
    journal: Journal,
    node: Node,
    control: ControlWriter,
    applier: Applier,
    awaiting: awaiting::Awaiting,
    changes: Changes,
    checkpoints: Checkpointer,
    archive: DivergenceArchive,
    divergence: DivergenceSummary,
    lanes: Lanes,
    feed: Feed,
    writes: Writes,
    linger: Linger,
    /// Clients that speak the native protocol.
    native: native::Native,
    /// A transaction of many changes that is being prepared, and the writes that wait behind it.
    long: Option<long::Long>,
    held: VecDeque<WriteRequest>,
    pending: Pending,
    verifier: Verifier,
    bulk: StreamSide,
    bulk_told: BulkTold,
    mirror: MirrorStatus,
    bulk_dscp: Option<u8>,
    /// The bulk lane's socket, while it is up, and what went over it.
    bulk_socket: Option<Box<ConnInfo>>,
    bulk_traffic: Traffic,
    /// Since when, and how often, lanes were closed for what the peer said on them.
    refused_noted: Option<(StdInstant, u32)>,
    /// The delay that bulk yields to, and how many bytes had come on its lane when it was told last.
    path_delay: delay::PathDelay,
    delay_told_at_bytes: u64,
    requests: Receiver<Request>,
    events: EventLog,
    status: StatusCell,
    hooks: Hooks,
    jobs: Jobs,
    link: Link,
    link_fd: Fd,
    told_supervisor: Option<WorkerStatus>,
    last_turn_told: Instant,
    io: IoStatus,
    warnings: Vec<Warning>,
    persisted: Persisted,
    published: Instant,
    /// Since when records wait for the backup.
    lagging_since: Option<Instant>,
    serve_resync: bool,
    /// A snapshot that the bulk thread wants and that is not synced yet.
    snapshot_wanted: Option<TreeSnapshot>,
    /// The parameters as the bulk thread was last told of them.
    parameters_at: Option<Arc<Entry>>,
    /// Keeps what is stored of large values at what is needed.
    contents: contents::Contents,
    /// From which record on contents are missing, as the core was told.
    missing_told: Option<Seq>,
    /// Through where the tree was searched for newer ones.
    parameters_seen: Position,
    /// A resynchronization under way: what it takes over.
    resync: Option<storage::ResyncRun>,
    fill_parameters: bool,
    ready_said: bool,
    /// What a resynchronization takes over once it is saved.
    staged_state: Option<TreeSnapshot>,
    /// The store is taking a staged state that is not to be taken over any more.
    store_is_staged: bool,
    last_checkpoint: Instant,
    storage_failed: Option<String>,
    drain: Option<usize>,
    exit: Option<Ending>,
    spin: wait::Spin,
    completions: Vec<Completion>,
    journal_events: Vec<JournalEvent>,
    /// When the next segment of the journal was tried last.
    journal_tried: Instant,
    /// The core was told that the journal is full.
    journal_short: bool,
}

/// What the bulk thread was told last.
#[derive(Clone, Debug, Default, PartialEq)]
struct BulkTold {
    role: Role,
    epoch: Epoch,
    roots: RootSet,
    lane: Option<(PathKind, bool)>,
}

/// How the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In order: asked to.
    Stopped,
    /// The driver is of no more use.
    Failed,
}

impl Stream {
    /// A loop over what was opened.
    ///
    /// # Errors
    /// The link's descriptor cannot be duplicated.
    pub fn new(parts: Parts) -> io::Result<Self> {
        use std::os::fd::AsFd;
        let link_fd = Fd::new(parts.link.as_fd().try_clone_to_owned()?);
        let report = parts.driver.report();
        let io = IoStatus { driver: report.driver.into(), features: report.features.clone(), why: report.why.clone() };
        let batch = parts.config.batch;
        let writes =
            Writes::new(batch.max_bytes as usize, batch.max_records as usize, parts.config.compression.ds.into());
        let persisted = parts.start.persisted.clone().unwrap_or_default();
        let jobs = Jobs::new(parts.driver.waker());
        let contents = contents::Contents::new(parts.contents, parts.store.stored().clone());
        let mut stream = Self {
            divergence: storage::summary(&parts.archive).unwrap_or_default(),
            lanes: Lanes::new(parts.core.heartbeat / 2, parts.core.lease(LINK_FACTOR_ONE)),
            feed: Feed::new(parts.journal.reader()),
            awaiting: awaiting::Awaiting::default(),
            linger: Linger::new(batch.linger, batch.max_bytes as usize, batch.max_records as usize),
            native: native::Native::new(batch.linger),
            long: None,
            held: VecDeque::new(),
            pending: Pending::default(),
            verifier: Verifier::default(),
            bulk_told: BulkTold::default(),
            mirror: MirrorStatus::default(),
            bulk_dscp: None,
            bulk_socket: None,
            bulk_traffic: Traffic::default(),
            refused_noted: None,
            path_delay: delay::PathDelay::default(),
            delay_told_at_bytes: 0,
            told_supervisor: None,
            last_turn_told: Instant(0),
            published: Instant(0),
            lagging_since: None,
            serve_resync: false,
            snapshot_wanted: None,
            parameters_at: None,
            contents,
            missing_told: None,
            parameters_seen: Position::default(),
            resync: None,
            fill_parameters: false,
            ready_said: false,
            staged_state: None,
            store_is_staged: false,
            last_checkpoint: now(),
            storage_failed: None,
            drain: None,
            exit: None,
            spin: wait::Spin::default(),
            completions: Vec::new(),
            journal_events: Vec::new(),
            journal_tried: Instant(0),
            journal_short: false,
            link_fd,
            io,
            writes,
            persisted,
            config: parts.config,
            core: parts.core,
            driver: parts.driver,
            transport: parts.transport,
            journal: parts.journal,
            node: parts.node,
            control: parts.control,
            applier: parts.applier,
            changes: parts.changes,
            checkpoints: Checkpointer::start(parts.store, jobs.checkpoints()).map_err(io::Error::other)?,
            archive: parts.archive,
            jobs,
            bulk: parts.bulk,
            requests: parts.requests,
            events: parts.events,
            status: parts.status,
            hooks: parts.hooks,
            link: parts.link,
            warnings: parts.warnings,
        };
        stream.watch_link();
        stream.node.start(now(), parts.start);
        Ok(stream)
    }

    /// Turns until the member ends.
    pub fn run(mut self) -> Ending {
        loop {
            if let Err(error) = self.turn() {
                tracing::error!(%error, "the stream thread's driver failed");
                return Ending::Failed;
            }
            if let Some(ending) = self.exit {
                self.bulk.send(BulkCommand::Stop);
                self.say_the_last_words();
                // The process ends now, and the kernel takes everything back. Dropping a large tree, or waiting for the
                // checkpoint of one, would look to the supervisor like a loop that hangs.
                std::mem::forget(self);
                return ending;
            }
        }
    }

    /// Lets what is queued leave: a release that the peer does not hear costs it the whole time of detection.
    fn say_the_last_words(&mut self) {
        let deadline = StdInstant::now() + LAST_WORDS_WITHIN;
        let mut completions = Vec::new();
        let is_drained = |stream: &Self| {
            stream.lanes.conns().all(|conn| stream.transport.is_drained(conn)) && stream.native.is_drained()
        };
        while StdInstant::now() < deadline && !is_drained(self) {
            self.feed_peer(now());
            self.pump_transport();
            self.native.pump(&mut self.driver);
            if self.driver.turn(Some(Duration::from_millis(1)), &mut completions).is_err() {
                return;
            }
            for completion in completions.drain(..) {
                self.complete(completion, now());
            }
            while self.transport.poll_event().is_some() {}
        }
    }

    /// One turn: wait, take what happened, decide, carry out, send.
    fn turn(&mut self) -> io::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.wait_for(&mut completions)?;
        let (now, began) = (now(), StdInstant::now());
        // First of all, so that the core notices a pause of its own before it hears anything (protocol §5).
        self.node.handle_timeout(now);
        for completion in completions.drain(..) {
            self.complete(completion, now);
        }
        self.completions = completions;
        let completed = began.elapsed();
        self.hear_journal(now);
        self.pump_transport();
        self.take_events(now);
        self.hear_bulk(now);
        self.hear_jobs(now);
        self.carry_out(now);
        let heard = began.elapsed();
        self.take_requests(now);
        // What is short is written here, and told at once.
        self.journal.pump(&mut self.driver);
        self.hear_journal(now);
        self.carry_out(now);
        let taken = began.elapsed();
        self.apply(now);
        self.carry_out(now);
        let applied = began.elapsed();
        // Answers leave first: a send to the peer takes the kernel longer.
        self.native.pump(&mut self.driver);
        self.feed_peer(now);
        self.housekeeping(now);
        self.dial(now);
        self.pump_transport();
        self.native.pump(&mut self.driver);
        self.journal.pump(&mut self.driver);
        self.control.pump(&mut self.driver);
        if let Some(failed) = self.control.take_failure() {
            self.node.handle_completion(now, failed);
            self.carry_out(now);
        }
        self.bulk.flush();
        let took = began.elapsed();
        if took >= LONG_TURN {
            tracing::debug!(
                ?took,
                ?completed,
                ?heard,
                ?taken,
                ?applied,
                "a long turn of the stream loop, by its parts"
            );
        }
        Ok(())
    }

    /// Through which record the applier may go: a backup applies what is written.
    fn applicable(&self) -> Seq {
        self.journal.written().seq
    }

    fn complete(&mut self, completion: Completion, now: Instant) {
        match completion.token.owner() {
            Token::TRANSPORT => self.transport.on_completion(&mut self.driver, completion, StdInstant::now()),
            Token::CLIENTS => self.native.complete(completion),
            Token::JOURNAL => {
                let mut events = std::mem::take(&mut self.journal_events);
                self.journal.on_completion(completion, &mut events);
                for event in events.drain(..) {
                    self.journal_event(event, now);
                }
                self.journal_events = events;
            }
            _ if completion.token.kind() == op_kind::CONTROL => {
                if let Some(done) = self.control.on_completion(completion) {
                    self.node.handle_completion(now, done);
                }
            }
            _ => {
                self.watch_link();
                self.hear_supervisor();
            }
        }
    }

    /// What the journal says without a completion: a segment file that cannot be made, or can again.
    fn hear_journal(&mut self, now: Instant) {
        let mut events = std::mem::take(&mut self.journal_events);
        self.journal.poll_events(&mut events);
        for event in events.drain(..) {
            self.journal_event(event, now);
        }
        self.journal_events = events;
        self.journal_room(now);
    }

    /// Tries again to make the next segment now and then, and tells the core when the current one comes to its end.
    fn journal_room(&mut self, now: Instant) {
        if self.journal.lacks_room() && now.since(self.journal_tried) >= MAKE_ROOM_EVERY {
            self.journal_tried = now;
            self.journal.retry();
        }
        let short = self.journal.is_short(0);
        if short == std::mem::replace(&mut self.journal_short, short) {
            return;
        }
        let completion = if short {
            let dir = self.config.storage.dir.display();
            CoreCompletion::JournalFull(format!("no segment can be made. Try: make room in {dir}"))
        } else {
            CoreCompletion::Written(self.journal.written())
        };
        self.node.handle_completion(now, completion);
    }

    fn journal_event(&mut self, event: JournalEvent, now: Instant) {
        let completion = match event {
            // That there is room again is told when there is; what is written comes with what is synced.
            JournalEvent::Written(_) if self.journal_short => return,
            JournalEvent::Written(position) => CoreCompletion::Written(position),
            JournalEvent::Synced(position) => {
                self.serve_snapshot(position);
                CoreCompletion::Synced(position)
            }
            JournalEvent::Failed { error } => {
                self.storage_failed = Some(error.to_string());
                CoreCompletion::SyncFailed(error.to_string())
            }
            JournalEvent::NoRoom { error } => {
                self.journal_tried = now;
                let text = format!("{error}. Try: make room in {}", self.config.storage.dir.display());
                return self.warn("journal-no-room", text);
            }
            JournalEvent::Room => return self.unwarn("journal-no-room"),
        };
        self.node.handle_completion(now, completion);
    }

    fn pump_transport(&mut self) {
        self.transport.pump(&mut self.driver, StdInstant::now());
    }

    fn dials_ds(&self) -> bool {
        self.bulk_told.role != Role::Active
    }

    fn dial(&mut self, now: Instant) {
        let ds = self.dials_ds();
        for (lane, path) in self.lanes.due(now, ds) {
            if self.transport.dial(lane, path, StdInstant::now()).is_err() {
                self.lanes.dial_failed(lane, path, now);
            }
        }
    }

    /// What has its own time: publishing, time-outs of clients, checkpoints, retention.
    fn housekeeping(&mut self, now: Instant) {
        let std_now = StdInstant::now();
        self.writes.expire(std_now);
        self.native.expire(std_now);
        self.expire_pending(std_now);
        self.verifier.expire(std_now);
        self.checkpoint(now);
        self.look_at_contents(now);
        // One look at the core for all who say what this member is.
        let Some(status) = self.node.status(now) else { return };
        self.lanes.choose_data_path(status.paths.map(|path| path.up), now);
        self.direct_bulk(&status);
        self.tell_supervisor(&status, now);
        self.release_changes(&status);
        self.handed_over(&status);
        if now.since(self.published) >= PUBLISH_EVERY || self.role_changed() {
            self.publish(&status, now);
        }
    }
}

/// Work of the core that waits for the bulk thread, by what the bulk thread calls it.
#[derive(Debug, Default)]
struct BulkWork {
    settle: Option<WorkToken>,
    drains: HashMap<u64, WorkToken>,
}

//! What the stream thread tells the bulk thread, and what it hears back.
//!
//! Two bounded queues, each with a wake of the other side's driver. Always: the stream thread never waits for the bulk
//! thread: what does not fit is kept by the sender and tried again next turn, which is what bounds it.

use std::{collections::VecDeque, sync::Arc};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use ringpair_core::input::WorkToken;
use ringpair_fsmon::roots::RootSet;
use ringpair_wire::{compress::Totals, ds::ContentId, id::Epoch, lane::PathKind};

use crate::{
    api::backend::Difference,
    ds::{TreeSnapshot, resync::Staged},
    mirror::{ArchiveFiles, MirrorDifferences, MirrorMessage, MirrorStatus, Problem, SinkReport},
    ring::Waker,
    stream::Delay,
    transport::{ConnInfo, Detached},
};

/// How many messages may wait in each direction.
const QUEUED: usize = 1024;

/// What the bulk thread is to do.
pub enum BulkCommand {
    /// Where the bulk lane runs: over this path, dialing if asked to; `None`: nowhere.
    Lane {
        /// The path.
        path: Option<PathKind>,
        /// Whether this end dials while the lane is down.
        dial: bool,
    },
    /// A bulk connection that the stream thread accepted.
    Adopt(Box<Detached>),
    /// This member is active: watch and send.
    BecomeActive {
        /// Its epoch.
        epoch: Epoch,
        /// What is mirrored.
        roots: RootSet,
    },
    /// This member is backup: receive.
    BecomeBackup {
        /// The active's epoch.
        epoch: Epoch,
        /// Where files go before they are overwritten, if this member was active before.
        archive: Option<Box<dyn ArchiveFiles>>,
    },
    /// Neither.
    BecomeIdle,
    /// What is mirrored has changed (active).
    Roots(RootSet),
    /// An announcement that came on the ds lane.
    Announced(Box<MirrorMessage>),
    /// Stop applying files and settle what has come (promotion); ends with [`BulkEvent::Settled`].
    Settle(WorkToken),
    /// Everything changed on the file system until now durable on the backup; ends with [`BulkEvent::BarrierDone`].
    Barrier(u64),
    /// Nobody waits for this barrier any more.
    Withdraw(u64),
    /// Compare both trees of files; ends with [`BulkEvent::FilesVerified`].
    VerifyFiles {
        /// Comes back with the answer.
        id: u64,
        /// Contents as well.
        deep: bool,
    },
    /// How long the path of the bulk lane takes now.
    Delay(Delay),
    /// Fetch these contents from the peer; each ends with [`BulkEvent::ContentStored`] or
    /// [`BulkEvent::ContentGone`], or is asked for again.
    Fetch(Vec<(ContentId, u64)>),
    /// Compare the tree with the peer's by digests. With `work`, to take it over: ends with [`BulkEvent::Staged`];
    /// without, only to know: ends with [`BulkEvent::DsVerified`].
    Resync {
        /// The work, or `None` for a comparison only.
        purpose: ResyncPurpose,
        /// The own tree.
        own: TreeSnapshot,
    },
    /// The answer to [`BulkEvent::SnapshotWanted`]: serve digests of this.
    Serve(TreeSnapshot),
    /// End the thread.
    Stop,
}

/// What a comparison by digests is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResyncPurpose {
    /// To take the peer's state over.
    Take(WorkToken),
    /// To know what differs, as request number so and so.
    Verify(u64),
}

/// What a comparison of trees found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DsVerdict {
    /// Objects compared.
    pub compared: u64,
    /// What differs and is not under way.
    pub differences: Vec<Difference>,
    /// Paths whose newest change was under way.
    pub changing: Vec<String>,
}

/// What the bulk thread says.
pub enum BulkEvent {
    /// To be sent on the ds lane.
    Announce(Box<MirrorMessage>),
    /// A settling is done.
    Settled(WorkToken, Box<SinkReport>),
    /// A barrier was reached, but for what is named.
    BarrierDone(u64, Vec<Problem>),
    /// A comparison of files ended.
    FilesVerified(u64, Box<MirrorDifferences>),
    /// A comparison of trees ended, or failed.
    DsVerified(u64, Result<DsVerdict, String>),
    /// A content that was fetched is stored.
    ContentStored(ContentId),
    /// The peer cannot serve this content.
    ContentGone(ContentId),
    /// Stored contents were found damaged and removed.
    ContentsDamaged,
    /// The peer wants to compare: a snapshot whose position is synced is needed.
    SnapshotWanted,
    /// Everything that differs is staged and its contents are here.
    Staged(WorkToken, Box<Staged>),
    /// A resynchronization failed; nothing has changed.
    ResyncFailed(WorkToken, String),
    /// The mirror's status changed.
    Mirror(Box<MirrorStatus>),
    /// The mirror cannot go on (no room for the archive, a protocol error).
    MirrorFailed(String),
    /// The bulk lane came up, as its socket says, or went down.
    Lane(Option<Box<ConnInfo>>),
    /// The bulk lane was closed for what the peer said on it.
    LaneRefused(String),
    /// More went over the bulk lane.
    Traffic(Traffic),
}

/// What went over the bulk lane since the thread began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes sent, after compression and encryption.
    pub sent_bytes: u64,
    /// Bytes received, before decryption.
    pub received_bytes: u64,
    /// How many bytes the peer may have under way; `None`: unlimited.
    pub credit_bytes: Option<u32>,
    /// Whether large sends go out uncopied; `None`: not known.
    pub zero_copy: Option<bool>,
    /// Bodies of messages sent, before and after compression.
    pub compression: Totals,
}

/// One side of the link.
pub struct Side<Out, In> {
    out: Sender<Out>,
    waiting: VecDeque<Out>,
    incoming: Receiver<In>,
    wake: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// The stream thread's side.
pub type StreamSide = Side<BulkCommand, BulkEvent>;
/// The bulk thread's side.
pub type BulkSide = Side<BulkEvent, BulkCommand>;

/// Both sides of a new link.
#[must_use]
pub fn link() -> (StreamSide, BulkSide) {
    let (commands, command_queue) = bounded(QUEUED);
    let (events, event_queue) = bounded(QUEUED);
    let stream = Side { out: commands, waiting: VecDeque::new(), incoming: event_queue, wake: None };
    let bulk = Side { out: events, waiting: VecDeque::new(), incoming: command_queue, wake: None };
    (stream, bulk)
}

impl<Out, In> Side<Out, In> {
    /// Says whom to wake after a message.
    pub fn wakes(&mut self, waker: Waker) {
        self.wake = Some(Arc::new(move || waker.wake()));
    }

    /// Sends a message, or keeps it until there is room; order is kept.
    pub fn send(&mut self, message: Out) {
        self.waiting.push_back(message);
        self.flush();
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) {
        let mut sent = false;
        while let Some(message) = self.waiting.pop_front() {
            match self.out.try_send(message) {
                Ok(()) => sent = true,
                Err(TrySendError::Full(message)) => {
                    self.waiting.push_front(message);
                    break;
                }
                // The other thread has ended; so will this one.
                Err(TrySendError::Disconnected(_)) => break,
            }
        }
        if sent && let Some(wake) = &self.wake {
            wake();
        }
    }

    /// How many messages could not be sent yet: a producer stops while there are any.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The next message of the other side.
    pub fn receive(&self) -> Option<In> {
        self.incoming.try_recv().ok()
    }
}

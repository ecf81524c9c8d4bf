//! What the core is told: start, frames, completions, commands, evidence. Connections, heartbeats, messages and
//! time-outs are arguments of [`crate::Node`]'s methods.
//!
//! Always plain values: an input says what happened, never what to do about it.

use ringpair_wire::{
    control::{Blocker, EpochStart, SwitchMode},
    id::{ChainHash, Epoch, HistoryId, Position, Seq},
    lane::PathKind,
};

use crate::{effect::Hook, persisted::Persisted};

/// Names a state to persist; grows by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PersistToken(pub u64);

/// Names a write between admission and acknowledgement; chosen by the shell, each used once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriteToken(pub u64);

/// Names a command until its [`crate::Effect::CommandDone`]; chosen by the shell, each used once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandToken(pub u64);

/// Names a piece of work given to the shell; its completion names it again, and a completion with an outdated
/// name changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkToken(pub u64);

/// Where a control message came from or goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The ping lane of a path.
    Ping(PathKind),
    /// The ds lane.
    Ds,
}

/// What the core is started with.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// The control file's state; `None`: no control file, or an empty one (empty storage). A damaged slot has
    /// raised `highest_epoch` by one already (protocol §1).
    pub persisted: Option<Persisted>,
    /// The journal as recovered: everything after its end is gone, everything before it is synced.
    pub journal: JournalView,
    /// A fresh random number: the history's name, should this member create one.
    pub fresh_history: HistoryId,
    /// The wall clock at zero of the monotonic one, in milliseconds since 1970: written into the record of a switch,
    /// used for nothing else.
    pub unix_ms_at_zero: u64,
}

/// The journal after recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JournalView {
    /// The position before the oldest frame that is still there (zero for a whole journal).
    pub base: Position,
    /// The end of the newest frame; equal to `base` if there is none.
    pub end: Position,
    /// Where each epoch that has a frame here begins, in order; an epoch that began before `base` begins at `base`.
    pub epochs: Vec<EpochStart>,
    /// Whether any frame is FILTERED: such a journal serves no unfiltered catch-up.
    pub filtered: bool,
    /// The newest record that the state (tree) has applied.
    pub applied: Seq,
}

/// What the core must know of a frame. The bytes stay in the shell, under `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameMeta {
    /// The history in the frame's header.
    pub history: HistoryId,
    /// The epoch in which its records were accepted.
    pub epoch: Epoch,
    /// The number of its first record.
    pub first: Seq,
    /// How many records it covers; at least 1.
    pub count: u32,
    /// The chain hash of the frame before it.
    pub prev: ChainHash,
    /// The position that its end is: same epoch, number of its last record, its own chain hash.
    pub end: Position,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What to do with a received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameVerdict {
    /// Write it to the journal, sync, apply once written; report `Written`, `Synced`, `Applied`.
    Accept,
    /// It continues the journal and lacks contents: keep it in memory, with everything that comes behind it on the same
    /// connection, and ask again when its contents are stored, or when the peer has said that it cannot give them. Until
    /// then it counts as not received.
    Await,
    /// Already here: drop it.
    Duplicate,
    /// Not to be kept: drop it. The core has asked for a new [`ringpair_wire::control::Control::Follow`] if that can
    /// help. The sentence says why.
    Refuse(String),
    /// Not to be kept, and nothing that an honest leader sends where it follows: the connection is to be closed, so that
    /// both begin anew from what the journal holds. The sentence says why.
    Break(String),
}

/// Something the shell was told to do has ended, or something happened to the storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The state of this token, and every earlier one, is synced.
    Persisted(PersistToken),
    /// It could not be persisted; the sentence says why.
    PersistFailed(PersistToken, String),
    /// The journal is written through here (in memory of the kernel; readable).
    Written(Position),
    /// The journal is synced through here.
    Synced(Position),
    /// An fsync of the journal failed; never retried (protocol §10).
    SyncFailed(String),
    /// A write to the journal failed for lack of room; no frame after the last `Written` exists.
    JournalFull(String),
    /// The state has applied everything through this record.
    Applied(Seq),
    /// Backup: the first record whose content is not stored yet; `None`: all contents are here. Received, durable and
    /// applied positions stop before it.
    ContentMissing(Option<Seq>),
    /// Active: so many bytes of journal come after what the backup has durably. To be told when it changes by a
    /// segment or more.
    Backlog(u64),
    /// The journal dropped its oldest segments: it now begins after this position.
    Trimmed(Position),
    /// The journal gained or lost FILTERED frames.
    Filtered(bool),
    /// [`crate::Effect::StopAppliers`] is done: nothing applies any more; state applied through this record.
    AppliersStopped(Seq),
    /// [`crate::Effect::Replay`] is done.
    Replayed(WorkToken),
    /// [`crate::Effect::SettleFiles`] is done; for the event log: complete files renamed, and announced ones missing.
    FilesSettled {
        /// The work.
        work: WorkToken,
        /// How many files were renamed into place.
        renamed: u64,
        /// How many announced files are missing or stale.
        missing: u64,
    },
    /// A hook ended.
    HookFinished {
        /// Which.
        hook: Hook,
        /// The epoch it was keyed by.
        epoch: Epoch,
        /// Exit 0 within its time, or no hook configured.
        ok: bool,
    },
    /// [`crate::Effect::Locate`] is answered.
    Located(WorkToken, Location),
    /// [`crate::Effect::Archive`] is done and synced: so many records and files.
    Archived {
        /// The work.
        work: WorkToken,
        /// Records in the archive.
        records: u64,
        /// Files in the archive.
        files: u64,
    },
    /// It failed; nothing was touched. The sentence says why (no room).
    ArchiveFailed(WorkToken, String),
    /// [`crate::Effect::Resync`] is done: all differences applied in one step, journal reset to begin at this
    /// position, both synced.
    Resynced(WorkToken, Position),
    /// It failed (lane lost, no room); the staged part is dropped, journal and state are as before.
    ResyncFailed(WorkToken, String),
    /// [`crate::Effect::DrainSockets`] is done: everything that waited in the sockets has been fed in.
    SocketsDrained,
    /// [`crate::Effect::DrainFiles`] is done: `left` paths are still dirty.
    FilesDrained {
        /// The work.
        work: WorkToken,
        /// Dirty paths left.
        left: u64,
    },
    /// [`crate::Effect::ServeTail`] is done.
    TailServed(WorkToken),
}

/// What a journal says of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Location {
    /// A frame ends there with the same epoch and chain hash, and everything after it is there.
    Match,
    /// No frame of that epoch, number and chain hash ends there.
    Mismatch,
    /// The frames there are gone (or are FILTERED after it): cannot be served.
    Gone,
}

/// What other senses say; absent until somebody looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// Gateway and NetTest (state-machine.md §11.3): whether *this* host is isolated. `None`: unknown, or neither
    /// check is configured.
    Isolated(Option<bool>),
    /// The peer's host answers echo requests. `None`: unknown.
    PeerHostReachable(Option<bool>),
}

/// What operators, clients and supervisors ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `ringpair switch` (protocol §9).
    Switch {
        /// Without draining in advance.
        immediate: bool,
        /// Overrides blockers; on the backup: promotes.
        force: bool,
        /// The operator says that the peer is dead.
        fenced: bool,
        /// What the shell knows would be lost (files, handlers); the core adds what it knows.
        blockers: Vec<Blocker>,
        /// Who asked (OPS-058).
        user: String,
    },
    /// `ringpair mode` (interface §2).
    SetMode(SwitchMode),
    /// The operator says that the peer is dead (`--fenced` without a switch): ends `may-be-split`.
    Fenced,
    /// A barrier: done when every record admitted before is durable on the backup; refused while alone.
    Sync,
    /// SIGTERM, or the supervisor is gone: discontinue, release, give back; ends with [`crate::Effect::Exit`].
    Stop,
}

/// The record numbers that a write was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The epoch its records belong to.
    pub epoch: Epoch,
    /// The number of its first record.
    pub first: Seq,
    /// The number of its last record: the write's version.
    pub last: Seq,
}

/// Why a write or a command is refused; the shell maps it to an HTTP code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Of what kind.
    pub kind: RefusalKind,
    /// One sentence with what to try.
    pub reason: String,
    /// The active member's name and address, where it is known and is not this one.
    pub active: Option<(String, String)>,
    /// What would be lost (switch only).
    pub blockers: Vec<Blocker>,
}

/// The kinds of [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// This member is not active (409 `not-active`).
    NotActive,
    /// Active, but its state forbids it: switching, storage failed, alone (409).
    State,
    /// Too much waits already (429).
    BackPressure,
    /// Another command of this kind is under way (409).
    Busy,
    /// It was begun and failed or ran out of time (504).
    Failed,
}

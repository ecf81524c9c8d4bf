//! What the core wants done. Effects are handed out in order, and the shell begins them in that order.
//!
//! Always: an effect that depends on a persisted state comes only after that state's completion; every effect that
//! can fail or takes time names the completion that ends it. Never: a decision left to the shell.

use ringpair_wire::{
    control::{Control, EpochStart},
    heartbeat::Heartbeat,
    id::{AckLevel, Epoch, HistoryId, Position, Seq, Version},
    lane::PathKind,
};

use crate::{
    event::Event,
    input::{Channel, CommandToken, PersistToken, Refusal, WorkToken, WriteToken},
    persisted::Persisted,
};

/// The two scripts of `[hooks]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    /// This member became active.
    Commence,
    /// This member ceased to be active, or starts.
    Discontinue,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The level asked for is reached (or `local`, while alone, which is then said).
    Reached {
        /// The level reached: never more than is true.
        level: AckLevel,
        /// Acknowledged without a backup.
        alone: bool,
    },
    /// It will not be reached (`on_peer_loss = "block"`); the write stands at this level. 504.
    NotReached(AckLevel),
    /// The member ceased to be active before the level was reached: kept, lost or archived, nobody here knows. 504.
    Unknown,
}

/// A thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Write this state to the control file and sync it; answer with `Persisted(token)` or `PersistFailed`. States
    /// may be skipped when a newer one waits: `Persisted(token)` stands for every earlier token. Nothing else is held
    /// up meanwhile.
    Persist {
        /// Names the state.
        token: PersistToken,
        /// The whole state.
        state: Box<Persisted>,
    },
    /// Send a control message on one connection; dropped if that connection is not up.
    Send {
        /// Where to.
        to: Channel,
        /// What.
        message: Control,
    },
    /// Seal and send a heartbeat datagram on this path; dropped if the path has no session. At once: nothing may
    /// queue before it.
    SendHeartbeat {
        /// Which path.
        path: PathKind,
        /// The plaintext.
        heartbeat: Heartbeat,
    },
    /// Open the doors: dial every lane that is down, from now on for ever, and take incoming connections. Comes once,
    /// after the start's discontinue.
    Connect,
    /// Dial the ping lanes that are down now, without waiting for the next attempt's time: the peer's end closed.
    DialNow,
    /// Answer a write. The shell sends it in the same turn, or asks [`crate::Node::may_answer`] again first.
    Answer {
        /// Which write.
        write: WriteToken,
        /// Its version.
        version: Version,
        /// How it ended.
        outcome: WriteOutcome,
    },
    /// End a command.
    CommandDone {
        /// Which command.
        command: CommandToken,
        /// Done, or why not.
        result: Result<(), Refusal>,
    },
    /// The member has an empty journal and creates its history: name the journal and the DS tree by it, fill in the
    /// initial parameters after `EpochBegun`.
    CreateHistory {
        /// The history.
        history: HistoryId,
    },
    /// Close a frame with one epoch record, numbered `start.after.seq + 1`, of `start.epoch`, chained to `start.after`:
    /// the first frame of the epoch. Journal it and report it by [`crate::Node::frame_closed`], in this turn.
    AppendEpoch {
        /// Where the epoch begins.
        start: EpochStart,
    },
    /// Drop every record that was admitted and not yet closed in a frame: this member is not active any more.
    DropUnframed,
    /// Stop applying records and files received from the peer; a resynchronization under way is dropped, and nothing of
    /// it applied after this. End with `AppliersStopped`.
    StopAppliers,
    /// Apply what is journalled and received from here on again (backup).
    StartAppliers,
    /// Bring the state up to the journal's end, this record included; end with `Replayed`.
    Replay {
        /// Names the work.
        work: WorkToken,
        /// Through this record.
        through: Seq,
    },
    /// Rename received files that are complete, remove other temporaries (tagged with an epoch up to this one);
    /// end with `FilesSettled`.
    SettleFiles {
        /// Names the work.
        work: WorkToken,
        /// The new epoch.
        epoch: Epoch,
    },
    /// Run a hook, keyed by `epoch`; end with `HookFinished` (also at its time-out, and at once if none is configured).
    RunHook {
        /// Which.
        hook: Hook,
        /// Its key.
        epoch: Epoch,
    },
    /// Say whether this position is in the own journal and can be served from; end with `Located`.
    Locate {
        /// Names the work.
        work: WorkToken,
        /// The peer's position.
        position: Position,
    },
    /// Send all frames after this position on the ds lane in order, stored ones first, then each as it is closed,
    /// never past [`crate::Node::send_through`]. Replaces an earlier stream. The frames follow the `Resume` that was
    /// sent just before.
    StreamFrom {
        /// The first frame sent is the one that follows this end.
        after: Position,
    },
    /// Send no more frames.
    StopStream,
    /// Send the stored frames after this position on the connection that asked, then `TailEnd`; end with `TailServed`.
    ServeTail {
        /// Names the work.
        work: WorkToken,
        /// The connection that asked.
        to: Channel,
        /// The asker's position, located before.
        after: Position,
    },
    /// Write and sync the divergence archive before anything is touched: the own records after `after` (none if it is
    /// the journal's end), and, if `files`, the files that differ from the last common manifest. End with `Archived` or
    /// `ArchiveFailed`.
    Archive {
        /// Names the work.
        work: WorkToken,
        /// The newest record that the peer surely has.
        after: Seq,
        /// The last epoch in which this member was active.
        epoch: Epoch,
        /// Whether files may differ: this member was active since it last followed.
        files: bool,
    },
    /// Compare with the peer's snapshot, stage, apply in one step, reset the journal to begin at the snapshot's
    /// position under `history`; end with `Resynced` or `ResyncFailed`. `complete = false` is persisted already.
    Resync {
        /// Names the work.
        work: WorkToken,
        /// The peer's history, to be taken over.
        history: HistoryId,
        /// The active's epoch.
        epoch: Epoch,
    },
    /// Serve digests and snapshots to the peer (active), or stop to: until the office ends, whatever lanes do.
    ServeResync(bool),
    /// Read every socket until it would block and feed in what comes, then `SocketsDrained`: this process did not run
    /// for more than H.
    DrainSockets,
    /// Bring the mirror's dirty set to the backup as far as it goes now; end with `FilesDrained`.
    DrainFiles {
        /// Names the work.
        work: WorkToken,
    },
    /// Write to the event log (and publish `status`): every decision comes with one.
    Report(Event),
    /// The worker has nothing left to do: end the process.
    Exit,
}

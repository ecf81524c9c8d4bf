//! [`Node`]: the one value that holds a member's decisions. Inputs come in by its methods, effects go out by
//! [`Node::poll_effect`].
//!
//! After every input the shell takes effects until there is none, then waits for [`Node::next_timeout`] at most.

use std::collections::VecDeque;

use ringpair_wire::{
    control::{Blocker, Control},
    heartbeat::Heartbeat,
    id::{AckLevel, Epoch, Position, Seq},
    lane::{LaneKind, PathKind},
};

use crate::{
    config::Config,
    effect::Effect,
    event::SwitchRecord,
    input::{
        Admission, Channel, Command, CommandToken, Completion, Evidence, FrameMeta, FrameVerdict, Refusal, RefusalKind,
        Start, WriteToken,
    },
    status::Status,
    time::Instant,
};

/// A member's core.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    pub(crate) effects: VecDeque<Effect>,
}

impl Node {
    /// A core that has not started.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, effects: VecDeque::new() }
    }

    /// Starts it, once: with what the control file and the journal say. `now` is also the start guard's beginning.
    pub fn start(&mut self, now: Instant, start: Start) {
        let _ = (now, start);
    }

    /// A lane came up (TLS and hello done; the peer's certificate and pair are right) or went down. A lane that is
    /// replaced by a newer connection goes down and comes up again.
    pub fn handle_connection(&mut self, now: Instant, path: PathKind, lane: LaneKind, up: bool) {
        let _ = (now, path, lane, up);
    }

    /// An authentic, not replayed heartbeat came on this path.
    pub fn handle_heartbeat(&mut self, now: Instant, path: PathKind, heartbeat: &Heartbeat) {
        let _ = (now, path, heartbeat);
    }

    /// A control message came.
    pub fn handle_message(&mut self, now: Instant, from: Channel, message: Control) {
        let _ = (now, from, message);
    }

    /// A checked frame came from the peer (or its supervisor): whether to keep it. To be asked in the order of
    /// arrival, before the frame is written.
    pub fn handle_frame(&mut self, now: Instant, from: Channel, frame: &FrameMeta) -> FrameVerdict {
        let _ = (now, from, frame);
        FrameVerdict::Refuse(String::new())
    }

    /// Something the shell was told to do has ended, or the storage has something to say.
    pub fn handle_completion(&mut self, now: Instant, completion: Completion) {
        let _ = (now, completion);
    }

    /// Another sense has something to say.
    pub fn handle_evidence(&mut self, now: Instant, evidence: Evidence) {
        let _ = (now, evidence);
    }

    /// Somebody asks for something; every command ends with one [`Effect::CommandDone`].
    pub fn handle_command(&mut self, now: Instant, token: CommandToken, command: Command) {
        let _ = (now, token, command);
    }

    /// A client wants to write `records` records (at least 1), which take effect together, and be answered at `level`.
    /// Gives them their numbers, in the order of the calls; an [`Effect::Answer`] follows.
    ///
    /// # Errors
    /// [`Refusal`]: not active, not writable at present, or too much waits already. No number is used up.
    pub fn admit(
        &mut self,
        now: Instant,
        token: WriteToken,
        records: u32,
        level: AckLevel,
    ) -> Result<Admission, Refusal> {
        let _ = (now, token, records, level);
        Err(Refusal { kind: RefusalKind::NotActive, reason: String::new(), active: None, blockers: Vec::new() })
    }

    /// A frame of admitted records (or of the epoch record) is encoded, in order: its bytes go to the journal and the
    /// peer now.
    pub fn frame_closed(&mut self, now: Instant, frame: &FrameMeta) {
        let _ = (now, frame);
    }

    /// The time of [`Self::next_timeout`] has come, or passed. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Self::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        None
    }

    /// Whether an acknowledgement, or an answer to `/active`, that was decided in this turn may still be sent at `now`.
    #[must_use]
    pub fn may_answer(&self, now: Instant) -> bool {
        let _ = now;
        false
    }

    /// The newest record that may be sent to the follower now (its received position plus the window).
    #[must_use]
    pub fn send_through(&self) -> Seq {
        Seq(0)
    }

    /// The oldest record that the journal must still hold: for the follower, or for the state.
    #[must_use]
    pub fn needed_after(&self) -> Seq {
        Seq(0)
    }

    /// The end of the journal as the core has it: the next frame is chained to it.
    #[must_use]
    pub fn position(&self) -> Position {
        Position::default()
    }

    /// The own epoch as active, the followed one as backup, else the highest seen: what files and answers are tagged with.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        Epoch(0)
    }

    /// Everything for `status` at `now`; `None` before [`Self::start`].
    #[must_use]
    pub fn status(&self, now: Instant) -> Option<Status> {
        let _ = now;
        None
    }

    /// What, as far as the core knows, speaks against a switch now.
    #[must_use]
    pub fn switch_blockers(&self, now: Instant) -> Vec<Blocker> {
        let _ = now;
        Vec::new()
    }

    /// The last switch of this run, with its evidence.
    #[must_use]
    pub fn last_switch(&self) -> Option<&SwitchRecord> {
        None
    }

    /// Why no promotion takes place now, one sentence a line; empty on an active member.
    #[must_use]
    pub fn why_not(&self, now: Instant) -> Vec<String> {
        let _ = now;
        Vec::new()
    }
}

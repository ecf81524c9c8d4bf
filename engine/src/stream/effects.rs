//! Carries out what the core decides, in the order in which it decided.
//!
//! Every effect that can fail comes back as a completion. Never: a choice between two ways of going on.

use std::time::Instant as StdInstant;

use ringpair_core::{
    Completion, Effect, Event as CoreEvent, Instant,
    effect::Hook,
    input::{Channel, FrameMeta, Location, WorkToken},
};
use ringpair_wire::{
    codec::Codec,
    control::{Control, EpochStart},
    frame::CheckedFrame,
    heartbeat::Heartbeat,
    id::{Epoch, HistoryId, Position, Seq},
    lane::{MessageKind, PathKind},
};

use super::{Ending, Stream, applier::meta_of, jobs::Done, native, report, writes};
use crate::{
    api::events::Event,
    bulk::link::BulkCommand,
    hooks::{HookEvent, HookLedger},
    journal::JournalError,
    transport::SendError,
};

impl Stream {
    /// Takes effects until there is none.
    pub(super) fn carry_out(&mut self, now: Instant) {
        while let Some(effect) = self.node.poll_effect() {
            self.effect(effect, now);
        }
    }

    fn effect(&mut self, effect: Effect, now: Instant) {
        match effect {
            Effect::Persist { token, state } => {
                self.persisted = (*state).clone();
                self.control.persist(token, &state);
            }
            Effect::Send { to, message } => self.send_control(to, &message),
            Effect::SendHeartbeat { path, heartbeat } => self.send_heartbeat(path, &heartbeat),
            Effect::Connect => self.lanes.open(),
            Effect::DialNow => self.lanes.hurry(),
            Effect::Answer { write, version: _, outcome } => {
                let may_answer = self.node.may_answer(super::now());
                match native::is_native(write) {
                    true => self.native.answer(write, outcome, may_answer),
                    false => self.writes.answer(write, outcome, may_answer),
                }
            }
            Effect::CommandDone { command, result } => self.command_done(command, result),
            Effect::CreateHistory { history } => self.create_history(history, now),
            Effect::AppendEpoch { start } => self.append_epoch(start, now),
            Effect::DropUnframed => self.drop_unframed(),
            Effect::StopAppliers => {
                self.applier.stop();
                self.awaiting.clear();
                self.drop_resync();
                self.node.handle_completion(now, Completion::AppliersStopped(self.applier.applied()));
            }
            Effect::StartAppliers => self.applier.start(),
            Effect::Replay { work, through } => self.replay(work, through, now),
            Effect::SettleFiles { work, epoch: _ } => {
                self.pending.bulk.settle = Some(work);
                self.bulk.send(BulkCommand::Settle(work));
            }
            Effect::RunHook { hook, epoch } => self.run_hook(hook, epoch),
            Effect::Locate { work, position } => {
                let location = self.locate(&position);
                self.node.handle_completion(now, Completion::Located(work, location));
            }
            Effect::StreamFrom { after } => self.feed.stream_from(after),
            Effect::StopStream => self.feed.stop(),
            Effect::ServeTail { work, to, after } => self.feed.serve_tail(work, to, after, self.journal.end()),
            Effect::Archive { work, after, epoch, files } => self.archive(work, after, epoch, files),
            Effect::Resync { work, history, epoch: _ } => self.begin_resync(work, history),
            Effect::ServeResync(serve) => {
                self.serve_resync = serve;
                if !serve {
                    self.contents.serves_none();
                }
                self.serve_snapshot(self.journal.synced());
            }
            Effect::DrainSockets => self.drain = Some(super::DRAIN_TURNS),
            Effect::DrainFiles { work } => self.drain_files(work),
            Effect::Report(event) => self.report(&event),
            Effect::Exit => self.exit = Some(Ending::Stopped),
        }
    }

    fn report(&mut self, event: &CoreEvent) {
        tracing::info!(epoch = event.epoch.0, kind = event.code.name(), "{}", event.reason);
        self.events.append(report::event(event));
    }

    pub(super) fn send_control(&mut self, to: Channel, message: &Control) {
        let Some(conn) = self.lanes.conn(to) else { return };
        let bytes = message.to_bytes();
        match self.transport.send(conn, MessageKind::Control, &[&bytes]) {
            // Its `Down` is on the way; what was said is void with the connection.
            Ok(()) | Err(SendError::NotUp) => {}
            // A queue of control messages that is full means a peer that does not read: begin anew.
            Err(error) => {
                tracing::warn!(?to, %error, "a control message could not be queued; the lane is closed");
                self.transport.close(conn, StdInstant::now());
            }
        }
    }

    fn send_heartbeat(&mut self, path: PathKind, heartbeat: &Heartbeat) {
        let bytes = heartbeat.to_bytes();
        if let Ok(plaintext) = bytes.as_slice().try_into() {
            self.transport.send_heartbeat(path, plaintext);
        }
    }

    fn create_history(&mut self, history: HistoryId, now: Instant) {
        if let Err(error) = self.reset_journal(history, Position::default()) {
            self.node.handle_completion(now, Completion::SyncFailed(error.to_string()));
            return;
        }
        self.fill_parameters = true;
    }

    /// Starts the journal anew; everything that reads it starts anew with it.
    pub(super) fn reset_journal(&mut self, history: HistoryId, at: Position) -> Result<(), JournalError> {
        self.journal.reset(history, at)?;
        self.feed.restart(self.journal.reader());
        Ok(())
    }

    fn append_epoch(&mut self, start: EpochStart, now: Instant) {
        let history = self.persisted.history.or(self.journal.history()).unwrap_or_default();
        let Some(record) = writes::epoch_record(start.epoch, start.after, "promotion or restart") else { return };
        self.changes.note_epoch(start.epoch, Seq(start.after.seq.0 + 1));
        if let Some(closed) = self.writes.begin_epoch(history, record, start.after) {
            // The tree takes it behind the replay that follows: what is journalled before it is not all applied yet.
            self.part_closed(closed, now);
        }
    }

    /// Hands a frame of this member's own to core, journal and feed; what is in it is in the tree.
    pub(super) fn frame_closed(&mut self, closed: writes::Closed, now: Instant) {
        self.applier.wrote_through(closed.header.end());
        self.part_closed(closed, now);
    }

    /// As [`frame_closed`](Self::frame_closed), for a frame that ends within a transaction: it takes no effect yet.
    pub(super) fn part_closed(&mut self, closed: writes::Closed, now: Instant) {
        debug_assert_eq!(CheckedFrame::check(&closed.bytes).map(|frame| *frame.header()).ok(), Some(closed.header));
        let meta = meta_of(&closed.header, closed.bytes.len());
        self.node.frame_closed(now, &meta);
        self.feed.closed(closed.bytes.clone(), meta.first, meta.end);
        self.append(closed.bytes, &meta, now);
    }

    /// Appends a frame to the journal; a failure is the core's to judge.
    pub(super) fn append(&mut self, bytes: crate::ring::Shared, meta: &FrameMeta, now: Instant) {
        if let Err(error) = self.journal.append(bytes, meta.end) {
            let text = format!("the journal takes no frame at {}:{}: {error}", meta.end.epoch, meta.end.seq);
            tracing::error!("{text}");
            self.storage_failed = Some(text.clone());
            self.node.handle_completion(now, Completion::SyncFailed(text));
        }
    }

    fn replay(&mut self, work: WorkToken, through: Seq, now: Instant) {
        match self.applier.replay_waiting(through, &mut self.changes) {
            Ok(()) => {
                self.applier.abandon_unfinished(&mut self.changes);
                self.applier.wrote_through(self.journal.end());
                self.node.handle_completion(now, Completion::Applied(self.applier.applied()));
                self.node.handle_completion(now, Completion::Replayed(work));
            }
            Err(error) => {
                self.node
                    .handle_completion(now, Completion::SyncFailed(format!("a journalled frame is damaged: {error}")));
            }
        }
    }

    fn run_hook(&mut self, hook: Hook, epoch: Epoch) {
        let event = match hook {
            Hook::Commence => HookEvent::Commence,
            Hook::Discontinue => HookEvent::Discontinue,
        };
        let (hooks, storage) = (self.hooks.clone(), self.config.storage.dir.clone());
        if hooks.path(event).is_some()
            && let Err(error) = self.link.send(&crate::supervisor::link::FromWorker::HookRunning(hooks.timeout))
        {
            tracing::debug!(%error, "the supervisor does not hear");
        }
        let run = move || {
            let result = (|| {
                let Some(run) = hooks.start(event, epoch, "change of role")? else { return Ok(None) };
                let report = run.wait()?;
                if report.ok() {
                    HookLedger::open(&storage)?.record(event, epoch)?;
                }
                Ok(Some(report))
            })();
            Done::Hook { hook, epoch, result: result.map_err(|error: crate::hooks::HookError| error.to_string()) }
        };
        self.jobs.start("hook", run, move |why| Done::Hook { hook, epoch, result: Err(why) });
    }

    fn locate(&self, position: &Position) -> Location {
        if self.journal.contains(position) {
            Location::Match
        } else if position.seq < self.journal.oldest().seq {
            Location::Gone
        } else {
            Location::Mismatch
        }
    }

    fn drain_files(&mut self, work: WorkToken) {
        let id = self.pending.number();
        self.pending.bulk.drains.insert(id, work);
        self.bulk.send(BulkCommand::Barrier(id));
    }

    /// The ends of jobs.
    pub(super) fn hear_jobs(&mut self, now: Instant) {
        while let Some(done) = self.jobs.poll() {
            match done {
                Done::Hook { hook, epoch, result } => self.hook_done(hook, epoch, result, now),
                Done::Archived { work, result } => self.archived(work, result, now),
                Done::Checkpoint(checkpoint) => self.checkpoint_done(checkpoint, now),
                Done::Contents(result) => self.contents_done(result, now),
                Done::Divergence(counted) => self.divergence_counted(counted),
            }
        }
    }

    fn hook_done(
        &mut self,
        hook: Hook,
        epoch: Epoch,
        result: Result<Option<crate::hooks::HookReport>, String>,
        now: Instant,
    ) {
        let name = match hook {
            Hook::Commence => "commence",
            Hook::Discontinue => "discontinue",
        };
        let (ok, text) = match result {
            Ok(None) => (true, None),
            Ok(Some(report)) => {
                let mut text = format!("{name} for epoch {epoch}: {} after {:?}", report.outcome, report.duration);
                if !report.output.trim().is_empty() {
                    text = format!("{text}; it said: {}", report.output.trim());
                }
                (report.ok(), Some(text))
            }
            Err(error) => (false, Some(format!("{name} for epoch {epoch}: {error}"))),
        };
        if let Some(text) = text {
            if ok {
                self.unwarn("hook-failed")
            } else {
                self.warn("hook-failed", text.clone())
            }
            self.events.append(Event::new("hook", epoch.0, text));
        }
        self.node.handle_completion(now, Completion::HookFinished { hook, epoch, ok });
    }
}

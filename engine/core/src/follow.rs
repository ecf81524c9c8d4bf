//! The backup's side of replication (protocol §11, design §3): from knowing the active to streaming, by way of archive
//! and resynchronization where needed; frames checked; positions acknowledged; and the tail served to others.
//!
//! Always: what the peer never got is in a synced archive before anything is overwritten. Never: a frame that does not
//! continue the journal exactly.

use std::cmp::Ordering;

use ringpair_wire::{
    control::{Control, GiveBackReason, Role},
    id::{Epoch, HistoryId, Position, Seq},
};

use crate::{
    effect::Effect,
    election::compare_releases,
    epochs::Epochs,
    event::EventCode,
    input::{Channel, FrameMeta, FrameVerdict, Location, WorkToken},
    node::{After, Node},
    persisted::Right,
    roles::Cause,
    time::Instant,
};

/// What follows an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Apply what has been journalled meanwhile, and go on.
    Stream,
    /// Resynchronize.
    Resync,
    /// Ask again: the ds lane went down meanwhile.
    Ask,
}

/// How far the way to the active is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The epoch is being persisted, or the ds lane is down.
    Waiting,
    /// `Follow` is sent.
    Asked(Instant),
    /// The divergence archive is being written; while `Next::Stream`, frames are journalled and not applied.
    Archiving(WorkToken, Next),
    /// It failed; tried again at this time.
    NoRoom(Instant, Seq, Next),
    /// `complete = false` is being persisted.
    Marking,
    /// Digests are compared.
    Resyncing(WorkToken),
    /// It failed; the whole way is gone again at this time.
    Failed(Instant),
    /// `complete = true` is being persisted.
    Unmarking,
    /// Frames come.
    Streaming,
}

/// The active that this member follows.
#[derive(Clone, Debug)]
pub(crate) struct Leader {
    pub epoch: Epoch,
    pub history: HistoryId,
    stored: bool,
    stage: Stage,
}

impl Leader {
    /// Frames come and everything before them is settled.
    pub fn streams(&self) -> bool {
        self.stage == Stage::Streaming
    }

    fn takes_frames(&self) -> bool {
        matches!(self.stage, Stage::Streaming | Stage::Archiving(_, Next::Stream))
    }
}

/// A peer that asked for the tail of the own journal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TailAsked {
    work: WorkToken,
    to: Channel,
    after: Position,
}

impl Node {
    /// The peer is active in this epoch, the highest known.
    pub(crate) fn adopt_leader(&mut self, epoch: Epoch, history: HistoryId) {
        if self.office.is_some() || self.promotion.is_some() || self.stopping.is_some() {
            return;
        }
        self.p.peer_epoch = self.p.peer_epoch.max(epoch);
        if self.leader.as_ref().is_some_and(|leader| leader.epoch == epoch) {
            return self.enter_following("follows the active");
        }
        self.pull = None;
        self.suspicion = None;
        self.dying_until = None;
        self.p.contested = false;
        self.p.peer_released = None;
        if let Right::Out(_) = self.p.right {
            self.p.right = Right::None;
        }
        self.leader = Some(Leader { epoch, history, stored: false, stage: Stage::Waiting });
        self.counted_from = self.now;
        self.report(EventCode::Election, format!("the peer is active in epoch {epoch}: follows it"));
        if self.p.last_role == Role::None {
            self.p.last_role = Role::Backup;
        }
        self.enter_following("follows the active");
        match self.p.right {
            Right::Held(id) if id.epoch < epoch => self.give_back(id, GiveBackReason::HigherEpoch),
            _ => {}
        }
        self.persist(After::Follow(epoch));
    }

    /// The state that following leads to, by comparing releases (SM-054).
    pub(crate) fn enter_following(&mut self, why: &str) {
        if self.stepping.is_some() {
            return;
        }
        let blocked = self.leader.as_ref().is_some_and(|leader| matches!(leader.stage, Stage::NoRoom(..)));
        if self.suspicion.is_some() || blocked || self.leader.is_none() {
            return;
        }
        let peer = self.peer.report.as_ref().map_or(self.config.release.as_str(), |report| report.release.as_str());
        let cause = match compare_releases(&self.config.release, peer) {
            Ordering::Equal => Cause::FollowsSame,
            Ordering::Greater => Cause::FollowsOlder,
            Ordering::Less => Cause::FollowsNewer,
        };
        self.enter(cause, why.into());
    }

    /// Nobody is followed any more.
    pub(crate) fn lose_leader(&mut self, why: &str) {
        if self.leader.take().is_some() {
            self.suspicion = None;
            self.dying_until = None;
            self.enter(Cause::LostActive, why.into());
        }
    }

    pub(crate) fn on_leader_stored(&mut self, epoch: Epoch) {
        if let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) {
            leader.stored = true;
        }
    }

    pub(crate) fn on_ds_lane(&mut self) {
        self.reset_pull();
        self.lose_follower();
        let Some(leader) = &mut self.leader else { return };
        if matches!(leader.stage, Stage::Asked(_) | Stage::Streaming | Stage::Failed(_)) {
            leader.stage = Stage::Waiting;
        }
        // An archive or a resynchronization under way ends by its own completion and asks again then.
        if let Stage::Archiving(work, Next::Stream) = leader.stage {
            leader.stage = Stage::Archiving(work, Next::Ask);
        }
    }

    /// The own journal cannot be believed any more: the way is gone again from its beginning.
    pub(crate) fn restart_following(&mut self) {
        if let Some(leader) = &mut self.leader {
            leader.stage = Stage::Waiting;
        }
    }

    pub(crate) fn check_follow(&mut self) {
        let (now, ds_up, retry) = (self.now, self.ds_up, self.config.heartbeat * 10);
        if self.stepping.is_some() || self.promotion.is_some() || self.pull.is_some() || self.stopping.is_some() {
            return;
        }
        let Some(leader) = &mut self.leader else { return };
        match leader.stage {
            Stage::Waiting if leader.stored && ds_up => self.send_follow(),
            Stage::Asked(at) if ds_up && now >= at.plus(retry) => self.send_follow(),
            Stage::Failed(at) if now >= at => leader.stage = Stage::Waiting,
            Stage::NoRoom(at, after, next) if now >= at => self.begin_archive(after, next),
            _ => {}
        }
    }

    fn send_follow(&mut self) {
        let now = self.now;
        let Some(leader) = &mut self.leader else { return };
        leader.stage = Stage::Asked(now);
        let same = self.p.history == Some(leader.history);
        let whole = same && self.p.complete && self.journal.failed.is_none();
        let (position, epochs) = if same {
            (self.journal.end, self.journal.epochs.list().to_vec())
        } else {
            (Position::default(), Vec::new())
        };
        self.send(Channel::Ds, Control::Follow { position, complete: whole, epochs });
    }

    fn asked_of(&self, epoch: Epoch) -> bool {
        self.promotion.is_none()
            && self
                .leader
                .as_ref()
                .is_some_and(|leader| leader.epoch == epoch && matches!(leader.stage, Stage::Asked(_)))
    }

    pub(crate) fn on_resume(&mut self, epoch: Epoch, after: Position) {
        if !self.asked_of(epoch) || after != self.journal.end {
            return;
        }
        if self.p.last_role == Role::Active {
            // Records agree; files that were changed while active may not have come across (protocol §11).
            return self.begin_archive(self.journal.end.seq, Next::Stream);
        }
        self.stream();
    }

    fn stream(&mut self) {
        let end = self.journal.end.seq;
        let Some(leader) = &mut self.leader else { return };
        leader.stage = Stage::Streaming;
        self.p.last_role = Role::Backup;
        self.report(EventCode::Replication, format!("follows after record {end}"));
        self.enter_following("follows the active");
        self.push(Effect::StartAppliers);
        self.persist(After::Nothing);
        self.ack_due = true;
    }

    pub(crate) fn on_must_resync(&mut self, epoch: Epoch, history: HistoryId, common: Seq, diverged: bool) {
        let streaming = self.leader.as_ref().is_some_and(|leader| leader.epoch == epoch && leader.streams());
        if !self.asked_of(epoch) && !streaming {
            return;
        }
        if let Some(leader) = &mut self.leader {
            leader.history = history;
        }
        if let Right::Held(id) = self.p.right {
            self.give_back(id, GiveBackReason::NotCurrent);
        }
        self.push(Effect::StopAppliers);
        let own_history = self.p.history.is_some();
        let same = self.p.history == Some(history);
        // What was acknowledged alone is archived even where the epochs' numbers say that it is shared: an older copy
        // that started alone used a number again (protocol §2).
        let alone = self.p.alone.filter(|_| self.p.last_role == Role::Active).map(|(_, seq)| seq);
        let shared = common.min(self.journal.end.seq).min(alone.unwrap_or(common));
        let common = if same { shared } else { Seq(0) };
        let had_alone = own_history && (diverged || !same || self.p.last_role == Role::Active);
        let archived = self.archived.is_some_and(|(after, end)| after <= common && end == self.journal.end);
        if had_alone && !archived {
            return self.begin_archive(common, Next::Resync); // before anything is touched (protocol §11)
        }
        self.mark_incomplete();
    }

    fn begin_archive(&mut self, after: Seq, next: Next) {
        let work = self.work();
        let files = self.p.last_role == Role::Active;
        let epoch = self.p.own_epoch;
        let records = self.journal.end.seq.0.saturating_sub(after.0);
        let Some(leader) = &mut self.leader else { return };
        leader.stage = Stage::Archiving(work, next);
        self.archive_after = after;
        self.report(EventCode::Archive, format!("archives {records} records after {after}, files: {files}"));
        self.push(Effect::Archive { work, after, epoch, files });
    }

    pub(crate) fn on_archived(&mut self, work: WorkToken, records: u64, files: u64) {
        let Some(leader) = &mut self.leader else { return };
        let Stage::Archiving(asked, next) = leader.stage else { return };
        if asked != work {
            return;
        }
        self.report(EventCode::Archive, format!("the archive holds {records} records and {files} files, synced"));
        self.archived = Some((self.archive_after, self.journal.end));
        match next {
            Next::Stream => self.stream(),
            Next::Resync => self.mark_incomplete(),
            Next::Ask => {
                self.restart_following();
                self.p.last_role = Role::Backup;
                self.persist(After::Nothing);
            }
        }
    }

    pub(crate) fn on_archive_failed(&mut self, work: WorkToken, why: &str) {
        let at = self.now.plus(self.config.retry);
        let after = self.archive_after;
        let Some(leader) = &mut self.leader else { return };
        let Stage::Archiving(asked, next) = leader.stage else { return };
        if asked == work {
            // Frames are not taken while there is no room: they are asked for again.
            let next = if next == Next::Stream { Next::Ask } else { next };
            leader.stage = Stage::NoRoom(at, after, next);
            let reason =
                format!("what it had alone cannot be archived: {why}. Try: make room in the storage directory");
            self.report(EventCode::Archive, reason.clone());
            self.enter(Cause::Unable, reason);
        }
    }

    /// A resynchronization begins: the copy counts as not whole until it is done.
    fn mark_incomplete(&mut self) {
        let Some(leader) = &mut self.leader else { return };
        leader.stage = Stage::Marking;
        let epoch = leader.epoch;
        self.p.complete = false;
        self.p.last_role = Role::Backup;
        self.enter_following("resynchronizes with the active");
        self.persist(After::Resync(epoch));
    }

    pub(crate) fn on_incomplete_stored(&mut self, epoch: Epoch) {
        let work = self.work();
        let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch) else { return };
        if leader.stage != Stage::Marking {
            return;
        }
        leader.stage = Stage::Resyncing(work);
        let history = leader.history;
        self.report(EventCode::Replication, "compares with the active by digests".into());
        self.push(Effect::Resync { work, history, epoch });
    }

    pub(crate) fn on_resynced(&mut self, work: WorkToken, position: Position) {
        let Some(leader) = &mut self.leader else { return };
        if leader.stage != Stage::Resyncing(work) {
            return;
        }
        leader.stage = Stage::Unmarking;
        let (epoch, history) = (leader.epoch, leader.history);
        self.journal.base = position;
        self.journal.end = position;
        self.journal.epochs = Epochs::default();
        self.journal.epochs.note(position.epoch, position);
        (self.journal.written, self.journal.synced, self.journal.applied) = (position.seq, position.seq, position.seq);
        self.journal.failed = None;
        self.rolled_back = false;
        self.p.history = Some(history);
        self.p.complete = true;
        self.p.alone = None;
        self.report(EventCode::Replication, format!("identical with the active at record {}", position.seq));
        self.persist(After::Resynced(epoch));
    }

    pub(crate) fn on_complete_stored(&mut self, epoch: Epoch) {
        if let Some(leader) = self.leader.as_mut().filter(|leader| leader.epoch == epoch)
            && leader.stage == Stage::Unmarking
        {
            leader.stage = Stage::Waiting;
        }
    }

    pub(crate) fn on_resync_failed(&mut self, work: WorkToken, why: &str) {
        let at = self.now.plus(if self.ds_up { self.config.retry } else { self.config.heartbeat });
        let Some(leader) = &mut self.leader else { return };
        if leader.stage == Stage::Resyncing(work) {
            leader.stage = Stage::Failed(at);
            self.report(EventCode::Replication, format!("resynchronization failed: {why}; tried again"));
        }
    }

    /// A frame is taken when its contents are here, so that a promotion finds no record whose value nobody may have: the
    /// value before it may have been acknowledged as durable. Of a tail everything is taken: whoever serves it keeps the
    /// contents, and `async` and `local` outlive the worker.
    pub(crate) fn on_frame(&mut self, from: Channel, frame: &FrameMeta, whole: bool) -> FrameVerdict {
        let streamed = from == Channel::Ds && self.leader.as_ref().is_some_and(Leader::takes_frames);
        let expected = self.pulls(from) || (streamed && self.promotion.is_none());
        if !expected {
            return FrameVerdict::Refuse("no frames are awaited on this connection now".into());
        }
        let end = self.journal.end;
        if Some(frame.history) != self.p.history {
            return FrameVerdict::Break(format!("history {}, not the own one", frame.history));
        }
        if frame.end.seq <= end.seq {
            return FrameVerdict::Duplicate;
        }
        if frame.epoch < end.epoch || frame.epoch > self.p.highest_epoch {
            return FrameVerdict::Break(format!("epoch {} after {}", frame.epoch, end.epoch));
        }
        let continues = frame.first.0 == end.seq.0 + 1 && frame.prev == end.chain;
        if !continues {
            let reason = format!("frame of records {} to {} does not continue {}", frame.first, frame.end.seq, end.seq);
            self.report_once(EventCode::Replication, format!("{reason}: asks again"));
            if let Some(leader) = self.leader.as_mut().filter(|leader| leader.streams()) {
                leader.stage = Stage::Waiting;
            }
            return FrameVerdict::Break(reason);
        }
        if !whole && !self.pulls(from) {
            return FrameVerdict::Await;
        }
        self.journal.epochs.note(frame.epoch, end);
        self.journal.end = frame.end;
        self.note_pulled();
        self.ack_due = true;
        FrameVerdict::Accept
    }

    /// What is synced here, contents included.
    pub(crate) fn durable(&self) -> Seq {
        self.journal.synced.min(self.journal.end.seq).min(self.contents_through())
    }

    fn contents_through(&self) -> Seq {
        self.journal.content_missing.map_or(Seq(u64::MAX), |first| Seq(first.0.saturating_sub(1)))
    }

    /// Tells the active how far this member has come; once a turn at most, and only what changed.
    pub(crate) fn send_ack(&mut self) {
        let Some(leader) = self.leader.as_ref().filter(|leader| leader.streams()) else { return };
        if !self.ds_up || self.promotion.is_some() || self.journal.failed.is_some() {
            return;
        }
        let epoch = leader.epoch;
        let received = self.journal.end.seq.min(self.contents_through());
        let durable = self.durable();
        let applied = self.journal.applied.min(received);
        self.send(Channel::Ds, Control::Ack { epoch, received, durable, applied });
    }

    /// Another pulls the tail of this journal: not while this member itself serves or pulls.
    pub(crate) fn on_fetch_tail(&mut self, to: Channel, after: Position) {
        let work = self.work();
        self.tail_asked = Some(TailAsked { work, to, after });
        self.push(Effect::Locate { work, position: after });
    }

    pub(crate) fn on_tail_located(&mut self, work: WorkToken, location: Location) -> bool {
        let Some(asked) = self.tail_asked.filter(|asked| asked.work == work) else { return false };
        self.tail_asked = None;
        if location == Location::Match && !self.journal.filtered {
            self.push(Effect::ServeTail { work, to: asked.to, after: asked.after });
        } else {
            let end = self.journal.end;
            self.send(asked.to, Control::TailEnd { end, served: false });
        }
        true
    }

    pub(crate) fn follow_deadline(&self) -> Option<Instant> {
        match self.leader.as_ref()?.stage {
            Stage::Failed(at) | Stage::NoRoom(at, ..) => Some(at),
            Stage::Asked(at) => Some(at.plus(self.config.heartbeat * 10)),
            _ => None,
        }
    }
}

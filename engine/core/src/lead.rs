//! The active's side of replication: admission of writes, the follower's place in the history, its progress.
//!
//! Always: a follower is streamed to only from a position that is in the own history with the same chain. Never: a
//! catch-up from a filtered journal, or a number used twice.

use ringpair_wire::{
    control::{Control, EpochStart},
    id::{AckLevel, Epoch, Position, Seq, Version},
};

use crate::{
    effect::{Effect, WriteOutcome},
    event::EventCode,
    input::{Admission, Channel, FrameMeta, Location, Refusal, RefusalKind, WorkToken, WriteToken},
    node::Node,
    time::Instant,
};

/// Where the follower stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// Not heard of.
    #[default]
    Absent,
    /// Its position is being looked up.
    Locating { work: WorkToken, position: Position, epochs: Vec<EpochStart> },
    /// Frames go to it.
    Streaming,
    /// It compares by digests.
    Resyncing,
}

/// The backup, as its active knows it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Follower {
    stage: Stage,
    /// The position at its return: durable through here, it is current.
    through: Option<Seq>,
    /// Declared behind: too much journal for it.
    behind: bool,
    /// It gave its right back: nothing is granted before this, unless it returns.
    not_before: Instant,
}

impl Follower {
    pub fn streams(&self) -> bool {
        self.stage == Stage::Streaming
    }

    /// The record through which it must be durable to be current; `None` while it does not stream.
    pub fn current_through(&self) -> Option<Seq> {
        if self.streams() { self.through } else { None }
    }

    /// It counts as returned at this position.
    pub fn returned(&mut self, end: Seq) {
        if self.streams() {
            self.through = Some(end);
        }
    }

    /// It gave its right back, and may be about to go: nothing is granted for a while.
    pub fn leave(&mut self, not_before: Instant) {
        self.not_before = not_before;
    }

    pub fn may_be_granted(&self, now: Instant) -> bool {
        now >= self.not_before
    }

    pub fn is_behind(&self) -> bool {
        self.behind || self.stage == Stage::Resyncing
    }
}

impl Node {
    pub(crate) fn on_admit(&mut self, token: WriteToken, records: u32, level: AckLevel) -> Result<Admission, Refusal> {
        if let Some(refusal) = self.refuses_writes() {
            return Err(refusal);
        }
        let max_pending = self.config.max_pending_writes;
        let Some(office) = &mut self.office else { return Err(self.not_active()) };
        if office.acks.len() >= max_pending || records == 0 {
            let reason = format!("{} writes wait for their acknowledgement. Try: again later", office.acks.len());
            return Err(Refusal { kind: RefusalKind::BackPressure, reason, active: None, blockers: Vec::new() });
        }
        let first = office.next_seq;
        let last = Seq(first.0 + u64::from(records) - 1);
        office.next_seq = Seq(last.0 + 1); // the next write's numbers begin where this one's end
        office.acks.push(token, last, level);
        Ok(Admission { epoch: office.epoch, first, last })
    }

    pub(crate) fn on_extend(&mut self, token: WriteToken, records: u32, level: AckLevel) -> Option<Admission> {
        if self.refuses_writes().is_some() || records == 0 {
            return None;
        }
        let office = self.office.as_mut()?;
        let first = office.next_seq;
        let last = Seq(first.0 + u64::from(records) - 1);
        if !office.acks.extend(token, first, last, level) {
            return None;
        }
        office.next_seq = Seq(last.0 + 1);
        Some(Admission { epoch: office.epoch, first, last })
    }

    fn refuses_writes(&self) -> Option<Refusal> {
        let Some(office) = &self.office else { return Some(self.not_active()) };
        let reason = if !office.serving {
            "becoming active: everything journalled is replayed first. Try: again in a moment".into()
        } else if !office.admitting {
            "a switch or stop is under way. Try: again on the other member".into()
        } else if let Some(why) = &self.journal.failed {
            format!("the journal's storage failed ({why}) and no current peer can take over. Try: replace the storage")
        } else if let Some(why) = &self.journal.full {
            let reason = format!("the journal has no room ({why}). Try: free space, or again later");
            return Some(Refusal { kind: RefusalKind::BackPressure, reason, active: None, blockers: Vec::new() });
        } else {
            return None;
        };
        Some(Refusal { kind: RefusalKind::State, reason, active: None, blockers: Vec::new() })
    }

    /// The refusal that names the active member.
    pub(crate) fn not_active(&self) -> Refusal {
        let known = self.leader.is_some() || self.p.highest_epoch.owner() == Some(self.config.member.peer());
        let active = known.then(|| (self.config.peer_name.clone(), self.config.peer_address.clone()));
        let reason = match &active {
            Some((name, address)) => format!("this member is not active; {name} ({address}) is. Try: there"),
            None => format!("this member is not active ({}: {})", self.state.name(), self.state_reason),
        };
        Refusal { kind: RefusalKind::NotActive, reason, active, blockers: Vec::new() }
    }

    pub(crate) fn on_frame_closed(&mut self, frame: &FrameMeta) {
        let Some(office) = &self.office else { return };
        let end = self.journal.end;
        assert!(
            frame.epoch == office.epoch && frame.first.0 == end.seq.0 + 1 && frame.prev == end.chain,
            "frames are closed in the order of their numbers: {frame:?} after {end:?}"
        );
        self.journal.end = frame.end;
    }

    /// Says how writes have ended, as far as it may now.
    pub(crate) fn answer_writes(&mut self) {
        let mode = self.ack_mode();
        let now_alone = self.is_alone();
        let Some(office) = &mut self.office else { return };
        let epoch = office.epoch;
        while let Some((write, version, outcome)) = office.acks.next(epoch, &office.progress, mode) {
            self.effects.push_back(Effect::Answer { write, version, outcome });
        }
        if mode == crate::acks::Mode::Pair && !now_alone {
            self.finish_syncs();
        }
    }

    /// What waited when the office ended: kept, lost or archived, nobody here knows.
    pub(crate) fn end_writes(&mut self) {
        let Some(office) = &mut self.office else { return };
        let epoch = office.epoch;
        for (write, seq) in office.acks.drain() {
            let version = Version { epoch, seq };
            self.effects.push_back(Effect::Answer { write, version, outcome: WriteOutcome::Unknown });
        }
        self.push(Effect::DropUnframed);
    }

    pub(crate) fn on_follow(&mut self, position: Position, complete: bool, epochs: Vec<EpochStart>) {
        if self.office.is_none() || (complete && self.give_way_to(position)) {
            return;
        }
        let work = self.work();
        let servable = complete && !self.journal.filtered && position.seq >= self.journal.base.seq;
        let Some(office) = &mut self.office else { return };
        office.progress.peer_received = Seq(0);
        office.progress.peer_durable = Seq(0);
        office.progress.peer_applied = Seq(0);
        office.follower.through = None;
        self.push(Effect::StopStream);
        if !servable {
            // Neither a position before the journal's base nor one of a copy that is not whole is looked up.
            return self.must_resync_by_epochs(position, &epochs);
        }
        let Some(office) = &mut self.office else { return };
        office.follower.stage = Stage::Locating { work, position, epochs };
        self.push(Effect::Locate { work, position });
    }

    pub(crate) fn on_located(&mut self, work: WorkToken, location: Location) {
        if self.on_tail_located(work, location) {
            return;
        }
        let Some(office) = &mut self.office else { return };
        let Stage::Locating { work: asked, position, epochs } = &office.follower.stage else { return };
        if *asked != work {
            return;
        }
        let (position, epochs) = (*position, epochs.clone());
        match location {
            Location::Match => self.stream_from(position),
            Location::Mismatch => {
                let common = self.journal.epochs.common_without_end(self.journal.end, &epochs, position);
                self.must_resync(position, common, true);
            }
            Location::Gone => self.must_resync_by_epochs(position, &epochs),
        }
    }

    fn stream_from(&mut self, position: Position) {
        let end = self.journal.end;
        let Some(office) = &mut self.office else { return };
        let epoch = office.epoch;
        office.follower = Follower { stage: Stage::Streaming, through: Some(end.seq), ..Follower::default() };
        office.progress.peer_received = position.seq;
        let lag = end.seq.0 - position.seq.0.min(end.seq.0);
        self.report(
            EventCode::Replication,
            format!("streams to the backup after record {}, {lag} behind", position.seq),
        );
        self.send(Channel::Ds, Control::Resume { epoch, after: position, end });
        self.push(Effect::StreamFrom { after: position }); // the frame that follows exactly this end is the first sent
    }

    /// Where the histories part, the epochs alone say.
    fn must_resync_by_epochs(&mut self, position: Position, epochs: &[EpochStart]) {
        let common = self.journal.epochs.common(self.journal.end, epochs, position);
        self.must_resync(position, common, common < position.seq);
    }

    fn must_resync(&mut self, position: Position, common: Seq, diverged: bool) {
        let Some(history) = self.p.history else { return };
        let Some(office) = &mut self.office else { return };
        let epoch = office.epoch;
        office.follower = Follower { stage: Stage::Resyncing, ..Follower::default() };
        let why = if diverged { "its records differ" } else { "it is behind the journal, or not whole" };
        self.report(
            EventCode::Replication,
            format!("the backup at record {} must compare by digests: {why}; common through {common}", position.seq),
        );
        self.push(Effect::ServeResync(true));
        self.send(Channel::Ds, Control::MustResync { epoch, history, common, diverged });
    }

    pub(crate) fn on_ack(&mut self, epoch: Epoch, received: Seq, durable: Seq, applied: Seq) {
        let end = self.journal.end.seq;
        let Some(office) = &mut self.office else { return };
        if epoch != office.epoch || !office.follower.streams() || received > end {
            return;
        }
        let progress = &mut office.progress;
        progress.peer_received = progress.peer_received.max(received);
        progress.peer_durable = progress.peer_durable.max(durable.min(received));
        progress.peer_applied = progress.peer_applied.max(applied.min(received));
    }

    /// So much journal comes after what the backup has: past the limit it is declared behind (design §6).
    pub(crate) fn on_backlog(&mut self, bytes: u64) {
        let max = self.config.journal_max_bytes;
        let Some(office) = &mut self.office else { return };
        if bytes <= max || office.follower.behind {
            return;
        }
        let streams = office.follower.streams();
        office.follower.behind = true;
        self.report(
            EventCode::Replication,
            format!("the backup lacks {bytes} bytes of journal, more than journal_max_bytes ({max}): it is behind"),
        );
        if streams {
            self.push(Effect::StopStream);
            let received = self.office.as_ref().map_or(Seq(0), |office| office.progress.peer_received);
            let position = Position { seq: received, ..Position::default() };
            self.must_resync(position, received.min(self.journal.end.seq), false);
        }
    }

    /// The ds lane went down: nothing streams until the backup asks again. A comparison goes on: it runs over the bulk
    /// lane, and its end is what the backup waits for before it asks.
    pub(crate) fn lose_follower(&mut self) {
        let Some(office) = &mut self.office else { return };
        let behind = office.follower.behind;
        if office.follower.stage != Stage::Absent {
            office.follower = Follower { behind, ..Follower::default() };
            self.push(Effect::StopStream);
        }
    }
}

//! Becoming active (protocol §6), in its order: stop the appliers, persist the epoch, announce it, replay and settle
//! files, serve, commence, ready. And pulling a tail first, from a peer or its supervisor (§7, §8).
//!
//! Always: the epoch is above every one seen and persisted before anybody hears of it. Never: a promotion of a copy
//! that is not whole, other than by an operator's force.

use ringpair_wire::{
    control::{Control, EpochStart, Role, State},
    id::{Epoch, Position, Seq},
};

use crate::{
    acks::{Acks, Progress},
    effect::{Effect, Hook},
    event::{EventCode, SwitchReason, SwitchRecord},
    input::{Channel, WorkToken},
    lead::Follower,
    lease::Lease,
    node::{After, Node, Office},
    persisted::{LastSwitch, Right},
    roles::Cause,
    time::Instant,
};

/// Why and how a member becomes active.
#[derive(Clone, Debug)]
pub(crate) struct Basis {
    pub reason: SwitchReason,
    /// Without a right: not exclusive until the other has stepped down.
    pub contested: bool,
    pub sentence: String,
    /// The old active takes part.
    pub controlled: bool,
    /// An operator insists.
    pub forced: bool,
    pub user: String,
}

impl Basis {
    pub fn new(reason: SwitchReason, contested: bool, sentence: String) -> Self {
        Self { reason, contested, sentence, controlled: false, forced: false, user: String::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    StoppingAppliers,
    Persisting(Epoch),
}

/// A promotion under way, until the office begins.
#[derive(Debug)]
pub(crate) struct Promotion {
    stage: Stage,
    basis: Basis,
}

/// Fetching the records that another has more of, before a promotion.
#[derive(Debug)]
pub(crate) struct Pull {
    target: Position,
    basis: Basis,
    asked: bool,
    progress: Instant,
}

/// What an office has to do before it serves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settling {
    pub replay: Option<WorkToken>,
    pub files: Option<WorkToken>,
    decided: Instant,
}

impl Node {
    /// Begins a promotion, or says why not.
    pub(crate) fn begin_promotion(&mut self, basis: Basis) {
        if self.p.history.is_none() {
            return self.report_once(EventCode::Promotion, "not promoted: the storage is empty".into());
        }
        if !self.p.is_whole() && !basis.forced {
            return self.report_once(EventCode::Promotion, "not promoted: the own copy is not whole".into());
        }
        self.note(format!("decision: {}", basis.sentence));
        self.report(
            EventCode::Promotion,
            format!("{}: switch initiated ({}): {}", basis.reason.original_name(), basis.reason.name(), basis.sentence),
        );
        self.record_switch(&basis);
        self.suspicion = None;
        self.pull = None;
        self.promotion = Some(Promotion { stage: Stage::StoppingAppliers, basis });
        self.push(Effect::StopAppliers);
    }

    fn record_switch(&mut self, basis: &Basis) {
        let started_alone = matches!(basis.reason, SwitchReason::Started);
        let from = if started_alone { None } else { self.p.highest_epoch.owner() };
        let now = self.now;
        let relative = |at: Instant| at.millis() as i64 - now.millis() as i64;
        self.record = Some(SwitchRecord {
            epoch: self.p.highest_epoch,
            from,
            to: self.config.member,
            reason: basis.reason,
            controlled: basis.controlled,
            decided: now,
            detect_ms: u64::try_from(now.since(self.heard_at()).as_millis()).unwrap_or(u64::MAX),
            promote_ms: 0,
            position: self.journal.end.seq,
            user: basis.user.clone(),
            evidence: self.evidence.iter().map(|(at, line)| (relative(*at), line.clone())).collect(),
        });
    }

    pub(crate) fn on_appliers_stopped(&mut self) {
        let Some(promotion) = &mut self.promotion else { return };
        if promotion.stage != Stage::StoppingAppliers {
            return;
        }
        let restart = self.p.was_active_last();
        let epoch =
            if restart { self.p.highest_epoch.restarted() } else { self.p.highest_epoch.promoted(self.config.member) };
        promotion.stage = Stage::Persisting(epoch);
        let contested = promotion.basis.contested;
        self.p.highest_epoch = epoch;
        self.p.own_epoch = epoch;
        self.p.last_role = Role::Active;
        self.p.complete = true;
        self.p.released = None;
        self.p.peer_released = None;
        self.p.grant_number = 0;
        self.p.contested = contested || (restart && self.p.contested);
        if !matches!(self.p.right, Right::Out(_)) {
            self.p.right = Right::None;
        }
        self.held_stored = None;
        self.p.alone = Some((epoch, self.journal.end.seq));
        self.keep_record(epoch);
        self.persist(After::Promoted(epoch)); // nothing below happens before this epoch is synced
    }

    /// The record of this switch, as it survives a restart.
    fn keep_record(&mut self, epoch: Epoch) {
        let Some(record) = &mut self.record else { return };
        record.epoch = epoch;
        self.p.last_switch = Some(LastSwitch {
            epoch,
            from: record.from,
            to: record.to,
            reason: record.reason,
            controlled: record.controlled,
            at_unix_ms: self.unix_ms_at_zero.saturating_add(record.decided.millis()),
            detect_ms: record.detect_ms,
            promote_ms: record.promote_ms,
        });
    }

    /// The epoch is persisted: the office begins.
    pub(crate) fn on_promoted(&mut self, epoch: Epoch) {
        if self.promotion.as_ref().is_none_or(|promotion| promotion.stage != Stage::Persisting(epoch)) {
            return;
        }
        let Some(promotion) = self.promotion.take() else { return };
        let start = EpochStart { epoch, after: self.journal.end };
        self.leader = None;
        self.journal.epochs.note(epoch, start.after);
        let settling = Settling { replay: Some(self.work()), files: Some(self.work()), decided: self.now };
        let mut lease = Lease { right: self.p.out(), answered: self.now, ..Lease::default() };
        lease.link_factor = ringpair_wire::heartbeat::LINK_FACTOR_ONE;
        self.office = Some(Office {
            epoch,
            next_seq: Seq(start.after.seq.0 + 2), // the epoch's own record comes first
            serving: false,
            ready: false,
            commence_at: None,
            admitting: true,
            // A promise given before this start is not remembered (protocol §8).
            exclusive_from: self.promised_until.max(self.start_guard()),
            lease,
            // A right that is out after a start: ten seconds went by without an answer (protocol §8).
            lonely: self.p.out().is_some(),
            lapsed: self.p.out().is_some(),
            alone: true,
            alone_ends: false,
            settling,
            acks: Acks::default(),
            progress: Progress { written: self.journal.written, synced: self.journal.synced, ..Progress::default() },
            follower: Follower::default(),
            switch: None,
            syncs: Vec::new(),
        });
        self.enter(Cause::Promoted, promotion.basis.sentence);
        debug_assert_eq!(self.state, State::Primary, "only states that may lead to primary promote");
        if let Some(announce) = self.announcement() {
            self.send_everywhere(&announce);
        }
        self.push(Effect::AppendEpoch { start });
        if let (Some(replay), Some(files)) = (settling.replay, settling.files) {
            self.push(Effect::Replay { work: replay, through: start.after.seq });
            self.push(Effect::SettleFiles { work: files, epoch });
        }
    }

    pub(crate) fn on_replayed(&mut self, work: WorkToken) {
        let Some(office) = &mut self.office else { return };
        if office.settling.replay == Some(work) {
            office.settling.replay = None;
            self.serve();
        }
    }

    pub(crate) fn on_files_settled(&mut self, work: WorkToken, renamed: u64, missing: u64) {
        let Some(office) = &mut self.office else { return };
        if office.settling.files == Some(work) {
            office.settling.files = None;
            self.report(
                EventCode::Promotion,
                format!("files settled: {renamed} complete ones renamed, {missing} announced ones missing or stale"),
            );
            self.serve();
        }
    }

    /// `/active` answers 200 once everything journalled is readable and files are settled.
    fn serve(&mut self) {
        let Some(office) = &mut self.office else { return };
        if office.serving || office.settling.replay.is_some() || office.settling.files.is_some() {
            return;
        }
        office.serving = true;
        let (epoch, decided) = (office.epoch, office.settling.decided);
        let promote_ms = u64::try_from(self.now.since(decided).as_millis()).unwrap_or(u64::MAX);
        if let Some(record) = &mut self.record {
            record.promote_ms = u64::try_from(self.now.since(record.decided).as_millis()).unwrap_or(u64::MAX);
        }
        self.keep_record(epoch);
        self.persist(After::Nothing);
        self.report(
            EventCode::Promotion,
            format!("serves as active in epoch {epoch}, {promote_ms} ms after it was persisted"),
        );
        self.push(Effect::RunHook { hook: Hook::Commence, epoch });
        self.finish_forwarded();
    }

    pub(crate) fn on_commenced(&mut self, epoch: Epoch, ok: bool) {
        let retry = self.now.plus(self.config.retry);
        let Some(office) = &mut self.office else { return };
        if office.epoch == epoch {
            office.ready |= ok;
            office.commence_at = (!ok).then_some(retry);
        }
    }

    pub(crate) fn check_promotion(&mut self) {
        let now = self.now;
        let Some(office) = &mut self.office else { return };
        if office.commence_at.is_some_and(|at| now >= at) {
            office.commence_at = None;
            let epoch = office.epoch;
            self.push(Effect::RunHook { hook: Hook::Commence, epoch });
        }
    }

    /// Fetches the records through `target`, then promotes.
    pub(crate) fn begin_pull(&mut self, target: Position, basis: Basis) {
        self.report(
            EventCode::Promotion,
            format!("fetches records {} to {} before it becomes active", self.journal.end.seq.0 + 1, target.seq),
        );
        self.suspicion = None;
        self.pull = Some(Pull { target, basis, asked: false, progress: self.now });
    }

    /// Whether a frame of this epoch may be taken as part of a tail.
    pub(crate) fn pulls(&self, from: Channel) -> bool {
        self.pull.as_ref().is_some_and(|pull| pull.asked) && from == Channel::Ds
    }

    pub(crate) fn note_pulled(&mut self) {
        if let Some(pull) = &mut self.pull {
            pull.progress = self.now;
        }
    }

    pub(crate) fn on_tail_end(&mut self, from: Channel, end: Position, served: bool) {
        if self.pulls(from) {
            let why = format!("the tail ends at {}, served: {served}", end.seq);
            self.note(why);
            self.end_pull();
        }
    }

    pub(crate) fn check_pull(&mut self) {
        let ds_up = self.ds_up;
        let after = self.journal.end;
        let Some(pull) = &mut self.pull else { return };
        if after.seq >= pull.target.seq {
            return self.end_pull();
        }
        if ds_up && !pull.asked {
            pull.asked = true;
            self.send(Channel::Ds, Control::FetchTail { after });
        } else if self.now >= pull.progress.plus(self.config.tail_wait) {
            let missing = pull.target.seq;
            self.report(EventCode::Promotion, format!("the tail through {missing} does not come: goes on without it"));
            self.end_pull();
        }
    }

    /// The connection that the tail came on is gone: ask again on the next.
    pub(crate) fn reset_pull(&mut self) {
        if let Some(pull) = &mut self.pull {
            pull.asked = false;
        }
    }

    fn end_pull(&mut self) {
        if let Some(pull) = self.pull.take() {
            self.begin_promotion(pull.basis);
        }
    }

    pub(crate) fn pull_deadline(&self) -> Option<Instant> {
        self.pull.as_ref().map(|pull| pull.progress.plus(self.config.tail_wait))
    }
}

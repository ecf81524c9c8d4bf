//! The backup's side of silence (protocol §5): suspicion, its deadline, and everything that forbids a promotion.
//!
//! Always: a promise that was given is kept; both connections are down at the deadline itself. Never: a promotion from
//! silence in manual mode, in an upgrade state, without the right, or while isolated.

use std::time::Duration;

use ringpair_wire::{
    control::Role,
    id::{Epoch, Position},
};

use crate::{
    effect::Effect,
    event::{EventCode, SwitchReason},
    node::{After, Node},
    promotion::Basis,
    roles::Cause,
    status::PairMode,
    time::Instant,
};

/// The active is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Suspicion {
    pub since: Instant,
    /// The end of the reconnect interval (PAR-051).
    pub deadline: Instant,
}

impl Node {
    pub(crate) fn check_silence(&mut self) {
        let watching = self.leader.is_some() && self.promotion.is_none() && self.pull.is_none();
        if !watching || self.draining || self.stopping.is_some() {
            return;
        }
        if self.suspicion.is_none() {
            self.check_suspicion();
        }
        if self.dying_until.is_some_and(|until| self.now >= until) {
            self.dying_until = None;
            self.note("the supervisor's time for its release is over".into());
        }
        let due = self.suspicion_due();
        if due.is_some_and(|due| self.now >= due) {
            self.decide_silence();
        }
    }

    fn all_pings_down(&self) -> bool {
        self.links.iter().all(|link| !link.ping_up)
    }

    fn check_suspicion(&mut self) {
        let silent_at = self.heard_at().plus(self.config.lease(self.factor()));
        let dead = self.all_pings_down();
        if self.now < silent_at && !dead {
            return;
        }
        let interval = crate::Config::stretched(self.config.reconnect, self.factor());
        let mut suspicion = Suspicion { since: self.now, deadline: self.now.plus(interval) };
        // SM-127: a flapping link keeps its first deadline until it was healthy for one regular interval.
        if let Some((last, healthy)) = self.last_suspicion
            && self.now.since(healthy) < self.config.heartbeat
        {
            suspicion.deadline = last.deadline;
        }
        self.suspicion = Some(suspicion);
        let silence = self.now.since(self.heard_at()).as_millis();
        let paths = self.paths_heard();
        let sentence = if dead {
            format!("both ping connections are down, last heartbeat {silence} ms ago")
        } else {
            format!("no heartbeat on either address for {silence} ms ({paths})")
        };
        self.note(format!("suspicion: {sentence}"));
        self.report(
            EventCode::Suspicion,
            format!("{sentence}. Scheduling reconnect timeout to execute in {} ms", interval.as_millis()),
        );
        self.enter(Cause::LostActive, sentence);
        self.push(Effect::DialNow);
    }

    /// The active is heard again.
    pub(crate) fn end_suspicion(&mut self) {
        self.dying_until = None;
        let Some(suspicion) = self.suspicion.take() else { return };
        self.last_suspicion = Some((suspicion, self.now));
        let lasted = self.now.since(suspicion.since).as_millis();
        self.note(format!("heard again after {lasted} ms of suspicion"));
        self.report(EventCode::SuspicionEnded, format!("the active is heard again after {lasted} ms of suspicion"));
        self.enter_following("the active is heard again");
    }

    /// When a promotion from silence is due at the earliest.
    pub(crate) fn suspicion_due(&self) -> Option<Instant> {
        let suspicion = self.suspicion?;
        let dying = self.dying_until.unwrap_or_default();
        Some(suspicion.deadline.max(self.promised_until).max(self.guarded_until()).max(dying))
    }

    /// What forbids a promotion by itself now; `None`: nothing.
    pub(crate) fn forbids_promotion(&self) -> Option<String> {
        let sentence = match self.pair_mode_last_known() {
            PairMode::Manual => "manual mode: only an operator switches (SM-129)",
            PairMode::UpgradeHigher | PairMode::UpgradeLower => "upgrade state: only an operator switches (SM-091)",
            _ if self.config.force_backup => "--force-backup: only an operator switches (SM-058)",
            _ if !self.p.is_whole() => "the own copy is not whole",
            _ if self.held_stored.is_none() => "the active has not granted the right to promote, or it was given back",
            _ if self.isolated == Some(true) => "isolated: the own network check fails (SM-128)",
            _ if self.p.last_role == Role::Active => "the archive of what it had alone is not written yet",
            _ => return None,
        };
        Some(sentence.into())
    }

    /// The deadline has passed and nothing was heard.
    fn decide_silence(&mut self) {
        if let Some(why) = self.forbids_promotion() {
            return self.report_once(EventCode::SuspicionEnded, format!("not promoted: {why}"));
        }
        let silence = self.now.since(self.heard_at()).as_millis();
        let (reason, sentence) = if self.peer_host == Some(false) {
            (SwitchReason::PrimaryUnreachable, format!("the active's host does not answer, silent for {silence} ms"))
        } else {
            (
                SwitchReason::ReconnectExpired,
                format!(
                    "Reconnect period expired after {silence} ms of silence, both connections down, to initiate a switchover"
                ),
            )
        };
        self.begin_promotion(Basis::new(reason, false, sentence));
    }

    /// The active's supervisor says that its worker is dead (protocol §7).
    pub(crate) fn on_dying(&mut self, epoch: Epoch, hold_ms: u32) {
        if self.leader.as_ref().is_none_or(|leader| leader.epoch != epoch) {
            return;
        }
        let hold = Duration::from_millis(hold_ms.into()).min(Duration::from_secs(600));
        self.dying_until = Some(self.now.plus(hold));
        self.note(format!("death notice for epoch {epoch}: waits {} ms for the release", hold.as_millis()));
        self.report(
            EventCode::Release,
            format!("the active's worker is dead; its supervisor releases within {} ms", hold.as_millis()),
        );
        self.enter(Cause::LostActive, "the active's worker is dead".into());
    }

    /// The active, or its supervisor, is not active any more.
    pub(crate) fn on_released(&mut self, epoch: Epoch, end: Position, controlled: bool) {
        if epoch != self.p.highest_epoch || epoch.owner() != Some(self.config.member.peer()) {
            return;
        }
        if self.office.is_some()
            || self.promotion.is_some()
            || self.pull.is_some()
            || self.p.peer_released == Some(epoch)
        {
            return;
        }
        self.note(format!("epoch {epoch} released at record {}", end.seq));
        self.report(EventCode::Release, format!("epoch {epoch} is released at record {}", end.seq));
        self.p.peer_released = Some(epoch);
        self.release_controlled = controlled;
        if self.held_stored.is_none() {
            self.outwait_answers();
        }
        self.persist(After::ReleaseHeard(epoch, end));
    }

    pub(crate) fn on_release_kept(&mut self, epoch: Epoch, end: Position) {
        if self.p.peer_released != Some(epoch) || self.p.highest_epoch != epoch {
            return;
        }
        if self.office.is_some() || self.promotion.is_some() || self.pull.is_some() || self.stopping.is_some() {
            return;
        }
        let controlled = self.release_controlled;
        let manual = !matches!(self.pair_mode_last_known(), PairMode::Auto | PairMode::None);
        if (manual || self.config.force_backup) && !controlled {
            return self.report(EventCode::Release, "not promoted on the release: only an operator switches".into());
        }
        if !self.p.is_whole() {
            return self.report(EventCode::Release, "not promoted on the release: the own copy is not whole".into());
        }
        let reason = if controlled { SwitchReason::Operator } else { SwitchReason::EpochReleased };
        let sentence = format!("epoch {epoch} was released by its holder at record {}", end.seq);
        let user = self.forwarded.as_ref().map_or_else(String::new, |forwarded| forwarded.user.clone());
        let basis = Basis { controlled, user, ..Basis::new(reason, false, sentence) };
        if end.seq > self.journal.end.seq {
            self.begin_pull(end, basis);
        } else {
            self.begin_promotion(basis);
        }
    }

    pub(crate) fn silence_deadline(&self) -> Option<Instant> {
        if self.leader.is_none() || self.promotion.is_some() || self.pull.is_some() || self.draining {
            return None;
        }
        match self.suspicion_due() {
            Some(due) => Some(due),
            None => Some(self.heard_at().plus(self.config.lease(self.factor()))),
        }
    }

    /// The pair's mode, also while the active is gone: an upgrade state outlasts its connections.
    pub(crate) fn pair_mode_last_known(&self) -> PairMode {
        match self.state {
            ringpair_wire::control::State::UpgradeHigher => PairMode::UpgradeHigher,
            ringpair_wire::control::State::UpgradeLower => PairMode::UpgradeLower,
            _ => self.own_mode(),
        }
    }
}

//! The right to promote (protocol §3): granting, taking, giving back, and losing the lease that stands for it (§5).
//!
//! Always: a grant is persisted before it is sent, a held or returned right before it is said. Never: an older grant's
//! word taken for the newest one's.

use ringpair_wire::{
    control::{Control, GiveBackReason, GrantId, Role},
    heartbeat::LINK_FACTOR_ONE,
    id::Seq,
    lane::PathKind,
};

use crate::{
    acks::Mode,
    config::OnPeerLoss,
    event::EventCode,
    input::Channel,
    lease::Lease,
    node::{After, Node},
    persisted::Right,
    time::Instant,
};

impl Node {
    /// Active: grants once the backup is durable through the position at its return, or ends being alone with a right
    /// that is out already.
    pub(crate) fn check_grant(&mut self) {
        let hears = self.hears();
        let now = self.now;
        let Some(office) = &mut self.office else { return };
        let Some(through) = office.follower.current_through() else { return };
        if !office.serving || !office.admitting || !hears || office.progress.peer_durable < through {
            return;
        }
        match (office.lease.right, self.p.right) {
            (None, Right::None) if !self.p.contested && office.follower.may_be_granted(now) => {
                self.p.grant_number += 1;
                let id = GrantId { epoch: office.epoch, number: self.p.grant_number };
                self.p.right = Right::Out(id);
                self.p.alone = None;
                self.persist(After::Granted(id));
            }
            (Some(_), _) if office.alone && office.lonely && office.lease.runs(now) && !office.alone_ends => {
                office.alone_ends = true;
                self.p.alone = None;
                let epoch = office.epoch;
                self.persist(After::NotAlone(epoch));
            }
            _ => {}
        }
    }

    /// The grant is persisted: it is sent, and with the sending the lease begins.
    pub(crate) fn on_granted(&mut self, id: GrantId) {
        if self.p.right != Right::Out(id) {
            return;
        }
        let now = self.now;
        let Some(office) = &mut self.office else { return };
        if office.epoch != id.epoch {
            return;
        }
        office.lease.granted(&self.config, now, id);
        (office.alone, office.lonely, office.lapsed) = (false, false, false);
        let number = id.number;
        self.report(EventCode::Right, format!("grants the right to promote, number {number}: the backup is durable"));
        self.say_grant();
    }

    /// Sends the grant that is out (again).
    pub(crate) fn say_grant(&mut self) {
        let Some(office) = &self.office else { return };
        let Some(id) = office.lease.right else { return };
        let through = office.follower.current_through().unwrap_or(office.progress.peer_durable);
        if let Some(to) = self.ping() {
            self.send(to, Control::Grant { id, through });
        }
    }

    /// Backup: takes the right if it is durable through the grant's record; else waits for the grant's repetition, or
    /// gives it back.
    pub(crate) fn on_grant(&mut self, from: Channel, id: GrantId, through: Seq) {
        let follows = self.leader.as_ref().is_some_and(|leader| leader.epoch == id.epoch && leader.streams());
        let whole = self.p.is_whole() && self.p.last_role != Role::Active && self.journal.failed.is_none();
        match self.p.right {
            Right::Held(held) if held >= id => {}
            Right::GivenBack(given) if given == id => self.repeat_give_back(from),
            Right::GivenBack(given) if given > id => {}
            _ if self.office.is_some() || self.promotion.is_some() || self.pull.is_some() => {}
            _ if self.journal.full.is_some() => self.give_back(id, GiveBackReason::StorageFailed),
            // A grant of an older epoch that its restarted giver must have back.
            _ if id.epoch < self.p.highest_epoch && self.leader.is_some() => {
                self.give_back(id, GiveBackReason::HigherEpoch);
            }
            _ if id.epoch != self.p.highest_epoch => {}
            _ if follows && whole && self.stopping.is_none() && self.durable() >= through => {
                // The sending of the grant began a lease: taking it is a first promise.
                let promise = self.config.lease(self.factor()) + self.config.margin();
                self.promised_until = self.promised_until.max(self.now.plus(promise));
                self.p.right = Right::Held(id);
                self.persist(After::Held(id));
            }
            _ if whole && self.stopping.is_none() => {}
            _ if self.leader.is_some() => self.give_back(id, GiveBackReason::NotCurrent),
            _ => {}
        }
    }

    pub(crate) fn on_held_stored(&mut self, id: GrantId) {
        if self.p.right == Right::Held(id) {
            self.held_stored = Some(id);
            let number = id.number;
            self.report(EventCode::Right, format!("holds the right to promote, number {number} of epoch {}", id.epoch));
        }
    }

    /// Gives a right back: persisted, then said. No promise follows any more.
    pub(crate) fn give_back(&mut self, id: GrantId, reason: GiveBackReason) {
        self.held_stored = None;
        self.p.right = Right::GivenBack(id);
        self.report(
            EventCode::Right,
            format!("gives the right number {} of epoch {} back: {reason:?}", id.number, id.epoch),
        );
        self.persist(After::GivenBack(id, reason));
    }

    pub(crate) fn say_given_back(&mut self, id: GrantId, reason: GiveBackReason) {
        if self.p.right == Right::GivenBack(id) {
            self.given_back_stored = Some((id, reason));
            self.send_everywhere(&Control::GiveBack { id, reason });
        }
    }

    /// Says again what was given back: the word may have been lost.
    pub(crate) fn repeat_give_back(&mut self, to: Channel) {
        if let (Right::GivenBack(id), Some((stored, reason))) = (self.p.right, self.given_back_stored)
            && id == stored
        {
            self.send(to, Control::GiveBack { id, reason });
        }
    }

    /// Active (or its restart): only the newest grant's return counts.
    pub(crate) fn on_give_back(&mut self, id: GrantId, reason: GiveBackReason) {
        if self.p.right != Right::Out(id) {
            return;
        }
        self.report(EventCode::Right, format!("the right number {} is given back: {reason:?}", id.number));
        self.right_returned();
        if let Some(office) = self.office.as_mut().filter(|_| reason != GiveBackReason::HigherEpoch) {
            let lease = self.config.lease(LINK_FACTOR_ONE);
            // A full disk is not mended within a lease.
            let wait = if reason == GiveBackReason::StorageFailed { lease * 10 } else { lease };
            office.follower.leave(self.now.plus(wait));
        }
    }

    /// The right is not out any more: exclusive without asking anybody, and alone.
    pub(crate) fn right_returned(&mut self) {
        self.p.right = Right::None;
        let end = self.journal.end.seq;
        let Some(office) = &mut self.office else { return self.persist(After::Nothing) };
        let epoch = office.epoch;
        office.lease.right = None;
        (office.lapsed, office.lonely, office.alone_ends) = (false, false, false);
        office.follower.returned(end);
        if office.alone {
            return self.persist(After::Nothing);
        }
        self.p.alone = Some((epoch, end));
        self.report(EventCode::Alone, format!("alone from record {end} on: exclusive, acknowledges up to local"));
        self.persist(After::Alone(epoch));
    }

    pub(crate) fn on_alone_stored(&mut self, epoch: ringpair_wire::id::Epoch, alone: bool) {
        let Some(office) = &mut self.office else { return };
        if office.epoch != epoch || self.p.alone.is_some() != alone {
            return;
        }
        office.alone = alone;
        if !alone {
            (office.lonely, office.alone_ends) = (false, false);
            self.report(EventCode::Alone, "not alone any more: the backup is durable through everything".into());
        }
    }

    /// Backup: its right ends with a ds lane that stays down while the active itself is heard (protocol §3).
    pub(crate) fn check_right(&mut self) {
        let Some(id) = self.held_stored else { return };
        let deciding = self.suspicion.is_some() || self.dying_until.is_some() || self.promotion.is_some();
        let since = self.now.since(self.ds_changed);
        if !self.ds_up && !deciding && self.pull.is_none() && self.hears() && since >= self.config.heartbeat * 3 {
            self.give_back(id, GiveBackReason::DsLaneDown);
        }
    }

    /// Active: the lease, checked first in every turn (protocol §4, §5).
    pub(crate) fn check_lease(&mut self) {
        let now = self.now;
        let not_heard = self.told_not_heard();
        let isolated = self.isolated == Some(true);
        let Some(office) = &mut self.office else { return };
        if office.lease.right.is_none() {
            return;
        }
        if office.lease.runs(now) {
            if std::mem::take(&mut office.lapsed) {
                self.report(EventCode::Lease, "the lease runs again".into());
                let end = self.journal.end.seq;
                if let Some(office) = self.office.as_mut().filter(|office| office.lonely) {
                    office.follower.returned(end);
                }
            }
            return;
        }
        if !office.lapsed {
            office.lapsed = true;
            let since = now.since(office.lease.answered).as_millis();
            let sentence =
                format!("the lease lapsed, last answered heartbeat sent {since} ms ago: acknowledges nothing");
            self.report(EventCode::Lease, sentence);
        }
        let Some(office) = &self.office else { return };
        if office.lonely || now < self.lonely_at(&office.lease) || self.draining {
            return;
        }
        if isolated {
            return self.step_down("its lease lapsed and its own network check fails: it is isolated");
        }
        if not_heard {
            return self.report_once(
                EventCode::Lease,
                "the backup holds the right and does not hear this member: waits for its announcement".into(),
            );
        }
        self.go_lonely();
    }

    /// W, which counts anew after an own pause.
    fn lonely_at(&self, lease: &Lease) -> Instant {
        lease.lonely_at(&self.config).max(self.counted_from.plus(self.config.lonely_after(lease.link_factor)))
    }

    /// W has passed: on without the backup, not exclusive.
    fn go_lonely(&mut self) {
        let end = self.journal.end.seq;
        let Some(office) = &mut self.office else { return };
        let epoch = office.epoch;
        office.lonely = true;
        office.follower.returned(end);
        self.p.alone = Some((epoch, end));
        self.report(
            EventCode::Alone,
            format!("no answer for {} ms: alone from record {end} on, not exclusive; the pair may be split", {
                let office = self.office.as_ref();
                office.map_or(0, |office| self.now.since(office.lease.answered).as_millis())
            }),
        );
        self.persist(After::Alone(epoch));
    }

    /// Whether a backup that holds the right says, freshly, that it does not hear this member.
    fn told_not_heard(&self) -> bool {
        let right = self.office.as_ref().and_then(|office| office.lease.right);
        let fresh = self.hears();
        match (&self.peer.beat, right) {
            (Some(beat), Some(right)) => {
                let holds = beat.held.is_some_and(|held| held.grant == right.number) && beat.epoch == right.epoch;
                fresh && holds && beat.not_heard
            }
            _ => false,
        }
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.office.as_ref().is_some_and(|office| office.alone || office.lonely)
    }

    /// Whether an answer that this member is active excludes every other (protocol §3 to §6).
    pub(crate) fn is_exclusive(&self) -> bool {
        self.is_exclusive_at(self.now)
    }

    pub(crate) fn is_exclusive_at(&self, now: Instant) -> bool {
        let Some(office) = &self.office else { return false };
        let leased = office.lease.right.is_none() || (self.config.leased && office.lease.runs(now));
        office.serving && leased && now >= office.exclusive_from && !self.p.contested && !self.draining
    }

    /// How acknowledgements may go now.
    pub(crate) fn ack_mode(&self) -> Mode {
        let Some(office) = &self.office else { return Mode::Held };
        let block = self.config.on_peer_loss == OnPeerLoss::Block;
        if !office.serving || self.draining {
            return Mode::Held;
        }
        if office.lonely || office.lease.right.is_none() {
            return if office.alone { Mode::Alone { block } } else { Mode::Held };
        }
        if !office.lease.runs(self.now) {
            return Mode::Held; // the lease lapsed: nothing is acknowledged at any level
        }
        Mode::Pair
    }

    /// The peer has stepped down, or is dead: exclusive from now on.
    pub(crate) fn end_contest(&mut self, why: &str) {
        self.p.contested = false;
        self.outwait_answers();
        self.report(EventCode::Right, format!("exclusive: {why}"));
        self.persist(After::Nothing);
    }

    /// Without a promise given, nobody here knows what the other answered last: not exclusive before its answers are over.
    pub(crate) fn outwait_answers(&mut self) {
        let over = self.now.plus(self.config.lease(LINK_FACTOR_ONE) + self.config.margin());
        self.promised_until = self.promised_until.max(over);
        if let Some(office) = &mut self.office {
            office.exclusive_from = office.exclusive_from.max(over);
        }
    }

    pub(crate) fn lease_deadlines(&self) -> [Option<Instant>; 3] {
        let Some(office) = &self.office else { return [None; 3] };
        let out = office.lease.right.is_some();
        let lapse = (out && !office.lapsed).then_some(office.lease.until);
        let lonely = (out && !office.lonely).then(|| self.lonely_at(&office.lease));
        [lapse, lonely, Some(office.exclusive_from)]
    }

    pub(crate) fn right_deadline(&self) -> Option<Instant> {
        let waiting = self.held_stored.is_some() && !self.ds_up;
        waiting.then(|| self.ds_changed.plus(self.config.heartbeat * 3))
    }

    /// A path's name for sentences.
    pub(crate) fn paths_heard(&self) -> String {
        let said = |path: PathKind| format!("{} {}", path.name(), if self.link(path).ping_up { "up" } else { "down" });
        PathKind::ALL.map(said).join(", ")
    }
}

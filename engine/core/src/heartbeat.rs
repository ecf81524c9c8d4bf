//! Heartbeats (protocol §4): sending every H, answering at once, what one learns of a link, and lanes going up and down.
//!
//! Always: an answer that repeats a held right is a promise, kept in `promised_until`. Never: a promise once a promotion
//! is decided, nor to an epoch below the highest seen.

use std::{collections::VecDeque, time::Duration};

use ringpair_wire::{
    control::{Control, Role},
    heartbeat::{Heard, Heartbeat, HeldRight, LINK_FACTOR_ONE, Stamp},
    id::Epoch,
    lane::{LaneKind, PathKind},
};

use crate::{effect::Effect, event::EventCode, input::Channel, node::Node, time::Instant};

/// How long a gap between heartbeats is remembered.
const MEMORY: Duration = Duration::from_secs(60);
/// Epochs above this are no epochs: 65,536 promotions a second for four years stay below it.
const MAX_EPOCH: Epoch = Epoch(1 << 62);

/// One of the two paths.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    pub ping_up: bool,
    /// The newest heartbeat on the present connection.
    pub heard: Option<(Stamp, Instant)>,
    pub rtt: Option<Duration>,
    pub answers: Answers,
    sent: u64,
}

/// Which of the active's own heartbeats on one path were answered within H, and how many were not. Counted from the
/// first answer of a connection on: before that nobody follows there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers {
    pub in_time: u64,
    pub missed: u64,
    follows: bool,
    /// By number, none older than H.
    awaited: VecDeque<(u64, Instant)>,
}

impl Answers {
    /// The heartbeat `number` leaves; what is older than `heartbeat` and still awaited was missed.
    fn asked(&mut self, number: u64, now: Instant, heartbeat: Duration) {
        while self.awaited.pop_front_if(|(_, at)| now.since(*at) >= heartbeat).is_some() {
            self.missed += u64::from(self.follows);
        }
        self.awaited.push_back((number, now));
    }

    /// The heartbeat `number` is answered.
    fn answered(&mut self, number: u64, now: Instant, heartbeat: Duration) {
        self.follows = true;
        let Some(index) = self.awaited.iter().position(|(awaited, _)| *awaited == number) else { return };
        if let Some((_, at)) = self.awaited.remove(index) {
            let counted = if now.since(at) <= heartbeat { &mut self.in_time } else { &mut self.missed };
            *counted += 1;
        }
    }

    /// The connection is another one, or none.
    fn forget(&mut self) {
        (self.follows, self.awaited) = (false, VecDeque::new());
    }
}

/// What was learned of the pair's link: the greatest gap between heartbeats, of two halves of [`MEMORY`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Learned {
    older: Duration,
    newer: Duration,
    since: Instant,
}

impl Learned {
    /// A gap between two heartbeats of a link that stood.
    pub fn observe(&mut self, now: Instant, gap: Duration) {
        if now.since(self.since) > MEMORY / 2 {
            self.older = if now.since(self.since) > MEMORY { Duration::ZERO } else { self.newer };
            self.newer = Duration::ZERO;
            self.since = now;
        }
        self.newer = self.newer.max(gap);
    }

    /// f times [`LINK_FACTOR_ONE`]: 1 while the greatest gap is below half of `silence` (K·H), at most 3.
    #[must_use]
    pub fn factor(&self, silence: Duration) -> u16 {
        let gap = self.older.max(self.newer).as_micros();
        let one = u128::from(LINK_FACTOR_ONE);
        let factor = gap * 2 * one / silence.as_micros().max(1);
        u16::try_from(factor.clamp(one, 3 * one)).unwrap_or(3 * LINK_FACTOR_ONE)
    }
}

impl Node {
    /// When the peer was last heard on either path, or silence began to count.
    pub(crate) fn heard_at(&self) -> Instant {
        self.peer.beat_at.max(self.counted_from)
    }

    /// Whether the peer's heartbeat is fresh.
    pub(crate) fn hears(&self) -> bool {
        self.peer.beat.is_some() && self.now.since(self.peer.beat_at) < self.config.lease(self.factor())
    }

    /// Whether this path is up in the sense of protocol §4.
    pub(crate) fn path_up(&self, path: PathKind) -> bool {
        let link = self.link(path);
        let fresh = |(_, at): (Stamp, Instant)| self.now.since(at) < self.config.lease(self.factor());
        link.ping_up && link.heard.is_some_and(fresh)
    }

    pub(crate) fn factor(&self) -> u16 {
        self.learned.factor(self.config.lease(LINK_FACTOR_ONE))
    }

    pub(crate) fn check_beats(&mut self) {
        if self.seeking_since.is_none() || self.now < self.beat_due {
            return;
        }
        let late = self.now.since(self.beat_due);
        let due = if late < self.config.heartbeat { self.beat_due } else { self.now };
        self.beat_due = due.plus(self.config.heartbeat);
        for path in PathKind::ALL {
            if self.link(path).ping_up {
                self.beat(path, None, None);
            }
        }
        if self.role() == Role::None && self.stopping.is_none() {
            self.ask();
        }
    }

    /// Sends one heartbeat on `path`.
    fn beat(&mut self, path: PathKind, answers: Option<Stamp>, held: Option<HeldRight>) {
        let now = self.now;
        let not_heard = !self.hears();
        let (alone, exclusive) = (self.is_alone(), self.is_exclusive());
        let link_factor = self.factor();
        let epoch = self.own_epoch().min(self.store.highest_epoch);
        let role = self.role();
        // Outside an answer a held right is only said, without a promise: a backup that does not hear still tells it.
        let plain = self.held_stored.filter(|_| answers.is_none() && self.promotion.is_none());
        let held = held.or(plain.map(|id| HeldRight { grant: id.number, promise_ms: 0 }));
        let interval = self.config.heartbeat;
        let link = &mut self.links[path as usize];
        link.sent += 1;
        if role == Role::Active {
            link.answers.asked(link.sent, now, interval);
        }
        let age = |at: Instant| u32::try_from(now.since(at).as_micros()).unwrap_or(u32::MAX);
        let heartbeat = Heartbeat {
            sender: self.config.member,
            role,
            alone,
            exclusive,
            not_heard,
            epoch,
            highest_epoch: self.store.highest_epoch,
            stamp: Stamp { number: link.sent, sent_us: now.micros() },
            heard: link.heard.map(|(stamp, at)| Heard { stamp, age_us: age(at) }),
            answers,
            held,
            link_factor,
        };
        self.push(Effect::SendHeartbeat { path, heartbeat });
    }

    pub(crate) fn on_heartbeat(&mut self, path: PathKind, beat: &Heartbeat) {
        let bogus =
            beat.sender == self.config.member || beat.highest_epoch > MAX_EPOCH || beat.epoch > beat.highest_epoch;
        if bogus || !self.link(path).ping_up {
            return;
        }
        self.learn(path, beat);
        if beat.highest_epoch > self.p.highest_epoch {
            self.meet_epoch(beat.highest_epoch, "a heartbeat");
        }
        if beat.role == Role::Active && !self.accepts(beat.epoch) {
            return self.refuse_epoch(beat.epoch);
        }
        match beat.role {
            Role::Active => self.hear_active(path, beat),
            Role::Backup | Role::None => self.hear_other(beat),
        }
    }

    fn learn(&mut self, path: PathKind, beat: &Heartbeat) {
        let gap = self.now.since(self.heard_at());
        let outage = self.config.lease(LINK_FACTOR_ONE) * 2;
        if self.peer.beat.is_some() && gap < outage && !self.draining {
            self.learned.observe(self.now, gap);
        }
        let (now, interval) = (self.now, self.config.heartbeat);
        let link = &mut self.links[path as usize];
        if let Some(own) = beat.answers {
            link.answers.answered(own.number, now, interval);
        }
        if link.heard.is_none_or(|(stamp, _)| stamp.number < beat.stamp.number) {
            link.heard = Some((beat.stamp, now));
        }
        // An answer left at once; any other heartbeat says how long ago it heard the one that it names.
        let named = beat.answers.map(|own| (own, 0)).or(beat.heard.map(|heard| (heard.stamp, heard.age_us)));
        if let Some((own, age_us)) = named {
            let age = Duration::from_micros(age_us.into());
            link.rtt = Some(now.since(Instant::from_micros(own.sent_us)).saturating_sub(age));
        }
        self.peer.beat = Some(*beat);
        self.peer.beat_at = now;
    }

    /// An active of a lower epoch speaks: it is told who is active now.
    fn refuse_epoch(&mut self, epoch: Epoch) {
        let highest = self.p.highest_epoch;
        self.report_once(EventCode::Epoch, format!("refused the active of epoch {epoch}: epoch {highest} is known"));
        self.announce();
    }

    /// The backup's side: the active of the highest epoch is heard.
    fn hear_active(&mut self, path: PathKind, beat: &Heartbeat) {
        if self.leader.as_ref().is_none_or(|leader| leader.epoch != beat.epoch) {
            if self.office.is_none() && self.promotion.is_none() {
                self.ask();
            }
            return;
        }
        if self.promotion.is_some() {
            return;
        }
        self.end_suspicion();
        if beat.answers.is_some() {
            return;
        }
        let held = self.held_stored.filter(|id| id.epoch == beat.epoch && self.p.held() == Some(*id));
        let held = held.map(|id| {
            let promise = self.config.lease(self.factor()) + self.config.margin();
            self.promised_until = self.promised_until.max(self.now.plus(promise));
            HeldRight { grant: id.number, promise_ms: u32::try_from(promise.as_millis()).unwrap_or(u32::MAX) }
        });
        self.beat(path, Some(beat.stamp), held);
        self.beat_in_step();
    }

    /// The backup sends its own heartbeats in the turn that answers the active's, so that an idle pair wakes once for
    /// both: with a little patience for the active's next one.
    fn beat_in_step(&mut self) {
        let patience = self.config.heartbeat / 8;
        if self.beat_due <= self.now.plus(patience) {
            self.beat_due = self.now;
            self.check_beats();
            self.beat_due = self.now.plus(self.config.heartbeat + patience);
        }
    }

    /// The active's side, or that of two members without one.
    fn hear_other(&mut self, beat: &Heartbeat) {
        let Some(office) = &mut self.office else { return };
        if beat.highest_epoch >= office.epoch && self.p.contested {
            return self.end_contest("the peer knows this epoch and is not active");
        }
        if beat.epoch != office.epoch {
            return;
        }
        let Some(right) = office.lease.right else { return };
        match beat.held {
            Some(held) if held.grant == right.number && right.epoch == office.epoch => {
                if let Some(own) = beat.answers {
                    let sent = Instant::from_micros(own.sent_us).min(self.now);
                    let promise = Duration::from_millis(held.promise_ms.into());
                    let factor = beat.link_factor.clamp(LINK_FACTOR_ONE, 3 * LINK_FACTOR_ONE);
                    office.lease.renewed(&self.config, sent, factor, promise);
                }
            }
            // The grant was lost on its way, or is not persisted there yet: say it again; it is taken or given back.
            _ if beat.answers.is_some() => self.say_grant(),
            _ => {}
        }
    }

    pub(crate) fn on_connection(&mut self, path: PathKind, lane: LaneKind, up: bool) {
        match lane {
            LaneKind::Bulk => {}
            LaneKind::Ds => {
                self.ds_up = up;
                self.ds_changed = self.now;
                self.on_ds_lane();
            }
            LaneKind::Ping => {
                let link = &mut self.links[path as usize];
                (link.ping_up, link.heard) = (up, None);
                link.answers.forget();
                self.note(format!("{} connection {}", path.name(), if up { "up" } else { "down" }));
                if up {
                    self.greet(path);
                } else {
                    if self.links.iter().all(|link| !link.ping_up) {
                        self.peer.report = None;
                    }
                    self.push(Effect::DialNow);
                }
            }
        }
    }

    /// The first words on a new ping lane.
    fn greet(&mut self, path: PathKind) {
        self.beat(path, None, None);
        let report = self.make_report(true);
        self.send(Channel::Ping(path), Control::Report(Box::new(report)));
        if let Some(announce) = self.announcement() {
            self.send(Channel::Ping(path), announce);
        }
        self.repeat_give_back(Channel::Ping(path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_link_has_factor_one_and_a_bad_one_at_most_three() {
        // REQ: protocol §4
        let silence = Duration::from_millis(400);
        let mut learned = Learned::default();
        learned.observe(Instant::from_millis(100), Duration::from_millis(100));
        assert_eq!(learned.factor(silence), 256);
        learned.observe(Instant::from_millis(400), Duration::from_millis(300));
        assert_eq!(learned.factor(silence), 384);
        learned.observe(Instant::from_millis(1200), Duration::from_millis(790));
        assert_eq!(learned.factor(silence), 768);
    }

    #[test]
    fn a_heartbeat_is_missed_that_is_not_answered_within_h() {
        let (h, at) = (Duration::from_millis(100), Instant::from_millis);
        let mut answers = Answers::default();
        answers.asked(1, at(0), h);
        answers.asked(2, at(100), h);
        assert_eq!((answers.in_time, answers.missed), (0, 0), "nobody follows yet");
        answers.answered(2, at(101), h);
        answers.asked(3, at(200), h);
        // An answer goes between two of the active's numbers; a heartbeat goes early to keep its time.
        answers.asked(5, at(299), h);
        answers.answered(5, at(399), h);
        answers.answered(3, at(399), h);
        assert_eq!((answers.in_time, answers.missed), (2, 1), "answered in time, at the last moment, and too late");
        answers.asked(6, at(400), h);
        answers.asked(7, at(500), h);
        answers.answered(6, at(501), h);
        assert_eq!((answers.in_time, answers.missed), (2, 2), "one miss, however late the answer");
        answers.forget();
        answers.asked(8, at(700), h);
        answers.asked(9, at(900), h);
        assert_eq!((answers.in_time, answers.missed, answers.awaited.len()), (2, 2, 1));
    }

    #[test]
    fn what_was_learned_is_forgotten_after_a_minute() {
        let mut learned = Learned::default();
        learned.observe(Instant::from_millis(1), Duration::from_millis(300));
        for at in (100..100_000).step_by(100) {
            learned.observe(Instant::from_millis(at), Duration::from_millis(100));
        }
        assert_eq!(learned.factor(Duration::from_millis(400)), 256);
    }
}

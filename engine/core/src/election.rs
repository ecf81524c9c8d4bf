//! Start and election (protocol §8): who becomes active when nobody is.
//!
//! Always: both members, given both reports, name the same one. Never: an empty, incomplete or rolled-back copy, and
//! never alone on a copy that may be old.

use std::cmp::Ordering;

use ringpair_wire::{
    control::{Control, GiveBackReason, Report, Role},
    id::{Epoch, MemberId, Position},
};

use crate::{
    config::FailSafeStart,
    effect::{Effect, Hook},
    epochs::{Epochs, same_term},
    event::{EventCode, SwitchReason},
    input::{Channel, Start},
    node::{After, Journal, Node},
    persisted::{Persisted, Right},
    promotion::Basis,
    roles::Cause,
    status::PairMode,
    time::Instant,
};

/// How an election ends, as seen by one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This member; first it pulls the peer's longer suffix, if any.
    Me {
        /// The peer's journal end, where it has more of the same term.
        pull: Option<Position>,
        /// Why.
        why: String,
    },
    /// This member, and it creates the history: both are empty.
    Create,
    /// The peer.
    Peer(String),
    /// Neither: why.
    Nobody(String),
}

/// What orders two whole copies: the highest epoch known, then the journal's end.
fn rank(report: &Report) -> (Epoch, Epoch, u64) {
    (report.epoch, report.position.epoch, report.position.seq.0)
}

fn fit(report: &Report) -> bool {
    report.history.is_some() && report.complete && report.eligible
}

/// Decides between two members neither of which is active. `outreached`: the peer's journal goes beyond the own one
/// within its term; the own copy is the older one.
#[must_use]
pub fn elect(member: MemberId, own: &Report, peer: &Report, outreached: bool) -> Verdict {
    match (own.history, peer.history) {
        (None, None) if member == MemberId::A => return Verdict::Create,
        (None, None) => return Verdict::Peer("both are empty: A creates the history".into()),
        (Some(mine), Some(theirs)) if mine != theirs && fit(own) && fit(peer) => {
            return Verdict::Nobody(format!(
                "the members hold different histories ({mine}, {theirs}). Try: switch --force on the one to keep"
            ));
        }
        _ => {}
    }
    let own_fit = fit(own) && !outreached;
    let why = |winner: &Report, loser: &Report| {
        format!(
            "epoch {} with {} records against epoch {} with {}",
            winner.epoch, winner.position.seq, loser.epoch, loser.position.seq
        )
    };
    match (own_fit, fit(peer)) {
        (false, false) => Verdict::Nobody("neither copy is whole. Try: switch --force on the better one".into()),
        (true, false) => Verdict::Me { pull: longer(own, peer), why: "the peer's copy is not whole".into() },
        (false, true) => Verdict::Peer("the own copy is empty, not whole or older".into()),
        (true, true) => match rank(own).cmp(&rank(peer)) {
            Ordering::Greater => Verdict::Me { pull: longer(own, peer), why: why(own, peer) },
            Ordering::Less => Verdict::Peer(why(peer, own)),
            Ordering::Equal if member == MemberId::A => {
                Verdict::Me { pull: None, why: "both are equal: A breaks the tie".into() }
            }
            Ordering::Equal => Verdict::Peer("both are equal: A breaks the tie".into()),
        },
    }
}

/// The peer's end, if it has more records of the same base epoch than the own journal.
fn longer(own: &Report, peer: &Report) -> Option<Position> {
    let same_term = own.history == peer.history && same_term(own.position.epoch, peer.position.epoch);
    (same_term && peer.position.seq > own.position.seq).then_some(peer.position)
}

/// Whether a member may start without an answer: the sentence says why, or why not.
///
/// # Errors
/// The reason to wait.
pub fn may_start_alone(p: &Persisted, policy: FailSafeStart, force_backup: bool) -> Result<String, String> {
    if p.history.is_none() {
        return Err("the storage is empty, and no peer answers. Try: start the peer, or run --bootstrap on A".into());
    }
    if !p.is_whole() {
        return Err("the own copy is not whole, and no peer answers. Try: start the peer".into());
    }
    if force_backup {
        return Err("--force-backup: waits for an active".into());
    }
    match policy {
        FailSafeStart::Never => Err("fail_safe_start = \"never\": waits for the peer".into()),
        _ if p.was_active_last() => Ok(format!("was active last, in epoch {}", p.own_epoch)),
        _ if p.peer_released.is_some_and(|epoch| epoch == p.highest_epoch) => {
            Ok(format!("holds its peer's release of epoch {}", p.highest_epoch))
        }
        FailSafeStart::Always => Ok("fail_safe_start = \"always\"".into()),
        FailSafeStart::IfCurrent => Err("was not active last and holds no release: the peer may have newer data. \
             Try: start the peer, or switch --force here"
            .into()),
    }
}

/// Compares two releases (SM-054): numbers by value, else as text; an absent part is older.
#[must_use]
pub fn compare_releases(own: &str, peer: &str) -> Ordering {
    let parts = |release: &str| -> Vec<(u64, String)> {
        let split = release.split(|c: char| !c.is_alphanumeric()).filter(|part| !part.is_empty());
        split.map(|part| (part.parse().unwrap_or(0), part.trim_start_matches('0').to_owned())).collect()
    };
    parts(own).cmp(&parts(peer))
}

impl Node {
    pub(crate) fn begin_start(&mut self, start: Start) {
        let view = start.journal;
        self.p = start.persisted.unwrap_or_default();
        self.p.highest_epoch = self.p.highest_epoch.max(view.end.epoch).max(self.p.own_epoch);
        self.store.highest_epoch = self.p.highest_epoch;
        self.fresh_history = start.fresh_history;
        self.unix_ms_at_zero = start.unix_ms_at_zero;
        self.counted_from = self.now;
        self.beat_due = self.now;
        self.journal = Journal {
            base: view.base,
            end: view.end,
            epochs: Epochs::new(view.epochs),
            filtered: view.filtered,
            written: view.end.seq,
            synced: view.end.seq,
            applied: view.applied,
            ..Journal::default()
        };
        if let Right::Held(id) = self.p.right {
            // The worker that held it is gone, and with it what it had promised and heard.
            self.p.right = Right::GivenBack(id);
            self.persist(After::GivenBack(id, GiveBackReason::WorkerDied));
        } else if let Right::GivenBack(id) = self.p.right {
            self.given_back_stored = Some((id, GiveBackReason::WorkerDied));
        }
        self.state_reason = "runs discontinue before it connects".into();
        self.push(Effect::RunHook { hook: Hook::Discontinue, epoch: self.p.own_epoch });
    }

    /// The start's discontinue is done: from here on the member is to be seen.
    pub(crate) fn open_doors(&mut self) {
        self.seeking_since = Some(self.now);
        self.counted_from = self.now;
        self.beat_due = self.now;
        self.state_reason = "asks its peer".into();
        self.push(Effect::Connect);
    }

    pub(crate) fn make_report(&self, ask: bool) -> Report {
        Report {
            history: self.p.history,
            role: self.role(),
            state: self.state,
            epoch: self.store.highest_epoch,
            yours: self.p.peer_epoch,
            position: self.journal.end,
            last_role: self.p.last_role,
            complete: self.p.is_whole(),
            eligible: !self.config.force_backup && !self.rolled_back && self.journal.failed.is_none(),
            held: self.held_stored,
            released: self.p.released,
            mode: self.p.mode,
            release: self.config.release.clone(),
            ask,
        }
    }

    /// Asks the peer what it is; once an H at most.
    pub(crate) fn ask(&mut self) {
        if self.now < self.ask_due {
            return;
        }
        if let Some(to) = self.ping() {
            self.ask_due = self.now.plus(self.config.heartbeat);
            let report = self.make_report(true);
            self.send(to, Control::Report(Box::new(report)));
        }
    }

    pub(crate) fn announcement(&self) -> Option<Control> {
        let office = self.office.as_ref()?;
        let start = self.journal.epochs.list().iter().rev().find(|start| start.epoch == office.epoch)?;
        Some(Control::Announce { epoch: office.epoch, history: self.p.history?, after: start.after })
    }

    /// Tells a peer that speaks of an old epoch who is active.
    pub(crate) fn announce(&mut self) {
        if let Some(announce) = self.announcement() {
            self.send_everywhere(&announce);
        }
    }

    pub(crate) fn on_message(&mut self, from: Channel, message: Control) {
        match message {
            Control::Report(report) => self.on_report(from, *report),
            Control::Announce { epoch, history, .. } => {
                if epoch > self.p.highest_epoch {
                    self.meet_epoch(epoch, "the peer's announcement");
                }
                if self.accepts(epoch) {
                    self.adopt_leader(epoch, history);
                }
            }
            Control::Grant { id, through } => self.on_grant(from, id, through),
            Control::GiveBack { id, reason } => self.on_give_back(id, reason),
            Control::Dying { epoch, hold_ms } => self.on_dying(epoch, hold_ms),
            Control::Released { epoch, end, controlled } => self.on_released(epoch, end, controlled),
            Control::FetchTail { after } => self.on_fetch_tail(from, after),
            Control::TailEnd { end, served } => self.on_tail_end(from, end, served),
            Control::Follow { position, complete, epochs } => self.on_follow(position, complete, epochs),
            Control::Resume { epoch, after, .. } => self.on_resume(epoch, after),
            Control::MustResync { epoch, history, common, diverged } => {
                self.on_must_resync(epoch, history, common, diverged);
            }
            Control::Ack { epoch, received, durable, applied } => self.on_ack(epoch, received, durable, applied),
            Control::Mode(mode) => self.on_mode(mode),
            Control::SwitchRequest { id, immediate } => self.on_switch_request(from, id, immediate),
            Control::SwitchAnswer { id, outcome } => self.on_switch_answer(id, outcome),
        }
    }

    fn on_report(&mut self, from: Channel, report: Report) {
        self.on_mode(report.mode);
        if report.yours > self.p.own_epoch {
            self.find_rolled_back(report.yours);
        }
        if report.epoch > self.p.highest_epoch {
            self.meet_epoch(report.epoch, "the peer's report");
        }
        let (ask, role, epoch, history) = (report.ask, report.role, report.epoch, report.history);
        self.peer.report = Some(report);
        if ask {
            let answer = self.make_report(false);
            self.send(from, Control::Report(Box::new(answer)));
        }
        if role == Role::Active {
            match history {
                Some(history) if self.accepts(epoch) => self.adopt_leader(epoch, history),
                _ => self.announce(),
            }
            return;
        }
        if self.leader.as_ref().is_some_and(|leader| epoch >= leader.epoch) && self.promotion.is_none() {
            self.lose_leader("the peer is not active any more");
        }
        if let Some(office) = &self.office {
            let known = epoch >= office.epoch;
            if self.p.contested && known {
                self.end_contest("the peer knows this epoch and is not active");
            }
            self.check_outreached();
        }
    }

    /// The peer knows a later epoch of this member than its storage does: the storage is an older copy (protocol §2).
    fn find_rolled_back(&mut self, known: Epoch) {
        let reason = format!("the peer knows epoch {known} of this member, its storage only {}", self.p.own_epoch);
        self.report_once(EventCode::Epoch, format!("the storage is an older copy: {reason}"));
        self.rolled_back = true;
        self.p.highest_epoch = self.p.highest_epoch.max(known);
        self.p.own_epoch = known;
        self.p.complete = false;
        self.promotion = None;
        self.step_down("its storage is an older copy");
        self.persist(After::Nothing);
    }

    fn check_outreached(&mut self) {
        let Some(report) = &self.peer.report else { return };
        if report.history.is_some() && report.history == self.p.history && report.complete {
            self.give_way_to(report.position);
        }
    }

    /// An active whose peer's whole copy has more of the same term than its own started from an older copy (protocol
    /// §2): it steps down. Whether it did.
    pub(crate) fn give_way_to(&mut self, position: Position) -> bool {
        let outreached = self.office.is_some() && self.journal.epochs.outreached_by(position, self.journal.end, true);
        if outreached {
            let theirs = position.seq;
            self.report(
                EventCode::Epoch,
                format!("the peer has records of this term through {theirs} that this copy never had: steps down"),
            );
            self.p.complete = false;
            self.step_down("its peer's journal outreaches its own within the term");
            self.persist(After::Nothing);
        }
        outreached
    }

    /// Whether the peer may be active in this epoch: a lower one than the highest seen is refused (protocol §2).
    pub(crate) fn accepts(&self, epoch: Epoch) -> bool {
        epoch >= self.p.highest_epoch && epoch.owner() == Some(self.config.member.peer())
    }

    /// A higher epoch is met: whoever is active below it steps down, and rights below it end (protocol §2, §3).
    pub(crate) fn meet_epoch(&mut self, epoch: Epoch, source: &str) {
        let known = self.p.highest_epoch;
        self.p.highest_epoch = epoch;
        self.report(EventCode::Epoch, format!("{source} tells of epoch {epoch}, above {known}"));
        if self.promotion.take().is_some() {
            self.report(EventCode::Promotion, format!("the promotion is given up: epoch {epoch} exists"));
        }
        self.pull = None;
        self.step_down(&format!("epoch {epoch} exists"));
        if self.leader.as_ref().is_some_and(|leader| leader.epoch < epoch) {
            self.lose_leader(&format!("epoch {epoch} exists"));
        }
        match self.p.right {
            Right::Held(id) if id.epoch < epoch => {
                self.give_back(id, GiveBackReason::HigherEpoch);
            }
            _ => self.persist(After::Nothing),
        }
    }

    /// Whether nobody is active as far as this member knows, and it is free to decide.
    fn is_idle(&self) -> bool {
        self.office.is_none()
            && self.promotion.is_none()
            && self.pull.is_none()
            && self.leader.is_none()
            && self.stepping.is_none()
            && self.stopping.is_none()
            && !self.draining
            && self.journal.failed.is_none()
    }

    /// When an unanswered member may decide alone.
    fn alone_at(&self) -> Option<Instant> {
        let wait = if self.p.out().is_some() { self.config.lonely_start_wait } else { self.config.start_wait };
        let current = self.p.was_active_last() || self.p.peer_released.is_some();
        let wait = if current { wait } else { self.config.lonely_start_wait };
        Some(self.seeking_since?.max(self.heard_at()).plus(wait))
    }

    /// Until here a promise may run that was given before the start (protocol §8).
    pub(crate) fn start_guard(&self) -> Instant {
        self.started.map_or(Instant(0), |started| started.plus(self.config.start_guard()))
    }

    /// Not promoted before this.
    pub(crate) fn guarded_until(&self) -> Instant {
        let may_have_promised = self.p.history.is_some() && self.p.last_role != Role::Active;
        if may_have_promised { self.start_guard() } else { Instant(0) }
    }

    pub(crate) fn check_seeking(&mut self) {
        let Some(since) = self.seeking_since else { return };
        if !self.is_idle() {
            return;
        }
        if let Some(report) = self.peer.report.clone().filter(|_| self.hears()) {
            self.decide_with(&report);
        } else if self.p.history.is_none() && self.config.bootstrap && self.config.member == MemberId::A {
            self.create_history("--bootstrap");
        } else if self.alone_at().is_some_and(|at| self.now >= at) && since < self.now {
            self.decide_alone();
        }
    }

    fn decide_with(&mut self, peer: &Report) {
        if peer.role == Role::Active || self.store.highest_epoch < self.p.highest_epoch {
            return;
        }
        let own = self.make_report(false);
        let same = own.history.is_some() && own.history == peer.history && peer.complete;
        let outreached = same && self.journal.epochs.outreached_by(peer.position, self.journal.end, false);
        if outreached && self.p.complete {
            // The peer has to know it too, or both would name each other.
            self.p.complete = false;
            self.persist(After::Nothing);
            self.ask();
        }
        match elect(self.config.member, &own, peer, outreached) {
            Verdict::Create => self.create_history("both members are empty"),
            Verdict::Me { pull, why } => {
                if self.now < self.guarded_until().max(self.promised_until) {
                    return;
                }
                let reason = format!("elected: {why}");
                self.report(EventCode::Election, reason.clone());
                let contested = !(self.p.was_active_last() || self.held_stored.is_some());
                let basis = Basis::new(SwitchReason::Elected, contested, reason);
                match pull {
                    Some(target) => self.begin_pull(target, basis),
                    None => self.begin_promotion(basis),
                }
            }
            Verdict::Peer(why) => {
                self.enter(Cause::Seeks, format!("waits for the peer to become active: {why}"));
                self.report_once(EventCode::Election, format!("the peer is elected: {why}"));
            }
            Verdict::Nobody(why) => {
                self.enter(Cause::Unable, why.clone());
                self.report_once(EventCode::Election, format!("nobody is elected: {why}"));
            }
        }
    }

    fn decide_alone(&mut self) {
        match may_start_alone(&self.p, self.config.fail_safe_start, self.config.force_backup) {
            Ok(_) if self.isolated == Some(true) => {
                self.report_once(EventCode::Election, "waits: this host is isolated".into());
            }
            Ok(why) => {
                if self.now < self.guarded_until() {
                    return;
                }
                let reason = format!("no answer from the peer on either address: {why}");
                self.report(EventCode::Election, reason.clone());
                let sure = self.p.was_active_last() || self.p.peer_released == Some(self.p.highest_epoch);
                self.begin_promotion(Basis::new(SwitchReason::Started, !sure, reason));
            }
            Err(why) => {
                self.enter(Cause::Unable, why.clone());
                self.report_once(EventCode::Election, format!("does not start as active: {why}"));
            }
        }
    }

    fn create_history(&mut self, why: &str) {
        let history = self.fresh_history;
        self.report(EventCode::Election, format!("creates history {history}: {why}"));
        self.p.history = Some(history);
        self.p.complete = true;
        self.push(Effect::CreateHistory { history });
        self.begin_promotion(Basis::new(SwitchReason::Started, false, format!("a new history: {why}")));
    }

    /// When the next decision here is due, if time alone brings it.
    pub(crate) fn seeking_deadline(&self) -> Option<Instant> {
        if !self.is_idle() {
            return None;
        }
        match &self.peer.report {
            Some(_) if self.hears() => Some(self.guarded_until().max(self.promised_until)),
            _ => self.alone_at().map(|at| at.max(self.guarded_until())),
        }
    }

    pub(crate) fn pair_mode(&self) -> PairMode {
        let Some(report) = &self.peer.report else {
            return if self.role() == Role::None { PairMode::None } else { self.own_mode() };
        };
        // The pair's mode is the backup's relation to the active, the same on both members.
        let (backup, active) = match self.role() {
            Role::Active => (report.release.as_str(), self.config.release.as_str()),
            Role::Backup => (self.config.release.as_str(), report.release.as_str()),
            Role::None => return PairMode::None,
        };
        match compare_releases(backup, active) {
            Ordering::Equal => self.own_mode(),
            Ordering::Greater => PairMode::UpgradeHigher,
            Ordering::Less => PairMode::UpgradeLower,
        }
    }

    pub(crate) fn own_mode(&self) -> PairMode {
        let manual = self.config.manual_only || self.p.mode.mode == ringpair_wire::control::SwitchMode::Manual;
        if manual { PairMode::Manual } else { PairMode::Auto }
    }
}

#[cfg(test)]
mod tests {
    use ringpair_wire::id::{ChainHash, HistoryId, Seq};

    use super::*;

    fn report(epoch: u64, seq: u64) -> Report {
        Report {
            history: Some(HistoryId([1; 16])),
            epoch: Epoch(epoch),
            position: Position { epoch: Epoch(epoch), seq: Seq(seq), chain: ChainHash(1) },
            complete: true,
            eligible: true,
            ..Report::default()
        }
    }

    fn winner(a: &Report, b: &Report) -> Option<MemberId> {
        let from_a = elect(MemberId::A, a, b, false);
        let from_b = elect(MemberId::B, b, a, false);
        match (&from_a, &from_b) {
            (Verdict::Me { .. } | Verdict::Create, Verdict::Peer(_)) => Some(MemberId::A),
            (Verdict::Peer(_), Verdict::Me { .. }) => Some(MemberId::B),
            (Verdict::Nobody(_), Verdict::Nobody(_)) => None,
            other => panic!("the members disagree: {other:?}"),
        }
    }

    #[test]
    fn both_members_name_the_same_one() {
        // REQ: protocol §8, SM-052 (as amended)
        let empty = Report { eligible: true, ..Report::default() };
        let half = Report { complete: false, ..report(65_537, 99) };
        let forced = Report { eligible: false, ..report(65_537, 99) };
        for (a, b, expected) in [
            (&empty, &empty, Some(MemberId::A)),
            (&report(65_537, 5), &report(65_537, 5), Some(MemberId::A)),
            (&report(65_537, 5), &report(65_537, 6), Some(MemberId::B)),
            (&report(65_537, 50), &report(131_072, 6), Some(MemberId::B)),
            (&empty, &report(65_537, 6), Some(MemberId::B)),
            (&report(65_537, 6), &empty, Some(MemberId::A)),
            (&half, &report(65_537, 6), Some(MemberId::B)),
            (&half, &empty, None),
            (&forced, &report(65_537, 6), Some(MemberId::B)),
        ] {
            assert_eq!(winner(a, b), expected, "{a:?} {b:?}");
        }
    }

    #[test]
    fn the_winner_pulls_the_longer_suffix_of_the_same_term() {
        // REQ: protocol §8
        let own = Report { epoch: Epoch(65_539), ..report(65_537, 5) };
        let verdict = elect(MemberId::A, &own, &report(65_537, 9), false);
        assert!(matches!(verdict, Verdict::Me { pull: Some(end), .. } if end.seq == Seq(9)), "{verdict:?}");
        let verdict = elect(MemberId::A, &report(131_073, 5), &report(65_537, 9), false);
        assert!(matches!(verdict, Verdict::Me { pull: None, .. }), "another term's records diverge: {verdict:?}");
    }

    #[test]
    fn an_outreached_copy_gives_way() {
        let verdict = elect(MemberId::A, &report(65_539, 5), &report(65_537, 9), true);
        assert!(matches!(verdict, Verdict::Peer(_)));
    }

    #[test]
    fn different_histories_elect_nobody() {
        let other = Report { history: Some(HistoryId([2; 16])), ..report(65_537, 5) };
        assert_eq!(winner(&report(65_537, 5), &other), None);
    }

    #[test]
    fn only_a_current_copy_starts_alone() {
        // REQ: protocol §8, SM-051, SM-058, SM-060
        use FailSafeStart::{Always, IfCurrent, Never};
        let active = Persisted {
            history: Some(HistoryId([1; 16])),
            highest_epoch: Epoch(65_537),
            own_epoch: Epoch(65_537),
            last_role: Role::Active,
            complete: true,
            ..Persisted::default()
        };
        let backup = Persisted { own_epoch: Epoch(0), last_role: Role::Backup, ..active.clone() };
        let heir = Persisted { peer_released: Some(Epoch(65_537)), ..backup.clone() };
        let half = Persisted { complete: false, ..active.clone() };
        for (p, policy, expected) in [
            (&active, IfCurrent, true),
            (&backup, IfCurrent, false),
            (&heir, IfCurrent, true),
            (&half, IfCurrent, false),
            (&half, Always, false),
            (&Persisted::default(), Always, false),
            (&backup, Always, true),
            (&active, Never, false),
        ] {
            assert_eq!(may_start_alone(p, policy, false).is_ok(), expected, "{p:?} {policy:?}");
        }
        assert!(may_start_alone(&active, IfCurrent, true).is_err());
    }

    #[test]
    fn releases_compare_by_number() {
        // REQ: SM-054
        assert_eq!(compare_releases("2015.1.2", "2015.1.10"), Ordering::Less);
        assert_eq!(compare_releases("2021.1.3", "2021.1.3"), Ordering::Equal);
        assert_eq!(compare_releases("2015 R1 Patch2", "2015 R1 Patch1"), Ordering::Greater);
        assert_eq!(compare_releases("2", "1.9.9"), Ordering::Greater);
    }
}

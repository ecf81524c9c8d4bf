//! What a member shows of itself: plain values for `status`, `/active`, `/readyz` and `why`.

use std::time::Duration;

use ringpair_wire::{
    control::{Blocker, GrantId, Role, State},
    heartbeat::LINK_FACTOR_ONE,
    id::{Epoch, HistoryId, Position, Seq},
    lane::PathKind,
};

use serde::{Deserialize, Serialize};

use crate::{event::SwitchRecord, heartbeat::Link, node::Node, time::Instant};

/// The pair's mode as `status` names it (SM-020).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairMode {
    /// Same release, automatic switching.
    Auto,
    /// An operator switches.
    Manual,
    /// The backup's release is newer.
    UpgradeHigher,
    /// The backup's release is older.
    UpgradeLower,
    /// No pair: the members have no common active.
    #[default]
    None,
}

impl PairMode {
    /// The name in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Manual => "manual",
            Self::UpgradeHigher => "upgrade-higher",
            Self::UpgradeLower => "upgrade-lower",
            Self::None => "none",
        }
    }
}

/// A warning in `status`: stable code, sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// A stable code, such as `may-be-split`.
    pub code: &'static str,
    /// The sentence.
    pub text: String,
}

/// What is known of the peer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its role, as last said.
    pub role: Role,
    /// Its state, as last said.
    pub state: State,
    /// Its release, as last said.
    pub release: String,
    /// Whether a fresh heartbeat of it is here.
    pub reachable: bool,
    /// How far it has come, if it follows this member.
    pub received: Seq,
    /// The same, synced.
    pub durable: Seq,
    /// The same, readable.
    pub applied: Seq,
}

/// One connection of the two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathStatus {
    /// After TLS, hello and a fresh heartbeat (protocol §4).
    pub up: bool,
    /// The newest round trip of a heartbeat.
    pub rtt: Option<Duration>,
    /// As active: own heartbeats that the backup answered within H.
    pub answered: u64,
    /// As active: own heartbeats that a backup, which had answered before, did not answer within H.
    pub missed: u64,
}

/// The whole status at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The role: `Active` from the moment `/active` answers 200.
    pub role: Role,
    /// The state of the specification.
    pub state: State,
    /// Why the member is in that state: one sentence.
    pub state_reason: String,
    /// The pair's mode.
    pub pair_mode: PairMode,
    /// The own or followed epoch; the highest seen while neither.
    pub epoch: Epoch,
    /// The history; `None`: empty storage.
    pub history: Option<HistoryId>,
    /// As backup: whether the active's files may be taken, which overwrites what is here. Not before what this member
    /// had alone is in the archive, or known to have to go there (protocol §11).
    pub takes_files: bool,
    /// Whether an answer that this member is active excludes every other.
    pub exclusive: bool,
    /// How long that holds, in milliseconds, from now; 0 if not exclusive. With the right not out: one lease.
    pub valid_for_ms: u64,
    /// What is left of the lease; zero if there is none or it lapsed.
    pub lease_left: Duration,
    /// L as it stands now.
    pub lease: Duration,
    /// The right to promote that is out (active) or held (backup).
    pub right: Option<GrantId>,
    /// Whether the commence hook is done and the member ready (`/readyz`).
    pub ready: bool,
    /// Acknowledges by itself.
    pub alone: bool,
    /// Whether the own copy is whole.
    pub complete: bool,
    /// Another member may be active too.
    pub may_be_split: bool,
    /// Whether writes are admitted.
    pub writable: bool,
    /// The journal's end.
    pub position: Position,
    /// Written, synced and applied here.
    pub local: [Seq; 3],
    /// The peer.
    pub peer: PeerStatus,
    /// Main and aux.
    pub paths: [PathStatus; 2],
    /// Warnings of the core.
    pub warnings: Vec<Warning>,
}

impl Node {
    /// Whether an acknowledgement, or an answer to `/active`, that was decided in this turn may still be sent at `now`:
    /// the lease runs, or nothing depends on it.
    #[must_use]
    pub fn may_answer(&self, now: Instant) -> bool {
        let Some(office) = &self.office else { return false };
        office.serving && !self.draining && (office.lonely || office.lease.runs(now))
    }

    /// The newest record that may be sent to the follower now (its received position plus the window).
    #[must_use]
    pub fn send_through(&self) -> Seq {
        self.office
            .as_ref()
            .map_or(Seq(0), |office| Seq(office.progress.peer_received.0.saturating_add(self.config.window_records)))
    }

    /// The records after this one must stay in the journal: the follower, or the own state, lacks them. A follower that
    /// is absent, behind or resynchronizing keeps nothing.
    #[must_use]
    pub fn needed_after(&self) -> Seq {
        let applied = if self.office.is_some() { self.journal.end.seq } else { self.journal.applied };
        match &self.office {
            Some(office) if office.follower.streams() => applied.min(office.progress.peer_durable),
            _ => applied,
        }
    }

    /// The end of the journal as the core has it: the next frame is chained to it.
    #[must_use]
    pub fn position(&self) -> Position {
        self.journal.end
    }

    /// The own epoch as active, the followed one as backup, else the highest seen: what files and answers are tagged
    /// with.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.own_epoch()
    }

    /// What, as far as the core knows, speaks against a switch now.
    #[must_use]
    pub fn switch_blockers(&self, now: Instant) -> Vec<Blocker> {
        let _ = now;
        self.state_blockers()
    }

    /// The last switch of this run, with its evidence.
    #[must_use]
    pub fn last_switch(&self) -> Option<&SwitchRecord> {
        self.record.as_ref()
    }

    /// Why no promotion takes place now, one sentence a line; empty on an active member.
    #[must_use]
    pub fn why_not(&self, now: Instant) -> Vec<String> {
        if self.office.is_some() {
            return Vec::new();
        }
        let mut lines = vec![format!("state {}: {}", self.state.name(), self.state_reason)];
        if self.leader.is_some() && self.suspicion.is_none() {
            let ms = now.since(self.heard_at()).as_millis();
            lines.push(format!("the active was heard {ms} ms ago ({})", self.paths_heard()));
        }
        if let Some(due) = self.suspicion_due() {
            lines.push(format!("a promotion from silence is due in {} ms", due.since(now).as_millis()));
        }
        lines.extend(self.forbids_promotion());
        lines.extend(self.evidence.iter().map(|(at, line)| format!("{} ms ago: {line}", now.since(*at).as_millis())));
        lines
    }

    /// Everything for `status` at `now`; `None` before [`Self::start`].
    #[must_use]
    pub fn status(&self, now: Instant) -> Option<Status> {
        self.started?;
        let office = self.office.as_ref();
        let serving = office.is_some_and(|office| office.serving);
        let role = match self.role() {
            Role::Active if !serving => Role::None,
            role => role,
        };
        let exclusive = self.is_exclusive_at(now);
        let lease = self.config.lease(office.map_or_else(|| self.factor(), |office| office.lease.link_factor.max(256)));
        let out = office.and_then(|office| office.lease.right.map(|_| office.lease.until.since(now)));
        // With the right at home: what whoever takes over without a promise outwaits.
        let valid = out.unwrap_or_else(|| self.config.lease(LINK_FACTOR_ONE));
        let seqs =
            |progress: &crate::acks::Progress| (progress.peer_received, progress.peer_durable, progress.peer_applied);
        let (received, durable, applied) = office.map(|office| seqs(&office.progress)).unwrap_or_default();
        let report = self.peer.report.clone().unwrap_or_default();
        // Heartbeats speak of the role more often than reports do.
        let peer_role = self.peer.beat.as_ref().map_or(report.role, |beat| beat.role);
        let peer_state = match (peer_role, report.state) {
            (Role::Active, _) => State::Primary,
            (Role::Backup, state @ (State::UpgradeHigher | State::UpgradeLower)) => state,
            (Role::Backup, _) => State::Backup,
            (Role::None, state) => state,
        };
        let path = |path: PathKind| {
            let Link { rtt, answers, .. } = self.link(path);
            PathStatus { up: self.path_up(path), rtt: *rtt, answered: answers.in_time, missed: answers.missed }
        };
        Some(Status {
            role,
            state: self.state,
            state_reason: self.state_reason.clone(),
            pair_mode: self.pair_mode(),
            epoch: self.own_epoch(),
            history: self.p.history,
            takes_files: role == Role::Backup && self.p.last_role != Role::Active,
            exclusive,
            valid_for_ms: if exclusive { u64::try_from(valid.as_millis()).unwrap_or(u64::MAX) } else { 0 },
            lease_left: out.unwrap_or_default(),
            lease,
            right: self.p.out().or(self.held_stored),
            ready: office
                .map_or(self.leader.as_ref().is_some_and(crate::follow::Leader::streams), |office| office.ready),
            alone: self.is_alone(),
            complete: self.p.complete,
            may_be_split: self.may_be_split(),
            writable: office.is_some_and(|office| office.serving && office.admitting)
                && self.journal.failed.is_none()
                && self.journal.full.is_none(),
            position: self.journal.end,
            local: [self.journal.written, self.journal.synced, self.journal.applied],
            peer: PeerStatus {
                role: peer_role,
                state: peer_state,
                release: report.release,
                reachable: self.hears(),
                received,
                durable,
                applied,
            },
            paths: [path(PathKind::Main), path(PathKind::Aux)],
            warnings: self.warnings(),
        })
    }

    fn may_be_split(&self) -> bool {
        let Some(office) = &self.office else { return false };
        self.p.contested || (office.lonely && !office.lease.runs(self.now))
    }

    fn warnings(&self) -> Vec<Warning> {
        let mut warnings = Vec::new();
        let mut warn = |code, text: String| warnings.push(Warning { code, text });
        if self.may_be_split() {
            warn(
                "may-be-split",
                "the other member may be active too. Try: if it is surely dead, switch --fenced".into(),
            );
        }
        if let Some(why) = &self.journal.failed {
            warn("storage-failed", format!("an fsync failed: {why}"));
        }
        if let Some(why) = &self.journal.full {
            warn("journal-full", format!("no room for the journal: {why}"));
        }
        if self.rolled_back {
            warn("storage-rolled-back", "the storage is an older copy; it is resynchronized from the peer".into());
        }
        if !self.p.complete && self.p.history.is_some() {
            warn("incomplete", "the own copy is not whole yet and cannot become active".into());
        }
        if matches!(self.state, State::Inactive | State::Error) {
            warn("inactive", self.state_reason.clone());
        }
        if self.office.as_ref().is_some_and(|office| office.follower.is_behind()) {
            warn("peer-behind", "the backup is resynchronized by digests".into());
        }
        warnings
    }
}

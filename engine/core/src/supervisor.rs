//! The decisions of the supervisor (protocol §7): what to do when the worker starts, is silent or dies, and when the
//! peer dials a member whose worker is dead.
//!
//! Always: a release is persisted only after the discontinue hook has ended and while the peer listens; it is said only
//! after it is persisted; a worker that serves alone is started at most [`RESTARTS_PER_MINUTE`] times a minute after its
//! first start, any other at most once a second after that.
//! Never: a clock, a file, a socket or a process here; the shell (`engine/src/supervisor`) carries every effect out and
//! brings its result back as an input. Times are CLOCK_BOOTTIME of this host.

mod types;

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use ringpair_wire::control::Role;

pub use self::types::{
    Alarm, Effect, Input, KillReason, Left, PeerLink, SupervisorConfig, WorkerExit, WorkerStatus, given_back, released,
};
use crate::{config::OnHookFailure, time::Instant};

/// Restarts of the worker within [`RESTART_WINDOW`]; the first start does not count.
pub const RESTARTS_PER_MINUTE: usize = 3;
/// How far apart further restarts of a worker that does not serve are.
pub const RESTART_PAUSE: Duration = Duration::from_secs(1);
/// The window in which restarts are counted.
pub const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// What a release may take beside the hook: persisting it and saying it.
pub const RELEASE_ALLOWANCE: Duration = Duration::from_millis(500);

/// Where the supervisor stands; every wait has its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first start, or while the shell makes the process.
    Spawning,
    /// Waits until the restart limit permits the next start.
    BackingOff { until: Instant },
    /// The worker exists and has not spoken.
    Starting { until: Instant },
    /// The worker speaks.
    Running,
    /// SIGKILL was sent; its end decides what follows.
    Killed,
    /// The right is out and the worker dead: waits for the peer's dial.
    Answering { until: Instant },
    /// The discontinue hook runs for a release.
    Discontinuing,
    /// The release is being persisted.
    Releasing,
    /// The release was said; the tail is served.
    Serving { until: Instant },
    /// The giving back is being persisted.
    GivingBack,
    /// The giving back is persisted; waits for the peer's dial to say it.
    Returning { until: Instant },
    /// The discontinue hook runs before the end, with nothing to release.
    Leaving,
    /// Nothing is done any more.
    Ended,
}

/// The supervisor's state and rules.
#[derive(Debug)]
pub struct Supervisor {
    config: SupervisorConfig,
    state: State,
    /// The last turn of the supervisor itself.
    turned: Instant,
    /// Since when the worker is silent.
    heard: Instant,
    status: WorkerStatus,
    /// Whether any worker was ever ready.
    was_ready: bool,
    left: Option<Left>,
    /// The discontinue hook has ended since the worker's death.
    discontinued: bool,
    peers: BTreeSet<PeerLink>,
    /// Times of the restarts within the window.
    restarts: VecDeque<Instant>,
    started_once: bool,
    /// Set once the supervisor is to end, with its exit code.
    ending: Option<u8>,
    /// When a worker that was told to stop is killed.
    stop_until: Option<Instant>,
}

impl Supervisor {
    /// A supervisor that has done nothing yet; [`Self::begin`] starts the first worker.
    #[must_use]
    pub fn new(config: SupervisorConfig, now: Instant) -> Self {
        Self {
            config,
            state: State::Spawning,
            turned: now,
            heard: now,
            status: WorkerStatus::default(),
            was_ready: false,
            left: None,
            discontinued: false,
            peers: BTreeSet::new(),
            restarts: VecDeque::with_capacity(RESTARTS_PER_MINUTE),
            started_once: false,
            ending: None,
            stop_until: None,
        }
    }

    /// The newest word of the running worker.
    #[must_use]
    pub fn status(&self) -> &WorkerStatus {
        &self.status
    }

    /// Whether dials of the peer are to be accepted by the supervisor now.
    #[must_use]
    pub fn listens(&self) -> bool {
        matches!(
            self.state,
            State::Answering { .. }
                | State::Discontinuing
                | State::Releasing
                | State::Serving { .. }
                | State::Returning { .. }
        )
    }

    /// Starts the first worker.
    pub fn begin(&mut self, now: Instant) -> Vec<Effect> {
        self.restart(now)
    }

    /// Takes one input. Read the sockets dry before a timeout is handled (protocol §5).
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Effect> {
        self.note_own_turn(now);
        match input {
            Input::Started => self.on_started(now),
            Input::StartFailed => self.on_start_failed(now),
            Input::Turn => self.on_word(now),
            Input::Status(status) => {
                self.status = status;
                self.on_word(now)
            }
            Input::Ready => {
                self.was_ready = true;
                self.on_word(now)
            }
            Input::HookRunning(limit) => {
                self.stop_until = self.stop_until.map(|until| until.max(now.plus(limit + RELEASE_ALLOWANCE)));
                self.on_word(now)
            }
            Input::Exited(exit, left) => self.on_exited(now, exit, left),
            Input::PeerDialed(link) => self.on_peer_dialed(now, link),
            Input::PeerLeft(link) => self.on_peer_left(now, link),
            Input::HookFinished(ok) => self.on_hook_finished(now, ok),
            Input::Persisted(ok) => self.on_persisted(now, ok),
            Input::TailServed => match self.state {
                State::Serving { .. } => self.go_on(now),
                _ => Vec::new(),
            },
            Input::StopAsked => self.on_stop(now),
        }
    }

    /// The time of the next [`Self::handle_timeout`]; `None`: nothing is due. While a worker runs it lies at most
    /// 5/4 H ahead, so that a gap longer by H/2 is a pause of the supervisor's own.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let due = match self.state {
            State::Running => Some(self.heard.plus(self.lease()).min(self.turned.plus(self.rest()))),
            State::BackingOff { until }
            | State::Starting { until }
            | State::Answering { until }
            | State::Serving { until }
            | State::Returning { until } => Some(until),
            _ => None,
        };
        match (due, self.stop_until.filter(|_| self.worker_lives())) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes the passing of time.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Effect> {
        self.note_own_turn(now);
        if self.worker_lives() && self.stop_until.is_some_and(|until| now >= until) {
            return self.kill(KillReason::StopTooSlow);
        }
        match self.state {
            State::Running if now >= self.heard.plus(self.lease()) => self.kill(KillReason::Silent),
            State::Starting { until } if now >= until => self.kill(KillReason::NeverSpoke),
            State::BackingOff { until } if now >= until => self.restart(now),
            State::Answering { until } if now >= until => {
                let mut effects = vec![Effect::Alarm(Alarm::NobodyDialed)];
                effects.extend(self.go_on(now));
                effects
            }
            State::Serving { until } | State::Returning { until } if now >= until => self.go_on(now),
            _ => Vec::new(),
        }
    }

    /// L: what the worker reported, or the configured one; never below the configured one, since learning only lengthens.
    fn lease(&self) -> Duration {
        Duration::from_millis(u64::from(self.status.lease_ms)).max(self.config.lease)
    }

    fn worker_lives(&self) -> bool {
        matches!(self.state, State::Starting { .. } | State::Running)
    }

    /// The longest that it rests by itself: a little more than H, so that the word of a healthy worker comes before.
    fn rest(&self) -> Duration {
        self.config.heartbeat * 5 / 4
    }

    /// After a pause of its own the supervisor counts the worker's silence anew (protocol §5). What it can miss, H/2 and
    /// the rest before, is less than L.
    fn note_own_turn(&mut self, now: Instant) {
        if now.since(self.turned) > self.rest() + self.config.heartbeat / 2 {
            self.heard = now;
        }
        self.turned = now;
    }

    fn on_started(&mut self, now: Instant) -> Vec<Effect> {
        self.state = State::Starting { until: now.plus(self.config.start_limit) };
        self.heard = now;
        match self.ending {
            Some(_) => self.tell_stop(now),
            None => Vec::new(),
        }
    }

    fn on_start_failed(&mut self, now: Instant) -> Vec<Effect> {
        match (self.started_once && self.was_ready, self.ending) {
            (true, None) => self.restart(now),
            (_, code) => self.end(code.unwrap_or(1)),
        }
    }

    fn on_word(&mut self, now: Instant) -> Vec<Effect> {
        self.heard = now;
        if matches!(self.state, State::Starting { .. }) {
            self.state = State::Running;
        }
        Vec::new()
    }

    fn kill(&mut self, reason: KillReason) -> Vec<Effect> {
        self.state = State::Killed;
        vec![Effect::Alarm(Alarm::Killed(reason)), Effect::KillWorker(reason)]
    }

    fn on_stop(&mut self, now: Instant) -> Vec<Effect> {
        if self.ending.replace(0).is_some() {
            return Vec::new();
        }
        match self.state {
            State::Starting { .. } | State::Running => self.tell_stop(now),
            State::BackingOff { .. } => self.go_on(now),
            _ => Vec::new(),
        }
    }

    fn tell_stop(&mut self, now: Instant) -> Vec<Effect> {
        self.stop_until = Some(now.plus(self.config.stop_limit));
        vec![Effect::TellStop]
    }

    fn on_exited(&mut self, now: Instant, exit: WorkerExit, left: Option<Left>) -> Vec<Effect> {
        let (lease, status) = (self.lease(), std::mem::take(&mut self.status));
        self.stop_until = None;
        self.discontinued = false;
        self.peers.clear();
        self.left = left;
        match exit {
            WorkerExit::Code(0) if self.ending.is_some() => return self.end(0),
            WorkerExit::Code(2) if !self.was_ready => return self.end(2),
            WorkerExit::Code(2) => self.ending = self.ending.or(Some(2)),
            _ => {}
        }
        match left {
            Some(Left { role: Role::Active, right: Some(_), .. }) => {
                self.state = State::Answering { until: now.plus(lease + self.config.margin()) };
                vec![Effect::Listen]
            }
            Some(Left { role: Role::Backup, right: Some(grant), .. }) => {
                self.state = State::GivingBack;
                vec![Effect::PersistGiveBack(grant)]
            }
            Some(_) => self.go_on(now),
            None if status.role == Role::None => self.go_on(now),
            None => {
                let mut effects = vec![Effect::Alarm(Alarm::NothingLeft)];
                effects.extend(self.go_on(now));
                effects
            }
        }
    }

    fn on_peer_dialed(&mut self, now: Instant, link: PeerLink) -> Vec<Effect> {
        let Some(Left { epoch, right: Some(grant), end, .. }) = self.left else { return Vec::new() };
        match self.state {
            State::Answering { .. } => {
                self.peers.insert(link);
                // The order of protocol §7: the service is discontinued before the release is persisted.
                let (state, next) = if self.discontinued {
                    (State::Releasing, Effect::PersistRelease(epoch))
                } else {
                    (State::Discontinuing, Effect::RunDiscontinue(epoch))
                };
                self.state = state;
                vec![Effect::SendDying(link, epoch, self.config.hold()), next]
            }
            State::Discontinuing | State::Releasing => {
                self.peers.insert(link);
                vec![Effect::SendDying(link, epoch, self.config.hold())]
            }
            State::Serving { .. } => {
                self.peers.insert(link);
                vec![Effect::SendReleased(epoch, end)]
            }
            State::Returning { .. } => {
                let mut effects = vec![Effect::SendGivenBack(link, grant)];
                effects.extend(self.go_on(now));
                effects
            }
            _ => Vec::new(),
        }
    }

    fn on_peer_left(&mut self, now: Instant, link: PeerLink) -> Vec<Effect> {
        self.peers.remove(&link);
        match self.state {
            // It has heard the release and wants nothing more.
            State::Serving { .. } if self.peers.is_empty() => self.go_on(now),
            _ => Vec::new(),
        }
    }

    fn on_hook_finished(&mut self, now: Instant, ok: bool) -> Vec<Effect> {
        self.discontinued = true;
        match (self.state, self.left) {
            (State::Leaving, _) => self.end(self.ending.unwrap_or(0)),
            (State::Discontinuing, _) if !ok && self.config.on_hook_failure == OnHookFailure::Hold => {
                let mut effects = vec![Effect::Alarm(Alarm::HookHeld)];
                effects.extend(self.go_on(now));
                effects
            }
            // A member does not release its role to nobody: without a listener it waits for the next dial.
            (State::Discontinuing, Some(_)) if self.peers.is_empty() => {
                self.state = State::Answering { until: now.plus(self.lease() + self.config.margin()) };
                Vec::new()
            }
            (State::Discontinuing, Some(Left { epoch, .. })) => {
                self.state = State::Releasing;
                vec![Effect::PersistRelease(epoch)]
            }
            _ => Vec::new(),
        }
    }

    fn on_persisted(&mut self, now: Instant, ok: bool) -> Vec<Effect> {
        if !ok {
            if !matches!(self.state, State::Releasing | State::GivingBack) {
                return Vec::new();
            }
            let mut effects = vec![Effect::Alarm(Alarm::NotPersisted)];
            effects.extend(self.go_on(now));
            return effects;
        }
        match (self.state, self.left) {
            (State::Releasing, Some(Left { epoch, end, .. })) => {
                self.state = State::Serving { until: now.plus(self.config.tail_limit) };
                vec![Effect::SendReleased(epoch, end)]
            }
            (State::GivingBack, _) => {
                self.state = State::Returning { until: now.plus(self.config.lease + self.config.margin()) };
                vec![Effect::Listen]
            }
            _ => Vec::new(),
        }
    }

    /// The worker is dead and what it left is dealt with: start again, or end.
    fn go_on(&mut self, now: Instant) -> Vec<Effect> {
        let Some(code) = self.ending else { return self.restart(now) };
        match self.left {
            Some(Left { role: Role::Active, epoch, .. }) if !self.discontinued => {
                self.state = State::Leaving;
                vec![Effect::RunDiscontinue(epoch)]
            }
            _ => self.end(code),
        }
    }

    fn restart(&mut self, now: Instant) -> Vec<Effect> {
        if self.started_once {
            while self.restarts.front().is_some_and(|&at| now >= at.plus(RESTART_WINDOW)) {
                self.restarts.pop_front();
            }
            if let Some(until) = self.pause_until().filter(|until| *until > now) {
                self.state = State::BackingOff { until };
                return vec![Effect::Alarm(Alarm::RestartsExhausted(until.since(now)))];
            }
            if self.restarts.len() >= RESTARTS_PER_MINUTE {
                self.restarts.pop_front();
            }
            self.restarts.push_back(now);
        }
        self.started_once = true;
        self.peers.clear();
        self.state = State::Spawning;
        vec![Effect::StartWorker]
    }

    /// When the next restart is permitted, after so many within the window: an active that nobody can take over from is
    /// not brought up over and over; a backup is, a second after the one before.
    fn pause_until(&self) -> Option<Instant> {
        let full = self.restarts.len() >= RESTARTS_PER_MINUTE;
        let (oldest, newest) = (self.restarts.front().filter(|_| full)?, self.restarts.back()?);
        Some(match self.left {
            Some(Left { role: Role::Active, right: None, .. }) => oldest.plus(RESTART_WINDOW),
            _ => newest.plus(RESTART_PAUSE),
        })
    }

    fn end(&mut self, code: u8) -> Vec<Effect> {
        self.state = State::Ended;
        vec![Effect::End(code)]
    }
}

#[cfg(test)]
mod tests;

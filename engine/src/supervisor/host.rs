//! What the supervisor asks of the host so that it outlives its worker: locked memory, the last place among the victims
//! of a lack of memory, and systemd's ear.
//!
//! Always: what is not permitted is a warning, never an error. Never: a change that a worker inherits unknowingly.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::time::Duration;

use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::Uid;
use ringpair_core::Instant;
use sd_notify::NotifyState;
use tracing::warn;

const OOM_SCORE_FILE: &str = "/proc/self/oom_score_adj";
const OOM_SCORE: &str = "-900";
/// The environment variable by which a worker learns the score that the supervisor was started with.
pub const OOM_SCORE_VARIABLE: &str = "RINGPAIR_OOM_SCORE_ADJ";

/// The present moment of CLOCK_BOOTTIME, which goes on while the host sleeps.
#[must_use]
pub fn now() -> Instant {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Instant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Locks all memory, present and future. Without permission for any amount it is not tried: a limit that is met later
/// would fail a thread or an allocation in the middle of a release.
pub fn lock_memory() {
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    if limit != RLIM_INFINITY && !Uid::effective().is_root() {
        warn!(limit_bytes = limit, "the supervisor's memory is not locked. Try: LimitMEMLOCK=infinity in the unit");
        return;
    }
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE) {
        warn!(%error, "the supervisor's memory is not locked. Try: LimitMEMLOCK=infinity in the unit");
    }
}

/// Makes the supervisor one of the last to be killed for lack of memory; returns the score it had before.
pub fn lower_oom_score() -> Option<String> {
    let before = fs::read_to_string(OOM_SCORE_FILE).ok()?.trim().to_owned();
    if let Err(error) = fs::write(OOM_SCORE_FILE, OOM_SCORE) {
        warn!(%error, "the supervisor may be killed for lack of memory like any process. Try: OOMScoreAdjust=-900 in the unit");
    }
    Some(before)
}

/// In a worker: takes back the score that the supervisor was started with. Raising it needs no permission.
pub fn restore_oom_score() {
    if let Ok(score) = env::var(OOM_SCORE_VARIABLE) {
        // Not raised: the worker is then spared as the supervisor is, which harms nobody here.
        let _ = fs::write(OOM_SCORE_FILE, score);
    }
}

/// systemd's view of the member; silent where systemd is not listening.
#[derive(Debug)]
pub struct Systemd {
    watchdog: Option<Duration>,
    petted: Instant,
    status: String,
}

impl Systemd {
    /// Reads what systemd asks for from the environment.
    #[must_use]
    pub fn from_env() -> Self {
        let mut usec = 0;
        let watched = sd_notify::watchdog_enabled(false, &mut usec);
        Self {
            watchdog: watched.then(|| Duration::from_micros(usec) / 2),
            petted: Instant::default(),
            status: String::new(),
        }
    }

    /// The member serves (`READY=1`).
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// The member ends (`STOPPING=1`).
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// One line for `systemctl status`; told only when it changes.
    pub fn status(&mut self, status: String) {
        if status != self.status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// Feeds the watchdog when it is due; returns when it is due next.
    pub fn watch(&mut self, now: Instant) -> Option<Instant> {
        let interval = self.watchdog?;
        if now.since(self.petted) >= interval {
            tell(&[NotifyState::Watchdog]);
            self.petted = now;
        }
        Some(self.petted.plus(interval))
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, state) {
        warn!(%error, "systemd cannot be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_on() {
        let first = now();
        assert!(first > Instant::default() && now() >= first);
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time() {
        let mut systemd =
            Systemd { watchdog: Some(Duration::from_secs(5)), petted: Instant::default(), status: String::new() };
        let at = Instant::from_millis;
        assert_eq!(systemd.watch(at(60_000)), Some(at(65_000)));
        assert_eq!(systemd.watch(at(64_999)), Some(at(65_000)), "not fed before it is due");
        assert_eq!(systemd.watch(at(65_000)), Some(at(70_000)));
        let mut unwatched = Systemd { watchdog: None, ..systemd };
        assert_eq!(unwatched.watch(at(1)), None);
    }
}

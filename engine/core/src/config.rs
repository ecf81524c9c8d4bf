//! What the core must know of the configuration: durations, limits, policies, names.
//!
//! Always checked by the caller (`engine::config`); every default here is the `fast` profile's.

use std::time::Duration;

use ringpair_wire::{heartbeat::LINK_FACTOR_ONE, id::MemberId};

/// Who may start without an answer from the peer (`detection.fail_safe_start`, protocol §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailSafeStart {
    /// Only the member that was active last, or that holds its peer's release.
    IfCurrent,
    /// The original's rule (SM-051): any whole copy.
    Always,
    /// Nobody: wait for the peer or the operator.
    Never,
}

/// What an active does whose backup is lost (`ack.on_peer_loss`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPeerLoss {
    /// Goes on alone, acknowledges up to `local`.
    Continue,
    /// Answers that the level asked for was not reached.
    Block,
}

/// What follows when discontinue fails (`hooks.on_failure`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnHookFailure {
    /// The role is released all the same.
    Promote,
    /// The role is kept: nothing is released.
    Hold,
}

/// The configuration of one core.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which member this is.
    pub member: MemberId,
    /// Its name.
    pub name: String,
    /// The peer's name, for refusals and sentences.
    pub peer_name: String,
    /// The peer's main address, for refusals.
    pub peer_address: String,
    /// This member's release (SM-054), at most [`ringpair_wire::control::MAX_RELEASE_BYTES`].
    pub release: String,
    /// H: the interval of heartbeats.
    pub heartbeat: Duration,
    /// K: so many missed in a row are silence.
    pub misses: u32,
    /// From suspicion to promotion on a quiet link (PAR-051; 3·H in `fast`); stretched by f.
    pub reconnect: Duration,
    /// Whether there is a lease at all; without one no active is exclusive while the right is out (`classic` with
    /// PAR-051 below L).
    pub leased: bool,
    /// Starting without an answer.
    pub fail_safe_start: FailSafeStart,
    /// Losing the backup.
    pub on_peer_loss: OnPeerLoss,
    /// Discontinue failing.
    pub on_hook_failure: OnHookFailure,
    /// `--force-backup` (SM-058): never elected, never promoted by itself.
    pub force_backup: bool,
    /// `--bootstrap`: an empty A creates a history without asking.
    pub bootstrap: bool,
    /// `--manual-switch-only` (SM-140): as mode `manual`, whatever the pair's mode is.
    pub manual_only: bool,
    /// How long a start waits for an answer when the right to promote is not out.
    pub start_wait: Duration,
    /// The same when the right is out (10 s, protocol §8).
    pub lonely_start_wait: Duration,
    /// How long a tail may make no progress before the promotion goes on without the rest of it.
    pub tail_wait: Duration,
    /// How long each waiting step of a controlled switch may last before the switch is given up.
    pub switch_step: Duration,
    /// The interval between attempts at what failed for lack of room or of a peer (archive, resync).
    pub retry: Duration,
    /// At most so many records may be sent and not yet received by the backup.
    pub window_records: u64,
    /// At most so many bytes may be sent and not yet received by the backup.
    pub window_bytes: u64,
    /// At most so many writes may wait for their acknowledgement; further ones are refused with back-pressure.
    pub max_pending_writes: usize,
    /// Past so many bytes of journal that the backup lacks, it is declared behind (`storage.journal_max_bytes`).
    pub journal_max_bytes: u64,
}

impl Config {
    /// The `fast` profile with every default, for `member`.
    #[must_use]
    pub fn fast(member: MemberId) -> Self {
        let heartbeat = Duration::from_millis(100);
        let misses = 4;
        Self {
            member,
            name: member.to_string(),
            peer_name: member.peer().to_string(),
            peer_address: String::new(),
            release: String::new(),
            heartbeat,
            misses,
            reconnect: heartbeat * 3,
            leased: true,
            fail_safe_start: FailSafeStart::IfCurrent,
            on_peer_loss: OnPeerLoss::Continue,
            on_hook_failure: OnHookFailure::Hold,
            force_backup: false,
            bootstrap: false,
            manual_only: false,
            start_wait: heartbeat * misses,
            lonely_start_wait: Duration::from_secs(10),
            tail_wait: Duration::from_secs(3),
            switch_step: Duration::from_secs(30),
            retry: Duration::from_secs(10),
            window_records: 1 << 20,
            window_bytes: 64 << 20,
            max_pending_writes: 1 << 18,
            journal_max_bytes: 4 << 30,
        }
    }

    /// margin = H/2.
    #[must_use]
    pub fn margin(&self) -> Duration {
        self.heartbeat / 2
    }

    /// `duration` stretched by a link factor (f times [`LINK_FACTOR_ONE`]).
    #[must_use]
    pub fn stretched(duration: Duration, link_factor: u16) -> Duration {
        duration * u32::from(link_factor) / u32::from(LINK_FACTOR_ONE)
    }

    /// L = K·H·f; also the time of silence that is a suspicion.
    #[must_use]
    pub fn lease(&self, link_factor: u16) -> Duration {
        Self::stretched(self.heartbeat * self.misses, link_factor)
    }

    /// W, from the sending of the last answered heartbeat: (K+3)·H·f + H + margin.
    #[must_use]
    pub fn lonely_after(&self, link_factor: u16) -> Duration {
        self.lease(link_factor) + Self::stretched(self.reconnect, link_factor) + self.heartbeat + self.margin()
    }

    /// A start promotes no earlier than 3·K·H + margin after it: it may have given a promise.
    #[must_use]
    pub fn start_guard(&self) -> Duration {
        self.heartbeat * self.misses * 3 + self.margin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_profile_gives_the_figures_of_the_protocol() {
        let config = Config::fast(MemberId::A);
        assert_eq!(config.lease(256).as_millis(), 400);
        assert_eq!(config.lonely_after(256).as_millis(), 850);
        assert_eq!(config.start_guard().as_millis(), 1250);
        assert_eq!(config.lease(384).as_millis(), 600);
    }
}

//! The active's lease and the right it stands for (protocol §3, §4, §5): pure arithmetic over times.
//!
//! Always: with the right not out there is nothing to renew. Never: a lease that runs longer than L after the sending
//! of a heartbeat that was answered by the holder of the newest grant.

use std::time::Duration;

use ringpair_wire::control::GrantId;

use crate::{config::Config, time::Instant};

/// What the active knows of the right it gave away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    /// The grant that is out.
    pub right: Option<GrantId>,
    /// The lease runs until here.
    pub until: Instant,
    /// When the newest heartbeat that renewed it was sent; the grant's sending, before any.
    pub answered: Instant,
    /// The f that the backup announced last.
    pub link_factor: u16,
}

impl Lease {
    /// The right goes out: the sending of the grant starts a first lease, with f = 1.
    pub fn granted(&mut self, config: &Config, now: Instant, id: GrantId) {
        let one = ringpair_wire::heartbeat::LINK_FACTOR_ONE;
        *self = Self { right: Some(id), until: now.plus(config.lease(one)), answered: now, link_factor: one };
    }

    /// The holder answered the heartbeat sent at `sent`, promising not to promote for `promise` from its answer on.
    pub fn renewed(&mut self, config: &Config, sent: Instant, link_factor: u16, promise: Duration) {
        let length = config.lease(link_factor).min(promise.saturating_sub(config.margin()));
        self.until = self.until.max(sent.plus(length));
        if sent >= self.answered {
            self.answered = sent;
            self.link_factor = link_factor;
        }
    }

    /// Whether an active may act at `now`: nothing is out, or the lease runs.
    #[must_use]
    pub fn runs(&self, now: Instant) -> bool {
        self.right.is_none() || now < self.until
    }

    /// W: from here on an active that is not renewed may go alone.
    #[must_use]
    pub fn lonely_at(&self, config: &Config) -> Instant {
        self.answered.plus(config.lonely_after(self.link_factor))
    }
}

#[cfg(test)]
mod tests {
    use ringpair_wire::id::{Epoch, MemberId};

    use super::*;

    fn lease() -> (Config, Lease) {
        let config = Config::fast(MemberId::A);
        let mut lease = Lease::default();
        lease.granted(&config, Instant::from_millis(1000), GrantId { epoch: Epoch(65_537), number: 1 });
        (config, lease)
    }

    #[test]
    fn the_lease_runs_for_l_after_the_sending() {
        // REQ: protocol §4
        let (config, mut lease) = lease();
        assert!(lease.runs(Instant::from_millis(1399)) && !lease.runs(Instant::from_millis(1400)));
        lease.renewed(&config, Instant::from_millis(1100), 256, Duration::from_millis(450));
        assert!(lease.runs(Instant::from_millis(1499)) && !lease.runs(Instant::from_millis(1500)));
        assert_eq!(lease.lonely_at(&config), Instant::from_millis(1950));
    }

    #[test]
    fn an_old_answer_never_shortens_and_a_short_promise_never_lengthens() {
        let (config, mut lease) = lease();
        lease.renewed(&config, Instant::from_millis(500), 256, Duration::from_millis(450));
        assert_eq!(lease.until, Instant::from_millis(1400));
        lease.renewed(&config, Instant::from_millis(1200), 768, Duration::from_millis(100));
        assert_eq!(lease.until, Instant::from_millis(1400), "f is not believed beyond what was promised");
    }

    #[test]
    fn without_a_right_out_there_is_nothing_to_lapse() {
        assert!(Lease::default().runs(Instant(u64::MAX)));
    }
}

//! How long the loop looks for something to do before it sleeps: waking a sleeping core takes some 40 us, longer than what
//! is waited for while changes come one after the other.
//!
//! Always: a loop whose waits have been long does not spin at all, so that an idle member costs nothing; whoever else
//! wants the core has it at once (the spinning thread yields between two looks). Never: a spin beyond [`LONGEST`].

use std::time::Duration;

/// Nothing is looked for longer than this.
const LONGEST: Duration = Duration::from_micros(100);
/// What waits count for at most: one long rest is forgotten within a few short waits.
const COUNTS_AT_MOST: Duration = Duration::from_micros(400);

/// What the waits of late were like.
#[derive(Debug)]
pub(super) struct Spin {
    /// The average of late, weighed towards the newest.
    usual: Duration,
}

impl Default for Spin {
    fn default() -> Self {
        Self { usual: COUNTS_AT_MOST }
    }
}

impl Spin {
    /// For how long to look before sleeping, where nothing has to be done within `wait`; `None`: not at all.
    pub(super) fn limit(&self, wait: Option<Duration>) -> Option<Duration> {
        (self.usual <= LONGEST && wait != Some(Duration::ZERO)).then(|| wait.map_or(LONGEST, |wait| wait.min(LONGEST)))
    }

    /// Notes how long the loop waited for something to do.
    pub(super) fn waited(&mut self, for_: Duration) {
        self.usual = (self.usual * 3 + for_.min(COUNTS_AT_MOST)) / 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(30);

    #[test]
    fn only_a_loop_that_is_kept_busy_spins() {
        let mut spin = Spin::default();
        assert_eq!(spin.limit(None), None, "nothing is known yet");
        (0..8).for_each(|_| spin.waited(SHORT));
        assert_eq!(spin.limit(None), Some(LONGEST));
        assert_eq!(spin.limit(Some(SHORT)), Some(SHORT), "no longer than the next deadline");
        assert_eq!(spin.limit(Some(Duration::ZERO)), None, "there is something to do");
        spin.waited(Duration::from_secs(9));
        assert_eq!(spin.limit(None), None, "one rest, and it is over");
        (0..8).for_each(|_| spin.waited(SHORT));
        assert!(spin.limit(None).is_some());
        // An idle pair's heartbeats come every few milliseconds.
        (0..3).for_each(|_| spin.waited(Duration::from_millis(9)));
        assert_eq!(spin.limit(None), None);
    }
}

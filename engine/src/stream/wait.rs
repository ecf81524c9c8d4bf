//! How the loop waits: it looks for something to do for a moment before it sleeps, since waking a sleeping core takes
//! some 40 us, longer than what is waited for while changes come one after the other.
//!
//! Always: a loop whose waits have been long does not spin at all, so that an idle member costs nothing; whoever else
//! wants the core has it at once (the spinning thread yields between two looks). Never: a spin beyond [`LONGEST`].

use std::{
    io,
    time::{Duration, Instant as StdInstant},
};

use ringpair_core::Instant;

use super::{Stream, now};
use crate::ring::Completion;

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

impl Stream {
    /// Submits what is queued and waits for something to do: looks for a moment where that is likely to do, then sleeps.
    pub(super) fn wait_for(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let wait = self.wait();
        let began = StdInstant::now();
        if let Some(limit) = self.spin.limit(wait) {
            while began.elapsed() < limit {
                if self.driver.turn(Some(Duration::ZERO), completions)?.is_something() {
                    self.spin.waited(began.elapsed());
                    return Ok(());
                }
                std::thread::yield_now();
            }
        }
        self.driver.turn(wait.map(|wait| wait.saturating_sub(began.elapsed())), completions)?;
        if wait != Some(Duration::ZERO) {
            self.spin.waited(began.elapsed());
        }
        Ok(())
    }

    /// How long the driver may wait.
    fn wait(&mut self) -> Option<Duration> {
        if self.has_work() {
            return Some(Duration::ZERO);
        }
        let (now, std_now) = (now(), StdInstant::now());
        let until = |at: Instant| at.since(now);
        [
            self.node.next_timeout().map(until),
            self.lanes.next_timeout(self.dials_ds()).map(until),
            self.transport.next_timeout(std_now),
            self.writes.next_timeout(std_now),
            self.linger.next_timeout(std_now),
            self.native.next_timeout(std_now),
            self.pending.next_timeout(std_now),
            self.verifier.next_timeout(std_now),
            // The supervisor must hear of a turn every H.
            Some(until(self.last_turn_told.plus(self.core.heartbeat))),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Whether a turn has something to do without any completion.
    fn has_work(&self) -> bool {
        self.drain.is_some()
            || self.has_long_work()
            || (self.long.is_none() && !self.held.is_empty())
            || !self.requests.is_empty()
            || self.native.has_work()
            || self.journal.has_news()
            || self.applier.can_apply(self.applicable())
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

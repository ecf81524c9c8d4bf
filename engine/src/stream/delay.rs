//! By how much the data path's round trip is above its least of late: what bulk yields to.
//!
//! Always: taken from heartbeats, which are answered at once and go on while nothing else does; a queue shows in each of
//! them, a busy processor in some, so the least of a few counts. Never: a figure of one path for the other.

use std::{collections::VecDeque, time::Duration};

use ringpair_core::Instant;
use ringpair_wire::lane::PathKind;

/// How many round trips are looked at together.
const FEW: usize = 4;
/// How long the least round trip is remembered, in two halves.
const MEMORY: Duration = Duration::from_secs(60);

/// What is known of the data path's delay.
#[derive(Debug, Default)]
pub(super) struct PathDelay {
    path: Option<PathKind>,
    recent: VecDeque<Duration>,
    older: Option<Duration>,
    newer: Option<Duration>,
    since: Instant,
}

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// Above the least.
    pub excess: Duration,
    /// The least of late.
    pub least: Duration,
}

impl PathDelay {
    /// Takes the newest round trip on `path`; `None`: too few are known.
    pub(super) fn observe(&mut self, path: PathKind, rtt: Duration, now: Instant) -> Option<Delay> {
        if self.path.replace(path) != Some(path) {
            *self = Self { path: Some(path), since: now, ..Self::default() };
        }
        if now.since(self.since) > MEMORY / 2 {
            (self.older, self.newer, self.since) = (self.newer, None, now);
        }
        self.newer = Some(self.newer.map_or(rtt, |least| least.min(rtt)));
        if self.recent.len() == FEW {
            self.recent.pop_front();
        }
        self.recent.push_back(rtt);
        let recent = self.recent.iter().min().filter(|_| self.recent.len() == FEW)?;
        let least = self.older.into_iter().chain(self.newer).min()?;
        Some(Delay { excess: recent.saturating_sub(least), least })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(delay: &mut PathDelay, path: PathKind, millis: &[u64], at_s: u64) -> Option<(u64, u64)> {
        let mut last = None;
        for rtt in millis {
            last = delay.observe(path, Duration::from_millis(*rtt), Instant::from_micros(at_s * 1_000_000));
        }
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap();
        last.map(|delay| (millis(delay.excess), millis(delay.least)))
    }

    #[test]
    fn a_queue_shows_and_a_busy_moment_does_not() {
        let mut delay = PathDelay::default();
        assert_eq!(observed(&mut delay, PathKind::Main, &[5, 5, 5], 1), None);
        assert_eq!(observed(&mut delay, PathKind::Main, &[5, 90, 90, 90], 1), Some((0, 5)));
        assert_eq!(observed(&mut delay, PathKind::Main, &[90, 95, 91, 92], 2), Some((85, 5)));
        assert_eq!(observed(&mut delay, PathKind::Main, &[6], 2), Some((1, 5)));
        assert_eq!(observed(&mut delay, PathKind::Aux, &[90, 90, 90, 90], 3), Some((0, 90)), "another path");
        // A path that has become longer for good is as it is after a minute.
        assert_eq!(observed(&mut delay, PathKind::Aux, &[99, 99, 99, 99], 34), Some((9, 90)));
        assert_eq!(observed(&mut delay, PathKind::Aux, &[99, 99, 99, 99], 65), Some((0, 99)));
    }
}

//! Time as the core knows it: nanoseconds of one member's CLOCK_BOOTTIME, given with every input.
//!
//! Never: compared with another member's.

use std::time::Duration;

/// A moment of one member's CLOCK_BOOTTIME, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `duration` later; saturates.
    #[must_use]
    pub const fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// How long `self` is after `earlier`; zero if it is not.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// The moment as microseconds, rounded down, as heartbeats carry it.
    #[must_use]
    pub const fn micros(self) -> u64 {
        self.0 / 1_000
    }

    /// The moment of so many microseconds.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros.saturating_mul(1_000))
    }

    /// The moment as milliseconds, rounded down.
    #[must_use]
    pub const fn millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// The moment of so many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }
}

/// A duration's nanoseconds; saturates after five centuries.
const fn nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_and_rounds_down() {
        let t = Instant::from_millis(5);
        assert_eq!(t.plus(Duration::from_millis(2)).millis(), 7);
        assert_eq!(t.since(Instant::from_millis(9)), Duration::ZERO);
        assert_eq!(Instant(u64::MAX).plus(Duration::MAX), Instant(u64::MAX));
        assert_eq!(Instant(1_999).micros(), 1);
    }
}

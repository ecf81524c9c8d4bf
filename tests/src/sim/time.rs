//! Simulated time: nanoseconds since the seed's beginning, and each member's own clock over it.
//!
//! Never: two members' clocks compared.

use ringpair_core::Instant;

/// One microsecond.
pub const US: u64 = 1_000;
/// One millisecond.
pub const MS: u64 = 1_000_000;
/// One second.
pub const SEC: u64 = 1_000_000_000;

/// A host's CLOCK_BOOTTIME: begins anew with every boot and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    booted: u64,
    at_boot: u64,
    drift_ppm: i64,
}

impl Clock {
    /// A clock that shows `at_boot` at the simulated time `booted`.
    #[must_use]
    pub const fn new(booted: u64, at_boot: u64, drift_ppm: i64) -> Self {
        Self { booted, at_boot, drift_ppm }
    }

    /// What it shows.
    #[must_use]
    pub const fn read(&self, now: u64) -> Instant {
        let ran = now.saturating_sub(self.booted) as i64;
        Instant(self.at_boot + (ran + ran / 1_000_000 * self.drift_ppm) as u64)
    }

    /// When it shows at least this.
    #[must_use]
    pub const fn when(&self, local: Instant) -> u64 {
        let ran = local.0.saturating_sub(self.at_boot) as i64;
        self.booted + (ran - ran / 1_000_000 * self.drift_ppm) as u64
    }
}

/// How long things take: from, to (both included), in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// One way over a quiet path.
    pub link: (u64, u64),
    /// A write to the journal.
    pub write: (u64, u64),
    /// An fdatasync of the journal.
    pub sync: (u64, u64),
    /// The control file, written and synced.
    pub persist: (u64, u64),
    /// Applying what is journalled.
    pub apply: (u64, u64),
    /// From admission to the closed frame.
    pub frame: (u64, u64),
    /// A hook.
    pub hook: (u64, u64),
    /// From the supervisor's wish to the worker's first turn.
    pub spawn: (u64, u64),
    /// Between client and member, one way.
    pub api: (u64, u64),
    /// How late a timer fires.
    pub late: (u64, u64),
    /// Until TCP gives a connection up whose path is cut.
    pub give_up: (u64, u64),
    /// A resynchronization or an archive.
    pub bulk: (u64, u64),
    /// How far a host's clock may be off, in millionths, either way.
    pub drift_ppm: u64,
}

impl Speed {
    /// As the machines of a rack, with a tail.
    pub const RACK: Self = Self {
        link: (30 * US, 400 * US),
        write: (20 * US, 400 * US),
        sync: (150 * US, 3 * MS),
        persist: (150 * US, 3 * MS),
        apply: (20 * US, MS),
        frame: (0, 300 * US),
        hook: (MS, 60 * MS),
        spawn: (2 * MS, 40 * MS),
        api: (50 * US, 500 * US),
        late: (0, 300 * US),
        give_up: (400 * MS, 2600 * MS),
        bulk: (5 * MS, 900 * MS),
        drift_ppm: 100,
    };

    /// The same figure each time, for timelines: half a millisecond one way, two for a hook.
    pub const FIXED: Self = Self {
        link: (500 * US, 500 * US),
        write: (50 * US, 50 * US),
        sync: (200 * US, 200 * US),
        persist: (300 * US, 300 * US),
        apply: (50 * US, 50 * US),
        frame: (0, 0),
        hook: (2 * MS, 2 * MS),
        spawn: (5 * MS, 5 * MS),
        api: (100 * US, 100 * US),
        late: (0, 0),
        give_up: (2000 * MS, 2000 * MS),
        bulk: (20 * MS, 20 * MS),
        drift_ppm: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_begins_with_its_boot_and_drifts() {
        let clock = Clock::new(10 * SEC, 5 * SEC, 100);
        assert_eq!(clock.read(10 * SEC), Instant(5 * SEC));
        assert_eq!(clock.read(20 * SEC), Instant(15 * SEC + MS));
        let due = Instant(9 * SEC);
        assert!(clock.read(clock.when(due) + US) >= due);
    }
}

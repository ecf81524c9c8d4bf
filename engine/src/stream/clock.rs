//! The one clock of the loops: CLOCK_BOOTTIME, which goes on while the host sleeps (protocol.md).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use ringpair_core::Instant;

/// Now.
#[must_use]
pub fn now() -> Instant {
    // The call cannot fail for a clock that every supported kernel has.
    let at = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    Instant(u64::try_from(at.as_nanos()).unwrap_or(u64::MAX))
}

//! The times that fault detection runs on: what a profile makes of H, K and the parameters that are set explicitly
//! (interface §3, protocol §3 to §5).
//!
//! Always holds: a pure function of its arguments. Must never shorten what the administrator set explicitly.

use std::time::Duration;

use super::types::{Detection, Profile};

/// The times and counts in force. Numbers in brackets are the parameters that set them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// H: between two heartbeats on a path.
    pub heartbeat: Duration,
    /// K: heartbeats missed on both paths that make a suspicion.
    pub misses: u32,
    /// L: how long the active may count on an answered heartbeat; `None`: there is no lease, and it is never
    /// `exclusive` while the right to promote is out.
    pub lease: Option<Duration>,
    /// What the backup's promise lasts beyond the lease: H/2.
    pub margin: Duration,
    /// Until a module ping counts as failed, and between two good ones (PAR-031).
    pub module_timeout: Duration,
    /// Between a failed module ping and the next (PAR-032).
    pub module_retry_delay: Duration,
    /// Failed module pings on each connection (PAR-033).
    pub module_max_failures: u32,
    /// Until a ping of the primary monitor counts as failed (PAR-040).
    pub primary_timeout: Duration,
    /// Between two pings of the primary monitor (PAR-041).
    pub primary_ping_delay: Duration,
    /// Between its pings while it retries (PAR-042).
    pub primary_retry_delay: Duration,
    /// How often it retries (PAR-043).
    pub primary_retry_count: u32,
    /// Echo sets before the active counts as unreachable; `None`: it never does (PAR-044).
    pub unreachable_sets: Option<u32>,
    /// Between two echo sets (PAR-045).
    pub unreachable_delay: Duration,
    /// Until an echo counts as unanswered (PAR-049).
    pub echo_timeout: Duration,
    /// Between the loss of a connection and the next attempt (PAR-050).
    pub reconnect_delay: Duration,
    /// From diagnosis to promotion (PAR-051).
    pub reconnect_timeout: Duration,
    /// Whether the module ping goes over aux, with a mark of its own (PAR-039, PAR-053).
    pub module_ping_on_aux: bool,
    /// Whether a NetTest address is wanted (OPS-191): without one there is a warning.
    pub net_test_wanted: bool,
}

/// The times in force. `explicit` gives a parameter that is set explicitly, by the number of its requirement
/// (31 for PAR-031): whole seconds, a count, or 0 and 1 for a switch. `None`: not set.
#[must_use]
pub fn timing(detection: &Detection, explicit: impl Fn(u16) -> Option<i64>) -> Timing {
    let (h, k) = (detection.heartbeat, detection.misses);
    let profile = detection.profile;
    let set_s = |number: u16| explicit(number).map(|set| Duration::from_secs(u64::try_from(set).unwrap_or(0)));
    let seconds = |number: u16, fast: Duration, wan: Duration, classic_s: u64| {
        set_s(number).unwrap_or(match profile {
            Profile::Fast => fast,
            Profile::Wan => wan,
            Profile::Classic => Duration::from_secs(classic_s),
        })
    };
    let count = |number: u16, fast: u32, classic: u32| match explicit(number) {
        Some(set) => u32::try_from(set.max(0)).unwrap_or(u32::MAX),
        None if profile == Profile::Classic => classic,
        None => fast,
    };
    // OPS-191 wants the module's pings slower on a WAN: from H = 1 s and K = 10 come the original's 10 s and 1 s.
    let module_timeout = seconds(31, h, h * k, 10);
    let primary_timeout = match set_s(40) {
        None if profile != Profile::Classic => h * k / 2,
        None | Some(Duration::ZERO) => module_timeout / 2,
        Some(set) => set,
    };
    let reconnect_timeout = seconds(51, h * 3, Duration::from_secs(30), 30);
    let lease = match profile {
        Profile::Fast | Profile::Wan => Some(h * k),
        // A promotion that may come before the lease ends would make it worthless.
        Profile::Classic => Some(primary_timeout).filter(|lease| reconnect_timeout >= *lease),
    };
    let wan = profile == Profile::Wan;
    Timing {
        heartbeat: h,
        misses: k,
        lease,
        margin: h / 2,
        module_timeout,
        module_retry_delay: seconds(32, Duration::ZERO, h, 1),
        module_max_failures: count(33, 2, 2).max(1),
        primary_timeout,
        primary_ping_delay: seconds(41, h, h, 0),
        primary_retry_delay: seconds(42, Duration::ZERO, Duration::ZERO, 0),
        primary_retry_count: count(43, 1, 2).max(1),
        unreachable_sets: match explicit(44) {
            Some(set) if set < 0 => None,
            set => Some(u32::try_from(set.unwrap_or(0)).unwrap_or(u32::MAX).max(3)),
        },
        unreachable_delay: seconds(45, h, h, 10),
        echo_timeout: seconds(49, h, h, 1),
        reconnect_delay: seconds(50, h / 2, h / 2, 5),
        reconnect_timeout,
        module_ping_on_aux: explicit(39).map_or(wan, |set| set != 0),
        net_test_wanted: wan,
    }
}

//! The bounds on strangers: who gives way, what is counted, what is logged and how often.
//!
//! Always: at most so many connections that have not shown who they are; of those that must give way, first one from
//! an address that the configuration does not name, then one that has not sent a sensible first message, then the
//! oldest. Never: more than one line a second in the log, whatever is thrown at the port.
#![forbid(unsafe_code)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Transport,
    conn::{Conn, State},
    session::Session,
    socket,
    types::DownReason,
};
use crate::ring::Fd;

/// At most one line in this time.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Lets one line through in [`LOG_EVERY`] and counts the rest.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    last: Option<Instant>,
    suppressed: u64,
}

impl Limiter {
    /// How many lines were left out since the last one, if now is the time for one.
    pub(super) fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < LOG_EVERY) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Transport {
    /// Takes a connection that was accepted.
    pub(super) fn welcome(&mut self, fd: Fd, peer: SocketAddr, now: Instant) {
        self.stats.accepted += 1;
        let session = match Session::accept(self.tls.as_ref(), &self.config.hello, self.config.strangers.bytes) {
            Ok(session) => session,
            Err(reason) => return self.refuse(peer, &reason, now),
        };
        while self.stranger_count() >= self.config.strangers.count.max(1) {
            let Some(id) = self.table.iter().filter(|conn| conn.is_stranger()).min_by_key(|conn| conn.worth()) else {
                break;
            };
            let id = id.id;
            self.fail(id, DownReason::Stranger("gave way to a newer one"), now);
        }
        let known = self.config.paths.iter().any(|path| path.peer.ip() == socket::plain_ip(peer));
        let deadline = now + self.config.strangers.time;
        self.table.insert(|id| {
            let mut conn = Conn::new(id, fd, session, peer, now);
            conn.state = State::Greeting;
            conn.deadline = Some(deadline);
            conn.from_known_address = known;
            conn
        });
    }

    /// Counts and, not too often, logs a stranger that is gone.
    pub(super) fn refuse(&mut self, peer: SocketAddr, reason: &DownReason, now: Instant) {
        let counter = match reason {
            // The peer's own, of two that crossed.
            DownReason::Replaced => return,
            DownReason::Tls(_) => &mut self.stats.refused_tls,
            DownReason::WrongPeer(_) | DownReason::Version(_) | DownReason::Malformed(_) => {
                &mut self.stats.refused_hello
            }
            DownReason::Stranger(why) if why.starts_with("gave way") => &mut self.stats.strangers_gave_way,
            DownReason::Stranger(_) => &mut self.stats.strangers_oversize,
            DownReason::TimedOut => &mut self.stats.strangers_timed_out,
            _ => &mut self.stats.strangers_left,
        };
        *counter += 1;
        if let Some(suppressed) = self.limiter.pass(now) {
            tracing::warn!(%peer, %reason, suppressed, "a connection that is not the peer's was refused");
        }
    }
}

//! Whether compressing pays on a link: it does while the link is slower than the compressor.
//!
//! Always: the link's pace is what TCP measured of late, the compressor's what its own thread measured; with both at work
//! at once a transfer runs at the lesser of the compressor's pace and the link's times the ratio. While compressing does
//! not pay, one block in so many is compressed all the same, so that its pace stays known. What is not known of the link
//! is taken for slow. Never: a decision about what shrinks, which is the compressor's.

use std::time::{Duration, Instant};

use crate::transport::{ConnId, Transport};

/// While the link outruns the compressor, one block in this many is compressed.
const MEASURE_EVERY: u32 = 64;
/// How long what TCP says of the link holds.
const LINK_HOLDS: Duration = Duration::from_millis(20);

/// The paces of one link and one compressor.
#[derive(Debug, Default)]
pub struct Pace {
    /// How fast blocks were compressed of late, in plain bytes a second.
    compressor: Option<u64>,
    /// Blocks left plain since that was measured.
    passed: u32,
    /// The link's, in bytes a second, as TCP last said, and when that was.
    link: Option<u64>,
    asked: Option<(ConnId, Instant)>,
}

impl Pace {
    /// Learns the link's pace from `conn`.
    pub fn look_at(&mut self, transport: &Transport, conn: ConnId, now: Instant) {
        if !self.asked.is_some_and(|(asked, at)| asked == conn && now < at + LINK_HOLDS) {
            self.set_link(transport.tcp(conn).map(|tcp| tcp.delivery_bytes_per_s));
            self.asked = Some((conn, now));
        }
    }

    /// Takes this for the link's pace in bytes a second; `None`: it is not known, or of no concern.
    pub fn set_link(&mut self, bytes_per_s: Option<u64>) {
        self.link = bytes_per_s.filter(|rate| *rate > 0);
    }

    /// Whether the next block is to stay plain, because compressing would only slow the link down.
    pub fn is_outrun(&mut self) -> bool {
        let outrun = self.link.zip(self.compressor).is_some_and(|(link, compressor)| link > compressor);
        self.passed = if outrun { self.passed + 1 } else { 0 };
        if self.passed >= MEASURE_EVERY {
            self.passed = 0;
            return false;
        }
        outrun
    }

    /// Notes that a block of so many bytes was compressed in this time.
    pub fn note(&mut self, bytes: usize, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let new = (bytes as u64).saturating_mul(1_000_000_000) / nanos;
        self.compressor = Some(self.compressor.map_or(new, |old| (3 * old + new) / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_outruns_the_compressor_only_where_both_are_known() {
        let mut pace = Pace::default();
        let plain = |pace: &mut Pace| (0..2 * MEASURE_EVERY).filter(|_| pace.is_outrun()).count();
        pace.set_link(Some(u64::MAX));
        assert_eq!(plain(&mut pace), 0, "the compressor's pace is not known");
        pace.note(64 << 10, Duration::from_millis(1));
        assert_eq!(plain(&mut pace), 2 * MEASURE_EVERY as usize - 2, "all but what keeps the pace known");
        pace.set_link(Some(1));
        assert_eq!(plain(&mut pace), 0, "a slow link");
        pace.set_link(None);
        assert_eq!(plain(&mut pace), 0, "one that is not known");
    }
}

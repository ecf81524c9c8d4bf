//! How many bytes of the bulk lane this member lets be under way towards it, so that bulk yields when the path's delay grows.
//!
//! The receiver grants: the window that its TCP offers is the credit, so that the kernel keeps to it packet by packet and
//! nobody can wait for a grant that is lost. Always: no limit while the delay is near the least; never less than
//! [`LEAST_BYTES`], so that bulk goes on. Never: a clock or a socket; the caller says what it measured, once for each
//! heartbeat or so.

use std::time::Duration;

/// The least credit: a few packets.
const LEAST_BYTES: u32 = 16 << 10;
/// Where a credit begins that had no limit; grown beyond four times of it there is none again.
const FIRST_BYTES: u32 = 1 << 20;
/// How much longer than the least the round trip of heartbeats may take before bulk yields.
const TOLERATED: Duration = Duration::from_millis(10);

/// The credit of one lane.
#[derive(Debug, Default)]
pub struct Credit {
    bytes: Option<u32>,
}

impl Credit {
    /// The credit in bytes; `None`: as much as TCP likes.
    #[must_use]
    pub const fn bytes(&self) -> Option<u32> {
        self.bytes
    }

    /// Takes a measurement: by how much the path's round trip is above its least, and that least.
    pub fn measured(&mut self, excess: Duration, least: Duration) {
        // A quarter of a long round trip is no queue yet.
        let tolerated = TOLERATED.max(least / 4);
        self.bytes = match self.bytes {
            None if excess > tolerated => Some(FIRST_BYTES),
            None => None,
            Some(bytes) if excess > 2 * tolerated => Some((bytes / 2).max(LEAST_BYTES)),
            Some(bytes) if excess > tolerated => Some((bytes / 4 * 3).max(LEAST_BYTES)),
            // Slowly upwards: a queue that has just gone is soon back.
            Some(bytes) => Some(bytes + bytes / 8).filter(|bytes| *bytes <= 4 * FIRST_BYTES),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn bulk_yields_while_the_delay_lasts_and_comes_back() {
        let mut credit = Credit::default();
        credit.measured(millis(10), LEAST);
        assert_eq!(credit.bytes(), None, "what is tolerated limits nothing");
        for _ in 0..10 {
            credit.measured(millis(200), LEAST);
        }
        assert_eq!(credit.bytes(), Some(LEAST_BYTES), "within a second, and no further");
        let mut rounds = 0;
        while credit.bytes().is_some() {
            let before = credit.bytes();
            credit.measured(millis(5), LEAST);
            assert!(credit.bytes().is_none() || credit.bytes() > before);
            rounds += 1;
        }
        assert!((30..100).contains(&rounds), "no limit again after {rounds} measurements");
        credit.measured(millis(200), millis(1000));
        assert_eq!(credit.bytes(), None, "a long path's delay varies more");
    }

    /// A link that takes so many bytes each 100 ms: what is under way beyond that is its queue.
    #[test]
    fn it_settles_near_what_the_link_takes() {
        const TAKES: u32 = 125_000;
        let mut credit = Credit::default();
        let mut queues = Vec::new();
        for _ in 0..200 {
            let under_way = credit.bytes().unwrap_or(4 << 20).min(256 << 10);
            let queue_ms = u64::from(under_way) * 100 / u64::from(TAKES);
            credit.measured(millis(queue_ms), LEAST);
            queues.push(queue_ms);
        }
        let late = &queues[20..];
        assert!(late.iter().all(|queue_ms| (3..=25).contains(queue_ms)), "{late:?}");
    }
}

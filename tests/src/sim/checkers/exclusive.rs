//! No two members are exclusive at the same instant, the validity that an answer promised its client included
//! (invariant 1, protocol §3 to §6).

use ringpair_core::status::Status;
use ringpair_wire::id::Epoch;

use super::{super::member::name, super::time::MS, Verdict, rule};

/// What each member's clients may still believe.
#[derive(Debug, Default)]
pub struct Exclusive {
    /// Until when, and of which epoch.
    believed: [(u64, Epoch); 2],
    /// Members whose storage was replaced by an older copy: alone, it cannot know (protocol §2).
    forgetful: [bool; 2],
    /// The highest epoch that anybody was exclusive in.
    highest: Epoch,
    /// Answers that said `exclusive`.
    pub answers: u64,
}

impl Exclusive {
    /// A client asked this member now and was answered at once.
    ///
    /// # Errors
    /// If a client of the other member may believe the same.
    pub fn observed(&mut self, now: u64, m: usize, status: &Status) -> Verdict {
        if !status.exclusive {
            return Ok(());
        }
        self.answers += 1;
        if self.forgetful[m] && status.epoch < self.highest {
            return Ok(());
        }
        self.highest = self.highest.max(status.epoch);
        let (until, epoch) = self.believed[1 - m];
        let valid = now + status.valid_for_ms * MS;
        if valid > self.believed[m].0 {
            self.believed[m] = (valid, status.epoch);
        }
        rule("exclusive", until <= now, || {
            format!(
                "{} says exclusive in epoch {} while an answer of {} in epoch {epoch} holds for {} us more",
                name(m),
                status.epoch,
                name(1 - m),
                (until - now) / 1000
            )
        })
    }

    /// A storage was replaced: what it answers in an epoch that was outdone is not counted.
    pub fn replaced(&mut self, m: usize) {
        self.forgetful[m] = true;
    }
}

//! Writes between admission and acknowledgement (protocol §10): numbers, levels, and who may be told.
//!
//! Always cumulative: a level is reached only with every level before it. Always bounded. Never: a level said that is
//! not reached, or a number given twice.

use std::collections::VecDeque;

use ringpair_wire::id::{AckLevel, Epoch, Seq, Version};

use crate::{effect::WriteOutcome, input::WriteToken};

/// How far records have come; each bounds those after it only on its own side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Written to the own journal.
    pub written: Seq,
    /// Synced in the own journal.
    pub synced: Seq,
    /// In the backup's memory.
    pub peer_received: Seq,
    /// Synced on the backup.
    pub peer_durable: Seq,
    /// Readable on the backup.
    pub peer_applied: Seq,
}

impl Progress {
    /// The newest record that has reached `level`, and every level before it.
    #[must_use]
    pub fn reached(&self, level: AckLevel) -> Seq {
        let local = self.written.min(self.synced);
        let received = local.min(self.peer_received);
        let durable = received.min(self.peer_durable);
        match level {
            AckLevel::Async => self.written,
            AckLevel::Local => local,
            AckLevel::Received => received,
            AckLevel::Durable => durable,
            AckLevel::Applied => durable.min(self.peer_applied),
        }
    }
}

/// In which way an active may acknowledge now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: the lease lapsed, sockets are unread, or what it depends on is not persisted.
    Held,
    /// As asked.
    Pair,
    /// `async` as asked, all else at `local`, and says so; with `block`, what asked for more is told that it was not
    /// reached.
    Alone {
        /// `on_peer_loss = "block"`.
        block: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    token: WriteToken,
    last: Seq,
}

/// The writes that wait, one queue a level, each in the order of numbers.
#[derive(Debug, Default)]
pub struct Acks {
    queues: [VecDeque<Pending>; 5],
    len: usize,
}

const LEVELS: [AckLevel; 5] =
    [AckLevel::Async, AckLevel::Local, AckLevel::Received, AckLevel::Durable, AckLevel::Applied];

impl Acks {
    /// How many wait.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A write whose last record has this number waits for `level`.
    pub fn push(&mut self, token: WriteToken, last: Seq, level: AckLevel) {
        self.queues[level as usize].push_back(Pending { token, last });
        self.len += 1;
    }

    /// Lets the write that waits last for `level`, if it is this one and `first` comes next after it, end with `last`.
    pub fn extend(&mut self, token: WriteToken, first: Seq, last: Seq, level: AckLevel) -> bool {
        let newest = self.queues[level as usize].back_mut();
        let newest = newest.filter(|pending| pending.token == token && pending.last.0 + 1 == first.0);
        newest.map(|pending| pending.last = last).is_some()
    }

    /// Takes the next write that may be answered in `mode`: lowest level first.
    pub fn next(
        &mut self,
        epoch: Epoch,
        progress: &Progress,
        mode: Mode,
    ) -> Option<(WriteToken, Version, WriteOutcome)> {
        for (queue, level) in self.queues.iter_mut().zip(LEVELS) {
            let (needed, outcome) = match (mode, level) {
                (Mode::Held, _) => return None,
                (Mode::Pair, level) => (level, WriteOutcome::Reached { level, alone: false }),
                (Mode::Alone { .. }, AckLevel::Async | AckLevel::Local) => {
                    (level, WriteOutcome::Reached { level, alone: true })
                }
                (Mode::Alone { block: true }, _) => (AckLevel::Local, WriteOutcome::NotReached(AckLevel::Local)),
                (Mode::Alone { block: false }, _) => {
                    (AckLevel::Local, WriteOutcome::Reached { level: AckLevel::Local, alone: true })
                }
            };
            let reached = progress.reached(needed);
            if queue.front().is_none_or(|pending| pending.last > reached) {
                continue;
            }
            if let Some(first) = queue.pop_front() {
                self.len -= 1;
                return Some((first.token, Version { epoch, seq: first.last }, outcome));
            }
        }
        None
    }

    /// Takes everything that waits, in no particular level's order: their end is unknown.
    pub fn drain(&mut self) -> impl Iterator<Item = (WriteToken, Seq)> + '_ {
        self.len = 0;
        self.queues.iter_mut().flat_map(|queue| queue.drain(..)).map(|pending| (pending.token, pending.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: Epoch = Epoch(65_537);

    fn progress(written: u64, synced: u64, received: u64, durable: u64, applied: u64) -> Progress {
        Progress {
            written: Seq(written),
            synced: Seq(synced),
            peer_received: Seq(received),
            peer_durable: Seq(durable),
            peer_applied: Seq(applied),
        }
    }

    fn one_of_each() -> Acks {
        let mut acks = Acks::default();
        for (n, level) in LEVELS.into_iter().enumerate() {
            acks.push(WriteToken(n as u64), Seq(10), level);
        }
        acks
    }

    fn levels(acks: &mut Acks, progress: &Progress, mode: Mode) -> Vec<(u64, WriteOutcome)> {
        std::iter::from_fn(|| acks.next(EPOCH, progress, mode)).map(|(token, _, outcome)| (token.0, outcome)).collect()
    }

    #[test]
    fn a_level_is_answered_when_it_and_all_before_it_are_reached() {
        // REQ: protocol §10
        for (now, answered) in [
            (progress(9, 9, 9, 9, 9), 0),
            (progress(10, 0, 0, 0, 0), 1),
            (progress(10, 10, 0, 0, 0), 2),
            (progress(10, 0, 10, 10, 10), 1),
            (progress(10, 10, 10, 0, 0), 3),
            (progress(10, 10, 10, 10, 0), 4),
            (progress(10, 10, 9, 10, 10), 2),
            (progress(10, 10, 10, 10, 10), 5),
        ] {
            let mut acks = one_of_each();
            assert_eq!(levels(&mut acks, &now, Mode::Pair).len(), answered, "{now:?}");
            assert_eq!(acks.len(), 5 - answered);
        }
    }

    #[test]
    fn alone_says_local_and_alone_and_async_stays_async() {
        let all = progress(10, 10, 0, 0, 0);
        let said = levels(&mut one_of_each(), &all, Mode::Alone { block: false });
        assert_eq!(said[0], (0, WriteOutcome::Reached { level: AckLevel::Async, alone: true }));
        assert!(
            said[1..].iter().all(|(_, said)| *said == WriteOutcome::Reached { level: AckLevel::Local, alone: true })
        );
        assert_eq!(said.len(), 5);
        let said = levels(&mut one_of_each(), &all, Mode::Alone { block: true });
        assert!(said[2..].iter().all(|(_, said)| *said == WriteOutcome::NotReached(AckLevel::Local)));
    }

    #[test]
    fn a_write_that_grew_is_answered_with_its_last_record_only() {
        let mut acks = Acks::default();
        acks.push(WriteToken(1), Seq(10), AckLevel::Durable);
        assert!(!acks.extend(WriteToken(2), Seq(11), Seq(11), AckLevel::Durable), "another write");
        assert!(!acks.extend(WriteToken(1), Seq(12), Seq(12), AckLevel::Durable), "a record of another's in between");
        assert!(!acks.extend(WriteToken(1), Seq(11), Seq(11), AckLevel::Local), "another level");
        assert!(acks.extend(WriteToken(1), Seq(11), Seq(12), AckLevel::Durable));
        assert!(levels(&mut acks, &progress(12, 12, 12, 11, 11), Mode::Pair).is_empty());
        assert_eq!(levels(&mut acks, &progress(12, 12, 12, 12, 12), Mode::Pair).len(), 1);
        assert!(acks.is_empty());
    }

    #[test]
    fn nothing_is_answered_while_held() {
        let all = progress(10, 10, 10, 10, 10);
        let mut acks = one_of_each();
        assert!(levels(&mut acks, &all, Mode::Held).is_empty());
        assert_eq!(acks.drain().count(), 5);
        assert!(acks.is_empty());
    }
}

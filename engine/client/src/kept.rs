//! Changes that are not answered: their bytes, in the order of their numbers, until nobody needs them again.
//!
//! Always: numbers are consecutive, so that one is found by subtraction; bytes lie back to back in one buffer. Never:
//! two answers to one number.

use std::collections::VecDeque;

use ringpair_wire::{
    client::{begin_write, end_write, push_request},
    id::AckLevel,
};

/// So many bytes are sent without waiting for more.
const BATCH_BYTES: usize = 64 << 10;
/// So many changes go into one message at most.
const BATCH_CHANGES: u32 = 4096;
/// Room in a message for the fields around requests.
const SLACK_BYTES: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be sent.
    Queued,
    Sent,
    Answered,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    state: State,
    /// It was sent before and became unknown.
    was_unknown: bool,
    ack: Option<AckLevel>,
    len: u32,
}

/// The changes that are not answered.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    entries: VecDeque<Entry>,
    /// How many were let go of from the front.
    gone: u64,
    /// Bytes of the entries, from `start` on.
    bytes: Vec<u8>,
    start: usize,
    unanswered: usize,
    sent: usize,
    /// Bytes of what is queued.
    queued_bytes: usize,
    /// No entry before this index, whose bytes begin at this offset behind `start`, is queued.
    first_queued: (usize, usize),
}

impl Kept {
    /// How many are not answered.
    pub(crate) fn len(&self) -> usize {
        self.unanswered
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.unanswered == 0
    }

    /// How many were sent on the present connection and are not answered.
    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// Whether enough is queued to be sent.
    pub(crate) fn has_batch(&self) -> bool {
        self.queued_bytes >= BATCH_BYTES
    }

    /// Queues a change; its number.
    pub(crate) fn push(&mut self, ack: Option<AckLevel>, request: &[u8]) -> u64 {
        // What lies at the front is gone: moved seldom, and less than what is kept.
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..std::mem::take(&mut self.start));
        }
        self.bytes.extend_from_slice(request);
        self.entries.push_back(Entry { state: State::Queued, was_unknown: false, ack, len: request.len() as u32 });
        self.unanswered += 1;
        self.queued_bytes += request.len();
        self.gone + self.entries.len() as u64
    }

    /// Appends everything that is queued to `out`, as messages.
    pub(crate) fn send(&mut self, timeout_ms: u32, out: &mut Vec<u8>) {
        if self.queued_bytes == 0 {
            return;
        }
        let (mut index, mut at) = self.first_queued;
        at += self.start;
        while index < self.entries.len() {
            let Entry { state: State::Queued, ack, len, .. } = self.entries[index] else {
                at += self.entries[index].len as usize;
                index += 1;
                continue;
            };
            let begun = begin_write(out, ack, timeout_ms, self.gone + index as u64 + 1);
            let (mut count, mut bytes) = (0, 0);
            let mut next = Some(len);
            while let Some(len) = next {
                push_request(out, &self.bytes[at..at + len as usize]);
                self.entries[index].state = State::Sent;
                (index, at) = (index + 1, at + len as usize);
                (count, bytes) = (count + 1, bytes + len as usize + SLACK_BYTES);
                self.sent += 1;
                next = self.entries.get(index).and_then(|entry| {
                    let fits = count < BATCH_CHANGES && bytes + entry.len as usize <= BATCH_BYTES;
                    let alike = entry.state == State::Queued && entry.ack == ack;
                    (fits && alike).then_some(entry.len)
                });
            }
            end_write(out, begun, count);
        }
        self.queued_bytes = 0;
        self.first_queued = (index, at - self.start);
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let index = number.checked_sub(self.gone + 1)?;
        self.entries.get_mut(usize::try_from(index).ok()?)
    }

    /// Whether a change was sent before and became unknown.
    pub(crate) fn is_unknown(&mut self, number: u64) -> bool {
        self.entry(number).is_some_and(|entry| entry.was_unknown)
    }

    /// Notes an answer; false: nobody waits for one.
    pub(crate) fn answer(&mut self, number: u64) -> bool {
        let Some(entry) = self.entry(number) else { return false };
        if entry.state != State::Sent {
            return false;
        }
        entry.state = State::Answered;
        self.sent -= 1;
        self.unanswered -= 1;
        self.let_go();
        true
    }

    fn let_go(&mut self) {
        while let Some(Entry { state: State::Answered, len, .. }) = self.entries.front() {
            let len = *len as usize;
            self.start += len;
            self.gone += 1;
            self.entries.pop_front();
            let (index, at) = self.first_queued;
            self.first_queued = (index.saturating_sub(1), at.saturating_sub(len));
        }
    }

    /// A change that was sent is sent again, in its place. `may_be_taken`: it is unknown until then, else surely not taken.
    pub(crate) fn requeue(&mut self, number: u64, may_be_taken: bool) {
        let Some(entry) = self.entry(number) else { return };
        if entry.state == State::Sent {
            // Once unknown, a refusal of the repetition does not tell what became of the first.
            entry.was_unknown |= may_be_taken;
            entry.state = State::Queued;
            let len = entry.len as usize;
            self.sent -= 1;
            self.queued_bytes += len;
            self.first_queued = (0, 0);
        }
    }

    /// All that was sent and not answered is sent again.
    pub(crate) fn requeue_sent(&mut self, may_be_taken: bool) {
        for index in 0..self.entries.len() as u64 {
            self.requeue(self.gone + 1 + index, may_be_taken);
        }
    }

    /// Takes all that was sent and not answered.
    pub(crate) fn take_sent(&mut self, mut taken: impl FnMut(u64)) {
        for index in 0..self.entries.len() {
            if self.entries[index].state == State::Sent {
                self.entries[index].state = State::Answered;
                taken(self.gone + 1 + index as u64);
                self.sent -= 1;
                self.unanswered -= 1;
            }
        }
        self.let_go();
    }

    /// Takes all that is queued, with whether it is unknown.
    pub(crate) fn take_queued(&mut self, mut taken: impl FnMut(u64, bool)) {
        for index in 0..self.entries.len() {
            if self.entries[index].state == State::Queued {
                self.entries[index].state = State::Answered;
                taken(self.gone + 1 + index as u64, self.entries[index].was_unknown);
                self.unanswered -= 1;
            }
        }
        self.queued_bytes = 0;
        self.let_go();
        self.first_queued = (0, 0);
    }
}

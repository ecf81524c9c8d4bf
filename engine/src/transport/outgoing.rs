//! What waits to be sent on one connection: bounded, in order, small messages gathered, large bodies kept as they are.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::ring::{MAX_SLICES, Shared};

/// Bodies up to this length are copied together; longer ones are queued as slices of their own.
const GATHER_BYTES: usize = 8 << 10;
/// A gathered buffer is closed at this length.
const GATHERED_MAX_BYTES: usize = 64 << 10;

/// A queue of bytes.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    slices: VecDeque<Shared>,
    tail: Vec<u8>,
    bytes: usize,
}

impl Outgoing {
    /// How many bytes wait.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether none waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Queues bytes by copying them.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.bytes += bytes.len();
        if self.tail.len() >= GATHERED_MAX_BYTES {
            self.close_tail();
        }
    }

    /// Queues bytes without copying them if they are many.
    pub(super) fn push_shared(&mut self, bytes: Shared) {
        if bytes.len() <= GATHER_BYTES {
            self.push(&bytes);
            return;
        }
        self.close_tail();
        self.bytes += bytes.len();
        self.slices.push_back(bytes);
    }

    /// Takes up to `max_bytes` from the front, in at most [`MAX_SLICES`] slices; at least one byte if any waits.
    pub(super) fn take(&mut self, max_bytes: usize) -> Vec<Shared> {
        if self.slices.is_empty() {
            self.close_tail();
        }
        let (mut taken, mut room) = (Vec::new(), max_bytes.max(1));
        while room > 0 && taken.len() < MAX_SLICES {
            let Some(mut slice) = self.slices.pop_front() else { break };
            if slice.len() > room {
                let head = slice.split_to(room);
                self.slices.push_front(slice);
                slice = head;
            }
            room -= slice.len();
            self.bytes -= slice.len();
            taken.push(slice);
            if self.slices.is_empty() {
                self.close_tail();
            }
        }
        taken
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.slices.push_back(Shared::from(std::mem::take(&mut self.tail)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_in_order_within_the_bounds() {
        let mut out = Outgoing::default();
        let mut expected = Vec::new();
        for round in 0..200_u32 {
            let small = round.to_le_bytes();
            out.push(&small);
            expected.extend_from_slice(&small);
            if round % 3 == 0 {
                let large = vec![round as u8; 20_000];
                expected.extend_from_slice(&large);
                out.push_shared(Shared::from(large));
            }
        }
        assert_eq!(out.bytes(), expected.len());
        let mut got = Vec::new();
        while !out.is_empty() {
            let slices = out.take(30_000);
            assert!(slices.len() <= MAX_SLICES);
            let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
            assert!((1..=30_000).contains(&bytes));
            slices.iter().for_each(|slice| got.extend_from_slice(slice));
        }
        assert_eq!(got, expected);
        assert!(out.take(10).is_empty());
    }

    #[test]
    fn a_large_body_is_not_copied() {
        let mut out = Outgoing::default();
        let body = Shared::from(vec![1; 100_000]);
        let at = body.as_ptr();
        out.push(b"head");
        out.push_shared(body);
        let slices = out.take(usize::MAX);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[1].as_ptr(), at);
    }
}

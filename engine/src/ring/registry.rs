//! The free slots of a ring's table of registered files.
//!
//! A slot belongs to one descriptor from its registration until that descriptor's last clone is dropped, which may
//! happen in any thread; the driver then empties the slot in its next turn. A slot is never given out twice.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Waker;

/// Slots of one driver.
#[derive(Debug)]
pub(super) struct Slots {
    state: Mutex<State>,
    waker: Waker,
}

#[derive(Debug)]
struct State {
    free: Vec<u32>,
    released: Vec<u32>,
}

impl Slots {
    /// `count` free slots; `waker` rouses the driver that must empty released ones.
    pub(super) fn new(count: u32, waker: Waker) -> Self {
        Self { state: Mutex::new(State { free: (0..count).rev().collect(), released: Vec::new() }), waker }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free slot, or none.
    pub(super) fn take(&self) -> Option<u32> {
        self.state().free.pop()
    }

    /// Gives a slot back that the kernel no longer uses.
    pub(super) fn put_back(&self, slot: u32) {
        self.state().free.push(slot);
    }

    /// Gives a slot back that the driver must empty first.
    pub(super) fn release(&self, slot: u32) {
        self.state().released.push(slot);
        self.waker.wake();
    }

    /// The slots to empty.
    pub(super) fn released(&self) -> Vec<u32> {
        std::mem::take(&mut self.state().released)
    }
}

//! What must hold after every input, each as a function; checked in debug builds and by the simulator.

use crate::{Node, persisted::Right};

impl Node {
    /// Every invariant.
    ///
    /// # Panics
    /// When one does not hold: a programmer's error.
    pub fn check_invariants(&self) {
        assert!(self.invariant_one_part(), "one part at a time: {self:?}");
        assert!(self.invariant_own_epoch(), "an office is in the own, highest epoch: {self:?}");
        assert!(self.invariant_right(), "a right that is out belongs to an active or a start: {self:?}");
        assert!(self.invariant_promise(), "no promise while promoting: {self:?}");
        assert!(self.invariant_whole(), "an office is of a history: {self:?}");
        assert!(self.invariant_numbers(), "numbers go on from the journal's end: {self:?}");
    }

    /// A member has one part: it is active, becomes active, or follows; never two of these.
    #[must_use]
    pub fn invariant_one_part(&self) -> bool {
        let office = self.office.is_some();
        !(office
            && (self.promotion.is_some() || self.leader.is_some() || self.pull.is_some() || self.stepping.is_some()))
    }

    /// Who is active is so in an epoch of its own, the highest it knows.
    #[must_use]
    pub fn invariant_own_epoch(&self) -> bool {
        self.office.as_ref().is_none_or(|office| {
            office.epoch == self.p.highest_epoch
                && office.epoch == self.p.own_epoch
                && office.epoch.owner() == Some(self.config.member)
        })
    }

    /// What is held is no longer held once active; what is out counts in the lease.
    #[must_use]
    pub fn invariant_right(&self) -> bool {
        match (&self.office, self.p.right) {
            (Some(office), Right::None | Right::GivenBack(_)) => office.lease.right.is_none(),
            (Some(_), Right::Held(_)) => false,
            (Some(_), Right::Out(_)) => true,
            (None, right) => self.held_stored.is_none_or(|id| right == Right::Held(id)),
        }
    }

    /// A member that becomes active holds no right that heartbeats could promise by.
    #[must_use]
    pub fn invariant_promise(&self) -> bool {
        self.office.is_none() || self.held_stored.is_none()
    }

    /// Nobody is active without a history.
    #[must_use]
    pub fn invariant_whole(&self) -> bool {
        self.office.is_none() || self.p.history.is_some()
    }

    /// No number is given that the journal has.
    #[must_use]
    pub fn invariant_numbers(&self) -> bool {
        self.office.as_ref().is_none_or(|office| office.next_seq > self.journal.end.seq)
    }
}

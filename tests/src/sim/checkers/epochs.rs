//! No epoch is used twice or by both, and none is given up for a lower one (invariant 1, protocol §2).

use std::collections::BTreeMap;

use ringpair_core::{Persisted, status::Status};
use ringpair_wire::{control::Role, id::Epoch};

use super::{super::member::name, Verdict, rule};

/// Who used which epoch.
#[derive(Debug, Default)]
pub struct Epochs {
    used: BTreeMap<Epoch, usize>,
    /// The highest epoch that this storage holds, or was to hold by its living process.
    highest: [Epoch; 2],
    /// Epochs that a replaced storage may not know of.
    forgotten: Vec<(usize, Epoch)>,
}

impl Epochs {
    /// A member begins an office; `control` is what its disk holds at that moment.
    ///
    /// # Errors
    /// If the epoch was used, is not its own, or is not persisted.
    pub fn begins(&mut self, m: usize, epoch: Epoch, control: &Persisted) -> Verdict {
        let before = self.used.insert(epoch, m);
        let forgotten = self.forgotten.contains(&(m, epoch));
        rule("epochs", epoch.owner() == Some(name(m)), || {
            format!("{} uses epoch {epoch}, which is not its own", name(m))
        })?;
        rule("epochs", before.is_none() || forgotten, || format!("epoch {epoch} is used twice, now by {}", name(m)))?;
        let persisted = control.highest_epoch >= epoch && control.own_epoch == epoch;
        rule("epochs", persisted, || {
            format!(
                "{} begins epoch {epoch}; its disk knows {} and {}",
                name(m),
                control.highest_epoch,
                control.own_epoch
            )
        })
    }

    /// A state goes to the control file.
    ///
    /// # Errors
    /// If it knows less than the one before.
    pub fn persists(&mut self, m: usize, state: &Persisted) -> Verdict {
        let before = self.highest[m];
        self.highest[m] = before.max(state.highest_epoch);
        rule("epochs", state.highest_epoch >= before, || {
            format!("{} persists epoch {} after {before}", name(m), state.highest_epoch)
        })
    }

    /// A process ended, and this is what its disk holds: a state that never came there was never said nor acted upon
    /// (protocol §1), and nobody can know of it.
    pub fn died(&mut self, m: usize, control: Option<&Persisted>) {
        self.highest[m] = control.map_or(Epoch(0), |control| control.highest_epoch);
    }

    /// A frame of this office was accepted by a member whose disk knows `highest`.
    ///
    /// # Errors
    /// If the office was outdone.
    pub fn accepted(&mut self, m: usize, sender: Epoch, highest: Epoch) -> Verdict {
        rule("epochs", sender >= highest, || {
            format!("{} accepts a frame from epoch {sender}, and knows {highest}", name(m))
        })
    }

    /// A member shows itself.
    ///
    /// # Errors
    /// If it has a part in an epoch below one that its disk holds.
    pub fn observed(&mut self, m: usize, status: &Status, highest: Epoch) -> Verdict {
        let has_part = status.role != Role::None;
        rule("epochs", !has_part || status.epoch >= highest, || {
            format!("{} is {} in epoch {}, and knows {highest}", name(m), status.role.name(), status.epoch)
        })
    }

    /// A storage was replaced: what it knew is forgotten, through no fault of the member's.
    pub fn replaced(&mut self, m: usize) {
        self.highest[m] = Epoch(0);
        self.forgotten.extend(self.used.iter().filter(|(_, owner)| **owner == m).map(|(epoch, _)| (m, *epoch)));
    }
}

//! Nobody becomes active on an incomplete or empty copy, unless an operator forces it (protocol §8, design §8).

use super::{
    super::{disk::Disk, member::name},
    Verdict, rule,
};

/// What is truly whole.
#[derive(Debug, Default)]
pub struct Complete {
    /// A resynchronization began on this storage and has not ended.
    half_done: [bool; 2],
}

impl Complete {
    /// A member begins an office.
    ///
    /// # Errors
    /// If its copy is half done or has no history.
    pub fn promoted(&mut self, m: usize, disk: &Disk, forced: bool) -> Verdict {
        let half_done = std::mem::take(&mut self.half_done[m]);
        rule("complete", !half_done || forced, || {
            format!("{} becomes active in the midst of a resynchronization", name(m))
        })?;
        let named = disk.history.is_some();
        rule("complete", named, || format!("{} becomes active on empty storage", name(m)))
    }

    /// A member creates a history; `peer`: its peer's disk has one.
    ///
    /// # Errors
    /// If it does so on its own authority while another history exists, or as B.
    pub fn created(&mut self, m: usize, peer: bool, bootstrap: bool) -> Verdict {
        self.half_done[m] = false;
        rule("complete", m == 0, || "B creates a history".into())?;
        rule("complete", !peer || bootstrap, || {
            format!("{} elects itself with empty storage while {} has a history", name(m), name(1 - m))
        })
    }

    /// A resynchronization begins.
    pub fn begins_resync(&mut self, m: usize) {
        self.half_done[m] = true;
    }

    /// It has ended.
    pub fn ends_resync(&mut self, m: usize) {
        self.half_done[m] = false;
    }

    /// The storage was replaced.
    pub fn replaced(&mut self, m: usize, new: &Disk) {
        self.half_done[m] = new.control.as_ref().is_some_and(|control| !control.complete);
    }
}

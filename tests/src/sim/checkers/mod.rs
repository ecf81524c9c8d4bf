//! What must always hold, one file a rule. Checkers see everything, steer nothing, and are told what the simulated disks
//! and networks truly hold.
//!
//! Always: a verdict names the checker and what it saw. Never: a rule bent for a seed, but for what a destroyed copy or
//! an operator's force excuses.

use std::fmt;

use super::disk::Disk;

pub mod acknowledged;
pub mod archive;
pub mod complete;
pub mod converge;
pub mod epochs;
pub mod exclusive;
pub mod hooks;
pub mod prefix;

/// A broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which checker saw it.
    pub checker: &'static str,
    /// What it saw.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker, self.what)
    }
}

/// What a checker says.
pub type Verdict = Result<(), Violation>;

/// A rule holds, or this checker saw it broken.
pub fn rule(checker: &'static str, holds: bool, what: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(Violation { checker, what: what() }) }
}

/// All of them.
#[derive(Debug, Default)]
pub struct Checkers {
    /// One exclusive member at most.
    pub exclusive: exclusive::Exclusive,
    /// Epochs.
    pub epochs: epochs::Epochs,
    /// Acknowledgements.
    pub acknowledged: acknowledged::Acknowledged,
    /// Histories.
    pub prefix: prefix::Prefix,
    /// The divergence archive.
    pub archive: archive::Archive,
    /// Whole copies.
    pub complete: complete::Complete,
    /// Hooks.
    pub hooks: hooks::Hooks,
}

impl Checkers {
    /// Copies may be destroyed, or operators may override, in this seed.
    pub fn tainted(&mut self, tainted: bool) {
        self.acknowledged.tainted = tainted;
    }

    /// A storage was replaced by an older copy or by nothing.
    pub fn replaced(&mut self, m: usize, old: &Disk, new: &Disk) {
        self.archive.replaced(m, old, new);
        self.acknowledged.replaced(old, new);
        self.exclusive.replaced(m);
        self.epochs.replaced(m);
        self.prefix.replaced();
        self.complete.replaced(m, new);
    }
}

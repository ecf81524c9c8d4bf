//! Comparing a root, or a part of one, with the backup's listing of it.
//!
//! Always: both sides are walked in the same order and merged as they come, so that memory does not grow with the tree;
//! what cannot be read here counts as unknown, never as gone. Never: a difference told twice.

use std::{collections::VecDeque, sync::Arc};

use nix::errno::Errno;
use ringpair_fsmon::manifest::{self, Difference};
use ringpair_wire::mirror::{Entry, Kind, MirrorPath, Problem};

use crate::mirror::lister::{Listed, Lister, Mounts, Scope};

/// How many entries of the backup may wait here.
const CREDIT: u32 = 8192;

/// How many names of files with several are told.
const MAX_LINKED: usize = 262_144;

/// What one step found.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A path that differs.
    Different(MirrorPath, Difference),
    /// A path that is equal.
    Equal,
    /// A path that could not be read here.
    Unknown(Problem),
    /// What was mounted here is gone.
    Vanished(Problem),
    /// The backup's entries are awaited; with the credit to ask for, if any.
    Wait(Option<u32>),
    /// Work goes on in the next turn.
    Busy,
    /// The comparison is over.
    End,
}

/// A comparison under way.
pub struct Comparing {
    /// The number of the listing asked for.
    pub request: u64,
    /// Where it begins.
    pub start: MirrorPath,
    /// With contents; a verification that changes nothing.
    pub deep: bool,
    /// What asked for it, if it is a verification.
    pub verify: Option<u64>,
    /// Files here and their bytes, so far.
    pub counted: (u64, u64),
    /// Whether the counts are those of a whole root.
    pub whole: bool,
    /// Paths looked at so far.
    pub steps: u64,
    /// The last path that is only on the backup: what is below it goes with it.
    pub removed: Option<MirrorPath>,
    /// Inodes here with several names.
    pub linked: Vec<((u64, u64), MirrorPath)>,
    lister: Lister,
    mounts: Arc<Mounts>,
    here: Option<Entry>,
    here_ended: bool,
    there: VecDeque<Entry>,
    there_ended: bool,
    unknown: Vec<MirrorPath>,
    credit: u32,
}

impl Comparing {
    /// Begins; [`CREDIT`] entries are to be asked for with the first step.
    pub fn new(request: u64, scope: Scope, mounts: Arc<Mounts>) -> Result<Self, Errno> {
        let whole = scope.is_whole();
        Ok(Self {
            request,
            start: scope.start.clone(),
            deep: scope.deep,
            verify: None,
            counted: (0, 0),
            whole,
            steps: 0,
            removed: None,
            linked: Vec::new(),
            lister: Lister::new(scope, Arc::clone(&mounts))?,
            mounts,
            here: None,
            here_ended: false,
            there: VecDeque::new(),
            there_ended: false,
            unknown: Vec::new(),
            credit: 0,
        })
    }

    /// Takes a part of the backup's listing; what it could not list is unknown on both sides.
    pub fn part(&mut self, entries: Vec<Entry>, problems: &[Problem]) {
        self.credit = self.credit.saturating_sub(entries.len() as u32);
        self.there.extend(entries);
        self.unknown.extend(problems.iter().map(|problem| problem.path.clone()));
    }

    /// Mounts that were passed here.
    pub fn take_mounts(&mut self) -> Mounts {
        self.lister.take_mounts()
    }

    /// The backup's listing is over.
    pub const fn there_ended(&mut self) {
        self.there_ended = true;
    }

    /// The credit to ask for now.
    pub fn wanted_credit(&mut self) -> Option<u32> {
        let open = self.credit + self.there.len() as u32;
        if self.there_ended || open > CREDIT / 2 {
            return None;
        }
        self.credit += CREDIT - open;
        Some(CREDIT - open)
    }

    /// Looks at the next path of either side.
    pub fn step(&mut self, budget: &mut usize) -> Step {
        if self.here.is_none() && !self.here_ended {
            match self.lister.next(budget) {
                Listed::Entry(entry, inode) => {
                    if let Some(inode) = inode.filter(|_| self.linked.len() < MAX_LINKED) {
                        self.linked.push((inode, entry.path.clone()));
                    }
                    self.here = Some(entry);
                }
                Listed::Unknown(problem) => {
                    self.unknown.push(problem.path.clone());
                    if self.mounts.contains_key(&problem.path) {
                        return Step::Vanished(problem);
                    }
                    return Step::Unknown(problem);
                }
                Listed::Busy => return Step::Busy,
                Listed::End => self.here_ended = true,
            }
        }
        if self.there.is_empty() && !self.there_ended {
            return Step::Wait(self.wanted_credit());
        }
        if self.here.is_none() && self.there.is_empty() {
            return Step::End;
        }
        self.steps += 1;
        let (order, difference) = manifest::step(self.here.as_ref(), self.there.front());
        let there = if order.is_ge() { self.there.pop_front() } else { None };
        let here = if order.is_le() { self.here.take() } else { None };
        if let Some(here) = &here
            && here.meta.kind == Kind::File
        {
            self.counted.0 += 1;
            self.counted.1 += here.meta.size;
        }
        match (difference, here.or(there)) {
            (Some(Difference::OnlyThere), Some(entry)) if self.is_unknown(&entry.path) => Step::Equal,
            // What lies beneath a mount point is not what was mirrored.
            (Some(_), Some(entry)) if self.is_unknown(&entry.path) && self.is_in_mount(&entry.path) => Step::Equal,
            (Some(difference), Some(entry)) => Step::Different(entry.path, difference),
            _ => Step::Equal,
        }
    }

    fn is_in_mount(&self, path: &MirrorPath) -> bool {
        self.mounts.keys().any(|mount| path.starts_with(mount))
    }

    fn is_unknown(&self, path: &MirrorPath) -> bool {
        self.unknown.iter().any(|unknown| path.starts_with(unknown))
    }
}

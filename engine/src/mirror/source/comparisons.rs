//! What the source compares with the backup, one root or part of one after the other, and what it makes of a difference.
//!
//! Always: a difference marks its path, and a verification only lists it; a comparison rests while enough is marked.
//! Never: a root that is not open taken for an empty one.

use std::{os::fd::OwnedFd, sync::Arc};

use ringpair_fsmon::manifest::Difference;
use ringpair_wire::mirror::Problem;

use super::{
    MAX_REMEMBERED, MirrorMessage, MirrorPath, SEARCH_EVERY, Source,
    compare::{Comparing, Step},
};
use crate::mirror::lister::{Scope, TURN_BYTES};

/// How many paths are compared in one turn.
const TURN_STEPS: usize = 4096;
/// A comparison rests while so many paths are changed.
const ENOUGH_MARKS: usize = 16_384;

impl Source {
    pub(super) fn cannot_compare(&mut self, verify: Option<u64>, problem: Problem) {
        match verify {
            Some(id) => self.verification_problem(id, problem),
            None if self.problems.len() < MAX_REMEMBERED => drop(self.problems.insert(problem.path, problem.reason)),
            None => {}
        }
    }

    /// Goes on comparing; whether there was anything to do.
    pub(super) fn compare(&mut self) -> bool {
        if self.comparing.is_none() && !self.begin_comparison() {
            return false;
        }
        let mut budget = TURN_BYTES;
        for _ in 0..TURN_STEPS {
            let Some(comparing) = &mut self.comparing else { return true };
            let verify = comparing.verify;
            if verify.is_none() && self.dirty.len() > ENOUGH_MARKS {
                return true;
            }
            match comparing.step(&mut budget) {
                Step::Equal => {}
                Step::Different(path, difference) => self.different(verify, path, difference),
                // Named by the look at the mounts; a verification has to be told.
                Step::Vanished(problem) if verify.is_some() => self.cannot_compare(verify, problem),
                Step::Vanished(_) => self.next_look = std::time::Duration::ZERO,
                Step::Unknown(problem) => {
                    if verify.is_none() {
                        let stamp = self.dirty.stamp();
                        self.retry(problem.path.clone(), stamp, 1, problem.reason.clone());
                    }
                    self.cannot_compare(verify, problem);
                }
                Step::Busy => return true,
                Step::Wait(credit) => {
                    self.ask_credit(credit);
                    return false;
                }
                Step::End => self.end_comparison(),
            }
        }
        let credit = self.comparing.as_mut().and_then(Comparing::wanted_credit);
        self.ask_credit(credit);
        true
    }

    fn ask_credit(&mut self, credit: Option<u32>) {
        if let (Some(credit), Some(comparing)) = (credit, &self.comparing) {
            let request = MirrorMessage::ManifestRequest {
                epoch: self.options.epoch,
                request: comparing.request,
                root: comparing.start.clone(),
                deep: comparing.deep,
                credit,
            };
            self.push(request);
        }
    }

    fn begin_comparison(&mut self) -> bool {
        let (start, verify, deep) = match self.to_compare.pop_first() {
            Some(start) => (start, None, false),
            None if self.session.synced => match self.next_verified() {
                Some((id, deep, root)) => (root, Some(id), deep),
                None => return false,
            },
            None => return false,
        };
        // What is sent must be there before it is listed.
        self.finish_batch();
        self.requests += 1;
        let request = self.requests;
        let spec = self.set.covering(&start, true);
        let root = spec.and_then(|spec| self.roots.iter().find(|root| root.spec == *spec));
        let opened = root.map(|root| {
            let dir = root.dir.as_ref().ok_or_else(|| root.problem.clone().unwrap_or_default())?;
            let copy: OwnedFd = dir.try_clone().map_err(|e| e.to_string())?;
            let (spec, set) = (root.spec.clone(), Arc::clone(&self.set));
            let scope = Scope { spec, root: copy, set, start: start.clone(), deep };
            Comparing::new(request, scope, Arc::clone(&self.mounts)).map_err(|e| e.desc().to_owned())
        });
        match opened {
            Some(Ok(mut comparing)) => {
                if verify.is_none() {
                    let old: Vec<_> = self.problems.keys().filter(|path| path.starts_with(&start)).cloned().collect();
                    old.iter().for_each(|path| drop(self.problems.remove(path)));
                }
                comparing.verify = verify;
                let credit = comparing.wanted_credit();
                self.comparing = Some(comparing);
                self.ask_credit(credit);
            }
            // A root that is not open is named in the status, and compared when it is.
            Some(Err(reason)) if verify.is_some() => self.cannot_compare(verify, Problem { path: start, reason }),
            Some(Err(_)) | None => {}
        }
        true
    }

    fn different(&mut self, verify: Option<u64>, path: MirrorPath, difference: Difference) {
        if let Some(id) = verify {
            self.verified_different(id, Problem { path, reason: difference.describe().into() });
            return;
        }
        if difference == Difference::OnlyThere
            && let Some(comparing) = &mut self.comparing
        {
            if comparing.removed.as_ref().is_some_and(|top| path.starts_with(top)) {
                return;
            }
            comparing.removed = Some(path.clone());
        }
        self.dirty.mark(path, difference != Difference::Meta, true, self.now);
    }

    fn end_comparison(&mut self) {
        let Some(mut comparing) = self.comparing.take() else { return };
        self.found_mounts(comparing.take_mounts());
        if let Some(id) = comparing.verify {
            self.verified_paths(id, comparing.steps);
        } else if comparing.whole {
            self.counts.insert(comparing.start, comparing.counted);
        }
        for (inode, path) in comparing.linked {
            self.linked(inode, None, path);
        }
    }

    /// Looks for names of files with several: a comparison of what is watched meets them all, and finds what differs.
    pub(super) fn search_names(&mut self) {
        let due = self.now >= self.next_search || !self.barriers.is_empty();
        if self.search && due && self.to_compare.is_empty() && self.comparing.is_none() {
            self.search = false;
            self.next_search = self.now + SEARCH_EVERY;
            let watched = self.roots.iter().filter(|root| root.spec.continuous);
            self.to_compare.extend(watched.map(|root| root.spec.path.clone()));
        }
    }
}

//! `verify` of the files: every root compared with the backup's, while everything goes on.
//!
//! Always: what differs is looked at three times if anything changed meanwhile; what then still differs and changed
//! itself is changing, not different (interface §2). Never: a difference judged before the hints of its time were read.

use std::collections::VecDeque;

use ringpair_wire::mirror::Problem;

use super::{MAX_REMEMBERED, MirrorDifferences, MirrorPath, Source, SourceEvent};
use crate::mirror::MAX_PROBLEMS;

/// How often what changes is looked at.
const LOOKS: u32 = 3;

/// A verification under way; there is one at a time.
#[derive(Debug)]
pub struct Verification {
    id: u64,
    deep: bool,
    /// Roots that this look has not come to.
    roots: VecDeque<MirrorPath>,
    look: u32,
    /// The newest stamp at the beginning of this look, and whether nothing was under way then.
    since: (u64, bool),
    found: MirrorDifferences,
}

impl Source {
    /// Asks for a [`SourceEvent::Verified`]: both trees compared, with contents if `deep`. One that is under way was
    /// given up by who asked for it, and ends untold.
    pub fn verify(&mut self, id: u64, deep: bool) {
        // A root that has just vanished or come back is noticed now, not at the next look.
        self.look_at_roots();
        self.comparing.take_if(|comparing| comparing.verify.is_some());
        if self.roots.is_empty() {
            self.end_verification(id, MirrorDifferences::default());
            return;
        }
        self.dirty.note_changes(true);
        self.verification = Some(self.look_again(id, deep, 1));
    }

    fn look_again(&self, id: u64, deep: bool, look: u32) -> Verification {
        let roots = self.roots.iter().map(|root| root.spec.path.clone()).collect();
        let newest = self.dirty.newest();
        let since = (newest, self.dirty.settled(newest));
        Verification { id, deep, roots, look, since, found: MirrorDifferences::default() }
    }

    /// The next root to be compared for a verification.
    pub(super) fn next_verified(&mut self) -> Option<(u64, bool, MirrorPath)> {
        let verification = self.verification.as_mut()?;
        Some((verification.id, verification.deep, verification.roots.pop_front()?))
    }

    fn found(&mut self, id: u64) -> Option<&mut MirrorDifferences> {
        self.verification.as_mut().filter(|verification| verification.id == id).map(|it| &mut it.found)
    }

    pub(super) fn verified_paths(&mut self, id: u64, count: u64) {
        if let Some(found) = self.found(id) {
            found.compared += count;
        }
    }

    pub(super) fn verified_different(&mut self, id: u64, difference: Problem) {
        match self.found(id) {
            Some(found) if found.different.len() < MAX_REMEMBERED => found.different.push(difference),
            Some(found) => found.more += 1,
            None => {}
        }
    }

    pub(super) fn verification_problem(&mut self, id: u64, problem: Problem) {
        match self.found(id) {
            Some(found) if found.problems.len() < MAX_PROBLEMS => found.problems.push(problem),
            Some(found) => found.more += 1,
            None => {}
        }
    }

    /// Ends a look whose roots are compared: with another one, or with the answer. Called when the watch was read after
    /// the last comparison, so that what changed during it is known.
    pub(super) fn judge_verification(&mut self) {
        let comparing = self.comparing.as_ref().is_some_and(|comparing| comparing.verify.is_some());
        let Some(verification) = self.verification.take_if(|it| it.roots.is_empty() && !comparing) else { return };
        let Verification { id, deep, look, since, mut found, .. } = verification;
        let newest = self.dirty.newest();
        let busy = since != (newest, true) || !self.dirty.settled(newest);
        if busy && !found.different.is_empty() && look < LOOKS {
            self.verification = Some(self.look_again(id, deep, look + 1));
            return;
        }
        if busy {
            let (changing, different) =
                std::mem::take(&mut found.different).into_iter().partition(|it: &Problem| self.is_changing(&it.path));
            let (changing, different): (Vec<Problem>, Vec<Problem>) = (changing, different);
            found.different = different;
            found.changing = changing.into_iter().map(|it| it.path).take(MAX_PROBLEMS).collect();
        }
        found.more += found.different.len().saturating_sub(MAX_PROBLEMS) as u64;
        found.different.truncate(MAX_PROBLEMS);
        self.end_verification(id, found);
    }

    /// Whether a path is on its way, or has changed since the verification began; not if it failed again and again.
    fn is_changing(&self, path: &MirrorPath) -> bool {
        self.dirty.has_changed(path)
            || self.dirty.get(path).is_some_and(|mark| mark.attempts <= 1)
            || self.in_flight.values().any(|change| change.path == *path && change.attempts <= 1)
            || self.stream.as_ref().is_some_and(|stream| stream.path == *path && stream.attempts <= 1)
    }

    /// Ends a verification that cannot go on, saying why.
    pub(super) fn abandon_verification(&mut self, reason: &str) {
        if let Some(Verification { id, mut found, .. }) = self.verification.take() {
            found.problems.push(Problem { path: MirrorPath::default(), reason: reason.into() });
            self.end_verification(id, found);
        }
    }

    fn end_verification(&mut self, id: u64, differences: MirrorDifferences) {
        self.dirty.note_changes(false);
        self.events.push_back(SourceEvent::Verified { id, differences });
    }
}

impl MirrorDifferences {
    /// Whether nothing differs or changes, and everything could be compared.
    #[must_use]
    pub fn is_identical(&self) -> bool {
        self.different.is_empty() && self.changing.is_empty() && self.problems.is_empty() && self.more == 0
    }
}

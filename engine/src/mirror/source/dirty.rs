//! The set of changed paths: what must still become durable on the backup.
//!
//! Always: one mark a path, however often it changes; every mark has a stamp, and a barrier waits for the stamps given
//! out before it. Parents come before children. Never: more marks than [`MAX_MARKS`]; past them everything is compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    time::Duration,
};

use ringpair_wire::mirror::MirrorPath;

/// How many changed paths are kept one by one.
pub const MAX_MARKS: usize = 262_144;

/// A changed path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its number.
    pub stamp: u64,
    /// Whether its content may have changed, or only its metadata.
    pub content: bool,
    /// Whether a comparison found it, not an event.
    pub compared: bool,
    /// Not to be read before this: its writer is at work, or it failed lately.
    pub not_before: Duration,
    /// How often it was tried in vain.
    pub attempts: u32,
}

/// The changed paths.
#[derive(Debug, Default)]
pub struct Dirty {
    marks: BTreeMap<MirrorPath, Mark>,
    /// Directories whose times are to be set once everything below them is sent.
    times: BTreeMap<MirrorPath, u64>,
    outstanding: BTreeSet<u64>,
    stamp: u64,
    cursor: Option<MirrorPath>,
    /// Paths that changed, and directories that were renamed, while a verification runs; at most [`MAX_MARKS`].
    noted: Option<(BTreeSet<MirrorPath>, BTreeSet<MirrorPath>)>,
}

impl Dirty {
    /// How many paths are changed.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Whether nothing is.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty() && self.times.is_empty()
    }

    /// Whether there are too many to keep.
    pub fn is_overfull(&self) -> bool {
        self.marks.len() + self.times.len() > MAX_MARKS
    }

    /// Lets go of every mark, since a comparison will find what they stood for; what is under way stays outstanding.
    pub fn give_up(&mut self) {
        let Self { marks, times, outstanding, .. } = self;
        for stamp in marks.values().map(|mark| mark.stamp).chain(times.values().copied()) {
            outstanding.remove(&stamp);
        }
        marks.clear();
        times.clear();
    }

    /// The newest stamp given out.
    pub const fn newest(&self) -> u64 {
        self.stamp
    }

    /// Whether everything stamped up to `stamp` is settled.
    pub fn settled(&self, stamp: u64) -> bool {
        self.outstanding.first().is_none_or(|&oldest| oldest > stamp)
    }

    /// A stamp that is outstanding until [`Self::settle`].
    pub fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.outstanding.insert(self.stamp);
        self.stamp
    }

    /// What carried this stamp is durable, or named as not.
    pub fn settle(&mut self, stamp: u64) {
        self.outstanding.remove(&stamp);
    }

    /// From now on, or no longer, it is remembered what changes.
    pub fn note_changes(&mut self, on: bool) {
        self.noted = on.then(Default::default);
    }

    /// Whether a path was marked, or renamed with what holds it, since [`Self::note_changes`].
    pub fn has_changed(&self, path: &MirrorPath) -> bool {
        self.noted.as_ref().is_some_and(|(marked, moved)| {
            marked.contains(path)
                || std::iter::successors(Some(path.clone()), MirrorPath::parent).any(|at| moved.contains(&at))
        })
    }

    /// Everything at and below a path may have changed.
    pub fn note_moved(&mut self, path: &MirrorPath) {
        if let Some((_, moved)) = self.noted.as_mut().filter(|(_, moved)| moved.len() < MAX_MARKS) {
            moved.insert(path.clone());
        }
    }

    fn note(&mut self, path: &MirrorPath) {
        if let Some((marked, _)) = self.noted.as_mut().filter(|(marked, _)| marked.len() < MAX_MARKS) {
            marked.insert(path.clone());
        }
    }

    /// Marks a path; a mark that is there becomes the stronger of both and keeps its stamp.
    pub fn mark(&mut self, path: MirrorPath, content: bool, compared: bool, not_before: Duration) {
        self.note(&path);
        if let Some(mark) = self.marks.get_mut(&path) {
            mark.content |= content;
            mark.compared |= compared;
            mark.not_before = mark.not_before.min(not_before);
            return;
        }
        let stamp = self.stamp();
        self.marks.insert(path, Mark { stamp, content, compared, not_before, attempts: 0 });
    }

    /// Puts a mark back that could not be worked on. Named as a problem, it is no longer outstanding.
    pub fn put_back(&mut self, path: MirrorPath, mark: Mark, named: bool) {
        if named {
            self.settle(mark.stamp);
        }
        let mark = match self.marks.remove(&path) {
            None => mark,
            Some(newer) => {
                // One of the two stamps goes on: the older one, unless it was named.
                let (gone, kept) = if named { (mark.stamp, newer.stamp) } else { (newer.stamp, mark.stamp) };
                self.settle(gone);
                Mark {
                    stamp: kept,
                    content: newer.content || mark.content,
                    compared: newer.compared || mark.compared,
                    not_before: newer.not_before.max(mark.not_before),
                    attempts: newer.attempts.max(mark.attempts),
                }
            }
        };
        self.marks.insert(path, mark);
    }

    /// A directory's times changed.
    pub fn touch(&mut self, dir: MirrorPath) {
        self.note(&dir);
        if !self.times.contains_key(&dir) {
            let stamp = self.stamp();
            self.times.insert(dir, stamp);
        }
    }

    /// The mark of a path.
    pub fn get(&self, path: &MirrorPath) -> Option<&Mark> {
        self.marks.get(path)
    }

    /// How many marks lie at or below a path; counts to `enough` only.
    pub fn below(&self, path: &MirrorPath, enough: usize) -> usize {
        self.marks.range(path.clone()..).take_while(|(below, _)| below.starts_with(path)).take(enough).count()
    }

    /// Takes the next mark that may be worked on, round and round; `all`: also those that were to wait. `skip` is left.
    pub fn next(&mut self, now: Duration, all: bool, skip: Option<&MirrorPath>) -> Option<(MirrorPath, Mark)> {
        let fits = |(path, mark): &(&MirrorPath, &Mark)| {
            Some(*path) != skip && (mark.not_before <= now || (all && mark.attempts == 0))
        };
        let after = self.cursor.take().map_or(Bound::Unbounded, Bound::Excluded);
        let found =
            self.marks.range((after.clone(), Bound::Unbounded)).find(fits).or_else(|| self.marks.iter().find(fits));
        let path = found.map(|(path, _)| path.clone())?;
        let mark = self.marks.remove(&path)?;
        self.cursor = Some(path.clone());
        Some((path, mark))
    }

    /// Takes the deepest directory whose times are to be set and below which nothing is marked.
    pub fn next_times(&mut self) -> Option<(MirrorPath, u64)> {
        let quiet =
            |dir: &MirrorPath| self.marks.range(dir.clone()..).next().is_none_or(|(path, _)| !path.starts_with(dir));
        let dir = self.times.keys().rev().find(|dir| quiet(dir)).cloned()?;
        self.times.remove_entry(&dir)
    }

    /// When the next waiting mark may be worked on.
    pub fn next_timeout(&self) -> Option<Duration> {
        // A thousand suffices: the loop comes back after each.
        self.marks.values().take(1024).map(|mark| mark.not_before).min()
    }

    /// Removes everything at and below a path.
    pub fn forget(&mut self, path: &MirrorPath) {
        let gone: Vec<_> = self
            .marks
            .range(path.clone()..)
            .take_while(|(below, _)| below.starts_with(path))
            .map(|(p, _)| p.clone())
            .collect();
        for path in gone {
            if let Some(mark) = self.marks.remove(&path) {
                self.settle(mark.stamp);
            }
        }
        let gone: Vec<_> = self
            .times
            .range(path.clone()..)
            .take_while(|(below, _)| below.starts_with(path))
            .map(|(p, _)| p.clone())
            .collect();
        for path in gone {
            if let Some(stamp) = self.times.remove(&path) {
                self.settle(stamp);
            }
        }
    }

    /// What was at and below `from` is at `to` now.
    pub fn rename(&mut self, from: &MirrorPath, to: &MirrorPath) {
        self.note_moved(from);
        self.note_moved(to);
        let moved: Vec<_> = self
            .marks
            .range(from.clone()..)
            .take_while(|(path, _)| path.starts_with(from))
            .map(|(p, _)| p.clone())
            .collect();
        for path in moved {
            if let (Some(mark), Some(new)) = (self.marks.remove(&path), path.rebased(from, to)) {
                self.put_back(new, mark, false);
            }
        }
        let moved: Vec<_> = self
            .times
            .range(from.clone()..)
            .take_while(|(path, _)| path.starts_with(from))
            .map(|(p, _)| p.clone())
            .collect();
        for path in moved {
            let Some(stamp) = self.times.remove(&path) else { continue };
            let other = path.rebased(from, to).map_or(Some(stamp), |new| self.times.insert(new, stamp));
            other.into_iter().for_each(|other| self.settle(other));
        }
    }

    /// Forgets all marks: everything will be compared.
    pub fn clear(&mut self) {
        self.marks.clear();
        self.times.clear();
        self.outstanding.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> MirrorPath {
        MirrorPath::parse(text.as_bytes()).unwrap()
    }

    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn marks_coalesce_and_keep_their_oldest_stamp() {
        let mut dirty = Dirty::default();
        dirty.mark(path("a"), false, false, NOW * 2);
        let barrier = dirty.newest();
        dirty.mark(path("a"), true, false, NOW);
        dirty.mark(path("b"), true, false, NOW);
        let (a, mark) = dirty.next(NOW, false, None).unwrap();
        assert_eq!((a, mark.content, mark.stamp), (path("a"), true, barrier));
        assert!(!dirty.settled(barrier));
        dirty.settle(mark.stamp);
        assert!(dirty.settled(barrier) && !dirty.settled(dirty.newest()));
    }

    #[test]
    fn a_hot_path_does_not_hold_up_the_others() {
        let mut dirty = Dirty::default();
        for name in ["a", "b", "c"] {
            dirty.mark(path(name), true, false, NOW);
        }
        let mut seen = Vec::new();
        for _ in 0..3 {
            let (taken, _) = dirty.next(NOW, false, None).unwrap();
            dirty.mark(taken.clone(), true, false, NOW);
            seen.push(taken);
        }
        assert_eq!(seen, ["a", "b", "c"].map(path));
    }

    #[test]
    fn a_renamed_directory_takes_its_marks_along() {
        let mut dirty = Dirty::default();
        dirty.mark(path("a/x"), true, false, NOW);
        dirty.mark(path("a.b"), true, false, NOW);
        dirty.touch(path("a"));
        dirty.rename(&path("a"), &path("z/q"));
        assert!(dirty.get(&path("z/q/x")).is_some() && dirty.get(&path("a.b")).is_some());
        assert!(dirty.get(&path("a/x")).is_none());
        assert_eq!(dirty.next_times(), None, "its times wait for what is below it");
        dirty.forget(&path("z/q"));
        assert_eq!(dirty.len(), 1);
        assert_eq!(dirty.next_times(), None);
    }
}

//! What the kernel says has changed, as hints: marks, moves, comparisons.
//!
//! Always: a hint marks a path, it never says what the path is; what cannot be followed one by one is compared. Never:
//! more marks, moves or comparisons waiting than their bounds.

use std::{sync::Arc, time::Duration};

use ringpair_fsmon::watch::{WatchEvent, WatchRoot, Watcher};
use ringpair_wire::mirror::Kind;

use super::{BarrierStage, MirrorPath, Move, Source, UNSETTLED, roots::Look};

/// How many moves may wait to be sent.
const MAX_MOVES: usize = 65_536;
/// How many places may wait to be compared.
const MAX_COMPARISONS: usize = 16_384;

impl Source {
    /// Marks everything anew: first the new watch, then the old one is read for the last time, so that nothing is missed.
    pub(super) fn rewatch(&mut self) {
        let watched = self.roots.iter().filter(|root| root.spec.continuous);
        let mut roots: Vec<_> = watched
            .filter_map(|root| {
                let dir = Arc::clone(root.dir.as_ref()?);
                Some(WatchRoot { path: root.spec.path.clone(), dir, recursive: root.spec.recursive })
            })
            .collect();
        roots.extend(self.watched_mounts());
        let made = if roots.is_empty() { Ok(None) } else { Watcher::new(roots, self.options.force_inotify).map(Some) };
        match made {
            Ok(watcher) => {
                self.watch_error = None;
                if let Some(mut old) = std::mem::replace(&mut self.watcher, watcher) {
                    let mut events = Vec::new();
                    while old.read(&mut events).is_ok_and(|count| count > 0) {}
                    events.into_iter().for_each(|event| self.handle_event(event));
                }
            }
            Err(error) => {
                self.watch_error = Some(format!(
                    "directories cannot be watched: {error}. Try: sysctl fs.inotify.max_user_instances=512"
                ));
            }
        }
    }

    pub(super) fn look_at_roots(&mut self) {
        let (mut opened, mut lost) = (Vec::new(), false);
        for root in &mut self.roots {
            match root.look() {
                Look::Opened => opened.push(root.spec.path.clone()),
                Look::Lost => lost = true,
                Look::Same if root.emptied && !root.is_empty() => {
                    root.emptied = false;
                    root.problem = None;
                    self.to_compare.insert(root.spec.path.clone());
                }
                Look::Same => {}
            }
        }
        if lost || !opened.is_empty() {
            self.rewatch();
        }
        self.look_at_mounts();
        self.to_compare.extend(opened);
    }

    /// Reads the watch's queue; how many events there were.
    pub(super) fn drain_watch(&mut self) -> usize {
        let Some(watcher) = &mut self.watcher else { return 0 };
        let mut events = Vec::new();
        match watcher.read(&mut events) {
            Ok(count) => {
                events.into_iter().for_each(|event| self.handle_event(event));
                if self.dirty.is_overfull() || self.moves.len() > MAX_MOVES || self.to_compare.len() > MAX_COMPARISONS {
                    self.let_go();
                }
                count
            }
            Err(error) => {
                self.status.last_error = Some(format!("the watch failed: {error}"));
                self.rewatch();
                self.overflow();
                0
            }
        }
    }

    pub(super) fn overflow(&mut self) {
        self.status.overflows += 1;
        self.rescan();
    }

    /// Too much has changed to be followed one by one: it is let go of, and found again by comparing.
    fn let_go(&mut self) {
        self.dirty.give_up();
        for moved in std::mem::take(&mut self.moves) {
            self.dirty.settle(moved.stamp);
        }
        let roots = &self.roots;
        self.to_compare.retain(|path| roots.iter().any(|root| root.spec.path == *path));
        // Whoever waited for what is let go of waits for the comparison, and for what it finds.
        self.session.compared_at = None;
        for (_, stage) in &mut self.barriers {
            if matches!(stage, BarrierStage::Settle(_)) {
                *stage = BarrierStage::Compare;
            }
        }
        self.overflow();
    }

    /// The roots to be compared as a whole: what is watched, and what is copied once where that is not done.
    pub(super) fn compared_roots(&self) -> impl Iterator<Item = MirrorPath> + '_ {
        let initial = self.session.initial_done != Some(self.session.instance);
        self.roots.iter().filter(move |root| root.spec.continuous || initial).map(|root| root.spec.path.clone())
    }

    /// Compares every root again.
    pub(super) fn rescan(&mut self) {
        self.status.rescans += 1;
        tracing::warn!("changes of mirrored files were lost or too many: comparing everything");
        let roots: Vec<_> = self.compared_roots().collect();
        roots.iter().for_each(|root| self.dirty.note_moved(root));
        self.to_compare.extend(roots);
        // A comparison under way may have passed what changed.
        if let Some(comparing) = self.comparing.take_if(|comparing| comparing.verify.is_none()) {
            self.to_compare.insert(comparing.start);
        }
    }

    pub(super) fn handle_event(&mut self, event: WatchEvent) {
        if !self.session.connected && !matches!(event, WatchEvent::Unmounted) {
            // Without a backup nothing is kept one by one: its return compares everything.
            return;
        }
        match event {
            WatchEvent::Changed { path, unsettled, content, name, subtree } => {
                if subtree {
                    self.compare_soon(path.clone(), true);
                }
                let not_before = if unsettled { self.now + UNSETTLED } else { self.now };
                self.mark(path, content, not_before, name);
            }
            WatchEvent::Renamed { from, to, is_dir } => self.moved(from, to, is_dir),
            WatchEvent::Exchanged { a, b } => self.exchanged(a, b),
            WatchEvent::Overflow => self.overflow(),
            WatchEvent::Unmounted => {
                self.next_look = Duration::ZERO;
            }
        }
    }

    pub(super) fn mark(&mut self, path: MirrorPath, content: bool, not_before: Duration, name: bool) {
        if self.set.covering(&path, false).is_none() && self.set.covering(&path, true).is_none() {
            return;
        }
        if name && let Some(parent) = path.parent() {
            self.touch(parent);
        }
        self.dirty.mark(path, content, false, not_before);
    }

    pub(super) fn touch(&mut self, dir: MirrorPath) {
        if self.set.covering(&dir, true).is_some_and(|root| root.recursive) {
            self.dirty.touch(dir);
        }
    }

    /// Something was renamed within the mirror.
    pub(super) fn moved(&mut self, from: MirrorPath, to: MirrorPath, is_dir: bool) {
        let kind = if is_dir { Kind::Dir } else { Kind::File };
        let covered = |path: &MirrorPath| self.set.left_out(path, kind).is_none();
        let (here, there) = (covered(&from), covered(&to));
        let known = self.dirty.get(&from).is_none_or(|mark| !mark.content);
        for parent in [from.parent(), to.parent()].into_iter().flatten() {
            self.touch(parent);
        }
        if !(here && there && (known || is_dir)) {
            // Into or out of the mirror, or a file that is to be sent anyway.
            self.dirty.mark(from, true, false, self.now);
            if is_dir {
                self.compare_soon(to.clone(), true);
            }
            self.dirty.mark(to, true, false, self.now);
            return;
        }
        self.abort_stream_at(&from);
        self.abort_stream_at(&to);
        self.dirty.forget(&to);
        self.dirty.rename(&from, &to);
        let comparing = !self.to_compare.is_empty() || self.comparing.is_some() || !self.session.ready;
        if comparing {
            self.compare_soon(to.clone(), is_dir);
        }
        let stamp = self.dirty.stamp();
        self.moves.push_back(Move { from, to, exchange: false, is_dir, stamp });
    }

    pub(super) fn exchanged(&mut self, a: MirrorPath, b: MirrorPath) {
        for path in [&a, &b] {
            self.abort_stream_at(path);
            if let Some(parent) = path.parent() {
                self.touch(parent);
            }
        }
        let unsent = [&a, &b].iter().any(|path| self.dirty.below(path, 1) > 0);
        if unsent || self.comparing.is_some() || !self.to_compare.is_empty() || !self.session.ready {
            for path in [a, b] {
                self.compare_soon(path.clone(), true);
                self.dirty.mark(path, true, false, self.now);
            }
            return;
        }
        self.dirty.note_moved(&a);
        self.dirty.note_moved(&b);
        let stamp = self.dirty.stamp();
        self.moves.push_back(Move { from: a, to: b, exchange: true, is_dir: true, stamp });
    }

    /// Compares a path and what is below it once what is being compared now is done; a file is looked at.
    pub(super) fn compare_soon(&mut self, path: MirrorPath, is_dir: bool) {
        self.dirty.note_moved(&path);
        if !is_dir || self.set.covering(&path, true).is_none() {
            self.dirty.mark(path, true, false, self.now);
        } else if !std::iter::successors(Some(path.clone()), MirrorPath::parent).any(|at| self.to_compare.contains(&at))
        {
            self.to_compare.insert(path);
        }
    }
}

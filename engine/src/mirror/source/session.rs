//! The source's session with the backup: comparing, sending, acknowledgements, barriers.
//!
//! Always: moves go before anything marked after them, per path strictly in order; what fails is tried again with growing
//! pauses and named from the second time on. Never: content before its announcement, or more under way than the bounds.

use std::{hash::Hasher, os::fd::OwnedFd, sync::Arc, time::Duration};

use ringpair_fsmon::{manifest::Difference, meta::Stat};
use ringpair_wire::mirror::{Change, Item, Kind, MAX_LIST, Problem};

use super::{
    BarrierStage, FIRST_PAUSE, InFlight, LONGEST_PAUSE, MAX_REMEMBERED, MirrorDifferences, MirrorError, MirrorMessage,
    MirrorPath, Move, SEARCH_EVERY, Session, Source, SourceEvent, UNSETTLED,
    compare::{Comparing, Step},
    dirty::Mark,
    item_weight,
    send::{Now, Piece, Stream},
    weight,
};
use crate::mirror::{MAX_PROBLEMS, lister::TURN_BYTES};

/// How many bytes may wait to be sent.
const OUTBOX_BYTES: usize = 4 << 20;
/// How many changes may be under way, and how many bytes.
const WINDOW: usize = 16_384;
const WINDOW_BYTES: u64 = 64 << 20;
/// A message of changes is closed at this size.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ITEMS: usize = 512;
/// How many paths are worked on in one turn, sent or compared.
const TURN_PATHS: usize = 512;
const TURN_STEPS: usize = 4096;
/// A comparison rests while so many paths are changed.
const ENOUGH_MARKS: usize = 16_384;
/// How many inodes with several names are remembered.
const MAX_LINKED: usize = 262_144;

impl Source {
    pub(super) fn restart_session(&mut self) {
        self.reset_session();
        self.session.number += 1;
        let roots = MirrorMessage::Roots {
            epoch: self.options.epoch,
            session: self.session.number,
            roots: self.set.roots().to_vec(),
            exceptions: self.set.exceptions().iter().cloned().collect(),
            devices: self.set.devices(),
        };
        self.push(roots);
    }

    pub(super) fn reset_session(&mut self) {
        let Session { number, connected, initial_done, .. } = std::mem::take(&mut self.session);
        self.session = Session { number, connected, initial_done, ..Session::default() };
        self.dirty.clear();
        self.moves.clear();
        self.stream = None;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.batch.clear();
        self.batch_bytes = 0;
        self.outbox.clear();
        self.outbox_bytes = 0;
        self.unannounced.clear();
        self.announced_through = self.generation;
        self.to_compare.clear();
        self.comparing = None;
        self.links.clear();
        self.search = false;
        self.problems.clear();
        for (_, stage) in &mut self.barriers {
            *stage = BarrierStage::Drain;
        }
        self.verifying.clear();
        for (id, (mut differences, _)) in std::mem::take(&mut self.differences) {
            let reason = "the connection to the backup was lost".into();
            differences.problems.push(Problem { path: MirrorPath::default(), reason });
            self.events.push_back(SourceEvent::Verified { id, differences });
        }
    }

    fn push(&mut self, message: MirrorMessage) {
        self.outbox_bytes += weight(&message);
        self.outbox.push_back((self.generation, message));
    }

    /// Takes a message of the backup.
    ///
    /// # Errors
    /// [`MirrorError::Protocol`]: the connection is to be closed. [`MirrorError::LowerEpoch`]: this member is not the
    /// active any more.
    pub fn handle_message(&mut self, message: MirrorMessage, now: Duration) -> Result<(), MirrorError> {
        self.now = now;
        match message {
            MirrorMessage::RootsReady { session, instance, problems } => {
                if session == self.session.number && self.session.connected {
                    self.roots_ready(instance, problems);
                }
            }
            MirrorMessage::Applied { generations } => generations.into_iter().for_each(|g| self.applied(g)),
            MirrorMessage::Failed { generation, reason } => self.failed(generation, reason),
            MirrorMessage::ManifestPart { request, entries, problems } => {
                if let Some(comparing) = self.comparing.as_mut().filter(|c| c.request == request) {
                    let sorted = entries.is_sorted_by(|a, b| a.path < b.path);
                    if !sorted || entries.iter().any(|entry| !entry.path.starts_with(&comparing.start)) {
                        return Err(MirrorError::Protocol("a listing that is not in order".into()));
                    }
                    comparing.part(entries, &problems);
                    let verify = comparing.verify;
                    for problem in problems {
                        self.cannot_compare(verify, problem);
                    }
                }
            }
            MirrorMessage::ManifestEnd { request } => {
                if let Some(comparing) = self.comparing.as_mut().filter(|c| c.request == request) {
                    comparing.there_ended();
                }
            }
            MirrorMessage::BarrierDone { id } => self.barrier_done(id),
            MirrorMessage::LowerEpoch { known } => {
                return Err(MirrorError::LowerEpoch { got: self.options.epoch, known });
            }
            _ => return Err(MirrorError::Protocol("an active's message sent to an active".into())),
        }
        Ok(())
    }

    fn roots_ready(&mut self, instance: u64, problems: Vec<Problem>) {
        self.session.ready = true;
        self.session.instance = instance;
        self.session.problems = problems;
        let initial = self.session.initial_done != Some(instance);
        let wanted = self.roots.iter().filter(|root| root.spec.continuous || initial);
        self.to_compare.extend(wanted.map(|root| root.spec.path.clone()));
    }

    fn applied(&mut self, generation: u64) {
        let Some(change) = self.in_flight.remove(&generation) else { return };
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(change.bytes);
        self.dirty.settle(change.stamp);
        if !change.times_only {
            self.problems.remove(&change.path);
        }
    }

    fn failed(&mut self, generation: u64, reason: String) {
        let Some(change) = self.in_flight.remove(&generation) else {
            // A stream that failed before its end: its mark is still with it.
            if let Some(stream) = self.stream.take_if(|stream| stream.generation == generation) {
                self.stop_stream(&stream);
                self.retry(stream.path, stream.stamp, stream.attempts, reason);
            }
            return;
        };
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(change.bytes);
        tracing::debug!(path = %change.path, %reason, "the backup could not apply a change");
        if let Some((other, is_dir)) = change.other {
            self.compare_soon(change.path, is_dir);
            self.compare_soon(other, is_dir);
            self.dirty.settle(change.stamp);
            return;
        }
        // What is in the way may be the directory that should hold it.
        if let Some(parent) = change.path.parent().filter(|parent| self.set.covering(parent, true).is_some()) {
            self.dirty.mark(parent, true, false, self.now);
        }
        self.retry(change.path, change.stamp, change.attempts, reason);
    }

    /// Puts a path back to be tried again after a pause; from the second failure on it is named.
    fn retry(&mut self, path: MirrorPath, stamp: u64, attempts: u32, reason: String) {
        let attempts = attempts + 1;
        let named = attempts > 1;
        if named && (self.problems.len() < MAX_REMEMBERED || self.problems.contains_key(&path)) {
            self.problems.insert(path.clone(), reason);
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (attempts - 1).min(7)).min(LONGEST_PAUSE);
        let mark = Mark { stamp, content: true, compared: false, not_before: self.now + pause, attempts };
        self.dirty.put_back(path, mark, named);
    }

    fn cannot_compare(&mut self, verify: Option<u64>, problem: Problem) {
        match verify.and_then(|id| self.differences.get_mut(&id)) {
            Some((differences, _)) if differences.problems.len() < MAX_PROBLEMS => differences.problems.push(problem),
            None if self.problems.len() < MAX_REMEMBERED => {
                self.problems.insert(problem.path, problem.reason);
            }
            _ => {}
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
            None if self.session.synced => match self.verifying.pop_front() {
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
            Comparing::new(request, root.spec.clone(), copy, Arc::clone(&self.set), start.clone(), deep)
                .map_err(|e| e.desc().to_owned())
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
            Some(Err(reason)) => {
                if verify.is_some() {
                    self.cannot_compare(verify, Problem { path: start, reason });
                }
                self.end_verification(verify);
            }
            None => self.end_verification(verify),
        }
        true
    }

    fn different(&mut self, verify: Option<u64>, path: MirrorPath, difference: Difference) {
        if let Some(id) = verify {
            if let Some((differences, _)) = self.differences.get_mut(&id) {
                if differences.different.len() < MAX_PROBLEMS {
                    differences.different.push(Problem { path, reason: difference.describe().into() });
                } else {
                    differences.more += 1;
                }
            }
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
        let Some(comparing) = self.comparing.take() else { return };
        if let Some(id) = comparing.verify {
            if let Some((differences, _)) = self.differences.get_mut(&id) {
                differences.compared += comparing.steps;
            }
        } else if comparing.whole {
            self.counts.insert(comparing.start, comparing.counted);
        }
        for (inode, path) in comparing.linked {
            self.linked(inode, None, path);
        }
        self.end_verification(comparing.verify);
    }

    fn end_verification(&mut self, verify: Option<u64>) {
        let Some(id) = verify else { return };
        let Some((_, left)) = self.differences.get_mut(&id) else { return };
        *left -= 1;
        if *left == 0
            && let Some((differences, _)) = self.differences.remove(&id)
        {
            self.events.push_back(SourceEvent::Verified { id, differences });
        }
    }

    fn has_room(&self) -> bool {
        self.outbox_bytes + self.batch_bytes < OUTBOX_BYTES
            && self.in_flight.len() < WINDOW
            && self.in_flight_bytes < WINDOW_BYTES
    }

    /// Sends what is changed, as far as there is room; whether anything was.
    pub(super) fn send(&mut self) -> bool {
        let mut worked = false;
        let hurry = !self.barriers.is_empty();
        for _ in 0..TURN_PATHS {
            if !self.has_room() {
                break;
            }
            if let Some(moved) = self.moves.pop_front() {
                self.send_move(moved);
            } else {
                let streamed = self.stream_on();
                let busy = self.stream.as_ref().map(|stream| stream.path.clone());
                if let Some((path, mark)) = self.dirty.next(self.now, hurry, busy.as_ref()) {
                    self.send_path(path, mark);
                } else if let Some((dir, stamp)) = self.dirty.next_times() {
                    self.send_times(dir, stamp);
                } else if !streamed {
                    break;
                }
            }
            worked = true;
        }
        worked
    }

    fn send_move(&mut self, moved: Move) {
        let Move { from, to, exchange, is_dir, stamp } = moved;
        let change = if exchange { Change::Exchange { with: to.clone() } } else { Change::Rename { to: to.clone() } };
        let flight = InFlight {
            path: from.clone(),
            stamp,
            bytes: 0,
            attempts: 0,
            other: Some((to.clone(), is_dir)),
            times_only: false,
        };
        self.send_item(from, change, flight, to);
    }

    fn send_item(&mut self, path: MirrorPath, change: Change, flight: InFlight, announced: MirrorPath) {
        self.generation += 1;
        self.unannounced.push_back(announced);
        self.in_flight_bytes += flight.bytes;
        self.in_flight.insert(self.generation, flight);
        let item = Item { generation: self.generation, path, change };
        self.batch_bytes += item_weight(&item);
        self.batch.push(item);
        if self.batch_bytes >= BATCH_BYTES || self.batch.len() >= BATCH_ITEMS.min(MAX_LIST) {
            self.finish_batch();
        }
    }

    pub(super) fn finish_batch(&mut self) {
        if !self.batch.is_empty() {
            let items = std::mem::take(&mut self.batch);
            self.batch_bytes = 0;
            self.push(MirrorMessage::Items { epoch: self.options.epoch, items });
        }
    }

    /// The index of the root that covers a path, whatever it is.
    fn root_of(&self, path: &MirrorPath) -> Option<usize> {
        let spec = self.set.covering(path, false).or_else(|| self.set.covering(path, true))?;
        self.roots.iter().position(|root| root.spec == *spec)
    }

    fn send_path(&mut self, path: MirrorPath, mark: Mark) {
        let Some(index) = self.root_of(&path) else { return self.dirty.settle(mark.stamp) };
        let root = &self.roots[index];
        // Without its directory nothing can be said of it; the root is named, and compared when it is back.
        let Some(dir) = root.dir.clone() else { return self.dirty.settle(mark.stamp) };
        let root_path = root.spec.path.clone();
        let flight = |bytes| InFlight {
            path: path.clone(),
            stamp: mark.stamp,
            bytes,
            attempts: mark.attempts,
            other: None,
            times_only: false,
        };
        match self.reader.look(&dir, &root_path, &path, mark.content) {
            Now::Gone => {
                if self.may_remove(index, &path, &mark) {
                    self.dirty.forget(&path);
                    self.touch_parent(&path);
                    self.send_item(path.clone(), Change::Remove, flight(0), path);
                } else {
                    self.dirty.settle(mark.stamp);
                }
            }
            Now::Dir(meta) => {
                if self.set.left_out(&path, Kind::Dir).is_some()
                    || (path == root_path && !self.roots[index].spec.recursive)
                {
                    return self.dirty.settle(mark.stamp);
                }
                if mark.attempts > 0 {
                    self.compare_soon(path.clone(), true);
                }
                if mark.content {
                    // Making it there changes the times of what holds it.
                    self.touch_parent(&path);
                }
                self.send_item(path.clone(), Change::Mkdir(meta), flight(0), path);
            }
            Now::Change(change, stat) => {
                if self.set.left_out(&path, stat.meta.kind).is_some() {
                    return self.dirty.settle(mark.stamp);
                }
                if !matches!(change, Change::Meta(_)) {
                    self.touch_parent(&path);
                    self.status.files_moved += 1;
                    self.status.bytes_moved += stat.meta.size;
                }
                self.note_links(&path, &stat);
                self.send_item(path.clone(), change, flight(stat.meta.size), path);
            }
            Now::Large(stream) => self.begin_stream(*stream, path, mark),
            Now::LeftOut => self.dirty.settle(mark.stamp),
            Now::Unstable => {
                self.retry(path, mark.stamp, mark.attempts, "unstable: it keeps changing while it is read".into());
            }
            Now::Unreadable(errno) => {
                self.retry(path, mark.stamp, mark.attempts, format!("cannot be read: {}", errno.desc()));
            }
        }
    }

    fn touch_parent(&mut self, path: &MirrorPath) {
        if let Some(parent) = path.parent() {
            self.touch(parent);
        }
    }

    /// Whether the absence of a path may be told: not if its root is not what it was, or lost everything at once.
    fn may_remove(&mut self, index: usize, path: &MirrorPath, mark: &Mark) -> bool {
        let root = &mut self.roots[index];
        if root.spec.path == *path {
            return false;
        }
        if root.look() != super::Look::Same || root.dir.is_none() {
            self.next_look = Duration::ZERO;
            return false;
        }
        if root.is_empty() && (mark.compared || self.dirty.below(&root.spec.path, 1) > 0 || root.emptied) {
            root.withhold();
        }
        !root.emptied
    }

    fn send_times(&mut self, dir: MirrorPath, stamp: u64) {
        let root = self.set.covering(&dir, true).and_then(|spec| self.roots.iter().find(|root| root.spec == *spec));
        let Some((root, open)) = root.and_then(|root| Some((root, root.dir.clone()?))) else {
            return self.dirty.settle(stamp);
        };
        let root_path = root.spec.path.clone();
        match self.reader.look(&open, &root_path, &dir, false) {
            Now::Dir(meta) => {
                let flight =
                    InFlight { path: dir.clone(), stamp, bytes: 0, attempts: 0, other: None, times_only: true };
                self.send_item(dir.clone(), Change::Mkdir(meta), flight, dir);
            }
            _ => self.dirty.settle(stamp),
        }
    }

    /// A file with several names changed: its other names did too.
    fn note_links(&mut self, path: &MirrorPath, stat: &Stat) {
        if stat.meta.kind != Kind::File {
            return;
        }
        let inode = (stat.dev, stat.ino);
        if stat.nlink < 2 {
            self.links.remove(&inode);
            return;
        }
        let mut hasher = std::hash::DefaultHasher::new();
        std::hash::Hash::hash(&stat.meta, &mut hasher);
        self.linked(inode, Some(hasher.finish()), path.clone());
        let linked = self.links.entry(inode).or_default();
        self.search |= (linked.names.len() as u64) < stat.nlink && linked.searched != stat.nlink;
        linked.searched = stat.nlink;
    }

    fn linked(&mut self, inode: (u64, u64), look: Option<u64>, path: MirrorPath) {
        if self.links.len() >= MAX_LINKED {
            self.links.clear();
        }
        let linked = self.links.entry(inode).or_default();
        let others: Vec<_> = match look {
            Some(look) if look != linked.look => {
                linked.look = look;
                linked.names.iter().filter(|name| **name != path).cloned().collect()
            }
            _ => Vec::new(),
        };
        linked.names.insert(path);
        others.into_iter().for_each(|other| self.dirty.mark(other, true, false, self.now));
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

    fn begin_stream(&mut self, mut stream: Stream, path: MirrorPath, mark: Mark) {
        if self.set.left_out(&path, Kind::File).is_some() {
            return self.dirty.settle(mark.stamp);
        }
        if self.stream.is_some() {
            // One at a time; the others wait a moment, small ones pass.
            let mark = Mark { not_before: self.now + UNSETTLED / 4, ..mark };
            return self.dirty.put_back(path, mark, false);
        }
        self.finish_batch();
        self.generation += 1;
        self.unannounced.push_back(path.clone());
        self.note_links(&path, &stream.stat);
        (stream.generation, stream.stamp, stream.attempts) = (self.generation, mark.stamp, mark.attempts);
        let size = stream.stat.meta.size;
        self.stream = Some(Box::new(stream));
        self.push(MirrorMessage::FileBegin { epoch: self.options.epoch, generation: self.generation, path, size });
    }

    /// Reads the next piece of the large file that is under way; whether there is one.
    fn stream_on(&mut self) -> bool {
        let Some(mut stream) = self.stream.take() else { return false };
        let (epoch, generation) = (self.options.epoch, stream.generation);
        let offset = stream.offset;
        match stream.read() {
            Ok(Piece::Data(bytes)) => {
                self.push(MirrorMessage::FileData { epoch, generation, offset, bytes });
                self.stream = Some(stream);
            }
            Ok(Piece::End(meta, digest)) => {
                self.finish_batch();
                self.push(MirrorMessage::FileEnd { epoch, generation, meta, digest });
                self.in_flight_bytes += meta.size;
                self.status.files_moved += 1;
                self.status.bytes_moved += meta.size;
                self.touch_parent(&stream.path);
                let flight = InFlight {
                    path: stream.path,
                    stamp: stream.stamp,
                    bytes: meta.size,
                    attempts: stream.attempts,
                    other: None,
                    times_only: false,
                };
                self.in_flight.insert(generation, flight);
            }
            Ok(Piece::Changed) => {
                self.stop_stream(&stream);
                let reason = "unstable: it keeps changing while it is read".into();
                self.retry(stream.path, stream.stamp, stream.attempts, reason);
            }
            Err(error) => {
                self.stop_stream(&stream);
                self.retry(stream.path, stream.stamp, stream.attempts, format!("cannot be read: {error}"));
            }
        }
        true
    }

    fn stop_stream(&mut self, stream: &Stream) {
        self.push(MirrorMessage::FileAbort { epoch: self.options.epoch, generation: stream.generation });
    }

    /// Stops a large file's transfer if its name is about to change; it is marked again.
    pub(super) fn abort_stream_at(&mut self, path: &MirrorPath) {
        if let Some(stream) = self.stream.take_if(|stream| stream.path.starts_with(path)) {
            self.stop_stream(&stream);
            let mark = Mark {
                stamp: stream.stamp,
                content: true,
                compared: false,
                not_before: self.now,
                attempts: stream.attempts,
            };
            self.dirty.put_back(stream.path, mark, false);
        }
    }

    /// Tells the backup once everything that the first comparison found is there.
    pub(super) fn announce_synced(&mut self) {
        if self.session.synced || self.search || !self.to_compare.is_empty() || self.comparing.is_some() {
            return;
        }
        let at = *self.session.compared_at.get_or_insert(self.dirty.newest());
        if self.dirty.settled(at) {
            self.session.synced = true;
            self.session.initial_done = Some(self.session.instance);
            self.push(MirrorMessage::Synced { epoch: self.options.epoch });
        }
    }

    pub(super) fn advance_barriers(&mut self) {
        let comparing =
            self.search || !self.to_compare.is_empty() || self.comparing.as_ref().is_some_and(|c| c.verify.is_none());
        let mut asked = Vec::new();
        for (id, stage) in &mut self.barriers {
            // A file with unknown names was met: what was written through one of them is found by comparing.
            if matches!(stage, BarrierStage::Drain) || (self.search && matches!(stage, BarrierStage::Settle(_))) {
                *stage = BarrierStage::Compare;
            }
            if matches!(stage, BarrierStage::Compare) && self.session.ready && !comparing {
                *stage = BarrierStage::Settle(self.dirty.newest());
            }
            if let BarrierStage::Settle(stamp) = *stage
                && self.dirty.settled(stamp)
            {
                *stage = BarrierStage::Asked;
                asked.push(*id);
            }
        }
        for id in asked {
            self.push(MirrorMessage::Barrier { epoch: self.options.epoch, id });
        }
    }

    fn barrier_done(&mut self, id: u64) {
        let asked = |(other, stage): &(u64, BarrierStage)| *other == id && matches!(stage, BarrierStage::Asked);
        let Some(at) = self.barriers.iter().position(asked) else { return };
        self.barriers.remove(at);
        let unreplicated = self.named_problems().take(MAX_PROBLEMS).collect();
        self.events.push_back(SourceEvent::BarrierDone { id, unreplicated });
    }
}

impl MirrorDifferences {
    /// Whether nothing differs and everything could be compared.
    #[must_use]
    pub fn is_identical(&self) -> bool {
        self.different.is_empty() && self.problems.is_empty()
    }
}

//! What the source sends: moves first, then marked paths as they are when they are read, directories' times last.
//!
//! Always: what fails is tried again with growing pauses and named from the second time on; a file with several names is
//! sent under each. Never: more under way than the bounds, or a removal because of a root that is not what it was.

use std::{hash::Hasher, time::Duration};

use ringpair_fsmon::meta::Stat;
use ringpair_wire::{
    id::Epoch,
    mirror::{Change, Item, Kind, MAX_LIST},
};

use super::{
    FIRST_PAUSE, InFlight, LONGEST_PAUSE, MAX_REMEMBERED, MirrorMessage, MirrorPath, Move, Outgoing, Source, UNSETTLED,
    dirty::Mark,
    item_weight,
    reader::{Now, Piece, Stream},
    roots::Look,
};
use crate::ring::Buf;

/// How many bytes may wait to be sent.
const OUTBOX_BYTES: usize = 4 << 20;
/// The same while a large file is read: few pieces ahead, in few buffers.
const READ_AHEAD_BYTES: usize = 1 << 20;
/// How many changes may be under way, and how many bytes.
const WINDOW: usize = 16_384;
const WINDOW_BYTES: u64 = 64 << 20;
/// A message of changes is closed at this size.
const BATCH_BYTES: usize = 256 << 10;
const BATCH_ITEMS: usize = 512;
/// How many paths are sent in one turn.
const TURN_PATHS: usize = 512;
/// How many inodes with several names are remembered.
const MAX_LINKED: usize = 262_144;

impl Source {
    pub(super) fn push(&mut self, message: MirrorMessage) {
        let outgoing = Outgoing::Message(message);
        self.outbox_bytes += outgoing.weight();
        self.outbox.push_back((self.generation, outgoing));
    }

    /// Queues a piece of a large file: the head of its message goes before the bytes where they are.
    fn push_piece(&mut self, epoch: Epoch, generation: u64, offset: u64, mut buf: Buf) {
        let bytes = &buf[Piece::ROOM_BYTES..];
        let header = ringpair_wire::mirror::Piece { epoch, generation, offset, bytes }.header();
        let start = Piece::ROOM_BYTES - header.len();
        buf[start..Piece::ROOM_BYTES].copy_from_slice(&header);
        let outgoing = Outgoing::Encoded(buf.freeze().slice(start..));
        self.outbox_bytes += outgoing.weight();
        self.outbox.push_back((self.generation, outgoing));
    }

    /// Puts a path back to be tried again after a pause; from the second failure on it is named.
    pub(super) fn retry(&mut self, path: MirrorPath, stamp: u64, attempts: u32, reason: String) {
        let attempts = attempts + 1;
        let named = attempts > 1;
        if named && (self.problems.len() < MAX_REMEMBERED || self.problems.contains_key(&path)) {
            self.problems.insert(path.clone(), reason);
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << (attempts - 1).min(7)).min(LONGEST_PAUSE);
        let mark = Mark { stamp, content: true, compared: false, not_before: self.now + pause, attempts };
        self.dirty.put_back(path, mark, named);
    }

    fn has_room(&self) -> bool {
        let most = if self.stream.is_some() { READ_AHEAD_BYTES } else { OUTBOX_BYTES };
        self.outbox_bytes + self.batch_bytes < most
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
        if self.roots[index].spec.path == *path || self.is_in_vanished_mount(path) {
            return false;
        }
        let root = &mut self.roots[index];
        if root.look() != Look::Same || root.dir.is_none() {
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

    pub(super) fn linked(&mut self, inode: (u64, u64), look: Option<u64>, path: MirrorPath) {
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
        match stream.read(&self.pool) {
            Ok(Piece::Data(buf)) => {
                self.push_piece(epoch, generation, offset, buf);
                self.stream = Some(stream);
            }
            Ok(Piece::End(meta, checksum)) => {
                self.finish_batch();
                self.push(MirrorMessage::FileEnd { epoch, generation, meta, checksum });
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

    pub(super) fn stop_stream(&mut self, stream: &Stream) {
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
}

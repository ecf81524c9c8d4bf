//! The follower's end: asks where the trees differ, and stages what the leader has there.
//!
//! Always: at most [`WINDOW`] requests under way; every answer is held against what was asked. Never: a change of the
//! follower's own tree.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use ringpair_wire::{
    codec::Codec,
    ds::Object,
    id::Position,
    resync::{HashRange, Item, MAX_NODES, MAX_RANGES, Prefix, ResyncMessage, Summary},
};

use super::{ResyncError, ResyncIndex, Staged, index::path_hash};
use crate::ds::{
    digest::Digest,
    tree::{Entry, TreeSnapshot},
};

/// How many requests the follower keeps under way.
pub const WINDOW: usize = 4;
/// Nodes of at most this many objects (on the leader) are listed instead of split.
const LIST_UP_TO: u64 = 48;

enum Asked {
    Children(Vec<Prefix>),
    Items(Vec<Prefix>),
    Objects(Vec<HashRange>),
}

/// What the leader said of its whole tree.
#[derive(Clone, Copy)]
struct LeaderRoot {
    position: Position,
    summary: Summary,
    digest: Digest,
}

/// What a resynchronization cost, for status and benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResyncCost {
    /// Messages sent.
    pub requests: u64,
    /// Bytes of messages, both ways, as encoded.
    pub bytes: u64,
    /// Objects received.
    pub objects: u64,
}

/// What a comparison that was cut has staged: the next one goes on from there, whatever the leader has by then.
pub struct Unfinished {
    before: ResyncIndex,
    staged: ResyncIndex,
}

/// The follower's end.
pub struct ResyncClient {
    /// That of the follower's own state.
    before: ResyncIndex,
    /// What is compared: that state, or what an earlier comparison made of it.
    index: ResyncIndex,
    staged: TreeSnapshot,
    /// The index of what is staged.
    staged_index: ResyncIndex,
    root: Option<LeaderRoot>,
    asked: HashMap<u32, Asked>,
    next_request: u32,
    begun: bool,
    split: Vec<Prefix>,
    list: Vec<Prefix>,
    fetch: VecDeque<HashRange>,
    cost: ResyncCost,
}

impl Unfinished {
    /// Whether it was begun with this state.
    #[must_use]
    pub fn is_of(&self, own: &TreeSnapshot) -> bool {
        self.before.snapshot().position() == own.position()
    }
}

impl ResyncClient {
    /// Compares against the follower's own snapshot.
    #[must_use]
    pub fn new(index: ResyncIndex) -> Self {
        Self {
            before: index.clone(),
            staged: index.snapshot().clone(),
            staged_index: index.clone(),
            index,
            root: None,
            asked: HashMap::new(),
            next_request: 0,
            begun: false,
            split: Vec::new(),
            list: Vec::new(),
            fetch: VecDeque::new(),
            cost: ResyncCost::default(),
        }
    }

    /// Goes on with what another comparison has staged.
    #[must_use]
    pub fn resume(unfinished: Unfinished) -> Self {
        Self { before: unfinished.before, ..Self::new(unfinished.staged) }
    }

    /// What has been staged so far, for [`Self::resume`].
    #[must_use]
    pub fn into_unfinished(self) -> Unfinished {
        Unfinished { before: self.before, staged: self.staged_index.settled(self.staged) }
    }

    /// The next message to send now; `None`: wait for an answer, or done. Call until `None` after every answer.
    pub fn poll(&mut self) -> Option<ResyncMessage> {
        let message = self.next_message()?;
        self.cost.requests += 1;
        self.cost.bytes += message.to_bytes().len() as u64;
        Some(message)
    }

    /// Takes an answer.
    ///
    /// # Errors
    /// [`ResyncError`]: give up this attempt; nothing has changed.
    pub fn handle(&mut self, message: ResyncMessage) -> Result<(), ResyncError> {
        self.cost.bytes += message.to_bytes().len() as u64;
        match message {
            ResyncMessage::Root { position, summary, digest } => {
                if !self.begun || self.root.is_some() {
                    return Err(ResyncError::Unexpected("Root"));
                }
                self.root = Some(LeaderRoot { position, summary, digest: Digest(digest) });
                self.compare(Prefix::ROOT, summary);
                Ok(())
            }
            ResyncMessage::Children { request, nodes } => {
                let Some(Asked::Children(asked)) = self.asked.remove(&request) else {
                    return Err(ResyncError::Unexpected("Children"));
                };
                check_count(asked.len(), nodes.len())?;
                for (node, children) in asked.into_iter().zip(nodes) {
                    for (digit, summary) in (0..).zip(children) {
                        if let Some(child) = node.child(digit) {
                            self.compare(child, summary);
                        }
                    }
                }
                Ok(())
            }
            ResyncMessage::Items { request, nodes } => {
                let Some(Asked::Items(asked)) = self.asked.remove(&request) else {
                    return Err(ResyncError::Unexpected("Items"));
                };
                check_count(asked.len(), nodes.len())?;
                asked.into_iter().zip(nodes).for_each(|(node, items)| self.compare_items(node, &items));
                Ok(())
            }
            ResyncMessage::Objects { request, objects, ranges_done, resume_at } => {
                let Some(Asked::Objects(asked)) = self.asked.remove(&request) else {
                    return Err(ResyncError::Unexpected("Objects"));
                };
                self.take_objects(&asked, objects, ranges_done, resume_at)
            }
            _ => Err(ResyncError::Unexpected("a request, sent to the follower")),
        }
    }

    /// Whether everything that differs has been staged: [`finish`](Self::finish) next.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.root.is_some()
            && self.asked.is_empty()
            && self.split.is_empty()
            && self.list.is_empty()
            && self.fetch.is_empty()
    }

    /// What it has cost so far.
    #[must_use]
    pub const fn cost(&self) -> ResyncCost {
        self.cost
    }

    /// Checks what was staged against what the leader said, and hands it out.
    ///
    /// # Errors
    /// [`ResyncError::Mismatch`]; [`ResyncError::Unexpected`] before [`is_done`](Self::is_done).
    pub fn finish(mut self) -> Result<Staged, ResyncError> {
        let done = self.is_done();
        let Some(root) = self.root.filter(|_| done) else {
            return Err(ResyncError::Unexpected("finish before the end"));
        };
        let got = self.staged_index.summary(Prefix::ROOT);
        if got != root.summary || self.staged.len() as u64 != got.count {
            return Err(ResyncError::Mismatch(format!("{} objects, expected {}", got.count, root.summary.count)));
        }
        let digest = self.staged_index.digest();
        if digest != root.digest {
            return Err(ResyncError::Mismatch(format!("digest {digest}, expected {}", root.digest)));
        }
        self.staged.set_position(root.position);
        Ok(Staged::new(self.staged_index.differences(&self.before), self.staged, self.cost))
    }

    /// How many nodes and ranges are noted down.
    #[cfg(test)]
    pub(super) fn noted(&self) -> usize {
        self.split.len() + self.list.len() + self.fetch.len()
    }

    fn next_message(&mut self) -> Option<ResyncMessage> {
        if !self.begun {
            self.begun = true;
            return Some(ResyncMessage::Begin);
        }
        if self.asked.len() >= WINDOW {
            return None;
        }
        let request = self.next_request;
        // Fetching before listing before splitting keeps what is noted down small.
        let (asked, message) = if !self.fetch.is_empty() {
            let ranges: Vec<HashRange> = self.fetch.drain(..self.fetch.len().min(MAX_RANGES)).collect();
            (Asked::Objects(ranges.clone()), ResyncMessage::AskObjects { request, ranges })
        } else if !self.list.is_empty() {
            let nodes = self.list.split_off(self.list.len().saturating_sub(MAX_NODES));
            (Asked::Items(nodes.clone()), ResyncMessage::AskItems { request, nodes })
        } else if !self.split.is_empty() {
            let nodes = self.split.split_off(self.split.len().saturating_sub(MAX_NODES));
            (Asked::Children(nodes.clone()), ResyncMessage::AskChildren { request, nodes })
        } else {
            return None;
        };
        self.next_request = self.next_request.wrapping_add(1);
        self.asked.insert(request, asked);
        Some(message)
    }

    /// Decides what to do about a node of which the leader holds `leader`.
    fn compare(&mut self, node: Prefix, leader: Summary) {
        let own = self.index.summary(node);
        if own == leader {
            return;
        }
        if leader.count == 0 {
            self.drop_range(node.first(), node.last());
        } else if own.count == 0 {
            self.fetch.push_back(HashRange { first: node.first(), last: node.last() });
        } else if leader.count <= LIST_UP_TO || node.child(0).is_none() {
            self.list.push(node);
        } else {
            self.split.push(node);
        }
    }

    /// Compares the leader's items of a small node with the own ones: both ascend by hash.
    fn compare_items(&mut self, node: Prefix, leader: &[Item]) {
        let own: HashMap<u64, u128> = self.index.items(node).into_iter().map(|item| (item.hash, item.sum)).collect();
        for item in leader {
            if own.get(&item.hash) != Some(&item.sum) {
                self.drop_range(item.hash, item.hash);
                self.fetch.push_back(HashRange { first: item.hash, last: item.hash });
            }
        }
        for hash in own.keys() {
            if leader.binary_search_by_key(hash, |item| item.hash).is_err() {
                self.drop_range(*hash, *hash);
            }
        }
    }

    /// Takes the own objects of a range out of what is staged.
    fn drop_range(&mut self, first: u64, last: u64) {
        for place in self.index.range(first, last) {
            if let Some(entry) = self.staged.displace(place.entry.path.key()) {
                self.staged_index.remove(&entry);
            }
        }
    }

    fn take_objects(
        &mut self,
        asked: &[HashRange],
        objects: Vec<Object>,
        done: u32,
        resume_at: Option<u64>,
    ) -> Result<(), ResyncError> {
        let done = done as usize;
        let rest = asked.get(done..).ok_or_else(|| contradiction("more ranges answered than asked for"))?;
        let rest = match (resume_at, rest) {
            (None, []) => &[],
            (None, _) => return Err(contradiction("ranges left over, but no place to go on")),
            (Some(_), []) => return Err(contradiction("a place to go on, but no range left")),
            (Some(at), [next, rest @ ..]) => {
                let nothing = objects.is_empty();
                if at < next.first || at > next.last || nothing {
                    return Err(contradiction("the place to go on is not in its range, or nothing was answered"));
                }
                self.fetch.push_back(HashRange { first: at, last: next.last });
                rest
            }
        };
        self.fetch.extend(rest);
        for object in objects {
            let hash = path_hash(object.path.key());
            if !asked.iter().any(|range| (range.first..=range.last).contains(&hash)) {
                return Err(contradiction(&format!("object {} was not asked for", object.path)));
            }
            let entry = Arc::new(Entry::new(object));
            if self.staged.get(&entry.path).is_some() {
                return Err(contradiction(&format!("object {} came twice", entry.path)));
            }
            self.staged_index.put(&entry);
            self.cost.objects += 1;
            self.staged.place(entry);
        }
        Ok(())
    }
}

fn contradiction(what: &str) -> ResyncError {
    ResyncError::Contradiction(what.to_owned())
}

fn check_count(asked: usize, got: usize) -> Result<(), ResyncError> {
    if asked == got {
        return Ok(());
    }
    Err(ResyncError::Contradiction(format!("{got} nodes answered, {asked} asked about")))
}

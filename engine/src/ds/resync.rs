//! Resynchronization by digests, both ends, without IO: messages in, messages out (REP-003, REP-008, design §3).
//!
//! Always: the follower's tree does not change while differences are staged; what is staged is checked whole — sums with
//! versions, and the digest of the tree — before it can be taken; objects come with the leader's versions. Cost on the
//! wire follows the number of differences; memory holds the requests under way and what differs. Never: a message that
//! depends on more than the leader's snapshot, an unbounded answer, or a decision to apply: [`Staged`] is the caller's.
//!
//! [`ResyncIndex::build`] and [`ResyncClient::finish`] look at every object (about a second for a million): call them
//! on a thread that may take that long. Everything else costs what the message costs.

use std::{collections::HashMap, collections::VecDeque, sync::Arc};

use ringpair_wire::{
    codec::{Codec, Writer},
    ds::{ContentId, DsPath, Object},
    id::{Position, Seq},
    resync::{
        BATCH_BYTES, HashRange, Item, MAX_BUCKET_ITEMS, MAX_GROUP_BYTES, MAX_NODES, MAX_RANGES, Prefix, ResyncMessage,
        Summary,
    },
};

use crate::ds::{
    digest::Digest,
    tree::{Difference, Entry, TreeSnapshot},
};

/// How many requests the follower keeps under way.
pub const WINDOW: usize = 4;
/// Nodes of at most this many objects (on the leader) are listed instead of split.
const LIST_UP_TO: u64 = 48;

/// Why a resynchronization cannot go on. It can be begun again; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResyncError {
    /// The message does not belong here: an answer sent to the leader, or an answer nobody asked for.
    #[error("unexpected resynchronization message: {0}")]
    Unexpected(&'static str),
    /// The leader's answer contradicts what was asked or what it said before.
    #[error("resynchronization answer does not fit: {0}")]
    Contradiction(String),
    /// A node that was to be listed holds more than a message takes.
    #[error("{0} objects to be listed at once, more than {MAX_BUCKET_ITEMS}")]
    BucketTooLarge(u64),
    /// An object does not fit into a message.
    #[error("object {path} takes {bytes} bytes, more than {MAX_GROUP_BYTES}")]
    ObjectTooLarge {
        /// Which object.
        path: DsPath,
        /// Its encoded size.
        bytes: usize,
    },
    /// What was staged is not what the leader has.
    #[error("staged tree differs from the leader's: {0}")]
    Mismatch(String),
}

/// The place of a path among the hashes.
fn path_hash(key: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(key.as_bytes()).as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The leaf hash of an object: its digest and its version, so that equal content of different versions differs.
fn leaf(entry: &Entry) -> u128 {
    let mut bytes = [0; 48];
    bytes[..32].copy_from_slice(&entry.digest().0);
    bytes[32..40].copy_from_slice(&entry.version.epoch.0.to_le_bytes());
    bytes[40..].copy_from_slice(&entry.version.seq.0.to_le_bytes());
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    u128::from_le_bytes(half)
}

struct Place {
    hash: u64,
    /// The sum of the leaves of all places before this one.
    sum_before: u128,
    entry: Arc<Entry>,
}

/// A snapshot ordered by path hash, with running sums: any range's summary costs two binary searches.
pub struct ResyncIndex {
    places: Vec<Place>,
    total: u128,
    digest: Digest,
    snapshot: TreeSnapshot,
}

impl ResyncIndex {
    /// Orders a snapshot; looks at every object.
    #[must_use]
    pub fn build(snapshot: &TreeSnapshot) -> Self {
        let mut places: Vec<Place> = snapshot
            .iter()
            .map(|entry| Place { hash: path_hash(entry.path.key()), sum_before: 0, entry: Arc::clone(entry) })
            .collect();
        places.sort_unstable_by(|a, b| a.hash.cmp(&b.hash).then_with(|| a.entry.path.cmp(&b.entry.path)));
        let mut total = 0_u128;
        for place in &mut places {
            place.sum_before = total;
            total = total.wrapping_add(leaf(&place.entry));
        }
        let digest = snapshot.digest(&DsPath::root()).0;
        Self { places, total, digest, snapshot: snapshot.clone() }
    }

    /// The snapshot that is ordered here.
    #[must_use]
    pub const fn snapshot(&self) -> &TreeSnapshot {
        &self.snapshot
    }

    fn bounds(&self, first: u64, last: u64) -> std::ops::Range<usize> {
        let start = self.places.partition_point(|place| place.hash < first);
        let end = start + self.places[start..].partition_point(|place| place.hash <= last);
        start..end
    }

    fn sum_before(&self, index: usize) -> u128 {
        self.places.get(index).map_or(self.total, |place| place.sum_before)
    }

    fn range_summary(&self, first: u64, last: u64) -> Summary {
        let range = self.bounds(first, last);
        let sum = self.sum_before(range.end).wrapping_sub(self.sum_before(range.start));
        Summary { count: range.len() as u64, sum }
    }

    fn summary(&self, node: Prefix) -> Summary {
        self.range_summary(node.first(), node.last())
    }

    fn children(&self, node: Prefix) -> [Summary; 16] {
        let mut children = [Summary::default(); 16];
        for (digit, child) in (0..).zip(&mut children) {
            *child = node.child(digit).map(|child| self.summary(child)).unwrap_or_default();
        }
        children
    }

    fn items(&self, node: Prefix) -> Vec<Item> {
        let range = self.bounds(node.first(), node.last());
        let mut items: Vec<Item> = Vec::with_capacity(range.len());
        for index in range {
            let hash = self.places[index].hash;
            let sum = self.sum_before(index + 1).wrapping_sub(self.places[index].sum_before);
            match items.last_mut() {
                Some(last) if last.hash == hash => last.sum = last.sum.wrapping_add(sum),
                _ => items.push(Item { hash, sum }),
            }
        }
        items
    }
}

/// The leader's end: answers from a snapshot and keeps nothing else.
pub struct ResyncServer {
    index: ResyncIndex,
}

impl ResyncServer {
    /// Answers for the snapshot of `index`.
    #[must_use]
    pub const fn new(index: ResyncIndex) -> Self {
        Self { index }
    }

    /// The position that the follower will be at.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.index.snapshot.position()
    }

    /// Answers one request with one message, in time and size bounded by the message.
    ///
    /// # Errors
    /// [`ResyncError`]: close the connection.
    pub fn handle(&self, message: &ResyncMessage) -> Result<ResyncMessage, ResyncError> {
        let index = &self.index;
        match message {
            ResyncMessage::Begin => Ok(ResyncMessage::Root {
                position: self.position(),
                summary: index.summary(Prefix::ROOT),
                digest: index.digest.0,
            }),
            ResyncMessage::AskChildren { request, nodes } => Ok(ResyncMessage::Children {
                request: *request,
                nodes: nodes.iter().map(|node| index.children(*node)).collect(),
            }),
            ResyncMessage::AskItems { request, nodes } => {
                for node in nodes {
                    let count = index.summary(*node).count;
                    if count > MAX_BUCKET_ITEMS as u64 {
                        return Err(ResyncError::BucketTooLarge(count));
                    }
                }
                let nodes = nodes.iter().map(|node| index.items(*node)).collect();
                Ok(ResyncMessage::Items { request: *request, nodes })
            }
            ResyncMessage::AskObjects { request, ranges } => self.objects(*request, ranges),
            _ => Err(ResyncError::Unexpected("an answer, sent to the leader")),
        }
    }

    fn objects(&self, request: u32, ranges: &[HashRange]) -> Result<ResyncMessage, ResyncError> {
        let (mut objects, mut bytes) = (Vec::new(), 0);
        let mut scratch = Vec::new();
        for (ranges_done, range) in (0_u32..).zip(ranges) {
            let places = &self.index.places[self.index.bounds(range.first, range.last)];
            for group in places.chunk_by(|a, b| a.hash == b.hash) {
                scratch.clear();
                group.iter().for_each(|place| place.entry.object().encode(&mut Writer::new(&mut scratch)));
                let hash = group.first().map(|place| place.hash);
                if scratch.len() > MAX_GROUP_BYTES {
                    let path = group.first().map_or_else(DsPath::root, |place| place.entry.path.clone());
                    return Err(ResyncError::ObjectTooLarge { path, bytes: scratch.len() });
                }
                if bytes > 0 && bytes + scratch.len() > BATCH_BYTES {
                    return Ok(ResyncMessage::Objects { request, objects, ranges_done, resume_at: hash });
                }
                bytes += scratch.len();
                objects.extend(group.iter().map(|place| place.entry.object().clone()));
            }
        }
        Ok(ResyncMessage::Objects { request, objects, ranges_done: ranges.len() as u32, resume_at: None })
    }
}

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

/// The follower's end.
pub struct ResyncClient {
    index: ResyncIndex,
    staged: TreeSnapshot,
    sum: u128,
    root: Option<LeaderRoot>,
    asked: HashMap<u32, Asked>,
    next_request: u32,
    begun: bool,
    split: Vec<Prefix>,
    list: Vec<Prefix>,
    fetch: VecDeque<HashRange>,
    contents: Vec<(ContentId, u64)>,
    cost: ResyncCost,
}

impl ResyncClient {
    /// Compares against the follower's own snapshot.
    #[must_use]
    pub fn new(index: ResyncIndex) -> Self {
        let staged = index.snapshot.clone();
        let sum = index.total;
        Self {
            index,
            staged,
            sum,
            root: None,
            asked: HashMap::new(),
            next_request: 0,
            begun: false,
            split: Vec::new(),
            list: Vec::new(),
            fetch: VecDeque::new(),
            contents: Vec::new(),
            cost: ResyncCost::default(),
        }
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

    /// Checks what was staged against what the leader said, and hands it out. Looks at every object.
    ///
    /// # Errors
    /// [`ResyncError::Mismatch`]; [`ResyncError::Unexpected`] before [`is_done`](Self::is_done).
    pub fn finish(mut self) -> Result<Staged, ResyncError> {
        let done = self.is_done();
        let Some(root) = self.root.filter(|_| done) else {
            return Err(ResyncError::Unexpected("finish before the end"));
        };
        let got = Summary { count: self.staged.len() as u64, sum: self.sum };
        if got != root.summary {
            return Err(ResyncError::Mismatch(format!("{} objects, expected {}", got.count, root.summary.count)));
        }
        let (digest, _) = self.staged.digest(&DsPath::root());
        if digest != root.digest {
            return Err(ResyncError::Mismatch(format!("digest {digest}, expected {}", root.digest)));
        }
        self.staged.set_position(root.position);
        self.contents.sort_unstable();
        self.contents.dedup();
        Ok(Staged { before: self.index.snapshot, after: self.staged, contents: self.contents, cost: self.cost })
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
        for index in self.index.bounds(first, last) {
            let key = self.index.places[index].entry.path.shared_key();
            if let Some(entry) = self.staged.displace(&key) {
                self.sum = self.sum.wrapping_sub(leaf(&entry));
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
            self.sum = self.sum.wrapping_add(leaf(&entry));
            self.contents.extend(entry.contents());
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

/// A whole state of the leader, checked, ready to be taken in one step. Before it is: archive [`divergent`], receive
/// the contents that are missing; then save it ([`crate::ds::store::StateStore::save`]) and replace the tree's state.
///
/// [`divergent`]: Self::divergent
#[derive(Debug)]
pub struct Staged {
    before: TreeSnapshot,
    after: TreeSnapshot,
    contents: Vec<(ContentId, u64)>,
    cost: ResyncCost,
}

/// An object of the follower that the leader never got, about to be overwritten or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergent {
    /// The object as the follower has it.
    pub entry: Arc<Entry>,
    /// Whether the leader has another object in its place (otherwise none).
    pub overwritten: bool,
}

impl Staged {
    /// The state to take, at the leader's position.
    #[must_use]
    pub const fn state(&self) -> &TreeSnapshot {
        &self.after
    }

    /// The contents that received objects refer to, each once; those the content store lacks have to come first.
    #[must_use]
    pub fn contents(&self) -> &[(ContentId, u64)] {
        &self.contents
    }

    /// What it cost.
    #[must_use]
    pub const fn cost(&self) -> ResyncCost {
        self.cost
    }

    /// What differs, in the order of paths, from the follower's state to the leader's: also what `verify` lists.
    pub fn differences(&self) -> impl Iterator<Item = Difference<'_>> {
        self.after.differences(&self.before)
    }

    /// The follower's objects whose version lies beyond the last position that both histories share, and that this
    /// state overwrites or removes (protocol §11). Objects the follower had removed are in its journal's records only.
    pub fn divergent(&self, common: Seq) -> impl Iterator<Item = Divergent> + '_ {
        self.differences().filter_map(move |difference| {
            let (entry, overwritten) = match difference {
                Difference::Added(_) => return None,
                Difference::Changed { old, .. } => (old, true),
                Difference::Removed(old) => (old, false),
            };
            (entry.version.seq > common).then(|| Divergent { entry: Arc::clone(entry), overwritten })
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringpair_wire::ds::Change;

    use super::*;
    use crate::ds::testing::{any_changes, apply_all, path, position, put, tree, version};

    /// Runs both ends against each other, every message through its codec.
    fn resync(leader: &TreeSnapshot, follower: &TreeSnapshot) -> Staged {
        let server = ResyncServer::new(ResyncIndex::build(leader));
        let mut client = ResyncClient::new(ResyncIndex::build(follower));
        let mut wire = VecDeque::new();
        loop {
            while let Some(message) = client.poll() {
                wire.push_back(message.to_bytes());
                assert!(wire.len() <= WINDOW);
            }
            let Some(request) = wire.pop_front() else { break };
            let answer = server.handle(&ResyncMessage::from_bytes(&request).unwrap()).unwrap().to_bytes();
            assert!(answer.len() <= ringpair_wire::resync::MAX_MESSAGE_BYTES);
            client.handle(ResyncMessage::from_bytes(&answer).unwrap()).unwrap();
        }
        assert!(client.is_done());
        client.finish().unwrap()
    }

    fn equal(a: &TreeSnapshot, b: &TreeSnapshot) -> bool {
        a.differences(b).next().is_none() && a.position() == b.position()
    }

    fn numbered(count: u64) -> TreeSnapshot {
        let mut tree = TreeSnapshot::default();
        for n in 0..count {
            tree.apply(&put(&format!("/CONFIG/Users/user{n} Extension={n} Name=x{n}")), version(n + 1));
        }
        tree.set_position(position(count));
        tree
    }

    // REQ: REP-003, REP-004, REP-008
    #[test]
    fn cost_follows_the_number_of_differences() {
        let leader = numbered(20_000);
        let mut follower = leader.clone();
        let same = resync(&leader, &follower).cost();
        assert_eq!((same.requests, same.objects), (1, 0));
        for n in [3, 777, 19_999] {
            follower.apply(&put(&format!("/config/users/user{n} Extension=other")), version(30_000 + n));
        }
        follower.apply(&Change::Remove { path: path("/CONFIG/Users/user5") }, version(50_000));
        follower.apply(&put("/CONFIG/Users/extra x=1"), version(50_001));
        follower.set_position(position(50_001));
        let staged = resync(&leader, &follower);
        assert!(equal(staged.state(), &leader));
        assert_eq!((staged.cost().objects, staged.differences().count()), (4, 5));
        assert!(staged.cost().bytes < 40_000, "{:?}", staged.cost());
        let full = resync(&leader, &TreeSnapshot::default());
        assert!(equal(full.state(), &leader));
        assert_eq!(full.cost().objects, 20_002);
        let emptied = resync(&TreeSnapshot::default(), &leader);
        assert!(emptied.state().is_empty());
    }

    #[test]
    fn versions_come_with_the_objects_even_where_only_they_differ() {
        let mut leader = tree(&["/a x=1", "/b x=1"]);
        let follower = leader.clone();
        leader.apply(&put("/a x=1"), version(9));
        leader.set_position(position(9));
        assert_eq!(leader.digest(&DsPath::root()), follower.digest(&DsPath::root()));
        let staged = resync(&leader, &follower);
        assert_eq!((staged.state().get(&path("/a")).unwrap().version, staged.cost().objects), (version(9), 1));
    }

    #[test]
    fn what_only_the_follower_has_is_handed_out_before_anything_is_applied() {
        let common = tree(&["/a x=1", "/b x=1", "/c x=1"]);
        let (mut leader, mut follower) = (common.clone(), common);
        leader.apply(&put("/a x=2"), version(10));
        leader.apply(&Change::Remove { path: path("/c") }, version(11));
        follower.apply(&put("/b x=mine"), version(4));
        follower.apply(&put("/new x=mine"), version(5));
        let staged = resync(&leader, &follower);
        let divergent: Vec<_> =
            staged.divergent(Seq(3)).map(|lost| (lost.entry.path.to_string(), lost.overwritten)).collect();
        assert_eq!(divergent, [("/b".to_owned(), true), ("/new".to_owned(), false)], "/a and /c are common history");
        assert_eq!(follower.get(&path("/b")).unwrap().version, version(4));
    }

    #[test]
    fn contents_are_named_and_large_objects_travel() {
        let id = ContentId([7; 32]);
        let value = ringpair_wire::ds::Value::Content { id, len: 70_000, text: true };
        let big = "y".repeat(60_000);
        let mut leader = TreeSnapshot::default();
        for n in 0..30 {
            let Change::Put { path, mut attributes, .. } = put(&format!("/big/{n} v={big}")) else { panic!() };
            attributes.push(ringpair_wire::ds::Attribute { name: "body".into(), values: vec![value.clone()] });
            leader.apply(&Change::Put { path, class: None, replace: false, attributes }, version(n + 1));
        }
        let staged = resync(&leader, &TreeSnapshot::default());
        assert!(equal(staged.state(), &leader));
        assert_eq!(staged.contents(), [(id, 70_000)]);
        assert!(staged.cost().requests > 10, "split over several answers: {:?}", staged.cost());
    }

    #[test]
    fn a_leader_that_contradicts_itself_is_refused() {
        let leader = numbered(300);
        let server = ResyncServer::new(ResyncIndex::build(&leader));
        let mut client = ResyncClient::new(ResyncIndex::build(&TreeSnapshot::default()));
        assert!(matches!(
            server.handle(&ResyncMessage::Objects { request: 0, objects: vec![], ranges_done: 0, resume_at: None }),
            Err(ResyncError::Unexpected(_))
        ));
        let begin = client.poll().unwrap();
        let root = server.handle(&begin).unwrap();
        client.handle(root.clone()).unwrap();
        assert_eq!(client.handle(root), Err(ResyncError::Unexpected("Root")));
        let ask = client.poll().unwrap();
        let answer = server.handle(&ask).unwrap();
        let ResyncMessage::Objects { request, objects, .. } = answer else { panic!("{answer:?}") };
        let first = objects[0].clone();
        let twice = vec![first.clone(), first];
        let refused =
            client.handle(ResyncMessage::Objects { request, objects: twice, ranges_done: 1, resume_at: None });
        assert!(matches!(refused, Err(ResyncError::Contradiction(_))), "{refused:?}");
        assert!(client.handle(ResyncMessage::Items { request: 9, nodes: vec![] }).is_err());
        // An answer that leaves objects out is found out at the end.
        let mut client = ResyncClient::new(ResyncIndex::build(&TreeSnapshot::default()));
        let root = server.handle(&client.poll().unwrap()).unwrap();
        client.handle(root).unwrap();
        let ResyncMessage::AskObjects { request, .. } = client.poll().unwrap() else { panic!() };
        client.handle(ResyncMessage::Objects { request, objects: vec![], ranges_done: 1, resume_at: None }).unwrap();
        assert!(matches!(client.finish(), Err(ResyncError::Mismatch(_))));
    }

    proptest! {
        // REQ: REP-001, REP-004
        #[test]
        fn any_two_trees_become_equal_versions_included(
            common in any_changes(30), ours in any_changes(30), theirs in any_changes(30),
        ) {
            let mut leader = TreeSnapshot::default();
            apply_all(&mut leader, &common, 1);
            let mut follower = leader.clone();
            apply_all(&mut leader, &theirs, 1_000);
            apply_all(&mut follower, &ours, 2_000);
            let staged = resync(&leader, &follower);
            prop_assert!(equal(staged.state(), &leader));
            prop_assert_eq!(staged.state().digest(&DsPath::root()), leader.digest(&DsPath::root()));
        }
    }
}

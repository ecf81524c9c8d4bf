//! A tree ordered by the hashes of its paths, so that any range of them has a sum, kept from one state to the next.
//!
//! A trie over the digits of the hashes: what holds at most [`LEAF_PLACES`] objects is a leaf, whatever came before it, so
//! that two members with the same objects have the same nodes. Always: an index is that of its snapshot; equal sums mean
//! equal objects of equal versions (forged ones are found by the digest of the whole). Two indexes share what is equal, so
//! that bringing one forward costs what differs. Never: a change of a node that another index shares.

use std::{
    cmp::Ordering,
    slice,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    vec,
};

use ringpair_wire::resync::{Item, Prefix, Summary};

use crate::ds::{
    digest::Digest,
    tree::{Difference, Entry, TreeSnapshot},
};

/// So many objects at most lie in one leaf (W-82).
const LEAF_PLACES: usize = 512;
/// The digits of a hash.
const DIGITS: u32 = 16;

/// The place of a path among the hashes.
pub(super) fn path_hash(key: &str) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *blake3::hash(key.as_bytes()).as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The leaf hash of an object: its digest and its version, so that equal content of different versions differs.
pub(super) fn leaf(entry: &Entry) -> u128 {
    let mut bytes = [0; 48];
    bytes[..32].copy_from_slice(&entry.digest().0);
    bytes[32..40].copy_from_slice(&entry.version.epoch.0.to_le_bytes());
    bytes[40..].copy_from_slice(&entry.version.seq.0.to_le_bytes());
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// An object's place in the order of hashes. 32 bytes: there are as many as objects.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Its path's hash.
    pub(super) hash: u64,
    leaf: [u8; 16],
    /// The object.
    pub(super) entry: Arc<Entry>,
}

impl Place {
    fn of(entry: &Arc<Entry>) -> Self {
        let hash = path_hash(entry.path.key());
        Self { hash, leaf: leaf(entry).to_le_bytes(), entry: Arc::clone(entry) }
    }

    fn sum(&self) -> u128 {
        u128::from_le_bytes(self.leaf)
    }

    fn order(&self) -> (u64, &str) {
        (self.hash, self.entry.path.key())
    }
}

#[derive(Clone, Debug)]
enum Kind {
    Leaf(Vec<Place>),
    Branch(Box<[Option<Arc<Node>>; 16]>),
}

/// All objects whose hashes begin with the same digits.
#[derive(Clone, Debug)]
struct Node {
    summary: Summary,
    /// Computed when it is asked for, forgotten with a change.
    digest: OnceLock<[u8; 32]>,
    kind: Kind,
}

const fn digit(hash: u64, depth: u32) -> usize {
    (hash >> (60 - 4 * depth) & 15) as usize
}

fn summary_of(places: &[Place]) -> Summary {
    let sum = places.iter().fold(0, |sum: u128, place| sum.wrapping_add(place.sum()));
    Summary { count: places.len() as u64, sum }
}

fn fits_leaf(count: u64, depth: u32) -> bool {
    count <= LEAF_PLACES as u64 || depth == DIGITS
}

impl Node {
    fn new(summary: Summary, kind: Kind) -> Self {
        Self { summary, digest: OnceLock::new(), kind }
    }

    /// The node of the next `count` places, which are in order.
    fn build(places: &mut vec::IntoIter<Place>, count: usize, depth: u32) -> Self {
        if fits_leaf(count as u64, depth) {
            let places: Vec<Place> = places.by_ref().take(count).collect();
            return Self::new(summary_of(&places), Kind::Leaf(places));
        }
        let mut children: Box<[Option<Arc<Self>>; 16]> = Box::default();
        let (mut summary, mut left) = (Summary::default(), count);
        for (number, child) in children.iter_mut().enumerate() {
            let own = places.as_slice()[..left].partition_point(|place| digit(place.hash, depth) <= number);
            if own > 0 {
                let node = Self::build(places, own, depth + 1);
                summary = plus(summary, node.summary);
                *child = Some(Arc::new(node));
                left -= own;
            }
        }
        Self::new(summary, Kind::Branch(children))
    }

    /// Puts a place where one of the same path may lie.
    fn put(&mut self, place: Place, depth: u32) {
        self.digest = OnceLock::new();
        let added = Summary { count: 1, sum: place.sum() };
        match &mut self.kind {
            Kind::Leaf(places) => {
                self.summary = plus(self.summary, added);
                match places.binary_search_by(|other| other.order().cmp(&place.order())) {
                    Ok(at) => {
                        let old = std::mem::replace(&mut places[at], place);
                        self.summary = minus(self.summary, Summary { count: 1, sum: old.sum() });
                    }
                    Err(at) => places.insert(at, place),
                }
                if !fits_leaf(places.len() as u64, depth) {
                    let count = places.len();
                    *self = Self::build(&mut std::mem::take(places).into_iter(), count, depth);
                }
            }
            Kind::Branch(children) => match &mut children[digit(place.hash, depth)] {
                Some(child) => {
                    let before = child.summary;
                    Arc::make_mut(child).put(place, depth + 1);
                    self.summary = plus(minus(self.summary, before), child.summary);
                }
                none => {
                    self.summary = plus(self.summary, added);
                    *none = Some(Arc::new(Self::new(added, Kind::Leaf(vec![place]))));
                }
            },
        }
    }

    /// Takes the place of a path out, if it is there.
    fn remove(&mut self, hash: u64, key: &str, depth: u32) {
        self.digest = OnceLock::new();
        match &mut self.kind {
            Kind::Leaf(places) => {
                if let Ok(at) = places.binary_search_by(|other| other.order().cmp(&(hash, key))) {
                    let old = places.remove(at);
                    self.summary = minus(self.summary, Summary { count: 1, sum: old.sum() });
                }
            }
            Kind::Branch(children) => {
                let slot = &mut children[digit(hash, depth)];
                let Some(child) = slot else { return };
                let before = child.summary;
                Arc::make_mut(child).remove(hash, key, depth + 1);
                self.summary = plus(minus(self.summary, before), child.summary);
                if child.summary.count == 0 {
                    *slot = None;
                }
                if fits_leaf(self.summary.count, depth) {
                    let places: Vec<Place> = Range::all(self).cloned().collect();
                    self.kind = Kind::Leaf(places);
                }
            }
        }
    }

    fn digest(&self) -> &[u8; 32] {
        self.digest.get_or_init(|| match &self.kind {
            Kind::Leaf(places) => {
                let mut bytes = Vec::with_capacity(24 * places.len());
                for place in places {
                    bytes.extend_from_slice(&place.hash.to_le_bytes());
                    bytes.extend_from_slice(&place.leaf);
                }
                *blake3::hash(&bytes).as_bytes()
            }
            Kind::Branch(children) => {
                let mut bytes = [0; 32 * 16];
                for (child, into) in children.iter().zip(bytes.chunks_exact_mut(32)) {
                    if let Some(child) = child {
                        into.copy_from_slice(child.digest());
                    }
                }
                *blake3::hash(&bytes).as_bytes()
            }
        })
    }

    fn range_of_leaf(&self, first: u64, last: u64) -> &[Place] {
        let Kind::Leaf(places) = &self.kind else { return &[] };
        let start = places.partition_point(|place| place.hash < first);
        let end = start + places[start..].partition_point(|place| place.hash <= last);
        &places[start..end]
    }
}

fn plus(a: Summary, b: Summary) -> Summary {
    Summary { count: a.count.wrapping_add(b.count), sum: a.sum.wrapping_add(b.sum) }
}

fn minus(a: Summary, b: Summary) -> Summary {
    Summary { count: a.count.wrapping_sub(b.count), sum: a.sum.wrapping_sub(b.sum) }
}

/// An object before and after: one of them, or both where they differ.
pub(super) type Changed = (Option<Arc<Entry>>, Option<Arc<Entry>>);

/// Appends what differs from one node to another of the same digits; what they share is not looked at.
fn differences(before: Option<&Arc<Node>>, after: Option<&Arc<Node>>, changed: &mut Vec<Changed>) {
    match (before, after) {
        (None, None) => {}
        (Some(before), Some(after)) if Arc::ptr_eq(before, after) => {}
        (Some(before), Some(after)) => match (&before.kind, &after.kind) {
            (Kind::Branch(before), Kind::Branch(after)) => {
                for (before, after) in before.iter().zip(after.iter()) {
                    differences(before.as_ref(), after.as_ref(), changed);
                }
            }
            _ => merge(Range::all(before), Range::all(after), changed),
        },
        (Some(before), None) => changed.extend(Range::all(before).map(|place| (Some(Arc::clone(&place.entry)), None))),
        (None, Some(after)) => changed.extend(Range::all(after).map(|place| (None, Some(Arc::clone(&place.entry))))),
    }
}

/// Appends what differs between places in their order.
fn merge(before: Range<'_>, after: Range<'_>, changed: &mut Vec<Changed>) {
    let (mut before, mut after) = (before.peekable(), after.peekable());
    let entry = |place: &Place| Some(Arc::clone(&place.entry));
    loop {
        let order = match (before.peek(), after.peek()) {
            (Some(old), Some(new)) => old.order().cmp(&new.order()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return,
        };
        let old = before.next_if(|_| order.is_le());
        let new = after.next_if(|_| order.is_ge());
        let same = old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(&old.entry, &new.entry) || old.entry == new.entry);
        if !same {
            changed.push((old.and_then(entry), new.and_then(entry)));
        }
    }
}

/// Places in the order of hashes, then of paths.
pub(super) struct Range<'a> {
    /// What is still to be gone through, the next on top.
    nodes: Vec<slice::Iter<'a, Option<Arc<Node>>>>,
    places: slice::Iter<'a, Place>,
    last: u64,
}

impl<'a> Range<'a> {
    fn all(node: &'a Node) -> Self {
        Self::beneath(node, 0, 0, u64::MAX)
    }

    /// Those of `node`, at `depth`, from `first` to `last`.
    fn beneath(mut node: &'a Node, mut depth: u32, first: u64, last: u64) -> Self {
        let mut range = Self { nodes: Vec::new(), places: [].iter(), last };
        loop {
            match &node.kind {
                Kind::Leaf(_) => {
                    range.places = node.range_of_leaf(first, u64::MAX).iter();
                    return range;
                }
                Kind::Branch(children) => {
                    let own = if first == 0 { 0 } else { digit(first, depth) };
                    range.nodes.push(children[own + 1..].iter());
                    let Some(child) = &children[own] else { return range };
                    (node, depth) = (child, depth + 1);
                }
            }
        }
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = &'a Place;

    fn next(&mut self) -> Option<&'a Place> {
        loop {
            if let Some(place) = self.places.next() {
                return Some(place).filter(|place| place.hash <= self.last);
            }
            let Some(child) = self.nodes.last_mut()?.next() else {
                self.nodes.pop();
                continue;
            };
            match child.as_deref().map(|node| &node.kind) {
                None => {}
                Some(Kind::Leaf(places)) => self.places = places.iter(),
                Some(Kind::Branch(children)) => self.nodes.push(children.iter()),
            }
        }
    }
}

/// A snapshot ordered by path hash. Cloning costs a reference count.
#[derive(Clone, Debug)]
pub struct ResyncIndex {
    root: Arc<Node>,
    snapshot: TreeSnapshot,
}

impl Default for ResyncIndex {
    /// The index of no objects.
    fn default() -> Self {
        let root = Arc::new(Node::new(Summary::default(), Kind::Leaf(Vec::new())));
        Self { root, snapshot: TreeSnapshot::default() }
    }
}

impl ResyncIndex {
    /// Orders a snapshot; looks at every object.
    #[must_use]
    pub fn build(snapshot: &TreeSnapshot) -> Self {
        let mut places: Vec<Place> = snapshot.iter().map(Place::of).collect();
        places.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
        let count = places.len();
        let root = Arc::new(Node::build(&mut places.into_iter(), count, 0));
        Self { root, snapshot: snapshot.clone() }
    }

    /// The index of another snapshot; looks at what differs.
    #[must_use]
    pub fn forward(mut self, snapshot: &TreeSnapshot) -> Self {
        if self.snapshot.is_empty() {
            return Self::build(snapshot);
        }
        let before = std::mem::replace(&mut self.snapshot, snapshot.clone());
        for difference in snapshot.differences(&before) {
            match difference {
                Difference::Added(new) | Difference::Changed { new, .. } => self.put(new),
                Difference::Removed(old) => self.remove(old),
            }
        }
        self
    }

    /// The snapshot that is ordered here.
    #[must_use]
    pub const fn snapshot(&self) -> &TreeSnapshot {
        &self.snapshot
    }

    /// Equal exactly where the objects and their versions are (W-82).
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(*self.root.digest())
    }

    /// What differs from `older`, in the order of paths. Costs what differs where one of them came from the other.
    pub(super) fn differences(&self, older: &Self) -> Vec<Changed> {
        let mut changed = Vec::new();
        differences(Some(&older.root), Some(&self.root), &mut changed);
        let entry = |(old, new): &Changed| new.as_ref().or(old.as_ref()).map(|entry| entry.path.shared_key());
        changed.sort_by_cached_key(entry);
        changed
    }

    /// Puts an object in its place; of which snapshot it then is the index, the caller knows.
    pub(super) fn put(&mut self, entry: &Arc<Entry>) {
        Arc::make_mut(&mut self.root).put(Place::of(entry), 0);
    }

    /// Takes an object out, likewise.
    pub(super) fn remove(&mut self, entry: &Entry) {
        let key = entry.path.key();
        Arc::make_mut(&mut self.root).remove(path_hash(key), key, 0);
    }

    /// Says which snapshot is ordered here.
    pub(super) fn settled(mut self, snapshot: TreeSnapshot) -> Self {
        self.snapshot = snapshot;
        self
    }

    pub(super) fn range(&self, first: u64, last: u64) -> Range<'_> {
        Range::beneath(&self.root, 0, first, last)
    }

    pub(super) fn summary(&self, prefix: Prefix) -> Summary {
        let mut node = &self.root;
        for depth in 0..u32::from(prefix.depth()) {
            let Kind::Branch(children) = &node.kind else {
                return summary_of(node.range_of_leaf(prefix.first(), prefix.last()));
            };
            let Some(child) = &children[digit(prefix.first(), depth)] else { return Summary::default() };
            node = child;
        }
        node.summary
    }

    pub(super) fn children(&self, node: Prefix) -> [Summary; 16] {
        let mut children = [Summary::default(); 16];
        for (digit, child) in (0..).zip(&mut children) {
            *child = node.child(digit).map(|child| self.summary(child)).unwrap_or_default();
        }
        children
    }

    pub(super) fn items(&self, node: Prefix) -> Vec<Item> {
        let mut items: Vec<Item> = Vec::new();
        for place in self.range(node.first(), node.last()) {
            match items.last_mut() {
                Some(last) if last.hash == place.hash => last.sum = last.sum.wrapping_add(place.sum()),
                _ => items.push(Item { hash: place.hash, sum: place.sum() }),
            }
        }
        items
    }
}

/// The index of a state that was current a moment ago, for whoever needs that of the state now. Kept by the thread that
/// writes checkpoints, whose snapshot it shares: it holds no object that the checkpoint does not.
#[derive(Clone, Debug, Default)]
pub struct KeptIndex(Arc<Mutex<ResyncIndex>>);

impl KeptIndex {
    /// The index of `snapshot`, from what is kept: costs what differs. Waits while the first is being made.
    #[must_use]
    pub fn of(&self, snapshot: &TreeSnapshot) -> ResyncIndex {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        kept.forward(snapshot)
    }

    /// Makes the first one, of the state at the start.
    pub fn begin(&self, snapshot: &TreeSnapshot) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = ResyncIndex::build(snapshot);
        kept.root.digest();
    }

    /// Brings it forward to `snapshot`.
    pub fn follow(&self, snapshot: &TreeSnapshot) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken out, so that nobody shares what changes.
        *kept = std::mem::take(&mut *kept).forward(snapshot);
        // So that nobody has to wait for more than what has changed since.
        kept.root.digest();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringpair_wire::ds::Change;

    use super::*;
    use crate::ds::testing::{any_changes, apply_all, path, put, version};

    /// Its nodes are those of an index made from nothing, and every range says the same.
    fn is_as_built(index: &ResyncIndex) -> bool {
        let built = ResyncIndex::build(index.snapshot());
        let places =
            |index: &ResyncIndex| index.range(0, u64::MAX).map(|place| (place.hash, place.leaf)).collect::<Vec<_>>();
        index.digest() == built.digest() && index.root.summary == built.root.summary && places(index) == places(&built)
    }

    #[test]
    fn an_index_that_is_brought_forward_is_the_one_that_would_be_built() {
        let mut tree = TreeSnapshot::default();
        let mut index = ResyncIndex::default();
        // Through growth over several splits, changes, and removals back to one leaf.
        for round in 0..6_u64 {
            for n in 0..1500 {
                tree.apply(&put(&format!("/o/{round}-{n} x={round}")), version(round * 1500 + n + 1));
            }
            index = index.forward(&tree);
            assert!(is_as_built(&index), "round {round}");
        }
        let full = index.clone();
        for n in 0..9000_u64 {
            tree.apply(&Change::Remove { path: path(&format!("/o/{}-{}", n / 1500, n % 1500)) }, version(20_000 + n));
            if n % 1000 == 999 {
                index = index.forward(&tree);
                assert!(is_as_built(&index), "after {n} removals");
            }
        }
        assert_eq!((index.root.summary.count, full.root.summary.count), (1, 9001), "another index does not change");
        assert!(is_as_built(&full));
        // Any range: also one that begins within a leaf.
        let hashes: Vec<u64> = full.range(0, u64::MAX).map(|place| place.hash).collect();
        for at in [0, 1, 100, 4000, 8999] {
            assert_eq!(full.range(hashes[at], hashes[at + 1]).count(), 2);
            assert_eq!(full.range(hashes[at] + 1, u64::MAX).count(), hashes.len() - at - 1);
        }
    }

    proptest! {
        // REQ: REP-006
        #[test]
        fn indexes_differ_as_their_snapshots_do(first in any_changes(40), second in any_changes(12), many in 0..1200_u64) {
            let mut before = TreeSnapshot::default();
            for n in 0..many {
                before.apply(&put(&format!("/o/{n} x=1")), version(n + 1));
            }
            apply_all(&mut before, &first, 2_000);
            let mut after = before.clone();
            apply_all(&mut after, &second, 3_000);
            for n in (0..many).step_by(97) {
                after.apply(&Change::Remove { path: path(&format!("/o/{n}")) }, version(4_000));
            }
            let expected: Vec<Changed> = after
                .differences(&before)
                .map(|difference| match difference {
                    Difference::Added(new) => (None, Some(Arc::clone(new))),
                    Difference::Changed { old, new } => (Some(Arc::clone(old)), Some(Arc::clone(new))),
                    Difference::Removed(old) => (Some(Arc::clone(old)), None),
                })
                .collect();
            let old = ResyncIndex::build(&before);
            prop_assert_eq!(&old.clone().forward(&after).differences(&old), &expected, "one from the other");
            prop_assert_eq!(&ResyncIndex::build(&after).differences(&old), &expected, "or each by itself");
        }
    }

    // REQ: REP-310
    #[test]
    fn an_index_shares_what_did_not_change() {
        let mut tree = TreeSnapshot::default();
        for n in 0..50_000 {
            tree.apply(&put(&format!("/o/{n} x=1")), version(n + 1));
        }
        let kept = KeptIndex::default();
        kept.begin(&tree);
        let before = kept.of(&tree);
        for n in 0..10 {
            tree.apply(&put(&format!("/o/{} x=2", n * 1000)), version(60_000 + n));
        }
        kept.follow(&tree);
        let after = kept.of(&tree);
        let leaves = |index: &ResyncIndex| {
            let mut found = Vec::new();
            let mut nodes = vec![Arc::clone(&index.root)];
            while let Some(node) = nodes.pop() {
                match &node.kind {
                    Kind::Leaf(_) => found.push(Arc::as_ptr(&node)),
                    Kind::Branch(children) => nodes.extend(children.iter().flatten().cloned()),
                }
            }
            found
        };
        let (old, new) = (leaves(&before), leaves(&after));
        let copied = new.iter().filter(|leaf| !old.contains(leaf)).count();
        assert!((1..=10).contains(&copied) && old.len() >= 100, "{copied} of {} leaves", old.len());
        assert!(std::mem::size_of::<Place>() <= 32);
    }

    proptest! {
        #[test]
        fn any_changes_bring_it_where_building_does(first in any_changes(40), second in any_changes(40)) {
            let mut tree = TreeSnapshot::default();
            apply_all(&mut tree, &first, 1);
            let index = ResyncIndex::default().forward(&tree);
            apply_all(&mut tree, &second, 1_000);
            prop_assert!(is_as_built(&index.forward(&tree)));
        }
    }
}

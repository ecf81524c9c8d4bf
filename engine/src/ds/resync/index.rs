//! A tree ordered by the hashes of its paths, so that any range of them has a sum.
//!
//! Always: equal sums mean equal objects of equal versions (forged ones are found by the digest of the whole tree).
//! Never: a change; an index is of one snapshot.

use std::sync::Arc;

use ringpair_wire::{
    ds::DsPath,
    resync::{Item, Prefix, Summary},
};

use crate::ds::{
    digest::Digest,
    tree::{Entry, TreeSnapshot},
};

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

/// An object's place in the order of hashes.
pub(super) struct Place {
    /// Its path's hash.
    pub(super) hash: u64,
    /// The sum of the leaves of all places before this one.
    sum_before: u128,
    /// The object.
    pub(super) entry: Arc<Entry>,
}

/// A snapshot ordered by path hash, with running sums: any range's summary costs two binary searches.
pub struct ResyncIndex {
    pub(super) places: Vec<Place>,
    /// The sum of all leaves.
    pub(super) total: u128,
    pub(super) digest: Digest,
    pub(super) snapshot: TreeSnapshot,
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

    pub(super) fn bounds(&self, first: u64, last: u64) -> std::ops::Range<usize> {
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

    pub(super) fn summary(&self, node: Prefix) -> Summary {
        self.range_summary(node.first(), node.last())
    }

    pub(super) fn children(&self, node: Prefix) -> [Summary; 16] {
        let mut children = [Summary::default(); 16];
        for (digit, child) in (0..).zip(&mut children) {
            *child = node.child(digit).map(|child| self.summary(child)).unwrap_or_default();
        }
        children
    }

    pub(super) fn items(&self, node: Prefix) -> Vec<Item> {
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

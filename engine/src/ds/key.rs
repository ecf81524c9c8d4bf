//! What the tree's map is keyed by: an object's folded path as bytes, the short ones inside the map's own nodes.
//!
//! Always ordered as the folded paths are. A look-up compares some fifteen keys; each on the heap would be a cache miss
//! of its own, and each copy of a node 64 counts of references.

use std::{borrow::Borrow, cmp::Ordering, ops::Deref, sync::Arc};

use ringpair_wire::ds::DsPath;

/// The longest key that lies in the node.
const INLINE_BYTES: usize = 38;

/// The folded path of an object.
#[derive(Clone)]
pub(super) enum Key {
    /// So many of these bytes.
    Inline(u8, [u8; INLINE_BYTES]),
    /// The path's own.
    Shared(Arc<str>),
}

const _: () = assert!(size_of::<Key>() == INLINE_BYTES + 2);

impl Key {
    /// The key of `path`.
    pub fn of(path: &DsPath) -> Self {
        Self::inline(path.key().as_bytes()).unwrap_or_else(|| Self::Shared(path.shared_key()))
    }

    /// The key of these bytes, if it lies in the node.
    pub fn inline(key: &[u8]) -> Option<Self> {
        let mut bytes = [0; INLINE_BYTES];
        bytes.get_mut(..key.len())?.copy_from_slice(key);
        Some(Self::Inline(key.len() as u8, bytes))
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Self::Shared(key) => key.as_bytes(),
        }
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}
impl Eq for Key {}
impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            // Word by word: a call of memcmp for each of some fifteen short keys cost more than all else of a look-up. What
            // fills up the shorter one orders it first, as no component begins with a zero.
            (Self::Inline(_, a), Self::Inline(_, b)) => words(a).cmp(words(b)),
            _ => (**self).cmp(&**other),
        }
    }
}

/// The bytes as words that order alike; the last overlaps the one before.
fn words(bytes: &[u8; INLINE_BYTES]) -> impl Iterator<Item = u64> + '_ {
    [0, 8, 16, 24, INLINE_BYTES - 8].into_iter().map(|at| {
        let word = bytes[at..].first_chunk().copied().unwrap_or_default();
        u64::from_be_bytes(word)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_order_as_paths_do(a in "(/[a-bA-Bä]{1,14}){1,4}", b in "(/[a-bA-Bä]{1,14}){1,4}") {
            let [a, b] = [a, b].map(|text| DsPath::parse(&text).unwrap());
            let (left, right) = (Key::of(&a), Key::of(&b));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!((*left).cmp(&*right), a.cmp(&b), "and as its bytes, by which it is found as well");
            prop_assert_eq!(left == right, a == b);
            prop_assert_eq!(&*left, a.key().as_bytes());
        }
    }
}

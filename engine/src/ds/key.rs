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
        let key = path.key().as_bytes();
        if key.len() > INLINE_BYTES {
            return Self::Shared(path.shared_key());
        }
        let mut bytes = [0; INLINE_BYTES];
        bytes[..key.len()].copy_from_slice(key);
        Self::Inline(key.len() as u8, bytes)
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
        (**self).cmp(&**other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_order_as_paths_do(a in "(/[a-cA-Cä]{1,14}){1,4}", b in "(/[a-cA-Cä]{1,14}){1,4}") {
            let [a, b] = [a, b].map(|text| DsPath::parse(&text).unwrap());
            let (left, right) = (Key::of(&a), Key::of(&b));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(left == right, a == b);
            prop_assert_eq!(&*left, a.key().as_bytes());
        }
    }
}

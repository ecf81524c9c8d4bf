//! Digests of objects and subtrees: what two members compare to know whether they hold the same.
//!
//! Always: two objects have one digest exactly when their paths (as created, case included), classes and attributes are
//! equal; versions do not count (interface §8). A subtree's digest is the hash of its objects' digests in the order of
//! their folded paths, so it does not depend on how the tree came to be. Never: computed while a change is applied —
//! only when asked for, from what is remembered in each entry.

use std::{fmt, sync::Arc};

use ringpair_wire::ds::{Object, Value};

use crate::ds::tree::Entry;

/// A blake3 digest of an object or a subtree. Shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The digest of one object. Every part is preceded by its length, so that no two objects write the same bytes.
#[must_use]
pub fn of_object(object: &Object) -> Digest {
    let mut bytes = Vec::with_capacity(512);
    let mut part = |tag: u8, part: &[u8]| {
        bytes.push(tag);
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
        bytes.extend_from_slice(part);
    };
    part(b'p', object.path.as_str().as_bytes());
    part(b'c', object.class.as_bytes());
    for attribute in object.attributes.iter() {
        part(b'a', attribute.name.as_bytes());
        for value in &attribute.values {
            match value {
                Value::Text(text) => part(b't', text.as_bytes()),
                Value::Bytes(bytes) => part(b'b', bytes),
                Value::Content { id, text: true, .. } => part(b'T', &id.0),
                Value::Content { id, text: false, .. } => part(b'B', &id.0),
            }
        }
    }
    Digest(*blake3::hash(&bytes).as_bytes())
}

/// The digest of objects that come in the order of their folded paths, and their number.
pub fn of_entries<'a>(entries: impl Iterator<Item = &'a Arc<Entry>>) -> (Digest, u64) {
    let mut hasher = blake3::Hasher::new();
    let mut block = Vec::with_capacity(64 << 10);
    let mut count = 0;
    for entry in entries {
        count += 1;
        block.extend_from_slice(&entry.digest().0);
        if block.len() == 64 << 10 {
            hasher.update(&block);
            block.clear();
        }
    }
    hasher.update(&block);
    (Digest(*hasher.finalize().as_bytes()), count)
}

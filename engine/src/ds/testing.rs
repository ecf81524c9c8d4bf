//! What the tests of this module share: short ways to write paths, values and trees, and generators of changes.
//!
//! Always: generated paths and names come from a few letters, so that they meet. Never: used outside tests.

use proptest::prelude::*;
use ringpair_wire::{
    ds::{Attribute, Change, ContentId, DsPath, Value},
    id::{ChainHash, Epoch, Position, Seq, Version},
};

use crate::ds::tree::TreeSnapshot;

pub fn path(text: &str) -> DsPath {
    DsPath::parse(text).unwrap()
}

pub fn text(value: &str) -> Value {
    Value::Text(value.into())
}

pub fn version(seq: u64) -> Version {
    Version { epoch: Epoch(65_537), seq: Seq(seq) }
}

pub fn position(seq: u64) -> Position {
    Position { epoch: Epoch(65_537), seq: Seq(seq), chain: ChainHash(u128::from(seq)) }
}

/// `/C/alice groups=Sales,Support x=1` as a change.
pub fn put(line: &str) -> Change {
    let mut parts = line.split(' ');
    let path = path(parts.next().unwrap());
    let attributes = parts
        .map(|part| {
            let (name, values) = part.split_once('=').unwrap();
            Attribute { name: name.into(), values: values.split(',').map(text).collect() }
        })
        .collect();
    Change::Put { path, class: None, replace: false, attributes }
}

/// A tree of such lines, versions 1, 2, ….
pub fn tree(lines: &[&str]) -> TreeSnapshot {
    let mut tree = TreeSnapshot::default();
    for (line, seq) in lines.iter().zip(1..) {
        tree.apply(&put(line), version(seq));
        tree.set_position(position(seq));
    }
    tree
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => "[a-c]{0,2}".prop_map(|text| Value::Text(text.into())),
        1 => proptest::collection::vec(any::<u8>(), 0..3).prop_map(|bytes| Value::Bytes(bytes.into())),
        1 => (any::<bool>(), 0..3_u8).prop_map(|(text, n)| Value::Content { id: ContentId([n; 32]), len: 70_000, text }),
    ]
}

fn any_path() -> impl Strategy<Value = DsPath> {
    proptest::collection::vec("[a-dA-D]", 1..4)
        .prop_map(|components| DsPath::from_components(components.iter().map(String::as_str)).unwrap())
}

pub fn any_change() -> impl Strategy<Value = Change> {
    let attribute = ("[x-zX-Z]", proptest::collection::vec(any_value(), 0..3)).prop_map(|(name, mut values)| {
        values.dedup();
        Attribute { name: name.into(), values }
    });
    let put = (any_path(), proptest::option::of("[u-v]?"), any::<bool>(), proptest::collection::vec(attribute, 0..3));
    prop_oneof![
        4 => put.prop_map(|(path, class, replace, mut attributes)| {
            attributes.dedup_by(|a, b| a.name.eq_ignore_ascii_case(&b.name));
            Change::Put { path, class: class.map(Into::into), replace, attributes }
        }),
        1 => any_path().prop_map(|path| Change::Remove { path }),
    ]
}

pub fn any_changes(max: usize) -> impl Strategy<Value = Vec<Change>> {
    proptest::collection::vec(any_change(), 0..max)
}

/// Applies changes with ascending versions from `first` on.
pub fn apply_all(tree: &mut TreeSnapshot, changes: &[Change], first: u64) {
    for (change, seq) in changes.iter().zip(first..) {
        tree.apply(change, version(seq));
        tree.set_position(position(seq));
    }
}

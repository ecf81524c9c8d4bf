//! What the tests of this crate share: golden files and generators of values.

use std::{fmt::Write as _, fs, path::PathBuf};

use proptest::prelude::*;

use crate::{
    codec::Codec,
    ds::{Attribute, Change, ContentId, DsPath, MAX_VALUE_BYTES, Object, Value, fold},
    id::{ChainHash, Epoch, MemberId, Position, Seq, Version},
    record::{EpochRecord, Part, Record},
};

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.hex"))
}

/// The bytes of a golden file.
pub fn golden_bytes(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(golden_path(name)).unwrap_or_default();
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Compares bytes with a golden file: the format of a released version never changes. `RINGPAIR_GOLDEN=write` writes
/// files that do not exist yet; one that exists is only ever removed by hand.
pub fn golden(name: &str, bytes: &[u8]) {
    let path = golden_path(name);
    if !path.exists() && std::env::var_os("RINGPAIR_GOLDEN").is_some_and(|value| value == "write") {
        let mut text = String::new();
        for line in bytes.chunks(32) {
            line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
            text.push('\n');
        }
        fs::write(&path, text).unwrap();
    }
    assert!(golden_bytes(name) == bytes, "{name}: the bytes differ from {}", path.display());
}

/// Encodes, decodes, and compares; every truncation is refused.
pub fn round_trip<T: Codec + PartialEq + std::fmt::Debug>(value: &T) -> Result<(), TestCaseError> {
    let bytes = value.to_bytes();
    prop_assert_eq!(&T::from_bytes(&bytes).map_err(|e| TestCaseError::fail(e.to_string()))?, value);
    for end in 0..bytes.len() {
        prop_assert!(T::from_bytes(&bytes[..end]).is_err(), "cut at {}", end);
    }
    Ok(())
}

/// What decodes encodes to the same bytes: one value, one encoding.
pub fn canonical<T: Codec>(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(value) = T::from_bytes(bytes) {
        prop_assert_eq!(value.to_bytes(), bytes);
    }
    Ok(())
}

pub fn any_member() -> impl Strategy<Value = MemberId> {
    prop_oneof![Just(MemberId::A), Just(MemberId::B)]
}

pub fn any_position() -> impl Strategy<Value = Position> {
    any::<(u64, u64, u128)>().prop_map(|(epoch, seq, chain)| Position {
        epoch: Epoch(epoch),
        seq: Seq(seq),
        chain: ChainHash(chain),
    })
}

fn any_path() -> impl Strategy<Value = DsPath> {
    prop::collection::vec("[A-Za-zäÖ0-9 _-]{1,12}", 1..6)
        .prop_map(|parts| DsPath::from_components(parts.iter().map(String::as_str)).unwrap())
}

fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        ".{0,40}".prop_map(|text| Value::Text(text.into())),
        any::<Vec<u8>>().prop_map(|bytes| Value::Bytes(bytes.into())),
        (any::<[u8; 32]>(), 0..=MAX_VALUE_BYTES as u64, any::<bool>()).prop_map(|(id, len, text)| Value::Content {
            id: ContentId(id),
            len,
            text
        }),
    ]
}

fn any_attributes(least: usize) -> impl Strategy<Value = Vec<Attribute>> {
    let one = ("[A-Za-zÄ]{1,9}", prop::collection::vec(any_value(), least..12)).prop_map(|(name, values)| {
        let mut kept: Vec<Value> = Vec::new();
        values.into_iter().for_each(|value| {
            if !kept.contains(&value) {
                kept.push(value);
            }
        });
        Attribute { name: name.into(), values: kept }
    });
    prop::collection::vec(one, 0..5).prop_map(|all| {
        let mut names = std::collections::HashSet::new();
        all.into_iter().filter(|attribute| names.insert(fold(&attribute.name))).collect()
    })
}

pub fn any_object() -> impl Strategy<Value = Object> {
    (any_path(), "[A-Z]?[a-z]{0,9}", any_attributes(1), any::<(u64, u64)>()).prop_map(
        |(path, class, attributes, (epoch, seq))| Object {
            path,
            class: class.into(),
            attributes: attributes.into_iter().collect(),
            version: Version { epoch: Epoch(epoch), seq: Seq(seq) },
        },
    )
}

fn any_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (any_path(), prop::option::of("[a-z]{0,9}"), any::<bool>(), any_attributes(0)).prop_map(
            |(path, class, replace, attributes)| Change::Put { path, class: class.map(Into::into), replace, attributes }
        ),
        1 => any_path().prop_map(|path| Change::Remove { path }),
        1 => Just(Change::Remove { path: DsPath::root() }),
    ]
}

pub fn any_record() -> impl Strategy<Value = Record> {
    let part = prop_oneof![Just(Part::Whole), Just(Part::Begin), Just(Part::Middle), Just(Part::End)];
    prop_oneof![
        6 => (part, any_change()).prop_map(|(part, change)| Record::Ds { part, change }),
        2 => any::<(u16, [u8; 16], Vec<u8>)>()
            .prop_map(|(kind, id, bytes)| Record::Interaction { kind, id, bytes: bytes.into() }),
        1 => (any::<u64>(), any_member(), any_position(), ".{0,40}").prop_map(|(epoch, member, previous, reason)| {
            Record::Epoch(EpochRecord { epoch: Epoch(epoch), member, previous, reason: reason.into() })
        }),
    ]
}

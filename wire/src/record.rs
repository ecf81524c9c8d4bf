//! Records: what a history is made of, and the encodings of the tree's values (SPEC.md §4).
//!
//! Always: what is decoded keeps every rule of its type (paths re-parsed, names checked, no value twice), and what is
//! encoded can be decoded again. Never: a meaning given to an interaction's bytes, which pass through as they are.

use std::{cmp::Ordering, collections::HashSet, sync::Arc};

use crate::{
    codec::{Codec, DecodeError, Reader, Writer, prefix},
    ds::{
        Attribute, Attributes, CONTENT_FROM_BYTES, Change, MAX_NAME_BYTES, MAX_VALUE_BYTES, Object, Value, ValueRef,
        check_name, fold,
    },
    frame::MAX_PLAIN_BYTES,
    id::{Epoch, MemberId, Position},
};

/// The greatest length of an encoded record: one must fit into a frame by itself (W-20). A change that is longer is
/// split into several of one transaction, or its values become content.
pub const MAX_RECORD_BYTES: usize = MAX_PLAIN_BYTES - 16;
/// The greatest length of the reason in an epoch record, in bytes.
pub const MAX_REASON_BYTES: usize = 255;
/// The greatest count of attributes in a change or object, and of values in an attribute.
pub const MAX_LIST: usize = 65_536;
/// For so many elements of a list room is made at once: a count proves nothing.
const AT_ONCE: usize = 16;

/// One record of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// Begins an epoch, in a frame of its own.
    Epoch(EpochRecord),
    /// A change of the tree.
    Ds {
        /// Its place in its transaction.
        part: Part,
        /// The change, resolved.
        change: Change,
    },
    /// An event of a live interaction: nothing here reads its bytes.
    Interaction {
        /// What kind of event, by the interactions' own numbering.
        kind: u16,
        /// Which interaction.
        id: [u8; 16],
        /// The event.
        bytes: Arc<[u8]>,
    },
}

/// The first record of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    /// The epoch that begins: that of the frame.
    pub epoch: Epoch,
    /// Who is active in it.
    pub member: MemberId,
    /// The end of the history before it.
    pub previous: Position,
    /// Why it began, for people; at most [`MAX_REASON_BYTES`], cut there when encoded.
    pub reason: Arc<str>,
}

/// The place of a change in its transaction. A transaction takes effect with its last record; it may span frames,
/// never epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// A transaction of one change.
    Whole,
    /// The first of several.
    Begin,
    /// Neither first nor last.
    Middle,
    /// The last.
    End,
}

impl Part {
    /// The part of the change at `index` of `count`.
    #[must_use]
    pub const fn of(index: usize, count: usize) -> Self {
        match (index, count) {
            (_, 0 | 1) => Self::Whole,
            (0, _) => Self::Begin,
            (index, count) if index + 1 >= count => Self::End,
            _ => Self::Middle,
        }
    }

    /// Whether the transaction takes effect with this record.
    #[must_use]
    pub const fn is_last(self) -> bool {
        matches!(self, Self::Whole | Self::End)
    }
}

impl Record {
    /// Whether this begins an epoch.
    #[must_use]
    pub const fn is_epoch(&self) -> bool {
        matches!(self, Self::Epoch(_))
    }
}

/// Record types on the wire.
pub(crate) mod tag {
    pub const EPOCH: u8 = 1;
    pub const INTERACTION: u8 = 2;
    /// 4 to 7: a change, with its part in the two low bits.
    pub const DS: u8 = 4;
}

impl Codec for Record {
    const NAME: &'static str = "record";

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Epoch(record) => {
                w.u8(tag::EPOCH);
                w.epoch(record.epoch);
                w.member(record.member);
                w.position(record.previous);
                w.text(prefix(&record.reason, MAX_REASON_BYTES));
            }
            Self::Interaction { kind, id, bytes } => {
                w.u8(tag::INTERACTION);
                w.u16(*kind);
                w.raw(id);
                w.blob(bytes);
            }
            Self::Ds { part, change } => encode_change(*part, change, w),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let part = match r.u8("record.type")? {
            tag::EPOCH => {
                return Ok(Self::Epoch(EpochRecord {
                    epoch: r.epoch("record.epoch")?,
                    member: r.member("record.member")?,
                    previous: r.position("record.previous")?,
                    reason: r.text("record.reason", MAX_REASON_BYTES)?.into(),
                }));
            }
            tag::INTERACTION => {
                return Ok(Self::Interaction {
                    kind: r.u16("record.kind")?,
                    id: r.array("record.id")?,
                    bytes: r.blob("record.bytes", MAX_RECORD_BYTES)?.into(),
                });
            }
            got => Part::of_tag(got).ok_or(DecodeError::Tag {
                what: "record.type",
                got: got.into(),
                expected: "1 (epoch), 2 (interaction) or 4 to 7 (change)",
            })?,
        };
        Ok(Self::Ds { part, change: Change::decode(r)? })
    }
}

/// Encodes the record of a change, as [`Record::Ds`] does, without making one.
pub fn encode_change(part: Part, change: &Change, w: &mut Writer<'_>) {
    w.u8(part.tag());
    change.encode(w);
}

impl Codec for Change {
    const NAME: &'static str = "change";

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Put { path, class, replace, attributes } => {
                w.u8(1);
                w.path(path);
                w.option(class.as_ref(), |w, class| w.text(class));
                w.bool(*replace);
                w.count(attributes.len());
                for attribute in attributes {
                    attribute.encode(w);
                }
            }
            Self::Remove { path } => {
                w.u8(2);
                w.path(path);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8("change.type")? {
            1 => {
                let path = object_path(r)?;
                let class = r.option("change.class", read_class)?;
                let replace = r.bool("change.replace")?;
                let count = r.count("change.attributes", MAX_LIST, 3)?;
                let mut attributes = Vec::with_capacity(count.min(AT_ONCE));
                for _ in 0..count {
                    attributes.push(Attribute::decode(r)?);
                }
                // A change of one attribute, the usual one, pays nothing for this.
                let mut names = HashSet::new();
                let repeated = attributes.iter().find(|attribute| count > 1 && !names.insert(fold(&attribute.name)));
                if let Some(attribute) = repeated {
                    return Err(twice("change.attributes", &attribute.name));
                }
                Ok(Self::Put { path, class, replace, attributes })
            }
            2 => Ok(Self::Remove { path: r.path("change.path")? }),
            got => Err(DecodeError::Tag { what: "change.type", got: got.into(), expected: "1 (put) or 2 (remove)" }),
        }
    }
}

impl Codec for Attribute {
    const NAME: &'static str = "attribute";

    fn encode(&self, w: &mut Writer<'_>) {
        w.text(&self.name);
        w.count(self.values.len());
        for value in &self.values {
            value.encode(w);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let name = r.text("attribute.name", MAX_NAME_BYTES)?;
        check_name(name).map_err(|e| DecodeError::Invalid { what: "attribute.name", why: e.to_string() })?;
        let count = r.count("attribute.values", MAX_LIST, 2)?;
        let mut values = Vec::with_capacity(count.min(AT_ONCE));
        for _ in 0..count {
            values.push(Value::decode(r)?);
        }
        if has_twice(&values) {
            return Err(twice("attribute.values", name));
        }
        Ok(Self { name: name.into(), values })
    }
}

impl ValueRef<'_> {
    /// Appends the encoding, the same as that of the value.
    pub fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Text(text) => {
                w.u8(1);
                w.text(text);
            }
            Self::Bytes(bytes) => {
                w.u8(2);
                w.blob(bytes);
            }
        }
    }
}

impl Codec for Value {
    const NAME: &'static str = "value";

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Text(text) => ValueRef::Text(text).encode(w),
            Self::Bytes(bytes) => ValueRef::Bytes(bytes).encode(w),
            Self::Content { id, len, text } => {
                w.u8(3);
                w.bool(*text);
                w.u64(*len);
                w.content_id(*id);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8("value.type")? {
            1 => Ok(Self::Text(r.text("value.text", CONTENT_FROM_BYTES)?.into())),
            2 => Ok(Self::Bytes(r.blob("value.bytes", CONTENT_FROM_BYTES)?.into())),
            3 => {
                let (text, len) = (r.bool("value.is_text")?, r.u64("value.len")?);
                let max = MAX_VALUE_BYTES as u64;
                if len > max {
                    return Err(DecodeError::TooLong { what: "value.len", got: len, max });
                }
                Ok(Self::Content { id: r.content_id("value.content")?, len, text })
            }
            got => {
                let expected = "1 (text), 2 (bytes) or 3 (content)";
                Err(DecodeError::Tag { what: "value.type", got: got.into(), expected })
            }
        }
    }
}

impl Codec for Object {
    const NAME: &'static str = "object";

    fn encode(&self, w: &mut Writer<'_>) {
        w.path(&self.path);
        w.text(&self.class);
        w.version(self.version);
        w.count(self.attributes.len());
        for attribute in &self.attributes {
            attribute.encode(w);
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let path = object_path(r)?;
        let class = read_class(r)?;
        let version = r.version("object.version")?;
        let mut attributes = Attributes::new();
        for _ in 0..r.count("object.attributes", MAX_LIST, 3)? {
            let attribute = Attribute::decode(r)?;
            let (what, name) = ("object.attributes", Arc::clone(&attribute.name));
            if attribute.values.is_empty() {
                return Err(DecodeError::Invalid { what, why: format!("attribute {name:?} has no value") });
            }
            attributes.push(attribute).map_err(|order| match order {
                Ordering::Equal => twice(what, &name),
                _ => DecodeError::Invalid { what, why: format!("attribute {name:?} is out of order") },
            })?;
        }
        Ok(Self { path, class, attributes, version })
    }
}

/// A path that is not the root: the root is no object (W-22).
fn object_path(r: &mut Reader<'_>) -> Result<crate::ds::DsPath, DecodeError> {
    let path = r.path("object.path")?;
    if path.is_root() {
        return Err(DecodeError::Invalid { what: "object.path", why: "the root is no object".into() });
    }
    Ok(path)
}

/// A class: empty, or a name (W-23).
fn read_class(r: &mut Reader<'_>) -> Result<Arc<str>, DecodeError> {
    let class = r.text("object.class", MAX_NAME_BYTES)?;
    if !class.is_empty() {
        check_name(class).map_err(|e| DecodeError::Invalid { what: "object.class", why: e.to_string() })?;
    }
    Ok(class.into())
}

/// Whether a value occurs twice (W-24).
fn has_twice(values: &[Value]) -> bool {
    if values.len() <= 8 {
        return values.iter().enumerate().any(|(index, value)| values[..index].contains(value));
    }
    let mut seen = HashSet::with_capacity(values.len());
    !values.iter().all(|value| seen.insert(value))
}

fn twice(what: &'static str, name: &str) -> DecodeError {
    DecodeError::Invalid { what, why: format!("{name:?}: the same twice") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        ds::{ContentId, DsPath},
        testing::{any_object, any_record, canonical, golden, round_trip},
    };

    fn put(attributes: Vec<Attribute>) -> Change {
        Change::Put {
            path: DsPath::parse("/CONFIG/Users/alice").unwrap(),
            class: Some("User".into()),
            replace: false,
            attributes,
        }
    }

    fn attribute(name: &str, values: Vec<Value>) -> Attribute {
        Attribute { name: name.into(), values }
    }

    fn error(change: &Change) -> DecodeError {
        Change::from_bytes(&change.to_bytes()).unwrap_err()
    }

    #[test]
    fn golden_records() {
        let content = Value::Content { id: ContentId([0xcc; 32]), len: 1 << 20, text: true };
        let values = vec![Value::Text("Sales".into()), Value::Bytes([0, 255].into()), content];
        let change = put(vec![attribute("Workgroups", values), attribute("Extension", vec![])]);
        golden("record_put", &Record::Ds { part: Part::End, change }.to_bytes());
        let change = Change::Remove { path: DsPath::parse("/CONFIG/Users/alice").unwrap() };
        golden("record_remove", &Record::Ds { part: Part::Whole, change }.to_bytes());
        golden("record_interaction", &Record::Interaction { kind: 3, id: [1; 16], bytes: (*b"hi").into() }.to_bytes());
    }

    // REQ: REP-125
    #[test]
    fn the_same_twice_is_refused_w24() {
        let one = || Value::Text("x".into());
        assert!(error(&put(vec![attribute("a", vec![one(), one()])])).to_string().contains("twice"));
        let many = (0..20).map(|n| Value::Text((n % 19).to_string().into())).collect();
        assert!(error(&put(vec![attribute("a", many)])).to_string().contains("twice"));
        let names = put(vec![attribute("Name", vec![one()]), attribute("nAME", vec![one()])]);
        assert!(error(&names).to_string().contains("\"nAME\": the same twice"), "REP-125: regardless of case");
    }

    #[test]
    fn names_paths_and_values_keep_their_rules_w22_w23_w25() {
        for name in ["", "a\nb", &"x".repeat(256)] {
            assert!(
                error(&put(vec![attribute(name, vec![Value::Text("x".into())])]))
                    .to_string()
                    .contains("attribute.name"),
                "{name:?}"
            );
        }
        let mut root = put(vec![]);
        if let Change::Put { path, .. } = &mut root {
            *path = DsPath::root();
        }
        assert!(error(&root).to_string().contains("the root is no object"));
        let long = Value::Text("x".repeat(CONTENT_FROM_BYTES + 1).into());
        assert!(matches!(error(&put(vec![attribute("a", vec![long])])), DecodeError::TooLong { got: 65_537, .. }));
        let long = Value::Content { id: ContentId([0; 32]), len: MAX_VALUE_BYTES as u64 + 1, text: false };
        assert!(matches!(error(&put(vec![attribute("a", vec![long])])), DecodeError::TooLong { .. }));
    }

    #[test]
    fn an_object_has_values_under_ascending_names_w24_w26() {
        let object = |attributes: &[Attribute]| {
            let mut bytes = Vec::new();
            let mut w = Writer::new(&mut bytes);
            w.path(&DsPath::parse("/a").unwrap());
            w.text("User");
            w.raw(&[0; 16]);
            w.count(attributes.len());
            attributes.iter().for_each(|attribute| attribute.encode(&mut w));
            Object::from_bytes(&bytes).map_err(|e| e.to_string())
        };
        let one = |name| attribute(name, vec![Value::Text("x".into())]);
        assert_eq!(object(&[one("B"), one("c")]).unwrap().attributes.len(), 2);
        for (attributes, why) in [
            (vec![one("c"), one("B")], "\"B\" is out of order"),
            (vec![one("B"), one("b")], "\"b\": the same twice"),
            (vec![one("B"), attribute("c", vec![])], "\"c\" has no value"),
        ] {
            let error = object(&attributes).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character_w21() {
        let reason = "ä".repeat(200).into();
        let begun = EpochRecord { epoch: Epoch(1), member: MemberId::A, previous: Position::default(), reason };
        match Record::from_bytes(&Record::Epoch(begun).to_bytes()) {
            Ok(Record::Epoch(read)) => assert_eq!(*read.reason, *"ä".repeat(127)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_of_a_transaction() {
        let parts = |count| (0..count).map(|index| Part::of(index, count)).collect::<Vec<_>>();
        assert_eq!(parts(1), [Part::Whole]);
        assert_eq!(parts(2), [Part::Begin, Part::End]);
        assert_eq!(parts(4), [Part::Begin, Part::Middle, Part::Middle, Part::End]);
        assert!(parts(3).iter().enumerate().all(|(index, part)| part.is_last() == (index == 2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn records_round_trip(record in any_record()) {
            round_trip(&record)?;
        }

        #[test]
        fn objects_round_trip(object in any_object()) {
            round_trip(&object)?;
        }

        #[test]
        fn any_bytes_are_an_error_or_canonical(bytes: Vec<u8>, tag in 0..9_u8) {
            canonical::<Record>(&bytes)?;
            canonical::<Object>(&bytes)?;
            let mut tagged = vec![tag, 1];
            tagged.extend_from_slice(&bytes);
            canonical::<Record>(&tagged)?;
        }

        #[test]
        fn flipped_records_are_an_error_or_canonical(record in any_record(), at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = record.to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            canonical::<Record>(&bytes)?;
        }
    }
}

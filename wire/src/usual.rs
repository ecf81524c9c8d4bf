//! The usual change, read where it lies: a put of a few single, inline values under a short ASCII path. Nothing is
//! allocated to read, check, encode or look it up.
//!
//! Always: what is read here is what [`Record`](crate::record::Record) reads from the same bytes, every rule kept. Never:
//! an error: what is unusual, or wrong, is for the codecs of everything, which say what is wrong.

use crate::{
    client::How,
    codec::{Reader, Writer},
    ds::{Attribute, CONTENT_FROM_BYTES, Change, DsPath, MAX_NAME_BYTES, PathKey, ValueRef, check_name, cmp_folded},
    record::{Part, tag},
};

/// The greatest number of attributes that is usual.
const MOST: usize = 4;

/// A put of inline values, each the only one of its attribute.
#[derive(Clone, Copy, Debug)]
pub struct UsualPut<'a> {
    path: &'a str,
    class: Option<&'a str>,
    replace: bool,
    count: usize,
    attributes: [(&'a str, ValueRef<'a>); MOST],
}

impl<'a> UsualPut<'a> {
    /// Reads a record; `None`: it is of another kind, or wrong.
    #[must_use]
    pub fn of_record(record: &'a [u8]) -> Option<(Part, Self)> {
        let mut r = Reader::new(record);
        let part = Part::of_tag(r.u8("").ok()?)?;
        let put = Self::read(&mut r, |_| Some(()))?;
        r.is_empty().then_some((part, put))
    }

    /// Reads the one operation of a client's request, as it is resolved: its attributes in the order of their folded
    /// names. `None`: it is of another kind, or wrong.
    #[must_use]
    pub fn of_request(request: &'a [u8]) -> Option<Self> {
        let mut r = Reader::new(request);
        if r.u8("").ok()? != 1 {
            return None;
        }
        let mut put = Self::read(&mut r, |r| (r.u8("").ok()? == How::Set as u8).then_some(()))?;
        let count = put.count;
        put.attributes[..count].sort_unstable_by(|(a, _), (b, _)| cmp_folded(a, b));
        r.is_empty().then_some(put)
    }

    /// Reads what records and requests have in common; `how` reads what a request says of an attribute behind its name.
    fn read(r: &mut Reader<'a>, how: impl Fn(&mut Reader<'a>) -> Option<()>) -> Option<Self> {
        if r.u8("").ok()? != 1 {
            return None;
        }
        let path = r.text("", PathKey::MAX_BYTES).ok()?;
        PathKey::of(path)?;
        let class = r.option("", |r| r.text("", MAX_NAME_BYTES)).ok()?;
        if class.is_some_and(|class| !class.is_empty() && check_name(class).is_err()) {
            return None;
        }
        let replace = r.bool("").ok()?;
        let count = r.count("", MOST, 3).ok()?;
        let mut put = Self { path, class, replace, count, attributes: [("", ValueRef::Text("")); MOST] };
        for index in 0..count {
            let name = r.text("", MAX_NAME_BYTES).ok()?;
            check_name(name).ok()?;
            how(r)?;
            if r.u8("").ok()? != 1 {
                return None;
            }
            let value = match r.u8("").ok()? {
                1 => ValueRef::Text(r.text("", CONTENT_FROM_BYTES).ok()?),
                2 => ValueRef::Bytes(r.blob("", CONTENT_FROM_BYTES).ok()?),
                _ => return None,
            };
            if put.attributes[..index].iter().any(|(other, _)| cmp_folded(other, name).is_eq()) {
                return None;
            }
            put.attributes[index] = (name, value);
        }
        Some(put)
    }

    /// The path as it is written.
    #[must_use]
    pub const fn path(&self) -> &'a str {
        self.path
    }

    /// What the object is found by.
    #[must_use]
    pub fn key(&self) -> Option<PathKey> {
        PathKey::of(self.path)
    }

    /// The new class; `None` keeps the present one.
    #[must_use]
    pub const fn class(&self) -> Option<&'a str> {
        self.class
    }

    /// Whether attributes that are not named are removed.
    #[must_use]
    pub const fn replaces(&self) -> bool {
        self.replace
    }

    /// The attributes, each with its value.
    #[must_use]
    pub fn attributes(&self) -> &[(&'a str, ValueRef<'a>)] {
        &self.attributes[..self.count]
    }

    /// Whether it has an attribute of this name, whatever the case.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.attributes().iter().any(|(named, _)| cmp_folded(named, name).is_eq())
    }

    /// Appends the record that it is as `part` of its transaction.
    pub fn encode(&self, part: Part, w: &mut Writer<'_>) {
        w.u8(part.tag());
        w.u8(1);
        w.text(self.path);
        w.option(self.class, |w, class| w.text(class));
        w.bool(self.replace);
        w.count(self.count);
        for (name, value) in self.attributes() {
            w.text(name);
            w.count(1);
            value.encode(w);
        }
    }

    /// The same change as one of any kind; `None` never comes from one that was read.
    #[must_use]
    pub fn to_change(&self) -> Option<Change> {
        let attribute =
            |(name, value): &(&str, ValueRef<'_>)| Attribute { name: (*name).into(), values: vec![(*value).into()] };
        Some(Change::Put {
            path: DsPath::parse(self.path).ok()?,
            class: self.class.map(Into::into),
            replace: self.replace,
            attributes: self.attributes().iter().map(attribute).collect(),
        })
    }
}

impl Part {
    /// The type of a change's record, with its part in the two low bits.
    pub(crate) const fn tag(self) -> u8 {
        tag::DS
            | match self {
                Self::Whole => 0,
                Self::Begin => 1,
                Self::Middle => 2,
                Self::End => 3,
            }
    }

    /// The part that a change's record is; `None`: it is no change.
    pub(crate) const fn of_tag(tag: u8) -> Option<Self> {
        match tag {
            4 => Some(Self::Whole),
            5 => Some(Self::Begin),
            6 => Some(Self::Middle),
            7 => Some(Self::End),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        client::{AttributeEdit, Operation, encode_request},
        codec::Codec,
        record::Record,
        testing::any_record,
    };

    /// What is usual says the same as the codec of everything, and encodes to the bytes that it came from.
    fn agrees(bytes: &[u8]) -> bool {
        let Some((part, put)) = UsualPut::of_record(bytes) else { return false };
        let change = put.to_change().unwrap();
        assert_eq!(put.key().unwrap().bytes(), DsPath::parse(put.path()).unwrap().key().as_bytes());
        assert_eq!(Record::from_bytes(bytes).unwrap(), Record::Ds { part, change });
        let mut again = Vec::new();
        put.encode(part, &mut Writer::new(&mut again));
        assert_eq!(again, bytes);
        true
    }

    fn record(path: &str, class: &str, names: &[&str]) -> Vec<u8> {
        let value = ValueRef::Text("x");
        let mut attributes = [("", value); MOST];
        names.iter().enumerate().for_each(|(index, name)| attributes[index] = (name, value));
        let put = UsualPut { path, class: Some(class), replace: false, count: names.len(), attributes };
        let mut bytes = Vec::new();
        put.encode(Part::Whole, &mut Writer::new(&mut bytes));
        bytes
    }

    #[test]
    fn what_breaks_a_rule_is_left_to_the_codec_that_says_which_w22_w23_w24() {
        assert!(agrees(&record("/CONFIG/Users/Alice", "User", &["Extension", "Groups"])));
        let long = format!("/{}", "x".repeat(256));
        for bytes in [
            record("/", "User", &["a"]),
            record("CONFIG", "User", &["a"]),
            record("/a//b", "User", &["a"]),
            record("/a/../b", "User", &["a"]),
            record("/a\u{1}", "User", &["a"]),
            record(&long, "User", &["a"]),
            record("/a", "a\nb", &["a"]),
            record("/a", "User", &[""]),
            record("/a", "User", &["a", "A"]),
            [&record("/a", "User", &["a"])[..], b"x"].concat(),
        ] {
            assert!(UsualPut::of_record(&bytes).is_none() && Record::from_bytes(&bytes).is_err(), "{bytes:?}");
        }
        assert!(UsualPut::of_record(&record("/Ä", "User", &["a"])).is_none(), "unusual, and right");
    }

    #[test]
    fn a_request_is_read_as_it_is_resolved() {
        let edit = |name, how| AttributeEdit { name, how, values: vec![ValueRef::Text("1")] };
        let request = |attributes| {
            let put = Operation::Put { path: "/A/b", class: Some("C"), replace: true, attributes };
            let mut bytes = Vec::new();
            encode_request(&[put], &mut bytes);
            bytes
        };
        let bytes = request(vec![edit("b", How::Set), edit("A", How::Set)]);
        let put = UsualPut::of_request(&bytes).unwrap();
        assert_eq!(put.attributes().iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["A", "b"]);
        assert!(put.replaces() && put.names("B") && !put.names("c"));
        for how in [How::Add, How::Remove, How::Unset] {
            assert!(UsualPut::of_request(&request(vec![edit("b", how)])).is_none());
        }
    }

    proptest! {
        #[test]
        fn records_read_here_are_read_alike_everywhere(record in any_record()) {
            agrees(&record.to_bytes());
        }

        #[test]
        fn so_are_flipped_ones(name in "[a-cA-C]{1,3}", at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = record("/CONFIG/Users/Alice", "User", &["aa", &name]);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            agrees(&bytes);
        }
    }
}

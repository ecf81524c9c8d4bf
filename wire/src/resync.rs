//! Messages of the resynchronization by digests (design §3): a follower finds out, by comparing digests of ever smaller
//! ranges of path hashes, which objects differ from the leader's, and fetches those.
//!
//! Always: one answer for each request, named by its number; every message is bounded ([`MAX_MESSAGE_BYTES`]) and every
//! count checked before anything is allocated. Objects lie in a space of 64-bit hashes of their folded paths, so that a
//! container with a million children is split like anything else. Never: a message that depends on an earlier one — the
//! leader keeps no state but its snapshot. Layout: SPEC.md, resynchronization.

use crate::{
    codec::{Codec, DecodeError, Reader, Writer},
    ds::Object,
    id::Position,
    record::MAX_RECORD_BYTES,
};

/// The greatest number of nodes that one request asks about.
pub const MAX_NODES: usize = 64;
/// The greatest number of items in one bucket of an answer.
pub const MAX_BUCKET_ITEMS: usize = 256;
/// The greatest number of ranges in one request for objects.
pub const MAX_RANGES: usize = 1024;
/// An answer with objects holds at most this many bytes of them, or one group of objects that share a hash.
pub const BATCH_BYTES: usize = 128 << 10;
/// The greatest encoded size of the objects that share a hash (nearly always one), in bytes: what a record can carry.
pub const MAX_GROUP_BYTES: usize = MAX_RECORD_BYTES;
/// The greatest encoded size of a message, in bytes: it fits where a frame fits.
pub const MAX_MESSAGE_BYTES: usize = MAX_GROUP_BYTES + 64;

/// The depth at which a prefix is a whole hash.
pub const MAX_PREFIX_DEPTH: u8 = 16;

/// A node of the comparison: all path hashes that begin with `depth` hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    bits: u64,
    depth: u8,
}

impl Prefix {
    /// All hashes.
    pub const ROOT: Self = Self { bits: 0, depth: 0 };

    /// How many digits are given, 0 to 16.
    #[must_use]
    pub const fn depth(self) -> u8 {
        self.depth
    }

    /// The least hash in the node.
    #[must_use]
    pub const fn first(self) -> u64 {
        self.bits
    }

    /// The greatest hash in the node.
    #[must_use]
    pub const fn last(self) -> u64 {
        match u64::MAX.checked_shr(self.depth as u32 * 4) {
            Some(below) => self.bits | below,
            None => self.bits,
        }
    }

    /// The child with the next digit `digit` (0 to 15); `None` for a whole hash.
    #[must_use]
    pub const fn child(self, digit: u8) -> Option<Self> {
        if self.depth >= MAX_PREFIX_DEPTH || digit > 15 {
            return None;
        }
        let shift = 60 - 4 * self.depth as u32;
        Some(Self { bits: self.bits | ((digit as u64) << shift), depth: self.depth + 1 })
    }
}

/// What a node holds: how many objects, and the sum (modulo 2^128) of their leaf hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The number of objects.
    pub count: u64,
    /// The sum of the leaf hashes: equal sums mean equal objects, versions included, but for an attacker's effort;
    /// the digest in [`ResyncMessage::Root`] closes that gap.
    pub sum: u128,
}

/// One path hash within a bucket and the sum of the leaf hashes of the objects that share it (nearly always one).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// The hash of the folded path.
    pub hash: u64,
    /// The sum of the leaf hashes.
    pub sum: u128,
}

/// A range of path hashes, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashRange {
    /// The least hash.
    pub first: u64,
    /// The greatest hash, not below `first`.
    pub last: u64,
}

/// A message of a resynchronization. Requests come from the follower, answers from the leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResyncMessage {
    /// Request: what does the whole tree hold?
    Begin,
    /// Answer to `Begin`.
    Root {
        /// The position of the leader's snapshot.
        position: Position,
        /// What the whole tree holds.
        summary: Summary,
        /// The digest of all objects with their versions (W-82): checked when everything has been staged.
        digest: [u8; 32],
    },
    /// Request: what do the 16 children of these nodes hold?
    AskChildren {
        /// The number that the answer carries.
        request: u32,
        /// Which nodes, at most [`MAX_NODES`].
        nodes: Vec<Prefix>,
    },
    /// Answer to `AskChildren`.
    Children {
        /// The number of the request.
        request: u32,
        /// For each node asked about, its children by digit.
        nodes: Vec<[Summary; 16]>,
    },
    /// Request: which hashes do these small nodes hold?
    AskItems {
        /// The number that the answer carries.
        request: u32,
        /// Which nodes, at most [`MAX_NODES`], each of at most [`MAX_BUCKET_ITEMS`] objects.
        nodes: Vec<Prefix>,
    },
    /// Answer to `AskItems`.
    Items {
        /// The number of the request.
        request: u32,
        /// For each node asked about, its items in ascending order of hashes, no hash twice.
        nodes: Vec<Vec<Item>>,
    },
    /// Request: the objects in these ranges.
    AskObjects {
        /// The number that the answer carries.
        request: u32,
        /// Which, at most [`MAX_RANGES`], none empty.
        ranges: Vec<HashRange>,
    },
    /// Answer to `AskObjects`: whole groups of equal hash, in the order of the ranges: [`BATCH_BYTES`] at most,
    /// or one group.
    Objects {
        /// The number of the request.
        request: u32,
        /// The objects.
        objects: Vec<Object>,
        /// How many ranges are answered whole.
        ranges_done: u32,
        /// Where in the next range to go on, if a part of that is answered.
        resume_at: Option<u64>,
    },
}

impl Codec for ResyncMessage {
    const NAME: &'static str = "resync message";

    fn encode(&self, writer: &mut Writer<'_>) {
        match self {
            Self::Begin => writer.u8(0),
            Self::Root { position, summary, digest } => {
                writer.u8(1);
                writer.position(*position);
                write_summary(writer, summary);
                writer.raw(digest);
            }
            Self::AskChildren { request, nodes } => write_nodes(writer, 2, *request, nodes),
            Self::Children { request, nodes } => {
                writer.u8(3);
                writer.u32(*request);
                writer.count(nodes.len());
                nodes.iter().flatten().for_each(|summary| write_summary(writer, summary));
            }
            Self::AskItems { request, nodes } => write_nodes(writer, 4, *request, nodes),
            Self::Items { request, nodes } => {
                writer.u8(5);
                writer.u32(*request);
                writer.count(nodes.len());
                for items in nodes {
                    writer.count(items.len());
                    for item in items {
                        writer.u64(item.hash);
                        writer.u128(item.sum);
                    }
                }
            }
            Self::AskObjects { request, ranges } => {
                writer.u8(6);
                writer.u32(*request);
                writer.count(ranges.len());
                for range in ranges {
                    writer.u64(range.first);
                    writer.u64(range.last);
                }
            }
            Self::Objects { request, objects, ranges_done, resume_at } => {
                writer.u8(7);
                writer.u32(*request);
                writer.u32(*ranges_done);
                writer.option(*resume_at, Writer::u64);
                writer.count(objects.len());
                objects.iter().for_each(|object| object.encode(writer));
            }
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if reader.remaining() > MAX_MESSAGE_BYTES {
            let got = reader.remaining() as u64;
            return Err(DecodeError::TooLong { what: Self::NAME, got, max: MAX_MESSAGE_BYTES as u64 });
        }
        Ok(match reader.u8("resync kind")? {
            0 => Self::Begin,
            1 => Self::Root {
                position: reader.position("resync position")?,
                summary: read_summary(reader)?,
                digest: reader.array("resync digest")?,
            },
            2 => Self::AskChildren {
                request: reader.u32("resync request")?,
                nodes: read_nodes(reader, MAX_PREFIX_DEPTH - 1)?,
            },
            3 => {
                let request = reader.u32("resync request")?;
                let count = reader.count("resync nodes", MAX_NODES, 16 * 17)?;
                let node = |_| {
                    let mut children = [Summary::default(); 16];
                    for child in &mut children {
                        *child = read_summary(reader)?;
                    }
                    Ok(children)
                };
                Self::Children { request, nodes: (0..count).map(node).collect::<Result<_, _>>()? }
            }
            4 => {
                Self::AskItems { request: reader.u32("resync request")?, nodes: read_nodes(reader, MAX_PREFIX_DEPTH)? }
            }
            5 => {
                let request = reader.u32("resync request")?;
                let count = reader.count("resync nodes", MAX_NODES, 1)?;
                Self::Items { request, nodes: (0..count).map(|_| read_items(reader)).collect::<Result<_, _>>()? }
            }
            6 => {
                let request = reader.u32("resync request")?;
                let count = reader.count("resync ranges", MAX_RANGES, 16)?;
                Self::AskObjects { request, ranges: (0..count).map(|_| read_range(reader)).collect::<Result<_, _>>()? }
            }
            7 => {
                let request = reader.u32("resync request")?;
                let ranges_done = reader.u32("resync ranges done")?;
                let resume_at = reader.option("resync resume", |reader| reader.u64("resync resume"))?;
                // The least object: a path of two bytes, an empty class, no attribute, a version.
                let count = reader.count("resync objects", MAX_MESSAGE_BYTES, 2 + 1 + 1 + 1 + 16)?;
                let objects = (0..count).map(|_| Object::decode(reader)).collect::<Result<_, _>>()?;
                Self::Objects { request, objects, ranges_done, resume_at }
            }
            got => return Err(DecodeError::Tag { what: "resync kind", got: got.into(), expected: "0 to 7" }),
        })
    }
}

fn write_summary(writer: &mut Writer<'_>, summary: &Summary) {
    writer.varint(summary.count);
    writer.u128(summary.sum);
}

fn read_summary(reader: &mut Reader<'_>) -> Result<Summary, DecodeError> {
    Ok(Summary { count: reader.varint("resync count")?, sum: reader.u128("resync sum")? })
}

fn write_nodes(writer: &mut Writer<'_>, kind: u8, request: u32, nodes: &[Prefix]) {
    writer.u8(kind);
    writer.u32(request);
    writer.count(nodes.len());
    for node in nodes {
        writer.u8(node.depth);
        writer.u64(node.bits);
    }
}

fn read_nodes(reader: &mut Reader<'_>, max_depth: u8) -> Result<Vec<Prefix>, DecodeError> {
    let count = reader.count("resync nodes", MAX_NODES, 9)?;
    let node = |_| {
        let (depth, bits) = (reader.u8("resync depth")?, reader.u64("resync prefix")?);
        if depth > max_depth {
            return Err(DecodeError::TooLong { what: "resync depth", got: depth.into(), max: max_depth.into() });
        }
        let below = u64::MAX.checked_shr(u32::from(depth) * 4).unwrap_or(0);
        if bits & below != 0 {
            return Err(DecodeError::Invalid {
                what: "resync prefix",
                why: format!("{bits:#x} goes beyond depth {depth}"),
            });
        }
        Ok(Prefix { bits, depth })
    };
    (0..count).map(node).collect()
}

fn read_items(reader: &mut Reader<'_>) -> Result<Vec<Item>, DecodeError> {
    let count = reader.count("resync items", MAX_BUCKET_ITEMS, 24)?;
    let mut items: Vec<Item> = Vec::with_capacity(count);
    for _ in 0..count {
        let item = Item { hash: reader.u64("resync hash")?, sum: reader.u128("resync sum")? };
        if items.last().is_some_and(|last| last.hash >= item.hash) {
            return Err(DecodeError::Invalid { what: "resync items", why: "hashes do not ascend".into() });
        }
        items.push(item);
    }
    Ok(items)
}

fn read_range(reader: &mut Reader<'_>) -> Result<HashRange, DecodeError> {
    let range = HashRange { first: reader.u64("resync range")?, last: reader.u64("resync range")? };
    if range.first > range.last {
        return Err(DecodeError::Invalid {
            what: "resync range",
            why: format!("{:#x} > {:#x}", range.first, range.last),
        });
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        lane::LaneKind,
        testing::{any_object, any_position, canonical, golden, round_trip},
    };

    fn any_prefix(max_depth: usize) -> impl Strategy<Value = Prefix> {
        proptest::collection::vec(0..16_u8, 0..=max_depth)
            .prop_map(|digits| digits.into_iter().fold(Prefix::ROOT, |node, digit| node.child(digit).unwrap()))
    }

    fn any_summary() -> impl Strategy<Value = Summary> {
        any::<(u64, u128)>().prop_map(|(count, sum)| Summary { count, sum })
    }

    fn any_items() -> impl Strategy<Value = Vec<Item>> {
        proptest::collection::btree_map(any::<u64>(), any::<u128>(), 0..5)
            .prop_map(|items| items.into_iter().map(|(hash, sum)| Item { hash, sum }).collect())
    }

    fn any_message() -> impl Strategy<Value = ResyncMessage> {
        use proptest::collection::vec;
        let children = vec(any_summary(), 16).prop_map(|all| <[Summary; 16]>::try_from(all).unwrap());
        let range = any::<(u64, u64)>().prop_map(|(a, b)| HashRange { first: a.min(b), last: a.max(b) });
        prop_oneof![
            Just(ResyncMessage::Begin),
            (any_position(), any_summary(), any::<[u8; 32]>())
                .prop_map(|(position, summary, digest)| ResyncMessage::Root { position, summary, digest }),
            (any::<u32>(), vec(any_prefix(15), 0..4))
                .prop_map(|(request, nodes)| ResyncMessage::AskChildren { request, nodes }),
            (any::<u32>(), vec(children, 0..3)).prop_map(|(request, nodes)| ResyncMessage::Children { request, nodes }),
            (any::<u32>(), vec(any_prefix(16), 0..4))
                .prop_map(|(request, nodes)| ResyncMessage::AskItems { request, nodes }),
            (any::<u32>(), vec(any_items(), 0..3)).prop_map(|(request, nodes)| ResyncMessage::Items { request, nodes }),
            (any::<u32>(), vec(range, 0..4))
                .prop_map(|(request, ranges)| ResyncMessage::AskObjects { request, ranges }),
            (any::<u32>(), vec(any_object(), 0..3), any::<u32>(), any::<Option<u64>>()).prop_map(
                |(request, objects, ranges_done, resume_at)| {
                    ResyncMessage::Objects { request, objects, ranges_done, resume_at }
                }
            ),
        ]
    }

    #[test]
    fn nodes_cover_their_hashes() {
        let node = Prefix::ROOT.child(0xa).unwrap().child(0x3).unwrap();
        assert_eq!((node.first(), node.last(), node.depth()), (0xa300_0000_0000_0000, 0xa3ff_ffff_ffff_ffff, 2));
        assert_eq!((Prefix::ROOT.first(), Prefix::ROOT.last()), (0, u64::MAX));
        let leaf = (0..16).fold(Prefix::ROOT, |node, _| node.child(15).unwrap());
        assert_eq!((leaf.first(), leaf.last(), leaf.child(0)), (u64::MAX, u64::MAX, None));
        assert_eq!(Prefix::ROOT.child(16), None);
    }

    #[test]
    fn golden_messages_w80() {
        let node = Prefix::ROOT.child(0xa).unwrap().child(0x3).unwrap();
        let summary = Summary { count: 300, sum: 7 };
        let position = Position::default();
        let mut bytes = ResyncMessage::Root { position, summary, digest: [0xdd; 32] }.to_bytes();
        bytes.extend(ResyncMessage::AskChildren { request: 1, nodes: vec![node] }.to_bytes());
        bytes.extend(
            ResyncMessage::Items { request: 2, nodes: vec![vec![Item { hash: 5, sum: 6 }], vec![]] }.to_bytes(),
        );
        bytes
            .extend(ResyncMessage::AskObjects { request: 3, ranges: vec![HashRange { first: 1, last: 2 }] }.to_bytes());
        let done = ResyncMessage::Objects { request: 4, objects: vec![], ranges_done: 1, resume_at: Some(9) };
        bytes.extend(done.to_bytes());
        golden("resync_messages", &bytes);
        assert!(
            MAX_MESSAGE_BYTES <= LaneKind::Ds.max_body_bytes() && MAX_MESSAGE_BYTES <= LaneKind::Bulk.max_body_bytes()
        );
    }

    #[test]
    fn every_bound_is_kept_w80() {
        let error = |message: &ResyncMessage| ResyncMessage::from_bytes(&message.to_bytes()).unwrap_err().to_string();
        let nodes = vec![Prefix::ROOT; MAX_NODES + 1];
        assert!(error(&ResyncMessage::AskItems { request: 0, nodes }).contains("over the limit 64"));
        let deep = Prefix { bits: 0, depth: 16 };
        assert!(error(&ResyncMessage::AskChildren { request: 0, nodes: vec![deep] }).contains("resync depth"));
        let beyond = Prefix { bits: 1, depth: 15 };
        assert!(error(&ResyncMessage::AskItems { request: 0, nodes: vec![beyond] }).contains("beyond depth 15"));
        let ranges = vec![HashRange { first: 2, last: 1 }];
        assert!(error(&ResyncMessage::AskObjects { request: 0, ranges }).contains("0x2 > 0x1"));
        let items = vec![vec![Item { hash: 1, sum: 0 }, Item { hash: 1, sum: 0 }]];
        assert!(error(&ResyncMessage::Items { request: 0, nodes: items }).contains("do not ascend"));
        assert!(ResyncMessage::from_bytes(&vec![0; MAX_MESSAGE_BYTES + 1]).is_err());
        assert!(ResyncMessage::from_bytes(&[8]).unwrap_err().to_string().contains("expected 0 to 7"));
    }

    proptest! {
        #[test]
        fn messages_round_trip(message in any_message()) {
            round_trip(&message)?;
        }

        #[test]
        fn any_bytes_are_refused_or_canonical(bytes: Vec<u8>, kind in 0..8_u8) {
            canonical::<ResyncMessage>(&bytes)?;
            canonical::<ResyncMessage>(&[&[kind], &bytes[..]].concat())?;
        }
    }
}

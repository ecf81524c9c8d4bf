//! The encodings of mirror messages (SPEC.md §10): a type byte, then fixed fields; lists and lengths bounded.
//!
//! Always: one value, one encoding; what this version does not know is refused, by name. Never: a number of elements
//! believed before the bytes for them can be there.

use crate::{
    codec::{Codec, DecodeError, Reader, Writer},
    mirror::{
        Change, Entry, Item, Kind, MAX_DATA_BYTES, MAX_LIST, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_REASON_BYTES,
        MAX_TARGET_BYTES, META_VERSION, Meta, MirrorMessage, MirrorPath, Piece, Problem, RootSpec,
    },
};

impl Codec for MirrorPath {
    const NAME: &'static str = "mirrored path";

    fn encode(&self, w: &mut Writer<'_>) {
        w.blob(self.as_bytes());
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let bytes = r.blob(Self::NAME, MAX_PATH_BYTES)?;
        if bytes.first() == Some(&b'/') {
            return Err(DecodeError::Invalid { what: Self::NAME, why: "begins with '/'".into() });
        }
        Self::parse(bytes).map_err(|e| DecodeError::Invalid { what: Self::NAME, why: e.to_string() })
    }
}

impl Codec for Meta {
    const NAME: &'static str = "metadata";

    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(META_VERSION);
        w.u8(self.kind as u8);
        w.u16(self.mode);
        w.varint(self.uid.into());
        w.varint(self.gid.into());
        w.varint(self.size);
        w.i64(self.mtime_s);
        w.u32(self.mtime_ns);
        w.varint(self.rdev);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let version = r.u8("metadata version")?;
        if version != META_VERSION {
            return Err(DecodeError::Tag { what: "metadata version", got: version.into(), expected: "1" });
        }
        let kind = r.u8("kind")?;
        let kind = *Kind::ALL.get(usize::from(kind)).ok_or(DecodeError::Tag {
            what: "kind",
            got: kind.into(),
            expected: "0 (file) to 6 (socket)",
        })?;
        let mode = r.u16("mode")?;
        if mode > 0o7777 {
            return Err(DecodeError::TooLong { what: "mode", got: mode.into(), max: 0o7777 });
        }
        let id = |r: &mut Reader<'_>, what| r.length(what, u32::MAX as usize).map(|id| id as u32);
        let (uid, gid) = (id(r, "uid")?, id(r, "gid")?);
        let (size, mtime_s, mtime_ns) = (r.varint("size")?, r.i64("mtime")?, r.u32("mtime nanoseconds")?);
        if mtime_ns >= 1_000_000_000 {
            return Err(DecodeError::TooLong { what: "mtime nanoseconds", got: mtime_ns.into(), max: 999_999_999 });
        }
        Ok(Self { kind, mode, uid, gid, size, mtime_s, mtime_ns, rdev: r.varint("device number")? })
    }
}

fn list<T: Codec>(w: &mut Writer<'_>, values: &[T]) {
    w.count(values.len());
    values.iter().for_each(|value| value.encode(w));
}

fn read_list<T: Codec>(r: &mut Reader<'_>) -> Result<Vec<T>, DecodeError> {
    let count = r.count(T::NAME, MAX_LIST, 1)?;
    (0..count).map(|_| T::decode(r)).collect()
}

fn reason(r: &mut Reader<'_>) -> Result<String, DecodeError> {
    r.text("reason", MAX_REASON_BYTES).map(str::to_owned)
}

impl Codec for Entry {
    const NAME: &'static str = "manifest entry";

    fn encode(&self, w: &mut Writer<'_>) {
        self.path.encode(w);
        self.meta.encode(w);
        w.option(self.digest.as_ref(), |w, digest| w.raw(digest));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            path: Codec::decode(r)?,
            meta: Codec::decode(r)?,
            digest: r.option("digest", |r| r.array("digest"))?,
        })
    }
}

impl Codec for Problem {
    const NAME: &'static str = "problem";

    fn encode(&self, w: &mut Writer<'_>) {
        self.path.encode(w);
        w.text(&self.reason);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { path: Codec::decode(r)?, reason: reason(r)? })
    }
}

impl Codec for RootSpec {
    const NAME: &'static str = "mirror root";

    fn encode(&self, w: &mut Writer<'_>) {
        self.path.encode(w);
        w.bool(self.recursive);
        w.bool(self.continuous);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { path: Codec::decode(r)?, recursive: r.bool("recursive")?, continuous: r.bool("continuous")? })
    }
}

impl Codec for Change {
    const NAME: &'static str = "file change";

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::File { meta, content } => {
                w.u8(0);
                meta.encode(w);
                w.blob(content);
            }
            Self::Mkdir(meta) => {
                w.u8(1);
                meta.encode(w);
            }
            Self::Meta(meta) => {
                w.u8(2);
                meta.encode(w);
            }
            Self::Symlink { meta, target } => {
                w.u8(3);
                meta.encode(w);
                w.blob(target);
            }
            Self::Special(meta) => {
                w.u8(4);
                meta.encode(w);
            }
            Self::Remove => w.u8(5),
            Self::Rename { to } => {
                w.u8(6);
                to.encode(w);
            }
            Self::Exchange { with } => {
                w.u8(7);
                with.encode(w);
            }
            Self::Skip => w.u8(8),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8(Self::NAME)? {
            0 => Self::File { meta: Codec::decode(r)?, content: r.blob("file content", MAX_DATA_BYTES)?.to_vec() },
            1 => Self::Mkdir(Codec::decode(r)?),
            2 => Self::Meta(Codec::decode(r)?),
            3 => Self::Symlink { meta: Codec::decode(r)?, target: r.blob("target", MAX_TARGET_BYTES)?.to_vec() },
            4 => Self::Special(Codec::decode(r)?),
            5 => Self::Remove,
            6 => Self::Rename { to: Codec::decode(r)? },
            7 => Self::Exchange { with: Codec::decode(r)? },
            8 => Self::Skip,
            got => {
                return Err(DecodeError::Tag { what: Self::NAME, got: got.into(), expected: "0 (file) to 8 (skip)" });
            }
        })
    }
}

impl Codec for Item {
    const NAME: &'static str = "item";

    fn encode(&self, w: &mut Writer<'_>) {
        w.varint(self.generation);
        self.path.encode(w);
        self.change.encode(w);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { generation: r.varint("generation")?, path: Codec::decode(r)?, change: Codec::decode(r)? })
    }
}

/// The type of [`MirrorMessage::FileData`].
const FILE_DATA: u8 = 5;

impl<'a> Piece<'a> {
    fn encode_header(&self, w: &mut Writer<'_>) {
        w.u8(FILE_DATA);
        w.epoch(self.epoch);
        w.varint(self.generation);
        w.varint(self.offset);
        w.count(self.bytes.len());
    }

    /// What stands before the bytes in a message.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::MAX_HEADER_BYTES);
        self.encode_header(&mut Writer::new(&mut out));
        out
    }

    fn decode_fields(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            epoch: r.epoch("epoch")?,
            generation: r.varint("generation")?,
            offset: r.varint("offset")?,
            bytes: r.blob("file content", MAX_DATA_BYTES)?,
        })
    }

    /// Reads a whole message if it is a piece; `None`: it is another one.
    ///
    /// # Errors
    /// [`DecodeError`] names the field, with got and expected.
    pub fn decode(message: &'a [u8]) -> Result<Option<Self>, DecodeError> {
        if message.first() != Some(&FILE_DATA) {
            return Ok(None);
        }
        let mut reader = Reader::new(&message[1..]);
        let piece = Self::decode_fields(&mut reader)?;
        reader.finish(MirrorMessage::NAME)?;
        Ok(Some(piece))
    }
}

impl Codec for MirrorMessage {
    const NAME: &'static str = "mirror message";

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Roots { epoch, session, roots, exceptions, devices } => {
                w.u8(0);
                w.epoch(*epoch);
                w.u64(*session);
                list(w, roots);
                w.count(exceptions.len());
                exceptions.iter().for_each(|extension| w.blob(extension));
                w.bool(*devices);
            }
            Self::RootsReady { session, instance, problems } => {
                w.u8(1);
                w.u64(*session);
                w.u64(*instance);
                list(w, problems);
            }
            Self::Announce { epoch, first_generation, more, paths } => {
                w.u8(2);
                w.epoch(*epoch);
                w.varint(*first_generation);
                w.varint(*more);
                list(w, paths);
            }
            Self::Items { epoch, items } => {
                w.u8(3);
                w.epoch(*epoch);
                list(w, items);
            }
            Self::FileBegin { epoch, generation, path, size } => {
                w.u8(4);
                w.epoch(*epoch);
                w.varint(*generation);
                path.encode(w);
                w.varint(*size);
            }
            Self::FileData { epoch, generation, offset, bytes } => {
                let piece = Piece { epoch: *epoch, generation: *generation, offset: *offset, bytes };
                piece.encode_header(w);
                w.raw(bytes);
            }
            Self::FileEnd { epoch, generation, meta, checksum } => {
                w.u8(6);
                w.epoch(*epoch);
                w.varint(*generation);
                meta.encode(w);
                w.u128(*checksum);
            }
            Self::FileAbort { epoch, generation } => {
                w.u8(7);
                w.epoch(*epoch);
                w.varint(*generation);
            }
            Self::Applied { generations } => {
                w.u8(8);
                w.count(generations.len());
                generations.iter().for_each(|generation| w.varint(*generation));
            }
            Self::Failed { generation, reason } => {
                w.u8(9);
                w.varint(*generation);
                w.text(reason);
            }
            Self::ManifestRequest { epoch, request, root, deep, credit } => {
                w.u8(10);
                w.epoch(*epoch);
                w.varint(*request);
                root.encode(w);
                w.bool(*deep);
                w.u32(*credit);
            }
            Self::ManifestPart { request, entries, problems } => {
                w.u8(11);
                w.varint(*request);
                list(w, entries);
                list(w, problems);
            }
            Self::ManifestEnd { request } => {
                w.u8(12);
                w.varint(*request);
            }
            Self::Barrier { epoch, id } => {
                w.u8(13);
                w.epoch(*epoch);
                w.varint(*id);
            }
            Self::BarrierDone { id } => {
                w.u8(14);
                w.varint(*id);
            }
            Self::Synced { epoch } => {
                w.u8(16);
                w.epoch(*epoch);
            }
            Self::LowerEpoch { known } => {
                w.u8(15);
                w.epoch(*known);
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = r.u8(Self::NAME)?;
        Ok(match tag {
            0 => Self::Roots {
                epoch: r.epoch("epoch")?,
                session: r.u64("session")?,
                roots: read_list(r)?,
                exceptions: {
                    let count = r.count("exceptions", MAX_LIST, 1)?;
                    (0..count)
                        .map(|_| r.blob("exception", MAX_NAME_BYTES).map(<[u8]>::to_vec))
                        .collect::<Result<_, _>>()?
                },
                devices: r.bool("devices")?,
            },
            1 => Self::RootsReady { session: r.u64("session")?, instance: r.u64("instance")?, problems: read_list(r)? },
            2 => Self::Announce {
                epoch: r.epoch("epoch")?,
                first_generation: r.varint("generation")?,
                more: r.varint("more")?,
                paths: read_list(r)?,
            },
            3 => Self::Items { epoch: r.epoch("epoch")?, items: read_list(r)? },
            4 => Self::FileBegin {
                epoch: r.epoch("epoch")?,
                generation: r.varint("generation")?,
                path: Codec::decode(r)?,
                size: r.varint("size")?,
            },
            FILE_DATA => {
                let Piece { epoch, generation, offset, bytes } = Piece::decode_fields(r)?;
                Self::FileData { epoch, generation, offset, bytes: bytes.to_vec() }
            }
            6 => Self::FileEnd {
                epoch: r.epoch("epoch")?,
                generation: r.varint("generation")?,
                meta: Codec::decode(r)?,
                checksum: r.u128("checksum")?,
            },
            7 => Self::FileAbort { epoch: r.epoch("epoch")?, generation: r.varint("generation")? },
            8 => Self::Applied {
                generations: {
                    let count = r.count("generations", MAX_LIST, 1)?;
                    (0..count).map(|_| r.varint("generation")).collect::<Result<_, _>>()?
                },
            },
            9 => Self::Failed { generation: r.varint("generation")?, reason: reason(r)? },
            10 => Self::ManifestRequest {
                epoch: r.epoch("epoch")?,
                request: r.varint("request")?,
                root: Codec::decode(r)?,
                deep: r.bool("deep")?,
                credit: r.u32("credit")?,
            },
            11 => Self::ManifestPart { request: r.varint("request")?, entries: read_list(r)?, problems: read_list(r)? },
            12 => Self::ManifestEnd { request: r.varint("request")? },
            13 => Self::Barrier { epoch: r.epoch("epoch")?, id: r.varint("barrier")? },
            14 => Self::BarrierDone { id: r.varint("barrier")? },
            16 => Self::Synced { epoch: r.epoch("epoch")? },
            15 => Self::LowerEpoch { known: r.epoch("epoch")? },
            got => {
                return Err(DecodeError::Tag {
                    what: Self::NAME,
                    got: got.into(),
                    expected: "0 (roots) to 16 (synced)",
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::Epoch;

    fn path(text: &str) -> MirrorPath {
        MirrorPath::parse(text.as_bytes()).unwrap()
    }

    fn meta() -> Meta {
        Meta {
            kind: Kind::File,
            mode: 0o4755,
            uid: 1000,
            gid: u32::MAX,
            size: 3,
            mtime_s: -1,
            mtime_ns: 999_999_999,
            rdev: 0,
        }
    }

    fn samples() -> Vec<MirrorMessage> {
        let epoch = Epoch(65_537);
        let item = |change| Item { generation: 300, path: path("srv/app/x"), change };
        let odd = MirrorPath::parse(b"srv/new\nline/\xff\xfe").unwrap();
        let spec = RootSpec { path: path("srv"), recursive: true, continuous: false };
        let problem = Problem { path: odd.clone(), reason: "not there. Try: create it".into() };
        let entry = Entry { path: odd.clone(), meta: meta(), digest: Some([7; 32]) };
        vec![
            MirrorMessage::Roots {
                epoch,
                session: 1,
                roots: vec![spec],
                exceptions: vec![b"tmp".to_vec()],
                devices: true,
            },
            MirrorMessage::RootsReady { session: 1, instance: 2, problems: vec![problem.clone()] },
            MirrorMessage::Announce { epoch, first_generation: 9, more: 4, paths: vec![odd] },
            MirrorMessage::Items {
                epoch,
                items: vec![
                    item(Change::File { meta: meta(), content: b"abc".to_vec() }),
                    item(Change::Mkdir(Meta { kind: Kind::Dir, ..meta() })),
                    item(Change::Meta(meta())),
                    item(Change::Symlink { meta: meta(), target: b"../x".to_vec() }),
                    item(Change::Special(Meta { kind: Kind::Fifo, ..meta() })),
                    item(Change::Remove),
                    item(Change::Rename { to: path("srv/b") }),
                    item(Change::Exchange { with: path("srv/c") }),
                    item(Change::Skip),
                ],
            },
            MirrorMessage::FileBegin { epoch, generation: 1, path: path("srv/a"), size: 1 << 40 },
            MirrorMessage::FileData { epoch, generation: 1, offset: 5, bytes: vec![1, 2] },
            MirrorMessage::FileEnd { epoch, generation: 1, meta: meta(), checksum: 1 << 100 },
            MirrorMessage::FileAbort { epoch, generation: 1 },
            MirrorMessage::Applied { generations: vec![1, 1 << 50] },
            MirrorMessage::Failed { generation: 1, reason: "full".into() },
            MirrorMessage::ManifestRequest { epoch, request: 4, root: path("srv"), deep: true, credit: 9 },
            MirrorMessage::ManifestPart { request: 4, entries: vec![entry], problems: vec![problem] },
            MirrorMessage::ManifestEnd { request: 4 },
            MirrorMessage::Barrier { epoch, id: 3 },
            MirrorMessage::BarrierDone { id: 3 },
            MirrorMessage::Synced { epoch },
            MirrorMessage::LowerEpoch { known: epoch },
        ]
    }

    #[test]
    fn every_message_round_trips_and_every_cut_is_refused() {
        for message in samples() {
            let bytes = message.to_bytes();
            assert_eq!(MirrorMessage::from_bytes(&bytes).as_ref(), Ok(&message));
            for end in 0..bytes.len() {
                assert!(MirrorMessage::from_bytes(&bytes[..end]).is_err(), "{message:?} cut at {end}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = MirrorMessage::from_bytes(&bytes);
        }

        #[test]
        fn flipped_bits_are_survived(which in 0..17_usize, at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = samples().remove(which).to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            if let Ok(message) = MirrorMessage::from_bytes(&bytes) {
                prop_assert_eq!(message.to_bytes(), bytes);
            }
        }
    }
}

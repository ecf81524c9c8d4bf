//! What the two members say to each other about mirrored files: paths, metadata, changes, manifests, acknowledgements.
//!
//! Always: names are bytes, not UTF-8; every message of the active carries its epoch, so that a receiver can refuse a
//! lower one; every list and every length is bounded before it is believed. Never: a path with an empty component, `.`,
//! `..` or a NUL, which is why a decoded path can only lead downwards (OPS-096).

pub use crate::mirror_path::{MAX_NAME_BYTES, MAX_PATH_BYTES, MirrorPath, PathProblem};
use crate::{
    codec::{Codec, DecodeError, Reader, Writer},
    id::Epoch,
};

/// The greatest length of a symbolic link's target, in bytes.
pub const MAX_TARGET_BYTES: usize = 4095;
/// The greatest number of elements of a list in one message.
pub const MAX_LIST: usize = 8192;
/// The greatest number of content bytes in one message; files up to this size may travel whole.
pub const MAX_DATA_BYTES: usize = 1 << 20;
/// The greatest size of an encoded message, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The greatest length of a reason, in bytes.
pub const MAX_REASON_BYTES: usize = 1024;
/// The version of the metadata block; what later versions add (extended attributes, ACLs) follows its known fields.
pub const META_VERSION: u8 = 1;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link, kept verbatim, never followed.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device: by option only (OPS-096).
    CharDevice,
    /// A block device: by option only (OPS-096).
    BlockDevice,
    /// A socket: never mirrored.
    Socket,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::File, Self::Dir, Self::Symlink, Self::Fifo, Self::CharDevice, Self::BlockDevice, Self::Socket];
}

/// What is kept of a path beside its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, with set-user-id, set-group-id and sticky: 12 bits.
    pub mode: u16,
    /// The owner's id.
    pub uid: u32,
    /// The group's id.
    pub gid: u32,
    /// Length of the content in bytes; of a symlink: of its target; otherwise 0.
    pub size: u64,
    /// Time of the last change of the content: whole seconds since 1970.
    pub mtime_s: i64,
    /// And nanoseconds, 0 to 999,999,999.
    pub mtime_ns: u32,
    /// The device number of a device; otherwise 0.
    pub rdev: u64,
}

/// One entry of a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where.
    pub path: MirrorPath,
    /// What it is like.
    pub meta: Meta,
    /// blake3 of a file's content or a symlink's target, where the request was deep.
    pub digest: Option<[u8; 32]>,
}

/// A mirrored directory as the sender sees it, overlaps merged (REP-035).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootSpec {
    /// Where.
    pub path: MirrorPath,
    /// With everything below (`+`), or only the files directly in it (REP-027).
    pub recursive: bool,
    /// Watched, or compared only once at the start of the backup (REP-026).
    pub continuous: bool,
}

/// One change of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A file with its whole content.
    File {
        /// Its metadata; `size` is the content's length.
        meta: Meta,
        /// At most [`MAX_DATA_BYTES`].
        content: Vec<u8>,
    },
    /// A directory that exists from now on, with this metadata.
    Mkdir(Meta),
    /// New metadata of what is there; its kind must be the same. Content is not touched.
    Meta(Meta),
    /// A symbolic link.
    Symlink {
        /// Its metadata.
        meta: Meta,
        /// Where it points, verbatim.
        target: Vec<u8>,
    },
    /// A named pipe or device.
    Special(Meta),
    /// Nothing is there any more.
    Remove,
    /// What was at the item's path is at `to` now; whatever was at `to` is gone.
    Rename {
        /// The new path.
        to: MirrorPath,
    },
    /// The item's path and `with` changed places.
    Exchange {
        /// The other path.
        with: MirrorPath,
    },
    /// Nothing: the change was withdrawn (the file would not rest), its path will be announced again.
    Skip,
}

/// A change with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Grows with every change sent; what acknowledgements name.
    pub generation: u64,
    /// The path that changes.
    pub path: MirrorPath,
    /// How.
    pub change: Change,
}

/// A path and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub path: MirrorPath,
    /// What, in words, with what to try.
    pub reason: String,
}

/// What is said about mirrored files. Everything travels on the bulk lane but [`Self::Announce`], which travels on ds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorMessage {
    /// Active: begins a session, or changes its roots: what is mirrored from now on.
    Roots {
        /// The active's epoch.
        epoch: Epoch,
        /// Whose number the answer repeats.
        session: u64,
        /// The directories, merged.
        roots: Vec<RootSpec>,
        /// Extensions that are left out, lower case, without dot (REP-030).
        exceptions: Vec<Vec<u8>>,
        /// Whether devices are made, or left out.
        devices: bool,
    },
    /// Backup: the roots are open.
    RootsReady {
        /// The session that was begun.
        session: u64,
        /// Drawn when the backup started: a new one has its initial directories copied again (REP-026).
        instance: u64,
        /// Roots that could not be made or opened.
        problems: Vec<Problem>,
    },
    /// Active, on the ds lane, before any content: these paths changed; they get the generations from
    /// `first_generation` on, in order.
    Announce {
        /// The active's epoch.
        epoch: Epoch,
        /// The generation of the first path.
        first_generation: u64,
        /// How many changed paths are not announced yet.
        more: u64,
        /// The paths.
        paths: Vec<MirrorPath>,
    },
    /// Active: changes, to be applied in this order.
    Items {
        /// The active's epoch.
        epoch: Epoch,
        /// The changes; their contents together at most [`MAX_DATA_BYTES`].
        items: Vec<Item>,
    },
    /// Active: a file follows in pieces.
    FileBegin {
        /// The active's epoch.
        epoch: Epoch,
        /// The number of the change.
        generation: u64,
        /// The file.
        path: MirrorPath,
        /// How long it will be, as far as is known.
        size: u64,
    },
    /// Active: a piece; pieces of one file come in order, each begins where the last one ended.
    FileData {
        /// The active's epoch.
        epoch: Epoch,
        /// Whose content this is.
        generation: u64,
        /// Where it goes.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Active: the file is complete.
    FileEnd {
        /// The active's epoch.
        epoch: Epoch,
        /// Which one.
        generation: u64,
        /// Its metadata; `size` must be what was sent.
        meta: Meta,
        /// blake3 of the whole content.
        digest: [u8; 32],
    },
    /// Active: the file changed while it was read; forget what was sent of it.
    FileAbort {
        /// The active's epoch.
        epoch: Epoch,
        /// Which one.
        generation: u64,
    },
    /// Backup: these changes are durable.
    Applied {
        /// Their numbers.
        generations: Vec<u64>,
    },
    /// Backup: this change could not be applied.
    Failed {
        /// Its number.
        generation: u64,
        /// Why, in words.
        reason: String,
    },
    /// Active: list what is below a root, from the beginning or on.
    ManifestRequest {
        /// The active's epoch.
        epoch: Epoch,
        /// Names the listing; a new number begins a new one.
        request: u64,
        /// The root, one of those of the session.
        root: MirrorPath,
        /// With digests of the contents.
        deep: bool,
        /// How many entries may be sent beyond those that were asked for before.
        credit: u32,
    },
    /// Backup: the next entries of a listing, in the order of [`MirrorPath`].
    ManifestPart {
        /// Which listing.
        request: u64,
        /// The entries.
        entries: Vec<Entry>,
        /// What could not be listed.
        problems: Vec<Problem>,
    },
    /// Backup: the listing is complete.
    ManifestEnd {
        /// Which listing.
        request: u64,
    },
    /// Active: make everything before this durable, then answer.
    Barrier {
        /// The active's epoch.
        epoch: Epoch,
        /// What the answer repeats.
        id: u64,
    },
    /// Backup: everything before the barrier is durable.
    BarrierDone {
        /// Which one.
        id: u64,
    },
    /// Active: the first comparison of the session is over, and everything that it found has been sent.
    Synced {
        /// The active's epoch.
        epoch: Epoch,
    },
    /// Backup: refused, the sender's epoch is lower than one that is known.
    LowerEpoch {
        /// The highest epoch known.
        known: Epoch,
    },
}

impl MirrorMessage {
    /// The active's epoch; `None` for what a backup says.
    #[must_use]
    pub const fn epoch(&self) -> Option<Epoch> {
        match self {
            Self::Roots { epoch, .. }
            | Self::Announce { epoch, .. }
            | Self::Items { epoch, .. }
            | Self::FileBegin { epoch, .. }
            | Self::FileData { epoch, .. }
            | Self::FileEnd { epoch, .. }
            | Self::FileAbort { epoch, .. }
            | Self::ManifestRequest { epoch, .. }
            | Self::Barrier { epoch, .. }
            | Self::Synced { epoch } => Some(*epoch),
            Self::RootsReady { .. }
            | Self::Applied { .. }
            | Self::Failed { .. }
            | Self::ManifestPart { .. }
            | Self::ManifestEnd { .. }
            | Self::BarrierDone { .. }
            | Self::LowerEpoch { .. } => None,
        }
    }

    /// Whether it travels on the ds lane: before the content that it speaks of.
    #[must_use]
    pub const fn is_announcement(&self) -> bool {
        matches!(self, Self::Announce { .. })
    }
}

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

/// Cuts a reason to what a message may carry.
#[must_use]
pub fn bounded_reason(mut text: String) -> String {
    let mut end = MAX_REASON_BYTES.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
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
                w.u8(5);
                w.epoch(*epoch);
                w.varint(*generation);
                w.varint(*offset);
                w.blob(bytes);
            }
            Self::FileEnd { epoch, generation, meta, digest } => {
                w.u8(6);
                w.epoch(*epoch);
                w.varint(*generation);
                meta.encode(w);
                w.raw(digest);
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
            5 => Self::FileData {
                epoch: r.epoch("epoch")?,
                generation: r.varint("generation")?,
                offset: r.varint("offset")?,
                bytes: r.blob("file content", MAX_DATA_BYTES)?.to_vec(),
            },
            6 => Self::FileEnd {
                epoch: r.epoch("epoch")?,
                generation: r.varint("generation")?,
                meta: Codec::decode(r)?,
                digest: r.array("digest")?,
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
            MirrorMessage::FileEnd { epoch, generation: 1, meta: meta(), digest: [1; 32] },
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

    // REQ: OPS-096
    #[test]
    fn a_path_only_leads_downwards() {
        for bad in ["a//b", "a/../b", "..", "a/.", "./a", "a/", "a\0b", "/"] {
            if bad == "/" {
                assert!(path(bad).is_empty());
                continue;
            }
            assert_eq!(MirrorPath::parse(bad.as_bytes()), Err(PathProblem::Component), "{bad:?}");
            let mut bytes = Vec::new();
            Writer::new(&mut bytes).blob(bad.as_bytes());
            assert!(MirrorPath::from_bytes(&bytes).is_err(), "{bad:?}");
        }
        assert!(MirrorPath::parse(&[b'x'; 256]).is_err());
        assert!(MirrorPath::parse(&[b'x'; 255]).is_ok());
        let mut absolute = Vec::new();
        Writer::new(&mut absolute).blob(b"/etc");
        assert!(MirrorPath::from_bytes(&absolute).is_err());
    }

    #[test]
    fn a_directory_is_followed_by_what_is_below_it() {
        let mut paths: Vec<_> = ["a.b", "a/b", "a", "a!", "a/b/c", "b", "a/b.c"].map(path).into();
        paths.sort();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/b.c", "a!", "a.b", "b"].map(path));
    }

    #[test]
    fn paths_are_taken_apart_and_put_together() {
        let p = path("srv/app/x");
        assert_eq!(p.parent(), Some(path("srv/app")));
        assert_eq!(path("srv").parent(), Some(path("")));
        assert_eq!(p.name(), Some(&b"x"[..]));
        assert_eq!(p.below(&path("srv")), Some(&b"app/x"[..]));
        assert_eq!(p.below(&path("")), Some(&b"srv/app/x"[..]));
        assert!(!path("srvx").starts_with(&path("srv")));
        assert_eq!(p.rebased(&path("srv/app"), &path("opt")), Some(path("opt/x")));
        assert_eq!(p.rebased(&p, &path("opt")), Some(path("opt")));
        assert_eq!(path("srv").join(b"a"), Ok(path("srv/a")));
        assert!(path("srv").join(b"a/b").is_err());
        assert_eq!(MirrorPath::parse(b"a\n\xff").unwrap().to_string(), "/a\\n\\xff");
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

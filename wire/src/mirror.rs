//! What the two members say to each other about mirrored files: paths, metadata, changes, manifests, acknowledgements.
//!
//! Always: names are bytes, not UTF-8; every message of the active carries its epoch, so that a receiver can refuse a
//! lower one; every list and every length is bounded before it is believed. Never: a path with an empty component, `.`,
//! `..` or a NUL, which is why a decoded path can only lead downwards (OPS-096).

use crate::id::Epoch;
pub use crate::mirror_path::{MAX_NAME_BYTES, MAX_PATH_BYTES, MirrorPath, PathProblem};

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
    /// All of them, in the order of their numbers on the wire.
    pub(crate) const ALL: [Self; 7] =
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

/// What [`MirrorMessage::FileData`] says, with the bytes where they lie in the message: large ones are not copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The active's epoch.
    pub epoch: Epoch,
    /// Whose content this is.
    pub generation: u64,
    /// Where it goes.
    pub offset: u64,
    /// The bytes, at most [`MAX_DATA_BYTES`].
    pub bytes: &'a [u8],
}

/// The checksum of a file's pieces, continued by one more: xxh3-128 of its bytes, seeded with the low half of the
/// checksum before. Finds what was damaged on the way; against forgery there is the lane's TLS.
#[must_use]
pub fn piece_checksum(before: u128, piece: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128_with_seed(piece, before as u64)
}

impl Piece<'_> {
    /// The most that stands before the bytes in a message.
    pub const MAX_HEADER_BYTES: usize = 40;
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
        /// [`piece_checksum`] over all its pieces, from 0 on.
        checksum: u128,
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

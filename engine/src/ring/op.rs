//! Operations, their tokens and their completions: the vocabulary that both drivers share.
//!
//! An operation owns its buffers and its descriptor from [`submit`](super::Driver::submit) until its last completion,
//! which gives receive buffers back. Nothing here touches the kernel.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use super::{Buf, Shared, registry::Slots};

/// The greatest number of slices that one send or write carries.
pub const MAX_SLICES: usize = 64;

/// Who submitted an operation and what for: comes back unchanged in its completion. Tokens need not be unique; a
/// cancellation reaches every operation that carries the token.
///
/// From the top: owner (8 bits), kind (8), tag (16), index (32).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

impl Token {
    /// Owner of the lanes' operations.
    pub const TRANSPORT: u8 = 1;
    /// Owner of the journal's operations.
    pub const JOURNAL: u8 = 2;
    /// Owner of the operations of the loop that turns the driver.
    pub const LOOP: u8 = 3;
    /// Owner of the file mirror's operations.
    pub const MIRROR: u8 = 4;

    /// Owner of the native clients' operations.
    pub const CLIENTS: u8 = 5;

    /// A token of `owner` with a `kind` and an `index` that the owner chooses, and tag 0.
    #[must_use]
    pub const fn new(owner: u8, kind: u8, index: u32) -> Self {
        Self((owner as u64) << 56 | (kind as u64) << 48 | index as u64)
    }

    /// The same with a `tag`, which tells an old use of an index from a new one.
    #[must_use]
    pub const fn tagged(self, tag: u16) -> Self {
        Self(self.0 & !(0xffff << 32) | (tag as u64) << 32)
    }

    /// The owner, one of the constants above.
    #[must_use]
    pub const fn owner(self) -> u8 {
        (self.0 >> 56) as u8
    }

    /// The owner's kind.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 >> 48) as u8
    }

    /// The tag, 0 unless set by [`tagged`](Self::tagged).
    #[must_use]
    pub const fn tag(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The owner's index.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.{}.{}.{})", self.owner(), self.kind(), self.tag(), self.index())
    }
}

/// A descriptor shared between its owner and the operations in flight on it; closed when the last clone is dropped,
/// so that no operation ever meets a number that the kernel gave to another file meanwhile.
///
/// A driver may hold a clone of its own until its next turn.
#[derive(Clone, Debug)]
pub struct Fd(Arc<FdInner>);

#[derive(Debug)]
struct FdInner {
    fd: OwnedFd,
    /// Slot in the driver's table of registered files plus 1; 0: none.
    slot: AtomicU32,
    /// Where the slot goes back to.
    slots: std::sync::OnceLock<Weak<Slots>>,
}

impl Fd {
    /// Takes any owned descriptor: `OwnedFd`, `File`, `TcpStream`, `TcpListener`, `UdpSocket`, …
    #[must_use]
    pub fn new(fd: impl Into<OwnedFd>) -> Self {
        Self(Arc::new(FdInner { fd: fd.into(), slot: AtomicU32::new(0), slots: std::sync::OnceLock::new() }))
    }

    /// Whether both are clones of the same.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The slot in `slots`, if this descriptor is registered there.
    pub(super) fn slot_in(&self, slots: &Arc<Slots>) -> Option<u32> {
        let home = self.0.slots.get()?;
        (home.as_ptr() == Arc::as_ptr(slots)).then(|| self.0.slot.load(Ordering::Relaxed).checked_sub(1)).flatten()
    }

    /// Notes the slot; false when the descriptor is registered already (here or with another driver).
    pub(super) fn set_slot(&self, slots: &Arc<Slots>, slot: u32) -> bool {
        if self.0.slots.set(Arc::downgrade(slots)).is_err() {
            return false;
        }
        self.0.slot.store(slot + 1, Ordering::Relaxed);
        true
    }
}

impl Drop for FdInner {
    fn drop(&mut self) {
        let (Some(slot), Some(slots)) = (self.slot.get_mut().checked_sub(1), self.slots.get()) else { return };
        if let Some(slots) = slots.upgrade() {
            slots.release(slot);
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

/// What a driver can be asked to do. Sockets may be blocking or non-blocking, it makes no difference.
///
/// On one socket at most one operation that receives and one that sends may be in flight: concurrent sends could be
/// reordered.
#[derive(Debug)]
pub enum Op {
    /// Accepts one connection; the new socket is close-on-exec. Completes with [`Carried::Socket`].
    Accept {
        /// A listening socket.
        fd: Fd,
    },
    /// Connects a socket that the caller has made (and marked).
    Connect {
        /// The socket.
        fd: Fd,
        /// Where to.
        peer: SocketAddr,
    },
    /// Receives into the buffer's spare capacity, as many bytes as are there. `Ok(0)`: the peer has finished.
    /// Completes with [`Carried::Buf`], longer by the number of bytes received.
    Recv {
        /// A connected socket.
        fd: Fd,
        /// Its spare capacity must not be empty.
        buf: Buf,
    },
    /// Sends all the slices, in order. Completes when the kernel has taken every byte, or with an error, after which
    /// an unknown part has been sent and the connection is of no more use.
    Send {
        /// A connected socket.
        fd: Fd,
        /// 1 to [`MAX_SLICES`] slices.
        slices: Vec<Shared>,
    },
    /// As `Send`, but the kernel may go on reading the slices' memory after it has taken every byte, instead of copying
    /// it. Completes twice when it succeeds: first with [`Completion::more`] set, when every byte is taken and the
    /// next send may begin, then when the memory is free again: with how many bytes the kernel copied after all, none
    /// or all. A failure is one last completion. The last completion may come long after the descriptor was closed.
    SendZeroCopy {
        /// A connected socket.
        fd: Fd,
        /// 1 to [`MAX_SLICES`] slices.
        slices: Vec<Shared>,
    },
    /// Receives one datagram into the spare capacity. Completes with [`Carried::Datagram`]. A longer datagram is cut
    /// off: give one byte more than the longest valid one.
    RecvFrom {
        /// A datagram socket.
        fd: Fd,
        /// Its spare capacity must not be empty.
        buf: Buf,
    },
    /// Sends one datagram.
    SendTo {
        /// A datagram socket.
        fd: Fd,
        /// The datagram.
        data: Shared,
        /// Where to.
        peer: SocketAddr,
    },
    /// Reads up to `len` bytes at `offset` into the spare capacity; fewer only at the end of the file.
    /// Completes with [`Carried::Buf`].
    ReadAt {
        /// A regular file.
        fd: Fd,
        /// At least `len` bytes of spare capacity are used if there are as many.
        buf: Buf,
        /// Where to begin, in bytes.
        offset: u64,
        /// How much, in bytes.
        len: usize,
    },
    /// Writes all the slices, back to back from `offset`.
    WriteAt {
        /// A regular file.
        fd: Fd,
        /// 1 to [`MAX_SLICES`] slices.
        slices: Vec<Shared>,
        /// Where to begin, in bytes.
        offset: u64,
    },
    /// As `WriteAt`, then `fdatasync`. Completes twice when the write succeeds: first with [`Completion::more`] set,
    /// when every byte is written, then when they are on disk. A failure of either is one last completion.
    WriteSynced {
        /// A regular file.
        fd: Fd,
        /// 1 to [`MAX_SLICES`] slices.
        slices: Vec<Shared>,
        /// Where to begin, in bytes.
        offset: u64,
    },
    /// Makes the file's content durable. An error is final: never ask again (protocol §10).
    Fdatasync {
        /// A regular file.
        fd: Fd,
    },
    /// Makes a file, or the names in a directory, durable. An error is final.
    Fsync {
        /// A regular file or a directory.
        fd: Fd,
    },
    /// Completes once when the descriptor can be read or has failed; the result is the poll mask.
    PollReadable {
        /// Anything that can be polled: fanotify, pidfd, pipe, socket.
        fd: Fd,
    },
}

impl Op {
    /// Whether the operation can be carried out at all: slices counted, spare capacity there.
    pub(super) fn is_sound(&self) -> bool {
        match self {
            Self::Send { slices, .. }
            | Self::SendZeroCopy { slices, .. }
            | Self::WriteAt { slices, .. }
            | Self::WriteSynced { slices, .. } => {
                (1..=MAX_SLICES).contains(&slices.len()) && slices.iter().any(|slice| !slice.is_empty())
            }
            Self::Recv { buf, .. } | Self::RecvFrom { buf, .. } => buf.spare() > 0,
            Self::ReadAt { buf, len, .. } => buf.spare() > 0 && *len > 0,
            _ => true,
        }
    }

    /// The descriptor that the operation works on.
    #[must_use]
    pub fn fd(&self) -> &Fd {
        match self {
            Self::Accept { fd }
            | Self::Connect { fd, .. }
            | Self::Recv { fd, .. }
            | Self::Send { fd, .. }
            | Self::SendZeroCopy { fd, .. }
            | Self::RecvFrom { fd, .. }
            | Self::SendTo { fd, .. }
            | Self::ReadAt { fd, .. }
            | Self::WriteAt { fd, .. }
            | Self::WriteSynced { fd, .. }
            | Self::Fdatasync { fd }
            | Self::Fsync { fd }
            | Self::PollReadable { fd } => fd,
        }
    }

    /// Whether it works on a file, and so always runs to its end once begun.
    pub(super) fn is_on_file(&self) -> bool {
        matches!(
            self,
            Self::ReadAt { .. }
                | Self::WriteAt { .. }
                | Self::WriteSynced { .. }
                | Self::Fdatasync { .. }
                | Self::Fsync { .. }
        )
    }

    /// Whether it waits for the descriptor to become writable, not readable.
    pub(super) fn sends(&self) -> bool {
        matches!(self, Self::Send { .. } | Self::SendZeroCopy { .. } | Self::SendTo { .. } | Self::Connect { .. })
    }

    /// The bytes of all slices of a send or write.
    pub(super) fn total_bytes(&self) -> usize {
        match self {
            Self::Send { slices, .. }
            | Self::SendZeroCopy { slices, .. }
            | Self::WriteAt { slices, .. }
            | Self::WriteSynced { slices, .. } => slices.iter().map(Shared::len).sum(),
            _ => 0,
        }
    }

    /// What the last completion gives back when there is nothing to say beyond the result.
    pub(super) fn into_carried(self) -> Carried {
        match self {
            Self::Recv { buf, .. } | Self::RecvFrom { buf, .. } | Self::ReadAt { buf, .. } => Carried::Buf(buf),
            _ => Carried::Nothing,
        }
    }
}

/// What a completion brings along.
#[derive(Debug)]
pub enum Carried {
    /// Nothing beyond the result.
    Nothing,
    /// The connection that was accepted.
    Socket {
        /// Close-on-exec.
        fd: Fd,
        /// `None` for a Unix socket.
        peer: Option<SocketAddr>,
    },
    /// The buffer of a receive or read, given back after success, failure and cancellation alike.
    Buf(Buf),
    /// The buffer of a successful `RecvFrom` and who sent it.
    Datagram {
        /// Longer by the datagram.
        buf: Buf,
        /// `None` for a Unix socket.
        peer: Option<SocketAddr>,
    },
}

/// The end (or with [`more`](Self::more) the middle) of an operation.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// Bytes moved (all the slices of a send or write), the poll mask, or 0. `ECANCELED`: see
    /// [`cancel`](super::Driver::cancel).
    pub result: io::Result<usize>,
    /// Buffers given back and things received.
    pub carried: Carried,
    /// Another completion of this operation will follow.
    pub more: bool,
}

/// The driver has no room for another operation (or it was not sound): here it is, unchanged.
#[derive(Debug, thiserror::Error)]
#[error("the driver refused an operation: {why}")]
pub struct Rejected<T: fmt::Debug> {
    /// What was refused.
    pub op: T,
    /// Why.
    pub why: RejectedWhy,
}

/// Why an operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectedWhy {
    /// As many operations are in flight as the driver was made for. Try: again after the next turn.
    #[error("as many operations are in flight as the driver was made for")]
    Full,
    /// No slice, too many slices, or no room in the buffer: an error of the caller.
    #[error("it has no slice, only empty ones, more than {MAX_SLICES}, or no room in its buffer")]
    Unsound,
}

//! One operation in flight on a ring: what it owns, the entry it is submitted as, and what its results mean.
//!
//! The memory that the kernel is pointed to (buffers, slices, [`Area`]) is owned by the slot and neither moved nor freed
//! while `expecting` is above zero. Results are interpreted here and nowhere else.

use std::{
    io,
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::NonNull,
};

use io_uring::{opcode, squeue, types};
use nix::sys::socket::{SockaddrLike, SockaddrStorage, getsockopt, sockopt::SocketError};

use super::{Carried, Fd, MAX_SLICES, Op, Shared, Token};

/// Message header, address and slice table of one operation, at an address that stays.
pub(super) struct Area {
    msg: libc::msghdr,
    addr: libc::sockaddr_storage,
    addr_len: libc::socklen_t,
    iov: [libc::iovec; MAX_SLICES],
}

/// Asks for a notification that says whether the kernel copied (IORING_SEND_ZC_REPORT_USAGE).
const REPORT_USAGE: u16 = 1 << 3;
/// The room for an address.
const ADDR_BYTES: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

/// Where registered memory lies, and how a descriptor is registered.
pub(super) struct Registered<'a> {
    /// The pool's region, if registered as buffer 0.
    pub region: Option<&'a std::ops::Range<usize>>,
    /// The table of files, if there is one.
    pub files: Option<&'a std::sync::Arc<super::registry::Slots>>,
}

/// A result of the kernel.
#[derive(Clone, Copy)]
pub(super) struct Outcome {
    /// As the entry says.
    pub result: i32,
    /// A notification of a zero-copy send follows this result.
    pub notified_later: bool,
    /// This is that notification.
    pub is_notification: bool,
}

/// In a notification's result: the kernel copied after all.
const COPIED: u32 = 1 << 31;

/// What becomes of an operation after a result.
pub(super) enum Next {
    /// More results of this submission are to come.
    Wait,
    /// To be submitted again: it was short, interrupted, or must wait for readiness first.
    Again,
    /// The write half of `WriteSynced` is done, in full; or a zero-copy send was taken, in full.
    Written(usize),
    /// The end.
    Done(io::Result<usize>, Carried),
}

/// One place for an operation.
#[derive(Default)]
pub(super) struct Slot {
    /// Tells results of this use from results of another; never both in flight.
    pub generation: u32,
    /// As submitted.
    pub token: Token,
    /// `None`: the slot is free.
    pub op: Option<Op>,
    /// How many results the kernel owes.
    pub expecting: u8,
    /// The owner has asked for an early end: do not submit it again.
    pub cancelled: bool,
    /// The next submission (or the current one) waits for readiness only.
    polling: bool,
    /// Bytes moved by earlier submissions of this operation.
    moved: usize,
    /// The result of the write half of the current `WriteSynced` submission.
    write_result: Option<i32>,
    /// The result of the sync half.
    sync_result: Option<i32>,
    /// Notifications of zero-copy sends that the kernel owes.
    notifications: u32,
    /// A notification said that the kernel copied, or it refused not to.
    copied: bool,
    /// The kernel refused to send this without copying.
    refused: bool,
    /// What the zero-copy send came to, once only notifications are owed.
    outcome: Option<io::Result<usize>>,
    /// The memory of that send.
    held: Vec<Shared>,
    area: Option<NonNull<Area>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        assert!(!self.is_owed(), "a slot is leaked, not dropped, while the kernel may use it");
        if let Some(area) = self.area {
            // SAFETY: made by `Box::into_raw` in `area`, dropped once, and the kernel owes no result that uses it.
            drop(unsafe { Box::from_raw(area.as_ptr()) });
        }
    }
}

/// The address that the kernel wrote.
///
/// # Safety
/// `addr` points to an initialised `sockaddr_storage` of which `len` bytes were written.
pub(super) unsafe fn peer_of(addr: *const libc::sockaddr_storage, len: libc::socklen_t) -> Option<SocketAddr> {
    // SAFETY: by the caller; `from_raw` checks family and length.
    let storage = unsafe { SockaddrStorage::from_raw(addr.cast(), Some(len)) }?;
    if let Some(v4) = storage.as_sockaddr_in() {
        return Some(SocketAddr::V4((*v4).into()));
    }
    storage.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into()))
}

/// An error number of the kernel as an error.
fn errno(result: i32) -> io::Error {
    io::Error::from_raw_os_error(-result)
}

impl Slot {
    /// Puts an operation into the free slot.
    pub(super) fn occupy(&mut self, token: Token, op: Op) {
        assert!(self.op.is_none() && !self.is_owed(), "a slot holds one operation at a time");
        self.generation = (self.generation + 1) & 0x0fff_ffff;
        self.token = token;
        self.op = Some(op);
        self.cancelled = false;
        self.polling = false;
        self.moved = 0;
        (self.copied, self.refused) = (false, false);
    }

    /// Whether the kernel may still use memory of this slot.
    pub(super) fn is_owed(&self) -> bool {
        self.expecting > 0 || self.notifications > 0
    }

    /// Whether an early end can be asked for: file operations always run to their end.
    pub(super) fn is_cancellable(&self) -> bool {
        self.op.as_ref().is_some_and(|op| !op.is_on_file())
    }

    /// How many entries the next submission takes.
    pub(super) fn entry_count(&self) -> usize {
        if matches!(self.op, Some(Op::WriteSynced { .. })) { 2 } else { 1 }
    }

    fn area(&mut self) -> NonNull<Area> {
        *self.area.get_or_insert_with(|| {
            // SAFETY: all of `Area` is plain C data for which zero bytes are a valid value.
            let area: Box<Area> = Box::new(unsafe { MaybeUninit::zeroed().assume_init() });
            NonNull::from(Box::leak(area))
        })
    }

    /// The entries that submit what is left to do of the operation. Sets `expecting`.
    pub(super) fn entries(
        &mut self,
        registered: &Registered<'_>,
        main: u64,
        sync: u64,
    ) -> (squeue::Entry, Option<squeue::Entry>) {
        assert_eq!(self.expecting, 0, "an operation is submitted once at a time");
        self.expecting = 1;
        let area = self.area();
        let moved = self.moved;
        let Some(op) = self.op.as_mut() else { unreachable!("only occupied slots are submitted") };
        let fixed = registered.files.and_then(|files| op.fd().slot_in(files));
        let fd = types::Fd(fixed.map_or(op.fd().as_raw_fd(), |slot| slot as i32));
        let flags = if fixed.is_some() { squeue::Flags::FIXED_FILE } else { squeue::Flags::empty() };
        if self.polling {
            let mask = if op.sends() { libc::POLLOUT } else { libc::POLLIN };
            return (opcode::PollAdd::new(fd, mask as u32).build().flags(flags).user_data(main), None);
        }
        let synced = matches!(op, Op::WriteSynced { .. });
        let entry = entry_of(op, fd, area, moved, self.refused, registered).flags(flags).user_data(main);
        if !synced {
            return (entry, None);
        }
        self.expecting = 2;
        (self.write_result, self.sync_result) = (None, None);
        let fsync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build().flags(flags).user_data(sync);
        (entry.flags(squeue::Flags::IO_LINK), Some(fsync))
    }

    /// Takes one result of the current submission, or a notification of one of this operation's.
    pub(super) fn take_result(&mut self, outcome: Outcome, is_sync: bool) -> Next {
        let result = outcome.result;
        if outcome.is_notification {
            self.notifications =
                self.notifications.checked_sub(1).unwrap_or_else(|| unreachable!("the kernel owes this notification"));
            self.copied |= result as u32 & COPIED != 0;
            return self.take_end();
        }
        self.notifications += u32::from(outcome.notified_later);
        self.expecting = self.expecting.checked_sub(1).unwrap_or_else(|| unreachable!("the kernel owes this result"));
        let Some(op) = self.op.as_ref() else { unreachable!("results belong to occupied slots") };
        if matches!(op, Op::WriteSynced { .. }) {
            return self.take_write_synced(result, is_sync);
        }
        if self.polling {
            return self.take_readiness(result);
        }
        match -result {
            libc::EINTR => return Next::Again,
            libc::EAGAIN if !op.is_on_file() => {
                self.polling = true;
                return Next::Again;
            }
            libc::EINPROGRESS | libc::EALREADY if matches!(op, Op::Connect { .. }) => {
                self.polling = true;
                return Next::Again;
            }
            libc::EAGAIN => return Next::Again,
            _ => {}
        }
        if matches!(op, Op::SendZeroCopy { .. }) {
            return self.take_zero_copy(result);
        }
        if result < 0 {
            return self.finish(Err(errno(result)));
        }
        self.take_success(result as usize)
    }

    /// A zero-copy send, or a part of it, has ended; its memory is not free yet.
    fn take_zero_copy(&mut self, result: i32) -> Next {
        if !self.refused && matches!(-result, libc::EOPNOTSUPP | libc::ENOMEM | libc::ENOBUFS) {
            // No such socket, or no more memory may be pinned.
            (self.refused, self.copied) = (true, true);
            return Next::Again;
        }
        let total = self.op.as_ref().map_or(0, Op::total_bytes);
        self.moved += usize::try_from(result).unwrap_or(0);
        let outcome = match result {
            ..0 => Err(errno(result)),
            _ if self.moved == total => Ok(total),
            0 => Err(io::ErrorKind::WriteZero.into()),
            _ => return Next::Again,
        };
        if outcome.is_err() {
            return self.end_zero_copy(outcome);
        }
        self.hold_zero_copy(outcome);
        Next::Written(total)
    }

    /// Only notifications are waited for from now on.
    fn hold_zero_copy(&mut self, outcome: io::Result<usize>) {
        // The descriptor goes now: a closed connection does not stay open for the sake of a notification.
        if let Some(Op::SendZeroCopy { slices, .. }) = self.op.take() {
            self.held = slices;
        }
        self.outcome = Some(outcome);
    }

    fn end_zero_copy(&mut self, outcome: io::Result<usize>) -> Next {
        self.hold_zero_copy(outcome);
        self.take_end()
    }

    /// Ends an operation that was asked to end before it was submitted, or submitted again.
    pub(super) fn cancel(&mut self) -> Next {
        let canceled = Err(io::Error::from_raw_os_error(libc::ECANCELED));
        match self.op {
            Some(Op::SendZeroCopy { .. }) => self.end_zero_copy(canceled),
            _ => self.finish(canceled),
        }
    }

    /// The end of a zero-copy send, if nothing is owed any more.
    pub(super) fn take_end(&mut self) -> Next {
        if self.is_owed() {
            return Next::Wait;
        }
        let Some(outcome) = self.outcome.take() else { return Next::Wait };
        self.held = Vec::new();
        let copied = self.copied;
        Next::Done(outcome.map(|total| if copied { total } else { 0 }), super::Carried::Nothing)
    }

    fn take_readiness(&mut self, result: i32) -> Next {
        self.polling = false;
        let Some(op) = self.op.as_ref() else { unreachable!("results belong to occupied slots") };
        match (result, op) {
            (..0, _) if -result == libc::EINTR => Next::Again,
            (..0, _) => self.finish(Err(errno(result))),
            (_, Op::Connect { fd, .. }) => match getsockopt(fd, SocketError) {
                Ok(0) => self.finish(Ok(0)),
                Ok(error) => self.finish(Err(errno(-error))),
                Err(error) => self.finish(Err(error.into())),
            },
            _ => Next::Again,
        }
    }

    fn take_write_synced(&mut self, result: i32, is_sync: bool) -> Next {
        *(if is_sync { &mut self.sync_result } else { &mut self.write_result }) = Some(result);
        let total = self.op.as_ref().map_or(0, Op::total_bytes);
        if !is_sync && result >= 0 && self.moved + result as usize == total {
            return Next::Written(total);
        }
        let (Some(write), Some(sync)) = (self.write_result, self.sync_result) else { return Next::Wait };
        match write {
            _ if matches!(-write, libc::EINTR | libc::EAGAIN) => Next::Again,
            0 => self.finish(Err(io::ErrorKind::WriteZero.into())),
            ..0 => self.finish(Err(errno(write))),
            // Short: the link is broken and the sync was cancelled. The rest goes out as another pair.
            _ if self.moved + (write as usize) < total => {
                self.moved += write as usize;
                Next::Again
            }
            _ if sync < 0 => self.finish(Err(errno(sync))),
            _ => self.finish(Ok(total)),
        }
    }

    fn take_success(&mut self, count: usize) -> Next {
        let Some(op) = self.op.as_mut() else { unreachable!("results belong to occupied slots") };
        match op {
            Op::Send { .. } | Op::WriteAt { .. } => {
                self.moved += count;
                match self.moved == op.total_bytes() {
                    true => self.finish(Ok(self.moved)),
                    false if count == 0 => self.finish(Err(io::ErrorKind::WriteZero.into())),
                    false => Next::Again,
                }
            }
            Op::ReadAt { buf, len, .. } => {
                buf.set_len(buf.len() + count);
                self.moved += count;
                match count == 0 || self.moved == *len || buf.spare() == 0 {
                    true => self.finish(Ok(self.moved)),
                    false => Next::Again,
                }
            }
            Op::Recv { buf, .. } | Op::RecvFrom { buf, .. } => {
                buf.set_len(buf.len() + count);
                self.finish(Ok(count))
            }
            _ => self.finish(Ok(count)),
        }
    }

    /// Empties the slot: result and what the operation gives back.
    pub(super) fn finish(&mut self, result: io::Result<usize>) -> Next {
        let Some(op) = self.op.take() else { unreachable!("an operation ends once") };
        let peer = |area: Option<NonNull<Area>>| {
            let area = area?;
            // SAFETY: zeroed when made, then written by the kernel, which owes no more results.
            unsafe { peer_of(&raw const (*area.as_ptr()).addr, (*area.as_ptr()).addr_len) }
        };
        match (op, result) {
            (Op::Accept { .. }, Ok(fd)) => {
                // SAFETY: the kernel has just given this descriptor to us alone.
                let fd = Fd::new(unsafe { OwnedFd::from_raw_fd(fd as i32) });
                Next::Done(Ok(0), Carried::Socket { fd, peer: peer(self.area) })
            }
            (Op::RecvFrom { buf, .. }, Ok(count)) => {
                if let Some(area) = self.area {
                    // SAFETY: as above; the kernel has put the length into the message header.
                    unsafe { (*area.as_ptr()).addr_len = (*area.as_ptr()).msg.msg_namelen };
                }
                Next::Done(Ok(count), Carried::Datagram { buf, peer: peer(self.area) })
            }
            (op, result) => Next::Done(result, op.into_carried()),
        }
    }
}

/// Points the table at the slices, without their first `skip` bytes; how many entries that took.
fn fill_iov(area: NonNull<Area>, slices: &[Shared], mut skip: usize) -> usize {
    let mut count = 0;
    for slice in slices {
        let part = &slice[skip.min(slice.len())..];
        skip -= slice.len() - part.len();
        if part.is_empty() {
            continue;
        }
        let iov = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        // SAFETY: `count < MAX_SLICES`, the bound on `slices`; the area is ours while nothing is in flight.
        unsafe { (&raw mut (*area.as_ptr()).iov).cast::<libc::iovec>().add(count).write(iov) };
        count += 1;
    }
    count
}

/// Fills in the message header for `count` entries of the table, with the peer's address, or room for one.
fn fill_msg(area: NonNull<Area>, count: usize, peer: Option<&SocketAddr>) -> *mut libc::msghdr {
    let area = area.as_ptr();
    // SAFETY: the area is ours while nothing is in flight; the copied address has the storage's size at most.
    unsafe {
        (*area).msg = MaybeUninit::zeroed().assume_init();
        (*area).msg.msg_iov = (&raw mut (*area).iov).cast();
        (*area).msg.msg_iovlen = count;
        (*area).msg.msg_name = (&raw mut (*area).addr).cast();
        (*area).msg.msg_namelen = ADDR_BYTES;
        if let Some(peer) = peer {
            let storage = SockaddrStorage::from(*peer);
            std::ptr::copy_nonoverlapping(
                storage.as_ptr().cast::<u8>(),
                (&raw mut (*area).addr).cast(),
                storage.len() as usize,
            );
            (*area).msg.msg_namelen = storage.len();
        }
        &raw mut (*area).msg
    }
}

/// The entry for what is left of `op` after `moved` bytes; `refused`: the socket takes no zero-copy send. It points into buffers that `op` owns and into `area`.
fn entry_of(
    op: &mut Op,
    fd: types::Fd,
    area: NonNull<Area>,
    moved: usize,
    refused: bool,
    registered: &Registered<'_>,
) -> squeue::Entry {
    match op {
        Op::Accept { .. } => {
            // SAFETY: the area is ours while nothing is in flight.
            let (addr, len) = unsafe {
                (*area.as_ptr()).addr_len = ADDR_BYTES;
                (&raw mut (*area.as_ptr()).addr, &raw mut (*area.as_ptr()).addr_len)
            };
            opcode::Accept::new(fd, addr.cast(), len).flags(libc::SOCK_CLOEXEC).build()
        }
        Op::Connect { peer, .. } => {
            let msg = fill_msg(area, 0, Some(peer));
            // SAFETY: just filled in.
            let (addr, len) = unsafe { ((*msg).msg_name, (*msg).msg_namelen) };
            opcode::Connect::new(fd, addr.cast(), len).build()
        }
        Op::Recv { buf, .. } => {
            let (start, len) = buf.spare_raw();
            opcode::Recv::new(fd, start, clamp(len)).build()
        }
        Op::Send { slices, .. } => send_entry(slices, fd, area, moved, None),
        Op::SendZeroCopy { slices, .. } => send_entry(slices, fd, area, moved, (!refused).then_some(registered)),
        Op::RecvFrom { buf, .. } => {
            let (start, len) = buf.spare_raw();
            // SAFETY: entry 0 of the table; the area is ours while nothing is in flight.
            unsafe { (*area.as_ptr()).iov[0] = libc::iovec { iov_base: start.cast(), iov_len: len } };
            opcode::RecvMsg::new(fd, fill_msg(area, 1, None)).build()
        }
        Op::SendTo { data, peer, .. } => {
            let count = fill_iov(area, std::slice::from_ref(data), 0);
            opcode::SendMsg::new(fd, fill_msg(area, count, Some(peer))).flags(libc::MSG_NOSIGNAL as u32).build()
        }
        Op::ReadAt { buf, offset, len, .. } => {
            let (start, spare) = buf.spare_raw();
            let (offset, len) = (*offset + moved as u64, clamp(spare.min(*len - moved)));
            match registered.holds(start, len) {
                true => opcode::ReadFixed::new(fd, start, len, 0).offset(offset).build(),
                false => opcode::Read::new(fd, start, len).offset(offset).build(),
            }
        }
        Op::WriteAt { slices, offset, .. } | Op::WriteSynced { slices, offset, .. } => {
            let offset = *offset + moved as u64;
            match left(slices, moved) {
                Some(only) if registered.holds(only.as_ptr(), clamp(only.len())) => {
                    opcode::WriteFixed::new(fd, only.as_ptr(), clamp(only.len()), 0).offset(offset).build()
                }
                Some(only) => opcode::Write::new(fd, only.as_ptr(), clamp(only.len())).offset(offset).build(),
                None => {
                    let count = fill_iov(area, slices, moved);
                    // SAFETY: a field of the area, no access.
                    let iov = unsafe { &raw const (*area.as_ptr()).iov };
                    opcode::Writev::new(fd, iov.cast(), count as u32).offset(offset).build()
                }
            }
        }
        Op::Fdatasync { .. } => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        Op::Fsync { .. } => opcode::Fsync::new(fd).build(),
        Op::PollReadable { .. } => opcode::PollAdd::new(fd, libc::POLLIN as u32).build(),
    }
}

/// The entry that sends what is left of `slices`; `zero_copy`: without copying, from registered memory where it is that.
fn send_entry(
    slices: &[Shared],
    fd: types::Fd,
    area: NonNull<Area>,
    moved: usize,
    zero_copy: Option<&Registered<'_>>,
) -> squeue::Entry {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
    match (left(slices, moved), zero_copy) {
        (Some(only), None) => opcode::Send::new(fd, only.as_ptr(), clamp(only.len())).flags(flags).build(),
        (Some(only), Some(registered)) => {
            let fixed = registered.holds(only.as_ptr(), clamp(only.len())).then_some(0);
            let entry = opcode::SendZc::new(fd, only.as_ptr(), clamp(only.len())).flags(flags);
            entry.buf_index(fixed).zc_flags(REPORT_USAGE).build()
        }
        (None, zero_copy) => {
            let count = fill_iov(area, slices, moved);
            let msg = fill_msg(area, count, None);
            // SAFETY: the area is ours; a connected socket takes no address.
            unsafe { ((*msg).msg_name, (*msg).msg_namelen) = (std::ptr::null_mut(), 0) };
            match zero_copy {
                None => opcode::SendMsg::new(fd, msg).flags(flags as u32).build(),
                Some(_) => opcode::SendMsgZc::new(fd, msg).ioprio(REPORT_USAGE).flags(flags as u32).build(),
            }
        }
    }
}

impl Registered<'_> {
    /// Whether these bytes lie in the registered region.
    fn holds(&self, start: *const u8, len: u32) -> bool {
        self.region.is_some_and(|region| region.start <= start as usize && start as usize + len as usize <= region.end)
    }
}

/// The rest of the slices after `skip` bytes, if it lies in one of them.
fn left(slices: &[Shared], mut skip: usize) -> Option<&[u8]> {
    let mut found = None;
    for slice in slices {
        let part = &slice[skip.min(slice.len())..];
        skip -= slice.len() - part.len();
        if !part.is_empty() && found.replace(part).is_some() {
            return None;
        }
    }
    found
}

/// Longer transfers than 1 GiB go in several.
fn clamp(len: usize) -> u32 {
    len.min(1 << 30) as u32
}

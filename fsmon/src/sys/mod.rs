//! The system calls without a safe wrapper: fanotify, file handles, and the hint to begin writing.
//!
//! Always: each `unsafe` block is one call with buffers that outlive it, and has its proof. Never: parsing; what the
//! kernel wrote is read as plain bytes elsewhere, with every length checked.

use std::{
    ffi::c_int,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::errno::Errno;

/// The greatest file handle that any file system makes (MAX_HANDLE_SZ).
const MAX_HANDLE_BYTES: usize = 128;

/// The kernel's `struct file_handle` with room for the greatest handle.
#[repr(C)]
struct RawHandle {
    bytes: u32,
    kind: i32,
    data: [u8; MAX_HANDLE_BYTES],
}

/// Has the disk begin with a part of a file that the page cache holds; whether the kernel took the hint. It says nothing
/// of errors: a later sync does.
pub fn begin_writing(file: impl AsFd, offset: u64, bytes: u64) -> bool {
    let (Ok(offset), Ok(bytes)) = (i64::try_from(offset), i64::try_from(bytes)) else { return false };
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: takes integers and a descriptor that is open for the call, no memory of ours.
    unsafe { libc::sync_file_range(fd, offset, bytes, libc::SYNC_FILE_RANGE_WRITE) == 0 }
}

/// Opens a fanotify group that reports directory handles, names and targets.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `EINVAL` on kernels before 5.17, `EMFILE` past the limit of groups.
pub fn fanotify_init() -> Result<OwnedFd, Errno> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_DFID_NAME_TARGET | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let event_flags = (libc::O_RDONLY | libc::O_CLOEXEC | libc::O_LARGEFILE) as u32;
    // SAFETY: takes two integers, no memory of ours.
    let fd = Errno::result(unsafe { libc::fanotify_init(flags, event_flags) })?;
    // SAFETY: the call succeeded, so that `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Marks the file system that holds `dir`.
///
/// # Errors
/// `EXDEV`, `ENODEV`, `EOPNOTSUPP` where the file system has no handles; `ENOSPC` past the limit of marks.
pub fn fanotify_mark_filesystem(group: BorrowedFd<'_>, mask: u64, dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: both descriptors are open for the call; a null path with a directory descriptor means the descriptor.
    let done = unsafe { libc::fanotify_mark(group.as_raw_fd(), flags, mask, dir.as_raw_fd(), std::ptr::null()) };
    Errno::result(done).map(drop)
}

/// The identity of a file system as fanotify reports it.
///
/// # Errors
/// The kernel's.
pub fn filesystem_id(dir: BorrowedFd<'_>) -> Result<[u8; 8], Errno> {
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `stat` has room for the structure that the kernel fills; the descriptor is open for the call.
    Errno::result(unsafe { libc::fstatfs(dir.as_raw_fd(), stat.as_mut_ptr()) })?;
    // SAFETY: zeroed and then filled: every field is a plain integer.
    let stat = unsafe { stat.assume_init() };
    // SAFETY: `fsid_t` is two `int`s without padding, read as the same eight bytes.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, [u8; 8]>(stat.f_fsid) })
}

/// Opens what a file handle names, on the file system of `mount`, as a place only (`O_PATH`).
///
/// # Errors
/// `ESTALE` where it is gone, `EPERM` without CAP_DAC_READ_SEARCH, `EINVAL` for a handle that is too long.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> Result<OwnedFd, Errno> {
    if handle.len() > MAX_HANDLE_BYTES {
        return Err(Errno::EINVAL);
    }
    let mut raw = RawHandle { bytes: handle.len() as u32, kind, data: [0; MAX_HANDLE_BYTES] };
    raw.data[..handle.len()].copy_from_slice(handle);
    let flags: c_int = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: `raw` has the layout of `struct file_handle`, its `bytes` are initialised, and it outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const raw, flags) };
    let fd = Errno::result(fd)? as c_int;
    // SAFETY: the call succeeded, so that `fd` is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The file handle of an open directory: kind and bytes.
///
/// # Errors
/// `EOPNOTSUPP` where the file system has none.
pub fn handle_of(dir: impl AsFd) -> Result<(i32, Vec<u8>), Errno> {
    let mut raw = RawHandle { bytes: MAX_HANDLE_BYTES as u32, kind: 0, data: [0; MAX_HANDLE_BYTES] };
    let mut mount_id: c_int = 0;
    let fd = dir.as_fd().as_raw_fd();
    // SAFETY: an empty path with AT_EMPTY_PATH names the open descriptor; `raw` has room for `bytes` bytes and, like
    // `mount_id`, outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd,
            c"".as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(done)?;
    Ok((raw.kind, raw.data[..raw.bytes as usize].to_vec()))
}

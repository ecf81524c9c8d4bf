//! What a path is like: the metadata that is mirrored, and what identifies its inode here.
//!
//! Always: the mirrored part ([`Meta`]) means the same on both hosts; device, inode and change time never leave this
//! one. Extended attributes and ACLs follow in a later version of the metadata block.

use std::os::fd::{AsFd, BorrowedFd};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{FileStat, SFlag, fstat, fstatat},
};
use ringpair_wire::mirror::{Kind, Meta};

/// Metadata with what identifies the inode on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What is mirrored.
    pub meta: Meta,
    /// The file system.
    pub dev: u64,
    /// The inode.
    pub ino: u64,
    /// How many names it has.
    pub nlink: u64,
    /// Time of the last change of content or metadata: seconds and nanoseconds.
    pub ctime: (i64, i64),
}

impl Stat {
    /// Of an open file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_fd(fd: impl AsFd) -> Result<Self, Errno> {
        fstat(fd).map(|stat| Self::from_kernel(&stat))
    }

    /// Of a name in a directory, not followed if it is a link.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of_name(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(|stat| Self::from_kernel(&stat))
    }

    fn from_kernel(stat: &FileStat) -> Self {
        let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Kind::Dir,
            SFlag::S_IFLNK => Kind::Symlink,
            SFlag::S_IFIFO => Kind::Fifo,
            SFlag::S_IFCHR => Kind::CharDevice,
            SFlag::S_IFBLK => Kind::BlockDevice,
            SFlag::S_IFSOCK => Kind::Socket,
            _ => Kind::File,
        };
        let sized = matches!(kind, Kind::File | Kind::Symlink);
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let meta = Meta {
            kind,
            mode: (stat.st_mode & 0o7777) as u16,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if sized { stat.st_size.unsigned_abs() } else { 0 },
            mtime_s: stat.st_mtime,
            mtime_ns: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            rdev: if device { stat.st_rdev } else { 0 },
        };
        let ctime = (stat.st_ctime, stat.st_ctime_nsec);
        Self { meta, dev: stat.st_dev, ino: stat.st_ino, nlink: stat.st_nlink, ctime }
    }

    /// Whether the content may have changed between two looks at one open file.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> bool {
        (self.meta.size, self.meta.mtime_s, self.meta.mtime_ns, self.ctime)
            != (before.meta.size, before.meta.mtime_s, before.meta.mtime_ns, before.ctime)
    }
}

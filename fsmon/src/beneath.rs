//! Reaching paths below a held directory, and only below it.
//!
//! Always: every component is resolved by the kernel with RESOLVE_BENEATH, NO_SYMLINKS and NO_MAGICLINKS, so that a
//! directory swapped for a symbolic link in the middle leads nowhere (OPS-096); paths longer than PATH_MAX are walked
//! in pieces. Never: a path given to the kernel whole and unchecked.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

/// The greatest length of a piece that is given to the kernel at once; below PATH_MAX with its NUL.
const PIECE_BYTES: usize = 4000;
/// How often a resolution that raced with a rename is tried again.
const RACES: usize = 64;

fn resolve(dir: BorrowedFd<'_>, piece: &[u8], flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    resolve_with(dir, piece, flags, mode, ResolveFlag::empty())
}

fn resolve_with(
    dir: BorrowedFd<'_>,
    piece: &[u8],
    flags: OFlag,
    mode: Mode,
    also: ResolveFlag,
) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode).resolve(beneath | also);
    let mut last = Errno::EAGAIN;
    for _ in 0..RACES {
        match openat2(dir, piece, how) {
            Err(errno @ (Errno::EAGAIN | Errno::EINTR)) => last = errno,
            done => return done,
        }
    }
    Err(last)
}

/// Opens `relative` (components joined by `/`; empty: `dir` itself) below `dir`.
///
/// # Errors
/// The kernel's: `ELOOP` or `EXDEV` where a component is a link or leads outside.
pub fn open(dir: BorrowedFd<'_>, relative: &[u8], flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    if relative.is_empty() {
        return resolve(dir, b".", flags, mode);
    }
    let mut held: Option<OwnedFd> = None;
    let mut rest = relative;
    while rest.len() > PIECE_BYTES {
        let cut = rest[..PIECE_BYTES].iter().rposition(|&b| b == b'/').ok_or(Errno::ENAMETOOLONG)?;
        let from = held.as_ref().map_or(dir, AsFd::as_fd);
        let next = resolve(from, &rest[..cut], OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty())?;
        held = Some(next);
        rest = &rest[cut + 1..];
    }
    resolve(held.as_ref().map_or(dir, AsFd::as_fd), rest, flags, mode)
}

/// Opens a directory below `dir` for reading and syncing.
///
/// # Errors
/// As [`open`]; `ENOTDIR` where it is none.
pub fn open_dir(dir: BorrowedFd<'_>, relative: &[u8]) -> Result<OwnedFd, Errno> {
    open(dir, relative, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())
}

/// Opens the directory that has a name in `dir`, unless something is mounted there.
///
/// # Errors
/// As [`open_dir`]; `EXDEV` where something is mounted.
pub fn open_dir_here(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    resolve_with(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty(), ResolveFlag::RESOLVE_NO_XDEV)
}

/// A name in a directory, with its kind where the file system says it.
pub type Name = (Box<[u8]>, Option<Type>);

/// The names in a directory, sorted, with the kind where the file system says it.
///
/// # Errors
/// The kernel's.
pub fn names(dir: BorrowedFd<'_>) -> Result<Vec<Name>, Errno> {
    let fd = resolve(dir, b".", OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty())?;
    let mut listing = Dir::from_fd(fd)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push((name.into(), entry.file_type()));
        }
    }
    names.sort_unstable_by(|(a, _): &Name, (b, _)| a.cmp(b));
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    // REQ: OPS-096
    #[test]
    fn a_link_on_the_way_leads_nowhere() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir_all(temp.path().join("root/d")).unwrap();
        fs::create_dir(temp.path().join("outside")).unwrap();
        symlink(temp.path().join("outside"), temp.path().join("root/absolute")).unwrap();
        symlink("../outside", temp.path().join("root/relative")).unwrap();
        symlink("d", temp.path().join("root/inside")).unwrap();
        let root = fs::File::open(temp.path().join("root")).unwrap();
        assert!(open_dir(root.as_fd(), b"d").is_ok());
        assert!(open_dir(root.as_fd(), b"").is_ok());
        for bad in ["absolute", "relative", "inside", "../outside", "d/../../outside"] {
            assert!(open_dir(root.as_fd(), bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn paths_longer_than_the_kernel_takes_are_walked() {
        let temp = tempfile::tempdir().unwrap();
        let root = fs::File::open(temp.path()).unwrap();
        let name = vec![b'n'; 250];
        let mut path: Vec<u8> = Vec::new();
        for _ in 0..40 {
            let parent = open_dir(root.as_fd(), &path).unwrap();
            nix::sys::stat::mkdirat(&parent, &name[..], Mode::from_bits_truncate(0o755)).unwrap();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
        }
        assert!(path.len() > 10_000);
        let deepest = open_dir(root.as_fd(), &path).unwrap();
        assert!(names(deepest.as_fd()).unwrap().is_empty());
    }
}

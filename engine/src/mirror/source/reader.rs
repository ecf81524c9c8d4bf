//! Reading what a changed path is now, and turning it into a change to send.
//!
//! Always: a file's content and metadata are of one moment: what changed while it was read is read again. Never: a
//! followed link, a FIFO opened for reading, or a mapped file.

use std::{
    fs::File,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::Mode,
};
use ringpair_fsmon::{beneath, meta::Stat};
use ringpair_wire::mirror::{Change, Kind, Meta, MirrorPath, piece_checksum};

use crate::ring::{Buf, BufPool};

/// Files up to this size travel whole, many in one message.
pub const SMALL_BYTES: u64 = 256 << 10;
/// The size of a piece of a larger one.
pub const PIECE_BYTES: usize = 512 << 10;
/// How often a file that changes while it is read is read again before it is named unstable.
pub const READINGS: u32 = 3;

/// What a path is now.
#[derive(Debug)]
pub enum Now {
    /// Nothing is there.
    Gone,
    /// It is a directory.
    Dir(Meta),
    /// A change that says it all.
    Change(Change, Stat),
    /// A file too large for one message: begun to be read.
    Large(Box<Stream>),
    /// A socket or device that is not mirrored, by its kind.
    LeftOut,
    /// It would not rest.
    Unstable,
    /// It cannot be read.
    Unreadable(Errno),
}

/// A large file that is being read.
pub struct Stream {
    /// Which one.
    pub path: MirrorPath,
    /// Its change's number.
    pub generation: u64,
    /// Its mark's number.
    pub stamp: u64,
    /// How often it was begun before.
    pub attempts: u32,
    /// Before the first byte was read.
    pub stat: Stat,
    /// How far it was read.
    pub offset: u64,
    file: File,
    checksum: u128,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("path", &self.path).field("offset", &self.offset).finish_non_exhaustive()
    }
}

/// What reading on gave.
#[derive(Debug)]
pub enum Piece {
    /// The next bytes, behind [`Piece::ROOM_BYTES`] for what stands before them in a message.
    Data(Buf),
    /// It is complete: its metadata and checksum.
    End(Meta, u128),
    /// It changed meanwhile.
    Changed,
}

impl Piece {
    /// Before the bytes of a piece: room for the head of its message.
    pub const ROOM_BYTES: usize = 64;
}

const _: () = assert!(Piece::ROOM_BYTES >= ringpair_wire::mirror::Piece::MAX_HEADER_BYTES);

impl Stream {
    /// Reads on, into a buffer of the pool.
    pub fn read(&mut self, pool: &BufPool) -> std::io::Result<Piece> {
        let mut buf = pool.take_or_heap();
        buf.set_len(Piece::ROOM_BYTES);
        let end = buf.capacity().min(Piece::ROOM_BYTES + PIECE_BYTES);
        while buf.len() < end {
            let most = end - buf.len();
            match self.file.read(&mut buf.spare_mut()[..most]) {
                Ok(0) => break,
                Ok(read) => buf.set_len(buf.len() + read),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let read = &buf[Piece::ROOM_BYTES..];
        if !read.is_empty() {
            self.checksum = piece_checksum(self.checksum, read);
            self.offset += read.len() as u64;
            return Ok(Piece::Data(buf));
        }
        let now = Stat::of_fd(&self.file)?;
        if now.changed_since(&self.stat) || now.meta.size != self.offset {
            return Ok(Piece::Changed);
        }
        Ok(Piece::End(now.meta, self.checksum))
    }
}

/// Looks at paths below a root, with the last directory kept open.
#[derive(Debug, Default)]
pub struct Reader {
    last: Option<(MirrorPath, Arc<OwnedFd>)>,
}

impl Reader {
    /// Names changed, or time passed: directories are opened anew.
    pub fn forget(&mut self) {
        self.last = None;
    }

    fn parent(&mut self, root: &OwnedFd, root_path: &MirrorPath, path: &MirrorPath) -> Result<Arc<OwnedFd>, Errno> {
        let parent = path.parent().unwrap_or_default();
        if let Some((last, dir)) = &self.last
            && *last == parent
        {
            return Ok(Arc::clone(dir));
        }
        let dir = Arc::new(beneath::open_dir(root.as_fd(), parent.below(root_path).unwrap_or_default())?);
        self.last = Some((parent, Arc::clone(&dir)));
        Ok(dir)
    }

    /// What `path` is now. `content`: whether it is to be read if it is a file, or only described.
    pub fn look(&mut self, root: &OwnedFd, root_path: &MirrorPath, path: &MirrorPath, content: bool) -> Now {
        match self.try_look(root, root_path, path, content) {
            Ok(now) => now,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Now::Gone,
            Err(errno) => Now::Unreadable(errno),
        }
    }

    fn try_look(
        &mut self,
        root: &OwnedFd,
        root_path: &MirrorPath,
        path: &MirrorPath,
        content: bool,
    ) -> Result<Now, Errno> {
        if path == root_path {
            return Stat::of_fd(root).map(|stat| Now::Dir(stat.meta));
        }
        let dir = self.parent(root, root_path, path)?;
        let name = path.name().unwrap_or_default();
        let stat = Stat::of_name(dir.as_fd(), name)?;
        Ok(match stat.meta.kind {
            Kind::Dir => Now::Dir(stat.meta),
            Kind::Socket => Now::LeftOut,
            Kind::Symlink => {
                let target = readlinkat(&dir, name)?.as_bytes().to_vec();
                Now::Change(Change::Symlink { meta: Meta { size: target.len() as u64, ..stat.meta }, target }, stat)
            }
            Kind::Fifo | Kind::CharDevice | Kind::BlockDevice => Now::Change(Change::Special(stat.meta), stat),
            Kind::File if !content => Now::Change(Change::Meta(stat.meta), stat),
            Kind::File => read_file(&dir, name, path)?,
        })
    }
}

fn read_file(dir: &OwnedFd, name: &[u8], path: &MirrorPath) -> Result<Now, Errno> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let raw = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
    for _ in 0..READINGS {
        let mut file = File::from(openat(dir, name, flags, Mode::empty())?);
        let before = Stat::of_fd(&file)?;
        if before.meta.kind != Kind::File {
            // Replaced between the look and the opening: its own event tells.
            return Ok(Now::Unstable);
        }
        if before.meta.size > SMALL_BYTES {
            return Ok(Now::Large(Box::new(Stream {
                path: path.clone(),
                generation: 0,
                stamp: 0,
                attempts: 0,
                stat: before,
                offset: 0,
                file,
                checksum: 0,
            })));
        }
        let mut content = Vec::with_capacity(before.meta.size as usize + 1);
        (&mut file).take(SMALL_BYTES + 1).read_to_end(&mut content).map_err(raw)?;
        let after = Stat::of_fd(&file)?;
        if !after.changed_since(&before) && content.len() as u64 == after.meta.size {
            return Ok(Now::Change(Change::File { meta: after.meta, content }, after));
        }
    }
    Ok(Now::Unstable)
}

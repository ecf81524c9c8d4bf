//! Watching by fanotify: one mark on each file system that holds a root.
//!
//! Always: what the kernel wrote is parsed with every length checked; a directory handle that cannot be resolved for
//! another reason than being gone counts as an overflow; events are told in order, by the names of their time. Never: more than
//! [`CACHED_DIRS`] remembered directories.

use std::{
    collections::HashMap,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::PathBuf,
};

use nix::errno::Errno;
use ringpair_wire::mirror::MirrorPath;

use super::{WatchEvent, WatchRoot};
use crate::{meta::Stat, roots::is_temporary, sys};

/// How many directories' paths are remembered by their handles.
const CACHED_DIRS: usize = 65_536;
/// How many events are taken apart at once; more count as an overflow. Above the kernel's default limit of its queue.
const MAX_BATCH: usize = 65_536;
/// How many renamed directories are undone in one batch; more count as an overflow.
const MAX_RENAMES: usize = 256;
/// How often a batch is resolved again because directories were renamed meanwhile.
const MAX_ROUNDS: usize = 16;
const READ_BYTES: usize = 64 << 10;
const EVENT_BYTES: usize = 24;
const MASK: u64 = libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_MODIFY
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_ATTRIB
    | libc::FAN_RENAME
    | libc::FAN_ONDIR;

/// A directory as an event names it: file system, kind of handle, handle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DirHandle {
    filesystem: [u8; 8],
    kind: i32,
    handle: Box<[u8]>,
}

/// A name in a directory.
type Place = (DirHandle, Box<[u8]>);

/// One event, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct RawEvent {
    mask: u64,
    /// The directory and name of the event; of a rename: the old ones.
    place: Option<Place>,
    /// The new ones of a rename.
    new_place: Option<Place>,
    /// What the event is about, by its handle.
    target: Option<DirHandle>,
}

impl RawEvent {
    const fn is_dir(&self) -> bool {
        self.mask & libc::FAN_ONDIR != 0
    }

    const fn is_rename(&self) -> bool {
        self.mask & libc::FAN_RENAME != 0
    }

    /// Whether `next` is the other half of an exchange of two names: mirrored places of different things.
    fn exchanges_with(&self, next: &Self) -> bool {
        self.is_rename()
            && next.is_rename()
            && self.place.is_some()
            && self.place == next.new_place
            && self.new_place == next.place
            && self.target != next.target
    }
}

/// A directory that changed its name, as the kernel names both places.
#[derive(Debug)]
struct Moved {
    from: Vec<u8>,
    to: Vec<u8>,
    /// Two directories changed places.
    exchanged: bool,
}

impl Moved {
    /// What was called `path` after this move, as it was called before.
    fn undo(&self, path: &mut Vec<u8>) {
        let rebase = |path: &[u8], from: &[u8], to: &[u8]| {
            let rest = path.strip_prefix(from).filter(|rest| rest.first().is_none_or(|&b| b == b'/'))?;
            Some([to, rest].concat())
        };
        let undone = rebase(path, &self.to, &self.from)
            .or_else(|| self.exchanged.then(|| rebase(path, &self.from, &self.to)).flatten());
        if let Some(undone) = undone {
            *path = undone;
        }
    }
}

/// Takes the first event off `bytes`; `None` if they are not an event of the known layout.
fn next_event(bytes: &mut &[u8]) -> Option<RawEvent> {
    let head = bytes.get(..EVENT_BYTES)?;
    let length = u32::from_ne_bytes(head[0..4].try_into().ok()?) as usize;
    let metadata_length = usize::from(u16::from_ne_bytes(head[6..8].try_into().ok()?));
    if head[4] != libc::FANOTIFY_METADATA_VERSION || metadata_length < EVENT_BYTES || length < metadata_length {
        return None;
    }
    let whole = bytes.get(..length)?;
    *bytes = &bytes[length..];
    let mut event = RawEvent { mask: u64::from_ne_bytes(head[8..16].try_into().ok()?), ..RawEvent::default() };
    let mut infos = &whole[metadata_length..];
    while !infos.is_empty() {
        let head = infos.get(..4)?;
        let length = usize::from(u16::from_ne_bytes(head[2..4].try_into().ok()?));
        let info = infos.get(..length).filter(|info| info.len() >= 4)?;
        infos = &infos[length..];
        match info[0] {
            libc::FAN_EVENT_INFO_TYPE_DFID_NAME
            | libc::FAN_EVENT_INFO_TYPE_DFID
            | libc::FAN_EVENT_INFO_TYPE_OLD_DFID_NAME => event.place = Some(place(info)?),
            libc::FAN_EVENT_INFO_TYPE_NEW_DFID_NAME => event.new_place = Some(place(info)?),
            libc::FAN_EVENT_INFO_TYPE_FID => event.target = Some(place(info)?.0),
            _ => {}
        }
    }
    Some(event)
}

fn place(info: &[u8]) -> Option<Place> {
    let filesystem = info.get(4..12)?.try_into().ok()?;
    let handle_bytes = u32::from_ne_bytes(info.get(12..16)?.try_into().ok()?) as usize;
    let kind = i32::from_ne_bytes(info.get(16..20)?.try_into().ok()?);
    let rest = info.get(20..)?;
    let handle = rest.get(..handle_bytes)?.into();
    let name = rest[handle_bytes..].split(|&b| b == 0).next().unwrap_or_default().into();
    Some((DirHandle { filesystem, kind, handle }, name))
}

#[derive(Debug)]
struct Root {
    path: MirrorPath,
    /// Where the kernel says that the directory is.
    real: Vec<u8>,
    recursive: bool,
}

/// A fanotify group and what its handles mean.
#[derive(Debug)]
pub struct Fanotify {
    group: OwnedFd,
    roots: Vec<Root>,
    mounts: HashMap<[u8; 8], OwnedFd>,
    /// Where directories are, by the names of now; `None`: gone, or outside every root's file system.
    dirs: HashMap<DirHandle, Option<Box<[u8]>>>,
    buffer: Vec<u8>,
}

fn real_path(dir: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let link = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    Ok(std::fs::read_link(link)?.as_os_str().as_bytes().to_vec())
}

impl Fanotify {
    /// Marks the file systems of all roots, or says why it cannot.
    pub fn new(roots: &[WatchRoot]) -> Result<Self, String> {
        let say = |what: &str, errno: Errno| format!("fanotify: {what}: {}", errno.desc());
        let group = sys::fanotify_init().map_err(|e| say("not permitted here", e))?;
        let mut this = Self {
            group,
            roots: Vec::new(),
            mounts: HashMap::new(),
            dirs: HashMap::new(),
            buffer: vec![0; READ_BYTES],
        };
        for root in roots {
            this.mark(root.dir.as_fd()).map_err(|e| say(&format!("{} cannot be marked", root.path), e))?;
            let real = real_path(root.dir.as_fd()).map_err(|e| format!("fanotify: {}: {e}", root.path))?;
            this.roots.push(Root { path: root.path.clone(), real, recursive: root.recursive });
        }
        Ok(this)
    }

    fn mark(&mut self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let filesystem = sys::filesystem_id(dir)?;
        if self.mounts.contains_key(&filesystem) {
            return Ok(());
        }
        sys::fanotify_mark_filesystem(self.group.as_fd(), MASK, dir)?;
        // Resolving handles needs a capability of its own: better known now than at the first event.
        let (kind, handle) = sys::handle_of(dir)?;
        sys::open_by_handle(dir, kind, &handle)?;
        let mount = dir.try_clone_to_owned().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
        self.mounts.insert(filesystem, mount);
        Ok(())
    }

    /// As [`super::Watcher::read`]. Handles are resolved to the names of now, events tell of names of then: so the queue
    /// is read until no directory was renamed since the resolution, and the renames are undone backwards.
    pub fn read(&mut self, out: &mut Vec<WatchEvent>) -> io::Result<usize> {
        let mut batch = Vec::new();
        let mut stable = false;
        for _ in 0..MAX_ROUNDS {
            let seen = batch.len();
            let overflowed = self.fill(&mut batch)?;
            if overflowed {
                break;
            }
            let fresh = &batch[seen..];
            if fresh.iter().any(|event: &RawEvent| event.is_rename() && event.is_dir()) {
                self.dirs.clear();
            }
            match self.resolve_all(&batch) {
                Ok(0) => {
                    stable = true;
                    break;
                }
                Ok(_) => {}
                Err(errno) => {
                    tracing::warn!(
                        error = errno.desc(),
                        "a changed directory cannot be resolved: comparing everything"
                    );
                    break;
                }
            }
        }
        let renames = batch.iter().filter(|event| event.is_rename() && event.is_dir()).count();
        if stable && renames <= MAX_RENAMES {
            self.tell(&batch, out);
        } else {
            out.push(WatchEvent::Overflow);
        }
        Ok(batch.len())
    }

    /// Reads what the queue holds; whether events were lost, or there are too many at once.
    fn fill(&mut self, batch: &mut Vec<RawEvent>) -> io::Result<bool> {
        loop {
            let length = match nix::unistd::read(&self.group, &mut self.buffer) {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
                Ok(length) => length,
            };
            let mut bytes = &self.buffer[..length];
            while !bytes.is_empty() {
                let Some(event) = next_event(&mut bytes) else { return Ok(true) };
                let lost = event.mask & libc::FAN_Q_OVERFLOW != 0;
                batch.push(event);
                if lost || batch.len() > MAX_BATCH {
                    return Ok(true);
                }
            }
        }
    }

    /// Resolves the directories of the batch that are not known yet, and says how many there were.
    fn resolve_all(&mut self, batch: &[RawEvent]) -> Result<usize, Errno> {
        if self.dirs.len() > CACHED_DIRS {
            self.dirs.clear();
        }
        let mut resolved = 0;
        for (dir, _) in batch.iter().flat_map(|event| [&event.place, &event.new_place]).flatten() {
            if !self.dirs.contains_key(dir) {
                let real = match self.resolve(dir) {
                    Err(Errno::ESTALE) => None,
                    found => found?,
                };
                self.dirs.insert(dir.clone(), real);
                resolved += 1;
            }
        }
        Ok(resolved)
    }

    fn resolve(&self, key: &DirHandle) -> Result<Option<Box<[u8]>>, Errno> {
        let Some(mount) = self.mounts.get(&key.filesystem) else { return Ok(None) };
        let dir = sys::open_by_handle(mount.as_fd(), key.kind, &key.handle)?;
        if Stat::of_fd(&dir)?.nlink == 0 {
            return Ok(None);
        }
        let real = real_path(dir.as_fd()).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(Some(real.into()))
    }

    /// Tells a batch in order, each event by the names of its time.
    fn tell(&self, batch: &[RawEvent], out: &mut Vec<WatchEvent>) {
        let mut later: Vec<Moved> = Vec::new();
        let mut told = Vec::with_capacity(batch.len());
        let mut index = batch.len();
        while index > 0 {
            index -= 1;
            let event = &batch[index];
            let exchanged = index > 0 && batch[index - 1].exchanges_with(event);
            index -= usize::from(exchanged);
            let name = |place: &Option<Place>| place.as_ref().and_then(|place| self.real(place, &later));
            let (from, to) = (name(&event.place), name(&event.new_place));
            if event.is_rename() {
                self.tell_rename(event.is_dir(), exchanged, from.as_deref(), to.as_deref(), &mut told);
                if let (true, Some(from), Some(to)) = (event.is_dir(), from, to) {
                    later.push(Moved { from, to, exchanged });
                }
            } else if let Some(path) = from.and_then(|real| self.mirrored(&real, event.is_dir())) {
                told.push(describe(event, path));
            } else if event.place.is_none() {
                told.extend(self.tell_nameless(event));
            }
        }
        out.extend(told.into_iter().rev());
    }

    fn tell_rename(
        &self,
        is_dir: bool,
        exchanged: bool,
        from: Option<&[u8]>,
        to: Option<&[u8]>,
        told: &mut Vec<WatchEvent>,
    ) {
        let mirrored = |real: Option<&[u8]>| real.and_then(|real| self.mirrored(real, is_dir));
        let looked_at = |path| WatchEvent::Changed {
            path,
            unsettled: false,
            content: true,
            name: true,
            subtree: is_dir || exchanged,
        };
        match (mirrored(from), mirrored(to)) {
            (Some(a), Some(b)) if exchanged => told.push(WatchEvent::Exchanged { a, b }),
            (Some(from), Some(to)) => told.push(WatchEvent::Renamed { from, to, is_dir }),
            (from, to) => told.extend(from.into_iter().chain(to).map(looked_at)),
        }
    }

    /// A file got or lost one of several names: the kernel says which file, and where one of the names left may be.
    fn tell_nameless(&self, event: &RawEvent) -> Option<WatchEvent> {
        let target = event.target.as_ref()?;
        let mount = self.mounts.get(&target.filesystem)?;
        // What is gone, or not to be had, has no name left that its own event would not tell of.
        let file = sys::open_by_handle(mount.as_fd(), target.kind, &target.handle).ok()?;
        if Stat::of_fd(&file).ok()?.nlink == 0 {
            return None;
        }
        let path = self.mirrored(&real_path(file.as_fd()).ok()?, false)?;
        Some(WatchEvent::Changed { path, unsettled: false, content: true, name: false, subtree: false })
    }

    /// The name of a place before `later` happened, as the kernel writes it.
    fn real(&self, (dir, name): &Place, later: &[Moved]) -> Option<Vec<u8>> {
        let mut real = self.dirs.get(dir)?.as_ref()?.to_vec();
        later.iter().for_each(|moved| moved.undo(&mut real));
        if !matches!(&name[..], b"" | b".") {
            if real != b"/" {
                real.push(b'/');
            }
            real.extend_from_slice(name);
        }
        Some(real)
    }

    /// The mirror's name of a path, if a root covers it.
    fn mirrored(&self, real: &[u8], is_dir: bool) -> Option<MirrorPath> {
        if is_temporary(real.rsplit(|&b| b == b'/').next().unwrap_or_default()) {
            return None;
        }
        let below = |root: &Root| {
            let rest = if root.real == b"/" { real } else { real.strip_prefix(&root.real[..])? };
            let path = match rest.strip_prefix(b"/") {
                Some([]) => root.path.clone(),
                Some(rest) if root.path.is_empty() => MirrorPath::parse(rest).ok()?,
                Some(rest) => MirrorPath::parse(&[root.path.as_bytes(), rest].join(&b'/')).ok()?,
                None => rest.is_empty().then(|| root.path.clone())?,
            };
            let rest = path.below(&root.path)?;
            (root.recursive || rest.is_empty() || (!is_dir && !rest.contains(&b'/'))).then_some(path)
        };
        self.roots.iter().find_map(below)
    }
}

fn describe(event: &RawEvent, path: MirrorPath) -> WatchEvent {
    let written = event.mask & (libc::FAN_MODIFY | libc::FAN_CREATE) != 0;
    let settled = event.mask & (libc::FAN_CLOSE_WRITE | libc::FAN_ATTRIB | libc::FAN_DELETE) != 0;
    let name = event.mask & (libc::FAN_CREATE | libc::FAN_DELETE) != 0;
    let content = event.mask & !(libc::FAN_ATTRIB | libc::FAN_ONDIR) != 0;
    WatchEvent::Changed { path, unsettled: written && !settled && !event.is_dir(), content, name, subtree: false }
}

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn info(kind: u8, handle: &[u8], name: &[u8]) -> Vec<u8> {
        let mut body = vec![1, 0, 0, 0, 2, 0, 0, 0];
        body.extend((handle.len() as u32).to_ne_bytes());
        body.extend(7_i32.to_ne_bytes());
        body.extend_from_slice(handle);
        body.extend_from_slice(name);
        body.push(0);
        while body.len() % 4 != 0 {
            body.push(0);
        }
        let mut info = vec![kind, 0];
        info.extend((body.len() as u16 + 4).to_ne_bytes());
        info.extend(body);
        info
    }

    fn event(mask: u64, infos: &[Vec<u8>]) -> Vec<u8> {
        let infos = infos.concat();
        let mut event = (EVENT_BYTES as u32 + infos.len() as u32).to_ne_bytes().to_vec();
        event.extend([libc::FANOTIFY_METADATA_VERSION, 0]);
        event.extend((EVENT_BYTES as u16).to_ne_bytes());
        event.extend(mask.to_ne_bytes());
        event.extend([0xff; 8]);
        event.extend(infos);
        event
    }

    #[test]
    fn events_are_taken_apart() {
        let mut bytes = event(libc::FAN_CREATE, &[info(2, &[9; 8], b"new\n\xff"), info(1, &[8; 8], b"")]);
        bytes.extend(event(libc::FAN_RENAME, &[info(10, &[1; 12], b"a"), info(12, &[2; 12], b"b")]));
        let mut rest = &bytes[..];
        let first = next_event(&mut rest).unwrap();
        let (dir, name) = first.place.unwrap();
        assert_eq!((&dir.handle[..], dir.kind, &name[..]), (&[9; 8][..], 7, &b"new\n\xff"[..]));
        let second = next_event(&mut rest).unwrap();
        assert_eq!((&second.place.unwrap().1[..], &second.new_place.unwrap().1[..]), (&b"a"[..], &b"b"[..]));
        assert!(rest.is_empty());
    }

    proptest! {
        #[test]
        fn damaged_events_are_survived(at: prop::sample::Index, byte: u8, cut: prop::sample::Index) {
            let mut bytes = event(libc::FAN_RENAME, &[info(10, &[1; 12], b"a"), info(12, &[2; 12], b"b")]);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(cut.index(bytes.len() + 1));
            let mut rest = &bytes[..];
            while !rest.is_empty() && next_event(&mut rest).is_some() {}
        }
    }
}

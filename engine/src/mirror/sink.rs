//! The backup member's half of the mirror.
//!
//! Always: a file is whole when its name appears (REP-049), and durable when it is reported; the active's word about
//! roots is taken only beneath `[mirror] root` and outside the forbidden directories. Never: a message of a lower epoch,
//! a followed link, the removal of a root.

mod group;
mod listing;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use group::{Complete, Group};
use listing::Listing;
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::Mode,
};
use ringpair_fsmon::{meta::Stat, scan::open_root};
use ringpair_wire::{
    id::Epoch,
    mirror::{Change, Item, Kind, RootSpec, bounded_reason},
};
use tree::{OpenRoot, Tree, TreeError, discard, set_meta, set_meta_of_fd, write_all};

use super::{
    ArchiveFiles, MAX_PROBLEMS, Meta, MirrorBase, MirrorError, MirrorMessage, MirrorPath, MirrorState, MirrorStatus,
    Outbox, Problem, RootSet,
};

/// How many files may be in pieces at once.
const MAX_STREAMS: usize = 8;
/// How many answers may wait to be sent.
const MAX_OUTBOX: usize = 1024;
/// How many announced paths are remembered.
const MAX_ANNOUNCED: usize = 1 << 20;

/// What a sink is started with.
#[derive(Clone, Debug)]
pub struct SinkOptions {
    /// Where the roots are on this host.
    pub base: MirrorBase,
    /// The highest epoch known: messages of lower ones are refused.
    pub epoch: Epoch,
    /// Drawn at the start of this backup; a new number has the initial directories copied again (REP-026).
    pub instance: u64,
}

/// What [`Sink::finish`] found: what a promoted member knows that it lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkReport {
    /// Announced, but not applied; at most [`super::MAX_PROBLEMS`] are named.
    pub missing: Vec<MirrorPath>,
    /// How many are missing altogether, with those that the active had not announced yet.
    pub missing_count: u64,
    /// Whether the first comparison had ended.
    pub complete: bool,
    /// Complete files that were renamed into place now.
    pub finished: u64,
}

/// A file that comes in pieces.
struct Stream {
    path: MirrorPath,
    dir: Arc<OwnedFd>,
    temporary: Vec<u8>,
    file: File,
    offset: u64,
    hasher: Box<blake3::Hasher>,
    /// The first thing that went wrong: the rest is dropped, and the end answered with this.
    failed: Option<String>,
}

/// What a session mirrors.
struct Session {
    tree: Tree,
    problems: Vec<Problem>,
}

/// What the active said it would send, and what of that has not come.
#[derive(Default)]
struct Announced {
    by_generation: BTreeMap<u64, MirrorPath>,
    /// Settled before their announcement, which took the other lane, arrived.
    early: BTreeSet<u64>,
    /// Announced in an earlier session, or withdrawn, or failed: not here as the active has it.
    stale: BTreeSet<MirrorPath>,
    more: u64,
}

impl Announced {
    fn announce(&mut self, first: u64, paths: Vec<MirrorPath>, more: u64) {
        self.more = more;
        for (generation, path) in (first..).zip(paths) {
            if !self.early.remove(&generation) && self.by_generation.len() < MAX_ANNOUNCED {
                self.by_generation.insert(generation, path);
            }
        }
    }

    fn settle(&mut self, generation: u64, path: Option<&MirrorPath>, applied: bool) {
        let path = match (self.by_generation.remove(&generation), path) {
            (Some(path), _) => path,
            (None, path) => {
                if self.early.len() < MAX_ANNOUNCED {
                    self.early.insert(generation);
                }
                let Some(path) = path else { return };
                path.clone()
            }
        };
        if applied {
            self.stale.remove(&path);
        } else if self.stale.len() < MAX_ANNOUNCED {
            self.stale.insert(path);
        }
    }

    fn new_session(&mut self) {
        self.stale.extend(std::mem::take(&mut self.by_generation).into_values().take(MAX_ANNOUNCED));
        self.early.clear();
    }
}

/// Applies changes beneath held directories, makes them durable in groups, and says so.
pub struct Sink {
    options: SinkOptions,
    archive: Option<Box<dyn ArchiveFiles>>,
    outbox: Outbox,
    session: Option<Session>,
    announced: Announced,
    group: Group,
    /// Paths of the changes in the group, for the announcements.
    group_paths: HashMap<u64, MirrorPath>,
    streams: HashMap<u64, Stream>,
    listing: Option<Listing>,
    synced: bool,
    finished: bool,
    status: MirrorStatus,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").field("options", &self.options).field("status", &self.status).finish_non_exhaustive()
    }
}

impl Sink {
    /// A sink without a session: the active's `Roots` message begins one. With `archive`, whatever this member has and
    /// the active overwrites or removes is archived first, until the first comparison is over: give it where this member
    /// was active before.
    #[must_use]
    pub fn new(options: SinkOptions, archive: Option<Box<dyn ArchiveFiles>>) -> Self {
        Self {
            options,
            archive,
            outbox: Outbox::new(),
            session: None,
            announced: Announced::default(),
            group: Group::default(),
            group_paths: HashMap::new(),
            streams: HashMap::new(),
            listing: None,
            synced: false,
            finished: false,
            status: MirrorStatus::default(),
        }
    }

    /// A higher epoch became known.
    pub fn set_epoch(&mut self, epoch: Epoch) {
        self.options.epoch = self.options.epoch.max(epoch);
    }

    /// The bulk lane went down: what is incomplete is forgotten, what is complete is made durable.
    pub fn disconnected(&mut self) {
        self.outbox.clear();
        self.listing = None;
        self.drop_streams();
        if let Err(error) = self.flush() {
            self.status.last_error = Some(error.to_string());
        }
        self.outbox.clear();
    }

    fn drop_streams(&mut self) {
        for stream in std::mem::take(&mut self.streams).into_values() {
            discard(stream.dir.as_fd(), &stream.temporary);
        }
    }

    /// Takes a message of the active, from either lane.
    ///
    /// # Errors
    /// [`MirrorError::LowerEpoch`]: dropped, a refusal is in the outbox. [`MirrorError::Protocol`]: close the connection.
    /// [`MirrorError::Archive`]: stop the member, nothing was overwritten.
    pub fn handle_message(&mut self, message: MirrorMessage, _now: Duration) -> Result<(), MirrorError> {
        let Some(epoch) = message.epoch() else {
            return Err(MirrorError::Protocol("a backup's message sent to a backup".into()));
        };
        if self.finished || epoch < self.options.epoch {
            self.outbox.push_back(MirrorMessage::LowerEpoch { known: self.options.epoch });
            return Err(MirrorError::LowerEpoch { got: epoch, known: self.options.epoch });
        }
        self.options.epoch = epoch;
        match message {
            MirrorMessage::Roots { session, roots, exceptions, devices, .. } => {
                self.begin(session, roots, exceptions, devices)
            }
            MirrorMessage::Announce { first_generation, more, paths, .. } => {
                self.announced.announce(first_generation, paths, more);
                Ok(())
            }
            MirrorMessage::Items { items, .. } => items.into_iter().try_for_each(|item| self.item(item)),
            MirrorMessage::FileBegin { generation, path, .. } => self.file_begin(generation, path),
            MirrorMessage::FileData { generation, offset, bytes, .. } => self.file_data(generation, offset, &bytes),
            MirrorMessage::FileEnd { generation, meta, digest, .. } => self.file_end(generation, &meta, digest),
            MirrorMessage::FileAbort { generation, .. } => {
                if let Some(stream) = self.streams.remove(&generation) {
                    discard(stream.dir.as_fd(), &stream.temporary);
                    self.announced.settle(generation, Some(&stream.path), false);
                }
                Ok(())
            }
            MirrorMessage::ManifestRequest { request, root, deep, credit, .. } => {
                self.list(request, root, deep, credit)
            }
            MirrorMessage::Barrier { id, .. } => {
                self.flush()?;
                self.outbox.push_back(MirrorMessage::BarrierDone { id });
                Ok(())
            }
            MirrorMessage::Synced { .. } => {
                self.flush()?;
                self.synced = true;
                self.announced.stale.clear();
                self.archive = None;
                if let Some(session) = &mut self.session {
                    session.tree.stop_archiving();
                }
                Ok(())
            }
            _ => Err(MirrorError::Protocol("a backup's message sent to a backup".into())),
        }
    }

    fn begin(
        &mut self,
        id: u64,
        roots: Vec<RootSpec>,
        exceptions: Vec<Vec<u8>>,
        devices: bool,
    ) -> Result<(), MirrorError> {
        self.flush()?;
        self.drop_streams();
        self.listing = None;
        self.synced = false;
        self.announced.new_session();
        let archive = match self.session.take() {
            Some(mut session) => session.tree.take_archive(),
            None => self.archive.take(),
        };
        let set = RootSet::new(roots, exceptions, devices);
        let (mut opened, mut problems) = (Vec::new(), Vec::new());
        for spec in set.roots() {
            match self.open_root(&spec.path) {
                Ok(dir) => opened.push(OpenRoot { spec: spec.clone(), dir }),
                Err(reason) => problems.push(Problem { path: spec.path.clone(), reason: bounded_reason(reason) }),
            }
        }
        let tree = Tree::new(Arc::new(set), opened, archive, self.options.instance);
        let answer =
            MirrorMessage::RootsReady { session: id, instance: self.options.instance, problems: problems.clone() };
        self.session = Some(Session { tree, problems });
        self.outbox.push_back(answer);
        Ok(())
    }

    /// Opens a root on this host, made with its parents if it is missing (REP-028).
    fn open_root(&self, path: &MirrorPath) -> Result<OwnedFd, String> {
        let place = self.options.base.place(path);
        let clashes = |dir: &&PathBuf| place.starts_with(dir) || dir.starts_with(&place);
        if let Some(dir) = self.options.base.forbidden.iter().find(clashes) {
            return Err(format!(
                "{} holds this member's own {}. Try: another directory",
                place.display(),
                dir.display()
            ));
        }
        std::fs::create_dir_all(&place).map_err(|e| format!("{} cannot be made: {e}", place.display()))?;
        open_root(&place).map_err(|e| format!("{} cannot be opened: {}", place.display(), e.desc()))
    }

    fn tree(&mut self) -> Result<&mut Tree, MirrorError> {
        match &mut self.session {
            Some(session) => Ok(&mut session.tree),
            None => Err(MirrorError::Protocol("a change before the roots".into())),
        }
    }

    fn item(&mut self, item: Item) -> Result<(), MirrorError> {
        let Item { generation, path, change } = item;
        let names = match &change {
            Change::File { .. } | Change::Skip => false,
            Change::Mkdir(_) | Change::Meta(_) => self.group.holds(&path),
            Change::Rename { to } | Change::Exchange { with: to } => {
                self.group.concerns(to) || self.group.concerns(&path)
            }
            _ => self.group.concerns(&path),
        };
        if names || self.group.is_full() {
            self.flush()?;
        }
        if matches!(change, Change::Skip) {
            self.announced.settle(generation, Some(&path), false);
            return Ok(());
        }
        match self.apply(generation, &path, change) {
            Ok(()) => {
                self.group_paths.insert(generation, path);
                Ok(())
            }
            Err(TreeError::Archive(error)) => Err(error),
            Err(error) => {
                self.failed(generation, Some(&path), error.to_string());
                Ok(())
            }
        }
    }

    fn failed(&mut self, generation: u64, path: Option<&MirrorPath>, reason: String) {
        let shown = path.map(ToString::to_string).unwrap_or_default();
        self.status.last_error = Some(format!("{shown}: {reason}"));
        self.announced.settle(generation, path, false);
        self.outbox.push_back(MirrorMessage::Failed { generation, reason: bounded_reason(reason) });
    }

    fn apply(&mut self, generation: u64, path: &MirrorPath, change: Change) -> Result<(), TreeError> {
        let tree = self.tree()?;
        match change {
            Change::File { meta, content } => {
                if meta.kind != Kind::File || meta.size != content.len() as u64 {
                    return Err(TreeError::Refused("its length is not what was announced"));
                }
                let (dir, name) = tree.parent(path, false, true)?;
                if tree.set().left_out_by_name(name, Kind::File).is_some() {
                    return Err(TreeError::Refused("it is left out of the mirror"));
                }
                let (temporary, mut file) = tree.create(dir.as_fd())?;
                let written = write_all(&mut file, &content).and_then(|()| set_meta_of_fd(&file, &meta));
                if let Err(errno) = written {
                    discard(dir.as_fd(), &temporary);
                    return Err(errno.into());
                }
                self.group.file(Complete { generation, path: path.clone(), dir, temporary, file, bytes: meta.size });
                return Ok(());
            }
            Change::Mkdir(meta) => {
                let dir = tree.mkdir(path)?;
                self.group.dir_meta(path.clone(), dir, meta);
            }
            Change::Meta(meta) => self.meta(path, &meta)?,
            Change::Symlink { meta, target } => {
                if meta.kind != Kind::Symlink || target.is_empty() {
                    return Err(TreeError::Refused("not a symbolic link"));
                }
                let (parent, dir) = tree.special(path, &meta, &target)?;
                self.group.sync_dir(parent, dir);
            }
            Change::Special(meta) => {
                let (parent, dir) = tree.special(path, &meta, b"")?;
                self.group.sync_dir(parent, dir);
            }
            Change::Remove => {
                if let Some((parent, dir)) = tree.remove(path)? {
                    self.group.sync_dir(parent, dir);
                }
            }
            Change::Rename { to } => {
                let dirs = tree.rename(path, &to)?;
                dirs.into_iter().for_each(|(path, dir)| self.group.sync_dir(path, dir));
            }
            Change::Exchange { with } => {
                let dirs = tree.exchange(path, &with)?;
                dirs.into_iter().for_each(|(path, dir)| self.group.sync_dir(path, dir));
            }
            Change::Skip => return Ok(()),
        }
        self.group.changed(generation);
        Ok(())
    }

    fn meta(&mut self, path: &MirrorPath, meta: &Meta) -> Result<(), TreeError> {
        let tree = self.tree()?;
        if meta.kind == Kind::Dir {
            let dir = tree.dir(path, false)?;
            tree.root(path, true)?;
            self.group.dir_meta(path.clone(), dir, *meta);
            return Ok(());
        }
        let (dir, name) = tree.parent(path, false, false)?;
        let there = Stat::of_name(dir.as_fd(), name)?;
        if there.meta.kind != meta.kind || there.meta.size != meta.size {
            return Err(TreeError::Refused("what is there is something else"));
        }
        set_meta(dir.as_fd(), name, meta)?;
        if meta.kind == Kind::File {
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            self.group.touched(File::from(openat(&dir, name, flags, Mode::empty())?));
        }
        Ok(())
    }

    fn file_begin(&mut self, generation: u64, path: MirrorPath) -> Result<(), MirrorError> {
        if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&generation) {
            return Err(MirrorError::Protocol(format!(
                "more than {MAX_STREAMS} files in pieces at once, or one twice"
            )));
        }
        let tree = self.tree()?;
        let opened = tree.parent(&path, false, true).and_then(|(dir, name)| {
            if tree.set().left_out_by_name(name, Kind::File).is_some() {
                return Err(TreeError::Refused("it is left out of the mirror"));
            }
            let (temporary, file) = tree.create(dir.as_fd())?;
            Ok((dir, temporary, file))
        });
        match opened {
            Ok((dir, temporary, file)) => {
                let hasher = Box::new(blake3::Hasher::new());
                self.streams.insert(generation, Stream { path, dir, temporary, file, offset: 0, hasher, failed: None });
            }
            Err(TreeError::Archive(error)) => return Err(error),
            Err(error) => self.failed(generation, Some(&path), error.to_string()),
        }
        Ok(())
    }

    fn file_data(&mut self, generation: u64, offset: u64, bytes: &[u8]) -> Result<(), MirrorError> {
        // A file that could not be begun was answered then.
        let Some(stream) = self.streams.get_mut(&generation) else { return Ok(()) };
        if stream.offset != offset {
            return Err(MirrorError::Protocol(format!("piece at {offset}, expected {}", stream.offset)));
        }
        stream.offset += bytes.len() as u64;
        if stream.failed.is_none() {
            stream.hasher.update(bytes);
            stream.failed = write_all(&mut stream.file, bytes).err().map(|errno| errno.desc().to_owned());
        }
        Ok(())
    }

    fn file_end(&mut self, generation: u64, meta: &Meta, digest: [u8; 32]) -> Result<(), MirrorError> {
        let Some(stream) = self.streams.remove(&generation) else { return Ok(()) };
        let Stream { path, dir, temporary, file, offset, hasher, failed } = stream;
        let wrong = failed
            .or_else(|| (meta.size != offset).then(|| format!("{offset} bytes came, {} were announced", meta.size)))
            .or_else(|| (*hasher.finalize().as_bytes() != digest).then(|| "its content was damaged on the way".into()))
            .or_else(|| set_meta_of_fd(&file, meta).err().map(|errno: Errno| errno.desc().to_owned()));
        if let Some(reason) = wrong {
            discard(dir.as_fd(), &temporary);
            self.failed(generation, Some(&path), reason);
            return Ok(());
        }
        self.group_paths.insert(generation, path.clone());
        self.group.file(Complete { generation, path, dir, temporary, file, bytes: offset });
        if self.group.is_full() { self.flush() } else { Ok(()) }
    }

    fn list(&mut self, request: u64, root: MirrorPath, deep: bool, credit: u32) -> Result<(), MirrorError> {
        if let Some(listing) = self.listing.as_mut().filter(|listing| listing.request() == request) {
            listing.credit(credit);
            return Ok(());
        }
        self.flush()?;
        let own: BTreeSet<Vec<u8>> = self.streams.values().map(|stream| stream.temporary.clone()).collect();
        let tree = self.tree()?;
        let opened = tree.root(&root, true).and_then(|open| {
            let dir = open.dir.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
            Ok((open.spec.clone(), dir))
        });
        let first = tree.set().roots().first().is_some_and(|spec| spec.path == root);
        match opened {
            Ok((spec, dir)) => {
                if first && !deep {
                    (self.status.files, self.status.bytes) = (0, 0);
                }
                let tree = self.tree()?;
                self.listing = Some(Listing::new(request, spec, dir, Arc::clone(tree.set()), root, deep, credit, own));
            }
            Err(error) => {
                let problems = vec![Problem { path: root, reason: bounded_reason(error.to_string()) }];
                self.outbox.push_back(MirrorMessage::ManifestPart { request, entries: Vec::new(), problems });
                self.outbox.push_back(MirrorMessage::ManifestEnd { request });
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), MirrorError> {
        if self.group.is_empty() {
            return Ok(());
        }
        let Some(session) = &mut self.session else {
            self.group.discard();
            return Ok(());
        };
        let mut flushed = self.group.flush(&mut session.tree)?;
        let gone = session.tree.take_gone();
        // A listing under way counts for itself what it has not passed yet.
        let counts = |path: &MirrorPath| self.listing.as_ref().is_none_or(|listing| listing.has_counted(path));
        let sum = |files: &[(MirrorPath, u64)]| {
            let counted = files.iter().filter(|(path, _)| counts(path));
            counted.fold((0, 0), |(files, bytes), (_, more)| (files + 1, bytes + more))
        };
        let ((files, bytes), (gone_files, gone_bytes)) = (sum(&flushed.files), sum(&gone));
        let status = &mut self.status;
        status.files = (status.files + files).saturating_sub(gone_files);
        status.bytes = (status.bytes + bytes).saturating_sub(gone_bytes);
        status.files_moved += flushed.files.len() as u64;
        status.bytes_moved += flushed.files.iter().map(|(_, bytes)| bytes).sum::<u64>();
        for generation in &flushed.applied {
            let path = self.group_paths.remove(generation);
            self.announced.settle(*generation, path.as_ref(), true);
        }
        for (generation, reason) in std::mem::take(&mut flushed.failed) {
            let path = self.group_paths.remove(&generation);
            self.failed(generation, path.as_ref(), reason);
        }
        for generations in flushed.applied.chunks(ringpair_wire::mirror::MAX_LIST) {
            self.outbox.push_back(MirrorMessage::Applied { generations: generations.to_vec() });
        }
        Ok(())
    }

    /// Does a bounded piece of work: group sync, listing. Call it when no more messages are waiting, and again while it
    /// returns true.
    ///
    /// # Errors
    /// As [`Self::handle_message`].
    pub fn turn(&mut self, _now: Duration) -> Result<bool, MirrorError> {
        let mut worked = !self.group.is_empty();
        self.flush()?;
        if self.outbox.len() < MAX_OUTBOX
            && let Some(listing) = &mut self.listing
        {
            worked |= listing.turn(&mut self.outbox);
            let (files, bytes) = listing.take_counted();
            (self.status.files, self.status.bytes) = (self.status.files + files, self.status.bytes + bytes);
            if listing.ended() {
                self.listing = None;
            }
        }
        Ok(worked)
    }

    /// Whether it can take messages: false while the outbox or the group is full; call [`Self::turn`] then.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.outbox.len() < MAX_OUTBOX
    }

    /// The next message for the active.
    pub fn poll_message(&mut self) -> Option<MirrorMessage> {
        self.outbox.pop_front()
    }

    /// Promotion: renames complete files into place, removes other temporaries, and lists what was announced and is
    /// missing. The sink takes no messages afterwards.
    pub fn finish(&mut self) -> SinkReport {
        self.drop_streams();
        self.listing = None;
        let before = self.status.files_moved;
        if let Err(error) = self.flush() {
            tracing::error!(%error, "files that were complete could not all be put in place");
            self.status.last_error = Some(error.to_string());
        }
        self.finished = true;
        self.outbox.clear();
        let missing: BTreeSet<&MirrorPath> =
            self.announced.by_generation.values().chain(&self.announced.stale).collect();
        SinkReport {
            missing_count: missing.len() as u64 + self.announced.more,
            missing: missing.into_iter().take(MAX_PROBLEMS).cloned().collect(),
            complete: self.synced,
            finished: self.status.files_moved - before,
        }
    }

    /// What is shown.
    #[must_use]
    pub fn status(&self) -> MirrorStatus {
        let pending = (self.announced.by_generation.len() + self.announced.stale.len()) as u64 + self.announced.more;
        let problems: &[Problem] = self.session.as_ref().map_or(&[], |session| &session.problems);
        let roots = self.session.as_ref().is_some_and(|session| !session.tree.set().roots().is_empty());
        let state = match (roots, problems.is_empty(), self.synced, pending) {
            (false, ..) => MirrorState::Off,
            (_, false, ..) => MirrorState::Failed,
            (_, _, false, _) => MirrorState::Initial,
            (_, _, true, 0) if self.group.is_empty() => MirrorState::Current,
            _ => MirrorState::Behind,
        };
        MirrorStatus {
            state,
            pending_files: pending,
            problems: problems.iter().take(MAX_PROBLEMS).map(Into::into).collect(),
            more_problems: problems.len().saturating_sub(MAX_PROBLEMS) as u64,
            ..self.status.clone()
        }
    }
}

impl MirrorBase {
    /// Where a mirrored path is on this host.
    #[must_use]
    pub fn place(&self, path: &MirrorPath) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path.as_bytes()))
    }
}

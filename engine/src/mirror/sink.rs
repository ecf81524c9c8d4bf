//! The backup member's half of the mirror.
//!
//! Always: a file is whole when its name appears (REP-049), and durable when it is reported; the active's word about
//! roots is taken only beneath `[mirror] root` and outside the forbidden directories. Never: a message of a lower epoch,
//! a followed link, the removal of a root.

mod announced;
mod apply;
mod group;
mod listing;
mod removal;
mod streams;
mod tree;

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use announced::Announced;
use group::Group;
use listing::Listing;
use nix::errno::Errno;
use ringpair_fsmon::scan::open_root;
use ringpair_wire::{
    id::Epoch,
    mirror::{Piece, RootSpec, bounded_reason},
};
use streams::Stream;
use tree::{OpenRoot, Tree, discard};

use super::{
    ArchiveFiles, MAX_PROBLEMS, MirrorBase, MirrorError, MirrorMessage, MirrorPath, MirrorState, MirrorStatus, Outbox,
    Problem, RootSet, lister::Scope,
};
use crate::ring::Shared;

/// How many answers may wait to be sent.
const MAX_OUTBOX: usize = 1024;

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

/// What a session mirrors.
struct Session {
    tree: Tree,
    problems: Vec<Problem>,
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
        self.check_epoch(epoch)?;
        match message {
            MirrorMessage::Roots { session, roots, exceptions, devices, .. } => {
                self.begin(session, roots, exceptions, devices)
            }
            MirrorMessage::Announce { first_generation, more, paths, .. } => {
                self.announced.announce(first_generation, paths, more);
                Ok(())
            }
            MirrorMessage::Items { items, .. } => items.into_iter().try_for_each(|item| self.item(item)),
            MirrorMessage::FileBegin { generation, path, size, .. } => self.file_begin(generation, path, size),
            MirrorMessage::FileData { generation, offset, bytes, .. } => {
                self.file_data(generation, offset, bytes.into())
            }
            MirrorMessage::FileEnd { generation, meta, checksum, .. } => self.file_end(generation, &meta, checksum),
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
                if let Some(session) = &mut self.session {
                    session.tree.stop_archiving();
                }
                Ok(())
            }
            _ => Err(MirrorError::Protocol("a backup's message sent to a backup".into())),
        }
    }

    /// As [`Self::handle_message`], for a piece of a large file. `bytes`: those of the piece, which are kept until they
    /// are written.
    ///
    /// # Errors
    /// As [`Self::handle_message`].
    pub fn handle_piece(&mut self, piece: &Piece<'_>, bytes: Shared) -> Result<(), MirrorError> {
        debug_assert_eq!(piece.bytes, bytes, "the same bytes, owned");
        self.check_epoch(piece.epoch)?;
        self.file_data(piece.generation, piece.offset, bytes)
    }

    fn check_epoch(&mut self, epoch: Epoch) -> Result<(), MirrorError> {
        if self.finished || epoch < self.options.epoch {
            self.outbox.push_back(MirrorMessage::LowerEpoch { known: self.options.epoch });
            return Err(MirrorError::LowerEpoch { got: epoch, known: self.options.epoch });
        }
        self.options.epoch = epoch;
        Ok(())
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
        // Before anything is made there.
        self.options.base.check(&place)?;
        std::fs::create_dir_all(&place).map_err(|e| format!("{} cannot be made: {e}", place.display()))?;
        let dir = open_root(&place).map_err(|e| format!("{} cannot be opened: {}", place.display(), e.desc()))?;
        self.options.base.check_opened(&dir)?;
        Ok(dir)
    }

    fn tree(&mut self) -> Result<&mut Tree, MirrorError> {
        match &mut self.session {
            Some(session) => Ok(&mut session.tree),
            None => Err(MirrorError::Protocol("a change before the roots".into())),
        }
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
                let set = Arc::clone(tree.set());
                let scope = Scope { spec, root: dir, set, start: root, deep };
                self.listing = Some(Listing::new(request, scope, credit, own));
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
        if let Some(path) = session.tree.take_staying() {
            let stays = "is removed on the active, and stays with what is left out of the mirror, or mounted";
            self.status.last_error = Some(format!("{path}: {stays}"));
        }
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

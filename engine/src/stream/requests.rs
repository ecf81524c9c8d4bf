//! What the API asks: writes, roles, switches, barriers, comparisons, subscriptions.
//!
//! Always: every request is answered once, at its deadline at the latest; the role is asked of the core at the moment
//! of the answer. Never: an answer that the core did not give.

use std::time::Instant as StdInstant;

use ringpair_core::{
    Instant,
    input::{Admission, Channel, Command, CommandToken, Refusal},
    status::Status,
};
use ringpair_wire::{
    control::Role,
    ds::{Change, DsPath, Value},
    id::{AckLevel, Position, Version},
    mirror::{Kind, MirrorPath, Problem},
};
use tokio::sync::oneshot;

use super::{
    Stream, long, native,
    pending::{HandingOver, Waiting},
    report,
    writes::{self, Encoded},
};
use crate::{
    api::{
        backend::{
            ActiveMember, Failure, MirrorDirectory, MirrorList, MirrorProblem, MirrorTest, Reply, Request, RoleAnswer,
            SwitchDone, SwitchRequest, SyncDone, WriteDone, WriteRequest,
        },
        events::Event,
    },
    bulk::link::BulkCommand,
    config::Devices,
    ds::{
        edit::{Operation, ValueEdit, resolve_all},
        params::{self, Parameters},
    },
    mirror::{LeftOut, MirrorState, RootSet},
};

impl Stream {
    /// Takes the requests that wait; the writes among them fill frames, which are closed at the end.
    pub(super) fn take_requests(&mut self, now: Instant) {
        self.work_long(now);
        let until = StdInstant::now() + super::TAKE_FOR;
        for taken in 0..super::REQUESTS_A_TURN {
            if taken > 0 && StdInstant::now() >= until {
                break;
            }
            match self.requests.try_recv() {
                Ok(Request::Write(request)) => {
                    if let Some(request) = self.linger.push(request, StdInstant::now()) {
                        self.write(request, now);
                    }
                }
                Ok(request) => {
                    // In the order in which they came, as far as anybody can tell.
                    self.write_lingering(!matches!(request, Request::Role(_)), now);
                    // The core must not hear of anything else while a numbered change is in the tree and in no frame.
                    if self.long.is_none() {
                        self.close_frame(now);
                    }
                    self.request(request, now);
                    self.carry_out(now);
                }
                Err(crossbeam::channel::TryRecvError::Empty) => break,
                Err(crossbeam::channel::TryRecvError::Disconnected) => {
                    self.stop("the API's thread is gone");
                    break;
                }
            }
        }
        self.write_lingering(false, now);
        self.take_native(now);
        if self.fill_parameters && self.node.status(now).is_some_and(|status| status.writable) {
            self.fill_parameters = false;
            self.write_initial_parameters(now);
        }
        // The frame of a transaction that goes on in the next turn stays open.
        if self.long.is_none() {
            self.close_frame(now);
        }
    }

    /// Takes the writes that have waited for company long enough; `all`: every one.
    fn write_lingering(&mut self, all: bool, now: Instant) {
        for request in self.linger.take_due(StdInstant::now(), all) {
            self.write(request, now);
        }
    }

    pub(super) fn close_frame(&mut self, now: Instant) {
        if self.writes.is_closed() {
            return;
        }
        if let Some(conn) = self.lanes.conn(Channel::Ds) {
            self.writes.look_at_link(&self.transport, conn);
        }
        if let Some(closed) = self.writes.close() {
            self.frame_closed(closed, now);
        }
    }

    /// Takes a write, or lets it wait behind a long one.
    pub(super) fn write(&mut self, request: WriteRequest, now: Instant) {
        if self.long.is_some() {
            if self.held.len() < long::HELD_WRITES && !self.journal.is_short(0) {
                self.held.push_back(request);
            } else {
                let _ = request.reply.send(Err(Failure::Busy { retry_after_s: 1 }));
            }
            return;
        }
        if let Err((reply, failure)) = self.try_write(request, now) {
            let _ = reply.send(Err(failure));
        }
    }

    fn try_write(&mut self, request: WriteRequest, now: Instant) -> Result<(), (Reply<WriteDone>, Failure)> {
        if request.reply.is_closed() {
            return Ok(());
        }
        // The role first: a backup names the active before it looks at anything (exit 4, not 2).
        if let Some(refused) = self.refusal(now) {
            return Err((request.reply, refused));
        }
        if request.operations.len() >= long::LONG_FROM_OPERATIONS {
            self.close_frame(now);
            self.begin_long(request);
            return Ok(());
        }
        let WriteRequest { operations, ack, deadline, reply } = request;
        let tree = self.applier.tree().snapshot();
        let single = operations.len() == 1;
        let changes = match resolve_all(&tree, operations) {
            Ok(changes) => changes,
            Err(error) if single => {
                let nothing = || Failure::Malformed("nothing to do".into());
                let failure = error.errors.into_iter().next().map_or_else(nothing, |line| line.error.into());
                return Err((reply, failure));
            }
            Err(error) => return Err((reply, Failure::Malformed(error.to_string()))),
        };
        if changes.is_empty() {
            self.nothing_to_do(reply, ack, tree.position(), now);
            return Ok(());
        }
        drop(tree);
        let encoded = match Encoded::of(&changes) {
            Ok(encoded) => encoded,
            Err(failure) => return Err((reply, failure)),
        };
        if let Err(failure) = self.room_for(&encoded, &changes) {
            return Err((reply, failure));
        }
        let token = self.writes.token();
        let records = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        let admission = match self.node.admit(now, token, records, ack) {
            Ok(admission) => admission,
            Err(refusal) => return Err((reply, writes::failure(refusal))),
        };
        self.writes.wait(token, admission, deadline, reply);
        self.take_in(admission, &encoded, &changes, now);
        Ok(())
    }

    /// Whether a write of this size can be taken now.
    ///
    /// # Errors
    /// [`Failure::NoRoom`], [`Failure::Busy`]; nothing was changed.
    pub(super) fn room_for(&self, encoded: &Encoded, changes: &[Change]) -> Result<(), Failure> {
        if self.journal.is_short(encoded.len()) {
            return Err(self.no_room());
        }
        if self.journal.pending_bytes() > super::APPEND_BELOW_BYTES || self.applier.lost_of(changes) > 0 {
            return Err(Failure::Busy { retry_after_s: 1 });
        }
        Ok(())
    }

    /// Whether the journal has room for so many more bytes, on disk and in what waits for it.
    pub(super) fn journal_takes(&self, bytes: usize) -> bool {
        !self.journal.is_short(bytes) && self.journal.pending_bytes() <= super::APPEND_BELOW_BYTES
    }

    /// Puts an admitted write into the frame being filled and into the tree; whether a frame was closed by it.
    pub(super) fn take_in(
        &mut self,
        admission: Admission,
        encoded: &Encoded,
        changes: &[Change],
        now: Instant,
    ) -> bool {
        for (index, change) in (0_u64..).zip(changes) {
            let seq = ringpair_wire::id::Seq(admission.first.0 + index);
            let version = Version { epoch: admission.epoch, seq };
            let applied = self.applier.tree().apply(change, version);
            self.applier.note_contents(seq, change);
            self.changes.note(version, admission.last, change, &applied);
        }
        self.append_write(encoded, now)
    }

    /// Puts an admitted write, which is in the tree, into the frame being filled; whether a frame was closed by it.
    pub(super) fn append_write(&mut self, encoded: &Encoded, now: Instant) -> bool {
        let mut closed = Vec::new();
        self.writes.append(encoded, |frame| closed.push(frame));
        let any = !closed.is_empty();
        for frame in closed {
            self.frame_closed(frame, now);
        }
        any
    }

    /// Why nothing is taken while the disk is full.
    pub(super) fn no_room(&self) -> Failure {
        Failure::NoRoom { dir: self.config.storage.dir.clone(), retry_after_s: 1 }
    }

    /// Answers a write that changes nothing.
    pub(super) fn nothing_to_do(&self, reply: Reply<WriteDone>, ack: AckLevel, at: Position, now: Instant) {
        let version = Version { epoch: at.epoch, seq: at.seq };
        let alone = self.node.status(now).is_some_and(|status| status.alone);
        let level = if alone { AckLevel::Local } else { ack };
        let _ = reply.send(Ok(WriteDone { version, level, alone }));
    }

    /// Why this member takes no writes, if it does not.
    pub(super) fn refusal(&self, now: Instant) -> Option<Failure> {
        let status = self.node.status(now)?;
        (status.role != Role::Active).then(|| Failure::NotActive { active: self.active_member(status.peer.role) })
    }

    pub(super) fn active_member(&self, peer: Role) -> Option<ActiveMember> {
        let member = self.config.peer();
        (peer == Role::Active).then(|| ActiveMember { name: member.name.clone(), address: member.address.to_string() })
    }

    fn request(&mut self, request: Request, now: Instant) {
        match request {
            Request::Write(request) => self.write(request, now),
            Request::Role(reply) => {
                let _ = reply.send(self.role(now));
            }
            Request::Native(fd) => self.native.accept(fd, native::limits(self.config.member), StdInstant::now()),
            Request::Switch(request) => self.switch(request, now),
            Request::Mode(mode, reply) => {
                let deadline = StdInstant::now() + crate::api::backend::ANSWER_WITHIN;
                self.command(Command::SetMode(mode), deadline, Waiting::Mode(reply), now);
            }
            Request::Sync { deadline, reply } => self.sync(deadline, reply, now),
            Request::Verify { deep, deadline, reply } => self.verify(deep, deadline, reply, now),
            Request::Watch(request) => {
                // Not the journal's end: that may lie within a transaction.
                let end = self.applier.position();
                self.changes.watch(request, Version { epoch: end.epoch, seq: end.seq });
            }
            Request::MirrorList(reply) => {
                let _ = reply.send(Ok(self.mirror_list()));
            }
            Request::MirrorTest { path, reply } => {
                let _ = reply.send(self.mirror_test(&path));
            }
            Request::Stop(reply) => {
                self.pending.stopping = true;
                let deadline = StdInstant::now() + crate::api::backend::ANSWER_WITHIN;
                self.command(Command::Stop, deadline, Waiting::Stop(reply), now);
            }
        }
    }

    fn command(&mut self, command: Command, deadline: StdInstant, waiting: Waiting, now: Instant) {
        let token = self.pending.token();
        self.pending.waiting.insert(token, (deadline, waiting));
        self.node.handle_command(now, token, command);
    }

    fn role(&self, now: Instant) -> Result<RoleAnswer, Failure> {
        let status = self.node.status(now).ok_or_else(|| Failure::Unavailable("the member is starting".into()))?;
        Ok(RoleAnswer {
            role: status.role,
            epoch: status.epoch.0,
            exclusive: status.exclusive,
            valid_for_ms: status.valid_for_ms,
            ready: status.ready,
        })
    }

    fn switch(&mut self, request: SwitchRequest, now: Instant) {
        let SwitchRequest { immediate, force, fenced, origin, deadline, reply } = request;
        if let Err(failure) = self.pending.make_way(force) {
            let _ = reply.send(Err(failure));
            return;
        }
        let user = origin.uid.map_or(origin.from.clone(), |uid| format!("uid {uid} over {}", origin.from));
        let text = format!("switch asked for by {user}: immediate {immediate}, force {force}, fenced {fenced}");
        self.events.append(Event::new("request", self.node.epoch().0, text));
        let active = self.node.status(now).is_some_and(|status| status.role == Role::Active);
        // Changes that are only on their way are brought over before the role is released; everything else stands in the way.
        let behind = self.mirror.state == MirrorState::Behind && self.bulk_dscp.is_some();
        let blockers = if active && !behind { report::file_blockers(&self.mirror) } else { Vec::new() };
        let from = if active { self.config.own().name.clone() } else { self.config.peer().name.clone() };
        let waiting = Waiting::Switch { reply, started: StdInstant::now(), from };
        let command = Command::Switch { immediate, force, fenced, blockers, user };
        self.command(command, deadline, waiting, now);
    }

    fn sync(&mut self, deadline: StdInstant, reply: Reply<SyncDone>, now: Instant) {
        let seq = self.journal.end().seq.0;
        if let Some(id) = self.pending.begin_sync(deadline, reply, seq, &self.mirror) {
            self.bulk.send(BulkCommand::Barrier(id));
            self.command(Command::Sync, deadline, Waiting::Sync(id), now);
        }
    }

    /// Gives up what was not reached in time; the mirror forgets those barriers, too.
    pub(super) fn expire_pending(&mut self, now: StdInstant) {
        for id in self.pending.expire(now, &self.mirror) {
            self.bulk.send(BulkCommand::Withdraw(id));
        }
    }

    /// The end of a command of the core.
    pub(super) fn command_done(&mut self, token: CommandToken, result: Result<(), Refusal>) {
        let Some((deadline, waiting)) = self.pending.waiting.remove(&token) else { return };
        match waiting {
            Waiting::Switch { reply, started, from } => match result.map_err(writes::failure) {
                Ok(()) => {
                    self.pending.handing_over = Some(HandingOver { reply, started, from, deadline });
                }
                Err(failure) => {
                    self.pending.paused_at = None;
                    self.events.append(Event::new("request", self.node.epoch().0, format!("no switch: {failure}")));
                    let _ = reply.send(Err(failure));
                }
            },
            Waiting::Mode(reply) | Waiting::Stop(reply) => drop(reply.send(result.map_err(writes::failure))),
            Waiting::Sync(id) => self.sync_part(id, result.map_err(writes::failure), true),
        }
    }

    /// Answers a switch that was done, as soon as the other member is known to be active.
    pub(super) fn handed_over(&mut self, status: &Status) {
        if self.pending.switches() && status.role == Role::Active && !status.writable {
            self.pending.paused_at.get_or_insert_with(StdInstant::now);
        }
        let own = &self.config.own().name;
        let is_done = |over: &mut HandingOver| {
            let role = if over.from == *own { status.peer.role } else { status.role };
            role == Role::Active
        };
        let Some(over) = self.pending.handing_over.take_if(is_done) else { return };
        let to = if over.from == *own { &self.config.peer().name } else { own };
        let took_ms = u64::try_from(over.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        // The backup does not see when the active began to refuse writes: there it is the whole time.
        let paused =
            self.pending.paused_at.take().map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX));
        let pause_ms = paused.unwrap_or(took_ms);
        let done = SwitchDone { from: over.from, to: to.clone(), epoch: status.epoch.0, took_ms, pause_ms };
        let _ = over.reply.send(Ok(done));
    }

    /// A barrier of files was reached.
    pub(super) fn barrier_done(&mut self, id: u64, unreplicated: Vec<Problem>, now: Instant) {
        if let Some(work) = self.pending.bulk.drains.remove(&id) {
            let left = unreplicated.len() as u64;
            self.node.handle_completion(now, ringpair_core::Completion::FilesDrained { work, left });
            return;
        }
        let result = match unreplicated.first() {
            None => Ok(()),
            Some(first) => Err(Failure::refused(
                "mirror",
                format!("{} paths are not on the backup, such as {}: {}", unreplicated.len(), first.path, first.reason),
            )),
        };
        self.sync_part(id, result, false);
    }

    fn sync_part(&mut self, id: u64, result: Result<(), Failure>, records: bool) {
        let Some((deadline, mut run)) = self.pending.syncs.remove(&id) else { return };
        if let Err(failure) = result {
            let _ = run.reply.send(Err(failure));
            if records {
                self.bulk.send(BulkCommand::Withdraw(id));
            }
            return;
        }
        if records {
            run.records = true
        } else {
            run.files = true
        }
        if run.records && run.files {
            let took_ms = u64::try_from(run.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            let _ = run.reply.send(Ok(SyncDone { took_ms, seq: run.seq }));
        } else {
            self.pending.syncs.insert(id, (deadline, run));
        }
    }

    /// `[parameters]` apply when a history is created; from then on they live in the tree.
    fn write_initial_parameters(&mut self, now: Instant) {
        let values = |value: &str| vec![Value::Text(value.into())];
        let attributes =
            self.config.parameters.iter().map(|(name, value)| (name.clone(), ValueEdit::Set(values(value)))).collect();
        let operation =
            Operation::Put { path: parameters_path(), class: Some("Parameters".into()), replace: false, attributes };
        // Nobody waits for the answer, but a reply without a listener would stand for a client that has gone.
        let (reply, _listener) = oneshot::channel();
        let deadline = StdInstant::now() + crate::api::backend::ANSWER_WITHIN;
        let request = WriteRequest { operations: vec![(1, operation)], ack: AckLevel::Local, deadline, reply };
        self.write(request, now);
    }

    /// What the parameters name to be mirrored; problems become warnings, and what is sound is mirrored.
    pub(super) fn roots(&mut self) -> RootSet {
        let parameters = Parameters::read(&self.applier.tree().snapshot());
        let text = |number| parameters.explicit_text(params::ParamId(number)).unwrap_or_default();
        let devices = self.config.mirror.devices == Devices::Recreate;
        match RootSet::parse(text(63), text(64), text(65), devices) {
            Ok(roots) => {
                self.unwarn("mirror-parameters");
                roots
            }
            Err(problems) => {
                let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                self.warn("mirror-parameters", format!("{text}. Nothing changes until this is mended"));
                self.bulk_told.roots.clone()
            }
        }
    }

    fn mirror_list(&self) -> MirrorList {
        let status = report::mirror_status(&self.mirror);
        let root = &self.config.mirror.root;
        let directories = self.bulk_told.roots.roots().iter().map(|spec| {
            let path = format!("/{}", spec.path.to_string().trim_start_matches('/'));
            let problem = self.mirror.problems.iter().find(|problem| problem.path == spec.path.to_string());
            MirrorDirectory {
                path: root.join(path.trim_start_matches('/')).display().to_string(),
                recursive: spec.recursive,
                watched: spec.continuous,
                parameter: if spec.continuous { "CustomMirrorDir" } else { "InitialMirrorDir" }.into(),
                state: problem.map_or_else(|| "ok".into(), |problem| problem.reason.clone()),
            }
        });
        MirrorList {
            status,
            watch: self.mirror.watch.clone(),
            directories: directories.collect(),
            problems: self
                .mirror
                .problems
                .iter()
                .map(|problem| MirrorProblem { path: problem.path.clone(), reason: problem.reason.clone() })
                .collect(),
            excluded: self.left_out(),
        }
    }

    /// The rules by which paths are left out.
    fn left_out(&self) -> Vec<MirrorTest> {
        let rule = |path: String, left_out: LeftOut| MirrorTest { path, mirrored: false, rule: left_out.to_string() };
        let roots = &self.bulk_told.roots;
        let extensions = roots
            .exceptions()
            .iter()
            .map(|extension| rule(format!("*.{}", extension.escape_ascii()), LeftOut::Extension(extension.clone())));
        let devices = (!roots.devices()).then(|| rule("devices".into(), LeftOut::Device));
        extensions.chain([rule("sockets".into(), LeftOut::Socket)]).chain(devices).collect()
    }

    fn mirror_test(&self, path: &[u8]) -> Result<MirrorTest, Failure> {
        use std::os::unix::ffi::OsStrExt;
        let shown = String::from_utf8_lossy(path).into_owned();
        let host = std::path::Path::new(std::ffi::OsStr::from_bytes(path));
        let test = |mirrored, rule: String| Ok(MirrorTest { path: shown.clone(), mirrored, rule });
        let Ok(below) = host.strip_prefix(&self.config.mirror.root) else {
            return test(false, format!("not below mirror.root = {}", self.config.mirror.root.display()));
        };
        let path = MirrorPath::parse(below.as_os_str().as_bytes())
            .map_err(|error| Failure::Malformed(format!("path {shown}: {error}")))?;
        let kind = if host.is_dir() { Kind::Dir } else { Kind::File };
        match self.bulk_told.roots.left_out(&path, kind) {
            Some(rule) => test(false, rule.to_string()),
            None => test(true, "listed".into()),
        }
    }
}

/// Where the server parameters live (interface §4).
pub(super) fn parameters_path() -> DsPath {
    DsPath::parse(params::PATH).unwrap_or_else(|_| DsPath::root())
}

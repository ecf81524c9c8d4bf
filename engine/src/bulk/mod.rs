//! The bulk thread: a driver of its own, the bulk lane, the file mirror, contents of large values, comparisons by
//! digests. It yields to the stream thread: nothing here is waited for by a decision about roles.
//!
//! Always: what is queued on the lane is bounded, and the producers stop while it is full. Never: a decision about
//! roles or records; what the stream thread orders is done, what it has not ordered is not.

pub mod archive;
mod compare;
mod contents;
mod credit;
pub mod link;
mod pack;

use std::{
    io,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use ringpair_wire::{
    codec::Codec,
    lane::{LaneKind, Message, MessageKind, PathKind},
    mirror::Piece,
};

use self::{
    compare::Comparisons,
    contents::{Contents, Received},
    credit::Credit,
    link::{BulkCommand, BulkEvent, BulkSide, Traffic},
    pack::Packer,
};
use crate::{
    config::CompressionLevel,
    ds::{ContentStore, resync::KeptIndex},
    mirror::{
        MirrorBase, MirrorError, MirrorMessage, MirrorStatus, Sink, SinkOptions, Source, SourceEvent, SourceOptions,
    },
    ring::{Completion, Driver, Fd, Op, Shared, Token},
    transport::{ConnId, DownReason, Transport, TransportEvent},
};

/// The lane is given more only while fewer bytes than this wait on it.
const FEED_BELOW_BYTES: usize = 1 << 20;
/// How long to wait after a failed attempt to connect.
const REDIAL: Duration = Duration::from_millis(50);
/// How often the mirror's status is told at most.
const STATUS_EVERY: Duration = Duration::from_millis(50);
/// How often the loop turns at least, so that the mirror's own timers run.
const IDLE: Duration = Duration::from_secs(1);
/// Pieces of mirror work in one turn, before lane and commands are looked at again.
const MIRROR_STEPS: usize = 16;

/// The loop's own operation: the watch's descriptor is readable.
const WATCH: u8 = 1;

/// What the thread is made of.
pub struct Parts {
    /// This thread's driver.
    pub driver: Driver,
    /// The bulk lane; without listeners.
    pub transport: Transport,
    /// The stream thread.
    pub stream: BulkSide,
    /// Large values.
    pub contents: ContentStore,
    /// The tree by path hash, for comparisons.
    pub index: KeptIndex,
    /// Where mirrored directories lie, and where never.
    pub base: MirrorBase,
    /// Drawn at this worker's start.
    pub instance: u64,
    /// How what is sent is compressed.
    pub compression: CompressionLevel,
}

/// What this member does with files.
enum Role {
    Idle,
    Active(Box<Source>),
    Backup(Box<Sink>),
}

/// The loop.
pub struct Bulk {
    driver: Driver,
    transport: Transport,
    stream: BulkSide,
    base: MirrorBase,
    instance: u64,
    role: Role,
    conn: Option<ConnId>,
    path: Option<PathKind>,
    dial: bool,
    next_dial: Instant,
    contents: Contents,
    comparisons: Comparisons,
    packer: Packer,
    credit: Credit,
    watched: Option<Fd>,
    watching: bool,
    told: MirrorStatus,
    told_traffic: Traffic,
    told_at: Instant,
    started: Instant,
    worked: bool,
    ended: bool,
    completions: Vec<Completion>,
}

impl Bulk {
    /// A loop over what was opened.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let now = Instant::now();
        Self {
            driver: parts.driver,
            transport: parts.transport,
            stream: parts.stream,
            base: parts.base,
            instance: parts.instance,
            role: Role::Idle,
            conn: None,
            path: None,
            dial: false,
            next_dial: now,
            contents: Contents::new(parts.contents),
            comparisons: Comparisons::new(parts.index),
            packer: Packer::new(parts.compression),
            credit: Credit::default(),
            watched: None,
            watching: false,
            told: MirrorStatus::default(),
            told_traffic: Traffic::default(),
            told_at: now,
            started: now,
            worked: false,
            ended: false,
            completions: Vec::new(),
        }
    }

    /// Turns until it is told to stop.
    ///
    /// # Errors
    /// The driver failed.
    pub fn run(mut self) -> io::Result<()> {
        while !self.ended {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> io::Result<()> {
        let wait = self.wait();
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.turn(Some(wait), &mut completions)?;
        let now = Instant::now();
        for completion in completions.drain(..) {
            match completion.token.owner() {
                Token::TRANSPORT => self.transport.on_completion(&mut self.driver, completion, now),
                _ => self.watching = false,
            }
        }
        self.completions = completions;
        self.transport.pump(&mut self.driver, now);
        self.take_events(now);
        while let Some(command) = self.stream.receive() {
            self.command(command, now);
        }
        self.worked = self.work(now);
        self.connect(now);
        self.watch();
        self.tell(now);
        self.transport.pump(&mut self.driver, now);
        self.stream.flush();
        Ok(())
    }

    fn wait(&self) -> Duration {
        let now = Instant::now();
        if self.worked {
            return Duration::ZERO;
        }
        let mirror = match &self.role {
            Role::Active(source) => source.next_timeout().map(|at| at.saturating_sub(self.started.elapsed())),
            Role::Idle | Role::Backup(_) => None,
        };
        let dial = (self.dial && self.conn.is_none()).then(|| self.next_dial.saturating_duration_since(now));
        let untold = (self.status() != self.told || self.traffic() != self.told_traffic)
            .then(|| STATUS_EVERY.saturating_sub(self.told_at.elapsed()));
        [self.transport.next_timeout(now), mirror, dial, untold, Some(IDLE)].into_iter().flatten().min().unwrap_or(IDLE)
    }

    /// The mirror's clock.
    fn mirror_now(&self) -> Duration {
        self.started.elapsed()
    }

    fn command(&mut self, command: BulkCommand, now: Instant) {
        match command {
            BulkCommand::Lane { path, dial } => {
                (self.dial, self.next_dial) = (dial, now);
                if self.path != path {
                    self.path = path;
                    if let Some(conn) = self.conn {
                        self.transport.close(conn, now);
                    }
                }
            }
            BulkCommand::Adopt(detached) => self.transport.adopt(*detached, now),
            BulkCommand::BecomeActive { epoch, roots } => {
                self.comparisons.forget_unfinished();
                let options = SourceOptions { epoch, base: self.base.clone(), roots, force_inotify: false };
                let mut source = Source::new(options, self.driver.pool().clone());
                if self.conn.is_some() {
                    source.connected(self.mirror_now());
                }
                self.become_role(Role::Active(Box::new(source)));
            }
            BulkCommand::BecomeBackup { epoch, archive } => {
                // What the active said to an earlier sink nobody knows any more: a new lane begins with its roots.
                if let (Role::Backup(_), Some(conn)) = (&self.role, self.conn) {
                    self.transport.close(conn, now);
                }
                let options = SinkOptions { base: self.base.clone(), epoch, instance: self.instance };
                self.become_role(Role::Backup(Box::new(Sink::new(options, archive))));
            }
            BulkCommand::BecomeIdle => self.become_role(Role::Idle),
            BulkCommand::Roots(roots) => {
                if let Role::Active(source) = &mut self.role {
                    source.set_roots(roots);
                    (self.watched, self.watching) = (None, false);
                }
            }
            BulkCommand::Announced(message) => self.mirror_message(*message),
            BulkCommand::Settle(work) => {
                let report = match &mut self.role {
                    Role::Backup(sink) => sink.finish(),
                    Role::Idle | Role::Active(_) => crate::mirror::SinkReport { complete: true, ..Default::default() },
                };
                self.stream.send(BulkEvent::Settled(work, Box::new(report)));
            }
            BulkCommand::Barrier(id) => match &mut self.role {
                Role::Active(source) => source.barrier(id),
                Role::Idle | Role::Backup(_) => self.stream.send(BulkEvent::BarrierDone(id, Vec::new())),
            },
            BulkCommand::Withdraw(id) => {
                if let Role::Active(source) = &mut self.role {
                    source.withdraw(id);
                }
            }
            BulkCommand::VerifyFiles { id, deep } => match &mut self.role {
                Role::Active(source) => source.verify(id, deep),
                Role::Idle | Role::Backup(_) => {
                    self.stream.send(BulkEvent::FilesVerified(id, Box::default()));
                }
            },
            BulkCommand::Delay(delay) => {
                self.credit.measured(delay.excess, delay.least);
                if let Some(conn) = self.conn {
                    self.transport.set_credit(conn, self.credit.bytes());
                }
            }
            BulkCommand::Fetch(contents) => self.contents.fetch(contents),
            BulkCommand::Resync { purpose, own } => {
                let events = self.comparisons.begin(purpose, own, self.conn.is_some());
                events.into_iter().for_each(|event| self.stream.send(event));
            }
            BulkCommand::Serve(snapshot) => self.comparisons.serve(snapshot),
            BulkCommand::Stop => self.ended = true,
        }
    }

    fn become_role(&mut self, role: Role) {
        self.role = role;
        (self.watched, self.watching) = (None, false);
    }

    fn take_events(&mut self, now: Instant) {
        while let Some(event) = self.transport.poll_event() {
            match event {
                TransportEvent::Up { conn, path, .. } => {
                    if self.path == Some(path) {
                        self.up(conn);
                    } else {
                        self.transport.close(conn, now);
                    }
                }
                TransportEvent::Down { conn, reason, .. } => {
                    if self.conn == Some(conn) {
                        tracing::debug!(%reason, "bulk lane down");
                        if matches!(reason, DownReason::Malformed(_)) {
                            self.stream.send(BulkEvent::LaneRefused(reason.to_string()));
                        }
                        self.down(now);
                    }
                }
                TransportEvent::DialFailed { reason, .. } => {
                    tracing::debug!(%reason, "bulk dial failed");
                    self.next_dial = now + REDIAL;
                }
                TransportEvent::Message { conn, kind, body } => {
                    if self.conn == Some(conn)
                        && let Err(why) = self.message(kind, &body)
                    {
                        self.transport.close(conn, now);
                        self.stream.send(BulkEvent::LaneRefused(why));
                    }
                }
                TransportEvent::HandOver(_) | TransportEvent::Heartbeat { .. } => {}
            }
        }
    }

    fn up(&mut self, conn: ConnId) {
        let was_up = self.conn.replace(conn).is_some();
        tracing::debug!(was_up, "bulk lane up");
        let now = self.mirror_now();
        if was_up {
            self.disconnected();
        }
        if let Role::Active(source) = &mut self.role {
            source.connected(now);
        }
        self.credit = Credit::default();
        self.contents.connected();
        self.comparisons.connected();
        self.stream.send(BulkEvent::Lane(self.transport.info(conn).cloned().map(Box::new)));
    }

    fn down(&mut self, now: Instant) {
        self.conn = None;
        self.next_dial = now + REDIAL;
        self.disconnected();
        self.stream.send(BulkEvent::Lane(None));
    }

    fn disconnected(&mut self) {
        match &mut self.role {
            Role::Active(source) => source.disconnected(),
            Role::Backup(sink) => sink.disconnected(),
            Role::Idle => {}
        }
        let events = self.comparisons.disconnected();
        events.into_iter().for_each(|event| self.stream.send(event));
    }

    fn message(&mut self, kind: MessageKind, body: &Shared) -> Result<(), String> {
        match Message::decode(kind, body).map_err(|error| error.to_string())? {
            Message::Packed { kind, plain_bytes, stored } => {
                // Taken out, since what it gives lies in its own buffer.
                let mut packer = std::mem::replace(&mut self.packer, Packer::new(CompressionLevel::Off));
                let plain = packer.unpack(kind, plain_bytes, stored);
                let result = plain.and_then(|message| self.plain_message(&message, None));
                self.packer = packer;
                result
            }
            message => self.plain_message(&message, Some(body)),
        }
    }

    /// Takes a message; `body`: what it lies in, where it can be kept.
    fn plain_message(&mut self, message: &Message<'_>, body: Option<&Shared>) -> Result<(), String> {
        match *message {
            // It belongs to a role that this member has not, or not yet: the peer begins anew with the next lane.
            Message::Mirror(_) if matches!(self.role, Role::Idle) => {
                if let Some(conn) = self.conn {
                    self.transport.close(conn, Instant::now());
                }
            }
            Message::Mirror(bytes) => {
                match (Piece::decode(bytes).map_err(|error| error.to_string())?, &mut self.role) {
                    (Some(piece), Role::Backup(sink)) => {
                        let kept = body.map(|body| body.slice_ref(piece.bytes));
                        let result = sink.handle_piece(&piece, kept.unwrap_or_else(|| piece.bytes.to_vec().into()));
                        self.mirror_result(result);
                    }
                    _ => self.mirror_message(MirrorMessage::from_bytes(bytes).map_err(|error| error.to_string())?),
                }
            }
            Message::Content { id, offset, total, bytes } => {
                match self.contents.received(id, offset, total, bytes).map_err(|error| error.to_string())? {
                    Received::Part => {}
                    Received::Stored => self.stream.send(BulkEvent::ContentStored(id)),
                    Received::Gone => self.stream.send(BulkEvent::ContentGone(id)),
                }
            }
            Message::ContentRequest { id, offset } => self.contents.asked(id, offset),
            Message::Resync(bytes) => {
                let events = self.comparisons.message(bytes)?;
                events.into_iter().for_each(|event| self.stream.send(event));
            }
            Message::Control(_) | Message::Frame(_) | Message::Announce(_) | Message::Packed { .. } => {
                return Err(format!("{:?} does not belong on the bulk lane", message.kind()));
            }
        }
        Ok(())
    }

    fn mirror_message(&mut self, message: MirrorMessage) {
        let now = self.mirror_now();
        let result = match &mut self.role {
            Role::Active(source) => source.handle_message(message, now),
            Role::Backup(sink) => sink.handle_message(message, now),
            // What arrives between two roles belongs to neither.
            Role::Idle => Ok(()),
        };
        self.mirror_result(result);
    }

    fn mirror_result(&mut self, result: Result<(), MirrorError>) {
        match result {
            Ok(()) => {}
            Err(error @ MirrorError::LowerEpoch { .. }) => tracing::info!(%error, "dropped"),
            Err(error) => {
                tracing::error!(%error, "the bulk lane is closed");
                self.stream.send(BulkEvent::MirrorFailed(error.to_string()));
                if let Some(conn) = self.conn {
                    self.transport.close(conn, Instant::now());
                }
            }
        }
    }

    /// A bounded piece of everything; whether there may be more at once.
    fn work(&mut self, now: Instant) -> bool {
        let mut worked = false;
        for _ in 0..MIRROR_STEPS {
            let step = self.mirror_step();
            worked |= step;
            if !step {
                break;
            }
        }
        if let Some(conn) = self.conn {
            let mirror_takes = match &self.role {
                Role::Backup(sink) => sink.can_receive(),
                Role::Idle | Role::Active(_) => true,
            };
            self.transport.set_reading(conn, mirror_takes && self.comparisons.can_receive());
            worked |= self.send(conn, now);
        }
        worked
    }

    fn mirror_step(&mut self) -> bool {
        let now = self.mirror_now();
        let worked = match &mut self.role {
            // A source that cannot send does not read ahead either: its outbox is bounded.
            Role::Active(source) => source.turn(now),
            Role::Backup(sink) => match sink.turn(now) {
                Ok(worked) => worked,
                Err(error) => {
                    self.mirror_result(Err(error));
                    false
                }
            },
            Role::Idle => false,
        };
        if let Role::Active(source) = &mut self.role {
            while self.stream.waiting() == 0
                && let Some(message) = source.poll_announcement()
            {
                self.stream.send(BulkEvent::Announce(Box::new(message)));
            }
            while let Some(event) = source.poll_event() {
                self.stream.send(match event {
                    SourceEvent::BarrierDone { id, unreplicated } => BulkEvent::BarrierDone(id, unreplicated),
                    SourceEvent::Verified { id, differences } => BulkEvent::FilesVerified(id, Box::new(differences)),
                });
            }
        }
        worked
    }

    /// Sends what the parts have, as far as the lane has room; whether anything was sent.
    fn send(&mut self, conn: ConnId, now: Instant) -> bool {
        let mut sent = false;
        while self.transport.queued_bytes(conn) < FEED_BELOW_BYTES {
            let Some((kind, body)) = self.next_message() else { break };
            let (kind, body) = self.packer.pack(kind, body, &self.transport, conn);
            if let Err(error) = self.transport.send_shared(conn, kind, &[body]) {
                tracing::error!(%error, ?kind, "could not be queued; the bulk lane is closed");
                self.transport.close(conn, now);
                return false;
            }
            sent = true;
        }
        sent
    }

    fn next_message(&mut self) -> Option<(MessageKind, Shared)> {
        if let Some(message) = self.comparisons.poll() {
            return Some((MessageKind::Resync, Shared::from(message.to_bytes())));
        }
        // Records wait for their contents, and writers for those: files come after.
        let message = self.contents.poll();
        self.contents.take_found().into_iter().for_each(|id| self.stream.send(BulkEvent::ContentStored(id)));
        if message.is_some() {
            return message;
        }
        let mirror = match &mut self.role {
            Role::Active(source) => source.poll_encoded(),
            Role::Backup(sink) => sink.poll_message().map(|message| Shared::from(message.to_bytes())),
            Role::Idle => None,
        };
        mirror.map(|body| (MessageKind::Mirror, body))
    }

    fn connect(&mut self, now: Instant) {
        let Some(path) = self.path.filter(|_| self.dial && self.conn.is_none() && self.next_dial <= now) else {
            return;
        };
        tracing::debug!("bulk dial");
        if self.transport.dial(LaneKind::Bulk, path, now).is_err() {
            self.next_dial = now + REDIAL;
        } else {
            // Until the attempt ends, by `Up` or `DialFailed`.
            self.next_dial = now + IDLE;
        }
    }

    /// Asks to be told when files change.
    fn watch(&mut self) {
        let Role::Active(source) = &self.role else { return };
        if self.watched.is_none() {
            let duplicate = source.watch_fd().and_then(|fd| fd.as_fd().try_clone_to_owned().ok());
            self.watched = duplicate.map(Fd::new);
        }
        if let Some(fd) = self.watched.clone().filter(|_| !self.watching) {
            let token = Token::new(Token::LOOP, WATCH, 0);
            self.watching = self.driver.submit(token, Op::PollReadable { fd }).is_ok();
        }
    }

    fn status(&self) -> MirrorStatus {
        match &self.role {
            Role::Active(source) => source.status(),
            Role::Backup(sink) => sink.status(),
            Role::Idle => MirrorStatus::default(),
        }
    }

    fn traffic(&self) -> Traffic {
        let stats = self.transport.stats();
        Traffic {
            sent_bytes: stats.sent_bytes,
            received_bytes: stats.received_bytes,
            credit_bytes: self.credit.bytes(),
            zero_copy: self.conn.and_then(|conn| self.transport.info(conn)?.zero_copy),
            compression: self.packer.totals(),
        }
    }

    fn tell(&mut self, now: Instant) {
        if self.contents.found_damage() {
            self.stream.send(BulkEvent::ContentsDamaged);
        }
        if now.duration_since(self.told_at) < STATUS_EVERY && !matches!(self.role, Role::Idle) {
            return;
        }
        let status = self.status();
        if status != self.told {
            self.told = status.clone();
            self.stream.send(BulkEvent::Mirror(Box::new(status)));
        }
        let traffic = self.traffic();
        if traffic != std::mem::replace(&mut self.told_traffic, traffic) {
            self.stream.send(BulkEvent::Traffic(traffic));
        }
        self.told_at = now;
    }
}

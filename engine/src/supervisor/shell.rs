//! The supervisor's loop: waits, brings what happened to the core, carries its effects out.
//!
//! Always: each wait has a bound; what a socket holds is read dry before a time-out is handled (protocol §5). Never: a
//! decision, or a call that blocks longer than a small synced write.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ringpair_core::Instant;
use ringpair_core::supervisor::{Effect, Input, Supervisor, SupervisorConfig, WorkerStatus};
use ringpair_wire::control::{Control, GiveBackReason, Role};
use ringpair_wire::id::Epoch;
use tracing::{error, info, warn};

use super::answer::{AnswerEvent, Answers, Door};
use super::estate::Estate;
use super::host::{Systemd, now};
use super::link::{FromWorker, Received, ToWorker};
use super::signals::Signals;
use super::sockets::Sockets;
use super::storage::StorageLock;
use super::worker::{Worker, WorkerCommand};
use crate::hooks::{HookEvent, HookLedger, HookReport, HookRun, Hooks};

/// Messages of the worker that one turn takes.
const MESSAGES_PER_TURN: usize = 1024;
/// Dials that one turn accepts.
const DIALS_PER_TURN: usize = 16;
/// The longest wait, whatever is due.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Everything that the supervisor owns.
pub struct Parts {
    /// Times and choices.
    pub core: SupervisorConfig,
    /// How workers are started.
    pub command: WorkerCommand,
    /// The listening sockets.
    pub sockets: Sockets,
    /// The lock of the storage directory.
    pub lock: StorageLock,
    /// Control file of a dead worker.
    pub estate: Box<dyn Estate>,
    /// The storage directory.
    pub storage_dir: PathBuf,
    /// The hooks.
    pub hooks: Hooks,
    /// What answers the peer for a dead worker.
    pub answers: Answers,
    /// Signals, caught before anything was started.
    pub signals: Signals,
    /// systemd.
    pub systemd: Systemd,
    /// Reads configuration and keys again (SIGHUP).
    pub reload: Box<dyn FnMut() -> Result<Reloaded, String>>,
}

/// What a reload changes in the supervisor; times and addresses need a restart.
pub struct Reloaded {
    /// `[hooks]`.
    pub hooks: Hooks,
    /// The keys.
    pub door: Arc<dyn Door>,
}

/// The running supervisor.
pub struct Shell {
    parts: Parts,
    core: Supervisor,
    worker: Option<Worker>,
    hook: Option<HookRun>,
    /// Results of effects that were done at once.
    done: VecDeque<Input>,
    end: Option<u8>,
}

impl Shell {
    /// A supervisor that has not started its worker yet.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let core = Supervisor::new(parts.core, now());
        Self { parts, core, worker: None, hook: None, done: VecDeque::new(), end: None }
    }

    /// Runs until the member ends; returns the exit code.
    ///
    /// # Errors
    /// If the system does not let it wait.
    pub fn run(mut self) -> io::Result<u8> {
        let effects = self.core.begin(now());
        self.carry_out(effects);
        loop {
            self.settle();
            if let Some(code) = self.end {
                return Ok(code);
            }
            let due = self.parts.systemd.watch(now());
            self.wait(due)?;
            self.turn();
        }
    }

    /// One turn: everything that happened, then what is due.
    fn turn(&mut self) {
        let (stop, reload) = self.parts.signals.take();
        self.hear_worker();
        self.reap_worker();
        if reload {
            self.reload();
        }
        if stop {
            info!("asked to stop");
            self.parts.systemd.stopping();
            self.feed(Input::StopAsked);
        }
        self.accept_dials();
        self.hear_answers();
        self.watch_hook();
        let effects = self.core.handle_timeout(now());
        self.carry_out(effects);
    }

    fn feed(&mut self, input: Input) {
        let effects = self.core.handle(now(), input);
        self.carry_out(effects);
        self.settle();
    }

    /// Feeds the results of effects that were done at once, until there is none.
    fn settle(&mut self) {
        while let Some(input) = self.done.pop_front() {
            let effects = self.core.handle(now(), input);
            self.carry_out(effects);
        }
    }

    /// Waits until something happens or is due.
    fn wait(&self, watchdog: Option<Instant>) -> io::Result<()> {
        let now = now();
        let mut left = [self.core.poll_timeout(), watchdog]
            .into_iter()
            .flatten()
            .map(|due| due.since(now))
            .fold(LONGEST_WAIT, Duration::min);
        if let Some(hook) = &self.hook {
            left = left.min(hook.deadline().saturating_duration_since(std::time::Instant::now()));
        }
        // Rounded up: a wait that ends too early would only turn idly until it is due.
        let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
        let mut fds: Vec<PollFd<'_>> =
            self.descriptors().into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut fds = vec![self.parts.signals.as_fd(), self.parts.answers.as_fd()];
        if let Some(worker) = &self.worker {
            fds.push(worker.exit_fd());
            fds.extend(worker.link.as_ref().map(AsFd::as_fd));
        }
        if let Some(hook) = &self.hook {
            fds.push(hook.exit_fd());
            fds.extend(hook.output_fd());
        }
        if self.core.listens() && self.parts.answers.has_room() {
            fds.extend(self.parts.sockets.iter().map(AsFd::as_fd));
        }
        fds
    }

    fn hear_worker(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(link) = self.worker.as_ref().and_then(|worker| worker.link.as_ref()) else { return };
            match link.receive::<FromWorker>() {
                Ok(Received::Message(message)) => self.on_message(message),
                Ok(Received::Empty) => return,
                Ok(Received::Eof) => self.close_link(),
                Err(error) => {
                    // A worker that cannot be understood is silent: the core kills it when its time is over.
                    error!(%error, "the worker's link is closed");
                    self.close_link();
                }
            }
        }
    }

    fn close_link(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.link = None;
        }
    }

    fn on_message(&mut self, message: FromWorker) {
        match message {
            FromWorker::Turn => self.feed(Input::Turn),
            FromWorker::Status(status) => {
                self.parts.systemd.status(sentence(&status));
                self.feed(Input::Status(status));
            }
            FromWorker::Ready => {
                self.parts.systemd.ready();
                self.feed(Input::Ready);
            }
            FromWorker::HookRunning(limit) => self.feed(Input::HookRunning(limit)),
        }
    }

    fn tell_worker(&mut self, message: &ToWorker) {
        let Some(link) = self.worker.as_ref().and_then(|worker| worker.link.as_ref()) else { return };
        match link.send(message) {
            Ok(true) => {}
            Ok(false) => warn!(?message, "the worker does not read its link"),
            Err(error) => warn!(?message, %error, "the worker cannot be told"),
        }
    }

    fn reload(&mut self) {
        self.tell_worker(&ToWorker::Reload);
        match (self.parts.reload)() {
            Ok(Reloaded { hooks, door }) => {
                self.parts.hooks = hooks;
                self.parts.answers.set_door(door);
                info!("hooks and keys read again");
            }
            Err(error) => warn!(%error, "nothing reloaded: what was valid stays"),
        }
    }

    fn reap_worker(&mut self) {
        let exit = match self.worker.as_mut().map(Worker::try_exit) {
            Some(Ok(Some(exit))) => exit,
            Some(Err(error)) => return error!(%error, "the worker's end cannot be told"),
            _ => return,
        };
        // Its last words may still wait in the link.
        self.hear_worker();
        self.worker = None;
        warn!(?exit, "the worker ended");
        let left = match self.parts.estate.left() {
            Ok(left) => left,
            Err(error) => {
                error!(%error, "what the worker left cannot be read");
                None
            }
        };
        self.feed(Input::Exited(exit, left));
    }

    fn accept_dials(&mut self) {
        if !self.core.listens() {
            return;
        }
        for _ in 0..DIALS_PER_TURN {
            if !self.parts.answers.has_room() {
                return;
            }
            let Some(stream) = self.parts.sockets.iter().find_map(|listener| listener.accept().ok()) else { return };
            self.parts.answers.answer(stream.0);
        }
    }

    fn hear_answers(&mut self) {
        while let Some(event) = self.parts.answers.next_event() {
            match event {
                AnswerEvent::Dialed(link) => self.feed(Input::PeerDialed(link)),
                AnswerEvent::Left(link) => self.feed(Input::PeerLeft(link)),
                AnswerEvent::TailServed(_) => self.feed(Input::TailServed),
            }
        }
    }

    fn watch_hook(&mut self) {
        let Some(hook) = &mut self.hook else { return };
        match hook.poll(std::time::Instant::now()) {
            Ok(None) => {}
            Ok(Some(report)) => {
                self.hook = None;
                self.on_hook_report(&report);
            }
            Err(error) => {
                self.hook = None;
                error!(%error, "the discontinue hook is lost");
                self.feed(Input::HookFinished(false));
            }
        }
    }

    fn on_hook_report(&mut self, report: &HookReport) {
        if report.ok() {
            info!(output = report.output, dropped_bytes = report.dropped_bytes, "{report}");
        } else {
            error!(output = report.output, dropped_bytes = report.dropped_bytes, "{report}");
        }
        if report.ok() {
            let recorded = HookLedger::open(&self.parts.storage_dir)
                .and_then(|mut ledger| ledger.record(report.event, report.epoch));
            if let Err(error) = recorded {
                warn!(%error, "the hook will run again");
            }
        }
        self.feed(Input::HookFinished(report.ok()));
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.carry_out_one(effect);
        }
    }

    fn carry_out_one(&mut self, effect: Effect) {
        match effect {
            Effect::StartWorker => self.start_worker(),
            Effect::KillWorker(reason) => {
                if let Some(Err(error)) = self.worker.as_ref().map(Worker::kill) {
                    error!(%error, %reason, "the worker cannot be killed");
                }
            }
            Effect::TellStop => self.tell_worker(&ToWorker::Stop),
            Effect::Listen => info!("answering the peer for the dead worker"),
            Effect::SendDying(link, epoch, hold) => {
                let hold_ms = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX);
                self.parts.answers.say(link, Control::Dying { epoch, hold_ms });
            }
            Effect::RunDiscontinue(epoch) => self.run_discontinue(epoch),
            Effect::PersistRelease(epoch) => {
                let result = self.parts.estate.persist_release();
                self.persisted(result, &format!("epoch {epoch} released"));
            }
            Effect::SendReleased(epoch, end) => {
                self.parts.answers.release(Control::Released { epoch, end, controlled: false });
            }
            Effect::PersistGiveBack(grant) => {
                let result = self.parts.estate.persist_give_back(grant);
                self.persisted(result, &format!("grant {} of epoch {} given back", grant.number, grant.epoch));
            }
            Effect::SendGivenBack(link, id) => {
                self.parts.answers.say(link, Control::GiveBack { id, reason: GiveBackReason::WorkerDied });
            }
            Effect::Alarm(alarm) => error!("{alarm}"),
            Effect::End(code) => self.end = Some(code),
        }
    }

    fn start_worker(&mut self) {
        self.parts.answers.close();
        let started = match Worker::start(&self.parts.command, &self.parts.sockets, &self.parts.lock) {
            Ok(worker) => {
                info!(pid = worker.pid(), "worker started");
                self.worker = Some(worker);
                Input::Started
            }
            Err(error) => {
                error!(%error, "the worker cannot be started");
                Input::StartFailed
            }
        };
        self.done.push_back(started);
    }

    fn run_discontinue(&mut self, epoch: Epoch) {
        match self.parts.hooks.start(HookEvent::Discontinue, epoch, "worker-died") {
            Ok(Some(run)) => self.hook = Some(run),
            Ok(None) => self.done.push_back(Input::HookFinished(true)),
            Err(error) => {
                error!(%error, "the discontinue hook did not run");
                self.done.push_back(Input::HookFinished(false));
            }
        }
    }

    fn persisted(&mut self, result: io::Result<()>, what: &str) {
        match &result {
            Ok(()) => info!("{what}"),
            Err(error) => error!(%error, "{what}: not persisted"),
        }
        self.done.push_back(Input::Persisted(result.is_ok()));
    }
}

/// The line for `systemctl status`.
fn sentence(status: &WorkerStatus) -> String {
    let right = match (status.role, status.right) {
        (Role::Active, Some(_)) => ", the right to promote is out",
        (Role::Active, None) if status.alone => ", alone",
        (Role::Backup, Some(_)) => ", may promote",
        _ => "",
    };
    format!("{}, epoch {}, record {}{right}", status.role.name(), status.epoch, status.position.seq)
}

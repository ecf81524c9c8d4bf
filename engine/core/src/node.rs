//! [`Node`]: the one value that holds a member's decisions. Inputs come in by its methods, effects go out by
//! [`Node::poll_effect`].
//!
//! After every input the shell takes effects until there is none, then waits for [`Node::next_timeout`] at most. Every
//! input is one turn: own pause, lease, the input itself, then every rule that time alone can trigger, then
//! acknowledgements. Never: an effect whose state is not persisted yet.

use std::collections::VecDeque;

use ringpair_wire::{
    control::{Control, GiveBackReason, GrantId, Report, Role, State},
    heartbeat::Heartbeat,
    id::{AckLevel, Epoch, HistoryId, Position, Seq},
    lane::{LaneKind, PathKind},
};

use crate::{
    acks::{Acks, Progress},
    config::Config,
    effect::{Effect, Hook},
    epochs::Epochs,
    event::{Event, EventCode, SwitchRecord},
    follow::{Leader, TailAsked},
    heartbeat::{Learned, Link},
    input::{
        Admission, Channel, Command, CommandToken, Completion, Evidence, FrameMeta, FrameVerdict, PersistToken,
        Refusal, Start, WorkToken, WriteToken,
    },
    lead::Follower,
    lease::Lease,
    persisted::{Persisted, Right},
    promotion::{Promotion, Pull},
    roles::{Cause, next_state},
    silence::Suspicion,
    switch::{Forwarded, SwitchRun},
    time::Instant,
};

/// The greatest number of evidence lines kept for `why`.
const MAX_EVIDENCE: usize = 64;

/// What is done once a state is persisted. Each checks that it still applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    Nothing,
    Promoted(Epoch),
    Granted(GrantId),
    Alone(Epoch),
    NotAlone(Epoch),
    Held(GrantId),
    GivenBack(GrantId, GiveBackReason),
    ReleaseSaid(Epoch),
    ReleaseHeard(Epoch, Position),
    Follow(Epoch),
    Resync(Epoch),
    Resynced(Epoch),
}

/// States on their way to the control file.
#[derive(Debug, Default)]
pub(crate) struct Store {
    next: u64,
    waiting: VecDeque<(PersistToken, Epoch, After)>,
    /// The highest epoch that is surely persisted: what others are told.
    pub highest_epoch: Epoch,
}

impl Store {
    /// Whether a state is on its way.
    pub fn is_busy(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// The journal as the core follows it.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub base: Position,
    pub end: Position,
    pub epochs: Epochs,
    pub filtered: bool,
    pub written: Seq,
    pub synced: Seq,
    pub applied: Seq,
    pub content_missing: Option<Seq>,
    /// An fsync failed: nothing more may be believed of this storage until it is resynchronized.
    pub failed: Option<String>,
    /// No room: nothing is admitted until something is written again.
    pub full: Option<String>,
}

/// The peer, as last heard.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    /// Its newest report on the connections that stand.
    pub report: Option<Report>,
    /// Its newest heartbeat.
    pub beat: Option<Heartbeat>,
    /// When that came.
    pub beat_at: Instant,
}

/// Being active.
#[derive(Debug)]
pub(crate) struct Office {
    pub epoch: Epoch,
    /// The number that the next admitted record gets.
    pub next_seq: Seq,
    /// `/active` answers 200.
    pub serving: bool,
    /// Commence is done.
    pub ready: bool,
    /// When a failed commence is tried again.
    pub commence_at: Option<Instant>,
    /// New writes are taken.
    pub admitting: bool,
    /// Not exclusive before: a client of the old active may still hold a valid answer.
    pub exclusive_from: Instant,
    pub lease: Lease,
    /// Reported as lapsed.
    pub lapsed: bool,
    /// Went on without the holder of the right: acknowledges alone, and may be split.
    pub lonely: bool,
    pub settling: crate::promotion::Settling,
    /// Alone is persisted: acknowledgements at `local` may go.
    pub alone: bool,
    /// The state that ends being alone is on its way.
    pub alone_ends: bool,
    pub acks: Acks,
    pub progress: Progress,
    pub follower: Follower,
    pub switch: Option<SwitchRun>,
    pub syncs: Vec<(CommandToken, Seq)>,
}

/// A member's core.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: Config,
    pub(crate) now: Instant,
    pub(crate) started: Option<Instant>,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) p: Persisted,
    pub(crate) store: Store,
    next_work: u64,
    pub(crate) state: State,
    pub(crate) state_reason: String,
    pub(crate) fresh_history: HistoryId,
    pub(crate) unix_ms_at_zero: u64,
    pub(crate) journal: Journal,
    pub(crate) links: [Link; 2],
    pub(crate) learned: Learned,
    pub(crate) ds_up: bool,
    pub(crate) ds_changed: Instant,
    pub(crate) beat_due: Instant,
    pub(crate) ask_due: Instant,
    pub(crate) counted_from: Instant,
    pub(crate) draining: bool,
    /// The doors are open; `None` while the start's discontinue runs.
    pub(crate) seeking_since: Option<Instant>,
    pub(crate) peer: Peer,
    pub(crate) isolated: Option<bool>,
    pub(crate) peer_host: Option<bool>,
    pub(crate) office: Option<Office>,
    pub(crate) promotion: Option<Promotion>,
    pub(crate) pull: Option<Pull>,
    pub(crate) leader: Option<Leader>,
    pub(crate) suspicion: Option<Suspicion>,
    pub(crate) last_suspicion: Option<(Suspicion, Instant)>,
    pub(crate) promised_until: Instant,
    pub(crate) held_stored: Option<GrantId>,
    pub(crate) dying_until: Option<Instant>,
    /// The discontinue of an ended office runs.
    pub(crate) stepping: Option<Epoch>,
    pub(crate) stopping: Option<crate::switch::Stop>,
    pub(crate) record: Option<SwitchRecord>,
    pub(crate) evidence: VecDeque<(Instant, String)>,
    pub(crate) forwarded: Option<Forwarded>,
    pub(crate) rolled_back: bool,
    pub(crate) ack_due: bool,
    /// The right that was given back, once that is persisted.
    pub(crate) given_back_stored: Option<(GrantId, GiveBackReason)>,
    /// The release that is heard came from an operator's switch.
    pub(crate) release_controlled: bool,
    /// What is being archived comes after this record.
    pub(crate) archive_after: Seq,
    /// What this process has archived already: everything after this record, through this end.
    pub(crate) archived: Option<(Seq, Position)>,
    pub(crate) tail_asked: Option<TailAsked>,
    pub(crate) said: Option<String>,
}

impl Node {
    /// A core that has not started.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            now: Instant(0),
            started: None,
            effects: VecDeque::new(),
            p: Persisted::default(),
            store: Store::default(),
            next_work: 0,
            state: State::Init,
            state_reason: "not started".into(),
            fresh_history: HistoryId::default(),
            unix_ms_at_zero: 0,
            journal: Journal::default(),
            links: [Link::default(), Link::default()],
            learned: Learned::default(),
            ds_up: false,
            ds_changed: Instant(0),
            beat_due: Instant(0),
            ask_due: Instant(0),
            counted_from: Instant(0),
            draining: false,
            seeking_since: None,
            peer: Peer::default(),
            isolated: None,
            peer_host: None,
            office: None,
            promotion: None,
            pull: None,
            leader: None,
            suspicion: None,
            last_suspicion: None,
            promised_until: Instant(0),
            held_stored: None,
            dying_until: None,
            stepping: None,
            stopping: None,
            record: None,
            evidence: VecDeque::new(),
            forwarded: None,
            rolled_back: false,
            ack_due: false,
            given_back_stored: None,
            release_controlled: false,
            archive_after: Seq(0),
            archived: None,
            tail_asked: None,
            said: None,
        }
    }

    /// Starts it, once: with what the control file and the journal say. `now` is also the start guard's beginning.
    pub fn start(&mut self, now: Instant, start: Start) {
        assert!(self.started.is_none(), "a core is started once");
        self.now = now;
        self.started = Some(now);
        self.begin_start(start);
        self.end_turn();
    }

    /// A lane came up (TLS and hello done; the peer's certificate and pair are right) or went down. A lane that is
    /// replaced by a newer connection goes down and comes up again.
    pub fn handle_connection(&mut self, now: Instant, path: PathKind, lane: LaneKind, up: bool) {
        self.turn(now, |node| node.on_connection(path, lane, up));
    }

    /// An authentic, not replayed heartbeat came on this path.
    pub fn handle_heartbeat(&mut self, now: Instant, path: PathKind, heartbeat: &Heartbeat) {
        self.turn(now, |node| node.on_heartbeat(path, heartbeat));
    }

    /// A control message came.
    pub fn handle_message(&mut self, now: Instant, from: Channel, message: Control) {
        self.turn(now, |node| node.on_message(from, message));
    }

    /// A checked frame came from the peer (or its supervisor): whether to keep it. To be asked in the order of
    /// arrival, before the frame is written. `whole`: every content that it refers to is stored here, or the peer cannot
    /// give it.
    pub fn handle_frame(&mut self, now: Instant, from: Channel, frame: &FrameMeta, whole: bool) -> FrameVerdict {
        let mut verdict = FrameVerdict::Refuse("this member does not run".into());
        self.turn(now, |node| verdict = node.on_frame(from, frame, whole));
        verdict
    }

    /// Something the shell was told to do has ended, or the storage has something to say.
    pub fn handle_completion(&mut self, now: Instant, completion: Completion) {
        self.turn(now, |node| node.on_completion(completion));
    }

    /// Another sense has something to say.
    pub fn handle_evidence(&mut self, now: Instant, evidence: Evidence) {
        self.turn(now, |node| {
            match evidence {
                Evidence::Isolated(isolated) => {
                    node.isolated = isolated;
                    node.note(format!("own network check: isolated = {isolated:?}"));
                }
                Evidence::PeerHostReachable(reachable) => {
                    node.peer_host = reachable;
                    node.note(format!("echo of the peer's host: reachable = {reachable:?}"));
                }
            };
        });
    }

    /// Somebody asks for something; every command ends with one [`Effect::CommandDone`].
    pub fn handle_command(&mut self, now: Instant, token: CommandToken, command: Command) {
        self.turn(now, |node| node.on_command(token, command));
    }

    /// A client wants to write `records` records (at least 1), which take effect together, and be answered at `level`.
    /// Gives them their numbers, in the order of the calls; an [`Effect::Answer`] follows.
    ///
    /// # Errors
    /// [`Refusal`]: not active, not writable at present, or too much waits already. No number is used up.
    pub fn admit(
        &mut self,
        now: Instant,
        token: WriteToken,
        records: u32,
        level: AckLevel,
    ) -> Result<Admission, Refusal> {
        self.begin_turn(now);
        let admitted = self.on_admit(token, records, level);
        self.end_turn();
        admitted
    }

    /// Adds `records` records (at least 1) to the write that was admitted last, in the same turn of its caller: they get
    /// the next numbers, and the write is answered when the last of them has reached its level. `None`: it is to be
    /// admitted as another write (and is then told why not).
    pub fn extend(&mut self, token: WriteToken, records: u32, level: AckLevel) -> Option<Admission> {
        self.on_extend(token, records, level)
    }

    /// A frame of admitted records (or of the epoch record) is encoded, in order: its bytes go to the journal and the
    /// peer now.
    pub fn frame_closed(&mut self, now: Instant, frame: &FrameMeta) {
        self.turn(now, |node| node.on_frame_closed(frame));
    }

    /// The time of [`Self::next_timeout`] has come, or passed. Calling it early is harmless.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.turn(now, |_| {});
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    fn turn(&mut self, now: Instant, input: impl FnOnce(&mut Self)) {
        if self.started.is_some() {
            self.begin_turn(now);
            input(self);
            self.end_turn();
        }
    }

    fn begin_turn(&mut self, now: Instant) {
        let gap = now.since(self.now);
        self.now = self.now.max(now);
        if gap > self.config.heartbeat && self.seeking_since.is_some() && !self.draining {
            self.draining = true;
            self.report(EventCode::Pause, format!("did not run for {} ms: sockets are read first", gap.as_millis()));
            self.push(Effect::DrainSockets);
        }
        self.check_lease();
    }

    /// Every rule that time alone, or what the input changed, can trigger.
    fn end_turn(&mut self) {
        self.check_beats();
        self.check_lease();
        self.check_silence();
        self.check_right();
        self.check_pull();
        self.check_promotion();
        self.check_grant();
        self.check_follow();
        self.hand_over_failed_storage();
        self.check_switch();
        self.check_stop();
        self.check_seeking();
        self.answer_writes();
        if std::mem::take(&mut self.ack_due) {
            self.send_ack();
        }
        #[cfg(debug_assertions)]
        self.check_invariants();
    }

    /// Persists the present state; `after` is done once it is synced.
    pub(crate) fn persist(&mut self, after: After) {
        self.store.next += 1;
        let token = PersistToken(self.store.next);
        self.store.waiting.push_back((token, self.p.highest_epoch, after));
        self.push(Effect::Persist { token, state: Box::new(self.p.clone()) });
    }

    fn on_persisted(&mut self, through: PersistToken) {
        while self.store.waiting.front().is_some_and(|(token, ..)| *token <= through) {
            let Some((_, highest_epoch, after)) = self.store.waiting.pop_front() else { break };
            self.store.highest_epoch = self.store.highest_epoch.max(highest_epoch);
            match after {
                After::Nothing => {}
                After::Promoted(epoch) => self.on_promoted(epoch),
                After::Granted(id) => self.on_granted(id),
                After::Alone(epoch) => self.on_alone_stored(epoch, true),
                After::NotAlone(epoch) => self.on_alone_stored(epoch, false),
                After::Held(id) => self.on_held_stored(id),
                After::GivenBack(id, reason) => self.say_given_back(id, reason),
                After::ReleaseSaid(epoch) => self.on_release_stored(epoch),
                After::ReleaseHeard(epoch, end) => self.on_release_kept(epoch, end),
                After::Follow(epoch) => self.on_leader_stored(epoch),
                After::Resync(epoch) => self.on_incomplete_stored(epoch),
                After::Resynced(epoch) => self.on_complete_stored(epoch),
            }
        }
    }

    fn on_completion(&mut self, completion: Completion) {
        match completion {
            Completion::Persisted(token) => self.on_persisted(token),
            Completion::PersistFailed(_, why) => self.on_persist_failed(&why),
            Completion::Written(position) => {
                self.journal.written = self.journal.written.max(position.seq);
                if self.journal.full.take().is_some() {
                    self.report(EventCode::Storage, "the journal has room again".into());
                }
                self.on_progress();
            }
            Completion::Synced(position) => {
                self.journal.synced = self.journal.synced.max(position.seq);
                self.journal.written = self.journal.written.max(position.seq);
                self.on_progress();
            }
            Completion::SyncFailed(why) => self.on_sync_failed(why),
            Completion::JournalFull(why) => {
                self.report(
                    EventCode::Storage,
                    format!("the journal is full: {why}; writes are refused until there is room"),
                );
                self.journal.full = Some(why);
                // A backup that can keep no more cannot become durable through what is to come (protocol §3).
                if let (None, Right::Held(id)) = (&self.office, self.p.right) {
                    self.give_back(id, GiveBackReason::StorageFailed);
                }
            }
            Completion::Applied(seq) => {
                self.journal.applied = self.journal.applied.max(seq);
                self.on_progress();
            }
            Completion::ContentMissing(from) => {
                self.journal.content_missing = from;
                self.ack_due = true;
            }
            Completion::Backlog(bytes) => self.on_backlog(bytes),
            Completion::Trimmed(base) => self.journal.base = base,
            Completion::Filtered(filtered) => self.journal.filtered = filtered,
            Completion::AppliersStopped(applied) => {
                self.journal.applied = self.journal.applied.max(applied);
                self.on_appliers_stopped();
            }
            Completion::Replayed(work) => self.on_replayed(work),
            Completion::FilesSettled { work, renamed, missing } => self.on_files_settled(work, renamed, missing),
            Completion::HookFinished { hook, epoch, ok } => self.on_hook(hook, epoch, ok),
            Completion::Located(work, location) => self.on_located(work, location),
            Completion::Archived { work, records, files } => self.on_archived(work, records, files),
            Completion::ArchiveFailed(work, why) => self.on_archive_failed(work, &why),
            Completion::Resynced(work, position) => self.on_resynced(work, position),
            Completion::ResyncFailed(work, why) => self.on_resync_failed(work, &why),
            Completion::SocketsDrained => self.on_sockets_drained(),
            Completion::FilesDrained { work, left } => self.on_files_drained(work, left),
            Completion::TailServed(_) => {}
        }
    }

    fn on_progress(&mut self) {
        self.ack_due = self.office.is_none();
        let journal = &self.journal;
        if let Some(office) = &mut self.office {
            office.progress.written = journal.written;
            office.progress.synced = journal.synced;
        }
    }

    fn on_sockets_drained(&mut self) {
        self.draining = false;
        self.counted_from = self.now;
        self.report(EventCode::Pause, "sockets are read; silence counts anew".into());
    }

    fn on_hook(&mut self, hook: Hook, epoch: Epoch, ok: bool) {
        if !ok {
            let name = if hook == Hook::Commence { "commence" } else { "discontinue" };
            self.report(EventCode::HookFailed, format!("hook {name} of epoch {epoch} failed or ran out of time"));
        }
        match hook {
            Hook::Commence => self.on_commenced(epoch, ok),
            Hook::Discontinue if self.seeking_since.is_none() => self.open_doors(),
            Hook::Discontinue if self.stepping == Some(epoch) => self.on_discontinued(),
            Hook::Discontinue => self.on_switch_discontinued(epoch, ok),
        }
    }

    fn on_persist_failed(&mut self, why: &str) {
        self.report(EventCode::Storage, format!("the control file cannot be written: {why}"));
        self.store.waiting.clear();
        self.promotion = None;
        self.step_down("its control file cannot be written");
        self.held_stored = None;
        self.p.complete = false;
        self.enter(Cause::Fails, format!("the control file cannot be written: {why}. Try: check the storage, restart"));
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(crate) fn work(&mut self) -> WorkToken {
        self.next_work += 1;
        WorkToken(self.next_work)
    }

    /// Reports a decision or observation.
    pub(crate) fn report(&mut self, code: EventCode, reason: String) {
        let event = Event { at: self.now, code, epoch: self.p.highest_epoch, reason };
        self.push(Effect::Report(event));
    }

    /// As [`Self::report`], but not twice in a row: for what is decided again at every turn.
    pub(crate) fn report_once(&mut self, code: EventCode, reason: String) {
        if self.said.as_ref() != Some(&reason) {
            self.said = Some(reason.clone());
            self.report(code, reason);
        }
    }

    /// Keeps a line of evidence for `why`.
    pub(crate) fn note(&mut self, line: String) {
        if self.evidence.len() == MAX_EVIDENCE {
            self.evidence.pop_front();
        }
        self.evidence.push_back((self.now, line));
    }

    /// Moves the state machine; a cause that means nothing in this state only renews the reason.
    pub(crate) fn enter(&mut self, cause: Cause, reason: String) {
        if let Some(next) = next_state(self.state, cause) {
            if next != self.state {
                let from = self.state.name();
                self.state = next;
                self.report(EventCode::StateChanged, format!("{from} to {}: {reason}", next.name()));
            }
            self.state_reason = reason;
        }
    }

    pub(crate) fn link(&self, path: PathKind) -> &Link {
        &self.links[path as usize]
    }

    /// The ping lane to use when one is enough: main, else aux.
    pub(crate) fn ping(&self) -> Option<Channel> {
        PathKind::ALL.into_iter().find(|path| self.link(*path).ping_up).map(Channel::Ping)
    }

    pub(crate) fn send(&mut self, to: Channel, message: Control) {
        self.push(Effect::Send { to, message });
    }

    /// Sends on every ping lane that is up.
    pub(crate) fn send_everywhere(&mut self, message: &Control) {
        for path in PathKind::ALL {
            if self.link(path).ping_up {
                self.send(Channel::Ping(path), message.clone());
            }
        }
    }

    /// The role as messages say it.
    pub(crate) fn role(&self) -> Role {
        match (&self.office, &self.leader) {
            (Some(_), _) => Role::Active,
            (None, Some(_)) if self.promotion.is_none() && self.stepping.is_none() => Role::Backup,
            _ => Role::None,
        }
    }

    pub(crate) fn own_epoch(&self) -> Epoch {
        match (&self.office, &self.leader) {
            (Some(office), _) => office.epoch,
            (None, Some(leader)) => leader.epoch,
            (None, None) => self.p.highest_epoch,
        }
    }
}

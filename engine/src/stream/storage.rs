//! What the loop keeps on disk beside the journal: the control file, checkpoints, archives, and the state that a
//! resynchronization takes over.
//!
//! Always: one write of the control file in flight, the newest state waiting; what overwrites anything is archived and
//! synced before. Never: a wait for the disk in the loop, but for starting the journal anew.

use std::time::Duration;

use ringpair_core::{
    Completion as CoreCompletion, Instant, Persisted,
    input::{PersistToken, WorkToken},
};
use ringpair_wire::{
    codec::Codec,
    compress::Decompressor,
    ds::{Change, DsPath},
    frame::CheckedFrame,
    id::{Epoch, HistoryId, Position, Seq, Version},
    record::Record,
};

use super::{Stream, jobs::Done, op_kind};
use crate::{
    api::{events::Event, status::DivergenceSummary},
    bulk::link::{BulkCommand, ResyncPurpose},
    control_file::ControlFile,
    ds::{
        TreeSnapshot,
        archive::{DivergenceArchive, collect_divergent},
        resync::Staged,
        store::Checkpoint,
    },
    journal::{JournalReader, ReadError},
    ring::{Completion, Driver, Token},
};

/// How often the state is written behind the journal.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// So often while the journal is beyond its bound.
const CHECKPOINT_WHEN_FULL: Duration = Duration::from_secs(1);
/// How many bytes of journal are kept for a peer that comes back, though nothing needs them any more.
const KEEP_JOURNAL_BYTES: u64 = 64 << 20;

/// Writes the control file through the driver, one state after the other.
#[derive(Debug)]
pub struct ControlWriter {
    file: ControlFile,
    in_flight: Option<PersistToken>,
    /// The newest state that waits: it stands for those before it.
    waiting: Option<(PersistToken, Vec<u8>)>,
    /// What failed before it reached the driver.
    failed: Option<(PersistToken, String)>,
}

impl ControlWriter {
    /// A writer of `file`.
    #[must_use]
    pub const fn new(file: ControlFile) -> Self {
        Self { file, in_flight: None, waiting: None, failed: None }
    }

    /// Takes a state to be written with the next [`pump`](Self::pump).
    pub fn persist(&mut self, token: PersistToken, state: &Persisted) {
        self.waiting = Some((token, state.to_bytes()));
    }

    /// Submits the state that waits, if none is in flight.
    pub fn pump(&mut self, driver: &mut Driver) {
        if self.in_flight.is_some() {
            return;
        }
        let Some((token, payload)) = self.waiting.take() else { return };
        let op = match self.file.begin_store(&payload) {
            Ok(op) => op,
            Err(error) => {
                self.failed = Some((token, error.to_string()));
                return;
            }
        };
        match driver.submit(Token::new(Token::LOOP, op_kind::CONTROL, 0), op) {
            Ok(()) => self.in_flight = Some(token),
            // No room in the driver: the next turn tries again.
            Err(_) => {
                self.file.abandon_store();
                self.waiting = Some((token, payload));
            }
        }
    }

    /// Takes the completion of the write in flight.
    pub fn on_completion(&mut self, completion: Completion) -> Option<CoreCompletion> {
        let token = self.in_flight.take()?;
        Some(match self.file.end_store(completion.result) {
            Ok(()) => CoreCompletion::Persisted(token),
            Err(error) => CoreCompletion::PersistFailed(token, error.to_string()),
        })
    }

    /// What failed before it reached the driver.
    pub fn take_failure(&mut self) -> Option<CoreCompletion> {
        self.failed.take().map(|(token, why)| CoreCompletion::PersistFailed(token, why))
    }
}

/// A resynchronization under way.
#[derive(Debug)]
pub struct ResyncRun {
    work: WorkToken,
    history: HistoryId,
}

impl ResyncRun {
    /// Whether it is the work of this name.
    pub fn is(&self, work: WorkToken) -> bool {
        self.work == work
    }
}

impl Stream {
    /// Offers the state for a checkpoint now and then, and lets go of the journal that nobody needs.
    pub(super) fn checkpoint(&mut self, now: Instant) {
        self.checkpoints.durable(self.journal.synced().seq);
        // Segments go only once the state without them is saved: a journal beyond its bound is not let wait for that.
        let full = self.journal.bytes() > self.config.storage.journal_max_bytes;
        let every = if full { CHECKPOINT_WHEN_FULL } else { CHECKPOINT_EVERY };
        if now.since(self.last_checkpoint) < every || self.applier.in_transaction() || self.resync.is_some() {
            return;
        }
        self.last_checkpoint = now;
        let state = self.applier.tree().snapshot();
        self.contents.offered(&state);
        self.checkpoints.offer(state);
        self.trim(now);
    }

    /// Drops journal segments that neither the state nor the peer needs.
    fn trim(&mut self, now: Instant) {
        let needed = self.node.needed_after().0.min(self.checkpoints.saved().seq.0);
        let before = self.journal.oldest();
        while self.journal.bytes() > KEEP_JOURNAL_BYTES {
            let Some(end) = self.journal.oldest_segment_end().filter(|end| end.0 <= needed) else { break };
            if let Err(error) = self.journal.drop_before(Seq(end.0 + 1)) {
                tracing::warn!(%error, "the journal's oldest segment cannot be removed");
                break;
            }
        }
        if self.journal.oldest() != before {
            self.node.handle_completion(now, CoreCompletion::Trimmed(self.journal.oldest()));
        }
        // What only the peer still needs: past `journal_max_bytes` the core declares it behind (design §6).
        let saved = self.checkpoints.saved().seq;
        if self.journal.oldest_segment_end().is_some_and(|end| end > self.node.needed_after() && end <= saved) {
            self.node.handle_completion(now, CoreCompletion::Backlog(self.journal.bytes()));
        }
    }

    /// The journal cannot be read for somebody: what is damaged and all before it is given up, so that whoever needs it
    /// is told to compare by digests, and is not sent there again.
    pub(super) fn journal_unreadable(&mut self, error: &ReadError, now: Instant) {
        let ReadError::Damaged { file, .. } = error else { return };
        match self.journal.give_up_through(file) {
            Ok(true) => {
                let text = format!("{error}; what lies there is kept in its quarantine. Try: check the disk");
                self.warn("journal-damaged", text.clone());
                self.events.append(Event::new("storage", self.node.epoch().0, text));
                self.node.handle_completion(now, CoreCompletion::Trimmed(self.journal.oldest()));
            }
            Ok(false) => {
                // The newest segment: the member cannot go on with it.
                self.storage_failed = Some(error.to_string());
                self.node.handle_completion(now, CoreCompletion::SyncFailed(error.to_string()));
            }
            Err(error) => tracing::error!(%error, "a damaged segment of the journal cannot be set aside"),
        }
    }

    pub(super) fn checkpoint_done(&mut self, checkpoint: Checkpoint, now: Instant) {
        match checkpoint {
            Checkpoint::Saved(position, cost) => {
                self.contents.saved(position);
                tracing::debug!(seq = position.seq.0, ?cost, "checkpoint");
                self.trim(now);
            }
            Checkpoint::Replaced(..) if std::mem::take(&mut self.store_is_staged) => {
                self.checkpoints.replace(self.applier.tree().snapshot());
            }
            Checkpoint::Replaced(position, _) => self.resync_saved(position, now),
            Checkpoint::Failed { replacing: true, error } => self.resync_failed(&error.to_string(), now),
            Checkpoint::Failed { replacing: false, error } => {
                self.warn("checkpoint", format!("{error}. Try: make room in {}", self.config.storage.dir.display()));
                return;
            }
        }
        self.unwarn("checkpoint");
    }

    /// Archives the own records after `after`, on a thread of its own; files follow as the mirror meets them.
    pub(super) fn archive(&mut self, work: WorkToken, after: Seq, epoch: Epoch, files: bool) {
        let (archive, reader) = (self.archive.clone(), self.journal.reader());
        let state = self.applier.tree().snapshot();
        // Frames of the new active may follow while the archive is written: they are no divergence.
        let through = self.journal.end().seq;
        let run = move || {
            let noted = if files { archive.await_files(epoch).map_err(JobError::from) } else { Ok(()) };
            let result = noted.and_then(|()| archive_records(&archive, &reader, &state, after, through, epoch));
            Done::Archived { work, result: result.map_err(|error| error.to_string()) }
        };
        self.jobs.start("archive", run, move |why| Done::Archived { work, result: Err(why) });
    }

    pub(super) fn archived(&mut self, work: WorkToken, result: Result<u64, String>, now: Instant) {
        match result {
            Ok(records) => {
                self.look_at_divergence();
                self.unwarn("archive");
                self.node.handle_completion(now, CoreCompletion::Archived { work, records, files: 0 });
            }
            Err(why) => {
                self.warn("archive", format!("{why}. Try: make room in {}", self.config.storage.dir.display()));
                self.node.handle_completion(now, CoreCompletion::ArchiveFailed(work, why));
            }
        }
    }

    /// Counts what is in the archive, on a thread of its own.
    pub(super) fn look_at_divergence(&mut self) {
        let archive = self.archive.clone();
        self.jobs.start("divergence", move || Done::Divergence(summary(&archive)), |_| Done::Divergence(None));
    }

    pub(super) fn divergence_counted(&mut self, counted: Option<DivergenceSummary>) {
        let Some(counted) = counted else { return };
        if counted != self.divergence && counted.records + counted.files > 0 {
            let (records, files) = (counted.records, counted.files);
            // Which member changed a file that differs is not known: only that what was here is kept.
            let text = format!("{records} records that the new active never got, {files} files that it has otherwise");
            self.warn("divergence", format!("{text}: in the archive. Try: ringpair divergence ls"));
        }
        self.divergence = counted;
    }

    pub(super) fn begin_resync(&mut self, work: WorkToken, history: HistoryId) {
        self.contents.forget_staged();
        self.resync = Some(ResyncRun { work, history });
        let purpose = ResyncPurpose::Take(work);
        self.bulk.send(BulkCommand::Resync { purpose, own: self.applier.tree().snapshot() });
    }

    /// Everything that differs is here but its contents: fetch those, then save it, then take it.
    pub(super) fn staged(&mut self, work: WorkToken, staged: &Staged) {
        if !self.resync.as_ref().is_some_and(|run| run.is(work)) {
            return;
        }
        let text = format!("{} objects differ from the active's", staged.differences().count());
        self.events.append(Event::new("replication", self.node.epoch().0, text));
        let awaited = self.contents.await_staged(staged);
        self.staged_state = Some(staged.state().clone());
        if awaited.is_empty() {
            self.save_staged();
        } else {
            self.bulk.send(BulkCommand::Fetch(awaited));
        }
    }

    /// Saves the staged state, whose contents are all here.
    pub(super) fn save_staged(&mut self) {
        if let Some(state) = &self.staged_state {
            self.checkpoints.replace(state.clone());
        }
    }

    fn resync_saved(&mut self, position: Position, now: Instant) {
        let (Some(run), Some(state)) = (self.resync.take(), self.staged_state.take()) else { return };
        if let Err(error) = self.reset_journal(run.history, position) {
            self.node.handle_completion(now, CoreCompletion::ResyncFailed(run.work, error.to_string()));
            return;
        }
        self.contents.took_over(&state);
        self.applier.replace(state);
        self.changes.restart(Version { epoch: position.epoch, seq: position.seq });
        self.node.handle_completion(now, CoreCompletion::Resynced(run.work, position));
    }

    /// A promotion ends a resynchronization: what it staged must not be taken any more, nor stay in the store.
    pub(super) fn drop_resync(&mut self) {
        self.resync = None;
        let only_awaited = self.contents.forget_staged();
        self.store_is_staged |= self.staged_state.take().is_some() && !only_awaited;
    }

    pub(super) fn resync_failed(&mut self, why: &str, now: Instant) {
        self.staged_state = None;
        self.contents.forget_staged();
        if let Some(run) = self.resync.take() {
            self.node.handle_completion(now, CoreCompletion::ResyncFailed(run.work, why.into()));
        }
    }
}

/// What `status` says of the archive; `None`: it cannot be read.
#[must_use]
pub fn summary(archive: &DivergenceArchive) -> Option<DivergenceSummary> {
    match archive.totals() {
        Ok(totals) => Some(DivergenceSummary {
            records: totals.records,
            files: totals.files,
            bytes: totals.bytes,
            epoch: totals.epoch.0,
        }),
        Err(error) => {
            tracing::error!(%error, "the divergence archive cannot be read");
            None
        }
    }
}

type JobError = Box<dyn std::error::Error + Send + Sync>;

/// Writes and syncs the archive of everything after `after`, up to `through`; how many records there are.
fn archive_records(
    archive: &DivergenceArchive,
    reader: &JournalReader,
    state: &TreeSnapshot,
    after: Seq,
    through: Seq,
    epoch: Epoch,
) -> Result<u64, JobError> {
    let mut changes: Vec<(Version, Change)> = Vec::new();
    // What the journal has let go of is known by the state alone, which is gone through whole for it.
    if reader.oldest().seq > after {
        changes.extend(changed_after(state, after).filter(|(version, _)| version.seq <= reader.oldest().seq));
    }
    let mut open = Vec::new();
    let mut common = reader.start_before(after);
    let mut cursor = reader.after(&common)?;
    let mut expander = Decompressor::new();
    loop {
        let stored = match cursor.next_frame() {
            Ok(Some(stored)) if stored.end.seq <= through => stored,
            Ok(_) => break,
            Err(error @ ReadError::Damaged { .. }) => {
                tracing::error!(%error, "the archive takes objects from the state where the journal cannot be read");
                changes.extend(changed_after(state, after));
                break;
            }
            Err(error) => return Err(error.into()),
        };
        if stored.end.seq <= after {
            common = stored.end;
            continue;
        }
        let frame = CheckedFrame::check(&stored.bytes)?;
        for record in frame.records(&mut expander)? {
            let (seq, record) = record?;
            // What a transaction had of which the last record was never written, it never had.
            let Record::Ds { part, change } = record else {
                open.clear();
                continue;
            };
            open.push((Version { epoch: frame.header().epoch(), seq }, change));
            if part.is_last() {
                changes.extend(open.drain(..).filter(|(version, _)| version.seq > after));
            }
        }
    }
    let records = collect_divergent(changes.iter().map(|(version, change)| (*version, change)), state);
    let mut writer = archive.begin(epoch, common)?;
    for (version, path, entry) in &records {
        writer.add_record(*version, path, entry.as_ref().map(|entry| entry.object()))?;
    }
    Ok(writer.seal()?.0)
}

/// The objects that were changed after record `after`, as changes that touch them: of removed ones nothing is known.
fn changed_after(state: &TreeSnapshot, after: Seq) -> impl Iterator<Item = (Version, Change)> + '_ {
    let touch = |path: &DsPath| Change::Put { path: path.clone(), class: None, replace: false, attributes: Vec::new() };
    let changed = state.iter().filter(move |entry| entry.version.seq > after);
    changed.map(move |entry| (entry.version, touch(&entry.path)))
}

#[cfg(test)]
mod tests {
    use ringpair_wire::id::ChainHash;

    use super::*;
    use crate::journal::{Journal, JournalOptions};

    // REQ: protocol §11
    #[test]
    fn what_the_journal_has_let_go_of_is_archived_from_the_state() {
        let dir = tempfile::tempdir().unwrap();
        let at = |seq| Position { epoch: Epoch(3), seq: Seq(seq), chain: ChainHash(seq.into()) };
        let (mut journal, _) = Journal::open(&dir.path().join("journal"), JournalOptions::default()).unwrap();
        journal.reset(HistoryId([1; 16]), at(50)).unwrap();
        let mut state = TreeSnapshot::default();
        for seq in [10, 20, 21, 50] {
            let path = DsPath::parse(&format!("/O{seq}")).unwrap();
            let change = Change::Put { path, class: Some("Thing".into()), replace: true, attributes: Vec::new() };
            state.apply(&change, Version { epoch: Epoch(3), seq: Seq(seq) });
        }
        let archive = DivergenceArchive::open(dir.path()).unwrap();
        let archived = archive_records(&archive, &journal.reader(), &state, Seq(20), Seq(50), Epoch(3));
        assert_eq!(archived.unwrap(), 2);
        let paths: Vec<String> = archive.records().unwrap().iter().map(|record| record.path.to_string()).collect();
        assert_eq!(paths, ["/O21", "/O50"]);
    }
}

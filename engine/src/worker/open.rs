//! Opens journal, control file, state and archives, and brings the state forward through the journal.
//!
//! Always: what is damaged is named in a warning and in the event log, and the copy counts as incomplete where the
//! peer must give back what is lost. Never: a state that is ahead of its journal, or a record that is skipped.

use std::fs;

use ringpair_core::{Persisted, Start, input::JournalView};
use ringpair_wire::{
    codec::Codec,
    control::EpochStart,
    id::{Epoch, Position, Version},
};

use super::StartError;
use crate::{
    api::{
        events::{Event, EventLog},
        status::Warning,
    },
    config::Config,
    control_file::{ControlFile, control_path},
    ds::{ContentStore, Tree, TreeHandle, archive::DivergenceArchive, edit::MAX_TRANSACTION_BYTES, store::StateStore},
    journal::{Journal, JournalOptions, Recovered},
    stream::{Applier, Changes},
    supervisor::estate::JOURNAL_DIR,
};

/// Everything that the member keeps.
pub(super) struct Opened {
    pub journal: Journal,
    pub control: ControlFile,
    pub start: Start,
    pub applier: Applier,
    pub changes: Changes,
    pub tree: TreeHandle,
    pub contents: ContentStore,
    pub store: StateStore,
    pub archive: DivergenceArchive,
    pub events: EventLog,
    pub warnings: Vec<Warning>,
}

/// Gathers what is to be said about the storage.
struct Findings {
    events: EventLog,
    warnings: Vec<Warning>,
    /// Whether the copy is whole as far as the storage can tell.
    whole: bool,
}

impl Findings {
    fn warn(&mut self, code: &str, text: String) {
        tracing::warn!(code, "{text}");
        self.events.append(Event::new("warning", 0, format!("{code}: {text}")));
        self.warnings.push(Warning { code: code.into(), text });
    }

    fn lost(&mut self, code: &str, text: String) {
        self.whole = false;
        self.warn(code, format!("{text}; it is fetched from the peer"));
    }
}

/// Opens the storage directory.
pub(super) fn open(config: &Config) -> Result<Opened, StartError> {
    let dir = &config.storage.dir;
    let events = EventLog::open(&dir.join("events.jsonl"))?;
    let mut findings = Findings { events: events.clone(), warnings: Vec::new(), whole: true };
    let (control, loaded) = ControlFile::open(dir)?;
    let stored = Some(loaded.payload).filter(|payload| !payload.is_empty());
    let mut persisted = stored.as_deref().map(Persisted::from_bytes).transpose()?;
    if loaded.damaged {
        findings.warn("control-file", format!("a slot of {} is damaged", control_path(dir).display()));
        if let Some(persisted) = &mut persisted {
            // The damaged slot may have held the next promotion: it counts as one base above the sound one (protocol §1).
            persisted.highest_epoch = Epoch(persisted.highest_epoch.0 + Epoch::BASE);
        }
    }
    let defaults = JournalOptions::default();
    // One transaction is appended at once, however large.
    let options = JournalOptions { pending_bytes: MAX_TRANSACTION_BYTES + defaults.pending_bytes, ..defaults };
    let (journal, recovered) = Journal::open(&dir.join(JOURNAL_DIR), options)?;
    report_journal(&recovered, &mut findings);
    let contents = ContentStore::open(dir)?;
    let archive = DivergenceArchive::open(dir)?;
    let store = match StateStore::open(dir) {
        Ok(store) => store,
        Err(error) => {
            findings.lost("state", format!("the state store is damaged and set aside: {error}"));
            StateStore::set_aside(dir)?;
            StateStore::open(dir)?
        }
    };
    let mut base = store.stored().clone();
    if !journal.contains(&base.position()) && base.position() != Position::default() {
        if base.position().seq > recovered.end.seq || base.position().seq >= recovered.oldest.seq {
            findings.lost("state", "the state is not the journal's: one of them was replaced or cut".into());
        }
        base = crate::ds::TreeSnapshot::default();
    }
    let position = base.position();
    let mut changes = Changes::new(Version { epoch: position.epoch, seq: position.seq });
    let mut applier = Applier::new(Tree::new(base), contents.clone());
    replay(&journal, position, &mut applier, &mut changes, &mut findings);
    applier.find_missing();
    let tree = applier.tree().handle();
    if let Some(persisted) = &mut persisted {
        persisted.complete &= findings.whole;
    }
    let journal_view = view(&recovered, &applier);
    let start = Start {
        persisted,
        journal: journal_view,
        fresh_history: Default::default(),
        unix_ms_at_zero: unix_ms_at_zero(),
    };
    let Findings { warnings, .. } = findings;
    fs::create_dir_all(dir)?;
    Ok(Opened { journal, control, start, applier, changes, tree, contents, store, archive, events, warnings })
}

/// The wall clock at zero of the loops' clock.
fn unix_ms_at_zero() -> u64 {
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let wall = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
    wall.saturating_sub(crate::stream::now().millis())
}

fn report_journal(recovered: &Recovered, findings: &mut Findings) {
    if recovered.torn_bytes > 0 {
        let text = format!("{} bytes at the journal's end were half written and are discarded", recovered.torn_bytes);
        findings.events.append(Event::new("storage", 0, text));
    }
    for corrupt in &recovered.corrupt {
        let text = format!(
            "{} is damaged at byte {}: {}; records {} to {} cannot be read",
            corrupt.file.display(),
            corrupt.offset,
            corrupt.what,
            corrupt.lost.start(),
            corrupt.lost.end()
        );
        if corrupt.maybe_torn {
            findings.warn("journal-torn", format!("{text}; they may be a write that a crash cut short"));
        } else {
            findings.lost("journal-damaged", text);
        }
    }
}

fn replay(journal: &Journal, from: Position, applier: &mut Applier, changes: &mut Changes, findings: &mut Findings) {
    let reader = journal.reader();
    let from = if from == Position::default() { journal.oldest() } else { from };
    if from.seq.0 > 0 && from != applier.position() && journal.end() != from {
        findings
            .lost("state", format!("the journal begins at {}:{} and there is no state of it", from.epoch, from.seq));
        return;
    }
    if from == journal.end() {
        return;
    }
    let mut cursor = match reader.after(&from) {
        Ok(cursor) => cursor,
        Err(error) => return findings.lost("state", format!("the journal cannot be read from the state on: {error}")),
    };
    loop {
        let applied = match cursor.next_frame() {
            Ok(None) => return,
            Ok(Some(frame)) => applier.replay(frame.bytes, frame.end, changes).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(why) = applied {
            return findings.lost("state", format!("the journal cannot be replayed: {why}"));
        }
    }
}

fn view(recovered: &Recovered, applier: &Applier) -> JournalView {
    JournalView {
        base: recovered.oldest,
        end: recovered.end,
        epochs: epochs(recovered),
        filtered: false,
        applied: applier.applied(),
    }
}

/// Where each epoch that has a frame here begins; one that began before what is held begins there.
fn epochs(recovered: &Recovered) -> Vec<EpochStart> {
    let mut epochs: Vec<EpochStart> =
        recovered.epochs.iter().map(|(epoch, after)| EpochStart { epoch: *epoch, after: *after }).collect();
    let base = recovered.oldest;
    let begun_before = base.seq.0 > 0 && epochs.first().is_none_or(|first| first.after != base);
    if begun_before && base != recovered.end {
        epochs.insert(0, EpochStart { epoch: base.epoch, after: base });
    }
    epochs
}

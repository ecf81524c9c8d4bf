//! Contents of large values: what the loop knows of those that are missing, and the removal of those that nothing needs.
//!
//! A content is needed by the state that was saved last and by every record after it (any state that a restart can come
//! to), by records that the follower does not have durably, by the divergence archive, by a state that is being given or
//! taken in a resynchronization, and by changes under way. Always: the references are gathered after the store has begun
//! to hold what is referred to from then on, so that nothing falls between. Never: a removal when any of these cannot be
//! read, or work on the disk in the loop.

use std::{
    collections::HashSet,
    time::{Duration, Instant as StdInstant},
};

use ringpair_core::Instant;
use ringpair_wire::{
    control::Role,
    ds::ContentId,
    id::{Position, Seq},
};

use super::{
    Stream,
    applier::ContentRef,
    jobs::{self, Done},
};
use crate::{
    bulk::link::BulkCommand,
    ds::{ContentStore, TreeSnapshot, archive::DivergenceArchive, resync::Staged},
};

/// How often is looked at most.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often is looked though no record came: for what was stored and never referred to.
const LOOK_AT_REST_EVERY: Duration = Duration::from_secs(600);
/// The share of time that looking may take: a look that took long is followed by as many times its duration of rest.
const REST_FACTOR: u32 = 20;
/// How fast contents are read to be checked, in bytes a second: it is done once, beside everything else.
const CHECKED_A_SECOND: u64 = 256 << 20;

/// What the loop keeps to know what is needed.
pub(super) struct Contents {
    store: ContentStore,
    /// The state that was saved last.
    saved: TreeSnapshot,
    /// The state that was offered for saving last.
    offered: Option<TreeSnapshot>,
    /// The state that a peer resynchronizes with.
    served: Option<TreeSnapshot>,
    /// What a staged state refers to; those of it that are not here yet.
    staged: Vec<ContentId>,
    awaited: HashSet<ContentId>,
    looking: bool,
    /// Missing contents are searched for with the next look; bytes are checked as well.
    search: bool,
    check: bool,
    next_look: Instant,
    looked_at: Option<(Instant, Position)>,
}

/// What a look found.
#[derive(Debug)]
pub struct Looked {
    /// Contents that the state refers to and that are not stored, with that state's last record, if it was searched.
    missing: Option<(Seq, Vec<ContentRef>)>,
    removed: u64,
    removed_bytes: u64,
    took: Duration,
}

impl Contents {
    /// Nothing known; `saved` is the state that is saved.
    pub(super) fn new(store: ContentStore, saved: TreeSnapshot) -> Self {
        Self {
            store,
            saved,
            offered: None,
            served: None,
            staged: Vec::new(),
            awaited: HashSet::new(),
            looking: false,
            search: true,
            check: true,
            next_look: Instant(0),
            looked_at: None,
        }
    }

    /// Searches for what is missing at once.
    pub(super) fn look_again(&mut self) {
        (self.search, self.next_look) = (true, Instant(0));
    }

    /// This state was offered for saving.
    pub(super) fn offered(&mut self, state: &TreeSnapshot) {
        let before = self.offered.replace(state.clone());
        if let Some(before) = before.filter(|before| before.position() != state.position()) {
            jobs::free(before);
        }
    }

    /// The state at this position is saved. Another than the newest offered: the older one stays what is known.
    pub(super) fn saved(&mut self, position: Position) {
        if let Some(state) = self.offered.take_if(|offered| offered.position() == position) {
            // It may be the last that holds a large part of an old state.
            jobs::free(std::mem::replace(&mut self.saved, state));
        }
    }

    /// This state was saved and taken over.
    pub(super) fn took_over(&mut self, state: &TreeSnapshot) {
        (self.saved, self.offered) = (state.clone(), None);
        self.forget_staged();
    }

    /// The peer compares with this state and fetches what it refers to.
    pub(super) fn serves(&mut self, state: &TreeSnapshot) {
        self.served = Some(state.clone());
    }

    /// The peer resynchronizes no more.
    pub(super) fn serves_none(&mut self) {
        self.served = None;
    }

    /// A state was staged: those of its contents that are not here.
    pub(super) fn await_staged(&mut self, staged: &Staged) -> Vec<(ContentId, u64)> {
        self.staged = staged.contents().iter().map(|(id, _)| *id).collect();
        let missing = self.store.hold(staged.contents().iter().copied());
        self.awaited = missing.iter().map(|(id, _)| *id).collect();
        missing
    }

    /// No state is staged any more; whether one still waited for contents.
    pub(super) fn forget_staged(&mut self) -> bool {
        self.staged.clear();
        let awaited = !self.awaited.is_empty();
        self.awaited.clear();
        awaited
    }
}

/// A look: everything it needs, for a thread of its own.
struct Look {
    store: ContentStore,
    archive: DivergenceArchive,
    /// What is needed: states and single contents.
    states: Vec<TreeSnapshot>,
    needed: Vec<ContentId>,
    /// The state to search, and whether bytes are checked.
    search: Option<(TreeSnapshot, bool)>,
}

impl Look {
    fn run(self) -> Result<Looked, String> {
        let started = StdInstant::now();
        let mut referenced: HashSet<ContentId> = self.archive.contents().map_err(|error| error.to_string())?;
        referenced.extend(self.needed);
        for state in &self.states {
            referenced.extend(state.contents().map(|(id, _)| id));
        }
        let (removed, removed_bytes) = self.store.collect(&referenced).map_err(|error| error.to_string())?;
        let took = started.elapsed();
        let store = &self.store;
        let missing = self.search.map(|(state, check)| (state.position().seq, search(store, &state, check)));
        Ok(Looked { missing, removed, removed_bytes, took })
    }
}

/// The contents that `state` refers to and that are not stored; with `check`, damaged ones are set aside before.
fn search(store: &ContentStore, state: &TreeSnapshot, check: bool) -> Vec<ContentRef> {
    let mut missing = Vec::new();
    for entry in state.iter() {
        for (id, len) in entry.contents() {
            if store.len(&id) == Some(len) && check {
                let started = StdInstant::now();
                if !store.is_sound(&id, len) {
                    store.set_aside(&id);
                }
                let due = Duration::from_secs_f64(len as f64 / CHECKED_A_SECOND as f64);
                std::thread::sleep(due.saturating_sub(started.elapsed()));
            }
            if store.len(&id) != Some(len) {
                missing.push(ContentRef { seq: entry.version.seq, id, len });
            }
        }
    }
    missing
}

impl Stream {
    /// Looks now and then for contents that are missing and for those that nothing needs any more.
    pub(super) fn look_at_contents(&mut self, now: Instant) {
        let position = self.contents.saved.position();
        let contents = &self.contents;
        let changed = contents.looked_at.is_none_or(|(at, before)| {
            before != position || now.since(at) >= LOOK_AT_REST_EVERY || self.applier.missing_from().is_some()
        });
        let due = changed || contents.search || !self.awaiting.is_empty();
        // A long transaction is over soon, unless it waits for contents or for room.
        let busy = (self.applier.in_transaction() && self.awaiting.is_empty())
            || (self.long.is_some() && !self.journal.is_short(0));
        if contents.looking || !due || now < contents.next_look || busy {
            return;
        }
        if self.feed.streams() {
            // It has taken over what was served.
            self.contents.serves_none();
        }
        let needed_after = Seq(self.node.needed_after().0.min(position.seq.0));
        // From here on whatever is referred to is held; what was referred to before is gathered below.
        self.contents.store.begin_collection();
        let mut needed = self.applier.contents_after(needed_after);
        needed.extend_from_slice(&self.contents.staged);
        needed.extend(self.awaiting.contents().map(|(id, _)| id));
        if let Some(long) = &self.long {
            needed.extend(long.contents());
        }
        let live = self.applier.tree().snapshot();
        let contents = &mut self.contents;
        let searched = contents.search || self.applier.missing_from().is_some();
        let states = [Some(&contents.saved), Some(&live), contents.served.as_ref(), self.staged_state.as_ref()];
        let look = Look {
            store: contents.store.clone(),
            archive: self.archive.clone(),
            states: states.into_iter().flatten().cloned().collect(),
            needed,
            search: searched.then(|| (live.clone(), contents.check)),
        };
        (contents.looking, contents.search, contents.check) = (true, false, false);
        contents.looked_at = Some((now, position));
        self.jobs.start("contents", move || Done::Contents(look.run()), |why| Done::Contents(Err(why)));
    }

    /// A look ended.
    pub(super) fn contents_done(&mut self, result: Result<Looked, String>, now: Instant) {
        self.contents.looking = false;
        self.contents.next_look = now.plus(LOOK_EVERY);
        let looked = match result {
            Ok(looked) => looked,
            Err(why) => return self.warn("contents", format!("{why}; no content is removed")),
        };
        self.unwarn("contents");
        self.contents.next_look = now.plus(LOOK_EVERY.max(looked.took * REST_FACTOR));
        if looked.removed > 0 {
            tracing::info!(
                count = looked.removed,
                bytes = looked.removed_bytes,
                "contents that nothing needs are removed"
            );
        }
        if let Some((through, missing)) = looked.missing {
            // What came meanwhile is here.
            let missing = self.applier.lacking(&missing);
            self.applier.settle_missing(through, missing);
        }
        self.missing_changed(now);
        let awaited = self.contents.store.missing(self.awaiting.contents());
        let missing: Vec<_> = self.applier.missing().chain(awaited).collect();
        if !missing.is_empty() {
            self.bulk.send(BulkCommand::Fetch(missing));
        }
    }

    /// A content was fetched.
    pub(super) fn content_stored(&mut self, id: ContentId, now: Instant) {
        self.applier.content_stored(&id);
        self.take_awaited(now);
        self.missing_changed(now);
        if self.contents.awaited.remove(&id) && self.contents.awaited.is_empty() {
            self.save_staged();
        }
    }

    /// The peer cannot give a content.
    pub(super) fn content_gone(&mut self, id: ContentId, now: Instant) {
        self.applier.content_gone(id);
        self.awaiting.content_gone(id);
        self.take_awaited(now);
        if self.contents.awaited.contains(&id) {
            self.resync_failed(&format!("the active cannot give content {id}"), now);
        }
    }

    fn missing_changed(&mut self, now: Instant) {
        self.tell_missing(self.applier.missing_from(), now);
        let active = self.node.status(now).is_some_and(|status| status.role == Role::Active);
        match self.applier.missing().count() {
            0 => self.unwarn("contents-missing"),
            count if active => {
                let text =
                    format!("{count} large values are not stored here: they are fetched as soon as the backup returns");
                self.warn("contents-missing", text);
            }
            _ => {}
        }
    }
}

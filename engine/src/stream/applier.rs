//! Brings the tree forward along the history: frames in, changes applied in order, each transaction whole.
//!
//! Always: what is applied is a prefix of the history; a transaction takes effect with its last record; nothing past a
//! record is applied while a content it refers to is missing, unless nobody can give it: this member must serve without
//! it (promotion), or the peer has none because a later record overwrote the value. What is missing stays known until it
//! is stored or nothing refers to it any more, and bounds what may be acknowledged.
//! Never: a refusal of what is history already — it was validated before it became that.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use ringpair_core::input::FrameMeta;
use ringpair_wire::{
    compress::Decompressor,
    ds::{Change, ContentId, Value},
    frame::{CheckedFrame, FrameError, FrameHeader, RecordRules},
    id::{Position, Seq, Version},
    record::{Part, Record},
    usual::UsualPut,
};

use super::{changes::Changes, jobs};
use crate::{
    ds::{ContentStore, Tree, TreeSnapshot},
    ring::Shared,
};

/// How long is applied in one turn at most: the loop has heartbeats to answer.
const APPLY_FOR: Duration = Duration::from_millis(4);
/// How many records are applied between two looks at the clock.
const RECORDS_A_LOOK: usize = 64;
/// From how many changes on a transaction is applied to a copy as it comes.
const LONG_FROM_CHANGES: usize = 1024;
/// How many of its changes are applied to that copy at once.
const STAGED_AT_ONCE: usize = 64;

/// A long transaction: its first record, and the tree with what has come of it.
type Copied = (Seq, TreeSnapshot);

/// Payloads of so many bytes are kept as they were expanded until they are applied; others are expanded again.
const EXPANDED_BYTES: usize = 1 << 20;

/// A frame that waits for its turn.
#[derive(Debug)]
struct Waiting {
    bytes: Shared,
    end: Position,
    decoded: Decoded,
    /// How many of its records are applied.
    done: usize,
}

impl Waiting {
    /// Whether it is applied in part.
    fn is_begun(&self) -> bool {
        self.done > 0
    }
}

/// What a frame holds, all of it valid.
#[derive(Debug)]
pub struct Decoded {
    /// Its header.
    header: FrameHeader,
    /// The contents that its records refer to, in their order.
    pub contents: Vec<ContentRef>,
    /// Its payload expanded, where it was compressed and there was room for it.
    expanded: Option<Vec<u8>>,
}

impl Decoded {
    /// Keeps only what the records refer to.
    pub fn drop_payload(&mut self) {
        self.expanded = None;
    }

    fn expanded_bytes(&self) -> usize {
        self.expanded.as_ref().map_or(0, Vec::len)
    }
}

/// A record's reference to a content of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentRef {
    /// The record.
    pub seq: Seq,
    /// The content.
    pub id: ContentId,
    /// Its length in bytes.
    pub len: u64,
}

impl ContentRef {
    /// The content with its length.
    #[must_use]
    pub const fn content(&self) -> (ContentId, u64) {
        (self.id, self.len)
    }
}

/// The state, and what is to be applied to it.
#[derive(Debug)]
pub struct Applier {
    tree: Tree,
    contents: ContentStore,
    expander: Decompressor,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// Of waiting frames, of payloads that are kept as they were expanded.
    expanded_bytes: usize,
    /// The changes of a transaction whose last record has not come.
    open: Vec<(Change, Version)>,
    /// A long one: the first record, and the state with everything of it that has come, `open` excepted.
    staged: Option<Copied>,
    /// The newest record that took effect.
    applied: Seq,
    /// Contents that are not stored, by the records that refer to them: applied or not.
    missing: BTreeMap<(Seq, ContentId), u64>,
    /// Those of them that the peer cannot give.
    gone: HashSet<ContentId>,
    /// References of the newest records, in their order.
    recent: VecDeque<(Seq, ContentId)>,
    stopped: bool,
}

impl Applier {
    /// An applier that goes on behind `tree`'s position.
    #[must_use]
    pub fn new(tree: Tree, contents: ContentStore) -> Self {
        let applied = tree.position().seq;
        Self {
            tree,
            contents,
            expander: Decompressor::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            expanded_bytes: 0,
            open: Vec::new(),
            staged: None,
            applied,
            missing: BTreeMap::new(),
            gone: HashSet::new(),
            recent: VecDeque::new(),
            stopped: false,
        }
    }

    /// The tree, for reading and for the changes of this member's own writers.
    pub fn tree(&mut self) -> &mut Tree {
        &mut self.tree
    }

    /// The newest record that took effect.
    #[must_use]
    pub fn applied(&self) -> Seq {
        self.applied
    }

    /// The first record that refers to a content that is not stored here.
    #[must_use]
    pub fn missing_from(&self) -> Option<Seq> {
        self.missing.keys().next().map(|(seq, _)| *seq)
    }

    /// Every content that is not stored here and that records refer to, with its length.
    pub fn missing(&self) -> impl Iterator<Item = (ContentId, u64)> + '_ {
        self.missing.iter().map(|((_, id), len)| (*id, *len))
    }

    /// Those of `contents` that are not stored; the others are held from now on (see [`ContentStore::hold`]).
    pub fn lacking(&self, contents: &[ContentRef]) -> Vec<ContentRef> {
        if contents.is_empty() {
            return Vec::new();
        }
        let absent: HashSet<ContentId> =
            self.contents.hold(contents.iter().map(ContentRef::content)).into_iter().map(|(id, _)| id).collect();
        contents.iter().filter(|content| absent.contains(&content.id)).copied().collect()
    }

    /// The contents that these changes of an own writer refer to and that are not here, though they were stored for
    /// it: they lay too long. The others are held from now on.
    pub fn lost_of<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) -> usize {
        let known = |id: &ContentId| self.missing.keys().any(|(_, missing)| missing == id);
        let contents: Vec<_> = changes.into_iter().flat_map(contents_of).collect();
        if contents.is_empty() {
            return 0;
        }
        self.contents.hold(contents).iter().filter(|(id, _)| !known(id)).count()
    }

    /// Remembers what a record that was numbered here refers to.
    pub fn note_contents(&mut self, seq: Seq, change: &Change) {
        self.recent.extend(contents_of(change).into_iter().map(|(id, _)| (seq, id)));
    }

    /// What the records after `seq` refer to; older references are forgotten.
    pub fn contents_after(&mut self, seq: Seq) -> Vec<ContentId> {
        let forgotten = self.recent.partition_point(|(referring, _)| *referring <= seq);
        self.recent.drain(..forgotten);
        self.recent.iter().map(|(_, id)| *id).chain(self.missing.keys().map(|(_, id)| *id)).collect()
    }

    /// A content is stored now.
    pub fn content_stored(&mut self, id: &ContentId) {
        self.gone.remove(id);
        self.missing.retain(|(_, missing), _| missing != id);
    }

    /// The peer cannot give this content: frames do not wait for it any more.
    pub fn content_gone(&mut self, id: ContentId) {
        if self.missing.keys().any(|(_, missing)| *missing == id) {
            self.gone.insert(id);
        }
    }

    /// Finds what the state refers to and is not stored, before anything is acknowledged: a look at each file. For the
    /// start.
    pub fn find_missing(&mut self) {
        let state = self.tree.snapshot();
        let missing: Vec<_> = state
            .iter()
            .flat_map(|entry| entry.contents().map(|(id, len)| ContentRef { seq: entry.version.seq, id, len }))
            .filter(|content| self.contents.len(&content.id) != Some(content.len))
            .collect();
        self.settle_missing(state.position().seq, missing);
    }

    /// What of the state at `through` refers to contents that are not stored: no other record up to there needs any.
    pub fn settle_missing(&mut self, through: Seq, missing: Vec<ContentRef>) {
        self.missing.retain(|(seq, _), _| *seq > through);
        self.missing.extend(missing.into_iter().map(|content| ((content.seq, content.id), content.len)));
        let missing: HashSet<ContentId> = self.missing.keys().map(|(_, id)| *id).collect();
        self.gone.retain(|id| missing.contains(id));
    }

    /// The position applied.
    #[must_use]
    pub fn position(&self) -> Position {
        self.tree.position()
    }

    /// Whether [`turn`](Self::turn) would do anything.
    #[must_use]
    pub fn can_apply(&self, through: Seq) -> bool {
        let may = |frame: &Waiting| frame.end.seq <= through && !self.waits_for_content(frame);
        !self.stopped && self.waiting.front().is_some_and(may)
    }

    fn waits_for_content(&self, frame: &Waiting) -> bool {
        let awaited = |content: &ContentRef| {
            self.missing.contains_key(&(content.seq, content.id)) && !self.gone.contains(&content.id)
        };
        !self.missing.is_empty() && frame.decoded.contents.iter().any(awaited)
    }

    /// Decodes every record of a frame that was received: a frame that passes is safe to journal (W-17). A payload that was
    /// expanded for it is kept for [`push`](Self::push) where there is room.
    ///
    /// # Errors
    /// The frame does not hold records.
    pub fn decode(&mut self, frame: &CheckedFrame<'_>) -> Result<Decoded, FrameError> {
        let (header, rules) = (frame.header(), frame.record_rules());
        let payload = frame.payload(&mut self.expander)?;
        let mut contents = Vec::new();
        for raw in frame.raw_records(payload) {
            let (seq, bytes) = raw?;
            // The usual ones refer to no content.
            if !rules.begins_epoch() && UsualPut::of_record(bytes).is_some() {
                continue;
            }
            if let Record::Ds { change, .. } = rules.decode(bytes)? {
                contents.extend(contents_of(&change).into_iter().map(|(id, len)| ContentRef { seq, id, len }));
            }
        }
        let keep = header.is_compressed() && self.expanded_bytes + payload.len() <= EXPANDED_BYTES;
        Ok(Decoded { header: *header, contents, expanded: keep.then(|| payload.to_vec()) })
    }

    /// Whether a transaction is open (its first records are known, its last is not), or a frame is applied in part.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        !self.open.is_empty() || self.staged.is_some() || self.waiting.front().is_some_and(Waiting::is_begun)
    }

    /// How many bytes of frames wait.
    #[must_use]
    pub fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// The transaction whose last record is not in the history never takes effect: its writer's term is over.
    pub fn abandon_unfinished(&mut self, changes: &mut Changes) {
        self.open.clear();
        if let Some((first, _)) = self.staged.take() {
            changes.forget_from(first);
        }
    }

    /// Says that this member's own writer changed the tree through `position` (active).
    pub fn wrote_through(&mut self, position: Position) {
        debug_assert!(self.open.is_empty() && self.staged.is_none(), "nobody else's transaction is open");
        self.applied = position.seq;
        self.tree.advance(position);
    }

    /// Takes another state in one step (resynchronization): nothing that waited belongs to it.
    pub fn replace(&mut self, state: TreeSnapshot) {
        let position = state.position();
        drop(self.tree.replace(state));
        self.forget_waiting();
        self.open.clear();
        self.staged = None;
        self.missing.clear();
        self.gone.clear();
        self.recent.clear();
        self.applied = position.seq;
    }

    /// Applies nothing until [`start`](Self::start).
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Goes on.
    pub fn start(&mut self) {
        self.stopped = false;
    }

    /// Queues a checked frame that follows the last one, with what it holds and what of the contents is not stored here.
    pub fn push(&mut self, bytes: Shared, end: Position, decoded: Decoded, lacking: &[ContentRef]) {
        self.waiting_bytes += bytes.len();
        self.expanded_bytes += decoded.expanded_bytes();
        self.recent.extend(decoded.contents.iter().map(|content| (content.seq, content.id)));
        self.missing.extend(lacking.iter().map(|content| ((content.seq, content.id), content.len)));
        self.waiting.push_back(Waiting { bytes, end, decoded, done: 0 });
    }

    fn forget_waiting(&mut self) {
        self.waiting.clear();
        (self.waiting_bytes, self.expanded_bytes) = (0, 0);
    }

    /// Applies waiting frames that end at or before `through`, at most about `budget_bytes` of them; whether any was.
    ///
    /// # Errors
    /// A frame that was checked before does not hold records: the journal's bytes changed underneath.
    pub fn turn(&mut self, through: Seq, budget_bytes: usize, changes: &mut Changes) -> Result<bool, FrameError> {
        let (mut budget, until) = (budget_bytes, Instant::now() + APPLY_FOR);
        let before = self.applied;
        while budget > 0 && Instant::now() < until && self.can_apply(through) {
            let Some(mut next) = self.waiting.pop_front() else { break };
            let applied = self.apply_frame(&mut next, changes, Some(until));
            if let Ok(true) = applied {
                self.was_applied(&next);
                budget = budget.saturating_sub(next.bytes.len());
                continue;
            }
            self.waiting.push_front(next);
            applied?;
            break;
        }
        Ok(self.applied > before)
    }

    fn was_applied(&mut self, frame: &Waiting) {
        self.waiting_bytes -= frame.bytes.len();
        self.expanded_bytes -= frame.decoded.expanded_bytes();
    }

    /// Applies one frame at once, whatever contents are missing: replay at a start. What the state then refers to and is
    /// not here is found by [`settle_missing`](Self::settle_missing).
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn replay(&mut self, bytes: Shared, end: Position, changes: &mut Changes) -> Result<(), FrameError> {
        let decoded = self.decode(&CheckedFrame::check(&bytes)?)?;
        self.recent.extend(decoded.contents.iter().map(|content| (content.seq, content.id)));
        self.apply_frame(&mut Waiting { bytes, end, decoded, done: 0 }, changes, None).map(drop)
    }

    /// Applies all waiting frames through `through`, whatever contents are missing (promotion: nobody else can say it);
    /// those stay known, to be fetched when the peer returns.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn replay_waiting(&mut self, through: Seq, changes: &mut Changes) -> Result<(), FrameError> {
        while let Some(mut frame) = self.waiting.pop_front_if(|frame| frame.end.seq <= through) {
            self.was_applied(&frame);
            self.apply_frame(&mut frame, changes, None)?;
        }
        self.forget_waiting();
        // No more than is in the history.
        self.missing.retain(|(seq, _), _| *seq <= through);
        Ok(())
    }

    /// Applies what is left of a frame's records; with `until`, no longer than that: whether that was all.
    fn apply_frame(
        &mut self,
        frame: &mut Waiting,
        changes: &mut Changes,
        until: Option<Instant>,
    ) -> Result<bool, FrameError> {
        let mut expander = std::mem::take(&mut self.expander);
        // What was checked when it came lies in memory since; what is not its own is checked anew.
        let checked = CheckedFrame::checked_before(frame.decoded.header, &frame.bytes);
        let applied = checked.map_or_else(|| CheckedFrame::check(&frame.bytes), Ok).and_then(|checked| {
            let payload = match &frame.decoded.expanded {
                Some(expanded) => expanded,
                None => checked.payload(&mut expander)?,
            };
            let mut records = checked.raw_records(payload).skip(frame.done);
            self.apply_records(&mut records, checked.record_rules(), frame.end, changes, until)
        });
        self.expander = expander;
        let (count, all) = applied?;
        frame.done += count;
        Ok(all)
    }

    /// Applies records of the frame that ends at `end`: how many, and whether there are no more.
    fn apply_records<'a>(
        &mut self,
        records: &mut impl Iterator<Item = Result<(Seq, &'a [u8]), FrameError>>,
        rules: RecordRules,
        end: Position,
        changes: &mut Changes,
        until: Option<Instant>,
    ) -> Result<(usize, bool), FrameError> {
        let mut count = 0;
        for record in records {
            let (seq, bytes) = record?;
            count += 1;
            let version = Version { epoch: end.epoch, seq };
            let alone = self.open.is_empty() && self.staged.is_none();
            if !(alone && apply_usual(&mut self.tree, changes, version, bytes)) {
                let record = rules.decode(bytes)?;
                if record.is_epoch() {
                    changes.note_epoch(end.epoch, seq);
                }
                apply_record(&mut self.tree, (&mut self.open, &mut self.staged), changes, version, record);
            }
            if self.open.is_empty() && self.staged.is_none() {
                self.applied = seq;
            }
            let late = count % RECORDS_A_LOOK == 0 && until.is_some_and(|until| Instant::now() >= until);
            if late && seq < end.seq {
                return Ok((count, false));
            }
        }
        if self.open.is_empty() && self.staged.is_none() {
            self.applied = end.seq;
            self.tree.advance(end);
        }
        Ok((count, true))
    }
}

/// Applies a usual put, a transaction by itself, of an object that is there; whether it is one.
fn apply_usual(tree: &mut Tree, changes: &mut Changes, version: Version, record: &[u8]) -> bool {
    let Some((Part::Whole, put)) = UsualPut::of_record(record) else { return false };
    let Some(key) = put.key() else { return false };
    let applied = tree.with_object(&key, |mut slot| {
        slot.put(&put, version);
        changes.note_object(version, version.seq, slot.object());
    });
    applied.is_some()
}

/// Applies one record; the changes of an unfinished transaction gather in `open`, those of a long one in a copy of the
/// tree, so that its last record costs no more than any.
fn apply_record(
    tree: &mut Tree,
    (open, staged): (&mut Vec<(Change, Version)>, &mut Option<Copied>),
    changes: &mut Changes,
    version: Version,
    record: Record,
) {
    let (part, change) = match record {
        // A transaction never spans epochs: what its writer did not finish never takes effect.
        Record::Epoch(_) => {
            open.clear();
            if let Some((first, _)) = staged.take() {
                changes.forget_from(first);
            }
            return;
        }
        Record::Interaction { .. } => return,
        Record::Ds { part, change } => (part, change),
    };
    open.push((change, version));
    if open.len() >= LONG_FROM_CHANGES || (staged.is_some() && (part.is_last() || open.len() >= STAGED_AT_ONCE)) {
        let (_, state) = staged.get_or_insert_with(|| (open[0].1.seq, tree.snapshot()));
        for (change, version) in open.drain(..) {
            let applied = state.apply(&change, version);
            changes.note(version, Seq(u64::MAX), &change, &applied);
        }
    }
    if !part.is_last() {
        return;
    }
    let commit = version.seq;
    if let Some((first, state)) = staged.take() {
        let position = tree.position();
        let before = tree.replace(state);
        tree.advance(position);
        changes.commit(first, commit);
        jobs::free(before);
    }
    for (change, version) in open.drain(..) {
        let applied = tree.apply(&change, version);
        changes.note(version, commit, &change, &applied);
    }
}

/// The contents that a change refers to.
pub(super) fn contents_of(change: &Change) -> Vec<(ContentId, u64)> {
    let Change::Put { attributes, .. } = change else { return Vec::new() };
    let values = attributes.iter().flat_map(|attribute| &attribute.values);
    values
        .filter_map(|value| match value {
            Value::Content { id, len, .. } => Some((*id, *len)),
            Value::Text(_) | Value::Bytes(_) => None,
        })
        .collect()
}

/// What the core is told of a checked frame.
#[must_use]
pub fn meta_of(header: &FrameHeader, bytes: usize) -> FrameMeta {
    FrameMeta {
        history: header.history(),
        epoch: header.epoch(),
        first: header.first_seq(),
        count: u32::try_from(header.last_seq().0 - header.first_seq().0 + 1).unwrap_or(u32::MAX),
        prev: header.prev_chain(),
        end: header.end(),
        bytes: bytes as u64,
    }
}

#[cfg(test)]
mod tests {
    use ringpair_wire::{
        compress::{Compression, Compressor},
        ds::{Attribute, DsPath},
        frame_builder::FrameBuilder,
        id::{Epoch, HistoryId},
        record::Part,
    };

    use super::*;

    /// One frame a value, each setting `/X` to a content.
    fn frames(ids: &[ContentId]) -> Vec<(Shared, Position)> {
        let mut builder = FrameBuilder::after(HistoryId([7; 16]), Epoch(1), Position::default());
        let frame = |id: &ContentId| {
            let value = Value::Content { id: *id, len: 70_000, text: true };
            let attributes = vec![Attribute { name: "V".into(), values: vec![value] }];
            let path = DsPath::parse("/X").unwrap();
            let change = Change::Put { path, class: Some("C".into()), replace: true, attributes };
            builder.push(&Record::Ds { part: Part::Whole, change }).unwrap();
            let sealed = builder.finish(&mut Compressor::new(Compression::Off)).unwrap();
            (sealed.bytes.into(), sealed.position)
        };
        ids.iter().map(frame).collect()
    }

    fn take(applier: &mut Applier, (bytes, end): &(Shared, Position)) {
        let decoded = applier.decode(&CheckedFrame::check(bytes).unwrap()).unwrap();
        let lacking = applier.lacking(&decoded.contents);
        applier.push(bytes.clone(), *end, decoded, &lacking);
    }

    // REQ: REP-012
    #[test]
    fn frames_wait_for_their_contents_and_what_is_missing_bounds_what_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        let values: Vec<String> = ["a", "b", "c"].map(|text| text.repeat(70_000)).into();
        let ids: Vec<ContentId> =
            values.iter().map(|text| ContentId(*blake3::hash(text.as_bytes()).as_bytes())).collect();
        let frames = frames(&ids);
        let mut changes = Changes::new(Version::default());
        let mut applier = Applier::new(Tree::default(), store.clone());
        frames.iter().for_each(|frame| take(&mut applier, frame));
        let all = Seq(9);
        // Known at once, through frames that are not even written.
        assert_eq!((applier.missing_from(), applier.missing().count()), (Some(Seq(1)), 3));
        assert!(!applier.can_apply(all) && !applier.turn(all, 1 << 20, &mut changes).unwrap());
        store.put(values[0].as_bytes()).unwrap();
        applier.content_stored(&ids[0]);
        assert!(applier.turn(all, 1 << 20, &mut changes).unwrap());
        assert_eq!((applier.applied(), applier.missing_from()), (Seq(1), Some(Seq(2))));
        // The active has overwritten the second and removed it: the third record may come, but nothing is acknowledged.
        applier.content_gone(ids[1]);
        assert!(applier.turn(all, 1 << 20, &mut changes).unwrap());
        assert_eq!((applier.applied(), applier.missing_from()), (Seq(2), Some(Seq(2))));
        store.put(values[2].as_bytes()).unwrap();
        applier.content_stored(&ids[2]);
        applier.turn(all, 1 << 20, &mut changes).unwrap();
        assert_eq!((applier.applied(), applier.missing_from()), (Seq(3), Some(Seq(2))));
        // Until the state needs none that is missing.
        applier.find_missing();
        assert_eq!(applier.missing_from(), None);
        assert_eq!(applier.contents_after(Seq(1)), ids[1..]);
    }

    // REQ: REP-310
    #[test]
    fn payloads_are_kept_expanded_within_a_bound_and_applied_alike_beyond_it() {
        let dir = tempfile::tempdir().unwrap();
        let mut applier = Applier::new(Tree::default(), ContentStore::open(dir.path()).unwrap());
        let mut builder = FrameBuilder::after(HistoryId([7; 16]), Epoch(1), Position::default());
        let mut end = Position::default();
        for frame in 0..40 {
            for index in 0..8 {
                let attributes =
                    vec![Attribute { name: "V".into(), values: vec![Value::Text("v".repeat(4000).into())] }];
                let path = DsPath::parse(&format!("/X{frame}/{index}")).unwrap();
                let change = Change::Put { path, class: None, replace: true, attributes };
                builder.push(&Record::Ds { part: Part::of(index, 8), change }).unwrap();
            }
            let sealed = builder.finish(&mut Compressor::new(Compression::Auto)).unwrap();
            end = sealed.position;
            take(&mut applier, &(sealed.bytes.into(), end));
        }
        let kept = applier.waiting.iter().filter(|frame| frame.decoded.expanded.is_some()).count();
        assert!((1..40).contains(&kept) && applier.expanded_bytes <= EXPANDED_BYTES, "{kept} of 40 frames");
        while applier.turn(Seq(u64::MAX), 64 << 10, &mut Changes::new(Version::default())).unwrap() {}
        assert_eq!((applier.applied(), applier.position(), applier.tree().snapshot().len()), (end.seq, end, 40 * 9));
        assert_eq!((applier.waiting_bytes(), applier.expanded_bytes), (0, 0));
    }

    // REQ: SM-163
    #[test]
    fn a_promotion_does_not_wait_and_does_not_forget() {
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        let id = ContentId([3; 32]);
        let mut applier = Applier::new(Tree::default(), store);
        take(&mut applier, &frames(&[id])[0]);
        applier.replay_waiting(Seq(9), &mut Changes::new(Version::default())).unwrap();
        assert_eq!((applier.applied(), applier.missing().collect::<Vec<_>>()), (Seq(1), vec![(id, 70_000)]));
    }
}

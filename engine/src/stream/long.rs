//! A transaction of many changes, prepared and committed over several turns of the loop: an import of a million objects
//! must not keep the active from its heartbeats, or its supervisor takes it for dead.
//!
//! Always: one at a time, the writes behind it wait in order, so that the tree that it was resolved against is the tree it
//! is applied to; nothing is numbered before everything is prepared; what has become of the role meanwhile is asked
//! again before that. Its records are numbered at once and put into frames piece by piece; the tree takes it with the
//! last, here as on the backup. Where the office ends in between, what is in frames never takes effect: the next epoch's
//! record ends it for every reader of the journal. Never: a turn of much more than [`STEP`], or frames faster than the
//! journal takes them.

use std::{
    ops::Range,
    time::{Duration, Instant as StdInstant},
};

use ringpair_core::Instant;
use ringpair_wire::{
    ds::{Change, ContentId},
    id::{AckLevel, Epoch, Seq, Version},
};

use super::{
    Stream,
    applier::contents_of,
    jobs,
    writes::{self, Encoded},
};
use crate::{
    api::backend::{Failure, Reply, WriteDone, WriteRequest},
    ds::{
        Applied, TreeSnapshot,
        edit::{Resolution, Resolved},
    },
};

/// From how many operations on a transaction is prepared over several turns: at a few microseconds each, fewer fit into
/// one, and need no copy of the tree.
pub(super) const LONG_FROM_OPERATIONS: usize = 1024;
/// How many writes wait behind one at most; more are told to come again.
pub(super) const HELD_WRITES: usize = 1024;
/// How long the preparation may take in one turn.
const STEP: Duration = Duration::from_millis(2);
/// How many changes are prepared between two looks at the clock.
const CHANGES_A_LOOK: usize = 32;
/// How many changes of a transaction that is over are freed at once.
const FREED_AT_ONCE: usize = 256;

/// A transaction that is being prepared.
pub(super) struct Long {
    ack: AckLevel,
    deadline: StdInstant,
    /// Until the transaction is numbered: then it waits with the other writes.
    reply: Option<Reply<WriteDone>>,
    epoch: Epoch,
    stage: Stage,
}

enum Stage {
    /// With the number that its first change is to have.
    Resolving(Box<Resolution>, Seq),
    Encoding(Box<Prepared>),
    /// Everything before this index is in frames or in the frame being filled.
    Committing(Box<Prepared>, usize),
}

/// What became of a transaction in one piece of work.
enum Step {
    More,
    /// The journal has to take more before it goes on.
    Held,
    Ended,
}

/// The changes, applied to a copy of the tree, as if the first had the number `first`, and encoded.
#[derive(Default)]
struct Prepared {
    changes: Vec<Change>,
    applied: Vec<Applied>,
    state: TreeSnapshot,
    first: Seq,
    encoded: Encoded,
}

impl Prepared {
    fn new(resolved: Resolved, first: Seq) -> Self {
        let Resolved { changes, applied, state } = resolved;
        Self { changes, applied, state, first, encoded: Encoded::default() }
    }

    /// Encodes up to `count` more changes: which.
    fn step(&mut self, count: usize) -> Result<Range<usize>, Failure> {
        let part = self.encoded.count()..self.changes.len().min(self.encoded.count() + count);
        for index in part.clone() {
            self.encoded.push(index, self.changes.len(), &self.changes[index])?;
        }
        Ok(part)
    }
}

impl Long {
    /// Frees some of what a transaction that is over has left. True: little is left.
    fn shed(&mut self) -> bool {
        let (Stage::Encoding(prepared) | Stage::Committing(prepared, _)) = &mut self.stage else { return true };
        let left = prepared.changes.len().saturating_sub(FREED_AT_ONCE);
        prepared.changes.truncate(left);
        prepared.applied.truncate(left);
        left == 0
    }

    /// The contents that what is prepared refers to.
    pub(super) fn contents(&self) -> Vec<ContentId> {
        match &self.stage {
            Stage::Resolving(..) => Vec::new(),
            Stage::Encoding(prepared) | Stage::Committing(prepared, _) => {
                prepared.changes.iter().flat_map(contents_of).map(|(id, _)| id).collect()
            }
        }
    }
}

impl Stream {
    /// Begins a transaction of many operations; the role was asked for already.
    pub(super) fn begin_long(&mut self, request: WriteRequest) {
        let WriteRequest { operations, ack, deadline, reply } = request;
        let epoch = self.node.epoch();
        let first = Version { epoch, seq: Seq(self.journal.end().seq.0 + 1) };
        let resolution = Resolution::numbered(self.applier.tree().snapshot(), operations, first);
        let stage = Stage::Resolving(Box::new(resolution), first.seq);
        self.long = Some(Long { ack, deadline, reply: Some(reply), epoch, stage });
    }

    /// Whether the transaction under way can go on now.
    pub(super) fn has_long_work(&self) -> bool {
        let committing = |long: &Long| matches!(long.stage, Stage::Committing(..));
        self.long.as_ref().is_some_and(|long| !committing(long) || self.journal_takes_parts())
    }

    /// Whether the journal keeps up with the frames of a transaction under way.
    fn journal_takes_parts(&self) -> bool {
        self.journal.pending_bytes() < super::APPEND_BELOW_BYTES && !self.journal.is_short(0)
    }

    /// Goes on with the transaction under way, for [`STEP`] at most; then with the writes that waited behind it.
    pub(super) fn work_long(&mut self, now: Instant) {
        let until = StdInstant::now() + STEP;
        while let Some(mut long) = self.long.take() {
            match self.step_long(&mut long, now) {
                // A hundred thousand changes take their time.
                Ok(Step::Ended) => jobs::free_by_parts(long, Long::shed),
                Ok(Step::More) => self.long = Some(long),
                Ok(Step::Held) => {
                    self.long = Some(long);
                    break;
                }
                Err(failure) => {
                    if let Some(reply) = long.reply.take() {
                        drop(reply.send(Err(failure)));
                    }
                    jobs::free_by_parts(long, Long::shed);
                }
            }
            if StdInstant::now() >= until {
                return;
            }
        }
        if self.long.is_some() && self.journal.is_short(0) {
            // It goes on when there is room; who came behind it is not kept waiting for that.
            for held in std::mem::take(&mut self.held) {
                drop(held.reply.send(Err(self.no_room())));
            }
        }
        while self.long.is_none()
            && let Some(held) = self.held.pop_front()
        {
            self.write(held, now);
        }
    }

    fn step_long(&mut self, long: &mut Long, now: Instant) -> Result<Step, Failure> {
        if long.reply.as_ref().is_some_and(Reply::is_closed) {
            return Ok(Step::Ended);
        }
        if let Stage::Committing(prepared, framed) = &mut long.stage {
            return Ok(self.commit_part(prepared, framed, long.epoch, now));
        }
        if !self.prepare_long(long)? {
            return Ok(Step::More);
        }
        self.number_long(long, now)
    }

    /// True: everything is prepared.
    fn prepare_long(&mut self, long: &mut Long) -> Result<bool, Failure> {
        match &mut long.stage {
            Stage::Resolving(resolution, first) => {
                if resolution.step(CHANGES_A_LOOK) {
                    let resolved = resolution.finish().map_err(|error| Failure::Malformed(error.to_string()))?;
                    long.stage = Stage::Encoding(Box::new(Prepared::new(resolved, *first)));
                }
                Ok(false)
            }
            Stage::Encoding(prepared) => {
                let part = prepared.step(CHANGES_A_LOOK)?;
                if self.applier.lost_of(&prepared.changes[part.clone()]) > 0 {
                    return Err(Failure::Busy { retry_after_s: 1 });
                }
                Ok(part.end == prepared.changes.len())
            }
            Stage::Committing(..) => Ok(true),
        }
    }

    /// Numbers everything that was prepared.
    fn number_long(&mut self, long: &mut Long, now: Instant) -> Result<Step, Failure> {
        let Stage::Encoding(prepared) = &mut long.stage else { return Ok(Step::Ended) };
        if let Some(refused) = self.refusal(now) {
            return Err(refused);
        }
        let position = self.applier.tree().position();
        if prepared.changes.is_empty() {
            if let Some(reply) = long.reply.take() {
                self.nothing_to_do(reply, long.ack, position, now);
            }
            return Ok(Step::Ended);
        }
        // The role went and came back meanwhile: the tree and the numbers may be others.
        let as_prepared = self.node.epoch() == long.epoch && self.journal.end().seq.0 + 1 == prepared.first.0;
        if !as_prepared {
            return Err(Failure::Busy { retry_after_s: 1 });
        }
        if self.journal.is_short(prepared.encoded.len()) {
            return Err(self.no_room());
        }
        let token = self.writes.token();
        let records = u32::try_from(prepared.changes.len()).unwrap_or(u32::MAX);
        let admission = self.node.admit(now, token, records, long.ack).map_err(writes::failure)?;
        assert_eq!(admission.first, prepared.first, "nothing is numbered beside a long transaction");
        if let Some(reply) = long.reply.take() {
            self.writes.wait(token, admission, long.deadline, reply);
        }
        long.stage = Stage::Committing(std::mem::take(prepared), 0);
        Ok(Step::More)
    }

    /// Puts some more records into frames; with the last of them the tree takes what was prepared.
    fn commit_part(&mut self, prepared: &mut Prepared, framed: &mut usize, epoch: Epoch, now: Instant) -> Step {
        // Where the office has ended, the core has what is left dropped in a moment.
        if self.refusal(now).is_some() || self.node.epoch() != epoch || !self.journal_takes_parts() {
            return Step::Held;
        }
        let count = prepared.changes.len();
        let part = *framed..count.min(*framed + CHANGES_A_LOOK);
        let commit = Seq(prepared.first.0 + count as u64 - 1);
        for index in part.clone() {
            let (change, seq) = (&prepared.changes[index], Seq(prepared.first.0 + index as u64));
            self.applier.note_contents(seq, change);
            self.changes.note(Version { epoch, seq }, commit, change, &prepared.applied[index]);
        }
        *framed = part.end;
        let mut closed = Vec::new();
        self.writes.append_part(&prepared.encoded, part, |frame| closed.push(frame));
        for frame in closed {
            self.part_closed(frame, now);
        }
        if *framed < count {
            return Step::More;
        }
        let position = self.applier.tree().position();
        let before = self.applier.tree().replace(std::mem::take(&mut prepared.state));
        // Freed with the rest.
        prepared.state = before;
        self.applier.tree().advance(position);
        self.close_frame(now);
        Step::Ended
    }

    /// The office has ended: what is numbered and in no frame is given up, and with it a transaction of which it is part.
    pub(super) fn drop_unframed(&mut self) {
        let Some(long) = self.long.take_if(|long| matches!(long.stage, Stage::Committing(..))) else {
            debug_assert!(self.writes.is_closed());
            return;
        };
        self.writes.discard();
        if let Stage::Committing(prepared, _) = &long.stage {
            self.changes.forget_from(prepared.first);
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpair_wire::ds::{DsPath, Value};

    use super::*;
    use crate::ds::{
        Tree,
        edit::{Operation, ValueEdit, resolve_all},
    };

    fn put(line: u64, path: &str, value: &str) -> (u64, Operation) {
        let attributes = vec![("A".to_owned(), ValueEdit::Add(vec![Value::Text(value.into())]))];
        let path = DsPath::parse(path).unwrap();
        (line, Operation::Put { path, class: None, replace: false, attributes })
    }

    /// Prepared some changes at a time, a transaction is what it is at once: the same records, tree and versions.
    #[test]
    fn steps_come_to_the_same_as_one() {
        let operations: Vec<_> =
            (0..1000).map(|n| put(n + 1, &format!("/X/{}/{}", n % 7, n % 91), &n.to_string())).collect();
        let first = Version { epoch: Epoch(65_537), seq: Seq(11) };
        let mut tree = Tree::default();
        let changes = resolve_all(&tree.snapshot(), operations.clone()).unwrap();
        let mut resolution = Resolution::numbered(tree.snapshot(), operations, first);
        let mut steps = 1;
        while !resolution.step(CHANGES_A_LOOK) {
            steps += 1;
        }
        assert_eq!(steps, 1000_usize.div_ceil(CHANGES_A_LOOK));
        let mut prepared = Prepared::new(resolution.finish().unwrap(), first.seq);
        while prepared.step(CHANGES_A_LOOK).unwrap().end < changes.len() {}
        assert_eq!(prepared.changes, changes);
        for (index, change) in (0_u64..).zip(&changes) {
            let applied = tree.apply(change, Version { seq: Seq(11 + index), ..first });
            assert_eq!(applied.object, prepared.applied[index as usize].object, "change {index}");
        }
        assert!(tree.snapshot().iter().eq(prepared.state.iter()));
        assert_eq!(Encoded::of(&changes).unwrap(), prepared.encoded);
    }
}

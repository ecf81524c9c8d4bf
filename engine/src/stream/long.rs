//! A transaction of many changes, prepared over several turns of the loop: an import of a million objects must not keep
//! the active from its heartbeats, or its supervisor takes it for dead.
//!
//! Always: one at a time, the writes behind it wait in order, so that the tree that it was resolved against is the tree it
//! is applied to; nothing is numbered before everything is prepared; what has become of the role meanwhile is asked
//! again before that. Never: a turn of more than [`STEP`] for the preparation.

use std::time::{Duration, Instant as StdInstant};

use ringpair_core::Instant;
use ringpair_wire::{
    ds::{Change, ContentId},
    id::{AckLevel, Epoch, Seq, Version},
};

use super::{
    Stream,
    applier::contents_of,
    writes::{self, Encoded},
};
use crate::{
    api::backend::{Failure, Reply, WriteDone, WriteRequest},
    ds::{Applied, TreeSnapshot, edit::Resolution},
};

/// From how many operations on a transaction is prepared over several turns.
pub(super) const LONG_FROM_OPERATIONS: usize = 256;
/// How many writes wait behind one at most; more are told to come again.
pub(super) const HELD_WRITES: usize = 1024;
/// How long the preparation may take in one turn.
const STEP: Duration = Duration::from_millis(2);
/// How many changes are prepared between two looks at the clock.
const CHANGES_A_LOOK: usize = 32;

/// A transaction that is being prepared.
pub(super) struct Long {
    ack: AckLevel,
    deadline: StdInstant,
    reply: Reply<WriteDone>,
    epoch: Epoch,
    stage: Stage,
}

enum Stage {
    Resolving(Resolution),
    Applying(Box<Prepared>),
}

/// The changes, encoded and applied to a copy of the tree, as if the first had the number `first`.
struct Prepared {
    changes: Vec<Change>,
    encoded: Encoded,
    state: TreeSnapshot,
    first: Seq,
    applied: Vec<Applied>,
}

impl Prepared {
    fn new(changes: Vec<Change>, state: TreeSnapshot, first: Seq) -> Self {
        let applied = Vec::with_capacity(changes.len());
        Self { changes, encoded: Encoded::default(), state, first, applied }
    }

    /// Prepares up to `count` more changes. True: that was all.
    fn step(&mut self, count: usize, epoch: Epoch) -> Result<bool, Failure> {
        let done = self.applied.len();
        for (index, change) in self.changes.iter().enumerate().skip(done).take(count) {
            self.encoded.push(index, self.changes.len(), change)?;
            let version = Version { epoch, seq: Seq(self.first.0 + index as u64) };
            self.applied.push(self.state.apply(change, version));
        }
        Ok(self.applied.len() == self.changes.len())
    }
}

impl Long {
    /// The contents that what is prepared refers to.
    pub(super) fn contents(&self) -> Vec<ContentId> {
        match &self.stage {
            Stage::Resolving(_) => Vec::new(),
            Stage::Applying(prepared) => prepared.changes.iter().flat_map(contents_of).map(|(id, _)| id).collect(),
        }
    }
}

impl Stream {
    /// Begins a transaction of many operations; the role was asked for already.
    pub(super) fn begin_long(&mut self, request: WriteRequest) {
        let WriteRequest { operations, ack, deadline, reply } = request;
        let stage = Stage::Resolving(Resolution::new(self.applier.tree().snapshot(), operations));
        self.long = Some(Long { ack, deadline, reply, epoch: self.node.epoch(), stage });
    }

    /// Goes on with the transaction under way, for [`STEP`] at most; then with the writes that waited behind it.
    pub(super) fn work_long(&mut self, now: Instant) {
        let until = StdInstant::now() + STEP;
        while let Some(mut long) = self.long.take() {
            if long.reply.is_closed() {
                continue;
            }
            match self.step_long(&mut long) {
                Ok(false) => self.long = Some(long),
                Ok(true) => self.commit_long(long, now),
                Err(failure) => drop(long.reply.send(Err(failure))),
            }
            if StdInstant::now() >= until {
                return;
            }
        }
        while self.long.is_none()
            && let Some(held) = self.held.pop_front()
        {
            self.write(held, now);
        }
    }

    /// True: everything is prepared.
    fn step_long(&mut self, long: &mut Long) -> Result<bool, Failure> {
        match &mut long.stage {
            Stage::Resolving(resolution) => {
                if resolution.step(CHANGES_A_LOOK) {
                    let ended = std::mem::replace(resolution, Resolution::new(TreeSnapshot::default(), Vec::new()));
                    let changes = ended.finish().map_err(|error| Failure::Malformed(error.to_string()))?;
                    let first = Seq(self.journal.end().seq.0 + 1);
                    let state = self.applier.tree().snapshot();
                    long.stage = Stage::Applying(Box::new(Prepared::new(changes, state, first)));
                }
                Ok(false)
            }
            Stage::Applying(prepared) => prepared.step(CHANGES_A_LOOK, long.epoch),
        }
    }

    /// Numbers what was prepared, puts it into frames and takes the prepared tree, all in this turn.
    fn commit_long(&mut self, long: Long, now: Instant) {
        let Long { ack, deadline, reply, epoch, stage } = long;
        let Stage::Applying(prepared) = stage else { return };
        let Prepared { changes, encoded, state, first, applied } = *prepared;
        if let Some(refused) = self.refusal(now) {
            drop(reply.send(Err(refused)));
            return;
        }
        let position = self.applier.tree().position();
        if changes.is_empty() {
            return self.nothing_to_do(reply, ack, position, now);
        }
        // The role went and came back meanwhile: the tree may be another.
        if self.node.epoch() != epoch {
            drop(reply.send(Err(Failure::Busy { retry_after_s: 1 })));
            return;
        }
        if self.journal.is_short(encoded.len()) {
            drop(reply.send(Err(self.no_room())));
            return;
        }
        let token = self.writes.token();
        let records = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        let admission = match self.node.admit(now, token, records, ack) {
            Ok(admission) => admission,
            Err(refusal) => return drop(reply.send(Err(writes::failure(refusal)))),
        };
        self.writes.wait(token, admission, deadline, reply);
        let mut closed = Vec::new();
        self.writes.append(&encoded, |frame| closed.push(frame));
        let as_prepared = admission.first == first;
        if as_prepared {
            self.applier.tree().replace(state);
            self.applier.tree().advance(position);
        }
        for ((index, change), applied) in (0_u64..).zip(&changes).zip(applied) {
            let version = Version { epoch: admission.epoch, seq: Seq(admission.first.0 + index) };
            // Other numbers than expected: something else was numbered meanwhile, and its change stays.
            let applied = if as_prepared { applied } else { self.applier.tree().apply(change, version) };
            self.changes.note(version, admission.last, change, &applied);
        }
        for frame in closed {
            self.frame_closed(frame, now);
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
        let epoch = Epoch(65_537);
        let mut tree = Tree::default();
        let changes = resolve_all(&tree.snapshot(), operations.clone()).unwrap();
        let mut prepared = Prepared::new(changes.clone(), tree.snapshot(), Seq(11));
        let mut steps = 1;
        while !prepared.step(CHANGES_A_LOOK, epoch).unwrap() {
            steps += 1;
        }
        assert_eq!(steps, 1000_usize.div_ceil(CHANGES_A_LOOK));
        for (index, change) in (0_u64..).zip(&changes) {
            let applied = tree.apply(change, Version { epoch, seq: Seq(11 + index) });
            assert_eq!(applied.object, prepared.applied[index as usize].object, "change {index}");
        }
        assert!(tree.snapshot().iter().eq(prepared.state.iter()));
        assert_eq!(Encoded::of(&changes).unwrap(), prepared.encoded);
    }
}

//! Native clients, served by the loop itself: requests off the socket into the frame being filled, answers from the
//! core's acknowledgements back to the socket, without another thread, without JSON.
//!
//! Always: requests of a connection are taken in order; consecutive ones that go into one frame are one write of the
//! core, answered together when the last has reached the level; the role is asked in the turn that takes them, the
//! lease in the turn that answers. Everything is bounded: connections, bytes kept of each, requests unanswered. What
//! cannot be taken now stays where it is: the socket is not read, which is the back-pressure that the client feels.
//! Never: an answer that the core did not give, or a wait for a client.

mod conn;
mod groups;

use std::{
    collections::VecDeque,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant as StdInstant},
};

use nix::sys::socket::{MsgFlags, send};
use ringpair_core::{
    Instant, Node,
    effect::WriteOutcome,
    input::{Admission, WriteToken},
};
use ringpair_wire::{
    client::{self, Answer, Failed, FailureCode, Greeting, Limits, Operations, Reached, Versions},
    codec::DecodeError,
    ds::{Change, DsPath, Value},
    id::{AckLevel, MemberId, Version},
    usual::UsualPut,
};

pub(super) use self::groups::is_native;
use self::{
    conn::{Conn, ConnId, Next, Progress},
    groups::{Group, Groups},
};
use super::{
    Stream,
    writes::{self, Encoded},
};
use crate::{
    api::backend::{Failure, WriteDone},
    ds::edit::{EditError, Operation, ValueEdit, permits, resolve_all},
    ring::{Carried, Completion, Driver},
};

/// How many native clients may be connected at once.
pub(super) const MAX_CONNECTIONS: usize = 128;
/// How many requests of one connection may be unanswered: it is read no further then.
const MAX_UNANSWERED: usize = 65_536;
/// How many requests are taken in one turn.
const REQUESTS_A_TURN: usize = 4096;
/// How long taking them may last in one turn: the loop has heartbeats to answer.
const TAKE_FOR: Duration = Duration::from_millis(2);
/// How many requests are taken between two looks at the clock.
const REQUESTS_A_LOOK: usize = 64;
/// A client that reads nothing of its answers for so long is let go of.
const READ_WITHIN: Duration = Duration::from_secs(30);
/// A greeting must be whole within this.
const GREET_WITHIN: Duration = Duration::from_secs(10);

/// All native clients, and their requests that wait.
#[derive(Default)]
pub(super) struct Native {
    slots: Vec<Slot>,
    /// Connections with input that was not looked at, or that could not be taken yet.
    ready: VecDeque<u32>,
    /// Connections that have something to send, or could receive.
    dirty: Vec<u32>,
    groups: Groups,
    /// A connection of `ready` could go on at once.
    goes_on: bool,
    /// `[batch] linger_us`, and since when what came waits for company.
    linger: Duration,
    waits_since: Option<StdInstant>,
    scratch: Encoded,
}

#[derive(Default)]
struct Slot {
    tag: u16,
    /// It stands in `ready`.
    is_ready: bool,
    conn: Option<Box<Conn>>,
}

/// Why a connection is left for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It waits for more bytes, or is over.
    Empty,
    /// Its next request cannot be taken before something else has happened.
    Held,
    /// The turn's time is over.
    More,
}

/// How much may still be taken in this turn.
struct Budget {
    requests: usize,
    until: StdInstant,
}

impl Budget {
    fn take(&mut self) -> bool {
        self.requests = self.requests.saturating_sub(1);
        self.requests > 0 && (!self.requests.is_multiple_of(REQUESTS_A_LOOK) || StdInstant::now() < self.until)
    }
}

/// What a client is told of `member` first.
#[must_use]
pub const fn limits(member: MemberId) -> Limits {
    Limits { member, max_unanswered: MAX_UNANSWERED as u32 }
}

impl Native {
    /// Nobody is connected; requests wait for company as long as `linger` says.
    pub(super) fn new(linger: Duration) -> Self {
        Self { linger, ..Self::default() }
    }

    /// Whether what has come is to wait for company: for the time set at most, nor for more than a frame takes.
    fn lingers(&mut self, frame_bytes: usize, now: StdInstant) -> bool {
        if self.linger.is_zero() || self.ready.is_empty() {
            return false;
        }
        let conns = self.ready.iter().filter_map(|index| self.slots[*index as usize].conn.as_deref());
        let since = *self.waits_since.get_or_insert(now);
        let waits = now.saturating_duration_since(since) < self.linger
            && conns.map(Conn::waiting_bytes).sum::<usize>() < frame_bytes;
        if !waits {
            self.waits_since = None;
        }
        waits
    }

    /// Takes a connection whose credentials were checked; beyond the bound it is told so and closed.
    pub(super) fn accept(&mut self, fd: OwnedFd, limits: Limits, now: StdInstant) {
        let greeting = Greeting { versions: client::VERSIONS, member: Some(limits) }.to_bytes();
        let free = self.slots.iter().position(|slot| slot.conn.is_none());
        let index = match free {
            Some(index) => index,
            None if self.slots.len() < MAX_CONNECTIONS => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => {
                let mut bytes = greeting;
                let message = format!("{MAX_CONNECTIONS} clients are connected already. Try: again later");
                Answer::Goodbye { code: FailureCode::Busy, message }.encode(&mut bytes);
                // Whoever does not take it at once finds a closed connection.
                let _ = send(fd.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
                return;
            }
        };
        let slot = &mut self.slots[index];
        slot.tag = slot.tag.wrapping_add(1);
        let id = ConnId { index: index as u32, tag: slot.tag };
        slot.conn = Some(Box::new(Conn::new(id, fd, greeting, now + GREET_WITHIN)));
        self.dirty.push(id.index);
    }

    fn get(&mut self, id: ConnId) -> Option<&mut Conn> {
        self.slots.get_mut(id.index as usize)?.conn.as_deref_mut().filter(|conn| conn.id == id)
    }

    /// What became of an operation on a client's socket.
    pub(super) fn complete(&mut self, completion: Completion) {
        let id = ConnId { index: completion.token.index(), tag: completion.token.tag() };
        // What belongs to a connection that is gone is dropped with it.
        let Some(conn) = self.get(id) else { return };
        let received = matches!(completion.carried, Carried::Buf(_));
        let goes_on = match completion.carried {
            Carried::Buf(buf) => conn.received(buf, &completion.result),
            _ => conn.sent(completion.result.is_ok()),
        };
        if !goes_on {
            return self.close(id);
        }
        self.dirty.push(id.index);
        if received {
            self.make_ready(id.index);
        }
    }

    fn make_ready(&mut self, index: u32) {
        if !std::mem::replace(&mut self.slots[index as usize].is_ready, true) {
            self.ready.push_back(index);
        }
    }

    fn close(&mut self, id: ConnId) {
        if let Some(slot) = self.slots.get_mut(id.index as usize)
            && let Some(conn) = slot.conn.take_if(|conn| conn.id == id)
        {
            conn.hang_up();
        }
    }

    /// Whether something can be taken without any completion.
    pub(super) fn has_work(&self) -> bool {
        self.goes_on
    }

    /// Whether everything that was said has left.
    pub(super) fn is_drained(&self) -> bool {
        self.slots.iter().filter_map(|slot| slot.conn.as_deref()).all(Conn::is_drained)
    }

    /// Sends what is to be said, and reads on where there is room.
    pub(super) fn pump(&mut self, driver: &mut Driver) {
        let mut dirty = std::mem::take(&mut self.dirty);
        let mut again = Vec::new();
        for index in dirty.drain(..) {
            let Some(conn) = self.slots.get_mut(index as usize).and_then(|slot| slot.conn.as_deref_mut()) else {
                continue;
            };
            if conn.is_over() {
                let id = conn.id;
                self.close(id);
            } else if !conn.pump(driver) {
                // The driver is full: the next turn has room again.
                again.push(index);
            }
        }
        dirty.append(&mut again);
        self.dirty = dirty;
    }

    /// Answers a write. `may_answer`: whether the member may still speak as active.
    pub(super) fn answer(&mut self, token: WriteToken, outcome: WriteOutcome, may_answer: bool) {
        // Its time was over, or its client has gone.
        let Some(group) = self.groups.take(token) else { return };
        let answer = writes::answer(group.versions.first, outcome, may_answer);
        self.say(&group, answer);
    }

    fn say(&mut self, group: &Group, answer: Result<WriteDone, Failure>) {
        let Some(conn) = self.get(group.conn) else { return };
        let Group { first, count, versions, .. } = *group;
        conn.answer(&match answer {
            Ok(WriteDone { level, alone, .. }) => Answer::Reached(Reached { first, count, level, alone, versions }),
            Err(failure) => Answer::Failed(failed(first, count, &failure, Some(versions))),
        });
        conn.unanswered -= count as usize;
        self.dirty.push(group.conn.index);
    }

    /// Gives up the writes whose time is over, and clients that do not read or never greeted.
    pub(super) fn expire(&mut self, now: StdInstant) {
        for group in self.groups.expired(now) {
            self.say(&group, Err(writes::late(group.versions.first)));
        }
        let stuck: Vec<ConnId> = self
            .slots
            .iter()
            .filter_map(|slot| slot.conn.as_deref())
            .filter(|conn| conn.is_stuck(now, READ_WITHIN))
            .map(|conn| conn.id)
            .collect();
        for id in stuck {
            tracing::info!(client = id.index, "a native client that did not greet or read in time is let go of");
            self.close(id);
        }
    }

    /// How long until a write's time is over, or what waits for company is taken.
    pub(super) fn next_timeout(&self, now: StdInstant) -> Option<Duration> {
        let company = self.waits_since.map(|since| since + self.linger);
        self.groups.earliest().into_iter().chain(company).min().map(|at| at.saturating_duration_since(now))
    }
}

impl Stream {
    /// Takes what native clients ask, as much as fits into this turn.
    pub(super) fn take_native(&mut self, now: Instant) {
        let goes_on = std::mem::take(&mut self.native.goes_on);
        let frame_bytes = self.config.batch.max_bytes as usize;
        if self.native.ready.is_empty() || (!goes_on && self.native.lingers(frame_bytes, StdInstant::now())) {
            return;
        }
        let mut budget = Budget { requests: REQUESTS_A_TURN, until: StdInstant::now() + TAKE_FOR };
        let mut refusal = None;
        for _ in 0..self.native.ready.len() {
            let Some(index) = self.native.ready.pop_front() else { return };
            self.native.slots[index as usize].is_ready = false;
            let Some(mut conn) = self.native.slots[index as usize].conn.take() else { continue };
            let left = self.serve(&mut conn, &mut budget, &mut refusal, now);
            self.native.slots[index as usize].conn = Some(conn);
            self.native.dirty.push(index);
            match left {
                Left::Empty => {}
                Left::Held => self.native.make_ready(index),
                Left::More => {
                    self.native.goes_on = true;
                    // The others come first in the next turn.
                    return self.native.make_ready(index);
                }
            }
        }
    }

    /// Takes what one client asks. `refusal`: why this member takes no writes, once that was asked in this turn.
    fn serve(
        &mut self,
        conn: &mut Conn,
        budget: &mut Budget,
        refusal: &mut Option<Option<Failure>>,
        now: Instant,
    ) -> Left {
        let (id, mut open) = (conn.id, None);
        loop {
            let full = conn.is_full(MAX_UNANSWERED) || self.long.is_some();
            let turned_away = conn.turned_away;
            let (progress, request) = match conn.next() {
                Ok(Next::Nothing) => return Left::Empty,
                Ok(Next::Request(..)) if full => return Left::Held,
                Ok(Next::Request(progress, request)) => (progress, request),
                Err(error) => {
                    conn.goodbye(FailureCode::Malformed, format!("{error}. Try: a client of this version"));
                    return Left::Empty;
                }
            };
            let again = turned_away.then_some(&Failure::NotActive { active: None });
            if let Some(failure) = refusal.get_or_insert_with(|| self.refusal(now)).as_ref().or(again) {
                // The rest of the message at once: it would fare no better. Nor may what comes behind it, once this
                // member is active: the client makes what was refused again, which must not overtake.
                conn.turned_away |= matches!(failure, Failure::NotActive { .. });
                let answer = failed(progress.number, progress.left, failure, None);
                conn.answered(progress.left, &Answer::Failed(answer));
                open = None;
                continue;
            }
            match self.take_request(id, &progress, request, &mut open, now) {
                Ok(None) => conn.taken(),
                Ok(Some(reached)) => {
                    conn.answered(1, &Answer::Reached(reached));
                    open = None;
                }
                Err(Failure::Busy { .. }) if StdInstant::now() < progress.deadline => return Left::Held,
                Err(failure) => {
                    conn.answered(1, &Answer::Failed(failed(progress.number, 1, &failure, None)));
                    open = None;
                }
            }
            if !budget.take() {
                return Left::More;
            }
        }
    }

    /// Takes one request: resolved against the tree, numbered by the core, in the frame being filled. Some: it changes
    /// nothing, and that is its answer.
    ///
    /// # Errors
    /// Why it was not taken; nothing was changed.
    fn take_request(
        &mut self,
        conn: ConnId,
        progress: &Progress,
        request: &[u8],
        open: &mut Option<WriteToken>,
        now: Instant,
    ) -> Result<Option<Reached>, Failure> {
        if self.take_usual(conn, progress, request, open, now)?.is_some() {
            return Ok(None);
        }
        let operations = operations(request)?;
        let single = operations.len() == 1;
        let tree = self.applier.tree().snapshot();
        let changes = resolve_all(&tree, operations).map_err(|mut error| match error.errors.pop() {
            Some(only) if single => only.error.into(),
            last => {
                error.errors.extend(last);
                Failure::Malformed(error.to_string())
            }
        })?;
        drop(tree);
        let ack = progress.ack.unwrap_or(self.config.ack.level);
        if changes.is_empty() {
            return Ok(Some(self.nothing_changes(progress.number, ack, now)));
        }
        let mut scratch = std::mem::take(&mut self.native.scratch);
        scratch.clear();
        let taken = self.number(conn, progress, (&changes, &mut scratch), ack, open, now);
        self.native.scratch = scratch;
        taken.map(|()| None)
    }

    /// Takes a request of the usual kind: an object that is there gets other values. One look at the tree serves for all
    /// of it, and nothing is copied but the values. `None`: it is of another kind, or something is in its way.
    ///
    /// # Errors
    /// As [`take_request`](Self::take_request).
    fn take_usual(
        &mut self,
        conn: ConnId,
        progress: &Progress,
        request: &[u8],
        open: &mut Option<WriteToken>,
        now: Instant,
    ) -> Result<Option<()>, Failure> {
        let Some(put) = UsualPut::of_request(request) else { return Ok(None) };
        let Some(key) = put.key().filter(|_| self.journal_takes(request.len())) else { return Ok(None) };
        let ack = progress.ack.unwrap_or(self.config.ack.level);
        let (node, groups, changes) = (&mut self.node, &mut self.native.groups, &mut self.changes);
        let taken = self.applier.tree().with_object(&key, |mut slot| {
            if !permits(slot.object(), &put) {
                return Ok::<_, Failure>(None);
            }
            let (token, admission) = admit(node, groups, (conn, progress), 1, ack, open, now)?;
            let version = Version { epoch: admission.epoch, seq: admission.last };
            slot.put(&put, version);
            changes.note_object(version, admission.last, slot.object());
            Ok(Some(token))
        });
        let Some(token) = taken.transpose()?.flatten() else { return Ok(None) };
        let mut scratch = std::mem::take(&mut self.native.scratch);
        scratch.clear();
        scratch.push_usual(&put);
        // What comes next lies in another frame where one was closed.
        *open = (!self.append_write(&scratch, now)).then_some(token);
        self.native.scratch = scratch;
        Ok(Some(()))
    }

    fn number(
        &mut self,
        conn: ConnId,
        progress: &Progress,
        (changes, encoded): (&[Change], &mut Encoded),
        ack: AckLevel,
        open: &mut Option<WriteToken>,
        now: Instant,
    ) -> Result<(), Failure> {
        for (index, change) in changes.iter().enumerate() {
            encoded.push(index, changes.len(), change)?;
        }
        self.room_for(encoded, changes)?;
        let records = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        let (token, admission) =
            admit(&mut self.node, &mut self.native.groups, (conn, progress), records, ack, open, now)?;
        *open = Some(token);
        if self.take_in(admission, encoded, changes, now) {
            // What comes next lies in another frame.
            *open = None;
        }
        Ok(())
    }

    /// What a request hears that changes nothing.
    fn nothing_changes(&mut self, first: u64, ack: AckLevel, now: Instant) -> Reached {
        let at = self.applier.tree().position();
        let alone = self.node.status(now).is_some_and(|status| status.alone);
        let level = if alone && ack != AckLevel::Async { AckLevel::Local } else { ack };
        let versions = Versions { first: Version { epoch: at.epoch, seq: at.seq }, step: 0 };
        Reached { first, count: 1, level, alone, versions }
    }
}

/// Has the core number a request: as one more of the write that `open` names where it can be, else as one of its own.
///
/// # Errors
/// The core's refusal.
fn admit(
    node: &mut Node,
    groups: &mut Groups,
    (conn, progress): (ConnId, &Progress),
    records: u32,
    ack: AckLevel,
    open: &Option<WriteToken>,
    now: Instant,
) -> Result<(WriteToken, Admission), Failure> {
    let joined = open.filter(|open| groups.may_join(*open, progress, records));
    if let Some((token, admission)) = joined.and_then(|open| Some((open, node.extend(open, records, ack)?))) {
        groups.join(token, records);
        return Ok((token, admission));
    }
    let token = groups.next_token();
    let admission = node.admit(now, token, records, ack).map_err(writes::failure)?;
    groups.begin(conn, progress, Version { epoch: admission.epoch, seq: admission.last });
    Ok((token, admission))
}

/// The operations of a request, checked.
fn operations(request: &[u8]) -> Result<Vec<(u64, Operation)>, Failure> {
    let mut coded = Operations::parse(request).map_err(malformed)?;
    let mut operations = Vec::with_capacity(coded.left());
    while let Some(operation) = coded.take().map_err(malformed)? {
        operations.push((operations.len() as u64 + 1, checked(&operation)?));
    }
    Ok(operations)
}

fn checked(operation: &client::Operation<'_>) -> Result<Operation, Failure> {
    let path = |text: &str| DsPath::parse(text).map_err(|error| Failure::from(EditError::from(error)));
    Ok(match operation {
        client::Operation::Put { path: at, class, replace, attributes } => Operation::Put {
            path: path(at)?,
            class: class.map(str::to_owned),
            replace: *replace,
            attributes: attributes.iter().map(|edit| (edit.name.to_owned(), value_edit(edit))).collect(),
        },
        client::Operation::Remove { path: at, recursive, missing_ok } => {
            Operation::Remove { path: path(at)?, recursive: *recursive, missing_ok: *missing_ok }
        }
    })
}

fn value_edit(edit: &client::AttributeEdit<'_>) -> ValueEdit {
    let values = edit.values.iter().map(|value| match value {
        client::ValueRef::Text(text) => Value::Text((*text).into()),
        client::ValueRef::Bytes(bytes) => Value::Bytes((*bytes).into()),
    });
    match edit.how {
        client::How::Set => ValueEdit::Set(values.collect()),
        client::How::Add => ValueEdit::Add(values.collect()),
        client::How::Remove => ValueEdit::Remove(values.collect()),
        client::How::Unset => ValueEdit::Unset,
    }
}

fn malformed(error: DecodeError) -> Failure {
    match error {
        DecodeError::TooLong { .. } => Failure::TooLarge(error.to_string()),
        _ => Failure::Malformed(error.to_string()),
    }
}

/// A failure as the client hears it.
fn failed(first: u64, count: u32, failure: &Failure, versions: Option<Versions>) -> Failed {
    let code = match failure {
        Failure::Malformed(_) => FailureCode::Malformed,
        Failure::NotFound(_) => FailureCode::NotFound,
        Failure::NotActive { .. } => FailureCode::NotActive,
        Failure::Refused { .. } => FailureCode::Refused,
        Failure::TooLarge(_) => FailureCode::TooLarge,
        Failure::Busy { .. } => FailureCode::Busy,
        Failure::NoRoom { .. } => FailureCode::NoRoom,
        Failure::NotReached { .. } => FailureCode::NotReached,
        Failure::Internal(_) => FailureCode::Internal,
        Failure::Unavailable(_) => FailureCode::Unavailable,
    };
    let active = match failure {
        Failure::NotActive { active } => active.clone().map(|active| (active.name, active.address)),
        _ => None,
    };
    Failed { first, count, code, message: failure.to_string(), active, versions }
}

//! Native requests between admission and answer: consecutive ones of one connection that are one write of the core.
//!
//! Always: a token names one group once; memory is bounded by the connections' limit of unanswered requests. Never: an
//! answer to a group that was given up.

use std::time::Instant as StdInstant;

use ringpair_core::input::WriteToken;
use ringpair_wire::{client::Versions, id::Version};

use super::conn::{ConnId, Progress};

/// Tokens of native groups have this bit, those of other writes do not.
const NATIVE: u64 = 1 << 63;

/// Whether a write came from a native client.
pub(in crate::stream) const fn is_native(token: WriteToken) -> bool {
    token.0 & NATIVE != 0
}

/// Requests with consecutive numbers that reach their level together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    /// Whose.
    pub conn: ConnId,
    /// The number of the first.
    pub first: u64,
    /// How many.
    pub count: u32,
    /// Their versions.
    pub versions: Versions,
    /// When their time is over.
    pub deadline: StdInstant,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    group: Option<Group>,
}

/// The groups that wait.
#[derive(Default)]
pub(super) struct Groups {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// No deadline is before this.
    earliest: Option<StdInstant>,
}

impl Groups {
    /// The token that [`begin`](Self::begin) gives next.
    pub(super) fn next_token(&mut self) -> WriteToken {
        let index = self.free.last().copied().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            let index = self.slots.len() as u32 - 1;
            self.free.push(index);
            index
        });
        self.token(index)
    }

    fn token(&self, index: u32) -> WriteToken {
        let generation = u64::from(self.slots[index as usize].generation & 0x7fff_ffff);
        WriteToken(NATIVE | generation << 32 | u64::from(index))
    }

    /// Begins a group with one request, under the token that was given last.
    pub(super) fn begin(&mut self, conn: ConnId, progress: &Progress, version: Version) {
        let Some(index) = self.free.pop() else { return };
        let versions = Versions { first: version, step: 0 };
        let deadline = progress.deadline;
        self.slots[index as usize].group = Some(Group { conn, first: progress.number, count: 1, versions, deadline });
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
    }

    fn get_mut(&mut self, token: WriteToken) -> Option<&mut Group> {
        let slot = self.slots.get_mut(token.0 as u32 as usize)?;
        let named = u64::from(slot.generation & 0x7fff_ffff) == (token.0 & !NATIVE) >> 32;
        slot.group.as_mut().filter(|_| named)
    }

    /// Whether the next request can belong to this group: the same message, and as many records as those before it.
    pub(super) fn may_join(&mut self, token: WriteToken, progress: &Progress, records: u32) -> bool {
        self.get_mut(token).is_some_and(|group| {
            let even = group.count == 1 || group.versions.step == records;
            even && group.first + u64::from(group.count) == progress.number && group.deadline == progress.deadline
        })
    }

    /// One more request, whose last record is this many after that of the one before.
    pub(super) fn join(&mut self, token: WriteToken, records: u32) {
        if let Some(group) = self.get_mut(token) {
            group.count += 1;
            group.versions.step = records;
        }
    }

    /// Takes a group that is to be answered; `None` where it was given up.
    pub(super) fn take(&mut self, token: WriteToken) -> Option<Group> {
        self.get_mut(token)?;
        self.remove(token.0 as u32)
    }

    fn remove(&mut self, index: u32) -> Option<Group> {
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        slot.group.take()
    }

    /// Takes those whose time is over.
    pub(super) fn expired(&mut self, now: StdInstant) -> Vec<Group> {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return Vec::new();
        }
        let late = |slot: &Slot| slot.group.is_some_and(|group| group.deadline <= now);
        let indexes: Vec<u32> =
            (0..self.slots.len() as u32).filter(|index| late(&self.slots[*index as usize])).collect();
        let expired = indexes.into_iter().filter_map(|index| self.remove(index)).collect();
        self.earliest = self.slots.iter().filter_map(|slot| slot.group.map(|group| group.deadline)).min();
        expired
    }

    /// When to ask for [`expired`](Self::expired) next.
    pub(super) fn earliest(&self) -> Option<StdInstant> {
        self.earliest
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringpair_wire::id::{Epoch, Seq};

    use super::*;

    const CONN: ConnId = ConnId { index: 3, tag: 9 };

    fn progress(number: u64, deadline: StdInstant) -> Progress {
        Progress { number, left: 1, ack: None, deadline }
    }

    fn version(seq: u64) -> Version {
        Version { epoch: Epoch(5), seq: Seq(seq) }
    }

    #[test]
    fn a_group_grows_by_what_is_consecutive_and_even_and_is_taken_once() {
        let (mut groups, at) = (Groups::default(), StdInstant::now());
        let token = groups.next_token();
        assert!(is_native(token) && !is_native(WriteToken(1)));
        groups.begin(CONN, &progress(10, at), version(100));
        assert!(!groups.may_join(token, &progress(12, at), 2), "a gap");
        assert!(!groups.may_join(token, &progress(11, at + Duration::from_secs(1)), 2), "another message");
        assert!(groups.may_join(token, &progress(11, at), 2));
        groups.join(token, 2);
        assert!(!groups.may_join(token, &progress(12, at), 1), "another count of records");
        assert!(groups.may_join(token, &progress(12, at), 2));
        groups.join(token, 2);
        let other = groups.next_token();
        assert_ne!(other, token);
        let group = groups.take(token).unwrap();
        assert_eq!((group.first, group.count, group.versions.at(2)), (10, 3, version(104)));
        assert!(groups.take(token).is_none());
        let next = groups.next_token();
        assert_ne!(next, token, "a place that is used again has another token");
        groups.begin(CONN, &progress(13, at), version(105));
        assert!(groups.take(token).is_none() && groups.take(next).is_some());
    }

    #[test]
    fn what_is_late_is_given_up_and_an_answer_that_comes_then_is_for_nobody() {
        let (mut groups, at) = (Groups::default(), StdInstant::now());
        let later = at + Duration::from_secs(9);
        let tokens: Vec<_> = [(1, at), (2, later)]
            .map(|(number, deadline)| {
                let token = groups.next_token();
                groups.begin(CONN, &progress(number, deadline), version(number));
                token
            })
            .into();
        assert_eq!(groups.earliest(), Some(at));
        let late: Vec<_> = groups.expired(at).iter().map(|group| group.first).collect();
        assert_eq!((late, groups.earliest()), (vec![1], Some(later)));
        assert!(groups.take(tokens[0]).is_none());
        assert!(groups.take(tokens[1]).is_some());
        assert!(groups.expired(later).is_empty());
        assert_eq!(groups.earliest(), None);
    }
}

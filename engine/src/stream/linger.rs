//! `[batch] linger_us`: writes wait a little for company, so that more of them share a frame.
//!
//! Always: they wait before they are numbered, in order, so that the core never hears of anything while a numbered change
//! is in no frame; no longer than the time set, nor for more than a frame takes. Everything but questions about the role
//! ends the waiting. Never: a wait where none is set.

use std::time::{Duration, Instant};

use ringpair_wire::ds::Value;

use crate::{
    api::backend::WriteRequest,
    ds::edit::{Operation, ValueEdit},
};

/// Writes that wait for company.
#[derive(Debug)]
pub(super) struct Linger {
    time: Duration,
    max_bytes: usize,
    max_records: usize,
    waiting: Vec<WriteRequest>,
    bytes: usize,
    records: usize,
    /// When the first of them came.
    since: Option<Instant>,
}

impl Linger {
    /// Waits for `time`, or until about a frame's worth is there.
    pub(super) const fn new(time: Duration, max_bytes: usize, max_records: usize) -> Self {
        Self { time, max_bytes, max_records, waiting: Vec::new(), bytes: 0, records: 0, since: None }
    }

    /// Takes a write; gives it back where nothing waits.
    pub(super) fn push(&mut self, request: WriteRequest, now: Instant) -> Option<WriteRequest> {
        if self.time.is_zero() {
            return Some(request);
        }
        self.records += request.operations.len();
        self.bytes += request.operations.iter().map(|(_, operation)| size(operation)).sum::<usize>();
        self.since.get_or_insert(now);
        self.waiting.push(request);
        None
    }

    /// What has waited long enough, or fills a frame; `all`: everything.
    pub(super) fn take_due(&mut self, now: Instant, all: bool) -> Vec<WriteRequest> {
        let full = self.records >= self.max_records || self.bytes >= self.max_bytes;
        let due = self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.time);
        if !(full || due || all) {
            return Vec::new();
        }
        (self.bytes, self.records, self.since) = (0, 0, None);
        std::mem::take(&mut self.waiting)
    }

    /// How long until something is due.
    pub(super) fn next_timeout(&self, now: Instant) -> Option<Duration> {
        self.since.map(|since| (since + self.time).saturating_duration_since(now))
    }
}

/// About how many bytes the record takes; large values are content, and not in it.
fn size(operation: &Operation) -> usize {
    let Operation::Put { path, attributes, .. } = operation else { return operation.path().as_str().len() };
    let value = |value: &Value| match value {
        Value::Text(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Content { .. } => 40,
    };
    let edit = |edit: &ValueEdit| match edit {
        ValueEdit::Set(values) | ValueEdit::Add(values) | ValueEdit::Remove(values) => values.iter().map(value).sum(),
        ValueEdit::Unset => 0,
    };
    path.as_str().len() + attributes.iter().map(|(name, values)| name.len() + edit(values)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use ringpair_wire::{ds::DsPath, id::AckLevel};
    use tokio::sync::oneshot;

    use super::*;

    fn write(text: &str) -> WriteRequest {
        let path = DsPath::parse("/CONFIG/Users/alice").unwrap();
        let attributes = vec![("Note".to_owned(), ValueEdit::Set(vec![Value::Text(text.into())]))];
        let operation = Operation::Put { path, class: None, replace: false, attributes };
        let (reply, _) = oneshot::channel();
        WriteRequest { operations: vec![(1, operation)], ack: AckLevel::Local, deadline: Instant::now(), reply }
    }

    #[test]
    fn without_a_time_nothing_waits() {
        let mut linger = Linger::new(Duration::ZERO, 65_536, 4096);
        let now = Instant::now();
        assert!(linger.push(write("a"), now).is_some());
        assert_eq!((linger.take_due(now, true).len(), linger.next_timeout(now)), (0, None));
    }

    #[test]
    fn writes_wait_for_the_time_set_or_a_frames_worth() {
        let time = Duration::from_micros(500);
        let mut linger = Linger::new(time, 1000, 4);
        let now = Instant::now();
        let later = now + Duration::from_micros(400);
        assert!(linger.push(write("a"), now).is_none());
        assert!(linger.push(write("b"), later).is_none());
        assert!(linger.take_due(later, false).is_empty());
        assert_eq!(linger.next_timeout(later), Some(Duration::from_micros(100)), "the first one's time counts");
        assert_eq!(linger.take_due(now + time, false).len(), 2);
        assert_eq!(linger.next_timeout(later), None);
        for count in 0..4 {
            assert!(linger.take_due(later, false).is_empty(), "{count} records");
            linger.push(write("c"), later);
        }
        assert_eq!(linger.take_due(later, false).len(), 4, "as many records as a frame takes");
        linger.push(write(&"d".repeat(1000)), later);
        assert_eq!(linger.take_due(later, false).len(), 1, "as many bytes");
        linger.push(write("e"), later);
        assert_eq!(linger.take_due(later, true).len(), 1, "something else is to be done");
    }
}

//! The event log: what happened, in order, readable here and after a restart (OPS-055, OPS-058).
//!
//! Always holds: appending takes a short lock and never touches a disk, so that any thread may; numbers grow by one and
//! go on after a restart. Memory and file are bounded: the oldest events give way. Must never log a value of the tree
//! (OPS-097).

use std::{
    collections::VecDeque,
    fs, io,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Events kept in memory.
pub const KEPT: usize = 4096;
/// The file is turned over at this length; one older file is kept.
const FILE_MAX_BYTES: u64 = 8 << 20;
/// Longer lines of a damaged file are skipped.
const LINE_MAX_BYTES: usize = 64 << 10;

/// One thing that happened.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Event {
    /// Its number: grows by one, filled in by [`EventLog::append`].
    pub seq: u64,
    /// When, RFC 3339 with milliseconds, filled in by [`EventLog::append`] where empty.
    pub at: String,
    /// The epoch it happened in.
    pub epoch: u64,
    /// A stable word: `role`, `evidence`, `decision`, `hook`, `warning`, `connection`, `request`, `start` …
    pub kind: String,
    /// What happened, as a sentence.
    pub text: String,
    /// The parameter or key that this step obeyed, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// The epoch of the switchover that this is evidence for, or of its completion (OPS-058).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switch: Option<u64>,
    /// More, for programs.
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    pub details: serde_json::Value,
}

impl Event {
    /// An event of `kind` in `epoch`.
    #[must_use]
    pub fn new(kind: &str, epoch: u64, text: impl Into<String>) -> Self {
        Self { kind: kind.into(), epoch, text: text.into(), ..Self::default() }
    }

    /// Marks it as part of the story of the switchover into `epoch`.
    #[must_use]
    pub fn of_switch(mut self, epoch: u64) -> Self {
        self.switch = Some(epoch);
        self
    }

    /// Names the parameter that the step obeyed.
    #[must_use]
    pub fn obeying(mut self, parameter: impl Into<String>) -> Self {
        self.parameter = Some(parameter.into());
        self
    }
}

struct Inner {
    events: VecDeque<Arc<Event>>,
    next_seq: u64,
    /// How many of `events`, from the end, are not in the file yet.
    unwritten: usize,
    /// Events that gave way before they were written.
    lost: u64,
}

/// The event log. Cloning shares it.
#[derive(Clone)]
pub struct EventLog {
    inner: Arc<Mutex<Inner>>,
    newest: watch::Sender<u64>,
    file: Option<PathBuf>,
}

impl EventLog {
    /// A log without a file.
    #[must_use]
    pub fn in_memory() -> Self {
        let inner = Inner { events: VecDeque::new(), next_seq: 1, unwritten: 0, lost: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), newest: watch::Sender::new(0), file: None }
    }

    /// A log that goes on in `file`, whose newest events are read back; damaged lines are skipped.
    ///
    /// # Errors
    /// Reading the file, where it exists.
    pub fn open(file: &Path) -> io::Result<Self> {
        let mut log = Self::in_memory();
        log.file = Some(file.to_owned());
        let mut inner = log.lock();
        for path in [older(file), file.to_owned()] {
            let reader = match fs::File::open(path) {
                Ok(file) => BufReader::new(io::Read::take(file, 2 * FILE_MAX_BYTES)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for line in reader.split(b'\n') {
                let line = line?;
                if line.len() > LINE_MAX_BYTES {
                    continue;
                }
                let Ok(event) = serde_json::from_slice::<Event>(&line) else { continue };
                if event.seq < inner.next_seq {
                    continue;
                }
                inner.next_seq = event.seq.saturating_add(1);
                inner.events.push_back(Arc::new(event));
                if inner.events.len() > KEPT {
                    inner.events.pop_front();
                }
            }
        }
        let newest = inner.next_seq - 1;
        drop(inner);
        log.newest.send_replace(newest);
        Ok(log)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an event; any thread may. It is in memory at once and in the file after the next [`EventLog::flush`].
    pub fn append(&self, mut event: Event) -> u64 {
        if event.at.is_empty() {
            event.at = rfc3339(SystemTime::now());
        }
        let mut inner = self.lock();
        event.seq = inner.next_seq;
        inner.next_seq += 1;
        let seq = event.seq;
        inner.events.push_back(Arc::new(event));
        inner.unwritten += 1;
        if inner.events.len() > KEPT {
            inner.events.pop_front();
            if inner.unwritten > inner.events.len() {
                inner.unwritten = inner.events.len();
                inner.lost += 1;
            }
        }
        drop(inner);
        self.newest.send_replace(seq);
        seq
    }

    /// Writes what is new to the file; called by the control thread. Does nothing for a log without a file.
    ///
    /// # Errors
    /// Writing the file; what was not written is tried again next time.
    pub fn flush(&self) -> io::Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let (lines, count) = {
            let inner = self.lock();
            let new = inner.events.iter().skip(inner.events.len() - inner.unwritten);
            let mut lines = Vec::new();
            for event in new {
                serde_json::to_writer(&mut lines, &**event)?;
                lines.push(b'\n');
            }
            (lines, inner.unwritten)
        };
        if lines.is_empty() {
            return Ok(());
        }
        if fs::metadata(path).is_ok_and(|meta| meta.len() > FILE_MAX_BYTES) {
            fs::rename(path, older(path))?;
        }
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
        options.create(true).append(true).open(path)?.write_all(&lines)?;
        let mut inner = self.lock();
        inner.unwritten = inner.unwritten.saturating_sub(count);
        Ok(())
    }

    /// The events after number `after`, oldest first, at most `limit`.
    #[must_use]
    pub fn after(&self, after: u64, limit: usize) -> Vec<Arc<Event>> {
        let inner = self.lock();
        let first = inner.events.partition_point(|event| event.seq <= after);
        inner.events.iter().skip(first).take(limit).cloned().collect()
    }

    /// The newest `limit` events, oldest first.
    #[must_use]
    pub fn newest(&self, limit: usize) -> Vec<Arc<Event>> {
        let inner = self.lock();
        inner.events.iter().skip(inner.events.len().saturating_sub(limit)).cloned().collect()
    }

    /// Changes whenever an event is appended; its value is the newest number.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// How many events gave way before they reached the file.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lock().lost
    }
}

fn older(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// A time as RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(at: SystemTime) -> String {
    use time::macros::format_description;
    let at = time::OffsetDateTime::from(at);
    at.format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_a_restart_and_go_on_counting() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("events.jsonl");
        let log = EventLog::open(&file).expect("opens");
        assert_eq!(log.append(Event::new("start", 1, "one")), 1);
        log.append(Event::new("role", 3, "two").of_switch(3).obeying("PAR-051"));
        log.flush().expect("writes");
        fs::OpenOptions::new().append(true).open(&file).expect("opens").write_all(b"{damaged\n").expect("writes");
        let again = EventLog::open(&file).expect("opens");
        assert_eq!(again.newest(10), log.newest(10));
        assert_eq!(again.append(Event::new("start", 5, "three")), 3);
        again.flush().expect("writes");
        assert_eq!(EventLog::open(&file).expect("opens").after(2, 9).len(), 1, "only what was new is written");
    }

    #[test]
    fn the_oldest_give_way_and_are_counted_when_unwritten() {
        let log = EventLog::in_memory();
        for n in 0..KEPT + 10 {
            log.append(Event::new("x", 1, n.to_string()));
        }
        assert_eq!(log.newest(usize::MAX).len(), KEPT);
        assert_eq!(log.newest(1)[0].seq, KEPT as u64 + 10);
        assert_eq!(log.lost(), 10);
        assert_eq!(*log.subscribe().borrow(), KEPT as u64 + 10);
    }
}

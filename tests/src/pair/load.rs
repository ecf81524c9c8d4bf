//! Writers from outside that record what they were told, so that it can be held against what is served afterwards.
//!
//! Values are numbers that only grow, over all loads of a process: an older load's value never passes for a newer one's.
//! Every eighth change makes an object that nobody writes again: what is lost there is not hidden by a later change.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::request;

/// Every so many changes, one goes to an object of its own.
const ONCE_IN: u64 = 8;

/// The newest acknowledged value of one object, by how far it was said to have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The newest counter acknowledged as durable (or applied) on both members.
    pub durable: u64,
    /// The newest counter acknowledged by an active that was alone.
    pub alone: u64,
    /// The newest counter acknowledged at less than `durable`, as asked, by an active with a backup.
    pub early: u64,
    /// The newest counter ever sent.
    pub sent: u64,
}

/// What all writers recorded, by object path.
pub type Writes = BTreeMap<String, Acknowledged>;

/// Adds what later writers recorded.
pub fn merge(into: &mut Writes, later: Writes) {
    for (path, new) in later {
        let entry = into.entry(path).or_default();
        *entry = Acknowledged {
            durable: entry.durable.max(new.durable),
            alone: entry.alone.max(new.alone),
            early: entry.early.max(new.early),
            sent: entry.sent.max(new.sent),
        };
    }
}

/// Writers that keep changing objects on whichever member is active, until stopped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<SharedRecord>,
    writers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct SharedRecord {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    writes: Mutex<Writes>,
}

/// What one writer does.
#[derive(Clone, Copy, Debug)]
struct Task {
    number: usize,
    objects: u64,
    level: &'static str,
    /// Whether some changes make objects of their own.
    once: bool,
}

impl Load {
    /// Starts `writers` threads, each changing `objects` objects of its own in turn with a counter as value, asking for
    /// `durable`, on whichever of `sockets` accepts.
    #[must_use]
    pub fn start(sockets: [PathBuf; 2], writers: usize, objects: usize) -> Self {
        Self::start_numbered(sockets, 0..writers, objects)
    }

    /// As [`Self::start`], with numbers of the writers that are in no other load: their objects are theirs alone.
    #[must_use]
    pub fn start_numbered(sockets: [PathBuf; 2], writers: Range<usize>, objects: usize) -> Self {
        let tasks = writers.map(|number| Task { number, objects: objects as u64, level: "durable", once: true });
        Self::of(&sockets, tasks)
    }

    /// As [`Self::start`], without objects that are written once: what the members hold does not grow.
    #[must_use]
    pub fn start_steady(sockets: [PathBuf; 2], writers: usize, objects: usize) -> Self {
        let task = |number| Task { number, objects: objects as u64, level: "durable", once: false };
        Self::of(&sockets, (0..writers).map(task))
    }

    /// As [`Self::start`], with two writers more that ask for `local` and `async`.
    #[must_use]
    pub fn start_at_every_level(sockets: [PathBuf; 2], writers: usize, objects: usize) -> Self {
        let levels = std::iter::repeat_n("durable", writers).chain(["local", "async"]);
        let tasks =
            levels.enumerate().map(|(number, level)| Task { number, objects: objects as u64, level, once: true });
        Self::of(&sockets, tasks)
    }

    /// No writers.
    #[must_use]
    pub fn idle() -> Self {
        Self { shared: Arc::default(), writers: Vec::new() }
    }

    fn of(sockets: &[PathBuf; 2], tasks: impl Iterator<Item = Task>) -> Self {
        let shared = Arc::new(SharedRecord::default());
        let start = |task| {
            let (shared, sockets) = (Arc::clone(&shared), sockets.clone());
            std::thread::spawn(move || write(&shared, &sockets, task))
        };
        Self { writers: tasks.map(start).collect(), shared }
    }

    /// What was recorded so far.
    ///
    /// # Panics
    /// When a writer panicked.
    #[must_use]
    pub fn recorded(&self) -> Writes {
        self.shared.writes.lock().expect("no writer panics").clone()
    }

    /// How many acknowledgements there were, of any kind.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Stops the writers and gives what they recorded.
    ///
    /// # Panics
    /// When a writer panicked.
    #[must_use]
    pub fn stop(mut self) -> Writes {
        self.shared.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.join().expect("no writer panics");
        }
        self.recorded()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn write(shared: &SharedRecord, sockets: &[PathBuf; 2], task: Task) {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let Task { number, objects, level, once } = task;
    let mut target = 0;
    for turn in 0_u64.. {
        let counter = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = if once && turn % ONCE_IN == ONCE_IN - 1 {
            format!("/LOAD/w{number}/once{counter}")
        } else {
            format!("/LOAD/w{number}/o{}", turn % objects)
        };
        let body = format!(r#"{{"class":"Load","attributes":{{"Counter":["{counter}"]}}}}"#);
        let note = |change: &dyn Fn(&mut Acknowledged)| {
            change(shared.writes.lock().expect("no writer panics").entry(path.clone()).or_default());
        };
        note(&|entry| entry.sent = counter);
        let url = format!("/v1/ds{path}?ack={level}");
        while !shared.stop.load(Ordering::Relaxed) {
            match request(&sockets[target], "PUT", &url, body.as_bytes(), Duration::from_secs(5)) {
                Ok(answer) if answer.status == 200 => {
                    let json = answer.json();
                    match (json["level"].as_str(), json["alone"].as_bool()) {
                        (Some("durable" | "applied"), Some(false)) => note(&|entry| entry.durable = counter),
                        (Some("local" | "async"), Some(true)) => note(&|entry| entry.alone = counter),
                        (Some(reached), Some(false)) if reached == level => note(&|entry| entry.early = counter),
                        other => panic!("{path} asked for {level} and was told {other:?}"),
                    }
                    shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                // Not active, no answer, or unknown: the same change again, at whoever is active (it is idempotent).
                _ => {
                    target = 1 - target;
                    std::thread::park_timeout(Duration::from_millis(2));
                }
            }
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

//! Writers from outside that record what they were told, so that it can be held against what is served afterwards.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use super::request;

/// The newest acknowledged value of one object, by how far it was said to have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acknowledged {
    /// The newest counter acknowledged as durable (or applied) on both members.
    pub durable: u64,
    /// The newest counter acknowledged by an active that was alone.
    pub alone: u64,
    /// The newest counter ever sent.
    pub sent: u64,
}

/// What all writers recorded, by object path.
pub type Writes = BTreeMap<String, Acknowledged>;

/// Writers that keep changing objects on whichever member is active, until stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    record: Arc<Mutex<Writes>>,
    writers: Vec<JoinHandle<()>>,
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
        let stop = Arc::new(AtomicBool::new(false));
        let record = Arc::new(Mutex::new(Writes::new()));
        let writers = writers.map(|writer| {
            let (stop, record, sockets) = (Arc::clone(&stop), Arc::clone(&record), sockets.clone());
            std::thread::spawn(move || write(&stop, &record, &sockets, writer, objects))
        });
        Self { writers: writers.collect(), stop, record }
    }

    /// What was recorded so far.
    ///
    /// # Panics
    /// When a writer panicked.
    #[must_use]
    pub fn recorded(&self) -> Writes {
        self.record.lock().expect("no writer panics").clone()
    }

    /// How many acknowledgements there were, of any kind.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.recorded().values().map(|written| written.durable.max(written.alone)).sum()
    }

    /// Stops the writers and gives what they recorded.
    ///
    /// # Panics
    /// When a writer panicked.
    #[must_use]
    pub fn stop(mut self) -> Writes {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers.drain(..) {
            writer.join().expect("no writer panics");
        }
        self.recorded()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(stop: &AtomicBool, record: &Mutex<Writes>, sockets: &[PathBuf; 2], writer: usize, objects: usize) {
    let mut target = 0;
    for counter in 1_u64.. {
        let path = format!("/LOAD/w{writer}/o{}", counter % objects as u64);
        let body = format!(r#"{{"class":"Load","attributes":{{"Counter":["{counter}"]}}}}"#);
        let note = |change: &dyn Fn(&mut Acknowledged)| {
            change(record.lock().expect("no writer panics").entry(path.clone()).or_default());
        };
        note(&|entry| entry.sent = counter);
        let url = format!("/v1/ds{path}?ack=durable");
        while !stop.load(Ordering::Relaxed) {
            match request(&sockets[target], "PUT", &url, body.as_bytes(), Duration::from_secs(5)) {
                Ok(answer) if answer.status == 200 => {
                    let json = answer.json();
                    match (json["level"].as_str(), json["alone"].as_bool()) {
                        (Some("durable" | "applied"), Some(false)) => note(&|entry| entry.durable = counter),
                        (Some("local"), Some(true)) => note(&|entry| entry.alone = counter),
                        other => panic!("{path} asked for durable and was told {other:?}"),
                    }
                    break;
                }
                // Not active, no answer, or unknown: the same change again, at whoever is active (it is idempotent).
                _ => {
                    target = 1 - target;
                    std::thread::park_timeout(Duration::from_millis(2));
                }
            }
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

//! Who says to be exclusive, asked from outside without pause, and whether two ever said so for one moment.
//!
//! A claim runs from when the question was asked, the earliest moment that an answer can speak of, until its answer ceases
//! to hold. Always: a claim is never taken to be shorter than what a client may rely on.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Member, request};

/// When a member's claim to be exclusive was asked for, and until when its answer held.
pub type Claim = (Instant, Instant);

/// A thread that asks one member's `/active` until it is stopped.
#[derive(Debug)]
pub struct Witness {
    stop: Arc<AtomicBool>,
    claims: Arc<Mutex<Vec<Claim>>>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Begins to ask `member`, every millisecond.
    ///
    /// # Panics
    /// Its thread, when another one panicked that held its record.
    #[must_use]
    pub fn of(member: &Member) -> Self {
        let (socket, stop) = (member.socket(), Arc::new(AtomicBool::new(false)));
        let claims = Arc::new(Mutex::new(Vec::new()));
        let (stopped, record) = (Arc::clone(&stop), Arc::clone(&claims));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let asked = Instant::now();
                if let Ok(answer) = request(&socket, "GET", "/active", b"", Duration::from_millis(500))
                    && answer.status == 200
                    && answer.json()["exclusive"] == true
                {
                    let valid = Duration::from_millis(answer.json()["valid_for_ms"].as_u64().unwrap_or_default());
                    record.lock().expect("no witness panics").push((asked, asked + valid));
                }
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        Self { stop, claims, thread: Some(thread) }
    }

    /// How many claims there were so far.
    ///
    /// # Panics
    /// When the witness panicked.
    #[must_use]
    pub fn count(&self) -> usize {
        self.claims.lock().expect("no witness panics").len()
    }

    /// Every claim so far.
    ///
    /// # Panics
    /// When the witness panicked.
    #[must_use]
    pub fn so_far(&self) -> Vec<Claim> {
        self.claims.lock().expect("no witness panics").clone()
    }

    /// Stops asking, and gives every claim.
    ///
    /// # Panics
    /// When the witness panicked.
    #[must_use]
    pub fn claims(mut self) -> Vec<Claim> {
        self.end();
        std::mem::take(&mut self.claims.lock().expect("no witness panics"))
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            assert!(thread.join().is_ok() || std::thread::panicking(), "a witness panicked");
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.end();
    }
}

/// Two claims of different members that hold at one moment, if there are any.
#[must_use]
pub fn overlap(a: &[Claim], b: &[Claim]) -> Option<(Claim, Claim)> {
    a.iter().find_map(|x| b.iter().find(|y| x.0 < y.1 && y.0 < x.1).map(|y| (*x, *y)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_overlap_when_they_share_a_moment() {
        let zero = Instant::now();
        let claim = |from: u64, until: u64| (zero + Duration::from_millis(from), zero + Duration::from_millis(until));
        assert_eq!(overlap(&[claim(0, 10)], &[claim(10, 20)]), None);
        assert_eq!(overlap(&[claim(0, 11)], &[claim(10, 20)]), Some((claim(0, 11), claim(10, 20))));
        assert_eq!(overlap(&[claim(12, 13)], &[claim(0, 5), claim(10, 20)]), Some((claim(12, 13), claim(10, 20))));
        assert_eq!(overlap(&[], &[claim(10, 20)]), None);
    }
}

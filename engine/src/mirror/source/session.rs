//! The source's session with the backup: its beginning and end, acknowledgements, barriers.
//!
//! Always: a barrier is reached only when everything changed before it is durable, or named. Never: anything of an earlier
//! session taken for one of this.

use std::time::Duration;

use ringpair_wire::mirror::Problem;

use super::{BarrierStage, MirrorError, MirrorMessage, Session, Source, SourceEvent};
use crate::mirror::MAX_PROBLEMS;

impl Source {
    pub(super) fn restart_session(&mut self) {
        self.reset_session();
        self.session.number += 1;
        let roots = MirrorMessage::Roots {
            epoch: self.options.epoch,
            session: self.session.number,
            roots: self.set.roots().to_vec(),
            exceptions: self.set.exceptions().iter().cloned().collect(),
            devices: self.set.devices(),
        };
        self.push(roots);
    }

    pub(super) fn reset_session(&mut self) {
        let Session { number, connected, initial_done, .. } = std::mem::take(&mut self.session);
        self.session = Session { number, connected, initial_done, ..Session::default() };
        self.dirty.clear();
        self.moves.clear();
        self.stream = None;
        self.in_flight.clear();
        self.in_flight_bytes = 0;
        self.batch.clear();
        self.batch_bytes = 0;
        self.outbox.clear();
        self.outbox_bytes = 0;
        self.unannounced.clear();
        self.announced_through = self.generation;
        self.to_compare.clear();
        self.comparing = None;
        self.links.clear();
        self.search = false;
        self.problems.clear();
        for (_, stage) in &mut self.barriers {
            *stage = BarrierStage::Drain;
        }
        self.abandon_verification("the connection to the backup was lost");
    }

    /// Takes a message of the backup.
    ///
    /// # Errors
    /// [`MirrorError::Protocol`]: the connection is to be closed. [`MirrorError::LowerEpoch`]: this member is not the
    /// active any more.
    pub fn handle_message(&mut self, message: MirrorMessage, now: Duration) -> Result<(), MirrorError> {
        self.now = now;
        match message {
            MirrorMessage::RootsReady { session, instance, problems } => {
                if session == self.session.number && self.session.connected {
                    self.roots_ready(instance, problems);
                }
            }
            MirrorMessage::Applied { generations } => generations.into_iter().for_each(|g| self.applied(g)),
            MirrorMessage::Failed { generation, reason } => self.failed(generation, reason),
            MirrorMessage::ManifestPart { request, entries, problems } => {
                if let Some(comparing) = self.comparing.as_mut().filter(|c| c.request == request) {
                    let sorted = entries.is_sorted_by(|a, b| a.path < b.path);
                    if !sorted || entries.iter().any(|entry| !entry.path.starts_with(&comparing.start)) {
                        return Err(MirrorError::Protocol("a listing that is not in order".into()));
                    }
                    comparing.part(entries, &problems);
                    let verify = comparing.verify;
                    for problem in problems {
                        self.cannot_compare(verify, problem);
                    }
                }
            }
            MirrorMessage::ManifestEnd { request } => {
                if let Some(comparing) = self.comparing.as_mut().filter(|c| c.request == request) {
                    comparing.there_ended();
                }
            }
            MirrorMessage::BarrierDone { id } => self.barrier_done(id),
            MirrorMessage::LowerEpoch { known } => {
                return Err(MirrorError::LowerEpoch { got: self.options.epoch, known });
            }
            _ => return Err(MirrorError::Protocol("an active's message sent to an active".into())),
        }
        Ok(())
    }

    fn roots_ready(&mut self, instance: u64, problems: Vec<Problem>) {
        self.session.ready = true;
        self.session.instance = instance;
        self.session.problems = problems;
        let roots: Vec<_> = self.compared_roots().collect();
        self.to_compare.extend(roots);
    }

    fn applied(&mut self, generation: u64) {
        let Some(change) = self.in_flight.remove(&generation) else { return };
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(change.bytes);
        self.dirty.settle(change.stamp);
        if !change.times_only {
            self.problems.remove(&change.path);
        }
    }

    fn failed(&mut self, generation: u64, reason: String) {
        let Some(change) = self.in_flight.remove(&generation) else {
            // A stream that failed before its end: its mark is still with it.
            if let Some(stream) = self.stream.take_if(|stream| stream.generation == generation) {
                self.stop_stream(&stream);
                self.retry(stream.path, stream.stamp, stream.attempts, reason);
            }
            return;
        };
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(change.bytes);
        tracing::debug!(path = %change.path, %reason, "the backup could not apply a change");
        if let Some((other, is_dir)) = change.other {
            self.compare_soon(change.path, is_dir);
            self.compare_soon(other, is_dir);
            self.dirty.settle(change.stamp);
            return;
        }
        // What is in the way may be the directory that should hold it.
        if let Some(parent) = change.path.parent().filter(|parent| self.set.covering(parent, true).is_some()) {
            self.dirty.mark(parent, true, false, self.now);
        }
        self.retry(change.path, change.stamp, change.attempts, reason);
    }

    /// Tells the backup once everything that the first comparison found is there.
    pub(super) fn announce_synced(&mut self) {
        if self.session.synced || self.search || !self.to_compare.is_empty() || self.comparing.is_some() {
            return;
        }
        let at = *self.session.compared_at.get_or_insert(self.dirty.newest());
        if self.dirty.settled(at) {
            self.session.synced = true;
            self.session.initial_done = Some(self.session.instance);
            self.push(MirrorMessage::Synced { epoch: self.options.epoch });
        }
    }

    pub(super) fn advance_barriers(&mut self) {
        let comparing =
            self.search || !self.to_compare.is_empty() || self.comparing.as_ref().is_some_and(|c| c.verify.is_none());
        let mut asked = Vec::new();
        for (id, stage) in &mut self.barriers {
            // A file with unknown names was met: what was written through one of them is found by comparing.
            if matches!(stage, BarrierStage::Drain) || (self.search && matches!(stage, BarrierStage::Settle(_))) {
                *stage = BarrierStage::Compare;
            }
            if matches!(stage, BarrierStage::Compare) && self.session.ready && !comparing {
                *stage = BarrierStage::Settle(self.dirty.newest());
            }
            if let BarrierStage::Settle(stamp) = *stage
                && self.dirty.settled(stamp)
            {
                *stage = BarrierStage::Asked;
                asked.push(*id);
            }
        }
        for id in asked {
            self.push(MirrorMessage::Barrier { epoch: self.options.epoch, id });
        }
    }

    fn barrier_done(&mut self, id: u64) {
        let asked = |(other, stage): &(u64, BarrierStage)| *other == id && matches!(stage, BarrierStage::Asked);
        let Some(at) = self.barriers.iter().position(asked) else { return };
        self.barriers.remove(at);
        let unreplicated = self.named_problems().take(MAX_PROBLEMS).collect();
        self.events.push_back(SourceEvent::BarrierDone { id, unreplicated });
    }
}

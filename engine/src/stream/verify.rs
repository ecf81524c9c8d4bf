//! `verify`: both trees and both mirrors compared, in the bulk threads, while everything goes on.
//!
//! Always: what changes while it is compared is looked at three times, then listed as changing, not as different.

use std::time::{Duration, Instant as StdInstant};

use ringpair_core::Instant;
use ringpair_wire::control::Role;

use super::Stream;
use crate::{
    api::backend::{Difference, Failure, Reply, VerifyReport},
    bulk::link::{BulkCommand, DsVerdict, ResyncPurpose},
    mirror::MirrorDifferences,
};

/// How often what changes is looked at.
const TRIES: u32 = 3;
/// How many differences are listed at most.
const LISTED: usize = 1000;

#[derive(Debug)]
struct Run {
    id: u64,
    reply: Reply<VerifyReport>,
    deadline: StdInstant,
    started: StdInstant,
    tries: u32,
    objects: Option<DsVerdict>,
    files: Option<MirrorDifferences>,
}

/// The comparison under way: one at a time.
#[derive(Debug, Default)]
pub(super) struct Verifier(Option<Run>);

impl Verifier {
    /// Gives up a comparison that is late.
    pub(super) fn expire(&mut self, now: StdInstant) {
        if let Some(run) = self.0.take_if(|run| run.deadline <= now) {
            let message = "the comparison did not end in time".into();
            let _ = run.reply.send(Err(Failure::NotReached { version: None, message }));
        }
    }

    /// How long until it is late.
    pub(super) fn next_timeout(&self, now: StdInstant) -> Option<Duration> {
        self.0.as_ref().map(|run| run.deadline.saturating_duration_since(now))
    }
}

impl Stream {
    pub(super) fn verify(&mut self, deep: bool, deadline: StdInstant, reply: Reply<VerifyReport>, now: Instant) {
        let Some(status) = self.node.status(now) else { return };
        let refused = if status.role != Role::Active {
            Some(Failure::NotActive { active: self.active_member(status.peer.role) })
        } else if status.peer.role != Role::Backup || !status.peer.reachable {
            Some(Failure::refused("alone", "there is no backup to compare with. Try: ringpair status"))
        } else if self.verifier.0.is_some() {
            Some(Failure::refused("busy", "another comparison is under way. Try: again when it has ended"))
        } else {
            None
        };
        if let Some(failure) = refused {
            let _ = reply.send(Err(failure));
            return;
        }
        let id = self.pending.number();
        let started = StdInstant::now();
        self.verifier.0 = Some(Run { id, reply, deadline, started, tries: 1, objects: None, files: None });
        self.compare_trees(id);
        self.bulk.send(BulkCommand::VerifyFiles { id, deep });
    }

    fn compare_trees(&mut self, id: u64) {
        let own = self.applier.tree().snapshot();
        self.bulk.send(BulkCommand::Resync { purpose: ResyncPurpose::Verify(id), own });
    }

    /// A comparison of trees ended.
    pub(super) fn ds_verified(&mut self, id: u64, result: Result<DsVerdict, String>) {
        let Some(run) = self.verifier.0.as_mut().filter(|run| run.id == id) else { return };
        match result {
            Err(why) => {
                if let Some(run) = self.verifier.0.take() {
                    let _ = run.reply.send(Err(Failure::Internal(format!("the trees could not be compared: {why}"))));
                }
            }
            Ok(verdict) if !verdict.changing.is_empty() && run.tries < TRIES => {
                run.tries += 1;
                self.compare_trees(id);
            }
            Ok(verdict) => {
                run.objects = Some(verdict);
                self.verified();
            }
        }
    }

    /// A comparison of files ended.
    pub(super) fn files_verified(&mut self, id: u64, differences: MirrorDifferences) {
        if let Some(run) = self.verifier.0.as_mut().filter(|run| run.id == id) {
            run.files = Some(differences);
            self.verified();
        }
    }

    fn verified(&mut self) {
        let Some(run) = self.verifier.0.take_if(|run| run.objects.is_some() && run.files.is_some()) else { return };
        let (objects, files) = (run.objects.unwrap_or_default(), run.files.unwrap_or_default());
        let mut differences = objects.differences;
        differences.extend(files.different.iter().chain(&files.problems).map(|problem| Difference {
            kind: "file".into(),
            path: problem.path.to_string(),
            what: problem.reason.clone(),
        }));
        let mut changing = objects.changing;
        changing.extend(files.changing.iter().map(ToString::to_string));
        let truncated = files.more > 0 || differences.len() > LISTED || changing.len() > LISTED;
        differences.truncate(LISTED);
        changing.truncate(LISTED);
        let report = VerifyReport {
            equal: differences.is_empty() && changing.is_empty() && !truncated,
            objects: objects.compared,
            files: files.compared,
            differences,
            changing,
            held_back: Vec::new(),
            truncated,
            took_ms: u64::try_from(run.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        };
        let _ = run.reply.send(Ok(report));
    }
}

//! What the bulk thread is told, and what it says.
//!
//! Its role follows the core's: source while active, sink while backup, idle otherwise. Never: an order that the core
//! has not decided.

use ringpair_core::{Completion, Instant, status::Status};
use ringpair_wire::{
    codec::Codec,
    control::Role,
    id::{Epoch, Position},
    lane::MessageKind,
};

use super::{BulkTold, Stream, requests::parameters_path};
use crate::{
    api::events::Event,
    bulk::{
        archive::file_archive,
        link::{BulkCommand, BulkEvent, Traffic},
    },
    ds::TreeSnapshot,
    mirror::{ArchiveFiles, MAX_PROBLEMS, MirrorMessage, MirrorState, MirrorStatus, SinkReport},
};

/// How many bytes of announcements may wait on the ds lane.
const ANNOUNCE_BELOW_BYTES: usize = 4 << 20;

impl Stream {
    /// Tells the bulk thread what has changed of role, roots and lane. A role stands before its lane does, and goes after
    /// it: what the peer says on a lane is for nobody else.
    pub(super) fn direct_bulk(&mut self, status: &Status) {
        let role = if status.role == Role::Backup && !status.takes_files { Role::None } else { status.role };
        let told = (role, status.epoch) == (self.bulk_told.role, self.bulk_told.epoch);
        if !told && role != Role::None {
            self.tell_role(role, status.epoch);
        }
        let lane = self.lanes.data_path().filter(|_| role != Role::None).map(|path| (path, role == Role::Backup));
        if lane != self.bulk_told.lane {
            let (path, dial) = lane.map_or((None, false), |(path, dial)| (Some(path), dial));
            self.bulk.send(BulkCommand::Lane { path, dial });
            self.bulk_told.lane = lane;
        }
        if !told && role == Role::None {
            self.tell_role(role, status.epoch);
        }
        self.parameters_changed();
    }

    fn tell_role(&mut self, role: Role, epoch: Epoch) {
        let roots = if role == Role::Active { self.roots() } else { self.bulk_told.roots.clone() };
        self.bulk.send(match role {
            Role::Active => BulkCommand::BecomeActive { epoch, roots: roots.clone() },
            Role::Backup => BulkCommand::BecomeBackup { epoch, archive: self.file_archive(epoch) },
            Role::None => BulkCommand::BecomeIdle,
        });
        self.bulk_told = BulkTold { role, epoch, roots, lane: self.bulk_told.lane };
        self.parameters_at = self.applier.tree().snapshot().get(&parameters_path()).cloned();
    }

    /// Where files go before the mirror overwrites them, as long as what this member had alone is not archived.
    fn file_archive(&self, epoch: Epoch) -> Option<Box<dyn ArchiveFiles>> {
        let awaited = self.archive.awaited_files().unwrap_or_else(|error| {
            tracing::error!(%error, "files are archived before they are overwritten, in case they have to be");
            Some(epoch)
        });
        awaited.map(|epoch| file_archive(self.archive.clone(), epoch))
    }

    /// Tells the bulk thread how long the data path takes, while anything comes over its lane or its peer is held back.
    pub(super) fn tell_delay(&mut self, status: &Status, now: Instant) {
        let Some(path) = self.lanes.data_path() else { return };
        let rtt = status.paths.get(path as usize).and_then(|path| path.rtt);
        let Some(delay) = rtt.and_then(|rtt| self.path_delay.observe(path, rtt, now)) else { return };
        let Traffic { received_bytes, credit_bytes, .. } = self.bulk_traffic;
        if self.bulk_socket.is_some() && (received_bytes != self.delay_told_at_bytes || credit_bytes.is_some()) {
            self.delay_told_at_bytes = received_bytes;
            self.bulk.send(BulkCommand::Delay(delay));
        }
    }

    /// CustomMirrorDir takes effect at once (PAR-007, REP-031).
    fn parameters_changed(&mut self) {
        let position = self.applier.tree().position();
        if std::mem::replace(&mut self.parameters_seen, position) == position {
            return;
        }
        let entry = self.applier.tree().snapshot().get(&parameters_path()).cloned();
        let same = match (&entry, &self.parameters_at) {
            (Some(new), Some(old)) => std::sync::Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        self.parameters_at = entry;
        let roots = self.roots();
        if roots != self.bulk_told.roots {
            if self.bulk_told.role == Role::Active {
                self.bulk.send(BulkCommand::Roots(roots.clone()));
            }
            self.bulk_told.roots = roots;
        }
    }

    /// Takes what the bulk thread says, as far as the ds lane has room for announcements.
    pub(super) fn hear_bulk(&mut self, now: Instant) {
        loop {
            if let Some(conn) = self.lanes.conn(ringpair_core::input::Channel::Ds)
                && self.transport.queued_bytes(conn) > ANNOUNCE_BELOW_BYTES
            {
                return;
            }
            let Some(event) = self.bulk.receive() else { return };
            self.bulk_event(event, now);
        }
    }

    fn bulk_event(&mut self, event: BulkEvent, now: Instant) {
        match event {
            BulkEvent::Announce(message) => self.announce(&message),
            BulkEvent::Settled(work, report) => {
                self.pending.bulk.settle = None;
                let (renamed, missing) = (report.finished, report.missing_count);
                self.files_settled(&report);
                self.node.handle_completion(now, Completion::FilesSettled { work, renamed, missing });
            }
            BulkEvent::BarrierDone(id, unreplicated) => self.barrier_done(id, unreplicated, now),
            BulkEvent::FilesVerified(id, differences) => self.files_verified(id, *differences),
            BulkEvent::DsVerified(id, result) => self.ds_verified(id, result),
            BulkEvent::ContentStored(id) => self.content_stored(id, now),
            BulkEvent::ContentGone(id) => self.content_gone(id, now),
            BulkEvent::ContentsDamaged => self.contents.look_again(),
            BulkEvent::SnapshotWanted => {
                self.snapshot_wanted = Some(self.applier.tree().snapshot());
                self.serve_snapshot(self.journal.synced());
            }
            BulkEvent::Staged(work, staged) => self.staged(work, &staged),
            BulkEvent::ResyncFailed(work, why) => {
                if self.resync.as_ref().is_some_and(|run| run.is(work)) {
                    self.resync_failed(&why, now);
                }
            }
            BulkEvent::Mirror(status) => self.mirror_status(*status),
            BulkEvent::MirrorFailed(why) => self.warn("mirror", why),
            BulkEvent::Lane(socket) => {
                self.bulk_dscp = socket.as_ref().map(|info| info.dscp.map(|dscp| dscp.number()).unwrap_or_default());
                if let Some(info) = &socket {
                    self.check_socket(info);
                }
                self.bulk_socket = socket;
            }
            BulkEvent::LaneRefused(why) => self.lane_refused(&format!("bulk: {why}")),
            BulkEvent::Traffic(traffic) => {
                self.bulk_traffic = traffic;
                if let Some(socket) = &mut self.bulk_socket {
                    socket.zero_copy = traffic.zero_copy;
                }
            }
        }
    }

    fn announce(&mut self, message: &MirrorMessage) {
        // Without a ds lane the announcement is void: the next session compares everything.
        if let Some(conn) = self.lanes.conn(ringpair_core::input::Channel::Ds) {
            let bytes = message.to_bytes();
            if let Err(error) = self.transport.send(conn, MessageKind::Announce, &[&bytes]) {
                tracing::warn!(%error, "an announcement could not be queued; the ds lane is closed");
                self.transport.close(conn, std::time::Instant::now());
            }
        }
    }

    fn mirror_status(&mut self, status: MirrorStatus) {
        let compared = status.state == MirrorState::Current && self.mirror.state != MirrorState::Current;
        self.mirror = status;
        if compared && self.bulk_told.role == Role::Backup {
            // What the comparison overwrote may be in the archive.
            self.look_at_divergence();
        }
    }

    fn files_settled(&mut self, report: &SinkReport) {
        if report.missing_count == 0 && report.complete {
            return;
        }
        let named = report.missing.iter().take(MAX_PROBLEMS).map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let whole = if report.complete { "" } else { "the first synchronization of files had not ended; " };
        let text = format!("{whole}{} announced files are missing or stale: {named}", report.missing_count);
        self.warn("files-missing", text.clone());
        self.events.append(Event::new("promotion", self.node.epoch().0, text).of_switch(self.node.epoch().0));
    }

    /// Gives the bulk thread the snapshot that it wants, once its position is synced here.
    pub(super) fn serve_snapshot(&mut self, synced: Position) {
        // The wish may come before the core has decided to serve: it waits for that.
        let serves = self.serve_resync || self.bulk_told.role == Role::Backup;
        let ready = |wanted: &mut TreeSnapshot| serves && wanted.position().seq <= synced.seq;
        if let Some(snapshot) = self.snapshot_wanted.take_if(ready) {
            if self.serve_resync {
                self.contents.serves(&snapshot);
            }
            self.bulk.send(BulkCommand::Serve(snapshot));
        }
    }
}

//! What the loop shows of itself: the status document, warnings, counters, and changes for those who watch.
//!
//! Always: published at most every [`super::PUBLISH_EVERY`], and at once when the role changes.

use ringpair_core::{
    Instant,
    status::{PathStatus, Status},
};
use ringpair_wire::{control::Role, lane::PathKind};

use super::{Stream, report};
use crate::{
    api::{events::Event, status::Warning},
    transport::ConnInfo,
};

impl Stream {
    pub(super) fn role_changed(&self) -> bool {
        self.told_supervisor.is_some_and(|told| {
            let published = self.status.read();
            published.epoch != told.epoch.0
                || (published.role == crate::api::status::Role::Active) != (told.role == Role::Active)
        })
    }

    /// Watchers get what has become durable.
    pub(super) fn release_changes(&mut self, status: &Status) {
        if !self.changes.is_watched() {
            return;
        }
        let [_, synced, applied] = status.local;
        let through = match status.role {
            Role::Active if !status.alone => status.peer.durable,
            _ => synced.min(applied),
        };
        self.changes.release(through, report::watch_level(status.alone), status.alone);
    }

    /// Notes a warning of the shell, in place of an earlier one of the same code.
    pub(super) fn warn(&mut self, code: &str, text: String) {
        if !self.warnings.iter().any(|warning| warning.code == code && warning.text == text) {
            self.unwarn(code);
            self.events.append(Event::new("warning", self.node.epoch().0, format!("{code}: {text}")));
            self.warnings.push(Warning { code: code.into(), text });
        }
    }

    pub(super) fn unwarn(&mut self, code: &str) {
        self.warnings.retain(|warning| warning.code != code);
    }

    /// Publishes the status document.
    pub(super) fn publish(&mut self, core: &Status, now: Instant) {
        self.published = now;
        self.tell_delay(core, now);
        self.compare_marks();
        if core.position.seq > core.peer.durable && core.role == Role::Active {
            self.lagging_since.get_or_insert(now);
        } else {
            self.lagging_since = None;
        }
        let lag_ms =
            self.lagging_since.map_or(0, |since| u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX));
        let blockers = match core.role {
            Role::Active => report::file_blockers(&self.mirror),
            _ => Vec::new(),
        };
        let parts = report::Parts {
            config: &self.config,
            core: &self.core,
            transport: &self.transport,
            bulk_lane: self.bulk_socket.as_deref(),
            bulk_credit_bytes: self.bulk_traffic.credit_bytes,
            mirror: &self.mirror,
            io: &self.io,
            divergence: &self.divergence,
            mode: self.persisted.mode.mode,
            last_switch: self.persisted.last_switch.as_ref(),
            warnings: &self.warnings,
            blockers,
            lag_ms,
            counters: self.counters(core),
        };
        self.status.publish(report::status(core, self.node.switch_blockers(now), &parts));
    }

    /// Warns of what a new lane's socket refused of its options.
    pub(super) fn check_socket(&mut self, info: &ConnInfo) {
        let code = format!("{}-lane-options", info.lane.name());
        let refused = self.transport.options(info.lane).refused(info);
        if refused.is_empty() {
            self.unwarn(&code);
        } else {
            let lane = info.lane.name();
            let text = format!("the kernel did not take an option of the {lane} lane: {refused}. Try: [transport]");
            self.warn(&code, text);
        }
    }

    /// Warns where heartbeats do not arrive with the mark that this member gives its own, and probes of the other lanes
    /// not with the one that they left with (OPS-197).
    fn compare_marks(&mut self) {
        self.compare_probes();
        let changed = PathKind::ALL.into_iter().filter_map(|path| {
            let (sent, arrived) = self.transport.sent_and_arrived_marks(path).filter(|(sent, came)| sent != came)?;
            Some(format!("{}: {arrived}, not {sent}", path.name()))
        });
        let changed: Vec<String> = changed.collect();
        if changed.is_empty() {
            self.unwarn("marks-changed");
        } else {
            let text = format!(
                "heartbeats of the peer arrive with another mark than this member gives its own ({}). Try: the same \
                 [transport] dscp on both; else the path changes marks",
                changed.join("; ")
            );
            self.warn("marks-changed", text);
        }
    }

    fn compare_probes(&mut self) {
        let changed: Vec<String> = PathKind::ALL
            .into_iter()
            .flat_map(|path| self.transport.probed_marks(path).map(move |probed| (path, probed)))
            .filter(|(_, (_, sent, arrived))| sent != arrived)
            .map(|(path, (lane, sent, arrived))| format!("{} on {}: {arrived}, not {sent}", lane.name(), path.name()))
            .collect();
        if changed.is_empty() {
            return self.unwarn("lane-marks-changed");
        }
        let text = format!(
            "datagrams of the peer arrive with another mark than they left with ({}), so the lanes' packets will, too. \
             Try: the switches and routers between the members",
            changed.join("; ")
        );
        self.warn("lane-marks-changed", text);
    }

    fn counters(&self, core: &Status) -> std::collections::BTreeMap<String, u64> {
        let stats = self.transport.stats();
        let (bulk, ds, closed) = (self.bulk_traffic, self.writes.compression(), self.writes.closed());
        let beats = |of: fn(&PathStatus) -> u64| core.paths.iter().map(of).sum();
        [
            ("strangers_refused", stats.refused_tls + stats.refused_hello + stats.strangers_oversize),
            ("strangers_gave_way", stats.strangers_gave_way),
            ("strangers_timed_out", stats.strangers_timed_out),
            ("lane_received_bytes", stats.received_bytes),
            ("lane_sent_bytes", stats.sent_bytes),
            ("heartbeats_sent", stats.heartbeats_sent),
            ("heartbeats_received", stats.heartbeats_received),
            ("heartbeats_answered", beats(|path| path.answered)),
            ("heartbeats_missed", beats(|path| path.missed)),
            ("mark_probes_sent", stats.probes_sent),
            ("mark_probes_received", stats.probes_received),
            ("heartbeats_refused", stats.heartbeats_forged + stats.heartbeats_replayed + stats.heartbeats_unknown_key),
            ("bulk_lane_received_bytes", bulk.received_bytes),
            ("bulk_lane_sent_bytes", bulk.sent_bytes),
            ("bulk_compression_plain_bytes", bulk.compression.plain_bytes),
            ("bulk_compression_stored_bytes", bulk.compression.stored_bytes),
            ("ds_frames", closed.frames),
            ("ds_frame_records", closed.records),
            ("ds_compression_plain_bytes", ds.plain_bytes),
            ("ds_compression_stored_bytes", ds.stored_bytes),
            ("mirror_files", self.mirror.files_moved),
            ("mirror_bytes", self.mirror.bytes_moved),
            ("mirror_overflows", self.mirror.overflows),
            ("mirror_rescans", self.mirror.rescans),
            ("journal_bytes", self.journal.bytes()),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect()
    }
}

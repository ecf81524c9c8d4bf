//! `GET /metrics`: the status document and its counters as Prometheus text.
//!
//! Always holds: names begin with `ringpair_`, units are base units, counters end in `_total`; a label is escaped.

use std::fmt::Write;

use super::{
    backend::RoleAnswer,
    status::{MirrorState, Role, Status},
};

/// The metrics of a member.
#[must_use]
pub fn render(status: &Status, role: &RoleAnswer) -> String {
    let mut out = Out(String::with_capacity(4096));
    let s = status;
    let on = |value: bool| f64::from(u8::from(value));
    let info = [("pair", s.pair.as_str()), ("member", &s.member), ("name", &s.name), ("release", &s.release)];
    out.gauge("info", "What this member is.", &[(&info, 1.0)]);
    let roles = [Role::Active, Role::Backup, Role::None];
    let labels = roles.map(|each| [("role", each.name())]);
    let rows: Vec<(&[_], f64)> =
        labels.iter().zip(roles).map(|(label, each)| (&label[..], on(each == role.role))).collect();
    out.gauge("role", "1 for the role that the member has.", &rows);
    out.one("exclusive", "Whether no other member can be active.", on(role.exclusive));
    out.one("lease_valid_seconds", "How long exclusive holds.", seconds(role.valid_for_ms));
    out.one("ready", "Whether the service has commenced.", on(role.ready));
    out.one("epoch", "The epoch.", count(role.epoch));
    out.one("alone", "Whether the active works without a caught-up backup.", on(s.alone));
    out.one("complete", "Whether the state is whole.", on(s.complete));
    out.one("peer_reachable", "Whether the peer is heard.", on(s.peer.reachable));
    let paths = [("main", &s.connections.main), ("aux", &s.connections.aux)];
    let labels = paths.map(|(name, _)| [("path", name)]);
    let rows: Vec<(&[_], f64)> = labels.iter().zip(paths).map(|(label, (_, c))| (&label[..], on(c.up))).collect();
    out.gauge("connection_up", "Whether the connection is up.", &rows);
    let rows: Vec<(&[_], f64)> = labels
        .iter()
        .zip(paths)
        .filter_map(|(label, (_, c))| c.rtt_us.map(|rtt| (&label[..], count(rtt) / 1e6)))
        .collect();
    out.gauge("connection_rtt_seconds", "Round trip of heartbeats.", &rows);
    out.one("ds_seq", "The newest sequence number applied.", count(s.ds.seq));
    out.one("ds_peer_durable_seq", "The newest that is synced on the peer.", count(s.ds.peer_durable_seq));
    out.one("ds_lag_records", "Records on the way.", count(s.ds.lag_records));
    out.one("ds_lag_seconds", "The age of the oldest record on the way.", seconds(s.ds.lag_ms));
    out.one("mirror_failed", "Whether mirroring has failed.", on(s.mirror.state == MirrorState::Failed));
    out.one("mirror_pending_files", "Files on the way.", count(s.mirror.pending_files));
    out.one("mirror_pending_bytes", "Bytes on the way.", count(s.mirror.pending_bytes));
    out.one("mirror_files", "Files mirrored.", count(s.mirror.files));
    out.one("mirror_bytes", "Bytes mirrored.", count(s.mirror.bytes));
    if let Some(module) = &s.module {
        out.one("module_up", "Whether the module answers.", on(module.up));
        out.total("module_restarts", count(module.restarts));
    }
    out.one("warnings", "How many warnings the status shows.", count(s.warnings.len() as u64));
    out.one("switch_blockers", "How many reasons there are not to switch now.", count(s.switch_blockers.len() as u64));
    out.one("divergence_records", "Records in the divergence archive.", count(s.divergence.records));
    out.one("divergence_files", "Files in the divergence archive.", count(s.divergence.files));
    out.one("divergence_bytes", "Bytes in the divergence archive.", count(s.divergence.bytes));
    for (name, value) in &s.counters {
        out.total(name, count(*value));
    }
    out.0
}

struct Out(String);

impl Out {
    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.gauge(name, help, &[(&[], value)]);
    }

    fn gauge(&mut self, name: &str, help: &str, rows: &[(&[(&str, &str)], f64)]) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "# HELP ringpair_{name} {help}\n# TYPE ringpair_{name} gauge");
        for (labels, value) in rows {
            let labels: Vec<String> =
                labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escape(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.0, "ringpair_{name}{labels} {value}");
        }
    }

    fn total(&mut self, name: &str, value: f64) {
        let clean = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' };
        let name: String = name.chars().map(clean).collect();
        let _ = writeln!(self.0, "# TYPE ringpair_{name}_total counter\nringpair_{name}_total {value}");
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(ms: u64) -> f64 {
    count(ms) / 1e3
}

/// Exact up to 2^53, which no count here reaches.
#[expect(clippy::cast_precision_loss, reason = "metrics are floating point by definition")]
fn count(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_units_and_labels() {
        let mut status = Status { name: "a\"b".into(), ..Status::default() };
        status.connections.main.rtt_us = Some(250);
        status.counters.insert("records-sent".into(), 7);
        let role = RoleAnswer { role: Role::Active, epoch: 65_537, exclusive: true, valid_for_ms: 250, ready: true };
        let text = render(&status, &role);
        for line in [
            "ringpair_info{pair=\"\",member=\"\",name=\"a\\\"b\",release=\"\"} 1",
            "ringpair_role{role=\"active\"} 1",
            "ringpair_role{role=\"backup\"} 0",
            "ringpair_lease_valid_seconds 0.25",
            "ringpair_connection_rtt_seconds{path=\"main\"} 0.00025",
            "ringpair_records_sent_total 7",
            "ringpair_epoch 65537",
        ] {
            assert!(text.lines().any(|is| is == line), "{line} in\n{text}");
        }
        assert!(text.lines().all(|line| line.starts_with("ringpair_") || line.starts_with("# ")));
    }
}

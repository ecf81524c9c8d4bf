//! `ringpair status`: the status document, compact and aligned.

use super::{
    args::Shared,
    client::{CliError, Client},
    print, print_json, printable, table,
};
use crate::api::status::{ConnectionStatus, Mode, Role, Status};

pub(super) async fn status(shared: &Shared, client: &Client) -> Result<(), CliError> {
    let document = client.get("/v1/status").await?;
    if shared.json {
        return print_json(&document);
    }
    let status: Status = serde_json::from_value(document)
        .map_err(|error| CliError::Failed(format!("the member's status is of another release: {error}")))?;
    print(&render(&status))
}

/// The word that a document uses for a value.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// A number of bytes as a person reads it.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = (0..units.len() - 1).take_while(|unit| count >> (10 * (unit + 1)) > 0).count();
    if unit == 0 {
        return format!("{count} B");
    }
    let tenths = (u128::from(count) * 10) >> (10 * unit);
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

fn connection(connection: &ConnectionStatus) -> String {
    let mut text = if connection.up { "up".to_owned() } else { "down".to_owned() };
    if let Some(rtt) = connection.rtt_us {
        text.push_str(&format!(", round trip {}.{:03} ms", rtt / 1000, rtt % 1000));
    }
    if let Some(dscp) = connection.dscp {
        text.push_str(&format!(", DSCP {dscp}"));
    }
    text
}

/// The whole text.
pub(super) fn render(s: &Status) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut row = |name: &str, text: String| rows.push(vec![name.to_owned(), printable(&text)]);
    let alone = if s.alone { ", ALONE" } else { "" };
    row("member", format!("{} ({}) of pair {}", s.name, s.member, s.pair));
    row("role", format!("{}{alone} (state {}, epoch {})", s.role.name(), word(&s.state), s.epoch));
    row("mode", format!("{} (pair {})", word(&s.mode), word(&s.pair_mode)));
    if !s.release.is_empty() {
        row("release", s.release.clone());
    }
    let reachable = if s.peer.reachable { "reachable" } else { "NOT REACHABLE" };
    row("peer", format!("{} {} (state {}), {reachable}", s.peer.name, s.peer.role.name(), word(&s.peer.state)));
    row("main", connection(&s.connections.main));
    row("aux", connection(&s.connections.aux));
    let lag = if s.ds.lag_records == 0 {
        "current".to_owned()
    } else {
        format!("{} records and {} ms behind", s.ds.lag_records, s.ds.lag_ms)
    };
    let durable =
        if s.role == Role::Active { format!(", peer durable at {}", s.ds.peer_durable_seq) } else { String::new() };
    row("ds", format!("{lag}, seq {}{durable}, {} objects", s.ds.seq, s.ds.objects));
    let m = &s.mirror;
    let pending = if m.pending_files == 0 {
        String::new()
    } else {
        format!(", {} files ({}) on the way", m.pending_files, bytes(m.pending_bytes))
    };
    row("mirror", format!("{}, {} files, {}{pending}", word(&m.state), m.files, bytes(m.bytes)));
    if let Some(error) = &m.last_error {
        row("", error.clone());
    }
    if let Some(module) = &s.module {
        let pid = module.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
        let up = if module.up { "up" } else { "DOWN" };
        row("module", format!("{} {up}{pid}, {} restarts", module.name, module.restarts));
    }
    let d = &s.detection;
    let right = match (s.role, d.right_out) {
        (Role::Active, true) => format!("right out, lease {} ms, {} ms left", d.lease_ms, d.lease_left_ms),
        (Role::Active, false) => "right not out".to_owned(),
        (_, true) => "right held".to_owned(),
        (_, false) => "no right".to_owned(),
    };
    row("detection", format!("{}, {right}", d.profile));
    row("io", format!("{} ({})", s.io.driver, s.io.why));
    if !s.security.is_empty() {
        row("security", s.security.clone());
    }
    if !s.complete {
        row("complete", "NO: a resynchronization is unfinished".to_owned());
    }
    if s.divergence != Default::default() {
        let v = &s.divergence;
        row(
            "divergence",
            format!(
                "{} records, {} files, {} of epoch {}. Try: ringpair divergence ls",
                v.records,
                v.files,
                bytes(v.bytes),
                v.epoch
            ),
        );
    }
    match &s.last_switch {
        None => row("last switch", "none".to_owned()),
        Some(l) => {
            let how = if l.controlled { "controlled" } else { "automatic" };
            row(
                "last switch",
                format!(
                    "{} {} -> {}, {how}: {} (detected in {} ms, promoted in {} ms)",
                    l.at, l.from, l.to, l.reason, l.detect_ms, l.promote_ms
                ),
            );
        }
    }
    if s.mode == Mode::Manual {
        row("notice", "manual mode: no automatic switchover (OPS-033)".to_owned());
    }
    for blocker in &s.switch_blockers {
        row("blocks switch", format!("{} {} {}", word(&blocker.kind), blocker.path, blocker.reason));
    }
    for warning in &s.warnings {
        row("WARNING", format!("{}: {}", warning.code, warning.text));
    }
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        let table = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (u64::MAX, "16777215.9 TiB")];
        for (count, text) in table {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn what_is_wrong_stands_out_and_terminals_are_safe() {
        let mut status = Status { alone: true, name: "evil\x1b[2J".into(), ..Status::default() };
        status.warnings.push(crate::api::status::Warning { code: "may-be-split".into(), text: "look".into() });
        let text = render(&status);
        assert!(
            text.contains("ALONE")
                && text.contains("NOT REACHABLE")
                && text.contains("WARNING")
                && text.contains("may-be-split")
        );
        assert!(text.contains("complete"), "{text}");
        assert!(!text.contains('\x1b'));
    }
}

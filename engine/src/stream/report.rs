//! The status document, the event log's lines and the metrics' counters, made from what the core and the parts say.
//!
//! Plain translation: nothing is decided here.

use std::{collections::BTreeMap, time::SystemTime};

use ringpair_core::{
    Config as CoreConfig,
    event::{Event as CoreEvent, EventCode},
    persisted::LastSwitch as PersistedSwitch,
    status::{PathStatus, Status as CoreStatus},
};
use ringpair_wire::{
    control,
    id::{AckLevel, MemberId},
    lane::{LaneKind, PathKind},
};

use crate::{
    api::{
        events::{Event, rfc3339},
        status::{
            ConnectionStatus, Connections, DetectionStatus, DivergenceSummary, DsStatus, IoStatus, LastSwitch,
            MirrorStatus, PeerStatus, SocketStatus, Status, Warning,
        },
    },
    config::{Config, SecurityMode},
    mirror,
    transport::{ConnInfo, Transport},
};

/// What the status is made of beside the core.
pub struct Parts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The core's.
    pub core: &'a CoreConfig,
    /// The lanes.
    pub transport: &'a Transport,
    /// The bulk lane's socket, while it is up.
    pub bulk_lane: Option<&'a ConnInfo>,
    /// What its peer may have under way, where that is limited.
    pub bulk_credit_bytes: Option<u32>,
    /// The mirror, as the bulk thread last said.
    pub mirror: &'a mirror::MirrorStatus,
    /// How IO is done.
    pub io: &'a IoStatus,
    /// The divergence archive.
    pub divergence: &'a DivergenceSummary,
    /// The pair's mode, as persisted.
    pub mode: control::SwitchMode,
    /// The last switch, as persisted.
    pub last_switch: Option<&'a PersistedSwitch>,
    /// Warnings of the shell.
    pub warnings: &'a [Warning],
    /// Blockers of the shell: files that would be lost.
    pub blockers: Vec<control::Blocker>,
    /// The age of the oldest record that is not durable on the backup, in milliseconds.
    pub lag_ms: u64,
    /// Counters.
    pub counters: BTreeMap<String, u64>,
}

/// What would be lost of files if one switched now (OPS-030, REP-064).
#[must_use]
pub fn file_blockers(status: &mirror::MirrorStatus) -> Vec<control::Blocker> {
    let file = |path: String, reason: String| control::Blocker { kind: control::BlockerKind::File, path, reason };
    let mut blockers: Vec<_> =
        status.problems.iter().map(|problem| file(problem.path.clone(), problem.reason.clone())).collect();
    let behind = match status.state {
        mirror::MirrorState::Off | mirror::MirrorState::Current => None,
        mirror::MirrorState::Initial => Some("the first synchronization of files is not finished".into()),
        mirror::MirrorState::Behind => {
            Some(format!("{} changed files are not durable on the backup", status.pending_files))
        }
        mirror::MirrorState::Failed if blockers.is_empty() => {
            Some(status.last_error.clone().unwrap_or_else(|| "the file mirror has failed".into()))
        }
        mirror::MirrorState::Failed => None,
    };
    blockers.extend(behind.map(|reason| file(String::new(), reason)));
    blockers.truncate(control::MAX_BLOCKERS);
    blockers
}

fn connection(parts: &Parts<'_>, path: PathKind, status: PathStatus) -> ConnectionStatus {
    let own = |lane| parts.transport.info(parts.transport.conn(lane, path)?);
    let bulk = parts.bulk_lane.filter(|info| info.path == path);
    let infos: Vec<&ConnInfo> = own(LaneKind::Ping).into_iter().chain(own(LaneKind::Ds)).chain(bulk).collect();
    let mark = |info: &&ConnInfo| Some((info.lane.name().to_owned(), info.dscp?.number()));
    ConnectionStatus {
        up: status.up,
        rtt_us: status.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        heartbeats_answered: status.answered,
        heartbeats_missed: status.missed,
        dscp: own(LaneKind::Ping).and_then(|info| info.dscp).map(|dscp| dscp.number()),
        lanes: infos.iter().filter_map(mark).collect(),
        received_dscp: parts.transport.sent_and_arrived_marks(path).map(|(_, arrived)| arrived.number()),
        received_lanes: parts
            .transport
            .probed_marks(path)
            .map(|(lane, _, arrived)| (lane.name().to_owned(), arrived.number()))
            .collect(),
        sockets: infos
            .iter()
            .map(|info| (info.lane.name().to_owned(), socket(info, parts.bulk_credit_bytes)))
            .collect(),
    }
}

/// A lane's socket, as the API names it.
fn socket(info: &ConnInfo, bulk_credit_bytes: Option<u32>) -> SocketStatus {
    SocketStatus {
        dscp: info.dscp.map(|dscp| dscp.number()),
        priority: info.priority,
        congestion: info.congestion.clone(),
        user_timeout_ms: info.user_timeout_ms,
        notsent_lowat_bytes: info.notsent_lowat_bytes,
        pacing_bytes_per_s: info.pacing_bytes_per_s,
        credit_bytes: bulk_credit_bytes.filter(|_| info.lane == LaneKind::Bulk),
        zero_copy: info.zero_copy,
    }
}

/// The mirror's status, as the API names it.
#[must_use]
pub fn mirror_status(status: &mirror::MirrorStatus) -> MirrorStatus {
    MirrorStatus {
        state: status.state,
        pending_files: status.pending_files,
        pending_bytes: status.pending_bytes,
        files: status.files,
        bytes: status.bytes,
        last_error: status.last_error.clone(),
    }
}

fn ds_status(core: &CoreStatus, lag_ms: u64) -> DsStatus {
    let [_, _, applied] = core.local;
    let (seq, lag) = match core.role {
        // On a backup: its own state (interface §8).
        control::Role::Backup => (applied, core.position.seq.0.saturating_sub(applied.0)),
        _ => (core.position.seq, core.position.seq.0.saturating_sub(core.peer.durable.0)),
    };
    DsStatus {
        seq: seq.0,
        peer_durable_seq: core.peer.durable.0,
        lag_records: lag,
        lag_ms: if lag == 0 { 0 } else { lag_ms },
        ..DsStatus::default()
    }
}

/// The whole document, of what the core says and what speaks against a switch.
#[must_use]
pub fn status(core: &CoreStatus, mut blockers: Vec<control::Blocker>, parts: &Parts<'_>) -> Status {
    let config = parts.config;
    let mut warnings: Vec<Warning> =
        core.warnings.iter().map(|warning| Warning { code: warning.code.into(), text: warning.text.clone() }).collect();
    warnings.extend_from_slice(parts.warnings);
    blockers.extend(parts.blockers.iter().cloned());
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let connections = Connections {
        main: connection(parts, PathKind::Main, core.paths[0]),
        aux: connection(parts, PathKind::Aux, core.paths[1]),
    };
    Status {
        pair: config.pair.clone(),
        member: config.member.to_string(),
        name: config.own().name.clone(),
        role: core.role,
        pair_mode: core.pair_mode,
        state: core.state,
        mode: parts.mode,
        epoch: core.epoch.0,
        release: config.release.clone(),
        peer: PeerStatus {
            name: config.peer().name.clone(),
            address: config.peer().address.to_string(),
            role: core.peer.role,
            state: core.peer.state,
            release: core.peer.release.clone(),
            reachable: core.peer.reachable,
        },
        connections,
        ds: ds_status(core, parts.lag_ms),
        mirror: mirror_status(parts.mirror),
        module: None,
        warnings,
        switch_blockers: blockers,
        alone: core.alone,
        complete: core.complete,
        divergence: parts.divergence.clone(),
        io: parts.io.clone(),
        detection: DetectionStatus {
            profile: config.detection.profile.name().into(),
            lease_ms: if parts.core.leased { millis(core.lease) } else { 0 },
            lease_left_ms: millis(core.lease_left),
            right_out: core.right.is_some(),
        },
        last_switch: parts.last_switch.map(|switch| last_switch(switch, config)),
        security: match config.security.mode {
            SecurityMode::MutualTls => "mutual-tls".into(),
            SecurityMode::Off => "off".into(),
        },
        counters: parts.counters.clone(),
    }
}

fn last_switch(switch: &PersistedSwitch, config: &Config) -> LastSwitch {
    let name = |member: MemberId| config.members.get(member).name.clone();
    LastSwitch {
        at: rfc3339(SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(switch.at_unix_ms)),
        from: switch.from.map(name).unwrap_or_default(),
        to: name(switch.to),
        reason: format!("{} ({})", switch.reason.original_name(), switch.reason.name()),
        controlled: switch.controlled,
        detect_ms: switch.detect_ms,
        promote_ms: switch.promote_ms,
    }
}

/// An event of the core for the event log; evidence of a switchover is marked as such.
#[must_use]
pub fn event(event: &CoreEvent) -> Event {
    let line = Event::new(event.code.name(), event.epoch.0, event.reason.clone());
    match event.code {
        EventCode::Suspicion
        | EventCode::SuspicionEnded
        | EventCode::Promotion
        | EventCode::Release
        | EventCode::Switch => line.of_switch(event.epoch.0),
        _ => line,
    }
}

/// The level that a watcher is told, and whether the active is alone.
#[must_use]
pub const fn watch_level(alone: bool) -> AckLevel {
    if alone { AckLevel::Local } else { AckLevel::Durable }
}

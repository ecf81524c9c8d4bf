//! Whether the marks of ds and bulk arrive as they leave (OPS-197): the kernel tells no mark of what a connection receives,
//! so each lane's mark is also sent on a datagram beside the heartbeats, now and then, which names it.
//!
//! Always: on every path whose ping lane is up, first with its first turn; sealed as heartbeats are. Never: a wake-up of
//! its own, or a word to anybody but the counters and the status: a path that changes marks is slow, not wrong.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use ringpair_wire::{
    codec::Codec,
    dscp::Dscp,
    heartbeat::{PLAIN_BYTES, SealedKind},
    lane::{LaneKind, PathKind},
    probe::Probe,
};

use super::{Transport, types::ConnId};

/// How long lies between two probes of a lane on a path.
const EVERY: Duration = Duration::from_secs(10);
/// Whose marks no heartbeat shows.
const LANES: [LaneKind; 2] = [LaneKind::Ds, LaneKind::Bulk];

/// When probes are due, and what the peer's newest showed, by path.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// The ping lane that they were last sent beside, and when.
    sent: [Option<(ConnId, Instant)>; 2],
    /// By lane: the mark that the newest left with, and the one that it arrived with.
    arrived: [[Option<(Dscp, Dscp)>; LANES.len()]; 2],
}

impl Transport {
    /// Sends what is due.
    pub(super) fn probe_marks(&mut self, now: Instant) {
        for path in PathKind::ALL {
            let Some(conn) = self.up.get(LaneKind::Ping, path) else { continue };
            let sent = &mut self.probes.sent[path as usize];
            if sent.is_some_and(|(beside, at)| beside == conn && now < at + EVERY) {
                continue;
            }
            *sent = Some((conn, now));
            LANES.into_iter().for_each(|lane| self.probe(lane, path));
        }
    }

    fn probe(&mut self, lane: LaneKind, path: PathKind) {
        let dscp = self.config.lane(lane).dscp(path);
        let probe = Probe { sender: self.keyring.member(), lane, dscp }.to_bytes();
        let Ok(plaintext) = <[u8; PLAIN_BYTES]>::try_from(probe) else { return };
        let target = self.config.path(path).map(|address| self.keyring.target(path, address.peer));
        if let (Some(target), Some(sealed)) = (target, self.keyring.seal(SealedKind::Probe, path, &plaintext)) {
            let sent = self.datagrams.send_marked(path, &sealed, target, dscp);
            self.stats.probes_sent += u64::from(sent);
        }
    }

    /// A probe came with `mark`, as far as the kernel told.
    pub(super) fn probe_came(&mut self, path: PathKind, plaintext: &[u8; PLAIN_BYTES], mark: Option<Dscp>) {
        let probe = match Probe::from_bytes(plaintext) {
            Ok(probe) if probe.sender == self.keyring.member().peer() => probe,
            _ => {
                self.stats.heartbeats_malformed += 1;
                return;
            }
        };
        self.stats.probes_received += 1;
        if let (Some(index), Some(mark)) = (LANES.iter().position(|lane| *lane == probe.lane), mark) {
            self.probes.arrived[path as usize][index] = Some((probe.dscp, mark));
        }
    }

    /// By lane: the mark that the peer's newest probe on `path` left with, and the one that it arrived with.
    pub fn probed_marks(&self, path: PathKind) -> impl Iterator<Item = (LaneKind, Dscp, Dscp)> + '_ {
        let arrived = self.probes.arrived[path as usize];
        LANES.into_iter().zip(arrived).filter_map(|(lane, marks)| marks.map(|(sent, arrived)| (lane, sent, arrived)))
    }
}

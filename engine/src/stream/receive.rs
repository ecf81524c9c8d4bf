//! What comes from the peer: lanes up and down, heartbeats, control messages, frames, announcements.
//!
//! Always: a frame is checked whole (checksum, chain, every record) before the core is asked about it, and journalled as
//! it came. Never: bytes that are believed before they are checked; a malformed message closes its lane.

use std::time::{Duration, Instant as StdInstant};

use ringpair_core::{Completion, Instant, input::Channel};
use ringpair_wire::{
    codec::Codec,
    control::Control,
    frame::CheckedFrame,
    heartbeat::{Heartbeat, PLAIN_BYTES},
    id::Seq,
    lane::{LaneKind, MessageKind, PathKind},
    mirror::MirrorMessage,
};

use super::{Stream, applier::meta_of, awaiting::Arrived, feed::Next};
use crate::{
    api::events::Event,
    bulk::link::BulkCommand,
    ring::Shared,
    transport::{ConnId, DownReason, TransportEvent},
};

/// The ds lane is given more frames only while fewer bytes than this wait on it.
const FEED_BELOW_BYTES: usize = 1 << 20;
/// No more is read from the ds lane while so many bytes of frames wait to be written or applied.
const HELD_MAX_BYTES: usize = 64 << 20;

/// So often within this time the event log names a lane that was closed for what the peer said.
const REFUSED_NOTED: u32 = 10;
const REFUSED_WITHIN: Duration = Duration::from_secs(10);

impl Stream {
    /// Takes the transport's events, and after a pause reads the sockets dry (protocol §5).
    pub(super) fn take_events(&mut self, now: Instant) {
        let mut any = false;
        while let Some(event) = self.transport.poll_event() {
            any = true;
            self.transport_event(event, now);
        }
        if let Some(turns) = self.drain {
            self.drain = turns.checked_sub(1).filter(|_| any || turns == super::DRAIN_TURNS);
            if self.drain.is_none() {
                self.node.handle_completion(now, Completion::SocketsDrained);
            }
        }
    }

    fn transport_event(&mut self, event: TransportEvent, now: Instant) {
        match event {
            TransportEvent::Up { conn, lane, path, hello, dialed_by_us } => {
                tracing::debug!(lane = lane.name(), path = path.name(), dialed_by_us, peer = ?hello.speaker, "lane up");
                self.lanes.up(conn, lane, path, now);
                self.forget_awaiting(lane);
                if let Some(info) = self.transport.info(conn).cloned() {
                    self.check_socket(&info);
                }
                self.node.handle_connection(now, path, lane, true);
            }
            TransportEvent::Down { conn, lane, path, reason } => {
                tracing::debug!(lane = lane.name(), path = path.name(), %reason, "lane down");
                if matches!(reason, DownReason::Malformed(_)) {
                    self.lane_refused(&format!("{}: {reason}", lane.name()));
                }
                if self.lanes.down(conn, lane, path, now) {
                    self.forget_awaiting(lane);
                    self.node.handle_connection(now, path, lane, false);
                }
            }
            TransportEvent::DialFailed { lane, path, reason } => {
                if !matches!(reason, DownReason::Refused | DownReason::TimedOut | DownReason::Replaced) {
                    tracing::info!(lane = lane.name(), path = path.name(), %reason, "could not connect");
                }
                self.lanes.dial_failed(lane, path, now);
            }
            TransportEvent::HandOver(detached) => self.bulk.send(BulkCommand::Adopt(detached)),
            TransportEvent::Heartbeat { path, plaintext } => self.heartbeat(path, &plaintext, now),
            TransportEvent::Message { conn, kind, body } => self.message(conn, kind, body, now),
        }
        self.carry_out(now);
    }

    /// What came on a ds lane that is not the current one any more is sent again.
    fn forget_awaiting(&mut self, lane: LaneKind) {
        if lane == LaneKind::Ds {
            self.awaiting.clear();
        }
    }

    fn heartbeat(&mut self, path: PathKind, plaintext: &[u8; PLAIN_BYTES], now: Instant) {
        match Heartbeat::from_bytes(plaintext) {
            Ok(heartbeat) if heartbeat.sender == self.config.member.peer() => {
                self.node.handle_heartbeat(now, path, &heartbeat);
            }
            Ok(heartbeat) => tracing::warn!(sender = %heartbeat.sender, "a heartbeat names this member as its sender"),
            Err(error) => tracing::warn!(%error, "a heartbeat that was sealed by the peer is malformed"),
        }
    }

    fn message(&mut self, conn: ConnId, kind: MessageKind, body: Shared, now: Instant) {
        let Some(channel) = self.lanes.channel(conn) else { return };
        let malformed = match kind {
            MessageKind::Control => match Control::from_bytes(&body) {
                Ok(message) => {
                    self.node.handle_message(now, channel, message);
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            MessageKind::Frame => self.frame(channel, body, now).err(),
            MessageKind::Announce => match MirrorMessage::from_bytes(&body) {
                Ok(message) => {
                    self.bulk.send(BulkCommand::Announced(Box::new(message)));
                    None
                }
                Err(error) => Some(error.to_string()),
            },
            MessageKind::Resync
            | MessageKind::Mirror
            | MessageKind::Content
            | MessageKind::ContentRequest
            | MessageKind::Packed => Some("it belongs on the bulk lane".into()),
        };
        if let Some(why) = malformed {
            self.transport.close(conn, StdInstant::now());
            self.lane_refused(&format!("{channel:?}: {kind:?}: {why}"));
        }
    }

    /// Notes that a lane was closed for what the peer said on it; a few lines of the event log at most, for it may say it
    /// again and again.
    pub(super) fn lane_refused(&mut self, why: &str) {
        tracing::error!(why, "the peer said what no member says: the lane is closed");
        let now = StdInstant::now();
        let (since, noted) = self.refused_noted.filter(|(since, _)| now < *since + REFUSED_WITHIN).unwrap_or((now, 0));
        self.refused_noted = Some((since, noted + 1));
        if noted < REFUSED_NOTED {
            let text = format!("the lane is closed for what the peer said on it: {why}");
            self.events.append(Event::new("lane-refused", self.node.epoch().0, text));
        }
    }

    fn frame(&mut self, channel: Channel, body: Shared, now: Instant) -> Result<(), String> {
        let frame = CheckedFrame::check(&body).map_err(|error| error.to_string())?;
        let decoded = self.applier.decode(&frame).map_err(|error| error.to_string())?;
        let meta = meta_of(frame.header(), body.len());
        self.frame_arrived(channel, Arrived { bytes: body, meta, decoded }, now);
        Ok(())
    }

    /// Tells the core from which record on contents are missing, if that has changed.
    pub(super) fn tell_missing(&mut self, from: Option<Seq>, now: Instant) {
        if from != std::mem::replace(&mut self.missing_told, from) {
            self.node.handle_completion(now, Completion::ContentMissing(from));
        }
    }

    /// Applies what may be applied, and says how far it is and from where on contents are missing.
    pub(super) fn apply(&mut self, now: Instant) {
        let through = self.applicable();
        match self.applier.turn(through, super::APPLY_BYTES_A_TURN, &mut self.changes) {
            Ok(true) => self.node.handle_completion(now, Completion::Applied(self.applier.applied())),
            Ok(false) => {}
            Err(error) => {
                let text = format!("a journalled frame is damaged: {error}");
                self.node.handle_completion(now, Completion::SyncFailed(text));
            }
        }
        self.tell_missing(self.applier.missing_from(), now);
        self.restrain_peer();
    }

    /// Reads no more from the ds lane while too much of what came waits here.
    fn restrain_peer(&mut self) {
        if let Some(conn) = self.lanes.conn(Channel::Ds) {
            let held = self.awaiting.bytes() + self.applier.waiting_bytes() + self.journal.pending_bytes();
            let journal_takes = self.journal.pending_bytes() < super::APPEND_BELOW_BYTES && !self.journal.is_short(0);
            self.transport.set_reading(conn, held < HELD_MAX_BYTES && journal_takes);
        }
    }

    /// Sends the follower what it may have.
    pub(super) fn feed_peer(&mut self, now: Instant) {
        self.feed_tail(now);
        let Some(conn) = self.lanes.conn(Channel::Ds) else { return };
        while self.transport.queued_bytes(conn) < FEED_BELOW_BYTES {
            match self.feed.next(self.node.send_through()) {
                Ok(Next::Frame(bytes)) => {
                    if self.transport.send_shared(conn, MessageKind::Frame, &[bytes]).is_err() {
                        self.transport.close(conn, StdInstant::now());
                        return;
                    }
                }
                Ok(Next::Nothing) => return,
                Err(error) => {
                    // The peer asks again and is then told what can be served.
                    tracing::error!(%error, "the journal cannot be read for the peer; the ds lane is closed");
                    self.journal_unreadable(&error, now);
                    self.transport.close(conn, StdInstant::now());
                    return;
                }
            }
        }
    }

    fn feed_tail(&mut self, now: Instant) {
        let Some(to) = self.feed.tail().map(|tail| tail.to) else { return };
        let Some(conn) = self.lanes.conn(to) else {
            self.end_tail(false, now);
            return;
        };
        while self.transport.queued_bytes(conn) < FEED_BELOW_BYTES {
            match self.feed.next_of_tail() {
                Ok(Next::Frame(bytes)) => {
                    if self.transport.send_shared(conn, MessageKind::Frame, &[bytes]).is_err() {
                        return self.end_tail(false, now);
                    }
                }
                Ok(Next::Nothing) => return self.end_tail(true, now),
                Err(error) => {
                    tracing::error!(%error, "the journal's tail cannot be read for the peer");
                    return self.end_tail(false, now);
                }
            }
        }
    }

    fn end_tail(&mut self, served: bool, now: Instant) {
        if let Some((work, to, end)) = self.feed.finish_tail() {
            self.send_control(to, &Control::TailEnd { end, served });
            self.node.handle_completion(now, Completion::TailServed(work));
        }
    }
}

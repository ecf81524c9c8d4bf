//! Frames that came before the contents they refer to, and everything that came behind them on the ds lane.
//!
//! Always: frames are offered to the core in the order in which they came; what waits here is neither journalled nor
//! acknowledged, and its contents count as referred to. Bounded: the loop reads no more from the lane while too much
//! waits. Never: a frame of a connection that is gone; the peer sends it again from the journal's end on.

use std::collections::{HashSet, VecDeque};

use ringpair_core::{
    Instant,
    input::{Channel, FrameMeta, FrameVerdict},
};
use ringpair_wire::ds::ContentId;

use super::{
    Stream,
    applier::{ContentRef, Decoded},
};
use crate::{bulk::link::BulkCommand, ring::Shared};

/// A frame that was checked, with what it holds.
#[derive(Debug)]
pub(super) struct Arrived {
    pub bytes: Shared,
    pub meta: FrameMeta,
    pub decoded: Decoded,
}

/// The frames that wait.
#[derive(Debug, Default)]
pub(super) struct Awaiting {
    frames: VecDeque<Arrived>,
    bytes: usize,
    /// Contents that the peer cannot give: no frame waits for them.
    gone: HashSet<ContentId>,
}

impl Awaiting {
    /// Lets go of everything: its connection is gone, or this member follows nobody any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// How many bytes of frames wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What the frames refer to, each with its length.
    pub fn contents(&self) -> impl Iterator<Item = (ContentId, u64)> + '_ {
        self.frames.iter().flat_map(|frame| &frame.decoded.contents).map(ContentRef::content)
    }

    /// The peer cannot give this content.
    pub fn content_gone(&mut self, id: ContentId) {
        if self.contents().any(|(awaited, _)| awaited == id) {
            self.gone.insert(id);
        }
    }

    fn push(&mut self, mut frame: Arrived) {
        frame.decoded.drop_payload();
        self.bytes += frame.bytes.len();
        self.frames.push_back(frame);
    }

    fn pop(&mut self) -> Option<Arrived> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.bytes.len();
        Some(frame)
    }

    fn put_back(&mut self, frame: Arrived) {
        self.bytes += frame.bytes.len();
        self.frames.push_front(frame);
    }
}

impl Stream {
    /// Takes a checked frame, or lets it wait for its contents.
    pub(super) fn frame_arrived(&mut self, channel: Channel, frame: Arrived, now: Instant) {
        let lacking = self.applier.lacking(&frame.decoded.contents);
        if !self.awaiting.is_empty() {
            self.awaiting.push(frame);
        } else if let Some(frame) = self.offer_frame(channel, frame, &lacking, now) {
            self.awaiting.push(frame);
        }
        if !lacking.is_empty() {
            self.bulk.send(BulkCommand::Fetch(lacking.iter().map(ContentRef::content).collect()));
        }
    }

    /// Takes the frames whose contents have come.
    pub(super) fn take_awaited(&mut self, now: Instant) {
        while let Some(frame) = self.awaiting.pop() {
            let lacking = self.applier.lacking(&frame.decoded.contents);
            if let Some(frame) = self.offer_frame(Channel::Ds, frame, &lacking, now) {
                return self.awaiting.put_back(frame);
            }
        }
        self.awaiting.gone.clear();
    }

    /// Offers a frame to the core, which lacks contents; it comes back if it has to wait for them.
    fn offer_frame(
        &mut self,
        channel: Channel,
        frame: Arrived,
        lacking: &[ContentRef],
        now: Instant,
    ) -> Option<Arrived> {
        let whole = lacking.iter().all(|content| self.awaiting.gone.contains(&content.id));
        if let Some(first) = lacking.first().filter(|_| whole) {
            // Before the core takes the frame: it may acknowledge in the same step.
            let from = self.applier.missing_from().map_or(first.seq, |known| known.min(first.seq));
            self.tell_missing(Some(from), now);
        }
        match self.node.handle_frame(now, channel, &frame.meta, whole) {
            FrameVerdict::Await => return Some(frame),
            FrameVerdict::Accept => {
                let Arrived { bytes, meta, decoded } = frame;
                self.applier.push(bytes.clone(), meta.end, decoded, lacking);
                lacking.iter().filter(|_| whole).for_each(|content| self.applier.content_gone(content.id));
                self.append(bytes, &meta, now);
            }
            FrameVerdict::Duplicate => {}
            FrameVerdict::Refuse(why) => tracing::debug!(why, end = ?frame.meta.end, "a frame was refused"),
            FrameVerdict::Break(why) => {
                if let Some(conn) = self.lanes.conn(channel) {
                    self.transport.close(conn, std::time::Instant::now());
                }
                self.lane_refused(&format!("{channel:?}: {why}"));
            }
        }
        self.tell_missing(self.applier.missing_from(), now);
        None
    }
}

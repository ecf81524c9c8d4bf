//! The leader's end: answers about one snapshot.
//!
//! Always: one message for one request, bounded in time and size. Never: anything kept between requests.

use ringpair_wire::{
    codec::{Codec, Writer},
    id::Position,
    resync::{BATCH_BYTES, HashRange, MAX_BUCKET_ITEMS, MAX_GROUP_BYTES, Prefix, ResyncMessage},
};

use super::{ResyncError, ResyncIndex};

/// The leader's end: answers from a snapshot and keeps nothing else.
pub struct ResyncServer {
    index: ResyncIndex,
}

impl ResyncServer {
    /// Answers for the snapshot of `index`.
    #[must_use]
    pub const fn new(index: ResyncIndex) -> Self {
        Self { index }
    }

    /// The position that the follower will be at.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.index.snapshot().position()
    }

    /// Answers one request with one message, in time and size bounded by the message.
    ///
    /// # Errors
    /// [`ResyncError`]: close the connection.
    pub fn handle(&self, message: &ResyncMessage) -> Result<ResyncMessage, ResyncError> {
        let index = &self.index;
        match message {
            ResyncMessage::Begin => Ok(ResyncMessage::Root {
                position: self.position(),
                summary: index.summary(Prefix::ROOT),
                digest: index.digest().0,
            }),
            ResyncMessage::AskChildren { request, nodes } => Ok(ResyncMessage::Children {
                request: *request,
                nodes: nodes.iter().map(|node| index.children(*node)).collect(),
            }),
            ResyncMessage::AskItems { request, nodes } => {
                for node in nodes {
                    let count = index.summary(*node).count;
                    if count > MAX_BUCKET_ITEMS as u64 {
                        return Err(ResyncError::BucketTooLarge(count));
                    }
                }
                let nodes = nodes.iter().map(|node| index.items(*node)).collect();
                Ok(ResyncMessage::Items { request: *request, nodes })
            }
            ResyncMessage::AskObjects { request, ranges } => self.objects(*request, ranges),
            _ => Err(ResyncError::Unexpected("an answer, sent to the leader")),
        }
    }

    fn objects(&self, request: u32, ranges: &[HashRange]) -> Result<ResyncMessage, ResyncError> {
        let (mut objects, mut bytes) = (Vec::new(), 0);
        let mut scratch = Vec::new();
        for (ranges_done, range) in (0_u32..).zip(ranges) {
            let mut places = self.index.range(range.first, range.last).peekable();
            while let Some(first) = places.next() {
                // All that share a hash travel together.
                let mut group = vec![first];
                while let Some(next) = places.next_if(|next| next.hash == first.hash) {
                    group.push(next);
                }
                scratch.clear();
                group.iter().for_each(|place| place.entry.object().encode(&mut Writer::new(&mut scratch)));
                if scratch.len() > MAX_GROUP_BYTES {
                    return Err(ResyncError::ObjectTooLarge { path: first.entry.path.clone(), bytes: scratch.len() });
                }
                if bytes > 0 && bytes + scratch.len() > BATCH_BYTES {
                    return Ok(ResyncMessage::Objects { request, objects, ranges_done, resume_at: Some(first.hash) });
                }
                bytes += scratch.len();
                objects.extend(group.iter().map(|place| place.entry.object().clone()));
            }
        }
        Ok(ResyncMessage::Objects { request, objects, ranges_done: ranges.len() as u32, resume_at: None })
    }
}

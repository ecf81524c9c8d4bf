//! Contents of large values: fetched by who lacks them, served by who has them.
//!
//! Always: a request names how much is here already, so that a cut lane costs no byte twice; memory is one chunk in each
//! direction. Never: a content that is given out under a digest it does not have.

use std::{collections::VecDeque, fs::File, os::unix::fs::FileExt};

use ringpair_wire::{
    ds::ContentId,
    lane::{MAX_CONTENT_CHUNK_BYTES, Message, MessageKind},
};

use crate::{
    ds::{
        ContentStore,
        content::{ContentError, ContentReceiver},
    },
    ring::Shared,
};

/// How many contents are fetched at once.
const FETCHED_AT_ONCE: usize = 4;
/// How many requests of the peer wait at most; beyond, the oldest is dropped and asked for again.
const ASKED_MAX: usize = 64;
/// The size of one part.
const CHUNK_BYTES: usize = 256 << 10;

/// A content being served.
struct Served {
    id: ContentId,
    file: File,
    at: u64,
    len: u64,
}

/// What is fetched and what is served.
pub struct Contents {
    store: ContentStore,
    receiver: ContentReceiver,
    /// To be asked for.
    wanted: VecDeque<(ContentId, u64)>,
    /// Asked for.
    fetching: Vec<(ContentId, u64)>,
    asked: VecDeque<(ContentId, u64)>,
    serving: Option<Served>,
}

impl Contents {
    /// Nothing under way.
    #[must_use]
    pub fn new(store: ContentStore) -> Self {
        Self {
            receiver: ContentReceiver::new(store.clone()),
            store,
            wanted: VecDeque::new(),
            fetching: Vec::new(),
            asked: VecDeque::new(),
            serving: None,
        }
    }

    /// These are missing here.
    pub fn fetch(&mut self, contents: Vec<(ContentId, u64)>) {
        for content in contents {
            if !self.wanted.contains(&content) && !self.fetching.contains(&content) {
                self.wanted.push_back(content);
            }
        }
    }

    /// A new lane: what was asked for on the old one is asked for again.
    pub fn connected(&mut self) {
        self.wanted.extend(self.fetching.drain(..));
        self.asked.clear();
        self.serving = None;
    }

    /// A part came; whether its content is now stored.
    ///
    /// # Errors
    /// The part does not fit, the digest is wrong, or the disk refuses: the lane is closed and it is tried again.
    pub fn received(&mut self, id: ContentId, offset: u64, total: u64, bytes: &[u8]) -> Result<bool, ContentError> {
        if !self.fetching.contains(&(id, total)) {
            // Asked for on an earlier lane, or stored meanwhile.
            return Ok(false);
        }
        let stored = self.receiver.chunk(id, offset, bytes)?;
        if stored {
            self.fetching.retain(|(fetched, _)| *fetched != id);
        }
        Ok(stored)
    }

    /// The peer asks for a content.
    pub fn asked(&mut self, id: ContentId, offset: u64) {
        if self.asked.len() >= ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back((id, offset));
    }

    /// The next message: a request first, else a part of what is served.
    pub fn poll(&mut self) -> Option<(MessageKind, Vec<Shared>)> {
        while self.fetching.len() < FETCHED_AT_ONCE
            && let Some((id, len)) = self.wanted.pop_front()
        {
            match self.receiver.begin(id, len) {
                Ok(offset) => {
                    self.fetching.push((id, len));
                    return Some(message(&Message::ContentRequest { id, offset }));
                }
                Err(error) => tracing::warn!(%id, %error, "a content cannot be received"),
            }
        }
        self.part()
    }

    fn part(&mut self) -> Option<(MessageKind, Vec<Shared>)> {
        while self.serving.is_none() {
            let (id, at) = self.asked.pop_front()?;
            match self.store.open_content(&id).map(|file| (file, self.store.len(&id).unwrap_or(0))) {
                Ok((file, len)) if at <= len => self.serving = Some(Served { id, file, at, len }),
                Ok(_) => tracing::warn!(%id, at, "the peer asks behind the end of a content"),
                Err(error) => tracing::warn!(%id, %error, "the peer asks for a content that is not here"),
            }
        }
        let served = self.serving.as_mut()?;
        let len = usize::try_from(served.len - served.at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        debug_assert!(len <= MAX_CONTENT_CHUNK_BYTES);
        let mut bytes = vec![0; len];
        if let Err(error) = served.file.read_exact_at(&mut bytes, served.at) {
            tracing::warn!(id = %served.id, %error, "a content cannot be read");
            self.serving = None;
            return None;
        }
        let part = message(&Message::Content { id: served.id, offset: served.at, total: served.len, bytes: &bytes });
        served.at += len as u64;
        if served.at >= served.len {
            self.serving = None;
        }
        Some(part)
    }
}

/// A message's kind and body.
fn message(message: &Message<'_>) -> (MessageKind, Vec<Shared>) {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    (message.kind(), vec![Shared::from(bytes).slice(ringpair_wire::lane::MESSAGE_HEADER_BYTES..)])
}

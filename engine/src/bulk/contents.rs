//! Contents of large values: fetched by who lacks them, served by who has them.
//!
//! Always: a request names how much is here already, so that a cut lane costs no byte twice; memory is one chunk in each
//! direction; a request that cannot be served is answered (W-54), so that nobody waits for it. Never: a content that is
//! given out whole under a digest it does not have.

use std::{
    collections::{HashSet, VecDeque},
    fs::File,
    os::unix::fs::FileExt,
};

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
    /// Over everything before `at`.
    hasher: blake3::Hasher,
}

/// What became of a part that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// More is to come, or nobody asked for it.
    Part,
    /// The content is stored.
    Stored,
    /// The peer does not have it, or what it has is damaged.
    Gone,
}

/// What is fetched and what is served.
pub struct Contents {
    store: ContentStore,
    receiver: ContentReceiver,
    /// To be asked for.
    wanted: VecDeque<(ContentId, u64)>,
    /// Those of `wanted` and `fetching`.
    known: HashSet<ContentId>,
    /// Asked for.
    fetching: Vec<(ContentId, u64)>,
    /// Found to be stored when they were to be asked for.
    found: Vec<ContentId>,
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
            known: HashSet::new(),
            fetching: Vec::new(),
            found: Vec::new(),
            asked: VecDeque::new(),
            serving: None,
        }
    }

    /// These are missing here.
    pub fn fetch(&mut self, contents: Vec<(ContentId, u64)>) {
        for content in contents {
            if self.known.insert(content.0) {
                self.wanted.push_back(content);
            }
        }
    }

    /// Whether a stored content was found damaged since the last call, by whomever.
    pub fn found_damage(&self) -> bool {
        !self.store.take_damaged().is_empty()
    }

    /// Those that were to be fetched and came by another way meanwhile.
    pub fn take_found(&mut self) -> Vec<ContentId> {
        std::mem::take(&mut self.found)
    }

    /// A new lane: what was asked for on the old one is asked for again.
    pub fn connected(&mut self) {
        self.wanted.extend(self.fetching.drain(..));
        self.asked.clear();
        self.serving = None;
    }

    /// A part came.
    ///
    /// # Errors
    /// The part does not fit, or the disk refuses: the lane is closed and it is tried again.
    pub fn received(&mut self, id: ContentId, offset: u64, total: u64, bytes: &[u8]) -> Result<Received, ContentError> {
        let Some(at) = self.fetching.iter().position(|(fetched, _)| *fetched == id) else {
            // Asked for on an earlier lane, or stored meanwhile.
            return Ok(Received::Part);
        };
        let received = if total == 0 {
            self.receiver.abandon(&id);
            Received::Gone
        } else if total != self.fetching[at].1 {
            return Ok(Received::Part);
        } else {
            match self.receiver.chunk(id, offset, bytes) {
                Ok(false) => return Ok(Received::Part),
                Ok(true) => Received::Stored,
                Err(ContentError::Damaged(id)) => {
                    tracing::error!(%id, "a content came with other bytes than its name says");
                    Received::Gone
                }
                Err(error) => return Err(error),
            }
        };
        self.fetching.swap_remove(at);
        self.known.remove(&id);
        Ok(received)
    }

    /// The peer asks for a content.
    pub fn asked(&mut self, id: ContentId, offset: u64) {
        if self.asked.len() >= ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back((id, offset));
    }

    /// The next message: a request first, else a part of what is served.
    pub fn poll(&mut self) -> Option<(MessageKind, Shared)> {
        while self.fetching.len() < FETCHED_AT_ONCE
            && let Some((id, len)) = self.wanted.pop_front()
        {
            match self.receiver.begin(id, len) {
                Ok(offset) if offset >= len => {
                    self.known.remove(&id);
                    self.found.push(id);
                }
                Ok(offset) => {
                    self.fetching.push((id, len));
                    return Some(message(&Message::ContentRequest { id, offset }));
                }
                Err(error) => {
                    // Whoever misses it asks again.
                    self.known.remove(&id);
                    tracing::warn!(%id, %error, "a content cannot be received");
                }
            }
        }
        self.part()
    }

    fn part(&mut self) -> Option<(MessageKind, Shared)> {
        let served = match self.serving.take() {
            Some(served) => served,
            None => {
                let (id, at) = self.asked.pop_front()?;
                match self.open(id, at) {
                    Some(served) => served,
                    None => return Some(refusal(id)),
                }
            }
        };
        let Served { id, file, at, len, mut hasher } = served;
        let count = usize::try_from(len - at).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        debug_assert!(count <= MAX_CONTENT_CHUNK_BYTES);
        let mut bytes = vec![0; count];
        if let Err(error) = file.read_exact_at(&mut bytes, at) {
            tracing::warn!(%id, %error, "a content cannot be read");
            return Some(refusal(id));
        }
        hasher.update(&bytes);
        let end = at + count as u64;
        if end < len {
            self.serving = Some(Served { id, file, at: end, len, hasher });
        } else if hasher.finalize().as_bytes() != &id.0 {
            // The last part is what makes it whole.
            self.store.set_aside(&id);
            return Some(refusal(id));
        }
        Some(message(&Message::Content { id, offset: at, total: len, bytes: &bytes }))
    }

    /// Opens a content to be served from byte `from` on; `None`: it is not here.
    fn open(&self, id: ContentId, from: u64) -> Option<Served> {
        let len = self.store.len(&id).filter(|len| from < *len)?;
        let file = self.store.open_content(&id).ok()?;
        let mut served = Served { id, file, at: 0, len, hasher: blake3::Hasher::new() };
        let mut block = vec![0; CHUNK_BYTES];
        while served.at < from {
            let count = (from - served.at).min(CHUNK_BYTES as u64) as usize;
            served.file.read_exact_at(&mut block[..count], served.at).ok()?;
            served.hasher.update(&block[..count]);
            served.at += count as u64;
        }
        Some(served)
    }
}

/// Says that a content is not here (W-54).
fn refusal(id: ContentId) -> (MessageKind, Shared) {
    tracing::warn!(%id, "the peer asks for a content that is not here");
    message(&Message::Content { id, offset: 0, total: 0, bytes: &[] })
}

/// A message's kind and body.
fn message(message: &Message<'_>) -> (MessageKind, Shared) {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    (message.kind(), Shared::from(bytes).slice(ringpair_wire::lane::MESSAGE_HEADER_BYTES..))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn contents() -> (tempfile::TempDir, ContentStore, Contents) {
        let dir = tempfile::tempdir().unwrap();
        let store = ContentStore::open(dir.path()).unwrap();
        (dir, store.clone(), Contents::new(store))
    }

    /// Lets both ends talk until nothing is to be said; what became of the parts.
    fn exchange(from: &mut Contents, to: &mut Contents) -> Vec<Received> {
        let mut ends = Vec::new();
        for _ in 0..10_000 {
            let asked = to.poll();
            let said = asked.is_some();
            if let Some((kind, body)) = asked {
                let Ok(Message::ContentRequest { id, offset }) = Message::decode(kind, &body) else { panic!() };
                from.asked(id, offset);
            }
            let Some((kind, body)) = from.poll() else {
                if said {
                    continue;
                }
                return ends;
            };
            let Ok(Message::Content { id, offset, total, bytes }) = Message::decode(kind, &body) else { panic!() };
            let received = to.received(id, offset, total, bytes).unwrap();
            if received != Received::Part {
                ends.push(received);
            }
        }
        panic!("no end")
    }

    // REQ: REP-026
    #[test]
    fn what_is_not_there_or_damaged_is_refused_and_holds_nothing_up() {
        let (dir, active, mut from) = contents();
        let (_dir, backup, mut to) = contents();
        let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7 % 251) as u8).collect();
        let (sound, damaged) = (active.put(&bytes).unwrap(), active.put(&bytes[1..]).unwrap());
        let name = damaged.to_string();
        let file = dir.path().join("content").join(&name[..2]).join(&name[2..]);
        let mut other = fs::read(&file).unwrap();
        other[500_000] ^= 1;
        fs::write(&file, other).unwrap();
        // More that is not there than is fetched at once, before what is.
        let absent = (0..2 * FETCHED_AT_ONCE as u8).map(|n| (ContentId([n; 32]), 70_000));
        to.fetch(absent.chain([(damaged, 999_999), (sound, 1_000_000)]).collect());
        let ends = exchange(&mut from, &mut to);
        let count = |what| ends.iter().filter(|end| **end == what).count();
        assert_eq!((count(Received::Gone), count(Received::Stored)), (2 * FETCHED_AT_ONCE + 1, 1));
        assert_eq!(backup.read(&sound).unwrap(), bytes);
        assert!(!backup.contains(&damaged) && !active.contains(&damaged), "what is damaged goes");
        assert_eq!(active.take_damaged(), [damaged]);
        // What came by another way is not asked for, and told.
        to.fetch(vec![(sound, 1_000_000)]);
        assert!(exchange(&mut from, &mut to).is_empty());
        assert_eq!((to.take_found(), to.take_found()), (vec![sound], Vec::new()));
        // And it can be asked for again, once it is there.
        active.put(&bytes[1..]).unwrap();
        to.fetch(vec![(damaged, 999_999)]);
        assert_eq!(exchange(&mut from, &mut to), [Received::Stored]);
    }
}

//! Sealing and opening heartbeat datagrams with keys exported from the ping lanes' TLS sessions (protocol §4).
//!
//! Always: each direction has a key of its own; a counter is used once under a key; a datagram is accepted once, and
//! only if its key belongs to a ping lane that is up or was until a moment ago. Where TLS is off, the same envelope
//! carries a checksum in place of the tag: that guards against accidents, not against anybody.
//! Never: an answer to, or work beyond a table look-up for, a datagram whose key id is unknown.
#![forbid(unsafe_code)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ring::aead;
use ringpair_wire::{
    heartbeat::{PLAIN_BYTES, SEALED_BYTES, SEALED_HEADER_BYTES, SealedHeader, SealedKind, TAG_BYTES},
    id::MemberId,
    lane::PathKind,
};

use super::{tls::HEARTBEAT_SECRET_BYTES, types::ConnId};

/// How long a key is still good for opening after its connection went down: what was on the way.
const OVERLAP: Duration = Duration::from_secs(1);
/// How many counters back a late datagram may be.
const WINDOW: u64 = 1024;
/// No more keys than this are kept for opening.
const MAX_KEYS: usize = 16;

/// Why a datagram is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    Malformed,
    UnknownKey,
    Forged,
    Replayed,
}

/// What protects the datagrams of one direction.
enum Guard {
    Aead(Box<aead::LessSafeKey>),
    /// TLS is off: xxh3 over header and plaintext.
    Checksum,
}

impl Guard {
    fn from_secret(secret: Option<[u8; HEARTBEAT_SECRET_BYTES]>, fallback_id: u64) -> Option<(Self, u64)> {
        let Some(secret) = secret else { return Some((Self::Checksum, fallback_id)) };
        let (key, id) = secret.split_at(32);
        let key = aead::UnboundKey::new(&aead::AES_256_GCM, key).ok()?;
        let id = u64::from_le_bytes(id.try_into().ok()?);
        Some((Self::Aead(Box::new(aead::LessSafeKey::new(key))), id))
    }
}

fn nonce(counter: u64) -> aead::Nonce {
    let mut bytes = [0; aead::NONCE_LEN];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    aead::Nonce::assume_unique_for_key(bytes)
}

fn checksum(header: &[u8], plaintext: &[u8]) -> [u8; TAG_BYTES] {
    let mut all = [0; SEALED_HEADER_BYTES + PLAIN_BYTES];
    all[..SEALED_HEADER_BYTES].copy_from_slice(header);
    all[SEALED_HEADER_BYTES..].copy_from_slice(plaintext);
    let mut tag = [0; TAG_BYTES];
    let (low, high) = tag.split_at_mut(TAG_BYTES / 2);
    low.copy_from_slice(&ringpair_wire::checksum::checksum(0, &all).to_le_bytes());
    high.copy_from_slice(&ringpair_wire::checksum::checksum(1, &all).to_le_bytes());
    tag
}

/// What a datagram was: path and connection of its key, its kind, its plaintext.
type Opened = (PathKind, ConnId, SealedKind, [u8; PLAIN_BYTES]);

struct SealKey {
    conn: ConnId,
    guard: Guard,
    key_id: u64,
    counter: u64,
}

struct OpenKey {
    conn: ConnId,
    path: PathKind,
    guard: Guard,
    key_id: u64,
    window: Window,
    retired: Option<Instant>,
}

/// Which of the last [`WINDOW`] counters came.
struct Window {
    highest: u64,
    bits: [u64; (WINDOW / 64) as usize],
}

impl Window {
    const fn new() -> Self {
        Self { highest: 0, bits: [0; (WINDOW / 64) as usize] }
    }

    /// Whether `counter` (from 1 on) is neither known nor too old to tell.
    fn is_new(&self, counter: u64) -> bool {
        if counter == 0 || counter + WINDOW <= self.highest {
            return false;
        }
        let (word, bit) = Self::place(counter);
        counter > self.highest || self.bits[word] & bit == 0
    }

    /// Notes `counter`, which is new.
    fn note(&mut self, counter: u64) {
        let first_cleared = (self.highest + 1).max(counter.saturating_sub(WINDOW - 1));
        for cleared in first_cleared..=counter {
            let (word, bit) = Self::place(cleared);
            self.bits[word] &= !bit;
        }
        let (word, bit) = Self::place(counter);
        self.bits[word] |= bit;
        self.highest = self.highest.max(counter);
    }

    const fn place(counter: u64) -> (usize, u64) {
        let index = counter % WINDOW;
        ((index / 64) as usize, 1 << (index % 64))
    }
}

/// The keys of all paths.
pub(super) struct Keyring {
    member: MemberId,
    seal: [Option<SealKey>; 2],
    open: Vec<OpenKey>,
    /// Counters go on across connections where there is no key of their own to number under.
    plain_counter: u64,
    /// The newest authenticated source of each path.
    sources: [Option<SocketAddr>; 2],
}

const fn slot(path: PathKind) -> usize {
    match path {
        PathKind::Main => 0,
        PathKind::Aux => 1,
    }
}

impl Keyring {
    pub(super) const fn new(member: MemberId, first_plain_counter: u64) -> Self {
        Self { member, seal: [None, None], open: Vec::new(), plain_counter: first_plain_counter, sources: [None, None] }
    }

    /// Takes the key for opening the peer's heartbeats beside `conn`. `secret` is `None` where TLS is off;
    /// `fallback_id` names the stream then.
    pub(super) fn install_open(
        &mut self,
        conn: ConnId,
        path: PathKind,
        secret: Option<[u8; HEARTBEAT_SECRET_BYTES]>,
        fallback_id: u64,
    ) {
        let Some((guard, key_id)) = Guard::from_secret(secret, fallback_id) else { return };
        if let Some(known) = self.open.iter_mut().find(|key| key.key_id == key_id) {
            // The same stream again (TLS off): its window goes on.
            (known.conn, known.path, known.retired) = (conn, path, None);
            return;
        }
        if self.open.len() >= MAX_KEYS {
            self.open.remove(0);
        }
        self.open.push(OpenKey { conn, path, guard, key_id, window: Window::new(), retired: None });
    }

    /// Takes the key for sealing this member's heartbeats on `path`.
    pub(super) fn install_seal(
        &mut self,
        conn: ConnId,
        path: PathKind,
        secret: Option<[u8; HEARTBEAT_SECRET_BYTES]>,
        fallback_id: u64,
    ) {
        let counter = if secret.is_some() { 0 } else { self.plain_counter };
        if let Some((guard, key_id)) = Guard::from_secret(secret, fallback_id) {
            self.seal[slot(path)] = Some(SealKey { conn, guard, key_id, counter });
            // Where the peer's heartbeats come from may have changed with the connection.
            self.sources[slot(path)] = None;
        }
    }

    /// The connection is gone: no more sealing beside it; opening for a moment yet.
    pub(super) fn retire(&mut self, conn: ConnId, now: Instant) {
        for seal in &mut self.seal {
            if seal.as_ref().is_some_and(|seal| seal.conn == conn) {
                *seal = None;
            }
        }
        for key in self.open.iter_mut().filter(|key| key.conn == conn) {
            key.retired.get_or_insert(now);
        }
    }

    /// Drops the keys whose overlap is over.
    pub(super) fn expire(&mut self, now: Instant) {
        self.open.retain(|key| key.retired.is_none_or(|retired| now < retired + OVERLAP));
    }

    /// The datagram for `plaintext`; `None` while no ping lane is up on `path`.
    pub(super) fn seal(
        &mut self,
        kind: SealedKind,
        path: PathKind,
        plaintext: &[u8; PLAIN_BYTES],
    ) -> Option<[u8; SEALED_BYTES]> {
        let key = self.seal[slot(path)].as_mut()?;
        key.counter = key.counter.checked_add(1)?;
        let header = SealedHeader { kind, key_id: key.key_id, counter: key.counter }.to_bytes();
        let mut datagram = [0; SEALED_BYTES];
        let (head, rest) = datagram.split_at_mut(SEALED_HEADER_BYTES);
        let (body, tag) = rest.split_at_mut(PLAIN_BYTES);
        head.copy_from_slice(&header);
        body.copy_from_slice(plaintext);
        match &key.guard {
            Guard::Aead(aead) => {
                let sealed = aead.seal_in_place_separate_tag(nonce(key.counter), aead::Aad::from(header), body).ok()?;
                tag.copy_from_slice(sealed.as_ref());
            }
            Guard::Checksum => {
                tag.copy_from_slice(&checksum(&header, body));
                self.plain_counter = self.plain_counter.max(key.counter);
            }
        }
        Some(datagram)
    }

    /// Opens a datagram: the path whose key it was sealed with, the connection, what it is, and the plaintext.
    pub(super) fn open(&mut self, datagram: &[u8]) -> Result<Opened, Dropped> {
        let (header, body) = SealedHeader::parse(datagram).map_err(|_| Dropped::Malformed)?;
        let key = self.open.iter_mut().find(|key| key.key_id == header.key_id).ok_or(Dropped::UnknownKey)?;
        if !key.window.is_new(header.counter) {
            return Err(Dropped::Replayed);
        }
        let mut bytes: [u8; PLAIN_BYTES + TAG_BYTES] = body.try_into().map_err(|_| Dropped::Malformed)?;
        match &key.guard {
            Guard::Aead(aead) => {
                let aad = aead::Aad::from(header.to_bytes());
                aead.open_in_place(nonce(header.counter), aad, &mut bytes).map_err(|_| Dropped::Forged)?;
            }
            Guard::Checksum => {
                if bytes[PLAIN_BYTES..] != checksum(&header.to_bytes(), &bytes[..PLAIN_BYTES]) {
                    return Err(Dropped::Forged);
                }
            }
        }
        key.window.note(header.counter);
        let mut plaintext = [0; PLAIN_BYTES];
        plaintext.copy_from_slice(&bytes[..PLAIN_BYTES]);
        Ok((key.path, key.conn, header.kind, plaintext))
    }

    /// Notes where an authenticated heartbeat came from.
    pub(super) fn heard_from(&mut self, path: PathKind, source: SocketAddr) {
        self.sources[slot(path)] = Some(source);
    }

    /// Where heartbeats of `path` go: the newest authenticated source, else the configured address.
    pub(super) fn target(&self, path: PathKind, configured: SocketAddr) -> SocketAddr {
        self.sources[slot(path)].unwrap_or(configured)
    }

    /// This member.
    pub(super) const fn member(&self) -> MemberId {
        self.member
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONN: ConnId = ConnId { index: 1, tag: 1 };

    fn pair(secret: Option<[u8; HEARTBEAT_SECRET_BYTES]>) -> (Keyring, Keyring) {
        let (mut a, mut b) = (Keyring::new(MemberId::A, 5), Keyring::new(MemberId::B, 7));
        a.install_seal(CONN, PathKind::Main, secret, 77);
        b.install_open(CONN, PathKind::Main, secret, 77);
        (a, b)
    }

    #[test]
    fn sealed_opens_once_and_nothing_else_does() {
        for secret in [Some([9; HEARTBEAT_SECRET_BYTES]), None] {
            let (mut a, mut b) = pair(secret);
            assert!(a.seal(SealedKind::Heartbeat, PathKind::Aux, &[0; PLAIN_BYTES]).is_none());
            let first = a.seal(SealedKind::Heartbeat, PathKind::Main, &[1; PLAIN_BYTES]).unwrap();
            let second = a.seal(SealedKind::Heartbeat, PathKind::Main, &[2; PLAIN_BYTES]).unwrap();
            for at in 0..SEALED_BYTES {
                let mut bad = first;
                bad[at] ^= 0x10;
                assert!(b.open(&bad).is_err(), "byte {at}");
            }
            assert_eq!(b.open(&second), Ok((PathKind::Main, CONN, SealedKind::Heartbeat, [2; PLAIN_BYTES])));
            assert_eq!(b.open(&first), Ok((PathKind::Main, CONN, SealedKind::Heartbeat, [1; PLAIN_BYTES])));
            assert_eq!(b.open(&first), Err(Dropped::Replayed));
            assert_eq!(b.open(&second), Err(Dropped::Replayed));
            assert_eq!(b.open(&first[..SEALED_BYTES - 1]), Err(Dropped::Malformed));
            assert_eq!(b.open(b""), Err(Dropped::Malformed));
            assert_eq!(a.open(&second), Err(Dropped::UnknownKey));
        }
        let (mut a, _) = pair(Some([9; HEARTBEAT_SECRET_BYTES]));
        let sealed = a.seal(SealedKind::Heartbeat, PathKind::Main, &[1; PLAIN_BYTES]).unwrap();
        assert!(!sealed.windows(8).any(|bytes| bytes == [1; 8]), "the plaintext is hidden");
        let mut other = [9; HEARTBEAT_SECRET_BYTES];
        other[0] = 1;
        let (_, mut b) = pair(Some(other));
        assert_eq!(b.open(&sealed), Err(Dropped::Forged));
    }

    #[test]
    fn one_kind_never_passes_for_the_other() {
        for secret in [Some([9; HEARTBEAT_SECRET_BYTES]), None] {
            let (mut a, mut b) = pair(secret);
            let probe = a.seal(SealedKind::Probe, PathKind::Main, &[1; PLAIN_BYTES]).unwrap();
            let mut turned = probe;
            turned[4] = SealedKind::Heartbeat as u8;
            assert_eq!(b.open(&turned), Err(Dropped::Forged));
            assert_eq!(b.open(&probe), Ok((PathKind::Main, CONN, SealedKind::Probe, [1; PLAIN_BYTES])));
        }
    }

    #[test]
    fn the_window_tells_old_from_new() {
        let mut window = Window::new();
        let mut model = std::collections::BTreeSet::new();
        let mut counter = 1_u64;
        for step in 0..20_000_u64 {
            // A walk with jumps ahead, repeats and late ones.
            let tried = match step % 5 {
                0 => counter + 1 + step % 7,
                1 => counter + (step % 97) * (step % 31),
                2 => counter.saturating_sub(step % 1500),
                3 => counter,
                _ => counter.saturating_sub(step % 11),
            };
            let highest = model.last().copied().unwrap_or(0);
            let fresh = tried > 0 && tried + WINDOW > highest && !model.contains(&tried);
            assert_eq!(window.is_new(tried), fresh, "step {step}: {tried} at {highest}");
            if fresh {
                window.note(tried);
                model.insert(tried);
                counter = counter.max(tried);
            }
        }
        assert!(!window.is_new(0));
    }

    #[test]
    fn keys_go_with_their_connection_after_a_moment() {
        let (mut a, mut b) = pair(Some([9; HEARTBEAT_SECRET_BYTES]));
        let now = Instant::now();
        let late = a.seal(SealedKind::Heartbeat, PathKind::Main, &[1; PLAIN_BYTES]).unwrap();
        let later = a.seal(SealedKind::Heartbeat, PathKind::Main, &[1; PLAIN_BYTES]).unwrap();
        a.retire(CONN, now);
        assert!(a.seal(SealedKind::Heartbeat, PathKind::Main, &[1; PLAIN_BYTES]).is_none());
        b.retire(CONN, now);
        b.expire(now + OVERLAP / 2);
        assert!(b.open(&late).is_ok());
        b.expire(now + OVERLAP);
        assert_eq!(b.open(&later), Err(Dropped::UnknownKey));
    }

    #[test]
    fn a_reconnect_without_tls_goes_on_counting() {
        let (mut a, mut b) = pair(None);
        let old = a.seal(SealedKind::Heartbeat, PathKind::Main, &[1; PLAIN_BYTES]).unwrap();
        b.open(&old).unwrap();
        a.retire(CONN, Instant::now());
        b.retire(CONN, Instant::now());
        let next = ConnId { index: 2, tag: 1 };
        a.install_seal(next, PathKind::Main, None, 77);
        b.install_open(next, PathKind::Main, None, 77);
        let new = a.seal(SealedKind::Heartbeat, PathKind::Main, &[2; PLAIN_BYTES]).unwrap();
        assert_eq!(b.open(&new), Ok((PathKind::Main, next, SealedKind::Heartbeat, [2; PLAIN_BYTES])));
        assert_eq!(b.open(&old), Err(Dropped::Replayed));
    }
}

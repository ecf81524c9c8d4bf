//! TLS of one connection: bytes of the socket in, plaintext out where it was decrypted, and back.
//!
//! The ping lane's session exports the heartbeats' keys, which only rustls' buffered connection does; ds and bulk have
//! the unbuffered one, which decrypts in the receive buffer and takes whole receives at a time. The accepting end tells
//! them apart by the lane's name in the dialer's first record, which is only a hint: a session that turns out to be a
//! ping lane without keys is refused. Always: who is spoken with is decided by rustls' verifier (`tls.rs`). Never: an
//! unbounded buffer; more than one record is kept back.
#![forbid(unsafe_code)]

use std::io::{BufRead as _, IoSlice, Write as _};

use ringpair_wire::{id::MemberId, lane::LaneKind};
use rustls::{
    CommonState, Connection,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{
        ConnectionState, EncodeError, EncryptError, UnbufferedConnectionCommon, UnbufferedStatus, WriteTraffic,
    },
};

use super::{
    tls::{self, HEARTBEAT_SECRET_BYTES, TlsConfigs},
    types::DownReason,
};
use crate::ring::{Buf, BufPool, Shared};

/// The header of a TLS record: type, version, length.
const RECORD_HEADER_BYTES: usize = 5;
/// The most plaintext in a record.
const RECORD_BYTES: usize = 16 << 10;
/// What a record has beside its plaintext, at most.
const OVERHEAD_BYTES: usize = 64;
/// Where there is no pool: records are made in pieces of this size.
const OUTPUT_BYTES: usize = 64 << 10;

/// What came out of the session, in order.
pub(super) enum Came<'a> {
    /// The handshake went on; and whether heartbeats can get keys of this session, as a ping lane must.
    Progress(&'a CommonState, bool),
    /// Plaintext.
    Plain(&'a [u8]),
    /// The peer will send no more.
    Finished,
}

/// Who takes what comes out.
pub(super) trait Taker {
    /// Takes it; an error ends the session.
    fn take(&mut self, came: Came<'_>) -> Result<(), DownReason>;
}

enum Kind {
    /// The first record of a dialer is awaited.
    Undecided(TlsConfigs),
    Buffered(Box<Connection>),
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// See the module.
pub(super) struct Secure {
    kind: Kind,
    /// Bytes that came and are not a whole record, or not a whole handshake message.
    kept: Vec<u8>,
    /// Records of the handshake, and alerts, that are to be sent.
    out: Vec<u8>,
}

impl Secure {
    /// The dialing end.
    pub(super) fn dial(configs: &TlsConfigs, lane: LaneKind) -> Result<Self, rustls::Error> {
        let mut secure = Self::new(match lane {
            LaneKind::Ping => Kind::Buffered(Box::new(configs.dial(lane)?)),
            LaneKind::Ds | LaneKind::Bulk => Kind::Client(Box::new(configs.dial_unbuffered(lane)?)),
        });
        match &mut secure.kind {
            Kind::Buffered(connection) => connection.set_buffer_limit(None),
            // The first record is there at once.
            _ => drop(secure.process(&mut [], &mut Deaf)),
        }
        Ok(secure)
    }

    /// The accepting end.
    pub(super) fn accept(configs: &TlsConfigs) -> Self {
        Self::new(Kind::Undecided(configs.clone()))
    }

    const fn new(kind: Kind) -> Self {
        Self { kind, kept: Vec::new(), out: Vec::new() }
    }

    /// What both kinds of connection tell of themselves; `None` before the dialer's first record.
    pub(super) fn state(&self) -> Option<&CommonState> {
        match &self.kind {
            Kind::Undecided(_) => None,
            Kind::Buffered(connection) => Some(connection),
            Kind::Client(connection) => Some(connection),
            Kind::Server(connection) => Some(connection),
        }
    }

    /// Key and key id of heartbeats; `None`: this session cannot have them.
    pub(super) fn heartbeat_secret(&self, sender: MemberId) -> Option<[u8; HEARTBEAT_SECRET_BYTES]> {
        match &self.kind {
            Kind::Buffered(connection) => tls::heartbeat_secret(connection, sender).ok(),
            Kind::Undecided(_) | Kind::Client(_) | Kind::Server(_) => None,
        }
    }

    /// Takes bytes that came; they are decrypted where they are.
    pub(super) fn receive(&mut self, bytes: &mut [u8], taker: &mut impl Taker) -> Result<(), DownReason> {
        if matches!(self.kind, Kind::Undecided(_)) {
            self.kept.extend_from_slice(bytes);
            if !self.decide()? {
                return Ok(());
            }
            let mut first = std::mem::take(&mut self.kept);
            return self.receive(&mut first, taker);
        }
        if let Kind::Buffered(connection) = &mut self.kind {
            return receive_buffered(connection, bytes, taker);
        }
        let mut bytes = bytes;
        let is_handshaking = self.state().is_none_or(CommonState::is_handshaking);
        if !is_handshaking && !self.kept.is_empty() {
            // The record that is not whole is made whole by itself; what follows is then decrypted in place.
            for _ in 0..2 {
                let count = missing(&self.kept).min(bytes.len());
                let (now, rest) = bytes.split_at_mut(count);
                self.kept.extend_from_slice(now);
                bytes = rest;
            }
            if missing(&self.kept) > 0 {
                return Ok(());
            }
            self.process_kept(taker)?;
        }
        if self.kept.is_empty() && !is_handshaking {
            let used = self.process(bytes, taker)?;
            self.kept.extend_from_slice(&bytes[used..]);
            return Ok(());
        }
        if !bytes.is_empty() {
            self.kept.extend_from_slice(bytes);
            self.process_kept(taker)?;
        }
        Ok(())
    }

    /// Works on what was kept back, with what has been appended to it.
    fn process_kept(&mut self, taker: &mut impl Taker) -> Result<(), DownReason> {
        let mut kept = std::mem::take(&mut self.kept);
        let used = self.process(&mut kept, taker)?;
        kept.drain(..used);
        self.kept = kept;
        Ok(())
    }

    /// Chooses the connection by the dialer's first record, if that is there; whether it was.
    fn decide(&mut self) -> Result<bool, DownReason> {
        const HANDSHAKE: u8 = 22;
        let Kind::Undecided(configs) = &self.kind else { return Ok(true) };
        let is_tls = self.kept.first() == Some(&HANDSHAKE);
        if is_tls && missing(&self.kept) > 0 {
            return Ok(false);
        }
        let ping = LaneKind::Ping.alpn();
        let names_ping = self.kept.windows(ping.len()).any(|window| window == ping);
        let failed = |error: rustls::Error| DownReason::Tls(error.to_string());
        self.kind = if names_ping {
            let mut connection = configs.accept().map_err(failed)?;
            connection.set_buffer_limit(None);
            Kind::Buffered(Box::new(connection))
        } else {
            Kind::Server(Box::new(configs.accept_unbuffered().map_err(failed)?))
        };
        Ok(true)
    }

    /// Works on bytes of an unbuffered connection; how many it is done with. What is left must come again, in front of
    /// what follows: a message of the handshake may lie in several records.
    fn process(&mut self, bytes: &mut [u8], taker: &mut impl Taker) -> Result<usize, DownReason> {
        let Self { kind, out, .. } = self;
        match kind {
            Kind::Client(connection) => drive(&mut ***connection, bytes, out, taker),
            Kind::Server(connection) => drive(&mut ***connection, bytes, out, taker),
            Kind::Undecided(_) | Kind::Buffered(_) => Ok(bytes.len()),
        }
    }

    /// Whether records wait to be sent, beside what the caller has to send.
    pub(super) fn wants_output(&self) -> bool {
        match &self.kind {
            Kind::Buffered(connection) => connection.wants_write(),
            Kind::Undecided(_) | Kind::Client(_) | Kind::Server(_) => !self.out.is_empty(),
        }
    }

    /// Encrypts `plain` behind what waits; `close`: with a farewell at the end. After an error a part of what was to be
    /// sent is lost: the session is of no more use.
    pub(super) fn output(
        &mut self,
        plain: &[Shared],
        close: bool,
        pool: Option<&BufPool>,
    ) -> Result<Vec<Shared>, DownReason> {
        if let Kind::Buffered(connection) = &mut self.kind {
            return Ok(output_buffered(connection, plain, close));
        }
        let mut records = Records { full: Vec::new(), buf: None, pool };
        if !self.out.is_empty() {
            records.full.push(Shared::from(std::mem::take(&mut self.out)));
        }
        let kept = &mut self.kept;
        let has_word = !records.full.is_empty();
        let written = match &mut self.kind {
            // What the handshake says lies in `out` already.
            Kind::Client(connection) if connection.is_handshaking() => Ok(()),
            Kind::Server(connection) if connection.is_handshaking() => Ok(()),
            Kind::Client(connection) => write(&mut ***connection, kept, plain, close, &mut records),
            Kind::Server(connection) => write(&mut ***connection, kept, plain, close, &mut records),
            Kind::Undecided(_) | Kind::Buffered(_) => Ok(()),
        };
        match written {
            // The alert of a session that has failed still leaves; the next call tells of the failure.
            Err(error) if !has_word => Err(error),
            _ => Ok(records.finish()),
        }
    }
}

/// Both ends of an unbuffered connection.
trait Unbuffered: std::ops::Deref<Target = CommonState> {
    type Data;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Unbuffered for UnbufferedConnectionCommon<ClientConnectionData> {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
}

impl Unbuffered for UnbufferedConnectionCommon<ServerConnectionData> {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
}

/// Works on `bytes`, as far as there are whole records; how many it is done with. What the connection wants to say by
/// itself goes to `out`.
fn drive<C: Unbuffered>(
    connection: &mut C,
    bytes: &mut [u8],
    out: &mut Vec<u8>,
    taker: &mut impl Taker,
) -> Result<usize, DownReason> {
    let mut used = 0;
    loop {
        let was_handshaking = connection.is_handshaking();
        let UnbufferedStatus { mut discard, state } = connection.process(&mut bytes[used..]);
        let failed = state.as_ref().err().map(tls::reason);
        if let Some(reason) = failed {
            drop(state);
            used += discard;
            take_alert(connection, &mut bytes[used..], out);
            return Err(reason);
        }
        // Plaintext behind the end of the handshake, in one and the same call.
        let mut early = Vec::new();
        let goes_on = match state.map_err(|error| tls::reason(&error))? {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(|error| tls::reason(&error))?;
                    discard += record.discard;
                    if was_handshaking {
                        early.extend_from_slice(record.payload);
                    } else {
                        taker.take(Came::Plain(record.payload))?;
                    }
                }
                true
            }
            ConnectionState::EncodeTlsData(mut data) => {
                encode(|into| data.encode(into), out)?;
                true
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                true
            }
            ConnectionState::PeerClosed => {
                taker.take(Came::Finished)?;
                return Ok(bytes.len());
            }
            ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => false,
            ConnectionState::Closed => return Ok(bytes.len()),
            _ => return Err(DownReason::Tls("a state of TLS that is not asked for".into())),
        };
        used += discard;
        if was_handshaking {
            taker.take(Came::Progress(connection, false))?;
            if !early.is_empty() {
                taker.take(Came::Plain(&early))?;
            }
        }
        if !goes_on {
            return Ok(used);
        }
    }
}

/// Takes the alert that a failed connection has for its peer. `bytes`: those that it failed on.
fn take_alert<C: Unbuffered>(connection: &mut C, bytes: &mut [u8], out: &mut Vec<u8>) {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.process(bytes).state {
        // Without room for it, the peer learns nothing but the end.
        let _ = encode(|into| data.encode(into), out);
    }
}

/// Appends a record of the handshake.
fn encode(
    mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
    out: &mut Vec<u8>,
) -> Result<(), DownReason> {
    let at = out.len();
    let mut room = RECORD_BYTES + OVERHEAD_BYTES;
    for _ in 0..2 {
        out.resize(at + room, 0);
        match encode(&mut out[at..]) {
            Ok(count) => {
                out.truncate(at + count);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(size)) => room = size.required_size,
            Err(error) => {
                out.truncate(at);
                return Err(DownReason::Tls(error.to_string()));
            }
        }
    }
    out.truncate(at);
    Err(DownReason::Tls("a record of the handshake is longer than it said".into()))
}

/// Encrypts `plain`, and a farewell if the connection is to `close`. `kept`: what was received and not used up, which
/// every call must be given.
fn write<C: Unbuffered>(
    connection: &mut C,
    kept: &mut Vec<u8>,
    plain: &[Shared],
    close: bool,
    records: &mut Records<'_>,
) -> Result<(), DownReason> {
    loop {
        let UnbufferedStatus { discard, state } = connection.process(kept);
        let mut written = None;
        match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let mut out = Vec::new();
                if encode(|into| data.encode(into), &mut out).is_ok() {
                    records.push(out);
                }
            }
            Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
            Ok(ConnectionState::PeerClosed) => {}
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                let mut result = encrypt(&mut traffic, plain, records);
                if close && result.is_ok() {
                    result = records.fill(0, |into| traffic.queue_close_notify(into));
                }
                written = Some(result.map_err(|error| DownReason::Tls(error.to_string())));
            }
            _ if plain.is_empty() => written = Some(Ok(())),
            _ => written = Some(Err(DownReason::Tls("nothing more can be said in this session".into()))),
        }
        kept.drain(..discard);
        if let Some(result) = written {
            return result;
        }
    }
}

/// Makes full records of slices of any length.
fn encrypt<D>(
    traffic: &mut WriteTraffic<'_, D>,
    plain: &[Shared],
    records: &mut Records<'_>,
) -> Result<(), EncryptError> {
    let mut gathered: Vec<u8> = Vec::new();
    for slice in plain {
        let mut rest = &slice[..];
        while !rest.is_empty() {
            let room = RECORD_BYTES - gathered.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            rest = later;
            if now.len() == RECORD_BYTES {
                records.fill(now.len(), |into| traffic.encrypt(now, into))?;
                continue;
            }
            gathered.extend_from_slice(now);
            if gathered.len() == RECORD_BYTES {
                records.fill(gathered.len(), |into| traffic.encrypt(&gathered, into))?;
                gathered.clear();
            }
        }
    }
    if gathered.is_empty() { Ok(()) } else { records.fill(gathered.len(), |into| traffic.encrypt(&gathered, into)) }
}

/// Records that are to be sent, in buffers of the pool where there is one.
struct Records<'a> {
    full: Vec<Shared>,
    buf: Option<Buf>,
    pool: Option<&'a BufPool>,
}

impl Records<'_> {
    fn push(&mut self, records: Vec<u8>) {
        self.close();
        self.full.push(Shared::from(records));
    }

    fn close(&mut self) {
        if let Some(buf) = self.buf.take().filter(|buf| !buf.is_empty()) {
            self.full.push(buf.freeze());
        }
    }

    /// Lets `fill` write a record of `plain_bytes` behind those that are there.
    fn fill(
        &mut self,
        plain_bytes: usize,
        mut fill: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>,
    ) -> Result<(), EncryptError> {
        let mut needed = plain_bytes + OVERHEAD_BYTES;
        loop {
            if self.buf.as_ref().is_none_or(|buf| buf.spare() < needed) {
                self.close();
            }
            let pool = self.pool;
            let buf = self.buf.get_or_insert_with(|| match pool.filter(|pool| pool.buf_bytes() >= needed) {
                Some(pool) => pool.take_or_heap(),
                None => Buf::heap(needed.max(OUTPUT_BYTES)),
            });
            match fill(buf.spare_mut()) {
                Ok(count) => {
                    buf.set_len(buf.len() + count);
                    return Ok(());
                }
                // A renewal of the keys goes ahead of it.
                Err(EncryptError::InsufficientSize(size)) if size.required_size > needed => {
                    needed = size.required_size;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn finish(mut self) -> Vec<Shared> {
        self.close();
        self.full
    }
}

/// How many bytes the first record lacks: of its header, or, once that is there, of the whole.
fn missing(bytes: &[u8]) -> usize {
    match bytes.first_chunk::<RECORD_HEADER_BYTES>() {
        None => RECORD_HEADER_BYTES - bytes.len(),
        Some([.., high, low]) => {
            (RECORD_HEADER_BYTES + usize::from(u16::from_be_bytes([*high, *low]))).saturating_sub(bytes.len())
        }
    }
}

/// Nobody is to hear any more.
struct Deaf;

impl Taker for Deaf {
    fn take(&mut self, _: Came<'_>) -> Result<(), DownReason> {
        Ok(())
    }
}

fn receive_buffered(connection: &mut Connection, mut bytes: &[u8], taker: &mut impl Taker) -> Result<(), DownReason> {
    while !bytes.is_empty() {
        let taken = connection.read_tls(&mut bytes).map_err(|error| DownReason::Tls(error.to_string()))?;
        connection.process_new_packets().map_err(|error| tls::reason(&error))?;
        taker.take(Came::Progress(connection, true))?;
        loop {
            let mut reader = connection.reader();
            let plain = match reader.fill_buf() {
                Ok([]) => {
                    taker.take(Came::Finished)?;
                    return Ok(());
                }
                Ok(plain) => plain.to_vec(),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(DownReason::Tls(error.to_string())),
            };
            reader.consume(plain.len());
            taker.take(Came::Plain(&plain))?;
        }
        if taken == 0 {
            return Err(DownReason::Tls("bytes after the end of the session".into()));
        }
    }
    Ok(())
}

fn output_buffered(connection: &mut Connection, plain: &[Shared], close: bool) -> Vec<Shared> {
    let plain_bytes: usize = plain.iter().map(|slice| slice.len()).sum();
    if plain_bytes > 0 {
        let vectored: Vec<IoSlice<'_>> = plain.iter().map(|slice| IoSlice::new(slice)).collect();
        // Without a buffer limit everything is taken at once.
        let written = connection.writer().write_vectored(&vectored).unwrap_or(0);
        debug_assert_eq!(written, plain_bytes, "TLS takes all of it");
    }
    if close {
        connection.send_close_notify();
    }
    let mut records = Vec::with_capacity(plain_bytes + plain_bytes / 512 + 256);
    while connection.wants_write() {
        if connection.write_tls(&mut records).is_err() {
            break;
        }
    }
    if records.is_empty() { Vec::new() } else { vec![Shared::from(records)] }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use ringpair_wire::id::MemberId;
    use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite, crypto::CryptoProvider};

    use super::*;
    use crate::transport::tests::identity;

    #[derive(Default)]
    struct Collected {
        plain: Vec<u8>,
        finished: bool,
    }

    impl Taker for Collected {
        fn take(&mut self, came: Came<'_>) -> Result<(), DownReason> {
            match came {
                Came::Progress(..) => {}
                Came::Plain(bytes) => self.plain.extend_from_slice(bytes),
                Came::Finished => self.finished = true,
            }
            Ok(())
        }
    }

    /// Both ends of a lane, shaken hands, with `step` bytes arriving at a time.
    fn ends(lane: LaneKind, step: usize) -> [Secure; 2] {
        ends_of([MemberId::A, MemberId::B].map(|member| TlsConfigs::new(&identity(0, member)).unwrap()), lane, step)
    }

    fn ends_of(configs: [TlsConfigs; 2], lane: LaneKind, step: usize) -> [Secure; 2] {
        let mut ends = [Secure::dial(&configs[0], lane).unwrap(), Secure::accept(&configs[1])];
        for _ in 0..4 {
            for (from, to) in [(0, 1), (1, 0)] {
                deliver(&mut ends, from, to, &[], false, step, &mut Collected::default(), None);
            }
        }
        for end in &ends {
            assert!(!end.state().unwrap().is_handshaking(), "{step} bytes at a time");
        }
        ends
    }

    #[expect(clippy::too_many_arguments, reason = "a test's helper")]
    fn deliver(
        ends: &mut [Secure; 2],
        from: usize,
        to: usize,
        plain: &[Shared],
        close: bool,
        step: usize,
        into: &mut Collected,
        pool: Option<&BufPool>,
    ) -> usize {
        let records: Vec<u8> = ends[from].output(plain, close, pool).unwrap().concat();
        for part in records.chunks(step) {
            ends[to].receive(&mut part.to_vec(), into).unwrap();
        }
        records.len()
    }

    #[test]
    fn plaintext_comes_out_as_it_went_in_however_records_arrive() {
        let pool = BufPool::new(4, 64 << 10).unwrap();
        let plain: Vec<Shared> = [3, 16_384, 5, 100_000, 16_383, 1, 40_000]
            .iter()
            .map(|length| (0..*length).map(|at: usize| (at * 31) as u8).collect::<Vec<u8>>().into())
            .collect();
        for lane in LaneKind::ALL {
            for (step, pool) in
                [(1, None), (7, Some(&pool)), (4096, None), (16_405, Some(&pool)), (1 << 20, Some(&pool))]
            {
                let mut ends = ends(lane, step);
                assert_eq!(ends[0].heartbeat_secret(MemberId::A).is_some(), lane == LaneKind::Ping);
                for (from, to) in [(0, 1), (1, 0), (0, 1)] {
                    let mut got = Collected::default();
                    deliver(&mut ends, from, to, &plain, false, step, &mut got, pool);
                    assert!(got.plain == plain.concat() && !got.finished, "{lane:?} in steps of {step}");
                }
                let mut got = Collected::default();
                deliver(&mut ends, 1, 0, &plain[..1], true, step, &mut got, pool);
                assert!(got.plain == plain[0] && got.finished, "{lane:?}: the farewell follows what was queued");
            }
        }
        assert_eq!(pool.free_count(), 4);
    }

    /// Cryptography whose keys are used up after so many records; a lane that carries frames reaches the real 2^24 within
    /// the hour.
    fn short_lived_keys(records: u64) -> CryptoProvider {
        let mut provider = rustls::crypto::ring::default_provider();
        for suite in &mut provider.cipher_suites {
            if let SupportedCipherSuite::Tls13(own) = suite {
                let common = CipherSuiteCommon {
                    suite: own.common.suite,
                    hash_provider: own.common.hash_provider,
                    confidentiality_limit: records,
                };
                let short = Tls13CipherSuite {
                    common,
                    hkdf_provider: own.hkdf_provider,
                    aead_alg: own.aead_alg,
                    quic: own.quic,
                };
                *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(short)));
            }
        }
        provider
    }

    // REQ: OPS-095
    #[test]
    fn keys_are_renewed_in_the_middle_of_a_lane_both_ways() {
        let pool = BufPool::new(4, 64 << 10).unwrap();
        for lane in LaneKind::ALL {
            for (step, pool) in [(7, None), (16_405, Some(&pool)), (1 << 20, Some(&pool))] {
                let configs = [MemberId::A, MemberId::B]
                    .map(|member| TlsConfigs::with(&identity(0, member), Arc::new(short_lived_keys(20))).unwrap());
                let mut ends = ends_of(configs, lane, step);
                // How much was sent for the same plaintext, by end.
                let mut sent = [BTreeSet::new(), BTreeSet::new()];
                for round in 0..100_u8 {
                    let plain = [Shared::from(vec![round; 20]), Shared::from(vec![round; 40_000])];
                    for (from, to) in [(0, 1), (1, 0)] {
                        let mut got = Collected::default();
                        sent[from].insert(deliver(&mut ends, from, to, &plain, false, step, &mut got, pool));
                        assert!(got.plain == plain.concat(), "{lane:?} in steps of {step}, round {round}");
                    }
                }
                assert!(sent.iter().all(|sent| sent.len() == 2), "now and then a renewal goes along: {sent:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_said_any_more_is_not_dropped_in_silence() {
        let mut ends = ends(LaneKind::Ds, 1 << 20);
        for (from, to) in [(0, 1), (1, 0)] {
            deliver(&mut ends, from, to, &[], true, 1 << 20, &mut Collected::default(), None);
        }
        for end in &mut ends {
            assert!(end.output(&[Shared::from(vec![1; 10])], false, None).is_err());
            assert!(end.output(&[], false, None).is_ok_and(|records| records.is_empty()));
        }
    }

    #[test]
    fn an_altered_record_ends_the_session_with_an_alert() {
        let mut ends = ends(LaneKind::Bulk, 1 << 20);
        let mut records = ends[0].output(&[Shared::from(vec![1; 40_000])], false, None).unwrap().concat();
        records[20_000] ^= 1;
        let mut got = Collected::default();
        let refused = ends[1].receive(&mut records, &mut got);
        assert!(matches!(refused, Err(DownReason::Tls(_))), "{refused:?}");
        assert!(got.plain == [1; RECORD_BYTES], "only what came before");
        let mut alert = ends[1].output(&[], false, None).unwrap().concat();
        assert!(!alert.is_empty());
        let heard = ends[0].receive(&mut alert, &mut got);
        assert!(matches!(heard, Err(DownReason::RefusedByPeer(_))), "{heard:?}");
    }
}

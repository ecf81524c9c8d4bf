//! Bytes of a lane after decryption, cut into messages: each body once where it belongs, and not copied again.
//!
//! A large body of the bulk lane gets a buffer of the pool as soon as its header is there, and where TLS is off the
//! socket is read straight into it. Always: a length is compared with its lane's bound before anything is kept for it
//! (W-50), and no more memory than one buffer of the pool, or twice what has come, is held for what is to come (W-52).
//! Never: a message whose body does not decode.
#![forbid(unsafe_code)]

use ringpair_wire::lane::{LaneKind, MESSAGE_HEADER_BYTES, Message, MessageKind, read_header};

use super::types::DownReason;
use crate::ring::{Buf, BufPool, Shared};

/// Bodies from this length on are received into buffers of their own.
const LARGE_BYTES: usize = 32 << 10;

/// A body of which a part has come.
enum Body {
    /// In a buffer of the pool, whose capacity is at least the body's length.
    Pool(Buf),
    /// Grows as it comes.
    Heap(Vec<u8>),
}

/// A message of which the header has come.
struct Partial {
    kind: MessageKind,
    bytes: usize,
    body: Body,
}

/// See the module.
pub(super) struct Inbound {
    lane: LaneKind,
    /// A header that is not whole.
    header: Vec<u8>,
    partial: Option<Partial>,
}

fn malformed(error: impl std::fmt::Display) -> DownReason {
    DownReason::Malformed(error.to_string())
}

impl Inbound {
    /// For what comes after the hello on `lane`.
    pub(super) const fn new(lane: LaneKind) -> Self {
        Self { lane, header: Vec::new(), partial: None }
    }

    /// Takes bytes; whole messages are given to `out`.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        pool: Option<&BufPool>,
        out: &mut impl FnMut(MessageKind, Shared),
    ) -> Result<(), DownReason> {
        while !bytes.is_empty() {
            if self.partial.is_none() {
                bytes = self.begin(bytes, pool, out)?;
                continue;
            }
            let Some(partial) = &mut self.partial else { break };
            let have = partial.body.len();
            let count = bytes.len().min(partial.bytes - have);
            partial.body.append(&bytes[..count], partial.bytes);
            bytes = &bytes[count..];
            if have + count == partial.bytes {
                self.finish(out)?;
            }
        }
        Ok(())
    }

    /// Reads a header, and with it a body that lies whole behind it; what is left of the bytes.
    fn begin<'a>(
        &mut self,
        bytes: &'a [u8],
        pool: Option<&BufPool>,
        out: &mut impl FnMut(MessageKind, Shared),
    ) -> Result<&'a [u8], DownReason> {
        let missing = MESSAGE_HEADER_BYTES - self.header.len();
        let (kind, length, rest) = if missing == MESSAGE_HEADER_BYTES && bytes.len() >= MESSAGE_HEADER_BYTES {
            let Some((kind, length)) = read_header(self.lane, bytes).map_err(malformed)? else { return Ok(&[]) };
            (kind, length, &bytes[MESSAGE_HEADER_BYTES..])
        } else {
            let (now, rest) = bytes.split_at(missing.min(bytes.len()));
            self.header.extend_from_slice(now);
            let Some((kind, length)) = read_header(self.lane, &self.header).map_err(malformed)? else {
                return Ok(&[]);
            };
            self.header.clear();
            (kind, length, rest)
        };
        if let Some((body, rest)) = rest.split_at_checked(length)
            && (length < LARGE_BYTES || self.lane != LaneKind::Bulk)
        {
            Message::decode(kind, body).map_err(malformed)?;
            out(kind, Shared::copy_from_slice(body));
            return Ok(rest);
        }
        let fits = |pool: &&BufPool| self.lane == LaneKind::Bulk && (LARGE_BYTES..=pool.buf_bytes()).contains(&length);
        let buf = pool.filter(fits).and_then(BufPool::take);
        let body = buf.map_or_else(|| Body::Heap(Vec::new()), Body::Pool);
        self.partial = Some(Partial { kind, bytes: length, body });
        Ok(rest)
    }

    fn finish(&mut self, out: &mut impl FnMut(MessageKind, Shared)) -> Result<(), DownReason> {
        let Some(Partial { kind, bytes, body }) = self.partial.take() else { return Ok(()) };
        let body = match body {
            Body::Pool(buf) => buf.freeze().slice(..bytes),
            Body::Heap(body) => Shared::from(body),
        };
        Message::decode(kind, &body).map_err(malformed)?;
        out(kind, body);
        Ok(())
    }

    /// The buffer that the next bytes may be received into, behind those that it holds. They come back by
    /// [`take_back`](Self::take_back).
    pub(super) fn lend(&mut self) -> Option<Buf> {
        let partial = self.partial.take_if(|partial| matches!(partial.body, Body::Pool(_)))?;
        let Partial { kind, bytes, body: Body::Pool(buf) } = partial else { return None };
        self.partial = Some(Partial { kind, bytes, body: Body::Heap(Vec::new()) });
        Some(buf)
    }

    /// Takes a lent buffer back with what came, which may be more than the body.
    pub(super) fn take_back(
        &mut self,
        buf: Buf,
        pool: Option<&BufPool>,
        out: &mut impl FnMut(MessageKind, Shared),
    ) -> Result<(), DownReason> {
        let Some(Partial { kind, bytes, .. }) = self.partial.take() else {
            return Err(DownReason::Malformed("bytes of no message".into()));
        };
        if buf.len() < bytes {
            self.partial = Some(Partial { kind, bytes, body: Body::Pool(buf) });
            return Ok(());
        }
        let all = buf.freeze();
        let body = all.slice(..bytes);
        Message::decode(kind, &body).map_err(malformed)?;
        out(kind, body);
        self.feed(&all[bytes..], pool, out)
    }
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Pool(buf) => buf.len(),
            Self::Heap(body) => body.len(),
        }
    }

    /// Appends a part of a body that will have `total` bytes.
    fn append(&mut self, bytes: &[u8], total: usize) {
        match self {
            Self::Pool(buf) => {
                buf.append(bytes);
            }
            Self::Heap(body) => {
                let held = body.len() + bytes.len();
                if held > body.capacity() {
                    body.reserve_exact((2 * body.capacity()).max(held).min(total) - body.len());
                }
                body.extend_from_slice(bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ringpair_wire::lane::message_header;

    use super::*;

    fn stream(lengths: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>) {
        let (mut bytes, mut bodies) = (Vec::new(), Vec::new());
        for (number, length) in lengths.iter().enumerate() {
            let body: Vec<u8> = (0..*length).map(|at| (at * 7 + number) as u8).collect();
            bytes.extend_from_slice(&message_header(MessageKind::Mirror, *length));
            bytes.extend_from_slice(&body);
            bodies.push(body);
        }
        (bytes, bodies)
    }

    const LENGTHS: [usize; 9] = [0, 1, 70_000, 4, LARGE_BYTES, 200_000, LARGE_BYTES - 1, 65_536, 3];

    #[test]
    fn messages_come_whole_however_the_bytes_come_w52() {
        let (bytes, bodies) = stream(&LENGTHS);
        let pool = BufPool::new(2, 70_000).unwrap();
        for pool in [None, Some(&pool)] {
            for step in [1, 5, 1000, 33_000, bytes.len()] {
                let mut inbound = Inbound::new(LaneKind::Bulk);
                let mut got = Vec::new();
                for part in bytes.chunks(step) {
                    inbound.feed(part, pool, &mut |_, body| got.push(body.to_vec())).unwrap();
                }
                assert!(got == bodies, "in steps of {step}");
            }
        }
        assert_eq!(pool.free_count(), 2);
    }

    #[test]
    fn a_large_body_is_received_where_it_stays() {
        let (bytes, bodies) = stream(&LENGTHS);
        let pool = BufPool::new(2, 70_000).unwrap();
        let (mut inbound, mut got, mut left, mut lent) = (Inbound::new(LaneKind::Bulk), Vec::new(), &bytes[..], 0);
        while !left.is_empty() {
            let mut out = |_, body: Shared| got.push(body.to_vec());
            if let Some(mut buf) = inbound.lend() {
                lent += 1;
                let count = buf.append(&left[..left.len().min(20_000)]);
                left = &left[count..];
                inbound.take_back(buf, Some(&pool), &mut out).unwrap();
            } else {
                let (now, rest) = left.split_at(left.len().min(10_000));
                inbound.feed(now, Some(&pool), &mut out).unwrap();
                left = rest;
            }
        }
        assert!(got == bodies && lent > 3, "{lent} receives into bodies");
        assert_eq!(pool.free_count(), 2);
    }

    #[test]
    fn a_claimed_length_takes_no_memory_w52() {
        let mut inbound = Inbound::new(LaneKind::Bulk);
        let header = message_header(MessageKind::Mirror, 4 << 20);
        inbound.feed(&header, None, &mut |_, _| {}).unwrap();
        inbound.feed(&[0; 10], None, &mut |_, _| {}).unwrap();
        let Some(Partial { body: Body::Heap(body), .. }) = &inbound.partial else { panic!("on the heap") };
        assert!(body.capacity() <= 64, "{}", body.capacity());
        let too_long = message_header(MessageKind::Mirror, LaneKind::Bulk.max_body_bytes() + 1);
        let refused = Inbound::new(LaneKind::Bulk).feed(&too_long, None, &mut |_, _| {});
        assert!(matches!(refused, Err(DownReason::Malformed(_))));
    }
}

//! Lanes and the framing of messages on them, after the hello: length, type, body (SPEC.md §6).
//!
//! Always: a message's length is compared with its lane's bound before a byte of it is kept, and a type must belong
//! to its lane. Never: memory for bytes that have not come.

use crate::{
    codec::{DecodeError, Reader, Writer},
    ds::{ContentId, MAX_VALUE_BYTES},
    frame::MAX_FRAME_BYTES,
};

/// A class of traffic, on a connection of its own (design §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LaneKind {
    /// Control; its TLS session gives the key of the heartbeats.
    Ping,
    /// Frames, announcements, control of the stream.
    Ds,
    /// File content, large values, resynchronization.
    Bulk,
}

impl LaneKind {
    /// Every lane.
    pub const ALL: [Self; 3] = [Self::Ping, Self::Ds, Self::Bulk];

    /// The name used in configuration and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Ds => "ds",
            Self::Bulk => "bulk",
        }
    }

    /// The protocol name in the TLS handshake (ALPN).
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Ping => b"ringpair/ping",
            Self::Ds => b"ringpair/ds",
            Self::Bulk => b"ringpair/bulk",
        }
    }

    /// The lane that an ALPN name stands for.
    #[must_use]
    pub fn from_alpn(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.alpn() == alpn)
    }

    /// The greatest length of a message's body on this lane, in bytes (W-50).
    #[must_use]
    pub const fn max_body_bytes(self) -> usize {
        match self {
            Self::Ping => 64 << 10,
            Self::Ds => MAX_FRAME_BYTES + SLACK_BYTES,
            Self::Bulk => MAX_BULK_BODY_BYTES,
        }
    }
}

/// Which of the two connections between the members a lane runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathKind {
    /// The main address.
    Main,
    /// The auxiliary address.
    Aux,
}

impl PathKind {
    /// Both paths.
    pub const ALL: [Self; 2] = [Self::Main, Self::Aux];

    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Main => Self::Aux,
            Self::Aux => Self::Main,
        }
    }

    /// The name used in configuration and status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Aux => "aux",
        }
    }
}

/// The greatest body on the bulk lane: a block of content, or what its other users send at most.
const MAX_BULK_BODY_BYTES: usize = {
    let (resync, mirror) = (crate::resync::MAX_MESSAGE_BYTES, crate::mirror::MAX_MESSAGE_BYTES);
    let content = MAX_CONTENT_CHUNK_BYTES + SLACK_BYTES;
    let opaque = if resync > mirror { resync } else { mirror };
    if opaque > content { opaque } else { content }
};

/// Room for the fields around a frame or a block of content.
pub const SLACK_BYTES: usize = 4 << 10;
/// Kind and plain length, before the zstd frame of a packed message.
pub const PACKED_HEADER_BYTES: usize = 5;
/// Length and type, before each body.
pub const MESSAGE_HEADER_BYTES: usize = 5;
/// The greatest count of content bytes in one message.
pub const MAX_CONTENT_CHUNK_BYTES: usize = 1 << 20;
/// The greatest body that may be sent packed, before compression: what unpacking allocates at most (W-55).
pub const MAX_PACKED_BYTES: usize = (1 << 20) + SLACK_BYTES;

/// What a message is; the number is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageKind {
    /// A control message of the core (every lane but bulk).
    Control = 1,
    /// A frame's bytes (ds).
    Frame = 2,
    /// Announcement of dirty files (ds).
    Announce = 3,
    /// Resynchronization by digests (ds, bulk).
    Resync = 4,
    /// The mirror's messages (bulk).
    Mirror = 5,
    /// A part of a content (bulk).
    Content = 6,
    /// A request for a content (bulk).
    ContentRequest = 7,
    /// Another message of the bulk lane, compressed (bulk).
    Packed = 8,
}

impl MessageKind {
    const ALL: [Self; 8] = [
        Self::Control,
        Self::Frame,
        Self::Announce,
        Self::Resync,
        Self::Mirror,
        Self::Content,
        Self::ContentRequest,
        Self::Packed,
    ];

    /// The kind with this number.
    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// Whether this kind belongs on `lane` (W-51).
    #[must_use]
    pub const fn allowed_on(self, lane: LaneKind) -> bool {
        match self {
            Self::Control => !matches!(lane, LaneKind::Bulk),
            Self::Frame | Self::Announce => matches!(lane, LaneKind::Ds),
            Self::Resync => matches!(lane, LaneKind::Ds | LaneKind::Bulk),
            Self::Mirror | Self::Content | Self::ContentRequest | Self::Packed => matches!(lane, LaneKind::Bulk),
        }
    }
}

/// A message, its body borrowed from the lane's buffer. Bodies marked opaque are read by their owners' codecs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Opaque: a [`crate::control`] message.
    Control(&'a [u8]),
    /// A whole frame, unchecked: [`crate::frame::CheckedFrame::check`] is next.
    Frame(&'a [u8]),
    /// Opaque: the mirror's announcement.
    Announce(&'a [u8]),
    /// Opaque: resynchronization.
    Resync(&'a [u8]),
    /// Opaque: the mirror.
    Mirror(&'a [u8]),
    /// A part of a content.
    Content {
        /// Which content.
        id: ContentId,
        /// Where the part begins, in bytes.
        offset: u64,
        /// The length of the whole content in bytes, at most [`MAX_VALUE_BYTES`].
        total: u64,
        /// The part; ends at `total` at the latest.
        bytes: &'a [u8],
    },
    /// Asks for a content, from an offset on.
    ContentRequest {
        /// Which content.
        id: ContentId,
        /// What the asker has already, in bytes.
        offset: u64,
    },
    /// Another message of the bulk lane; [`crate::compress::Decompressor::expand`] gives its body, which is then decoded.
    Packed {
        /// What the message is; never itself packed.
        kind: MessageKind,
        /// The length of its body in bytes, at most [`MAX_PACKED_BYTES`] and more than `stored` has.
        plain_bytes: usize,
        /// The body as one zstd frame by itself.
        stored: &'a [u8],
    },
}

/// Why bytes on a lane are not a message. After any of these the lane is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaneError {
    /// Over the lane's bound (W-50).
    #[error("message of {got} bytes on the {} lane, expected at most {max}", lane.name())]
    TooLong {
        /// The lane.
        lane: LaneKind,
        /// What the header says.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// A type that does not exist or does not belong on this lane (W-51).
    #[error("message type {got} does not belong on the {} lane", lane.name())]
    Kind {
        /// The lane.
        lane: LaneKind,
        /// What the header says.
        got: u8,
    },
    /// The body is not what its type says.
    #[error("message body: {0}")]
    Body(#[from] DecodeError),
}

/// The header of a message whose body is sent from a buffer of its own (a frame, as it was journalled).
///
/// # Panics
/// Where `body_bytes` is over 4 GiB: bounded by every caller.
#[must_use]
pub fn message_header(kind: MessageKind, body_bytes: usize) -> [u8; MESSAGE_HEADER_BYTES] {
    assert!(u32::try_from(body_bytes).is_ok(), "message body of {body_bytes} bytes");
    let [a, b, c, d] = (body_bytes as u32).to_le_bytes();
    [a, b, c, d, kind as u8]
}

impl<'a> Message<'a> {
    /// What this message is.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::Control(_) => MessageKind::Control,
            Self::Frame(_) => MessageKind::Frame,
            Self::Announce(_) => MessageKind::Announce,
            Self::Resync(_) => MessageKind::Resync,
            Self::Mirror(_) => MessageKind::Mirror,
            Self::Content { .. } => MessageKind::Content,
            Self::ContentRequest { .. } => MessageKind::ContentRequest,
            Self::Packed { .. } => MessageKind::Packed,
        }
    }

    /// Appends header and body to `out`. The body must keep to its lane's bound: the peer closes the lane otherwise.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&message_header(self.kind(), 0));
        let mut w = Writer::new(out);
        match *self {
            Self::Control(body)
            | Self::Frame(body)
            | Self::Announce(body)
            | Self::Resync(body)
            | Self::Mirror(body) => w.raw(body),
            Self::Content { id, offset, total, bytes } => {
                w.content_id(id);
                w.u64(offset);
                w.u64(total);
                w.raw(bytes);
            }
            Self::ContentRequest { id, offset } => {
                w.content_id(id);
                w.u64(offset);
            }
            Self::Packed { kind, plain_bytes, stored } => {
                w.raw(&packed_header(kind, plain_bytes));
                w.raw(stored);
            }
        }
        let header = message_header(self.kind(), out.len() - start - MESSAGE_HEADER_BYTES);
        out[start..start + MESSAGE_HEADER_BYTES].copy_from_slice(&header);
    }

    /// Reads the body of a message of this kind; bodies marked opaque are given as they are.
    ///
    /// # Errors
    /// [`DecodeError`] names the field, with got and expected.
    pub fn decode(kind: MessageKind, body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        Ok(match kind {
            MessageKind::Control => Self::Control(body),
            MessageKind::Frame => Self::Frame(body),
            MessageKind::Announce => Self::Announce(body),
            MessageKind::Resync => Self::Resync(body),
            MessageKind::Mirror => Self::Mirror(body),
            MessageKind::Content => {
                let (id, offset, total) =
                    (r.content_id("content.id")?, r.u64("content.offset")?, r.u64("content.total")?);
                let bytes = r.rest();
                within("content.total", total, MAX_VALUE_BYTES as u64)?;
                within("content.bytes", bytes.len() as u64, MAX_CONTENT_CHUNK_BYTES as u64)?;
                within("content.offset", offset, total)?;
                within("content.end", offset + bytes.len() as u64, total)?;
                Self::Content { id, offset, total, bytes }
            }
            MessageKind::ContentRequest => {
                let (id, offset) = (r.content_id("content_request.id")?, r.u64("content_request.offset")?);
                r.finish("content_request")?;
                within("content_request.offset", offset, MAX_VALUE_BYTES as u64)?;
                Self::ContentRequest { id, offset }
            }
            MessageKind::Packed => {
                let got = r.u8("packed.kind")?;
                let plain = r.u32("packed.plain_bytes")?;
                let stored = r.rest();
                let packable = |kind: &MessageKind| *kind != MessageKind::Packed && kind.allowed_on(LaneKind::Bulk);
                let kind = MessageKind::from_number(got).filter(packable).ok_or(DecodeError::Tag {
                    what: "packed.kind",
                    got: got.into(),
                    expected: "4 (resynchronization) to 7 (content request)",
                })?;
                within("packed.plain_bytes", plain.into(), MAX_PACKED_BYTES as u64)?;
                // What did not shrink is never packed.
                within("packed.stored", stored.len() as u64 + 1, plain.into())?;
                Self::Packed { kind, plain_bytes: plain as usize, stored }
            }
        })
    }
}

const fn within(what: &'static str, got: u64, max: u64) -> Result<(), DecodeError> {
    if got <= max { Ok(()) } else { Err(DecodeError::TooLong { what, got, max }) }
}

/// Kind and body length of the message whose first bytes these are; `None` while its header is not whole. For a reader
/// that keeps bodies apart; the body is read by [`Message::decode`].
///
/// # Errors
/// The header alone shows that the lane must be closed (W-50, W-51).
pub fn read_header(lane: LaneKind, bytes: &[u8]) -> Result<Option<(MessageKind, usize)>, LaneError> {
    let Some([a, b, c, d, kind]) = bytes.first_chunk::<MESSAGE_HEADER_BYTES>().copied() else { return Ok(None) };
    let (got, max) = (u32::from_le_bytes([a, b, c, d]) as usize, lane.max_body_bytes());
    if got > max {
        return Err(LaneError::TooLong { lane, got, max });
    }
    let known = MessageKind::from_number(kind).filter(|known| known.allowed_on(lane));
    known.map(|kind| Some((kind, got))).ok_or(LaneError::Kind { lane, got: kind })
}

/// What stands before the zstd frame in the body of a packed message.
///
/// # Panics
/// Where `plain_bytes` is over 4 GiB: bounded by every caller.
#[must_use]
pub fn packed_header(kind: MessageKind, plain_bytes: usize) -> [u8; PACKED_HEADER_BYTES] {
    assert!(u32::try_from(plain_bytes).is_ok(), "packed body of {plain_bytes} bytes");
    let [a, b, c, d] = (plain_bytes as u32).to_le_bytes();
    [kind as u8, a, b, c, d]
}

/// Cuts the bytes of a lane into messages as they come.
///
/// [`feed`](Self::feed) takes bytes, [`poll`](Self::poll) gives messages; after an error the lane must be closed.
#[derive(Debug)]
pub struct LaneParser {
    lane: LaneKind,
    buffer: Vec<u8>,
    /// Where the next message begins in `buffer`.
    start: usize,
    failed: Option<LaneError>,
}

impl LaneParser {
    /// A parser for what comes after the hello on `lane`.
    #[must_use]
    pub const fn new(lane: LaneKind) -> Self {
        Self { lane, buffer: Vec::new(), start: 0, failed: None }
    }

    /// Takes bytes from the front of `bytes`, and says how many: never so many that more than one message of the
    /// greatest length is buffered (W-52). Poll until there is no message, then feed the rest.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        self.buffer.drain(..std::mem::take(&mut self.start));
        let bound = MESSAGE_HEADER_BYTES + self.lane.max_body_bytes();
        let held = self.buffer.len();
        let taken = bytes.len().min(bound.saturating_sub(held));
        if held + taken > self.buffer.capacity() {
            let capacity = (2 * self.buffer.capacity()).max(held + taken).min(bound);
            self.buffer.reserve_exact(capacity - held);
        }
        self.buffer.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// The next whole message, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// [`LaneError`], and the same one on every later call.
    pub fn poll(&mut self) -> Result<Option<Message<'_>>, LaneError> {
        Ok(match self.poll_body()? {
            Some((kind, body)) => Some(Message::decode(kind, body)?),
            None => None,
        })
    }

    /// As [`poll`](Self::poll), for a reader that keeps the body and decodes it later. The body is checked already.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn poll_body(&mut self) -> Result<Option<(MessageKind, &[u8])>, LaneError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match Self::cut(self.lane, &self.buffer[self.start..]) {
            Ok(None) => Ok(None),
            Ok(Some((kind, body))) => {
                self.start += MESSAGE_HEADER_BYTES + body.len();
                Ok(Some((kind, body)))
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// How many bytes wait for the rest of their message.
    #[must_use]
    pub const fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn cut(lane: LaneKind, bytes: &[u8]) -> Result<Option<(MessageKind, &[u8])>, LaneError> {
        let Some((kind, got)) = read_header(lane, bytes)? else { return Ok(None) };
        let Some(body) = bytes[MESSAGE_HEADER_BYTES..].get(..got) else { return Ok(None) };
        Message::decode(kind, body)?;
        Ok(Some((kind, body)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::golden;

    fn samples() -> [(LaneKind, Message<'static>); 10] {
        let id = ContentId([3; 32]);
        [
            (LaneKind::Ping, Message::Control(b"control")),
            (LaneKind::Ds, Message::Control(b"")),
            (LaneKind::Ds, Message::Frame(b"frame")),
            (LaneKind::Ds, Message::Announce(b"announce")),
            (LaneKind::Ds, Message::Resync(b"resync")),
            (LaneKind::Bulk, Message::Resync(b"resync")),
            (LaneKind::Bulk, Message::Mirror(b"mirror")),
            (LaneKind::Bulk, Message::Content { id, offset: 4, total: 9, bytes: b"bytes" }),
            (LaneKind::Bulk, Message::ContentRequest { id, offset: 4 }),
            (LaneKind::Bulk, Message::Packed { kind: MessageKind::Mirror, plain_bytes: 300, stored: b"zstd" }),
        ]
    }

    fn encoded(message: &Message<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        message.encode(&mut out);
        out
    }

    /// Feeds and polls until the bytes are used up or an error comes.
    fn parse(parser: &mut LaneParser, mut bytes: &[u8], mut seen: impl FnMut(Message<'_>)) -> Result<(), LaneError> {
        loop {
            let taken = parser.feed(bytes);
            bytes = &bytes[taken..];
            while let Some(message) = parser.poll()? {
                seen(message);
            }
            if bytes.is_empty() {
                return Ok(());
            }
            assert!(taken > 0, "a parser that has no message takes bytes");
        }
    }

    #[test]
    fn golden_messages() {
        let samples = samples();
        let (first, later) = samples.split_at(9);
        golden("lane_messages", &first.iter().flat_map(|(_, message)| encoded(message)).collect::<Vec<u8>>());
        golden("lane_packed", &later.iter().flat_map(|(_, message)| encoded(message)).collect::<Vec<u8>>());
    }

    #[test]
    fn messages_come_out_as_they_went_in_whatever_the_pieces() {
        for lane in LaneKind::ALL {
            let mine: Vec<_> =
                samples().into_iter().filter(|(on, _)| *on == lane).map(|(_, message)| message).collect();
            let bytes: Vec<u8> = mine.iter().flat_map(encoded).collect();
            for piece in 1..bytes.len() {
                let (mut parser, mut at) = (LaneParser::new(lane), 0);
                for part in bytes.chunks(piece) {
                    parse(&mut parser, part, |message| {
                        assert_eq!(message, mine[at]);
                        at += 1;
                    })
                    .unwrap();
                }
                assert_eq!((at, parser.buffered_bytes()), (mine.len(), 0));
            }
        }
    }

    #[test]
    fn a_kind_is_refused_on_a_lane_it_does_not_belong_on_w51() {
        for lane in LaneKind::ALL {
            for got in 0..=255 {
                let mut bytes = message_header(MessageKind::Control, 8);
                bytes[4] = got;
                let mut parser = LaneParser::new(lane);
                parser.feed(&bytes);
                let belongs = samples().iter().any(|(on, message)| *on == lane && message.kind() as u8 == got);
                let polled = parser.poll();
                assert_eq!(polled, if belongs { Ok(None) } else { Err(LaneError::Kind { lane, got }) });
            }
        }
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_its_bytes_come_w50_w52() {
        for lane in LaneKind::ALL {
            let max = lane.max_body_bytes();
            let kind = if lane == LaneKind::Bulk { MessageKind::Resync } else { MessageKind::Control };
            let mut parser = LaneParser::new(lane);
            parser.feed(&message_header(kind, max + 1));
            let refused = LaneError::TooLong { lane, got: max + 1, max };
            assert_eq!(parser.poll(), Err(refused.clone()));
            assert_eq!(parser.poll(), Err(refused), "and for good");

            let mut parser = LaneParser::new(lane);
            assert_eq!(parser.feed(&message_header(kind, max)), MESSAGE_HEADER_BYTES);
            assert!(parser.buffer.capacity() < 64, "memory only for what has come");
            let rest = vec![0; max + 10];
            assert_eq!(parser.feed(&rest), max, "no more than one message");
            assert!(parser.buffer.capacity() <= MESSAGE_HEADER_BYTES + max);
            assert!(matches!(parser.poll(), Ok(Some(_))));
        }
    }

    #[test]
    fn the_bounds_hold_what_the_lanes_carry_w50() {
        assert!(LaneKind::Ping.max_body_bytes() >= crate::control_codec::MAX_CONTROL_BYTES);
        assert!(LaneKind::Ds.max_body_bytes() >= MAX_FRAME_BYTES);
        let bulk = LaneKind::Bulk.max_body_bytes();
        for most in [crate::mirror::MAX_MESSAGE_BYTES, crate::resync::MAX_MESSAGE_BYTES] {
            assert!(bulk >= most);
        }
    }

    #[test]
    fn content_keeps_within_its_length_w53() {
        let id = ContentId([3; 32]);
        let max = MAX_VALUE_BYTES as u64;
        for (message, what) in [
            (Message::Content { id, offset: 0, total: max + 1, bytes: b"" }, "content.total"),
            (Message::Content { id, offset: 5, total: 4, bytes: b"" }, "content.offset"),
            (Message::Content { id, offset: 4, total: 5, bytes: b"xx" }, "content.end"),
            (Message::Content { id, offset: u64::MAX, total: 5, bytes: b"xx" }, "content.offset"),
            (Message::ContentRequest { id, offset: max + 1 }, "content_request.offset"),
        ] {
            let bytes = encoded(&message);
            let error = parse(&mut LaneParser::new(LaneKind::Bulk), &bytes, |_| ()).unwrap_err();
            assert!(
                matches!(&error, LaneError::Body(DecodeError::TooLong { what: field, .. }) if *field == what),
                "{error}"
            );
        }
        let part = vec![0; MAX_CONTENT_CHUNK_BYTES + 1];
        let bytes = encoded(&Message::Content { id, offset: 0, total: max, bytes: &part });
        assert!(parse(&mut LaneParser::new(LaneKind::Bulk), &bytes, |_| ()).is_err());
    }

    #[test]
    fn what_is_packed_is_bounded_and_belongs_there_w55() {
        let packed = |kind, plain: u32, stored: &[u8]| {
            let mut body = vec![kind];
            body.extend_from_slice(&plain.to_le_bytes());
            body.extend_from_slice(stored);
            Message::decode(MessageKind::Packed, &body).map(|_| ())
        };
        for kind in 0..=255_u8 {
            let belongs = (4..=7).contains(&kind);
            assert_eq!(packed(kind, 300, b"zstd").is_ok(), belongs, "kind {kind}");
        }
        assert!(packed(5, MAX_PACKED_BYTES as u32, b"zstd").is_ok());
        let field = |error: DecodeError| match error {
            DecodeError::TooLong { what, .. } => what,
            other => panic!("{other}"),
        };
        assert_eq!(field(packed(5, MAX_PACKED_BYTES as u32 + 1, b"zstd").unwrap_err()), "packed.plain_bytes");
        assert_eq!(field(packed(5, 4, b"zstd").unwrap_err()), "packed.stored");
        assert!(packed(5, 5, b"zstd").is_ok());
    }

    #[test]
    fn lanes_have_their_names() {
        for lane in LaneKind::ALL {
            assert_eq!(LaneKind::from_alpn(lane.alpn()), Some(lane));
            assert_eq!(lane.alpn(), format!("ringpair/{}", lane.name()).as_bytes());
        }
        assert_eq!(LaneKind::from_alpn(b"h2"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(pieces in prop::collection::vec(any::<Vec<u8>>(), 0..8), lane in 0..3_usize) {
            let mut parser = LaneParser::new(LaneKind::ALL[lane]);
            for piece in pieces {
                if parse(&mut parser, &piece, |_| ()).is_err() {
                    break;
                }
            }
        }
    }
}

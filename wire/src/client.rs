//! The native client's protocol on a member's API socket: greetings, writes, answers (SPEC.md §11).
//!
//! Always: the first byte is none that HTTP begins with; versions stand at the same place in every version; a length is
//! compared with its bound before anything is kept for it; a bad request is told from a bad message, so that it alone
//! fails. Never: an allocation that outgrows the input, or a meaning given to a name or path, which the member judges.

use crate::{
    codec::{DecodeError, MAX_PATH_BYTES, Reader, Writer},
    ds::CONTENT_FROM_BYTES,
    hello::VersionRange,
    id::{AckLevel, MemberId},
    record::MAX_LIST,
};

mod answer;

pub use answer::{Answer, Failed, FailureCode, Reached, Versions};

pub use crate::ds::ValueRef;

/// The first bytes in both directions: the first is no letter, so that no HTTP request begins with it (W-100).
pub const MAGIC: [u8; 4] = [0xa9, b'R', b'P', b'C'];
/// What this build speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };
/// The greatest length of a greeting, in bytes.
pub const MAX_GREETING_BYTES: usize = 256;
/// The greatest length of the body of a write, in bytes (W-103): the greatest object, and room for what is around it.
pub const MAX_WRITE_BYTES: usize = (1 << 20) + (64 << 10);
/// The greatest length of the body of an answer, in bytes (W-103).
pub const MAX_ANSWER_BYTES: usize = 16 << 10;
/// The greatest length of one request, in bytes: one fits into a write by itself.
pub const MAX_REQUEST_BYTES: usize = MAX_WRITE_BYTES - 64;
/// The greatest count of requests in one write.
pub const MAX_REQUESTS: u32 = 65_536;
/// The greatest count of operations in one request: more are for an import over HTTP.
pub const MAX_OPERATIONS: usize = 255;
/// The longest time that a request may wait for its level, in milliseconds: a day.
pub const MAX_TIMEOUT_MS: u32 = 86_400_000;
/// Length and type, before each body.
pub const HEADER_BYTES: usize = 5;
/// The greatest length of a text in an answer, in bytes.
const MAX_TEXT_BYTES: usize = 4 << 10;
/// The greatest length of a name in a request, in bytes: longer ones cannot be valid.
const MAX_NAME_BYTES: usize = 1 << 10;
const GREETING_HEADER_BYTES: usize = 6;

mod kind {
    pub const WRITE: u8 = 1;
    pub const REACHED: u8 = 16;
    pub const FAILED: u8 = 17;
    pub const GOODBYE: u8 = 18;
}

/// Why bytes are not this protocol. After any of these the connection is closed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Not a greeting at all (W-100).
    #[error("first bytes {got:02x?} are no greeting, expected {MAGIC:02x?}")]
    Magic {
        /// What came.
        got: [u8; 4],
    },
    /// No version in common (W-101).
    #[error("the other side speaks client protocol version {theirs}, this one {ours}. Try: upgrade the older one")]
    Versions {
        /// What this side speaks.
        ours: VersionRange,
        /// What the other side speaks.
        theirs: VersionRange,
    },
    /// Over a bound (W-103).
    #[error("{what} of {got} bytes, expected at most {max}")]
    TooLong {
        /// `greeting` or `message`.
        what: &'static str,
        /// What it says.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// A message that does not exist or goes the other way (W-104).
    #[error("message type {got} is not known here")]
    Kind {
        /// What the header says.
        got: u8,
    },
    /// The body is not what its type says.
    #[error("message body: {0}")]
    Body(#[from] DecodeError),
}

/// The first message of each side. The client's says nothing but its versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// What the speaker speaks.
    pub versions: VersionRange,
    /// From a member: who it is.
    pub member: Option<Limits>,
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Which member it is.
    pub member: MemberId,
    /// It reads no further while so many requests of the connection are unanswered.
    pub max_unanswered: u32,
}

impl Greeting {
    /// The greeting's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        let mut w = Writer::new(&mut out);
        w.raw(&MAGIC);
        w.u16(0);
        w.u16(self.versions.min);
        w.u16(self.versions.max);
        if let Some(limits) = &self.member {
            w.member(limits.member);
            w.u32(limits.max_unanswered);
        }
        let body = (out.len() - GREETING_HEADER_BYTES) as u16;
        out[4..GREETING_HEADER_BYTES].copy_from_slice(&body.to_le_bytes());
        out
    }

    /// Reads a greeting from the front of what has come so far, and says how many bytes it took; `None` until it is
    /// whole. What cannot become one is refused at its first wrong byte. `from_member`: whether a member speaks.
    ///
    /// # Errors
    /// [`ClientError`]; without a common version [`ClientError::Versions`], whatever else the greeting says.
    pub fn parse(bytes: &[u8], from_member: bool, ours: VersionRange) -> Result<Option<(Self, usize)>, ClientError> {
        let known = bytes.len().min(MAGIC.len());
        if bytes[..known] != MAGIC[..known] {
            let mut got = [0; 4];
            got[..known].copy_from_slice(&bytes[..known]);
            return Err(ClientError::Magic { got });
        }
        let Some(&[_, _, _, _, low, high]) = bytes.first_chunk::<GREETING_HEADER_BYTES>() else { return Ok(None) };
        let end = GREETING_HEADER_BYTES + usize::from(u16::from_le_bytes([low, high]));
        if end > MAX_GREETING_BYTES {
            return Err(ClientError::TooLong { what: "greeting", got: end, max: MAX_GREETING_BYTES });
        }
        let Some(body) = bytes.get(GREETING_HEADER_BYTES..end) else { return Ok(None) };
        let mut r = Reader::new(body);
        let theirs = VersionRange { min: r.u16("greeting.min")?, max: r.u16("greeting.max")? };
        if ours.max.min(theirs.max) < ours.min.max(theirs.min) {
            return Err(ClientError::Versions { ours, theirs });
        }
        let member = if from_member {
            let member = r.member("greeting.member")?;
            Some(Limits { member, max_unanswered: r.u32("greeting.max_unanswered")? })
        } else {
            None
        };
        // A newer side may say more than this version knows.
        if theirs.max <= ours.max {
            r.finish("greeting")?;
        }
        Ok(Some((Self { versions: theirs, member }, end)))
    }
}

/// What is to happen to the values of one attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// These values in place of whatever there was.
    Set = 0,
    /// These values as well.
    Add = 1,
    /// Without these values.
    Remove = 2,
    /// Without the attribute; there are no values.
    Unset = 3,
}

/// What is to happen to one attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttributeEdit<'a> {
    /// Its name.
    pub name: &'a str,
    /// How.
    pub how: How,
    /// The values; none with [`How::Unset`].
    pub values: Vec<ValueRef<'a>>,
}

/// One operation of a request; everything in it is unchecked but its form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Creates or changes an object.
    Put {
        /// Where.
        path: &'a str,
        /// Its class; `None` keeps the present one.
        class: Option<&'a str>,
        /// Whether attributes that are not named are removed.
        replace: bool,
        /// The attributes.
        attributes: Vec<AttributeEdit<'a>>,
    },
    /// Removes an object.
    Remove {
        /// Where.
        path: &'a str,
        /// Whether what lies below goes with it.
        recursive: bool,
        /// Whether an object that is not there counts as removed.
        missing_ok: bool,
    },
}

impl<'a> Operation<'a> {
    /// Appends the encoding.
    pub fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Put { path, class, replace, attributes } => {
                w.u8(1);
                w.text(path);
                w.option(class.as_ref(), |w, class| w.text(class));
                w.bool(*replace);
                w.count(attributes.len());
                for attribute in attributes {
                    attribute.encode(w);
                }
            }
            Self::Remove { path, recursive, missing_ok } => {
                w.u8(2);
                w.text(path);
                w.bool(*recursive);
                w.bool(*missing_ok);
            }
        }
    }

    fn decode(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match r.u8("operation.type")? {
            1 => {
                let path = r.text("operation.path", MAX_PATH_BYTES)?;
                let class = r.option("operation.class", |r| r.text("operation.class", MAX_NAME_BYTES))?;
                let replace = r.bool("operation.replace")?;
                let count = r.count("operation.attributes", MAX_LIST, 2)?;
                let attributes = (0..count).map(|_| AttributeEdit::decode(r)).collect::<Result<_, _>>()?;
                Ok(Self::Put { path, class, replace, attributes })
            }
            2 => Ok(Self::Remove {
                path: r.text("operation.path", MAX_PATH_BYTES)?,
                recursive: r.bool("operation.recursive")?,
                missing_ok: r.bool("operation.missing_ok")?,
            }),
            got => Err(DecodeError::Tag { what: "operation.type", got: got.into(), expected: "1 (put) or 2 (remove)" }),
        }
    }
}

impl<'a> AttributeEdit<'a> {
    fn encode(&self, w: &mut Writer<'_>) {
        w.text(self.name);
        w.u8(self.how as u8);
        if self.how == How::Unset {
            return;
        }
        w.count(self.values.len());
        for value in &self.values {
            value.encode(w);
        }
    }

    fn decode(r: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let name = r.text("edit.name", MAX_NAME_BYTES)?;
        let how = match r.u8("edit.how")? {
            0 => How::Set,
            1 => How::Add,
            2 => How::Remove,
            3 => return Ok(Self { name, how: How::Unset, values: Vec::new() }),
            got => {
                let expected = "0 (set), 1 (add), 2 (remove) or 3 (unset)";
                return Err(DecodeError::Tag { what: "edit.how", got: got.into(), expected });
            }
        };
        let count = r.count("edit.values", MAX_LIST, 2)?;
        let values = (0..count)
            .map(|_| match r.u8("edit.value")? {
                1 => r.text("edit.text", CONTENT_FROM_BYTES).map(ValueRef::Text),
                2 => r.blob("edit.bytes", CONTENT_FROM_BYTES).map(ValueRef::Bytes),
                got => {
                    let expected = "1 (text) or 2 (bytes)";
                    Err(DecodeError::Tag { what: "edit.value", got: got.into(), expected })
                }
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { name, how, values })
    }
}

/// Appends a request: one transaction of 1 to [`MAX_OPERATIONS`] operations, resolved in order, all or nothing.
pub fn encode_request(operations: &[Operation<'_>], out: &mut Vec<u8>) {
    let mut w = Writer::new(out);
    w.count(operations.len());
    operations.iter().for_each(|operation| operation.encode(&mut w));
}

/// The operations of one request, decoded one by one.
#[derive(Clone, Debug)]
pub struct Operations<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> Operations<'a> {
    /// The operations in a request's bytes.
    ///
    /// # Errors
    /// None, or more than [`MAX_OPERATIONS`].
    pub fn parse(request: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(request);
        let left = reader.count("request.operations", MAX_OPERATIONS, 3)?;
        if left == 0 {
            let why = "a request has at least one operation".into();
            return Err(DecodeError::Invalid { what: "request.operations", why });
        }
        Ok(Self { reader, left })
    }

    /// How many are left.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.left
    }

    /// The next one; `None` at the end.
    ///
    /// # Errors
    /// [`DecodeError`] names the field; the request is of no use then.
    pub fn take(&mut self) -> Result<Option<Operation<'a>>, DecodeError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        let operation = Operation::decode(&mut self.reader)?;
        self.left = left;
        if left == 0 {
            self.reader.clone().finish("request")?;
        }
        Ok(Some(operation))
    }
}

fn level_byte(level: AckLevel) -> u8 {
    match level {
        AckLevel::Async => 1,
        AckLevel::Local => 2,
        AckLevel::Received => 3,
        AckLevel::Durable => 4,
        AckLevel::Applied => 5,
    }
}

fn read_level(r: &mut Reader<'_>, what: &'static str) -> Result<Option<AckLevel>, DecodeError> {
    Ok(Some(match r.u8(what)? {
        0 => return Ok(None),
        1 => AckLevel::Async,
        2 => AckLevel::Local,
        3 => AckLevel::Received,
        4 => AckLevel::Durable,
        5 => AckLevel::Applied,
        got => {
            let expected = "0 (as configured), 1 (async), 2 (local), 3 (received), 4 (durable) or 5 (applied)";
            return Err(DecodeError::Tag { what, got: got.into(), expected });
        }
    }))
}

/// Requests with consecutive numbers, and how far each must have come before it is answered.
#[derive(Clone, Debug)]
pub struct Write<'a> {
    /// The level; `None`: as the member is configured.
    pub ack: Option<AckLevel>,
    /// How long each may take, in milliseconds; 0: as long as over HTTP.
    pub timeout_ms: u32,
    /// The number of the first; numbers grow along a connection.
    pub first: u64,
    /// How many there are, at least 1.
    pub count: u32,
    /// The requests, each behind its length.
    pub requests: Requests<'a>,
}

/// The requests of a write that were not taken yet.
#[derive(Clone, Debug)]
pub struct Requests<'a>(Reader<'a>);

impl<'a> Requests<'a> {
    /// Goes on in the middle of a write: with its last [`remaining`](Self::remaining) bytes.
    #[must_use]
    pub const fn resume(rest: &'a [u8]) -> Self {
        Self(Reader::new(rest))
    }

    /// How many bytes are left.
    #[must_use]
    pub const fn remaining(&self) -> usize {
        self.0.remaining()
    }

    /// The bytes of the next request.
    ///
    /// # Errors
    /// The message ends inside it: the connection is of no more use.
    pub fn take(&mut self) -> Result<&'a [u8], DecodeError> {
        self.0.blob("write.request", MAX_REQUEST_BYTES)
    }
}

/// How long the message at the front of `bytes` is, header included; `None` until that is known.
///
/// # Errors
/// [`ClientError::TooLong`], before any of it is kept.
pub fn message_bytes(bytes: &[u8], max_body: usize) -> Result<Option<usize>, ClientError> {
    let Some(&[a, b, c, d, _]) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let body = u32::from_le_bytes([a, b, c, d]) as usize;
    if body > max_body {
        return Err(ClientError::TooLong { what: "message", got: body, max: max_body });
    }
    Ok(Some(HEADER_BYTES + body))
}

/// Kind and body of a whole message.
fn split(message: &[u8]) -> Result<(u8, &[u8]), ClientError> {
    let mut r = Reader::new(message);
    r.u32("message.length")?;
    Ok((r.u8("message.type")?, r.rest()))
}

/// Begins a write at the end of `out`; gives where.
pub fn begin_write(out: &mut Vec<u8>, ack: Option<AckLevel>, timeout_ms: u32, first: u64) -> usize {
    let start = out.len();
    let mut w = Writer::new(out);
    w.u32(0);
    w.u8(kind::WRITE);
    w.u8(ack.map_or(0, level_byte));
    w.u32(timeout_ms);
    w.u64(first);
    w.u32(0);
    start
}

/// Appends a request of at most [`MAX_REQUEST_BYTES`] to the write that was begun last.
pub fn push_request(out: &mut Vec<u8>, request: &[u8]) {
    Writer::new(out).blob(request);
}

/// Ends the write that was begun at `start` with `count` requests.
///
/// # Panics
/// Where its body is over [`MAX_WRITE_BYTES`]: bounded by every caller.
pub fn end_write(out: &mut [u8], start: usize, count: u32) {
    let body = out.len() - start - HEADER_BYTES;
    assert!(body <= MAX_WRITE_BYTES, "a write of {body} bytes");
    out[start..start + 4].copy_from_slice(&(body as u32).to_le_bytes());
    let at = start + HEADER_BYTES + 13;
    out[at..at + 4].copy_from_slice(&count.to_le_bytes());
}

impl<'a> Write<'a> {
    /// Reads a whole message that came from a client.
    ///
    /// # Errors
    /// [`ClientError`]; the requests themselves are not looked at.
    pub fn parse(message: &'a [u8]) -> Result<Self, ClientError> {
        let (kind, body) = split(message)?;
        if kind != kind::WRITE {
            return Err(ClientError::Kind { got: kind });
        }
        let mut r = Reader::new(body);
        let ack = read_level(&mut r, "write.level")?;
        let timeout_ms = r.u32("write.timeout_ms")?;
        let (first, count) = (r.u64("write.first")?, r.u32("write.count")?);
        let over = |what, got: u64, max: u64| DecodeError::TooLong { what, got, max };
        if timeout_ms > MAX_TIMEOUT_MS {
            return Err(over("write.timeout_ms", timeout_ms.into(), MAX_TIMEOUT_MS.into()).into());
        }
        if count > MAX_REQUESTS {
            return Err(over("write.count", count.into(), MAX_REQUESTS.into()).into());
        }
        if first == 0 || count == 0 || first.checked_add(count.into()).is_none() {
            let why = format!("{count} requests from number {first} on. Try: at least 1, numbered from 1 on");
            return Err(DecodeError::Invalid { what: "write.first", why }.into());
        }
        Ok(Self { ack, timeout_ms, first, count, requests: Requests(r) })
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

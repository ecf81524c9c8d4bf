//! What a member answers native clients: requests that reached their level, or failed, and its last word (SPEC.md §11).
//!
//! Always: an answer names requests by their numbers, one range of them. Never: an answer longer than
//! [`MAX_ANSWER_BYTES`](super::MAX_ANSWER_BYTES): texts are for people, and cut.

use super::{ClientError, HEADER_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES, kind, level_byte, read_level, split};
use crate::{
    codec::{DecodeError, Reader, Writer, prefix},
    id::{AckLevel, Epoch, Seq, Version},
};

/// Requests with consecutive numbers that reached a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The number of the first.
    pub first: u64,
    /// How many there are, at least 1.
    pub count: u32,
    /// The level: the one asked for, or `local` while alone.
    pub level: AckLevel,
    /// Whether the active is alone.
    pub alone: bool,
    /// Their versions.
    pub versions: Versions,
}

/// The versions of requests with consecutive numbers: each is that of its last record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Versions {
    /// The version of the first.
    pub first: Version,
    /// By how much the sequence number grows from one to the next.
    pub step: u32,
}

impl Versions {
    /// The version of the request with this index.
    #[must_use]
    pub const fn at(&self, index: u32) -> Version {
        let seq = self.first.seq.0.saturating_add(self.step as u64 * index as u64);
        Version { epoch: self.first.epoch, seq: Seq(seq) }
    }

    fn encode(&self, w: &mut Writer<'_>) {
        w.version(self.first);
        w.u32(self.step);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let first = Version { epoch: Epoch(r.u64("versions.epoch")?), seq: Seq(r.u64("versions.seq")?) };
        Ok(Self { first, step: r.u32("versions.step")? })
    }
}

/// Why requests failed: the failures of HTTP (interface §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FailureCode {
    /// The request is malformed.
    Malformed = 1,
    /// There is no such object.
    NotFound = 2,
    /// This member is not active; nothing was changed.
    NotActive = 3,
    /// The member's role or state, or that of the object, forbids it.
    Refused = 4,
    /// Too large.
    TooLarge = 5,
    /// Back-pressure that did not end within the time given; nothing was changed.
    Busy = 6,
    /// The disk of the storage directory is full; nothing was changed.
    NoRoom = 7,
    /// The level was not reached: the change is unknown, not undone.
    NotReached = 8,
    /// Something failed.
    Internal = 9,
    /// The member is starting or stopping; nothing was changed.
    Unavailable = 10,
    /// The caller may not use this socket.
    Forbidden = 11,
}

impl FailureCode {
    const ALL: [Self; 11] = [
        Self::Malformed,
        Self::NotFound,
        Self::NotActive,
        Self::Refused,
        Self::TooLarge,
        Self::Busy,
        Self::NoRoom,
        Self::NotReached,
        Self::Internal,
        Self::Unavailable,
        Self::Forbidden,
    ];

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let got = r.u8("failure.code")?;
        let known = Self::ALL.into_iter().find(|code| *code as u8 == got);
        known.ok_or(DecodeError::Tag { what: "failure.code", got: got.into(), expected: "1 to 11" })
    }
}

/// Requests with consecutive numbers that failed, all for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// The number of the first.
    pub first: u64,
    /// How many there are, at least 1.
    pub count: u32,
    /// Why.
    pub code: FailureCode,
    /// The same in words; cut at 4 KiB.
    pub message: String,
    /// With [`FailureCode::NotActive`]: name and address of the active member, where known.
    pub active: Option<(String, String)>,
    /// With [`FailureCode::NotReached`]: the versions, where there are any.
    pub versions: Option<Versions>,
}

/// What a member says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Requests reached their level.
    Reached(Reached),
    /// Requests failed.
    Failed(Failed),
    /// The last word before the member closes the connection.
    Goodbye {
        /// Why.
        code: FailureCode,
        /// The same in words.
        message: String,
    },
}

impl Answer {
    /// Appends the whole message.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let mut w = Writer::new(out);
        w.u32(0);
        match self {
            Self::Reached(reached) => {
                w.u8(kind::REACHED);
                w.u64(reached.first);
                w.u32(reached.count);
                w.u8(level_byte(reached.level));
                w.bool(reached.alone);
                reached.versions.encode(&mut w);
            }
            Self::Failed(failed) => {
                w.u8(kind::FAILED);
                w.u64(failed.first);
                w.u32(failed.count);
                w.u8(failed.code as u8);
                w.text(prefix(&failed.message, MAX_TEXT_BYTES));
                w.option(failed.active.as_ref(), |w, (name, address)| {
                    w.text(prefix(name, MAX_NAME_BYTES));
                    w.text(prefix(address, MAX_NAME_BYTES));
                });
                w.option(failed.versions, |w, versions| versions.encode(w));
            }
            Self::Goodbye { code, message } => {
                w.u8(kind::GOODBYE);
                w.u8(*code as u8);
                w.text(prefix(message, MAX_TEXT_BYTES));
            }
        }
        let body = (out.len() - start - HEADER_BYTES) as u32;
        out[start..start + 4].copy_from_slice(&body.to_le_bytes());
    }

    /// Reads a whole message that came from a member.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn parse(message: &[u8]) -> Result<Self, ClientError> {
        let (kind, body) = split(message)?;
        let mut r = Reader::new(body);
        let answer = match kind {
            kind::REACHED => {
                let (first, count) = numbers(&mut r)?;
                let Some(level) = read_level(&mut r, "reached.level")? else {
                    let expected = "1 to 5";
                    return Err(DecodeError::Tag { what: "reached.level", got: 0, expected }.into());
                };
                let alone = r.bool("reached.alone")?;
                Self::Reached(Reached { first, count, level, alone, versions: Versions::decode(&mut r)? })
            }
            kind::FAILED => {
                let (first, count) = numbers(&mut r)?;
                let code = FailureCode::read(&mut r)?;
                let message = r.text("failed.message", MAX_TEXT_BYTES)?.into();
                let active = r.option("failed.active", |r| {
                    let name = r.text("active.name", MAX_NAME_BYTES)?.into();
                    Ok((name, r.text("active.address", MAX_NAME_BYTES)?.into()))
                })?;
                let versions = r.option("failed.versions", Versions::decode)?;
                Self::Failed(Failed { first, count, code, message, active, versions })
            }
            kind::GOODBYE => {
                let code = FailureCode::read(&mut r)?;
                Self::Goodbye { code, message: r.text("goodbye.message", MAX_TEXT_BYTES)?.into() }
            }
            got => return Err(ClientError::Kind { got }),
        };
        r.finish("answer")?;
        Ok(answer)
    }
}

/// First number and count of an answer.
fn numbers(r: &mut Reader<'_>) -> Result<(u64, u32), DecodeError> {
    let (first, count) = (r.u64("answer.first")?, r.u32("answer.count")?);
    if count == 0 || first.checked_add(count.into()).is_none() {
        return Err(DecodeError::Invalid { what: "answer.count", why: format!("{count} requests from {first} on") });
    }
    Ok((first, count))
}

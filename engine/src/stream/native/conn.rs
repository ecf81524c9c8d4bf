//! One native client's connection: its bytes, cut into requests, and the answers that wait to leave.
//!
//! Always: one receive and one send under way at most; a message is whole before any of it is taken, and nothing is
//! received while a whole one waits, so that what is kept is bounded. Never: a byte believed before its length was.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant as StdInstant},
};

use nix::sys::socket::{Shutdown, shutdown};
use ringpair_wire::{
    client::{self, Answer, ClientError, FailureCode, Greeting, MAX_WRITE_BYTES, Requests, Write, message_bytes},
    codec::DecodeError,
    id::AckLevel,
};

use crate::{
    api::ds::WRITE_WITHIN,
    ring::{Buf, Driver, Fd, Op, Shared, Token},
};

/// What a connection receives into at first, and while it says little.
const SMALL_BYTES: usize = 16 << 10;
/// What one that fills its buffer receives into at most, but for a message that is longer.
const LARGE_BYTES: usize = 256 << 10;
/// A connection with so many bytes of answers unsent is not read.
const MAX_UNSENT_BYTES: usize = 64 << 10;

/// Kinds of a connection's operations.
mod op_kind {
    pub const RECEIVE: u8 = 1;
    pub const SEND: u8 = 2;
}

/// Which connection: the tag tells an old use of the index from a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ConnId {
    pub index: u32,
    pub tag: u16,
}

/// The request that comes next, within its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Its number.
    pub number: u64,
    /// How many requests of the message are left, this one included.
    pub left: u32,
    /// How far it must have come; `None`: as configured.
    pub ack: Option<AckLevel>,
    /// When its time is over.
    pub deadline: StdInstant,
}

/// What a connection has to say.
#[derive(Debug)]
pub(super) enum Next<'a> {
    /// Nothing whole.
    Nothing,
    /// A request.
    Request(Progress, &'a [u8]),
}

pub(super) struct Conn {
    pub id: ConnId,
    /// Requests taken and not answered.
    pub unanswered: usize,
    /// A request was refused because the member is not active: so is everything behind it (W-108).
    pub turned_away: bool,
    fd: Fd,
    greeted: bool,
    greet_by: StdInstant,
    /// `None` while a receive is under way.
    inbox: Option<Buf>,
    /// How much of the inbox is done with.
    at: usize,
    /// The message being taken: its next request, and where in the inbox it ends.
    message: Option<(Progress, usize)>,
    /// Where the request that was given last ends.
    request_end: usize,
    /// The next receive may fill more than the last one could.
    grow: bool,
    /// The greatest number used.
    newest: u64,
    out: Vec<u8>,
    sending_since: Option<StdInstant>,
    /// The last word is said: nothing more is read, and once it is sent the connection is closed.
    ending: bool,
}

impl Conn {
    pub(super) fn new(id: ConnId, fd: OwnedFd, greeting: Vec<u8>, greet_by: StdInstant) -> Self {
        Self {
            id,
            unanswered: 0,
            turned_away: false,
            fd: Fd::new(fd),
            greeted: false,
            greet_by,
            inbox: Some(Buf::heap(SMALL_BYTES)),
            at: 0,
            message: None,
            request_end: 0,
            grow: false,
            newest: 0,
            out: greeting,
            sending_since: None,
            ending: false,
        }
    }

    /// The end of a receive; false: the connection is over.
    pub(super) fn received(&mut self, buf: Buf, result: &io::Result<usize>) -> bool {
        self.grow = buf.spare() == 0;
        self.inbox = Some(buf);
        matches!(result, Ok(1..))
    }

    /// The end of a send; false: the connection is over.
    pub(super) fn sent(&mut self, well: bool) -> bool {
        self.sending_since = None;
        well
    }

    /// The next request; it is given again until [`taken`](Self::taken) or [`answered`](Self::answered).
    pub(super) fn next(&mut self) -> Result<Next<'_>, ClientError> {
        let Some(inbox) = self.inbox.as_deref().filter(|_| !self.ending) else { return Ok(Next::Nothing) };
        if !self.greeted {
            let Some((_, end)) = Greeting::parse(inbox, false, client::VERSIONS)? else { return Ok(Next::Nothing) };
            (self.greeted, self.at) = (true, end);
        }
        if let Some((_, end)) = self.message.take_if(|(progress, _)| progress.left == 0) {
            return Err(DecodeError::Trailing { what: "write", got: end - self.at }.into());
        }
        let (progress, end) = match self.message {
            Some(message) => message,
            None => {
                let rest = &inbox[self.at..];
                let Some(whole) = message_bytes(rest, MAX_WRITE_BYTES)?.and_then(|bytes| rest.get(..bytes)) else {
                    return Ok(Next::Nothing);
                };
                let Write { ack, timeout_ms, first, count, requests } = Write::parse(whole)?;
                if first <= self.newest {
                    let why = format!("number {first} after {}: numbers grow along a connection", self.newest);
                    return Err(DecodeError::Invalid { what: "write.first", why }.into());
                }
                self.newest = first + u64::from(count) - 1;
                let within = match timeout_ms {
                    0 => WRITE_WITHIN,
                    timeout_ms => Duration::from_millis(timeout_ms.into()),
                };
                let progress = Progress { number: first, left: count, ack, deadline: StdInstant::now() + within };
                let end = self.at + whole.len();
                self.at = end - requests.remaining();
                *self.message.insert((progress, end))
            }
        };
        let mut requests = Requests::resume(&inbox[self.at..end]);
        let request = requests.take()?;
        self.request_end = end - requests.remaining();
        Ok(Next::Request(progress, request))
    }

    /// The request that was given last is in a frame: it is answered later.
    pub(super) fn taken(&mut self) {
        self.unanswered += 1;
        self.advance(1);
    }

    /// `count` requests from the one that was given last on are answered.
    pub(super) fn answered(&mut self, count: u32, answer: &Answer) {
        self.answer(answer);
        self.advance(count);
    }

    fn advance(&mut self, count: u32) {
        let Some((progress, end)) = &mut self.message else { return };
        progress.number += u64::from(count);
        progress.left -= count;
        // Whoever is done with several is done with all that are left.
        self.at = if count == 1 { self.request_end } else { *end };
        if progress.left == 0 && self.at == *end {
            self.message = None;
        }
    }

    /// Queues an answer.
    pub(super) fn answer(&mut self, answer: &Answer) {
        answer.encode(&mut self.out);
    }

    /// Queues the last word.
    pub(super) fn goodbye(&mut self, code: FailureCode, message: String) {
        self.answer(&Answer::Goodbye { code, message });
        self.ending = true;
    }

    /// Whether nothing more is taken before something has been answered or read.
    pub(super) fn is_full(&self, max_unanswered: usize) -> bool {
        self.unanswered >= max_unanswered || self.out.len() > MAX_UNSENT_BYTES
    }

    /// How many bytes have come and are not dealt with.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.inbox.as_ref().map_or(0, |inbox| inbox.len() - self.at)
    }

    /// Whether the last word has left.
    pub(super) fn is_over(&self) -> bool {
        self.ending && self.is_drained()
    }

    /// Whether everything that was said has left.
    pub(super) fn is_drained(&self) -> bool {
        self.out.is_empty() && self.sending_since.is_none()
    }

    /// Whether the client has kept this member waiting too long: for its greeting, or for reading.
    pub(super) fn is_stuck(&self, now: StdInstant, read_within: Duration) -> bool {
        (!self.greeted && now >= self.greet_by)
            || self.sending_since.is_some_and(|since| now.saturating_duration_since(since) >= read_within)
    }

    /// Begins what can be begun: a send of what is to be said, a receive where a message is incomplete. False: the
    /// driver has no room.
    pub(super) fn pump(&mut self, driver: &mut Driver) -> bool {
        if driver.room() < 2 {
            return false;
        }
        if self.sending_since.is_none() && !self.out.is_empty() {
            let slices = vec![Shared::from(std::mem::take(&mut self.out))];
            let op = Op::Send { fd: self.fd.clone(), slices };
            // There is room, and the slice is not empty.
            let submitted = driver.submit(self.token(op_kind::SEND), op);
            debug_assert!(submitted.is_ok(), "{submitted:?}");
            self.sending_since = Some(StdInstant::now());
        }
        if !self.ending
            && self.message.is_none()
            && let Some(buf) = self.room_to_receive()
        {
            let op = Op::Recv { fd: self.fd.clone(), buf };
            let submitted = driver.submit(self.token(op_kind::RECEIVE), op);
            debug_assert!(submitted.is_ok(), "{submitted:?}");
        }
        true
    }

    /// The inbox with room for the rest of a message; `None` while a receive is under way or a whole message waits.
    fn room_to_receive(&mut self) -> Option<Buf> {
        let inbox = self.inbox.as_ref()?;
        let held = &inbox[self.at..];
        let needed = match message_bytes(held, MAX_WRITE_BYTES) {
            Ok(needed) if self.greeted => needed.unwrap_or_default(),
            // What is wrong with it is found when it is looked at.
            Err(_) if self.greeted => return None,
            _ => 0,
        };
        if needed > 0 && needed <= held.len() {
            return None;
        }
        let usual = match self.grow {
            true => (2 * inbox.capacity()).min(LARGE_BYTES),
            false => inbox.capacity().min(LARGE_BYTES),
        };
        let capacity = usual.max(needed);
        let mut inbox = self.inbox.take()?;
        if capacity == inbox.capacity() {
            inbox.consume(self.at);
        } else {
            let mut other = Buf::heap(capacity.max(inbox.len() - self.at + 1));
            other.append(&inbox[self.at..]);
            inbox = other;
        }
        self.at = 0;
        Some(inbox)
    }

    fn token(&self, kind: u8) -> Token {
        Token::new(Token::CLIENTS, kind, self.id.index).tagged(self.id.tag)
    }

    /// Ends whatever is under way on the socket, and with it the connection.
    pub(super) fn hang_up(&self) {
        // One that is closed already is what is wanted.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::net::UnixStream};

    use ringpair_wire::{
        client::{begin_write, encode_request, end_write, push_request},
        id::{Epoch, Seq, Version},
    };

    use super::*;
    use crate::ring::{Carried, DriverChoice, DriverOptions};

    const GREETING: &[u8] = b"greeting";

    fn conn() -> (Conn, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = ConnId { index: 0, tag: 1 };
        let greet_by = StdInstant::now() + Duration::from_secs(60);
        (Conn::new(id, ours.into(), GREETING.to_vec(), greet_by), theirs)
    }

    fn greeting() -> Vec<u8> {
        Greeting { versions: client::VERSIONS, member: None }.to_bytes()
    }

    fn request(bytes: usize) -> Vec<u8> {
        let path = format!("/{}", "x".repeat(bytes));
        let mut request = Vec::new();
        let remove = client::Operation::Remove { path: &path, recursive: false, missing_ok: false };
        encode_request(&[remove], &mut request);
        request
    }

    fn write(first: u64, requests: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin_write(&mut out, None, 0, first);
        requests.iter().for_each(|request| push_request(&mut out, request));
        end_write(&mut out, start, requests.len() as u32);
        out
    }

    /// Turns the driver until a receive has ended; whether the connection goes on.
    fn turn(conn: &mut Conn, driver: &mut Driver) -> bool {
        let until = StdInstant::now() + Duration::from_secs(10);
        loop {
            assert!(StdInstant::now() < until && conn.pump(driver), "nothing comes");
            let mut completions = Vec::new();
            driver.turn(Some(Duration::from_millis(10)), &mut completions).unwrap();
            let (mut heard, mut goes_on) = (false, true);
            for completion in completions {
                goes_on &= match completion.carried {
                    Carried::Buf(buf) => {
                        heard = true;
                        conn.received(buf, &completion.result)
                    }
                    _ => conn.sent(completion.result.is_ok()),
                };
            }
            if heard || !goes_on {
                return goes_on;
            }
        }
    }

    fn given(conn: &mut Conn) -> Option<(u64, usize)> {
        match conn.next().unwrap() {
            Next::Nothing => None,
            Next::Request(progress, bytes) => Some((progress.number, bytes.len())),
        }
    }

    fn next(conn: &mut Conn, driver: &mut Driver) -> (u64, usize) {
        loop {
            if let Some(given) = given(conn) {
                return given;
            }
            assert!(turn(conn, driver), "closed");
        }
    }

    fn on_both_drivers(check: fn(&mut Driver)) {
        for choice in [DriverChoice::Auto, DriverChoice::Plain] {
            check(&mut Driver::new(&DriverOptions { choice, ..DriverOptions::default() }).unwrap());
        }
    }

    // REQ: REP-310
    #[test]
    fn requests_come_whole_however_the_bytes_come() {
        on_both_drivers(|driver| {
            let (mut conn, mut theirs) = conn();
            let long = request(700_000);
            let bytes = [
                greeting(),
                write(1, &[request(1), request(2)]),
                write(7, std::slice::from_ref(&long)),
                write(9, &[request(3)]),
            ];
            let writer = std::thread::spawn(move || {
                for piece in bytes.concat().chunks(50_021) {
                    theirs.write_all(piece).unwrap();
                }
                theirs
            });
            assert_eq!(next(&mut conn, driver), (1, request(1).len()));
            assert_eq!(given(&mut conn), Some((1, request(1).len())), "given again until it is dealt with");
            conn.taken();
            assert_eq!(next(&mut conn, driver), (2, request(2).len()));
            conn.taken();
            // The turn's time may be over just here.
            assert!(conn.pump(driver));
            assert_eq!(next(&mut conn, driver), (7, long.len()));
            conn.taken();
            assert_eq!(next(&mut conn, driver), (9, request(3).len()));
            assert_eq!(conn.unanswered, 3);
            assert!(conn.inbox.as_ref().unwrap().capacity() <= MAX_WRITE_BYTES + client::HEADER_BYTES);
            drop(writer.join().unwrap());
            conn.taken();
            while turn(&mut conn, driver) {}
        });
    }

    // REQ: REP-310
    #[test]
    fn a_whole_message_that_waits_ends_the_receiving() {
        on_both_drivers(|driver| {
            let (mut conn, mut theirs) = conn();
            theirs.write_all(&[greeting(), write(1, &vec![request(10); 100])].concat()).unwrap();
            next(&mut conn, driver);
            for _ in 0..3 {
                assert!(conn.pump(driver));
            }
            driver.turn(Some(Duration::from_millis(50)), &mut Vec::new()).unwrap();
            assert_eq!(driver.in_flight(), 0, "neither a receive nor a send is under way");
            let failed = client::Failed {
                first: 1,
                count: 100,
                code: FailureCode::NotActive,
                message: "no".into(),
                active: None,
                versions: None,
            };
            conn.answered(100, &Answer::Failed(failed));
            assert_eq!((given(&mut conn), conn.unanswered), (None, 0), "the whole message is dealt with");
            assert!(!conn.is_full(1));
            let reached = client::Reached {
                first: 1,
                count: 1,
                level: AckLevel::Durable,
                alone: false,
                versions: client::Versions { first: Version { epoch: Epoch(1), seq: Seq(1) }, step: 1 },
            };
            while conn.out.len() <= MAX_UNSENT_BYTES {
                conn.answer(&Answer::Reached(reached));
            }
            assert!(conn.is_full(1), "a client that does not read is read no further");
        });
    }

    #[test]
    fn a_client_has_its_time_to_greet_and_to_read() {
        on_both_drivers(|driver| {
            let (mut conn, mut theirs) = conn();
            let within = Duration::from_secs(30);
            let long_after = StdInstant::now() + Duration::from_secs(61);
            assert!(!conn.is_stuck(StdInstant::now(), within) && conn.is_stuck(long_after, within), "no greeting");
            theirs.write_all(&greeting()).unwrap();
            assert!(turn(&mut conn, driver));
            assert_eq!(given(&mut conn), None);
            while !conn.is_drained() {
                conn.pump(driver);
                let mut completions = Vec::new();
                driver.turn(Some(Duration::from_millis(10)), &mut completions).unwrap();
                assert!(completions.iter().all(|completion| conn.sent(completion.result.is_ok())));
            }
            assert!(!conn.is_stuck(long_after, within), "it greeted, and nothing waits for it");
            conn.answer(&Answer::Goodbye { code: FailureCode::Busy, message: "x".into() });
            conn.pump(driver);
            assert!(conn.is_stuck(long_after, within) && !conn.is_stuck(StdInstant::now(), within));
        });
    }
}

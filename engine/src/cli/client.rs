//! The HTTP client of the commands, over the member's Unix socket.
//!
//! Always holds: every failure has one of the exit codes of interface §2; what is read into memory is bounded.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use ringpair_wire::ds::DsPath;
use serde_json::Value as Json;
use tokio::{net::UnixStream, time::Instant};

/// An answer that is no stream is at most this long: an object of 64 MiB as base64, and some room.
const MAX_ANSWER_BYTES: usize = 512 << 20;
/// How much longer than the member the client waits.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// What stands for itself in a path or query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Why a command did not do what it was asked, by exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// 1: failed.
    #[error("{0}")]
    Failed(String),
    /// 1: done, and the answer is "no": nothing more is printed.
    #[error("")]
    No,
    /// 2: usage or configuration.
    #[error("{0}")]
    Usage(String),
    /// 3: no member reachable.
    #[error("{0}")]
    Unreachable(String),
    /// 4: refused because of role or state.
    #[error("{0}")]
    Refused(String),
    /// 5: timed out.
    #[error("{0}")]
    TimedOut(String),
}

impl CliError {
    /// The exit code (interface §2).
    #[must_use]
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) | Self::No => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Refused(_) => 4,
            Self::TimedOut(_) => 5,
        })
    }
}

impl From<io::Error> for CliError {
    /// Writing results is the only bare IO that commands do.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The reader has seen enough: not worth a word.
            io::ErrorKind::BrokenPipe => Self::No,
            _ => Self::Failed(format!("writing the result: {error}")),
        }
    }
}

/// What is sent along.
pub type Body = BoxBody<Bytes, io::Error>;

/// A body of these bytes.
#[must_use]
pub fn bytes(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// No body.
#[must_use]
pub fn nothing() -> Body {
    bytes(Bytes::new())
}

/// A body of a JSON document.
#[must_use]
pub fn json_body(value: &Json) -> Body {
    bytes(value.to_string())
}

/// One component, value or name, percent-encoded.
#[must_use]
pub fn encoded(text: impl AsRef<[u8]>) -> String {
    percent_encode(text.as_ref(), PLAIN).to_string()
}

/// The path of an object's call.
#[must_use]
pub fn ds_url(path: &DsPath) -> String {
    let parts: Vec<String> = path.components().map(encoded).collect();
    format!("/v1/ds/{}", parts.join("/"))
}

/// The client of one command.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    timeout: Option<Duration>,
    deadline: Option<Instant>,
}

impl Client {
    /// A client of the member at `socket` that gives up `timeout` from now.
    #[must_use]
    pub fn new(socket: PathBuf, timeout: Option<Duration>) -> Self {
        Self { socket, timeout, deadline: timeout.map(|timeout| Instant::now() + timeout + GRACE) }
    }

    /// The member's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What was asked for as the time that the member may take.
    #[must_use]
    pub const fn timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// `timeout=…` for a query, where one was asked for: the member gives up at the same time.
    #[must_use]
    pub fn timeout_query(&self) -> Option<String> {
        self.timeout.map(|timeout| format!("timeout={}", timeout.as_secs_f64()))
    }

    /// Whether a stream is to end, and when.
    #[must_use]
    pub fn stream_ends(&self) -> Option<Instant> {
        self.deadline.map(|deadline| deadline - GRACE)
    }

    /// Sends a request and returns the answer's head; an answer that is an error is turned into one.
    ///
    /// # Errors
    /// By exit code.
    pub async fn open(&self, method: Method, target: &str, body: Body) -> Result<Response<Incoming>, CliError> {
        let response = self.within(self.exchange(method, target, body)).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = self.within(collect(response)).await?;
        Err(failure(status, &text))
    }

    /// Sends a request and returns the answer as JSON.
    ///
    /// # Errors
    /// By exit code.
    pub async fn call(&self, method: Method, target: &str, body: Body) -> Result<Json, CliError> {
        let response = self.open(method, target, body).await?;
        let text = self.within(collect(response)).await?;
        serde_json::from_slice(&text)
            .map_err(|error| CliError::Failed(format!("the member's answer is not JSON: {error}")))
    }

    /// `GET` as JSON.
    ///
    /// # Errors
    /// By exit code.
    pub async fn get(&self, target: &str) -> Result<Json, CliError> {
        self.call(Method::GET, target, nothing()).await
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        match self.deadline {
            None => work.await,
            Some(deadline) => tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| {
                Err(CliError::TimedOut("the member did not answer in time. Try: a longer --timeout".into()))
            }),
        }
    }

    async fn exchange(&self, method: Method, target: &str, body: Body) -> Result<Response<Incoming>, CliError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let gone = |error: hyper::Error| CliError::Unreachable(format!("the member went away: {error}. Try: again"));
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(gone)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(hyper::header::HOST, "ringpair")
            .body(body)
            .map_err(|error| CliError::Usage(format!("{target:?} cannot be asked for: {error}")))?;
        sender.send_request(request).await.map_err(gone)
    }

    /// Nobody answers at the socket.
    #[must_use]
    pub fn unreachable(&self, error: &io::Error) -> CliError {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "Try: sudo, or joining the group of [api] group",
            _ => "Try: ringpair run, or --socket PATH",
        };
        CliError::Unreachable(format!("no member answers at {}: {error}. {hint}", self.socket.display()))
    }
}

/// Reads a whole answer, up to a bound.
async fn collect(response: Response<Incoming>) -> Result<Bytes, CliError> {
    let limited = http_body_util::Limited::new(response.into_body(), MAX_ANSWER_BYTES);
    let whole = limited.collect().await.map_err(|error| CliError::Failed(format!("the answer broke off: {error}")))?;
    Ok(whole.to_bytes())
}

/// The exit code and message of an error document.
fn failure(status: StatusCode, text: &[u8]) -> CliError {
    let body: Json = serde_json::from_slice(text).unwrap_or_default();
    let mut message = match body["error"]["message"].as_str() {
        Some(message) => message.to_owned(),
        None => format!("the member answered {status}"),
    };
    if let (Some(name), Some(address)) = (body["active"]["name"].as_str(), body["active"]["address"].as_str()) {
        message.push_str(&active_is(name, address));
    }
    if let Some(version) = body.get("version") {
        message.push_str(&unknown(&format!("{}:{}", version["epoch"], version["seq"])));
    }
    for blocker in body["blockers"].as_array().into_iter().flatten() {
        let part = |key: &str| blocker[key].as_str().unwrap_or_default().to_owned();
        message.push_str(&format!("\n  {} {} {}", part("kind"), part("path"), part("reason")));
    }
    match status {
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => CliError::Usage(message),
        StatusCode::CONFLICT => CliError::Refused(message),
        StatusCode::GATEWAY_TIMEOUT => CliError::TimedOut(message),
        _ => CliError::Failed(message),
    }
}

/// Where a refused command belongs.
pub(super) fn active_is(name: &str, address: &str) -> String {
    format!("; {name} ({address}) is. Try: the command there")
}

/// What is known of a change that did not reach its level in time.
pub(super) fn unknown(version: &str) -> String {
    format!(" (version {version}, outcome unknown)")
}

/// The events of a stream, one after the other.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    buffer: EventBuffer,
    ends: Option<Instant>,
}

/// One server-sent event.
#[derive(Debug, PartialEq, Eq)]
pub struct SentEvent {
    /// Its kind.
    pub kind: String,
    /// Its data.
    pub data: String,
}

impl Events {
    /// The events in `response`, until `ends`.
    #[must_use]
    pub fn new(response: Response<Incoming>, ends: Option<Instant>) -> Self {
        Self { body: response.into_body(), buffer: EventBuffer::default(), ends }
    }

    /// The next event; `None` at the end of the stream.
    ///
    /// # Errors
    /// Timed out, broken off, or an event longer than an answer may be.
    pub async fn next(&mut self) -> Result<Option<SentEvent>, CliError> {
        loop {
            if let Some(event) = self.buffer.take() {
                return Ok(Some(event));
            }
            let frame = match self.ends {
                None => self.body.frame().await,
                Some(ends) => tokio::time::timeout_at(ends, self.body.frame())
                    .await
                    .map_err(|_| CliError::TimedOut("the time for this stream is over".into()))?,
            };
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(CliError::Failed(format!("the stream broke off: {error}"))),
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    if self.buffer.len() + data.len() > MAX_ANSWER_BYTES {
                        return Err(CliError::Failed("the member sent an event without end".into()));
                    }
                    self.buffer.push(&data);
                }
            }
        }
    }
}

/// What came of a stream and was not taken; every byte is searched once, however it comes.
#[derive(Debug, Default)]
struct EventBuffer {
    bytes: Vec<u8>,
    /// Up to here it was taken.
    taken: usize,
    /// Up to here no event ends that was not taken.
    searched: usize,
}

impl EventBuffer {
    fn push(&mut self, data: &[u8]) {
        self.bytes.drain(..self.taken);
        self.searched -= self.taken;
        self.taken = 0;
        self.bytes.extend_from_slice(data);
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Takes the first whole event; comments are skipped.
    fn take(&mut self) -> Option<SentEvent> {
        loop {
            // An event ends with two line feeds, of which one may have been searched.
            let from = self.searched.saturating_sub(1).max(self.taken);
            let Some(at) = self.bytes[from..].windows(2).position(|pair| pair == b"\n\n") else {
                self.searched = self.bytes.len();
                return None;
            };
            let end = from + at + 2;
            let text = String::from_utf8_lossy(&self.bytes[self.taken..end]);
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
            let event = field("data:")
                .map(|data| SentEvent { kind: field("event:").unwrap_or("message").to_owned(), data: data.to_owned() });
            (self.taken, self.searched) = (end, end);
            if event.is_some() {
                return event;
            }
        }
    }
}

/// Prints how far long work has come, on a terminal only.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    last: Option<std::time::Instant>,
}

impl Progress {
    /// Shows something if stderr is a terminal and JSON was not asked for.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { shown: !json && io::stderr().is_terminal(), last: None }
    }

    /// Shows `text` in place of what was shown, at most ten times a second.
    pub fn show(&mut self, text: &str) {
        let now = std::time::Instant::now();
        if !self.shown || self.last.is_some_and(|last| now - last < Duration::from_millis(100)) {
            return;
        }
        self.last = Some(now);
        // A terminal that has gone is no reason to fail.
        let _ = write!(io::stderr(), "\r\x1b[K{text}");
    }

    /// Removes what was shown.
    pub fn clear(&mut self) {
        if self.last.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_whole_and_comments_are_skipped() {
        let mut buffer = EventBuffer::default();
        buffer.push(b": still here\n\nevent: change\nid: 1:2\ndata: {\"a\":1}\n\nevent: x\ndata: par");
        let event = buffer.take().expect("one event");
        assert_eq!(event, SentEvent { kind: "change".into(), data: "{\"a\":1}".into() });
        assert_eq!(buffer.take(), None);
        buffer.push(b"t\n");
        assert_eq!(buffer.take(), None);
        buffer.push(b"\n");
        assert_eq!(buffer.take().map(|event| event.data), Some("part".into()));
        assert_eq!((buffer.len(), buffer.take()), (0, None));
    }

    /// Searched from its beginning with each piece, this would take minutes.
    #[test]
    fn a_long_event_in_small_pieces_and_many_in_one_cost_what_they_are_long() {
        let mut buffer = EventBuffer::default();
        buffer.push(b"data: ");
        for _ in 0..(16 << 20) / 256 {
            buffer.push(&[b'x'; 256]);
            assert!(buffer.take().is_none());
        }
        buffer.push(b"\n\n");
        assert_eq!(buffer.take().map(|event| event.data.len()), Some(16 << 20));
        buffer.push(&b"data: 1\n\n".repeat(400_000));
        assert_eq!(std::iter::from_fn(|| buffer.take()).count(), 400_000);
    }

    #[test]
    fn statuses_become_exit_codes() {
        let body = br#"{"error":{"code":"not-active","message":"this member is not active"},"active":{"name":"b","address":"h:1"}}"#;
        let table = [(400, 2), (413, 2), (409, 4), (504, 5), (404, 1), (401, 1), (429, 1), (500, 1), (501, 1)];
        for (status, code) in table {
            let error = failure(StatusCode::from_u16(status).expect("a status"), body);
            assert_eq!(format!("{:?}", error.code()), format!("{:?}", ExitCode::from(code)), "{status}");
            assert!(error.to_string().contains("b (h:1)"), "{error}");
        }
        assert!(failure(StatusCode::BAD_GATEWAY, b"<html>").to_string().contains("502"));
    }

    #[test]
    fn names_are_percent_encoded() {
        let path = DsPath::parse("/CONFIG/Default User/a?b#c%d\u{fc}").expect("a path");
        assert_eq!(ds_url(&path), "/v1/ds/CONFIG/Default%20User/a%3Fb%23c%25d%C3%BC");
        assert_eq!(ds_url(&DsPath::root()), "/v1/ds/");
        assert_eq!(encoded(b"/srv/\xff"), "%2Fsrv%2F%FF");
    }
}

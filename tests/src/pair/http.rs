//! The least HTTP/1.1 client that asks one question over a Unix socket: outside code, on purpose not the product's own.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

/// Why there is no answer.
pub type HttpError = std::io::Error;

/// The greatest answer that is read, in bytes.
const MAX_ANSWER_BYTES: u64 = 256 << 20;

/// Status and body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; `null` when it is none.
    #[must_use]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request on a connection of its own and reads the whole answer.
///
/// # Errors
/// When nobody listens, the connection ends early or the answer is not HTTP.
pub fn request(
    socket: &Path,
    method: &str,
    target: &str,
    body: &[u8],
    time_out: Duration,
) -> Result<Answer, HttpError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(time_out))?;
    stream.set_write_timeout(Some(time_out))?;
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: member\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut bytes = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut bytes)?;
    parse(&bytes).ok_or_else(|| HttpError::new(std::io::ErrorKind::UnexpectedEof, "the answer broke off"))
}

fn parse(bytes: &[u8]) -> Option<Answer> {
    let split = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..split]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |name: &str| {
        lines.clone().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_ascii_lowercase())
        })
    };
    let body = &bytes[split + 4..];
    if header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        return Some(Answer { status, body: unchunk(body)? });
    }
    match header("content-length").map(|length| length.parse::<usize>()) {
        Some(length) => Some(Answer { status, body: body.get(..length.ok()?)?.to_vec() }),
        None => Some(Answer { status, body: body.to_vec() }),
    }
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..line]).ok()?.trim(), 16).ok()?;
        let chunk = rest.get(line + 2..line + 2 + length)?;
        if length == 0 {
            return Some(body);
        }
        body.extend_from_slice(chunk);
        rest = rest.get(line + 2 + length + 2..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
        assert_eq!(parse(plain).unwrap().text(), "hi");
        assert!(parse(&plain[..plain.len() - 1]).is_none());
        let chunked = b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        let answer = parse(chunked).unwrap();
        assert_eq!((answer.status, answer.text()), (503, "abcde".into()));
        assert!(parse(&chunked[..chunked.len() - 7]).is_none());
    }
}

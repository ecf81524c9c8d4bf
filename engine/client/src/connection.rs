//! One connection to a member: bytes out, answers in, without blocking but where it is asked to wait.
//!
//! Always: it reads while it writes, so that neither side waits for the other for ever. Never: more kept of what comes
//! than one answer and what one read gave.

use std::{
    io::{self, ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use ringpair_wire::client::{Answer, ClientError, Greeting, MAX_ANSWER_BYTES, VERSIONS, message_bytes};

use crate::Error;

/// How long a member may take for its greeting.
const GREET_WITHIN: Duration = Duration::from_secs(5);
/// How long is waited at once.
const WAIT_FOR: u16 = 100;
const READ_BYTES: usize = 64 << 10;

/// A connection whose member has greeted.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    out: Vec<u8>,
    written: usize,
    input: Vec<u8>,
    piece: Box<[u8]>,
}

impl Connection {
    /// Connects and greets.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let unreachable = |source| Error::Unreachable { path: path.into(), source };
        let protocol = |source| Error::Protocol { path: path.into(), source };
        let mut stream = UnixStream::connect(path).map_err(unreachable)?;
        let until = Instant::now() + GREET_WITHIN;
        stream.set_read_timeout(Some(GREET_WITHIN)).map_err(unreachable)?;
        stream.write_all(&Greeting { versions: VERSIONS, member: None }.to_bytes()).map_err(unreachable)?;
        let (mut input, mut piece) = (Vec::new(), vec![0; READ_BYTES].into_boxed_slice());
        loop {
            if let Some((_, end)) = Greeting::parse(&input, true, VERSIONS).map_err(protocol)? {
                input.drain(..end);
                stream.set_nonblocking(true).map_err(unreachable)?;
                return Ok(Self { stream, out: Vec::new(), written: 0, input, piece });
            }
            let got = if Instant::now() < until { stream.read(&mut piece) } else { Err(ErrorKind::TimedOut.into()) };
            match got {
                Ok(0) => return Err(unreachable(ErrorKind::UnexpectedEof.into())),
                Ok(got) => input.extend_from_slice(&piece[..got]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(unreachable(error)),
            }
        }
    }

    /// Where what is to be sent is put; what was sent is gone from it.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        self.out.drain(..std::mem::take(&mut self.written));
        &mut self.out
    }

    /// Writes what the socket takes and hears what has come; with `wait` until one of them got on, or a little while.
    pub(crate) fn exchange(&mut self, wait: bool, answers: &mut Vec<Answer>) -> io::Result<()> {
        self.write()?;
        self.read(answers)?;
        if !wait || !answers.is_empty() {
            return Ok(());
        }
        let sending = if self.written < self.out.len() { PollFlags::POLLOUT } else { PollFlags::empty() };
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN | sending)];
        match poll(&mut fds, PollTimeout::from(WAIT_FOR)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.write()?;
        self.read(answers)
    }

    fn write(&mut self) -> io::Result<()> {
        while self.written < self.out.len() {
            match self.stream.write(&self.out[self.written..]) {
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Its last words are to be read first.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, answers: &mut Vec<Answer>) -> io::Result<()> {
        loop {
            // First of all what came together with the greeting.
            self.parse(answers).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            let ended = match self.stream.read(&mut self.piece) {
                Ok(0) => Some(ErrorKind::UnexpectedEof.into()),
                Ok(got) => {
                    self.input.extend_from_slice(&self.piece[..got]);
                    self.parse(answers).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                    if got == self.piece.len() {
                        continue;
                    }
                    None
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => Some(error),
            };
            return ended.map_or(Ok(()), Err);
        }
    }

    fn parse(&mut self, answers: &mut Vec<Answer>) -> Result<(), ClientError> {
        let mut at = 0;
        while let Some(bytes) = message_bytes(&self.input[at..], MAX_ANSWER_BYTES)?
            && let Some(message) = self.input.get(at..at + bytes)
        {
            answers.push(Answer::parse(message)?);
            at += bytes;
        }
        self.input.drain(..at);
        Ok(())
    }
}

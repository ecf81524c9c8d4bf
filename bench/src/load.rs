//! Load from one thread over many connections to a Unix socket: closed (each connection asks again when it is
//! answered) or open (requests are due at a fixed rate, and late ones count as late).
//!
//! Always: latency counts from when a request was due; every answer is read whole and checked. Never: a wait beyond
//! `PATIENCE`.

use std::{
    io::{ErrorKind, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{
    error::{Doing, Error, Result},
    floor::disk::{histogram, nanoseconds},
};

/// How long the last answers may take.
const PATIENCE: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 64 << 10;

/// What is asked, and what an answer must be.
pub trait Talk {
    /// What comes first on a new connection, both ways; nothing unless it says otherwise.
    ///
    /// # Errors
    /// When the other side does not speak as expected.
    fn greet(&self, stream: &mut UnixStream) -> Result<()> {
        let _ = stream;
        Ok(())
    }

    /// Appends request `number` (counted over all connections) to `out`.
    fn ask(&mut self, number: u64, out: &mut Vec<u8>);

    /// What the beginning of `bytes` is: nothing whole yet, or an answer.
    ///
    /// # Errors
    /// When it is an answer that ends the benchmark.
    fn answer(&self, bytes: &[u8]) -> Result<Option<Answer>>;
}

/// A whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// Back-pressure: to be asked again.
    Again,
}

/// How it is asked.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many connections; at most one request is under way on each.
    pub connections: usize,
    /// For how long requests are begun.
    pub span: Duration,
    /// Requests a second of an open loop; `None`: closed.
    pub rate: Option<f64>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests answered.
    pub answered: u64,
    /// From the first request to the last answer.
    pub took: Duration,
    /// Nanoseconds from when a request was due to its answer.
    pub latency: Histogram<u64>,
    /// How often back-pressure was the answer.
    pub refused: u64,
}

impl Outcome {
    /// Requests a second.
    #[must_use]
    pub fn per_s(&self) -> f64 {
        self.answered as f64 / self.took.as_secs_f64()
    }

    /// A quantile of the latency, in microseconds.
    #[must_use]
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

struct Connection {
    stream: UnixStream,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// Since when the request under way was due.
    due: Option<Instant>,
}

struct Run<'a, T> {
    talk: &'a mut T,
    connections: Vec<Connection>,
    next_due: Instant,
    end: Instant,
    every: Option<Duration>,
    begun: u64,
    outcome: Outcome,
}

/// Runs the load against `socket`.
///
/// # Errors
/// When nobody listens, an answer is wrong, or answers do not come.
pub fn run<T: Talk>(socket: &Path, talk: &mut T, shape: Shape) -> Result<Outcome> {
    let connect = || -> Result<Connection> {
        let mut stream = UnixStream::connect(socket).doing(&format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE)).doing("a socket")?;
        talk.greet(&mut stream)?;
        stream.set_nonblocking(true).doing("a socket")?;
        Ok(Connection { stream, out: Vec::new(), sent: 0, input: Vec::new(), due: None })
    };
    let connections = (0..shape.connections).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    let start = Instant::now();
    let mut run = Run {
        talk,
        connections,
        next_due: start,
        end: start + shape.span,
        every: shape.rate.map(|rate| Duration::from_secs_f64(1.0 / rate.max(1.0))),
        begun: 0,
        outcome: Outcome { answered: 0, took: Duration::ZERO, latency: histogram()?, refused: 0 },
    };
    let mut piece = vec![0; READ_BYTES];
    loop {
        run.begin()?;
        if run.connections.iter().all(|connection| connection.due.is_none()) && !run.has_more(Instant::now()) {
            run.outcome.took = start.elapsed();
            return Ok(run.outcome);
        }
        if Instant::now() > run.end + PATIENCE {
            return Err(Error::Failed(format!("answers are missing {PATIENCE:?} after the end of the load")));
        }
        for index in run.ready()? {
            run.hear(index, &mut piece)?;
        }
    }
}

impl<T: Talk> Run<'_, T> {
    /// Whether requests will still be begun.
    fn has_more(&self, now: Instant) -> bool {
        if self.every.is_some() { self.next_due < self.end } else { now < self.end }
    }

    /// Begins what is due on connections that are free.
    fn begin(&mut self) -> Result<()> {
        for index in 0..self.connections.len() {
            let now = Instant::now();
            if !self.has_more(now) || self.every.is_some_and(|_| self.next_due > now) {
                return Ok(());
            }
            let connection = &mut self.connections[index];
            if connection.due.is_some() {
                continue;
            }
            connection.due = Some(if self.every.is_some() { self.next_due } else { now });
            connection.out.clear();
            connection.sent = 0;
            self.talk.ask(self.begun, &mut connection.out);
            self.begun += 1;
            self.next_due += self.every.unwrap_or_default();
            connection.send()?;
        }
        Ok(())
    }

    /// Waits until a connection that waits for something can go on, or the next request is due; who can.
    fn ready(&self) -> Result<Vec<usize>> {
        let waiting: Vec<usize> =
            (0..self.connections.len()).filter(|&index| self.connections[index].due.is_some()).collect();
        let mut fds: Vec<PollFd<'_>> = waiting.iter().map(|&index| self.connections[index].poll_fd()).collect();
        let mut wait = Duration::from_millis(100);
        let has_room = waiting.len() < self.connections.len();
        if self.every.is_some() && has_room && self.next_due < self.end {
            wait = wait.min(self.next_due.saturating_duration_since(Instant::now()));
        }
        match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).doing("ppoll"),
        }
        let ready = waiting.iter().zip(&fds).filter(|(_, fd)| fd.any() == Some(true));
        Ok(ready.map(|(&index, _)| index).collect())
    }

    fn hear(&mut self, index: usize, piece: &mut [u8]) -> Result<()> {
        let connection = &mut self.connections[index];
        connection.send()?;
        connection.receive(piece)?;
        let Some(answer) = self.talk.answer(&connection.input)? else { return Ok(()) };
        connection.input.clear();
        if answer == Answer::Again {
            // The same request once more; its latency goes on.
            self.outcome.refused += 1;
            connection.sent = 0;
            return connection.send();
        }
        if let Some(due) = connection.due.take() {
            self.outcome.latency.saturating_record(nanoseconds(due.elapsed()));
            self.outcome.answered += 1;
        }
        Ok(())
    }
}

impl Connection {
    fn poll_fd(&self) -> PollFd<'_> {
        let sending = if self.sent < self.out.len() { PollFlags::POLLOUT } else { PollFlags::empty() };
        PollFd::new(self.stream.as_fd(), PollFlags::POLLIN | sending)
    }

    fn send(&mut self) -> Result<()> {
        while self.sent < self.out.len() {
            match self.stream.write(&self.out[self.sent..]) {
                Ok(bytes) => self.sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).doing("sending a request"),
            }
        }
        Ok(())
    }

    fn receive(&mut self, piece: &mut [u8]) -> Result<()> {
        loop {
            match self.stream.read(piece) {
                Ok(0) => return Err(Error::Failed("a connection was closed before its answer".into())),
                Ok(bytes) => {
                    self.input.extend_from_slice(&piece[..bytes]);
                    if bytes < piece.len() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).doing("reading an answer"),
            }
        }
    }
}

/// What values are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuff {
    /// Letters and digits at random: text that shrinks by a quarter at most.
    Letters,
    /// People's text: this project's own documents.
    Prose,
    /// Bytes at random: nothing shrinks.
    Noise,
}

/// Documents of this project.
const PROSE: [&str; 4] = [
    include_str!("../../README.md"),
    include_str!("../../ARCHITECTURE.md"),
    include_str!("../../wire/SPEC.md"),
    include_str!("../../LICENSE"),
];

/// Values of one length, each out of another place of a large piece of what they are made of.
#[derive(Clone, Debug)]
pub struct Values {
    pool: Vec<u8>,
    bytes: usize,
    stuff: Stuff,
}

impl Values {
    /// Values of `bytes` bytes each.
    #[must_use]
    pub fn new(stuff: Stuff, bytes: usize) -> Self {
        const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut pool = vec![0; (64 << 10) + bytes];
        crate::floor::cpu::fill(7, &mut pool);
        match stuff {
            Stuff::Noise => {}
            Stuff::Letters => pool.iter_mut().for_each(|byte| *byte = LETTERS[usize::from(*byte & 63)]),
            // A value may begin and end anywhere, and is text by itself.
            Stuff::Prose => pool = PROSE.concat().into_bytes().into_iter().filter(u8::is_ascii).collect(),
        }
        Self { pool, bytes, stuff }
    }

    /// Whether they are text.
    #[must_use]
    pub fn are_text(&self) -> bool {
        self.stuff != Stuff::Noise
    }

    /// The value of change `number`: every one another than the one before it.
    pub fn push(&self, number: u64, out: &mut Vec<u8>) {
        let unique = format!("{number:012x}");
        let rest = self.bytes.saturating_sub(unique.len());
        let at = (number as usize).wrapping_mul(0x9e37_79b1) % (self.pool.len() - rest);
        out.extend_from_slice(unique.as_bytes());
        out.extend_from_slice(&self.pool[at..at + rest]);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    struct Ping;

    impl Talk for Ping {
        fn ask(&mut self, number: u64, out: &mut Vec<u8>) {
            out.push(u8::from(number == 3));
        }

        fn answer(&self, bytes: &[u8]) -> Result<Option<Answer>> {
            Ok(bytes.first().map(|byte| if *byte == 9 { Answer::Again } else { Answer::Done }))
        }
    }

    /// Answers each byte, the first 1 with 9: back-pressure.
    fn serve(listener: &UnixListener, connections: usize) {
        std::thread::scope(|scope| {
            for _ in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                scope.spawn(move || {
                    let mut refused = false;
                    let mut byte = [0];
                    while matches!(stream.read(&mut byte), Ok(1)) {
                        let answer = if byte[0] == 1 && !refused { 9 } else { 0 };
                        refused |= answer == 9;
                        stream.write_all(&[answer]).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn closed_and_open_loops_count_every_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&listener, 6));
            let shape = Shape { connections: 3, span: Duration::from_millis(50), rate: None };
            let closed = run(&path, &mut Ping, shape).unwrap();
            assert!(closed.answered > 10 && closed.took >= shape.span, "{closed:?}");
            assert_eq!((closed.answered, closed.refused), (closed.latency.len(), 1));
            let shape = Shape { rate: Some(1000.0), ..shape };
            let open = run(&path, &mut Ping, shape).unwrap();
            assert_eq!(open.answered, 50, "as many as were due, none skipped");
        });
    }

    #[test]
    fn values_have_their_length_and_differ() {
        for (stuff, bytes) in [(Stuff::Letters, 200), (Stuff::Prose, 1024), (Stuff::Noise, 1024)] {
            let values = Values::new(stuff, bytes);
            let [mut one, mut two] = [Vec::new(), Vec::new()];
            values.push(1, &mut one);
            values.push(2, &mut two);
            assert_eq!((one.len(), two.len()), (bytes, bytes));
            assert!(one != two && values.are_text() == std::str::from_utf8(&one).is_ok());
        }
    }
}

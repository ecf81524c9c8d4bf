//! Scenario `latency`: one change, from when it leaves its writer on the active until a reader on the backup has it, beside
//! redis from SET on the master until GET on its replica.
//!
//! Always: one thread writes and then asks the other side over one open connection until it sees the new value, so that
//! what asking costs is in both; the next change comes only after a rest. Never: a value that was not compared.

use std::{
    io::{Read, Write},
    ops::Range,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ringpair_tests::pair::{Options, Pair};
use ringpair_wire::id::AckLevel;

use crate::{
    Plan,
    error::{Doing, Error, Result},
    figure::{Figure, Samples, number},
    floor::disk::{histogram, nanoseconds},
    load::{Stuff, Talk, Values},
    peers::{self, redis::Redis, redis::Sets},
    progress,
    stream::Native,
};

/// Bytes of a value, as in the other scenarios.
const BYTES: usize = 200;
/// What lies between two changes, and a little more each time: changes of a person do not come in step with anything.
const REST: Duration = Duration::from_millis(2);
const REST_STEP: Duration = Duration::from_micros(137);
const STEPS: u64 = 11;
const PATIENCE: Duration = Duration::from_secs(10);

/// Over how many objects the changes go, as both loads have it.
const OBJECTS: u64 = 16_384;

const QUANTILES: [(&str, f64); 2] = [("ds_visible_p50_us", 0.5), ("ds_visible_p99_us", 0.99)];

/// Starts a pair, and redis where it is asked for, and takes every figure `plan.runs` times.
///
/// # Errors
/// When a value does not come, an answer is wrong, or the system refuses something.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let active = pair.active().ok_or_else(|| Error::Failed("no member is active".into()))?;
    let backup = pair.peer_of(active);
    let dir = tempfile::TempDir::with_prefix("ringpair-latency-").doing("a temporary directory")?;
    let redis = if peers::offers(plan.peers, "redis-server") { Some(Redis::start(dir.path(), false)?) } else { None };
    let count = if plan.quick { 300 } else { 3000_u64 };
    let mut samples = Samples::default();
    for run in 1..=plan.runs {
        // No value comes twice, or the one of an earlier run would pass for it.
        let first = run as u64 * count;
        let changes = first..first + count;
        let mut native = Native::of(1, AckLevel::Received, Values::new(Stuff::Letters, BYTES));
        let seen =
            visible(&mut native, &active.socket(), &Http { path: "/BENCH/o" }, &backup.socket(), changes.clone())?;
        say(run, plan, "ringpair", &seen);
        let alone = asking(&Http { path: "/BENCH/o" }, &backup.socket(), changes.start, plan)?;
        for (name, quantile) in QUANTILES {
            samples.add(name, us(&seen, quantile));
            samples.hold_against(name, "floor one GET on the backup", us(&alone, quantile));
        }
        if let Some(redis) = &redis {
            let mut sets = Sets { changes: 1, replicated: false, values: Values::new(Stuff::Letters, BYTES) };
            let seen = visible(&mut sets, redis.socket(), &Resp, redis.replica_socket(), changes.clone())?;
            say(run, plan, "redis", &seen);
            let alone = asking(&Resp, redis.replica_socket(), changes.start, plan)?;
            for (name, quantile) in QUANTILES {
                samples.hold_against(name, "redis", us(&seen, quantile));
                samples.hold_against(name, "floor one GET on redis' replica", us(&alone, quantile));
            }
        }
    }
    pair.wait_in_sync();
    let [a, b] = pair.digests();
    if a.is_none() || a != b {
        return Err(Error::Failed(format!("the members differ: A {a:?}, B {b:?}\n{}", pair.logs())));
    }
    let unit =
        "us (200 B at received by a native client, until GET on the backup's socket, asked without pause, has it)";
    Ok(QUANTILES.iter().map(|(name, _)| samples.figures(name, unit)).collect::<Result<Vec<_>>>()?.concat())
}

fn us(seen: &Histogram<u64>, quantile: f64) -> f64 {
    seen.value_at_quantile(quantile) as f64 / 1000.0
}

fn say(run: usize, plan: &Plan, who: &str, seen: &Histogram<u64>) {
    let [p50, p99] = QUANTILES.map(|(_, quantile)| number(us(seen, quantile)));
    progress(&format!("latency: run {run} of {}: {who} p50 {p50} us, p99 {p99} us", plan.runs));
}

/// How a value is asked for.
trait Look {
    /// Appends the question for the object of change `number`.
    fn ask(&self, number: u64, out: &mut Vec<u8>);

    /// Whether `bytes` are a whole answer.
    fn is_whole(&self, bytes: &[u8]) -> bool;
}

/// GET over HTTP, the connection kept.
struct Http {
    path: &'static str,
}

impl Look for Http {
    fn ask(&self, number: u64, out: &mut Vec<u8>) {
        let path = self.path;
        out.extend_from_slice(
            format!("GET /v1/ds{path}{:06} HTTP/1.1\r\nHost: member\r\n\r\n", number % OBJECTS).as_bytes(),
        );
    }

    fn is_whole(&self, bytes: &[u8]) -> bool {
        let Some(split) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
        let head = String::from_utf8_lossy(&bytes[..split]).to_ascii_lowercase();
        if head.contains("transfer-encoding: chunked") {
            return bytes[split + 2..].ends_with(b"\r\n0\r\n\r\n");
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        length.is_some_and(|length| bytes.len() >= split + 4 + length)
    }
}

/// GET of redis.
struct Resp;

impl Look for Resp {
    fn ask(&self, number: u64, out: &mut Vec<u8>) {
        let key = format!("BENCH/o{:06}", number % OBJECTS);
        out.extend_from_slice(format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len()).as_bytes());
    }

    fn is_whole(&self, bytes: &[u8]) -> bool {
        // A bulk string, or that there is none.
        let lines = bytes.windows(2).filter(|window| *window == b"\r\n").count();
        bytes.starts_with(b"$-1") && lines == 1 || lines == 2
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).doing(&format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE)).doing("a socket")?;
    Ok(stream)
}

/// How long asking takes by itself, in nanoseconds, for an object that is there.
fn asking(look: &impl Look, reads: &Path, number: u64, plan: &Plan) -> Result<Histogram<u64>> {
    let (mut reader, mut seen, mut question, mut answer) = (connect(reads)?, histogram()?, Vec::new(), Vec::new());
    look.ask(number, &mut question);
    for _ in 0..if plan.quick { 300 } else { 3000 } {
        let start = Instant::now();
        reader.write_all(&question).doing("asking the other side")?;
        read_until(&mut reader, &mut answer, |bytes| look.is_whole(bytes))?;
        seen.saturating_record(nanoseconds(start.elapsed()));
    }
    Ok(seen)
}

/// How long each of `changes` takes, in nanoseconds, from before it is sent to `writes` until `reads` gives it.
fn visible(
    talk: &mut impl Talk,
    writes: &Path,
    look: &impl Look,
    reads: &Path,
    changes: Range<u64>,
) -> Result<Histogram<u64>> {
    let (mut writer, mut reader) = (connect(writes)?, connect(reads)?);
    talk.greet(&mut writer)?;
    let values = Values::new(Stuff::Letters, BYTES);
    let (mut seen, mut out, mut question, mut answer, mut value) =
        (histogram()?, Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        thread::park_timeout(REST + REST_STEP * u32::try_from(change % STEPS).unwrap_or_default());
        out.clear();
        talk.ask(change, &mut out);
        question.clear();
        look.ask(change, &mut question);
        value.clear();
        values.push(change, &mut value);
        let start = Instant::now();
        writer.write_all(&out).doing("sending a change")?;
        loop {
            reader.write_all(&question).doing("asking the other side")?;
            read_until(&mut reader, &mut answer, |bytes| look.is_whole(bytes))?;
            if answer.windows(value.len()).any(|window| window == value) {
                break;
            }
            if start.elapsed() > PATIENCE {
                return Err(Error::Failed(format!("change {change} is not on the other side after {PATIENCE:?}")));
            }
        }
        seen.saturating_record(nanoseconds(start.elapsed()));
        // The writer's own answer must be there, too, and be the one that was asked for.
        let mut failed = None;
        read_until(&mut writer, &mut answer, |bytes| match talk.answer(bytes) {
            Ok(answered) => answered.is_some(),
            Err(error) => {
                failed = Some(error);
                true
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(seen)
}

/// Reads into `answer`, emptied before, until it is `whole`.
fn read_until(stream: &mut UnixStream, answer: &mut Vec<u8>, mut whole: impl FnMut(&[u8]) -> bool) -> Result<()> {
    answer.clear();
    let mut piece = [0; 4096];
    while !whole(answer) {
        match stream.read(&mut piece).doing("hearing an answer")? {
            0 => {
                let heard = String::from_utf8_lossy(answer).into_owned();
                return Err(Error::Failed(format!("a connection was closed before its answer, after {heard:?}")));
            }
            bytes => answer.extend_from_slice(&piece[..bytes]),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole_at_their_end() {
        for (look, whole) in [
            (&Resp as &dyn Look, &b"$3\r\nabc\r\n"[..]),
            (&Resp, b"$-1\r\n"),
            (
                &Http { path: "/BENCH/o" },
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n0\r\n\r\n",
            ),
            (&Http { path: "/BENCH/o" }, b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}"),
        ] {
            assert!(look.is_whole(whole), "{}", String::from_utf8_lossy(whole));
            for end in 0..whole.len() - 1 {
                assert!(!look.is_whole(&whole[..end]), "{}", String::from_utf8_lossy(&whole[..end]));
            }
        }
    }
}

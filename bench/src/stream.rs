//! Scenario `stream`: changes of the configuration tree through a real pair, by ack level, size, clients and batching,
//! beside what two synced writers and a round trip cost, and beside redis.
//!
//! Always: mutual TLS and journal are on; every answer must name the level that was asked for; after each run both
//! members must have one digest. Never: a figure of a member that was alone.

use std::{
    fmt::Write,
    io::{Read, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use ringpair_tests::pair::{Options, Pair};
use ringpair_wire::{
    client::{
        self, Answer as Said, AttributeEdit, Greeting, How, MAX_ANSWER_BYTES, Operation, ValueRef, begin_write,
        encode_request, end_write, message_bytes, push_request,
    },
    id::AckLevel,
};
use tempfile::TempDir;

use crate::{
    Plan,
    error::{Doing, Error, Result},
    figure::{Figure, Samples, number},
    floor::{disk, net},
    load::{self, Answer, Outcome, Shape, Stuff, Talk, Values},
    peers::{self, redis::Redis, redis::Sets},
    process, progress,
};

/// Changes in one transaction, and connections that send them, where changes are pipelined.
const PIPELINED: (u64, usize) = (256, 16);
/// Objects that the changes go over.
const OBJECTS: u64 = 16_384;
/// The most that the journal syncs at once, in bytes.
const GROUP_BYTES: usize = 1 << 20;
/// How much the sequential writer writes.
const SEQUENTIAL_BYTES: usize = 256 << 20;
/// What an open loop asks, of what 64 clients reached.
const OPEN_SHARE: f64 = 0.5;

const fn load(name: &'static str, ack: AckLevel, bytes: usize, (changes, connections): (u64, usize)) -> Load {
    Load { name, ack, bytes, changes, connections, http: false, stuff: Stuff::Letters }
}

/// The figures that are plain load, and how each is taken: by native clients, and the first once more over HTTP.
const LOADS: [Load; 7] = [
    load("durable_pipelined_200b_per_s", AckLevel::Durable, 200, PIPELINED),
    Load { stuff: Stuff::Prose, ..load("durable_pipelined_1k_per_s", AckLevel::Durable, 1024, PIPELINED) },
    Load { stuff: Stuff::Noise, ..load("durable_pipelined_1k_noise_per_s", AckLevel::Durable, 1024, PIPELINED) },
    load("durable_64_clients_per_s", AckLevel::Durable, 200, (1, 64)),
    load("durable_one_client_p50_us", AckLevel::Durable, 200, (1, 1)),
    load("async_one_client_p50_us", AckLevel::Async, 200, (1, 1)),
    Load { http: true, ..load("durable_pipelined_200b_http_per_s", AckLevel::Durable, 200, PIPELINED) },
];

/// One figure's load.
#[derive(Clone, Copy, Debug)]
struct Load {
    name: &'static str,
    ack: AckLevel,
    bytes: usize,
    /// In one message: natively each a transaction by itself, over HTTP one transaction.
    changes: u64,
    connections: usize,
    http: bool,
    stuff: Stuff,
}

impl Load {
    fn is_rate(&self) -> bool {
        self.name.ends_with("_per_s")
    }

    /// The figure's value.
    fn value(&self, outcome: &Outcome) -> f64 {
        if self.is_rate() { outcome.per_s() * self.changes as f64 } else { outcome.latency_us(0.5) }
    }

    fn shape(&self, span: Duration) -> Shape {
        Shape { connections: self.connections, span, rate: None }
    }

    /// Unit, and how it was taken.
    fn unit(&self) -> String {
        let Self { changes, connections, http, .. } = self;
        let bytes = match self.stuff {
            Stuff::Letters => format!("{} B", self.bytes),
            Stuff::Prose => format!("{} B of prose", self.bytes),
            Stuff::Noise => format!("{} B of noise", self.bytes),
        };
        match (self.is_rate(), http, changes) {
            (true, true, _) => {
                format!("changes/s ({bytes}, POST of {changes}, {connections} keep-alive connections)")
            }
            (true, false, 1) => {
                format!("changes/s ({bytes}, {connections} native clients, one change each under way)")
            }
            (true, false, _) => {
                format!("changes/s ({bytes}, {connections} native clients, {changes} each under way)")
            }
            (false, ..) => format!("us ({bytes}, 1 native client)"),
        }
    }

    /// Runs it.
    fn run(&self, socket: &Path, shape: Shape) -> Result<Outcome> {
        match self.http {
            true => load::run(socket, &mut Puts::new(self), shape),
            false => load::run(socket, &mut Native::new(self), shape),
        }
    }
}

/// What this machine's disk and loopback allow, taken anew in each run.
struct Floor {
    round_trip_us: f64,
    synced_us: f64,
    /// Bytes a second that two writers sync, each.
    group_bytes_per_s: f64,
    /// Bytes a second that one writer writes into a new file and syncs once.
    sequential_bytes_per_s: f64,
}

impl Floor {
    fn take(dir: &Path, span: Duration) -> Result<Self> {
        Ok(Self {
            round_trip_us: net::round_trip_p50_us(span)?,
            synced_us: disk::fdatasync_p50_us(dir, 2, 4096, span)?,
            sequential_bytes_per_s: disk::sequential(dir, SEQUENTIAL_BYTES)?,
            group_bytes_per_s: disk::synced_per_s(dir, 2, GROUP_BYTES, span)? * GROUP_BYTES as f64,
        })
    }

    /// What `load` is held against: a name, and its value.
    fn of(&self, load: &Load) -> (&'static str, f64) {
        let durable_us = self.round_trip_us + self.synced_us;
        match (load.is_rate(), load.ack, load.changes) {
            (true, _, 1) => {
                ("floor 64 per round trip and fdatasync by two writers", load.connections as f64 * 1e6 / durable_us)
            }
            // Both members write it, to the one disk.
            (true, ..) if load.stuff == Stuff::Noise => {
                ("floor half of a sequential write", self.sequential_bytes_per_s / 2.0 / load.bytes as f64)
            }
            (true, _, _) => ("floor two writers syncing 1 MiB at once", self.group_bytes_per_s / load.bytes as f64),
            (false, AckLevel::Async, _) => ("floor round trip", self.round_trip_us),
            (false, _, _) => ("floor round trip and fdatasync by two writers", durable_us),
        }
    }
}

/// Starts a pair and takes every figure `plan.runs` times.
///
/// # Errors
/// When a member answers otherwise than asked, digests differ, or the system refuses something.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    if taken(plan).next().is_none() {
        let names = LOADS.map(|load| load.name).join(", ");
        return Err(Error::Failed(format!("there is no such figure. Try: one of {names}")));
    }
    progress("stream: starting a pair");
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let active = pair.active().ok_or_else(|| Error::Failed("no member is active".into()))?;
    let socket = active.socket();
    let status = active.status().unwrap_or_default();
    progress(&format!("stream: {} is active, io {}", active.name(), status["io"]["driver"]));
    let dir = TempDir::with_prefix("ringpair-stream-").doing("a temporary directory")?;
    let redis = if peers::offers(plan.peers, "redis-server") {
        Some([("redis-fsync", Redis::start(dir.path(), true)?), ("redis", Redis::start(dir.path(), false)?)])
    } else {
        None
    };
    let span = plan.load_for();
    let mut samples = Samples::default();
    for run in 1..=plan.runs {
        let floor = Floor::take(dir.path(), span / 6)?;
        for load in taken(plan) {
            let before = cpu_s(&pair);
            let outcome = load.run(&socket, load.shape(span))?;
            if load.changes > 1 {
                let changes = (outcome.answered * load.changes) as f64;
                samples.add(&cpu_name(load), (cpu_s(&pair) - before) * 1e6 / changes);
            }
            say(run, plan, load, &outcome);
            samples.add(load.name, load.value(&outcome));
            let (reference, value) = floor.of(load);
            samples.hold_against(load.name, reference, value);
            for (name, redis) in redis.iter().flatten().filter(|_| !load.http) {
                take_redis(&mut samples, load, name, redis, span)?;
            }
            if load.connections == 64 {
                open_loop(&mut samples, &socket, load, outcome.per_s() * OPEN_SHARE, span)?;
            }
        }
        compare(&pair)?;
    }
    figures(plan, &samples)
}

/// The loads that are asked for.
fn taken(plan: &Plan) -> impl Iterator<Item = &'static Load> {
    LOADS.iter().filter(|load| plan.takes(load.name))
}

/// The figure of what a change costs, whatever else runs on the machine.
fn cpu_name(load: &Load) -> String {
    load.name.replace("_per_s", "_cpu_us")
}

/// The processor time that both workers have had.
fn cpu_s(pair: &Pair) -> f64 {
    pair.members().iter().filter_map(|member| process::cpu_s(member.worker_pid()?)).sum()
}

fn say(run: usize, plan: &Plan, load: &Load, outcome: &Outcome) {
    let (value, refused) = (number(load.value(outcome)), outcome.refused);
    let (p50, p99) = (number(outcome.latency_us(0.5)), number(outcome.latency_us(0.99)));
    progress(&format!(
        "stream: run {run} of {}: {} {value} (p50 {p50} us, p99 {p99} us a request, {refused} refused)",
        plan.runs, load.name
    ));
}

fn take_redis(samples: &mut Samples, load: &Load, name: &str, redis: &Redis, span: Duration) -> Result<()> {
    // One that syncs says nothing about `async`, and one that does not nothing about a synced round trip.
    let fits = match (load.is_rate(), load.ack) {
        (false, AckLevel::Async) => name == "redis",
        (false, _) => name == "redis-fsync",
        (true, _) => true,
    };
    if fits {
        let mut sets = Sets {
            changes: load.changes,
            replicated: load.ack == AckLevel::Durable,
            values: Values::new(load.stuff, load.bytes),
        };
        let outcome = load::run(redis.socket(), &mut sets, load.shape(span))?;
        samples.hold_against(load.name, name, load.value(&outcome));
    }
    Ok(())
}

/// Latency while requests come at a fixed rate, counted from when each was due.
fn open_loop(samples: &mut Samples, socket: &Path, load: &Load, rate: f64, span: Duration) -> Result<()> {
    let shape = Shape { rate: Some(rate), ..load.shape(span) };
    let outcome = load.run(socket, shape)?;
    for (name, quantile) in OPEN {
        samples.add(name, outcome.latency_us(quantile));
    }
    Ok(())
}

const OPEN: [(&str, f64); 2] = [("durable_open_loop_p50_us", 0.5), ("durable_open_loop_p99_us", 0.99)];

fn figures(plan: &Plan, samples: &Samples) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for load in taken(plan) {
        figures.extend(samples.figures(load.name, &load.unit())?);
    }
    for load in taken(plan).filter(|load| load.changes > 1) {
        figures.extend(samples.figures(&cpu_name(load), "us of processor a change (both workers, user and kernel)")?);
    }
    for (name, _) in OPEN.iter().filter(|_| taken(plan).any(|load| load.connections == 64)) {
        let unit = "us (200 B, open loop at half of durable_64_clients_per_s, 64 native clients)";
        figures.extend(samples.figures(name, unit)?);
    }
    Ok(figures)
}

fn compare(pair: &Pair) -> Result<()> {
    pair.wait_in_sync();
    let [a, b] = pair.digests();
    if a.is_some() && a == b {
        return Ok(());
    }
    Err(Error::Failed(format!("the members differ after a run: A {a:?}, B {b:?}\n{}", pair.logs())))
}

/// Changes by native clients: each a transaction by itself, several in one message.
#[derive(Debug)]
pub(crate) struct Native {
    /// In one message.
    changes: u64,
    /// At which level each must be answered.
    ack: AckLevel,
    /// Over how many objects, in turn, and which is the first.
    pub objects: u64,
    pub first: u64,
    /// Whether the answers of an active that is alone count.
    alone: bool,
    values: Values,
    value: Vec<u8>,
    request: Vec<u8>,
}

impl Native {
    fn new(load: &Load) -> Self {
        Self::of(load.changes, load.ack, Values::new(load.stuff, load.bytes))
    }

    /// `changes` in each message, with these values, each to be answered at `ack`.
    pub(crate) fn of(changes: u64, ack: AckLevel, values: Values) -> Self {
        let (value, request) = (Vec::new(), Vec::new());
        Self { changes, ack, objects: OBJECTS, first: 0, alone: false, values, value, request }
    }

    /// As it is, but an active that is alone may answer as well.
    pub(crate) fn even_alone(self) -> Self {
        Self { alone: true, ..self }
    }
}

impl Talk for Native {
    fn greet(&self, stream: &mut UnixStream) -> Result<()> {
        let ours = Greeting { versions: client::VERSIONS, member: None };
        stream.write_all(&ours.to_bytes()).doing("greeting a member")?;
        let (mut input, mut byte) = (Vec::new(), [0]);
        // Byte by byte: what follows the greeting is not taken along.
        while Greeting::parse(&input, true, client::VERSIONS)
            .map_err(|error| Error::Failed(format!("the member's greeting: {error}")))?
            .is_none()
        {
            stream.read_exact(&mut byte).doing("hearing a member's greeting")?;
            input.extend_from_slice(&byte);
        }
        Ok(())
    }

    fn ask(&mut self, number: u64, out: &mut Vec<u8>) {
        let first = self.first + number * self.changes;
        let start = begin_write(out, Some(self.ack), 0, first + 1);
        for change in first..first + self.changes {
            let path = format!("/BENCH/o{:06}", change % self.objects);
            self.value.clear();
            self.values.push(change, &mut self.value);
            let text = self.values.are_text().then(|| std::str::from_utf8(&self.value).ok()).flatten();
            let value = text.map_or(ValueRef::Bytes(&self.value), ValueRef::Text);
            let edit = AttributeEdit { name: "Value", how: How::Set, values: vec![value] };
            let put = Operation::Put { path: &path, class: Some("Bench"), replace: false, attributes: vec![edit] };
            self.request.clear();
            encode_request(&[put], &mut self.request);
            push_request(out, &self.request);
        }
        end_write(out, start, self.changes as u32);
    }

    fn answer(&self, bytes: &[u8]) -> Result<Option<Answer>> {
        let wrong = |what: String| Error::Failed(format!("a member answered {what}"));
        let (mut at, mut reached) = (0, 0);
        while let Some(end) = message_bytes(&bytes[at..], MAX_ANSWER_BYTES).map_err(|error| wrong(error.to_string()))?
            && let Some(message) = bytes.get(at..at + end)
        {
            match Said::parse(message).map_err(|error| wrong(error.to_string()))? {
                Said::Reached(said) if (said.level == self.ack && !said.alone) || (said.alone && self.alone) => {
                    reached += u64::from(said.count);
                }
                other => return Err(wrong(format!("{other:?}"))),
            }
            at += end;
        }
        Ok((reached >= self.changes).then_some(Answer::Done))
    }
}

/// Changes over HTTP: one by PUT, several as one transaction by POST.
struct Puts {
    changes: u64,
    ack: &'static str,
    values: Values,
    body: Vec<u8>,
    expected: String,
}

impl Puts {
    fn new(load: &Load) -> Self {
        let ack = load.ack.name();
        let expected = format!(r#""level":"{ack}""#);
        Self { changes: load.changes, ack, values: Values::new(load.stuff, load.bytes), body: Vec::new(), expected }
    }

    fn push_object(&mut self, change: u64, with_path: bool) {
        let body = &mut self.body;
        body.push(b'{');
        if with_path {
            body.extend_from_slice(format!(r#""path":"/BENCH/o{:06}","#, change % OBJECTS).as_bytes());
        }
        body.extend_from_slice(br#""class":"Bench","attributes":{"Value":[""#);
        self.values.push(change, body);
        body.extend_from_slice(b"\"]}}");
    }
}

impl Talk for Puts {
    fn ask(&mut self, number: u64, out: &mut Vec<u8>) {
        self.body.clear();
        let mut head = String::new();
        // Writing to a string does not fail.
        if self.changes == 1 {
            self.push_object(number, false);
            let _ = write!(head, "PUT /v1/ds/BENCH/o{:06}", number % OBJECTS);
        } else {
            for change in number * self.changes..(number + 1) * self.changes {
                self.push_object(change, true);
                self.body.push(b'\n');
            }
            head.push_str("POST /v1/ds");
        }
        let _ =
            write!(head, "?ack={} HTTP/1.1\r\nHost: member\r\nContent-Length: {}\r\n\r\n", self.ack, self.body.len());
        out.extend_from_slice(head.as_bytes());
        out.extend_from_slice(&self.body);
    }

    fn answer(&self, bytes: &[u8]) -> Result<Option<Answer>> {
        let Some(split) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
        let head = String::from_utf8_lossy(&bytes[..split]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let whole = length.ok_or_else(|| Error::Failed(format!("an answer without its length: {head}")))?;
        let Some(body) = bytes.get(split + 4..split + 4 + whole) else { return Ok(None) };
        if head.starts_with("http/1.1 429") {
            return Ok(Some(Answer::Again));
        }
        let body = String::from_utf8_lossy(body);
        let done =
            head.starts_with("http/1.1 200") && body.contains(&self.expected) && body.contains(r#""alone":false"#);
        if done { Ok(Some(Answer::Done)) } else { Err(Error::Failed(format!("the member answered {head}\n{body}"))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HTTP: Load = LOADS[LOADS.len() - 1];

    fn answer(text: &str) -> Result<Option<Answer>> {
        Puts::new(&HTTP).answer(text.as_bytes())
    }

    #[test]
    fn native_answers_count_when_all_changes_reached_the_level() {
        let native = Native::new(&LOADS[0]);
        let said = |first, count, level, alone| {
            let mut bytes = Vec::new();
            Said::Reached(client::Reached { first, count, level, alone, versions: client::Versions::default() })
                .encode(&mut bytes);
            bytes
        };
        let [some, rest] = [said(1, 200, AckLevel::Durable, false), said(201, 56, AckLevel::Durable, false)];
        assert_eq!(native.answer(&some).unwrap(), None);
        let all = [some, rest].concat();
        assert_eq!(native.answer(&all[..all.len() - 1]).unwrap(), None);
        assert_eq!(native.answer(&all).unwrap(), Some(Answer::Done));
        assert!(native.answer(&said(1, 256, AckLevel::Local, false)).is_err());
        assert!(native.answer(&said(1, 256, AckLevel::Durable, true)).is_err());
    }

    #[test]
    fn native_requests_are_numbered_one_by_one() {
        let mut out = Vec::new();
        Native::new(&LOADS[0]).ask(2, &mut out);
        let mut write = client::Write::parse(&out).unwrap();
        assert_eq!((write.first, write.count, write.ack), (513, 256, Some(AckLevel::Durable)));
        let mut operations = client::Operations::parse(write.requests.take().unwrap()).unwrap();
        let Some(Operation::Put { path, attributes, .. }) = operations.take().unwrap() else { panic!("no put") };
        assert_eq!(path, "/BENCH/o000512");
        assert!(matches!(attributes[0].values[0], ValueRef::Text(text) if text.len() == 200));
    }

    #[test]
    fn only_the_level_that_was_asked_for_counts() {
        let with =
            |status: &str, body: &str| format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let good = with("200 OK", r#"{"level":"durable","alone":false}"#);
        assert_eq!(answer(&good).unwrap(), Some(Answer::Done));
        assert_eq!(answer(&good[..good.len() - 1]).unwrap(), None);
        assert!(answer(&with("200 OK", r#"{"level":"local","alone":true}"#)).is_err());
        assert!(answer(&with("504 Late", r#"{"error":{}}"#)).is_err());
        assert_eq!(answer(&with("429 Busy", "{}")).unwrap(), Some(Answer::Again));
    }

    #[test]
    fn requests_are_what_the_interface_says() {
        let mut out = Vec::new();
        Puts::new(&HTTP).ask(1, &mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /v1/ds?ack=durable HTTP/1.1\r\n"), "{head}");
        let lines: Vec<serde_json::Value> = body.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), lines[0]["path"].as_str()), (256, Some("/BENCH/o000256")));
        assert_eq!(lines[0]["attributes"]["Value"][0].as_str().map(str::len), Some(200));
    }
}

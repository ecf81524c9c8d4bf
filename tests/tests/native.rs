//! Native clients of real members: levels, transactions, refusals, kills, back-pressure, garbage, both drivers.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{ErrorKind, Read, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use ringpair_client::{
    AttributeEdit, Client, FailureCode, How, Operation, Options as ClientOptions, Outcome, ValueRef,
};
use ringpair_tests::pair::{
    Acknowledged, Dice, Member, Options, PATIENCE, Pair, Victim, Writes, check_served, merge, wait_until,
};
use ringpair_wire::{
    client::{self, Answer, Greeting, begin_write, encode_request, end_write, push_request},
    hello::VersionRange,
    id::AckLevel,
};

const LEVELS: [AckLevel; 5] =
    [AckLevel::Async, AckLevel::Local, AckLevel::Received, AckLevel::Durable, AckLevel::Applied];

fn options(ack: AckLevel) -> ClientOptions {
    ClientOptions { ack: Some(ack), patience: PATIENCE, ..ClientOptions::default() }
}

fn put<'a>(path: &'a str, name: &'a str, values: &[&'a str], how: How) -> Operation<'a> {
    let values = values.iter().map(|value| ValueRef::Text(value)).collect();
    Operation::Put { path, class: Some("Load"), replace: false, attributes: vec![AttributeEdit { name, how, values }] }
}

/// Each level, pipelined: everything reaches it, in order, and is there where the level says.
fn every_level(pair: &Pair) {
    for (round, level) in LEVELS.into_iter().enumerate() {
        let mut client = Client::connect([pair.a.socket()], options(level)).unwrap();
        for n in 0..1000 {
            client.set(&format!("/NATIVE/o{}", n % 97), "Counter", &format!("{round}.{n}")).unwrap();
        }
        let mut before = None;
        for number in 1..=1000 {
            let report = client.wait().unwrap();
            let Outcome::Reached { version, level: reached, alone } = report.outcome else { panic!("{report:?}") };
            assert_eq!((report.number, reached, alone), (number, level, false));
            assert!(before < Some(version), "{version} after {before:?}");
            before = Some(version);
        }
        assert_eq!(client.wait(), None);
        let served = |member: &ringpair_tests::pair::Member| {
            let object = member.get("/v1/ds/NATIVE/o0").unwrap().json();
            (object["attributes"]["Counter"][0].clone(), object["version"].clone())
        };
        let on_active = served(&pair.a);
        assert_eq!(on_active.0, format!("{round}.970"));
        if level == AckLevel::Applied {
            assert_eq!(served(&pair.b), on_active, "readable on the backup, with the same version");
        }
    }
    pair.wait_in_sync();
    let [a, b] = pair.digests();
    assert!(a.is_some() && a == b, "{a:?} {b:?}\n{}", pair.logs());
}

// REQ: REP-001 REP-300
#[test]
fn pipelined_changes_reach_every_level() {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    every_level(&pair);
}

// REQ: REP-301
#[test]
fn the_plain_driver_serves_native_clients_alike() {
    let set = vec![("io.driver".to_owned(), "plain".to_owned())];
    let pair = Pair::start(&Options { set, ..Options::default() });
    pair.wait_in_sync();
    assert_eq!(pair.a.status().unwrap()["io"]["driver"], "plain");
    every_level(&pair);
}

// REQ: REP-004 REP-006 REP-011 REP-125 PAR-004
#[test]
fn requests_fail_alone_and_a_backup_names_the_active() {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let mut client = Client::connect([pair.a.socket()], options(AckLevel::Durable)).unwrap();
    let remove = |path, recursive| Operation::Remove { path, recursive, missing_ok: false };
    let good = client.submit(&[put("/T/a/x", "L", &["1"], How::Set), put("/T/a/x", "L", &["2"], How::Add)]).unwrap();
    let bad = [
        (vec![put("/T/b", "N", &["1"], How::Set), remove("/T/nobody", false)], FailureCode::Malformed),
        (vec![remove("/T/nobody", false)], FailureCode::NotFound),
        (vec![remove("/T/a", false)], FailureCode::Refused),
        (vec![put("no path", "N", &["1"], How::Set)], FailureCode::Malformed),
        (vec![put("/T/c", "N=", &["1"], How::Set)], FailureCode::Malformed),
        (vec![put("/T/c", "N", &[], How::Set)], FailureCode::Malformed),
    ];
    let bad: Vec<_> = bad.into_iter().map(|(request, code)| (client.submit(&request).unwrap(), code)).collect();
    let nothing = client.submit(&[Operation::Remove { path: "/T/no", recursive: false, missing_ok: true }]).unwrap();
    let last = client.submit(&[put("/t/A/X", "l", &["1"], How::Remove)]).unwrap();
    let reports: Vec<_> = std::iter::from_fn(|| client.wait()).collect();
    assert_eq!(reports.len(), bad.len() + 3);
    for report in reports {
        match (report.outcome, bad.iter().find(|(number, _)| *number == report.number)) {
            (Outcome::Failed(failure), Some((_, code))) => assert_eq!(failure.code, Some(*code), "{failure}"),
            (Outcome::Reached { level, .. }, None) => {
                assert!([good, nothing, last].contains(&report.number));
                assert_eq!(level, AckLevel::Durable);
            }
            other => panic!("request {}: {other:?}", report.number),
        }
    }
    let object = pair.a.get("/v1/ds/T/a/x").unwrap().json();
    assert_eq!(object["attributes"], serde_json::json!({"L": ["2"]}), "{object}");
    assert_eq!(pair.a.get("/v1/ds/T/b").unwrap().status, 404, "a transaction is whole or not at all");
    // On the backup: refused, with the active's name; with both sockets, followed.
    let impatient = ClientOptions { patience: Duration::ZERO, ..options(AckLevel::Durable) };
    let mut refused = Client::connect([pair.b.socket()], impatient).unwrap();
    let Outcome::Failed(failure) = refused.change(&[put("/T/d", "N", &["1"], How::Set)]).unwrap() else {
        panic!("a backup takes no writes")
    };
    assert_eq!(failure.code, Some(FailureCode::NotActive));
    assert_eq!(failure.active.map(|(name, _)| name), Some("host-a".into()));
    let mut both = Client::connect([pair.b.socket(), pair.a.socket()], options(AckLevel::Durable)).unwrap();
    let outcome = both.change(&[put("/T/d", "N", &["1"], How::Set)]).unwrap();
    assert!(matches!(outcome, Outcome::Reached { alone: false, .. }), "{outcome:?}");
    // Without a backup an answer says so.
    pair.b.signal(Victim::Both, Signal::SIGKILL);
    assert!(pair.b.reap(PATIENCE));
    wait_until("the active says that it is alone", || {
        let outcome = both.change(&[put("/T/d", "N", &["2"], How::Set)]).unwrap();
        matches!(outcome, Outcome::Reached { alone: true, level: AckLevel::Local, .. })
    });
}

/// A native client that keeps many changes under way on whichever member is active, and notes what it was told.
struct Flood {
    stop: Arc<AtomicBool>,
    reached: Arc<AtomicU64>,
    thread: JoinHandle<(Writes, u64)>,
}

impl Flood {
    fn start(sockets: [PathBuf; 2], number: usize, counter: Arc<AtomicU64>) -> Self {
        let (stop, reached) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&reached));
        let thread = std::thread::spawn(move || flood(sockets, number, &counter, &stopped, &told));
        Self { stop, reached, thread }
    }

    fn stop(self) -> (Writes, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("no client panics")
    }
}

fn flood(
    sockets: [PathBuf; 2],
    number: usize,
    counter: &AtomicU64,
    stop: &AtomicBool,
    told: &AtomicU64,
) -> (Writes, u64) {
    let (mut writes, mut unknown) = (Writes::new(), 0);
    let mut under_way = std::collections::BTreeMap::new();
    let options = ClientOptions { window: 512, ..options(AckLevel::Durable) };
    let mut client = Client::connect(sockets, options).expect("a member answers");
    let mut hear = |client: &mut Client, under_way: &mut std::collections::BTreeMap<u64, (String, u64)>, wait: bool| {
        while let Some(report) = if wait { client.wait() } else { client.poll() } {
            let (path, value) = under_way.remove(&report.number).expect("each is reported once");
            let entry: &mut Acknowledged = writes.entry(path).or_default();
            entry.sent = entry.sent.max(value);
            match report.outcome {
                Outcome::Reached { level: AckLevel::Durable, alone: false, .. } => {
                    entry.durable = entry.durable.max(value)
                }
                Outcome::Reached { level: AckLevel::Local, alone: true, .. } => entry.alone = entry.alone.max(value),
                Outcome::Unknown { .. } => unknown += 1,
                // A worker whose supervisor was killed before it refuses: nothing was changed.
                Outcome::Failed(failure) if failure.code == Some(FailureCode::Refused) => {}
                other => panic!("{value}: {other:?}"),
            }
            told.fetch_add(1, Ordering::Relaxed);
        }
    };
    for turn in 0_u64.. {
        let value = counter.fetch_add(1, Ordering::Relaxed);
        // Every eighth object is written once: what is lost there is not hidden by a later change.
        let path = match turn % 8 {
            7 => format!("/LOAD/n{number}/once{value}"),
            _ => format!("/LOAD/n{number}/o{}", turn % 50),
        };
        let request = client.set(&path, "Counter", &value.to_string()).expect("it is short");
        under_way.insert(request, (path, value));
        hear(&mut client, &mut under_way, false);
        if stop.load(Ordering::Relaxed) || turn > 200_000 {
            break;
        }
    }
    hear(&mut client, &mut under_way, true);
    assert!(under_way.is_empty(), "everything is reported");
    (writes, unknown)
}

// REQ: REP-020 REP-310 protocol §10
#[test]
fn what_a_killed_active_told_native_clients_is_served_afterwards() {
    let mut dice = Dice(7);
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let counter = Arc::new(AtomicU64::new(1));
    let mut all = Writes::new();
    for round in 0..4 {
        let sockets = [pair.a.socket(), pair.b.socket()];
        let floods: Vec<_> = (0..2).map(|number| Flood::start(sockets.clone(), number, Arc::clone(&counter))).collect();
        let told = || floods.iter().map(|flood| flood.reached.load(Ordering::Relaxed)).sum::<u64>();
        let enough = 500 + dice.below(2000);
        wait_until("the load runs", || told() >= enough);
        let victim = if round % 2 == 0 { Victim::Worker } else { Victim::Both };
        let active = pair.active().expect("a member is active").name();
        let member = if active == 'A' { &mut pair.a } else { &mut pair.b };
        member.signal(victim, Signal::SIGKILL);
        if victim == Victim::Both {
            assert!(member.reap(PATIENCE));
            member.start(&[]);
        }
        let before = told();
        wait_until("changes are answered again", || told() > before + 1500);
        for flood in floods {
            let (writes, unknown) = flood.stop();
            // At most what one connection had under way, once for each member that went away from under it.
            assert!(unknown <= 2 * 512, "{unknown} are unknown");
            merge(&mut all, writes);
        }
        pair.wait_in_sync();
        check_served(&pair, &all);
    }
}

// REQ: protocol §10
#[test]
fn behind_a_refusal_nothing_is_taken_though_the_member_becomes_active() {
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let greeting = Greeting { versions: client::VERSIONS, member: None }.to_bytes();
    let mut stream = connect_to(&pair.b, &greeting);
    let mut said = Vec::new();
    let mut ask = |number: u64| {
        let (mut write, mut request) = (Vec::new(), Vec::new());
        encode_request(&[put("/T/order", "N", &[&number.to_string()], How::Set)], &mut request);
        let start = begin_write(&mut write, None, 0, number);
        push_request(&mut write, &request);
        end_write(&mut write, start, 1);
        stream.write_all(&write).unwrap();
        loop {
            if let Ok(Some((_, end))) = Greeting::parse(&said, true, client::VERSIONS) {
                said.drain(..end);
            }
            if let Some(whole) = client::message_bytes(&said, client::MAX_ANSWER_BYTES).unwrap() {
                let answer = Answer::parse(&said[..whole]).unwrap();
                said.drain(..whole);
                return answer;
            }
            let mut piece = [0; 4096];
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "the member went away");
            said.extend_from_slice(&piece[..count]);
        }
    };
    let refused = |answer: &Answer| matches!(answer, Answer::Failed(failed) if failed.code == FailureCode::NotActive);
    let answer = ask(1);
    assert!(refused(&answer), "{answer:?}");
    pair.a.signal(Victim::Both, Signal::SIGKILL);
    assert!(pair.a.reap(PATIENCE));
    pair.b.wait_active();
    // Made again by a client, the first one would come behind this one: its older value would stand.
    let answer = ask(2);
    assert!(refused(&answer), "{answer:?}");
    let mut client = Client::connect([pair.b.socket()], options(AckLevel::Local)).unwrap();
    let outcome = client.change(&[put("/T/order", "N", &["1"], How::Set)]).unwrap();
    assert!(matches!(outcome, Outcome::Reached { .. }), "{outcome:?}");
}

/// Greets A by hand.
fn connect(pair: &Pair, bytes: &[u8]) -> UnixStream {
    connect_to(&pair.a, bytes)
}

fn connect_to(member: &Member, bytes: &[u8]) -> UnixStream {
    let mut stream = UnixStream::connect(member.socket()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// Everything that the member says until it closes the connection, behind its greeting.
fn last_words(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        // Closed with bytes of ours unread: what it had said was read all the same.
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("not closed: {error}"),
        _ => {}
    }
    let Ok(Some((_, end))) = Greeting::parse(&bytes, true, VersionRange { min: 1, max: 9 }) else {
        return String::from_utf8_lossy(&bytes).into_owned();
    };
    let mut rest = &bytes[end..];
    loop {
        let whole = client::message_bytes(rest, client::MAX_ANSWER_BYTES).unwrap().expect("a last word");
        if let Answer::Goodbye { message, .. } = Answer::parse(&rest[..whole]).unwrap() {
            return message;
        }
        rest = &rest[whole..];
    }
}

// REQ: REP-310
#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let worker = pair.a.worker_pid();
    let greeting = Greeting { versions: client::VERSIONS, member: None }.to_bytes();
    let after = |bytes: &[u8]| last_words(connect(&pair, &[&greeting[..], bytes].concat()));
    let other = Greeting { versions: VersionRange { min: 7, max: 9 }, member: None }.to_bytes();
    let said = last_words(connect(&pair, &other));
    assert!(said.contains("7 to 9") && said.contains('1'), "both versions are named: {said}");
    assert!(last_words(connect(&pair, b"\xa9RPX....")).contains("no greeting"));
    assert!(after(&[0xff; 64]).contains("at most"), "a message without end");
    assert!(after(&[0, 0, 0, 0, 99]).contains("type 99"));
    assert!(after(&[3, 0, 0, 0, 1, 0, 0, 0]).contains("write.timeout_ms"), "a short write");
    let mut write = Vec::new();
    let start = begin_write(&mut write, None, 0, 5);
    push_request(&mut write, &[1, 2, 3]);
    end_write(&mut write, start, 1);
    assert!(after(&[&write[..], &write[..]].concat()).contains("numbers grow"));
    let mut dice = Dice(11);
    for _ in 0..200 {
        let noise: Vec<u8> = (0..dice.below(3000)).map(|_| dice.below(256) as u8).collect();
        // A length that is not over the bound may wait for more than ever comes: closed from here.
        let mut stream = connect(&pair, &[&greeting[..], &[(dice.below(256)) as u8, 1, 0, 0, 1], &noise].concat());
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
    }
    // HTTP and native clients go on, in the same process.
    assert!(pair.a.is_active());
    let mut client = Client::connect([pair.a.socket()], options(AckLevel::Durable)).unwrap();
    let outcome = client.change(&[put("/T/d", "N", &["1"], How::Set)]).unwrap();
    assert!(matches!(outcome, Outcome::Reached { .. }), "{outcome:?}");
    assert_eq!(pair.a.worker_pid(), worker);
}

// REQ: REP-310
#[test]
fn a_client_that_does_not_read_is_not_read_and_holds_up_nobody() {
    let pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let greeting = Greeting { versions: client::VERSIONS, member: None }.to_bytes();
    let mut stream = connect(&pair, &greeting);
    stream.set_nonblocking(true).unwrap();
    let resident = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
        text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    };
    let worker = pair.a.worker_pid().unwrap();
    let before = resident(worker);
    let (mut number, mut sent, mut stuck_since) = (1, 0_u64, None::<Instant>);
    let mut request = Vec::new();
    encode_request(&[Operation::Remove { path: "/NOBODY/HERE", recursive: false, missing_ok: false }], &mut request);
    let began = Instant::now();
    while stuck_since.is_none_or(|since| since.elapsed() < Duration::from_secs(2)) {
        assert!(began.elapsed() < PATIENCE, "it reads without end: {sent} bytes");
        let mut write = Vec::new();
        let start = begin_write(&mut write, Some(AckLevel::Durable), 0, number);
        (0..500).for_each(|_| push_request(&mut write, &request));
        end_write(&mut write, start, 500);
        number += 500;
        let mut at = 0;
        while at < write.len() && stuck_since.is_none_or(|since| since.elapsed() < Duration::from_secs(2)) {
            match stream.write(&write[at..]) {
                Ok(bytes) => {
                    (at, stuck_since) = (at + bytes, None);
                    sent += bytes as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    stuck_since.get_or_insert_with(Instant::now);
                    std::thread::park_timeout(Duration::from_millis(5));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    let grown = resident(worker).saturating_sub(before);
    assert!(grown < 32 << 20, "{sent} bytes sent, and the worker grew by {grown}");
    let mut client = Client::connect([pair.a.socket()], options(AckLevel::Durable)).unwrap();
    let outcome = client.change(&[put("/T/d", "N", &["1"], How::Set)]).unwrap();
    assert!(matches!(outcome, Outcome::Reached { .. }), "{outcome:?}");
    // Once it reads, it is answered to the last request that came whole.
    stream.set_nonblocking(false).unwrap();
    let mut answered = 0_u64;
    let mut input = Vec::new();
    let mut piece = vec![0; 1 << 16];
    let expected = (number - 1) - 500;
    while answered < expected {
        let got = stream.read(&mut piece).unwrap();
        assert!(got > 0, "closed after {answered} answers of {expected}");
        input.extend_from_slice(&piece[..got]);
        if let Ok(Some((_, end))) = Greeting::parse(&input, true, client::VERSIONS) {
            input.drain(..end);
        }
        let mut at = 0;
        while let Some(bytes) = client::message_bytes(&input[at..], client::MAX_ANSWER_BYTES).unwrap()
            && let Some(message) = input.get(at..at + bytes)
        {
            let Answer::Failed(failed) = Answer::parse(message).unwrap() else { panic!("nobody was there") };
            assert_eq!((failed.first, failed.code), (answered + 1, FailureCode::NotFound));
            answered += u64::from(failed.count);
            at += bytes;
        }
        input.drain(..at);
    }
}

//! What `[compression]`, `[batch]` and `[transport]` say is what the members do, seen from outside: in counters, in what
//! the sockets say of themselves, in the bytes that came.

#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use ringpair_tests::pair::{Dice, Member, Network, Options, Pair, executable, wait_until};

fn options(set: &[(&str, &str)]) -> Options {
    let set = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    Options { mirror: vec!["+/srv/app".into()], set, ..Options::default() }
}

fn counter(member: &Member, name: &str) -> u64 {
    member.status().unwrap_or_default()["counters"][name].as_u64().unwrap_or_default()
}

fn sync(pair: &Pair) {
    let (code, out, err) = pair.a.command(&["sync", "--timeout", "60"]);
    assert_eq!(code, 0, "sync: {out}{err}\n{}", pair.logs());
}

/// Text as logs are: it shrinks to less than half.
fn text(bytes: usize) -> Vec<u8> {
    let mut dice = Dice(1);
    let mut text = Vec::with_capacity(bytes + 100);
    while text.len() < bytes {
        text.extend_from_slice(format!("line {} of a log, of user {}\n", text.len(), dice.below(1000)).as_bytes());
    }
    text.truncate(bytes);
    text
}

/// Bytes that do not shrink.
fn noise(bytes: usize) -> Vec<u8> {
    let mut dice = Dice(2);
    (0..bytes / 8).flat_map(|_| dice.below(u64::MAX).to_le_bytes()).collect()
}

/// Writes a large file and many small ones of `content`, and waits until they are on the backup, whole.
fn mirror(pair: &Pair, content: &[u8]) {
    let (from, to) = (pair.a.root().join("srv/app"), pair.b.root().join("srv/app"));
    fs::write(from.join("large"), content).unwrap();
    for (number, part) in (0..20).zip(content.chunks(40_000)) {
        fs::write(from.join(format!("small{number}")), part).unwrap();
    }
    sync(pair);
    assert_eq!(fs::read(to.join("large")).unwrap(), content);
    for (number, part) in (0..20).zip(content.chunks(40_000)) {
        assert_eq!(fs::read(to.join(format!("small{number}"))).unwrap(), part);
    }
}

#[test]
fn bulk_content_is_compressed_as_the_configuration_says() {
    // Each end decides for what it sends, and reads whatever comes.
    for (setting, content, shrinks) in [
        ("off", text(6 << 20), false),
        ("3", text(6 << 20), true),
        ("auto", noise(6 << 20), false),
        ("19", noise(3 << 20), false),
    ] {
        let pair = Pair::start(&options(&[("compression.bulk", setting)]));
        pair.wait_in_sync();
        mirror(&pair, &content);
        let bytes = content.len() as u64;
        wait_until("what went over the lane is counted", || counter(&pair.a, "bulk_lane_sent_bytes") > bytes / 10);
        let plain = counter(&pair.a, "bulk_compression_plain_bytes");
        let stored = counter(&pair.a, "bulk_compression_stored_bytes");
        let sent = counter(&pair.a, "bulk_lane_sent_bytes");
        assert!(plain > bytes, "{setting}: {plain} bytes of messages for {bytes} of content");
        assert_eq!(stored < plain / 2, shrinks, "{setting}: {plain} became {stored}");
        assert_eq!(sent < plain / 2, shrinks, "{setting}: {plain} were sent in {sent}");
        let metrics = pair.a.get("/metrics").unwrap().text();
        assert!(metrics.contains(&format!("ringpair_bulk_compression_stored_bytes_total {stored}")), "{metrics}");
    }
}

#[test]
fn large_values_travel_compressed_too() {
    let pair = Pair::start(&options(&[("compression.bulk", "1")]));
    pair.wait_in_sync();
    let value = String::from_utf8(text(2 << 20)).unwrap();
    let body = serde_json::json!({"attributes": {"Body": [value]}}).to_string();
    let answer = pair.a.ask("PUT", "/v1/ds/MAIL/one?ack=applied", body.as_bytes()).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    let read = pair.b.get("/v1/ds/MAIL/one").unwrap().json();
    assert_eq!(read["attributes"]["Body"][0], value, "readable on the backup");
    wait_until("it is counted", || counter(&pair.a, "bulk_compression_plain_bytes") > 2 << 20);
    assert!(counter(&pair.a, "bulk_compression_stored_bytes") < 1 << 20);
}

/// Writes `each` values by each of `writers` clients at once.
fn write_at_once(member: &Member, writers: usize, each: usize) -> Duration {
    let (socket, start) = (member.socket(), Instant::now());
    std::thread::scope(|scope| {
        for writer in 0..writers {
            let socket = &socket;
            scope.spawn(move || {
                for number in 0..each {
                    let body = format!(r#"{{"attributes":{{"N":["{number}"]}}}}"#);
                    let target = format!("/v1/ds/W/{writer}?ack=local");
                    let patience = Duration::from_secs(20);
                    let answer =
                        ringpair_tests::pair::request(socket, "PUT", &target, body.as_bytes(), patience).unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            });
        }
    });
    start.elapsed()
}

#[test]
fn writes_linger_for_company_as_long_as_is_set() {
    const LINGER: Duration = Duration::from_millis(80);
    let pair = Pair::start(&options(&[("batch.linger_us", "80000"), ("batch.max_records", "5")]));
    pair.wait_in_sync();
    let counts = |pair: &Pair| (counter(&pair.a, "ds_frames"), counter(&pair.a, "ds_frame_records"));
    let before = counts(&pair);
    let took = write_at_once(&pair.a, 1, 3);
    assert!(took >= 3 * LINGER, "three writes, one after the other, took {took:?}");
    wait_until("they are counted", || counts(&pair).1 == before.1 + 3);
    assert_eq!(counts(&pair).0, before.0 + 3, "nobody kept them company");
    let before = counts(&pair);
    write_at_once(&pair.a, 10, 4);
    wait_until("they are counted", || counts(&pair).1 == before.1 + 40);
    let frames = counts(&pair).0 - before.0;
    assert!((8..=20).contains(&frames), "{frames} frames for 40 records, at most 5 in each");
    // Questions about the role do not wait.
    let before = Instant::now();
    assert!(pair.a.is_active());
    assert!(before.elapsed() < LINGER, "{:?}", before.elapsed());
}

#[test]
fn a_batch_out_of_range_is_refused_with_key_value_and_range() {
    let pair = Pair::prepare(&options(&[]));
    for (set, range) in [
        ("batch.max_bytes=4095", "from 4096 to 1048576"),
        ("batch.max_records=65537", "from 1 to 65536"),
        ("batch.linger_us=100001", "from 0 to 100000"),
        ("compression.bulk=20", "from 1 to 19"),
        ("transport.bulk_rate_bytes_per_s=-1", "from 0 to 100000000000"),
        ("transport.dscp.ds=64", "from 0 to 63"),
    ] {
        let output = Command::new(executable())
            .arg("--config")
            .arg(pair.a.config())
            .args(["run", "--set", set])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{set}: {said}");
        let (key, value) = set.split_once('=').unwrap();
        assert!(said.contains(key) && said.contains(value) && said.contains(range), "{set}: {said}");
    }
}

/// The options of a lane's socket, as the member read them back; on whichever path the lane runs.
fn socket(member: &Member, lane: &str) -> serde_json::Value {
    let status = member.status().unwrap_or_default();
    let on = |path: &str| status["connections"][path]["sockets"][lane].clone();
    Some(on("main")).filter(|socket| !socket.is_null()).unwrap_or_else(|| on("aux"))
}

// REQ: REP-304 REP-308
#[test]
fn the_lanes_sockets_are_as_the_configuration_says() {
    let pair = Pair::start(&options(&[
        ("transport.dscp.ds", "AF21"),
        ("transport.congestion.ds", "reno"),
        ("transport.bulk_rate_bytes_per_s", "5000000"),
    ]));
    pair.wait_in_sync();
    for member in pair.members() {
        wait_until("the bulk lane is up", || !socket(member, "bulk").is_null());
        let (ping, ds, bulk) = (socket(member, "ping"), socket(member, "ds"), socket(member, "bulk"));
        assert_eq!((&ping["dscp"], &ds["dscp"], &bulk["dscp"]), (&34.into(), &18.into(), &1.into()));
        assert_eq!((&ping["priority"], &ds["priority"], &bulk["priority"]), (&6.into(), &4.into(), &1.into()));
        assert_eq!((&ds["congestion"], &bulk["congestion"]), (&"reno".into(), &"cubic".into()));
        assert_eq!((&ds["pacing_bytes_per_s"], &bulk["pacing_bytes_per_s"]), (&().into(), &5_000_000.into()));
        assert_eq!((&ds["notsent_lowat_bytes"], &ds["user_timeout_ms"]), (&131_072.into(), &2000.into()));
        assert_eq!((&bulk["notsent_lowat_bytes"], &bulk["user_timeout_ms"]), (&1_048_576.into(), &10_000.into()));
        assert!(!member.status().unwrap()["warnings"].to_string().contains("lane-options"));
    }
}

#[test]
fn a_congestion_control_that_the_kernel_has_not_is_named() {
    let pair = Pair::start(&options(&[("transport.congestion.ds", "nosuch")]));
    pair.wait_in_sync();
    wait_until("it is named", || {
        let warnings = pair.a.status().unwrap_or_default()["warnings"].to_string();
        warnings.contains("ds-lane-options") && warnings.contains("not nosuch")
    });
}

// REQ: REP-308
#[test]
fn the_bulk_lane_keeps_to_its_rate() {
    const RATE: u64 = 2_000_000;
    let pair = Pair::start(&options(&[("transport.bulk_rate_bytes_per_s", "2000000"), ("compression.bulk", "off")]));
    pair.wait_in_sync();
    let (bytes, start) = (6_000_000_usize, Instant::now());
    mirror(&pair, &noise(bytes));
    let (took, sent) = (start.elapsed(), counter(&pair.a, "bulk_lane_sent_bytes"));
    assert!(sent >= bytes as u64, "{sent}");
    // Faster than half as fast again never; slower it may be.
    let most = Duration::from_secs_f64(bytes as f64 / (1.5 * RATE as f64));
    assert!(took > most, "{sent} bytes took {took:?}, at {RATE} bytes a second");
}

/// Behind a router that passes on 10 Mbit/s and queues 256 KiB (0.2 s), whose queue everything shares.
// REQ: REP-310
#[test]
fn bulk_yields_when_the_path_gets_slow_and_still_fills_the_link() {
    let network = match Network::narrow("10mbit", 256 << 10) {
        Ok(network) => network,
        Err(why) => return eprintln!("skipped: {why}"),
    };
    let set = options(&[("compression.bulk", "off")]);
    let pair = Pair::start(&Options { places: Some(network.places()), ..set });
    pair.wait_in_sync();
    let bytes = 10_000_000_usize;
    let start = Instant::now();
    fs::write(pair.a.root().join("srv/app/large"), noise(bytes)).unwrap();
    let (mut round_trips_us, mut limited) = (Vec::new(), false);
    let landed = pair.b.root().join("srv/app/large");
    wait_until("the file is on the backup", || {
        let (active, backup) = (pair.a.status().unwrap_or_default(), pair.b.status().unwrap_or_default());
        let main = &active["connections"]["main"];
        round_trips_us.extend(main["rtt_us"].as_u64());
        limited |= backup["connections"]["main"]["sockets"]["bulk"]["credit_bytes"].is_u64();
        landed.exists()
    });
    let (took, count) = (start.elapsed(), round_trips_us.len());
    // What came before the backup had noticed does not count.
    let late = &mut round_trips_us[count / 3..];
    late.sort_unstable();
    let median = Duration::from_micros(late[late.len() / 2]);
    println!("{bytes} bytes in {took:?}; round trips of heartbeats meanwhile: median {median:?}");
    assert!(limited, "the credit was never limited");
    assert!(median < Duration::from_millis(100), "heartbeats took {median:?}: the queue stayed full");
    let most = Duration::from_secs_f64(bytes as f64 * 8.0 / 10e6 / 0.6);
    assert!(took < most, "{bytes} bytes took {took:?}: the link was not used");
    pair.wait_in_sync();
}

// REQ: OPS-197
#[test]
fn a_mark_that_does_not_arrive_as_it_was_sent_is_named() {
    let mut pair = Pair::prepare(&options(&[]));
    pair.a.start(&[]);
    // To A it is all the same whether the path changes the mark or B gives another one.
    pair.b.start(&["--set", "transport.dscp.ping=CS5"]);
    pair.wait_in_sync();
    for (member, arrives) in [(&pair.a, 40), (&pair.b, 34)] {
        wait_until("the mark of the peer's heartbeats is known", || {
            let status = member.status().unwrap_or_default();
            ["main", "aux"].iter().all(|path| status["connections"][path]["received_dscp"] == arrives)
                && status["warnings"].to_string().contains("marks-changed")
        });
    }
    pair.b.stop();
    pair.b.start(&[]);
    wait_until("both give the same mark", || {
        let status = pair.a.status().unwrap_or_default();
        let arrives = &status["connections"]["main"]["received_dscp"];
        *arrives == 34 && !status["warnings"].to_string().contains("marks-changed")
    });
}

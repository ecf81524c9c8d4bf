//! Scenario `qos`: what pings and DS changes cost while the bulk lane is saturated behind a link of 10 Mbit/s, beside the
//! same pair at rest: once with a class for each mark, once with one queue for everything.
//!
//! Always: both connections go over the narrow link; the file that saturates it does not shrink; changes are due at a fixed
//! rate and count from then. Never: a classifier's figures when one of its classes carried nothing.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use ringpair_tests::pair::{Network, Options, Pair};
use ringpair_wire::id::AckLevel;
use serde_json::Value as Json;

use crate::{
    Plan,
    error::{Error, Result},
    figure::{Figure, Samples},
    floor::{cpu, disk::histogram, net},
    load::{self, Outcome, Shape, Stuff, Values},
    process, progress,
    stream::Native,
};

/// The link, and what its one queue holds where there are no classes: a good 0.2 s of it.
const RATE: &str = "10mbit";
const QUEUE_BYTES: u32 = 256 << 10;
/// Changes of 200 bytes a second, at each of two levels, and how many may be under way.
const CHANGES: (f64, usize) = (100.0, 64);
/// Where what saturates the link lies below the active's root: so many files in turn, of so many bytes.
const MIRRORED: &str = "srv/bulk";
const FILES: (usize, usize) = (8, 4 << 20);
/// The mirror is never without so many files that wait.
const WAITING: u64 = 3;
/// How often the members are looked at; they say something new every 100 ms.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// The longest that a saturated link may take to come to rest.
const REST: Duration = Duration::from_secs(120);
/// How long the pair must stay as it is behind one queue.
const STEADY: Duration = Duration::from_secs(600);

/// What is promised: classes keep the latency of changes this near to that at rest; one queue leaves bulk this share.
const NEAR_US: f64 = 5000.0;
const SHARE: f64 = 0.8;

/// The classes: name, class, and the byte of the header that chooses it.
const CLASSES: [(&str, &str, &str); 3] = [("af41", "1:10", "0x88"), ("af31", "1:20", "0x68"), ("le", "1:30", "0x04")];
/// What bears no mark of the members.
const OTHER: (&str, &str) = ("other", "1:40");

const PLAIN_TCP: &str = "floor one plain TCP stream over the same link";

/// What one span showed.
struct Seen {
    durable: Outcome,
    received: Outcome,
    ping: Histogram<u64>,
    missed: u64,
    /// Missed before the span, while bulk began.
    missed_first: u64,
    bulk_bytes_per_s: f64,
}

/// A pair behind a narrow link.
struct Behind {
    pair: Pair,
    files: Files,
}

/// What saturates the link.
struct Files {
    dir: PathBuf,
    content: Vec<u8>,
    written: usize,
}

impl Files {
    /// Writes one more, of other content than all before it, in the place of the oldest.
    fn write(&mut self) -> Result<()> {
        self.written += 1;
        let at = self.content.len() / 2;
        cpu::fill(self.written as u64, &mut self.content[..at]);
        self.content.rotate_left(at);
        let path = self.dir.join(format!("f{}", self.written % FILES.0));
        fs::write(&path, &self.content).map_err(|source| Error::Io { what: path.display().to_string(), source })
    }
}

/// Takes every figure of the classified link `plan.runs` times, and those of the shared queue over one long span.
///
/// # Errors
/// When namespaces or queueing disciplines are missing, the pair does not stay as it is, or a full run breaks a promise.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let mut samples = Samples::default();
    classes(plan, &mut samples)?;
    let changed = one_queue(plan, &mut samples)?;
    let figures = figures(&samples)?;
    if changed > 0 {
        return Err(Error::Failed(format!("{changed} promotions behind a shared queue")));
    }
    if plan.quick { Ok(figures) } else { kept(figures, &samples) }
}

/// The tree of classes on each of the router's interfaces: each mark has a share of its own, pings go first, and
/// whoever is alone may have all.
fn tree() -> Vec<String> {
    let mut tree = vec![
        "qdisc add dev DEV root handle 1: htb default 40".to_owned(),
        format!("class add dev DEV parent 1: classid 1:1 htb rate {RATE} quantum 1514"),
    ];
    let shares = [("1:10", "1mbit"), ("1:20", "4mbit"), ("1:30", "500kbit"), ("1:40", "500kbit")];
    for (order, (class, rate)) in shares.iter().enumerate() {
        tree.push(format!(
            "class add dev DEV parent 1:1 classid {class} htb rate {rate} ceil {RATE} prio {order} quantum 1514"
        ));
    }
    tree.push(format!("qdisc add dev DEV parent 1:30 bfifo limit {QUEUE_BYTES}"));
    for (_, class, byte) in CLASSES {
        tree.push(format!("filter add dev DEV parent 1: protocol ip u32 match ip tos {byte} 0xfc flowid {class}"));
    }
    tree
}

fn classes(plan: &Plan, samples: &mut Samples) -> Result<()> {
    let network = Network::routed(&tree()).map_err(Error::Failed)?;
    let mut behind = Behind::start(&network)?;
    let span = Duration::from_secs(if plan.quick { 5 } else { 20 });
    for run in 1..=plan.runs {
        let idle = behind.watch(span, false)?;
        let before = sent_by_class(&network)?;
        let loaded = behind.watch(span, true)?;
        let after = sent_by_class(&network)?;
        behind.rest()?;
        say(&format!("classes, run {run} of {}", plan.runs), &idle, &loaded);
        add(samples, "", &idle, &loaded);
        for ((name, before), (_, after)) in before.iter().zip(&after) {
            let bytes = after - before;
            if bytes == 0.0 && *name != OTHER.0 {
                return Err(Error::Failed(format!("no byte was sent in the class of {name}")));
            }
            samples.add(&format!("class_{name}_bytes"), bytes);
        }
    }
    Ok(())
}

/// How many promotions there were.
fn one_queue(plan: &Plan, samples: &mut Samples) -> Result<u64> {
    let network = Network::narrow(RATE, QUEUE_BYTES).map_err(Error::Failed)?;
    let short = Duration::from_secs(if plan.quick { 5 } else { 30 });
    let plain = net::stream_between(&network, short)?;
    let mut behind = Behind::start(&network)?;
    let idle = behind.watch(short, false)?;
    let before = events(&behind.pair)?;
    let loaded = behind.watch(if plan.quick { 3 * short } else { STEADY }, true)?;
    let after = events(&behind.pair)?;
    behind.rest()?;
    say("one queue", &idle, &loaded);
    add(samples, "fifo_", &idle, &loaded);
    samples.add("fifo_suspicion_count", (after.0 - before.0) as f64);
    samples.add("fifo_promotion_count", (after.1 - before.1) as f64);
    samples.add("fifo_bulk_bytes_per_s", loaded.bulk_bytes_per_s);
    samples.hold_against("fifo_bulk_bytes_per_s", PLAIN_TCP, plain);
    Ok(after.1 - before.1)
}

/// Suspicions and promotions that both members' event logs have.
fn events(pair: &Pair) -> Result<(u64, u64)> {
    let mut counts = (0, 0);
    for member in pair.members() {
        let answer = member.get("/v1/events").map_err(|error| Error::Failed(format!("the event log: {error}")))?;
        for event in answer.json().as_array().into_iter().flatten() {
            match event["kind"].as_str() {
                Some("suspicion") => counts.0 += 1,
                Some("promotion") => counts.1 += 1,
                _ => {}
            }
        }
    }
    Ok(counts)
}

fn say(which: &str, idle: &Seen, loaded: &Seen) {
    let ping = |seen: &Seen| seen.ping.value_at_quantile(0.99);
    progress(&format!(
        "qos: {which}: ds p50 {:.0} / {:.0} us, p99 {:.0} / {:.0} us, ping p99 {} / {} us, missed {} / {} + {}, bulk {:.0} bytes/s",
        idle.durable.latency_us(0.5),
        loaded.durable.latency_us(0.5),
        idle.durable.latency_us(0.99),
        loaded.durable.latency_us(0.99),
        ping(idle),
        ping(loaded),
        idle.missed,
        loaded.missed_first,
        loaded.missed,
        loaded.bulk_bytes_per_s
    ));
}

fn add(samples: &mut Samples, prefix: &str, idle: &Seen, loaded: &Seen) {
    let p99 = |outcome: &Outcome| outcome.latency_us(0.99);
    let ping = |seen: &Seen| seen.ping.value_at_quantile(0.99) as f64;
    for (name, idle, loaded) in [
        ("ds_p99_us", p99(&idle.durable), p99(&loaded.durable)),
        ("ds_received_p99_us", p99(&idle.received), p99(&loaded.received)),
        ("ping_p99_us", ping(idle), ping(loaded)),
    ] {
        let name = format!("{prefix}{name}");
        samples.add(&name, loaded);
        samples.hold_against(&name, "idle", idle);
    }
    samples.add(&format!("{prefix}heartbeat_missed_count"), loaded.missed as f64);
    samples.add(&format!("{prefix}heartbeat_missed_at_start_count"), loaded.missed_first as f64);
    samples.add(&format!("{prefix}idle_heartbeat_missed_count"), idle.missed as f64);
}

fn figures(samples: &Samples) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (prefix, link) in [("", "a class for each mark"), ("fifo_", "one queue of 256 KiB")] {
        let changes = format!("us (200 B, open loop, 100 a second at this level; {RATE}, {link}, bulk saturated)");
        for (name, unit) in [
            ("ds_p99_us", changes.as_str()),
            ("ds_received_p99_us", &changes),
            ("ping_p99_us", "us (newest round trip in each status of the active, both connections)"),
            ("heartbeat_missed_count", "of the active's, not answered within H, both connections"),
            ("heartbeat_missed_at_start_count", "the same while bulk began, before anything else was measured"),
            ("idle_heartbeat_missed_count", "the same at rest"),
        ] {
            figures.extend(samples.figures(&format!("{prefix}{name}"), unit)?);
        }
    }
    for (name, ..) in CLASSES {
        figures.extend(samples.figures(&format!("class_{name}_bytes"), "bytes sent, both ways")?);
    }
    figures.extend(samples.figures(&format!("class_{}_bytes", OTHER.0), "bytes sent, both ways, without a mark")?);
    for name in ["fifo_suspicion_count", "fifo_promotion_count"] {
        figures.extend(samples.figures(name, "in both members' event logs")?);
    }
    figures.extend(samples.figures("fifo_bulk_bytes_per_s", "bytes/s on the bulk lane, beside the changes")?);
    Ok(figures)
}

/// The figures, unless one is beyond what is promised.
fn kept(figures: Vec<Figure>, samples: &Samples) -> Result<Vec<Figure>> {
    let median = |name: &str| samples.figures(name, "").ok().and_then(|figures| figures.into_iter().next());
    let changes = median("ds_p99_us").and_then(|figure| Some(figure.spread.median - figure.reference?.1));
    let missed = median("heartbeat_missed_count").map(|figure| figure.spread.max);
    let share = median("fifo_bulk_bytes_per_s").and_then(|figure| figure.ratio());
    let suspected = median("fifo_suspicion_count").map(|figure| figure.spread.max);
    let broken = [
        (changes.is_none_or(|above| above > NEAR_US), "changes take more than 5 ms longer behind classes", changes),
        (missed.is_none_or(|count| count > 0.0), "heartbeats were missed behind classes", missed),
        (suspected.is_none_or(|count| count > 0.0), "the active was suspected behind one queue", suspected),
        (share.is_none_or(|share| share < SHARE), "bulk keeps less than 80 % of the link behind one queue", share),
    ];
    match broken.iter().find(|(broken, ..)| *broken) {
        Some((_, what, value)) => {
            let lines: Vec<String> = figures.iter().map(Figure::line).collect();
            Err(Error::Failed(format!("{what}: {value:?}\n{}", lines.join("\n"))))
        }
        None => Ok(figures),
    }
}

/// Bytes that the router's classes sent so far, both ways together.
fn sent_by_class(network: &Network) -> Result<Vec<(&'static str, f64)>> {
    let mut sent: Vec<(&str, f64)> = CLASSES.iter().map(|(name, ..)| (*name, 0.0)).chain([(OTHER.0, 0.0)]).collect();
    let classes = CLASSES.iter().map(|(_, class, _)| *class).chain([OTHER.1]);
    let classes: Vec<&str> = classes.collect();
    for device in ["c0", "c1"] {
        let arguments = ["netns", "exec", network.router().unwrap_or_default(), "tc", "-s", "class", "show", "dev"];
        let output = Command::new("ip").args(arguments).arg(device).output();
        let output = output.map_err(|source| Error::Io { what: "ip netns exec tc".into(), source })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for (class, bytes) in read_classes(&text) {
            if let Some(index) = classes.iter().position(|known| *known == class) {
                sent[index].1 += bytes;
            }
        }
    }
    Ok(sent)
}

/// Class and bytes sent, of what `tc -s class show` prints.
fn read_classes(text: &str) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    let mut class = None;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("class"), Some("htb"), Some(id)) => class = Some(id.to_owned()),
            (Some("Sent"), Some(bytes), _) => {
                found.extend(class.take().and_then(|class| Some((class, bytes.parse().ok()?))));
            }
            _ => {}
        }
    }
    found
}

impl Behind {
    fn start(network: &Network) -> Result<Self> {
        let places = Some(network.places_on_main());
        let pair = Pair::start(&Options { places, mirror: vec![format!("+/{MIRRORED}")], ..Options::default() });
        pair.wait_in_sync();
        if !pair.a.is_active() {
            return Err(Error::Failed("A is not the active member of a new pair".into()));
        }
        let mut content = vec![0; FILES.1];
        cpu::fill(5, &mut content);
        let files = Files { dir: pair.a.root().join(MIRRORED), content, written: 0 };
        let behind = Self { pair, files };
        behind.rest()?;
        Ok(behind)
    }

    /// Everything is on the backup, and A is active as before.
    fn rest(&self) -> Result<()> {
        process::wait_for("the pair is at rest", REST, || {
            let status = self.pair.a.status()?;
            let ds = &status["ds"];
            let settled = status["role"] == "active" && status["alone"] == false && ds["lag_records"] == 0;
            (settled && status["mirror"]["state"] == "current").then_some(())
        })
        .map_err(|error| Error::Failed(format!("{error}\n{}", self.pair.logs())))
    }

    /// Looks at the pair for `span` while changes come, with the bulk lane saturated or at rest.
    fn watch(&mut self, span: Duration, saturated: bool) -> Result<Seen> {
        let first = self.missed()?;
        if saturated {
            let start = self.received()?;
            self.feed()?;
            process::wait_for("the bulk lane is saturated", REST, || {
                self.received().is_ok_and(|bytes| bytes > start + FILES.1 as f64 / 2.0).then_some(())
            })?;
        }
        let (socket, shape) = (self.pair.a.socket(), Shape { connections: CHANGES.1, span, rate: Some(CHANGES.0) });
        let write =
            |ack: AckLevel| load::run(&socket, &mut Native::of(1, ack, Values::new(Stuff::Letters, 200)), shape);
        thread::scope(|scope| {
            let durable = scope.spawn(|| write(AckLevel::Durable));
            let received = scope.spawn(|| write(AckLevel::Received));
            let start = (Instant::now(), self.received()?, self.missed()?);
            let mut ping = histogram()?;
            let mut answered = [0, 0];
            while !durable.is_finished() || !received.is_finished() {
                thread::park_timeout(LOOK_EVERY);
                if let Some(status) = self.pair.a.status() {
                    note(&status, &mut answered, &mut ping);
                }
                if saturated {
                    self.feed()?;
                }
            }
            let bulk_bytes_per_s = (self.received()? - start.1) / start.0.elapsed().as_secs_f64();
            let died = |_| Err(Error::Failed("the load died".into()));
            let (durable, received) = (durable.join().unwrap_or_else(died)?, received.join().unwrap_or_else(died)?);
            let (missed, missed_first) = (self.missed()? - start.2, start.2 - first);
            Ok(Seen { durable, received, ping, missed, missed_first, bulk_bytes_per_s })
        })
    }

    /// Writes files until enough of them wait.
    fn feed(&mut self) -> Result<()> {
        let waiting = self.pair.a.status().and_then(|status| status["mirror"]["pending_files"].as_u64());
        if waiting.is_some_and(|waiting| waiting < WAITING) {
            self.files.write()?;
        }
        Ok(())
    }

    /// Bytes that came on the backup's bulk lane.
    fn received(&self) -> Result<f64> {
        let status = self.pair.b.status();
        let bytes = status.and_then(|status| status["counters"]["bulk_lane_received_bytes"].as_f64());
        bytes.ok_or_else(|| Error::Failed(format!("the backup does not answer\n{}", self.pair.logs())))
    }

    fn missed(&self) -> Result<u64> {
        let status = self.pair.a.status();
        let missed = status.and_then(|status| status["counters"]["heartbeats_missed"].as_u64());
        missed.ok_or_else(|| Error::Failed(format!("the active does not answer\n{}", self.pair.logs())))
    }
}

/// Notes the newest round trips of a status document that is another one than the last.
fn note(status: &Json, answered: &mut [u64; 2], ping: &mut Histogram<u64>) {
    for (path, answered) in ["main", "aux"].iter().zip(answered) {
        let connection = &status["connections"][path];
        let count = connection["heartbeats_answered"].as_u64().unwrap_or_default()
            + connection["heartbeats_missed"].as_u64().unwrap_or_default();
        if std::mem::replace(answered, count) != count {
            connection["rtt_us"].as_u64().into_iter().for_each(|rtt_us| ping.saturating_record(rtt_us));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_classes_are_read() {
        let text = "class htb 1:10 parent 1:1 leaf 10: prio 0 rate 1Mbit ceil 10Mbit burst 1600b cburst 1600b\n \
                    Sent 123456 bytes 78 pkt (dropped 0, overlimits 0 requeues 0) \n backlog 0b 0p requeues 0\n\n\
                    class htb 1:1 root rate 10Mbit ceil 10Mbit burst 1600b cburst 1600b \n Sent 9 bytes 1 pkt\n";
        assert_eq!(read_classes(text), [("1:10".to_owned(), 123_456.0), ("1:1".to_owned(), 9.0)]);
        assert_eq!(read_classes("no class"), []);
    }

    #[test]
    fn a_round_trip_counts_once() {
        let mut ping = histogram().unwrap();
        let mut answered = [0, 0];
        let connection = |count| serde_json::json!({"rtt_us": 300, "heartbeats_answered": count});
        for count in [1, 1, 2] {
            let status = serde_json::json!({"connections": {"main": connection(count), "aux": connection(7)}});
            note(&status, &mut answered, &mut ping);
        }
        assert_eq!(ping.len(), 3);
    }
}

//! Scenario `resync`: a backup that comes back. Histories that parted over a million objects of which a hundred differ,
//! lanes cut while the pings stand, connections killed, an absence within the journal; beside what redis needs.
//!
//! Both members run in network namespaces of their own (root). Always: after each part both members must have one digest;
//! times are taken from outside: a change that is answered `durable`, and not alone, shows a backup that is complete and
//! current. Never: a figure of bytes that the kernel's own counters contradict.

mod lanes;

use std::{
    collections::HashSet,
    fs,
    process::Command,
    time::{Duration, Instant},
};

use ringpair_tests::pair::{Cut, Family, Member, Network, Options, Pair};
use ringpair_wire::id::AckLevel;
use tempfile::TempDir;

use crate::{
    Plan,
    error::{Doing, Error, Result},
    figure::{Figure, Samples, number},
    load::{self, Outcome, Shape, Stuff, Values},
    peers::{self, redis::Redis},
    process::{self, wait_for},
    progress,
    stream::Native,
};

/// Objects of the tree; with `--quick` the second.
const OBJECTS: [u64; 2] = [1_000_000, 20_000];
/// How many differ when the histories have parted, half of them on each side.
const DIFFERENT: u64 = 100;
/// Bytes of a value.
const VALUE_BYTES: usize = 200;
/// Changes in one message, and connections, where changes are pipelined.
const PIPELINED: (u64, usize) = (256, 16);
/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Both workers are at rest when they take less of a second's processor time than this.
const AT_REST_CPU_S: f64 = 0.1;

const FEW: &str = "few_differences_s";
const FEW_BYTES: &str = "few_differences_wire_bytes";
const FEW_KERNEL: &str = "few_differences_kernel_bytes";
const FEW_HEALED: &str = "few_differences_from_healing_s";
const FEW_MEMORY: &str = "few_differences_memory_mib";

/// The pair, its network, and what it is compared with.
struct Stage {
    network: Network,
    pair: Pair,
    objects: u64,
    span: Duration,
    _dir: TempDir,
    redis: Option<Redis>,
}

/// Starts a pair, fills it, and takes every figure `plan.runs` times.
///
/// # Errors
/// When namespaces cannot be made, a member answers otherwise than asked, or digests differ.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let stage = Stage::set(plan)?;
    let mut samples = Samples::default();
    for run in 1..=plan.runs {
        if plan.takes(FEW) {
            stage.few_differences(run, &mut samples)?;
        }
        lanes::run(&stage, plan, run, &mut samples)?;
    }
    figures(plan, &samples)
}

fn figures(plan: &Plan, samples: &Samples) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if plan.takes(FEW) {
        let objects = OBJECTS[usize::from(plan.quick)];
        let what = format!("{DIFFERENT} of {objects} objects differ, histories parted");
        figures.extend(samples.figures(FEW, &format!("s from the connection to a current backup ({what})"))?);
        figures.extend(samples.figures(FEW_HEALED, "s from the healing of the network")?);
        figures.extend(samples.figures(FEW_BYTES, "bytes on all lanes, both ways, by the member's counters")?);
        figures.extend(samples.figures(FEW_KERNEL, "bytes on both cables, both ways, by the kernel's counters")?);
        figures.extend(samples.figures(FEW_MEMORY, "MiB that the backup's peak rose by")?);
    }
    figures.extend(lanes::figures(plan, samples)?);
    Ok(figures)
}

impl Stage {
    fn set(plan: &Plan) -> Result<Self> {
        let objects = OBJECTS[usize::from(plan.quick)];
        let network = Network::new(Family::V4).map_err(Error::Failed)?;
        let pair = Pair::start(&Options { places: Some(network.places()), ..Options::default() });
        pair.wait_in_sync();
        let dir = TempDir::with_prefix("ringpair-resync-").doing("a temporary directory")?;
        let redis = if peers::offers(plan.peers, "redis-server") {
            let redis = Redis::start(dir.path(), false)?;
            redis.populate(objects, VALUE_BYTES)?;
            Some(redis)
        } else {
            None
        };
        let stage = Self { network, pair, objects, span: plan.load_for(), _dir: dir, redis };
        stage.fill()?;
        Ok(stage)
    }

    fn active(&self) -> Result<&Member> {
        self.pair.active().ok_or_else(|| Error::Failed(format!("no member is active\n{}", self.pair.logs())))
    }

    /// Runs changes against the active member.
    fn load(&self, talk: &mut Native, shape: Shape) -> Result<Outcome> {
        load::run(&self.active()?.socket(), talk, shape)
    }

    /// Makes every object.
    fn fill(&self) -> Result<()> {
        let (changes, connections) = PIPELINED;
        let shape = Shape { connections, span: Duration::from_secs(1), rate: None };
        let mut native = Native::of(changes, AckLevel::Durable, Values::new(Stuff::Letters, VALUE_BYTES));
        native.objects = self.objects;
        while native.first < self.objects {
            let outcome = self.load(&mut native, shape)?;
            native.first += outcome.answered * changes;
        }
        self.rest()?;
        progress(&format!("resync: {} objects are on both members", self.objects));
        Ok(())
    }

    /// Waits until the pair is in sync and its checkpoints are written.
    fn rest(&self) -> Result<()> {
        self.pair.wait_in_sync();
        let spent =
            || self.pair.members().iter().filter_map(|member| process::cpu_s(member.worker_pid()?)).sum::<f64>();
        let (mut looked, mut before, mut quiet) = (Instant::now(), spent(), 0);
        wait_for("both members are at rest", PATIENCE, || {
            if looked.elapsed() >= Duration::from_secs(1) {
                let now = spent();
                quiet = if now - before < AT_REST_CPU_S { quiet + 1 } else { 0 };
                (looked, before) = (Instant::now(), now);
            }
            // A checkpoint is begun every five seconds.
            (quiet >= 6).then_some(())
        })
    }

    /// Both members accept changes apart; then they meet again.
    fn few_differences(&self, run: usize, samples: &mut Samples) -> Result<()> {
        self.rest()?;
        let (old, new) = (self.active()?, self.pair.peer_of(self.active()?));
        let parted = || events(new, "must compare by digests") + events(old, "identical with the active");
        let parted_before = parted();
        self.network.cut(Cut::Both);
        wait_for("the backup is active", PATIENCE, || new.is_active().then_some(()))?;
        let halves = [old, new].into_iter().zip([0, DIFFERENT / 2]);
        for (member, first) in halves {
            wait_for("both accept changes", PATIENCE, || put(member, first, "local").then_some(()))?;
            (first..first + DIFFERENT / 2).try_for_each(|n| match put(member, n, "local") {
                true => Ok(()),
                false => Err(Error::Failed(format!("a change was refused\n{}", self.pair.logs()))),
            })?;
        }
        // They meet again by dialing: nothing waits for TCP to send again.
        for member in [old, new] {
            within(self.network.namespace(member), &["ss", "-K", "-tn", "dst", "10.60.0.0/15"])?;
        }
        let before = (connections(old), wire_bytes(old)?, self.cable_bytes(old)?, peak_mib(old)?);
        let healed = Instant::now();
        self.network.heal();
        wait_for("they connect", PATIENCE, || connections(old).difference(&before.0).next().is_some().then_some(()))?;
        let connected = Instant::now();
        wait_for("the backup is complete and current", PATIENCE, || put(new, DIFFERENT, "durable").then_some(()))?;
        let (took, from_healing) = (connected.elapsed(), healed.elapsed());
        // What the stream thread says of its bytes is published ten times a second.
        wait_for("the backup says so itself", PATIENCE, || {
            (metric(old, "ringpair_complete")? == 1.0 && metric(old, "ringpair_role{role=\"backup\"}")? == 1.0)
                .then_some(())
        })?;
        let (counted, on_cables) = (settled_bytes(old)? - before.1, self.cable_bytes(old)? - before.2);
        samples.add(FEW, took.as_secs_f64());
        samples.add(FEW_HEALED, from_healing.as_secs_f64());
        samples.add(FEW_BYTES, counted);
        samples.add(FEW_KERNEL, on_cables);
        samples.add(FEW_MEMORY, peak_mib(old)? - before.3);
        samples.hold_against(FEW_BYTES, "promised", f64::from(2 << 20));
        self.pair.wait_in_sync();
        if parted() != parted_before + 2 {
            return Err(Error::Failed(format!("the histories did not part\n{}", self.pair.logs())));
        }
        self.compare()?;
        let text = format!("{took:?} from the connection, {from_healing:?} from healing, {counted} bytes");
        progress(&format!("resync: run {run}: {DIFFERENT} differences: {text}"));
        if let Some(redis) = &self.redis {
            let took = redis.synchronize_wholly()?;
            progress(&format!("resync: run {run}: redis' full synchronization: {took:?}"));
            samples.hold_against(FEW, "redis", took.as_secs_f64());
        }
        Ok(())
    }

    fn compare(&self) -> Result<()> {
        self.pair.wait_in_sync();
        let [a, b] = self.pair.digests();
        if a.is_some() && a == b {
            return Ok(());
        }
        Err(Error::Failed(format!("the members differ: A {a:?}, B {b:?}\n{}", self.pair.logs())))
    }

    /// What went over both cables of a member's namespace, both ways.
    fn cable_bytes(&self, member: &Member) -> Result<f64> {
        let text = in_namespace(member, "net/dev")?;
        let cables = text.lines().filter(|line| line.trim_start().starts_with('c'));
        Ok(cables
            .filter_map(|line| {
                let fields: Vec<f64> = line.split_once(':')?.1.split_whitespace().flat_map(str::parse).collect();
                Some(fields.first()? + fields.get(8)?)
            })
            .sum())
    }
}

/// A file of `/proc` as a member's worker sees it, in its own namespace.
fn in_namespace(member: &Member, file: &str) -> Result<String> {
    let pid = member.supervisor_pid().ok_or_else(|| Error::Failed("a member is gone".into()))?;
    fs::read_to_string(format!("/proc/{pid}/{file}")).doing(file)
}

/// The TCP connections that stand, by both ends' addresses as the kernel writes them.
fn connections(member: &Member) -> HashSet<String> {
    let text = in_namespace(member, "net/tcp").unwrap_or_default();
    let ends = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(3) == Some(&"01")).then(|| fields[1..3].join(" "))
    };
    text.lines().filter_map(ends).collect()
}

/// Changes one object; whether it was taken at `level`, and for `durable` not alone.
fn put(member: &Member, object: u64, level: &str) -> bool {
    let body = format!(r#"{{"attributes":{{"Value":["{level} on {}"]}}}}"#, member.name());
    let target = format!("/v1/ds/BENCH/o{object:06}?ack={level}");
    member.ask("PUT", &target, body.as_bytes()).is_ok_and(|answer| {
        let said = answer.json();
        answer.status == 200 && said["level"] == level && (level != "durable" || said["alone"] == false)
    })
}

/// A metric of a member.
fn metric(member: &Member, name: &str) -> Option<f64> {
    let text = member.get("/metrics").ok()?.text();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// What the member says went over its lanes, both ways.
fn wire_bytes(member: &Member) -> Result<f64> {
    let names = ["lane_received", "lane_sent", "bulk_lane_received", "bulk_lane_sent"];
    let counts = names.map(|name| metric(member, &format!("ringpair_{name}_bytes_total")));
    counts.into_iter().sum::<Option<f64>>().ok_or_else(|| Error::Failed("a member counts no bytes".into()))
}

/// As [`wire_bytes`], once what is published has come to rest.
fn settled_bytes(member: &Member) -> Result<f64> {
    std::thread::park_timeout(Duration::from_millis(250));
    wire_bytes(member)
}

/// The most memory that a member's worker has had, in MiB.
fn peak_mib(member: &Member) -> Result<f64> {
    let pid = member.worker_pid().ok_or_else(|| Error::Failed("a worker is gone".into()))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).doing("a worker's memory")?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: f64| kib / 1024.0).ok_or_else(|| Error::Failed("a worker's memory is not known".into()))
}

/// How many lines of a member's event log say `what`.
fn events(member: &Member, what: &str) -> usize {
    member.get("/v1/events").map(|answer| answer.text().matches(what).count()).unwrap_or_default()
}

/// Runs a command in a namespace; what it says.
fn within(namespace: &str, command: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(["netns", "exec", namespace]).args(command).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(Error::Failed(format!("{}: {}", command[0], String::from_utf8_lossy(&output.stderr)))),
        Err(error) => Err(Error::Failed(format!("{} cannot be run: {error}", command[0]))),
    }
}

/// Says what a sample was.
fn say(run: usize, name: &str, value: f64, more: &str) {
    progress(&format!("resync: run {run}: {name} {}{more}", number(value)));
}

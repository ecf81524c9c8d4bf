//! Scenario `stalled`: memory of both members while changes come as fast as the active takes them and its peer takes
//! nothing: its processes are frozen, or its ds lane alone is cut off while pings go on.
//!
//! Always: the journal's bound lies where the load passes it, so that the peer is declared behind meanwhile; afterwards both
//! trees must be equal again. Never: a figure of a load that was refused for another reason than back-pressure.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Family, Member, Network, Options, Pair, Victim};
use ringpair_wire::id::AckLevel;

use crate::{
    Plan,
    error::{Doing, Error, Result},
    figure::{Figure, Samples},
    idle,
    load::{self, Outcome, Shape, Stuff, Values},
    process, progress,
    stream::Native,
};

/// The journal's bound in bytes, well below what the load writes in a full span.
const JOURNAL_MAX_BYTES: u64 = 256 << 20;
/// Beyond it the segment that is being written, and the one that is prepared.
const SEGMENTS_BYTES: u64 = 2 * (16 << 20);
/// What is written on until the state is saved without the oldest segment: saved each second then, one save under way.
const TRIMMED_WITHIN: Duration = Duration::from_secs(3);
/// What a change of 200 bytes takes in the journal.
const RECORD_BYTES: f64 = 256.0;
/// What a member may hold for a peer that takes nothing, as its queues are bounded: the ds lane (16 MiB) and the bulk lane
/// (8 MiB), frames kept for the stream (2 MiB), a group of the journal that is written and one that gathers (1 MiB each),
/// what native clients have sent (1.1 MiB each of 16), and what the allocator keeps of pages that were free a moment ago.
const QUEUES_MIB: f64 = 16.0 + 8.0 + 2.0 + 2.0 + 17.6 + 16.0;
/// Changes in one message, and connections that send them.
const PIPELINED: (u64, usize) = (256, 16);
const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// How long the members may take to become equal again.
const REST: Duration = Duration::from_secs(120);
/// What a flat line may rise by, in MiB a second: over a minute less than what one queue holds.
const FLAT: f64 = 0.25;
const LEVELS: [AckLevel; 2] = [AckLevel::Async, AckLevel::Durable];

/// How the peer takes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    /// Supervisor and worker of the backup are stopped.
    Frozen,
    /// What bears the mark of ds is dropped both ways at the backup's host.
    Cut,
}

impl Stall {
    const ALL: [Self; 2] = [Self::Frozen, Self::Cut];

    const fn name(self) -> &'static str {
        match self {
            Self::Frozen => "frozen",
            Self::Cut => "ds_cut",
        }
    }

    fn begin(self, pair: &Pair, network: &Network) -> Result<()> {
        match self {
            Self::Frozen => signal(pair, Signal::SIGSTOP),
            Self::Cut => network.lose(1, "af31").map_err(Error::Failed),
        }
    }

    fn end(self, pair: &Pair, network: &Network) -> Result<()> {
        match self {
            Self::Frozen => signal(pair, Signal::SIGCONT),
            Self::Cut => network.keep_all(1).map_err(Error::Failed),
        }
    }
}

fn signal(pair: &Pair, signal: Signal) -> Result<()> {
    match pair.b.signal(Victim::Both, signal) {
        true => Ok(()),
        false => Err(Error::Failed(format!("the backup is not there\n{}", pair.logs()))),
    }
}

/// What the members showed during a span of load.
struct Seen {
    outcome: Outcome,
    /// MiB of A and B, by when, in seconds.
    memory: [Vec<(f64, f64)>; 2],
    journal_bytes: f64,
}

impl Seen {
    fn peak(&self, member: usize) -> f64 {
        self.memory[member].iter().map(|(_, mib)| *mib).fold(0.0, f64::max)
    }

    /// By how much the last half of the samples rises, in MiB a second: the slope of the line that fits them best.
    fn slope(&self, member: usize) -> f64 {
        let samples = &self.memory[member];
        slope(&samples[samples.len() / 2..])
    }
}

fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    if below > 0.0 { above / below } else { 0.0 }
}

/// Takes every figure once for each way to stall and each of two levels; `plan.runs` does not multiply a minute's load.
///
/// # Errors
/// When a member does not come back, the trees differ, or a full run shows memory that grows.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let network = Network::new(Family::V4).map_err(Error::Failed)?;
    let set = vec![("storage.journal_max_bytes".to_owned(), JOURNAL_MAX_BYTES.to_string())];
    let pair = Pair::start(&Options { places: Some(network.places()), set, ..Options::default() });
    pair.wait_in_sync();
    if !pair.a.is_active() {
        return Err(Error::Failed("A is not the active member of a new pair".into()));
    }
    let span = Duration::from_secs(if plan.quick { 10 } else { 60 });
    let (mut samples, mut names) = (Samples::default(), Vec::new());
    // Every object is there once, and every buffer was used.
    load_for(&pair, AckLevel::Durable, span / 4)?;
    for stall in Stall::ALL {
        for level in LEVELS {
            let before = load_for(&pair, level, span / 4)?;
            stall.begin(&pair, &network)?;
            let during = load_for(&pair, level, span)?;
            stall.end(&pair, &network)?;
            let after = come_back(&pair)?;
            let which = format!("{}_{}", stall.name(), level.name());
            progress(&format!(
                "stalled: {which}: {:.0} changes/s (before: {:.0}), longest wait {:.0} ms; A {:.0} to {:.0} MiB ({:+.2}/s), B {:.0} to {:.0} MiB ({:+.2}/s); equal again after {:.1} s",
                during.outcome.per_s() * PIPELINED.0 as f64,
                before.outcome.per_s() * PIPELINED.0 as f64,
                during.outcome.latency_us(1.0) / 1000.0,
                before.peak(0),
                during.peak(0),
                during.slope(0),
                before.peak(1),
                during.peak(1),
                during.slope(1),
                after.as_secs_f64()
            ));
            names.extend(add(&mut samples, &which, &before, &during, after));
        }
    }
    let mut figures = Vec::new();
    for (name, unit) in &names {
        figures.extend(samples.figures(name, unit)?);
    }
    let grows = figures.iter().find(|figure| figure.name.contains("_slope_") && figure.spread.max > FLAT);
    let beyond = figures.iter().find(|figure| {
        let bound = figure.reference.as_ref().is_some_and(|(name, _)| name.starts_with("bound"));
        bound && figure.ratio() > Some(1.0)
    });
    match grows.or(beyond).filter(|_| !plan.quick) {
        Some(broken) => Err(Error::Failed(format!("beyond its bound: {}", broken.line()))),
        None => Ok(figures),
    }
}

fn add(
    samples: &mut Samples,
    which: &str,
    before: &Seen,
    during: &Seen,
    after: Duration,
) -> Vec<(String, &'static str)> {
    let mut names = Vec::new();
    let mut figure = |name: String, unit, value, reference: Option<(&str, f64)>| {
        samples.add(&name, value);
        if let Some((reference, value)) = reference {
            samples.hold_against(&name, reference, value);
        }
        names.push((name, unit));
    };
    for (member, letter) in ["a", "b"].iter().enumerate() {
        let bound = Some(("bound peak before, and all queues", before.peak(member) + QUEUES_MIB));
        let unit = "MiB (PSS, supervisor and worker, each 250 ms)";
        figure(format!("{which}_peak_{letter}_mib"), unit, during.peak(member), bound);
        let unit = "MiB a second, over the last half";
        figure(format!("{which}_slope_{letter}_mib_per_s"), unit, during.slope(member), None);
    }
    let more = during.outcome.per_s() * PIPELINED.0 as f64 * RECORD_BYTES * TRIMMED_WITHIN.as_secs_f64();
    let bound = (JOURNAL_MAX_BYTES + SEGMENTS_BYTES) as f64 + more;
    let bound = Some(("bound journal_max_bytes, two segments, and three seconds of changes", bound));
    figure(format!("{which}_journal_bytes"), "bytes (the active's journal, most)", during.journal_bytes, bound);
    let rate = |seen: &Seen| seen.outcome.per_s() * PIPELINED.0 as f64;
    figure(format!("{which}_per_s"), "changes/s (200 B, 16 clients)", rate(during), Some(("peer there", rate(before))));
    let longest = |seen: &Seen| seen.outcome.latency_us(1.0) / 1000.0;
    let reference = Some(("peer there", longest(before)));
    figure(format!("{which}_longest_ms"), "ms (256 changes, the longest wait)", longest(during), reference);
    figure(format!("{which}_equal_after_s"), "s until both trees are equal again", after.as_secs_f64(), None);
    names
}

/// Full load at `level` for `span`, whether the active is alone or not, beside samples of memory.
fn load_for(pair: &Pair, level: AckLevel, span: Duration) -> Result<Seen> {
    let socket = pair.a.socket();
    let shape = Shape { connections: PIPELINED.1, span, rate: None };
    let start = Instant::now();
    let mut memory = [Vec::new(), Vec::new()];
    let mut journal_bytes = 0.0;
    let outcome = thread::scope(|scope| {
        let load = scope.spawn(|| {
            load::run(
                &socket,
                &mut Native::of(PIPELINED.0, level, Values::new(Stuff::Letters, 200)).even_alone(),
                shape,
            )
        });
        while !load.is_finished() {
            for (samples, member) in memory.iter_mut().zip(pair.members()) {
                samples.push((start.elapsed().as_secs_f64(), idle::memory_mib(member)?));
            }
            journal_bytes = f64::max(journal_bytes, journal(&pair.a)?);
            thread::park_timeout(SAMPLE_EVERY);
        }
        load.join().unwrap_or_else(|_| Err(Error::Failed("the load died".into())))
    })
    .map_err(|error: Error| Error::Failed(format!("{error}\n{}", pair.logs())))?;
    Ok(Seen { outcome, memory, journal_bytes })
}

/// The bytes of a member's journal files.
fn journal(member: &Member) -> Result<f64> {
    let dir = member.storage().join("journal");
    let files = fs::read_dir(&dir).doing(&dir.display().to_string())?;
    // A segment that goes away meanwhile counts no more.
    Ok(files.flatten().filter_map(|file| file.metadata().ok()).map(|file| file.len() as f64).sum())
}

/// Waits until the pair is one again, with equal trees.
fn come_back(pair: &Pair) -> Result<Duration> {
    let start = Instant::now();
    process::wait_for("the backup has everything again", REST, || {
        let status = pair.a.status()?;
        let ds = &status["ds"];
        let settled = status["role"] == "active" && status["alone"] == false && ds["lag_records"] == 0;
        let [a, b] = if settled { pair.digests() } else { [None, None] };
        (a.is_some() && a == b).then_some(())
    })
    .map_err(|error| Error::Failed(format!("{error}\n{}", pair.logs())))?;
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope() {
        let rising: Vec<(f64, f64)> = (0..20).map(|n| (f64::from(n) / 4.0, 100.0 + f64::from(n))).collect();
        assert!((slope(&rising) - 4.0).abs() < 1e-9);
        let flat: Vec<(f64, f64)> = (0..20).map(|n| (f64::from(n), 100.0)).collect();
        assert!(slope(&flat).abs() < 1e-9 && slope(&[(1.0, 5.0)]) == 0.0);
    }
}

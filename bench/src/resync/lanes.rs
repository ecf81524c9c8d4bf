//! What a cut or lost ds lane costs while the pings stand, and how fast a backup catches up out of the journal.
//!
//! Lanes are told apart by their marks: nft drops the packets of ds and bulk in both namespaces, `ss -K` kills the
//! connection that carries the ds mark.

use std::time::{Duration, Instant};

use ringpair_tests::pair::Member;
use ringpair_wire::id::AckLevel;

use super::{PATIENCE, PIPELINED, Stage, VALUE_BYTES, metric, say, within};
use crate::{
    Plan,
    error::{Error, Result},
    figure::{Figure, Samples},
    load::{self, Outcome, Shape, Stuff, Values},
    peers::redis::Sets,
    process::wait_for,
    stream::Native,
};

/// How long ds and bulk are cut.
const CUT: Duration = Duration::from_secs(2);
/// Connections killed in one run.
const KILLS: [usize; 2] = [20, 3];
/// The lag is gone when the oldest record on its way is no older than this.
const NO_LAG_S: f64 = 0.05;
/// Records of an absence; with `--quick` the second.
const ABSENT: [u64; 2] = [2_000_000, 100_000];
/// The marks of ds and bulk.
const MARKS: &str = "{ 26, 1 }";
/// The mark of ds as `ss` writes it: AF31, two bits up.
const DS_TOS: &str = "tos:0x68";
/// How long the pair is watched around a kill: half before it, half after it.
const AROUND: Duration = Duration::from_millis(400);

const LAG: &str = "lag_gone_after_cut_s";
const HALF_RATE: &str = "half_rate_during_cut_per_s";
const AGAIN: &str = "streaming_again_ms";
const CATCH_UP: &str = "catch_up_per_s";

pub(super) fn run(stage: &Stage, plan: &Plan, run: usize, samples: &mut Samples) -> Result<()> {
    if plan.takes(LAG) {
        lag_after_cut(stage, run, samples)?;
    }
    if plan.takes(CATCH_UP) {
        catch_up(stage, plan, run, samples)?;
    }
    if plan.takes(AGAIN) {
        streaming_again(stage, KILLS[usize::from(plan.quick)], run, samples)?;
    }
    Ok(())
}

pub(super) fn figures(plan: &Plan, samples: &Samples) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if plan.takes(LAG) {
        let unit = format!("s from the healing of ds and bulk, cut for {} s, to a lag below 50 ms", CUT.as_secs());
        figures.extend(samples.figures(LAG, &unit)?);
        figures.extend(samples.figures(HALF_RATE, "changes/s at async meanwhile, asked for at half the full rate")?);
    }
    if plan.takes(CATCH_UP) {
        figures.extend(samples.figures(CATCH_UP, "records/s out of the journal, durable on the backup")?);
    }
    if plan.takes(AGAIN) {
        figures.extend(samples.figures(AGAIN, "ms without an answer at `received` after the ds connection is killed")?);
    }
    Ok(figures)
}

fn pipelined(span: Duration, rate: Option<f64>) -> Shape {
    Shape { connections: PIPELINED.1, span, rate }
}

fn writer(ack: AckLevel) -> Native {
    Native::of(PIPELINED.0, ack, Values::new(Stuff::Letters, VALUE_BYTES)).even_alone()
}

/// Changes a second of a load.
fn changes_per_s(outcome: &Outcome) -> f64 {
    outcome.per_s() * PIPELINED.0 as f64
}

/// A writer at half of what it could do goes on while ds and bulk are cut, and afterwards.
fn lag_after_cut(stage: &Stage, run: usize, samples: &mut Samples) -> Result<()> {
    stage.rest()?;
    let active = stage.active()?;
    let full = stage.load(&mut writer(AckLevel::Async), pipelined(stage.span, None))?;
    wait_for("the lag of the full load is gone", PATIENCE, || has_no_lag(active))?;
    let half = full.per_s() / 2.0;
    let (quiet, after) = (Duration::from_secs(1), CUT * 4);
    let shape = pipelined(quiet + CUT + after, Some(half));
    let socket = active.socket();
    let (took, outcome) = std::thread::scope(|scope| {
        let load = scope.spawn(move || load::run(&socket, &mut writer(AckLevel::Async), shape));
        std::thread::park_timeout(quiet);
        let cut = cut_data(stage)?;
        std::thread::park_timeout(CUT);
        drop(cut);
        let healed = Instant::now();
        let gone = wait_for("the lag is gone", PATIENCE, || has_no_lag(active));
        let took = healed.elapsed();
        let outcome = load.join().unwrap_or_else(|_| Err(Error::Failed("the writer died".into())))?;
        gone.map(|()| (took, outcome))
    })?;
    samples.add(LAG, took.as_secs_f64());
    samples.hold_against(LAG, "promised", 2.0 * CUT.as_secs_f64());
    samples.add(HALF_RATE, changes_per_s(&outcome));
    samples.hold_against(HALF_RATE, "stream async at full rate", changes_per_s(&full));
    let rates = format!(" (writer {:.0}/s, at full rate {:.0}/s)", changes_per_s(&outcome), changes_per_s(&full));
    say(run, LAG, took.as_secs_f64(), &rates);
    stage.compare()
}

fn has_no_lag(active: &Member) -> Option<()> {
    let lag = metric(active, "ringpair_ds_lag_seconds")?;
    let alone = metric(active, "ringpair_alone")?;
    (lag <= NO_LAG_S && alone == 0.0).then_some(())
}

/// Records are written while ds and bulk are cut; the backup then takes them out of the journal, and nothing else happens.
fn catch_up(stage: &Stage, plan: &Plan, run: usize, samples: &mut Samples) -> Result<()> {
    stage.rest()?;
    let active = stage.active()?;
    let mut durable = writer(AckLevel::Durable);
    let streaming = stage.load(&mut durable, pipelined(stage.span, None))?;
    let cut = cut_data(stage)?;
    let absent = ABSENT[usize::from(plan.quick)];
    let mut written = writer(AckLevel::Async);
    while written.first < absent {
        let outcome = stage.load(&mut written, pipelined(Duration::from_millis(500), None))?;
        written.first += outcome.answered * PIPELINED.0;
    }
    drop(cut);
    let (mut from, seq) = (None, || metric(active, "ringpair_ds_peer_durable_seq"));
    let end = metric(active, "ringpair_ds_seq").unwrap_or_default();
    // What is published is some milliseconds old: the first and the last look count alike.
    let (first, begun) = wait_for("frames come", PATIENCE, || {
        let now = seq()?;
        let (before, _) = *from.get_or_insert((now, Instant::now()));
        (now > before).then(|| (now, Instant::now()))
    })?;
    let backup = stage.pair.peer_of(active);
    let mut waiting = 0.0_f64;
    wait_for("the backup has caught up", PATIENCE, || {
        waiting = waiting.max(metric(backup, "ringpair_ds_lag_records").unwrap_or_default());
        (seq()? >= end).then_some(())
    })?;
    let rate = (end - first) / begun.elapsed().as_secs_f64();
    samples.add(CATCH_UP, rate);
    samples.hold_against(CATCH_UP, "durable_pipelined_200b_per_s", changes_per_s(&streaming));
    say(run, CATCH_UP, rate, &format!(" ({} records, at most {waiting:.0} of them waited to be applied)", end - first));
    stage.compare()
}

/// The ds connection is killed again and again under one client that waits for each change.
fn streaming_again(stage: &Stage, kills: usize, run: usize, samples: &mut Samples) -> Result<()> {
    stage.rest()?;
    let active = stage.active()?;
    let shape = Shape { connections: 1, span: AROUND, rate: None };
    for _ in 0..kills {
        let socket = active.socket();
        let load = move || {
            load::run(&socket, &mut Native::of(1, AckLevel::Received, Values::new(Stuff::Letters, VALUE_BYTES)), shape)
        };
        let outcome = around(load, || kill_ds(stage, active))?;
        samples.add(AGAIN, outcome.latency_us(1.0) / 1000.0);
        if let Some(redis) = &stage.redis {
            let (socket, values) = (redis.socket().to_owned(), Values::new(Stuff::Letters, VALUE_BYTES));
            let mut sets = Sets { changes: 1, replicated: true, values };
            let outcome = around(move || load::run(&socket, &mut sets, shape), || redis.kill_replicas())?;
            samples.hold_against(AGAIN, "redis", outcome.latency_us(1.0) / 1000.0);
        }
        stage.pair.wait_in_sync();
    }
    samples.hold_against(AGAIN, "promised", 20.0);
    say(run, AGAIN, kills as f64, " connections killed");
    stage.compare()
}

/// Runs `load`, and `fault` in its middle.
fn around(load: impl FnOnce() -> Result<Outcome> + Send, fault: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    std::thread::scope(|scope| {
        let load = scope.spawn(load);
        std::thread::park_timeout(AROUND / 2);
        fault()?;
        load.join().unwrap_or_else(|_| Err(Error::Failed("the writer died".into())))
    })
}

/// Kills the connection that carries the ds mark.
fn kill_ds(stage: &Stage, member: &Member) -> Result<()> {
    let namespace = stage.network.namespace(member);
    let listed = within(namespace, &["ss", "-Htn", "--tos", "state", "established"])?;
    let line = listed.lines().find(|line| line.contains(DS_TOS));
    let ends: Option<(&str, &str)> = line.and_then(|line| {
        let mut fields = line.split_whitespace().filter(|field| field.contains(':') && !field.starts_with("tos"));
        Some((fields.next()?, fields.next()?))
    });
    let (own, peer) = ends.ok_or_else(|| Error::Failed(format!("no ds connection stands:\n{listed}")))?;
    within(namespace, &["ss", "-K", "-tn", "src", own, "dst", peer]).map(drop)
}

/// ds and bulk lead nowhere until this is dropped.
struct DataCut<'a>(&'a Stage);

fn cut_data(stage: &Stage) -> Result<DataCut<'_>> {
    let chain =
        |hook: &str| format!("chain {hook}put {{\ntype filter hook {hook}put priority 0\nip dscp {MARKS} drop\n}}\n");
    let rules = format!("table inet ringpair {{\n{}{}}}\n", chain("in"), chain("out"));
    for member in stage.pair.members() {
        within(stage.network.namespace(member), &["nft", &rules])?;
    }
    Ok(DataCut(stage))
}

impl Drop for DataCut<'_> {
    fn drop(&mut self) {
        for member in self.0.pair.members() {
            if let Err(error) =
                within(self.0.network.namespace(member), &["nft", "delete", "table", "inet", "ringpair"])
            {
                eprintln!("{error}");
            }
        }
    }
}

//! The deterministic simulator: two members driven by the product's own core and supervisor, on a simulated network,
//! disk and clock, from a seed.
//!
//! Always: one seed is one story, on every machine; a failure prints its seed and replays. Never: a model of the core.
//! What is simulated is everything around it.

pub mod checkers;
pub mod client;
pub mod disk;
mod effects;
pub mod faults;
pub mod keeper;
pub mod member;
pub mod network;
pub mod rng;
pub mod time;
pub mod trace;
mod work;
pub mod world;

use std::fmt;

use ringpair_core::{
    Config,
    config::{OnHookFailure, OnPeerLoss},
};
use ringpair_wire::id::MemberId;

use self::{
    checkers::{Violation, converge},
    faults::Plan,
    rng::Rng,
    time::{SEC, Speed},
    world::{Ev, World},
};

/// How long faults happen: ten simulated minutes and a little for the start.
pub const FAULTY: u64 = 612 * SEC;
/// How long the pair may take to be whole again.
pub const LIVENESS: u64 = 150 * SEC;

/// Which seeds also lose single lanes: modulus and remainder.
pub const LANES_LOST: (u64, u64) = (8, 7);

/// What one seed showed.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Events that happened.
    pub events: u64,
    /// Operations begun by clients.
    pub operations: u64,
    /// Operations answered with a level reached.
    pub reached: u64,
    /// Answers by level: async, local, received, durable, applied; alone.
    pub answers: [u64; 6],
    /// Answers that said `exclusive`.
    pub exclusive: u64,
    /// Faults.
    pub faults: usize,
    /// Journals overwritten after a divergence or a gap.
    pub overwritten: u64,
    /// Simulated milliseconds until the pair was whole after the faults; `None`: an operator is needed, and the pair
    /// says why.
    pub whole_after_ms: Option<u64>,
}

/// A seed that broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The rule.
    pub violation: Violation,
    /// When, in simulated milliseconds.
    pub at_ms: u64,
    /// The faults and the last events.
    pub story: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, violation, at_ms, story } = self;
        write!(f, "seed {seed} at {at_ms} ms: {violation}\n{story}\nreplay: ringpair-sim --seed {seed} --verbose")
    }
}

fn configs(rng: &mut Rng) -> [Config; 2] {
    let block = rng.per_mille(100);
    let promote = rng.coin();
    let small_window = rng.per_mille(200);
    let one = |member| {
        let mut config = Config::fast(member);
        config.on_peer_loss = if block { OnPeerLoss::Block } else { OnPeerLoss::Continue };
        config.on_hook_failure = if promote { OnHookFailure::Promote } else { OnHookFailure::Hold };
        if small_window {
            config.window_records = 64;
        }
        config
    };
    [one(MemberId::A), one(MemberId::B)]
}

/// Runs a seed.
///
/// # Errors
/// The first rule that was broken, with the story.
pub fn run(seed: u64, verbose: bool) -> Result<Outcome, Box<Failure>> {
    let mut rng = Rng::new(seed ^ 0x5eed_0f00);
    let configs = configs(&mut rng);
    let span = (10 * SEC, FAULTY - 2 * SEC);
    let mut plan = Plan::draw(&mut rng, span);
    if seed % LANES_LOST.0 == LANES_LOST.1 {
        plan.lose_lanes(&mut Rng::new(seed ^ 0x1a9e), span); // of its own: the other seeds' stories do not change
    }
    let mut world = World::new(seed, Speed::RACK, configs);
    world.trace.verbose = verbose;
    if verbose {
        println!("{plan}");
    }
    world.schedule(plan);
    let first = rng.below(2) as usize;
    world.boot(first);
    world.run_until(rng.below(3 * SEC));
    world.boot(1 - first);
    world.at(world.now, Ev::Look);
    world.at(world.now, Ev::Trim);
    world.begin_clients();
    while world.now < FAULTY && world.violation.is_none() {
        let next = (world.now + rng.within((20 * SEC, 90 * SEC))).min(FAULTY);
        world.run_until(next);
        for m in 0..2 {
            let copy = world.members[m].disk.copy();
            world.copies[m].push(copy);
        }
    }
    finish(seed, world)
}

fn finish(seed: u64, mut world: World) -> Result<Outcome, Box<Failure>> {
    let healed = world.now;
    world.heal();
    world.clients.on = false;
    // What faults had scheduled for their own end still happens within this phase.
    let came = world.run_while(healed + LIVENESS, |world| converge::missing(world).is_ok());
    let whole_after_ms = came.then(|| (world.now - healed) / time::MS);
    if world.violation.is_none() {
        let verdict = converge::judge(&world, came);
        world.judge(verdict);
        if came {
            judge_the_end(&mut world);
        }
    }
    let story = || format!("faults:\n{}last events:\n{}", world.plan, world.trace.print());
    match world.violation.clone() {
        Some(violation) => {
            let story = story();
            Err(Box::new(Failure { seed, violation, at_ms: world.now / time::MS, story }))
        }
        None => Ok(Outcome {
            events: world.events,
            operations: world.clients.begun.into(),
            reached: world.clients.reached,
            answers: world.checks.acknowledged.answers,
            exclusive: world.checks.exclusive.answers,
            faults: world.plan.faults.len(),
            overwritten: world.checks.archive.overwritten,
            whole_after_ms,
        }),
    }
}

fn judge_the_end(world: &mut World) {
    let verdict = converge::equal(world);
    world.judge(verdict);
    let Ok(active) = converge::missing(world) else { return };
    let verdict = world.checks.hooks.at_the_end(active);
    world.judge(verdict);
    let service = world.members[active].disk.journal.log();
    let archives = [world.members[0].disk.archive.as_slice(), world.members[1].disk.archive.as_slice()];
    let verdict = world.checks.acknowledged.at_the_end(&service, archives);
    world.judge(verdict);
}

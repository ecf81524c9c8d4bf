//! The storm of kills: random members die under load, and what their clients recorded is held against what is served.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;

use super::{Load, Member, Options, PATIENCE, Pair, Victim, Writes, merge, wait_until};

/// What one kill hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kill {
    /// One process or both of one member, active or not.
    Member(char, Victim),
    /// Every process of both members at once.
    BothMembers,
}

/// A small deterministic generator (SplitMix64): a storm is replayed from its seed.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn kill(&mut self) -> Kill {
        let member = if self.below(2) == 0 { 'A' } else { 'B' };
        match self.below(8) {
            0..=2 => Kill::Member(member, Victim::Worker),
            3 => Kill::Member(member, Victim::Supervisor),
            4..=5 => Kill::Member(member, Victim::Both),
            _ => Kill::BothMembers,
        }
    }
}

/// Runs `count` kills from `seed` under load, most of it asking for `durable`; after each the pair must be in sync again
/// and hold everything that was acknowledged since the first. `report` gets a line a kill.
///
/// # Panics
/// When anything acknowledged is missing, digests differ, or the pair does not come back.
pub fn storm(seed: u64, count: usize, mut report: impl FnMut(&str)) {
    let mut dice = Dice(seed);
    let mut pair = Pair::start(&Options::default());
    pair.wait_in_sync();
    let mut all = Writes::new();
    for number in 1..=count {
        let sockets = [pair.a.socket(), pair.b.socket()];
        let mut load = Load::start_at_every_level(sockets.clone(), 4, 50);
        let enough = 50 + dice.below(200);
        wait_until("the load runs", || load.progress() >= enough);
        let kill = dice.kill();
        let active = pair.active().map(Member::name);
        let workers = pair.members().map(Member::worker_pid);
        let mut writes = Writes::new();
        // Half of them strike in full flight; half when the newest record of the journal has been acknowledged.
        let quiet = dice.below(2) == 0;
        if quiet {
            writes = std::mem::replace(&mut load, Load::idle()).stop();
        }
        strike(&mut pair, kill);
        if quiet {
            load = Load::start_at_every_level(sockets, 4, 50);
        }
        let before = load.progress();
        let served_again =
            wait_until(&format!("changes are acknowledged again after {kill:?}\n{}", pair.logs()), || {
                load.progress() > before + 20
            });
        revive(&mut pair, kill, &workers);
        merge(&mut writes, load.stop());
        let in_sync = pair.wait_in_sync();
        if !matches!(kill, Kill::BothMembers | Kill::Member(_, Victim::Both)) {
            check_in_service(&pair, &writes);
        }
        merge(&mut all, writes);
        let checked = check_served(&pair, &all);
        report(&format!(
            "kill {number}/{count}: {kill:?}{} (active was {}) acknowledged again after {served_again:?}, in sync {in_sync:?} later, {checked}",
            if quiet { " at rest" } else { "" },
            active.map_or("nobody".into(), |name| name.to_string()),
        ));
    }
}

fn strike(pair: &mut Pair, kill: Kill) {
    match kill {
        Kill::Member(name, victim) => {
            let member = if name == 'A' { &pair.a } else { &pair.b };
            member.signal(victim, Signal::SIGKILL);
        }
        Kill::BothMembers => {
            pair.a.signal(Victim::Both, Signal::SIGKILL);
            pair.b.signal(Victim::Both, Signal::SIGKILL);
            // Nobody is left to take over: both are started again at once, in an order that differs from storm to storm.
            for member in [&mut pair.b, &mut pair.a] {
                assert!(member.reap(PATIENCE), "a killed supervisor does not end");
                member.start(&[]);
            }
        }
    }
}

/// Starts what a process manager would start again, once the old worker, which outlives its supervisor, has ended.
fn revive(pair: &mut Pair, kill: Kill, workers: &[Option<i32>; 2]) {
    let Kill::Member(name, victim) = kill else { return };
    if victim != Victim::Worker {
        let member = if name == 'A' { &mut pair.a } else { &mut pair.b };
        assert!(member.reap(PATIENCE), "a killed member does not end");
        if let Some(worker) = workers[usize::from(name == 'B')] {
            wait_until("the orphaned worker ends", || !is_running(worker));
        }
        member.start(&[]);
    }
}

/// Whether a process exists and is no zombie.
#[must_use]
pub fn is_running(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, state)| !state.trim_start().starts_with('Z'))
}

/// Holds what clients recorded against what both members serve and what the archives list; a summary.
///
/// # Panics
/// When an acknowledged change is neither served nor, if it was acknowledged alone, archived; or digests differ.
pub fn check_served(pair: &Pair, writes: &Writes) -> String {
    let mut archived = BTreeMap::<String, u64>::new();
    for member in pair.members() {
        let listed = member.get("/v1/divergence").expect("the archive is listed").json();
        for record in listed["records"].as_array().into_iter().flatten() {
            let (path, counter) = path_and_counter(&record["object"]);
            let entry = archived.entry(path).or_default();
            *entry = counter.max(*entry);
        }
    }
    let mut checked = 0;
    for member in pair.members() {
        let served = served(member);
        for (path, written) in writes {
            let counter = served.get(path).copied().unwrap_or_default();
            assert!(
                counter >= written.durable,
                "member {}: {path} serves {counter}, but {} was acknowledged as durable\n{}",
                member.name(),
                written.durable,
                pair.logs()
            );
            let known = counter.max(archived.get(path).copied().unwrap_or_default());
            assert!(
                known >= written.alone.max(written.early),
                "member {}: {path} serves {counter}, {} was acknowledged alone, {} at local or async, and is in no archive\n{}",
                member.name(),
                written.alone,
                written.early,
                pair.logs()
            );
            assert!(counter <= written.sent, "member {}: {path} serves {counter}, which nobody sent", member.name());
            checked += 1;
        }
    }
    let [a, b] = pair.digests();
    assert!(a.is_some() && a == b, "digests differ: A {a:?}, B {b:?}\n{}", pair.logs());
    format!("{checked} values as acknowledged, {} archived, digests equal", archived.len())
}

/// What a member serves of all loads' objects.
fn served(member: &Member) -> BTreeMap<String, u64> {
    let exported = member.get("/v1/ds/LOAD?export").expect("the tree is exported").text();
    let objects = exported.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    objects.map(|object| path_and_counter(&object)).collect()
}

/// Where only a worker or a supervisor died, what was acknowledged at `local` or `async` is in service too, not only in
/// an archive (protocol §10): the tail is fetched from whoever is left.
fn check_in_service(pair: &Pair, writes: &Writes) {
    for member in pair.members() {
        let served = served(member);
        for (path, written) in writes {
            let counter = served.get(path).copied().unwrap_or_default();
            assert!(
                counter >= written.early,
                "member {}: {path} serves {counter}, but {} was acknowledged at local or async, and no host died\n{}",
                member.name(),
                written.early,
                pair.logs()
            );
        }
    }
}

fn path_and_counter(object: &serde_json::Value) -> (String, u64) {
    let counter = object["attributes"]["Counter"][0].as_str().and_then(|text| text.parse().ok());
    (object["path"].as_str().unwrap_or_default().to_owned(), counter.unwrap_or_default())
}

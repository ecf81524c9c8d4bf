//! Cut cables under load, in network namespaces: never two exclusive members, one active soon after the cable is whole
//! again, and nothing lost of what was acknowledged.
//!
//! Skips, and says so, where namespaces cannot be made.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ringpair_tests::pair::{
    Cut, Family, Load, Member, Network, Options, Pair, Witness, Writes, check_served, overlap, wait_until,
};

/// One network at a time: these tests look at the clock.
static TURN: Mutex<()> = Mutex::new(());

/// How long two may answer as active after the cable is whole again.
const ONE_ACTIVE_WITHIN: Duration = Duration::from_secs(1);

/// How long a backup that must not promote is watched: longer than any of its time-outs.
const WATCHED_FOR: Duration = Duration::from_secs(3);

struct Scene {
    witnesses: [Witness; 2],
    /// Writes on whoever accepts, A first; and on B alone.
    loads: [Load; 2],
    pair: Pair,
    network: Network,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    /// A pair in sync and loaded; `None` where there can be none.
    fn set() -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let network = match Network::new(Family::V4) {
            Ok(network) => network,
            Err(why) => {
                println!("skipped: {why}");
                return None;
            }
        };
        let pair = Pair::start(&Options { places: Some(network.places()), ..Options::default() });
        pair.wait_in_sync();
        assert!(pair.a.is_active());
        let loads = [
            Load::start_numbered([pair.a.socket(), pair.b.socket()], 0..2, 20),
            Load::start_numbered([pair.b.socket(), pair.b.socket()], 2..4, 20),
        ];
        let witnesses = pair.members().map(Witness::of);
        wait_until("the load runs", || loads[0].progress() > 100);
        wait_until("A is seen to be exclusive", || witnesses[0].count() > 20);
        Some(Self { witnesses, loads, pair, network, _turn: turn })
    }

    fn b_is_exclusive(&self) {
        wait_until("B is seen to be exclusive", || self.witnesses[1].count() > 20);
    }

    fn goes_on(&self, load: usize) {
        let before = self.loads[load].progress();
        let what = format!("load {load} is acknowledged\n{}", self.pair.logs());
        wait_until(&what, || self.loads[load].progress() > before + 20);
    }

    /// Heals, and judges everything; `a_exclusive`, `b_exclusive`: whether each must have been at some time.
    fn heal_and_judge(self, [a_exclusive, b_exclusive]: [bool; 2]) {
        self.network.heal();
        let healed = Instant::now();
        // Whoever answers as active after that second answers alone.
        let mut newest_disagreement = None;
        while healed.elapsed() < 2 * ONE_ACTIVE_WITHIN {
            if self.pair.active().is_none() {
                newest_disagreement = Some(healed.elapsed());
            }
        }
        println!("one active {newest_disagreement:?} after healing");
        assert!(
            newest_disagreement.is_none_or(|after| after < ONE_ACTIVE_WITHIN),
            "not exactly one active {newest_disagreement:?} after healing\n{}",
            self.pair.logs()
        );
        self.pair.wait_in_sync();
        let mut writes = Writes::new();
        for load in self.loads {
            writes.extend(load.stop());
        }
        let [a, b] = self.witnesses.map(Witness::claims);
        println!("{} and {} claims to be exclusive", a.len(), b.len());
        assert!(!a_exclusive || !a.is_empty(), "A was exclusive at some time");
        assert_eq!(b_exclusive, !b.is_empty(), "whether B was exclusive at some time\n{}", self.pair.logs());
        assert_eq!(overlap(&a, &b), None, "both were exclusive at one time\n{}", self.pair.logs());
        println!("{}", check_served(&self.pair, &writes));
    }
}

fn alone(member: &Member) -> bool {
    member.status().is_some_and(|status| status["alone"] == true)
}

fn both_directions(cut: impl FnOnce(&Network)) {
    let Some(scene) = Scene::set() else { return };
    cut(&scene.network);
    scene.pair.b.wait_active();
    // Without a third vote both serve, and both say that they are alone; each takes changes that the other never gets.
    wait_until("A is alone", || alone(&scene.pair.a));
    wait_until("B is alone", || alone(&scene.pair.b));
    scene.goes_on(0);
    scene.goes_on(1);
    scene.b_is_exclusive();
    let [a, b] = [0, 1].map(|witness| scene.witnesses[witness].so_far());
    assert_eq!(overlap(&a, &b), None, "both were exclusive at one time\n{}", scene.pair.logs());
    let warned = scene.pair.a.status().unwrap_or_default();
    assert!(warned["warnings"].to_string().contains("may-be-split"), "A does not say so: {warned:#}");
    scene.heal_and_judge([true, true]);
}

// REQ: SM-163 SM-166
#[test]
fn a_silent_cut_of_both_directions_never_makes_two_exclusive() {
    both_directions(|network| network.cut(Cut::Both));
}

// REQ: SM-163 SM-166
#[test]
fn a_pulled_plug_never_makes_two_exclusive() {
    both_directions(|network| network.unplug(0));
}

// REQ: SM-166
#[test]
fn an_active_that_is_not_heard_stops_when_its_successor_speaks() {
    let Some(scene) = Scene::set() else { return };
    scene.network.cut(Cut::FromA);
    scene.pair.b.wait_active();
    wait_until(&format!("A has stopped\n{}", scene.pair.logs()), || !scene.pair.a.is_active());
    scene.goes_on(0);
    assert!(!scene.pair.a.is_active(), "A is active again\n{}", scene.pair.logs());
    scene.b_is_exclusive();
    scene.heal_and_judge([true, true]);
}

// REQ: SM-166
#[test]
fn a_backup_that_is_not_heard_does_not_promote() {
    let Some(scene) = Scene::set() else { return };
    scene.network.cut(Cut::FromB);
    wait_until(&format!("A is alone\n{}", scene.pair.logs()), || alone(&scene.pair.a));
    scene.goes_on(0);
    let begun = Instant::now();
    while begun.elapsed() < WATCHED_FOR {
        assert!(scene.pair.a.is_active(), "A has stopped\n{}", scene.pair.logs());
        assert!(!scene.pair.b.is_active(), "B has promoted itself\n{}", scene.pair.logs());
    }
    scene.heal_and_judge([true, false]);
}

fn ds_runs_over(pair: &Pair, path: &str) -> bool {
    let on = |member: &Member, path: &str| {
        member.status().is_some_and(|status| !status["connections"][path]["lanes"]["ds"].is_null())
    };
    let other = if path == "main" { "aux" } else { "main" };
    pair.members().iter().all(|member| on(member, path) && !on(member, other))
}

// REQ: SM-290
#[test]
fn changes_take_the_aux_cable_while_main_is_cut_and_go_home_after_it() {
    let Some(scene) = Scene::set() else { return };
    wait_until("ds runs over main", || ds_runs_over(&scene.pair, "main"));
    scene.network.cut_main();
    wait_until("ds runs over aux", || ds_runs_over(&scene.pair, "aux"));
    scene.goes_on(0);
    assert!(scene.pair.a.is_active() && !alone(&scene.pair.a), "one cable is enough\n{}", scene.pair.logs());
    scene.network.heal();
    wait_until("ds runs over main again", || ds_runs_over(&scene.pair, "main"));
    scene.goes_on(0);
    assert!(scene.pair.a.is_active(), "A stayed active");
    scene.heal_and_judge([true, false]);
}

//! Power cuts: what was acknowledged as durable, or at `local` by a member that was alone, is on the disk itself. `kill -9`
//! cannot show this, since what was written and not synced survives it in the page cache.
//!
//! Skips, and says so, where no file system can be mounted from an image.
#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use std::{fs, path::Path};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{
    Dice, Load, Options, PATIENCE, Pair, PowerDisk, Victim, Writes, check_served, is_running, merge, wait_until,
};
use tempfile::TempDir;

/// Room for a member: a few segments of the journal, the state, the logs.
const DISK_BYTES: u64 = 192 << 20;
/// How often the power is cut.
const CUTS: usize = 3;

/// Images in memory where that is to be had: a disk that is only slow proves nothing more.
fn images() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = TempDir::with_prefix_in("ringpair-power-", memory).or_else(|_| TempDir::with_prefix("ringpair-power-"));
    made.unwrap()
}

/// A pair that is not started, and its disks; `None` where there can be none. The disks go before the pair's directory.
fn powered(images: &TempDir) -> Option<(Vec<PowerDisk>, Pair)> {
    let pair = Pair::prepare(&Options { mirror: vec!["+/srv/app".into()], ..Options::default() });
    let disk = |name: &str| PowerDisk::over(&pair.dir().join(name), images.path(), DISK_BYTES);
    match ["A", "B"].into_iter().map(disk).collect::<Result<Vec<_>, _>>() {
        Ok(disks) => Some((disks, pair)),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

/// Kills every process of a member and waits until the last is gone.
fn kill(pair: &mut Pair, which: char) {
    let member = if which == 'A' { &mut pair.a } else { &mut pair.b };
    let worker = member.worker_pid();
    member.signal(Victim::Both, Signal::SIGKILL);
    assert!(member.reap(PATIENCE), "a killed member does not end");
    wait_until("the worker has ended", || worker.is_none_or(|worker| !is_running(worker)));
}

// REQ: REP-026 SM-165
#[test]
fn what_was_acknowledged_as_durable_survives_a_power_cut_of_both() {
    let images = images();
    let Some((mut disks, mut pair)) = powered(&images) else { return };
    let (mut dice, mut all) = (Dice(1), Writes::new());
    for cut in 1..=CUTS {
        pair.a.start(&[]);
        pair.b.start(&[]);
        pair.wait_in_sync();
        println!("before cut {cut}: {}", check_served(&pair, &all));
        let load = Load::start([pair.a.socket(), pair.b.socket()], 4, 50);
        let active = pair.active().unwrap();
        // A barrier that was answered: the file is on the backup's disk.
        let (name, content) = (format!("srv/app/file-{cut}"), vec![b'x'; 10_000 * cut]);
        fs::write(active.root().join(&name), &content).unwrap();
        let (code, out, err) = active.command(&["sync", "--timeout", "30"]);
        assert_eq!(code, 0, "{out}{err}");
        let copy = pair.peer_of(active).root().join(&name);
        let enough = load.progress() + 100 + dice.below(400);
        wait_until("the load runs", || load.progress() >= enough);
        kill(&mut pair, 'A');
        kill(&mut pair, 'B');
        merge(&mut all, load.stop());
        disks.iter_mut().for_each(PowerDisk::cut);
        assert_eq!(fs::read(&copy).ok().as_deref(), Some(&content[..]), "{name} was acknowledged before the power cut");
    }
    pair.a.start(&[]);
    pair.b.start(&[]);
    pair.wait_in_sync();
    println!("after the last cut: {}", check_served(&pair, &all));
    drop(pair);
}

// REQ: REP-026 REP-310
#[test]
fn what_an_active_acknowledged_alone_survives_a_power_cut() {
    let images = images();
    let Some((mut disks, mut pair)) = powered(&images) else { return };
    pair.a.start(&[]);
    pair.b.start(&[]);
    pair.wait_in_sync();
    pair.b.stop();
    wait_until("A is alone", || pair.a.status().is_some_and(|status| status["alone"] == true));
    let (mut dice, mut all) = (Dice(2), Writes::new());
    for _ in 1..=CUTS {
        let load = Load::start([pair.a.socket(), pair.a.socket()], 4, 50);
        let enough = 100 + dice.below(400);
        wait_until("the load runs", || load.progress() >= enough);
        kill(&mut pair, 'A');
        merge(&mut all, load.stop());
        disks[0].cut();
        pair.a.start(&[]);
        pair.a.wait_active();
    }
    pair.b.start(&[]);
    pair.wait_in_sync();
    println!("after the last cut: {}", check_served(&pair, &all));
    drop(pair);
}

//! Scenario `tree`: first synchronization of a real tree to a new backup, and a backup that comes back to a tree that
//! has not changed, beside `cp -a` + sync and rsync.
//!
//! Always: times count from the start of the backup's process to the end of a `sync` on the active, its mirror current;
//! afterwards `diff -r` must find nothing. Never: the copy on the backup's side is touched but by the member.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use ringpair_tests::pair::{Options, Pair, Victim};
use tempfile::TempDir;

use crate::{
    Plan,
    error::{Doing, Error, Result},
    figure::{Figure, Samples},
    peers::{self, rsync::Rsync},
    process::{run as run_command, wait_for},
    progress,
};

/// The longest that one transfer may take.
const TRANSFER: Duration = Duration::from_secs(300);
/// Where the tree lies below each member's root.
const MIRRORED: &str = "srv/tree";
const FIRST: &str = "first_sync_s";
const NOTHING: &str = "nothing_different_s";
/// Entries that `--quick` takes of the tree.
const QUICK_ENTRIES: usize = 200;

/// Starts a pair with a copy of `plan.tree` and takes every figure `plan.runs` times.
///
/// # Errors
/// When the trees differ afterwards, a member does not come into sync, or the system refuses something.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let mut pair = Pair::start(&Options { mirror: vec![format!("+/{MIRRORED}")], ..Options::default() });
    pair.wait_in_sync();
    if !pair.a.is_active() {
        return Err(Error::Failed("A is not the active member of a new pair".into()));
    }
    let dir = TempDir::with_prefix("ringpair-tree-").doing("a temporary directory")?;
    let tree = pair.a.root().join(MIRRORED);
    let (files, bytes) = fill(&plan.tree, &tree, plan.quick)?;
    progress(&format!("tree: {files} entries, {bytes} bytes of {}", plan.tree.display()));
    let rsync = if peers::offers(plan.peers, "rsync") { Some(Rsync::start(dir.path())?) } else { None };
    let mut samples = Samples::default();
    for run in 1..=plan.runs {
        let took = first_sync(&mut pair)?;
        progress(&format!("tree: run {run} of {}: first_sync_s {:.3}", plan.runs, took.as_secs_f64()));
        samples.add(FIRST, took.as_secs_f64());
        samples.hold_against(FIRST, "cp", copy(&tree, &dir.path().join("cp"))?.as_secs_f64());
        let took = restart_backup(&mut pair, || Ok(()))?;
        progress(&format!("tree: run {run} of {}: nothing_different_s {:.3}", plan.runs, took.as_secs_f64()));
        samples.add(NOTHING, took.as_secs_f64());
        let before = Instant::now();
        walk(&tree).doing("walking the tree")?;
        walk(&pair.b.root().join(MIRRORED)).doing("walking the copy")?;
        samples.hold_against(NOTHING, "floor lstat of everything on both sides", before.elapsed().as_secs_f64());
        if let Some(rsync) = &rsync {
            samples.hold_against(FIRST, "rsync", rsync.transfer(&tree)?.as_secs_f64());
            samples.hold_against(NOTHING, "rsync", rsync.transfer(&tree)?.as_secs_f64());
            fs::remove_dir_all(rsync.into())
                .and_then(|()| fs::create_dir(rsync.into()))
                .doing("emptying rsync's copy")?;
        }
    }
    let mut figures =
        samples.figures(FIRST, &format!("s ({files} entries, {bytes} bytes; from the backup's start)"))?;
    figures.extend(samples.figures(NOTHING, "s (from the backup's start)")?);
    Ok(figures)
}

/// Copies the tree, or with `quick` a part of it, to where the active mirrors it; how many entries and bytes.
fn fill(from: &Path, to: &Path, quick: bool) -> Result<(u64, u64)> {
    if quick {
        let mut entries = fs::read_dir(from).doing(&format!("reading {}", from.display()))?;
        for _ in 0..QUICK_ENTRIES {
            let Some(entry) = entries.next() else { break };
            let entry = entry.doing("reading a directory")?;
            run_command(Command::new("cp").arg("-a").arg(entry.path()).arg(to), TRANSFER)?;
        }
    } else {
        run_command(Command::new("cp").arg("-a").arg(from.join(".")).arg(to), TRANSFER)?;
    }
    walk(to).doing("walking the tree")
}

/// Looks at everything below `dir`; how many entries and how many bytes of files.
fn walk(dir: &Path) -> io::Result<(u64, u64)> {
    let (mut entries, mut bytes) = (0, 0);
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            entries += 1;
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.is_file() {
                bytes += meta.size();
            }
        }
    }
    Ok((entries, bytes))
}

/// A new backup: its storage and its copy are empty.
fn first_sync(pair: &mut Pair) -> Result<Duration> {
    let (storage, root) = (pair.b.storage(), pair.b.root().join(MIRRORED));
    restart_backup(pair, || {
        fs::remove_dir_all(&storage).doing("emptying the backup's storage")?;
        fs::remove_dir_all(&root).doing("emptying the backup's copy")?;
        fs::create_dir_all(&root).doing("the backup's copy")?;
        run_command(Command::new("sync").arg("-f").arg(&root), TRANSFER).map(|_| ())
    })
}

/// Stops the backup, does something `meanwhile`, starts it, and waits until it has everything; how long that took from
/// its start. Both trees are compared.
fn restart_backup(pair: &mut Pair, meanwhile: impl FnOnce() -> Result<()>) -> Result<Duration> {
    pair.b.signal(Victim::Supervisor, Signal::SIGTERM);
    if !pair.b.reap(Duration::from_secs(20)) {
        return Err(Error::Failed(format!("the backup does not stop\n{}", pair.logs())));
    }
    meanwhile()?;
    let start = Instant::now();
    pair.b.start(&[]);
    let synced = wait_for("everything is on the backup", TRANSFER, || is_synced(pair).then(|| start.elapsed()));
    let took = synced.map_err(|error| Error::Failed(format!("{error}\n{}", pair.logs())))?;
    let [a, b] = [&pair.a, &pair.b].map(|member| member.root().join(MIRRORED));
    run_command(Command::new("diff").args(["-r", "--no-dereference"]).arg(a).arg(b), TRANSFER)?;
    Ok(took)
}

/// Whether the active has a backup that has everything, by a `sync` that is begun when it has one.
fn is_synced(pair: &Pair) -> bool {
    let Some(status) = pair.a.status() else { return false };
    let has_backup = status["alone"] == false && status["mirror"]["state"] == "current";
    has_backup && pair.a.ask("POST", "/v1/sync", b"").is_ok_and(|answer| answer.status == 200)
}

/// `cp -a` into a new directory, and a sync of the file system.
fn copy(from: &Path, to: &Path) -> Result<Duration> {
    let copied = run_command(Command::new("cp").arg("-a").arg(from).arg(to), TRANSFER)?;
    let synced = run_command(Command::new("sync").arg("-f").arg(to), TRANSFER)?;
    fs::remove_dir_all(to).doing("removing the copy")?;
    Ok(copied + synced)
}

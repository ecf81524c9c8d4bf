//! Scenario `bulk`: one large file from the active to the backup, from memory to memory with TLS off and on, and from
//! disk to disk, beside the best copy over loopback that this machine does and beside `cp` + sync.
//!
//! Always: a file lies ready beside the mirrored directory, on the same file system, and is renamed into it: from just
//! before that until a `sync` on the active has answered is the time of a transfer; afterwards both copies have the same
//! digest. Never: figure and reference of different data, or a file that is written while it is mirrored.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use ringpair_tests::pair::{Options, Pair};
use tempfile::TempDir;

use crate::{
    Plan,
    error::{Doing, Error, Result},
    figure::{Figure, Samples},
    floor::{cpu, net},
    process::{cpu_s, run as run_command, wait_for},
    progress,
};

/// The longest that one transfer may take.
const TRANSFER: Duration = Duration::from_secs(120);
/// What is mirrored below each member's root.
const MIRRORED: &str = "srv/bulk";
/// The file's name there.
const NAME: &str = "large";
/// Where memory is a file system.
const MEMORY: &str = "/dev/shm";
const FLOOR: &str = "floor tmpfs file over loopback";
const DISK: &str = "disk_1gib_s";
const DISK_TLS_OFF: &str = "disk_1gib_plain_s";

/// What the file holds.
#[derive(Clone, Copy)]
enum Content {
    /// Pseudo-random bytes.
    Incompressible,
    /// Lines as `ds export` prints them.
    Compressible,
}

/// A pair of which both members mirror one directory.
struct Setting {
    pair: Pair,
    /// Unmounted after the pair has ended, before the directories go.
    #[expect(dead_code, reason = "kept to be dropped")]
    mounts: Vec<Mounted>,
    /// Holds both members' mirrored trees where they do not lie in the pair's own directory, and the file's other name.
    stage: TempDir,
}

/// A file system that is unmounted when this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Mounts a tmpfs; `None`: this user may not.
    fn tmpfs(at: &Path) -> Option<Self> {
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).ok()?;
        Some(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Whoever still holds a file in it keeps it until it is closed.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

impl Setting {
    /// Starts a pair. `place`: where the mirrored trees lie; `apart`: each in a tmpfs of its own, as on two hosts, where
    /// that may be mounted (on one file system each member's watch hears of the other's writes).
    fn start(place: &Path, tls: bool, apart: bool) -> Result<Self> {
        let stage = TempDir::with_prefix_in("ringpair-bulk-", place).doing("a directory for the files")?;
        let mut mounts = Vec::new();
        let mut options = Options { mirror: vec![format!("+/{MIRRORED}")], ..Options::default() };
        if !tls {
            options.set.push(("security.mode".into(), "\"off\"".into()));
        }
        let mut pair = Pair::prepare(&options);
        for member in pair.members() {
            let (root, real) = (member.root(), stage.path().join(member.name().to_string()));
            fs::remove_dir_all(&root).doing("the member's root")?;
            fs::create_dir_all(&real).doing("the mirrored directory")?;
            if apart && let Some(mounted) = Mounted::tmpfs(&real) {
                mounts.push(mounted);
            }
            fs::create_dir_all(real.join(MIRRORED)).doing("the mirrored directory")?;
            symlink(&real, &root).doing("the member's root")?;
        }
        pair.a.start(&[]);
        pair.b.start(&[]);
        pair.wait_in_sync();
        if !pair.a.is_active() {
            return Err(Error::Failed("A is not the active member of a new pair".into()));
        }
        let setting = Self { pair, mounts, stage };
        wait_for("the empty directory is mirrored", TRANSFER, || {
            let status = setting.pair.a.status()?;
            (status["mirror"]["state"] == "current").then_some(())
        })?;
        Ok(setting)
    }

    fn staged(&self, content: Content) -> PathBuf {
        self.stage.path().join("A").join(match content {
            Content::Incompressible => "incompressible",
            Content::Compressible => "compressible",
        })
    }

    fn copies(&self) -> [PathBuf; 2] {
        [&self.pair.a, &self.pair.b].map(|member| member.root().join(MIRRORED).join(NAME))
    }

    /// Returns once everything is on the backup.
    fn sync(&self) -> Result<()> {
        let logs = |what: String| Error::Failed(format!("{what}\n{}", self.pair.logs()));
        let answer = self.pair.a.ask("POST", "/v1/sync", b"").map_err(|error| logs(format!("sync: {error}")))?;
        if answer.status == 200 { Ok(()) } else { Err(logs(format!("sync answers {}", answer.status))) }
    }

    /// The processor time of both workers, in seconds.
    fn cpu_s(&self) -> f64 {
        self.pair.members().iter().filter_map(|member| cpu_s(member.worker_pid()?)).sum()
    }

    /// Moves the staged file into the mirrored directory and waits until the backup has it durably: the time and the
    /// processor time of both workers. Both copies are compared, then removed.
    fn transfer(&self, content: Content, expected: &blake3::Hash) -> Result<(Duration, f64)> {
        let [from, to] = self.copies();
        let staged = self.staged(content);
        let before = self.cpu_s();
        let start = Instant::now();
        fs::rename(&staged, &from).doing("moving the file in")?;
        self.sync()?;
        let took = start.elapsed();
        let cpu = self.cpu_s() - before;
        if hash(&to)? != *expected {
            return Err(Error::Failed(format!("{} differs from the active's\n{}", to.display(), self.pair.logs())));
        }
        fs::rename(&from, &staged).doing("moving the file out")?;
        self.sync()?;
        if to.exists() {
            return Err(Error::Failed(format!("{} is still there", to.display())));
        }
        Ok((took, cpu))
    }
}

/// Takes every figure `plan.runs` times.
///
/// # Errors
/// When a copy differs, a member does not come into sync, there is no tmpfs, or the system refuses something.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let (memory_bytes, disk_bytes) = if plan.quick { (1 << 20, 4 << 20) } else { (512 << 20, 1 << 30) };
    let disk = TempDir::with_prefix("ringpair-bulk-").doing("a temporary directory")?;
    let mut samples = Samples::default();
    let memory: Vec<(Setting, bool)> = [false, true]
        .into_iter()
        .map(|tls| Ok((Setting::start(Path::new(MEMORY), tls, true)?, tls)))
        .collect::<Result<_>>()?;
    let contents = [Content::Incompressible, Content::Compressible];
    let mut hashes = Vec::new();
    for content in contents {
        for (setting, _) in &memory {
            make(&setting.staged(content), content, memory_bytes)?;
        }
        hashes.push(hash(&memory[0].0.staged(content))?);
    }
    let mut floors = net::Ways::default();
    for run in 1..=plan.runs {
        floors.add(net::copy_file(memory_bytes)?);
        for (setting, tls) in &memory {
            for (content, expected) in contents.into_iter().zip(&hashes) {
                let (took, cpu) = setting.transfer(content, expected)?;
                let (rate, name) = (memory_bytes as f64 / took.as_secs_f64(), memory_name(*tls, content));
                progress(&format!("bulk: run {run} of {}: {name} {rate:.3e}", plan.runs));
                samples.add(name, rate);
                if matches!(content, Content::Incompressible) {
                    samples.add(cpu_name(*tls), cpu * 1e9 / memory_bytes as f64);
                }
            }
        }
    }
    drop(memory);
    let (way, rates) = floors.best()?;
    for (tls, content) in [false, true].into_iter().flat_map(|tls| contents.map(|content| (tls, content))) {
        let reference = format!("{FLOOR} ({way})");
        rates.iter().for_each(|rate| samples.hold_against(memory_name(tls, content), &reference, *rate));
    }
    for (name, tls) in [(DISK, true), (DISK_TLS_OFF, false)] {
        on_disk(plan, disk.path(), tls, disk_bytes, name, &mut samples)?;
    }
    figures(&samples, disk_bytes)
}

/// Transfers from disk to disk beside `cp` and a sync of the copy.
fn on_disk(plan: &Plan, dir: &Path, tls: bool, bytes: usize, name: &str, samples: &mut Samples) -> Result<()> {
    let setting = Setting::start(dir, tls, false)?;
    let staged = setting.staged(Content::Incompressible);
    make(&staged, Content::Incompressible, bytes)?;
    let expected = hash(&staged)?;
    for run in 1..=plan.runs {
        let reference = copy(&staged, &dir.join("cp"))?.as_secs_f64();
        let (took, _) = setting.transfer(Content::Incompressible, &expected)?;
        let took = took.as_secs_f64();
        progress(&format!("bulk: run {run} of {}: {name} {took:.3}, cp {reference:.3}", plan.runs));
        samples.add(name, took);
        samples.hold_against(name, "cp --reflink=never and sync", reference);
    }
    Ok(())
}

fn figures(samples: &Samples, disk_bytes: usize) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for tls in [false, true] {
        for content in [Content::Incompressible, Content::Compressible] {
            let unit = match content {
                Content::Incompressible => "bytes/s (incompressible)",
                Content::Compressible => "bytes/s (compressible)",
            };
            figures.extend(samples.figures(memory_name(tls, content), unit)?);
        }
        figures.extend(samples.figures(cpu_name(tls), "ns of processor a byte (both workers)")?);
    }
    for name in [DISK, DISK_TLS_OFF] {
        figures.extend(samples.figures(name, &format!("s ({disk_bytes} bytes, incompressible)"))?);
    }
    Ok(figures)
}

const fn memory_name(tls: bool, content: Content) -> &'static str {
    match (tls, content) {
        (false, Content::Incompressible) => "memory_plain_bytes_per_s",
        (false, Content::Compressible) => "memory_plain_compressible_bytes_per_s",
        (true, Content::Incompressible) => "memory_tls_bytes_per_s",
        (true, Content::Compressible) => "memory_tls_compressible_bytes_per_s",
    }
}

const fn cpu_name(tls: bool) -> &'static str {
    if tls { "memory_tls_cpu_ns_per_byte" } else { "memory_plain_cpu_ns_per_byte" }
}

/// Makes a file of `bytes`, on disk when this returns.
fn make(path: &Path, content: Content, bytes: usize) -> Result<()> {
    const PIECE_BYTES: usize = 1 << 20;
    let fill = || -> io::Result<()> {
        let mut file = File::create(path)?;
        let mut piece = vec![0; PIECE_BYTES];
        for number in 0..bytes / PIECE_BYTES {
            match content {
                Content::Incompressible => cpu::fill(number as u64 + 1, &mut piece),
                Content::Compressible => piece = cpu::records_like(number as u64 + 1, PIECE_BYTES),
            }
            file.write_all(&piece)?;
        }
        file.sync_all()
    };
    fill().doing("making a large file")
}

fn hash(path: &Path) -> Result<blake3::Hash> {
    let read = || -> io::Result<blake3::Hash> {
        let (mut file, mut hasher, mut piece) = (File::open(path)?, blake3::Hasher::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hasher.finalize()),
                more => hasher.update(&piece[..more]),
            };
        }
    };
    read().doing(&format!("reading {}", path.display()))
}

/// `cp --reflink=never` to a new file, and a sync of that.
fn copy(from: &Path, to: &Path) -> Result<Duration> {
    let copied = run_command(Command::new("cp").arg("--reflink=never").arg(from).arg(to), TRANSFER)?;
    let synced = run_command(Command::new("sync").arg(to), TRANSFER)?;
    fs::remove_file(to).doing("removing the copy")?;
    Ok(copied + synced)
}

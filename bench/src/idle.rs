//! Scenario `idle`: what a pair costs that has nothing to do, with a real load of state: processor time, wake-ups and
//! memory of supervisors and workers, beside what the heartbeats alone cost.
//!
//! Always: the pair is in sync, mirror included, before and after. Never: a client of the members while it is measured.

use std::{
    fs, io,
    net::UdpSocket,
    thread,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use ringpair_tests::pair::{Member, Options, Pair};

use crate::{
    Plan,
    error::{Doing, Error, Result},
    figure::{Figure, Samples},
    process, progress,
};

/// Objects and files of the pair; with `--quick` a twentieth.
const OBJECTS: usize = 10_000;
const FILES: usize = 20_000;
const QUICK: usize = 20;
/// Objects in one transaction, files in one directory.
const AT_ONCE: usize = 250;
/// Where the files lie below each member's root.
const MIRRORED: &str = "srv/tree";
/// The longest that the pair may take to come to rest.
const REST: Duration = Duration::from_secs(120);
/// What follows the last change by itself (checkpoints, first looks of watches) is over after this.
const SETTLES: Duration = Duration::from_secs(3);
/// Bytes of a sealed heartbeat, paths, and heartbeats a second on each (detection profile `fast`).
const BEAT: (usize, usize, u32) = (128, 2, 20);

/// What the project promises of an idle pair: both members in percent of one core, each member in MiB.
const PROMISED: &str = "promised";
const PROMISED_CPU: f64 = 1.0;
const PROMISED_MIB: f64 = 64.0;

const CPU: &str = "cpu_percent";
const WAKE_UPS: &str = "wake_ups_per_s";
const MEMORY: [&str; 2] = ["memory_a_mib", "memory_b_mib"];

/// Starts a pair, fills it, and takes every figure `plan.runs` times.
///
/// # Errors
/// When the pair does not come to rest, the system refuses something, or a full run takes more than is promised.
pub fn run(plan: &Plan) -> Result<Vec<Figure>> {
    let scale = if plan.quick { QUICK } else { 1 };
    let (objects, files) = (OBJECTS / scale, FILES / scale);
    let pair = Pair::start(&Options { mirror: vec![format!("+/{MIRRORED}")], ..Options::default() });
    pair.wait_in_sync();
    if !pair.a.is_active() {
        return Err(Error::Failed("A is not the active member of a new pair".into()));
    }
    fill_files(&pair.a, files).doing("filling the tree")?;
    fill_objects(&pair.a, objects)?;
    rest(&pair)?;
    progress(&format!("idle: {objects} objects and {files} files are on both members"));
    let span = if plan.quick { Duration::from_secs(1) } else { Duration::from_secs(20) };
    let mut samples = Samples::default();
    for run in 1..=plan.runs {
        thread::park_timeout(SETTLES);
        let (cpu, wakes) = (spent(&pair, cpu_ns)?, spent(&pair, wake_ups)?);
        let start = Instant::now();
        thread::park_timeout(span);
        let took = start.elapsed();
        let (cpu, wakes) = (spent(&pair, cpu_ns)? - cpu, spent(&pair, wake_ups)? - wakes);
        samples.add(CPU, cpu / took.as_nanos() as f64 * 100.0);
        samples.add(WAKE_UPS, wakes / took.as_secs_f64());
        for (name, member) in MEMORY.iter().zip(pair.members()) {
            samples.add(name, memory_mib(member)?);
            samples.hold_against(name, PROMISED, PROMISED_MIB);
        }
        samples.hold_against(CPU, PROMISED, PROMISED_CPU);
        samples.hold_against(CPU, "floor heartbeats over bare sockets", beats_alone(span / 4).doing("heartbeats")?);
        progress(&format!("idle: run {run} of {}", plan.runs));
    }
    rest(&pair)?;
    let unit = format!("% of one core, supervisors and workers of both ({objects} objects, {files} files)");
    let mut figures = samples.figures(CPU, &unit)?;
    figures.extend(samples.figures(WAKE_UPS, "a second, all threads of both")?);
    for name in MEMORY {
        figures.extend(samples.figures(name, "MiB (PSS, supervisor and worker)")?);
    }
    if plan.quick { Ok(figures) } else { kept(figures) }
}

/// The figures, unless one is beyond what is promised.
fn kept(figures: Vec<Figure>) -> Result<Vec<Figure>> {
    let promised = |figure: &&Figure| figure.reference.as_ref().is_some_and(|(name, _)| name == PROMISED);
    match figures.iter().filter(promised).find(|figure| figure.ratio() > Some(1.0)) {
        Some(broken) => Err(Error::Failed(format!("more than is promised: {}", broken.line()))),
        None => Ok(figures),
    }
}

fn fill_files(active: &Member, files: usize) -> io::Result<()> {
    for dir in 0..files / AT_ONCE {
        let path = active.root().join(MIRRORED).join(format!("d{dir:04}"));
        fs::create_dir(&path)?;
        for file in 0..AT_ONCE {
            fs::write(path.join(format!("f{file:04}.txt")), format!("file {file} of directory {dir}\n"))?;
        }
    }
    Ok(())
}

fn fill_objects(active: &Member, objects: usize) -> Result<()> {
    for first in (0..objects).step_by(AT_ONCE) {
        let lines: String = (first..first + AT_ONCE)
            .map(|n| {
                format!(r#"{{"path":"/BENCH/o{n:06}","class":"Bench","attributes":{{"Value":["value {n}"]}}}}"#) + "\n"
            })
            .collect();
        let answer = active.ask("POST", "/v1/ds?ack=durable", lines.as_bytes()).doing("importing objects")?;
        if answer.status != 200 {
            return Err(Error::Failed(format!("importing objects: {}", answer.text())));
        }
    }
    Ok(())
}

/// Everything is on the backup, files included.
fn rest(pair: &Pair) -> Result<()> {
    process::wait_for("the pair is at rest", REST, || {
        let synced = pair.a.ask("POST", "/v1/sync", b"").is_ok_and(|answer| answer.status == 200);
        let status = pair.a.status()?;
        (synced && status["alone"] == false && status["mirror"]["state"] == "current").then_some(())
    })
}

/// The four processes.
fn processes(pair: &Pair) -> Vec<Option<i32>> {
    pair.members().iter().flat_map(|member| [member.supervisor_pid(), member.worker_pid()]).collect()
}

/// Sums what `of` reads of every thread of the four processes.
fn spent(pair: &Pair, of: fn(&str) -> Option<f64>) -> Result<f64> {
    let mut sum = 0.0;
    for pid in processes(pair) {
        let pid = pid.ok_or_else(|| Error::Failed(format!("a process of the pair is gone\n{}", pair.logs())))?;
        for task in fs::read_dir(format!("/proc/{pid}/task")).doing("the threads of a member")?.flatten() {
            let dir = task.path().display().to_string();
            sum += of(&dir).ok_or_else(|| Error::Failed(format!("{dir} cannot be read")))?;
        }
    }
    Ok(sum)
}

/// Nanoseconds on a processor (the kernel's sched-stats documentation).
fn cpu_ns(task: &str) -> Option<f64> {
    fs::read_to_string(format!("{task}/schedstat")).ok()?.split_whitespace().next()?.parse().ok()
}

fn wake_ups(task: &str) -> Option<f64> {
    let status = fs::read_to_string(format!("{task}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
}

/// Proportional set size of a member's two processes.
pub(crate) fn memory_mib(member: &Member) -> Result<f64> {
    let mut kib = 0.0;
    for pid in [member.supervisor_pid(), member.worker_pid()].into_iter().flatten() {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).doing("a member's memory")?;
        let pss =
            rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        kib += pss.unwrap_or(0.0);
    }
    Ok(kib / 1024.0)
}

/// What the heartbeats cost without a member around them: two threads that send, answer and receive as many datagrams
/// as a pair does, in percent of one core.
fn beats_alone(span: Duration) -> io::Result<f64> {
    let (bytes, paths, per_s) = BEAT;
    let ends = [UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?];
    ends[0].connect(ends[1].local_addr()?)?;
    ends[1].connect(ends[0].local_addr()?)?;
    let every = Duration::from_secs(1) / per_s;
    let until = Instant::now() + span;
    // Both stay open until both threads are done: a datagram to a closed socket would be refused.
    let [near, far] = [ends[0].try_clone()?, ends[1].try_clone()?];
    // Each end sends its own heartbeats; the far one answers besides.
    let end = move |socket: UdpSocket, answers: bool| -> io::Result<f64> {
        let (mut piece, mut due) = (vec![0_u8; bytes], Instant::now());
        while Instant::now() < until {
            let left = due.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut piece) {
                Ok(_) if answers && piece[0] == 0 => {
                    piece[0] = 1;
                    socket.send(&piece)?;
                }
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
            if Instant::now() >= due {
                due += every;
                piece[0] = u8::from(answers);
                for _ in 0..paths {
                    socket.send(&piece)?;
                }
            }
        }
        let spent = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from)?;
        Ok(spent.as_secs_f64())
    };
    let far = thread::spawn(move || end(far, true));
    let near = thread::spawn(move || end(near, false));
    let died = |_| Err(io::Error::other("the other end died"));
    let spent = far.join().unwrap_or_else(died)? + near.join().unwrap_or_else(died)?;
    Ok(spent / span.as_secs_f64() * 100.0)
}

//! Processes of a benchmark: bounded commands, servers that end with their guard, and an end to all of them when the
//! benchmark is interrupted.
//!
//! Always: SIGINT, SIGTERM and SIGHUP end every descendant before this process ends. Never: a wait without a bound, or
//! a signal to a process that is no descendant.

use std::{
    fs,
    io::{self, Read},
    os::unix::net::UnixStream,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    low_level::pipe,
};

use crate::error::{Doing, Error, Result};

/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// The exit code after an interruption.
const INTERRUPTED: i32 = 130;

/// Ends every descendant, and then this process, when it is told to end.
///
/// # Errors
/// If the handlers cannot be set.
pub fn end_all_on_signals() -> io::Result<()> {
    let (mut bell, ringer) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        pipe::register(signal, ringer.try_clone()?)?;
    }
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if matches!(bell.read(&mut [0]), Ok(1)) {
            end_descendants();
            std::process::exit(INTERRUPTED);
        }
    })?;
    Ok(())
}

/// Kills everything that this process started, and what that started.
pub fn end_descendants() {
    let mut found = vec![std::process::id()];
    let mut next = 0;
    // All are listed before the first is killed: an orphan would be nobody's child.
    while let Some(&parent) = found.get(next) {
        found.extend(children(parent));
        next += 1;
    }
    for &pid in &found[1..] {
        if let Ok(pid) = i32::try_from(pid) {
            // One that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

fn children(parent: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// A server that ends with its guard.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Starts `command`, silent.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(command: &mut Command) -> Result<Self> {
        let what = format!("starting {}", command.get_program().display());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        child.map(Self).doing(&what)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Only a server that has ended already cannot be killed or waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end, killing it after `within`; how long it took.
///
/// # Errors
/// When it does not start, fails, or does not end in time; what it wrote on stderr is in the message.
pub fn run(command: &mut Command, within: Duration) -> Result<Duration> {
    let name = command.get_program().display().to_string();
    let messages = tempfile::tempfile().doing("a temporary file")?;
    let start = Instant::now();
    let child = command
        .stdin(Stdio::null())
        .stdout(messages.try_clone().doing("a temporary file")?)
        .stderr(messages.try_clone().doing("a temporary file")?)
        .spawn()
        .doing(&format!("starting {name}"))?;
    match wait(child, start + within).doing(&format!("waiting for {name}"))? {
        Some(status) if status.success() => Ok(start.elapsed()),
        ended => {
            let how = ended.map_or_else(|| format!("did not end within {within:?}"), |status| status.to_string());
            Err(Error::Failed(format!("{name}: {how}: {}", head_of(&messages))))
        }
    }
}

fn wait(child: Child, until: Instant) -> io::Result<Option<ExitStatus>> {
    let mut guard = Server(child);
    loop {
        if let Some(status) = guard.0.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > until {
            return Ok(None);
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

fn head_of(mut messages: &fs::File) -> String {
    let mut text = Vec::new();
    // A message that cannot be read is no message.
    let _ = io::Seek::rewind(&mut messages);
    let _ = messages.take(2000).read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Asks every few milliseconds until there is an answer.
///
/// # Errors
/// When there is none within `within`: a message with `what`.
pub fn wait_for<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() > within {
            return Err(Error::Failed(format!("waited {within:?} in vain until {what}")));
        }
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// The processor time, in seconds, that process `pid` and its threads, ended ones too, have had; `None` when it is gone.
#[must_use]
pub fn cpu_s(pid: i32) -> Option<f64> {
    /// USER_HZ: the kernel counts in this unit towards users, whatever its own clock.
    const TICKS_A_SECOND: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may hold anything, so fields are counted from its end: utime and stime are the 14th and 15th (proc(5)).
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks: Option<Vec<f64>> = fields.split_whitespace().skip(11).take(2).map(|field| field.parse().ok()).collect();
    ticks.map(|ticks| ticks.iter().sum::<f64>() / TICKS_A_SECOND)
}

/// Whether a command is installed.
#[must_use]
pub fn is_installed(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_counted() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = cpu_s(own).unwrap();
        wait_for("time is spent", Duration::from_secs(20), || {
            (0..100_000_u64).fold(0, |sum, next| std::hint::black_box(sum + next));
            (cpu_s(own)? > before).then_some(())
        })
        .unwrap();
        assert_eq!(cpu_s(-1), None);
    }

    #[test]
    fn commands_end_in_time_or_are_ended() {
        assert!(run(&mut Command::new("true"), Duration::from_secs(5)).is_ok());
        let failed = run(Command::new("sh").args(["-c", "echo why >&2; exit 3"]), Duration::from_secs(5));
        assert!(failed.is_err_and(|error| error.to_string().contains("why")));
        let start = Instant::now();
        let late = run(Command::new("sleep").arg("60"), Duration::from_millis(50));
        assert!(late.is_err_and(|error| error.to_string().contains("did not end")));
        assert!(start.elapsed() < Duration::from_secs(30));
        assert!(is_installed("sh") && !is_installed("no-such-command"));
    }
}

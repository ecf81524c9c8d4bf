//! One member: its files, its processes, its socket.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Answer, HttpError, Options, executable, request, wait_until};

/// The pair's name in every configuration.
pub(super) const PAIR: &str = "test";

/// Which process of a member a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    /// The worker.
    Worker,
    /// The supervisor.
    Supervisor,
    /// Both at once.
    Both,
}

/// A member's files and, while it runs, its supervisor process.
#[derive(Debug)]
pub struct Member {
    name: char,
    dir: PathBuf,
    /// What it is started through: a command that becomes the member, so that its process id is the supervisor's.
    through: Vec<String>,
    child: Option<Child>,
}

/// Ports that nothing listens on at this moment, for TCP and UDP alike, below those that the kernel gives to outgoing
/// connections: it would take one for a dial while its member is down.
pub(super) fn free_ports<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 22_000;
    let offset = u16::try_from(std::process::id() % u32::from(COUNT / 40)).unwrap_or_default() * 40;
    let mut held = Vec::new();
    while held.len() < N {
        let port = FIRST + (offset + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        if let (Ok(tcp), Ok(udp)) = (TcpListener::bind(("127.0.0.1", port)), UdpSocket::bind(("127.0.0.1", port))) {
            held.push((port, tcp, udp));
        }
    }
    std::array::from_fn(|index| held[index].0)
}

/// Makes the pair's authority and both certificates with the product's own command.
pub(super) fn make_keys(dir: &Path) {
    let output = Command::new(executable())
        .args(["keys", "init", "--dir"])
        .arg(dir.join("keys"))
        .args(["--member", "A=127.0.0.1", "--member", "B=127.0.0.1"])
        .output()
        .expect("the executable starts");
    assert!(output.status.success(), "keys init: {}", String::from_utf8_lossy(&output.stderr));
}

/// A status document for a message, or that there is none.
pub(super) fn shown(status: Option<&serde_json::Value>) -> String {
    status.map_or_else(|| "does not answer".into(), |status| format!("{status:#}"))
}

impl Member {
    pub(super) fn prepare(pair_dir: &Path, name: char, addresses: [SocketAddr; 4], options: &Options) -> Self {
        let dir = pair_dir.join(name.to_string());
        let root = dir.join("root");
        fs::create_dir_all(&root).expect("the member's root");
        let mut mirrored = Vec::new();
        for entry in &options.mirror {
            let plain = entry.trim_start_matches('+');
            fs::create_dir_all(root.join(plain.trim_start_matches('/'))).expect("a mirrored directory");
            mirrored.push(entry.as_str());
        }
        // An aux that is the main address is the default, and may not be named.
        let aux = |main: SocketAddr, aux: SocketAddr| {
            if main == aux { String::new() } else { format!("aux = \"{aux}\"") }
        };
        let config = format!(
            r#"[pair]
name = "{PAIR}"
member = "{name}"

[members.A]
name = "host-a"
address = "{}"
{}

[members.B]
name = "host-b"
address = "{}"
{}

[storage]
dir = "{dir}/storage"

[api]
socket = "{dir}/api.sock"

[security]
dir = "{keys}/{name}"

[mirror]
root = "{dir}/root"

[parameters]
"CustomMirrorDir" = "{}"
"#,
            addresses[0],
            aux(addresses[0], addresses[1]),
            addresses[2],
            aux(addresses[2], addresses[3]),
            mirrored.join(";"),
            dir = dir.display(),
            keys = pair_dir.join("keys").display(),
        );
        fs::write(dir.join("ringpair.toml"), config).expect("the configuration file");
        let mut through = Vec::new();
        if let Some(places) = &options.places {
            through.extend(["ip", "netns", "exec"].map(str::to_owned));
            through.push(places[usize::from(name == 'B')].namespace.clone());
        }
        through.extend_from_slice(&options.through);
        let mut member = Self { name, dir, through, child: None };
        member.set(&options.set);
        member
    }

    /// Remembers `--set` overrides for every later start.
    fn set(&mut self, overrides: &[(String, String)]) {
        let lines: String = overrides.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
        fs::write(self.dir.join("overrides"), lines).expect("the overrides");
    }

    /// `A` or `B`.
    #[must_use]
    pub fn name(&self) -> char {
        self.name
    }

    /// The directory that this member's mirrored paths lie below.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Its storage directory.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.dir.join("storage")
    }

    /// Its API socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("api.sock")
    }

    /// Its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("ringpair.toml")
    }

    /// Starts the member (supervisor and worker) with its log in a file.
    ///
    /// # Panics
    /// When it runs already or cannot be started.
    pub fn start(&mut self, arguments: &[&str]) {
        assert!(self.child.is_none(), "member {} runs already", self.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).expect("the log file");
        let overrides = fs::read_to_string(self.dir.join("overrides")).expect("the overrides");
        let mut command = match self.through.split_first() {
            None => Command::new(executable()),
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(executable());
                command
            }
        };
        command.arg("--config").arg(self.config()).arg("run").args(arguments);
        for line in overrides.lines() {
            command.arg("--set").arg(line);
        }
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.expect("the executable starts"));
    }

    /// The supervisor's process id, while it runs.
    #[must_use]
    pub fn supervisor_pid(&self) -> Option<i32> {
        self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok())
    }

    /// The worker's process id, while there is one.
    #[must_use]
    pub fn worker_pid(&self) -> Option<i32> {
        let supervisor = self.supervisor_pid()?;
        let children = fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Sends `signal` to a process of this member; `false` when it is not there.
    pub fn signal(&self, victim: Victim, signal: Signal) -> bool {
        let send = |pid: Option<i32>| pid.is_some_and(|pid| kill(Pid::from_raw(pid), signal).is_ok());
        match victim {
            Victim::Worker => send(self.worker_pid()),
            Victim::Supervisor => send(self.supervisor_pid()),
            Victim::Both => {
                let worker = self.worker_pid();
                send(self.supervisor_pid()) & send(worker)
            }
        }
    }

    /// Reaps the supervisor if it has ended, within `patience`; whether it has.
    pub fn reap(&mut self, patience: Duration) -> bool {
        let start = Instant::now();
        while let Some(child) = &mut self.child {
            match child.try_wait() {
                Ok(None) if start.elapsed() < patience => std::thread::park_timeout(Duration::from_millis(2)),
                Ok(None) => return false,
                _ => self.child = None,
            }
        }
        true
    }

    /// Stops the member as systemd would, and waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn stop(&mut self) {
        if self.child.is_some() {
            self.signal(Victim::Supervisor, Signal::SIGTERM);
            let ended = self.reap(super::PATIENCE);
            assert!(ended, "member {} does not stop:\n{}", self.name, self.log_tail());
        }
    }

    /// Asks over the socket.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn ask(&self, method: &str, target: &str, body: &[u8]) -> Result<Answer, HttpError> {
        request(&self.socket(), method, target, body, Duration::from_secs(20))
    }

    /// `GET target`.
    ///
    /// # Errors
    /// When nobody answers.
    pub fn get(&self, target: &str) -> Result<Answer, HttpError> {
        self.ask("GET", target, b"")
    }

    /// Whether `/active` says 200.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.get("/active").is_ok_and(|answer| answer.status == 200)
    }

    /// The status document.
    #[must_use]
    pub fn status(&self) -> Option<serde_json::Value> {
        self.get("/v1/status").ok().filter(|answer| answer.status == 200).map(|answer| answer.json())
    }

    /// Runs a command of the executable against this member; its exit code, output and messages.
    ///
    /// # Panics
    /// When the executable cannot be started.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = Command::new(executable())
            .arg("--config")
            .arg(self.config())
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("the executable starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// Waits until `/active` says 200; how long it took.
    pub fn wait_active(&self) -> Duration {
        wait_until(&format!("member {} is active\n{}", self.name, self.log_tail()), || self.is_active())
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The last lines of the member's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        for victim in [Victim::Both, Victim::Both] {
            self.signal(victim, Signal::SIGKILL);
            self.signal(victim, Signal::SIGCONT);
        }
        self.reap(Duration::from_secs(5));
    }
}

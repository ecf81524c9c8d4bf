//! The supervisor as a real process, with a tiny worker of this test executable: killed, stopped, ending too often,
//! told to stop; the peer dials it over the real transport.
//!
//! Always: every wait has a bound, and every process is ended by the test that started it. Never: a real worker, which
//! the tests of whole members have.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{
    env, fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{self, Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use ringpair::{
    config::Config,
    ring::Shared,
    supervisor::{
        Start,
        answer::Tail,
        estate::Estate,
        link::{FromWorker, Received, ToWorker},
        run,
        sockets::Inherited,
        worker::WorkerCommand,
    },
    transport::{
        LaneOptions, Protection, StrangerLimits,
        blocking::{BlockingLane, Endpoint},
    },
};
use ringpair_core::supervisor::{Left, WorkerStatus};
use ringpair_wire::{
    codec::Codec,
    control::{Control, GiveBackReason, GrantId, Role},
    hello::{Hello, Speaker, VERSIONS},
    id::{ChainHash, Epoch, MemberId, Position, Seq},
    lane::{LaneKind, MessageKind, PathKind},
};

/// The bound of every wait: far beyond what anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const EPOCH: Epoch = Epoch(65_537);
const GRANT: GrantId = GrantId { epoch: EPOCH, number: 3 };
const END: Position = Position { epoch: EPOCH, seq: Seq(1042), chain: ChainHash(9) };
const FRAMES: [&[u8]; 2] = [b"the first frame that the backup lacks", b"the second"];

/// Not a test: what a started process of this executable does, named by `role=…` among its arguments.
#[test]
fn stub_process() {
    let arguments: Vec<String> = env::args().collect();
    let argument = |key: &str| arguments.iter().find_map(|argument| argument.strip_prefix(key)).map(str::to_owned);
    let code = match (argument("role="), argument("dir=")) {
        (Some(role), Some(dir)) if role == "supervisor" => {
            supervisor_main(Path::new(&dir), &argument("worker=").unwrap())
        }
        (Some(role), Some(dir)) if role == "worker" => worker_main(Path::new(&dir), &argument("worker=").unwrap()),
        _ => return,
    };
    process::exit(code);
}

fn stub_arguments(role: &str, dir: &Path, worker: &str) -> Vec<String> {
    let fixed = ["--exact", "stub_process", "--nocapture"].map(str::to_owned);
    let told = [format!("role={role}"), format!("dir={}", dir.display()), format!("worker={worker}")];
    fixed.into_iter().chain(told).collect()
}

fn supervisor_main(dir: &Path, worker: &str) -> i32 {
    let config = Config::load(&dir.join("ringpair.toml"), &[]).expect("the test's configuration");
    let arguments = stub_arguments("worker", dir, worker).into_iter().map(Into::into).collect();
    let start = Start {
        command: WorkerCommand::this(arguments),
        estate: Box::new(TextEstate(dir.join("estate"))),
        tail: Arc::new(TwoFrames),
        read_again: Box::new(|| Err("not in this test".into())),
    };
    match run(&config, start) {
        Ok(code) => code.into(),
        Err(error) => {
            println!("{error}");
            1
        }
    }
}

/// A control file of one line: `ROLE RIGHT`, with the right `out`, `held` or `none`.
struct TextEstate(PathBuf);

impl Estate for TextEstate {
    fn left(&mut self) -> io::Result<Option<Left>> {
        let text = fs::read_to_string(&self.0)?;
        let role = match text.split(' ').next() {
            Some("active") => Role::Active,
            Some("backup") => Role::Backup,
            _ => Role::None,
        };
        let right = (text.ends_with("out") || text.ends_with("held")).then_some(GRANT);
        Ok(Some(Left { role, epoch: EPOCH, right, end: END }))
    }

    fn persist_release(&mut self) -> io::Result<()> {
        fs::write(&self.0, "none released")
    }

    fn persist_give_back(&mut self, grant: GrantId) -> io::Result<()> {
        assert_eq!(grant, GRANT);
        fs::write(&self.0, "backup none")
    }
}

struct TwoFrames;

impl Tail for TwoFrames {
    fn serve(&self, after: &Position, send: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Option<Position>> {
        if after.seq != Seq(1000) {
            return Ok(None);
        }
        FRAMES.iter().try_for_each(|frame| send(frame))?;
        Ok(Some(END))
    }
}

/// A worker: `serve` and `deaf` serve until they are told to stop, `deaf` without heeding it; others end at once with
/// their exit code.
fn worker_main(dir: &Path, worker: &str) -> i32 {
    let inherited = Inherited::take().expect("a supervisor");
    inherited.sockets.main.local_addr().expect("a listening socket");
    append(dir, "workers", &format!("{}\n", process::id()));
    if let Ok(code) = worker.parse() {
        return code;
    }
    let link = inherited.link;
    let status = WorkerStatus { role: Role::Active, epoch: EPOCH, ..WorkerStatus::default() };
    // A supervisor that is killed already is heard of below.
    let _ = link.send(&FromWorker::Status(status));
    let _ = link.send(&FromWorker::Ready);
    for _ in 0_u64.. {
        let mut fds = [PollFd::new(link.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(50_u16));
        match link.receive::<ToWorker>() {
            Ok(Received::Message(ToWorker::Stop)) if worker == "serve" => return 0,
            Ok(Received::Message(ToWorker::Reload)) => append(dir, "reloads", "reload\n"),
            Ok(Received::Eof) | Err(_) => {
                append(dir, "orphans", &format!("{}\n", process::id()));
                return 0;
            }
            Ok(_) => {}
        }
        let _ = link.send(&FromWorker::Turn);
    }
    0
}

fn append(dir: &Path, name: &str, text: &str) {
    let mut file = fs::OpenOptions::new().create(true).append(true).open(dir.join(name)).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// A supervisor process of this executable in a directory of its own.
struct Member {
    dir: tempfile::TempDir,
    child: Child,
    address: SocketAddr,
}

impl Member {
    fn start(worker: &str, estate: &str, hooks: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port that was free a moment ago: nobody else in this test asks for a certain one.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let script = "#!/bin/sh\necho \"$1 $2 $RINGPAIR_REASON $(cat \"${0%/*}/estate\")\" >> \"${0%/*}/hooked\"\n";
        fs::write(dir.path().join("discontinue"), script).unwrap();
        fs::set_permissions(dir.path().join("discontinue"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("estate"), estate).unwrap();
        let text = format!(
            "[pair]\nname = \"test\"\nmember = \"A\"\n[members.A]\nname = \"a\"\naddress = \"{address}\"\n\
             [members.B]\nname = \"b\"\naddress = \"127.0.0.1:9\"\n[storage]\ndir = \"{0}/storage\"\n\
             [security]\nmode = \"off\"\n[detection]\nheartbeat_ms = 500\n[hooks]\n{1}\n",
            dir.path().display(),
            hooks.replace("DIR", &dir.path().display().to_string()),
        );
        fs::write(dir.path().join("ringpair.toml"), text).unwrap();
        let child = supervisor_process(dir.path(), worker);
        Self { dir, child, address }
    }

    fn lines(&self, name: &str) -> Vec<String> {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The process ids of the workers so far, once there are `count`.
    fn workers(&self, count: usize) -> Vec<Pid> {
        wait_for(&format!("{count} workers"), || self.lines("workers").len() >= count);
        self.lines("workers").iter().map(|pid| Pid::from_raw(pid.parse().unwrap())).collect()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The workers see the end of their link and end by themselves; a stopped one cannot.
        for pid in self.lines("workers") {
            let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
        }
    }
}

fn supervisor_process(dir: &Path, worker: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(stub_arguments("supervisor", dir, worker))
        .stdin(Stdio::null())
        .stdout(fs::File::create(dir.join("output")).unwrap())
        .spawn()
        .unwrap()
}

fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    wait_for("the end of the supervisor", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come");
        let _ = poll(&mut [], PollTimeout::from(2_u16));
    }
}

fn is_gone(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// The peer's end, B.
fn peer() -> Endpoint {
    let hello = Hello {
        versions: VERSIONS,
        pair: "test".into(),
        member: MemberId::B,
        instance: 1,
        lane: LaneKind::Ping,
        path: PathKind::Main,
        speaker: Speaker::Worker,
    };
    let options = LaneOptions::default_for(LaneKind::Ping);
    Endpoint::new(&Protection::Off, hello, StrangerLimits::default(), options).unwrap()
}

fn dial(address: SocketAddr, lane: LaneKind) -> BlockingLane {
    let mut dialed = None;
    wait_for("a supervisor that answers", || {
        dialed = peer().dial(address, lane, PathKind::Main, Instant::now() + Duration::from_secs(2)).ok();
        dialed.is_some()
    });
    dialed.unwrap()
}

fn next(lane: &mut BlockingLane) -> Option<(MessageKind, Shared)> {
    lane.receive(Instant::now() + PATIENCE).unwrap()
}

fn next_control(lane: &mut BlockingLane) -> Control {
    let (kind, body) = next(lane).expect("a message, not the end");
    assert_eq!(kind, MessageKind::Control);
    Control::from_bytes(&body).unwrap()
}

fn say(lane: &mut BlockingLane, message: &Control) {
    lane.send(MessageKind::Control, &message.to_bytes(), Instant::now() + PATIENCE).unwrap();
}

// REQ: OPS-211, SM-161
#[test]
fn a_killed_actives_role_is_released_to_the_peer_that_dials() {
    let member = Member::start("serve", "active out", "discontinue = \"DIR/discontinue\"");
    kill(member.workers(1)[0], Signal::SIGKILL).unwrap();
    let mut ping = dial(member.address, LaneKind::Ping);
    assert_eq!(ping.hello().speaker, Speaker::Supervisor);
    assert_eq!(next_control(&mut ping), Control::Dying { epoch: EPOCH, hold_ms: 10_500 });
    assert_eq!(next_control(&mut ping), Control::Released { epoch: EPOCH, end: END, controlled: false });
    assert_eq!(fs::read_to_string(member.dir.path().join("estate")).unwrap(), "none released", "persisted before said");
    assert_eq!(member.lines("hooked"), ["discontinue 65537 worker-died active out"], "the hook ran before the release");
    let mut ds = dial(member.address, LaneKind::Ds);
    say(&mut ds, &Control::FetchTail { after: Position { seq: Seq(1000), ..END } });
    for frame in FRAMES {
        assert!(matches!(next(&mut ds), Some((MessageKind::Frame, body)) if &body[..] == frame));
    }
    assert_eq!(next_control(&mut ds), Control::TailEnd { end: END, served: true });
    member.workers(2);
}

#[test]
fn a_tail_that_cannot_be_served_is_said_so_and_a_closing_peer_ends_the_wait() {
    let member = Member::start("serve", "active out", "");
    kill(member.workers(1)[0], Signal::SIGKILL).unwrap();
    let mut ping = dial(member.address, LaneKind::Ping);
    assert!(matches!(next_control(&mut ping), Control::Dying { hold_ms: 500, .. }));
    assert!(matches!(next_control(&mut ping), Control::Released { .. }));
    let mut ds = dial(member.address, LaneKind::Ds);
    let unknown = Position { seq: Seq(7), ..END };
    say(&mut ds, &Control::FetchTail { after: unknown });
    assert_eq!(next_control(&mut ds), Control::TailEnd { end: unknown, served: false });
    say(&mut ping, &Control::FetchTail { after: unknown });
    assert_eq!(next_control(&mut ping), Control::TailEnd { end: unknown, served: false }, "frames need a ds lane");
    let started = Instant::now();
    ping.close(Instant::now() + PATIENCE);
    member.workers(2);
    assert!(started.elapsed() < PATIENCE);
}

#[test]
fn a_backups_right_is_given_back_for_its_dead_worker() {
    let member = Member::start("serve", "backup held", "");
    kill(member.workers(1)[0], Signal::SIGKILL).unwrap();
    let mut ping = dial(member.address, LaneKind::Ping);
    assert_eq!(next_control(&mut ping), Control::GiveBack { id: GRANT, reason: GiveBackReason::WorkerDied });
    assert_eq!(fs::read_to_string(member.dir.path().join("estate")).unwrap(), "backup none");
    assert!(next(&mut ping).is_none(), "its new worker speaks on new connections");
    member.workers(2);
}

#[test]
fn a_lonely_active_is_started_again_and_releases_nothing() {
    let member = Member::start("serve", "active out", "discontinue = \"DIR/discontinue\"");
    kill(member.workers(1)[0], Signal::SIGKILL).unwrap();
    // A stranger is not the peer.
    let _stranger = TcpStream::connect(member.address).unwrap();
    member.workers(2);
    assert_eq!(fs::read_to_string(member.dir.path().join("estate")).unwrap(), "active out");
    assert!(member.lines("hooked").is_empty());
}

#[test]
fn a_frozen_worker_is_killed_and_replaced() {
    let member = Member::start("serve", "active none", "");
    let first = member.workers(1)[0];
    kill(first, Signal::SIGSTOP).unwrap();
    member.workers(2);
    assert!(is_gone(first), "killed before the next was started");
}

#[test]
fn a_worker_that_ends_too_often_waits() {
    let mut member = Member::start("1", "active none", "discontinue = \"DIR/discontinue\"");
    member.workers(4);
    // The fifth would come a minute after the second: the stop comes first and ends the service.
    member.signal(Signal::SIGTERM);
    assert_eq!(member.ended().code(), Some(0));
    assert_eq!(member.lines("workers").len(), 4, "one start and three restarts");
    assert_eq!(member.lines("hooked"), ["discontinue 65537 worker-died active none"]);
}

#[test]
fn a_configuration_error_of_the_worker_is_the_supervisors() {
    let mut member = Member::start("2", "none none", "");
    assert_eq!(member.ended().code(), Some(2));
    assert_eq!(member.lines("workers").len(), 1);
}

#[test]
fn a_stop_is_passed_on_and_ends_both() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut member = Member::start("serve", "active none", "");
        let worker = member.workers(1)[0];
        member.signal(signal);
        assert_eq!(member.ended().code(), Some(0));
        assert!(is_gone(worker));
        assert_eq!(member.lines("workers").len(), 1);
    }
}

#[test]
fn a_worker_that_does_not_stop_is_killed_and_its_service_ended() {
    let mut member = Member::start("deaf", "active none", "timeout_s = 1\ndiscontinue = \"DIR/discontinue\"");
    let worker = member.workers(1)[0];
    member.signal(Signal::SIGTERM);
    assert_eq!(member.ended().code(), Some(0));
    assert!(is_gone(worker));
    assert_eq!(member.lines("hooked").len(), 1);
}

#[test]
fn a_reload_is_passed_on() {
    let member = Member::start("serve", "active none", "");
    member.workers(1);
    member.signal(Signal::SIGHUP);
    wait_for("the reload", || member.lines("reloads").len() == 1);
}

#[test]
fn a_worker_outlives_its_supervisor_only_to_end() {
    let mut member = Member::start("serve", "active none", "");
    let worker = member.workers(1)[0];
    member.signal(Signal::SIGKILL);
    member.ended();
    wait_for("the worker's end", || is_gone(worker));
    assert_eq!(member.lines("orphans"), [worker.to_string()]);
    // The next supervisor gets lock and address as soon as the old worker has let go of them.
    member.child = supervisor_process(member.dir.path(), "serve");
    member.workers(2);
}

#[test]
fn a_second_member_on_the_same_storage_is_refused() {
    let member = Member::start("serve", "active none", "");
    member.workers(1);
    let mut second = supervisor_process(member.dir.path(), "serve");
    assert_eq!(ended(&mut second).code(), Some(1));
    let output = fs::read_to_string(member.dir.path().join("output")).unwrap();
    assert!(output.contains("is in use by process") && output.contains(&member.child.id().to_string()), "{output}");
}

#[test]
fn strangers_do_not_keep_the_peer_out() {
    let member = Member::start("serve", "active out", "");
    kill(member.workers(1)[0], Signal::SIGKILL).unwrap();
    let strangers: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(member.address).unwrap()).collect();
    let mut ping = dial(member.address, LaneKind::Ping);
    assert!(matches!(next_control(&mut ping), Control::Dying { .. }));
    assert!(matches!(next_control(&mut ping), Control::Released { .. }));
    drop(strangers);
}

#[test]
fn the_supervisors_memory_is_small_and_locked() {
    let member = Member::start("serve", "active none", "");
    member.workers(1);
    let status = fs::read_to_string(format!("/proc/{}/status", member.child.id())).unwrap();
    let kib = |key: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    if nix::unistd::Uid::effective().is_root() {
        assert!(kib("VmLck:") > 0, "{status}");
    }
    // Containers may keep even root from it: then it is only a warning.
    let permitted =
        Command::new("sh").args(["-c", "echo -900 > /proc/self/oom_score_adj"]).stderr(Stdio::null()).status();
    if permitted.unwrap().success() {
        let score = |pid: String| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert_eq!(score(member.child.id().to_string()).trim(), "-900");
        assert_ne!(score(member.workers(1)[0].to_string()).trim(), "-900", "the worker is not spared");
    }
    let anonymous = kib("RssAnon:");
    assert!(anonymous < 16 * 1024, "{anonymous} KiB of its own");
}

//! The API over real sockets, against a stand-in for the stream thread that owns a real tree.

mod commands;
mod objects;
mod refusals;
mod streams;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use ringpair_wire::{
    ds::{Change, DsPath},
    id::{AckLevel, Epoch, Seq, Version},
};
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::{
    auth::{SocketRule, Token},
    backend::{
        ActiveMember, Backend, Failure, MirrorList, MirrorTest, Parts, Request, RoleAnswer, SwitchDone, SyncDone,
        VerifyReport, WatchChange, WatchWhat, WriteDone, WriteRequest,
    },
    events::{Event, EventLog},
    server::{Listeners, bind_tcp, bind_unix, serve},
    status::{Blocker, BlockerKind, Mode, Role, Status, StatusCell},
};
use crate::ds::{ContentStore, Tree, archive::DivergenceArchive, edit};

const TOKEN: &str = "test-token-0123456789";

/// How the stand-in behaves.
#[derive(Default)]
struct Behaviour {
    backup: AtomicBool,
    alone: AtomicBool,
    never_reach: AtomicBool,
    silent: AtomicBool,
    handled: AtomicUsize,
}

/// A member whose stream thread is [`respond`].
struct Member {
    dir: tempfile::TempDir,
    tcp: std::net::SocketAddr,
    behaviour: Arc<Behaviour>,
    events: EventLog,
    status: StatusCell,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Member {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let tree = Tree::default();
        let behaviour = Arc::new(Behaviour::default());
        let (events, status) =
            (EventLog::in_memory(), StatusCell::new(Status { pair: "p".into(), ..Status::default() }));
        let (backend, requests) = Backend::new(Parts {
            tree: tree.handle(),
            content: ContentStore::open(&dir.path().join("storage")).expect("a store"),
            archive: DivergenceArchive::open(&dir.path().join("storage")).expect("an archive"),
            status: status.clone(),
            events: events.clone(),
            default_ack: AckLevel::Durable,
            limits: crate::stream::native_limits(ringpair_wire::id::MemberId::A),
            wake: Box::new(|| {}),
        });
        let rule = SocketRule::new(None).expect("a rule");
        let unix = bind_unix(&dir.path().join("sub/api.sock"), &rule).expect("bound");
        let tcp = bind_tcp("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let address = tcp.local_addr().expect("an address");
        let (stop, stopped) = watch::channel(false);
        let how = Arc::clone(&behaviour);
        let responder = std::thread::spawn(move || respond(tree, &how, &requests));
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let listeners = Listeners { unix: (unix, rule), tcp: Some((tcp, Token::new(TOKEN))) };
            runtime.block_on(serve(listeners, backend.clone(), super::router(backend), stopped)).expect("served");
        });
        Self { dir, tcp: address, behaviour, events, status, stop, threads: vec![server, responder] }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("sub/api.sock")
    }

    /// One raw exchange over the Unix socket.
    fn raw(&self, request: &[u8]) -> (u16, String, Vec<u8>) {
        self.exchange(request, false)
    }

    /// The same; `ends` closes the sending half, so that a request that is not whole gets its answer.
    fn exchange(&self, request: &[u8], ends: bool) -> (u16, String, Vec<u8>) {
        let mut stream = UnixStream::connect(self.socket()).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream.write_all(request).expect("sent");
        if ends {
            stream.shutdown(Shutdown::Write).expect("shut");
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        split(&answer)
    }

    fn raw_tcp(&self, request: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.tcp).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        split(&answer)
    }

    /// A call over the Unix socket: status and document.
    fn call(&self, method: &str, target: &str, body: &str) -> (u16, Json) {
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let (status, _, body) = self.raw(request.as_bytes());
        (status, serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body))))
    }

    /// Opens a stream and returns its reader after the head.
    fn open(&self, target: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        write!(stream, "GET {target} HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
        stream
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            thread.join().expect("ended in order");
        }
    }
}

/// Status, head and body of an answer; chunks are put together.
fn split(answer: &[u8]) -> (u16, String, Vec<u8>) {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return (0, String::new(), answer.to_vec());
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut body = answer[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        let (mut rest, mut whole) = (&body[..], Vec::new());
        while let Some(line) = rest.windows(2).position(|two| two == b"\r\n") {
            let size = usize::from_str_radix(&String::from_utf8_lossy(&rest[..line]), 16).unwrap_or(0);
            if size == 0 || rest.len() < line + 2 + size {
                break;
            }
            whole.extend_from_slice(&rest[line + 2..line + 2 + size]);
            rest = &rest[line + 4 + size..];
        }
        body = whole;
    }
    (status, head, body)
}

/// The stand-in for the stream thread: resolves and applies at once; ends when the API is gone.
fn respond(mut tree: Tree, how: &Behaviour, requests: &crossbeam::channel::Receiver<Request>) {
    let mut seq = 0;
    let mut watchers: Vec<super::backend::WatchRequest> = Vec::new();
    while let Ok(request) = requests.recv() {
        how.handled.fetch_add(1, Ordering::SeqCst);
        if how.silent.load(Ordering::SeqCst) {
            continue;
        }
        let backup = how.backup.load(Ordering::SeqCst);
        match request {
            Request::Write(write) => answer_write(&mut tree, how, &mut seq, &mut watchers, write),
            Request::Role(reply) => {
                let role = if backup { Role::Backup } else { Role::Active };
                let answer = RoleAnswer { role, epoch: 65_537, exclusive: !backup, valid_for_ms: 350, ready: !backup };
                let _ = reply.send(Ok(answer));
            }
            Request::Switch(switch) => {
                assert_eq!(switch.origin.from, "unix");
                assert_eq!(switch.origin.uid, Some(nix::unistd::geteuid().as_raw()));
                let blocker =
                    Blocker { kind: BlockerKind::File, path: "/srv/x".into(), reason: "not there yet".into() };
                let answer = if switch.force {
                    Ok(SwitchDone { from: "a".into(), to: "b".into(), epoch: 131_072, took_ms: 12, pause_ms: 3 })
                } else {
                    Err(Failure::Refused { code: "blocked", message: "not current".into(), blockers: vec![blocker] })
                };
                let _ = switch.reply.send(answer);
            }
            Request::Mode(mode, reply) => {
                assert_eq!(mode, Mode::Manual);
                let _ = reply.send(Ok(()));
            }
            Request::Sync { reply, .. } if how.alone.load(Ordering::SeqCst) => {
                let _ = reply.send(Err(Failure::refused("alone", "no backup")));
            }
            Request::Sync { reply, .. } => drop(reply.send(Ok(SyncDone { took_ms: 4, seq }))),
            Request::Verify { deep, reply, .. } => {
                let _ = reply.send(Ok(VerifyReport { equal: deep, ..VerifyReport::default() }));
            }
            Request::Watch(mut watch) => {
                let (reply, _) = tokio::sync::oneshot::channel();
                let reply = std::mem::replace(&mut watch.reply, reply);
                if watch.from.is_some_and(|from| from.seq.0 > seq) {
                    let _ = reply.send(Err(Failure::refused("unknown-cursor", "common point 65537:1")));
                } else {
                    let _ = reply.send(Ok(Version { epoch: Epoch(65_537), seq: Seq(seq) }));
                    watchers.push(watch);
                }
            }
            Request::MirrorList(reply) => {
                drop(reply.send(Ok(MirrorList { watch: "fanotify".into(), ..MirrorList::default() })))
            }
            Request::MirrorTest { path, reply } => {
                assert_eq!(path, b"/srv/\xff");
                let path = String::from_utf8_lossy(&path).into_owned();
                let _ = reply.send(Ok(MirrorTest { path, mirrored: false, rule: "MirrorExceptions".into() }));
            }
            Request::Native(fd) => drop(fd),
            Request::Stop(reply) => drop(reply.send(Ok(()))),
        }
    }
}

fn answer_write(
    tree: &mut Tree,
    how: &Behaviour,
    seq: &mut u64,
    watchers: &mut Vec<super::backend::WatchRequest>,
    write: WriteRequest,
) {
    if how.backup.load(Ordering::SeqCst) {
        let active = Some(ActiveMember { name: "icserver1".into(), address: "10.60.0.2:3633".into() });
        return drop(write.reply.send(Err(Failure::NotActive { active })));
    }
    let changes = match edit::resolve_all(&tree.snapshot(), write.operations) {
        Ok(changes) => changes,
        Err(error) => return drop(write.reply.send(Err(error.into()))),
    };
    let alone = how.alone.load(Ordering::SeqCst);
    for change in &changes {
        *seq += 1;
        let version = Version { epoch: Epoch(65_537), seq: Seq(*seq) };
        tree.apply(change, version);
        let what = match change {
            Change::Put { path, .. } => WatchWhat::Object(Arc::clone(tree.snapshot().get(path).expect("it was put"))),
            Change::Remove { path } => WatchWhat::Removed(path.clone()),
        };
        let change = WatchChange { version, level: AckLevel::Durable, alone, what };
        watchers.retain(|watch| watch.changes.try_send(change.clone()).is_ok());
    }
    let version = Version { epoch: Epoch(65_537), seq: Seq(*seq) };
    if how.never_reach.load(Ordering::SeqCst) {
        let failure = Failure::NotReached { version: Some(version), message: "the backup did not confirm".into() };
        return drop(write.reply.send(Err(failure)));
    }
    let level = if alone && write.ack != AckLevel::Async { AckLevel::Local } else { write.ack };
    drop(write.reply.send(Ok(WriteDone { version, level, alone })));
}

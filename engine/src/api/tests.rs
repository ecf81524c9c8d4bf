//! The API over real sockets, against a stand-in for the stream thread that owns a real tree.

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
            runtime.block_on(serve(listeners, super::router(backend), stopped)).expect("served");
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

#[test]
fn an_object_is_put_read_listed_digested_exported_and_removed() {
    let member = Member::start();
    let body = r#"{"class":"User","attributes":{"Extension":["101"],"Workgroups":["Sales","Support"]}}"#;
    let (status, done) = member.call("PUT", "/v1/ds/CONFIG/Users/Default%20User", body);
    assert_eq!(status, 200, "{done}");
    assert_eq!(done["version"], json!({"epoch": 65_537, "seq": 1}));
    assert_eq!(
        (&done["level"], &done["alone"], &done["path"]),
        (&json!("durable"), &json!(false), &json!("/CONFIG/Users/Default User"))
    );
    let (status, object) = member.call("GET", "/v1/ds/config/users/default%20user", "");
    assert_eq!(status, 200);
    assert_eq!(object["path"], "/CONFIG/Users/Default User", "kept in its case, found in any (REP-125)");
    assert_eq!(object["attributes"]["Workgroups"], json!(["Sales", "Support"]));
    let (status, same) = member.call("GET", "/v1/ds/%24%7BCONFIG%7D%5CUsers%5CDefault%20User", "");
    assert_eq!((status, &same), (200, &object));
    let (_, list) = member.call("GET", "/v1/ds/CONFIG/Users?list", "");
    assert_eq!(list, json!({"path": "/CONFIG/Users", "children": ["/CONFIG/Users/Default User"]}));
    let (_, root) = member.call("GET", "/v1/ds/?digest", "");
    assert_eq!((&root["path"], &root["objects"]), (&json!("/"), &json!(3)));
    let (_, changed) = member.call(
        "PUT",
        "/v1/ds/CONFIG/Users/Default%20User?ack=applied",
        r#"{"attributes":{"Extension":null,"Workgroups":{"add":["New"]}}}"#,
    );
    assert_eq!(changed["level"], "applied");
    let (_, object) = member.call("GET", "/v1/ds/CONFIG/Users/Default%20User", "");
    assert_eq!(object["attributes"], json!({"Workgroups": ["Sales", "Support", "New"]}));
    let (status, _, lines) = member.raw(b"GET /v1/ds/?export HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert_eq!(status, 200);
    let lines: Vec<Json> = lines
        .split(|b| *b == b'\n')
        .filter(|l| !l.is_empty())
        .map(|l| serde_json::from_slice(l).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[2], object);
    let (status, error) = member.call("DELETE", "/v1/ds/CONFIG", "");
    assert_eq!((status, &error["error"]["code"]), (409, &json!("has-children")));
    assert_eq!(member.call("DELETE", "/v1/ds/CONFIG?recursive", "").0, 200);
    let (status, error) = member.call("GET", "/v1/ds/CONFIG", "");
    assert_eq!((status, &error["error"]["code"]), (404, &json!("not-found")));
}

#[test]
fn a_transaction_is_all_or_nothing_and_names_every_bad_line() {
    let member = Member::start();
    let (status, done) = member.call(
        "POST",
        "/v1/ds?ack=local",
        "{\"path\":\"/A\",\"attributes\":{\"x\":[\"1\"]}}\n{\"path\":\"/B\"}\n",
    );
    assert_eq!((status, &done["operations"], &done["level"]), (200, &json!(2), &json!("local")));
    let (status, error) = member.call("POST", "/v1/ds", "{\"path\":\"/C\"}\nnonsense\n{\"path\":\"no\"}\n");
    let text = error["error"]["message"].as_str().expect("a message");
    assert_eq!(status, 400);
    assert!(text.contains("line 2") && text.contains("line 3"), "{text}");
    assert_eq!(member.call("GET", "/v1/ds/C", "").0, 404, "nothing of it took effect");
    assert_eq!(member.call("POST", "/v1/ds", "").0, 400, "an empty one is a mistake");
    assert_eq!(member.call("POST", "/v1/ds", "{\"path\":\"/A\",\"deleted\":true}").0, 200);
    assert_eq!(member.call("GET", "/v1/ds/A", "").0, 404);
}

#[test]
fn large_values_travel_whole_as_text_and_as_bytes() {
    let member = Member::start();
    let large = "x\u{fc}".repeat(100_000);
    let body = json!({"attributes": {"Text": [large], "Raw": [{"base64": "/wA="}]}}).to_string();
    assert_eq!(member.call("PUT", "/v1/ds/Large", &body).0, 200);
    let (_, object) = member.call("GET", "/v1/ds/Large", "");
    assert_eq!(object["attributes"]["Text"][0].as_str().map(str::len), Some(large.len()));
    assert_eq!(object["attributes"]["Raw"][0], json!({"base64": "/wA="}));
}

#[test]
fn a_backup_refuses_and_names_the_active() {
    let member = Member::start();
    member.behaviour.backup.store(true, Ordering::SeqCst);
    let (status, error) = member.call("PUT", "/v1/ds/A", "{}");
    assert_eq!((status, &error["error"]["code"]), (409, &json!("not-active")));
    assert_eq!(error["active"], json!({"name": "icserver1", "address": "10.60.0.2:3633"}));
    assert_eq!(member.call("PUT", "/v1/params/Switchover%20TS%20Timeout", r#"{"value":"20"}"#).0, 409, "PAR-004");
}

#[test]
fn what_is_not_reached_is_unknown_and_has_its_version() {
    let member = Member::start();
    member.behaviour.never_reach.store(true, Ordering::SeqCst);
    let (status, error) = member.call("PUT", "/v1/ds/A?timeout=1", "{}");
    assert_eq!((status, &error["version"]), (504, &json!({"epoch": 65_537, "seq": 1})));
    member.behaviour.never_reach.store(false, Ordering::SeqCst);
    member.behaviour.alone.store(true, Ordering::SeqCst);
    let (status, done) = member.call("PUT", "/v1/ds/A", "{}");
    assert_eq!((status, &done["level"], &done["alone"]), (200, &json!("local"), &json!(true)));
    let (status, error) = member.call("POST", "/v1/sync", "");
    assert_eq!((status, &error["error"]["code"]), (409, &json!("alone")));
}

// REQ: OPS-210
#[test]
fn roles_are_asked_freshly() {
    let member = Member::start();
    let (status, answer) = member.call("GET", "/active", "");
    assert_eq!(
        (status, answer),
        (200, json!({"role": "active", "epoch": 65_537, "exclusive": true, "valid_for_ms": 350}))
    );
    assert_eq!(member.call("GET", "/backup", "").0, 503);
    assert_eq!(member.call("GET", "/readyz", "").0, 200);
    member.behaviour.backup.store(true, Ordering::SeqCst);
    let (status, answer) = member.call("GET", "/active", "");
    assert_eq!((status, &answer["role"]), (503, &json!("backup")));
    assert_eq!(member.call("GET", "/backup", "").0, 200);
    assert_eq!(member.call("GET", "/healthz", "").0, 200);
    member.behaviour.silent.store(true, Ordering::SeqCst);
    let (status, answer) = member.call("GET", "/active", "");
    assert_eq!((status, &answer["role"]), (503, &json!("none")), "a loop that does not answer has no role");
    assert_eq!(member.call("GET", "/healthz", "").0, 503);
}

#[test]
fn commands_have_their_calls() {
    let member = Member::start();
    let (status, switched) = member.call("POST", "/v1/switch", r#"{"force":true}"#);
    assert_eq!((status, &switched["to"]), (200, &json!("b")));
    let (status, refused) = member.call("POST", "/v1/switch", "");
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("blocked")));
    assert_eq!(refused["blockers"], json!([{"kind": "file", "path": "/srv/x", "reason": "not there yet"}]));
    assert_eq!(member.call("POST", "/v1/switch", r#"{"fenced":true}"#).0, 400);
    assert_eq!(member.call("POST", "/v1/switch", r#"{"farce":true}"#).0, 400);
    assert_eq!(member.call("POST", "/v1/mode", r#"{"mode":"manual"}"#), (200, json!({"mode": "manual"})));
    assert_eq!(member.call("POST", "/v1/mode", r#"{"mode":"off"}"#).0, 400);
    assert_eq!(member.call("POST", "/v1/sync", "").1["took_ms"], 4);
    assert_eq!(member.call("POST", "/v1/verify?deep", "").1["equal"], true);
    assert_eq!(member.call("POST", "/v1/verify", "").1["equal"], false);
    assert_eq!(member.call("GET", "/v1/divergence", "").1, json!({"epoch": 0, "records": [], "files": []}));
    let archive = DivergenceArchive::open(&member.dir.path().join("storage")).expect("an archive");
    let mut writer = archive.begin(Epoch(65_537), ringpair_wire::id::Position::default()).expect("begun");
    let version = Version { epoch: Epoch(65_537), seq: Seq(7) };
    writer.add_record(version, &DsPath::parse("/lost").expect("a path"), None).expect("added");
    writer.seal().expect("sealed");
    let (code, shown) = member.call("GET", "/v1/divergence/1-r1", "");
    assert_eq!((code, &shown["path"]), (200, &json!("/lost")));
    assert_eq!(member.call("GET", "/v1/divergence", "").1["records"].as_array().map(Vec::len), Some(1));
    assert_eq!(member.call("GET", "/v1/divergence/2", "").0, 404);
    assert_eq!(member.call("GET", "/v1/mirror", "").1["watch"], "fanotify");
    assert_eq!(member.call("GET", "/v1/mirror?test=%2Fsrv%2F%FF", "").1["rule"], "MirrorExceptions");
    assert_eq!(member.call("GET", "/v1/mirror?test=relative", "").0, 400);
    for missing in ["/v1/doctor", "/v1/publish", "/v1/interactions", "/v1/interactions/7"] {
        let (status, error) = member.call("GET", missing, "");
        assert_eq!((status, &error["error"]["code"]), (501, &json!("not-implemented")), "{missing}");
    }
    assert_eq!(member.call("POST", "/v1/divergence/1", "").0, 501);
}

// REQ: OPS-128
#[test]
fn status_metrics_and_why() {
    let member = Member::start();
    member.call("PUT", "/v1/ds/A", "{}");
    let (status, document) = member.call("GET", "/v1/status", "");
    assert_eq!(status, 200);
    for key in [
        "pair",
        "member",
        "name",
        "role",
        "pair_mode",
        "state",
        "mode",
        "epoch",
        "release",
        "peer",
        "connections",
        "ds",
        "mirror",
        "module",
        "warnings",
        "switch_blockers",
        "alone",
        "complete",
        "divergence",
        "io",
        "detection",
        "last_switch",
    ] {
        assert!(document.get(key).is_some(), "{key} is missing");
    }
    assert_eq!(document["ds"]["objects"], 1);
    assert_eq!(document["ds"]["digest"], member.call("GET", "/v1/ds/?digest", "").1["digest"]);
    let (status, head, text) = member.raw(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert_eq!(status, 200);
    assert!(head.contains("text/plain") && String::from_utf8_lossy(&text).contains("ringpair_role{role=\"active\"} 1"));
    assert_eq!(member.call("GET", "/v1/why", "").1["switched"], false);
    member.events.append(Event::new("evidence", 65_537, "silence").of_switch(131_072).obeying("PAR-051"));
    member.events.append(Event::new("connection", 65_537, "unrelated"));
    member.events.append(Event::new("role", 131_072, "active").of_switch(131_072));
    let (_, why) = member.call("GET", "/v1/why", "");
    assert_eq!((&why["switched"], why["evidence"].as_array().map(Vec::len)), (&json!(true), Some(2)));
    assert_eq!(why["evidence"][0]["parameter"], "PAR-051");
    member.status.publish(Status { epoch: 7, ..Status::default() });
    assert_eq!(member.call("GET", "/v1/status", "").1["epoch"], 7);
}

// REQ: PAR-003
#[test]
fn parameters_are_checked_and_kept_in_the_tree() {
    let member = Member::start();
    let (status, set) = member.call("PUT", "/v1/params/switchover%20ts%20retry%20delay", r#"{"value":"3"}"#);
    assert_eq!((status, &set["name"]), (200, &json!("Switchover TS Failure Retry Delay")), "{set}");
    let (_, object) = member.call("GET", "/v1/ds/SERVER/Parameters", "");
    assert_eq!(object["attributes"]["Switchover TS Failure Retry Delay"], json!(["3"]));
    let (_, got) = member.call("GET", "/v1/params/Switchover%20TS%20Failure%20Retry%20Delay", "");
    assert_eq!((&got["value"], &got["set"]), (&json!("3"), &json!(true)));
    let (status, error) = member.call("PUT", "/v1/params/Switchover%20TS%20Timeout", r#"{"value":"61"}"#);
    let text = error["error"]["message"].as_str().expect("a message");
    assert_eq!(status, 400);
    assert!(text.contains("61") && text.contains("60") && text.contains("Try"), "{text}");
    assert_eq!(member.call("PUT", "/v1/params/No%20Such", r#"{"value":"1"}"#).0, 404);
    assert_eq!(member.call("PUT", "/v1/params/CustomMirrorDir", r#"{"values":"1"}"#).0, 400);
    assert!(member.call("GET", "/v1/params", "").1["parameters"].as_array().is_some_and(|list| list.len() > 30));
}

/// Reads until `wanted` has come.
fn read_until(stream: &mut UnixStream, seen: &mut String, wanted: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut piece = [0; 4096];
    while !seen.contains(wanted) {
        assert!(Instant::now() < deadline, "{wanted:?} did not come in {seen:?}");
        let read = stream.read(&mut piece).expect("read");
        assert_ne!(read, 0, "the stream ended: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
}

#[test]
fn a_watch_streams_changes_and_refuses_unknown_cursors() {
    let member = Member::start();
    member.call("PUT", "/v1/ds/A", r#"{"class":"X"}"#);
    let (mut stream, mut seen) = (member.open("/v1/ds?watch=/&from=65537:0"), String::new());
    read_until(&mut stream, &mut seen, "id: 65537:1");
    assert!(seen.contains("text/event-stream"));
    member.call("PUT", "/v1/ds/B", r#"{"attributes":{"n":["1"]}}"#);
    read_until(&mut stream, &mut seen, "id: 65537:2");
    read_until(&mut stream, &mut seen, "\"level\":\"durable\"");
    member.call("DELETE", "/v1/ds/B", "");
    read_until(&mut stream, &mut seen, "\"deleted\":true");
    let (status, error) = member.call("GET", "/v1/ds?watch=/&from=65537:99", "");
    assert_eq!((status, &error["error"]["code"]), (409, &json!("unknown-cursor")));
    assert_eq!(member.call("GET", "/v1/ds?watch=/&from=x", "").0, 400);
}

#[test]
fn events_are_listed_and_followed() {
    let member = Member::start();
    member.events.append(Event::new("start", 1, "first"));
    assert_eq!(member.call("GET", "/v1/events", "").1["events"][0]["text"], "first");
    let (mut stream, mut seen) = (member.open("/v1/events?follow"), String::new());
    read_until(&mut stream, &mut seen, "\"first\"");
    member.events.append(Event::new("role", 3, "second"));
    read_until(&mut stream, &mut seen, "\"second\"");
    assert_eq!(seen.matches("\"first\"").count(), 1, "nothing twice");
    assert_eq!(member.call("GET", "/v1/events?after=1", "").1["events"][0]["text"], "second");
}

// REQ: OPS-019
#[test]
fn tcp_needs_the_token_for_everything_under_v1() {
    let member = Member::start();
    let ask = |target: &str, header: &str| {
        member.raw_tcp(&format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}\r\n"))
    };
    for target in ["/v1/status", "/v1/ds/A", "/v1/no-such-call", "/v1"] {
        let (status, head, body) = ask(target, "");
        assert_eq!(status, 401, "{target}");
        assert!(head.contains("www-authenticate: bearer"));
        assert!(String::from_utf8_lossy(&body).contains("unauthorized"));
        assert_eq!(ask(target, "authorization: Bearer wrong-token-0123456789\r\n").0, 401);
    }
    let good = format!("authorization: Bearer {TOKEN}\r\n");
    assert_eq!(ask("/v1/status", &good).0, 200);
    assert_eq!(ask("/active", "").0, 200, "load balancers need none");
    assert_eq!(ask("/metrics", "").0, 200);
    for trick in ["//v1/status", "/%761/status", "/V1/status", "/x/../v1/status", "http://h/v1/status"] {
        assert_ne!(ask(trick, "").0, 200, "{trick}");
    }
}

#[test]
fn malformed_http_is_answered_400_or_closed_and_the_server_goes_on() {
    let member = Member::start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let headers = format!("GET /active HTTP/1.1\r\n{}\r\n", "h: 1\r\n".repeat(200));
    let bad: &[&[u8]] = &[
        b"\0\0\0\0",
        b"NONSENSE\r\n\r\n",
        b"GET /active HTTP/9.9\r\n\r\n",
        b"GET /active HTTP/1.1\r\nbad header\r\n\r\n",
        b"PUT /v1/ds/A HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"PUT /v1/ds/A HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcde",
        b"PUT /v1/ds/A HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /v1/ds/A HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{\"class\"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        long.as_bytes(),
        headers.as_bytes(),
    ];
    for request in bad {
        let (status, _, _) = member.exchange(request, true);
        assert!(
            status == 0 || (400..500).contains(&status),
            "{status} for {:?}",
            String::from_utf8_lossy(&request[..request.len().min(60)])
        );
    }
    assert_eq!(member.call("GET", "/active", "").0, 200);
    assert_eq!(member.call("GET", "/v1/ds/A", "").0, 404, "nothing of it was written");
}

#[test]
fn bad_requests_name_what_is_wrong() {
    let member = Member::start();
    let table = [
        ("PUT", "/v1/ds/A?ack=soon", "{}", 400, "soon"),
        ("PUT", "/v1/ds/A?akc=local", "{}", 400, "akc"),
        ("PUT", "/v1/ds/A", "[]", 400, "object"),
        ("PUT", "/v1/ds/A", "{\"klass\":1}", 400, "klass"),
        ("PUT", "/v1/ds/", "{}", 400, "root"),
        ("GET", "/v1/ds/%FF", "", 400, "UTF-8"),
        ("GET", "/v1/ds/A?list&digest", "", 400, "exclude"),
        ("GET", "/v1/nothing", "", 404, "/v1/nothing"),
        ("DELETE", "/v1/status", "", 405, "method"),
        ("POST", "/v1/sync?timeout=x", "", 400, "timeout"),
    ];
    for (method, target, body, expected, named) in table {
        let (status, error) = member.call(method, target, body);
        let text = error["error"]["message"].as_str().unwrap_or_default();
        assert_eq!(status, expected, "{method} {target}: {error}");
        assert!(text.contains(named) && (body == "[]" || text.contains("Try")), "{method} {target}: {text}");
    }
    let large = format!("{{\"mode\":\"{}\"}}", "x".repeat(100_000));
    let (status, error) = member.call("POST", "/v1/mode", &large);
    assert_eq!((status, &error["error"]["code"]), (413, &json!("too-large")));
}

#[test]
fn a_full_queue_is_answered_429_with_a_time_to_come_back() {
    let member = Member::start();
    // Nobody reads this queue: it fills up.
    let tree = Tree::default();
    let (backend, _requests) = Backend::new(Parts {
        tree: tree.handle(),
        content: ContentStore::open(&member.dir.path().join("other")).expect("a store"),
        archive: DivergenceArchive::open(&member.dir.path().join("other")).expect("an archive"),
        status: StatusCell::default(),
        events: EventLog::in_memory(),
        default_ack: AckLevel::Local,
        wake: Box::new(|| {}),
    });
    for _ in 0..super::backend::MAX_QUEUED {
        backend.send(Request::Role(tokio::sync::oneshot::channel().0)).expect("room");
    }
    let full = backend.send(Request::Role(tokio::sync::oneshot::channel().0)).expect_err("full");
    let response = axum::response::IntoResponse::into_response(full);
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
}

#[test]
fn streams_are_bounded() {
    let member = Member::start();
    let mut open: Vec<UnixStream> = Vec::new();
    for _ in 0..super::MAX_STREAMS {
        let (mut stream, mut seen) = (member.open("/v1/events?follow"), String::new());
        read_until(&mut stream, &mut seen, ": events");
        open.push(stream);
    }
    let (status, head, _) = member.raw(b"GET /v1/events?follow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    assert_eq!(status, 429);
    assert!(head.contains("retry-after"));
    drop(open);
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut stream, mut seen) = loop {
        let (mut stream, mut seen) = (member.open("/v1/events?follow"), String::new());
        let mut piece = [0; 512];
        let read = stream.read(&mut piece).expect("read");
        seen.push_str(&String::from_utf8_lossy(&piece[..read]));
        if seen.contains("200 OK") {
            break (stream, seen);
        }
        assert!(Instant::now() < deadline, "permits do not come back: {seen}");
    };
    read_until(&mut stream, &mut seen, ": events");
}

#[test]
fn a_socket_in_use_is_not_taken_and_a_dead_one_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let rule = SocketRule::new(None).expect("a rule");
    let first = bind_unix(&path, &rule).expect("bound");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o660);
    assert_eq!(bind_unix(&path, &rule).expect_err("in use").kind(), std::io::ErrorKind::AddrInUse);
    drop(first);
    drop(bind_unix(&path, &rule).expect("nobody answers there"));
    std::fs::write(dir.path().join("file"), "mine").expect("written");
    assert!(bind_unix(&dir.path().join("file"), &rule).is_err(), "a file is left alone");
}

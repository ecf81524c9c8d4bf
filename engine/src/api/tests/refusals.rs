//! What is refused: strangers, malformed and bad requests, more than there is room for.

use super::*;

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
        limits: crate::stream::native_limits(ringpair_wire::id::MemberId::A),
        wake: Box::new(|| {}),
    });
    for _ in 0..crate::api::backend::MAX_QUEUED {
        backend.send(Request::Role(tokio::sync::oneshot::channel().0)).expect("room");
    }
    let full = backend.send(Request::Role(tokio::sync::oneshot::channel().0)).expect_err("full");
    let response = axum::response::IntoResponse::into_response(full);
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "1");
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

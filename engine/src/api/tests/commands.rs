//! Roles, commands, status and metrics.

use super::*;

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

//! What is followed: changes and events.

use super::*;

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

#[test]
fn streams_are_bounded() {
    let member = Member::start();
    let mut open: Vec<UnixStream> = Vec::new();
    for _ in 0..crate::api::MAX_STREAMS {
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

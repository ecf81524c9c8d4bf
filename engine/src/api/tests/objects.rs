//! Objects, transactions and parameters.

use super::*;

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

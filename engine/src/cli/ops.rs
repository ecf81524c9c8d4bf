//! The commands about the pair: switch, sync, verify, why, events, mode, divergence, params, mirror.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    time::Instant,
};

use hyper::Method;
use ringpair_wire::id::AckLevel;
use serde_json::{Value as Json, json};

use super::{
    args::{ModeArg, Shared, SwitchArgs},
    client::{CliError, Client, Events, Progress, encoded, json_body, nothing},
    plain, print, print_json, printable, status, table, with_query,
};

/// `switch`: shows what it would lose, asks on a terminal, and waits for the new active (OPS-006, OPS-030, OPS-040).
pub(super) async fn switch(shared: &Shared, client: &Client, options: SwitchArgs) -> Result<(), CliError> {
    let before = client.get("/v1/status").await?;
    for blocker in before["switch_blockers"].as_array().into_iter().flatten() {
        eprintln!("warning: {} {} {}", plain(&blocker["kind"]), plain(&blocker["path"]), plain(&blocker["reason"]));
    }
    let ask = !options.yes && !options.immediate && io::stdin().is_terminal() && io::stderr().is_terminal();
    if ask && !confirmed(&before, options)? {
        return Err(CliError::Failed("not switched".into()));
    }
    let body = json!({"immediate": options.immediate, "force": options.force, "fenced": options.fenced});
    let target = with_query("/v1/switch", &[client.timeout_query()]);
    let done = client.call(Method::POST, &target, json_body(&body)).await?;
    if shared.json {
        return print_json(&done);
    }
    let (took, pause) = (plain(&done["took_ms"]), plain(&done["pause_ms"]));
    print(&format!(
        "{} is active in epoch {} after {took} ms; no writes for {pause} ms",
        plain(&done["to"]),
        done["epoch"]
    ))
}

fn confirmed(before: &Json, options: SwitchArgs) -> Result<bool, CliError> {
    let (name, role, peer) = (plain(&before["name"]), plain(&before["role"]), plain(&before["peer"]["name"]));
    let what = match (role.as_str(), options.force) {
        ("backup", true) => format!("{name} is the backup and will be made active"),
        ("backup", false) => format!("{peer} hands over to {name}"),
        _ => format!("{name} hands over to {peer}"),
    };
    let mut stderr = io::stderr().lock();
    write!(stderr, "{what}. Switch? [y/N] ").and_then(|()| stderr.flush())?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

/// `sync`.
pub(super) async fn sync(shared: &Shared, client: &Client) -> Result<(), CliError> {
    let target = with_query("/v1/sync", &[client.timeout_query()]);
    let done = waiting(shared, client.call(Method::POST, &target, nothing()), "waiting for the backup").await?;
    if shared.json {
        return print_json(&done);
    }
    print(&format!("everything before this call is durable on the backup after {} ms", plain(&done["took_ms"])))
}

/// Shows on a terminal that something is under way, and for how long.
async fn waiting(
    shared: &Shared,
    work: impl Future<Output = Result<Json, CliError>>,
    what: &str,
) -> Result<Json, CliError> {
    let (mut progress, start) = (Progress::new(shared.json), Instant::now());
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(std::time::Duration::from_millis(500), work.as_mut()).await {
            Ok(done) => {
                progress.clear();
                return done;
            }
            Err(_) => progress.show(&format!("{what}: {} s", start.elapsed().as_secs())),
        }
    }
}

/// `verify`: exit 1 when something differs; what only changed meanwhile is listed, and is no difference (interface §2).
pub(super) async fn verify(shared: &Shared, client: &Client, deep: bool) -> Result<(), CliError> {
    let deep = deep.then(|| "deep".to_owned());
    let target = with_query("/v1/verify", &[deep, client.timeout_query()]);
    let report = waiting(shared, client.call(Method::POST, &target, nothing()), "comparing").await?;
    let differs = differs(&report);
    if shared.json {
        print_json(&report)?;
    } else {
        for difference in report["differences"].as_array().into_iter().flatten() {
            print(&format!(
                "{} {}: {}",
                plain(&difference["kind"]),
                plain(&difference["path"]),
                plain(&difference["what"])
            ))?;
        }
        for (key, what) in [("changing", "changing"), ("held_back", "held back")] {
            for path in report[key].as_array().into_iter().flatten() {
                print(&format!("{what} {}", plain(path)))?;
            }
        }
        print(&verdict(&report))?;
    }
    if differs { Err(CliError::No) } else { Ok(()) }
}

/// Whether anything differs that was not changing meanwhile.
fn differs(report: &Json) -> bool {
    let none = |key: &str| report[key].as_array().is_none_or(Vec::is_empty);
    report["equal"] != true && (!none("differences") || report["truncated"] == true || none("changing"))
}

/// The last line of `verify`.
fn verdict(report: &Json) -> String {
    let changing = report["changing"].as_array().map_or(0, Vec::len);
    let verdict = match (differs(report), changing) {
        (true, _) => "DIFFERENT".to_owned(),
        (false, 0) => "equal".to_owned(),
        (false, paths) => format!("nothing differs, but {paths} paths kept changing and could not be compared"),
    };
    let more = if report["truncated"] == true { " (more than are listed)" } else { "" };
    format!(
        "{verdict}{more}: {} objects and {} files compared in {} ms",
        report["objects"], report["files"], report["took_ms"]
    )
}

/// `why` (OPS-055, OPS-128).
pub(super) async fn why(shared: &Shared, client: &Client) -> Result<(), CliError> {
    let why = client.get("/v1/why").await?;
    if shared.json {
        return print_json(&why);
    }
    let last = &why["last_switch"];
    if last.is_object() {
        let how = if last["controlled"] == true { "controlled" } else { "automatic" };
        print(&format!(
            "{}: {} -> {}, {how}: {}",
            plain(&last["at"]),
            plain(&last["from"]),
            plain(&last["to"]),
            plain(&last["reason"])
        ))?;
    } else {
        print(&format!("no switchover is known (mode {}, pair {})", plain(&why["mode"]), plain(&why["pair_mode"])))?;
    }
    for event in why["evidence"].as_array().into_iter().flatten() {
        print(&event_line(event))?;
    }
    Ok(())
}

fn event_line(event: &Json) -> String {
    let parameter = event["parameter"].as_str().map(|name| format!(" [{}]", printable(name))).unwrap_or_default();
    format!("{}  {:<10}  {}{parameter}", plain(&event["at"]), plain(&event["kind"]), plain(&event["text"]))
}

/// `events`.
pub(super) async fn events(shared: &Shared, client: &Client, follow: bool, limit: u64) -> Result<(), CliError> {
    let show = |event: &Json| if shared.json { print_json(event) } else { print(&event_line(event)) };
    if !follow {
        let answer = client.get(&format!("/v1/events?limit={limit}")).await?;
        return answer["events"].as_array().into_iter().flatten().try_for_each(show);
    }
    let response = client.open(Method::GET, &format!("/v1/events?follow&limit={limit}"), nothing()).await?;
    let mut events = Events::new(response, client.stream_ends());
    while let Some(event) = events.next().await? {
        show(&serde_json::from_str(&event.data).unwrap_or_default())?;
    }
    Err(CliError::Unreachable("the member went away. Try: again".into()))
}

/// `mode`.
pub(super) async fn mode(shared: &Shared, client: &Client, mode: ModeArg) -> Result<(), CliError> {
    let mode = match mode {
        ModeArg::Auto => "auto",
        ModeArg::Manual => "manual",
    };
    let target = with_query("/v1/mode", &[client.timeout_query()]);
    let done = client.call(Method::POST, &target, json_body(&json!({ "mode": mode }))).await?;
    if shared.json { print_json(&done) } else { print(&format!("mode {}", plain(&done["mode"]))) }
}

/// `divergence ls`.
pub(super) async fn divergence_ls(shared: &Shared, client: &Client) -> Result<(), CliError> {
    let list = client.get("/v1/divergence").await?;
    if shared.json {
        return print_json(&list);
    }
    let records = list["records"].as_array().into_iter().flatten().map(|record| {
        let what = if record["object"].is_null() { "removed" } else { "changed" };
        let version = format!("{}:{}", record["version"]["epoch"], record["version"]["seq"]);
        vec![plain(&record["id"]), version, what.to_owned(), plain(&record["path"])]
    });
    let files = list["files"].as_array().into_iter().flatten().map(|file| {
        let size = file["bytes"].as_u64().map(status::bytes).unwrap_or_default();
        vec![plain(&file["id"]), "file".to_owned(), size, plain(&file["path"])]
    });
    let rows: Vec<_> = records.chain(files).collect();
    if rows.is_empty() {
        print("nothing diverged")
    } else {
        print(&format!("accepted in epoch {}\n{}", list["epoch"], table(&rows)))
    }
}

/// `divergence show`.
pub(super) async fn divergence_show(client: &Client, id: &str) -> Result<(), CliError> {
    print_json(&client.get(&format!("/v1/divergence/{}", encoded(id))).await?)
}

/// `params ls`.
pub(super) async fn params_ls(shared: &Shared, client: &Client) -> Result<(), CliError> {
    let answer = client.get("/v1/params").await?;
    if shared.json {
        return print_json(&answer["parameters"]);
    }
    let rows = answer["parameters"].as_array().into_iter().flatten().map(|p| {
        let set = if p["set"] == true { "set" } else { "default" };
        let restart = if p["restart"] == true { "restart" } else { "at once" };
        vec![plain(&p["name"]), plain(&p["type"]), range(p), set.to_owned(), restart.to_owned(), plain(&p["value"])]
    });
    print(&table(&rows.collect::<Vec<_>>()))
}

fn range(p: &Json) -> String {
    if p["min"].is_null() && p["max"].is_null() {
        return "-".into();
    }
    let end = |value: &Json| if value.is_null() { String::new() } else { value.to_string() };
    format!("{}..{}", end(&p["min"]), end(&p["max"]))
}

/// `params get`.
pub(super) async fn params_get(shared: &Shared, client: &Client, name: &str) -> Result<(), CliError> {
    let p = client.get(&format!("/v1/params/{}", encoded(name))).await?;
    if shared.json {
        return print_json(&p);
    }
    let keys = ["name", "id", "type", "default", "value", "effective", "takes_effect", "warning"];
    let mut rows: Vec<_> = keys
        .iter()
        .filter(|key| p.get(**key).is_some())
        .map(|key| vec![(*key).replace('_', " "), plain(&p[*key])])
        .collect();
    rows.push(vec!["range".to_owned(), range(&p)]);
    print(&table(&rows))
}

/// `params set`.
pub(super) async fn params_set(
    shared: &Shared,
    client: &Client,
    name: &str,
    value: &str,
    ack: Option<AckLevel>,
) -> Result<(), CliError> {
    let ack = ack.map(|ack| format!("ack={}", ack.name()));
    let target = with_query(&format!("/v1/params/{}", encoded(name)), &[ack, client.timeout_query()]);
    let done = client.call(Method::PUT, &target, json_body(&json!({ "value": value }))).await?;
    if shared.json {
        return print_json(&done);
    }
    let restart = if done["restart"] == true { "; takes effect after a restart" } else { "" };
    print(&format!("{} = {}{restart}", plain(&done["name"]), plain(&done["value"])))?;
    print(&written(&done))
}

/// The version line of a change.
pub(super) fn written(done: &Json) -> String {
    let alone = if done["alone"] == true { ", alone" } else { "" };
    format!("{}:{} {}{alone}", done["version"]["epoch"], done["version"]["seq"], plain(&done["level"]))
}

/// `mirror status`.
pub(super) async fn mirror_status(shared: &Shared, client: &Client) -> Result<(), CliError> {
    let list = client.get("/v1/mirror").await?;
    if shared.json {
        return print_json(&list["status"]);
    }
    let s = &list["status"];
    let size = |key: &str| s[key].as_u64().map(status::bytes).unwrap_or_default();
    let rows = vec![
        vec!["state".to_owned(), plain(&s["state"])],
        vec!["watch".to_owned(), plain(&list["watch"])],
        vec!["files".to_owned(), format!("{} ({})", s["files"], size("bytes"))],
        vec!["on the way".to_owned(), format!("{} ({})", s["pending_files"], size("pending_bytes"))],
        vec!["last error".to_owned(), plain(&s["last_error"])],
    ];
    print(&table(&rows))
}

/// `mirror ls`.
pub(super) async fn mirror_ls(shared: &Shared, client: &Client) -> Result<(), CliError> {
    let list = client.get("/v1/mirror").await?;
    if shared.json {
        return print_json(&list);
    }
    let directories = list["directories"].as_array().into_iter().flatten().map(|d| {
        let plus = if d["recursive"] == true { "+" } else { " " };
        let how = if d["watched"] == true { "watched" } else { "at start" };
        vec![format!("{plus}{}", plain(&d["path"])), how.to_owned(), plain(&d["state"]), plain(&d["parameter"])]
    });
    let excluded = list["excluded"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|e| vec![format!("-{}", plain(&e["path"])), "left out".to_owned(), plain(&e["rule"])]);
    let problems = list["problems"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| vec![plain(&p["path"]), "problem".to_owned(), plain(&p["reason"])]);
    if list["directories"].as_array().is_none_or(Vec::is_empty) {
        return print("nothing is mirrored");
    }
    let rows: Vec<_> = directories.chain(excluded).chain(problems).collect();
    print(&table(&rows))
}

/// `mirror exclude-test`: exit 0 when the path is mirrored, 1 when it is left out.
pub(super) async fn mirror_test(shared: &Shared, client: &Client, path: &Path) -> Result<(), CliError> {
    let path = std::path::absolute(path).map_err(|error| CliError::Usage(format!("{}: {error}", path.display())))?;
    let test = client.get(&format!("/v1/mirror?test={}", encoded(path.as_os_str().as_bytes()))).await?;
    if shared.json {
        print_json(&test)?;
    } else {
        let verdict = if test["mirrored"] == true { "mirrored" } else { "left out" };
        print(&format!("{}: {verdict}: {}", plain(&test["path"]), plain(&test["rule"])))?;
    }
    if test["mirrored"] == true { Ok(()) } else { Err(CliError::No) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_says_equal_only_of_what_was_compared() {
        let report = |equal: bool, differences: Json, changing: Json, truncated: bool| {
            json!({"equal": equal, "differences": differences, "changing": changing, "truncated": truncated,
                "objects": 3, "files": 4, "took_ms": 5})
        };
        let different = json!([{"kind": "file", "path": "/x", "what": "content differs"}]);
        for (report, says, fails) in [
            (report(true, json!([]), json!([]), false), "equal: 3 objects", false),
            (report(false, json!([]), json!(["/x"]), false), "nothing differs, but 1 paths kept changing", false),
            (report(false, different.clone(), json!(["/y"]), false), "DIFFERENT: 3 objects", true),
            (report(false, different, json!([]), true), "DIFFERENT (more than are listed)", true),
            (report(false, json!([]), json!([]), false), "DIFFERENT", true),
        ] {
            assert!(verdict(&report).starts_with(says), "{}", verdict(&report));
            assert_eq!(differs(&report), fails, "{report}");
        }
    }
}

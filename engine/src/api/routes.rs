//! Every call of interface §6 but those of the tree.
//!
//! Always holds: `/active` and `/backup` are answered by the stream thread, lease checked (protocol §4); a call whose
//! feature is not there answers 501, never with made-up data.

use std::time::{Duration, Instant};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::{any, get, post, put},
};
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};
use tokio::sync::mpsc;

use super::{
    Api,
    backend::{Failure, Origin, Request, RoleAnswer, SwitchRequest},
    ds::{self, Budget, aside, whole_body},
    http, metrics, params,
    query::Query,
    sse,
    status::{Mode, Role, Status},
};
use crate::ds::archive::ArchiveError;

/// `sync` and `switch` give up after this, unless told otherwise.
const SYNC_WITHIN: Duration = Duration::from_secs(60);
/// `verify` gives up after this, unless told otherwise.
const VERIFY_WITHIN: Duration = Duration::from_secs(900);
/// A body that is a small document.
const SMALL_BODY: usize = 64 << 10;
/// Events in one answer.
const MAX_EVENTS: u64 = 4096;

/// All routes over `api`.
pub(super) fn router(api: Api) -> Router {
    let tree = get(ds::get).put(ds::put).delete(ds::delete);
    Router::new()
        .route("/active", get(active))
        .route("/backup", get(backup))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .route("/v1/status", get(show_status))
        .route("/v1/ds", tree.clone().post(ds::post))
        .route("/v1/ds/", tree.clone())
        .route("/v1/ds/{*path}", tree)
        .route("/v1/sync", post(sync))
        .route("/v1/verify", post(verify))
        .route("/v1/switch", post(switch))
        .route("/v1/mode", post(mode))
        .route("/v1/params", get(params::list))
        .route("/v1/params/{name}", put(params::set).get(params::get))
        .route("/v1/events", get(events))
        .route("/v1/divergence", get(divergence_list))
        .route("/v1/divergence/{id}", get(divergence_show).post(not_implemented).delete(not_implemented))
        .route("/v1/why", get(why))
        .route("/v1/mirror", get(mirror))
        .route("/v1/doctor", any(not_implemented))
        .route("/v1/publish", any(not_implemented))
        .route("/v1/interactions", any(not_implemented))
        .route("/v1/interactions/{*rest}", any(not_implemented))
        .fallback(no_such_call)
        .method_not_allowed_fallback(wrong_method)
        .with_state(api)
}

async fn no_such_call(uri: Uri) -> Failure {
    Failure::NotFound(format!("there is no call {:?}. Try: GET /v1/status", uri.path()))
}

async fn wrong_method() -> Response {
    http::error(
        StatusCode::METHOD_NOT_ALLOWED,
        "method",
        "the call does not know this method. Try: the API's description",
    )
}

async fn not_implemented(uri: Uri) -> Response {
    let text = format!("{} is not in this release. Try: a later one", uri.path());
    http::error(StatusCode::NOT_IMPLEMENTED, "not-implemented", &text)
}

/// The role as it is now; a loop that does not answer has none.
async fn role(api: &Api) -> RoleAnswer {
    let within = Duration::from_secs(1);
    match tokio::time::timeout(within, api.backend.role()).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) | Err(_) => RoleAnswer::default(),
    }
}

async fn active(State(api): State<Api>) -> Response {
    has_role(&api, Role::Active).await
}

// REQ: OPS-210
async fn backup(State(api): State<Api>) -> Response {
    has_role(&api, Role::Backup).await
}

async fn has_role(api: &Api, wanted: Role) -> Response {
    let answer = role(api).await;
    let status = if answer.role == wanted { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = http::document(status, &answer);
    // The answer holds for milliseconds: nobody between may keep it.
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    response
}

async fn healthz(State(api): State<Api>) -> Response {
    let alive = matches!(tokio::time::timeout(Duration::from_secs(1), api.backend.role()).await, Ok(Ok(_)));
    let status = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    http::document(status, &json!({"healthy": alive}))
}

async fn readyz(State(api): State<Api>) -> Response {
    let ready = role(&api).await.ready;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    http::document(status, &json!({"ready": ready}))
}

async fn show_metrics(State(api): State<Api>) -> Response {
    let text = metrics::render(&api.backend.status(), &role(&api).await);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn show_status(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    Query::parse(uri.query(), &[])?;
    let mut status = Status::clone(&api.backend.status());
    let tree = api.backend.tree().snapshot();
    let root = ringpair_wire::ds::DsPath::root();
    let (digest, objects) = aside(move || tree.digest(&root)).await?;
    (status.ds.digest, status.ds.objects) = (digest.to_string(), objects);
    Ok(http::ok(&status))
}

/// A small JSON document; an empty body is `{}`.
pub(super) async fn small<T: DeserializeOwned>(api: &Api, body: Body) -> Result<T, Failure> {
    let mut budget = Budget::new(api.bodies.clone());
    let body = whole_body(body, SMALL_BODY, &mut budget).await?;
    let text = if body.trim_ascii().is_empty() { b"{}".as_slice() } else { &body };
    serde_json::from_slice(text).map_err(|error| Failure::Malformed(format!("the body is not as expected: {error}")))
}

async fn sync(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    let deadline = Query::parse(uri.query(), &["timeout"])?.deadline(SYNC_WITHIN)?;
    Ok(http::ok(&api.backend.ask(deadline, |reply| Request::Sync { deadline, reply }).await?))
}

async fn verify(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["deep", "timeout"])?;
    let (deep, deadline) = (query.flag("deep")?, query.deadline(VERIFY_WITHIN)?);
    Ok(http::ok(&api.backend.ask(deadline, |reply| Request::Verify { deep, deadline, reply }).await?))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
#[derive(Default)]
struct SwitchBody {
    immediate: bool,
    force: bool,
    fenced: bool,
}

async fn switch(
    State(api): State<Api>,
    uri: Uri,
    axum::Extension(origin): axum::Extension<Origin>,
    body: Body,
) -> Result<Response, Failure> {
    let deadline = Query::parse(uri.query(), &["timeout"])?.deadline(SYNC_WITHIN)?;
    let SwitchBody { immediate, force, fenced } = small(&api, body).await?;
    if fenced && !force {
        return Err(Failure::Malformed(
            "\"fenced\" goes with \"force\" only. Try: {\"force\":true,\"fenced\":true}".into(),
        ));
    }
    let done = api
        .backend
        .ask(deadline, |reply| Request::Switch(SwitchRequest { immediate, force, fenced, origin, deadline, reply }))
        .await?;
    Ok(http::ok(&done))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeBody {
    mode: Mode,
}

async fn mode(State(api): State<Api>, uri: Uri, body: Body) -> Result<Response, Failure> {
    let deadline = Query::parse(uri.query(), &["timeout"])?.deadline(ds::WRITE_WITHIN)?;
    let ModeBody { mode } = small(&api, body).await?;
    api.backend.ask(deadline, |reply| Request::Mode(mode, reply)).await?;
    Ok(http::ok(&json!({"mode": mode})))
}

async fn events(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["follow", "after", "limit"])?;
    let (after, limit) = (query.number("after", 0)?, query.number("limit", MAX_EVENTS)?.min(MAX_EVENTS));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let log = api.backend.events().clone();
    if !query.flag("follow")? {
        let events = if after == 0 { log.newest(limit) } else { log.after(after, limit) };
        let events: Vec<_> = events.iter().map(|event| &**event).collect();
        return Ok(http::ok(&json!({ "events": events })));
    }
    let permit = api.streams.clone().try_acquire_owned().map_err(|_| Failure::Busy { retry_after_s: 1 })?;
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        let mut newest = log.subscribe();
        let mut batch = if after == 0 { log.newest(limit) } else { log.after(after, limit) };
        let mut last = after.max(batch.first().map_or(*newest.borrow(), |event| event.seq - 1));
        loop {
            for event in batch {
                last = event.seq;
                if sender.send(event).await.is_err() {
                    return;
                }
            }
            newest.mark_unchanged();
            batch = log.after(last, 256);
            if batch.is_empty() {
                let gone = tokio::select! {
                    changed = newest.changed() => changed.is_err(),
                    () = sender.closed() => true,
                };
                if gone {
                    return;
                }
                batch = log.after(last, 256);
            }
        }
    });
    let first = axum::body::Bytes::from_static(b": events\n\n");
    Ok(sse::respond(first, receiver, permit, |event: std::sync::Arc<super::Event>| {
        sse::event("event", &event.seq.to_string(), &json!(*event))
    }))
}

async fn divergence_list(State(api): State<Api>) -> Result<Response, Failure> {
    let archive = api.backend.archive().clone();
    Ok(http::ok(&aside(move || archive.to_json()).await??))
}

async fn divergence_show(State(api): State<Api>, Path(id): Path<String>) -> Result<Response, Failure> {
    let archive = api.backend.archive().clone();
    Ok(http::ok(&aside(move || archive.show_json(&id)).await??))
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::NotFound(_) => Self::NotFound(error.to_string()),
            ArchiveError::NoRoom(_) | ArchiveError::Io { .. } | ArchiveError::Damaged { .. } => {
                Self::Internal(error.to_string())
            }
        }
    }
}

fn soon() -> Instant {
    Instant::now() + ds::WRITE_WITHIN
}

/// `GET /v1/mirror`; `?test=PATH` says whether a path (percent-encoded bytes) is mirrored.
async fn mirror(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["test"])?;
    let Some(path) = query.bytes("test").map(<[u8]>::to_vec) else {
        return Ok(http::ok(&api.backend.ask(soon(), Request::MirrorList).await?));
    };
    if path.first() != Some(&b'/') || path.len() > 4096 || path.contains(&0) {
        return Err(Failure::Malformed(
            "\"test\" must be an absolute path of at most 4096 bytes. Try: /srv/app/x".into(),
        ));
    }
    Ok(http::ok(&api.backend.ask(soon(), |reply| Request::MirrorTest { path, reply }).await?))
}

/// `GET /v1/why`: the last switchover and its evidence in order, or why there was none (OPS-128).
async fn why(State(api): State<Api>) -> Result<Response, Failure> {
    let status = api.backend.status();
    let events = api.backend.events().newest(usize::MAX);
    let newest = events.iter().filter_map(|event| event.switch).max();
    let evidence: Vec<_> = match newest {
        Some(epoch) => events.iter().filter(|event| event.switch == Some(epoch)).map(|event| &**event).collect(),
        None => {
            let telling = |kind: &str| matches!(kind, "evidence" | "decision" | "role" | "start");
            events.iter().filter(|event| telling(&event.kind)).map(|event| &**event).collect()
        }
    };
    let body: Json = json!({
        "switched": newest.is_some() || status.last_switch.is_some(),
        "last_switch": status.last_switch,
        "evidence": evidence,
        "mode": status.mode,
        "pair_mode": status.pair_mode,
        "switch_blockers": status.switch_blockers,
    });
    Ok(http::ok(&body))
}

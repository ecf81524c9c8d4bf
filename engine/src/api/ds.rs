//! `/v1/ds`: reading, writing, importing, exporting and watching the tree.
//!
//! Always holds: a read works on one snapshot, off the control thread where it is long; what is kept of bodies that are
//! still coming is bounded over all connections together. Must never: hold a role's answer, or a value, in a log.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use http_body_util::BodyExt;
use ringpair_wire::ds::DsPath;
use serde_json::{Value as Json, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{
    Api,
    backend::{Failure, MAX_WATCH_QUEUED, Request, WatchChange, WatchRequest, WatchWhat, WriteDone, WriteRequest},
    http,
    query::{Query, cursor, ds_path},
    sse,
};
use crate::ds::{
    edit::{EditError, Operation, TransactionError},
    json::{self, Export, TransactionParser},
};

/// A writer is answered within this, unless it says otherwise.
pub const WRITE_WITHIN: Duration = Duration::from_secs(10);
/// The body of one PUT: a value of 64 MiB as base64, and room for the rest of its object.
pub const MAX_PUT_BYTES: usize = 96 << 20;
/// The next piece of a body must come within this.
const PIECE_WITHIN: Duration = Duration::from_secs(30);
/// What all bodies together may take, in KiB.
pub(super) const BODY_BUDGET_KIB: usize = 640 << 10;

/// Part of the budget for bodies, given back when dropped.
pub(super) struct Budget {
    all: Arc<Semaphore>,
    held: Vec<OwnedSemaphorePermit>,
}

impl Budget {
    pub(super) const fn new(all: Arc<Semaphore>) -> Self {
        Self { all, held: Vec::new() }
    }

    /// Takes what `bytes` need, or says that too much is under way.
    fn take(&mut self, bytes: usize) -> Result<(), Failure> {
        let kib = u32::try_from(bytes.div_ceil(1024)).map_err(|_| Failure::Busy { retry_after_s: 1 })?;
        let permit = self.all.clone().try_acquire_many_owned(kib).map_err(|_| Failure::Busy { retry_after_s: 1 })?;
        match self.held.first_mut() {
            Some(first) => first.merge(permit),
            None => self.held.push(permit),
        }
        Ok(())
    }
}

/// The next piece of a body; `None` at its end.
async fn next_piece(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    loop {
        let frame = tokio::time::timeout(PIECE_WITHIN, body.frame()).await;
        match frame {
            Err(_) => return Err(Failure::Malformed("the body did not come within 30 s a piece. Try: again".into())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Failure::Malformed(format!("the body broke off: {error}. Try: again"))),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A whole body of at most `limit` bytes.
pub(super) async fn whole_body(mut body: Body, limit: usize, budget: &mut Budget) -> Result<Vec<u8>, Failure> {
    let mut whole = Vec::new();
    while let Some(piece) = next_piece(&mut body).await? {
        if whole.len() + piece.len() > limit {
            return Err(Failure::TooLarge(format!("the body is longer than {limit} bytes. Try: several requests")));
        }
        budget.take(piece.len())?;
        whole.extend_from_slice(&piece);
    }
    Ok(whole)
}

/// Runs something long away from the control thread.
pub(super) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Failure::Internal(format!("a reader failed: {error}")))
}

impl From<EditError> for Failure {
    fn from(error: EditError) -> Self {
        match error {
            EditError::NotFound(..) => Self::NotFound(error.to_string()),
            EditError::TooLong { .. } | EditError::TooLarge { .. } => Self::TooLarge(error.to_string()),
            EditError::Store { .. } => Self::Internal(error.to_string()),
            EditError::HasChildren(..) => Self::refused("has-children", error.to_string()),
            _ => Self::Malformed(error.to_string()),
        }
    }
}

impl From<TransactionError> for Failure {
    fn from(mut error: TransactionError) -> Self {
        match error.errors.pop() {
            // The only operation of a request needs no number.
            Some(only) if error.errors.is_empty() && error.count == 1 && only.line == 0 => only.error.into(),
            Some(last) => {
                error.errors.push(last);
                Self::Malformed(error.to_string())
            }
            None => Self::Malformed(error.to_string()),
        }
    }
}

/// `GET /v1/ds/<path>` with `?list`, `?digest`, `?export`; `GET /v1/ds?watch=`.
pub(super) async fn get(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["list", "digest", "export", "watch", "from"])?;
    if query.bytes("watch").is_some() {
        return watch(&api, &query).await;
    }
    let path = ds_path(uri.path(), "/v1/ds")?;
    let (list, digest, export) = (query.flag("list")?, query.flag("digest")?, query.flag("export")?);
    if u8::from(list) + u8::from(digest) + u8::from(export) > 1 {
        return Err(Failure::Malformed("list, digest and export exclude one another. Try: one of them".into()));
    }
    let tree = api.backend.tree().snapshot();
    let missing = || {
        Failure::NotFound(format!(
            "no object at {path}. Try: ringpair ds ls {}",
            path.parent().unwrap_or_else(DsPath::root)
        ))
    };
    if tree.get(&path).is_none() && !path.is_root() && !(list && tree.has_children(&path)) {
        return Err(missing());
    }
    if list {
        return aside(move || json::children(&tree, &path))
            .await?
            .map(|list| http::ok(&list))
            .ok_or(Failure::NotFound("it is gone".into()));
    }
    if digest {
        return Ok(http::ok(&aside(move || json::digest(&path, tree.digest(&path))).await?));
    }
    let store = api.backend.content().clone();
    if export {
        return stream(&api, Export::subtree(tree, store, path));
    }
    if path.is_root() {
        return Err(Failure::NotFound("the root is no object. Try: ?list, ?digest or ?export".into()));
    }
    // What most ask for waits for no other thread.
    if let Some(line) = tree.get(&path).and_then(|entry| json::short_line(entry.object())) {
        return Ok(http::line(line));
    }
    stream(&api, Export::object(tree, store, path))
}

/// Sends an export piece by piece: a thread reads ahead by a few pieces and waits for the receiver.
fn stream(api: &Api, export: Export) -> Result<Response, Failure> {
    let permit = api.streams.clone().try_acquire_owned().map_err(|_| Failure::Busy { retry_after_s: 1 })?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(4);
    tokio::task::spawn_blocking(move || {
        for piece in export {
            let piece = piece.map(Bytes::from).map_err(std::io::Error::other);
            if sender.blocking_send(piece).is_err() {
                return;
            }
        }
    });
    let pieces = futures_util::stream::unfold((receiver, permit), |(mut receiver, permit)| async move {
        receiver.recv().await.map(|piece| (piece, (receiver, permit)))
    });
    Ok(http::lines(pieces))
}

/// Hands a transaction to the stream thread, and waits for its level.
pub(super) async fn write(api: &Api, query: &Query, operations: Vec<(u64, Operation)>) -> Result<WriteDone, Failure> {
    let (ack, deadline) = (query.ack(api.backend.default_ack())?, query.deadline(WRITE_WITHIN)?);
    api.backend.ask(deadline, |reply| Request::Write(WriteRequest { operations, ack, deadline, reply })).await
}

pub(super) fn written(path: Option<&DsPath>, done: &WriteDone) -> Json {
    let mut body = json!({"version": done.version, "level": done.level, "alone": done.alone});
    if let Some(path) = path {
        body["path"] = path.as_str().into();
    }
    body
}

/// `PUT /v1/ds/<path>`.
pub(super) async fn put(State(api): State<Api>, uri: Uri, body: Body) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["ack", "replace", "timeout"])?;
    let (path, replace) = (ds_path(uri.path(), "/v1/ds")?, query.flag("replace")?);
    query.ack(api.backend.default_ack())?;
    let mut budget = Budget::new(api.bodies.clone());
    let body = whole_body(body, MAX_PUT_BYTES, &mut budget).await?;
    let (store, at) = (api.backend.content().clone(), path.clone());
    let operation = if body.len() > 64 << 10 {
        aside(move || json::parse_put(at, replace, &body, &store)).await??
    } else {
        json::parse_put(at, replace, &body, &store)?
    };
    let done = write(&api, &query, vec![(0, operation)]).await?;
    Ok(http::ok(&written(Some(&path), &done)))
}

/// `DELETE /v1/ds/<path>`.
pub(super) async fn delete(State(api): State<Api>, uri: Uri) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["ack", "recursive", "timeout"])?;
    let (path, recursive) = (ds_path(uri.path(), "/v1/ds")?, query.flag("recursive")?);
    let operation = Operation::Remove { path: path.clone(), recursive, missing_ok: false };
    let done = write(&api, &query, vec![(0, operation)]).await?;
    Ok(http::ok(&written(Some(&path), &done)))
}

/// `POST /v1/ds`: JSON lines, one transaction.
pub(super) async fn post(State(api): State<Api>, uri: Uri, mut body: Body) -> Result<Response, Failure> {
    let query = Query::parse(uri.query(), &["ack", "timeout"])?;
    query.ack(api.backend.default_ack())?;
    let mut budget = Budget::new(api.bodies.clone());
    let (sender, mut receiver) = mpsc::channel::<Bytes>(4);
    let store = api.backend.content().clone();
    let parser = aside(move || -> Result<_, Failure> {
        let mut parser = TransactionParser::new(store);
        while let Some(piece) = receiver.blocking_recv() {
            parser.push(&piece)?;
        }
        Ok(parser.finish()?)
    });
    let feeder = async {
        while let Some(piece) = next_piece(&mut body).await? {
            budget.take(piece.len())?;
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        Ok::<_, Failure>(())
    };
    let (fed, parsed) = tokio::join!(feeder, parser);
    let operations = match (fed, parsed?) {
        // A parser that gave up ends the feeding: its reason comes first.
        (_, Err(why)) | (Err(why), _) => return Err(why),
        (Ok(()), Ok(operations)) => operations,
    };
    let count = operations.len();
    if count == 0 {
        return Err(Failure::Malformed("the transaction is empty. Try: JSON lines, one object a line".into()));
    }
    let done = write(&api, &query, operations).await?;
    let mut answer = written(None, &done);
    answer["operations"] = count.into();
    Ok(http::document(StatusCode::OK, &answer))
}

/// `GET /v1/ds?watch=<path>&from=<epoch:seq>`: server-sent events.
async fn watch(api: &Api, query: &Query) -> Result<Response, Failure> {
    let text = query.text("watch")?.filter(|text| !text.is_empty()).unwrap_or("/");
    let path = DsPath::parse(text).map_err(|error| Failure::Malformed(error.to_string()))?;
    let from = query.text("from")?.map(cursor).transpose().map_err(Failure::Malformed)?;
    let permit = api.streams.clone().try_acquire_owned().map_err(|_| Failure::Busy { retry_after_s: 1 })?;
    let (changes, receiver) = mpsc::channel(MAX_WATCH_QUEUED);
    let deadline = query.deadline(WRITE_WITHIN)?;
    let since = api.backend.ask(deadline, |reply| Request::Watch(WatchRequest { path, from, changes, reply })).await?;
    let first = sse::event("from", &since.to_string(), &json!({"from": since}));
    Ok(sse::respond(first, receiver, permit, |change: WatchChange| {
        sse::event("change", &change.version.to_string(), &change_json(&change))
    }))
}

/// A change as one JSON line: the object, or `{"path","deleted":true}`, with version, level and alone.
fn change_json(change: &WatchChange) -> Json {
    let mut line = match &change.what {
        WatchWhat::Object(object) => json::summary(object),
        WatchWhat::Removed(path) => json!({"path": path.as_str(), "deleted": true}),
    };
    line["version"] = json::version(change.version);
    line["level"] = change.level.name().into();
    line["alone"] = change.alone.into();
    line
}

//! Server-sent events: a bounded channel becomes a response that lasts until either end goes away.
//!
//! Always holds: an idle stream sends a comment now and then, so that both ends notice a dead connection.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse, Response},
};
use serde_json::Value as Json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// An idle stream sends a comment this often.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// One event as it goes over the wire. `id` is the cursor to resume from.
pub(super) fn event(kind: &str, id: &str, data: &Json) -> Bytes {
    Bytes::from(format!("event: {kind}\nid: {id}\ndata: {data}\n\n"))
}

/// A response that sends `first` and then what comes out of `receiver`, until it closes.
pub(super) fn respond<T: Send + 'static>(
    first: Bytes,
    receiver: mpsc::Receiver<T>,
    permit: OwnedSemaphorePermit,
    render: impl Fn(T) -> Bytes + Send + 'static,
) -> Response {
    let state = (Some(first), receiver, permit, render);
    let pieces = futures_util::stream::unfold(state, |(first, mut receiver, permit, render)| async move {
        let piece = match first {
            Some(first) => first,
            None => match tokio::time::timeout(KEEP_ALIVE, receiver.recv()).await {
                Ok(None) => return None,
                Ok(Some(item)) => render(item),
                Err(_) => Bytes::from_static(b": still here\n\n"),
            },
        };
        Some((Ok::<_, Infallible>(piece), (None, receiver, permit, render)))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(pieces)).into_response()
}

//! The API: HTTP over the Unix socket and, where set, over TCP (interface §6).
//!
//! It talks to the rest of the member only through a [`Backend`]: reads go to snapshots and published documents,
//! everything else is a [`Request`] to the stream thread. Always holds: whatever a client sends or fails to read,
//! memory stays bounded and the stream thread never waits. Must never: answer from a role that was not checked freshly.

pub mod auth;
pub mod backend;
pub(crate) mod ds;
pub mod events;
mod http;
mod metrics;
mod params;
pub mod query;
mod routes;
pub mod server;
mod sse;
pub mod status;

use std::sync::Arc;

use tokio::sync::Semaphore;

pub use backend::{Backend, Failure, Request};
pub use events::{Event, EventLog};
pub use status::{Status, StatusCell};

/// How many answers may be streams (watches, followed events, exports) at a time; beyond, callers are answered 429.
pub const MAX_STREAMS: usize = 64;

/// What the handlers share.
#[derive(Clone)]
struct Api {
    backend: Backend,
    /// KiB that bodies on their way may take together.
    bodies: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// The routes of the API over `backend`, for [`server::serve`].
pub fn router(backend: Backend) -> axum::Router {
    let bodies = Arc::new(Semaphore::new(ds::BODY_BUDGET_KIB));
    routes::router(Api { backend, bodies, streams: Arc::new(Semaphore::new(MAX_STREAMS)) })
}

#[cfg(test)]
mod tests;

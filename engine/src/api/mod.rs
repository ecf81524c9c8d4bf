//! The API: HTTP over the Unix socket and, where set, over TCP (interface §6).
//!
//! It talks to the rest of the member only through a [`Backend`]: reads go to snapshots and published documents,
//! everything else is a [`Request`] to the stream thread. Always holds: whatever a client sends or fails to read,
//! memory stays bounded and the stream thread never waits. Must never: answer from a role that was not checked freshly.

pub mod auth;
pub mod backend;
pub mod events;
mod http;
mod metrics;
pub mod server;
pub mod status;

pub use backend::{Backend, Failure, Request};
pub use events::{Event, EventLog};
pub use status::{Status, StatusCell};

/// The routes of the API over `backend`.
#[must_use]
pub fn router(backend: Backend) -> axum::Router {
    use axum::{extract::State, routing::get};
    async fn show_metrics(State(backend): State<Backend>) -> String {
        let role = backend.role().await.unwrap_or_default();
        metrics::render(&backend.status(), &role)
    }
    async fn show_status(State(backend): State<Backend>) -> axum::response::Response {
        http::ok(&*backend.status())
    }
    axum::Router::new().route("/metrics", get(show_metrics)).route("/v1/status", get(show_status)).with_state(backend)
}

//! Accepts connections on the Unix socket and on TCP, and serves the router on each; a connection on the Unix socket
//! whose first byte no HTTP request has is a native client's, and goes to the stream thread.
//!
//! Always holds: connections, header bytes, header counts and the time that a header may take are bounded, TCP and Unix
//! apart, so that neither can lock out the other. Malformed HTTP gets 400 or a closed connection. Must never: serve a
//! caller whose credentials or token were not checked.

use std::{
    convert::Infallible,
    fs, io,
    net::{SocketAddr, TcpListener as StdTcpListener},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream},
        },
    },
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{MsgFlags, recv};
use ringpair_wire::client::{self, Answer, FailureCode, Greeting};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Semaphore, watch},
};

use super::{
    auth::{SocketRule, Token},
    backend::{Backend, Origin, Request as BackendRequest},
    http::error,
};

/// How many connections may be open on the Unix socket.
pub const MAX_UNIX_CONNECTIONS: usize = 128;
/// How many connections may be open over TCP.
pub const MAX_TCP_CONNECTIONS: usize = 256;
/// A request's head (line and headers) is at most this long.
pub const MAX_HEAD_BYTES: usize = 32 << 10;
/// A request has at most this many headers.
pub const MAX_HEADERS: usize = 64;
/// A request's head must be complete within this; so must the next one on an idle connection.
pub const HEAD_WITHIN: Duration = Duration::from_secs(10);

/// What a caller hears on the Unix socket who may not use it.
const FORBIDDEN: &str = "only root and members of api.group may use this socket. Try: sudo, or joining the group";

/// Where the API listens.
pub struct Listeners {
    /// The Unix socket, and who may use it.
    pub unix: (StdUnixListener, SocketRule),
    /// TCP, and the token that everything under `/v1` needs there.
    pub tcp: Option<(StdTcpListener, Token)>,
}

/// Binds the Unix socket at `path`: mode 0660, the rule's group. A socket that nobody answers is replaced.
///
/// # Errors
/// Whatever the system says, naming the path; [`io::ErrorKind::AddrInUse`] when a member answers there.
pub fn bind_unix(path: &Path, rule: &SocketRule) -> io::Result<StdUnixListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("api.socket = {}: {error}", path.display()));
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(named)?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if StdUnixStream::connect(path).is_ok() {
                return Err(named(io::Error::new(io::ErrorKind::AddrInUse, "another member answers there")));
            }
            fs::remove_file(path).map_err(named)?;
        }
        Ok(_) => {
            return Err(named(io::Error::new(io::ErrorKind::AlreadyExists, "there is something that is no socket")));
        }
        Err(_) => {}
    }
    let listener = StdUnixListener::bind(path).map_err(named)?;
    if let Some(group) = rule.group() {
        nix::unistd::chown(path, None, Some(group)).map_err(|errno| named(errno.into()))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(named)?;
    Ok(listener)
}

/// Binds the TCP address.
///
/// # Errors
/// Whatever the system says, naming the address.
pub fn bind_tcp(address: SocketAddr) -> io::Result<StdTcpListener> {
    StdTcpListener::bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("api.http = {address}: {error}")))
}

/// Serves `router` until `stop` becomes true. Runs on any tokio runtime, `tokio_uring`'s included.
///
/// # Errors
/// Handing the listeners to the runtime. What happens on one connection ends that connection only.
pub async fn serve(
    listeners: Listeners,
    backend: Backend,
    router: Router,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let (unix, rule) = listeners.unix;
    unix.set_nonblocking(true)?;
    let unix = UnixListener::from_std(unix)?;
    let tcp = match listeners.tcp {
        None => None,
        Some((listener, token)) => {
            listener.set_nonblocking(true)?;
            Some((TcpListener::from_std(listener)?, token))
        }
    };
    let tcp_loop = async {
        if let Some((listener, token)) = tcp {
            serve_tcp(listener, token, router.clone(), stop.clone()).await;
        }
    };
    tokio::join!(serve_unix(unix, rule, backend, router.clone(), stop.clone()), tcp_loop);
    Ok(())
}

/// Whether serving has come to its end; waits for it.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that the sender has gone: the same thing.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn serve_unix(
    listener: UnixListener,
    rule: SocketRule,
    backend: Backend,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let permits = Arc::new(Semaphore::new(MAX_UNIX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => return,
            accepted = accept(&permits, listener.accept()) => accepted,
        };
        let Some((permit, (stream, _))) = accepted else { continue };
        let (router, backend, rule, stop) = (router.clone(), backend.clone(), rule.clone(), stop.clone());
        tokio::spawn(async move {
            let peer = stream.peer_cred().ok();
            let permitted = peer.is_some_and(|peer| rule.permits(peer.uid(), peer.gid()));
            let origin = Origin { uid: peer.map(|peer| peer.uid()), from: "unix".into() };
            match tokio::time::timeout(HEAD_WITHIN, is_native(&stream)).await {
                Ok(Ok(true)) => hand_over(stream, permitted, &backend),
                Ok(Ok(false)) => {
                    let gate = if permitted { Gate::Open } else { Gate::Forbidden };
                    connection(stream, gate, origin, router, stop).await;
                }
                // Nobody is there to be told.
                Ok(Err(_)) | Err(_) => {}
            }
            drop(permit);
        });
    }
}

/// Whether a client speaks the native protocol: by its first byte, which is looked at and left.
async fn is_native(stream: &UnixStream) -> io::Result<bool> {
    let mut first = [0];
    let peek = || recv(stream.as_raw_fd(), &mut first, MsgFlags::MSG_PEEK).map_err(io::Error::from);
    let got = stream.async_io(Interest::READABLE, peek).await?;
    Ok(got == 1 && first == client::MAGIC[..1])
}

/// Gives a native client's connection to the stream thread; one who may not use the socket is told so instead.
fn hand_over(stream: UnixStream, permitted: bool, backend: &Backend) {
    let refused = |stream: &UnixStream, code, message: &str| {
        let mut bytes = Greeting { versions: client::VERSIONS, member: Some(backend.limits()) }.to_bytes();
        Answer::Goodbye { code, message: message.into() }.encode(&mut bytes);
        // Whoever does not take it at once finds a closed connection.
        let _ = stream.try_write(&bytes);
    };
    if !permitted {
        return refused(&stream, FailureCode::Forbidden, FORBIDDEN);
    }
    // A ring would answer a receive on a non-blocking socket at once, with nothing.
    let fd = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream.into()));
    if let Ok(fd) = fd {
        // Where too much waits, or the member ends, the connection is closed: the client comes again.
        let _ = backend.send(BackendRequest::Native(fd));
    }
}

async fn serve_tcp(listener: TcpListener, token: Token, router: Router, mut stop: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(MAX_TCP_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => return,
            accepted = accept(&permits, listener.accept()) => accepted,
        };
        let Some((permit, (stream, address))) = accepted else { continue };
        // Answers are short; without this each would wait for an acknowledgement. Failing is no harm.
        let _ = stream.set_nodelay(true);
        let (router, token, stop) = (router.clone(), token.clone(), stop.clone());
        tokio::spawn(async move {
            let origin = Origin { uid: None, from: address.to_string() };
            connection(stream, Gate::Token(token), origin, router, stop).await;
            drop(permit);
        });
    }
}

/// Accepts one connection once there is room for it; `None` when accepting failed (then waits a little: a process out
/// of descriptors must not spin).
async fn accept<T>(
    permits: &Arc<Semaphore>,
    accepting: impl Future<Output = io::Result<T>>,
) -> Option<(tokio::sync::OwnedSemaphorePermit, T)> {
    let permit = permits.clone().acquire_owned().await.ok()?;
    match accepting.await {
        Ok(accepted) => Some((permit, accepted)),
        Err(_) => {
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

/// What stands between a connection and the router.
#[derive(Clone)]
enum Gate {
    /// Checked already.
    Open,
    /// Not permitted at all.
    Forbidden,
    /// Everything under `/v1` needs the token.
    Token(Token),
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    gate: Gate,
    origin: Origin,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| answer(gate.clone(), origin.clone(), router.clone(), request));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    // A connection that ends in an error (malformed, reset, timed out) has nobody left to be told.
    let ended = tokio::select! {
        _ = serving.as_mut() => true,
        () = stopped(&mut stop) => false,
    };
    if !ended {
        serving.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(Duration::from_secs(1), serving).await;
    }
}

async fn answer(
    gate: Gate,
    origin: Origin,
    router: Router,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let refused = match &gate {
        Gate::Open => None,
        Gate::Forbidden => Some(error(StatusCode::FORBIDDEN, "forbidden", FORBIDDEN)),
        Gate::Token(token) => {
            let path = request.uri().path();
            let open = !(path == "/v1" || path.starts_with("/v1/"));
            (!open && !token.permits(request.headers())).then(|| {
                let text = "everything under /v1 needs the token. Try: Authorization: Bearer TOKEN";
                let mut response = error(StatusCode::UNAUTHORIZED, "unauthorized", text);
                response
                    .headers_mut()
                    .insert(axum::http::header::WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
                response
            })
        }
    };
    if let Some(refused) = refused {
        return Ok(refused);
    }
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(origin);
    Ok(call(router, request).await.into_response())
}

/// The router is always ready: it has no state to wait for.
async fn call(router: Router, request: Request<Body>) -> Response {
    use hyper::service::Service;
    match hyper_util::service::TowerToHyperService::new(router).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

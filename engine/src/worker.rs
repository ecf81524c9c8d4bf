//! The worker: opens what the member keeps, brings the state forward, and starts the stream, bulk and control threads.
//!
//! Always: the tree is the store's checkpoint plus the journal behind it, or the member says that it is incomplete and
//! fetches what it lacks from its peer. Damage is named, never skipped. Never: a start without the supervisor.

mod core_config;
mod open;

use std::{
    io,
    process::ExitCode,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use ringpair_core::Node;
use ringpair_wire::{
    hello::{Hello, Speaker, VERSIONS},
    lane::{LaneKind, PathKind},
};
use tokio::sync::watch;

use crate::{
    api::{
        self,
        auth::{SocketRule, Token},
        backend::{Backend, Parts as BackendParts},
        server::{Listeners, bind_tcp, bind_unix, serve},
        status::{Status, StatusCell},
    },
    bulk::{self, Bulk, link},
    config::{Config, IoDriver, SecurityMode},
    keys::{self, Identity},
    mirror::MirrorBase,
    ring::{Driver, DriverChoice, DriverOptions, Waker},
    stream::{self, ControlWriter, Ending, Stream},
    supervisor::sockets::Inherited,
    transport::{LaneOptions, PathAddress, Protection, StrangerLimits, Transport, TransportConfig},
};

pub use self::core_config::core_config;

/// What `ringpair run` was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// Never active by itself (SM-058).
    pub force_backup: bool,
    /// Only an operator switches (SM-140).
    pub manual_switch_only: bool,
    /// An empty A creates a history without asking.
    pub bootstrap: bool,
}

/// Anything that keeps a worker from starting; its text is for the operator.
pub type StartError = Box<dyn std::error::Error + Send + Sync>;

/// The identity of this member; `None` where security is off.
///
/// # Errors
/// Keys that are missing, expired, readable by others, or another member's.
pub fn identity(config: &Config) -> Result<Option<Arc<Identity>>, StartError> {
    Ok(match config.security.mode {
        SecurityMode::Off => None,
        SecurityMode::MutualTls => {
            Some(Arc::new(keys::load(&config.security.dir, config.member, time::OffsetDateTime::now_utc())?))
        }
    })
}

/// Runs the worker until it ends.
///
/// # Errors
/// What keeps it from starting.
pub fn run(config: Config, options: RunOptions) -> Result<ExitCode, StartError> {
    let inherited = Inherited::take()?;
    let config = Arc::new(config);
    let rule = SocketRule::new(config.api.group.as_deref())?;
    let token = match &config.api.token_file {
        Some(file) => Some(Token::new(std::fs::read_to_string(file)?.trim())),
        None => None,
    };
    let (stop, stopped) = watch::channel(false);
    let (ready, opened) = mpsc::sync_channel(1);
    let stream = {
        let config = Arc::clone(&config);
        let Inherited { link, sockets, lock } = inherited;
        std::thread::Builder::new().name("stream".into()).spawn(move || {
            let ending = stream_thread(&config, options, link, sockets, &ready);
            drop(ready);
            drop(lock);
            let _ = stop.send(true);
            ending
        })?
    };
    let Ok(Opened { backend, driver }) = opened.recv() else {
        return Err(stream
            .join()
            .map_err(|_| "the stream thread panicked")?
            .err()
            .unwrap_or_else(|| "no start".into()));
    };
    let unix = (bind_unix(&config.api.socket, &rule)?, rule);
    let tcp = match (config.api.http, token) {
        (Some(address), Some(token)) => Some((bind_tcp(address)?, token)),
        _ => None,
    };
    control_thread(driver, Listeners { unix, tcp }, backend, stopped)?;
    match stream.join().map_err(|_| "the stream thread panicked")?? {
        Ending::Stopped => Ok(ExitCode::SUCCESS),
        Ending::Failed => Ok(ExitCode::FAILURE),
    }
}

/// What the control thread gets from the stream thread.
struct Opened {
    backend: Backend,
    driver: &'static str,
}

/// Serves the API and keeps the event log's file, until `stopped`.
fn control_thread(
    driver: &str,
    listeners: Listeners,
    backend: Backend,
    stopped: watch::Receiver<bool>,
) -> Result<(), StartError> {
    let events = backend.events().clone();
    let serving = async move {
        let mut newest = events.subscribe();
        let mut stopped_too = stopped.clone();
        let log = async {
            loop {
                tokio::select! {
                    changed = newest.changed() => if changed.is_err() { break },
                    _ = stopped_too.wait_for(|stopped| *stopped) => break,
                }
                if let Err(error) = events.flush() {
                    tracing::error!(%error, "the event log cannot be written");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
            let _ = events.flush();
        };
        tokio::join!(serve(listeners, backend.clone(), api::router(backend), stopped), log).0
    };
    // tokio-uring needs io_uring as the loops do: where they cannot have it, neither can it.
    if driver == "io_uring" {
        tokio_uring::start(serving)?;
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serving)?;
    }
    Ok(())
}

/// The bulk thread's buffers: each holds a piece of a large file with what stands around it in a message, or in TLS.
/// With the stream thread's they stay below the usual RLIMIT_MEMLOCK of 8 MiB.
const BULK_BUFS: usize = 7;
/// See [`BULK_BUFS`].
const BULK_BUF_BYTES: usize = (512 << 10) + (8 << 10);

fn driver_options(config: &Config) -> DriverOptions {
    let choice = match config.driver {
        IoDriver::Auto => DriverChoice::Auto,
        IoDriver::IoUring => DriverChoice::IoUring,
        IoDriver::Plain => DriverChoice::Plain,
    };
    DriverOptions { choice, without: config.io_without.clone(), ..DriverOptions::default() }
}

fn random() -> Result<[u8; 16], StartError> {
    let mut bytes = [0; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).map_err(|_| "no random numbers")?;
    Ok(bytes)
}

/// The transport's configuration for one of the two loops.
fn transport_config(
    config: &Config,
    identity: Option<Arc<Identity>>,
    instance: u64,
) -> Result<TransportConfig, StartError> {
    let (own, peer) = (config.own(), config.peer());
    let local = |endpoint: &crate::config::Endpoint| {
        endpoint.resolve().map(|address| address.ip()).ok().filter(|ip| !ip.is_unspecified())
    };
    let paths = vec![
        PathAddress { path: PathKind::Main, local: local(&own.address), peer: peer.address.resolve()? },
        PathAddress { path: PathKind::Aux, local: local(&own.aux), peer: peer.aux.resolve()? },
    ];
    let lane = |lane| LaneOptions::configured(lane, &config.transport);
    Ok(TransportConfig {
        protection: identity.map_or(Protection::Off, Protection::MutualTls),
        hello: Hello {
            versions: VERSIONS,
            pair: config.pair.clone(),
            member: config.member,
            instance,
            lane: LaneKind::Ping,
            path: PathKind::Main,
            speaker: Speaker::Worker,
        },
        paths,
        ping: lane(LaneKind::Ping),
        ds: lane(LaneKind::Ds),
        bulk: lane(LaneKind::Bulk),
        connect_timeout: config.detection.heartbeat,
        strangers: StrangerLimits::default(),
        hand_over: vec![LaneKind::Bulk],
        heartbeats: true,
    })
}

/// Opens everything and runs the loop; `ready` hears when the API may serve.
fn stream_thread(
    config: &Arc<Config>,
    options: RunOptions,
    link: crate::supervisor::link::Link,
    sockets: crate::supervisor::sockets::Sockets,
    ready: &mpsc::SyncSender<Opened>,
) -> Result<Ending, StartError> {
    let identity = identity(config)?;
    let opened = open::open(config)?;
    let driver = Driver::new(&driver_options(config))?;
    let instance = u64::from_le_bytes(random()?[..8].try_into()?);
    let listeners = std::iter::once(sockets.main).chain(sockets.aux).collect();
    let transport = Transport::new(transport_config(config, identity.clone(), instance)?, listeners)?;
    let status = StatusCell::new(Status::default());
    let waker = driver.waker();
    let (backend, requests) = Backend::new(BackendParts {
        tree: opened.tree.clone(),
        content: opened.contents.clone(),
        archive: opened.archive.clone(),
        status: status.clone(),
        events: opened.events.clone(),
        default_ack: config.ack.level,
        limits: stream::native_limits(config.member),
        wake: Box::new({
            let waker = waker.clone();
            move || waker.wake()
        }),
    });
    let (mut to_bulk, to_stream) = link::link();
    let kept = (opened.contents.clone(), opened.store.index().clone());
    let bulk = bulk_thread(config, identity, instance, kept, to_stream, waker, &mut to_bulk)?;
    let core = core_config(config, options);
    let mut start = opened.start;
    start.fresh_history = ringpair_wire::id::HistoryId(random()?);
    let report = driver.report().driver;
    let stream = Stream::new(stream::Parts {
        config: Arc::clone(config),
        node: Node::new(core.clone()),
        core,
        driver,
        transport,
        journal: opened.journal,
        start,
        control: ControlWriter::new(opened.control),
        applier: opened.applier,
        changes: opened.changes,
        store: opened.store,
        archive: opened.archive,
        contents: opened.contents,
        bulk: to_bulk,
        requests,
        events: opened.events,
        status,
        hooks: crate::supervisor::hooks(config),
        link,
        warnings: opened.warnings,
    })?;
    let _ = ready.send(Opened { backend, driver: report });
    let ending = stream.run();
    // The bulk thread was told to stop; what it was doing is not worth waiting for longer than that takes.
    if bulk.join().is_err() {
        tracing::error!("the bulk thread panicked");
    }
    Ok(ending)
}

/// Starts the bulk thread; its driver's waker goes to the stream thread's side of the link.
fn bulk_thread(
    config: &Arc<Config>,
    identity: Option<Arc<Identity>>,
    instance: u64,
    (contents, index): (crate::ds::ContentStore, crate::ds::resync::KeptIndex),
    mut stream: link::BulkSide,
    stream_waker: Waker,
    to_bulk: &mut link::StreamSide,
) -> Result<JoinHandle<()>, StartError> {
    stream.wakes(stream_waker);
    let base = MirrorBase {
        root: config.mirror.root.clone(),
        forbidden: vec![config.storage.dir.clone(), config.security.dir.clone()],
    };
    let transport = Transport::new(
        TransportConfig { heartbeats: false, hand_over: Vec::new(), ..transport_config(config, identity, instance)? },
        Vec::new(),
    )?;
    let options = DriverOptions { buf_count: BULK_BUFS, buf_bytes: BULK_BUF_BYTES, ..driver_options(config) };
    let compression = config.compression.bulk;
    let (sender, receiver) = mpsc::sync_channel::<io::Result<Waker>>(1);
    let thread = std::thread::Builder::new().name("bulk".into()).spawn(move || {
        let driver = match Driver::new(&options) {
            Ok(driver) => driver,
            Err(error) => return drop(sender.send(Err(error))),
        };
        let _ = sender.send(Ok(driver.waker()));
        let bulk = Bulk::new(bulk::Parts { driver, transport, stream, contents, index, base, instance, compression });
        if let Err(error) = bulk.run() {
            tracing::error!(%error, "the bulk thread's driver failed");
        }
    })?;
    to_bulk.wakes(receiver.recv()??);
    Ok(thread)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const TEXT: &str = r#"
[pair]
name = "test"
member = "A"
[members.A]
name = "a"
address = "127.0.0.1:1"
[members.B]
name = "b"
address = "127.0.0.1:2"
[storage]
dir = "/nowhere"
[security]
mode = "off"
[transport]
dscp = { ping = "CS5", ds = "AF21", bulk = "CS1" }
congestion = { bulk = "reno" }
bulk_rate_bytes_per_s = 1000000
"#;

    // REQ: REP-304
    #[test]
    fn lanes_are_as_the_configuration_says() {
        let config = Config::parse(Path::new("test.toml"), TEXT, &[], "host").unwrap();
        let made = transport_config(&config, None, 1).unwrap();
        for (lane, options) in [(LaneKind::Ping, &made.ping), (LaneKind::Ds, &made.ds), (LaneKind::Bulk, &made.bulk)] {
            assert_eq!(format!("{options:?}"), format!("{:?}", LaneOptions::configured(lane, &config.transport)));
        }
        assert_eq!(made.bulk.pacing_bytes_per_s, Some(1_000_000));
        assert_eq!(made.bulk.congestion.as_deref(), Some("reno"));
    }
}

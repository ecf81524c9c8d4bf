//! Authenticating the peer's dials: the transport's blocking lanes as sessions of the supervisor.
//!
//! Always: TLS and hello as in the worker's transport, with the same bounds for strangers (OPS-095). Never: a bulk lane.
#![forbid(unsafe_code)]

use std::{
    fs::File,
    io::{self, Read},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use ringpair_wire::{
    codec::Codec,
    control::Control,
    hello::{Hello, Speaker, VERSIONS},
    lane::{LaneKind, MessageKind, PathKind},
};
use time::OffsetDateTime;

use super::answer::{Door, Session};
use crate::{
    config::{Config, SecurityMode},
    keys,
    transport::{
        DownReason, LaneOptions, Protection, StrangerLimits,
        blocking::{BlockingLane, Endpoint},
    },
};

/// How long the peer may take to accept what is sent to it.
const SEND_TIME: Duration = Duration::from_secs(2);
/// How long the goodbye may take.
const GOODBYE_TIME: Duration = Duration::from_millis(100);

/// Opens for the peer of one configuration.
pub struct PeerDoor {
    endpoint: Endpoint,
}

impl PeerDoor {
    /// A door with the configured keys.
    ///
    /// # Errors
    /// If the keys cannot be read or used; the message names the file.
    pub fn new(config: &Config) -> Result<Self, String> {
        let protection = match config.security.mode {
            SecurityMode::MutualTls => {
                let identity = keys::load(&config.security.dir, config.member, OffsetDateTime::now_utc())
                    .map_err(|error| error.to_string())?;
                Protection::MutualTls(Arc::new(identity))
            }
            SecurityMode::Off => Protection::Off,
        };
        let hello = Hello {
            versions: VERSIONS,
            pair: config.pair.clone(),
            member: config.member,
            instance: instance(),
            lane: LaneKind::Ping,
            path: PathKind::Main,
            speaker: Speaker::Supervisor,
        };
        let mark = config.transport.dscp.ping;
        let options = LaneOptions { dscp_main: mark, dscp_aux: mark, ..LaneOptions::default_for(LaneKind::Ping) };
        Endpoint::new(&protection, hello, StrangerLimits::default(), options)
            .map(|endpoint| Self { endpoint })
            .map_err(|error| error.to_string())
    }
}

/// A number that no other start has.
fn instance() -> u64 {
    let mut bytes = [0; 8];
    // Only a restart that reads as a reconnect would follow from a failure.
    let _ = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
    u64::from_le_bytes(bytes)
}

impl Door for PeerDoor {
    fn open(&self, stream: TcpStream, time: Duration) -> io::Result<Box<dyn Session>> {
        let ours = stream.try_clone()?;
        let lane = self.endpoint.accept(stream, Instant::now() + time).map_err(failed)?;
        let frames = match lane.hello().lane {
            LaneKind::Ping => false,
            LaneKind::Ds => true,
            LaneKind::Bulk => return Err(io::Error::other("a bulk lane has nothing to ask a supervisor")),
        };
        Ok(Box::new(LaneSession { lane: Some(lane), stream: ours, frames }))
    }
}

fn failed(reason: DownReason) -> io::Error {
    match reason {
        DownReason::TimedOut => io::Error::new(io::ErrorKind::TimedOut, reason.to_string()),
        reason => io::Error::other(reason.to_string()),
    }
}

/// A blocking lane and its socket, which is made non-blocking while it is read.
struct LaneSession {
    lane: Option<BlockingLane>,
    stream: TcpStream,
    frames: bool,
}

impl LaneSession {
    fn lane(&mut self) -> io::Result<&mut BlockingLane> {
        self.lane.as_mut().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
    }

    fn send_message(&mut self, kind: MessageKind, body: &[u8]) -> io::Result<()> {
        self.lane()?.send(kind, body, Instant::now() + SEND_TIME).map_err(failed)
    }
}

impl AsFd for LaneSession {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl Session for LaneSession {
    fn carries_frames(&self) -> bool {
        self.frames
    }

    fn send(&mut self, message: &Control) -> io::Result<()> {
        self.send_message(MessageKind::Control, &message.to_bytes())
    }

    fn send_frame(&mut self, frame: &[u8]) -> io::Result<()> {
        self.send_message(MessageKind::Frame, frame)
    }

    fn receive(&mut self) -> io::Result<Option<Control>> {
        self.stream.set_nonblocking(true)?;
        let received = self.lane()?.receive(Instant::now() + SEND_TIME);
        self.stream.set_nonblocking(false)?;
        match received {
            Ok(Some((MessageKind::Control, body))) => Control::from_bytes(&body)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            // Whatever else the peer says on the way (announcements, frames) is for its worker, which is dead.
            Ok(Some(_)) => self.receive(),
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(DownReason::TimedOut) => Ok(None),
            Err(reason) => Err(failed(reason)),
        }
    }

    fn finish(&mut self) {
        if let Some(lane) = self.lane.take() {
            lane.close(Instant::now() + GOODBYE_TIME);
        }
    }
}

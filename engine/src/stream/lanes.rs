//! Which connection serves which lane, and when a lane that is down is dialed again.
//!
//! Always: at most one attempt under way for each lane and path; ds runs over main if its ping lane is up, else over
//! aux. Never: a decision about roles; who dials ds is told by the caller.

use std::time::Duration;

use ringpair_core::{Instant, input::Channel};
use ringpair_wire::lane::{LaneKind, PathKind};

use crate::transport::ConnId;

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    conn: Option<ConnId>,
    dialing: bool,
    next_dial: Instant,
}

/// The ping lanes and the ds lane.
#[derive(Debug)]
pub struct Lanes {
    open: bool,
    redial: Duration,
    ping: [Lane; 2],
    ds: Lane,
}

impl Lanes {
    /// All down, and nothing dialed before [`open`](Self::open).
    #[must_use]
    pub fn new(redial: Duration) -> Self {
        Self { open: false, redial, ping: Default::default(), ds: Lane::default() }
    }

    /// From now on lanes that are down are dialed.
    pub fn open(&mut self) {
        self.open = true;
    }

    /// Dials the ping lanes that are down without waiting for their time.
    pub fn hurry(&mut self) {
        for lane in &mut self.ping {
            lane.next_dial = Instant(0);
        }
    }

    fn lane(&mut self, lane: LaneKind, path: PathKind) -> Option<&mut Lane> {
        match lane {
            LaneKind::Ping => Some(&mut self.ping[index(path)]),
            LaneKind::Ds => Some(&mut self.ds),
            LaneKind::Bulk => None,
        }
    }

    /// The connection behind a channel, if it is up.
    #[must_use]
    pub fn conn(&self, channel: Channel) -> Option<ConnId> {
        match channel {
            Channel::Ping(path) => self.ping[index(path)].conn,
            Channel::Ds => self.ds.conn,
        }
    }

    /// All connections that are up.
    pub fn conns(&self) -> impl Iterator<Item = ConnId> {
        self.ping.iter().chain([&self.ds]).filter_map(|lane| lane.conn)
    }

    /// The channel behind a connection.
    #[must_use]
    pub fn channel(&self, conn: ConnId) -> Option<Channel> {
        if self.ds.conn == Some(conn) {
            return Some(Channel::Ds);
        }
        PathKind::ALL.into_iter().find(|path| self.ping[index(*path)].conn == Some(conn)).map(Channel::Ping)
    }

    /// The path that ds and bulk take: main if its ping lane is up, else aux.
    #[must_use]
    pub fn data_path(&self) -> Option<PathKind> {
        PathKind::ALL.into_iter().find(|path| self.ping[index(*path)].conn.is_some())
    }

    /// A lane came up.
    pub fn up(&mut self, conn: ConnId, lane: LaneKind, path: PathKind) {
        if let Some(lane) = self.lane(lane, path) {
            *lane = Lane { conn: Some(conn), ..Lane::default() };
        }
    }

    /// A connection went down; whether it was one of these lanes (not replaced by a newer connection before).
    pub fn down(&mut self, conn: ConnId, lane: LaneKind, path: PathKind, now: Instant) -> bool {
        let next_dial = now.plus(self.redial);
        match self.lane(lane, path) {
            Some(lane) if lane.conn == Some(conn) => {
                *lane = Lane { next_dial, ..Lane::default() };
                true
            }
            _ => false,
        }
    }

    /// An attempt failed.
    pub fn dial_failed(&mut self, lane: LaneKind, path: PathKind, now: Instant) {
        let next_dial = now.plus(self.redial);
        if let Some(lane) = self.lane(lane, path) {
            (lane.dialing, lane.next_dial) = (false, next_dial);
        }
    }

    /// What to dial now, each noted as under way. `ds`: whether this end dials the ds lane.
    pub fn due(&mut self, now: Instant, ds: bool) -> Vec<(LaneKind, PathKind)> {
        let mut due = Vec::new();
        if !self.open {
            return due;
        }
        for path in PathKind::ALL {
            due.extend(self.ping[index(path)].try_dial(now).then_some((LaneKind::Ping, path)));
        }
        if ds && let Some(path) = self.data_path() {
            due.extend(self.ds.try_dial(now).then_some((LaneKind::Ds, path)));
        }
        due
    }

    /// When something may be due again; `None`: not before something happens.
    #[must_use]
    pub fn next_timeout(&self, ds: bool) -> Option<Instant> {
        if !self.open {
            return None;
        }
        let ds = (ds && self.data_path().is_some()).then_some(&self.ds);
        self.ping.iter().chain(ds).filter(|lane| lane.is_down()).map(|lane| lane.next_dial).min()
    }
}

impl Lane {
    fn is_down(&self) -> bool {
        self.conn.is_none() && !self.dialing
    }

    fn try_dial(&mut self, now: Instant) -> bool {
        let due = self.is_down() && self.next_dial <= now;
        self.dialing |= due;
        due
    }
}

const fn index(path: PathKind) -> usize {
    match path {
        PathKind::Main => 0,
        PathKind::Aux => 1,
    }
}

//! Which connection serves which lane, which path the data takes, and when a lane that is down is dialed again.
//!
//! Always: at most one attempt under way for each lane and path; data takes main while that can be used, else aux, and
//! goes home to main once that has stood for a while. A ds lane on the other path is not waited for: a new one takes
//! its place. What is lost is dialed again at once, what cannot be reached at a pace. Never: a decision about roles; who dials ds is told by the caller.

use std::time::Duration;

use ringpair_core::{Instant, input::Channel};
use ringpair_wire::lane::{LaneKind, PathKind};

use crate::transport::ConnId;

/// For so long main must have been usable before data leaves aux: a path that flaps moves nothing.
const HOME_AFTER: Duration = Duration::from_secs(1);
/// For so long aux must have been usable before data takes it: at a start main comes up beside it.
const AUX_AFTER: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    conn: Option<ConnId>,
    since: Instant,
    dialing: bool,
    next_dial: Instant,
}

/// The ping lanes and the ds lane.
#[derive(Debug)]
pub struct Lanes {
    open: bool,
    redial: Duration,
    silence: Duration,
    ping: [Lane; 2],
    ds: Lane,
    ds_path: Option<PathKind>,
    usable_since: [Option<Instant>; 2],
    data_path: Option<PathKind>,
}

impl Lanes {
    /// All down, and nothing dialed before [`open`](Self::open). `redial`: the time between attempts; `silence`: how
    /// long a new ping lane may go without a heartbeat.
    #[must_use]
    pub fn new(redial: Duration, silence: Duration) -> Self {
        Self {
            open: false,
            redial,
            silence,
            ping: Default::default(),
            ds: Lane::default(),
            ds_path: None,
            usable_since: [None; 2],
            data_path: None,
        }
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

    /// The path that ds and bulk take, as last chosen.
    #[must_use]
    pub const fn data_path(&self) -> Option<PathKind> {
        self.data_path
    }

    /// Chooses the path for ds and bulk; `heard`: whether main and aux are up in the sense of protocol §4. To be called
    /// in every turn, for time alone changes the choice too.
    pub fn choose_data_path(&mut self, heard: [bool; 2], now: Instant) {
        for (index, lane) in self.ping.iter().enumerate() {
            let usable = lane.conn.is_some() && (heard[index] || now.since(lane.since) < self.silence);
            self.usable_since[index] = self.usable_since[index].or(Some(now)).filter(|_| usable);
        }
        self.data_path = match self.usable_since {
            [Some(main), Some(_)] if self.data_path == Some(PathKind::Aux) && now.since(main) < HOME_AFTER => {
                Some(PathKind::Aux)
            }
            [Some(_), _] => Some(PathKind::Main),
            [None, Some(aux)] if now.since(aux) >= AUX_AFTER => Some(PathKind::Aux),
            // Nothing better: what stands may come back.
            _ => self.data_path.filter(|path| self.ping[index(*path)].conn.is_some()),
        };
    }

    /// A lane came up.
    pub fn up(&mut self, conn: ConnId, lane: LaneKind, path: PathKind, now: Instant) {
        if lane == LaneKind::Ds {
            self.ds_path = Some(path);
        }
        if let Some(lane) = self.lane(lane, path) {
            *lane = Lane { conn: Some(conn), since: now, ..Lane::default() };
        }
    }

    /// A connection went down; whether it was one of these lanes (not replaced by a newer connection before).
    pub fn down(&mut self, conn: ConnId, lane: LaneKind, path: PathKind, now: Instant) -> bool {
        let redial = self.redial;
        match self.lane(lane, path) {
            Some(lane) if lane.conn == Some(conn) => {
                // What stood for a while is dialed again at once; what goes down as soon as it is up has its pace.
                let next_dial = if now.since(lane.since) >= redial { now } else { now.plus(redial) };
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

    /// The path that ds is to be dialed on, if it is not there.
    fn ds_wanted(&self) -> Option<PathKind> {
        let path = self.data_path?;
        let there = self.ds.conn.is_some() && self.ds_path == Some(path);
        (!there && !self.ds.dialing).then_some(path)
    }

    /// What to dial now, each noted as under way. `ds`: whether this end dials the ds lane.
    pub fn due(&mut self, now: Instant, ds: bool) -> Vec<(LaneKind, PathKind)> {
        let mut due = Vec::new();
        if !self.open {
            return due;
        }
        for path in PathKind::ALL {
            let lane = &mut self.ping[index(path)];
            if lane.is_down() && lane.next_dial <= now {
                lane.dialing = true;
                due.push((LaneKind::Ping, path));
            }
        }
        if let Some(path) = self.ds_wanted().filter(|_| ds && self.ds.next_dial <= now) {
            self.ds.dialing = true;
            due.push((LaneKind::Ds, path));
        }
        due
    }

    /// When something may be due again; `None`: not before something happens.
    #[must_use]
    pub fn next_timeout(&self, ds: bool) -> Option<Instant> {
        if !self.open {
            return None;
        }
        let ds = self.ds_wanted().filter(|_| ds).map(|_| self.ds.next_dial);
        self.ping.iter().filter(|lane| lane.is_down()).map(|lane| lane.next_dial).chain(ds).min()
    }
}

impl Lane {
    fn is_down(&self) -> bool {
        self.conn.is_none() && !self.dialing
    }
}

const fn index(path: PathKind) -> usize {
    match path {
        PathKind::Main => 0,
        PathKind::Aux => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DS_ON_MAIN: (LaneKind, PathKind) = (LaneKind::Ds, PathKind::Main);
    const DS_ON_AUX: (LaneKind, PathKind) = (LaneKind::Ds, PathKind::Aux);

    fn at(ms: u64) -> Instant {
        Instant(0).plus(Duration::from_millis(ms))
    }

    /// Ping lanes on both paths, up since 10 ms, and ds on the path that is chosen.
    fn both_up() -> (Lanes, [ConnId; 2]) {
        let [ping_main, ping_aux, ds, other] = [1, 2, 3, 4].map(ConnId::numbered);
        let mut lanes = Lanes::new(Duration::from_millis(50), Duration::from_millis(400));
        lanes.open();
        assert_eq!(lanes.due(at(0), true).len(), 2, "the ping lanes; no path for ds yet");
        lanes.up(ping_aux, LaneKind::Ping, PathKind::Aux, at(8));
        lanes.choose_data_path([false; 2], at(9));
        assert_eq!(lanes.due(at(9), true), [], "main may come up beside it");
        lanes.up(ping_main, LaneKind::Ping, PathKind::Main, at(10));
        lanes.choose_data_path([false; 2], at(10));
        assert_eq!(lanes.due(at(10), true), [DS_ON_MAIN]);
        assert_eq!(lanes.due(at(11), true), [], "one attempt at a time");
        lanes.up(ds, LaneKind::Ds, PathKind::Main, at(12));
        (lanes, [ds, other])
    }

    // REQ: SM-290
    #[test]
    fn data_takes_aux_when_main_falls_silent_and_goes_home_once_main_has_stood() {
        let (mut lanes, [on_main, on_aux]) = both_up();
        lanes.choose_data_path([true; 2], at(1_000));
        assert_eq!((lanes.due(at(1_000), true), lanes.next_timeout(true)), (vec![], None));
        // The connections stand, but nothing is heard on main.
        lanes.choose_data_path([false, true], at(1_400));
        assert_eq!(lanes.due(at(1_400), false), [], "the other end dials");
        assert_eq!(lanes.due(at(1_400), true), [DS_ON_AUX]);
        lanes.up(on_aux, LaneKind::Ds, PathKind::Aux, at(1_402));
        assert!(!lanes.down(on_main, LaneKind::Ds, PathKind::Main, at(1_403)), "it was replaced");
        lanes.choose_data_path([true; 2], at(2_000));
        lanes.choose_data_path([true; 2], at(2_999));
        assert_eq!(lanes.due(at(2_999), true), [], "main must stand for a while");
        lanes.choose_data_path([true; 2], at(3_000));
        assert_eq!(lanes.due(at(3_000), true), [DS_ON_MAIN]);
        lanes.dial_failed(LaneKind::Ds, PathKind::Main, at(3_100));
        assert_eq!(lanes.conn(Channel::Ds), Some(on_aux), "a failed attempt costs nothing");
        assert_eq!(lanes.next_timeout(true), Some(at(3_150)));
        assert_eq!(lanes.due(at(3_150), true), [DS_ON_MAIN]);
    }

    // REQ: REP-008
    #[test]
    fn a_lane_that_is_lost_is_dialed_again_at_once_and_one_that_flaps_at_its_pace() {
        let (mut lanes, [ds, again]) = both_up();
        lanes.choose_data_path([true; 2], at(1_000));
        assert!(lanes.down(ds, LaneKind::Ds, PathKind::Main, at(1_000)));
        assert_eq!(lanes.next_timeout(true), Some(at(1_000)));
        assert_eq!(lanes.due(at(1_000), true), [DS_ON_MAIN]);
        lanes.up(again, LaneKind::Ds, PathKind::Main, at(1_001));
        assert!(lanes.down(again, LaneKind::Ds, PathKind::Main, at(1_002)));
        assert_eq!(lanes.due(at(1_051), true), []);
        assert_eq!(lanes.due(at(1_052), true), [DS_ON_MAIN]);
        lanes.dial_failed(LaneKind::Ds, PathKind::Main, at(1_060));
        assert_eq!((lanes.due(at(1_109), true), lanes.due(at(1_110), true)), (vec![], vec![DS_ON_MAIN]));
    }

    #[test]
    fn silence_on_both_paths_moves_nothing_and_aux_alone_serves_soon() {
        let (mut lanes, _) = both_up();
        lanes.choose_data_path([false; 2], at(1_000));
        assert_eq!((lanes.data_path(), lanes.due(at(1_000), true)), (Some(PathKind::Main), vec![]));
        assert!(lanes.down(ConnId::numbered(1), LaneKind::Ping, PathKind::Main, at(1_001)));
        lanes.choose_data_path([false, true], at(1_001));
        assert_eq!(lanes.data_path(), None);
        lanes.choose_data_path([false, true], at(1_201));
        assert_eq!(lanes.data_path(), Some(PathKind::Aux));
    }
}

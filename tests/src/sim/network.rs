//! Two paths between two members: datagrams, and connections that behave as TCP's.
//!
//! Always: what a connection carries arrives in order or not at all, and waits while its path is cut; an end learns of
//! the other's death by a FIN that has to travel, or by giving up. Never: a datagram that belongs to another session.

use std::collections::{BTreeMap, VecDeque};

use ringpair_core::input::Channel;
use ringpair_wire::{control::Control, heartbeat::Heartbeat, id::Epoch, lane::PathKind};

use super::{
    disk::Frame,
    rng::Rng,
    time::MS,
    world::{Ev, World},
};

/// A lane of a member that can be up or down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// The ping lane of the main path.
    PingMain,
    /// The ping lane of the aux path.
    PingAux,
    /// The ds lane, on either path.
    Ds,
}

impl Slot {
    /// Every slot.
    pub const ALL: [Self; 3] = [Self::PingMain, Self::PingAux, Self::Ds];

    /// The ping lane of a path.
    #[must_use]
    pub const fn ping(path: PathKind) -> Self {
        match path {
            PathKind::Main => Self::PingMain,
            PathKind::Aux => Self::PingAux,
        }
    }

    /// As the core names it.
    #[must_use]
    pub const fn channel(self) -> Channel {
        match self {
            Self::PingMain => Channel::Ping(PathKind::Main),
            Self::PingAux => Channel::Ping(PathKind::Aux),
            Self::Ds => Channel::Ds,
        }
    }

    /// The slot of a channel.
    #[must_use]
    pub const fn of(channel: Channel) -> Self {
        match channel {
            Channel::Ping(path) => Self::ping(path),
            Channel::Ds => Self::Ds,
        }
    }
}

/// What a connection carries.
#[derive(Clone, Debug)]
pub enum Words {
    /// A control message.
    Control(Control),
    /// A frame, with the epoch of the office that sends it (for the checkers only).
    Frame(Frame, Epoch),
    /// The other end is closed.
    Fin,
}

/// Who owns an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The worker of this incarnation.
    Worker(u64),
    /// The supervisor, for its dead worker.
    Supervisor(u64),
    /// Closed.
    Closed,
}

/// A connection.
#[derive(Debug)]
pub struct Conn {
    /// Its lane.
    pub slot: Slot,
    /// Its path.
    pub path: PathKind,
    /// Its two ends, by member.
    pub ends: [End; 2],
    /// What is on its way, by sender: when it is there, and what.
    lanes: [VecDeque<(u64, Words)>; 2],
    /// When the newest of it is there, by sender.
    last: [u64; 2],
    /// Datagrams of its session that came, by receiver: the highest number and a window below it.
    seen: [(u64, u128); 2],
    /// Datagrams sent, by sender.
    sent: [u64; 2],
}

impl Conn {
    /// Whether this number came for the first time.
    fn fresh(&mut self, receiver: usize, number: u64) -> bool {
        let (highest, window) = &mut self.seen[receiver];
        if number > *highest {
            let shift = number - *highest;
            *window = if shift >= 128 { 0 } else { *window << shift };
            *window |= 1;
            *highest = number;
            return true;
        }
        let age = *highest - number;
        let fresh = age < 128 && *window & (1 << age) == 0;
        if fresh {
            *window |= 1 << age;
        }
        fresh
    }
}

/// One path, each direction named by its sender.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Nothing that this member sends arrives.
    pub cut: [bool; 2],
    /// Counts the cuts and heals.
    pub changes: u64,
    /// Datagrams lost, per mille.
    pub loss: u64,
    /// Datagrams that arrive twice, per mille.
    pub twice: u64,
    /// Added to every transit: from, to.
    pub delay: (u64, u64),
}

impl Path {
    const QUIET: Self = Self { cut: [false; 2], changes: 0, loss: 0, twice: 0, delay: (0, 0) };

    /// Nothing is cut.
    #[must_use]
    pub const fn whole(&self) -> bool {
        !self.cut[0] && !self.cut[1]
    }
}

/// A datagram on its way.
#[derive(Clone, Debug)]
pub struct Datagram {
    /// The receiver.
    pub to: usize,
    /// The path.
    pub path: PathKind,
    /// The connection whose session sealed it.
    pub session: u32,
    /// Its number in that session.
    pub number: u64,
    /// What it says.
    pub beat: Heartbeat,
}

/// The network.
#[derive(Debug)]
pub struct Network {
    /// Main and aux.
    pub paths: [Path; 2],
    /// The connections that have an end.
    pub conns: BTreeMap<u32, Conn>,
    next: u32,
    /// Each member's lanes that are up.
    pub up: [[Option<u32>; 3]; 2],
    /// Lanes whose connections are reset soon after they are made.
    pub resets: [bool; 3],
}

impl Default for Network {
    fn default() -> Self {
        Self { paths: [Path::QUIET; 2], conns: BTreeMap::new(), next: 0, up: [[None; 3]; 2], resets: [false; 3] }
    }
}

impl Network {
    /// This path.
    #[must_use]
    pub const fn path(&self, path: PathKind) -> &Path {
        &self.paths[path as usize]
    }

    /// Whether anything could pass both ways.
    #[must_use]
    pub fn any_whole(&self) -> bool {
        self.paths.iter().any(Path::whole)
    }

    fn transit(&self, path: PathKind, link: (u64, u64), rng: &mut Rng) -> u64 {
        rng.within(link) + rng.within(self.path(path).delay)
    }
}

impl World {
    /// Sends a heartbeat by the session of its path.
    pub fn send_datagram(&mut self, from: usize, path: PathKind, beat: Heartbeat) {
        let Some(session) = self.net.up[from][Slot::ping(path) as usize] else { return };
        let Some(conn) = self.net.conns.get_mut(&session) else { return };
        conn.sent[from] += 1;
        let number = conn.sent[from];
        let line = *self.net.path(path);
        if line.cut[from] || self.rng.per_mille(line.loss) {
            return;
        }
        let copies = 1 + u64::from(self.rng.per_mille(line.twice));
        for _ in 0..copies {
            let at = self.now + self.net.transit(path, self.speed.link, &mut self.rng);
            let datagram = Datagram { to: 1 - from, path, session, number, beat };
            self.at(at, Ev::Datagram(Box::new(datagram)));
        }
    }

    /// Whether a datagram that arrives is one for the receiver's present session, for the first time.
    pub fn admits_datagram(&mut self, datagram: &Datagram) -> bool {
        let cut = self.net.path(datagram.path).cut[1 - datagram.to];
        let present = self.net.up[datagram.to][Slot::ping(datagram.path) as usize] == Some(datagram.session);
        let conn = self.net.conns.get_mut(&datagram.session);
        !cut && present && conn.is_some_and(|conn| conn.fresh(datagram.to, datagram.number))
    }

    /// Sends on a connection; what is sent on a closed one is gone.
    pub fn send_words(&mut self, from: usize, id: u32, words: Words) {
        let Some(conn) = self.net.conns.get(&id) else { return };
        let line = self.net.path(conn.path);
        let lost = self.rng.per_mille(line.loss);
        let mut at = self.now + self.net.transit(conn.path, self.speed.link, &mut self.rng);
        if lost {
            at += self.rng.within((200 * MS, 450 * MS)); // a retransmission
        }
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        at = at.max(conn.last[from]);
        conn.last[from] = at;
        conn.lanes[from].push_back((at, words));
        self.at(at, Ev::Deliver { conn: id, from });
    }

    /// What is due on a connection arrives.
    pub fn deliver(&mut self, id: u32, from: usize) {
        loop {
            let Some(conn) = self.net.conns.get_mut(&id) else { return };
            if self.net.paths[conn.path as usize].cut[from] || self.members[1 - from].host_down() {
                return;
            }
            if conn.lanes[from].front().is_none_or(|(at, _)| *at > self.now) {
                return;
            }
            let Some((_, words)) = conn.lanes[from].pop_front() else { return };
            let (slot, end) = (conn.slot, conn.ends[1 - from]);
            match (words, end) {
                (Words::Fin, End::Closed) => self.forget(id),
                (Words::Fin, _) => self.close_end(1 - from, id, false),
                // A reset answers what comes for a closed end.
                (_, End::Closed) => {
                    if conn.ends[from] != End::Closed
                        && !conn.lanes[1 - from].iter().any(|(_, w)| matches!(w, Words::Fin))
                    {
                        self.send_words(1 - from, id, Words::Fin);
                    }
                }
                (words, End::Worker(_)) => self.words_for_worker(1 - from, slot, id, words),
                (words, End::Supervisor(_)) => self.words_for_keeper(1 - from, id, words),
            }
        }
    }

    /// Closes one end: its owner is told; the other gets a FIN, if `says`.
    pub fn close_end(&mut self, m: usize, id: u32, says: bool) {
        let Some(conn) = self.net.conns.get_mut(&id) else { return };
        let owner = std::mem::replace(&mut conn.ends[m], End::Closed);
        let slot = conn.slot;
        let other_open = conn.ends[1 - m] != End::Closed;
        match owner {
            End::Worker(_) => {
                if self.net.up[m][slot as usize] == Some(id) {
                    self.net.up[m][slot as usize] = None;
                    self.lane_for_worker(m, slot, false);
                    self.dial_soon(m, slot, 0);
                }
            }
            End::Supervisor(_) => self.keeper_lost(m, id),
            End::Closed => return,
        }
        if says && other_open {
            self.send_words(m, id, Words::Fin);
        }
        self.forget(id);
    }

    /// A process is gone: its ends close, and the kernel says so unless the host is gone too.
    pub fn drop_ends(&mut self, m: usize, owner: End, host: bool) {
        let ids: Vec<u32> =
            self.net.conns.iter().filter(|(_, conn)| conn.ends[m] == owner).map(|(id, _)| *id).collect();
        for id in ids {
            let reset = self.rng.per_mille(300);
            let Some(conn) = self.net.conns.get_mut(&id) else { continue };
            conn.ends[m] = End::Closed;
            let slot = conn.slot;
            if host {
                conn.lanes[m].clear();
                conn.lanes[1 - m].clear();
                let give_up = self.now + self.rng.within(self.speed.give_up);
                self.at(give_up, Ev::GiveUp { conn: id, end: 1 - m, changes: u64::MAX });
            } else {
                if reset {
                    conn.lanes[m].clear(); // unread data at the dead end: a reset overtakes what was sent
                }
                if conn.ends[1 - m] != End::Closed {
                    self.send_words(m, id, Words::Fin);
                }
            }
            if self.net.up[m][slot as usize] == Some(id) {
                self.net.up[m][slot as usize] = None;
            }
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u32) {
        let over = self.net.conns.get(&id).is_some_and(|conn| conn.ends == [End::Closed; 2]);
        if over {
            self.net.conns.remove(&id);
        }
    }

    /// TCP's patience with a cut path, or with a host that answers nothing, is over.
    pub fn give_up(&mut self, id: u32, end: usize, changes: u64) {
        let Some(conn) = self.net.conns.get(&id) else { return };
        let path = self.net.path(conn.path);
        let cut = !path.whole() && path.changes == changes;
        let dead = conn.ends[1 - end] == End::Closed;
        if conn.ends[end] != End::Closed && (cut || dead) {
            self.close_end(end, id, true);
        }
    }

    /// Cuts or heals one direction of a path.
    pub fn set_cut(&mut self, path: PathKind, from: usize, cut: bool) {
        let line = &mut self.net.paths[path as usize];
        if line.cut[from] == cut {
            return;
        }
        line.cut[from] = cut;
        line.changes += 1;
        let (changes, whole) = (line.changes, line.whole());
        let ids: Vec<u32> = self.net.conns.iter().filter(|(_, conn)| conn.path == path).map(|(id, _)| *id).collect();
        for id in ids {
            if !whole {
                for end in 0..2 {
                    let at = self.now + self.rng.within(self.speed.give_up);
                    self.at(at, Ev::GiveUp { conn: id, end, changes });
                }
            }
            if !cut {
                // What waited goes with the next retransmission.
                let at = self.now + self.rng.within((MS, 300 * MS));
                self.at(at, Ev::Deliver { conn: id, from });
            }
        }
    }

    /// Dials a lane that is down, `wait` from now.
    pub fn dial_soon(&mut self, m: usize, slot: Slot, wait: u64) {
        let Some(worker) = self.members[m].worker.as_mut().filter(|worker| worker.doors_open) else { return };
        worker.dials[slot as usize] += 1;
        let (inc, attempt) = (worker.inc, worker.dials[slot as usize]);
        self.at(self.now + wait, Ev::Dial { m, inc, slot, attempt });
    }

    /// An attempt to connect begins.
    pub fn dial(&mut self, m: usize, inc: u64, slot: Slot, attempt: u64) {
        let Some(worker) = self.members[m].worker.as_ref().filter(|worker| worker.inc == inc) else { return };
        if worker.dials[slot as usize] != attempt || self.net.up[m][slot as usize].is_some() {
            return;
        }
        if worker.frozen {
            return self.at(self.now + 20 * MS, Ev::Dial { m, inc, slot, attempt });
        }
        let path = match slot {
            Slot::PingMain => PathKind::Main,
            Slot::PingAux => PathKind::Aux,
            Slot::Ds if self.net.up[m][0].is_some() => PathKind::Main,
            Slot::Ds if self.net.up[m][1].is_some() => PathKind::Aux,
            Slot::Ds => self.rng.pick(&PathKind::ALL),
        };
        // SYN, SYN-ACK, two flights of TLS, hello: two round trips and some computing.
        let transit = self.net.transit(path, self.speed.link, &mut self.rng);
        let until = self.now + (100 * MS).max(transit * 6);
        self.at(self.now + transit * 4 + MS, Ev::DialTry { m, inc, slot, attempt, path, until });
    }

    /// The attempt succeeds if the peer answers now.
    pub fn dial_try(&mut self, m: usize, inc: u64, slot: Slot, attempt: u64, path: PathKind, until: u64) {
        let peer = 1 - m;
        let Some(worker) = self.members[m].worker.as_ref().filter(|worker| worker.inc == inc) else { return };
        // Both dialled: the connection that was made first stays.
        let made = self.net.conns.values().any(|conn| conn.slot == slot && !conn.ends.contains(&End::Closed));
        if worker.dials[slot as usize] != attempt || self.net.up[m][slot as usize].is_some() || made {
            return;
        }
        let reachable = self.net.path(path).whole() && !self.members[peer].host_down() && !worker.frozen;
        let answers = self.members[peer].answers();
        match (reachable, answers) {
            (true, Some(end)) => self.connect(m, slot, path, End::Worker(inc), end),
            _ if self.now >= until => self.dial(m, inc, slot, attempt),
            (true, None) if self.members[peer].refuses() => {
                let wait = self.now + 25 * MS; // refused at once; the next attempt is not made at once
                self.at(wait, Ev::Dial { m, inc, slot, attempt });
            }
            _ => {
                let again = if reachable { self.now + MS } else { until };
                self.at(again.min(until), Ev::DialTry { m, inc, slot, attempt, path, until });
            }
        }
    }

    fn connect(&mut self, m: usize, slot: Slot, path: PathKind, own: End, theirs: End) {
        let id = self.net.next;
        self.net.next += 1;
        let mut ends = [own, theirs];
        if m == 1 {
            ends.swap(0, 1);
        }
        let conn = Conn {
            slot,
            path,
            ends,
            lanes: [VecDeque::new(), VecDeque::new()],
            last: [self.now; 2],
            seen: [(0, 0); 2],
            sent: [0; 2],
        };
        self.net.conns.insert(id, conn);
        self.conn_up(m, id);
        let transit = self.net.transit(path, self.speed.link, &mut self.rng);
        if let Some(conn) = self.net.conns.get_mut(&id) {
            conn.last[m] = self.now + transit; // nothing overtakes the handshake's last flight
        }
        self.at(self.now + transit, Ev::ConnUp { conn: id, end: 1 - m });
        if self.net.resets[slot as usize] {
            let at = self.now + self.rng.within((MS, 500 * MS));
            self.at(at, Ev::Reset(id));
        }
    }

    /// Resets the connections of one lane, whoever holds their ends.
    pub fn reset_lane(&mut self, slot: Slot) {
        let ids: Vec<u32> = self.net.conns.iter().filter(|(_, conn)| conn.slot == slot).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.reset(id));
    }

    /// A connection is reset: what is on its way is lost, one end knows at once, the other when it hears.
    pub fn reset(&mut self, id: u32) {
        let first = usize::from(self.rng.coin());
        if let Some(conn) = self.net.conns.get_mut(&id) {
            conn.lanes.iter_mut().for_each(VecDeque::clear);
            self.close_end(first, id, true);
        }
    }

    /// One end knows that it is up; it replaces what stood in its place.
    pub fn conn_up(&mut self, m: usize, id: u32) {
        let Some(conn) = self.net.conns.get(&id) else { return };
        let (slot, end) = (conn.slot, conn.ends[m]);
        match end {
            End::Closed => {}
            End::Worker(_) => {
                if let Some(old) = self.net.up[m][slot as usize].take() {
                    self.net.up[m][slot as usize] = Some(id);
                    self.lane_for_worker(m, slot, false);
                    self.close_end(m, old, true);
                }
                self.net.up[m][slot as usize] = Some(id);
                self.lane_for_worker(m, slot, true);
            }
            End::Supervisor(_) => self.keeper_met(m, id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_datagram_is_known() {
        let mut conn = Conn {
            slot: Slot::PingMain,
            path: PathKind::Main,
            ends: [End::Closed; 2],
            lanes: [VecDeque::new(), VecDeque::new()],
            last: [0; 2],
            seen: [(0, 0); 2],
            sent: [0; 2],
        };
        let came: Vec<bool> = [1, 3, 2, 3, 2, 200, 3].into_iter().map(|number| conn.fresh(0, number)).collect();
        assert_eq!(came, [true, true, true, false, false, true, false]);
    }
}

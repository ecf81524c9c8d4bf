//! The transport's part of a turn of the loop: completions in, work in order of importance, new operations out.
//!
//! Always: the peer's lanes first, ping before ds before bulk; strangers' bytes last and only a few of them a turn, for
//! each may cost a handshake. A connection has one receive and one send in flight at most.
#![forbid(unsafe_code)]

use std::{
    io,
    time::{Duration, Instant},
};

use super::{
    Transport, UNDELIVERED_MAX_BYTES,
    conn::{OpKind, State, ZeroCopy},
    session::SessionEvent,
    types::{ConnId, DownReason},
};
use crate::ring::{Buf, BufPool, Carried, Completion, Driver, Op, Token};

/// So many accepts are in flight on each listener: what comes in a turn that took long does not pile up in the backlog.
const ACCEPTS: usize = 4;
/// So many strangers' receives are processed in a turn, each at the cost of a handshake (0.2 ms) at most. Not fewer
/// than are accepted, or the peer could be pushed out before it is heard.
const STRANGERS_A_TURN: usize = ACCEPTS;
/// What a connection receives at a time until it is open.
const GREETING_BYTES: usize = 4 << 10;
/// After `accept` failed (no descriptors left): the next one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// After a send failed, the peer's last bytes may take so long.
const LAST_BYTES_TIME: Duration = Duration::from_millis(200);
/// How many bytes a send carries before the lane is open.
const GREETING_SEND_BYTES: usize = 16 << 10;

impl Transport {
    /// Takes a completion.
    pub(super) fn complete(&mut self, driver: &mut Driver, completion: Completion, now: Instant) {
        let Completion { token, result, carried, more } = completion;
        let id = ConnId { index: token.index(), tag: token.tag() };
        match OpKind::of(token) {
            Some(OpKind::Accept) => self.accept_done(driver, token.index(), result, carried, now),
            Some(OpKind::Connect) => self.connect_done(id, result, now),
            Some(OpKind::Receive) => self.receive_done(id, result, carried),
            Some(OpKind::Send) => self.send_done(id, result, now),
            Some(OpKind::SendZeroCopy) if more || result.is_err() => self.send_done(id, result, now),
            Some(OpKind::SendZeroCopy) => self.sent_memory_freed(id, result.unwrap_or(0) > 0),
            Some(OpKind::DatagramReceive) => self.datagram_came(token.index()),
            Some(OpKind::DatagramSend) => self.datagram_sent(token.index(), result.is_err()),
            None => {}
        }
    }

    fn accept_done(
        &mut self,
        driver: &mut Driver,
        index: u32,
        result: io::Result<usize>,
        carried: Carried,
        now: Instant,
    ) {
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.index == index) {
            listener.accepting = listener.accepting.saturating_sub(1);
            if result.is_err() {
                listener.not_before = Some(now + ACCEPT_PAUSE);
            }
        }
        match (result, carried) {
            (Ok(_), Carried::Socket { fd, peer: Some(peer) }) => self.welcome(fd, peer, now),
            (Ok(_), _) => {}
            (Err(error), _) => {
                self.stats.accept_failures += 1;
                if let Some(suppressed) = self.limiter.pass(now) {
                    tracing::warn!(%error, suppressed, "accepting a connection failed; trying again in 100 ms");
                }
            }
        }
        self.accept(driver, now);
    }

    fn connect_done(&mut self, id: ConnId, result: io::Result<usize>, now: Instant) {
        match result {
            Err(error) => self.fail(id, DownReason::from_io(error), now),
            Ok(_) => {
                if let Some(conn) = self.table.get_mut(id) {
                    (conn.state, conn.sending) = (State::Greeting, false);
                }
            }
        }
    }

    fn receive_done(&mut self, id: ConnId, result: io::Result<usize>, carried: Carried) {
        let Some(conn) = self.table.get_mut(id) else { return };
        conn.receiving = false;
        conn.inbox = Some(match (result, carried) {
            (Ok(0), _) => Err(DownReason::Eof),
            (Ok(count), Carried::Buf(buf)) => Ok((buf, count)),
            (Ok(_), _) => Err(DownReason::Eof),
            (Err(error), _) => Err(DownReason::from_io(error)),
        });
    }

    fn send_done(&mut self, id: ConnId, result: io::Result<usize>, now: Instant) {
        let Some(conn) = self.table.get_mut(id) else { return };
        conn.sending = false;
        match result {
            Ok(bytes) => {
                if conn.session.is_open() {
                    self.stats.sent_bytes += bytes as u64;
                }
            }
            Err(error) => {
                // The peer may have said why before it went: its last bytes are read first.
                conn.send_failed = Some(DownReason::from_io(error));
                let last = now + LAST_BYTES_TIME;
                conn.deadline = Some(conn.deadline.map_or(last, |deadline| deadline.min(last)));
            }
        }
    }

    /// The kernel needs a sent buffer no longer, and says whether it has copied it.
    fn sent_memory_freed(&mut self, id: ConnId, copied: bool) {
        let Some(conn) = self.table.get_mut(id) else { return };
        conn.zero_copy.note(copied);
        if let Some(info) = &mut conn.info {
            info.zero_copy = conn.zero_copy.is_used();
        }
    }

    /// Does the work of a turn.
    pub(super) fn turn(&mut self, driver: &mut Driver, now: Instant) {
        self.time_out(now);
        self.expire_keys(now);
        self.probe_marks(now);
        let mut ready = self.table.ids(|conn| conn.inbox.is_some());
        ready.sort_by_key(|id| self.table.get(*id).map(|conn| (conn.class(), !conn.from_known_address, conn.born)));
        let mut strangers = 0;
        self.strangers_wait = false;
        for id in ready {
            if self.table.get(id).is_some_and(|conn| conn.is_stranger()) {
                strangers += 1;
                if strangers > STRANGERS_A_TURN {
                    self.strangers_wait = true;
                    break;
                }
            }
            self.process(id, driver.pool(), now);
        }
        for token in self.cancels.drain(..) {
            driver.cancel(token);
        }
        let mut all = self.table.ids(|_| true);
        all.sort_by_key(|id| self.table.get(*id).map_or(u8::MAX, |conn| conn.class()));
        for id in all {
            self.submit(driver, id);
        }
        self.datagrams.submit(driver);
        self.accept(driver, now);
    }

    /// Gives up what took too long.
    fn time_out(&mut self, now: Instant) {
        for id in self.table.ids(|conn| conn.deadline.is_some_and(|deadline| deadline <= now)) {
            let Some(conn) = self.table.get_mut(id) else { continue };
            let reason = conn.send_failed.take().unwrap_or(DownReason::TimedOut);
            self.fail(id, reason, now);
        }
    }

    /// Works on what a connection received.
    fn process(&mut self, id: ConnId, pool: &BufPool, now: Instant) {
        let Some(conn) = self.table.get_mut(id) else { return };
        let (mut buf, count) = match conn.inbox.take() {
            None => return,
            Some(Err(reason)) => return self.fail(id, reason, now),
            Some(Ok(received)) => received,
        };
        if conn.session.is_open() {
            self.stats.received_bytes += count as u64;
        }
        let mut events = Vec::new();
        let result = if std::mem::take(&mut conn.lent) {
            conn.session.take_back(buf, Some(pool), &mut events)
        } else {
            let result = conn.session.receive(&mut buf, Some(pool), &mut events);
            buf.clear();
            conn.spare = Some(buf);
            result
        };
        for event in events {
            match event {
                SessionEvent::Lane(lane) => self.lane_known(id, lane),
                SessionEvent::Secured => self.secured(id),
                SessionEvent::Open(hello, version) => self.opened(id, hello, version, now),
                SessionEvent::Message(kind, body) => self.deliver(id, kind, body),
                SessionEvent::Finished => self.fail(id, DownReason::Eof, now),
            }
        }
        if let Err(reason) = result {
            self.fail(id, reason, now);
        }
    }

    /// Submits what a connection needs next.
    fn submit(&mut self, driver: &mut Driver, id: ConnId) {
        let Some(conn) = self.table.get_mut(id) else { return };
        if conn.state == State::Connecting {
            if !conn.sending {
                // `sending` stands for the attempt to connect, which is the only operation in this state.
                let op = Op::Connect { fd: conn.fd.clone(), peer: conn.peer };
                conn.sending = driver.submit(conn.token(OpKind::Connect), op).is_ok();
            }
            return;
        }
        self.start_send(driver, id);
        let Some(conn) = self.table.get(id) else { return };
        match conn.state {
            State::Leaving if !conn.sending && !conn.receiving && conn.unsent.is_empty() => self.hand_over(id),
            State::Closing if !conn.sending && conn.unsent.is_empty() && !conn.session.wants_output() => {
                self.closed(id)
            }
            State::Greeting | State::Up => self.start_receive(driver, id),
            _ => {}
        }
    }

    fn start_send(&mut self, driver: &mut Driver, id: ConnId) {
        let Some(conn) = self.table.get_mut(id) else { return };
        if conn.sending || conn.send_failed.is_some() {
            return;
        }
        let mut slices = std::mem::take(&mut conn.unsent);
        if slices.is_empty() && conn.session.wants_output() {
            let bytes = match conn.session.lane() {
                Some(lane) if conn.session.is_open() => self.config.lane(lane).send_bytes,
                _ => GREETING_SEND_BYTES,
            };
            match conn.session.output(bytes, Some(driver.pool())) {
                Ok(output) => slices = output,
                // The next turn ends the connection.
                Err(reason) => (conn.send_failed, conn.deadline) = (Some(reason), Some(Instant::now())),
            }
        }
        if slices.is_empty() {
            return;
        }
        let bytes: usize = slices.iter().map(|slice| slice.len()).sum();
        let zero_copy = bytes >= ZeroCopy::LEAST_BYTES && conn.zero_copy.pays() && driver.can_zero_copy();
        let fd = conn.fd.clone();
        let (kind, op) = match zero_copy {
            true => (OpKind::SendZeroCopy, Op::SendZeroCopy { fd, slices }),
            false => (OpKind::Send, Op::Send { fd, slices }),
        };
        match driver.submit(conn.token(kind), op) {
            Ok(()) => conn.sending = true,
            Err(rejected) => {
                if let Op::Send { slices, .. } | Op::SendZeroCopy { slices, .. } = rejected.op {
                    conn.unsent = slices;
                }
            }
        }
    }

    fn start_receive(&mut self, driver: &mut Driver, id: ConnId) {
        let Some(conn) = self.table.get_mut(id) else { return };
        let wanted = conn.reading && conn.undelivered_bytes < UNDELIVERED_MAX_BYTES;
        if conn.receiving || conn.inbox.is_some() || !wanted {
            return;
        }
        let bytes = match conn.session.lane() {
            Some(lane) if conn.state == State::Up => self.config.lane(lane).receive_bytes,
            _ => GREETING_BYTES,
        };
        // A body that is under way is received where it stays.
        let lent = conn.session.lend();
        conn.lent = lent.is_some();
        let spare = || conn.spare.take().filter(|spare| spare.capacity() >= bytes);
        let buf = lent.or_else(spare).unwrap_or_else(|| Buf::heap(bytes));
        match driver.submit(conn.token(OpKind::Receive), Op::Recv { fd: conn.fd.clone(), buf }) {
            Ok(()) => conn.receiving = true,
            Err(rejected) => {
                if let Op::Recv { buf, .. } = rejected.op {
                    // Nothing came: a lent buffer goes back as it was.
                    conn.inbox = conn.lent.then_some(Ok((buf, 0)));
                }
            }
        }
    }

    /// Keeps accepts in flight on every listener.
    fn accept(&mut self, driver: &mut Driver, now: Instant) {
        for listener in &mut self.listeners {
            if listener.not_before.is_some_and(|at| now < at) {
                continue;
            }
            listener.not_before = None;
            let token = Token::new(Token::TRANSPORT, OpKind::Accept as u8, listener.index);
            while listener.accepting < ACCEPTS && driver.submit(token, Op::Accept { fd: listener.fd.clone() }).is_ok() {
                listener.accepting += 1;
            }
        }
    }
}

//! Clients: they look for the active, write at random levels, try again where they were refused, and remember what they
//! were told.
//!
//! Always: an operation is tried again only after a refusal, so that it is admitted once at most. Never: a client that
//! waits without end.

use ringpair_core::effect::WriteOutcome;
use ringpair_wire::{control::Role, id::AckLevel};

use super::{
    disk::OpId,
    member::Inbound,
    time::{MS, SEC},
    world::{Ev, World},
};

/// How many clients there are.
pub const CLIENTS: usize = 6;
/// The mean time between a client's operations.
const PACE: u64 = 2600 * MS;
/// A client gives up after this.
const PATIENCE: u64 = 5 * SEC;

/// A write asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The client.
    pub client: usize,
    /// The operation.
    pub op: OpId,
    /// Its records.
    pub records: u32,
    /// The level.
    pub level: AckLevel,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    asked: Asked,
    delivered: bool,
}

/// One client.
#[derive(Clone, Copy, Debug, Default)]
pub struct Client {
    /// The member it believes active.
    target: usize,
    pending: Option<Pending>,
}

/// All of them.
#[derive(Debug, Default)]
pub struct Clients {
    each: [Client; CLIENTS],
    /// They write.
    pub on: bool,
    /// Operations begun; the newest one's id.
    pub begun: OpId,
    /// Operations answered with a level reached.
    pub reached: u64,
}

impl World {
    /// Clients begin to write.
    pub fn begin_clients(&mut self) {
        self.clients.on = true;
        for client in 0..CLIENTS {
            let at = self.now + self.rng.below(PACE);
            self.at(at, Ev::Client(client));
        }
    }

    /// A client's time has come: a new operation, or another look at one.
    pub fn client(&mut self, client: usize) {
        match self.clients.each[client].pending {
            None if self.clients.on => self.begin_operation(client),
            None => {}
            Some(pending) if pending.delivered => {}
            Some(_) => self.try_operation(client),
        }
    }

    /// A client's patience with an operation is over: it may still be accepted.
    pub fn client_gives_up(&mut self, client: usize, op: OpId) {
        if self.clients.each[client].pending.is_some_and(|pending| pending.asked.op == op) {
            self.rest(client);
        }
    }

    fn begin_operation(&mut self, client: usize) {
        self.clients.begun += 1;
        let op = self.clients.begun;
        let records = 1 + u32::from(self.rng.per_mille(200)) + u32::from(self.rng.per_mille(100));
        let levels = [
            AckLevel::Async,
            AckLevel::Local,
            AckLevel::Received,
            AckLevel::Durable,
            AckLevel::Durable,
            AckLevel::Applied,
        ];
        let level = self.rng.pick(&levels);
        let asked = Asked { client, op, records, level };
        let until = self.now + PATIENCE;
        self.clients.each[client].pending = Some(Pending { asked, delivered: false });
        self.at(until, Ev::ClientGivesUp { client, op });
        self.try_operation(client);
    }

    fn try_operation(&mut self, client: usize) {
        let wait = self.rng.within(self.speed.api);
        let one = &mut self.clients.each[client];
        let Some(pending) = &mut one.pending else { return };
        pending.delivered = true;
        let (m, asked) = (one.target, pending.asked);
        self.at(self.now + wait, Ev::Request { m, asked });
    }

    /// A request arrives at a member.
    pub fn request(&mut self, m: usize, asked: Asked) {
        let member = &self.members[m];
        let open = member.worker.as_ref().is_some_and(|worker| worker.doors_open);
        if member.host_down() || !open {
            return self.refused(asked);
        }
        self.give(m, Inbound::Write(asked));
    }

    /// A write is refused: the client tries the other member soon.
    pub fn refused(&mut self, asked: Asked) {
        let wait = self.rng.within((5 * MS, 120 * MS));
        let other = (0..2).find(|m| self.members[*m].seen.as_ref().is_some_and(|status| status.role == Role::Active));
        let one = &mut self.clients.each[asked.client];
        if let Some(pending) = one.pending.as_mut().filter(|pending| pending.asked.op == asked.op) {
            pending.delivered = false;
            one.target = if wait.is_multiple_of(4) { 1 - one.target } else { other.unwrap_or(1 - one.target) };
            self.at(self.now + wait, Ev::Client(asked.client));
        }
    }

    /// A write is answered.
    pub fn answered(&mut self, op: OpId, outcome: WriteOutcome) {
        if matches!(outcome, WriteOutcome::Reached { .. }) {
            self.clients.reached += 1;
        }
        let client = (0..CLIENTS)
            .find(|client| self.clients.each[*client].pending.is_some_and(|pending| pending.asked.op == op));
        if let Some(client) = client {
            self.rest(client);
        }
    }

    fn rest(&mut self, client: usize) {
        self.clients.each[client].pending = None;
        // Mostly a slow pace, now and then a burst.
        let wait = if self.rng.per_mille(250) { self.rng.below(5 * MS) } else { self.rng.below(2 * PACE) };
        self.at(self.now + wait, Ev::Client(client));
    }
}

//! The worker's side of the link to its supervisor (protocol §7).
//!
//! Always: the supervisor hears at least every H that the loop turns, and at once what the worker has become. The end of
//! the link ends the member in a controlled way. Never: a wait for the supervisor.

use ringpair_core::{Instant, input::Command, status::Status, supervisor::WorkerStatus};
use ringpair_wire::control::Role;

use super::{Stream, now, op_kind};
use crate::{
    api::events::Event,
    ring::{Op, Token},
    supervisor::link::{FromWorker, Received, ToWorker},
};

impl Stream {
    /// Asks to be told when the supervisor says something.
    pub(super) fn watch_link(&mut self) {
        let token = Token::new(Token::LOOP, op_kind::LINK, 0);
        if self.driver.submit(token, Op::PollReadable { fd: self.link_fd.clone() }).is_err() {
            tracing::error!("no room to watch the supervisor's link");
        }
    }

    pub(super) fn hear_supervisor(&mut self) {
        loop {
            match self.link.receive::<ToWorker>() {
                Ok(Received::Message(ToWorker::Stop)) => self.stop("SIGTERM"),
                Ok(Received::Message(ToWorker::Reload)) => {
                    self.events.append(Event::new("start", self.node.epoch().0, "SIGHUP: keys are read again"));
                    self.reload_keys();
                }
                Ok(Received::Message(ToWorker::Start(_))) => {}
                Ok(Received::Empty) => return,
                // Its supervisor is dead: refuse writes, discontinue, release, end (protocol §7).
                Ok(Received::Eof) => return self.stop("the supervisor is gone"),
                Err(error) => {
                    tracing::error!(%error, "the supervisor's link");
                    return self.stop("the link to the supervisor failed");
                }
            }
        }
    }

    pub(super) fn reload_keys(&mut self) {
        match crate::worker::identity(&self.config) {
            Ok(Some(identity)) => {
                if let Err(error) = self.transport.set_identity(identity) {
                    self.warn("keys", error.to_string());
                }
            }
            Ok(None) => {}
            Err(error) => self.warn("keys", error.to_string()),
        }
    }

    /// Stops in a controlled way, once.
    pub(super) fn stop(&mut self, why: &str) {
        if !self.pending.stopping {
            self.pending.stopping = true;
            self.events.append(Event::new("start", self.node.epoch().0, format!("stopping: {why}")));
            let token = self.pending.token();
            self.node.handle_command(now(), token, Command::Stop);
        }
    }

    /// Tells the supervisor what this worker is, and that it turns.
    pub(super) fn tell_supervisor(&mut self, status: &Status, now: Instant) {
        let told = WorkerStatus::of(status);
        let say = |message: &FromWorker| {
            if let Err(error) = self.link.send(message) {
                tracing::debug!(%error, "the supervisor does not hear");
            }
        };
        if self.told_supervisor != Some(told) {
            say(&FromWorker::Status(told));
            self.told_supervisor = Some(told);
        }
        // Every H at the latest, and with a turn that heartbeats cause, so that an idle member does not wake for it alone.
        if now.since(self.last_turn_told) >= self.core.heartbeat * 3 / 4 {
            say(&FromWorker::Turn);
            self.last_turn_told = now;
        }
        if !self.ready_said && status.role != Role::None {
            say(&FromWorker::Ready);
            self.ready_said = true;
        }
    }
}

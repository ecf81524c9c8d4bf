//! What was asked for and waits for the core or the bulk thread.
//!
//! Always: each has a deadline and is answered once, at that at the latest; one switch at a time; barriers are bounded.
//! Never: an answer dropped because another command came.

use std::{
    collections::HashMap,
    time::{Duration, Instant as StdInstant},
};

use ringpair_core::input::CommandToken;

use super::BulkWork;
use crate::{
    api::backend::{Failure, Reply, SwitchDone, SyncDone},
    mirror::MirrorStatus,
};

/// How many barriers may wait at once.
const MAX_SYNCS: usize = 64;

/// A command of the API that the core has.
#[derive(Debug)]
pub(super) enum Waiting {
    Switch { reply: Reply<SwitchDone>, started: StdInstant, from: String },
    Mode(Reply<()>),
    Sync(u64),
    Stop(Reply<()>),
}

/// A switch that was done here and waits for the other member's announcement.
#[derive(Debug)]
pub(super) struct HandingOver {
    pub(super) reply: Reply<SwitchDone>,
    pub(super) started: StdInstant,
    pub(super) from: String,
    pub(super) deadline: StdInstant,
}

/// A barrier over records and files.
#[derive(Debug)]
pub(super) struct SyncRun {
    pub(super) reply: Reply<SyncDone>,
    pub(super) started: StdInstant,
    pub(super) records: bool,
    pub(super) files: bool,
    pub(super) seq: u64,
}

impl SyncRun {
    /// What it waits for, for people.
    fn lacks(&self, mirror: &MirrorStatus) -> String {
        let records = if self.records { "" } else { "for records to be durable on the backup; " };
        let error = mirror.last_error.as_deref().map(|error| format!(", {error}")).unwrap_or_default();
        let files = match self.files {
            true => String::new(),
            false => format!("for files (the mirror is {:?}, {} pending{error}); ", mirror.state, mirror.pending_files),
        };
        format!("{records}{files}Try: ringpair status")
    }
}

/// What waits for the core or the bulk thread.
#[derive(Debug, Default)]
pub(super) struct Pending {
    numbers: u64,
    pub(super) waiting: HashMap<CommandToken, (StdInstant, Waiting)>,
    pub(super) syncs: HashMap<u64, (StdInstant, SyncRun)>,
    pub(super) handing_over: Option<HandingOver>,
    /// Since when this member, active, has refused writes for a switch.
    pub(super) paused_at: Option<StdInstant>,
    /// Work of the core that the bulk thread does.
    pub(super) bulk: BulkWork,
    /// Whether the member is on its way out.
    pub(super) stopping: bool,
}

impl Pending {
    /// A number that nothing else has.
    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    /// A token for a command.
    pub(super) fn token(&mut self) -> CommandToken {
        CommandToken(self.number())
    }

    /// Lets a switch begin that is asked for now: one at a time, but that a forced one takes the place of one that only
    /// waits for the other member's word.
    pub(super) fn make_way(&mut self, force: bool) -> Result<(), Failure> {
        if self.switches() && !force {
            let text = "a switch is under way already. Try: wait for its end (ringpair status), or --force";
            return Err(Failure::refused("busy", text));
        }
        if let Some(over) = self.handing_over.take() {
            let _ = over.reply.send(Err(Failure::refused("busy", "a forced switch has taken the place of this one")));
        }
        Ok(())
    }

    /// Begins a barrier behind `seq`; its number, unless as many wait already as may: then it is answered.
    pub(super) fn begin_sync(
        &mut self,
        deadline: StdInstant,
        reply: Reply<SyncDone>,
        seq: u64,
        mirror: &MirrorStatus,
    ) -> Option<u64> {
        if let Some(oldest) = self.syncs.values().map(|(_, run)| run).min_by_key(|run| run.started)
            && self.syncs.len() >= MAX_SYNCS
        {
            let seconds = oldest.started.elapsed().as_secs();
            let text =
                format!("{MAX_SYNCS} barriers wait already, the oldest for {seconds} s {}", oldest.lacks(mirror));
            let _ = reply.send(Err(Failure::refused("busy", text)));
            return None;
        }
        let id = self.number();
        let run = SyncRun { reply, started: StdInstant::now(), records: false, files: false, seq };
        self.syncs.insert(id, (deadline, run));
        Some(id)
    }

    /// Gives up what was not reached in time; the barriers among it.
    pub(super) fn expire(&mut self, now: StdInstant, mirror: &MirrorStatus) -> Vec<u64> {
        let late = |message: String| Failure::NotReached { version: None, message };
        if let Some(over) = self.handing_over.take_if(|over| over.deadline <= now) {
            let message =
                "the role is released, and the other member has not said that it is active. Try: ringpair status";
            let _ = over.reply.send(Err(late(message.into())));
        }
        for (_, (_, waiting)) in self.waiting.extract_if(|_, (deadline, _)| *deadline <= now) {
            let late = || late("not reached in time".into());
            match waiting {
                Waiting::Switch { reply, .. } => drop(reply.send(Err(late()))),
                Waiting::Mode(reply) | Waiting::Stop(reply) => drop(reply.send(Err(late()))),
                Waiting::Sync(_) => {}
            }
        }
        let expired = self.syncs.extract_if(|_, (deadline, _)| *deadline <= now);
        let answer = |(id, (_, run)): (u64, (StdInstant, SyncRun))| {
            let message = format!("the barrier was not reached in time: it waits {}", run.lacks(mirror));
            let _ = run.reply.send(Err(late(message)));
            id
        };
        expired.map(answer).collect()
    }

    /// Whether a switch was asked for and is not over.
    pub(super) fn switches(&self) -> bool {
        self.handing_over.is_some()
            || self.waiting.values().any(|(_, waiting)| matches!(waiting, Waiting::Switch { .. }))
    }

    /// How long until something is late.
    pub(super) fn next_timeout(&self, now: StdInstant) -> Option<Duration> {
        let waiting = self.waiting.values().map(|(deadline, _)| *deadline);
        let syncs = self.syncs.values().map(|(deadline, _)| *deadline);
        let over = self.handing_over.iter().map(|over| over.deadline);
        waiting.chain(syncs).chain(over).min().map(|deadline| deadline.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::mirror::MirrorState;

    fn refusal<T: std::fmt::Debug>(answer: &mut oneshot::Receiver<Result<T, Failure>>) -> String {
        answer.try_recv().expect("answered").expect_err("refused").to_string()
    }

    #[test]
    fn barriers_behind_a_stuck_mirror_are_bounded_and_say_what_they_wait_for() {
        let last_error = Some("/srv/x: no space left".into());
        let mirror =
            MirrorStatus { state: MirrorState::Behind, pending_files: 7, last_error, ..MirrorStatus::default() };
        let mut pending = Pending::default();
        let deadline = StdInstant::now() + Duration::from_secs(60);
        let mut answers = Vec::new();
        for _ in 0..MAX_SYNCS {
            let (reply, answer) = oneshot::channel();
            let id = pending.begin_sync(deadline, reply, 9, &mirror).expect("room");
            pending.syncs.get_mut(&id).expect("it waits").1.records = true;
            answers.push((id, answer));
        }
        let (reply, mut answer) = oneshot::channel();
        assert_eq!(pending.begin_sync(deadline, reply, 9, &mirror), None);
        let told = refusal(&mut answer);
        assert!(
            told.contains("64 barriers") && told.contains("/srv/x: no space left") && told.contains("Try"),
            "{told}"
        );
        assert!(answers[0].1.try_recv().is_err(), "those before it still wait");
        let mut withdrawn = pending.expire(deadline, &mirror);
        withdrawn.sort_unstable();
        assert_eq!(withdrawn, answers.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        let told = refusal(&mut answers[0].1);
        assert!(told.contains("7 pending") && !told.contains("records"), "{told}");
        let (reply, _answer) = oneshot::channel();
        assert!(pending.begin_sync(deadline, reply, 9, &mirror).is_some(), "there is room again");
    }

    #[test]
    fn a_second_switch_is_refused_and_the_first_keeps_its_answer() {
        let mut pending = Pending::default();
        let (started, from) = (StdInstant::now(), String::from("a"));
        let deadline = started + Duration::from_secs(60);
        assert!(pending.make_way(false).is_ok());
        let (reply, mut first) = oneshot::channel();
        pending.handing_over = Some(HandingOver { reply, started, from: from.clone(), deadline });
        let refused = pending.make_way(false).expect_err("one at a time").to_string();
        assert!(refused.contains("under way"), "{refused}");
        assert!(first.try_recv().is_err(), "the first still waits");
        assert!(pending.make_way(true).is_ok());
        assert!(refusal(&mut first).contains("forced"));
        let (reply, mut second) = oneshot::channel();
        let token = pending.token();
        pending.waiting.insert(token, (deadline, Waiting::Switch { reply, started, from }));
        assert!(pending.make_way(false).is_err() && second.try_recv().is_err());
    }
}

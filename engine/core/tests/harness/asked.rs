//! What clients and operators ask, and what a test sees of it.

use super::*;

impl Pair {
    pub fn try_write(&mut self, member: usize, level: AckLevel) -> Result<u64, Refusal> {
        self.next += 1;
        let token = self.next;
        let now = Instant(self.now);
        let node = self.members[member].node.as_mut().expect("runs");
        let admission = node.admit(now, WriteToken(token), 1, level)?;
        self.effects(member);
        self.close_frame(member, admission.epoch, admission.first, 1);
        self.effects(member);
        let end = self.end(member);
        self.written.insert(token, (end.seq.0, end.chain.0));
        Ok(token)
    }

    pub fn write(&mut self, member: usize, level: AckLevel) -> u64 {
        self.try_write(member, level).expect("admitted")
    }

    /// A record that is in the member's journal and was never sent.
    pub fn write_unsent(&mut self, member: usize) -> Seq {
        self.members[member].streaming = false;
        self.write(member, AckLevel::Local);
        self.end(member).seq
    }

    pub fn has_record(&self, member: usize, seq: Seq) -> bool {
        self.members[member].journal.iter().any(|frame| frame.end.seq == seq && frame.epoch == Epoch(65_537))
    }

    pub fn command(&mut self, member: usize, command: Command) -> u64 {
        self.next += 1;
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").handle_command(now, CommandToken(self.next), command);
        self.effects(member);
        self.next
    }

    pub fn evidence(&mut self, member: usize, evidence: Evidence) {
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").handle_evidence(now, evidence);
        self.effects(member);
    }

    pub fn outcome(&self, write: u64) -> Option<WriteOutcome> {
        self.outcomes.get(&write).copied()
    }

    pub fn done(&self, command: u64) -> Option<Result<(), Refusal>> {
        self.done.get(&command).cloned()
    }

    pub fn node(&self, member: usize) -> &Node {
        self.members[member].node.as_ref().expect("runs")
    }

    pub fn status(&self, member: usize) -> Status {
        self.node(member).status(Instant(self.now)).expect("started")
    }

    pub fn role(&self, member: usize) -> Role {
        self.members[member].node.as_ref().map_or(Role::None, |_| self.status(member).role)
    }

    pub fn persisted(&self, member: usize) -> Persisted {
        self.members[member].persisted.clone().unwrap_or_default()
    }

    pub fn archived(&self, member: usize) -> Vec<u64> {
        self.members[member].archived.clone()
    }

    pub fn hooks(&self, member: usize) -> Vec<(Hook, Epoch)> {
        self.members[member].hooks.clone()
    }

    pub fn resyncs(&self, member: usize) -> usize {
        self.members[member].resyncs
    }

    pub fn runs(&self, member: usize) -> bool {
        self.members[member].node.is_some()
    }

    pub fn is_frozen(&self, member: usize) -> bool {
        self.members[member].frozen
    }

    /// Whether the member's state stands on this record.
    pub fn stands_on(&self, member: usize, (seq, chain): (u64, u128)) -> bool {
        self.members[member].history.get(&seq) == Some(&chain)
    }

    pub fn exited(&self, member: usize) -> bool {
        self.members[member].exited
    }
}

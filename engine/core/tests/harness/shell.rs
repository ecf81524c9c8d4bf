//! What a member's shell does for its core: carries out effects and reports each that takes time.

use super::*;

impl Pair {
    /// The peer's state is taken over; a peer that does not serve leaves one waiting.
    pub(super) fn compared(&mut self, member: usize, work: WorkToken) {
        if self.members[1 - member].serves {
            let position = self.end(1 - member);
            let history = self.members[1 - member].history.clone();
            let m = &mut self.members[member];
            (m.base, m.resyncs) = (position, m.resyncs + 1);
            m.journal.clear();
            m.history = history;
            self.complete(member, Completion::Resynced(work, position));
        }
    }

    pub(super) fn journalled(&mut self, member: usize, end: Position) {
        self.members[member].history.insert(end.seq.0, end.chain.0);
        self.complete(member, Completion::Written(end));
        self.complete(member, Completion::Synced(end));
        self.complete(member, Completion::Applied(end.seq));
    }

    pub(super) fn complete(&mut self, member: usize, completion: Completion) {
        self.at(self.now + self.delay.1, member, Item::Complete(completion));
    }

    pub(super) fn transmit(&mut self, from: usize, item: Item) {
        if !self.lanes_up {
            return self.ask_supervisor(1 - from, &item);
        }
        if self.cut[from] {
            if !matches!(item, Item::Beat(..)) {
                self.held[from].push_back(item);
            }
            return;
        }
        self.at(self.now + self.delay.0, 1 - from, item);
    }

    pub(super) fn close_frame(&mut self, member: usize, epoch: Epoch, first: Seq, records: u32) {
        let end = self.end(member);
        self.nonce += 1;
        let chain = ChainHash(end.chain.0.wrapping_mul(31).wrapping_add((self.nonce << 8) | (member as u128 + 1)));
        let last = Seq(first.0 + u64::from(records) - 1);
        let history = self.members[member].persisted.as_ref().and_then(|p| p.history).unwrap_or(HistoryId([9; 16]));
        let position = Position { epoch, seq: last, chain };
        let frame = FrameMeta { history, epoch, first, count: records, prev: end.chain, end: position, bytes: 100 };
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").frame_closed(now, &frame);
        self.members[member].journal.push(frame);
        self.journalled(member, position);
        if self.members[member].streaming {
            self.transmit(member, Item::Frame(frame));
        }
    }

    pub(super) fn effects(&mut self, member: usize) {
        while let Some(effect) = self.members[member].node.as_mut().and_then(Node::poll_effect) {
            self.effect(member, effect);
        }
    }

    pub(super) fn effect(&mut self, member: usize, effect: Effect) {
        let ms = (self.now - self.zero) / MS;
        match effect {
            Effect::Persist { token, .. } if self.members[member].control_fails => {
                self.complete(member, Completion::PersistFailed(token, "input/output error".into()));
            }
            Effect::Persist { token, state } => {
                let bytes = ringpair_wire::codec::Codec::to_bytes(&*state);
                let read = ringpair_wire::codec::Codec::from_bytes(&bytes).expect("reads what it wrote");
                self.members[member].persisted = Some(read);
                self.complete(member, Completion::Persisted(token));
            }
            Effect::Send { to, message } => self.transmit(member, Item::Message(to, message)),
            Effect::SendHeartbeat { path, heartbeat } => self.transmit(member, Item::Beat(path, heartbeat)),
            Effect::Connect => {
                self.members[member].connects = true;
                // A peer that never saw the old connections end sees it now.
                if self.members[1 - member].node.is_some() {
                    for (path, lane) in LANES {
                        self.at(self.now, 1 - member, Item::Lane(path, lane, false));
                    }
                }
                self.lanes();
            }
            Effect::Answer { write, outcome, .. } => {
                assert!(self.outcomes.insert(write.0, outcome).is_none(), "answered once");
            }
            Effect::CommandDone { command, result } => {
                assert!(self.done.insert(command.0, result).is_none(), "ended once");
            }
            Effect::AppendEpoch { start } => self.close_frame(member, start.epoch, Seq(start.after.seq.0 + 1), 1),
            Effect::StopAppliers => {
                let applied = self.end(member).seq;
                self.complete(member, Completion::AppliersStopped(applied));
            }
            Effect::Replay { work, .. } => self.complete(member, Completion::Replayed(work)),
            Effect::SettleFiles { work, .. } => {
                self.complete(member, Completion::FilesSettled { work, renamed: 0, missing: 0 });
            }
            Effect::RunHook { hook, epoch } => {
                let name = if hook == Hook::Commence { "commence" } else { "discontinue" };
                self.log.push(format!("{} hook {name} of {epoch} ended at {ms}", id(member)));
                self.members[member].hooks.push((hook, epoch));
                let ok = !self.members[member].hooks_fail || hook == Hook::Commence;
                self.complete(member, Completion::HookFinished { hook, epoch, ok });
            }
            Effect::Locate { work, position } => {
                let location = self.locate(member, position);
                self.complete(member, Completion::Located(work, location));
            }
            Effect::StreamFrom { after } => {
                self.members[member].streaming = true;
                for frame in self.frames_after(member, after.seq) {
                    self.transmit(member, Item::Frame(frame));
                }
            }
            Effect::StopStream => self.members[member].streaming = false,
            Effect::ServeTail { after, .. } => {
                for frame in self.frames_after(member, after.seq) {
                    self.transmit(member, Item::Frame(frame));
                }
                let end = self.end(member);
                self.transmit(member, Item::Message(Channel::Ds, Control::TailEnd { end, served: true }));
            }
            Effect::Archive { work, after, .. } if self.members[member].archive_fails => {
                let _ = after;
                self.complete(member, Completion::ArchiveFailed(work, "no room".into()));
            }
            Effect::Archive { work, after, .. } => {
                let records: Vec<u64> = self.frames_after(member, after).iter().map(|f| f.end.seq.0).collect();
                let count = records.len() as u64;
                self.members[member].archived.extend(records);
                self.complete(member, Completion::Archived { work, records: count, files: 0 });
            }
            Effect::Resync { work, .. } => self.at(self.now + self.compare_ms * MS, member, Item::Compared(work)),
            Effect::DrainSockets => self.at(self.now, member, Item::Complete(Completion::SocketsDrained)),
            Effect::DrainFiles { work } => self.complete(member, Completion::FilesDrained { work, left: 0 }),
            Effect::Report(event) => {
                self.log.push(format!("{} {ms} {}: {}", id(member), event.code.name(), event.reason));
            }
            Effect::Exit => {
                self.members[member].exited = true;
                self.kill(member);
            }
            Effect::DialNow | Effect::CreateHistory { .. } | Effect::DropUnframed | Effect::StartAppliers => {}
            Effect::ServeResync(serves) => self.members[member].serves = serves,
        }
    }

    /// A dead member's supervisor serves its journal's tail.
    pub(super) fn ask_supervisor(&mut self, member: usize, item: &Item) {
        let Item::Message(_, Control::FetchTail { after }) = item else { return };
        if self.members[member].supervised {
            for frame in self.frames_after(member, after.seq) {
                self.at(self.now, 1 - member, Item::Frame(frame));
            }
            let end = self.end(member);
            self.at(self.now, 1 - member, Item::Message(Channel::Ds, Control::TailEnd { end, served: true }));
        }
    }

    pub(super) fn frames_after(&self, member: usize, seq: Seq) -> Vec<FrameMeta> {
        self.members[member].journal.iter().filter(|frame| frame.end.seq > seq).copied().collect()
    }

    pub(super) fn locate(&self, member: usize, position: Position) -> Location {
        let m = &self.members[member];
        if position.seq < m.base.seq {
            Location::Gone
        } else if position == m.base || m.journal.iter().any(|frame| frame.end == position) {
            Location::Match
        } else {
            Location::Mismatch
        }
    }
}

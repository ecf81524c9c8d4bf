//! What goes wrong: processes killed, hosts gone, cables cut, disks that refuse; and the supervisor that is left.

use super::*;

impl Pair {
    /// The process dies: the peer sees EOF after a millisecond.
    pub fn kill(&mut self, member: usize) {
        self.power_off(member);
        for (path, lane) in LANES {
            self.at(self.now + MS, 1 - member, Item::Lane(path, lane, false));
        }
    }

    /// The host goes: the peer sees nothing until the member is back.
    pub fn power_off(&mut self, member: usize) {
        self.log.push(format!("{} off at {}", id(member), (self.now - self.zero) / MS));
        let m = &mut self.members[member];
        (m.node, m.connects, m.streaming, m.frozen) = (None, false, false, false);
        m.backlog.clear();
        let kept: Vec<_> = self.queue.iter().filter(|(_, (to, _))| *to == member).map(|(key, _)| *key).collect();
        kept.into_iter().for_each(|key| drop(self.queue.remove(&key)));
        if self.lanes_up {
            self.lanes_up = false;
            self.held = [VecDeque::new(), VecDeque::new()];
        }
    }

    pub fn freeze(&mut self, member: usize, frozen: bool) {
        self.members[member].frozen = frozen;
        if !frozen {
            let (now, node) = (self.now, self.members[member].node.as_mut().expect("runs"));
            node.handle_timeout(Instant(now));
            // `DrainSockets`, if the pause was long enough, is answered behind what waits.
            let waiting = std::mem::take(&mut self.members[member].backlog);
            waiting.into_iter().for_each(|item| self.feed(member, item));
            self.effects(member);
        }
    }

    /// Cuts or heals one direction.
    pub fn cut(&mut self, from: usize, _to: usize, cut: bool) {
        self.cut[from] = cut;
        if !cut {
            for item in std::mem::take(&mut self.held[from]) {
                self.at(self.now, 1 - from, item);
            }
            self.lanes();
        }
    }

    pub fn supervisor_up(&mut self, member: usize) {
        self.members[member].supervised = true;
        for (path, lane) in LANES {
            self.at(self.now, 1 - member, Item::Lane(path, lane, true));
        }
    }

    pub(super) fn supervisor_says(&mut self, member: usize, message: Control) {
        self.at(self.now, 1 - member, Item::Message(Channel::Ping(PathKind::Main), message));
    }

    pub fn supervisor_says_dying(&mut self, member: usize, epoch: Epoch, hold_ms: u32) {
        self.supervisor_says(member, Control::Dying { epoch, hold_ms });
    }

    pub fn supervisor_says_released(&mut self, member: usize, epoch: Epoch) {
        let end = self.end(member);
        self.supervisor_says(member, Control::Released { epoch, end, controlled: false });
    }

    pub fn supervisor_gives_back(&mut self, member: usize, grant: GrantId) {
        self.supervisor_says(member, Control::GiveBack { id: grant, reason: GiveBackReason::WorkerDied });
        for (path, lane) in LANES {
            self.at(self.now + MS, 1 - member, Item::Lane(path, lane, false));
        }
    }

    /// Both ping connections of a member end, or stand again.
    pub fn pings(&mut self, member: usize, up: bool) {
        for (path, lane) in LANES.into_iter().filter(|(_, lane)| *lane == LaneKind::Ping) {
            self.at(self.now, member, Item::Lane(path, lane, up));
        }
    }

    /// A frame comes on a member's ds lane that would continue its journal, with all its contents or not.
    pub fn offer_frame(&mut self, member: usize, whole: bool) -> FrameVerdict {
        let (end, history) = (self.end(member), self.persisted(member).history.unwrap_or_default());
        let position = Position { seq: Seq(end.seq.0 + 1), chain: ChainHash(1), ..end };
        let (epoch, prev) = (end.epoch, end.chain);
        let frame = FrameMeta { history, epoch, first: position.seq, count: 1, prev, end: position, bytes: 100 };
        let now = Instant(self.now);
        self.members[member].node.as_mut().expect("runs").handle_frame(now, Channel::Ds, &frame, whole)
    }

    /// Both members take a newer connection for their ds lane.
    pub fn replace_ds_lane(&mut self) {
        let (path, lane) = (PathKind::Main, LaneKind::Ds);
        [A, B].into_iter().for_each(|member| self.at(self.now, member, Item::Lane(path, lane, true)));
    }

    pub fn fail_sync(&mut self, member: usize) {
        self.complete(member, Completion::SyncFailed("EIO".into()));
    }

    pub fn fail_control_file(&mut self, member: usize) {
        self.members[member].control_fails = true;
    }

    pub fn fail_hooks(&mut self, member: usize, fail: bool) {
        self.members[member].hooks_fail = fail;
    }

    pub fn fail_archive(&mut self, member: usize, fail: bool) {
        self.members[member].archive_fails = fail;
    }

    pub fn empty_storage(&mut self, member: usize) {
        self.restore(member, Disk(None, Position::default(), Vec::new(), BTreeMap::new()));
    }

    pub fn snapshot(&self, member: usize) -> Disk {
        let m = &self.members[member];
        Disk(m.persisted.clone(), m.base, m.journal.clone(), m.history.clone())
    }

    pub fn restore(&mut self, member: usize, disk: Disk) {
        let m = &mut self.members[member];
        Disk(m.persisted, m.base, m.journal, m.history) = disk;
    }
}

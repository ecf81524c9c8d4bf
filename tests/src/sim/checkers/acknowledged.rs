//! What was acknowledged is where its level says at that moment, and survives what its level survives (invariant 2,
//! protocol §10).

use ringpair_wire::id::{AckLevel, Version};

use super::{
    super::{
        disk::{Death, Disk, OpId},
        member::{Member, Waiting, name},
    },
    Verdict, rule,
};

#[derive(Clone, Copy, Debug, Default)]
struct Told {
    level: Option<AckLevel>,
    alone: bool,
    /// Records of it were lost with a host's unsynced pages.
    unsynced: bool,
    /// A copy of it was destroyed with its storage.
    destroyed: bool,
}

/// What clients were told.
#[derive(Debug, Default)]
pub struct Acknowledged {
    told: Vec<Told>,
    /// Copies are destroyed, or rules overridden, in this seed.
    pub tainted: bool,
    /// Answers by level, alone ones last.
    pub answers: [u64; 6],
}

impl Acknowledged {
    fn of(&mut self, op: OpId) -> &mut Told {
        let index = op as usize;
        if self.told.len() <= index {
            self.told.resize(index + 1, Told::default());
        }
        &mut self.told[index]
    }

    /// A write is answered: a level reached.
    ///
    /// # Errors
    /// If its records are not where the level says, or not what the version says.
    pub fn told(
        &mut self,
        m: usize,
        write: Waiting,
        version: Version,
        said: (AckLevel, bool),
        members: &[Member; 2],
    ) -> Verdict {
        let (level, alone) = said;
        self.answers[if alone { 5 } else { level as usize }] += 1;
        *self.of(write.op) = Told { level: Some(level), alone, ..*self.of(write.op) };
        let (own, peer) = (&members[m], &members[1 - m]);
        let journal = &own.disk.journal;
        let holds = |disk: &Disk| disk.journal.op(version.seq) == Some(write.op);
        let checked = |reached: bool, what: &str| {
            rule("acknowledged", reached, || {
                format!("{} answers {} for operation {} ({version}): not {what}", name(m), level.name(), write.op)
            })
        };
        // What a dead process of the backup had received and not written.
        let lost = self.of(write.op).destroyed || self.of(write.op).unsynced;
        checked(holds(&own.disk) && journal.written >= version.seq, "written on the active")?;
        if level >= AckLevel::Local {
            checked(journal.synced >= version.seq, "synced on the active")?;
        }
        if level >= AckLevel::Received {
            let alive = peer.worker.is_some();
            checked(!alive || holds(&peer.disk) || lost, "received by the backup")?;
        }
        if level >= AckLevel::Durable {
            checked(
                holds(&peer.disk) && peer.disk.journal.synced >= version.seq || self.tainted,
                "synced on the backup",
            )?;
        }
        let applied = peer.worker.as_ref().is_none_or(|worker| worker.applied.max(peer.applied_once) >= version.seq);
        checked(level < AckLevel::Applied || applied, "readable on the backup")
    }

    /// Records are gone with a process or a host.
    pub fn lost(&mut self, ops: &[OpId], _death: Death) {
        for op in ops {
            self.of(*op).unsynced = true;
        }
    }

    /// A storage was replaced: what only the old one holds is destroyed.
    pub fn replaced(&mut self, old: &Disk, new: &Disk) {
        let kept = new.all_ops();
        let mut here = vec![false; self.told.len()];
        for op in kept {
            if let Some(here) = here.get_mut(op as usize) {
                *here = true;
            }
        }
        for op in old.all_ops() {
            if !here.get(op as usize).copied().unwrap_or(false) {
                self.of(op).destroyed = true;
            }
        }
    }

    /// The end: what is in service, and what is in the archives.
    ///
    /// # Errors
    /// If something acknowledged is neither where its level promises nor excused by what its level does not survive.
    pub fn at_the_end(&self, service: &[OpId], archives: [&[OpId]; 2]) -> Verdict {
        let mut place = vec![0_u8; self.told.len()];
        for (ops, bit) in [(service, 1), (archives[0], 2), (archives[1], 2)] {
            for op in ops {
                if let Some(place) = place.get_mut(*op as usize) {
                    *place |= bit;
                }
            }
        }
        for (op, (told, place)) in self.told.iter().zip(place).enumerate().skip(1) {
            let Some(level) = told.level else { continue };
            let in_service = place & 1 != 0;
            let somewhere = place != 0;
            // The table of protocol §10: which losses a level does not survive, and when the archive is enough.
            let archive_is_enough = told.alone
                || self.tainted
                || level <= AckLevel::Local
                || (level == AckLevel::Received && told.unsynced);
            let excused = told.destroyed || (level == AckLevel::Async && told.unsynced);
            let kept = in_service || (archive_is_enough && somewhere) || excused;
            rule("acknowledged", kept, || {
                format!(
                    "operation {op} was acknowledged {}{} and is {}",
                    level.name(),
                    if told.alone { " alone" } else { "" },
                    if somewhere { "only in an archive" } else { "nowhere" }
                )
            })?;
        }
        Ok(())
    }
}

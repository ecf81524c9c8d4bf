//! Nothing that a member accepted is overwritten before it is in its archive, unless its peer has it (protocol §11).

use std::collections::BTreeSet;

use super::{
    super::{
        disk::{Disk, OpId},
        member::name,
    },
    Verdict, rule,
};

/// Counts what was overwritten.
#[derive(Debug, Default)]
pub struct Archive {
    /// What an older copy brought back although its member had archived it since: that archive went with the storage.
    brought_back: [BTreeSet<OpId>; 2],
    /// Journals replaced by a snapshot.
    pub overwritten: u64,
    /// Records in archives by then.
    pub archived: u64,
}

impl Archive {
    /// A journal is replaced by a snapshot that holds these records.
    ///
    /// # Errors
    /// If a record is in neither the snapshot nor the archive.
    pub fn overwrites(&mut self, m: usize, disk: &Disk, snapshot: &[OpId]) -> Verdict {
        let log = disk.journal.log();
        let top = log.iter().chain(snapshot).chain(&disk.archive).max().copied().unwrap_or(0) as usize;
        let mut kept = vec![false; top + 1];
        for op in snapshot.iter().chain(&disk.archive) {
            kept[*op as usize] = true;
        }
        self.overwritten += 1;
        self.archived += disk.archive.len() as u64;
        let back = &self.brought_back[m];
        let lost = log.iter().find(|op| **op != 0 && !kept[**op as usize] && !back.contains(op));
        rule("archive", lost.is_none(), || {
            format!("{} overwrites operation {}, which is in no archive", name(m), lost.copied().unwrap_or(0))
        })
    }

    /// A storage was replaced by an older copy.
    pub fn replaced(&mut self, m: usize, old: &Disk, new: &Disk) {
        let held: BTreeSet<OpId> = old.journal.log().into_iter().collect();
        self.brought_back[m].extend(new.journal.log().into_iter().filter(|op| !held.contains(op)));
    }
}

//! The table of epochs of a journal: where each begins. Finds the point that two journals surely share.
//!
//! Always in order of epoch and of position. Never longer than [`MAX_EPOCHS`]: the oldest entries give way, and what
//! lies before them counts as unknown.

use ringpair_wire::{
    control::{EpochStart, MAX_EPOCHS},
    id::{Epoch, Position, Seq},
};

/// Whether two epochs are of one promotion: of one member, and of one base. Both members may have promoted
/// themselves over the same epochs, so the base alone does not tell.
#[must_use]
pub fn same_term(one: Epoch, other: Epoch) -> bool {
    one.base() == other.base() && one.owner() == other.owner()
}

/// The epochs of one journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    list: Vec<EpochStart>,
}

impl Epochs {
    /// The newest [`MAX_EPOCHS`] of these.
    #[must_use]
    pub fn new(mut list: Vec<EpochStart>) -> Self {
        list.sort_by_key(|start| start.epoch);
        let excess = list.len().saturating_sub(MAX_EPOCHS);
        list.drain(..excess);
        Self { list }
    }

    /// The entries, in order.
    #[must_use]
    pub fn list(&self) -> &[EpochStart] {
        &self.list
    }

    /// Notes that a frame of `epoch` follows `after`, if it is the epoch's first.
    pub fn note(&mut self, epoch: Epoch, after: Position) {
        if self.list.last().is_none_or(|last| last.epoch < epoch) {
            self.list.push(EpochStart { epoch, after });
            let excess = self.list.len().saturating_sub(MAX_EPOCHS);
            self.list.drain(..excess);
        }
    }

    /// The number of the last record of `epoch` in a journal that ends at `end`; `None`: the epoch is not in it.
    #[must_use]
    pub fn end_of(&self, epoch: Epoch, end: Position) -> Option<Seq> {
        let index = self.list.iter().position(|start| start.epoch == epoch)?;
        Some(self.list.get(index + 1).map_or(end.seq, |next| next.after.seq))
    }

    /// The newest record that a follower with this table and end surely shares with this journal: the shorter end of
    /// the newest epoch that both begin at the same place. The oldest epoch of either table may have begun before it
    /// (a journal that was reset or trimmed), and is known by its number alone. Zero if there is none.
    #[must_use]
    pub fn common(&self, end: Position, follower: &[EpochStart], follower_end: Position) -> Seq {
        let theirs = Self::new(follower.to_vec());
        // Cut: the epoch began before the entry says, and so has a record at that place already.
        let cut = |start: &EpochStart| start.after.epoch == start.epoch;
        let shared = self.list.iter().rev().find(|own| {
            let same = theirs.list.iter().find(|their| their.epoch == own.epoch);
            same.is_some_and(|their| match (cut(own), cut(their)) {
                (false, false) => their.after == own.after,
                (true, false) => their.after.seq < own.after.seq,
                (false, true) => own.after.seq < their.after.seq,
                (true, true) => true,
            })
        });
        let Some(shared) = shared else {
            return Seq(0);
        };
        let own = self.end_of(shared.epoch, end).unwrap_or(shared.after.seq);
        let other = theirs.end_of(shared.epoch, follower_end).unwrap_or(shared.after.seq);
        own.min(other)
    }

    /// As [`Self::common`], when this journal was searched for the follower's end and does not hold it: then an epoch
    /// whose number says that all of it is shared was begun by two copies of one storage, and only what lies before it
    /// is.
    #[must_use]
    pub fn common_without_end(&self, end: Position, follower: &[EpochStart], follower_end: Position) -> Seq {
        let common = self.common(end, follower, follower_end);
        let theirs = Self::new(follower.to_vec());
        match theirs.list.split_last() {
            Some((newest, older)) if common == follower_end.seq => self.common(end, older, newest.after),
            _ => common,
        }
    }

    /// Whether a peer whose journal ends at `theirs` has records of this journal's newest term of office (the same
    /// base epoch) that this journal, having gone on in a later epoch, does not have: the sign of an older copy
    /// (protocol §2). In the newest epoch itself a longer journal is no such sign, but of an active's (`in_office`):
    /// nobody is ahead of who gives out the numbers.
    #[must_use]
    pub fn outreached_by(&self, theirs: Position, end: Position, in_office: bool) -> bool {
        let gone_on = theirs.epoch < end.epoch || (in_office && theirs.epoch == end.epoch);
        same_term(theirs.epoch, end.epoch)
            && gone_on
            && self.end_of(theirs.epoch, end).is_none_or(|own| theirs.seq > own)
    }
}

#[cfg(test)]
mod tests {
    use ringpair_wire::id::ChainHash;

    use super::*;

    fn at(epoch: u64, seq: u64) -> Position {
        Position { epoch: Epoch(epoch), seq: Seq(seq), chain: ChainHash(u128::from(epoch * 1000 + seq)) }
    }

    fn table(starts: &[(u64, Position)]) -> Epochs {
        Epochs::new(starts.iter().map(|&(epoch, after)| EpochStart { epoch: Epoch(epoch), after }).collect())
    }

    #[test]
    fn the_common_point_is_the_shorter_end_of_the_newest_shared_epoch() {
        let leader = table(&[(65_537, at(0, 0)), (131_072, at(65_537, 90))]);
        let follower = table(&[(65_537, at(0, 0))]);
        assert_eq!(leader.common(at(131_072, 120), follower.list(), at(65_537, 100)), Seq(90));
        assert_eq!(leader.common(at(131_072, 120), follower.list(), at(65_537, 80)), Seq(80));
        assert_eq!(leader.common(at(131_072, 120), &[], at(0, 0)), Seq(0));
    }

    #[test]
    fn an_epoch_that_begins_elsewhere_is_not_shared() {
        let leader = table(&[(65_537, at(0, 0)), (65_539, at(65_537, 90))]);
        let follower = table(&[(65_537, at(0, 0)), (65_539, at(65_537, 95))]);
        assert_eq!(leader.common(at(65_539, 99), follower.list(), at(65_539, 99)), Seq(90));
    }

    #[test]
    fn an_older_copy_that_went_on_is_outreached() {
        // REQ: protocol §2, a rolled-back storage that started alone
        let older = table(&[(65_537, at(0, 0)), (65_539, at(65_537, 500))]);
        assert!(older.outreached_by(at(65_537, 1000), at(65_539, 510), false));
        assert!(!older.outreached_by(at(65_537, 500), at(65_539, 510), false));
        assert!(
            !older.outreached_by(at(131_072, 1000), at(65_539, 510), true),
            "another term is a divergence, not a rollback"
        );
        let same = table(&[(65_537, at(0, 0))]);
        assert!(!same.outreached_by(at(65_537, 1000), at(65_537, 500), false), "a longer suffix is pulled, not feared");
        assert!(same.outreached_by(at(65_537, 1000), at(65_537, 500), true), "but nobody is ahead of an active");
        assert!(!same.outreached_by(at(65_537, 500), at(65_537, 500), true));
    }

    #[test]
    fn an_epoch_that_two_copies_began_is_not_shared() {
        let cut = |epoch, seq| (epoch, at(epoch, seq));
        let leader = table(&[cut(65_539, 192)]);
        let follower = [EpochStart { epoch: Epoch(65_539), after: at(65_539, 150) }];
        let end = at(65_539, 700);
        assert_eq!(leader.common(end, &follower, at(65_539, 590)), Seq(590), "by its number");
        assert_eq!(leader.common_without_end(end, &follower, at(65_539, 590)), Seq(0), "by its chain");
        let leader = table(&[cut(65_537, 150), (65_539, at(65_537, 298))]);
        let follower = table(&[cut(65_537, 200), (65_539, at(65_537, 298))]);
        assert_eq!(leader.common_without_end(end, follower.list(), at(65_539, 590)), Seq(298));
        let shorter = leader.common_without_end(at(65_539, 580), follower.list(), at(65_539, 590));
        assert_eq!(shorter, Seq(580), "the follower has more of it: nothing speaks against the number");
    }

    #[test]
    fn the_table_is_bounded() {
        let mut epochs = Epochs::default();
        for n in 1..=1000 {
            epochs.note(Epoch(n), at(n - 1, n));
        }
        assert_eq!(epochs.list().len(), MAX_EPOCHS);
        assert_eq!(epochs.list().last().map(|start| start.epoch), Some(Epoch(1000)));
    }
}

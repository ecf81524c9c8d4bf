//! Time: the one place that gathers every deadline, and the getters that tell the shell how long it may rest.
//!
//! Always: a member that is to be seen takes a turn every H/2 at the latest, so that only a pause of its process is a gap
//! of more than H. Never: a deadline that is past already, which would make the shell spin.

use crate::{node::Node, time::Instant};

impl Node {
    /// When [`Self::handle_timeout`] is to be called at the latest.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.seeking_since?;
        let turn = self.now.plus(self.config.heartbeat / 2);
        let office = self.office.as_ref();
        let deadlines = [
            Some(self.beat_due),
            self.silence_deadline(),
            self.dying_until,
            self.right_deadline(),
            self.pull_deadline(),
            self.follow_deadline(),
            self.switch_deadline(),
            self.seeking_deadline(),
            office.and_then(|office| office.commence_at),
        ];
        let all = deadlines.into_iter().chain(self.lease_deadlines()).flatten();
        Some(all.filter(|deadline| *deadline > self.now).fold(turn, Instant::min))
    }
}

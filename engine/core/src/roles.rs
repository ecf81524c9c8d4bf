//! The state machine of the specification (SM-010 to SM-018): which cause leads from which state to which.
//!
//! Always exhaustive: every pair of state and cause is decided here, and only here. Never: a way out of `stopping`.

use ringpair_wire::control::State;

/// What changes a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The promotion is persisted (SM-070, SM-076, SM-084, SM-085).
    Promoted,
    /// An active peer of the same release is followed (SM-071, SM-086).
    FollowsSame,
    /// An active peer of an older release is followed (SM-072).
    FollowsOlder,
    /// An active peer of a newer release is followed (SM-073).
    FollowsNewer,
    /// The active is silent or gone (SM-075, SM-079 to SM-083).
    LostActive,
    /// The own office ended: a higher epoch, isolation, storage, release (SM-093).
    SteppedDown,
    /// Something named keeps the member from taking part.
    Unable,
    /// It looks for an active again (SM-094, SM-165).
    Seeks,
    /// It ends (SM-095).
    Stops,
    /// An unrecoverable failure (SM-096).
    Fails,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 10] = [
        Self::Promoted,
        Self::FollowsSame,
        Self::FollowsOlder,
        Self::FollowsNewer,
        Self::LostActive,
        Self::SteppedDown,
        Self::Unable,
        Self::Seeks,
        Self::Stops,
        Self::Fails,
    ];
}

/// The state that `cause` leads to; `None`: it means nothing in this state.
#[must_use]
pub const fn next_state(state: State, cause: Cause) -> Option<State> {
    use Cause as C;
    use State as S;
    match (state, cause) {
        (S::Stopping, _) => None,
        (_, C::Stops) => Some(S::Stopping),
        (_, C::Fails) => Some(S::Error),
        (S::Error, C::Seeks) => Some(S::Reconnecting),
        (S::Error, _) => None,
        (S::Primary, C::SteppedDown) => Some(S::Inactive),
        (S::Primary, _) | (_, C::SteppedDown) => None,
        (_, C::Promoted) => Some(S::Primary),
        (_, C::FollowsSame) => Some(S::Backup),
        (_, C::FollowsOlder) => Some(S::UpgradeHigher),
        (_, C::FollowsNewer) => Some(S::UpgradeLower),
        // SM-091: a fault of the active changes nothing in the upgrade states; a start keeps asking as `init`.
        (S::UpgradeHigher | S::UpgradeLower | S::Init | S::Inactive, C::LostActive) => None,
        (S::Backup | S::Reconnecting, C::LostActive) => Some(S::Reconnecting),
        (_, C::Unable) => Some(S::Inactive),
        (S::Init, C::Seeks) => None,
        (S::Inactive | S::Reconnecting | S::Backup | S::UpgradeHigher | S::UpgradeLower, C::Seeks) => {
            Some(S::Reconnecting)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_stopping_and_only_stepping_down_leaves_primary() {
        // REQ: SM-017, SM-019, SM-093, SM-095, SM-096
        for cause in Cause::ALL {
            assert_eq!(next_state(State::Stopping, cause), None);
            let expected = match cause {
                Cause::SteppedDown => Some(State::Inactive),
                Cause::Stops => Some(State::Stopping),
                Cause::Fails => Some(State::Error),
                _ => None,
            };
            assert_eq!(next_state(State::Primary, cause), expected, "{cause:?}");
        }
    }

    #[test]
    fn the_rows_of_the_specification() {
        // REQ: SM-070, SM-071, SM-072, SM-073, SM-075, SM-084, SM-086, SM-091, SM-092, SM-094
        use {Cause as C, State as S};
        for (from, cause, to) in [
            (S::Init, C::Promoted, Some(S::Primary)),
            (S::Init, C::FollowsSame, Some(S::Backup)),
            (S::Init, C::FollowsOlder, Some(S::UpgradeHigher)),
            (S::Init, C::FollowsNewer, Some(S::UpgradeLower)),
            (S::Backup, C::LostActive, Some(S::Reconnecting)),
            (S::Backup, C::Promoted, Some(S::Primary)),
            (S::Reconnecting, C::FollowsSame, Some(S::Backup)),
            (S::UpgradeHigher, C::LostActive, None),
            (S::UpgradeLower, C::LostActive, None),
            (S::UpgradeHigher, C::Promoted, Some(S::Primary)),
            (S::Inactive, C::Seeks, Some(S::Reconnecting)),
            (S::Inactive, C::FollowsSame, Some(S::Backup)),
        ] {
            assert_eq!(next_state(from, cause), to, "{from:?} {cause:?}");
        }
    }
}

//! Decisions as a person reads them: one code, one sentence, and the record of a switch with its evidence.
//!
//! Always: a sentence names the cause and the figures it was decided by.

use ringpair_wire::id::{Epoch, MemberId, Seq};

use crate::time::Instant;

/// What kind of decision or observation an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventCode {
    /// The state (SM-010 to SM-018) changed.
    StateChanged,
    /// The peer was heard, or a lane came up or went down.
    Connection,
    /// An election was decided.
    Election,
    /// The peer is silent.
    Suspicion,
    /// Silence ended, or a promotion was held back.
    SuspicionEnded,
    /// A promotion began, went on, or ended.
    Promotion,
    /// The active ceased to be active.
    SteppedDown,
    /// A right to promote was granted, taken or given back.
    Right,
    /// The lease lapsed or runs again.
    Lease,
    /// The active goes on without its backup, or has it back.
    Alone,
    /// A controlled switch began, went on, or ended.
    Switch,
    /// A release was said or heard.
    Release,
    /// The mode changed.
    Mode,
    /// A hook failed.
    HookFailed,
    /// Storage failed or recovered.
    Storage,
    /// Following, resuming, resynchronizing.
    Replication,
    /// The divergence archive.
    Archive,
    /// This process did not run for a while.
    Pause,
    /// An epoch was refused, or a rolled-back storage found.
    Epoch,
}

impl EventCode {
    /// The name in the event log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::StateChanged => "state-changed",
            Self::Connection => "connection",
            Self::Election => "election",
            Self::Suspicion => "suspicion",
            Self::SuspicionEnded => "suspicion-ended",
            Self::Promotion => "promotion",
            Self::SteppedDown => "stepped-down",
            Self::Right => "right",
            Self::Lease => "lease",
            Self::Alone => "alone",
            Self::Switch => "switch",
            Self::Release => "release",
            Self::Mode => "mode",
            Self::HookFailed => "hook-failed",
            Self::Storage => "storage",
            Self::Replication => "replication",
            Self::Archive => "archive",
            Self::Pause => "pause",
            Self::Epoch => "epoch",
        }
    }
}

/// One line of the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When it was decided.
    pub at: Instant,
    /// What kind.
    pub code: EventCode,
    /// The member's highest epoch then.
    pub epoch: Epoch,
    /// The sentence.
    pub reason: String,
}

/// Why a switch took place: SM-099, with the additions of interface §3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SwitchReason {
    /// The reconnect interval expired (PAR-051).
    ReconnectExpired,
    /// The active's host does not answer (PAR-044).
    PrimaryUnreachable,
    /// The active, or its supervisor, released its epoch.
    EpochReleased,
    /// The module does not answer.
    ModuleDown,
    /// The module's process ended.
    ModuleExit,
    /// An operator's controlled switch.
    Operator,
    /// An operator's `--force`.
    Forced,
    /// An election of two members of which neither was active.
    Elected,
    /// A start: of the member that was active last, or that held a release, or of a new history.
    Started,
}

impl SwitchReason {
    /// The name of OPS-057, which stands before "Switch Initiated" in the event log (OPS-059).
    #[must_use]
    pub const fn original_name(self) -> &'static str {
        match self {
            Self::ReconnectExpired | Self::PrimaryUnreachable | Self::EpochReleased => "Loss of Connection to Notifier",
            Self::ModuleDown | Self::ModuleExit => "TS Ping Failure",
            Self::Operator | Self::Forced => "Manual Switchover",
            Self::Elected | Self::Started => "Start",
        }
    }

    /// The sub-reason (OPS-058).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReconnectExpired => "reconnect expired",
            Self::PrimaryUnreachable => "primary unreachable",
            Self::EpochReleased => "epoch released",
            Self::ModuleDown => "module down",
            Self::ModuleExit => "module exit",
            Self::Operator => "switch command",
            Self::Forced => "switch command with --force",
            Self::Elected => "election",
            Self::Started => "start",
        }
    }

    /// The number that the control file stores.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The reason of that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Every reason, by number.
    pub const ALL: [Self; 9] = [
        Self::ReconnectExpired,
        Self::PrimaryUnreachable,
        Self::EpochReleased,
        Self::ModuleDown,
        Self::ModuleExit,
        Self::Operator,
        Self::Forced,
        Self::Elected,
        Self::Started,
    ];
}

/// One switch, as `why` and `status` show it (OPS-058).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchRecord {
    /// The new epoch.
    pub epoch: Epoch,
    /// The member that was active; `None`: nobody known.
    pub from: Option<MemberId>,
    /// The member that became active.
    pub to: MemberId,
    /// Why.
    pub reason: SwitchReason,
    /// Whether the old active took part.
    pub controlled: bool,
    /// When the promotion was decided.
    pub decided: Instant,
    /// From the last sign of the old active to the decision, in milliseconds.
    pub detect_ms: u64,
    /// From the decision to `/active` 200, in milliseconds; 0 until then.
    pub promote_ms: u64,
    /// The journal's end at the decision.
    pub position: Seq,
    /// Who asked, for a command.
    pub user: String,
    /// The evidence in order: milliseconds relative to the decision, and a sentence.
    pub evidence: Vec<(i64, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_places() {
        // REQ: OPS-057, OPS-058
        for reason in SwitchReason::ALL {
            assert_eq!(SwitchReason::from_number(reason.number()), Some(reason));
        }
        assert_eq!(SwitchReason::from_number(9), None);
        assert_eq!(SwitchReason::EpochReleased.original_name(), "Loss of Connection to Notifier");
        assert_eq!(SwitchReason::Operator.original_name(), "Manual Switchover");
    }
}

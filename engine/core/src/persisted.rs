//! What a member keeps in its control file (protocol §1), and its bytes there.
//!
//! Always: a state is synced before anything that depends on it is sent, answered or done; decoding is bounded and
//! strict. Never: a time of the monotonic clock, which means nothing after a reboot.

use ringpair_wire::{
    control::{GrantId, NumberedMode, Role},
    id::{Epoch, HistoryId, MemberId, Seq},
};

use crate::event::SwitchReason;

/// The right to promote, as this member last knew it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Right {
    /// Nothing is out and nothing is held.
    #[default]
    None,
    /// As active: this grant is out.
    Out(GrantId),
    /// As backup: this grant is held.
    Held(GrantId),
    /// As backup: this grant was given back.
    GivenBack(GrantId),
}

/// The last switch, as it survives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastSwitch {
    /// The new epoch.
    pub epoch: Epoch,
    /// Who was active before, if known.
    pub from: Option<MemberId>,
    /// Who became active.
    pub to: MemberId,
    /// Why.
    pub reason: SwitchReason,
    /// Whether the old active took part.
    pub controlled: bool,
    /// Wall clock of the decision, in milliseconds since 1970; for people only.
    pub at_unix_ms: u64,
    /// From the last sign of the old active to the decision.
    pub detect_ms: u64,
    /// From the decision to `/active` 200; 0: not known.
    pub promote_ms: u64,
}

/// The state that a member persists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Persisted {
    /// The history; `None`: empty storage.
    pub history: Option<HistoryId>,
    /// The highest epoch seen, anybody's.
    pub highest_epoch: Epoch,
    /// The highest epoch of the peer's that was seen.
    pub peer_epoch: Epoch,
    /// The role this member had last. `Active` stays until it follows another active with everything archived.
    pub last_role: Role,
    /// The newest epoch in which this member was active itself; zero: never.
    pub own_epoch: Epoch,
    /// Whether the copy is whole; `false` during a resynchronization, after a rollback, and when storage failed.
    pub complete: bool,
    /// The right to promote.
    pub right: Right,
    /// The number of the newest grant in `own_epoch`.
    pub grant_number: u64,
    /// Acknowledged alone since this epoch and after this record.
    pub alone: Option<(Epoch, Seq)>,
    /// The own epoch that this member has released; not its active any more.
    pub released: Option<Epoch>,
    /// The peer's epoch that its holder has released to this member.
    pub peer_released: Option<Epoch>,
    /// Became active without a right: not exclusive until the peer has stepped down or is fenced.
    pub contested: bool,
    /// The pair's mode.
    pub mode: NumberedMode,
    /// The last switch.
    pub last_switch: Option<LastSwitch>,
}

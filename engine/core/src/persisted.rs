//! What a member keeps in its control file (protocol §1), and its bytes there.
//!
//! Always: a state is synced before anything that depends on it is sent, answered or done; decoding is bounded and
//! strict. Never: a time of the monotonic clock, which means nothing after a reboot.

use ringpair_wire::{
    codec::{Codec, DecodeError, Reader, Writer},
    control::{GrantId, NumberedMode, Role, SwitchMode},
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

impl Persisted {
    /// Whether this member was the pair's newest active as far as it knows, and has not released the role.
    #[must_use]
    pub fn was_active_last(&self) -> bool {
        self.last_role == Role::Active
            && self.own_epoch == self.highest_epoch
            && self.own_epoch != Epoch(0)
            && self.released != Some(self.own_epoch)
    }

    /// Whether this copy may serve: whatever elects, promotes or grants asks here.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.complete
    }

    /// The grant that is out, if any.
    #[must_use]
    pub const fn out(&self) -> Option<GrantId> {
        match self.right {
            Right::Out(id) => Some(id),
            _ => None,
        }
    }

    /// The grant that is held, if any.
    #[must_use]
    pub const fn held(&self) -> Option<GrantId> {
        match self.right {
            Right::Held(id) => Some(id),
            _ => None,
        }
    }
}

/// The version of the layout.
const LAYOUT: u8 = 1;

impl Codec for Persisted {
    const NAME: &'static str = "persisted state";

    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(LAYOUT);
        w.option(self.history, |w, history| w.history(history));
        w.epoch(self.highest_epoch);
        w.epoch(self.peer_epoch);
        w.u8(role_number(self.last_role));
        w.epoch(self.own_epoch);
        w.bool(self.complete);
        encode_right(w, self.right);
        w.varint(self.grant_number);
        w.option(self.alone, |w, (epoch, seq)| {
            w.epoch(epoch);
            w.seq(seq);
        });
        w.option(self.released, Writer::epoch);
        w.option(self.peer_released, Writer::epoch);
        w.bool(self.contested);
        w.varint(self.mode.number);
        w.bool(self.mode.mode == SwitchMode::Manual);
        w.option(self.last_switch.as_ref(), |w, last| last.encode(w));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let layout = r.u8("layout")?;
        if layout != LAYOUT {
            return Err(invalid("layout", format!("{layout}, expected {LAYOUT}")));
        }
        Ok(Self {
            history: r.option("history", |r| r.history("history"))?,
            highest_epoch: r.epoch("highest epoch")?,
            peer_epoch: r.epoch("peer epoch")?,
            last_role: decode_role(r)?,
            own_epoch: r.epoch("own epoch")?,
            complete: r.bool("complete")?,
            right: decode_right(r)?,
            grant_number: r.varint("grant number")?,
            alone: r.option("alone", |r| Ok((r.epoch("alone epoch")?, r.seq("alone seq")?)))?,
            released: r.option("released", |r| r.epoch("released"))?,
            peer_released: r.option("peer released", |r| r.epoch("peer released"))?,
            contested: r.bool("contested")?,
            mode: NumberedMode {
                number: r.varint("mode number")?,
                mode: if r.bool("mode")? { SwitchMode::Manual } else { SwitchMode::Auto },
            },
            last_switch: r.option("last switch", LastSwitch::decode)?,
        })
    }
}

impl Codec for LastSwitch {
    const NAME: &'static str = "last switch";

    fn encode(&self, w: &mut Writer<'_>) {
        w.epoch(self.epoch);
        w.option(self.from, Writer::member);
        w.member(self.to);
        w.u8(self.reason.number());
        w.bool(self.controlled);
        w.varint(self.at_unix_ms);
        w.varint(self.detect_ms);
        w.varint(self.promote_ms);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            epoch: r.epoch("switch epoch")?,
            from: r.option("switch from", |r| r.member("switch from"))?,
            to: r.member("switch to")?,
            reason: {
                let number = r.u8("switch reason")?;
                SwitchReason::from_number(number)
                    .ok_or_else(|| invalid("switch reason", format!("{number} is unknown")))?
            },
            controlled: r.bool("switch controlled")?,
            at_unix_ms: r.varint("switch at")?,
            detect_ms: r.varint("switch detect")?,
            promote_ms: r.varint("switch promote")?,
        })
    }
}

fn invalid(what: &'static str, why: String) -> DecodeError {
    DecodeError::Invalid { what, why }
}

const fn role_number(role: Role) -> u8 {
    match role {
        Role::None => 0,
        Role::Active => 1,
        Role::Backup => 2,
    }
}

fn decode_role(r: &mut Reader<'_>) -> Result<Role, DecodeError> {
    match r.u8("last role")? {
        0 => Ok(Role::None),
        1 => Ok(Role::Active),
        2 => Ok(Role::Backup),
        other => Err(invalid("last role", format!("{other} is unknown"))),
    }
}

fn encode_right(w: &mut Writer<'_>, right: Right) {
    let (tag, id) = match right {
        Right::None => (0, GrantId::default()),
        Right::Out(id) => (1, id),
        Right::Held(id) => (2, id),
        Right::GivenBack(id) => (3, id),
    };
    w.u8(tag);
    if tag != 0 {
        w.epoch(id.epoch);
        w.varint(id.number);
    }
}

fn decode_right(r: &mut Reader<'_>) -> Result<Right, DecodeError> {
    let tag = r.u8("right")?;
    if tag == 0 {
        return Ok(Right::None);
    }
    let id = GrantId { epoch: r.epoch("right epoch")?, number: r.varint("right number")? };
    match tag {
        1 => Ok(Right::Out(id)),
        2 => Ok(Right::Held(id)),
        3 => Ok(Right::GivenBack(id)),
        other => Err(invalid("right", format!("{other} is unknown"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Persisted {
        Persisted {
            history: Some(HistoryId([7; 16])),
            highest_epoch: Epoch(131_072),
            peer_epoch: Epoch(131_072),
            last_role: Role::Active,
            own_epoch: Epoch(65_537),
            complete: true,
            right: Right::Held(GrantId { epoch: Epoch(131_072), number: 3 }),
            grant_number: 9,
            alone: Some((Epoch(65_537), Seq(12))),
            released: Some(Epoch(65_537)),
            peer_released: Some(Epoch(131_072)),
            contested: true,
            mode: NumberedMode { number: 2, mode: SwitchMode::Manual },
            last_switch: Some(LastSwitch {
                epoch: Epoch(131_072),
                from: Some(MemberId::A),
                to: MemberId::B,
                reason: SwitchReason::EpochReleased,
                controlled: false,
                at_unix_ms: 1_700_000_000_000,
                detect_ms: 7,
                promote_ms: 13,
            }),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        for state in [Persisted::default(), full()] {
            assert_eq!(Persisted::from_bytes(&state.to_bytes()), Ok(state));
        }
    }

    #[test]
    fn every_cut_is_an_error_and_no_flip_panics() {
        let bytes = full().to_bytes();
        for cut in 0..bytes.len() {
            assert!(Persisted::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(state) = Persisted::from_bytes(&flipped) {
                assert_eq!(state.to_bytes(), flipped, "one value, one encoding");
            }
        }
        assert!(Persisted::from_bytes(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn a_release_or_a_higher_epoch_ends_having_been_active_last() {
        // REQ: protocol §8
        let mut state = Persisted { highest_epoch: Epoch(65_537), released: None, ..full() };
        assert!(state.was_active_last());
        state.highest_epoch = Epoch(131_072);
        assert!(!state.was_active_last());
        state.highest_epoch = Epoch(65_537);
        state.released = Some(Epoch(65_537));
        assert!(!state.was_active_last());
    }
}

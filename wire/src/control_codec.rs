//! The encodings of control messages (SPEC.md §8): a type byte, then fixed fields; lists and texts bounded.
//!
//! Always: one value, one encoding; what this version does not know is refused, by name. Never: a text cut silently on
//! the way in (only on the way out, where it is for people).

use crate::{
    codec::{Codec, DecodeError, Reader, Writer, prefix},
    control::{
        Blocker, BlockerKind, Control, EpochStart, GiveBackReason, GrantId, MAX_BLOCKERS, MAX_EPOCHS, MAX_REASON_BYTES,
        MAX_RELEASE_BYTES, NumberedMode, Report, Role, State, SwitchMode, SwitchOutcome,
    },
};

/// The greatest length of a blocker's path, in bytes: the longest DS path or file name.
pub const MAX_BLOCKER_PATH_BYTES: usize = crate::codec::MAX_PATH_BYTES;
/// The greatest length of an encoded control message, in bytes: fits every lane that carries one (W-73).
pub const MAX_CONTROL_BYTES: usize = 63 << 10;

/// Message types on the wire.
mod tag {
    pub const REPORT: u8 = 1;
    pub const ANNOUNCE: u8 = 2;
    pub const GRANT: u8 = 3;
    pub const GIVE_BACK: u8 = 4;
    pub const DYING: u8 = 5;
    pub const RELEASED: u8 = 6;
    pub const FETCH_TAIL: u8 = 7;
    pub const TAIL_END: u8 = 8;
    pub const FOLLOW: u8 = 9;
    pub const RESUME: u8 = 10;
    pub const MUST_RESYNC: u8 = 11;
    pub const ACK: u8 = 12;
    pub const MODE: u8 = 13;
    pub const SWITCH_REQUEST: u8 = 14;
    pub const SWITCH_ANSWER: u8 = 15;
}

/// An enumeration that is one byte on the wire: its index in this list, which is its discriminant (W-70).
fn read_index<T: Copy>(
    r: &mut Reader<'_>,
    what: &'static str,
    all: &[T],
    expected: &'static str,
) -> Result<T, DecodeError> {
    let got = r.u8(what)?;
    all.get(usize::from(got)).copied().ok_or(DecodeError::Tag { what, got: got.into(), expected })
}

const ROLES: [Role; 3] = [Role::None, Role::Active, Role::Backup];
const REASONS: [GiveBackReason; 6] = [
    GiveBackReason::Stopping,
    GiveBackReason::WorkerDied,
    GiveBackReason::StorageFailed,
    GiveBackReason::DsLaneDown,
    GiveBackReason::NotCurrent,
    GiveBackReason::HigherEpoch,
];
const BLOCKERS: [BlockerKind; 4] = [BlockerKind::Ds, BlockerKind::File, BlockerKind::Handler, BlockerKind::State];
const MODES: [SwitchMode; 2] = [SwitchMode::Auto, SwitchMode::Manual];

/// A role: one byte.
pub(crate) fn read_role(r: &mut Reader<'_>, what: &'static str) -> Result<Role, DecodeError> {
    read_index(r, what, &ROLES, "0 (none), 1 (active) or 2 (backup)")
}

impl Codec for GrantId {
    const NAME: &'static str = "grant";

    fn encode(&self, w: &mut Writer<'_>) {
        w.epoch(self.epoch);
        w.u64(self.number);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { epoch: r.epoch("grant.epoch")?, number: r.u64("grant.number")? })
    }
}

impl Codec for EpochStart {
    const NAME: &'static str = "epoch start";

    fn encode(&self, w: &mut Writer<'_>) {
        w.epoch(self.epoch);
        w.position(self.after);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { epoch: r.epoch("epoch_start.epoch")?, after: r.position("epoch_start.after")? })
    }
}

impl Codec for NumberedMode {
    const NAME: &'static str = "mode";

    fn encode(&self, w: &mut Writer<'_>) {
        w.u64(self.number);
        w.u8(self.mode as u8);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let number = r.u64("mode.number")?;
        Ok(Self { number, mode: read_index(r, "mode.mode", &MODES, "0 (auto) or 1 (manual)")? })
    }
}

impl Codec for Report {
    const NAME: &'static str = "report";

    fn encode(&self, w: &mut Writer<'_>) {
        w.option(self.history, Writer::history);
        w.u8(self.role as u8);
        w.u8(self.state as u8);
        w.epoch(self.epoch);
        w.epoch(self.yours);
        w.position(self.position);
        w.u8(self.last_role as u8);
        w.bool(self.complete);
        w.bool(self.eligible);
        w.option(self.held, |w, held| held.encode(w));
        w.option(self.released, Writer::epoch);
        self.mode.encode(w);
        w.text(prefix(&self.release, MAX_RELEASE_BYTES));
        w.bool(self.ask);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            history: r.option("report.history", |r| r.history("report.history"))?,
            role: read_role(r, "report.role")?,
            state: read_index(r, "report.state", &State::ALL, "0 (init) to 8 (error)")?,
            epoch: r.epoch("report.epoch")?,
            yours: r.epoch("report.yours")?,
            position: r.position("report.position")?,
            last_role: read_role(r, "report.last_role")?,
            complete: r.bool("report.complete")?,
            eligible: r.bool("report.eligible")?,
            held: r.option("report.held", GrantId::decode)?,
            released: r.option("report.released", |r| r.epoch("report.released"))?,
            mode: NumberedMode::decode(r)?,
            release: r.text("report.release", MAX_RELEASE_BYTES)?.into(),
            ask: r.bool("report.ask")?,
        })
    }
}

impl Codec for Blocker {
    const NAME: &'static str = "blocker";

    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(self.kind as u8);
        w.text(prefix(&self.path, MAX_BLOCKER_PATH_BYTES));
        w.text(prefix(&self.reason, MAX_REASON_BYTES));
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: read_index(r, "blocker.kind", &BLOCKERS, "0 (ds) to 3 (state)")?,
            path: r.text("blocker.path", MAX_BLOCKER_PATH_BYTES)?.into(),
            reason: r.text("blocker.reason", MAX_REASON_BYTES)?.into(),
        })
    }
}

impl Codec for SwitchOutcome {
    const NAME: &'static str = "switch outcome";

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Released(epoch) => {
                w.u8(0);
                w.epoch(*epoch);
            }
            Self::Refused { reason, blockers } => {
                w.u8(1);
                w.text(prefix(reason, MAX_REASON_BYTES));
                let sent = sendable(blockers);
                w.count(sent.len());
                sent.iter().for_each(|blocker| blocker.encode(w));
            }
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8("switch.outcome")? {
            0 => Ok(Self::Released(r.epoch("switch.epoch")?)),
            1 => {
                let reason = r.text("switch.reason", MAX_REASON_BYTES)?.into();
                let count = r.count("switch.blockers", MAX_BLOCKERS, 3)?;
                let blockers = (0..count).map(|_| Blocker::decode(r)).collect::<Result<_, _>>()?;
                Ok(Self::Refused { reason, blockers })
            }
            got => {
                let expected = "0 (released) or 1 (refused)";
                Err(DecodeError::Tag { what: "switch.outcome", got: got.into(), expected })
            }
        }
    }
}

/// As many blockers, from the first on, as fit into a message with everything else (W-73).
fn sendable(blockers: &[Blocker]) -> &[Blocker] {
    /// The room that everything else of the message takes at most.
    const REST_BYTES: usize = 1024;
    let mut room = MAX_CONTROL_BYTES - REST_BYTES;
    let fits = |blocker: &&Blocker| {
        let bytes = blocker.path.len().min(MAX_BLOCKER_PATH_BYTES) + blocker.reason.len().min(MAX_REASON_BYTES) + 8;
        let fits = bytes <= room;
        room = room.saturating_sub(bytes);
        fits
    };
    let count = blockers.iter().take(MAX_BLOCKERS).take_while(fits).count();
    &blockers[..count]
}

impl Codec for Control {
    const NAME: &'static str = "control";

    fn encode(&self, w: &mut Writer<'_>) {
        match self {
            Self::Report(report) => {
                w.u8(tag::REPORT);
                report.encode(w);
            }
            Self::Announce { epoch, history, after } => {
                w.u8(tag::ANNOUNCE);
                w.epoch(*epoch);
                w.history(*history);
                w.position(*after);
            }
            Self::Grant { id, through } => {
                w.u8(tag::GRANT);
                id.encode(w);
                w.seq(*through);
            }
            Self::GiveBack { id, reason } => {
                w.u8(tag::GIVE_BACK);
                id.encode(w);
                w.u8(*reason as u8);
            }
            Self::Dying { epoch, hold_ms } => {
                w.u8(tag::DYING);
                w.epoch(*epoch);
                w.u32(*hold_ms);
            }
            Self::Released { epoch, end, controlled } => {
                w.u8(tag::RELEASED);
                w.epoch(*epoch);
                w.position(*end);
                w.bool(*controlled);
            }
            Self::Mode(mode) => {
                w.u8(tag::MODE);
                mode.encode(w);
            }
            Self::SwitchRequest { id, immediate } => {
                w.u8(tag::SWITCH_REQUEST);
                w.u64(*id);
                w.bool(*immediate);
            }
            Self::SwitchAnswer { id, outcome } => {
                w.u8(tag::SWITCH_ANSWER);
                w.u64(*id);
                outcome.encode(w);
            }
            Self::FetchTail { .. }
            | Self::TailEnd { .. }
            | Self::Follow { .. }
            | Self::Resume { .. }
            | Self::MustResync { .. }
            | Self::Ack { .. } => encode_stream(self, w),
        }
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8("control.type")? {
            tag::REPORT => Self::Report(Box::new(Report::decode(r)?)),
            tag::ANNOUNCE => Self::Announce {
                epoch: r.epoch("announce.epoch")?,
                history: r.history("announce.history")?,
                after: r.position("announce.after")?,
            },
            tag::GRANT => Self::Grant { id: GrantId::decode(r)?, through: r.seq("grant.through")? },
            tag::GIVE_BACK => Self::GiveBack {
                id: GrantId::decode(r)?,
                reason: read_index(r, "give_back.reason", &REASONS, "0 (stopping) to 5 (higher epoch)")?,
            },
            tag::DYING => Self::Dying { epoch: r.epoch("dying.epoch")?, hold_ms: r.u32("dying.hold_ms")? },
            tag::RELEASED => Self::Released {
                epoch: r.epoch("released.epoch")?,
                end: r.position("released.end")?,
                controlled: r.bool("released.controlled")?,
            },
            tag::MODE => Self::Mode(NumberedMode::decode(r)?),
            tag::SWITCH_REQUEST => {
                Self::SwitchRequest { id: r.u64("switch.id")?, immediate: r.bool("switch.immediate")? }
            }
            tag::SWITCH_ANSWER => Self::SwitchAnswer { id: r.u64("switch.id")?, outcome: SwitchOutcome::decode(r)? },
            other => return decode_stream(other, r),
        })
    }
}

/// The messages about positions in histories.
fn encode_stream(message: &Control, w: &mut Writer<'_>) {
    match message {
        Control::FetchTail { after } => {
            w.u8(tag::FETCH_TAIL);
            w.position(*after);
        }
        Control::TailEnd { end, served } => {
            w.u8(tag::TAIL_END);
            w.position(*end);
            w.bool(*served);
        }
        Control::Follow { position, complete, epochs } => {
            w.u8(tag::FOLLOW);
            w.position(*position);
            w.bool(*complete);
            // The newest epochs are the last ones.
            let newest = &epochs[epochs.len().saturating_sub(MAX_EPOCHS)..];
            w.count(newest.len());
            newest.iter().for_each(|start| start.encode(w));
        }
        Control::Resume { epoch, after, end } => {
            w.u8(tag::RESUME);
            w.epoch(*epoch);
            w.position(*after);
            w.position(*end);
        }
        Control::MustResync { epoch, history, common, diverged } => {
            w.u8(tag::MUST_RESYNC);
            w.epoch(*epoch);
            w.history(*history);
            w.seq(*common);
            w.bool(*diverged);
        }
        Control::Ack { epoch, received, durable, applied } => {
            w.u8(tag::ACK);
            w.epoch(*epoch);
            w.seq(*received);
            w.seq(*durable);
            w.seq(*applied);
        }
        _ => unreachable!("the caller encodes {message:?}"),
    }
}

fn decode_stream(kind: u8, r: &mut Reader<'_>) -> Result<Control, DecodeError> {
    Ok(match kind {
        tag::FETCH_TAIL => Control::FetchTail { after: r.position("fetch_tail.after")? },
        tag::TAIL_END => Control::TailEnd { end: r.position("tail_end.end")?, served: r.bool("tail_end.served")? },
        tag::FOLLOW => {
            let (position, complete) = (r.position("follow.position")?, r.bool("follow.complete")?);
            let epochs = read_epochs(r)?;
            Control::Follow { position, complete, epochs }
        }
        tag::RESUME => Control::Resume {
            epoch: r.epoch("resume.epoch")?,
            after: r.position("resume.after")?,
            end: r.position("resume.end")?,
        },
        tag::MUST_RESYNC => Control::MustResync {
            epoch: r.epoch("must_resync.epoch")?,
            history: r.history("must_resync.history")?,
            common: r.seq("must_resync.common")?,
            diverged: r.bool("must_resync.diverged")?,
        },
        tag::ACK => {
            let epoch = r.epoch("ack.epoch")?;
            let (received, durable, applied) = (r.seq("ack.received")?, r.seq("ack.durable")?, r.seq("ack.applied")?);
            Control::Ack { epoch, received, durable, applied }
        }
        got => return Err(DecodeError::Tag { what: "control.type", got: got.into(), expected: "1 to 15" }),
    })
}

/// Epochs in growing order, each beginning no earlier than the one before (W-72).
fn read_epochs(r: &mut Reader<'_>) -> Result<Vec<EpochStart>, DecodeError> {
    let count = r.count("follow.epochs", MAX_EPOCHS, 40)?;
    let mut epochs: Vec<EpochStart> = Vec::with_capacity(count);
    for _ in 0..count {
        let start = EpochStart::decode(r)?;
        if epochs.last().is_some_and(|last| last.epoch >= start.epoch || last.after.seq > start.after.seq) {
            let why = format!("epoch {} after record {} is out of order", start.epoch, start.after.seq);
            return Err(DecodeError::Invalid { what: "follow.epochs", why });
        }
        epochs.push(start);
    }
    Ok(epochs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        id::{ChainHash, Epoch, HistoryId, Position, Seq},
        testing::{any_position, canonical, golden, round_trip},
    };

    fn any_grant() -> impl Strategy<Value = GrantId> {
        any::<(u64, u64)>().prop_map(|(epoch, number)| GrantId { epoch: Epoch(epoch), number })
    }

    fn any_mode() -> impl Strategy<Value = NumberedMode> {
        (any::<u64>(), prop::sample::select(MODES.to_vec())).prop_map(|(number, mode)| NumberedMode { number, mode })
    }

    fn any_report() -> impl Strategy<Value = Report> {
        let role = || prop::sample::select(ROLES.to_vec());
        let rights = (prop::option::of(any_grant()), prop::option::of(any::<u64>()), any_mode(), ".{0,20}");
        let ids = any::<(Option<[u8; 16]>, u64, u64, bool, bool, bool)>();
        (role(), role(), prop::sample::select(State::ALL.to_vec()), any_position(), rights, ids).prop_map(
            |(role, last_role, state, position, (held, released, mode, release), ids)| {
                let (history, epoch, yours, complete, eligible, ask) = ids;
                let (history, epoch, yours) = (history.map(HistoryId), Epoch(epoch), Epoch(yours));
                let released = released.map(Epoch);
                Report {
                    history,
                    role,
                    state,
                    epoch,
                    yours,
                    position,
                    last_role,
                    complete,
                    eligible,
                    held,
                    released,
                    mode,
                    release,
                    ask,
                }
            },
        )
    }

    fn any_outcome() -> impl Strategy<Value = SwitchOutcome> {
        let blocker = (prop::sample::select(BLOCKERS.to_vec()), ".{0,30}", ".{0,30}")
            .prop_map(|(kind, path, reason)| Blocker { kind, path, reason });
        prop_oneof![
            any::<u64>().prop_map(|epoch| SwitchOutcome::Released(Epoch(epoch))),
            (".{0,30}", prop::collection::vec(blocker, 0..5))
                .prop_map(|(reason, blockers)| SwitchOutcome::Refused { reason, blockers }),
        ]
    }

    fn any_follow() -> impl Strategy<Value = Control> {
        let epochs = prop::collection::vec((1..1000_u64, 0..1000_u64, any::<u128>()), 0..10);
        (any_position(), any::<bool>(), epochs).prop_map(|(position, complete, steps)| {
            let (mut epoch, mut seq, mut epochs) = (0, 0, Vec::new());
            for (up, on, chain) in steps {
                epoch += up;
                seq += on;
                let after = Position { epoch: Epoch(epoch - 1), seq: Seq(seq), chain: ChainHash(chain) };
                epochs.push(EpochStart { epoch: Epoch(epoch), after });
            }
            Control::Follow { position, complete, epochs }
        })
    }

    fn any_control() -> impl Strategy<Value = Control> {
        let (p, e) = (any_position, || any::<u64>().prop_map(Epoch));
        let s = || any::<u64>().prop_map(Seq);
        let h = || any::<[u8; 16]>().prop_map(HistoryId);
        let b = any::<bool>;
        prop_oneof![
            any_report().prop_map(|report| Control::Report(Box::new(report))),
            (e(), h(), p()).prop_map(|(epoch, history, after)| Control::Announce { epoch, history, after }),
            (any_grant(), s()).prop_map(|(id, through)| Control::Grant { id, through }),
            (any_grant(), prop::sample::select(REASONS.to_vec()))
                .prop_map(|(id, reason)| Control::GiveBack { id, reason }),
            (e(), any::<u32>()).prop_map(|(epoch, hold_ms)| Control::Dying { epoch, hold_ms }),
            (e(), p(), b()).prop_map(|(epoch, end, controlled)| Control::Released { epoch, end, controlled }),
            p().prop_map(|after| Control::FetchTail { after }),
            (p(), b()).prop_map(|(end, served)| Control::TailEnd { end, served }),
            any_follow(),
            (e(), p(), p()).prop_map(|(epoch, after, end)| Control::Resume { epoch, after, end }),
            (e(), h(), s(), b()).prop_map(|(epoch, history, common, diverged)| Control::MustResync {
                epoch,
                history,
                common,
                diverged
            }),
            (e(), s(), s(), s()).prop_map(|(epoch, received, durable, applied)| Control::Ack {
                epoch,
                received,
                durable,
                applied
            }),
            any_mode().prop_map(Control::Mode),
            (any::<u64>(), b()).prop_map(|(id, immediate)| Control::SwitchRequest { id, immediate }),
            (any::<u64>(), any_outcome()).prop_map(|(id, outcome)| Control::SwitchAnswer { id, outcome }),
        ]
    }

    #[test]
    fn an_index_is_a_discriminant_w70() {
        for (index, (role, mode)) in ROLES.iter().zip(MODES.iter().cycle()).enumerate() {
            assert_eq!(*role as usize, index);
            assert_eq!(*mode as usize, index % MODES.len());
        }
        assert!(State::ALL.iter().enumerate().all(|(index, state)| *state as usize == index));
        assert!(REASONS.iter().enumerate().all(|(index, reason)| *reason as usize == index));
        assert!(BLOCKERS.iter().enumerate().all(|(index, kind)| *kind as usize == index));
    }

    #[test]
    fn golden_control_messages() {
        let position = Position { epoch: Epoch(65_537), seq: Seq(9), chain: ChainHash(0xabcd) };
        let report = Report {
            history: Some(HistoryId([7; 16])),
            role: Role::Active,
            state: State::Primary,
            epoch: Epoch(65_537),
            position,
            held: Some(GrantId { epoch: Epoch(65_537), number: 2 }),
            release: "2021.1.3".into(),
            ..Report::default()
        };
        golden("control_report", &Control::Report(Box::new(report)).to_bytes());
        let (received, durable, applied) = (Seq(9), Seq(8), Seq(7));
        golden("control_ack", &Control::Ack { epoch: Epoch(65_537), received, durable, applied }.to_bytes());
        let epochs = vec![EpochStart { epoch: Epoch(65_537), after: Position::default() }];
        golden("control_follow", &Control::Follow { position, complete: true, epochs }.to_bytes());
        let blockers = vec![Blocker { kind: BlockerKind::File, path: "/srv/a".into(), reason: "not sent".into() }];
        let outcome = SwitchOutcome::Refused { reason: "behind".into(), blockers };
        golden("control_switch_answer", &Control::SwitchAnswer { id: 5, outcome }.to_bytes());
    }

    #[test]
    fn what_is_not_known_or_out_of_order_is_refused_w71_w72() {
        for unknown in [0, 16, 255] {
            let error = Control::from_bytes(&[unknown]).unwrap_err();
            assert!(matches!(error, DecodeError::Tag { what: "control.type", expected: "1 to 15", .. }), "{error}");
        }
        let start =
            |epoch, seq| EpochStart { epoch: Epoch(epoch), after: Position { seq: Seq(seq), ..Position::default() } };
        for epochs in [vec![start(2, 0), start(2, 1)], vec![start(1, 5), start(2, 4)]] {
            let follow = Control::Follow { position: Position::default(), complete: true, epochs };
            let error = Control::from_bytes(&follow.to_bytes()).unwrap_err();
            assert!(matches!(error, DecodeError::Invalid { what: "follow.epochs", .. }), "{error}");
        }
    }

    #[test]
    fn lists_are_cut_to_what_a_lane_carries_w73() {
        let epochs: Vec<_> =
            (1..=300).map(|epoch| EpochStart { epoch: Epoch(epoch), after: Position::default() }).collect();
        let follow = Control::Follow { position: Position::default(), complete: true, epochs };
        match Control::from_bytes(&follow.to_bytes()) {
            Ok(Control::Follow { epochs, .. }) => {
                assert_eq!((epochs.len(), epochs[0].epoch, epochs[255].epoch), (256, Epoch(45), Epoch(300)));
            }
            other => panic!("{other:?}"),
        }
        let path = "/x".repeat(MAX_BLOCKER_PATH_BYTES / 2);
        let blockers = vec![Blocker { kind: BlockerKind::File, path, reason: "ä".repeat(400) }; 300];
        let outcome = SwitchOutcome::Refused { reason: "r".repeat(600), blockers };
        let bytes = Control::SwitchAnswer { id: 5, outcome }.to_bytes();
        assert!(bytes.len() <= MAX_CONTROL_BYTES);
        match Control::from_bytes(&bytes) {
            Ok(Control::SwitchAnswer { outcome: SwitchOutcome::Refused { blockers, reason }, .. }) => {
                assert_eq!((blockers.len(), reason.len()), (3, MAX_REASON_BYTES));
            }
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn control_messages_round_trip(control in any_control()) {
            prop_assert!(control.to_bytes().len() <= MAX_CONTROL_BYTES);
            round_trip(&control)?;
        }

        #[test]
        fn any_bytes_are_an_error_or_canonical(kind in 0..17_u8, bytes: Vec<u8>) {
            let mut all = vec![kind];
            all.extend_from_slice(&bytes);
            canonical::<Control>(&all)?;
        }

        #[test]
        fn flipped_messages_are_an_error_or_canonical(control in any_control(), at: prop::sample::Index, bit in 0..8_u8) {
            let mut bytes = control.to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            canonical::<Control>(&bytes)?;
        }
    }
}

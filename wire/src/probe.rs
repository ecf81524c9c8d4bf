//! The probe of a mark: a datagram sealed as a heartbeat is, which left with the mark of a lane and names it, so that
//! whoever receives it knows whether the path changed the mark (SPEC.md §7).
//!
//! Always: as long as a heartbeat. Never: anything that a decision about roles rests on.

use crate::{
    codec::{Codec, DecodeError, Reader, Writer},
    dscp::Dscp,
    heartbeat::PLAIN_BYTES,
    id::MemberId,
    lane::LaneKind,
};

/// The version of the plaintext's layout.
pub const PROBE_VERSION: u8 = 1;
/// What follows the fields.
const RESERVED_BYTES: usize = PLAIN_BYTES - 4;

/// The plaintext of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Probe {
    /// Who sends it.
    pub sender: MemberId,
    /// Whose mark it bears.
    pub lane: LaneKind,
    /// The mark that it left with.
    pub dscp: Dscp,
}

impl Codec for Probe {
    const NAME: &'static str = "probe";

    fn encode(&self, w: &mut Writer<'_>) {
        w.u8(PROBE_VERSION);
        w.member(self.sender);
        w.u8(self.lane as u8);
        w.u8(self.dscp.number());
        w.raw(&[0; RESERVED_BYTES]);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let tag = |what, got: u8, expected| DecodeError::Tag { what, got: got.into(), expected };
        match r.u8("probe.version")? {
            PROBE_VERSION => {}
            got => return Err(tag("probe.version", got, "1")),
        }
        let sender = r.member("probe.sender")?;
        let number = r.u8("probe.lane")?;
        let lane = LaneKind::ALL.into_iter().find(|lane| *lane as u8 == number);
        let lane = lane.ok_or_else(|| tag("probe.lane", number, "0 to 2"))?;
        let number = r.u8("probe.dscp")?;
        let dscp = Dscp::new(number).map_err(|_| tag("probe.dscp", number, "0 to 63"))?;
        let reserved: [u8; RESERVED_BYTES] = r.array("probe.reserved")?;
        match reserved.into_iter().find(|byte| *byte != 0) {
            Some(got) => Err(tag("probe.reserved", got, "0")),
            None => Ok(Self { sender, lane, dscp }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{any_member, canonical, golden, round_trip};

    #[test]
    fn golden_probe_w64() {
        let bytes = Probe { sender: MemberId::B, lane: LaneKind::Bulk, dscp: Dscp::LE }.to_bytes();
        assert_eq!(bytes.len(), PLAIN_BYTES);
        golden("probe", &bytes);
    }

    #[test]
    fn fields_out_of_range_are_refused_w65() {
        let whole = Probe { sender: MemberId::A, lane: LaneKind::Ds, dscp: Dscp::AF31 }.to_bytes();
        for (at, value, what) in [
            (0, 2, "probe.version"),
            (1, 2, "probe.sender"),
            (2, 3, "probe.lane"),
            (3, 64, "probe.dscp"),
            (4, 1, "probe.reserved"),
            (PLAIN_BYTES - 1, 1, "probe.reserved"),
        ] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let error = Probe::from_bytes(&bytes).unwrap_err().to_string();
            assert!(error.starts_with(what), "byte {at}: {error}");
        }
    }

    proptest! {
        #[test]
        fn probes_round_trip(sender in any_member(), lane in 0..3_usize, dscp in 0..64_u8) {
            let dscp = Dscp::new(dscp).unwrap();
            round_trip(&Probe { sender, lane: LaneKind::ALL[lane], dscp })?;
        }

        #[test]
        fn any_bytes_are_an_error_or_canonical(head in any::<[u8; 4]>()) {
            let mut bytes = [0; PLAIN_BYTES];
            bytes[..4].copy_from_slice(&head);
            canonical::<Probe>(&bytes)?;
        }
    }
}

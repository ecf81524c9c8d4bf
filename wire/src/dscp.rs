//! Differentiated-services code points by name and number (RFC 2474, 2597, 3246, 5865, 8622; PAR-054).

use std::{fmt, str::FromStr};

/// A code point, 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dscp(u8);

/// Every name with its number.
const NAMES: [(&str, u8); 23] = [
    ("CS0", 0),
    ("CS1", 8),
    ("CS2", 16),
    ("CS3", 24),
    ("CS4", 32),
    ("CS5", 40),
    ("CS6", 48),
    ("CS7", 56),
    ("AF11", 10),
    ("AF12", 12),
    ("AF13", 14),
    ("AF21", 18),
    ("AF22", 20),
    ("AF23", 22),
    ("AF31", 26),
    ("AF32", 28),
    ("AF33", 30),
    ("AF41", 34),
    ("AF42", 36),
    ("AF43", 38),
    ("EF", 46),
    ("VA", 44),
    ("LE", 1),
];

/// A text or number that names no code point.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DSCP {0:?} is neither a number from 0 to 63 nor one of CS0-CS7, AF11-AF43, EF, VA, LE. Try: AF41")]
pub struct DscpError(String);

impl Dscp {
    /// The ping lane's default.
    pub const AF41: Self = Self(34);
    /// The ds lane's default.
    pub const AF31: Self = Self(26);
    /// The bulk lane's default: lower effort.
    pub const LE: Self = Self(1);
    /// No class.
    pub const CS0: Self = Self(0);

    /// The code point with this number.
    ///
    /// # Errors
    /// [`DscpError`] above 63 (PAR-054).
    pub fn new(number: u8) -> Result<Self, DscpError> {
        if number <= 63 { Ok(Self(number)) } else { Err(DscpError(number.to_string())) }
    }

    /// The number, 0 to 63.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The value of the IPv4 TOS or IPv6 traffic-class byte: the number in the six high bits, ECN zero.
    #[must_use]
    pub const fn tos_byte(self) -> u8 {
        self.0 << 2
    }

    /// The code point in a TOS or traffic-class byte; its ECN bits are left out.
    #[must_use]
    pub const fn from_tos_byte(tos: u8) -> Self {
        Self(tos >> 2)
    }

    /// The class name, where there is one.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(_, number)| *number == self.0).map(|(name, _)| *name)
    }
}

impl FromStr for Dscp {
    type Err = DscpError;

    /// A class name in any case, or a decimal number.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((_, number)) = NAMES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
            return Ok(Self(*number));
        }
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse::<u8>() {
            Ok(number @ 0..=63) if digits => Ok(Self(number)),
            _ => Err(DscpError(text.into())),
        }
    }
}

impl fmt::Display for Dscp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // REQ: PAR-054
    #[test]
    fn names_and_numbers_parse_and_print() {
        for number in 0..=63 {
            let dscp = Dscp::new(number).unwrap();
            assert_eq!(dscp.to_string().parse(), Ok(dscp));
            assert_eq!(number.to_string().parse(), Ok(dscp));
            assert_eq!(Dscp::from_tos_byte(dscp.tos_byte() | 3), dscp);
        }
        assert_eq!("af41".parse(), Ok(Dscp::AF41));
        assert_eq!(Dscp::AF41.tos_byte(), 0x88);
        for class in 1..=4 {
            for drop in 1..=3 {
                let number = 8 * class + 2 * drop;
                assert_eq!(format!("AF{class}{drop}").parse(), Dscp::new(number), "RFC 2597");
            }
        }
        for class in 0..=7 {
            assert_eq!(format!("CS{class}").parse(), Dscp::new(8 * class), "RFC 2474");
        }
    }

    // REQ: PAR-054
    #[test]
    fn what_is_no_code_point_is_named_with_the_range() {
        for bad in ["64", "255", "256", "", "AF44", "CS8", "-1", "+1", "0x22"] {
            let message = bad.parse::<Dscp>().unwrap_err().to_string();
            assert!(message.contains(&format!("{bad:?}")) && message.contains("0 to 63"), "{message}");
        }
        assert!(Dscp::new(64).unwrap_err().to_string().contains("64"));
    }
}

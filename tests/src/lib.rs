//! The simulator and the tests of real ringpair processes.
#![forbid(unsafe_code)]
#![expect(clippy::expect_used, reason = "test code: a failed expectation is a failed test")]

pub mod pair;
pub mod sim;

//! The simulator and the tests of real ringpair processes.
#![forbid(unsafe_code)]

pub mod pair;

//! The simulator and the tests of real ringpair processes.

//! Benchmarks of ringpair beside the machine's limits and its alternatives.

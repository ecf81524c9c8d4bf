//! The decisions of a ringpair member, without clock, disk, socket or thread.

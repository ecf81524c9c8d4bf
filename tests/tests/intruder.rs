//! Strangers at the port; `ringpair-intruder` throws more.

use ringpair_tests::pair::{Attack, intrude};

// REQ: OPS-095
#[test]
fn strangers_disturb_nobody() {
    intrude(Attack { noise_bytes: 64 << 20, half_open: 1000 }, |line| println!("{line}"));
}

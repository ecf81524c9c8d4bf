//! Ten random kills under durable load; `ringpair-kills` does a hundred.

use ringpair_tests::pair::storm;

// REQ: SM-165
#[test]
fn nothing_acknowledged_is_lost_by_ten_kills() {
    storm(1, 10, |line| println!("{line}"));
}

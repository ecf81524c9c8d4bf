//! A damaged journal never crashes its member and never makes it serve what nobody sent; `ringpair-damage` does more of it.

use ringpair_tests::pair::{Damage, damage};

// REQ: REP-026 SM-052
#[test]
fn no_damage_makes_a_member_serve_what_nobody_sent() {
    damage(Damage { cut_every: 23, flips: 12, seed: 1 }, |line| println!("{line}"));
}

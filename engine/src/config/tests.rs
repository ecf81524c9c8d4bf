//! Tests of the configuration.

use std::path::Path;

use ringpair_wire::{dscp::Dscp, id::MemberId};

use super::*;

const MINIMAL: &str = r#"
[pair]
name = "contact-center"
member = "A"
[members.A]
name = "icserver1"
address = "10.60.0.2:3633"
[members.B]
name = "icserver2"
address = "10.60.0.3:3633"
[storage]
dir = "/var/lib/ringpair-test"
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(Path::new("test.toml"), text, &[], "some-host")
}

#[test]
fn three_sections_suffice() {
    let config = parse(MINIMAL).expect("valid");
    assert_eq!(config.member, MemberId::A);
    assert_eq!(config.peer().address.to_string(), "10.60.0.3:3633");
    assert!(!config.own().has_aux());
    assert_eq!(config.transport.dscp, LaneDscp { ping: Dscp::AF41, ds: Dscp::AF31, bulk: Dscp::LE });
}

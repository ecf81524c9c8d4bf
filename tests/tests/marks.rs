//! What a switch or router between the members sees: every lane carries its mark, both ways, on IPv4 and IPv6, from the
//! first packet after the handshake on.
//!
//! Skips, and says so, where namespaces or packet sockets are not to be had.
#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use std::{collections::BTreeMap, fs};

use ringpair_tests::pair::{Capture, Endpoint, Family, Member, Network, Options, Packet, Pair, wait_until};

/// TLS's records of a handshake and of what is encrypted.
const HANDSHAKE: u8 = 22;
const ENCRYPTED: u8 = 23;
const CHANGE_CIPHER: u8 = 20;

const AF41: u8 = 34;
const AF31: u8 = 26;
const LE: u8 = 1;

/// One connection, seen from outside.
#[derive(Debug, Default)]
struct Flow<'a> {
    dialer: Option<Endpoint>,
    packets: Vec<&'a Packet>,
}

impl Flow<'_> {
    /// The lane that the dialer's first packet names, in clear.
    fn lane(&self) -> Option<&'static str> {
        let hello = &self.packets.first()?.payload;
        let named = |name: &str| hello.windows(name.len()).any(|window| window == name.as_bytes());
        ["ringpair/ping", "ringpair/ds", "ringpair/bulk"].into_iter().find(|name| named(name))
    }

    /// What either side sends after its handshake: the dialer after its ClientHello (its next packet ends the handshake
    /// and may carry more), the other side after that packet.
    fn payloads(&self) -> impl Iterator<Item = (bool, &Packet)> {
        let mut begun = false;
        let mut finished = false;
        self.packets.iter().filter_map(move |packet| {
            let dialed = Some(packet.from) == self.dialer;
            let hello = dialed && !std::mem::replace(&mut begun, true) && packet.payload[0] == HANDSHAKE;
            if dialed && !hello && matches!(packet.payload[0], ENCRYPTED | CHANGE_CIPHER) {
                finished = true;
            }
            (finished && !hello).then_some((dialed, *packet))
        })
    }
}

fn flows(packets: &[Packet]) -> Vec<Flow<'_>> {
    let mut flows = BTreeMap::<(Endpoint, Endpoint), Flow<'_>>::new();
    for packet in packets.iter().filter(|packet| packet.tcp) {
        let ends = (packet.from.min(packet.to), packet.from.max(packet.to));
        let flow = flows.entry(ends).or_default();
        flow.dialer.get_or_insert(packet.from);
        flow.packets.push(packet);
    }
    flows.into_values().collect()
}

/// Lane and direction ("A" or "B" speaks) of everything that was sent, with how many packets; panics on a wrong mark.
fn check(packets: &[Packet], network: &Network) -> BTreeMap<(String, char), usize> {
    let mut seen = BTreeMap::new();
    let speaker = |packet: &Packet| {
        if [0, 1].iter().any(|cable| network.address(0, *cable) == packet.from.0) { 'A' } else { 'B' }
    };
    for flow in flows(packets) {
        // Connections that came to nothing name no lane and carry nothing.
        let Some(lane) = flow.lane() else { continue };
        let wanted = match lane {
            "ringpair/ping" => AF41,
            "ringpair/ds" => AF31,
            _ => LE,
        };
        for (number, (dialed, packet)) in flow.payloads().enumerate() {
            assert_eq!(
                packet.dscp,
                wanted,
                "packet {number} after the handshake on {lane}, sent by {} (dialer: {dialed}), {:?} to {:?}",
                speaker(packet),
                packet.from,
                packet.to
            );
            *seen.entry((lane.to_owned(), speaker(packet))).or_default() += 1;
        }
    }
    for packet in packets.iter().filter(|packet| !packet.tcp && packet.to.1 == packet.from.1) {
        // A probe bears the mark that it asks about.
        let probe = packet.payload.get(4) == Some(&2);
        let (kind, wanted): (&str, &[u8]) = if probe { ("probe", &[AF31, LE]) } else { ("heartbeat", &[AF41]) };
        assert!(wanted.contains(&packet.dscp), "a {kind} of {} bears {}", speaker(packet), packet.dscp);
        *seen.entry((kind.into(), speaker(packet))).or_default() += 1;
    }
    seen
}

fn marks_of(family: Family) {
    let started = Network::new(family).and_then(|network| {
        let capture = Capture::start(&network.places()[0].namespace)?;
        Ok((network, capture))
    });
    let (network, capture) = match started {
        Ok(started) => started,
        Err(why) => return println!("skipped: {why}"),
    };
    let pair = Pair::start(&Options {
        places: Some(network.places()),
        mirror: vec!["+/srv/app".into()],
        ..Options::default()
    });
    pair.wait_in_sync();
    let put = |number: u32| {
        let body = format!(r#"{{"attributes":{{"N":["{number}"]}}}}"#);
        let answer = pair.a.ask("PUT", "/v1/ds/X?ack=applied", body.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    (0..20).for_each(put);
    // The bulk lane carries a file to the backup, and its confirmation back.
    let content = vec![b'x'; 3 << 20];
    fs::write(pair.a.root().join("srv/app/file"), &content).unwrap();
    let copy = pair.b.root().join("srv/app/file");
    wait_until(&format!("the file is on the backup\n{}", pair.logs()), || {
        fs::read(&copy).is_ok_and(|copied| copied == content)
    });
    let lanes = ["heartbeat", "probe", "ringpair/bulk", "ringpair/ds", "ringpair/ping"];
    wait_until("every lane was used both ways", || {
        let seen = check(&capture.packets(), &network);
        lanes.iter().all(|lane| ['A', 'B'].iter().all(|speaker| seen.contains_key(&((*lane).to_owned(), *speaker))))
    });
    println!("{family:?}: packets by lane and sender: {:?}", check(&capture.packets(), &network));
    let status = pair.a.status().unwrap_or_default();
    assert_eq!(status["connections"]["main"]["dscp"], AF41, "and the status says so");
}

/// The path to B clears one lane's mark: B names it, and A, to whom nothing is changed, names none.
fn a_changed_mark_is_named(lane: &str, mark: &str, number: u8) {
    let network = match Network::new(Family::V4) {
        Ok(network) => network,
        Err(why) => return println!("skipped: {why}"),
    };
    let rules = format!(
        "table inet changes {{
            chain comes {{ type filter hook prerouting priority -150
                ip dscp {number} ip dscp set cs0
            }}
        }}"
    );
    if let Err(why) = network.nft(1, &rules) {
        return println!("skipped: {why}");
    }
    let pair = Pair::start(&Options { places: Some(network.places()), ..Options::default() });
    pair.wait_in_sync();
    let shown = |member: &Member| {
        let status = member.status().unwrap_or_default();
        let arrived = ["main", "aux"].map(|path| status["connections"][path]["received_lanes"][lane].as_u64());
        (arrived, status["warnings"].to_string())
    };
    wait_until("B names what arrives otherwise", || {
        let (arrived, warnings) = shown(&pair.b);
        let named = format!("{lane} on main: CS0, not {mark}");
        arrived == [Some(0); 2] && warnings.contains("lane-marks-changed") && warnings.contains(&named)
    });
    wait_until("A has them as they left", || shown(&pair.a).0 == [Some(number.into()); 2]);
    assert!(!shown(&pair.a).1.contains("marks-changed"), "{:?}", shown(&pair.a));
    // The other lanes' marks are as they were.
    assert!(!shown(&pair.b).1.contains(if lane == "ds" { "bulk on" } else { "ds on" }), "{:?}", shown(&pair.b));
    assert_eq!(network.nft(1, "delete table inet changes"), Ok(()));
    wait_until("the warning goes", || !shown(&pair.b).1.contains("marks-changed"));
}

// REQ: OPS-197
#[test]
fn a_path_that_changes_the_mark_of_bulk_is_named() {
    a_changed_mark_is_named("bulk", "LE", LE);
}

// REQ: OPS-197
#[test]
fn a_path_that_changes_the_mark_of_ds_is_named() {
    a_changed_mark_is_named("ds", "AF31", AF31);
}

// REQ: REP-304
#[test]
fn every_lane_carries_its_mark_on_ipv4() {
    marks_of(Family::V4);
}

// REQ: REP-304
#[test]
fn every_lane_carries_its_mark_on_ipv6() {
    marks_of(Family::V6);
}

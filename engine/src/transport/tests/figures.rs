//! Figures for ARCHITECTURE.md, asked for by hand:
//! `cargo test --release -p ringpair --lib transport::tests::figures -- --ignored --nocapture`.

use std::thread;

use super::*;

/// Times `connects` handshakes up to the hello on both ends: median, in microseconds.
fn handshake_us(choice: DriverChoice, off: bool) -> u128 {
    let (mut a, mut b) = members(choice, "127.0.0.1", |member| if off { Protection::Off } else { tls(member) });
    let up = |node: &Node| node.transport.conn(LaneKind::Ds, PathKind::Main).is_some();
    let mut times = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        a.dial(LaneKind::Ds, PathKind::Main);
        while !(up(&a) && up(&b)) {
            a.turn(Duration::ZERO);
            b.turn(Duration::ZERO);
        }
        times.push(began.elapsed().as_micros());
        let conn = a.conn(LaneKind::Ds);
        a.transport.close(conn, Instant::now());
        until([&mut a, &mut b], "down", |nodes| nodes.iter().all(|node| node.transport.table.iter().count() == 0));
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// Moves `messages` bodies of `body_bytes` from one thread to the other: bytes a second.
fn throughput(choice: DriverChoice, off: bool, lane: LaneKind, body_bytes: usize, messages: usize) -> f64 {
    let protection = move |member| if off { Protection::Off } else { tls(member) };
    let listener = listen("127.0.0.1");
    let at = listener.local_addr().unwrap();
    let receiver = thread::spawn(move || {
        let mut config = config(MemberId::B, protection(MemberId::B), vec![]);
        config.heartbeats = false;
        let mut node = Node::new(choice, config, vec![listener]);
        let (mut got, mut began) = (0, None);
        while got < messages {
            node.turn(Duration::from_millis(100));
            for event in node.events.drain(..) {
                if let TransportEvent::Message { body, .. } = event {
                    began.get_or_insert_with(Instant::now);
                    assert_eq!(body.len(), body_bytes);
                    got += 1;
                }
            }
        }
        began.unwrap().elapsed()
    });
    let mut config = config(MemberId::A, protection(MemberId::A), vec![path(PathKind::Main, "127.0.0.1", at)]);
    config.heartbeats = false;
    let mut node = Node::new(choice, config, vec![]);
    node.dial(lane, PathKind::Main);
    let (mut sent, body) = (0, Shared::from(vec![7; body_bytes]));
    let kind = if lane == LaneKind::Ds { MessageKind::Frame } else { MessageKind::Mirror };
    while !receiver.is_finished() {
        if let Some(conn) = node.transport.conn(lane, PathKind::Main) {
            while sent < messages && node.transport.send_shared(conn, kind, std::slice::from_ref(&body)).is_ok() {
                sent += 1;
            }
        }
        node.turn(Duration::from_millis(1));
    }
    (messages * body_bytes) as f64 / receiver.join().unwrap().as_secs_f64()
}

#[test]
#[ignore = "measures, by hand: cargo test -p ringpair --lib transport::tests::figures -- --ignored --nocapture"]
fn figures() {
    for choice in choices() {
        for off in [false, true] {
            let tls = if off { "off" } else { "on" };
            println!("{choice:?} TLS {tls}: handshake {} us", handshake_us(choice, off));
            for (lane, body_bytes, messages) in [
                (LaneKind::Bulk, 1 << 20, 3_000),
                (LaneKind::Bulk, 256 << 10, 8_000),
                (LaneKind::Ds, 64 << 10, 20_000),
                (LaneKind::Ds, 200, 2_000_000),
            ] {
                let rate = throughput(choice, off, lane, body_bytes, messages);
                println!(
                    "{choice:?} TLS {tls}: {} bodies of {body_bytes}: {:.0} MB/s, {:.0} messages/s",
                    lane.name(),
                    rate / 1e6,
                    rate / body_bytes as f64
                );
            }
        }
    }
}

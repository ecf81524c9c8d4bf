//! Whoever is not the peer is refused, bounded, counted, and in nobody's way.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use super::*;

/// A lane is up, and answers.
fn undisturbed(a: &mut Node, b: &mut Node) {
    let (of_a, of_b) = (a.conn(LaneKind::Ds), b.conn(LaneKind::Ds));
    a.transport.send(of_a, MessageKind::Frame, &[b"ping"]).unwrap();
    b.transport.send(of_b, MessageKind::Frame, &[b"pong"]).unwrap();
    let mut got = [0, 0];
    until([a, b], "the pair goes on", |nodes| {
        got[0] += nodes[0].take_messages().len();
        got[1] += nodes[1].take_messages().len();
        got == [1, 1]
    });
}

/// Whether the other end has closed the connection; drains what it still said.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }
}

/// A node that is not the peer dials B and must fail; why it did.
fn foreigner(b: &mut Node, protection: Protection, member: MemberId, tweak: impl Fn(&mut TransportConfig)) -> String {
    let mut config = config(member, protection, vec![path(PathKind::Main, "127.0.0.1", b.addresses[0])]);
    config.heartbeats = false;
    tweak(&mut config);
    let mut foreigner = Node::new(DriverChoice::Auto, config, vec![]);
    foreigner.dial(LaneKind::Ds, PathKind::Main);
    until([&mut foreigner, b], "refused", |nodes| nodes[0].dial_failure().is_some());
    foreigner.dial_failure().unwrap().to_string()
}

// REQ: OPS-093, OPS-095
#[test]
fn whoever_has_not_the_peers_certificate_is_refused_by_name() {
    let (mut a, mut b) = connected(DriverChoice::Auto, LaneKind::Ds, |_| {});
    // Another authority, on either side.
    let said = foreigner(&mut b, Protection::MutualTls(identity(1, MemberId::A)), MemberId::A, |_| {});
    assert!(
        said.contains("not signed by this pair's authority") && said.contains(&identity(1, MemberId::A).ca_fingerprint),
        "{said}"
    );
    // Our own certificate: never ourselves.
    let said = foreigner(&mut b, tls(MemberId::B), MemberId::B, |_| {});
    assert!(said.contains("certificate is that of member B") && said.contains("expected member A"), "{said}");
    // No TLS at all.
    let said = foreigner(&mut b, Protection::Off, MemberId::A, |_| {});
    assert!(!said.is_empty());
    // The right keys, but another pair's configuration; and a version from the future.
    let said = foreigner(&mut b, tls(MemberId::A), MemberId::A, |config| config.hello.pair = "another".into());
    assert!(!said.is_empty());
    let said = foreigner(&mut b, tls(MemberId::A), MemberId::A, |config| {
        config.hello.versions = ringpair_wire::hello::VersionRange { min: 7, max: 9 };
    });
    assert!(said.contains("version 1, this member 7 to 9"), "both ranges are named: {said}");
    let stats = *b.transport.stats();
    assert_eq!((stats.refused_hello, b.transport.stranger_count()), (2, 0), "{stats:?}");
    assert!(stats.refused_tls >= 1, "{stats:?}");
    undisturbed(&mut a, &mut b);
}

/// A rustls client as a stranger would set it up.
fn raw_client(
    versions: &[&'static rustls::SupportedProtocolVersion],
    with: Option<usize>,
    alpn: Option<&[u8]>,
) -> rustls::ClientConnection {
    let ours = identity(0, MemberId::A);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ours.ca.clone()).unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match with {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let keys = identity(pair, MemberId::A);
            builder.with_client_auth_cert(vec![keys.certificate.clone()], keys.key.clone_key()).unwrap()
        }
    };
    config.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
    // B's certificate names ::1.
    rustls::ClientConnection::new(Arc::new(config), "::1".try_into().unwrap()).unwrap()
}

// REQ: OPS-095
#[test]
fn tls_that_is_not_ours_is_refused() {
    let cases: [(&str, rustls::ClientConnection); 5] = [
        ("TLS 1.2", raw_client(&[&rustls::version::TLS12], Some(0), Some(b"ringpair/ds"))),
        ("no certificate", raw_client(&[&rustls::version::TLS13], None, Some(b"ringpair/ds"))),
        ("foreign certificate", raw_client(&[&rustls::version::TLS13], Some(1), Some(b"ringpair/ds"))),
        ("another protocol", raw_client(&[&rustls::version::TLS13], Some(0), Some(b"h2"))),
        ("no protocol", raw_client(&[&rustls::version::TLS13], Some(0), None)),
    ];
    let (mut a, mut b) = connected(DriverChoice::Auto, LaneKind::Ds, |_| {});
    for (name, mut client) in cases {
        let before = b.transport.stats().refused_tls;
        let mut stream = TcpStream::connect(b.addresses[0]).unwrap();
        stream.set_nonblocking(true).unwrap();
        until([&mut a, &mut b], name, |nodes| {
            while client.wants_write() && client.write_tls(&mut stream).is_ok() {}
            if client.wants_read() && client.read_tls(&mut stream).is_ok() {
                let _ = client.process_new_packets();
            }
            nodes[1].transport.stats().refused_tls > before
        });
        until([&mut a, &mut b], name, |_| is_closed(&mut stream));
        undisturbed(&mut a, &mut b);
    }
    assert_eq!(b.transport.stranger_count(), 0);
}

#[test]
fn an_oversize_hello_is_refused() {
    let (mut a, mut b) = members(DriverChoice::Auto, "127.0.0.1", |_| Protection::Off);
    let mut hello = hello(MemberId::A).to_bytes();
    // Says that it is longer than a hello may be.
    hello[4..6].copy_from_slice(&u16::MAX.to_le_bytes());
    let mut stream = TcpStream::connect(b.addresses[0]).unwrap();
    stream.write_all(&hello).unwrap();
    until([&mut a, &mut b], "closed", |_| is_closed(&mut stream));
    assert_eq!(b.transport.stats().refused_hello, 1);
    // One that never comes whole is a stranger until it leaves.
    let mut stream = TcpStream::connect(b.addresses[0]).unwrap();
    stream.write_all(b"RPHI").unwrap();
    until([&mut a, &mut b], "taken", |nodes| nodes[1].transport.stranger_count() == 1);
    drop(stream);
    until([&mut a, &mut b], "left", |nodes| nodes[1].transport.stats().strangers_left == 1);
}

#[test]
fn random_bytes_are_no_trouble() {
    for choice in choices() {
        let (mut a, mut b) = connected(choice, LaneKind::Ds, |_| {});
        let at = b.addresses[0];
        let thrower = std::thread::spawn(move || {
            let (mut state, mut chunk) = (0x9e37_79b9_7f4a_7c15_u64, vec![0; 64 << 10]);
            let mut left = 16 << 20;
            while left > 0 {
                let Ok(mut stream) = TcpStream::connect(at) else { continue };
                for byte in &mut chunk {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *byte = (state >> 56) as u8;
                }
                // Some look like TLS at first.
                if state & 3 == 0 {
                    chunk[..5].copy_from_slice(&[22, 3, 1, 0x3f, 0xff]);
                }
                // The other end closes early: what was not taken counts as thrown.
                let _ = stream.write_all(&chunk);
                left -= chunk.len();
            }
        });
        until([&mut a, &mut b], "all thrown", |_| thrower.is_finished());
        thrower.join().unwrap();
        until([&mut a, &mut b], "strangers gone", |nodes| nodes[1].transport.stranger_count() == 0);
        let stats = b.transport.stats();
        assert!(stats.refused_tls >= 100, "{stats:?}");
        undisturbed(&mut a, &mut b);
    }
}

#[test]
fn half_open_connections_give_way_and_the_peer_comes_in() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(16_384), hard).unwrap();
    for choice in choices() {
        let (mut a, mut b) = connected(choice, LaneKind::Ds, |_| {});
        let at = b.addresses[0];
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (stopped, opened) = (stop.clone(), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
        let counted = opened.clone();
        let thrower = std::thread::spawn(move || {
            let mut held = VecDeque::new();
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect(at) else { continue };
                // A byte now and then, so that some have begun to speak.
                if held.len() % 3 == 0 {
                    let _ = stream.write_all(&[22]);
                }
                counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                held.push_back(stream);
                if held.len() > 6_000 {
                    held.pop_front();
                }
            }
        });
        let thrown = || opened.load(std::sync::atomic::Ordering::Relaxed);
        let mut most = 0;
        until([&mut a, &mut b], "a thousand", |nodes| {
            most = most.max(nodes[1].transport.stranger_count());
            thrown() >= 1000
        });
        assert!((1..=32).contains(&most), "{most}");
        undisturbed(&mut a, &mut b);
        // The peer reconnects, both ways, while they keep coming.
        let began = Instant::now();
        let conn = a.conn(LaneKind::Ds);
        a.transport.close(conn, Instant::now());
        until([&mut a, &mut b], "down", |nodes| nodes[1].transport.conn(LaneKind::Ds, PathKind::Main).is_none());
        until([&mut a, &mut b], "up again", |nodes| {
            if nodes[0].dial_failure().is_some() {
                nodes[0].events.clear();
            }
            let _ = nodes[0].transport.dial(LaneKind::Ds, PathKind::Main, Instant::now());
            nodes.iter().all(|node| node.transport.conn(LaneKind::Ds, PathKind::Main).is_some())
        });
        let took = began.elapsed();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        thrower.join().unwrap();
        assert!(took < Duration::from_secs(1), "reconnecting took {took:?}");
        let stats = *b.transport.stats();
        assert!(stats.strangers_gave_way > 500, "{stats:?}");
        undisturbed(&mut a, &mut b);
    }
}

#[test]
fn a_silent_stranger_has_two_seconds_and_few_bytes() {
    let (mut a, mut b) = connected(DriverChoice::Auto, LaneKind::Ds, |config| {
        config.strangers = StrangerLimits { count: 4, bytes: 3_000, time: Duration::from_millis(50) };
    });
    assert_eq!(StrangerLimits::default(), StrangerLimits { count: 32, bytes: 16 << 10, time: Duration::from_secs(2) });
    let mut silent = TcpStream::connect(b.addresses[0]).unwrap();
    until([&mut a, &mut b], "silent one closed", |_| is_closed(&mut silent));
    assert_eq!(b.transport.stats().strangers_timed_out, 1);
    // A record that announces much and sends it slowly: the bound on bytes ends it before TLS could.
    let mut talker = TcpStream::connect(b.addresses[0]).unwrap();
    talker.write_all(&[22, 3, 1, 0x20, 0, 1, 0, 0x1f, 0xfc]).unwrap();
    talker.write_all(&[0; 4_000]).unwrap();
    until([&mut a, &mut b], "talker closed", |_| is_closed(&mut talker));
    assert_eq!(b.transport.stats().strangers_oversize, 1);
    undisturbed(&mut a, &mut b);
}

#[test]
fn the_log_gets_one_line_a_second() {
    let (mut limiter, start) = (Limiter::default(), Instant::now());
    assert_eq!(limiter.pass(start), Some(0));
    for ms in 0..999 {
        assert_eq!(limiter.pass(start + Duration::from_millis(ms)), None);
    }
    assert_eq!(limiter.pass(start + Duration::from_secs(1)), Some(999));
    assert_eq!(limiter.pass(start + Duration::from_secs(1)), None);
}

#[test]
fn the_blocking_end_bounds_strangers_too() {
    let endpoint = blocking::Endpoint::new(
        &tls(MemberId::B),
        hello(MemberId::B),
        StrangerLimits { time: Duration::from_millis(50), bytes: 300, ..StrangerLimits::default() },
        LaneOptions::default_for(LaneKind::Ping),
    )
    .unwrap();
    let listener = listen("127.0.0.1");
    let at = listener.local_addr().unwrap();
    let accept = || endpoint.accept(listener.accept().unwrap().0, Instant::now() + BOUND);
    let silent = TcpStream::connect(at).unwrap();
    assert!(matches!(accept(), Err(DownReason::TimedOut)));
    drop(silent);
    let mut talker = TcpStream::connect(at).unwrap();
    talker.write_all(&[22, 3, 1, 0x20, 0, 1, 0, 0x1f, 0xfc]).unwrap();
    talker.write_all(&[0; 400]).unwrap();
    assert!(matches!(accept(), Err(DownReason::Stranger(_))));
    let mut random = TcpStream::connect(at).unwrap();
    random.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(matches!(accept(), Err(DownReason::Tls(_))));
    drop(TcpStream::connect(at).unwrap());
    assert!(matches!(accept(), Err(DownReason::Eof | DownReason::Reset)));
}

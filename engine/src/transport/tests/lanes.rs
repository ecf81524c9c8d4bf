//! Lanes between two members.

use ringpair_wire::heartbeat::SEALED_BYTES;

use super::*;
use crate::ring::Fd;

fn all_lanes() -> Vec<(LaneKind, PathKind)> {
    let aux_ping = (LaneKind::Ping, PathKind::Aux);
    LaneKind::ALL.into_iter().map(|lane| (lane, PathKind::Main)).chain([aux_ping]).collect()
}

fn kind_for(lane: LaneKind) -> MessageKind {
    match lane {
        LaneKind::Ping => MessageKind::Control,
        LaneKind::Ds => MessageKind::Frame,
        LaneKind::Bulk => MessageKind::Mirror,
    }
}

// REQ: OPS-095, REP-304, REP-301
#[test]
fn every_lane_comes_up_marked_and_carries_messages() {
    for choice in choices() {
        for (ip, off) in [("127.0.0.1", false), ("::1", false), ("127.0.0.1", true), ("::1", true)] {
            let protection = |member| if off { Protection::Off } else { tls(member) };
            let (mut a, mut b) = members(choice, ip, protection);
            for (lane, path) in all_lanes() {
                // Both directions of dialing, so that both ends mark as dialer and as acceptor.
                let dialer = if lane == LaneKind::Ds { &mut b } else { &mut a };
                dialer.dial(lane, path);
            }
            until([&mut a, &mut b], "all lanes up", |nodes| {
                nodes
                    .iter()
                    .all(|node| all_lanes().iter().all(|(lane, path)| node.transport.conn(*lane, *path).is_some()))
            });
            for node in [&a, &b] {
                for (lane, path) in all_lanes() {
                    let info = node.transport.info(node.transport.conn(lane, path).unwrap()).unwrap();
                    let (dscp, priority) = match lane {
                        LaneKind::Ping => (Dscp::AF41, 6),
                        LaneKind::Ds => (Dscp::AF31, 4),
                        LaneKind::Bulk => (Dscp::LE, 1),
                    };
                    let said = format!("{choice:?} {ip} {lane:?} {path:?} {info:?}");
                    assert_eq!((info.dscp, info.priority), (Some(dscp), Some(priority)), "{said}");
                    assert_eq!((info.tls, info.peer_fingerprint.is_some()), (!off, !off), "{said}");
                    if lane != LaneKind::Ping {
                        assert_eq!(info.congestion.as_deref(), Some("cubic"), "{said}");
                    }
                }
                for path in PathKind::ALL {
                    assert_eq!(node.transport.heartbeat_marks(path), Some((Dscp::AF41, 6)));
                }
            }
            for (lane, path) in all_lanes() {
                let kind = kind_for(lane);
                let (from_a, from_b) = (a.transport.conn(lane, path).unwrap(), b.transport.conn(lane, path).unwrap());
                a.transport.send(from_a, kind, &[b"to ", b"B"]).unwrap();
                b.transport.send(from_b, kind, &[b"to A"]).unwrap();
                until([&mut a, &mut b], "messages", |nodes| {
                    nodes
                        .iter()
                        .all(|node| node.events.iter().any(|event| matches!(event, TransportEvent::Message { .. })))
                });
                assert_eq!(a.take_messages(), [(kind, Shared::from_static(b"to A"))]);
                assert_eq!(b.take_messages(), [(kind, Shared::from_static(b"to B"))]);
            }
            assert!(a.transport.next_timeout(Instant::now()).is_none(), "nothing is timed on an idle transport");
        }
    }
}

// REQ: REP-304
#[test]
fn an_ipv4_peer_on_a_dual_listener_is_marked_as_ipv4() {
    let dual = TcpListener::bind("[::]:0").unwrap();
    let port = dual.local_addr().unwrap().port();
    let (mine, at) = (listen("127.0.0.1"), SocketAddr::from(([127, 0, 0, 1], port)));
    let back = mine.local_addr().unwrap();
    let a = config(MemberId::A, tls(MemberId::A), vec![path(PathKind::Main, "127.0.0.1", at)]);
    let b = config(MemberId::B, tls(MemberId::B), vec![PathAddress { path: PathKind::Main, local: None, peer: back }]);
    let mut a = Node::new(DriverChoice::Auto, a, vec![mine]);
    let mut b = Node::new(DriverChoice::Auto, b, vec![dual]);
    a.dial(LaneKind::Ping, PathKind::Main);
    let up = |node: &Node| node.transport.conn(LaneKind::Ping, PathKind::Main);
    until([&mut a, &mut b], "up", |nodes| nodes.iter().all(|node| up(node).is_some()));
    let info = b.transport.info(up(&b).unwrap()).unwrap();
    assert_eq!((info.dscp, info.priority), (Some(Dscp::AF41), Some(6)));
    assert!(b.transport.send_heartbeat(PathKind::Main, &[3; PLAIN_BYTES]));
    assert!(a.transport.send_heartbeat(PathKind::Main, &[4; PLAIN_BYTES]));
    until([&mut a, &mut b], "heartbeats", |nodes| {
        nodes.iter().all(|node| node.transport.stats().heartbeats_received == 1)
    });
}

// REQ: PAR-054, OPS-199
#[test]
fn marks_follow_the_configuration_and_can_be_changed() {
    let (mut a, mut b) = members_with(DriverChoice::Auto, "127.0.0.1", tls, |config| {
        (config.ping.dscp_main, config.ping.dscp_aux) = (Dscp::CS0, "EF".parse().unwrap());
    });
    a.dial(LaneKind::Ping, PathKind::Main);
    a.dial(LaneKind::Ping, PathKind::Aux);
    let up = |node: &Node, path| node.transport.conn(LaneKind::Ping, path);
    until([&mut a, &mut b], "up", |nodes| {
        nodes.iter().all(|node| PathKind::ALL.iter().all(|path| up(node, *path).is_some()))
    });
    for node in [&a, &b] {
        let mark = |path| node.transport.info(up(node, path).unwrap()).unwrap().dscp.unwrap().number();
        assert_eq!((mark(PathKind::Main), mark(PathKind::Aux)), (0, 46));
        assert_eq!(node.transport.heartbeat_marks(PathKind::Aux).unwrap().0.number(), 46);
        assert_eq!(node.transport.heartbeat_marks(PathKind::Main).unwrap().0.number(), 0);
    }
    a.transport.set_dscp(LaneKind::Ping, PathKind::Main, Dscp::AF31);
    let info = a.transport.info(up(&a, PathKind::Main).unwrap()).unwrap();
    assert_eq!((info.dscp, info.priority), (Some(Dscp::AF31), Some(6)));
    assert_eq!(a.transport.heartbeat_marks(PathKind::Main), Some((Dscp::AF31, 6)));
}

// REQ: REP-308
#[test]
fn sockets_are_tuned_on_both_ends() {
    use nix::sys::socket::{GetSockOpt as _, getsockopt, sockopt};
    let (a, b) = connected(DriverChoice::Auto, LaneKind::Ds, |config| {
        config.ds.congestion = Some("reno".into());
        config.ds.pacing_bytes_per_s = Some(1 << 30);
        config.ds.user_timeout = Duration::from_millis(1234);
    });
    for node in [&a, &b] {
        let conn = node.transport.table.get(node.conn(LaneKind::Ds)).unwrap();
        assert_eq!(getsockopt(&conn.fd, sockopt::TcpNoDelay), Ok(true));
        assert_eq!(getsockopt(&conn.fd, sockopt::TcpUserTimeout), Ok(1234));
        assert_eq!(socket::TcpNotsentLowat.get(&conn.fd), Ok(128 << 10));
        assert_eq!(socket::MaxPacingRate.get(&conn.fd), Ok(1 << 30));
        assert_eq!(conn.info.as_ref().unwrap().congestion.as_deref(), Some("reno"));
    }
}

#[test]
fn of_two_crossing_connections_the_one_dialed_by_a_stays() {
    for choice in choices() {
        for round in 0..8 {
            let (mut a, mut b) = members(choice, "127.0.0.1", tls);
            a.dial(LaneKind::Ds, PathKind::Main);
            for _ in 0..round {
                a.turn(Duration::ZERO);
                if round % 2 == 1 {
                    b.turn(Duration::ZERO);
                }
            }
            // B may have the lane already.
            let _ = b.transport.dial(LaneKind::Ds, PathKind::Main, Instant::now());
            let settled = |node: &Node, dialed: bool| {
                let conn = node.transport.conn(LaneKind::Ds, PathKind::Main);
                conn.is_some_and(|conn| node.transport.info(conn).unwrap().dialed_by_us == dialed)
                    && node.transport.dialing.get(LaneKind::Ds, PathKind::Main).is_none()
                    && node.transport.table.iter().count() == 1
            };
            until([&mut a, &mut b], "A's connection alone", |nodes| {
                settled(nodes[0], true) && settled(nodes[1], false)
            });
            let conn = a.conn(LaneKind::Ds);
            a.transport.send(conn, MessageKind::Frame, &[b"x"]).unwrap();
            until([&mut a, &mut b], "a message over it", |nodes| !nodes[1].take_messages().is_empty());
            for node in [&mut a, &mut b] {
                // Never a moment without the lane once it was up: Up of the new one comes before Down of the old.
                let mut ups = 0;
                for event in &node.events {
                    match event {
                        TransportEvent::Up { .. } => ups += 1,
                        TransportEvent::Down { reason: DownReason::Replaced, .. } => assert_eq!(ups, 2),
                        TransportEvent::Down { reason, .. } => panic!("down: {reason}"),
                        _ => {}
                    }
                }
            }
        }
    }
}

#[test]
fn of_two_crossing_connections_on_two_paths_the_one_on_main_stays() {
    for choice in choices() {
        for round in 0..12 {
            let (mut a, mut b) = members(choice, "127.0.0.1", tls);
            // Each knows another path first, and dials the lane there: whichever opens first, and at whichever end.
            let (first, second) = if round % 2 == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            first.dial(LaneKind::Ds, PathKind::Aux);
            for _ in 0..round / 2 {
                first.turn(Duration::ZERO);
                second.turn(Duration::ZERO);
            }
            second.dial(LaneKind::Ds, PathKind::Main);
            until([&mut a, &mut b], "main alone", |nodes| {
                nodes.iter().all(|node| {
                    node.transport.conn(LaneKind::Ds, PathKind::Main).is_some()
                        && node.transport.table.iter().count() == 1
                })
            });
            let [of_a, of_b] = [&a, &b].map(|node| node.conn(LaneKind::Ds));
            a.transport.send(of_a, MessageKind::Control, &[b"to B"]).unwrap();
            b.transport.send(of_b, MessageKind::Control, &[b"to A"]).unwrap();
            until([&mut a, &mut b], "messages both ways", |nodes| {
                nodes.iter_mut().all(|node| !node.take_messages().is_empty())
            });
        }
    }
}

#[test]
fn a_restarted_peer_takes_the_place_of_its_dead_connection() {
    let (mut a, mut b) = connected(DriverChoice::Auto, LaneKind::Ds, |_| {});
    // B's process is replaced without a word: its sockets are kept open, silent.
    let old = a.conn(LaneKind::Ds);
    let a_at = a.addresses[0];
    let mut reborn = Node::new(
        DriverChoice::Auto,
        TransportConfig {
            heartbeats: false,
            ..config(MemberId::B, tls(MemberId::B), vec![path(PathKind::Main, "127.0.0.1", a_at)])
        },
        vec![],
    );
    reborn.dial(LaneKind::Ds, PathKind::Main);
    let up = |node: &Node| node.transport.conn(LaneKind::Ds, PathKind::Main);
    until([&mut a, &mut reborn], "the newer stays", |nodes| {
        up(nodes[0]).is_some_and(|conn| conn != old) && up(nodes[1]).is_some()
    });
    until([&mut a, &mut b], "the old one is told", |nodes| {
        nodes[1].transport.conn(LaneKind::Ds, PathKind::Main).is_none()
    });
}

// REQ: REP-307
#[test]
fn bulk_backs_up_and_ping_does_not_wait() {
    for choice in choices() {
        let (mut a, mut b) = connected(choice, LaneKind::Bulk, |_| {});
        a.dial(LaneKind::Ping, PathKind::Main);
        until([&mut a, &mut b], "ping up", |nodes| {
            nodes.iter().all(|node| node.transport.conn(LaneKind::Ping, PathKind::Main).is_some())
        });
        let (bulk, ping) = (a.conn(LaneKind::Bulk), a.conn(LaneKind::Ping));
        let body = Shared::from((0..1_000_000_u32).map(|n| (n * 7) as u8).collect::<Vec<u8>>());
        // B does not read its bulk lane: A's queue fills and refuses, and takes no more memory than it may.
        let of_b = b.conn(LaneKind::Bulk);
        b.transport.set_reading(of_b, false);
        let mut sent = 0;
        let end = Instant::now() + BOUND;
        loop {
            match a.transport.send_shared(bulk, MessageKind::Mirror, std::slice::from_ref(&body)) {
                Ok(()) => sent += 1,
                Err(SendError::Full) if a.transport.queued_bytes(bulk) > 7_000_000 => {
                    // Full for good once the kernel's buffers are full too.
                    let before = a.transport.stats().sent_bytes;
                    (0..20).for_each(|_| {
                        a.turn(Duration::from_millis(1));
                        b.turn(Duration::ZERO);
                    });
                    if a.transport.stats().sent_bytes == before {
                        break;
                    }
                }
                Err(error) => assert_eq!(error, SendError::Full),
            }
            assert!(a.transport.queued_bytes(bulk) <= LaneOptions::default_for(LaneKind::Bulk).queue_max_bytes);
            assert!(Instant::now() < end);
            a.turn(Duration::ZERO);
            b.turn(Duration::ZERO);
        }
        a.transport.send(ping, MessageKind::Control, &[b"now"]).unwrap();
        until([&mut a, &mut b], "ping past bulk", |nodes| !nodes[1].take_messages().is_empty());
        assert!(a.transport.queued_bytes(bulk) > 0);
        b.transport.set_reading(of_b, true);
        let mut received = 0;
        until([&mut a, &mut b], "all of bulk", |nodes| {
            for (kind, got) in nodes[1].take_messages() {
                assert_eq!((kind, &got), (MessageKind::Mirror, &body));
                received += 1;
            }
            received == sent
        });
        assert!(a.transport.is_drained(bulk));
    }
}

#[test]
fn a_reader_that_does_not_poll_is_not_buried() {
    let (mut a, mut b) = connected(DriverChoice::Auto, LaneKind::Ds, |_| {});
    b.polling = false;
    let conn = a.conn(LaneKind::Ds);
    let body = Shared::from(vec![5; 100_000]);
    let mut sent = 0;
    for _ in 0..2_000 {
        sent += u32::from(a.transport.send_shared(conn, MessageKind::Frame, std::slice::from_ref(&body)).is_ok());
        a.turn(Duration::ZERO);
        b.turn(Duration::ZERO);
    }
    let held: usize = b.transport.table.iter().map(|conn| conn.undelivered_bytes).sum();
    assert!(held < UNDELIVERED_MAX_BYTES + 200_000, "{held}");
    assert!(sent > 20);
    b.polling = true;
    let mut received = 0;
    until([&mut a, &mut b], "the rest", |nodes| {
        received += nodes[1].take_messages().len() as u32;
        received == sent
    });
}

#[test]
fn messages_that_do_not_fit_the_lane_are_refused_here() {
    let (mut a, _b) = connected(DriverChoice::Auto, LaneKind::Ping, |_| {});
    let ping = a.conn(LaneKind::Ping);
    assert_eq!(a.transport.send(ping, MessageKind::Frame, &[b"x"]), Err(SendError::Unfit));
    assert_eq!(a.transport.send(ping, MessageKind::Control, &[&vec![0; 65 << 10]]), Err(SendError::Unfit));
    assert_eq!(a.transport.dial(LaneKind::Ping, PathKind::Main, Instant::now()), Err(DialError::Up));
    a.transport.close(ping, Instant::now());
    assert_eq!(a.transport.send(ping, MessageKind::Control, &[b"x"]), Err(SendError::NotUp));
}

#[test]
fn a_close_delivers_what_was_queued() {
    for choice in choices() {
        let (mut a, mut b) = connected(choice, LaneKind::Ds, |_| {});
        let conn = a.conn(LaneKind::Ds);
        for n in 0..200_u32 {
            a.transport.send(conn, MessageKind::Frame, &[&n.to_le_bytes(), &[0; 5_000]]).unwrap();
        }
        a.transport.close(conn, Instant::now());
        let is_down = |node: &Node| node.events.iter().any(|event| matches!(event, TransportEvent::Down { .. }));
        until([&mut a, &mut b], "down on both", |nodes| nodes.iter().all(|node| is_down(node)));
        assert_eq!(b.take_messages().len(), 200);
        let down = b.events.iter().find(|event| matches!(event, TransportEvent::Down { .. }));
        assert!(matches!(down, Some(TransportEvent::Down { reason: DownReason::Eof, .. })), "{down:?}");
        until([&mut a, &mut b], "nothing left", |nodes| {
            nodes.iter().all(|node| node.transport.table.iter().count() == 0)
        });
    }
}

#[test]
fn a_peer_that_dies_is_noticed_at_once() {
    let (mut a, b) = connected(DriverChoice::Auto, LaneKind::Ping, |_| {});
    let began = Instant::now();
    drop(b);
    until([&mut a], "down", |nodes| {
        nodes[0].events.iter().any(|event| matches!(event, TransportEvent::Down { reason, .. } if reason.is_sudden()))
    });
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn attempts_to_connect_end() {
    let (mut a, _) = members_with(DriverChoice::Auto, "127.0.0.1", tls, |config| {
        config.connect_timeout = Duration::from_millis(100);
    });
    // Nobody listens there any more (the other node is gone): refused, at once.
    a.dial(LaneKind::Ping, PathKind::Main);
    until([&mut a], "refused", |nodes| matches!(nodes[0].dial_failure(), Some(DownReason::Refused)));
    a.events.clear();
    // Somebody listens and never speaks, like a stopped process.
    let silent = listen("127.0.0.1");
    a.transport.set_peer_address(PathKind::Main, silent.local_addr().unwrap());
    let began = Instant::now();
    a.dial(LaneKind::Ping, PathKind::Main);
    assert_eq!(a.transport.dial(LaneKind::Ping, PathKind::Main, Instant::now()), Err(DialError::Dialing));
    until([&mut a], "timed out", |nodes| matches!(nodes[0].dial_failure(), Some(DownReason::TimedOut)));
    assert!(began.elapsed() >= Duration::from_millis(100));
    assert_eq!((a.transport.stats().dials, a.transport.stats().dials_failed), (2, 2));
}

#[test]
fn heartbeats_arrive_once_and_only_whole() {
    for choice in choices() {
        for (ip, off) in [("127.0.0.1", false), ("::1", false), ("127.0.0.1", true)] {
            let (mut a, mut b) = members(choice, ip, |member| if off { Protection::Off } else { tls(member) });
            assert!(!a.transport.send_heartbeat(PathKind::Main, &[1; PLAIN_BYTES]), "no key before the ping lane");
            a.dial(LaneKind::Ping, PathKind::Main);
            b.dial(LaneKind::Ping, PathKind::Aux);
            let up =
                |node: &Node| PathKind::ALL.iter().all(|path| node.transport.conn(LaneKind::Ping, *path).is_some());
            until([&mut a, &mut b], "pings up", |nodes| nodes.iter().all(|node| up(node)));
            for (way, fill) in [(PathKind::Main, 1), (PathKind::Aux, 2)] {
                assert!(a.transport.send_heartbeat(way, &[fill; PLAIN_BYTES]));
                assert!(b.transport.send_heartbeat(way, &[fill + 10; PLAIN_BYTES]));
            }
            let got = |node: &Node| {
                let mut got: Vec<_> = node
                    .events
                    .iter()
                    .filter_map(|event| match event {
                        TransportEvent::Heartbeat { path, plaintext } => Some((*path, plaintext[0])),
                        _ => None,
                    })
                    .collect();
                got.sort_unstable();
                got
            };
            until([&mut a, &mut b], "heartbeats", |nodes| nodes.iter().all(|node| got(node).len() == 2));
            assert_eq!(got(&a), [(PathKind::Main, 11), (PathKind::Aux, 12)]);
            assert_eq!(got(&b), [(PathKind::Main, 1), (PathKind::Aux, 2)]);
            // Recorded and sent again, changed, of another key, and nonsense: all dropped and counted.
            let stranger = std::net::UdpSocket::bind((ip, 0)).unwrap();
            let at = b.addresses[0];
            let sealed = a.transport.keyring.seal(SealedKind::Heartbeat, PathKind::Main, &[7; PLAIN_BYTES]).unwrap();
            let mut forged = sealed;
            forged[SEALED_BYTES - 1] ^= 1;
            let mut unknown = sealed;
            unknown[8] ^= 1;
            // Probes of marks may have come before their key.
            let counted = |stats: &TransportStats| {
                stats.heartbeats_received
                    + stats.heartbeats_forged
                    + stats.heartbeats_unknown_key
                    + stats.heartbeats_replayed
                    + stats.heartbeats_malformed
            };
            let before = *b.transport.stats();
            for datagram in [&forged[..], &unknown[..], &sealed[..], &sealed[..], &sealed[..100], &[0; 4000], b""] {
                stranger.send_to(datagram, at).unwrap();
            }
            until([&mut a, &mut b], "all counted", |nodes| counted(nodes[1].transport.stats()) >= counted(&before) + 7);
            let stats = b.transport.stats();
            let unknown_keys = stats.heartbeats_unknown_key - before.heartbeats_unknown_key;
            assert_eq!((stats.heartbeats_received, stats.heartbeats_forged, unknown_keys), (3, 1, 1));
            assert_eq!((stats.heartbeats_replayed, stats.heartbeats_malformed - before.heartbeats_malformed), (1, 3));
            // An authenticated heartbeat came from another address (a relay): answers go there.
            assert!(b.transport.send_heartbeat(PathKind::Main, &[8; PLAIN_BYTES]));
            stranger.set_nonblocking(true).unwrap();
            let mut buffer = [0; 200];
            until([&mut a, &mut b], "answer to the relay", |_| {
                stranger.recv(&mut buffer).is_ok_and(|len| len == SEALED_BYTES)
            });
        }
    }
}

#[test]
fn heartbeat_keys_end_with_their_connection() {
    let (mut a, mut b) = connected(DriverChoice::Auto, LaneKind::Ping, |_| {});
    let conn = a.conn(LaneKind::Ping);
    a.transport.close(conn, Instant::now());
    assert!(!a.transport.send_heartbeat(PathKind::Main, &[0; PLAIN_BYTES]));
    until([&mut a, &mut b], "down", |nodes| nodes[1].transport.conn(LaneKind::Ping, PathKind::Main).is_none());
    assert!(!b.transport.send_heartbeat(PathKind::Main, &[0; PLAIN_BYTES]));
}

#[test]
fn an_accepted_bulk_lane_goes_to_the_other_thread() {
    for choice in choices() {
        let (mut a, mut b) = members_with(choice, "127.0.0.1", tls, |config| config.hand_over = vec![LaneKind::Bulk]);
        a.dial(LaneKind::Bulk, PathKind::Main);
        let up = |node: &Node| node.transport.conn(LaneKind::Bulk, PathKind::Main);
        let mut detached = None;
        until([&mut a, &mut b], "handed over", |nodes| {
            let at = nodes[1].events.iter().position(|event| matches!(event, TransportEvent::HandOver(_)));
            if let Some(at) = at
                && let TransportEvent::HandOver(given) = nodes[1].events.swap_remove(at)
            {
                detached = Some(given);
            }
            detached.is_some()
        });
        assert!(up(&b).is_none());
        let detached = detached.unwrap();
        assert_eq!((detached.lane(), detached.path()), (LaneKind::Bulk, PathKind::Main));
        // Really another thread, with a driver of its own.
        let mut other = config(MemberId::B, tls(MemberId::B), vec![path(PathKind::Main, "127.0.0.1", a.addresses[0])]);
        other.hello = b.transport.config.hello.clone();
        other.heartbeats = false;
        let thread = std::thread::spawn(move || {
            let mut bulk = Node::new(choice, other, vec![]);
            bulk.transport.adopt(*detached, Instant::now());
            let conn = bulk.conn(LaneKind::Bulk);
            assert!(bulk.transport.info(conn).unwrap().peer_fingerprint.is_some());
            bulk.transport.send(conn, MessageKind::Mirror, &[b"from the other thread"]).unwrap();
            until([&mut bulk], "an answer", |nodes| !nodes[0].take_messages().is_empty());
        });
        until([&mut a, &mut b], "a message", |nodes| !nodes[0].take_messages().is_empty());
        let conn = a.conn(LaneKind::Bulk);
        a.transport.send(conn, MessageKind::Mirror, &[&[1; 300_000]]).unwrap();
        until([&mut a, &mut b], "the thread has it", |_| thread.is_finished());
        thread.join().unwrap();
    }
}

#[test]
fn a_full_driver_delays_and_loses_nothing() {
    let (mut a, mut b) = connected(DriverChoice::Auto, LaneKind::Ds, |_| {});
    a.dial(LaneKind::Ping, PathKind::Main);
    // Fill A's driver with operations of somebody else.
    let (mine, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let fd = Fd::new(mine);
    let token = Token::new(Token::LOOP, 1, 1);
    while a.driver.submit(token, crate::ring::Op::PollReadable { fd: fd.clone() }).is_ok() {}
    let conn = a.conn(LaneKind::Ds);
    a.transport.send(conn, MessageKind::Frame, &[&[9; 50_000]]).unwrap();
    (0..10).for_each(|_| {
        a.turn(Duration::ZERO);
        b.turn(Duration::ZERO);
    });
    assert!(b.take_messages().is_empty());
    a.driver.cancel(token);
    until([&mut a, &mut b], "the message and the ping lane", |nodes| {
        nodes[0].transport.conn(LaneKind::Ping, PathKind::Main).is_some()
            && nodes[1].events.iter().any(|event| matches!(event, TransportEvent::Message { .. }))
    });
}

#[test]
fn the_blocking_end_speaks_with_the_loop() {
    for off in [false, true] {
        let protection = |member| if off { Protection::Off } else { tls(member) };
        let (mut a, b) = members(DriverChoice::Auto, "127.0.0.1", protection);
        // B's worker is dead; its supervisor listens in its place.
        drop(b);
        let listener = listen("127.0.0.1");
        a.transport.set_peer_address(PathKind::Main, listener.local_addr().unwrap());
        let hello = Hello { speaker: Speaker::Supervisor, ..hello(MemberId::B) };
        let endpoint = blocking::Endpoint::new(
            &protection(MemberId::B),
            hello,
            StrangerLimits::default(),
            LaneOptions::default_for(LaneKind::Ping),
        )
        .unwrap();
        let supervisor = std::thread::spawn(move || {
            let deadline = Instant::now() + BOUND;
            let (stream, _) = listener.accept().unwrap();
            let mut lane = endpoint.accept(stream, deadline).unwrap();
            assert_eq!((lane.hello().member, lane.hello().lane), (MemberId::A, LaneKind::Ds));
            lane.send(MessageKind::Control, b"dying", deadline).unwrap();
            let (kind, body) = lane.receive(deadline).unwrap().unwrap();
            assert_eq!((kind, &body[..]), (MessageKind::Control, &b"which tail?"[..]));
            let soon = Instant::now() + Duration::from_millis(20);
            assert!(matches!(lane.receive(soon), Err(DownReason::TimedOut)));
            for part in 0..20_u8 {
                lane.send(MessageKind::Frame, &[part; 60_000], deadline).unwrap();
            }
            lane.close(deadline);
        });
        a.dial(LaneKind::Ds, PathKind::Main);
        until([&mut a], "dying", |nodes| !nodes[0].take_messages().is_empty());
        let up = a.events.iter().find_map(|event| match event {
            TransportEvent::Up { hello, .. } => Some(hello.speaker),
            _ => None,
        });
        assert_eq!(up, Some(Speaker::Supervisor));
        let conn = a.conn(LaneKind::Ds);
        a.transport.send(conn, MessageKind::Control, &[b"which tail?"]).unwrap();
        until([&mut a], "the end", |nodes| {
            nodes[0].events.iter().any(|event| matches!(event, TransportEvent::Down { .. }))
        });
        assert_eq!(a.take_messages().len(), 20, "the tail comes whole before the end");
        supervisor.join().unwrap();
    }
}

#[test]
fn large_sends_that_are_copied_all_the_same_are_not_asked_for_again() {
    for choice in choices() {
        for off in [true, false] {
            let (mut a, mut b) = members(choice, "127.0.0.1", |member| if off { Protection::Off } else { tls(member) });
            a.dial(LaneKind::Bulk, PathKind::Main);
            let up = |node: &Node| node.transport.conn(LaneKind::Bulk, PathKind::Main).is_some();
            until([&mut a, &mut b], "bulk is up", |nodes| up(nodes[0]) && up(nodes[1]));
            let (conn, quiet) = (a.conn(LaneKind::Bulk), a.driver.in_flight());
            let bodies: Vec<Shared> =
                (0..12_u8).map(|number| Shared::from(vec![number; 60_000 + usize::from(number) * 40_000])).collect();
            let mut got: Vec<(MessageKind, Shared)> = Vec::new();
            for body in &bodies {
                a.transport.send_shared(conn, MessageKind::Mirror, std::slice::from_ref(body)).unwrap();
                let before = got.len();
                until([&mut a, &mut b], "the body is there", |nodes| {
                    got.append(&mut nodes[1].take_messages());
                    got.len() > before
                });
            }
            assert!(got.iter().map(|(_, body)| body).eq(&bodies), "in order and whole");
            let can = a.driver.can_zero_copy();
            let used = a.transport.info(conn).unwrap().zero_copy;
            // Loopback copies: it is said so, and given up.
            assert_eq!(used, can.then_some(false), "{choice:?}, TLS off: {off}");
            assert_eq!(a.driver.in_flight(), quiet, "no send is under way");
        }
    }
}

//! Every scenario on both drivers, and on the ring without each of its features: they must not differ (REP-301).

use std::{
    fs::File,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use super::*;

const BOUND: Duration = Duration::from_secs(20);
const OTHER: u8 = 9;

fn each(test: impl Fn(&mut Driver)) {
    each_with(&DriverOptions { in_flight: 64, buf_count: 8, ..DriverOptions::default() }, test);
}

fn each_with(options: &DriverOptions, test: impl Fn(&mut Driver)) {
    let masks = Feature::NAMED.iter().map(|(_, feature)| vec![*feature]);
    let all = Feature::NAMED.iter().map(|(_, feature)| *feature).collect();
    let ring = masks.chain([Vec::new(), all]).map(|without| (DriverChoice::IoUring, without));
    for (choice, without) in ring.chain([(DriverChoice::Plain, Vec::new())]) {
        eprintln!("{choice:?} without {without:?}");
        let mut driver = match Driver::new(&DriverOptions { choice, without, ..options.clone() }) {
            Ok(driver) => driver,
            Err(error) if choice == DriverChoice::IoUring => {
                eprintln!("skipped on io_uring: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        test(&mut driver);
    }
}

fn token(index: u32) -> Token {
    Token::new(OTHER, 1, index)
}

/// Turns until `count` completions have come.
fn collect(driver: &mut Driver, count: usize) -> Vec<Completion> {
    let until = Instant::now() + BOUND;
    let mut completions = Vec::new();
    while completions.len() < count {
        assert!(Instant::now() < until, "only {completions:?} of {count}");
        driver.turn(Some(Duration::from_millis(100)), &mut completions).unwrap();
    }
    completions
}

fn one(driver: &mut Driver, op: Op) -> Completion {
    driver.submit(token(0), op).unwrap();
    collect(driver, 1).remove(0)
}

fn buf_of(completion: Completion) -> Buf {
    match completion.carried {
        Carried::Buf(buf) => buf,
        other => panic!("no buffer but {other:?}"),
    }
}

fn tcp_socket() -> Fd {
    Fd::new(socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap())
}

/// A connection made by the driver at both ends.
fn tcp_pair(driver: &mut Driver) -> (Fd, Fd) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = listener.local_addr().unwrap();
    let dialing = tcp_socket();
    driver.submit(token(1), Op::Accept { fd: Fd::new(listener) }).unwrap();
    driver.submit(token(2), Op::Connect { fd: dialing.clone(), peer }).unwrap();
    let mut accepted = None;
    for completion in collect(driver, 2) {
        assert_eq!(completion.result.unwrap(), 0);
        if let Carried::Socket { fd, peer } = completion.carried {
            assert_eq!(completion.token, token(1));
            assert_eq!(peer.unwrap().ip(), Ipv4Addr::LOCALHOST);
            accepted = Some(fd);
        }
    }
    (dialing, accepted.unwrap())
}

#[test]
fn tokens_keep_their_parts() {
    let token = Token::new(Token::JOURNAL, 7, u32::MAX).tagged(0xabcd);
    assert_eq!((token.owner(), token.kind(), token.tag(), token.index()), (Token::JOURNAL, 7, 0xabcd, u32::MAX));
    assert_eq!(token.tagged(1).tag(), 1);
}

// REQ: REP-301
#[test]
fn the_report_says_which_driver_and_why() {
    each(|driver| {
        let report = driver.report();
        eprintln!("{report:?}");
        assert!(!report.why.is_empty() && !report.features.is_empty());
        assert_eq!(matches!(driver, Driver::Plain(_)), report.driver == "plain");
    });
}

#[test]
fn bytes_go_there_and_back_and_the_end_is_seen() {
    each(|driver| {
        let (a, b) = tcp_pair(driver);
        let slices = vec![Shared::from_static(b"hello, "), Shared::new(), Shared::from(b"world".to_vec())];
        assert_eq!(one(driver, Op::Send { fd: a.clone(), slices }).result.unwrap(), 12);
        let mut buf = driver.pool().take().unwrap();
        buf.append(b"> ");
        let got = one(driver, Op::Recv { fd: b.clone(), buf });
        assert_eq!(*got.result.as_ref().unwrap(), 12);
        let buf = buf_of(got);
        assert_eq!(&buf[..], b"> hello, world");
        assert_eq!(one(driver, Op::Send { fd: b.clone(), slices: vec![buf.freeze().slice(2..7)] }).result.unwrap(), 5);
        assert_eq!(&buf_of(one(driver, Op::Recv { fd: a.clone(), buf: Buf::heap(100) }))[..], b"hello");
        nix::sys::socket::shutdown(a.as_raw_fd(), nix::sys::socket::Shutdown::Write).unwrap();
        assert_eq!(one(driver, Op::Recv { fd: b, buf: Buf::heap(1) }).result.unwrap(), 0);
        assert_eq!(driver.in_flight(), 0);
        assert_eq!(driver.pool().free_count(), 8);
    });
}

#[test]
fn a_long_send_through_a_short_queue_is_complete_and_in_order() {
    each(|driver| {
        let (a, b) = UnixStream::pair().unwrap();
        setsockopt(&a, sockopt::SndBuf, &4096).unwrap();
        // Non-blocking descriptors must make no difference.
        a.set_nonblocking(true).unwrap();
        let data: Vec<u8> = (0..1_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let data = Shared::from(data);
        let slices: Vec<Shared> = (0..MAX_SLICES).map(|n| data.slice(n * 62_500..(n + 1) * 62_500)).collect();
        driver.submit(token(1), Op::Send { fd: Fd::new(a), slices }).unwrap();
        let reader = std::thread::spawn(move || {
            let mut got = vec![0; 4_000_000];
            (&b).read_exact(&mut got).map(|()| got)
        });
        assert_eq!(collect(driver, 1)[0].result.as_ref().unwrap(), &4_000_000);
        assert_eq!(reader.join().unwrap().unwrap(), data);
    });
}

#[test]
fn what_the_ring_is_to_do_without_it_does_without() {
    let words = [
        (Feature::ZeroCopy, "zero_copy_sends"),
        (Feature::DeferTaskrun, "defer_taskrun"),
        (Feature::RegisteredBuffers, "registered_buffers"),
        (Feature::RegisteredFiles, "registered_files"),
    ];
    let options =
        DriverOptions { choice: DriverChoice::IoUring, in_flight: 8, buf_count: 2, ..DriverOptions::default() };
    let Ok(whole) = Driver::new(&options) else { return eprintln!("skipped: no io_uring") };
    for (feature, word) in words {
        let without = Driver::new(&DriverOptions { without: vec![feature], ..options.clone() }).unwrap();
        let has = |driver: &Driver| driver.report().features.iter().any(|feature| feature == word);
        assert!(!has(&without) && without.report().why.contains("io.without"), "{:?}", without.report());
        if !has(&whole) {
            eprintln!("not to be had here anyway: {word}");
        }
        let mut driver = without;
        assert_eq!(driver.can_zero_copy(), whole.can_zero_copy() && feature != Feature::ZeroCopy);
        let file = Fd::new(tempfile::tempfile().unwrap());
        assert!(!(driver.register(&file) && feature == Feature::RegisteredFiles));
    }
}

/// Sends `slices` zero-copy while a thread reads them all; what it read.
fn zero_copied(driver: &mut Driver, slices: Vec<Shared>) -> Vec<u8> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut far, _) = listener.accept().unwrap();
    far.set_read_timeout(Some(BOUND)).unwrap();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        far.read_to_end(&mut got).map(|_| got)
    });
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    // The descriptor goes with the send: the end comes though the notification may be owed yet.
    driver.submit(token(3), Op::SendZeroCopy { fd: Fd::new(near), slices }).unwrap();
    let done = collect(driver, 2);
    assert_eq!((done[0].token, done[0].more, *done[0].result.as_ref().unwrap()), (token(3), true, total));
    let copied = *done[1].result.as_ref().unwrap();
    assert!(!done[1].more && (copied == 0 || copied == total), "{copied} of {total}");
    // A driver may hold a clone of the descriptor until its next turn.
    driver.turn(Some(Duration::ZERO), &mut Vec::new()).unwrap();
    reader.join().unwrap().unwrap()
}

#[test]
fn a_zero_copy_send_gives_its_memory_back_when_the_kernel_has_done_with_it() {
    each(|driver| {
        let mut buf = driver.pool().take().unwrap();
        let len = buf.capacity();
        buf.set_len(len);
        (0_u32..).zip(buf.iter_mut()).for_each(|(at, byte)| *byte = (at * 7) as u8);
        let expected = buf.to_vec();
        assert!(zero_copied(driver, vec![buf.freeze()]) == expected);
        assert_eq!((driver.in_flight(), driver.pool().free_count()), (0, 8));
        // More than the socket takes at once, from both kinds of memory.
        let large: Vec<u8> = (0..3_000_000u32).flat_map(|n| n.to_le_bytes()).collect();
        let mut head = driver.pool().take().unwrap();
        head.append(b"head");
        let slices = vec![head.freeze(), Shared::from(large.clone()), Shared::from_static(b"tail")];
        let got = zero_copied(driver, slices);
        assert!(got == [b"head", &large[..], b"tail"].concat());
        assert_eq!((driver.in_flight(), driver.pool().free_count()), (0, 8));
    });
}

#[test]
fn a_socket_that_takes_no_zero_copy_send_gets_a_copy() {
    each(|driver| {
        let (a, mut b) = UnixStream::pair().unwrap();
        let slices = vec![Shared::from(vec![7; 40_000])];
        driver.submit(token(1), Op::SendZeroCopy { fd: Fd::new(a), slices }).unwrap();
        let done = collect(driver, 2);
        assert_eq!(done.iter().map(|done| *done.result.as_ref().unwrap()).collect::<Vec<_>>(), [40_000; 2]);
        let mut got = Vec::new();
        b.read_to_end(&mut got).unwrap();
        assert!(got == [7; 40_000]);
    });
}

#[test]
fn a_zero_copy_send_that_waits_can_be_cancelled_and_gives_its_memory_back() {
    each(|driver| {
        let (a, b) = tcp_pair(driver);
        let mut buf = driver.pool().take().unwrap();
        let len = buf.capacity();
        buf.set_len(len);
        // So much that the sockets cannot hold it while nobody reads.
        let slices = vec![buf.freeze(), Shared::from(vec![1; 64 << 20])];
        driver.submit(token(5), Op::SendZeroCopy { fd: a, slices }).unwrap();
        let mut completions = Vec::new();
        driver.turn(Some(Duration::ZERO), &mut completions).unwrap();
        assert!(completions.is_empty());
        assert_eq!(driver.cancel(token(5)), 1);
        let drain = std::thread::spawn(move || {
            let mut end = TcpStream::from(b.as_fd().try_clone_to_owned().unwrap());
            end.set_nonblocking(false).unwrap();
            end.set_read_timeout(Some(BOUND)).unwrap();
            std::io::copy(&mut end, &mut std::io::sink())
        });
        let done = collect(driver, 1);
        assert!(done[0].result.is_err() && !done[0].more, "{done:?}");
        assert_eq!((driver.in_flight(), driver.pool().free_count()), (0, 8));
        drain.join().unwrap().unwrap();
    });
}

#[test]
fn datagrams_carry_their_senders() {
    each(|driver| {
        let a = UdpSocket::bind("[::1]:0").unwrap();
        let b = UdpSocket::bind("[::1]:0").unwrap();
        let (at_a, at_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
        let (a, b) = (Fd::new(a), Fd::new(b));
        let data = Shared::from_static(b"beat");
        driver.submit(token(1), Op::RecvFrom { fd: b, buf: Buf::heap(64) }).unwrap();
        driver.submit(token(2), Op::SendTo { fd: a, data, peer: at_b }).unwrap();
        for completion in collect(driver, 2) {
            assert_eq!(completion.result.unwrap(), 4);
            if completion.token == token(1) {
                let Carried::Datagram { buf, peer } = completion.carried else { panic!("no datagram") };
                assert_eq!((&buf[..], peer), (&b"beat"[..], Some(at_a)));
            }
        }
    });
}

#[test]
fn a_refused_connection_is_an_error() {
    each(|driver| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let peer = listener.local_addr().unwrap();
        drop(listener);
        let completion = one(driver, Op::Connect { fd: tcp_socket(), peer });
        assert_eq!(completion.result.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    });
}

#[test]
fn a_reset_connection_is_an_error_not_a_signal() {
    each(|driver| {
        let (a, b) = UnixStream::pair().unwrap();
        drop(b);
        let completion = one(driver, Op::Send { fd: Fd::new(a), slices: vec![Shared::from_static(b"x")] });
        assert_eq!(completion.result.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    });
}

#[test]
fn files_are_written_synced_and_read_back() {
    each(|driver| {
        let file = Fd::new(tempfile::tempfile_in(".").unwrap());
        driver.register(&file);
        let mut buf = driver.pool().take().unwrap();
        buf.append(b"0123456789");
        let shared = buf.freeze();
        let slices = vec![shared.slice(5..), Shared::new(), shared.slice(..5)];
        driver.submit(token(1), Op::WriteSynced { fd: file.clone(), slices, offset: 4090 }).unwrap();
        let both = collect(driver, 2);
        assert!(both[0].more && !both[1].more);
        assert!(both.iter().all(|c| c.token == token(1) && *c.result.as_ref().unwrap() == 10));
        assert_eq!(one(driver, Op::WriteAt { fd: file.clone(), slices: vec![shared], offset: 0 }).result.unwrap(), 10);
        assert_eq!(one(driver, Op::Fdatasync { fd: file.clone() }).result.unwrap(), 0);
        assert_eq!(one(driver, Op::Fsync { fd: file.clone() }).result.unwrap(), 0);
        for buf in [driver.pool().take().unwrap(), Buf::heap(64)] {
            let got = one(driver, Op::ReadAt { fd: file.clone(), buf, offset: 4088, len: 64 });
            assert_eq!(*got.result.as_ref().unwrap(), 12);
            assert_eq!(&buf_of(got)[..], b"\0\x005678901234");
        }
        let got = one(driver, Op::ReadAt { fd: file.clone(), buf: Buf::heap(64), offset: 2, len: 3 });
        assert_eq!(&buf_of(got)[..], b"234");
        assert_eq!(one(driver, Op::ReadAt { fd: file, buf: Buf::heap(64), offset: 9999, len: 3 }).result.unwrap(), 0);
    });
}

#[test]
fn a_write_on_a_full_device_fails_once() {
    each(|driver| {
        let fd = Fd::new(File::options().write(true).open("/dev/full").unwrap());
        let slices = vec![Shared::from_static(b"x")];
        let completion = one(driver, Op::WriteSynced { fd: fd.clone(), slices, offset: 0 });
        assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(!completion.more);
        // A device that cannot sync: the write half has succeeded, the last word is the error.
        let (_reader, writer) = std::io::pipe().unwrap();
        let slices = vec![Shared::from_static(b"x")];
        let fd = Fd::new(std::os::fd::OwnedFd::from(writer));
        let failed = one(driver, Op::Fdatasync { fd: fd.clone() });
        assert_eq!(failed.result.unwrap_err().raw_os_error(), Some(libc::EINVAL));
        drop(slices);
        assert_eq!(driver.in_flight(), 0);
    });
}

#[test]
fn what_waits_can_be_cancelled_and_gives_its_buffer_back() {
    each(|driver| {
        let (a, _b) = UnixStream::pair().unwrap();
        let fd = Fd::new(a);
        let buf = driver.pool().take().unwrap();
        driver.submit(token(1), Op::Recv { fd: fd.clone(), buf }).unwrap();
        let mut none = Vec::new();
        driver.turn(Some(Duration::ZERO), &mut none).unwrap();
        assert!(none.is_empty());
        assert_eq!(driver.cancel(token(5)), 0);
        assert_eq!(driver.cancel(token(1)), 1);
        let completion = collect(driver, 1).remove(0);
        assert_eq!(completion.result.as_ref().unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        drop(buf_of(completion));
        assert_eq!(driver.pool().free_count(), 8);
        // Cancelled before it was ever submitted.
        driver.submit(token(2), Op::PollReadable { fd }).unwrap();
        assert_eq!(driver.cancel(token(2)), 1);
        let completion = collect(driver, 1).remove(0);
        assert_eq!(completion.result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
        assert_eq!(driver.in_flight(), 0);
    });
}

#[test]
fn more_operations_than_the_ring_has_entries() {
    let options = DriverOptions { in_flight: 1000, buf_count: 1, ..DriverOptions::default() };
    each_with(&options, |driver| {
        let file = Fd::new(tempfile::tempfile_in(".").unwrap());
        for index in 0..1000u32 {
            let slices = vec![Shared::from(index.to_le_bytes().to_vec())];
            let offset = u64::from(index) * 4;
            let op = match index % 3 {
                0 => Op::WriteSynced { fd: file.clone(), slices, offset },
                _ => Op::WriteAt { fd: file.clone(), slices, offset },
            };
            driver.submit(token(index), op).unwrap();
        }
        assert_eq!(driver.room(), 0);
        let refused = driver.submit(token(0), Op::Fdatasync { fd: file.clone() }).unwrap_err();
        assert_eq!(refused.why, RejectedWhy::Full);
        let all = collect(driver, 1000 + 334);
        assert!(all.iter().all(|completion| completion.result.is_ok()));
        assert_eq!(driver.in_flight(), 0);
        let got = buf_of(one(driver, Op::ReadAt { fd: file, buf: Buf::heap(4000), offset: 0, len: 4000 }));
        let numbers: Vec<u32> = got.as_chunks::<4>().0.iter().map(|n| u32::from_le_bytes(*n)).collect();
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
    });
}

#[test]
fn another_thread_ends_the_wait() {
    each(|driver| {
        let waker = driver.waker();
        let (tell, told) = crossbeam::channel::bounded(1);
        let thread = std::thread::spawn(move || {
            tell.send(7).unwrap();
            waker.wake();
            waker.wake();
        });
        let until = Instant::now() + BOUND;
        let mut completions = Vec::new();
        let mut woken = false;
        while !woken {
            assert!(Instant::now() < until);
            woken = driver.turn(None, &mut completions).unwrap().woken;
        }
        assert_eq!(told.try_recv(), Ok(7));
        thread.join().unwrap();
        assert!(completions.is_empty());
        // A wake before the turn is not lost either.
        let mut turn = || driver.turn(Some(Duration::from_millis(1)), &mut completions).unwrap();
        while turn().woken {}
        driver.waker().wake();
        assert!(driver.turn(None, &mut completions).unwrap().woken);
    });
}

#[test]
fn a_wait_takes_its_time_and_no_processor() {
    each(|driver| {
        let (wait, start) = (Duration::from_millis(50), Instant::now());
        let (mut turns, mut completions) = (0, Vec::new());
        while start.elapsed() < wait {
            driver.turn(Some(wait.saturating_sub(start.elapsed())), &mut completions).unwrap();
            turns += 1;
        }
        assert!(turns < 5, "{turns} turns in {wait:?}");
    });
}

#[test]
fn readiness_is_told_once() {
    each(|driver| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let fd = Fd::new(std::os::fd::OwnedFd::from(reader));
        driver.submit(token(1), Op::PollReadable { fd: fd.clone() }).unwrap();
        driver.turn(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        writer.write_all(b"x").unwrap();
        let completion = collect(driver, 1).remove(0);
        assert_ne!(completion.result.unwrap() & libc::POLLIN as usize, 0);
        let mut more = Vec::new();
        driver.turn(Some(Duration::ZERO), &mut more).unwrap();
        assert!(more.is_empty());
    });
}

#[test]
fn receiving_and_sending_wait_side_by_side() {
    each(|driver| {
        let (a, b) = UnixStream::pair().unwrap();
        setsockopt(&a, sockopt::SndBuf, &4096).unwrap();
        let fd = Fd::new(a);
        driver.submit(token(1), Op::Recv { fd: fd.clone(), buf: Buf::heap(10) }).unwrap();
        driver.submit(token(2), Op::Send { fd, slices: vec![Shared::from(vec![1; 1 << 20])] }).unwrap();
        driver.turn(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        let thread = std::thread::spawn(move || {
            (&b).write_all(b"first").unwrap();
            (&b).read_exact(&mut vec![0; 1 << 20]).unwrap();
        });
        let mut tokens: Vec<u32> = collect(driver, 2).iter().map(|completion| completion.token.index()).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, [1, 2]);
        thread.join().unwrap();
    });
}

#[test]
fn unsound_operations_are_given_back() {
    each(|driver| {
        let fd = Fd::new(tempfile::tempfile_in(".").unwrap());
        for op in [
            Op::Send { fd: fd.clone(), slices: vec![] },
            Op::WriteAt { fd: fd.clone(), slices: vec![Shared::new()], offset: 0 },
            Op::WriteSynced { fd: fd.clone(), slices: vec![Shared::from_static(b"x"); MAX_SLICES + 1], offset: 0 },
            Op::Recv { fd: fd.clone(), buf: Buf::heap(0) },
        ] {
            assert_eq!(driver.submit(token(1), op).unwrap_err().why, RejectedWhy::Unsound);
        }
    });
}

#[test]
fn a_dropped_driver_lets_go_of_everything() {
    for choice in [DriverChoice::Plain, DriverChoice::Auto] {
        let (a, b) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        let (pool, mut completions) = {
            let mut driver = Driver::new(&DriverOptions { choice, ..DriverOptions::default() }).unwrap();
            let file = Fd::new(File::create(&path).unwrap());
            driver.register(&file);
            let pool = driver.pool().clone();
            driver.submit(token(1), Op::Recv { fd: Fd::new(a), buf: pool.take().unwrap() }).unwrap();
            let slices = vec![Shared::from(vec![7; 100_000])];
            driver.submit(token(2), Op::WriteSynced { fd: file, slices, offset: 0 }).unwrap();
            let mut completions = Vec::new();
            driver.turn(Some(Duration::ZERO), &mut completions).unwrap();
            driver.submit(token(3), Op::Accept { fd: tcp_socket() }).unwrap();
            (pool, completions)
        };
        completions.clear();
        assert_eq!(pool.free_count(), 64, "every buffer is back");
        // The socket was closed with its last operation.
        assert_eq!((&b).read(&mut [0]).unwrap(), 0);
        // And a write that had begun was carried out whole or not at all.
        assert!(matches!(std::fs::metadata(&path).unwrap().len(), 0 | 100_000));
    }
}

#[test]
fn registered_descriptors_are_closed_with_their_last_clone() {
    each(|driver| {
        for _ in 0..200 {
            let (a, b) = UnixStream::pair().unwrap();
            let fd = Fd::new(a);
            let registered = driver.register(&fd);
            assert_eq!(registered, matches!(driver, Driver::Ring(_)) && registered);
            assert_eq!(driver.register(&fd), registered);
            assert_eq!(one(driver, Op::Send { fd, slices: vec![Shared::from_static(b"x")] }).result.unwrap(), 1);
            driver.turn(Some(Duration::ZERO), &mut Vec::new()).unwrap();
            let mut got = Vec::new();
            (&b).read_to_end(&mut got).unwrap();
            assert_eq!(got, b"x");
        }
    });
}

#[test]
fn a_listener_without_a_caller_waits() {
    each(|driver| {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let at: SocketAddr = listener.local_addr().unwrap();
        driver.submit(token(1), Op::Accept { fd: Fd::new(listener) }).unwrap();
        let mut completions = Vec::new();
        driver.turn(Some(Duration::from_millis(5)), &mut completions).unwrap();
        assert!(completions.is_empty());
        let _caller = TcpStream::connect(at).unwrap();
        assert!(matches!(collect(driver, 1)[0].carried, Carried::Socket { .. }));
    });
}

#[test]
fn io_uring_demanded_and_plain_demanded_are_what_one_gets() {
    let plain = Driver::new(&DriverOptions { choice: DriverChoice::Plain, ..DriverOptions::default() }).unwrap();
    assert_eq!(plain.report().why, "asked for by io.driver");
    assert!(Driver::new(&DriverOptions { in_flight: 0, ..DriverOptions::default() }).is_err());
}

/// Forbids this thread io_uring, as a container runtime does.
fn forbid_io_uring() {
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let mut steps = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_io_uring_setup as u32, 1),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let program = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
    // SAFETY: the program lives through the calls, which read it and concern this thread only.
    let done = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    };
    assert!(done, "{}", io::Error::last_os_error());
}

// REQ: REP-301
#[test]
fn a_host_that_forbids_io_uring_gets_the_plain_driver_and_the_reason() {
    let thread = std::thread::spawn(|| {
        forbid_io_uring();
        let demanded = DriverOptions { choice: DriverChoice::IoUring, ..DriverOptions::default() };
        assert_eq!(Driver::new(&demanded).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        let mut driver = Driver::new(&DriverOptions::default()).unwrap();
        assert_eq!(driver.report().driver, "plain");
        assert!(driver.report().why.contains("io_uring is not to be had"), "{:?}", driver.report());
        let (a, _b) = tcp_pair(&mut driver);
        assert_eq!(one(&mut driver, Op::Send { fd: a, slices: vec![Shared::from_static(b"x")] }).result.unwrap(), 1);
    });
    thread.join().unwrap();
}

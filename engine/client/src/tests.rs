//! The client against members that are played: what it reports when they answer, refuse, fall silent or go away.

use std::{
    io::{Read, Write as _},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    thread::JoinHandle,
};

use ringpair_wire::{
    client::{Greeting, Limits, MAX_WRITE_BYTES, VERSIONS, Versions, Write, message_bytes},
    id::{Epoch, MemberId, Seq},
};

use super::*;

/// A member's end of a connection.
struct Played {
    stream: UnixStream,
    input: Vec<u8>,
}

impl Played {
    fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut played = Self { stream, input: Vec::new() };
        let limits = Limits { member: MemberId::A, max_unanswered: 100 };
        let greeting = Greeting { versions: VERSIONS, member: Some(limits) };
        played.stream.write_all(&greeting.to_bytes()).unwrap();
        loop {
            if let Some((_, end)) = Greeting::parse(&played.input, false, VERSIONS).unwrap() {
                played.input.drain(..end);
                return played;
            }
            played.read();
        }
    }

    fn read(&mut self) {
        let mut piece = [0; 4096];
        let got = self.stream.read(&mut piece).unwrap();
        assert!(got > 0, "the client is gone");
        self.input.extend_from_slice(&piece[..got]);
    }

    /// The numbers of the next requests, until there are `count`.
    fn requests(&mut self, count: usize) -> Vec<u64> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            match message_bytes(&self.input, MAX_WRITE_BYTES).unwrap() {
                Some(bytes) if bytes <= self.input.len() => {
                    let write = Write::parse(&self.input[..bytes]).unwrap();
                    numbers.extend(write.first..write.first + u64::from(write.count));
                    self.input.drain(..bytes);
                }
                _ => self.read(),
            }
        }
        numbers
    }

    fn say(&mut self, answer: &Answer) {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    fn reached(&mut self, first: u64, count: u32, seq: u64) {
        let versions = Versions { first: Version { epoch: Epoch(3), seq: Seq(seq) }, step: 1 };
        self.say(&Answer::Reached(Reached { first, count, level: AckLevel::Durable, alone: false, versions }));
    }

    fn failed(&mut self, first: u64, count: u32, code: FailureCode) {
        let active = (code == FailureCode::NotActive).then(|| ("b".into(), "b:1".into()));
        self.say(&Answer::Failed(Failed { first, count, code, message: "no".into(), active, versions: None }));
    }

    /// Waits for the client's end.
    fn until_closed(mut self) {
        let mut piece = [0; 64];
        while self.stream.read(&mut piece).is_ok_and(|got| got > 0) {}
    }
}

fn play(path: &Path, member: impl FnOnce(UnixListener) + Send + 'static) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || member(listener))
}

fn submit(client: &mut Client, count: u64) {
    for n in 0..count {
        client.set("/a", "n", &n.to_string()).unwrap();
    }
}

fn outcomes(client: &mut Client) -> Vec<(u64, String)> {
    let shown = |outcome| match outcome {
        Outcome::Reached { version, .. } => version.to_string(),
        Outcome::Unknown { .. } => "unknown".into(),
        Outcome::Failed(failure) => format!("{:?}", failure.code),
    };
    let mut all: Vec<_> = std::iter::from_fn(|| client.wait()).map(|r| (r.number, shown(r.outcome))).collect();
    all.sort();
    all
}

fn options(repeat: bool) -> Options {
    Options { repeat, ..Options::default() }
}

#[test]
fn every_change_is_reported_once_with_its_own_version() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let member = play(&path, |listener| {
        let mut member = Played::accept(&listener);
        assert_eq!(member.requests(5), [1, 2, 3, 4, 5]);
        member.failed(3, 1, FailureCode::Malformed);
        member.reached(4, 2, 43);
        member.reached(1, 2, 41);
        member.reached(1, 2, 99);
        member.until_closed();
    });
    let mut client = Client::connect([&path], options(false)).unwrap();
    submit(&mut client, 5);
    let expected = ["3:41", "3:42", "Some(Malformed)", "3:43", "3:44"];
    assert_eq!(outcomes(&mut client), (1..).zip(expected.map(String::from)).collect::<Vec<_>>());
    assert_eq!((client.unanswered(), client.poll()), (0, None), "nothing twice");
    drop(client);
    member.join().unwrap();
}

// REQ: REP-011
#[test]
fn it_follows_the_active_and_takes_along_what_was_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    let stepping_down = play(&a, |listener| {
        let mut member = Played::accept(&listener);
        assert_eq!(member.requests(4), [1, 2, 3, 4]);
        member.failed(2, 3, FailureCode::NotActive);
        // What it had taken is answered before the client goes.
        member.reached(1, 1, 7);
        member.until_closed();
    });
    let active = play(&b, |listener| {
        let mut member = Played::accept(&listener);
        assert_eq!(member.requests(3), [2, 3, 4]);
        member.reached(2, 3, 8);
        member.until_closed();
    });
    let mut client = Client::connect([&a, &b], options(false)).unwrap();
    submit(&mut client, 4);
    let expected = ["3:7", "3:8", "3:9", "3:10"];
    assert_eq!(outcomes(&mut client), (1..).zip(expected.map(String::from)).collect::<Vec<_>>());
    drop(client);
    stepping_down.join().unwrap();
    active.join().unwrap();
}

#[test]
fn what_was_sent_and_not_answered_is_unknown_or_sent_again_if_wanted() {
    for repeat in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let member = play(&path, move |listener| {
            let mut member = Played::accept(&listener);
            member.requests(3);
            member.reached(1, 1, 5);
            drop(member);
            if repeat {
                let mut member = Played::accept(&listener);
                assert_eq!(member.requests(2), [2, 3]);
                member.reached(2, 1, 6);
                member.failed(3, 1, FailureCode::NotFound);
                member.until_closed();
            }
        });
        let mut client = Client::connect([&path], options(repeat)).unwrap();
        submit(&mut client, 3);
        // A refusal of the repetition says nothing of the first time.
        let expected = ["3:5", if repeat { "3:6" } else { "unknown" }, "unknown"];
        assert_eq!(outcomes(&mut client), (1..).zip(expected.map(String::from)).collect::<Vec<_>>(), "{repeat}");
        drop(client);
        member.join().unwrap();
    }
}

#[test]
fn without_an_active_what_was_not_taken_has_failed_after_the_patience() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let member = play(&path, |listener| {
        for _ in 0..2 {
            let mut member = Played::accept(&listener);
            member.requests(1);
            member.failed(1, 1, FailureCode::NotActive);
            member.until_closed();
        }
        let mut member = Played::accept(&listener);
        member.say(&Answer::Goodbye { code: FailureCode::Forbidden, message: "not you".into() });
    });
    let none = Options { patience: Duration::ZERO, ..options(false) };
    let mut client = Client::connect([&path], none.clone()).unwrap();
    submit(&mut client, 1);
    let Some(Report { outcome: Outcome::Failed(failure), .. }) = client.wait() else { panic!("not failed") };
    assert_eq!(failure.active, Some(("b".into(), "b:1".into())));
    drop(client);
    let mut client = Client::connect([&path], none.clone()).unwrap();
    submit(&mut client, 1);
    assert_eq!(outcomes(&mut client), [(1, "Some(NotActive)".into())]);
    drop(client);
    let mut client = Client::connect([&path], none).unwrap();
    submit(&mut client, 2);
    let forbidden = "Some(Forbidden)".to_owned();
    assert_eq!(outcomes(&mut client), [(1, forbidden.clone()), (2, forbidden)], "it took nothing, and said so");
    member.join().unwrap();
}

#[test]
fn the_window_bounds_what_is_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let member = play(&path, |listener| {
        let mut member = Played::accept(&listener);
        for number in (1..=40).step_by(4) {
            assert_eq!(member.requests(4), (number..number + 4).collect::<Vec<_>>());
            assert!(member.input.is_empty(), "no more than the window comes");
            member.reached(number, 4, number);
        }
        member.until_closed();
    });
    let mut client = Client::connect([&path], Options { window: 4, ..options(false) }).unwrap();
    submit(&mut client, 40);
    assert_eq!(outcomes(&mut client).len(), 40);
    drop(client);
    member.join().unwrap();
}

#[test]
fn what_cannot_be_sent_is_refused_here() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    assert!(matches!(Client::connect([&path], options(false)), Err(Error::Unreachable { .. })));
    assert!(matches!(Client::connect([] as [&Path; 0], options(false)), Err(Error::NoSocket)));
    let member = play(&path, |listener| Played::accept(&listener).until_closed());
    let mut client = Client::connect([&path], options(false)).unwrap();
    let remove = Operation::Remove { path: "/a", recursive: false, missing_ok: false };
    for bad in [Vec::new(), vec![remove; 256]] {
        assert!(matches!(client.submit(&bad), Err(Error::TooLarge { .. })));
    }
    assert!(matches!(client.set("/a", "n", &"x".repeat(MAX_REQUEST_BYTES)), Err(Error::TooLarge { .. })));
    assert_eq!(client.unanswered(), 0);
    drop(client);
    member.join().unwrap();
    let member = play(&dir.path().join("http"), |listener| {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let error = Client::connect([dir.path().join("http")], options(false)).unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
    member.join().unwrap();
}

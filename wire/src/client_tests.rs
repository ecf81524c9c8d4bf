//! Greetings, writes and answers: bytes that never change, what comes back, and what is refused.

use proptest::prelude::*;

use super::*;
use crate::{
    id::{Epoch, Seq, Version},
    testing::{golden, golden_bytes},
};

const OURS: VersionRange = VersionRange { min: 2, max: 4 };

fn limits() -> Option<Limits> {
    Some(Limits { member: MemberId::B, max_unanswered: 65_536 })
}

fn operations() -> Vec<Operation<'static>> {
    let edit = |name, how, values: &[ValueRef<'static>]| AttributeEdit { name, how, values: values.to_vec() };
    vec![
        Operation::Put {
            path: "/CONFIG/Users/alice",
            class: Some("User"),
            replace: true,
            attributes: vec![
                edit("Extension", How::Set, &[ValueRef::Text("101"), ValueRef::Bytes(&[0xff, 0])]),
                edit("Workgroups", How::Add, &[ValueRef::Text("Sales")]),
                edit("Skills", How::Remove, &[ValueRef::Text("")]),
                edit("Pager", How::Unset, &[]),
            ],
        },
        Operation::Remove { path: "/CONFIG/Users/bob", recursive: true, missing_ok: false },
    ]
}

fn sample_write() -> Vec<u8> {
    let mut out = Vec::new();
    let start = begin_write(&mut out, Some(AckLevel::Durable), 2_500, 7);
    let mut request = Vec::new();
    encode_request(&operations(), &mut request);
    push_request(&mut out, &request);
    request.clear();
    encode_request(&operations()[1..], &mut request);
    push_request(&mut out, &request);
    end_write(&mut out, start, 2);
    out
}

fn sample_answers() -> Vec<Answer> {
    let versions = Versions { first: Version { epoch: Epoch(65_537), seq: Seq(1_042) }, step: 1 };
    vec![
        Answer::Reached(Reached { first: 7, count: 2, level: AckLevel::Durable, alone: false, versions }),
        Answer::Failed(Failed {
            first: 9,
            count: 1,
            code: FailureCode::NotActive,
            message: "this member is not active".into(),
            active: Some(("icserver2".into(), "10.60.0.3:3633".into())),
            versions: None,
        }),
        Answer::Failed(Failed {
            first: 10,
            count: 3,
            code: FailureCode::NotReached,
            message: "unknown".into(),
            active: None,
            versions: Some(versions),
        }),
        Answer::Goodbye { code: FailureCode::Malformed, message: "message type 99 is not known here".into() },
    ]
}

#[test]
fn golden_client_messages() {
    golden("client_greeting", &Greeting { versions: VERSIONS, member: None }.to_bytes());
    golden("client_greeting_member", &Greeting { versions: VERSIONS, member: limits() }.to_bytes());
    golden("client_write", &sample_write());
    let mut answers = Vec::new();
    sample_answers().iter().for_each(|answer| answer.encode(&mut answers));
    golden("client_answers", &answers);
}

#[test]
fn no_http_request_begins_with_the_magic_w100() {
    // A method is a token (RFC 9110 §5.6.2), after at most an empty line.
    assert!(!MAGIC[0].is_ascii());
    assert_eq!(golden_bytes("client_greeting")[..4], MAGIC);
}

#[test]
fn a_greeting_waits_for_its_rest_and_names_both_versions_w101() {
    for member in [None, limits()] {
        let greeting = Greeting { versions: OURS, member };
        let mut bytes = greeting.to_bytes();
        let end = bytes.len();
        for cut in 0..end {
            assert_eq!(Greeting::parse(&bytes[..cut], member.is_some(), OURS), Ok(None), "cut at {cut}");
        }
        bytes.extend_from_slice(b"what follows");
        assert_eq!(Greeting::parse(&bytes, member.is_some(), OURS), Ok(Some((greeting, end))));
    }
    let theirs = VersionRange { min: 5, max: 9 };
    let refused = Greeting::parse(&Greeting { versions: theirs, member: None }.to_bytes(), true, OURS);
    assert_eq!(refused, Err(ClientError::Versions { ours: OURS, theirs }));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("5 to 9") && text.contains("2 to 4"), "{text}");
    let newer = VersionRange { min: 3, max: 5 };
    let mut more = Greeting { versions: newer, member: None }.to_bytes();
    more[4] += 1;
    more.push(0);
    assert!(matches!(Greeting::parse(&more, false, OURS), Ok(Some((_, 11)))), "a newer side may say more");
    more[8] = 4;
    assert!(matches!(Greeting::parse(&more, false, OURS), Err(ClientError::Body(DecodeError::Trailing { .. }))));
    assert!(matches!(Greeting::parse(b"GET ", false, OURS), Err(ClientError::Magic { .. })));
    let long = [&MAGIC[..], &[0xff, 0xff]].concat();
    assert!(matches!(Greeting::parse(&long, false, OURS), Err(ClientError::TooLong { .. })));
}

#[test]
fn a_write_comes_back_request_by_request() {
    let bytes = sample_write();
    assert_eq!(message_bytes(&bytes, MAX_WRITE_BYTES), Ok(Some(bytes.len())));
    let mut write = Write::parse(&bytes).unwrap();
    assert_eq!((write.ack, write.timeout_ms, write.first, write.count), (Some(AckLevel::Durable), 2_500, 7, 2));
    let mut first = Operations::parse(write.requests.take().unwrap()).unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| first.take().unwrap()).collect();
    assert_eq!(taken, operations());
    let at = bytes.len() - write.requests.remaining();
    let mut resumed = Requests::resume(&bytes[at..]);
    assert_eq!(Operations::parse(resumed.take().unwrap()).unwrap().left(), 1);
    assert_eq!(resumed.remaining(), 0);
    assert!(matches!(resumed.take(), Err(DecodeError::Truncated { .. })));
}

#[test]
fn bounds_hold_before_anything_is_kept_w103() {
    let over = (MAX_WRITE_BYTES as u32 + 1).to_le_bytes();
    let header = [&over[..], &[1]].concat();
    assert!(matches!(message_bytes(&header, MAX_WRITE_BYTES), Err(ClientError::TooLong { .. })));
    assert_eq!(message_bytes(&header[..4], MAX_WRITE_BYTES), Ok(None));
    let with = |at: usize, bytes: &[u8]| {
        let mut write = sample_write();
        write[at..at + bytes.len()].copy_from_slice(bytes);
        Write::parse(&write).map(|_| ())
    };
    assert!(with(5, &[6]).is_err(), "level");
    assert!(with(6, &(MAX_TIMEOUT_MS + 1).to_le_bytes()).is_err(), "time-out");
    assert!(with(10, &0_u64.to_le_bytes()).is_err() && with(10, &u64::MAX.to_le_bytes()).is_err(), "numbers");
    assert!(with(18, &0_u32.to_le_bytes()).is_err() && with(18, &(MAX_REQUESTS + 1).to_le_bytes()).is_err(), "count");
    assert!(matches!(with(4, &[16]), Err(ClientError::Kind { got: 16 })), "an answer is no write");
    assert!(Operations::parse(&[0]).is_err(), "no operation");
    let many = [0x80, 2].iter().copied().chain(std::iter::repeat_n(2, 1000)).collect::<Vec<_>>();
    assert!(matches!(Operations::parse(&many), Err(DecodeError::TooLong { got: 256, .. })));
    let long = "x".repeat(CONTENT_FROM_BYTES + 1);
    let values = vec![ValueRef::Text(&long)];
    let edit = AttributeEdit { name: "A", how: How::Set, values };
    let put = Operation::Put { path: "/a", class: None, replace: false, attributes: vec![edit] };
    let mut request = Vec::new();
    encode_request(&[put], &mut request);
    assert!(matches!(Operations::parse(&request).unwrap().take(), Err(DecodeError::TooLong { .. })));
}

#[test]
fn answers_come_back_and_every_cut_is_refused() {
    for answer in sample_answers() {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        assert_eq!(message_bytes(&bytes, MAX_ANSWER_BYTES), Ok(Some(bytes.len())));
        assert_eq!(Answer::parse(&bytes), Ok(answer));
        for end in 0..bytes.len() {
            assert!(Answer::parse(&bytes[..end]).is_err(), "cut at {end}");
        }
        bytes.push(0);
        assert!(Answer::parse(&bytes).is_err(), "one byte more");
    }
    let versions = Versions { first: Version { epoch: Epoch(3), seq: Seq(10) }, step: 2 };
    assert_eq!(versions.at(4), Version { epoch: Epoch(3), seq: Seq(18) });
    let longest = Answer::Failed(Failed {
        first: 1,
        count: 1,
        code: FailureCode::Refused,
        message: "x".repeat(1 << 20),
        active: Some(("y".repeat(1 << 20), "z".repeat(1 << 20))),
        versions: Some(versions),
    });
    let mut bytes = Vec::new();
    longest.encode(&mut bytes);
    assert!(bytes.len() <= HEADER_BYTES + MAX_ANSWER_BYTES && Answer::parse(&bytes).is_ok());
}

/// Everything that reads bytes of a stranger.
fn read_all(bytes: &[u8]) {
    let _ = Greeting::parse(bytes, false, VERSIONS);
    let _ = Greeting::parse(bytes, true, VERSIONS);
    let _ = message_bytes(bytes, MAX_WRITE_BYTES);
    let _ = Answer::parse(bytes);
    if let Ok(mut write) = Write::parse(bytes) {
        for _ in 0..write.count {
            let Ok(request) = write.requests.take() else { return };
            let Ok(mut operations) = Operations::parse(request) else { continue };
            while let Ok(Some(_)) = operations.take() {}
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        read_all(&bytes);
        read_all(&[&[0, 0, 0, 0, 1][..], &bytes].concat());
        read_all(&[&MAGIC[..], &bytes].concat());
    }

    #[test]
    fn any_flipped_byte_is_survived(at: prop::sample::Index, to: u8) {
        let mut bytes = sample_write();
        let at = at.index(bytes.len());
        bytes[at] = to;
        read_all(&bytes);
    }
}

//! An authenticated peer that lies: a frame with a wrong checksum, a broken chain, a gap, a stale epoch, a bomb, an unknown
//! dictionary; a bomb on the bulk lane; a message that is none. The lane is closed with the reason in the event log,
//! nothing of it is applied, and the pair goes on from what it had.

#![expect(clippy::unwrap_used, reason = "test code: a failed expectation is a failed test")]

use std::fs;

use ringpair_tests::pair::{Liar, Options, Pair, wait_until};
use ringpair_wire::{
    checksum::{checksum, frame_seed},
    compress::{Compression, Compressor},
    id::{Epoch, HistoryId, Seq},
    lane::{LaneKind, MessageKind, packed_header},
};

/// Offsets in a frame's header (SPEC.md §2).
mod at {
    pub const FLAGS: usize = 6;
    pub const STORED: usize = 8;
    pub const PLAIN: usize = 12;
    pub const HISTORY: usize = 24;
    pub const EPOCH: usize = 40;
    pub const FIRST_SEQ: usize = 48;
    pub const PREV_CHAIN: usize = 56;
    pub const CHECKSUM: usize = 96;
    pub const PAYLOAD: usize = 104;
}

fn u64_at(frame: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(frame[offset..offset + 8].try_into().unwrap())
}

fn set(frame: &mut [u8], offset: usize, value: &[u8]) {
    frame[offset..offset + value.len()].copy_from_slice(value);
}

/// Makes both checksums right, as a liar can.
fn seal(mut frame: Vec<u8>) -> Vec<u8> {
    let history = HistoryId(frame[at::HISTORY..at::EPOCH].try_into().unwrap());
    let seed = frame_seed(history, Epoch(u64_at(&frame, at::EPOCH)), Seq(u64_at(&frame, at::FIRST_SEQ)));
    let header = checksum(seed, &frame[..at::CHECKSUM]);
    set(&mut frame, at::CHECKSUM, &header.to_le_bytes());
    let end = frame.len() - 8;
    let whole = checksum(seed, &frame[..end]);
    set(&mut frame, end, &whole.to_le_bytes());
    frame
}

/// The frame with another, compressed payload that claims to expand to so many bytes.
fn with_payload(frame: &[u8], stored: &[u8], plain: u32) -> Vec<u8> {
    let mut lie = [&frame[..at::PAYLOAD], stored, &[0; 8]].concat();
    set(&mut lie, at::FLAGS, &1_u16.to_le_bytes());
    set(&mut lie, at::STORED, &u32::try_from(stored.len()).unwrap().to_le_bytes());
    set(&mut lie, at::PLAIN, &plain.to_le_bytes());
    seal(lie)
}

/// 64 MiB in a few thousand bytes.
fn bomb() -> Vec<u8> {
    let mut stored = Vec::new();
    assert!(Compressor::new(Compression::Level(19)).compress(&vec![0; 64 << 20], &mut stored));
    stored
}

/// 200 equal bytes as a zstd frame that needs dictionary 7.
fn needs_a_dictionary() -> Vec<u8> {
    let block = (200_u32 << 3 | 1 << 1 | 1).to_le_bytes();
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 200][..], &block[..3], b"a"].concat()
}

type Lie = fn(&[u8]) -> Vec<u8>;

/// What is done to a frame, and what the event log says of it.
const LIES: [(&str, Lie, &str); 6] = [
    (
        "wrong checksum",
        |frame| {
            let mut lie = frame.to_vec();
            lie[at::PAYLOAD + 3] ^= 0x10;
            lie
        },
        "checksum",
    ),
    (
        "broken chain",
        |frame| {
            let mut lie = frame.to_vec();
            lie[at::PREV_CHAIN] ^= 1;
            seal(lie)
        },
        "does not continue",
    ),
    (
        "sequence gap",
        |frame| {
            let mut lie = frame.to_vec();
            let seq = u64_at(frame, at::FIRST_SEQ) + 5;
            set(&mut lie, at::FIRST_SEQ, &seq.to_le_bytes());
            seal(lie)
        },
        "does not continue",
    ),
    (
        "stale epoch",
        |frame| {
            let mut lie = frame.to_vec();
            set(&mut lie, at::EPOCH, &1_u64.to_le_bytes());
            seal(lie)
        },
        "epoch 1 after",
    ),
    ("decompression bomb", |frame| with_payload(frame, &bomb(), 1 << 20), "does not expand"),
    ("unknown dictionary", |frame| with_payload(frame, &needs_a_dictionary(), 200), "does not expand"),
];

fn pair_with_a_liar() -> (Pair, Liar) {
    let set = [("security.mode", "off"), ("compression.bulk", "off")];
    let set = set.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let mut pair = Pair::prepare(&Options { mirror: vec!["+/srv/app".into()], set, ..Options::default() });
    let liar = Liar::between(&pair);
    pair.a.start(&[]);
    pair.b.start(&[]);
    pair.wait_in_sync();
    (pair, liar)
}

/// How many lines of B's event log say that a lane was closed for something with `why` in it.
fn refusals(pair: &Pair, why: &str) -> usize {
    let events = pair.b.get("/v1/events").map(|answer| answer.text()).unwrap_or_default();
    let text = fs::read_to_string(pair.b.storage().join("events.jsonl")).unwrap_or(events);
    text.lines().filter(|line| line.contains("lane-refused") && line.contains(why)).count()
}

#[test]
fn a_lying_frame_closes_the_lane_and_nothing_of_it_is_applied() {
    for (name, lie, why) in LIES {
        let (pair, liar) = pair_with_a_liar();
        let workers = pair.members().map(|member| member.worker_pid());
        assert_eq!(refusals(&pair, ""), 0, "nobody has lied yet");
        let frame = MessageKind::Frame as u8;
        liar.lie(move |lane, kind, body| (lane == LaneKind::Ds && kind == frame).then(|| (kind, lie(body))));
        let put = pair.a.ask("PUT", "/v1/ds/LIED?ack=durable", br#"{"attributes":{"Told":["the truth"]}}"#).unwrap();
        assert!(liar.has_lied(), "{name}");
        assert_eq!(put.status, 200, "{name}: resumed, the change is on both: {}", put.text());
        wait_until(&format!("the event log names it: {name}, {why}"), || refusals(&pair, why) > 0);
        pair.wait_in_sync();
        wait_until("both have the same", || matches!(pair.digests(), [Some(a), Some(b)] if a == b));
        let object = pair.b.get("/v1/ds/LIED").unwrap().json();
        assert_eq!(object["attributes"]["Told"][0], "the truth", "{name}");
        assert_eq!(pair.members().map(|member| member.worker_pid()), workers, "{name}: nobody crashed");
        assert!(pair.a.is_active() && !pair.b.is_active(), "{name}: no role changed");
    }
}

#[test]
fn a_lie_on_the_bulk_lane_closes_it_and_files_arrive_all_the_same() {
    let (pair, liar) = pair_with_a_liar();
    let packed = [&packed_header(MessageKind::Mirror, 1 << 20)[..], &bomb()].concat();
    let lies = [
        ("does not expand", packed, MessageKind::Packed as u8),
        ("does not belong on the bulk lane", b"frame".to_vec(), MessageKind::Frame as u8),
    ];
    for (number, (why, lie, kind)) in lies.into_iter().enumerate() {
        let mirror = MessageKind::Mirror as u8;
        liar.lie(move |lane, is, _| (lane == LaneKind::Bulk && is == mirror).then(|| (kind, lie.clone())));
        let name = format!("srv/app/file{number}");
        fs::write(pair.a.root().join(&name), vec![b'x'; 100_000]).unwrap();
        wait_until("it is lied", || liar.has_lied());
        wait_until(&format!("the event log names it: {why}"), || refusals(&pair, why) > 0);
        let (code, out, err) = pair.a.command(&["sync", "--timeout", "30"]);
        assert_eq!(code, 0, "sync: {out}{err}\n{}", pair.logs());
        assert_eq!(fs::read(pair.b.root().join(&name)).unwrap(), vec![b'x'; 100_000]);
    }
}

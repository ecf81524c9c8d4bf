//! Costs of the wire crate's parts: records into frames and back, checksums, compression.
//!
//! `cargo bench -p ringpair-bench --bench wire`. Figures go into ARCHITECTURE.md.
#![expect(missing_docs, clippy::expect_used, reason = "criterion's macros; a benchmark may stop at what cannot be")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringpair_wire::{
    checksum::{chain_hash, checksum},
    codec::Codec,
    compress::{Compression, Compressor, Decompressor},
    ds::{Attribute, Change, DsPath, Value},
    frame::CheckedFrame,
    frame_builder::FrameBuilder,
    heartbeat::{Heartbeat, Stamp},
    id::{ChainHash, Epoch, HistoryId, MemberId, Seq},
    mirror::{MirrorMessage, Piece, piece_checksum},
    record::{Part, Record},
};

/// How many records a frame of the benchmark holds.
const RECORDS: usize = 64;

/// A change of one attribute whose record takes about `bytes` bytes; text that shrinks as real configuration does.
fn record(index: usize, bytes: usize) -> Record {
    let words = ["queue", "agent", "workgroup", "extension", "skill", "campaign", "station", "prompt"];
    let mut text = String::new();
    let mut state = index as u64 + 1;
    while text.len() + 60 < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(words[(state >> 33) as usize % words.len()]);
        text.push_str(&format!("-{:x};", state >> 44));
    }
    let attribute = Attribute { name: "Description".into(), values: vec![Value::Text(text.into())] };
    let path = DsPath::parse(&format!("/CONFIG/Users/user{index:05}")).expect("a valid path");
    let change = Change::Put { path, class: Some("User".into()), replace: false, attributes: vec![attribute] };
    Record::Ds { part: Part::Whole, change }
}

fn builder() -> FrameBuilder {
    FrameBuilder::new(HistoryId([1; 16]), Epoch(65_537), Seq(1), ChainHash(0))
}

fn frame(records: &[Record], compressor: &mut Compressor) -> Vec<u8> {
    let mut builder = builder();
    for record in records {
        builder.push(record).expect("it fits");
    }
    builder.finish(compressor).expect("not empty").bytes
}

fn frames(c: &mut Criterion) {
    for bytes in [200, 1024] {
        let records: Vec<Record> = (0..RECORDS).map(|index| record(index, bytes)).collect();
        let mut group = c.benchmark_group(format!("frame of {RECORDS} records of {bytes} B"));
        group.throughput(Throughput::Elements(RECORDS as u64));
        for setting in [Compression::Off, Compression::Level(1)] {
            let mut compressor = Compressor::new(setting);
            let mut building = builder();
            group.bench_function(format!("encode, compression {setting}"), |b| {
                b.iter(|| {
                    for record in &records {
                        building.push(record).expect("it fits");
                    }
                    building.finish(&mut compressor)
                });
            });
            let sealed = frame(&records, &mut compressor);
            let mut expander = Decompressor::new();
            group.bench_function(format!("check, compression {setting} ({} B)", sealed.len()), |b| {
                b.iter(|| CheckedFrame::check(black_box(&sealed)).map(|frame| frame.position()));
            });
            group.bench_function(format!("check and decode, compression {setting}"), |b| {
                b.iter(|| CheckedFrame::check(black_box(&sealed)).and_then(|frame| frame.validate(&mut expander)));
            });
        }
        group.finish();
    }
}

fn single(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame of 1 record of 200 B");
    let (one, mut building) = (record(1, 200), builder());
    let mut compressor = Compressor::new(Compression::Auto);
    group.bench_function("encode", |b| {
        b.iter(|| {
            building.push(&one).expect("it fits");
            building.finish(&mut compressor)
        });
    });
    group.finish();
}

fn sums(c: &mut Criterion) {
    for bytes in [4 << 10, 64 << 10] {
        let block = vec![7_u8; bytes];
        let mut group = c.benchmark_group(format!("{} KiB", bytes >> 10));
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function("checksum", |b| b.iter(|| checksum(1, black_box(&block))));
        group.bench_function("chain hash", |b| b.iter(|| chain_hash(black_box(&block))));
        group.finish();
    }
}

/// A piece of a large file, as the mirror sends and receives it.
fn pieces(c: &mut Criterion) {
    let bytes = vec![7_u8; 512 << 10];
    let piece = Piece { epoch: Epoch(65_537), generation: 300, offset: 1 << 30, bytes: &bytes };
    let message = [&piece.header()[..], &bytes].concat();
    let mut group = c.benchmark_group("512 KiB of a file");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function("checksum", |b| b.iter(|| piece_checksum(1, black_box(&bytes))));
    group.bench_function("blake3", |b| b.iter(|| blake3::hash(black_box(&bytes))));
    group.bench_function("decode in place", |b| b.iter(|| Piece::decode(black_box(&message)).is_ok()));
    group.bench_function("decode by copying", |b| b.iter(|| MirrorMessage::from_bytes(black_box(&message)).is_ok()));
    group.finish();
}

fn compression(c: &mut Criterion) {
    let text: Vec<u8> = (0..400).flat_map(|index| record(index, 200).to_bytes()).take(64 << 10).collect();
    let mut group = c.benchmark_group("64 KiB of records");
    group.throughput(Throughput::Bytes(text.len() as u64));
    for level in [1, 3] {
        let mut compressor = Compressor::new(Compression::Level(level));
        group.bench_function(format!("zstd level {level}"), |b| {
            b.iter_batched_ref(
                || Vec::with_capacity(text.len()),
                |out| compressor.compress(&text, out),
                BatchSize::SmallInput,
            );
        });
    }
    let mut stored = Vec::new();
    assert!(Compressor::new(Compression::Level(1)).compress(&text, &mut stored), "records shrink");
    let mut expander = Decompressor::new();
    group.bench_function(format!("expand {} B", stored.len()), |b| {
        b.iter(|| expander.expand(&stored, text.len()).map(<[u8]>::len).ok());
    });
    group.finish();
}

fn heartbeats(c: &mut Criterion) {
    let heartbeat = Heartbeat {
        sender: MemberId::A,
        role: ringpair_wire::control::Role::Active,
        alone: false,
        exclusive: true,
        not_heard: false,
        epoch: Epoch(65_537),
        highest_epoch: Epoch(65_537),
        stamp: Stamp { number: 7, sent_us: 1 },
        heard: None,
        answers: None,
        held: None,
        link_factor: 256,
    };
    let bytes = heartbeat.to_bytes();
    c.bench_function("heartbeat decode", |b| b.iter(|| Heartbeat::from_bytes(black_box(&bytes)).is_ok()));
}

criterion_group!(benches, frames, single, sums, pieces, compression, heartbeats);
criterion_main!(benches);

//! What a change costs in the processor, part by part, without sockets or disk: the active's side (resolve, encode,
//! apply, seal), the backup's (check, decode, apply), the tree by itself, and the journal's taking of a frame.
//!
//! Always: values that hardly shrink (letters and digits at random), objects that are there already, as in the scenario
//! `stream`.
#![allow(missing_docs, clippy::expect_used, reason = "criterion makes items; a benchmark ends where it cannot go on")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ringpair::{
    ds::{
        ContentStore, Tree, TreeSnapshot,
        edit::{Operation, ValueEdit, resolve_all},
    },
    journal::{Journal, JournalOptions},
    ring::Shared,
    stream::{Applier, Changes},
};
use ringpair_wire::{
    codec::Writer,
    compress::{Compression, Compressor},
    ds::{Attribute, Change, DsPath, Value},
    frame::CheckedFrame,
    frame_builder::FrameBuilder,
    id::{Epoch, HistoryId, Position, Seq, Version},
    record::{Part, encode_change},
};

const OBJECTS: u64 = 16_384;
/// Changes in one frame.
const RECORDS: u64 = 256;
const HISTORY: HistoryId = HistoryId([1; 16]);
const EPOCH: Epoch = Epoch(65_537);

fn path(index: u64) -> DsPath {
    DsPath::parse(&format!("/BENCH/o{:06}", index % OBJECTS)).expect("a path")
}

/// 200 letters and digits that hardly shrink.
fn value(mut state: u64) -> Value {
    let letters = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let text: String = (0..200)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(letters[(state >> 33) as usize % letters.len()])
        })
        .collect();
    Value::Text(text.into())
}

fn operations(from: u64) -> Vec<(u64, Operation)> {
    let put = |index: u64| Operation::Put {
        path: path(index),
        class: Some("Bench".into()),
        replace: false,
        attributes: vec![("Value".to_owned(), ValueEdit::Set(vec![value(index)]))],
    };
    (from..from + RECORDS).map(|index| (index, put(index))).collect()
}

fn changes(from: u64) -> Vec<Change> {
    let put = |index: u64| Change::Put {
        path: path(index),
        class: Some("Bench".into()),
        replace: false,
        attributes: vec![Attribute { name: "Value".into(), values: vec![value(index)] }],
    };
    (from..from + RECORDS).map(put).collect()
}

fn version(seq: u64) -> Version {
    Version { epoch: EPOCH, seq: Seq(seq) }
}

/// A tree that holds every object that is changed.
fn full() -> TreeSnapshot {
    let mut state = TreeSnapshot::default();
    for from in (0..OBJECTS).step_by(RECORDS as usize) {
        for change in changes(from) {
            state.apply(&change, version(1));
        }
    }
    state
}

fn push_all(changes: &[Change], builder: &mut FrameBuilder, scratch: &mut Vec<u8>) {
    for (index, change) in changes.iter().enumerate() {
        scratch.clear();
        encode_change(Part::of(index, changes.len()), change, &mut Writer::new(scratch));
        builder.push_encoded(scratch).expect("it fits");
    }
}

/// Frames of one transaction each, one behind the other.
fn frames(count: u64) -> Vec<(Shared, Position)> {
    let mut builder = FrameBuilder::after(HISTORY, EPOCH, Position::default());
    let (mut compressor, mut scratch) = (Compressor::new(Compression::Off), Vec::new());
    let one = |number: u64| {
        push_all(&changes(number * RECORDS), &mut builder, &mut scratch);
        let sealed = builder.finish(&mut compressor).expect("not empty");
        (sealed.bytes.into(), sealed.position)
    };
    (0..count).map(one).collect()
}

/// Edit, change, frame: what the stream thread does with a transaction, but for sockets and disk.
fn active(c: &mut Criterion) {
    let mut group = c.benchmark_group("active, 256 changes of 200 B");
    group.throughput(Throughput::Elements(RECORDS));
    let mut tree = Tree::new(full());
    let mut noted = Changes::new(Version::default());
    let mut builder = FrameBuilder::after(HISTORY, EPOCH, Position::default());
    let (mut compressor, mut scratch) = (Compressor::new(Compression::Off), Vec::new());
    let mut from = 0;
    let mut next = || {
        from += RECORDS;
        operations(from)
    };
    group.bench_function("resolve", |b| {
        let state = tree.snapshot();
        b.iter_batched(&mut next, |operations| resolve_all(&state, operations).expect("sound"), BatchSize::SmallInput);
    });
    group.bench_function("resolve, encode, apply, note, seal", |b| {
        b.iter_batched(
            &mut next,
            |operations| {
                let changes = resolve_all(&tree.snapshot(), operations).expect("sound");
                let first = builder.next_seq().0;
                push_all(&changes, &mut builder, &mut scratch);
                for (seq, change) in (first..).zip(&changes) {
                    let applied = tree.apply(change, version(seq));
                    noted.note(version(seq), Seq(first + RECORDS - 1), change, &applied);
                }
                let sealed = builder.finish(&mut compressor).expect("not empty");
                CheckedFrame::check(&sealed.bytes).map(|frame| frame.position()).expect("sound")
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

/// Check, decode, apply: what the backup does with a frame, but for sockets and disk.
fn backup(c: &mut Criterion) {
    let mut group = c.benchmark_group("backup, 256 changes of 200 B");
    group.throughput(Throughput::Elements(RECORDS));
    let dir = tempfile::tempdir().expect("a directory");
    let contents = ContentStore::open(dir.path()).expect("a store");
    let mut applier = Applier::new(Tree::new(full()), contents);
    let mut noted = Changes::new(Version::default());
    let frames = frames(64);
    let mut turn = 0;
    group.bench_function("check, decode, apply, note", |b| {
        b.iter(|| {
            let (bytes, end) = &frames[turn % frames.len()];
            turn += 1;
            let decoded = applier.decode(&CheckedFrame::check(bytes).expect("sound")).expect("sound");
            applier.push(bytes.clone(), *end, decoded, &[]);
            while applier.can_apply(end.seq) {
                applier.turn(end.seq, 1 << 20, &mut noted).expect("sound");
            }
        });
    });
    group.finish();
}

fn tree(c: &mut Criterion) {
    let mut state = full();
    let mut group = c.benchmark_group("tree of 16,384 objects");
    group.throughput(Throughput::Elements(RECORDS));
    let mut from = 0;
    group.bench_function("get", |b| {
        let paths: Vec<DsPath> = (0..RECORDS).map(|index| path(index * 7919)).collect();
        b.iter(|| paths.iter().filter(|path| state.get(black_box(path)).is_some()).count());
    });
    group.bench_function("put", |b| {
        b.iter_batched(
            || {
                from += RECORDS;
                changes(from)
            },
            |changes| {
                for change in &changes {
                    black_box(state.apply(change, version(2)));
                }
                changes
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("put behind a snapshot", |b| {
        b.iter_batched(
            || {
                from += RECORDS;
                // As behind a checkpoint: the first change of each node copies it.
                (state.clone(), changes(from))
            },
            |(mut state, changes)| {
                for change in &changes {
                    black_box(state.apply(change, version(2)));
                }
                (state, changes)
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("digest, nothing remembered", |b| {
        let all: Vec<_> = state.iter().map(|entry| entry.object().clone()).collect();
        let made = || TreeSnapshot::from_objects(all.iter().cloned(), Position::default());
        b.iter_batched_ref(made, |state| state.digest(&DsPath::root()), BatchSize::LargeInput);
    });
    group.finish();
}

/// A frame into the journal's memory, which no disk sees here.
fn journal(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let options = JournalOptions { pending_bytes: usize::MAX, ..JournalOptions::default() };
    let frames = frames(16);
    let mut number = 0;
    c.bench_function("journal append of 16 frames of 256 records", |b| {
        b.iter_batched(
            || {
                number += 1;
                let (mut journal, _) =
                    Journal::open(&dir.path().join(number.to_string()), options.clone()).expect("new");
                journal.reset(HISTORY, Position::default()).expect("empty");
                journal
            },
            |mut journal| {
                for (bytes, end) in &frames {
                    journal.append(bytes.clone(), *end).expect("it follows");
                }
                journal
            },
            BatchSize::PerIteration,
        );
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(40);
    targets = active, backup, tree, journal
}
criterion_main!(benches);

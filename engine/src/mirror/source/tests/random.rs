//! Random operations of several seeds, and a measurement by hand.

use super::*;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

fn some_path(random: &mut Random, pair: &Pair) -> PathBuf {
    let names = ["a", "b", "c", "d\n", "\u{e9}"];
    let mut path = pair.a("");
    for _ in 0..=random.below(3) {
        path.push(names[random.below(5) as usize]);
    }
    path
}

/// One operation; most of them fail on what is there, as they would in an application.
fn operate(random: &mut Random, pair: &Pair) {
    let (path, other) = (some_path(random, pair), some_path(random, pair));
    let size = if random.below(40) == 0 { 400_000 } else { random.below(3000) as usize };
    let content = vec![random.below(256) as u8; size];
    drop(match random.below(12) {
        0..3 => fs::write(&path, content),
        3 => fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(&content)),
        4 | 5 => fs::create_dir_all(&path),
        6 | 7 => fs::rename(&path, &other),
        8 => fs::remove_file(&path),
        9 => fs::remove_dir_all(&path),
        10 => symlink(&other, &path),
        // By inotify the kernel does not tell that a name of a file is gone again.
        _ if random.below(2) == 0 && !pair.source.options.force_inotify => fs::hard_link(&path, &other),
        _ => fs::set_permissions(&path, fs::Permissions::from_mode(0o700 + random.below(0o77) as u32)),
    });
}

// REQ: REP-020 REP-025
#[test]
fn any_operations_end_in_identical_trees() {
    let inotify = [false, false, false, true];
    let seeds = std::env::var("RINGPAIR_MIRROR_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12);
    for seed in 1..=seeds {
        let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
        let place = if seed % 3 == 0 { "/var/tmp" } else { "/dev/shm" };
        let mut pair = Pair::at(place, roots("+/m", "", ""), inotify[seed as usize % 4]);
        write(pair.a("keep"), "so that the root is never empty");
        pair.connect();
        for step in 0..300 {
            operate(&mut random, &pair);
            for _ in 0..random.below(4) {
                pair.turn().unwrap();
            }
            match random.below(60) {
                0 => {
                    pair.disconnect();
                    pair.connect();
                }
                1 => pair.source.handle_event(WatchEvent::Overflow),
                2 => {
                    let problems = pair.sync();
                    assert_eq!(problems, [], "seed {seed} step {step}");
                    let shown = (tree(&pair.temp.path().join("a")), tree(&pair.temp.path().join("b")));
                    assert_eq!(shown.0, shown.1, "seed {seed} step {step}: left the active's, right the backup's");
                }
                _ => {}
            }
        }
        assert_eq!(pair.sync(), [], "seed {seed}");
        pair.synced();
    }
}

/// For orientation.
#[test]
#[ignore = "measures, by hand: cargo test -p ringpair --lib mirror::source::tests::random::measure -- --ignored --nocapture"]
fn measure_first_synchronization_against_cp() {
    let mut pair = Pair::new(roots("+/m", "", ""));
    let copy = |from: &Path, to: &Path| {
        let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(status.success());
        let dir = fs::File::open(to).unwrap();
        nix::unistd::syncfs(&dir).unwrap();
    };
    copy(Path::new("/usr/share/doc"), &pair.a("doc"));
    for round in 0..2 {
        let started = std::time::Instant::now();
        let aside = pair.temp.path().join(format!("cp{round}"));
        copy(&pair.a("doc"), &aside);
        let cp = started.elapsed();
        fs::remove_dir_all(pair.b("")).ok();
        nix::unistd::syncfs(fs::File::open(pair.temp.path()).unwrap()).unwrap();
        pair.disconnect();
        pair.sink = new_sink(pair.temp.path(), round, None);
        let (started, before) = (std::time::Instant::now(), pair.wire_bytes);
        pair.connect();
        assert_eq!(pair.sync(), []);
        let first = started.elapsed();
        let status = pair.sink.status();
        let bytes = pair.wire_bytes - before;
        pair.disconnect();
        let (started, before) = (std::time::Instant::now(), pair.wire_bytes);
        pair.connect();
        assert_eq!(pair.sync(), []);
        println!(
            "{} files, {} bytes: cp -a and sync {cp:?}, mirror {first:?} ({bytes} on the wire), nothing different {:?} ({} on the wire)",
            status.files,
            status.bytes,
            started.elapsed(),
            pair.wire_bytes - before
        );
        fs::remove_dir_all(aside).unwrap();
    }
}

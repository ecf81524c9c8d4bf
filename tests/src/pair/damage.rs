//! A journal cut and flipped bit by bit: its member never crashes and never serves a value that nobody sent.
//!
//! Always: each damage is done to a fresh copy of one sound storage, whose member was killed. What is served is read over
//! the API. Every value carries a digest of itself, so that no other value passes for it.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sys::signal::Signal;

use super::{Dice, Member, Options, PATIENCE, Pair, Victim, is_running, wait_until};

/// How many objects there are: so many that most of a journal's bytes are of a value that is served.
const OBJECTS: u64 = 300;
/// How many changes they get, in turn.
const CHANGES: u64 = 400;

/// How much damage is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The journal is cut at every so many bytes of its last frame.
    pub cut_every: usize,
    /// How many single bits are flipped, each in a copy of its own.
    pub flips: usize,
    /// Which.
    pub seed: u64,
}

fn value(number: u64) -> String {
    format!("{number}-{:016x}", Dice(number).below(u64::MAX))
}

fn number_of(value: &str) -> Option<u64> {
    let number = value.split('-').next()?.parse().ok()?;
    (self::value(number) == value).then_some(number)
}

fn put(member: &Member, number: u64) {
    let url = format!("/v1/ds/DAMAGE/o{}?ack=local", number % OBJECTS);
    let body = format!(r#"{{"attributes":{{"Value":["{}"]}}}}"#, value(number));
    let answer = member.ask("PUT", &url, body.as_bytes()).expect("the member answers");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The newest segment with frames, and where the zeroes at its end begin.
fn end_of_journal(member: &Member) -> (PathBuf, u64) {
    let listed = fs::read_dir(member.storage().join("journal")).expect("the journal");
    let used = |path: &Path| {
        let bytes = fs::read(path).expect("a segment");
        bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
    };
    let segments = listed.map(|entry| entry.expect("a segment").path()).filter(|path| path.is_file());
    let mut segments: Vec<_> = segments.map(|path| (used(&path), path)).filter(|(used, _)| *used > 4096).collect();
    segments.sort_by(|a, b| a.1.cmp(&b.1));
    segments.pop().map(|(used, path)| (path, used)).expect("a segment with frames")
}

fn kill(member: &mut Member) {
    let worker = member.worker_pid();
    member.signal(Victim::Both, Signal::SIGKILL);
    assert!(member.reap(PATIENCE), "a killed member does not end");
    wait_until("the worker has ended", || worker.is_none_or(|worker| !is_running(worker)));
}

fn replace(from: &Path, to: &Path) {
    if to.exists() {
        fs::remove_dir_all(to).expect("the storage goes");
    }
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.is_ok_and(|status| status.success()), "the storage is copied");
}

/// The member on a damaged copy: everything it serves was sent; what it served.
fn judge(member: &mut Member, what: &str) -> [u64; OBJECTS as usize] {
    member.start(&[]);
    let supervisor = member.supervisor_pid();
    let mut newest = [0; OBJECTS as usize];
    let mut settled = false;
    wait_until(&format!("the member has started after {what}\n{}", member.log_tail()), || {
        let status = member.status().unwrap_or_default();
        // Active on a copy whose end was torn; else it says that its copy is not whole, and serves what it has.
        settled = status["role"] == "active" || status["complete"] == false;
        settled
    });
    let worker = member.worker_pid();
    let exported = member.get("/v1/ds/DAMAGE?export").expect("the tree is exported").text();
    for line in exported.lines() {
        let object: serde_json::Value = serde_json::from_str(line).expect("an object");
        let path = object["path"].as_str().unwrap_or_default();
        let Some(name) = path.strip_prefix("/DAMAGE/o") else { continue };
        let said = object["attributes"]["Value"][0].as_str().unwrap_or_default();
        let number =
            number_of(said).unwrap_or_else(|| panic!("{path} serves {said:?}, which nobody sent, after {what}"));
        let index = usize::try_from(number % OBJECTS).expect("an index");
        assert_eq!(name, index.to_string(), "{path} serves {said:?}, which was sent elsewhere, after {what}");
        assert!(number <= CHANGES, "{path} serves {said:?}, which nobody sent, after {what}");
        newest[index] = number;
    }
    assert_eq!((member.supervisor_pid(), member.worker_pid()), (supervisor, worker), "it crashed after {what}");
    kill(member);
    newest
}

/// Damages a journal; `report` gets a line for each kind.
///
/// # Panics
/// When a member crashes, serves what nobody sent, or loses more than the frame that was cut.
pub fn damage(damage: Damage, mut report: impl FnMut(&str)) {
    let mut pair = Pair::prepare(&Options::default());
    pair.a.start(&["--bootstrap"]);
    pair.a.wait_active();
    (1..CHANGES).for_each(|number| put(&pair.a, number));
    let (_, before) = end_of_journal(&pair.a);
    put(&pair.a, CHANGES);
    kill(&mut pair.a);
    let (segment, used) = end_of_journal(&pair.a);
    let (sound, storage) = (pair.dir().join("sound"), pair.a.storage());
    replace(&storage, &sound);

    let expected = std::array::from_fn(|index| {
        let (first, second) = (index as u64, index as u64 + OBJECTS);
        if second < CHANGES { second } else { first }
    });
    let mut cuts = 0;
    for length in (before..used).step_by(damage.cut_every) {
        replace(&sound, &storage);
        fs::File::options()
            .write(true)
            .open(&segment)
            .and_then(|file| file.set_len(length))
            .expect("the journal is cut");
        let what = format!("a cut at byte {length} of {before} to {used}");
        let mut served = judge(&mut pair.a, &what);
        let last = usize::try_from(CHANGES % OBJECTS).expect("an index");
        assert_eq!(served[last], CHANGES - OBJECTS, "the value before the one that was cut, after {what}");
        served[last] = expected[last];
        assert_eq!(served, expected, "everything before the last frame, after {what}");
        cuts += 1;
    }
    report(&format!("{cuts} cuts of the last frame ({} bytes): everything before it is served", used - before));

    let mut dice = Dice(damage.seed);
    let mut whole = 0;
    for _ in 0..damage.flips {
        replace(&sound, &storage);
        let (at, bit) = (dice.below(used), dice.below(8));
        let file = fs::File::options().read(true).write(true).open(&segment).expect("the segment");
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).expect("a byte");
        file.write_all_at(&[byte[0] ^ (1 << bit)], at).expect("a byte");
        let served = judge(&mut pair.a, &format!("bit {bit} of byte {at} was flipped"));
        whole += usize::from(served.iter().max() == Some(&CHANGES));
    }
    report(&format!("{} single bits flipped: no value that nobody sent, {whole} times everything", damage.flips));
}

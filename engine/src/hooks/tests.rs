//! Hooks with real scripts.

use std::os::unix::fs::PermissionsExt;

use super::*;

struct Scripts {
    dir: tempfile::TempDir,
}

impl Scripts {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Hooks whose commence is this script.
    fn hooks(&self, script: &str) -> Hooks {
        // A busy text file is an error of fork and exec in a process of many threads: written beside, then renamed.
        let (new, path) = (self.path("new"), self.path("commence"));
        fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&new, &path).unwrap();
        Hooks {
            commence: Some(path),
            discontinue: None,
            timeout: Duration::from_secs(60),
            pair: "contact-center".into(),
            member: MemberId::A,
            name: "icserver1".into(),
        }
    }

    fn run(&self, script: &str) -> HookReport {
        start(&self.hooks(script)).wait().unwrap()
    }
}

/// Starts the hook; a sibling test that forks while the script is open for writing makes it busy for a moment.
fn start(hooks: &Hooks) -> HookRun {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match hooks.start(HookEvent::Commence, Epoch(65_537), "worker-died") {
            Err(HookError::Start { source, .. })
                if source.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {}
            other => return other.unwrap().unwrap(),
        }
    }
}

// REQ: OPS-211, OPS-212
#[test]
fn a_hook_is_told_what_happened_and_its_result_is_reported() {
    let scripts = Scripts::new();
    let report = scripts.run(
        r#"echo "$1 $2 $#"; echo "$RINGPAIR_EVENT $RINGPAIR_EPOCH $RINGPAIR_MEMBER" >&2
        echo "$RINGPAIR_NAME $RINGPAIR_PAIR $RINGPAIR_REASON""#,
    );
    let told = "commence 65537 2\ncommence 65537 A\nicserver1 contact-center worker-died\n";
    assert_eq!((report.outcome, report.output.as_str()), (HookOutcome::Succeeded, told));
    assert!(report.ok() && report.to_string().starts_with("hook commence 65537 succeeded after "), "{report}");
}

// REQ: OPS-212
#[test]
fn failures_are_told_apart() {
    let scripts = Scripts::new();
    assert_eq!(scripts.run("exit 7").outcome, HookOutcome::Failed(7));
    assert_eq!(scripts.run("kill -HUP $$").outcome, HookOutcome::Signaled(1));
    assert!(!scripts.run("exit 7").ok());
}

// REQ: OPS-212
#[test]
fn a_hook_that_hangs_is_killed_with_its_whole_group() {
    let scripts = Scripts::new();
    let mut hooks = scripts.hooks("echo begun; sleep 1000 & echo $! > \"$0.pid\"; wait");
    hooks.timeout = Duration::from_millis(300);
    let report = start(&hooks).wait().unwrap();
    assert_eq!(report.outcome, HookOutcome::TimedOut);
    assert_eq!(report.output, "begun\n", "what it said before is kept");
    assert!((300..30_000).contains(&report.duration.as_millis()), "{report}");
    let child = fs::read_to_string(scripts.path("commence.pid")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::read_to_string(format!("/proc/{}/stat", child.trim())).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the hook's child {child} lives on");
        std::thread::yield_now();
    }
}

// REQ: OPS-212
#[test]
fn a_flood_of_output_neither_blocks_the_hook_nor_fills_memory() {
    let scripts = Scripts::new();
    let report = scripts.run("head -c 20000000 /dev/zero | tr '\\0' x; echo; echo the end");
    assert_eq!(report.outcome, HookOutcome::Succeeded);
    assert_eq!(report.output.len(), OUTPUT_BYTES);
    assert!(report.output.ends_with("x\nthe end\n"));
    assert_eq!(report.dropped_bytes + OUTPUT_BYTES as u64, 20_000_000 + 9);
}

#[test]
fn output_that_is_no_text_is_kept_readable() {
    assert_eq!(Scripts::new().run("printf 'a\\377b'").output, "a\u{fffd}b");
}

#[test]
fn what_a_hook_leaves_in_the_background_does_not_hold_it_up() {
    let scripts = Scripts::new();
    let report = scripts.run("sleep 1000 & echo $! > \"$0.pid\"");
    assert_eq!(report.outcome, HookOutcome::Succeeded);
    assert!(report.duration < Duration::from_secs(60), "{report}");
    let child = fs::read_to_string(scripts.path("commence.pid")).unwrap().trim().parse().unwrap();
    assert!(Path::new(&format!("/proc/{child}")).exists(), "a service that commence started goes on");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child), nix::sys::signal::SIGKILL).unwrap();
}

#[test]
fn a_hook_inherits_no_blocked_signal_and_no_descriptor() {
    let scripts = Scripts::new();
    let _ours = File::create(scripts.path("ours")).unwrap();
    let report = scripts.run("grep SigBlk /proc/self/status; ls -l /proc/self/fd");
    assert!(report.output.starts_with("SigBlk:\t0000000000000000"), "{}", report.output);
    assert!(report.output.contains("/dev/null") && !report.output.contains("/ours"), "{}", report.output);
}

#[test]
fn a_hook_that_cannot_run_names_its_key_and_the_remedy() {
    let scripts = Scripts::new();
    let mut hooks = scripts.hooks("true");
    hooks.commence = Some("/nowhere/commence".into());
    let missing = hooks.start(HookEvent::Commence, Epoch(1), "").unwrap_err().to_string();
    assert!(missing.contains("hooks.commence = \"/nowhere/commence\"") && missing.contains("Try: "), "{missing}");
    let plain = scripts.path("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    hooks.commence = Some(plain);
    let denied = hooks.start(HookEvent::Commence, Epoch(1), "").unwrap_err().to_string();
    assert!(denied.contains("Permission denied"), "{denied}");
    assert!(hooks.start(HookEvent::Discontinue, Epoch(1), "").unwrap().is_none(), "none is configured");
}

// REQ: SM-161
#[test]
fn a_finished_hook_is_remembered_over_restarts_and_a_lost_memory_runs_it_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = HookLedger::open(dir.path()).unwrap();
    assert!(ledger.is_due(HookEvent::Commence, Epoch(1)));
    ledger.record(HookEvent::Commence, Epoch(65_537)).unwrap();
    ledger.record(HookEvent::Discontinue, Epoch(3)).unwrap();
    let ledger = HookLedger::open(dir.path()).unwrap();
    assert_eq!(ledger.finished(HookEvent::Commence), Epoch(65_537));
    assert!(!ledger.is_due(HookEvent::Commence, Epoch(65_537)) && ledger.is_due(HookEvent::Commence, Epoch(65_539)));
    assert!(ledger.is_due(HookEvent::Discontinue, Epoch(5)));
    for damaged in [&b"commence 65\xff37\n"[..], b"commence\n", b"commence -1\n", b""] {
        fs::write(dir.path().join(HookLedger::FILE_NAME), damaged).unwrap();
        assert_eq!(HookLedger::open(dir.path()).unwrap().finished(HookEvent::Commence), Epoch(0));
    }
}

#[test]
fn what_cannot_be_remembered_counts_as_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let mut ledger = HookLedger::open(&dir.path().join("gone")).unwrap();
    let error = ledger.record(HookEvent::Commence, Epoch(9)).unwrap_err().to_string();
    assert!(error.contains("hooks.finished") && error.contains("Try: "), "{error}");
    assert!(ledger.is_due(HookEvent::Commence, Epoch(9)));
}

//! Tests of the command line's definition; what the commands do is tested with a member (`tests/`).

use std::{ffi::OsString, path::Path, process::Command as Process};

use clap::{CommandFactory, Parser};

use super::{args::*, *};

fn parse(line: &[&str]) -> Result<Cli, clap::Error> {
    let args = std::iter::once("ringpair").chain(line.iter().copied()).map(OsString::from).collect();
    Cli::try_parse_from(original_switches(args))
}

#[test]
fn the_definition_is_sound_and_every_command_parses() {
    Cli::command().debug_assert();
    let lines = "run --force-backup --manual-switch-only --bootstrap|check|status|switch --immediate --yes --force --fenced|\
        sync|verify --deep|why|events --follow|mode auto|mode manual|divergence ls|divergence show 1-r2|\
        ds put /A --class C X=1 X+=2 --ack applied|ds put /A|ds get ${CONFIG}\\Users|ds rm /A --recursive|ds unset /A X Y|ds ls|ds ls /|\
        ds tree|ds watch|ds watch /A --from 65537:12|ds export /A|ds import -|ds digest|params ls|params get X|params set X -1|\
        mirror status|mirror ls|mirror exclude-test x|keys init --dir d --member A=a --member B=b|keys renew --dir d|keys show|\
        man|completions bash";
    for line in lines.split('|') {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(parse(&words).is_ok(), "{line}: {}", parse(&words).expect_err("bad"));
    }
}

#[test]
fn what_is_not_there_is_not_listed() {
    for missing in ["interactions ls", "publish x", "doctor", "divergence apply 1", "divergence rm 1"] {
        assert!(parse(&missing.split(' ').collect::<Vec<_>>()).is_err(), "{missing}");
    }
}

#[test]
fn bad_usage_is_refused() {
    let lines = [
        "",
        "nonsense",
        "mode off",
        "ds get relative",
        "ds get //",
        "ds put /A --ack soon",
        "ds watch --from x",
        "switch --fenced",
        "events --limit 0",
        "status --timeout -1",
        "status --timeout x",
        "keys init --dir d",
        "ds unset /A",
        "completions tcsh",
    ];
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let error = parse(&words).expect_err(line);
        assert!(error.use_stderr(), "{line}");
        assert_eq!(error.exit_code(), 2, "{line}");
    }
    assert_eq!(parse(&["--help"]).expect_err("help").exit_code(), 0);
}

#[test]
fn shared_options_stand_before_or_after() {
    for line in
        ["--json --socket /s --timeout 1.5 --set a.b=c status", "status --json --socket /s --timeout 1.5 --set a.b=c"]
    {
        let shared = parse(&line.split(' ').collect::<Vec<_>>()).expect("good").shared;
        assert!(shared.json);
        assert_eq!((shared.socket.as_deref(), shared.timeout), (Some(Path::new("/s")), Some(1.5)));
        assert_eq!(shared.overrides, ["a.b=c"]);
    }
}

// REQ: OPS-040, OPS-041
#[test]
fn the_originals_switches_are_known_whatever_their_case() {
    let Command::Run(run) = parse(&["run", "/FORCEBACKUP", "/ManualSwitchOnly"]).expect("good").command else {
        panic!("not run")
    };
    assert!(run.force_backup && run.manual_switch_only && !run.bootstrap);
    let Command::Switch(switch) = parse(&["switch", "/Immediate", "/Notifier"]).expect("good").command else {
        panic!("not switch")
    };
    assert!(switch.immediate && !switch.force);
    assert_eq!(parse(&["switch", "/?"]).expect_err("help").exit_code(), 0);
    assert!(parse(&["ds", "get", "/Immediate"]).is_ok(), "elsewhere it is a path");
}

#[test]
fn the_socket_is_given_or_configured_or_the_default() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("c.toml");
    let text = "[pair]\nname='p'\nmember='A'\n[members.A]\nname='a'\naddress='10.0.0.1'\n[members.B]\nname='b'\naddress='10.0.0.2'\n\
        [storage]\ndir='/var/lib/x'\n[api]\nsocket='/run/x.sock'\n";
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("a text");
    let of = |line: &[&str]| socket(&parse(line).expect("good").shared);
    assert_eq!(of(&["status", "--socket", "/s"]).expect("given"), Path::new("/s"));
    assert_eq!(of(&["status", "--config", file]).expect("configured"), Path::new("/run/x.sock"));
    assert_eq!(of(&["status", "--config", file, "--set", "api.socket=/y"]).expect("set"), Path::new("/y"));
    assert!(matches!(of(&["status", "--config", "/no/such"]), Err(CliError::Usage(_))));
    assert!(matches!(of(&["status", "--config", file, "--set", "api.sock=/y"]), Err(CliError::Usage(_))));
}

#[test]
fn nobody_there_is_exit_3() {
    let client = Client::new("/no/such/socket".into(), None);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let error = runtime.block_on(client.get("/v1/status")).expect_err("nobody");
    assert!(
        matches!(&error, CliError::Unreachable(text) if text.contains("/no/such/socket") && text.contains("Try")),
        "{error}"
    );
}

#[test]
fn columns_are_aligned() {
    let rows =
        [vec!["a".to_owned(), "b".into()], vec!["long".into(), String::new()], vec!["\u{fc}".into(), "c".into()]];
    assert_eq!(table(&rows), "a     b\nlong\n\u{fc}     c");
    assert_eq!(with_query("/x", &[None, Some("a=1".into()), Some("b".into())]), "/x?a=1&b");
    assert_eq!(with_query("/x", &[None]), "/x");
}

#[test]
fn the_systemd_unit_is_sound() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/systemd/verify");
    let run = Process::new(script).output().expect("the script runs");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
}

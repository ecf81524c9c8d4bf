//! Tests of the configuration: what is read, what is refused and in which words, and what the profiles derive.

use std::{path::Path, time::Duration};

use ringpair_wire::{
    dscp::Dscp,
    id::{AckLevel, MemberId},
};

use super::*;

const MINIMAL: &str = r#"
[pair]
name = "contact-center"
member = "A"
[members.A]
name = "icserver1"
address = "10.60.0.2:3633"
[members.B]
name = "icserver2"
address = "10.60.0.3:3633"
[storage]
dir = "/var/lib/ringpair-test"
"#;

fn parse(text: &str) -> Result<Config, Problems> {
    Config::parse(Path::new("test.toml"), text, &[], "some-host")
}

fn with(sets: &[&str]) -> Result<Config, Problems> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    Config::parse(Path::new("test.toml"), MINIMAL, &sets, "some-host")
}

#[test]
fn three_sections_suffice() {
    let config = parse(MINIMAL).expect("valid");
    assert_eq!(config.member, MemberId::A);
    assert_eq!(config.peer().address.to_string(), "10.60.0.3:3633");
    assert!(!config.own().has_aux());
    assert_eq!(config.transport.dscp, LaneDscp { ping: Dscp::AF41, ds: Dscp::AF31, bulk: Dscp::LE });
    assert_eq!(config.detection.heartbeat, Duration::from_millis(100));
    assert_eq!(config.ack, Ack { level: AckLevel::Durable, on_peer_loss: OnPeerLoss::Continue });
    assert_eq!((config.module, config.api.http, config.api.group), (None, None, None));
}

/// The example of interface §3, as it stands there but for files that this host lacks.
#[test]
fn the_whole_example_is_read() {
    let token = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token.path(), "0123456789abcdef0123\n").expect("written");
    let text = format!(
        r#"
[pair]
name   = "contact-center"
member = "A"
[members.A]
name    = "icserver1"
address = "10.60.0.2:3633"
aux     = "10.61.0.2:3633"
[members.B]
name    = "icserver2"
address = "10.60.0.3:3633"
[storage]
dir = "/var/lib/ringpair-test"
journal_max_bytes = 4294967296
[api]
socket = "/run/ringpair/ringpair.sock"
http   = "127.0.0.1:3634"
token_file = "{}"
group  = "ringpair"
[security]
mode = "mutual-tls"
dir  = "/etc/ringpair/keys"
[io]
driver = "auto"
without = ["zero_copy", "registered_files"]
[release]
version = "2021.1.3"
[mirror]
root = "/"
devices = "reject"
[module]
name  = "TsServer"
probe = "tcp://127.0.0.1:5060"
on_exit = "switch"
restart_grace_ms = 0
[detection]
profile = "fast"
heartbeat_ms = 100
misses = 4
fail_safe_start = "if-current"
[hooks]
commence     = "/etc/ringpair/commence"
discontinue  = "/etc/ringpair/discontinue"
timeout_s    = 10
on_failure   = "hold"
[transport]
dscp = {{ ping = "AF41", ds = "AF31", bulk = "LE" }}
congestion = {{ ds = "cubic", bulk = "cubic" }}
bulk_rate_bytes_per_s = 0
[batch]
max_bytes   = 65536
max_records = 4096
linger_us   = 0
[compression]
ds   = "auto"
bulk = "auto"
[ack]
level = "durable"
on_peer_loss = "continue"
[parameters]
"CustomMirrorDir"       = "+/srv/app/resources;/srv/app/tools"
"InitialMirrorDir"      = "+/srv/app/recordings"
"MirrorExceptions"      = "tmp;swp"
"#,
        token.path().display()
    );
    let config = parse(&text).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(config.own().has_aux());
    assert_eq!(config.release, "2021.1.3");
    assert_eq!(config.parameters.len(), 3);
    assert_eq!(config.transport.bulk_rate_bytes_per_s, None);
    let module = config.module.expect("a module");
    assert_eq!(module.probe, Probe::Tcp(Endpoint { host: "127.0.0.1".into(), port: 5060 }));
}

/// One bad value each: the message names key, value, range or form, and what to try.
#[test]
fn every_error_names_key_value_range_and_what_to_try() {
    let table: &[(&str, &str, &str)] = &[
        ("pair.nam=x", "pair.nam", "pair.name, or remove it"),
        ("detection.heartbeat=100", "detection.heartbeat = 100", "detection.heartbeat_ms"),
        ("nonsense.key=1", "nonsense.key = 1", "not a key"),
        ("detection.heartbeat_ms=5", "detection.heartbeat_ms = 5", "from 20 to 10000"),
        ("detection.heartbeat_ms=fast", "\"fast\"", "whole number from 20 to 10000. Try: 100"),
        ("detection.misses=1", "detection.misses = 1", "from 2 to 100. Try: 4"),
        ("detection.profile=slow", "\"slow\"", "one of fast, classic, wan"),
        ("detection.fail_safe_start=if-curent", "\"if-curent\"", "Try: \"if-current\""),
        ("storage.journal_max_bytes=1000", "1000", "from 67108864 to"),
        ("storage.dir=relative", "\"relative\"", "absolute path"),
        ("storage.dir=/var/../etc", "/var/../etc", "without '..'"),
        ("members.A.address=10.0.0.1:0", "members.A.address = \"10.0.0.1:0\"", "HOST:PORT"),
        ("members.A.address=10.0.0.1:99999", "10.0.0.1:99999", "HOST:PORT"),
        ("members.B.address=[fd00::1", "[fd00::1", "[ADDRESS]:PORT"),
        ("members.A.aux=10.60.0.2:3633", "members.A.aux", "same as address"),
        // REQ: PAR-016
        ("members.B.name=icserver1", "members.B.name = \"icserver1\"", "same as members.A.name"),
        ("members.B.address=10.60.0.2", "members.A.address", "address of members.B as well"),
        ("members.C.name=x", "members.C", "exactly A and B"),
        ("pair.member=C", "pair.member = \"C\"", "\"A\" (icserver1) or \"B\" (icserver2)"),
        ("api.http=localhost", "api.http = \"localhost\"", "address with a port"),
        ("security.mode=none", "\"none\"", "mutual-tls, off"),
        ("io.driver=uring", "\"uring\"", "auto, io_uring, plain. Try: \"io_uring\""),
        ("io.without=[\"zero\"]", "[\"zero\"]", "a list of zero_copy, defer_taskrun, registered_buffers"),
        ("io.without=zero_copy", "\"zero_copy\"", "Try: [\"zero_copy\"]"),
        ("mirror.devices=keep", "\"keep\"", "reject, recreate"),
        ("module.probe=ftp://x", "\"ftp://x\"", "tcp:// http:// unix:"),
        ("module.probe=unix:relative", "unix:relative", "absolute path"),
        ("module.name=X", "module.probe", "required in [module]"),
        ("hooks.timeout_s=0", "hooks.timeout_s = 0", "from 1 to 3600"),
        ("hooks.on_failure=retry", "\"retry\"", "hold, promote"),
        ("hooks.commence=commence", "\"commence\"", "absolute path"),
        ("transport.dscp.ping=AF44", "\"AF44\"", "number from 0 to 63. Try: \"AF41\""),
        ("transport.dscp.ds=64", "transport.dscp.ds = 64", "number from 0 to 63. Try: \"AF31\""),
        ("transport.dscp.bulkk=LE", "transport.dscp.bulkk", "transport.dscp.bulk, or remove it"),
        ("transport.congestion.ds=a b", "\"a b\"", "congestion control"),
        ("transport.bulk_rate_bytes_per_s=-1", "-1", "from 0 to"),
        ("batch.max_bytes=1", "batch.max_bytes = 1", "from 4096 to 1048576"),
        ("batch.max_bytes=1048577", "batch.max_bytes = 1048577", "from 4096 to 1048576"),
        ("batch.max_records=65537", "batch.max_records = 65537", "from 1 to 65536"),
        ("compression.bulk=0", "compression.bulk = 0", "level from 1 to 19"),
        ("compression.bulk=fast", "compression.bulk = \"fast\"", "level from 1 to 19"),
        ("batch.max_records=0", "batch.max_records = 0", "from 1 to 65536"),
        ("batch.linger_us=1000000", "1000000", "from 0 to 100000"),
        ("compression.ds=20", "compression.ds = 20", "level from 1 to 19"),
        ("ack.level=sync", "\"sync\"", "async, local, received, durable, applied"),
        ("ack.on_peer_loss=stop", "\"stop\"", "continue, block"),
        ("release.file=/no/such/file", "\"/no/such/file\"", "cannot be read"),
        ("parameters.CustomMirorDir=+/x", "CustomMirorDir", "CustomMirrorDir"),
        ("parameters.\"Switchover TS Timeout\"=61", "Switchover TS Timeout", "60"),
        ("storage=1", "storage", "Try"),
        ("noequals", "--set = noequals", "no '='"),
        ("nosection=1", "--set", "names no key of a section"),
    ];
    for (set, named, range) in table {
        let problems = with(&[set]).expect_err(set);
        let text = problems.to_string();
        assert!(text.contains(named), "{set}: {text:?} does not name {named:?}");
        assert!(text.contains(range), "{set}: {text:?} does not say {range:?}");
        assert!(text.contains(". Try: "), "{set}: {text:?} says not what to try");
    }
}

#[test]
fn all_problems_are_reported_together() {
    let text = r#"
[pair]
member = "A"
colour = "blue"
[members.A]
address = "10.60.0.2:3633"
[members.B]
name = "icserver2"
[storage]
journal_max_bytes = "much"
[detection]
misses = 1000
[batch]
max_bytes = true
"#;
    let problems = parse(text).expect_err("invalid");
    let keys: Vec<&str> = problems.list.iter().map(|problem| problem.key.as_str()).collect();
    for key in [
        "pair.name",
        "members.A.name",
        "members.B.address",
        "storage.dir",
        "storage.journal_max_bytes",
        "detection.misses",
        "batch.max_bytes",
        "pair.colour",
    ] {
        assert!(keys.contains(&key), "{key} is not in {keys:?}");
    }
    assert_eq!(keys.len(), 8, "nothing is reported twice: {keys:?}");
    assert!(problems.to_string().starts_with("test.toml: 8 problems"));
}

#[test]
fn what_is_not_toml_is_said_with_its_line() {
    let problems = parse("[pair]\nname = \n").expect_err("invalid");
    assert!(problems.list[0].key.contains("line 2"), "{problems}");
    assert!(
        Config::load(Path::new("/no/such/file.toml"), &[]).expect_err("none").to_string().contains("RINGPAIR_CONFIG")
    );
}

#[test]
fn set_overrides_with_toml_values_or_bare_text() {
    let config = with(&[
        "detection.misses=7",
        "pair.member=B",
        "release.version=1.2",
        "members.B.name=\"quoted\"",
        "compression.ds=off",
        "compression.bulk=3",
        "transport.dscp.ping=46",
        "parameters.MirrorExceptions=tmp;swp",
        "parameters.\"Switchover TS Timeout\" = 20",
    ])
    .unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.detection.misses, 7);
    assert_eq!(config.member, MemberId::B);
    assert_eq!(config.release, "1.2", "a number where a text is wanted is taken as written");
    assert_eq!(config.own().name, "quoted");
    assert_eq!(config.compression, Compression { ds: CompressionLevel::Off, bulk: CompressionLevel::Level(3) });
    assert_eq!(config.transport.dscp.ping.number(), 46);
    let parameter = |name: &str| config.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!(parameter("MirrorExceptions"), Some("tmp;swp"));
    assert_eq!(parameter("Switchover TS Timeout"), Some("20"));
}

// REQ: SM-055
#[test]
fn the_member_is_found_by_the_hosts_name() {
    let text = MINIMAL.replace("member = \"A\"\n", "");
    let on = |host| Config::parse(Path::new("t"), &text, &[], host).map(|config| config.member);
    assert_eq!(on("icserver2"), Ok(MemberId::B));
    assert_eq!(on("ICSERVER1.example.org"), Ok(MemberId::A));
    let error = on("elsewhere").expect_err("neither").to_string();
    for named in ["elsewhere", "icserver1", "icserver2"] {
        assert!(error.contains(named), "{error}");
    }
    assert_eq!(with(&["pair.member=icserver2"]).map(|config| config.member), Ok(MemberId::B));
}

// REQ: PAR-106
#[test]
fn endpoints_have_a_port() {
    let table = [
        ("10.0.0.1", "10.0.0.1:3633"),
        ("10.0.0.1:1", "10.0.0.1:1"),
        ("icserver1", "icserver1:3633"),
        ("fd00::1", "[fd00::1]:3633"),
        ("[fd00::1]", "[fd00::1]:3633"),
        ("[FD00:0::1]:99", "[fd00::1]:99"),
    ];
    for (text, expected) in table {
        assert_eq!(super::parse::endpoint(text).map(|end| end.to_string()), Ok(expected.to_owned()), "{text}");
    }
    for bad in ["", ":1", "a b", "host:", "host:x", "[host]:1", "a/b", "[fd00::1]x:1"] {
        assert!(super::parse::endpoint(bad).is_err(), "{bad:?}");
    }
    let end = super::parse::endpoint("127.0.0.1:5").expect("good").resolve().expect("an address");
    assert_eq!(end.to_string(), "127.0.0.1:5");
}

// REQ: OPS-094
#[test]
fn storage_and_keys_lie_outside_mirrored_directories() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, link) = (dir.path().join("data"), dir.path().join("link"));
    std::fs::create_dir_all(data.join("state")).expect("made");
    std::os::unix::fs::symlink(&data, &link).expect("linked");
    let at = |path: &Path| path.display().to_string();
    let storage = |path: &Path| format!("storage.dir={}", at(path));
    let mirror = |path: &Path| format!("parameters.CustomMirrorDir=+{}", at(path));
    let refused = [
        (data.join("state"), data.clone()),
        (data.clone(), data.clone()),
        (data.clone(), data.join("state")),
        (link.join("state"), data.clone()),
        (data.join("not/yet/there"), link.clone()),
    ];
    for (inside, mirrored) in &refused {
        let error = with(&[&storage(inside), &mirror(mirrored)]).expect_err("inside").to_string();
        assert!(error.contains("storage.dir") && error.contains("CustomMirrorDir"), "{error}");
    }
    assert!(
        with(&[&storage(&dir.path().join("database")), &mirror(&data)]).is_ok(),
        "a name that only begins the same"
    );
    let keys = format!("security.dir={}", at(&data.join("keys")));
    let error = with(&[&keys, &mirror(&data)]).expect_err("inside").to_string();
    assert!(error.contains("security.dir") && error.contains("keys do not travel"), "{error}");
    assert!(with(&[&keys, &mirror(&data), "security.mode=off"]).is_ok());
}

#[test]
fn http_needs_a_token() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    let key = format!("api.token_file={}", file.display());
    let error = with(&["api.http=127.0.0.1:3634", &key]).expect_err("no file").to_string();
    assert!(error.contains("api.token_file") && error.contains("api.http"), "{error}");
    std::fs::write(&file, "short").expect("written");
    assert!(with(&["api.http=127.0.0.1:3634", &key]).expect_err("short").to_string().contains("16 to 4096"));
    std::fs::write(&file, "long-enough-0123456789\n").expect("written");
    let config = with(&["api.http=[::1]:3634", &key]).expect("valid");
    assert_eq!(config.api.token_file.as_deref(), Some(file.as_path()));
    let without = with(&["api.token_file=/no/such"]).expect("not read where http is not set");
    assert_eq!(without.api.token_file, None);
}

#[test]
fn a_release_comes_from_a_file_or_a_version() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "2021.1.3 \nmore\n").expect("written");
    let key = format!("release.file={}", file.path().display());
    assert_eq!(with(&[&key]).expect("valid").release, "2021.1.3");
    assert!(with(&[&key, "release.version=2"]).expect_err("both").to_string().contains("contradicts"));
}

#[test]
fn probes() {
    let probe = |text: &str| with(&[&format!("module.probe={text}")]).map(|config| config.module.map(|m| m.probe));
    assert_eq!(probe("http://127.0.0.1:80/x"), Ok(Some(Probe::Http("http://127.0.0.1:80/x".into()))));
    assert_eq!(probe("unix:/run/x"), Ok(Some(Probe::Unix("/run/x".into()))));
    assert_eq!(probe("exec:/bin/true -x"), Ok(Some(Probe::Exec("/bin/true -x".into()))));
    assert_eq!(probe("pidfile:/run/x.pid"), Ok(Some(Probe::PidFile("/run/x.pid".into()))));
    assert_eq!(probe("systemd:x.service"), Ok(Some(Probe::Systemd("x.service".into()))));
    let module = with(&["module.probe=systemd:x.service"]).expect("valid").module.expect("a module");
    assert_eq!((module.name.as_str(), module.on_exit), ("TsServer", OnExit::Switch));
}

fn derived(profile: &str, explicit: &[(u16, i64)]) -> Timing {
    let config = with(&[&format!("detection.profile={profile}")]).expect("valid");
    timing(&config.detection, |number| explicit.iter().find(|(n, _)| *n == number).map(|(_, value)| *value))
}

// REQ: PAR-031, PAR-032, PAR-040, PAR-041, PAR-042, PAR-043, PAR-044, PAR-045, PAR-049, PAR-050, PAR-051
#[test]
fn fast_follows_from_h_and_k() {
    let ms = Duration::from_millis;
    let t = derived("fast", &[]);
    assert_eq!((t.heartbeat, t.misses, t.lease, t.margin), (ms(100), 4, Some(ms(400)), ms(50)));
    let h = [t.module_timeout, t.primary_ping_delay, t.unreachable_delay, t.echo_timeout];
    assert_eq!(h, [ms(100); 4], "PAR-031, PAR-041, PAR-045, PAR-049 = H");
    assert_eq!(t.primary_timeout, ms(200), "PAR-040 = K·H/2");
    assert_eq!((t.module_retry_delay, t.primary_retry_delay), (ms(0), ms(0)), "PAR-032, PAR-042");
    assert_eq!(t.unreachable_sets, Some(3), "PAR-044 = 0 means three sets");
    assert_eq!(t.primary_retry_count, 1, "PAR-043");
    assert_eq!((t.reconnect_delay, t.reconnect_timeout), (ms(50), ms(300)), "PAR-050 = H/2, PAR-051 = 3·H");
    assert!(!t.module_ping_on_aux && !t.net_test_wanted);
    let t = derived("fast", &[(31, 10), (51, 0), (44, -1), (43, 5), (39, 1)]);
    assert_eq!(
        (t.module_timeout, t.primary_timeout),
        (ms(10_000), ms(200)),
        "what is set holds, the rest follows H and K"
    );
    assert_eq!((t.reconnect_timeout, t.unreachable_sets, t.primary_retry_count), (ms(0), None, 5));
    assert!(t.module_ping_on_aux);
    assert_eq!(derived("fast", &[(31, 10), (40, 0)]).primary_timeout, ms(5000), "0 set explicitly: half of PAR-031");
}

// REQ: PAR-005, SM-280
#[test]
fn classic_is_the_originals_timing() {
    let s = Duration::from_secs;
    let t = derived("classic", &[]);
    assert_eq!((t.module_timeout, t.module_retry_delay, t.module_max_failures), (s(10), s(1), 2));
    assert_eq!((t.primary_timeout, t.primary_ping_delay, t.primary_retry_count), (s(5), s(0), 2));
    assert_eq!((t.unreachable_sets, t.unreachable_delay, t.echo_timeout), (Some(3), s(10), s(1)));
    assert_eq!((t.reconnect_delay, t.reconnect_timeout), (s(5), s(30)));
    assert_eq!(t.lease, Some(s(5)), "L = PAR-040");
    assert_eq!(derived("classic", &[(31, 20)]).primary_timeout, s(10));
    assert_eq!(derived("classic", &[(51, 4)]).lease, None, "PAR-051 below L: there is none");
    assert_eq!(derived("classic", &[(44, 5)]).unreachable_sets, Some(5));
}

// REQ: OPS-191
#[test]
fn wan_is_patient() {
    let s = Duration::from_secs;
    let t = derived("wan", &[]);
    assert_eq!((t.heartbeat, t.misses, t.lease), (s(1), 10, Some(s(10))));
    assert_eq!((t.module_timeout, t.module_retry_delay, t.reconnect_timeout), (s(10), s(1), s(30)));
    assert!(t.module_ping_on_aux && t.net_test_wanted);
}

#[test]
fn any_text_is_an_answer_and_never_a_panic() {
    let mut seed = 1_u64;
    for _ in 0..2000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut text = MINIMAL.as_bytes().to_vec();
        let at = (seed >> 33) as usize % text.len();
        text[at] = (seed >> 20) as u8 & 0x7f;
        let cut = text.len() - (seed >> 50) as usize % 8;
        let _ = parse(&String::from_utf8_lossy(&text[..cut]));
    }
}

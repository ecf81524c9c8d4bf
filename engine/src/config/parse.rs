//! From a TOML document to a [`Config`]: sections in the order of interface §3, then contradictions between keys.
//!
//! Always holds: every section is looked at, whatever was wrong before it.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use ringpair_wire::{
    dscp::Dscp,
    id::{AckLevel, MemberId},
};
use toml::Value;

use crate::{ds::params, ring::Feature};

use super::{
    defaults,
    problem::{Problems, nearest},
    reader::Reader,
    types::*,
};

/// Parameters that name mirrored directories: PAR-063, PAR-064, PAR-066, PAR-067, PAR-068.
const DIRECTORY_PARAMETERS: [u16; 5] = [63, 64, 66, 67, 68];

/// This host's name.
#[must_use]
pub fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Checks a whole document.
pub(super) fn parse(source: &Path, text: &str, overrides: &[String], host: &str) -> Result<Config, Problems> {
    let mut reader = Reader::new(text, overrides);
    let r = &mut reader;
    let pair = r.required_text("pair.name", "name = \"contact-center\"");
    let wanted = r.text("pair.member", "member = \"A\", or the name of one of [members]");
    let members = members(r);
    let member = which_member(r, wanted, &members, host);
    let config = Config {
        source: source.to_owned(),
        pair,
        member,
        members,
        storage: storage(r),
        api: api(r),
        security: security(r),
        driver: r.choice(
            "io.driver",
            &[("auto", IoDriver::Auto), ("io_uring", IoDriver::IoUring), ("plain", IoDriver::Plain)],
            IoDriver::Auto,
        ),
        io_without: r.choices("io.without", &Feature::NAMED),
        release: release(r),
        mirror: mirror(r),
        module: module(r),
        detection: detection(r),
        hooks: hooks(r),
        transport: transport(r),
        batch: batch(r),
        compression: Compression { ds: level(r, "compression.ds"), bulk: level(r, "compression.bulk") },
        ack: ack(r),
        parameters: parameters(r),
    };
    contradictions(r, &config);
    let list = reader.finish();
    if list.is_empty() { Ok(config) } else { Err(Problems { source_file: source.to_owned(), list }) }
}

fn members(r: &mut Reader) -> Members {
    let others: Vec<String> = r.keys("members").into_iter().filter(|key| key != "A" && key != "B").collect();
    for other in others {
        let key = format!("members.{other}");
        let value = r.take(&key).map(|_| String::new()).unwrap_or_default();
        r.problem(&key, &value, "is no member: a pair has exactly A and B", "[members.A] and [members.B]");
    }
    Members { a: one_member(r, "A", "icserver1", "10.60.0.2"), b: one_member(r, "B", "icserver2", "10.60.0.3") }
}

fn one_member(r: &mut Reader, id: &str, name: &str, address: &str) -> Member {
    let name = r.required_text(&format!("members.{id}.name"), &format!("name = \"{name}\""));
    let hint = format!("\"{address}:{}\"", defaults::PORT);
    let key = format!("members.{id}.address");
    let missing = !r.has(&key);
    let address = r.parsed(&key, &hint, endpoint);
    if missing {
        r.problem(&key, "", "is required and missing", &hint);
    }
    let address = address.unwrap_or(Endpoint { host: "localhost".into(), port: defaults::PORT });
    let aux = r.parsed(&format!("members.{id}.aux"), &hint, endpoint).unwrap_or_else(|| address.clone());
    Member { name, address, aux }
}

/// Which of the two this host is: by `pair.member` (A, B, or a name), else by the host's name (SM-055).
fn which_member(r: &mut Reader, wanted: Option<String>, members: &Members, host: &str) -> MemberId {
    let short = host.split('.').next().unwrap_or(host);
    let named =
        |name: &str| [MemberId::A, MemberId::B].into_iter().find(|id| members.get(*id).name.eq_ignore_ascii_case(name));
    let names = format!("\"A\" ({}) or \"B\" ({})", members.a.name, members.b.name);
    match wanted.as_deref() {
        Some("A") => MemberId::A,
        Some("B") => MemberId::B,
        Some(other) => named(other).unwrap_or_else(|| {
            r.problem("pair.member", &format!("\"{other}\""), "is not in [members]", &names);
            MemberId::A
        }),
        None => named(host).or_else(|| named(short)).unwrap_or_else(|| {
            let expected = format!("is missing, and this host's name {host:?} is neither member's");
            r.problem("pair.member", "", &expected, &names);
            MemberId::A
        }),
    }
}

fn storage(r: &mut Reader) -> Storage {
    let missing = !r.has("storage.dir");
    let dir = r.path("storage.dir", "/var/lib/ringpair");
    if missing {
        r.problem("storage.dir", "", "is required and missing", "dir = \"/var/lib/ringpair\"");
    }
    let journal_max_bytes =
        r.number("storage.journal_max_bytes", defaults::JOURNAL_MAX_BYTES, defaults::JOURNAL_MAX_BYTES_RANGE);
    Storage { dir: dir.unwrap_or_default(), journal_max_bytes }
}

fn api(r: &mut Reader) -> Api {
    let socket = r.path("api.socket", defaults::SOCKET).unwrap_or_else(|| defaults::SOCKET.into());
    // sockaddr_un holds 108 bytes with the closing NUL.
    if socket.as_os_str().len() > 107 {
        let value = format!("\"{}\"", socket.display());
        r.problem("api.socket", &value, "must be at most 107 bytes long", &format!("\"{}\"", defaults::SOCKET));
    }
    let http = r.parsed("api.http", "\"127.0.0.1:3634\"", |text| {
        text.parse::<SocketAddr>()
            .ok()
            .filter(|address| address.port() != 0)
            .ok_or("must be an address with a port, IPv6 in brackets")
    });
    let token_file = r.path("api.token_file", defaults::TOKEN_FILE);
    // Without TCP nobody reads it.
    let token_file = http.map(|_| token_file.unwrap_or_else(|| PathBuf::from(defaults::TOKEN_FILE)));
    if let Some(file) = &token_file
        && let Err(why) = read_token(file)
    {
        let hint = format!("head -c 32 /dev/urandom | base64 >{}, mode 0600; or remove api.http", file.display());
        r.problem("api.token_file", &format!("\"{}\"", file.display()), &why, &hint);
    }
    Api { socket, http, token_file, group: r.text("api.group", "\"ringpair\"") }
}

/// The token in `file`: one line of 16 to 4096 visible characters.
///
/// # Errors
/// Says why there is none, in words that follow a key's name.
pub fn read_token(file: &Path) -> Result<String, String> {
    use std::io::Read;
    let mut text = String::new();
    fs::File::open(file)
        .and_then(|file| file.take(8192).read_to_string(&mut text))
        .map_err(|error| format!("cannot be read, and api.http needs it: {error}"))?;
    let token = text.trim();
    if (16..=4096).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token.to_owned());
    }
    Err("must hold one line of 16 to 4096 visible characters".into())
}

fn security(r: &mut Reader) -> Security {
    let mode = r.choice(
        "security.mode",
        &[("mutual-tls", SecurityMode::MutualTls), ("off", SecurityMode::Off)],
        SecurityMode::MutualTls,
    );
    let dir = r.path("security.dir", defaults::KEYS_DIR).unwrap_or_else(|| defaults::KEYS_DIR.into());
    Security { mode, dir }
}

/// `release.version`, or the first line of `release.file`.
fn release(r: &mut Reader) -> String {
    let version = r.text("release.version", "\"2021.1.3\"");
    let file = r.path("release.file", "/opt/app/VERSION");
    let hint = "keep one of the two";
    let (version, file) = match (version, file) {
        (Some(version), Some(_)) => {
            r.problem("release.file", "", "contradicts release.version: only one may be set", hint);
            (Some(version), None)
        }
        other => other,
    };
    let Some(file) = file else { return version.unwrap_or_default() };
    match fs::read_to_string(&file) {
        Ok(text) if text.len() <= 4096 => text.lines().next().unwrap_or_default().trim().to_owned(),
        Ok(_) => {
            let value = format!("\"{}\"", file.display());
            r.problem("release.file", &value, "is longer than 4096 bytes", "a file with the release on its first line");
            String::new()
        }
        Err(error) => {
            let value = format!("\"{}\"", file.display());
            r.problem("release.file", &value, &format!("cannot be read: {error}"), "release.version = \"2021.1.3\"");
            String::new()
        }
    }
}

fn mirror(r: &mut Reader) -> Mirror {
    let root = r.path("mirror.root", "/").unwrap_or_else(|| "/".into());
    let devices = [("reject", Devices::Reject), ("recreate", Devices::Recreate)];
    Mirror { root, devices: r.choice("mirror.devices", &devices, Devices::Reject) }
}

fn module(r: &mut Reader) -> Option<Module> {
    let given = !r.keys("module").is_empty();
    let name = r.text("module.name", "\"TsServer\"").unwrap_or_else(|| defaults::MODULE_NAME.into());
    let hint = "\"tcp://127.0.0.1:5060\"";
    let missing = given && !r.has("module.probe");
    let probe = r.parsed("module.probe", hint, probe);
    if missing {
        r.problem("module.probe", "", "is required in [module] and missing", hint);
    }
    let on_exit = r.choice("module.on_exit", &[("switch", OnExit::Switch), ("wait", OnExit::Wait)], OnExit::Switch);
    let grace = r.number("module.restart_grace_ms", defaults::RESTART_GRACE_MS, defaults::RESTART_GRACE_MS_RANGE);
    Some(Module { name, probe: probe?, on_exit, restart_grace: Duration::from_millis(grace) })
}

/// Reads `tcp://HOST:PORT`, `http://…`, `unix:PATH`, `exec:COMMAND`, `pidfile:PATH`, `systemd:UNIT`.
fn probe(text: &str) -> Result<Probe, String> {
    let absolute = |path: &str| {
        Some(PathBuf::from(path))
            .filter(|path| path.is_absolute())
            .ok_or(format!("needs an absolute path, not {path:?}"))
    };
    if let Some(rest) = text.strip_prefix("tcp://") {
        return endpoint(rest).map(Probe::Tcp);
    }
    if text.strip_prefix("http://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/')) {
        return Ok(Probe::Http(text.to_owned()));
    }
    match text.split_once(':') {
        Some(("unix", path)) => absolute(path).map(Probe::Unix),
        Some(("pidfile", path)) => absolute(path).map(Probe::PidFile),
        Some(("exec", command)) if !command.trim().is_empty() => Ok(Probe::Exec(command.trim().to_owned())),
        Some(("systemd", unit)) if !unit.is_empty() && !unit.contains(char::is_whitespace) => {
            Ok(Probe::Systemd(unit.to_owned()))
        }
        _ => Err("must begin with tcp:// http:// unix: exec: pidfile: or systemd: and name something".into()),
    }
}

fn detection(r: &mut Reader) -> Detection {
    let profiles = [("fast", Profile::Fast), ("classic", Profile::Classic), ("wan", Profile::Wan)];
    let profile = r.choice("detection.profile", &profiles, Profile::Fast);
    let (heartbeat_ms, misses) = match profile {
        Profile::Fast => (defaults::HEARTBEAT_MS, defaults::MISSES),
        Profile::Classic => (defaults::HEARTBEAT_SLOW_MS, defaults::MISSES_CLASSIC),
        Profile::Wan => (defaults::HEARTBEAT_SLOW_MS, defaults::MISSES_WAN),
    };
    let heartbeat_ms = r.number("detection.heartbeat_ms", heartbeat_ms, defaults::HEARTBEAT_MS_RANGE);
    let misses = r.number("detection.misses", misses, defaults::MISSES_RANGE);
    let starts =
        [("if-current", FailSafeStart::IfCurrent), ("always", FailSafeStart::Always), ("never", FailSafeStart::Never)];
    Detection {
        profile,
        heartbeat: Duration::from_millis(heartbeat_ms),
        misses: u32::try_from(misses).unwrap_or(u32::MAX),
        fail_safe_start: r.choice("detection.fail_safe_start", &starts, FailSafeStart::IfCurrent),
    }
}

fn hooks(r: &mut Reader) -> Hooks {
    Hooks {
        commence: r.path("hooks.commence", "/etc/ringpair/commence"),
        discontinue: r.path("hooks.discontinue", "/etc/ringpair/discontinue"),
        timeout: Duration::from_secs(r.number(
            "hooks.timeout_s",
            defaults::HOOK_TIMEOUT_S,
            defaults::HOOK_TIMEOUT_S_RANGE,
        )),
        on_failure: r.choice(
            "hooks.on_failure",
            &[("hold", OnHookFailure::Hold), ("promote", OnHookFailure::Promote)],
            OnHookFailure::Hold,
        ),
    }
}

fn transport(r: &mut Reader) -> Transport {
    let dscp = LaneDscp {
        ping: dscp(r, "transport.dscp.ping", defaults::DSCP_PING),
        ds: dscp(r, "transport.dscp.ds", defaults::DSCP_DS),
        bulk: dscp(r, "transport.dscp.bulk", defaults::DSCP_BULK),
    };
    let congestion = LaneCongestion {
        ds: congestion(r, "transport.congestion.ds"),
        bulk: congestion(r, "transport.congestion.bulk"),
    };
    let rate = r.number("transport.bulk_rate_bytes_per_s", 0, defaults::BULK_RATE_RANGE);
    Transport { dscp, congestion, bulk_rate_bytes_per_s: Some(rate).filter(|rate| *rate > 0) }
}

/// A class name or a number from 0 to 63, with or without quotes (PAR-054).
fn dscp(r: &mut Reader, key: &str, default: Dscp) -> Dscp {
    let Some(value) = r.take(key) else { return default };
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.parse().unwrap_or_else(|_| {
        let expected = "must be a class (CS0 to CS7, AF11 to AF43, EF, VA, LE) or a number from 0 to 63";
        r.problem(key, &value.to_string(), expected, &format!("\"{default}\""));
        default
    })
}

fn congestion(r: &mut Reader, key: &str) -> String {
    r.parsed(key, "\"cubic\", or one of /proc/sys/net/ipv4/tcp_available_congestion_control", |text| {
        // TCP_CA_NAME_MAX is 16 with the closing NUL.
        let named = text.len() < 16 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if named { Ok(text.to_owned()) } else { Err("must be the name of a congestion control") }
    })
    .unwrap_or_else(|| defaults::CONGESTION.into())
}

fn batch(r: &mut Reader) -> Batch {
    let max_bytes = r.number("batch.max_bytes", defaults::BATCH_MAX_BYTES, defaults::BATCH_MAX_BYTES_RANGE);
    let max_records = r.number("batch.max_records", defaults::BATCH_MAX_RECORDS, defaults::BATCH_MAX_RECORDS_RANGE);
    let linger = r.number("batch.linger_us", defaults::BATCH_LINGER_US, defaults::BATCH_LINGER_US_RANGE);
    let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Batch { max_bytes: small(max_bytes), max_records: small(max_records), linger: Duration::from_micros(linger) }
}

fn level(r: &mut Reader, key: &str) -> CompressionLevel {
    let value = match r.take(key) {
        None => return CompressionLevel::Auto,
        Some(value) => value,
    };
    let number = value.as_integer().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    match (value.as_str(), number.and_then(|number| u8::try_from(number).ok())) {
        (Some("off"), _) => CompressionLevel::Off,
        (Some("auto"), _) => CompressionLevel::Auto,
        (_, Some(level @ 1..=19)) => CompressionLevel::Level(level),
        _ => {
            r.problem(key, &value.to_string(), "must be \"off\", \"auto\" or a level from 1 to 19", "\"auto\"");
            CompressionLevel::Auto
        }
    }
}

fn ack(r: &mut Reader) -> Ack {
    let levels = [AckLevel::Async, AckLevel::Local, AckLevel::Received, AckLevel::Durable, AckLevel::Applied];
    let level = r.choice("ack.level", &levels.map(|level| (level.name(), level)), AckLevel::Durable);
    let losses = [("continue", OnPeerLoss::Continue), ("block", OnPeerLoss::Block)];
    Ack { level, on_peer_loss: r.choice("ack.on_peer_loss", &losses, OnPeerLoss::Continue) }
}

/// `[parameters]`: free names; numbers and switches may stand without quotes.
fn parameters(r: &mut Reader) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    for (name, value) in r.free_section("parameters") {
        let text = match value {
            Value::String(text) => text,
            Value::Integer(number) => number.to_string(),
            Value::Boolean(true) => "Yes".into(),
            Value::Boolean(false) => "No".into(),
            other => {
                let key = format!("parameters.{name:?}");
                r.problem(&key, &other.to_string(), "must be a text, a whole number or a switch", "\"value\"");
                continue;
            }
        };
        check_parameter(r, &name, &text);
        parameters.push((name, text));
    }
    parameters
}

/// A parameter given here is checked as one given to `params set`; a withdrawn one is no error (PAR-110).
fn check_parameter(r: &mut Reader, name: &str, text: &str) {
    let key = format!("parameters.{name:?}");
    match params::find(name) {
        Ok(spec) => {
            if let Err(error) = params::value::parse(spec, text) {
                r.problem(&key, &format!("{text:?}"), &error.expected, &error.hint);
            }
        }
        Err(params::ParamError::Unknown { near, .. }) => {
            let near = nearest(name, params::registry::ALL.iter().map(|spec| spec.name)).unwrap_or(&near);
            r.problem(&key, &format!("{text:?}"), "is not a parameter that ringpair knows", near);
        }
        Err(_) => {}
    }
}

/// Reads `HOST`, `HOST:PORT`, `ADDRESS:PORT`, `[ADDRESS]:PORT`.
pub(super) fn endpoint(text: &str) -> Result<Endpoint, String> {
    let bad = || format!("must be HOST:PORT, IPv6 as [ADDRESS]:PORT (port {} where none is given)", defaults::PORT);
    let bare = text.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(Endpoint { host: address.to_string(), port: defaults::PORT });
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(bad)?),
        None => (text, defaults::PORT),
    };
    let host = match host.strip_prefix('[') {
        Some(inner) => {
            let inner = inner.strip_suffix(']').ok_or_else(bad)?;
            inner.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?.to_string()
        }
        None => host.to_owned(),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let known = host.contains(':') || host.chars().all(is_name);
    if host.is_empty() || host.len() > 253 || !known { Err(bad()) } else { Ok(Endpoint { host, port }) }
}

/// What contradicts itself between keys.
fn contradictions(r: &mut Reader, config: &Config) {
    let members = &config.members;
    if !members.a.name.is_empty() && members.a.name.eq_ignore_ascii_case(&members.b.name) {
        let value = format!("\"{}\"", members.b.name);
        r.problem("members.B.name", &value, "is the same as members.A.name (PAR-016)", "each host's own name");
    }
    let ends = [("members.A.aux", &members.a.aux, &members.b), ("members.A.address", &members.a.address, &members.b)];
    for (key, end, other) in ends {
        if (*end == other.address || *end == other.aux) && (members.a.has_aux() || key.ends_with("address")) {
            let expected = "is the address of members.B as well: two members never share one";
            r.problem(key, &format!("\"{end}\""), expected, "an address and port of its own for each member");
        }
    }
    for (id, member) in [("A", &members.a), ("B", &members.b)] {
        if r.was_given(&format!("members.{id}.aux")) && !member.has_aux() {
            let (key, value) = (format!("members.{id}.aux"), format!("\"{}\"", member.aux));
            let hint = "remove it, or name the second network's address";
            r.problem(&key, &value, "is the same as address: it would not survive what address does not", hint);
        }
    }
    for (name, value) in &config.parameters {
        let listed = params::find(name).is_ok_and(|spec| DIRECTORY_PARAMETERS.contains(&spec.id.0));
        for directory in params::value::parse_directories(value).iter().filter(|_| listed) {
            inside_mirror(r, config, name, &directory.path);
        }
    }
}

/// Storage and keys never lie inside a mirrored directory, and no mirrored directory inside storage (OPS-094).
fn inside_mirror(r: &mut Reader, config: &Config, name: &str, directory: &str) {
    // Drive paths (PAR-010) are mapped elsewhere; they cannot name storage.
    if !directory.starts_with('/') {
        return;
    }
    let mirrored = real(&config.mirror.root.join(directory.trim_start_matches('/')));
    let storage = real(&config.storage.dir);
    let (value, parameter) = (format!("\"{}\"", config.storage.dir.display()), format!("{name} {directory:?}"));
    if !config.storage.dir.as_os_str().is_empty() && (storage.starts_with(&mirrored) || mirrored.starts_with(&storage))
    {
        let expected = format!("must lie outside every mirrored directory, but overlaps with {parameter}");
        r.problem("storage.dir", &value, &expected, "a directory of its own, such as \"/var/lib/ringpair\"");
    }
    let keys = real(&config.security.dir);
    if config.security.mode == SecurityMode::MutualTls && keys.starts_with(&mirrored) {
        let value = format!("\"{}\"", config.security.dir.display());
        let expected =
            format!("must lie outside every mirrored directory, but is inside {parameter}: keys do not travel");
        r.problem("security.dir", &value, &expected, "a directory that is not mirrored");
    }
}

/// The path with its symlinks resolved, as far as it exists.
fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (fs::canonicalize(ancestor), path.strip_prefix(ancestor)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

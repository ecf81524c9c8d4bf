//! `ringpair check`: validates the configuration and the host, and prints every problem at once.
//!
//! Always holds: nothing is changed, and nothing needs a running member. A problem names what was found and what to
//! try; exit 2 for the configuration, 1 for a host on which the member could not run, 0 otherwise.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use nix::{
    errno::Errno,
    sys::{
        fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags},
        resource::{RLIM_INFINITY, Resource, getrlimit},
        statfs::{
            BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, NFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC,
            XFS_SUPER_MAGIC, statfs,
        },
    },
};
use serde::Serialize;
use time::OffsetDateTime;

use super::{args::Shared, client::CliError, print, print_json, printable, status::bytes, table};
use crate::{
    api::{auth::SocketRule, events::rfc3339},
    config::{Config, Endpoint, IoDriver, SecurityMode},
    ds::params::Parameters,
    keys,
    ring::{Driver, DriverChoice, DriverOptions, Feature},
};

/// Registered buffers of three drivers and the supervisor's locked memory fit into this.
const MEMLOCK_WANTED: u64 = 64 << 20;
/// With inotify every mirrored directory takes one watch.
const WATCHES_WANTED: u64 = 65_536;
/// Capabilities that a member uses, by bit (linux/capability.h).
const CAPABILITIES: [(u32, &str); 7] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (2, "CAP_DAC_READ_SEARCH"),
    (3, "CAP_FOWNER"),
    (4, "CAP_FSETID"),
    (21, "CAP_SYS_ADMIN"),
    (31, "CAP_SETFCAP"),
];

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Ok,
    /// The member runs, with less.
    Warn,
    /// The member cannot run like this.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    text: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn note(&mut self, check: &'static str, verdict: Verdict, text: impl Into<String>) {
        self.0.push(Finding { check, verdict, text: text.into() });
    }

    fn worst(&self) -> Verdict {
        let has = |verdict| self.0.iter().any(|finding| finding.verdict == verdict);
        if has(Verdict::Fail) {
            Verdict::Fail
        } else if has(Verdict::Warn) {
            Verdict::Warn
        } else {
            Verdict::Ok
        }
    }
}

pub(super) fn check(shared: &Shared) -> Result<(), CliError> {
    let path = shared.config.as_deref().unwrap_or_else(|| Path::new(crate::config::DEFAULT_PATH));
    let mut findings = Findings::default();
    let config = Config::load(path, &shared.overrides);
    match &config {
        Ok(config) => {
            findings.note("configuration", Verdict::Ok, format!("{} is valid", path.display()));
            of_config(&mut findings, config);
        }
        Err(problems) => {
            for problem in &problems.list {
                findings.note("configuration", Verdict::Fail, problem.to_string());
            }
            driver(&mut findings, DriverChoice::Auto, Vec::new());
        }
    }
    of_host(&mut findings);
    if shared.json {
        let ok = findings.worst() != Verdict::Fail;
        print_json(&serde_json::json!({"ok": ok, "findings": findings.0}))?;
    } else {
        let word = |verdict| match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        let row = |finding: &Finding| {
            vec![word(finding.verdict).to_owned(), finding.check.to_owned(), printable(&finding.text)]
        };
        print(&table(&findings.0.iter().map(row).collect::<Vec<_>>()))?;
    }
    match (config, findings.worst()) {
        (Err(problems), _) => {
            let count = problems.list.len();
            Err(CliError::Usage(format!("{}: {count} problems in the configuration", path.display())))
        }
        (Ok(_), Verdict::Fail) => Err(CliError::Failed("the member could not run here".into())),
        (Ok(_), Verdict::Ok | Verdict::Warn) => Ok(()),
    }
}

/// What depends on the configuration.
fn of_config(f: &mut Findings, config: &Config) {
    driver(
        f,
        match config.driver {
            IoDriver::Auto => DriverChoice::Auto,
            IoDriver::IoUring => DriverChoice::IoUring,
            IoDriver::Plain => DriverChoice::Plain,
        },
        config.io_without.clone(),
    );
    storage(f, config);
    key_files(f, config);
    let own = config.own();
    endpoint(f, "main address", &own.address);
    if own.has_aux() {
        endpoint(f, "aux address", &own.aux);
    }
    match config.peer().address.resolve() {
        Ok(address) => f.note("peer", Verdict::Ok, format!("{} is at {address}", config.peer().name)),
        Err(error) => f.note("peer", Verdict::Fail, format!("{error}. Try: an address in [members]")),
    }
    if let Some(address) = config.api.http {
        bindable(f, "api.http", address, false);
    }
    match SocketRule::new(config.api.group.as_deref()) {
        Ok(_) => {}
        Err(error) => f.note("api.group", Verdict::Fail, error.to_string()),
    }
    for (check, hook) in [("hooks.commence", &config.hooks.commence), ("hooks.discontinue", &config.hooks.discontinue)]
    {
        if let Some(hook) = hook {
            executable(f, check, hook);
        }
    }
    congestion(f, config);
    mirrored(f, config);
}

fn driver(f: &mut Findings, choice: DriverChoice, without: Vec<Feature>) {
    let options = DriverOptions { choice, without, in_flight: 8, buf_count: 1, ..DriverOptions::default() };
    match Driver::new(&options) {
        Ok(driver) => {
            let report = driver.report();
            let plain = report.driver == "plain" && choice == DriverChoice::Auto;
            let verdict = if plain { Verdict::Warn } else { Verdict::Ok };
            f.note("io", verdict, format!("{} ({}): {}", report.driver, report.features.join(", "), report.why));
        }
        Err(error) => f.note("io", Verdict::Fail, format!("{error}. Try: io.driver = \"auto\"")),
    }
}

/// The deepest directory of `path` that exists.
fn existing(path: &Path) -> PathBuf {
    path.ancestors().find(|ancestor| ancestor.is_dir()).unwrap_or_else(|| Path::new("/")).to_owned()
}

fn file_system(kind: FsType) -> &'static str {
    let known = [
        (EXT4_SUPER_MAGIC, "ext4"),
        (XFS_SUPER_MAGIC, "xfs"),
        (BTRFS_SUPER_MAGIC, "btrfs"),
        (TMPFS_MAGIC, "tmpfs"),
        (NFS_SUPER_MAGIC, "nfs"),
        (OVERLAYFS_SUPER_MAGIC, "overlayfs"),
    ];
    known.iter().find(|(magic, _)| *magic == kind).map_or("another file system", |(_, name)| name)
}

fn storage(f: &mut Findings, config: &Config) {
    let dir = &config.storage.dir;
    let at = existing(dir);
    if let Err(errno) = nix::unistd::access(&at, nix::unistd::AccessFlags::W_OK) {
        f.note("storage", Verdict::Fail, format!("{} cannot be written: {errno}. Try: chown, or sudo", at.display()));
    }
    match statfs(&at) {
        Err(errno) => f.note("storage", Verdict::Fail, format!("{}: {errno}", at.display())),
        Ok(stat) => {
            let name = file_system(stat.filesystem_type());
            let (verdict, more) = match name {
                "tmpfs" => (Verdict::Warn, ": does not survive a restart of the host. Try: a disk"),
                "nfs" => (Verdict::Warn, ": fails with the network. Try: a local disk"),
                _ => (Verdict::Ok, ""),
            };
            f.note("storage", verdict, format!("{} is on {name}{more}", dir.display()));
            let free = stat.blocks_available() * u64::try_from(stat.block_size()).unwrap_or(0);
            // Journal, one checkpoint of the same order at most, and room for an archive.
            let wanted = config.storage.journal_max_bytes.saturating_mul(5) / 4;
            let (verdict, more) = if free < wanted {
                (Verdict::Warn, ". Try: making room, or a smaller storage.journal_max_bytes")
            } else {
                (Verdict::Ok, "")
            };
            f.note("free space", verdict, format!("{} of {} wanted{more}", bytes(free), bytes(wanted)));
        }
    }
}

fn key_files(f: &mut Findings, config: &Config) {
    if config.security.mode == SecurityMode::Off {
        let text = "security.mode = \"off\": nothing is encrypted or authenticated. Try: \"mutual-tls\"";
        return f.note("keys", Verdict::Warn, text);
    }
    let now = OffsetDateTime::now_utc();
    match keys::load(&config.security.dir, config.member, now) {
        Err(error) => f.note("keys", Verdict::Fail, error.to_string()),
        Ok(identity) => {
            let days = identity.days_left(now);
            let soon = days < keys::EXPIRY_WARNING_DAYS;
            let more = if soon { ". Try: ringpair keys renew" } else { "" };
            let verdict = if soon { Verdict::Warn } else { Verdict::Ok };
            f.note("keys", verdict, format!("certificate of {} valid for {days} days{more}", identity.member));
        }
    }
}

fn endpoint(f: &mut Findings, check: &'static str, endpoint: &Endpoint) {
    match endpoint.resolve() {
        Ok(address) => bindable(f, check, address, true),
        Err(error) => f.note(check, Verdict::Fail, format!("{error}. Try: an address of this host")),
    }
}

fn bindable(f: &mut Findings, check: &'static str, address: SocketAddr, datagrams: bool) {
    let bound = TcpListener::bind(address).map(drop);
    let bound = if datagrams { bound.and_then(|()| UdpSocket::bind(address).map(drop)) } else { bound };
    match bound {
        Ok(()) => f.note(check, Verdict::Ok, format!("{address} can be bound")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            f.note(check, Verdict::Warn, format!("{address} is in use: by a running member, or by something else"));
        }
        Err(error) => {
            f.note(check, Verdict::Fail, format!("{address} cannot be bound: {error}. Try: an address of this host"));
        }
    }
}

fn executable(f: &mut Findings, check: &'static str, path: &Path) {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {
            f.note(check, Verdict::Ok, format!("{} can be run", path.display()));
        }
        Ok(_) => f.note(check, Verdict::Fail, format!("{} is no program. Try: chmod +x", path.display())),
        Err(error) => f.note(check, Verdict::Fail, format!("{}: {error}. Try: a program that exists", path.display())),
    }
}

fn congestion(f: &mut Findings, config: &Config) {
    let file = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    let available = fs::read_to_string(file).unwrap_or_default();
    for name in [&config.transport.congestion.ds, &config.transport.congestion.bulk] {
        if !available.split_whitespace().any(|each| each == name) {
            let text = format!("{name} is none of: {}. Try: modprobe tcp_{name}", available.trim());
            f.note("congestion", Verdict::Warn, text);
        }
    }
}

fn mirrored(f: &mut Findings, config: &Config) {
    let parameters = Parameters::from_pairs(config.parameters.clone());
    let directories = parameters.custom_mirror_dirs().into_iter().chain(parameters.initial_mirror_dirs());
    for directory in directories.filter(|directory| directory.path.starts_with('/')) {
        let path = config.mirror.root.join(directory.path.trim_start_matches('/'));
        if !path.is_dir() {
            f.note(
                "mirror",
                Verdict::Warn,
                format!("{} is no directory: not mirrored until it is one", path.display()),
            );
        }
    }
    for warning in parameters.warnings() {
        f.note("parameters", Verdict::Warn, format!("{}: {}", warning.name, warning.text));
    }
}

/// What depends on the host alone.
fn of_host(f: &mut Findings) {
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft == RLIM_INFINITY => f.note("locked memory", Verdict::Ok, "unlimited"),
        Ok((soft, _)) => {
            let small = soft < MEMLOCK_WANTED && !nix::unistd::geteuid().is_root();
            let verdict = if small { Verdict::Warn } else { Verdict::Ok };
            let more = if small { ". Try: LimitMEMLOCK=64M" } else { "" };
            f.note("locked memory", verdict, format!("{} may be locked{more}", bytes(soft)));
        }
        Err(errno) => f.note("locked memory", Verdict::Warn, errno.to_string()),
    }
    capabilities(f);
    match fanotify() {
        Ok(()) => f.note("fanotify", Verdict::Ok, "permitted"),
        Err(errno) => {
            let text = format!("not permitted ({errno}): inotify is used instead. Try: CAP_SYS_ADMIN");
            f.note("fanotify", Verdict::Warn, text);
            inotify(f);
        }
    }
    clock(f);
}

/// Whether a whole file system may be watched, with names: what fsmon asks for.
fn fanotify() -> Result<(), Errno> {
    let names = InitFlags::from_bits_retain(nix::libc::FAN_REPORT_DFID_NAME);
    let group = Fanotify::init(InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_CLOEXEC | names, EventFFlags::O_RDONLY)?;
    let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM;
    group.mark(mark, MaskFlags::FAN_CREATE | MaskFlags::FAN_ONDIR, nix::fcntl::AT_FDCWD, Some("/"))
}

fn capabilities(f: &mut Findings) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<&str> =
        CAPABILITIES.iter().filter(|(bit, _)| mask >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        return f.note("capabilities", Verdict::Ok, "all that are used are there");
    }
    let text =
        format!("{} missing: owners, xattrs or watches may not be kept. Try: the systemd unit", missing.join(" "));
    f.note("capabilities", Verdict::Warn, text);
}

fn inotify(f: &mut Findings) {
    let read = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
    };
    match read("max_user_watches") {
        Some(watches) if watches < WATCHES_WANTED => {
            let text = format!("{watches} watches. Try: sysctl fs.inotify.max_user_watches={WATCHES_WANTED}");
            f.note("inotify", Verdict::Warn, text);
        }
        Some(watches) => f.note("inotify", Verdict::Ok, format!("{watches} watches")),
        None => f.note("inotify", Verdict::Fail, "its limits cannot be read. Try: mounting /proc"),
    }
}

/// No rule compares two members' clocks, but certificates and the event log want a sound one.
fn clock(f: &mut Findings) {
    let now = SystemTime::now();
    let text = rfc3339(now);
    if OffsetDateTime::from(now).year() < 2025 {
        return f.note("clock", Verdict::Fail, format!("{text} lies in the past. Try: timedatectl set-ntp true"));
    }
    let synchronized = Path::new("/run/systemd/timesync/synchronized").exists();
    let more = if synchronized { ", synchronized" } else { ", not known to be synchronized" };
    f.note("clock", Verdict::Ok, format!("{text}{more}"));
}

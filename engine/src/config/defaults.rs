//! The defaults of the configuration, all in one place. Every key that is not named here has none: it is required, or
//! absent means "not used".
//!
//! ```toml
//! [pair]
//! # member: the one of [members] whose name is this host's name
//! [members.A]
//! # address: port 3633 where none is given (PAR-106); aux: a second connection to `address`
//! [storage]
//! journal_max_bytes = 4294967296
//! [api]
//! socket = "/run/ringpair/ringpair.sock"      # http, group: none
//! token_file = "/etc/ringpair/token"          # read only where http is set
//! [security]
//! mode = "mutual-tls"
//! dir  = "/etc/ringpair/keys"
//! [io]
//! driver = "auto"
//! without = []                                # zero_copy, defer_taskrun, registered_buffers, registered_files
//! [release]
//! version = ""                                # the same as the peer's, if it names none either
//! [mirror]
//! root = "/"
//! devices = "reject"
//! [module]                                    # none is monitored unless the section stands
//! name = "TsServer"                           # PAR-030
//! on_exit = "switch"
//! restart_grace_ms = 0
//! [detection]
//! profile = "fast"
//! heartbeat_ms = 100                          # wan, classic: 1000
//! misses = 4                                  # wan: 10; classic: 5
//! fail_safe_start = "if-current"
//! [hooks]                                     # commence, discontinue: none
//! timeout_s = 10
//! on_failure = "hold"
//! [transport]
//! dscp = { ping = "AF41", ds = "AF31", bulk = "LE" }
//! congestion = { ds = "cubic", bulk = "cubic" }
//! bulk_rate_bytes_per_s = 0                   # unlimited
//! [batch]
//! max_bytes = 65536
//! max_records = 4096
//! linger_us = 0
//! [compression]
//! ds = "auto"
//! bulk = "auto"
//! [ack]
//! level = "durable"
//! on_peer_loss = "continue"
//! ```

use std::ops::RangeInclusive;

use ringpair_wire::dscp::Dscp;

/// The port that members meet on (PAR-106).
pub const PORT: u16 = 3633;
/// `storage.journal_max_bytes`.
pub const JOURNAL_MAX_BYTES: u64 = 4 << 30;
/// Permitted: two segments at least.
pub const JOURNAL_MAX_BYTES_RANGE: RangeInclusive<u64> = 64 << 20..=1 << 50;
/// `api.socket`.
pub const SOCKET: &str = "/run/ringpair/ringpair.sock";
/// `api.token_file`.
pub const TOKEN_FILE: &str = "/etc/ringpair/token";
/// `security.dir`.
pub const KEYS_DIR: &str = "/etc/ringpair/keys";
/// `module.name` (PAR-030).
pub const MODULE_NAME: &str = "TsServer";
/// `module.restart_grace_ms`.
pub const RESTART_GRACE_MS: u64 = 0;
/// Permitted: up to an hour.
pub const RESTART_GRACE_MS_RANGE: RangeInclusive<u64> = 0..=3_600_000;
/// `detection.heartbeat_ms` in `fast`.
pub const HEARTBEAT_MS: u64 = 100;
/// `detection.heartbeat_ms` in `wan` and `classic`.
pub const HEARTBEAT_SLOW_MS: u64 = 1000;
/// Permitted: below 20 ms a scheduler's pause is a fault; above 10 s nothing is detected.
pub const HEARTBEAT_MS_RANGE: RangeInclusive<u64> = 20..=10_000;
/// `detection.misses` in `fast`.
pub const MISSES: u64 = 4;
/// `detection.misses` in `wan`.
pub const MISSES_WAN: u64 = 10;
/// `detection.misses` in `classic`: with a heartbeat a second, the 5 s of PAR-040.
pub const MISSES_CLASSIC: u64 = 5;
/// Permitted: with one miss, every lost packet would be a suspicion.
pub const MISSES_RANGE: RangeInclusive<u64> = 2..=100;
/// `hooks.timeout_s`.
pub const HOOK_TIMEOUT_S: u64 = 10;
/// Permitted: up to an hour.
pub const HOOK_TIMEOUT_S_RANGE: RangeInclusive<u64> = 1..=3600;
/// `transport.dscp.ping`.
pub const DSCP_PING: Dscp = Dscp::AF41;
/// `transport.dscp.ds`.
pub const DSCP_DS: Dscp = Dscp::AF31;
/// `transport.dscp.bulk`.
pub const DSCP_BULK: Dscp = Dscp::LE;
/// `transport.congestion.ds` and `.bulk`.
pub const CONGESTION: &str = "cubic";
/// Permitted: unlimited (0) to 100 Gbyte/s.
pub const BULK_RATE_RANGE: RangeInclusive<u64> = 0..=100_000_000_000;
/// `batch.max_bytes`.
pub const BATCH_MAX_BYTES: u64 = 65_536;
/// Permitted: a frame is never longer than 1 MiB (W-11).
pub const BATCH_MAX_BYTES_RANGE: RangeInclusive<u64> = 4096..=1 << 20;
/// `batch.max_records`.
pub const BATCH_MAX_RECORDS: u64 = 4096;
/// Permitted: 1 to 65,536.
pub const BATCH_MAX_RECORDS_RANGE: RangeInclusive<u64> = 1..=65_536;
/// `batch.linger_us`.
pub const BATCH_LINGER_US: u64 = 0;
/// Permitted: up to a tenth of a second.
pub const BATCH_LINGER_US_RANGE: RangeInclusive<u64> = 0..=100_000;

//! A real pair on this machine: two members of the built executable on loopback, killed for real, asked from outside.
//!
//! Knows the product only by its surface (commands, configuration, HTTP, exit codes): what these tests compare is what
//! clients outside the members recorded. Every wait is for a condition, with a bound. Every process is ended on drop.

mod capture;
mod claims;
mod damage;
mod disk;
mod http;
mod intruder;
mod kills;
mod liar;
mod load;
mod member;
mod netns;
mod power;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use capture::{Capture, Endpoint, Packet};
pub use claims::{Claim, Witness, overlap};
pub use damage::{Damage, damage};
pub use disk::SmallDisk;
pub use http::{Answer, HttpError, request};
pub use intruder::{Attack, intrude};
pub use kills::{Dice, Kill, check_served, is_running, storm};
pub use liar::Liar;
pub use load::{Acknowledged, Load, Writes, merge};
pub use member::{Member, Victim};
pub use netns::{Cut, Family, Network};
pub use power::PowerDisk;
use tempfile::TempDir;

/// How long a test waits for something that should take milliseconds, before it gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls `condition` every few milliseconds until it holds.
///
/// # Panics
/// When [`PATIENCE`] has run out, with `what`.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain until {what}");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    start.elapsed()
}

/// The executable under test: `$RINGPAIR_BIN`, else the one beside the test's own target directory.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn executable() -> PathBuf {
    if let Some(path) = std::env::var_os("RINGPAIR_BIN") {
        return path.into();
    }
    let own = std::env::current_exe().unwrap_or_default();
    let found = own.ancestors().skip(1).map(|dir| dir.join("ringpair")).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no ringpair beside {}. Try: cargo build, or set RINGPAIR_BIN", own.display()))
}

/// What may differ from one test pair to the next.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Directories below each member's own root to mirror, in the form of `CustomMirrorDir` without the root.
    pub mirror: Vec<String>,
    /// Lines appended to both configuration files, each naming its whole key (`"ack.level" = …` is not possible: use
    /// [`Options::set`]).
    pub set: Vec<(String, String)>,
    /// What each member is started through: a command that becomes the member.
    pub through: Vec<String>,
    /// Where A and B run; `None`: both on this host's loopback.
    pub places: Option<[Place; 2]>,
}

/// A host for one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its network namespace.
    pub namespace: String,
    /// Its main address.
    pub main: SocketAddr,
    /// Its aux address.
    pub aux: SocketAddr,
}

/// Two members, their directory, and what ends them.
#[derive(Debug)]
pub struct Pair {
    /// Member A.
    pub a: Member,
    /// Member B.
    pub b: Member,
    dir: TempDir,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

impl Pair {
    /// Makes keys and configurations and starts both members, A first to be active.
    ///
    /// # Panics
    /// When a file cannot be written or a member cannot be started.
    #[must_use]
    pub fn start(options: &Options) -> Self {
        let mut pair = Self::prepare(options);
        pair.a.start(&[]);
        pair.b.start(&[]);
        pair
    }

    /// As [`Self::start`], but starts nothing.
    ///
    /// # Panics
    /// When a file cannot be written.
    #[must_use]
    pub fn prepare(options: &Options) -> Self {
        let dir = TempDir::with_prefix("ringpair-pair-").expect("a temporary directory");
        let addresses = match &options.places {
            Some([a, b]) => [a.main, a.aux, b.main, b.aux],
            None => member::free_ports::<4>().map(|port| SocketAddr::from(([127, 0, 0, 1], port))),
        };
        member::make_keys(dir.path());
        let a = Member::prepare(dir.path(), 'A', addresses, options);
        let b = Member::prepare(dir.path(), 'B', addresses, options);
        Self { a, b, dir }
    }

    /// Where everything of this pair lies.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Both members.
    #[must_use]
    pub fn members(&self) -> [&Member; 2] {
        [&self.a, &self.b]
    }

    /// The member that answers `/active` with 200 now, if exactly one does.
    #[must_use]
    pub fn active(&self) -> Option<&Member> {
        match (self.a.is_active(), self.b.is_active()) {
            (true, false) => Some(&self.a),
            (false, true) => Some(&self.b),
            _ => None,
        }
    }

    /// The other member.
    #[must_use]
    pub fn peer_of(&self, member: &Member) -> &Member {
        if member.name() == 'A' { &self.b } else { &self.a }
    }

    /// Waits until one member is active, the other its complete backup holding the right to promote, and nothing lags.
    ///
    /// # Panics
    /// When that does not come about within [`PATIENCE`].
    pub fn wait_in_sync(&self) -> Duration {
        let start = Instant::now();
        loop {
            let states = self.members().map(Member::status);
            if let [Some(a), Some(b)] = &states {
                let (active, backup) = if a["role"] == "active" { (a, b) } else { (b, a) };
                let settled = active["role"] == "active"
                    && backup["role"] == "backup"
                    && active["detection"]["right_out"] == true
                    && active["alone"] == false
                    && backup["complete"] == true
                    && active["ds"]["seq"] == active["ds"]["peer_durable_seq"];
                if settled {
                    return start.elapsed();
                }
            }
            assert!(
                start.elapsed() < PATIENCE,
                "not in sync after {PATIENCE:?}:\nA {}\nB {}\n{}",
                member::shown(states[0].as_ref()),
                member::shown(states[1].as_ref()),
                self.logs()
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The last lines of both members' logs, for a failure's message.
    #[must_use]
    pub fn logs(&self) -> String {
        format!("--- log of A\n{}\n--- log of B\n{}", self.a.log_tail(), self.b.log_tail())
    }

    /// The digests of both members' trees.
    #[must_use]
    pub fn digests(&self) -> [Option<String>; 2] {
        self.members().map(|member| {
            let answer = member.get("/v1/ds/?digest").ok()?;
            answer.json()["digest"].as_str().map(str::to_owned)
        })
    }
}

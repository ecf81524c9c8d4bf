//! Benchmarks of ringpair beside the machine's limits and its alternatives: what `ringpair-bench` is made of.
//!
//! Always: a figure's reference is taken in the same run, alternating with it; every wait has a bound; every process
//! that was started is ended on every way out. Never: a figure whose data was not compared afterwards.
#![forbid(unsafe_code)]

pub mod bulk;
pub mod cli;
pub mod error;
pub mod figure;
pub mod floor;
pub mod host;
pub mod idle;
pub mod latency;
pub mod load;
pub mod page;
pub mod peers;
pub mod process;
pub mod qos;
pub mod resync;
pub mod stalled;
pub mod stream;
pub mod tree;

use std::{path::PathBuf, time::Duration};

/// What a scenario is asked to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often figure and reference are taken, alternating; at least 1.
    pub runs: usize,
    /// Little data and short times: to see that it works, not how fast.
    pub quick: bool,
    /// Whether the installed alternatives are measured as well.
    pub peers: bool,
    /// The tree of the scenario `tree`.
    pub tree: PathBuf,
    /// How long one sample of load runs, where that is not the usual time.
    pub load: Option<Duration>,
    /// Only the figure of this name, where a scenario can take one alone.
    pub figure: Option<String>,
}

impl Plan {
    /// How long one sample of load runs.
    #[must_use]
    pub fn load_for(&self) -> Duration {
        self.load.unwrap_or(Duration::from_millis(if self.quick { 300 } else { 3000 }))
    }

    /// Whether the figure `name` is to be taken.
    #[must_use]
    pub fn takes(&self, name: &str) -> bool {
        self.figure.as_deref().is_none_or(|figure| figure == name)
    }
}

/// Says on stderr what is going on.
pub fn progress(what: &str) {
    eprintln!("ringpair-bench: {what}");
}

//! What figures were taken on: without it, they mean nothing.
//!
//! Always: read when asked, so that the load average is the one of the run. Never: guesses; what cannot be read is null.

use std::fs;

use nix::{sched::CpuSet, unistd::Pid};
use serde_json::{Value as Json, json};

/// The `host` block of a result.
#[must_use]
pub fn describe() -> Json {
    let memory = nix::sys::sysinfo::sysinfo().ok();
    json!({
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "cpu_model": cpu_model(),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "mem_bytes": memory.map(|memory| memory.ram_total()),
        "load_average": load_average(),
        "pinning": pinning(),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
    })
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn cpu_model() -> Option<String> {
    let text = read("/proc/cpuinfo")?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, model)| model.trim().to_owned())
}

/// Over 1, 5 and 15 minutes.
fn load_average() -> Option<Vec<f64>> {
    read("/proc/loadavg")?.split(' ').take(3).map(|word| word.parse().ok()).collect()
}

/// The processors that this process (and so everything that it starts) may use; nothing is pinned beyond that.
fn pinning() -> Option<String> {
    let set = nix::sched::sched_getaffinity(Pid::from_raw(0)).ok()?;
    let cpus: Vec<String> =
        (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu) == Ok(true)).map(|cpu| cpu.to_string()).collect();
    Some(format!("none (cpus {})", cpus.join(",")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described() {
        let host = describe();
        assert!(host["cpus"].as_u64() >= Some(1), "{host}");
        assert!(host["mem_bytes"].as_u64() > Some(1 << 20), "{host}");
        assert_eq!(host["load_average"].as_array().map(Vec::len), Some(3), "{host}");
        assert!(host["pinning"].as_str().is_some_and(|pinning| pinning.contains('0')), "{host}");
    }
}

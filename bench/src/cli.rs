//! The command line: which scenario, how often, and where the result goes.
//!
//! Always: exit 0 with figures, 1 when a scenario failed, 2 for usage. Never: part of a result after a failure.

use std::{
    fs,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use serde_json::{Value as Json, json};

use crate::{
    Plan, bulk,
    error::{Doing, Error, Result},
    figure::Figure,
    floor, host, idle, latency, page, process, qos, resync, stalled, stream, tree,
};

/// One scenario.
type Scenario = fn(&Plan) -> Result<Vec<Figure>>;

/// What can be measured.
const SCENARIOS: [(&str, Scenario); 9] = [
    ("bulk", bulk::run),
    ("floor", floor::run),
    ("idle", idle::run),
    ("latency", latency::run),
    ("qos", qos::run),
    ("resync", resync::run),
    ("stalled", stalled::run),
    ("stream", stream::run),
    ("tree", tree::run),
];
/// Runs without `--runs`, and with `--quick`.
const RUNS: [usize; 2] = [5, 2];

/// Measures ringpair beside this machine's limits and its alternatives.
#[derive(Debug, Parser)]
#[command(name = "ringpair-bench", version)]
struct Options {
    /// bulk, floor, idle, latency, qos, resync, stalled, stream or tree; or report, which makes one HTML page of results
    scenario: String,
    /// The results that `report` shows
    files: Vec<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
    /// Little data and short times: to see that it works
    #[arg(long)]
    quick: bool,
    /// How often figure and reference are taken, alternating [default: 5, with --quick 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: Option<u16>,
    /// Also measure the installed alternatives
    #[arg(long)]
    peers: bool,
    /// Write the JSON document (of report: the page) into this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// tree: what is synchronized
    #[arg(long, value_name = "DIR", default_value = "/usr/share/doc")]
    tree: PathBuf,
    /// How long one sample of load runs [default: 3, with --quick 0.3]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u16).range(1..=3600))]
    seconds: Option<u16>,
    /// resync, stream: only the figure of this name
    #[arg(long, value_name = "NAME")]
    figure: Option<String>,
}

/// Runs what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    let options = Options::parse();
    if let Err(error) = process::end_all_on_signals() {
        eprintln!("ringpair-bench: signals cannot be caught: {error}");
        return ExitCode::FAILURE;
    }
    let chosen = SCENARIOS.iter().find(|(name, _)| *name == options.scenario);
    let done = match chosen {
        _ if options.scenario == "report" && !options.files.is_empty() => report(&options),
        Some((name, scenario)) if options.files.is_empty() => measure(name, *scenario, &options),
        _ => return usage(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ringpair-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage(options: &Options) -> ExitCode {
    let names = SCENARIOS.map(|(name, _)| name).join(", ");
    let (asked, files) = (&options.scenario, &options.files);
    if asked == "report" {
        eprintln!("ringpair-bench: report needs results. Try: ringpair-bench report FILE…");
    } else if let ([extra, ..], true) = (files.as_slice(), names.contains(asked.as_str())) {
        eprintln!("ringpair-bench: {asked} takes no file, but was given {}. Try: --out FILE", extra.display());
    } else {
        eprintln!("ringpair-bench: there is no scenario {asked:?} here. Try: {names}; or report FILE…");
    }
    ExitCode::from(2)
}

fn measure(name: &str, scenario: Scenario, options: &Options) -> Result<()> {
    let plan = Plan {
        runs: options.runs.map_or(RUNS[usize::from(options.quick)], usize::from),
        quick: options.quick,
        peers: options.peers,
        tree: options.tree.clone(),
        load: options.seconds.map(|seconds| Duration::from_secs(seconds.into())),
        figure: options.figure.clone(),
    };
    let host = host::describe();
    // The pair's helpers panic when a member does not do what it must; by then its guards have ended it.
    let figures = catch_unwind(AssertUnwindSafe(|| scenario(&plan)))
        .unwrap_or_else(|_| Err(Error::Failed(format!("the scenario {name} broke off"))));
    process::end_descendants();
    let figures = figures?;
    let result = document(name, &figures, &host);
    if let Some(path) = &options.out {
        fs::write(path, format!("{result:#}\n")).doing(&format!("writing {}", path.display()))?;
    }
    let text = if options.json {
        result.to_string()
    } else {
        let lines: Vec<String> = figures.iter().map(Figure::line).collect();
        format!("{name}\n{}\nhost {host}", lines.join("\n"))
    };
    print(&text)
}

fn document(name: &str, figures: &[Figure], host: &Json) -> Json {
    json!({
        "scenario": name,
        "figures": figures.iter().map(Figure::json).collect::<Vec<_>>(),
        "host": host,
    })
}

fn report(options: &Options) -> Result<()> {
    let mut results = Vec::new();
    for path in &options.files {
        let text = fs::read_to_string(path).doing(&format!("reading {}", path.display()))?;
        let result: Json = serde_json::from_str(&text)
            .map_err(|error| Error::Failed(format!("{} is no result: {error}", path.display())))?;
        results.push(result);
    }
    let page = page::render(&results);
    match &options.out {
        Some(path) => fs::write(path, page).doing(&format!("writing {}", path.display())),
        None => print(&page),
    }
}

fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").doing("writing to stdout")
}

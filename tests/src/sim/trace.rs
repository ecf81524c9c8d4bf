//! What happened last: kept for a failure, printed as it happens if asked for.
//!
//! Always bounded. Never: a line formatted that nobody reads.

use std::{collections::VecDeque, fmt::Write as _};

use ringpair_core::Event;

use super::time::MS;

const KEPT: usize = 160;

#[derive(Debug)]
enum What {
    Report(Event),
    Text(String),
}

/// The last events.
#[derive(Debug, Default)]
pub struct Trace {
    lines: VecDeque<(u64, Option<usize>, What)>,
    /// Print each line at once.
    pub verbose: bool,
    /// How many lines there were.
    pub count: u64,
}

impl Trace {
    /// A member's core reports.
    pub fn report(&mut self, now: u64, m: usize, event: Event) {
        self.push(now, Some(m), What::Report(event));
    }

    /// Something else.
    pub fn text(&mut self, now: u64, m: Option<usize>, text: String) {
        self.push(now, m, What::Text(text));
    }

    fn push(&mut self, now: u64, m: Option<usize>, what: What) {
        if self.verbose {
            println!("{}", line(now, m, &what));
        }
        self.count += 1;
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back((now, m, what));
    }

    /// The kept lines.
    #[must_use]
    pub fn print(&self) -> String {
        self.lines.iter().fold(String::new(), |mut text, (now, m, what)| {
            let _ = writeln!(text, "{}", line(*now, *m, what));
            text
        })
    }
}

fn line(now: u64, m: Option<usize>, what: &What) -> String {
    let who = m.map_or_else(|| "-".into(), |m| super::member::name(m).to_string());
    let ms = now as f64 / MS as f64;
    match what {
        What::Report(event) => format!("{ms:12.3} {who} {}: {}", event.code.name(), event.reason),
        What::Text(text) => format!("{ms:12.3} {who} * {text}"),
    }
}

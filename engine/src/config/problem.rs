//! What is wrong with a configuration: one [`Problem`] a key, collected into [`Problems`].
//!
//! Always holds: a problem names key, value, what was expected, and what to try.

use std::{fmt, path::PathBuf};

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The dotted key, such as `detection.misses`.
    pub key: String,
    /// The value as it stands in the file; empty when there is none.
    pub value: String,
    /// What is wrong with it, and the range or form that is expected.
    pub expected: String,
    /// What to try.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if !self.value.is_empty() {
            write!(f, " = {}", self.value)?;
        }
        write!(f, ": {}. Try: {}", self.expected, self.hint)
    }
}

/// Everything that is wrong with a configuration, in the order of the file's sections. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems {
    /// The file they were found in.
    pub source_file: PathBuf,
    /// The problems.
    pub list: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.list.len();
        write!(
            f,
            "{}: {count} problem{} in the configuration",
            self.source_file.display(),
            if count == 1 { "" } else { "s" }
        )?;
        self.list.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// The one of `known` that `word` was most likely meant to be: the nearest by edits, if near enough.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_ascii_lowercase();
    known
        .into_iter()
        .map(|candidate| (edit_distance(&folded, &candidate.to_ascii_lowercase()), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()).div_ceil(3))
        .map(|(_, candidate)| candidate)
}

/// How many insertions, removals and replacements turn `a` into `b`; both are cut at 256 bytes.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(256)], &b.as_bytes()[..b.len().min(256)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

//! Takes values out of a TOML document by dotted key, and collects what is wrong with them.
//!
//! Always holds: a key that was asked for is known; what is left in the document at the end is unknown. Must never stop
//! at the first problem: a value that is wrong is replaced by its default so that the rest can be checked as well.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    fs,
    io::Read,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::problem::{Problem, Problems, nearest};

/// Reads a configuration file of bounded length.
pub(super) fn read_file(path: &Path) -> Result<String, Problems> {
    let problem = |expected: String, hint: &str| Problems {
        source_file: path.to_owned(),
        list: vec![Problem { key: "--config".into(), value: path.display().to_string(), expected, hint: hint.into() }],
    };
    let unreadable = |error: std::io::Error| {
        problem(format!("cannot be read: {error}"), "the path of a readable TOML file, or set RINGPAIR_CONFIG")
    };
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut text = String::new();
    file.take(super::MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > super::MAX_FILE_BYTES {
        let limit = super::MAX_FILE_BYTES;
        return Err(problem(format!("is longer than {limit} bytes"), "a file with the keys of one member only"));
    }
    Ok(text)
}

/// The document, what has been asked for, and what was wrong.
pub(super) struct Reader {
    table: Table,
    /// The text of values that came from `--set`: a bare `1.2` may be meant as text.
    raw: BTreeMap<String, String>,
    known: Vec<String>,
    given: BTreeSet<String>,
    problems: Vec<Problem>,
}

impl Reader {
    /// Parses `text` and puts `overrides` (`key=value`) on top.
    pub(super) fn new(text: &str, overrides: &[String]) -> Self {
        let mut reader = Self {
            table: Table::new(),
            raw: BTreeMap::new(),
            known: Vec::new(),
            given: BTreeSet::new(),
            problems: Vec::new(),
        };
        match text.parse::<Table>() {
            Ok(table) => reader.table = table,
            Err(error) => {
                let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
                let at = text.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
                let what = error.message().lines().next().unwrap_or_default();
                reader.problem(
                    &format!("line {line}"),
                    &format!("`{at}`"),
                    &format!("is not TOML: {what}"),
                    "key = \"value\"",
                );
            }
        }
        for text in overrides {
            reader.set(text);
        }
        reader
    }

    /// Applies one `key=value` of `--set`.
    fn set(&mut self, text: &str) {
        let Some((key, value)) = text.split_once('=') else {
            return self.problem("--set", text, "has no '='", "--set detection.misses=5");
        };
        let (key, raw) = (key.trim(), value.trim());
        let parts = match split_key(key) {
            Some(parts) => parts,
            None => return self.problem("--set", text, "names no key of a section", "--set detection.misses=5"),
        };
        // A value that is not TOML is text: `--set pair.member=A` needs no quotes.
        let value = format!("v = {raw}")
            .parse::<Table>()
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("v"))
            .unwrap_or_else(|| Value::String(raw.to_owned()));
        let (last, sections) = match parts.split_last() {
            Some(split) => split,
            None => return,
        };
        let mut table = &mut self.table;
        for section in sections {
            let entry = table.entry(section.clone()).or_insert_with(|| Value::Table(Table::new()));
            if !entry.is_table() {
                *entry = Value::Table(Table::new());
            }
            let Value::Table(next) = entry else { return };
            table = next;
        }
        table.insert(last.clone(), value);
        self.raw.insert(parts.join("."), raw.to_owned());
    }

    /// Notes something that is wrong.
    pub(super) fn problem(&mut self, key: &str, value: &str, expected: &str, hint: &str) {
        self.problems.push(Problem {
            key: key.into(),
            value: value.into(),
            expected: expected.into(),
            hint: hint.into(),
        });
    }

    /// Whether the document has `key` (still).
    pub(super) fn has(&self, key: &str) -> bool {
        self.peek(key).is_some()
    }

    /// Whether `key` was in the document when it was asked for.
    pub(super) fn was_given(&self, key: &str) -> bool {
        self.given.contains(key)
    }

    fn peek(&self, key: &str) -> Option<&Value> {
        let mut parts = key.split('.');
        let first = self.table.get(parts.next()?)?;
        parts.try_fold(first, |value, part| value.as_table()?.get(part))
    }

    /// The names in a section that nobody asked for yet.
    pub(super) fn keys(&self, section: &str) -> Vec<String> {
        let section = self.table.get(section).and_then(Value::as_table);
        section.map(|table| table.keys().cloned().collect()).unwrap_or_default()
    }

    /// Takes `key` out of the document.
    pub(super) fn take(&mut self, key: &str) -> Option<Value> {
        self.known.push(key.to_owned());
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop()?;
        let mut table = &mut self.table;
        for part in parts {
            table = table.get_mut(part)?.as_table_mut()?;
        }
        let value = table.remove(last)?;
        self.given.insert(key.to_owned());
        Some(value)
    }

    /// A text; wrong types are noted.
    pub(super) fn text(&mut self, key: &str, hint: &str) -> Option<String> {
        match self.take(key)? {
            Value::String(text) if !text.is_empty() => Some(text),
            Value::String(_) => {
                self.problem(key, "\"\"", "must not be empty", hint);
                None
            }
            other => match self.raw.get(key) {
                Some(raw) if !matches!(other, Value::Table(_) | Value::Array(_)) => Some(raw.clone()),
                _ => {
                    self.problem(key, &other.to_string(), "must be a text in quotes", hint);
                    None
                }
            },
        }
    }

    /// A text that must be there.
    pub(super) fn required_text(&mut self, key: &str, hint: &str) -> String {
        let missing = !self.has(key);
        let text = self.text(key, hint);
        if missing {
            self.problem(key, "", "is required and missing", hint);
        }
        text.unwrap_or_default()
    }

    /// A whole number within `range`.
    pub(super) fn number(&mut self, key: &str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(value) = self.take(key) else { return default };
        let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return number;
        }
        let expected = format!("must be a whole number from {} to {}", range.start(), range.end());
        self.problem(key, &value.to_string(), &expected, &format!("{default} (the default)"));
        default
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)], default: T) -> T {
        let Some(value) = self.take(key) else { return default };
        if let Some((_, chosen)) = choices.iter().find(|(word, _)| value.as_str() == Some(word)) {
            return *chosen;
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let near = value.as_str().and_then(|word| nearest(word, words.iter().copied()));
        let hint = format!("\"{}\"", near.or(words.first().copied()).unwrap_or_default());
        self.problem(key, &value.to_string(), &format!("must be one of {}", words.join(", ")), &hint);
        default
    }

    /// A list of a few words, each at most once.
    pub(super) fn choices<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> Vec<T> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let chosen = |word: &Value| choices.iter().find(|(name, _)| word.as_str() == Some(name)).map(|(_, it)| *it);
        let list = value.as_array().map(|list| list.iter().map(chosen).collect::<Option<Vec<T>>>());
        if let Some(Some(list)) = list {
            return list;
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let hint = format!("[\"{}\"]", words.first().copied().unwrap_or_default());
        self.problem(key, &value.to_string(), &format!("must be a list of {}", words.join(", ")), &hint);
        Vec::new()
    }

    /// An absolute path.
    pub(super) fn path(&mut self, key: &str, example: &str) -> Option<PathBuf> {
        let text = self.text(key, &format!("\"{example}\""))?;
        let path = PathBuf::from(&text);
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        if path.is_absolute() && !climbs && !text.contains('\0') {
            return Some(path);
        }
        let expected = "must be an absolute path without '..'";
        self.problem(key, &format!("\"{text}\""), expected, &format!("\"{example}\""));
        None
    }

    /// A text that `parse` turns into something; its error says what is expected.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        key: &str,
        hint: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key, hint)?;
        match parse(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(key, &format!("\"{text}\""), &error.to_string(), hint);
                None
            }
        }
    }

    /// Every entry of a section of free names.
    pub(super) fn free_section(&mut self, key: &str) -> Vec<(String, Value)> {
        match self.take(key) {
            None => Vec::new(),
            Some(Value::Table(table)) => table.into_iter().collect(),
            Some(other) => {
                self.problem(key, &other.to_string(), "must be a section", &format!("[{key}]"));
                Vec::new()
            }
        }
    }

    /// Notes everything that nobody asked for, and gives up all problems.
    pub(super) fn finish(mut self) -> Vec<Problem> {
        let mut left = Vec::new();
        leaves("", &Value::Table(std::mem::take(&mut self.table)), &mut left);
        for (key, value) in left {
            let near = nearest(&key, self.known.iter().map(String::as_str));
            let hint = near.map_or_else(|| "remove it".into(), |near| format!("{near}, or remove it"));
            self.problem(&key, &value, "is not a key that ringpair knows", &hint);
        }
        self.problems
    }
}

/// Splits `members.A.name` or `parameters."a.b"`; `None` where there is no section, or an empty part.
fn split_key(key: &str) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for c in key.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => parts.last_mut()?.push(c),
        }
    }
    let parts: Vec<String> = parts.iter().map(|part| part.trim().to_owned()).collect();
    (parts.len() > 1 && !quoted && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

/// The leaves of what is left of a document.
fn leaves(prefix: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                leaves(&key, value, into);
            }
        }
        value => into.push((prefix.to_owned(), value.to_string())),
    }
}

//! From what a user asks to what becomes history: operations are checked and resolved against the tree.
//!
//! Always: the changes that come out are idempotent (single-value additions and removals have become whole lists, REP-006)
//! and applying all of them, in order, to the tree they were resolved against succeeds. A transaction resolves whole or
//! not at all, every bad operation named by its number. Never: IO, or a decision about roles — a backup refuses elsewhere.

use std::{collections::HashSet, sync::Arc};

use ringpair_wire::{
    codec::MAX_PATH_BYTES,
    ds::{
        self, Attribute, Attributes, CONTENT_FROM_BYTES, Change, DsPath, MAX_NAME_BYTES, Object, PathError, Value,
        cmp_folded,
    },
    id::{Seq, Version},
    record::{MAX_LIST, MAX_RECORD_BYTES},
    usual::UsualPut,
};

use crate::ds::tree::{Applied, TreeSnapshot};

/// The greatest sum of the names and inline values of one object, in bytes: with the longest path, one record carries it.
pub const MAX_OBJECT_BYTES: usize = 960 << 10;
const _: () = assert!(MAX_OBJECT_BYTES + MAX_PATH_BYTES + 2 * MAX_NAME_BYTES < MAX_RECORD_BYTES);
/// The greatest size of one transaction as it comes in, in bytes (interface §2).
pub const MAX_TRANSACTION_BYTES: usize = 256 << 20;
/// How many bad operations of a transaction are reported one by one.
pub const MAX_REPORTED: usize = 100;

/// What is to happen to one attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueEdit {
    /// These values in place of whatever there was.
    Set(Vec<Value>),
    /// These values as well; those that are there already stay as they are.
    Add(Vec<Value>),
    /// Without these values; the attribute goes with its last one.
    Remove(Vec<Value>),
    /// Without the attribute.
    Unset,
}

/// One operation a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates or changes an object.
    Put {
        /// Where.
        path: DsPath,
        /// Its class; `None` keeps the present one.
        class: Option<String>,
        /// Whether attributes that are not named are removed.
        replace: bool,
        /// The attributes by name, each once.
        attributes: Vec<(String, ValueEdit)>,
    },
    /// Removes an object.
    Remove {
        /// Where.
        path: DsPath,
        /// Whether what lies below goes with it.
        recursive: bool,
        /// Whether an object that is not there counts as removed.
        missing_ok: bool,
    },
}

impl Operation {
    /// The object concerned.
    #[must_use]
    pub const fn path(&self) -> &DsPath {
        match self {
            Self::Put { path, .. } | Self::Remove { path, .. } => path,
        }
    }
}

/// Why an operation is refused. Each names what is wrong and what to try.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// Not a path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The root is no object.
    #[error("path / is the root, which is no object. Try: a path with at least one component, such as /CONFIG")]
    Root,
    /// There is no such object.
    #[error("no object at {0}. Try: ringpair ds ls {1}")]
    NotFound(DsPath, DsPath),
    /// Something lies below.
    #[error("{0} has children, such as {1}. Try: --recursive (recursive in the API) to remove them with it")]
    HasChildren(DsPath, DsPath),
    /// A name is empty, too long, or holds a character that it must not.
    #[error(
        "{what} {name:?} is empty, longer than {MAX_NAME_BYTES} bytes, or holds a control character{}",
        if *.what == "class" { "" } else { " or '='. Try: a name such as Extension" }
    )]
    Name {
        /// `class` or `attribute name`.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// An attribute is named twice in one operation.
    #[error("attribute {0:?} is named twice. Try: one entry with all its values (names do not differ by case)")]
    Twice(String),
    /// A value list is empty or holds a value twice.
    #[error("attribute {name:?}: {problem}. Try: {hint}")]
    Values {
        /// The attribute.
        name: String,
        /// What is wrong.
        problem: String,
        /// What to try.
        hint: &'static str,
    },
    /// The object would hold more than a record can carry.
    #[error(
        "{path} would hold {bytes} bytes of names and inline values, more than {MAX_OBJECT_BYTES}. \
         Try: fewer values, or values longer than {CONTENT_FROM_BYTES} bytes, which are stored beside the object"
    )]
    TooLarge {
        /// The object.
        path: DsPath,
        /// What it would hold.
        bytes: usize,
    },
    /// A line is not a JSON object of the form expected, or a part of it is of the wrong type.
    #[error("{0}")]
    Json(String),
    /// A value, a line or a transaction is longer than permitted.
    #[error("{what} has {bytes} bytes, more than {limit}. Try: {hint}")]
    TooLong {
        /// What is too long.
        what: String,
        /// Its length in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
        /// What to try.
        hint: &'static str,
    },
    /// A value could not be stored.
    #[error("storing a value of {bytes} bytes failed: {message}. Try: making room in the storage directory")]
    Store {
        /// The value's length.
        bytes: usize,
        /// What the system said.
        message: String,
    },
}

/// A bad operation of a transaction, by its number (line), counted from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct LineError {
    /// The number of the line or operation, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub error: EditError,
}

/// Why a transaction is refused: every bad line, up to [`MAX_REPORTED`] of them. Nothing of it takes effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{count} bad line(s), nothing was changed: {}", list(.errors, *.count))]
pub struct TransactionError {
    /// The first [`MAX_REPORTED`] errors, by line.
    pub errors: Vec<LineError>,
    /// How many there are in all.
    pub count: u64,
}

impl TransactionError {
    /// Notes one more bad line, in any order.
    pub fn push(&mut self, line: u64, error: EditError) {
        self.count += 1;
        if self.errors.len() < MAX_REPORTED {
            self.errors.push(LineError { line, error });
        }
    }

    /// No error yet.
    #[must_use]
    pub const fn none() -> Self {
        Self { errors: Vec::new(), count: 0 }
    }

    /// Itself as a result: bad when anything was noted.
    ///
    /// # Errors
    /// Itself, its lines in order.
    pub fn check(mut self) -> Result<(), Self> {
        self.errors.sort_by_key(|error| error.line);
        if self.count == 0 { Ok(()) } else { Err(self) }
    }
}

fn list(errors: &[LineError], count: u64) -> String {
    let mut text = errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    if count > errors.len() as u64 {
        text.push_str(&format!("; and {} more", count - errors.len() as u64));
    }
    text
}

/// Resolves one operation against the tree as it is. `None`: nothing to do (a removal of what is not there, where
/// that is permitted).
///
/// # Errors
/// [`EditError`]; the tree has not changed.
pub fn resolve(tree: &TreeSnapshot, operation: Operation) -> Result<Option<Change>, EditError> {
    match operation {
        Operation::Put { path, .. } if path.is_root() => Err(EditError::Root),
        Operation::Put { path, class, replace, attributes } => {
            put(tree, path, class.as_deref(), replace, attributes).map(Some)
        }
        Operation::Remove { path, recursive, missing_ok } => {
            if path.is_root() && !recursive {
                return Err(EditError::Root);
            }
            if !path.is_root() && tree.get(&path).is_none() {
                let near = path.parent().unwrap_or_else(DsPath::root);
                return if missing_ok { Ok(None) } else { Err(EditError::NotFound(path, near)) };
            }
            if !recursive && let Some(child) = tree.children(&path).next() {
                return Err(EditError::HasChildren(path, child.path.clone()));
            }
            Ok(Some(Change::Remove { path }))
        }
    }
}

/// Resolves a transaction: each operation sees what those before it did. For one of many operations see
/// [`Resolution`].
///
/// # Errors
/// [`TransactionError`] with every bad operation by its number. The tree has not changed.
pub fn resolve_all(tree: &TreeSnapshot, operations: Vec<(u64, Operation)>) -> Result<Vec<Change>, TransactionError> {
    let mut resolution = Resolution::new(tree.clone(), operations);
    while !resolution.step(usize::MAX) {}
    Ok(resolution.finish()?.changes)
}

/// A transaction being resolved some operations at a time, so that one of a million does not hold up its thread. The
/// tree must not change meanwhile.
///
/// A put sees of the puts before it only what they did to its own object. So changes are carried into the copy of the
/// tree when an operation needs to see them, at a removal, or when the copy is what is wanted: most transactions put each
/// object once.
pub struct Resolution {
    /// The tree with the first [`seen`](Self::seen) changes.
    state: TreeSnapshot,
    seen: usize,
    operations: std::vec::IntoIter<(u64, Operation)>,
    /// The objects put so far, where a later operation could see what an earlier one did.
    put: HashSet<DsPath>,
    several: bool,
    /// The version of the first change, where the state is to be kept.
    first: Option<Version>,
    changes: Vec<Change>,
    applied: Vec<Applied>,
    errors: TransactionError,
}

/// A transaction resolved and applied to a copy of the tree.
#[derive(Debug)]
pub struct Resolved {
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// What each did.
    pub applied: Vec<Applied>,
    /// The tree with all of them; at the position that it was taken at.
    pub state: TreeSnapshot,
}

impl Resolution {
    /// Begins against `tree`; operations come with the numbers of their lines.
    #[must_use]
    pub fn new(tree: TreeSnapshot, operations: Vec<(u64, Operation)>) -> Self {
        let several = operations.len() > 1;
        let errors = TransactionError::none();
        let (changes, applied, put) = (Vec::with_capacity(operations.len()), Vec::new(), HashSet::new());
        let operations = operations.into_iter();
        Self { state: tree, seen: 0, operations, put, several, first: None, changes, applied, errors }
    }

    /// As [`new`](Self::new), for a transaction whose first change gets the version `first`, and the others those after
    /// it: the copy that it is resolved against is what the tree becomes.
    #[must_use]
    pub fn numbered(tree: TreeSnapshot, operations: Vec<(u64, Operation)>, first: Version) -> Self {
        Self { first: Some(first), ..Self::new(tree, operations) }
    }

    /// Resolves up to `count` more operations, a few microseconds each. True: that was all.
    pub fn step(&mut self, count: usize) -> bool {
        for _ in 0..count {
            let Some((line, operation)) = self.operations.next() else { break };
            if self.first.is_some() || (self.several && self.sees_others(&operation)) {
                self.catch_up();
            }
            match resolve(&self.state, operation) {
                Ok(None) => {}
                Ok(Some(change)) => {
                    let removes = matches!(change, Change::Remove { .. });
                    self.changes.push(change);
                    if removes && self.several {
                        self.catch_up();
                    }
                }
                Err(error) => self.errors.push(line, error),
            }
        }
        if self.first.is_some() {
            self.catch_up();
        }
        self.operations.len() == 0
    }

    /// Whether what was done before could show in this operation: in a removal, and in a put of an object that was put.
    fn sees_others(&mut self, operation: &Operation) -> bool {
        match operation {
            Operation::Put { path, .. } => !self.put.insert(path.clone()),
            Operation::Remove { .. } => true,
        }
    }

    /// Carries the changes so far into the copy of the tree.
    fn catch_up(&mut self) {
        for (index, change) in self.changes.iter().enumerate().skip(self.seen) {
            let version = self.first.map(|first| Version { seq: Seq(first.seq.0 + index as u64), ..first });
            let applied = self.state.apply(change, version.unwrap_or_default());
            if version.is_some() {
                self.applied.push(applied);
            }
        }
        self.seen = self.changes.len();
    }

    /// Everything of a [`numbered`](Self::numbered) transaction.
    ///
    /// # Errors
    /// [`TransactionError`] with every bad operation by its number.
    pub fn finish(&mut self) -> Result<Resolved, TransactionError> {
        std::mem::replace(&mut self.errors, TransactionError::none()).check()?;
        let (changes, applied) = (std::mem::take(&mut self.changes), std::mem::take(&mut self.applied));
        Ok(Resolved { changes, applied, state: std::mem::take(&mut self.state) })
    }
}

fn put(
    tree: &TreeSnapshot,
    path: DsPath,
    class: Option<&str>,
    replace: bool,
    edits: Vec<(String, ValueEdit)>,
) -> Result<Change, EditError> {
    if let Some(class) = class {
        check_class(class)?;
    }
    let none = Attributes::new();
    let present = tree.get(&path).map_or(&none, |entry| &entry.attributes);
    let mut attributes: Vec<Attribute> = Vec::with_capacity(edits.len());
    for (name, edit) in edits {
        check_name(&name)?;
        let now = match &edit {
            ValueEdit::Add(_) | ValueEdit::Remove(_) => present.get(&name).map_or(&[][..], |now| &now.values),
            ValueEdit::Set(_) | ValueEdit::Unset => &[],
        };
        let values = values_after(&name, now, edit)?;
        if values.len() > MAX_LIST {
            return Err(EditError::Values {
                name,
                problem: format!("{} values, more than {MAX_LIST}", values.len()),
                hint: "an object for each of them below this one",
            });
        }
        attributes.push(Attribute { name: name.into(), values });
    }
    attributes.sort_by(|a, b| cmp_folded(&a.name, &b.name));
    if let Some(pair) = attributes.windows(2).find(|pair| cmp_folded(&pair[0].name, &pair[1].name).is_eq()) {
        return Err(EditError::Twice(pair[1].name.to_string()));
    }
    let named = |kept: &&Attribute| attributes.binary_search_by(|named| cmp_folded(&named.name, &kept.name)).is_ok();
    let kept = present.iter().filter(|kept| !replace && !named(kept));
    let bytes = kept.chain(&attributes).map(attribute_bytes).sum();
    if bytes > MAX_OBJECT_BYTES {
        return Err(EditError::TooLarge { path, bytes });
    }
    Ok(Change::Put { path, class: class.map(Arc::from), replace, attributes })
}

/// Whether a usual put of an object that is there may become history as it is. Where it may not, [`resolve`] says why.
#[must_use]
pub fn permits(object: &Object, put: &UsualPut<'_>) -> bool {
    let new = put.attributes().iter().map(|(name, value)| name.len() + 8 + value.len() + 8);
    let kept = object.attributes.iter().filter(|kept| !put.replaces() && !put.names(&kept.name));
    let bytes = new.sum::<usize>() + kept.map(attribute_bytes).sum::<usize>();
    bytes <= MAX_OBJECT_BYTES && put.attributes().iter().all(|(name, _)| !name.contains('='))
}

/// The values of an attribute after an edit; empty: the attribute goes.
fn values_after(name: &str, now: &[Value], edit: ValueEdit) -> Result<Vec<Value>, EditError> {
    match edit {
        ValueEdit::Unset => Ok(Vec::new()),
        ValueEdit::Set(values) => {
            if values.is_empty() {
                return Err(EditError::Values {
                    name: name.into(),
                    problem: "no value".into(),
                    hint: "null in place of the list to remove the attribute",
                });
            }
            if values.len() > 1 {
                let mut sorted: Vec<&Value> = values.iter().collect();
                sorted.sort();
                if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
                    return Err(EditError::Values {
                        name: name.into(),
                        problem: "a value stands twice".into(),
                        hint: "each value once",
                    });
                }
            }
            Ok(values)
        }
        ValueEdit::Add(values) => {
            let mut seen = HashSet::new();
            Ok(now.iter().chain(&values).filter(|value| seen.insert(*value)).cloned().collect())
        }
        ValueEdit::Remove(values) => {
            let gone: HashSet<&Value> = values.iter().collect();
            Ok(now.iter().filter(|value| !gone.contains(value)).cloned().collect())
        }
    }
}

/// What an attribute adds to its object's record, in bytes.
fn attribute_bytes(attribute: &Attribute) -> usize {
    let values = attribute.values.iter().map(|value| match value {
        Value::Text(text) => text.len() + 8,
        Value::Bytes(bytes) => bytes.len() + 8,
        Value::Content { .. } => 48,
    });
    attribute.name.len() + 8 + values.sum::<usize>()
}

/// Checks a class name.
///
/// # Errors
/// [`EditError::Name`].
pub fn check_class(class: &str) -> Result<(), EditError> {
    if !class.is_empty() && ds::check_name(class).is_err() {
        return Err(EditError::Name { what: "class", name: class.into() });
    }
    Ok(())
}

/// Checks an attribute name. White space inside is significant (`Switchover TS Timeout`); `=` would make the command
/// line's `ATTR=VALUE` ambiguous.
///
/// # Errors
/// [`EditError::Name`].
pub fn check_name(name: &str) -> Result<(), EditError> {
    if ds::check_name(name).is_err() || name.contains('=') {
        return Err(EditError::Name { what: "attribute name", name: name.into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ringpair_wire::{
        client::{self, AttributeEdit, How},
        ds::ValueRef,
    };

    use super::*;
    use crate::ds::testing::{path, text, tree};

    fn put(path_text: &str, attributes: &[(&str, ValueEdit)]) -> Operation {
        let attributes = attributes.iter().map(|(name, edit)| ((*name).to_owned(), edit.clone())).collect();
        Operation::Put { path: path(path_text), class: None, replace: false, attributes }
    }

    fn values(change: Option<Change>) -> Vec<Value> {
        match change {
            Some(Change::Put { attributes, .. }) => attributes[0].values.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn remove(path_text: &str, recursive: bool, missing_ok: bool) -> Operation {
        Operation::Remove { path: path(path_text), recursive, missing_ok }
    }

    // REQ: REP-006
    #[test]
    fn single_values_become_whole_lists() {
        let tree = tree(&["/C/alice groups=Sales,Support"]);
        let of = |edit| values(resolve(&tree, put("/C/alice", &[("Groups", edit)])).unwrap());
        assert_eq!(of(ValueEdit::Add(vec![text("IT"), text("Sales")])), [text("Sales"), text("Support"), text("IT")]);
        assert_eq!(of(ValueEdit::Remove(vec![text("Sales"), text("none")])), [text("Support")]);
        assert_eq!(of(ValueEdit::Remove(vec![text("Sales"), text("Support")])), []);
        assert_eq!(of(ValueEdit::Unset), []);
        assert_eq!(of(ValueEdit::Set(vec![text("x")])), [text("x")]);
    }

    #[test]
    fn bad_edits_name_what_is_wrong_and_what_to_try() {
        let tree = tree(&["/C/alice x=1", "/C/alice/below x=1"]);
        let error = |operation: &Operation| resolve(&tree, operation.clone()).unwrap_err().to_string();
        let set = |list: &[&str]| ValueEdit::Set(list.iter().map(|value| text(value)).collect());
        for (operation, expected) in [
            (put("/", &[]), "is the root"),
            (put("/a", &[("", set(&["1"]))]), "attribute name \"\" is empty"),
            (put("/a", &[("a=b", set(&["1"]))]), "'='"),
            (put("/a", &[("x", set(&[]))]), "no value. Try: null"),
            (put("/a", &[("x", set(&["1", "1"]))]), "stands twice"),
            (put("/a", &[("x", set(&["1"])), ("X", set(&["2"]))]), "named twice"),
            (remove("/C/alice", false, false), "has children, such as /C/alice/below. Try: --recursive"),
            (remove("/C/bob", true, false), "no object at /C/bob. Try: ringpair ds ls /C"),
            (remove("/", false, false), "is the root"),
        ] {
            assert!(error(&operation).contains(expected), "{operation:?}: {}", error(&operation));
        }
        let class = Operation::Put { path: path("/a"), class: Some("a\nb".into()), replace: false, attributes: vec![] };
        assert!(error(&class).contains("class \"a\\nb\""), "{}", error(&class));
        assert_eq!(resolve(&tree, remove("/C/bob", false, true)), Ok(None));
        assert!(resolve(&tree, remove("/C/ALICE", true, false)).is_ok(), "REP-125");
        assert!(resolve(&tree, remove("/", true, false)).is_ok());
    }

    #[test]
    fn a_usual_put_is_permitted_exactly_where_it_resolves() {
        let mut state = tree(&["/a x=1"]);
        let big = |n: usize| "x".repeat(CONTENT_FROM_BYTES - n);
        let mut seen = [0; 2];
        for n in 0..18 {
            for (name, replace) in [("x", false), (&*format!("n{n}"), false), ("a=b", false), ("y", true)] {
                let value = big(n);
                let edit = AttributeEdit { name, how: How::Set, values: vec![ValueRef::Text(&value)] };
                let mut request = Vec::new();
                let operation = client::Operation::Put { path: "/a", class: None, replace, attributes: vec![edit] };
                client::encode_request(&[operation], &mut request);
                let usual = UsualPut::of_request(&request).unwrap();
                let attributes = vec![(name.to_owned(), ValueEdit::Set(vec![text(&value)]))];
                let operation = Operation::Put { path: path("/a"), class: None, replace, attributes };
                let resolved = resolve(&state, operation);
                let permitted = permits(state.get(&path("/a")).unwrap().object(), &usual);
                assert_eq!(permitted, resolved.is_ok(), "{name} {n}");
                seen[usize::from(permitted)] += 1;
                if let Ok(Some(change)) = resolved
                    && !replace
                {
                    assert_eq!(usual.to_change().unwrap(), change);
                    state.apply(&change, Version::default());
                }
            }
        }
        assert!(seen.iter().all(|count| *count > 4), "{seen:?}");
    }

    #[test]
    fn an_object_fits_into_a_record() {
        let mut state = tree(&[]);
        let big = |n: usize| ValueEdit::Set(vec![text(&"x".repeat(CONTENT_FROM_BYTES - n))]);
        for n in 0..14 {
            let change = resolve(&state, put("/a", &[(&format!("n{n}"), big(n))])).unwrap().unwrap();
            state.apply(&change, Version::default());
        }
        let error = resolve(&state, put("/a", &[("n14", big(14)), ("n15", big(15))])).unwrap_err();
        assert!(matches!(error, EditError::TooLarge { bytes, .. } if bytes > MAX_OBJECT_BYTES), "{error}");
        let whole = put("/a", &[("n14", big(14)), ("n0", ValueEdit::Unset)]);
        assert!(resolve(&state, whole).is_ok(), "what goes makes room");
        let many = (0..MAX_LIST + 1).map(|n| text(&n.to_string())).collect();
        let error = resolve(&state, put("/b", &[("x", ValueEdit::Set(many))])).unwrap_err();
        assert!(error.to_string().contains("65537 values"), "{error}");
    }

    /// Resolved at once, where most operations need not see the others, a transaction is what it is one by one.
    #[test]
    fn seeing_only_what_matters_comes_to_the_same_as_seeing_all() {
        let state = tree(&["/a x=1", "/a/b x=1", "/c x=2"]);
        let paths = ["/a", "/A", "/a/b", "/a/b/n", "/c", "/new", "/new/below"];
        let mut random = 7_u64;
        let mut pick = |count: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % count
        };
        let mut outcomes = [0; 2];
        for _ in 0..2000 {
            let operation = |pick: &mut dyn FnMut(usize) -> usize| match pick(5) {
                0 => remove(paths[pick(paths.len())], pick(3) > 0, pick(2) > 0),
                1 => put(paths[pick(paths.len())], &[("x", ValueEdit::Remove(vec![text("1")]))]),
                _ => put(paths[pick(paths.len())], &[("x", ValueEdit::Add(vec![text(["1", "2", "3"][pick(3)])]))]),
            };
            let operations: Vec<_> = (1..=1 + pick(6) as u64).map(|line| (line, operation(&mut pick))).collect();
            let (mut each, mut expected) = (state.clone(), Vec::new());
            for (_, operation) in &operations {
                let resolved = resolve(&each, operation.clone());
                if let Ok(Some(change)) = &resolved {
                    each.apply(change, Version::default());
                }
                expected.push(resolved);
            }
            let expected: Result<Vec<_>, _> = expected.into_iter().filter_map(Result::transpose).collect();
            let got = resolve_all(&state, operations);
            outcomes[usize::from(got.is_ok())] += 1;
            match (got, expected) {
                (Ok(got), Ok(expected)) => assert_eq!(got, expected),
                (Err(got), Err(expected)) => assert_eq!(got.errors[0].error, expected),
                (got, expected) => panic!("{got:?}, expected {expected:?}"),
            }
        }
        assert!(outcomes.iter().all(|count| *count > 200), "both happen: {outcomes:?}");
    }

    #[test]
    fn a_transaction_sees_its_own_changes_and_is_all_or_nothing() {
        let state = tree(&["/a x=1"]);
        let add = |value| put("/b", &[("x", ValueEdit::Add(vec![text(value)]))]);
        let all = vec![(1, add("1")), (3, add("2")), (4, remove("/a", false, false))];
        let changes = resolve_all(&state, all).unwrap();
        assert_eq!(values(changes.get(1).cloned()), [text("1"), text("2")]);
        let bad =
            vec![(1, add("1")), (2, remove("/b", false, false)), (5, remove("/b", false, false)), (9, put("/", &[]))];
        let error = resolve_all(&state, bad.clone()).unwrap_err();
        assert_eq!(error.errors.iter().map(|error| error.line).collect::<Vec<_>>(), [5, 9]);
        assert!(
            error.to_string().starts_with("2 bad line(s), nothing was changed: line 5: no object at /b"),
            "{error}"
        );
    }
}

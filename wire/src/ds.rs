//! The values of the directory-services tree: paths, attribute values, objects and changes (interface §4).

use std::{cmp::Ordering, fmt, sync::Arc};

use crate::id::Version;

/// The greatest number of components of a path.
pub const MAX_DEPTH: usize = 64;
/// The greatest length of one path component, class name or attribute name, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// The greatest length of one value, in bytes.
pub const MAX_VALUE_BYTES: usize = 64 << 20;
/// Values longer than this travel as content: stored once under their digest, beside the record.
pub const CONTENT_FROM_BYTES: usize = 64 << 10;

/// Why a text is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Neither `/A/B` nor `${A}\B`.
    #[error("path {0:?} starts with neither '/' nor '${{'. Try: /CONFIG/Users/alice")]
    Form(String),
    /// A component is empty, too long, `.` or `..`, or holds a control character.
    #[error(
        "path component {0:?} is empty, longer than {MAX_NAME_BYTES} bytes, '.', '..' or holds a control character"
    )]
    Component(String),
    /// More than [`MAX_DEPTH`] components.
    #[error("path has {0} components, more than {MAX_DEPTH}")]
    Depth(usize),
}

/// Why a text is neither a class nor an attribute name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("name {0:?} is empty, longer than {MAX_NAME_BYTES} bytes or holds a control character")]
pub struct NameError(String);

/// Checks the name of a class or an attribute: 1 to [`MAX_NAME_BYTES`] bytes, no control characters.
///
/// # Errors
/// [`NameError`].
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || has_control(name) {
        return Err(NameError(name.into()));
    }
    Ok(())
}

/// Whether a control character is in `name`.
fn has_control(name: &str) -> bool {
    if name.is_ascii() { name.bytes().any(|byte| byte.is_ascii_control()) } else { name.chars().any(char::is_control) }
}

/// Appends `name`, folded.
fn push_folded(out: &mut String, name: &str) {
    if name.is_ascii() {
        let start = out.len();
        out.push_str(name);
        out[start..].make_ascii_lowercase();
    } else {
        out.extend(name.chars().flat_map(char::to_lowercase));
    }
}

/// The path of an object: one or more components (none: the root, which is no object).
///
/// Keeps the case it was created with; compares, orders and hashes regardless of case (REP-125) by its [`key`].
///
/// [`key`]: DsPath::key
#[derive(Clone)]
pub struct DsPath {
    /// As given, components joined by `/`, with a leading `/`; the root is `/`.
    text: Arc<str>,
    /// Folded components, each followed by `\0`: a subtree is one contiguous range of keys.
    key: Arc<str>,
}

impl DsPath {
    /// The root of the tree.
    #[must_use]
    pub fn root() -> Self {
        Self { text: "/".into(), key: "".into() }
    }

    /// Reads `/CONFIG/Users/alice` or `${CONFIG}\Users\alice`.
    ///
    /// # Errors
    /// [`PathError`] names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if let Some(rest) = text.strip_prefix("${") {
            let Some((first, rest)) = rest.split_once('}') else { return Err(PathError::Form(text.into())) };
            let rest = match rest.strip_prefix('\\') {
                Some(rest) => Some(rest),
                None if rest.is_empty() => None,
                None => return Err(PathError::Form(text.into())),
            };
            return Self::from_components(std::iter::once(first).chain(rest.into_iter().flat_map(|r| r.split('\\'))));
        }
        match text.strip_prefix('/') {
            None => Err(PathError::Form(text.into())),
            Some("") => Ok(Self::root()),
            Some(rest) => match PathKey::of(text) {
                Some(key) => Ok(Self { text: text.into(), key: key.as_str().into() }),
                None => Self::from_components(rest.split('/')),
            },
        }
    }

    /// Builds a path from its components.
    ///
    /// # Errors
    /// [`PathError`] names the component that is wrong.
    pub fn from_components<'a>(components: impl IntoIterator<Item = &'a str>) -> Result<Self, PathError> {
        // Room for most paths: every record is parsed once on its way.
        let (mut text, mut key, mut depth) = (String::with_capacity(64), String::with_capacity(64), 0);
        for component in components {
            let bad = component.is_empty()
                || component.len() > MAX_NAME_BYTES
                || matches!(component, "." | "..")
                || has_control(component)
                || component.contains('/');
            if bad {
                return Err(PathError::Component(component.into()));
            }
            text.push('/');
            text.push_str(component);
            push_folded(&mut key, component);
            key.push('\0');
            depth += 1;
        }
        match depth {
            0 => Ok(Self::root()),
            1..=MAX_DEPTH => Ok(Self { text: text.into(), key: key.into() }),
            _ => Err(PathError::Depth(depth)),
        }
    }

    /// The folded form that orders and finds objects: every path below this one has it as a prefix.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The same as [`key`](Self::key), sharing this path's memory: what maps of many paths are keyed by.
    #[must_use]
    pub fn shared_key(&self) -> Arc<str> {
        Arc::clone(&self.key)
    }

    /// `/CONFIG/Users/alice`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.key.is_empty()
    }

    /// The components, in the case they were created with.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.text.split('/').filter(|component| !component.is_empty())
    }

    /// The path one component up; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let text = &self.text[..self.text.rfind('/')?];
        let key = &self.key[..self.key.len() - 1];
        let key = key.rfind('\0').map_or("", |at| &key[..=at]);
        Some(if text.is_empty() { Self::root() } else { Self { text: text.into(), key: key.into() } })
    }

    /// Whether `self` is `ancestor` or lies below it.
    #[must_use]
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        self.key.starts_with(&*ancestor.key)
    }
}

impl fmt::Display for DsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for DsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

impl PartialEq for DsPath {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl Eq for DsPath {}
impl PartialOrd for DsPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for DsPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}
impl std::hash::Hash for DsPath {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

/// The [key](DsPath::key) of a path of the usual kind, ASCII and short, without an allocation.
#[derive(Clone, Copy)]
pub struct PathKey {
    len: usize,
    bytes: [u8; Self::MAX_BYTES],
}

impl PathKey {
    /// The greatest length of such a path, in bytes: one component can fill it. Each has its slash in the text, and its
    /// `\0` in the key.
    pub const MAX_BYTES: usize = 1 + MAX_NAME_BYTES;

    /// The key of the object at `text`; `None`: it is of another kind, or no object's path.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let (b'/', rest) = text.as_bytes().split_first()? else { return None };
        if rest.is_empty() || rest.len() >= Self::MAX_BYTES {
            return None;
        }
        let mut bytes = [0; Self::MAX_BYTES];
        let (mut depth, mut start) = (1, 0);
        for (at, byte) in rest.iter().enumerate() {
            if *byte == b'/' {
                if is_bad(&rest[start..at]) {
                    return None;
                }
                (depth, start) = (depth + 1, at + 1);
            } else if !byte.is_ascii() || byte.is_ascii_control() {
                return None;
            } else {
                bytes[at] = byte.to_ascii_lowercase();
            }
        }
        let sound = !is_bad(&rest[start..]) && depth <= MAX_DEPTH;
        sound.then_some(Self { len: text.len(), bytes })
    }

    /// The key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // What was folded is ASCII.
        std::str::from_utf8(self.bytes()).unwrap_or_default()
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Whether no component of a path may be called this, though its characters are fine.
fn is_bad(component: &[u8]) -> bool {
    matches!(component, b"" | b"." | b"..")
}

/// The folded form of an attribute name, by which it is found regardless of case, as paths are (REP-125).
#[must_use]
pub fn fold(name: &str) -> Arc<str> {
    if name.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase()) {
        return name.into();
    }
    let mut folded = String::with_capacity(name.len());
    push_folded(&mut folded, name);
    folded.into()
}

/// The blake3 digest that a content is stored and found under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub [u8; 32]);

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// UTF-8 text.
    Text(Arc<str>),
    /// Bytes that are not text.
    Bytes(Arc<[u8]>),
    /// A value longer than [`CONTENT_FROM_BYTES`]: a reference to content stored under its digest.
    Content {
        /// Where the content is found.
        id: ContentId,
        /// Its length in bytes.
        len: u64,
        /// Whether the content is UTF-8 text.
        text: bool,
    },
}

/// A value in line, borrowed; of at most [`CONTENT_FROM_BYTES`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueRef<'a> {
    /// UTF-8 text.
    Text(&'a str),
    /// Bytes that are not text.
    Bytes(&'a [u8]),
}

impl ValueRef<'_> {
    /// How many bytes it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Whether it has none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Text(text) => Self::Text(text.into()),
            ValueRef::Bytes(bytes) => Self::Bytes(bytes.into()),
        }
    }
}

/// Compares two names regardless of case, as their folded forms compare (REP-125).
#[must_use]
pub fn cmp_folded(a: &str, b: &str) -> Ordering {
    if a == b {
        Ordering::Equal
    } else if a.is_ascii() && b.is_ascii() {
        a.bytes().map(|byte| byte.to_ascii_lowercase()).cmp(b.bytes().map(|byte| byte.to_ascii_lowercase()))
    } else {
        a.chars().flat_map(char::to_lowercase).cmp(b.chars().flat_map(char::to_lowercase))
    }
}

/// The attributes of an object: names keep their case and are found regardless of it, as paths are.
///
/// Always in the order of their folded names, each name once. Objects have a few, so they lie side by side: a map's
/// nodes took 640 bytes an object, and a turn each of the allocator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<Attribute>);

impl Attributes {
    /// From so many on, changes are sorted and merged: one after the other each would move what lies behind it.
    const MANY: usize = 8;

    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, in the order of their folded names.
    pub fn iter(&self) -> std::slice::Iter<'_, Attribute> {
        self.0.iter()
    }

    /// The attribute of this name, whatever its case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.find(name).ok().map(|index| &self.0[index])
    }

    /// Appends an attribute whose name comes after all others; where it does not: how it compares with the last.
    ///
    /// # Errors
    /// `Equal`: the name is there already; `Less`: it belongs further ahead. Nothing has changed.
    pub fn push(&mut self, attribute: Attribute) -> Result<(), Ordering> {
        match self.0.last().map(|last| cmp_folded(&attribute.name, &last.name)) {
            None | Some(Ordering::Greater) => {
                self.0.push(attribute);
                Ok(())
            }
            Some(order) => Err(order),
        }
    }

    /// Carries changes in: each takes the place of the values of its name, which keeps its case, or goes where it has
    /// no values. With `replace`, names that are not among the changes go as well.
    pub fn merge(&mut self, changes: &[Attribute], replace: bool) {
        if changes.len() >= Self::MANY {
            return self.merge_many(changes, replace);
        }
        if replace {
            self.0.retain(|kept| changes.iter().any(|change| cmp_folded(&change.name, &kept.name).is_eq()));
        }
        for change in changes {
            match self.find(&change.name) {
                Ok(index) if change.values.is_empty() => drop(self.0.remove(index)),
                Ok(index) => self.0[index].values.clone_from(&change.values),
                Err(_) if change.values.is_empty() => {}
                Err(index) => {
                    // A vector's first allocation would be for four.
                    self.0.reserve_exact(1);
                    self.0.insert(index, change.clone());
                }
            }
        }
    }

    /// Gives the attribute of this name, whatever its case, this one value.
    pub fn set(&mut self, name: &str, value: ValueRef<'_>) {
        match self.find(name) {
            Ok(index) => match self.0[index].values.as_mut_slice() {
                [only] => *only = value.into(),
                _ => self.0[index].values = vec![value.into()],
            },
            Err(index) => {
                self.0.reserve_exact(1);
                self.0.insert(index, Attribute { name: name.into(), values: vec![value.into()] });
            }
        }
    }

    /// Keeps the attributes that `keeps` says.
    pub fn retain(&mut self, keeps: impl Fn(&Attribute) -> bool) {
        self.0.retain(keeps);
    }

    fn merge_many(&mut self, changes: &[Attribute], replace: bool) {
        let mut sorted: Vec<&Attribute> = changes.iter().collect();
        sorted.sort_by(|a, b| cmp_folded(&a.name, &b.name));
        let mut kept = std::mem::take(&mut self.0).into_iter().peekable();
        for change in sorted {
            while let Some(before) = kept.next_if(|kept| cmp_folded(&kept.name, &change.name).is_lt()) {
                if !replace {
                    self.0.push(before);
                }
            }
            let present = kept.next_if(|kept| cmp_folded(&kept.name, &change.name).is_eq());
            if !change.values.is_empty() {
                let name = present.map_or_else(|| Arc::clone(&change.name), |present| present.name);
                self.0.push(Attribute { name, values: change.values.clone() });
            }
        }
        if !replace {
            self.0.extend(kept);
        }
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|attribute| cmp_folded(&attribute.name, name))
    }
}

impl<'a> IntoIterator for &'a Attributes {
    type Item = &'a Attribute;
    type IntoIter = std::slice::Iter<'a, Attribute>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Attribute> for Attributes {
    /// In any order; of several with one name, the last.
    fn from_iter<T: IntoIterator<Item = Attribute>>(attributes: T) -> Self {
        let mut all = Self::new();
        for attribute in attributes {
            match all.find(&attribute.name) {
                Ok(index) => all.0[index] = attribute,
                Err(index) => all.0.insert(index, attribute),
            }
        }
        all
    }
}

/// A name and its values, in the order they were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    /// The name in the case it was created with.
    pub name: Arc<str>,
    /// At least one value; no value twice.
    pub values: Vec<Value>,
}

/// An object of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it lives.
    pub path: DsPath,
    /// Its class; empty when none was ever given (parents that came into being by themselves).
    pub class: Arc<str>,
    /// Its attributes.
    pub attributes: Attributes,
    /// The version of its newest change.
    pub version: Version,
}

/// One change of the tree, in its *resolved* form: single-value additions and removals have become whole value
/// lists on the active, so that applying a change twice leaves what applying it once leaves (REP-006).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Creates or changes the object at `path`; missing parents come into being with an empty class.
    Put {
        /// Where.
        path: DsPath,
        /// The new class; `None` keeps it (empty for a new object).
        class: Option<Arc<str>>,
        /// Whether attributes that are not named here are removed.
        replace: bool,
        /// Attributes to set, or with an empty list to remove.
        attributes: Vec<Attribute>,
    },
    /// Removes the object at `path` and everything below it.
    Remove {
        /// Where.
        path: DsPath,
    },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn attribute(name: &str, value: &str) -> Attribute {
        let values = if value.is_empty() { Vec::new() } else { vec![Value::Text(value.into())] };
        Attribute { name: name.into(), values }
    }

    /// What merging means, with a map.
    fn merged(mut map: BTreeMap<Arc<str>, Attribute>, changes: &[Attribute], replace: bool) -> Vec<Attribute> {
        if replace {
            map.retain(|key, _| changes.iter().any(|change| fold(&change.name) == *key));
        }
        for change in changes {
            let key = fold(&change.name);
            let name = map.get(&key).map_or_else(|| change.name.clone(), |present| present.name.clone());
            map.insert(key.clone(), Attribute { name, values: change.values.clone() });
            if change.values.is_empty() {
                map.remove(&key);
            }
        }
        map.into_values().collect()
    }

    proptest! {
        // REQ: REP-125
        #[test]
        fn names_compare_as_their_folded_forms(a in "[a-bA-BäÄßİσ]{0,4}", b in "[a-bA-BäÄßİσ]{0,4}") {
            prop_assert_eq!(cmp_folded(&a, &b), fold(&a).cmp(&fold(&b)));
        }

        #[test]
        fn attributes_merge_as_a_map_would(
            present in prop::collection::vec(("[a-dA-DäÄ]{1,2}", "[xy]"), 0..20),
            changes in prop::collection::vec(("[a-dA-DäÄ]{1,2}", "[xyz]?"), 0..20),
            replace: bool,
        ) {
            let present: Vec<_> = present.iter().map(|(name, value)| attribute(name, value)).collect();
            let mut names = std::collections::HashSet::new();
            let changes: Vec<_> = changes.iter().filter(|(name, _)| names.insert(fold(name))).map(|(name, value)| attribute(name, value)).collect();
            let mut all: Attributes = present.iter().cloned().collect();
            let map: BTreeMap<_, _> = present.into_iter().map(|one| (fold(&one.name), one)).collect();
            prop_assert!(all.iter().eq(map.values()));
            all.merge(&changes, replace);
            let expected = merged(map, &changes, replace);
            prop_assert!(all.iter().eq(&expected), "{all:?}, expected {expected:?}");
            for one in &expected {
                prop_assert_eq!(all.get(&one.name.to_uppercase()).is_some(), fold(&one.name.to_uppercase()) == fold(&one.name));
            }
        }

        #[test]
        fn short_paths_are_what_long_ones_are(text in "(/[a-bA-Bä.]{0,3}){1,4}/?") {
            let rest = text.strip_prefix('/').unwrap_or(&text);
            let expected = if rest.is_empty() { Ok(DsPath::root()) } else { DsPath::from_components(rest.split('/')) };
            let got = DsPath::parse(&text);
            prop_assert_eq!(got.as_ref().map(|path| (path.as_str(), path.key())), expected.as_ref().map(|path| (path.as_str(), path.key())));
        }
    }

    #[test]
    fn a_path_has_its_bounds_however_it_is_read() {
        assert_eq!(DsPath::parse(&"/a".repeat(MAX_DEPTH)).unwrap().components().count(), MAX_DEPTH);
        assert_eq!(DsPath::parse(&"/a".repeat(MAX_DEPTH + 1)), Err(PathError::Depth(MAX_DEPTH + 1)));
        for length in [MAX_NAME_BYTES - 1, MAX_NAME_BYTES, MAX_NAME_BYTES + 1] {
            assert_eq!(DsPath::parse(&format!("/{}", "x".repeat(length))).is_ok(), length <= MAX_NAME_BYTES);
        }
    }
}

//! Paths of mirrored files, as bytes.
//!
//! Always: no component is empty, `.`, `..` or longer than a name may be, and none holds a NUL, so that a path leads
//! downwards only (OPS-096). Never: a path read as text.

use std::{borrow::Borrow, cmp::Ordering, fmt, hash::Hash, sync::Arc};

/// The greatest length of a path, in bytes; longer than the kernel's PATH_MAX, since paths are walked by components.
pub const MAX_PATH_BYTES: usize = 64 << 10;
/// The greatest length of one name, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// Why bytes are not a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// Longer than [`MAX_PATH_BYTES`].
    #[error("path of {0} bytes, more than {MAX_PATH_BYTES}")]
    Length(usize),
    /// A component is empty, `.`, `..`, longer than [`MAX_NAME_BYTES`] or holds a NUL.
    #[error("path component is empty, '.', '..', longer than {MAX_NAME_BYTES} bytes or holds a NUL")]
    Component,
}

/// A mirrored path as the parameters write it, without the leading `/`; empty: the mirror's root directory itself.
///
/// Orders by components, so that a directory is followed at once by everything below it: the order of a walk.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct MirrorPath(Arc<[u8]>);

impl MirrorPath {
    /// Reads a path, with or without a leading `/`.
    ///
    /// # Errors
    /// [`PathProblem`].
    pub fn parse(bytes: &[u8]) -> Result<Self, PathProblem> {
        let bytes = bytes.strip_prefix(b"/").unwrap_or(bytes);
        if bytes.len() > MAX_PATH_BYTES {
            return Err(PathProblem::Length(bytes.len()));
        }
        let sound =
            |name: &[u8]| !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME_BYTES && !name.contains(&0);
        if bytes.is_empty() || bytes.split(|&b| b == b'/').all(sound) {
            Ok(Self(bytes.into()))
        } else {
            Err(PathProblem::Component)
        }
    }

    /// The bytes, without a leading `/`.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether this is the mirror's root directory itself.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names on the way down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|&b| b == b'/').filter(|name| !name.is_empty())
    }

    /// The last name; `None` for the empty path.
    #[must_use]
    pub fn name(&self) -> Option<&[u8]> {
        (!self.is_empty()).then(|| self.0.rsplit(|&b| b == b'/').next().unwrap_or_default())
    }

    /// The path one name up; `None` for the empty path.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_empty() {
            return None;
        }
        let end = self.0.iter().rposition(|&b| b == b'/').unwrap_or(0);
        Some(Self(self.0[..end].into()))
    }

    /// This path with one more name.
    ///
    /// # Errors
    /// [`PathProblem`].
    pub fn join(&self, name: &[u8]) -> Result<Self, PathProblem> {
        if name.contains(&b'/') || name.is_empty() {
            return Err(PathProblem::Component);
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self::parse(&bytes)
    }

    /// Whether `self` is `ancestor` or lies below it.
    #[must_use]
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        self.below(ancestor).is_some()
    }

    /// What follows `ancestor` in this path (empty: they are equal); `None` if this path is not below it.
    #[must_use]
    pub fn below(&self, ancestor: &Self) -> Option<&[u8]> {
        match self.0.strip_prefix(ancestor.as_bytes())? {
            rest if ancestor.is_empty() || rest.is_empty() => Some(rest),
            rest => rest.strip_prefix(b"/"),
        }
    }

    /// This path with its beginning `from` replaced by `to`; `None` if it is not below `from`.
    #[must_use]
    pub fn rebased(&self, from: &Self, to: &Self) -> Option<Self> {
        match self.below(from)? {
            b"" => Some(to.clone()),
            rest => Self::parse(&[to.as_bytes(), rest].join(&b'/')).ok(),
        }
    }
}

impl PartialOrd for MirrorPath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MirrorPath {
    fn cmp(&self, other: &Self) -> Ordering {
        // No name holds a NUL, so that a separator that counts as one sorts before every name's bytes.
        let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl Borrow<[u8]> for MirrorPath {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for MirrorPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for MirrorPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

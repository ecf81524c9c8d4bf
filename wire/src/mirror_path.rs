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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Codec, Writer};

    fn path(text: &str) -> MirrorPath {
        MirrorPath::parse(text.as_bytes()).unwrap()
    }

    // REQ: OPS-096
    #[test]
    fn a_path_only_leads_downwards() {
        for bad in ["a//b", "a/../b", "..", "a/.", "./a", "a/", "a\0b", "/"] {
            if bad == "/" {
                assert!(path(bad).is_empty());
                continue;
            }
            assert_eq!(MirrorPath::parse(bad.as_bytes()), Err(PathProblem::Component), "{bad:?}");
            let mut bytes = Vec::new();
            Writer::new(&mut bytes).blob(bad.as_bytes());
            assert!(MirrorPath::from_bytes(&bytes).is_err(), "{bad:?}");
        }
        assert!(MirrorPath::parse(&[b'x'; 256]).is_err());
        assert!(MirrorPath::parse(&[b'x'; 255]).is_ok());
        let mut absolute = Vec::new();
        Writer::new(&mut absolute).blob(b"/etc");
        assert!(MirrorPath::from_bytes(&absolute).is_err());
    }

    #[test]
    fn a_directory_is_followed_by_what_is_below_it() {
        let mut paths: Vec<_> = ["a.b", "a/b", "a", "a!", "a/b/c", "b", "a/b.c"].map(path).into();
        paths.sort();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/b.c", "a!", "a.b", "b"].map(path));
    }

    #[test]
    fn paths_are_taken_apart_and_put_together() {
        let p = path("srv/app/x");
        assert_eq!(p.parent(), Some(path("srv/app")));
        assert_eq!(path("srv").parent(), Some(path("")));
        assert_eq!(p.name(), Some(&b"x"[..]));
        assert_eq!(p.below(&path("srv")), Some(&b"app/x"[..]));
        assert_eq!(p.below(&path("")), Some(&b"srv/app/x"[..]));
        assert!(!path("srvx").starts_with(&path("srv")));
        assert_eq!(p.rebased(&path("srv/app"), &path("opt")), Some(path("opt/x")));
        assert_eq!(p.rebased(&p, &path("opt")), Some(path("opt")));
        assert_eq!(path("srv").join(b"a"), Ok(path("srv/a")));
        assert!(path("srv").join(b"a/b").is_err());
        assert_eq!(MirrorPath::parse(b"a\n\xff").unwrap().to_string(), "/a\\n\\xff");
    }
}

//! What is mirrored: the directory lists of the parameters, merged, and the rule that leaves a path out.
//!
//! Always: overlapping entries are merged, the stronger mode wins, each path is covered once (REP-035). Never: a root
//! that leads upwards, or a relative one.

use std::{collections::BTreeSet, fmt};

use ringpair_wire::mirror::{Kind, MirrorPath, RootSpec};

/// The beginning of the name of every temporary file; none of them is ever mirrored.
pub const TEMPORARY_PREFIX: &[u8] = b".ringpair-";
/// Its end.
pub const TEMPORARY_SUFFIX: &[u8] = b".tmp";
/// The greatest number of entries of both lists together.
pub const MAX_ROOTS: usize = 1024;

/// Whether a name is that of a temporary file of the mirror.
#[must_use]
pub fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX)
}

/// An entry of a list that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootProblem {
    /// Not a complete local path.
    #[error("{parameter}: {entry:?} is not a complete path. Try: +/srv/app")]
    NotAbsolute {
        /// The parameter.
        parameter: &'static str,
        /// The entry.
        entry: String,
    },
    /// A component that leads elsewhere, or is too long.
    #[error("{parameter}: {entry:?}: {why}. Try: a path without '.', '..' and doubled '/'")]
    Path {
        /// The parameter.
        parameter: &'static str,
        /// The entry.
        entry: String,
        /// What is wrong.
        why: String,
    },
    /// More than [`MAX_ROOTS`] entries.
    #[error("{0} mirrored directories, more than {MAX_ROOTS}. Try: a common parent with '+'")]
    TooMany(usize),
}

/// Why a path is not mirrored (`mirror exclude-test`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// No entry of `CustomMirrorDir` or `InitialMirrorDir` covers it.
    NotListed,
    /// An entry without `+` lists its directory's parents only.
    NotRecursive(MirrorPath),
    /// Its extension stands in `MirrorExceptions`.
    Extension(Vec<u8>),
    /// A temporary file of the mirror itself.
    Temporary,
    /// A socket.
    Socket,
    /// A device, and `[mirror] devices` is `reject`.
    Device,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotListed => f.write_str("no entry of CustomMirrorDir or InitialMirrorDir covers it"),
            Self::NotRecursive(root) => write!(f, "{root} is listed without '+': only the files directly in it"),
            Self::Extension(extension) => write!(f, "MirrorExceptions holds {}", extension.escape_ascii()),
            Self::Temporary => f.write_str("a temporary file of the mirror"),
            Self::Socket => f.write_str("a socket"),
            Self::Device => f.write_str("a device, and [mirror] devices = \"reject\""),
        }
    }
}

/// The merged roots and what is left out of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootSet {
    roots: Vec<RootSpec>,
    exceptions: BTreeSet<Vec<u8>>,
    devices: bool,
}

impl RootSet {
    /// Reads the values of `CustomMirrorDir`, `InitialMirrorDir` and `MirrorExceptions` (PAR-063 to PAR-065), the last
    /// one case-insensitive, with or without dots.
    ///
    /// # Errors
    /// Every entry that cannot be used.
    pub fn parse(custom: &str, initial: &str, exceptions: &str, devices: bool) -> Result<Self, Vec<RootProblem>> {
        let (mut roots, mut problems) = (Vec::new(), Vec::new());
        for (parameter, value, continuous) in [("CustomMirrorDir", custom, true), ("InitialMirrorDir", initial, false)]
        {
            for entry in value.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
                match Self::entry(parameter, entry, continuous) {
                    Ok(root) => roots.push(root),
                    Err(problem) => problems.push(problem),
                }
            }
        }
        if roots.len() > MAX_ROOTS {
            problems.push(RootProblem::TooMany(roots.len()));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let exceptions = exceptions.split(';').map(|e| e.trim().trim_start_matches('.')).filter(|e| !e.is_empty());
        Ok(Self::new(roots, exceptions.map(|e| e.as_bytes().to_vec()), devices))
    }

    fn entry(parameter: &'static str, entry: &str, continuous: bool) -> Result<RootSpec, RootProblem> {
        let (recursive, path) = match entry.strip_prefix('+') {
            Some(path) => (true, path.trim()),
            None => (false, entry),
        };
        if !path.starts_with('/') {
            return Err(RootProblem::NotAbsolute { parameter, entry: entry.into() });
        }
        let trimmed = path.trim_end_matches('/');
        let path = MirrorPath::parse(trimmed.as_bytes()).map_err(|e| RootProblem::Path {
            parameter,
            entry: entry.into(),
            why: e.to_string(),
        })?;
        Ok(RootSpec { path, recursive, continuous })
    }

    /// Merges roots: one that a root of at least the same mode covers is dropped (REP-035).
    #[must_use]
    pub fn new(roots: Vec<RootSpec>, exceptions: impl IntoIterator<Item = Vec<u8>>, devices: bool) -> Self {
        let covers = |outer: &RootSpec, inner: &RootSpec| {
            (outer.continuous || !inner.continuous)
                && if outer.recursive {
                    inner.path.starts_with(&outer.path)
                } else {
                    outer.path == inner.path && !inner.recursive
                }
        };
        let mut merged: Vec<RootSpec> = Vec::with_capacity(roots.len());
        for root in roots {
            if !merged.iter().any(|outer| covers(outer, &root)) {
                merged.retain(|inner| !covers(&root, inner));
                merged.push(root);
            }
        }
        merged.sort_by(|a, b| a.path.cmp(&b.path).then(b.continuous.cmp(&a.continuous)));
        let exceptions = exceptions.into_iter().map(|e| e.to_ascii_lowercase()).collect();
        Self { roots: merged, exceptions, devices }
    }

    /// The merged roots, in the order of their paths.
    #[must_use]
    pub fn roots(&self) -> &[RootSpec] {
        &self.roots
    }

    /// The extensions that are left out, lower case.
    #[must_use]
    pub const fn exceptions(&self) -> &BTreeSet<Vec<u8>> {
        &self.exceptions
    }

    /// Whether devices are mirrored.
    #[must_use]
    pub const fn devices(&self) -> bool {
        self.devices
    }

    /// The root that covers a path: the strongest (continuous over initial), then the nearest. A root covers itself; one
    /// without `+` covers the files directly in it only.
    #[must_use]
    pub fn covering(&self, path: &MirrorPath, is_dir: bool) -> Option<&RootSpec> {
        let direct = |root: &RootSpec| match path.below(&root.path) {
            None => false,
            Some(b"") => true,
            Some(rest) => root.recursive || (!is_dir && !rest.contains(&b'/')),
        };
        self.roots.iter().filter(|root| direct(root)).max_by_key(|root| (root.continuous, root.path.as_bytes().len()))
    }

    /// Whether a path is a root, or lies above one: such a directory is never removed or moved.
    #[must_use]
    pub fn holds_root(&self, path: &MirrorPath) -> bool {
        self.roots.iter().any(|root| root.path.starts_with(path))
    }

    /// The rule that leaves a path out, if one does.
    #[must_use]
    pub fn left_out(&self, path: &MirrorPath, kind: Kind) -> Option<LeftOut> {
        let is_dir = kind == Kind::Dir;
        if self.covering(path, is_dir).is_none() {
            let flat = self.roots.iter().find(|root| path.starts_with(&root.path));
            return Some(flat.map_or(LeftOut::NotListed, |root| LeftOut::NotRecursive(root.path.clone())));
        }
        if is_dir { None } else { self.left_out_by_name(path.name().unwrap_or_default(), kind) }
    }

    /// The part of [`Self::left_out`] that looks at a name and kind alone.
    #[must_use]
    pub fn left_out_by_name(&self, name: &[u8], kind: Kind) -> Option<LeftOut> {
        match kind {
            Kind::Dir => return None,
            Kind::Socket => return Some(LeftOut::Socket),
            Kind::CharDevice | Kind::BlockDevice if !self.devices => return Some(LeftOut::Device),
            _ if is_temporary(name) => return Some(LeftOut::Temporary),
            _ => {}
        }
        let dot = name.iter().rposition(|&b| b == b'.').filter(|&dot| dot > 0)?;
        let extension = name[dot + 1..].to_ascii_lowercase();
        self.exceptions.contains(&extension).then_some(LeftOut::Extension(extension))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> MirrorPath {
        MirrorPath::parse(text.as_bytes()).unwrap()
    }

    fn set(custom: &str, initial: &str, exceptions: &str) -> RootSet {
        RootSet::parse(custom, initial, exceptions, false).unwrap()
    }

    // REQ: REP-027
    #[test]
    fn only_a_plus_covers_subdirectories() {
        let set = set("/srv/Data1; +/srv/Data2 ;", "", "");
        assert_eq!(set.left_out(&path("srv/Data1/a"), Kind::File), None);
        assert_eq!(set.left_out(&path("srv/Data1/d"), Kind::Dir), Some(LeftOut::NotRecursive(path("srv/Data1"))));
        assert_eq!(set.left_out(&path("srv/Data1/d/a"), Kind::File), Some(LeftOut::NotRecursive(path("srv/Data1"))));
        assert_eq!(set.left_out(&path("srv/Data2/d/e/a"), Kind::File), None);
        assert_eq!(set.left_out(&path("srv/Data22"), Kind::File), Some(LeftOut::NotListed));
    }

    // REQ: REP-030 PAR-065
    #[test]
    fn extensions_are_left_out_regardless_of_case_and_dot() {
        let set = set("+/srv", "", "txt; .GIF; myext");
        for (name, out) in [
            ("a.txt", true),
            ("A.TXT", true),
            ("a.gif", true),
            ("a.b.myExt", true),
            ("txt", false),
            (".txt", false),
            ("a.txt.keep", false),
            ("a.", false),
        ] {
            assert_eq!(set.left_out(&path(&format!("srv/{name}")), Kind::File).is_some(), out, "{name}");
        }
        assert_eq!(set.left_out(&path("srv/d.txt"), Kind::Dir), None, "a directory has no extension");
        assert_eq!(set.left_out(&path("srv/.ringpair-1f.tmp"), Kind::File), Some(LeftOut::Temporary));
        assert_eq!(set.left_out(&path("srv/s"), Kind::Socket), Some(LeftOut::Socket));
        assert_eq!(set.left_out(&path("srv/s"), Kind::CharDevice), Some(LeftOut::Device));
    }

    // REQ: REP-035
    #[test]
    fn overlaps_are_merged_and_the_stronger_mode_wins() {
        let all = set("+/srv/app;/srv/app;/srv/app/x;+/srv/app/y/z", "/srv/app/q;+/srv", "");
        let shown: Vec<_> = all.roots().iter().map(|r| (r.path.to_string(), r.recursive, r.continuous)).collect();
        assert_eq!(shown, [("/srv".into(), true, false), ("/srv/app".into(), true, true)]);
        assert!(all.covering(&path("srv/app/f"), false).unwrap().continuous);
        assert!(!all.covering(&path("srv/f"), false).unwrap().continuous);

        let flat = set("/srv/app", "+/srv/app", "");
        assert!(flat.covering(&path("srv/app/f"), false).unwrap().continuous);
        assert!(!flat.covering(&path("srv/app/d/f"), false).unwrap().continuous);
        assert!(flat.holds_root(&path("srv")) && !flat.holds_root(&path("srv/app/d")));
    }

    // REQ: REP-028
    #[test]
    fn every_bad_entry_is_named_at_once() {
        let problems = RootSet::parse("srv/a;+/ok;/a/../b", "+x", "", false).unwrap_err();
        assert_eq!(problems.len(), 3);
        assert!(problems[0].to_string().contains("CustomMirrorDir: \"srv/a\" is not a complete path"));
        assert!(problems[2].to_string().contains("InitialMirrorDir: \"+x\""));
        let whole = set("+/", "", "");
        assert!(whole.left_out(&path("any/thing"), Kind::File).is_none());
    }
}

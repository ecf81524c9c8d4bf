//! Where mirrored directories lie on this host, and where never.
//!
//! Always: a path is compared with the forbidden directories by where it really leads, links followed. Never: a
//! directory made, opened or read at a place that was not compared.

use std::{
    ffi::OsStr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use super::MirrorPath;

/// What both ends are told about the file system.
#[derive(Clone, Debug)]
pub struct MirrorBase {
    /// `[mirror] root`: the directory that the lists of the parameters are taken below.
    pub root: PathBuf,
    /// Directories that are never mirrored and never written to: storage, keys.
    pub forbidden: Vec<PathBuf>,
}

impl MirrorBase {
    /// Where a mirrored path is on this host.
    #[must_use]
    pub fn place(&self, path: &MirrorPath) -> PathBuf {
        self.root.join(OsStr::from_bytes(path.as_bytes()))
    }

    /// Whether a directory, there or not yet, may be mirrored.
    ///
    /// # Errors
    /// It holds a forbidden one, or lies in one: says which, and what to try.
    pub fn check(&self, place: &Path) -> Result<(), String> {
        self.check_real(place, &resolved(place))
    }

    /// The same for a directory that is open, wherever the path that it was opened by leads by now.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn check_opened(&self, dir: &OwnedFd) -> Result<(), String> {
        match std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd())) {
            Ok(real) => self.check_real(&real, &real),
            Err(error) => Err(format!("where it lies cannot be told: {error}. Try: mount /proc")),
        }
    }

    fn check_real(&self, place: &Path, real: &Path) -> Result<(), String> {
        let clashes = |dir: &&PathBuf| {
            let dir = resolved(dir);
            real.starts_with(&dir) || dir.starts_with(real)
        };
        let leads = if place == real { String::new() } else { format!(" (which is {})", real.display()) };
        self.forbidden.iter().find(clashes).map_or(Ok(()), |dir| {
            let place = place.display();
            Err(format!("{place}{leads} holds this member's own {}. Try: another directory", dir.display()))
        })
    }
}

/// Where a path really leads: links are followed as far as it exists, the rest is as it stands.
fn resolved(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for existing in path.ancestors() {
        if let Ok(real) = existing.canonicalize() {
            return real.join(missing.iter().rev().collect::<PathBuf>());
        }
        missing.extend(existing.file_name());
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn what_leads_into_a_forbidden_directory_or_holds_one_is_refused_by_any_name() {
        let temp = tempfile::tempdir().unwrap();
        let at = |path: &str| temp.path().join(path);
        for dir in ["srv/app", "srv2", "member/storage/inner"] {
            fs::create_dir_all(at(dir)).unwrap();
        }
        symlink(at("member"), at("srv/link")).unwrap();
        symlink("../member/storage", at("srv/direct")).unwrap();
        symlink(at("member/storage"), at("storage-link")).unwrap();
        let by_name = MirrorBase { root: at(""), forbidden: vec![at("member/storage")] };
        let by_link = MirrorBase { root: at(""), forbidden: vec![at("storage-link")] };
        for base in [by_name, by_link] {
            for bad in [
                "member",
                "member/storage",
                "member/storage/new/one",
                "srv/link",
                "srv/link/storage/new",
                "srv/direct/inner",
            ] {
                let refused = base.check(&at(bad)).unwrap_err();
                assert!(refused.contains("storage") && refused.contains("Try"), "{bad}: {refused}");
            }
            for good in ["srv/app", "srv/app/new/one", "srv2", "srv/link/other", "member/storage2"] {
                assert_eq!(base.check(&at(good)), Ok(()), "{good}");
            }
            let opened = |path: &str| OwnedFd::from(fs::File::open(at(path)).unwrap());
            assert!(base.check_opened(&opened("srv/direct")).is_err());
            assert!(base.check_opened(&opened("srv/app")).is_ok());
        }
    }
}

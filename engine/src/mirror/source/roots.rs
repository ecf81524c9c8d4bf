//! The active's roots on this host: opened, watched over, and never trusted to be empty by accident.
//!
//! Always: a root that is missing, replaced, on another file system or emptied is named, and nothing is removed on the
//! backup because of it. Never: a removal from a root whose directory is not the one that was compared.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use nix::errno::Errno;
use ringpair_fsmon::{
    meta::Stat,
    scan::{is_empty, open_root},
};
use ringpair_wire::mirror::{Problem, RootSpec};

use crate::mirror::MirrorBase;

/// A root on the active.
#[derive(Debug)]
pub struct SourceRoot {
    /// What it is.
    pub spec: RootSpec,
    /// Its directory, while it is sound.
    pub dir: Option<Arc<OwnedFd>>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// Removals are withheld: it has no entries any more.
    pub emptied: bool,
    place: PathBuf,
    /// Device and inode that were compared.
    identity: Option<(u64, u64)>,
    base: MirrorBase,
}

/// What a look at a root found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// As before.
    Same,
    /// It is there (again): watch and compare it.
    Opened,
    /// It is not sound any more.
    Lost,
}

impl SourceRoot {
    /// A root that is not opened yet.
    pub fn new(spec: RootSpec, base: &MirrorBase) -> Self {
        let place = base.place(&spec.path);
        Self { spec, dir: None, problem: None, emptied: false, place, identity: None, base: base.clone() }
    }

    /// Looks whether the root is where it was, and opens it if it is not open.
    pub fn look(&mut self) -> Look {
        let had = self.dir.is_some();
        match self.check() {
            Ok(opened) => {
                if opened {
                    self.emptied = false;
                }
                self.problem = self.emptied.then(|| self.emptied_text());
                if opened { Look::Opened } else { Look::Same }
            }
            Err(reason) => {
                self.problem = Some(reason);
                self.dir = None;
                if had { Look::Lost } else { Look::Same }
            }
        }
    }

    fn check(&mut self) -> Result<bool, String> {
        let opened = open_root(&self.place).map_err(|errno| match errno {
            Errno::ENOENT => {
                format!("{} is missing; its files stay on the backup. Try: create or mount it", self.place.display())
            }
            errno => {
                format!("{} cannot be opened: {}; its files stay on the backup", self.place.display(), errno.desc())
            }
        })?;
        let stat = Stat::of_fd(&opened).map_err(|errno| errno.desc().to_owned())?;
        if let Some((device, inode)) = self.identity {
            if device != stat.dev {
                return Err(format!(
                    "{} is on another file system than before: unmounted? Its files stay on the backup. Try: mount it, or \
                     restart the member to accept it",
                    self.place.display()
                ));
            }
            if inode == stat.ino && self.dir.is_some() {
                return Ok(false);
            }
        }
        self.base.check_opened(&opened)?;
        // Reading it now names what would otherwise fail path by path.
        is_empty(opened.as_fd()).map_err(|errno| {
            format!("{} cannot be read: {}; its files stay on the backup", self.place.display(), errno.desc())
        })?;
        self.identity = Some((stat.dev, stat.ino));
        self.dir = Some(Arc::new(opened));
        Ok(true)
    }

    /// Whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.dir.as_ref().is_none_or(|dir| is_empty(dir.as_fd()).unwrap_or(true))
    }

    /// From now on removals are withheld.
    pub fn withhold(&mut self) {
        self.emptied = true;
        self.problem = Some(self.emptied_text());
    }

    fn emptied_text(&self) -> String {
        format!(
            "{} has lost all its entries; its files stay on the backup until it has some again",
            self.place.display()
        )
    }

    /// The problem, for a status.
    pub fn named(&self) -> Option<Problem> {
        self.problem.clone().map(|reason| Problem { path: self.spec.path.clone(), reason })
    }
}

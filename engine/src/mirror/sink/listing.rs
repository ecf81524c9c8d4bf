//! Listing a root for the active's comparison, in pieces, as far as the active asked for.
//!
//! Always: bounded work a turn; leftovers of temporary files that are passed are removed. Never: more entries than the
//! active gave credit for.

use std::{collections::BTreeSet, os::fd::AsFd, sync::Arc};

use nix::errno::Errno;
use ringpair_fsmon::beneath;
use ringpair_wire::mirror::{Kind, MirrorMessage, MirrorPath, Problem};

use super::tree::discard;
use crate::mirror::{
    Outbox,
    lister::{Listed, Lister, Scope, TURN_BYTES},
};

/// Entries in one part.
const PART_ENTRIES: usize = 1024;
/// Path bytes in one part.
const PART_BYTES: usize = 1 << 20;

/// A listing that is asked for by the active.
pub struct Listing {
    request: u64,
    lister: Result<Lister, Problem>,
    credit: u64,
    own: BTreeSet<Vec<u8>>,
    counted: (u64, u64),
    ended: bool,
    start: MirrorPath,
    /// The last path that was listed.
    position: Option<MirrorPath>,
    /// Whether the counts are those of a whole root.
    whole: bool,
}

impl Listing {
    /// Begins a listing. `own`: temporary files that are in use.
    pub fn new(request: u64, scope: Scope, credit: u32, own: BTreeSet<Vec<u8>>) -> Self {
        let (start, whole) = (scope.start.clone(), scope.is_whole() && !scope.deep);
        let unknown = |errno: Errno| {
            let reason = format!("cannot be listed: {}", errno.desc());
            Problem { path: start.clone(), reason }
        };
        let lister = Lister::new(scope, Arc::default()).map_err(unknown);
        let credit = credit.into();
        Self { request, lister, credit, own, counted: (0, 0), ended: false, start, position: None, whole }
    }

    /// Its number.
    pub const fn request(&self) -> u64 {
        self.request
    }

    /// So many more entries may be sent.
    pub fn credit(&mut self, more: u32) {
        self.credit = self.credit.saturating_add(more.into());
    }

    /// Whether everything is listed.
    pub const fn ended(&self) -> bool {
        self.ended
    }

    /// Files and their bytes that were passed since the last call, where they are to be counted.
    pub fn take_counted(&mut self) -> (u64, u64) {
        let counted = std::mem::take(&mut self.counted);
        if self.whole { counted } else { (0, 0) }
    }

    /// Whether a change at `path` is to be counted: not if this listing counts what is there when it comes there.
    pub fn has_counted(&self, path: &MirrorPath) -> bool {
        let ahead = self.position.as_ref().is_none_or(|position| path > position);
        !(self.whole && !self.ended && ahead && path.starts_with(&self.start))
    }

    /// Lists on; whether it did anything.
    pub fn turn(&mut self, outbox: &mut Outbox) -> bool {
        if self.credit == 0 || self.ended {
            return false;
        }
        let (mut entries, mut problems, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut budget = TURN_BYTES;
        while self.credit > 0 && entries.len() < PART_ENTRIES && problems.len() < PART_ENTRIES && bytes < PART_BYTES {
            let lister = match &mut self.lister {
                Ok(lister) => lister,
                Err(problem) => {
                    problems.push(problem.clone());
                    self.ended = true;
                    break;
                }
            };
            match lister.next(&mut budget) {
                Listed::Entry(entry, _) => {
                    if entry.meta.kind == Kind::File {
                        self.counted.0 += 1;
                        self.counted.1 += entry.meta.size;
                    }
                    bytes += entry.path.as_bytes().len();
                    self.credit -= 1;
                    self.position = Some(entry.path.clone());
                    entries.push(entry);
                }
                Listed::Unknown(problem) => problems.push(problem),
                Listed::Busy => break,
                Listed::End => {
                    self.ended = true;
                    break;
                }
            }
        }
        self.remove_leftovers();
        if !entries.is_empty() || !problems.is_empty() {
            outbox.push_back(MirrorMessage::ManifestPart { request: self.request, entries, problems });
        }
        if self.ended {
            outbox.push_back(MirrorMessage::ManifestEnd { request: self.request });
        }
        true
    }

    fn remove_leftovers(&mut self) {
        let Ok(lister) = &mut self.lister else { return };
        for path in lister.take_temporaries() {
            let name = path.name().unwrap_or_default();
            if self.own.contains(name) {
                continue;
            }
            let parent = path.parent().unwrap_or_default();
            let relative = parent.below(&lister.spec().path).unwrap_or_default();
            match beneath::open_dir(lister.root().as_fd(), relative) {
                Ok(dir) => discard(dir.as_fd(), name),
                Err(errno) => tracing::warn!(path = %path, error = errno.desc(), "a leftover cannot be removed"),
            }
        }
    }
}

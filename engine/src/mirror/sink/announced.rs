//! What the active said it would send, and what of that has not come.
//!
//! Always: a path that was announced stays here until its change is durable, whichever of the two lanes was faster.
//! Never: more paths than the bound; what is beyond it is only counted.

use std::collections::{BTreeMap, BTreeSet};

use ringpair_wire::mirror::MirrorPath;

/// How many announced paths are remembered.
const MAX_ANNOUNCED: usize = 1 << 20;

/// What is announced, by generation, and what is stale.
#[derive(Default)]
pub struct Announced {
    /// Announced, and neither durable nor given up, by generation.
    pub by_generation: BTreeMap<u64, MirrorPath>,
    /// Settled before their announcement, which took the other lane, arrived.
    early: BTreeSet<u64>,
    /// Announced in an earlier session, or withdrawn, or failed: not here as the active has it.
    pub stale: BTreeSet<MirrorPath>,
    /// How many changed paths the active had not announced yet.
    pub more: u64,
}

impl Announced {
    /// Takes an announcement: paths with their generations, the first being `first`.
    pub fn announce(&mut self, first: u64, paths: Vec<MirrorPath>, more: u64) {
        self.more = more;
        for (generation, path) in (first..).zip(paths) {
            if !self.early.remove(&generation) && self.by_generation.len() < MAX_ANNOUNCED {
                self.by_generation.insert(generation, path);
            }
        }
    }

    /// A change came to its end: durable, or not here as the active has it.
    pub fn settle(&mut self, generation: u64, path: Option<&MirrorPath>, applied: bool) {
        let path = match (self.by_generation.remove(&generation), path) {
            (Some(path), _) => path,
            (None, path) => {
                if self.early.len() < MAX_ANNOUNCED {
                    self.early.insert(generation);
                }
                let Some(path) = path else { return };
                path.clone()
            }
        };
        if applied {
            self.stale.remove(&path);
        } else if self.stale.len() < MAX_ANNOUNCED {
            self.stale.insert(path);
        }
    }

    /// What was announced in the session before is stale now.
    pub fn new_session(&mut self) {
        self.stale.extend(std::mem::take(&mut self.by_generation).into_values().take(MAX_ANNOUNCED));
        self.early.clear();
    }
}

//! The tree: one persistent ordered map from folded path to object, written by one thread, read by all.
//!
//! Always: every ancestor of an object is an object; an object's path begins with its parent's path in the parent's own
//! case; a subtree is one contiguous range of keys. A snapshot costs a reference count, and nodes are copied only while
//! somebody holds one. Never: a reader that waits for anything but another reader's copying of two words, or a change
//! that is refused here — validation happened in [`crate::ds::edit`], before the change became history.

use std::{
    cmp::Ordering,
    fmt,
    ops::{Bound, Deref},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use imbl::OrdMap;
use ringpair_wire::{
    ds::{Attribute, Change, ContentId, DsPath, Object, PathKey, Value},
    id::{Position, Version},
    usual::UsualPut,
};

use crate::ds::{
    digest::{self, Digest},
    key::Key,
};

/// An object in the tree, with its digest once somebody has asked for it.
pub struct Entry {
    object: Object,
    digest: OnceLock<Digest>,
}

impl Entry {
    /// Wraps an object as it stands in the tree.
    #[must_use]
    pub const fn new(object: Object) -> Self {
        Self { object, digest: OnceLock::new() }
    }

    /// The object.
    #[must_use]
    pub const fn object(&self) -> &Object {
        &self.object
    }

    /// The digest of path, class and attributes, without the version (interface §8); computed once.
    pub fn digest(&self) -> &Digest {
        self.digest.get_or_init(|| digest::of_object(&self.object))
    }

    /// The contents that the object's values refer to.
    pub fn contents(&self) -> impl Iterator<Item = (ContentId, u64)> + '_ {
        self.object.attributes.iter().flat_map(|attribute| &attribute.values).filter_map(|value| match value {
            Value::Content { id, len, .. } => Some((*id, *len)),
            Value::Text(_) | Value::Bytes(_) => None,
        })
    }

    /// The object for changing, its digest forgotten.
    fn edit(&mut self) -> &mut Object {
        self.digest.take();
        &mut self.object
    }
}

impl Clone for Entry {
    fn clone(&self) -> Self {
        Self { object: self.object.clone(), digest: self.digest.clone() }
    }
}

impl Deref for Entry {
    type Target = Object;

    fn deref(&self) -> &Object {
        &self.object
    }
}

impl PartialEq for Entry {
    /// Equal to the letter: the path's case counts, and the version.
    fn eq(&self, other: &Self) -> bool {
        self.path.as_str() == other.path.as_str() && self.object == other.object
    }
}
impl Eq for Entry {}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.object.fmt(f)
    }
}

type Map = OrdMap<Key, Arc<Entry>>;

/// What one change did to the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The object as it is now; `None` after a removal.
    pub object: Option<Arc<Entry>>,
    /// Parents that came into being, outermost first.
    pub parents: Vec<Arc<Entry>>,
    /// What was removed, in the order of paths; empty where there was nothing.
    pub removed: Vec<Arc<Entry>>,
}

/// A difference between two snapshots.
#[derive(Clone, Copy, Debug)]
pub enum Difference<'a> {
    /// Only the newer has it.
    Added(&'a Arc<Entry>),
    /// Both have it, differing in class, attributes, version or the case of the path.
    Changed {
        /// In the older snapshot.
        old: &'a Arc<Entry>,
        /// In the newer snapshot.
        new: &'a Arc<Entry>,
    },
    /// Only the older has it.
    Removed(&'a Arc<Entry>),
}

/// The tree as it was at one position. Cloning costs a few reference counts; it never changes.
#[derive(Clone, Default)]
pub struct TreeSnapshot {
    map: Map,
    position: Position,
    root_digest: Arc<OnceLock<Digest>>,
}

impl TreeSnapshot {
    /// Builds a snapshot from objects in any order; later ones replace earlier ones of the same path.
    #[must_use]
    pub fn from_objects(objects: impl IntoIterator<Item = Object>, position: Position) -> Self {
        let map = objects.into_iter().map(|object| (Key::of(&object.path), Arc::new(Entry::new(object)))).collect();
        Self { map, position, root_digest: Arc::default() }
    }

    /// The position in the history that this state belongs to.
    #[must_use]
    pub const fn position(&self) -> Position {
        self.position
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether there is no object at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The object at `path`, whatever the case (REP-125).
    #[must_use]
    pub fn get(&self, path: &DsPath) -> Option<&Arc<Entry>> {
        self.map.get(path.key().as_bytes())
    }

    /// All objects in the order of their folded paths: parents before children.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.map.values()
    }

    /// The object at `path`, if there is one, and all below it, parents before children.
    pub fn subtree<'a>(&'a self, path: &DsPath) -> impl Iterator<Item = &'a Arc<Entry>> + use<'a> {
        let end = after_subtree(path.key().as_bytes());
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.map.range::<_, [u8]>((Bound::Included(path.key().as_bytes()), end)).map(|(_, entry)| entry)
    }

    /// The first object after the folded path `key` within the subtree of `path`; to walk a subtree piece by piece.
    #[must_use]
    pub fn next_after(&self, key: &str, path: &DsPath) -> Option<&Arc<Entry>> {
        let (next, entry) = self.map.range::<_, [u8]>((Bound::Excluded(key.as_bytes()), Bound::Unbounded)).next()?;
        next.starts_with(path.key().as_bytes()).then_some(entry)
    }

    /// The direct children of `path`, in the order of their folded names.
    #[must_use]
    pub fn children(&self, path: &DsPath) -> Children<'_> {
        let from = Bound::Excluded(path.key().as_bytes().to_owned());
        Children { map: &self.map, prefix: path.shared_key(), from }
    }

    /// Whether anything lies below `path`.
    #[must_use]
    pub fn has_children(&self, path: &DsPath) -> bool {
        self.children(path).next().is_some()
    }

    /// The digest of the subtree at `path` and the number of its objects: equal on both members exactly when the
    /// subtrees are equal in paths, classes and attributes. The whole tree's is remembered.
    #[must_use]
    pub fn digest(&self, path: &DsPath) -> (Digest, u64) {
        if path.is_root() {
            let digest = *self.root_digest.get_or_init(|| digest::of_entries(self.iter()).0);
            return (digest, self.len() as u64);
        }
        digest::of_entries(self.subtree(path))
    }

    /// The differences from `older` to this snapshot, in the order of paths. Goes through both: `imbl`'s own difference
    /// (6.1.0) leaves out the first entry of a leaf that follows a shared one. What is shared is told by its address.
    pub fn differences<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = Difference<'a>> {
        let same = self.map.ptr_eq(&older.map);
        let mut before = older.map.iter().filter(move |_| !same).peekable();
        let mut after = self.map.iter().filter(move |_| !same).peekable();
        std::iter::from_fn(move || {
            loop {
                let order = match (before.peek(), after.peek()) {
                    (Some((old, _)), Some((new, _))) => old.cmp(new),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => return None,
                };
                match order {
                    Ordering::Less => return before.next().map(|(_, old)| Difference::Removed(old)),
                    Ordering::Greater => return after.next().map(|(_, new)| Difference::Added(new)),
                    Ordering::Equal => {
                        let ((_, old), (_, new)) = (before.next()?, after.next()?);
                        if !Arc::ptr_eq(old, new) && old != new {
                            return Some(Difference::Changed { old, new });
                        }
                    }
                }
            }
        })
    }

    /// Every content that a value refers to, with its length; one that is referred to twice comes twice.
    pub fn contents(&self) -> impl Iterator<Item = (ContentId, u64)> + '_ {
        self.iter().flat_map(|entry| entry.contents())
    }

    /// Puts `entry` in its place as it is, parents unheeded: for staging a whole state, never for a change.
    pub(crate) fn place(&mut self, entry: Arc<Entry>) {
        self.touch();
        self.map.insert(Key::of(&entry.path), entry);
    }

    /// Takes one object out as it is, children unheeded: for staging a whole state, never for a change.
    pub(crate) fn displace(&mut self, key: &str) -> Option<Arc<Entry>> {
        self.touch();
        self.map.remove(key.as_bytes())
    }

    /// Says which position this copy's state belongs to.
    pub fn set_position(&mut self, position: Position) {
        self.position = position;
    }

    /// Applies one resolved change to this copy, which shares nothing that changes with others: see [`Tree::apply`]. A
    /// transaction that is too long for one turn is applied to a copy bit by bit, which then replaces the tree's state.
    pub fn apply(&mut self, change: &Change, version: Version) -> Applied {
        self.touch();
        match change {
            Change::Put { path, .. } if path.is_root() => Applied::default(),
            Change::Put { path, class, replace, attributes } => {
                let put = |slot: &mut Arc<Entry>| {
                    merge(Arc::make_mut(slot).edit(), class.as_ref(), *replace, attributes, version);
                    Arc::clone(slot)
                };
                // Nearly always it is there.
                if let Some(slot) = self.map.get_mut(path.key().as_bytes()) {
                    return Applied { object: Some(put(slot)), parents: Vec::new(), removed: Vec::new() };
                }
                let parents = self.create(path, version);
                let object = self.map.get_mut(path.key().as_bytes()).map(put);
                Applied { object, parents, removed: Vec::new() }
            }
            Change::Remove { path } => {
                let keys: Vec<Key> = self.subtree(path).map(|entry| Key::of(&entry.path)).collect();
                let removed = keys.iter().filter_map(|key| self.map.remove(key)).collect();
                Applied { object: None, parents: Vec::new(), removed }
            }
        }
    }

    /// The object at `key`, for a change of the usual kind.
    fn slot(&mut self, key: &PathKey) -> Option<Slot<'_>> {
        self.touch();
        let slot = match Key::inline(key.bytes()) {
            Some(key) => self.map.get_mut(&key),
            None => self.map.get_mut(key.bytes()),
        };
        slot.map(Slot)
    }

    /// Creates `path` and the parents it lacks, without class or attributes; returns the parents, outermost first.
    /// The existing part of the path keeps the case it was created with.
    fn create(&mut self, path: &DsPath, version: Version) -> Vec<Arc<Entry>> {
        let mut missing = vec![path.clone()];
        let mut ancestor = path.parent();
        let mut above = None;
        while let Some(path) = ancestor.filter(|path| !path.is_root()) {
            if let Some(entry) = self.map.get(path.key().as_bytes()) {
                above = Some(entry.path.clone());
                break;
            }
            ancestor = path.parent();
            missing.push(path);
        }
        let mut created: Vec<Arc<Entry>> = missing
            .into_iter()
            .rev()
            .map(|path| {
                let path = above.as_ref().map_or_else(|| path.clone(), |above| in_case_of(above, &path));
                let object = Object { path, class: "".into(), attributes: Default::default(), version };
                let entry = Arc::new(Entry::new(object));
                self.map.insert(Key::of(&entry.path), Arc::clone(&entry));
                entry
            })
            .collect();
        created.pop();
        created
    }

    /// Forgets what was remembered about the state before a change.
    fn touch(&mut self) {
        match Arc::get_mut(&mut self.root_digest) {
            Some(cell) => drop(cell.take()),
            None => self.root_digest = Arc::default(),
        }
    }
}

impl fmt::Debug for TreeSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeSnapshot")
            .field("objects", &self.len())
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}

/// The direct children of a path: every step jumps over the subtree below the child before it.
pub struct Children<'a> {
    map: &'a Map,
    prefix: Arc<str>,
    from: Bound<Vec<u8>>,
}

impl<'a> Iterator for Children<'a> {
    type Item = &'a Arc<Entry>;

    fn next(&mut self) -> Option<&'a Arc<Entry>> {
        let from = self.from.as_ref().map(Vec::as_slice);
        let (key, entry) = self.map.range::<_, [u8]>((from, Bound::Unbounded)).next()?;
        if !key.starts_with(self.prefix.as_bytes()) {
            return None;
        }
        self.from = after_subtree(key).map_or(Bound::Unbounded, Bound::Included);
        Some(entry)
    }
}

/// An object in its place in the tree, before and after a change of the usual kind.
pub struct Slot<'a>(&'a mut Arc<Entry>);

impl Slot<'_> {
    /// The object as it is.
    #[must_use]
    pub fn object(&self) -> &Object {
        self.0.object()
    }

    /// Carries the put in, as [`Tree::apply`] does with the same change.
    pub fn put(&mut self, put: &UsualPut<'_>, version: Version) {
        let object = Arc::make_mut(self.0).edit();
        if let Some(class) = put.class().filter(|class| **class != *object.class) {
            object.class = class.into();
        }
        if put.replaces() {
            object.attributes.retain(|kept| put.names(&kept.name));
        }
        put.attributes().iter().for_each(|(name, value)| object.attributes.set(name, *value));
        object.version = version;
    }
}

/// The writer's end of the tree: one, owned by the stream thread.
#[derive(Debug, Default)]
pub struct Tree {
    shared: Arc<Mutex<TreeSnapshot>>,
}

impl Tree {
    /// A tree in the given state: empty ([`Default`]), loaded from the store, or staged by a resynchronization.
    #[must_use]
    pub fn new(state: TreeSnapshot) -> Self {
        Self { shared: Arc::new(Mutex::new(state)) }
    }

    /// A reader's end, for any thread.
    #[must_use]
    pub fn handle(&self) -> TreeHandle {
        TreeHandle { shared: Arc::clone(&self.shared) }
    }

    /// The state now. Drop it before the next change where it is not needed longer: what is held is copied.
    #[must_use]
    pub fn snapshot(&self) -> TreeSnapshot {
        self.lock().clone()
    }

    /// Applies one resolved change. Idempotent: the second time leaves what the first left (REP-006). A put creates
    /// missing parents (empty class) with the change's version; a removal takes the whole subtree; a put of the root,
    /// which is no object, does nothing.
    pub fn apply(&mut self, change: &Change, version: Version) -> Applied {
        self.lock().apply(change, version)
    }

    /// Applies changes and says that everything up to `position` has been applied, in one step: a reader sees all of it
    /// or nothing, and the position that belongs to what it sees. Up to some hundred changes; for more see
    /// [`TreeSnapshot::apply`].
    pub fn apply_all<'a>(
        &mut self,
        changes: impl IntoIterator<Item = (&'a Change, Version)>,
        position: Position,
    ) -> Vec<Applied> {
        let mut state = self.lock();
        let applied = changes.into_iter().map(|(change, version)| state.apply(change, version)).collect();
        state.position = position;
        applied
    }

    /// Gives the object at `key` to `edit`, with one look-up for all that it does; `None`: there is no such object, and
    /// [`apply`](Self::apply) creates it.
    pub fn with_object<R>(&mut self, key: &PathKey, edit: impl FnOnce(Slot<'_>) -> R) -> Option<R> {
        self.lock().slot(key).map(edit)
    }

    /// Says that everything up to `position` has been applied.
    pub fn advance(&mut self, position: Position) {
        self.lock().position = position;
    }

    /// The position applied.
    #[must_use]
    pub fn position(&self) -> Position {
        self.lock().position
    }

    /// Takes another state in one step (a resynchronization): readers see the old one or the new one. The old one is
    /// returned; drop it on a thread that has time.
    pub fn replace(&mut self, state: TreeSnapshot) -> TreeSnapshot {
        std::mem::replace(&mut *self.lock(), state)
    }

    fn lock(&self) -> MutexGuard<'_, TreeSnapshot> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's end of the tree: cheap to clone, usable on any thread.
#[derive(Clone, Debug)]
pub struct TreeHandle {
    shared: Arc<Mutex<TreeSnapshot>>,
}

impl TreeHandle {
    /// The state now; the lock is held for the copying of a few words only.
    #[must_use]
    pub fn snapshot(&self) -> TreeSnapshot {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The least key that is greater than every key of the subtree of `key`; `None` for the root's. Keys end in `\0`, and
/// no component holds a control character, so `\x01` in its place lies directly behind the subtree.
fn after_subtree(key: &[u8]) -> Option<Vec<u8>> {
    let mut end = key.to_owned();
    *end.last_mut()? = 1;
    Some(end)
}

/// `path`, whose beginning is `ancestor` regardless of case, with that beginning in the case of `ancestor`.
fn in_case_of(ancestor: &DsPath, path: &DsPath) -> DsPath {
    let depth = ancestor.components().count();
    let components = ancestor.components().chain(path.components().skip(depth));
    DsPath::from_components(components).unwrap_or_else(|_| path.clone())
}

/// Carries a put into an object.
fn merge(object: &mut Object, class: Option<&Arc<str>>, replace: bool, attributes: &[Attribute], version: Version) {
    // The one that is there is shared already with what else holds this class.
    if let Some(class) = class.filter(|class| **class != object.class) {
        object.class = Arc::clone(class);
    }
    object.attributes.merge(attributes, replace);
    object.version = version;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringpair_wire::{codec::Writer, record::Part};

    use super::*;
    use crate::ds::testing::{any_changes, apply_all, path, position, put, tree, version};

    fn paths<'a>(entries: impl IntoIterator<Item = &'a Arc<Entry>>) -> Vec<&'a str> {
        entries.into_iter().map(|entry| entry.path.as_str()).collect()
    }

    // REQ: REP-125
    #[test]
    fn paths_match_by_whole_components_regardless_of_case() {
        let tree = tree(&["/CONFIG/Users/x a=1", "/CONFIG/UsersOld a=1", "/config/USERS/Y a=1"]);
        assert_eq!(
            paths(tree.subtree(&path("/config/users"))),
            ["/CONFIG/Users", "/CONFIG/Users/x", "/CONFIG/Users/Y"]
        );
        assert_eq!(paths(tree.children(&path("${config}"))), ["/CONFIG/Users", "/CONFIG/UsersOld"]);
        assert_eq!(paths(tree.children(&DsPath::root())), ["/CONFIG"]);
        assert_eq!(tree.get(&path("/CONFIG/users/y")).unwrap().path.as_str(), "/CONFIG/Users/Y");
        assert!(tree.has_children(&path("/Config")) && !tree.has_children(&path("/config/usersold")));
        let users = path("/config/users");
        assert_eq!(tree.next_after(users.key(), &users).unwrap().path.as_str(), "/CONFIG/Users/x");
        assert!(tree.next_after(path("/config/users/y").key(), &users).is_none());
    }

    proptest! {
        // REQ: REP-006
        #[test]
        fn a_usual_put_does_what_the_same_change_does(changes in any_changes(12), name in "[a-cA-C]", replace: bool) {
            let attribute = |name: &str, value: &str| Attribute { name: name.into(), values: vec![Value::Text(value.into())] };
            let mut state = TreeSnapshot::default();
            state.apply(&put("/A/b a=1,2 c=3"), version(1));
            apply_all(&mut state, &changes, 2);
            let attributes = vec![attribute(&name, "new"), attribute("z", "")];
            let change = Change::Put { path: path("/A/b"), class: Some("K".into()), replace, attributes };
            let mut record = Vec::new();
            ringpair_wire::record::encode_change(Part::Whole, &change, &mut Writer::new(&mut record));
            let (_, usual) = UsualPut::of_record(&record).unwrap();
            let (mut other, shared) = (Tree::new(state.clone()), state.clone());
            let done = other.with_object(&usual.key().unwrap(), |mut slot| slot.put(&usual, version(99)));
            prop_assert_eq!(done.is_some(), state.get(&path("/A/b")).is_some());
            if done.is_some() {
                state.apply(&change, version(99));
            }
            prop_assert!(other.snapshot().iter().eq(state.iter()));
            prop_assert_eq!(other.snapshot().digest(&DsPath::root()), state.digest(&DsPath::root()));
            prop_assert!(shared.differences(&state).count() <= 1, "who holds a snapshot keeps it");
        }
    }

    // REQ: REP-001, REP-005
    #[test]
    fn puts_merge_replace_and_create_parents() {
        let mut state = TreeSnapshot::default();
        let applied = state.apply(&put("/A/B/c Name=1 Other=2"), version(7));
        assert_eq!(paths(&applied.parents), ["/A", "/A/B"]);
        assert!(applied.parents.iter().all(|parent| parent.class.is_empty() && parent.version == version(7)));
        let applied = state.apply(&put("/a/b/C nAME=x third=3"), version(8));
        assert!(applied.parents.is_empty());
        let object = applied.object.unwrap();
        let names: Vec<_> = object.attributes.iter().map(|attribute| &*attribute.name).collect();
        assert_eq!((object.path.as_str(), names), ("/A/B/c", vec!["Name", "Other", "third"]), "case of creation");
        let Change::Put { path, attributes, .. } = put("/a/b/c other=9") else { panic!() };
        let replace = Change::Put { path, class: Some("K".into()), replace: true, attributes };
        let object = state.apply(&replace, version(9)).object.unwrap();
        assert_eq!((object.attributes.len(), &*object.class, object.version), (1, "K", version(9)));
        let gone = Attribute { name: "OTHER".into(), values: vec![] };
        let unset = Change::Put { path: object.path.clone(), class: None, replace: false, attributes: vec![gone] };
        assert!(state.apply(&unset, version(10)).object.unwrap().attributes.is_empty());
        assert_eq!(
            state.apply(
                &Change::Put { path: DsPath::root(), class: None, replace: true, attributes: vec![] },
                version(11)
            ),
            Applied::default()
        );
    }

    // REQ: REP-004
    #[test]
    fn removing_takes_the_subtree_and_nothing_else() {
        let mut state = tree(&["/a/b/c x=1", "/a/bc x=1", "/a/b/d x=1"]);
        let applied = state.apply(&Change::Remove { path: path("/A/B") }, version(9));
        assert_eq!(paths(&applied.removed), ["/a/b", "/a/b/c", "/a/b/d"]);
        assert_eq!(paths(state.iter()), ["/a", "/a/bc"]);
        assert!(state.apply(&Change::Remove { path: path("/a/b") }, version(9)).removed.is_empty());
        state.apply(&Change::Remove { path: DsPath::root() }, version(10));
        assert!(state.is_empty());
    }

    #[test]
    fn a_snapshot_stays_as_it_was_and_readers_see_the_newest() {
        let mut tree = Tree::new(tree(&["/a x=1"]));
        let reader = tree.handle();
        let before = reader.snapshot();
        let digest = before.digest(&DsPath::root());
        tree.apply(&put("/a x=2"), version(2));
        tree.advance(position(2));
        assert_eq!(before.digest(&DsPath::root()), digest);
        assert_ne!(reader.snapshot().digest(&DsPath::root()), digest, "the remembered digest is of the old state");
        assert_eq!((before.position().seq.0, reader.snapshot().position()), (1, position(2)));
        let old = tree.replace(before);
        assert_eq!(old.position(), position(2));
        assert_eq!(reader.snapshot().digest(&DsPath::root()), digest);
    }

    #[test]
    fn a_reader_sees_a_transaction_whole_with_its_position() {
        let mut tree = Tree::default();
        let reader = tree.handle();
        let changes: Vec<_> = (0..50).map(|n| put(&format!("/a/n{n} x=1"))).collect();
        let end = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watching = scope.spawn(|| {
                let mut seen = 0;
                while !end.load(std::sync::atomic::Ordering::Acquire) {
                    let state = reader.snapshot();
                    assert_eq!(state.len() as u64, state.position().seq.0, "half a transaction");
                    seen += 1;
                }
                seen
            });
            for round in 1..200 {
                let whole = Change::Remove { path: DsPath::root() };
                let all =
                    changes.iter().filter(|_| round % 2 == 1).chain([&whole].into_iter().filter(|_| round % 2 == 0));
                let count = if round % 2 == 1 { 51 } else { 0 };
                let applied = tree.apply_all(all.map(|change| (change, version(round))), position(count));
                assert_eq!(applied.len(), if round % 2 == 1 { 50 } else { 1 });
            }
            end.store(true, std::sync::atomic::Ordering::Release);
            assert!(watching.join().unwrap() > 0);
        });
    }

    #[test]
    fn the_tree_goes_between_threads() {
        fn check<T: Clone + Send + Sync>() {}
        check::<TreeSnapshot>();
        check::<TreeHandle>();
    }

    fn reversed(tree: &TreeSnapshot) -> Vec<Object> {
        let mut objects: Vec<_> = tree.iter().map(|entry| entry.object().clone()).collect();
        objects.reverse();
        objects
    }

    fn equal(a: &TreeSnapshot, b: &TreeSnapshot) -> bool {
        a.differences(b).next().is_none()
    }

    proptest! {
        // REQ: REP-006
        #[test]
        fn applying_twice_leaves_what_once_leaves(first in any_changes(20), second in any_changes(20)) {
            let mut once = TreeSnapshot::default();
            apply_all(&mut once, &first, 1);
            apply_all(&mut once, &second, 100);
            let mut again = once.clone();
            apply_all(&mut again, &second, 100);
            prop_assert!(equal(&once, &again));
            // A tail is replayed from its beginning, over a state that has it whole.
            apply_all(&mut again, &first, 1);
            apply_all(&mut again, &second, 100);
            prop_assert!(equal(&once, &again), "{:?} {:?}", once.iter().collect::<Vec<_>>(), again.iter().collect::<Vec<_>>());
        }

        #[test]
        fn every_parent_exists_in_its_own_case(changes in any_changes(40)) {
            let mut state = TreeSnapshot::default();
            apply_all(&mut state, &changes, 1);
            for entry in state.iter() {
                let parent = entry.path.parent().unwrap();
                if !parent.is_root() {
                    let above = state.get(&parent);
                    prop_assert_eq!(above.map(|above| above.path.as_str()), Some(parent.as_str()));
                }
                let children: Vec<_> = state.children(&entry.path).map(|child| child.path.clone()).collect();
                let below = state.subtree(&entry.path).filter(|below| below.path.parent().as_ref() == Some(&entry.path));
                prop_assert_eq!(children, below.map(|below| below.path.clone()).collect::<Vec<_>>());
            }
        }

        #[test]
        fn digests_are_equal_exactly_when_trees_are(a in any_changes(6), b in any_changes(6), at in 0..4_usize) {
            let (mut left, mut right) = (TreeSnapshot::default(), TreeSnapshot::default());
            apply_all(&mut left, &a, 1);
            apply_all(&mut right, &b, 50);
            let at = path(["/", "/a", "/b", "/a/b"][at]);
            let content = |tree: &TreeSnapshot| -> Vec<_> {
                tree.subtree(&at)
                    .map(|entry| (entry.path.as_str().to_owned(), entry.class.clone(), entry.attributes.clone()))
                    .collect()
            };
            prop_assert_eq!(content(&left) == content(&right), left.digest(&at).0 == right.digest(&at).0);
            // However it came to be.
            let again = TreeSnapshot::from_objects(reversed(&left), left.position());
            prop_assert_eq!(left.digest(&at), again.digest(&at));
        }
    }
}

//! Resynchronization by digests, both ends, without IO: messages in, messages out (REP-003, REP-008, design §3).
//!
//! Always: the follower's tree does not change while differences are staged; what is staged is checked whole — sums with
//! versions, and the digest of the tree — before it can be taken; objects come with the leader's versions. Cost on the
//! wire follows the number of differences; memory holds the requests under way and what differs. Never: a message that
//! depends on more than the leader's snapshot, an unbounded answer, or a decision to apply: [`Staged`] is the caller's.
//!
//! [`ResyncIndex::build`] looks at every object (about a second for a million): that is done once, behind the first
//! checkpoint. From then on [`KeptIndex`] is brought forward by what differs; everything else costs what the message costs.

mod client;
mod index;
mod server;

use std::sync::Arc;

pub use client::{ResyncClient, ResyncCost, Unfinished, WINDOW};
use index::Changed;
pub use index::{KeptIndex, ResyncIndex};
use ringpair_wire::{
    ds::{ContentId, DsPath},
    id::Seq,
    resync::{MAX_BUCKET_ITEMS, MAX_GROUP_BYTES},
};
pub use server::ResyncServer;

use crate::ds::tree::{Difference, Entry, TreeSnapshot};

/// Why a resynchronization cannot go on. It can be begun again; nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResyncError {
    /// The message does not belong here: an answer sent to the leader, or an answer nobody asked for.
    #[error("unexpected resynchronization message: {0}")]
    Unexpected(&'static str),
    /// The leader's answer contradicts what was asked or what it said before.
    #[error("resynchronization answer does not fit: {0}")]
    Contradiction(String),
    /// A node that was to be listed holds more than a message takes.
    #[error("{0} objects to be listed at once, more than {MAX_BUCKET_ITEMS}")]
    BucketTooLarge(u64),
    /// An object does not fit into a message.
    #[error("object {path} takes {bytes} bytes, more than {MAX_GROUP_BYTES}")]
    ObjectTooLarge {
        /// Which object.
        path: DsPath,
        /// Its encoded size.
        bytes: usize,
    },
    /// What was staged is not what the leader has.
    #[error("staged tree differs from the leader's: {0}")]
    Mismatch(String),
}

/// A whole state of the leader, checked, ready to be taken in one step. Before it is: archive [`divergent`], receive
/// the contents that are missing; then save it ([`crate::ds::store::StateStore::save`]) and replace the tree's state.
///
/// [`divergent`]: Self::divergent
#[derive(Debug)]
pub struct Staged {
    after: TreeSnapshot,
    /// What differs from the follower's state, in the order of paths.
    changed: Vec<Changed>,
    contents: Vec<(ContentId, u64)>,
    cost: ResyncCost,
}

/// An object of the follower that the leader never got, about to be overwritten or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergent {
    /// The object as the follower has it.
    pub entry: Arc<Entry>,
    /// Whether the leader has another object in its place (otherwise none).
    pub overwritten: bool,
}

impl Staged {
    fn new(changed: Vec<Changed>, after: TreeSnapshot, cost: ResyncCost) -> Self {
        let new = changed.iter().filter_map(|(_, new)| new.as_ref());
        let mut contents: Vec<(ContentId, u64)> = new.flat_map(|entry| entry.contents()).collect();
        contents.sort_unstable();
        contents.dedup();
        Self { after, changed, contents, cost }
    }

    /// The state to take, at the leader's position.
    #[must_use]
    pub const fn state(&self) -> &TreeSnapshot {
        &self.after
    }

    /// The contents that received objects refer to, each once; those the content store lacks have to come first.
    #[must_use]
    pub fn contents(&self) -> &[(ContentId, u64)] {
        &self.contents
    }

    /// What it cost.
    #[must_use]
    pub const fn cost(&self) -> ResyncCost {
        self.cost
    }

    /// What differs, in the order of paths, from the follower's state to the leader's: also what `verify` lists.
    pub fn differences(&self) -> impl Iterator<Item = Difference<'_>> {
        self.changed.iter().filter_map(|changed| match changed {
            (Some(old), Some(new)) => Some(Difference::Changed { old, new }),
            (Some(old), None) => Some(Difference::Removed(old)),
            (None, Some(new)) => Some(Difference::Added(new)),
            (None, None) => None,
        })
    }

    /// The follower's objects whose version lies beyond the last position that both histories share, and that this
    /// state overwrites or removes (protocol §11). Objects the follower had removed are in its journal's records only.
    pub fn divergent(&self, common: Seq) -> impl Iterator<Item = Divergent> + '_ {
        self.differences().filter_map(move |difference| {
            let (entry, overwritten) = match difference {
                Difference::Added(_) => return None,
                Difference::Changed { old, .. } => (old, true),
                Difference::Removed(old) => (old, false),
            };
            (entry.version.seq > common).then(|| Divergent { entry: Arc::clone(entry), overwritten })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use ringpair_wire::{codec::Codec, ds::Change, resync::ResyncMessage};

    use super::*;
    use crate::ds::testing::{any_changes, apply_all, path, position, put, tree, version};

    /// Runs both ends against each other, every message through its codec.
    fn resync(leader: &TreeSnapshot, follower: &TreeSnapshot) -> Staged {
        let server = ResyncServer::new(ResyncIndex::build(leader));
        let mut client = ResyncClient::new(ResyncIndex::build(follower));
        let mut wire = VecDeque::new();
        loop {
            while let Some(message) = client.poll() {
                wire.push_back(message.to_bytes());
                assert!(wire.len() <= WINDOW);
            }
            let Some(request) = wire.pop_front() else { break };
            let answer = server.handle(&ResyncMessage::from_bytes(&request).unwrap()).unwrap().to_bytes();
            assert!(answer.len() <= ringpair_wire::resync::MAX_MESSAGE_BYTES);
            client.handle(ResyncMessage::from_bytes(&answer).unwrap()).unwrap();
        }
        assert!(client.is_done());
        client.finish().unwrap()
    }

    fn equal(a: &TreeSnapshot, b: &TreeSnapshot) -> bool {
        a.differences(b).next().is_none() && a.position() == b.position()
    }

    fn numbered(count: u64) -> TreeSnapshot {
        let mut tree = TreeSnapshot::default();
        for n in 0..count {
            tree.apply(&put(&format!("/CONFIG/Users/user{n} Extension={n} Name=x{n}")), version(n + 1));
        }
        tree.set_position(position(count));
        tree
    }

    /// Answers `client` until it is done or `messages` have been answered.
    fn exchange(leader: &TreeSnapshot, client: &mut ResyncClient, messages: usize) {
        let server = ResyncServer::new(ResyncIndex::build(leader));
        for _ in 0..messages {
            let Some(request) = client.poll() else { return };
            client.handle(server.handle(&request).unwrap()).unwrap();
        }
    }

    // REQ: REP-001, REP-006
    #[test]
    fn no_difference_is_left_out_wherever_it_lies() {
        let before = numbered(1_000);
        let keys: Vec<String> = before.iter().map(|entry| entry.path.to_string()).collect();
        let mut all = before.clone();
        for (at, key) in keys.iter().enumerate().skip(2) {
            let mut one = before.clone();
            one.apply(&put(&format!("{key} Extension=new")), version(2_000));
            assert_eq!(one.differences(&before).count(), 1, "{key}");
            if at % 7 == 0 {
                all.apply(&Change::Remove { path: path(key) }, version(3_000));
                one.apply(&Change::Remove { path: path(key) }, version(3_000));
                assert_eq!(one.differences(&before).count(), 1, "{key} removed");
            }
        }
        assert_eq!(all.differences(&before).count(), before.len() - all.len());
    }

    // REQ: REP-310, REP-008
    #[test]
    fn a_comparison_that_is_cut_again_and_again_goes_on_where_it_was() {
        const MESSAGES: usize = 6;
        let mut leader = numbered(8_000);
        let follower = tree(&["/config/users/user3 Extension=mine", "/only/here x=1"]);
        let mut client = ResyncClient::new(ResyncIndex::build(&follower));
        exchange(&leader, &mut client, MESSAGES);
        assert!(!client.is_done(), "more than one connection's worth");
        let mut received = 0;
        for cut in 0.. {
            assert!(cut < 20, "cut after each {MESSAGES} messages it never comes to its end");
            received += client.cost().objects;
            let unfinished = client.into_unfinished();
            assert!(unfinished.is_of(&follower) && !unfinished.is_of(&leader));
            client = ResyncClient::resume(unfinished);
            // The leader goes on meanwhile.
            leader.apply(&put(&format!("/CONFIG/Users/user{cut} Extension=new")), version(9_000 + cut));
            leader.set_position(position(9_000 + cut));
            exchange(&leader, &mut client, MESSAGES);
            if client.is_done() {
                break;
            }
        }
        received += client.cost().objects;
        assert!((8_001..8_100).contains(&received), "each object came once, or again where it had changed: {received}");
        let staged = client.finish().unwrap();
        assert!(equal(staged.state(), &leader));
        assert_eq!(staged.divergent(Seq(0)).count(), 5, "all that the follower had, parents included");
    }

    // REQ: REP-310
    #[test]
    fn what_is_noted_down_is_bounded_however_much_differs() {
        let leader = numbered(60_000);
        let mut follower = TreeSnapshot::default();
        for n in 0..60_000 {
            follower.apply(&put(&format!("/CONFIG/Users/user{n} Extension=other")), version(n + 1));
        }
        let server = ResyncServer::new(ResyncIndex::build(&leader));
        let mut client = ResyncClient::new(ResyncIndex::build(&follower));
        let (mut wire, mut most) = (VecDeque::new(), 0);
        while !client.is_done() {
            while let Some(request) = client.poll() {
                wire.push_back(server.handle(&request).unwrap());
            }
            most = most.max(client.noted());
            client.handle(wire.pop_front().unwrap()).unwrap();
        }
        assert_eq!(client.cost().objects, 60_000);
        assert!(most < 12_000, "{most} nodes and ranges at once");
        assert!(equal(client.finish().unwrap().state(), &leader));
    }

    // REQ: REP-003, REP-004, REP-008
    #[test]
    fn cost_follows_the_number_of_differences() {
        let leader = numbered(20_000);
        let mut follower = leader.clone();
        let same = resync(&leader, &follower).cost();
        assert_eq!((same.requests, same.objects), (1, 0));
        for n in [3, 777, 19_999] {
            follower.apply(&put(&format!("/config/users/user{n} Extension=other")), version(30_000 + n));
        }
        follower.apply(&Change::Remove { path: path("/CONFIG/Users/user5") }, version(50_000));
        follower.apply(&put("/CONFIG/Users/extra x=1"), version(50_001));
        follower.set_position(position(50_001));
        let staged = resync(&leader, &follower);
        assert!(equal(staged.state(), &leader));
        assert_eq!((staged.cost().objects, staged.differences().count()), (4, 5));
        assert!(staged.cost().bytes < 40_000, "{:?}", staged.cost());
        let full = resync(&leader, &TreeSnapshot::default());
        assert!(equal(full.state(), &leader));
        assert_eq!(full.cost().objects, 20_002);
        let emptied = resync(&TreeSnapshot::default(), &leader);
        assert!(emptied.state().is_empty());
    }

    #[test]
    fn versions_come_with_the_objects_even_where_only_they_differ() {
        let mut leader = tree(&["/a x=1", "/b x=1"]);
        let follower = leader.clone();
        leader.apply(&put("/a x=1"), version(9));
        leader.set_position(position(9));
        assert_eq!(leader.digest(&DsPath::root()), follower.digest(&DsPath::root()));
        let staged = resync(&leader, &follower);
        assert_eq!((staged.state().get(&path("/a")).unwrap().version, staged.cost().objects), (version(9), 1));
    }

    #[test]
    fn what_only_the_follower_has_is_handed_out_before_anything_is_applied() {
        let common = tree(&["/a x=1", "/b x=1", "/c x=1"]);
        let (mut leader, mut follower) = (common.clone(), common);
        leader.apply(&put("/a x=2"), version(10));
        leader.apply(&Change::Remove { path: path("/c") }, version(11));
        follower.apply(&put("/b x=mine"), version(4));
        follower.apply(&put("/new x=mine"), version(5));
        let staged = resync(&leader, &follower);
        let divergent: Vec<_> =
            staged.divergent(Seq(3)).map(|lost| (lost.entry.path.to_string(), lost.overwritten)).collect();
        assert_eq!(divergent, [("/b".to_owned(), true), ("/new".to_owned(), false)], "/a and /c are common history");
        assert_eq!(follower.get(&path("/b")).unwrap().version, version(4));
    }

    #[test]
    fn contents_are_named_and_large_objects_travel() {
        let id = ContentId([7; 32]);
        let value = ringpair_wire::ds::Value::Content { id, len: 70_000, text: true };
        let big = "y".repeat(60_000);
        let mut leader = TreeSnapshot::default();
        for n in 0..30 {
            let Change::Put { path, mut attributes, .. } = put(&format!("/big/{n} v={big}")) else { panic!() };
            attributes.push(ringpair_wire::ds::Attribute { name: "body".into(), values: vec![value.clone()] });
            leader.apply(&Change::Put { path, class: None, replace: false, attributes }, version(n + 1));
        }
        let staged = resync(&leader, &TreeSnapshot::default());
        assert!(equal(staged.state(), &leader));
        assert_eq!(staged.contents(), [(id, 70_000)]);
        assert!(staged.cost().requests > 10, "split over several answers: {:?}", staged.cost());
    }

    #[test]
    fn a_leader_that_contradicts_itself_is_refused() {
        let leader = numbered(300);
        let server = ResyncServer::new(ResyncIndex::build(&leader));
        let mut client = ResyncClient::new(ResyncIndex::build(&TreeSnapshot::default()));
        assert!(matches!(
            server.handle(&ResyncMessage::Objects { request: 0, objects: vec![], ranges_done: 0, resume_at: None }),
            Err(ResyncError::Unexpected(_))
        ));
        let begin = client.poll().unwrap();
        let root = server.handle(&begin).unwrap();
        client.handle(root.clone()).unwrap();
        assert_eq!(client.handle(root), Err(ResyncError::Unexpected("Root")));
        let ask = client.poll().unwrap();
        let answer = server.handle(&ask).unwrap();
        let ResyncMessage::Objects { request, objects, .. } = answer else { panic!("{answer:?}") };
        let first = objects[0].clone();
        let twice = vec![first.clone(), first];
        let refused =
            client.handle(ResyncMessage::Objects { request, objects: twice, ranges_done: 1, resume_at: None });
        assert!(matches!(refused, Err(ResyncError::Contradiction(_))), "{refused:?}");
        assert!(client.handle(ResyncMessage::Items { request: 9, nodes: vec![] }).is_err());
        // An answer that leaves objects out is found out at the end.
        let mut client = ResyncClient::new(ResyncIndex::build(&TreeSnapshot::default()));
        let root = server.handle(&client.poll().unwrap()).unwrap();
        client.handle(root).unwrap();
        let ResyncMessage::AskObjects { request, .. } = client.poll().unwrap() else { panic!() };
        client.handle(ResyncMessage::Objects { request, objects: vec![], ranges_done: 1, resume_at: None }).unwrap();
        assert!(matches!(client.finish(), Err(ResyncError::Mismatch(_))));
    }

    proptest! {
        // REQ: REP-001, REP-004
        #[test]
        fn any_two_trees_become_equal_versions_included(
            common in any_changes(30), ours in any_changes(30), theirs in any_changes(30),
        ) {
            let mut leader = TreeSnapshot::default();
            apply_all(&mut leader, &common, 1);
            let mut follower = leader.clone();
            apply_all(&mut leader, &theirs, 1_000);
            apply_all(&mut follower, &ours, 2_000);
            let staged = resync(&leader, &follower);
            prop_assert!(equal(staged.state(), &leader));
            prop_assert_eq!(staged.state().digest(&DsPath::root()), leader.digest(&DsPath::root()));
        }
    }
}

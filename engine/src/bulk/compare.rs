//! Comparisons of the tree with the peer's by digests: to take the peer's state over, or to know what differs.
//!
//! Always: one comparison at a time, and one snapshot served; a cut lane changes nothing. What was staged to
//! be taken over is kept for the next lane, so that one that is cut again and again still leads to an end.

use std::{collections::VecDeque, time::Instant};

use ringpair_wire::{codec::Codec, id::Seq, resync::ResyncMessage};

use super::link::{BulkEvent, DsVerdict, ResyncPurpose};
use crate::{
    api::backend::Difference,
    ds::{
        TreeSnapshot,
        resync::{KeptIndex, ResyncClient, ResyncIndex, ResyncServer, Unfinished, WINDOW},
        tree::Difference as TreeDifference,
    },
};

/// How many answers may wait to be sent: a peer that keeps to its window has at most so many.
const MAX_ANSWERS: usize = 2 * WINDOW;
/// How many differences are handed on at most.
const LISTED: usize = 1000;

struct Run {
    purpose: ResyncPurpose,
    client: ResyncClient,
    own: TreeSnapshot,
}

impl Run {
    fn takes(&self) -> bool {
        matches!(self.purpose, ResyncPurpose::Take(_))
    }
}

/// What is compared and what is served.
pub struct Comparisons {
    index: KeptIndex,
    /// Waits for the lane.
    waiting: Option<(ResyncPurpose, TreeSnapshot)>,
    run: Option<Run>,
    /// What a comparison for taking over had staged when it was cut.
    unfinished: Option<Unfinished>,
    server: Option<ResyncServer>,
    /// The peer's `Begin` waits for a snapshot.
    wanted: bool,
    answers: VecDeque<ResyncMessage>,
}

impl Comparisons {
    /// Nothing compared; what is compared is ordered by way of `index`.
    #[must_use]
    pub fn new(index: KeptIndex) -> Self {
        Self {
            index,
            waiting: None,
            run: None,
            unfinished: None,
            server: None,
            wanted: false,
            answers: VecDeque::new(),
        }
    }

    /// Begins a comparison, as soon as the lane is up; an earlier one ends.
    pub fn begin(&mut self, purpose: ResyncPurpose, own: TreeSnapshot, connected: bool) -> Vec<BulkEvent> {
        let events = self.abandon("another comparison was begun");
        self.waiting = Some((purpose, own));
        if connected {
            self.connected();
        }
        events
    }

    /// The lane is up: what waited for it begins.
    pub fn connected(&mut self) {
        if let Some((purpose, own)) = self.waiting.take() {
            let unfinished = self.unfinished.take_if(|_| matches!(purpose, ResyncPurpose::Take(_)));
            let client = match unfinished.filter(|unfinished| unfinished.is_of(&own)) {
                Some(unfinished) => ResyncClient::resume(unfinished),
                None => ResyncClient::new(self.index_of(&own)),
            };
            self.run = Some(Run { purpose, client, own });
        }
    }

    /// The snapshot that was wanted: from now on the peer compares with it.
    pub fn serve(&mut self, snapshot: TreeSnapshot) {
        let server = ResyncServer::new(self.index_of(&snapshot));
        if std::mem::take(&mut self.wanted)
            && let Ok(answer) = server.handle(&ResyncMessage::Begin)
        {
            self.answers.push_back(answer);
        }
        self.server = Some(server);
    }

    fn index_of(&self, snapshot: &TreeSnapshot) -> ResyncIndex {
        let began = Instant::now();
        let index = self.index.of(snapshot);
        tracing::debug!(objects = snapshot.len(), took = ?began.elapsed(), "ordered by path hash");
        index
    }

    /// The lane was cut. A state that was to be taken over is asked for again on the next lane, from where it was.
    pub fn disconnected(&mut self) -> Vec<BulkEvent> {
        (self.server, self.wanted) = (None, false);
        self.answers.clear();
        let Some(Run { purpose: purpose @ ResyncPurpose::Take(_), client, own }) = self.run.take_if(|run| run.takes())
        else {
            return self.abandon("the bulk lane was cut");
        };
        self.unfinished = Some(client.into_unfinished());
        self.waiting = Some((purpose, own));
        Vec::new()
    }

    /// This member takes nothing over: what was staged for it is let go of.
    pub fn forget_unfinished(&mut self) {
        self.unfinished = None;
        self.waiting.take_if(|(purpose, _)| matches!(purpose, ResyncPurpose::Take(_)));
    }

    fn abandon(&mut self, why: &str) -> Vec<BulkEvent> {
        let waiting = self.waiting.take().map(|(purpose, _)| purpose);
        let running = self.run.take().map(|run| {
            if run.takes() {
                self.unfinished = Some(run.client.into_unfinished());
            }
            run.purpose
        });
        waiting.into_iter().chain(running).map(|purpose| failed(purpose, why.into())).collect()
    }

    /// A message of the peer.
    ///
    /// # Errors
    /// It is malformed or out of place: close the lane.
    pub fn message(&mut self, bytes: &[u8]) -> Result<Vec<BulkEvent>, String> {
        let message = ResyncMessage::from_bytes(bytes).map_err(|error| error.to_string())?;
        if is_request(&message) {
            if message == ResyncMessage::Begin {
                (self.server, self.wanted) = (None, true);
                return Ok(vec![BulkEvent::SnapshotWanted]);
            }
            let server = self.server.as_ref().ok_or("a comparison that was not begun")?;
            self.answers.push_back(server.handle(&message).map_err(|error| error.to_string())?);
            return Ok(Vec::new());
        }
        let Some(run) = &mut self.run else { return Ok(Vec::new()) };
        run.client.handle(message).map_err(|error| error.to_string())?;
        if !run.client.is_done() {
            return Ok(Vec::new());
        }
        Ok(self.run.take().map(finish).into_iter().collect())
    }

    /// Whether more of the peer's requests may be taken: not while its answers wait.
    #[must_use]
    pub fn can_receive(&self) -> bool {
        self.answers.len() < MAX_ANSWERS
    }

    /// The next message for the peer.
    pub fn poll(&mut self) -> Option<ResyncMessage> {
        self.answers.pop_front().or_else(|| self.run.as_mut()?.client.poll())
    }
}

const fn is_request(message: &ResyncMessage) -> bool {
    match message {
        ResyncMessage::Begin
        | ResyncMessage::AskChildren { .. }
        | ResyncMessage::AskItems { .. }
        | ResyncMessage::AskObjects { .. } => true,
        ResyncMessage::Root { .. }
        | ResyncMessage::Children { .. }
        | ResyncMessage::Items { .. }
        | ResyncMessage::Objects { .. } => false,
    }
}

fn failed(purpose: ResyncPurpose, why: String) -> BulkEvent {
    match purpose {
        ResyncPurpose::Take(work) => BulkEvent::ResyncFailed(work, why),
        ResyncPurpose::Verify(id) => BulkEvent::DsVerified(id, Err(why)),
    }
}

fn finish(run: Run) -> BulkEvent {
    let staged = match run.client.finish() {
        Ok(staged) => {
            tracing::debug!(cost = ?staged.cost(), "compared");
            staged
        }
        Err(error) => return failed(run.purpose, error.to_string()),
    };
    match run.purpose {
        ResyncPurpose::Take(work) => BulkEvent::Staged(work, Box::new(staged)),
        ResyncPurpose::Verify(id) => BulkEvent::DsVerified(id, Ok(verdict(&run.own, staged.state()))),
    }
}

/// What differs; a difference whose newest change one of the two has not reached yet is under way.
fn verdict(own: &TreeSnapshot, peers: &TreeSnapshot) -> DsVerdict {
    let reached = own.position().seq.min(peers.position().seq);
    let mut verdict = DsVerdict { compared: own.len().max(peers.len()) as u64, ..DsVerdict::default() };
    for difference in own.differences(peers) {
        let (path, newest, what) = match difference {
            TreeDifference::Added(entry) => (&entry.path, entry.version.seq, "missing on backup"),
            TreeDifference::Removed(entry) => (&entry.path, entry.version.seq, "missing on active"),
            TreeDifference::Changed { old, new } => {
                (&new.path, old.version.seq.max(new.version.seq), "attributes, class or version")
            }
        };
        if newest > reached && newest > Seq(0) {
            verdict.changing.push(path.to_string());
        } else if verdict.differences.len() < LISTED {
            verdict.differences.push(Difference { kind: "ds".into(), path: path.to_string(), what: what.into() });
        }
    }
    verdict.changing.truncate(LISTED);
    verdict
}

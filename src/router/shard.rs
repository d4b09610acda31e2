//! One router shard: all topics whose hash leads here. Floor 4, one task each.
//!
//! A shard owns the exact subscriptions and the retained messages of its topics. Connections reach it
//! through its bounded command channel; it reaches sessions through their mailboxes and never waits for
//! anyone, so it cannot be part of a deadlock.
//!
//! # A turn
//!
//! Take everything that waits; append each run to the outbox of every subscriber of its topic; at the
//! end send one delivery per touched outbox and kind, and then one receipt per batch. A command that is
//! not a batch first ends the turn so far, so that whatever it sends comes behind.
//!
//! # Invariants
//!
//! - A subscription is in force for every batch that is taken after its part was done.
//! - A receipt leaves when the messages of its batch are in the mailboxes of all subscribers.
//! - A compiled route is used only while neither the trie nor this shard's own subscriptions changed.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::PublishView;
use crate::ids::{PacketId, ProtocolVersion, Qos, SessionId};
use crate::message::{Batch, Delivery, Grant, Kind, Piece, Replay, Run};
use crate::metrics::{DropReason, Metrics};
use crate::retained;
use crate::router::bell::Bell;
use crate::router::mailbox::{Mail, Mailbox};
use crate::router::route::{Routes, Subscriber};
use crate::subscriptions::Subscribers;
use crate::topic::TopicFilter;

/// Commands that wait for one shard at most. A batch holds at most one read of one connection (64 KiB, or
/// one larger packet) and a list of 1,024 runs (48 KiB): a shard's queue is at most this many times that.
pub const COMMANDS_MAX: usize = 1024;
/// Commands that one turn takes at most, so that the first of them is not kept waiting.
const TURN_COMMANDS_MAX: usize = 1024;
/// A turn ends early when it has appended this many pieces to outboxes: only at its end are the limits of
/// the mailboxes applied.
const TURN_PIECES_MAX: usize = 64 * 1024;
/// And when its batches hold this many bytes.
const TURN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a shard is asked to do.
pub enum Command {
    /// Route messages.
    Publish(Publication),
    /// Bring exact subscriptions into force, and say from where to replay.
    Subscribe {
        /// Who subscribes.
        mailbox: Arc<Mailbox>,
        /// Exact filters of this shard; wildcard filters are in the trie already.
        exact: Vec<(TopicFilter, Grant)>,
        /// All filters whose retained messages of this shard are wanted.
        replay: Vec<(TopicFilter, Grant)>,
        /// Comes back with the answer.
        token: u64,
        /// Comes back with the answer.
        parts_due: usize,
    },
    /// End exact subscriptions.
    Unsubscribe {
        /// Who unsubscribes.
        mailbox: Arc<Mailbox>,
        /// Exact filters of this shard.
        exact: Vec<TopicFilter>,
        /// Comes back with the answer.
        token: u64,
        /// Comes back with the answer.
        parts_due: usize,
    },
    /// The session has ended.
    End {
        /// Which one.
        session: SessionId,
        /// Its exact filters of this shard.
        exact: Vec<TopicFilter>,
    },
    /// Send the next chunk of retained messages.
    Replay {
        /// To whom.
        mailbox: Arc<Mailbox>,
        /// What.
        replay: Replay,
    },
    /// Answer when everything before this has been done.
    Barrier(flume::Sender<()>),
    /// The broker is going down: end when everything before this has been done.
    Stop,
}

/// A batch and who has to be told that it is owned.
pub struct Publication {
    /// The messages.
    pub batch: Batch,
    /// The publisher.
    pub mailbox: Arc<Mailbox>,
    /// The turn of the publisher's session, where an acknowledgement depends on it.
    pub turn: Option<u64>,
}

/// Bounds of the retained messages of one shard.
#[derive(Clone, Copy, Debug)]
pub struct RetainedLimits {
    /// Messages of all shards together.
    pub messages_max: u64,
    /// Bytes of all shards together, topics included.
    pub bytes_max: u64,
}

/// The sending half of a shard's channel. Cheap to clone.
#[derive(Clone)]
pub struct ShardHandle {
    sender: flume::Sender<Command>,
    bell: Arc<Bell>,
}

impl ShardHandle {
    /// Sends if there is room, else gives the command back. A shard that has stopped takes
    /// everything and does nothing: the broker is going down.
    pub(super) fn try_send(&self, command: Command) -> Result<(), Command> {
        match self.sender.try_send(command) {
            Ok(()) => {
                self.bell.ring();
                Ok(())
            }
            Err(flume::TrySendError::Full(command)) => Err(command),
            Err(flume::TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    /// Waits until there is room.
    pub(super) async fn send(&self, command: Command) {
        if self.sender.send_async(command).await.is_ok() {
            self.bell.ring();
        }
    }
}

/// See the module comment.
pub(super) struct Shard {
    index: usize,
    receiver: flume::Receiver<Command>,
    bell: Arc<Bell>,
    exact: HashMap<Box<str>, Subscribers<Subscriber>>,
    retained: retained::Store,
    retained_limits: RetainedLimits,
    routes: Routes,
    outboxes: Vec<Outbox>,
    /// Outboxes that this turn has put something into.
    touched: Vec<u32>,
    /// Pieces that this turn has put into them.
    pieces: usize,
    /// The batches of this turn are a single message.
    is_single: bool,
    /// Bytes of the batches of this turn.
    bytes: usize,
    /// Number of the batch that is being routed; never used twice.
    batch: u64,
    /// Publishers to be told at the end of this turn.
    receipts: Vec<Receipt>,
    metrics: Arc<Metrics>,
}

/// The batch of `mailbox` that came with number `turn` is owned.
struct Receipt {
    mailbox: Arc<Mailbox>,
    turn: u64,
    /// Messages for nobody, see [`Mail::Accepted`].
    unmatched: Vec<PacketId>,
}

/// What this turn has for one session.
#[derive(Default)]
pub(super) struct Outbox {
    mailbox: Option<Arc<Mailbox>>,
    unacknowledged: Pile,
    acknowledged: Pile,
}

#[derive(Default)]
struct Pile {
    buffers: Vec<Bytes>,
    /// Number of the batch whose frames are the last of `buffers`.
    newest: u64,
    pieces: Vec<Piece>,
}

/// A shard and the handle to it; spawn [`Shard::run`].
pub(super) fn shard(
    index: usize,
    routes: Routes,
    retained_limits: RetainedLimits,
    metrics: Arc<Metrics>,
) -> (Shard, ShardHandle) {
    let (sender, receiver) = flume::bounded(COMMANDS_MAX);
    let bell = Arc::new(Bell::default());
    let handle = ShardHandle { sender, bell: bell.clone() };
    let shard = Shard {
        index,
        receiver,
        bell,
        exact: HashMap::new(),
        retained: retained::Store::default(),
        retained_limits,
        routes,
        outboxes: Vec::new(),
        touched: Vec::new(),
        pieces: 0,
        is_single: false,
        bytes: 0,
        batch: 0,
        receipts: Vec::new(),
        metrics,
    };
    (shard, handle)
}

impl Shard {
    /// Works until [`Command::Stop`].
    pub(super) async fn run(mut self) {
        loop {
            let mut taken = 0;
            while taken < TURN_COMMANDS_MAX
                && let Ok(command) = self.receiver.try_recv()
            {
                if matches!(command, Command::Stop) {
                    return self.end_turn();
                }
                self.handle(command);
                taken += 1;
            }
            let is_small = self.is_single && self.touched.len() == 1 && self.receipts.len() == 1;
            self.send_deliveries();
            if is_small {
                // Waking two sessions at once wakes another worker thread for the second one, which costs more than
                // all the rest of a single message. So the publisher is woken when the subscriber has run.
                tokio::task::yield_now().await;
            }
            self.send_receipts();
            if taken == TURN_COMMANDS_MAX {
                tokio::task::yield_now().await;
            } else {
                let has_something = || !self.receiver.is_empty();
                std::future::poll_fn(|cx| self.bell.poll_rung(cx, has_something)).await;
            }
        }
    }

    fn handle(&mut self, command: Command) {
        if let Command::Publish(publication) = command {
            return self.publish(publication);
        }
        self.end_turn();
        match command {
            Command::Publish(_) | Command::Stop => (),
            Command::Subscribe { mailbox, exact, replay, token, parts_due } => {
                for (filter, grant) in exact {
                    self.subscribe(&mailbox, &filter, grant);
                }
                let replay = self.plan_replay(replay, token);
                mailbox.send(Mail::PartDone { token, parts_due, replay });
            }
            Command::Unsubscribe { mailbox, exact, token, parts_due } => {
                self.unsubscribe(mailbox.session(), &exact);
                mailbox.send(Mail::PartDone { token, parts_due, replay: None });
            }
            Command::End { session, exact } => {
                self.unsubscribe(session, &exact);
                self.routes.forget(session, &mut self.outboxes);
            }
            Command::Replay { mailbox, replay } => {
                let (deliveries, rest) = self.retained.replay(replay);
                mailbox.send(Mail::Chunk { deliveries, rest });
            }
            // Whoever asked may have given up waiting.
            Command::Barrier(done) => drop(done.send(())),
        }
    }

    fn publish(&mut self, publication: Publication) {
        let Publication { batch, mailbox, turn } = publication;
        self.batch += 1;
        self.is_single = self.bytes == 0 && batch.is_single();
        self.bytes += batch.frames.len();
        let tells_unmatched = turn.is_some() && batch.version == ProtocolVersion::V5;
        let mut unmatched = Vec::new();
        for run in &batch.runs {
            if run.retain {
                self.retain(&batch, run);
            }
            let route =
                self.routes.find(run.hash, batch.topic(run), &self.exact, &mut self.outboxes);
            for target in route {
                let Some(outbox) = self.outboxes.get_mut(target.outbox as usize) else { continue };
                if target.grant.no_local && outbox.is_for(mailbox.session()) {
                    continue;
                }
                if outbox.is_empty() {
                    self.touched.push(target.outbox);
                }
                outbox.add(run, batch.version, target.grant, self.batch, &batch.frames);
            }
            self.pieces += route.len();
            // A subscription with No Local matches its own session's messages, though it gets none of them.
            if tells_unmatched && route.is_empty() {
                unmatched.extend(packet_ids(&batch, run));
            }
            if self.pieces >= TURN_PIECES_MAX {
                self.end_turn();
            }
        }
        if let Some(turn) = turn {
            self.receipts.push(Receipt { mailbox, turn, unmatched });
        }
        if self.bytes >= TURN_BYTES_MAX {
            self.end_turn();
        }
    }

    /// Sends what the turn has gathered.
    fn end_turn(&mut self) {
        self.send_deliveries();
        self.send_receipts();
    }

    fn send_deliveries(&mut self) {
        for index in self.touched.drain(..) {
            if let Some(outbox) = self.outboxes.get_mut(index as usize) {
                outbox.flush();
            }
        }
        self.pieces = 0;
        self.bytes = 0;
    }

    /// Only behind the deliveries: a receipt says that they are in the mailboxes.
    fn send_receipts(&mut self) {
        for Receipt { mailbox, turn, unmatched } in self.receipts.drain(..) {
            mailbox.send(Mail::Accepted { turn, unmatched });
        }
    }

    fn subscribe(&mut self, mailbox: &Arc<Mailbox>, filter: &TopicFilter, grant: Grant) {
        let subscriber = Subscriber { mailbox: mailbox.clone(), grant };
        let subscribers = self.exact.entry(filter.as_str().into()).or_default();
        subscribers.insert(mailbox.session(), subscriber);
        self.routes.invalidate(filter.as_str());
    }

    fn unsubscribe(&mut self, session: SessionId, filters: &[TopicFilter]) {
        for filter in filters {
            if let Some(subscribers) = self.exact.get_mut(filter.as_str()) {
                subscribers.remove(session);
                if subscribers.is_empty() {
                    self.exact.remove(filter.as_str());
                }
            }
            self.routes.invalidate(filter.as_str());
        }
    }

    fn plan_replay(&self, mut filters: Vec<(TopicFilter, Grant)>, token: u64) -> Option<Replay> {
        filters.retain(|(filter, _)| self.retained.may_match(filter));
        if filters.is_empty() {
            return None;
        }
        Some(Replay {
            shard: self.index,
            token,
            filters: filters.into(),
            filter: 0,
            after: None,
            stored_until: self.retained.last_change(),
        })
    }

    /// Keeps the last message of `run` [MQTT-3.3.1-5], or removes the topic's one if it is
    /// empty [MQTT-3.3.1-6] [MQTT-3.3.1-7].
    fn retain(&mut self, batch: &Batch, run: &Run) {
        let Some((topic, frame, is_empty)) = newest_of(batch, run) else { return };
        let change = if is_empty {
            self.retained.remove(topic)
        } else if self.has_room_to_retain(topic, frame) {
            self.retained.set(topic, frame, batch.version, run.qos)
        } else {
            // The earlier message is not the topic's newest any more: none is better than a stale one.
            self.metrics.dropped(DropReason::RetainedFull, 1);
            self.retained.remove(topic)
        };
        self.metrics.retained_messages.add(change.messages);
        self.metrics.retained_bytes.add(change.bytes);
    }

    fn has_room_to_retain(&self, topic: &str, frame: &[u8]) -> bool {
        let (messages, bytes) =
            (self.metrics.retained_messages.value(), self.metrics.retained_bytes.value());
        let (new_messages, freed) = match self.retained.frame_len(topic) {
            Some(earlier) => (0, earlier as u64),
            None => (1, 0),
        };
        let added = (frame.len() + topic.len()) as u64;
        messages + new_messages <= self.retained_limits.messages_max
            && (bytes + added).saturating_sub(freed) <= self.retained_limits.bytes_max
    }
}

/// Topic and frame of the last message of `run`, and whether its payload is empty.
fn newest_of<'b>(batch: &'b Batch, run: &Run) -> Option<(&'b str, &'b [u8], bool)> {
    let start = run.offset as usize;
    let mut frames = batch.frames.get(start..start + run.len as usize)?;
    let mut newest = None;
    while let Some(view) = PublishView::parse(frames, batch.version) {
        let (frame, rest) = frames.split_at_checked(view.frame_len)?;
        newest = Some((frame, view.payload.is_empty()));
        frames = rest;
    }
    let (frame, is_empty) = newest?;
    Some((std::str::from_utf8(batch.topic(run)).ok()?, frame, is_empty))
}

/// The publisher's identifiers of the messages of `run`; none at QoS 0.
fn packet_ids(batch: &Batch, run: &Run) -> impl Iterator<Item = PacketId> {
    let start = run.offset as usize;
    let mut frames = batch.frames.get(start..start + run.len as usize).unwrap_or_default();
    std::iter::from_fn(move || {
        let view = PublishView::parse(frames, batch.version)?;
        frames = frames.get(view.frame_len..).unwrap_or_default();
        PacketId::new(view.packet_id?)
    })
}

impl Outbox {
    /// An outbox for whoever reads `mailbox`.
    pub(super) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox: Some(mailbox), ..Self::default() }
    }

    fn is_for(&self, session: SessionId) -> bool {
        self.mailbox.as_ref().is_some_and(|mailbox| mailbox.session() == session)
    }

    fn is_empty(&self) -> bool {
        self.unacknowledged.pieces.is_empty() && self.acknowledged.pieces.is_empty()
    }

    fn add(
        &mut self,
        run: &Run,
        version: ProtocolVersion,
        grant: Grant,
        batch: u64,
        frames: &Bytes,
    ) {
        let qos = run.qos.min(grant.qos);
        let pile = match qos {
            Qos::AtMostOnce => &mut self.unacknowledged,
            Qos::AtLeastOnce | Qos::ExactlyOnce => &mut self.acknowledged,
        };
        if pile.buffers.is_empty() || pile.newest != batch {
            pile.buffers.push(frames.clone());
            pile.newest = batch;
        }
        pile.pieces.push(Piece {
            buffer: (pile.buffers.len() - 1) as u32,
            offset: run.offset,
            len: run.len,
            count: run.count,
            version,
            frame_qos: run.qos,
            frame_retain: run.retain,
            qos,
            retain: run.retain && grant.retain_as_published,
        });
    }

    fn flush(&mut self) {
        let Some(mailbox) = &self.mailbox else { return };
        let piles = [
            (Kind::Unacknowledged, &mut self.unacknowledged),
            (Kind::Acknowledged, &mut self.acknowledged),
        ];
        for (kind, pile) in piles {
            if !pile.pieces.is_empty() {
                let Pile { buffers, pieces, .. } = std::mem::take(pile);
                mailbox.deliver(Delivery::new(kind, buffers, pieces));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Delivery as Flow;
    use crate::codec::{Packet, Properties, Publish, header_len};
    use crate::ids::ProtocolVersion::{V5, V311};
    use crate::message::{Collector, Incoming, TopicHasher};
    use crate::router::mailbox::{Inbox, QueueLimits, mailbox};
    use crate::subscriptions::Trie;

    /// A shard without a task, and the publisher.
    struct Pair {
        shard: Shard,
        trie: Arc<Trie<Subscriber>>,
        hasher: TopicHasher,
        publisher: Inbox,
    }

    fn pair() -> Pair {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let trie = Arc::new(Trie::new());
        let routes = Routes::new(trie.clone(), hasher.clone());
        let limits = RetainedLimits { messages_max: 10, bytes_max: 1_000 };
        let (shard, _) = shard(0, routes, limits, Arc::default());
        Pair { shard, trie, hasher, publisher: inbox(1) }
    }

    fn inbox(session: u64) -> Inbox {
        let limits = QueueLimits { messages_max: 100, bytes_max: 10_000 };
        mailbox(SessionId(session), limits, Arc::default())
    }

    fn grant(no_local: bool) -> Grant {
        Grant { qos: Qos::AtMostOnce, no_local, retain_as_published: false }
    }

    impl Pair {
        fn subscribe(&mut self, inbox: &Inbox, filter: &str, grant: Grant) {
            let filter = TopicFilter::parse(filter).unwrap();
            let mailbox = inbox.mailbox().clone();
            if filter.has_wildcards() {
                let session = mailbox.session();
                self.trie.insert(&filter, session, Subscriber { mailbox, grant });
            } else {
                self.shard.subscribe(&mailbox, &filter, grant);
            }
        }

        /// Topic, QoS and identifier of each message of one read, and RETAIN of all of them.
        fn publish(
            &mut self,
            version: ProtocolVersion,
            messages: &[(&str, u8, u16)],
            retain: bool,
            turn: Option<u64>,
        ) {
            let mut collector = Collector::new(self.hasher.clone(), 1);
            collector.begin(version);
            let mut read = Vec::new();
            for &(topic, qos, id) in messages {
                let start = read.len();
                let id = PacketId::new(id).unwrap();
                let delivery = match qos {
                    0 => Flow::AtMostOnce,
                    1 => Flow::AtLeastOnce { id, dup: false },
                    _ => Flow::ExactlyOnce { id, dup: false },
                };
                let properties = Properties::EMPTY;
                let publish = Publish { topic, payload: b"x", properties, delivery, retain };
                Packet::Publish(publish).encode(version, &mut read);
                let topic_at = start + header_len(&read[start..]).unwrap() + 2;
                let (frame, qos) = (start..read.len(), delivery.qos());
                collector.add(Incoming { topic, qos, retain, frame, topic_at });
            }
            let mailbox = self.publisher.mailbox().clone();
            collector.flush(&read, |_, batch| {
                let mailbox = mailbox.clone();
                self.shard.handle(Command::Publish(Publication { batch, mailbox, turn }));
            });
        }

        /// The receipts that the publisher gets at the end of the turn.
        fn receipts(&mut self) -> Vec<(u64, Vec<u16>)> {
            self.shard.end_turn();
            let mails = std::iter::from_fn(|| self.publisher.try_next());
            mails
                .filter_map(|mail| match mail {
                    Mail::Accepted { turn, unmatched } => Some((turn, unmatched)),
                    _ => None,
                })
                .map(|(turn, ids)| (turn, ids.into_iter().map(PacketId::get).collect()))
                .collect()
        }
    }

    #[test]
    fn receipt_names_the_messages_of_a_v5_client_that_nobody_has_subscribed_to() {
        let mut pair = pair();
        let reader = inbox(2);
        pair.subscribe(&reader, "exact", grant(false));
        pair.subscribe(&reader, "wild/#", grant(false));
        let messages = [
            ("exact", 1, 1),
            ("none", 1, 7),
            ("none", 1, 8),
            ("none", 0, 9),
            ("none", 2, 300),
            ("wild/x", 2, 4),
            ("other", 1, 5),
        ];
        pair.publish(V5, &messages, false, Some(3));
        pair.publish(V5, &[("exact", 1, 6)], false, Some(4));
        assert_eq!(pair.receipts(), [(3, vec![7, 8, 300, 5]), (4, vec![])]);
    }

    #[test]
    fn receipt_of_a_client_before_v5_names_none() {
        let mut pair = pair();
        pair.publish(V311, &[("none", 1, 7), ("none", 2, 8)], false, Some(0));
        assert_eq!(pair.receipts(), [(0, vec![])]);
    }

    #[test]
    fn batch_that_awaits_no_receipt_gets_none() {
        let mut pair = pair();
        pair.publish(V5, &[("none", 1, 7)], false, None);
        assert_eq!(pair.receipts(), []);
    }

    #[test]
    fn retained_message_that_nobody_has_subscribed_to_is_named_and_kept() {
        let mut pair = pair();
        pair.publish(V5, &[("none", 1, 7)], true, Some(0));
        assert_eq!(pair.receipts(), [(0, vec![7])]);
        assert!(pair.shard.retained.frame_len("none").is_some());
    }

    #[test]
    fn publisher_that_has_subscribed_with_no_local_is_a_subscriber() {
        let mut pair = pair();
        let mailbox = pair.publisher.mailbox().clone();
        let topic = TopicFilter::parse("own").unwrap();
        pair.shard.subscribe(&mailbox, &topic, grant(true));
        pair.publish(V5, &[("own", 1, 7)], false, Some(0));
        assert_eq!(pair.receipts(), [(0, vec![])]);
    }

    #[test]
    fn subscription_that_came_or_went_counts_from_then_on() {
        let mut pair = pair();
        let reader = inbox(2);
        pair.publish(V5, &[("t", 1, 1)], false, Some(0));
        pair.subscribe(&reader, "t", grant(false));
        pair.publish(V5, &[("t", 1, 2)], false, Some(1));
        pair.shard.unsubscribe(SessionId(2), &[TopicFilter::parse("t").unwrap()]);
        pair.publish(V5, &[("t", 1, 3)], false, Some(2));
        assert_eq!(pair.receipts(), [(0, vec![1]), (1, vec![]), (2, vec![3])]);
    }
}

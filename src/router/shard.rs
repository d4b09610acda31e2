//! One router shard: all topics whose hash leads here. Floor 4, one task each.
//!
//! A shard owns the exact subscriptions and the retained messages of its topics. Connections reach it
//! through its bounded command channel; it reaches sessions through their mailboxes. It waits for nobody but
//! the disk, when that is far behind, so it cannot be part of a deadlock.
//!
//! # A turn
//!
//! Take everything that waits; append each run to the outbox of every subscriber of its topic, and of one
//! member of each of its shared subscriptions; at the end send one delivery per touched outbox and kind, and then one receipt per batch. A command that is
//! not a batch first ends the turn so far, so that whatever it sends comes behind.
//!
//! # Invariants
//!
//! - A subscription is in force for every batch that is taken after its part was done.
//! - A receipt leaves when the messages of its batch are in the mailboxes of all subscribers.
//! - A compiled route is used only while neither the trie nor this shard's own subscriptions changed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::codec::PublishView;
use crate::ids::{ClientId, LogPosition, PacketId, ProtocolVersion, Qos, SessionId};
use crate::message::{Batch, Grant, Logged, Replay, Run};
use crate::metrics::{DropReason, Metrics, Shortage};
use crate::record::Record;
use crate::router::bell::Bell;
use crate::router::keeper::{Keeper, Kept, RetainedLimits, Room, is_clear};
use crate::router::log::{self, Publisher};
use crate::router::mailbox::{Mail, Mailbox};
use crate::router::queues::{Held, Policy, Queues};
use crate::router::receipt::{Awaited, Receipt};
use crate::router::route::{Route, Routes, Subscriber};
use crate::router::sharing::{Group, Strategy};
use crate::router::turn::{Turn, cut};
use crate::store::handle::Store;
use crate::store::log::Level;
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
    /// A retained message of an earlier process.
    Keep(Batch),
    /// Give messages of a shared subscription, which one member did not get, to another one.
    Share(Box<ShareAgain>),
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

/// Messages of a shared subscription that one member did not get.
pub struct ShareAgain {
    /// One run of one topic.
    pub batch: Batch,
    /// The shared subscription.
    pub filter: TopicFilter,
    /// Who did not get them: has them again if no other member's client is there to take them.
    pub from: SessionId,
    /// Where they are in the log, if they are.
    pub logged: Option<Logged>,
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
    receiver: flume::Receiver<Command>,
    bell: Arc<Bell>,
    exact: HashMap<Box<str>, Subscribers<Subscriber>>,
    keeper: Keeper,
    routes: Routes,
    turn: Turn,
    /// The batches of this turn are a single message.
    is_single: bool,
    /// Bytes of the batches of this turn.
    bytes: usize,
    /// Messages of those that were looked at.
    messages: u64,
    /// Publishers to be told at the end of this turn.
    receipts: Vec<Receipt>,
    store: Option<Store>,
    queues: Arc<Queues>,
    metrics: Arc<Metrics>,
}

/// A shard and the handle to it; spawn [`Shard::run`].
pub(super) fn shard(
    index: usize,
    routes: Routes,
    retained_limits: RetainedLimits,
    strategy: Strategy,
    store: Option<Store>,
    queues: Arc<Queues>,
    metrics: Arc<Metrics>,
) -> (Shard, ShardHandle) {
    let (sender, receiver) = flume::bounded(COMMANDS_MAX);
    let bell = Arc::new(Bell::default());
    let keeper = Keeper::new(index, retained_limits, metrics.clone());
    let handle = ShardHandle { sender, bell: bell.clone() };
    let shard = Shard {
        receiver,
        bell,
        exact: HashMap::new(),
        keeper,
        routes,
        turn: Turn::new(strategy),
        is_single: false,
        bytes: 0,
        messages: 0,
        receipts: Vec::new(),
        store,
        queues,
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
            self.end_turn();
            self.routes.spare(self.queues.is_memory_short());
            if let Some(store) = self.store.as_ref().filter(|store| store.is_behind()) {
                // The disk is the limit: publishers are not read meanwhile, for this channel fills up.
                store.settle().await;
            }
            if taken == TURN_COMMANDS_MAX {
                tokio::task::yield_now().await;
            } else {
                self.wait().await;
            }
        }
    }

    /// Until there is a command, or a retained message expires.
    async fn wait(&mut self) {
        let has_something = || !self.receiver.is_empty();
        let commands = std::future::poll_fn(|cx| self.bell.poll_rung(cx, has_something));
        let Some(expiry) = self.keeper.next_expiry() else { return commands.await };
        if tokio::time::timeout_at(expiry.into(), commands).await.is_err() {
            self.keeper.expire(Instant::now());
            self.log_gone();
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
                let replay = self.keeper.plan_replay(replay, token);
                mailbox.send(Mail::PartDone { token, parts_due, replay });
            }
            Command::Unsubscribe { mailbox, exact, token, parts_due } => {
                self.unsubscribe(mailbox.session(), &exact);
                mailbox.send(Mail::PartDone { token, parts_due, replay: None });
            }
            Command::End { session, exact } => {
                self.unsubscribe(session, &exact);
                self.routes.forget(session, &mut self.turn.outboxes);
            }
            Command::Keep(batch) => {
                for run in &batch.runs {
                    self.keeper.keep(&batch, run, None, Room::Limited);
                }
            }
            Command::Share(again) => self.share_again(&again),
            Command::Replay { mailbox, replay } => {
                let now = Instant::now();
                let rights = mailbox.holder().rights;
                let reader = mailbox.client_id();
                let may_receive = |topic: &str| {
                    reader.is_none_or(|reader| reader.sees(topic))
                        && rights.may_receive(topic).is_allowed()
                };
                let (mut deliveries, rest) = self.keeper.replay(replay, reader, may_receive, now);
                if let Some(store) = &self.store {
                    log::replayed(&mut deliveries, &mailbox, store);
                }
                mailbox.send(Mail::Chunk { deliveries, rest });
            }
            // Whoever asked may have given up waiting.
            Command::Barrier(done) => drop(done.send(())),
        }
    }

    fn publish(&mut self, publication: Publication) {
        let Publication { batch, mailbox, turn } = publication;
        self.turn.begin_batch(turn.is_some());
        self.is_single = self.bytes == 0 && batch.is_single();
        self.bytes += batch.frames.len();
        let tells_unmatched = turn.is_some() && batch.version == ProtocolVersion::V5;
        let (mut unmatched, mut refused) = (Vec::new(), Vec::new());
        let mut level: Option<Level> = None;
        let from = Publisher { mailbox: &mailbox, is_acknowledged: turn.is_some() };
        for run in &batch.runs {
            let must_ask = run.qos != Qos::AtMostOnce && turn.is_some();
            let admitted =
                if must_ask { self.admit(*run, &batch, from, &mut refused) } else { Some(*run) };
            let Some(run) = &admitted else { continue };
            let kept = run.retain.then(|| self.keep(&batch, run, mailbox.client_id()));
            if kept.is_some() {
                self.log_gone();
            }
            let topic = batch.topic(run);
            let outboxes = &mut self.turn.outboxes;
            let route = self.routes.find(run.hash, topic, &self.exact, outboxes);
            let publisher = mailbox.session();
            let own_level = route.and_then(|route| route.level);
            if let (Some(store), Some(_)) = (&self.store, own_level) {
                let is_durable = route.is_some_and(|route| route.is_durable);
                log::begin(&mut self.turn, store, &batch, run, from, kept, is_durable);
            }
            if let Some(Route { targets, groups, .. }) = route {
                let left_out = self.turn.add_all(run, targets, &batch, publisher);
                self.metrics.dropped(DropReason::QueueFull, left_out);
                for group in groups {
                    if let Some((left, why)) = self.turn.share(run, group, &batch, publisher, true)
                    {
                        self.metrics.dropped(why, left.count.into());
                    }
                }
                // No Local matches the session's own messages, though it gets none of them.
                if tells_unmatched && targets.is_empty() && groups.is_empty() {
                    unmatched.extend(packet_ids(&batch, run));
                }
            }
            if own_level.is_some() && log::end(&mut self.turn, &batch, run, from, kept) {
                level = stricter(level, own_level);
            }
            if self.turn.pieces() >= TURN_PIECES_MAX {
                self.end_turn();
            }
        }
        if let Some(turn) = turn {
            self.receipts.push(Receipt { mailbox, turn, unmatched, refused, level });
        }
        if self.bytes + self.turn.records().len() >= TURN_BYTES_MAX {
            self.end_turn();
        }
    }

    /// The messages of `run` for which there is room, if there is for any. The others are not touched, and their
    /// publisher is told. Who cannot be told is not acknowledged either, and what he sent behind them is refused, too:
    /// he will send all of it again on another connection, in its order [MQTT-4.8.0-2].
    fn admit(
        &mut self,
        run: Run,
        batch: &Batch,
        from: Publisher<'_>,
        refused: &mut Vec<(PacketId, Shortage)>,
    ) -> Option<Run> {
        let is_told = batch.version == ProtocolVersion::V5;
        let is_refused = !is_told && from.mailbox.is_refused();
        self.messages += u64::from(run.count);
        let turn = Held { messages: self.messages, bytes: self.bytes, ..Held::default() };
        if !is_refused && !self.is_disk_short() && !self.queues.is_tight(turn, &self.metrics) {
            return Some(run);
        }
        let room = if is_refused {
            Err(Shortage::Queue)
        } else {
            self.room(&run, batch, from.mailbox.session())
        };
        let (admitted, rest, why) = match room {
            Ok(count) if count >= run.count => return Some(run),
            Ok(count) => {
                let (admitted, rest) = cut(run, count, batch);
                (Some(admitted), rest, Shortage::Queue)
            }
            Err(shortage) => (None, Some(run), shortage),
        };
        if let Some(rest) = rest {
            if !is_told {
                from.mailbox.refuse_rest();
            }
            self.messages -= u64::from(rest.count);
            self.metrics.refused(why, rest.count.into());
            refused.extend(packet_ids(batch, &rest).map(|id| (id, why)));
        }
        admitted
    }

    /// See [`Turn::room`]. What must be kept needs a disk, what is retained needs memory, whatever the policy is. What
    /// clears a retained message gives both back.
    fn room(&mut self, run: &Run, batch: &Batch, publisher: SessionId) -> Result<u32, Shortage> {
        let (is_memory_short, is_disk_short) =
            (self.queues.is_memory_short(), self.is_disk_short());
        let is_clear = run.retain && (is_memory_short || is_disk_short) && is_clear(batch, run);
        if run.retain && is_memory_short && !is_clear {
            return Err(Shortage::Memory);
        }
        // Each message that is there can be cleared once, so this ends.
        let is_kept = run.retain && !(is_clear && self.keeper.holds(batch, run));
        let outboxes = &mut self.turn.outboxes;
        let route = self.routes.find(run.hash, batch.topic(run), &self.exact, outboxes);
        let Some(route) = route else { return Ok(run.count) };
        if is_disk_short && route.level.is_some() && (is_kept || route.is_durable) {
            return Err(Shortage::Disk);
        }
        match self.queues.policy() {
            Policy::Reject => self.turn.room(run, route, publisher),
            Policy::DropOldest | Policy::DropNewest => Ok(run.count),
        }
    }

    fn is_disk_short(&self) -> bool {
        self.store.as_ref().is_some_and(Store::is_short)
    }

    /// Messages at QoS 0, and wills, are not refused: they are delivered and not retained.
    fn keep(&mut self, batch: &Batch, run: &Run, publisher: Option<&ClientId>) -> Kept {
        let is_own = publisher.is_none();
        let is_short = self.queues.is_memory_short() || self.is_disk_short();
        let room = if is_short && !is_own { Room::None } else { Room::Limited };
        self.keeper.keep(batch, run, publisher, room)
    }

    /// Writes down which retained messages have expired, before anything takes their place.
    fn log_gone(&mut self) {
        let is_durable = self.store.is_some();
        for topic in self.keeper.take_gone().filter(|_| is_durable) {
            Record::RetainedGone { topic: &topic }.encode(self.turn.records());
        }
    }

    /// See [`Command::Share`].
    fn share_again(&mut self, again: &ShareAgain) {
        let ShareAgain { batch, filter, from, logged } = again;
        let (from, logged) = (*from, *logged);
        self.turn.begin_batch(true);
        let topic = batch.runs.first().map(|run| batch.topic(run)).unwrap_or_default();
        let topic = str::from_utf8(topic).unwrap_or_default();
        let Some(group) = self.routes.group(filter, topic, &mut self.turn.outboxes) else {
            let messages = batch.runs.iter().map(|run| u64::from(run.count)).sum();
            self.metrics.dropped(DropReason::SessionEnded, messages);
            return log::moved(&mut self.turn, batch, from, logged);
        };
        let Group { members, cursor } = group;
        let (own, others): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|it| self.turn.is_for(it, from));
        let (here, away) = others.into_iter().partition(|it| self.turn.is_connected(it));
        // Where nobody is there, they had better wait for whom they were meant.
        let choices = [here, own, away].map(|members| Group { members, cursor: cursor.clone() });
        for run in &batch.runs {
            let mut left = Some((*run, DropReason::QueueFull));
            // They were accepted once: who has no room gets them all the same before nobody does.
            let tries = [false, true].into_iter().flat_map(|must_go| {
                let groups = choices.iter().filter(|group| !group.members.is_empty());
                groups.map(move |group| (group, must_go))
            });
            for (group, must_go) in tries {
                // A record for each of them: numbers count from the first message that is left.
                if let (Some(store), Some((left, _))) = (&self.store, left) {
                    log::begin_again(&mut self.turn, store, batch, &left);
                }
                left = left.and_then(|(run, _)| self.turn.share(&run, group, batch, from, must_go));
                self.turn.end_record(false);
            }
            if let Some((left, why)) = left {
                self.metrics.dropped(why, left.count.into());
            }
        }
        log::moved(&mut self.turn, batch, from, logged);
    }

    /// Sends what the turn has gathered: first the deliveries, for a receipt says that they are in the mailboxes.
    fn end_turn(&mut self) {
        let (logged_from, awaited) = self.log_turn();
        let is_small = self.is_single && self.turn.touched() == 1 && self.receipts.len() == 1;
        // A publisher that runs after its only subscriber, see `bell`.
        let mut last = if is_small { self.receipts.pop() } else { None };
        self.turn.flush(logged_from, |subscriber| match last.take() {
            Some(receipt) => subscriber.ring_before(&receipt.post()),
            None => subscriber.ring(),
        });
        self.bytes = 0;
        self.messages = 0;
        self.receipts.extend(last);
        self.receipts.drain(..).for_each(Receipt::give);
        if let Some(awaited) = awaited {
            awaited.happened();
        }
        if let Some(store) = self.store.as_ref().filter(|_| !self.turn.records().is_empty()) {
            store.append(self.turn.records(), None);
            self.turn.records().clear();
        }
    }

    /// Hands the records of this turn to the log. Returns where they begin, and the receipts that have to wait for it, of
    /// which the log knows.
    fn log_turn(&mut self) -> (LogPosition, Option<Arc<Awaited>>) {
        let Some(store) = &self.store else { return (LogPosition(0), None) };
        let waiting: Vec<Receipt> =
            self.receipts.extract_if(.., |receipt| receipt.level.is_some()).collect();
        if waiting.is_empty() && self.turn.records().is_empty() {
            return (LogPosition(0), None);
        }
        let level = waiting.iter().fold(None, |level, receipt| stricter(level, receipt.level));
        let Some(level) = level else { return (store.append(self.turn.records(), None), None) };
        let awaited = Arc::new(Awaited::new(waiting));
        let is_safe = awaited.clone();
        let then = Box::new(move || is_safe.happened());
        (store.append_at(level, self.turn.records(), Some(then)), Some(awaited))
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
}

/// The one that promises more.
fn stricter(one: Option<Level>, other: Option<Level>) -> Option<Level> {
    match (one, other) {
        (Some(Level::Always), _) | (_, Some(Level::Always)) => Some(Level::Always),
        (one, other) => one.or(other),
    }
}

/// The publisher's identifiers of the messages of `run`; none at QoS 0.
pub(super) fn packet_ids(batch: &Batch, run: &Run) -> impl Iterator<Item = PacketId> {
    let start = run.offset as usize;
    let mut frames = batch.frames.get(start..start + run.len as usize).unwrap_or_default();
    std::iter::from_fn(move || {
        let view = PublishView::parse(frames, batch.version)?;
        frames = frames.get(view.frame_len..).unwrap_or_default();
        PacketId::new(view.packet_id?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Delivery as Flow;
    use crate::codec::{Packet, Properties, Publish, header_len};
    use crate::ids::ProtocolVersion::{V5, V311};
    use crate::message::{Collector, Incoming, TopicHasher};
    use crate::router::mailbox::{Home, Inbox, mailbox};
    use crate::router::queues::{QueueLimits, QueuesLimits};
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
        let routes = Routes::new(trie.clone(), hasher.clone(), None);
        let limits = RetainedLimits { messages_max: 10, bytes_max: 1_000 };
        let queues = QueueLimits { messages_max: 100, bytes_max: 10_000 }.into();
        let (shard, _) =
            shard(0, routes, limits, Strategy::RoundRobin, None, queues, Arc::default());
        Pair { shard, trie, hasher, publisher: inbox(1) }
    }

    fn inbox(session: u64) -> Inbox {
        let limits = QueueLimits { messages_max: 100, bytes_max: 10_000 };
        mailbox(SessionId(session), Home::Memory, None, limits, Arc::default())
    }

    fn grant(no_local: bool) -> Grant {
        let (qos, retain_as_published) = (Qos::AtMostOnce, false);
        Grant { qos, no_local, retain_as_published, identifier: None }
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
            let mut collector = Collector::new(self.hasher.clone(), 1, Instant::now());
            collector.begin(version, Instant::now());
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
                let message = Incoming { topic, qos, retain, expires: false };
                collector.add(message, frame, topic_at);
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
        let filters = vec![(TopicFilter::parse("none").unwrap(), grant(false))];
        assert!(pair.shard.keeper.plan_replay(filters, 0).is_some());
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

    /// [MQTT-3.8.3-3]: what came by a subscription with No Local does not carry its identifier.
    #[test]
    fn own_message_comes_by_those_subscriptions_only_that_allow_it() {
        let mut pair = pair();
        let mailbox = pair.publisher.mailbox().clone();
        let with =
            |no_local, id| Grant { identifier: std::num::NonZeroU32::new(id), ..grant(no_local) };
        pair.shard.subscribe(&mailbox, &TopicFilter::parse("t").unwrap(), with(true, 1));
        let (filter, grant) = (TopicFilter::parse("#").unwrap(), with(false, 2));
        pair.trie.insert(&filter, mailbox.session(), Subscriber { mailbox, grant });
        pair.publish(V5, &[("t", 1, 7)], false, Some(0));
        pair.shard.end_turn();
        let Some(Mail::Delivery(delivery)) = pair.publisher.try_next() else { panic!() };
        assert_eq!(delivery.vias[0].identifiers.iter().map(|id| id.get()).collect::<Vec<_>>(), [2]);
    }

    /// Of one turn as many are accepted as there is room for; nothing is done with the others.
    #[test]
    fn message_without_room_is_refused_before_anybody_gets_it() {
        let mut pair = pair();
        let each = QueueLimits { messages_max: 3, bytes_max: 10_000 };
        let (messages_max, bytes_max) = (100, 100_000);
        let limits = QueuesLimits { policy: Policy::Reject, each, messages_max, bytes_max };
        pair.shard.queues.replace(limits);
        let open = |session| {
            let queues = pair.shard.queues.clone();
            mailbox(SessionId(session), Home::Memory, None, queues, pair.shard.metrics.clone())
        };
        let (full, free) = (open(2), open(3));
        let grant = Grant { qos: Qos::ExactlyOnce, ..grant(false) };
        pair.subscribe(&full, "t", grant);
        pair.subscribe(&free, "#", grant);
        pair.publish(V5, &[("t", 1, 1), ("t", 1, 2)], false, Some(0));
        let _ = pair.receipts();
        // Somebody reads what one of them has.
        let Some(Mail::Delivery(read)) = free.try_next() else { panic!("a delivery") };
        free.mailbox().release(read.messages.into(), read.held_bytes);

        let messages = [("t", 1, 3), ("t", 1, 4), ("other", 2, 5)];
        pair.publish(V5, &messages, true, Some(1));
        pair.shard.end_turn();
        let Some(Mail::Refused { turn: 1, refused }) = pair.publisher.try_next() else {
            panic!("a refusal")
        };
        assert_eq!(refused, [(PacketId::new(4).unwrap(), Shortage::Queue)]);
        assert!(matches!(pair.publisher.try_next(), Some(Mail::Accepted { turn: 1, .. })));
        let count = |inbox: &Inbox| {
            let mails = std::iter::from_fn(|| inbox.try_next());
            let messages = mails.filter_map(|mail| match mail {
                Mail::Delivery(delivery) => Some(delivery.messages),
                _ => None,
            });
            messages.sum::<u32>()
        };
        assert_eq!((count(&full), count(&free)), (3, 2));
        assert_eq!(pair.shard.metrics.refused_for(Shortage::Queue), 1);
        // At QoS 0 there is nobody to be told.
        pair.publish(V5, &[("t", 0, 6)], false, None);
        pair.shard.end_turn();
        assert_eq!((count(&full), count(&free)), (0, 1));
        assert_eq!(pair.shard.metrics.dropped_for(DropReason::QueueFull), 1);
    }

    /// One read may bring more of one topic than the members have room for together.
    #[test]
    fn what_is_accepted_for_a_shared_subscription_is_not_dropped_for_want_of_room() {
        for messages_max in [3, 1] {
            let mut pair = pair();
            let each = QueueLimits { messages_max, bytes_max: 10_000 };
            let (messages_max, bytes_max) = (100, 100_000);
            let limits = QueuesLimits { policy: Policy::Reject, each, messages_max, bytes_max };
            pair.shard.queues.replace(limits);
            let open = |session| {
                let queues = pair.shard.queues.clone();
                mailbox(SessionId(session), Home::Memory, None, queues, pair.shard.metrics.clone())
            };
            let members = [open(2), open(3)];
            let grant = Grant { qos: Qos::AtLeastOnce, ..grant(false) };
            let filter = TopicFilter::parse("$share/g/t").unwrap();
            for member in &members {
                let mailbox = member.mailbox().clone();
                pair.trie.insert(&filter, mailbox.session(), Subscriber { mailbox, grant });
            }
            let messages: Vec<(&str, u8, u16)> = (1..=10).map(|id| ("t", 1, id)).collect();
            pair.publish(V5, &messages, false, Some(0));
            pair.shard.end_turn();
            let mut refused_count = 0;
            while let Some(mail) = pair.publisher.try_next() {
                if let Mail::Refused { refused, .. } = mail {
                    refused_count += refused.len();
                }
            }
            let mails = members.iter().flat_map(|it| std::iter::from_fn(|| it.try_next()));
            let messages = mails.map(|mail| match mail {
                Mail::Delivery(delivery) => delivery.messages as usize,
                _ => 0,
            });
            assert_eq!(messages.sum::<usize>() + refused_count, 10);
            assert_eq!(refused_count, 10 - 2 * each.messages_max as usize);
            assert_eq!(pair.shard.metrics.dropped_for(DropReason::QueueFull), 0);
        }
    }

    /// It could not be told, so it will send all of it again: nothing may overtake what was refused.
    #[test]
    fn nothing_is_accepted_from_an_older_client_behind_what_was_refused() {
        let mut pair = pair();
        let each = QueueLimits { messages_max: 1, bytes_max: 10_000 };
        let (messages_max, bytes_max) = (100, 100_000);
        let limits = QueuesLimits { policy: Policy::Reject, each, messages_max, bytes_max };
        pair.shard.queues.replace(limits);
        let (queues, metrics) = (pair.shard.queues.clone(), pair.shard.metrics.clone());
        let full = mailbox(SessionId(2), Home::Memory, None, queues, metrics);
        pair.subscribe(&full, "t", Grant { qos: Qos::AtLeastOnce, ..grant(false) });
        pair.publish(V311, &[("t", 1, 1), ("t", 1, 2), ("other", 1, 3)], false, Some(0));
        pair.shard.end_turn();
        full.mailbox().release(1, usize::MAX);
        pair.publish(V311, &[("t", 1, 4)], false, Some(1));
        pair.shard.end_turn();
        let mut refused_ids = Vec::new();
        while let Some(mail) = pair.publisher.try_next() {
            if let Mail::Refused { refused, .. } = mail {
                refused_ids.extend(refused.iter().map(|(id, _)| id.get()));
            }
        }
        assert_eq!(refused_ids, [2, 3, 4]);
        pair.publisher.mailbox().forget_refusal();
        pair.publish(V311, &[("t", 1, 2)], false, Some(2));
        assert_eq!(pair.receipts(), [(2, vec![])]);
    }

    #[test]
    fn message_at_qos_0_whose_members_are_away_is_dropped_for_that_reason() {
        let mut pair = pair();
        let member = inbox(2);
        let (filter, mailbox) =
            (TopicFilter::parse("$share/g/t").unwrap(), member.mailbox().clone());
        mailbox.set_connected(false);
        pair.trie.insert(&filter, SessionId(2), Subscriber { mailbox, grant: grant(false) });
        pair.publish(V5, &[("t", 0, 1)], false, None);
        assert_eq!(pair.shard.metrics.dropped_for(DropReason::QueueFull), 0);
        assert_eq!(pair.shard.metrics.dropped_for(DropReason::Offline), 1);
    }
}

//! One router shard: all topics whose hash leads here. Floor 4, one task each.
//!
//! A shard owns the exact subscriptions and the retained messages of its topics. Connections reach it
//! through its bounded command channel; it reaches sessions through their mailboxes and never waits for
//! anyone, so it cannot be part of a deadlock.
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
use std::time::{Duration, Instant};

use crate::codec::PublishView;
use crate::ids::SessionId;
use crate::message::{Batch, Grant, Replay, Run};
use crate::metrics::{DropReason, Metrics};
use crate::retained;
use crate::retained::Retain;
use crate::router::bell::Bell;
use crate::router::mailbox::{Mail, Mailbox};
use crate::router::route::{Route, Routes, Subscriber};
use crate::router::sharing::{Group, Strategy};
use crate::router::turn::Turn;
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
    /// Give messages of a shared subscription, which one member did not get, to another one.
    Share {
        /// One run of one topic.
        batch: Batch,
        /// The shared subscription.
        filter: TopicFilter,
        /// Who did not get them: has them again only if nobody else can take them.
        from: SessionId,
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
    turn: Turn,
    /// The batches of this turn are a single message.
    is_single: bool,
    /// Bytes of the batches of this turn.
    bytes: usize,
    /// Publishers to be told at the end of this turn.
    receipts: Vec<(Arc<Mailbox>, u64)>,
    metrics: Arc<Metrics>,
}

/// A shard and the handle to it; spawn [`Shard::run`].
pub(super) fn shard(
    index: usize,
    routes: Routes,
    retained_limits: RetainedLimits,
    strategy: Strategy,
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
        turn: Turn::new(strategy),
        is_single: false,
        bytes: 0,
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
            let is_small = self.is_single && self.turn.touched() == 1 && self.receipts.len() == 1;
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
                self.wait().await;
            }
        }
    }

    /// Until there is a command, or a retained message expires.
    async fn wait(&mut self) {
        let has_something = || !self.receiver.is_empty();
        let commands = std::future::poll_fn(|cx| self.bell.poll_rung(cx, has_something));
        let Some(expiry) = self.retained.next_expiry() else { return commands.await };
        if tokio::time::timeout_at(expiry.into(), commands).await.is_err() {
            let change = self.retained.expire(Instant::now());
            self.metrics.dropped(DropReason::Expired, change.messages.unsigned_abs());
            self.count_retained(change);
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
                self.routes.forget(session, &mut self.turn.outboxes);
            }
            Command::Share { batch, filter, from } => self.share_again(&batch, &filter, from),
            Command::Replay { mailbox, replay } => {
                let (deliveries, rest) = self.retained.replay(replay, Instant::now());
                mailbox.send(Mail::Chunk { deliveries, rest });
            }
            // Whoever asked may have given up waiting.
            Command::Barrier(done) => drop(done.send(())),
        }
    }

    fn publish(&mut self, publication: Publication) {
        let Publication { batch, mailbox, turn } = publication;
        self.turn.begin_batch();
        self.is_single = self.bytes == 0 && batch.is_single();
        self.bytes += batch.frames.len();
        for run in &batch.runs {
            if run.retain {
                self.retain(&batch, run);
            }
            let topic = batch.topic(run);
            let outboxes = &mut self.turn.outboxes;
            let route = self.routes.find(run.hash, topic, &self.exact, outboxes);
            if let Some(Route { targets, groups, .. }) = route {
                let publisher = mailbox.session();
                self.turn.add_all(run, targets, &batch, publisher);
                for group in groups {
                    if let Some(left) = self.turn.share(run, group, &batch, publisher) {
                        self.metrics.dropped(DropReason::QueueFull, left.count.into());
                    }
                }
            }
            if self.turn.pieces() >= TURN_PIECES_MAX {
                self.end_turn();
            }
        }
        if let Some(turn) = turn {
            self.receipts.push((mailbox, turn));
        }
        if self.bytes >= TURN_BYTES_MAX {
            self.end_turn();
        }
    }

    /// See [`Command::Share`].
    fn share_again(&mut self, batch: &Batch, filter: &TopicFilter, from: SessionId) {
        self.turn.begin_batch();
        let group = self.routes.group(filter, &mut self.turn.outboxes);
        let reason = match group {
            Some(_) => DropReason::QueueFull,
            None => DropReason::SessionEnded,
        };
        let members = group.iter().flat_map(|group| &group.members).cloned();
        let (own, others): (Vec<_>, _) = members.partition(|it| self.turn.is_for(it, from));
        let cursor = group.map(|group| group.cursor).unwrap_or_default();
        let own = Group { members: own, cursor: cursor.clone() };
        let others = Group { members: others, cursor };
        for run in &batch.runs {
            let left = self.turn.share(run, &others, batch, from);
            let left = left.and_then(|run| self.turn.share(&run, &own, batch, from));
            self.metrics.dropped(reason, left.map_or(0, |run| run.count.into()));
        }
    }

    /// Sends what the turn has gathered.
    fn end_turn(&mut self) {
        self.send_deliveries();
        self.send_receipts();
    }

    fn send_deliveries(&mut self) {
        self.turn.flush();
        self.bytes = 0;
    }

    /// Only behind the deliveries: a receipt says that they are in the mailboxes.
    fn send_receipts(&mut self) {
        for (mailbox, turn) in self.receipts.drain(..) {
            mailbox.send(Mail::Accepted { turn });
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
        let Some((topic, view, frame)) = newest_of(batch, run) else { return };
        let interval_s = if run.expires { view.message_expiry_interval_s() } else { None };
        let change = if view.payload.is_empty() {
            self.retained.remove(topic)
        } else if self.has_room_to_retain(topic, frame) {
            let retain = Retain {
                frame,
                version: batch.version,
                qos: run.qos,
                received_at: batch.received_at,
                expires_after: interval_s.map(|seconds| Duration::from_secs(seconds.into())),
            };
            self.retained.set(topic, retain)
        } else {
            // The earlier message is not the topic's newest any more: none is better than a stale one.
            self.metrics.dropped(DropReason::RetainedFull, 1);
            self.retained.remove(topic)
        };
        self.count_retained(change);
    }

    fn count_retained(&self, change: retained::Change) {
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

/// Topic, fields and frame of the last message of `run`.
fn newest_of<'b>(batch: &'b Batch, run: &Run) -> Option<(&'b str, PublishView<'b>, &'b [u8])> {
    let start = run.offset as usize;
    let mut frames = batch.frames.get(start..start + run.len as usize)?;
    let mut newest = None;
    while let Some(view) = PublishView::parse(frames, batch.version) {
        let (frame, rest) = frames.split_at_checked(view.frame_len)?;
        newest = Some((view, frame));
        frames = rest;
    }
    let (view, frame) = newest?;
    Some((std::str::from_utf8(batch.topic(run)).ok()?, view, frame))
}

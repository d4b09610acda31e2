//! Moves messages between sessions: N shards, one trie, one registry. Floor 4.
//!
//! `net` holds a clone of [`Router`] per connection; `sys` publishes through it. See the modules for who
//! owns what: [`shard`] topics, [`mod@mailbox`] the way to one session, [`registry`] which session is
//! where, `route` who gets a topic.

use std::sync::Arc;
use std::time::Instant;

use crate::access::Authorizer;
use crate::codec::{Delivery as Flow, Packet, Properties, Publish, header_len};
use crate::ids::{ClientId, ProtocolVersion, Qos, SessionId};
use crate::message::{Collector, Incoming, TopicHasher, shard_of};
use crate::metrics::{DropReason, Metrics};
use crate::router::denials::Denials;
use crate::router::keeper::RetainedLimits;
use crate::router::links::Links;
use crate::router::mailbox::{Expiring, Home, Inbox, Mailbox, mailbox};
use crate::router::queues::{QueueLimits, Queues};
use crate::router::registry::{Due, Parked, Registry};
use crate::router::route::{Routes, Subscriber};
use crate::router::shard::{Command, Publication, ShardHandle};
use crate::router::sharing::Strategy;
use crate::session::{Denial, Request, Retained, Session, Will};
use crate::store::handle::Store;
use crate::subscriptions::Trie;
use crate::topic::TopicFilter;

mod authorising;
mod bell;
mod deadline;
mod denials;
mod expiring;
mod fetching;
mod handover;
pub mod holder;
mod journal;
pub mod keeper;
pub mod links;
mod log;
pub mod log_room;
pub mod mailbox;
mod memory;
pub mod orphans;
pub mod queues;
mod receipt;
pub mod recovery;
pub mod registry;
mod route;
pub mod shard;
pub mod sharing;
mod turn;

/// Bounds of the router.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of each session's mailbox; [`Queues::replace`] says more.
    pub queue: QueueLimits,
    /// Of all shards together.
    pub retained: RetainedLimits,
    /// Who of a shared subscription gets a message.
    pub sharing: Strategy,
}

/// The handle to everything that moves messages. Cheap to clone; [`Router::stop`] ends the shards.
#[derive(Clone)]
pub struct Router {
    shards: Arc<[ShardHandle]>,
    trie: Arc<Trie<Subscriber>>,
    registry: Arc<Registry>,
    hasher: TopicHasher,
    queues: Arc<Queues>,
    metrics: Arc<Metrics>,
    /// The rules that are in force.
    authorizer: Arc<Authorizer>,
    denials: Arc<Denials>,
    /// Where sessions outlive the process, if they do.
    store: Option<Store>,
    /// Sessions in whose mailboxes messages wait that will expire.
    expiring: (flume::Sender<ClientId>, flume::Receiver<ClientId>),
    /// Sessions whose mailboxes hold much that is in the log.
    crowded: (flume::Sender<ClientId>, flume::Receiver<ClientId>),
    run_id: u64,
}

impl Router {
    /// Spawns `shards` shards (at least one) on the present runtime.
    pub fn spawn(
        shards: usize,
        limits: Limits,
        hasher: TopicHasher,
        metrics: Arc<Metrics>,
        store: Option<Store>,
    ) -> Self {
        let trie = Arc::new(Trie::new());
        let queues: Arc<Queues> = limits.queue.into();
        let handles = (0..shards.max(1)).map(|index| {
            let routes = Routes::new(trie.clone(), hasher.clone(), store.clone());
            let Limits { retained, sharing, .. } = limits;
            let (store, queues) = (store.clone(), queues.clone());
            let (shard, handle) =
                shard::shard(index, routes, retained, sharing, store, queues, metrics.clone());
            tokio::spawn(shard.run());
            handle
        });
        let shards = handles.collect();
        let run_id = hasher.hash(b"");
        let registry = Arc::default();
        let (expiring, crowded) = (flume::unbounded(), flume::unbounded());
        let (authorizer, denials) = (Arc::default(), Arc::default());
        Self {
            shards,
            trie,
            registry,
            hasher,
            queues,
            metrics,
            authorizer,
            denials,
            store,
            expiring,
            crowded,
            run_id,
        }
    }

    /// How many shards there are.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Which client id is where.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A number that differs from one run of the broker to the next.
    pub fn run_id(&self) -> u64 {
        self.run_id
    }

    /// Whether the disk has no room for more that must be kept.
    pub fn is_disk_short(&self) -> bool {
        self.store.as_ref().is_some_and(Store::is_short)
    }

    /// The data directory may hold so many bytes from now on; 0 is no limit.
    pub fn replace_disk_limit(&self, bytes_max: u64) {
        if let Some(store) = &self.store {
            store.replace_limit(bytes_max);
        }
    }

    /// Bytes that the store takes on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.store.as_ref().map_or(0, Store::used_bytes)
    }

    /// What queues may hold.
    pub fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A mailbox for a new session; without a client id it is one of the broker's own.
    pub fn open_mailbox(&self, client_id: Option<&ClientId>, home: Home) -> Inbox {
        self.open_mailbox_of(self.registry.fresh_session_id(), client_id, home)
    }

    fn open_mailbox_of(
        &self,
        session: SessionId,
        client_id: Option<&ClientId>,
        home: Home,
    ) -> Inbox {
        let expiring = client_id.map(|client_id| Expiring {
            client_id: client_id.clone(),
            clients: self.expiring.0.clone(),
            crowded: self.crowded.0.clone(),
        });
        mailbox(session, home, expiring, self.queues.clone(), self.metrics.clone())
    }

    /// Channels to all shards, for one connection.
    pub fn links(&self) -> Links {
        Links::new(self.shards.clone())
    }

    /// A collector whose batches fit this router.
    pub fn collector(&self) -> Collector {
        Collector::new(self.hasher.clone(), self.shards.len(), Instant::now())
    }

    /// Passes on what a session asked for.
    pub fn request(&self, request: Request, mailbox: &Arc<Mailbox>, links: &mut Links) {
        match request {
            Request::Subscribe { token, filters } => {
                self.subscribe(token, filters, mailbox, links);
            }
            Request::Unsubscribe { token, filters } => {
                let (exact, concerns_all) = self.leave_trie(mailbox.session(), filters);
                let parts_due = parts(&exact, concerns_all);
                for (shard, exact) in exact.into_iter().enumerate() {
                    if concerns_all || !exact.is_empty() {
                        let mailbox = mailbox.clone();
                        let command = Command::Unsubscribe { mailbox, exact, token, parts_due };
                        links.send(shard, command);
                    }
                }
            }
            Request::Fetch(wanted) => self.fetch(wanted, mailbox),
            Request::Replay(replay) => {
                links.send(replay.shard, Command::Replay { mailbox: mailbox.clone(), replay });
            }
        }
    }

    /// Ends a session: its subscriptions, its outboxes, its mailbox. Other members of its shared
    /// subscriptions get what it did not.
    pub async fn end_session(&self, session: &mut Session, inbox: Inbox) {
        let id = inbox.mailbox().session();
        self.metrics.sessions.add(-1);
        self.metrics.subscriptions.add(-(session.subscriptions() as i64));
        if !session.has_subscribed() {
            return self.write_ended(inbox.mailbox()).await;
        }
        let (exact, _) = self.leave_trie(id, session.filters().cloned().collect());
        for (shard, exact) in self.shards.iter().zip(exact) {
            shard.send(Command::End { session: id, exact }).await;
        }
        self.hand_over(session, &inbox, true).await;
        self.write_ended(inbox.mailbox()).await;
    }

    /// Ends a session whose client is away, and publishes what it left behind.
    pub async fn end_parked(&self, parked: Parked) {
        let Parked { mut session, inbox, will, .. } = parked;
        if let Some(waiting) = will {
            self.publish_will(waiting.will, inbox.mailbox()).await;
        }
        self.end_session(&mut session, inbox).await;
    }

    /// Does what has come due: wills are published, sessions end.
    pub async fn settle_due(&self, due: Vec<Due>) {
        for due in due {
            match due {
                Due::Will(will, mailbox, _held) => {
                    self.publish_will(will, &mailbox).await;
                    self.write_will_published(&mailbox).await;
                }
                Due::End(parked) => {
                    self.metrics.sessions_expired.add(1);
                    self.end_parked(parked).await;
                }
            }
        }
    }

    /// Publishes what a client left behind, in the name of its session, if it still may.
    pub async fn publish_will(&self, will: Will, mailbox: &Arc<Mailbox>) {
        let holder = mailbox.holder();
        let decision = holder.rights.may_publish(&will.topic);
        if !decision.is_allowed() {
            self.metrics.dropped(DropReason::NotAuthorized, 1);
            self.metrics.publishes_denied.add(1);
            if let Some(client_id) = mailbox.client_id() {
                let denial = Denial::new("publish a will", &will.topic, &decision);
                self.denials.report(client_id, holder.user.as_ref(), &denial);
            }
            return;
        }
        let mut collector = self.collector();
        collector.begin(will.version, Instant::now());
        let Will { qos, retain, expires, .. } = will;
        let message = Incoming { topic: &will.topic, qos, retain, expires };
        collector.add(message, 0..will.frame.len(), topic_at(&will.frame));
        self.flush(&mut collector, &will.frame, mailbox).await;
    }

    /// Publishes retained messages of the broker itself, at QoS 0.
    pub async fn publish_own(&self, messages: &[(String, String)], mailbox: &Arc<Mailbox>) {
        let mut collector = self.collector();
        let mut frames = Vec::new();
        let mut places = Vec::new();
        for (topic, payload) in messages {
            let start = frames.len();
            let publish = Publish {
                topic,
                payload: payload.as_bytes(),
                properties: Properties::EMPTY,
                delivery: Flow::AtMostOnce,
                retain: true,
            };
            Packet::Publish(publish).encode(ProtocolVersion::V311, &mut frames);
            places.push(start..frames.len());
        }
        for ((topic, _), frame) in messages.iter().zip(places) {
            let at = frames.get(frame.clone()).map_or(0, topic_at);
            let topic_at = frame.start + at;
            let qos = Qos::AtMostOnce;
            let message = Incoming { topic, qos, retain: true, expires: false };
            collector.add(message, frame, topic_at);
        }
        self.flush(&mut collector, &frames, mailbox).await;
    }

    /// Returns when the shards have done everything that was sent to them before.
    pub async fn settle(&self) {
        let (done, all_done) = flume::bounded(self.shards.len());
        for shard in self.shards.iter() {
            shard.send(Command::Barrier(done.clone())).await;
        }
        drop(done);
        while all_done.recv_async().await.is_ok() {}
    }

    /// Ends the shards. Nothing can be routed any more.
    pub async fn stop(&self) {
        for shard in self.shards.iter() {
            shard.send(Command::Stop).await;
        }
    }

    async fn flush(&self, collector: &mut Collector, frames: &[u8], mailbox: &Arc<Mailbox>) {
        let mut batches = Vec::new();
        collector.flush(frames, |shard, batch| batches.push((shard, batch)));
        for (shard, batch) in batches {
            if let Some(handle) = self.shards.get(shard) {
                let mailbox = mailbox.clone();
                let publication = Publication { batch, mailbox, turn: None };
                handle.send(Command::Publish(publication)).await;
            }
        }
    }

    fn subscribe(
        &self,
        token: u64,
        filters: Vec<(TopicFilter, crate::message::Grant, Retained)>,
        mailbox: &Arc<Mailbox>,
        links: &mut Links,
    ) {
        let mut exact = vec![Vec::new(); self.shards.len()];
        let mut replay = vec![Vec::new(); self.shards.len()];
        let mut concerns_all = false;
        for (filter, grant, retained) in filters {
            let wants_replay = retained == Retained::Replay;
            if is_in_trie(&filter) {
                concerns_all = true;
                let subscriber = Subscriber { mailbox: mailbox.clone(), grant };
                self.trie.insert(&filter, mailbox.session(), subscriber);
                if wants_replay {
                    replay.iter_mut().for_each(|list| list.push((filter.clone(), grant)));
                }
                continue;
            }
            let shard = self.shard_of(&filter);
            if wants_replay && let Some(list) = replay.get_mut(shard) {
                list.push((filter.clone(), grant));
            }
            if let Some(list) = exact.get_mut(shard) {
                list.push((filter, grant));
            }
        }
        let parts_due = parts(&exact, concerns_all);
        for (shard, (exact, replay)) in exact.into_iter().zip(replay).enumerate() {
            if concerns_all || !exact.is_empty() {
                let mailbox = mailbox.clone();
                links.send(shard, Command::Subscribe { mailbox, exact, replay, token, parts_due });
            }
        }
    }

    /// Takes out of the trie what is in it; returns the other filters per shard, and whether all shards
    /// are concerned.
    fn leave_trie(
        &self,
        session: SessionId,
        filters: Vec<TopicFilter>,
    ) -> (Vec<Vec<TopicFilter>>, bool) {
        let mut exact = vec![Vec::new(); self.shards.len()];
        let mut concerns_all = false;
        for filter in filters {
            if is_in_trie(&filter) {
                concerns_all = true;
                self.trie.remove(&filter, session);
            } else if let Some(list) = exact.get_mut(self.shard_of(&filter)) {
                list.push(filter);
            }
        }
        (exact, concerns_all)
    }

    fn shard_of(&self, filter: &TopicFilter) -> usize {
        shard_of(self.hasher.hash(filter.as_str().as_bytes()), self.shards.len())
    }
}

/// Whether a filter may match topics of more than one shard, or has to be looked at together with others.
fn is_in_trie(filter: &TopicFilter) -> bool {
    filter.has_wildcards() || filter.is_shared()
}

/// How many shards have a part of a request.
fn parts<T>(exact: &[Vec<T>], concerns_all: bool) -> usize {
    match concerns_all {
        true => exact.len(),
        false => exact.iter().filter(|list| !list.is_empty()).count(),
    }
}

/// Where the topic of a PUBLISH frame of our own starts.
fn topic_at(frame: &[u8]) -> usize {
    header_len(frame).unwrap_or(0) + 2
}

//! Compiled routes: topic to list of subscribers, per shard. Floor 4, owned by `router::shard`.
//!
//! The trie is touched only to compile a route. A route is valid while the trie's generation has not
//! moved; exact subscriptions touch only the route of their own topic.
//!
//! A route has only those whom the rules let receive its topic. Whoever changes their rights moves the generation, so a message
//! costs no look at any rule.
//!
//! # Limits
//!
//! At most [`ROUTES_MAX`] routes and [`ROUTES_BYTES_MAX`] bytes, while memory is short [`SHORT_ROUTES_BYTES_MAX`]; at the limit those that were not used since the last time are
//! forgotten, or all of them if all were used. Routes of an earlier generation are good for nothing, and forgotten
//! whenever there are twice as many routes as were left the last time.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::HashTable;

use crate::ids::SessionId;
use crate::message::{Grant, TopicHasher, Via};
use crate::router::mailbox::Mailbox;
use crate::router::sharing::Group;
use crate::router::turn::Outbox;
use crate::store::handle::Store;
use crate::store::log::Level;
use crate::subscriptions::{GroupMatch, Subscribers, Trie};
use crate::topic::TopicFilter;

/// Routes that one shard keeps.
const ROUTES_MAX: usize = 65_536;
/// Fewer routes are not looked through for old ones.
const SWEEP_MIN: usize = 256;
/// Bytes of topics and targets that one shard keeps; a single route may be larger.
const ROUTES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The same while memory is short.
const SHORT_ROUTES_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Who gets a message, and how.
#[derive(Clone, Debug)]
pub(super) struct Subscriber {
    /// Where to.
    pub mailbox: Arc<Mailbox>,
    /// How.
    pub grant: Grant,
}

/// A subscriber within one shard.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// Index of the outbox.
    pub(super) outbox: u32,
    /// Of all its subscriptions that match together.
    pub(super) grant: Grant,
    /// By which of them, where that makes a difference.
    pub(super) via: Option<Arc<Via>>,
    /// What of it holds for its own messages, where some of the subscriptions have No Local and others
    /// have not [MQTT-3.8.3-3].
    pub(super) own: Option<Box<Target>>,
}

/// See the module comment.
pub(super) struct Routes {
    trie: Arc<Trie<Subscriber>>,
    hasher: TopicHasher,
    store: Option<Store>,
    table: HashTable<Route>,
    /// Bytes of topics and targets in `table`.
    bytes: usize,
    /// As many as it may have.
    bytes_max: usize,
    /// With so many routes those of earlier generations are forgotten.
    sweep_at: usize,
    outbox_of: HashMap<SessionId, u32>,
    free_outboxes: Vec<u32>,
}

/// Who gets the messages of one topic.
pub(super) struct Route {
    hash: u64,
    topic: Box<[u8]>,
    generation: u64,
    is_used: bool,
    /// Each of these.
    pub(super) targets: Vec<Target>,
    /// One member of each of these.
    pub(super) groups: Vec<Group>,
    /// Messages of some of them are in the log.
    pub(super) is_durable: bool,
    /// At which level, if at all.
    pub(super) level: Option<Level>,
}

/// The subscriptions of one session that match a topic.
struct Matched {
    mailbox: Arc<Mailbox>,
    /// All of them together.
    grant: Grant,
    /// Those without No Local together.
    local: Option<Grant>,
    has_no_local: bool,
    /// Each with the No Local of its subscription.
    identifiers: Vec<(NonZeroU32, bool)>,
}

impl Matched {
    fn new(Subscriber { mailbox, grant }: &Subscriber) -> Self {
        let mailbox = mailbox.clone();
        let identifiers = Vec::new();
        let mut matched =
            Self { mailbox, grant: *grant, local: None, has_no_local: false, identifiers };
        matched.add(*grant);
        matched
    }

    fn add(&mut self, grant: Grant) {
        self.grant = union(self.grant, grant);
        if grant.no_local {
            self.has_no_local = true;
        } else {
            self.local = Some(self.local.map_or(grant, |local| union(local, grant)));
        }
        let identifiers = grant.identifier.into_iter().map(|id| (id, grant.no_local));
        self.identifiers.extend(identifiers);
    }

    /// As a target with this outbox.
    fn target(&self, outbox: u32) -> Target {
        let local = self.local.filter(|_| self.has_no_local);
        let own = local.map(|grant| {
            let via = self.via(|no_local| !no_local);
            Box::new(Target { outbox, grant, via, own: None })
        });
        Target { outbox, grant: self.grant, via: self.via(|_| true), own }
    }

    fn via(&self, is_wanted: impl Fn(bool) -> bool) -> Option<Arc<Via>> {
        let wanted = self.identifiers.iter().filter(|(_, no_local)| is_wanted(*no_local));
        let identifiers: Box<[NonZeroU32]> = wanted.map(|(id, _)| *id).collect();
        (!identifiers.is_empty()).then(|| Arc::new(Via { identifiers, share: None }))
    }
}

impl Routes {
    /// No routes yet.
    pub(super) fn new(
        trie: Arc<Trie<Subscriber>>,
        hasher: TopicHasher,
        store: Option<Store>,
    ) -> Self {
        Self {
            trie,
            hasher,
            store,
            table: HashTable::new(),
            bytes: 0,
            bytes_max: ROUTES_BYTES_MAX,
            sweep_at: SWEEP_MIN,
            outbox_of: HashMap::new(),
            free_outboxes: Vec::new(),
        }
    }

    /// The subscribers of `topic`, whose hash is `hash`.
    pub(super) fn find(
        &mut self,
        hash: u64,
        topic: &[u8],
        exact: &HashMap<Box<str>, Subscribers<Subscriber>>,
        outboxes: &mut Vec<Outbox>,
    ) -> Option<&Route> {
        let generation = self.trie.generation();
        let is_current = |route: &Route| route.generation == generation;
        let found = self.table.find(hash, |route| *route.topic == *topic);
        if !found.is_some_and(is_current) {
            self.compile(hash, topic, generation, exact, outboxes);
        }
        let route = self.table.find_mut(hash, |route| *route.topic == *topic)?;
        route.is_used = true;
        Some(route)
    }

    /// The members of the shared subscription `filter` that may receive `topic`, if there are any.
    pub(super) fn group(
        &mut self,
        filter: &TopicFilter,
        topic: &str,
        outboxes: &mut Vec<Outbox>,
    ) -> Option<Group> {
        self.trie.group(filter).and_then(|found| self.group_of(found, topic, outboxes))
    }

    /// Holds less while memory is short.
    pub(super) fn spare(&mut self, is_memory_short: bool) {
        self.bytes_max = if is_memory_short { SHORT_ROUTES_BYTES_MAX } else { ROUTES_BYTES_MAX };
        if self.bytes > self.bytes_max {
            self.make_room(0);
        }
    }

    /// The exact subscriptions of `topic` have changed.
    pub(super) fn invalidate(&mut self, topic: &str) {
        let hash = self.hasher.hash(topic.as_bytes());
        if let Ok(route) = self.table.find_entry(hash, |route| *route.topic == *topic.as_bytes()) {
            self.bytes -= route.remove().0.bytes();
        }
    }

    /// `session` has ended: its outbox may go to another one. Routes that lead to it are out of date
    /// already: its exact ones were invalidated, its wildcard filters have left the trie.
    pub(super) fn forget(&mut self, session: SessionId, outboxes: &mut [Outbox]) {
        if let Some(index) = self.outbox_of.remove(&session) {
            self.free_outboxes.push(index);
            if let Some(outbox) = outboxes.get_mut(index as usize) {
                *outbox = Outbox::default();
            }
        }
    }

    fn compile(
        &mut self,
        hash: u64,
        topic: &[u8],
        generation: u64,
        exact: &HashMap<Box<str>, Subscribers<Subscriber>>,
        outboxes: &mut Vec<Outbox>,
    ) {
        let Ok(text) = std::str::from_utf8(topic) else { return };
        let mut found: HashMap<SessionId, Matched> = HashMap::new();
        let mut order = Vec::new();
        let mut add = |session, subscriber: &Subscriber| match found.get_mut(&session) {
            Some(earlier) => earlier.add(subscriber.grant),
            None if !subscriber.mailbox.may_receive(text) => (),
            None => {
                order.push(session);
                found.insert(session, Matched::new(subscriber));
            }
        };
        for (session, subscriber) in exact.get(text).into_iter().flat_map(Subscribers::iter) {
            add(*session, subscriber);
        }
        let matches = self.trie.matches(text);
        for (session, subscriber) in &matches.subscribers {
            add(*session, subscriber);
        }

        let matched = order.iter().filter_map(|session| found.remove(session));
        let target = |matched: Matched| matched.target(self.outbox(&matched.mailbox, outboxes));
        let targets: Vec<Target> = matched.map(target).collect();
        let groups = matches.groups.into_iter();
        let groups: Vec<Group> =
            groups.filter_map(|found| self.group_of(found, text, outboxes)).collect();
        let is_durable = targets.iter().chain(groups.iter().flat_map(|group| &group.members)).any(
            |target: &Target| outboxes.get(target.outbox as usize).is_some_and(Outbox::is_durable),
        );
        if let Ok(stale) = self.table.find_entry(hash, |route| *route.topic == *topic) {
            self.bytes -= stale.remove().0.bytes();
        }
        let level = self.store.as_ref().and_then(|store| store.level_of(text));
        let topic = topic.into();
        let route =
            Route { hash, topic, generation, is_used: true, targets, groups, is_durable, level };
        self.forget_old(generation);
        self.make_room(route.bytes());
        self.bytes += route.bytes();
        self.table.insert_unique(hash, route, |route| route.hash);
    }

    fn group_of(
        &mut self,
        found: GroupMatch<Subscriber>,
        topic: &str,
        outboxes: &mut Vec<Outbox>,
    ) -> Option<Group> {
        let target = |(_, subscriber): (SessionId, Subscriber)| {
            let identifiers = subscriber.grant.identifier.into_iter().collect();
            let share = Some(found.filter.clone());
            Target {
                outbox: self.outbox(&subscriber.mailbox, outboxes),
                grant: subscriber.grant,
                via: Some(Arc::new(Via { identifiers, share })),
                own: None,
            }
        };
        let may_receive = |(_, it): &(SessionId, Subscriber)| it.mailbox.may_receive(topic);
        let members: Vec<Target> =
            found.members.into_iter().filter(may_receive).map(target).collect();
        (!members.is_empty()).then_some(Group { members, cursor: found.cursor })
    }

    fn outbox(&mut self, mailbox: &Arc<Mailbox>, outboxes: &mut Vec<Outbox>) -> u32 {
        let session = mailbox.session();
        if let Some(index) = self.outbox_of.get(&session) {
            return *index;
        }
        let outbox = Outbox::new(mailbox.clone());
        let index = match self.free_outboxes.pop() {
            Some(index) => {
                if let Some(free) = outboxes.get_mut(index as usize) {
                    *free = outbox;
                }
                index
            }
            None => {
                outboxes.push(outbox);
                (outboxes.len() - 1) as u32
            }
        };
        self.outbox_of.insert(session, index);
        index
    }

    /// Work for each route that comes is constant, on average: the next time is when there are twice as many.
    fn forget_old(&mut self, generation: u64) {
        if self.table.len() < self.sweep_at {
            return;
        }
        self.table.retain(|route| route.generation == generation);
        self.bytes = self.table.iter().map(Route::bytes).sum();
        self.sweep_at = SWEEP_MIN.max(2 * self.table.len());
        self.table.shrink_to(self.sweep_at, |route| route.hash);
    }

    fn make_room(&mut self, bytes: usize) {
        let is_full = |routes: &Self| {
            routes.table.len() >= ROUTES_MAX || routes.bytes + bytes > routes.bytes_max
        };
        if is_full(self) {
            self.table.retain(|route| std::mem::take(&mut route.is_used));
            self.bytes = self.table.iter().map(Route::bytes).sum();
        }
        if is_full(self) {
            self.table.clear();
            self.bytes = 0;
        }
    }
}

impl Target {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.via.as_ref().map_or(0, |via| via.bytes())
    }
}

impl Route {
    fn bytes(&self) -> usize {
        let members = self.groups.iter().flat_map(|group| &group.members);
        let targets = self.targets.iter().chain(members).map(Target::bytes);
        size_of::<Self>() + self.topic.len() + targets.sum::<usize>()
    }
}

/// What overlapping subscriptions of one session give together: one copy, at the highest
/// QoS [MQTT-3.3.4-2].
fn union(a: Grant, b: Grant) -> Grant {
    Grant {
        qos: a.qos.max(b.qos),
        no_local: a.no_local && b.no_local,
        retain_as_published: a.retain_as_published || b.retain_as_published,
        // All of them are kept beside the grant.
        identifier: a.identifier.or(b.identifier),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Qos;
    use crate::router::mailbox::{Home, QueueLimits, mailbox};

    /// Random topics, while subscriptions come and go, must not leave their routes behind.
    #[test]
    fn routes_of_earlier_generations_are_forgotten() {
        let trie = Arc::new(Trie::new());
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let mut routes = Routes::new(trie.clone(), hasher.clone(), None);
        let limits = QueueLimits { messages_max: 1, bytes_max: 1 };
        let inbox = mailbox(SessionId(1), Home::Memory, None, limits, Arc::default());
        let (qos, no_local, retain_as_published) = (Qos::AtMostOnce, false, false);
        let grant = Grant { qos, no_local, retain_as_published, identifier: None };
        let mut find = |number: usize| {
            let topic = number.to_string();
            let hash = hasher.hash(topic.as_bytes());
            let found = routes.find(hash, topic.as_bytes(), &HashMap::new(), &mut Vec::new());
            assert!(found.is_some());
            (routes.table.len(), routes.bytes)
        };
        let mut at = Vec::new();
        (0..4 * SWEEP_MIN).for_each(|number| at.push(find(number)));
        assert_eq!(at[4 * SWEEP_MIN - 1].0, 4 * SWEEP_MIN, "all of one generation");
        let subscriber = Subscriber { mailbox: inbox.mailbox().clone(), grant };
        trie.insert(&TopicFilter::parse("+/x").unwrap(), SessionId(1), subscriber);
        // The next look at them is at twice as many as the last one left.
        (4 * SWEEP_MIN..9 * SWEEP_MIN).for_each(|number| at.push(find(number)));
        let (count, bytes) = at[9 * SWEEP_MIN - 1];
        assert!(count <= 5 * SWEEP_MIN && bytes < 2 * at[4 * SWEEP_MIN - 1].1, "{count} routes");
    }

    /// Each shard has routes, and there may be many shards and little memory.
    #[test]
    fn routes_are_forgotten_while_memory_is_short() {
        let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
        let mut routes = Routes::new(Arc::new(Trie::new()), hasher.clone(), None);
        let find = |routes: &mut Routes, number: usize| {
            let topic = format!("{number}/{}", "t".repeat(60_000));
            let hash = hasher.hash(topic.as_bytes());
            routes.find(hash, topic.as_bytes(), &HashMap::new(), &mut Vec::new());
            routes.bytes
        };
        let most = (0..200).map(|number| find(&mut routes, number)).max();
        assert!(most > Some(2 * SHORT_ROUTES_BYTES_MAX));
        routes.spare(true);
        assert!(routes.bytes <= SHORT_ROUTES_BYTES_MAX);
        let most = (0..200).map(|number| find(&mut routes, number)).max();
        assert!(most <= Some(SHORT_ROUTES_BYTES_MAX));
        routes.spare(false);
        let most = (0..200).map(|number| find(&mut routes, number)).max();
        assert!(most > Some(2 * SHORT_ROUTES_BYTES_MAX));
    }

    /// What is kept of a topic may be nearly all identifiers.
    #[test]
    fn bytes_of_a_route_are_also_those_of_its_identifiers() {
        let bytes = |identifier| {
            let trie = Arc::new(Trie::new());
            let hasher = TopicHasher::new(foldhash::quality::RandomState::default());
            let mut routes = Routes::new(trie.clone(), hasher.clone(), None);
            let limits = QueueLimits { messages_max: 1, bytes_max: 1 };
            let inbox = mailbox(SessionId(1), Home::Memory, None, limits, Arc::default());
            let (qos, no_local, retain_as_published) = (Qos::AtMostOnce, false, false);
            let grant = Grant { qos, no_local, retain_as_published, identifier };
            for text in ["a/b", "a/+", "+/b", "+/+", "a/#", "+/#", "#", "$share/g/a/b"] {
                let filter = TopicFilter::parse(text).unwrap();
                let subscriber = Subscriber { mailbox: inbox.mailbox().clone(), grant };
                trie.insert(&filter, SessionId(1), subscriber);
            }
            let topic = b"a/b";
            let hash = hasher.hash(topic);
            assert!(routes.find(hash, topic, &HashMap::new(), &mut Vec::new()).is_some());
            routes.bytes
        };
        let more = bytes(NonZeroU32::new(1)) - bytes(None);
        assert_eq!(more, size_of::<Via>() + 8 * size_of::<NonZeroU32>());
    }
}

//! The wildcard and the shared subscriptions of the whole broker, found by topic. Floor 2.
//!
//! Shards call [`Trie::matches`] at the same time as sessions call [`Trie::insert`] and
//! [`Trie::remove`]. A filter is a path of nodes, one per level, below one root:
//!
//! ```text
//!   a/+/#            root -> a -> +     `below` of the node `+` holds the subscribers
//!   a/+              root -> a -> +     `here` of the same node
//!   $share/g/a/+     root -> a -> +     group `g` in `here` of the same node
//! ```
//!
//! A place, that is `here` or `below` of a node, holds the subscribers to one filter and, apart from
//! them, those of the same filter that share, by group.
//!
//! All nodes lie in one `DashMap`, keyed by the parent's id and the text of the level, so a reader
//! holds the lock of one map shard for one look-up and nothing else.
//!
//! # Invariants
//!
//! - At most one guard of the map is alive at a time, no guard leaves this file, and no code of the
//!   caller runs under one, but for `S::clone`, which therefore must not call the trie.
//! - Only the holder of `structure` changes anything, but for the cursors of the groups, which belong
//!   to the callers and are theirs to move at any time. Readers never take `structure`.
//! - A path is made from the root down and pruned from the leaf up, so a reader finds every
//!   subscription that is in force during its whole call; one that changes meanwhile is found or
//!   not, and the generation moves after the change for those who must know.
//! - A node exists only while a filter ends at it or a node lies below it. Ids are never used twice.
//! - A group exists only while it has a member, and its cursor as long as it and whoever holds a match
//!   of it: so cursors are bounded by subscriptions.
//! - Work is bounded by the nodes that lie on a path of the topic: by the filters, not by the topic.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use foldhash::fast::RandomState;

use super::group::{GroupMatch, Groups};
use super::subscribers::Subscribers;
use crate::ids::SessionId;
use crate::topic::TopicFilter;

/// See the module comment. `S` is cloned for each match: make it cheap, an `Arc` or smaller.
#[derive(Debug)]
pub struct Trie<S> {
    nodes: DashMap<EdgeBuf, Node<S>, RandomState>,
    structure: Mutex<Structure>,
    generation: AtomicU64,
    len: AtomicUsize,
}

/// What [`Trie::matches`] finds for a topic.
#[derive(Clone, Debug)]
pub struct Matches<S> {
    /// A session once per matching filter that is not shared.
    pub subscribers: Vec<(SessionId, S)>,
    /// The group of each matching shared filter once. A session may be in several, and among
    /// `subscribers` as well.
    pub groups: Vec<GroupMatch<S>>,
}

impl<S: Clone> Trie<S> {
    /// A trie without subscriptions and without nodes.
    pub fn new() -> Self {
        Self {
            nodes: DashMap::with_hasher(RandomState::default()),
            structure: Mutex::new(Structure { last_id: NO_NODE }),
            generation: AtomicU64::new(0),
            len: AtomicUsize::new(0),
        }
    }

    /// Adds or replaces the subscription of `session` with `filter`; returns the earlier value. With a
    /// shared filter the session joins the group. The generation moves after the change is visible.
    pub fn insert(&self, filter: &TopicFilter, session: SessionId, value: S) -> Option<S> {
        let mut structure = self.lock_structure();
        let (levels, place) = path_of(filter);
        let mut edge = Edge::ROOT;
        let mut node = self.find_or_create(edge, None, &mut structure);
        for level in levels {
            let below = Edge { parent: node, level };
            node = self.find_or_create(below, Some(edge), &mut structure);
            edge = below;
        }
        let earlier =
            self.change(edge, |node| node.at_mut(place).insert(filter, session, value)).flatten();
        if earlier.is_none() {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
        self.generation.fetch_add(1, Ordering::Release);
        earlier
    }

    /// Ends the subscription of `session` with `filter` and prunes the group and the nodes that only it
    /// needed. Without such a subscription nothing changes, the generation included.
    pub fn remove(&self, filter: &TopicFilter, session: SessionId) -> Option<S> {
        let _structure = self.lock_structure();
        let (levels, place) = path_of(filter);
        let mut path = vec![Edge::ROOT];
        let mut edge = Edge::ROOT;
        for level in levels {
            edge = Edge { parent: self.find(edge)?, level };
            path.push(edge);
        }
        let value =
            self.change(edge, |node| node.at_mut(place).remove(filter, session)).flatten()?;
        self.prune(path);
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
        Some(value)
    }

    /// The subscribers and groups of each filter that matches `topic`, a valid topic name.
    pub fn matches(&self, topic: &str) -> Matches<S> {
        let mut found = Matches { subscribers: Vec::new(), groups: Vec::new() };
        // A stack of its own, as deep as the deepest filter. More pending paths are rare, and growing
        // from one would cost two more allocations.
        let mut pending = Vec::with_capacity(8);
        pending.push(Step { edge: Edge::ROOT, rest: Some(topic) });
        while let Some(Step { edge, rest }) = pending.pop() {
            let Some(node) = self.nodes.get(edge.as_key()) else { continue };
            // A wildcard in first place does not match `$SYS` and its like [MQTT-4.7.2-1].
            let wildcards = edge.parent != NO_NODE || !topic.starts_with('$');
            if wildcards {
                node.below.add_to(&mut found);
            }
            let Some(rest) = rest else {
                node.here.add_to(&mut found);
                continue;
            };
            let (level, rest) = match rest.split_once('/') {
                Some((level, rest)) => (level, Some(rest)),
                None => (rest, None),
            };
            if node.literals > 0 {
                pending.push(Step { edge: Edge { parent: node.id, level }, rest });
            }
            if node.single_level_wildcard && wildcards {
                pending.push(Step { edge: Edge { parent: node.id, level: "+" }, rest });
            }
        }
        found
    }

    /// The group of `filter` as it is now, for a message that has to go to another member; nothing
    /// where `filter` is not shared or nobody is left.
    pub fn group(&self, filter: &TopicFilter) -> Option<GroupMatch<S>> {
        let (levels, place) = path_of(filter);
        let mut edge = Edge::ROOT;
        for level in levels {
            edge = Edge { parent: self.find(edge)?, level };
        }
        self.nodes.get(edge.as_key())?.at(place).groups.find(filter)
    }

    /// Moves with every change. Who reads it before matching knows later whether the matches still
    /// hold.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Moves the generation, though nothing has changed: what was made of matches no longer holds for another reason.
    pub fn invalidate(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// How many subscriptions there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there is no subscription.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, edge: Edge<'_>) -> Option<u64> {
        self.nodes.get(edge.as_key()).map(|node| node.id)
    }

    /// The id of the node behind `edge`; a new one is announced to its parent.
    fn find_or_create(
        &self,
        edge: Edge<'_>,
        parent: Option<Edge<'_>>,
        structure: &mut Structure,
    ) -> u64 {
        if let Some(id) = self.find(edge) {
            return id;
        }
        structure.last_id += 1;
        let id = structure.last_id;
        self.nodes.insert(EdgeBuf { parent: edge.parent, level: edge.level.into() }, Node::new(id));
        if let Some(parent) = parent {
            self.change(parent, |node| node.child_added(edge.level));
        }
        id
    }

    /// Removes the nodes at the end of `path` that nothing needs any more.
    fn prune(&self, mut path: Vec<Edge<'_>>) {
        while let Some(edge) = path.pop() {
            if self.nodes.remove_if(edge.as_key(), |_, node| node.is_unused()).is_none() {
                return;
            }
            if let Some(&parent) = path.last() {
                self.change(parent, |node| node.child_removed(edge.level));
            }
        }
    }

    fn change<T>(&self, edge: Edge<'_>, change: impl FnOnce(&mut Node<S>) -> T) -> Option<T> {
        self.nodes.get_mut(edge.as_key()).map(|mut node| change(&mut node))
    }

    fn lock_structure(&self) -> MutexGuard<'_, Structure> {
        // Each step under the lock leaves a trie that is right for readers, at worst with a node
        // too many, so a panic of another thread is no reason to refuse the next change.
        self.structure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Clone> Default for Trie<S> {
    fn default() -> Self {
        Self::new()
    }
}

/// What belongs to whoever changes the trie.
#[derive(Debug)]
struct Structure {
    last_id: u64,
}

/// The parent of the root. Ids of nodes are greater.
const NO_NODE: u64 = 0;

/// One level of one or more filters.
#[derive(Debug)]
struct Node<S> {
    id: u64,
    /// How many children there are besides `+`. With none a reader saves the look-up.
    literals: usize,
    /// Whether there is a child `+`.
    single_level_wildcard: bool,
    /// For filters that end with this level.
    here: Audience<S>,
    /// For filters that go on with `#`, which also match this level itself.
    below: Audience<S>,
}

impl<S> Node<S> {
    fn new(id: u64) -> Self {
        Self {
            id,
            literals: 0,
            single_level_wildcard: false,
            here: Audience::new(),
            below: Audience::new(),
        }
    }

    fn at(&self, place: Place) -> &Audience<S> {
        match place {
            Place::Here => &self.here,
            Place::Below => &self.below,
        }
    }

    fn at_mut(&mut self, place: Place) -> &mut Audience<S> {
        match place {
            Place::Here => &mut self.here,
            Place::Below => &mut self.below,
        }
    }

    fn child_added(&mut self, level: &str) {
        match level {
            "+" => self.single_level_wildcard = true,
            _ => self.literals += 1,
        }
    }

    fn child_removed(&mut self, level: &str) {
        match level {
            "+" => self.single_level_wildcard = false,
            _ => self.literals -= 1,
        }
    }

    fn is_unused(&self) -> bool {
        self.literals == 0
            && !self.single_level_wildcard
            && self.here.is_empty()
            && self.below.is_empty()
    }
}

/// Everybody at one place of a node.
#[derive(Debug)]
struct Audience<S> {
    subscribers: Subscribers<S>,
    groups: Groups<S>,
}

impl<S> Audience<S> {
    const fn new() -> Self {
        Self { subscribers: Subscribers::new(), groups: Groups::new() }
    }

    fn insert(&mut self, filter: &TopicFilter, session: SessionId, value: S) -> Option<S> {
        match filter.is_shared() {
            true => self.groups.insert(filter, session, value),
            false => self.subscribers.insert(session, value),
        }
    }

    fn remove(&mut self, filter: &TopicFilter, session: SessionId) -> Option<S> {
        match filter.is_shared() {
            true => self.groups.remove(filter, session),
            false => self.subscribers.remove(session),
        }
    }

    fn is_empty(&self) -> bool {
        self.subscribers.is_empty() && self.groups.is_empty()
    }
}

impl<S: Clone> Audience<S> {
    fn add_to(&self, found: &mut Matches<S>) {
        found.subscribers.extend(self.subscribers.iter().cloned());
        if !self.groups.is_empty() {
            found.groups.extend(self.groups.iter());
        }
    }
}

/// Which audience of its last node a filter means.
#[derive(Clone, Copy)]
enum Place {
    Here,
    Below,
}

/// The levels that are nodes, and which audience of the last node the subscriber belongs to.
fn path_of(filter: &TopicFilter) -> (impl Iterator<Item = &str>, Place) {
    // In a valid filter `#` is the last level or nowhere.
    let place = if filter.as_str().ends_with('#') { Place::Below } else { Place::Here };
    (filter.levels().take_while(|&level| level != "#"), place)
}

/// A node that a reader still has to visit, and what of the topic lies below it.
struct Step<'a> {
    edge: Edge<'a>,
    rest: Option<&'a str>,
}

/// Names a node by its parent and level. No topic name has a level `+`, so the node of the wildcard
/// needs no name of another kind.
#[derive(Clone, Copy)]
struct Edge<'a> {
    parent: u64,
    level: &'a str,
}

impl Edge<'_> {
    const ROOT: Edge<'static> = Edge { parent: NO_NODE, level: "" };

    fn as_key(&self) -> &(dyn Key + '_) {
        self
    }
}

/// The owned form of [`Edge`], as the map keeps it.
#[derive(Debug)]
struct EdgeBuf {
    parent: u64,
    level: Box<str>,
}

/// What [`Edge`] and [`EdgeBuf`] have in common, so that a look-up borrows the level from the topic
/// and allocates nothing: `Borrow` can lend an object of a trait, but not a struct with a lifetime.
trait Key {
    fn edge(&self) -> Edge<'_>;
}

impl Key for Edge<'_> {
    fn edge(&self) -> Edge<'_> {
        *self
    }
}

impl Key for EdgeBuf {
    fn edge(&self) -> Edge<'_> {
        Edge { parent: self.parent, level: &self.level }
    }
}

impl<'a> Borrow<dyn Key + 'a> for EdgeBuf {
    fn borrow(&self) -> &(dyn Key + 'a) {
        self
    }
}

impl Hash for dyn Key + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let Edge { parent, level } = self.edge();
        parent.hash(state);
        level.hash(state);
    }
}

impl PartialEq for dyn Key + '_ {
    fn eq(&self, other: &Self) -> bool {
        let (one, other) = (self.edge(), other.edge());
        one.parent == other.parent && one.level == other.level
    }
}

impl Eq for dyn Key + '_ {}

impl Hash for EdgeBuf {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self as &dyn Key).hash(state);
    }
}

impl PartialEq for EdgeBuf {
    fn eq(&self, other: &Self) -> bool {
        (self as &dyn Key) == (other as &dyn Key)
    }
}

impl Eq for EdgeBuf {}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::topic;

    #[test]
    fn each_matching_filter_of_a_session_is_one_visit() {
        let trie = trie(&["a/#", "a/+", "a/b", "#", "+/b", "b/#", "a/b/c"]);
        assert_eq!(found(&trie, "a/b"), ["#", "+/b", "a/#", "a/+", "a/b"]);
    }

    #[test]
    fn a_multi_level_wildcard_matches_its_parent_level() {
        let trie = trie(&["a/#", "a/b/#", "#", "+/#", "/#"]);
        assert_eq!(found(&trie, "a"), ["#", "+/#", "a/#"]);
        assert_eq!(found(&trie, "/"), ["#", "+/#", "/#"]);
    }

    #[test]
    fn a_wildcard_in_first_place_does_not_match_a_dollar_topic() {
        let trie = trie(&["#", "+/#", "+/a", "$SYS/#", "$SYS/+", "$SYS/a"]);
        assert_eq!(found(&trie, "$SYS/a"), ["$SYS/#", "$SYS/+", "$SYS/a"]);
        assert_eq!(found(&trie, "a/$SYS"), ["#", "+/#"]);
    }

    #[test]
    fn a_second_insert_replaces_the_value_and_returns_the_first() {
        let trie = Trie::new();
        let (filter, session) = (filter("a/+"), SessionId(1));
        assert_eq!(trie.insert(&filter, session, 1), None);
        assert_eq!(trie.insert(&filter, session, 2), Some(1));
        assert_eq!(trie.len(), 1);
        assert_eq!(trie.remove(&filter, session), Some(2));
        assert_eq!(trie.remove(&filter, session), None);
        assert!(trie.is_empty());
    }

    #[test]
    fn the_generation_moves_with_each_change_and_only_then() {
        let trie = Trie::new();
        let (filter, session) = (filter("a/+"), SessionId(1));
        trie.remove(&filter, session);
        assert_eq!(trie.generation(), 0);
        trie.insert(&filter, session, ());
        trie.insert(&filter, session, ());
        trie.remove(&filter, SessionId(2));
        assert_eq!(trie.generation(), 2);
        trie.remove(&filter, session);
        assert_eq!(trie.generation(), 3);
    }

    #[test]
    fn removing_a_filter_keeps_the_nodes_that_others_need() {
        let trie = trie(&["a/b/c/d", "a/b", "a/b/#"]);
        for (text, nodes) in [("a/b/c/d", 3), ("a/b", 3), ("a/b/#", 0)] {
            assert!(trie.remove(&filter(text), SessionId(0)).is_some());
            assert_eq!(trie.nodes.len(), nodes, "after {text}");
        }
    }

    #[test]
    fn a_session_may_be_in_several_groups_and_have_the_plain_filter_as_well() {
        let texts = ["a/+", "$share/g/a/+", "$share/h/a/+", "$share/g/a/#", "$share/g/a/b"];
        let trie = trie(&texts);
        assert_eq!(trie.len(), 5);
        assert_eq!(found(&trie, "a/b"), ["a/+"]);
        assert_eq!(
            found_groups(&trie, "a/b"),
            ["$share/g/a/#", "$share/g/a/+", "$share/g/a/b", "$share/h/a/+"]
        );
        assert_eq!(found_groups(&trie, "a"), ["$share/g/a/#"]);
        assert_eq!(found_groups(&trie, "$share/g/a/b"), [""; 0]);
    }

    #[test]
    fn a_shared_wildcard_in_first_place_does_not_match_a_dollar_topic() {
        let trie = trie(&["$share/g/#", "$share/g/+/a", "$share/g/$SYS/#", "$share/g/$SYS/a"]);
        assert_eq!(found_groups(&trie, "$SYS/a"), ["$share/g/$SYS/#", "$share/g/$SYS/a"]);
        assert_eq!(found_groups(&trie, "a/a"), ["$share/g/#", "$share/g/+/a"]);
    }

    #[test]
    fn a_group_goes_with_its_last_member_and_the_nodes_with_the_last_group() {
        let trie = Trie::new();
        let [g, h, other_place] = ["$share/g/a/b", "$share/h/a/b", "$share/g/a/b/#"].map(filter);
        for (filter, session) in [(&g, 1), (&g, 2), (&h, 1), (&other_place, 1)] {
            assert_eq!(trie.insert(filter, SessionId(session), ()), None);
        }
        assert_eq!(trie.remove(&filter("a/b"), SessionId(1)), None);
        assert_eq!(trie.remove(&h, SessionId(2)), None);
        for (filter, session, is_left, nodes) in
            [(&g, 1, true, 3), (&g, 2, false, 3), (&other_place, 1, false, 3), (&h, 1, false, 0)]
        {
            assert_eq!(trie.remove(filter, SessionId(session)), Some(()));
            assert_eq!(trie.group(filter).is_some(), is_left, "{filter}");
            assert_eq!(trie.nodes.len(), nodes, "after {filter}");
        }
        assert!(trie.is_empty());
    }

    #[test]
    fn the_cursor_of_a_group_is_one_for_all_topics_and_ends_with_the_group() {
        let (trie, shared) = (Trie::new(), filter("$share/g/a/+"));
        trie.insert(&shared, SessionId(1), ());
        let cursor = trie.group(&shared).unwrap().cursor;
        trie.insert(&shared, SessionId(2), ());
        trie.insert(&filter("$share/h/a/+"), SessionId(2), ());
        trie.remove(&shared, SessionId(1));
        for topic in ["a/b", "a/c"] {
            let groups = trie.matches(topic).groups;
            let own = groups.iter().filter(|group| Arc::ptr_eq(&group.cursor, &cursor));
            assert_eq!(own.map(|group| &group.filter).collect::<Vec<_>>(), [&shared]);
        }
        trie.remove(&shared, SessionId(2));
        assert_eq!(Arc::strong_count(&cursor), 1);
        trie.insert(&shared, SessionId(2), ());
        assert!(!Arc::ptr_eq(&trie.group(&shared).unwrap().cursor, &cursor));
    }

    #[test]
    fn only_the_filter_of_a_group_finds_it() {
        let trie = trie(&["a/+", "$share/g/a/+", "$share/g/a/b/c"]);
        for text in
            ["a/+", "$share/h/a/+", "$share/g/a/b", "$share/g/a/b/c/d", "$share/g/a/+/#", "#"]
        {
            assert!(trie.group(&filter(text)).is_none(), "{text}");
        }
        let group = trie.group(&filter("$share/g/a/+")).unwrap();
        assert_eq!(group.filter, filter("$share/g/a/+"));
        assert_eq!(group.members, [(SessionId(0), "$share/g/a/+".to_owned())]);
    }

    #[test]
    fn groups_cost_a_node_without_them_one_pointer_per_place() {
        assert_eq!(size_of::<Audience<()>>(), size_of::<Subscribers<()>>() + size_of::<usize>());
    }

    #[test]
    fn ten_thousand_sessions_share_a_filter() {
        let trie = Trie::new();
        let filter = filter("a/+");
        (0..10_000).for_each(|id| assert_eq!(trie.insert(&filter, SessionId(id), id), None));
        let sum: u64 = trie.matches("a/b").subscribers.iter().map(|(_, id)| id).sum();
        assert_eq!(sum, 10_000 * 9_999 / 2);
        (0..10_000).for_each(|id| assert_eq!(trie.remove(&filter, SessionId(id)), Some(id)));
        assert_eq!(trie.nodes.len(), 0);
    }

    #[test]
    fn a_topic_of_many_levels_costs_no_more_than_the_deepest_filter() {
        let deep = format!("{}#", "+/".repeat(topic::FILTER_LEVELS_MAX - 1));
        let trie = trie(&["+/#", "#", &deep, "a/+"]);
        assert_eq!(found(&trie, &"a/".repeat(30_000)), ["#", "+/#", &deep]);
    }

    #[test]
    fn matches_hold_no_lock_and_stay_as_they_were_found() {
        let trie = trie(&["a/+", "$share/g/a/+"]);
        let Matches { subscribers, groups } = trie.matches("a/b");
        for (session, text) in subscribers.iter().chain(&groups[0].members) {
            assert!(trie.remove(&filter(text), *session).is_some());
        }
        assert!(trie.is_empty());
        assert_eq!((subscribers.len(), groups[0].members.len()), (1, 1));
    }

    #[test]
    fn a_thread_that_panicked_inside_does_not_stop_the_others() {
        let trie = trie(&["a/+"]);
        let panicked = thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let _structure = trie.lock_structure();
                panic!("while the lock is held");
            });
            thread.join()
        });
        assert!(panicked.is_err());
        assert!(trie.remove(&filter("a/+"), SessionId(0)).is_some());
        assert!(trie.is_empty());
    }

    proptest! {
        #[test]
        fn any_sequence_of_changes_agrees_with_a_list_of_filters(
            changes in prop::collection::vec((any_filter(), 0..3_u64, prop::bool::weighted(0.7)), 1..60),
            topics in prop::collection::vec(any_topic(), 1..12),
        ) {
            let (trie, mut model) = (Trie::new(), BTreeMap::new());
            // How often the cursor of each group was moved, by any topic, since the group began.
            let mut turns: BTreeMap<TopicFilter, u64> = BTreeMap::new();
            for (value, (filter, id, insert)) in changes.into_iter().enumerate() {
                let session = SessionId(id);
                let generation = trie.generation();
                let (earlier, expected) = if insert {
                    let earlier = trie.insert(&filter, session, value);
                    (earlier, model.insert((filter.clone(), session), value))
                } else {
                    let earlier = trie.remove(&filter, session);
                    (earlier, model.remove(&(filter.clone(), session)))
                };
                prop_assert_eq!(earlier, expected);
                prop_assert_eq!(trie.generation() != generation, insert || earlier.is_some());
                prop_assert_eq!(trie.len(), model.len());
                prop_assert_eq!(trie.nodes.len(), needed_nodes(model.keys().map(|(filter, _)| filter)));
                turns.retain(|filter, _| model.keys().any(|(present, _)| present == filter));
                for topic in &topics {
                    let (subscribers, groups) = naive_matches(&model, topic);
                    let mut found = trie.matches(topic);
                    found.subscribers.sort_unstable();
                    prop_assert_eq!(&found.subscribers, &subscribers, "{}", topic);
                    prop_assert_eq!(found.groups.len(), groups.len(), "{}", topic);
                    for group in found.groups {
                        let turn = turns.entry(group.filter.clone()).or_default();
                        prop_assert_eq!(group.cursor.fetch_add(1, Ordering::Relaxed), *turn);
                        *turn += 1;
                        prop_assert_eq!(Some(&sorted(group.members)), groups.get(&group.filter));
                    }
                }
                let group = trie.group(&filter).map(|group| sorted(group.members));
                let expected = filter.is_shared().then(|| members(&model, &filter));
                prop_assert_eq!(group, expected.filter(|members| !members.is_empty()));
            }
            for (filter, session) in model.into_keys() {
                prop_assert!(trie.remove(&filter, session).is_some());
            }
            prop_assert_eq!(trie.nodes.len(), 0);
            prop_assert!(trie.is_empty());
        }
    }

    /// Short alphabets, so that filters and topics meet; with empty levels and `$`, half of them shared.
    fn any_filter() -> impl Strategy<Value = TopicFilter> {
        "(|\\$share/[gh]/)(\\$?[ab]?/|\\+/){0,4}(#|\\+|\\$?[ab]|)"
            .prop_filter_map("is not valid", |text| TopicFilter::parse(&text).ok())
    }

    fn any_topic() -> impl Strategy<Value = String> {
        "\\$?[ab]?(/\\$?[ab]?){0,4}"
            .prop_filter("is not valid", |text| topic::check_topic_name(text).is_ok())
    }

    /// What each subscription is: filter and session, with the value.
    type Model = BTreeMap<(TopicFilter, SessionId), usize>;

    type Members = Vec<(SessionId, usize)>;

    /// The subscribers, and by filter the members of the groups.
    fn naive_matches(model: &Model, topic: &str) -> (Members, BTreeMap<TopicFilter, Members>) {
        let (mut subscribers, mut groups) = (Vec::new(), BTreeMap::new());
        for ((filter, session), &value) in model {
            let text = filter.as_str();
            match text.strip_prefix("$share/g/").or_else(|| text.strip_prefix("$share/h/")) {
                Some(unshared) if topic::matches(unshared, topic) => {
                    groups.insert(filter.clone(), members(model, filter));
                }
                None if topic::matches(text, topic) => subscribers.push((*session, value)),
                Some(_) | None => (),
            }
        }
        (sorted(subscribers), groups)
    }

    fn members(model: &Model, filter: &TopicFilter) -> Members {
        let own = model.iter().filter(|((present, _), _)| present == filter);
        own.map(|(&(_, session), &value)| (session, value)).collect()
    }

    fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
        list.sort_unstable();
        list
    }

    /// The root, and one node for each different beginning of the filters.
    fn needed_nodes<'a>(filters: impl Iterator<Item = &'a TopicFilter>) -> usize {
        let mut beginnings: Vec<Vec<&str>> = Vec::new();
        for filter in filters {
            let levels: Vec<_> = filter.levels().filter(|&level| level != "#").collect();
            beginnings.extend((0..=levels.len()).map(|len| levels[..len].to_vec()));
        }
        beginnings.sort_unstable();
        beginnings.dedup();
        beginnings.len()
    }

    /// Session 0 subscribes with each filter; the value is the filter's text.
    fn trie(filters: &[&str]) -> Trie<String> {
        let trie = Trie::new();
        for text in filters {
            assert_eq!(trie.insert(&filter(text), SessionId(0), (*text).to_owned()), None);
        }
        trie
    }

    fn found(trie: &Trie<String>, topic: &str) -> Vec<String> {
        sorted(trie.matches(topic).subscribers.into_iter().map(|(_, text)| text).collect())
    }

    fn found_groups(trie: &Trie<String>, topic: &str) -> Vec<String> {
        let groups = trie.matches(topic).groups;
        sorted(groups.iter().map(|group| group.filter.as_str().to_owned()).collect())
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).unwrap()
    }
}

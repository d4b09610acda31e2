//! The wildcard subscriptions of the whole broker, found by topic. Floor 2.
//!
//! Shards call [`Trie::for_each_match`] at the same time as sessions call [`Trie::insert`] and
//! [`Trie::remove`]. A filter is a path of nodes, one per level, below one root:
//!
//! ```text
//!   a/+/#   root -> a -> +     `below` of the node `+` holds the subscribers
//!   a/+     root -> a -> +     `here` of the same node
//! ```
//!
//! All nodes lie in one `DashMap`, keyed by the parent's id and the text of the level, so a reader
//! holds the lock of one map shard for one look-up and nothing else.
//!
//! # Invariants
//!
//! - At most one guard of the map is alive at a time, no guard leaves this file, and no code of the
//!   caller runs under one, but for `S::clone`, which therefore must not call the trie.
//! - Only the holder of `structure` changes anything. Readers never take it.
//! - A path is made from the root down and pruned from the leaf up, so a reader finds every
//!   subscription that is in force during its whole call; one that changes meanwhile is found or
//!   not, and the generation moves after the change for those who must know.
//! - A node exists only while a filter ends at it or a node lies below it. Ids are never used twice.
//! - Work is bounded by the nodes that lie on a path of the topic: by the filters, not by the topic.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dashmap::DashMap;
use foldhash::fast::RandomState;

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

    /// Adds or replaces the subscription of `session` with `filter`; returns the earlier value.
    /// The generation moves after the change is visible.
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
        let earlier = self.change(edge, |node| node.at_mut(place).insert(session, value)).flatten();
        if earlier.is_none() {
            self.len.fetch_add(1, Ordering::Relaxed);
        }
        self.generation.fetch_add(1, Ordering::Release);
        earlier
    }

    /// Ends the subscription of `session` with `filter` and prunes the nodes that only it needed.
    /// Without such a subscription nothing changes, the generation included.
    pub fn remove(&self, filter: &TopicFilter, session: SessionId) -> Option<S> {
        let _structure = self.lock_structure();
        let (levels, place) = path_of(filter);
        let mut path = vec![Edge::ROOT];
        let mut edge = Edge::ROOT;
        for level in levels {
            edge = Edge { parent: self.find(edge)?, level };
            path.push(edge);
        }
        let value = self.change(edge, |node| node.at_mut(place).remove(session)).flatten()?;
        self.prune(path);
        self.len.fetch_sub(1, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
        Some(value)
    }

    /// Visits the subscribers of each filter that matches `topic`, a valid topic name: a session
    /// once per matching filter. `visit` may call the trie; no lock is held.
    pub fn for_each_match(&self, topic: &str, mut visit: impl FnMut(SessionId, &S)) {
        for (session, value) in &self.matches(topic) {
            visit(*session, value);
        }
    }

    /// Moves with every change. Who reads it before matching knows later whether the matches still
    /// hold.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How many subscriptions there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there is no subscription.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Walks all paths of `topic` with a stack of its own, as deep as the deepest filter.
    fn matches(&self, topic: &str) -> Vec<(SessionId, S)> {
        let mut found = Vec::new();
        // More pending paths are rare, and growing from one would cost two more allocations.
        let mut pending = Vec::with_capacity(8);
        pending.push(Step { edge: Edge::ROOT, rest: Some(topic) });
        while let Some(Step { edge, rest }) = pending.pop() {
            let Some(node) = self.nodes.get(edge.as_key()) else { continue };
            // A wildcard in first place does not match `$SYS` and its like [MQTT-4.7.2-1].
            let wildcards = edge.parent != NO_NODE || !topic.starts_with('$');
            if wildcards {
                found.extend(node.below.iter().cloned());
            }
            let Some(rest) = rest else {
                found.extend(node.here.iter().cloned());
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
    here: Subscribers<S>,
    /// For filters that go on with `#`, which also match this level itself.
    below: Subscribers<S>,
}

impl<S> Node<S> {
    fn new(id: u64) -> Self {
        Self {
            id,
            literals: 0,
            single_level_wildcard: false,
            here: Subscribers::new(),
            below: Subscribers::new(),
        }
    }

    fn at_mut(&mut self, place: Place) -> &mut Subscribers<S> {
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

/// Which subscribers of its last node a filter means.
#[derive(Clone, Copy)]
enum Place {
    Here,
    Below,
}

/// The levels that are nodes, and where at the last node the subscriber goes.
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
    fn ten_thousand_sessions_share_a_filter() {
        let trie = Trie::new();
        let filter = filter("a/+");
        (0..10_000).for_each(|id| assert_eq!(trie.insert(&filter, SessionId(id), id), None));
        let mut sum = 0;
        trie.for_each_match("a/b", |_, id| sum += id);
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
    fn a_visitor_may_change_the_trie() {
        let trie = trie(&["a/+", "a/#"]);
        trie.for_each_match("a/b", |session, text| {
            trie.remove(&filter(text), session);
            trie.insert(&filter("+/b"), SessionId(9), "+/b".to_owned());
        });
        assert_eq!(found(&trie, "a/b"), ["+/b"]);
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
            for (value, (filter, id, insert)) in changes.into_iter().enumerate() {
                let session = SessionId(id);
                let generation = trie.generation();
                let (earlier, expected) = if insert {
                    let earlier = trie.insert(&filter, session, value);
                    (earlier, model.insert((filter, session), value))
                } else {
                    let earlier = trie.remove(&filter, session);
                    (earlier, model.remove(&(filter, session)))
                };
                prop_assert_eq!(earlier, expected);
                prop_assert_eq!(trie.generation() != generation, insert || earlier.is_some());
                prop_assert_eq!(trie.len(), model.len());
                prop_assert_eq!(trie.nodes.len(), needed_nodes(model.keys().map(|(filter, _)| filter)));
                for topic in &topics {
                    let mut found = Vec::new();
                    trie.for_each_match(topic, |session, &value| found.push((session, value)));
                    found.sort_unstable();
                    prop_assert_eq!(&found, &naive_matches(&model, topic), "{}", topic);
                }
            }
            for (filter, session) in model.into_keys() {
                prop_assert!(trie.remove(&filter, session).is_some());
            }
            prop_assert_eq!(trie.nodes.len(), 0);
            prop_assert!(trie.is_empty());
        }
    }

    /// Short alphabets, so that filters and topics meet; with empty levels and `$`.
    fn any_filter() -> impl Strategy<Value = TopicFilter> {
        "(\\$?[ab]?/|\\+/){0,4}(#|\\+|\\$?[ab]|)"
            .prop_filter_map("is not valid", |text| TopicFilter::parse(&text).ok())
    }

    fn any_topic() -> impl Strategy<Value = String> {
        "\\$?[ab]?(/\\$?[ab]?){0,4}"
            .prop_filter("is not valid", |text| topic::check_topic_name(text).is_ok())
    }

    fn naive_matches(
        model: &BTreeMap<(TopicFilter, SessionId), usize>,
        topic: &str,
    ) -> Vec<(SessionId, usize)> {
        let matching = model.iter().filter(|((filter, _), _)| filter.matches(topic));
        let mut found: Vec<_> = matching.map(|(&(_, session), &value)| (session, value)).collect();
        found.sort_unstable();
        found
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
        let mut found = Vec::new();
        trie.for_each_match(topic, |_, text| found.push(text.clone()));
        found.sort_unstable();
        found
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).unwrap()
    }
}

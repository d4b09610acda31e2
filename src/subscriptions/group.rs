//! The shared subscriptions that end at one place of the trie. Used by `trie`. Floor 2.
//!
//! A group is everybody who subscribes with the same `$share/{name}/{filter}`. All groups of a place
//! have the same `{filter}`, so their share names tell them apart.
//!
//! # Invariants
//!
//! - A group has a member, and the box exists only while there is a group.
//! - A cursor is made with its group and never replaced, so there is one for all shards and topics;
//!   a group that comes again after its last member left starts with a new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use foldhash::fast::RandomState;

use super::subscribers::Subscribers;
use crate::ids::SessionId;
use crate::topic::TopicFilter;

/// A group as it was when it was looked for. A message for it goes to one of the members.
#[derive(Clone, Debug)]
pub struct GroupMatch<S> {
    /// Names the group: the whole text, with `$share/`, share name and filter.
    pub filter: TopicFilter,
    /// At least one, each session once, in no order that means anything, but in the same order for
    /// everybody who looks while the generation of the trie stays.
    pub members: Vec<(SessionId, S)>,
    /// For taking turns: of the group and not of this match, begins at 0. The trie only keeps it.
    pub cursor: Arc<AtomicU64>,
}

/// See the module comment.
#[derive(Debug)]
pub(super) struct Groups<S>(
    /// Boxed, because nearly always there is none.
    #[expect(clippy::box_collection, reason = "8 bytes in each of many nodes instead of 40")]
    Option<Box<HashMap<TopicFilter, Group<S>, RandomState>>>,
);

#[derive(Debug)]
struct Group<S> {
    members: Subscribers<S>,
    cursor: Arc<AtomicU64>,
}

impl<S> Groups<S> {
    /// No group.
    pub(super) const fn new() -> Self {
        Self(None)
    }

    /// Whether there is no group.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Makes `session` a member of the group of `filter`; returns its earlier value.
    pub(super) fn insert(
        &mut self,
        filter: &TopicFilter,
        session: SessionId,
        value: S,
    ) -> Option<S> {
        let groups = self.0.get_or_insert_default();
        let group = groups
            .entry(filter.clone())
            .or_insert_with(|| Group { members: Subscribers::new(), cursor: Arc::default() });
        group.members.insert(session, value)
    }

    /// Returns the value of this member. The group goes with its last one.
    pub(super) fn remove(&mut self, filter: &TopicFilter, session: SessionId) -> Option<S> {
        let groups = self.0.as_mut()?;
        let group = groups.get_mut(filter)?;
        let value = group.members.remove(session)?;
        if group.members.is_empty() {
            groups.remove(filter);
            if groups.is_empty() {
                self.0 = None;
            }
        }
        Some(value)
    }
}

impl<S: Clone> Groups<S> {
    /// The group of `filter`.
    pub(super) fn find(&self, filter: &TopicFilter) -> Option<GroupMatch<S>> {
        let (filter, group) = self.0.as_ref()?.get_key_value(filter)?;
        Some(group.as_match(filter))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = GroupMatch<S>> {
        self.0.iter().flat_map(|groups| groups.iter()).map(|(filter, group)| group.as_match(filter))
    }
}

impl<S: Clone> Group<S> {
    fn as_match(&self, filter: &TopicFilter) -> GroupMatch<S> {
        GroupMatch {
            filter: filter.clone(),
            members: self.members.iter().cloned().collect(),
            cursor: self.cursor.clone(),
        }
    }
}

//! The sessions that subscribe with one filter. Used by `trie` and `router::shard`. Floor 2.
//!
//! Invariant: once an index exists it maps each session to its place in `entries`, and nothing else.

use std::collections::HashMap;
use std::slice;

use foldhash::fast::RandomState;

use crate::ids::SessionId;

/// Up to here a scan is as fast as a hash. Most filters have one subscriber and need no index.
const SCANNED_MAX: usize = 16;

/// A map that is an array to read, and stays fast to change when thousands share one filter.
#[derive(Debug)]
pub struct Subscribers<S> {
    entries: Vec<(SessionId, S)>,
    /// Boxed, because nearly always there is none.
    #[expect(clippy::box_collection, reason = "8 bytes in each of many nodes instead of 40")]
    index: Option<Box<HashMap<SessionId, usize, RandomState>>>,
}

impl<S> Default for Subscribers<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Subscribers<S> {
    /// Nobody.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), index: None }
    }

    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// In no order that means anything.
    pub fn iter(&self) -> slice::Iter<'_, (SessionId, S)> {
        self.entries.iter()
    }

    /// Returns the earlier value of this session.
    pub fn insert(&mut self, session: SessionId, value: S) -> Option<S> {
        if let Some((_, present)) = self.position(session).and_then(|at| self.entries.get_mut(at)) {
            return Some(std::mem::replace(present, value));
        }
        if self.entries.is_empty() {
            // `push` would take room for four where most filters need it for one.
            self.entries.reserve_exact(1);
        }
        if let Some(index) = &mut self.index {
            index.insert(session, self.entries.len());
        }
        self.entries.push((session, value));
        if self.index.is_none() && self.entries.len() > SCANNED_MAX {
            let places = self.entries.iter().enumerate().map(|(at, &(session, _))| (session, at));
            self.index = Some(Box::new(places.collect()));
        }
        None
    }

    /// Returns the value of this session.
    pub fn remove(&mut self, session: SessionId) -> Option<S> {
        let at = self.position(session)?;
        let (_, value) = self.entries.swap_remove(at);
        if let Some(index) = &mut self.index {
            index.remove(&session);
            if let Some(&(moved, _)) = self.entries.get(at) {
                index.insert(moved, at);
            }
        }
        // At half of the bound, so that one session that comes and goes does not rebuild the index.
        if self.entries.len() <= SCANNED_MAX / 2 && self.index.take().is_some() {
            self.entries.shrink_to_fit();
        }
        Some(value)
    }

    fn position(&self, session: SessionId) -> Option<usize> {
        match &self.index {
            Some(index) => index.get(&session).copied(),
            None => self.entries.iter().position(|&(present, _)| present == session),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few sessions and many operations, so that the index comes and goes.
        #[test]
        fn any_sequence_of_changes_agrees_with_a_map(
            changes in prop::collection::vec((0..40_u64, prop::option::weighted(0.6, 0..9_u8)), 0..400),
        ) {
            let (mut subscribers, mut model) = (Subscribers::new(), BTreeMap::new());
            for (id, change) in changes {
                let session = SessionId(id);
                match change {
                    Some(value) => prop_assert_eq!(
                        subscribers.insert(session, value), model.insert(session, value)
                    ),
                    None => prop_assert_eq!(subscribers.remove(session), model.remove(&session)),
                }
                let found: BTreeMap<_, _> = subscribers.iter().copied().collect();
                prop_assert_eq!(&found, &model);
                prop_assert_eq!(subscribers.entries.len(), model.len());
                prop_assert_eq!(subscribers.is_empty(), model.is_empty());
                if let Some(index) = &subscribers.index {
                    prop_assert_eq!(index.len(), model.len());
                }
            }
        }
    }

    #[test]
    fn the_index_exists_only_while_many_subscribe() {
        let mut subscribers = Subscribers::new();
        (0..=SCANNED_MAX as u64)
            .for_each(|id| assert_eq!(subscribers.insert(SessionId(id), ()), None));
        assert!(subscribers.index.is_some());
        (0..=SCANNED_MAX as u64 / 2)
            .for_each(|id| assert!(subscribers.remove(SessionId(id)).is_some()));
        assert!(subscribers.index.is_none());
    }
}

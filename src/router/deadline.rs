//! Moments in order, each with what is to be done then. Floor 4, owned by `registry`; knows no clock.
//!
//! Entering and removing cost O(log n), the first moment is there at once.

use std::collections::BTreeMap;
use std::time::Instant;

/// See the module comment.
#[derive(Debug)]
pub(super) struct Deadlines<T> {
    entries: BTreeMap<Deadline, T>,
    /// Tells entries of the same moment apart.
    next_number: u64,
}

/// The place of an entry: by time, and in one moment by the order of entering.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Deadline {
    at: Instant,
    number: u64,
}

impl<T> Default for Deadlines<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), next_number: 0 }
    }
}

impl<T> Deadlines<T> {
    /// Enters `item`. The result names the entry until it is removed.
    pub(super) fn enter(&mut self, at: Instant, item: T) -> Deadline {
        let deadline = Deadline { at, number: self.next_number };
        self.next_number += 1;
        self.entries.insert(deadline, item);
        deadline
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, deadline: Deadline) -> Option<T> {
        self.entries.remove(&deadline)
    }

    /// The first moment.
    pub(super) fn first(&self) -> Option<Instant> {
        self.entries.keys().next().map(|deadline| deadline.at)
    }

    /// Entries whose time has come at `now`, in order.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = (Deadline, &T)> {
        self.entries
            .iter()
            .take_while(move |(deadline, _)| deadline.at <= now)
            .map(|(deadline, item)| (*deadline, item))
    }

    /// All entries, in order.
    pub(super) fn items(&self) -> impl Iterator<Item = &T> {
        self.entries.values()
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn entries_come_by_time_and_then_by_entering() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut deadlines = Deadlines::default();
        assert_eq!(deadlines.first(), None);
        for (seconds, item) in [(3, "d"), (1, "a"), (2, "c"), (1, "b")] {
            deadlines.enter(at(seconds), item);
        }
        assert_eq!(deadlines.first(), Some(at(1)));
        let due = |seconds| deadlines.due(at(seconds)).map(|(_, item)| *item).collect::<Vec<_>>();
        assert_eq!(due(0), [""; 0]);
        assert_eq!(due(1), ["a", "b"], "a deadline is over when it is reached");
        assert_eq!(due(9), ["a", "b", "c", "d"]);
    }

    #[test]
    fn removed_entry_is_gone_and_its_twin_is_not() {
        let at = Instant::now();
        let mut deadlines = Deadlines::default();
        let (first, _second) = (deadlines.enter(at, 1), deadlines.enter(at, 2));
        assert_eq!(deadlines.remove(first), Some(1));
        assert_eq!(deadlines.remove(first), None);
        assert_eq!(deadlines.due(at).map(|(_, item)| *item).collect::<Vec<_>>(), [2]);
    }
}

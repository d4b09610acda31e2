//! How many messages are needed from each segment of the log. Floor 3: pure.
//!
//! # Invariants
//!
//! - A count is exactly the messages that rows of the queue and of retained messages have there.
//! - Segments do not overlap; a position that is in none of them is in a segment that is gone.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::database::{Table, TablesError, Writer, put, remove};
use super::row::{Segment, key};
use crate::ids::LogPosition;

/// The latest segment, until the next one begins.
const NO_END: LogPosition = LogPosition(u64::MAX);

/// See the module comment.
#[derive(Debug, Default)]
pub(super) struct Segments {
    by_base: BTreeMap<LogPosition, Segment>,
    /// Rows that are still on disk and mean nothing.
    gone: Vec<LogPosition>,
}

impl Segments {
    /// With a row of the table.
    pub(super) fn load(&mut self, base: LogPosition, segment: Segment) {
        self.by_base.insert(base, segment);
    }

    /// Records from `base` on lie in a segment of their own.
    pub(super) fn begin(&mut self, base: LogPosition) {
        if self.by_base.contains_key(&base) {
            return;
        }
        if let Some((_, earlier)) = self.by_base.range_mut(..base).next_back() {
            earlier.end = earlier.end.min(base);
        }
        let later = self.by_base.range((Bound::Excluded(base), Bound::Unbounded)).next();
        let end = later.map_or(NO_END, |(base, _)| *base);
        self.by_base.insert(base, Segment { end, live: 0 });
    }

    /// So many messages more; false when no segment is there.
    pub(super) fn add(&mut self, at: LogPosition, messages: u64) -> bool {
        self.change(at, |live| live.saturating_add(messages))
    }

    /// So many messages fewer; false when no segment is there.
    pub(super) fn subtract(&mut self, at: LogPosition, messages: u64) -> bool {
        self.change(at, |live| live.saturating_sub(messages))
    }

    fn change(&mut self, at: LogPosition, change: impl FnOnce(u64) -> u64) -> bool {
        match self.by_base.range_mut(..=at).next_back() {
            Some((_, segment)) if at < segment.end => {
                segment.live = change(segment.live);
                true
            }
            _ => false,
        }
    }

    /// The base of the segment in which this lies.
    pub(super) fn base_of(&self, at: LogPosition) -> Option<LogPosition> {
        let (base, segment) = self.by_base.range(..=at).next_back()?;
        (at < segment.end).then_some(*base)
    }

    /// Messages that are needed from the segment with this base.
    pub(super) fn live(&self, base: LogPosition) -> u64 {
        self.by_base.get(&base).map_or(0, |segment| segment.live)
    }

    /// Whether all records of the segment lie before `position`.
    pub(super) fn ends_by(&self, base: LogPosition, position: LogPosition) -> bool {
        self.by_base.get(&base).is_some_and(|segment| segment.end <= position)
    }

    /// Positions that the segment has; those of the latest are not known.
    pub(super) fn len(&self, base: LogPosition) -> u64 {
        self.by_base.get(&base).map_or(0, |segment| segment.end.0.saturating_sub(base.0))
    }

    /// Nothing is needed from it any more, and its row is gone.
    pub(super) fn forget(&mut self, base: LogPosition) {
        self.by_base.remove(&base);
    }

    /// Forgets those behind `applied` that hold nothing, and writes the rest. What was written must be on
    /// disk before [`Segments::written`] is called.
    pub(super) fn write(
        &mut self,
        applied: LogPosition,
        writer: &Writer,
    ) -> Result<(), TablesError> {
        let empty = self.by_base.iter().filter(|(_, it)| it.end <= applied && it.live == 0);
        self.gone.extend(empty.map(|(base, _)| *base));
        self.by_base.retain(|_, it| applied < it.end || it.live > 0);
        writer.rows(Table::Segments, |rows| {
            self.gone.iter().try_for_each(|base| remove(rows, &key(base.0)))?;
            let mut kept = self.by_base.iter();
            kept.try_for_each(|(base, segment)| put(rows, &key(base.0), &segment.encode()))
        })
    }

    /// What [`Segments::write`] wrote is on disk.
    pub(super) fn written(&mut self) {
        self.gone.clear();
    }
}

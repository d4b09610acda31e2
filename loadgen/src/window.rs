//! Closed loop: how far the subscribers of each publisher have come, across threads.
//!
//! The slowest subscriber counts. Each thread watches the subscribers that it holds: when the last
//! of them has crossed the next quarter of the window, it notes the new common position for the
//! publisher and tells the thread that owns it. So the cost is one comparison per run of messages,
//! and one scan of the subscribers per quarter of a window.
//!
//! Called by `receive` and `worker`. Knows no socket.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sequence::Tracking;

/// Positions that all threads can read: `[thread][publisher]`.
#[derive(Debug)]
pub(crate) struct Progress {
    positions: Vec<Vec<AtomicU64>>,
}

impl Progress {
    /// No thread holds a subscriber yet.
    pub(crate) fn new(threads: usize, publishers: u32) -> Self {
        let row = || (0..publishers).map(|_| AtomicU64::new(u64::MAX)).collect();
        Self { positions: (0..threads).map(|_| row()).collect() }
    }

    /// The message up to which every subscriber of the publisher has received.
    #[inline]
    pub(crate) fn received(&self, publisher: u32) -> u64 {
        let threads = self.positions.iter();
        let least = threads.map(|row| row[publisher as usize].load(Ordering::Relaxed)).min();
        least.unwrap_or(u64::MAX)
    }

    fn store(&self, thread: usize, publisher: u32, position: u64) {
        self.positions[thread][publisher as usize].store(position, Ordering::Relaxed);
    }
}

/// The subscribers of one publisher on one thread.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Indices of their trackers.
    members: Vec<u32>,
    /// How many of them have not reached their target.
    waiting: usize,
}

impl Gate {
    /// Adds a subscriber, by the index of its tracker.
    pub(crate) fn add(&mut self, tracker: u32) {
        self.members.push(tracker);
    }

    /// Begins to watch.
    pub(crate) fn arm<T: Tracking>(&mut self, trackers: &mut [T], place: Place<'_>) {
        if !self.members.is_empty() {
            self.advance(trackers, place);
        }
    }

    /// A member has reached its target. True when it was the last: the publisher may go on.
    pub(crate) fn reached<T: Tracking>(&mut self, trackers: &mut [T], place: Place<'_>) -> bool {
        self.waiting -= 1;
        if self.waiting == 0 {
            self.advance(trackers, place);
            return true;
        }
        false
    }

    /// The next target is a step after the slowest member, so at least one member waits for it.
    fn advance<T: Tracking>(&mut self, trackers: &mut [T], place: Place<'_>) {
        let positions = self.members.iter().map(|&member| trackers[member as usize].position());
        let position = positions.min();
        let position = position.unwrap_or(u64::MAX);
        place.progress.store(place.thread, place.publisher, position);
        let target = position.saturating_add(place.step);
        for &member in &self.members {
            let tracker = &mut trackers[member as usize];
            let waits = tracker.position() < target;
            tracker.set_target(if waits { target } else { u64::MAX });
            self.waiting += usize::from(waits);
        }
    }
}

/// Where a gate stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Where to note positions.
    pub(crate) progress: &'a Progress,
    /// The thread of the gate.
    pub(crate) thread: usize,
    /// The publisher of the gate.
    pub(crate) publisher: u32,
    /// Messages between two notes: a quarter of the window.
    pub(crate) step: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Tracker;

    #[test]
    fn the_slowest_subscriber_holds_the_publisher_back() {
        let progress = Progress::new(1, 1);
        let place = Place { progress: &progress, thread: 0, publisher: 0, step: 10 };
        let mut trackers = [Tracker::new(0, 1), Tracker::new(0, 1)];
        let mut gate = Gate::default();
        gate.add(0);
        gate.add(1);
        gate.arm(&mut trackers, place);
        assert_eq!(progress.received(0), 0);

        (0..30).for_each(|n| trackers[0].arrived(n));
        trackers[0].set_target(u64::MAX);
        assert!(!gate.reached(&mut trackers, place));
        assert_eq!(progress.received(0), 0);

        (0..12).for_each(|n| trackers[1].arrived(n));
        assert!(gate.reached(&mut trackers, place));
        assert_eq!(progress.received(0), 12);
        assert_eq!((trackers[0].target(), trackers[1].target()), (u64::MAX, 22));
    }

    #[test]
    fn the_slowest_thread_counts() {
        let progress = Progress::new(2, 1);
        progress.store(0, 0, 7);
        assert_eq!(progress.received(0), 7);
        progress.store(1, 0, 3);
        assert_eq!(progress.received(0), 3);
    }
}

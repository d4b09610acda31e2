//! Open loop: when each message is meant to leave. An absolute schedule that never waits for the
//! broker, so a stall shows up as latency instead of as a pause. Knows no clock.
//!
//! Message `n` of publisher `p` (of `publishers`) leaves at `start + (n × publishers + p) / rate`:
//! publishers take turns, evenly spaced.

/// The time table of a whole run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timetable {
    /// When message 0 of publisher 0 leaves.
    pub(crate) start_ns: u64,
    /// Publishers of the whole run, over all threads.
    pub(crate) publishers: u64,
    /// Messages per second, over all publishers.
    pub(crate) rate: f64,
}

impl Timetable {
    /// When a message is meant to leave.
    pub(crate) fn intended_ns(&self, publisher: u32, sequence: u64) -> u64 {
        let turn = sequence * self.publishers + u64::from(publisher);
        self.start_ns + (turn as f64 * 1e9 / self.rate) as u64
    }
}

/// Walks the time table for the publishers of one thread, in order of time.
#[derive(Debug)]
pub(crate) struct Schedule {
    timetable: Timetable,
    /// Publishers of this thread, ascending.
    publishers: Vec<u32>,
    /// The next turn: round, and position in `publishers`.
    round: u64,
    position: usize,
}

impl Schedule {
    /// `publishers` are the numbers of this thread's publishers.
    pub(crate) fn new(timetable: Timetable, mut publishers: Vec<u32>) -> Self {
        publishers.sort_unstable();
        Self { timetable, publishers, round: 0, position: 0 }
    }

    /// The time table that is walked.
    pub(crate) fn timetable(&self) -> Timetable {
        self.timetable
    }

    /// When the next message is due; `None` without publishers.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        let publisher = *self.publishers.get(self.position)?;
        Some(self.timetable.intended_ns(publisher, self.round))
    }

    /// The publisher whose turn it is, once its time is before `until_ns`; then moves on.
    pub(crate) fn pop_due(&mut self, until_ns: u64) -> Option<u32> {
        if until_ns <= self.next_ns()? {
            return None;
        }
        let publisher = self.publishers[self.position];
        self.position += 1;
        if self.position == self.publishers.len() {
            self.position = 0;
            self.round += 1;
        }
        Some(publisher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishers_take_turns_evenly_spaced() {
        let mut schedule = Schedule::new(timetable(), vec![1, 0]);
        let mut turns = Vec::new();
        while let Some(publisher) = schedule.pop_due(1_000 + 4_000_000) {
            turns.push(publisher);
        }
        assert_eq!(turns, [0, 1, 0, 1]);
        assert_eq!(schedule.next_ns(), Some(1_000 + 4_000_000));
    }

    #[test]
    fn nothing_is_due_before_its_time() {
        let mut schedule = Schedule::new(timetable(), vec![1]);
        assert_eq!(schedule.pop_due(1_000 + 1_000_000), None);
        assert_eq!(schedule.pop_due(1_000 + 1_000_001), Some(1));
    }

    #[test]
    fn a_late_caller_gets_every_missed_turn() {
        let mut schedule = Schedule::new(timetable(), vec![0]);
        let due = std::iter::from_fn(|| schedule.pop_due(1_000 + 1_000_000_000)).count();
        assert_eq!(due, 500);
    }

    #[test]
    fn a_thread_without_publishers_has_nothing_due() {
        assert_eq!(Schedule::new(timetable(), vec![]).pop_due(u64::MAX), None);
    }

    fn timetable() -> Timetable {
        Timetable { start_ns: 1_000, publishers: 2, rate: 1_000.0 }
    }
}

//! What one thread measured in one second: filled by `worker` without a lock, handed over when the
//! second is over, collected and merged by `series` on the main thread.
//!
//! A second is cut where the thread next looks round after its end, and where a phase ends. So the
//! hot loop pays one comparison per turn, and two short locks and a swap of histograms per second.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use hdrhistogram::Histogram;

use crate::phase::Phase;
use crate::receive::Run;
use crate::schedule::Timetable;
use crate::sequence::Tracking;
use crate::tally::{Tally, histogram};

/// Length of a slice.
pub(crate) const SLICE_NS: u64 = 1_000_000_000;

/// Which second: of which phase, counted from its beginning.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Second {
    /// Seconds do not cross phases.
    pub(crate) phase: Phase,
    /// From zero.
    pub(crate) number: u64,
}

impl Second {
    /// The second of a phase that a moment lies in.
    pub(crate) fn at(phase: Phase, began_ns: u64, now_ns: u64) -> Self {
        Self { phase, number: now_ns.saturating_sub(began_ns) / SLICE_NS }
    }
}

/// What one thread measured in one second.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Which.
    pub(crate) second: Second,
    /// Messages sent in it.
    pub(crate) sent: u64,
    /// Deliveries in it.
    pub(crate) received: u64,
    /// From the intended send time to the arrival, of messages that arrived in it.
    pub(crate) latency_ns: Histogram<u64>,
    /// Open loop: from the real send time to the arrival.
    pub(crate) service_ns: Histogram<u64>,
    /// Open loop: from the intended to the real send time, of messages that were sent in it.
    pub(crate) slip_ns: Histogram<u64>,
    /// Up to its end.
    pub(crate) trouble: Trouble,
}

/// What has gone wrong up to a moment, as far as later arrivals have shown it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Trouble {
    /// Messages that are missing before others that have arrived.
    pub(crate) missing: u64,
    /// Second arrivals.
    pub(crate) duplicated: u64,
    /// Arrivals after a later message.
    pub(crate) reordered: u64,
}

impl Trouble {
    /// Adds what another thread has seen.
    pub(crate) fn add(&mut self, other: Self) {
        self.missing += other.missing;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
    }
}

impl Slice {
    /// With empty histograms.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            second: Second { phase: Phase::Ramp, number: 0 },
            sent: 0,
            received: 0,
            latency_ns: histogram().context("latency histogram")?,
            service_ns: histogram().context("service histogram")?,
            slip_ns: histogram().context("slip histogram")?,
            trouble: Trouble::default(),
        })
    }

    fn empty(&mut self) {
        for histogram in [&mut self.latency_ns, &mut self.service_ns, &mut self.slip_ns] {
            if !histogram.is_empty() {
                histogram.reset();
            }
        }
    }
}

/// Where a thread leaves its slices, and finds empty ones.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    full: Mutex<Vec<Slice>>,
    empty: Mutex<Vec<Slice>>,
}

impl Exchange {
    /// Leaves a slice, and takes an empty one: a used one, or else a new one.
    fn swap(&self, full: &mut Slice) -> anyhow::Result<()> {
        let spare = self.empty.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let next = spare.map_or_else(Slice::new, Ok)?;
        let full = std::mem::replace(full, next);
        self.full.lock().unwrap_or_else(PoisonError::into_inner).push(full);
        Ok(())
    }

    /// Takes what was left.
    pub(crate) fn collect(&self) -> Vec<Slice> {
        std::mem::take(&mut *self.full.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Empties a slice for the thread to use again.
    pub(crate) fn give_back(&self, mut slice: Slice) {
        slice.empty();
        self.empty.lock().unwrap_or_else(PoisonError::into_inner).push(slice);
    }
}

/// Cuts the time of one thread into slices.
#[derive(Debug)]
pub(crate) struct Cutter {
    /// The slice that is being filled.
    pub(crate) slice: Slice,
    /// The latest reading of the clock in this turn or an earlier one.
    pub(crate) seen_ns: u64,
    /// Intended send times that are recorded.
    pub(crate) recorded_ns: Range<u64>,
    ends_ns: u64,
    began_ns: u64,
    sent: u64,
    received: u64,
    /// Trackers that have ever seen something else than the next message.
    troubled: Vec<u32>,
}

impl Cutter {
    /// Records nothing yet.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Ok(Self {
            slice: Slice::new()?,
            seen_ns: 0,
            recorded_ns: u64::MAX..u64::MAX,
            ends_ns: u64::MAX,
            began_ns: 0,
            sent: 0,
            received: 0,
            troubled: Vec::new(),
        })
    }

    /// Whether the second is over.
    #[inline]
    pub(crate) fn is_due(&self) -> bool {
        self.seen_ns >= self.ends_ns
    }

    /// Takes note of a tracker that has seen something unexpected for the first time.
    #[cold]
    pub(crate) fn watch(&mut self, tracker: usize) {
        self.troubled.push(tracker as u32);
    }

    /// Hands the slice over and goes on with the second that the clock was last seen in.
    pub(crate) fn cut(
        &mut self,
        tally: &Tally,
        trackers: &[impl Tracking],
        exchange: &Exchange,
    ) -> anyhow::Result<()> {
        let phase = self.slice.second.phase;
        self.hand_over(tally, trackers, exchange)?;
        self.begin_second(Second::at(phase, self.began_ns, self.seen_ns));
        Ok(())
    }

    /// A phase begins: what was measured before belongs to the phase before.
    pub(crate) fn enter(
        &mut self,
        phase: Phase,
        began_ns: u64,
        tally: &Tally,
        trackers: &[impl Tracking],
        exchange: &Exchange,
    ) -> anyhow::Result<()> {
        match phase {
            Phase::Ramp | Phase::Stop => return Ok(()),
            Phase::WarmUp | Phase::Measure => self.recorded_ns = began_ns..u64::MAX,
            // Interrupted while warming up: nothing was meant to be measured.
            Phase::Drain if self.slice.second.phase < Phase::Measure => {
                self.recorded_ns = began_ns..began_ns;
            }
            Phase::Drain => self.recorded_ns.end = began_ns,
        }
        self.end(tally, trackers, exchange)?;
        self.began_ns = began_ns;
        self.begin_second(Second { phase, number: 0 });
        Ok(())
    }

    /// Hands the last slice over.
    pub(crate) fn end(
        &mut self,
        tally: &Tally,
        trackers: &[impl Tracking],
        exchange: &Exchange,
    ) -> anyhow::Result<()> {
        if self.ends_ns == u64::MAX {
            return Ok(());
        }
        self.hand_over(tally, trackers, exchange)
    }

    /// Messages have arrived at `now_ns`.
    #[inline]
    pub(crate) fn record(
        &mut self,
        run: Run,
        stride: u64,
        timetable: Option<Timetable>,
        now_ns: u64,
    ) {
        let service_ns = now_ns.saturating_sub(run.sent_ns);
        let Some(timetable) = timetable else {
            if self.recorded_ns.contains(&run.sent_ns) {
                self.slice.latency_ns.saturating_record_n(service_ns, run.count);
            }
            return;
        };
        let mut recorded = 0;
        for number in 0..run.count {
            let sequence = run.sequence + number * stride;
            let intended_ns = timetable.intended_ns(run.publisher, sequence);
            if self.recorded_ns.contains(&intended_ns) {
                self.slice.latency_ns.saturating_record(now_ns.saturating_sub(intended_ns));
                recorded += 1;
            }
        }
        if recorded > 0 {
            self.slice.service_ns.saturating_record_n(service_ns, recorded);
        }
    }

    /// A message leaves at `now_ns`.
    #[inline]
    pub(crate) fn record_slip(&mut self, intended_ns: u64, now_ns: u64) {
        if self.recorded_ns.contains(&intended_ns) {
            self.slice.slip_ns.saturating_record(now_ns.saturating_sub(intended_ns));
        }
    }

    fn begin_second(&mut self, second: Second) {
        self.slice.second = second;
        self.ends_ns = self.began_ns + (second.number + 1) * SLICE_NS;
    }

    fn hand_over(
        &mut self,
        tally: &Tally,
        trackers: &[impl Tracking],
        exchange: &Exchange,
    ) -> anyhow::Result<()> {
        self.slice.sent = tally.sent - self.sent;
        self.slice.received = tally.received - self.received;
        (self.sent, self.received) = (tally.sent, tally.received);
        self.slice.trouble = self.trouble(trackers);
        exchange.swap(&mut self.slice)
    }

    fn trouble(&self, trackers: &[impl Tracking]) -> Trouble {
        let mut trouble = Trouble::default();
        for &tracker in &self.troubled {
            let tracker = &trackers[tracker as usize];
            let account = tracker.account();
            trouble.add(Trouble {
                missing: tracker.due() - account.unique,
                duplicated: account.duplicated,
                reordered: account.reordered,
            });
        }
        trouble
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::Tracker;

    const S: u64 = SLICE_NS;

    #[test]
    fn a_second_ends_where_the_next_one_begins_and_a_silent_second_is_left_out() {
        let mut thread = thread();
        thread.enter(Phase::WarmUp, 10);
        thread.tally.sent = 5;
        thread.cutter.seen_ns = 9 + S;
        assert!(!thread.cutter.is_due());
        thread.cutter.seen_ns = 10 + S;
        assert!(thread.cutter.is_due());
        thread.cut();
        thread.tally.sent = 7;
        thread.cutter.seen_ns = 10 + 5 * S;
        thread.cut();
        thread.enter(Phase::Measure, 10 + 5 * S + 1);

        let slices = thread.exchange.collect();
        let shown = slices.iter().map(|slice| (slice.second.number, slice.sent));
        assert_eq!(shown.collect::<Vec<_>>(), [(0, 5), (1, 2), (5, 0)]);
        assert!(slices.iter().all(|slice| slice.second.phase == Phase::WarmUp));
    }

    #[test]
    fn an_empty_slice_is_used_again() {
        let mut thread = thread();
        thread.enter(Phase::Measure, 0);
        thread.cutter.record(run(0, 3), 1, None, 50);
        thread.cutter.end(&thread.tally, &[] as &[Tracker], &thread.exchange).unwrap();
        let slice = thread.exchange.collect().remove(0);
        assert_eq!((slice.latency_ns.len(), slice.latency_ns.max()), (3, 50));
        thread.exchange.give_back(slice);
        thread.cutter.end(&thread.tally, &[] as &[Tracker], &thread.exchange).unwrap();
        assert!(thread.cutter.slice.latency_ns.is_empty());
        assert!(thread.exchange.empty.lock().unwrap().is_empty());
    }

    #[test]
    fn a_message_counts_in_the_phase_in_which_it_was_meant_to_leave() {
        let mut thread = thread();
        thread.enter(Phase::WarmUp, 0);
        thread.enter(Phase::Measure, 100);
        thread.cutter.record(run(99, 1), 1, None, 150);
        thread.cutter.record(run(100, 1), 1, None, 150);
        thread.enter(Phase::Drain, 200);
        thread.cutter.record(run(199, 1), 1, None, 250);
        thread.cutter.record(run(200, 1), 1, None, 250);
        thread.cutter.end(&thread.tally, &[] as &[Tracker], &thread.exchange).unwrap();
        let slices = thread.exchange.collect();
        let recorded = slices.iter().map(|slice| (slice.second.phase, slice.latency_ns.len()));
        let expected = [(Phase::WarmUp, 0), (Phase::Measure, 1), (Phase::Drain, 1)];
        assert_eq!(recorded.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_warm_up_that_was_interrupted_measures_nothing() {
        let mut thread = thread();
        thread.enter(Phase::WarmUp, 0);
        thread.enter(Phase::Drain, 100);
        thread.cutter.record(run(50, 1), 1, None, 150);
        assert!(thread.cutter.slice.latency_ns.is_empty());
        assert_eq!(thread.cutter.recorded_ns.end, 100);
    }

    #[test]
    fn open_loop_latency_counts_from_the_time_table_and_service_from_the_real_send_time() {
        let mut thread = thread();
        thread.enter(Phase::Measure, 0);
        // One publisher, a message per millisecond: 2 and 4 were meant to leave at 2 and 4 ms.
        let timetable = Timetable { start_ns: 0, publishers: 1, rate: 1_000.0 };
        let run = Run { publisher: 0, sent_ns: 9_000_000, sequence: 2, count: 2, tracker: 0 };
        thread.cutter.record(run, 2, Some(timetable), 10_000_000);
        thread.cutter.record_slip(2_000_000, 9_000_000);
        let slice = &thread.cutter.slice;
        let near = |histogram: &Histogram<u64>, ms: u64| {
            histogram.equivalent(histogram.max(), ms * 1_000_000)
        };
        assert!(
            near(&slice.latency_ns, 8) && near(&slice.service_ns, 1) && near(&slice.slip_ns, 7)
        );
        assert!(slice.latency_ns.equivalent(slice.latency_ns.min(), 6_000_000));
        assert_eq!((slice.latency_ns.len(), slice.service_ns.len()), (2, 2));
    }

    #[test]
    fn trouble_is_summed_over_the_trackers_that_have_seen_any() {
        let mut thread = thread();
        let mut trackers = [Tracker::new(0, 1), Tracker::new(0, 1)];
        for sequence in [0, 3, 3, 1] {
            trackers[1].arrived(sequence);
        }
        thread.cutter.watch(1);
        let trouble = thread.cutter.trouble(&trackers);
        assert_eq!(trouble, Trouble { missing: 1, duplicated: 1, reordered: 1 });
    }

    struct Fixture {
        cutter: Cutter,
        tally: Tally,
        exchange: Exchange,
    }

    impl Fixture {
        fn enter(&mut self, phase: Phase, began_ns: u64) {
            self.cutter
                .enter(phase, began_ns, &self.tally, &[] as &[Tracker], &self.exchange)
                .unwrap();
        }

        fn cut(&mut self) {
            self.cutter.cut(&self.tally, &[] as &[Tracker], &self.exchange).unwrap();
        }
    }

    fn thread() -> Fixture {
        Fixture {
            cutter: Cutter::new().unwrap(),
            tally: Tally::new().unwrap(),
            exchange: Exchange::default(),
        }
    }

    fn run(sent_ns: u64, count: u64) -> Run {
        Run { publisher: 0, sent_ns, sequence: 0, count, tracker: 0 }
    }
}

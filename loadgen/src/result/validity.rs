//! The self-check: whether a result says something about the broker, or only about the generator.
//! A run that does not is void, and each reason is a sentence.

use hdrhistogram::Histogram;

use super::RunResult;
use crate::table::grouped;

/// Of CPU time of one thread: beyond, it is the generator that is measured.
const SATURATED_PERCENT: f64 = 95.0;
/// A message that leaves so much later than scheduled has missed its deadline.
const DEADLINE_NS: u64 = 1_000_000;
/// Missed deadlines that do not spoil the result.
const MISSED_MAX: f64 = 0.001;
/// So few are no sign of anything, however few there were in all.
const MISSED_FEW: u64 = 10;
/// Messages of others that do not spoil the result, for each delivery of its own.
const FOREIGN_MAX: f64 = 0.01;
/// Part of the scheduled messages that may leave after the measured interval.
const SHORT_MAX: f64 = 0.01;

impl RunResult {
    /// Looks for what makes the run void.
    pub(super) fn judge(&mut self) {
        let mut reasons = Vec::new();
        reasons.extend(self.overload());
        self.generator.saturated = !reasons.is_empty();
        if self.interrupted {
            reasons.push("it was interrupted: these are the figures until then".to_owned());
        }
        if self.foreign as f64 > FOREIGN_MAX * self.expected_total as f64 {
            reasons.push(format!(
                "{} messages of others arrived: what runs at the same time needs topics of its own \
                 (--topic-prefix)",
                grouped(self.foreign as f64)
            ));
        }
        if self.publishers > 0 && self.received == 0 {
            reasons.push("nothing was received while measuring".to_owned());
        }
        self.valid = reasons.is_empty();
        self.invalid_because = reasons;
    }

    /// In an open loop a busy thread is one that polls before its deadlines, so there the
    /// deadlines count; but one without publishers has none, and sleeps when it has nothing to do.
    fn overload(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let generator = &self.generator;
        if self.rate_per_s.is_none() {
            let busy = generator.busiest_thread_percent;
            if self.publishers > 0 && busy > SATURATED_PERCENT {
                reasons.push(format!(
                    "a thread of the generator was busy {busy:.0} % of the time: what limits may \
                     be the generator, and latency includes its own queueing"
                ));
            }
            return reasons;
        }
        let (missed, scheduled) = (generator.missed_deadlines, generator.scheduled);
        let share = missed as f64 / scheduled.max(1) as f64;
        if missed > MISSED_FEW && share > MISSED_MAX {
            reasons.push(format!(
                "{} of {} messages ({:.1} %) left more than 1 ms after their time: \
                 the generator was saturated, or the broker held it back",
                grouped(missed as f64),
                grouped(scheduled as f64),
                share * 100.0
            ));
        }
        let busy = generator.busiest_receiving_percent;
        if busy > SATURATED_PERCENT {
            reasons.push(format!(
                "a thread of the generator that only receives was busy {busy:.0} % of the time: \
                 latency includes its own queueing"
            ));
        }
        // A schedule that is seconds behind has not even come to the measured messages.
        let sent = self.sent;
        if scheduled as f64 * (1.0 - SHORT_MAX) > sent as f64 + 2.0 {
            reasons.push(format!(
                "only {} of {} scheduled messages left in time: the generator was saturated, or \
                 the broker held it back",
                grouped(sent as f64),
                grouped(scheduled as f64)
            ));
        }
        reasons
    }
}

/// Messages that left later than their deadline allows.
pub(super) fn missed(slip_ns: &Histogram<u64>) -> u64 {
    if slip_ns.is_empty() { 0 } else { slip_ns.len() - slip_ns.count_between(0, DEADLINE_NS) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::result;
    use super::*;

    #[test]
    fn deadlines_are_missed_after_a_millisecond() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        histogram.record_n(900_000, 5).unwrap();
        histogram.record_n(2_000_000, 3).unwrap();
        assert_eq!(missed(&histogram), 3);
    }

    #[test]
    fn a_run_that_kept_its_schedule_is_valid_however_busy_its_threads() {
        let judged = judged(|result| {
            result.generator.busiest_thread_percent = 100.0;
            result.generator.missed_deadlines = MISSED_FEW;
        });
        assert!(judged.valid && judged.invalid_because.is_empty());
    }

    #[test]
    fn missed_deadlines_a_schedule_behind_silence_and_an_interruption_void_a_run() {
        for (spoil, word) in [
            ((|result| result.generator.missed_deadlines = 11) as fn(&mut RunResult), "1 ms"),
            (|result| result.sent = 1_970, "only 1,970 of 2,000"),
            (|result| result.generator.busiest_receiving_percent = 96.0, "only receives"),
            (|result| result.received = 0, "nothing"),
            (|result| result.foreign = 21, "21 messages of others"),
            (|result| result.interrupted = true, "interrupted"),
        ] {
            let judged = judged(spoil);
            assert!(!judged.valid);
            assert_eq!(judged.invalid_because.len(), 1, "{judged:?}");
            assert!(judged.invalid_because[0].contains(word), "{:?}", judged.invalid_because);
        }
    }

    #[test]
    fn a_closed_loop_is_void_when_a_thread_is_busy_all_the_time() {
        for (busy, valid) in [(94.0, true), (96.0, false)] {
            let judged = judged(|result| {
                (result.rate_per_s, result.window) = (None, Some(100));
                result.generator.busiest_thread_percent = busy;
            });
            assert_eq!((judged.valid, judged.generator.saturated), (valid, !valid));
        }
    }

    fn judged(spoil: impl Fn(&mut RunResult)) -> RunResult {
        let mut result = result(50_000);
        spoil(&mut result);
        result.judge();
        result
    }
}

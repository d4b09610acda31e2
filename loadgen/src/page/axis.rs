//! Axes: where their ticks are and what is written at them. Logarithmic ones are drawn in powers
//! of ten, so that a chart only knows lines.

use crate::threshold::micros;

/// One axis of a chart.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// The lower end, as drawn.
    pub(super) from: f64,
    /// The upper end, as drawn.
    pub(super) to: f64,
    /// Where something is written, as drawn, and what.
    pub(super) ticks: Vec<(f64, String)>,
}

/// What is slower by a factor of this is at the next power of ten.
const DECADE: f64 = 10.0;
/// Ticks of a linear axis, about.
const TICKS: f64 = 6.0;
/// Ticks within a decade, where few decades are shown.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
const DECADES_WITH_STEPS_MAX: f64 = 2.5;
/// What files hold may be anything; axes end here.
const US_MAX: f64 = 1e12;
const COUNT_MAX: f64 = 1e15;
const S_MAX: f64 = 1e8;

impl Axis {
    /// Times in microseconds from `least` to `most`, logarithmic.
    pub(super) fn of_times(least: f64, most: f64) -> Self {
        let (least, most) = (within(least, (0.1, US_MAX)), within(most, (0.2, US_MAX)));
        let mut from = least.log10();
        let mut to = most.max(least * 2.0).log10();
        let steps: &[f64] = if to - from < DECADES_WITH_STEPS_MAX { &STEPS } else { &STEPS[..1] };
        let first = from.floor() as i32 - 1;
        let places = (first..=to.ceil() as i32 + 1)
            .flat_map(|power| steps.iter().map(move |step| step * DECADE.powi(power)));
        let places: Vec<f64> = places.collect();
        // From a tick to a tick, so that the ends can be read.
        let below = |end: f64| places.iter().rev().find(|us| us.log10() <= end + 1e-9);
        let above = |end: f64| places.iter().find(|us| us.log10() >= end - 1e-9);
        from = below(from).map_or(from, |us| us.log10());
        to = above(to).map_or(to, |us| us.log10());
        let shown = |us: &&f64| (from - 1e-9..=to + 1e-9).contains(&us.log10());
        let ticks = places.iter().filter(shown).map(|us| (us.log10(), time(*us))).collect();
        Self { from, to, ticks }
    }

    /// Counts per second from zero to `most`.
    pub(super) fn of_counts(most: f64) -> Self {
        Self::linear(0.0, within(most, (1.0, COUNT_MAX)), count)
    }

    /// Seconds.
    pub(super) fn of_seconds(from: f64, to: f64) -> Self {
        let from = within(from, (-S_MAX, S_MAX));
        let to = within(to, (from + 1.0, 2.0 * S_MAX));
        let mut axis = Self::linear(from, to, |s| format!("{s} s"));
        // Time ends where it ends; only amounts go on to the next tick.
        (axis.from, axis.to) = (from, to);
        axis.ticks.retain(|(at, _)| (axis.from..=axis.to).contains(at));
        axis
    }

    /// Percentiles up to the one that a single one of `count` exceeds, logarithmic in what is above.
    /// Where there are more than `most` nines, only every other one is written from 99 % on.
    pub(super) fn of_percentiles(count: u64, most: usize) -> Self {
        let to = (count.max(10) as f64).log10();
        let mut ticks = vec![(0.5_f64.log10().abs(), "50 %".to_owned())];
        let last = (to + 1e-9) as usize;
        for nines in (1..=last).filter(|nines| last <= most || *nines < 3 || nines % 2 == 0) {
            let text = match nines {
                1 => "90 %".to_owned(),
                2 => "99 %".to_owned(),
                _ => format!("99.{} %", "9".repeat(nines - 2)),
            };
            ticks.push((nines as f64, text));
        }
        Self { from: 0.0, to, ticks }
    }

    fn linear(from: f64, to: f64, text: fn(f64) -> String) -> Self {
        let rough = (to - from) / TICKS;
        let power = DECADE.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(power);
        let (first, last) = ((from / step).floor() as i64, (to / step).ceil() as i64);
        let ticks: Vec<(f64, String)> = (first..=last)
            .map(|tick| tick as f64 * step)
            .map(|at| (at, text((at * 1e6).round() / 1e6)))
            .collect();
        Self { from: first as f64 * step, to: last as f64 * step, ticks }
    }

    /// Where something that may lie outside is drawn.
    pub(super) fn clamp(&self, at: f64) -> f64 {
        at.clamp(self.from, self.to)
    }
}

/// The lower end stands for what is no number.
fn within(value: f64, (least, most): (f64, f64)) -> f64 {
    value.max(least).min(most)
}

fn time(us: f64) -> String {
    match us {
        us if us < 1.0 => format!("{:.0} ns", us * 1e3),
        us if us < 1e3 => micros(us),
        us if us < 1e6 => format!("{} ms", us / 1e3),
        us => format!("{} s", us / 1e6),
    }
}

/// A count as short as it can be said.
pub(super) fn count(count: f64) -> String {
    match count {
        count if count < 10.0 => format!("{}", (count * 100.0).round() / 100.0),
        count if count < 10_000.0 => crate::table::grouped(count),
        count if count < 1e6 => format!("{} k", (count / 1e3 * 10.0).round() / 10.0),
        count => format!("{} M", (count / 1e6 * 100.0).round() / 100.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_decades_have_a_tick_each_and_few_have_more() {
        assert_eq!(
            texts(&Axis::of_times(30.0, 4e6)),
            ["10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s", "10 s"]
        );
        assert_eq!(
            texts(&Axis::of_times(30.0, 400.0)),
            ["20 µs", "50 µs", "100 µs", "200 µs", "500 µs"]
        );
        assert_eq!(texts(&Axis::of_times(100.0, 100.0)), ["100 µs", "200 µs"]);
    }

    #[test]
    fn percentiles_end_where_one_message_is_left() {
        let axis = Axis::of_percentiles(100_000, 5);
        assert_eq!(texts(&axis), ["50 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"]);
        assert_eq!((axis.from, axis.to), (0.0, 5.0));
        assert_eq!(Axis::of_percentiles(0, 5).to, 1.0);
        let axis = Axis::of_percentiles(1_000_000, 5);
        assert_eq!(texts(&axis), ["50 %", "90 %", "99 %", "99.99 %", "99.9999 %"]);
    }

    #[test]
    fn counts_begin_at_zero_and_end_at_a_tick() {
        assert_eq!(texts(&Axis::of_counts(1_234.0)), ["0", "500", "1,000", "1,500"]);
        assert_eq!(texts(&Axis::of_counts(2_100_000.0)).last(), Some(&"2.5 M"));
        assert_eq!(texts(&Axis::of_counts(0.0)), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }

    #[test]
    fn seconds_do_not_go_beyond_the_run() {
        let axis = Axis::of_seconds(-2.0, 9.5);
        assert_eq!(texts(&axis), ["-2 s", "0 s", "2 s", "4 s", "6 s", "8 s"]);
        assert_eq!(axis.to, 9.5);
    }

    fn texts(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
    }
}

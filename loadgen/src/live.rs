//! What a run shows while it goes on: a few lines on the terminal, drawn anew when a second is
//! complete, and gone at the end. Where standard error is no terminal there is nothing of it.
//!
//! Called by `run` on the main thread, which is awake at that moment in any case: no thread and no
//! wake-up of its own.

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::phase::Phase;
use crate::result::{Point, PointPhase};
use crate::table::grouped;
use crate::threshold::micros;

/// Seconds in the sparkline.
const SPARKS: usize = 40;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const BAR: usize = 40;

/// See the module.
#[derive(Debug)]
pub(crate) struct Live {
    is_shown: bool,
    lines: ProgressBar,
    /// Deliveries per second of the last seconds.
    received_per_s: VecDeque<f64>,
    /// The load, in a few words.
    load: String,
}

impl Live {
    /// Shows something only on a terminal, and only if nobody wants it quiet.
    pub(crate) fn new(quiet: bool, load: String) -> Self {
        let is_shown = !quiet && std::io::stderr().is_terminal();
        let lines = ProgressBar::with_draw_target(None, target(is_shown));
        if let Ok(style) = ProgressStyle::with_template("{msg}") {
            lines.set_style(style);
        }
        Self { is_shown, lines, received_per_s: VecDeque::new(), load }
    }

    /// A bar for connecting.
    pub(crate) fn connecting(&self, clients: usize) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(clients as u64), target(self.is_shown));
        if let Ok(style) =
            ProgressStyle::with_template("connecting {wide_bar} {pos}/{len} {per_sec} {eta}")
        {
            bar.set_style(style);
        }
        bar
    }

    /// A second of a phase is complete.
    pub(crate) fn show(&mut self, phase: Phase, gone: Duration, length: Duration, point: &Point) {
        if !self.is_shown || point.phase == PointPhase::Connect {
            return;
        }
        if self.received_per_s.len() == SPARKS {
            self.received_per_s.pop_front();
        }
        self.received_per_s.push_back(point.received_per_s);
        self.lines.set_message(self.text(phase, gone, length, point));
    }

    /// Leaves the terminal as it was.
    pub(crate) fn clear(&self) {
        self.lines.finish_and_clear();
    }

    fn text(&self, phase: Phase, gone: Duration, length: Duration, point: &Point) -> String {
        let phase = match phase {
            Phase::Ramp => "connecting",
            Phase::WarmUp => "warming up",
            Phase::Measure => "measuring",
            Phase::Drain | Phase::Stop => "draining",
        };
        let sparks = sparkline(&self.received_per_s);
        let (sent, received) = (grouped(point.sent_per_s), grouped(point.received_per_s));
        let latency = point.latency_us.map_or_else(
            || "nothing received".to_owned(),
            |us| {
                let [p50, p99, max] = [us.p50, us.p99, us.max].map(micros);
                format!("p50 {p50}   p99 {p99}   max {max}")
            },
        );
        let Point { missing, duplicated, reordered, .. } = point;
        let broker = point.broker.map_or_else(String::new, |broker| {
            let mib = broker.rss_kib / 1024;
            format!("\nbroker      {:.0} % CPU   {mib} MiB", broker.cpu_percent)
        });
        format!(
            "{phase:<11} {} {:.0} of {:.0} s   {}\n\
             messages/s  {sparks}  sent {sent}   received {received}\n\
             latency     {latency}\n\
             so far      missing {missing}   duplicated {duplicated}   reordered {reordered}{broker}",
            bar(gone.as_secs_f64() / length.as_secs_f64().max(1e-9)),
            gone.as_secs_f64(),
            length.as_secs_f64(),
            self.load,
        )
    }
}

fn target(is_shown: bool) -> ProgressDrawTarget {
    if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn bar(share: f64) -> String {
    let full = ((share.clamp(0.0, 1.0) * BAR as f64).round() as usize).min(BAR);
    format!("{}{}", "━".repeat(full), "─".repeat(BAR - full))
}

/// From zero to the highest.
fn sparkline(values: &VecDeque<f64>) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let top = (LEVELS.len() - 1) as f64;
    let level = |value: &f64| match most > 0.0 {
        true => LEVELS.get((value / most * top).round() as usize).copied().unwrap_or('█'),
        false => '▁',
    };
    values.iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::result;

    #[test]
    fn a_sparkline_goes_from_zero_to_the_highest() {
        assert_eq!(sparkline(&VecDeque::from([0.0, 50.0, 100.0, 7.0])), "▁▅█▁");
        assert_eq!(sparkline(&VecDeque::from([0.0, 0.0])), "▁▁");
        assert_eq!(sparkline(&VecDeque::new()), "");
    }

    #[test]
    fn a_bar_is_as_full_as_the_phase() {
        for (share, full) in [(0.0, 0), (0.5, BAR / 2), (7.0, BAR)] {
            assert_eq!(bar(share).matches('━').count(), full);
            assert_eq!(bar(share).chars().count(), BAR);
        }
    }

    #[test]
    fn the_lines_have_the_figures_of_the_last_second() {
        let mut point = result(1_234_000).series[0].clone();
        point.missing = 7;
        let live = Live::new(true, "open loop at 1,000/s".to_owned());
        let second = Duration::from_secs(1);
        let text = live.text(Phase::Measure, 4 * second, 10 * second, &point);
        for words in [
            "measuring",
            "4 of 10 s",
            "open loop at 1,000/s",
            "received 1,000",
            "p99 1.23 ms",
            "missing 7",
            "20 % CPU   4 MiB",
        ] {
            assert!(text.contains(words), "{words} is not in\n{text}");
        }
    }
}

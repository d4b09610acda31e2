//! The charts of a page: which lines of which results, on which axes.

use hdrhistogram::Histogram;

use super::axis::{Axis, count};
use super::chart::{Chart, Line, Size};
use crate::result::{Encoded, Point, PointPhase, RunResult, Step};
use crate::threshold::micros;

/// Drawn points per power of ten of a distribution.
const POINTS_PER_DECADE: f64 = 60.0;
/// Points of a line that say something under the pointer.
const TITLES_MAX: usize = 240;
/// A rest of a second says little about rates.
const LENGTH_S_MIN: f64 = 0.5;

/// A result as a page shows it.
#[derive(Debug)]
pub(super) struct Run<'a> {
    /// Counts from zero.
    pub(super) number: usize,
    /// What tells it from the others, short.
    pub(super) name: String,
    /// The whole result.
    pub(super) result: &'a RunResult,
}

/// Latency from the intended send time, by percentile.
pub(super) fn latency(runs: &[Run<'_>]) -> anyhow::Result<Option<Chart>> {
    distribution("Latency by percentile", Size::Whole, runs, |result| {
        result.histograms.latency.as_ref()
    })
}

/// Latency from the real send time, where it is another.
pub(super) fn service(runs: &[Run<'_>]) -> anyhow::Result<Option<Chart>> {
    distribution("Latency once sent, by percentile", Size::Half, runs, |result| {
        result.histograms.service_latency.as_ref()
    })
}

/// Handshakes, by percentile.
pub(super) fn connecting(runs: &[Run<'_>]) -> anyhow::Result<Option<Chart>> {
    distribution("Time to connect by percentile", Size::Half, runs, |result| {
        result.histograms.connect.as_ref()
    })
}

/// Deliveries per second, over time.
pub(super) fn throughput(runs: &[Run<'_>]) -> Option<Chart> {
    let most = points(runs).map(|(_, point)| point.received_per_s).fold(0.0, f64::max);
    over_time("Messages received", runs, Axis::of_counts(most * 1.05), |point| {
        Some((point.received_per_s, format!("{} messages/s", count(point.received_per_s))))
    })
}

/// Latency of each second.
pub(super) fn latency_over_time(runs: &[Run<'_>]) -> Option<Chart> {
    let p99 = |point: &Point| point.latency_us.map(|latency| latency.p99.max(0.1));
    let shown: Vec<f64> = points(runs).filter_map(|(_, point)| p99(point)).collect();
    let least = shown.iter().copied().fold(f64::INFINITY, f64::min);
    let most = shown.iter().copied().fold(0.0, f64::max);
    if shown.is_empty() {
        return None;
    }
    over_time("p99 latency, second by second", runs, Axis::of_times(least, most), |point| {
        let latency = point.latency_us?;
        let [p50, p99, max] = [latency.p50, latency.p99, latency.max].map(micros);
        let title = format!("p50 {p50}, p99 {p99}, max {max}");
        Some((latency.p99.max(0.1).log10(), title))
    })
}

/// The broker's share of a core, over time.
pub(super) fn broker_cpu(runs: &[Run<'_>]) -> Option<Chart> {
    let cpu = |point: &Point| point.broker.map(|broker| broker.cpu_percent);
    let most = points(runs).filter_map(|(_, point)| cpu(point)).reduce(f64::max)?;
    let mut axis = Axis::of_counts(most * 1.05);
    axis.ticks.iter_mut().for_each(|(_, text)| text.push_str(" %"));
    over_time("CPU of the broker, of one core", runs, axis, |point| {
        let broker = point.broker?;
        let mib = broker.rss_kib as f64 / 1024.0;
        let title = format!("{:.0} % CPU, {mib:.1} MiB", broker.cpu_percent);
        Some((broker.cpu_percent, title))
    })
}

/// Clients that became ready, over the time of connecting, where that took some seconds.
pub(super) fn arrivals(runs: &[Run<'_>]) -> Option<Chart> {
    let rate = |point: &Point| point.connected as f64 / point.length_s;
    let lines = runs.iter().map(|run| {
        let mut line = run.line();
        let connecting =
            run.result.series.iter().filter(|point| {
                point.phase == PointPhase::Connect && point.length_s >= LENGTH_S_MIN
            });
        // The measurement, from which seconds count, may be much later.
        let zero_s = run.result.series.first().map_or(0.0, |point| point.at_s);
        let last = run.result.series.iter().rposition(|point| point.connected > 0).unwrap_or(0);
        for point in connecting.take(last + 1) {
            let title = format!("{}: {} connected per second", run.name, count(rate(point)));
            line.titles.push((line.points.len(), title));
            line.points.push((middle_s(point) - zero_s, rate(point)));
        }
        line
    });
    let y = |most: f64| Axis::of_counts(most * 1.05);
    of_points("Clients connected", lines.collect(), |to| Axis::of_seconds(0.0, to), y)
}

/// What searches have tried: p99 by rate.
pub(super) fn searched(runs: &[Run<'_>]) -> Option<Chart> {
    let lines = runs.iter().map(|run| {
        let mut line = run.line();
        let steps = run.result.search.as_ref().map_or(&[][..], |search| &search.steps);
        let mut steps: Vec<&Step> = steps.iter().collect();
        // Where a rate was tried twice, the second time counts: of equal ones the last comes first.
        steps.reverse();
        steps.sort_by(|a, b| a.rate_per_s.total_cmp(&b.rate_per_s));
        steps.dedup_by_key(|step| step.rate_per_s);
        for step in steps {
            let Some(latency) = step.latency_us else { continue };
            let (rate, p99) = (count(step.rate_per_s), micros(latency.p99));
            let because = step
                .because
                .as_ref()
                .map_or("held".to_owned(), |because| format!("failed: {because}"));
            let title = format!("{}, {rate} messages/s: p99 {p99}, {because}", run.name);
            line.titles.push((line.points.len(), title));
            line.points.push((step.rate_per_s, latency.p99.max(0.1).log10()));
        }
        line
    });
    let lines: Vec<Line> = lines.collect();
    let heights = || lines.iter().flat_map(|line| &line.points).map(|(_, y)| 10_f64.powf(*y));
    let least = heights().fold(f64::INFINITY, f64::min);
    let y = |most: f64| Axis::of_times(least, 10_f64.powf(most));
    of_points("p99 latency by rate", lines, Axis::of_counts, y)
}

/// From the origin; nothing where no line has two points.
fn of_points(
    title: &str,
    mut lines: Vec<Line>,
    x: impl Fn(f64) -> Axis,
    y: impl Fn(f64) -> Axis,
) -> Option<Chart> {
    lines.retain(|line| line.points.len() > 1);
    let points = || lines.iter().flat_map(|line| &line.points);
    let x = x(points().map(|(x, _)| *x).reduce(f64::max)?);
    let y = y(points().map(|(_, y)| *y).reduce(f64::max)?);
    let (size, title) = (Size::Half, title.to_owned());
    Some(Chart { size, title, x, y, shaded_until: None, lines })
}

fn distribution(
    title: &str,
    size: Size,
    runs: &[Run<'_>],
    of: fn(&RunResult) -> Option<&Encoded>,
) -> anyhow::Result<Option<Chart>> {
    let mut decoded: Vec<(&Run<'_>, Histogram<u64>)> = Vec::new();
    for run in runs {
        if let Some(encoded) = of(run.result) {
            decoded.push((run, encoded.decode()?));
        }
    }
    decoded.retain(|(_, histogram_ns)| !histogram_ns.is_empty());
    let Some(count) = decoded.iter().map(|(_, histogram_ns)| histogram_ns.len()).max() else {
        return Ok(None);
    };
    let us = |ns: u64| (ns as f64 / 1e3).max(0.1);
    let low = decoded.iter().map(|(_, histogram_ns)| us(histogram_ns.min()));
    let high = decoded.iter().map(|(_, histogram_ns)| us(histogram_ns.max()));
    let y = Axis::of_times(low.fold(f64::INFINITY, f64::min), high.fold(0.0, f64::max));
    let x = Axis::of_percentiles(count, if size == Size::Whole { 9 } else { 5 });
    let lines = decoded.iter().map(|(run, histogram_ns)| {
        let end = (histogram_ns.len() as f64).log10();
        let steps = (end * POINTS_PER_DECADE).ceil().max(1.0) as usize;
        let mut line = run.line();
        for step in 0..=steps {
            let at = end * step as f64 / steps as f64;
            let value = us(histogram_ns.value_at_quantile(1.0 - 10_f64.powf(-at)));
            line.points.push((at, value.log10()));
        }
        for (at, text) in x.ticks.iter().filter(|(at, _)| *at <= end) {
            let index = if end > 0.0 { (at / end * steps as f64).round() as usize } else { 0 };
            let value = us(histogram_ns.value_at_quantile(1.0 - 10_f64.powf(-at)));
            line.titles.push((index, format!("{}: {text} within {}", run.name, micros(value))));
        }
        let max = micros(us(histogram_ns.max()));
        line.titles.push((steps, format!("{}: the slowest {max}", run.name)));
        line
    });
    let lines = lines.collect();
    Ok(Some(Chart { size, title: title.to_owned(), x, y, shaded_until: None, lines }))
}

fn over_time(
    title: &str,
    runs: &[Run<'_>],
    y: Axis,
    at: impl Fn(&Point) -> Option<(f64, String)>,
) -> Option<Chart> {
    let from = points(runs).map(|(_, point)| middle_s(point)).reduce(f64::min)?;
    let to = points(runs).map(|(_, point)| middle_s(point)).reduce(f64::max)?;
    let x = Axis::of_seconds(from.min(0.0), to);
    let lines = runs.iter().map(|run| {
        let mut line = run.line();
        let drawn: Vec<&Point> = shown(run.result).filter(|point| at(point).is_some()).collect();
        let every = drawn.len().div_ceil(TITLES_MAX).max(1);
        for (index, point) in drawn.iter().enumerate() {
            let Some((y, title)) = at(point) else { continue };
            line.points.push((middle_s(point), y));
            if index % every == 0 {
                let second = point.at_s;
                line.titles.push((index, format!("{}, second {second:.0}: {title}", run.name)));
            }
        }
        line
    });
    let lines: Vec<Line> = lines.filter(|line| !line.points.is_empty()).collect();
    let shaded_until = (x.from < 0.0).then_some(0.0);
    let title = title.to_owned();
    (!lines.is_empty()).then_some(Chart { size: Size::Half, title, x, y, shaded_until, lines })
}

fn points<'r>(runs: &'r [Run<'_>]) -> impl Iterator<Item = (&'r Run<'r>, &'r Point)> {
    runs.iter().flat_map(|run| shown(run.result).map(move |point| (run, point)))
}

/// Points under load that are long enough.
fn shown(result: &RunResult) -> impl Iterator<Item = &Point> {
    result.series.iter().filter(|point| {
        matches!(point.phase, PointPhase::WarmUp | PointPhase::Measure)
            && point.length_s >= LENGTH_S_MIN
    })
}

fn middle_s(point: &Point) -> f64 {
    point.at_s + point.length_s / 2.0
}

impl Run<'_> {
    fn line(&self) -> Line {
        Line {
            run: self.number,
            name: self.name.clone(),
            is_void: !self.result.valid,
            points: Vec::new(),
            titles: Vec::new(),
        }
    }
}

//! Several results as one: of processes that ran the same load at the same time, on one machine or
//! several. Counts are summed, histograms added, time series aligned by their clocks.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::{
    Broker, Connects, Encoded, Environment, Generator, Histograms, Percentiles, Point, PointPhase,
    RunResult, Spread,
};
use crate::tally::histogram;

/// Part of the shorter measurement that two parts must have had in common.
const OVERLAP_MIN: f64 = 0.5;

/// One of the results that a merged one was made of.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Source {
    /// Its file.
    pub(crate) file: String,
    /// When it began.
    pub(crate) started_at: String,
    /// Where it was run.
    pub(crate) environment: Environment,
}

/// A result and the file that it was read from.
#[derive(Debug)]
pub(crate) struct Part {
    /// As it was given.
    pub(crate) file: String,
    /// What is in it.
    pub(crate) result: RunResult,
}

/// Merges parts, or says why they do not belong together.
pub(crate) fn merge(parts: &[Part]) -> anyhow::Result<RunResult> {
    let Some((first, others)) = parts.split_first() else { bail!("there is nothing to merge") };
    for (index, other) in others.iter().enumerate() {
        for earlier in &parts[..=index] {
            belong_together(earlier, other)?;
        }
    }
    let histograms = added_histograms(parts)?;
    let percentiles = |encoded: &Option<Encoded>| -> anyhow::Result<Option<Percentiles>> {
        let decoded = encoded.as_ref().map(Encoded::decode).transpose()?;
        Ok(decoded.as_ref().and_then(Percentiles::of))
    };
    let connect_ns =
        histograms.connect.as_ref().map_or_else(|| Ok(histogram()?), Encoded::decode)?;
    let all = || parts.iter().map(|part| &part.result);
    let sum = |of: fn(&RunResult) -> u64| all().map(of).sum::<u64>();
    let sum_f = |of: fn(&RunResult) -> f64| all().map(of).sum::<f64>();
    let most = |of: fn(&RunResult) -> f64| all().map(of).fold(0.0, f64::max);
    let ready = all().map(|result| result.connect.ready).sum();
    let received_per_s = sum_f(|result| result.received_per_s);

    let base = &first.result;
    let mut merged = RunResult {
        label: all().find_map(|result| result.label.clone()),
        started_at: base.started_at.clone(),
        started_unix_ms: base.started_unix_ms,
        measured_unix_ms: all().filter_map(|result| result.measured_unix_ms).min(),
        valid: all().all(|result| result.valid),
        invalid_because: parts.iter().flat_map(Part::reasons).collect(),
        clients: all().map(|result| result.clients).sum(),
        publishers: all().map(|result| result.publishers).fold(0, u32::saturating_add),
        rate_per_s: all().map(|result| result.rate_per_s).sum(),
        threads: all().map(|result| result.threads).sum(),
        interrupted: all().any(|result| result.interrupted),
        measured_s: most(|result| result.measured_s),
        sent: sum(|result| result.sent),
        received: sum(|result| result.received),
        sent_per_s: sum_f(|result| result.sent_per_s),
        received_per_s,
        latency_us: percentiles(&histograms.latency)?,
        service_latency_us: percentiles(&histograms.service_latency)?,
        expected_total: sum(|result| result.expected_total),
        lost: sum(|result| result.lost),
        duplicated: sum(|result| result.duplicated),
        reordered: sum(|result| result.reordered),
        foreign: sum(|result| result.foreign),
        unacknowledged: sum(|result| result.unacknowledged),
        connect: Connects::new(ready, most(|result| result.connect.total_s), &connect_ns),
        generator: Generator {
            cpu_percent: sum_f(|result| result.generator.cpu_percent),
            cpu_us_per_message: us_per_message(
                sum_f(|result| result.generator.cpu_percent),
                received_per_s,
            ),
            busiest_thread_percent: most(|result| result.generator.busiest_thread_percent),
            busiest_receiving_percent: most(|result| result.generator.busiest_receiving_percent),
            schedule_slip_us: percentiles(&histograms.schedule_slip)?,
            missed_deadlines: sum(|result| result.generator.missed_deadlines),
            scheduled: sum(|result| result.generator.scheduled),
            saturated: all().any(|result| result.generator.saturated),
        },
        broker: broker(parts, received_per_s, ready),
        beside: all().flat_map(|result| result.beside.clone()).collect(),
        series: series(parts)?,
        merged_from: parts.iter().map(Part::source).collect(),
        search: None,
        histograms,
        ..base.clone()
    };
    merged.name = merged.words();
    Ok(merged)
}

impl Part {
    fn reasons(&self) -> impl Iterator<Item = String> + '_ {
        self.result.invalid_because.iter().map(|reason| format!("{}: {reason}", self.file))
    }

    fn source(&self) -> Source {
        Source {
            file: self.file.clone(),
            started_at: self.result.started_at.clone(),
            environment: self.result.environment.clone(),
        }
    }
}

fn belong_together(one: &Part, other: &Part) -> anyhow::Result<()> {
    let (a, b) = (&one.result, &other.result);
    let differ = |what: &str, a: String, b: String| {
        let (one, other) = (&one.file, &other.file);
        anyhow::anyhow!(
            "{one} and {other} cannot be merged: {what} is {a} in one and {b} in the other"
        )
    };
    let pace = |result: &RunResult| match (result.rate_per_s, result.window) {
        (Some(_), _) => "open".to_owned(),
        (None, Some(window)) => format!("closed with window {window}"),
        (None, None) => "none".to_owned(),
    };
    for (what, a, b) in [
        ("the scenario", a.scenario.clone(), b.scenario.clone()),
        ("the QoS", a.qos.to_string(), b.qos.to_string()),
        ("the size of a payload", a.payload_bytes.to_string(), b.payload_bytes.to_string()),
        ("the loop", pace(a), pace(b)),
    ] {
        if a != b {
            return Err(differ(what, a, b));
        }
    }
    if let (Some(label_a), Some(label_b)) = (&a.label, &b.label)
        && label_a != label_b
    {
        return Err(differ("the broker's label", label_a.clone(), label_b.clone()));
    }
    let same_run = a.started_unix_ms == b.started_unix_ms && a.sent == b.sent;
    if same_run && a.environment == b.environment && a.histograms.latency == b.histograms.latency {
        bail!("{} and {} are the same run", one.file, other.file);
    }
    // Where nothing is measured (`connect`) the whole run counts.
    let span = |result: &RunResult| match result.measured_unix_ms {
        Some(began_ms) => (began_ms, result.measured_s),
        None => (result.started_unix_ms, result.connect.total_s + result.measured_s),
    };
    let ((began_a, took_a_s), (began_b, took_b_s)) = (span(a), span(b));
    let end = |began_ms: u64, took_s: f64| began_ms as f64 + took_s * 1e3;
    let common_ms =
        end(began_a, took_a_s).min(end(began_b, took_b_s)) - began_a.max(began_b) as f64;
    if common_ms < OVERLAP_MIN * 1e3 * took_a_s.min(took_b_s) {
        bail!(
            "{} and {} did not run at the same time: their measurements began at {} and {}, \
             and took {:.1} s and {:.1} s",
            one.file,
            other.file,
            super::utc(began_a),
            super::utc(began_b),
            took_a_s,
            took_b_s
        );
    }
    Ok(())
}

fn added_histograms(parts: &[Part]) -> anyhow::Result<Histograms> {
    let added = |of: fn(&Histograms) -> &Option<Encoded>| -> anyhow::Result<Option<Encoded>> {
        let mut sum_ns = histogram()?;
        for part in parts {
            if let Some(encoded) = of(&part.result.histograms) {
                encoded.add_to(&mut sum_ns).with_context(|| part.file.clone())?;
            }
        }
        Encoded::unless_empty(&sum_ns)
    };
    Ok(Histograms {
        latency: added(|histograms| &histograms.latency)?,
        service_latency: added(|histograms| &histograms.service_latency)?,
        connect: added(|histograms| &histograms.connect)?,
        schedule_slip: added(|histograms| &histograms.schedule_slip)?,
    })
}

/// Parts that looked at the broker all looked at the same one, over nearly the same time.
fn broker(parts: &[Part], received_per_s: f64, ready: usize) -> Option<Broker> {
    let brokers: Vec<Broker> = parts.iter().filter_map(|part| part.result.broker).collect();
    let count = brokers.len();
    let cpu = brokers.iter().map(|broker| broker.cpu_percent).sum::<f64>() / count as f64;
    let rss_idle_kib = brokers.iter().map(|broker| broker.rss_idle_kib).min()?;
    let rss_after_kib = brokers.iter().map(|broker| broker.rss_after_kib).max()?;
    Some(Broker {
        cpu_percent: cpu,
        cpu_us_per_message: us_per_message(cpu, received_per_s),
        rss_idle_kib,
        rss_before_kib: brokers.iter().map(|broker| broker.rss_before_kib).max()?,
        rss_after_kib,
        kib_per_connection: rss_after_kib.saturating_sub(rss_idle_kib) as f64 / ready.max(1) as f64,
    })
}

fn us_per_message(cpu_percent: f64, received_per_s: f64) -> Option<f64> {
    (received_per_s > 0.0).then(|| cpu_percent / 100.0 * 1e6 / received_per_s)
}

/// By phase and second since the earliest measurement began. Aligned to whole seconds: what two
/// machines call the same second may be half of one apart.
fn series(parts: &[Part]) -> anyhow::Result<Vec<Point>> {
    let began = |part: &Part| part.result.measured_unix_ms.unwrap_or(part.result.started_unix_ms);
    let zero_ms = parts.iter().map(began).min().unwrap_or(0);
    let mut slots: BTreeMap<(PointPhase, i64), (Point, Histogram<u64>)> = BTreeMap::new();
    for part in parts {
        let later_s = (began(part) - zero_ms) as f64 / 1e3;
        for point in &part.result.series {
            let at_s = point.at_s + later_s;
            let (sum, latency_ns) = match slots.entry((point.phase, at_s.round() as i64)) {
                Entry::Vacant(slot) => {
                    let empty = Point::empty(point.phase, at_s);
                    slot.insert((empty, histogram()?))
                }
                Entry::Occupied(slot) => slot.into_mut(),
            };
            if let Some(encoded) = &point.latency {
                encoded.add_to(latency_ns).with_context(|| part.file.clone())?;
            }
            sum.add(point, at_s);
        }
    }
    let finish = |(mut point, latency_ns): (Point, Histogram<u64>)| -> anyhow::Result<Point> {
        point.latency_us = Spread::of(&latency_ns);
        point.latency = Encoded::unless_empty(&latency_ns)?;
        Ok(point)
    };
    slots.into_values().map(finish).collect()
}

impl Point {
    fn empty(phase: PointPhase, at_s: f64) -> Self {
        Self {
            phase,
            at_s,
            length_s: 0.0,
            connected: 0,
            sent: 0,
            received: 0,
            sent_per_s: 0.0,
            received_per_s: 0.0,
            latency_us: None,
            missing: 0,
            duplicated: 0,
            reordered: 0,
            broker: None,
            latency: None,
        }
    }

    /// Adds what another process saw in the same second; latencies are the caller's.
    fn add(&mut self, other: &Self, at_s: f64) {
        self.at_s = self.at_s.min(at_s);
        self.length_s = self.length_s.max(other.length_s);
        self.connected += other.connected;
        self.sent += other.sent;
        self.received += other.received;
        self.sent_per_s += other.sent_per_s;
        self.received_per_s += other.received_per_s;
        self.missing += other.missing;
        self.duplicated += other.duplicated;
        self.reordered += other.reordered;
        self.broker = self.broker.or(other.broker);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::result;
    use super::*;

    #[test]
    fn counts_are_summed_and_histograms_added() {
        let merged = merge(&[part("a", |_| ()), part("b", |_| ())]).unwrap();
        assert_eq!((merged.clients, merged.publishers, merged.sent), (40, 20, 4_000));
        assert_eq!((merged.rate_per_s, merged.received_per_s), (Some(2_000.0), 2_000.0));
        assert_eq!(merged.name, "p2p, 40 clients, QoS 1, 64 B, 2,000 msg/s");
        let latency_ns = merged.histograms.latency.unwrap().decode().unwrap();
        assert_eq!(latency_ns.len(), 4_000);
        let latency_us = merged.latency_us.unwrap();
        assert!(latency_us.p50 < 51.0 && latency_us.max > 2_900.0, "{latency_us:?}");
        assert_eq!(merged.merged_from.len(), 2);
        assert!(merged.valid);
    }

    #[test]
    fn a_broker_that_two_parts_looked_at_is_counted_once() {
        let broker = merge(&[part("a", |_| ()), part("b", |_| ())]).unwrap().broker.unwrap();
        assert_eq!((broker.cpu_percent, broker.cpu_us_per_message), (20.0, Some(100.0)));
        assert_eq!((broker.rss_after_kib, broker.kib_per_connection), (5_000, 25.0));
    }

    #[test]
    fn series_are_aligned_by_their_clocks() {
        let later = part("b", |result| {
            result.measured_unix_ms = result.measured_unix_ms.map(|ms| ms + 900);
        });
        let merged = merge(&[part("a", |_| ()), later]).unwrap();
        let shown = merged.series.iter().map(|point| (point.at_s, point.sent));
        assert_eq!(shown.collect::<Vec<_>>(), [(0.0, 1_000), (0.9, 2_000), (1.9, 1_000)]);
        let second = merged.series[1].latency_us.unwrap();
        assert!(second.p50 < 51.0 && second.p99 > 2_900.0, "{second:?}");
    }

    #[test]
    fn a_void_part_makes_the_whole_void_and_is_named() {
        let void = part("b.json", |result| {
            result.valid = false;
            result.invalid_because = vec!["it was interrupted".to_owned()];
        });
        let merged = merge(&[part("a.json", |_| ()), void]).unwrap();
        assert!(!merged.valid);
        assert_eq!(merged.invalid_because, ["b.json: it was interrupted"]);
    }

    #[test]
    fn what_does_not_belong_together_is_refused_with_the_reason() {
        for (spoil, words) in [
            ((|result| result.qos = 2) as fn(&mut RunResult), "the QoS is 1 in one and 2"),
            (|result| result.scenario = "fan-in".to_owned(), "the scenario is p2p"),
            (|result| result.payload_bytes = 16, "payload is 64"),
            (|result| (result.rate_per_s, result.window) = (None, Some(4)), "the loop is open"),
            (|result| result.measured_unix_ms = Some(1_795_380_248_500), "at the same time"),
            (
                |result| (result.measured_unix_ms, result.started_unix_ms) = (None, 9),
                "at the same time",
            ),
        ] {
            let error = merge(&[part("a.json", |_| ()), part("b.json", spoil)]).unwrap_err();
            let sentence = error.to_string();
            assert!(sentence.contains(words), "{sentence}");
            assert!(sentence.contains("a.json") && sentence.contains("b.json"), "{sentence}");
        }
    }

    #[test]
    fn the_same_run_twice_is_refused() {
        let twice = [part("a", |_| ()), part("a", |_| ())];
        assert!(merge(&twice).unwrap_err().to_string().contains("are the same run"));
    }

    /// Parts named `a` are fast and others are slow.
    fn part(file: &str, spoil: impl Fn(&mut RunResult)) -> Part {
        let mut result = result(if file.starts_with('a') { 50_000 } else { 3_000_000 });
        spoil(&mut result);
        Part { file: file.to_owned(), result }
    }
}

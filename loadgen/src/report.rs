//! What is printed at the end: a table for people, or one JSON object with the same figures.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::Args;
use crate::beside::BesideReport;
use crate::run::Outcome;
use crate::settings::Pace;

/// Of CPU time of one thread: beyond, it is the generator that is measured.
const SATURATED: f64 = 0.95;
/// A message that leaves so much later than scheduled has missed its deadline.
const DEADLINE_NS: u64 = 1_000_000;
/// Missed deadlines that do not spoil the result.
const MISSED_MAX: f64 = 0.001;
/// Part of the scheduled messages that may leave after the measured interval.
const SHORT_MAX: f64 = 0.01;

/// All figures of a run, as `--json` prints them.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    scenario: String,
    qos: u8,
    clients: usize,
    publishers: u32,
    payload_bytes: usize,
    window: Option<u64>,
    rate_per_s: Option<f64>,
    threads: usize,
    interrupted: bool,
    measured_s: f64,
    sent: u64,
    received: u64,
    sent_per_s: f64,
    received_per_s: f64,
    latency_us: Option<Percentiles>,
    expected_total: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    unacknowledged: u64,
    connect: Connects,
    generator: Generator,
    broker: Option<Broker>,
    beside: Option<BesideReport>,
}

/// Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p99_9: f64,
    p99_99: f64,
    max: f64,
}

#[derive(Debug, Serialize)]
struct Connects {
    ready: usize,
    total_s: f64,
    per_s: f64,
    median_ms: f64,
    max_ms: f64,
}

#[derive(Debug, Serialize)]
struct Generator {
    cpu_percent: f64,
    cpu_us_per_message: Option<f64>,
    busiest_thread_percent: f64,
    schedule_slip_us: Option<Percentiles>,
    missed_deadlines: u64,
    saturated: bool,
}

#[derive(Debug, Serialize)]
struct Broker {
    cpu_percent: f64,
    cpu_us_per_message: Option<f64>,
    rss_idle_kib: u64,
    rss_before_kib: u64,
    rss_after_kib: u64,
    kib_per_connection: f64,
}

impl Report {
    /// Computes every figure once.
    pub(crate) fn new(args: &Args, outcome: &Outcome) -> Self {
        let tally = &outcome.tally;
        let seconds = outcome.measured.as_secs_f64().max(1e-3);
        let received = tally.received_measured;
        let missed = missed(&tally.slip_ns);
        let late = missed as f64 > tally.slip_ns.len() as f64 * MISSED_MAX;
        // A schedule that is seconds behind has not even come to the measured messages.
        let short =
            |rate: f64| rate * seconds * (1.0 - SHORT_MAX) > tally.sent_measured as f64 + 2.0;
        let rate = match outcome.pace {
            Pace::Rate(rate) => Some(rate),
            Pace::Window(_) => None,
        };
        let behind = rate.is_some_and(short);
        let ramp_s = outcome.ramp.as_secs_f64();
        let millis = |ns: u64| ns as f64 / 1e6;
        Self {
            scenario: scenario_name(args),
            qos: args.qos,
            clients: outcome.clients,
            publishers: outcome.publishers,
            payload_bytes: args.payload,
            window: match outcome.pace {
                Pace::Window(window) => Some(window),
                Pace::Rate(_) => None,
            },
            rate_per_s: rate,
            threads: outcome.threads,
            interrupted: outcome.interrupted,
            measured_s: seconds,
            sent: tally.sent_measured,
            received,
            sent_per_s: tally.sent_measured as f64 / seconds,
            received_per_s: received as f64 / seconds,
            latency_us: Percentiles::of(&tally.latency_ns),
            expected_total: tally.expected,
            lost: tally.lost(),
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            unacknowledged: tally.unacknowledged,
            connect: Connects {
                ready: outcome.ready,
                total_s: ramp_s,
                per_s: outcome.ready as f64 / ramp_s.max(1e-9),
                median_ms: millis(tally.connect_ns.value_at_quantile(0.5)),
                max_ms: millis(tally.connect_ns.max()),
            },
            generator: Generator {
                cpu_percent: percent(outcome.own_cpu, seconds),
                cpu_us_per_message: per_message(outcome.own_cpu, received),
                busiest_thread_percent: tally.busiest * 100.0,
                schedule_slip_us: Percentiles::of(&tally.slip_ns),
                missed_deadlines: missed,
                // In an open loop a busy thread is one that polls before its deadlines.
                saturated: late || behind || rate.is_none() && tally.busiest > SATURATED,
            },
            beside: outcome.beside.clone(),
            broker: outcome.broker.map(|usage| {
                let cpu = usage.after.cpu.saturating_sub(usage.before.cpu);
                let grown = usage.after.rss_bytes.saturating_sub(usage.idle.rss_bytes);
                Broker {
                    cpu_percent: percent(cpu, seconds),
                    cpu_us_per_message: per_message(cpu, received),
                    rss_idle_kib: usage.idle.rss_bytes / 1024,
                    rss_before_kib: usage.before.rss_bytes / 1024,
                    rss_after_kib: usage.after.rss_bytes / 1024,
                    kib_per_connection: grown as f64 / 1024.0 / outcome.ready.max(1) as f64,
                }
            }),
        }
    }

    /// A sentence for each promise of the QoS that was broken.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.qos > 0 && self.lost > 0 {
            let (lost, expected) = (self.lost, self.expected_total);
            let stood = match self.window {
                Some(_) => ", and publishers that waited for them stood still",
                None => "",
            };
            let qos = self.qos;
            broken.push(format!("{lost} of {expected} messages were lost at QoS {qos}{stood}"));
        }
        if self.qos == 2 && self.duplicated > 0 {
            broken.push(format!("{} messages arrived twice at QoS 2", self.duplicated));
        }
        if self.qos > 0 && self.unacknowledged > 0 {
            broken.push(format!("{} messages were not acknowledged", self.unacknowledged));
        }
        broken
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, qos, clients, threads, connect, generator, .. } = self;
        let plural = if *threads == 1 { "thread" } else { "threads" };
        line(f, "scenario", format_args!("{scenario}, QoS {qos}, {clients} clients"))?;
        line(
            f,
            "connected",
            format_args!(
                "{} in {:.2} s ({}/s), each {:.2} ms median, {:.2} ms at most",
                connect.ready,
                connect.total_s,
                grouped(connect.per_s),
                connect.median_ms,
                connect.max_ms
            ),
        )?;
        if self.publishers > 0 {
            self.fmt_messages(f)?;
        }
        let cpu = generator.cpu_percent;
        let cost_us = cost(generator.cpu_us_per_message);
        line(f, "generator", format_args!("{cpu:.0} % CPU on {threads} {plural}{cost_us}"))?;
        if let Some(broker) = &self.broker {
            broker.fmt_usage(f)?;
        }
        if let Some(beside) = &self.beside {
            beside.fmt(f)?;
        }
        if generator.saturated {
            let why = if self.rate_per_s.is_some() { ", or the broker held it back" } else { "" };
            let doubt = "latency figures include its own queueing";
            line(f, "beware", format_args!("generator was saturated{why}: {doubt}"))?;
        }
        if self.interrupted {
            line(f, "interrupted", format_args!("this is what there was until then"))?;
        }
        Ok(())
    }
}

impl Report {
    fn fmt_messages(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pace = match (self.window, self.rate_per_s) {
            (_, Some(rate)) => format!("open loop at {} messages/s", grouped(rate)),
            (Some(window), None) => format!("closed loop, window {window}"),
            (None, None) => String::new(),
        };
        let (payload, seconds) = (self.payload_bytes, self.measured_s);
        line(f, "load", format_args!("{pace}, {payload}-byte payloads, {seconds:.1} s measured"))?;
        let (sent, received) = (grouped(self.sent_per_s), grouped(self.received_per_s));
        line(f, "messages/s", format_args!("sent {sent}, received {received}"))?;
        let (lost, duplicated, reordered) = (self.lost, self.duplicated, self.reordered);
        let expected = grouped(self.expected_total as f64);
        line(
            f,
            "whole run",
            format_args!(
                "lost {lost}, duplicated {duplicated}, reordered {reordered} \
                 of {expected} deliveries"
            ),
        )?;
        if let Some(latency) = &self.latency_us {
            let head = ["p50", "p90", "p99", "p99.9", "p99.99", "max"];
            line(f, "µs", format_args!("{}", row(head)))?;
            line(f, "latency", format_args!("{latency}"))?;
        }
        if let Some(slip) = &self.generator.schedule_slip_us {
            line(f, "sent late by", format_args!("{slip}"))?;
            let missed = self.generator.missed_deadlines;
            line(f, "schedule", format_args!("{missed} messages left more than 1 ms late"))?;
        }
        Ok(())
    }
}

impl Broker {
    fn fmt_usage(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu_percent, rss_idle_kib, rss_before_kib, rss_after_kib, .. } = self;
        let (cost_us, each) = (cost(self.cpu_us_per_message), self.kib_per_connection);
        line(f, "broker", format_args!("{cpu_percent:.0} % CPU{cost_us}"))?;
        line(
            f,
            "its memory",
            format_args!(
                "{rss_idle_kib} KiB before connecting, {rss_before_kib} KiB connected, \
                 {rss_after_kib} KiB after the load; grown by {each:.1} KiB per connection"
            ),
        )
    }
}

impl Percentiles {
    /// `None` for an empty histogram.
    pub(crate) fn of(histogram_ns: &Histogram<u64>) -> Option<Self> {
        if histogram_ns.is_empty() {
            return None;
        }
        let at = |quantile| histogram_ns.value_at_quantile(quantile) as f64 / 1e3;
        Some(Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: histogram_ns.max() as f64 / 1e3,
        })
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50, p90, p99, p99_9, p99_99, max } = self;
        let figures = [p50, p90, p99, p99_9, p99_99, max].map(|us| grouped(us.round()));
        f.write_str(&row(figures.each_ref().map(String::as_str)))
    }
}

/// One line of the table.
pub(crate) fn line(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    text: fmt::Arguments<'_>,
) -> fmt::Result {
    writeln!(f, "{name:<13} {text}")
}

/// Figures in columns.
pub(crate) fn row(cells: [&str; 6]) -> String {
    let mut row = String::new();
    for cell in cells {
        row.push_str(&format!("{cell:>10}"));
    }
    row
}

fn scenario_name(args: &Args) -> String {
    use clap::ValueEnum;
    args.scenario.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Messages that left later than their deadline allows.
fn missed(slip_ns: &Histogram<u64>) -> u64 {
    if slip_ns.is_empty() { 0 } else { slip_ns.len() - slip_ns.count_between(0, DEADLINE_NS) }
}

fn percent(cpu: Duration, seconds: f64) -> f64 {
    cpu.as_secs_f64() / seconds * 100.0
}

fn per_message(cpu: Duration, messages: u64) -> Option<f64> {
    (messages > 0).then(|| cpu.as_secs_f64() * 1e6 / messages as f64)
}

fn cost(us_per_message: Option<f64>) -> String {
    us_per_message.map_or_else(String::new, |us| format!(", {us:.3} µs per delivered message"))
}

/// A whole number with commas.
pub(crate) fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_microseconds() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for ms in 1..=100 {
            histogram.record(ms * 1_000_000).unwrap();
        }
        let percentiles = Percentiles::of(&histogram).unwrap();
        let near = |value: f64, expected: f64| (value - expected).abs() < expected / 500.0;
        assert!(near(percentiles.p50, 50_000.0), "{percentiles}");
        assert!(near(percentiles.p99, 99_000.0), "{percentiles}");
        assert!(near(percentiles.max, 100_000.0), "{percentiles}");
    }

    #[test]
    fn a_run_without_deliveries_has_no_percentiles() {
        assert_eq!(Percentiles::of(&Histogram::new(3).unwrap()), None);
    }

    #[test]
    fn deadlines_are_missed_after_a_millisecond() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        histogram.record_n(900_000, 5).unwrap();
        histogram.record_n(2_000_000, 3).unwrap();
        assert_eq!(missed(&histogram), 3);
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0.4), "0");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(123.0), "123");
    }
}

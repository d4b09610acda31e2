//! A result as a table for people, on standard output.

use std::fmt;

use crate::result::{Broker, Percentiles, RunResult};

/// Shows a result.
#[derive(Debug)]
pub(crate) struct Table<'a>(pub(crate) &'a RunResult);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let result = self.0;
        let RunResult { scenario, qos, clients, threads, connect, generator, .. } = result;
        let plural = if *threads == 1 { "thread" } else { "threads" };
        let parts = match result.merged_from.len() {
            0 => String::new(),
            parts => format!(", of {parts} processes"),
        };
        line(f, "scenario", format_args!("{scenario}, QoS {qos}, {clients} clients{parts}"))?;
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
        if result.publishers > 0 {
            messages(f, result)?;
        }
        let cpu = generator.cpu_percent;
        let cost_us = cost(generator.cpu_us_per_message);
        line(f, "generator", format_args!("{cpu:.0} % CPU on {threads} {plural}{cost_us}"))?;
        if let Some(broker) = &result.broker {
            usage(f, broker)?;
        }
        for beside in &result.beside {
            write!(f, "{beside}")?;
        }
        for reason in &result.invalid_because {
            line(f, "VOID", format_args!("{reason}"))?;
        }
        Ok(())
    }
}

fn messages(f: &mut fmt::Formatter<'_>, result: &RunResult) -> fmt::Result {
    let pace = match (result.window, result.rate_per_s) {
        (_, Some(rate)) => format!("open loop at {} messages/s", grouped(rate)),
        (Some(window), None) => format!("closed loop, window {window}"),
        (None, None) => String::new(),
    };
    let (payload, seconds) = (result.payload_bytes, result.measured_s);
    line(f, "load", format_args!("{pace}, {payload}-byte payloads, {seconds:.1} s measured"))?;
    let (sent, received) = (grouped(result.sent_per_s), grouped(result.received_per_s));
    line(f, "messages/s", format_args!("sent {sent}, received {received}"))?;
    let RunResult { lost, duplicated, reordered, .. } = result;
    let expected = grouped(result.expected_total as f64);
    line(
        f,
        "whole run",
        format_args!(
            "lost {lost}, duplicated {duplicated}, reordered {reordered} of {expected} deliveries"
        ),
    )?;
    if let Some(latency) = &result.latency_us {
        line(f, "µs", format_args!("{}", heads()))?;
        line(f, "latency", format_args!("{}", figures(latency)))?;
    }
    if let Some(service) = &result.service_latency_us {
        line(f, "once sent", format_args!("{}", figures(service)))?;
    }
    if let Some(slip) = &result.generator.schedule_slip_us {
        line(f, "sent late by", format_args!("{}", figures(slip)))?;
        let missed = grouped(result.generator.missed_deadlines as f64);
        line(f, "schedule", format_args!("{missed} messages left more than 1 ms late"))?;
    }
    Ok(())
}

fn usage(f: &mut fmt::Formatter<'_>, broker: &Broker) -> fmt::Result {
    let Broker { cpu_percent, rss_idle_kib, rss_before_kib, rss_after_kib, .. } = broker;
    let (cost_us, each) = (cost(broker.cpu_us_per_message), broker.kib_per_connection);
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

/// One line of the table.
pub(crate) fn line(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    text: fmt::Arguments<'_>,
) -> fmt::Result {
    writeln!(f, "{name:<13} {text}")
}

/// Percentiles as such cells.
pub(crate) fn figures(percentiles: &Percentiles) -> String {
    let Percentiles { p50, p90, p99, p99_9, p99_99, max } = percentiles;
    row(&[p50, p90, p99, p99_9, p99_99, max].map(|us| grouped(us.round())))
}

/// The names above [`figures`].
pub(crate) fn heads() -> String {
    row(&["p50", "p90", "p99", "p99.9", "p99.99", "max"].map(str::to_owned))
}

/// Figures in columns.
fn row(cells: &[String]) -> String {
    cells.iter().map(|cell| format!("{cell:>10}")).collect()
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
    use crate::result::tests::result;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(grouped(0.4), "0");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(grouped(123.0), "123");
    }

    #[test]
    fn a_void_run_says_so_and_why() {
        let mut result = result(50_000);
        assert!(!Table(&result).to_string().contains("VOID"));
        result.invalid_because.push("it was interrupted".to_owned());
        assert!(Table(&result).to_string().contains("VOID          it was interrupted"));
    }
}

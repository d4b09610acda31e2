//! The result of a run: every figure, the histograms and the time series behind them, and where
//! they come from. What `--json` prints, `--out` writes, and `merge` and `report` read.
//!
//! The JSON is documented in `loadgen/docs/results.md`. Fields may be added to it without notice;
//! where one changes its meaning or goes, [`FORMAT`] counts up.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

pub(crate) use self::encoded::Encoded;
pub(crate) use self::environment::{Environment, utc};
pub(crate) use self::merge::{Part, Source, merge};
pub(crate) use self::percentiles::Percentiles;
pub(crate) use self::search::{Search, Step};
pub(crate) use self::series::{BrokerSecond, Point, PointPhase, Spread};
use crate::args::Args;
use crate::beside::BesideReport;
use crate::run::Outcome;
use crate::settings::Pace;
use crate::table::grouped;

mod encoded;
mod environment;
mod merge;
mod percentiles;
mod search;
mod series;
mod validity;

/// Version of the JSON.
const FORMAT: u32 = 1;
/// No count is larger, so that sums of results do not overflow.
const COUNT_MAX: u64 = 1 << 53;
/// Larger files are not results.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// See the module.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct RunResult {
    /// [`FORMAT`].
    pub(crate) format: u32,
    /// What was run, in a few words, or what `--name` calls it.
    pub(crate) name: String,
    /// What `--label` calls the broker.
    pub(crate) label: Option<String>,
    /// When the run began, in UTC.
    pub(crate) started_at: String,
    /// The same in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
    /// When the measurement began, in milliseconds since 1970.
    pub(crate) measured_unix_ms: Option<u64>,
    /// Whether the figures are the broker's, and not the generator's.
    pub(crate) valid: bool,
    /// A sentence for each reason why they are not.
    pub(crate) invalid_because: Vec<String>,
    /// Who published what to whom.
    pub(crate) scenario: String,
    /// Of messages and subscriptions.
    pub(crate) qos: u8,
    /// Connections.
    pub(crate) clients: usize,
    /// How many of them publish.
    pub(crate) publishers: u32,
    /// Size of a payload.
    pub(crate) payload_bytes: usize,
    /// Closed loop: messages of a publisher outstanding.
    pub(crate) window: Option<u64>,
    /// Open loop: messages per second over all publishers.
    pub(crate) rate_per_s: Option<f64>,
    /// Threads of the generator.
    pub(crate) threads: usize,
    /// Stopped by a signal.
    pub(crate) interrupted: bool,
    /// Length of the measurement.
    pub(crate) measured_s: f64,
    /// Messages sent while measuring.
    pub(crate) sent: u64,
    /// Deliveries while measuring.
    pub(crate) received: u64,
    /// Per second of the measurement.
    pub(crate) sent_per_s: f64,
    /// Per second of the measurement.
    pub(crate) received_per_s: f64,
    /// From the intended send time to the arrival ("corrected").
    pub(crate) latency_us: Option<Percentiles>,
    /// Open loop: from the real send time to the arrival. In a closed loop both are the same.
    pub(crate) service_latency_us: Option<Percentiles>,
    /// Deliveries that follow from what was sent, in the whole run.
    pub(crate) expected_total: u64,
    /// Deliveries that never came, in the whole run.
    pub(crate) lost: u64,
    /// Second arrivals, in the whole run.
    pub(crate) duplicated: u64,
    /// Arrivals after a later message of the same publisher, in the whole run.
    pub(crate) reordered: u64,
    /// Messages of others that arrived on the topics of this run, in the whole run.
    #[serde(default)]
    pub(crate) foreign: u64,
    /// Messages whose flow the broker did not end, at QoS 1 and 2.
    pub(crate) unacknowledged: u64,
    /// How connecting went.
    pub(crate) connect: Connects,
    /// What the generator itself used.
    pub(crate) generator: Generator,
    /// What the broker's process used, where it was looked at.
    pub(crate) broker: Option<Broker>,
    /// What went on beside the load; one entry of each process.
    #[serde(default)]
    pub(crate) beside: Vec<BesideReport>,
    /// The distributions behind the percentiles.
    pub(crate) histograms: Histograms,
    /// Second by second.
    pub(crate) series: Vec<Point>,
    /// Where it was run; of a merged result, its first part.
    pub(crate) environment: Environment,
    /// The parts of a merged result.
    #[serde(default)]
    pub(crate) merged_from: Vec<Source>,
    /// The search that this is the best step of.
    #[serde(default)]
    pub(crate) search: Option<Search>,
}

/// How connecting went.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Connects {
    /// Clients that became ready.
    pub(crate) ready: usize,
    /// From the first connection to the last client ready.
    pub(crate) total_s: f64,
    /// Clients per second of that time.
    pub(crate) per_s: f64,
    /// Of one handshake, from asking for a connection to CONNACK.
    pub(crate) median_ms: f64,
    /// Of the slowest handshake.
    pub(crate) max_ms: f64,
}

/// What the generator itself used while measuring.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Generator {
    /// Of one core, all threads together.
    pub(crate) cpu_percent: f64,
    /// CPU time per delivered message.
    pub(crate) cpu_us_per_message: Option<f64>,
    /// Of one core, the busiest thread.
    pub(crate) busiest_thread_percent: f64,
    /// Of one core, the busiest thread without publishers; 0 where every thread has some.
    #[serde(default)]
    pub(crate) busiest_receiving_percent: f64,
    /// Open loop: from the intended to the real send time.
    pub(crate) schedule_slip_us: Option<Percentiles>,
    /// Open loop: messages that left more than a millisecond late.
    pub(crate) missed_deadlines: u64,
    /// Open loop: messages that were scheduled for the measured time.
    pub(crate) scheduled: u64,
    /// Whether it was the generator that set the limit.
    pub(crate) saturated: bool,
}

/// What the broker's process used.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) struct Broker {
    /// Of one core, while measuring.
    pub(crate) cpu_percent: f64,
    /// CPU time per delivered message.
    pub(crate) cpu_us_per_message: Option<f64>,
    /// Resident before the first connection.
    pub(crate) rss_idle_kib: u64,
    /// Resident with all clients connected, before the measurement.
    pub(crate) rss_before_kib: u64,
    /// Resident after the measurement.
    pub(crate) rss_after_kib: u64,
    /// Growth from idle to the end of the measurement, per connection.
    pub(crate) kib_per_connection: f64,
}

/// Nanoseconds, as HdrHistogram V2, deflated, in base64.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Histograms {
    /// Of `latency_us`.
    pub(crate) latency: Option<Encoded>,
    /// Of `service_latency_us`.
    pub(crate) service_latency: Option<Encoded>,
    /// Of handshakes.
    pub(crate) connect: Option<Encoded>,
    /// Of `generator.schedule_slip_us`.
    pub(crate) schedule_slip: Option<Encoded>,
}

impl RunResult {
    /// Computes every figure once.
    pub(crate) fn new(args: &Args, outcome: &Outcome) -> anyhow::Result<Self> {
        let (tally, recorded) = (&outcome.tally, &outcome.recorded);
        let seconds = outcome.measured.as_secs_f64().max(1e-3);
        let received = tally.received_measured;
        let ramp_s = outcome.ramp.as_secs_f64();
        let started_unix_ms = environment::unix_ms(outcome.started);
        let rate_per_s = match outcome.pace {
            Pace::Rate(rate) => Some(rate),
            Pace::Window(_) => None,
        };
        let scheduled = rate_per_s.map_or(0, |rate| (rate * seconds) as u64);
        let mut result = Self {
            format: FORMAT,
            name: String::new(),
            label: args.outputs.label.clone(),
            started_at: utc(started_unix_ms),
            started_unix_ms,
            measured_unix_ms: outcome.measured_from.map(environment::unix_ms),
            valid: true,
            invalid_because: Vec::new(),
            scenario: args.scenario.name(),
            qos: args.qos,
            clients: outcome.clients,
            publishers: outcome.publishers,
            payload_bytes: args.payload,
            window: match outcome.pace {
                Pace::Window(window) => Some(window),
                Pace::Rate(_) => None,
            },
            rate_per_s,
            threads: outcome.threads,
            interrupted: outcome.interrupted,
            measured_s: seconds,
            sent: tally.sent_measured,
            received,
            sent_per_s: tally.sent_measured as f64 / seconds,
            received_per_s: received as f64 / seconds,
            latency_us: Percentiles::of(&recorded.latency_ns),
            service_latency_us: Percentiles::of(&recorded.service_ns),
            expected_total: tally.expected,
            lost: tally.lost(),
            duplicated: tally.duplicated,
            reordered: tally.reordered,
            foreign: tally.foreign,
            unacknowledged: tally.unacknowledged,
            connect: Connects::new(outcome.ready, ramp_s, &tally.connect_ns),
            generator: Generator {
                cpu_percent: percent(outcome.own_cpu, seconds),
                cpu_us_per_message: per_message(outcome.own_cpu, received),
                busiest_thread_percent: tally.busiest * 100.0,
                busiest_receiving_percent: tally.busiest_receiving * 100.0,
                schedule_slip_us: Percentiles::of(&recorded.slip_ns),
                missed_deadlines: validity::missed(&recorded.slip_ns),
                scheduled,
                saturated: false,
            },
            beside: outcome.beside.iter().cloned().collect(),
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
            histograms: Histograms {
                latency: Encoded::unless_empty(&recorded.latency_ns)?,
                service_latency: Encoded::unless_empty(&recorded.service_ns)?,
                connect: Encoded::unless_empty(&tally.connect_ns)?,
                schedule_slip: Encoded::unless_empty(&recorded.slip_ns)?,
            },
            series: recorded.points.clone(),
            environment: Environment::here(),
            merged_from: Vec::new(),
            search: None,
        };
        result.name = args.outputs.name.clone().unwrap_or_else(|| result.words());
        result.judge();
        Ok(result)
    }

    /// Reads a file that `--out` or `--json` wrote.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let size = fs::metadata(path).with_context(|| format!("{shown} cannot be read"))?.len();
        if size > FILE_BYTES_MAX {
            bail!("{shown} is no result: it has {size} bytes");
        }
        let text = fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))?;
        Self::parse(&text).with_context(|| {
            format!("{shown} is no result of a steady load (--out FILE and --json make one)")
        })
    }

    /// Understands what `--json` prints.
    fn parse(text: &str) -> anyhow::Result<Self> {
        let value: serde_json::Value = serde_json::from_str(text)?;
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => bail!("it has format {format}, and this loadgen reads {FORMAT}"),
            None if value.get("steps").is_some() => {
                bail!("it is of a scenario of steps, and those are neither merged nor drawn")
            }
            None => bail!("it has no \"format\""),
        }
        check_counts(&value)?;
        Ok(serde_json::from_value(value)?)
    }

    /// One JSON object on one line.
    pub(crate) fn to_json(&self) -> anyhow::Result<String> {
        serde_json::to_string(self).context("the result cannot be written as JSON")
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

    /// What was run, in a few words.
    fn words(&self) -> String {
        let Self { scenario, qos, clients, .. } = self;
        if self.publishers == 0 {
            return format!("{scenario}, {clients} clients");
        }
        let pace = match (self.rate_per_s, self.window) {
            (Some(rate), _) if rate < 10.0 => format!("{rate} msg/s"),
            (Some(rate), _) => format!("{} msg/s", grouped(rate)),
            (None, Some(window)) => format!("window {window}"),
            (None, None) => String::new(),
        };
        let payload = self.payload_bytes;
        format!("{scenario}, {clients} clients, QoS {qos}, {payload} B, {pace}")
    }
}

impl Connects {
    fn new(ready: usize, total_s: f64, connect_ns: &Histogram<u64>) -> Self {
        let millis = |ns: u64| ns as f64 / 1e6;
        Self {
            ready,
            total_s,
            per_s: ready as f64 / total_s.max(1e-9),
            median_ms: millis(connect_ns.value_at_quantile(0.5)),
            max_ms: millis(connect_ns.max()),
        }
    }
}

fn check_counts(value: &serde_json::Value) -> anyhow::Result<()> {
    use serde_json::Value;
    match value {
        Value::Number(number) if number.as_u64().is_some_and(|count| count > COUNT_MAX) => {
            bail!("it has the count {number}, and no run comes to that")
        }
        Value::Array(values) => values.iter().try_for_each(check_counts),
        Value::Object(fields) => fields.values().try_for_each(check_counts),
        _ => Ok(()),
    }
}

fn percent(cpu: Duration, seconds: f64) -> f64 {
    cpu.as_secs_f64() / seconds * 100.0
}

fn per_message(cpu: Duration, messages: u64) -> Option<f64> {
    (messages > 0).then(|| cpu.as_secs_f64() * 1e6 / messages as f64)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn a_result_survives_its_json() {
        let original = result(100_000);
        let read = RunResult::parse(&original.to_json().unwrap()).unwrap();
        assert_eq!(read.to_json().unwrap(), original.to_json().unwrap());
        assert_eq!(read.format, 1);
    }

    #[test]
    fn another_format_and_no_format_are_refused_with_the_reason() {
        let json = result(1).to_json().unwrap();
        let other = json.replace("\"format\":1", "\"format\":2");
        assert!(RunResult::parse(&other).unwrap_err().to_string().contains("format 2"));
        assert!(RunResult::parse("{}").unwrap_err().to_string().contains("no \"format\""));
        assert!(RunResult::parse("{\"format\":1}").is_err());
        let steps = RunResult::parse("{\"steps\":[]}").unwrap_err().to_string();
        assert!(steps.contains("scenario of steps"), "{steps}");
        for cut in 0..json.len() {
            assert!(RunResult::parse(&json[..cut]).is_err());
        }
    }

    #[test]
    fn a_count_that_would_overflow_a_sum_is_refused() {
        let json = result(1).to_json().unwrap();
        let large = json.replace("\"sent\":2000", "\"sent\":18446744073709551615");
        assert_ne!(large, json);
        let error = RunResult::parse(&large).unwrap_err().to_string();
        assert!(error.contains("18446744073709551615"), "{error}");
    }

    #[test]
    fn fields_that_are_not_known_are_not_in_the_way() {
        let json = result(1).to_json().unwrap();
        assert!(RunResult::parse(&json.replacen('{', "{\"later\":[1],", 1)).is_ok());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = RunResult::read(Path::new("/nowhere/a.json")).unwrap_err();
        assert!(error.to_string().contains("/nowhere/a.json"), "{error}");
    }

    /// A valid open-loop run at QoS 1 of two seconds whose messages all took so long.
    pub(crate) fn result(latency_ns: u64) -> RunResult {
        let mut histogram_ns = crate::tally::histogram().unwrap();
        histogram_ns.record_n(latency_ns, 2_000).unwrap();
        let mut second_ns = crate::tally::histogram().unwrap();
        second_ns.record_n(latency_ns, 1_000).unwrap();
        let latency_us = Percentiles::of(&histogram_ns);
        let encoded = Encoded::unless_empty(&histogram_ns).unwrap();
        let point = |second: usize| Point {
            phase: PointPhase::Measure,
            at_s: second as f64,
            length_s: 1.0,
            connected: 0,
            sent: 1_000,
            received: 1_000,
            sent_per_s: 1_000.0,
            received_per_s: 1_000.0,
            latency_us: Spread::of(&second_ns),
            missing: 0,
            duplicated: 0,
            reordered: 0,
            broker: Some(BrokerSecond { cpu_percent: 20.0, rss_kib: 5_000 }),
            latency: Encoded::unless_empty(&second_ns).unwrap(),
        };
        RunResult {
            format: FORMAT,
            name: "p2p, 20 clients".to_owned(),
            label: None,
            started_at: utc(1_795_380_245_000),
            started_unix_ms: 1_795_380_245_000,
            measured_unix_ms: Some(1_795_380_247_000),
            valid: true,
            invalid_because: Vec::new(),
            scenario: "p2p".to_owned(),
            qos: 1,
            clients: 20,
            publishers: 10,
            payload_bytes: 64,
            window: None,
            rate_per_s: Some(1_000.0),
            threads: 1,
            interrupted: false,
            measured_s: 2.0,
            sent: 2_000,
            received: 2_000,
            sent_per_s: 1_000.0,
            received_per_s: 1_000.0,
            latency_us,
            service_latency_us: latency_us,
            expected_total: 2_000,
            lost: 0,
            duplicated: 0,
            reordered: 0,
            foreign: 0,
            unacknowledged: 0,
            connect: Connects::new(20, 0.1, &histogram_ns),
            generator: Generator {
                cpu_percent: 50.0,
                cpu_us_per_message: Some(500.0),
                busiest_thread_percent: 50.0,
                busiest_receiving_percent: 0.0,
                schedule_slip_us: None,
                missed_deadlines: 0,
                scheduled: 2_000,
                saturated: false,
            },
            beside: Vec::new(),
            broker: Some(Broker {
                cpu_percent: 20.0,
                cpu_us_per_message: Some(200.0),
                rss_idle_kib: 4_000,
                rss_before_kib: 4_500,
                rss_after_kib: 5_000,
                kib_per_connection: 50.0,
            }),
            histograms: Histograms {
                latency: encoded.clone(),
                service_latency: encoded.clone(),
                connect: encoded,
                schedule_slip: None,
            },
            series: vec![point(0), point(1)],
            environment: Environment::here(),
            merged_from: Vec::new(),
            search: None,
        }
    }
}

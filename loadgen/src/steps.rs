//! Scenarios that are a sequence of steps, each with a beginning, an end and a rate: what a steady
//! load cannot show. Called by `main` instead of `run`; the clients are a `fleet`.
//!
//! The scenarios are in modules of their own; here is what they have in common, and the report.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::bail;
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::args::Args;
use crate::fleet::Fleet;
use crate::proc;
use crate::result::Percentiles;
use crate::run;
use crate::scenario::Scenario;
use crate::sequence::Account;
use crate::settings::{Pace, Settings};
use crate::table::{figures, grouped, heads, line};

mod offline;
mod reconnect;
mod retain;

/// Unacknowledged messages of one publisher where nobody says otherwise.
const WINDOW: u64 = 100;

/// The kernel counts CPU time in steps of 10 ms: less than this says nothing.
const SPENT_MIN: Duration = Duration::from_millis(50);

/// What a run of steps has shown, as `--json` prints it.
#[derive(Debug, Serialize)]
pub(crate) struct StepsReport {
    scenario: String,
    qos: u8,
    payload_bytes: usize,
    clients: usize,
    interrupted: bool,
    steps: Vec<Step>,
    expected_total: u64,
    lost: u64,
    duplicated: u64,
    reordered: u64,
    unacknowledged: u64,
}

/// One of them.
#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    /// What is counted.
    of: &'static str,
    count: u64,
    seconds: f64,
    per_s: f64,
    /// Of each single one, where it was measured.
    latency_us: Option<Percentiles>,
    /// Connections that were tried again.
    retries: u64,
    /// CPU time of the broker per one, where it spent enough to be measured.
    broker_cpu_us: Option<f64>,
    /// Its memory at the end.
    broker_rss_kib: Option<u64>,
}

/// What a scenario works with.
struct Stage<'a> {
    args: &'a Args,
    settings: &'a Settings,
    fleet: Fleet<'a>,
    publishers: usize,
    subscribers: usize,
    report: StepsReport,
}

/// A step under way.
#[derive(Clone, Copy)]
struct Begun {
    at_ns: u64,
    broker: Option<proc::Usage>,
}

/// Does what the arguments say. `stop` ends it early, with what there is.
pub(crate) fn run(args: &Args, stop: &AtomicBool) -> anyhow::Result<StepsReport> {
    let outputs = &args.outputs;
    let is_too_much = outputs.csv.is_some() || outputs.hgrm.is_some() || outputs.report.is_some();
    if is_too_much || !outputs.fail_if.is_empty() || args.conduct.search.is_some() {
        bail!(
            "{} is no steady load: --csv, --hgrm, --report, --fail-if and --search are not for it",
            args.scenario.name()
        );
    }
    let load = &args.load;
    if args.rate.or(load.rate_per_publisher).or(load.connect_rate).is_some() {
        bail!(
            "{} goes as fast as --window and --concurrent allow, not at a rate",
            args.scenario.name()
        );
    }
    let layout = args.layout()?;
    let clients = layout.clients.len();
    run::allow_files(clients, 1)?;
    let pace = Pace::Window(args.window.unwrap_or(WINDOW));
    let settings = run::settings(args, &layout, pace, 1)?;
    let mut stage = Stage {
        args,
        settings: &settings,
        fleet: Fleet::new(&settings, clients, stop)?,
        publishers: layout.publishers as usize,
        subscribers: clients - layout.publishers as usize,
        report: StepsReport {
            scenario: args.scenario.name(),
            qos: args.qos,
            payload_bytes: args.payload,
            clients,
            interrupted: false,
            steps: Vec::new(),
            expected_total: 0,
            lost: 0,
            duplicated: 0,
            reordered: 0,
            unacknowledged: 0,
        },
    };
    match args.scenario {
        Scenario::Offline => offline::run(&mut stage)?,
        Scenario::Retain => retain::run(&mut stage)?,
        _ => reconnect::run(&mut stage)?,
    }
    stage.report.interrupted = stop.load(std::sync::atomic::Ordering::Relaxed);
    Ok(stage.report)
}

impl Stage<'_> {
    fn begin(&self) -> anyhow::Result<Begun> {
        let broker = self.args.pid.map(proc::usage).transpose()?;
        Ok(Begun { at_ns: self.fleet.clock.now_ns(), broker })
    }

    /// Notes a step that ended at `end_ns`.
    fn end(
        &mut self,
        begun: Begun,
        end_ns: u64,
        (name, of): (&'static str, &'static str),
        count: u64,
    ) -> anyhow::Result<()> {
        let seconds = end_ns.saturating_sub(begun.at_ns) as f64 / 1e9;
        let broker = self.args.pid.map(proc::usage).transpose()?;
        let spent = begun.broker.zip(broker);
        let spent = spent.map(|(before, after)| after.cpu.saturating_sub(before.cpu));
        let spent = spent.filter(|spent: &Duration| *spent >= SPENT_MIN);
        self.report.steps.push(Step {
            name,
            of,
            count,
            seconds,
            per_s: count as f64 / seconds.max(1e-9),
            latency_us: None,
            retries: 0,
            broker_cpu_us: spent.map(|spent| spent.as_secs_f64() * 1e6 / count.max(1) as f64),
            broker_rss_kib: broker.map(|usage| usage.rss_bytes / 1024),
        });
        Ok(())
    }

    /// Adds to the last step how long each connection took.
    fn add_handshakes(&mut self) {
        let empty = Histogram::new_from(&self.fleet.connect_ns);
        let connect_ns = std::mem::replace(&mut self.fleet.connect_ns, empty);
        if let Some(step) = self.report.steps.last_mut() {
            step.latency_us = Percentiles::of(&connect_ns);
            step.retries = std::mem::take(&mut self.fleet.retries);
        }
    }

    /// Takes over what arrived of what was expected. Nothing is lost that nobody has waited for.
    fn settle_accounts(&mut self, expected: u64, account: Account) {
        let expected = if self.fleet.is_stopped() { account.unique } else { expected };
        self.report.expected_total = expected;
        self.report.lost = expected.saturating_sub(account.unique);
        self.report.duplicated = account.duplicated;
        self.report.reordered = account.reordered;
    }

    /// How many handshakes may be under way.
    fn concurrent(&self) -> usize {
        self.args.concurrent as usize
    }
}

impl StepsReport {
    /// A sentence for each promise of the QoS that was broken.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        let Self { qos, lost, duplicated, unacknowledged, expected_total, .. } = self;
        let mut broken = Vec::new();
        if *qos > 0 && *lost > 0 {
            broken.push(format!("{lost} of {expected_total} messages were lost at QoS {qos}"));
        }
        if *qos == 2 && *duplicated > 0 {
            broken.push(format!("{duplicated} messages arrived twice at QoS 2"));
        }
        if *qos > 0 && *unacknowledged > 0 {
            broken.push(format!("{unacknowledged} messages were not acknowledged"));
        }
        broken
    }
}

impl fmt::Display for StepsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scenario, qos, clients, payload_bytes, .. } = self;
        line(
            f,
            "scenario",
            format_args!("{scenario}, QoS {qos}, {clients} clients, {payload_bytes}-byte payloads"),
        )?;
        for step in &self.steps {
            step.fmt_line(f)?;
        }
        if self.expected_total > 0 {
            let Self { lost, duplicated, reordered, .. } = self;
            let expected = grouped(self.expected_total as f64);
            line(
                f,
                "whole run",
                format_args!(
                    "lost {lost}, duplicated {duplicated}, reordered {reordered} \
                     of {expected} deliveries"
                ),
            )?;
        }
        if self.interrupted {
            line(f, "interrupted", format_args!("this is what there was until then"))?;
        }
        Ok(())
    }
}

impl Step {
    fn fmt_line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, of, seconds, .. } = self;
        let (count, per_s) = (grouped(self.count as f64), grouped(self.per_s));
        let mut text = format!("{count} {of} in {seconds:.2} s ({per_s}/s)");
        if self.retries > 0 {
            text.push_str(&format!(", {} tried again", self.retries));
        }
        if let Some(us) = self.broker_cpu_us {
            text.push_str(&format!("; broker {us:.3} µs CPU each"));
        }
        if let Some(kib) = self.broker_rss_kib {
            text.push_str(&format!(", then {} KiB", grouped(kib as f64)));
        }
        line(f, name, format_args!("{text}"))?;
        if let Some(latency) = &self.latency_us {
            line(f, "  µs", format_args!("{}", heads()))?;
            line(f, "  each", format_args!("{}", figures(latency)))?;
        }
        Ok(())
    }
}

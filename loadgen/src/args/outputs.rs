//! The part of the command line that says what becomes of a result.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::threshold::Threshold;

/// What becomes of a result. The same for a run and for `loadgen merge`.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Result")]
pub(crate) struct Outputs {
    /// Print one JSON object instead of the table
    #[arg(long)]
    pub(crate) json: bool,

    /// Write the JSON object to a file, beside the table
    #[arg(long, value_name = "FILE.json")]
    pub(crate) out: Option<PathBuf>,

    /// Write the time series to a file, a line per second
    #[arg(long, value_name = "FILE.csv")]
    pub(crate) csv: Option<PathBuf>,

    /// Write the latency distribution to a file, in HdrHistogram's text format, in µs
    #[arg(long, value_name = "FILE.hgrm")]
    pub(crate) hgrm: Option<PathBuf>,

    /// Draw the result as an HTML page that needs nothing but its file
    #[arg(long, value_name = "FILE.html")]
    pub(crate) report: Option<PathBuf>,

    /// What to call the run in results [default: scenario, clients, QoS, payload and pace]
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,

    /// What to call the broker in results
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,

    /// Exit code 3 if this holds, as in 'p99>5ms'; may be repeated, and a void run never passes
    ///
    /// It compares by <, <=, > or >= one of p50, p90, p99, p99.9, p99.99 and max (with a unit: ns,
    /// us, ms or s; from the intended send time), lost, duplicated, reordered, received_per_s,
    /// connect_per_s and broker_cpu_us (per delivered message, with --pid).
    #[arg(long, value_name = "CONDITION")]
    pub(crate) fail_if: Vec<Threshold>,

    /// Exit code 4 if the run is void: the generator was saturated or missed its deadlines
    #[arg(long)]
    pub(crate) strict: bool,
}

/// How a run goes about it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Search and view")]
pub(crate) struct Conduct {
    /// Find the highest open-loop rate at which this holds and nothing is lost, as in 'p99<5ms'
    ///
    /// Takes p50, p90, p99, p99.9, p99.99 or max, from the intended send time. Doubles the rate
    /// from 1,000 messages/s until a run fails, then narrows it down to 5 %. A void run fails.
    #[arg(long, value_name = "BOUND", conflicts_with_all = ["rate", "rate_per_publisher", "window"],
          value_parser = Threshold::parse_bound)]
    pub(crate) search: Option<Threshold>,

    /// Seconds that each step of the search measures, after a second of warm-up at most
    #[arg(long, value_name = "S", default_value = "3", value_parser = super::some_seconds)]
    pub(crate) search_step_s: Duration,

    /// Show nothing while it runs
    #[arg(long)]
    pub(crate) quiet: bool,
}

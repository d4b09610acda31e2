//! The part of the command line that says what becomes of a result.

use std::path::PathBuf;

use clap::Args;

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

    /// What to call the run in results [default: scenario, clients, QoS, payload and pace]
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,

    /// What to call the broker in results
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
}

//! What the load generator does with results that it has already.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Outputs;

/// Besides running a load.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Merge the results of processes, on one machine or several, that ran at the same time
    Merge(Merge),
    /// Draw any number of results as one HTML page that needs nothing but its file
    Report(Report),
}

/// `loadgen merge`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Merge {
    /// Results that --out or --json wrote
    #[arg(required = true, num_args = 2.., value_name = "RESULT.json")]
    pub(crate) results: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) outputs: Outputs,
}

/// `loadgen report`.
#[derive(Args, Clone, Debug)]
pub(crate) struct Report {
    /// Results that --out or --json wrote
    #[arg(required = true, value_name = "RESULT.json")]
    pub(crate) results: Vec<PathBuf>,

    /// The page
    #[arg(long, value_name = "FILE.html")]
    pub(crate) out: PathBuf,
}

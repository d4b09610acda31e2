//! What the load generator does with results that it has already.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::Outputs;

/// Besides running a load.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Command {
    /// Merge the results of processes, on one machine or several, that ran at the same time
    Merge(Merge),
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

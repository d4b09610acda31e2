//! The load generator: measures any MQTT broker over its sockets.
//!
//! ```text
//! args ── steps ── fleet              scenarios that are a sequence of steps
//! args ── run ──┬── worker ──┬── ramp ── handshake   connecting
//!               │            ├── client ── block  sockets, frames to be written
//!               │            ├── receive ── sequence, payload   what arrives
//!               │            └── pacing ── window, schedule     what may leave
//!               ├── beside ── fleet               what goes on beside the load
//!               ├── phase, settings               what the threads share
//!               ├── live                          what is shown meanwhile
//!               ├── slice ── recorder, tally      what was measured
//!               └── result ── table, csv, hgrm, page ── output   what becomes of it
//! ```

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::args::{Args, Command, Merge, Outputs, Report};
use crate::presets::Preset;
use crate::result::{Part, RunResult};

mod args;
mod beside;
mod block;
mod client;
mod clock;
mod csv;
mod fleet;
mod handshake;
mod hgrm;
mod live;
mod output;
mod page;
mod payload;
mod phase;
mod ping;
mod presets;
mod proc;
mod receive;
mod recorder;
mod result;
mod run;
mod scenario;
mod schedule;
mod search;
mod sequence;
mod settings;
mod slice;
mod source;
mod steps;
mod table;
mod tally;
mod threshold;
mod timer;
mod window;
mod worker;

/// The run could not be done.
const EXIT_NO_RUN: u8 = 2;

fn main() -> ExitCode {
    let args = Args::read(std::env::args_os().collect()).unwrap_or_else(|error| error.exit());
    let done = match &args.command {
        None if args.load.list_presets => list_presets(),
        None => measure(&args),
        Some(Command::Merge(arguments)) => merge(arguments),
        Some(Command::Report(arguments)) => report(arguments),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(EXIT_NO_RUN)
        }
    }
}

fn list_presets() -> anyhow::Result<ExitCode> {
    io::stdout().write_all(Preset::list().as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

fn measure(args: &Args) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The first signal ends the run with a report, the second one ends the process.
        flag::register_conditional_default(signal, Arc::clone(&stop)).context("signals")?;
        flag::register(signal, Arc::clone(&stop)).context("signals")?;
    }
    if args.scenario.is_steps() {
        return output::publish_steps(&steps::run(args, &stop)?, &args.outputs);
    }
    let result = match &args.conduct.search {
        Some(bound) => search::search(args, bound, &stop)?,
        None => RunResult::new(args, &run::run(args, &stop).map_err(|failure| failure.error)?)?,
    };
    output::publish(&result, &args.outputs)
}

fn merge(arguments: &Merge) -> anyhow::Result<ExitCode> {
    let read = |path: &PathBuf| {
        Ok(Part { file: path.display().to_string(), result: RunResult::read(path)? })
    };
    let parts = arguments.results.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let mut merged = result::merge(&parts)?;
    let Outputs { name, label, .. } = &arguments.outputs;
    merged.name = name.clone().unwrap_or(merged.name);
    merged.label = label.clone().or(merged.label);
    output::publish(&merged, &arguments.outputs)
}

fn report(arguments: &Report) -> anyhow::Result<ExitCode> {
    let read = |path: &PathBuf| RunResult::read(path);
    let results = arguments.results.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    output::write_page(&arguments.out, &results)?;
    Ok(ExitCode::SUCCESS)
}

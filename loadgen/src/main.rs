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
//!               └── tally ── report               what was measured
//! ```

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::args::Args;
use crate::presets::Preset;
use crate::report::Report;

mod args;
mod beside;
mod block;
mod client;
mod clock;
mod fleet;
mod handshake;
mod payload;
mod phase;
mod ping;
mod presets;
mod proc;
mod receive;
mod report;
mod run;
mod scenario;
mod schedule;
mod sequence;
mod settings;
mod source;
mod steps;
mod tally;
mod timer;
mod window;
mod worker;

/// The run could not be done.
const EXIT_NO_RUN: u8 = 2;
/// The broker broke a promise of the QoS.
const EXIT_BROKEN_PROMISE: u8 = 1;

fn main() -> ExitCode {
    let args = Args::read(std::env::args_os().collect()).unwrap_or_else(|error| error.exit());
    let done = if args.load.list_presets { list_presets() } else { measure(&args) };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("loadgen: {error:#}");
            ExitCode::from(EXIT_NO_RUN)
        }
    }
}

fn list_presets() -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(Preset::list().as_bytes())?;
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
        let report = steps::run(args, &stop)?;
        return print(args.json, &report, &report.broken_promises());
    }
    let outcome = run::run(args, &stop)?;
    let report = Report::new(args, &outcome);
    print(args.json, &report, &report.broken_promises())
}

fn print<R: Display + Serialize>(
    json: bool,
    report: &R,
    broken: &[String],
) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    if json {
        writeln!(stdout, "{}", serde_json::to_string(report)?)?;
    } else {
        write!(stdout, "{report}")?;
    }
    drop(stdout);
    for sentence in broken {
        eprintln!("loadgen: {sentence}");
    }
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN_PROMISE) })
}

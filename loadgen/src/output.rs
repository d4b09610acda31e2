//! Where a result goes: table or JSON on standard output, files beside it, sentences on standard
//! error, and the exit code.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::args::Outputs;
use crate::result::{Encoded, RunResult};
use crate::table::Table;
use crate::tally::histogram;
use crate::{csv, hgrm};

/// The broker broke a promise of the QoS.
const EXIT_BROKEN_PROMISE: u8 = 1;

/// Prints and writes a result as it is asked for.
pub(crate) fn publish(result: &RunResult, outputs: &Outputs) -> anyhow::Result<ExitCode> {
    let mut stdout = std::io::stdout().lock();
    if outputs.json {
        writeln!(stdout, "{}", result.to_json()?)?;
    } else {
        write!(stdout, "{}", Table(result))?;
    }
    stdout.flush()?;
    if let Some(path) = &outputs.out {
        write_file(path, |file| Ok(writeln!(file, "{}", result.to_json()?)?))?;
    }
    if let Some(path) = &outputs.csv {
        write_file(path, |file| Ok(csv::write(file, &result.series)?))?;
    }
    if let Some(path) = &outputs.hgrm {
        let latency = result.histograms.latency.as_ref();
        let latency_ns = latency.map_or_else(|| Ok(histogram()?), Encoded::decode)?;
        write_file(path, |file| Ok(hgrm::write(file, &latency_ns)?))?;
    }
    Ok(exit_code(result))
}

/// Says on standard error what is wrong with a result.
fn exit_code(result: &RunResult) -> ExitCode {
    let broken = result.broken_promises();
    for sentence in &broken {
        eprintln!("loadgen: {sentence}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN_PROMISE) }
}

fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let shown = path.display();
    let file = File::create(path).with_context(|| format!("{shown} cannot be written"))?;
    let mut file = BufWriter::new(file);
    write(&mut file).with_context(|| format!("{shown} cannot be written"))?;
    file.flush().with_context(|| format!("{shown} cannot be written"))
}

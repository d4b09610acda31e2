//! Where a result goes: table or JSON on standard output, files beside it, sentences on standard
//! error, and the exit code.

use std::fs::File;
use std::io::{BufWriter, StdoutLock, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::args::Outputs;
use crate::result::{Encoded, RunResult};
use crate::steps::StepsReport;
use crate::table::Table;
use crate::tally::histogram;
use crate::{csv, hgrm, page};

/// The broker broke a promise of the QoS.
const EXIT_BROKEN_PROMISE: u8 = 1;
/// A condition of `--fail-if` holds, or the bound of `--search` at no rate.
const EXIT_FAILED: u8 = 3;
/// The run says nothing about the broker.
const EXIT_VOID: u8 = 4;

/// Prints and writes a result as it is asked for.
pub(crate) fn publish(result: &RunResult, outputs: &Outputs) -> anyhow::Result<ExitCode> {
    // What cannot be written is no reason to lose the rest: each is tried.
    let mut written = vec![print(|out| match outputs.json {
        true => Ok(writeln!(out, "{}", result.to_json()?)?),
        false => Ok(write!(out, "{}", Table(result))?),
    })];
    if let Some(path) = &outputs.out {
        written.push(write_file(path, |file| Ok(writeln!(file, "{}", result.to_json()?)?)));
    }
    if let Some(path) = &outputs.csv {
        written.push(write_file(path, |file| Ok(csv::write(file, &result.series)?)));
    }
    if let Some(path) = &outputs.hgrm {
        let latency = result.histograms.latency.as_ref();
        let latency_ns = latency.map_or_else(|| Ok(histogram()?), Encoded::decode)?;
        written.push(write_file(path, |file| Ok(hgrm::write(file, &latency_ns)?)));
    }
    if let Some(path) = &outputs.report {
        written.push(write_page(path, std::slice::from_ref(result)));
    }
    let verdict = verdict(result, outputs);
    written.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(verdict)
}

/// Prints and writes what the steps of a scenario have shown.
pub(crate) fn publish_steps(report: &StepsReport, outputs: &Outputs) -> anyhow::Result<ExitCode> {
    let json = serde_json::to_string(report)?;
    let mut written = vec![print(|out| match outputs.json {
        true => Ok(writeln!(out, "{json}")?),
        false => Ok(write!(out, "{report}")?),
    })];
    if let Some(path) = &outputs.out {
        written.push(write_file(path, |file| Ok(writeln!(file, "{json}")?)));
    }
    let broken = report.broken_promises();
    for sentence in &broken {
        eprintln!("loadgen: {sentence}");
    }
    written.into_iter().collect::<anyhow::Result<()>>()?;
    Ok(if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN_PROMISE) })
}

/// Draws results as a page.
pub(crate) fn write_page(path: &Path, results: &[RunResult]) -> anyhow::Result<()> {
    let page = page::render(results)?;
    write_file(path, |file| Ok(file.write_all(page.as_bytes())?))
}

/// The exit code; says on standard error what it comes from.
fn verdict(result: &RunResult, outputs: &Outputs) -> ExitCode {
    let broken = result.broken_promises();
    let failed = outputs.fail_if.iter().filter_map(|threshold| threshold.failure(result));
    let nowhere = result.search.as_ref().filter(|search| search.highest_per_s.is_none());
    let failed: Vec<String> = nowhere
        .map(|search| format!("{} held at no rate", search.bound))
        .into_iter()
        .chain(failed)
        .collect();
    let must_be_valid = outputs.strict || !outputs.fail_if.is_empty();
    for sentence in &broken {
        eprintln!("loadgen: {sentence}");
    }
    for sentence in &failed {
        eprintln!("loadgen: failed: {sentence}");
    }
    if must_be_valid {
        for reason in &result.invalid_because {
            eprintln!("loadgen: void: {reason}");
        }
    }
    ExitCode::from(match () {
        () if !broken.is_empty() => EXIT_BROKEN_PROMISE,
        () if !failed.is_empty() => EXIT_FAILED,
        () if must_be_valid && !result.valid => EXIT_VOID,
        () => return ExitCode::SUCCESS,
    })
}

fn print(write: impl FnOnce(&mut StdoutLock<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = write(&mut stdout).and_then(|()| Ok(stdout.flush()?));
    written.context("standard output cannot be written")
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

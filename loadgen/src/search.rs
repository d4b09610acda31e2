//! The search for the highest rate that a broker sustains within a bound: doubles the rate until a
//! run fails, then halves the interval between the last rate that held and the first that did not.
//!
//! Every step is a run of its own, with fresh connections. A step that fails is done once more
//! before it counts, because one hiccup of the machine must not set the limit. A step whose load
//! does not even begin, because the broker has gone or ports are used up, ends the search: it would
//! fail at any rate.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::args::Args;
use crate::result::{RunResult, Search, Step};
use crate::run::{self, Failure};
use crate::scenario::Scenario;
use crate::table::grouped;
use crate::threshold::{Threshold, micros};

const FIRST_PER_S: f64 = 1_000.0;
const LEAST_PER_S: f64 = 1.0;
const MOST_PER_S: f64 = 5e7;
/// The answer and the lowest rate that failed are no further apart.
const PRECISION: f64 = 1.05;
const WARMUP_MAX: Duration = Duration::from_secs(1);
/// Runs at one rate before it has failed.
const ATTEMPTS: usize = 2;
/// How the reason of a void step begins.
const VOID: &str = "void: ";

/// Searches; the result is that of the best step, or of the last one if none held.
pub(crate) fn search(
    args: &Args,
    bound: &Threshold,
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<RunResult> {
    if args.scenario == Scenario::Connect {
        bail!("--search looks for a rate of messages, and connect has none");
    }
    let mut hunt = Hunt::default();
    let mut steps = Vec::new();
    let mut best: Option<RunResult> = None;
    let mut last = None;
    let mut ended_early = None;
    while ended_early.is_none()
        && let Some(rate) = hunt.next()
    {
        let mut step = None;
        for _ in 0..ATTEMPTS {
            let tried = attempt(args, bound, rate, stop);
            if stop.load(Ordering::Relaxed) {
                ended_early = Some("it was interrupted".to_owned());
                break;
            }
            // A broker that breaks under a rate has failed at it; one that is not there has not.
            let (result, because) = match tried {
                Ok(tried) => tried,
                Err(failure) if best.is_none() && last.is_none() => return Err(failure.error),
                Err(Failure { error, under_load: false }) => {
                    ended_early = Some(format!("{error:#}"));
                    break;
                }
                Err(Failure { error, .. }) => (None, Some(format!("{error:#}"))),
            };
            let done = Step::new(rate, because, result.as_ref());
            say(args, &line(&done))?;
            let held = done.held;
            steps.push(done);
            step = Some(held);
            if held {
                best = result;
                break;
            }
            last = result.or(last);
        }
        let Some(held) = step else { break };
        if !held && stop.load(Ordering::Relaxed) {
            break;
        }
        hunt.learn(rate, held);
    }
    say(args, &answer(bound, &hunt, &steps, ended_early.as_deref()))?;
    let highest_per_s = best.as_ref().and(hunt.held);
    let mut result = best.or(last).context("the search was interrupted in its first step")?;
    result.search = Some(Search { bound: bound.to_string(), highest_per_s, ended_early, steps });
    Ok(result)
}

/// One run at a rate, and why it failed if it did.
fn attempt(
    args: &Args,
    bound: &Threshold,
    rate: f64,
    stop: &Arc<AtomicBool>,
) -> Result<(Option<RunResult>, Option<String>), Failure> {
    let mut args = args.clone();
    args.rate = Some(rate);
    args.duration = args.conduct.search_step_s;
    args.warmup = args.warmup.min(WARMUP_MAX);
    let result = RunResult::new(&args, &run::run(&args, stop)?)
        .map_err(|error| Failure { error, under_load: true })?;
    let because = failure(bound, &result);
    Ok((Some(result), because))
}

/// A void run has not shown that the broker sustains the rate.
fn failure(bound: &Threshold, result: &RunResult) -> Option<String> {
    let lost = (result.lost > 0).then(|| format!("{} lost", grouped(result.lost as f64)));
    let void = result.invalid_because.first().map(|reason| format!("{VOID}{reason}"));
    let broken = result.broken_promises().into_iter().next();
    lost.or(broken).or_else(|| bound.excess(result)).or(void)
}

/// Where the search stands.
#[derive(Debug, Default)]
struct Hunt {
    held: Option<f64>,
    failed: Option<f64>,
}

impl Hunt {
    /// The rate to try, unless the answer is known.
    fn next(&self) -> Option<f64> {
        match (self.held, self.failed) {
            (None, None) => Some(FIRST_PER_S),
            (Some(held), None) => (held * 2.0 <= MOST_PER_S).then_some(held * 2.0),
            (None, Some(failed)) => (failed / 4.0 >= LEAST_PER_S).then_some(failed / 4.0),
            (Some(held), Some(failed)) => {
                (failed / held > PRECISION).then(|| round((held * failed).sqrt()))
            }
        }
    }

    fn learn(&mut self, rate: f64, held: bool) {
        *(if held { &mut self.held } else { &mut self.failed }) = Some(rate);
    }
}

/// To three digits: more would be noise.
fn round(rate: f64) -> f64 {
    let scale = 10_f64.powf(rate.log10().floor() - 2.0);
    (rate / scale).round() * scale
}

fn line(step: &Step) -> String {
    let rate = grouped(step.rate_per_s);
    let figures = step.latency_us.map_or_else(String::new, |latency| {
        format!("p50 {}, p99 {}", micros(latency.p50), micros(latency.p99))
    });
    match &step.because {
        None => format!("{rate:>12}/s  held    {figures}"),
        Some(because) => format!("{rate:>12}/s  failed  {figures}; {because}"),
    }
}

fn answer(bound: &Threshold, hunt: &Hunt, steps: &[Step], ended_early: Option<&str>) -> String {
    let (rate, failed) = (hunt.held.map(grouped), hunt.failed.map(grouped));
    let mut answer = match (rate, failed) {
        (Some(rate), Some(failed)) => {
            format!("{bound} holds up to {rate} messages/s, and not at {failed}\n")
        }
        (Some(rate), None) => format!("{bound} holds at {rate} messages/s, the highest tried\n"),
        (None, Some(failed)) => format!("{bound} does not even hold at {failed} messages/s\n"),
        (None, None) => "no rate was tried to the end\n".to_owned(),
    };
    // What decided is the last step at the lowest rate that failed.
    let last = steps.iter().rfind(|step| Some(step.rate_per_s) == hunt.failed);
    if last.is_some_and(|step| step.because.as_ref().is_some_and(|why| why.starts_with(VOID))) {
        answer.push_str("Above that the run was void: this may be the generator's limit, or a busy machine's.\n");
    }
    if let Some(because) = ended_early {
        answer.push_str(&format!("The search ended early: {because}\n"));
    }
    answer
}

/// Beside the table; with --json, standard output holds the object alone.
fn say(args: &Args, text: &str) -> anyhow::Result<()> {
    if args.outputs.json {
        eprintln!("{text}");
    } else {
        writeln!(std::io::stdout(), "{text}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::result;

    #[test]
    fn the_answer_is_within_five_percent_below_the_limit() {
        for limit in [4.0, 700.0, 1_000.0, 48_000.0, 1_234_567.0, 3e7] {
            let (held, steps) = hunt(limit);
            let held = held.unwrap();
            assert!(held <= limit && limit < held * 1.06, "{held} of {limit}");
            assert!(steps < 25, "{steps} steps to {limit}");
        }
    }

    #[test]
    fn a_broker_that_holds_nothing_and_one_that_holds_everything_end_the_search() {
        assert_eq!(hunt(0.5).0, None);
        let (held, steps) = hunt(f64::MAX);
        assert!(held.unwrap() * 2.0 > MOST_PER_S && steps < 20, "{held:?}");
    }

    #[test]
    fn a_step_fails_by_latency_by_loss_and_when_it_is_void() {
        let bound = Threshold::parse_bound("p99<5ms").unwrap();
        let mut run = result(1_000_000);
        assert_eq!(failure(&bound, &run), None);
        run.invalid_because = vec!["too late".to_owned()];
        assert_eq!(failure(&bound, &run).unwrap(), "void: too late");
        assert_eq!(failure(&bound, &result(9_000_000)).unwrap(), "p99 9.00 ms");
        run.lost = 1_000;
        assert_eq!(failure(&bound, &run).unwrap(), "1,000 lost");
        let mut run = result(1_000_000);
        run.unacknowledged = 7;
        assert_eq!(failure(&bound, &run).unwrap(), "7 messages were not acknowledged");
    }

    #[test]
    fn an_answer_that_a_void_run_decided_says_so() {
        let bound = Threshold::parse_bound("p99<5ms").unwrap();
        let hunt = Hunt { held: Some(1_000.0), failed: Some(1_050.0) };
        let step = |because: &str| Step::new(1_050.0, Some(because.to_owned()), None);
        let slow = answer(&bound, &hunt, &[step("void: too late"), step("p99 9.00 ms")], None);
        assert_eq!(slow, "p99<5ms holds up to 1,000 messages/s, and not at 1,050\n");
        let void = answer(&bound, &hunt, &[step("p99 9.00 ms"), step("void: too late")], None);
        assert!(void.starts_with(&slow) && void.contains("the generator's limit"), "{void}");
        let gone = answer(&bound, &hunt, &[step("p99 9.00 ms")], Some("no broker answers"));
        assert_eq!(gone, format!("{slow}The search ended early: no broker answers\n"));
    }

    fn hunt(limit: f64) -> (Option<f64>, usize) {
        let mut hunt = Hunt::default();
        let mut steps = 0;
        while let Some(rate) = hunt.next() {
            hunt.learn(rate, rate <= limit);
            steps += 1;
        }
        (hunt.held, steps)
    }
}

//! Results as one HTML page: a table of the runs and charts that compare them. Nothing outside of
//! the file is needed to look at it. Written by `--report` and `loadgen report`.

use std::collections::BTreeSet;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use self::chart::Size;
use self::charts::Run;
use crate::result::{Percentiles, RunResult};
use crate::table::grouped;
use crate::threshold::micros;

mod axis;
mod chart;
mod charts;

const STYLE: &str = include_str!("page/style.css");
/// What fits beside a chart.
const NAME_CHARS_MAX: usize = 23;
const NAME_HEAD_CHARS: usize = 10;

/// The page of some results.
pub(crate) fn render(results: &[RunResult]) -> anyhow::Result<String> {
    let runs = numbered(results);
    let title = match common_name(results) {
        Some(name) => name.to_owned(),
        None => format!("{} runs compared", results.len()),
    };
    let charts = drawn(&runs)?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p.soft { (whereabouts(results)) }
                }
                (table(&runs, common_name(results).is_some()))
                (charts)
                @for run in &runs { (details(run)) }
            }
        }
    };
    Ok(page.into_string())
}

/// What all runs are called, if that is the same.
fn common_name(results: &[RunResult]) -> Option<&str> {
    let (first, others) = results.split_first()?;
    others.iter().all(|other| other.name == first.name).then_some(first.name.as_str())
}

/// With names that tell them apart: the broker's, what differs in the run's, or both.
fn numbered(results: &[RunResult]) -> Vec<Run<'_>> {
    let own: Vec<String> = results.iter().map(|result| different(&result.name, results)).collect();
    let labels: Vec<String> =
        results.iter().map(|result| result.label.clone().unwrap_or_default()).collect();
    let both: Vec<String> = labels
        .iter()
        .zip(&own)
        .map(|(label, own)| match label.is_empty() || own.is_empty() {
            true => format!("{label}{own}"),
            false => format!("{label}, {own}"),
        })
        .collect();
    let tell = |names: &[String]| {
        let different: BTreeSet<&String> = names.iter().filter(|name| !name.is_empty()).collect();
        different.len() == results.len()
    };
    let names = [labels, own, both.clone()].into_iter().find(|names| tell(names));
    let numbered = || {
        let numbered = both.iter().zip(1..);
        numbered.map(|(name, number)| format!("{number}. {name}").trim_end().to_owned()).collect()
    };
    let names = names.unwrap_or_else(numbered);
    let runs = results.iter().enumerate().zip(names);
    runs.map(|((number, result), name)| Run { number, name: shortened(&name), result }).collect()
}

/// Without the words that are in the names of all.
fn different(name: &str, results: &[RunResult]) -> String {
    let common = |word: &&str| {
        results.iter().all(|result| result.name.split(", ").any(|other| other == *word))
    };
    if results.len() < 2 {
        return name.to_owned();
    }
    let kept: Vec<&str> = name.split(", ").filter(|word| !common(word)).collect();
    kept.join(", ")
}

/// The beginning says which broker, and the end which load: what is too much is in the middle.
fn shortened(name: &str) -> String {
    let chars = name.chars().count();
    if chars <= NAME_CHARS_MAX {
        return name.to_owned();
    }
    let head: String = name.chars().take(NAME_HEAD_CHARS).collect();
    let tail = chars - (NAME_CHARS_MAX - NAME_HEAD_CHARS - 1);
    let tail: String = name.chars().skip(tail).collect();
    let blank = [' ', ','];
    format!("{}…{}", head.trim_end_matches(blank), tail.trim_start_matches(blank))
}

/// When and where, as far as all results agree.
fn whereabouts(results: &[RunResult]) -> String {
    let mut words = Vec::new();
    let latest = results.iter().map(|result| result.started_at.as_str()).max();
    if let Some(latest) = latest {
        words.push(latest.replace('T', " ").replace('Z', " UTC"));
    }
    let environments = || results.iter().map(|result| &result.environment);
    let same = |of: &dyn Fn(&crate::result::Environment) -> Option<String>| -> Option<String> {
        let mut all = environments().map(of);
        let first = all.next().flatten()?;
        all.all(|other| other.as_ref() == Some(&first)).then_some(first)
    };
    words.extend(same(&|here| Some(format!("{} cores", here.cores))));
    words.extend(same(&|here| here.cpu.clone()));
    words.extend(same(&|here| here.kernel.clone()));
    words.extend(same(&|here| Some(format!("loadgen {}", here.loadgen))));
    words.join(" · ")
}

/// A column with figures: its head, its unit, whether less is better, and the figure of a run.
struct Column {
    head: &'static str,
    unit: &'static str,
    better: Better,
    figure: fn(&RunResult) -> Option<f64>,
    text: fn(f64) -> String,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Better {
    Less,
    More,
    Neither,
}

fn at(result: &RunResult, of: fn(&Percentiles) -> f64) -> Option<f64> {
    result.latency_us.as_ref().map(of)
}

const COLUMNS: [Column; 9] = [
    Column {
        head: "sent",
        unit: "per s",
        better: Better::Neither,
        figure: |result| (result.publishers > 0).then_some(result.sent_per_s),
        text: grouped,
    },
    Column {
        head: "received",
        unit: "per s",
        better: Better::More,
        figure: |result| (result.publishers > 0).then_some(result.received_per_s),
        text: grouped,
    },
    Column {
        head: "p50",
        unit: "latency",
        better: Better::Less,
        figure: |result| at(result, |latency| latency.p50),
        text: micros,
    },
    Column {
        head: "p99",
        unit: "latency",
        better: Better::Less,
        figure: |result| at(result, |latency| latency.p99),
        text: micros,
    },
    Column {
        head: "p99.9",
        unit: "latency",
        better: Better::Less,
        figure: |result| at(result, |latency| latency.p99_9),
        text: micros,
    },
    Column {
        head: "max",
        unit: "latency",
        better: Better::Less,
        figure: |result| at(result, |latency| latency.max),
        text: micros,
    },
    Column {
        head: "broker CPU",
        unit: "µs per message",
        better: Better::Less,
        figure: |result| result.broker.and_then(|broker| broker.cpu_us_per_message),
        text: |us| format!("{us:.3}"),
    },
    Column {
        head: "broker memory",
        unit: "KiB per connection",
        better: Better::Less,
        figure: |result| {
            let broker = result.broker.filter(|_| result.publishers == 0);
            broker.map(|broker| broker.kib_per_connection)
        },
        text: |kib| format!("{kib:.1}"),
    },
    Column {
        head: "connects",
        unit: "per s",
        better: Better::Neither,
        figure: |result| Some(result.connect.per_s),
        text: grouped,
    },
];

/// Names that all runs have are left to the title, and figures that none has are left out.
fn table(runs: &[Run<'_>], is_titled: bool) -> Markup {
    let is_shown = |column: &&Column| runs.iter().any(|run| (column.figure)(run.result).is_some());
    let columns: Vec<&Column> = COLUMNS.iter().filter(is_shown).collect();
    html! {
        div.scroll {
            table {
                thead {
                    tr {
                        th { "run" }
                        @for column in &columns { th { (column.head) small { (column.unit) } } }
                        th { "lost" small { "messages" } }
                        th { "valid" }
                    }
                }
                tbody { @for run in runs { (row(run, runs, &columns, is_titled)) } }
            }
        }
    }
}

fn row(run: &Run<'_>, runs: &[Run<'_>], columns: &[&Column], is_titled: bool) -> Markup {
    let result = run.result;
    let key = if result.valid { "key" } else { "key void" };
    let colour = format!("border-color: var(--c{})", chart::number_of_colour(run.number));
    let reasons = &result.invalid_because;
    html! {
        tr class=[(!reasons.is_empty()).then_some("explained")] {
            td {
                div.run {
                    span class=(key) style=(colour) {}
                    div {
                        @match &result.label {
                            Some(label) if is_titled => (label),
                            Some(label) => { (label) small { (result.name) } }
                            None => (result.name),
                        }
                    }
                }
            }
            @for column in columns { (cell(column, run, runs)) }
            td class=[(result.lost > 0).then_some("bad")] { (grouped(result.lost as f64)) }
            @if result.valid { td { "yes" } } @else { td.bad { "void" } }
        }
        @for reason in reasons { tr { td.reason colspan=(columns.len() + 3) { "void: " (reason) } } }
    }
}

/// The best figure of valid runs stands out; a bar shows how the figures compare.
fn cell(column: &Column, run: &Run<'_>, runs: &[Run<'_>]) -> Markup {
    let Some(value) = (column.figure)(run.result) else {
        return html! { td.soft { "–" } };
    };
    let all = || runs.iter().filter_map(|run| (column.figure)(run.result));
    let valid = runs.iter().filter(|run| run.result.valid);
    let valid = valid.filter_map(|run| (column.figure)(run.result));
    let best = match column.better {
        Better::Less => valid.reduce(f64::min),
        Better::More => valid.reduce(f64::max),
        Better::Neither => None,
    };
    let is_best = run.result.valid && runs.len() > 1 && best == Some(value);
    let most = all().fold(0.0, f64::max);
    let text = (column.text)(value);
    if runs.len() == 1 || most <= 0.0 || column.better == Better::Neither {
        return html! { td { (text) } };
    }
    let share = format!("--share: {:.1}%", value / most * 100.0);
    html! {
        td.bar style=(share) { @if is_best { b { (text) } } @else { (text) } }
    }
}

fn drawn(runs: &[Run<'_>]) -> anyhow::Result<Markup> {
    let figures = [
        (
            charts::latency(runs)?,
            "From the moment at which a message was meant to leave until it arrived. So much of all \
             messages took no longer than the line; towards the right are the slowest few.",
        ),
        (charts::throughput(runs), "Per second. The shaded part is the warm-up."),
        (
            charts::latency_over_time(runs),
            "Of the messages that arrived in each second, 99 in 100 took no longer.",
        ),
        (charts::broker_cpu(runs), "More than 100 % is more than one core."),
        (
            charts::searched(runs),
            "Messages per second that the search has tried; the pointer tells what held.",
        ),
        (
            charts::service(runs)?,
            "From the moment at which a message really left. The rest of the latency above it spent \
             waiting to be sent.",
        ),
        (
            charts::connecting(runs)?,
            "From asking for a connection until the broker accepted the client.",
        ),
        (charts::arrivals(runs), "Per second, since the first connection."),
    ];
    let mut drawn = Vec::new();
    for (chart, words) in figures {
        let Some(chart) = chart else { continue };
        let svg = chart.svg()?;
        let whole = (chart.size == Size::Whole).then_some("whole");
        drawn.push(html! {
            figure class=[whole] {
                figcaption { h2 { (chart.title) } p { (words) } }
                (PreEscaped(svg))
            }
        });
    }
    Ok(html! { div.figures { @for figure in drawn { (figure) } } })
}

/// What another run needs to be the same.
fn details(run: &Run<'_>) -> Markup {
    let result = run.result;
    let here = &result.environment;
    let optional = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".to_owned());
    html! {
        details {
            summary {
                @if let Some(label) = &result.label { (label) ", " }
                (result.name)
            }
            dl {
                dt { "command" } dd { code { "loadgen " (here.arguments.join(" ")) } }
                dt { "started" } dd { (result.started_at) }
                dt { "load" } dd {
                    (result.scenario) ", " (result.clients) " clients, QoS " (result.qos) ", "
                    (result.payload_bytes) " B, measured for " (format!("{:.1}", result.measured_s)) " s"
                }
                dt { "deliveries" } dd {
                    (grouped(result.expected_total as f64)) " expected, " (grouped(result.lost as f64))
                    " lost, " (grouped(result.duplicated as f64)) " duplicated, "
                    (grouped(result.reordered as f64)) " reordered"
                }
                @if let Some(broker) = &result.broker {
                    dt { "broker" } dd {
                        (format!("{:.0}", broker.cpu_percent)) " % CPU; "
                        (grouped(broker.rss_idle_kib as f64)) " KiB before connecting, "
                        (grouped(broker.rss_before_kib as f64)) " KiB connected, "
                        (grouped(broker.rss_after_kib as f64)) " KiB after the load"
                    }
                }
                dt { "generator" } dd {
                    (format!("{:.0}", result.generator.cpu_percent)) " % CPU, threads: "
                    (result.threads) "; loadgen " (here.loadgen)
                }
                dt { "machine" } dd {
                    (optional(&here.host)) ", " (here.cores) " cores, " (optional(&here.cpu)) ", "
                    (optional(&here.kernel))
                }
                @for source in &result.merged_from {
                    dt { "part" } dd {
                        (source.file) ", started " (source.started_at) " on "
                        (optional(&source.environment.host))
                    }
                }
                @if let Some(search) = &result.search {
                    @for step in &search.steps {
                        dt { (grouped(step.rate_per_s)) "/s" } dd {
                            @match &step.because {
                                None => { (search.bound) " held" }
                                Some(because) => { "failed: " (because) }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::result;
    use crate::result::{Search, Step};

    #[test]
    fn a_page_stands_alone_and_shows_every_run() {
        let mut slow = result(3_000_000);
        slow.label = Some("<b>slow</b>".to_owned());
        slow.valid = false;
        slow.invalid_because = vec!["it was interrupted".to_owned()];
        let page = render(&[result(50_000), slow]).unwrap();
        assert!(page.starts_with("<!DOCTYPE html>"));
        for outside in ["src=", "href=", "@import", "url(", "<script", "<b>slow"] {
            assert!(!page.contains(outside), "{outside} is in the page");
        }
        for text in ["p2p, 20 clients", "&lt;b&gt;slow&lt;/b&gt;", "void: it was interrupted"] {
            assert!(page.contains(text), "{text} is not in the page");
        }
        assert_eq!(page.matches("<svg ").count(), 6);
    }

    #[test]
    fn a_search_and_a_long_time_of_connecting_have_charts_of_their_own() {
        let mut long = result(50_000);
        let step = |rate: f64| Step::new(rate, None, Some(&result(50_000)));
        let failed = Step::new(1_000.0, Some("slow".to_owned()), Some(&result(9_000)));
        let steps = vec![step(2_000.0), failed, step(1_000.0)];
        long.search = Some(Search {
            bound: "p99<5ms".to_owned(),
            highest_per_s: None,
            ended_early: None,
            steps,
        });
        for point in &mut long.series {
            (point.phase, point.connected) = (crate::result::PointPhase::Connect, 10);
        }
        let page = render(&[long]).unwrap();
        assert!(!page.contains("/s: p99 9 µs, failed"));
        for text in ["p99 latency by rate", "2,000 messages/s: p99", "10 connected per second"] {
            assert!(page.contains(text), "{text} is not in the page");
        }
    }

    #[test]
    fn results_with_nothing_in_them_still_make_a_page() {
        let mut empty = result(1);
        (empty.latency_us, empty.service_latency_us, empty.broker) = (None, None, None);
        empty.histograms = crate::result::Histograms::default();
        empty.series.clear();
        empty.publishers = 0;
        let page = render(&[empty]).unwrap();
        assert_eq!(page.matches("<svg ").count(), 0);
        assert!(!page.contains("received") && page.contains("connects"));
        assert!(render(&[]).unwrap().contains("0 runs"));
    }

    #[test]
    fn strange_figures_do_not_break_a_page() {
        for figure in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let mut strange = result(1);
            for point in &mut strange.series {
                (point.at_s, point.received_per_s) = (figure, figure);
                (point.latency_us, point.broker) = (
                    Some(crate::result::Spread { p50: figure, p99: figure, max: figure }),
                    Some(crate::result::BrokerSecond { cpu_percent: figure, rss_kib: 1 }),
                );
            }
            let _ = render(&[strange]);
        }
    }

    #[test]
    fn names_are_those_that_tell_the_runs_apart() {
        let named = |label: Option<&str>, name: &str| {
            let mut result = result(1);
            (result.label, result.name) = (label.map(str::to_owned), name.to_owned());
            result
        };
        for (results, names) in [
            ([named(Some("a"), "x"), named(Some("b"), "x")], ["a", "b"]),
            ([named(Some("a"), "x"), named(Some("a"), "y")], ["x", "y"]),
            ([named(None, "x, 9 clients"), named(None, "y, 9 clients")], ["x", "y"]),
            ([named(None, "x"), named(None, "x")], ["1.", "2."]),
        ] {
            let runs = numbered(&results);
            assert_eq!([&runs[0].name, &runs[1].name], names);
        }
        let long = "mosquitto, p2p, 20 clients, QoS 1, 64 B, window 100";
        assert_eq!(shortened(long), "mosquitto…window 100");
        assert_eq!(shortened("p2p, 20 clients"), "p2p, 20 clients");
    }
}

//! What becomes of a result: files, merging, thresholds, search, pages.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use super::{Fault, broker, loadgen, loadgen_for, report, stderr};

#[test]
fn a_result_holds_its_series_its_histograms_and_where_it_comes_from() {
    let pid = std::process::id().to_string();
    let arguments = ["--json", "--rate", "1000", "--label", "a broker", "--pid", &pid];
    let result = report(&loadgen_for("1.2", broker(Fault::None), &arguments));
    assert_eq!((&result["format"], &result["label"]), (&1.into(), &"a broker".into()));

    let series = result["series"].as_array().unwrap();
    let phases: Vec<&str> = series.iter().map(|point| point["phase"].as_str().unwrap()).collect();
    for phase in ["connect", "warm_up", "measure"] {
        assert!(phases.contains(&phase), "{phases:?}");
    }
    let sum = |phase: &str, field: &str| -> f64 {
        let points = series.iter().filter(|point| point["phase"] == phase);
        points.map(|point| point[field].as_f64().unwrap()).sum()
    };
    assert_eq!(sum("measure", "sent"), result["sent"].as_f64().unwrap());
    assert_eq!(sum("measure", "received"), result["received"].as_f64().unwrap());
    assert_eq!(sum("connect", "connected"), 10.0);
    let full = series.iter().find(|point| point["phase"] == "measure").unwrap();
    assert_eq!(full["at_s"], 0.0);
    assert_eq!(full["length_s"], 1.0);
    assert!(full["latency_us"]["p99"].as_f64() >= full["latency_us"]["p50"].as_f64());
    assert!(full["broker"]["rss_kib"].as_u64() > Some(0), "{full}");

    for name in ["latency", "service_latency", "connect", "schedule_slip"] {
        let text = result["histograms"][name].as_str().unwrap();
        assert!(text.starts_with("HISTF"), "{name}: {text}");
    }
    let at = |name: &str, percentile: &str| result[name][percentile].as_f64().unwrap();
    assert!(at("latency_us", "p50") >= at("service_latency_us", "p50"), "{result}");

    let environment = &result["environment"];
    assert!(environment["cores"].as_u64() > Some(0), "{environment}");
    assert!(environment["arguments"].as_array().unwrap().contains(&"1000".into()));
    assert!(result["started_at"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn in_a_closed_loop_both_latencies_are_the_same_and_given_once() {
    let result = report(&loadgen(broker(Fault::None), &["--json"]));
    assert!(result["latency_us"]["p50"].as_f64() > Some(0.0));
    assert_eq!(result["service_latency_us"], Value::Null);
}

#[test]
fn files_are_written_beside_the_table() {
    let folder = Folder::new("files");
    let [out, csv, hgrm] = ["r.json", "r.csv", "r.hgrm"].map(|name| folder.file(name));
    let arguments = ["--out", &out, "--csv", &csv, "--hgrm", &hgrm];
    let output = loadgen(broker(Fault::None), &arguments);
    assert!(String::from_utf8_lossy(&output.stdout).contains("messages/s"), "{output:?}");
    let result: Value = serde_json::from_str(&fs::read_to_string(&out).unwrap()).unwrap();
    let series = result["series"].as_array().unwrap().len();
    assert_eq!(fs::read_to_string(&csv).unwrap().lines().count(), series + 1);
    assert!(fs::read_to_string(&hgrm).unwrap().contains("1/(1-Percentile)"));
}

#[test]
fn a_file_that_cannot_be_written_is_named_after_all_others_were() {
    let folder = Folder::new("others");
    let csv = folder.file("r.csv");
    let arguments = ["--out", "/nowhere/r.json", "--csv", &csv];
    let output = loadgen(broker(Fault::None), &arguments);
    assert_eq!(output.status.code(), Some(2));
    assert!(fs::read_to_string(&csv).unwrap().contains("measure"));
    assert!(String::from_utf8_lossy(&output.stdout).contains("messages/s"));
    assert!(stderr(&output).contains("/nowhere/r.json"), "{}", stderr(&output));
}

#[test]
fn two_processes_at_the_same_time_are_merged_to_one_result() {
    let folder = Folder::new("merge");
    let broker = broker(Fault::None);
    let [a, b] = ["a.json", "b.json"].map(|name| folder.file(name));
    std::thread::scope(|scope| {
        for (out, topics) in [(&a, "a"), (&b, "b")] {
            let arguments = ["--rate", "500", "--qos", "1", "--out", out, "--topic-prefix", topics];
            scope.spawn(move || loadgen_for("2", broker, &arguments));
        }
    });
    let output = run(&["merge", &a, &b, "--json"]);
    let merged = report(&output);
    let [a, b] = [a, b]
        .map(|path| -> Value { serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap() });
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let sum = |field: &str| a[field].as_u64().unwrap() + b[field].as_u64().unwrap();
    for field in ["sent", "received", "clients", "expected_total"] {
        assert_eq!(merged[field].as_u64(), Some(sum(field)), "{field}");
    }
    assert_eq!(merged["merged_from"].as_array().unwrap().len(), 2);
    assert_eq!(merged["rate_per_s"], 1_000.0);
}

#[test]
fn a_run_that_shares_its_topics_with_another_is_void() {
    let broker = broker(Fault::None);
    let arguments = ["--rate", "500", "--json"];
    let reports = std::thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(move || loadgen_for("2", broker, &arguments)));
        runs.map(|run| report(&run.join().unwrap()))
    });
    for report in reports {
        assert!(report["foreign"].as_u64() > Some(0), "{report}");
        assert_eq!(report["valid"], false);
        assert!(report["invalid_because"].to_string().contains("--topic-prefix"), "{report}");
        assert_eq!(report["lost"], 0);
    }
}

#[test]
fn results_that_cannot_be_merged_are_refused_with_a_sentence() {
    let folder = Folder::new("refused");
    let broker = broker(Fault::None);
    let [a, b, c] = ["a.json", "b.json", "c.json"].map(|name| folder.file(name));
    loadgen(broker, &["--out", &a]);
    loadgen(broker, &["--out", &b, "--qos", "1"]);
    fs::write(&c, "{\"format\": 7}").unwrap();
    for (other, words) in [
        (&b, "the QoS is 0 in one and 1 in the other"),
        (&a, "are the same run"),
        (&c, "it has format 7"),
        (&folder.file("d.json"), "d.json cannot be read"),
    ] {
        let output = run(&["merge", &a, other]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(words), "{}", stderr(&output));
    }
}

#[test]
fn a_condition_that_holds_is_exit_code_3_and_a_sentence_each() {
    let arguments = ["--rate", "500", "--fail-if", "p50>1ns", "--fail-if", "received_per_s>=1"];
    let output = loadgen(broker(Fault::None), &arguments);
    assert_eq!(output.status.code(), Some(3));
    let sentences = stderr(&output);
    assert!(sentences.contains("failed: p50 is"), "{sentences}");
    assert!(sentences.contains("failed: received_per_s is"), "{sentences}");
}

#[test]
fn a_condition_that_is_none_is_refused_before_the_run() {
    let output = run(&["--fail-if", "p98>5ms"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("one of p50, p90"), "{}", stderr(&output));
}

#[test]
fn a_void_run_passes_no_threshold_and_no_strict_check() {
    // The schedule asks for more than any machine can do.
    let unreachable = ["--rate", "90000000", "--clients", "2"];
    let broker = broker(Fault::None);
    for (more, code) in [
        (&["--strict"][..], 4),
        (&["--fail-if", "duplicated>0"], 4),
        (&["--fail-if", "duplicated>=0"], 3),
        (&[], 0),
    ] {
        let arguments = [&unreachable[..], more].concat();
        let output = loadgen(broker, &arguments);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {}", stderr(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains("VOID"), "{output:?}");
    }
}

#[test]
fn a_search_prints_its_steps_and_returns_the_best_one() {
    // Everything over 2,500 messages in a run ends the connection: a rate that no step sustains.
    let arguments = ["--search", "p99<10s", "--search-step-s", "0.3", "--json", "--clients", "2"];
    let output = loadgen(broker(Fault::CloseAfter(2_500)), &arguments);
    let result = report(&output);
    let steps = result["search"]["steps"].as_array().unwrap();
    assert_eq!(stderr(&output).matches("/s  held").count(), held(steps).len(), "{output:?}");
    // On a machine that is busy with other things even the first step may be void.
    let highest = held(steps).into_iter().reduce(f64::max);
    assert_eq!(result["search"]["highest_per_s"].as_f64(), highest);
    assert_eq!(output.status.code(), Some(if highest.is_some() { 0 } else { 3 }));
    if highest.is_some() {
        assert_eq!(result["rate_per_s"].as_f64(), highest);
    }
    assert!(steps.iter().any(|step| step["because"].as_str().is_some()), "{result}");
}

#[test]
fn a_bound_that_no_rate_keeps_is_exit_code_3() {
    let arguments = ["--search", "p99<1ns", "--search-step-s", "0.1"];
    let output = loadgen(broker(Fault::None), &arguments);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("p99<1ns held at no rate"), "{}", stderr(&output));
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("does not even hold at"), "{printed}");
}

fn held(steps: &[Value]) -> Vec<f64> {
    let held = steps.iter().filter(|step| step["held"] == true);
    held.map(|step| step["rate_per_s"].as_f64().unwrap()).collect()
}

#[test]
fn nothing_of_the_live_view_goes_into_a_pipe() {
    let output = loadgen_for("1.3", broker(Fault::None), &[]);
    assert_eq!(stderr(&output), "");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("measuring"), "{output:?}");
}

#[test]
fn a_page_of_a_run_and_a_page_of_several_results_are_written() {
    let folder = Folder::new("page");
    let broker = broker(Fault::None);
    let [a, b, one, both] =
        ["a.json", "b.json", "one.html", "both.html"].map(|name| folder.file(name));
    loadgen_for("1.2", broker, &["--label", "broker one", "--out", &a, "--report", &one]);
    loadgen_for("1.2", broker, &["--label", "broker two", "--out", &b]);
    let output = run(&["report", "--out", &both, &a, &b]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let [one, both] = [one, both].map(|path| fs::read_to_string(path).unwrap());
    assert!(one.contains("broker one") && !one.contains("broker two"));
    for text in ["broker one", "broker two", "Latency by percentile", "99 %"] {
        assert!(both.contains(text), "{text} is not in the page");
    }
}

/// Without a broker.
fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadgen")).args(arguments).output().unwrap()
}

/// Removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("loadgen-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

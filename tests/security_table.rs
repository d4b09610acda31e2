//! Every row of the threat table in docs/security.md names tests that exist, and every test it names is run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../docs/security.md");

/// Names of all tests below `dir`: functions under a `#[test]` or `#[tokio::test]`, or within `proptest!`.
fn tests_below(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let signature = line.strip_prefix("async ").unwrap_or(line);
                if let Some(rest) = signature.strip_prefix("fn ") {
                    if is_test {
                        names.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
                    }
                    is_test = false;
                }
            }
        }
    }
}

/// Threat and shown-by column of each row.
fn rows() -> Vec<(&'static str, &'static str)> {
    let below = PAGE.split_once("## Threats").unwrap().1;
    let lines = below.lines().skip_while(|line| !line.starts_with("|---"));
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    let cells = |line: &'static str| line.trim_matches('|').split(" | ").collect::<Vec<_>>();
    rows.map(|line| match cells(line)[..] {
        [threat, _, shown_by] => (threat.trim(), shown_by.trim()),
        _ => panic!("a row has three columns: {line}"),
    })
    .collect()
}

#[test]
fn every_threat_names_tests_that_exist() {
    let mut tests = BTreeSet::new();
    for dir in ["src", "tests"] {
        tests_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut tests);
    }
    let rows = rows();
    assert!(rows.len() >= 20, "only {} rows were found", rows.len());
    for (threat, shown_by) in rows {
        // Odd parts of a text with backquotes are what is quoted.
        let named: Vec<&str> = shown_by.split('`').skip(1).step_by(2).collect();
        assert!(!named.is_empty(), "no test is named for: {threat}");
        for name in named {
            assert!(tests.contains(name), "there is no test `{name}`, named for: {threat}");
        }
    }
}

//! Every row of the threat table in docs/security.md names tests that exist, and every test it names is run.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod sources;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use sources::collect;

const PAGE: &str = include_str!("../docs/security.md");

/// Names of all tests in `path`: functions under a `#[test]` or `#[tokio::test]`.
fn tests_in(path: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in fs::read_to_string(path).unwrap().lines().map(str::trim) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        let signature = line.strip_prefix("async ").unwrap_or(line);
        if let Some(rest) = signature.strip_prefix("fn ") {
            if is_test {
                names.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
            }
            is_test = false;
        }
    }
    names
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
    let mut paths = Vec::new();
    for dir in ["src", "tests"] {
        collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut paths);
    }
    let tests: BTreeSet<String> = paths.iter().flat_map(|path| tests_in(path)).collect();
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

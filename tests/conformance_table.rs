//! Which test proves which statement of the standards: checks it, and keeps `docs/conformance.md`.
//!
//! The statements come from `docs/spec/*-statements.txt`, the tests are every `#[test]` of `tests/` and
//! `src/`, and a test proves the statements that the comment directly above it names: `[MQTT-3.1.2-4]` of
//! MQTT 5.0, `[MQTT-3.1.2-4 of 3.1.1]` of MQTT 3.1.1. A test that is ignored proves nothing. What nobody
//! can test has a line in `docs/spec/untested.txt`.
//!
//! `just conformance` sets `MAILBOXQTT_WRITE_TABLE`, which writes the document instead of comparing it, and
//! `just conformance --addr HOST:PORT` runs [`verdicts_on_another_broker`].
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod sources;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};

use sources::collect;

const TABLE: &str = "docs/conformance.md";
const INTRODUCTION: &str = "docs/spec/introduction.md";
const UNTESTED: &str = "docs/spec/untested.txt";

/// Where the tests are that can be pointed at another broker.
const PORTABLE: &str = "conformance::";
/// How `tests/it/broker.rs` begins the message of a test that cannot.
const SKIPPED: &str = "skipped: ";

#[test]
fn every_statement_that_binds_a_server_has_a_test_or_a_reason() {
    let book = Book::read();
    let mistakes = mistakes(&book);
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn table_in_the_documentation_is_the_one_of_these_tests() {
    let table = table(&Book::read(), &text(INTRODUCTION));
    if std::env::var_os("MAILBOXQTT_WRITE_TABLE").is_some() {
        return fs::write(root().join(TABLE), table).unwrap();
    }
    let kept = fs::read_to_string(root().join(TABLE)).unwrap_or_default();
    assert!(kept == table, "{TABLE} is not up to date: run `just conformance`");
}

/// Runs the portable tests against the broker at `MAILBOXQTT_TEST_ADDR` and prints a line for each. Exit code
/// 1 says that one failed.
#[test]
#[ignore = "for `just conformance --addr HOST:PORT`"]
fn verdicts_on_another_broker() {
    assert!(std::env::var_os("MAILBOXQTT_TEST_ADDR").is_some(), "MAILBOXQTT_TEST_ADDR is not set");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--quiet", "--test", "it", "--"]);
    // What this broker does not do yet, another one may.
    cargo.args(["--include-ignored", "--format", "pretty", PORTABLE]);
    cargo.env("RUST_BACKTRACE", "0").current_dir(root()).stderr(Stdio::inherit());
    let output = cargo.output().unwrap();
    let verdicts = verdicts(&String::from_utf8_lossy(&output.stdout));
    assert!(!verdicts.is_empty(), "cargo test: {}", output.status);

    let tests = Book::read().tests;
    let mut counts = BTreeMap::new();
    println!();
    for (name, verdict) in &verdicts {
        let test = tests.iter().find(|test| test.name == *name);
        let proves: Vec<String> = test.iter().flat_map(|test| &test.proves).map(full_id).collect();
        println!("{:7}  {name}  {}", verdict.word(), proves.join(" "));
        if let Verdict::Failed(why) = verdict {
            println!("         {}", why.trim().replace('\n', "\n         "));
        }
        *counts.entry(verdict.word()).or_insert(0) += 1;
    }
    let count = |word| counts.get(word).copied().unwrap_or(0);
    println!(
        "\n{} passed, {} failed, {} skipped",
        count("passed"),
        count("failed"),
        count("skipped")
    );
    exit((count("failed") > 0).into());
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Version {
    V5,
    V311,
}

use Version::{V5, V311};

impl Version {
    fn name(self) -> &'static str {
        match self {
            V5 => "5.0",
            V311 => "3.1.1",
        }
    }
}

/// A statement: which standard, and the identifier in it.
type Id = (Version, String);

/// As a comment writes it.
fn full_id((version, id): &Id) -> String {
    match version {
        V5 => format!("[{id}]"),
        V311 => format!("[{id} of 3.1.1]"),
    }
}

struct Statement {
    id: Id,
    /// `server`, `client` or `both`.
    binds: String,
    subject: String,
    /// Number and title.
    chapter: String,
}

#[derive(Debug, Eq, PartialEq)]
struct Test {
    /// From the root of the repository.
    path: String,
    /// As the test binary prints it, for `tests/`.
    name: String,
    is_ignored: bool,
    proves: Vec<Id>,
}

/// Everything that the table is made of.
struct Book {
    /// In the order of the standards.
    statements: Vec<Statement>,
    tests: Vec<Test>,
    untested: BTreeMap<Id, String>,
}

impl Book {
    fn read() -> Self {
        let mut statements = statements(V5, &text("docs/spec/mqtt-5.0-statements.txt"));
        statements.extend(statements_of_311());
        let mut paths = Vec::new();
        for folder in ["src", "tests"] {
            collect(&root().join(folder), &mut paths);
        }
        let relative = |path: &PathBuf| path.strip_prefix(root()).unwrap().to_owned();
        let mut paths: Vec<PathBuf> = paths.iter().map(relative).collect();
        // The tests in this file are made up, and say nothing about the broker.
        paths.retain(|path| path != Path::new("tests/conformance_table.rs"));
        paths.sort();
        let tests = paths.iter().flat_map(|path| {
            let path = path.to_str().unwrap();
            tests(path, &text(path))
        });
        Self { statements, tests: tests.collect(), untested: untested(&text(UNTESTED)) }
    }

    /// The tests of a statement that run.
    fn proofs(&self, id: &Id) -> Vec<&Test> {
        let proves = |test: &&Test| !test.is_ignored && test.proves.contains(id);
        self.tests.iter().filter(proves).collect()
    }
}

fn statements_of_311() -> Vec<Statement> {
    statements(V311, &text("docs/spec/mqtt-3.1.1-statements.txt"))
}

fn statements(version: Version, text: &str) -> Vec<Statement> {
    let mut chapter = String::new();
    let mut statements = Vec::new();
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            chapter = title.to_owned();
        } else if !line.is_empty() && !line.starts_with('#') {
            let [id, binds, subject] = fields(line);
            let (id, chapter) = ((version, id.to_owned()), chapter.clone());
            let (binds, subject) = (binds.to_owned(), subject.to_owned());
            statements.push(Statement { id, binds, subject, chapter });
        }
    }
    statements
}

fn untested(text: &str) -> BTreeMap<Id, String> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut reasons = BTreeMap::new();
    for line in lines {
        let [id, version, why] = fields(line);
        let version = [V5, V311].into_iter().find(|known| known.name() == version);
        let version = version.unwrap_or_else(|| panic!("{UNTESTED}: no such version: `{line}`"));
        let earlier = reasons.insert((version, id.to_owned()), why.to_owned());
        assert_eq!(earlier, None, "{UNTESTED}: {id} is there twice");
    }
    reasons
}

fn fields(line: &str) -> [&str; 3] {
    let fields: Vec<&str> = line.split('\t').collect();
    fields.try_into().unwrap_or_else(|_| panic!("not three fields: `{line}`"))
}

/// The tests of a source file.
fn tests(path: &str, text: &str) -> Vec<Test> {
    let mut tests = Vec::new();
    let mut comment = String::new();
    let mut is_test = false;
    let mut is_ignored = false;
    for line in text.lines().map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            comment.push_str(words);
            continue;
        }
        match line {
            "#[test]" | "#[tokio::test]" => is_test = true,
            _ if line.starts_with("#[ignore") => is_ignored = true,
            // Another attribute, or one that goes over several lines: up to the function.
            _ if is_test && !line.contains("fn ") => (),
            _ if line.starts_with("#[") => (),
            _ => {
                if is_test {
                    let name = line.split_once("fn ").map_or("", |(_, rest)| rest);
                    let name = name.split('(').next().unwrap_or_default();
                    let name = format!("{}{name}", module(path));
                    let proves = ids(&comment);
                    tests.push(Test { path: path.to_owned(), name, is_ignored, proves });
                }
                comment.clear();
                (is_test, is_ignored) = (false, false);
            }
        }
    }
    tests
}

/// `conformance::connect::` for `tests/it/conformance/connect.rs`: the file within its crate.
fn module(path: &str) -> String {
    let path = path.trim_end_matches(".rs");
    let inner = match path.strip_prefix("tests/") {
        Some(path) => path.split_once('/').map_or("", |(_, inner)| inner),
        None => path.trim_start_matches("src/"),
    };
    match inner {
        "" | "main" | "lib" => String::new(),
        inner => format!("{}::", inner.replace('/', "::")),
    }
}

/// The statements that a comment names.
fn ids(comment: &str) -> Vec<Id> {
    let bracketed = comment.split('[').skip(1).filter_map(|rest| Some(rest.split_once(']')?.0));
    let named = bracketed.filter(|text| text.starts_with("MQTT-"));
    named
        .map(|text| match text.strip_suffix(" of 3.1.1") {
            Some(id) => (V311, id.to_owned()),
            None => (V5, text.to_owned()),
        })
        .collect()
}

/// What is wrong with the proof.
fn mistakes(book: &Book) -> Vec<String> {
    let mut mistakes = Vec::new();
    let known: BTreeSet<&Id> = book.statements.iter().map(|statement| &statement.id).collect();
    for test in &book.tests {
        for id in test.proves.iter().filter(|id| !known.contains(id)) {
            let (path, name) = (&test.path, &test.name);
            mistakes.push(format!("{path}: {name}: there is no {}", full_id(id)));
        }
    }
    for id in book.untested.keys() {
        if !known.contains(id) {
            mistakes.push(format!("{UNTESTED}: there is no {}", full_id(id)));
        } else if let Some(test) = book.proofs(id).first() {
            mistakes.push(format!("{UNTESTED}: {} proves {}", test.name, full_id(id)));
        }
    }
    for Statement { id, binds, subject, .. } in &book.statements {
        if binds != "client" && book.proofs(id).is_empty() && !book.untested.contains_key(id) {
            mistakes.push(format!("no test proves {}: {subject}", full_id(id)));
        }
    }
    mistakes
}

fn table(book: &Book, introduction: &str) -> String {
    let mut table = String::from(introduction);
    for version in [V5, V311] {
        let all: Vec<&Statement> =
            book.statements.iter().filter(|statement| statement.id.0 == version).collect();
        let due: Vec<_> = all.iter().filter(|statement| statement.binds != "client").collect();
        let proved = due.iter().filter(|statement| !book.proofs(&statement.id).is_empty()).count();
        let _ = writeln!(table, "\n# MQTT {}\n", version.name());
        let _ = writeln!(
            table,
            "{} statements; {} bind a server, of which {proved} have a test and {} cannot be tested.",
            all.len(),
            due.len(),
            due.len() - proved,
        );
        let mut chapter = "";
        for statement in all {
            if statement.chapter != chapter {
                chapter = &statement.chapter;
                let _ = writeln!(
                    table,
                    "\n## {chapter}\n\n| statement | binds | in short | proved by |"
                );
                table.push_str("|---|---|---|---|\n");
            }
            let Statement { id, binds, subject, .. } = statement;
            let proof = proof(book, statement);
            let _ = writeln!(table, "| {} | {binds} | {subject} | {proof} |", id.1);
        }
    }
    table
}

/// The last cell of a statement's row.
fn proof(book: &Book, statement: &Statement) -> String {
    let link = |test: &&Test| {
        let name = test.name.strip_prefix(PORTABLE).unwrap_or(&test.name);
        format!("[{name}](../{})", test.path)
    };
    let links: Vec<String> = book.proofs(&statement.id).iter().map(link).collect();
    match book.untested.get(&statement.id) {
        Some(why) => format!("*no test: {why}*"),
        None if links.is_empty() => "–".to_owned(),
        None => links.join("<br>"),
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Verdict {
    Passed,
    /// What the test said.
    Failed(String),
    Skipped,
}

impl Verdict {
    fn word(&self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed(_) => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// Reads what a test binary prints.
fn verdicts(output: &str) -> BTreeMap<String, Verdict> {
    let mut verdicts = BTreeMap::new();
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some((name, word)) = line.strip_prefix("test ").and_then(|it| it.split_once(" ... "))
        {
            let verdict = match word {
                "ok" => Verdict::Passed,
                _ => Verdict::Failed(String::new()),
            };
            verdicts.insert(name.to_owned(), verdict);
        }
        let Some(name) = line.strip_prefix("---- ").and_then(|it| it.strip_suffix(" stdout ----"))
        else {
            continue;
        };
        let mut words = String::new();
        while let Some(line) =
            lines.next_if(|line| !line.starts_with("---- ") && *line != "failures:")
        {
            words.push_str(line);
            words.push('\n');
        }
        let is_skipped = words.contains(SKIPPED);
        let verdict = if is_skipped { Verdict::Skipped } else { Verdict::Failed(words) };
        verdicts.insert(name.to_owned(), verdict);
    }
    verdicts
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

mod rules_can_fail {
    use super::*;

    const SOURCE: &str = "
/// Both. [MQTT-1.5.4-1] [MQTT-1.5.3-1 of
/// 3.1.1]
#[test]
#[cfg_attr(
    any(),
    ignore
)]
fn proves_two() {
    /// Not a test. [MQTT-1.5.4-2]
    fn inner() {}
}

/// [MQTT-1.5.4-3]
#[test]
#[ignore = \"broken\"]
fn proves_nothing() {}

/// Not a test either. [MQTT-1.5.5-1]
fn helper() {}
";

    fn book(source: &str, untested_lines: &str) -> Book {
        let text = "## 1.5 Data\nA-1\tboth\tone\nA-2\tclient\ttwo\n";
        let text = text.replace("A-", "MQTT-1.5.4-");
        let tests = tests("tests/it/conformance/structure.rs", source);
        Book { statements: statements(V5, &text), tests, untested: untested(untested_lines) }
    }

    #[test]
    fn comment_directly_above_a_test_says_what_it_proves() {
        let found = tests("tests/it/conformance/structure.rs", SOURCE);
        let [first, second] = &found[..] else { panic!("{found:?}") };
        assert_eq!(first.name, "conformance::structure::proves_two");
        let id = |version, id: &str| (version, id.to_owned());
        assert_eq!(first.proves, [id(V5, "MQTT-1.5.4-1"), id(V311, "MQTT-1.5.3-1")]);
        assert!(!first.is_ignored && second.is_ignored);
        assert_eq!(module("tests/it/main.rs"), "");
        assert_eq!(module("tests/tidy.rs"), "");
        assert_eq!(module("src/codec/ack.rs"), "codec::ack::");
    }

    #[test]
    fn each_mistake_is_found() {
        let proof = "/// [MQTT-1.5.4-1]\n#[test]\nfn proof() {}\n";
        assert_eq!(mistakes(&book(proof, "")), [""; 0]);
        let ignored = proof.replace("#[test]", "#[test]\n#[ignore = \"why\"]");
        let unknown = proof.replace("4-1]", "4-1] [MQTT-1.5.4-9]");
        let of_the_other = proof.replace("4-1]", "4-1] [MQTT-1.5.4-1 of 3.1.1]");
        for (source, untested, mistake) in [
            ("", "", "no test proves [MQTT-1.5.4-1]"),
            (&ignored, "", "no test proves [MQTT-1.5.4-1]"),
            (&unknown, "", "there is no [MQTT-1.5.4-9]"),
            (&of_the_other, "", "there is no [MQTT-1.5.4-1 of 3.1.1]"),
            (proof, "MQTT-1.5.4-1\t5.0\twhy", "proof proves [MQTT-1.5.4-1]"),
            (proof, "MQTT-1.5.4-1\t3.1.1\twhy", "there is no [MQTT-1.5.4-1 of 3.1.1]"),
        ] {
            let found = mistakes(&book(source, untested));
            assert!(found.len() == 1 && found[0].contains(mistake), "{mistake}: {found:?}");
        }
        assert_eq!(mistakes(&book("", "MQTT-1.5.4-1\t5.0\twhy")), [""; 0]);
    }

    #[test]
    fn verdicts_are_read_from_what_a_test_binary_prints() {
        let output = "\
running 3 tests
test conformance::a::one ... ok
test conformance::a::two ... FAILED
test conformance::a::three ... FAILED

failures:

---- conformance::a::two stdout ----

thread panicked at a.rs:1:1:
skipped: needs a broker of our own, with settings

---- conformance::a::three stdout ----
thread panicked at a.rs:2:2:
left and right

failures:
    conformance::a::three
    conformance::a::two
";
        let verdicts = verdicts(output);
        assert_eq!(verdicts["conformance::a::one"], Verdict::Passed);
        assert_eq!(verdicts["conformance::a::two"], Verdict::Skipped);
        let Verdict::Failed(why) = &verdicts["conformance::a::three"] else {
            panic!("{verdicts:?}")
        };
        assert_eq!(why.trim(), "thread panicked at a.rs:2:2:\nleft and right");
    }
}

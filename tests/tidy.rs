//! House rules that the compiler cannot see, run by `cargo test` like everything else.
//!
//! [`FLOORS`] is at the same time the map of the architecture. Each rule is a function of one
//! [`SourceFile`], tried below on small made-up sources that break it: a rule that cannot fail
//! checks nothing.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod sources;

use std::fs;
use std::path::Path;

use sources::collect;

/// One line per file or folder directly under `src`. A module imports only from lower floors; on
/// the floors of [`ORDERED`] also from lines further up in this list.
const FLOORS: &[(&str, u8)] = &[
    ("ids", 0),
    ("topic", 0),
    ("message", 0),
    ("metrics", 0),
    ("codec", 1),
    ("record", 1),
    ("access", 1),
    ("session", 2),
    ("subscriptions", 2),
    ("retained", 2),
    ("auth", 3),
    ("store", 3),
    ("router", 4),
    ("net", 5),
    ("sys", 5),
    ("config", 6),
    ("broker", 6),
    ("service", 6),
    ("main", 6),
    ("lib", 6),
];

/// Words are made of words and wiring of wiring; rules and edges do not know each other.
const ORDERED: &[u8] = &[0, 6];

/// Floors up to here are pure: state and rules, nothing that acts.
const PURE_FLOOR_MAX: u8 = 2;
/// The load generator speaks the wire and knows nothing of the broker.
const LOADGEN_FLOOR_MAX: u8 = 1;
/// A file beyond this holds two nouns.
const FILE_LINES_MAX: usize = 600;

/// Words that mean I/O, threads, chance or a clock.
const IMPURE: &[&str] = &[
    "tokio",
    "flume",
    "rand::",
    "std::net",
    "std::fs",
    "std::thread",
    "SystemTime",
    "Instant::now",
];

/// A word, where it may be said (a file, or a folder with its slash), and what to do instead.
const BANNED: &[(&str, &[&str], &str)] = &[
    ("anyhow", &["src/main.rs", "loadgen/"], "make an error enum"),
    (
        "dashmap",
        &["src/subscriptions/", "src/router/registry.rs"],
        "its guards must not leave the trie and the registry",
    ),
    ("redb", &["src/store/database.rs"], "go through the tables"),
    (
        "rustls",
        &["src/net/tls.rs", "src/net/tls/", "src/auth/", "src/main.rs"],
        "go through `net::tls`",
    ),
    ("tungstenite", &["src/net/websocket.rs", "src/net/upgrade.rs"], "go through `net::websocket`"),
    ("ppp::", &["src/net/proxy.rs"], "go through `net::proxy`"),
];

/// Names of drawers: everything fits in, so nothing is found.
const DRAWERS: &[&str] = &["utils", "common", "types", "helpers", "manager"];

#[test]
fn modules_import_only_from_lower_floors() {
    check("src", imports_go_down);
}

#[test]
fn load_generator_uses_words_and_wire_only() {
    check("loadgen/src", loadgen_stays_low);
}

#[test]
fn floors_zero_to_two_are_pure() {
    check("src", is_pure);
}

#[test]
fn banned_words_stay_where_they_belong() {
    check("src", says_no_banned_word);
    check("loadgen/src", says_no_banned_word);
}

#[test]
fn files_are_named_after_what_they_own_and_say_what_they_are_and_fit_in_one_head() {
    for root in ["src", "loadgen/src"] {
        check(root, is_no_drawer);
        check(root, opens_with_words);
    }
    check("src", is_short);
}

#[test]
fn every_module_has_a_floor_and_every_floor_a_module() {
    let mut modules: Vec<String> = files("src").into_iter().map(|file| file.module).collect();
    modules.sort();
    modules.dedup();
    let mut floors: Vec<&str> = FLOORS.iter().map(|(module, _)| *module).collect();
    floors.sort_unstable();
    assert_eq!(modules, floors);
}

/// The file without its tests and comments, and what its path says.
struct SourceFile {
    /// From the root of the repository.
    path: String,
    /// `session` for both `src/session.rs` and `src/session/window.rs`.
    module: String,
    text: String,
    code: String,
}

type Verdict = Result<(), String>;

fn imports_go_down(file: &SourceFile) -> Verdict {
    let (line, floor) = place(&file.module).ok_or("has no line in FLOORS")?;
    for target in imported(&file.code, "crate::") {
        let Some((line_there, there)) = place(target) else { continue };
        let is_below =
            there < floor || there == floor && ORDERED.contains(&floor) && line_there < line;
        if target != file.module && !is_below {
            return Err(format!("floor {floor} imports `{target}` on floor {there}"));
        }
    }
    let is_root = file.path.matches('/').count() == 1 || file.path.ends_with("/mod.rs");
    if file.code.contains("super::super::") || is_root && file.code.contains("super::") {
        return Err("leaves its module by `super::`: say `crate::`".to_owned());
    }
    Ok(())
}

fn loadgen_stays_low(file: &SourceFile) -> Verdict {
    let too_high = |target: &&str| floor(target).is_none_or(|floor| floor > LOADGEN_FLOOR_MAX);
    match imported(&file.code, "mailboxqtt::").into_iter().find(too_high) {
        Some(target) => Err(format!("the load generator imports `{target}`")),
        None => Ok(()),
    }
}

fn is_pure(file: &SourceFile) -> Verdict {
    if floor(&file.module).is_none_or(|floor| floor > PURE_FLOOR_MAX) {
        return Ok(());
    }
    match IMPURE.iter().find(|word| file.code.contains(**word)) {
        Some(word) => Err(format!("a pure module says `{word}`")),
        None => Ok(()),
    }
}

fn says_no_banned_word(file: &SourceFile) -> Verdict {
    for (word, allowed, instead) in BANNED {
        let may = allowed.iter().any(|place| {
            if place.ends_with('/') { file.path.starts_with(place) } else { file.path == *place }
        });
        if !may && file.code.contains(word) {
            return Err(format!("`{word}` is not for this file: {instead}"));
        }
    }
    Ok(())
}

fn is_no_drawer(file: &SourceFile) -> Verdict {
    let names = file.path.trim_end_matches(".rs").split('/');
    match names.into_iter().find(|name| DRAWERS.contains(name)) {
        Some(name) => Err(format!("`{name}` is a drawer: name it after what it owns")),
        None => Ok(()),
    }
}

fn opens_with_words(file: &SourceFile) -> Verdict {
    match file.text.starts_with("//! ") {
        true => Ok(()),
        false => Err("does not open with `//!`: say what it is and who calls it".to_owned()),
    }
}

fn is_short(file: &SourceFile) -> Verdict {
    let lines = without_tests(&file.text).lines().count();
    match lines <= FILE_LINES_MAX {
        true => Ok(()),
        false => Err(format!("{lines} lines without tests: it holds two nouns")),
    }
}

/// Modules named directly behind `root` in paths and in one level of braces.
fn imported<'c>(code: &'c str, root: &str) -> Vec<&'c str> {
    let mut targets = Vec::new();
    for path in code.split(root).skip(1) {
        let Some(list) = path.strip_prefix('{') else {
            targets.push(first_word(path));
            continue;
        };
        let mut depth = 0_usize;
        let mut start = 0;
        for (at, byte) in list.bytes().enumerate() {
            match byte {
                b'{' => depth += 1,
                b',' | b'}' if depth == 0 => {
                    targets.push(first_word(list[start..at].trim_start()));
                    start = at + 1;
                }
                b'}' => depth -= 1,
                _ => (),
            }
            if byte == b'}' && depth == 0 && start == at + 1 {
                break;
            }
        }
    }
    targets.retain(|target| !target.is_empty());
    targets
}

fn first_word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

fn floor(module: &str) -> Option<u8> {
    place(module).map(|(_, floor)| floor)
}

/// Line in [`FLOORS`], and floor.
fn place(module: &str) -> Option<(usize, u8)> {
    let line = FLOORS.iter().position(|(name, _)| *name == module)?;
    Some((line, FLOORS.get(line)?.1))
}

/// `text` without the items under `#[cfg(test)]` at its left edge.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            kept.extend([line, "\n"]);
            continue;
        }
        let is_end = |line: &&str| *line == "}" || !line.starts_with(' ') && line.ends_with(';');
        lines.by_ref().find(is_end);
    }
    kept
}

/// Runs `rule` on every file below `root` and reports all breaches at once.
fn check(root: &str, rule: fn(&SourceFile) -> Verdict) {
    let files = files(root);
    assert!(!files.is_empty(), "nothing to check in {root}");
    let breach = |file: &SourceFile| Some(format!("{}: {}", file.path, rule(file).err()?));
    let breaches: Vec<String> = files.iter().filter_map(breach).collect();
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

fn files(root: &str) -> Vec<SourceFile> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&repository.join(root), &mut paths);
    let relative =
        |path: &Path| path.strip_prefix(repository).unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| source(&relative(path), &fs::read_to_string(path).unwrap())).collect()
}

fn source(path: &str, text: &str) -> SourceFile {
    let below_src = path.split_once("src/").map_or(path, |(_, rest)| rest);
    let first = below_src.split('/').next().unwrap_or_default();
    let body = without_tests(text);
    let code: Vec<&str> =
        body.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    SourceFile {
        path: path.to_owned(),
        module: first.trim_end_matches(".rs").to_owned(),
        text: text.to_owned(),
        code: code.join("\n"),
    }
}

mod rules_can_fail {
    use super::*;

    #[test]
    fn upward_and_sideways_imports_are_found_in_every_form() {
        for (path, text) in [
            ("src/ids.rs", "use crate::codec::Packet;"),
            ("src/ids.rs", "use crate::message::Run;"),
            ("src/config.rs", "use crate::broker::Broker;"),
            ("src/session/window.rs", "use crate::router::Router;"),
            ("src/session.rs", "use crate::retained;"),
            ("src/subscriptions/trie.rs", "fn f(s: &crate::session::Session) {}"),
            ("src/net/connection.rs", "use crate::sys::run;"),
            ("src/router.rs", "use crate::{ids, net};"),
            ("src/router.rs", "use crate::{ids::{A, B}, config::File};"),
            ("src/codec/mod.rs", "use super::session::Session;"),
            ("src/codec/ack.rs", "use super::super::router::Router;"),
            ("src/new.rs", "use crate::ids::Qos;"),
        ] {
            assert!(imports_go_down(&source(path, text)).is_err(), "{path}: {text}");
        }
    }

    #[test]
    fn downward_imports_own_module_tests_and_comments_are_fine() {
        for (path, text) in [
            ("src/codec/ack.rs", "use crate::codec::frame::Frame;\nuse crate::ids::Qos;"),
            ("src/message.rs", "use crate::ids::Qos;\nuse crate::topic::TopicFilter;"),
            ("src/config.rs", "use crate::{net, router};\nuse crate::session;"),
            ("src/router/route.rs", "use crate::{ids::{A, B}, topic::C};"),
            ("src/ids.rs", "/// See [`crate::router`].\npub struct A;"),
            ("src/ids.rs", "#[cfg(test)]\nmod tests {\n    use crate::router::Router;\n}\n"),
            ("src/ids.rs", "#[cfg(test)]\nuse crate::router::Router;\n"),
        ] {
            assert_eq!(imports_go_down(&source(path, text)), Ok(()), "{path}: {text}");
        }
    }

    #[test]
    fn code_behind_the_tests_is_still_looked_at() {
        let text =
            "#[cfg(test)]\nmod tests {\n    fn f() {\n    }\n}\nuse crate::router::Router;\n";
        assert!(imports_go_down(&source("src/ids.rs", text)).is_err());
    }

    #[test]
    fn every_impure_word_is_found_below_and_allowed_above() {
        for word in IMPURE {
            let text = format!("fn f() {{ {word}::x(); }}");
            assert!(is_pure(&source("src/session/window.rs", &text)).is_err(), "{word}");
            assert_eq!(is_pure(&source("src/net/listener.rs", &text)), Ok(()), "{word}");
        }
    }

    #[test]
    fn banned_words_are_found_outside_of_their_files() {
        for (word, path) in [
            ("anyhow", "src/config.rs"),
            ("dashmap", "src/router/shard.rs"),
            ("dashmap", "loadgen/src/main.rs"),
        ] {
            assert!(says_no_banned_word(&source(path, &format!("use {word}::A;"))).is_err());
        }
        for (word, path) in [
            ("anyhow", "src/main.rs"),
            ("anyhow", "loadgen/src/main.rs"),
            ("dashmap", "src/subscriptions/trie.rs"),
            ("dashmap", "src/router/registry.rs"),
        ] {
            assert_eq!(says_no_banned_word(&source(path, &format!("use {word}::A;"))), Ok(()));
        }
    }

    #[test]
    fn load_generator_may_not_reach_the_session() {
        let file = |text| source("loadgen/src/client.rs", text);
        assert!(loadgen_stays_low(&file("use mailboxqtt::session::Session;")).is_err());
        assert!(loadgen_stays_low(&file("use mailboxqtt::{ids, router::Router};")).is_err());
        assert_eq!(loadgen_stays_low(&file("use mailboxqtt::{codec::Packet, ids};")), Ok(()));
    }

    #[test]
    fn drawers_silent_files_and_long_files_are_found() {
        assert!(is_no_drawer(&source("src/utils.rs", "")).is_err());
        assert!(is_no_drawer(&source("src/net/helpers/tcp.rs", "")).is_err());
        assert_eq!(is_no_drawer(&source("src/net/listener.rs", "")), Ok(()));

        assert!(opens_with_words(&source("src/ids.rs", "use std::fmt;\n//! Late.")).is_err());
        assert_eq!(opens_with_words(&source("src/ids.rs", "//! Words.")), Ok(()));

        let long = "fn f();\n".repeat(FILE_LINES_MAX + 1);
        assert!(is_short(&source("src/ids.rs", &long)).is_err());
        let tested = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "    f();\n".repeat(700));
        assert_eq!(is_short(&source("src/ids.rs", &tested)), Ok(()));
    }
}

//! Reads a settings file and refuses what is not one, by line. Floor 6, called by `config::arguments`.

use std::fs;
use std::path::Path;

use toml::Table;
use toml::de::DeTable;

use crate::config::schema::{Schema, join};
use crate::config::unknown::{UnknownKey, line, unknown_keys};
use crate::config::{File, InvalidConfig};

/// What is wrong with the text of a settings file. Shows none of its lines, for there may be secrets in them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Mistake {
    /// Not TOML, or a value of another kind.
    #[error("line {line}{}: {message}", of_key(.key))]
    Value {
        /// From 1.
        line: usize,
        /// With its sections in dots; empty where none is to be seen.
        key: String,
        /// What is wrong there.
        message: String,
    },
    /// Keys that mean nothing: a misspelt limit must not be a silent default.
    #[error("{}", list(.0))]
    Unknown(Vec<UnknownKey>),
}

fn list(keys: &[UnknownKey]) -> String {
    keys.iter().map(UnknownKey::to_string).collect::<Vec<_>>().join("; ")
}

fn of_key(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!(", `{}`", key.escape_debug()) }
}

/// What the file at `path` says, and nothing that it does not say.
pub(super) fn read(path: &Path) -> Result<Table, InvalidConfig> {
    let text = fs::read_to_string(path)
        .map_err(|error| InvalidConfig::Unreadable { path: path.into(), error })?;
    parse(&text).map_err(|mistake| InvalidConfig::File { path: path.into(), mistake })
}

/// What `text` says, if a [`File`] can be made of it.
pub fn parse(text: &str) -> Result<Table, Mistake> {
    let schema = Schema::of::<File>();
    let mistake = |error: toml::de::Error, table: Option<&DeTable<'_>>| {
        let at = error.span().map_or(0, |span| span.start);
        let key = table.and_then(|table| key_at(table, at, "")).unwrap_or_default();
        let place = key.split('.').try_fold(&schema, |schema, key| schema.below(key));
        let message = match place.is_some_and(Schema::holds_secrets) {
            true => in_plain_words(&without_text(error.message())),
            false => in_plain_words(error.message()),
        };
        Mistake::Value { line: line(text, at), key, message }
    };
    let table = DeTable::parse(text).map_err(|error| mistake(error, None))?;
    let unknown = unknown_keys(text, table.get_ref(), &schema);
    if !unknown.is_empty() {
        return Err(Mistake::Unknown(unknown));
    }
    let mistake = |error| mistake(error, Some(table.get_ref()));
    toml::from_str::<File>(text).map_err(mistake)?;
    toml::from_str(text).map_err(mistake)
}

/// serde repeats text that stands where it may not: here it may be a secret without its name.
fn without_text(message: &str) -> String {
    match (message.split_once("string \""), message.rsplit_once("\", expected")) {
        (Some((before, _)), Some((_, behind))) => format!("{before}text, expected{behind}"),
        _ => message.to_owned(),
    }
}

/// The key whose value holds the byte `at`.
fn key_at(table: &DeTable<'_>, at: usize, path: &str) -> Option<String> {
    table.iter().find_map(|(key, value)| {
        let name = join(path, key.get_ref());
        let array = value.get_ref().as_array().into_iter().flatten();
        let tables = array.filter_map(|value| value.get_ref().as_table());
        let mut below = value.get_ref().as_table().into_iter().chain(tables);
        let found = below.find_map(|table| key_at(table, at, &name));
        found.or_else(|| value.span().contains(&at).then_some(name))
    })
}

/// What a type of ours is called in a settings file.
const KINDS: &[(&str, &str)] = &[
    ("u8", "a whole number from 0 to 255"),
    ("u16", "a whole number from 0 to 65535"),
    ("u32", "a whole number from 0 to 4294967295"),
    ("u64", "a whole number that is not negative"),
    ("usize", "a whole number that is not negative"),
    ("a boolean", "true or false"),
    ("a string", "text in quotes"),
    ("path string", "text in quotes"),
    ("socket address", "an address with a port in quotes, such as \"127.0.0.1:1883\""),
    ("a map", "a section"),
    ("a sequence", "a list in brackets"),
];

/// What serde says is wrong with a value, without the names of our types, and in one line.
pub(super) fn in_plain_words(message: &str) -> String {
    let message = message.replace(char::is_control, " ");
    let told = ["invalid type: ", "invalid value: ", "unknown variant "];
    let told = told.iter().find_map(|start| message.strip_prefix(start));
    let Some((found, expected)) = told.and_then(|told| told.rsplit_once(", expected ")) else {
        return match message.as_str() {
            "wanted string or table" => "must be text in quotes".to_owned(),
            "invalid socket address syntax" => {
                "must be an address with a port, such as \"127.0.0.1:1883\"".to_owned()
            }
            _ => message,
        };
    };
    let plain = |kind: &str| KINDS.iter().find(|(name, _)| *name == kind).map(|(_, words)| *words);
    let expected = match expected.starts_with("struct ") {
        true => "a section",
        false => plain(expected).unwrap_or(expected),
    };
    let found = match found {
        "map" => "a section",
        "sequence" => "a list",
        found => found.strip_suffix(" as i128").unwrap_or(found),
    };
    format!("must be {expected}, not {found}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_toml_and_what_is_another_kind_of_value_is_refused_by_line() {
        for (text, refusal) in [
            ("shards = 1\nshards = 2", "line 2: duplicate key"),
            ("shards = 1\n[[[", "line 2: "),
            (
                "\n\nshards = 'one'",
                "line 3, `shards`: must be a whole number from 0 to 65535, not string \"one\"",
            ),
            (
                "shards = 70000",
                "line 1, `shards`: must be a whole number from 0 to 65535, not integer `70000`",
            ),
            ("listen = 'localhost'", "line 1, `listen`: must be an address with a port, such as"),
            (
                "listen = 1883",
                "line 1, `listen`: must be an address with a port in quotes, such as",
            ),
            (
                "allow_anonymous = 'yes'",
                "line 1, `allow_anonymous`: must be true or false, not string \"yes\"",
            ),
            ("data_dir = 3", "line 1, `data_dir`: must be text in quotes, not integer `3`"),
            ("queue_policy = 3", "line 1, `queue_policy`: must be text in quotes"),
            (
                "queue_policy = \"\"\"drop\nall\"\"\"",
                "line 1, `queue_policy`: must be one of `reject`, `drop_oldest`, `drop_newest`, not \
                 `drop all`",
            ),
            (
                "queue_bytes_max = 99999999999999999999",
                "line 1, `queue_bytes_max`: must be a whole number that is not negative, not \
                 integer `99999999999999999999`",
            ),
            (
                "[authentication]\nchecks_max = 'all'",
                "line 2, `authentication.checks_max`: must be a whole number that is not negative, \
                 not string \"all\"",
            ),
            ("authentication.http = 3", "line 1, `authentication.http`: must be a section, not"),
            (
                "[[listeners]]\nlisten = ':1'\n[[listeners]]\nlisten = ':2'\nprotocol = 'quic'",
                "line 5, `listeners.protocol`: must be `mqtt` or `websocket`, not `quic`",
            ),
            ("[listeners]", "line 1, `listeners`: must be a list in brackets, not a section"),
            (
                "shards = 1\n\n[[durability_overrides]]\nfilter = 'a'",
                "line 3, `durability_overrides`: missing field `level`",
            ),
            ("scram_users = 1", "line 1, `scram_users`: must be a section, not integer `1`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(refusal), "{text:?}: {error}");
        }
    }

    #[test]
    fn several_unknown_keys_are_named_at_once() {
        let error = parse("zebra = 1\naxolotl = 1").unwrap_err().to_string();
        let expected = "line 1: there is no setting `zebra`; line 2: there is no setting `axolotl`";
        assert_eq!(error, expected);
    }

    #[test]
    fn only_what_was_said_is_in_the_table() {
        assert_eq!(parse("shards = 2").unwrap().len(), 1);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn secrets_are_not_in_errors() {
        for text in [
            "[scram_users]\nbob = 'hunter2",
            "[scram_users]\nbob = 'hunter2' 'hunter2'",
            "scram_users = 'hunter2'",
            "scram_users = 'hunter2\", expected hunter2'",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}

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
            true => without_text(error.message()),
            false => error.message().to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_toml_and_what_is_another_kind_of_value_is_refused_by_line() {
        for (text, refusal) in [
            ("shards = 1\nshards = 2", "line 2: duplicate key"),
            ("shards = 1\n[[[", "line 2: "),
            ("\n\nshards = 'one'", "line 3, `shards`: invalid type: string \"one\", expected u16"),
            ("shards = -1", "line 1, `shards`: invalid value: integer `-1`, expected u16"),
            ("listen = 'localhost'", "line 1, `listen`: invalid socket address syntax"),
            (
                "shards = 1\n\n[[durability_overrides]]\nfilter = 'a'",
                "line 3, `durability_overrides`: missing field `level`",
            ),
            ("scram_users = 1", "line 1, `scram_users`: invalid type: integer `1`, expected a map"),
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

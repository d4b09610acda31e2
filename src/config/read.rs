//! Reads a settings file and refuses what is not one, by line. Floor 6, called by `config::arguments`.

use std::fs;
use std::path::Path;

use toml::Table;
use toml::de::DeTable;

use crate::config::schema::Schema;
use crate::config::unknown::{UnknownKey, line, unknown_keys};
use crate::config::{File, InvalidConfig};

/// What is wrong with the text of a settings file. Shows none of its lines, for there may be secrets in them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Mistake {
    /// Not TOML, or a value of another kind.
    #[error("line {line}: {message}")]
    Value {
        /// From 1.
        line: usize,
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

/// What the file at `path` says, and nothing that it does not say.
pub(super) fn read(path: &Path) -> Result<Table, InvalidConfig> {
    let text = fs::read_to_string(path)
        .map_err(|error| InvalidConfig::Unreadable { path: path.into(), error })?;
    parse(&text).map_err(|mistake| InvalidConfig::File { path: path.into(), mistake })
}

/// What `text` says, if a [`File`] can be made of it.
pub fn parse(text: &str) -> Result<Table, Mistake> {
    let mistake = |error: toml::de::Error| Mistake::Value {
        line: line(text, error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    };
    let table = DeTable::parse(text).map_err(mistake)?;
    let unknown = unknown_keys(text, table.get_ref(), &Schema::of::<File>());
    if !unknown.is_empty() {
        return Err(Mistake::Unknown(unknown));
    }
    toml::from_str::<File>(text).map_err(mistake)?;
    toml::from_str(text).map_err(mistake)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_toml_and_what_is_another_kind_of_value_is_refused_by_line() {
        for (text, refusal) in [
            ("shards = 1\nshards = 2", "line 2: duplicate key"),
            ("shards = 1\n[[[", "line 2: "),
            ("\n\nshards = 'one'", "line 3: invalid type: string \"one\", expected u16"),
            ("shards = -1", "line 1: invalid value: integer `-1`, expected u16"),
            ("listen = 'localhost'", "line 1: invalid socket address syntax"),
            (
                "shards = 1\n\n[[durability_overrides]]\nfilter = 'a'",
                "line 3: missing field `level`",
            ),
            ("scram_users = 1", "line 1: invalid type: integer `1`, expected a map"),
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
        for text in ["[scram_users]\nbob = 'hunter2", "[scram_users]\nbob = 'hunter2' 'hunter2'"] {
            let error = parse(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}

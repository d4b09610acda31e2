//! Keys of a settings file that mean nothing, with the ones that may be meant. Floor 6, called by
//! `config::read`.

use std::fmt;

use toml::de::{DeTable, DeValue};

use crate::config::schema::{Schema, join};

/// How alike two names must be for one to be taken for the other; 1 is the same.
const LIKENESS_MIN: f64 = 0.75;

/// A key that means nothing where it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownKey {
    /// From 1.
    pub line: usize,
    /// With its sections in dots.
    pub name: String,
    /// What may be meant, with its sections in dots.
    pub meant: Option<String>,
}

impl fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, name, meant } = self;
        write!(f, "line {line}: there is no setting `{}`", name.escape_debug())?;
        match meant {
            Some(meant) => write!(f, ", did you mean `{meant}`?"),
            None => Ok(()),
        }
    }
}

/// Every key of `table`, which is `text`, that is not in `schema`, in the order of the lines.
pub(super) fn unknown_keys(text: &str, table: &DeTable<'_>, schema: &Schema) -> Vec<UnknownKey> {
    let mut search = Search { text, whole: schema, found: Vec::new() };
    search.table(table, schema, "");
    search.found.sort_by_key(|key| key.line);
    search.found
}

struct Search<'a> {
    text: &'a str,
    whole: &'a Schema,
    found: Vec<UnknownKey>,
}

impl Search<'_> {
    fn table(&mut self, table: &DeTable<'_>, schema: &Schema, path: &str) {
        for (key, value) in table {
            let name = join(path, key.get_ref());
            match schema.below(key.get_ref()) {
                Some(schema) => self.value(value.get_ref(), schema, &name),
                None if matches!(schema, Schema::Table(_)) => {
                    let line = line(self.text, key.span().start);
                    let meant = self.meant(key.get_ref(), schema, path);
                    self.found.push(UnknownKey { line, name, meant });
                }
                // Another kind of value than it should be, which is refused as that.
                None => (),
            }
        }
    }

    fn value(&mut self, value: &DeValue<'_>, schema: &Schema, path: &str) {
        match (value, schema) {
            (DeValue::Table(table), _) => self.table(table, schema, path),
            (DeValue::Array(array), Schema::List(element)) => {
                array.iter().for_each(|value| self.value(value.get_ref(), element, path));
            }
            _ => (),
        }
    }

    /// A key like this one in the same table, or the same key in another table.
    fn meant(&self, key: &str, schema: &Schema, path: &str) -> Option<String> {
        let keys = schema.keys().iter().map(|(name, _)| *name);
        let elsewhere = || homes(key, self.whole, "");
        let near = nearest(key, keys, LIKENESS_MIN).map(|near| join(path, near));
        elsewhere().or(near)
    }
}

/// The first place where `key` would be known.
fn homes(key: &str, schema: &Schema, path: &str) -> Option<String> {
    let (keys, below): (_, Option<&Schema>) = match schema {
        Schema::Table(keys) => (keys.as_slice(), None),
        Schema::List(below) => (&[][..], Some(below)),
        Schema::Map(_) | Schema::Scalar(_) => return None,
    };
    if keys.iter().any(|(name, _)| *name == key) {
        return Some(join(path, key));
    }
    let in_tables = keys.iter().find_map(|(name, schema)| homes(key, schema, &join(path, name)));
    in_tables.or_else(|| homes(key, below?, path))
}

/// The most alike of `names`, if one is as alike as `likeness_min`.
pub(super) fn nearest<'n>(
    wanted: &str,
    names: impl Iterator<Item = &'n str>,
    likeness_min: f64,
) -> Option<&'n str> {
    let likeness = |name: &str| strsim::jaro(&wanted.to_lowercase(), &name.to_lowercase());
    let scored = names.map(|name| (likeness(name), name));
    let good = scored.filter(|(likeness, _)| *likeness >= likeness_min);
    good.max_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, name)| name)
}

/// The line of a byte, from 1.
pub(super) fn line(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;

    fn refusals(text: &str) -> Vec<String> {
        let table = DeTable::parse(text).unwrap();
        let unknown = unknown_keys(text, table.get_ref(), &Schema::of::<File>());
        unknown.iter().map(UnknownKey::to_string).collect()
    }

    #[test]
    fn unknown_keys_are_named_with_line_and_nearest_known_key() {
        for (key, meant) in [
            ("queue_max_bytes", "queue_bytes_max"),
            ("inflight_maximum", "inflight_max"),
            ("Listen", "listen"),
            ("allow_anonymus", "allow_anonymous"),
            ("keepalive_max", "keep_alive_s_max"),
        ] {
            let text = format!("# comment\nshards = 1\n{key} = 1\n");
            let refusal = format!("line 3: there is no setting `{key}`, did you mean `{meant}`?");
            assert_eq!(refusals(&text), [refusal]);
        }
        assert_eq!(refusals("xyz = 1"), ["line 1: there is no setting `xyz`"]);
    }

    #[test]
    fn all_unknown_keys_are_named_also_in_sections_and_arrays_and_in_the_order_of_lines() {
        let text = "zebra = 1\nshards = 1\naxolotl = 2\n\n[[durability_overrides]]\nfilter = 'a'\n\
                    [[durability_overrides]]\nlevl = 'os'\n[no.such.section]\nkey = 1";
        assert_eq!(
            refusals(text),
            [
                "line 1: there is no setting `zebra`",
                "line 3: there is no setting `axolotl`",
                "line 8: there is no setting `durability_overrides.levl`, \
                 did you mean `durability_overrides.level`?",
                "line 9: there is no setting `no`",
            ]
        );
    }

    #[test]
    fn key_that_slipped_into_a_section_is_known_where_it_belongs() {
        let text = "[[durability_overrides]]\nfilter = 'a'\nlevel = 'os'\nshards = 1";
        let refusal =
            "line 4: there is no setting `durability_overrides.shards`, did you mean `shards`?";
        assert_eq!(refusals(text), [refusal]);
    }

    #[test]
    fn users_may_have_any_name() {
        assert_eq!(refusals("[scram_users]\nanything = 'x'\n'with spaces' = 'x'"), [""; 0]);
    }
}

//! The settings in force as a settings file, with where each value came from. Floor 6, called by `main`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use toml::{Table, Value};

use crate::config::schema::{Scalar, Schema, join};
use crate::config::{File, Settings, Url};

/// Where the comments begin, if the values leave room.
const COMMENT_COLUMN: usize = 44;

/// As a file that can be read again, without secrets: each of those is a comment that says that it is there.
pub fn print(settings: &Settings) -> Result<String, toml::ser::Error> {
    let values = Table::try_from(&settings.file)?;
    let mut printer = Printer { settings, text: String::new() };
    printer.table(&Schema::of::<File>(), &values, "", "", Remark::Origin)?;
    Ok(printer.text)
}

/// What is said behind a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Remark {
    /// Where it came from.
    Origin,
    /// Nothing: what it is part of has said it.
    Nothing,
}

struct Printer<'s> {
    settings: &'s Settings,
    text: String,
}

impl Printer<'_> {
    /// `path` has the names of the sections in dots, `header` the same as TOML has them.
    fn table(
        &mut self,
        schema: &Schema,
        values: &Table,
        path: &str,
        header: &str,
        remark: Remark,
    ) -> Result<(), toml::ser::Error> {
        let names: Vec<&str> = match schema {
            Schema::Table(keys) => keys.iter().map(|(name, _)| *name).collect(),
            _ => values.keys().map(String::as_str).collect(),
        };
        let below = |name: &str| Some((schema.below(name)?, values.get(name)));
        // In TOML, a value behind the header of a section would be in that section.
        for name in &names {
            match below(name) {
                Some((Schema::Scalar(kind), value)) => {
                    self.scalar(*kind, name, value, &join(path, name), remark)?;
                }
                Some((_, Some(Value::Array(array)))) if !array.iter().any(Value::is_table) => {
                    let value = Value::Array(array.clone());
                    self.line(&entry(name, &value)?, &self.remark(&join(path, name), remark));
                }
                _ => (),
            }
        }
        for name in &names {
            let Some((schema, value)) = below(name) else { continue };
            let (path, header) = (join(path, name), join(header, &quoted(name)?));
            match (schema, value) {
                (Schema::List(schema), Some(Value::Array(array))) => {
                    for table in array.iter().filter_map(Value::as_table) {
                        let origin = self.remark(&path, remark);
                        self.text.push('\n');
                        self.line(&format!("[[{header}]]"), &origin);
                        self.table(schema, table, &path, &header, Remark::Nothing)?;
                    }
                }
                (_, Some(Value::Table(table))) => {
                    let _ = write!(self.text, "\n[{header}]\n");
                    self.table(schema, table, &path, &header, remark)?;
                }
                (Schema::Table(_) | Schema::List(_), None) => {
                    let _ = write!(self.text, "\n# [{header}] is not set\n");
                }
                _ => (),
            }
        }
        Ok(())
    }

    fn scalar(
        &mut self,
        kind: Scalar,
        name: &str,
        value: Option<&Value>,
        path: &str,
        remark: Remark,
    ) -> Result<(), toml::ser::Error> {
        let origin = self.remark(path, remark);
        let text = value.and_then(Value::as_str).unwrap_or_default();
        let shown = match kind {
            Scalar::Secret => "",
            Scalar::Url => Url::shown(text),
            _ => text,
        };
        let is_shown = !matches!(kind, Scalar::Secret | Scalar::Url) || shown == text;
        match value {
            Some(_) if !is_shown && !shown.is_empty() => {
                let origin = if origin.is_empty() { origin } else { format!("{origin}, ") };
                self.line(&entry(name, &shown.into())?, &format!("{origin}without its query"));
            }
            None => self.line(&format!("# {} is not set", quoted(name)?), ""),
            Some(value) if is_shown => self.line(&entry(name, value)?, &origin),
            Some(_) => self.line(&format!("# {} is not shown", quoted(name)?), &origin),
        }
        Ok(())
    }

    fn remark(&self, path: &str, remark: Remark) -> String {
        match remark {
            Remark::Origin => self.settings.origin(path).to_string(),
            Remark::Nothing => String::new(),
        }
    }

    fn line(&mut self, value: &str, comment: &str) {
        let _ = match comment {
            "" => writeln!(self.text, "{value}"),
            _ => writeln!(self.text, "{value:<COMMENT_COLUMN$} # {comment}"),
        };
    }
}

/// `name = value`.
pub(super) fn entry(name: &str, value: &Value) -> Result<String, toml::ser::Error> {
    Ok(toml::to_string(&BTreeMap::from([(name, value)]))?.trim_end().to_owned())
}

/// In quotes if a key of TOML needs them.
fn quoted(name: &str) -> Result<String, toml::ser::Error> {
    let entry = entry(name, &Value::Boolean(true))?;
    Ok(entry.trim_end_matches(" = true").to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::layers::Layers;
    use crate::config::read::parse;

    fn settings(text: &str) -> Settings {
        let mut layers = Layers::default();
        layers.add_file(Path::new("my.toml"), parse(text).unwrap());
        layers.add_argument("--shards", "shards", 5.into());
        layers.settle().unwrap()
    }

    const OVERRIDES: &str = "queue_bytes_max = 7\n\
        [[durability_overrides]]\nfilter = 'a/#'\nlevel = 'os'\n\
        [[durability_overrides]]\nfilter = \"quote \\\" and\\nline\"\nlevel = 'none'";

    #[test]
    fn printed_settings_are_the_same_settings_when_they_are_read() {
        for text in ["", OVERRIDES] {
            let settings = settings(text);
            let printed = print(&settings).unwrap();
            let read: File = parse(&printed).unwrap().try_into().unwrap();
            assert_eq!(Table::try_from(&read), Table::try_from(&settings.file), "{printed}");
        }
    }

    #[test]
    fn each_value_has_its_origin_behind_it() {
        let printed = print(&settings(OVERRIDES)).unwrap();
        let has = |line: &str| {
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(printed.lines().any(|printed| words(printed) == line), "{line}:\n{printed}");
        };
        has("listen = \"127.0.0.1:1883\" # default");
        has("queue_bytes_max = 7 # file my.toml");
        has("shards = 5 # argument --shards");
        has("[[durability_overrides]] # file my.toml");
        has("filter = \"a/#\"");
    }

    #[test]
    fn query_of_an_url_is_not_shown_and_users_of_a_listener_are() {
        let own = "[[listeners]]\nlisten = '127.0.0.1:1'\nqos_max = 1\n[listeners.authentication.http]\n\
                   url = 'https://host/own?key=hunter2'\n[[listeners]]\nlisten = '127.0.0.1:2'\n\
                   [listeners.authentication]\npassword_file = 'users'";
        let text = format!("[authentication.http]\nurl = 'https://host/all?key=hunter2'\n{own}");
        let printed = print(&settings(&text)).unwrap();
        assert!(!printed.contains("hunter"), "{printed}");
        assert!(printed.contains("# file my.toml, without its query"), "{printed}");
        let read: File = parse(&printed).unwrap().try_into().unwrap();
        assert_eq!(read.authentication.http.url.expose(), "https://host/all");
        let [first, second] = &read.listeners[..] else { panic!("{printed}") };
        assert_eq!(first.qos_max, Some(1));
        let http = &first.authentication.as_ref().unwrap().http;
        assert_eq!(http.url.expose(), "https://host/own");
        let file = &second.authentication.as_ref().unwrap().password_file;
        assert_eq!(file.to_str(), Some("users"));
        let printed =
            print(&settings("authentication.http.url = 'https://a:hunter2@host/'")).unwrap();
        assert!(
            printed.contains("# url is not shown") && !printed.contains("hunter2"),
            "{printed}"
        );
    }

    #[test]
    fn secrets_are_said_to_be_there_and_not_shown() {
        let printed = print(&settings("[scram_users]\nalice = 'hunter2'\n'b c' = 'hunter3'"));
        let printed = printed.unwrap();
        assert!(!printed.contains("hunter"), "{printed}");
        for name in ["# alice is not shown", "# \"b c\" is not shown"] {
            assert!(printed.contains(name), "{printed}");
        }
        let read: File = parse(&printed).unwrap().try_into().unwrap();
        assert!(read.scram_users.is_empty());
    }
}

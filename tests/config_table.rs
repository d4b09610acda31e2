//! Keeps the list of settings in `docs/config.md` the one of the code.
//!
//! The keys come from the types that a settings file is read into ([`Schema`]), the defaults from a [`File`] of
//! nothing, and what a key means from the comment above its field. `MAILBOXQTT_WRITE_TABLE=1` writes the list
//! between the two marks of the document instead of comparing it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "a test may")]

mod sources;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sources::collect;

use mailboxqtt::config::{File, Scalar, Schema, is_reloaded, variable};
use toml::{Table, Value};

const DOCUMENT: &str = "docs/config.md";
const BEGIN: &str =
    "<!-- keys:begin (written by `MAILBOXQTT_WRITE_TABLE=1 cargo test --test config_table`) -->\n";
const END: &str = "<!-- keys:end -->\n";

#[test]
fn settings_in_the_documentation_are_those_of_the_code() {
    let path = root().join(DOCUMENT);
    let kept = fs::read_to_string(&path).unwrap();
    let (head, rest) = kept.split_once(BEGIN).expect("the mark of the beginning");
    let (_, tail) = rest.split_once(END).expect("the mark of the end");
    let written = format!("{head}{BEGIN}{}{END}{tail}", list(&Sources::read()));
    if std::env::var_os("MAILBOXQTT_WRITE_TABLE").is_some() {
        return fs::write(path, written).unwrap();
    }
    let command = "MAILBOXQTT_WRITE_TABLE=1 cargo test --test config_table";
    assert!(kept == written, "{DOCUMENT} is not up to date: run `{command}`");
}

#[test]
fn comments_of_fields_are_read_from_the_source() {
    let source = "/// Of all.\npub struct A {\n    /// One\n    /// line.\n    #[serde(default)]\n    \
                  pub one: u8,\n    pub two: Option<Vec<B>>,\n}\nstruct C {\n    a: u8,\n}\n";
    let structs = structs(source);
    let fields = &structs["A"];
    let one = Field { kind: "u8".into(), comment: "One line.".into(), may_be_left_out: true };
    assert_eq!(fields["one"], one);
    assert_eq!(fields["two"].comment, "");
    assert_eq!(innermost(&fields["two"].kind), "B");
    assert_eq!(structs.len(), 2);
}

/// All tables of keys, each below its section.
fn list(sources: &Sources) -> String {
    let mut sections = Vec::new();
    section(&Schema::of::<File>(), "File", &[], sources, &mut sections);
    sections.join("\n")
}

/// A step from a table to a value in it.
#[derive(Clone)]
struct Step {
    key: &'static str,
    is_array: bool,
}

fn section(
    schema: &Schema,
    name: &str,
    path: &[Step],
    sources: &Sources,
    sections: &mut Vec<String>,
) {
    let fields = sources.fields(name);
    let mut text = match header(path) {
        header if header.is_empty() => "## At the top\n\n".to_owned(),
        header => format!("## `{header}`\n\n"),
    };
    let heads = text.len();
    let place = sections.len();
    sections.push(String::new());
    let _ =
        writeln!(text, "| key | default | environment | SIGHUP | meaning |\n|---|---|---|---|---|");
    let defaults = defaults(path);
    for (key, schema) in schema.keys() {
        let field = fields.get(*key).unwrap_or_else(|| panic!("`{name}` has no field `{key}`"));
        assert!(!field.comment.is_empty(), "`{key}` of `{name}` has no comment");
        let step = |is_array| [path, &[Step { key, is_array }]].concat();
        let inner = innermost(&field.kind);
        match schema {
            Schema::Table(_) => section(schema, inner, &step(false), sources, sections),
            Schema::List(element) if matches!(**element, Schema::Table(_)) => {
                section(element, inner, &step(true), sources, sections);
            }
            _ => (),
        }
        let value = defaults.as_ref().map(|defaults| defaults.get(*key));
        let (default, environment) = match (schema, value) {
            (Schema::Table(_), _) => (format!("see [`{}`]", header(&step(false))), None),
            (Schema::List(_), Some(Some(Value::Array(array)))) if array.is_empty() => {
                ("none".to_owned(), None)
            }
            (Schema::Map(_), _) => ("none".to_owned(), None),
            (_, None) if field.may_be_left_out => ("not set".to_owned(), None),
            (_, None) => ("has to be said".to_owned(), None),
            (_, Some(None)) => ("not set".to_owned(), name_in_environment(path, key)),
            (_, Some(Some(value))) => (shown(value, schema), name_in_environment(path, key)),
        };
        let environment = environment.map_or("–".to_owned(), |name| format!("`{name}`"));
        let comment = field.comment.replace('|', "\\|");
        let keys: Vec<&str> = path.iter().map(|step| step.key).chain([*key]).collect();
        let reload = if is_reloaded(&keys.join(".")) { "yes" } else { "restart" };
        let _ = writeln!(text, "| `{key}` | {default} | {environment} | {reload} | {comment} |");
    }
    assert!(text.len() > heads);
    sections[place] = text;
}

/// `None` for what is in an array: its elements have no names.
fn name_in_environment(path: &[Step], key: &str) -> Option<String> {
    let keys: Vec<&str> = path.iter().map(|step| step.key).chain([key]).collect();
    path.iter().all(|step| !step.is_array).then(|| variable(&keys.join(".")))
}

/// As in a settings file.
fn header(path: &[Step]) -> String {
    let names: Vec<&str> = path.iter().map(|step| step.key).collect();
    match path.last() {
        None => String::new(),
        Some(Step { is_array: true, .. }) => format!("[[{}]]", names.join(".")),
        Some(_) => format!("[{}]", names.join(".")),
    }
}

fn shown(value: &Value, schema: &Schema) -> String {
    match (value, schema) {
        (Value::String(text), _) if text.is_empty() => "empty".to_owned(),
        (_, Schema::Scalar(Scalar::Secret | Scalar::Url)) => panic!("a secret with a default"),
        _ => format!("`{value}`"),
    }
}

/// The values of an empty table at `path`, `None` if it may not be empty.
fn defaults(path: &[Step]) -> Option<Table> {
    let wrap = |inner: Table, step: &Step| {
        let value = match step.is_array {
            true => Value::Array(vec![inner.into()]),
            false => inner.into(),
        };
        Table::from_iter([(step.key.to_owned(), value)])
    };
    let said = path.iter().rev().fold(Table::new(), wrap);
    let file: File = said.try_into().ok()?;
    let whole = Table::try_from(&file).unwrap();
    path.iter().try_fold(whole, |table, step| match table.get(step.key)? {
        Value::Table(inner) => Some(inner.clone()),
        Value::Array(array) => array.first()?.as_table().cloned(),
        _ => None,
    })
}

/// `B` of `Option<Vec<B>>`.
fn innermost(kind: &str) -> &str {
    let inner = kind.rsplit(['<', ',']).next().unwrap();
    inner.trim().trim_end_matches('>').rsplit("::").next().unwrap()
}

#[derive(Debug, Eq, PartialEq)]
struct Field {
    kind: String,
    comment: String,
    /// Also in a table that may not be empty.
    may_be_left_out: bool,
}

type Fields = BTreeMap<String, Field>;

/// Every struct below `src`, with those of `src/config` first.
struct Sources(Vec<BTreeMap<String, Fields>>);

impl Sources {
    fn read() -> Self {
        let mut paths = Vec::new();
        collect(&root().join("src"), &mut paths);
        let is_elsewhere = |path: &PathBuf| !path.starts_with(root().join("src/config"));
        paths.sort_by_key(is_elsewhere);
        Self(paths.iter().map(|path| structs(&fs::read_to_string(path).unwrap())).collect())
    }

    fn fields(&self, name: &str) -> &Fields {
        let found = self.0.iter().find_map(|structs| structs.get(name));
        found.unwrap_or_else(|| panic!("there is no struct `{name}`"))
    }
}

fn structs(source: &str) -> BTreeMap<String, Fields> {
    let mut structs = BTreeMap::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        let bare = line.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        let Some(name) = bare.strip_prefix("struct ").and_then(|it| it.strip_suffix(" {")) else {
            continue;
        };
        let mut fields = Fields::new();
        let mut comment = Vec::new();
        let mut has_default = false;
        for line in lines.by_ref().take_while(|line| *line != "}") {
            if let Some(words) = line.strip_prefix("///") {
                comment.push(words.trim());
            } else if line.starts_with("#[serde(") {
                has_default = line.contains("default");
            } else if let Some((name, kind)) = line.split_once(": ") {
                let name = name.rsplit(' ').next().unwrap();
                let kind = kind.trim_end_matches(',').to_owned();
                let may_be_left_out = has_default || kind.starts_with("Option<");
                let comment = std::mem::take(&mut comment).join(" ");
                fields.insert(name.to_owned(), Field { kind, comment, may_be_left_out });
                has_default = false;
            }
        }
        structs.insert(name.to_owned(), fields);
    }
    structs
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

//! Puts file, environment and arguments over the defaults, and remembers where each value came from. Floor 6,
//! called by `config::arguments`.
//!
//! Each layer is a TOML table that holds only what was said there. They are laid over one another, tables key by
//! key and everything else as a whole, and what comes out is read into a [`File`], which has the defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::config::limits::MEMORY_BYTES_MIN;
use crate::config::read::in_plain_words;
use crate::config::schema::{Scalar, Schema, join};
use crate::config::unknown::nearest;
use crate::config::{Config, File, InvalidConfig};

/// What the names of settings begin with in the environment.
const PREFIX: &str = "MAILBOXQTT_";
/// An older name of [`LISTEN`], and the one that other programs know.
const SOCKET_ADDR: &str = "SOCKET_ADDR";
const LISTEN: &str = "listen";

/// The settings in force, with where they came from.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The values.
    pub file: File,
    /// Of everything that was said somewhere, by its name in dots.
    origins: BTreeMap<String, Origin>,
    /// What looks like a mistake and is none for certain: a sentence each.
    pub doubts: Vec<String>,
}

/// Who said a value.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// Whoever runs the process gives it so much memory.
    ControlGroup,
    /// The settings file.
    File(PathBuf),
    /// The environment variable of this name.
    Environment(String),
    /// This argument.
    Argument(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::ControlGroup => f.write_str("control group, three quarters of its memory"),
            // A comment must end where its line ends.
            Self::File(path) => write!(f, "file {}", path.display().to_string().escape_debug()),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Argument(flag) => write!(f, "argument {flag}"),
        }
    }
}

impl Settings {
    /// What a settings file at `path` says alone, read into `table`.
    pub fn of(path: &Path, table: Table) -> Result<Self, InvalidConfig> {
        let mut layers = Layers::default();
        layers.add_file(path, table);
        layers.settle()
    }

    /// Where the value of `name` came from, a key with its sections in dots; what is said of a whole section
    /// holds for what is in it.
    pub fn origin(&self, name: &str) -> &Origin {
        let mut name = name;
        loop {
            if let Some(origin) = self.origins.get(name) {
                return origin;
            }
            match name.rsplit_once('.') {
                Some((section, _)) => name = section,
                None => return &Origin::Default,
            }
        }
    }

    /// [`File::check`]. Of a value that cannot be it is said where it comes from.
    pub fn check(&self, files_max: usize) -> Result<Config, InvalidConfig> {
        self.file.clone().check(files_max).map_err(|error| match error {
            InvalidConfig::Value(value) => {
                InvalidConfig::Said { value, origin: self.origin(value.key).clone() }
            }
            other => other,
        })
    }
}

/// Settings in the making, from the lowest layer to the highest.
#[derive(Debug, Default)]
pub(super) struct Layers {
    table: Table,
    origins: BTreeMap<String, Origin>,
    doubts: Vec<String>,
}

impl Layers {
    /// The system ends the process if it uses more than `bytes`: it had better refuse before. The rest is for what comes
    /// between two looks at it, and for what the system holds for it.
    pub(super) fn add_memory_limit(&mut self, bytes: u64) {
        let bytes_max = (bytes / 4 * 3).max(MEMORY_BYTES_MIN);
        let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
        self.add(nest("memory_bytes_max", bytes_max.into()), &Origin::ControlGroup);
    }

    /// The settings file at `path`, which has been read into `table`.
    pub(super) fn add_file(&mut self, path: &Path, table: Table) {
        self.add(table, &Origin::File(path.into()));
    }

    /// Every variable that has the name of a key, see [`variable`].
    pub(super) fn add_environment(
        &mut self,
        variables: &BTreeMap<String, OsString>,
    ) -> Result<(), InvalidConfig> {
        let scalars = Schema::of::<File>().scalars();
        let listen = (LISTEN.to_owned(), SOCKET_ADDR.to_owned(), Scalar::Text);
        let named = scalars.iter().map(|(key, kind)| (key.clone(), variable(key), *kind));
        for (key, name, kind) in [listen].into_iter().chain(named) {
            let Some(text) = variables.get(&name) else { continue };
            let invalid = |rule: &str| InvalidConfig::Environment {
                name: name.clone(),
                rule: rule.to_owned(),
            };
            let text = text.to_str().ok_or_else(|| invalid("is not UTF-8"))?;
            let table = nest(&key, value(kind, text).map_err(invalid)?);
            let read: Result<File, _> = table.clone().try_into();
            read.map_err(|error| invalid(&in_plain_words(error.message())))?;
            self.add(table, &Origin::Environment(name));
        }
        self.doubt(variables, &scalars);
        Ok(())
    }

    /// Variables that nobody reads and that are called nearly like one that counts. Others are left alone: some
    /// systems set variables for every service that they know, such as `MAILBOXQTT_PORT`.
    fn doubt(&mut self, variables: &BTreeMap<String, OsString>, keys: &[(String, Scalar)]) {
        let known: Vec<String> = keys.iter().map(|(key, _)| variable(key)).collect();
        let strange = |name: &&String| name.starts_with(PREFIX) && !known.contains(name);
        for name in variables.keys().filter(strange) {
            let names = known.iter().filter_map(|name| name.strip_prefix(PREFIX));
            let near = nearest(&name[PREFIX.len()..], names, 0.9);
            self.doubts.extend(near.map(|near| {
                format!("nothing reads the environment variable {name}: is {PREFIX}{near} meant?")
            }));
        }
    }

    /// What the argument `flag` says of `key`.
    pub(super) fn add_argument(&mut self, flag: &'static str, key: &str, value: Value) {
        self.add(nest(key, value), &Origin::Argument(flag));
    }

    fn add(&mut self, table: Table, origin: &Origin) {
        lay(table, &mut self.table, "", &mut |name| {
            self.origins.insert(name, origin.clone());
        });
    }

    /// Everything that was said, and the defaults for the rest.
    pub(super) fn settle(self) -> Result<Settings, InvalidConfig> {
        let Self { table, origins, mut doubts } = self;
        // Each layer was read by itself before, so that errors are known by their place.
        let file: File = table.try_into().map_err(|error: toml::de::Error| {
            InvalidConfig::Layers { error: error.message().to_owned() }
        })?;
        doubts.extend(file.all_listeners().iter().filter_map(|listener| listener.doubt(&file)));
        Ok(Settings { file, origins, doubts })
    }
}

/// The environment variable for `key`: `authentication.password_file` is
/// `MAILBOXQTT_AUTHENTICATION__PASSWORD_FILE`.
pub fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "__").to_uppercase())
}

/// `text` as a value of this kind, or what it should be.
fn value(kind: Scalar, text: &str) -> Result<Value, &'static str> {
    match kind {
        Scalar::Text | Scalar::Secret | Scalar::Url => Ok(text.into()),
        Scalar::Boolean => text.parse().map(Value::Boolean).map_err(|_| "must be true or false"),
        Scalar::Integer => text.parse().map(Value::Integer).map_err(|_| "must be a whole number"),
        Scalar::Float => text.parse().map(Value::Float).map_err(|_| "must be a number"),
        Scalar::Any => {
            let boolean = text.parse().map(Value::Boolean);
            let number = || text.parse().map(Value::Integer);
            Ok(boolean.or_else(|_| number()).unwrap_or_else(|_| text.into()))
        }
    }
}

/// A table with `value` at `key`, whose sections are in dots.
fn nest(key: &str, value: Value) -> Table {
    match key.split_once('.') {
        Some((section, rest)) => Table::from_iter([(section.to_owned(), nest(rest, value).into())]),
        None => Table::from_iter([(key.to_owned(), value)]),
    }
}

/// Lays `upper` over `lower` and calls `said` with the name of everything in it that is not a table.
fn lay(upper: Table, lower: &mut Table, path: &str, said: &mut impl FnMut(String)) {
    for (key, value) in upper {
        let name = join(path, &key);
        match value {
            Value::Table(upper) => {
                let below = lower.entry(key).or_insert_with(|| Table::new().into());
                if !below.is_table() {
                    *below = Table::new().into();
                }
                if let Value::Table(lower) = below {
                    lay(upper, lower, &name, said);
                }
            }
            value => {
                lower.insert(key, value);
                said(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> BTreeMap<String, OsString> {
        variables.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect()
    }

    #[test]
    fn value_that_cannot_be_is_refused_with_the_place_where_it_was_said() {
        let file = crate::config::read::parse("qos_max = 3\ndurability = 'none'").unwrap();
        let settings = Settings::of(Path::new("my.toml"), file).unwrap();
        let error = settings.check(1024).unwrap_err().to_string();
        assert!(error.starts_with("setting `qos_max` must be"), "{error}");
        assert!(error.ends_with(" (file my.toml)"), "{error}");
    }

    fn from_environment(variables: &[(&str, &str)]) -> Result<Settings, InvalidConfig> {
        let mut layers = Layers::default();
        layers.add_environment(&environment(variables))?;
        layers.settle()
    }

    #[test]
    fn each_layer_wins_over_the_ones_below_it_key_by_key() {
        let mut layers = Layers::default();
        let file = "shards = 3\ninflight_max = 3\nreceive_max = 3\n[scram_users]\nalice = 'a'";
        layers.add_file(Path::new("f.toml"), toml::from_str(file).unwrap());
        let variables = environment(&[
            ("MAILBOXQTT_INFLIGHT_MAX", "4"),
            ("MAILBOXQTT_SHARDS", "4"),
            ("MAILBOXQTT_ALLOW_ANONYMOUS", "true"),
        ]);
        layers.add_environment(&variables).unwrap();
        layers.add_argument("--shards", "shards", 5.into());
        let settings = layers.settle().unwrap();

        let File { shards, inflight_max, receive_max, allow_anonymous, .. } = settings.file;
        assert_eq!((shards, inflight_max, receive_max, allow_anonymous), (5, 4, 3, Some(true)));
        assert_eq!(settings.file.packet_bytes_max, File::default().packet_bytes_max);
        for (key, origin) in [
            ("shards", "argument --shards"),
            ("inflight_max", "environment MAILBOXQTT_INFLIGHT_MAX"),
            ("receive_max", "file f.toml"),
            ("scram_users.alice", "file f.toml"),
            ("packet_bytes_max", "default"),
        ] {
            assert_eq!(settings.origin(key).to_string(), origin, "{key}");
        }
    }

    #[test]
    fn address_has_two_names_in_the_environment_and_the_one_like_the_others_wins() {
        let short = ("SOCKET_ADDR", "127.0.0.1:1");
        let settings = from_environment(&[short]).unwrap();
        assert_eq!(settings.file.listen.port(), 1);
        assert_eq!(settings.origin("listen").to_string(), "environment SOCKET_ADDR");
        let both = [short, ("MAILBOXQTT_LISTEN", "127.0.0.1:2")];
        assert_eq!(from_environment(&both).unwrap().file.listen.port(), 2);
    }

    #[test]
    fn variable_that_cannot_be_is_refused_by_its_name() {
        for (name, value, rule) in [
            ("MAILBOXQTT_SHARDS", "many", "must be a whole number"),
            ("MAILBOXQTT_SHARDS", "70000", "must be a whole number from 0 to 65535, not integer"),
            ("MAILBOXQTT_ALLOW_ANONYMOUS", "yes", "must be true or false"),
            ("MAILBOXQTT_DURABILITY", "forever", "forever"),
            ("SOCKET_ADDR", "localhost", "must be an address with a port"),
        ] {
            let error = from_environment(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(&format!("environment variable {name}")), "{error}");
            assert!(error.contains(rule), "{error}");
        }
    }

    #[test]
    fn variable_that_is_nearly_a_setting_is_doubted_and_that_of_a_container_system_is_not() {
        let settings = from_environment(&[
            ("MAILBOXQTT_INFLIGT_MAX", "4"),
            ("MAILBOXQTT_PORT", "tcp://10.0.0.1:1883"),
            ("MAILBOXQTT_SERVICE_HOST", "10.0.0.1"),
            ("MAILBOXQTT_TEST_BINARY", "/bin/true"),
        ]);
        let doubt = "nothing reads the environment variable MAILBOXQTT_INFLIGT_MAX: is \
                     MAILBOXQTT_INFLIGHT_MAX meant?";
        assert_eq!(settings.unwrap().doubts, [doubt]);
    }

    #[test]
    fn broker_that_lets_nobody_in_is_doubted() {
        let settings = from_environment(&[("MAILBOXQTT_ALLOW_ANONYMOUS", "false")]).unwrap();
        let doubt = "listener 127.0.0.1:1883 lets nobody in: allow_anonymous is false and there are no users";
        assert_eq!(settings.doubts, [doubt]);
        assert!(from_environment(&[]).unwrap().doubts.is_empty());
    }

    #[test]
    fn sections_are_two_underscores_in_the_environment() {
        assert_eq!(variable("sys_interval_s"), "MAILBOXQTT_SYS_INTERVAL_S");
        assert_eq!(variable("a_b.c.d_e"), "MAILBOXQTT_A_B__C__D_E");
        assert_eq!(nest("a.b", 1.into()).to_string(), "[a]\nb = 1\n");
    }
}

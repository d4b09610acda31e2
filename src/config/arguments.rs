//! The command line, and the file and the environment below it. Floor 6, read by `main`.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::auth;
use crate::config::layers::{Layers, Settings};
use crate::config::read::read;
use crate::config::{DurabilityLevel, Explain, InvalidConfig, InvalidValue};
use crate::store::start::default_dir;

/// An MQTT broker for 3.1.1 and 5.0 that uses all cores.
#[derive(Clone, Debug, Default, Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Where to accept MQTT over TCP [default: 127.0.0.1:1883]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// Router shards that topics are hashed onto [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: Option<u16>,

    /// Where sessions, queues and retained messages are kept; a second broker needs another place
    /// [default: $STATE_DIRECTORY, or mailboxqtt in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// What an acknowledgement promises [default: always]
    #[arg(long, value_name = "LEVEL")]
    pub durability: Option<DurabilityLevel>,

    /// Size of each file of the message log, two of which are made at once [default: 67108864]
    #[arg(long, value_name = "BYTES")]
    pub log_segment_bytes: Option<u64>,

    /// Settings file in TOML; `--print-config` shows every key with its value
    #[arg(long, env = "MAILBOXQTT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Accept clients that do not say who they are, also from other machines and beside users; `=false` refuses
    /// them everywhere
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "true")]
    pub allow_anonymous: Option<bool>,

    /// Print the settings that are in force as a settings file, each with where it came from, and stop
    #[arg(long)]
    pub print_config: bool,

    /// Read the settings and all files that they name, say whether they are in order, and stop
    #[arg(long, conflicts_with = "print_config")]
    pub check: bool,

    /// Something else than to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the command does instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Add a user to a password file, or replace the password
    ///
    /// The password is asked for at the terminal, or read as one line from standard input if that is something
    /// else. The file gets its Argon2id hash; all other lines stay as they are. The broker reads the file that
    /// `password_file` below `[authentication]` names.
    Passwd {
        /// The password file; made if there is none
        file: PathBuf,

        /// Who logs in with it
        user: String,

        /// Store what SCRAM-SHA-256 needs, so that the user may log in by that as well as by password
        #[arg(long, conflicts_with = "delete")]
        scram: bool,

        /// Remove the user
        #[arg(long)]
        delete: bool,
    },

    /// Print the settings file that does what a mosquitto.conf does
    ///
    /// What has no place in it is listed on standard error, each with its line and why. Passwords and rules stay
    /// in their files, which are read as they are.
    Import {
        /// The mosquitto.conf; the files that it includes are read as well
        file: PathBuf,
    },

    /// Ask for a password and print the line for `[scram_users]` in the settings file
    ///
    /// The password is asked for at the terminal, or read as one line from standard input if that is something
    /// else. The line holds what checks the password, and not the password.
    ScramUser {
        /// Who logs in with it
        name: String,

        /// Rounds of PBKDF2 that the client has to do at each login
        #[arg(long, value_name = "N", default_value_t = auth::ITERATIONS_MIN)]
        #[arg(value_parser = clap::value_parser!(u32).range(i64::from(auth::ITERATIONS_MIN)..))]
        iterations: u32,
    },

    /// Ask a broker whether it works: exit code 0 if it answers as it should
    ///
    /// Nothing is left behind at the broker, and no user is needed.
    Health {
        /// Where it accepts MQTT over TCP
        #[arg(env = "MAILBOXQTT_HEALTH_ADDR", default_value = "127.0.0.1:1883")]
        addr: SocketAddr,
    },

    /// Ask the rules of access
    #[command(subcommand)]
    Acl(AclCommand),
}

/// What the rules are asked.
#[derive(Clone, Debug, Subcommand)]
pub enum AclCommand {
    /// Say whether a client may publish to a topic or subscribe to a filter, and which rule decides it
    ///
    /// Exit code 0 is allowed, 1 is denied, 2 is a question without an answer.
    Explain(Explain),
}

const EXAMPLES: &str = "\
Examples:
  mailboxqtt                                  serve on 127.0.0.1:1883
  mailboxqtt --listen 127.0.0.1:0             serve on a free port and print it
  mailboxqtt --listen 0.0.0.0:1883 --allow-anonymous
  mailboxqtt --data-dir /srv/mqtt             keep there what must survive
  mailboxqtt --durability none                keep nothing
  SOCKET_ADDR=127.0.0.1:1884 RUST_LOG=debug mailboxqtt
  mailboxqtt --print-config > mailboxqtt.toml; mailboxqtt --config mailboxqtt.toml
  mailboxqtt --config mailboxqtt.toml --check

Users, who log in with user name and password:
  mailboxqtt passwd users alice
  printf '[authentication]\\npassword_file = \"users\"\\n' > users.toml
  mailboxqtt --config users.toml --listen 0.0.0.0:1883

Users, who log in with MQTT 5 and SCRAM-SHA-256:
  echo '[scram_users]' > users.toml
  mailboxqtt scram-user alice >> users.toml
  mailboxqtt --config users.toml --listen 0.0.0.0:1883

Coming from mosquitto:
  mailboxqtt import /etc/mosquitto/mosquitto.conf > mailboxqtt.toml

Rules of access:
  mailboxqtt acl explain sensor-1 alice publish home/kitchen --config mailboxqtt.toml
  mailboxqtt acl explain sensor-1 - subscribe 'home/#' --acl-file /etc/mosquitto/acl

Environment, over the settings file and under the arguments:
  MAILBOXQTT_<KEY>
                every key of the settings file, as in MAILBOXQTT_DATA_DIR; sections are set
                off by two underscores, as in MAILBOXQTT_<SECTION>__<KEY>
  SOCKET_ADDR   like --listen
  MAILBOXQTT_CONFIG
                like --config
  RUST_LOG      what is logged to standard error: error, warn, info (default), debug, or
                per module, as in mailboxqtt::net=debug

Try it:
  mosquitto_sub -t 'home/#' -v &
  mosquitto_pub -t home/kitchen -m hello";

impl Arguments {
    /// Reads the file that the arguments name, if any, and puts environment and arguments over it.
    pub fn settings(&self) -> Result<Settings, InvalidConfig> {
        let variables = env::vars_os();
        let named = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        self.settings_in(&named.collect())
    }

    /// [`Arguments::settings`] with this environment.
    fn settings_in(
        &self,
        variables: &BTreeMap<String, OsString>,
    ) -> Result<Settings, InvalidConfig> {
        let mut layers = Layers::default();
        if let Some(path) = &self.config {
            layers.add_file(path, read(path)?);
        }
        layers.add_environment(variables)?;
        if let Some(listen) = self.listen {
            layers.add_argument("--listen", "listen", listen.to_string().into());
        }
        if let Some(shards) = self.shards {
            layers.add_argument("--shards", "shards", i64::from(shards).into());
        }
        if let Some(dir) = &self.data_dir {
            let key = "data_dir";
            let text = dir.to_str().ok_or(InvalidValue { key, rule: "must be UTF-8" })?;
            layers.add_argument("--data-dir", key, text.into());
        }
        if let Some(level) = self.durability {
            layers.add_argument("--durability", "durability", level.name().into());
        }
        if let Some(bytes) = self.log_segment_bytes {
            // Too many are refused as such.
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            layers.add_argument("--log-segment-bytes", "log_segment_bytes", bytes.into());
        }
        if let Some(is_allowed) = self.allow_anonymous {
            layers.add_argument("--allow-anonymous", "allow_anonymous", is_allowed.into());
        }
        let mut settings = layers.settle()?;
        if settings.file.data_dir.as_os_str().is_empty() {
            let variable = |name: &str| variables.get(name)?.to_str().map(str::to_owned);
            settings.file.data_dir = default_dir(variable).unwrap_or_default();
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn arguments_win_over_the_environment_and_that_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mailboxqtt.toml");
        fs::write(&path, "shards = 3\ninflight_max = 7\nreceive_max = 7").unwrap();
        let variables = [("MAILBOXQTT_SHARDS", "4"), ("MAILBOXQTT_RECEIVE_MAX", "8")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.into()));
        let arguments = Arguments { shards: Some(5), config: Some(path), ..Arguments::default() };
        let file = arguments.settings_in(&BTreeMap::from(variables)).unwrap().file;
        assert_eq!((file.shards, file.inflight_max, file.receive_max), (5, 7, 8));
    }

    #[test]
    fn every_argument_gets_to_the_setting_of_its_name() {
        let words = "mailboxqtt --listen [::1]:7 --shards 3 --data-dir d --durability os \
                     --log-segment-bytes 65536 --allow-anonymous";
        let arguments = Arguments::parse_from(words.split_whitespace());
        let settings = arguments.settings_in(&BTreeMap::new()).unwrap();
        let file = &settings.file;
        assert_eq!((file.listen.to_string().as_str(), file.shards), ("[::1]:7", 3));
        assert_eq!((file.data_dir.to_str(), file.durability), (Some("d"), DurabilityLevel::Os));
        assert_eq!((file.log_segment_bytes, file.allow_anonymous), (65536, Some(true)));
        for key in
            ["listen", "shards", "data_dir", "durability", "log_segment_bytes", "allow_anonymous"]
        {
            let origin = settings.origin(key).to_string();
            assert_eq!(origin, format!("argument --{}", key.replace('_', "-")));
        }
    }

    #[test]
    fn anonymous_clients_are_refused_by_a_word_in_any_layer_and_that_is_not_the_default() {
        let none = BTreeMap::new();
        let said = |words: &[&str], variables: &BTreeMap<String, OsString>| {
            let arguments = Arguments::parse_from([&["mailboxqtt"], words].concat());
            arguments.settings_in(variables).unwrap().file.allow_anonymous
        };
        let variables =
            |value: &str| [("MAILBOXQTT_ALLOW_ANONYMOUS".to_owned(), value.into())].into();
        assert_eq!(said(&[], &none), None);
        assert_eq!(said(&["--allow-anonymous"], &none), Some(true));
        assert_eq!(said(&["--allow-anonymous=false"], &none), Some(false));
        assert_eq!(said(&[], &variables("false")), Some(false));
        assert_eq!(said(&["--allow-anonymous=false"], &variables("true")), Some(false));
    }

    #[test]
    fn place_of_the_data_is_found_out_where_nothing_names_it() {
        let variables = BTreeMap::from([("STATE_DIRECTORY".to_owned(), "/var/lib/x".into())]);
        let settings = Arguments::default().settings_in(&variables).unwrap();
        assert_eq!(settings.file.data_dir, PathBuf::from("/var/lib/x"));
    }
}

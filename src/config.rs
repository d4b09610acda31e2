//! Settings: defaults, then the file, then the environment, then the arguments. Floor 6.
//!
//! [`Arguments`] is the command line, [`File`] the configuration file field for field, [`Config`] the checked
//! result, split by owner.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;
use std::{fs, io};

use clap::{Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::auth;
use crate::auth::Scram;
use crate::codec::PACKET_BYTES_MAX;
use crate::ids::Qos;
use crate::router::keeper::RetainedLimits;
use crate::router::mailbox::QueueLimits;
use crate::router::sharing::Strategy;
use crate::session;
use crate::session::Availability;
use crate::session::authentication::{Access, Anonymous, Authenticator};
use crate::store::handle::Override;
use crate::store::log::Level;
use crate::store::start::default_dir;
use crate::topic::{TopicFilter, check_topic_name};
use crate::{net, router};

/// An MQTT broker for 3.1.1 and 5.0 that uses all cores.
#[derive(Clone, Debug, Default, Parser)]
#[command(version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Where to accept MQTT over TCP [default: 127.0.0.1:1883]
    #[arg(long, env = "SOCKET_ADDR", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// Router shards that topics are hashed onto [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: Option<u16>,

    /// Where sessions, queues and retained messages are kept; a second broker needs another place
    /// [default: $STATE_DIRECTORY, or mailboxqtt in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "MAILBOXQTT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// What an acknowledgement promises [default: always]
    #[arg(long, env = "MAILBOXQTT_DURABILITY", value_name = "LEVEL")]
    pub durability: Option<DurabilityLevel>,

    /// Size of each file of the message log, two of which are made at once [default: 67108864]
    #[arg(long, env = "MAILBOXQTT_LOG_SEGMENT_BYTES", value_name = "BYTES")]
    pub log_segment_bytes: Option<u64>,

    /// Settings file in TOML; `--print-config` shows every key with its value
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Accept clients that do not say who they are, also from other machines and beside users
    #[arg(long)]
    pub allow_anonymous: bool,

    /// Print the settings that are in force as a settings file, and stop
    #[arg(long)]
    pub print_config: bool,

    /// Something else than to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What an acknowledgement promises.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DurabilityLevel {
    /// Nothing: all is in memory and ends with the process
    None,
    /// It survives the process; a power cut may take the last second
    Os,
    /// It is on the disk and survives a power cut
    #[default]
    Always,
}

impl DurabilityLevel {
    /// `None` where nothing is kept.
    fn level(self) -> Option<Level> {
        match self {
            Self::None => None,
            Self::Os => Some(Level::Os),
            Self::Always => Some(Level::Always),
        }
    }
}

/// What the command does instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
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

Users, who log in with MQTT 5 and SCRAM-SHA-256:
  echo '[scram_users]' > users.toml
  mailboxqtt scram-user alice >> users.toml
  mailboxqtt --config users.toml --listen 0.0.0.0:1883

Environment, over the settings file and under the arguments:
  SOCKET_ADDR   like --listen
  MAILBOXQTT_DATA_DIR, MAILBOXQTT_DURABILITY, MAILBOXQTT_LOG_SEGMENT_BYTES
                like --data-dir, --durability, --log-segment-bytes
  RUST_LOG      what is logged to standard error: error, warn, info (default), debug, or
                per module, as in mailboxqtt::net=debug

Try it:
  mosquitto_sub -t 'home/#' -v &
  mosquitto_pub -t home/kitchen -m hello";

/// The settings file. Unknown keys are errors: a misspelt limit must not be a silent default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// Where to accept MQTT over TCP.
    pub listen: SocketAddr,
    /// Router shards; 0 is one per core.
    pub shards: u16,
    /// Where sessions, queues and retained messages are kept, by one broker only; empty is the place that the
    /// environment names for a service or a user.
    pub data_dir: PathBuf,
    /// What an acknowledgement promises: `none`, `os` (it survives the process; a power cut may take the last
    /// second) or `always` (it survives a power cut).
    pub durability: DurabilityLevel,
    /// Size of each file of the message log, from 64 KiB to 4 GiB; one is in use and one is made ready.
    pub log_segment_bytes: u64,
    /// Accept clients that do not say who they are, also from other machines and beside users. Without users
    /// those from this machine are always accepted.
    pub allow_anonymous: bool,
    /// Connections at the same time; 0 is as many as the open-file limit allows.
    pub connections_max: usize,
    /// Seconds that a new connection may take to send its CONNECT.
    pub handshake_s_max: u16,
    /// Largest CONNECT that is read, in bytes; a will of this size stays in memory.
    pub connect_bytes_max: u32,
    /// Largest packet that is read, in bytes.
    pub packet_bytes_max: u32,
    /// Unacknowledged QoS 1 and 2 messages towards one client.
    pub inflight_max: u16,
    /// Unacknowledged QoS 1 and 2 messages from one MQTT 5 client: the Receive Maximum it is told.
    pub receive_max: u16,
    /// Topic filters that one session may be subscribed to.
    pub subscriptions_max: usize,
    /// Bytes of the filters that one session may be subscribed to.
    pub subscription_bytes_max: usize,
    /// Sessions, their clients connected or away; one more client is refused.
    pub sessions_max: u64,
    /// Longest keep-alive of an MQTT 5 client in seconds; 0 leaves it to the client.
    pub keep_alive_s_max: u16,
    /// Longest time in seconds that a session outlives its connection; 0 leaves it to the client.
    pub session_expiry_s_max: u32,
    /// Topic aliases that one MQTT 5 client may use, and that are used towards it; 0 is none.
    pub topic_alias_max: u16,
    /// Highest QoS of messages and subscriptions.
    pub qos_max: u8,
    /// Whether retained messages are available.
    pub retain_available: bool,
    /// Whether topic filters may hold `+` and `#`.
    pub wildcard_subscriptions: bool,
    /// Whether shared subscriptions are available.
    pub shared_subscriptions: bool,
    /// Whether subscription identifiers are available.
    pub subscription_identifiers: bool,
    /// What the topics begin with that MQTT 5 clients are told to have responses sent to; empty tells none.
    pub response_topic_prefix: String,
    /// Refuse messages that say they are text and are not.
    pub check_payload_format: bool,
    /// Messages that wait for one session, its client connected or away.
    pub queue_messages_max: u64,
    /// Bytes held by the messages that wait for one session or are not acknowledged by it.
    pub queue_bytes_max: usize,
    /// Retained messages.
    pub retained_messages_max: u64,
    /// Bytes of retained messages and their topics.
    pub retained_bytes_max: u64,
    /// Which member of a shared subscription gets a message: `round_robin`, `random`,
    /// `least_in_flight`, `sticky_publisher` or `sticky_topic`.
    pub shared_strategy: Strategy,
    /// Seconds between two rounds of `$SYS` messages.
    pub sys_interval_s: u16,
    /// Levels for the messages to some topics, in place of `durability`; the first filter that matches counts.
    pub durability_overrides: Vec<DurabilityOverride>,
    /// Who may log in by SCRAM-SHA-256, with what `mailboxqtt scram-user` prints for each.
    pub scram_users: BTreeMap<String, String>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 1883).into(),
            shards: 0,
            data_dir: PathBuf::new(),
            durability: DurabilityLevel::default(),
            log_segment_bytes: 64 * 1024 * 1024,
            allow_anonymous: false,
            connections_max: 0,
            handshake_s_max: 10,
            connect_bytes_max: 256 * 1024,
            packet_bytes_max: 16 * 1024 * 1024,
            inflight_max: 1_000,
            receive_max: 1_000,
            subscriptions_max: 100_000,
            subscription_bytes_max: 16 * 1024 * 1024,
            sessions_max: 1_000_000,
            keep_alive_s_max: 0,
            session_expiry_s_max: 0,
            topic_alias_max: 64,
            qos_max: 2,
            retain_available: true,
            wildcard_subscriptions: true,
            shared_subscriptions: true,
            subscription_identifiers: true,
            response_topic_prefix: String::new(),
            check_payload_format: false,
            queue_messages_max: 100_000,
            queue_bytes_max: 64 * 1024 * 1024,
            retained_messages_max: 1_000_000,
            retained_bytes_max: 1024 * 1024 * 1024,
            shared_strategy: Strategy::RoundRobin,
            sys_interval_s: 10,
            durability_overrides: Vec::new(),
            scram_users: BTreeMap::new(),
        }
    }
}

/// Messages to some topics are kept at a level of their own.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct DurabilityOverride {
    /// Which topics.
    pub filter: String,
    /// At which level.
    pub level: DurabilityLevel,
}

/// Checked settings, split by owner. No part of the broker sees another part's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// For `broker`.
    pub listen: SocketAddr,
    /// For `broker`, at least one.
    pub shards: usize,
    /// For `broker`; `None` keeps everything in memory.
    pub durability: Option<Durability>,
    /// For `net`.
    pub net: net::Limits,
    /// For `net`.
    pub access: Access,
    /// For `router`.
    pub router: router::Limits,
    /// For `sys`.
    pub sys_interval: Duration,
}

/// What outlives the process.
#[derive(Clone, Debug)]
pub struct Durability {
    /// Where it is.
    pub dir: PathBuf,
    /// What has to be true of a record before anything is acknowledged.
    pub level: Level,
    /// Size of each file of the message log.
    pub log_segment_bytes: u64,
    /// Other levels for some topics.
    pub overrides: Vec<Override>,
}

/// Why there are no settings. Names the key and the rule, so that the operator need not read code.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// The file cannot be read.
    #[error("cannot read the settings file {}: {error}", path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// From the system.
        error: io::Error,
    },
    /// The file is not what it should be.
    #[error("settings file {}: {error}", path.display())]
    Syntax {
        /// As given.
        path: PathBuf,
        /// Names line and key.
        error: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("setting `{key}` {rule}")]
    Value {
        /// As in the file.
        key: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// Users that cannot be.
    #[error("setting `scram_users`: {0}")]
    User(#[from] auth::InvalidUser),
    /// Neither said nor to be found out.
    #[error(
        "there is no place for the data: set `data_dir` (--data-dir DIR), or HOME, or keep nothing \
         with --durability none"
    )]
    NoDataDir,
    /// Everybody could connect.
    #[error(
        "listening on {0} would let anybody on the network in without a password; listen on a loopback \
         address, name users below [scram_users] in the settings file (`mailboxqtt scram-user`), or say \
         --allow-anonymous (in the settings file: allow_anonymous = true)"
    )]
    OpenToTheWorld(SocketAddr),
}

impl Arguments {
    /// Reads the file that the arguments name, if any, and puts environment and arguments over it.
    pub fn settings(&self) -> Result<File, InvalidConfig> {
        let mut file = match &self.config {
            Some(path) => read(path)?,
            None => File::default(),
        };
        file.listen = self.listen.unwrap_or(file.listen);
        file.shards = self.shards.unwrap_or(file.shards);
        file.durability = self.durability.unwrap_or(file.durability);
        file.log_segment_bytes = self.log_segment_bytes.unwrap_or(file.log_segment_bytes);
        if let Some(dir) = &self.data_dir {
            file.data_dir.clone_from(dir);
        }
        if file.data_dir.as_os_str().is_empty() {
            file.data_dir = default_dir(|name| std::env::var(name).ok()).unwrap_or_default();
        }
        file.allow_anonymous |= self.allow_anonymous;
        Ok(file)
    }
}

fn read(path: &std::path::Path) -> Result<File, InvalidConfig> {
    let text = fs::read_to_string(path)
        .map_err(|error| InvalidConfig::Unreadable { path: path.into(), error })?;
    toml::from_str(&text)
        .map_err(|error| InvalidConfig::Syntax { path: path.into(), error: Box::new(error) })
}

impl File {
    /// Checks the values. `files_max` is how many files the process may open.
    pub fn check(self, files_max: usize) -> Result<Config, InvalidConfig> {
        let not_zero = |key, value: u64| match value {
            0 => Err(InvalidConfig::Value { key, rule: "must be at least 1" }),
            _ => Ok(()),
        };
        not_zero("handshake_s_max", self.handshake_s_max.into())?;
        not_zero("inflight_max", self.inflight_max.into())?;
        not_zero("receive_max", self.receive_max.into())?;
        not_zero("queue_messages_max", self.queue_messages_max)?;
        not_zero("queue_bytes_max", self.queue_bytes_max as u64)?;
        not_zero("connect_bytes_max", self.connect_bytes_max.into())?;
        not_zero("sessions_max", self.sessions_max)?;
        if !(64 * 1024..=1 << 32).contains(&self.log_segment_bytes) {
            let rule = "must be from 65536 to 4294967296";
            return Err(InvalidConfig::Value { key: "log_segment_bytes", rule });
        }
        not_zero("sys_interval_s", self.sys_interval_s.into())?;
        if !(64..=PACKET_BYTES_MAX).contains(&self.packet_bytes_max) {
            let rule = "must be from 64 to 268435460, the largest packet of the standard";
            return Err(InvalidConfig::Value { key: "packet_bytes_max", rule });
        }
        let rule = "must be 0, 1 or 2";
        let qos_max =
            Qos::new(self.qos_max).ok_or(InvalidConfig::Value { key: "qos_max", rule })?;
        let prefix = &self.response_topic_prefix;
        if !prefix.is_empty() && (check_topic_name(prefix).is_err() || prefix.starts_with('$')) {
            let rule = "must be empty or a topic name that does not begin with `$`";
            return Err(InvalidConfig::Value { key: "response_topic_prefix", rule });
        }
        let anonymous = match self.allow_anonymous || self.scram_users.is_empty() {
            true => Anonymous::Allowed,
            false => Anonymous::Refused,
        };
        let is_open = self.scram_users.is_empty() && !self.allow_anonymous;
        if !self.listen.ip().is_loopback() && is_open {
            return Err(InvalidConfig::OpenToTheWorld(self.listen));
        }
        let mut authenticators: Vec<Arc<dyn Authenticator>> = Vec::new();
        if !self.scram_users.is_empty() {
            authenticators.push(Arc::new(Scram::new(&self.scram_users)?));
        }
        let level = self.durability.level();
        let mut overrides = Vec::new();
        for DurabilityOverride { filter, level: own_level } in &self.durability_overrides {
            let parsed = TopicFilter::parse(filter).ok().filter(|filter| !filter.is_shared());
            let Some(filter) = parsed else {
                let rule = "has a filter that is none: see section 4.7 of the standard";
                return Err(InvalidConfig::Value { key: "durability_overrides", rule });
            };
            overrides.push(Override { filter, level: own_level.level() });
        }
        if level.is_none() && !overrides.is_empty() {
            let rule = "means nothing with durability `none`: set that to `os` or `always`";
            return Err(InvalidConfig::Value { key: "durability_overrides", rule });
        }
        let durability = level.map(|level| Durability {
            dir: self.data_dir,
            level,
            log_segment_bytes: self.log_segment_bytes,
            overrides,
        });
        if durability.as_ref().is_some_and(|it| it.dir.as_os_str().is_empty()) {
            return Err(InvalidConfig::NoDataDir);
        }
        // Files that are not connections: standard streams, listener, epoll, a margin.
        let connections_possible = files_max.saturating_sub(32).max(1);
        Ok(Config {
            listen: self.listen,
            shards: match self.shards {
                0 => available_parallelism().map_or(1, usize::from),
                shards => shards.into(),
            },
            durability,
            net: net::Limits {
                connections_max: match self.connections_max {
                    0 => connections_possible,
                    max => max.min(connections_possible),
                },
                sessions_max: self.sessions_max,
                connect_bytes_max: self.connect_bytes_max.min(self.packet_bytes_max),
                response_topic_prefix: self.response_topic_prefix.into(),
                handshake_max: Duration::from_secs(self.handshake_s_max.into()),
                session: session::Limits {
                    inflight_max: self.inflight_max,
                    receive_max: self.receive_max,
                    packet_bytes_max: self.packet_bytes_max,
                    subscriptions_max: self.subscriptions_max,
                    subscription_bytes_max: self.subscription_bytes_max,
                    keep_alive_s_max: (self.keep_alive_s_max > 0).then_some(self.keep_alive_s_max),
                    session_expiry_s_max: (self.session_expiry_s_max > 0)
                        .then_some(self.session_expiry_s_max),
                    topic_alias_max: self.topic_alias_max,
                    availability: Availability {
                        qos_max,
                        retain: self.retain_available,
                        wildcard_subscriptions: self.wildcard_subscriptions,
                        shared_subscriptions: self.shared_subscriptions,
                        subscription_identifiers: self.subscription_identifiers,
                    },
                    check_payload_format: self.check_payload_format,
                },
            },
            access: Access { authenticators, anonymous },
            router: router::Limits {
                queue: QueueLimits {
                    messages_max: self.queue_messages_max,
                    bytes_max: self.queue_bytes_max,
                },
                retained: RetainedLimits {
                    messages_max: self.retained_messages_max,
                    bytes_max: self.retained_bytes_max,
                },
                sharing: self.shared_strategy,
            },
            sys_interval: Duration::from_secs(self.sys_interval_s.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_settings_can_be_read_back() {
        let printed = toml::to_string(&File::default()).unwrap();
        let read: File = toml::from_str(&printed).unwrap();
        assert_eq!(toml::to_string(&read).unwrap(), printed);
    }

    #[test]
    fn misspelt_key_is_refused_by_name() {
        let error = toml::from_str::<File>("inflight_maximum = 3").unwrap_err();
        assert!(error.to_string().contains("inflight_maximum"), "{error}");
    }

    #[test]
    fn zero_is_refused_by_key() {
        let file = File { inflight_max: 0, ..File::default() };
        let error = file.check(1024).unwrap_err();
        assert_eq!(error.to_string(), "setting `inflight_max` must be at least 1");
    }

    #[test]
    fn qos_and_response_topics_that_cannot_be_are_refused_by_key() {
        let error = File { qos_max: 3, ..in_memory() }.check(1024).unwrap_err();
        assert_eq!(error.to_string(), "setting `qos_max` must be 0, 1 or 2");
        for prefix in ["a/#", "+", "$SYS/", "a\0"] {
            let file = File { response_topic_prefix: prefix.into(), ..in_memory() };
            let error = file.check(1024).unwrap_err();
            assert!(error.to_string().contains("`response_topic_prefix`"), "{prefix}: {error}");
        }
        let file = File { response_topic_prefix: "answers/".into(), ..in_memory() };
        assert_eq!(&*file.check(1024).unwrap().net.response_topic_prefix, "answers/");
    }

    #[test]
    fn listening_beyond_loopback_needs_a_word_of_consent() {
        let open = File { listen: ([0, 0, 0, 0], 1883).into(), ..in_memory() };
        let error = open.clone().check(1024).unwrap_err();
        assert!(error.to_string().contains("--allow-anonymous"), "{error}");
        assert!(error.to_string().contains("[scram_users]"), "{error}");
        assert!(File { allow_anonymous: true, ..open.clone() }.check(1024).is_ok());
        assert!(File { scram_users: alice(), ..open }.check(1024).is_ok());
    }

    #[test]
    fn anonymous_clients_are_refused_where_there_are_users_and_no_consent() {
        let anonymous = |file: File| file.check(1024).unwrap().access.anonymous;
        let users = File { scram_users: alice(), ..in_memory() };
        assert_eq!(anonymous(in_memory()), Anonymous::Allowed);
        assert_eq!(anonymous(users.clone()), Anonymous::Refused);
        assert_eq!(anonymous(File { allow_anonymous: true, ..users }), Anonymous::Allowed);
    }

    #[test]
    fn user_whose_credential_cannot_be_read_is_refused_by_name() {
        let file: File = toml::from_str("[scram_users]\nbob = \"hunter2\"").unwrap();
        let error = file.check(1024).unwrap_err().to_string();
        assert!(error.starts_with("setting `scram_users`: the value of `bob` is not"), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn users_are_printed_as_they_were_read() {
        let users = alice();
        let file = File { scram_users: users.clone(), ..File::default() };
        let printed = toml::to_string(&file).unwrap();
        let read: File = toml::from_str(&printed).unwrap();
        assert_eq!(read.scram_users, users);
        assert_eq!(read.sys_interval_s, file.sys_interval_s);
    }

    #[test]
    fn data_without_a_place_are_refused_with_the_way_out() {
        let error = File::default().check(1024).unwrap_err().to_string();
        assert!(error.contains("--data-dir") && error.contains("--durability none"), "{error}");
        let file = File { data_dir: "data".into(), ..File::default() };
        let durability = file.check(1024).unwrap().durability.unwrap();
        assert_eq!((durability.dir, durability.level), ("data".into(), Level::Always));
        assert!(in_memory().check(1024).unwrap().durability.is_none());
    }

    #[test]
    fn levels_of_topics_are_read_in_their_order_and_wrong_ones_are_refused_by_key() {
        let text = "data_dir = \"data\"\n[[durability_overrides]]\nfilter = \"telemetry/#\"\n\
                    level = \"none\"\n[[durability_overrides]]\nfilter = \"a/+\"\nlevel = \"os\"";
        let file: File = toml::from_str(text).unwrap();
        let overrides = file.clone().check(1024).unwrap().durability.unwrap().overrides;
        let read = overrides.iter().map(|it| (it.filter.as_str(), it.level));
        assert_eq!(read.collect::<Vec<_>>(), [("telemetry/#", None), ("a/+", Some(Level::Os))]);
        let printed = toml::to_string(&file).unwrap();
        let again: File = toml::from_str(&printed).unwrap();
        assert_eq!(toml::to_string(&again).unwrap(), printed);

        for filter in ["a/#/b", "", "$share/g/a"] {
            let mut wrong = file.clone();
            wrong.durability_overrides[0].filter = filter.to_owned();
            let error = wrong.check(1024).unwrap_err().to_string();
            assert!(error.contains("`durability_overrides`"), "{filter}: {error}");
        }
        let error = File { durability: DurabilityLevel::None, ..file }.check(1024).unwrap_err();
        assert!(error.to_string().contains("`durability_overrides`"), "{error}");
    }

    /// Nothing outlives the process, so no place is needed.
    fn in_memory() -> File {
        File { durability: DurabilityLevel::None, ..File::default() }
    }

    fn alice() -> BTreeMap<String, String> {
        let credential = auth::Credential::new("secret", auth::ITERATIONS_MIN).unwrap();
        BTreeMap::from([("alice".to_owned(), credential.to_string())])
    }

    #[test]
    fn arguments_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mailboxqtt.toml");
        fs::write(&path, "shards = 3\ninflight_max = 7").unwrap();
        let arguments = Arguments { shards: Some(5), config: Some(path), ..Arguments::default() };
        let file = arguments.settings().unwrap();
        assert_eq!((file.shards, file.inflight_max), (5, 7));
    }
}

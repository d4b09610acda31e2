//! The settings file, field for field. Floor 6, checked by `config::check`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::config::{Authentication, Authorisation, Listener, Secret};
use crate::router::queues::Policy;
use crate::router::sharing::Strategy;
use crate::store::log::Level;

/// The settings file. Unknown keys are errors: a misspelt limit must not be a silent default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// Where to accept MQTT over TCP.
    pub listen: SocketAddr,
    /// Router shards that topics are hashed onto, at most 1024; 0 is one per core.
    pub shards: u16,
    /// Where sessions, queues and retained messages are kept, by one broker only; empty is the place that the
    /// environment names for a service or a user.
    pub data_dir: PathBuf,
    /// What an acknowledgement promises: `none`, `os` (it survives the process; a power cut may take the last
    /// second) or `always` (it survives a power cut).
    pub durability: DurabilityLevel,
    /// Size of each file of the message log, from 64 KiB to 4 GiB; one is in use and one is made ready.
    pub log_segment_bytes: u64,
    /// Bytes of all files in the data directory, beyond which messages that must be kept are refused; 0 is as much as
    /// the disk has, but for a reserve.
    pub disk_bytes_max: u64,
    /// Bytes of memory of the process, beyond which new work is refused; 0 is no limit.
    pub memory_bytes_max: u64,
    /// Accept clients that do not say who they are: `true` also from other machines and beside users, `false` nowhere.
    /// Not set, they are accepted where only this machine comes in, and only while there are no users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_anonymous: Option<bool>,
    /// Connections at the same time; 0 is as many as the open-file limit allows.
    pub connections_max: usize,
    /// Connections at the same time from one address; all addresses of one IPv6 /64 count as one. 0 is no limit.
    pub connections_per_address_max: u32,
    /// Connections per second from one address, TLS or not; as many may come at once. 0 is no limit.
    pub accept_rate_per_address_max: u32,
    /// Connections per second from all addresses, in the same way.
    pub accept_rate_max: u32,
    /// Seconds that a new connection may take to send its CONNECT and to prove who it is; at least 1.
    pub handshake_s_max: u16,
    /// Largest CONNECT that is read, in bytes, at least 1; a will of this size stays in memory.
    pub connect_bytes_max: u32,
    /// Largest packet that is read, in bytes, from 64 to 268435460.
    pub packet_bytes_max: u32,
    /// Unacknowledged QoS 1 and 2 messages towards one client, at least 1.
    pub inflight_max: u16,
    /// Unacknowledged QoS 1 and 2 messages from one MQTT 5 client, at least 1: the Receive Maximum it is told.
    pub receive_max: u16,
    /// Topic filters that one session may be subscribed to.
    pub subscriptions_max: usize,
    /// Bytes of the filters that one session may be subscribed to.
    pub subscription_bytes_max: usize,
    /// Sessions, their clients connected or away, at least 1; one more client is refused.
    pub sessions_max: u64,
    /// Longest keep-alive of an MQTT 5 client in seconds; 0 leaves it to the client.
    pub keep_alive_s_max: u16,
    /// Longest time in seconds that a session outlives its connection; 0 leaves it to the client.
    pub session_expiry_s_max: u32,
    /// Topic aliases that one MQTT 5 client may use, and that are used towards it; 0 is none.
    pub topic_alias_max: u16,
    /// Highest QoS of messages and subscriptions: 0, 1 or 2.
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
    /// Messages that wait for one session, its client connected or away; at least 1.
    pub queue_messages_max: u64,
    /// Bytes held by the messages that wait for one session or are not acknowledged by it; at least 1.
    pub queue_bytes_max: usize,
    /// What happens to a message for which a queue has no room: `reject` (its publisher is told with 0x97, or not
    /// acknowledged), `drop_oldest` or `drop_newest`.
    pub queue_policy: Policy,
    /// Messages that wait for all sessions together.
    pub queues_messages_max: u64,
    /// Bytes held by the messages that wait for all sessions together or are not acknowledged by them.
    pub queues_bytes_max: u64,
    /// Messages per second that one client may publish; over it the client is not read for a while. 0 is no limit.
    pub publish_rate_max: u32,
    /// Bytes of messages per second that one client may publish, in the same way.
    pub publish_bytes_rate_max: u64,
    /// Retained messages of all topics; one more is not kept.
    pub retained_messages_max: u64,
    /// Bytes of retained messages and their topics.
    pub retained_bytes_max: u64,
    /// Which member of a shared subscription gets a message: `round_robin`, `random`,
    /// `least_in_flight`, `sticky_publisher` or `sticky_topic`.
    pub shared_strategy: Strategy,
    /// Seconds between two rounds of `$SYS` messages, at least 1.
    pub sys_interval_s: u16,
    /// How the log is written to standard error: `text`, or `json` with an object in each line.
    pub log_format: LogFormat,
    /// Levels for the messages to some topics, in place of `durability`; the first filter that matches counts.
    pub durability_overrides: Vec<DurabilityOverride>,
    /// Who may log in by what.
    pub authentication: Authentication,
    /// Who may publish and receive what.
    pub authorisation: Authorisation,
    /// Who may log in by SCRAM-SHA-256, with what `mailboxqtt scram-user` prints for each.
    pub scram_users: BTreeMap<String, Secret>,
    /// Listeners with settings of their own, see [listeners](listeners.md).
    pub listeners: Vec<Listener>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 1883).into(),
            shards: 0,
            data_dir: PathBuf::new(),
            durability: DurabilityLevel::default(),
            log_segment_bytes: 64 * 1024 * 1024,
            disk_bytes_max: 0,
            memory_bytes_max: 0,
            allow_anonymous: None,
            connections_max: 0,
            connections_per_address_max: 0,
            accept_rate_per_address_max: 0,
            accept_rate_max: 0,
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
            queue_policy: Policy::default(),
            queues_messages_max: 10_000_000,
            queues_bytes_max: 4 * 1024 * 1024 * 1024,
            publish_rate_max: 0,
            publish_bytes_rate_max: 0,
            retained_messages_max: 1_000_000,
            retained_bytes_max: 1024 * 1024 * 1024,
            shared_strategy: Strategy::RoundRobin,
            sys_interval_s: 10,
            log_format: LogFormat::default(),
            durability_overrides: Vec::new(),
            authentication: Authentication::default(),
            authorisation: Authorisation::default(),
            scram_users: BTreeMap::new(),
            listeners: Vec::new(),
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

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// An object in each line.
    Json,
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
    /// As in the file.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Os => "os",
            Self::Always => "always",
        }
    }

    /// `None` where nothing is kept.
    pub(super) fn level(self) -> Option<Level> {
        match self {
            Self::None => None,
            Self::Os => Some(Level::Os),
            Self::Always => Some(Level::Always),
        }
    }
}

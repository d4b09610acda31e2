//! Options of the load: what the clients speak, how they come, and how fast they send.

use std::net::IpAddr;

use clap::{Args, ValueEnum};
use mailboxqtt::ids::ProtocolVersion;

use crate::handshake::Session;
use crate::presets::Preset;
use crate::settings::Wire;

/// See the module.
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// A load with a name, which sets other options; those given beside it replace its own
    #[arg(long, value_name = "NAME", hide_possible_values = true, value_parser = Preset::values())]
    pub(crate) preset: Option<String>,

    /// Print all presets with what they set and show, and do nothing else
    #[arg(long)]
    pub(crate) list_presets: bool,

    /// Version of MQTT that all clients speak
    #[arg(long, visible_alias = "mqtt-version", value_enum, default_value_t)]
    pub(crate) mqtt: Version,

    /// MQTT 5: publishers say each topic once, and its alias from then on
    #[arg(long)]
    pub(crate) topic_alias: bool,

    /// Name of the shared subscription, in shared
    #[arg(long, value_name = "NAME", default_value = "loadgen")]
    pub(crate) group: String,

    /// Messages in all, in offline [default: 100,000] and retain [default: 10,000]
    #[arg(long, value_name = "N",
          value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub(crate) messages: Option<u64>,

    /// Subscribers that read slowly, in slow
    #[arg(long, value_name = "PERCENT", default_value_t = 10,
          value_parser = clap::value_parser!(u32).range(1..=99))]
    pub(crate) slow_percent: u32,

    /// What a slow subscriber reads, in slow
    #[arg(long, value_name = "BYTES_PER_S", default_value_t = 10_000,
          value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub(crate) slow_bytes: u64,

    /// Clients that subscribe and unsubscribe, in churn; besides --clients
    #[arg(long, value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) churn_clients: u32,

    /// SUBSCRIBE and UNSUBSCRIBE per second, over all of these clients
    #[arg(long, value_name = "N", default_value = "1000", value_parser = super::rate)]
    pub(crate) churn_rate: f64,

    /// Subscriptions beside the load that no message matches, half of them with a wildcard, held by further
    /// clients; not in slow, churn and sequences of steps
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(..=10_000_000))]
    pub(crate) unmatched: u64,

    /// Sessions outlive their connections (clean session off) and are ended after the run
    #[arg(long)]
    pub(crate) persistent: bool,

    /// Topics that the publishers share, in fan-out; every subscriber has all of them
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) topics: u32,

    /// Open loop: messages per second of each publisher
    #[arg(long, value_name = "MSG_PER_S", conflicts_with_all = ["rate", "window"],
          value_parser = super::rate)]
    pub(crate) rate_per_publisher: Option<f64>,

    /// Connections opened per second, by an absolute schedule, however many handshakes are under
    /// way; their time counts from the schedule
    #[arg(long, value_name = "N", conflicts_with = "concurrent", value_parser = connect_rate)]
    pub(crate) connect_rate: Option<f64>,

    /// Local addresses that connections come from in turn, for more of them than one address has ports
    /// for [default: the system's choice, and several of 127.0.0.0/8 over loopback]
    #[arg(long, value_name = "IP,IP", value_delimiter = ',')]
    pub(crate) source: Vec<IpAddr>,

    /// Keep-alive: every client sends two PINGREQ in so many seconds; 0 for none
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) keep_alive: u16,
}

/// A version of the standard.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Version {
    /// MQTT 3.1.1
    #[default]
    #[value(name = "3.1.1")]
    V311,
    /// MQTT 5.0
    #[value(name = "5", alias = "5.0")]
    V5,
}

impl Load {
    /// Whether sessions outlive connections.
    pub(crate) fn session(&self) -> Session {
        if self.persistent { Session::Persistent } else { Session::Clean }
    }

    /// How packets are written and read; the error says which options do not go together.
    pub(crate) fn wire(&self) -> anyhow::Result<Wire> {
        let version = match self.mqtt {
            Version::V311 if self.topic_alias => {
                anyhow::bail!("--topic-alias needs --mqtt 5: MQTT 3.1.1 has no aliases")
            }
            Version::V311 => ProtocolVersion::V311,
            Version::V5 => ProtocolVersion::V5,
        };
        Ok(Wire { version, topic_alias: self.topic_alias })
    }
}

fn connect_rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(1.0..=1e6).contains(&rate) {
        return Err("between 1 and 1,000,000 connections per second".to_owned());
    }
    Ok(rate)
}

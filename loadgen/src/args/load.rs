//! Options of the load: what the clients speak and how they come.

use clap::{Args, ValueEnum};
use mailboxqtt::ids::ProtocolVersion;

use crate::settings::Wire;

/// See the module.
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// Version of MQTT that all clients speak
    #[arg(long, visible_alias = "mqtt-version", value_enum, default_value_t)]
    pub(crate) mqtt: Version,

    /// MQTT 5: publishers say each topic once, and its alias from then on
    #[arg(long)]
    pub(crate) topic_alias: bool,

    /// Name of the shared subscription, in shared
    #[arg(long, value_name = "NAME", default_value = "loadgen")]
    pub(crate) group: String,
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

//! What one connection and its session may take: the keys at the top of the settings file, and those that a listener has
//! in place of them. Floor 6, called by `config::check` and `config::listeners`.

use std::time::Duration;

use crate::codec::PACKET_BYTES_MAX;
use crate::config::{File, InvalidValue, Listener};
use crate::ids::Qos;
use crate::net;
use crate::net::pace::PublishRates;
use crate::session;
use crate::session::Availability;
use crate::topic::check_topic_name;

impl File {
    /// Checks the values and puts those together that are for each connection.
    pub(super) fn connection_limits(&self) -> Result<net::Limits, InvalidValue> {
        let not_zero = |key, value: u32| match value {
            0 => Err(InvalidValue { key, rule: "must be at least 1" }),
            _ => Ok(()),
        };
        not_zero("handshake_s_max", self.handshake_s_max.into())?;
        not_zero("inflight_max", self.inflight_max.into())?;
        not_zero("receive_max", self.receive_max.into())?;
        not_zero("connect_bytes_max", self.connect_bytes_max)?;
        if !(64..=PACKET_BYTES_MAX).contains(&self.packet_bytes_max) {
            let rule = "must be from 64 to 268435460, the largest packet of the standard";
            return Err(InvalidValue { key: "packet_bytes_max", rule });
        }
        let rule = "must be 0, 1 or 2";
        let qos_max = Qos::new(self.qos_max).ok_or(InvalidValue { key: "qos_max", rule })?;
        let prefix = &self.response_topic_prefix;
        if !prefix.is_empty() && (check_topic_name(prefix).is_err() || prefix.starts_with('$')) {
            let rule = "must be empty or a topic name that does not begin with `$`";
            return Err(InvalidValue { key: "response_topic_prefix", rule });
        }
        Ok(net::Limits {
            connect_bytes_max: self.connect_bytes_max.min(self.packet_bytes_max),
            response_topic_prefix: prefix.as_str().into(),
            handshake_max: Duration::from_secs(self.handshake_s_max.into()),
            publish: PublishRates {
                messages_per_s: self.publish_rate_max,
                bytes_per_s: self.publish_bytes_rate_max,
            },
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
        })
    }

    /// The same settings with those in their place that a listener has of its `own`.
    pub(super) fn through(&self, own: &Listener) -> Self {
        Self {
            handshake_s_max: own.handshake_s_max.unwrap_or(self.handshake_s_max),
            connect_bytes_max: own.connect_bytes_max.unwrap_or(self.connect_bytes_max),
            packet_bytes_max: own.packet_bytes_max.unwrap_or(self.packet_bytes_max),
            inflight_max: own.inflight_max.unwrap_or(self.inflight_max),
            receive_max: own.receive_max.unwrap_or(self.receive_max),
            subscriptions_max: own.subscriptions_max.unwrap_or(self.subscriptions_max),
            subscription_bytes_max: own
                .subscription_bytes_max
                .unwrap_or(self.subscription_bytes_max),
            keep_alive_s_max: own.keep_alive_s_max.unwrap_or(self.keep_alive_s_max),
            session_expiry_s_max: own.session_expiry_s_max.unwrap_or(self.session_expiry_s_max),
            topic_alias_max: own.topic_alias_max.unwrap_or(self.topic_alias_max),
            qos_max: own.qos_max.unwrap_or(self.qos_max),
            retain_available: own.retain_available.unwrap_or(self.retain_available),
            wildcard_subscriptions: own
                .wildcard_subscriptions
                .unwrap_or(self.wildcard_subscriptions),
            shared_subscriptions: own.shared_subscriptions.unwrap_or(self.shared_subscriptions),
            subscription_identifiers: own
                .subscription_identifiers
                .unwrap_or(self.subscription_identifiers),
            response_topic_prefix: own
                .response_topic_prefix
                .clone()
                .unwrap_or_else(|| self.response_topic_prefix.clone()),
            check_payload_format: own.check_payload_format.unwrap_or(self.check_payload_format),
            publish_rate_max: own.publish_rate_max.unwrap_or(self.publish_rate_max),
            publish_bytes_rate_max: own
                .publish_bytes_rate_max
                .unwrap_or(self.publish_bytes_rate_max),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &[&str] = &[
        "handshake_s_max = 3",
        "connect_bytes_max = 300",
        "packet_bytes_max = 300",
        "inflight_max = 3",
        "receive_max = 3",
        "subscriptions_max = 3",
        "subscription_bytes_max = 3",
        "keep_alive_s_max = 3",
        "session_expiry_s_max = 3",
        "topic_alias_max = 3",
        "qos_max = 0",
        "retain_available = false",
        "wildcard_subscriptions = false",
        "shared_subscriptions = false",
        "subscription_identifiers = false",
        "response_topic_prefix = 'to/'",
        "check_payload_format = true",
        "publish_rate_max = 3",
        "publish_bytes_rate_max = 3",
    ];

    fn limits(file: &File) -> String {
        format!("{:?}", file.connection_limits().unwrap())
    }

    #[test]
    fn each_key_of_a_listener_does_what_it_does_at_the_top_and_nothing_else() {
        let common = File::default();
        for text in OWN {
            let own: Listener = toml::from_str(text).unwrap();
            let top: File = toml::from_str(text).unwrap();
            assert_eq!(limits(&common.through(&own)), limits(&top), "{text}");
            assert_ne!(limits(&common), limits(&top), "{text}");
        }
        assert_eq!(limits(&common.through(&Listener::default())), limits(&common));
    }

    #[test]
    fn values_of_a_listener_may_be_larger_than_those_at_the_top() {
        let common: File = toml::from_str("packet_bytes_max = 64\nkeep_alive_s_max = 5").unwrap();
        let own = "packet_bytes_max = 1000\nconnect_bytes_max = 900\nkeep_alive_s_max = 0";
        let limits = common.through(&toml::from_str(own).unwrap()).connection_limits().unwrap();
        assert_eq!((limits.session.packet_bytes_max, limits.connect_bytes_max), (1000, 900));
        assert_eq!(limits.session.keep_alive_s_max, None);
    }
}

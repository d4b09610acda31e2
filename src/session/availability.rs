//! What this broker does without, by its settings: what CONNACK says about it. Floor 2.

use crate::codec::{PropertiesBuf, Property};
use crate::ids::Qos;

/// The parts of the standard that a server may leave out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Availability {
    /// Highest QoS that is taken from clients and granted to them.
    pub qos_max: Qos,
    /// Whether there are retained messages.
    pub retain: bool,
    /// Whether filters may hold `+` and `#`.
    pub wildcard_subscriptions: bool,
    /// Whether there are `$share/` filters.
    pub shared_subscriptions: bool,
    /// Whether a SUBSCRIBE may carry a subscription identifier.
    pub subscription_identifiers: bool,
}

impl Availability {
    /// Nothing is left out.
    pub const EVERYTHING: Self = Self {
        qos_max: Qos::ExactlyOnce,
        retain: true,
        wildcard_subscriptions: true,
        shared_subscriptions: true,
        subscription_identifiers: true,
    };

    /// The properties of CONNACK that say what is missing; what is there is not mentioned
    /// [MQTT-3.2.2-9].
    pub(super) fn announce(&self, properties: &mut PropertiesBuf) {
        if self.qos_max < Qos::ExactlyOnce {
            properties.push(Property::MaximumQos(self.qos_max));
        }
        for (is_available, property) in [
            (self.retain, Property::RetainAvailable(false)),
            (self.wildcard_subscriptions, Property::WildcardSubscriptionAvailable(false)),
            (self.subscription_identifiers, Property::SubscriptionIdentifierAvailable(false)),
            (self.shared_subscriptions, Property::SharedSubscriptionAvailable(false)),
        ] {
            if !is_available {
                properties.push(property);
            }
        }
    }
}

//! What this broker does without, by its settings: what CONNACK says about it, and what follows for
//! a client that asks for it all the same. Floor 2, called by `connect`, `subscribing` and `Session`.

use crate::codec::{PropertiesBuf, Property, ReasonCode, Subscribe, Will};
use crate::ids::Qos;
use crate::session::CloseReason;
use crate::session::refusal::FilterRefusal;
use crate::topic::TopicFilter;

/// The parts of the standard that a server may leave out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Availability {
    /// Highest QoS that is taken from clients and granted to them.
    pub qos_max: Qos,
    /// Whether clients may have messages retained; those below `$SYS/` always are.
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

    /// A will must be one that could be published [MQTT-3.2.2-12] [MQTT-3.2.2-13]. An error is the
    /// reason for the CONNACK, and a sentence for whoever reads it.
    pub(super) fn check_will(&self, will: &Will<'_>) -> Result<(), (ReasonCode, &'static str)> {
        if will.qos > self.qos_max {
            let sentence = "the QoS of the will is over the Maximum QoS of this broker: lower it";
            return Err((ReasonCode::QosNotSupported, sentence));
        }
        if will.retain && !self.retain {
            let sentence = "this broker retains no messages: send the will without Will Retain";
            return Err((ReasonCode::RetainNotSupported, sentence));
        }
        Ok(())
    }

    /// A PUBLISH over what was announced ends the connection; MQTT 3.x has no way to announce or to
    /// refuse, so there the connection is closed without a word (sections 3.2.2.3.4 and 3.2.2.3.5).
    #[inline]
    pub(super) fn check_publish(&self, qos: Qos, retain: bool) -> Result<(), CloseReason> {
        if qos > self.qos_max {
            return Err(CloseReason::QosNotSupported(qos as u8));
        }
        if retain && !self.retain {
            return Err(CloseReason::RetainNotSupported);
        }
        Ok(())
    }

    /// A client of MQTT 5 was told what is missing: if it asks for it all the same, that ends the
    /// connection (sections 3.2.2.3.11 to 3.2.2.3.13).
    pub(super) fn check_subscribe(&self, subscribe: &Subscribe<'_>) -> Result<(), CloseReason> {
        if *self == Self::EVERYTHING {
            return Ok(());
        }
        let mut identifiers = subscribe.properties.subscription_identifiers();
        if !self.subscription_identifiers && identifiers.next().is_some() {
            return Err(CloseReason::SubscriptionIdentifiersNotSupported);
        }
        let filters =
            subscribe.filters.iter().filter_map(|(text, _)| TopicFilter::parse(text).ok());
        for filter in filters {
            self.check_filter(&filter).map_err(CloseReason::FilterNotSupported)?;
        }
        Ok(())
    }

    /// MQTT 3.x has no way to announce: there a filter is refused for itself, and the others of its
    /// SUBSCRIBE are not [MQTT-3.8.3-2 of 3.1.1].
    pub(super) fn check_filter(&self, filter: &TopicFilter) -> Result<(), FilterRefusal> {
        if filter.is_shared() && !self.shared_subscriptions {
            return Err(FilterRefusal::SharedNotSupported);
        }
        if filter.has_wildcards() && !self.wildcard_subscriptions {
            return Err(FilterRefusal::WildcardsNotSupported);
        }
        Ok(())
    }

    /// Any QoS may be asked for, the highest that there is is granted [MQTT-3.2.2-10].
    pub(super) fn grant(&self, qos: Qos) -> Qos {
        qos.min(self.qos_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Availability = Availability {
        qos_max: Qos::AtMostOnce,
        retain: false,
        wildcard_subscriptions: false,
        shared_subscriptions: false,
        subscription_identifiers: false,
    };

    fn announced(availability: Availability) -> Vec<u8> {
        let mut properties = PropertiesBuf::new();
        availability.announce(&mut properties);
        properties.as_properties().as_bytes().to_vec()
    }

    #[test]
    fn what_is_there_is_not_mentioned_and_what_is_not_is() {
        assert!(announced(Availability::EVERYTHING).is_empty());
        let all = [0x24, 0, 0x25, 0, 0x28, 0, 0x29, 0, 0x2A, 0];
        assert_eq!(announced(NOTHING), all);
        let qos_1 = Availability { qos_max: Qos::AtLeastOnce, ..Availability::EVERYTHING };
        assert_eq!(announced(qos_1), [0x24, 1]);
    }

    #[test]
    fn each_thing_that_is_missing_is_refused_with_its_own_code_and_no_other() {
        let everything = Availability::EVERYTHING;
        let filter = |text| TopicFilter::parse(text).unwrap();
        for (missing, wildcard, shared, both) in [
            (everything, Ok(()), Ok(()), Ok(())),
            (
                Availability { wildcard_subscriptions: false, ..everything },
                Err(FilterRefusal::WildcardsNotSupported),
                Ok(()),
                Err(FilterRefusal::WildcardsNotSupported),
            ),
            (
                Availability { shared_subscriptions: false, ..everything },
                Ok(()),
                Err(FilterRefusal::SharedNotSupported),
                Err(FilterRefusal::SharedNotSupported),
            ),
        ] {
            assert_eq!(missing.check_filter(&filter("a/b")), Ok(()));
            assert_eq!(missing.check_filter(&filter("a/+")), wildcard);
            assert_eq!(missing.check_filter(&filter("#")), wildcard);
            assert_eq!(missing.check_filter(&filter("$share/g/a")), shared);
            assert_eq!(missing.check_filter(&filter("$share/g/a/#")), both);
        }
    }

    #[test]
    fn publish_within_what_is_available_passes() {
        let qos_1 = Availability { qos_max: Qos::AtLeastOnce, ..Availability::EVERYTHING };
        assert_eq!(qos_1.check_publish(Qos::AtLeastOnce, true), Ok(()));
        let over = qos_1.check_publish(Qos::ExactlyOnce, false).unwrap_err();
        assert_eq!(over.reason_code(), Some(ReasonCode::QosNotSupported));
        assert_eq!(NOTHING.check_publish(Qos::AtMostOnce, false), Ok(()));
        let retained = NOTHING.check_publish(Qos::AtMostOnce, true).unwrap_err();
        assert_eq!(retained.reason_code(), Some(ReasonCode::RetainNotSupported));
    }
}

//! A list of properties, as it lies in a packet.
//!
//! [`Properties`] borrows raw bytes that were validated once; [`PropertiesBuf`] builds such bytes.
//! Decoding allocates nothing, each look-up walks the bytes: lists are short, most are empty.
//!
//! # Invariants
//!
//! - What [`Properties::decode`] returns holds only properties that exist, are allowed where they
//!   stand and have a permitted value; no more than one of each but those that may repeat.
//! - Walking over other bytes ends at the first flaw; it never panics.

use std::fmt;

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::property::{Owner, Property, id};
use crate::codec::wire::{Reader, put_variable_byte_integer, variable_byte_integer_len};
use crate::ids::{ProtocolVersion, Qos};

/// The properties of a packet or a will, without the length in front.
#[derive(Clone, Copy, Default, Eq, PartialEq)]
pub struct Properties<'a> {
    bytes: &'a [u8],
}

impl<'a> Properties<'a> {
    /// No property at all; what every packet of MQTT 3.x has.
    pub const EMPTY: Self = Self { bytes: &[] };

    /// Wraps bytes that came from [`Properties::as_bytes`] of a decoded packet and were kept
    /// since, for instance in one of our own PUBLISH frames.
    pub fn from_validated(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Reads length and properties; MQTT 3.x has neither.
    #[inline]
    pub(super) fn decode(
        reader: &mut Reader<'a>,
        version: ProtocolVersion,
        owner: Owner,
    ) -> Result<Self, DecodeError> {
        // An empty list is by far the most frequent one.
        if version != ProtocolVersion::V5 || reader.skip_zero() {
            return Ok(Self::EMPTY);
        }
        Self::decode_list(reader, owner)
    }

    #[inline(never)]
    fn decode_list(reader: &mut Reader<'a>, owner: Owner) -> Result<Self, DecodeError> {
        let len = reader.variable_byte_integer()?;
        let bytes = reader.take(len as usize)?;
        validate(bytes, owner)?;
        Ok(Self { bytes })
    }

    /// Bytes that [`Properties::encode`] writes.
    pub(super) fn encoded_len(&self, version: ProtocolVersion) -> usize {
        match version {
            ProtocolVersion::V5 => {
                variable_byte_integer_len(self.bytes.len() as u32) + self.bytes.len()
            }
            ProtocolVersion::V31 | ProtocolVersion::V311 => 0,
        }
    }

    /// Writes length, even if it is zero [MQTT-2.2.2-1], and properties; MQTT 3.x has neither.
    pub(super) fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        if version == ProtocolVersion::V5 {
            put_variable_byte_integer(self.bytes.len() as u32, out);
            out.put_slice(self.bytes);
        }
    }

    /// True when there is no property.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The raw properties, without the length in front.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All properties in the order of the packet.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut reader = Reader::new(self.bytes);
        std::iter::from_fn(move || {
            let id = reader.u8().ok()?;
            Property::decode(id, &mut reader).ok()
        })
    }

    /// One for each matching subscription in PUBLISH [MQTT-3.3.4-4], at most one in SUBSCRIBE.
    pub fn subscription_identifiers(&self) -> impl Iterator<Item = u32> + use<'a> {
        self.iter().filter_map(|property| match property {
            Property::SubscriptionIdentifier(value) => Some(value),
            _ => None,
        })
    }

    /// Name and value, in the order of the packet [MQTT-3.3.2-18].
    pub fn user_properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.iter().filter_map(|property| match property {
            Property::UserProperty { name, value } => Some((name, value)),
            _ => None,
        })
    }

    /// Where the value of the Message Expiry Interval is in [`Properties::as_bytes`].
    pub(super) fn message_expiry_interval_at(&self) -> Option<usize> {
        let mut reader = Reader::new(self.bytes);
        loop {
            let id = reader.u8().ok()?;
            if id == id::MESSAGE_EXPIRY_INTERVAL {
                return Some(self.bytes.len() - reader.rest().len());
            }
            Property::skip(id, &mut reader).ok()?;
        }
    }

    /// The first property with this identifier. Steps over the others by their length alone.
    fn find(&self, wanted: u8) -> Option<Property<'a>> {
        let mut reader = Reader::new(self.bytes);
        loop {
            let id = reader.u8().ok()?;
            if id == wanted {
                return Property::decode(id, &mut reader).ok();
            }
            Property::skip(id, &mut reader).ok()?;
        }
    }
}

/// Writes the look-ups of properties that are there once or not at all.
macro_rules! lookups {
    ($($(#[$doc:meta])* $name:ident = $id:ident $variant:ident($value:ty);)*) => {
        impl<'a> Properties<'a> {
            $($(#[$doc])*
            pub fn $name(&self) -> Option<$value> {
                match self.find(id::$id)? {
                    Property::$variant(value) => Some(value),
                    _ => None,
                }
            })*
        }
    };
}

lookups! {
    /// True when the payload is UTF-8 text.
    payload_format_indicator = PAYLOAD_FORMAT_INDICATOR PayloadFormatIndicator(bool);
    /// Seconds until the message is of no use.
    message_expiry_interval_s = MESSAGE_EXPIRY_INTERVAL MessageExpiryInterval(u32);
    /// What the payload is, in the application's words.
    content_type = CONTENT_TYPE ContentType(&'a str);
    /// Topic name for the answer; holds no wildcard [MQTT-3.3.2-14].
    response_topic = RESPONSE_TOPIC ResponseTopic(&'a str);
    /// Lets the requester recognise the answer.
    correlation_data = CORRELATION_DATA CorrelationData(&'a [u8]);
    /// Seconds that the session outlives its connection.
    session_expiry_interval_s = SESSION_EXPIRY_INTERVAL SessionExpiryInterval(u32);
    /// The identifier that the server chose [MQTT-3.2.2-16].
    assigned_client_identifier = ASSIGNED_CLIENT_IDENTIFIER AssignedClientIdentifier(&'a str);
    /// Seconds; overrides the client's wish [MQTT-3.2.2-21].
    server_keep_alive_s = SERVER_KEEP_ALIVE ServerKeepAlive(u16);
    /// Name of the extended authentication.
    authentication_method = AUTHENTICATION_METHOD AuthenticationMethod(&'a str);
    /// Opaque to the codec.
    authentication_data = AUTHENTICATION_DATA AuthenticationData(&'a [u8]);
    /// False forbids reason strings outside CONNACK and DISCONNECT [MQTT-3.1.2-29].
    request_problem_information = REQUEST_PROBLEM_INFORMATION RequestProblemInformation(bool);
    /// Seconds between the end of the connection and the will.
    will_delay_interval_s = WILL_DELAY_INTERVAL WillDelayInterval(u32);
    /// True asks for Response Information [MQTT-3.1.2-28].
    request_response_information = REQUEST_RESPONSE_INFORMATION RequestResponseInformation(bool);
    /// Where the client may build its response topics.
    response_information = RESPONSE_INFORMATION ResponseInformation(&'a str);
    /// Another server to use.
    server_reference = SERVER_REFERENCE ServerReference(&'a str);
    /// For a human who reads a log.
    reason_string = REASON_STRING ReasonString(&'a str);
    /// QoS 1 and 2 messages in flight to the sender of this property; not zero.
    receive_maximum = RECEIVE_MAXIMUM ReceiveMaximum(u16);
    /// Greatest alias that the sender of this property takes.
    topic_alias_maximum = TOPIC_ALIAS_MAXIMUM TopicAliasMaximum(u16);
    /// Stands for the topic name; not zero [MQTT-3.3.2-8].
    topic_alias = TOPIC_ALIAS TopicAlias(u16);
    /// 0 or 1; a server without limit leaves it out [MQTT-3.2.2-9].
    maximum_qos = MAXIMUM_QOS MaximumQos(Qos);
    /// Whether the server keeps retained messages.
    retain_available = RETAIN_AVAILABLE RetainAvailable(bool);
    /// Bytes of a whole packet to the sender of this property; not zero.
    maximum_packet_size = MAXIMUM_PACKET_SIZE MaximumPacketSize(u32);
    /// Whether the server takes wildcards in filters.
    wildcard_subscription_available = WILDCARD_SUBSCRIPTION_AVAILABLE WildcardSubscriptionAvailable(bool);
    /// Whether the server takes subscription identifiers.
    subscription_identifier_available = SUBSCRIPTION_IDENTIFIER_AVAILABLE SubscriptionIdentifierAvailable(bool);
    /// Whether the server takes `$share/` filters.
    shared_subscription_available = SHARED_SUBSCRIPTION_AVAILABLE SharedSubscriptionAvailable(bool);
}

impl fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Builds a list of properties. What it holds is the caller's responsibility: it checks neither
/// ranges nor repetition.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PropertiesBuf {
    bytes: Vec<u8>,
}

impl PropertiesBuf {
    /// An empty list; allocates with the first property.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a property. Of text and data over 65,535 bytes the rest is cut off.
    pub fn push(&mut self, property: Property<'_>) -> &mut Self {
        property.encode(&mut self.bytes);
        self
    }

    /// Forgets all properties and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// The list as a packet carries it.
    pub fn as_properties(&self) -> Properties<'_> {
        Properties { bytes: &self.bytes }
    }
}

fn validate(bytes: &[u8], owner: Owner) -> Result<(), DecodeError> {
    let mut reader = Reader::new(bytes);
    let mut seen = 0_u64;
    while !reader.is_empty() {
        let id = reader.u8()?;
        owner.check(id)?;
        // Identifiers that passed the check are below 64.
        let bit = 1_u64.checked_shl(id.into()).unwrap_or(0);
        if seen & bit != 0 && !owner.may_repeat(id) {
            return Err(DecodeError::DuplicateProperty { id });
        }
        seen |= bit;
        Property::decode(id, &mut reader)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_up_steps_over_every_kind_of_value() {
        let mut list = PropertiesBuf::new();
        list.push(Property::PayloadFormatIndicator(true))
            .push(Property::MessageExpiryInterval(7))
            .push(Property::ContentType("text"))
            .push(Property::CorrelationData(b"\0\xFF"))
            .push(Property::SubscriptionIdentifier(300))
            .push(Property::UserProperty { name: "a", value: "b" })
            .push(Property::SubscriptionIdentifier(1))
            .push(Property::TopicAlias(9));
        let list = list.as_properties();
        assert_eq!(list.topic_alias(), Some(9));
        assert_eq!(list.message_expiry_interval_s(), Some(7));
        assert_eq!(list.correlation_data(), Some(&b"\0\xFF"[..]));
        assert_eq!(list.receive_maximum(), None);
        assert_eq!(list.subscription_identifiers().collect::<Vec<_>>(), [300, 1]);
        assert_eq!(list.user_properties().collect::<Vec<_>>(), [("a", "b")]);
        assert_eq!(list.iter().count(), 8);
    }

    #[test]
    fn walking_over_garbage_ends_at_the_flaw() {
        let list = Properties::from_validated(&[0x23, 0, 1, 0x11, 0]);
        assert_eq!(list.iter().collect::<Vec<_>>(), [Property::TopicAlias(1)]);
        assert_eq!(list.message_expiry_interval_s(), None);
    }

    #[test]
    fn text_over_the_limit_of_the_wire_is_cut_at_a_character() {
        let text = "ä".repeat(40_000);
        let mut list = PropertiesBuf::new();
        list.push(Property::ReasonString(&text)).push(Property::TopicAlias(1));
        let list = list.as_properties();
        assert_eq!(list.reason_string().map(str::len), Some(65_534));
        assert_eq!(list.topic_alias(), Some(1));
    }
}

//! One property of MQTT 5: its identifier, its type, where it may stand (section 2.2.2.2).
//!
//! [`Property`] is what callers see; lists of them are in `properties.rs`, the only caller of
//! the decoding half. Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::PacketType;
use crate::codec::wire::{Reader, put_binary, put_string, put_variable_byte_integer};
use crate::ids::Qos;
use crate::topic::check_topic_name;

/// A property with its value. Durations are in seconds, sizes in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Property<'a> {
    /// True when the payload is UTF-8 text.
    PayloadFormatIndicator(bool),
    /// Seconds until the message is of no use.
    MessageExpiryInterval(u32),
    /// What the payload is, in the application's words.
    ContentType(&'a str),
    /// Topic name for the answer; holds no wildcard [MQTT-3.3.2-14].
    ResponseTopic(&'a str),
    /// Lets the requester recognise the answer.
    CorrelationData(&'a [u8]),
    /// 1 to 268,435,455.
    SubscriptionIdentifier(u32),
    /// Seconds that the session outlives its connection.
    SessionExpiryInterval(u32),
    /// The identifier that the server chose [MQTT-3.2.2-16].
    AssignedClientIdentifier(&'a str),
    /// Seconds; overrides the client's wish [MQTT-3.2.2-21].
    ServerKeepAlive(u16),
    /// Name of the extended authentication.
    AuthenticationMethod(&'a str),
    /// Opaque to the codec.
    AuthenticationData(&'a [u8]),
    /// False forbids reason strings outside CONNACK and DISCONNECT [MQTT-3.1.2-29].
    RequestProblemInformation(bool),
    /// Seconds between the end of the connection and the will.
    WillDelayInterval(u32),
    /// True asks for Response Information [MQTT-3.1.2-28].
    RequestResponseInformation(bool),
    /// Where the client may build its response topics.
    ResponseInformation(&'a str),
    /// Another server to use.
    ServerReference(&'a str),
    /// For a human who reads a log.
    ReasonString(&'a str),
    /// QoS 1 and 2 messages in flight to the sender of this property; not zero.
    ReceiveMaximum(u16),
    /// Greatest alias that the sender of this property takes.
    TopicAliasMaximum(u16),
    /// Stands for the topic name; not zero [MQTT-3.3.2-8].
    TopicAlias(u16),
    /// 0 or 1; a server without limit leaves it out [MQTT-3.2.2-9].
    MaximumQos(Qos),
    /// Whether the server keeps retained messages.
    RetainAvailable(bool),
    /// Name and value; may repeat, order matters [MQTT-3.3.2-18].
    UserProperty {
        /// Left half.
        name: &'a str,
        /// Right half.
        value: &'a str,
    },
    /// Bytes of a whole packet to the sender of this property; not zero.
    MaximumPacketSize(u32),
    /// Whether the server takes wildcards in filters.
    WildcardSubscriptionAvailable(bool),
    /// Whether the server takes subscription identifiers.
    SubscriptionIdentifierAvailable(bool),
    /// Whether the server takes `$share/` filters.
    SharedSubscriptionAvailable(bool),
}

impl<'a> Property<'a> {
    /// Reads the value after the identifier `id` and checks its range.
    pub(super) fn decode(id: u8, reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(match id {
            id::PAYLOAD_FORMAT_INDICATOR => Self::PayloadFormatIndicator(flag(id, reader)?),
            id::MESSAGE_EXPIRY_INTERVAL => Self::MessageExpiryInterval(reader.u32()?),
            id::CONTENT_TYPE => Self::ContentType(reader.string()?),
            id::RESPONSE_TOPIC => Self::ResponseTopic(response_topic(reader)?),
            id::CORRELATION_DATA => Self::CorrelationData(reader.binary()?),
            id::SUBSCRIPTION_IDENTIFIER => {
                Self::SubscriptionIdentifier(not_zero(id, reader.variable_byte_integer()?)?)
            }
            id::SESSION_EXPIRY_INTERVAL => Self::SessionExpiryInterval(reader.u32()?),
            id::ASSIGNED_CLIENT_IDENTIFIER => Self::AssignedClientIdentifier(reader.string()?),
            id::SERVER_KEEP_ALIVE => Self::ServerKeepAlive(reader.u16()?),
            id::AUTHENTICATION_METHOD => Self::AuthenticationMethod(reader.string()?),
            id::AUTHENTICATION_DATA => Self::AuthenticationData(reader.binary()?),
            id::REQUEST_PROBLEM_INFORMATION => Self::RequestProblemInformation(flag(id, reader)?),
            id::WILL_DELAY_INTERVAL => Self::WillDelayInterval(reader.u32()?),
            id::REQUEST_RESPONSE_INFORMATION => Self::RequestResponseInformation(flag(id, reader)?),
            id::RESPONSE_INFORMATION => Self::ResponseInformation(reader.string()?),
            id::SERVER_REFERENCE => Self::ServerReference(reader.string()?),
            id::REASON_STRING => Self::ReasonString(reader.string()?),
            id::RECEIVE_MAXIMUM => Self::ReceiveMaximum(not_zero(id, reader.u16()?)?),
            id::TOPIC_ALIAS_MAXIMUM => Self::TopicAliasMaximum(reader.u16()?),
            id::TOPIC_ALIAS => Self::TopicAlias(topic_alias(reader)?),
            id::MAXIMUM_QOS => Self::MaximumQos(maximum_qos(id, reader)?),
            id::RETAIN_AVAILABLE => Self::RetainAvailable(flag(id, reader)?),
            id::USER_PROPERTY => {
                Self::UserProperty { name: reader.string()?, value: reader.string()? }
            }
            id::MAXIMUM_PACKET_SIZE => Self::MaximumPacketSize(not_zero(id, reader.u32()?)?),
            id::WILDCARD_SUBSCRIPTION_AVAILABLE => {
                Self::WildcardSubscriptionAvailable(flag(id, reader)?)
            }
            id::SUBSCRIPTION_IDENTIFIER_AVAILABLE => {
                Self::SubscriptionIdentifierAvailable(flag(id, reader)?)
            }
            id::SHARED_SUBSCRIPTION_AVAILABLE => {
                Self::SharedSubscriptionAvailable(flag(id, reader)?)
            }
            id => return Err(DecodeError::UnknownProperty { id }),
        })
    }

    /// Steps over the value after the identifier `id` without looking into it.
    pub(super) fn skip(id: u8, reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        match id {
            id::PAYLOAD_FORMAT_INDICATOR
            | id::REQUEST_PROBLEM_INFORMATION
            | id::REQUEST_RESPONSE_INFORMATION
            | id::MAXIMUM_QOS
            | id::RETAIN_AVAILABLE
            | id::WILDCARD_SUBSCRIPTION_AVAILABLE
            | id::SUBSCRIPTION_IDENTIFIER_AVAILABLE
            | id::SHARED_SUBSCRIPTION_AVAILABLE => reader.take(1).map(drop),
            id::MESSAGE_EXPIRY_INTERVAL
            | id::SESSION_EXPIRY_INTERVAL
            | id::WILL_DELAY_INTERVAL
            | id::MAXIMUM_PACKET_SIZE => reader.take(4).map(drop),
            id::CONTENT_TYPE
            | id::RESPONSE_TOPIC
            | id::CORRELATION_DATA
            | id::ASSIGNED_CLIENT_IDENTIFIER
            | id::AUTHENTICATION_METHOD
            | id::AUTHENTICATION_DATA
            | id::RESPONSE_INFORMATION
            | id::SERVER_REFERENCE
            | id::REASON_STRING => reader.binary().map(drop),
            id::SUBSCRIPTION_IDENTIFIER => reader.variable_byte_integer().map(drop),
            id::SERVER_KEEP_ALIVE
            | id::RECEIVE_MAXIMUM
            | id::TOPIC_ALIAS_MAXIMUM
            | id::TOPIC_ALIAS => reader.take(2).map(drop),
            id::USER_PROPERTY => {
                reader.binary()?;
                reader.binary().map(drop)
            }
            id => Err(DecodeError::UnknownProperty { id }),
        }
    }

    /// Writes identifier and value.
    pub(super) fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.id());
        match *self {
            Self::PayloadFormatIndicator(value)
            | Self::RequestProblemInformation(value)
            | Self::RequestResponseInformation(value)
            | Self::RetainAvailable(value)
            | Self::WildcardSubscriptionAvailable(value)
            | Self::SubscriptionIdentifierAvailable(value)
            | Self::SharedSubscriptionAvailable(value) => out.put_u8(value.into()),
            Self::MessageExpiryInterval(value)
            | Self::SessionExpiryInterval(value)
            | Self::WillDelayInterval(value)
            | Self::MaximumPacketSize(value) => out.put_u32(value),
            Self::ContentType(value)
            | Self::ResponseTopic(value)
            | Self::AssignedClientIdentifier(value)
            | Self::AuthenticationMethod(value)
            | Self::ResponseInformation(value)
            | Self::ServerReference(value)
            | Self::ReasonString(value) => put_string(value, out),
            Self::CorrelationData(value) | Self::AuthenticationData(value) => {
                put_binary(value, out)
            }
            Self::SubscriptionIdentifier(value) => put_variable_byte_integer(value, out),
            Self::ServerKeepAlive(value)
            | Self::ReceiveMaximum(value)
            | Self::TopicAliasMaximum(value)
            | Self::TopicAlias(value) => out.put_u16(value),
            Self::MaximumQos(value) => out.put_u8(value as u8),
            Self::UserProperty { name, value } => {
                put_string(name, out);
                put_string(value, out);
            }
        }
    }

    fn id(&self) -> u8 {
        match self {
            Self::PayloadFormatIndicator(_) => id::PAYLOAD_FORMAT_INDICATOR,
            Self::MessageExpiryInterval(_) => id::MESSAGE_EXPIRY_INTERVAL,
            Self::ContentType(_) => id::CONTENT_TYPE,
            Self::ResponseTopic(_) => id::RESPONSE_TOPIC,
            Self::CorrelationData(_) => id::CORRELATION_DATA,
            Self::SubscriptionIdentifier(_) => id::SUBSCRIPTION_IDENTIFIER,
            Self::SessionExpiryInterval(_) => id::SESSION_EXPIRY_INTERVAL,
            Self::AssignedClientIdentifier(_) => id::ASSIGNED_CLIENT_IDENTIFIER,
            Self::ServerKeepAlive(_) => id::SERVER_KEEP_ALIVE,
            Self::AuthenticationMethod(_) => id::AUTHENTICATION_METHOD,
            Self::AuthenticationData(_) => id::AUTHENTICATION_DATA,
            Self::RequestProblemInformation(_) => id::REQUEST_PROBLEM_INFORMATION,
            Self::WillDelayInterval(_) => id::WILL_DELAY_INTERVAL,
            Self::RequestResponseInformation(_) => id::REQUEST_RESPONSE_INFORMATION,
            Self::ResponseInformation(_) => id::RESPONSE_INFORMATION,
            Self::ServerReference(_) => id::SERVER_REFERENCE,
            Self::ReasonString(_) => id::REASON_STRING,
            Self::ReceiveMaximum(_) => id::RECEIVE_MAXIMUM,
            Self::TopicAliasMaximum(_) => id::TOPIC_ALIAS_MAXIMUM,
            Self::TopicAlias(_) => id::TOPIC_ALIAS,
            Self::MaximumQos(_) => id::MAXIMUM_QOS,
            Self::RetainAvailable(_) => id::RETAIN_AVAILABLE,
            Self::UserProperty { .. } => id::USER_PROPERTY,
            Self::MaximumPacketSize(_) => id::MAXIMUM_PACKET_SIZE,
            Self::WildcardSubscriptionAvailable(_) => id::WILDCARD_SUBSCRIPTION_AVAILABLE,
            Self::SubscriptionIdentifierAvailable(_) => id::SUBSCRIPTION_IDENTIFIER_AVAILABLE,
            Self::SharedSubscriptionAvailable(_) => id::SHARED_SUBSCRIPTION_AVAILABLE,
        }
    }
}

/// Where a list of properties stands. A set of these is a bit mask: one bit for each packet type,
/// and bit 0, which no packet type has, for the will inside CONNECT.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner(u16);

impl Owner {
    /// The will inside CONNECT.
    pub(super) const WILL: Self = Self(1);

    /// A packet.
    pub(super) const fn packet(packet_type: PacketType) -> Self {
        Self(1 << packet_type as u8)
    }

    /// Whether the property `id` has a meaning here.
    pub(super) fn check(self, id: u8) -> Result<(), DecodeError> {
        match owners(id) {
            None => Err(DecodeError::UnknownProperty { id }),
            Some(owners) if owners & self.0 == 0 => Err(DecodeError::PropertyNotAllowed { id }),
            Some(_) => Ok(()),
        }
    }

    /// Whether the property `id` may be there more than once: User Property everywhere, and in
    /// PUBLISH one Subscription Identifier for each matching subscription [MQTT-3.3.4-4].
    pub(super) fn may_repeat(self, id: u8) -> bool {
        id == id::USER_PROPERTY || (id == id::SUBSCRIPTION_IDENTIFIER && self.0 == PUBLISH)
    }
}

const PUBLISH: u16 = Owner::packet(PacketType::Publish).0;
const WILL: u16 = Owner::WILL.0;
const SUBSCRIBE: u16 = Owner::packet(PacketType::Subscribe).0;
const CONNECT: u16 = Owner::packet(PacketType::Connect).0;
const CONNACK: u16 = Owner::packet(PacketType::ConnAck).0;
const DISCONNECT: u16 = Owner::packet(PacketType::Disconnect).0;
const AUTH: u16 = Owner::packet(PacketType::Auth).0;
const PUBACK: u16 = Owner::packet(PacketType::PubAck).0;
const PUBREC: u16 = Owner::packet(PacketType::PubRec).0;
const PUBREL: u16 = Owner::packet(PacketType::PubRel).0;
const PUBCOMP: u16 = Owner::packet(PacketType::PubComp).0;
const SUBACK: u16 = Owner::packet(PacketType::SubAck).0;
const UNSUBACK: u16 = Owner::packet(PacketType::UnsubAck).0;

/// The table of section 2.2.2.2, or `None` when it has no such line.
fn owners(id: u8) -> Option<u16> {
    Some(match id {
        id::PAYLOAD_FORMAT_INDICATOR
        | id::MESSAGE_EXPIRY_INTERVAL
        | id::CONTENT_TYPE
        | id::RESPONSE_TOPIC
        | id::CORRELATION_DATA => PUBLISH | WILL,
        id::SUBSCRIPTION_IDENTIFIER => PUBLISH | SUBSCRIBE,
        id::SESSION_EXPIRY_INTERVAL => CONNECT | CONNACK | DISCONNECT,
        id::ASSIGNED_CLIENT_IDENTIFIER
        | id::SERVER_KEEP_ALIVE
        | id::RESPONSE_INFORMATION
        | id::MAXIMUM_QOS
        | id::RETAIN_AVAILABLE
        | id::WILDCARD_SUBSCRIPTION_AVAILABLE
        | id::SUBSCRIPTION_IDENTIFIER_AVAILABLE
        | id::SHARED_SUBSCRIPTION_AVAILABLE => CONNACK,
        id::AUTHENTICATION_METHOD | id::AUTHENTICATION_DATA => CONNECT | CONNACK | AUTH,
        id::REQUEST_PROBLEM_INFORMATION | id::REQUEST_RESPONSE_INFORMATION => CONNECT,
        id::WILL_DELAY_INTERVAL => WILL,
        id::SERVER_REFERENCE => CONNACK | DISCONNECT,
        id::REASON_STRING => {
            CONNACK | PUBACK | PUBREC | PUBREL | PUBCOMP | SUBACK | UNSUBACK | DISCONNECT | AUTH
        }
        id::RECEIVE_MAXIMUM | id::TOPIC_ALIAS_MAXIMUM | id::MAXIMUM_PACKET_SIZE => {
            CONNECT | CONNACK
        }
        id::TOPIC_ALIAS => PUBLISH,
        id::USER_PROPERTY => u16::MAX,
        _ => return None,
    })
}

fn flag(id: u8, reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::PropertyValue { id, value: value.into() }),
    }
}

fn maximum_qos(id: u8, reader: &mut Reader<'_>) -> Result<Qos, DecodeError> {
    match reader.u8()? {
        0 => Ok(Qos::AtMostOnce),
        1 => Ok(Qos::AtLeastOnce),
        value => Err(DecodeError::PropertyValue { id, value: value.into() }),
    }
}

fn topic_alias(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    match reader.u16()? {
        0 => Err(DecodeError::ZeroTopicAlias),
        alias => Ok(alias),
    }
}

fn response_topic<'a>(reader: &mut Reader<'a>) -> Result<&'a str, DecodeError> {
    let topic = reader.string()?;
    check_topic_name(topic).map_err(DecodeError::ResponseTopic)?;
    Ok(topic)
}

fn not_zero<T: Default + PartialEq>(id: u8, value: T) -> Result<T, DecodeError> {
    if value == T::default() {
        return Err(DecodeError::PropertyValue { id, value: 0 });
    }
    Ok(value)
}

/// The identifiers, in the words of the standard.
pub(super) mod id {
    pub(in crate::codec) const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub(in crate::codec) const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub(in crate::codec) const CONTENT_TYPE: u8 = 0x03;
    pub(in crate::codec) const RESPONSE_TOPIC: u8 = 0x08;
    pub(in crate::codec) const CORRELATION_DATA: u8 = 0x09;
    pub(in crate::codec) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub(in crate::codec) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub(in crate::codec) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub(in crate::codec) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(in crate::codec) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(in crate::codec) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(in crate::codec) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(in crate::codec) const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub(in crate::codec) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(in crate::codec) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(in crate::codec) const SERVER_REFERENCE: u8 = 0x1C;
    pub(in crate::codec) const REASON_STRING: u8 = 0x1F;
    pub(in crate::codec) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in crate::codec) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in crate::codec) const TOPIC_ALIAS: u8 = 0x23;
    pub(in crate::codec) const MAXIMUM_QOS: u8 = 0x24;
    pub(in crate::codec) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(in crate::codec) const USER_PROPERTY: u8 = 0x26;
    pub(in crate::codec) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(in crate::codec) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(in crate::codec) const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub(in crate::codec) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

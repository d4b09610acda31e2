//! Why bytes are not an MQTT packet, and what the peer is told about it.
//!
//! Every decoder of this floor returns it; `session` and `net` ask [`DecodeError::reason_code`]
//! and close the connection: each of these is fatal [MQTT-4.13.1-1] [MQTT-4.8.0-1]. Floor 1.

use crate::codec::frame::PacketType;
use crate::codec::reason::ReasonCode;
use crate::topic::InvalidTopic;

/// The peer broke the encoding rules. Always fatal for the connection.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The remaining length did not end within four bytes.
    #[error("remaining length does not end within 4 bytes")]
    LengthTooLong,
    /// A variable byte integer took more bytes than its value needs [MQTT-1.5.5-1], or more than
    /// four.
    #[error("variable byte integer is longer than its value needs")]
    VariableByteInteger,
    /// Larger than this side accepts.
    #[error("packet of {size} bytes is over the limit of {limit}")]
    PacketTooLarge {
        /// Announced by the peer, fixed header included.
        size: u32,
        /// Configured here.
        limit: u32,
    },
    /// The slice is not one whole frame.
    #[error("frame announces {announced} bytes, {given} were given")]
    FrameLength {
        /// By the fixed header; one more than given while that is itself incomplete.
        announced: usize,
        /// Length of the slice.
        given: usize,
    },
    /// Type 0, or AUTH before MQTT 5.
    #[error("packet type {packet_type} does not exist in this protocol version")]
    UnknownPacketType {
        /// Upper four bits of the first byte.
        packet_type: u8,
    },
    /// A decoder of PUBLISH was given something else.
    #[error("expected PUBLISH, got packet type {packet_type}")]
    NotPublish {
        /// Upper four bits of the first byte.
        packet_type: u8,
    },
    /// Lower four bits of the first byte [MQTT-2.1.3-1] [MQTT-2.2.2-2].
    #[error("{packet_type} has the fixed header flags {flags:#06b}, must have {expected:#06b}")]
    ReservedFlags {
        /// Upper four bits of the first byte.
        packet_type: PacketType,
        /// What came.
        flags: u8,
        /// What the standard prescribes.
        expected: u8,
    },
    /// A field reaches over the end of the packet or of its property list.
    #[error("field of {needed} bytes, but only {left} bytes are left")]
    BodyTooShort {
        /// Length of the field.
        needed: usize,
        /// What the packet still holds.
        left: usize,
    },
    /// The packet is longer than its fields.
    #[error("{count} bytes after the last field")]
    TrailingBytes {
        /// How many.
        count: usize,
    },
    /// Packet identifier 0 [MQTT-2.2.1-3] [MQTT-2.3.1-1].
    #[error("packet identifier is zero")]
    ZeroPacketId,
    /// Ill-formed text [MQTT-1.5.4-1] [MQTT-1.5.3-1].
    #[error("string is not valid UTF-8 after {valid_bytes} bytes")]
    InvalidUtf8 {
        /// Length of the well-formed beginning.
        valid_bytes: usize,
    },
    /// U+0000 inside a string [MQTT-1.5.4-2] [MQTT-1.5.3-2].
    #[error("string contains U+0000")]
    NulCharacter,
    /// CONNECT of another protocol [MQTT-3.1.2-1].
    #[error("protocol name is neither MQTT nor MQIsdp")]
    ProtocolName,
    /// Level of a version that is not spoken here [MQTT-3.1.2-2].
    #[error("protocol level {level} is not supported")]
    UnsupportedProtocolVersion {
        /// What the client asked for.
        level: u8,
    },
    /// Bit 0 of the connect flags [MQTT-3.1.2-3].
    #[error("reserved connect flag is set")]
    ConnectReservedFlag,
    /// Will QoS or Will Retain although there is no will [MQTT-3.1.2-11] [MQTT-3.1.2-13].
    #[error("connect flags {flags:#010b} set will bits without the will flag")]
    WillFlagsWithoutWill {
        /// The whole byte.
        flags: u8,
    },
    /// Will QoS 3 [MQTT-3.1.2-12].
    #[error("will QoS is 3")]
    WillQos,
    /// The will cannot be published where it asks to be [MQTT-4.7.0-1].
    #[error("will topic: {0}")]
    WillTopic(#[source] InvalidTopic),
    /// A password needs a user name before MQTT 5 [MQTT-3.1.2-22].
    #[error("password without a user name")]
    PasswordWithoutUserName,
    /// Authentication Data needs an Authentication Method (MQTT 5, section 3.1.2.11.10).
    #[error("authentication data without an authentication method")]
    AuthenticationDataWithoutMethod,
    /// Bits 7 to 1 of the connect acknowledge flags [MQTT-3.2.2-1].
    #[error("connect acknowledge flags are {flags:#010b}, only bit 0 may be set")]
    ConnAckFlags {
        /// The whole byte.
        flags: u8,
    },
    /// A CONNACK return code above 5 (MQTT 3.1.1, section 3.2.2.3).
    #[error("return code {code} does not exist")]
    UnknownReturnCode {
        /// What came.
        code: u8,
    },
    /// PUBLISH with QoS 3 [MQTT-3.3.1-4].
    #[error("PUBLISH has QoS 3")]
    PublishQos,
    /// DUP needs a QoS above 0 [MQTT-3.3.1-2].
    #[error("PUBLISH with QoS 0 has the DUP flag")]
    DupWithQosZero,
    /// No topic name, and no topic alias that stands for one [MQTT-4.7.3-1].
    #[error("PUBLISH has neither topic name nor topic alias")]
    EmptyTopic,
    /// PUBLISH to a wildcard [MQTT-3.3.2-2].
    #[error("topic name: {0}")]
    TopicName(#[source] InvalidTopic),
    /// Topic Alias 0 [MQTT-3.3.2-8].
    #[error("topic alias is zero")]
    ZeroTopicAlias,
    /// Response Topic with a wildcard [MQTT-3.3.2-14].
    #[error("response topic: {0}")]
    ResponseTopic(#[source] InvalidTopic),
    /// SUBSCRIBE or UNSUBSCRIBE without payload [MQTT-3.8.3-2] [MQTT-3.10.3-2].
    #[error("no topic filter")]
    NoFilters,
    /// Reserved bits of a subscription option byte [MQTT-3.8.3-5] [MQTT-3.8.3-4 of 3.1.1].
    #[error("subscription options {options:#010b} have reserved bits set")]
    SubscribeReservedBits {
        /// The whole byte.
        options: u8,
    },
    /// A subscription asks for QoS 3.
    #[error("subscription asks for QoS 3")]
    SubscribeQos,
    /// Retain Handling 3 (MQTT 5, section 3.8.3.1).
    #[error("retain handling is 3")]
    RetainHandling,
    /// No Local on a shared subscription [MQTT-3.8.3-4].
    #[error("no local on a shared subscription")]
    NoLocalOnShared,
    /// A property that MQTT 5 does not define.
    #[error("property {id:#04x} does not exist")]
    UnknownProperty {
        /// What came.
        id: u8,
    },
    /// A property in a packet where it has no meaning (MQTT 5, section 2.2.2.2).
    #[error("property {id:#04x} is not allowed in this packet")]
    PropertyNotAllowed {
        /// What came.
        id: u8,
    },
    /// A property that may be present once.
    #[error("property {id:#04x} is present twice")]
    DuplicateProperty {
        /// What came.
        id: u8,
    },
    /// A property with a value outside its range.
    #[error("property {id:#04x} has the forbidden value {value}")]
    PropertyValue {
        /// Which property.
        id: u8,
        /// What came.
        value: u32,
    },
    /// A reason code outside the set of its packet, for instance [MQTT-3.4.2-1].
    #[error("{packet_type} has the reason code {code:#04x}")]
    ReasonCodeNotAllowed {
        /// Where it came.
        packet_type: PacketType,
        /// What came.
        code: u8,
    },
}

impl DecodeError {
    /// What an MQTT 5 peer is told in CONNACK or DISCONNECT before the connection is closed.
    pub fn reason_code(&self) -> ReasonCode {
        match self {
            Self::LengthTooLong
            | Self::VariableByteInteger
            | Self::FrameLength { .. }
            | Self::UnknownPacketType { .. }
            | Self::ReservedFlags { .. }
            | Self::BodyTooShort { .. }
            | Self::TrailingBytes { .. }
            | Self::InvalidUtf8 { .. }
            | Self::NulCharacter
            | Self::ConnectReservedFlag
            | Self::WillFlagsWithoutWill { .. }
            | Self::WillQos
            | Self::PasswordWithoutUserName
            | Self::ConnAckFlags { .. }
            | Self::UnknownReturnCode { .. }
            | Self::PublishQos
            | Self::DupWithQosZero
            | Self::SubscribeReservedBits { .. }
            | Self::UnknownProperty { .. }
            | Self::PropertyNotAllowed { .. } => ReasonCode::MalformedPacket,
            Self::NotPublish { .. }
            | Self::ZeroPacketId
            | Self::AuthenticationDataWithoutMethod
            | Self::EmptyTopic
            | Self::ResponseTopic(_)
            | Self::NoFilters
            | Self::SubscribeQos
            | Self::RetainHandling
            | Self::NoLocalOnShared
            | Self::DuplicateProperty { .. }
            | Self::PropertyValue { .. }
            | Self::ReasonCodeNotAllowed { .. } => ReasonCode::ProtocolError,
            Self::ProtocolName | Self::UnsupportedProtocolVersion { .. } => {
                ReasonCode::UnsupportedProtocolVersion
            }
            Self::WillTopic(_) | Self::TopicName(_) => ReasonCode::TopicNameInvalid,
            Self::ZeroTopicAlias => ReasonCode::TopicAliasInvalid,
            Self::PacketTooLarge { .. } => ReasonCode::PacketTooLarge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, frame_len, publish::Publish};
    use crate::ids::ProtocolVersion::{V5, V311};

    /// The smallest body of CONNECT with these connect flags.
    fn connect(level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut body = b"\0\x04MQTT".to_vec();
        body.extend([level, flags, 0, 60]);
        body.extend(rest);
        frame(0x10, &body)
    }

    fn frame(first_byte: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![first_byte, body.len() as u8];
        frame.extend(body);
        frame
    }

    #[track_caller]
    fn assert_v5(frame: &[u8], error: DecodeError, reason: u8) {
        assert_eq!(error.reason_code().as_u8(), reason, "{error}");
        assert_eq!(decode(frame, V5), Err(error));
    }

    #[track_caller]
    fn assert_v311(frame: &[u8], error: DecodeError) {
        assert_eq!(decode(frame, V311), Err(error));
    }

    #[test]
    fn frames_of_the_wrong_length() {
        assert_v5(&[], DecodeError::FrameLength { announced: 1, given: 0 }, 0x81);
        assert_v5(&[0xC0], DecodeError::FrameLength { announced: 2, given: 1 }, 0x81);
        assert_v5(&[0xC0, 1], DecodeError::FrameLength { announced: 3, given: 2 }, 0x81);
        assert_v5(&[0xC0, 0, 0], DecodeError::FrameLength { announced: 2, given: 3 }, 0x81);
        assert_v5(&[0x30, 0x80, 0x80, 0x80, 0x80, 1], DecodeError::LengthTooLong, 0x81);
        assert_v5(&[0xC0, 0x80, 0], DecodeError::VariableByteInteger, 0x81);
        assert_v5(&frame(0xC0, &[7]), DecodeError::TrailingBytes { count: 1 }, 0x81);
        assert_v5(&frame(0x40, &[1]), DecodeError::BodyTooShort { needed: 2, left: 1 }, 0x81);
    }

    #[test]
    fn a_frame_is_refused_by_its_header_alone() {
        assert_eq!(frame_len(&[0x30], 9), Ok(None));
        assert_eq!(frame_len(&[0x30, 0xFF, 0xFF, 0xFF], 9), Ok(None));
        assert_eq!(frame_len(&[0x30, 0x80, 0x80, 0x80, 0x80], 9), Err(DecodeError::LengthTooLong));
        assert_eq!(frame_len(&[0x30, 7], 9), Ok(Some(9)));
        let error = DecodeError::PacketTooLarge { size: 10, limit: 9 };
        assert_eq!(error.reason_code().as_u8(), 0x95);
        assert_eq!(frame_len(&[0x30, 8], 9), Err(error));
        let greatest = frame_len(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F], u32::MAX);
        assert_eq!(greatest, Ok(Some(268_435_460)));
    }

    #[test]
    fn types_and_flags_that_do_not_exist() {
        assert_v5(&[0x00, 0], DecodeError::UnknownPacketType { packet_type: 0 }, 0x81);
        assert_v311(&[0xF0, 0], DecodeError::UnknownPacketType { packet_type: 15 });
        let packet_type = PacketType::PubRel;
        let error = DecodeError::ReservedFlags { packet_type, flags: 0, expected: 2 };
        assert_v5(&frame(0x60, &[0, 1]), error, 0x81);
        let error = DecodeError::NotPublish { packet_type: 12 };
        assert_eq!(error.reason_code().as_u8(), 0x82);
        assert_eq!(Publish::decode_after(&[0xC0, 0], V5, None), Err(error));
    }

    #[test]
    fn connects_that_cannot_be_read() {
        assert_v5(&frame(0x10, b"\0\x04MQTX\x05"), DecodeError::ProtocolName, 0x84);
        let error = DecodeError::UnsupportedProtocolVersion { level: 6 };
        assert_v5(&connect(6, 2, b"\0\0"), error, 0x84);
        assert_v5(&connect(5, 3, b"\0\0\0"), DecodeError::ConnectReservedFlag, 0x81);
        let error = DecodeError::WillFlagsWithoutWill { flags: 0x20 };
        assert_v5(&connect(5, 0x20, b"\0\0\0"), error, 0x81);
        assert_v5(&connect(5, 0x1C, b"\0\0\0\0\0\x01w\0\0"), DecodeError::WillQos, 0x81);
        assert_v5(
            &connect(5, 0x04, b"\0\0\0\0\0\x01#\0\0"),
            DecodeError::WillTopic(crate::topic::check_topic_name("#").unwrap_err()),
            0x90,
        );
        let error = DecodeError::PasswordWithoutUserName;
        assert_eq!(error.reason_code().as_u8(), 0x81);
        assert_v311(&connect(4, 0x40, b"\0\0\0\x01p"), error);
        let error = DecodeError::AuthenticationDataWithoutMethod;
        assert_v5(&connect(5, 2, b"\x04\x16\0\x01d\0\0"), error, 0x82);
    }

    #[test]
    fn connacks_that_cannot_be_read() {
        assert_v5(&frame(0x20, &[2, 0, 0]), DecodeError::ConnAckFlags { flags: 2 }, 0x81);
        let error = DecodeError::UnknownReturnCode { code: 6 };
        assert_eq!(error.reason_code().as_u8(), 0x81);
        assert_v311(&frame(0x20, &[0, 6]), error);
    }

    #[test]
    fn publishes_that_cannot_be_read() {
        assert_v5(&frame(0x36, b"\0\x01t\0\x01\0"), DecodeError::PublishQos, 0x81);
        assert_v5(&frame(0x38, b"\0\x01t\0"), DecodeError::DupWithQosZero, 0x81);
        assert_v5(&frame(0x32, b"\0\x01t\0\0\0"), DecodeError::ZeroPacketId, 0x82);
        assert_v5(&frame(0x30, b"\0\0\0"), DecodeError::EmptyTopic, 0x82);
        assert_v311(&frame(0x30, b"\0\0"), DecodeError::EmptyTopic);
        let wildcard = || crate::topic::check_topic_name("a/+").unwrap_err();
        assert_v5(&frame(0x30, b"\0\x03a/+\0"), DecodeError::TopicName(wildcard()), 0x90);
        let error = DecodeError::InvalidUtf8 { valid_bytes: 1 };
        assert_v5(&frame(0x30, b"\0\x04a\xED\xA0\x80\0"), error, 0x81);
        assert_v5(&frame(0x30, b"\0\x02a\0\0"), DecodeError::NulCharacter, 0x81);
        assert_v5(&frame(0x30, b"\0\x01t\x03\x23\0\0"), DecodeError::ZeroTopicAlias, 0x94);
        let error = DecodeError::ResponseTopic(wildcard());
        assert_v5(&frame(0x30, b"\0\x01t\x06\x08\0\x03a/+"), error, 0x82);
    }

    #[test]
    fn subscriptions_that_cannot_be_read() {
        assert_v5(&frame(0x82, b"\0\x01\0"), DecodeError::NoFilters, 0x82);
        assert_v5(&frame(0xA2, b"\0\x01\0"), DecodeError::NoFilters, 0x82);
        let error = DecodeError::SubscribeReservedBits { options: 0x40 };
        assert_v5(&frame(0x82, b"\0\x01\0\0\x01a\x40"), error, 0x81);
        let error = DecodeError::SubscribeReservedBits { options: 0x04 };
        assert_v311(&frame(0x82, b"\0\x01\0\x01a\x04"), error);
        assert_v5(&frame(0x82, b"\0\x01\0\0\x01a\x03"), DecodeError::SubscribeQos, 0x82);
        assert_v5(&frame(0x82, b"\0\x01\0\0\x01a\x30"), DecodeError::RetainHandling, 0x82);
        let shared = frame(0x82, b"\0\x01\0\0\x0A$share/g/a\x04");
        assert_v5(&shared, DecodeError::NoLocalOnShared, 0x82);
    }

    #[test]
    fn properties_that_cannot_be_read() {
        assert_v5(&frame(0xE0, b"\0\x01\x7F"), DecodeError::UnknownProperty { id: 0x7F }, 0x81);
        let error = DecodeError::PropertyNotAllowed { id: 0x23 };
        assert_v5(&frame(0xE0, b"\0\x03\x23\0\x01"), error, 0x81);
        let twice = b"\0\x0A\x11\0\0\0\x01\x11\0\0\0\x01";
        assert_v5(&frame(0xE0, twice), DecodeError::DuplicateProperty { id: 0x11 }, 0x82);
        let error = DecodeError::PropertyValue { id: 0x01, value: 2 };
        assert_v5(&frame(0x30, b"\0\x01t\x02\x01\x02"), error, 0x82);
        for (id, value) in [(0x21, &b"\0\0"[..]), (0x27, b"\0\0\0\0")] {
            let mut rest = vec![1 + value.len() as u8, id];
            rest.extend(value);
            rest.extend(b"\0\0");
            assert_v5(&connect(5, 2, &rest), DecodeError::PropertyValue { id, value: 0 }, 0x82);
        }
        let error = DecodeError::PropertyValue { id: 0x0B, value: 0 };
        assert_v5(&frame(0x82, b"\0\x01\x02\x0B\0\0\x01a\0"), error, 0x82);
        let error = DecodeError::BodyTooShort { needed: 4, left: 1 };
        assert_v5(&frame(0xE0, b"\0\x02\x11\0"), error, 0x81);
    }

    #[test]
    fn reason_codes_of_another_packet() {
        let packet_type = PacketType::PubAck;
        let error = DecodeError::ReasonCodeNotAllowed { packet_type, code: 0x04 };
        assert_v5(&frame(0x40, &[0, 1, 4]), error, 0x82);
        let packet_type = PacketType::SubAck;
        let error = DecodeError::ReasonCodeNotAllowed { packet_type, code: 0x87 };
        assert_v311(&frame(0x90, &[0, 1, 0x87]), error);
    }
}

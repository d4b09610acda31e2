//! CONNACK: the server's answer to CONNECT (section 3.2 of both standards). Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::reason::ReasonCode;
use crate::codec::wire::Reader;
use crate::ids::ProtocolVersion;

const OWNER: Owner = Owner::packet(PacketType::ConnAck);

/// CONNACK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ConnAck<'a> {
    /// The server held state of this client [MQTT-3.2.2-3].
    pub session_present: bool,
    /// In MQTT 3.x the nearest return code is written, and read back as the code next to it.
    pub reason: ReasonCode,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
}

impl<'a> ConnAck<'a> {
    pub(super) fn decode(frame: Frame<'a>, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let flags = reader.u8()?;
        if flags & !1 != 0 {
            return Err(DecodeError::ConnAckFlags { flags });
        }
        let reason = match version {
            ProtocolVersion::V5 => ReasonCode::decode(reader.u8()?, PacketType::ConnAck)?,
            ProtocolVersion::V31 | ProtocolVersion::V311 => {
                ReasonCode::from_return_code(reader.u8()?)?
            }
        };
        let properties = Properties::decode(&mut reader, version, OWNER)?;
        reader.finish()?;
        Ok(Self { session_present: flags == 1, reason, properties })
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        2 + self.properties.encoded_len(version)
    }

    /// Writes the whole packet.
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        put_header(PacketType::ConnAck, self.body_len(version), out);
        // A refusal never claims a session [MQTT-3.2.2-6] [MQTT-3.2.2-4 of 3.1.1], and MQTT 3.1
        // does not have the flag.
        let has_flag = self.reason == ReasonCode::Success && version != ProtocolVersion::V31;
        out.put_u8((self.session_present && has_flag).into());
        out.put_u8(match version {
            ProtocolVersion::V5 => self.reason.as_u8(),
            ProtocolVersion::V31 | ProtocolVersion::V311 => self.reason.as_return_code(),
        });
        self.properties.encode(version, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden::assert_golden;
    use crate::codec::{Packet, PropertiesBuf, Property, decode};
    use crate::ids::ProtocolVersion::{V5, V31, V311};
    use crate::ids::Qos;

    fn connack(session_present: bool, reason: ReasonCode) -> ConnAck<'static> {
        ConnAck { session_present, reason, properties: Properties::EMPTY }
    }

    #[test]
    fn success_with_session_in_both_versions() {
        let packet = Packet::ConnAck(connack(true, ReasonCode::Success));
        assert_golden(&[0x20, 2, 1, 0], V311, packet);
        assert_golden(&[0x20, 3, 1, 0, 0], V5, packet);
    }

    #[test]
    fn properties_of_mqtt_5() {
        let mut properties = PropertiesBuf::new();
        properties
            .push(Property::AssignedClientIdentifier("id"))
            .push(Property::MaximumQos(Qos::AtLeastOnce));
        let packet = ConnAck {
            properties: properties.as_properties(),
            ..connack(false, ReasonCode::Success)
        };
        let frame = [0x20, 10, 0, 0, 7, 0x12, 0, 2, b'i', b'd', 0x24, 1];
        assert_golden(&frame, V5, Packet::ConnAck(packet));
    }

    #[test]
    fn each_reason_becomes_the_nearest_return_code() {
        for (reason, code) in [
            (ReasonCode::Success, 0),
            (ReasonCode::UnsupportedProtocolVersion, 1),
            (ReasonCode::ClientIdentifierNotValid, 2),
            (ReasonCode::ServerUnavailable, 3),
            (ReasonCode::ServerBusy, 3),
            (ReasonCode::QuotaExceeded, 3),
            (ReasonCode::BadUserNameOrPassword, 4),
            (ReasonCode::NotAuthorized, 5),
            (ReasonCode::BadAuthenticationMethod, 5),
            (ReasonCode::Banned, 5),
        ] {
            let mut frame = Vec::new();
            connack(false, reason).encode(V311, &mut frame);
            assert_eq!(frame, [0x20, 2, 0, code], "{reason}");
        }
    }

    #[test]
    fn each_return_code_is_read_back() {
        for (code, reason) in [
            (1, ReasonCode::UnsupportedProtocolVersion),
            (2, ReasonCode::ClientIdentifierNotValid),
            (3, ReasonCode::ServerUnavailable),
            (4, ReasonCode::BadUserNameOrPassword),
            (5, ReasonCode::NotAuthorized),
        ] {
            let packet = Packet::ConnAck(connack(false, reason));
            assert_golden(&[0x20, 2, 0, code], V311, packet);
        }
    }

    #[test]
    fn a_refusal_and_mqtt_3_1_never_claim_a_session() {
        let mut frame = Vec::new();
        connack(true, ReasonCode::NotAuthorized).encode(V5, &mut frame);
        assert_eq!(frame, [0x20, 3, 0, 0x87, 0]);
        frame.clear();
        connack(true, ReasonCode::Success).encode(V31, &mut frame);
        assert_eq!(decode(&frame, V31), Ok(Packet::ConnAck(connack(false, ReasonCode::Success))));
    }
}

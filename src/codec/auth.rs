//! AUTH: a step of the extended authentication of MQTT 5 (section 3.15). Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::reason::ReasonCode;
use crate::codec::wire::Reader;
use crate::ids::ProtocolVersion;

const OWNER: Owner = Owner::packet(PacketType::Auth);

/// AUTH.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Auth<'a> {
    /// One of three [MQTT-3.15.2-1].
    pub reason: ReasonCode,
    /// Authentication Method and Data, as a rule.
    pub properties: Properties<'a>,
}

impl<'a> Auth<'a> {
    pub(super) fn decode(frame: Frame<'a>) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let mut packet = Self { reason: ReasonCode::Success, properties: Properties::EMPTY };
        if !reader.is_empty() {
            packet.reason = ReasonCode::decode(reader.u8()?, PacketType::Auth)?;
            // The property length may be left out together with the properties.
            if !reader.is_empty() {
                packet.properties = Properties::decode(&mut reader, ProtocolVersion::V5, OWNER)?;
            }
        }
        reader.finish()?;
        Ok(packet)
    }

    pub(super) fn body_len(&self) -> usize {
        if self.reason == ReasonCode::Success && self.properties.is_empty() {
            return 0;
        }
        // Unlike DISCONNECT, a reason code is always followed by a property length (3.15.2.1).
        1 + self.properties.encoded_len(ProtocolVersion::V5)
    }

    /// Writes the whole packet.
    pub fn encode(&self, out: &mut impl BufMut) {
        let body_len = self.body_len();
        put_header(PacketType::Auth, body_len, out);
        if body_len > 0 {
            out.put_u8(self.reason.as_u8());
            self.properties.encode(ProtocolVersion::V5, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden::assert_golden;
    use crate::codec::{Packet, PropertiesBuf, Property};
    use crate::ids::ProtocolVersion::V5;

    #[test]
    fn success_alone_is_two_bytes() {
        let auth = Auth { reason: ReasonCode::Success, properties: Properties::EMPTY };
        assert_golden(&[0xF0, 0], V5, Packet::Auth(auth));
    }

    #[test]
    fn method_and_data_go_with_the_next_step() {
        let mut properties = PropertiesBuf::new();
        properties
            .push(Property::AuthenticationMethod("m"))
            .push(Property::AuthenticationData(b"\0"));
        let auth = Auth {
            reason: ReasonCode::ContinueAuthentication,
            properties: properties.as_properties(),
        };
        let frame = [0xF0, 10, 0x18, 8, 0x15, 0, 1, b'm', 0x16, 0, 1, 0];
        assert_golden(&frame, V5, Packet::Auth(auth));
    }
}

//! DISCONNECT: the last packet of a connection (section 3.14 of both standards). Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::reason::ReasonCode;
use crate::codec::wire::Reader;
use crate::ids::ProtocolVersion;

const OWNER: Owner = Owner::packet(PacketType::Disconnect);

/// DISCONNECT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Disconnect<'a> {
    /// `Success` stands for a normal disconnection, the only one before MQTT 5.
    pub reason: ReasonCode,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
}

impl<'a> Disconnect<'a> {
    pub(super) fn decode(frame: Frame<'a>, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let mut packet = Self { reason: ReasonCode::Success, properties: Properties::EMPTY };
        if version == ProtocolVersion::V5 && !reader.is_empty() {
            packet.reason = ReasonCode::decode(reader.u8()?, PacketType::Disconnect)?;
            // The property length may be left out together with the properties.
            if !reader.is_empty() {
                packet.properties = Properties::decode(&mut reader, version, OWNER)?;
            }
        }
        reader.finish()?;
        Ok(packet)
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        match version {
            ProtocolVersion::V5 if !self.properties.is_empty() => {
                1 + self.properties.encoded_len(version)
            }
            ProtocolVersion::V5 if self.reason != ReasonCode::Success => 1,
            _ => 0,
        }
    }

    /// Writes the whole packet in its shortest form.
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        let body_len = self.body_len(version);
        put_header(PacketType::Disconnect, body_len, out);
        if body_len > 0 {
            out.put_u8(self.reason.as_u8());
        }
        if body_len > 1 {
            self.properties.encode(version, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden::assert_golden;
    use crate::codec::{Packet, PropertiesBuf, Property, decode};
    use crate::ids::ProtocolVersion::{V5, V311};

    fn disconnect(reason: ReasonCode) -> Disconnect<'static> {
        Disconnect { reason, properties: Properties::EMPTY }
    }

    #[test]
    fn normal_disconnection_is_two_bytes_in_both_versions() {
        let packet = Packet::Disconnect(disconnect(ReasonCode::NORMAL_DISCONNECTION));
        assert_golden(&[0xE0, 0], V311, packet);
        assert_golden(&[0xE0, 0], V5, packet);
        assert_eq!(decode(&[0xE0, 2, 0, 0], V5), Ok(packet));
    }

    #[test]
    fn reason_and_properties_of_mqtt_5() {
        let taken_over = disconnect(ReasonCode::SessionTakenOver);
        assert_golden(&[0xE0, 1, 0x8E], V5, Packet::Disconnect(taken_over));
        let mut properties = PropertiesBuf::new();
        properties.push(Property::SessionExpiryInterval(0));
        let with_will = Disconnect {
            reason: ReasonCode::DisconnectWithWill,
            properties: properties.as_properties(),
        };
        let frame = [0xE0, 7, 4, 5, 0x11, 0, 0, 0, 0];
        assert_golden(&frame, V5, Packet::Disconnect(with_will));
    }
}

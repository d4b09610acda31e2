//! PUBACK, PUBREC, PUBREL and PUBCOMP: the same fields under four names (sections 3.4 to 3.7 of
//! both standards). Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::reason::ReasonCode;
use crate::codec::wire::Reader;
use crate::ids::{PacketId, ProtocolVersion};

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Ack<'a> {
    /// The identifier of the PUBLISH [MQTT-2.2.1-5].
    pub id: PacketId,
    /// `Success` before MQTT 5.
    pub reason: ReasonCode,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
}

impl<'a> Ack<'a> {
    /// Nothing but good news.
    pub fn success(id: PacketId) -> Self {
        Self { id, reason: ReasonCode::Success, properties: Properties::EMPTY }
    }

    pub(super) fn decode(
        frame: Frame<'a>,
        version: ProtocolVersion,
        packet_type: PacketType,
    ) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let mut ack = Self::success(reader.packet_id()?);
        if version == ProtocolVersion::V5 && !reader.is_empty() {
            ack.reason = ReasonCode::decode(reader.u8()?, packet_type)?;
            // The property length may be left out together with the properties.
            if !reader.is_empty() {
                let owner = Owner::packet(packet_type);
                ack.properties = Properties::decode(&mut reader, version, owner)?;
            }
        }
        reader.finish()?;
        Ok(ack)
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        match version {
            ProtocolVersion::V5 if !self.properties.is_empty() => {
                3 + self.properties.encoded_len(version)
            }
            ProtocolVersion::V5 if self.reason != ReasonCode::Success => 3,
            _ => 2,
        }
    }

    /// Writes the whole packet in its shortest form.
    pub(super) fn encode(
        &self,
        version: ProtocolVersion,
        packet_type: PacketType,
        out: &mut impl BufMut,
    ) {
        let body_len = self.body_len(version);
        put_header(packet_type, body_len, out);
        out.put_u16(self.id.get());
        if body_len > 2 {
            out.put_u8(self.reason.as_u8());
        }
        if body_len > 3 {
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

    fn ack() -> Ack<'static> {
        Ack::success(PacketId::new(0x0102).unwrap())
    }

    #[test]
    fn success_is_four_bytes_in_both_versions() {
        for version in [V311, V5] {
            assert_golden(&[0x40, 2, 1, 2], version, Packet::PubAck(ack()));
            assert_golden(&[0x50, 2, 1, 2], version, Packet::PubRec(ack()));
            assert_golden(&[0x62, 2, 1, 2], version, Packet::PubRel(ack()));
            assert_golden(&[0x70, 2, 1, 2], version, Packet::PubComp(ack()));
        }
    }

    #[test]
    fn a_reason_alone_needs_no_property_length() {
        let none = Ack { reason: ReasonCode::NoMatchingSubscribers, ..ack() };
        assert_golden(&[0x40, 3, 1, 2, 0x10], V5, Packet::PubAck(none));
        assert_golden(&[0x50, 3, 1, 2, 0x10], V5, Packet::PubRec(none));
        let unknown = Ack { reason: ReasonCode::PacketIdentifierNotFound, ..ack() };
        assert_golden(&[0x62, 3, 1, 2, 0x92], V5, Packet::PubRel(unknown));
        assert_golden(&[0x70, 3, 1, 2, 0x92], V5, Packet::PubComp(unknown));
    }

    #[test]
    fn properties_come_after_the_reason() {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::ReasonString("no"));
        let full = Ack { properties: properties.as_properties(), ..ack() };
        let frame = [0x40, 9, 1, 2, 0, 5, 0x1F, 0, 2, b'n', b'o'];
        assert_golden(&frame, V5, Packet::PubAck(full));
    }

    #[test]
    fn the_long_form_of_success_is_read() {
        assert_eq!(decode(&[0x40, 3, 1, 2, 0], V5), Ok(Packet::PubAck(ack())));
        assert_eq!(decode(&[0x40, 4, 1, 2, 0, 0], V5), Ok(Packet::PubAck(ack())));
    }

    #[test]
    fn reason_and_properties_are_left_out_before_mqtt_5() {
        let mut frame = Vec::new();
        let refused = Ack { reason: ReasonCode::NotAuthorized, ..ack() };
        Packet::PubAck(refused).encode(V311, &mut frame);
        assert_eq!(frame, [0x40, 2, 1, 2]);
    }
}

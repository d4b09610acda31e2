//! UNSUBACK: one reason code for each filter of UNSUBSCRIBE (section 3.11 of both standards).
//! Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::reason::ReasonCode;
use crate::codec::wire::Reader;
use crate::ids::{PacketId, ProtocolVersion};

const OWNER: Owner = Owner::packet(PacketType::UnsubAck);

/// UNSUBACK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct UnsubAck<'a> {
    /// That of UNSUBSCRIBE [MQTT-3.10.4-5].
    pub id: PacketId,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// Raw reason codes in the order of the filters [MQTT-3.11.3-1]; empty before MQTT 5.
    pub reasons: &'a [u8],
}

impl<'a> UnsubAck<'a> {
    pub(super) fn decode(frame: Frame<'a>, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let id = reader.packet_id()?;
        if version != ProtocolVersion::V5 {
            reader.finish()?;
            return Ok(Self { id, properties: Properties::EMPTY, reasons: &[] });
        }
        let properties = Properties::decode(&mut reader, version, OWNER)?;
        let reasons = reader.rest();
        if reasons.is_empty() {
            return Err(DecodeError::BodyTooShort { needed: 1, left: 0 });
        }
        for &code in reasons {
            ReasonCode::decode(code, PacketType::UnsubAck)?;
        }
        Ok(Self { id, properties, reasons })
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        match version {
            ProtocolVersion::V5 => 2 + self.properties.encoded_len(version) + self.reasons.len(),
            ProtocolVersion::V31 | ProtocolVersion::V311 => 2,
        }
    }

    /// Writes the whole packet.
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        put_header(PacketType::UnsubAck, self.body_len(version), out);
        out.put_u16(self.id.get());
        if version == ProtocolVersion::V5 {
            self.properties.encode(version, out);
            out.put_slice(self.reasons);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Packet;
    use crate::codec::golden::assert_golden;
    use crate::ids::ProtocolVersion::{V5, V311};

    #[test]
    fn codes_exist_in_mqtt_5_only() {
        let unsuback =
            UnsubAck { id: PacketId::FIRST, properties: Properties::EMPTY, reasons: &[0, 0x11] };
        assert_golden(&[0xB0, 5, 0, 1, 0, 0, 0x11], V5, Packet::UnsubAck(unsuback));
        let bare = UnsubAck { reasons: &[], ..unsuback };
        assert_golden(&[0xB0, 2, 0, 1], V311, Packet::UnsubAck(bare));
        let mut frame = Vec::new();
        unsuback.encode(V311, &mut frame);
        assert_eq!(frame, [0xB0, 2, 0, 1]);
    }
}

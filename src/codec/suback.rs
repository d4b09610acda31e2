//! SUBACK: one reason code for each filter of SUBSCRIBE (section 3.9 of both standards). Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::reason::ReasonCode;
use crate::codec::wire::Reader;
use crate::ids::{PacketId, ProtocolVersion};

const OWNER: Owner = Owner::packet(PacketType::SubAck);

/// The only failure that MQTT 3.1.1 knows [MQTT-3.9.3-2 of 3.1.1].
const FAILURE_BEFORE_V5: u8 = 0x80;

/// SUBACK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SubAck<'a> {
    /// That of SUBSCRIBE [MQTT-3.8.4-2].
    pub id: PacketId,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// Raw reason codes in the order of the filters [MQTT-3.9.3-1]. In MQTT 3.x each failure is
    /// written as 0x80.
    pub reasons: &'a [u8],
}

impl<'a> SubAck<'a> {
    pub(super) fn decode(frame: Frame<'a>, version: ProtocolVersion) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let id = reader.packet_id()?;
        let properties = Properties::decode(&mut reader, version, OWNER)?;
        let reasons = reader.rest();
        if reasons.is_empty() {
            return Err(DecodeError::BodyTooShort { needed: 1, left: 0 });
        }
        for &code in reasons {
            let reason = ReasonCode::decode(code, PacketType::SubAck)?;
            let exists = version == ProtocolVersion::V5
                || !reason.is_error()
                || reason.as_u8() == FAILURE_BEFORE_V5;
            if !exists {
                let packet_type = PacketType::SubAck;
                return Err(DecodeError::ReasonCodeNotAllowed { packet_type, code });
            }
        }
        Ok(Self { id, properties, reasons })
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        2 + self.properties.encoded_len(version) + self.reasons.len()
    }

    /// Writes the whole packet.
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        put_header(PacketType::SubAck, self.body_len(version), out);
        out.put_u16(self.id.get());
        self.properties.encode(version, out);
        if version == ProtocolVersion::V5 {
            out.put_slice(self.reasons);
        } else {
            for reason in self.reasons {
                out.put_u8((*reason).min(FAILURE_BEFORE_V5));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Packet;
    use crate::codec::golden::assert_golden;
    use crate::ids::ProtocolVersion::{V5, V311};

    fn suback(reasons: &[u8]) -> SubAck<'_> {
        SubAck { id: PacketId::FIRST, properties: Properties::EMPTY, reasons }
    }

    #[test]
    fn one_code_for_each_filter_in_both_versions() {
        let packet = Packet::SubAck(suback(&[0, 2, 0x80]));
        assert_golden(&[0x90, 5, 0, 1, 0, 2, 0x80], V311, packet);
        assert_golden(&[0x90, 6, 0, 1, 0, 0, 2, 0x80], V5, packet);
        assert_golden(&[0x90, 4, 0, 1, 0, 0x97], V5, Packet::SubAck(suback(&[0x97])));
    }

    #[test]
    fn every_failure_is_0x80_before_mqtt_5() {
        let mut frame = Vec::new();
        suback(&[1, 0x87, 0xA2]).encode(V311, &mut frame);
        assert_eq!(frame, [0x90, 5, 0, 1, 1, 0x80, 0x80]);
    }
}

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

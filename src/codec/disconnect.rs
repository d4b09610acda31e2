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

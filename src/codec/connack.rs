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

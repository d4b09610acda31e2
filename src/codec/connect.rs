//! CONNECT: opens a session (section 3.1 of both standards).
//!
//! The one packet that says itself which version it is written in. Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, put_header};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::wire::{Reader, binary_len, put_binary, put_string, string_len};
use crate::ids::{ProtocolVersion, Qos};
use crate::topic::check_topic_name;

const OWNER: Owner = Owner::packet(PacketType::Connect);

const CLEAN_START: u8 = 0b0000_0010;
const WILL: u8 = 0b0000_0100;
const WILL_QOS_SHIFT: u8 = 3;
const WILL_QOS_AND_RETAIN: u8 = 0b0011_1000;
const WILL_RETAIN: u8 = 0b0010_0000;
const PASSWORD: u8 = 0b0100_0000;
const USER_NAME: u8 = 0b1000_0000;

/// CONNECT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Connect<'a> {
    /// What the rest of the connection is written in.
    pub version: ProtocolVersion,
    /// Drops an earlier session [MQTT-3.1.2-4]; called Clean Session before MQTT 5.
    pub clean_start: bool,
    /// Seconds of silence that the client allows itself; zero means for ever.
    pub keep_alive_s: u16,
    /// May be empty [MQTT-3.1.3-6].
    pub client_id: &'a str,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// Published when the connection ends badly [MQTT-3.1.2-8].
    pub will: Option<Will<'a>>,
    /// Who the client claims to be.
    pub user_name: Option<&'a str>,
    /// Its proof. Before MQTT 5 only together with a user name [MQTT-3.1.2-22 of 3.1.1].
    pub password: Option<&'a [u8]>,
}

#[cfg(test)]
impl Connect<'static> {
    /// Of a client that wants nothing special.
    pub(crate) const OF_TESTS: Self = Self {
        version: ProtocolVersion::V5,
        clean_start: false,
        keep_alive_s: 0,
        client_id: "client",
        properties: Properties::EMPTY,
        will: None,
        user_name: None,
        password: None,
    };
}

/// The message that a client leaves behind for its own funeral.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Will<'a> {
    /// A valid topic name.
    pub topic: &'a str,
    /// Opaque.
    pub payload: &'a [u8],
    /// How it is published.
    pub qos: Qos,
    /// Whether it is published as a retained message [MQTT-3.1.2-15].
    pub retain: bool,
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
}

impl<'a> Connect<'a> {
    pub(super) fn decode(frame: Frame<'a>) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(frame.body);
        let version = decode_version(&mut reader)?;
        frame.check_length_form(version)?;
        let flags = decode_flags(&mut reader, version)?;
        let keep_alive_s = reader.u16()?;
        let properties = Properties::decode(&mut reader, version, OWNER)?;
        if properties.authentication_data().is_some()
            && properties.authentication_method().is_none()
        {
            return Err(DecodeError::AuthenticationDataWithoutMethod);
        }
        // The order of the payload is prescribed [MQTT-3.1.3-1].
        let client_id = reader.string()?;
        let will = decode_will(&mut reader, flags, version)?;
        let user_name = if flags & USER_NAME != 0 { Some(reader.string()?) } else { None };
        let password = if flags & PASSWORD != 0 { Some(reader.binary()?) } else { None };
        reader.finish()?;
        let clean_start = flags & CLEAN_START != 0;
        Ok(Self {
            version,
            clean_start,
            keep_alive_s,
            client_id,
            properties,
            will,
            user_name,
            password,
        })
    }

    pub(super) fn body_len(&self) -> usize {
        let will_len = self.will.map_or(0, |will| {
            will.properties.encoded_len(self.version)
                + string_len(will.topic)
                + binary_len(will.payload)
        });
        string_len(protocol_name(self.version))
            + 4
            + self.properties.encoded_len(self.version)
            + string_len(self.client_id)
            + will_len
            + self.user_name.map_or(0, string_len)
            + self.encodable_password().map_or(0, binary_len)
    }

    /// Writes the whole packet.
    pub fn encode(&self, out: &mut impl BufMut) {
        put_header(PacketType::Connect, self.body_len(), out);
        put_string(protocol_name(self.version), out);
        out.put_u8(protocol_level(self.version));
        out.put_u8(self.flags());
        out.put_u16(self.keep_alive_s);
        self.properties.encode(self.version, out);
        put_string(self.client_id, out);
        if let Some(will) = self.will {
            will.properties.encode(self.version, out);
            put_string(will.topic, out);
            put_binary(will.payload, out);
        }
        if let Some(user_name) = self.user_name {
            put_string(user_name, out);
        }
        if let Some(password) = self.encodable_password() {
            put_binary(password, out);
        }
    }

    fn flags(&self) -> u8 {
        let mut flags = 0;
        if self.clean_start {
            flags |= CLEAN_START;
        }
        if let Some(will) = self.will {
            flags |= WILL | (will.qos as u8) << WILL_QOS_SHIFT;
            if will.retain {
                flags |= WILL_RETAIN;
            }
        }
        if self.user_name.is_some() {
            flags |= USER_NAME;
        }
        if self.encodable_password().is_some() {
            flags |= PASSWORD;
        }
        flags
    }

    /// A password alone cannot be said before MQTT 5 [MQTT-3.1.2-22 of 3.1.1].
    fn encodable_password(&self) -> Option<&'a [u8]> {
        let may_stand = self.version == ProtocolVersion::V5 || self.user_name.is_some();
        self.password.filter(|_| may_stand)
    }
}

fn decode_version(reader: &mut Reader<'_>) -> Result<ProtocolVersion, DecodeError> {
    let name = reader.binary()?;
    if name != b"MQTT" && name != b"MQIsdp" {
        return Err(DecodeError::ProtocolName);
    }
    match (name, reader.u8()?) {
        (b"MQIsdp", 3) => Ok(ProtocolVersion::V31),
        (b"MQTT", 4) => Ok(ProtocolVersion::V311),
        (b"MQTT", 5) => Ok(ProtocolVersion::V5),
        (_, level) => Err(DecodeError::UnsupportedProtocolVersion { level }),
    }
}

fn decode_flags(reader: &mut Reader<'_>, version: ProtocolVersion) -> Result<u8, DecodeError> {
    let flags = reader.u8()?;
    if flags & 1 != 0 {
        return Err(DecodeError::ConnectReservedFlag);
    }
    if flags & WILL == 0 && flags & WILL_QOS_AND_RETAIN != 0 {
        return Err(DecodeError::WillFlagsWithoutWill { flags });
    }
    if version != ProtocolVersion::V5 && flags & PASSWORD != 0 && flags & USER_NAME == 0 {
        return Err(DecodeError::PasswordWithoutUserName);
    }
    Ok(flags)
}

fn decode_will<'a>(
    reader: &mut Reader<'a>,
    flags: u8,
    version: ProtocolVersion,
) -> Result<Option<Will<'a>>, DecodeError> {
    if flags & WILL == 0 {
        return Ok(None);
    }
    let qos = Qos::new(flags >> WILL_QOS_SHIFT & 0b11).ok_or(DecodeError::WillQos)?;
    let properties = Properties::decode(reader, version, Owner::WILL)?;
    let topic = reader.string()?;
    check_topic_name(topic).map_err(DecodeError::WillTopic)?;
    let payload = reader.binary()?;
    Ok(Some(Will { topic, payload, qos, retain: flags & WILL_RETAIN != 0, properties }))
}

fn protocol_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::V31 => "MQIsdp",
        ProtocolVersion::V311 | ProtocolVersion::V5 => "MQTT",
    }
}

fn protocol_level(version: ProtocolVersion) -> u8 {
    match version {
        ProtocolVersion::V31 => 3,
        ProtocolVersion::V311 => 4,
        ProtocolVersion::V5 => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden::assert_golden;
    use crate::codec::{Packet, PropertiesBuf, Property, decode};
    use crate::ids::ProtocolVersion::{V5, V31, V311};

    fn plain(version: ProtocolVersion) -> Connect<'static> {
        Connect {
            version,
            clean_start: true,
            keep_alive_s: 60,
            client_id: "c",
            properties: Properties::EMPTY,
            will: None,
            user_name: None,
            password: None,
        }
    }

    #[test]
    fn plain_connect_of_every_version() {
        let v31 = b"\x10\x0F\0\x06MQIsdp\x03\x02\0\x3C\0\x01c";
        assert_golden(v31, V31, Packet::Connect(plain(V31)));
        let v311 = b"\x10\x0D\0\x04MQTT\x04\x02\0\x3C\0\x01c";
        assert_golden(v311, V311, Packet::Connect(plain(V311)));
        let v5 = b"\x10\x0E\0\x04MQTT\x05\x02\0\x3C\0\0\x01c";
        assert_golden(v5, V5, Packet::Connect(plain(V5)));
    }

    #[test]
    fn the_version_of_a_connect_is_its_own() {
        let frame = b"\x10\x0E\0\x04MQTT\x05\x02\0\x3C\0\0\x01c";
        assert_eq!(decode(frame, V311), Ok(Packet::Connect(plain(V5))));
    }

    #[test]
    fn connect_with_everything_before_mqtt_5() {
        let will = Will {
            topic: "w",
            payload: b"bye",
            qos: Qos::AtLeastOnce,
            retain: true,
            properties: Properties::EMPTY,
        };
        let connect = Connect {
            clean_start: false,
            will: Some(will),
            user_name: Some("u"),
            password: Some(b"\0p"),
            ..plain(V311)
        };
        let frame = b"\x10\x1C\0\x04MQTT\x04\xEC\0\x3C\0\x01c\0\x01w\0\x03bye\0\x01u\0\x02\0p";
        assert_golden(frame, V311, Packet::Connect(connect));
    }

    #[test]
    fn connect_of_mqtt_5_with_properties_and_a_password_alone() {
        let mut own = PropertiesBuf::new();
        own.push(Property::SessionExpiryInterval(10)).push(Property::ReceiveMaximum(5));
        let mut of_will = PropertiesBuf::new();
        of_will.push(Property::WillDelayInterval(1));
        let will = Will {
            topic: "w",
            payload: b"",
            qos: Qos::ExactlyOnce,
            retain: false,
            properties: of_will.as_properties(),
        };
        let connect = Connect {
            properties: own.as_properties(),
            will: Some(will),
            password: Some(b"p"),
            ..plain(V5)
        };
        let frame = b"\x10\x24\0\x04MQTT\x05\x56\0\x3C\x08\x11\0\0\0\x0A\x21\0\x05\0\x01c\
            \x05\x18\0\0\0\x01\0\x01w\0\0\0\x01p";
        assert_golden(frame, V5, Packet::Connect(connect));
    }

    #[test]
    fn a_password_alone_is_left_out_before_mqtt_5() {
        let connect = Connect { password: Some(b"p"), ..plain(V311) };
        let mut encoded = Vec::new();
        connect.encode(&mut encoded);
        assert_eq!(decode(&encoded, V311), Ok(Packet::Connect(plain(V311))));
    }
}

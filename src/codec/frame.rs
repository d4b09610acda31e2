//! The fixed header: packet type, flags, remaining length (MQTT 5, section 2.1).
//!
//! `net::connection` cuts its read buffer with [`frame_len`]; `codec::decode` and the packet files
//! use the rest. Knows no packet's body. Floor 1.

use std::fmt;

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::wire::{
    VARIABLE_BYTE_INTEGER_MAX, put_variable_byte_integer, variable_byte_integer_len,
};
use crate::ids::ProtocolVersion;

/// Bytes of the first byte and the remaining length of the frame at the start of `bytes`; `None`
/// where they are not whole or not right.
#[inline]
pub fn header_len(bytes: &[u8]) -> Option<usize> {
    Some(remaining_length(bytes).ok()??.header_len)
}

/// Total length (fixed header and body) of the frame at the start of `bytes`; `None` while its
/// header is not complete. The body need not be there yet: a frame over `packet_bytes_max` is
/// refused before any of it is buffered.
#[inline]
pub fn frame_len(bytes: &[u8], packet_bytes_max: u32) -> Result<Option<usize>, DecodeError> {
    let Some(RemainingLength { header_len, value }) = remaining_length(bytes)? else {
        return Ok(None);
    };
    let size = header_len as u32 + value;
    if size > packet_bytes_max {
        return Err(DecodeError::PacketTooLarge { size, limit: packet_bytes_max });
    }
    Ok(Some(size as usize))
}

/// The control packets, numbered as on the wire.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub enum PacketType {
    /// CONNECT.
    Connect = 1,
    /// CONNACK.
    ConnAck = 2,
    /// PUBLISH.
    Publish = 3,
    /// PUBACK.
    PubAck = 4,
    /// PUBREC.
    PubRec = 5,
    /// PUBREL.
    PubRel = 6,
    /// PUBCOMP.
    PubComp = 7,
    /// SUBSCRIBE.
    Subscribe = 8,
    /// SUBACK.
    SubAck = 9,
    /// UNSUBSCRIBE.
    Unsubscribe = 10,
    /// UNSUBACK.
    UnsubAck = 11,
    /// PINGREQ.
    PingReq = 12,
    /// PINGRESP.
    PingResp = 13,
    /// DISCONNECT.
    Disconnect = 14,
    /// AUTH, MQTT 5 only.
    Auth = 15,
}

impl PacketType {
    /// Parses the upper four bits of the first byte; `None` for the one number without meaning.
    pub fn new(raw: u8) -> Option<Self> {
        Some(match raw {
            1 => Self::Connect,
            2 => Self::ConnAck,
            3 => Self::Publish,
            4 => Self::PubAck,
            5 => Self::PubRec,
            6 => Self::PubRel,
            7 => Self::PubComp,
            8 => Self::Subscribe,
            9 => Self::SubAck,
            10 => Self::Unsubscribe,
            11 => Self::UnsubAck,
            12 => Self::PingReq,
            13 => Self::PingResp,
            14 => Self::Disconnect,
            15 => Self::Auth,
            _ => return None,
        })
    }

    /// The lower four bits of the first byte; `None` for PUBLISH, where they carry meaning.
    pub(super) fn reserved_flags(self) -> Option<u8> {
        match self {
            Self::Publish => None,
            // [MQTT-3.6.1-1] [MQTT-3.8.1-1] [MQTT-3.10.1-1]
            Self::PubRel | Self::Subscribe | Self::Unsubscribe => Some(0b0010),
            _ => Some(0),
        }
    }
}

impl fmt::Display for PacketType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "CONNECT",
            Self::ConnAck => "CONNACK",
            Self::Publish => "PUBLISH",
            Self::PubAck => "PUBACK",
            Self::PubRec => "PUBREC",
            Self::PubRel => "PUBREL",
            Self::PubComp => "PUBCOMP",
            Self::Subscribe => "SUBSCRIBE",
            Self::SubAck => "SUBACK",
            Self::Unsubscribe => "UNSUBSCRIBE",
            Self::UnsubAck => "UNSUBACK",
            Self::PingReq => "PINGREQ",
            Self::PingResp => "PINGRESP",
            Self::Disconnect => "DISCONNECT",
            Self::Auth => "AUTH",
        })
    }
}

/// Bytes of the largest packet that there can be: five of header, and as many as they can say.
pub const PACKET_BYTES_MAX: u32 = VARIABLE_BYTE_INTEGER_MAX + 5;

/// A whole frame, cut into first byte and body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    /// Packet type and flags.
    pub(super) first_byte: u8,
    /// All after the remaining length.
    pub(super) body: &'a [u8],
    /// False when the remaining length took more bytes than it needs.
    is_shortest: bool,
}

impl<'a> Frame<'a> {
    /// Accepts exactly one whole frame.
    #[inline]
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        match bytes {
            // Nearly all frames are shorter than 130 bytes and whole.
            &[first_byte, len, ref body @ ..] if len < 0x80 && body.len() == usize::from(len) => {
                Ok(Self { first_byte, body, is_shortest: true })
            }
            _ => Self::parse_long(bytes),
        }
    }

    #[inline(never)]
    fn parse_long(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let given = bytes.len();
        let Some(RemainingLength { header_len, value }) = remaining_length(bytes)? else {
            return Err(DecodeError::FrameLength { announced: given + 1, given });
        };
        let announced = header_len + value as usize;
        match (bytes, bytes.split_at_checked(header_len)) {
            (&[first_byte, ..], Some((_, body))) if announced == given => {
                let is_shortest = header_len == 1 + variable_byte_integer_len(value);
                Ok(Self { first_byte, body, is_shortest })
            }
            _ => Err(DecodeError::FrameLength { announced, given }),
        }
    }

    /// MQTT 5 demands the shortest form [MQTT-1.5.5-1], MQTT 3.1.1 does not.
    #[inline]
    pub(super) fn check_length_form(&self, version: ProtocolVersion) -> Result<(), DecodeError> {
        if version == ProtocolVersion::V5 && !self.is_shortest {
            return Err(DecodeError::VariableByteInteger);
        }
        Ok(())
    }
}

/// A remaining length that was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemainingLength {
    /// First byte and length bytes.
    pub(super) header_len: usize,
    /// Length of the body.
    pub(super) value: u32,
}

/// Reads the remaining length of the frame at the start of `bytes`, in any form; `None` while it
/// is not complete.
#[inline]
pub(super) fn remaining_length(bytes: &[u8]) -> Result<Option<RemainingLength>, DecodeError> {
    match *bytes {
        // Nearly all frames are shorter than 130 bytes; the loop stays out of their way.
        [_, low, ..] if low < 0x80 => {
            Ok(Some(RemainingLength { header_len: 2, value: u32::from(low) }))
        }
        _ => long_remaining_length(bytes),
    }
}

#[inline(never)]
fn long_remaining_length(bytes: &[u8]) -> Result<Option<RemainingLength>, DecodeError> {
    let mut value = 0;
    let mut header_len = 1;
    for byte in bytes.iter().skip(1).take(4) {
        value |= u32::from(byte & 0x7F) << (7 * (header_len - 1));
        header_len += 1;
        if *byte < 0x80 {
            return Ok(Some(RemainingLength { header_len, value }));
        }
    }
    if header_len == 5 { Err(DecodeError::LengthTooLong) } else { Ok(None) }
}

/// Writes the fixed header of any packet but PUBLISH, with the flags that are prescribed for it.
pub(super) fn put_header(packet_type: PacketType, body_len: usize, out: &mut impl BufMut) {
    let flags = packet_type.reserved_flags().unwrap_or(0);
    put_first_byte((packet_type as u8) << 4 | flags, body_len, out);
}

/// Writes a fixed header from its parts.
pub(super) fn put_first_byte(first_byte: u8, body_len: usize, out: &mut impl BufMut) {
    out.put_u8(first_byte);
    put_variable_byte_integer(saturated(body_len), out);
}

/// Length of a frame whose body has `body_len` bytes.
pub(super) fn len_with_header(body_len: usize) -> usize {
    1 + variable_byte_integer_len(saturated(body_len)) + body_len
}

fn saturated(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(VARIABLE_BYTE_INTEGER_MAX)
}

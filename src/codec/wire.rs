//! The data types of the wire: integers, strings, binary data (MQTT 5, section 1.5).
//!
//! Called by every file of this floor. [`Reader`] borrows from the frame and never reads past its
//! end; the `put_*` functions are its mirror image. Floor 1.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::ids::PacketId;

/// Greatest value of a variable byte integer, and so of a remaining length.
pub(super) const VARIABLE_BYTE_INTEGER_MAX: u32 = 268_435_455;

/// Walks over a packet's body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    #[inline]
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// True when everything was read.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// All that was not read yet.
    #[inline]
    pub(super) fn rest(self) -> &'a [u8] {
        self.rest
    }

    /// The end of a packet: nothing may be left.
    #[inline]
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::TrailingBytes { count }),
        }
    }

    /// The next `needed` bytes.
    #[inline]
    pub(super) fn take(&mut self, needed: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(needed) else {
            return Err(DecodeError::BodyTooShort { needed, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(taken)
    }

    /// Steps over a zero byte; false, and nothing read, when something else is next.
    #[inline]
    pub(super) fn skip_zero(&mut self) -> bool {
        let [0, rest @ ..] = self.rest else { return false };
        self.rest = rest;
        true
    }

    /// One byte.
    #[inline]
    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    /// Two Byte Integer.
    #[inline]
    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// Four Byte Integer.
    #[inline]
    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// Variable Byte Integer, in the shortest form only [MQTT-1.5.5-1].
    pub(super) fn variable_byte_integer(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                let is_shortest = byte != 0 || shift == 0;
                return if is_shortest { Ok(value) } else { Err(DecodeError::VariableByteInteger) };
            }
        }
        Err(DecodeError::VariableByteInteger)
    }

    /// Binary Data.
    #[inline]
    pub(super) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// UTF-8 Encoded String. A byte order mark is data [MQTT-1.5.4-3] [MQTT-1.5.3-3].
    pub(super) fn string(&mut self) -> Result<&'a str, DecodeError> {
        check_string(self.binary()?)
    }

    /// Packet identifier, not zero [MQTT-2.2.1-3] [MQTT-2.3.1-1].
    #[inline]
    pub(super) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.u16()?).ok_or(DecodeError::ZeroPacketId)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::BodyTooShort { needed: N, left: self.rest.len() });
        };
        self.rest = rest;
        Ok(*taken)
    }
}

/// Checks the rules that hold for every string: UTF-8 without surrogates [MQTT-1.5.4-1]
/// [MQTT-1.5.3-1], and no U+0000 [MQTT-1.5.4-2] [MQTT-1.5.3-2].
pub(super) fn check_string(bytes: &[u8]) -> Result<&str, DecodeError> {
    let text = str::from_utf8(bytes)
        .map_err(|error| DecodeError::InvalidUtf8 { valid_bytes: error.valid_up_to() })?;
    if bytes.contains(&0) {
        return Err(DecodeError::NulCharacter);
    }
    Ok(text)
}

/// Bytes that a Variable Byte Integer of this value takes.
pub(super) fn variable_byte_integer_len(value: u32) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

/// Writes a Variable Byte Integer; a value over the greatest possible is written as that.
pub(super) fn put_variable_byte_integer(value: u32, out: &mut impl BufMut) {
    let mut rest = value.min(VARIABLE_BYTE_INTEGER_MAX);
    while rest > 0x7F {
        out.put_u8((rest & 0x7F) as u8 | 0x80);
        rest >>= 7;
    }
    out.put_u8(rest as u8);
}

/// Bytes that [`put_binary`] writes.
pub(super) fn binary_len(data: &[u8]) -> usize {
    2 + cut_binary(data).len()
}

/// Writes Binary Data; what is over 65,535 bytes has no place on the wire and is cut off.
pub(super) fn put_binary(data: &[u8], out: &mut impl BufMut) {
    let data = cut_binary(data);
    out.put_u16(data.len() as u16);
    out.put_slice(data);
}

/// Bytes that [`put_string`] writes.
pub(super) fn string_len(text: &str) -> usize {
    2 + cut_string(text).len()
}

/// Writes a UTF-8 Encoded String; whole characters over 65,535 bytes are cut off.
pub(super) fn put_string(text: &str, out: &mut impl BufMut) {
    put_binary(cut_string(text).as_bytes(), out);
}

fn cut_binary(data: &[u8]) -> &[u8] {
    data.get(..usize::from(u16::MAX)).unwrap_or(data)
}

fn cut_string(text: &str) -> &str {
    // The index is at most the length, so `get` cannot miss.
    text.get(..text.floor_char_boundary(usize::from(u16::MAX))).unwrap_or(text)
}

//! The first packet of a connection. Floor 5, called by `net::listener`.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::codec::{DecodeError, Packet, Properties, decode, frame_len, header_len};
use crate::ids::ProtocolVersion;
use crate::session::Refusal;

/// What a connection starts with: a whole CONNECT and perhaps more.
pub(super) struct Hello {
    /// Everything that was read.
    pub(super) bytes: Vec<u8>,
    /// Length of the CONNECT at its start.
    pub(super) connect_len: usize,
}

/// Why a connection does not get to be a session.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The peer closed the connection, or the network failed.
    #[error("connection lost before CONNECT: {0}")]
    Lost(#[from] io::Error),
    /// Nothing, or half a packet, for as long as a handshake may take.
    #[error("no CONNECT in time")]
    TooSlow,
    /// Bytes that are not MQTT, from a client that says it speaks `version`.
    #[error("malformed CONNECT: {error}")]
    Malformed {
        /// What is wrong with them.
        error: DecodeError,
        /// As far as it can be read.
        version: ProtocolVersion,
        /// Largest packet that the client takes, as far as it can be read.
        packet_bytes_max: Option<u32>,
    },
    /// Another packet came first [MQTT-3.1.0-1].
    #[error("first packet is not CONNECT")]
    NotConnect,
    /// A good CONNECT that is not accepted.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
}

impl HandshakeError {
    /// The CONNACK that the client gets, if any [MQTT-3.1.4-1].
    pub(super) fn answer(&self) -> Option<Refusal> {
        let (error, version, packet_bytes_max) = match self {
            Self::Refused(refusal) => return Some(refusal.clone()),
            Self::Malformed { error, version, packet_bytes_max } => {
                (error, *version, *packet_bytes_max)
            }
            Self::Lost(_) | Self::TooSlow | Self::NotConnect => return None,
        };
        let is_other_version = matches!(error, DecodeError::UnsupportedProtocolVersion { .. });
        (version == ProtocolVersion::V5 || is_other_version).then(|| Refusal {
            version,
            reason: error.reason_code(),
            explanation: error.to_string().into(),
            packet_bytes_max,
        })
    }

    /// Whether the client broke the rules.
    pub(super) fn is_protocol_error(&self) -> bool {
        matches!(self, Self::Malformed { .. } | Self::NotConnect)
    }
}

/// Reads until the first packet is complete. `bytes_max` bounds the packet, not what follows it.
pub(super) async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes_max: u32,
) -> Result<Hello, HandshakeError> {
    let mut bytes: Vec<u8> = Vec::with_capacity(512);
    loop {
        if bytes.first().is_some_and(|byte: &u8| byte >> 4 != 1) {
            return Err(HandshakeError::NotConnect);
        }
        match frame_len(&bytes, bytes_max).map_err(|error| malformed(error, &bytes))? {
            Some(connect_len) if connect_len <= bytes.len() => {
                return Ok(Hello { bytes, connect_len });
            }
            _ => (),
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

impl Hello {
    /// The CONNECT.
    pub(super) fn connect(&self) -> Result<crate::codec::Connect<'_>, HandshakeError> {
        let frame = self.bytes.get(..self.connect_len).unwrap_or_default();
        match decode(frame, ProtocolVersion::V5).map_err(|error| malformed(error, frame))? {
            Packet::Connect(connect) => Ok(connect),
            _ => Err(HandshakeError::NotConnect),
        }
    }

    /// What the client sent behind its CONNECT without waiting for the answer.
    pub(super) fn into_rest(mut self) -> Vec<u8> {
        self.bytes.split_off(self.connect_len)
    }
}

/// Looks for the terms of a CONNECT that is not whole or not right.
fn malformed(error: DecodeError, bytes: &[u8]) -> HandshakeError {
    let header = header_len(bytes).and_then(|len| bytes.get(len..)).unwrap_or_default();
    let is_v5 = header.starts_with(b"\x00\x04MQTT\x05");
    let version = if is_v5 { ProtocolVersion::V5 } else { ProtocolVersion::V311 };
    let packet_bytes_max = if is_v5 { packet_bytes_max(header) } else { None };
    HandshakeError::Malformed { error, version, packet_bytes_max }
}

/// The Maximum Packet Size of a v5 CONNECT, whose `body` may be cut or wrong anywhere behind it.
fn packet_bytes_max(body: &[u8]) -> Option<u32> {
    // Length and properties have the form of a packet without its first byte, for which the last byte
    // of the keep alive stands here.
    let list = body.get(9..)?;
    let end = frame_len(list, u32::MAX).ok()??;
    let properties = list.get(header_len(list)?..end)?;
    Properties::from_validated(properties).maximum_packet_size()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packet_size_is_found_in_a_connect_that_is_wrong_behind_it() {
        let found = |rest: &[u8]| packet_bytes_max(&[b"\0\x04MQTT\x05\0\0\x3C", rest].concat());
        assert_eq!(found(b"\x05\x27\0\0\0\x07"), Some(7));
        assert_eq!(found(b"\x08\x21\0\x01\x27\0\0\x01\0\0\x01\0"), Some(256));
        assert_eq!(found(b"\x05\x27\0\0\0"), None);
        assert_eq!(found(b"\x05\x27\0\0\0\0"), None);
        assert_eq!(found(b"\x01\x7F"), None);
        assert_eq!(found(b"\0\0\x01c"), None);
        assert_eq!(found(b""), None);
        assert_eq!(packet_bytes_max(b"\0\x04MQ"), None);
    }
}

//! The first packet of a connection. Floor 5, called by `net::listener`.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::codec::{DecodeError, Packet, ReasonCode, decode, frame_len, header_len};
use crate::ids::ProtocolVersion;

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
    },
    /// Another packet came first [MQTT-3.1.0-1].
    #[error("first packet is not CONNECT")]
    NotConnect,
    /// A good CONNECT that is not accepted.
    #[error("refused: {reason}")]
    Refused {
        /// What the client speaks.
        version: ProtocolVersion,
        /// What it is told.
        reason: ReasonCode,
    },
}

impl HandshakeError {
    /// The CONNACK that the client gets, if any [MQTT-3.1.4-1].
    pub(super) fn answer(&self) -> Option<(ProtocolVersion, ReasonCode)> {
        match self {
            Self::Refused { version, reason } => Some((*version, *reason)),
            Self::Malformed { error: DecodeError::UnsupportedProtocolVersion { .. }, .. } => {
                Some((ProtocolVersion::V311, ReasonCode::UnsupportedProtocolVersion))
            }
            Self::Malformed { error, version: ProtocolVersion::V5 } => {
                Some((ProtocolVersion::V5, error.reason_code()))
            }
            Self::Lost(_) | Self::TooSlow | Self::Malformed { .. } | Self::NotConnect => None,
        }
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

/// Looks for the protocol level of a CONNECT that is not whole or not right.
fn malformed(error: DecodeError, bytes: &[u8]) -> HandshakeError {
    let header = header_len(bytes).and_then(|len| bytes.get(len..)).unwrap_or_default();
    let is_v5 = header.starts_with(b"\x00\x04MQTT\x05");
    let version = if is_v5 { ProtocolVersion::V5 } else { ProtocolVersion::V311 };
    HandshakeError::Malformed { error, version }
}

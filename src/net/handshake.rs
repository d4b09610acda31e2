//! The packets of a connection before its CONNACK: CONNECT, and AUTH both ways where the client asks for
//! it. Floor 5, called by `net::listener`.
//!
//! The listener sets the time limit over all of it, and each packet has the byte limit of a CONNECT.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::codec::{DecodeError, Packet, PacketType, ReasonCode, decode, frame_len, header_len};
use crate::ids::ProtocolVersion;
use crate::metrics::Metrics;
use crate::session::authentication::{Admission, Authenticated, AuthenticationError};

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
    #[error("connection lost before CONNACK: {0}")]
    Lost(#[from] io::Error),
    /// DISCONNECT in the middle of the authentication.
    #[error("client gave its authentication up")]
    GivenUp,
    /// Nothing, half a packet, or half an authentication, for as long as a handshake may take.
    #[error("no CONNECT, or no end of the authentication, in time")]
    TooSlow,
    /// Bytes that are not MQTT, from a client that says it speaks `version`.
    #[error("malformed packet before CONNACK: {error}")]
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
    /// The client has not proved who it is.
    #[error("{error}")]
    Authentication {
        /// What the client speaks.
        version: ProtocolVersion,
        /// Why not.
        error: AuthenticationError,
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
            Self::Authentication { version, error } => Some((*version, error.reason_code())),
            Self::Lost(_)
            | Self::GivenUp
            | Self::TooSlow
            | Self::Malformed { .. }
            | Self::NotConnect => None,
        }
    }

    /// Whether the client broke the rules.
    pub(super) fn is_protocol_error(&self) -> bool {
        match self {
            Self::Malformed { .. } | Self::NotConnect => true,
            Self::Authentication { error, .. } => error.is_protocol_error(),
            Self::Lost(_) | Self::GivenUp | Self::TooSlow | Self::Refused { .. } => false,
        }
    }

    /// Whether the client kept the rules, and could not or may not say who it is.
    pub(super) fn is_failed_authentication(&self) -> bool {
        matches!(self, Self::Authentication { error, .. } if !error.is_protocol_error())
    }
}

/// Reads until the first packet is complete. `bytes_max` bounds the packet, not what follows it.
pub(super) async fn read_hello<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes_max: u32,
) -> Result<Hello, HandshakeError> {
    let mut bytes = Vec::with_capacity(512);
    let connect_len = read_packet(stream, Awaited::Connect, &mut bytes, bytes_max).await?;
    Ok(Hello { bytes, connect_len })
}

/// Sends AUTH and reads AUTH until the client has proved who it is. `received` holds what came behind the
/// CONNECT, and then what came behind the last AUTH. `None` for a client that need not say who it is.
pub(super) async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut admission: Admission,
    received: &mut Vec<u8>,
    bytes_max: u32,
    metrics: &Metrics,
) -> Result<Option<Authenticated>, HandshakeError> {
    let version = ProtocolVersion::V5;
    let failed = |error| HandshakeError::Authentication { version, error };
    loop {
        let (authenticating, auth) = match admission {
            Admission::Anonymous => return Ok(None),
            Admission::Authenticated(authenticated) => return Ok(Some(authenticated)),
            Admission::Continue { authenticating, auth } => (authenticating, auth),
        };
        stream.write_all(&auth).await?;
        metrics.bytes_sent.add(auth.len() as u64);
        metrics.packets_sent.add(1);
        let received_before = received.len();
        let len = read_packet(stream, Awaited::Auth, received, bytes_max).await?;
        metrics.bytes_received.add((received.len() - received_before) as u64);
        metrics.packets_received.add(1);
        let frame: Vec<u8> = received.drain(..len).collect();
        admission = match decode(&frame, version) {
            Ok(Packet::Auth(auth)) => authenticating.handle_auth(&auth).map_err(failed)?,
            Ok(Packet::Disconnect(_)) => return Err(HandshakeError::GivenUp),
            Ok(_) => return Err(failed(AuthenticationError::NotAuth)),
            Err(error) => return Err(HandshakeError::Malformed { error, version }),
        };
    }
}

/// What may come next.
#[derive(Clone, Copy)]
enum Awaited {
    /// CONNECT and nothing else [MQTT-3.1.0-1].
    Connect,
    /// AUTH or DISCONNECT [MQTT-3.1.2-30].
    Auth,
}

impl Awaited {
    /// Refuses another packet at its first byte, before it is read.
    fn check(self, first_byte: u8) -> Result<(), HandshakeError> {
        match (self, PacketType::new(first_byte >> 4)) {
            (Self::Connect, Some(PacketType::Connect)) => Ok(()),
            (Self::Connect, _) => Err(HandshakeError::NotConnect),
            // What is no packet at all is found malformed later.
            (Self::Auth, Some(PacketType::Auth | PacketType::Disconnect) | None) => Ok(()),
            (Self::Auth, Some(_)) => Err(HandshakeError::Authentication {
                version: ProtocolVersion::V5,
                error: AuthenticationError::NotAuth,
            }),
        }
    }

    fn malformed(self, error: DecodeError, bytes: &[u8]) -> HandshakeError {
        match self {
            Self::Connect => malformed(error, bytes),
            Self::Auth => HandshakeError::Malformed { error, version: ProtocolVersion::V5 },
        }
    }
}

/// Reads until `bytes` starts with a whole packet; returns its length.
async fn read_packet<S: AsyncRead + Unpin>(
    stream: &mut S,
    awaited: Awaited,
    bytes: &mut Vec<u8>,
    bytes_max: u32,
) -> Result<usize, HandshakeError> {
    loop {
        if let Some(first_byte) = bytes.first() {
            awaited.check(*first_byte)?;
        }
        match frame_len(bytes, bytes_max).map_err(|error| awaited.malformed(error, bytes))? {
            Some(len) if len <= bytes.len() => return Ok(len),
            _ => (),
        }
        if stream.read_buf(bytes).await? == 0 {
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

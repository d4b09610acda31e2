//! The packets of a connection before its CONNACK: CONNECT, and AUTH both ways where the client asks for
//! it. Floor 5, called by `net::listener`.
//!
//! The listener sets the time limit over all of it, and each packet has the byte limit of a CONNECT.

use std::io;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::auth::Verifier;
use crate::codec::{DecodeError, Packet, PacketType, Properties, decode, frame_len, header_len};
use crate::ids::ProtocolVersion;
use crate::metrics::Metrics;
use crate::net::health;
use crate::net::peer::Peer;
use crate::session::authentication::{Admission, Authenticated, AuthenticationError};
use crate::session::{Link, Opening, Refusal};

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
        /// Largest packet that the client takes, as far as it can be read.
        packet_bytes_max: Option<u32>,
    },
    /// Another packet came first [MQTT-3.1.0-1].
    #[error("first packet is not CONNECT")]
    NotConnect,
    /// A good CONNECT that is not accepted.
    #[error("refused: {0}")]
    Refused(#[from] Refusal),
    /// The client has not proved who it is.
    #[error("{error}")]
    Authentication {
        /// What the client speaks.
        version: ProtocolVersion,
        /// Largest packet that the client takes.
        packet_bytes_max: Option<u32>,
        /// Why not.
        error: AuthenticationError,
    },
}

impl HandshakeError {
    /// The CONNACK that the client gets, if any [MQTT-3.1.4-1].
    pub(super) fn answer(&self) -> Option<Refusal> {
        let (error, version, packet_bytes_max) = match self {
            Self::Refused(refusal) => return Some(refusal.clone()),
            Self::Malformed { error, version, packet_bytes_max } => {
                (error, *version, *packet_bytes_max)
            }
            Self::Authentication { version, packet_bytes_max, error } => {
                return Some(Refusal {
                    version: *version,
                    reason: error.reason_code(),
                    explanation: error.explanation().into(),
                    packet_bytes_max: *packet_bytes_max,
                });
            }
            Self::Lost(_) | Self::GivenUp | Self::TooSlow | Self::NotConnect => return None,
        };
        let is_other_version = matches!(error, DecodeError::UnsupportedProtocolVersion { .. });
        (version == ProtocolVersion::V5 || is_other_version).then(|| Refusal {
            version,
            reason: error.reason_code(),
            explanation: error.to_string().into(),
            packet_bytes_max,
        })
    }

    /// A client with these terms has not proved who it is.
    pub(super) fn authentication(link: &Link, error: AuthenticationError) -> Self {
        let Link { version, packet_bytes_max, .. } = *link;
        Self::Authentication { version, packet_bytes_max, error }
    }

    /// Whether it was no client, see [`health`].
    pub(super) fn is_health_question(&self) -> bool {
        let question = DecodeError::UnsupportedProtocolVersion { level: health::LEVEL };
        matches!(self, Self::Malformed { error, .. } if *error == question)
    }

    /// Whether the client broke the rules.
    pub(super) fn is_protocol_error(&self) -> bool {
        match self {
            Self::Malformed { .. } | Self::NotConnect => !self.is_health_question(),
            Self::Authentication { error, .. } => error.is_protocol_error(),
            Self::Lost(_) | Self::GivenUp | Self::TooSlow | Self::Refused { .. } => false,
        }
    }

    /// Whether the client kept the rules, and could not or may not say who it is.
    pub(super) fn is_failed_authentication(&self) -> bool {
        matches!(self, Self::Authentication { error, .. } if error.is_failure())
    }

    fn is_wrong_proof(&self) -> bool {
        matches!(self, Self::Authentication { error, .. } if error.is_wrong_proof())
    }

    /// The broker was too busy to check who the client is.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Authentication { error: AuthenticationError::Busy, .. })
    }

    /// Nobody could say who the client is.
    pub(super) fn is_unavailable(&self) -> bool {
        matches!(self, Self::Authentication { error: AuthenticationError::Unavailable(_), .. })
    }
}

/// What an authentication needs from outside.
pub(super) struct Desk<'a> {
    pub(super) verifier: &'a Verifier,
    pub(super) metrics: &'a Metrics,
    /// The client.
    pub(super) peer: &'a Peer,
    /// Largest AUTH that is read.
    pub(super) bytes_max: u32,
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

/// Finds out who the client is that is only claimed in `admission`, by checks elsewhere or by AUTH both ways. From
/// an address with many failures it has to wait for that. `received` holds what came behind the CONNECT, and then
/// what came behind the last AUTH. `None` for a client that need not say who it is.
pub(super) async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    admission: Admission,
    opening: &Opening,
    received: &mut Vec<u8>,
    desk: &Desk<'_>,
) -> Result<Option<Authenticated>, HandshakeError> {
    let failed = |error| HandshakeError::authentication(&opening.link, error);
    let address = desk.peer.address.ip();
    if let (Admission::Login(_) | Admission::Continue { .. }, Some(address)) = (&admission, address)
    {
        let wait = desk.verifier.wait(address, Instant::now()).map_err(failed)?;
        if !wait.is_zero() {
            desk.metrics.authentications_delayed.add(1);
            tokio::time::sleep(wait).await;
        }
    }
    let proved = match admission {
        Admission::Anonymous => Ok(None),
        Admission::Authenticated(authenticated) => Ok(Some(authenticated)),
        Admission::Login(login) => {
            // It may have waited, and others may count by now.
            let methods = desk.peer.methods(desk.verifier);
            let client_id = &opening.client_id;
            let checked = desk.verifier.check(&methods, login, client_id, address).await;
            checked.map(Some).map_err(failed)
        }
        admission @ Admission::Continue { .. } => {
            exchange(stream, admission, &opening.link, received, desk).await.map(Some)
        }
    };
    if let (Err(error), Some(address)) = (&proved, address)
        && error.is_wrong_proof()
    {
        desk.verifier.failed(address, Instant::now());
    }
    proved
}

/// Sends AUTH and reads AUTH until the client has proved who it is.
async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    mut admission: Admission,
    link: &Link,
    received: &mut Vec<u8>,
    desk: &Desk<'_>,
) -> Result<Authenticated, HandshakeError> {
    let Link { version, packet_bytes_max, .. } = *link;
    let failed = |error| HandshakeError::authentication(link, error);
    let metrics = desk.metrics;
    loop {
        let (authenticating, auth) = match admission {
            Admission::Authenticated(authenticated) => return Ok(authenticated),
            Admission::Continue { authenticating, auth } => (authenticating, auth),
            // No method ends like this.
            Admission::Anonymous | Admission::Login(_) => {
                return Err(failed(AuthenticationError::Anonymous));
            }
        };
        stream.write_all(&auth).await?;
        metrics.bytes_sent.add(auth.len() as u64);
        metrics.packets_sent.add(1);
        let received_before = received.len();
        let len = read_packet(stream, Awaited::Auth(link), received, desk.bytes_max).await?;
        metrics.bytes_received.add((received.len() - received_before) as u64);
        metrics.packets_received.add(1);
        let frame: Vec<u8> = received.drain(..len).collect();
        admission = match decode(&frame, version) {
            Ok(Packet::Auth(auth)) => authenticating.handle_auth(&auth).map_err(failed)?,
            Ok(Packet::Disconnect(_)) => return Err(HandshakeError::GivenUp),
            Ok(_) => return Err(failed(AuthenticationError::NotAuth)),
            Err(error) => {
                return Err(HandshakeError::Malformed { error, version, packet_bytes_max });
            }
        };
    }
}

/// What may come next.
#[derive(Clone, Copy)]
enum Awaited<'a> {
    /// CONNECT and nothing else [MQTT-3.1.0-1].
    Connect,
    /// AUTH or DISCONNECT [MQTT-3.1.2-30], from a client with these terms.
    Auth(&'a Link),
}

impl Awaited<'_> {
    /// Refuses another packet at its first byte, before it is read.
    fn check(self, first_byte: u8) -> Result<(), HandshakeError> {
        match (self, PacketType::new(first_byte >> 4)) {
            (Self::Connect, Some(PacketType::Connect)) => Ok(()),
            (Self::Connect, _) => Err(HandshakeError::NotConnect),
            // What is no packet at all is found malformed later.
            (Self::Auth(_), Some(PacketType::Auth | PacketType::Disconnect) | None) => Ok(()),
            (Self::Auth(link), Some(_)) => {
                Err(HandshakeError::authentication(link, AuthenticationError::NotAuth))
            }
        }
    }

    fn malformed(self, error: DecodeError, bytes: &[u8]) -> HandshakeError {
        match self {
            Self::Connect => malformed(error, bytes),
            Self::Auth(Link { version, packet_bytes_max, .. }) => HandshakeError::Malformed {
                error,
                version: *version,
                packet_bytes_max: *packet_bytes_max,
            },
        }
    }
}

/// Reads until `bytes` starts with a whole packet; returns its length.
async fn read_packet<S: AsyncRead + Unpin>(
    stream: &mut S,
    awaited: Awaited<'_>,
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

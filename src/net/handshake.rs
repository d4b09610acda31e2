//! The first packet of a connection. Floor 5, called by `net::listener`.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

use crate::codec::{DecodeError, Packet, decode, frame_len};
use crate::ids::ProtocolVersion;

/// What a connection starts with: a whole CONNECT and perhaps more.
pub(super) struct Hello {
    /// Everything that was read.
    pub(super) bytes: Vec<u8>,
    /// Length of the CONNECT at its start.
    pub(super) connect_len: usize,
}

/// Why there is no CONNECT.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    /// The peer closed the connection, or the network failed.
    #[error("connection lost before CONNECT: {0}")]
    Lost(#[from] io::Error),
    /// Bytes that are not MQTT.
    #[error("malformed CONNECT: {0}")]
    Malformed(#[from] DecodeError),
    /// Another packet came first [MQTT-3.1.0-1].
    #[error("first packet is not CONNECT")]
    NotConnect,
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
        match frame_len(&bytes, bytes_max)? {
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
        match decode(frame, ProtocolVersion::V5)? {
            Packet::Connect(connect) => Ok(connect),
            _ => Err(HandshakeError::NotConnect),
        }
    }

    /// What the client sent behind its CONNECT without waiting for the answer.
    pub(super) fn into_rest(mut self) -> Vec<u8> {
        self.bytes.split_off(self.connect_len)
    }
}

//! MQTT on the wire: bytes to packets and back, for MQTT 3.1, 3.1.1 and 5.0.
//!
//! # Who calls it
//!
//! `net::connection` cuts frames out of its read buffer with [`frame_len`] and decodes them;
//! `session` and `router` encode what goes out. The load generator uses both directions.
//!
//! # What may be touched here
//!
//! Floor 0 and bytes. No socket, no clock, no state: [`decode`] is a function of its arguments.
//!
//! # Invariants
//!
//! - No input makes anything here panic; no decoding allocates, packets borrow from the frame.
//! - What decodes is well-formed: ranges, reserved bits, text and property tables were checked.
//! - Only this module and the reason codes know how versions differ.
//! - Whether a packet may come now, or from this side, is not decided here.

#![deny(clippy::indexing_slicing)]

pub mod error;
pub mod property;
pub mod publish;
pub mod reason;

mod ack;
mod auth;
mod connack;
mod connect;
mod disconnect;
mod frame;
mod properties;
mod suback;
mod subscribe;
mod unsuback;
mod unsubscribe;
mod wire;

pub use self::ack::Ack;
pub use self::auth::Auth;
pub use self::connack::ConnAck;
pub use self::connect::{Connect, Will};
pub use self::disconnect::Disconnect;
pub use self::error::DecodeError;
pub use self::frame::{PACKET_BYTES_MAX, PacketType, frame_len, header_len};
pub use self::properties::{Properties, PropertiesBuf};
pub use self::property::Property;
pub use self::publish::{
    Delivery, Forward, Publish, PublishView, TopicAlias, next_frame, packet_id_offset,
};
pub use self::reason::ReasonCode;
pub use self::suback::SubAck;
pub use self::subscribe::{
    RetainHandling, Subscribe, SubscribeFilters, SubscribeFiltersBuf, SubscribeOptions,
};
pub use self::unsuback::UnsubAck;
pub use self::unsubscribe::{Unsubscribe, UnsubscribeFilters, UnsubscribeFiltersBuf};

use bytes::BufMut;

use crate::codec::frame::{Frame, len_with_header, put_header};
use crate::ids::{PacketId, ProtocolVersion};

/// Any control packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Packet<'a> {
    /// Client to server, first of a connection [MQTT-3.1.0-1].
    Connect(Connect<'a>),
    /// Server to client.
    ConnAck(ConnAck<'a>),
    /// Both ways.
    Publish(Publish<'a>),
    /// Answers PUBLISH of QoS 1.
    PubAck(Ack<'a>),
    /// Answers PUBLISH of QoS 2.
    PubRec(Ack<'a>),
    /// Answers PUBREC.
    PubRel(Ack<'a>),
    /// Answers PUBREL.
    PubComp(Ack<'a>),
    /// Client to server.
    Subscribe(Subscribe<'a>),
    /// Server to client.
    SubAck(SubAck<'a>),
    /// Client to server.
    Unsubscribe(Unsubscribe<'a>),
    /// Server to client.
    UnsubAck(UnsubAck<'a>),
    /// Client to server.
    PingReq,
    /// Server to client.
    PingResp,
    /// Client to server; both ways in MQTT 5.
    Disconnect(Disconnect<'a>),
    /// Both ways, MQTT 5 only.
    Auth(Auth<'a>),
}

/// Decodes exactly one whole frame. CONNECT says itself which version it has; `version` is ignored
/// for it.
pub fn decode(frame: &[u8], version: ProtocolVersion) -> Result<Packet<'_>, DecodeError> {
    if let Some(ack) = decode_short_ack(frame) {
        return Ok(ack);
    }
    let frame = Frame::parse(frame)?;
    let raw_type = frame.first_byte >> 4;
    let packet_type = PacketType::new(raw_type)
        .filter(|&kind| kind != PacketType::Auth || version == ProtocolVersion::V5)
        .ok_or(DecodeError::UnknownPacketType { packet_type: raw_type })?;
    if let Some(expected) = packet_type.reserved_flags() {
        let flags = frame.first_byte & 0x0F;
        if flags != expected {
            return Err(DecodeError::ReservedFlags { packet_type, flags, expected });
        }
    }
    if packet_type != PacketType::Connect {
        frame.check_length_form(version)?;
    }
    match packet_type {
        PacketType::Connect => Connect::decode(frame).map(Packet::Connect),
        PacketType::ConnAck => ConnAck::decode(frame, version).map(Packet::ConnAck),
        PacketType::Publish => Publish::decode(frame, version, None).map(Packet::Publish),
        PacketType::PubAck => Ack::decode(frame, version, packet_type).map(Packet::PubAck),
        PacketType::PubRec => Ack::decode(frame, version, packet_type).map(Packet::PubRec),
        PacketType::PubRel => Ack::decode(frame, version, packet_type).map(Packet::PubRel),
        PacketType::PubComp => Ack::decode(frame, version, packet_type).map(Packet::PubComp),
        PacketType::Subscribe => Subscribe::decode(frame, version).map(Packet::Subscribe),
        PacketType::SubAck => SubAck::decode(frame, version).map(Packet::SubAck),
        PacketType::Unsubscribe => Unsubscribe::decode(frame, version).map(Packet::Unsubscribe),
        PacketType::UnsubAck => UnsubAck::decode(frame, version).map(Packet::UnsubAck),
        PacketType::PingReq => decode_empty(frame, Packet::PingReq),
        PacketType::PingResp => decode_empty(frame, Packet::PingResp),
        PacketType::Disconnect => Disconnect::decode(frame, version).map(Packet::Disconnect),
        PacketType::Auth => Auth::decode(frame).map(Packet::Auth),
    }
}

impl Packet<'_> {
    /// Writes the whole packet. `version` is ignored for CONNECT, which carries its own, and
    /// for AUTH, which MQTT 5 alone has.
    ///
    /// # Panics
    ///
    /// If `out` cannot grow and has less room than [`Packet::encoded_len`].
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        match self {
            Self::Connect(connect) => connect.encode(out),
            Self::ConnAck(connack) => connack.encode(version, out),
            Self::Publish(publish) => publish.encode(version, out),
            Self::PubAck(ack) => ack.encode(version, PacketType::PubAck, out),
            Self::PubRec(ack) => ack.encode(version, PacketType::PubRec, out),
            Self::PubRel(ack) => ack.encode(version, PacketType::PubRel, out),
            Self::PubComp(ack) => ack.encode(version, PacketType::PubComp, out),
            Self::Subscribe(subscribe) => subscribe.encode(version, out),
            Self::SubAck(suback) => suback.encode(version, out),
            Self::Unsubscribe(unsubscribe) => unsubscribe.encode(version, out),
            Self::UnsubAck(unsuback) => unsuback.encode(version, out),
            Self::PingReq => put_header(PacketType::PingReq, 0, out),
            Self::PingResp => put_header(PacketType::PingResp, 0, out),
            Self::Disconnect(disconnect) => disconnect.encode(version, out),
            Self::Auth(auth) => auth.encode(out),
        }
    }

    /// Bytes that [`Packet::encode`] writes; what a peer's Maximum Packet Size is compared with
    /// [MQTT-3.1.2-24].
    pub fn encoded_len(&self, version: ProtocolVersion) -> usize {
        len_with_header(match self {
            Self::Connect(connect) => connect.body_len(),
            Self::ConnAck(connack) => connack.body_len(version),
            Self::Publish(publish) => publish.body_len(version),
            Self::PubAck(ack) | Self::PubRec(ack) | Self::PubRel(ack) | Self::PubComp(ack) => {
                ack.body_len(version)
            }
            Self::Subscribe(subscribe) => subscribe.body_len(version),
            Self::SubAck(suback) => suback.body_len(version),
            Self::Unsubscribe(unsubscribe) => unsubscribe.body_len(version),
            Self::UnsubAck(unsuback) => unsuback.body_len(version),
            Self::PingReq | Self::PingResp => 0,
            Self::Disconnect(disconnect) => disconnect.body_len(version),
            Self::Auth(auth) => auth.body_len(),
        })
    }
}

/// An acknowledgement that has an identifier and nothing else, in any version: half of all packets at QoS 1, and
/// most at QoS 2.
#[inline]
fn decode_short_ack(frame: &[u8]) -> Option<Packet<'_>> {
    let &[first_byte, 2, high, low] = frame else { return None };
    let ack = Ack::success(PacketId::new(u16::from_be_bytes([high, low]))?);
    match first_byte {
        0x40 => Some(Packet::PubAck(ack)),
        0x50 => Some(Packet::PubRec(ack)),
        0x62 => Some(Packet::PubRel(ack)),
        0x70 => Some(Packet::PubComp(ack)),
        _ => None,
    }
}

fn decode_empty<'a>(frame: Frame<'_>, packet: Packet<'a>) -> Result<Packet<'a>, DecodeError> {
    match frame.body.len() {
        0 => Ok(packet),
        count => Err(DecodeError::TrailingBytes { count }),
    }
}

/// What the tests of the packet files share.
#[cfg(test)]
pub(crate) mod golden {
    use super::*;

    /// `frame` decodes to `packet`, `packet` encodes to `frame`, and its length is known before.
    #[track_caller]
    pub(crate) fn assert_golden(frame: &[u8], version: ProtocolVersion, packet: Packet<'_>) {
        assert_eq!(decode(frame, version), Ok(packet));
        let mut encoded = Vec::new();
        packet.encode(version, &mut encoded);
        assert_eq!(encoded, frame);
        assert_eq!(packet.encoded_len(version), frame.len());
    }
}

#[cfg(test)]
mod tests {
    use super::golden::assert_golden;
    use super::*;
    use crate::ids::ProtocolVersion::{V5, V311};

    #[test]
    fn pings_are_two_bytes_in_every_version() {
        for version in [V311, V5] {
            assert_golden(&[0xC0, 0], version, Packet::PingReq);
            assert_golden(&[0xD0, 0], version, Packet::PingResp);
        }
    }

    #[test]
    fn a_padded_remaining_length_is_read_before_mqtt_5_only() {
        assert_eq!(decode(&[0xC0, 0x80, 0x00], V311), Ok(Packet::PingReq));
        assert_eq!(decode(&[0xC0, 0x80, 0x00], V5), Err(DecodeError::VariableByteInteger));
        assert!(matches!(decode(&[0x30, 0x83, 0x00, 0, 1, b'a'], V311), Ok(Packet::Publish(_))));
        assert_eq!(
            Publish::decode_after(&[0x30, 0x84, 0x00, 0, 1, b'a', 0], V5, None),
            Err(DecodeError::VariableByteInteger)
        );
    }
}

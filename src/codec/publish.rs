//! PUBLISH: an application message (section 3.3 of both standards). The hot path.
//!
//! `net::connection` decodes each incoming message with [`Publish::decode_after`], which does not
//! look at a topic twice; `session` and `router` walk over frames in our own buffers with
//! [`PublishView`], [`next_frame`] and [`packet_id_offset`].
//!
//! # Invariants
//!
//! - QoS 0 with a packet identifier or DUP cannot be built: see [`Delivery`].
//! - The functions for our own buffers validate nothing, and answer `None` to garbage.

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, RemainingLength, put_first_byte, remaining_length};
use crate::codec::properties::Properties;
use crate::codec::property::Owner;
use crate::codec::wire::{Reader, check_string, put_string, string_len};
use crate::ids::{PacketId, ProtocolVersion, Qos};
use crate::topic::check_topic_name;

const OWNER: Owner = Owner::packet(PacketType::Publish);

const RETAIN: u8 = 0b0001;
const QOS_SHIFT: u8 = 1;
const DUP: u8 = 0b1000;

/// PUBLISH.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Publish<'a> {
    /// A valid topic name; empty only in MQTT 5 together with a topic alias.
    pub topic: &'a str,
    /// Opaque.
    pub payload: &'a [u8],
    /// Empty before MQTT 5.
    pub properties: Properties<'a>,
    /// QoS, packet identifier and DUP.
    pub delivery: Delivery,
    /// RETAIN flag.
    pub retain: bool,
}

/// QoS together with what that QoS needs. QoS 0 with a packet id [MQTT-2.2.1-2], or DUP at
/// QoS 0 [MQTT-3.3.1-2], cannot be built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Delivery {
    /// QoS 0.
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce {
        /// Echoed by PUBACK.
        id: PacketId,
        /// True on re-delivery.
        dup: bool,
    },
    /// QoS 2.
    ExactlyOnce {
        /// Echoed by PUBREC, PUBREL, PUBCOMP.
        id: PacketId,
        /// True on re-delivery.
        dup: bool,
    },
}

impl Delivery {
    /// The QoS alone.
    pub fn qos(self) -> Qos {
        match self {
            Self::AtMostOnce => Qos::AtMostOnce,
            Self::AtLeastOnce { .. } => Qos::AtLeastOnce,
            Self::ExactlyOnce { .. } => Qos::ExactlyOnce,
        }
    }

    /// The packet identifier; `None` at QoS 0.
    pub fn id(self) -> Option<PacketId> {
        match self {
            Self::AtMostOnce => None,
            Self::AtLeastOnce { id, .. } | Self::ExactlyOnce { id, .. } => Some(id),
        }
    }

    /// Whether the message may have been sent before.
    pub fn dup(self) -> bool {
        match self {
            Self::AtMostOnce => false,
            Self::AtLeastOnce { dup, .. } | Self::ExactlyOnce { dup, .. } => dup,
        }
    }
}

impl<'a> Publish<'a> {
    /// Decodes one whole PUBLISH frame. When its topic bytes equal those of `previous` (the
    /// message decoded just before, from the same buffer or not), the topic is not validated
    /// again and `previous` itself is returned, so that callers can compare by pointer.
    #[inline]
    pub fn decode_after(
        frame: &'a [u8],
        version: ProtocolVersion,
        previous: Option<&'a str>,
    ) -> Result<Self, DecodeError> {
        let frame = Frame::parse(frame)?;
        let packet_type = frame.first_byte >> 4;
        if packet_type != PacketType::Publish as u8 {
            return Err(DecodeError::NotPublish { packet_type });
        }
        Self::decode(frame, version, previous)
    }

    #[inline]
    pub(super) fn decode(
        frame: Frame<'a>,
        version: ProtocolVersion,
        previous: Option<&'a str>,
    ) -> Result<Self, DecodeError> {
        frame.check_length_form(version)?;
        let mut reader = Reader::new(frame.body);
        let topic = reader.binary()?;
        let delivery = decode_delivery(frame.first_byte, &mut reader)?;
        let properties = Properties::decode(&mut reader, version, OWNER)?;
        let topic = match previous {
            Some(previous) if previous.as_bytes() == topic && !topic.is_empty() => previous,
            _ => decode_topic(topic, properties)?,
        };
        let retain = frame.first_byte & RETAIN != 0;
        Ok(Self { topic, payload: reader.rest(), properties, delivery, retain })
    }

    pub(super) fn body_len(&self, version: ProtocolVersion) -> usize {
        string_len(self.topic)
            + if self.delivery == Delivery::AtMostOnce { 0 } else { 2 }
            + self.properties.encoded_len(version)
            + self.payload.len()
    }

    /// Writes the whole packet.
    pub fn encode(&self, version: ProtocolVersion, out: &mut impl BufMut) {
        let mut first_byte =
            (PacketType::Publish as u8) << 4 | (self.delivery.qos() as u8) << QOS_SHIFT;
        if self.delivery.dup() {
            first_byte |= DUP;
        }
        if self.retain {
            first_byte |= RETAIN;
        }
        put_first_byte(first_byte, self.body_len(version), out);
        put_string(self.topic, out);
        if let Some(id) = self.delivery.id() {
            out.put_u16(id.get());
        }
        self.properties.encode(version, out);
        out.put_slice(self.payload);
    }
}

/// A PUBLISH frame that was validated before, because it lies in one of our own buffers: the
/// positions of its fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PublishView<'a> {
    /// Packet type and flags.
    pub first_byte: u8,
    /// First byte and remaining length.
    pub header_len: usize,
    /// Not validated again, hence bytes.
    pub topic: &'a [u8],
    /// `None` at QoS 0.
    pub packet_id: Option<u16>,
    /// Offset of the packet identifier in the frame; 0 when there is none.
    pub packet_id_at: usize,
    /// Without the length in front; empty before MQTT 5.
    pub properties: &'a [u8],
    /// Opaque.
    pub payload: &'a [u8],
    /// Length of the whole frame.
    pub frame_len: usize,
}

impl<'a> PublishView<'a> {
    /// Finds the fields of the frame at the start of `bytes`, which may be longer than the
    /// frame; `None` when it is not a whole PUBLISH.
    #[inline]
    pub fn parse(bytes: &'a [u8], version: ProtocolVersion) -> Option<Self> {
        let RemainingLength { header_len, value } = remaining_length(bytes).ok()??;
        let frame_len = header_len + value as usize;
        let first_byte = *bytes.first()?;
        if first_byte >> 4 != PacketType::Publish as u8 {
            return None;
        }
        let mut reader = Reader::new(bytes.get(header_len..frame_len)?);
        let topic = reader.binary().ok()?;
        let (packet_id, packet_id_at) = match first_byte >> QOS_SHIFT & 0b11 {
            0 => (None, 0),
            _ => (Some(reader.u16().ok()?), header_len + 2 + topic.len()),
        };
        let properties = if version == ProtocolVersion::V5 {
            let len = reader.variable_byte_integer().ok()?;
            reader.take(len as usize).ok()?
        } else {
            &[]
        };
        Some(Self {
            first_byte,
            header_len,
            topic,
            packet_id,
            packet_id_at,
            properties,
            payload: reader.rest(),
            frame_len,
        })
    }
}

/// Length of the PUBLISH frame at the start of `bytes`, one of our own buffers; `None` when there
/// is no whole frame.
#[inline]
pub fn next_frame(bytes: &[u8]) -> Option<usize> {
    let RemainingLength { header_len, value } = remaining_length(bytes).ok()??;
    let len = header_len + value as usize;
    (len <= bytes.len()).then_some(len)
}

/// Offset of the packet identifier in the PUBLISH frame at the start of `frame`: behind the
/// topic, in both versions. The QoS bits are not looked at; at QoS 0 something else is there.
#[inline]
pub fn packet_id_offset(frame: &[u8]) -> Option<usize> {
    let RemainingLength { header_len, .. } = remaining_length(frame).ok()??;
    let topic_len = u16::from_be_bytes(*frame.get(header_len..)?.first_chunk()?);
    let offset = header_len + 2 + usize::from(topic_len);
    (offset <= frame.len()).then_some(offset)
}

#[inline]
fn decode_delivery(first_byte: u8, reader: &mut Reader<'_>) -> Result<Delivery, DecodeError> {
    let dup = first_byte & DUP != 0;
    match first_byte >> QOS_SHIFT & 0b11 {
        0 if dup => Err(DecodeError::DupWithQosZero),
        0 => Ok(Delivery::AtMostOnce),
        1 => Ok(Delivery::AtLeastOnce { id: reader.packet_id()?, dup }),
        2 => Ok(Delivery::ExactlyOnce { id: reader.packet_id()?, dup }),
        _ => Err(DecodeError::PublishQos),
    }
}

fn decode_topic<'a>(bytes: &'a [u8], properties: Properties<'a>) -> Result<&'a str, DecodeError> {
    if bytes.is_empty() {
        return match properties.topic_alias() {
            Some(_) => Ok(""),
            None => Err(DecodeError::EmptyTopic),
        };
    }
    let topic = check_string(bytes)?;
    check_topic_name(topic).map_err(DecodeError::TopicName)?;
    Ok(topic)
}

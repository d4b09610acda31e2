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

use std::num::NonZeroU32;

use bytes::BufMut;

use crate::codec::error::DecodeError;
use crate::codec::frame::{Frame, PacketType, RemainingLength, put_first_byte, remaining_length};
use crate::codec::properties::Properties;
use crate::codec::property::{Owner, Property};
use crate::codec::wire::{
    Reader, check_string, put_string, put_variable_byte_integer, string_len,
    variable_byte_integer_len,
};
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
    #[inline(always)]
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
        frame.check_length_form(version)?;
        Self::decode(frame, version, previous)
    }

    // Each kind of stream has a connection of its own, and with several callers the compiler would call it.
    #[inline(always)]
    pub(super) fn decode(
        frame: Frame<'a>,
        version: ProtocolVersion,
        previous: Option<&'a str>,
    ) -> Result<Self, DecodeError> {
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
        let first_byte = first_byte(self.delivery, self.retain);
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

    /// QoS in the first byte.
    pub fn qos(&self) -> Qos {
        Qos::new(self.first_byte >> QOS_SHIFT & 0b11).unwrap_or(Qos::AtMostOnce)
    }

    /// RETAIN flag in the first byte.
    pub fn retain(&self) -> bool {
        self.first_byte & RETAIN != 0
    }

    /// Seconds until the message is of no use, counted from when it was received.
    pub fn message_expiry_interval_s(&self) -> Option<u32> {
        Properties::from_validated(self.properties).message_expiry_interval_s()
    }

    /// Writes the message again, for another version, QoS or RETAIN flag. Properties, those of `forward`
    /// included, are left out before MQTT 5.
    pub fn encode(
        &self,
        version: ProtocolVersion,
        delivery: Delivery,
        retain: bool,
        forward: &Forward<'_>,
        out: &mut impl BufMut,
    ) {
        let is_v5 = version == ProtocolVersion::V5;
        let topic = match forward.alias {
            Some(TopicAlias::Known(_)) if is_v5 => &[],
            _ => self.topic,
        };
        let properties_len = forward.len() + self.properties.len();
        let body_len = 2
            + topic.len()
            + if delivery == Delivery::AtMostOnce { 0 } else { 2 }
            + if is_v5 {
                variable_byte_integer_len(properties_len as u32) + properties_len
            } else {
                0
            }
            + self.payload.len();
        put_first_byte(first_byte(delivery, retain), body_len, out);
        out.put_u16(topic.len() as u16);
        out.put_slice(topic);
        if let Some(id) = delivery.id() {
            out.put_u16(id.get());
        }
        if is_v5 {
            put_variable_byte_integer(properties_len as u32, out);
            self.put_properties(forward, out);
        }
        out.put_slice(self.payload);
    }

    /// The published properties in their order [MQTT-3.3.2-18], behind those of this subscriber.
    fn put_properties(&self, forward: &Forward<'_>, out: &mut impl BufMut) {
        if let Some(TopicAlias::New(alias) | TopicAlias::Known(alias)) = forward.alias {
            Property::TopicAlias(alias).encode(out);
        }
        for identifier in forward.identifiers {
            Property::SubscriptionIdentifier(identifier.get()).encode(out);
        }
        let expiry_at = match forward.waited_s {
            0 => None,
            _ => Properties::from_validated(self.properties).message_expiry_interval_at(),
        };
        match expiry_at.and_then(|at| self.properties.split_at_checked(at)) {
            Some((before, [a, b, c, d, after @ ..])) => {
                let interval_s = u32::from_be_bytes([*a, *b, *c, *d]);
                out.put_slice(before);
                out.put_u32(interval_s.saturating_sub(forward.waited_s));
                out.put_slice(after);
            }
            _ => out.put_slice(self.properties),
        }
    }
}

/// What a subscriber of MQTT 5 gets besides the message as it was published.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forward<'a> {
    /// Seconds that the message has waited: taken off its Message Expiry Interval [MQTT-3.3.2-6].
    pub waited_s: u32,
    /// Of the subscriptions that it matches [MQTT-3.3.4-3].
    pub identifiers: &'a [NonZeroU32],
    /// Stands for the topic on this connection.
    pub alias: Option<TopicAlias>,
}

/// A topic alias towards a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TopicAlias {
    /// Goes with the topic name, and stands for it from then on.
    New(u16),
    /// The topic name is left out.
    Known(u16),
}

impl Forward<'_> {
    fn len(&self) -> usize {
        let identifiers = self.identifiers.iter();
        let lens = identifiers.map(|identifier| 1 + variable_byte_integer_len(identifier.get()));
        lens.sum::<usize>() + if self.alias.is_some() { 3 } else { 0 }
    }
}

/// Packet type, DUP, QoS and RETAIN of a PUBLISH.
fn first_byte(delivery: Delivery, retain: bool) -> u8 {
    (PacketType::Publish as u8) << 4
        | u8::from(delivery.dup()) << 3
        | (delivery.qos() as u8) << QOS_SHIFT
        | u8::from(retain)
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

#[inline(never)]
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden::assert_golden;
    use crate::codec::{Packet, PropertiesBuf, Property, decode};
    use crate::ids::ProtocolVersion::{V5, V311};

    const QOS0: &[u8] = b"\x30\x05\0\x01tpp";
    const QOS2_V5: &[u8] = b"\x3D\x0A\0\x01t\0\x07\x03\x23\0\x02p";

    fn plain() -> Publish<'static> {
        Publish {
            topic: "t",
            payload: b"pp",
            properties: Properties::EMPTY,
            delivery: Delivery::AtMostOnce,
            retain: false,
        }
    }

    fn id(raw: u16) -> PacketId {
        PacketId::new(raw).unwrap()
    }

    #[test]
    fn qos_0_in_both_versions() {
        assert_golden(QOS0, V311, Packet::Publish(plain()));
        assert_golden(b"\x30\x06\0\x01t\0pp", V5, Packet::Publish(plain()));
    }

    #[test]
    fn qos_1_in_both_versions() {
        let delivery = Delivery::AtLeastOnce { id: id(0x0102), dup: false };
        let packet = Packet::Publish(Publish { delivery, ..plain() });
        assert_golden(b"\x32\x07\0\x01t\x01\x02pp", V311, packet);
        assert_golden(b"\x32\x08\0\x01t\x01\x02\0pp", V5, packet);
    }

    #[test]
    fn qos_2_redelivered_retained_with_alias() {
        let mut properties = PropertiesBuf::new();
        properties.push(Property::TopicAlias(2));
        let packet = Publish {
            payload: b"p",
            properties: properties.as_properties(),
            delivery: Delivery::ExactlyOnce { id: id(7), dup: true },
            retain: true,
            ..plain()
        };
        assert_golden(QOS2_V5, V5, Packet::Publish(packet));
    }

    #[test]
    fn an_alias_may_stand_for_the_topic() {
        let frame = b"\x30\x06\0\0\x03\x23\0\x02";
        let Ok(Packet::Publish(publish)) = decode(frame, V5) else { panic!("not a publish") };
        assert_eq!((publish.topic, publish.properties.topic_alias()), ("", Some(2)));
    }

    #[test]
    fn a_repeated_topic_is_returned_by_pointer() {
        let previous = "t";
        let publish = Publish::decode_after(QOS0, V311, Some(previous)).unwrap();
        assert!(std::ptr::eq(publish.topic, previous));
        let other = "u";
        let publish = Publish::decode_after(QOS0, V311, Some(other)).unwrap();
        assert_eq!(publish.topic, "t");
    }

    #[test]
    fn an_empty_previous_topic_does_not_excuse_a_missing_alias() {
        let frame = b"\x30\x03\0\0\0";
        assert_eq!(Publish::decode_after(frame, V5, Some("")), Err(DecodeError::EmptyTopic));
    }

    #[test]
    fn the_view_finds_every_field_and_the_end_of_the_frame() {
        let mut run = QOS2_V5.to_vec();
        run.extend_from_slice(QOS0);
        let view = PublishView::parse(&run, V5).unwrap();
        let expected = PublishView {
            first_byte: 0x3D,
            header_len: 2,
            topic: b"t",
            packet_id: Some(7),
            packet_id_at: 5,
            properties: &[0x23, 0, 2],
            payload: b"p",
            frame_len: 12,
        };
        assert_eq!(view, expected);
        let next = PublishView::parse(&run[12..], V311).unwrap();
        assert_eq!((next.packet_id, next.packet_id_at, next.payload), (None, 0, &b"pp"[..]));
    }

    #[test]
    fn a_run_is_walked_by_length_and_patched_at_the_offset() {
        let mut run = QOS2_V5.repeat(2);
        assert_eq!(next_frame(&run), Some(12));
        let at = packet_id_offset(&run).unwrap();
        run[at..at + 2].copy_from_slice(&9_u16.to_be_bytes());
        assert_eq!(PublishView::parse(&run, V5).unwrap().packet_id, Some(9));
        assert_eq!(PublishView::parse(&run[12..], V5).unwrap().packet_id, Some(7));
    }

    #[test]
    fn unfinished_frames_have_no_view() {
        for end in 0..QOS2_V5.len() {
            assert_eq!(PublishView::parse(&QOS2_V5[..end], V5), None);
            assert_eq!(next_frame(&QOS2_V5[..end]), None);
        }
    }
}

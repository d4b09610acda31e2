//! The message that a client leaves behind. Floor 2, owned by `Session`.

use bytes::Bytes;

use crate::codec;
use crate::codec::Delivery as Flow;
use crate::codec::{Packet, Publish};
use crate::ids::{PacketId, ProtocolVersion, Qos};

/// A will as the PUBLISH frame that it becomes.
#[derive(Clone, Debug)]
pub struct Will {
    /// The whole frame; its packet identifier means nothing.
    pub frame: Bytes,
    /// How it is encoded.
    pub version: ProtocolVersion,
    /// Topic to publish to.
    pub topic: Box<str>,
    /// QoS to publish with.
    pub qos: Qos,
    /// Whether to retain it.
    pub retain: bool,
    /// Whether it has a Message Expiry Interval, which counts from when it is published.
    pub expires: bool,
}

impl Will {
    /// Keeps the will of a CONNECT, whose topic has been checked.
    pub(super) fn new(will: &codec::Will<'_>, version: ProtocolVersion) -> Self {
        let delivery = match will.qos {
            Qos::AtMostOnce => Flow::AtMostOnce,
            Qos::AtLeastOnce => Flow::AtLeastOnce { id: PacketId::FIRST, dup: false },
            Qos::ExactlyOnce => Flow::ExactlyOnce { id: PacketId::FIRST, dup: false },
        };
        let mut properties = codec::PropertiesBuf::new();
        for property in will.properties.iter() {
            if !matches!(property, codec::Property::WillDelayInterval(_)) {
                properties.push(property);
            }
        }
        let publish = Publish {
            topic: will.topic,
            payload: will.payload,
            properties: properties.as_properties(),
            delivery,
            retain: will.retain,
        };
        let mut frame = Vec::new();
        Packet::Publish(publish).encode(version, &mut frame);
        Self {
            frame: frame.into(),
            version,
            topic: will.topic.into(),
            qos: will.qos,
            retain: will.retain,
            expires: will.properties.message_expiry_interval_s().is_some(),
        }
    }
}

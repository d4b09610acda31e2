//! The message that a client leaves behind. Floor 2, owned by `Session` while the client is there.
//!
//! After its connection a will waits for its delay or for the end of its session, whichever comes first;
//! `router::registry` keeps it meanwhile.

use std::time::{Duration, Instant};

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
    /// How long it waits for the client to come back.
    pub delay: Duration,
}

impl Will {
    /// Keeps the will of a CONNECT, whose topic has been checked. Its properties stay in their order
    /// [MQTT-3.1.3-10]; the delay is for the broker alone.
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
            delay: Duration::from_secs(will.properties.will_delay_interval_s().unwrap_or(0).into()),
        }
    }

    /// When it is published, after a connection that ended at `now` and left a session that ends at
    /// `session_ends_at` [MQTT-3.1.2-8]; a session without end is `None`.
    pub fn due_at(&self, now: Instant, session_ends_at: Option<Instant>) -> Instant {
        let delayed = now + self.delay;
        session_ends_at.map_or(delayed, |at| at.min(delayed))
    }
}

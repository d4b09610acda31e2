//! A session as an earlier process has left it. Floor 2, called by `router::recovery`.

use std::time::Instant;

use crate::ids::{PacketId, ProtocolVersion, SessionId};
use crate::message::Delivery;
use crate::session::{Expiry, Limits, Link, Session};
use crate::topic::TopicFilter;

/// What is known about it.
#[derive(Debug)]
pub struct Remembered {
    /// Its name in the log.
    pub session: SessionId,
    /// Seconds that it outlives its connection; `u32::MAX` is for ever.
    pub expiry_s: u32,
    /// What it is subscribed to.
    pub filters: Vec<TopicFilter>,
    /// Identifiers of QoS 2 messages from the client that are not to be routed again [MQTT-4.3.3-10].
    pub accepted: Vec<PacketId>,
    /// Messages that were sent and not acknowledged, in the order of sending: the identifier of the first, and a
    /// delivery of one piece.
    pub sent: Vec<(PacketId, Delivery)>,
    /// Identifiers whose PUBREL is due again, in the order of the PUBRECs [MQTT-4.6.0-4].
    pub awaits_pubcomp: Vec<PacketId>,
}

impl Session {
    /// The session, whose client is away. Messages that were not sent come as deliveries.
    pub fn remembered(limits: Limits, remembered: Remembered, now: Instant) -> Self {
        let Remembered { session, expiry_s, filters, accepted, sent, awaits_pubcomp } = remembered;
        // The terms of a connection come with the next one.
        let link = Link {
            version: ProtocolVersion::V311,
            keep_alive: None,
            send_max: limits.inflight_max,
            packet_bytes_max: None,
            topic_alias_max: 0,
            problem_information: true,
            durable: Some(session),
            mount_point: None,
        };
        let mut remembered = Self::empty(limits, link, now);
        remembered.durable = Some(session);
        remembered.expiry = Expiry::from_seconds(expiry_s, &limits);
        remembered.subscribing.remember(filters);
        remembered.incoming.remember(accepted);
        remembered.outgoing.remember(sent, &awaits_pubcomp);
        remembered
    }
}

//! What a session wants done: the one thing that every `handle_*` call writes to. Floor 2.

use std::collections::VecDeque;

use crate::access::Decision;
use crate::codec::{
    Ack, Disconnect, Packet, Properties, PropertiesBuf, Property, SubAck, UnsubAck,
};
use crate::ids::ProtocolVersion;
use crate::message::{Collector, Grant, Replay, Stored};
use crate::session::journal::Journal;
use crate::session::{CloseReason, Link};
use crate::topic::TopicFilter;

/// Denials that one turn tells apart; the others are counted only.
const DENIALS_MAX: usize = 8;
/// Characters of a topic that a denial shows.
const DENIED_TOPIC_MAX: usize = 256;

/// Filled by the session, emptied by its caller.
#[derive(Debug)]
pub struct Output {
    /// To be written to the client.
    pub bytes: Vec<u8>,
    /// Messages to be routed, as places in the caller's read buffer.
    pub routes: Collector,
    /// For the router, after `routes`.
    pub requests: VecDeque<Request>,
    /// For the log, after `routes`.
    pub journal: Journal,
    /// Set once; nothing is handled after it.
    pub close: Option<CloseReason>,
    /// Set once: nothing more is read from the client, and after a while the connection ends for this reason.
    pub hold: Option<CloseReason>,
    /// Memory is short: nothing may be begun that takes more of it. Set by the caller.
    pub is_memory_short: bool,
    /// For the counters.
    pub tally: Tally,
    /// For the log: the first of them since the caller last took them.
    pub denials: Vec<Denial>,
}

/// Something that the rules do not let the client do. The texts may hold what clients have sent, any character of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Denial {
    /// What it is.
    pub action: &'static str,
    /// The topic or filter, perhaps only its beginning.
    pub topic: Box<str>,
    /// The rule that decided.
    pub rule: Box<str>,
}

impl Denial {
    /// `decision` was that `action` is not allowed.
    pub fn new(action: &'static str, topic: &str, decision: &Decision<'_>) -> Self {
        let end = topic.char_indices().nth(DENIED_TOPIC_MAX).map_or(topic.len(), |(at, _)| at);
        let topic = topic.get(..end).unwrap_or_default().into();
        Self { action, topic, rule: decision.to_string().into() }
    }
}

/// What the router is asked for.
#[derive(Debug)]
pub enum Request {
    /// Bring subscriptions into force; every concerned shard answers with `token`.
    Subscribe {
        /// Comes back with each answer.
        token: u64,
        /// What was granted, and whether retained messages are to be replayed.
        filters: Vec<(TopicFilter, Grant, Retained)>,
    },
    /// End subscriptions; every concerned shard answers with `token`.
    Unsubscribe {
        /// Comes back with each answer.
        token: u64,
        /// What the session was subscribed to.
        filters: Vec<TopicFilter>,
    },
    /// The next chunk of retained messages.
    Replay(Replay),
    /// Messages that wait in the log only.
    Fetch(Vec<Stored>),
}

/// Whether a subscription gets the retained messages.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retained {
    /// Yes, once it is in force.
    Replay,
    /// No [MQTT-3.3.1-10] [MQTT-3.3.1-11].
    Skip,
}

/// Sums since the caller last took them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Packets of any type.
    pub packets_received: u64,
    /// Packets of any type.
    pub packets_sent: u64,
    /// PUBLISH packets.
    pub publishes_received: u64,
    /// Their bytes.
    pub publish_bytes_received: u64,
    /// PUBLISH packets.
    pub publishes_sent: u64,
    /// Their bytes.
    pub publish_bytes_sent: u64,
    /// Messages over the client's Maximum Packet Size.
    pub too_large: u64,
    /// Messages that the client refused.
    pub refused: u64,
    /// Messages whose Message Expiry Interval had passed [MQTT-3.3.2-5].
    pub expired: u64,
    /// Messages that the client may not publish, or that are not below its mount point.
    pub not_authorized: u64,
    /// Those of them that the rules deny.
    pub publishes_denied: u64,
    /// Filters that the rules deny.
    pub subscriptions_denied: u64,
    /// Messages that say they are text and are not.
    pub payload_format_invalid: u64,
    /// Messages whose whole topic is too long for a packet.
    pub topic_too_long: u64,
    /// Messages that the log could not give back.
    pub unreadable: u64,
    /// Messages that waited longest where too much did.
    pub evicted: u64,
    /// Acknowledgements with a packet identifier under which nothing is open.
    pub acks_unknown: u64,
    /// Messages that left the queue.
    pub released_messages: u64,
    /// Bytes that the queue no longer holds.
    pub released_bytes: usize,
    /// Subscriptions more or fewer.
    pub subscriptions: i64,
}

impl Tally {
    pub(super) fn publishes_sent(&mut self, count: u64, bytes: usize) {
        self.packets_sent += count;
        self.publishes_sent += count;
        self.publish_bytes_sent += bytes as u64;
    }
}

impl Output {
    /// Empty, with `routes` to collect messages.
    pub fn new(routes: Collector) -> Self {
        Self {
            bytes: Vec::new(),
            routes,
            requests: VecDeque::new(),
            journal: Journal::default(),
            close: None,
            hold: None,
            is_memory_short: false,
            tally: Tally::default(),
            denials: Vec::new(),
        }
    }

    /// Writes `packet`; where the client does not take one of its size, the connection ends, for
    /// these packets cannot be left out [MQTT-3.1.2-24].
    pub(super) fn send(&mut self, packet: &Packet<'_>, link: &Link) {
        if let Err(TooLarge(len)) = self.try_send(packet, link) {
            self.close(CloseReason::AnswerTooLarge(len));
        }
    }

    /// As [`Output::send`], with `why` as the Reason String where the client wants one [MQTT-3.1.2-29] and
    /// takes a packet of that size [MQTT-3.4.2-2] [MQTT-3.5.2-2] [MQTT-3.6.2-2] [MQTT-3.7.2-2]
    /// [MQTT-3.9.2-1] [MQTT-3.11.2-1].
    pub(super) fn send_explained(&mut self, packet: &Packet<'_>, why: &str, link: &Link) {
        if !link.problem_information || self.try_explain(packet, why, link).is_err() {
            self.send(packet, link);
        }
    }

    /// DISCONNECT, with `why` as its Reason String where the client takes a packet of that size
    /// [MQTT-3.14.2-3]; Request Problem Information does not forbid it here.
    pub(super) fn send_last(&mut self, packet: &Disconnect<'_>, why: &str, link: &Link) {
        let packet = Packet::Disconnect(*packet);
        if self.try_explain(&packet, why, link).is_err() {
            self.send(&packet, link);
        }
    }

    fn try_explain(&mut self, packet: &Packet<'_>, why: &str, link: &Link) -> Result<(), TooLarge> {
        if link.version != ProtocolVersion::V5 {
            return self.try_send(packet, link);
        }
        let mut properties = PropertiesBuf::new();
        properties.push(Property::ReasonString(why));
        self.try_send(&with_properties(*packet, properties.as_properties()), link)
    }

    /// Writes `packet` unless it is larger than the client takes [MQTT-3.1.2-24].
    fn try_send(&mut self, packet: &Packet<'_>, link: &Link) -> Result<(), TooLarge> {
        let start = self.bytes.len();
        packet.encode(link.version, &mut self.bytes);
        let len = self.bytes.len() - start;
        if link.packet_bytes_max.is_some_and(|max| len > max as usize) {
            self.bytes.truncate(start);
            return Err(TooLarge(len));
        }
        self.tally.packets_sent += 1;
        Ok(())
    }

    /// The rules do not let the client do this.
    pub(super) fn deny(&mut self, action: &'static str, topic: &str, decision: &Decision<'_>) {
        match action {
            "subscribe" => self.tally.subscriptions_denied += 1,
            _ => self.tally.publishes_denied += 1,
        }
        if self.denials.len() < DENIALS_MAX {
            self.denials.push(Denial::new(action, topic, decision));
        }
    }

    /// The first reason wins.
    pub(super) fn close(&mut self, reason: CloseReason) {
        self.close.get_or_insert(reason);
    }
}

/// Nothing was written: the packet has this many bytes.
#[derive(Debug)]
struct TooLarge(usize);

/// The packets that may say why; others stay as they are.
fn with_properties<'a>(packet: Packet<'a>, properties: Properties<'a>) -> Packet<'a> {
    match packet {
        Packet::PubAck(ack) => Packet::PubAck(Ack { properties, ..ack }),
        Packet::PubRec(ack) => Packet::PubRec(Ack { properties, ..ack }),
        Packet::PubRel(ack) => Packet::PubRel(Ack { properties, ..ack }),
        Packet::PubComp(ack) => Packet::PubComp(Ack { properties, ..ack }),
        Packet::SubAck(suback) => Packet::SubAck(SubAck { properties, ..suback }),
        Packet::UnsubAck(unsuback) => Packet::UnsubAck(UnsubAck { properties, ..unsuback }),
        Packet::Disconnect(last) => Packet::Disconnect(Disconnect { properties, ..last }),
        other => other,
    }
}

//! All messages that shards ever had for the client, by number.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailboxqtt::codec::{Packet, PropertiesBuf, Property, Publish};
use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use mailboxqtt::message::{Buffer, Delivery, Kind, Piece, Via};
use mailboxqtt::topic::TopicFilter;

use super::choices::Choices;
use super::pair::{flow, qos};

/// Over the packet size that some connections allow.
const LARGE_BYTES: usize = 100;

/// Has other members, who take what this one does not get.
const SHARED: &str = "$share/group/#";
/// Has no other member.
const SHARED_ALONE: &str = "$share/alone/#";

const TOPICS: [&str; 3] = ["t", "home/kitchen", "site/7/line/3/temperature"];

/// Whether a shared subscription has other members.
pub(super) fn has_takers(filter: &TopicFilter) -> bool {
    filter.as_str() == SHARED
}

/// See the module comment.
#[derive(Debug)]
pub(super) struct Catalogue {
    /// Before the topics as shards know them.
    pub(super) mount_point: &'static str,
    items: Vec<Item>,
}

/// A message as it has to arrive.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) topic: &'static str,
    pub(super) payload: Vec<u8>,
    /// As delivered.
    pub(super) qos: u8,
    /// As delivered.
    pub(super) retain: bool,
    /// As published; empty where the publisher spoke MQTT 3.x.
    published: PropertiesBuf,
    /// Of the subscriptions that it came by.
    pub(super) identifiers: Vec<u32>,
    /// The shared subscription that it came by.
    pub(super) share: Option<TopicFilter>,
    /// When the broker got it.
    received_at: Instant,
}

impl Item {
    /// The properties that a client of MQTT 5 gets, without a topic alias.
    pub(super) fn properties(&self, now: Instant) -> PropertiesBuf {
        let mut list = PropertiesBuf::new();
        for identifier in &self.identifiers {
            list.push(Property::SubscriptionIdentifier(*identifier));
        }
        for property in self.published.as_properties().iter() {
            list.push(match property {
                // [MQTT-3.3.2-6]
                Property::MessageExpiryInterval(interval) => {
                    Property::MessageExpiryInterval(interval.saturating_sub(self.waited_s(now)))
                }
                other => other,
            });
        }
        list
    }

    /// Whether it will be of no use one day.
    pub(super) fn expires(&self) -> bool {
        self.published.as_properties().message_expiry_interval_s().is_some()
    }

    /// Whether it is of no use any more [MQTT-3.3.2-5].
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        let interval = self.published.as_properties().message_expiry_interval_s();
        interval.is_some_and(|interval| interval <= self.waited_s(now))
    }

    /// Bytes of the whole packet, without a topic alias.
    pub(super) fn len(&self, version: ProtocolVersion) -> usize {
        let mut list = PropertiesBuf::new();
        if version == V5 {
            list = self.properties(self.received_at);
        }
        let publish = Publish {
            topic: self.topic,
            payload: &self.payload,
            properties: list.as_properties(),
            delivery: flow(self.qos, 1, false),
            retain: self.retain,
        };
        Packet::Publish(publish).encoded_len(version)
    }

    fn waited_s(&self, now: Instant) -> u32 {
        now.duration_since(self.received_at).as_secs() as u32
    }
}

impl Catalogue {
    /// Empty.
    pub(super) fn new(mount_point: &'static str) -> Self {
        Self { mount_point, items: Vec::new() }
    }

    /// The message with this number.
    pub(super) fn item(&self, number: u32) -> &Item {
        self.items.get(number as usize).unwrap_or_else(|| panic!("there is no message {number}"))
    }

    /// How many there are.
    pub(super) fn len(&self) -> u32 {
        self.items.len() as u32
    }

    /// Some new messages of one kind in some runs, all with this RETAIN flag.
    pub(super) fn delivery(
        &mut self,
        retain: bool,
        now: Instant,
        choices: &mut Choices<'_>,
    ) -> Delivery {
        let kind = choices.one_of(&[Kind::Acknowledged, Kind::Unacknowledged, Kind::Acknowledged]);
        let (mut buffers, mut pieces, mut vias) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..=choices.below(3) {
            let mut piece = Piece {
                buffer: buffers.len() as u32,
                offset: 0,
                len: 0,
                count: 1 + choices.below(7) as u32,
                version: choices.one_of(&[V311, V5]),
                frame_qos: qos(0),
                frame_retain: choices.one_in(4),
                qos: qos(if kind == Kind::Acknowledged { 1 + choices.below(2) as u8 } else { 0 }),
                retain,
                expires: false,
                via: 0,
                record: 0,
                first: 0,
            };
            // The lower one of the publisher's QoS and the subscription's is delivered.
            let to = piece.qos as usize;
            piece.frame_qos = qos((to + choices.below(3 - to)) as u8);
            piece.expires = piece.version == V5 && choices.one_in(4);
            let via = via(retain, choices);
            if via != Via::default() {
                vias.push(Arc::new(via.clone()));
                piece.via = vias.len() as u32;
            }
            let received_at = now - Duration::from_secs(choices.below(3) as u64);
            let frames = self.run(&mut piece, &via, received_at, choices);
            pieces.push(piece);
            buffers.push(Buffer { frames: frames.into(), received_at });
        }
        Delivery::new(kind, buffers, pieces, vias)
    }

    /// Messages of one publisher behind one another, as `piece` says.
    fn run(
        &mut self,
        piece: &mut Piece,
        via: &Via,
        received_at: Instant,
        choices: &mut Choices<'_>,
    ) -> Vec<u8> {
        let mut frames = Vec::new();
        let topic = choices.one_of(&TOPICS);
        let whole_topic = format!("{}{topic}", self.mount_point);
        for _ in 0..piece.count {
            let mut payload = self.len().to_be_bytes().to_vec();
            if choices.one_in(10) {
                payload.resize(LARGE_BYTES, 0);
            }
            let item = Item {
                topic,
                payload,
                qos: piece.qos as u8,
                retain: piece.retain,
                published: published(piece, choices),
                identifiers: via.identifiers.iter().map(|identifier| identifier.get()).collect(),
                share: via.share.clone(),
                received_at,
            };
            let publish = Publish {
                topic: &whole_topic,
                payload: &item.payload,
                properties: item.published.as_properties(),
                delivery: flow(piece.frame_qos as u8, 7, false),
                retain: piece.frame_retain,
            };
            Packet::Publish(publish).encode(piece.version, &mut frames);
            self.items.push(item);
        }
        piece.len = frames.len() as u32;
        frames
    }
}

/// Retained messages do not come by shared subscriptions.
fn via(retain: bool, choices: &mut Choices<'_>) -> Via {
    let identifier = |number: u32| NonZeroU32::new(number).expect("it is not zero");
    let identifiers = match choices.below(6) {
        0 => vec![identifier(1)],
        1 => vec![identifier(268_435_455), identifier(300)],
        _ => Vec::new(),
    };
    let share = (!retain && choices.one_in(6)).then(|| {
        let filter = choices.one_of(&[SHARED, SHARED, SHARED_ALONE]);
        TopicFilter::parse(filter).expect("it is valid")
    });
    Via { identifiers: identifiers.into(), share }
}

fn published(piece: &Piece, choices: &mut Choices<'_>) -> PropertiesBuf {
    let mut list = PropertiesBuf::new();
    if piece.version != V5 {
        return list;
    }
    if choices.one_in(4) {
        list.push(Property::ContentType("text/plain")).push(Property::CorrelationData(&[7]));
    }
    if piece.expires {
        list.push(Property::MessageExpiryInterval(choices.one_of(&[1, 2, 5, 100, u32::MAX])));
    }
    for value in ["first", "second"] {
        if choices.one_in(5) {
            list.push(Property::UserProperty { name: "name", value });
        }
    }
    list
}

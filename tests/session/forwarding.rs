//! What MQTT 5 adds to a message on its way: aliases from and to the client, expiry, subscription
//! identifiers, and what a member of a shared subscription leaves to the others.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailboxqtt::codec::{Packet, PropertiesBuf, Property, Publish, PublishView, decode, frame_len};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ProtocolVersion, Qos};
use mailboxqtt::message::{Buffer, Delivery, Kind, Piece, Via};
use mailboxqtt::metrics::Shortage;
use mailboxqtt::session::CloseReason;
use mailboxqtt::topic::TopicFilter;

use crate::pair::{LIMITS, Pair, Terms, flow, puback, pubrec, qos};

/// [MQTT-3.3.2-7] [MQTT-3.3.2-12]: the topic comes first, then only its alias; a new topic moves the alias,
/// and no alias goes on to the shards.
#[test]
fn alias_of_the_client_stands_for_its_newest_topic_until_the_connection_ends() {
    let mut pair = Pair::new(Terms::V5);
    let long = "a/".repeat(500);
    pair.say(&[
        aliased("one", 1, 3).as_packet(),
        aliased("", 2, 3).as_packet(),
        plain("between", 3).as_packet(),
        aliased("", 4, 3).as_packet(),
        aliased(&long, 5, 3).as_packet(),
        aliased("", 6, 3).as_packet(),
        aliased("", 7, 3).as_packet(),
    ]);
    assert_eq!(pair.close_reason(), None);
    let mut routed = pair.routed.clone();
    routed.sort_by_key(|message| message.number);
    let topics: Vec<_> = routed.iter().map(|message| &message.topic[..]).collect();
    assert_eq!(topics, ["one", "one", "between", "one", &long, &long, &long]);
    for topic in ["one", &long] {
        let of_topic = pair.routed.iter().filter(|message| message.topic == topic);
        assert!(of_topic.is_sorted_by_key(|message| message.number), "order within a topic");
    }

    pair.lose_link();
    pair.resume(Terms::V5, LIMITS);
    pair.say(&[aliased("", 8, 3).as_packet()]);
    assert!(matches!(pair.close_reason(), Some(CloseReason::Protocol(_))));
}

#[test]
fn alias_over_the_maximum_ends_the_connection() {
    let mut pair = Pair::new(Terms::V5);
    let max = LIMITS.topic_alias_max;
    pair.say(&[aliased("t", 1, max).as_packet()]);
    assert_eq!(pair.close_reason(), None);
    pair.say(&[aliased("t", 2, max + 1).as_packet()]);
    assert_eq!(pair.close_reason(), Some(CloseReason::TopicAliasInvalid));
}

/// A topic may have 64 KiB, and each connection as many aliases as its limit.
#[test]
fn long_topic_gets_no_alias_while_memory_is_short() {
    let (short, long) = ("s".repeat(1000), "l".repeat(2000));
    let mut pair = Pair::new(Terms { topic_alias_max: Some(2), ..Terms::V5 });
    pair.out.is_memory_short = true;
    for (topic, alias) in [(&long, None), (&short, Some(1))] {
        pair.deliver(message(V311, topic, None, None).delivery());
        let frame = hear_frames(&mut pair).remove(0);
        let (name, properties) = publish_of(&frame);
        assert_eq!((&name, properties.iter().find_map(as_alias)), (topic, alias));
    }
    pair.say(&[aliased(&short, 1, 3).as_packet()]);
    assert_eq!(pair.close_reason(), None);
    pair.say(&[aliased(&long, 2, 4).as_packet()]);
    assert_eq!(pair.close_reason(), Some(CloseReason::NoRoom(Shortage::Memory)));
}

/// [MQTT-3.3.2-11]: as many topics as the client allows get an alias, the others their name.
#[test]
fn client_that_allows_aliases_is_sent_each_topic_once() {
    let mut pair = Pair::new(Terms { topic_alias_max: Some(2), ..Terms::V5 });
    let sent = |pair: &mut Pair, topic: &str| {
        pair.deliver(message(V311, topic, None, None).delivery());
        let frame = hear_frames(pair).remove(0);
        let (topic, properties) = publish_of(&frame);
        (topic, properties.iter().find_map(|property| as_alias(property)))
    };
    assert_eq!(sent(&mut pair, "a"), ("a".to_owned(), Some(1)));
    assert_eq!(sent(&mut pair, "a"), (String::new(), Some(1)));
    assert_eq!(sent(&mut pair, "b"), ("b".to_owned(), Some(2)));
    assert_eq!(sent(&mut pair, "c"), ("c".to_owned(), None));
    assert_eq!(sent(&mut pair, "b"), (String::new(), Some(2)));

    pair.lose_link();
    pair.resume(Terms { topic_alias_max: Some(2), ..Terms::V5 }, LIMITS);
    assert_eq!(sent(&mut pair, "b"), ("b".to_owned(), Some(1)));
}

/// [MQTT-3.1.2-24]: an alias that would make the packet too large is not given.
#[test]
fn message_that_fits_only_without_a_new_alias_is_sent_without() {
    let bare = message(V311, "topic", None, None).frame(V5).len() as u32;
    for (room, alias) in [(bare, None), (bare + 3, Some(1))] {
        let terms = Terms { topic_alias_max: Some(1), packet_bytes_max: Some(room), ..Terms::V5 };
        let mut pair = Pair::new(terms);
        pair.deliver(message(V311, "topic", None, None).delivery());
        let frame = hear_frames(&mut pair).remove(0);
        let (topic, properties) = publish_of(&frame);
        assert_eq!(topic, "topic");
        assert_eq!(properties.iter().find_map(as_alias), alias);
    }
}

/// The name of a short topic takes less room than its alias.
#[test]
fn message_that_fits_only_without_a_known_alias_is_sent_without() {
    let now = Instant::now();
    let large = || message(V5, "t", Some((60, now)), None);
    let room = large().frame(V5).len() as u32;
    let terms = Terms { topic_alias_max: Some(1), packet_bytes_max: Some(room), ..Terms::V5 };
    let mut pair = Pair::new(terms);
    pair.deliver(message(V5, "t", None, None).delivery());
    pair.deliver(large().delivery());
    let topics_and_aliases: Vec<_> = hear_frames(&mut pair)
        .iter()
        .map(|frame| publish_of(frame))
        .map(|(topic, properties)| (topic, properties.iter().find_map(as_alias)))
        .collect();
    assert_eq!(topics_and_aliases, [("t".to_owned(), Some(1)), ("t".to_owned(), None)]);
    assert_eq!(pair.too_large, 0);
}

/// [MQTT-3.3.2-5] [MQTT-3.3.2-6]
#[test]
fn expiry_is_what_is_left_of_it_and_what_has_expired_is_dropped_and_counted() {
    for terms in [Terms::V5, Terms::V311] {
        for level in 0..=2 {
            let mut pair = Pair::new(terms);
            let now = pair.now;
            for interval_s in [9, 10, 11, 60] {
                let message = message(V5, "t", Some((interval_s, now)), None);
                pair.deliver(message.at(level).delivery());
            }
            pair.pass(Duration::from_millis(10_900));
            let frames = hear_frames(&mut pair);
            assert_eq!(pair.expired, 2, "{terms:?}, QoS {level}");
            let left: Vec<_> = frames.iter().map(|frame| expiry_of(frame, terms.version)).collect();
            let expected = if terms.version == V5 { [Some(1), Some(50)] } else { [None, None] };
            assert_eq!(left, expected);

            // What expired used up its identifier, and no place in the window.
            assert_eq!(pair.session.inflight(), if level == 0 { 0 } else { 2 });
            let answers: &[_] = if level == 1 { &[puback(3), puback(4)] } else { &[pubrec(3)] };
            pair.say(answers);
            pair.hear();
            assert_eq!(pair.released_messages, 4);
        }
    }
}

/// A delivery that has begun goes on [MQTT-3.3.2-5], with what is left of the interval [MQTT-3.3.2-6].
#[test]
fn expired_message_that_was_sent_before_is_sent_again() {
    let mut pair = Pair::new(Terms::V5);
    let message = message(V5, "t", Some((10, pair.now)), None);
    pair.deliver(message.at(1).delivery());
    assert_eq!(expiry_of(&hear_frames(&mut pair)[0], V5), Some(10));
    pair.lose_link();
    pair.pass(Duration::from_secs(4));
    pair.resume(Terms::V5, LIMITS);
    assert_eq!(expiry_of(&hear_frames(&mut pair)[0], V5), Some(6));
    pair.lose_link();
    pair.pass(Duration::from_secs(40));
    pair.resume(Terms::V5, LIMITS);
    assert_eq!(expiry_of(&hear_frames(&mut pair)[0], V5), Some(0));
    assert_eq!(pair.expired, 0);
}

/// [MQTT-3.3.4-3] [MQTT-3.3.4-4]: in front of the published properties, whose order stays [MQTT-3.3.2-18].
#[test]
fn one_copy_carries_all_identifiers_and_the_properties_as_published() {
    let ids = [7, 268_435_455, 7].map(|id| NonZeroU32::new(id).unwrap());
    for level in 0..=2 {
        let mut pair = Pair::new(Terms::V5);
        let via = Via { identifiers: ids.into(), share: None };
        pair.deliver(message(V5, "t", Some((5, pair.now)), Some(via)).at(level).delivery());
        let frames = hear_frames(&mut pair);
        assert_eq!(frames.len(), 1);
        let (_, properties) = publish_of(&frames[0]);
        let expected = [
            Property::SubscriptionIdentifier(7),
            Property::SubscriptionIdentifier(268_435_455),
            Property::SubscriptionIdentifier(7),
            Property::UserProperty { name: "z", value: "1" },
            Property::MessageExpiryInterval(5),
            Property::UserProperty { name: "a", value: "2" },
        ];
        let mut list = PropertiesBuf::new();
        for property in expected {
            list.push(property);
        }
        assert_eq!(properties, decoded(list.as_properties().as_bytes()));
    }
}

/// [MQTT-4.8.2-4] [MQTT-4.8.2-5]: what another member may have, while the session lives and after.
#[test]
fn member_that_leaves_gives_away_what_was_not_sent_and_at_its_end_also_unacknowledged_qos_1() {
    let shared = || {
        let share = Some(TopicFilter::parse("$share/g/t").unwrap());
        Some(Via { identifiers: Box::default(), share })
    };
    for (has_ended, expected) in [(false, [4, 5, 6]), (true, [2, 4, 5])] {
        let mut pair = Pair::new(Terms { receive_max: Some(3), ..Terms::V5 });
        // Sent: 1 and 2 at QoS 1, 3 at QoS 2. Not sent: 4, 5, and 6 which is not shared for one of both.
        for (number, level) in [(1, 1), (2, 1), (3, 2), (4, 1), (5, 2)] {
            let message = message(V5, "t", None, shared()).at(level).number(number);
            pair.deliver(message.delivery());
        }
        let last = if has_ended { None } else { shared() };
        pair.deliver(message(V5, "t", None, last).at(1).number(6).delivery());
        assert_eq!(hear_frames(&mut pair).len(), 3);
        pair.say(&[puback(1)]);
        pair.lose_link();

        let undelivered = pair.session.take_shared(has_ended, |_| true, &mut pair.out);
        let numbers: Vec<_> = undelivered.iter().map(|it| number_of(&it.frames)).collect();
        assert_eq!(numbers, expected, "has ended: {has_ended}");
        assert!(undelivered.iter().all(|it| it.count == 1 && it.filter.as_str() == "$share/g/t"));
        assert!(
            pair.session.take_shared(false, |_| true, &mut pair.out).is_empty(),
            "once and for all"
        );

        pair.resume(Terms { receive_max: Some(10), ..Terms::V5 }, LIMITS);
        let again = hear_frames(&mut pair);
        let numbers: Vec<_> = again.iter().map(|frame| number_of(frame)).collect();
        assert_eq!(numbers, if has_ended { vec![2, 3, 6] } else { vec![2, 3] });
    }
}

/// A PUBLISH of a client.
pub(crate) struct Said {
    topic: String,
    payload: [u8; 4],
    properties: PropertiesBuf,
}

impl Said {
    pub(crate) fn as_packet(&self) -> Packet<'_> {
        Packet::Publish(Publish {
            topic: &self.topic,
            payload: &self.payload,
            properties: self.properties.as_properties(),
            delivery: flow(0, 0, false),
            retain: false,
        })
    }
}

pub(crate) fn plain(topic: &str, number: u32) -> Said {
    let (topic, payload) = (topic.to_owned(), number.to_be_bytes());
    Said { topic, payload, properties: PropertiesBuf::new() }
}

pub(crate) fn aliased(topic: &str, number: u32, alias: u16) -> Said {
    let mut said = plain(topic, number);
    said.properties.push(Property::TopicAlias(alias));
    said
}

/// A message on its way to the client.
pub(crate) struct Message {
    version: ProtocolVersion,
    topic: String,
    number: u32,
    qos: u8,
    expiry: Option<(u32, Instant)>,
    via: Option<Via>,
}

pub(crate) fn message(
    version: ProtocolVersion,
    topic: &str,
    expiry: Option<(u32, Instant)>,
    via: Option<Via>,
) -> Message {
    Message { version, topic: topic.to_owned(), number: 0, qos: 0, expiry, via }
}

impl Message {
    pub(crate) fn at(self, qos: u8) -> Self {
        Self { qos, ..self }
    }

    fn number(self, number: u32) -> Self {
        Self { number, ..self }
    }

    fn frame(&self, version: ProtocolVersion) -> Vec<u8> {
        let mut properties = PropertiesBuf::new();
        if let Some((interval_s, _)) = self.expiry {
            properties
                .push(Property::UserProperty { name: "z", value: "1" })
                .push(Property::MessageExpiryInterval(interval_s))
                .push(Property::UserProperty { name: "a", value: "2" });
        }
        let publish = Publish {
            topic: &self.topic,
            payload: &self.number.to_be_bytes(),
            properties: properties.as_properties(),
            delivery: flow(self.qos, 9, false),
            retain: false,
        };
        let mut frame = Vec::new();
        Packet::Publish(publish).encode(version, &mut frame);
        frame
    }

    pub(crate) fn delivery(self) -> Delivery {
        let frames = Bytes::from(self.frame(self.version));
        let kind = if self.qos == 0 { Kind::Unacknowledged } else { Kind::Acknowledged };
        let piece = Piece {
            buffer: 0,
            offset: 0,
            len: frames.len() as u32,
            count: 1,
            version: self.version,
            frame_qos: qos(self.qos),
            frame_retain: false,
            qos: qos(self.qos),
            retain: false,
            expires: self.expiry.is_some(),
            via: u32::from(self.via.is_some()),
            record: 0,
            first: 0,
        };
        let received_at = self.expiry.map_or_else(Instant::now, |(_, at)| at);
        let vias = self.via.into_iter().map(Arc::new).collect();
        Delivery::new(kind, vec![Buffer { frames, received_at }], vec![piece], vias)
    }
}

pub(crate) fn hear_frames(pair: &mut Pair) -> Vec<Vec<u8>> {
    let bytes = pair.hear_bytes();
    let mut frames = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let len = frame_len(rest, u32::MAX).unwrap().unwrap();
        frames.push(rest[..len].to_vec());
        rest = &rest[len..];
    }
    frames
}

/// Topic and properties of a v5 PUBLISH.
fn publish_of(frame: &[u8]) -> (String, Vec<Property<'_>>) {
    match decode(frame, V5).unwrap() {
        Packet::Publish(publish) => (publish.topic.to_owned(), publish.properties.iter().collect()),
        other => panic!("{other:?}"),
    }
}

fn decoded(properties: &[u8]) -> Vec<Property<'_>> {
    mailboxqtt::codec::Properties::from_validated(properties).iter().collect()
}

pub(crate) fn as_alias(property: &Property<'_>) -> Option<u16> {
    match property {
        Property::TopicAlias(alias) => Some(*alias),
        _ => None,
    }
}

fn expiry_of(frame: &[u8], version: ProtocolVersion) -> Option<u32> {
    PublishView::parse(frame, version).unwrap().message_expiry_interval_s()
}

fn number_of(frame: &[u8]) -> u32 {
    let view = PublishView::parse(frame, V5).unwrap();
    assert!(view.qos() > Qos::AtMostOnce);
    u32::from_be_bytes(*view.payload.first_chunk().unwrap())
}

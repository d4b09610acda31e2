//! What the queue of a session is charged, and what of it is given back.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mailboxqtt::codec::{Packet, PropertiesBuf, Property, Publish};
use mailboxqtt::ids::{ProtocolVersion, Qos};
use mailboxqtt::message::{Buffer, Delivery, Kind, Piece, Via};
use mailboxqtt::session::OUTPUT_BYTES_MAX;
use mailboxqtt::topic::TopicFilter;

use crate::pair::{Pair, Terms, flow, puback};

/// More messages than the window has room for are one piece, of which a part is sent.
const RUN: u32 = 25;

#[test]
fn part_of_a_piece_that_was_sent_is_released_once_when_the_rest_is_handed_over() {
    let mut pair = Pair::new(Terms::V5);
    pair.deliver(run(RUN, None, Some(shared())));
    assert_eq!(pair.hear().len(), 10);
    pair.lose_link();

    let left = pair.session.take_shared(false, |_| true, &mut pair.out);
    assert_eq!(left.iter().map(|it| it.count).sum::<u32>(), 15);
    pair.hear_bytes();
    assert_eq!(pair.released_messages, u64::from(RUN));
}

#[test]
fn part_of_a_piece_that_was_sent_has_not_expired_with_the_rest() {
    let mut pair = Pair::new(Terms::V5);
    pair.deliver(run(RUN, Some((10, pair.now)), None));
    assert_eq!(pair.hear().len(), 10);
    pair.pass(Duration::from_secs(10));

    assert!(!pair.session.drop_expired(pair.now, &mut pair.out));
    pair.hear_bytes();
    assert_eq!((pair.expired, pair.released_messages), (15, u64::from(RUN)));
}

/// Its buffer stays as long as one message of it, however small that is.
#[test]
fn what_is_left_of_a_delivery_is_charged_what_it_holds() {
    let delivery = run(1000, None, None);
    let charged = delivery.held_bytes;
    let (offset, len) = (0, delivery.pieces[0].len / 1000);
    let one = Piece { offset, len, count: 1, ..delivery.pieces[0] };
    let rest = delivery.with_pieces(vec![one]).unwrap();
    assert!(held(&rest) <= rest.held_bytes, "{} held, {} charged", held(&rest), rest.held_bytes);
    assert!(rest.held_bytes < charged / 4, "what is gone is given back");

    let delivery = run(2, None, None);
    let one = Piece { len: delivery.pieces[0].len / 2, count: 1, ..delivery.pieces[0] };
    let rest = delivery.with_pieces(vec![one]).unwrap();
    assert!(held(&rest) <= rest.held_bytes, "{} held, {} charged", held(&rest), rest.held_bytes);
}

#[test]
fn messages_for_another_member_do_not_hold_the_buffer_that_they_came_in() {
    for has_ended in [false, true] {
        let mut pair = Pair::new(Terms::V5);
        let delivery = run(RUN, None, Some(shared()));
        let buffer = delivery.buffers[0].frames.clone();
        pair.deliver(delivery);
        pair.hear();
        pair.lose_link();
        let left = pair.session.take_shared(has_ended, |_| true, &mut pair.out);
        assert_eq!(left.len(), if has_ended { 11 } else { 1 });
        for messages in left {
            let is_within = buffer.as_ptr_range().contains(&messages.frames.as_ptr());
            assert!(!is_within, "has ended: {has_ended}");
        }
    }
}

/// Each of the messages is sent with all identifiers: a few kilobytes of frames become megabytes.
#[test]
fn identifiers_do_not_make_the_output_larger_than_it_may_be() {
    let identifier = NonZeroU32::new(268_435_455).unwrap();
    let via = Via { identifiers: vec![identifier; 1000].into(), share: None };
    let mut delivery = run(500, None, Some(via));
    delivery.kind = Kind::Unacknowledged;
    delivery.pieces[0].qos = Qos::AtMostOnce;
    let mut pair = Pair::new(Terms::V5);
    pair.deliver(delivery);
    let mut sent = 0;
    loop {
        let more = pair.session.fill(|| pair.now, &mut pair.out);
        assert!(pair.out.bytes.len() <= 2 * OUTPUT_BYTES_MAX, "{}", pair.out.bytes.len());
        sent += std::mem::take(&mut pair.out.bytes).len();
        if !more {
            break;
        }
    }
    assert!(sent > 500 * 5000);
}

#[test]
fn delivery_is_charged_for_the_identifiers_that_it_holds() {
    let identifier = NonZeroU32::new(1).unwrap();
    let via = Via { identifiers: vec![identifier; 1000].into(), share: None };
    assert!(run(1, None, Some(via)).held_bytes > 4000);
}

/// A session may wait for its client for years.
#[test]
fn session_whose_client_is_away_holds_no_topics_of_aliases() {
    let mut pair = Pair::new(Terms { topic_alias_max: Some(5), ..Terms::V5 });
    let mut properties = PropertiesBuf::new();
    properties.push(Property::TopicAlias(3));
    let publish = Publish {
        topic: "topic/of/client",
        payload: b"0001",
        properties: properties.as_properties(),
        delivery: flow(0, 0, false),
        retain: false,
    };
    pair.say(&[Packet::Publish(publish)]);
    pair.deliver(run(1, None, None));
    pair.hear();
    pair.say(&[puback(1)]);
    pair.lose_link();
    let session = format!("{:?}", pair.session);
    assert!(!session.contains("topic/of/client"), "{session}");
    assert!(!session.contains("[116]: 1"), "{session}");
}

/// Bytes of the buffers of `delivery`.
fn held(delivery: &Delivery) -> usize {
    delivery.buffers.iter().map(|buffer| buffer.frames.len()).sum()
}

/// `count` messages to one topic at QoS 1, with an expiry that counts from its moment.
fn run(count: u32, expiry: Option<(u32, Instant)>, via: Option<Via>) -> Delivery {
    let mut properties = PropertiesBuf::new();
    if let Some((interval_s, _)) = expiry {
        properties.push(Property::MessageExpiryInterval(interval_s));
    }
    let mut frames = Vec::new();
    for number in 0..count {
        let publish = Publish {
            topic: "t",
            payload: &number.to_be_bytes(),
            properties: properties.as_properties(),
            delivery: flow(1, 9, false),
            retain: false,
        };
        Packet::Publish(publish).encode(ProtocolVersion::V5, &mut frames);
    }
    let piece = Piece {
        buffer: 0,
        offset: 0,
        len: frames.len() as u32,
        count,
        version: ProtocolVersion::V5,
        frame_qos: Qos::AtLeastOnce,
        frame_retain: false,
        qos: Qos::AtLeastOnce,
        retain: false,
        expires: expiry.is_some(),
        via: u32::from(via.is_some()),
        record: 0,
        first: 0,
    };
    let received_at = expiry.map_or_else(Instant::now, |(_, at)| at);
    let buffer = Buffer { frames: Bytes::from(frames), received_at };
    let vias = via.into_iter().map(Arc::new).collect();
    Delivery::new(Kind::Acknowledged, vec![buffer], vec![piece], vias)
}

fn shared() -> Via {
    let share = Some(TopicFilter::parse("$share/g/t").unwrap());
    Via { identifiers: Box::default(), share }
}

//! A client behind a mount point: the router knows whole names, the client never sees the beginning.

use std::time::Instant;

use mailboxqtt::codec::{
    Connect, PACKET_BYTES_MAX, Packet, Properties, PropertiesBuf, Property, Publish, ReasonCode,
    Will, decode,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ClientId, ProtocolVersion, Qos};
use mailboxqtt::message::{Delivery, Undelivered};
use mailboxqtt::session::{
    CloseReason, Limits, Opening, Place, Refusal, Request, Session, negotiate,
};
use mailboxqtt::topic::MountPoint;

use crate::forwarding::{aliased, as_alias, hear_frames, message, plain};
use crate::pair::{Heard, LIMITS, Pair, Terms, flow, puback, pubcomp, publish, pubrec, pubrel};

const MOUNT_POINT: &str = "tenant-a/";
/// The longest topic that fits.
const ROOM: usize = u16::MAX as usize - MOUNT_POINT.len();

fn mounted(terms: Terms) -> Pair {
    Pair::behind(MOUNT_POINT, terms, LIMITS)
}

fn topics(pair: &Pair) -> Vec<String> {
    pair.routed.iter().map(|message| message.topic.clone()).collect()
}

#[test]
fn message_is_routed_by_its_whole_name_in_every_version_and_at_every_qos() {
    for terms in [Terms::V311, Terms::V5] {
        let mut pair = mounted(terms);
        for qos in 0..=2 {
            let payload = u32::from(qos).to_be_bytes();
            let receipts = pair.say(&[publish("a/b", &payload, flow(qos, 5, false))]);
            receipts.iter().for_each(|receipt| pair.accept(receipt));
            assert_eq!(pair.routed.pop().unwrap().topic, "tenant-a/a/b");
            match qos {
                0 => assert_eq!(pair.hear(), []),
                1 => assert_eq!(pair.hear(), [Heard::PubAck(5, 0)]),
                _ => {
                    assert_eq!(pair.hear(), [Heard::PubRec(5, 0)]);
                    // Sent again it is not routed again.
                    let again = pair.say(&[publish("a/b", &payload, flow(2, 5, true))]);
                    assert!(pair.routed.is_empty());
                    again.iter().for_each(|receipt| pair.accept(receipt));
                    assert_eq!(pair.hear(), [Heard::PubRec(5, 0)]);
                    pair.say(&[pubrel(5)]);
                    assert_eq!(pair.hear(), [Heard::PubComp(5)]);
                }
            }
        }
    }
}

#[test]
fn messages_of_one_read_keep_their_order_and_their_topics() {
    let mut pair = mounted(Terms::V311);
    let said: Vec<_> = (0..200).map(|n| plain(["a", "b/c", "a"][n as usize % 3], n)).collect();
    pair.say(&said.iter().map(|said| said.as_packet()).collect::<Vec<_>>());
    for (topic, count) in [("tenant-a/a", 133), ("tenant-a/b/c", 67)] {
        let of_topic: Vec<_> = pair.routed.iter().filter(|it| it.topic == topic).collect();
        assert_eq!(of_topic.len(), count);
        assert!(of_topic.is_sorted_by_key(|it| it.number));
    }
    assert_eq!(pair.routed.len(), 200);
}

#[test]
fn alias_of_a_client_stands_for_its_own_name_of_the_topic() {
    let mut pair = mounted(Terms::V5);
    pair.say(&[aliased("a", 1, 3).as_packet(), aliased("", 2, 3).as_packet()]);
    pair.say(&[aliased("", 3, 3).as_packet()]);
    assert_eq!(pair.close_reason(), None);
    assert_eq!(topics(&pair), ["tenant-a/a"; 3]);
    // Also one of a topic that is refused.
    pair.say(&[aliased("$x", 4, 3).as_packet(), aliased("", 5, 3).as_packet()]);
    pair.hear();
    assert_eq!((pair.routed.len(), pair.not_authorized), (3, 2));
}

#[test]
fn message_reaches_the_client_without_the_mount_point_in_every_version_and_at_every_qos() {
    for (publisher, terms) in
        [(V311, Terms::V311), (V5, Terms::V311), (V311, Terms::V5), (V5, Terms::V5)]
    {
        let mut pair = mounted(terms);
        for qos in 0..=2 {
            pair.deliver(message(publisher, "tenant-a/a/b", None, None).at(qos).delivery());
            let frame = hear_frames(&mut pair).remove(0);
            let (topic, id) = topic_and_id(&frame, terms.version);
            assert_eq!((topic.as_str(), id > 0), ("a/b", qos > 0));
            match qos {
                1 => drop(pair.say(&[puback(id)])),
                2 => {
                    pair.say(&[pubrec(id)]);
                    pair.say(&[pubcomp(id)]);
                }
                _ => (),
            }
            pair.take_bytes();
        }
        assert_eq!((pair.session.inflight(), pair.not_authorized), (0, 0));
    }
}

#[test]
fn message_is_sent_again_without_the_mount_point() {
    for terms in [Terms::V311, Terms::V5] {
        let mut pair = mounted(terms);
        pair.deliver(message(V311, "tenant-a/x", None, None).at(1).delivery());
        let first = hear_frames(&mut pair).remove(0);
        pair.lose_link();
        pair.resume(terms, LIMITS);
        let again = hear_frames(&mut pair).remove(0);
        assert_eq!(topic_and_id(&again, terms.version), topic_and_id(&first, terms.version));
        assert_eq!(again[0] & 0b1000, 0b1000, "DUP");
    }
}

#[test]
fn alias_towards_the_client_goes_with_the_name_that_it_knows() {
    let mut pair = mounted(Terms { topic_alias_max: Some(1), ..Terms::V5 });
    let mut sent = |topic: &str| {
        pair.deliver(message(V311, topic, None, None).delivery());
        let frame = hear_frames(&mut pair).remove(0);
        let Packet::Publish(publish) = decode(&frame, V5).unwrap() else { panic!("{frame:?}") };
        let alias = publish.properties.iter().find_map(|property| as_alias(&property));
        (publish.topic.to_owned(), alias)
    };
    assert_eq!(sent("tenant-a/a"), ("a".to_owned(), Some(1)));
    assert_eq!(sent("tenant-a/a"), (String::new(), Some(1)));
    assert_eq!(sent("tenant-a/b"), ("b".to_owned(), None));
}

/// No route leads there; if one did, it would end in the session.
#[test]
fn message_that_is_not_below_the_mount_point_is_left_out_and_counted() {
    for qos in 0..=2 {
        let mut pair = mounted(Terms::V311);
        for topic in ["tenant-b/x", "tenant-a", "tenant-a/", "x", "$SYS/broker/uptime"] {
            pair.deliver(message(V311, topic, None, None).at(qos).delivery());
        }
        pair.deliver(message(V311, "tenant-a/x", None, None).at(qos).delivery());
        let frames = hear_frames(&mut pair);
        let heard: Vec<_> = frames.iter().map(|frame| topic_and_id(frame, V311).0).collect();
        assert_eq!(heard, ["x"]);
        assert_eq!(pair.not_authorized, 5);
        assert_eq!(pair.session.inflight(), usize::from(qos > 0));
        let own = usize::from(qos > 0) * message_bytes(qos);
        assert_eq!(pair.released_bytes + own, pair.charged_bytes, "what is left out is let go");
    }
}

#[test]
fn filter_gets_the_mount_point_behind_the_share_name() {
    let mut pair = mounted(Terms::V5);
    pair.say_subscribe(1, &["#", "a/+", "b", "$share/g/#"]);
    let Some(Request::Subscribe { filters, .. }) = pair.requests().pop() else { panic!() };
    let asked: Vec<_> = filters.iter().map(|(filter, ..)| filter.as_str()).collect();
    let whole = ["tenant-a/#", "tenant-a/a/+", "tenant-a/b", "$share/g/tenant-a/#"];
    assert_eq!(asked, whole);
    let mut filters: Vec<_> = pair.session.filters().map(|filter| filter.as_str()).collect();
    filters.sort_unstable();
    assert_eq!(filters, ["$share/g/tenant-a/#", "tenant-a/#", "tenant-a/a/+", "tenant-a/b"]);
}

/// What is counted for a filter is given back with it.
#[test]
fn filters_come_and_go_by_the_names_that_the_client_gives_them() {
    let limits = Limits { subscription_bytes_max: "tenant-a/12345".len(), ..LIMITS };
    let mut pair = Pair::behind(MOUNT_POINT, Terms::V5, limits);
    for _ in 0..3 {
        let token = pair.subscribe(1, &["12345"]);
        pair.session.handle_part_done(token, 1, None, &mut pair.out);
        assert_eq!(pair.hear(), [Heard::SubAck(1, vec![1])]);
        pair.say_subscribe(2, &["6"]);
        assert_eq!(pair.hear(), [Heard::SubAck(2, vec![0x97])]);
        let token = pair.unsubscribe(3, &["12345"]);
        pair.session.handle_part_done(token, 1, None, &mut pair.out);
        assert_eq!(pair.hear(), [Heard::UnsubAck(3, vec![0])]);
        assert_eq!(pair.session.subscriptions(), 0);
    }
}

#[test]
fn topics_that_begin_with_a_dollar_do_not_exist() {
    for (terms, puback, suback) in [(Terms::V311, 0, 0x80), (Terms::V5, 0x87, 0x87)] {
        let mut pair = mounted(terms);
        for (topic, id) in [("$SYS/broker/uptime", 1), ("$x", 2), ("$SYS", 3)] {
            let receipts = pair.say(&[publish(topic, b"1234", flow(1, id, false))]);
            receipts.iter().for_each(|receipt| pair.accept(receipt));
            assert_eq!(pair.hear(), [Heard::PubAck(id, puback)], "{topic}");
            pair.say(&[publish(topic, b"1234", flow(0, 0, false))]);
            pair.take_bytes();
        }
        assert_eq!((pair.routed.len(), pair.not_authorized), (0, 6));
        let filters = ["$SYS/#", "$x", "$share/g/$SYS/#", "$share/g/$x/+", "$share"];
        pair.say_subscribe(4, &filters);
        assert_eq!(pair.hear(), [Heard::SubAck(4, vec![suback; filters.len()])]);
        assert!(pair.requests().is_empty());
        assert_eq!(pair.session.subscriptions(), 0);
    }
}

#[test]
fn topic_and_filter_that_are_too_long_with_the_mount_point_are_refused() {
    let (fits, over) = ("x".repeat(ROOM), "x".repeat(ROOM + 1));
    for (terms, puback, suback) in [(Terms::V311, 0, 0x80), (Terms::V5, 0x90, 0x8F)] {
        let mut pair = mounted(terms);
        let receipts = pair.say(&[
            publish(&fits, b"1234", flow(1, 1, false)),
            publish(&over, b"1234", flow(1, 2, false)),
        ]);
        receipts.iter().for_each(|receipt| pair.accept(receipt));
        assert_eq!(pair.hear(), [Heard::PubAck(1, 0), Heard::PubAck(2, puback)]);
        assert_eq!((pair.routed.len(), pair.topic_too_long), (1, 1));
        assert_eq!(pair.routed[0].topic.len(), usize::from(u16::MAX));
        pair.say_subscribe(3, &[&over]);
        assert_eq!(pair.hear(), [Heard::SubAck(3, vec![suback])]);
    }
}

/// What has to be written anew with a longer topic may be no packet any more. Its length would be cut off, and its payload
/// be read as messages.
#[test]
fn message_that_is_no_packet_with_its_whole_topic_is_refused() {
    let largest = PACKET_BYTES_MAX as usize;
    let mut aliased = PropertiesBuf::new();
    aliased.push(Property::TopicAlias(1));
    let plain = PropertiesBuf::new();
    for (mut pair, properties, over) in [
        (mounted(Terms::V5), &plain, largest - "tenant-a/x".len() + 1),
        (Pair::new(Terms::V5), &aliased, largest - "x".len() + 1),
    ] {
        for (frame_len, refused) in [(over - 1, 0), (over, 1)] {
            let publish = Publish {
                topic: "x",
                payload: b"1234",
                properties: properties.as_properties(),
                delivery: flow(0, 0, false),
                retain: false,
            };
            // Only its length is looked at.
            let place = Place { frame: 0..frame_len, topic_at: 2 };
            pair.session.handle_publish(&publish, place, &mut pair.out);
            assert_eq!(pair.out.tally.topic_too_long, refused);
        }
        assert_eq!(pair.out.routes.touched(), 1);
        assert_eq!(pair.close_reason(), None);
    }
}

#[test]
fn will_has_the_mount_point_before_its_topic() {
    for version in [V311, V5] {
        let opening = with_will(version, "will").unwrap();
        assert_eq!(opening.client_id, ClientId::new("client").behind(MOUNT_POINT));
        let mut session = Session::new(LIMITS, &opening, Instant::now());
        let will = session.detach(&CloseReason::Lost("gone".into())).unwrap();
        assert_eq!(&*will.topic, "tenant-a/will");
        let (topic, _) = topic_and_id(&will.frame, version);
        assert_eq!(topic, "tenant-a/will");
    }
}

#[test]
fn will_that_cannot_have_it_is_refused_with_its_connect() {
    let over = "x".repeat(ROOM + 1);
    for (topic, reason) in
        [("$x", ReasonCode::NotAuthorized), (&over, ReasonCode::TopicNameInvalid)]
    {
        for version in [V311, V5] {
            assert_eq!(with_will(version, topic).unwrap_err().reason, reason);
        }
    }
    // Wherever bridges come in, there is a will of theirs that is dropped.
    assert_eq!(with_will(V5, "$SYS/x").unwrap_err().reason, ReasonCode::NotAuthorized);
    let opening = with_will(V311, "$SYS/x").unwrap();
    assert!(opening.is_will_dropped && opening.will.is_none());
}

/// Other members of a shared subscription get the message by its whole name.
#[test]
fn what_is_left_over_of_a_shared_subscription_keeps_its_whole_name() {
    let mut pair = mounted(Terms::V311);
    let filter = mailboxqtt::topic::TopicFilter::parse("$share/g/tenant-a/#").unwrap();
    let via = mailboxqtt::message::Via { identifiers: Box::default(), share: Some(filter) };
    pair.deliver(message(V311, "tenant-a/x", None, Some(via)).at(1).delivery());
    pair.lose_link();
    let left: Vec<Undelivered> = pair.session.take_shared(false, |_| true, &mut pair.out);
    assert_eq!(left.len(), 1);
    assert!(left[0].frames.windows(10).any(|window| window == b"tenant-a/x"));
}

fn with_will(version: ProtocolVersion, topic: &str) -> Result<Opening, Refusal> {
    let connect = Connect {
        version,
        clean_start: true,
        keep_alive_s: 0,
        client_id: "client",
        properties: Properties::EMPTY,
        will: Some(Will {
            topic,
            payload: b"gone",
            qos: Qos::AtLeastOnce,
            retain: false,
            properties: Properties::EMPTY,
        }),
        user_name: None,
        password: None,
    };
    let mut opening = negotiate(&connect, &LIMITS, || ClientId::new("spare"))?;
    opening.mount(&connect, &MountPoint::parse(MOUNT_POINT).unwrap())?;
    Ok(opening)
}

/// Bytes that a message with the topic `tenant-a/x` holds in a queue.
fn message_bytes(qos: u8) -> usize {
    let delivery: Delivery = message(V311, "tenant-a/x", None, None).at(qos).delivery();
    delivery.held_bytes
}

fn topic_and_id(frame: &[u8], version: ProtocolVersion) -> (String, u16) {
    match decode(frame, version).unwrap() {
        Packet::Publish(publish) => {
            (publish.topic.to_owned(), publish.delivery.id().map_or(0, |id| id.get()))
        }
        other => panic!("{other:?}"),
    }
}

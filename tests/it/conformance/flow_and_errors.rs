//! Flow control, handling errors, conformance (4.9, 4.13 and 7; 4.8 and 7 of MQTT 3.1.1).

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS, frame,
    property_list, publish, string,
};

/// [MQTT-4.9.0-1]
#[test]
fn first_messages_of_a_connection_are_at_least_one_and_at_most_its_receive_maximum() {
    let broker = Broker::start();
    let (id, topic) = (unique("quota"), unique("quota"));
    let hello = Hello::persistent(V5, &id);
    let (mut client, _) = hello.open(broker.addr());
    client.subscribe(&topic, 2);
    client.disconnect();
    let mut sender = Client::connect(&broker, V5);
    for number in 0..12 {
        sender.deliver_at(&topic, [number], 1 + number % 2);
    }
    // Each connection has its own: what an earlier one left open does not count in it.
    for receive_max in [Some(3), Some(1), Some(5), Some(2), None] {
        let mut hello = hello.clone();
        if let Some(max) = receive_max {
            hello = hello.with(Property::ReceiveMaximum(max));
        }
        let (mut client, present) = hello.open(broker.addr());
        assert!(present);
        let came = client.drain();
        assert!(!came.is_empty(), "the quota is not zero");
        let max = receive_max.unwrap_or(u16::MAX);
        assert!(came.len() <= usize::from(max), "{} came, at most {max}", came.len());
        let numbers: Vec<u8> = came.iter().map(|message| message.payload[0]).collect();
        assert_eq!(numbers, (0..came.len() as u8).collect::<Vec<_>>());
    }
    broker.stop();
}

/// Given back by PUBACK, PUBCOMP and an error in PUBREC; not by PUBREC. [MQTT-4.9.0-2]
#[test]
fn no_message_is_sent_beyond_the_quota_until_an_earlier_one_is_done() {
    let broker = Broker::start();
    let (id, topic) = (unique("quota"), unique("quota"));
    let (mut client, _) = Hello::new(V5, &id).with(Property::ReceiveMaximum(2)).open(broker.addr());
    client.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    for (number, qos) in [(1, 2), (2, 1), (3, 2), (4, 2), (5, 1), (6, 1)] {
        sender.deliver_at(&topic, [number], qos);
    }
    let next = |client: &mut Client, number| {
        let message = client.message();
        assert_eq!(message.payload, [number]);
        message.id
    };
    let (first, second) = (next(&mut client, 1), next(&mut client, 2));
    client.assert_silent();
    client.ack(PUBREC, first);
    assert_eq!(client.next(), Got::Ack(PUBREL, first, 0));
    client.assert_silent();
    client.ack(PUBCOMP, first);
    let third = next(&mut client, 3);
    client.assert_silent();
    client.ack(PUBACK, second);
    let fourth = next(&mut client, 4);
    client.assert_silent();
    client.ack_with(PUBREC, fourth, 0x83, &[]);
    let fifth = next(&mut client, 5);
    client.assert_silent();
    client.ack_with(PUBACK, fifth, 0x80, &[]);
    next(&mut client, 6);
    client.ack(PUBREC, third);
    assert_eq!(client.next(), Got::Ack(PUBREL, third, 0));
    client.assert_silent();
    broker.stop();
}

/// The quota of a client is what CONNACK says; without a word it cannot be exceeded.
/// [MQTT-4.9.0-2]
#[test]
fn client_that_sends_beyond_its_quota_is_disconnected() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker, V5);
    let Some(max) = client.properties().receive_maximum().filter(|max| *max < 10_000) else {
        return;
    };
    let topic = unique("beyond");
    // PUBREC gives nothing back.
    for id in 1..=max {
        client.publish(&topic, "x", 2, id);
        assert!(matches!(client.next(), Got::Ack(PUBREC, got, _) if got == id));
    }
    // What is sent again does not count twice, and a release makes room.
    client.send_publication(&Publication::new(&topic, "x").qos(2, max).dup());
    assert!(matches!(client.next(), Got::Ack(PUBREC, got, _) if got == max));
    client.ack(PUBREL, 1);
    assert_eq!(client.next(), Got::Ack(PUBCOMP, 1, 0));
    client.publish(&topic, "x", 2, max + 1);
    assert!(matches!(client.next(), Got::Ack(PUBREC, got, _) if got == max + 1));
    client.publish(&topic, "x", 2, max + 2);
    // It may have answered before it looked at the quota.
    match client.next() {
        Got::Ack(PUBREC, got, _) if got == max + 2 => client.assert_refused(&[0x93]),
        Got::Disconnect(code) => {
            assert_eq!(code, 0x93);
            client.assert_closed();
        }
        other => panic!("{other:?}"),
    }
    broker.stop();
}

/// [MQTT-4.9.0-3]
#[test]
fn everything_but_publish_goes_on_while_the_quota_of_the_broker_is_used_up() {
    let broker = Broker::start();
    let (id, topic, other) = (unique("zero"), unique("zero"), unique("zero"));
    let (mut client, _) = Hello::new(V5, &id).with(Property::ReceiveMaximum(1)).open(broker.addr());
    client.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    sender.deliver_at(&topic, "open", 2);
    sender.deliver_at(&topic, "held back", 2);
    let open = client.message();
    for _ in 0..2 {
        client.assert_silent();
        client.subscribe(&other, 2);
        client.unsubscribe(&other);
        for qos in 0..=2 {
            client.deliver_at(&other, "x", qos);
        }
        // The answer to a PUBREC, once and again.
        client.ack(PUBREC, open.id);
        assert_eq!(client.next(), Got::Ack(PUBREL, open.id, 0));
    }
    client.assert_silent();
    client.ack(PUBCOMP, open.id);
    assert_eq!(client.message().text(), "held back");
    broker.stop();
}

/// PUBREL is not counted, so it does not wait for those that are. [MQTT-4.9.0-3] [MQTT-3.3.4-10]
#[test]
fn pubrels_are_sent_again_while_the_quota_is_used_up() {
    let broker = Broker::start();
    let (id, topic) = (unique("pubrel"), unique("pubrel"));
    let (mut client, _) = Hello::persistent(V5, &id).open(broker.addr());
    client.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    for number in 0..6 {
        sender.deliver_at(&topic, [number], 2);
    }
    let sent: Vec<Message> = (0..6).map(|_| client.message()).collect();
    for index in [1, 3, 4] {
        client.ack(PUBREC, sent[index].id);
        assert_eq!(client.next(), Got::Ack(PUBREL, sent[index].id, 0));
    }
    drop(client);

    let hello = Hello::persistent(V5, &id).with(Property::ReceiveMaximum(1));
    let (mut client, _) = hello.open(broker.addr());
    let came = client.drain_packets();
    for index in [1, 3, 4] {
        assert!(came.contains(&Got::Ack(PUBREL, sent[index].id, 0)), "{came:?}");
    }
    let messages = came.iter().filter(|got| matches!(got, Got::Publish(_)));
    assert!(messages.count() <= 1, "{came:?}");
    // And all of them come to their end.
    for index in [1, 3, 4] {
        client.ack(PUBCOMP, sent[index].id);
    }
    let mut open: Vec<Message> = came.into_iter().filter_map(as_message).collect();
    for index in [0, 2, 5] {
        let message = open.pop().unwrap_or_else(|| client.message());
        assert_eq!(message, Message { dup: true, ..sent[index].clone() });
        client.take(&message);
    }
    client.assert_silent();
    broker.stop();
}

/// [MQTT-4.9.0-3]
#[test]
fn broker_hears_everything_from_a_client_that_has_used_its_quota_up() {
    let broker = Broker::start();
    let mut client = Client::connect(&broker, V5);
    let quota = client.properties().receive_maximum().unwrap_or(u16::MAX).min(1_000);
    let topic = unique("full");
    for id in 1..=quota {
        client.publish(&topic, "x", 2, id);
        assert!(matches!(client.next(), Got::Ack(PUBREC, got, _) if got == id));
    }
    client.assert_silent();
    client.subscribe(&topic, 1);
    client.publish(&topic, "of qos 0", 0, 0);
    assert_eq!(client.message().text(), "of qos 0");
    Client::connect(&broker, V5).deliver(&topic, "from another");
    let message = client.message();
    client.ack(PUBACK, message.id);
    client.unsubscribe(&topic);
    for id in 1..=quota {
        client.ack(PUBREL, id);
        assert_eq!(client.next(), Got::Ack(PUBCOMP, id, 0));
    }
    broker.stop();
}

/// Each packet that is malformed or a protocol error in itself, by the sections on its format, and what
/// came with it has no effect. Section 1.2 says when it is which: both codes pass where a text does not.
/// [MQTT-4.13.1-1] [MQTT-4.8.0-1 of 3.1.1]
#[test]
fn packet_that_breaks_a_rule_ends_the_connection_with_its_reason_and_nothing_behind_it_counts() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("behind");
        let mut witness = Client::connect(&broker, version);
        witness.subscribe(&topic, 0);
        let behind = publish(version, &topic, b"x", 0, 0, false);
        let mut offences = offences_of_both_versions(version);
        if version == V5 {
            offences.extend(offences_of_v5());
        }
        for (what, packet, codes) in offences {
            let mut client = Client::connect(&broker, version);
            client.send(&[&packet[..], &behind].concat());
            println!("{what}");
            client.assert_refused(codes);
        }
        witness.assert_silent();
    }
    broker.stop();
}

type Offence = (&'static str, Vec<u8>, &'static [u8]);

fn offences_of_both_versions(version: ProtocolVersion) -> Vec<Offence> {
    let none: &[u8] = if version == V5 { &[0] } else { &[] };
    let filter = &string("offence")[..];
    const EITHER: &[u8] = &[0x81, 0x82];
    vec![
        ("type 0", frame(0x00, &[]), EITHER),
        ("CONNACK", frame(0x20, &[&[0, 0], none]), EITHER),
        ("SUBACK", frame(0x90, &[&[0, 1], none, &[0]]), EITHER),
        ("UNSUBACK", frame(0xB0, &[&[0, 1], none, &[0][..none.len()]]), EITHER),
        ("PINGRESP", frame(0xD0, &[]), EITHER),
        ("second CONNECT", Hello::new(version, "second").bytes(), &[0x82]),
        ("QoS 3", frame(0x36, &[filter, &[0, 1], none]), &[0x81]),
        ("topic beyond the end", frame(0x30, &[&[0, 9], b"short"]), &[0x81]),
        ("no room for a topic", frame(0x30, &[&[0]]), &[0x81]),
        ("no room for an identifier", frame(0x32, &[filter, &[0]]), &[0x81]),
        ("PUBACK without an identifier", frame(PUBACK, &[&[0]]), &[0x81]),
        ("PUBREC without an identifier", frame(PUBREC, &[]), &[0x81]),
        ("PUBREL without an identifier", frame(PUBREL, &[&[1]]), &[0x81]),
        ("PUBCOMP without an identifier", frame(PUBCOMP, &[]), &[0x81]),
        ("SUBSCRIBE without a filter", frame(0x82, &[&[0, 1], none]), EITHER),
        ("SUBSCRIBE without options", frame(0x82, &[&[0, 1], none, filter]), &[0x81]),
        ("SUBSCRIBE with QoS 3", frame(0x82, &[&[0, 1], none, filter, &[3]]), EITHER),
        ("options with bit 7", frame(0x82, &[&[0, 1], none, filter, &[0x81]]), EITHER),
        ("options with bit 6", frame(0x82, &[&[0, 1], none, filter, &[0x41]]), EITHER),
        ("SUBSCRIBE cut in a filter", frame(0x82, &[&[0, 1], none, &[0, 9], b"cut"]), &[0x81]),
        ("UNSUBSCRIBE without a filter", frame(0xA2, &[&[0, 1], none]), EITHER),
        ("UNSUBSCRIBE cut in a filter", frame(0xA2, &[&[0, 1], none, &[0, 9], b"cut"]), &[0x81]),
        ("PINGREQ with a body", frame(0xC0, &[&[0]]), &[0x81]),
    ]
}

fn offences_of_v5() -> Vec<Offence> {
    let filter = &string("offence")[..];
    let publish = |list: &[u8]| frame(0x30, &[filter, list]);
    let subscribe = |list: &[u8], options| frame(0x82, &[&[0, 1], list, filter, &[options]]);
    const EITHER: &[u8] = &[0x81, 0x82];
    vec![
        ("AUTH without a method", frame(0xF0, &[]), EITHER),
        ("no topic and no alias", frame(0x30, &[&[0, 0], &[0]]), EITHER),
        ("alias that stands for nothing", frame(0x30, &[&[0, 0], &[3, 0x23, 0, 1]]), &[0x82, 0x94]),
        ("alias zero", publish(&[3, 0x23, 0, 0]), &[0x82, 0x94]),
        ("alias beyond any maximum", publish(&[3, 0x23, 0xFF, 0xFF]), &[0x82, 0x94]),
        ("subscription identifier from a client", publish(&[2, 0x0B, 1]), &[0x82]),
        ("payload format 2", publish(&[2, 0x01, 2]), EITHER),
        ("response topic with a wildcard", publish(&[4, 0x08, 0, 1, b'#']), &[0x81, 0x82, 0x90]),
        ("subscription identifier zero", subscribe(&[2, 0x0B, 0], 1), EITHER),
        ("retain handling 3", subscribe(&[0], 0x31), EITHER),
        ("PUBACK with a code of PUBREL", frame(PUBACK, &[&[0, 1, 0x92]]), EITHER),
        ("PUBREC with no code at all", frame(PUBREC, &[&[0, 1, 0x7F]]), EITHER),
        ("PUBREL with a code of PUBREC", frame(PUBREL, &[&[0, 1, 0x87]]), EITHER),
        ("PUBCOMP with a code of PUBREC", frame(PUBCOMP, &[&[0, 1, 0x10]]), EITHER),
        ("DISCONNECT with a code of CONNACK", frame(0xE0, &[&[0x84]]), EITHER),
        ("DISCONNECT that brings a session back", frame(0xE0, &[&[0], &longer()]), &[0x82]),
        ("bytes behind the properties", frame(PUBACK, &[&[0, 1, 0, 0, 0]]), &[0x81]),
        ("bytes behind DISCONNECT", frame(0xE0, &[&[0, 0, 0]]), &[0x81]),
    ]
}

/// A Session Expiry Interval above zero, where CONNECT had none.
fn longer() -> Vec<u8> {
    property_list(&[Property::SessionExpiryInterval(100)])
}

/// A well-formed packet that is an error because of what was said before.
/// [MQTT-4.13.1-1] [MQTT-4.13.2-1]
#[test]
fn error_that_depends_on_the_connection_ends_it_with_its_own_reason() {
    let broker = Broker::start();
    let topic = unique("own");
    let mut client = Client::connect(&broker, V5);
    let alias_max = client.properties().topic_alias_maximum().unwrap_or(0);
    if alias_max < u16::MAX {
        let alias = Property::TopicAlias(alias_max + 1);
        client.send_publication(&Publication::new(&topic, "x").with(alias));
        client.assert_refused(&[0x94, 0x82]);
    }
    let mut client = Client::connect(&broker, V5);
    if let Some(max) = client.properties().maximum_packet_size() {
        // Its first bytes say it.
        let mut packet = frame(0x30, &[&string(&topic)]);
        packet.truncate(1);
        let mut left = max;
        while left > 0x7F {
            packet.push(left as u8 | 0x80);
            left >>= 7;
        }
        packet.push(left as u8);
        client.send(&packet);
        client.assert_refused(&[0x95]);
    }

    let id = unique("own");
    let (mut first, _) = Hello::new(V5, &id).open(broker.addr());
    let (mut second, _) = Hello::new(V5, &id).open(broker.addr());
    first.assert_refused(&[0x8E]);
    second.assert_silent();

    let silent = Hello { keep_alive_s: 1, ..Hello::new(V5, &id) };
    silent.open(broker.addr()).0.assert_refused(&[0x8D]);
    broker.stop();
}

/// In CONNACK, in a DISCONNECT of the broker and in one of the client; and without either.
/// [MQTT-4.13.2-1]
#[test]
fn reason_code_of_0x80_and_above_ends_the_connection_whoever_says_it() {
    let broker = Broker::start();
    for connect in [
        frame(0x10, &[&string("MQTT"), &[5, 2, 0, 0, 0], &string(b"\xFF")]),
        Hello::new(V5, "reason").will("a/#", "x", 0, false).bytes(),
        frame(0x10, &[&string("MQTT"), &[5, 2, 0, 0], &[3, 0x21, 0, 0], &string("")]),
    ] {
        let mut client = Client::raw(broker.addr(), V5);
        client.send(&connect);
        match client.next() {
            Got::ConnAck(false, code, _) => {
                assert!(code >= 0x80, "code {code:#x}");
                client.assert_closed();
            }
            other => assert_eq!(other, Got::Closed),
        }
    }
    for code in [0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99] {
        let mut client = Client::connect(&broker, V5);
        client.send_disconnect(code, &[]);
        client.assert_closed();
    }
    // Elsewhere such a code is about one message.
    let mut client = Client::connect(&broker, V5);
    let topic = unique("one");
    client.subscribe(&topic, 1);
    Client::connect(&broker, V5).deliver(&topic, "x");
    let message = client.message();
    client.ack_with(PUBACK, message.id, 0x87, &[]);
    client.assert_silent();
    broker.stop();
}

/// The protocol has no word for them before MQTT 5: no CONNACK that says success, no DISCONNECT.
/// [MQTT-4.8.0-1 of 3.1.1]
#[test]
fn violation_before_mqtt_5_is_answered_by_the_end_of_the_stream() {
    let broker = Broker::start();
    let offences = offences_of_both_versions(V311);
    for (what, packet, _) in offences {
        let (id, topic) = (unique("violates"), unique("violates"));
        let hello = Hello::persistent(V311, &id);
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 1);
        client.send(&packet);
        assert_eq!(client.next_frame(), None, "{what}");
        // That connection and nothing else: the session goes on.
        Client::connect(&broker, V311).deliver(&topic, "x");
        let (mut client, present) = hello.open(broker.addr());
        assert!(present, "{what}");
        assert_eq!(client.message().text(), "x");
    }
    broker.stop();
}

/// A packet for which there is no room (section 4.8 calls it a receive buffer that is full), and a session
/// for which there is none. [MQTT-4.8.0-2 of 3.1.1]
#[test]
fn packet_that_cannot_be_taken_for_want_of_room_ends_the_connection() {
    let broker = Broker::start_configured("packet_bytes_max = 1000\nsessions_max = 2");
    let topic = unique("room");
    let mut witness = Client::connect(&broker, V311);
    witness.subscribe(&topic, 1);
    for qos in 0..=2 {
        let mut client = Client::connect(&broker, V311);
        client.send_in_vain(&publish(V311, &topic, &[b'x'; 1_000], qos, 1, false));
        client.assert_closed();
        witness.assert_silent();
    }
    let _second = Client::connect(&broker, V311);
    let mut third = Client::raw(broker.addr(), V311);
    third.send(&Hello::new(V311, "third").bytes());
    third.assert_connect_refused(&[3]);
    broker.stop();
}

/// Every byte is one that the standard prescribes or allows, and there is nothing else: no login, no property, no word
/// in advance. [MQTT-7.0.0-2 of 3.1.1]
#[test]
fn client_that_knows_the_standard_alone_is_served() {
    let broker = Broker::start();
    let (id, topic) = (unique("plain"), unique("plain"));
    let talk: [[&[&[u8]]; 2]; 9] = [
        [&[b"\x10", &string("MQTT"), b"\x04\x02\0\x3C", &string(&id)], &[b"\x20", b"\0\0"]],
        [&[b"\xC0"], &[b"\xD0"]],
        [&[b"\x82", b"\0\x0A", &string(&topic), b"\x02"], &[b"\x90", b"\0\x0A\x02"]],
        [&[b"\x30", &string(&topic), b"hello"], &[b"\x30", &string(&topic), b"hello"]],
        [&[b"\xA2", b"\0\x0B", &string(&topic)], &[b"\xB0", b"\0\x0B"]],
        [&[b"\x32", &string(&topic), b"\0\x0C", b"hello"], &[b"\x40", b"\0\x0C"]],
        [&[b"\x34", &string(&topic), b"\0\x0D", b"hello"], &[b"\x50", b"\0\x0D"]],
        [&[b"\x62", b"\0\x0D"], &[b"\x70", b"\0\x0D"]],
        [&[b"\xC0"], &[b"\xD0"]],
    ];
    let packet = |parts: &[&[u8]]| frame(parts[0][0], &parts[1..]);
    let mut client = Client::raw(broker.addr(), V311);
    for [said, answered] in talk {
        client.send(&packet(said));
        assert_eq!(client.next_frame(), Some(packet(answered)));
    }
    client.disconnect();
    broker.stop();
}

fn as_message(got: Got) -> Option<Message> {
    match got {
        Got::Publish(message) => Some(message),
        _ => None,
    }
}

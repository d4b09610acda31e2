//! The properties of a message (3.3.2.3), but for those that have a file of their own.

use std::collections::BTreeMap;

use mailboxqtt::codec::{Properties, Property};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Hello, Message, Publication, VERSIONS, frame, string};

/// [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20]
#[test]
fn properties_are_forwarded_unchanged_to_v5_and_to_nobody_else() {
    let broker = Broker::start();
    // Sorted by no letter, names and values more than once, and others between them.
    let values: Vec<String> = (0..20).map(|number| format!("v{}", 19 - number % 15)).collect();
    let mut list = Vec::new();
    for (number, value) in values.iter().enumerate() {
        let name = ["z", "a", "", "ä"][number % 4];
        list.push(Property::UserProperty { name, value });
        match number {
            3 => list.push(Property::ContentType("text/plain; charset=utf-8")),
            5 => list.push(Property::ResponseTopic("answer/ä/here")),
            7 => list.push(Property::CorrelationData(b"\0\x01\xFF\xC0")),
            9 => list.push(Property::PayloadFormatIndicator(true)),
            _ => (),
        }
    }
    let sent = crate::wire::properties(&list);
    for qos in 0..=2 {
        let topic = unique("props");
        let ids = VERSIONS.map(|version| (version, unique("props")));
        let hellos = ids.each_ref().map(|(version, id)| Hello::persistent(*version, id));
        let mut live = VERSIONS.map(|version| Client::connect(&broker, version));
        for client in &mut live {
            client.subscribe(&topic, qos);
        }
        for hello in &hellos {
            let (mut client, _) = hello.open(broker.addr());
            client.subscribe(&topic, qos);
            client.disconnect();
        }
        let packet = Publication::new(&topic, "body").qos(qos, 7).retain();
        let packet = Publication { properties: sent.clone(), ..packet };
        Client::connect(&broker, V5).deliver_publication(&packet);
        let mut messages: Vec<(_, Message)> =
            live.iter_mut().map(|client| (client.version(), client.message())).collect();
        for version in VERSIONS {
            let mut late = Client::connect(&broker, version);
            late.subscribe(&topic, qos);
            messages.push((version, late.message()));
        }
        for hello in hellos.iter().filter(|_| qos > 0) {
            let (mut client, _) = hello.open(broker.addr());
            messages.push((hello.version, client.message()));
        }
        for (version, message) in messages {
            assert_eq!((&message.topic[..], message.text()), (&topic[..], "body"));
            match version {
                V5 => assert_same(message.properties(), sent.as_properties()),
                _ => assert!(message.properties.is_empty()),
            }
        }
    }
    broker.stop();
}

/// A message of 3.1.1 has no properties, and gets none on its way.
#[test]
fn message_of_3_1_1_comes_to_v5_without_properties() {
    let broker = Broker::start();
    for qos in 0..=2 {
        let (topic, id) = (unique("without"), unique("without"));
        let hello = Hello::persistent(V5, &id);
        let (mut away, _) = hello.open(broker.addr());
        away.subscribe(&topic, qos);
        away.disconnect();
        let mut live = Client::connect(&broker, V5);
        live.subscribe(&topic, qos);
        // What looks like a list of properties is payload.
        let payload = b"\x05\x02\0\0\0\x01";
        let packet = Publication::new(&topic, payload).qos(qos, 7).retain();
        Client::connect(&broker, V311).deliver_publication(&packet);
        let mut messages = vec![live.message()];
        let mut late = Client::connect(&broker, V5);
        late.subscribe(&topic, qos);
        messages.push(late.message());
        if qos > 0 {
            messages.push(hello.open(broker.addr()).0.message());
        }
        for message in messages {
            assert_eq!((&message.payload[..], message.qos), (&payload[..], qos));
            assert!(message.properties.is_empty(), "{message:?}");
        }
    }
    broker.stop();
}

/// Absent is not zero. [MQTT-3.3.2-4]
#[test]
fn payload_format_indicator_is_forwarded_as_it_is() {
    let broker = Broker::start();
    let topic = unique("format");
    let mut receiver = Client::connect(&broker, V5);
    receiver.subscribe(&topic, 0);
    let mut sender = Client::connect(&broker, V5);
    for (indicator, payload) in
        [(None, "Grüße".as_bytes()), (Some(false), b"\xFF\0"), (Some(true), "Grüße".as_bytes())]
    {
        let mut packet = Publication::new(&topic, payload);
        if let Some(indicator) = indicator {
            packet = packet.with(Property::PayloadFormatIndicator(indicator));
        }
        sender.send_publication(&packet);
        let message = receiver.message();
        assert_eq!(message.properties().payload_format_indicator(), indicator);
        assert_eq!(message.payload, payload);
    }
    broker.stop();
}

/// [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-20]
#[test]
fn shortest_and_longest_values_are_forwarded() {
    let broker = Broker::start();
    let topic = unique("length");
    let mut receiver = Client::connect(&broker, V5);
    receiver.subscribe(&topic, 1);
    let mut sender = Client::connect(&broker, V5);
    for len in [0, 1, 127, 128, 16_384, 65_535] {
        let (text, data) = ("x".repeat(len), vec![0xFF; len]);
        let mut list = vec![
            Property::ContentType(&text),
            Property::CorrelationData(&data),
            Property::UserProperty { name: &text, value: &text },
        ];
        // A topic name has at least one character.
        if len > 0 {
            list.push(Property::ResponseTopic(&text));
        }
        for property in list {
            let packet = Publication::new(&topic, "body").qos(1, 7).with(property);
            sender.deliver_publication(&packet);
            let message = receiver.message();
            assert!(message.properties().iter().eq([property]), "{len}");
            assert_eq!(message.text(), "body");
            receiver.take(&message);
        }
    }
    broker.stop();
}

/// Section 3.3.2.3.7 sets no limit but that of the packet. [MQTT-3.3.2-17] [MQTT-3.3.2-18]
#[test]
fn a_thousand_user_properties_are_forwarded_in_order() {
    let broker = Broker::start();
    let topic = unique("thousand");
    let mut receiver = Client::connect(&broker, V5);
    receiver.subscribe(&topic, 0);
    let values: Vec<String> =
        (0..1_000).map(|number| (number * 7919 % 1_000).to_string()).collect();
    let mut packet = Publication::new(&topic, "x");
    for value in &values {
        packet = packet.with(Property::UserProperty { name: "n", value });
    }
    Client::connect(&broker, V5).send_publication(&packet);
    assert_same(receiver.message().properties(), packet.properties.as_properties());
    broker.stop();
}

/// [MQTT-3.3.2-13] [MQTT-3.3.2-14] [MQTT-3.3.2-19]
#[test]
fn response_topic_or_content_type_that_cannot_be_one_ends_the_connection() {
    let broker = Broker::start();
    let topic = unique("cannot");
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    let (response_topic, content_type) = (0x08, 0x03);
    let mut packets = Vec::new();
    for ill_formed in [&b"\xFF"[..], b"a\xC3", b"a\xED\xA0\x80", b"\xC0\x80", b"a\0b"] {
        packets.push((response_topic, ill_formed, &[0x81, 0x82, 0x90][..]));
        packets.push((content_type, ill_formed, &[0x81]));
    }
    for with_wildcard in [&b"+"[..], b"#", b"a/+", b"a/+/b", b"a/#", b"a+", b"#a"] {
        packets.push((response_topic, with_wildcard, &[0x81, 0x82, 0x90]));
    }
    for (id, value, codes) in packets {
        let list = [&[id], &string(value)[..]].concat();
        let list = [&[list.len() as u8], &list[..]].concat();
        for (first_byte, id) in [(0x30, &[][..]), (0x32, &[0, 1]), (0x34, &[0, 1])] {
            let mut client = Client::connect(&broker, V5);
            client.send(&frame(first_byte, &[&string(&topic), id, &list, b"x"]));
            client.assert_refused(codes);
        }
    }
    // Neither is too strict where there is nothing to say against.
    let lists = [Property::ContentType("a/+/#"), Property::ResponseTopic("/a//b ä")];
    for property in lists {
        let packet = Publication::new(&topic, "x").with(property);
        Client::connect(&broker, V5).send_publication(&packet);
        assert!(watcher.message().properties().iter().eq([property]));
    }
    watcher.assert_silent();
    broker.stop();
}

/// The order counts among user properties only.
#[track_caller]
fn assert_same(came: Properties<'_>, sent: Properties<'_>) {
    let split = |list: Properties<'_>| {
        let user: Vec<_> = list
            .user_properties()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let others = list.iter().filter(|it| !matches!(it, Property::UserProperty { .. }));
        let mut counts = BTreeMap::new();
        for other in others {
            *counts.entry(format!("{other:?}")).or_insert(0) += 1;
        }
        (user, counts)
    };
    assert_eq!(split(came), split(sent));
}

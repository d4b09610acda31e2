//! Reason codes and Reason Strings over the wire: what a v5 client is told about a message that nobody
//! has subscribed to, that is refused, or that ends its connection.

use mailboxqtt::codec::{
    Connect, Delivery, Packet, Properties, PropertiesBuf, Property, Publish, SubscribeOptions,
    Will, decode,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{PacketId, Qos};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello, PUBACK, PUBCOMP, PUBREC, PUBREL, publish, wait_for_counter};

/// Sections 3.4.2.1 and 3.5.2.1 of MQTT 5 [MQTT-3.4.2-1] [MQTT-3.5.2-1]; MQTT 3.1.1 has no such code.
#[test]
fn message_is_answered_with_0x10_while_nobody_has_subscribed_to_its_topic() {
    let broker = Broker::start();
    let (topic, filter) = (unique("nobody"), unique("nobody"));
    let wild = format!("{filter}/x");
    for topic in [&topic, &wild] {
        let filter = if *topic == wild { format!("{filter}/+") } else { topic.clone() };
        let mut sender = Client::connect(&broker, V5);
        let mut old_sender = Client::connect(&broker, V311);
        let mut reader = Client::connect(&broker, V5);
        for code in [0x10, 0, 0x10] {
            match code {
                0 => reader.subscribe(&filter, 0),
                _ => drop(reader.unsubscribe(&filter)),
            }
            sender.publish(topic, "x", 1, 1);
            assert_eq!(sender.next(), Got::Ack(PUBACK, 1, code), "{topic}");
            sender.retain(topic, "", 1, 2);
            assert_eq!(sender.next(), Got::Ack(PUBACK, 2, code), "{topic}");
            // A success: the flow goes on.
            sender.publish(topic, "x", 2, 3);
            assert_eq!(sender.next(), Got::Ack(PUBREC, 3, code), "{topic}");
            sender.ack(PUBREL, 3);
            assert_eq!(sender.next(), Got::Ack(PUBCOMP, 3, 0), "{topic}");

            old_sender.publish(topic, "x", 1, 1);
            assert_eq!(old_sender.next_frame().unwrap(), [PUBACK, 2, 0, 1]);
            if code == 0 {
                (0..4).for_each(|_| drop(reader.message()));
            }
        }
    }
    broker.stop();
}

/// [MQTT-4.6.0-2]: each answer in its place, though the shards speak one by one.
#[test]
fn answers_to_messages_for_somebody_and_for_nobody_keep_the_order_of_the_publishes() {
    let broker = Broker::start_with(&["--shards", "5"]);
    let mut reader = Client::connect(&broker, V5);
    reader.subscribe("even/#", 0);
    for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
        let mut sender = Client::connect(&broker, V5);
        let packets = (1..=900_u16).map(|id| {
            let side = if id % 2 == 0 { "even" } else { "odd" };
            publish(V5, &format!("{side}/{}", id / 30), b"", qos, id, false)
        });
        sender.send(&packets.collect::<Vec<_>>().concat());
        for id in 1..=900 {
            let code = if id % 2 == 0 { 0 } else { 0x10 };
            assert_eq!(sender.next(), Got::Ack(ack, id, code));
        }
    }
    broker.stop();
}

/// A subscription with No Local matches, though its owner gets nothing from itself: 0x10 says that no
/// subscription matches.
#[test]
fn publisher_alone_with_no_local_is_told_success() {
    let broker = Broker::start();
    let topic = unique("own");
    let mut client = Client::connect(&broker, V5);
    let options = SubscribeOptions { no_local: true, ..SubscribeOptions::new(Qos::AtLeastOnce) };
    client.subscribe_with(&[(&topic, options)]);
    client.publish(&topic, "x", 1, 7);
    assert_eq!(client.next(), Got::Ack(PUBACK, 7, 0));
    client.assert_silent();
    broker.stop();
}

/// The group is a subscriber, and the alias stands for the topic.
#[test]
fn group_of_a_shared_subscription_is_a_subscriber_also_to_a_topic_by_its_alias() {
    let broker = Broker::start();
    let topic = unique("group");
    let (mut sender, mut member) = (Client::connect(&broker, V5), Client::connect(&broker, V5));
    let mut properties = PropertiesBuf::new();
    properties.push(Property::TopicAlias(1));
    let mut send = |topic: &str, id, code| {
        let id = PacketId::new(id).unwrap();
        let delivery = Delivery::AtLeastOnce { id, dup: false };
        let properties = properties.as_properties();
        let packet = Publish { topic, payload: b"x", properties, delivery, retain: false };
        sender.send_packet(&Packet::Publish(packet));
        assert_eq!(sender.next(), Got::Ack(PUBACK, id.get(), code));
    };
    send(&topic, 1, 0x10);
    send("", 300, 0x10);
    member.subscribe(&format!("$share/g/{topic}"), 0);
    send("", 3, 0);
    assert_eq!(member.message().topic, topic);
    broker.stop();
}

/// [MQTT-3.4.2-2] [MQTT-3.1.2-29] [MQTT-3.14.2-3] [MQTT-3.1.0-2] [MQTT-3.1.4-3]
#[test]
fn reason_strings_say_why_to_those_who_want_and_can_take_them() {
    let broker = Broker::start();
    let open = |property: Option<Property<'_>>| {
        let id = unique("why");
        let hello = Hello::new(V5, &id);
        property.into_iter().fold(hello, Hello::with).open(broker.addr()).0
    };
    let sys = "$SYS/ topics belong to the broker: publish to another topic";
    for (property, expected) in [
        (None, Some(sys)),
        (Some(Property::RequestProblemInformation(true)), Some(sys)),
        (Some(Property::RequestProblemInformation(false)), None),
        (Some(Property::MaximumPacketSize(40)), None),
    ] {
        let mut client = open(property);
        client.publish("$SYS/x", "x", 1, 5);
        let (packet, code, why) = reason(&mut client);
        assert_eq!((packet, code, why.as_deref()), (PUBACK, 0x87, expected), "{property:?}");
    }

    // DISCONNECT may say why in any case. A second CONNECT is an error whatever is in it.
    let second = "protocol error: second CONNECT";
    let level = "invalid packet: protocol level 9 is not supported";
    for (property, connect, expected) in [
        (None, &b"\x10\x0D\0\x04MQTT\x05\x02\0\0\0\0\0"[..], Some(second)),
        (
            Some(Property::RequestProblemInformation(false)),
            b"\x10\x0C\0\x04MQTT\x09\x02\0\0\0\0",
            Some(level),
        ),
        (Some(Property::MaximumPacketSize(20)), b"\x10\x0C\0\x04MQTT\x09\x02\0\0\0\0", None),
    ] {
        let mut client = open(property);
        client.send(connect);
        let (packet, code, why) = reason(&mut client);
        assert_eq!((packet, code, why.as_deref()), (0xE0, 0x82, expected), "{property:?}");
        client.assert_closed();
    }

    let id = unique("twice");
    let (mut first, _) = Hello::new(V5, &id).open(broker.addr());
    let _second = Hello::new(V5, &id).open(broker.addr());
    let why = "another connection with this client identifier took the session over";
    assert_eq!(reason(&mut first), (0xE0, 0x8E, Some(why.to_owned())));
    first.assert_closed();
    broker.stop();
}

/// Section 3.3.2.3.2 of MQTT 5, and [MQTT-3.3.2-4] while the setting is off, which it is by default.
#[test]
fn text_that_is_none_is_refused_with_0x99_when_the_settings_say_so() {
    let (lax, strict) = (
        Broker::start(),
        Broker::start_configured("check_payload_format = true\nsys_interval_s = 1"),
    );
    for (payload, is_refused) in [("Grüße".as_bytes(), false), (b"\xFF", true)] {
        let topic = unique("text");
        let mut reader = Client::connect(&lax, V5);
        reader.subscribe(&topic, 0);
        Client::connect(&lax, V5).send(&text(&topic, payload, 0));
        let message = reader.message();
        assert_eq!((&message.payload[..], &message.properties[..]), (payload, &[1, 1][..]));

        let mut reader = Client::connect(&strict, V5);
        reader.subscribe(&topic, 0);
        for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
            let mut sender = Client::connect(&strict, V5);
            sender.send(&text(&topic, payload, qos));
            let code = if is_refused { 0x99 } else { 0 };
            assert_eq!(sender.next(), Got::Ack(ack, 1, code));
            if !is_refused {
                assert_eq!(reader.message().payload, payload);
            }
        }
        reader.assert_silent();

        let (mut client, answer) = connect_with_text_will(&strict, payload);
        match is_refused {
            true => {
                assert!(matches!(answer, Got::ConnAck(false, 0x99, _)), "{answer:?}");
                client.assert_closed();
            }
            false => assert!(matches!(answer, Got::ConnAck(false, 0, _)), "{answer:?}"),
        }
    }
    let mut sender = Client::connect(&strict, V5);
    sender.send(&text("t", b"\xFF", 0));
    sender.assert_closed_with(0x99);
    wait_for_counter(&strict, "publish/messages/dropped/payload_format_invalid", 3);
    lax.stop();
    strict.stop();
}

/// First byte, reason code and Reason String of the next packet.
fn reason(client: &mut Client) -> (u8, u8, Option<String>) {
    let frame = client.next_frame().expect("a packet before the end");
    let (code, properties) = match decode(&frame, V5).unwrap() {
        Packet::PubAck(ack) => (ack.reason, ack.properties),
        Packet::Disconnect(last) => (last.reason, last.properties),
        other => panic!("{other:?}"),
    };
    (frame[0], code.as_u8(), properties.reason_string().map(str::to_owned))
}

/// A PUBLISH with identifier 1 that says its payload is text.
fn text(topic: &str, payload: &[u8], qos: u8) -> Vec<u8> {
    let id = PacketId::FIRST;
    let delivery = match qos {
        0 => Delivery::AtMostOnce,
        1 => Delivery::AtLeastOnce { id, dup: false },
        _ => Delivery::ExactlyOnce { id, dup: false },
    };
    let mut properties = PropertiesBuf::new();
    properties.push(Property::PayloadFormatIndicator(true));
    let properties = properties.as_properties();
    let mut bytes = Vec::new();
    let packet = Publish { topic, payload, properties, delivery, retain: false };
    Packet::Publish(packet).encode(V5, &mut bytes);
    bytes
}

fn connect_with_text_will(broker: &Broker, payload: &[u8]) -> (Client, Got) {
    let id = unique("will");
    let mut properties = PropertiesBuf::new();
    properties.push(Property::PayloadFormatIndicator(true));
    let qos = Qos::AtMostOnce;
    let will_properties = properties.as_properties();
    let will = Will { topic: &id, payload, qos, retain: false, properties: will_properties };
    let mut client = Client::raw(broker.addr(), V5);
    client.send_packet(&Packet::Connect(Connect {
        version: V5,
        clean_start: true,
        keep_alive_s: 0,
        client_id: &id,
        properties: Properties::EMPTY,
        will: Some(will),
        user_name: None,
        password: None,
    }));
    let answer = client.next();
    (client, answer)
}

//! Receive Maximum: how many messages of QoS 1 and 2 may be on their way (3.3.4 and 4.9).

use std::collections::VecDeque;

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::V5;

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS,
};

/// [MQTT-3.3.4-9], and section 3.1.2.11.3: QoS 0 is not counted.
#[test]
fn window_of_the_clients_receive_maximum_is_kept_while_qos_0_flows_past_it() {
    let broker = Broker::start();
    let topic = unique("window");
    let hello = Hello::new(V5, &topic).with(Property::ReceiveMaximum(2));
    let (mut receiver, _) = hello.open(broker.addr());
    receiver.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    for number in 0..5 {
        sender.deliver(&topic, number.to_string());
    }
    let (first, second) = (receiver.message(), receiver.message());
    assert_eq!((first.text(), second.text()), ("0", "1"));
    receiver.assert_silent();
    sender.publish(&topic, "past", 0, 0);
    assert_eq!(receiver.message().text(), "past");
    receiver.assert_silent();

    receiver.ack(PUBACK, second.id);
    let third = receiver.message();
    assert_eq!(third.text(), "2");
    receiver.assert_silent();
    receiver.ack(PUBACK, first.id);
    receiver.ack(PUBACK, third.id);
    assert_eq!((receiver.message().text(), receiver.message().text()), ("3", "4"));
    broker.stop();
}

/// PUBACK and PUBCOMP make room, and so does a PUBREC that refuses; one that does not refuse is half
/// the way. [MQTT-3.3.4-9]
#[test]
fn window_is_kept_for_messages_of_both_kinds_whatever_ends_them() {
    const MESSAGES: usize = 40;
    let broker = Broker::start();
    for max in [1, 2, 7] {
        let topic = unique("both");
        let hello = Hello::new(V5, &topic).with(Property::ReceiveMaximum(max));
        let (mut receiver, _) = hello.open(broker.addr());
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, V5);
        for number in 0..MESSAGES {
            sender.deliver_at(&topic, number.to_string(), 1 + (number / 3 % 2) as u8);
        }
        let mut open: VecDeque<Message> = VecDeque::new();
        for number in 0..MESSAGES {
            open.extend(receiver.drain());
            let left = MESSAGES - number;
            assert_eq!(open.len(), left.min(max.into()), "{open:?}");
            // Now the oldest, now the newest.
            let one = if number % 2 == 0 { open.pop_front() } else { open.pop_back() };
            let one = one.unwrap();
            match (one.qos, number % 4) {
                (1, 0 | 1) => receiver.ack(PUBACK, one.id),
                (1, _) => receiver.ack_with(PUBACK, one.id, 0x97, &[]),
                (_, 0 | 1) => {
                    receiver.ack(PUBREC, one.id);
                    assert_eq!(receiver.next(), Got::Ack(PUBREL, one.id, 0));
                    receiver.assert_silent();
                    receiver.ack(PUBCOMP, one.id);
                }
                (_, _) => receiver.ack_with(PUBREC, one.id, 0x97, &[]),
            }
        }
        receiver.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.3.4-9]: all retained messages come, as the window allows.
#[test]
fn window_is_kept_for_retained_messages() {
    let broker = Broker::start();
    let (stem, id) = (unique("retained"), unique("retained"));
    let mut sender = Client::connect(&broker, V5);
    for number in 0..20_u16 {
        let topic = format!("{stem}/{number}");
        let packet = Publication::new(&topic, "x").qos(1 + (number % 2) as u8, 9).retain();
        sender.deliver_publication(&packet);
    }
    let hello = Hello::new(V5, &id).with(Property::ReceiveMaximum(3));
    let (mut receiver, _) = hello.open(broker.addr());
    receiver.subscribe(&format!("{stem}/+"), 2);
    let mut topics = Vec::new();
    while topics.len() < 20 {
        let mut open = vec![receiver.message()];
        open.extend(receiver.drain());
        assert!(open.len() <= 3, "{open:?}");
        for message in open {
            // What comes in its place comes later.
            match message.qos {
                1 => receiver.ack(PUBACK, message.id),
                _ => receiver.ack_with(PUBREC, message.id, 0x83, &[]),
            }
            topics.push(message.topic);
        }
    }
    topics.sort();
    topics.dedup();
    assert_eq!(topics.len(), 20);
    receiver.assert_silent();
    broker.stop();
}

/// Each connection of a session has a Receive Maximum of its own, also for what is sent again.
/// [MQTT-3.3.4-9]
#[test]
fn window_of_the_new_connection_counts_for_what_is_sent_again() {
    let broker = Broker::start();
    let (topic, id) = (unique("narrower"), unique("narrower"));
    let hello = Hello::persistent(V5, &id);
    let (mut receiver, _) = hello.clone().with(Property::ReceiveMaximum(6)).open(broker.addr());
    receiver.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    for number in 0..8 {
        sender.deliver_at(&topic, number.to_string(), 1 + number % 2);
    }
    assert_eq!(receiver.drain().len(), 6);
    drop(receiver);
    let (mut receiver, _) = hello.with(Property::ReceiveMaximum(2)).open(broker.addr());
    let mut texts = Vec::new();
    for number in 0..8 {
        let mut open = receiver.drain();
        assert_eq!(open.len(), if number == 0 { 2 } else { usize::from(number < 7) }, "{open:?}");
        assert!(open.iter().all(|message| message.dup == (message.text() < "6")), "{open:?}");
        texts.append(&mut open);
        // In the order in which they came: one open message is kept back.
        let message = texts[number].clone();
        match message.qos {
            1 => receiver.ack(PUBACK, message.id),
            _ => receiver.ack_with(PUBREC, message.id, 0x83, &[]),
        }
    }
    let texts: Vec<&str> = texts.iter().map(Message::text).collect();
    assert_eq!(texts, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    receiver.assert_silent();
    broker.stop();
}

/// [MQTT-3.3.4-10]
#[test]
fn packets_other_than_publish_do_not_wait_for_the_window() {
    let broker = Broker::start();
    for qos in 1..=2 {
        let (topic, other) = (unique("full"), unique("full"));
        let hello = Hello::new(V5, &topic).with(Property::ReceiveMaximum(1));
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, qos);
        let mut sender = Client::connect(&broker, V5);
        for text in ["open", "waiting"] {
            sender.deliver_at(&topic, text, qos);
        }
        let open = client.message();
        client.assert_silent();
        client.subscribe(&other, 1);
        assert_eq!(client.unsubscribe(&other), [0]);
        client.deliver(&other, "x");
        client.deliver_at(&other, "x", 2);
        // Its own message, too, only waits.
        client.deliver_at(&topic, "own", qos);
        if qos == 2 {
            for _ in 0..2 {
                client.ack(PUBREC, open.id);
                assert_eq!(client.next(), Got::Ack(PUBREL, open.id, 0));
            }
        }
        client.assert_silent();
        client.ack(if qos == 1 { PUBACK } else { PUBCOMP }, open.id);
        let waiting = client.message();
        assert_eq!(waiting.text(), "waiting");
        client.take(&waiting);
        assert_eq!(client.message().text(), "own");
    }
    broker.stop();
}

/// Before MQTT 5 there is none, and a broker may send as few as it likes at a time: but not none.
#[test]
fn client_of_3_1_1_gets_all_that_it_acknowledges() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("all");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for number in 0..100 {
            sender.deliver_at(&topic, number.to_string(), 1 + (number % 2) as u8);
        }
        let mut came = VecDeque::new();
        for number in 0..100 {
            let message = match came.pop_front() {
                Some(message) => message,
                None => receiver.message(),
            };
            assert_eq!(message.text(), number.to_string());
            // What comes meanwhile is kept.
            match message.qos {
                1 => receiver.ack(PUBACK, message.id),
                _ => {
                    receiver.ack(PUBREC, message.id);
                    loop {
                        match receiver.next() {
                            Got::Publish(message) => came.push_back(message),
                            got => break assert_eq!(got, Got::Ack(PUBREL, message.id, 0)),
                        }
                    }
                    receiver.ack(PUBCOMP, message.id);
                }
            }
        }
        receiver.assert_silent();
    }
    broker.stop();
}

/// Section 3.3.4: 0x93, and as many as were announced are fine. [MQTT-3.3.4-7]
#[test]
fn client_that_passes_the_receive_maximum_of_the_broker_is_refused() {
    let broker = Broker::start();
    let topic = unique("passes");
    let mut client = Client::connect(&broker, V5);
    let Some(max) = client.properties().receive_maximum() else { return };
    for id in 1..=max {
        client.publish(&topic, "x", 2, id);
        assert!(matches!(client.next(), Got::Ack(PUBREC, got, 0 | 0x10) if got == id));
    }
    // One that is sent again is none more, and one that is complete is one less.
    client.send_publication(&Publication::new(&topic, "x").qos(2, 1).dup());
    assert!(matches!(client.next(), Got::Ack(PUBREC, 1, 0 | 0x10)));
    client.ack(PUBREL, 1);
    assert_eq!(client.next(), Got::Ack(PUBCOMP, 1, 0));
    client.deliver(&topic, "x");
    client.publish(&topic, "x", 0, 0);
    client.publish(&topic, "x", 2, max + 1);
    assert!(matches!(client.next(), Got::Ack(PUBREC, got, 0 | 0x10) if got == max + 1));
    client.publish(&topic, "x", 1, max + 2);
    client.assert_refused(&[0x93]);
    broker.stop();
}

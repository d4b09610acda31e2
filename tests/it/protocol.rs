//! The flows of the standard against the running broker, byte by byte where bytes matter.
//!
//! Where both versions have to do the same, a test loops over them. Where something must *not*
//! arrive, the publisher awaits its PUBACK, after which the broker has put the message into every
//! mailbox, and then the subscriber pings: see `Client::assert_silent`.

use mailboxqtt::codec::{
    Packet, Properties, PropertiesBuf, Property, Publish, RetainHandling, SubscribeOptions,
};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{PacketId, Qos};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, VERSIONS};

/// [MQTT-4.3.3-11]; MQTT 5 has a code for it, section 3.7.2.1.
#[test]
fn pubrel_and_pubrec_of_an_unknown_identifier_are_answered() {
    let broker = Broker::start();
    for (version, code) in [(V311, 0), (V5, 0x92)] {
        let mut client = Client::connect(&broker, version);
        client.ack(PUBREL, 99);
        assert_eq!(client.next(), Got::Ack(PUBCOMP, 99, code));
        client.ack(PUBREC, 99);
        assert_eq!(client.next(), Got::Ack(PUBREL, 99, code));
        client.ack(PUBACK, 99);
        client.ack(PUBCOMP, 99);
        client.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.8.4-6 of 3.1.1], [MQTT-3.8.4-8]
#[test]
fn message_arrives_with_the_lower_qos_of_publisher_and_subscriber() {
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            let topic = unique("lower");
            let mut sender = Client::connect(&broker, from);
            for granted in 0..=2 {
                let mut receiver = Client::connect(&broker, to);
                receiver.subscribe(&topic, granted);
                for sent in 0..=2 {
                    sender.publish(&topic, [sent], sent, u16::from(sent) + 1);
                    let message = receiver.message();
                    assert_eq!(
                        (message.qos, &message.payload[..]),
                        (sent.min(granted), &[sent][..])
                    );
                    match sent {
                        0 => (),
                        1 => assert_eq!(sender.next(), Got::Ack(PUBACK, 2, 0)),
                        _ => {
                            assert_eq!(sender.next(), Got::Ack(PUBREC, 3, 0));
                            sender.ack(PUBREL, 3);
                            assert_eq!(sender.next(), Got::Ack(PUBCOMP, 3, 0));
                        }
                    }
                }
            }
        }
    }
    broker.stop();
}

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

/// [MQTT-3.3.5-1 of 3.1.1], [MQTT-3.3.4-2]
#[test]
fn overlapping_subscriptions_give_one_copy_at_the_highest_qos() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("overlap");
        let mut receiver = Client::connect(&broker, version);
        let (level, tree, exact) =
            (format!("{topic}/+"), format!("{topic}/#"), format!("{topic}/a"));
        let filters = [(&exact[..], 0), (&level, 2), (&tree, 1)];
        assert_eq!(receiver.subscribe_all(&filters), [0, 2, 1]);
        let mut sender = Client::connect(&broker, version);
        sender.publish(&exact, "x", 2, 1);
        assert_eq!(sender.next(), Got::Ack(PUBREC, 1, 0));
        assert_eq!(receiver.message().qos, 2);
        receiver.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.3.1-5] [MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-3.3.1-8] [MQTT-3.3.1-12]
/// [MQTT-3.3.1-5 of 3.1.1] [MQTT-3.3.1-8 of 3.1.1] [MQTT-3.3.1-9 of 3.1.1] [MQTT-3.3.1-10 of 3.1.1]
/// [MQTT-3.3.1-11 of 3.1.1] [MQTT-3.3.1-12 of 3.1.1]
#[test]
fn retain_flag_is_set_on_replay_only_and_an_empty_payload_removes_the_message() {
    let broker = Broker::start_with(&["--shards", "1"]);
    for version in VERSIONS {
        let stem = unique("keep");
        let (one, two, tree) = (format!("{stem}/1"), format!("{stem}/2"), format!("{stem}/#"));
        let (mut sender, mut live) =
            (Client::connect(&broker, version), Client::connect(&broker, version));
        live.subscribe(&tree, 0);
        sender.deliver_retained(&one, "old");
        sender.deliver_retained(&one, "new");
        sender.deliver(&one, "passing");
        sender.deliver_retained(&two, "two");
        for text in ["old", "new", "passing", "two"] {
            let message = live.message();
            assert_eq!((message.text(), message.retain), (text, false));
        }
        let mut late = Client::connect(&broker, version);
        late.subscribe(&tree, 1);
        for text in ["new", "two"] {
            let message = late.message();
            assert_eq!((message.text(), message.retain, message.qos), (text, true, 1));
        }

        sender.deliver_retained(&one, "");
        let message = live.message();
        assert_eq!((message.text(), message.retain), ("", false));
        let mut late = Client::connect(&broker, version);
        late.subscribe(&tree, 0);
        assert_eq!(late.message().text(), "two");
        late.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.3.1-9], for more than the queue of the subscriber holds.
#[test]
fn slow_reader_gets_all_of_5000_retained_messages_although_its_queue_is_small() {
    const MESSAGES: usize = 5_000;
    let broker = Broker::start_configured("queue_messages_max = 50\nqueue_bytes_max = 65536");
    let mut sender = Client::connect(&broker, V311);
    let payload = vec![b'x'; 1_000];
    for number in 0..MESSAGES {
        sender.retain(&format!("many/{number}"), &payload, 1, number as u16 + 1);
    }
    for number in 0..MESSAGES {
        assert_eq!(sender.next(), Got::Ack(PUBACK, number as u16 + 1, 0));
    }
    for version in VERSIONS {
        let id = unique("slow");
        let hello = match version {
            V5 => Hello::new(V5, &id).with(Property::ReceiveMaximum(100)),
            version => Hello::new(version, &id),
        };
        let (mut receiver, _) = hello.open(broker.addr());
        let mut other = Client::connect(&broker, version);
        receiver.subscribe("many/#", 1);
        let mut seen = std::collections::HashSet::new();
        while seen.len() < MESSAGES {
            let message = receiver.message();
            assert!(message.retain && message.payload.len() == 1_000);
            assert!(seen.insert(message.topic.clone()), "{} came twice", message.topic);
            receiver.ack(PUBACK, message.id);
            if seen.len() % 100 == 0 {
                other.assert_silent();
            }
        }
        receiver.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.8.4-1] [MQTT-3.8.4-3] [MQTT-3.8.4-4] [MQTT-3.10.4-2]
#[test]
fn retained_message_follows_each_suback_and_unsubscribe_ends_the_messages() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("follow");
        let mut client = Client::connect(&broker, version);
        let mut sender = Client::connect(&broker, version);
        sender.deliver_retained(&topic, "kept");
        for _ in 0..3 {
            // `subscribe` fails when anything comes before the SUBACK.
            client.subscribe(&topic, 0);
            assert_eq!(client.message().text(), "kept");
        }
        sender.deliver(&topic, "live");
        assert_eq!(client.message().text(), "live");
        let (known, unknown): (&[u8], &[u8]) =
            if version == V5 { (&[0], &[0x11]) } else { (&[], &[]) };
        assert_eq!(client.unsubscribe(&topic), known);
        sender.deliver(&topic, "late");
        client.assert_silent();
        assert_eq!(client.unsubscribe(&topic), unknown);
    }
    broker.stop();
}

/// [MQTT-3.3.2-4] [MQTT-3.3.2-15] [MQTT-3.3.2-16] [MQTT-3.3.2-17] [MQTT-3.3.2-18] [MQTT-3.3.2-20]
#[test]
fn properties_are_forwarded_in_order_to_v5_and_to_nobody_else() {
    let broker = Broker::start();
    let mut properties = PropertiesBuf::new();
    for number in 0..20 {
        let value = &format!("v{}", 19 - number);
        properties.push(Property::UserProperty { name: "n", value });
        match number {
            3 => properties.push(Property::ContentType("text/plain")),
            5 => properties.push(Property::ResponseTopic("answer/here")),
            7 => properties.push(Property::CorrelationData(b"\0\x01")),
            9 => properties.push(Property::PayloadFormatIndicator(true)),
            _ => &mut properties,
        };
    }
    let properties = properties.as_properties();
    for qos in 0..=2 {
        let topic = unique("props");
        let (mut new, mut old) = (Client::connect(&broker, V5), Client::connect(&broker, V311));
        new.subscribe(&topic, qos);
        old.subscribe(&topic, qos);
        let delivery = match qos {
            0 => mailboxqtt::codec::Delivery::AtMostOnce,
            1 => mailboxqtt::codec::Delivery::AtLeastOnce { id: PacketId::FIRST, dup: false },
            _ => mailboxqtt::codec::Delivery::ExactlyOnce { id: PacketId::FIRST, dup: false },
        };
        let packet =
            Publish { topic: &topic, payload: b"body", properties, delivery, retain: true };
        let mut sender = Client::connect(&broker, V5);
        sender.send_packet(&Packet::Publish(packet));
        let mut late = Client::connect(&broker, V5);
        let message = new.message();
        assert_eq!(Properties::from_validated(&message.properties), properties);
        let plain = Message { properties: Vec::new(), ..message.clone() };
        assert_eq!(old.message(), plain);
        late.subscribe(&topic, qos);
        assert_eq!(late.message(), Message { retain: true, ..message });
    }
    broker.stop();
}

/// [MQTT-3.8.3-3]
#[test]
fn own_messages_do_not_come_back_with_no_local() {
    let broker = Broker::start();
    let topic = unique("local");
    let mut client = Client::connect(&broker, V5);
    let no_local = SubscribeOptions { no_local: true, ..SubscribeOptions::new(Qos::AtLeastOnce) };
    assert_eq!(client.subscribe_with(&[(&topic, no_local)]), [1]);
    client.deliver(&topic, "mine");
    client.assert_silent();
    Client::connect(&broker, V5).deliver(&topic, "theirs");
    assert_eq!(client.message().text(), "theirs");
    broker.stop();
}

/// [MQTT-3.3.1-12] [MQTT-3.3.1-13]
#[test]
fn retain_flag_is_kept_on_live_messages_with_retain_as_published() {
    let broker = Broker::start();
    for from in VERSIONS {
        let topic = unique("asis");
        let mut client = Client::connect(&broker, V5);
        let as_published = SubscribeOptions {
            retain_as_published: true,
            ..SubscribeOptions::new(Qos::AtLeastOnce)
        };
        assert_eq!(client.subscribe_with(&[(&topic, as_published)]), [1]);
        let mut sender = Client::connect(&broker, from);
        sender.deliver(&topic, "plain");
        sender.deliver_retained(&topic, "kept");
        let (plain, kept) = (client.message(), client.message());
        assert_eq!((plain.retain, kept.retain), (false, true));
    }
    broker.stop();
}

/// [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
#[test]
fn retain_handling_says_when_retained_messages_are_sent() {
    let broker = Broker::start_with(&["--shards", "1"]);
    let (topic, marker) = (unique("handling"), unique("marker"));
    let mut client = Client::connect(&broker, V5);
    let mut sender = Client::connect(&broker, V5);
    sender.deliver_retained(&topic, "kept");
    sender.deliver_retained(&marker, "mark");
    let handling = |retain_handling| SubscribeOptions {
        retain_handling,
        ..SubscribeOptions::new(Qos::AtMostOnce)
    };
    // The marker is asked for behind the topic in one SUBSCRIBE, and one shard replays in that order.
    let replayed = |client: &mut Client, options| {
        let mark = SubscribeOptions::new(Qos::AtMostOnce);
        assert_eq!(client.subscribe_with(&[(&topic, options), (&marker, mark)]), [0, 0]);
        let first = client.message();
        if first.topic == marker {
            return false;
        }
        assert_eq!(client.message().topic, marker);
        true
    };
    assert!(!replayed(&mut client, handling(RetainHandling::DoNotSend)));
    assert!(!replayed(&mut client, handling(RetainHandling::SendIfNew)));
    assert!(replayed(&mut client, handling(RetainHandling::Send)));
    assert!(!replayed(&mut client, handling(RetainHandling::SendIfNew)));
    client.unsubscribe(&topic);
    assert!(replayed(&mut client, handling(RetainHandling::SendIfNew)));
    assert!(replayed(&mut client, handling(RetainHandling::Send)));
    broker.stop();
}

/// [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1] [MQTT-4.7.1-1] [MQTT-4.7.1-2]
/// [MQTT-4.7.1-2 of 3.1.1] [MQTT-4.7.1-3 of 3.1.1]
#[test]
fn suback_has_a_code_for_each_filter_in_order_and_the_good_ones_count() {
    let broker = Broker::start();
    for (version, invalid) in [(V311, 0x80), (V5, 0x8F)] {
        let stem = unique("codes");
        let mut client = Client::connect(&broker, version);
        let (good, last) = (format!("{stem}/a"), format!("{stem}/b/#"));
        let filters = [
            (&good[..], 2),
            ("a/#/b", 1),
            ("a+", 0),
            ("+a/b", 0),
            ("a#", 0),
            ("", 0),
            ("$share/group/", 0),
            ("$share/group/a", 0),
            (&last, 1),
        ];
        let codes = client.subscribe_all(&filters);
        assert_eq!(codes, [2, invalid, invalid, invalid, invalid, invalid, invalid, 0, 1]);
        let mut sender = Client::connect(&broker, version);
        sender.deliver(&good, "a");
        sender.deliver(&format!("{stem}/b"), "b");
        assert_eq!((client.message().text(), client.message().text()), ("a", "b"));
    }
    broker.stop();
}

/// [MQTT-3.8.4-1], and that SUBACK means it: design of the router.
#[test]
fn subscription_is_in_force_on_every_shard_when_its_suback_has_come() {
    let broker = Broker::start_with(&["--shards", "5"]);
    let mut sender = Client::connect(&broker, V311);
    for version in VERSIONS {
        let mut client = Client::connect(&broker, version);
        for number in 0..200 {
            let topic = unique("at");
            let filter = if number % 2 == 0 { topic.clone() } else { format!("{topic}/#") };
            // Now a route of the topic without subscribers is in the cache.
            sender.deliver(&topic, "before");
            client.subscribe(&filter, 0);
            sender.publish(&topic, "after", 0, 0);
            let message = client.message();
            assert_eq!((message.topic, message.payload), (topic, b"after".to_vec()));
        }
    }
    broker.stop();
}

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
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, VERSIONS, publish,
};

/// [MQTT-4.3.1-1] [MQTT-4.3.2-1] [MQTT-4.3.2-4] [MQTT-4.3.3-8] [MQTT-4.3.3-11]
#[test]
fn each_qos_has_its_flow_byte_for_byte_in_both_directions() {
    let broker = Broker::start();
    for (version, filler) in [(V311, &[][..]), (V5, &[0][..])] {
        let frame = |first: u8, id: &[u8]| {
            let body = [&b"\0\x01f"[..], id, filler, b"hi"].concat();
            [&[first, body.len() as u8][..], &body].concat()
        };
        let (mut sender, mut receiver) =
            (Client::connect(&broker, version), Client::connect(&broker, version));
        receiver.subscribe("f", 2);
        let next = |client: &mut Client| client.next_frame().unwrap();

        sender.send(&frame(0x30, &[]));
        assert_eq!(next(&mut receiver), frame(0x30, &[]));

        sender.send(&frame(0x32, &[1, 2]));
        assert_eq!(next(&mut sender), [0x40, 2, 1, 2]);
        assert_eq!(next(&mut receiver), frame(0x32, &[0, 1]));
        receiver.send(&[0x40, 2, 0, 1]);

        sender.send(&frame(0x34, &[3, 4]));
        assert_eq!(next(&mut sender), [0x50, 2, 3, 4]);
        sender.send(&[0x62, 2, 3, 4]);
        assert_eq!(next(&mut sender), [0x70, 2, 3, 4]);
        assert_eq!(next(&mut receiver), frame(0x34, &[0, 2]));
        receiver.send(&[0x50, 2, 0, 2]);
        assert_eq!(next(&mut receiver), [0x62, 2, 0, 2]);
        receiver.send(&[0x70, 2, 0, 2]);
        receiver.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.6.0-2] [MQTT-4.6.0-3]
#[test]
fn acknowledgements_leave_in_the_order_of_the_publishes_over_many_shards() {
    let broker = Broker::start_with(&["--shards", "7"]);
    for version in VERSIONS {
        for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
            let mut client = Client::connect(&broker, version);
            let ids = 1..=900_u16;
            let packets =
                ids.clone().map(|id| publish(version, &format!("order/{id}"), b"", qos, id, false));
            client.send(&packets.collect::<Vec<_>>().concat());
            for id in ids {
                assert!(
                    matches!(client.next(), Got::Ack(first, got, _) if (first, got) == (ack, id))
                );
            }
        }
    }
    broker.stop();
}

/// [MQTT-4.3.3-10] [MQTT-4.3.3-11] [MQTT-4.3.3-12]
#[test]
fn qos_2_message_sent_again_is_answered_again_and_routed_once_until_pubrel() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("twice");
        let (mut sender, mut receiver) =
            (Client::connect(&broker, version), Client::connect(&broker, version));
        receiver.subscribe(&topic, 0);
        let first = publish(version, &topic, b"x", 2, 7, false);
        let mut again = first.clone();
        again[0] |= 0b1000;
        for bytes in [&first, &again, &again] {
            sender.send(bytes);
            assert!(matches!(sender.next(), Got::Ack(PUBREC, 7, 0 | 0x10)));
        }
        assert_eq!(receiver.message().text(), "x");
        receiver.assert_silent();

        sender.ack(PUBREL, 7);
        assert_eq!(sender.next(), Got::Ack(PUBCOMP, 7, 0));
        // The identifier is free: the same bytes are a new message now.
        sender.send(&first);
        assert!(matches!(sender.next(), Got::Ack(PUBREC, 7, 0 | 0x10)));
        assert_eq!(receiver.message().text(), "x");
    }
    broker.stop();
}

/// [MQTT-4.3.3-10]: also when the connection was lost between PUBREC and PUBREL.
#[test]
fn qos_2_identifier_is_remembered_over_a_lost_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, id) = (unique("lost"), unique("lost"));
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        let (mut sender, _) = Hello::persistent(version, &id).open(broker.addr());
        sender.publish(&topic, "x", 2, 3);
        assert!(matches!(sender.next(), Got::Ack(PUBREC, 3, _)));
        drop(sender);

        let (mut sender, present) = Hello::persistent(version, &id).open(broker.addr());
        assert!(present);
        let mut again = publish(version, &topic, b"x", 2, 3, false);
        again[0] |= 0b1000;
        sender.send(&again);
        assert!(matches!(sender.next(), Got::Ack(PUBREC, 3, _)));
        sender.ack(PUBREL, 3);
        assert_eq!(sender.next(), Got::Ack(PUBCOMP, 3, 0));
        assert_eq!(receiver.message().qos, 2);
        receiver.assert_silent();
    }
    broker.stop();
}

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

/// [MQTT-4.4.0-1] [MQTT-4.6.0-1] [MQTT-3.3.1-1] [MQTT-4.3.3-6]
#[test]
fn open_messages_are_sent_again_with_dup_and_their_identifiers_in_order() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, id) = (unique("again"), unique("again"));
        let (mut receiver, _) = Hello::persistent(version, &id).open(broker.addr());
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for (index, qos) in [1, 2, 1, 2, 1].into_iter().enumerate() {
            sender.publish(&topic, [b'a' + index as u8], qos, index as u16 + 1);
            assert!(matches!(sender.next(), Got::Ack(..)));
        }
        let first: Vec<Message> = (0..5).map(|_| receiver.message()).collect();
        assert!(first.iter().all(|message| !message.dup));
        // The third is done, the second and fourth are half done, out of order.
        receiver.ack(PUBACK, first[2].id);
        for index in [3, 1] {
            receiver.ack(PUBREC, first[index].id);
            assert_eq!(receiver.next(), Got::Ack(PUBREL, first[index].id, 0));
        }
        drop(receiver);

        let (mut receiver, present) = Hello::persistent(version, &id).open(broker.addr());
        assert!(present);
        let dup = |message: &Message| Message { dup: true, ..message.clone() };
        assert_eq!(receiver.message(), dup(&first[0]));
        assert_eq!(receiver.next(), Got::Ack(PUBREL, first[1].id, 0));
        assert_eq!(receiver.next(), Got::Ack(PUBREL, first[3].id, 0));
        assert_eq!(receiver.message(), dup(&first[4]));
        receiver.ack(PUBACK, first[0].id);
        receiver.ack(PUBACK, first[4].id);
        receiver.ack(PUBCOMP, first[1].id);
        receiver.ack(PUBCOMP, first[3].id);
        receiver.assert_silent();
        receiver.disconnect();

        let (mut receiver, _) = Hello::persistent(version, &id).open(broker.addr());
        receiver.assert_silent();
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

/// [MQTT-4.7.2-1]
#[test]
fn wildcard_in_first_place_matches_no_topic_that_begins_with_a_dollar() {
    let broker = Broker::start_with(&["--shards", "1"]);
    for version in VERSIONS {
        let mut sender = Client::connect(&broker, version);
        sender.deliver_retained("$own/r", "hidden");
        sender.deliver_retained("plain/r", "seen");
        for filter in ["#", "+/r"] {
            let mut receiver = Client::connect(&broker, version);
            receiver.subscribe(filter, 0);
            // `$` comes before `p` in the one shard's replay.
            assert_eq!(receiver.message().topic, "plain/r");
            sender.deliver("$own/r", "hidden");
            receiver.assert_silent();
        }
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe("$own/#", 0);
        assert_eq!(receiver.message().topic, "$own/r");
        receiver.subscribe("$SYS/broker/version", 0);
        assert!(receiver.message().text().starts_with("mailboxqtt"));
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

/// [MQTT-4.4.0-1]: what wakes a connection belongs to it and not to the one before it.
#[test]
fn message_after_a_resume_arrives_without_a_word_from_the_client() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("woken"), unique("woken"));
        let hello = Hello::persistent(version, &id);
        let mut sender = Client::connect(&broker, version);
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 0);
        for number in 0..10 {
            client.assert_silent();
            client.disconnect();
            client = hello.open(broker.addr()).0;
            sender.deliver(&topic, number.to_string());
            assert_eq!(client.message().text(), number.to_string());
            sender.deliver(&topic, "once more");
            assert_eq!(client.message().text(), "once more");
        }
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

/// [MQTT-4.5.0-1] [MQTT-4.6.0-6] [MQTT-3.1.2-5 of 3.1.1] [MQTT-4.5.0-1 of 3.1.1]
#[test]
fn qos_1_and_2_wait_for_a_client_that_is_away_in_order_and_qos_0_does_not() {
    // The last one is of QoS 2, so all of QoS 0 were routed before it.
    const MESSAGES: u16 = 599;
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            let (id, topic) = (unique("away"), unique("away"));
            let hello = Hello::persistent(to, &id);
            let (mut client, _) = hello.open(broker.addr());
            client.subscribe(&topic, 2);
            client.disconnect();
            let mut sender = Client::connect(&broker, from);
            for number in 1..=MESSAGES {
                let qos = (number % 3) as u8;
                sender.publish(&topic, number.to_string(), qos, number);
                if qos > 0 {
                    assert!(matches!(sender.next(), Got::Ack(_, got, 0) if got == number));
                }
                if qos == 2 {
                    sender.ack(PUBREL, number);
                    assert!(matches!(sender.next(), Got::Ack(PUBCOMP, got, 0) if got == number));
                }
            }
            let (mut client, present) = hello.open(broker.addr());
            assert!(present);
            for number in (1..=MESSAGES).filter(|number| number % 3 != 0) {
                let message = client.message();
                let expected = (number.to_string(), (number % 3) as u8, false);
                assert_eq!((message.text().to_owned(), message.qos, message.dup), expected);
            }
            client.assert_silent();
        }
    }
    broker.stop();
}

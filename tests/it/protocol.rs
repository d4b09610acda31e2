//! The flows of the standard against the running broker, byte by byte where bytes matter.
//!
//! Where both versions have to do the same, a test loops over them. Where something must *not*
//! arrive, the publisher awaits its PUBACK, after which the broker has put the message into every
//! mailbox, and then the subscriber pings: see `Client::assert_silent`.

use mailboxqtt::codec::SubscribeOptions;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::Qos;

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

//! PUBLISH (3.3): the packet itself and its answer. Each of the larger matters has a file of its own.

mod alias;
mod copies;
mod expiry;
mod flow;
mod properties;
mod retained;

use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS, frame,
    string,
};

/// [MQTT-3.3.1-1] [MQTT-3.3.1-1 of 3.1.1]
#[test]
fn message_that_is_sent_again_has_dup_and_one_that_is_sent_for_the_first_time_has_not() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, id) = (unique("again"), unique("again"));
        let hello = Hello::persistent(version, &id);
        let (mut receiver, _) = hello.open(broker.addr());
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for qos in [1, 2] {
            sender.deliver_at(&topic, [qos], qos);
        }
        let sent = [receiver.message(), receiver.message()];
        assert!(sent.iter().all(|message| !message.dup), "{sent:?}");
        // Each loss of the connection is a reason to send them again, and more than one as well.
        for round in 3..=4 {
            drop(receiver);
            sender.deliver_at(&topic, [round], 1);
            receiver = hello.open(broker.addr()).0;
            for message in &sent {
                let expected = Message { dup: true, ..message.clone() };
                assert_eq!(receiver.message(), expected);
            }
            let new = receiver.message();
            assert_eq!((&new.payload[..], new.dup), (&[round][..], false));
            receiver.ack(PUBACK, new.id);
            receiver.assert_silent();
        }
    }
    broker.stop();
}

/// [MQTT-3.3.1-2] [MQTT-3.3.1-3] [MQTT-3.3.1-2 of 3.1.1] [MQTT-3.3.1-3 of 3.1.1]
#[test]
fn dup_of_what_was_published_is_not_that_of_what_is_delivered() {
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            for granted in 0..=2 {
                let topic = unique("dup");
                let (mut sender, mut live) =
                    (Client::connect(&broker, from), Client::connect(&broker, to));
                live.subscribe(&topic, granted);
                for qos in 1..=2 {
                    let again = Publication::new(&topic, "x").qos(qos, 7).dup().retain();
                    sender.deliver_publication(&again);
                    let mut late = Client::connect(&broker, to);
                    late.subscribe(&topic, granted);
                    for client in [&mut live, &mut late] {
                        let message = client.message();
                        assert_eq!((message.qos, message.dup), (qos.min(granted), false));
                    }
                }
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.3.1-2] [MQTT-3.3.1-4] [MQTT-3.3.1-2 of 3.1.1] [MQTT-3.3.1-4 of 3.1.1]
#[test]
fn dup_without_an_acknowledgement_and_a_qos_of_3_end_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("flags");
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 2);
        for (first_byte, id, codes) in [
            (0x38, &[][..], &[0x81, 0x82][..]),
            (0x39, &[], &[0x81, 0x82]),
            (0x36, &[0, 1], &[0x81]),
            (0x37, &[0, 1], &[0x81]),
            (0x3E, &[0, 1], &[0x81]),
            (0x3F, &[0, 1], &[0x81]),
        ] {
            let mut client = Client::connect(&broker, version);
            client.send(&frame(first_byte, &[&string(&topic), id, no_properties, b"x"]));
            client.assert_refused(codes);
        }
        Client::connect(&broker, version).deliver(&topic, "the only one");
        assert_eq!(watcher.message().text(), "the only one");
        watcher.assert_silent();
    }
    broker.stop();
}

/// What the broker sends, byte for byte: the topic, behind it the identifier, if there is one, and the
/// properties. [MQTT-3.3.2-1] [MQTT-3.3.2-1 of 3.1.1]
#[test]
fn topic_name_is_the_first_field_of_what_is_delivered() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("first");
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&format!("{stem}/#"), 2);
        let mut sender = Client::connect(&broker, version);
        for topic in [format!("{stem}/a"), format!("{stem}/Ä €/𝄞/ "), format!("{stem}//")] {
            for qos in 0..=2 {
                sender.deliver_at(&topic, "payload", qos);
                let id = receiver.message().id.to_be_bytes();
                let id = if qos == 0 { &[][..] } else { &id };
                let expected =
                    frame(0x30 | qos << 1, &[&string(&topic), id, no_properties, b"payload"]);
                assert_eq!(receiver.last_frame(), expected);
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.3.2-1] [MQTT-3.3.2-1 of 3.1.1]
#[test]
fn publish_without_a_topic_name_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        for cut in [&[][..], &[0], &[0, 5, b'a'], &[0xFF, 0xFF]] {
            for first_byte in [0x30, 0x32, 0x34] {
                let mut client = Client::connect(&broker, version);
                client.send(&frame(first_byte, &[cut]));
                client.assert_refused(&[0x81]);
            }
        }
        for (first_byte, id) in [(0x30, &[][..]), (0x32, &[0, 1]), (0x34, &[0, 1])] {
            let mut client = Client::connect(&broker, version);
            client.send(&frame(first_byte, &[&string(b"a\xFF"), id, no_properties, b"x"]));
            client.assert_refused(&[0x81, 0x90]);
            // One of no bytes is not UTF-8 text of at least one character, and there is no alias.
            let mut client = Client::connect(&broker, version);
            client.send(&frame(first_byte, &[&string(""), id, no_properties, b"x"]));
            client.assert_refused(&[0x82]);
        }
    }
    broker.stop();
}

/// [MQTT-3.3.2-2] [MQTT-3.3.2-2 of 3.1.1]
#[test]
fn topic_name_with_a_wildcard_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("wild");
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&format!("{stem}/#"), 0);
        for tail in ["+", "#", "a/+", "a/+/b", "a/#", "a/#/b", "a+", "+a", "#a", "a#"] {
            for qos in 0..=2 {
                let mut client = Client::connect(&broker, version);
                client.publish(&format!("{stem}/{tail}"), "x", qos, 1);
                client.assert_refused(&[0x81, 0x82, 0x90]);
            }
        }
        Client::connect(&broker, version).deliver(&format!("{stem}/a"), "the only one");
        assert_eq!(watcher.message().text(), "the only one");
        watcher.assert_silent();
    }
    broker.stop();
}

/// It is that of the message, whichever filter it comes by. [MQTT-3.3.2-3] [MQTT-3.3.2-2]
/// [MQTT-3.3.2-3 of 3.1.1] [MQTT-3.3.2-2 of 3.1.1]
#[test]
fn topic_name_that_is_delivered_matches_the_filter() {
    const TOPICS: [&str; 7] = ["", "/a", "/b", "/a/b", "/a/c", "//b", "/A"];
    let broker = Broker::start();
    for version in VERSIONS {
        let mut sender = Client::connect(&broker, version);
        for (filter, expected) in [
            ("", &[""][..]),
            ("/a", &["/a"]),
            ("/+", &["/a", "/b", "/A"]),
            ("/+/b", &["/a/b", "//b"]),
            ("/a/+", &["/a/b", "/a/c"]),
            ("/a/#", &["/a", "/a/b", "/a/c"]),
            ("//+", &["//b"]),
            ("/#", &TOPICS),
        ] {
            let stem = unique("match");
            let mut live = Client::connect(&broker, version);
            live.subscribe(&format!("{stem}{filter}"), 1);
            for tail in TOPICS {
                sender.deliver_retained(&format!("{stem}{tail}"), format!("to {tail}"));
            }
            let mut late = Client::connect(&broker, version);
            late.subscribe(&format!("{stem}{filter}"), 1);
            let mut expected: Vec<_> = expected
                .iter()
                .map(|tail| (format!("{stem}{tail}"), format!("to {tail}")))
                .collect();
            expected.sort();
            for client in [&mut live, &mut late] {
                let mut found: Vec<_> = expected
                    .iter()
                    .map(|_| {
                        let message = client.message();
                        client.take(&message);
                        (message.topic.clone(), message.text().to_owned())
                    })
                    .collect();
                found.sort();
                assert_eq!(found, expected, "{filter}");
                client.assert_silent();
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.3.4-1] [MQTT-3.3.4-1 of 3.1.1]
#[test]
fn publish_is_answered_as_its_qos_demands() {
    let broker = Broker::start();
    for version in VERSIONS {
        for is_awaited in [false, true] {
            let topic = unique("answer");
            let mut receiver = Client::connect(&broker, version);
            if is_awaited {
                receiver.subscribe(&topic, 0);
            }
            let mut sender = Client::connect(&broker, version);
            sender.publish(&topic, "0", 0, 0);
            sender.assert_silent();
            sender.publish(&topic, "1", 1, 11);
            assert!(matches!(sender.next(), Got::Ack(PUBACK, 11, 0 | 0x10)));
            sender.assert_silent();
            sender.publish(&topic, "2", 2, 12);
            assert!(matches!(sender.next(), Got::Ack(PUBREC, 12, 0 | 0x10)));
            sender.assert_silent();
            sender.ack(PUBREL, 12);
            assert_eq!(sender.next(), Got::Ack(PUBCOMP, 12, 0));
            sender.assert_silent();
            if is_awaited {
                let texts = [(); 3].map(|()| receiver.message().text().to_owned());
                assert_eq!(texts, ["0", "1", "2"]);
            }
            receiver.assert_silent();
        }
    }
    broker.stop();
}

/// Several in one write: no answer is left out, and none comes twice. [MQTT-3.3.4-1]
/// [MQTT-3.3.4-1 of 3.1.1]
#[test]
fn each_of_many_publishes_has_its_answer() {
    let broker = Broker::start();
    for version in VERSIONS {
        let mut client = Client::connect(&broker, version);
        let topic = unique("many");
        // Within any Receive Maximum that may be announced, if it is not less than 20.
        let packets = (1..=20_u16).flat_map(|id| {
            let qos = (id % 3) as u8;
            Publication::new(&topic, "x").qos(qos, id).bytes(version)
        });
        client.send(&packets.collect::<Vec<_>>());
        let mut due: Vec<u16> = (1..=20).filter(|id| id % 3 != 0).collect();
        while !due.is_empty() {
            match client.next() {
                Got::Ack(PUBACK, id, 0 | 0x10) if id % 3 == 1 => due.retain(|other| *other != id),
                Got::Ack(PUBREC, id, 0 | 0x10) if id % 3 == 2 => client.ack(PUBREL, id),
                Got::Ack(PUBCOMP, id, 0) if id % 3 == 2 => due.retain(|other| *other != id),
                other => panic!("{other:?} is no answer, {due:?} are due"),
            }
        }
        client.assert_silent();
    }
    broker.stop();
}

/// Section 3.3.3
#[test]
fn message_without_a_payload_is_a_message() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("empty");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for qos in 0..=2 {
            sender.deliver_at(&topic, "", qos);
            let message = receiver.message();
            assert_eq!((message.qos, message.payload.len(), message.retain), (qos, 0, false));
        }
    }
    broker.stop();
}

/// `$SYS/` is where most brokers let nobody publish; one that does acknowledges, too. What an MQTT 5
/// client is told is up to the broker. [MQTT-3.3.5-2 of 3.1.1] [MQTT-3.4.2-1] [MQTT-3.5.2-1]
#[test]
fn publish_that_is_not_allowed_is_acknowledged_or_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
            let mut client = Client::connect(&broker, version);
            client.publish("$SYS/broker/uptime", "x", qos, 5);
            match client.next() {
                Got::Ack(got, 5, code) if version == V311 => {
                    assert_eq!((got, code), (ack, 0));
                    assert_eq!(client.last_frame().len(), 4);
                    if qos == 2 {
                        client.ack(PUBREL, 5);
                        assert_eq!(client.next(), Got::Ack(PUBCOMP, 5, 0));
                    }
                    client.assert_silent();
                }
                Got::Ack(got, 5, code) => {
                    assert_eq!(got, ack);
                    assert!([0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x97].contains(&code), "{code:#x}");
                    client.assert_silent();
                }
                Got::Disconnect(code) if version == V5 => {
                    assert!([0x83, 0x87, 0x90].contains(&code), "{code:#x}");
                    client.assert_closed();
                }
                other => assert_eq!(other, Got::Closed),
            }
        }
    }
    broker.stop();
}

//! Session state, network connections, the flows of each QoS, delivery again (4.1 to 4.4).

use std::slice;
use std::time::Duration;

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS, publish,
};

/// Neither a Session Expiry Interval of zero nor one that has passed counts while the client is there.
/// [MQTT-4.1.0-1] [MQTT-4.1.0-2 of 3.1.1]
#[test]
fn state_is_kept_as_long_as_the_connection_is_open() {
    let broker = Broker::start();
    for (version, expiry_s) in [(V311, None), (V5, None), (V5, Some(0)), (V5, Some(1))] {
        let (id, topic, outside) = (unique("open"), unique("open"), unique("open"));
        let mut hello = Hello::new(version, &id);
        if let Some(seconds) = expiry_s {
            hello = hello.with(Property::SessionExpiryInterval(seconds));
        }
        let (mut client, _) = hello.open(broker.addr());
        let level = format!("{topic}/+");
        assert_eq!(client.subscribe_all(&[(&topic, 2), (&level, 1)]), [2, 1]);
        let mut sender = Client::connect(&broker, version);
        let mut witness = Client::connect(&broker, version);
        witness.subscribe(&outside, 2);
        sender.deliver_at(&topic, "half", 2);
        let half = client.message();
        client.ack(PUBREC, half.id);
        assert_eq!(client.next(), Got::Ack(PUBREL, half.id, 0));
        client.publish(&outside, "once", 2, 7);
        assert_eq!(client.next(), Got::Ack(PUBREC, 7, 0));

        client.assert_silent_for(Duration::from_millis(1_200));
        // Both identifiers are known: one is answered without a reproach, the other is no new message.
        client.ack(PUBREC, half.id);
        assert_eq!(client.next(), Got::Ack(PUBREL, half.id, 0));
        client.ack(PUBCOMP, half.id);
        client.send_publication(&Publication::new(&outside, "once").qos(2, 7).dup());
        assert_eq!(client.next(), Got::Ack(PUBREC, 7, 0));
        client.ack(PUBREL, 7);
        assert_eq!(client.next(), Got::Ack(PUBCOMP, 7, 0));
        assert_eq!(witness.message().text(), "once");
        witness.assert_silent();
        sender.deliver(&topic, "exact");
        sender.deliver(&level.replace('+', "x"), "wild");
        assert_eq!((client.message().text(), client.message().text()), ("exact", "wild"));
    }
    broker.stop();
}

/// All that section 4.1 counts among it: the session, its subscriptions, what was sent and is not
/// acknowledged, what could not be sent yet, and identifiers of QoS 2 that are not released.
/// [MQTT-4.1.0-1 of 3.1.1]
#[test]
fn every_part_of_the_state_of_a_session_outlives_its_connections() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic, outside) = (unique("state"), unique("state"), unique("state"));
        let hello = Hello::persistent(version, &id);
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 2);
        let mut witness = Client::connect(&broker, version);
        witness.subscribe(&outside, 2);
        client.publish(&outside, "once", 2, 7);
        assert_eq!(client.next(), Got::Ack(PUBREC, 7, 0));
        let mut sender = Client::connect(&broker, version);
        sender.deliver_at(&topic, "one", 1);
        sender.deliver_at(&topic, "two", 2);
        sender.deliver_at(&topic, "three", 2);
        let sent = [client.message(), client.message(), client.message()];
        client.ack(PUBREC, sent[1].id);
        assert_eq!(client.next(), Got::Ack(PUBREL, sent[1].id, 0));
        drop(client);
        sender.deliver_at(&topic, "four", 1);

        let dup = |message: &Message| Message { dup: true, ..message.clone() };
        let mut open = vec![dup(&sent[0]), dup(&sent[2])];
        for _ in 0..3 {
            let (mut client, present) = hello.open(broker.addr());
            assert!(present);
            let mut came = client.drain_packets();
            let pubrel = came.iter().position(|got| *got == Got::Ack(PUBREL, sent[1].id, 0));
            came.remove(pubrel.expect("PUBREL is sent again"));
            let came: Vec<Message> = came.into_iter().map(message).collect();
            let (again, new) = came.split_at(open.len());
            assert_eq!(again, open);
            if let [four] = new {
                assert_eq!((four.text(), four.dup), ("four", false));
                open.push(dup(four));
            }
        }
        assert_eq!(open.len(), 3, "the one that waited came");

        let (mut client, _) = hello.open(broker.addr());
        client.drain_packets();
        client.send_publication(&Publication::new(&outside, "once").qos(2, 7).dup());
        assert_eq!(client.next(), Got::Ack(PUBREC, 7, 0));
        client.ack(PUBREL, 7);
        assert_eq!(client.next(), Got::Ack(PUBCOMP, 7, 0));
        assert_eq!(witness.message().text(), "once");
        witness.assert_silent();
        sender.deliver(&topic, "still subscribed");
        assert_eq!(client.message().text(), "still subscribed");
    }
    broker.stop();
}

/// [MQTT-4.1.0-2]
#[test]
fn nothing_is_left_of_a_session_whose_expiry_interval_has_passed() {
    let broker = Broker::start();
    let topic = unique("over");
    // Coming back renews a session, so each look takes another one of the same age.
    let sessions: Vec<String> = (0..50).map(|_| unique("over")).collect();
    for id in &sessions {
        let hello = Hello::new(V5, id).with(Property::SessionExpiryInterval(1));
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 1);
        client.disconnect();
    }
    let mut sender = Client::connect(&broker, V5);
    sender.deliver(&topic, "for them");
    let is_over = |id: &String| {
        sender.assert_silent_for(Duration::from_millis(100));
        let (mut client, present) = Hello::persistent(V5, id).open(broker.addr());
        let waited = client.drain();
        assert_eq!(waited.is_empty(), !present, "{waited:?}");
        sender.deliver(&topic, "later");
        assert_eq!(client.drain().is_empty(), !present);
        !present
    };
    assert!(sessions.iter().any(is_over), "no session is over after five seconds");
    broker.stop();
}

/// TCP is a transport that keeps bytes and their order, and no packet depends on how it cuts them.
/// [MQTT-4.2-1] [MQTT-7.1.1-1 of 3.1.1]
#[test]
fn packets_arrive_whole_and_in_order_however_the_stream_is_cut() {
    let broker = Broker::start();
    let mut random = fastrand::Rng::with_seed(42);
    for version in VERSIONS {
        let topic = unique("stream");
        let (mut sender, mut receiver) =
            (Client::connect(&broker, version), Client::connect(&broker, version));
        receiver.subscribe(&topic, 0);
        let sizes = [0, 1, 100, 120, 127, 128, 1_000, 16_383, 16_384, 70_000, 300_000];
        let payloads = sizes.map(|size| (0..size).map(|_| random.u8(..)).collect::<Vec<u8>>());
        let mut stream: Vec<u8> = Vec::new();
        for payload in &payloads {
            stream.extend(publish(version, &topic, payload, 0, 0, false));
            stream.extend([0xC0, 0]);
        }
        let mut rest = &stream[..];
        for cut in 0.. {
            // Byte by byte at first, so that a cut is everywhere in a header.
            let len = if cut < 300 { 1 } else { random.usize(1..20_000) };
            let (part, others) = rest.split_at(len.min(rest.len()));
            sender.send(part);
            rest = others;
            if rest.is_empty() {
                break;
            }
        }
        for payload in &payloads {
            assert_eq!(sender.next(), Got::PingResp);
            assert!(receiver.message().payload == *payload, "{} bytes", payload.len());
        }
        receiver.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.2-4] [MQTT-4.3.3-2] [MQTT-4.3.3-4] [MQTT-4.3.3-8] [MQTT-4.3.3-11]
/// [MQTT-4.3.1-1 of 3.1.1] [MQTT-4.3.2-1 of 3.1.1] [MQTT-4.3.2-2 of 3.1.1] [MQTT-4.3.3-1 of 3.1.1]
/// [MQTT-4.3.3-2 of 3.1.1]
#[test]
fn each_qos_has_its_flow_byte_for_byte_in_both_directions() {
    let broker = Broker::start();
    for (version, filler) in [(V311, &[][..]), (V5, &[0][..])] {
        let topic = unique("f");
        let frame = |first: u8, id: &[u8]| {
            let body = [&[0, topic.len() as u8], topic.as_bytes(), id, filler, b"hi"].concat();
            [&[first, body.len() as u8][..], &body].concat()
        };
        let (mut sender, mut receiver) =
            (Client::connect(&broker, version), Client::connect(&broker, version));
        receiver.subscribe(&topic, 2);
        let next = |client: &mut Client| client.next_frame().unwrap();

        sender.send(&frame(0x30, &[]));
        assert_eq!(next(&mut receiver), frame(0x30, &[]));

        sender.send(&frame(0x32, &[1, 2]));
        assert_eq!(next(&mut sender), [0x40, 2, 1, 2]);
        let id = receiver.message().id.to_be_bytes();
        assert_eq!(receiver.last_frame(), frame(0x32, &id));
        receiver.send(&[0x40, 2, id[0], id[1]]);

        sender.send(&frame(0x34, &[3, 4]));
        assert_eq!(next(&mut sender), [0x50, 2, 3, 4]);
        sender.send(&[0x62, 2, 3, 4]);
        assert_eq!(next(&mut sender), [0x70, 2, 3, 4]);
        let id = receiver.message().id.to_be_bytes();
        assert_eq!(receiver.last_frame(), frame(0x34, &id));
        // Not before the client says that it has it.
        receiver.assert_silent();
        receiver.send(&[0x50, 2, id[0], id[1]]);
        assert_eq!(next(&mut receiver), [0x62, 2, id[0], id[1]]);
        receiver.send(&[0x70, 2, id[0], id[1]]);
        receiver.assert_silent();
        sender.assert_silent();
    }
    broker.stop();
}

/// The publisher's DUP says that the publisher has sent it before; the broker has not.
/// [MQTT-4.3.1-1] [MQTT-4.3.2-2] [MQTT-4.3.3-2] [MQTT-4.3.1-1 of 3.1.1] [MQTT-4.3.2-1 of 3.1.1]
/// [MQTT-4.3.3-1 of 3.1.1]
#[test]
fn first_copy_goes_out_without_dup_although_the_publisher_had_sent_it_before() {
    let broker = Broker::start();
    for version in VERSIONS {
        for granted in 0..=2 {
            let topic = unique("first");
            let mut receiver = Client::connect(&broker, version);
            receiver.subscribe(&topic, granted);
            let mut sender = Client::connect(&broker, version);
            for published in [1, 2] {
                sender.send_publication(&Publication::new(&topic, "x").qos(published, 5).dup());
                assert!(matches!(sender.next(), Got::Ack(_, 5, 0)));
                if published == 2 {
                    sender.ack(PUBREL, 5);
                    assert_eq!(sender.next(), Got::Ack(PUBCOMP, 5, 0));
                }
                let message = receiver.message();
                assert_eq!((message.qos, message.dup), (published.min(granted), false));
            }
        }
    }
    broker.stop();
}

/// [MQTT-4.3.1-1] [MQTT-4.3.1-1 of 3.1.1]
#[test]
fn qos_0_message_that_claims_to_be_sent_again_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("claims");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 0);
        let mut sender = Client::connect(&broker, version);
        let mut packet = publish(version, &topic, b"x", 0, 0, false);
        packet[0] |= 0b1000;
        sender.send(&packet);
        sender.assert_refused(&[0x81, 0x82]);
        receiver.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.3.2-1] [MQTT-4.3.3-1] [MQTT-4.3.2-1 of 3.1.1] [MQTT-4.3.3-1 of 3.1.1]
#[test]
fn each_open_message_has_an_identifier_of_its_own() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("own");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        let mut open: Vec<Message> = Vec::new();
        for number in 0..60_u8 {
            sender.deliver_at(&topic, [number], 1 + number % 2);
            let message = receiver.message();
            assert_eq!(message.payload, [number]);
            assert!(open.iter().all(|other| other.id != message.id), "{message:?} of {open:?}");
            open.push(message);
            if open.len() == 8 {
                // From the middle, so that identifiers come free in between.
                for _ in 0..3 {
                    let message = open.remove(2);
                    receiver.take(&message);
                }
            }
        }
    }
    broker.stop();
}

/// [MQTT-4.3.2-3] [MQTT-4.3.2-1 of 3.1.1] [MQTT-4.4.0-1 of 3.1.1]
#[test]
fn qos_1_message_is_open_until_its_puback_and_no_longer() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("until"), unique("until"));
        let hello = Hello::persistent(version, &id);
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 1);
        Client::connect(&broker, version).deliver(&topic, "x");
        let first = client.message();
        for _ in 0..3 {
            drop(client);
            client = hello.open(broker.addr()).0;
            assert_eq!(client.message(), Message { dup: true, ..first.clone() });
            client.assert_silent();
        }
        client.ack(PUBACK, first.id);
        client.disconnect();
        hello.open(broker.addr()).0.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.3.2-4] [MQTT-4.3.2-5] [MQTT-4.3.2-2 of 3.1.1]
#[test]
fn qos_1_identifier_means_a_new_message_once_it_was_acknowledged_whatever_dup_says() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("anew");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 0);
        let mut sender = Client::connect(&broker, version);
        let plain = Publication::new(&topic, "x").qos(1, 300);
        for publication in [&plain, &plain, &plain.clone().dup(), &plain.clone().dup()] {
            sender.send_publication(publication);
            assert_eq!(sender.next(), Got::Ack(PUBACK, 300, 0));
            assert_eq!(receiver.message().text(), "x");
        }
        receiver.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.3.3-3] [MQTT-4.3.3-4] [MQTT-4.3.3-5] [MQTT-4.3.3-6] [MQTT-4.3.3-1 of 3.1.1] [MQTT-4.4.0-1 of 3.1.1]
#[test]
fn qos_2_message_is_sent_until_pubrec_and_pubrel_until_pubcomp() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("steps"), unique("steps"));
        let hello = Hello::persistent(version, &id);
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 2);
        Client::connect(&broker, version).deliver_at(&topic, "x", 2);
        let first = client.message();
        client.assert_silent();
        for _ in 0..2 {
            drop(client);
            client = hello.open(broker.addr()).0;
            assert_eq!(client.message(), Message { dup: true, ..first.clone() });
            client.assert_silent();
        }
        let pubrel = Got::Ack(PUBREL, first.id, 0);
        client.ack(PUBREC, first.id);
        assert_eq!(client.next(), pubrel);
        client.assert_silent();
        for _ in 0..2 {
            drop(client);
            client = hello.open(broker.addr()).0;
            // And not the message.
            assert_eq!(client.drain_packets(), slice::from_ref(&pubrel));
        }
        // A client that has not kept a record of PUBREL.
        client.ack(PUBREC, first.id);
        assert_eq!(client.next(), pubrel);
        client.ack(PUBCOMP, first.id);
        client.disconnect();
        hello.open(broker.addr()).0.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.3.3-7]
#[test]
fn qos_2_message_that_was_sent_does_not_expire() {
    let broker = Broker::start();
    let topic = unique("sent");
    let ids = [unique("sent"), unique("sent")];
    let open = |id: &String| Hello::persistent(V5, id).open(broker.addr()).0;
    let mut clients = ids.each_ref().map(open);
    let mut sender = Client::connect(&broker, V5);
    clients.iter_mut().for_each(|client| client.subscribe(&topic, 2));
    let expiring = Publication::new(&topic, "x").with(Property::MessageExpiryInterval(1));
    sender.send_publication(&expiring.qos(2, 9));
    assert_eq!(sender.next(), Got::Ack(PUBREC, 9, 0));
    sender.ack(PUBREL, 9);
    assert_eq!(sender.next(), Got::Ack(PUBCOMP, 9, 0));
    let sent = clients.each_mut().map(Client::message);
    clients[1].ack(PUBREC, sent[1].id);
    assert_eq!(clients[1].next(), Got::Ack(PUBREL, sent[1].id, 0));
    drop(clients);
    sender.assert_silent_for(Duration::from_millis(1_200));

    let mut clients = ids.each_ref().map(open);
    let again = clients[0].message();
    assert_eq!((again.text(), again.id, again.dup), ("x", sent[0].id, true));
    clients[0].take(&again);
    assert_eq!(clients[1].next(), Got::Ack(PUBREL, sent[1].id, 0));
    clients[1].ack(PUBCOMP, sent[1].id);
    clients.iter_mut().for_each(Client::assert_silent);
    broker.stop();
}

/// [MQTT-4.3.3-13]
#[test]
fn flow_of_a_qos_2_message_goes_on_after_it_has_expired() {
    let broker = Broker::start();
    let (id, reader, topic) = (unique("goeson"), unique("goeson"), unique("goeson"));
    let reading = Hello::persistent(V5, &reader);
    let (mut receiver, _) = reading.open(broker.addr());
    receiver.subscribe(&topic, 2);
    receiver.disconnect();
    let hello = Hello::persistent(V5, &id);
    let (mut sender, _) = hello.open(broker.addr());
    let expiring = Publication::new(&topic, "x").with(Property::MessageExpiryInterval(1));
    for number in [4, 5] {
        sender.send_publication(&expiring.clone().qos(2, number));
        assert_eq!(sender.next(), Got::Ack(PUBREC, number, 0));
    }
    sender.assert_silent_for(Duration::from_millis(1_200));
    let (mut receiver, _) = reading.open(broker.addr());
    receiver.assert_silent();

    // Where it stands, and from the beginning.
    sender.ack(PUBREL, 4);
    assert_eq!(sender.next(), Got::Ack(PUBCOMP, 4, 0));
    drop(sender);
    let (mut sender, present) = hello.open(broker.addr());
    assert!(present);
    sender.send_publication(&expiring.qos(2, 5).dup());
    assert!(matches!(sender.next(), Got::Ack(PUBREC, 5, 0 | 0x10)));
    sender.ack(PUBREL, 5);
    assert_eq!(sender.next(), Got::Ack(PUBCOMP, 5, 0));
    broker.stop();
}

/// [MQTT-4.3.3-9]: a broker that refuses nothing has nothing to show here.
#[test]
fn identifier_of_a_refused_qos_2_message_is_free_with_its_pubrec() {
    let broker = Broker::start();
    let topic = unique("free");
    let mut receiver = Client::connect(&broker, V5);
    receiver.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    for payload in ["one", "two"] {
        sender.publish("$SYS/broker/version", "mine", 2, 7);
        let Got::Ack(PUBREC, 7, code) = sender.next() else { panic!("no PUBREC") };
        if code < 0x80 {
            return;
        }
        // DUP does not matter: what it repeats is over.
        sender.send_publication(&Publication::new(&topic, payload).qos(2, 7).dup());
        assert_eq!(sender.next(), Got::Ack(PUBREC, 7, 0));
        sender.ack(PUBREL, 7);
        assert_eq!(sender.next(), Got::Ack(PUBCOMP, 7, 0));
        let message = receiver.message();
        assert_eq!(message.text(), payload);
        receiver.take(&message);
    }
    broker.stop();
}

/// [MQTT-4.3.3-10] [MQTT-4.3.3-11] [MQTT-4.3.3-12] [MQTT-4.3.3-2 of 3.1.1]
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
        sender.ack(PUBREL, 7);
        assert_eq!(sender.next(), Got::Ack(PUBCOMP, 7, 0));
        assert_eq!(receiver.message().text(), "x");
        receiver.assert_silent();
        // The identifier is free: the same bytes are a new message now.
        sender.send(&first);
        assert!(matches!(sender.next(), Got::Ack(PUBREC, 7, 0 | 0x10)));
        sender.ack(PUBREL, 7);
        assert_eq!(sender.next(), Got::Ack(PUBCOMP, 7, 0));
        assert_eq!(receiver.message().text(), "x");
        receiver.assert_silent();
    }
    broker.stop();
}

/// Also when the connection was lost between PUBREC and PUBREL. [MQTT-4.3.3-10] [MQTT-4.3.3-2 of 3.1.1]
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

/// [MQTT-4.4.0-1] [MQTT-4.3.3-6] [MQTT-4.4.0-1 of 3.1.1] [MQTT-4.6.0-6 of 3.1.1]
#[test]
fn open_messages_are_sent_again_with_dup_and_their_identifiers_in_order() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (topic, id) = (unique("again"), unique("again"));
        let (mut receiver, _) = Hello::persistent(version, &id).open(broker.addr());
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for (index, qos) in [1, 2, 1, 2, 1].into_iter().enumerate() {
            sender.deliver_at(&topic, [b'a' + index as u8], qos);
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
        // Messages in their order, and PUBRELs in theirs, which is that of the PUBRECs.
        let (messages, pubrels): (Vec<Got>, Vec<Got>) =
            receiver.drain_packets().into_iter().partition(|got| matches!(got, Got::Publish(_)));
        let dup = |message: &Message| Got::Publish(Message { dup: true, ..message.clone() });
        assert_eq!(messages, [dup(&first[0]), dup(&first[4])]);
        let pubrel = |message: &Message| Got::Ack(PUBREL, message.id, 0);
        let mut expected = [pubrel(&first[3]), pubrel(&first[1])];
        if version == V5 && pubrels[0] != expected[0] {
            // Order among PUBRELs is the client's duty only, in this version.
            expected.reverse();
        }
        assert_eq!(pubrels, expected);
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

/// What wakes a connection belongs to it and not to the one before it.
/// [MQTT-4.4.0-1] [MQTT-4.4.0-1 of 3.1.1]
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

/// MQTT 3.1.1 leaves it to the broker; MQTT 5.0 forbids it. [MQTT-4.4.0-1]
#[test]
fn nothing_is_sent_again_while_the_connection_lasts() {
    let broker = Broker::start();
    let topic = unique("patient");
    let mut receiver = Client::connect(&broker, V5);
    receiver.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    sender.deliver_at(&topic, "one", 1);
    sender.deliver_at(&topic, "two", 2);
    sender.deliver_at(&topic, "three", 2);
    let sent = [receiver.message(), receiver.message(), receiver.message()];
    receiver.ack(PUBREC, sent[2].id);
    assert_eq!(receiver.next(), Got::Ack(PUBREL, sent[2].id, 0));
    receiver.assert_silent_for(Duration::from_millis(1_500));
    // Nor does anything that the client does bring them back.
    receiver.subscribe(&topic, 2);
    receiver.subscribe(&unique("patient"), 2);
    receiver.unsubscribe(&topic);
    receiver.deliver(&topic, "from here");
    receiver.assert_silent();
    broker.stop();
}

/// [MQTT-4.4.0-1]: an open message of a session that ended belongs to nobody.
#[test]
fn new_session_gets_nothing_of_what_the_earlier_one_left_open() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("fresh"), unique("fresh"));
        let (mut client, _) = Hello::persistent(version, &id).open(broker.addr());
        client.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for qos in [1, 2, 2] {
            sender.deliver_at(&topic, "x", qos);
        }
        let last = [client.message(), client.message(), client.message()][2].id;
        client.ack(PUBREC, last);
        assert_eq!(client.next(), Got::Ack(PUBREL, last, 0));
        drop(client);
        let (mut client, present) = Hello::new(version, &id).open(broker.addr());
        assert!(!present);
        client.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.4.0-2] [MQTT-4.3.3-4]
#[test]
fn message_that_the_client_refuses_is_done_with() {
    let broker = Broker::start();
    for code in [0x80, 0x83, 0x87, 0x90, 0x97, 0x99] {
        let (id, topic) = (unique("refused"), unique("refused"));
        let hello = Hello::persistent(V5, &id).with(Property::ReceiveMaximum(2));
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, V5);
        for qos in [1, 2] {
            sender.deliver_at(&topic, "bad", qos);
        }
        let (once, exactly) = (client.message(), client.message());
        client.ack_with(PUBACK, once.id, code, &[Property::ReasonString("no")]);
        client.ack_with(PUBREC, exactly.id, code, &[Property::ReasonString("no")]);
        // No PUBREL, and room for two others.
        client.assert_silent();
        sender.deliver_at(&topic, "good", 1);
        sender.deliver_at(&topic, "good", 2);
        for _ in 0..2 {
            let message = client.message();
            assert_eq!(message.text(), "good");
            client.take(&message);
        }
        client.disconnect();
        let (mut client, present) = hello.open(broker.addr());
        assert!(present);
        client.assert_silent();
    }
    broker.stop();
}

#[track_caller]
fn message(got: Got) -> Message {
    match got {
        Got::Publish(message) => message,
        other => panic!("waited for PUBLISH, got {other:?}"),
    }
}

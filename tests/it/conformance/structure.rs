//! How packets are made: data types, fixed header, packet identifiers, properties (1.5 and 2).

use std::collections::HashSet;

use mailboxqtt::codec::{Property, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ProtocolVersion, Qos};

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS, frame,
    property_list, string,
};

/// [MQTT-1.5.4-1] [MQTT-1.5.7-1] [MQTT-1.5.3-1 of 3.1.1]
#[test]
fn string_that_is_not_utf_8_ends_the_connection_wherever_it_stands() {
    let broker = Broker::start();
    for ill_formed in [
        // A surrogate, the last one too, alone and as half of a pair.
        &b"a\xED\xA0\x80"[..],
        b"\xED\xBF\xBF",
        b"\xED\xA0\xBD\xED\xB8\x80",
        // Longer than needed.
        b"\xC0\x80",
        b"\xC1\xBF",
        b"\xE0\x80\xAF",
        // Beyond U+10FFFF.
        b"\xF4\x90\x80\x80",
        // Cut, the rest of something, and no beginning of anything.
        b"a\xE2\x82",
        b"\x80",
        b"\xFF",
    ] {
        assert_no_string_may_be(ill_formed, &broker);
    }
    broker.stop();
}

/// [MQTT-1.5.4-2] [MQTT-1.5.3-2 of 3.1.1]
#[test]
fn string_with_a_nul_character_ends_the_connection_wherever_it_stands() {
    let broker = Broker::start();
    for with_nul in [&b"\0"[..], b"a\0", b"\0a", b"a\0b"] {
        assert_no_string_may_be(with_nul, &broker);
    }
    broker.stop();
}

/// The byte order mark is a character like others [MQTT-1.5.4-3] [MQTT-1.5.3-3 of 3.1.1]
#[test]
fn byte_order_mark_is_neither_skipped_nor_stripped() {
    let broker = Broker::start();
    for version in VERSIONS {
        let plain = unique("mark");
        let marked = format!("\u{FEFF}{plain}");
        let mut client = Client::connect(&broker, version);
        client.subscribe(&plain, 0);
        let mut sender = Client::connect(&broker, version);
        sender.deliver(&marked, "for nobody");
        client.assert_silent();
        client.subscribe(&marked, 0);
        sender.deliver(&marked, "marked");
        let message = client.message();
        assert_eq!((message.topic.as_str(), message.text()), (marked.as_str(), "marked"));
        sender.deliver(&plain, "plain");
        assert_eq!(client.message().topic, plain);

        let id = unique("mark");
        Hello::persistent(version, &id).open(broker.addr()).0.disconnect();
        let (_other, present) =
            Hello::persistent(version, &format!("\u{FEFF}{id}")).open(broker.addr());
        assert!(!present, "the mark belongs to the client identifier");
    }
    broker.stop();
}

/// [MQTT-1.5.5-1]; MQTT 3.1.1 has no such rule.
#[test]
fn variable_byte_integer_that_is_longer_than_it_must_be_ends_the_connection() {
    let broker = Broker::start();
    let padded_properties = [&b"\0\x01t"[..], &[0x80, 0]].concat();
    let subscription_identifier = [&[0, 1], &[4, 0x0B, 0x81, 0x80, 0][..], &string("t"), &[0]];
    for packet in [
        vec![0xC0, 0x80, 0],
        vec![0x30, 0x84, 0, 0, 1, b't', 0],
        vec![0x30, 0x84, 0x80, 0, 0, 1, b't', 0],
        frame(0x30, &[&padded_properties]),
        frame(0x82, &subscription_identifier),
    ] {
        let mut client = Client::connect(&broker, V5);
        client.send(&packet);
        client.assert_refused(&[0x81]);
    }
    let connect = Hello::new(V5, &unique("padded")).bytes();
    let padded = [&connect[..1], &[connect[1] | 0x80, 0], &connect[2..]].concat();
    let mut client = Client::raw(broker.addr(), V5);
    client.send(&padded);
    client.assert_connect_refused(&[0x81]);
    broker.stop();
}

/// [MQTT-1.5.5-1]: what the broker writes itself. A remaining length has one to four bytes, that of a
/// property list as many as it needs.
#[test]
fn lengths_that_the_broker_writes_are_as_short_as_they_can_be() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("short");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 0);
        let mut sender = Client::connect(&broker, version);
        let around = &string(&topic)[..];
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        for remaining in [127, 128, 16_383, 16_384, 2_097_151, 2_097_152] {
            let payload = vec![b'x'; remaining - around.len() - no_properties.len()];
            sender.publish(&topic, &payload, 0, 0);
            let expected = frame(0x30, &[around, no_properties, &payload]);
            assert_eq!(expected.len() - remaining, 1 + vbi_len(remaining));
            assert!(receiver.next_frame().unwrap() == expected, "{remaining} bytes");
        }
    }
    let topic = unique("short");
    let mut receiver = Client::connect(&broker, V5);
    receiver.subscribe(&topic, 0);
    let mut sender = Client::connect(&broker, V5);
    for list_len in [127, 128, 16_383, 16_384] {
        let text = "x".repeat(list_len - 3);
        let packet = Publication::new(&topic, "").with(Property::ContentType(&text)).bytes(V5);
        sender.send(&packet);
        assert!(receiver.next_frame().unwrap() == packet, "{list_len} bytes of properties");
    }
    broker.stop();
}

/// [MQTT-2.1.3-1] [MQTT-2.2.2-1 of 3.1.1] [MQTT-2.2.2-2 of 3.1.1]
#[test]
fn reserved_flags_other_than_prescribed_end_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        for packet in whole_packets(version) {
            for flags in 0..=0x0F_u8 {
                if flags == packet[0] & 0x0F {
                    continue;
                }
                let mut client = Client::connect(&broker, version);
                let wrong = [&[packet[0] & 0xF0 | flags], &packet[1..]].concat();
                client.send(&wrong);
                client.assert_refused(&[0x81]);
            }
        }
        for flags in 1..=0x0F {
            let mut connect = Hello::new(version, &unique("flags")).bytes();
            connect[0] |= flags;
            let mut client = Client::raw(broker.addr(), version);
            client.send_in_vain(&connect);
            let codes: &[u8] = if version == V5 { &[0x81] } else { &[] };
            client.assert_connect_refused(codes);
        }
    }
    broker.stop();
}

/// [MQTT-2.1.3-1] [MQTT-2.2.2-1 of 3.1.1]: what the broker writes itself. That of AUTH is in
/// `crate::auth`.
#[test]
fn packets_of_the_broker_have_the_prescribed_flags() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("flags"), unique("flags"));
        let (mut client, _) = Hello::new(version, &id).open(broker.addr());
        assert_eq!(client.last_frame()[0], 0x20);
        client.subscribe(&topic, 2);
        assert_eq!(client.last_frame()[0], 0x90);
        let mut sender = Client::connect(&broker, version);
        for (qos, answers) in [(1, &[PUBACK][..]), (2, &[PUBREC, PUBCOMP])] {
            sender.publish(&topic, "x", qos, 9);
            for (number, answer) in answers.iter().enumerate() {
                assert_eq!(sender.next(), Got::Ack(*answer, 9, 0));
                assert_eq!(sender.last_frame()[0], *answer);
                if number + 1 < answers.len() {
                    sender.ack(PUBREL, 9);
                }
            }
            let message = client.message();
            assert_eq!(client.last_frame()[0], 0x30 | qos << 1);
            client.ack(if qos == 1 { PUBACK } else { PUBREC }, message.id);
        }
        client.next();
        assert_eq!(client.last_frame()[0], PUBREL);
        client.unsubscribe(&topic);
        assert_eq!(client.last_frame()[0], 0xB0);
        client.send(&[0xC0, 0]);
        assert_eq!(client.next(), Got::PingResp);
        assert_eq!(client.last_frame()[0], 0xD0);

        let (_second, _) = Hello::new(version, &id).open(broker.addr());
        match client.next() {
            Got::Disconnect(_) if version == V5 => assert_eq!(client.last_frame()[0], 0xE0),
            other => assert_eq!(other, Got::Closed),
        }
    }
    broker.stop();
}

/// Section 2.1.4 of MQTT 5.0, 2.2.3 of MQTT 3.1.1: at most four bytes.
/// [MQTT-4.13.1-1] [MQTT-4.8.0-1 of 3.1.1]
#[test]
fn remaining_length_of_five_bytes_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let mut client = Client::connect(&broker, version);
        client.send(&[0x30, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]);
        client.assert_refused(&[0x81]);
        let mut client = Client::raw(broker.addr(), version);
        client.send(&[0x10, 0x80, 0x80, 0x80, 0x80, 0x01]);
        client.assert_closed();
    }
    broker.stop();
}

/// Type 0, and type 15 before MQTT 5. [MQTT-4.13.1-1] [MQTT-4.8.0-1 of 3.1.1]
#[test]
fn packet_of_a_type_that_is_reserved_ends_the_connection() {
    let broker = Broker::start();
    for (version, first_byte) in [(V5, 0x00), (V311, 0x00), (V311, 0xF0)] {
        let mut client = Client::connect(&broker, version);
        client.send(&[first_byte, 0]);
        client.assert_refused(&[0x81, 0x82]);
    }
    broker.stop();
}

/// [MQTT-2.2.1-2] [MQTT-2.3.1-5 of 3.1.1]
#[test]
fn publish_of_qos_0_has_no_packet_identifier() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("none");
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let bare = frame(0x30, &[&string(&topic), no_properties, b"payload"]);
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        // Byte for byte: what follows the topic is properties and payload.
        sender.send(&bare);
        assert_eq!(receiver.next_frame().unwrap(), bare);
        // Also when it was published with one.
        receiver.subscribe(&topic, 0);
        sender.deliver(&topic, "payload");
        assert_eq!(receiver.next_frame().unwrap(), bare);
    }
    broker.stop();
}

/// A client has no choice either. [MQTT-2.2.1-3] [MQTT-2.3.1-1 of 3.1.1]
#[test]
fn packet_identifier_zero_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let filter = string("zero");
        for packet in [
            frame(0x32, &[&filter, &[0, 0], no_properties]),
            frame(0x34, &[&filter, &[0, 0], no_properties]),
            frame(0x82, &[&[0, 0], no_properties, &filter, &[0]]),
            frame(0xA2, &[&[0, 0], no_properties, &filter]),
        ] {
            let mut client = Client::connect(&broker, version);
            client.send(&packet);
            client.assert_refused(&[0x81, 0x82]);
        }
    }
    broker.stop();
}

/// [MQTT-2.2.1-4] [MQTT-2.3.1-1 of 3.1.1] [MQTT-2.3.1-4 of 3.1.1]
#[test]
fn packet_identifiers_of_the_broker_are_not_zero_and_not_in_use_when_they_come_round_again() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("ids");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 1);
        let mut sender = Client::connect(&broker, version);
        // Ten at a time are open, and each is acknowledged when the next ten are, too.
        let mut open: Vec<u16> = Vec::new();
        for _ in 0..AROUND / 5 {
            let came = five_more(&mut sender, &mut receiver, &topic);
            assert!(
                came.iter().all(|id| *id != 0 && !open.contains(id)),
                "{came:?}, open: {open:?}"
            );
            open.iter().for_each(|id| receiver.ack(PUBACK, *id));
            open = came;
        }
    }
    broker.stop();
}

/// A broker may leave out what is in use, or wait until it is acknowledged. [MQTT-2.2.1-4] [MQTT-2.3.1-4 of 3.1.1]
#[test]
fn packet_identifiers_that_stay_in_use_are_not_used_for_others() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("ids");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        // Of QoS 1, and of QoS 2 before and after PUBREC.
        let mut in_use = Vec::new();
        for (id, qos) in [(1, 1), (2, 2), (3, 2)] {
            sender.publish(&topic, "open", qos, id);
            sender.complete(qos, id);
            let message = receiver.message();
            assert!(message.id != 0 && !in_use.contains(&message.id));
            in_use.push(message.id);
        }
        receiver.ack(PUBREC, in_use[2]);
        assert_eq!(receiver.next(), Got::Ack(PUBREL, in_use[2], 0));
        // All others, each once if they are given out in order.
        for _ in 0..(65_535 - in_use.len()) / 5 {
            let came = five_more(&mut sender, &mut receiver, &topic);
            assert!(came.iter().all(|id| *id != 0 && !in_use.contains(id)), "{came:?}, {in_use:?}");
            came.iter().for_each(|id| receiver.ack(PUBACK, *id));
        }
        for _ in 0..10 {
            sender.deliver(&topic, "");
        }
        let mut came = 0;
        for _ in 0..2 {
            receiver.send(&[0xC0, 0]);
            while let Got::Publish(message) = receiver.next() {
                assert!(!in_use.contains(&message.id), "{} is in use", message.id);
                receiver.ack(PUBACK, message.id);
                came += 1;
            }
        }
        receiver.ack(PUBACK, in_use[0]);
        receiver.ack(PUBREC, in_use[1]);
        receiver.ack(PUBCOMP, in_use[2]);
        while came < 10 {
            match receiver.next() {
                Got::Publish(_) => came += 1,
                other => {
                    assert_eq!(other, Got::Ack(PUBREL, in_use[1], 0));
                    receiver.ack(PUBCOMP, in_use[1]);
                }
            }
        }
    }
    broker.stop();
}

/// A few more than there are packet identifiers.
const AROUND: usize = 65_600;

/// Publishes five messages of QoS 1, and returns the identifiers that they arrive with.
fn five_more(sender: &mut Client, receiver: &mut Client, topic: &str) -> Vec<u16> {
    let version = sender.version();
    let one = |id| Publication::new(topic, "").qos(1, id).bytes(version);
    sender.send(&(11..=15).flat_map(one).collect::<Vec<_>>());
    for id in 11..=15 {
        assert_eq!(sender.next(), Got::Ack(PUBACK, id, 0));
    }
    let ids: Vec<u16> = (0..5).map(|_| receiver.message().id).collect();
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 5, "{ids:?}");
    ids
}

/// [MQTT-2.2.1-5] [MQTT-2.2.1-6] [MQTT-2.3.1-6 of 3.1.1] [MQTT-2.3.1-7 of 3.1.1]
#[test]
fn each_answer_has_the_packet_identifier_of_what_it_answers() {
    let broker = Broker::start();
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let topic = unique("same");
        let mut client = Client::connect(&broker, version);
        for id in [1, 2, 0x00FF, 0x0100, 0x8000, 0xFFFF_u16] {
            let raw_id = id.to_be_bytes();
            client.publish(&topic, "", 1, id);
            assert!(matches!(client.next(), Got::Ack(PUBACK, got, _) if got == id));
            client.publish(&topic, "", 2, id);
            assert!(matches!(client.next(), Got::Ack(PUBREC, got, _) if got == id));
            client.ack(PUBREL, id);
            assert_eq!(client.next(), Got::Ack(PUBCOMP, id, 0));
            let filter = string(unique("other"));
            client.send(&frame(0x82, &[&raw_id, no_properties, &filter, &[1]]));
            assert_eq!(client.next(), Got::SubAck(id, vec![1]));
            client.send(&frame(0xA2, &[&raw_id, no_properties, &filter]));
            assert!(matches!(client.next(), Got::UnsubAck(got, _) if got == id));
        }
        // What answers a PUBREC of the client.
        client.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for _ in 0..300 {
            sender.deliver_at(&topic, "", 2);
            let id = client.message().id;
            client.ack(PUBREC, id);
            assert_eq!(client.next(), Got::Ack(PUBREL, id, 0));
            client.ack(PUBCOMP, id);
        }
    }
    broker.stop();
}

/// [MQTT-2.2.2-1]
#[test]
fn empty_list_of_properties_has_its_length() {
    let broker = Broker::start();
    let topic = unique("empty");
    let mut client = Client::connect(&broker, V5);
    client.subscribe(&topic, 0);
    // Behind the identifier there is a length, whatever it is, and then one code.
    let suback = client.last_frame();
    assert_eq!(suback.len(), 2 + 2 + 1 + usize::from(suback[4]) + 1);
    client.publish(&topic, "", 0, 0);
    assert_eq!(client.next_frame().unwrap(), frame(0x30, &[&string(&topic), &[0]]));
    client.unsubscribe(&topic);
    let unsuback = client.last_frame();
    assert_eq!(unsuback.len(), 2 + 2 + 1 + usize::from(unsuback[4]) + 1);

    for packet in [
        frame(0x30, &[&string(&topic)]),
        frame(0x32, &[&string(&topic), &[0, 1]]),
        frame(0x82, &[&[0, 1]]),
        frame(0xA2, &[&[0, 1]]),
    ] {
        let mut client = Client::connect(&broker, V5);
        client.send(&packet);
        client.assert_refused(&[0x81, 0x82]);
    }
    let mut client = Client::raw(broker.addr(), V5);
    client.send(&frame(0x10, &[b"\0\x04MQTT\x05\x02\0\0"]));
    client.assert_connect_refused(&[0x81, 0x82]);
    broker.stop();
}

/// Section 2.2.2.2: table 2-4 says which packet may carry which property. [MQTT-4.13.1-1]
#[test]
fn each_packet_takes_its_own_properties_and_no_other() {
    let broker = Broker::start();
    for (id, property, allowed) in properties() {
        for place in Place::ALL {
            let (mut client, answer) = place.send(&[property], &broker);
            // What means something that is not the matter here.
            let is_another_matter =
                matches!(id, 0x15 | 0x16 | 0x1C | 0x23) || id == 0x0B && place == Place::Publish;
            if !allowed.contains(&place) {
                place.assert_refused(&mut client, answer, &[0x81, 0x82]);
            } else if !is_another_matter {
                place.assert_taken(&mut client, answer);
            }
        }
    }
    for unknown in (0..=0x7F).filter(|id| properties().iter().all(|(known, ..)| known != id)) {
        let mut client = Client::connect(&broker, V5);
        client.send(&frame(0x30, &[b"\0\x01t", &[2, unknown, 0]]));
        client.assert_refused(&[0x81, 0x82]);
    }
    broker.stop();
}

/// Section 2.2.2.2, and that of each property: more than once is a Protocol Error, but for user
/// properties. [MQTT-4.13.1-1]
#[test]
fn property_that_comes_twice_ends_the_connection_unless_it_is_a_user_property() {
    let broker = Broker::start();
    for (_, property, allowed) in properties() {
        for place in Place::ALL.into_iter().filter(|place| allowed.contains(place)) {
            let (mut client, answer) = place.send(&[property, property], &broker);
            if matches!(property, Property::UserProperty { .. }) {
                place.assert_taken(&mut client, answer);
            } else {
                place.assert_refused(&mut client, answer, &[0x81, 0x82]);
            }
        }
    }
    broker.stop();
}

/// Section 2.2.2.1, and that of each type of data. [MQTT-4.13.1-1]
#[test]
fn property_that_is_cut_off_ends_the_connection() {
    let broker = Broker::start();
    for (_, property, allowed) in properties() {
        if !allowed.contains(&Place::Publish) {
            continue;
        }
        let whole = property_list(&[property]);
        for len in 1..whole.len() - 1 {
            let cut = [&[len as u8], &whole[1..=len]].concat();
            let mut client = Client::connect(&broker, V5);
            client.send(&frame(0x30, &[b"\0\x01t", &cut, b"payload"]));
            client.assert_refused(&[0x81, 0x82]);
        }
        // A list that is longer than its packet.
        let mut client = Client::connect(&broker, V5);
        let longer = [&[whole[0] + 1], &whole[1..]].concat();
        client.send(&frame(0x30, &[b"\0\x01t", &longer]));
        client.assert_refused(&[0x81, 0x82]);
    }
    broker.stop();
}

/// Every packet with a string that a client may send, with `text` as this string.
fn assert_no_string_may_be(text: &[u8], broker: &Broker) {
    let (bad, good) = (&string(text)[..], &string("good")[..]);
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let id = &string(unique("strings"))[..];
        let level = if version == V5 { 5 } else { 4 };
        let connect = |flags: u8, rest: &[&[u8]]| {
            frame(0x10, &[&string("MQTT"), &[level, flags, 0, 0], &rest.concat()])
        };
        let mut connects = vec![
            connect(0x02, &[no_properties, bad]),
            connect(0x06, &[no_properties, id, no_properties, bad, good]),
            connect(0x82, &[no_properties, id, bad]),
        ];
        let mut packets = vec![
            frame(0x30, &[bad, no_properties]),
            frame(0x32, &[bad, &[0, 1], no_properties]),
            frame(0x82, &[&[0, 1], no_properties, bad, &[0]]),
            frame(0x82, &[&[0, 1], no_properties, good, &[0], bad, &[0]]),
            frame(0xA2, &[&[0, 1], no_properties, bad]),
        ];
        if version == V5 {
            let list = |parts: &[&[u8]]| {
                let list = parts.concat();
                [&[list.len() as u8], &list[..]].concat()
            };
            let (name, value) = (list(&[&[0x26], bad, good]), list(&[&[0x26], good, bad]));
            for user_property in [&name, &value] {
                connects.push(connect(0x02, &[user_property, id]));
                connects.push(connect(0x06, &[&[0], id, user_property, good, good]));
                packets.push(frame(0x30, &[good, user_property]));
                packets.push(frame(PUBACK, &[&[0, 1, 0], user_property]));
                packets.push(frame(0x82, &[&[0, 1], user_property, good, &[0]]));
                packets.push(frame(0xA2, &[&[0, 1], user_property, good]));
                packets.push(frame(0xE0, &[&[0], user_property]));
            }
            // Authentication Method.
            connects.push(connect(0x02, &[&list(&[&[0x15], bad]), id]));
            for content_type_or_response_topic in [0x03, 0x08] {
                let list = list(&[&[content_type_or_response_topic], bad]);
                connects.push(connect(0x06, &[&[0], id, &list, good, good]));
                packets.push(frame(0x30, &[good, &list]));
            }
            let reason_string = list(&[&[0x1F], bad]);
            for first_byte in [PUBACK, PUBREC, PUBREL, PUBCOMP] {
                packets.push(frame(first_byte, &[&[0, 1, 0], &reason_string]));
            }
            packets.push(frame(0xE0, &[&[0], &reason_string]));
        }
        for connect in connects {
            let mut client = Client::raw(broker.addr(), version);
            client.send(&connect);
            let codes: &[u8] = if version == V5 { &[0x81, 0x85, 0x90] } else { &[] };
            client.assert_connect_refused(codes);
        }
        for packet in packets {
            let mut client = Client::connect(broker, version);
            client.send(&packet);
            client.assert_refused(&[0x81, 0x90]);
        }
    }
}

/// A well-formed packet of each type that has reserved flags, but for CONNECT.
fn whole_packets(version: ProtocolVersion) -> Vec<Vec<u8>> {
    let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
    let filter = &string("flags")[..];
    let mut packets = vec![
        frame(PUBACK, &[&[0, 9]]),
        frame(PUBREC, &[&[0, 9]]),
        frame(PUBREL, &[&[0, 9]]),
        frame(PUBCOMP, &[&[0, 9]]),
        frame(0x82, &[&[0, 9], no_properties, filter, &[0]]),
        frame(0xA2, &[&[0, 9], no_properties, filter]),
        frame(0xC0, &[]),
        frame(0xE0, &[]),
    ];
    if version == V5 {
        packets
            .push(frame(0xF0, &[&[0x19], &property_list(&[Property::AuthenticationMethod("m")])]));
    }
    packets
}

/// What a client can send with properties.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Connect,
    Will,
    Publish,
    /// PUBACK, PUBREC, PUBREL and PUBCOMP.
    Ack(u8),
    Subscribe,
    Unsubscribe,
    Disconnect,
}

impl Place {
    const ALL: [Self; 10] = [
        Self::Connect,
        Self::Will,
        Self::Publish,
        Self::Ack(PUBACK),
        Self::Ack(PUBREC),
        Self::Ack(PUBREL),
        Self::Ack(PUBCOMP),
        Self::Subscribe,
        Self::Unsubscribe,
        Self::Disconnect,
    ];

    /// Sends the packet on a new connection; returns the answer to CONNECT if it is one.
    fn send(self, list: &[Property<'_>], broker: &Broker) -> (Client, Option<Got>) {
        let id = unique("place");
        let mut hello = Hello::new(V5, &id);
        match self {
            Self::Connect => {
                hello.properties = crate::wire::properties(list);
            }
            Self::Will => {
                hello = hello.will(&id, "", 0, false);
                hello.will_properties = crate::wire::properties(list);
            }
            _ => (),
        }
        let (mut client, answer) = hello.try_open(broker.addr());
        if matches!(self, Self::Connect | Self::Will) {
            return (client, Some(answer));
        }
        let options = SubscribeOptions::new(Qos::AtMostOnce);
        match self {
            Self::Connect | Self::Will => (),
            Self::Publish => {
                let properties = crate::wire::properties(list);
                client.send_publication(&Publication { properties, ..Publication::new(&id, "") });
            }
            Self::Ack(first_byte) => client.ack_with(first_byte, 9, 0, list),
            Self::Subscribe => {
                client.send_subscribe_with(&[(&id, options)], list);
            }
            Self::Unsubscribe => {
                client.send_unsubscribe(&[&id], list);
            }
            Self::Disconnect => client.send_disconnect(0, list),
        }
        (client, None)
    }

    #[track_caller]
    fn assert_taken(self, client: &mut Client, answer: Option<Got>) {
        match (self, answer) {
            (_, Some(answer)) => assert!(matches!(answer, Got::ConnAck(_, 0, _)), "{answer:?}"),
            (Self::Disconnect, None) => client.assert_closed(),
            (_, None) => {
                client.send(&[0xC0, 0]);
                let is_end = |got: &Got| matches!(got, Got::Disconnect(_) | Got::Closed);
                let mut got = client.next();
                while got != Got::PingResp {
                    assert!(!is_end(&got), "{self:?} was not taken: {got:?}");
                    got = client.next();
                }
            }
        }
    }

    #[track_caller]
    fn assert_refused(self, client: &mut Client, answer: Option<Got>, codes: &[u8]) {
        match answer {
            Some(Got::ConnAck(false, code, _)) if codes.contains(&code) => client.assert_closed(),
            Some(answer) => {
                assert!(answer == Got::Closed && is_pointed_elsewhere(), "{self:?}: {answer:?}");
            }
            None => client.assert_refused(codes),
        }
    }
}

/// Every property with its identifier, a value that it may have, and where a client may send it.
fn properties() -> Vec<(u8, Property<'static>, Vec<Place>)> {
    use Place::{Ack, Connect, Disconnect, Publish, Subscribe, Will};
    let acks = [PUBACK, PUBREC, PUBREL, PUBCOMP].map(Ack);
    let user = Property::UserProperty { name: "name", value: "value" };
    vec![
        (0x01, Property::PayloadFormatIndicator(true), vec![Publish, Will]),
        (0x02, Property::MessageExpiryInterval(100), vec![Publish, Will]),
        (0x03, Property::ContentType("text"), vec![Publish, Will]),
        (0x08, Property::ResponseTopic("answer"), vec![Publish, Will]),
        (0x09, Property::CorrelationData(b"\0\xFF"), vec![Publish, Will]),
        (0x0B, Property::SubscriptionIdentifier(7), vec![Publish, Subscribe]),
        (0x11, Property::SessionExpiryInterval(0), vec![Connect, Disconnect]),
        (0x12, Property::AssignedClientIdentifier("id"), vec![]),
        (0x13, Property::ServerKeepAlive(9), vec![]),
        (0x15, Property::AuthenticationMethod("method"), vec![Connect]),
        (0x16, Property::AuthenticationData(b"data"), vec![Connect]),
        (0x17, Property::RequestProblemInformation(true), vec![Connect]),
        (0x18, Property::WillDelayInterval(1), vec![Will]),
        (0x19, Property::RequestResponseInformation(true), vec![Connect]),
        (0x1A, Property::ResponseInformation("here"), vec![]),
        (0x1C, Property::ServerReference("there"), vec![Disconnect]),
        (0x1F, Property::ReasonString("why"), [&acks[..], &[Disconnect]].concat()),
        (0x21, Property::ReceiveMaximum(10), vec![Connect]),
        (0x22, Property::TopicAliasMaximum(10), vec![Connect]),
        (0x23, Property::TopicAlias(1), vec![Publish]),
        (0x24, Property::MaximumQos(Qos::AtLeastOnce), vec![]),
        (0x25, Property::RetainAvailable(true), vec![]),
        (0x26, user, Place::ALL.to_vec()),
        (0x27, Property::MaximumPacketSize(1_000), vec![Connect]),
        (0x28, Property::WildcardSubscriptionAvailable(true), vec![]),
        (0x29, Property::SubscriptionIdentifierAvailable(true), vec![]),
        (0x2A, Property::SharedSubscriptionAvailable(true), vec![]),
    ]
}

fn vbi_len(value: usize) -> usize {
    match value {
        0..=0x7F => 1,
        0x80..=0x3FFF => 2,
        0x4000..=0x1F_FFFF => 3,
        _ => 4,
    }
}

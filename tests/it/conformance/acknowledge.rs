//! PUBACK, PUBREC, PUBREL and PUBCOMP (3.4 to 3.7).

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS, frame,
    property_list, string,
};

/// Each acknowledgement with its table of reason codes (3.4.2.1, 3.5.2.1, 3.6.2.1 and 3.7.2.1).
const CODES: [(u8, &[u8]); 4] = [
    (PUBACK, &PUBLISH_CODES),
    (PUBREC, &PUBLISH_CODES),
    (PUBREL, &[0x00, 0x92]),
    (PUBCOMP, &[0x00, 0x92]),
];

const PUBLISH_CODES: [u8; 9] = [0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];

/// What the broker sends: each acknowledgement in all situations that a client can make.
/// [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]
#[test]
fn reason_code_of_the_broker_is_one_of_its_packet_and_says_what_happened() {
    let broker = Broker::start();
    let topic = unique("codes");
    let mut receiver = Client::connect(&broker, V5);
    let mut sender = Client::connect(&broker, V5);
    // Nobody has subscribed, which a broker need not know; somebody has, which it must not deny.
    for known in [&[0x00, 0x10][..], &[0x00]] {
        for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
            sender.publish(&topic, "x", qos, 7);
            assert!(
                matches!(sender.next(), Got::Ack(got, 7, code) if got == ack && known.contains(&code))
            );
            if qos == 2 {
                sender.ack(PUBREL, 7);
                assert_eq!(sender.next(), Got::Ack(PUBCOMP, 7, 0x00));
            }
        }
        if known.len() > 1 {
            receiver.subscribe(&topic, 2);
        }
    }
    for _ in 0..2 {
        let message = receiver.message();
        receiver.take(&message);
    }
    // Refused for whatever reason, or not.
    for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
        for topic in ["$SYS/broker/uptime", "$SYS/x"] {
            let mut client = Client::connect(&broker, V5);
            client.publish(topic, "x", qos, 8);
            match client.next() {
                Got::Ack(got, 8, code) => assert!(got == ack && PUBLISH_CODES.contains(&code)),
                other => assert!(matches!(other, Got::Disconnect(_) | Got::Closed), "{other:?}"),
            }
        }
    }
    broker.stop();
}

/// Persistent, wildcard and shared subscriptions are subscribers, and a client may be its own.
/// [MQTT-3.4.2-1] [MQTT-3.5.2-1]
#[test]
fn no_matching_subscribers_is_not_said_of_a_message_that_somebody_gets() {
    let broker = Broker::start();
    let id = unique("somebody");
    for filter in ["", "/#", "/+", "/a"] {
        for share in [String::new(), format!("$share/{id}/")] {
            let stem = unique("some");
            let (topic, filter) = (format!("{stem}/a"), format!("{share}{stem}{filter}"));
            let is_matched = filter != format!("{share}{stem}");
            let (mut away, _) = Hello::persistent(V5, &id).open(broker.addr());
            away.subscribe(&filter, 1);
            if share.is_empty() {
                away.disconnect();
            }
            let mut sender = Client::connect(&broker, V5);
            for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
                sender.publish(&topic, "x", qos, 7);
                match sender.next() {
                    Got::Ack(got, 7, 0x00) => assert_eq!(got, ack),
                    Got::Ack(got, 7, 0x10) => assert!(got == ack && !is_matched, "{filter}"),
                    other => panic!("{other:?}"),
                }
            }
            Hello::new(V5, &id).open(broker.addr()).0.disconnect();
        }
    }
    broker.stop();
}

/// What the client sends. [MQTT-3.4.2-1] [MQTT-3.5.2-1] [MQTT-3.6.2-1] [MQTT-3.7.2-1]
#[test]
fn reason_code_that_is_none_of_its_packet_ends_the_connection() {
    let broker = Broker::start();
    for (first_byte, allowed) in CODES {
        for code in (0..=0xFF_u8).filter(|code| !allowed.contains(code)) {
            let mut client = Client::connect(&broker, V5);
            client.ack_with(first_byte, 9, code, &[]);
            client.assert_refused(&[0x81, 0x82]);
        }
    }
    broker.stop();
}

/// An error ends the flow as success does: nothing follows, the place in the window is free, and the
/// message does not come again. [MQTT-3.4.2-1] [MQTT-3.5.2-1]
#[test]
fn each_reason_code_of_puback_and_pubrec_is_taken() {
    let broker = Broker::start();
    for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
        for code in PUBLISH_CODES {
            let (topic, id) = (unique("taken"), unique("taken"));
            let hello = Hello::persistent(V5, &id).with(Property::ReceiveMaximum(1));
            let (mut receiver, _) = hello.open(broker.addr());
            receiver.subscribe(&topic, 2);
            let mut sender = Client::connect(&broker, V5);
            sender.deliver_at(&topic, "one", qos);
            sender.deliver_at(&topic, "two", qos);
            let one = receiver.message();
            assert_eq!((one.text(), one.qos), ("one", qos));
            receiver.ack_with(ack, one.id, code, &[]);
            if qos == 2 && code < 0x80 {
                assert_eq!(receiver.next(), Got::Ack(PUBREL, one.id, 0));
                receiver.assert_silent();
                receiver.ack(PUBCOMP, one.id);
            }
            let two = receiver.message();
            assert_eq!((two.text(), two.dup), ("two", false));
            receiver.assert_silent();
            drop(receiver);
            let (mut receiver, _) = hello.open(broker.addr());
            let again = receiver.message();
            assert_eq!((again.text(), again.dup, again.id), ("two", true, two.id));
            receiver.take(&again);
            receiver.assert_silent();
        }
    }
    broker.stop();
}

/// 0x92 is no error during recovery. [MQTT-3.6.2-1] [MQTT-3.7.2-1]
#[test]
fn each_reason_code_of_pubrel_and_pubcomp_is_taken() {
    let broker = Broker::start();
    for code in [0x00, 0x92] {
        let topic = unique("taken");
        let hello = Hello::new(V5, &topic).with(Property::ReceiveMaximum(1));
        let (mut receiver, _) = hello.open(broker.addr());
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, V5);
        for text in ["one", "two"] {
            sender.publish(&topic, text, 2, 7);
            assert_eq!(sender.next(), Got::Ack(PUBREC, 7, 0));
            sender.ack_with(PUBREL, 7, code, &[]);
            assert_eq!(sender.next(), Got::Ack(PUBCOMP, 7, 0));
        }
        let one = receiver.message();
        receiver.ack(PUBREC, one.id);
        assert_eq!(receiver.next(), Got::Ack(PUBREL, one.id, 0));
        receiver.ack_with(PUBCOMP, one.id, code, &[]);
        assert_eq!(receiver.message().text(), "two");
        receiver.assert_silent();
    }
    broker.stop();
}

/// MQTT 5 has a code for it, 0x92, in PUBREL and PUBCOMP alone (3.6.2.1 and 3.7.2.1). Another broker may
/// call it a success, as MQTT 3.1.1 has to. [MQTT-3.6.2-1] [MQTT-3.7.2-1]
#[test]
fn pubrel_and_pubrec_of_an_unknown_identifier_are_answered() {
    let broker = Broker::start();
    for version in VERSIONS {
        let codes: &[u8] = match version {
            V5 if is_pointed_elsewhere() => &[0x92, 0],
            V5 => &[0x92],
            _ => &[0],
        };
        let mut client = Client::connect(&broker, version);
        for (first_byte, answer) in [(PUBREL, PUBCOMP), (PUBREC, PUBREL)] {
            client.ack(first_byte, 99);
            match client.next() {
                Got::Ack(got, 99, code) => assert!(got == answer && codes.contains(&code)),
                other => panic!("{first_byte:#x} was answered by {other:?}"),
            }
        }
        client.ack(PUBACK, 99);
        client.ack(PUBCOMP, 99);
        client.assert_silent();
    }
    broker.stop();
}

/// Sections 3.4.2.1 and 3.4.2.2.1, and those of the others: what says nothing may be left out.
#[test]
fn short_and_long_forms_of_an_acknowledgement_are_taken() {
    let broker = Broker::start();
    let why = property_list(&[
        Property::UserProperty { name: "a", value: "b" },
        Property::ReasonString("because"),
        Property::UserProperty { name: "a", value: "b" },
    ]);
    let forms = [&[][..], &[0], &[0, 0], &[&[0][..], &why].concat()];
    for (version, forms) in [(V311, &forms[..1]), (V5, &forms[..])] {
        for form in forms {
            let topic = unique("forms");
            let mut receiver = Client::connect(&broker, version);
            receiver.subscribe(&topic, 2);
            let mut sender = Client::connect(&broker, version);
            let ack = |client: &mut Client, first_byte, id: u16| {
                client.send(&frame(first_byte, &[&id.to_be_bytes(), form]));
            };
            sender.deliver(&topic, "x");
            let message = receiver.message();
            ack(&mut receiver, PUBACK, message.id);
            sender.publish(&topic, "x", 2, 0x0102);
            assert_eq!(sender.next(), Got::Ack(PUBREC, 0x0102, 0));
            ack(&mut sender, PUBREL, 0x0102);
            assert_eq!(sender.next(), Got::Ack(PUBCOMP, 0x0102, 0));
            let message = receiver.message();
            ack(&mut receiver, PUBREC, message.id);
            assert_eq!(receiver.next(), Got::Ack(PUBREL, message.id, 0));
            ack(&mut receiver, PUBCOMP, message.id);
            receiver.assert_silent();
            sender.assert_silent();
        }
    }
    broker.stop();
}

/// A client before MQTT 5 gets no byte more than it knows (sections 3.4 to 3.7 of MQTT 3.1.1).
#[test]
fn acknowledgement_of_3_1_1_is_its_identifier_alone() {
    let broker = Broker::start();
    let topic = unique("alone");
    let mut client = Client::connect(&broker, V311);
    let mut next = |packet: &[u8]| {
        client.send(packet);
        client.next_frame().unwrap()
    };
    // To nobody, to somebody, and of nothing: each has a code in MQTT 5.
    let publish = |topic: &str, qos| Publication::new(topic, "x").qos(qos, 0x0102).bytes(V311);
    for topic in [&topic[..], "$SYS/x"] {
        assert_eq!(next(&publish(topic, 1)), [PUBACK, 2, 1, 2]);
        assert_eq!(next(&publish(topic, 2)), [PUBREC, 2, 1, 2]);
        assert_eq!(next(&[PUBREL, 2, 1, 2]), [PUBCOMP, 2, 1, 2]);
        assert_eq!(next(&[PUBREL, 2, 1, 2]), [PUBCOMP, 2, 1, 2]);
    }
    assert_eq!(next(&[PUBREC, 2, 3, 4]), [PUBREL, 2, 3, 4]);
    broker.stop();
}

/// Too short, too long, and with a list that does not fit. [MQTT-3.4.2-1] [MQTT-3.5.2-1]
/// [MQTT-3.6.2-1] [MQTT-3.7.2-1]
#[test]
fn acknowledgement_of_the_wrong_length_ends_the_connection() {
    let broker = Broker::start();
    for (first_byte, _) in CODES {
        for body in
            [&[][..], &[0], &[0, 0], &[0, 9, 0, 0, 0], &[0, 9, 0, 2, 0x1F, 0], &[0, 9, 0, 9]]
        {
            let mut client = Client::connect(&broker, V5);
            client.send(&frame(first_byte, &[body]));
            client.assert_refused(&[0x81, 0x82]);
        }
        for body in [&[][..], &[0], &[0, 0], &[0, 9, 0], &[0, 9, 0, 0]] {
            let mut client = Client::connect(&broker, V311);
            client.send(&frame(first_byte, &[body]));
            client.assert_refused(&[]);
        }
    }
    broker.stop();
}

/// [MQTT-3.6.1-1] [MQTT-3.6.1-1 of 3.1.1]
#[test]
fn pubrel_has_its_flags_and_one_with_others_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("flags");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        for flags in 0..=0x0F_u8 {
            let mut sender = Client::connect(&broker, version);
            sender.publish(&topic, "x", 2, 7);
            assert!(matches!(sender.next(), Got::Ack(PUBREC, 7, 0)));
            sender.ack(0x60 | flags, 7);
            if flags == 0b0010 {
                assert_eq!(sender.next(), Got::Ack(PUBCOMP, 7, 0));
                sender.assert_silent();
            } else {
                sender.assert_refused(&[0x81]);
            }
        }
        let message = receiver.message();
        receiver.ack(PUBREC, message.id);
        loop {
            match receiver.next() {
                Got::Publish(_) => (),
                got => break assert_eq!(got, Got::Ack(PUBREL, message.id, 0)),
            }
        }
        assert_eq!(receiver.last_frame()[0], 0b0110_0010);
    }
    broker.stop();
}

/// [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2] [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.6.2-3]
/// [MQTT-3.7.2-2] [MQTT-3.7.2-3]
#[test]
fn reason_string_and_user_properties_leave_an_acknowledgement_within_the_packet_size_of_the_client()
{
    let broker = Broker::start();
    let longest = each_refusing_acknowledgement(&broker, None).into_iter().map(|it| it.len()).max();
    for limit in 4..=longest.unwrap_or(0).max(100) as u32 {
        let size = Property::MaximumPacketSize(limit);
        for frame in each_refusing_acknowledgement(&broker, Some(size)) {
            assert!(frame.len() <= limit as usize, "{} bytes of {limit}: {frame:x?}", frame.len());
        }
    }
    broker.stop();
}

/// Section 3.1.2.11.7. [MQTT-3.1.2-29]
#[test]
fn acknowledgement_says_no_more_than_its_code_to_a_client_that_wants_no_more() {
    let broker = Broker::start();
    let no = Property::RequestProblemInformation(false);
    for frame in each_refusing_acknowledgement(&broker, Some(no)) {
        assert!(frame.len() <= 6, "{frame:x?}");
    }
    broker.stop();
}

/// What a client sends has its limit, too. [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2]
/// [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3]
#[test]
fn acknowledgement_over_the_packet_size_of_the_broker_ends_the_connection() {
    let broker = Broker::start_configured("packet_bytes_max = 200");
    for (first_byte, _) in CODES {
        for len in [200, 201, 202, 400] {
            // Behind the header: identifier, code, length of the list, and the property around the text.
            let around = 3 + 2 + 1 + 2 + 3;
            let reason_string = [&[0x1F], &string("x".repeat(len - around))[..]].concat();
            let value = "x".repeat(len - around - 2);
            let user_property = [&[0x26, 0, 0], &string(&value)[..]].concat();
            for property in [reason_string, user_property] {
                let property_len = [property.len() as u8 | 0x80, (property.len() >> 7) as u8];
                let packet = frame(first_byte, &[&[0, 9, 0], &property_len, &property]);
                assert_eq!(packet.len(), len);
                let mut client = Client::connect(&broker, V5);
                client.send(&packet);
                if len > 200 {
                    client.assert_refused(&[0x95]);
                } else {
                    // What answers a packet identifier of nothing is not the matter here.
                    client.send(&[0xC0, 0]);
                    let mut got = client.next();
                    if matches!(got, Got::Ack(..)) {
                        got = client.next();
                    }
                    assert_eq!(got, Got::PingResp);
                }
            }
        }
    }
    broker.stop();
}

/// Makes the broker send PUBACK, PUBREC, PUBREL and PUBCOMP with a code that says no, as far as it does;
/// to a client that said `property` in its CONNECT. A broker may refuse a client that takes hardly anything.
fn each_refusing_acknowledgement(broker: &Broker, property: Option<Property<'_>>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (packet, answer) in [
        (Publication::new("$SYS/x", "x").qos(1, 9).bytes(V5), PUBACK),
        (Publication::new("$SYS/x", "x").qos(2, 9).bytes(V5), PUBREC),
        (vec![PUBREC, 2, 0, 9], PUBREL),
        (vec![PUBREL, 2, 0, 9], PUBCOMP),
    ] {
        let id = unique("refused");
        let hello = property.into_iter().fold(Hello::new(V5, &id), Hello::with);
        let (mut client, connack) = hello.try_open(broker.addr());
        if !matches!(connack, Got::ConnAck(_, 0, _)) {
            continue;
        }
        client.send(&packet);
        match client.next() {
            Got::Ack(first_byte, 9, _) => {
                assert_eq!(first_byte, answer);
                frames.push(client.last_frame().to_vec());
            }
            other => assert!(matches!(other, Got::Disconnect(_) | Got::Closed), "{other:?}"),
        }
    }
    frames
}

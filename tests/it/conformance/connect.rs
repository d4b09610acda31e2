//! CONNECT (3.1): what is accepted, what a session, a will and a keep-alive are.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion;
use mailboxqtt::ids::ProtocolVersion::{V5, V31, V311};

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS, frame,
    property_list, publish, string,
};

/// [MQTT-3.1.0-2] [MQTT-3.1.0-2 of 3.1.1]
#[test]
fn second_connect_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let id = unique("second");
        let hello = Hello::new(version, &id);
        let (mut client, _) = hello.open(broker.addr());
        client.send(&hello.bytes());
        client.assert_refused(&[0x82]);
    }
    broker.stop();
}

/// [MQTT-3.1.0-1] [MQTT-3.1.0-1 of 3.1.1]
#[test]
fn packet_before_connect_ends_the_connection_without_an_answer() {
    let broker = Broker::start();
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        for packet in [
            publish(version, "early", b"", 1, 1, false),
            frame(0x82, &[&[0, 1], no_properties, &string("early"), &[0]]),
            frame(0xC0, &[]),
            frame(0xE0, &[]),
            frame(0xF0, &[]),
        ] {
            let mut client = Client::raw(broker.addr(), version);
            client.send(&packet);
            client.assert_closed();
        }
    }
    broker.stop();
}

/// What else the connection may be, it is not MQTT. [MQTT-3.1.2-1] [MQTT-3.1.2-1 of 3.1.1]
#[test]
fn other_protocol_name_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        for name in ["HTTP", "mqtt", "MQTt", "MQT", "MQTTT", "", "MQIsdq"] {
            let mut client = Client::raw(broker.addr(), version);
            let level = if version == V5 { 5 } else { 4 };
            let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
            let rest = [&[level, 2, 0, 60], no_properties, &string(unique("name"))].concat();
            client.send(&frame(0x10, &[&string(name), &rest]));
            match client.next() {
                Got::ConnAck(false, code, _) => {
                    assert!(version == V5 && code == 0x84, "code {code:#x} for {name}");
                    client.assert_closed();
                }
                other => assert_eq!(other, Got::Closed),
            }
        }
    }
    broker.stop();
}

/// Nobody knows in which version such a client would like its answer.
/// [MQTT-3.1.2-2] [MQTT-3.1.2-2 of 3.1.1]
#[test]
fn unknown_protocol_level_is_refused_by_code_and_closed() {
    let broker = Broker::start();
    for level in [0, 1, 2, 3, 6, 7, 0x84, 0xFF] {
        for no_properties in [&[][..], &[0]] {
            let id = string(unique("level"));
            let rest = [&[level, 2, 0, 60], no_properties, &id].concat();
            let mut client = Client::raw(broker.addr(), V311);
            client.send(&frame(0x10, &[b"\0\x04MQTT", &rest]));
            let answer = client.next_frame().expect("a CONNACK");
            let (v311, v5) = ([0x20, 2, 0, 1], [0x20, 3, 0, 0x84, 0]);
            assert!(answer == v311 || answer == v5, "level {level}: {answer:x?}");
            client.assert_closed();
        }
    }
    broker.stop();
}

/// The fields of CONNECT, each wrong in one way. A client of 3.1.1 gets no CONNACK.
/// [MQTT-3.1.2-3] [MQTT-3.1.2-9] [MQTT-3.1.2-11] [MQTT-3.1.2-12] [MQTT-3.1.2-13] [MQTT-3.1.2-16]
/// [MQTT-3.1.2-17] [MQTT-3.1.2-18] [MQTT-3.1.2-19] [MQTT-3.1.3-3] [MQTT-3.1.4-1]
/// [MQTT-3.1.2-3 of 3.1.1] [MQTT-3.1.2-9 of 3.1.1] [MQTT-3.1.2-11 of 3.1.1] [MQTT-3.1.2-13 of 3.1.1]
/// [MQTT-3.1.2-14 of 3.1.1] [MQTT-3.1.2-15 of 3.1.1] [MQTT-3.1.2-18 of 3.1.1] [MQTT-3.1.2-19 of 3.1.1]
/// [MQTT-3.1.2-20 of 3.1.1] [MQTT-3.1.2-21 of 3.1.1] [MQTT-3.1.2-22 of 3.1.1] [MQTT-3.1.3-3 of 3.1.1]
/// [MQTT-3.1.4-1 of 3.1.1] [MQTT-3.2.2-6 of 3.1.1]
#[test]
fn connect_that_is_not_well_formed_is_not_accepted() {
    let broker = Broker::start();
    for version in VERSIONS {
        let level = if version == V5 { 5 } else { 4 };
        let none: &[u8] = if version == V5 { &[0] } else { &[] };
        let connect = |flags: u8, rest: &[&[u8]]| {
            frame(0x10, &[&string("MQTT"), &[level, flags, 0, 0], none, &rest.concat()])
        };
        let id = &string(unique("bad"))[..];
        let (topic, payload, text) = (&string("bad")[..], &string("x")[..], &string("text")[..]);
        let mut malformed = vec![
            ("reserved flag", connect(0x03, &[id])),
            ("will flag without fields", connect(0x06, &[id])),
            ("will flag without payload", connect(0x06, &[id, none, topic])),
            ("will QoS without will", connect(0x0A, &[id])),
            ("will QoS 2 without will", connect(0x12, &[id])),
            ("will QoS 3 without will", connect(0x1A, &[id])),
            ("will QoS 3", connect(0x1E, &[id, none, topic, payload])),
            ("will retain without will", connect(0x22, &[id])),
            ("will fields without will flag", connect(0x02, &[id, none, topic, payload])),
            ("user name flag without user name", connect(0x82, &[id])),
            ("user name without flag", connect(0x02, &[id, text])),
            ("password flag without password", connect(0xC2, &[id, text])),
            ("password without flag", connect(0x82, &[id, text, text])),
            ("no client identifier", connect(0x02, &[])),
            ("half a client identifier", connect(0x02, &[b"\0\x05half"])),
            ("a byte too many", connect(0x02, &[id, b"x"])),
            ("no connect flags", frame(0x10, &[&string("MQTT"), &[level]])),
            ("half a keep-alive", frame(0x10, &[&string("MQTT"), &[level, 2, 0]])),
        ];
        match version {
            V5 => malformed.push(("half a will", connect(0x06, &[id, &[9], topic, payload]))),
            _ => {
                malformed.push(("password without user name", connect(0x42, &[id, text])));
                malformed.push(("no protocol level", frame(0x10, &[&string("MQTT")])));
            }
        }
        for (what, packet) in malformed {
            let mut client = Client::raw(broker.addr(), version);
            client.send(&packet);
            println!("{version:?}: {what}");
            let codes: &[u8] = if version == V5 { &[0x81, 0x82] } else { &[] };
            client.assert_connect_refused(codes);
        }
    }
    broker.stop();
}

/// MQTT 5.0, section 3.1.2.9: a password may stand alone.
#[test]
fn all_fields_of_connect_are_read_in_their_order() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("all"), unique("all"));
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 2);
        let hello = Hello::new(version, &id).will(&topic, "will", 2, false).user("me", b"\0secret");
        drop(hello.open(broker.addr()));
        let message = watcher.message();
        assert_eq!((message.text(), message.qos), ("will", 2));
    }
    let (id, password) = (unique("all"), Some(&b"alone"[..]));
    Hello { password, ..Hello::new(V5, &id) }.open(broker.addr()).0.disconnect();
    broker.stop();
}

/// Sections 3.1.2.11.3 to 3.1.2.11.7. [MQTT-4.13.1-1]
#[test]
fn connect_property_with_a_value_out_of_its_range_is_refused() {
    let broker = Broker::start();
    for list in [
        &[3, 0x21, 0, 0][..],
        &[5, 0x27, 0, 0, 0, 0],
        &[2, 0x19, 2],
        &[2, 0x17, 2],
        &[2, 0x17, 0xFF],
        // Authentication Data without a method.
        &[4, 0x16, 0, 1, 9],
    ] {
        let mut client = Client::raw(broker.addr(), V5);
        let id = string(unique("range"));
        client.send(&frame(0x10, &[b"\0\x04MQTT\x05\x02\0\0", list, &id]));
        println!("{list:x?}");
        client.assert_connect_refused(&[0x81, 0x82]);
    }
    broker.stop();
}

/// Not in the standards that this chapter is about: what clients of MQTT 3.1 need.
#[test]
fn client_of_mqtt_3_1_is_served() {
    let broker = Broker::start();
    let topic = unique("old");
    let mut client = Client::connect(&broker, V31);
    client.subscribe(&topic, 1);
    Client::connect(&broker, V5).deliver(&topic, "hello");
    assert_eq!(client.message().text(), "hello");
    client.disconnect();
    broker.stop();
}

/// [MQTT-3.1.2-4] [MQTT-3.1.4-4] [MQTT-3.1.2-6 of 3.1.1] [MQTT-3.1.4-3 of 3.1.1]
#[test]
fn clean_start_throws_everything_of_the_earlier_session_away() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("clean"), unique("clean"));
        let mut sender = Client::connect(&broker, version);
        let (mut client, _) = Hello::persistent(version, &id).open(broker.addr());
        client.subscribe(&topic, 2);
        sender.deliver(&topic, "open");
        client.message();
        client.publish(&unique("clean"), "half", 2, 5);
        assert!(matches!(client.next(), Got::Ack(PUBREC, 5, _)));
        drop(client);
        sender.deliver(&topic, "waiting");

        let (mut client, present) = Hello::new(version, &id).open(broker.addr());
        assert!(!present);
        client.assert_silent();
        sender.deliver(&topic, "late");
        client.assert_silent();
        // The identifier of the half-done message means nothing any more.
        client.ack(PUBREL, 5);
        let unknown = if version == V5 { 0x92 } else { 0 };
        match client.next() {
            Got::Ack(PUBCOMP, 5, code) => assert!(code == unknown || code == 0),
            other => panic!("{other:?}"),
        }
        client.disconnect();

        let (mut client, present) = Hello::persistent(version, &id).open(broker.addr());
        assert!(!present, "a clean session leaves nothing behind");
        client.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.1.2-5] [MQTT-3.1.2-6] [MQTT-3.1.2-23] [MQTT-4.1.0-1] [MQTT-3.1.2-4 of 3.1.1] [MQTT-3.1.2-5 of 3.1.1]
#[test]
fn session_is_resumed_with_its_subscriptions_and_the_messages_that_came_meanwhile() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("resume"), unique("resume"));
        let hello = Hello::persistent(version, &id);
        let mut sender = Client::connect(&broker, version);
        let (mut client, present) = hello.open(broker.addr());
        assert!(!present);
        client.subscribe(&topic, 2);
        client.disconnect();
        sender.deliver(&topic, "one");
        sender.deliver_at(&topic, "two", 2);

        let (mut client, present) = hello.open(broker.addr());
        assert!(present);
        let (one, two) = (client.message(), client.message());
        assert_eq!((one.text(), one.qos, one.dup), ("one", 1, false));
        assert_eq!((two.text(), two.qos, two.dup), ("two", 2, false));
        client.ack(PUBACK, one.id);
        client.ack(PUBREC, two.id);
        assert_eq!(client.next(), Got::Ack(PUBREL, two.id, 0));
        // The connection is lost before PUBCOMP: that is state, too.
        drop(client);
        let (mut client, present) = hello.open(broker.addr());
        assert!(present);
        assert_eq!(client.next(), Got::Ack(PUBREL, two.id, 0));
        client.ack(PUBCOMP, two.id);
        sender.deliver(&topic, "three");
        assert_eq!(client.message().text(), "three");
    }
    broker.stop();
}

/// [MQTT-3.1.2-23] [MQTT-4.1.0-2]
#[test]
fn session_ends_when_its_expiry_interval_has_passed() {
    let broker = Broker::start();
    let id = unique("expiring");
    let hello = Hello { clean_start: false, ..Hello::new(V5, &id) }
        .with(Property::SessionExpiryInterval(2));
    let (client, _) = hello.open(broker.addr());
    client.disconnect();
    let (client, present) = hello.open(broker.addr());
    assert!(present, "two seconds cannot have passed");
    client.disconnect();
    // Coming back renews the session, so each look takes another one of the same age.
    let left = Instant::now();
    let sessions: Vec<String> = (0..100).map(|_| unique("expiring")).collect();
    for id in &sessions {
        let hello = Hello::new(V5, id).with(Property::SessionExpiryInterval(1));
        hello.open(broker.addr()).0.disconnect();
    }
    let mut clock = Client::connect(&broker, V5);
    let is_gone = |id: &String| {
        clock.assert_silent_for(Duration::from_millis(100));
        let (_, present) = Hello { clean_start: false, ..Hello::new(V5, id) }.open(broker.addr());
        !present
    };
    assert!(sessions.iter().any(is_gone), "none has ended after {:?}", left.elapsed());
    assert!(left.elapsed() >= Duration::from_secs(1), "ended after {:?}", left.elapsed());
    broker.stop();
}

/// Section 3.1.2.11.2: no interval is an interval of zero; 0xFFFFFFFF is for ever. [MQTT-3.1.2-23]
#[test]
fn session_without_an_expiry_interval_ends_with_its_connection() {
    let broker = Broker::start();
    for (interval, is_kept) in [(None, false), (Some(0), false), (Some(u32::MAX), true)] {
        let id = unique("interval");
        let mut hello = Hello { clean_start: false, ..Hello::new(V5, &id) };
        if let Some(seconds) = interval {
            hello = hello.with(Property::SessionExpiryInterval(seconds));
        }
        hello.open(broker.addr()).0.disconnect();
        let (_, present) = hello.open(broker.addr());
        assert_eq!(present, is_kept, "{interval:?}");
    }
    broker.stop();
}

/// [MQTT-3.1.2-7 of 3.1.1]
#[test]
fn retained_message_outlives_the_session_of_its_publisher() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("outlive");
        let id = unique("outlive");
        let (mut sender, _) = Hello::new(version, &id).open(broker.addr());
        sender.deliver_retained(&topic, "kept");
        sender.disconnect();
        Hello::new(version, &id).open(broker.addr()).0.disconnect();
        let mut client = Client::connect(&broker, version);
        client.subscribe(&topic, 0);
        assert_eq!(client.message().text(), "kept");
        Client::connect(&broker, version).deliver_retained(&topic, "");
    }
    broker.stop();
}

/// [MQTT-3.1.2-7] [MQTT-3.1.2-8] [MQTT-3.14.4-3] [MQTT-3.1.2-8 of 3.1.1] [MQTT-3.14.4-3 of 3.1.1]
#[test]
fn will_is_published_unless_the_client_says_goodbye() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("will");
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 2);
        let open = |payload, qos| {
            let id = unique("dying");
            Hello::new(version, &id).will(&topic, payload, qos, false).open(broker.addr()).0
        };
        for qos in 0..=2 {
            drop(open("dropped", qos));
            let message = watcher.message();
            assert_eq!((message.text(), message.qos), ("dropped", qos));
        }

        open("polite", 1).disconnect();
        watcher.assert_silent();

        // The broker closes, because of a breach.
        let mut client = open("rude", 1);
        client.send_in_vain(&[0xF0 | 1, 0]);
        assert_eq!(watcher.message().text(), "rude");

        if version == V5 {
            let mut client = open("asked for", 1);
            client.send_disconnect(0x04, &[]);
            client.assert_closed();
            assert_eq!(watcher.message().text(), "asked for");
        }
    }
    broker.stop();
}

/// [MQTT-3.1.2-14] [MQTT-3.1.2-15] [MQTT-3.1.2-16 of 3.1.1] [MQTT-3.1.2-17 of 3.1.1]
#[test]
fn will_is_retained_if_it_says_so() {
    let broker = Broker::start();
    for version in VERSIONS {
        for retain in [false, true] {
            let topic = unique("kept");
            let mut watcher = Client::connect(&broker, version);
            watcher.subscribe(&topic, 0);
            let id = unique("dying");
            drop(Hello::new(version, &id).will(&topic, "will", 1, retain).open(broker.addr()));
            let message = watcher.message();
            assert_eq!((message.text(), message.retain), ("will", false));
            let mut late = Client::connect(&broker, version);
            late.subscribe(&topic, 0);
            if retain {
                let message = late.message();
                assert_eq!((message.text(), message.retain), ("will", true));
                Client::connect(&broker, version).deliver_retained(&topic, "");
            } else {
                late.assert_silent();
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.1.2-10] [MQTT-3.1.2-10 of 3.1.1] [MQTT-3.1.2-12 of 3.1.1]
#[test]
fn will_is_forgotten_once_it_was_published_or_given_up() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("once"), unique("once"));
        let hello = Hello::persistent(version, &id);
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 0);
        drop(hello.clone().will(&topic, "first", 0, false).open(broker.addr()));
        assert_eq!(watcher.message().text(), "first");
        // The session goes on, without a will.
        let (client, present) = hello.open(broker.addr());
        assert!(present);
        drop(client);
        hello.clone().will(&topic, "given up", 0, false).open(broker.addr()).0.disconnect();
        let (client, _) = hello.open(broker.addr());
        drop(client);
        // Comes behind everything that the connections before left.
        drop(hello.clone().will(&topic, "last", 0, false).open(broker.addr()));
        assert_eq!(watcher.message().text(), "last");
        watcher.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.1.3-10], and sections 3.1.3.2.3 to 3.1.3.2.7.
#[test]
fn properties_of_a_will_are_published_with_it_in_their_order() {
    let broker = Broker::start();
    let (id, topic) = (unique("props"), unique("props"));
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    let user = |name, value| Property::UserProperty { name, value };
    let users = [user("b", "1"), user("a", "2"), user("b", "1"), user("", "")];
    let others = [
        Property::PayloadFormatIndicator(true),
        Property::ContentType("text/plain"),
        Property::ResponseTopic("answer/here"),
        Property::CorrelationData(b"\0\x01"),
    ];
    let mut hello = Hello::new(V5, &id).will(&topic, "will", 0, false);
    for property in
        [users[0], others[0], users[1], others[1], others[2], users[2], others[3], users[3]]
    {
        hello = hello.will_with(property);
    }
    drop(hello.open(broker.addr()));
    let message = watcher.message();
    let got: Vec<Property<'_>> = message.properties().iter().collect();
    let got_users: Vec<_> =
        got.iter().filter(|it| matches!(it, Property::UserProperty { .. })).collect();
    assert_eq!(got_users, users.iter().collect::<Vec<_>>());
    assert!(others.iter().all(|property| got.contains(property)), "{got:?}");
    assert_eq!(got.len(), 8);
    broker.stop();
}

/// [MQTT-3.1.2-8]: the delay has to pass.
#[test]
fn will_with_a_delay_is_published_when_it_has_passed() {
    let broker = Broker::start();
    let (id, topic) = (unique("delay"), unique("delay"));
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    let hello = Hello::persistent(V5, &id).will(&topic, "late", 0, false);
    let (client, _) = hello.will_with(Property::WillDelayInterval(1)).open(broker.addr());
    let dropped = Instant::now();
    drop(client);
    assert_eq!(watcher.message().text(), "late");
    assert!(dropped.elapsed() >= Duration::from_secs(1), "after {:?}", dropped.elapsed());
    assert_eq!(watcher.last_frame()[0], 0x30, "published as if there had been no delay");
    assert_eq!(watcher.properties().will_delay_interval_s(), None);
    broker.stop();
}

/// [MQTT-3.1.3-9] [MQTT-3.1.2-8]
#[test]
fn reconnect_before_the_delay_has_passed_suppresses_the_will() {
    let broker = Broker::start();
    let (id, topic) = (unique("back"), unique("back"));
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    let delay = Property::WillDelayInterval(1);
    let hello = Hello::persistent(V5, &id);
    let with_will = hello.clone().will(&topic, "suppressed", 0, false).will_with(delay);
    drop(with_will.open(broker.addr()));
    let (_back, present) = hello.open(broker.addr());
    assert!(present);
    // Takes over while connected: also a new connection in time.
    let other = unique("back");
    let taken = Hello::persistent(V5, &other).will(&topic, "taken", 0, false).will_with(delay);
    let (_taken, _) = taken.open(broker.addr());
    let (_taker, present) = Hello::persistent(V5, &other).open(broker.addr());
    assert!(present);
    // One that dies later and with the same delay is published later.
    let last = unique("back");
    drop(
        Hello::persistent(V5, &last)
            .will(&topic, "last", 0, false)
            .will_with(delay)
            .open(broker.addr()),
    );
    assert_eq!(watcher.message().text(), "last");
    watcher.assert_silent();
    broker.stop();
}

/// [MQTT-3.1.2-8]: the delay or the end of the session, whichever is first.
#[test]
fn end_of_the_session_publishes_the_will_before_its_delay_has_passed() {
    let broker = Broker::start();
    let (id, topic) = (unique("end"), unique("end"));
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    let will = |hello: Hello<'static>| hello.will_with(Property::WillDelayInterval(3_600));
    let (id, topic_of_will): (&'static str, &'static str) = (id.leak(), topic.leak());
    let session_of = |seconds| Hello::new(V5, id).with(Property::SessionExpiryInterval(seconds));
    // With its connection.
    drop(will(session_of(0).will(topic_of_will, "no session", 0, false)).open(broker.addr()));
    assert_eq!(watcher.message().text(), "no session");
    // When it expires.
    let (client, _) =
        will(session_of(1).will(topic_of_will, "expired", 0, false)).open(broker.addr());
    let dropped = Instant::now();
    drop(client);
    assert_eq!(watcher.message().text(), "expired");
    assert!(dropped.elapsed() >= Duration::from_secs(1), "after {:?}", dropped.elapsed());
    // When a clean start throws it away.
    drop(will(session_of(3_600).will(topic_of_will, "clean start", 0, false)).open(broker.addr()));
    let (_client, _) = Hello::new(V5, id).open(broker.addr());
    assert_eq!(watcher.message().text(), "clean start");
    broker.stop();
}

/// [MQTT-3.1.2-22] [MQTT-3.1.2-24 of 3.1.1]
#[test]
fn silence_of_one_and_a_half_keep_alives_ends_the_connection_and_publishes_the_will() {
    let broker = Broker::start();
    let mut open = Vec::new();
    for version in VERSIONS {
        let topic = unique("silent");
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 0);
        let id = unique("silent");
        let hello = Hello::new(version, &id).will(&topic, "gone", 0, false);
        let started = Instant::now();
        let (client, _) = Hello { keep_alive_s: 1, ..hello }.open(broker.addr());
        open.push((started, client, watcher));
    }
    for (started, mut client, mut watcher) in open {
        client.assert_refused(&[0x8D]);
        let passed = started.elapsed();
        assert!(passed >= Duration::from_millis(1500), "closed after {passed:?}");
        assert_eq!(watcher.message().text(), "gone");
    }
    broker.stop();
}

/// Any packet counts, and none is needed without a keep-alive. [MQTT-3.1.2-22] [MQTT-3.1.2-24 of 3.1.1]
#[test]
fn client_that_sends_something_within_its_keep_alive_stays() {
    let broker = Broker::start();
    let mut clients: Vec<Client> = Vec::new();
    for version in VERSIONS {
        for keep_alive_s in [0, 1, 1] {
            let id = unique("pinging");
            clients.push(Hello { keep_alive_s, ..Hello::new(version, &id) }.open(broker.addr()).0);
        }
    }
    for _ in 0..5 {
        for clients in clients.chunks_mut(3) {
            clients[1].send(&[0xC0, 0]);
            assert_eq!(clients[1].next(), Got::PingResp);
            clients[2].publish("pinging", "", 0, 0);
        }
        clients[0].assert_silent_for(Duration::from_millis(500));
    }
    for client in &mut clients {
        client.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.1.2-24] [MQTT-3.1.2-25]
#[test]
fn message_over_the_clients_packet_size_is_left_out_and_the_others_arrive() {
    let broker = Broker::start();
    let (id, topic) = (unique("small"), unique("small"));
    let hello = Hello::new(V5, &id)
        .with(Property::MaximumPacketSize(100))
        .with(Property::ReceiveMaximum(1));
    let (mut small, _) = hello.open(broker.addr());
    let mut large = Client::connect(&broker, V5);
    for client in [&mut small, &mut large] {
        client.subscribe(&topic, 2);
    }
    let mut sender = Client::connect(&broker, V311);
    for (number, bytes) in [50, 5_000, 101, 60].into_iter().enumerate() {
        let qos = if number == 2 { 2 } else { 1 };
        sender.deliver_at(&topic, vec![b'x'; bytes], qos);
        assert_eq!(large.message().payload.len(), bytes);
    }
    let first = small.message();
    assert_eq!(first.payload.len(), 50);
    small.ack(PUBACK, first.id);
    assert_eq!(small.message().payload.len(), 60);
    small.assert_silent();
    broker.stop();
}

/// [MQTT-3.1.2-24]: to the byte, with everything that the broker adds.
#[test]
fn message_of_exactly_the_clients_packet_size_arrives() {
    let broker = Broker::start();
    for qos in 0..=2 {
        let (id, topic) = (unique("exact"), unique("exact"));
        let payload = vec![b'x'; 200];
        let publication = Publication::new(&topic, &payload).qos(qos, 1);
        let publication = publication.with(Property::ContentType("text"));
        let bytes = publication.bytes(V5);
        for (limit, arrives) in [(bytes.len(), true), (bytes.len() - 1, false)] {
            let hello = Hello::new(V5, &id).with(Property::MaximumPacketSize(limit as u32));
            let (mut client, _) = hello.open(broker.addr());
            client.subscribe(&topic, qos);
            let mut sender = Client::connect(&broker, V5);
            sender.send(&bytes);
            sender.complete(qos, 1);
            sender.deliver(&topic, "end");
            let message = client.message();
            assert_eq!(message.text() != "end", arrives, "{limit} bytes at QoS {qos}");
        }
    }
    broker.stop();
}

/// [MQTT-3.1.2-25]: an open message does not block the window of a connection that cannot take it.
#[test]
fn open_message_that_the_returning_client_cannot_take_any_more_is_given_up() {
    let broker = Broker::start();
    let (id, topic) = (unique("shrunk"), unique("shrunk"));
    let hello = Hello::persistent(V5, &id);
    let (mut client, _) = hello.open(broker.addr());
    client.subscribe(&topic, 1);
    let mut sender = Client::connect(&broker, V5);
    sender.deliver(&topic, vec![b'x'; 500]);
    assert_eq!(client.message().payload.len(), 500);
    drop(client);
    let hello = hello.with(Property::MaximumPacketSize(100)).with(Property::ReceiveMaximum(1));
    let (mut client, present) = hello.open(broker.addr());
    assert!(present);
    sender.deliver(&topic, "small");
    assert_eq!(client.message().text(), "small");
    broker.stop();
}

/// [MQTT-3.1.2-26] [MQTT-3.1.2-27]
#[test]
fn broker_uses_only_the_topic_aliases_that_the_client_allows() {
    let broker = Broker::start();
    for maximum in [None, Some(0), Some(1), Some(3), Some(u16::MAX)] {
        let (id, stem) = (unique("alias"), unique("alias"));
        let mut hello = Hello::new(V5, &id);
        if let Some(maximum) = maximum {
            hello = hello.with(Property::TopicAliasMaximum(maximum));
        }
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&format!("{stem}/+"), 0);
        let mut sender = Client::connect(&broker, V5);
        let mut topics: HashMap<u16, String> = HashMap::new();
        for round in 0..3 {
            for number in 0..10 {
                let topic = format!("{stem}/{number}");
                sender.publish(&topic, format!("{round}"), 0, 0);
                let message = client.message();
                assert_eq!(message.text(), format!("{round}"));
                let Some(alias) = message.properties().topic_alias() else {
                    assert_eq!(message.topic, topic);
                    continue;
                };
                assert!(alias != 0 && alias <= maximum.unwrap_or(0), "{alias} of {maximum:?}");
                if message.topic.is_empty() {
                    assert_eq!(topics.get(&alias), Some(&topic));
                } else {
                    assert_eq!(message.topic, topic);
                    topics.insert(alias, topic);
                }
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.1.2-28]
#[test]
fn response_information_comes_only_if_it_was_asked_for() {
    let broker = Broker::start();
    for asked in [None, Some(false)] {
        let id = unique("response");
        let mut hello = Hello::new(V5, &id);
        if let Some(asked) = asked {
            hello = hello.with(Property::RequestResponseInformation(asked));
        }
        let (client, _) = hello.open(broker.addr());
        assert_eq!(client.properties().response_information(), None);
    }
    broker.stop();
}

/// [MQTT-3.1.2-29]: PUBLISH, CONNACK and DISCONNECT alone may carry it.
#[test]
fn reasons_and_user_properties_stay_away_from_a_client_that_does_not_want_them() {
    let broker = Broker::start();
    let id = unique("terse");
    let hello = Hello::new(V5, &id).with(Property::RequestProblemInformation(false));
    let (mut client, _) = hello.open(broker.addr());
    let assert_terse = |client: &Client| {
        assert_eq!(client.properties().reason_string(), None);
        assert_eq!(client.properties().user_properties().count(), 0);
    };
    let topic = unique("terse");
    client.subscribe(&topic, 1);
    assert_terse(&client);
    client.unsubscribe(&unique("terse"));
    assert_terse(&client);
    client.publish(&unique("nobody"), "", 1, 3);
    assert!(matches!(client.next(), Got::Ack(PUBACK, 3, _)));
    assert_terse(&client);
    client.ack(PUBREL, 99);
    assert!(matches!(client.next(), Got::Ack(PUBCOMP, 99, _)));
    assert_terse(&client);
    client.ack(PUBREC, 99);
    assert!(matches!(client.next(), Got::Ack(PUBREL, 99, _)));
    assert_terse(&client);
    if !is_pointed_elsewhere() {
        // What this broker refuses without an end to the connection.
        client.subscribe_all(&[("a/#/b", 0), ("$share/", 0)]);
        assert_terse(&client);
        for (qos, ack) in [(1, PUBACK), (2, PUBREC)] {
            client.publish("$SYS/forged", "", qos, 1);
            assert_eq!(client.next(), Got::Ack(ack, 1, 0x87));
            assert_terse(&client);
        }
    }
    // In PUBLISH they belong to the message.
    let mut sender = Client::connect(&broker, V5);
    let user = Property::UserProperty { name: "name", value: "value" };
    sender.send_publication(&Publication::new(&topic, "").with(user));
    assert_eq!(client.message().properties().user_properties().count(), 1);
    broker.stop();
}

/// [MQTT-3.1.3-2] [MQTT-3.1.3-2 of 3.1.1]
#[test]
fn client_identifier_says_whose_session_it_is() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("own");
        // Different in one letter, in case, in what is around it.
        let ids =
            [format!("{stem}a"), format!("{stem}A"), format!("{stem}a "), format!("/{stem}a")];
        for id in &ids {
            let (mut client, present) = Hello::persistent(version, id).open(broker.addr());
            assert!(!present, "{id}");
            client.subscribe(&format!("{stem}/{id}"), 1);
            client.disconnect();
        }
        let mut sender = Client::connect(&broker, version);
        for id in &ids {
            sender.deliver(&format!("{stem}/{id}"), id);
        }
        for id in &ids {
            let (mut client, present) = Hello::persistent(version, id).open(broker.addr());
            assert!(present, "{id}");
            assert_eq!(client.message().text(), id);
            client.assert_silent();
        }
    }
    broker.stop();
}

/// [MQTT-3.1.3-5] [MQTT-3.1.3-5 of 3.1.1]
#[test]
fn client_identifiers_of_1_to_23_letters_and_digits_are_taken() {
    const ALL: &str = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let broker = Broker::start();
    for version in VERSIONS {
        for start in 0..ALL.len() {
            let len = (start % 23 + 1).min(ALL.len() - start);
            Hello::new(version, &ALL[start..start + len]).open(broker.addr()).0.disconnect();
        }
    }
    broker.stop();
}

/// [MQTT-3.1.3-6] [MQTT-3.1.3-7] [MQTT-3.2.2-16]
#[test]
fn empty_client_identifier_gets_a_unique_name_and_is_told_it() {
    let broker = Broker::start();
    let mut names = Vec::new();
    let mut clients = Vec::new();
    for clean_start in [true, false, true, false] {
        let hello = Hello { clean_start, ..Hello::new(V5, "") };
        let (client, _) = hello.open(broker.addr());
        let name = client.properties().assigned_client_identifier().expect("a name").to_owned();
        assert!(!name.is_empty() && !names.contains(&name), "{name} after {names:?}");
        names.push(name);
        clients.push(client);
    }
    for client in &mut clients {
        client.assert_silent();
    }
    // The client can come back under this name.
    let (_again, _) = Hello::persistent(V5, &names[0]).open(broker.addr());
    clients[0].assert_refused(&[0x8E]);
    // Who has a name gets none.
    let (client, _) = Hello::new(V5, &unique("named")).open(broker.addr());
    assert_eq!(client.properties().assigned_client_identifier(), None);
    broker.stop();
}

/// [MQTT-3.1.3-6 of 3.1.1] [MQTT-3.1.3-7 of 3.1.1] [MQTT-3.1.3-8 of 3.1.1] [MQTT-3.1.3-9 of 3.1.1]
#[test]
fn empty_client_identifier_of_3_1_1_needs_a_clean_session() {
    let broker = Broker::start();
    let hello = Hello::new(V311, "");
    let (mut client, answer) =
        Hello { clean_start: false, ..hello.clone() }.try_open(broker.addr());
    assert_eq!(answer, Got::ConnAck(false, 2, Vec::new()));
    client.assert_closed();
    // Each its own, so that nobody is taken over.
    let mut clients: Vec<Client> = (0..3).map(|_| hello.open(broker.addr()).0).collect();
    for client in &mut clients {
        client.assert_silent();
    }
    broker.stop();
}

/// This broker refuses a client identifier only for what it is made of. [MQTT-3.1.3-8]
#[test]
fn connection_with_a_client_identifier_that_is_refused_is_closed() {
    let broker = Broker::start();
    for id in [&b"\xFF"[..], b"a\0b", b"\xED\xA0\x80"] {
        let mut client = Client::raw(broker.addr(), V5);
        client.send(&frame(0x10, &[b"\0\x04MQTT\x05\x02\0\0\0", &string(id)]));
        client.assert_connect_refused(&[0x81, 0x85]);
    }
    broker.stop();
}

/// [MQTT-3.1.4-2]
#[test]
fn connect_that_fails_a_further_check_is_refused_and_closed() {
    let broker = Broker::start();
    let id = unique("further");
    let unknown_method = Hello::new(V5, &id).with(Property::AuthenticationMethod("no such method"));
    let wildcard = Hello::new(V5, &id).will("a/+/b", "", 0, false);
    let no_topic = Hello::new(V5, &id).will("", "", 0, false);
    for (hello, codes) in [
        (unknown_method, &[0x8C][..]),
        (wildcard, &[0x81, 0x82, 0x90]),
        (no_topic, &[0x81, 0x82, 0x90]),
    ] {
        let mut client = Client::raw(broker.addr(), V5);
        client.send(&hello.bytes());
        client.assert_connect_refused(codes);
    }
    broker.stop();
}

/// [MQTT-3.1.4-3] [MQTT-3.1.4-2 of 3.1.1]
#[test]
fn second_connection_takes_the_session_over_with_everything_in_it() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("over"), unique("over"));
        let hello = Hello::persistent(version, &id);
        let (mut first, _) = hello.open(broker.addr());
        first.subscribe(&topic, 1);
        let mut sender = Client::connect(&broker, version);
        sender.deliver(&topic, "unacknowledged");
        let message = first.message();

        let (mut second, present) = hello.open(broker.addr());
        assert!(present);
        first.assert_refused(&[0x8E]);
        assert_eq!(second.message(), Message { dup: true, ..message });
        sender.deliver(&topic, "next");
        assert_eq!(second.message().text(), "next");
    }
    broker.stop();
}

/// MQTT 5.0, section 3.1.4: a will without a delay is published, because its connection ended.
/// [MQTT-3.1.2-8] [MQTT-3.1.2-8 of 3.1.1]
#[test]
fn takeover_publishes_the_will_of_the_connection_that_it_ends() {
    let broker = Broker::start();
    for version in VERSIONS {
        for is_kept in [false, true] {
            let (id, topic) = (unique("over"), unique("over"));
            let hello = match is_kept {
                false => Hello::new(version, &id),
                true => Hello::persistent(version, &id),
            };
            let mut watcher = Client::connect(&broker, version);
            watcher.subscribe(&topic, 0);
            let (mut first, _) = hello.clone().will(&topic, "taken", 0, false).open(broker.addr());
            let (_second, _) = hello.open(broker.addr());
            first.assert_refused(&[0x8E]);
            assert_eq!(watcher.message().text(), "taken");
            watcher.assert_silent();
        }
    }
    broker.stop();
}

/// [MQTT-3.1.4-3] [MQTT-3.1.4-4] [MQTT-3.1.4-2 of 3.1.1] [MQTT-3.1.4-3 of 3.1.1]
#[test]
fn second_connection_with_a_clean_start_begins_anew_whatever_versions_the_two_speak() {
    let broker = Broker::start();
    for (old, new) in [(V311, V311), (V5, V5), (V311, V5), (V5, V311)] {
        let (id, topic) = (unique("anew"), unique("anew"));
        let (mut first, _) = Hello::persistent(old, &id).open(broker.addr());
        first.subscribe(&topic, 1);
        let (mut second, present) = Hello::new(new, &id).open(broker.addr());
        assert!(!present);
        first.assert_refused(&[0x8E]);
        Client::connect(&broker, new).deliver(&topic, "for nobody");
        second.assert_silent();
    }
    broker.stop();
}

/// A client need not wait for CONNACK, and TCP cuts where it likes. [MQTT-3.1.4-5]
#[test]
fn half_a_packet_behind_the_connect_waits_for_its_other_half() {
    let broker = Broker::start();
    for version in VERSIONS {
        let id = unique("half");
        let connect = Hello::new(version, &id).bytes();
        let packet = publish(version, "half", b"payload", 1, 9, false);
        for cut in 1..packet.len() {
            let mut client = Client::raw(broker.addr(), version);
            client.send(&[&connect[..], &packet[..cut]].concat());
            assert!(matches!(client.next(), Got::ConnAck(_, 0, _)));
            client.send(&packet[cut..]);
            assert!(matches!(client.next(), Got::Ack(PUBACK, 9, _)), "cut at {cut}");
        }
    }
    broker.stop();
}

/// [MQTT-3.1.4-6] [MQTT-3.1.4-5 of 3.1.1]
#[test]
fn what_comes_behind_a_refused_connect_is_not_processed() {
    let broker = Broker::start();
    let refused: [(ProtocolVersion, Vec<u8>); 3] = [
        (V311, Hello { clean_start: false, ..Hello::new(V311, "") }.bytes()),
        (V5, frame(0x10, &[b"\0\x04MQTT\x05\x03\0\0\0", &string("reserved")])),
        (V5, {
            let method = property_list(&[Property::AuthenticationMethod("no such method")]);
            frame(0x10, &[b"\0\x04MQTT\x05\x02\0\0", &method, &string(unique("refused"))])
        }),
    ];
    for (version, connect) in refused {
        let topic = unique("refused");
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 0);
        let publish = publish(version, &topic, b"x", 1, 1, true);
        let mut client = Client::raw(broker.addr(), version);
        client.send(&[&connect[..], &publish].concat());
        let codes: &[u8] = if version == V5 { &[0x81, 0x82, 0x8C] } else { &[2] };
        client.assert_connect_refused(codes);
        watcher.assert_silent();
        let mut late = Client::connect(&broker, version);
        late.subscribe(&topic, 0);
        late.assert_silent();
    }
    broker.stop();
}

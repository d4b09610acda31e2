//! PINGREQ, DISCONNECT and AUTH (3.12 to 3.15, 4.12): signs of life, the end of a connection from either
//! side, and who has to prove nothing. What takes users is in `crate::auth`.

use std::time::{Duration, Instant};

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{self, V5, V311};
use rustix::process::Signal;

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, PUBACK, Publication, VERSIONS, frame, property_list, publish, string,
};

/// The reason codes of DISCONNECT that a client may send: section 3.14.2.1.
const FROM_CLIENTS: [u8; 14] =
    [0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99];
/// Those that a server may send. 0x8C is in table 2-6 alone.
const FROM_SERVERS: [u8; 29] = [
    0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95,
    0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
];

/// [MQTT-3.12.4-1] [MQTT-3.12.4-1 of 3.1.1]
#[test]
fn each_pingreq_is_answered_by_a_pingresp() {
    let broker = Broker::start();
    for version in VERSIONS {
        let mut client = Client::connect(&broker, version);
        for count in [1, 1, 2, 300] {
            client.send(&[0xC0, 0].repeat(count));
            for _ in 0..count {
                assert_eq!(client.next_frame().unwrap(), [0xD0, 0]);
            }
        }
        // No more than that.
        client.deliver(&unique("ping"), "");
    }
    broker.stop();
}

/// Section 3.12.2: it is a header and nothing else. [MQTT-4.13.1-1] [MQTT-4.8.0-1 of 3.1.1]
#[test]
fn pingreq_with_something_in_it_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        let mut client = Client::connect(&broker, version);
        client.send(&[0xC0, 1, 0]);
        client.assert_refused(&[0x81]);
    }
    broker.stop();
}

/// [MQTT-3.14.0-1]
#[test]
fn client_that_was_not_let_in_gets_no_disconnect() {
    let broker = Broker::start();
    let id = string(unique("out"));
    let connect = |level: u8, flags: u8, rest: &[&[u8]]| {
        frame(0x10, &[b"\0\x04MQTT", &[level, flags, 0, 0], &rest.concat()])
    };
    let unknown_method = property_list(&[Property::AuthenticationMethod("no such method")]);
    let wildcard = [&[0][..], &id, &[0], &string("a/#"), &string("")].concat();
    for packet in [
        publish(V5, "out", b"", 1, 1, false),
        frame(0x82, &[&[0, 1, 0], &string("out"), &[0]]),
        frame(0xC0, &[]),
        frame(0xE0, &[]),
        frame(0xE0, &[&[0x82]]),
        frame(0xF0, &[&[0x18, 0]]),
        vec![0x00, 0],
        vec![0xC0, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
        vec![0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
        frame(0x11, &[b"\0\x04MQTT\x05\x02\0\0\0", &id]),
        frame(0x10, &[b"\0\x04MQXX\x05\x02\0\0\0", &id]),
        frame(0x10, &[b"\0\x04MQTT"]),
        connect(9, 2, &[&[0], &id]),
        connect(5, 3, &[&[0], &id]),
        connect(5, 2, &[&[9, 0x21], &id]),
        connect(5, 2, &[&[3, 0x21, 0, 0], &id]),
        connect(5, 2, &[&[4, 0x16, 0, 1, 0], &id]),
        connect(5, 2, &[&unknown_method, &id]),
        connect(5, 6, &[&wildcard]),
        connect(5, 2, &[&[0], &string([0xFF])]),
    ] {
        let mut client = Client::raw(broker.addr(), V5);
        client.send_in_vain(&packet);
        while let Some(answer) = client.next_frame() {
            assert_eq!(answer[0], 0x20, "{answer:02x?} for {packet:02x?}");
            if answer[3] == 0 {
                // Let in all the same, which is not the matter here.
                break;
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.14.0-1]
#[test]
fn connection_that_says_nothing_or_half_a_connect_gets_no_disconnect() {
    for is_stopped in [false, true] {
        let broker = Broker::start_configured(match is_stopped {
            true => "handshake_s_max = 60",
            false => "handshake_s_max = 1",
        });
        let connect = Hello::new(V5, "half").bytes();
        let mut clients = [&[][..], &connect[..1], &connect[..9]].map(|beginning| {
            let mut client = Client::raw(broker.addr(), V5);
            client.send(beginning);
            client
        });
        // When this one is answered, those are waited for.
        Client::connect(&broker, V5).assert_silent();
        if is_stopped {
            broker.signal(Signal::TERM);
        }
        for client in &mut clients {
            assert_eq!(client.next_frame(), None);
        }
        if is_stopped { broker.end() } else { broker.stop() }
    }
}

/// And so it throws no will away. [MQTT-3.14.1-1] [MQTT-3.14.2-1] [MQTT-3.14.1-1 of 3.1.1]
#[test]
fn disconnect_that_breaks_a_rule_is_refused_and_counts_for_nothing() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("broken");
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 0);
        for (packet, codes) in broken_disconnects(version) {
            let (id, payload) = (unique("broken"), format!("{packet:02x?}"));
            let hello = Hello::new(version, &id).will(&topic, &payload, 1, false);
            let (mut client, _) = hello.open(broker.addr());
            client.send(&packet);
            client.assert_refused(codes);
            assert_eq!(watcher.message().text(), payload);
        }
    }
    broker.stop();
}

/// [MQTT-3.14.4-3] [MQTT-3.14.4-3 of 3.1.1]
#[test]
fn normal_disconnect_throws_the_will_away_in_each_of_its_forms() {
    let broker = Broker::start();
    let user = Property::UserProperty { name: "name", value: "value" };
    let with_properties = property_list(&[Property::ReasonString("done"), user, user]);
    for (version, packet) in [
        (V311, vec![0xE0, 0]),
        (V5, vec![0xE0, 0]),
        (V5, vec![0xE0, 1, 0]),
        (V5, vec![0xE0, 2, 0, 0]),
        (V5, frame(0xE0, &[&[0], &with_properties])),
        (V5, frame(0xE0, &[&[0], &property_list(&[Property::SessionExpiryInterval(0)])])),
    ] {
        let (id, topic) = (unique("normal"), unique("normal"));
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 0);
        let hello = Hello::new(version, &id).will(&topic, "will", 1, false);
        let (mut client, _) = hello.open(broker.addr());
        client.send(&packet);
        client.assert_closed();
        // The name is free again, so everything about the earlier connection has been done.
        Hello::new(version, &id).open(broker.addr()).0.disconnect();
        watcher.assert_silent();
    }
    broker.stop();
}

/// The will goes with every code but one. [MQTT-3.14.2-1] [MQTT-3.14.4-3]
#[test]
fn reason_codes_of_clients_end_the_connection_and_publish_the_will() {
    let broker = Broker::start();
    let topic = unique("codes");
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    for code in FROM_CLIENTS.into_iter().filter(|code| *code > 0) {
        for list in [&[][..], &[0], &property_list(&[Property::ReasonString("why")])] {
            let (id, payload) = (unique("codes"), format!("{code:#x} {list:?}"));
            let hello = Hello::new(V5, &id).will(&topic, &payload, 1, false);
            let (mut client, _) = hello.open(broker.addr());
            client.send(&frame(0xE0, &[&[code], list]));
            client.assert_closed();
            assert_eq!(watcher.message().text(), payload);
        }
    }
    broker.stop();
}

/// Section 3.14.4: the broker closes if the client does not, and what the client sends in spite of its own
/// DISCONNECT does not count. [MQTT-3.14.4-1] [MQTT-3.14.4-2]
#[test]
fn what_comes_behind_the_disconnect_of_a_client_does_not_count() {
    let broker = Broker::start();
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let (id, topic, own) = (unique("behind"), unique("behind"), unique("own"));
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe(&topic, 1);
        let hello = Hello::persistent(version, &id).will(&topic, "will", 1, false);
        let (mut client, _) = hello.open(broker.addr());
        let subscribe = frame(0x82, &[&[0, 9], no_properties, &string(&own), &[1]]);
        let before = publish(version, &topic, b"before", 1, 7, false);
        let after = publish(version, &topic, b"after", 1, 8, true);
        client.send(&[&before[..], &[0xE0, 0], &after, &subscribe, &[0xC0, 0]].concat());
        match client.next() {
            Got::Ack(PUBACK, 7, 0) => client.assert_closed(),
            other => assert_eq!(other, Got::Closed),
        }
        assert_eq!(watcher.message().text(), "before");
        let (mut client, present) = Hello::persistent(version, &id).open(broker.addr());
        assert!(present);
        watcher.assert_silent();
        Client::connect(&broker, version).deliver(&own, "for nobody");
        client.assert_silent();
    }
    broker.stop();
}

/// It is no DISCONNECT then, so the will is published. Section 3.14.2.2.2.
#[test]
fn session_expiry_on_disconnect_after_none_on_connect_is_a_protocol_error() {
    let broker = Broker::start();
    for on_connect in [None, Some(0)] {
        for on_disconnect in [0, 1, u32::MAX] {
            let (id, topic) = (unique("expiry"), unique("expiry"));
            let mut watcher = Client::connect(&broker, V5);
            watcher.subscribe(&topic, 0);
            let mut hello = Hello::new(V5, &id).will(&topic, "will", 1, false);
            if let Some(seconds) = on_connect {
                hello = hello.with(Property::SessionExpiryInterval(seconds));
            }
            let (mut client, _) = hello.open(broker.addr());
            client.send_disconnect(0, &[Property::SessionExpiryInterval(on_disconnect)]);
            if on_disconnect > 0 {
                client.assert_refused(&[0x82]);
                assert_eq!(watcher.message().text(), "will");
            } else {
                client.assert_closed();
            }
            let hello = Hello { clean_start: false, ..Hello::new(V5, &id) };
            let (_client, present) = hello.open(broker.addr());
            assert!(!present);
            watcher.assert_silent();
        }
    }
    broker.stop();
}

/// Section 3.14.2.2.2.
#[test]
fn session_expiry_on_disconnect_takes_the_place_of_that_on_connect() {
    let broker = Broker::start();
    let leave = |id: &str, on_connect, on_disconnect: Option<u32>| {
        let hello = Hello::new(V5, id).with(Property::SessionExpiryInterval(on_connect));
        let (mut client, _) = hello.open(broker.addr());
        let list: Vec<_> = on_disconnect.map(Property::SessionExpiryInterval).into_iter().collect();
        client.send_disconnect(0, &list);
        client.assert_closed();
    };
    let is_there = |id: &str| {
        let hello = Hello { clean_start: false, ..Hello::new(V5, id) };
        hello.open(broker.addr()).1
    };
    for (on_connect, on_disconnect, is_kept) in [
        (3600, None, true),
        (3600, Some(0), false),
        (3600, Some(7200), true),
        (3600, Some(u32::MAX), true),
        (u32::MAX, Some(0), false),
        (1, Some(0), false),
    ] {
        let id = unique("place");
        leave(&id, on_connect, on_disconnect);
        assert_eq!(is_there(&id), is_kept, "{on_connect}, then {on_disconnect:?}");
    }

    let (longer, left) = (unique("longer"), Instant::now());
    leave(&longer, 1, Some(3600));
    // Coming back renews the session, so each look takes another one of the same age.
    let shorter: Vec<String> = (0..100).map(|_| unique("shorter")).collect();
    shorter.iter().for_each(|id| leave(id, 3600, Some(1)));
    let mut clock = Client::connect(&broker, V5);
    let is_gone = |id: &String| {
        clock.assert_silent_for(Duration::from_millis(100));
        !is_there(id)
    };
    assert!(shorter.iter().any(is_gone), "none has ended after {:?}", left.elapsed());
    assert!(left.elapsed() >= Duration::from_secs(1), "ended after {:?}", left.elapsed());
    assert!(is_there(&longer), "its second has passed, not its hour");
    broker.stop();
}

/// Messages are on their way to the client when it breaks a rule, and it says more than that.
/// [MQTT-3.14.2-1] [MQTT-3.14.2-2] [MQTT-3.14.4-1] [MQTT-3.14.4-2]
#[test]
fn broker_says_why_it_ends_the_connection_then_nothing_more_and_closes() {
    let broker = Broker::start();
    let mut sender = Client::connect(&broker, V311);
    for (breach, codes) in breaches() {
        let topic = unique("why");
        let mut client = Client::connect(&broker, V5);
        client.subscribe(&topic, 1);
        (0..20).for_each(|number| sender.deliver(&topic, number.to_string()));
        client.send(&[&breach[..], &[0xC0, 0, 0xC0, 0]].concat());
        assert_last_words(&mut client, &breach, codes);
    }

    let id = unique("why");
    let (mut client, _) = Hello::new(V5, &id).open(broker.addr());
    let _second = Hello::new(V5, &id).open(broker.addr());
    assert_last_words(&mut client, b"takeover", &[0x8E]);

    let id = unique("why");
    let (mut client, _) = Hello { keep_alive_s: 1, ..Hello::new(V5, &id) }.open(broker.addr());
    assert_last_words(&mut client, b"silence", &[0x8D]);
    broker.stop();
}

/// The causes that come with settings, and the end of the broker. [MQTT-3.14.2-1] [MQTT-3.14.2-2]
/// [MQTT-3.14.4-1] [MQTT-3.14.4-2]
#[test]
fn broker_has_a_code_for_each_of_its_own_limits_and_for_its_end() {
    let broker = Broker::start_configured(
        "qos_max = 1\nretain_available = false\nsubscription_identifiers = false\n\
         receive_max = 2\npacket_bytes_max = 1000\ntopic_alias_max = 3\ncheck_payload_format = true",
    );
    let message = |id| publish(V5, "t", b"", 1, id, false);
    let with =
        |property, payload: &'static [u8]| Publication::new("t", payload).with(property).bytes(V5);
    for (packet, code) in [
        (publish(V5, "t", b"", 2, 1, false), 0x9B),
        (publish(V5, "t", b"", 0, 0, true), 0x9A),
        (frame(0x82, &[&[0, 1, 2, 0x0B, 1], &string("t"), &[0]]), 0xA1),
        ([message(1), message(2), message(3), message(4)].concat(), 0x93),
        (publish(V5, "t", &[b'x'; 1000], 0, 0, false), 0x95),
        (with(Property::TopicAlias(4), b""), 0x94),
        (with(Property::PayloadFormatIndicator(true), b"\xFF"), 0x99),
    ] {
        let mut client = Client::connect(&broker, V5);
        client.send(&packet);
        assert_last_words(&mut client, &packet, &[code]);
    }
    let mut clients: Vec<_> = (0..5).map(|_| Client::connect(&broker, V5)).collect();
    broker.signal(Signal::TERM);
    for client in &mut clients {
        assert_last_words(client, b"shutdown", &[0x8B]);
    }
    broker.end();
}

/// Its properties can be left out, and it can itself. [MQTT-3.14.2-3] [MQTT-3.14.2-4]
#[test]
fn disconnect_of_the_broker_is_within_the_packet_size_of_the_client() {
    let broker = Broker::start();
    for limit in 2..=150 {
        let id = unique("room");
        let hello = Hello::new(V5, &id).with(Property::MaximumPacketSize(limit));
        let (mut client, answer) = hello.try_open(broker.addr());
        if !matches!(answer, Got::ConnAck(_, 0, _)) {
            continue;
        }
        // Of two causes, one each time.
        let _second;
        if limit % 2 == 0 {
            client.send(&hello.bytes());
        } else {
            _second = Hello::new(V5, &id).open(broker.addr());
        }
        while let Some(frame) = client.next_frame() {
            assert!(frame.len() <= limit as usize, "{frame:02x?} for {limit}");
        }
    }
    broker.stop();
}

/// The broker told the client its own packet size. [MQTT-3.14.2-3] [MQTT-3.14.2-4]
#[test]
fn disconnect_over_the_packet_size_of_the_broker_is_refused() {
    let broker = Broker::start_configured("packet_bytes_max = 1000");
    let topic = unique("large");
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    for (length, is_taken) in [(900, true), (1_000, false)] {
        let text = "x".repeat(length);
        for property in
            [Property::ReasonString(&text), Property::UserProperty { name: "name", value: &text }]
        {
            let id = unique("large");
            let hello = Hello::new(V5, &id).will(&topic, "will", 0, false);
            let (mut client, _) = hello.open(broker.addr());
            assert_eq!(client.properties().maximum_packet_size(), Some(1000));
            client.send_disconnect(0, &[property]);
            if is_taken {
                client.assert_closed();
            } else {
                client.assert_refused(&[0x95]);
                assert_eq!(watcher.message().text(), "will");
            }
        }
    }
    watcher.assert_silent();
    broker.stop();
}

/// [MQTT-4.12.0-6]
#[test]
fn client_that_names_no_method_is_asked_for_no_proof() {
    let broker = Broker::start();
    for (name, password) in
        [(None, None), (Some("name"), Some(&b"word"[..])), (None, Some(b"word"))]
    {
        let id = unique("plain");
        let hello = Hello { user_name: name, password, ..Hello::new(V5, &id) };
        let (client, answer) = hello.try_open(broker.addr());
        assert!(matches!(answer, Got::ConnAck(..)), "{answer:?}");
        let list = client.properties();
        assert_eq!((list.authentication_method(), list.authentication_data()), (None, None));
    }
    broker.stop();
}

/// Section 4.12: AUTH belongs to a method. [MQTT-4.13.1-1]
#[test]
fn auth_of_a_client_that_named_no_method_ends_the_connection() {
    let broker = Broker::start();
    let method = Property::AuthenticationMethod("SCRAM-SHA-256");
    let data = Property::AuthenticationData(b"n,,n=alice,r=nonce");
    let full = property_list(&[method, data]);
    for code in [0x00, 0x18, 0x19] {
        for list in [&full[..], &property_list(&[method]), &[0]] {
            let mut client = Client::connect(&broker, V5);
            client.send(&frame(0xF0, &[&[code], list]));
            client.assert_refused(&[0x82]);
        }
    }
    let mut client = Client::connect(&broker, V5);
    client.send(&[0xF0, 0]);
    client.assert_refused(&[0x82]);
    broker.stop();
}

/// [MQTT-4.12.0-1]
#[test]
fn method_that_the_broker_does_not_know_ends_the_connection() {
    let broker = Broker::start();
    for method in ["no such method", "", "\u{FEFF}"] {
        for data in [None, Some(&b"data"[..])] {
            let id = unique("method");
            let mut hello = Hello::new(V5, &id).with(Property::AuthenticationMethod(method));
            if let Some(data) = data {
                hello = hello.with(Property::AuthenticationData(data));
            }
            let mut client = Client::raw(broker.addr(), V5);
            client.send(&hello.bytes());
            client.assert_connect_refused(&[0x87, 0x8C]);
        }
    }
    broker.stop();
}

/// The connection ends with one of `codes` for `cause`, whatever was on its way, and with nothing behind it.
#[track_caller]
fn assert_last_words(client: &mut Client, cause: &[u8], codes: &[u8]) {
    loop {
        match client.next() {
            Got::Disconnect(code) => {
                assert!(codes.contains(&code), "{code:#x} and not {codes:x?} for {cause:02x?}");
                assert!(FROM_SERVERS.contains(&code), "{code:#x} is not a server's");
                assert_eq!(client.properties().session_expiry_interval_s(), None);
                return client.assert_closed();
            }
            Got::Closed if is_pointed_elsewhere() => return,
            Got::Closed => panic!("closed without a word of {cause:02x?}"),
            Got::PingResp => panic!("answered what comes behind {cause:02x?}"),
            _ => (),
        }
    }
}

/// What a client of MQTT 5 must not do, and what it may be told for it.
fn breaches() -> Vec<(Vec<u8>, &'static [u8])> {
    let expiry = property_list(&[Property::SessionExpiryInterval(1)]);
    vec![
        (Hello::new(V5, "again").bytes(), &[0x82]),
        (vec![0xC1, 0], &[0x81]),
        (vec![0x00, 0], &[0x81, 0x82]),
        (vec![0x20, 3, 0, 0, 0], &[0x81, 0x82]),
        (vec![0xD0, 0], &[0x81, 0x82]),
        (vec![0x90, 4, 0, 1, 0, 0], &[0x81, 0x82]),
        (frame(0x36, &[b"\0\x01t\0\x01\0"]), &[0x81]),
        (frame(0x30, &[b"\0\x03t/#\0"]), &[0x81, 0x82, 0x90]),
        (frame(0x30, &[b"\0\x01t\x03\x23\0\0"]), &[0x81, 0x82, 0x94]),
        (frame(0x30, &[b"\0\0\0"]), &[0x81, 0x82]),
        (frame(0x30, &[b"\0\x01t\x02\x0B\x01"]), &[0x81, 0x82]),
        (frame(0x82, &[&[0, 1, 0]]), &[0x81, 0x82]),
        (frame(0xA2, &[&[0, 1, 0]]), &[0x81, 0x82]),
        (frame(0xE0, &[&[0], &expiry]), &[0x82]),
        (frame(0xE0, &[&[0x05]]), &[0x81, 0x82]),
        (frame(0xF0, &[&[0x19, 0]]), &[0x82]),
    ]
}

/// DISCONNECT packets that are wrong, and the reason codes for it.
fn broken_disconnects(version: ProtocolVersion) -> Vec<(Vec<u8>, &'static [u8])> {
    const MALFORMED: &[u8] = &[0x81];
    let mut broken: Vec<_> = (1..=0x0F).map(|flags| (vec![0xE0 | flags, 0], MALFORMED)).collect();
    if version != V5 {
        broken.extend([vec![0xE0, 1, 0], vec![0xE0, 2, 0, 0]].map(|packet| (packet, MALFORMED)));
        return broken;
    }
    let is_code = |code: &u8| FROM_CLIENTS.contains(code) || FROM_SERVERS.contains(code);
    for code in (0..=u8::MAX).filter(|code| !is_code(code)) {
        broken.push((frame(0xE0, &[&[code]]), &[0x81, 0x82]));
    }
    let twice = property_list(&[Property::ReasonString("a"), Property::ReasonString("b")]);
    broken.extend([
        (frame(0xE0, &[&[0, 0, 0]]), MALFORMED),
        (frame(0xE0, &[&[0, 5, 0x11, 0, 0]]), MALFORMED),
        (frame(0xE0, &[&[0, 2, 0x11, 0]]), MALFORMED),
        (frame(0xE0, &[&[0, 2, 0x7F, 0]]), &[0x81, 0x82]),
        (frame(0xE0, &[&[0], &twice]), &[0x81, 0x82]),
    ]);
    broken
}

//! CONNACK (3.2): when it comes, and what it says.

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello, PUBACK, VERSIONS, frame, string};

/// Every reason code of CONNACK: section 3.2.2.2.
const REASON_CODES: [u8; 22] = [
    0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97,
    0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F,
];

/// [MQTT-3.2.0-1] [MQTT-3.1.4-5] [MQTT-3.2.0-1 of 3.1.1] [MQTT-3.1.4-4 of 3.1.1]
#[test]
fn connack_is_the_first_packet_even_if_more_came_with_the_connect() {
    let broker = Broker::start();
    for version in VERSIONS {
        let id = unique("first");
        let mut client = Client::raw(broker.addr(), version);
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let subscribe = frame(0x82, &[&[0, 7], no_properties, &string(unique("first")), &[0]]);
        client.send(&[&Hello::new(version, &id).bytes()[..], &subscribe, &[0xC0, 0]].concat());
        assert!(matches!(client.next(), Got::ConnAck(false, 0, _)));
        // A ping may be answered ahead of the SUBACK.
        let mut rest = [client.next(), client.next()];
        rest.sort_by_key(|got| *got == Got::PingResp);
        assert_eq!(rest, [Got::SubAck(7, vec![0]), Got::PingResp]);
    }
    broker.stop();
}

/// What waits for a session comes behind it. [MQTT-3.2.0-1] [MQTT-3.2.0-1 of 3.1.1]
#[test]
fn connack_comes_before_the_messages_that_waited_for_the_session() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (id, topic) = (unique("before"), unique("before"));
        let hello = Hello::persistent(version, &id);
        let (mut client, _) = hello.open(broker.addr());
        client.subscribe(&topic, 1);
        client.disconnect();
        Client::connect(&broker, version).deliver(&topic, "waiting");
        let (mut client, answer) = hello.try_open(broker.addr());
        assert!(matches!(answer, Got::ConnAck(true, 0, _)), "{answer:?}");
        assert_eq!(client.message().text(), "waiting");
    }
    broker.stop();
}

/// [MQTT-3.2.0-2]
#[test]
fn second_connect_gets_no_second_connack() {
    let broker = Broker::start();
    for version in VERSIONS {
        let id = unique("one");
        let hello = Hello::new(version, &id);
        let mut client = Client::raw(broker.addr(), version);
        client.send(&[hello.bytes(), hello.bytes()].concat());
        assert!(matches!(client.next(), Got::ConnAck(false, 0, _)));
        client.assert_refused(&[0x82]);
    }
    broker.stop();
}

/// [MQTT-3.2.2-1] [MQTT-3.2.2-2] [MQTT-3.2.2-3] [MQTT-3.1.2-4] [MQTT-3.1.2-5] [MQTT-3.1.2-6]
/// [MQTT-3.2.2-1 of 3.1.1] [MQTT-3.2.2-2 of 3.1.1] [MQTT-3.2.2-3 of 3.1.1] [MQTT-3.1.2-4 of 3.1.1]
#[test]
fn connack_says_whether_there_is_a_session() {
    let broker = Broker::start();
    for version in VERSIONS {
        let id = unique("present");
        let flags_of = |hello: Hello<'_>| {
            let (client, _) = hello.open(broker.addr());
            let flags = client.last_frame()[2];
            client.disconnect();
            flags
        };
        let (keep, clean) = (Hello::persistent(version, &id), Hello::new(version, &id));
        let keep_next = Hello { clean_start: true, ..keep.clone() };
        assert_eq!(flags_of(keep.clone()), 0, "there was none");
        assert_eq!(flags_of(keep.clone()), 1);
        assert_eq!(flags_of(keep.clone()), 1);
        assert_eq!(flags_of(clean.clone()), 0, "asked for a clean start");
        assert_eq!(flags_of(clean), 0);
        assert_eq!(flags_of(keep.clone()), 0, "a clean session left nothing");
        if version == V5 {
            assert_eq!(flags_of(keep_next), 0);
            assert_eq!(flags_of(keep), 1, "began clean and was kept");
        }
    }
    broker.stop();
}

/// [MQTT-3.2.2-6] [MQTT-3.2.2-7] [MQTT-3.2.2-8] [MQTT-3.2.2-4 of 3.1.1] [MQTT-3.2.2-5 of 3.1.1]
#[test]
fn refusal_has_no_session_and_a_code_of_the_table_and_ends_the_connection() {
    let broker = Broker::start();
    let id = unique("refused");
    // There is a session, and all the same the refusal does not claim it.
    Hello::persistent(V5, &id).open(broker.addr()).0.disconnect();
    let (list, will) =
        (&[4, 0x15, 0, 1, b'm'][..], [&[0][..], &string("a/#"), &string("")].concat());
    for (flags, list, rest) in [
        (0x00, list, &[][..]),
        (0x01, &[0], &[]),
        (0x04, &[0], &will),
        (0x00, &[2, 0x17, 9], &[]),
        (0x00, &[2, 0x7F, 9], &[]),
    ] {
        let mut client = Client::raw(broker.addr(), V5);
        client.send(&frame(0x10, &[b"\0\x04MQTT\x05", &[flags, 0, 0], list, &string(&id), rest]));
        if let Got::ConnAck(present, code, _) = client.next() {
            assert_eq!(client.last_frame()[2], 0, "flags");
            assert!(!present && code >= 0x80 && REASON_CODES.contains(&code), "{code:#x}");
            client.assert_closed();
        }
    }
    // Of 3.1.1, the two refusals that need no particular settings.
    for (packet, code) in [
        (Hello { clean_start: false, ..Hello::new(V311, "") }.bytes(), 2),
        (frame(0x10, &[b"\0\x04MQTT\x09\0\0\0", &string(&id)]), 1),
    ] {
        let mut client = Client::raw(broker.addr(), V311);
        client.send(&packet);
        assert_eq!(client.next_frame().unwrap(), [0x20, 2, 0, code]);
        client.assert_closed();
    }
    // The session is still there.
    assert!(Hello::persistent(V5, &id).open(broker.addr()).1);
    broker.stop();
}

/// [MQTT-3.2.2-9] [MQTT-3.2.2-10] [MQTT-3.2.2-11] [MQTT-3.2.2-12]
#[test]
fn limited_qos_is_announced_and_kept_to() {
    for qos_max in 0..=1_u8 {
        let broker = Broker::start_configured(&format!("qos_max = {qos_max}"));
        let topic = unique("qos");
        let mut client = Client::connect(&broker, V5);
        let announced = client.properties().maximum_qos().map(|qos| qos as u8);
        assert_eq!(announced, Some(qos_max));
        // Any QoS may be asked for, the granted one is what there is.
        let codes = client.subscribe_all(&[(&topic, 0), (&topic, 1), (&topic, 2)]);
        assert_eq!(codes, [0, 1.min(qos_max), qos_max]);
        for qos in 0..=2 {
            let mut sender = Client::connect(&broker, V5);
            sender.publish(&topic, [qos], qos, 1);
            if qos > qos_max {
                sender.assert_refused(&[0x9B]);
                continue;
            }
            let message = client.message();
            assert_eq!((message.qos, &message.payload[..]), (qos, &[qos][..]));
            if qos == 1 {
                client.ack(PUBACK, message.id);
            }
        }
        client.assert_silent();
        for qos in 0..=2 {
            let (mut client, answer) =
                Hello::new(V5, &unique("qos")).will("will", "", qos, false).try_open(broker.addr());
            let code = if qos > qos_max { 0x9B } else { 0 };
            assert!(matches!(answer, Got::ConnAck(false, got, _) if got == code), "{answer:?}");
            if code > 0 {
                client.assert_closed();
            }
        }
        broker.stop();
    }
}

/// [MQTT-3.2.2-9]: a value of 2 cannot be said.
#[test]
fn unlimited_qos_is_not_announced() {
    let broker = Broker::start();
    let client = Client::connect(&broker, V5);
    let list = client.properties();
    match list.maximum_qos() {
        Some(qos) => assert!((qos as u8) < 2),
        None => {
            let mut client = Client::connect(&broker, V5);
            client.publish(&unique("qos"), "", 2, 1);
            assert!(matches!(client.next(), Got::Ack(0x50, 1, _)));
        }
    }
    broker.stop();
}

/// [MQTT-3.2.2-13] [MQTT-3.2.2-14]
#[test]
fn broker_without_retained_messages_says_so_and_refuses_them() {
    let broker = Broker::start_configured("retain_available = false");
    let topic = unique("retain");
    let mut client = Client::connect(&broker, V5);
    assert_eq!(client.properties().retain_available(), Some(false));
    client.retain(&topic, "x", 0, 0);
    client.assert_refused(&[0x9A]);
    for (version, code) in [(V5, 0x9A), (V311, 0)] {
        let (mut client, answer) = Hello::new(version, &unique("retain"))
            .will(&topic, "", 0, true)
            .try_open(broker.addr());
        if version == V5 {
            assert!(matches!(answer, Got::ConnAck(false, got, _) if got == code), "{answer:?}");
            client.assert_closed();
        }
    }
    broker.stop();
}

/// Section 3.2.2.3.2 to 3.2.2.3.14: what is announced is what is.
#[test]
fn properties_of_connack_are_within_their_ranges_and_none_comes_twice() {
    let broker = Broker::start();
    let id = unique("ranges");
    let hello = Hello::new(V5, &id)
        .with(Property::RequestResponseInformation(true))
        .with(Property::RequestProblemInformation(true));
    // The codec refuses what is out of range, comes twice, or does not belong here.
    let (client, _) = Hello { keep_alive_s: 0xFFFF, ..hello }.open(broker.addr());
    let list = client.properties();
    assert!(list.receive_maximum() != Some(0) && list.maximum_packet_size() != Some(0));
    // Nothing may be said about the session that the client has not asked for.
    assert_eq!(list.authentication_method(), None);
    assert_eq!(list.authentication_data(), None);
    broker.stop();
}

/// [MQTT-3.2.2-19] [MQTT-3.2.2-20] [MQTT-3.1.2-24]
#[test]
fn connack_is_within_the_packet_size_of_the_client() {
    let broker = Broker::start();
    for limit in 1..=60_u32 {
        for refused in [false, true] {
            let id = unique("size");
            let mut hello = Hello::new(V5, &id).with(Property::MaximumPacketSize(limit));
            if refused {
                hello = hello.with(Property::AuthenticationMethod("no such method"));
            }
            let mut client = Client::raw(broker.addr(), V5);
            client.send(&hello.bytes());
            // It may also be left out with the connection.
            let len = client.next_frame().map_or(0, |frame| frame.len());
            assert!(len <= limit as usize, "{len} bytes of {limit}");
        }
    }
    broker.stop();
}

/// [MQTT-3.2.2-21] [MQTT-3.2.2-22]
#[test]
fn keep_alive_of_the_broker_is_announced_and_is_in_force() {
    let broker = Broker::start_configured("keep_alive_s_max = 1");
    for (asked, told) in [(0, Some(1)), (600, Some(1)), (1, None)] {
        let (mut client, _) =
            Hello { keep_alive_s: asked, ..Hello::new(V5, &unique("alive")) }.open(broker.addr());
        assert_eq!(client.properties().server_keep_alive_s(), told);
        client.assert_refused(&[0x8D]);
    }
    broker.stop();
}

/// [MQTT-3.2.2-22]: nothing announced, so the client's own counts, which the tests of `connect` measure.
#[test]
fn keep_alive_of_the_client_counts_when_the_broker_announces_none() {
    let broker = Broker::start();
    let id = unique("alive");
    let (mut client, _) = Hello { keep_alive_s: 1, ..Hello::new(V5, &id) }.open(broker.addr());
    let started = std::time::Instant::now();
    if client.properties().server_keep_alive_s().is_none() {
        client.assert_refused(&[0x8D]);
        let (passed, least) = (started.elapsed(), std::time::Duration::from_millis(1_400));
        assert!(passed >= least, "closed after {passed:?}");
    }
    broker.stop();
}

//! Clients that break the rules, by accident or on purpose, against the running broker.
//!
//! What every test here is about: the one that misbehaves is closed, told why where its version has
//! words for it, and counted; memory stays bounded; everybody else notices nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::ids::ProtocolVersion;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use socket2::SockRef;

use crate::broker::Broker;
use crate::process::{PATIENCE, unique};
use crate::wire::{Client, Got, Hello, PUBACK, PUBREC, VERSIONS, publish, wait_for_counter};

const MIB: u64 = 1024 * 1024;

/// [MQTT-3.1.4-1], and a limit of our own on how long a CONNECT may take.
#[test]
fn half_a_connect_and_silence_are_closed_after_the_handshake_time() {
    let broker = Broker::start_configured("handshake_s_max = 1");
    let mut other = Client::connect(&broker, V5);
    let whole = Hello::new(V5, "half").bytes();
    let started = Instant::now();
    let mut silent: Vec<Client> = [0, 1, 2, whole.len() - 1]
        .into_iter()
        .map(|cut| {
            let mut client = Client::raw(broker.addr(), V5);
            client.send(&whole[..cut]);
            client
        })
        .collect();
    other.assert_silent();
    for client in &mut silent {
        client.assert_closed();
        assert!(started.elapsed() >= Duration::from_secs(1));
    }
    // The limit is for the CONNECT only.
    other.assert_silent();
    broker.stop();
}

/// Section 3.1.2.11.4 and 3.2.2.3.6 of MQTT 5: the limit is announced, and 0x95 says it was passed.
#[test]
fn announced_sizes_cost_no_memory() {
    let broker = Broker::start_with(&[]);
    let mut other = Client::connect(&broker, V5);
    let before = broker.resident_bytes();
    for version in VERSIONS {
        for _ in 0..20 {
            let mut client = Client::connect(&broker, version);
            client.send(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F, 0, 1, b'a']);
            client.assert_closed_with(0x95);
            let mut client = Client::raw(broker.addr(), version);
            client.send(&[0x10, 0xFF, 0xFF, 0xFF, 0x7F, 0, 4]);
            client.assert_closed();
        }
    }
    // Allowed, and never sent: 100 times 15 MiB.
    let promises: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = Client::connect(&broker, V311);
            client.send(&[0x30, 0x80, 0x80, 0xC0, 0x07, 0, 1, b'a']);
            client
        })
        .collect();
    other.assert_silent();
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 32 * MIB, "grown by {grown} bytes");
    drop(promises);
    broker.stop();
}

/// MQTT 5, sections 3.4.2.1 and 3.5.2.1: `$SYS` is the broker's own.
#[test]
fn nobody_publishes_to_sys() {
    let broker = Broker::start();
    for (version, code) in [(V311, 0), (V5, 0x87)] {
        let mut watcher = Client::connect(&broker, version);
        watcher.subscribe("$SYS/forged", 0);
        // Which `$SYS/#` matches, too.
        watcher.subscribe("$SYS", 0);
        let mut client = Client::connect(&broker, version);
        client.retain("$SYS/forged", "x", 0, 0);
        client.retain("$SYS/forged", "x", 1, 1);
        assert_eq!(client.next(), Got::Ack(PUBACK, 1, code));
        client.retain("$SYS/forged", "x", 2, 2);
        assert_eq!(client.next(), Got::Ack(PUBREC, 2, code));
        client.retain("$SYS", "x", 1, 3);
        assert_eq!(client.next(), Got::Ack(PUBACK, 3, code));
        watcher.assert_silent();
        let id = unique("forger");
        let (mut forger, answer) =
            Hello::new(version, &id).will("$SYS/forged", "x", 0, false).try_open(broker.addr());
        assert!(matches!(answer, Got::ConnAck(false, answer, _) if answer == code), "{answer:?}");
        if version == V5 {
            forger.assert_closed();
        } else {
            // A bridge of mosquitto has such a will. Nobody gets it.
            let (_next, _) = Hello::new(version, &id).open(broker.addr());
            forger.assert_closed();
            watcher.assert_silent();
            wait_for_counter(&broker, "publish/messages/dropped/not_authorized", 5);
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-6] [MQTT-3.9.3-1]
#[test]
fn subscribe_with_10000_filters_has_10000_codes() {
    let broker = Broker::start();
    for version in VERSIONS {
        let mut client = Client::connect(&broker, version);
        let names: Vec<String> = (0..10_000)
            .map(|number| match number % 3 {
                0 => format!("exact/{number}"),
                1 => format!("tree/{number}/#"),
                _ => format!("broken#/{number}"),
            })
            .collect();
        let filters: Vec<(&str, u8)> = names.iter().map(|name| (&name[..], 1)).collect();
        let codes = client.subscribe_all(&filters);
        let invalid = if version == V5 { 0x8F } else { 0x80 };
        let expected: Vec<u8> =
            (0..10_000).map(|number| if number % 3 == 2 { invalid } else { 1 }).collect();
        assert_eq!(codes, expected);
        let mut sender = Client::connect(&broker, version);
        for topic in ["exact/9999", "tree/9997/x"] {
            sender.deliver(topic, "x");
            assert_eq!(client.message().topic, topic);
        }
    }
    broker.stop();
}

/// [MQTT-4.7.3-3]
#[test]
fn longest_topic_and_30000_levels_are_published_retained_and_received() {
    let broker = Broker::start();
    let levels = vec!["a"; 30_000].join("/");
    let longest = "l".repeat(65_535);
    let slashes = "/".repeat(65_535);
    for version in VERSIONS {
        let mut all = Client::connect(&broker, version);
        all.subscribe("#", 1);
        let mut sender = Client::connect(&broker, version);
        for topic in [&levels, &longest, &slashes] {
            let mut exact = Client::connect(&broker, version);
            exact.subscribe(topic, 1);
            sender.deliver_retained(topic, "x");
            assert_eq!(&exact.message().topic, topic);
            assert_eq!(&all.message().topic, topic);
            let mut late = Client::connect(&broker, version);
            late.subscribe(topic, 0);
            let message = late.message();
            assert!(message.retain && &message.topic == topic);
            sender.deliver_retained(topic, "");
            assert_eq!((&exact.message().topic, all.message().text()), (topic, ""));
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-6]: a limit of our own, said by a code.
#[test]
fn wildcard_filter_of_30000_levels_is_refused_and_the_connection_goes_on() {
    let broker = Broker::start();
    for (version, refused) in [(V311, 0x80), (V5, 0x8F)] {
        let mut client = Client::connect(&broker, version);
        let plus = vec!["+"; 30_000].join("/");
        let hash = format!("{}/#", vec!["a"; 30_000].join("/"));
        assert_eq!(client.subscribe_all(&[(&plus, 1)]), [refused]);
        assert_eq!(client.subscribe_all(&[(&hash, 1), ("good", 2)]), [refused, 2]);
        client.assert_silent();
    }
    broker.stop();
}

/// Bounds: the queue limit, 1 MiB of unsent output, the batches in the channels of the shards.
#[test]
fn client_that_never_reads_costs_bounded_memory_and_nobody_else_a_message() {
    const BATCH: u16 = 40;
    let broker = Broker::start_configured(
        "queue_policy = \"drop_newest\"\nqueue_bytes_max = 1048576\nsys_interval_s = 1",
    );
    let before = broker.resident_bytes();
    let mut deaf: Vec<Client> = (0..2)
        .map(|qos| {
            let mut client = Client::connect(&broker, VERSIONS[usize::from(qos)]);
            SockRef::from(client.stream()).set_recv_buffer_size(4096).unwrap();
            client.subscribe("flood", qos);
            client
        })
        .collect();
    let mut healthy = Client::connect(&broker, V5);
    healthy.subscribe("flood", 1);
    let mut sender = Client::connect(&broker, V311);
    let payload = vec![b'x'; 10_000];
    // 80 MB in all.
    for _ in 0..200 {
        for id in 1..=BATCH {
            sender.publish("flood", &payload, 1, id);
        }
        for id in 1..=BATCH {
            assert_eq!(sender.next(), Got::Ack(PUBACK, id, 0));
        }
        for _ in 0..BATCH {
            let message = healthy.message();
            healthy.ack(PUBACK, message.id);
        }
    }
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 48 * MIB, "grown by {grown} bytes");
    wait_for_counter(&broker, "publish/messages/dropped/queue_full", 1_000);
    // Whoever begins to read gets what was kept, in order and whole.
    assert_eq!(deaf[0].message().payload, payload);
    assert_eq!(deaf[1].message().payload, payload);
    broker.stop();
}

/// [MQTT-4.6.0-2]: the acknowledgements wait, in order, and the publisher is held back by TCP.
#[test]
fn publisher_that_never_reads_its_acknowledgements_is_held_back() {
    let broker = Broker::start_with(&[]);
    let before = broker.resident_bytes();
    let mut client = Client::connect(&broker, V311);
    let mut stream = client.stream().try_clone().unwrap();
    let all_ids: Vec<u8> =
        (1..=u16::MAX).flat_map(|id| publish(V311, "a", b"", 1, id, false)).collect();
    let frame_len = publish(V311, "a", b"", 1, 1, false).len();
    stream.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut sent = 0;
    loop {
        match stream.write(&all_ids[sent % all_ids.len()..]) {
            Ok(count) => sent += count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            Err(error) => panic!("{error}"),
        }
        assert!(sent < 500_000_000, "the broker never pushed back");
    }
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 48 * MIB, "grown by {grown} bytes");
    Client::connect(&broker, V5).deliver("b", "meanwhile");

    let mut expected = (1..=u16::MAX).cycle();
    let mut due = sent / frame_len;
    let mut held = Vec::new();
    let mut chunk = vec![0; 1 << 20];
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    while due > 0 {
        let count = stream.read(&mut chunk).unwrap();
        assert!(count > 0, "closed with {due} acknowledgements due");
        held.extend_from_slice(&chunk[..count]);
        let whole = held.len() / 4 * 4;
        for ack in held[..whole].chunks_exact(4) {
            let [high, low] = expected.next().unwrap().to_be_bytes();
            assert_eq!(ack, [PUBACK, 2, high, low]);
            due -= 1;
        }
        held.drain(..whole);
    }
    // The rest of a message that was cut by the end of the writing, then a ping.
    client.send(&all_ids[sent % all_ids.len()..][..(frame_len - sent % frame_len) % frame_len]);
    if sent % frame_len != 0 {
        assert!(matches!(client.next(), Got::Ack(PUBACK, ..)));
    }
    client.assert_silent();
    broker.stop();
}

#[test]
fn subscriber_of_one_byte_a_second_does_not_slow_the_others_down() {
    const FLOOD: Duration = Duration::from_secs(3);
    let broker = Broker::start_configured(
        "queue_policy = \"drop_newest\"\nqueue_bytes_max = 1048576\nsys_interval_s = 1",
    );
    let before = broker.resident_bytes();
    let mut slow = Client::connect(&broker, V311);
    SockRef::from(slow.stream()).set_recv_buffer_size(4096).unwrap();
    slow.subscribe("flood", 0);
    let addr = broker.addr();
    let started = Instant::now();
    let flood = thread::spawn(move || {
        let (mut client, _) = Hello::new(V311, &unique("flood")).open(addr);
        let frames = publish(V311, "flood", &[b'x'; 1_000], 0, 0, false).repeat(60);
        while started.elapsed() < FLOOD {
            client.send(&frames);
        }
        client.assert_silent();
    });
    let (mut sender, mut receiver) = (Client::connect(&broker, V5), Client::connect(&broker, V311));
    receiver.subscribe("calm", 1);
    let (mut rounds, mut bytes_read) = (0, 0);
    let mut grown = 0;
    while started.elapsed() < FLOOD {
        sender.deliver("calm", "hello");
        let message = receiver.message();
        receiver.ack(PUBACK, message.id);
        rounds += 1;
        if started.elapsed().as_secs() > bytes_read {
            bytes_read += slow.read_before(Instant::now() + PATIENCE, 1) as u64;
            grown = broker.resident_bytes().saturating_sub(before).max(grown);
        }
    }
    flood.join().unwrap();
    assert!(rounds > 20, "{rounds} rounds in {FLOOD:?}");
    // The channels of the shards hold 64 MiB each at the very most.
    assert!(grown < 192 * MIB, "grown by {grown} bytes");
    wait_for_counter(&broker, "publish/messages/dropped/queue_full", 1_000);
    broker.stop();
}

/// [MQTT-3.1.4-3]
#[test]
fn of_5000_clients_with_one_identifier_at_once_exactly_one_stays() {
    const CLIENTS: usize = 5_000;
    let limit = rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap();
    assert!(limit > CLIENTS as u64 + 500, "needs more open files than {limit}: `ulimit -Hn`");
    let broker = Broker::start_with(&[]);
    let id = unique("same");
    let connect = Hello::persistent(V311, &id).bytes();
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::raw(broker.addr(), V311)).collect();
    for client in &mut clients {
        client.send(&connect);
    }
    keep_the_last_one(&mut clients);
    clients[0].subscribe("survivor", 1);
    Client::connect(&broker, V5).deliver("survivor", "alive");
    assert_eq!(clients[0].message().text(), "alive");
    broker.stop();
}

/// [MQTT-3.1.4-3]: what was said to one owner of a session is not taken by the next.
#[test]
fn quarrel_over_a_persistent_session_always_has_a_winner() {
    const CLIENTS: usize = 40;
    let broker = Broker::start_with(&[]);
    for round in 0..25 {
        let version = VERSIONS[round % 2];
        let connect = Hello::persistent(version, &unique("quarrel")).bytes();
        let mut clients: Vec<Client> =
            (0..CLIENTS).map(|_| Client::raw(broker.addr(), version)).collect();
        for client in &mut clients {
            client.send(&connect);
        }
        keep_the_last_one(&mut clients);
    }
    broker.stop();
}

/// [MQTT-3.1.0-1]
#[test]
fn every_first_byte_but_that_of_connect_closes_a_new_connection() {
    let broker = Broker::start();
    let mut other = Client::connect(&broker, V5);
    for byte in 0..=u8::MAX {
        let mut client = Client::raw(broker.addr(), V311);
        client.send(&[byte, 0]);
        client.assert_closed();
    }
    other.assert_silent();
    broker.stop();
}

/// [MQTT-2.1.3-1] [MQTT-4.13.1-1] [MQTT-2.2.2-2 of 3.1.1] [MQTT-4.8.0-1 of 3.1.1]
#[test]
fn every_first_byte_of_an_empty_packet_is_answered_or_closes_with_a_code() {
    let broker = Broker::start();
    let mut other = Client::connect(&broker, V5);
    for version in VERSIONS {
        for byte in 0..=u8::MAX {
            let mut client = Client::connect(&broker, version);
            client.send(&[byte, 0]);
            match (byte, client.next()) {
                (0xC0, got) => assert_eq!(got, Got::PingResp),
                (0xE0, got) => assert_eq!(got, Got::Closed),
                (_, got) if version == V311 => assert_eq!(got, Got::Closed, "{byte:#04x}"),
                (_, Got::Disconnect(0x81 | 0x82)) => client.assert_closed(),
                (_, got) => panic!("{byte:#04x}: {got:?}"),
            }
        }
    }
    other.assert_silent();
    broker.stop();
}

/// [MQTT-3.1.0-2] [MQTT-4.13.1-1] [MQTT-3.1.0-2 of 3.1.1] [MQTT-4.8.0-1 of 3.1.1]
#[test]
fn packets_that_only_a_server_sends_and_a_second_connect_close_the_connection() {
    let broker = Broker::start_configured("sys_interval_s = 1");
    let mut other = Client::connect(&broker, V5);
    let mut errors = 0;
    for version in VERSIONS {
        let is_v5 = version == V5;
        let connack: &[u8] = if is_v5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] };
        let suback: &[u8] = if is_v5 { &[0x90, 4, 0, 1, 0, 0] } else { &[0x90, 3, 0, 1, 0] };
        let unsuback: &[u8] = if is_v5 { &[0xB0, 4, 0, 1, 0, 0] } else { &[0xB0, 2, 0, 1] };
        let second = Hello::new(version, &unique("second")).bytes();
        for packet in [connack, suback, unsuback, &[0xD0, 0], &second, &[0xF0, 0]] {
            let mut client = Client::connect(&broker, version);
            client.send(packet);
            client.assert_closed_with(0x82);
            errors += 1;
        }
    }
    other.assert_silent();
    assert_eq!(wait_for_counter(&broker, "errors/protocol", errors), errors);
    broker.stop();
}

/// [MQTT-2.2.1-3] [MQTT-3.3.1-4] [MQTT-3.3.1-2] [MQTT-1.5.4-1] [MQTT-1.5.4-2] [MQTT-3.3.2-2]
/// [MQTT-4.7.3-1] [MQTT-3.8.3-2] [MQTT-3.8.1-1] [MQTT-3.8.3-5] [MQTT-3.10.3-2] [MQTT-3.6.1-1]
#[test]
fn each_malformed_packet_closes_its_client_only_with_its_code_and_is_counted() {
    let broker = Broker::start_configured("sys_interval_s = 1");
    let mut other = Client::connect(&broker, V5);
    other.subscribe("#", 0);
    // First byte, what comes before the properties, what comes behind them, code.
    let cases: &[(u8, &[u8], &[u8], u8)] = &[
        (0x32, b"\0\x01t\0\0", b"x", 0x82),
        (0x34, b"\0\x01t\0\0", b"x", 0x82),
        (0x36, b"\0\x01t\0\x01", b"x", 0x81),
        (0x38, b"\0\x01t", b"x", 0x81),
        (0x30, b"\0\x02\xC3\x28", b"x", 0x81),
        (0x30, b"\0\x03\xED\xA0\x80", b"x", 0x81),
        (0x30, b"\0\x02\xC0\x80", b"x", 0x81),
        (0x30, b"\0\x03t\0t", b"x", 0x81),
        (0x30, b"\0\x03t/#", b"x", 0x90),
        (0x30, b"\0\x01+", b"x", 0x90),
        (0x30, b"\0\0", b"x", 0x82),
        (0x82, b"\0\0", b"\0\x01t\0", 0x82),
        (0x82, b"\0\x01", b"", 0x82),
        (0x80, b"\0\x01", b"\0\x01t\0", 0x81),
        (0x82, b"\0\x01", b"\0\x01t\x03", 0x82),
        (0x82, b"\0\x01", b"\0\x01t\xC0", 0x81),
        (0x82, b"\0\x01", b"\0\x01t", 0x81),
        (0x82, b"\0\x01", b"\0\x05t\0", 0x81),
        (0xA2, b"\0\0", b"\0\x01t", 0x82),
        (0xA2, b"\0\x01", b"", 0x82),
        (0xA0, b"\0\x01", b"\0\x01t", 0x81),
    ];
    let mut errors = 0;
    for version in VERSIONS {
        for (first_byte, head, tail, code) in cases {
            let filler: &[u8] = if version == V5 { &[0] } else { &[] };
            let body = [*head, filler, *tail].concat();
            let packet = [&[*first_byte, body.len() as u8][..], &body].concat();
            let mut client = Client::connect(&broker, version);
            // What comes behind it counts no more.
            client.send(&[&packet[..], &publish(version, "later", b"", 0, 0, false)].concat());
            let told = match version {
                V5 => client.next(),
                _ => Got::Disconnect(*code),
            };
            assert_eq!(told, Got::Disconnect(*code), "{packet:02x?}");
            assert_eq!(client.next(), Got::Closed, "{packet:02x?} of {version:?}");
            errors += 1;
        }
    }
    for packet in [&[0x60_u8, 2, 0, 1][..], &[0x40, 2, 0, 0], &[0x40, 1, 0], &[0xC0, 1, 0]] {
        let mut client = Client::connect(&broker, V311);
        client.send(packet);
        client.assert_closed();
        errors += 1;
    }
    other.assert_silent();
    assert_eq!(wait_for_counter(&broker, "errors/protocol", errors), errors);
    broker.stop();
}

/// [MQTT-3.3.2-9] [MQTT-3.3.4-6] [MQTT-3.3.4-7] [MQTT-3.14.2-2], sections 3.2.2.3.12 and 2.2.2.2
#[test]
fn what_connack_excludes_closes_a_v5_client_with_its_code() {
    let settings = "receive_max = 2\ntopic_alias_max = 4\nsubscription_identifiers = false";
    let broker = Broker::start_configured(settings);
    for (packet, code) in [
        // Topic aliases: over the maximum, zero, and one that stands for nothing yet.
        (&b"\x30\x07\0\x01t\x03\x23\0\x05"[..], 0x94),
        (b"\x30\x07\0\x01t\x03\x23\0\0", 0x94),
        (b"\x30\x06\0\0\x03\x23\0\x01", 0x82),
        // Subscription identifier in SUBSCRIBE and in PUBLISH.
        (b"\x82\x09\0\x01\x02\x0B\x01\0\x01t\0", 0xA1),
        (b"\x30\x06\0\x01t\x02\x0B\x01", 0x82),
        // Payload format twice, one that does not exist, one that belongs elsewhere.
        (b"\x30\x08\0\x01t\x04\x01\0\x01\0", 0x82),
        (b"\x30\x06\0\x01t\x02\x7F\x01", 0x81),
        (b"\x30\x07\0\x01t\x03\x21\0\x05", 0x81),
        // Session expiry that CONNECT had set to zero.
        (b"\xE0\x07\0\x05\x11\0\0\0\x01", 0x82),
        // A third unacknowledged message.
        (b"\x34\x06\0\x01t\0\x01\0\x34\x06\0\x01t\0\x02\0\x34\x06\0\x01t\0\x03\0", 0x93),
    ] {
        let mut client = Client::connect(&broker, V5);
        client.send(packet);
        let told = loop {
            match client.next() {
                Got::Ack(PUBREC, ..) => (),
                other => break other,
            }
        };
        assert_eq!(told, Got::Disconnect(code), "{packet:02x?}");
        client.assert_closed();
    }
    broker.stop();
}

#[test]
fn packets_cut_at_every_length_and_followed_by_a_close_harm_nobody() {
    let broker = Broker::start();
    let mut other = Client::connect(&broker, V5);
    for version in VERSIONS {
        let connect = Hello::new(version, "cut").will("w", "bye", 1, false).bytes();
        for cut in 0..connect.len() {
            let mut client = Client::raw(broker.addr(), version);
            client.send(&connect[..cut]);
            end_of_writing(&mut client);
        }
        for packet in valid_packets(version) {
            for cut in 1..packet.len() {
                let mut client = Client::connect(&broker, version);
                client.send(&packet[..cut]);
                end_of_writing(&mut client);
                // The same cut, and a header that agrees with it.
                let mut short = packet[..cut].to_vec();
                if let Some(length) = short.get_mut(1) {
                    *length = cut as u8 - 2;
                }
                let mut client = Client::connect(&broker, version);
                client.send(&short);
                end_of_writing(&mut client);
            }
        }
    }
    other.assert_silent();
    broker.stop();
}

/// A failure prints the seed; `MAILBOXQTT_TEST_SEED` sets it.
#[test]
fn random_bytes_from_50_connections_harm_nobody() {
    let seed =
        std::env::var("MAILBOXQTT_TEST_SEED").map_or(20_260_101, |text| text.parse().unwrap());
    println!("MAILBOXQTT_TEST_SEED={seed}");
    let broker = Broker::start();
    let mut other = Client::connect(&broker, V5);
    let addr = broker.addr();
    let workers = (0..50_u64).map(|index| {
        thread::spawn(move || {
            let mut random = fastrand::Rng::with_seed(seed + index);
            let version = VERSIONS[index as usize % 2];
            for _ in 0..20 {
                let mut bytes: Vec<u8> =
                    (0..random.usize(1..2_000)).map(|_| random.u8(..)).collect();
                let mut client = if random.bool() {
                    Client::raw(addr, version)
                } else {
                    Hello::new(version, &unique("random")).open(addr).0
                };
                if random.bool() {
                    // Nearly right: whole packets with a few bytes changed.
                    bytes = valid_packets(version).concat();
                    for _ in 0..random.usize(1..4) {
                        let at = random.usize(..bytes.len());
                        bytes[at] = random.u8(..);
                    }
                }
                client.send_in_vain(&bytes);
                end_of_writing(&mut client);
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.join().unwrap();
    }
    other.assert_silent();
    Client::connect(&broker, V311).deliver("after", "all");
    broker.stop();
}

/// One of each that a client may send.
fn valid_packets(version: ProtocolVersion) -> Vec<Vec<u8>> {
    let is_v5 = version == V5;
    let with_filler = |first_byte: u8, head: &[u8], tail: &[u8]| {
        let filler: &[u8] = if is_v5 { &[0] } else { &[] };
        let body = [head, filler, tail].concat();
        [&[first_byte, body.len() as u8][..], &body].concat()
    };
    vec![
        publish(version, "cut/short", b"payload", 0, 0, true),
        publish(version, "cut/short", b"payload", 1, 1, false),
        publish(version, "cut/short", b"payload", 2, 2, false),
        with_filler(0x82, b"\0\x03", b"\0\x05cut/#\x01\0\x01+\x02"),
        with_filler(0xA2, b"\0\x04", b"\0\x05cut/#"),
        vec![0x62, 2, 0, 2],
        vec![0x40, 2, 0, 1],
        vec![0xC0, 0],
    ]
}

/// Says that nothing more will come, and takes what the broker still says until it closes too.
fn end_of_writing(client: &mut Client) {
    // Fails when the broker has closed already.
    let _ = client.stream().shutdown(Shutdown::Write);
    let mut stream: &TcpStream = client.stream();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "the broker did not close: {error}");
    }
}

/// Waits until only one of `clients`, which have all sent the same identifier, is left.
#[track_caller]
fn keep_the_last_one(clients: &mut Vec<Client>) {
    let deadline = Instant::now() + PATIENCE;
    while clients.len() > 1 {
        assert!(Instant::now() < deadline, "{} clients are still there", clients.len());
        clients.retain_mut(|client| {
            client.send_in_vain(&[0xC0, 0]);
            loop {
                match client.next() {
                    Got::ConnAck(_, 0, _) | Got::Disconnect(0x8E) => (),
                    Got::PingResp => return true,
                    Got::Closed => return false,
                    other => panic!("{other:?}"),
                }
            }
        });
    }
    assert_eq!(clients.len(), 1, "nobody is left");
    clients[0].assert_silent();
}

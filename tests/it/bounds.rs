//! What one client may cost: every limit that a client can run into, run into.

use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::codec::{Property, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::Qos;
use socket2::SockRef;

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello, PUBACK, Publication, VERSIONS, publish, wait_for_counter};

const MIB: u64 = 1024 * 1024;

/// Short messages with changing topics make long lists; the limits of a mailbox are applied at the end
/// of a shard's turn, so a turn must end in time.
#[test]
fn changing_topics_to_many_deaf_subscribers_cost_bounded_memory() {
    let broker = Broker::start_configured(
        "shards = 1\nqueue_policy = \"drop_newest\"\nqueue_messages_max = 1000\nqueue_bytes_max = 100000\nsys_interval_s = 1",
    );
    let before = broker.resident_bytes();
    let deaf: Vec<Client> = (0..100)
        .map(|_| {
            let mut client = Client::connect(&broker, V311);
            SockRef::from(client.stream()).set_recv_buffer_size(4096).unwrap();
            client.subscribe("+", 0);
            client
        })
        .collect();
    let mut sender = Client::connect(&broker, V311);
    let pair = [publish(V311, "a", b"", 0, 0, false), publish(V311, "b", b"", 0, 0, false)];
    // Twenty million entries of lists, which are a gigabyte if nobody applies a limit meanwhile.
    sender.send(&pair.concat().repeat(100_000));
    // In the same shard, and so behind everything.
    sender.deliver("end", "");
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 200 * MIB, "grown by {grown} bytes");
    wait_for_counter(&broker, "publish/messages/dropped/queue_full", 1);
    drop(deaf);
    broker.stop();
}

#[test]
fn retained_message_that_grows_is_held_to_the_limit_of_bytes() {
    let broker = Broker::start_configured("retained_bytes_max = 100000\nsys_interval_s = 1");
    let (small, large) = (unique("small"), unique("large"));
    let mut client = Client::connect(&broker, V5);
    client.deliver_retained(&small, "kept");
    client.deliver_retained(&large, "earlier");
    client.deliver_retained(&large, vec![b'x'; 200_000]);
    wait_for_counter(&broker, "publish/messages/dropped/retained_full", 1);

    // The earlier message is not the newest any more, so there is none.
    let options = SubscribeOptions::new(Qos::AtMostOnce);
    client.subscribe_with(&[(&large, options), (&small, options)]);
    assert_eq!(client.message().topic, small);
    client.assert_silent();
    broker.stop();
}

/// A topic that is published to leaves a compiled route behind.
#[test]
fn many_long_topics_cost_bounded_memory() {
    const TOPIC_BYTES: usize = 60_000;
    let broker = Broker::start_configured("shards = 1");
    let before = broker.resident_bytes();
    let mut client = Client::connect(&broker, V311);
    // 240 MB of topics.
    for number in 0..4_000 {
        let topic = format!("{number}/{}", "t".repeat(TOPIC_BYTES));
        client.send(&publish(V311, &topic, b"", 0, 0, false));
    }
    client.deliver("end", "");
    let grown = broker.resident_bytes().saturating_sub(before);
    assert!(grown < 160 * MIB, "grown by {grown} bytes");
    broker.stop();
}

#[test]
fn filters_of_a_session_are_bounded_in_bytes() {
    let broker = Broker::start_configured("subscription_bytes_max = 100");
    for (version, refused) in [(V311, 0x80), (V5, 0x97)] {
        let mut client = Client::connect(&broker, version);
        let (first, second) = ("f".repeat(60), "s".repeat(60));
        let codes = client.subscribe_all(&[(&first, 0), (&second, 0), (&first, 1)]);
        assert_eq!(codes, [0, refused, 1]);
        client.unsubscribe(&first);
        assert_eq!(client.subscribe_all(&[(&second, 0)]), [0]);
    }
    broker.stop();
}

#[test]
fn session_over_the_limit_is_refused_by_code_and_a_known_one_is_not() {
    let broker = Broker::start_configured("sessions_max = 2");
    let (first, second) = (unique("first"), unique("second"));
    let (kept, _) = Hello::persistent(V5, &first).open(broker.addr());
    kept.disconnect();
    let (_other, _) = Hello::new(V5, &second).open(broker.addr());
    for (version, code) in [(V311, 3), (V5, 0x97)] {
        let third = unique("third");
        let (mut client, answer) = Hello::new(version, &third).try_open(broker.addr());
        assert!(matches!(answer, Got::ConnAck(false, got, _) if got == code), "{answer:?}");
        client.assert_closed();
    }
    assert!(Hello::persistent(V5, &first).open(broker.addr()).1);
    broker.stop();
}

#[test]
fn connect_over_its_limit_is_refused_and_other_packets_may_be_larger() {
    let broker = Broker::start_configured("connect_bytes_max = 500");
    let (id, payload) = (unique("large"), "w".repeat(600));
    let (mut client, answer) =
        Hello::new(V5, &id).will("will", &payload, 0, false).try_open(broker.addr());
    assert!(matches!(answer, Got::ConnAck(false, 0x95, _)), "{answer:?}");
    client.assert_closed();

    let mut client = Client::connect(&broker, V5);
    client.deliver("large", payload);
    broker.stop();
}

/// [MQTT-3.1.2-22]: the keep-alive is about control packets, not about bytes.
#[test]
fn bytes_that_never_become_a_packet_do_not_keep_a_connection_alive() {
    let broker = Broker::start();
    let id = unique("drip");
    let hello = Hello { keep_alive_s: 1, ..Hello::new(V311, &id) };
    let (mut client, _) = hello.open(broker.addr());
    client.send(&[0x30, 0xFF, 0x7F]);
    let mut writer = client.stream().try_clone().unwrap();
    let dripping = thread::spawn(move || {
        use std::io::Write;
        let started = Instant::now();
        while writer.write_all(b"d").is_ok() {
            if started.elapsed() > Duration::from_secs(10) {
                return Err("still open after ten seconds");
            }
            thread::park_timeout(Duration::from_millis(50));
        }
        Ok(())
    });
    client.assert_closed();
    assert_eq!(dripping.join().unwrap(), Ok(()));
    broker.stop();
}

/// What is left out and arrives is the matter of `conformance::connect`.
#[test]
fn messages_over_the_packet_size_of_a_client_are_counted() {
    let broker = Broker::start_configured("sys_interval_s = 1");
    let id = unique("tiny");
    let (mut client, _) =
        Hello::new(V5, &id).with(Property::MaximumPacketSize(100)).open(broker.addr());
    client.subscribe("size", 2);
    let mut sender = Client::connect(&broker, V311);
    for (id, bytes) in [(1, 50), (2, 5_000), (3, 101), (4, 60)] {
        sender.publish("size", vec![b'x'; bytes], 1, id);
        assert_eq!(sender.next(), Got::Ack(PUBACK, id, 0));
    }
    assert_eq!(wait_for_counter(&broker, "publish/messages/dropped/packet_too_large", 2), 2);
    broker.stop();
}

/// [MQTT-3.1.2-24]
#[test]
fn answer_over_the_maximum_packet_size_of_the_client_ends_the_connection() {
    let broker = Broker::start();
    let id = unique("tiny");
    let hello = Hello::new(V5, &id).with(Property::MaximumPacketSize(40));
    let (mut client, _) = hello.open(broker.addr());
    let filters: Vec<String> = (0..50).map(|number| format!("f/{number}")).collect();
    let options = SubscribeOptions::new(Qos::AtMostOnce);
    let asked: Vec<_> = filters.iter().map(|filter| (&filter[..], options)).collect();
    client.send_subscribe(&asked);
    client.assert_closed_with(0x95);
    broker.stop();
}

/// [MQTT-3.10.4-2]: at most the chunk that was under way still comes.
#[test]
fn retained_messages_stop_coming_after_unsuback() {
    let broker = Broker::start();
    let stem = unique("stop");
    let mut client = Client::connect(&broker, V311);
    let topics = 20_000;
    let block: Vec<u8> = (0..topics)
        .flat_map(|number| publish(V311, &format!("{stem}/{number}"), b"x", 0, 0, true))
        .collect();
    client.send(&block);
    client.publish(&format!("{stem}/last"), "x", 1, 9);
    assert_eq!(client.next(), Got::Ack(PUBACK, 9, 0));

    for version in VERSIONS {
        let mut subscriber = Client::connect(&broker, version);
        // Both in one write, so that the second is read before the replay has gone far.
        let filter = format!("{stem}/#");
        let properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let rest = |id: u8, options: &[u8]| {
            let length = [0, filter.len() as u8];
            [&[0, id], properties, &length, filter.as_bytes(), options].concat()
        };
        let (asked, ended) = (rest(1, &[0]), rest(2, &[]));
        let packets = [&[0x82, asked.len() as u8], &asked[..], &[0xA2, ended.len() as u8], &ended];
        subscriber.send(&packets.concat());

        let mut came = 0;
        let mut answers = 0;
        while answers < 2 {
            match subscriber.next() {
                Got::Publish(_) => came += 1,
                Got::SubAck(1, _) | Got::UnsubAck(2, _) => answers += 1,
                other => panic!("{other:?}"),
            }
        }
        // What was under way may still come, but nothing is asked for any more.
        for _ in 0..3 {
            subscriber.send(&[0xC0, 0]);
            while let Got::Publish(_) = subscriber.next() {
                came += 1;
            }
        }
        assert!(came < 1_000, "{came} of {topics} came");
        subscriber.assert_silent();
    }
    broker.stop();
}

/// A queue that is full of messages that have expired takes others, the client being away or not acknowledging.
#[test]
fn expired_messages_make_room_in_a_full_queue() {
    let settings = "queue_policy = \"drop_newest\"\nqueue_messages_max = 4\nsys_interval_s = 1";
    let broker = Broker::start_configured(settings);
    let id = unique("expired");
    let (mut away, _) = Hello::persistent(V5, &id).open(broker.addr());
    away.subscribe("expired", 1);
    away.disconnect();
    let stuck = Hello::new(V5, "stuck").with(Property::ReceiveMaximum(1));
    let (mut stuck, _) = stuck.open(broker.addr());
    stuck.subscribe("expired", 1);
    let mut sender = Client::connect(&broker, V5);
    sender.deliver("expired", "in flight");
    assert_eq!(stuck.message().text(), "in flight");

    // One waits for the client that is away already; three more fill its queue, four that of the other.
    for id in 101..=104 {
        let old = Publication::new("expired", "old").qos(1, id);
        sender.send_publication(&old.with(Property::MessageExpiryInterval(1)));
        assert_eq!(sender.next(), Got::Ack(PUBACK, id, 0));
    }
    wait_for_counter(&broker, "publish/messages/dropped/queue_full", 1);
    wait_for_counter(&broker, "publish/messages/dropped/expired", 3 + 4);
    for text in ["a", "b", "c"] {
        sender.deliver("expired", text);
    }
    let (mut back, present) = Hello::persistent(V5, &id).open(broker.addr());
    assert!(present);
    let texts: Vec<_> = (0..4).map(|_| back.message().text().to_owned()).collect();
    assert_eq!(texts, ["in flight", "a", "b", "c"]);
    for (acknowledged, text) in [(1, "a"), (2, "b"), (3, "c")] {
        stuck.ack(PUBACK, acknowledged);
        assert_eq!(stuck.message().text(), text);
    }
    broker.stop();
}

//! Message receipt and message ordering (4.5 and 4.6).

use std::collections::HashMap;

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::V5;

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, VERSIONS, publish,
};

/// Whether its client is there or away, and whichever of its filters matches.
/// [MQTT-4.5.0-1] [MQTT-4.5.0-1 of 3.1.1]
#[test]
fn accepted_message_reaches_every_session_that_has_subscribed_to_it() {
    let broker = Broker::start();
    for from in VERSIONS {
        let stem = unique("every");
        let topic = format!("{stem}/a/b");
        let matching = ["/a/b", "/a/+", "/+/b", "/+/+", "/#", "/a/#", "/a/b/#"];
        let others = ["/a", "/A/b", "/a/b/+", "/+", "/a/b/"];
        let mut sessions = Vec::new();
        for ending in matching.iter().chain(&others) {
            for to in VERSIONS {
                for is_away in [false, true] {
                    let id = unique("every");
                    let (mut client, _) = Hello::persistent(to, &id).open(broker.addr());
                    client.subscribe(&format!("{stem}{ending}"), 2);
                    let client = match is_away {
                        true => {
                            client.disconnect();
                            None
                        }
                        false => Some(client),
                    };
                    sessions.push((to, id, client, matching.contains(ending)));
                }
            }
        }
        let mut sender = Client::connect(&broker, from);
        for qos in [1, 2] {
            sender.deliver_at(&topic, [qos], qos);
        }
        for (to, id, client, is_matching) in sessions {
            let hello = Hello::persistent(to, &id);
            let mut client = client.unwrap_or_else(|| hello.open(broker.addr()).0);
            let came = client.drain();
            let came: Vec<_> = came.iter().map(|it| (&it.payload[..], it.qos)).collect();
            match is_matching {
                true => assert_eq!(came, [(&[1][..], 1), (&[2], 2)]),
                false => assert_eq!(came, []),
            }
        }
    }
    broker.stop();
}

/// [MQTT-4.5.0-1] [MQTT-4.6.0-6] [MQTT-4.5.0-1 of 3.1.1] [MQTT-4.6.0-5 of 3.1.1] [MQTT-3.1.2-5 of 3.1.1]
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
            // A broker may store QoS 0 as well. Ours does not.
            let is_due = |message: &Message| message.qos > 0 || !is_pointed_elsewhere();
            let expected = (1..=MESSAGES).filter(|number| number % 3 > 0).collect::<Vec<_>>();
            let mut came = Vec::new();
            while came.len() < expected.len() {
                came.extend(client.receive(1).into_iter().filter(is_due));
            }
            for (number, message) in expected.iter().zip(&came) {
                let expected = (number.to_string(), (number % 3) as u8, false);
                assert_eq!((message.text().to_owned(), message.qos, message.dup), expected);
            }
            assert_eq!(came.len(), expected.len());
            client.assert_silent();
        }
    }
    broker.stop();
}

/// Subscribers of every kind, two publishers at once, two topics, all QoS: see [`assert_order`].
/// [MQTT-4.6.0-5] [MQTT-4.6.0-6] [MQTT-4.6.0-5 of 3.1.1] [MQTT-4.6.0-6 of 3.1.1]
#[test]
fn messages_of_one_publisher_topic_and_qos_arrive_in_their_order() {
    const ROUNDS: u16 = 15;
    const BURST: u16 = 10;
    let broker = Broker::start();
    let stem = unique("order");
    let mut subscribers = Vec::new();
    for version in VERSIONS {
        for granted in 0..=2 {
            for filters in [&["/x", "/y"][..], &["/+"], &["/#"]] {
                let mut client = Client::connect(&broker, version);
                for filter in filters {
                    client.subscribe(&format!("{stem}{filter}"), granted);
                }
                subscribers.push(client);
            }
        }
    }
    // One that has to be waited for.
    let id = unique("order");
    let (mut slow, _) = Hello::new(V5, &id).with(Property::ReceiveMaximum(3)).open(broker.addr());
    slow.subscribe(&format!("{stem}/#"), 2);
    subscribers.push(slow);

    let mut publishers = VERSIONS.map(|version| Client::connect(&broker, version));
    let mut random = fastrand::Rng::with_seed(4_600);
    for round in 0..ROUNDS {
        // Both have sent before either is heard.
        let mut due = [0; 2];
        for (name, publisher) in publishers.iter_mut().enumerate() {
            let mut burst = Vec::new();
            for id in round * BURST + 1..=(round + 1) * BURST {
                let topic = format!("{stem}/{}", if random.bool() { "x" } else { "y" });
                let qos = random.u8(0..=2);
                due[name] += usize::from(qos);
                let payload = format!("{name} {qos} {id}");
                let version = publisher.version();
                burst.extend(publish(version, &topic, payload.as_bytes(), qos, id, false));
            }
            publisher.send(&burst);
        }
        for (publisher, due) in publishers.iter_mut().zip(due) {
            for _ in 0..due {
                match publisher.next() {
                    Got::Ack(PUBACK | PUBCOMP, _, 0) => (),
                    Got::Ack(PUBREC, id, 0) => publisher.ack(PUBREL, id),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    for subscriber in &mut subscribers {
        let came = subscriber.receive(usize::from(2 * ROUNDS * BURST));
        subscriber.assert_silent();
        assert_order(&came);
    }
    broker.stop();
}

/// The QoS of an order is the one that a message was published with.
#[track_caller]
fn assert_order(messages: &[Message]) {
    let mut last = HashMap::new();
    for message in messages {
        let mut words = message.text().split(' ');
        let (publisher, qos) = (words.next().unwrap(), words.next().unwrap());
        let number: u16 = words.next().unwrap().parse().unwrap();
        let earlier = last.insert((publisher, qos, &message.topic), number);
        assert!(earlier < Some(number), "{earlier:?} before {:?}", message.text());
    }
}

/// The rules of section 4.6 that stand above the one that says they are the broker's, too.
/// [MQTT-4.6.0-6 of 3.1.1]
#[test]
fn pubrels_leave_in_the_order_of_the_pubrecs() {
    let broker = Broker::start();
    let mut random = fastrand::Rng::with_seed(4_601);
    for version in VERSIONS {
        let topic = unique("pubrels");
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, version);
        for _ in 0..9 {
            sender.deliver_at(&topic, "x", 2);
        }
        let mut ids: Vec<u16> = (0..9).map(|_| receiver.message().id).collect();
        random.shuffle(&mut ids);
        let pubrecs = ids.iter().flat_map(|id| [PUBREC, 2, (id >> 8) as u8, *id as u8]);
        receiver.send(&pubrecs.collect::<Vec<_>>());
        for id in ids {
            assert_eq!(receiver.next(), Got::Ack(PUBREL, id, 0));
        }
    }
    broker.stop();
}

/// Section 4.6 asks it of clients; this broker does it, too, though its shards speak one by one.
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

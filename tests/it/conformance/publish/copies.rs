//! Who gets how many copies of a message, at which QoS, and with which subscription identifiers (3.3.4).
//!
//! For subscriptions of one client that overlap a broker may send one copy, or one for each of them.

use mailboxqtt::codec::{Property, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::V5;
use mailboxqtt::ids::{ProtocolVersion, Qos};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello, Message, Publication, VERSIONS};

/// [MQTT-3.3.4-2] [MQTT-3.3.5-1 of 3.1.1]
#[test]
fn overlapping_subscriptions_give_a_copy_at_the_highest_qos() {
    let broker = Broker::start();
    for version in VERSIONS {
        // In each order, and with each of them the highest.
        for granted in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 1, 1]]
        {
            let topic = unique("overlap");
            let exact = format!("{topic}/a");
            let filters = [exact.clone(), format!("{topic}/+"), format!("{topic}/#")];
            let mut receiver = Client::connect(&broker, version);
            for (filter, qos) in filters.iter().zip(granted) {
                receiver.subscribe(filter, qos);
            }
            let highest = *granted.iter().max().unwrap();
            for published in 0..=2 {
                let mut sender = Client::connect(&broker, version);
                sender.deliver_at(&exact, "x", published);
                // A second one of the same topic: the first, which may be of QoS 0, is ahead of it.
                sender.deliver(&exact, "behind");
                let messages = receiver.drain();
                messages.iter().for_each(|message| receiver.take(message));
                let first = messages.iter().filter(|message| message.text() == "x");
                let mut first: Vec<u8> = first.map(|message| message.qos).collect();
                assert_eq!(first.iter().max(), Some(&published.min(highest)), "{granted:?}");
                let mut due: Vec<u8> = granted.iter().map(|qos| published.min(*qos)).collect();
                assert!(first.len() == 1 || first.len() == due.len(), "{messages:?}");
                if first.len() > 1 {
                    first.sort_unstable();
                    due.sort_unstable();
                    assert_eq!(first, due);
                }
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.3.4-3]
#[test]
fn message_has_the_identifier_of_its_subscription() {
    let broker = Broker::start();
    let stem = unique("single");
    let mut sender = Client::connect(&broker, V5);
    let mut old_sender = Client::connect(&broker, ProtocolVersion::V311);
    for (number, identifier) in [1, 127, 128, 16_384, 268_435_455].into_iter().enumerate() {
        let topic = format!("{stem}/{number}");
        for filter in [topic.clone(), format!("{topic}/#"), format!("{stem}/+/#")] {
            let mut receiver = Client::connect(&broker, V5);
            subscribe(&mut receiver, &filter, 2, Some(identifier));
            for qos in 0..=2 {
                for sender in [&mut sender, &mut old_sender] {
                    sender.deliver_at(&topic, "x", qos);
                    let message = receiver.message();
                    assert_eq!(identifiers(&message), [identifier]);
                    receiver.take(&message);
                }
            }
            // The others' messages go on without.
            receiver.subscribe(&format!("{stem}/other"), 0);
            sender.deliver(&format!("{stem}/other"), "x");
            let without = receiver.drain();
            let all: Vec<u32> = without.iter().flat_map(identifiers).collect();
            let is_matched = filter.contains('+');
            assert_eq!(all, vec![identifier; usize::from(is_matched)]);
        }
    }
    broker.stop();
}

/// [MQTT-3.3.4-3]: also for what is retained, and for what waits for a client that is away.
#[test]
fn identifier_is_there_whenever_the_message_comes() {
    let broker = Broker::start();
    let (topic, id) = (unique("when"), unique("when"));
    let mut sender = Client::connect(&broker, V5);
    sender.deliver_retained(&topic, "retained");
    let hello = Hello::persistent(V5, &id);
    let (mut receiver, _) = hello.open(broker.addr());
    subscribe(&mut receiver, &topic, 1, Some(300));
    let retained = receiver.message();
    assert_eq!((retained.text(), identifiers(&retained)), ("retained", vec![300]));
    receiver.disconnect();
    sender.deliver(&topic, "away");
    // Twice: the second time both are sent again.
    for _ in 0..2 {
        let (mut receiver, _) = hello.open(broker.addr());
        for text in ["retained", "away"] {
            let message = receiver.message();
            assert_eq!((message.text(), identifiers(&message)), (text, vec![300]));
        }
    }
    broker.stop();
}

/// [MQTT-3.3.4-3] [MQTT-3.3.4-4] [MQTT-3.3.4-5]
#[test]
fn message_for_overlapping_subscriptions_has_the_identifiers_of_all_of_them() {
    let broker = Broker::start();
    // The same one twice, too: it is there twice.
    for numbers in [
        [Some(1), Some(2), Some(3)],
        [Some(300), None, Some(20_000)],
        [None, None, Some(7)],
        [Some(5), Some(5), Some(6)],
        [None, None, None],
    ] {
        let topic = unique("overlap");
        let exact = format!("{topic}/a");
        let filters = [exact.clone(), format!("{topic}/+"), format!("{topic}/#")];
        let mut receiver = Client::connect(&broker, V5);
        for (filter, identifier) in filters.iter().zip(numbers) {
            subscribe(&mut receiver, filter, 1, identifier);
        }
        // This one matches nothing.
        subscribe(&mut receiver, &format!("{topic}/b"), 1, Some(999));
        let mut sender = Client::connect(&broker, V5);
        for qos in [1, 2] {
            sender.deliver_at(&exact, "x", qos);
            let messages = receiver.drain();
            messages.iter().for_each(|message| receiver.take(message));
            let copies: Vec<Vec<u32>> = messages.iter().map(identifiers).collect();
            let mut all = copies.concat();
            all.sort_unstable();
            let mut expected: Vec<u32> = numbers.into_iter().flatten().collect();
            expected.sort_unstable();
            assert_eq!(all, expected, "{copies:?}");
            if copies.len() > 1 {
                assert_eq!(copies.len(), numbers.len(), "{copies:?}");
                assert!(copies.iter().all(|copy| copy.len() <= 1), "{copies:?}");
            }
        }
    }
    broker.stop();
}

/// A message comes once for the shared subscription and once for the others. [MQTT-3.3.4-5]
#[test]
fn copy_of_a_shared_subscription_has_its_own_identifier() {
    let broker = Broker::start();
    let topic = unique("shared");
    let mut receiver = Client::connect(&broker, V5);
    if receiver.properties().shared_subscription_available() == Some(false) {
        return;
    }
    subscribe(&mut receiver, &topic, 1, Some(1));
    subscribe(&mut receiver, &format!("$share/one/{topic}"), 1, Some(2));
    subscribe(&mut receiver, &format!("$share/two/{topic}/#"), 1, Some(3));
    Client::connect(&broker, V5).deliver(&topic, "x");
    let mut copies: Vec<Vec<u32>> = receiver.drain().iter().map(identifiers).collect();
    copies.sort();
    assert_eq!(copies, [[1], [2], [3]]);
    broker.stop();
}

/// Section 3.3.4: of a shared subscription it is that of the member that gets the message.
#[test]
fn members_of_a_shared_subscription_have_identifiers_of_their_own() {
    let broker = Broker::start();
    let topic = unique("members");
    let mut members = [Some(11), None, Some(12)].map(|identifier| {
        let mut member = Client::connect(&broker, V5);
        subscribe(&mut member, &format!("$share/group/{topic}"), 1, identifier);
        (member, identifier)
    });
    let mut sender = Client::connect(&broker, V5);
    for _ in 0..12 {
        sender.deliver(&topic, "x");
    }
    let mut count = 0;
    for (member, identifier) in &mut members {
        for message in member.drain() {
            assert_eq!(identifiers(&message), identifier.iter().copied().collect::<Vec<_>>());
            count += 1;
        }
    }
    assert_eq!(count, 12);
    broker.stop();
}

/// Section 3.3.4: such a packet comes from a broker only. [MQTT-3.3.4-6]
#[test]
fn identifier_in_the_publish_of_a_client_ends_the_connection() {
    let broker = Broker::start();
    let topic = unique("client");
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    for identifier in [1, 268_435_455] {
        for qos in 0..=2 {
            let mut client = Client::connect(&broker, V5);
            let packet = Publication::new(&topic, "x").qos(qos, 1);
            client.send_publication(&packet.with(Property::SubscriptionIdentifier(identifier)));
            client.assert_refused(&[0x81, 0x82]);
        }
    }
    Client::connect(&broker, V5).deliver(&topic, "the only one");
    assert_eq!(watcher.message().text(), "the only one");
    watcher.assert_silent();
    broker.stop();
}

fn subscribe(client: &mut Client, filter: &str, qos: u8, identifier: Option<u32>) {
    let options = SubscribeOptions::new(Qos::new(qos).unwrap());
    let list: Vec<Property<'_>> =
        identifier.into_iter().map(Property::SubscriptionIdentifier).collect();
    let id = client.send_subscribe_with(&[(filter, options)], &list);
    assert_eq!(client.next(), Got::SubAck(id, vec![qos]));
}

fn identifiers(message: &Message) -> Vec<u32> {
    message.properties().subscription_identifiers().collect()
}

//! The RETAIN flag (3.3.1.3): what is kept, who gets it, and what the flag says on the way out.

use std::collections::HashSet;

use mailboxqtt::codec::{Property, RetainHandling, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::Qos;

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello, Message, PUBACK, Publication, VERSIONS};

/// [MQTT-3.3.1-5] [MQTT-3.3.1-6 of 3.1.1] [MQTT-3.3.1-8 of 3.1.1]
#[test]
fn new_subscription_gets_the_last_retained_message_of_each_topic() {
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            let stem = unique("last");
            let mut sender = Client::connect(&broker, from);
            for number in 0..12 {
                let topic = format!("{stem}/{}", number % 5);
                sender.deliver_retained(&topic, number.to_string());
            }
            for (filter, expected) in [
                (format!("{stem}/#"), &["0 10", "1 11", "2 7", "3 8", "4 9"][..]),
                (format!("{stem}/+"), &["0 10", "1 11", "2 7", "3 8", "4 9"]),
                (format!("{stem}/3"), &["3 8"]),
                (format!("{stem}/5"), &[]),
                (stem.clone(), &[]),
            ] {
                let mut client = Client::connect(&broker, to);
                let messages = retained_of(&mut client, &broker, &filter, options(0));
                assert!(messages.iter().all(|message| message.retain), "{messages:?}");
                let mut found: Vec<String> = messages
                    .iter()
                    .map(|message| {
                        format!("{} {}", &message.topic[stem.len() + 1..], message.text())
                    })
                    .collect();
                found.sort();
                assert_eq!(found, expected, "{filter}");
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.3.1-5] [MQTT-3.3.1-5 of 3.1.1]
#[test]
fn retained_message_keeps_its_qos() {
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            let topic = unique("qos");
            let mut sender = Client::connect(&broker, from);
            for published in 1..=2 {
                let packet = Publication::new(&topic, "x").qos(published, 9).retain();
                sender.deliver_publication(&packet);
                for granted in 0..=2 {
                    let mut client = Client::connect(&broker, to);
                    let messages = retained_of(&mut client, &broker, &topic, options(granted));
                    let levels: Vec<u8> = messages.iter().map(|message| message.qos).collect();
                    assert_eq!(levels, [published.min(granted)]);
                }
            }
        }
    }
    broker.stop();
}

/// The one of QoS 0 may be kept or not, the one before it is gone. [MQTT-3.3.1-5]
/// [MQTT-3.3.1-7 of 3.1.1]
#[test]
fn retained_message_of_qos_0_ends_the_one_before_it() {
    let broker = Broker::start();
    for version in VERSIONS {
        for qos in 0..=2 {
            let topic = unique("zero");
            let mut sender = Client::connect(&broker, version);
            sender.deliver_publication(&Publication::new(&topic, "old").qos(qos, 9).retain());
            sender.retain(&topic, "new", 0, 0);
            // Both are handled when this one is.
            sender.deliver(&topic, "passing");
            let mut client = Client::connect(&broker, version);
            let messages = retained_of(&mut client, &broker, &topic, options(2));
            assert!(messages.len() <= 1, "{messages:?}");
            for message in messages {
                assert_eq!((message.text(), message.qos), ("new", 0));
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.3.1-8] [MQTT-3.3.1-12 of 3.1.1]
#[test]
fn message_without_retain_neither_becomes_nor_changes_the_retained_one() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("passing");
        let mut sender = Client::connect(&broker, version);
        let mut texts = |broker: &Broker| -> Vec<String> {
            // Also one without a payload, which is nothing special here.
            for qos in 0..=2 {
                sender.deliver_at(&topic, "passing", qos);
                sender.deliver_at(&topic, "", qos);
            }
            sender.deliver(&topic, "all of them are handled");
            let mut client = Client::connect(broker, version);
            let messages = retained_of(&mut client, broker, &topic, options(0));
            messages.iter().map(|message| message.text().to_owned()).collect()
        };
        assert!(texts(&broker).is_empty());
        Client::connect(&broker, version).deliver_retained(&topic, "kept");
        assert_eq!(texts(&broker), ["kept"]);
    }
    broker.stop();
}

/// [MQTT-3.3.1-6] [MQTT-3.3.1-7] [MQTT-3.3.1-10 of 3.1.1] [MQTT-3.3.1-11 of 3.1.1]
#[test]
fn empty_retained_message_is_delivered_and_removes_the_one_before_it_and_is_not_kept() {
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            for qos in 0..=2 {
                let topic = unique("remove");
                let mut sender = Client::connect(&broker, from);
                let mut live = Client::connect(&broker, to);
                live.subscribe(&topic, 2);
                // The second time there is nothing to be removed.
                for there_is_one in [true, false] {
                    if there_is_one {
                        sender.deliver_retained(&topic, "kept");
                        assert_eq!(live.message().text(), "kept");
                    }
                    sender.deliver_publication(&Publication::new(&topic, "").qos(qos, 9).retain());
                    let message = live.message();
                    assert_eq!((message.text(), message.qos), ("", qos));
                    assert!(!message.retain);
                    let mut late = Client::connect(&broker, to);
                    assert_eq!(retained_of(&mut late, &broker, &topic, options(2)), []);
                }
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.3.1-12] [MQTT-3.3.1-9 of 3.1.1]
#[test]
fn retain_flag_is_clear_for_those_who_had_subscribed_before() {
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            let topic = unique("live");
            let mut sender = Client::connect(&broker, from);
            sender.deliver_retained(&topic, "before");
            let id = unique("live");
            let (mut client, _) = Hello::persistent(to, &id).open(broker.addr());
            client.subscribe(&topic, 2);
            let message = client.message();
            assert_eq!((message.text(), message.retain), ("before", true));
            client.ack(PUBACK, message.id);
            for qos in 0..=2 {
                for retain in [false, true] {
                    let packet = Publication::new(&topic, "x").qos(qos, 9);
                    sender.deliver_publication(&Publication { retain, ..packet });
                    let message = client.message();
                    assert_eq!((message.qos, message.retain), (qos, false));
                }
            }
            // Also for what waits for the client.
            drop(client);
            sender.deliver_retained(&topic, "away");
            let (mut client, _) = Hello::persistent(to, &id).open(broker.addr());
            let away = client.drain().into_iter().find(|message| message.text() == "away");
            assert_eq!(away.map(|message| message.retain), Some(false));
        }
    }
    broker.stop();
}

/// A retained message that a new subscription gets has RETAIN in any case (section 3.8.3.1).
/// [MQTT-3.3.1-12] [MQTT-3.3.1-13]
#[test]
fn retain_flag_is_as_published_for_those_who_want_it_so() {
    let broker = Broker::start();
    for from in VERSIONS {
        let topic = unique("asis");
        let (mut plain, mut as_is) = (Client::connect(&broker, V5), Client::connect(&broker, V5));
        let as_published = SubscribeOptions { retain_as_published: true, ..options(2) };
        assert_eq!(plain.subscribe_with(&[(&topic, options(2))]), [2]);
        assert_eq!(as_is.subscribe_with(&[(&topic, as_published)]), [2]);
        let mut sender = Client::connect(&broker, from);
        for qos in 0..=2 {
            for (retain, payload) in [(false, "x"), (true, "x"), (true, ""), (true, "x")] {
                let packet = Publication::new(&topic, payload).qos(qos, 9);
                sender.deliver_publication(&Publication { retain, ..packet });
                assert!(!plain.message().retain);
                assert_eq!(as_is.message().retain, retain);
            }
        }
        for options in [options(0), as_published] {
            let mut late = Client::connect(&broker, V5);
            let messages = retained_of(&mut late, &broker, &topic, options);
            assert!(matches!(&messages[..], [message] if message.retain), "{messages:?}");
        }
    }
    broker.stop();
}

/// [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
#[test]
fn retain_handling_says_when_retained_messages_are_sent() {
    let broker = Broker::start();
    let (stem, id) = (unique("handling"), unique("handling"));
    let topic = format!("{stem}/a");
    Client::connect(&broker, V5).deliver_retained(&topic, "kept");
    let hello = Hello::persistent(V5, &id);
    let (mut client, _) = hello.open(broker.addr());
    for filter in [topic, format!("{stem}/#")] {
        let count = |client: &mut Client, retain_handling| {
            let options = SubscribeOptions { retain_handling, ..options(0) };
            let messages = retained_of(client, &broker, &filter, options);
            assert!(messages.iter().all(|message| message.text() == "kept" && message.retain));
            messages.len()
        };
        // New, then not.
        assert_eq!(count(&mut client, RetainHandling::DoNotSend), 0);
        assert_eq!(count(&mut client, RetainHandling::SendIfNew), 0);
        assert_eq!(count(&mut client, RetainHandling::Send), 1);
        assert_eq!(count(&mut client, RetainHandling::Send), 1);
        assert_eq!(count(&mut client, RetainHandling::SendIfNew), 0);
        assert_eq!(count(&mut client, RetainHandling::DoNotSend), 0);
        // The subscription is part of the session.
        client.disconnect();
        let (again, was_present) = hello.open(broker.addr());
        assert!(was_present);
        client = again;
        assert_eq!(count(&mut client, RetainHandling::SendIfNew), 0);
        assert_eq!(count(&mut client, RetainHandling::Send), 1);
        // New again.
        client.unsubscribe(&filter);
        assert_eq!(count(&mut client, RetainHandling::SendIfNew), 1);
        assert_eq!(count(&mut client, RetainHandling::SendIfNew), 0);
        client.unsubscribe(&filter);
        assert_eq!(count(&mut client, RetainHandling::Send), 1);
        client.unsubscribe(&filter);
    }
    broker.stop();
}

/// Each filter of a SUBSCRIBE has its own. [MQTT-3.3.1-9] [MQTT-3.3.1-10] [MQTT-3.3.1-11]
#[test]
fn retain_handling_counts_for_its_own_filter() {
    let broker = Broker::start();
    let stem = unique("each");
    let topics = [0, 1, 2, 3].map(|number| format!("{stem}/{number}"));
    let mut client = Client::connect(&broker, V5);
    let mut sender = Client::connect(&broker, V5);
    for topic in &topics {
        sender.deliver_retained(topic, "kept");
    }
    // The fourth has been subscribed to before.
    assert_eq!(retained_of(&mut client, &broker, &topics[3], options(0)).len(), 1);
    let handling = |retain_handling| SubscribeOptions { retain_handling, ..options(0) };
    let filters = [
        (&topics[0][..], handling(RetainHandling::Send)),
        (&topics[1][..], handling(RetainHandling::SendIfNew)),
        (&topics[2][..], handling(RetainHandling::DoNotSend)),
        (&topics[3][..], handling(RetainHandling::SendIfNew)),
    ];
    let messages = retained_of_all(&mut client, &broker, &filters);
    let mut found: Vec<&str> = messages.iter().map(|message| &message.topic[..]).collect();
    found.sort_unstable();
    assert_eq!(found, [&topics[0], &topics[1]]);
    broker.stop();
}

/// [MQTT-3.3.1-9], for more than the queue of the subscriber holds.
#[test]
fn slow_reader_gets_all_of_5000_retained_messages_although_its_queue_is_small() {
    const MESSAGES: usize = 5_000;
    let broker = Broker::start_configured("queue_messages_max = 50\nqueue_bytes_max = 65536");
    let mut sender = Client::connect(&broker, V311);
    let payload = vec![b'x'; 1_000];
    for number in 0..MESSAGES {
        sender.retain(&format!("many/{number}"), &payload, 1, number as u16 + 1);
    }
    for number in 0..MESSAGES {
        assert_eq!(sender.next(), Got::Ack(PUBACK, number as u16 + 1, 0));
    }
    for version in VERSIONS {
        let id = unique("slow");
        let hello = match version {
            V5 => Hello::new(V5, &id).with(Property::ReceiveMaximum(100)),
            version => Hello::new(version, &id),
        };
        let (mut receiver, _) = hello.open(broker.addr());
        let mut other = Client::connect(&broker, version);
        receiver.subscribe("many/#", 1);
        let mut seen = HashSet::new();
        while seen.len() < MESSAGES {
            let message = receiver.message();
            assert!(message.retain && message.payload.len() == 1_000);
            assert!(seen.insert(message.topic.clone()), "{} came twice", message.topic);
            receiver.ack(PUBACK, message.id);
            if seen.len() % 100 == 0 {
                other.assert_silent();
            }
        }
        receiver.assert_silent();
    }
    broker.stop();
}

fn options(qos: u8) -> SubscribeOptions {
    SubscribeOptions::new(Qos::new(qos).unwrap())
}

/// See [`retained_of_all`].
pub(super) fn retained_of(
    client: &mut Client,
    broker: &Broker,
    filter: &str,
    options: SubscribeOptions,
) -> Vec<Message> {
    retained_of_all(client, broker, &[(filter, options)])
}

/// Subscribes and returns the retained messages that come: those before the one that a second
/// SUBSCRIBE brings. The first messages of a subscription may precede its SUBACK (section 3.8.4).
pub(super) fn retained_of_all(
    client: &mut Client,
    broker: &Broker,
    filters: &[(&str, SubscribeOptions)],
) -> Vec<Message> {
    let marker = unique("marker");
    let mut messenger = Client::connect(broker, client.version());
    messenger.deliver_retained(&marker, "marker");
    let first = client.send_subscribe(filters);
    let second = client.send_subscribe(&[(&marker, options(0))]);
    let mut messages = Vec::new();
    let mut due = vec![first, second];
    let mut is_marked = false;
    while !due.is_empty() || !is_marked {
        match client.next() {
            Got::Publish(message) if message.topic == marker => is_marked = true,
            Got::Publish(message) => messages.push(message),
            Got::SubAck(id, codes) => {
                assert!(codes.iter().all(|code| *code <= 2), "{codes:?}");
                due.retain(|other| *other != id);
            }
            other => panic!("waited for SUBACK or PUBLISH, got {other:?}"),
        }
    }
    messenger.deliver_retained(&marker, "");
    assert_eq!(client.message().text(), "");
    messages
}

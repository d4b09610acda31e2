//! Topic aliases (3.3.2.3.4), in both directions.

use std::collections::HashMap;

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS,
};

/// [MQTT-3.3.2-12] [MQTT-3.3.2-3]
#[test]
fn every_alias_that_the_broker_allows_stands_for_its_topic() {
    let broker = Broker::start();
    let stem = unique("each");
    let mut sender = Client::connect(&broker, V5);
    let max = alias_max(&sender);
    // Where there are very many, those at both ends.
    let aliases = (1..=max).filter(|alias| *alias <= 500 || *alias > max - 500);
    let mut readers = VERSIONS.map(|version| Client::connect(&broker, version));
    for reader in &mut readers {
        reader.subscribe(&format!("{stem}/#"), 0);
    }
    // The greatest first: no alias depends on those before it.
    for alias in aliases.clone().rev() {
        let topic = format!("{stem}/{alias}");
        sender.deliver_publication(&with_alias(&topic, "named", alias));
        sender.deliver_publication(&with_alias("", "alias", alias));
        for reader in &mut readers {
            for text in ["named", "alias"] {
                let message = reader.message();
                assert_eq!((&message.topic[..], message.text()), (&topic[..], text));
                // Nothing is said to these about aliases: they have not asked for any.
                assert!(message.properties.is_empty());
            }
        }
    }
    // All of them are remembered at the same time.
    for alias in aliases {
        sender.deliver_publication(&with_alias("", "again", alias));
        for reader in &mut readers {
            assert_eq!(reader.message().topic, format!("{stem}/{alias}"));
        }
    }
    broker.stop();
}

/// Section 3.3.4, and sections 3.3.1 to 3.3.2 for what is known by its alias alone. [MQTT-3.3.2-12]
#[test]
fn message_that_is_named_by_its_alias_is_a_message_like_any_other() {
    let broker = Broker::start();
    let mut sender = Client::connect(&broker, V5);
    if alias_max(&sender) == 0 {
        return;
    }
    let (topic, id) = (unique("like"), unique("like"));
    let (mut away, _) = Hello::persistent(V5, &id).open(broker.addr());
    away.subscribe(&topic, 2);
    away.disconnect();
    let mut reader = Client::connect(&broker, V5);
    reader.subscribe(&topic, 2);
    sender.deliver_publication(&with_alias(&topic, "first", 1));
    assert_eq!(reader.message().text(), "first");
    for qos in 0..=2 {
        let user = Property::UserProperty { name: "n", value: "v" };
        let packet = with_alias("", "x", 1).qos(qos, 3).retain().with(user);
        sender.deliver_publication(&packet.with(Property::ContentType("text")));
        let message = reader.message();
        assert_eq!((&message.topic[..], message.text(), message.qos), (&topic[..], "x", qos));
        let properties = message.properties();
        assert_eq!(properties.user_properties().collect::<Vec<_>>(), [("n", "v")]);
        assert_eq!(properties.content_type(), Some("text"));
        assert_eq!(properties.iter().count(), 2);
        for version in VERSIONS {
            let mut late = Client::connect(&broker, version);
            late.subscribe(&topic, 2);
            let message = late.message();
            assert_eq!((&message.topic[..], message.retain, message.qos), (&topic[..], true, qos));
        }
    }
    // Of QoS 2, sent twice.
    let packet = with_alias("", "twice", 1).qos(2, 8);
    for packet in [&packet, &packet.clone().dup()] {
        sender.send_publication(packet);
        assert!(matches!(sender.next(), Got::Ack(PUBREC, 8, 0)));
    }
    sender.ack(PUBREL, 8);
    assert_eq!(sender.next(), Got::Ack(PUBCOMP, 8, 0));
    assert_eq!(reader.message().text(), "twice");
    reader.assert_silent();
    let (mut away, _) = Hello::persistent(V5, &id).open(broker.addr());
    let messages = away.drain();
    assert!(messages.iter().all(|message| message.topic == topic), "{messages:?}");
    let texts: Vec<&str> =
        messages.iter().filter(|it| it.qos > 0).map(|message| message.text()).collect();
    assert_eq!(texts, ["first", "x", "x", "twice"]);
    broker.stop();
}

/// Section 3.3.2.3.4: the last topic that came with an alias is the one that it stands for.
#[test]
fn alias_can_be_given_to_another_topic_and_a_topic_can_have_many() {
    let broker = Broker::start();
    let mut sender = Client::connect(&broker, V5);
    let max = alias_max(&sender);
    if max < 2 {
        return;
    }
    let stem = unique("moved");
    let mut reader = Client::connect(&broker, V5);
    reader.subscribe(&format!("{stem}/#"), 1);
    let (one, two) = (format!("{stem}/1"), format!("{stem}/2"));
    for (name, alias, expected) in [
        (&one[..], 1, &one),
        (&one, 2, &one),
        ("", 1, &one),
        ("", 2, &one),
        (&two, 1, &two),
        ("", 1, &two),
        ("", 2, &one),
        (&one, 1, &one),
        ("", 1, &one),
    ] {
        sender.deliver_publication(&with_alias(name, "x", alias));
        let message = reader.message();
        assert_eq!(&message.topic, expected);
        reader.ack(PUBACK, message.id);
    }
    // A topic without its alias changes nothing.
    sender.deliver(&two, "x");
    assert_eq!(reader.message().topic, two);
    sender.deliver_publication(&with_alias("", "x", 1));
    assert_eq!(reader.message().topic, one);
    broker.stop();
}

/// Section 3.3.4: 0x94. [MQTT-3.3.2-8] [MQTT-3.3.2-9]
#[test]
fn alias_of_zero_or_over_the_maximum_ends_the_connection() {
    let broker = Broker::start();
    let topic = unique("over");
    let mut watcher = Client::connect(&broker, V5);
    let max = alias_max(&watcher);
    watcher.subscribe(&topic, 0);
    for alias in [Some(0), max.checked_add(1), Some(u16::MAX)].into_iter().flatten() {
        if (1..=max).contains(&alias) {
            continue;
        }
        for name in [&topic, ""] {
            for qos in 0..=2 {
                let mut client = Client::connect(&broker, V5);
                client.send_publication(&with_alias(name, "x", alias).qos(qos, 1));
                client.assert_refused(&[0x94]);
            }
        }
    }
    Client::connect(&broker, V5).deliver(&topic, "the only one");
    assert_eq!(watcher.message().text(), "the only one");
    watcher.assert_silent();
    broker.stop();
}

/// Section 3.2.2.3.8: none are allowed unless the broker says so. [MQTT-3.3.2-9]
#[test]
fn broker_without_aliases_takes_none() {
    let broker = Broker::start_configured("topic_alias_max = 0");
    let topic = unique("none");
    let mut client = Client::connect(&broker, V5);
    assert_eq!(alias_max(&client), 0);
    client.send_publication(&with_alias(&topic, "x", 1));
    client.assert_refused(&[0x94]);
    broker.stop();
}

/// Section 3.3.4: 0x82.
#[test]
fn alias_that_stands_for_nothing_yet_ends_the_connection() {
    let broker = Broker::start();
    let topic = unique("unknown");
    let mut other = Client::connect(&broker, V5);
    let max = alias_max(&other);
    if max == 0 {
        return;
    }
    // Those of another connection are its own.
    other.deliver_publication(&with_alias(&topic, "x", 1));
    other.deliver_publication(&with_alias(&topic, "x", max));
    for alias in [1, max] {
        for qos in 0..=2 {
            let mut client = Client::connect(&broker, V5);
            client.send_publication(&with_alias("", "x", alias).qos(qos, 1));
            client.assert_refused(&[0x82]);
        }
    }
    other.deliver_publication(&with_alias("", "x", 1));
    broker.stop();
}

/// [MQTT-3.3.2-7]
#[test]
fn alias_of_an_earlier_connection_of_the_session_stands_for_nothing() {
    let broker = Broker::start();
    let (topic, id) = (unique("earlier"), unique("earlier"));
    let mut watcher = Client::connect(&broker, V5);
    watcher.subscribe(&topic, 0);
    let hello = Hello::persistent(V5, &id);
    for is_orderly in [true, false] {
        let (mut client, _) = hello.open(broker.addr());
        if alias_max(&client) == 0 {
            return;
        }
        client.deliver_publication(&with_alias(&topic, "named", 1));
        assert_eq!(watcher.message().text(), "named");
        match is_orderly {
            true => client.disconnect(),
            false => drop(client),
        }
        let (mut client, was_present) = hello.open(broker.addr());
        assert!(was_present);
        client.send_publication(&with_alias("", "x", 1).qos(1, 1));
        client.assert_refused(&[0x82]);
    }
    watcher.assert_silent();
    broker.stop();
}

/// [MQTT-3.3.2-8] [MQTT-3.3.2-11]
#[test]
fn broker_keeps_to_the_aliases_that_the_client_allows() {
    const TOPICS: u16 = 12;
    let broker = Broker::start();
    for max in [None, Some(0), Some(1), Some(2), Some(10), Some(u16::MAX)] {
        let stem = unique("keeps");
        let mut hello = Hello::new(V5, &stem);
        if let Some(max) = max {
            hello = hello.with(Property::TopicAliasMaximum(max));
        }
        let (mut reader, _) = hello.open(broker.addr());
        reader.subscribe(&format!("{stem}/#"), 2);
        let mut aliases = Aliases::allowed(max.unwrap_or(0));
        let mut sender = Client::connect(&broker, V5);
        let mut old_sender = Client::connect(&broker, V311);
        for round in 0..3 {
            for number in 0..TOPICS {
                let (topic, qos) = (format!("{stem}/{number}"), (number % 3) as u8);
                let sender = if round == 1 { &mut old_sender } else { &mut sender };
                sender.deliver_at(&topic, &topic, qos);
                let message = reader.message();
                assert_eq!(aliases.topic_of(&message), topic);
                assert_eq!((message.text(), message.qos), (&topic[..], qos));
                reader.take(&message);
            }
        }
    }
    broker.stop();
}

/// Those of a new subscription too. [MQTT-3.3.2-11] [MQTT-3.3.2-3]
#[test]
fn aliases_stand_for_the_topics_of_retained_messages_and_of_many_subscriptions() {
    let broker = Broker::start();
    let stem = unique("kept");
    let mut sender = Client::connect(&broker, V5);
    let topics: Vec<String> = (0..8).map(|number| format!("{stem}/{number}")).collect();
    for topic in &topics {
        sender.deliver_retained(topic, topic);
    }
    let hello = Hello::new(V5, &stem).with(Property::TopicAliasMaximum(3));
    let (mut reader, _) = hello.open(broker.addr());
    let mut aliases = Aliases::allowed(3);
    for round in 0..3 {
        let filter = if round == 0 { format!("{stem}/+") } else { format!("{stem}/#") };
        reader.subscribe(&filter, 0);
        let mut found: Vec<String> = topics
            .iter()
            .map(|_| {
                let message = reader.message();
                let topic = aliases.topic_of(&message);
                assert_eq!(message.text(), topic);
                topic
            })
            .collect();
        found.sort();
        assert_eq!(found, topics);
    }
    broker.stop();
}

/// What is sent again, and what waited, has a topic that this connection can know. [MQTT-3.3.2-7]
#[test]
fn broker_begins_each_connection_without_aliases() {
    let broker = Broker::start();
    let (stem, id) = (unique("begins"), unique("begins"));
    let topics = [format!("{stem}/0"), format!("{stem}/1")];
    let mut sender = Client::connect(&broker, V5);
    // The last connection allows none at all.
    let mut open: Vec<(u16, String)> = Vec::new();
    for (round, max) in [5, 5, 1, 0].into_iter().enumerate() {
        let hello = Hello::persistent(V5, &id).with(Property::TopicAliasMaximum(max));
        let (mut reader, was_present) = hello.open(broker.addr());
        assert_eq!(was_present, round > 0);
        if round == 0 {
            reader.subscribe(&format!("{stem}/#"), 1);
        }
        let mut aliases = Aliases::allowed(max);
        for (id, topic) in &open {
            let message = reader.message();
            assert_eq!((message.id, &aliases.topic_of(&message)), (*id, topic));
        }
        // Each topic twice: from the second time on it may be left out. None is acknowledged.
        for topic in topics.iter().chain(&topics) {
            sender.deliver(topic, topic);
            let message = reader.message();
            assert_eq!(&aliases.topic_of(&message), topic);
            open.push((message.id, topic.clone()));
        }
    }
    broker.stop();
}

/// What a receiver makes of aliases (section 3.3.4).
struct Aliases {
    max: u16,
    topics: HashMap<u16, String>,
}

impl Aliases {
    fn allowed(max: u16) -> Self {
        Self { max, topics: HashMap::new() }
    }

    #[track_caller]
    fn topic_of(&mut self, message: &Message) -> String {
        let Some(alias) = message.properties().topic_alias() else {
            assert!(!message.topic.is_empty(), "neither topic nor alias");
            return message.topic.clone();
        };
        assert!((1..=self.max).contains(&alias), "alias {alias} of {}", self.max);
        if !message.topic.is_empty() {
            self.topics.insert(alias, message.topic.clone());
        }
        self.topics.get(&alias).cloned().expect("an alias that stands for a topic")
    }
}

/// Which aliases a client may use, by its CONNACK.
fn alias_max(client: &Client) -> u16 {
    client.properties().topic_alias_maximum().unwrap_or(0)
}

/// QoS 1.
fn with_alias<'a>(topic: &'a str, payload: &'a str, alias: u16) -> Publication<'a> {
    Publication::new(topic, payload).qos(1, 7).with(Property::TopicAlias(alias))
}

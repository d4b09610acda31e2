//! Message Expiry Interval (3.3.2.3.3): what is too old is not sent, and what is sent says how long it
//! has left.
//!
//! The interval counts in seconds, and a broker may round: [`OLD_ENOUGH`] is over one second whichever
//! way, and [`Left`] takes each whole number that can be meant.

use std::time::{Duration, Instant};

use mailboxqtt::codec::{Property, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::Qos;

use crate::broker::Broker;
use crate::conformance::publish::retained::retained_of;
use crate::process::{PATIENCE, unique};
use crate::wire::{Client, Hello, Message, PUBACK, PUBREC, Publication, VERSIONS};

/// What a message with an interval of one second does not survive.
const OLD_ENOUGH: Duration = Duration::from_millis(2_100);

/// [MQTT-3.3.2-5]
#[test]
fn message_that_expires_while_its_client_is_away_is_not_sent() {
    let broker = Broker::start();
    let topic = unique("away");
    let ids = VERSIONS.map(|version| (version, unique("away")));
    for (version, id) in &ids {
        let (mut client, _) = Hello::persistent(*version, id).open(broker.addr());
        client.subscribe(&topic, 2);
        client.disconnect();
    }
    let mut sender = Client::connect(&broker, V5);
    for qos in [1, 2] {
        for (expiry_s, payload) in [(Some(1), "short"), (Some(3600), "long"), (None, "for ever")] {
            let mut packet = Publication::new(&topic, payload).qos(qos, 9);
            if let Some(seconds) = expiry_s {
                packet = packet.with(Property::MessageExpiryInterval(seconds));
            }
            sender.deliver_publication(&packet);
        }
    }
    sender.assert_silent_for(OLD_ENOUGH);
    for (version, id) in &ids {
        let (mut client, was_present) = Hello::persistent(*version, id).open(broker.addr());
        assert!(was_present);
        let messages = client.drain();
        let found: Vec<_> = messages.iter().map(|it| (it.text(), it.qos)).collect();
        assert_eq!(found, [("long", 1), ("for ever", 1), ("long", 2), ("for ever", 2)]);
    }
    broker.stop();
}

/// [MQTT-3.3.2-5]: the client is there, and takes nothing.
#[test]
fn message_that_expires_behind_a_full_window_is_not_sent() {
    let broker = Broker::start();
    let (topic, id) = (unique("behind"), unique("behind"));
    let hello = Hello::new(V5, &id).with(Property::ReceiveMaximum(1));
    let (mut client, _) = hello.open(broker.addr());
    client.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    for (payload, expiry_s, qos) in
        [("first", 3600, 1), ("gone", 1, 1), ("gone", 1, 2), ("gone", 1, 1), ("last", 3600, 2)]
    {
        let packet = Publication::new(&topic, payload).qos(qos, 9);
        sender.deliver_publication(&packet.with(Property::MessageExpiryInterval(expiry_s)));
    }
    let first = client.message();
    assert_eq!(first.text(), "first");
    sender.assert_silent_for(OLD_ENOUGH);
    client.ack(PUBACK, first.id);
    let last = client.message();
    assert_eq!(last.text(), "last");
    // What was left out holds no place in the window.
    client.ack_with(PUBREC, last.id, 0x80, &[]);
    sender.deliver(&topic, "more");
    assert_eq!(client.message().text(), "more");
    client.assert_silent();
    broker.stop();
}

/// [MQTT-3.3.2-5]
#[test]
fn retained_message_that_expires_is_not_sent_to_new_subscriptions() {
    let broker = Broker::start();
    let stem = unique("retained");
    let topics = [0, 1, 2].map(|qos| format!("{stem}/{qos}"));
    let mut sender = Client::connect(&broker, V5);
    for (topic, qos) in topics.iter().zip(0..) {
        let packet = Publication::new(topic, "short").qos(qos, 9).retain();
        sender.deliver_publication(&packet.with(Property::MessageExpiryInterval(1)));
    }
    let lasting = format!("{stem}/lasting");
    for seconds in [3600, u32::MAX] {
        let packet = Publication::new(&lasting, "long").qos(1, 9).retain();
        sender.deliver_publication(&packet.with(Property::MessageExpiryInterval(seconds)));
        let filter = format!("{stem}/#");
        for version in VERSIONS {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let mut client = Client::connect(&broker, version);
                let options = SubscribeOptions::new(Qos::AtMostOnce);
                let messages = retained_of(&mut client, &broker, &filter, options);
                assert!(messages.iter().any(|message| message.text() == "long"));
                if messages.len() == 1 {
                    break;
                }
                assert!(Instant::now() < deadline, "{messages:?}");
                sender.assert_silent_for(Duration::from_millis(50));
            }
        }
    }
    // A new one in the place of the old one lives its own time.
    for topic in &topics {
        sender.deliver_retained(topic, "new");
        let mut client = Client::connect(&broker, V5);
        client.subscribe(topic, 0);
        assert_eq!(client.message().text(), "new");
    }
    broker.stop();
}

/// A message that replaces one that was to expire is not to, and the other way round. [MQTT-3.3.2-5]
/// [MQTT-3.3.1-5]
#[test]
fn retained_message_expires_by_its_own_interval_and_not_by_that_of_the_one_before() {
    let broker = Broker::start();
    let stem = unique("own");
    let (stays, goes) = (format!("{stem}/stays"), format!("{stem}/goes"));
    let mut sender = Client::connect(&broker, V5);
    let short = |topic| {
        let packet = Publication::new(topic, "short").qos(1, 9).retain();
        packet.with(Property::MessageExpiryInterval(1))
    };
    sender.deliver_publication(&short(&stays));
    sender.deliver_retained(&stays, "long");
    sender.deliver_retained(&goes, "long");
    sender.deliver_publication(&short(&goes));
    sender.assert_silent_for(OLD_ENOUGH);
    let mut client = Client::connect(&broker, V5);
    let options = SubscribeOptions::new(Qos::AtMostOnce);
    let messages = retained_of(&mut client, &broker, &format!("{stem}/#"), options);
    let found: Vec<&str> = messages.iter().map(|message| &message.topic[..]).collect();
    assert_eq!(found, [stays]);
    broker.stop();
}

/// [MQTT-3.3.2-6]: it has not waited, and has as long as it was given.
#[test]
fn expiry_of_a_message_that_is_sent_at_once_is_what_was_published() {
    let broker = Broker::start();
    let topic = unique("atonce");
    let mut old = Client::connect(&broker, V311);
    let mut client = Client::connect(&broker, V5);
    old.subscribe(&topic, 2);
    client.subscribe(&topic, 2);
    let mut sender = Client::connect(&broker, V5);
    for qos in 0..=2 {
        for seconds in [100, 3600, u32::MAX] {
            let left = Left::published_now(seconds);
            let packet = Publication::new(&topic, "x").qos(qos, 9);
            sender.deliver_publication(&packet.with(Property::MessageExpiryInterval(seconds)));
            left.assert_of(&client.message(), Duration::ZERO);
            assert!(old.message().properties.is_empty());
        }
        sender.deliver_publication(&Publication::new(&topic, "x").qos(qos, 9));
        assert_eq!(client.message().properties().message_expiry_interval_s(), None);
    }
    broker.stop();
}

/// [MQTT-3.3.2-6]: while its client is away, behind a full window, and retained.
#[test]
fn expiry_of_a_message_that_waited_is_less_by_that_time() {
    let broker = Broker::start();
    let (topic, id) = (unique("waited"), unique("waited"));
    let away = Hello::persistent(V5, &id);
    let (mut client, _) = away.open(broker.addr());
    client.subscribe(&topic, 2);
    client.disconnect();
    let full = Hello::new(V5, &topic).with(Property::ReceiveMaximum(1));
    let (mut full, _) = full.open(broker.addr());
    full.subscribe(&topic, 2);

    let mut sender = Client::connect(&broker, V5);
    sender.deliver(&topic, "first");
    let left = Left::published_now(100);
    // Neither the first nor the last of the properties, which stay as they are.
    let around = [
        Property::UserProperty { name: "a", value: "1" },
        Property::ContentType("text"),
        Property::MessageExpiryInterval(100),
        Property::CorrelationData(b"\x02\0\0\0\x64"),
        Property::UserProperty { name: "b", value: "2" },
    ];
    for (qos, retain) in [(1, false), (2, true)] {
        let packet = around.iter().fold(Publication::new(&topic, "x"), |it, one| it.with(*one));
        sender.deliver_publication(&Publication { retain, ..packet.qos(qos, 9) });
    }
    let waited = Instant::now();
    sender.assert_silent_for(OLD_ENOUGH);
    let waited = waited.elapsed();

    let (mut client, _) = away.open(broker.addr());
    assert_eq!(client.message().text(), "first");
    let mut late = Client::connect(&broker, V5);
    late.subscribe(&topic, 0);
    let first = full.message();
    assert_eq!(first.text(), "first");
    full.ack(PUBACK, first.id);
    let second = full.message();
    full.ack(PUBACK, second.id);
    for message in
        [client.message(), client.message(), second.clone(), full.message(), late.message()]
    {
        left.assert_of(&message, waited);
        let properties = message.properties();
        assert_eq!(properties.user_properties().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
        assert_eq!(properties.content_type(), Some("text"));
        assert_eq!(properties.correlation_data(), Some(&b"\x02\0\0\0\x64"[..]));
        assert_eq!(properties.iter().count(), around.len());
    }
    broker.stop();
}

/// A message that has an alias, and one of a shared subscription. [MQTT-3.3.2-6]
#[test]
fn expiry_counts_whichever_way_a_message_takes() {
    let broker = Broker::start();
    let (topic, id) = (unique("ways"), unique("ways"));
    let hello = Hello::persistent(V5, &id).with(Property::TopicAliasMaximum(5));
    let (mut client, _) = hello.open(broker.addr());
    client.subscribe(&format!("$share/{topic}/{topic}"), 1);
    client.disconnect();
    let mut sender = Client::connect(&broker, V5);
    let has_aliases = sender.properties().topic_alias_maximum().is_some_and(|max| max > 0);
    let left = Left::published_now(50);
    for name in [&topic, ""] {
        if !has_aliases && name.is_empty() {
            continue;
        }
        let mut packet = Publication::new(name, "x").qos(1, 9);
        packet = packet.with(Property::MessageExpiryInterval(50));
        if has_aliases {
            packet = packet.with(Property::TopicAlias(1));
        }
        sender.deliver_publication(&packet);
        let packet = Publication::new(&topic, "short").qos(1, 10);
        sender.deliver_publication(&packet.with(Property::MessageExpiryInterval(1)));
    }
    let waited = Instant::now();
    sender.assert_silent_for(OLD_ENOUGH);
    let waited = waited.elapsed();
    let (mut client, _) = hello.open(broker.addr());
    let messages = client.drain();
    assert_eq!(messages.len(), 1 + usize::from(has_aliases));
    for message in messages {
        assert_eq!(message.text(), "x");
        left.assert_of(&message, waited);
    }
    broker.stop();
}

/// How long a message may say that it has left.
struct Left {
    interval_s: u32,
    /// Before it was published.
    published: Instant,
}

impl Left {
    fn published_now(interval_s: u32) -> Self {
        Self { interval_s, published: Instant::now() }
    }

    /// `message` has just come, and has waited in the broker for at least `waited`.
    #[track_caller]
    fn assert_of(&self, message: &Message, waited: Duration) {
        let most = self.interval_s - waited.as_secs() as u32;
        let least = self.interval_s - self.published.elapsed().as_secs() as u32 - 1;
        let left = message.properties().message_expiry_interval_s();
        let left = left.expect("a message with its Message Expiry Interval");
        assert!((least..=most).contains(&left), "{left} is not in {least}..={most}");
    }
}

//! The flows of the standard against the running broker, byte by byte where bytes matter.
//!
//! Where both versions have to do the same, a test loops over them. Where something must *not*
//! arrive, the publisher awaits its PUBACK, after which the broker has put the message into every
//! mailbox, and then the subscriber pings: see `Client::assert_silent`.

use mailboxqtt::codec::SubscribeOptions;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::Qos;

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, PUBACK, PUBCOMP, PUBREC, PUBREL, VERSIONS};

/// [MQTT-3.8.4-6 of 3.1.1], [MQTT-3.8.4-8]
#[test]
fn message_arrives_with_the_lower_qos_of_publisher_and_subscriber() {
    let broker = Broker::start();
    for from in VERSIONS {
        for to in VERSIONS {
            let topic = unique("lower");
            let mut sender = Client::connect(&broker, from);
            for granted in 0..=2 {
                let mut receiver = Client::connect(&broker, to);
                receiver.subscribe(&topic, granted);
                for sent in 0..=2 {
                    sender.publish(&topic, [sent], sent, u16::from(sent) + 1);
                    let message = receiver.message();
                    assert_eq!(
                        (message.qos, &message.payload[..]),
                        (sent.min(granted), &[sent][..])
                    );
                    match sent {
                        0 => (),
                        1 => assert_eq!(sender.next(), Got::Ack(PUBACK, 2, 0)),
                        _ => {
                            assert_eq!(sender.next(), Got::Ack(PUBREC, 3, 0));
                            sender.ack(PUBREL, 3);
                            assert_eq!(sender.next(), Got::Ack(PUBCOMP, 3, 0));
                        }
                    }
                }
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-1] [MQTT-3.8.4-3] [MQTT-3.8.4-4] [MQTT-3.10.4-2]
#[test]
fn retained_message_follows_each_suback_and_unsubscribe_ends_the_messages() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("follow");
        let mut client = Client::connect(&broker, version);
        let mut sender = Client::connect(&broker, version);
        sender.deliver_retained(&topic, "kept");
        for _ in 0..3 {
            // `subscribe` fails when anything comes before the SUBACK.
            client.subscribe(&topic, 0);
            assert_eq!(client.message().text(), "kept");
        }
        sender.deliver(&topic, "live");
        assert_eq!(client.message().text(), "live");
        let (known, unknown): (&[u8], &[u8]) =
            if version == V5 { (&[0], &[0x11]) } else { (&[], &[]) };
        assert_eq!(client.unsubscribe(&topic), known);
        sender.deliver(&topic, "late");
        client.assert_silent();
        assert_eq!(client.unsubscribe(&topic), unknown);
    }
    broker.stop();
}

/// [MQTT-3.8.3-3]
#[test]
fn own_messages_do_not_come_back_with_no_local() {
    let broker = Broker::start();
    let topic = unique("local");
    let mut client = Client::connect(&broker, V5);
    let no_local = SubscribeOptions { no_local: true, ..SubscribeOptions::new(Qos::AtLeastOnce) };
    assert_eq!(client.subscribe_with(&[(&topic, no_local)]), [1]);
    client.deliver(&topic, "mine");
    client.assert_silent();
    Client::connect(&broker, V5).deliver(&topic, "theirs");
    assert_eq!(client.message().text(), "theirs");
    broker.stop();
}

/// [MQTT-3.8.4-5] [MQTT-3.8.4-6] [MQTT-3.9.3-1] [MQTT-4.7.1-1] [MQTT-4.7.1-2]
/// [MQTT-4.7.1-2 of 3.1.1] [MQTT-4.7.1-3 of 3.1.1]
#[test]
fn suback_has_a_code_for_each_filter_in_order_and_the_good_ones_count() {
    let broker = Broker::start();
    for (version, invalid) in [(V311, 0x80), (V5, 0x8F)] {
        let stem = unique("codes");
        let mut client = Client::connect(&broker, version);
        let (good, last) = (format!("{stem}/a"), format!("{stem}/b/#"));
        let filters = [
            (&good[..], 2),
            ("a/#/b", 1),
            ("a+", 0),
            ("+a/b", 0),
            ("a#", 0),
            ("", 0),
            ("$share/group/", 0),
            ("$share/group/a", 0),
            (&last, 1),
        ];
        let codes = client.subscribe_all(&filters);
        assert_eq!(codes, [2, invalid, invalid, invalid, invalid, invalid, invalid, 0, 1]);
        let mut sender = Client::connect(&broker, version);
        sender.deliver(&good, "a");
        sender.deliver(&format!("{stem}/b"), "b");
        assert_eq!((client.message().text(), client.message().text()), ("a", "b"));
    }
    broker.stop();
}

/// [MQTT-3.8.4-1], and that SUBACK means it: design of the router.
#[test]
fn subscription_is_in_force_on_every_shard_when_its_suback_has_come() {
    let broker = Broker::start_with(&["--shards", "5"]);
    let mut sender = Client::connect(&broker, V311);
    for version in VERSIONS {
        let mut client = Client::connect(&broker, version);
        for number in 0..200 {
            let topic = unique("at");
            let filter = if number % 2 == 0 { topic.clone() } else { format!("{topic}/#") };
            // Now a route of the topic without subscribers is in the cache.
            sender.deliver(&topic, "before");
            client.subscribe(&filter, 0);
            sender.publish(&topic, "after", 0, 0);
            let message = client.message();
            assert_eq!((message.topic, message.payload), (topic, b"after".to_vec()));
        }
    }
    broker.stop();
}

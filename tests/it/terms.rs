//! What a CONNECT settles, and what happens when the time of a session or a will comes.
//!
//! Time is measured from below only: nothing may come before its time. That it comes at all is waited for
//! with a deadline; that it does not come is seen by something later that has come.

use std::time::{Duration, Instant};

use mailboxqtt::codec::{Connect, Packet, Properties, PropertiesBuf, Property, Will};
use mailboxqtt::ids::ProtocolVersion::{V5, V31, V311};
use mailboxqtt::ids::Qos;
use rustix::process::Signal;

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Got, Hello, wait_for_counter};

/// A v5 client that leaves a will behind.
struct Mortal<'a> {
    id: &'a str,
    /// Topic of the will, and its payload.
    topic: &'a str,
    clean_start: bool,
    expiry_s: u32,
    delay_s: u32,
}

impl<'a> Mortal<'a> {
    /// With a session that stays for an hour, and a will that waits for `delay_s`.
    fn new(id: &'a str, topic: &'a str, delay_s: u32) -> Self {
        Self { id, topic, clean_start: false, expiry_s: 3600, delay_s }
    }

    fn connect(&self, broker: &Broker) -> Client {
        let mut of_will = PropertiesBuf::new();
        of_will.push(Property::WillDelayInterval(self.delay_s));
        self.connect_with(broker, &of_will)
    }

    fn connect_with(&self, broker: &Broker, of_will: &PropertiesBuf) -> Client {
        let mut own = PropertiesBuf::new();
        own.push(Property::SessionExpiryInterval(self.expiry_s));
        let connect = Connect {
            version: V5,
            clean_start: self.clean_start,
            keep_alive_s: 0,
            client_id: self.id,
            properties: own.as_properties(),
            will: Some(Will {
                topic: self.topic,
                payload: self.id.as_bytes(),
                qos: Qos::AtMostOnce,
                retain: false,
                properties: of_will.as_properties(),
            }),
            user_name: None,
            password: None,
        };
        let mut client = Client::raw(broker.addr(), V5);
        client.send_packet(&Packet::Connect(connect));
        let answer = client.next();
        assert!(matches!(answer, Got::ConnAck(_, 0, _)), "{answer:?}");
        client
    }

    /// Connects and breaks the connection off.
    fn die(&self, broker: &Broker) {
        drop(self.connect(broker));
    }

    /// Connects and asks for the will with DISCONNECT; the session is parked when this returns.
    fn leave(&self, broker: &Broker) {
        let mut client = self.connect(broker);
        client.send(&[0xE0, 1, 4]);
        client.assert_closed();
    }
}

/// A client that hears the wills of `topic`.
fn witness(broker: &Broker, topic: &str) -> Client {
    let mut client = Client::connect(broker, V5);
    client.subscribe(topic, 0);
    client
}

/// The next will, as the identifier of the client that died.
#[track_caller]
fn next_will(witness: &mut Client) -> String {
    witness.message().text().to_owned()
}

/// [MQTT-3.1.2-8]
#[test]
fn will_with_a_delay_waits_for_it_and_not_for_longer_than_its_session() {
    let broker = Broker::start();
    for (delay_s, expiry_s) in [(1, 3600), (3600, 1), (1, u32::MAX)] {
        let (id, topic) = (unique("late"), unique("wills"));
        let mut witness = witness(&broker, &topic);
        let mortal = Mortal { expiry_s, ..Mortal::new(&id, &topic, delay_s) };
        let client = mortal.connect(&broker);
        let died = Instant::now();
        drop(client);
        assert_eq!(next_will(&mut witness), id);
        assert!(died.elapsed() >= Duration::from_secs(1), "after {:?}", died.elapsed());
    }
    broker.stop();
}

/// [MQTT-3.1.2-8]
#[test]
fn will_of_a_session_that_ends_with_its_connection_does_not_wait() {
    let broker = Broker::start();
    let (id, topic) = (unique("short"), unique("wills"));
    let mut witness = witness(&broker, &topic);
    Mortal { expiry_s: 0, ..Mortal::new(&id, &topic, 3600) }.die(&broker);
    assert_eq!(next_will(&mut witness), id);
    broker.stop();
}

/// [MQTT-3.1.3-9]
#[test]
fn client_that_is_back_in_time_takes_its_will_back() {
    let broker = Broker::start();
    let topic = unique("wills");
    let mut witness = witness(&broker, &topic);
    for is_noticed in [true, false] {
        let (back, gone) = (unique("back"), unique("gone"));
        let mortal = Mortal::new(&back, &topic, 1);
        if is_noticed {
            mortal.leave(&broker)
        } else {
            mortal.die(&broker)
        }
        let (_back, was_present) = Hello::persistent(V5, &back).open(broker.addr());
        assert!(was_present);
        // This one dies later and waits as long: the other's would have come before it.
        Mortal::new(&gone, &topic, 1).die(&broker);
        assert_eq!(next_will(&mut witness), gone);
        witness.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.1.2-8] [MQTT-3.1.2-4]: a clean start ends the session that the will waits with.
#[test]
fn clean_start_publishes_the_will_that_waits() {
    let broker = Broker::start();
    let (id, topic) = (unique("clean"), unique("wills"));
    let mut witness = witness(&broker, &topic);
    Mortal::new(&id, &topic, 3600).leave(&broker);
    let (_client, was_present) = Hello::new(V5, &id).open(broker.addr());
    assert!(!was_present);
    assert_eq!(next_will(&mut witness), id);
    broker.stop();
}

/// [MQTT-3.1.4-3] [MQTT-3.1.2-8] [MQTT-3.1.3-9]
#[test]
fn takeover_publishes_the_old_will_unless_it_waits_and_the_session_goes_on() {
    let broker = Broker::start();
    for (delay_s, expiry_s, clean_start, is_published) in [
        (0, 3600, false, true),
        (0, 3600, true, true),
        (3600, 0, false, true),
        (3600, 3600, true, true),
        (1, 3600, false, false),
    ] {
        let (id, gone, topic) = (unique("over"), unique("gone"), unique("wills"));
        let mut witness = witness(&broker, &topic);
        let mortal = Mortal { expiry_s, ..Mortal::new(&id, &topic, delay_s) };
        let mut old = mortal.connect(&broker);
        let hello = Hello { clean_start, ..Hello::persistent(V5, &id) };
        let (_new, _) = hello.open(broker.addr());
        old.assert_closed_with(0x8E);
        if is_published {
            assert_eq!(next_will(&mut witness), id);
        } else {
            Mortal::new(&gone, &topic, 1).die(&broker);
            assert_eq!(next_will(&mut witness), gone);
        }
        witness.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.14.4-3] [MQTT-3.1.2-10]
#[test]
fn disconnect_discards_the_will_and_disconnect_with_will_does_not() {
    let broker = Broker::start();
    let (quiet, loud, topic) = (unique("quiet"), unique("loud"), unique("wills"));
    let mut witness = witness(&broker, &topic);
    Mortal::new(&quiet, &topic, 0).connect(&broker).disconnect();
    Mortal::new(&quiet, &topic, 1).connect(&broker).disconnect();
    let mut client = Mortal::new(&loud, &topic, 1).connect(&broker);
    let died = Instant::now();
    client.send(&[0xE0, 1, 4]);
    client.assert_closed();
    assert_eq!(next_will(&mut witness), loud);
    assert!(died.elapsed() >= Duration::from_secs(1), "after {:?}", died.elapsed());
    broker.stop();
}

/// [MQTT-3.1.3-10] [MQTT-3.3.2-18]
#[test]
fn will_arrives_with_its_properties_in_order_and_without_its_delay() {
    let broker = Broker::start();
    let (id, topic) = (unique("rich"), unique("wills"));
    let mut witness = witness(&broker, &topic);
    let kept = [
        Property::UserProperty { name: "z", value: "1" },
        Property::ContentType("text/plain"),
        Property::UserProperty { name: "a", value: "2" },
        Property::ResponseTopic("answers"),
        Property::UserProperty { name: "z", value: "1" },
    ];
    let mut of_will = PropertiesBuf::new();
    of_will.push(Property::WillDelayInterval(1));
    for property in kept {
        of_will.push(property);
    }
    drop(Mortal::new(&id, &topic, 1).connect_with(&broker, &of_will));
    let message = witness.message();
    let properties = Properties::from_validated(&message.properties);
    assert_eq!(properties.iter().collect::<Vec<_>>(), kept);
    broker.stop();
}

/// Where sessions end with the process, the wait of their wills does, too [MQTT-3.1.2-8].
#[test]
fn wills_that_wait_are_published_before_the_clients_are_told_of_the_shutdown() {
    let broker = Broker::start_with(&["--durability", "none"]);
    let topic = unique("wills");
    let mut witness = witness(&broker, &topic);
    let ids = ["one", "two", "three"].map(unique);
    for id in &ids {
        Mortal::new(id, &topic, 3600).leave(&broker);
    }
    broker.signal(Signal::TERM);
    let mut heard = ids.each_ref().map(|_| next_will(&mut witness));
    heard.sort();
    let mut expected = ids;
    expected.sort();
    assert_eq!(heard, expected);
    witness.assert_closed_with(0x8B);
    broker.end();
}

/// [MQTT-3.2.2-9]
#[test]
fn connack_says_what_is_missing_and_using_it_is_refused_with_its_code() {
    let broker = Broker::start_configured(
        "qos_max = 1\nretain_available = false\nwildcard_subscriptions = false\n\
         shared_subscriptions = false\nsubscription_identifiers = false\ntopic_alias_max = 0",
    );
    let id = unique("limited");
    let (mut client, answer) = Hello::new(V5, &id).try_open(broker.addr());
    let Got::ConnAck(false, 0, properties) = answer else { panic!("{answer:?}") };
    let properties = Properties::from_validated(&properties);
    assert_eq!(properties.maximum_qos(), Some(Qos::AtLeastOnce));
    assert_eq!(properties.retain_available(), Some(false));
    assert_eq!(properties.wildcard_subscription_available(), Some(false));
    assert_eq!(properties.shared_subscription_available(), Some(false));
    assert_eq!(properties.subscription_identifier_available(), Some(false));
    assert_eq!(properties.topic_alias_maximum(), None);

    // [MQTT-3.2.2-10]: asking for more than there is gets what there is.
    let topic = unique("limited");
    assert_eq!(client.subscribe_all(&[(&topic, 2)]), [1]);
    Client::connect(&broker, V5).deliver(&topic, "still here");
    assert_eq!(client.message().text(), "still here");
    for (version, refused) in [(V311, 0x80), (V31, 0x80)] {
        let asked = [(&topic[..], 2), ("a/+", 0), ("$share/g/a", 0), ("#", 0)];
        let mut old = Client::connect(&broker, version);
        assert_eq!(old.subscribe_all(&asked), [1, refused, refused, refused]);
    }

    for (packet, code) in [
        (&b"\x34\x06\0\x01t\0\x01\0"[..], 0x9B),
        (b"\x31\x04\0\x01t\0", 0x9A),
        (b"\x82\x09\0\x01\x02\x0B\x01\0\x01t\0", 0xA1),
        (b"\x82\x07\0\x01\0\0\x01+\0", 0xA2),
        (b"\x82\x10\0\x01\0\0\x0A$share/g/t\0", 0x9E),
    ] {
        let mut client = Client::connect(&broker, V5);
        client.send(packet);
        client.assert_closed_with(code);
    }
    for packet in [&b"\x34\x05\0\x01t\0\x01"[..], b"\x31\x03\0\x01t"] {
        let mut client = Client::connect(&broker, V311);
        client.send(packet);
        client.assert_closed();
    }
    broker.stop();
}

/// [MQTT-3.2.2-12] [MQTT-3.2.2-13] [MQTT-3.2.2-7]
#[test]
fn will_that_the_broker_could_not_publish_is_refused_in_a_sentence() {
    let broker = Broker::start_configured("qos_max = 0\nretain_available = false");
    for (qos, retain, code) in [(1, false, 0x9B), (2, true, 0x9B), (0, true, 0x9A)] {
        for version in [V5, V311] {
            let id = unique("dying");
            let hello = Hello::new(version, &id).will("will", "gone", qos, retain);
            let (mut client, answer) = hello.try_open(broker.addr());
            if version == V5 {
                let Got::ConnAck(false, got, properties) = answer else { panic!("{answer:?}") };
                assert_eq!(got, code);
                let properties = Properties::from_validated(&properties);
                let sentence = properties.reason_string().unwrap();
                assert!(sentence.contains("will") && sentence.contains(": "), "{sentence}");
            } else {
                assert_eq!(answer, Got::ConnAck(false, 3, Vec::new()));
            }
            client.assert_closed();
        }
    }
    broker.stop();
}

/// [MQTT-3.2.2-19], also for a CONNECT that is malformed behind its properties
#[test]
fn refusal_says_why_where_the_client_has_room_for_it() {
    let broker = Broker::start();
    let cut_will = |room: Option<u8>| {
        let list = room.map_or(vec![0], |room| vec![5, 0x27, 0, 0, 0, room]);
        // A will without topic and payload.
        let body = [b"\0\x04MQTT\x05\x06\0\0", &list[..], b"\0\x01c\0"].concat();
        [&[0x10, body.len() as u8], &body[..]].concat()
    };
    for (room, has_sentence) in [(None, true), (Some(5), false), (Some(200), true)] {
        let mut client = Client::raw(broker.addr(), V5);
        client.send(&cut_will(room));
        let Got::ConnAck(false, 0x81, properties) = client.next() else { panic!("{room:?}") };
        let properties = Properties::from_validated(&properties);
        assert_eq!(properties.reason_string().is_some(), has_sentence, "{room:?}");
        client.assert_closed();
    }
    // No refusal is small enough for this one.
    let mut client = Client::raw(broker.addr(), V5);
    client.send(&cut_will(Some(4)));
    client.assert_closed();
    broker.stop();
}

/// [MQTT-3.1.2-24]
#[test]
fn client_that_cannot_take_the_connack_is_refused() {
    let broker = Broker::start();
    let id = unique("tiny");
    let (mut client, answer) =
        Hello::new(V5, &id).with(Property::MaximumPacketSize(10)).try_open(broker.addr());
    assert_eq!(answer, Got::ConnAck(false, 0x83, Vec::new()));
    client.assert_closed();
    broker.stop();
}

/// [MQTT-3.1.2-28]; and whoever was told may use it.
#[test]
fn response_information_leads_a_response_to_whoever_asked_for_it() {
    let broker = Broker::start_configured("response_topic_prefix = \"responses/\"");
    let id = unique("asking");
    let hello = Hello::new(V5, &id);
    let information = |hello: &Hello<'_>| match hello.try_open(broker.addr()) {
        (client, Got::ConnAck(_, 0, properties)) => {
            let properties = Properties::from_validated(&properties);
            (client, properties.response_information().map(str::to_owned))
        }
        (_, other) => panic!("{other:?}"),
    };
    assert_eq!(information(&hello).1, None);
    let no = hello.clone().with(Property::RequestResponseInformation(false));
    assert_eq!(information(&no).1, None);
    let (mut asking, told) = information(&hello.with(Property::RequestResponseInformation(true)));
    assert_eq!(told, Some(format!("responses/{id}/")));
    let topic = format!("{}1", told.unwrap());
    asking.subscribe(&topic, 1);
    Client::connect(&broker, V311).deliver(&topic, "answer");
    assert_eq!(asking.message().text(), "answer");
    broker.stop();
}

/// Sections 3.2.2.3.2 and 3.2.2.3.14 [MQTT-3.1.2-23] [MQTT-4.1.0-2] [MQTT-3.1.2-21]
#[test]
fn session_ends_at_the_expiry_that_the_broker_allows_and_says_so() {
    let broker = Broker::start_configured(
        "session_expiry_s_max = 1\nkeep_alive_s_max = 30\nsys_interval_s = 1",
    );
    let id = unique("lowered");
    let (mut client, answer) = Hello::persistent(V5, &id).try_open(broker.addr());
    let Got::ConnAck(false, 0, properties) = answer else { panic!("{answer:?}") };
    let properties = Properties::from_validated(&properties);
    assert_eq!(properties.session_expiry_interval_s(), Some(1));
    assert_eq!(properties.server_keep_alive_s(), Some(30));
    // What waits for the session goes with it: the counter shows when.
    client.subscribe("lowered", 1);
    let left = Instant::now();
    client.disconnect();
    wait_for_counter(&broker, "clients/expired", 1);
    assert!(left.elapsed() >= Duration::from_secs(1), "ended after {:?}", left.elapsed());
    let (_again, was_present) = Hello::persistent(V5, &id).open(broker.addr());
    assert!(!was_present);
    broker.stop();
}

/// [MQTT-3.1.2-23], section 3.14.2.2.2
#[test]
fn disconnect_changes_how_long_the_session_stays() {
    let broker = Broker::start_configured("sys_interval_s = 1");
    // From an hour to nothing.
    let id = unique("ended");
    let (mut client, _) = Hello::persistent(V5, &id).open(broker.addr());
    client.send(b"\xE0\x07\0\x05\x11\0\0\0\0");
    client.assert_closed();
    assert!(!Hello::persistent(V5, &id).open(broker.addr()).1);
    // From an hour to a second, and back to an hour with the next connection.
    for comes_back in [true, false] {
        let id = unique("shorter");
        let (mut client, _) = Hello::persistent(V5, &id).open(broker.addr());
        client.send(b"\xE0\x07\0\x05\x11\0\0\0\x01");
        client.assert_closed();
        if comes_back {
            let (client, was_present) = Hello::persistent(V5, &id).open(broker.addr());
            assert!(was_present);
            client.disconnect();
        } else {
            wait_for_counter(&broker, "clients/expired", 1);
            assert!(!Hello::persistent(V5, &id).open(broker.addr()).1);
        }
    }
    broker.stop();
}

//! UNSUBSCRIBE and UNSUBACK (3.10 and 3.11): what ends, what goes on, and what the client is told.

use mailboxqtt::codec::{Property, RetainHandling, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{self, V5};
use mailboxqtt::ids::Qos;

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, VERSIONS, frame, string,
};

/// [MQTT-3.10.1-1] [MQTT-3.10.1-1 of 3.1.1], and section 3.10.3.
#[test]
fn unsubscribe_that_breaks_a_rule_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        for (packet, codes) in broken_unsubscribes(version) {
            let mut client = Client::connect(&broker, version);
            client.send(&packet);
            client.assert_refused(codes);
        }
    }
    broker.stop();
}

/// [MQTT-3.10.4-1] [MQTT-3.10.4-5] [MQTT-3.10.4-1 of 3.1.1] [MQTT-3.10.4-5 of 3.1.1]
#[test]
fn only_a_filter_that_is_the_same_to_the_letter_is_removed() {
    let broker = Broker::start();
    for version in VERSIONS {
        let (stem, leaf) = (unique("letter"), unique("leaf"));
        let topic = format!("{stem}/{leaf}");
        let mut sender = Client::connect(&broker, version);
        let matching = [
            topic.clone(),
            format!("{stem}/+"),
            format!("{stem}/#"),
            format!("{topic}/#"),
            format!("{stem}/+/#"),
            format!("+/{leaf}"),
        ];
        let others = [
            topic.to_uppercase(),
            format!("{topic}/"),
            format!("/{topic}"),
            format!("{stem}/+/"),
            format!("{topic}/+"),
            stem,
        ];
        let filters: Vec<_> = matching.iter().chain(&others).collect();
        for held in &filters {
            let mut client = Client::connect(&broker, version);
            client.subscribe(held, 0);
            for other in filters.iter().filter(|other| *other != held) {
                let codes = client.unsubscribe(other);
                assert_eq!(codes, if version == V5 { &[0x11][..] } else { &[] });
            }
            sender.deliver(&topic, "x");
            let came = client.drain().len();
            assert_eq!(came, usize::from(matching.contains(held)), "{held}");
            let codes = client.unsubscribe(held);
            assert_eq!(codes, if version == V5 { &[0][..] } else { &[] });
            sender.deliver(&topic, "x");
            client.assert_silent();
        }
    }
    broker.stop();
}

/// A shared subscription is held under the whole of its text. [MQTT-3.10.4-1]
#[test]
fn shared_subscription_is_removed_by_its_whole_filter() {
    let broker = Broker::start();
    let topic = unique("share");
    let mut client = Client::connect(&broker, V5);
    if client.properties().shared_subscription_available() == Some(false) {
        return broker.stop();
    }
    let shared = format!("$share/group/{topic}");
    client.subscribe(&shared, 0);
    let mut sender = Client::connect(&broker, V5);
    for other in [&topic, &format!("$share/other/{topic}"), &format!("$share/group/{topic}/#")] {
        assert_eq!(client.unsubscribe(other), [0x11]);
    }
    sender.deliver(&topic, "x");
    assert_eq!(client.message().text(), "x");
    // Beside a subscription of its own with the same filter.
    client.subscribe(&topic, 0);
    assert_eq!(client.unsubscribe(&shared), [0]);
    sender.deliver(&topic, "x");
    assert_eq!(client.message().text(), "x");
    client.assert_silent();
    assert_eq!(client.unsubscribe(&shared), [0x11]);
    assert_eq!(client.unsubscribe(&topic), [0]);
    broker.stop();
}

/// [MQTT-3.10.4-2] [MQTT-3.10.4-2 of 3.1.1]
#[test]
fn no_message_is_added_once_the_client_has_unsubscribed() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("ended");
        let mut sender = Client::connect(&broker, version);
        for filter in [topic.clone(), format!("{topic}/#"), format!("+/{topic}")] {
            let topic = if filter.starts_with('+') { format!("x/{topic}") } else { topic.clone() };
            for qos in 0..=2 {
                let id = unique("ended");
                let hello = Hello::persistent(version, &id);
                let (mut client, _) = hello.open(broker.addr());
                client.subscribe(&filter, qos);
                sender.deliver(&topic, "before");
                let message = client.message();
                assert_eq!(message.text(), "before");
                if message.qos > 0 {
                    client.ack(PUBACK, message.id);
                }
                client.unsubscribe(&filter);
                sender.deliver(&topic, "after");
                sender.deliver_retained(&topic, "after");
                client.assert_silent();
                // Neither while the client is away.
                client.disconnect();
                sender.deliver(&topic, "later");
                let (mut client, present) = hello.open(broker.addr());
                assert!(present);
                sender.deliver(&topic, "now");
                client.assert_silent();
                // A subscription that comes after it is a new one.
                client.subscribe(&filter, qos);
                let message = client.message();
                assert_eq!((message.text(), message.retain), ("after", true));
                sender.deliver_retained(&topic, "");
            }
        }
    }
    broker.stop();
}

/// Section 3.3.1.3: for Retain Handling, too, a subscription that was ended does not exist.
#[test]
fn subscription_after_an_unsubscribe_is_a_new_one_for_its_retained_messages() {
    let broker = Broker::start();
    let topic = unique("new");
    Client::connect(&broker, V5).deliver_retained(&topic, "kept");
    let mut client = Client::connect(&broker, V5);
    let if_new =
        SubscribeOptions { retain_handling: RetainHandling::SendIfNew, ..options(Qos::AtMostOnce) };
    for _ in 0..3 {
        assert_eq!(client.subscribe_with(&[(&topic, if_new)]), [0]);
        assert_eq!(client.message().text(), "kept");
        assert_eq!(client.unsubscribe(&topic), [0]);
    }
    Client::connect(&broker, V5).deliver_retained(&topic, "");
    broker.stop();
}

/// [MQTT-3.10.4-1] [MQTT-3.10.4-1 of 3.1.1]
#[test]
fn other_filters_that_match_go_on() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("overlap");
        let topic = format!("{stem}/x");
        let filters = ["/x", "/+", "/#", "/x/#"].map(|rest| format!("{stem}{rest}"));
        let mut sender = Client::connect(&broker, version);
        let mut client = Client::connect(&broker, version);
        for (filter, qos) in filters.iter().zip([0, 1, 0, 1]) {
            client.subscribe(filter, qos);
        }
        for gone in &filters {
            sender.deliver(&topic, "x");
            let came = client.drain();
            // One copy, or one for each subscription.
            assert!(!came.is_empty() && came.iter().all(|message| message.topic == topic));
            for message in came.iter().filter(|message| message.qos > 0) {
                client.ack(PUBACK, message.id);
            }
            client.unsubscribe(gone);
        }
        sender.deliver(&topic, "x");
        client.assert_silent();
    }
    broker.stop();
}

/// On the same connection, and on the next. [MQTT-3.10.4-3] [MQTT-3.10.4-3 of 3.1.1]
#[test]
fn deliveries_that_have_begun_are_completed_after_the_unsubscribe() {
    let broker = Broker::start();
    for version in VERSIONS {
        for comes_back in [false, true] {
            let (id, topic) = (unique("begun"), unique("begun"));
            let hello = Hello::persistent(version, &id);
            let (mut client, _) = hello.open(broker.addr());
            client.subscribe(&topic, 2);
            let mut sender = Client::connect(&broker, version);
            [1, 2, 2].into_iter().for_each(|qos| sender.deliver_at(&topic, "x", qos));
            let [one, two, three] = [(); 3].map(|()| client.message());
            client.ack(PUBREC, three.id);
            assert_eq!(client.next(), Got::Ack(PUBREL, three.id, 0));
            client.unsubscribe(&topic);
            if comes_back {
                client.disconnect();
                let present;
                (client, present) = hello.open(broker.addr());
                assert!(present);
                let again = |message: &Message| Message { dup: true, ..message.clone() };
                let came = [(); 3].map(|()| client.next());
                assert!(came.contains(&Got::Ack(PUBREL, three.id, 0)), "{came:?}");
                let messages = came.into_iter().filter(|got| matches!(got, Got::Publish(_)));
                let expected = [&one, &two].map(|message| Got::Publish(again(message)));
                assert_eq!(messages.collect::<Vec<_>>(), expected);
            }
            client.ack(PUBCOMP, three.id);
            client.ack(PUBREC, two.id);
            assert_eq!(client.next(), Got::Ack(PUBREL, two.id, 0));
            client.ack(PUBACK, one.id);
            client.ack(PUBCOMP, two.id);
            client.assert_silent();
            // Nothing of it is left, and the identifiers are free.
            client.disconnect();
            let (mut client, _) = hello.open(broker.addr());
            client.assert_silent();
            client.subscribe(&topic, 1);
            sender.deliver(&topic, "anew");
            assert_eq!(client.message().text(), "anew");
        }
    }
    broker.stop();
}

/// What waits for a place in the window may come or not; it must not stay in the way.
/// [MQTT-3.10.4-3]
#[test]
fn messages_of_an_ended_subscription_that_wait_for_the_window_hold_nobody_up() {
    let broker = Broker::start();
    let (ended, other) = (unique("ended"), unique("other"));
    let id = unique("window");
    let (mut client, _) = Hello::new(V5, &id).with(Property::ReceiveMaximum(1)).open(broker.addr());
    client.subscribe(&ended, 1);
    client.subscribe(&other, 1);
    let mut sender = Client::connect(&broker, V5);
    for number in 0..5 {
        sender.deliver(&ended, number.to_string());
    }
    let mut message = client.message();
    assert_eq!(message.text(), "0");
    client.unsubscribe(&ended);
    sender.deliver(&other, "other");
    while message.topic == ended {
        client.ack(PUBACK, message.id);
        message = client.message();
    }
    assert_eq!(message.text(), "other");
    client.ack(PUBACK, message.id);
    client.assert_silent();
    broker.stop();
}

/// [MQTT-3.10.4-4] [MQTT-3.10.4-5] [MQTT-3.10.4-4 of 3.1.1] [MQTT-3.10.4-5 of 3.1.1]
#[test]
fn each_unsubscribe_is_answered_by_one_unsuback_with_its_identifier() {
    let broker = Broker::start();
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let stem = unique("each");
        let ids: Vec<u16> = (1..=50_u16).map(|number| number.wrapping_mul(40_503)).collect();
        let mut client = Client::connect(&broker, version);
        client.subscribe(&format!("{stem}/0"), 0);
        let packets = ids.iter().map(|id| {
            // The first of five is there at first, the others never are.
            let filters: Vec<u8> =
                (0..=id % 5).flat_map(|number| string(format!("{stem}/{number}"))).collect();
            frame(0xA2, &[&id.to_be_bytes(), no_properties, &filters])
        });
        client.send(&packets.collect::<Vec<_>>().concat());
        let mut answered = Vec::new();
        for _ in &ids {
            let Got::UnsubAck(id, codes) = client.next() else { panic!("no UNSUBACK") };
            match version {
                V5 => assert_eq!(codes.len(), usize::from(id % 5) + 1),
                _ => assert_eq!(client.last_frame().len(), 4, "has no payload"),
            }
            answered.push(id);
        }
        client.assert_silent();
        answered.sort_unstable();
        let mut expected = ids;
        expected.sort_unstable();
        assert_eq!(answered, expected);
    }
    broker.stop();
}

/// [MQTT-3.10.4-6] [MQTT-3.11.3-1] [MQTT-3.11.3-2] [MQTT-3.10.4-6 of 3.1.1]
#[test]
fn several_filters_in_one_unsubscribe_are_like_several_unsubscribes() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("several");
        let names = ["a", "b", "c/#", "+/d", "kept"].map(|name| format!("{stem}/{name}"));
        let [a, b, c, d, kept] = names.each_ref().map(|name| &name[..]);
        for (gone, expected) in [
            (&[a][..], &[0_u8][..]),
            (&[a, b, c, d], &[0, 0, 0, 0]),
            (&[d, "never", c, "never/#", b, a], &[0, 0x11, 0, 0x11, 0, 0]),
            (&["never", "never"], &[0x11, 0x11]),
            (&[b, b, a, b, a], &[0, 0x11, 0, 0x11, 0x11]),
        ] {
            let clients = [(); 2].map(|()| {
                let mut client = Client::connect(&broker, version);
                client.subscribe_all(&[(a, 0), (b, 0), (c, 0), (d, 0), (kept, 0)]);
                client
            });
            let [mut at_once, mut one_by_one] = clients;
            let id = at_once.send_unsubscribe(gone, &[]);
            let Got::UnsubAck(got, codes) = at_once.next() else { panic!("no UNSUBACK") };
            let each: Vec<u8> =
                gone.iter().flat_map(|filter| one_by_one.unsubscribe(filter)).collect();
            let expected = if version == V5 { expected } else { &[] };
            assert_eq!((got, &codes[..], &each[..]), (id, expected, expected));

            let mut sender = Client::connect(&broker, version);
            for name in ["a", "b", "c", "x/d", "kept"] {
                sender.deliver(&format!("{stem}/{name}"), "x");
            }
            let topics = |client: &mut Client| {
                let mut topics: Vec<_> =
                    client.drain().into_iter().map(|message| message.topic).collect();
                topics.sort();
                topics
            };
            let left = topics(&mut at_once);
            assert_eq!(left, topics(&mut one_by_one));
            let ended = gone.iter().filter(|filter| names.iter().any(|name| name == *filter));
            let ended: std::collections::HashSet<_> = ended.collect();
            assert_eq!(left.len(), 5 - ended.len());
        }
    }
    broker.stop();
}

/// What is no filter may be refused by a code, or ends the connection. [MQTT-3.11.3-1] [MQTT-3.11.3-2]
#[test]
fn what_is_no_filter_has_its_code_in_its_place() {
    let broker = Broker::start();
    for bad in ["", "a#", "a/#/b", "a+", "+a/b", "$share/group/", "$share//a"] {
        let topic = unique("codes");
        let mut client = Client::connect(&broker, V5);
        client.subscribe(&topic, 0);
        let id = client.send_unsubscribe(&["never", bad, &topic], &[]);
        match client.next() {
            Got::UnsubAck(got, codes) => {
                assert_eq!((got, codes[0], codes.len(), codes[2]), (id, 0x11, 3, 0));
                assert!([0x11, 0x80, 0x83, 0x87, 0x8F].contains(&codes[1]), "{codes:x?}");
                Client::connect(&broker, V5).deliver(&topic, "x");
                client.assert_silent();
            }
            refusal => client.assert_is_refusal(&refusal, &[0x81, 0x82, 0x8F]),
        }
    }
    broker.stop();
}

/// UNSUBACK cannot be left out for its size, its properties can. [MQTT-3.11.2-1] [MQTT-3.11.2-2]
#[test]
fn unsuback_with_what_it_says_about_a_refusal_is_within_the_packet_size_of_the_client() {
    let broker = Broker::start();
    for limit in 5..=200 {
        let id = unique("room");
        let hello = Hello::new(V5, &id).with(Property::MaximumPacketSize(limit));
        let (mut client, answer) = hello.try_open(broker.addr());
        if !matches!(answer, Got::ConnAck(_, 0, _)) {
            continue;
        }
        client.send_unsubscribe(&[&id, "a#", &id], &[]);
        let answer = client.next();
        assert!(client.last_frame().len() <= limit as usize, "{answer:?} for {limit}");
        match answer {
            Got::UnsubAck(_, codes) => assert_eq!(codes.len(), 3),
            refusal => client.assert_is_refusal(&refusal, &[0x81, 0x82, 0x8F, 0x95]),
        }
    }
    broker.stop();
}

/// UNSUBSCRIBE packets that are wrong, most of them behind a filter that is not, and the reason codes for it.
fn broken_unsubscribes(version: ProtocolVersion) -> Vec<(Vec<u8>, &'static [u8])> {
    const MALFORMED: &[u8] = &[0x81];
    // Which of the two it is can be seen in different ways.
    const EITHER: &[u8] = &[0x81, 0x82];
    let good = &string("good")[..];
    let none: &[u8] = if version == V5 { &[0] } else { &[] };
    let behind = |rest: &[u8]| frame(0xA2, &[&[0, 1], none, good, rest]);
    let mut broken: Vec<_> = (0..=0x0F)
        .filter(|flags| *flags != 2)
        .map(|flags| (frame(0xA0 | flags, &[&[0, 1], none, good]), MALFORMED))
        .collect();
    broken.extend([
        (frame(0xA2, &[]), MALFORMED),
        (frame(0xA2, &[&[0]]), MALFORMED),
        (frame(0xA2, &[&[0, 0], none, good]), EITHER),
        (frame(0xA2, &[&[0, 1], none]), EITHER),
        (behind(b"\0\x06short"), MALFORMED),
        (behind(&[0]), MALFORMED),
    ]);
    if version == V5 {
        broken.push((frame(0xA2, &[&[0, 1]]), EITHER));
        broken.push((frame(0xA2, &[&[0, 1], &[2, 0x0B, 1], good]), EITHER));
        broken.push((frame(0xA2, &[&[0, 1], &[3, 0x26, 0, 1], good]), MALFORMED));
    }
    broken
}

fn options(qos: Qos) -> SubscribeOptions {
    SubscribeOptions::new(qos)
}

//! SUBSCRIBE and SUBACK (3.8 and 3.9): what is asked for, what is granted, and what follows.

use mailboxqtt::codec::{Property, RetainHandling, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ProtocolVersion, Qos};

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::unique;
use crate::wire::{Client, Got, Hello, Message, PUBACK, VERSIONS, frame, string};

/// What is no topic filter, and the reason codes of DISCONNECT for it.
const NO_FILTERS: [&str; 8] =
    ["", "a#", "a/#/b", "#/a", "a+", "+a/b", "$share/group/", "$share//a"];
const NO_FILTER_CODES: [u8; 3] = [0x81, 0x82, 0x8F];

/// [MQTT-3.8.1-1] [MQTT-3.8.3-4] [MQTT-3.8.3-5] [MQTT-3.8.1-1 of 3.1.1] [MQTT-3.8.3-4 of 3.1.1], and sections
/// 3.8.2.1.2, 3.8.3 and 3.8.3.1.
#[test]
fn subscribe_that_breaks_a_rule_ends_the_connection() {
    let broker = Broker::start();
    for version in VERSIONS {
        for (packet, codes) in broken_subscribes(version) {
            let mut client = Client::connect(&broker, version);
            client.send(&packet);
            client.assert_refused(codes);
        }
    }
    broker.stop();
}

/// A filter with every option that there is. [MQTT-3.8.3-5] [MQTT-3.8.3-4 of 3.1.1]
#[test]
fn every_option_that_is_not_reserved_is_taken() {
    let broker = Broker::start();
    for options in (0..=u8::MAX).filter(|options| *options < 0x40) {
        let is_taken = options & 3 < 3 && options >> 4 < 3;
        let mut client = Client::connect(&broker, V5);
        client.send(&frame(0x82, &[&[0, 1, 0], &string(unique("options")), &[options]]));
        if is_taken {
            assert_eq!(client.next(), Got::SubAck(1, vec![options & 3]), "{options:#010b}");
        } else {
            client.assert_refused(&[0x81, 0x82]);
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-1] [MQTT-3.8.4-2] [MQTT-3.8.4-1 of 3.1.1] [MQTT-3.8.4-2 of 3.1.1]
#[test]
fn each_subscribe_is_answered_by_one_suback_with_its_identifier() {
    let broker = Broker::start();
    for version in VERSIONS {
        let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
        let stem = unique("each");
        let filter = string(format!("{stem}/+"));
        let ids: Vec<u16> = (1..=50_u16).map(|number| number.wrapping_mul(40_503)).collect();
        let mut client = Client::connect(&broker, version);
        let packets: Vec<_> = ids
            .iter()
            .map(|id| {
                // One to five filters, one of them the same each time.
                let own: Vec<u8> = (0..id % 5)
                    .flat_map(|number| [string(format!("{stem}/{id}/{number}")), vec![1]].concat())
                    .collect();
                frame(0x82, &[&id.to_be_bytes(), no_properties, &own, &filter, &[0]])
            })
            .collect();
        client.send(&packets.concat());
        let mut answered = Vec::new();
        for _ in &ids {
            let Got::SubAck(id, codes) = client.next() else { panic!("no SUBACK") };
            assert_eq!(codes, [vec![1; usize::from(id % 5)], vec![0]].concat());
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

/// Section 3.9: SUBACK says that the SUBSCRIBE was processed. [MQTT-3.8.4-1] [MQTT-3.8.4-1 of 3.1.1]
#[test]
fn subscription_is_in_force_when_its_suback_has_come() {
    // Ours has more places where it could be late.
    let broker = match is_pointed_elsewhere() {
        true => Broker::start(),
        false => Broker::start_with(&["--shards", "5"]),
    };
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

/// [MQTT-3.8.4-6] [MQTT-3.8.4-7] [MQTT-3.9.3-1] [MQTT-3.8.4-5 of 3.1.1] [MQTT-3.9.3-1 of 3.1.1]
#[test]
fn suback_has_a_code_for_each_filter_in_their_order() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("order");
        let mut client = Client::connect(&broker, version);
        for count in 1..=30 {
            let filters: Vec<_> = (0..count)
                .map(|number| (format!("{stem}/{}", 29 - number), (number * number % 3) as u8))
                .collect();
            let filters: Vec<_> = filters.iter().map(|(filter, qos)| (&filter[..], *qos)).collect();
            let asked: Vec<u8> = filters.iter().map(|(_, qos)| *qos).collect();
            assert_eq!(client.subscribe_all(&filters), asked);
        }
    }
    broker.stop();
}

/// What is no filter may be refused by a code, or ends the connection. [MQTT-3.8.4-6] [MQTT-3.8.4-7]
/// [MQTT-3.9.3-1] [MQTT-3.9.3-2] [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-3.8.4-5 of 3.1.1]
/// [MQTT-3.9.3-1 of 3.1.1] [MQTT-3.9.3-2 of 3.1.1] [MQTT-4.7.1-2 of 3.1.1] [MQTT-4.7.1-3 of 3.1.1]
#[test]
fn filters_beside_one_that_is_refused_count() {
    let broker = Broker::start();
    for version in VERSIONS {
        for bad in NO_FILTERS {
            // A share is a matter of MQTT 5.
            if version == V311 && bad.starts_with('$') {
                continue;
            }
            let stem = unique("codes");
            let mut client = Client::connect(&broker, version);
            let (first, last) = (format!("{stem}/a"), format!("{stem}/b/#"));
            let filters =
                [(&first[..], 2), (bad, 1), (&last, 1)].map(|(text, qos)| (text, options(qos)));
            let id = client.send_subscribe(&filters);
            let answer = client.next_answer();
            let Got::SubAck(got, codes) = answer else {
                client.assert_is_refusal(&answer, &NO_FILTER_CODES);
                continue;
            };
            assert_eq!((got, codes.len(), codes[0], codes[2]), (id, 3, 2, 1));
            assert!(failures(version).contains(&codes[1]), "{:#x} for {bad}", codes[1]);
            let mut sender = Client::connect(&broker, version);
            sender.deliver(&first, "a");
            sender.deliver(&format!("{stem}/b"), "b");
            let mut texts: Vec<_> =
                client.drain().iter().map(|message| message.text().to_owned()).collect();
            texts.sort();
            assert_eq!(texts, ["a", "b"]);
        }
    }
    broker.stop();
}

/// A client of MQTT 3.1.1 cannot be told before. [MQTT-3.8.4-7] [MQTT-3.9.3-2] [MQTT-3.8.3-2 of 3.1.1]
/// [MQTT-3.8.4-5 of 3.1.1] [MQTT-3.9.3-2 of 3.1.1]
#[test]
fn filter_that_the_settings_exclude_is_refused_by_its_code_and_gets_nothing() {
    let settings = "qos_max = 1\nwildcard_subscriptions = false\nshared_subscriptions = false\n\
                    subscriptions_max = 2";
    let broker = Broker::start_configured(settings);
    for version in VERSIONS {
        let [kept, other, over] = ["kept", "other", "over"].map(unique);
        let shared = format!("$share/group/{kept}");
        let mut client = Client::connect(&broker, version);
        let asked = [(&kept[..], 2), ("+", 1), ("#", 1), (&shared, 0), (&other, 0), (&over, 0)];
        let told = client.subscribe_all(&asked);
        let expected = match version {
            V5 => [1, 0xA2, 0xA2, 0x9E, 0, 0x97],
            _ => [1, 0x80, 0x80, 0x80, 0, 0x80],
        };
        assert_eq!(told, expected);
        let mut sender = Client::connect(&broker, version);
        for topic in [&over, &unique("any"), &kept, &other] {
            sender.deliver(topic, "x");
        }
        let came: Vec<_> = client.drain().into_iter().map(|message| message.topic).collect();
        assert_eq!(came.len(), 2, "{came:?}");
        assert!(came.contains(&kept) && came.contains(&other));
    }
    broker.stop();
}

/// SUBACK cannot be left out for its size, its properties can. [MQTT-3.9.2-1] [MQTT-3.9.2-2]
#[test]
fn suback_with_what_it_says_about_a_refusal_is_within_the_packet_size_of_the_client() {
    let broker = Broker::start();
    for limit in 5..=200 {
        let id = unique("room");
        let hello = Hello::new(V5, &id).with(Property::MaximumPacketSize(limit));
        let (mut client, answer) = hello.try_open(broker.addr());
        if !matches!(answer, Got::ConnAck(_, 0, _)) {
            continue;
        }
        client.send_subscribe(&[(&id, options(1)), ("a#", options(1)), (&id, options(2))]);
        let answer = client.next();
        assert!(client.last_frame().len() <= limit as usize, "{answer:?} for {limit}");
        match answer {
            Got::SubAck(_, codes) => assert_eq!(codes.len(), 3),
            refusal => client.assert_is_refusal(&refusal, &[0x81, 0x82, 0x8F, 0x95]),
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-7] [MQTT-3.8.4-8] [MQTT-3.8.4-5 of 3.1.1] [MQTT-3.8.4-6 of 3.1.1]
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
                    sender.deliver_at(&topic, [sent], sent);
                    let message = receiver.message();
                    let came = (message.qos, &message.payload[..]);
                    assert_eq!(came, (sent.min(granted), &[sent][..]));
                }
            }
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-3] [MQTT-3.8.4-3 of 3.1.1]
#[test]
fn identical_filter_replaces_the_subscription_with_its_qos() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("anew");
        let mut sender = Client::connect(&broker, version);
        for filter in [topic.clone(), format!("{topic}/#")] {
            let mut client = Client::connect(&broker, version);
            for qos in [0, 2, 1, 1, 0, 1, 2, 0] {
                client.subscribe(&filter, qos);
                sender.deliver(&topic, "x");
                let came = client.drain();
                assert_eq!(came.len(), 1, "{came:?}");
                assert_eq!(came[0].qos, qos.min(1));
                if qos > 0 {
                    client.ack(PUBACK, came[0].id);
                }
            }
            // Other letters, another filter.
            client.subscribe(&filter.to_uppercase(), 1);
            sender.deliver(&topic, "x");
            assert_eq!(client.message().qos, 0);
            client.assert_silent();
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-3], for what MQTT 3.1.1 does not know.
#[test]
fn identical_filter_replaces_the_subscription_with_its_options_and_identifier() {
    let broker = Broker::start();
    let topic = unique("anew");
    let mut sender = Client::connect(&broker, V5);
    for filter in [topic.clone(), format!("{topic}/#")] {
        let mut client = Client::connect(&broker, V5);
        let has_identifiers = client.properties().subscription_identifier_available();
        for (no_local, retain_as_published, identifier) in [
            (false, false, None),
            (true, false, Some(1)),
            (true, true, Some(0x0FFF_FFFF)),
            (false, true, None),
            (true, true, Some(128)),
            (false, false, Some(1)),
        ] {
            let identifier = identifier.filter(|_| has_identifiers != Some(false));
            let options = SubscribeOptions {
                no_local,
                retain_as_published,
                retain_handling: RetainHandling::DoNotSend,
                ..options(1)
            };
            let list: Vec<_> =
                identifier.map(Property::SubscriptionIdentifier).into_iter().collect();
            let id = client.send_subscribe_with(&[(&filter, options)], &list);
            assert_eq!(client.next(), Got::SubAck(id, vec![1]));

            client.deliver(&topic, "own");
            sender.deliver_retained(&topic, "theirs");
            let own = if no_local { &[][..] } else { &[("own", false)] };
            let came = client.drain();
            let said: Vec<_> =
                came.iter().map(|message| (message.text(), message.retain)).collect();
            assert_eq!(said, [own, &[("theirs", retain_as_published)]].concat());
            for message in came {
                let identifiers = message.properties().subscription_identifiers();
                assert_eq!(identifiers.collect::<Vec<_>>(), Vec::from_iter(identifier));
                if message.qos > 0 {
                    client.ack(PUBACK, message.id);
                }
            }
        }
    }
    sender.deliver_retained(&topic, "");
    broker.stop();
}

/// [MQTT-3.8.4-4] [MQTT-3.8.4-3 of 3.1.1]
#[test]
fn retained_message_is_sent_again_with_each_subscribe() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("again");
        let mut sender = Client::connect(&broker, version);
        sender.deliver_retained(&topic, "kept");
        for filter in [topic.clone(), format!("{topic}/#")] {
            let mut client = Client::connect(&broker, version);
            for qos in [0, 1, 1, 0] {
                client.subscribe(&filter, qos);
                let message = client.message();
                assert_eq!((message.text(), message.qos, message.retain), ("kept", qos, true));
                if qos > 0 {
                    client.ack(PUBACK, message.id);
                }
                client.assert_silent();
            }
        }
        sender.deliver_retained(&topic, "");
    }
    broker.stop();
}

/// [MQTT-3.8.4-4] [MQTT-3.8.4-3 of 3.1.1]
#[test]
fn messages_flow_on_while_their_subscription_is_replaced() {
    const MESSAGES: u16 = 500;
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("flow");
        for filter in [topic.clone(), format!("{topic}/#")] {
            let mut sender = Client::connect(&broker, version);
            let mut client = Client::connect(&broker, version);
            client.subscribe(&filter, 1);
            for number in 1..=MESSAGES {
                sender.publish(&topic, number.to_string(), 1, number);
                client.send_subscribe(&[(&filter, options(1 + (number % 2) as u8))]);
            }
            let (mut subacks, mut came) = (0, Vec::new());
            while subacks < MESSAGES || came.len() < usize::from(MESSAGES) {
                match client.next() {
                    Got::SubAck(..) => subacks += 1,
                    Got::Publish(message) => {
                        client.ack(PUBACK, message.id);
                        came.push(message.text().parse::<u16>().unwrap());
                    }
                    other => panic!("{other:?} after {came:?}"),
                }
            }
            assert_eq!(came, Vec::from_iter(1..=MESSAGES));
        }
    }
    broker.stop();
}

/// [MQTT-3.8.4-5] [MQTT-3.8.4-4 of 3.1.1]
#[test]
fn several_filters_in_one_subscribe_are_like_several_subscribes() {
    use RetainHandling::{DoNotSend, Send, SendIfNew};
    let broker = Broker::start();
    let handling = |qos, retain_handling| SubscribeOptions { retain_handling, ..options(qos) };
    let plain = [
        vec![("a", options(0)), ("b", options(1)), ("a/#", options(2))],
        vec![("+", options(1)), ("a", options(2)), ("+", options(0))],
        vec![("a", options(2)), ("b", options(2)), ("a", options(0))],
        vec![("a", options(0)), ("a", options(1)), ("a", options(0)), ("a", options(1))],
    ];
    let with_options = [
        vec![("a", handling(1, Send)), ("a", handling(1, DoNotSend))],
        vec![
            ("a", handling(0, SendIfNew)),
            ("b", handling(1, Send)),
            ("a", handling(1, SendIfNew)),
        ],
        vec![
            ("+", handling(1, SendIfNew)),
            ("+", handling(1, SendIfNew)),
            ("b", handling(0, Send)),
        ],
        vec![("a", handling(1, DoNotSend)), ("a", handling(0, Send))],
        vec![("b", handling(0, SendIfNew)), ("b", handling(1, DoNotSend)), ("a", options(0))],
    ];
    for version in VERSIONS {
        let mut sender = Client::connect(&broker, version);
        for list in plain.iter().chain(with_options.iter().filter(|_| version == V5)) {
            let stem = unique("several");
            let topics = ["a", "b"].map(|name| format!("{stem}/{name}"));
            topics.iter().for_each(|topic| sender.deliver_retained(topic, "kept"));
            let filters: Vec<_> =
                list.iter().map(|(name, options)| (format!("{stem}/{name}"), *options)).collect();
            let filters: Vec<_> = filters.iter().map(|(text, it)| (&text[..], *it)).collect();

            let mut one_by_one = Client::connect(&broker, version);
            let codes: Vec<_> =
                filters.iter().flat_map(|filter| one_by_one.subscribe_with(&[*filter])).collect();
            let mut at_once = Client::connect(&broker, version);
            assert_eq!(at_once.subscribe_with(&filters), codes);
            let is_replayed = |name: &&str| {
                list.iter().any(|(filter, options)| {
                    options.retain_handling != DoNotSend
                        && (*filter == "+" || filter.starts_with(name))
                })
            };
            let expected: Vec<_> = ["a", "b"].into_iter().filter(is_replayed).collect();
            for client in [&mut one_by_one, &mut at_once] {
                let mut missing = expected.clone();
                while !missing.is_empty() {
                    let message = client.message();
                    assert!(message.retain && message.text() == "kept", "{message:?}");
                    missing.retain(|name| !message.topic.ends_with(name));
                }
            }
            sender.publish(&topics[0], "live", 0, 0);
            topics.iter().for_each(|topic| sender.deliver(topic, "live"));
            let live = |client: &mut Client| -> Vec<_> {
                let came = client.drain().into_iter().filter(|message| !message.retain);
                let mut came: Vec<_> =
                    came.map(|Message { topic, payload, qos, .. }| (topic, payload, qos)).collect();
                came.sort();
                came
            };
            let came = live(&mut at_once);
            assert!(!came.is_empty(), "{came:?}");
            assert_eq!(came, live(&mut one_by_one), "{list:?}");
            topics.iter().for_each(|topic| sender.deliver_retained(topic, ""));
        }
    }
    broker.stop();
}

/// [MQTT-3.8.3-3]
#[test]
fn own_messages_do_not_come_back_with_no_local() {
    let broker = Broker::start();
    let no_local = SubscribeOptions { no_local: true, ..options(1) };
    for suffix in ["", "/#"] {
        let (topic, id) = (unique("local"), unique("local"));
        let hello = Hello::persistent(V5, &id);
        let (mut client, _) = hello.open(broker.addr());
        assert_eq!(client.subscribe_with(&[(&format!("{topic}{suffix}"), no_local)]), [1]);
        for qos in [0, 1, 2] {
            client.deliver_at(&topic, "mine", qos);
        }
        client.assert_silent();
        for version in VERSIONS {
            Client::connect(&broker, version).deliver(&topic, "theirs");
            let message = client.message();
            assert_eq!(message.text(), "theirs");
            client.ack(PUBACK, message.id);
        }
        // It is the name that counts, not the connection.
        client.disconnect();
        let (mut client, _) = hello.open(broker.addr());
        client.deliver(&topic, "mine");
        client.assert_silent();
        // Another filter says nothing of it.
        client.subscribe(&format!("{topic}/+/#"), 0);
        client.subscribe(&format!("+/{topic}"), 0);
        client.deliver(&topic, "mine");
        client.assert_silent();
    }
    broker.stop();
}

/// [MQTT-3.8.3-3]: a retained message that comes with the subscription is forwarded, too.
#[test]
fn own_retained_message_does_not_come_back_with_no_local() {
    let broker = Broker::start();
    let (own, theirs) = (unique("own"), unique("theirs"));
    let mut client = Client::connect(&broker, V5);
    client.deliver_retained(&own, "mine");
    let mut other = Client::connect(&broker, V5);
    other.deliver_retained(&theirs, "theirs");
    let no_local = SubscribeOptions { no_local: true, ..options(1) };
    client.subscribe_with(&[(&own, no_local), (&theirs, no_local)]);
    assert_eq!(client.message().text(), "theirs");
    client.assert_silent();
    broker.stop();
}

/// [MQTT-3.8.3-4]
#[test]
fn no_local_on_a_shared_subscription_ends_the_connection() {
    let broker = Broker::start();
    let topic = unique("shared");
    let shared = format!("$share/group/{topic}");
    let no_local = SubscribeOptions { no_local: true, ..options(1) };
    for filters in [
        &[(&shared[..], no_local)][..],
        &[(&topic, options(1)), (&shared, no_local)],
        &[(&shared, no_local), (&topic, options(1))],
    ] {
        let mut client = Client::connect(&broker, V5);
        client.send_subscribe(filters);
        client.assert_refused(&[0x82]);
    }
    broker.stop();
}

/// SUBSCRIBE packets that are wrong, most of them behind a filter that is not, and the reason codes for it.
fn broken_subscribes(version: ProtocolVersion) -> Vec<(Vec<u8>, &'static [u8])> {
    const MALFORMED: &[u8] = &[0x81];
    // Which of the two it is can be seen in different ways.
    const EITHER: &[u8] = &[0x81, 0x82];
    let good = [&string("good")[..], &[1]].concat();
    let none: &[u8] = if version == V5 { &[0] } else { &[] };
    let behind = |rest: &[u8]| frame(0x82, &[&[0, 1], none, &good, rest]);
    let mut broken: Vec<_> = (0..=0x0F)
        .filter(|flags| *flags != 2)
        .map(|flags| (frame(0x80 | flags, &[&[0, 1], none, &good]), MALFORMED))
        .collect();
    broken.extend([
        (frame(0x82, &[]), MALFORMED),
        (frame(0x82, &[&[0]]), MALFORMED),
        (frame(0x82, &[&[0, 0], none, &good]), EITHER),
        (frame(0x82, &[&[0, 1], none]), EITHER),
        (behind(&string("no options")), MALFORMED),
        (behind(b"\0\x06short\0"), MALFORMED),
        (behind(&[0]), MALFORMED),
        (behind(b"\0\x01a\x03"), EITHER),
    ]);
    if version == V5 {
        broken.extend([0x40, 0x80, 0xC1].map(|bits| (behind(&[0, 1, b'a', bits]), MALFORMED)));
        broken.extend([0x30, 0x3E].map(|bits| (behind(&[0, 1, b'a', bits]), EITHER)));
        let with = |list: &[u8]| frame(0x82, &[&[0, 1], &[list.len() as u8], list, &good]);
        broken.extend([
            (with(&[0x0B, 0]), EITHER),
            (with(&[0x0B, 1, 0x0B, 2]), EITHER),
            (with(&[0x0B, 0xFF, 0xFF, 0xFF, 0xFF]), MALFORMED),
            (with(&[0x0B]), MALFORMED),
            (frame(0x82, &[&[0, 1]]), EITHER),
        ]);
    } else {
        broken.extend((2..8).map(|bit| (behind(&[0, 1, b'a', 1 << bit]), MALFORMED)));
    }
    broken
}

fn options(qos: u8) -> SubscribeOptions {
    SubscribeOptions::new(Qos::new(qos).unwrap())
}

/// The codes with which SUBACK may refuse a filter: section 3.9.3.
fn failures(version: ProtocolVersion) -> &'static [u8] {
    match version {
        V5 => &[0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2],
        _ => &[0x80],
    }
}

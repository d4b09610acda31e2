//! Topic names, topic filters, shared subscriptions (4.7, and 4.8 of MQTT 5.0).

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion;
use mailboxqtt::ids::ProtocolVersion::V5;

use crate::broker::{Broker, is_pointed_elsewhere};
use crate::process::unique;
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, VERSIONS, frame, publish, string,
};

/// [MQTT-4.7.0-1] [MQTT-4.7.1-1 of 3.1.1]
#[test]
fn wildcard_in_a_topic_name_ends_the_connection_and_reaches_nobody() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("wildcard");
        let mut witness = Client::connect(&broker, version);
        witness.subscribe(&format!("{stem}/#"), 2);
        for ending in ["/+", "/#", "/a+", "/+a", "/a#", "/#/a", "/+/a", "/a/+"] {
            for qos in 0..=2 {
                let mut client = Client::connect(&broker, version);
                client.publish(&format!("{stem}{ending}"), "x", qos, 1);
                client.assert_refused(&[0x81, 0x82, 0x90]);
            }
        }
        for topic in ["+", "#", "+/+", "/#"] {
            let mut client = Client::connect(&broker, version);
            client.publish(topic, "x", 1, 1);
            client.assert_refused(&[0x81, 0x82, 0x90]);
        }
        witness.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.1-2 of 3.1.1] [MQTT-4.7.1-3 of 3.1.1]
#[test]
fn filter_with_a_wildcard_in_the_wrong_place_is_refused() {
    let broker = Broker::start();
    for version in VERSIONS {
        let not_last = ["#/a", "a/#/b", "#/#", "a/#/", "/#/+"];
        let not_alone = ["a#", "#a", "a/b#", "##", "a/##", "+#"];
        let not_whole = ["a+", "+a", "a+b", "a/b+", "++", "a/++/b", "+a/+", "#+"];
        for filter in [&not_last[..], &not_alone, &not_whole].concat() {
            assert_filter_refused(filter.as_bytes(), version, &broker);
        }
    }
    broker.stop();
}

/// [MQTT-4.7.3-1] [MQTT-4.7.3-1 of 3.1.1]
#[test]
fn topic_names_and_filters_have_at_least_one_character() {
    let broker = Broker::start();
    for version in VERSIONS {
        for qos in 0..=2 {
            let mut client = Client::connect(&broker, version);
            client.publish("", "x", qos, 1);
            client.assert_refused(&[0x81, 0x82, 0x90]);
        }
        assert_filter_refused(b"", version, &broker);

        let mut client = Client::connect(&broker, version);
        client.subscribe("/", 0);
        Client::connect(&broker, version).deliver("/", "the shortest but one");
        assert_eq!(client.message().topic, "/");
    }
    broker.stop();
}

/// [MQTT-4.7.3-2] [MQTT-4.7.3-2 of 3.1.1]
#[test]
fn topic_names_and_filters_have_no_nul() {
    let broker = Broker::start();
    for version in VERSIONS {
        for text in ["\0", "a\0", "\0a", "a/\0/b"] {
            let mut client = Client::connect(&broker, version);
            client.send(&publish(version, text, b"x", 1, 1, false));
            client.assert_refused(&[0x81, 0x90]);
            for packet in requests(text.as_bytes(), version) {
                let mut client = Client::connect(&broker, version);
                client.send(&packet);
                client.assert_refused(&[0x81, 0x82]);
            }
        }
    }
    broker.stop();
}

/// More cannot be said on the wire. [MQTT-4.7.3-3] [MQTT-4.7.3-3 of 3.1.1]
#[test]
fn topic_names_and_filters_have_up_to_65535_bytes() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("long");
        let filled = |start: String, unit: &str| {
            let units = (65_535 - start.len()) / unit.len();
            start + &unit.repeat(units)
        };
        let levels = format!("{stem}/a/b/");
        for topic in [filled(stem.clone(), "l"), filled(stem.clone(), "ä"), filled(levels, "l")] {
            assert!(topic.len() >= 65_534);
            let mut exact = Client::connect(&broker, version);
            exact.subscribe(&topic, 1);
            let mut all = Client::connect(&broker, version);
            let tree = if topic.contains('/') { format!("{stem}/#") } else { topic.clone() };
            all.subscribe(&tree, 1);
            Client::connect(&broker, version).deliver(&topic, "x");
            assert!(exact.message().topic == topic && all.message().topic == topic);
            exact.unsubscribe(&topic);
        }
    }
    broker.stop();
}

/// Every filter against every topic, as a live message and as a retained one, by the rules of 4.7.1:
/// letter by letter, level by level. [MQTT-4.7.1-1] [MQTT-4.7.1-2] [MQTT-4.7.3-4]
/// [MQTT-4.7.1-2 of 3.1.1] [MQTT-4.7.1-3 of 3.1.1] [MQTT-4.7.3-4 of 3.1.1]
#[test]
fn filters_match_by_their_levels_and_nothing_is_normalised() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("match");
        let under = |ending: &str| format!("{stem}{ending}");
        let upper = stem.to_uppercase();
        let mut topics: Vec<String> = [
            // Empty levels are levels, in every place.
            "",
            "/",
            "//",
            "/a",
            "/a/",
            "//a",
            "/a//b",
            "/a/b",
            "/a/b/",
            "/a/b/c",
            "/a/b/c/d",
            // Case, blanks, dots and percent signs mean themselves.
            "/A",
            "/a/B",
            "/ a",
            "/a ",
            "/.",
            "/..",
            "/a/../b",
            "/%61",
            "/a\\b",
            "/*",
            "/?",
            // The same letter composed and not, ligatures, full width, a character of no meaning.
            "/\u{E4}",
            "/a\u{308}",
            "/\u{FB01}",
            "/fi",
            "/\u{FF41}",
            "/a\u{200B}",
            "/\u{FEFF}a",
            // `$` is a letter where it does not begin a topic; so is what no code page knows.
            "/$a",
            "/a/$",
            "/\u{10FFFD}",
            "/\u{1F980}/b",
        ]
        .map(under)
        .into();
        topics.extend([format!("/{stem}"), format!("/{stem}/a"), upper, format!("{stem}x/a")]);
        let mut filters = topics.clone();
        filters.extend(
            [
                "/#",
                "/+",
                "/+/",
                "/+/+",
                "/+/b",
                "/a/+",
                "/a/#",
                "/a/+/#",
                "/+/#",
                "/+/+/#",
                "/a/b/#",
                "/a/b/c/#",
                "/+/b/+",
                "/+//+",
                "//#",
                "//+",
                "/A/#",
                "/\u{E4}/#",
                "/$a/#",
                "/+/+/+/+",
                "/a/b/c/d/#",
            ]
            .map(under),
        );
        filters.extend([format!("+/{stem}"), format!("+/{stem}/#"), format!("/{stem}/+")]);
        let expected = |filter: &str| -> Vec<&str> {
            let levels: Vec<&str> = filter.split('/').collect();
            let matching = topics.iter().map(String::as_str);
            let mut matching: Vec<&str> = matching
                .filter(|it| matches(&levels, &it.split('/').collect::<Vec<_>>()))
                .collect();
            matching.sort_unstable();
            matching
        };

        let subscribed = |filter: &String| {
            let mut client = Client::connect(&broker, version);
            client.subscribe(filter, 0);
            client
        };
        let mut clients: Vec<Client> = filters.iter().map(subscribed).collect();
        let mut sender = Client::connect(&broker, version);
        for topic in &topics {
            sender.deliver_retained(topic, topic);
        }
        for (filter, client) in filters.iter().zip(&mut clients) {
            let mut came: Vec<String> =
                client.drain().into_iter().map(|message| message.topic).collect();
            came.sort_unstable();
            assert_eq!(came, expected(filter), "live: {filter:?}");
        }
        for filter in &filters {
            let mut client = subscribed(filter);
            let expected = expected(filter);
            let mut came: Vec<String> = expected.iter().map(|_| client.message().topic).collect();
            came.sort_unstable();
            assert_eq!(came, expected, "retained: {filter:?}");
            client.assert_silent();
        }
        topics.iter().for_each(|topic| sender.deliver_retained(topic, ""));
    }
    broker.stop();
}

/// Section 4.7.1, word for word.
fn matches(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) | ([], []) => true,
        (["+", filter @ ..], [_, topic @ ..]) => matches(filter, topic),
        ([level, filter @ ..], [name, topic @ ..]) => level == name && matches(filter, topic),
        _ => false,
    }
}

/// Retained and live, a topic of a client and those of the broker.
/// [MQTT-4.7.2-1] [MQTT-4.7.2-1 of 3.1.1]
#[test]
fn wildcard_in_first_place_matches_no_topic_that_begins_with_a_dollar() {
    let broker = Broker::start();
    for version in VERSIONS {
        let stem = unique("dollar");
        let (hidden, seen) = (format!("${stem}/r"), format!("{stem}/r"));
        let mut sender = Client::connect(&broker, version);
        sender.deliver_retained(&hidden, "x");
        sender.deliver_retained(&seen, "x");
        for filter in ["#", "+/r", "+/#", "+/+"] {
            let mut client = Client::connect(&broker, version);
            client.subscribe(filter, 0);
            for _ in 0..2 {
                // Whatever else there is, up to the one that has to come.
                loop {
                    let topic = client.message().topic;
                    assert!(!topic.starts_with('$'), "{topic} came by {filter}");
                    if topic == seen {
                        break;
                    }
                }
                sender.deliver(&hidden, "x");
                sender.deliver(&seen, "x");
            }
            let rest = client.drain();
            assert!(rest.iter().all(|message| !message.topic.starts_with('$')), "{rest:?}");
        }
        for filter in [&hidden, &format!("${stem}/#"), &format!("${stem}/+")] {
            let mut client = Client::connect(&broker, version);
            client.subscribe(filter, 0);
            assert_eq!(client.message().topic, hidden);
        }
        sender.deliver_retained(&hidden, "");
        sender.deliver_retained(&seen, "");
    }
    broker.stop();
}

/// A letter of the name is none of `/`, `+` and `#`, and there is one; a filter follows.
/// [MQTT-4.8.2-1] [MQTT-4.8.2-2]
#[test]
fn shared_filter_without_a_proper_name_or_filter_is_refused() {
    let broker = Broker::start();
    if !has_shared_subscriptions(&broker) {
        return;
    }
    for filter in [
        "$share/",
        "$share//",
        "$share//a",
        "$share/g",
        "$share/g/",
        "$share/+/a",
        "$share/#/a",
        "$share/g+/a",
        "$share/#g/a",
        "$share/+",
        "$share/#",
        "$share/g/a#",
        "$share/g/#/a",
        "$share/g/a+",
    ] {
        assert_filter_refused(filter.as_bytes(), V5, &broker);
    }
    // What looks like it and is not.
    let topic = unique("alike");
    for filter in [format!("$shared/g/{topic}"), format!("$SHARE/g/{topic}")] {
        let mut client = Client::connect(&broker, V5);
        client.subscribe(&filter, 0);
        let mut sender = Client::connect(&broker, V5);
        sender.deliver(&topic, "x");
        client.assert_silent();
    }
    broker.stop();
}

/// [MQTT-4.8.2-3]
#[test]
fn member_of_a_group_gets_messages_with_no_more_than_its_granted_qos() {
    let broker = Broker::start();
    if !has_shared_subscriptions(&broker) {
        return;
    }
    let topic = unique("granted");
    let mut alone: Vec<Client> = (0..=2).map(|qos| member(&broker, &topic, qos)).collect();
    let filter = format!("$share/{}/{topic}", unique("group"));
    let mut together: Vec<Client> = (0..=2)
        .map(|qos| {
            let mut client = Client::connect(&broker, V5);
            client.subscribe(&filter, qos);
            client
        })
        .collect();
    let mut sender = Client::connect(&broker, V5);
    for published in (0..=2).cycle().take(18) {
        sender.deliver_at(&topic, "x", published);
        for (granted, client) in alone.iter_mut().enumerate() {
            let came = client.receive(1);
            assert_eq!(came[0].qos, published.min(granted as u8));
        }
        let mut came = Vec::new();
        for (granted, client) in together.iter_mut().enumerate() {
            for message in client.drain() {
                client.take(&message);
                came.push((message.qos, published.min(granted as u8)));
            }
        }
        assert!(came.len() == 1 && came[0].0 == came[0].1, "{came:?}");
    }
    broker.stop();
}

/// [MQTT-4.8.2-4]
#[test]
fn qos_2_message_that_one_member_was_sent_is_completed_with_this_member_when_it_is_back() {
    let broker = Broker::start();
    if !has_shared_subscriptions(&broker) {
        return;
    }
    for is_received in [false, true] {
        let mut group = Group::with_one_message(2, 3600, &broker);
        let sent = group.sent.clone();
        if is_received {
            group.chosen.ack(PUBREC, sent.id);
            assert_eq!(group.chosen.next(), Got::Ack(PUBREL, sent.id, 0));
        }
        drop(group.chosen);
        let (mut chosen, present) = Hello::persistent(V5, &group.chosen_id).open(broker.addr());
        assert!(present);
        if is_received {
            assert_eq!(chosen.next(), Got::Ack(PUBREL, sent.id, 0));
            chosen.ack(PUBCOMP, sent.id);
        } else {
            let again = chosen.message();
            assert_eq!(again, Message { dup: true, ..sent });
            chosen.take(&again);
        }
        group.other.assert_silent();
        chosen.assert_silent();
    }
    broker.stop();
}

/// However the session ends. [MQTT-4.8.2-5]
#[test]
fn qos_2_message_that_one_member_was_sent_goes_to_no_other_when_its_session_ends() {
    let broker = Broker::start();
    if !has_shared_subscriptions(&broker) {
        return;
    }
    for (expiry_s, ends_by_disconnect) in [(0, false), (3600, false), (3600, true), (1, false)] {
        for is_received in [false, true] {
            let mut group = Group::with_one_message(2, expiry_s, &broker);
            if is_received {
                group.chosen.ack(PUBREC, group.sent.id);
                assert_eq!(group.chosen.next(), Got::Ack(PUBREL, group.sent.id, 0));
            }
            if ends_by_disconnect {
                group.chosen.send_disconnect(0, &[Property::SessionExpiryInterval(0)]);
                group.chosen.assert_closed();
            }
            drop(group.chosen);
            if expiry_s == 1 {
                group.sender.assert_silent_for(std::time::Duration::from_millis(1_200));
            }
            let (mut client, present) = Hello::new(V5, &group.chosen_id).open(broker.addr());
            assert!(!present);
            client.assert_silent();
            // Behind whatever the end of the session brought about.
            group.sender.deliver(&group.topic, "next");
            let came = group.other.drain();
            assert_eq!(came.iter().map(Message::text).collect::<Vec<_>>(), ["next"]);
        }
    }
    broker.stop();
}

/// [MQTT-4.8.2-6]
#[test]
fn message_that_one_member_refuses_goes_to_no_other_and_does_not_come_back() {
    let broker = Broker::start();
    if !has_shared_subscriptions(&broker) {
        return;
    }
    for (qos, first_byte) in [(1, PUBACK), (2, PUBREC)] {
        for code in [0x80, 0x83, 0x87, 0x90, 0x97, 0x99] {
            let mut group = Group::with_one_message(qos, 3600, &broker);
            group.chosen.ack_with(first_byte, group.sent.id, code, &[]);
            group.chosen.assert_silent();
            group.other.assert_silent();
            group.chosen.disconnect();
            let hello = Hello::persistent(V5, &group.chosen_id);
            let (mut chosen, present) = hello.open(broker.addr());
            assert!(present);
            chosen.assert_silent();
            drop(chosen);
            Hello::new(V5, &group.chosen_id).open(broker.addr()).0.assert_silent();
            group.sender.deliver(&group.topic, "next");
            let came = group.other.drain();
            assert_eq!(came.iter().map(Message::text).collect::<Vec<_>>(), ["next"]);
        }
    }
    broker.stop();
}

/// Two members with a message that one of them was sent.
struct Group {
    topic: String,
    sender: Client,
    chosen_id: String,
    chosen: Client,
    sent: Message,
    other: Client,
}

impl Group {
    fn with_one_message(qos: u8, expiry_s: u32, broker: &Broker) -> Self {
        let topic = unique("shared");
        let filter = format!("$share/{}/{topic}", unique("group"));
        let ids = [unique("member"), unique("member")];
        let mut members = ids.each_ref().map(|id| {
            let hello = Hello { clean_start: false, ..Hello::new(V5, id) };
            let hello = hello.with(Property::SessionExpiryInterval(expiry_s));
            let (mut client, _) = hello.open(broker.addr());
            client.subscribe(&filter, 2);
            client
        });
        let mut sender = Client::connect(broker, V5);
        sender.deliver_at(&topic, "shared", qos);
        let mut came = members.each_mut().map(Client::drain);
        assert_eq!(came[0].len() + came[1].len(), 1, "one member gets it: {came:?}");
        let index = usize::from(came[0].is_empty());
        let sent = came[index].remove(0);
        assert_eq!((sent.text(), sent.qos, sent.dup), ("shared", qos, false));
        let [first, second] = members;
        let (chosen, other) = if index == 0 { (first, second) } else { (second, first) };
        Self { topic, sender, chosen_id: ids[index].clone(), chosen, sent, other }
    }
}

/// The only member of its group.
fn member(broker: &Broker, topic: &str, qos: u8) -> Client {
    let mut client = Client::connect(broker, V5);
    client.subscribe(&format!("$share/{}/{topic}", unique("alone")), qos);
    client
}

/// A server may do without (section 3.2.2.3.13).
fn has_shared_subscriptions(broker: &Broker) -> bool {
    let client = Client::connect(broker, V5);
    client.properties().shared_subscription_available() != Some(false)
}

/// Ours answers each filter by its code; a broker may also close the connection.
#[track_caller]
fn assert_filter_refused(filter: &[u8], version: ProtocolVersion, broker: &Broker) {
    let is_closing = |got: &Got| {
        is_pointed_elsewhere() && matches!(got, Got::Disconnect(0x81 | 0x82 | 0x8F) | Got::Closed)
    };
    let text = String::from_utf8_lossy(filter);
    let [subscribe, unsubscribe] = requests(filter, version);
    let mut client = Client::connect(broker, version);
    client.send(&subscribe);
    let code = if version == V5 { 0x8F } else { 0x80 };
    let got = client.next();
    assert!(got == Got::SubAck(9, vec![code]) || is_closing(&got), "SUBSCRIBE {text}: {got:?}");
    let mut client = Client::connect(broker, version);
    client.send(&unsubscribe);
    let codes = if version == V5 { vec![0x8F] } else { vec![] };
    let got = client.next();
    assert!(got == Got::UnsubAck(9, codes) || is_closing(&got), "UNSUBSCRIBE {text}: {got:?}");
}

/// SUBSCRIBE and UNSUBSCRIBE with `filter`, whatever it is.
fn requests(filter: &[u8], version: ProtocolVersion) -> [Vec<u8>; 2] {
    let no_properties: &[u8] = if version == V5 { &[0] } else { &[] };
    let filter = &string(filter)[..];
    [
        frame(0x82, &[&[0, 9], no_properties, filter, &[1]]),
        frame(0xA2, &[&[0, 9], no_properties, filter]),
    ]
}

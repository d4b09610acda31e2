//! Shared subscriptions: who gets a message, and who gets it instead.
//!
//! What the standard leaves to the broker and this one promises: each message goes to exactly one member of
//! each group, evenly or as the strategy says; what a member did not get when it went away goes to
//! another one; nothing is lost and, at QoS 2, nothing doubled. What the standard itself says is proved in
//! `conformance::topics_and_sharing`.
//!
//! When a member is gone its messages are on their way to the others. A test that counts them first
//! waits for the same client identifier to be free, after which they are ahead of whatever is
//! published next: see [`settle`].

mod churn;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mailboxqtt::codec::{Property, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::{ProtocolVersion, Qos};

use crate::broker::Broker;
use crate::process::{PATIENCE, unique};
use crate::wire::{
    Client, Got, Hello, Message, PUBACK, PUBCOMP, PUBREC, PUBREL, Publication, VERSIONS, publish,
    wait_for_counter,
};

/// Members and publishers of both versions, exact and wildcard filters, topics on all shards.
#[test]
fn each_message_goes_to_exactly_one_member() {
    const MESSAGES: u16 = 240;
    let broker = Broker::start_with(&["--shards", "4"]);
    for filter_ending in ["x", "+", "#"] {
        for from in VERSIONS {
            let stem = unique("one");
            let filter = format!("$share/g/{stem}/{filter_ending}");
            let mut members: Vec<Client> = (0..6)
                .map(|number| join(&broker, VERSIONS[number % 2], &filter, (number % 3) as u8))
                .collect();
            let mut sender = Client::connect(&broker, from);
            let topics: &[&str] = if filter_ending == "x" { &["x"] } else { &["x", "y", "z"] };
            let publications = (0..MESSAGES).map(|number| {
                let topic = format!("{stem}/{}", topics[usize::from(number / 7) % topics.len()]);
                (topic, (number % 3) as u8, number.to_string())
            });
            publish_all(&mut sender, &publications.collect::<Vec<_>>());
            let mut came: Vec<u16> = Vec::new();
            for (number, member) in members.iter_mut().enumerate() {
                let messages = take_all(member);
                assert!(messages.iter().all(|it| it.qos <= (number % 3) as u8));
                came.extend(messages.iter().map(|it| it.text().parse::<u16>().unwrap()));
            }
            came.sort_unstable();
            assert_eq!(came, (0..MESSAGES).collect::<Vec<_>>());
        }
    }
    broker.stop();
}

#[test]
fn members_take_turns_with_single_messages_over_all_topics() {
    let broker = Broker::start_with(&["--shards", "3"]);
    for version in VERSIONS {
        let stem = unique("turns");
        let filter = format!("$share/g/{stem}/#");
        let mut members: Vec<Client> = (0..5).map(|_| join(&broker, version, &filter, 1)).collect();
        let mut sender = Client::connect(&broker, version);
        for number in 0..100 {
            sender.deliver(&format!("{stem}/{}", number % 17), "x");
        }
        let counts: Vec<usize> = members.iter_mut().map(|member| take_all(member).len()).collect();
        assert_eq!(counts, [20; 5]);
    }
    broker.stop();
}

/// A run of messages is cut into stretches, so that they need not be equal; but nearly.
#[test]
fn members_share_a_flood_nearly_evenly() {
    const MESSAGES: usize = 4_000;
    let broker = Broker::start();
    let topic = unique("flood");
    let mut members: Vec<Client> =
        (0..4).map(|_| join(&broker, V311, &format!("$share/g/{topic}"), 0)).collect();
    let mut sender = Client::connect(&broker, V311);
    let flood: Vec<u8> = (0..MESSAGES)
        .flat_map(|number| publish(V311, &topic, number.to_string().as_bytes(), 0, 0, false))
        .collect();
    sender.send(&flood);
    sender.deliver(&topic, "end");
    let counts: Vec<usize> = members.iter_mut().map(|member| take_all(member).len()).collect();
    assert_eq!(counts.iter().sum::<usize>(), MESSAGES + 1);
    let fair = MESSAGES / 4;
    assert!(counts.iter().all(|count| (fair * 3 / 4..=fair * 5 / 4).contains(count)), "{counts:?}");
    broker.stop();
}

#[test]
fn random_strategy_reaches_everybody_and_in_no_order() {
    let broker = Broker::start_configured("shared_strategy = \"random\"");
    let topic = unique("random");
    let mut members: Vec<Client> =
        (0..4).map(|_| join(&broker, V5, &format!("$share/g/{topic}"), 1)).collect();
    let mut sender = Client::connect(&broker, V5);
    let mut sequence = vec![0; 200];
    (0..200).for_each(|number| sender.deliver(&topic, number.to_string()));
    let mut counts = [0; 4];
    for (index, member) in members.iter_mut().enumerate() {
        for message in take_all(member) {
            sequence[message.text().parse::<usize>().unwrap()] = index;
            counts[index] += 1;
        }
    }
    assert_eq!(counts.iter().sum::<usize>(), 200);
    assert!(counts.iter().all(|count| (20..100).contains(count)), "{counts:?}");
    let turns = sequence.windows(2).filter(|pair| (pair[0] + 1) % 4 == pair[1]).count();
    assert!(turns < 100, "{turns} of 199 are to the next in turn");
    broker.stop();
}

#[test]
fn least_in_flight_strategy_spares_a_member_that_has_much_unacknowledged() {
    let broker = Broker::start_configured("shared_strategy = \"least_in_flight\"");
    let topic = unique("least");
    let filter = format!("$share/g/{topic}");
    let mut busy = join(&broker, V5, &filter, 1);
    let mut sender = Client::connect(&broker, V5);
    sender.deliver(&topic, vec![b'x'; 50_000]);
    let burden = busy.message();
    let mut idle = join(&broker, V5, &filter, 1);
    for _ in 0..20 {
        sender.deliver(&topic, "x");
        assert_eq!(take_all(&mut idle).len(), 1);
    }
    busy.assert_silent();
    busy.ack(PUBACK, burden.id);
    busy.assert_silent();
    // Both have nothing: whoever is first does not get two before the other has one.
    for _ in 0..10 {
        sender.deliver(&topic, "x");
        sender.deliver(&topic, "x");
        assert_eq!((take_all(&mut busy).len(), take_all(&mut idle).len()), (1, 1));
    }
    broker.stop();
}

/// Publishers stay with their members, also in a flood, until the members go; and topics likewise.
#[test]
fn sticky_strategies_stick_to_a_publisher_or_to_a_topic() {
    for by_topic in [false, true] {
        let strategy = if by_topic { "sticky_topic" } else { "sticky_publisher" };
        let broker = Broker::start_configured(&format!("shared_strategy = \"{strategy}\""));
        let stem = unique("sticky");
        let filter = format!("$share/g/{stem}/+");
        let mut members: Vec<Client> = (0..4).map(|_| join(&broker, V5, &filter, 1)).collect();
        let mut senders: Vec<Client> = (0..24).map(|_| Client::connect(&broker, V311)).collect();
        // To each key its member.
        let mut round = |members: &mut [Client], count: u8| -> BTreeMap<String, usize> {
            for (sender, client) in senders.iter_mut().enumerate() {
                let list = (0..count).map(|number| {
                    let topic = (sender + usize::from(number)) % 24;
                    let key = if by_topic { topic } else { sender };
                    (format!("{stem}/{topic}"), number % 2, key.to_string())
                });
                publish_all(client, &list.collect::<Vec<_>>());
            }
            let mut home = BTreeMap::new();
            for (index, member) in members.iter_mut().enumerate() {
                for message in take_all(member) {
                    let earlier = home.insert(message.text().to_owned(), index);
                    assert!(earlier.is_none_or(|earlier| earlier == index), "{strategy}");
                }
            }
            assert_eq!(home.len(), 24, "{strategy}");
            home
        };
        let first = round(&mut members, 10);
        assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 4, "{strategy}: {first:?}");
        assert_eq!(round(&mut members, 30), first);
        let gone = members.pop().unwrap();
        gone.disconnect();
        let moved = round(&mut members, 10);
        let stayed = first.iter().filter(|(_, home)| **home != 3);
        stayed.for_each(|(key, home)| assert_eq!(moved[key], *home, "{strategy}"));
        broker.stop();
    }
}

/// Section 4.8.2: a copy for what it has subscribed to itself, and perhaps another one as a member.
#[test]
fn plain_subscription_and_groups_each_give_a_copy() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("copies");
        let mut all = Client::connect(&broker, version);
        let filters = [
            (format!("$share/one/{topic}"), 1),
            (format!("$share/two/{topic}"), 2),
            (format!("$share/one/{topic}/#"), 0),
            (topic.clone(), 2),
        ];
        let filters: Vec<(&str, u8)> = filters.iter().map(|(it, qos)| (&it[..], *qos)).collect();
        assert_eq!(all.subscribe_all(&filters), [1, 2, 0, 2]);
        let mut other = join(&broker, version, &format!("$share/two/{topic}"), 2);
        let mut sender = Client::connect(&broker, version);
        let mut both = Vec::new();
        for _ in 0..2 {
            sender.deliver_at(&topic, "x", 2);
            let mut own: Vec<u8> = take_all(&mut all).iter().map(|message| message.qos).collect();
            own.sort_unstable();
            let others = take_all(&mut other).len();
            both.push((own, others));
        }
        both.sort();
        assert_eq!(both, [(vec![0, 1, 2], 1), (vec![0, 1, 2, 2], 0)]);
    }
    broker.stop();
}

/// Section 3.3.4: those of the subscription by which it comes, which is one.
#[test]
fn subscription_identifier_is_that_of_the_member_and_of_the_group() {
    let broker = Broker::start();
    let topic = unique("ids");
    let group = format!("$share/g/{topic}");
    let tree = format!("$share/g/{topic}/#");
    let subscribe = |client: &mut Client, filter: &str, qos, identifier| {
        let options = SubscribeOptions::new(Qos::new(qos).unwrap());
        let list = [Property::SubscriptionIdentifier(identifier)];
        let id = client.send_subscribe_with(&[(filter, options)], &list);
        assert_eq!(client.next(), Got::SubAck(id, vec![qos]));
    };
    let identifiers = |client: &mut Client| {
        let messages = take_all(client);
        let of = |it: &Message| it.properties().subscription_identifiers().collect::<Vec<_>>();
        messages.iter().map(of).collect::<Vec<_>>()
    };
    let mut first = Client::connect(&broker, V5);
    subscribe(&mut first, &group, 1, 11);
    subscribe(&mut first, &tree, 0, 300);
    subscribe(&mut first, &topic, 1, 70_000);
    let mut second = Client::connect(&broker, V5);
    subscribe(&mut second, &group, 1, 22);
    let mut third = join(&broker, V5, &group, 1);
    let mut sender = Client::connect(&broker, V311);
    let mut by_group = BTreeSet::new();
    for _ in 0..3 {
        sender.deliver(&topic, "x");
        let mut own = identifiers(&mut first);
        own.sort();
        // What comes to it alone, and perhaps what comes to one of three.
        own.retain(|list| *list != [300] && *list != [70_000]);
        let came = [own, identifiers(&mut second), identifiers(&mut third)].concat();
        assert_eq!(came.len(), 1, "{came:?}");
        by_group.extend(came);
    }
    assert_eq!(by_group, BTreeSet::from([vec![], vec![11], vec![22]]));
    // A subscription that is made again.
    subscribe(&mut second, &group, 0, 23);
    first.disconnect();
    third.disconnect();
    sender.deliver(&topic, "x");
    let message = second.message();
    let list: Vec<u32> = message.properties().subscription_identifiers().collect();
    assert_eq!((message.qos, list), (0, vec![23]));
    broker.stop();
}

/// Section 4.8.2: not at the subscription, whatever Retain Handling says; live ones as always.
#[test]
fn group_gets_no_retained_messages_when_it_is_subscribed_to() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("retained");
        let mut sender = Client::connect(&broker, version);
        sender.deliver_retained(&topic, "kept");
        for ending in ["", "/#"] {
            let mut member = Client::connect(&broker, version);
            for _ in 0..2 {
                member.subscribe(&format!("$share/g/{topic}{ending}"), 1);
                member.assert_silent();
            }
            // It was not only late.
            let plain = unique("retained");
            member.subscribe(&plain, 1);
            sender.deliver(&plain, "end");
            assert_eq!(member.message().text(), "end");
        }
        let mut member = Client::connect(&broker, V5);
        let retain_as_published = SubscribeOptions {
            retain_as_published: true,
            ..SubscribeOptions::new(Qos::AtMostOnce)
        };
        member.subscribe_with(&[(&format!("$share/h/{topic}"), retain_as_published)]);
        sender.deliver_retained(&topic, "new");
        let message = member.message();
        assert_eq!((message.text(), message.retain), ("new", true));
    }
    broker.stop();
}

#[test]
fn member_that_unsubscribes_gets_no_more_and_the_others_get_all() {
    let broker = Broker::start();
    for version in VERSIONS {
        let topic = unique("leaving");
        let filter = format!("$share/g/{topic}");
        let mut members: Vec<Client> = (0..3).map(|_| join(&broker, version, &filter, 1)).collect();
        let mut sender = Client::connect(&broker, version);
        let (gone, nothing): (&[u8], &[u8]) =
            if version == V5 { (&[0], &[0x11]) } else { (&[], &[]) };
        // Not that group, and not that filter by itself.
        assert_eq!(members[0].unsubscribe(&format!("$share/h/{topic}")), nothing);
        assert_eq!(members[0].unsubscribe(&topic), nothing);
        while let Some(mut leaving) = members.pop() {
            for _ in 0..6 {
                sender.deliver(&topic, "x");
            }
            let share = 6 / (members.len() + 1);
            for member in members.iter_mut().chain([&mut leaving]) {
                assert_eq!(take_all(member).len(), share);
            }
            assert_eq!(leaving.unsubscribe(&filter), gone);
            assert_eq!(leaving.unsubscribe(&filter), nothing);
            sender.deliver(&topic, "x");
            leaving.assert_silent();
            members.iter_mut().for_each(|member| drop(take_all(member)));
        }
        // Nobody is left.
        sender.publish(&topic, "x", 1, 9);
        let code = if version == V5 { 0x10 } else { 0 };
        assert_eq!(sender.next(), Got::Ack(PUBACK, 9, code));
    }
    broker.stop();
}

/// Connected members first; if there is none one that is away has it when it is back.
#[test]
fn member_that_is_away_gets_messages_only_while_nobody_is_there() {
    let broker = Broker::start_configured("sys_interval_s = 1");
    for version in VERSIONS {
        let topic = unique("away");
        let filter = format!("$share/g/{topic}");
        let ids = [unique("away"), unique("away")];
        for id in &ids {
            let (mut client, _) = Hello::persistent(version, id).open(broker.addr());
            client.subscribe(&filter, 1);
            client.disconnect();
        }
        let mut there = join(&broker, version, &filter, 1);
        let mut sender = Client::connect(&broker, version);
        for number in 0..9 {
            sender.deliver(&topic, number.to_string());
        }
        assert_eq!(take_all(&mut there).len(), 9);
        there.disconnect();
        for number in 0..8 {
            sender.deliver(&topic, number.to_string());
        }
        let mut came = Vec::new();
        for id in &ids {
            let (mut client, present) = Hello::persistent(version, id).open(broker.addr());
            assert!(present);
            came.extend(take_all(&mut client).iter().map(|message| message.text().to_owned()));
            client.disconnect();
        }
        came.sort();
        assert_eq!(came, (0..8).map(|number| number.to_string()).collect::<Vec<_>>());
    }
    // At QoS 0 nobody waits for anybody.
    let topic = unique("away");
    let id = unique("away");
    let (mut client, _) = Hello::persistent(V5, &id).open(broker.addr());
    client.subscribe(&format!("$share/g/{topic}"), 1);
    client.disconnect();
    let mut sender = Client::connect(&broker, V5);
    (0..5).for_each(|_| sender.deliver_at(&topic, "x", 0));
    wait_for_counter(&broker, "publish/messages/dropped/offline", 5);
    let (mut client, _) = Hello::persistent(V5, &id).open(broker.addr());
    client.assert_silent();
    broker.stop();
}

/// However a client goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Leave {
    Disconnect,
    Drop,
    /// Another connection takes the session over.
    TakeOver,
    /// Another connection begins anew.
    CleanStart,
    /// Its session has an interval, which passes.
    Expire,
    /// Nothing is heard of it for longer than its Keep Alive allows.
    FallSilent,
}

/// The window of a member is two; whatever else waits for it goes to the others when it goes. What it was
/// sent waits for it, unless its session ends: then QoS 1 goes, too, and QoS 2 must not.
#[test]
fn what_a_member_did_not_get_goes_to_the_others_once_when_it_goes() {
    use Leave::{CleanStart, Disconnect, Drop, Expire, FallSilent, TakeOver};
    const MESSAGES: u16 = 30;
    let broker = Broker::start_configured("inflight_max = 2");
    let ends = [Disconnect, Drop, CleanStart].map(|leave| (leave, false));
    let stays = [Disconnect, Drop, TakeOver, FallSilent, CleanStart, Expire].map(|it| (it, true));
    for version in VERSIONS {
        for (leave, is_persistent) in ends.into_iter().chain(stays) {
            let is_v5_only = leave == Expire;
            if is_v5_only && version != V5 {
                continue;
            }
            println!("{version:?} {leave:?} of a session that is persistent: {is_persistent}");
            let (id, topic) = (unique("goes"), unique("goes"));
            let filter = format!("$share/g/{topic}");
            let mut hello = Hello { clean_start: !is_persistent, ..Hello::new(version, &id) };
            if version == V5 && is_persistent {
                let seconds = if leave == Expire { 1 } else { 3600 };
                hello = hello.with(Property::SessionExpiryInterval(seconds));
            }
            hello.keep_alive_s = if leave == FallSilent { 2 } else { 0 };
            let (mut member, _) = hello.open(broker.addr());
            member.subscribe(&filter, 2);
            let mut sender = Client::connect(&broker, version);
            // The first is of QoS 1 and the second of QoS 2.
            let list = (0..MESSAGES)
                .map(|number| (topic.clone(), 1 + (number % 2) as u8, number.to_string()));
            publish_all(&mut sender, &list.collect::<Vec<_>>());
            assert_eq!((member.message().text(), member.message().text()), ("0", "1"));
            let mut others: Vec<Client> =
                VERSIONS.map(|version| join(&broker, version, &filter, 2)).into();

            let has_ended = !is_persistent || matches!(leave, CleanStart | Expire);
            let next = Hello { clean_start: has_ended, ..hello.clone() };
            let mut clock = Client::connect(&broker, V5);
            match leave {
                Disconnect => member.disconnect(),
                Drop => drop(member),
                // The one that comes next ends it.
                TakeOver | CleanStart => (),
                Expire => {
                    drop(member);
                    clock.assert_silent_for(Duration::from_millis(1_200));
                }
                FallSilent => member.assert_closed_with(0x8D),
            }
            let (back, present) = next.open(broker.addr());
            assert_eq!(present, !has_ended);
            settle(&mut sender, &topic);

            let due = (0..MESSAGES).filter(|number| match number {
                0 => has_ended,
                1 => false,
                _ => true,
            });
            // For whom it is meant now, it is sent for the first time.
            let due: Vec<(u16, bool)> = due.map(|number| (number, false)).collect();
            let came = gather(&mut others, due.len());
            let came = came.iter().map(|it| (it.text().parse::<u16>().unwrap(), it.dup));
            assert_eq!(came.collect::<BTreeSet<_>>(), due.into_iter().collect::<BTreeSet<_>>());
            let own = gather(&mut [back], 0);
            let own: Vec<(&str, bool)> = own.iter().map(|it| (it.text(), it.dup)).collect();
            assert_eq!(own, if has_ended { vec![] } else { vec![("0", true), ("1", true)] });
        }
    }
    broker.stop();
}

/// Whoever else is away, too, does not get them for that.
#[test]
fn messages_of_the_only_member_that_comes_back_wait_for_it_in_their_order() {
    let broker = Broker::start_configured("inflight_max = 3");
    for (version, has_other) in VERSIONS.into_iter().flat_map(|it| [(it, false), (it, true)]) {
        let (id, topic) = (unique("only"), unique("only"));
        let hello = Hello::persistent(version, &id);
        let (mut member, _) = hello.open(broker.addr());
        member.subscribe(&format!("$share/g/{topic}"), 2);
        let other = unique("only");
        if has_other {
            let (mut client, _) = Hello::persistent(version, &other).open(broker.addr());
            client.subscribe(&format!("$share/g/{topic}"), 2);
            client.disconnect();
        }
        let mut sender = Client::connect(&broker, version);
        (0..20).for_each(|number| sender.deliver_at(&topic, number.to_string(), 1));
        let first = (0..3).map(|_| member.message()).collect::<Vec<_>>();
        member.ack(PUBACK, first[0].id);
        assert_eq!(member.message().text(), "3");
        for _ in 0..3 {
            drop(member);
            member = hello.open(broker.addr()).0;
        }
        let came = take_all(&mut member);
        let came: Vec<(&str, bool)> = came.iter().map(|it| (it.text(), it.dup)).collect();
        let expected: Vec<String> = (1..20).map(|number| number.to_string()).collect();
        let expected = expected.iter().enumerate().map(|(at, text)| (&text[..], at < 3));
        assert_eq!(came, expected.collect::<Vec<_>>());
        if has_other {
            Hello::persistent(version, &other).open(broker.addr()).0.assert_silent();
        }
    }
    broker.stop();
}

/// As a new delivery, in the version and with the QoS of whoever has it now, and with all that it is.
#[test]
fn message_that_is_handed_over_is_the_same_for_the_next_member() {
    let broker = Broker::start();
    let topic = unique("same");
    let group = format!("$share/g/{topic}");
    let id = unique("same");
    let (mut member, _) = Hello::new(V5, &id).with(Property::ReceiveMaximum(1)).open(broker.addr());
    member.subscribe(&group, 1);
    let mut sender = Client::connect(&broker, V5);
    let list = [
        Property::ContentType("text/plain"),
        Property::UserProperty { name: "a", value: "1" },
        Property::UserProperty { name: "a", value: "2" },
        Property::CorrelationData(b"\0\xFF"),
    ];
    for number in 1..=3 {
        let text = number.to_string();
        let publication = Publication::new(&topic, &text)
            .qos(2, number)
            .with(Property::MessageExpiryInterval(1_000));
        let publication = list.iter().fold(publication, |publication, it| publication.with(*it));
        sender.send_publication(&publication);
        assert_eq!(sender.next(), Got::Ack(PUBREC, number, 0));
        sender.ack(PUBREL, number);
        assert_eq!(sender.next(), Got::Ack(PUBCOMP, number, 0));
    }
    assert_eq!(member.message().qos, 1);
    let mut new = Client::connect(&broker, V5);
    let options = SubscribeOptions::new(Qos::ExactlyOnce);
    let identifier = [Property::SubscriptionIdentifier(9)];
    let packet_id = new.send_subscribe_with(&[(&group, options)], &identifier);
    assert_eq!(new.next(), Got::SubAck(packet_id, vec![2]));
    let mut old = join(&broker, V311, &group, 0);
    drop(member);
    Hello::new(V5, &id).open(broker.addr()).0.disconnect();
    settle(&mut sender, &topic);
    let (by_new, by_old) = (take_all(&mut new), take_all(&mut old));
    let texts = by_new.iter().chain(&by_old).map(Message::text).filter(|text| *text != SETTLED);
    assert_eq!(texts.collect::<BTreeSet<_>>(), ["1", "2", "3"].into());
    assert!(by_old.iter().all(|message| message.qos == 0 && message.properties.is_empty()));
    for message in by_new.iter().filter(|message| message.text() != SETTLED) {
        assert_eq!((message.qos, message.dup), (2, false));
        let properties = message.properties();
        let left_s = properties.message_expiry_interval_s().unwrap();
        assert!((900..=1_000).contains(&left_s), "{left_s} seconds left");
        assert_eq!(properties.subscription_identifiers().collect::<Vec<_>>(), [9]);
        let others = properties.iter().filter(|it| {
            !matches!(it, Property::MessageExpiryInterval(_) | Property::SubscriptionIdentifier(_))
        });
        assert_eq!(others.collect::<Vec<_>>(), list);
    }
    broker.stop();
}

/// The queue of a member that does not acknowledge holds ten, behind one that was sent.
#[test]
fn member_whose_queue_is_full_is_passed_over_and_nothing_is_lost() {
    let broker = Broker::start_configured(
        "queue_policy = \"drop_newest\"\nqueue_messages_max = 10\ninflight_max = 1\nsys_interval_s = 1",
    );
    let mut total = 0;
    for version in VERSIONS {
        let topic = unique("full");
        let filter = format!("$share/g/{topic}");
        let mut stuck = join(&broker, version, &filter, 1);
        let mut working = join(&broker, version, &filter, 1);
        let mut sender = Client::connect(&broker, version);
        let mut came = Vec::new();
        for number in 0..60 {
            sender.deliver(&topic, number.to_string());
            came.extend(take_all(&mut working));
        }
        let late = take_all(&mut stuck);
        assert_eq!((late.len(), came.len()), (11, 49));
        let texts = came.iter().chain(&late).map(Message::text).collect::<BTreeSet<_>>();
        assert_eq!(texts.len(), 60);

        // When all are full there is nobody to give it to: that is counted.
        for number in 0..30 {
            sender.deliver(&topic, number.to_string());
        }
        let counts = (take_all(&mut stuck).len(), take_all(&mut working).len());
        assert_eq!(counts, (11, 11));
        total += 8;
        assert_eq!(wait_for_counter(&broker, "publish/messages/dropped/queue_full", total), total);
    }
    broker.stop();
}

/// What a member gives back to the queue limit is what it held: shared messages that were sent in part, and
/// others that wait with them.
#[test]
fn queue_limit_is_right_after_messages_were_handed_over() {
    let broker = Broker::start_configured(
        "queue_policy = \"drop_newest\"\nqueue_messages_max = 20\ninflight_max = 5",
    );
    for version in VERSIONS {
        let (id, topic, plain) = (unique("account"), unique("account"), unique("account"));
        let hello = Hello::persistent(version, &id);
        let (mut member, _) = hello.open(broker.addr());
        member.subscribe(&format!("$share/g/{topic}"), 1);
        member.subscribe(&plain, 1);
        let mut sender = Client::connect(&broker, version);
        // In one run, of which five are sent.
        let shared = (0..12).map(|_| (topic.clone(), 1, "shared".to_owned()));
        publish_all(&mut sender, &shared.collect::<Vec<_>>());
        member.drain();
        for _ in 0..8 {
            sender.deliver(&plain, "plain");
        }
        let mut other = join(&broker, version, &format!("$share/g/{topic}"), 1);
        member.disconnect();
        // Seven go; eight stay, and there is room for twelve and not for more.
        assert_eq!(other.receive(7).len(), 7);
        for _ in 0..30 {
            sender.deliver(&plain, "plain");
        }
        let (mut member, _) = hello.open(broker.addr());
        let came = take_all(&mut member);
        let plain = came.iter().filter(|message| message.text() == "plain").count();
        assert_eq!((plain, came.len() - plain), (20, 5));
    }
    broker.stop();
}

/// A new client that is a member of the group of `filter`.
fn join(broker: &Broker, version: ProtocolVersion, filter: &str, qos: u8) -> Client {
    let mut client = Client::connect(broker, version);
    client.subscribe(filter, qos);
    client
}

/// Publishes topic, QoS and payload of each, some in one write, and completes their flows.
fn publish_all(sender: &mut Client, list: &[(String, u8, String)]) {
    for some in list.chunks(100) {
        let mut bytes = Vec::new();
        let mut answers_due = 0;
        for (id, (topic, qos, payload)) in (1..).zip(some) {
            bytes.extend(publish(sender.version(), topic, payload.as_bytes(), *qos, id, false));
            answers_due += usize::from(*qos);
        }
        sender.send(&bytes);
        for _ in 0..answers_due {
            match sender.next() {
                Got::Ack(PUBACK | PUBCOMP, _, 0 | 0x10) => (),
                Got::Ack(PUBREC, id, 0 | 0x10) => sender.ack(PUBREL, id),
                other => panic!("{other:?}"),
            }
        }
    }
    if list.iter().any(|(_, qos, _)| *qos == 0) {
        // Nothing says of these when they are routed, but they are ahead of what concerns all shards.
        let filter = format!("{}/#", unique("behind"));
        sender.subscribe(&filter, 0);
        sender.unsubscribe(&filter);
    }
}

/// Everything that is on its way to `client`, acknowledged to the end, and what that makes room for.
#[track_caller]
fn take_all(client: &mut Client) -> Vec<Message> {
    let mut all = Vec::new();
    loop {
        let came = client.drain_packets();
        if came.is_empty() {
            return all;
        }
        for got in came {
            match got {
                Got::Publish(message) => {
                    match message.qos {
                        0 => (),
                        1 => client.ack(PUBACK, message.id),
                        _ => client.ack(PUBREC, message.id),
                    }
                    all.push(message);
                }
                Got::Ack(PUBREL, id, 0) => client.ack(PUBCOMP, id),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// What comes to `clients` until it is `count` messages, and whatever else is on its way then.
#[track_caller]
fn gather(clients: &mut [Client], count: usize) -> Vec<Message> {
    let deadline = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    let mut is_complete = false;
    while !is_complete {
        assert!(Instant::now() < deadline, "{} messages of {count} came: {all:?}", all.len());
        is_complete = all.len() >= count;
        for client in &mut *clients {
            all.extend(take_all(client));
        }
        all.retain(|message: &Message| message.text() != SETTLED);
    }
    all
}

/// What [`settle`] publishes.
const SETTLED: &str = "settled";

/// Behind everything that was handed over to the shard of `topic` before.
fn settle(sender: &mut Client, topic: &str) {
    sender.deliver(topic, SETTLED);
}

//! Queues at their limits: who is told, what is dropped, and that nothing comes twice or out of order.

use std::time::Instant;

use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::broker::Broker;
use crate::process::{PATIENCE, unique};
use crate::wire::{Client, Got, Hello, PUBACK, PUBREC, Publication, VERSIONS, wait_for_counter};

const QUOTA_EXCEEDED: u8 = 0x97;

/// A session that waits for `topic` without a client.
fn leave(broker: &Broker, id: &str, topic: &str) {
    let (mut client, _) = Hello::persistent(V5, id).open(broker.addr());
    client.subscribe(topic, 2);
    client.disconnect();
}

/// What waits for it, acknowledged.
fn texts_of(client: &mut Client, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for message in client.receive(count) {
        texts.push(message.text().to_owned());
    }
    client.assert_silent();
    texts
}

#[test]
fn message_for_a_full_queue_is_refused_as_a_whole_and_comes_once_when_there_is_room() {
    let settings = "queue_messages_max = 3\nsys_interval_s = 1";
    let broker = Broker::start_configured(settings);
    for (qos, answer) in [(1, PUBACK), (2, PUBREC)] {
        let (topic, id) = (unique("full"), unique("away"));
        leave(&broker, &id, &topic);
        let mut other = Client::connect(&broker, V311);
        other.subscribe(&topic, 2);
        let mut sender = Client::connect(&broker, V5);
        for text in ["a", "b", "c"] {
            sender.deliver_at(&topic, text, qos);
        }
        assert_eq!(texts_of(&mut other, 3), ["a", "b", "c"]);
        for number in [101, 102] {
            sender.publish(&topic, "d", qos, number);
            assert_eq!(sender.next(), Got::Ack(answer, number, QUOTA_EXCEEDED));
            let why = sender.properties().reason_string().unwrap().to_owned();
            assert!(why.contains("the queue of a session"), "{why}");
        }
        other.assert_silent();

        let (mut back, was_present) = Hello::persistent(V5, &id).open(broker.addr());
        assert!(was_present);
        assert_eq!(texts_of(&mut back, 3), ["a", "b", "c"]);
        sender.deliver_at(&topic, "d", qos);
        assert_eq!(texts_of(&mut other, 1), ["d"]);
        assert_eq!(texts_of(&mut back, 1), ["d"]);
    }
    wait_for_counter(&broker, "publish/messages/refused/queue_full", 4);
    broker.stop();
}

/// The standard has no word for it before version 5: the connection ends instead [MQTT-4.8.0-2 of 3.1.1], and
/// the client, which was told nothing, sends the message again.
#[test]
fn older_client_whose_message_has_no_room_is_not_acknowledged_and_keeps_its_order() {
    let broker = Broker::start_configured("queue_messages_max = 2");
    let (topic, id, sender_id) = (unique("full"), unique("away"), unique("sender"));
    leave(&broker, &id, &topic);
    for qos in [1, 2] {
        let hello = Hello::persistent(V311, &sender_id);
        let (mut sender, _) = hello.open(broker.addr());
        sender.deliver_at(&topic, "a", qos);
        sender.deliver_at(&topic, "b", qos);
        sender.publish(&topic, "c", qos, 201);
        sender.publish("elsewhere", "not accepted either", qos, 202);
        sender.assert_closed();

        // As long as there is no room it goes on like this; then all comes once, and in order.
        let (mut back, _) = Hello::persistent(V5, &id).open(broker.addr());
        assert_eq!(texts_of(&mut back, 2), ["a", "b"]);
        let (mut sender, _) = hello.open(broker.addr());
        for (id, text) in [(201, "c"), (203, "d")] {
            sender.send_publication(&Publication::new(&topic, text).qos(qos, id).dup());
            sender.complete(qos, id);
        }
        assert_eq!(texts_of(&mut back, 2), ["c", "d"]);
        back.disconnect();
    }
    broker.stop();
}

#[test]
fn queue_that_drops_its_oldest_holds_the_newest_with_and_without_a_client() {
    let settings = "queue_policy = \"drop_oldest\"\nqueue_messages_max = 10\ninflight_max = 1\n\
                    sys_interval_s = 1";
    let broker = Broker::start_configured(settings);
    let mut evicted = 0;
    for version in VERSIONS {
        let (topic, id) = (unique("newest"), unique("away"));
        leave(&broker, &id, &topic);
        let mut stuck = Client::connect(&broker, version);
        stuck.subscribe(&topic, 1);
        let mut sender = Client::connect(&broker, version);
        for number in 0..50 {
            sender.deliver(&topic, number.to_string());
        }
        // One was sent, and ten wait behind it.
        evicted += 39 + 40;
        wait_for_counter(&broker, "publish/messages/dropped/queue_evicted", evicted);
        let newest: Vec<String> = (40..50).map(|number| number.to_string()).collect();
        let first = stuck.message();
        assert_eq!(first.text(), "0");
        stuck.take(&first);
        assert_eq!(texts_of(&mut stuck, 10), newest);
        let (mut back, _) = Hello::persistent(V5, &id).open(broker.addr());
        assert_eq!(texts_of(&mut back, 10), newest);
    }
    broker.stop();
}

#[test]
fn all_queues_together_have_a_limit_of_their_own() {
    let broker = Broker::start_configured("queues_messages_max = 5\nsys_interval_s = 1");
    let (topic, ids) = (unique("all"), [unique("one"), unique("two")]);
    let mut sender = Client::connect(&broker, V5);
    leave(&broker, &ids[0], &topic);
    leave(&broker, &ids[1], &topic);
    for number in 1..=3 {
        sender.publish(&topic, "x", 1, number);
        assert_eq!(sender.next(), Got::Ack(PUBACK, number, 0));
    }
    sender.publish(&topic, "too many", 1, 4);
    assert_eq!(sender.next(), Got::Ack(PUBACK, 4, QUOTA_EXCEEDED));
    let why = sender.properties().reason_string().unwrap().to_owned();
    assert!(why.contains("the queues of the broker"), "{why}");
    // Who reads at once, and who waits for nothing, is not concerned.
    let mut reader = Client::connect(&broker, V5);
    reader.subscribe("read", 1);
    sender.deliver("read", "x");
    assert_eq!(texts_of(&mut reader, 1), ["x"]);
    sender.publish("nobody", "x", 1, 5);
    assert_eq!(sender.next(), Got::Ack(PUBACK, 5, 0x10));
    wait_for_counter(&broker, "publish/messages/refused/queues_full", 1);

    let (mut back, _) = Hello::persistent(V5, &ids[0]).open(broker.addr());
    assert_eq!(texts_of(&mut back, 3).len(), 3);
    sender.publish(&topic, "again", 1, 6);
    assert_eq!(sender.next(), Got::Ack(PUBACK, 6, 0));
    broker.stop();
}

#[test]
fn will_for_a_full_queue_is_dropped_there_and_comes_to_the_others() {
    let broker = Broker::start_configured("queue_messages_max = 1\nsys_interval_s = 1");
    let (topic, id) = (unique("will"), unique("away"));
    leave(&broker, &id, &topic);
    let mut sender = Client::connect(&broker, V5);
    sender.deliver(&topic, "a");
    let mut other = Client::connect(&broker, V5);
    other.subscribe(&topic, 1);
    let hello = Hello::new(V5, "mourned").will(&topic, "will", 1, false);
    drop(hello.open(broker.addr()));
    assert_eq!(texts_of(&mut other, 1), ["will"]);
    wait_for_counter(&broker, "publish/messages/dropped/queue_full", 1);
    broker.stop();
}

/// Messages that must be kept stop before the disk is full; what gives space back goes on, and then they do.
#[test]
fn disk_limit_refuses_what_must_be_kept_until_space_is_given_back() {
    let settings = "disk_bytes_max = 33554432\nqueue_bytes_max = 1000000000\nsys_interval_s = 1";
    let broker = Broker::start_configured(settings);
    let (topic, id) = (unique("disk"), unique("away"));
    leave(&broker, &id, &topic);
    let mut sender = Client::connect(&broker, V5);
    let payload = vec![b'x'; 100_000];
    let refused_at = (1..=1000).find(|number| {
        sender.publish(&topic, &payload, 1, *number);
        let Got::Ack(PUBACK, _, code) = sender.next() else { panic!("no PUBACK") };
        assert!(code == 0 || code == QUOTA_EXCEEDED, "{code:#x}");
        code != 0
    });
    let refused_at = refused_at.expect("the limit is never reached");
    assert!((50..400).contains(&refused_at), "refused at message {refused_at}");
    let why = sender.properties().reason_string().unwrap().to_owned();
    assert!(why.contains("disk"), "{why}");
    // What nobody has to keep is delivered as ever.
    let mut clean = Client::connect(&broker, V5);
    clean.subscribe("other", 1);
    sender.deliver("other", "x");
    assert_eq!(texts_of(&mut clean, 1), ["x"]);
    wait_for_counter(&broker, "publish/messages/refused/disk_full", 1);

    let (mut back, _) = Hello::persistent(V5, &id).open(broker.addr());
    let texts = back.receive(usize::from(refused_at) - 1);
    assert!(texts.iter().all(|message| message.payload == payload));
    let deadline = Instant::now() + PATIENCE;
    loop {
        sender.publish(&topic, &payload, 1, 2000);
        match sender.next() {
            Got::Ack(PUBACK, _, 0) => break,
            answer => assert_eq!(answer, Got::Ack(PUBACK, 2000, QUOTA_EXCEEDED)),
        }
        assert!(Instant::now() < deadline, "space was not given back");
        back.assert_silent();
    }
    assert_eq!(back.message().payload, payload);
    broker.stop();
}

/// A client over its rate is not read, and loses nothing.
#[test]
fn who_publishes_faster_than_allowed_is_slowed_down() {
    let broker = Broker::start_configured("publish_rate_max = 200");
    let mut reader = Client::connect(&broker, V5);
    reader.subscribe("rate", 0);
    let mut sender = Client::connect(&broker, V311);
    let begun = Instant::now();
    for number in 0..600 {
        sender.publish("rate", number.to_string(), 0, 0);
        if number % 100 == 0 {
            sender.send(&[0xC0, 0]);
            assert_eq!(sender.next(), Got::PingResp);
        }
    }
    assert_eq!(reader.receive(600).len(), 600);
    // What one second allows was saved up: the least is a little less than two seconds.
    assert!(begun.elapsed().as_millis() > 1_000, "{:?}", begun.elapsed());
    broker.stop();
}

#[test]
fn address_with_as_many_connections_as_it_may_have_gets_no_other_until_one_is_over() {
    let broker = Broker::start_configured("connections_per_address_max = 2");
    let first = Client::connect(&broker, V5);
    let _second = Client::connect(&broker, V311);
    Client::raw(broker.addr(), V5).assert_closed();
    first.disconnect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut third = Client::raw(broker.addr(), V5);
        third.send_in_vain(&Hello::new(V5, "third").bytes());
        if matches!(third.next(), Got::ConnAck(..)) {
            break;
        }
        assert!(Instant::now() < deadline, "the place is not given back");
    }
    broker.stop();
}

/// Memory of the whole process: who asks for more is refused with a code.
#[test]
fn broker_that_is_short_of_memory_refuses_by_code() {
    let settings = "memory_bytes_max = 33554432\nqueue_bytes_max = 1000000000\n\
                    queues_bytes_max = 10000000000\ndurability = \"none\"\nsys_interval_s = 1";
    let broker = Broker::start_configured(settings);
    let (topic, id, other) = (unique("memory"), unique("away"), unique("other"));
    leave(&broker, &id, &topic);
    leave(&broker, &other, "other");
    let mut reader = Client::connect(&broker, V5);
    reader.subscribe("$SYS/broker/memory/shortages", 0);
    let mut sender = Client::connect(&broker, V5);
    let kept = unique("kept");
    sender.deliver_retained(&kept, "kept");
    let payload = vec![b'x'; 20_000];
    let deadline = Instant::now() + PATIENCE;
    loop {
        sender.publish(&topic, &payload, 1, 7);
        let Got::Ack(PUBACK, _, code) = sender.next() else { panic!("no PUBACK") };
        if code == QUOTA_EXCEEDED {
            break;
        }
        assert!(Instant::now() < deadline, "the limit is never reached");
    }
    let why = sender.properties().reason_string().unwrap().to_owned();
    assert!(why.contains("memory"), "{why}");
    assert_eq!(sender.subscribe_all(&[("more", 1)]), [QUOTA_EXCEEDED]);
    sender.retain(&kept, "another one", 1, 8);
    assert_eq!(sender.next(), Got::Ack(PUBACK, 8, QUOTA_EXCEEDED));
    // What clears it takes nothing.
    sender.deliver_retained(&kept, "");
    let (_, answer) = Hello::new(V5, "new").try_open(broker.addr());
    let Got::ConnAck(false, QUOTA_EXCEEDED, _) = answer else { panic!("{answer:?}") };
    let (_, answer) = Hello::new(V311, "new").try_open(broker.addr());
    let Got::ConnAck(false, 3, _) = answer else { panic!("{answer:?}") };

    // Who has a session may come, for that makes room; also to begin anew.
    let _other = Hello::new(V5, &other).open(broker.addr());
    let (mut back, was_present) = Hello::persistent(V5, &id).open(broker.addr());
    assert!(was_present);
    assert_eq!(back.message().payload, payload);
    wait_for_shortages(&mut reader);
    broker.stop();
}

/// In `$SYS`, of which the client hears already.
fn wait_for_shortages(reader: &mut Client) {
    while reader.message().text() == "0" {}
}

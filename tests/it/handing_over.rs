//! Shared subscriptions: what becomes of the messages of a member that leaves.

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::V5;

use crate::broker::Broker;
use crate::process::unique;
use crate::wire::{Client, Hello, Message, PUBACK};

/// Nobody gains if a message moves from one queue to that of another client that is away: the first may
/// be back at once, and the other one never.
#[test]
fn member_that_leaves_keeps_what_waits_where_nobody_else_is_there() {
    let broker = Broker::start();
    let (topic, absent_id, member_id) = (unique("work"), unique("absent"), unique("member"));
    let filter = format!("$share/g/{topic}");
    let (mut absent, _) = Hello::persistent(V5, &absent_id).open(broker.addr());
    absent.subscribe(&filter, 1);
    absent.disconnect();
    let member = |receive_max| {
        let hello = Hello::persistent(V5, &member_id).with(Property::ReceiveMaximum(receive_max));
        hello.open(broker.addr()).0
    };
    let mut first = member(1);
    first.subscribe(&filter, 1);
    let mut publisher = Client::connect(&broker, V5);
    for number in 0..5 {
        publisher.deliver(&topic, format!("{number}"));
    }
    assert_eq!(first.message().text(), "0");
    drop(first);

    let mut again = member(10);
    let texts = (0..5).map(|_| again.message().text().to_owned());
    assert_eq!(texts.collect::<Vec<_>>(), ["0", "1", "2", "3", "4"]);
    broker.stop();
}

#[test]
fn member_that_leaves_gives_what_waits_to_one_that_is_there() {
    let broker = Broker::start();
    let (topic, member_id) = (unique("work"), unique("member"));
    let filter = format!("$share/g/{topic}");
    let leaving = Hello::persistent(V5, &member_id).with(Property::ReceiveMaximum(1));
    let (mut leaving, _) = leaving.open(broker.addr());
    leaving.subscribe(&filter, 1);
    let mut publisher = Client::connect(&broker, V5);
    for number in 0..5 {
        publisher.deliver(&topic, format!("{number}"));
    }
    let in_flight = leaving.message();
    let mut other = Client::connect(&broker, V5);
    other.subscribe(&filter, 1);
    drop(leaving);

    let mut heard: Vec<Message> = (0..4).map(|_| other.message()).collect();
    heard.iter().for_each(|message| other.ack(PUBACK, message.id));
    heard.insert(0, in_flight);
    let texts: Vec<_> = heard.iter().map(Message::text).collect();
    assert_eq!(texts, ["0", "1", "2", "3", "4"]);
    broker.stop();
}

//! What goes on while the broker is down: delays of wills, expiry of sessions and messages; and what is over.
//!
//! Time is measured from below only, and by what comes first.

use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::DataDir;
use crate::server::Server;
use crate::wire::{Client, Hello, Publication};

#[test]
fn wills_of_clients_connected_at_the_kill_are_published_after_it_and_not_before_their_delay() {
    let directory = DataDir::new();
    let server = Server::start(directory.path());
    let mut witness = Hello::persistent(V5, "witness").open(server.addr()).0;
    witness.subscribe("will/#", 1);
    let hellos = [
        Hello::persistent(V311, "old").will("will/old", "old", 1, false),
        Hello::persistent(V5, "now").will("will/now", "now", 1, true),
        Hello::persistent(V5, "late")
            .will("will/late", "late", 1, false)
            .will_with(Property::WillDelayInterval(1)),
        Hello::persistent(V5, "back")
            .will("will/back", "back", 1, false)
            .will_with(Property::WillDelayInterval(3600)),
    ];
    let clients: Vec<Client> = hellos.iter().map(|hello| hello.open(server.addr()).0).collect();
    let killed = Instant::now();
    server.kill();
    drop(clients);

    let server = Server::start(directory.path());
    let (mut witness, was_present) = Hello::persistent(V5, "witness").open(server.addr());
    assert!(was_present);
    let mut wills: Vec<String> =
        witness.receive(3).iter().map(|will| will.text().to_owned()).collect();
    let passed = killed.elapsed();
    assert_eq!(wills.pop().unwrap(), "late");
    assert!(passed >= Duration::from_secs(1), "after {passed:?}");
    wills.sort();
    assert_eq!(wills, ["now", "old"]);
    // It is back in time, which takes its will back; what stays of the others is what they retained.
    let (back, was_present) = Hello::persistent(V5, "back").open(server.addr());
    assert!(was_present);
    back.disconnect();
    witness.assert_silent();
    let mut reader = Hello::new(V5, "reader").open(server.addr()).0;
    reader.subscribe("will/+", 1);
    let retained = reader.message();
    assert_eq!((retained.text(), retained.retain), ("now", true));
    server.stop();
}

#[test]
fn will_delay_and_expiry_of_sessions_and_messages_go_on_while_the_broker_is_down() {
    let directory = DataDir::new();
    let server = Server::start(directory.path());
    let mut witness = Hello::persistent(V5, "witness").open(server.addr()).0;
    witness.subscribe("will/#", 1);
    let begun = Instant::now();
    leave_with_will(&server, "early", 3);
    let expiring = |id, expiry_s| Hello {
        clean_start: false,
        ..Hello::new(V5, id).with(Property::SessionExpiryInterval(expiry_s))
    };
    for (id, expiry_s) in [("short", 2), ("long", 3600), ("endless", u32::MAX)] {
        let (mut client, was_present) = expiring(id, expiry_s).open(server.addr());
        assert!(!was_present);
        client.subscribe("will/nobody", 1);
        client.disconnect();
    }
    let mut absent = Hello::persistent(V5, "absent").open(server.addr()).0;
    absent.subscribe("expiring/#", 2);
    absent.disconnect();
    for (id, qos, interval_s) in [(1, 1, 2), (2, 2, 2), (3, 1, 3600), (4, 2, 3600)] {
        let (topic, payload) = (format!("expiring/{interval_s}"), format!("{interval_s}"));
        let publication = Publication::new(&topic, &payload).qos(qos, id).retain();
        let interval = Property::MessageExpiryInterval(interval_s);
        witness.deliver_publication(&publication.with(interval));
    }
    // When this is acknowledged what was before it is on disk.
    witness.deliver("will/sync", "sync");
    witness.receive(1);
    server.kill();
    // The time that passes is what this is about.
    thread::sleep(Duration::from_millis(3_200).saturating_sub(begun.elapsed()));

    let server = Server::start(directory.path());
    // Had the delay of the first begun anew, this one would be earlier.
    leave_with_will(&server, "later", 2);
    let (mut witness, was_present) = Hello::persistent(V5, "witness").open(server.addr());
    assert!(was_present);
    let mut wills = Vec::new();
    while wills.len() < 2 {
        let messages = witness.receive(1);
        // Its acknowledgement may have been lost with the broker.
        let wills_of = messages.iter().filter(|message| message.text() != "sync");
        wills.extend(wills_of.map(|message| message.text().to_owned()));
    }
    assert_eq!(wills, ["early", "later"]);
    for (id, expiry_s, is_there) in
        [("short", 2, false), ("long", 3600, true), ("endless", u32::MAX, true)]
    {
        let (_client, was_present) = expiring(id, expiry_s).open(server.addr());
        assert_eq!(was_present, is_there, "{id}");
    }
    let (mut absent, was_present) = Hello::persistent(V5, "absent").open(server.addr());
    assert!(was_present);
    let mut queued = absent.receive(2);
    queued.dedup_by_key(|message| message.id);
    let mut reader = Hello::new(V5, "reader").open(server.addr()).0;
    reader.subscribe("expiring/#", 0);
    let retained = [reader.message()];
    for message in queued.iter().chain(&retained) {
        let left_s = message.properties().message_expiry_interval_s();
        assert_eq!(message.text(), "3600", "{message:?}");
        assert!(left_s.is_some_and(|left_s| left_s <= 3600 - 3), "{left_s:?}");
    }
    absent.assert_silent();
    reader.assert_silent();
    server.stop();
}

#[test]
fn session_that_a_clean_start_has_ended_does_not_come_back() {
    let directory = DataDir::new();
    let server = Server::start(directory.path());
    let mut client = Hello::persistent(V5, "client").open(server.addr()).0;
    client.subscribe("old", 1);
    client.disconnect();
    let mut publisher = Hello::new(V311, "publisher").open(server.addr()).0;
    publisher.deliver("old", "queued");
    let anew = Hello { clean_start: true, ..Hello::persistent(V5, "client") };
    let (mut client, was_present) = anew.open(server.addr());
    assert!(!was_present);
    client.subscribe("new", 1);
    server.kill();

    let server = Server::start(directory.path());
    let mut publisher = Hello::new(V311, "publisher").open(server.addr()).0;
    publisher.deliver("old", "for nobody");
    publisher.deliver("new", "for the client");
    let (mut client, was_present) = Hello::persistent(V5, "client").open(server.addr());
    assert!(was_present);
    let messages = client.receive(1);
    assert_eq!(messages.iter().map(|it| it.text()).collect::<Vec<_>>(), ["for the client"]);
    client.assert_silent();
    server.stop();
}

/// DISCONNECT that asks for the will; the session is parked when this returns.
fn leave_with_will(server: &Server, id: &str, delay_s: u32) {
    let topic = format!("will/{id}");
    let hello = Hello::persistent(V5, id)
        .will(&topic, id, 1, false)
        .will_with(Property::WillDelayInterval(delay_s));
    let mut client = hello.open(server.addr()).0;
    client.send(&[0xE0, 1, 4]);
    client.assert_closed();
}

//! Limits that a listener has in place of those at the top, and whom it lets in without a name.

use mailboxqtt::codec::Property;
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use mailboxqtt::ids::Qos;

use crate::broker::Broker;
use crate::process::unique;
use crate::service::Service;
use crate::wire::{Client, Got, Hello, Publication};

#[test]
fn limits_of_a_listener_are_told_and_kept_there_and_nowhere_else() {
    let broker = Broker::start_listening(
        1,
        "[[listeners]]\nlisten = '127.0.0.1:0'\nqos_max = 0\nretain_available = false\n\
         receive_max = 3\nkeep_alive_s_max = 7\ntopic_alias_max = 0\npacket_bytes_max = 200\n\
         session_expiry_s_max = 9\n",
    );
    let told = |addr| {
        let id = unique("told");
        let (client, _) = Hello::persistent(V5, &id).open(addr);
        let said = client.properties();
        let told = (
            (said.maximum_qos(), said.retain_available(), said.receive_maximum()),
            (said.server_keep_alive_s(), said.topic_alias_maximum(), said.maximum_packet_size()),
            said.session_expiry_interval_s(),
        );
        (client, told)
    };
    let (mut bound, said) = told(broker.listener(0));
    let limits =
        ((Some(Qos::AtMostOnce), Some(false), Some(3)), (Some(7), None, Some(200)), Some(9));
    assert_eq!(said, limits);
    let (mut free, said) = told(broker.addr());
    let limits = ((None, None, Some(1000)), (None, Some(64), Some(16 * 1024 * 1024)), None);
    assert_eq!(said, limits);

    let topic = unique("topic");
    free.subscribe(&topic, 1);
    free.publish(&topic, "x".repeat(300), 1, 1);
    assert!(matches!(free.next_answer(), Got::Ack(_, 1, 0)));
    assert_eq!(free.message().payload.len(), 300);
    bound.publish(&topic, "x".repeat(300), 0, 0);
    bound.assert_closed_with(0x95);
    let (mut bound, _) = told(broker.listener(0));
    bound.publish(&topic, "too good", 1, 1);
    bound.assert_closed_with(0x9B);
    broker.stop();
}

#[test]
fn session_has_the_limits_of_the_listener_through_which_its_client_comes_back() {
    let broker = Broker::start_listening(
        1,
        "topic_alias_max = 0\n[[listeners]]\nlisten = '127.0.0.1:0'\nqos_max = 1\ntopic_alias_max = 5\n",
    );
    let id = unique("back");
    let open = |addr| Hello::persistent(V5, &id).open(addr).0;
    let topic = unique("topic");
    let mut client = open(broker.addr());
    client.publish(&topic, "at most", 2, 1);
    assert!(matches!(client.next(), Got::Ack(_, 1, code) if code < 0x80));
    client.disconnect();

    // It is told of five aliases, and has them.
    let mut client = open(broker.listener(0));
    assert_eq!(client.properties().topic_alias_maximum(), Some(5));
    let publication = Publication::new(&topic, "by a number").qos(1, 1);
    client.send_publication(&publication.with(Property::TopicAlias(5)));
    assert!(matches!(client.next(), Got::Ack(_, 1, code) if code < 0x80));
    client.publish(&topic, "too good", 2, 2);
    client.assert_closed_with(0x9B);

    let mut client = open(broker.addr());
    client.publish(&topic, "at most", 2, 3);
    assert!(matches!(client.next(), Got::Ack(_, 3, code) if code < 0x80));
    broker.stop();
}

#[test]
fn limits_of_a_listener_are_read_again_and_count_for_those_who_come_then() {
    let settings =
        |own: &str| format!("keep_alive_s_max = 30\n[[listeners]]\nlisten = '127.0.0.2:0'\n{own}");
    let mut service = Service::start(&settings("keep_alive_s_max = 40"));
    let addr = service.next_listener("TCP");
    let keep_alive_s = |addr| {
        let (client, _) = Hello::new(V5, &unique("asks")).open(addr);
        client.properties().server_keep_alive_s()
    };
    assert_eq!((keep_alive_s(addr), keep_alive_s(service.addr)), (Some(40), Some(30)));
    service.reload(&settings("keep_alive_s_max = 50"));
    assert_eq!((keep_alive_s(addr), keep_alive_s(service.addr)), (Some(50), Some(30)));
    service.reload(&settings("qos_max = 3"));
    service.wait_for_log("listener 127.0.0.2:0: setting `qos_max` must be 0, 1 or 2");
    service.reload(&settings(""));
    assert_eq!(keep_alive_s(addr), Some(30));
    service.stop();
}

#[test]
fn anonymous_clients_are_refused_on_loopback_and_without_users_if_the_settings_say_so() {
    let service = Service::start("");
    let (mut guest, _) = Hello::new(V5, &unique("guest")).open(service.addr);
    service.reload("allow_anonymous = false");
    assert_eq!(guest.next(), Got::Disconnect(0x87));
    let mut refused = Client::raw(service.addr, V311);
    refused.send(&Hello::new(V311, &unique("nobody")).bytes());
    refused.assert_connect_refused(&[5]);
    service.wait_for_log("lets nobody in: allow_anonymous is false and there are no users");
    service.reload("");
    Hello::new(V5, &unique("again")).open(service.addr).0.disconnect();
    service.stop();

    let broker = Broker::start_with(&["--allow-anonymous=false"]);
    let mut refused = Client::raw(broker.addr(), V311);
    refused.send(&Hello::new(V311, &unique("nobody")).bytes());
    refused.assert_connect_refused(&[5]);
    broker.stop();
}

//! Settings that are read again while the broker serves.

use std::io::Write;
use std::process::{Command, Stdio};

use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::process::{Process, unique};
use crate::service::Service;
use crate::wire::{Client, Got, Hello};

/// Keep-alive that a new client is given, from which a test sees what settings are in force.
fn keep_alive_s(service: &Service) -> Option<u16> {
    let (client, _) = Hello::new(V5, &unique("asks")).open(service.addr);
    let keep_alive_s = client.properties().server_keep_alive_s();
    client.disconnect();
    keep_alive_s
}

fn serves(client: &mut Client) {
    let topic = unique("topic");
    client.subscribe(&topic, 0);
    client.publish(&topic, "still here", 0, 0);
    assert_eq!(client.message().text(), "still here");
}

#[test]
fn changed_limit_counts_for_new_clients_and_those_that_are_connected_stay() {
    let service = Service::start("keep_alive_s_max = 30");
    assert_eq!(keep_alive_s(&service), Some(30));
    let (mut new, _) = Hello::new(V5, &unique("new")).open(service.addr);
    let (mut old, _) = Hello::new(V311, &unique("old")).open(service.addr);

    service.reload("keep_alive_s_max = 40\nqos_max = 1");
    assert_eq!(keep_alive_s(&service), Some(40));
    service.wait_for_log("keep_alive_s_max, qos_max");
    serves(&mut new);
    serves(&mut old);
    service.stop();
}

#[test]
fn broken_file_changes_nothing_and_the_log_says_where_it_is_broken() {
    let service = Service::start("keep_alive_s_max = 30");
    let (mut client, _) = Hello::new(V5, &unique("stays")).open(service.addr);
    for (settings, named) in [
        (
            "keep_alive_s_max = 40\nqueue_byte_max = 1",
            "line 2: there is no setting `queue_byte_max`",
        ),
        ("keep_alive_s_max = 50\n[", "line 2"),
        ("keep_alive_s_max = 60\ninflight_max = 0", "`inflight_max` must be at least 1"),
        ("keep_alive_s_max = 70\n[scram_users]\nbob = 'hunter2'", "the value of `bob` is not"),
        ("keep_alive_s_max = 80\n[[listeners]]\nlisten = '0.0.0.0:0'", "0.0.0.0:0"),
        ("keep_alive_s_max = 90\n[[listeners]]\nlisten = 'unix:/nowhere/mqtt'", "/nowhere/mqtt"),
    ] {
        service.reload(settings);
        let line = service.wait_for_log(named);
        assert!(line.contains("the settings are not changed"), "{line}");
        assert!(!line.contains("hunter2"), "{line}");
        assert_eq!(keep_alive_s(&service), Some(30), "{settings}");
    }
    serves(&mut client);
    // And a good one is taken after all.
    service.reload("keep_alive_s_max = 100");
    assert_eq!(keep_alive_s(&service), Some(100));
    service.stop();
}

#[test]
fn settings_that_need_a_restart_are_named_each_time() {
    let service = Service::start("shards = 1");
    for keep_alive_s_max in [30, 40] {
        service.reload(&format!("shards = 2\nkeep_alive_s_max = {keep_alive_s_max}"));
        assert_eq!(keep_alive_s(&service), Some(keep_alive_s_max));
    }
    let line = service.wait_for_log("need a restart");
    assert!(line.contains("shards"), "{line}");
    service.stop();
}

#[test]
fn users_that_come_by_a_reload_close_the_door_for_those_without_a_name() {
    let service = Service::start("");
    let (mut guest, _) = Hello::new(V5, &unique("guest")).open(service.addr);
    let (mut older, _) = Hello::new(V311, &unique("older")).open(service.addr);
    service.reload(&format!("[scram_users]\nalice = '{CREDENTIAL}'"));
    let (_, answer) = Hello::new(V5, &unique("late")).try_open(service.addr);
    assert!(matches!(answer, Got::ConnAck(_, 0x87, _)), "{answer:?}");
    assert_eq!(guest.next(), Got::Disconnect(0x87));
    guest.assert_closed();
    older.assert_closed();
    service.reload("");
    Hello::new(V5, &unique("again")).open(service.addr).0.disconnect();
    service.stop();
}

#[test]
fn anonymous_clients_stay_where_their_listener_still_takes_them() {
    let listening = |allow_anonymous: bool| {
        format!(
            "[[listeners]]\nlisten = '127.0.0.2:0'\nallow_anonymous = true\n\
             [[listeners]]\nlisten = '127.0.0.3:0'\nallow_anonymous = {allow_anonymous}\n"
        )
    };
    let mut service = Service::start(&listening(true));
    let (kept, closed) = (service.next_listener("TCP"), service.next_listener("TCP"));
    let guest = |addr| Hello::new(V5, &unique("guest")).open(addr).0;
    let (mut first, mut second, mut third) = (guest(kept), guest(closed), guest(service.addr));
    service.reload(&format!("keep_alive_s_max = 40\n{}", listening(false)));
    assert_eq!(second.next(), Got::Disconnect(0x87));
    serves(&mut first);
    serves(&mut third);
    // A listener that goes takes no rights away.
    service.reload("");
    serves(&mut first);
    service.stop();
}

#[test]
fn listener_comes_and_goes_by_a_reload_and_its_clients_stay() {
    let service = Service::start("");
    let socket = service.path("mqtt.sock");
    let listeners = format!("[[listeners]]\nlisten = 'unix:{}'", socket.display());
    service.reload(&format!("listen = '127.0.0.1:0'\n{listeners}"));
    assert!(socket.exists());
    service.reload("");
    service.wait_for_log("no more connections are accepted here");
    serves(&mut Hello::new(V5, &unique("stays")).open(service.addr).0);
    service.stop();
}

#[test]
fn rules_of_a_file_that_has_changed_bind_those_that_are_connected() {
    let folder = tempfile::tempdir().unwrap();
    let acl_file = folder.path().join("acl");
    let settings = format!("[authorisation]\nacl_file = '{}'", acl_file.display());
    std::fs::write(&acl_file, "topic readwrite #").unwrap();
    let service = Service::start(&settings);
    let (mut client, _) = Hello::new(V5, &unique("bound")).open(service.addr);
    client.publish("secret/one", "allowed", 1, 1);
    assert!(matches!(client.next(), Got::Ack(_, 1, code) if code < 0x80));

    std::fs::write(&acl_file, "topic readwrite #\ntopic deny secret/#\ntopic frobnicate x")
        .unwrap();
    service.reload(&settings);
    service.wait_for_log("the settings are not changed");
    client.publish("secret/one", "still allowed", 1, 2);
    assert!(matches!(client.next(), Got::Ack(_, 2, code) if code < 0x80));

    std::fs::write(&acl_file, "topic readwrite #\ntopic deny secret/#").unwrap();
    service.reload(&settings);
    client.publish("secret/one", "not any more", 1, 3);
    assert!(matches!(client.next(), Got::Ack(_, 3, 0x87)));
    client.publish("open", "this is", 1, 4);
    assert!(matches!(client.next(), Got::Ack(_, 4, code) if code < 0x80));
    service.stop();
}

#[test]
fn user_who_is_gone_is_disconnected_and_the_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    for user in ["alice", "bob"] {
        let mut passwd = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
        passwd.arg("passwd").arg(&users).arg(user).stdin(Stdio::piped());
        let mut passwd = Process::spawn(&mut passwd);
        passwd.stdin().write_all(b"secret\n").unwrap();
        passwd.succeed();
    }
    let settings = format!("[authentication]\npassword_file = '{}'", users.display());
    let service = Service::start(&settings);
    let log_in = |user| {
        let id = unique(user);
        Hello::new(V5, &id).user(user, b"secret").try_open(service.addr)
    };
    let (mut alice, answer) = log_in("alice");
    assert!(matches!(answer, Got::ConnAck(_, 0, _)), "{answer:?}");
    let (mut bob, _) = log_in("bob");

    let all = std::fs::read_to_string(&users).unwrap();
    let without_bob: Vec<&str> = all.lines().filter(|line| !line.starts_with("bob:")).collect();
    std::fs::write(&users, without_bob.join("\n")).unwrap();
    service.reload(&settings);
    assert_eq!(bob.next(), Got::Disconnect(0x87));
    serves(&mut alice);
    let (_, answer) = log_in("bob");
    assert!(matches!(answer, Got::ConnAck(_, code, _) if code >= 0x80), "{answer:?}");
    service.stop();
}

/// A form that is read; of no password that anybody knows.
const CREDENTIAL: &str = "SCRAM-SHA-256$4096:CdYjP6cN1/wAhYq14/XWuQ==$\
    Tf4P0MA9j1/AZZn21GMBC4k2CocaTzOIb3Vkb8b27w8=:eElIGnaevPodHktS1K9eSqPdEZWekqLz8gIDiduTo90=";

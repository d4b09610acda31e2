//! Clients that have proved who they are, when the settings by which they did so change.

use std::fs;
use std::net::SocketAddr;

use mailboxqtt::codec::Property;
use mailboxqtt::codec::ReasonCode::{ContinueAuthentication, ReAuthenticate};
use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use serde_json::json;

use crate::auth::{METHOD, Scram, properties, receive_auth, receive_connack, send_auth, user_line};
use crate::auth_call_out::{Server, ok};
use crate::auth_token::{SECRET, now_s, token};
use crate::process::unique;
use crate::service::Service;
use crate::wire::{Client, Got, Hello};

/// A client that has proved by SCRAM that it is alice.
fn alice(addr: SocketAddr, password: &str) -> Client {
    let scram = Scram::new("alice", password);
    let mut client = Client::raw(addr, V5);
    let id = unique("alice");
    let mut hello = Hello::new(V5, &id);
    hello.properties = properties(Some(METHOD), Some(&scram.first()));
    client.send(&hello.bytes());
    let (client_final, server_final) = scram.last(&receive_auth(&mut client, 0x18));
    send_auth(&mut client, ContinueAuthentication, Some(METHOD), &client_final);
    assert_eq!(receive_connack(&mut client), server_final);
    client
}

/// A new exchange begins; returns what ends it, and the answer to that.
fn begin(client: &mut Client, password: &str) -> (Vec<u8>, Vec<u8>) {
    let scram = Scram::new("alice", password);
    send_auth(client, ReAuthenticate, Some(METHOD), &scram.first());
    scram.last(&receive_auth(client, 0x18))
}

#[test]
fn re_authentication_asks_for_the_password_of_now() {
    let users = |password| format!("[scram_users]\n{}", user_line("alice", password, &[]));
    let service = Service::start(&users("wonderland"));
    let [mut old, mut new, mut busy] =
        ["old", "new", "busy"].map(|_| alice(service.addr, "wonderland"));
    let (client_final, _) = begin(&mut busy, "wonderland");
    service.reload(&users("looking-glass"));

    let (last, answer) = begin(&mut new, "looking-glass");
    send_auth(&mut new, ContinueAuthentication, Some(METHOD), &last);
    assert_eq!(receive_auth(&mut new, 0x00), answer);
    new.disconnect();

    let (last, _) = begin(&mut old, "wonderland");
    send_auth(&mut old, ContinueAuthentication, Some(METHOD), &last);
    old.assert_closed_with(0x87);

    // What began before the change ends with it.
    send_auth(&mut busy, ContinueAuthentication, Some(METHOD), &client_final);
    busy.assert_closed_with(0x87);
    service.stop();
}

#[test]
fn user_of_a_token_is_disconnected_when_tokens_are_taken_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    let tokens = format!("[authentication.jwt]\nsecret_file = '{}'\n", secret.display());
    let service = Service::start(&format!("allow_anonymous = true\n{tokens}"));
    let token = token(&json!({ "sub": "anna", "exp": now_s() + 600 }));
    let connect = |version| {
        let id = unique("token");
        Hello::new(version, &id).user("whoever", token.as_bytes()).open(service.addr).0
    };
    let (mut anna, mut older) = (connect(V5), connect(V311));
    let (mut guest, _) = Hello::new(V5, &unique("guest")).open(service.addr);

    // With other settings she stays as well as everybody else.
    service.reload(&format!("allow_anonymous = true\nkeep_alive_s_max = 60\n{tokens}"));
    serves(&mut anna);
    service.reload("allow_anonymous = true");
    assert_eq!(anna.next(), Got::Disconnect(0x87));
    anna.assert_closed();
    older.assert_closed();
    serves(&mut guest);
    service.stop();
}

#[test]
fn user_of_another_server_is_disconnected_when_nobody_asks_it_any_more() {
    let server = Server::start(|_| ok(&json!({ "result": "allow" })));
    let section = format!("[authentication.http]\nurl = 'http://{}/login'\n", server.addr);
    let service = Service::start(&section);
    let id = unique("anna");
    let (mut anna, _) = Hello::new(V5, &id).user("anna", b"secret").open(service.addr);
    service.reload(&format!("keep_alive_s_max = 60\n{section}"));
    serves(&mut anna);
    service.reload("");
    assert_eq!(anna.next(), Got::Disconnect(0x87));
    anna.assert_closed();
    service.stop();
}

/// His session would keep its identifier, and its queue would fill for nobody.
#[test]
fn session_of_a_user_who_is_gone_ends_and_its_identifier_is_free() {
    let users = |names: &[&str]| {
        let lines: Vec<_> = names.iter().map(|name| user_line(name, "wonderland", &[])).collect();
        format!(
            "sys_interval_s = 1\nallow_anonymous = true\n[scram_users]\n{}\n[authentication]\n\
             removed_user_session_s_max = 1\n",
            lines.join("\n")
        )
    };
    let service = Service::start(&users(&["alice", "bob"]));
    let id = unique("shared");
    let mut hello = Hello::new(V5, &id);
    let scram = Scram::new("bob", "wonderland");
    hello.properties = properties(Some(METHOD), Some(&scram.first()));
    hello.properties.push(Property::SessionExpiryInterval(u32::MAX));
    let mut bob = Client::raw(service.addr, V5);
    bob.send(&hello.bytes());
    let (client_final, _) = scram.last(&receive_auth(&mut bob, 0x18));
    send_auth(&mut bob, ContinueAuthentication, Some(METHOD), &client_final);
    receive_connack(&mut bob);
    bob.subscribe("queue", 1);

    service.reload(&users(&["alice"]));
    bob.assert_closed_with(0x87);
    let line = service.wait_for_log("the session ends: nobody knows its user any more");
    assert!(line.contains(&id) && line.contains("bob"), "{line}");
    let (mut watcher, _) = Hello::new(V5, &unique("watch")).open(service.addr);
    watcher.subscribe("$SYS/broker/clients/orphaned", 0);
    while watcher.message().text() != "1" {}
    // Anybody may have the identifier now, and finds nothing there.
    let mut hello = Hello::new(V5, &id);
    hello.clean_start = false;
    let (client, answer) = hello.try_open(service.addr);
    assert!(matches!(answer, Got::ConnAck(false, 0, _)), "{answer:?}");
    client.disconnect();
    service.stop();
}

fn serves(client: &mut Client) {
    let topic = unique("topic");
    client.subscribe(&topic, 0);
    client.publish(&topic, "still here", 0, 0);
    assert_eq!(client.message().text(), "still here");
}

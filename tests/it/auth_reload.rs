//! Clients that have proved who they are, when the settings by which they did so change.

use std::fs;
use std::net::SocketAddr;

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

fn serves(client: &mut Client) {
    let topic = unique("topic");
    client.subscribe(&topic, 0);
    client.publish(&topic, "still here", 0, 0);
    assert_eq!(client.message().text(), "still here");
}

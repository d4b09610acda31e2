//! Enhanced authentication with SCRAM-SHA-256 over a socket, and how users get into the settings.
//!
//! [`Scram`] is a client of its own, written from RFC 5802 without a look at the broker's side. The
//! users are made by `mailboxqtt scram-user`, as an operator makes them.

use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use mailboxqtt::codec::{Auth, Connect, Packet, PropertiesBuf, Property, ReasonCode, decode};
use mailboxqtt::ids::ProtocolVersion::{self, V5, V31, V311};
use sha2::{Digest, Sha256};

use crate::broker::Broker;
use crate::process::{Process, unique};
use crate::wire::{Client, Got, Hello, publish, wait_for_counter};

pub(crate) const METHOD: &str = "SCRAM-SHA-256";
const CONTINUE: ReasonCode = ReasonCode::ContinueAuthentication;
const BEGIN: ReasonCode = ReasonCode::ReAuthenticate;

/// The client's side of SCRAM-SHA-256.
pub(crate) struct Scram {
    name: String,
    password: String,
    gs2_header: &'static str,
    nonce: String,
}

impl Scram {
    pub(crate) fn new(name: &str, password: &str) -> Self {
        let (name, password) = (name.to_owned(), password.to_owned());
        Self { name, password, gs2_header: "n,,", nonce: unique("nonce") }
    }

    fn bare(&self) -> String {
        format!("n={},r={}", self.name, self.nonce)
    }

    /// client-first.
    pub(crate) fn first(&self) -> Vec<u8> {
        format!("{}{}", self.gs2_header, self.bare()).into_bytes()
    }

    /// client-final, and the server-final that has to follow.
    pub(crate) fn last(&self, server_first: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let server_first = str::from_utf8(server_first).unwrap();
        let [nonce, salt, iterations] = challenge(server_first);
        assert!(nonce.starts_with(&self.nonce) && nonce.len() >= self.nonce.len() + 18, "{nonce}");
        let salt = BASE64_STANDARD.decode(salt).unwrap();
        // PBKDF2 of one block, written out.
        let mut block = hmac(self.password.as_bytes(), &[&salt[..], &[0, 0, 0, 1]].concat());
        let mut salted = block;
        for _ in 1..iterations.parse::<u32>().unwrap() {
            block = hmac(self.password.as_bytes(), &block);
            salted = xor(salted, block);
        }
        let client_key = hmac(&salted, b"Client Key");
        let header = BASE64_STANDARD.encode(self.gs2_header);
        let without_proof = format!("c={header},r={nonce}");
        let message = format!("{},{server_first},{without_proof}", self.bare());
        let stored_key: [u8; 32] = Sha256::digest(client_key).into();
        let proof = xor(client_key, hmac(&stored_key, message.as_bytes()));
        let signature = hmac(&hmac(&salted, b"Server Key"), message.as_bytes());
        let client_final = format!("{without_proof},p={}", BASE64_STANDARD.encode(proof));
        let server_final = format!("v={}", BASE64_STANDARD.encode(signature));
        (client_final.into_bytes(), server_final.into_bytes())
    }
}

/// Nonce, salt, iterations.
fn challenge(server_first: &str) -> [&str; 3] {
    let fields: Vec<&str> = server_first.split(',').collect();
    let [nonce, salt, iterations] = fields[..] else { panic!("{server_first}") };
    [("r=", nonce), ("s=", salt), ("i=", iterations)]
        .map(|(prefix, field)| field.strip_prefix(prefix).unwrap())
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    hmac.update(message);
    hmac.finalize().into_bytes().into()
}

fn xor(one: [u8; 32], other: [u8; 32]) -> [u8; 32] {
    std::array::from_fn(|at| one[at] ^ other[at])
}

/// The line for the settings file that `mailboxqtt scram-user` prints.
pub(crate) fn user_line(name: &str, password: &str, arguments: &[&str]) -> String {
    let (status, lines, said) = make_user(name, password, arguments);
    assert!(status, "{said}");
    let [line] = &lines[..] else { panic!("{lines:?}") };
    line.clone()
}

/// Runs `mailboxqtt scram-user`: whether it succeeded, what it printed and what it complained of.
fn make_user(name: &str, password: &str, arguments: &[&str]) -> (bool, Vec<String>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.args(["scram-user", name]).args(arguments).stdin(Stdio::piped());
    // Set where the broker is configured by its environment; means nothing here.
    command.env("SOCKET_ADDR", "127.0.0.1:1");
    let mut process = Process::spawn(&mut command);
    // Who is refused for a name has no ear for a password.
    let _ = writeln!(process.stdin(), "{password}");
    let (status, lines, said) = process.finish_with_stderr();
    (status.success(), lines, said)
}

/// A broker with the users alice (`wonderland`) and bob (`builder`), and more settings before them.
fn broker_with_users(settings: &str) -> Broker {
    let [alice, bob] = [("alice", "wonderland"), ("bob", "builder")]
        .map(|(name, password)| user_line(name, password, &[]));
    Broker::start_configured(&format!("{settings}\n[scram_users]\n{alice}\n{bob}\n"))
}

pub(crate) fn properties(method: Option<&str>, data: Option<&[u8]>) -> PropertiesBuf {
    let mut properties = PropertiesBuf::new();
    if let Some(method) = method {
        properties.push(Property::AuthenticationMethod(method));
    }
    if let Some(data) = data {
        properties.push(Property::AuthenticationData(data));
    }
    properties
}

/// A v5 connection on which CONNECT of `id` with method and data has been sent.
fn hello(broker: &Broker, id: &str, method: &str, data: &[u8]) -> Client {
    let mut client = Client::raw(broker.addr(), V5);
    let mut hello = Hello::new(V5, id);
    hello.properties = properties(Some(method), Some(data));
    client.send(&hello.bytes());
    client
}

pub(crate) fn send_auth(
    client: &mut Client,
    reason: ReasonCode,
    method: Option<&str>,
    data: &[u8],
) {
    let properties = properties(method, Some(data));
    let auth = Auth { reason, properties: properties.as_properties() };
    client.send_packet(&Packet::Auth(auth));
}

/// The next packet, which has to be AUTH with `reason` and the method; returns its data.
#[track_caller]
pub(crate) fn receive_auth(client: &mut Client, reason: u8) -> Vec<u8> {
    let frame = client.next_frame().expect("the connection has ended");
    match decode(&frame, V5).unwrap() {
        Packet::Auth(auth) => {
            assert_eq!(auth.reason.as_u8(), reason);
            assert_eq!(auth.properties.authentication_method(), Some(METHOD));
            // No reason string and no user properties, which could be too large.
            assert_eq!(auth.properties.iter().count(), 2);
            auth.properties.authentication_data().unwrap().to_vec()
        }
        other => panic!("waited for AUTH, got {other:?}"),
    }
}

/// The next packet, which has to be a CONNACK of success with the method; returns its data.
#[track_caller]
pub(crate) fn receive_connack(client: &mut Client) -> Vec<u8> {
    let frame = client.next_frame().expect("the connection has ended");
    match decode(&frame, V5).unwrap() {
        Packet::ConnAck(connack) => {
            assert_eq!(connack.reason, ReasonCode::Success);
            assert_eq!(connack.properties.authentication_method(), Some(METHOD));
            connack.properties.authentication_data().unwrap().to_vec()
        }
        other => panic!("waited for CONNACK, got {other:?}"),
    }
}

/// CONNECT as `id` and the whole exchange.
#[track_caller]
fn log_in(broker: &Broker, id: &str, name: &str, password: &str) -> Client {
    let scram = Scram::new(name, password);
    let mut client = hello(broker, id, METHOD, &scram.first());
    let (client_final, server_final) = scram.last(&receive_auth(&mut client, 0x18));
    send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
    assert_eq!(receive_connack(&mut client), server_final);
    client
}

/// A client that has got the first AUTH and has to answer it.
#[track_caller]
fn challenged(broker: &Broker, id: &str) -> Client {
    let mut client = hello(broker, id, METHOD, &Scram::new("alice", "wonderland").first());
    receive_auth(&mut client, 0x18);
    client
}

/// CONNACK with `code` and, in v5, a sentence that does not help to guess, then the end.
#[track_caller]
fn assert_refused(mut client: Client, code: u8) {
    match client.next() {
        Got::ConnAck(false, got, properties) if got == code => {
            let told = String::from_utf8_lossy(&properties).into_owned();
            assert!(code != 0x87 || !told.contains("unknown"), "{told}");
        }
        other => panic!("refused with 0x{code:02x} by {other:?}"),
    }
    client.assert_closed();
}

/// [MQTT-3.2.0-1] [MQTT-4.12.0-2] [MQTT-4.12.0-5] [MQTT-3.15.2-1]
#[test]
fn client_proves_who_it_is_by_scram_and_the_broker_that_it_knew() {
    let broker = broker_with_users("");
    let mut client = log_in(&broker, &unique("scram"), "alice", "wonderland");
    client.subscribe("wonder", 1);
    client.publish("wonder", "hole", 0, 0);
    assert_eq!(client.message().text(), "hole");
    client.disconnect();
    broker.stop();
}

/// RFC 4422, section 5: who speaks first in the method but has said nothing is asked to.
#[test]
fn first_message_may_come_in_auth_instead_of_connect() {
    let broker = broker_with_users("");
    let mut client = Client::raw(broker.addr(), V5);
    let id = unique("late");
    let mut hello = Hello::new(V5, &id);
    hello.properties = properties(Some(METHOD), None);
    client.send(&hello.bytes());
    let frame = client.next_frame().unwrap();
    let Packet::Auth(auth) = decode(&frame, V5).unwrap() else { panic!("{frame:?}") };
    assert_eq!(auth.reason, CONTINUE);
    assert_eq!(auth.properties.authentication_method(), Some(METHOD));
    assert_eq!(auth.properties.authentication_data(), None);
    let scram = Scram::new("bob", "builder");
    send_auth(&mut client, CONTINUE, Some(METHOD), &scram.first());
    let (client_final, server_final) = scram.last(&receive_auth(&mut client, 0x18));
    send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
    assert_eq!(receive_connack(&mut client), server_final);
    broker.stop();
}

/// [MQTT-4.12.0-1]; without users there is no method at all.
#[test]
fn unknown_method_is_refused_as_bad_authentication_method() {
    let with_users = broker_with_users("");
    for method in ["", "SCRAM-SHA-1", "scram-sha-256", "SCRAM-SHA-256-PLUS"] {
        assert_refused(hello(&with_users, &unique("method"), method, b"n,,n=alice,r=x"), 0x8C);
    }
    with_users.stop();
    let without = Broker::start();
    assert_refused(hello(&without, &unique("method"), METHOD, b"n,,n=alice,r=x"), 0x8C);
    without.stop();
}

/// [MQTT-4.12.0-4]
#[test]
fn wrong_password_and_unknown_user_cannot_be_told_apart() {
    let broker = broker_with_users("");
    let ask = |name: &str| {
        let scram = Scram::new(name, "guessed");
        let mut client = hello(&broker, &unique("guess"), METHOD, &scram.first());
        let server_first = receive_auth(&mut client, 0x18);
        let (client_final, _) = scram.last(&server_first);
        send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
        let end = client.next_frame().unwrap();
        client.assert_closed();
        let text = String::from_utf8(server_first).unwrap();
        let [_, salt, iterations] = challenge(&text).map(str::to_owned);
        (salt, iterations, end)
    };
    let (salt, iterations, end) = ask("alice");
    assert_eq!((end[0], end[2], end[3]), (0x20, 0, 0x87));
    for name in ["nobody", "alice2", "Alice"] {
        let (imagined, same_iterations, same_end) = ask(name);
        assert_eq!(imagined.len(), salt.len());
        assert_ne!(imagined, salt);
        assert_eq!((same_iterations, same_end), (iterations.clone(), end.clone()));
        assert_eq!(ask(name).0, imagined, "the salt of {name} is the same each time");
    }
    assert_eq!(ask("alice").0, salt);
    broker.stop();
}

#[test]
fn channel_binding_and_messages_that_are_no_scram_are_refused() {
    let broker = broker_with_users("");
    for data in ["p=tls-exporter,,n=alice,r=x", "n", "n,,n=alice", "\0", "n,a=bob,n=alice,r=x"] {
        assert_refused(hello(&broker, &unique("bad"), METHOD, data.as_bytes()), 0x87);
    }
    let mut binds = Scram::new("alice", "wonderland");
    binds.gs2_header = "y,,";
    let mut client = hello(&broker, &unique("y"), METHOD, &binds.first());
    let (client_final, server_final) = binds.last(&receive_auth(&mut client, 0x18));
    send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
    assert_eq!(receive_connack(&mut client), server_final);
    broker.stop();
}

/// A recorded exchange is of no use: the broker's half of the nonce is new.
#[test]
fn proof_of_another_exchange_is_refused() {
    let broker = broker_with_users("");
    let scram = Scram::new("alice", "wonderland");
    let mut client = hello(&broker, &unique("honest"), METHOD, &scram.first());
    let (recorded, _) = scram.last(&receive_auth(&mut client, 0x18));
    send_auth(&mut client, CONTINUE, Some(METHOD), &recorded);
    receive_connack(&mut client);
    let mut thief = hello(&broker, &unique("thief"), METHOD, &scram.first());
    receive_auth(&mut thief, 0x18);
    send_auth(&mut thief, CONTINUE, Some(METHOD), &recorded);
    assert_refused(thief, 0x87);
    broker.stop();
}

/// [MQTT-4.12.0-3] [MQTT-4.12.0-5]
#[test]
fn auth_of_another_method_or_reason_before_the_connack_is_a_protocol_error() {
    let broker = broker_with_users("");
    for (reason, method) in [
        (CONTINUE, Some("SCRAM-SHA-1")),
        (CONTINUE, None),
        (BEGIN, Some(METHOD)),
        (ReasonCode::Success, Some(METHOD)),
    ] {
        let mut client = challenged(&broker, &unique("auth"));
        send_auth(&mut client, reason, method, b"c=biws,r=x,p=");
        assert_refused(client, 0x82);
    }
    broker.stop();
}

/// [MQTT-3.15.1-1] [MQTT-3.15.2-1]
#[test]
fn malformed_auth_ends_the_connection_before_and_after_the_connack() {
    let broker = broker_with_users("");
    for (frame, code) in
        [(&[0xF1, 0][..], 0x81), (&[0xF0, 1, 0x42], 0x82), (&[0xF0, 4, 0x18, 2, 0x15, 0], 0x81)]
    {
        let mut client = challenged(&broker, &unique("broken"));
        client.send(frame);
        assert_refused(client, code);
        let mut client = log_in(&broker, &unique("broken"), "alice", "wonderland");
        client.send(frame);
        client.assert_closed_with(code);
    }
    broker.stop();
}

/// [MQTT-3.1.2-24] [MQTT-3.15.2-2] [MQTT-3.15.2-3]
#[test]
fn auth_of_the_broker_fits_the_maximum_packet_size_of_the_client_or_is_not_sent() {
    let broker = broker_with_users("");
    let hello = |bytes_max| {
        let mut client = Client::raw(broker.addr(), V5);
        let id = unique("size");
        let mut hello = Hello::new(V5, &id).with(Property::MaximumPacketSize(bytes_max));
        hello.properties.push(Property::AuthenticationMethod(METHOD));
        hello.properties.push(Property::AuthenticationData(b"n,,n=alice,r=twelve-bytes"));
        client.send(&hello.bytes());
        client
    };
    let auth = hello(1000).next_frame().unwrap();
    assert_eq!(auth[0], 0xF0);
    let bytes = auth.len() as u32;
    assert_eq!(hello(bytes).next_frame().unwrap().len(), auth.len());
    assert_refused(hello(bytes - 1), 0x95);
    broker.stop();
}

/// [MQTT-3.1.2-30]
#[test]
fn nothing_but_auth_and_disconnect_may_come_before_the_connack() {
    let broker = broker_with_users("");
    let again = Hello::new(V5, "again").bytes();
    for packet in [
        publish(V5, "t", b"", 0, 0, false),
        vec![0xC0, 0],
        vec![0x82, 7, 0, 1, 0, 0, 1, b'a', 0],
        vec![0x40, 2, 0, 1],
        vec![0x20, 3, 0, 0, 0],
        again,
    ] {
        let mut client = challenged(&broker, &unique("early"));
        client.send(&packet);
        assert_refused(client, 0x82);
    }
    let mut client = challenged(&broker, &unique("done"));
    client.send(&[0xE0, 0]);
    client.assert_closed();
    broker.stop();
}

/// Also for a client that does not wait for the AUTH.
#[test]
fn packet_sent_together_with_a_connect_that_is_to_be_authenticated_is_a_protocol_error() {
    let broker = broker_with_users("");
    let mut client = Client::raw(broker.addr(), V5);
    let mut hello = Hello::new(V5, "eager");
    hello.properties = properties(Some(METHOD), Some(b"n,,n=alice,r=x"));
    let mut bytes = hello.bytes();
    bytes.extend(publish(V5, "t", b"", 0, 0, false));
    client.send(&bytes);
    receive_auth(&mut client, 0x18);
    assert_refused(client, 0x82);
    broker.stop();
}

#[test]
fn authentication_has_the_time_and_byte_limits_of_the_handshake() {
    let broker = broker_with_users("handshake_s_max = 1\nconnect_bytes_max = 1000");
    let mut silent = challenged(&broker, &unique("silent"));
    silent.assert_closed();
    let mut slow = challenged(&broker, &unique("slow"));
    slow.send(&[0xF0, 100, 0x18]);
    slow.assert_closed();
    let mut large = challenged(&broker, &unique("large"));
    send_auth(&mut large, CONTINUE, Some(METHOD), &[b'x'; 1000]);
    assert_refused(large, 0x95);
    broker.stop();
}

/// [MQTT-3.1.4-3] holds for clients that are let in, and for nobody else.
#[test]
fn nobody_takes_a_session_over_before_the_proof() {
    let broker = broker_with_users("");
    let id = unique("mine");
    let mut owner = log_in(&broker, &id, "alice", "wonderland");
    let mut half = challenged(&broker, &id);
    let scram = Scram::new("alice", "guessed");
    let mut thief = hello(&broker, &id, METHOD, &scram.first());
    let (client_final, _) = scram.last(&receive_auth(&mut thief, 0x18));
    send_auth(&mut thief, CONTINUE, Some(METHOD), &client_final);
    assert_refused(thief, 0x87);
    owner.assert_silent();
    half.send(&[0xE0, 0]);
    half.assert_closed();
    owner.assert_silent();
    let _next = log_in(&broker, &id, "alice", "wonderland");
    owner.assert_closed_with(0x8E);
    broker.stop();
}

/// 5 is Not authorized before MQTT 5.
#[test]
fn client_that_does_not_say_who_it_is_is_refused_in_every_version() {
    let broker = broker_with_users("");
    for (version, code) in [(V5, 0x87), (V311, 5), (V31, 5)] {
        for credentials in [None, Some("alice")] {
            let mut client = Client::raw(broker.addr(), version);
            client.send(&connect(version, credentials, PropertiesBuf::new()));
            assert_refused(client, code);
        }
    }
    broker.stop();
}

#[test]
fn anonymous_clients_connect_beside_users_where_the_settings_say_so() {
    let broker = broker_with_users("allow_anonymous = true\nsys_interval_s = 1");
    let mut old = Client::connect(&broker, V311);
    let mut new = Client::connect(&broker, V5);
    let mut user = log_in(&broker, &unique("user"), "bob", "builder");
    for client in [&mut old, &mut new, &mut user] {
        client.assert_silent();
    }
    // Who names a method is not anonymous.
    let scram = Scram::new("bob", "guessed");
    let mut client = hello(&broker, &unique("guess"), METHOD, &scram.first());
    let (client_final, _) = scram.last(&receive_auth(&mut client, 0x18));
    send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
    assert_refused(client, 0x87);
    assert_refused(hello(&broker, &unique("method"), "OTHER", b""), 0x8C);
    wait_for_counter(&broker, "errors/authentication", 2);
    // AUTH belongs to a method [MQTT-4.12.0-7].
    send_auth(&mut new, BEGIN, Some(METHOD), &scram.first());
    new.assert_closed_with(0x82);
    broker.stop();
}

/// A CONNECT with a user name and a password, which nobody looks at.
fn connect(version: ProtocolVersion, user: Option<&str>, properties: PropertiesBuf) -> Vec<u8> {
    let mut bytes = Vec::new();
    let connect = Connect {
        version,
        clean_start: true,
        keep_alive_s: 0,
        client_id: "named",
        properties: properties.as_properties(),
        will: None,
        user_name: user,
        password: user.map(|_| &b"wonderland"[..]),
    };
    Packet::Connect(connect).encode(version, &mut bytes);
    bytes
}

#[test]
fn user_name_of_the_connect_must_be_that_of_the_proof() {
    let broker = broker_with_users("");
    for (user_name, code) in [("alice", None), ("bob", Some(0x87))] {
        let scram = Scram::new("alice", "wonderland");
        let mut client = Client::raw(broker.addr(), V5);
        let properties = properties(Some(METHOD), Some(&scram.first()));
        client.send(&connect(V5, Some(user_name), properties));
        let (client_final, server_final) = scram.last(&receive_auth(&mut client, 0x18));
        send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
        match code {
            None => assert_eq!(receive_connack(&mut client), server_final),
            Some(code) => assert_refused(client, code),
        }
    }
    broker.stop();
}

/// [MQTT-4.12.1-1]; everything else goes on meanwhile.
#[test]
fn re_authentication_runs_beside_messages() {
    let broker = broker_with_users("");
    let mut client = log_in(&broker, &unique("again"), "alice", "wonderland");
    client.subscribe("meanwhile", 1);
    for round in 0..2 {
        let scram = Scram::new("alice", "wonderland");
        send_auth(&mut client, BEGIN, Some(METHOD), &scram.first());
        let server_first = receive_auth(&mut client, 0x18);
        client.publish("meanwhile", format!("{round}"), 0, 0);
        assert_eq!(client.message().text(), format!("{round}"));
        let (client_final, server_final) = scram.last(&server_first);
        send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
        assert_eq!(receive_auth(&mut client, 0x00), server_final);
    }
    client.assert_silent();
    client.disconnect();
    broker.stop();
}

/// [MQTT-4.12.1-2]
#[test]
fn failed_re_authentication_ends_the_connection_with_not_authorized() {
    let broker = broker_with_users("");
    for (name, password) in [("alice", "guessed"), ("nobody", "guessed"), ("bob", "builder")] {
        let mut watcher = log_in(&broker, &unique("watch"), "bob", "builder");
        let will = unique("will");
        watcher.subscribe(&will, 0);
        let mut client = Client::raw(broker.addr(), V5);
        let id = unique("again");
        let mut hello = Hello::new(V5, &id).will(&will, "closed", 0, false);
        let scram = Scram::new("alice", "wonderland");
        hello.properties = properties(Some(METHOD), Some(&scram.first()));
        client.send(&hello.bytes());
        let (client_final, _) = scram.last(&receive_auth(&mut client, 0x18));
        send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
        receive_connack(&mut client);

        let scram = Scram::new(name, password);
        send_auth(&mut client, BEGIN, Some(METHOD), &scram.first());
        let (client_final, _) = scram.last(&receive_auth(&mut client, 0x18));
        send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
        client.assert_closed_with(0x87);
        assert_eq!(watcher.message().text(), "closed");
    }
    broker.stop();
}

/// [MQTT-4.12.1-1] [MQTT-4.12.0-5]; one exchange at a time, begun and continued by the client.
#[test]
fn auth_out_of_its_turn_or_of_another_method_ends_the_connection_with_protocol_error() {
    let broker = broker_with_users("");
    let first = Scram::new("alice", "wonderland").first();
    for (reason, method) in [
        (BEGIN, Some("SCRAM-SHA-1")),
        (BEGIN, None),
        (CONTINUE, Some(METHOD)),
        (ReasonCode::Success, Some(METHOD)),
    ] {
        let mut client = log_in(&broker, &unique("turn"), "alice", "wonderland");
        send_auth(&mut client, reason, method, &first);
        client.assert_closed_with(0x82);
    }
    for (reason, method) in [(BEGIN, METHOD), (ReasonCode::Success, METHOD), (CONTINUE, "OTHER")] {
        let mut client = log_in(&broker, &unique("turn"), "alice", "wonderland");
        send_auth(&mut client, BEGIN, Some(METHOD), &first);
        receive_auth(&mut client, 0x18);
        send_auth(&mut client, reason, Some(method), &first);
        client.assert_closed_with(0x82);
    }
    broker.stop();
}

/// The client knows the broker's Maximum Packet Size from the CONNACK. [MQTT-3.15.2-2] [MQTT-3.15.2-3]
#[test]
fn auth_over_the_packet_size_of_the_broker_ends_the_connection() {
    let broker = broker_with_users("packet_bytes_max = 1000");
    let scram = Scram::new("alice", "wonderland");
    let (first, text) = (scram.first(), "x".repeat(1000));
    let own = [Property::AuthenticationMethod(METHOD), Property::AuthenticationData(&first)];
    for (length, is_taken) in [(800, true), (1000, false)] {
        for more in [
            Property::ReasonString(&text[..length]),
            Property::UserProperty { name: "name", value: &text[..length] },
        ] {
            let mut client = log_in(&broker, &unique("large"), "alice", "wonderland");
            client.send_auth(0x19, &[own[0], own[1], more]);
            if is_taken {
                receive_auth(&mut client, 0x18);
            } else {
                client.assert_closed_with(0x95);
            }
        }
    }
    broker.stop();
}

/// A session belongs to its client identifier, so it is found again after the next proof.
#[test]
fn session_is_found_again_after_the_proof() {
    let broker = broker_with_users("");
    let id = unique("stay");
    let open = |topic: Option<&str>| {
        let scram = Scram::new("alice", "wonderland");
        let mut client = Client::raw(broker.addr(), V5);
        let mut hello = Hello::persistent(V5, &id);
        hello.properties.push(Property::AuthenticationMethod(METHOD));
        hello.properties.push(Property::AuthenticationData(&scram.first()));
        client.send(&hello.bytes());
        let (client_final, _) = scram.last(&receive_auth(&mut client, 0x18));
        send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
        let Got::ConnAck(present, 0, _) = client.next() else { panic!("refused") };
        if let Some(topic) = topic {
            client.subscribe(topic, 1);
        }
        (client, present)
    };
    let (client, present) = open(Some("kept"));
    assert!(!present);
    client.disconnect();
    log_in(&broker, &unique("sender"), "bob", "builder").deliver("kept", "waited");
    let (mut client, present) = open(None);
    assert!(present);
    assert_eq!(client.message().text(), "waited");
    broker.stop();
}

#[test]
fn scram_user_prints_a_line_that_holds_no_password_and_takes_any_name() {
    let line = user_line("alice", "wonderland", &[]);
    assert!(line.starts_with("alice = \"SCRAM-SHA-256$4096:"), "{line}");
    assert!(!line.contains("wonderland"));
    assert_ne!(user_line("alice", "wonderland", &[]), line);
    let slow = user_line("carol", "pass,word=", &["--iterations", "5000"]);
    assert!(slow.starts_with("carol = \"SCRAM-SHA-256$5000:"), "{slow}");
    let odd = user_line("d = [e],\"f\"", "pass word", &[]);
    let broker = Broker::start_configured(&format!("[scram_users]\n{line}\n{slow}\n{odd}\n"));
    log_in(&broker, &unique("plain"), "alice", "wonderland");
    log_in(&broker, &unique("slow"), "carol", "pass,word=");
    log_in(&broker, &unique("odd"), "d =3D [e]=2C\"f\"", "pass word");
    broker.stop();
}

#[test]
fn scram_user_says_what_is_wrong() {
    for (name, password, arguments, word) in [
        ("alice", "", &[][..], "the password"),
        ("alice", "bell\u{7}", &[], "the password"),
        ("", "wonderland", &[], "the user name"),
        ("alice", "wonderland", &["--iterations", "4095"], "4096"),
    ] {
        let (is_success, lines, said) = make_user(name, password, arguments);
        assert!(!is_success && lines.is_empty());
        assert!(said.contains(word), "{said}");
        assert!(!said.contains("wonderland"), "{said}");
    }
}

#[test]
fn user_that_cannot_be_read_stops_the_start_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    std::fs::write(&path, "[scram_users]\nbob = \"builder\"\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.args(["--listen", "127.0.0.1:0", "--config"]).arg(&path).stdin(Stdio::null());
    let (status, lines, said) = Process::spawn(&mut command).finish_with_stderr();
    assert!(!status.success() && lines.is_empty());
    assert!(said.contains("`bob`") && said.contains("scram-user"), "{said}");
    assert!(!said.contains("builder"), "{said}");
}

/// The way to one password for MQTT 3.1.1 and for SCRAM.
#[test]
fn user_of_the_password_file_logs_in_by_scram_and_by_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users");
    for arguments in [&["carol", "--scram"][..], &["dave"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
        command.arg("passwd").arg(&file).args(arguments).stdin(Stdio::piped());
        let mut process = Process::spawn(&mut command);
        writeln!(process.stdin(), "chess").unwrap();
        process.succeed();
    }
    let section = format!("[authentication]\npassword_file = \"{}\"\n", file.display());
    let broker = Broker::start_configured(&section);
    log_in(&broker, &unique("scram"), "carol", "chess").disconnect();
    for (version, name) in [(V311, "carol"), (V5, "carol"), (V311, "dave")] {
        let id = unique("password");
        let (client, answer) =
            Hello::new(version, &id).user(name, b"chess").try_open(broker.addr());
        assert!(matches!(answer, Got::ConnAck(_, 0, _)), "{answer:?}");
        client.disconnect();
    }
    // Nobody knows more of dave than what checks his password.
    let scram = Scram::new("dave", "chess");
    let mut client = hello(&broker, &unique("no"), METHOD, &scram.first());
    let (client_final, _) = scram.last(&receive_auth(&mut client, 0x18));
    send_auth(&mut client, CONTINUE, Some(METHOD), &client_final);
    assert_refused(client, 0x87);
    broker.stop();
}

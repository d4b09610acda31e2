//! Listeners: TLS, WebSocket, Unix sockets and PROXY headers, over real sockets.
//!
//! Each test starts a broker whose first listener is plain TCP, where `$SYS` is read, and beside it the
//! listeners that it is about, in the order of its settings ([`Broker::listener`]).

mod authority;
mod browser;
mod proxy;
mod renewal;
mod tls;
mod unix;
mod websocket;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::codec::frame_len;
use mailboxqtt::ids::ProtocolVersion::V311;

use crate::broker::Broker;
use crate::process::{PATIENCE, unique};
use crate::wire::{Client, Hello};

/// A CONNACK that says yes.
const ACCEPTED: &[u8] = &[0x20, 2, 0, 0];

/// `$SYS` is up to date soon.
const QUICK: &str = "sys_interval_s = 1\n";

/// Half-open connections end soon.
const IMPATIENT: &str = "sys_interval_s = 1\nhandshake_s_max = 1\n";

#[test]
fn listener_has_a_limit_of_its_own_and_those_over_it_are_counted() {
    let settings = format!("{QUICK}[[listeners]]\nlisten = '127.0.0.1:0'\nconnections_max = 1\n");
    let broker = Broker::start_listening(1, &settings);
    let (first, _) = Hello::new(V311, &unique("first")).open(broker.listener(0));
    let mut second = Client::raw(broker.listener(0), V311);
    second.assert_closed();
    await_refused(&broker, "too_many");
    // The place is free again.
    first.disconnect();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut third = Client::raw(broker.listener(0), V311);
        third.send_in_vain(&Hello::new(V311, &unique("third")).bytes());
        if third.next_frame().is_some() {
            break;
        }
        assert!(Instant::now() < deadline, "nobody is let in");
    }
    broker.stop();
}

#[test]
fn listener_to_which_clients_come_too_fast_refuses_them_and_others_do_not() {
    let broker =
        Broker::start_listening(1, "[[listeners]]\nlisten = '127.0.0.1:0'\naccept_rate_max = 1\n");
    let is_let_in = || {
        let mut client = Client::raw(broker.listener(0), V311);
        client.send_in_vain(&Hello::new(V311, &unique("fast")).bytes());
        client.next_frame().is_some()
    };
    assert!(is_let_in());
    let deadline = Instant::now() + PATIENCE;
    while is_let_in() {
        assert!(Instant::now() < deadline, "everybody is let in");
    }
    await_refused(&broker, "too_fast");
    broker.stop();
}

#[test]
fn listener_may_refuse_or_allow_anonymous_clients_of_its_own() {
    let broker = Broker::start_listening(
        2,
        "[[listeners]]\nlisten = '127.0.0.1:0'\nallow_anonymous = false\n\
         [[listeners]]\nlisten = '0.0.0.0:0'\nallow_anonymous = true\n",
    );
    let mut refused = Client::raw(broker.listener(0), V311);
    refused.send(&Hello::new(V311, &unique("nobody")).bytes());
    refused.assert_connect_refused(&[5]);
    let open = SocketAddr::from(([127, 0, 0, 1], broker.listener(1).port()));
    Hello::new(V311, &unique("anybody")).open(open);
    broker.stop();
}

/// Waits until `$SYS` says that a connection was refused for `reason`.
fn await_refused(broker: &Broker, reason: &str) {
    let mut watcher = Client::connect(broker, V311);
    watcher.subscribe(&format!("$SYS/broker/connections/refused/{reason}"), 0);
    let deadline = Instant::now() + PATIENCE;
    while watcher.message().text() == "0" {
        assert!(Instant::now() < deadline, "nobody was refused for {reason}");
    }
}

/// Waits until the broker's log has `words`.
fn await_log(broker: &Broker, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !broker.stderr().contains(words) {
        assert!(Instant::now() < deadline, "`{words}` is not in the log");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A connection on which nothing has been said.
fn dial(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// CONNECT and the answer.
fn say_hello(stream: &mut (impl Read + Write)) -> Vec<u8> {
    stream.write_all(&Hello::new(V311, &unique("raw")).bytes()).unwrap();
    next_packet(stream)
}

/// The next packet as it is; empty at the end of the connection.
fn next_packet(stream: &mut impl Read) -> Vec<u8> {
    let mut packet = Vec::new();
    loop {
        let len = frame_len(&packet, u32::MAX).unwrap();
        let missing = match len {
            Some(len) if len <= packet.len() => return packet,
            Some(len) => len - packet.len(),
            None => 1,
        };
        let mut part = vec![0; missing];
        match stream.read(&mut part) {
            Ok(0) => {
                assert!(packet.is_empty(), "closed within a packet");
                return packet;
            }
            Ok(count) => packet.extend_from_slice(&part[..count]),
            Err(error) => panic!("no packet came: {error}"),
        }
    }
}

/// Everything that comes until the end of the connection, which a reset is, too.
fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => (),
        Err(error) => panic!("the connection does not end: {error}"),
    }
    bytes
}

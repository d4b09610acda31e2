//! WebSocket and WSS, with Paho, MQTT.js and by hand.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use mailboxqtt::ids::ProtocolVersion::V311;

use crate::broker::Broker;
use crate::process::{Process, script, tools, unique};
use crate::transports::authority::{Authority, text};
use crate::transports::{ACCEPTED, IMPATIENT, QUICK, await_refused, dial, read_to_end};
use crate::wire::{Client, Hello, publish};

#[test]
fn paho_makes_a_round_trip_over_websocket_and_wss() {
    let authority = Authority::new();
    let broker = start(QUICK, &authority);
    for scenario in ["round_trip_at_each_qos", "will_follows_a_lost_connection_and_not_a_clean_one"]
    {
        for version in ["311", "5"] {
            paho(&broker, 0, &[version, scenario, &unique("ws"), "websockets"]);
        }
    }
    for scenario in ["round_trip_at_each_qos", "thousand_messages_at_qos_2_arrive_exactly_once"] {
        let authority = authority.file();
        paho(&broker, 1, &["5", scenario, &unique("wss"), "websockets", text(&authority)]);
    }
    broker.stop();
}

#[test]
fn mqttjs_makes_a_round_trip_over_websocket_and_wss() {
    let authority = Authority::new();
    let broker = start(QUICK, &authority);
    for scenario in ["roundTripAtEachQos", "willFollowsALostConnectionAndNotACleanOne"] {
        for version in ["4", "5"] {
            mqttjs(&broker, 0, &[version, scenario, &unique("ws"), "ws"]);
        }
    }
    for scenario in ["roundTripAtEachQos", "thousandMessagesAtQos2ArriveExactlyOnce"] {
        let authority = authority.file();
        mqttjs(&broker, 1, &["5", scenario, &unique("wss"), "wss", text(&authority)]);
    }
    broker.stop();
}

/// [MQTT-6.0.0-2] [MQTT-6.0.0-2 of 3.1.1], on a WebSocket whose subprotocol is `mqtt` [MQTT-6.0.0-4]
/// [MQTT-6.0.0-4 of 3.1.1].
#[test]
fn packets_may_lie_in_frames_in_any_way() {
    let broker = start(QUICK, &Authority::new());
    let mut subscriber = Client::connect(&broker, V311);
    let topic = unique("frames");
    subscriber.subscribe(&topic, 1);

    let mut socket = upgrade(&broker);
    for byte in Hello::new(V311, &unique("slowly")).bytes() {
        socket.write_all(&frame(0x82, &[byte])).unwrap();
    }
    assert_eq!(next_frame(&mut socket), (0x82, ACCEPTED.to_vec()));
    let packets: Vec<u8> =
        (1..=100).flat_map(|id| publish(V311, &topic, b"x", 1, id, false)).collect();
    socket.write_all(&frame(0x82, &packets)).unwrap();
    let mut acknowledged = Vec::new();
    while acknowledged.len() < 400 {
        acknowledged.extend(next_frame(&mut socket).1);
    }
    let expected: Vec<u8> = (1..=100).flat_map(|id| [0x40, 2, 0, id]).collect();
    assert_eq!(acknowledged, expected);
    assert_eq!(subscriber.receive(100).len(), 100);

    // A packet in parts, with a ping of WebSocket's own between them.
    let (first, last) = packets.split_at(3);
    let frames =
        [frame(0x02, first), frame(0x89, b"?"), frame(0x80, &last[..packets.len() / 100 - 3])];
    socket.write_all(&frames.concat()).unwrap();
    assert_eq!(next_frame(&mut socket), (0x8A, b"?".to_vec()));
    assert_eq!(next_frame(&mut socket), (0x82, vec![0x40, 2, 0, 1]));

    // The end of MQTT is the end of the WebSocket.
    socket.write_all(&frame(0x82, &[0xE0, 0])).unwrap();
    assert_eq!(next_frame(&mut socket), (0x88, 1000_u16.to_be_bytes().to_vec()));
    assert_eq!(read_to_end(&mut socket), b"");
    broker.stop();
}

/// [MQTT-6.0.0-1] [MQTT-6.0.0-1 of 3.1.1]: before CONNECT and behind it.
#[test]
fn text_ends_the_connection_with_1003() {
    let broker = start(QUICK, &Authority::new());
    for has_connected in [false, true] {
        let mut socket = upgrade(&broker);
        if has_connected {
            socket.write_all(&frame(0x82, &Hello::new(V311, &unique("text")).bytes())).unwrap();
            assert_eq!(next_frame(&mut socket), (0x82, ACCEPTED.to_vec()));
        }
        socket.write_all(&frame(0x81, b"\xC0\0")).unwrap();
        assert_eq!(next_frame(&mut socket), (0x88, 1003_u16.to_be_bytes().to_vec()));
        assert_eq!(read_to_end(&mut socket), b"");
    }
    broker.stop();
}

/// [MQTT-6.0.0-3] [MQTT-6.0.0-3 of 3.1.1]
#[test]
fn other_requests_are_refused_with_a_status_and_counted() {
    let broker = start(QUICK, &Authority::new());
    let good = request("");
    for (from, to, status, reason) in [
        ("/mqtt", "/other", "404", "websocket_path"),
        ("Protocol: mqtt", "Protocol: mqttv3.1", "400", "websocket_subprotocol"),
        ("Host", "Origin: https://evil.example\r\nHost", "403", "websocket_origin"),
        ("Upgrade: websocket\r\n", "", "400", "websocket_request"),
    ] {
        let mut stream = dial(broker.listener(0));
        stream.write_all(good.replace(from, to).as_bytes()).unwrap();
        let answer = String::from_utf8(read_to_end(&mut stream)).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{reason}: {answer}");
        await_refused(&broker, reason);
    }
    let mut stream = dial(broker.listener(2));
    stream.write_all(request("Origin: https://app.example\r\n").as_bytes()).unwrap();
    let mut answer = [0; 13];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 101 ");
    broker.stop();
}

#[test]
fn connection_that_does_not_become_a_websocket_in_time_ends() {
    let broker = start(IMPATIENT, &Authority::new());
    let mut stream = dial(broker.listener(0));
    stream.write_all(b"GET /mqtt HTTP/1.1\r\n").unwrap();
    assert_eq!(read_to_end(&mut stream), b"");
    await_refused(&broker, "websocket_too_slow");
    // And one that does and then says nothing.
    let mut silent = upgrade(&broker);
    assert_eq!(next_frame(&mut silent), (0x88, 1000_u16.to_be_bytes().to_vec()));
    assert_eq!(read_to_end(&mut silent), b"");
    broker.stop();
}

/// WebSocket, WSS, and WebSocket for the pages of one site.
fn start(top: &str, authority: &Authority) -> Broker {
    let listener = "[[listeners]]\nlisten = '127.0.0.1:0'\nprotocol = 'websocket'\n";
    let origins = "websocket_origins = ['https://app.example']\n";
    let tls = authority.server("server").settings();
    Broker::start_listening(3, &format!("{top}{listener}{listener}{tls}{listener}{origins}"))
}

fn paho(broker: &Broker, listener: usize, args: &[&str]) {
    let mut command = Command::new(tools("venv/bin/python"));
    command.arg(script("paho_scenarios.py"));
    run(command, broker, listener, args);
}

fn mqttjs(broker: &Broker, listener: usize, args: &[&str]) {
    let mut command = Command::new("node");
    command.arg(script("mqttjs_scenarios.mjs")).arg(tools("mqttjs"));
    run(command, broker, listener, args);
}

fn run(mut command: Command, broker: &Broker, listener: usize, args: &[&str]) {
    let port = broker.listener(listener).port().to_string();
    command.args(["localhost", &port]).args(args);
    Process::spawn(command.stdin(Stdio::null())).succeed();
}

fn request(more: &str) -> String {
    format!(
        "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\
         Sec-WebSocket-Protocol: mqtt\r\n\r\n"
    )
}

/// A WebSocket on which nothing has been said.
fn upgrade(broker: &Broker) -> TcpStream {
    let mut stream = dial(broker.listener(0));
    stream.write_all(request("").as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("sec-websocket-protocol: mqtt\r\n"), "{answer}");
    stream
}

/// A frame of a client, with up to 65,535 bytes.
fn frame(first_byte: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [9, 8, 7, 6];
    let mut frame = vec![first_byte];
    match payload.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// First byte and payload of a frame from the broker.
fn next_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut header = [0; 2];
    stream.read_exact(&mut header).unwrap();
    let len = match header[1] {
        126 => {
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            u16::from_be_bytes(len).into()
        }
        len => usize::from(len),
    };
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).unwrap();
    (header[0], payload)
}

//! The PROXY header, version 1 and 2.

use std::io::Write;

use crate::broker::Broker;
use crate::transports::{
    ACCEPTED, IMPATIENT, QUICK, await_log, await_refused, dial, read_to_end, say_hello,
};

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0C\xC0\0\x02\x07\x7F\0\0\x01\x10\x92\x07\x5B";

#[test]
fn client_behind_a_proxy_is_known_by_its_own_address() {
    let broker = start(QUICK);
    for (header, address) in [
        (&b"PROXY TCP4 192.0.2.7 127.0.0.1 4241 1883\r\n"[..], "192.0.2.7:4241"),
        (V2, "192.0.2.7:4242"),
    ] {
        let mut good = dial(broker.listener(0));
        good.write_all(header).unwrap();
        assert_eq!(say_hello(&mut good), ACCEPTED);
        // Whoever breaks the rules is in the log.
        let mut bad = dial(broker.listener(0));
        bad.write_all(&[header, &[0xC0, 0]].concat()).unwrap();
        assert_eq!(read_to_end(&mut bad), b"");
        await_log(&broker, &format!("peer={address}"));
    }
    broker.stop();
}

#[test]
fn proxy_may_speak_for_itself_or_not_know() {
    let broker = start(QUICK);
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let mut stream = dial(broker.listener(0));
        stream.write_all(header).unwrap();
        assert_eq!(say_hello(&mut stream), ACCEPTED);
    }
    broker.stop();
}

#[test]
fn connection_without_a_right_header_ends_and_is_counted() {
    let broker = start(QUICK);
    let endless = [b"PROXY TCP4 ".as_slice(), &[b'1'; 100]].concat();
    let large = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xFF\xFF";
    let hello = b"\x10\x0D\0\x04MQTT\x04\x02\0\0\0\x01a";
    for wrong in [&hello[..], &endless, large, b"PROXY TCP4 192.0.2.7 x 1 2\r\n"] {
        let mut stream = dial(broker.listener(0));
        stream.write_all(wrong).unwrap();
        assert_eq!(read_to_end(&mut stream), b"");
    }
    await_refused(&broker, "proxy_header");
    broker.stop();

    // One that never ends.
    let broker = start(IMPATIENT);
    let mut stream = dial(broker.listener(0));
    stream.write_all(&V2[..20]).unwrap();
    assert_eq!(read_to_end(&mut stream), b"");
    await_refused(&broker, "proxy_too_slow");
    broker.stop();
}

fn start(top: &str) -> Broker {
    let settings = format!(
        "{top}[[listeners]]\nlisten = '127.0.0.1:0'\nproxy_protocol = true\nallow_anonymous = true\n"
    );
    Broker::start_listening(1, &settings)
}

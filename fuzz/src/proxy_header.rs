//! The start of a connection behind a proxy: the header is read to its end and no further, however it comes.
//!
//! The first byte says how many bytes are a plan of pieces, the rest is what the proxy sends.

use std::net::SocketAddr;
use std::pin::pin;

use mailboxqtt::net::proxy::read_header;

use super::choices::Choices;
use super::pieces::{Pieces, finish};

const BINARY: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const LINE_BYTES_MAX: usize = 107;
const HEADER_BYTES_MAX: usize = 4096;

/// See the module comment.
pub fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let plan_len = choices.below(16);
    let plan = choices.bytes(plan_len);
    let sent = choices.rest();

    let (result, read_len) = read(sent, &[]);
    assert_eq!(read(sent, plan), (result.clone(), read_len), "in pieces");
    assert_eq!(read(sent, &[1]), (result.clone(), read_len), "byte by byte");
    match result {
        Ok(address) => {
            assert_eq!(Some(read_len), header_len(sent), "no more and no less than the header");
            let header = &sent[..read_len];
            assert_eq!(read(header, plan), (Ok(address), read_len), "nothing behind it counts");
            for len in 0..read_len {
                assert!(read(&sent[..len], plan).0.is_err(), "a part of a header is no header");
            }
            check_address(address, header);
        }
        Err(words) => {
            assert!(read_len <= HEADER_BYTES_MAX);
            assert!(!words.is_empty() && !words.contains(char::is_control), "{words:?}");
        }
    }
}

/// What is said, and how many bytes are not there any more.
fn read(sent: &[u8], plan: &[u8]) -> (Result<Option<SocketAddr>, String>, usize) {
    let mut stream = Pieces::new(sent, plan);
    let result = {
        let mut reading = pin!(read_header(&mut stream));
        finish(|cx| reading.as_mut().poll(cx))
    };
    assert!(stream.output.is_empty());
    (result.map_err(|error| error.to_string()), sent.len() - stream.input.len())
}

/// As the specification has it: up to the end of the line, or what the 15th and 16th byte say.
fn header_len(sent: &[u8]) -> Option<usize> {
    if sent.starts_with(BINARY) {
        let len = 16 + usize::from(u16::from_be_bytes(*sent[14..].first_chunk()?));
        (len <= HEADER_BYTES_MAX).then_some(len)
    } else {
        let line = sent.split_inclusive(|byte| *byte == b'\n').next()?;
        (line.ends_with(b"\r\n") && line.len() <= LINE_BYTES_MAX).then_some(line.len())
    }
}

/// Whoever writes the address down in either version is understood.
fn check_address(address: Option<SocketAddr>, header: &[u8]) {
    let Some(address) = address else {
        let is_silent = header.starts_with(BINARY) || header.starts_with(b"PROXY UNKNOWN");
        return assert!(is_silent, "it has an address");
    };
    let (ip, port) = (address.ip(), address.port());
    let line = match address {
        SocketAddr::V4(_) => format!("PROXY TCP4 {ip} 192.0.2.1 {port} 1883\r\n"),
        SocketAddr::V6(_) => format!("PROXY TCP6 {ip} 2001:db8::1 {port} 1883\r\n"),
    };
    assert_eq!(read(line.as_bytes(), &[]).0, Ok(Some(address)), "{line}");
    let (kind, octets) = match address {
        SocketAddr::V4(it) => (0x11, it.ip().octets().to_vec()),
        SocketAddr::V6(it) => (0x21, it.ip().octets().to_vec()),
    };
    let len = 2 * octets.len() + 4;
    let port = port.to_be_bytes();
    let binary = [BINARY, &[0x21, kind, 0, len as u8], &octets, &octets, &port, &[7, 91]].concat();
    assert_eq!(read(&binary, &[]).0, Ok(Some(address)), "{binary:?}");
}

//! Unix sockets.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::{fs, io::Write};

use mailboxqtt::ids::ProtocolVersion::V311;

use crate::broker::Broker;
use crate::transports::{ACCEPTED, next_packet, say_hello};
use crate::wire::Client;

#[test]
fn message_from_a_unix_socket_arrives_over_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mqtt.sock");
    let settings = format!("[[listeners]]\nlisten = 'unix:{}'\n", path.display());
    let broker = Broker::start_listening(1, &settings);
    let mut subscriber = Client::connect(&broker, V311);
    subscriber.subscribe("from/here", 1);

    let metadata = fs::metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let mut stream = UnixStream::connect(&path).unwrap();
    assert_eq!(say_hello(&mut stream), ACCEPTED);
    stream.write_all(b"\x32\x0F\0\x09from/here\0\x01hi").unwrap();
    assert_eq!(next_packet(&mut stream), [0x40, 2, 0, 1]);
    assert_eq!(subscriber.message().text(), "hi");
    broker.stop();
    assert!(!path.exists(), "the socket is left behind");
}

//! What is delivered, and what is said, when the disk gives back something else than what was written.

use std::fs;
use std::path::Path;
use std::time::Instant;

use mailboxqtt::ids::ProtocolVersion::{V5, V311};

use crate::DataDir;
use crate::process::PATIENCE;
use crate::server::Server;
use crate::wire::{Client, Hello};

#[test]
fn waiting_message_with_a_changed_byte_is_not_delivered_but_counted_and_logged() {
    let directory = DataDir::new();
    let server = Server::start(directory.path());
    let mut absent = Hello::persistent(V311, "absent").open(server.addr()).0;
    absent.subscribe("t/#", 1);
    absent.disconnect();
    let mut publisher = Hello::new(V5, "publisher").open(server.addr()).0;
    for payload in ["the first", "the second", "the third"] {
        publisher.deliver("t/waiting", payload);
    }
    publisher.deliver_retained("kept", "is retained");
    server.kill();

    // From here on they wait in the log alone. What is retained is read at once.
    let server = Server::start(directory.path());
    change_byte(&directory.path().join("log"), b"the second");
    let mut absent = Hello::persistent(V311, "absent").open(server.addr()).0;
    let messages = absent.receive(2);
    assert_eq!(messages.iter().map(|it| it.text()).collect::<Vec<_>>(), ["the first", "the third"]);
    absent.assert_silent();
    wait_for_counter(server.addr(), "unreadable", "1");
    absent.disconnect();
    // Nobody waits for it any more.
    let mut absent = Hello::persistent(V311, "absent").open(server.addr()).0;
    absent.assert_silent();
    absent.disconnect();
    let said = server.stop_and_say();
    let line = said.lines().find(|line| line.contains("a message cannot be read and is lost"));
    let line = line.unwrap_or_else(|| panic!("it says nothing of it: {said}"));
    assert!(line.contains("ERROR") && line.contains("does not check"), "{line}");

    // Not in the newest file any more, of which the end would be cut.
    Server::start(directory.path()).stop();
    change_byte(&directory.path().join("log"), b"is retained");
    let server = Server::start(directory.path());
    let mut reader = Hello::new(V5, "reader").open(server.addr()).0;
    reader.subscribe("kept", 1);
    reader.assert_silent();
    assert!(server.stop_and_say().contains("a message cannot be read and is lost"));
}

/// Turns one bit in the middle of the only place where `text` is.
fn change_byte(log: &Path, text: &[u8]) {
    let mut changed = 0;
    for entry in fs::read_dir(log).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let found = bytes.windows(text.len()).position(|window| window == text);
        if let Some(at) = found {
            bytes[at + text.len() / 2] ^= 1;
            fs::write(&path, bytes).unwrap();
            changed += 1;
        }
    }
    assert_eq!(changed, 1);
}

/// Until `$SYS/broker/publish/messages/dropped/REASON` has that value.
fn wait_for_counter(addr: std::net::SocketAddr, reason: &str, value: &str) {
    let mut reader: Client = Hello::new(V311, "counter").open(addr).0;
    reader.subscribe(&format!("$SYS/broker/publish/messages/dropped/{reason}"), 0);
    let deadline = Instant::now() + PATIENCE;
    while reader.message().text() != value {
        assert!(Instant::now() < deadline, "{reason} is not {value}");
    }
}

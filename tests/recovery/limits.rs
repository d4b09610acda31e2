//! Limits of queues over a kill: what was evicted stays away, what waits counts.

use std::fs;
use std::path::Path;

use mailboxqtt::ids::ProtocolVersion::V5;

use crate::DataDir;
use crate::server::Server;
use crate::wire::{Client, Got, Hello, PUBACK};

const QUOTA_EXCEEDED: u8 = 0x97;

fn start(dir: &Path, settings: &str) -> Server {
    let path = dir.join("settings.toml");
    fs::write(&path, settings).unwrap();
    Server::start_with(dir, &["--config", path.to_str().unwrap()])
}

fn leave(server: &Server, topic: &str) {
    let mut away = Hello::persistent(V5, "away").open(server.addr()).0;
    away.subscribe(topic, 1);
    away.disconnect();
}

fn texts_of(server: &Server, count: usize) -> Vec<String> {
    let (mut back, was_present) = Hello::persistent(V5, "away").open(server.addr());
    assert!(was_present);
    let number = |text: &str| text.trim_end_matches('.').to_owned();
    let texts = back.receive(count).iter().map(|message| number(message.text())).collect();
    back.assert_silent();
    back.disconnect();
    texts
}

/// Short messages wait in memory, long ones in the log.
#[test]
fn what_was_evicted_does_not_come_back_after_a_kill() {
    let settings = "queue_policy = \"drop_oldest\"\nqueue_messages_max = 10\nsys_interval_s = 1\n";
    for len in [10, 50_000] {
        let directory = DataDir::new();
        let server = start(directory.path(), settings);
        leave(&server, "newest");
        let mut sender = Hello::new(V5, "sender").open(server.addr()).0;
        for number in 0..50 {
            sender.deliver("newest", format!("{number:.<len$}"));
        }
        let mut witness = Hello::new(V5, "witness").open(server.addr()).0;
        witness.subscribe("$SYS/broker/publish/messages/dropped/queue_evicted", 0);
        while witness.message().text().parse::<u32>().unwrap() < 40 {}
        // When this is safe, what was written before it is.
        sender.deliver("newest", format!("{:.<len$}", 50));
        while witness.message().text().parse::<u32>().unwrap() < 41 {}
        sender.retain("other", "x", 1, 999);
        assert_eq!(sender.next(), Got::Ack(PUBACK, 999, 0x10));
        server.kill();

        let server = start(directory.path(), settings);
        let newest: Vec<String> = (41..=50).map(|number| number.to_string()).collect();
        assert_eq!(texts_of(&server, 10), newest, "{len}");
        server.stop();
    }
}

#[test]
fn queue_that_is_full_at_a_kill_is_full_after_it() {
    let settings = "queue_messages_max = 3\nqueues_messages_max = 5";
    let directory = DataDir::new();
    let server = start(directory.path(), settings);
    leave(&server, "full");
    let publish = |server: &Server, text: &str| {
        let mut sender: Client = Hello::new(V5, "sender").open(server.addr()).0;
        sender.publish("full", text, 1, 7);
        let Got::Ack(PUBACK, 7, code) = sender.next() else { panic!("no PUBACK") };
        code
    };
    for text in ["a", "b", "c"] {
        assert_eq!(publish(&server, text), 0);
    }
    server.kill();
    let server = start(directory.path(), settings);
    assert_eq!(publish(&server, "refused"), QUOTA_EXCEEDED);
    server.kill();
    // Nothing of what was refused was written.
    let server = start(directory.path(), "");
    assert_eq!(publish(&server, "d"), 0);
    assert_eq!(texts_of(&server, 4), ["a", "b", "c", "d"]);
    server.stop();
}

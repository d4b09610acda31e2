//! Data that earlier versions of the broker have written are there for this one.
//!
//! `first_format` was left behind by the first version with a log, at SIGTERM: `away` has subscribed to `kept/#` and has
//! three messages, of which `state.redb` has copies; `writer` has not released the third.
//!
//! `killed` was left behind by kill -9, before anything was folded: the tables are empty, and each kind of record that a
//! 3.1.1 client can cause is in the log. `away` and `writer` are as above, and `writer` was connected and has a will.

use std::fs;
use std::path::Path;

use mailboxqtt::ids::ProtocolVersion::V311;

use crate::DataDir;
use crate::server::Server;
use crate::wire::{Hello, Publication};

#[test]
fn data_of_the_first_format_are_there_also_after_a_kill() {
    let directory = left_behind("first_format");
    // The first start makes another format of it.
    let args = ["--log-segment-bytes", "65536"];
    Server::start_with(directory.path(), &args).kill();
    let server = Server::start_with(directory.path(), &args);

    let (mut writer, was_present) = Hello::persistent(V311, "writer").open(server.addr());
    assert!(was_present);
    // It is known, and so not delivered again.
    writer.send_publication(&Publication::new("kept/open", "third").qos(2, 77).dup());
    writer.complete(2, 77);
    let (mut away, was_present) = Hello::persistent(V311, "away").open(server.addr());
    assert!(was_present);
    let messages = away.receive(3);
    let seen: Vec<(&str, &str)> = messages.iter().map(|it| (&*it.topic, it.text())).collect();
    assert_eq!(seen, [("kept/one", "first"), ("kept/two", "second"), ("kept/open", "third")]);
    writer.publish("kept/new", "fourth", 1, 78);
    writer.complete(1, 78);
    assert_eq!(away.message().text(), "fourth");
    away.subscribe("retained", 1);
    assert_eq!(away.message().text(), "remembered");
    away.assert_silent();
    let said = server.stop_and_say();
    assert!(!said.contains("ERROR") && !said.contains("WARN"), "{said}");
}

#[test]
fn log_that_nobody_has_folded_is_there_also_after_another_kill() {
    let directory = left_behind("killed");
    let args = ["--log-segment-bytes", "65536"];
    Server::start_with(directory.path(), &args).kill();
    let server = Server::start_with(directory.path(), &args);

    let (mut writer, was_present) = Hello::persistent(V311, "writer").open(server.addr());
    assert!(was_present);
    writer.send_publication(&Publication::new("kept/open", "third").qos(2, 77).dup());
    writer.complete(2, 77);
    let (mut away, was_present) = Hello::persistent(V311, "away").open(server.addr());
    assert!(was_present);
    let messages = away.receive(4);
    let seen: Vec<(&str, &str)> = messages.iter().map(|it| (&*it.topic, it.text())).collect();
    let expected = [
        ("kept/one", "first"),
        ("kept/two", "second"),
        ("kept/open", "third"),
        ("kept/will", "its last words"),
    ];
    assert_eq!(seen, expected);
    for topic in ["gone/new", "kept/new"] {
        writer.publish(topic, "fourth", 1, 78);
        writer.complete(1, 78);
    }
    assert_eq!(away.message().topic, "kept/new");
    away.subscribe("cleared", 1);
    away.subscribe("retained", 1);
    assert_eq!(away.message().text(), "remembered");
    away.assert_silent();
    let said = server.stop_and_say();
    assert!(!said.contains("ERROR") && !said.contains("WARN"), "{said}");
}

/// A copy of what is in the folder with this name.
fn left_behind(name: &str) -> DataDir {
    let directory = DataDir::new();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recovery").join(name);
    fs::create_dir_all(directory.path().join("log")).unwrap();
    for folder in ["", "log"] {
        for entry in fs::read_dir(from.join(folder)).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                let to = directory.path().join(folder).join(entry.file_name());
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }
    directory
}

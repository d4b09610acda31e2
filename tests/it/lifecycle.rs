//! The broker as a process: how it starts, what it says, how it ends.
//!
//! What an operator sees: one line on standard output, sentences on standard error, exit codes.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use mailboxqtt::ids::ProtocolVersion::{V5, V311};
use rustix::process::Signal;

use crate::broker::Broker;
use crate::process::Process;
use crate::wire::{Client, Got, PUBACK, publish};

/// [MQTT-4.13.2-1]; 0x8B is Server shutting down.
#[test]
fn clients_are_told_of_the_shutdown_and_the_exit_code_is_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let broker = Broker::start_with(&[]);
        let mut new = Client::connect(&broker, V5);
        let mut old = Client::connect(&broker, V311);
        // Neither a client that says nothing nor one that never said its name holds the end up.
        let silent = Client::raw(broker.addr(), V311);
        broker.signal(signal);
        assert_eq!(new.next(), Got::Disconnect(0x8B));
        new.assert_closed();
        old.assert_closed();
        broker.end();
        drop(silent);
    }
}

#[test]
fn what_was_acknowledged_before_the_shutdown_reaches_the_subscriber_before_its_end() {
    for (version, qos) in [(V311, 0), (V5, 0), (V311, 1), (V5, 2)] {
        const MESSAGES: u16 = 900;
        let broker = Broker::start_with(&[]);
        let mut receiver = Client::connect(&broker, version);
        receiver.subscribe("last", qos);
        let mut sender = Client::connect(&broker, version);
        // More than the socket buffers of an idle receiver hold.
        let payload = vec![b'x'; 10_000];
        for id in 1..=MESSAGES {
            sender.send(&publish(version, "last", &payload, 1, id, false));
        }
        for id in 1..=MESSAGES {
            assert!(matches!(sender.next(), Got::Ack(PUBACK, got, 0) if got == id));
        }
        broker.signal(Signal::TERM);
        for _ in 0..MESSAGES {
            assert_eq!(receiver.message().payload.len(), payload.len());
        }
        receiver.assert_closed_with(0x8B);
        broker.end();
    }
}

/// Whoever does not take its goodbye within two seconds goes without it.
#[test]
fn client_that_never_reads_does_not_hold_the_shutdown_up_for_long() {
    let broker = Broker::start_with(&[]);
    let mut deaf = Client::connect(&broker, V311);
    deaf.subscribe("deaf", 0);
    let mut sender = Client::connect(&broker, V311);
    for _ in 0..2_000 {
        sender.publish("deaf", vec![b'x'; 10_000], 0, 0);
    }
    sender.assert_silent();
    broker.signal(Signal::TERM);
    broker.end();
}

#[test]
fn address_in_use_is_one_sentence_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let said = fails(command().args(["--listen", &addr]));
    assert!(said.contains(&format!("{addr} is in use")) && said.contains("--listen"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn settings_that_cannot_be_are_refused_by_name_with_exit_code_1() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("settings.toml");
    let path = path.to_str().unwrap();
    for (text, words) in [
        ("inflight_maximum = 3", &["inflight_maximum", "settings.toml"][..]),
        ("inflight_max = 0", &["`inflight_max`", "at least 1"]),
        ("inflight_max = \"many\"", &["`inflight_max`", "settings.toml", "a whole number"]),
        ("inflight_max = 70000", &["`inflight_max`", "settings.toml", "from 0 to 65535"]),
        ("[authentication]\nchecks_max = -1", &["`authentication.checks_max`", "line 2"]),
        ("packet_bytes_max = 1", &["`packet_bytes_max`"]),
        ("sys_interval_s = 0", &["`sys_interval_s`"]),
        ("= = =", &["settings.toml"]),
    ] {
        std::fs::write(path, text).unwrap();
        let said = fails(command().args(["--listen", "127.0.0.1:0", "--config", path]));
        assert!(words.iter().all(|word| said.contains(word)), "`{text}` gave: {said}");
    }
    let said = fails(command().args(["--config", "/nowhere/settings.toml"]));
    assert!(said.contains("/nowhere/settings.toml"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn listening_to_the_world_needs_consent() {
    let said = fails(command().args(["--listen", "0.0.0.0:0"]));
    assert!(said.contains("--allow-anonymous"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn one_line_says_version_address_and_shards() {
    let mut process = Process::spawn(command().args(["--listen", "127.0.0.1:0", "--shards", "3"]));
    let line = process.wait_for("it served", |line| Some(line.to_owned()));
    let (name, rest) = line.split_once(" listening on 127.0.0.1:").unwrap();
    assert_eq!(name, concat!("mailboxqtt ", env!("CARGO_PKG_VERSION")));
    let (port, rest) = rest.split_once(' ').unwrap();
    assert!(port.parse::<u16>().unwrap() > 0);
    assert_eq!(rest, "with 3 router shards");
    process.signal(Signal::TERM);
    assert!(process.succeed().is_empty());
}

#[test]
fn socket_addr_in_the_environment_says_where_to_listen_and_an_argument_wins() {
    let addr_of = |command: &mut Command| {
        let mut process = Process::spawn(command);
        process.wait_for("it served", |line| {
            let (_, rest) = line.split_once(" listening on ")?;
            Some(rest.split(' ').next()?.to_owned())
        })
    };
    let by_environment = addr_of(command().env("SOCKET_ADDR", "127.0.0.2:0"));
    assert!(by_environment.starts_with("127.0.0.2:"), "{by_environment}");
    let mut both = command();
    both.env("SOCKET_ADDR", "127.0.0.2:0").args(["--listen", "127.0.0.3:0"]);
    let by_argument = addr_of(&mut both);
    assert!(by_argument.starts_with("127.0.0.3:"), "{by_argument}");
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mailboxqtt"));
    command.env_remove("SOCKET_ADDR").env("MAILBOXQTT_DURABILITY", "none").stdin(Stdio::null());
    command
}

/// Runs `command`, which has to end with exit code 1 and nothing on standard output; returns what it
/// said on standard error.
fn fails(command: &mut Command) -> String {
    let mut process = Process::spawn(command);
    let (status, lines, said) = process.finish_with_stderr();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(lines.is_empty(), "{lines:?}");
    said
}

//! The load generator against the broker of this repository: what a broker that forwards frames
//! blindly cannot show.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output};

use mailboxqtt::broker::Broker;
use mailboxqtt::config::File;
use serde_json::Value;

#[test]
fn both_versions_deliver_everything_once_in_every_scenario_and_qos() {
    let broker = broker(File::default());
    for version in ["3.1.1", "5"] {
        for scenario in ["p2p", "fan-in", "fan-out", "wildcard"] {
            for qos in ["0", "1", "2"] {
                let arguments = ["--mqtt", version, "--scenario", scenario, "--qos", qos];
                delivers_all(broker, &arguments);
            }
        }
    }
}

#[test]
fn publishers_with_topic_aliases_deliver_everything_once() {
    let broker = broker(File::default());
    for qos in ["0", "1", "2"] {
        for pace in [["--window", "100"], ["--window", "1"], ["--rate", "2000"]] {
            let aliased = ["--mqtt", "5", "--topic-alias", "--qos", qos];
            delivers_all(broker, &[&aliased[..], &pace].concat());
        }
    }
}

#[test]
fn more_topics_than_the_broker_has_aliases_for_are_refused_with_the_number() {
    let broker = broker(File { topic_alias_max: 3, ..File::default() });
    let arguments = ["--mqtt", "5", "--topic-alias", "--scenario", "wildcard"];
    let output = loadgen(broker, &arguments);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("takes 3 topic aliases"), "{}", stderr(&output));
}

/// The broker ends connections that have more than its Receive Maximum under way.
#[test]
fn the_receive_maximum_of_the_broker_is_kept() {
    let broker = broker(File { receive_max: 3, ..File::default() });
    for qos in ["1", "2"] {
        for pace in [["--window", "100"], ["--rate", "2000"]] {
            delivers_all(broker, &[&["--mqtt", "5", "--qos", qos], &pace[..]].concat());
        }
    }
}

#[test]
fn a_qos_that_the_broker_does_not_take_is_named() {
    let broker = broker(File { qos_max: 1, ..File::default() });
    let output = loadgen(broker, &["--mqtt", "5", "--qos", "2"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("QoS 2"), "{}", stderr(&output));
}

#[test]
fn a_shared_subscription_gets_every_message_once() {
    let broker = broker(File::default());
    for version in ["3.1.1", "5"] {
        for pace in [["--window", "100"], ["--rate", "2000"]] {
            for (qos, threads) in [("0", "1"), ("1", "2"), ("2", "3")] {
                let shared = ["--scenario", "shared", "--mqtt", version, "--qos", qos];
                delivers_all(broker, &[&shared[..], &["--threads", threads], &pace].concat());
            }
        }
    }
}

#[test]
fn a_rate_per_publisher_counts_for_each() {
    let broker = broker(File::default());
    let report = delivers_all(broker, &["--rate-per-publisher", "100", "--qos", "1"]);
    assert_eq!(report["rate_per_s"], 800.0);
}

#[test]
fn connections_are_opened_by_their_schedule() {
    let broker = broker(File::default());
    let arguments = ["--scenario", "connect", "--connect-rate", "200", "--clients", "41", "--json"];
    let report = report(&loadgen(broker, &arguments));
    assert_eq!(report["connect"]["ready"], 41);
    // The last one is due after 0.2 seconds.
    assert!(report["connect"]["total_s"].as_f64() >= Some(0.2), "{report}");
}

/// The broker closes a connection that is silent for one and a half of its keep-alive.
#[test]
fn idle_clients_keep_their_connections_by_pings() {
    let wished_by_the_broker = File { keep_alive_s_max: 1, ..File::default() };
    for (settings, mqtt, keep_alive) in
        [(File::default(), "3.1.1", "1"), (wished_by_the_broker, "5", "60")]
    {
        let broker = broker(settings);
        let arguments = ["--scenario", "connect", "--hold", "2.5", "--json"];
        let arguments = [&arguments[..], &["--mqtt", mqtt, "--keep-alive", keep_alive]].concat();
        let output = loadgen(broker, &arguments);
        assert_eq!(output.status.code(), Some(0), "{mqtt}: {}", stderr(&output));
    }
}

#[test]
fn connections_come_from_the_given_addresses_in_turn() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let broker = listener.local_addr().unwrap();
    let peers = std::thread::spawn(move || {
        let mut accepted: Vec<_> = (0..2).map(|_| listener.accept().unwrap()).collect();
        accepted.sort_by_key(|(_, peer)| peer.ip());
        accepted.into_iter().map(|(_, peer)| peer.ip().to_string()).collect::<Vec<_>>()
    });
    let arguments = ["--scenario", "connect", "--clients", "2"];
    loadgen(broker, &[&arguments[..], &["--source", "127.0.0.5,127.0.0.6"]].concat());
    assert_eq!(peers.join().unwrap(), ["127.0.0.5", "127.0.0.6"]);
}

/// Everything that was sent arrived once.
fn delivers_all(broker: SocketAddr, arguments: &[&str]) -> Value {
    let output = loadgen(broker, &[arguments, &["--json"]].concat());
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {report} {}", stderr(&output));
    assert!(report["expected_total"].as_u64() > Some(0), "{arguments:?}: {report}");
    for sum in ["lost", "duplicated", "unacknowledged"] {
        assert_eq!(report[sum], 0, "{arguments:?} {sum}: {report}");
    }
    // Order is promised per topic, and a publisher of this scenario has many.
    if !arguments.contains(&"wildcard") {
        assert_eq!(report["reordered"], 0, "{arguments:?}: {report}");
    }
    report
}

/// A broker that serves until the tests end.
fn broker(settings: File) -> SocketAddr {
    let settings = File { listen: ([127, 0, 0, 1], 0).into(), ..settings };
    let config = settings.check(10_000).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let broker = Broker::bind(config).unwrap();
            sender.send(broker.local_addr()).unwrap();
            broker.run(std::future::pending()).await;
        });
    });
    receiver.recv().unwrap()
}

/// A short run with 16 clients, unless the arguments say otherwise.
fn loadgen(broker: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(["--addr", &broker.to_string()]);
    for default in [["--warmup", "0"], ["--duration", "0.1"], ["--clients", "16"]] {
        if !arguments.contains(&default[0]) {
            command.args(default);
        }
    }
    command.args(arguments).output().unwrap()
}

fn report(output: &Output) -> Value {
    let error = || format!("no report, but: {}", stderr(output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", error()))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

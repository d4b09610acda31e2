//! The load generator against the broker of this repository: what a broker that forwards frames
//! blindly cannot show.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use mailboxqtt::broker::Broker;
use mailboxqtt::codec::{Connect, Packet, Properties};
use mailboxqtt::config::{DurabilityLevel, File};
use mailboxqtt::ids::ProtocolVersion;
use mailboxqtt::router::queues::Policy;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::run::{report, stderr};

mod run;

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

#[test]
fn what_is_stored_for_sessions_that_are_away_is_delivered_when_they_come_back() {
    let broker = broker(File::default());
    for (mqtt, qos) in [("3.1.1", "1"), ("3.1.1", "2"), ("5", "1"), ("5", "2")] {
        let offline = ["--scenario", "offline", "--mqtt", mqtt, "--qos", qos];
        let size = ["--clients", "17", "--publishers", "3", "--messages", "1400"];
        let report = delivers_all(broker, &[&offline[..], &size].concat());
        assert_eq!(report["expected_total"], 1_400);
        assert_eq!(report["steps"][1]["name"], "stored");
        assert_eq!(report["steps"][1]["count"], 1_400);
        assert_eq!(report["steps"][2]["name"], "drained");
        assert!(report["steps"][2]["per_s"].as_f64() > Some(0.0), "{report}");
    }
    let output = loadgen(broker, &["--scenario", "offline"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--qos 1 or 2"), "{}", stderr(&output));
}

#[test]
fn what_a_broker_does_not_keep_for_a_session_is_lost() {
    let queue_policy = Policy::DropNewest;
    let broker = broker(File { queue_messages_max: 50, queue_policy, ..File::default() });
    let offline = ["--scenario", "offline", "--qos", "1", "--clients", "3", "--publishers", "1"];
    let output = loadgen(broker, &[&offline[..], &["--messages", "200", "--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(report(&output)["lost"], 100);
}

#[test]
fn sessions_that_were_begun_are_ended_afterwards() {
    let broker = broker(File::default());
    for (scenario, mqtt) in [("offline", "3.1.1"), ("offline", "5"), ("p2p", "3.1.1"), ("p2p", "5")]
    {
        let persistent = ["--persistent", "--seed", "7", "--qos", "1", "--messages", "30"];
        delivers_all(
            broker,
            &[&["--scenario", scenario, "--mqtt", mqtt], &persistent[..]].concat(),
        );
        assert!(!has_session(broker, "loadgen-00000007-0"), "{scenario} {mqtt}");
    }
}

/// A broker that is full of retained messages takes no others, so the second run shows whether the
/// first has cleared its own. (Its limit is divided among its shards, which are never quite even.)
#[test]
fn retained_messages_are_replayed_to_everyone_and_cleared() {
    let broker = broker(File { retained_messages_max: 800, ..File::default() });
    for (mqtt, qos) in [("3.1.1", "0"), ("3.1.1", "1"), ("5", "0"), ("5", "2")] {
        let retain = ["--scenario", "retain", "--mqtt", mqtt, "--qos", qos];
        let prefix = format!("{mqtt}-{qos}");
        let size = ["--messages", "500", "--subscribers", "6", "--topic-prefix", &prefix];
        let report = delivers_all(broker, &[&retain[..], &size].concat());
        assert_eq!(report["expected_total"], 3_000);
        let names = report["steps"].as_array().unwrap().iter().map(|step| &step["name"]);
        assert_eq!(names.collect::<Vec<_>>(), ["set", "replayed", "cleared"]);
    }
}

#[test]
fn all_clients_come_back_after_their_connections_were_cut() {
    let broker = broker(File::default());
    let reconnect =
        ["--scenario", "reconnect", "--clients", "300", "--concurrent", "300", "--json"];
    let output = loadgen(broker, &reconnect);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    for (step, name) in [(0, "connected"), (1, "came back")] {
        let step = &report["steps"][step];
        assert_eq!((&step["name"], &step["count"]), (&name.into(), &300.into()), "{report}");
        assert!(step["latency_us"]["max"].as_f64() > Some(0.0), "{report}");
    }
}

#[test]
fn what_slow_subscribers_lose_is_counted_apart_from_the_others() {
    let bounded = File { queue_messages_max: 100, ..File::default() };
    for (settings, loses) in [(File::default(), false), (bounded, true)] {
        let broker = broker(settings);
        let slow = ["--scenario", "slow", "--clients", "11", "--slow-percent", "30"];
        let load = ["--rate", "2000", "--payload", "10000", "--duration", "1", "--mqtt", "5"];
        let report = delivers_all(broker, &[&slow[..], &load].concat());
        assert_eq!(report["clients"], 11);
        let slow = &report["beside"][0]["slow"];
        assert_eq!((&slow["clients"], &slow["disconnected"]), (&3.into(), &0.into()));
        let sent = report["expected_total"].as_u64().unwrap() / 7;
        let (received, lost) = (slow["received"].as_u64(), slow["lost"].as_u64().unwrap());
        assert_eq!(received, Some(3 * sent - lost), "{report}");
        assert_eq!(lost > 0, loses, "{report}");
    }
}

/// The broker closes a connection that is silent for one and a half of its keep-alive.
#[test]
fn a_slow_subscriber_that_a_broker_wants_to_hear_from_sends_pings() {
    let broker = broker(File { keep_alive_s_max: 1, ..File::default() });
    let slow = ["--scenario", "slow", "--subscribers", "4", "--slow-percent", "50", "--mqtt", "5"];
    let report =
        delivers_all(broker, &[&slow[..], &["--rate", "100", "--duration", "2.5"]].concat());
    assert_eq!(report["beside"][0]["slow"]["disconnected"], 0, "{report}");
}

/// In MQTT 5 a broker says farewell before it closes the connection of a slow reader.
#[test]
fn a_slow_subscriber_that_the_broker_sends_away_is_counted_and_the_run_goes_on() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = listener.local_addr().unwrap();
    let broker = broker(File::default());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (client.unwrap(), TcpStream::connect(broker).unwrap());
            let mut connect = [0; 256];
            let bytes = client.read(&mut connect).unwrap();
            server.write_all(&connect[..bytes]).unwrap();
            // A fast subscriber, the publisher, and the slow one.
            if connect[..bytes].ends_with(b"-2") {
                std::thread::spawn(move || send_away(client, server));
            } else {
                forward(client, server);
            }
        }
    });
    let slow = ["--scenario", "slow", "--subscribers", "2", "--slow-percent", "50"];
    let load = ["--rate", "500", "--mqtt", "5", "--duration", "0.5"];
    let report = delivers_all(front, &[&slow[..], &load].concat());
    assert_eq!(report["beside"][0]["slow"]["disconnected"], 1, "{report}");
}

/// Copies both ways up to the first message, and then says that a quota is exceeded.
fn send_away(mut client: TcpStream, mut server: TcpStream) {
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let mut bytes = [0; 4_096];
    loop {
        let read = server.read(&mut bytes).unwrap();
        if bytes[0] >> 4 == 3 {
            break client.write_all(&[0xe0, 1, 0x97]).unwrap();
        }
        client.write_all(&bytes[..read]).unwrap();
    }
}

#[test]
fn subscriptions_come_and_go_beside_the_load() {
    let broker = broker(File::default());
    for mqtt in ["3.1.1", "5"] {
        let churn = ["--scenario", "churn", "--churn-clients", "7", "--churn-rate", "500"];
        let load = ["--qos", "1", "--rate", "500", "--mqtt", mqtt, "--duration", "0.5"];
        let report = delivers_all(broker, &[&churn[..], &load].concat());
        let churn = &report["beside"][0]["churn"];
        assert!(churn["subscribed"].as_u64() >= Some(50), "{report}");
        assert!(churn["unsubscribed"].as_u64() >= Some(50), "{report}");
        assert_eq!((&churn["refused"], &churn["unanswered"]), (&0.into(), &0.into()), "{report}");
        assert!(churn["latency_us"]["p50"].as_f64() > Some(0.0), "{report}");
    }
}

#[test]
fn subscriptions_that_no_message_matches_take_none() {
    let broker = broker(File::default());
    for scenario in ["p2p", "wildcard"] {
        let load = ["--scenario", scenario, "--unmatched", "60000", "--duration", "0.3"];
        let report = delivers_all(broker, &load);
        let expected = serde_json::json!([{"unmatched": {"clients": 2, "filters": 60_000}}]);
        assert_eq!(report["beside"], expected, "{report}");
    }
    let output = loadgen(broker, &["--scenario", "slow", "--unmatched", "1"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn the_tables_of_steps_name_every_step() {
    let broker = broker(File::default());
    let pid = std::process::id().to_string();
    for (scenario, words) in [
        ("offline", ["subscribed", "stored", "drained", "lost 0"]),
        ("retain", ["set", "replayed", "cleared", "KiB"]),
        ("reconnect", ["connected", "came back", "p99.9", "/s"]),
    ] {
        let arguments = ["--scenario", scenario, "--qos", "1", "--messages", "100", "--pid", &pid];
        let output = loadgen(broker, &arguments);
        let table = String::from_utf8(output.stdout).unwrap();
        for word in words {
            assert!(table.contains(word), "{word} is not in\n{table}");
        }
    }
}

/// The broker reads so slowly that the run cannot be over before it is interrupted.
#[test]
fn an_interrupted_sequence_of_steps_says_what_there_was_and_accuses_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let front = listener.local_addr().unwrap();
    let broker = broker(File::default());
    let (sender, connected) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for (stream, number) in listener.incoming().zip(1..) {
            // Three sessions come; the publisher after them is not served until the end of the run.
            let client = stream.unwrap();
            if number == 4 {
                sender.send(client).unwrap();
            } else {
                forward(client, TcpStream::connect(broker).unwrap());
            }
        }
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(["--addr", &front.to_string(), "--scenario", "offline", "--qos", "1", "--json"]);
    command.args(["--clients", "4", "--publishers", "1", "--messages", "30"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let held = connected.recv().unwrap();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(held);
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_eq!((&report["interrupted"], &report["lost"]), (&true.into(), &0.into()), "{report}");
    assert_eq!(report["steps"][0]["count"], 3, "{report}");
}

#[test]
fn a_sequence_of_steps_has_no_rate() {
    let broker = broker(File::default());
    for rate in ["--rate", "--rate-per-publisher", "--connect-rate"] {
        let output = loadgen(broker, &["--scenario", "retain", rate, "10"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("not at a rate"), "{}", stderr(&output));
    }
}

/// Copies both ways until one side ends.
fn forward(client: TcpStream, broker: TcpStream) {
    for (mut from, mut to) in
        [(client.try_clone().unwrap(), broker.try_clone().unwrap()), (broker, client)]
    {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

#[test]
fn presets_are_listed_and_can_be_cut_short() {
    let broker = broker(File::default());
    let output = loadgen(broker, &["--list-presets"]);
    let list = String::from_utf8(output.stdout).unwrap();
    assert!(list.contains("singlenode-p2p-1K-1K-1K-1K"), "{list}");
    let preset = ["--preset", "singlenode-sharedsub-1K-5-1K-1K", "--duration", "0.3"];
    let report = delivers_all(broker, &preset);
    assert_eq!((&report["qos"], &report["payload_bytes"]), (&1.into(), &16.into()));
}

/// Whether the broker has a session of this name: asks for it, and ends it if it did not exist.
fn has_session(broker: SocketAddr, client_id: &str) -> bool {
    let connect = |clean_start| {
        let connect = Connect {
            version: ProtocolVersion::V311,
            clean_start,
            keep_alive_s: 0,
            client_id,
            properties: Properties::EMPTY,
            will: None,
            user_name: None,
            password: None,
        };
        let mut bytes = Vec::new();
        Packet::Connect(connect).encode(ProtocolVersion::V311, &mut bytes);
        let mut stream = TcpStream::connect(broker).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).unwrap();
        answer[2] == 1
    };
    let has = connect(false);
    connect(true);
    has
}

/// Everything that was sent arrived once.
fn delivers_all(broker: SocketAddr, arguments: &[&str]) -> Value {
    let output = loadgen(broker, &[arguments, &["--json"]].concat());
    let report = report(&output);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {report} {}", stderr(&output));
    assert!(report["expected_total"].as_u64() > Some(0), "{arguments:?}: {report}");
    // At QoS 0 nobody knows when the last retained message is set: some may come live, and then as retained, too.
    let is_vague = arguments.contains(&"retain") && arguments.contains(&"0");
    for sum in ["lost", "duplicated", "unacknowledged"] {
        let may_be = sum == "duplicated" && is_vague;
        assert!(may_be || report[sum] == 0, "{arguments:?} {sum}: {report}");
    }
    // Order is promised per topic, and a publisher of this scenario has many.
    if !arguments.contains(&"wildcard") {
        assert_eq!(report["reordered"], 0, "{arguments:?}: {report}");
    }
    report
}

/// A broker that serves until the tests end.
fn broker(settings: File) -> SocketAddr {
    let durability = DurabilityLevel::None;
    let settings = File { listen: ([127, 0, 0, 1], 0).into(), durability, ..settings };
    let config = settings.check(10_000).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let broker = Broker::bind(config).unwrap();
            sender.send(broker.local_addr().unwrap()).unwrap();
            broker.run(std::future::pending()).await.unwrap();
        });
    });
    receiver.recv().unwrap()
}

/// A short run with 16 clients, unless the arguments say otherwise.
fn loadgen(broker: SocketAddr, arguments: &[&str]) -> Output {
    let defaults = [["--warmup", "0"], ["--duration", "0.1"], ["--clients", "16"]];
    run::loadgen(broker, defaults, arguments)
}

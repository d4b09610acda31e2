//! The load generator as its users run it, against a small broker that misbehaves on demand.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use mailboxqtt::codec::{
    Ack, ConnAck, Delivery, Packet, Properties, ReasonCode, SubAck, decode, frame_len,
};
use mailboxqtt::ids::{PacketId, ProtocolVersion};

use crate::run::{report, stderr};

#[path = "end_to_end/results.rs"]
mod results;
mod run;

const VERSION: ProtocolVersion = ProtocolVersion::V311;

#[test]
fn every_qos_delivers_everything_once() {
    let broker = broker(Fault::None);
    for qos in ["0", "1", "2"] {
        for scenario in ["p2p", "fan-in", "fan-out"] {
            let output = loadgen(broker, &["--scenario", scenario, "--qos", qos, "--json"]);
            let report = report(&output);
            assert_eq!(output.status.code(), Some(0), "{scenario} {qos}: {report}");
            assert!(report["received"].as_u64() > Some(0), "{report}");
            assert!(report["latency_us"]["p50"].as_f64() > Some(0.0), "{report}");
            for sum in ["lost", "duplicated", "reordered", "unacknowledged"] {
                assert_eq!(report[sum], 0, "{scenario} {qos} {sum}");
            }
        }
    }
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let output = loadgen(broker(Fault::None), &["--rate", "1000", "--json"]);
    let sent_per_s = report(&output)["sent_per_s"].as_f64().unwrap();
    assert!((500.0..1_500.0).contains(&sent_per_s), "{sent_per_s}");
}

#[test]
fn threads_that_share_no_pair_still_move_each_other_on() {
    let broker = broker(Fault::None);
    let arguments = ["--scenario", "fan-out", "--threads", "3", "--qos", "1", "--json"];
    let report = report(&loadgen(broker, &arguments));
    assert!(report["received"].as_u64() > Some(100), "{report}");
    assert_eq!(report["lost"], 0);
}

#[test]
fn loss_at_qos_0_is_counted_and_allowed() {
    let output = loadgen(broker(Fault::DropEvery(100)), &["--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(report(&output)["lost"].as_u64() > Some(0));
}

#[test]
fn a_window_that_was_lost_at_qos_0_is_written_off_and_the_run_goes_on() {
    let arguments = ["--window", "1", "--clients", "2", "--json"];
    let output = loadgen_for("2.5", broker(Fault::DropEvery(2)), &arguments);
    let report = report(&output);
    // Every second message is the whole window: one loss per second, and one delivery after it.
    assert!(report["lost"].as_u64() >= Some(2), "{report}");
    assert!(report["received"].as_u64() >= Some(1), "{report}");
}

#[test]
fn loss_at_qos_1_is_counted_and_is_exit_code_1() {
    let output = loadgen(broker(Fault::DropEvery(100)), &["--qos", "1", "--rate", "2000"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("lost at QoS 1"), "{}", stderr(&output));
}

/// The broker keeps everything for longer than a lost message is waited for.
#[test]
fn what_arrives_late_is_not_lost() {
    let late = broker(Fault::LateFrom(100));
    let arguments = ["--qos", "1", "--rate", "100", "--warmup", "0", "--json"];
    let output = loadgen_for("3", late, &[&arguments[..], &["--clients", "2"]].concat());
    let report = report(&output);
    assert_eq!(report["lost"], 0, "{report}");
    assert!(report["latency_us"]["max"].as_f64() > Some(5e6), "{report}");
}

#[test]
fn a_second_copy_is_allowed_at_qos_1_and_exit_code_1_at_qos_2() {
    let broker = broker(Fault::RepeatEvery(100));
    assert_eq!(loadgen(broker, &["--qos", "1"]).status.code(), Some(0));
    let output = loadgen(broker, &["--qos", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("twice at QoS 2"), "{}", stderr(&output));
}

#[test]
fn loss_and_copies_within_a_group_are_counted_exactly() {
    let shared = ["--scenario", "shared", "--json"];
    for qos in ["0", "1", "2"] {
        let output = loadgen(broker(Fault::None), &[&shared[..], &["--qos", qos]].concat());
        let report = report(&output);
        assert_eq!(output.status.code(), Some(0), "{report}");
        assert_eq!(report["received"].as_u64().min(Some(1)), Some(1), "{report}");
        assert_eq!((&report["lost"], &report["duplicated"]), (&0.into(), &0.into()), "{report}");
    }
    for (fault, of) in [(Fault::DropEvery(10), "lost"), (Fault::RepeatEvery(10), "duplicated")] {
        let paced = ["--qos", "2", "--rate", "1000", "--warmup", "0"];
        let output = loadgen(broker(fault), &[&shared[..], &paced].concat());
        assert_eq!(output.status.code(), Some(1));
        let report = report(&output);
        let sent = report["expected_total"].as_u64().unwrap();
        assert_eq!(report[of].as_u64(), Some(sent / 10), "{report}");
    }
}

#[test]
fn a_group_that_has_lost_a_window_at_qos_0_goes_on() {
    let shared = ["--scenario", "shared", "--json", "--clients", "3", "--subscribers", "2"];
    let window = ["--window", "1"];
    let output = loadgen_for("2.5", broker(Fault::DropEvery(2)), &[&shared[..], &window].concat());
    let report = report(&output);
    assert!(report["lost"].as_u64() >= Some(2), "{report}");
    assert!(report["received"].as_u64() >= Some(1), "{report}");
}

#[test]
fn no_broker_is_exit_code_2_and_a_sentence_that_helps() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = loadgen(nobody, &[]);
    assert_eq!(output.status.code(), Some(2));
    let sentence = stderr(&output);
    assert!(sentence.contains(&nobody.to_string()), "{sentence}");
    assert!(sentence.contains("just run"), "{sentence}");
}

#[test]
fn a_broker_that_dies_is_exit_code_2() {
    let output = loadgen(broker(Fault::CloseAfter(1_000)), &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("closed the connection"), "{}", stderr(&output));
}

#[test]
fn the_table_names_every_percentile() {
    let output = loadgen(broker(Fault::None), &[]);
    let table = String::from_utf8(output.stdout).unwrap();
    for word in ["p50", "p90", "p99", "p99.9", "p99.99", "max", "lost 0", "messages/s"] {
        assert!(table.contains(word), "{word} is not in\n{table}");
    }
}

/// What the broker does wrong.
#[derive(Clone, Copy)]
enum Fault {
    None,
    /// Every n-th message reaches nobody.
    DropEvery(u64),
    /// Every n-th message is delivered twice.
    RepeatEvery(u64),
    /// From the n-th message on, each takes the broker 40 ms: four times as long as they are apart.
    LateFrom(u64),
    /// Connections end with the n-th message.
    CloseAfter(u64),
}

/// Shared by the connections of one broker.
struct Exchange {
    fault: Fault,
    messages: AtomicU64,
    subscribers: Mutex<Vec<(String, Arc<Mutex<TcpStream>>)>>,
}

/// Starts a broker that forwards frames as they are, to exact filters.
fn broker(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let subscribers = Mutex::default();
    let exchange = Arc::new(Exchange { fault, messages: AtomicU64::new(0), subscribers });
    thread::spawn(move || {
        for stream in listener.incoming() {
            let exchange = Arc::clone(&exchange);
            thread::spawn(move || serve(stream.unwrap(), &exchange));
        }
    });
    address
}

fn serve(mut stream: TcpStream, exchange: &Exchange) {
    stream.set_nodelay(true).unwrap();
    let own = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let (mut held, mut scratch) = (Vec::new(), [0; 16_384]);
    while let Ok(bytes @ 1..) = stream.read(&mut scratch) {
        held.extend_from_slice(&scratch[..bytes]);
        let (mut used, mut answers) = (0, Vec::new());
        while let Some(len) = frame_len(&held[used..], u32::MAX).unwrap() {
            let Some(frame) = held[used..].get(..len) else { break };
            used += len;
            if !exchange.take(frame, &own, &mut answers) {
                return stream.shutdown(std::net::Shutdown::Both).unwrap_or(());
            }
        }
        held.drain(..used);
        let _ = own.lock().unwrap().write_all(&answers);
    }
    exchange.subscribers.lock().unwrap().retain(|(_, subscriber)| !Arc::ptr_eq(subscriber, &own));
}

impl Exchange {
    /// False when the connection is to end.
    fn take(&self, frame: &[u8], own: &Arc<Mutex<TcpStream>>, answers: &mut Vec<u8>) -> bool {
        let properties = Properties::EMPTY;
        let ack = |id: PacketId| Ack { id, reason: ReasonCode::Success, properties };
        let answer = match decode(frame, VERSION).unwrap() {
            Packet::Connect(_) => {
                let reason = ReasonCode::Success;
                Packet::ConnAck(ConnAck { session_present: false, reason, properties })
            }
            Packet::Subscribe(subscribe) => {
                let mut subscribers = self.subscribers.lock().unwrap();
                let mut granted = Vec::new();
                for (filter, options) in subscribe.filters.iter() {
                    subscribers.push((filter.to_owned(), Arc::clone(own)));
                    granted.push(options.qos as u8);
                }
                let answer = SubAck { id: subscribe.id, properties, reasons: &granted };
                Packet::SubAck(answer).encode(VERSION, answers);
                return true;
            }
            Packet::Publish(publish) => {
                let number = self.messages.fetch_add(1, Ordering::Relaxed) + 1;
                let copies = match self.fault {
                    Fault::DropEvery(n) if number.is_multiple_of(n) => 0,
                    Fault::RepeatEvery(n) if number.is_multiple_of(n) => 2,
                    Fault::LateFrom(n) if number > n => {
                        thread::sleep(Duration::from_millis(40));
                        1
                    }
                    Fault::CloseAfter(n) if number > n => return false,
                    _ => 1,
                };
                let subscribers = self.subscribers.lock().unwrap();
                let (group, alone): (Vec<_>, Vec<_>) =
                    subscribers.iter().partition(|(filter, _)| filter.starts_with("$share/"));
                for (filter, subscriber) in alone {
                    if filter == publish.topic {
                        let _ = subscriber.lock().unwrap().write_all(&frame.repeat(copies));
                    }
                }
                // Copies go to different members: only who counts over all of them can tell.
                for copy in 0..copies.min(group.len()) {
                    let (_, subscriber) = group[(number as usize + copy) % group.len()];
                    let _ = subscriber.lock().unwrap().write_all(frame);
                }
                match publish.delivery {
                    Delivery::AtMostOnce => return true,
                    Delivery::AtLeastOnce { id, .. } => Packet::PubAck(ack(id)),
                    Delivery::ExactlyOnce { id, .. } => Packet::PubRec(ack(id)),
                }
            }
            Packet::PubRec(received) => Packet::PubRel(ack(received.id)),
            Packet::PubRel(released) => Packet::PubComp(ack(released.id)),
            Packet::PubAck(_) | Packet::PubComp(_) | Packet::Disconnect(_) => return true,
            other => panic!("the load generator sent {other:?}"),
        };
        answer.encode(VERSION, answers);
        true
    }
}

/// A short run with ten clients, unless the arguments say otherwise.
fn loadgen(broker: SocketAddr, arguments: &[&str]) -> Output {
    loadgen_for("0.4", broker, arguments)
}

fn loadgen_for(seconds: &str, broker: SocketAddr, arguments: &[&str]) -> Output {
    let defaults = [["--warmup", "0.1"], ["--duration", seconds], ["--clients", "10"]];
    run::loadgen(broker, defaults, arguments)
}

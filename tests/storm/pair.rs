//! Two well-behaved clients: one sends, the other gets every message once and in order.

use std::fmt;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use mailboxqtt::ids::ProtocolVersion::V5;

use crate::process::PATIENCE;
use crate::wire::{Client, Got, Hello, PUBACK, publish};

const TOPIC: &str = "pair/topic";
/// From one message to the next.
const PERIOD: Duration = Duration::from_millis(2);
/// Messages that the sender has not seen acknowledged, at most; the broker takes 1,000.
const WINDOW: u64 = 500;

/// See the module comment.
pub(crate) struct Pair {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Vec<Delivery>>,
}

/// A message that arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    pub(crate) sent: Instant,
    /// To its arrival.
    pub(crate) time: Duration,
}

impl Pair {
    pub(crate) fn start(addr: SocketAddr) -> Self {
        let mut receiver = Hello::new(V5, "pair-receiver").open(addr).0;
        receiver.subscribe(TOPIC, 1);
        let sender = Hello::new(V5, "pair-sender").open(addr).0;
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let (sent, when_sent) = mpsc::channel();
        Self {
            stop,
            sender: thread::spawn(move || send(sender, &is_over, &sent)),
            receiver: thread::spawn(move || receive(receiver, &when_sent)),
        }
    }

    /// Ends both; all that was sent has arrived, and all has been acknowledged.
    pub(crate) fn finish(self) -> Vec<Delivery> {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap();
        self.receiver.join().unwrap()
    }
}

/// Until it is over; hangs up behind the last message.
fn send(client: Client, is_over: &AtomicBool, sent: &Sender<Instant>) {
    let mut stream = client.stream().try_clone().unwrap();
    let (acknowledged, acknowledgements) = mpsc::channel();
    let total = Arc::new(AtomicU64::new(u64::MAX));
    let all = total.clone();
    let reader = thread::spawn(move || read_acknowledgements(client, &all, &acknowledged));
    let (mut number, mut open) = (0, 0);
    let mut due = Instant::now();
    while !is_over.load(Ordering::Relaxed) {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due += PERIOD;
        open -= acknowledgements.try_iter().count() as u64;
        while open >= WINDOW {
            acknowledgements.recv_timeout(PATIENCE).expect("an acknowledgement in time");
            open -= 1;
        }
        let bytes = publish(V5, TOPIC, &u64::to_be_bytes(number), 1, identifier(number), false);
        sent.send(Instant::now()).unwrap();
        stream.write_all(&bytes).unwrap();
        number += 1;
        open += 1;
    }
    total.store(number, Ordering::Relaxed);
    // Its answer wakes the reader, who may be waiting for nothing.
    stream.write_all(&[0xC0, 0]).unwrap();
    reader.join().unwrap();
}

fn read_acknowledgements(mut client: Client, total: &AtomicU64, acknowledged: &Sender<()>) {
    let mut number = 0;
    while number < total.load(Ordering::Relaxed) {
        match client.next() {
            Got::Ack(PUBACK, id, 0) => {
                assert_eq!(id, identifier(number), "acknowledged out of order");
                number += 1;
                // The sender may be waiting for this thread already.
                let _ = acknowledged.send(());
            }
            Got::PingResp => {}
            other => panic!("the sender of the pair got {other:?} for message {number}"),
        }
    }
}

fn receive(mut client: Client, when_sent: &Receiver<Instant>) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    // The sender notes the time before it sends.
    while let Ok(sent) = when_sent.recv() {
        let message = client.message();
        let time = sent.elapsed();
        let number = deliveries.len() as u64;
        assert_eq!(message.payload, number.to_be_bytes(), "instead of message {number}");
        assert!(!message.dup, "message {number} came with DUP");
        client.ack(PUBACK, message.id);
        deliveries.push(Delivery { sent, time });
    }
    client.assert_silent();
    deliveries
}

fn identifier(number: u64) -> u16 {
    (number % u64::from(u16::MAX)) as u16 + 1
}

/// How long messages took, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    count: usize,
    p50: f64,
    pub(crate) p99: f64,
    max: f64,
}

impl Latency {
    pub(crate) fn of<'d>(deliveries: impl Iterator<Item = &'d Delivery>) -> Self {
        let mut times: Vec<f64> = deliveries.map(|it| it.time.as_secs_f64() * 1e6).collect();
        times.sort_by(f64::total_cmp);
        let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
        Self { count: times.len(), p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, p50, p99, max } = self;
        write!(f, "{count} messages, µs: p50 {p50:.0}, p99 {p99:.0}, max {max:.0}")
    }
}

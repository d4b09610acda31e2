//! The storm: a hundred connections say random things, legal and not, while others go on.
//!
//! Each [`client::Client`] lives many short lives: it connects, mostly as the standard wants it, and with
//! client identifiers that it shares with others, sends what [`packet::Maker`] makes up, reads or does not,
//! and leaves in one of many ways. Beside them two well-behaved clients, the [`pair::Pair`], lose nothing, and
//! measure how long a message takes before the storm and during it. Afterwards everything that the
//! storm has left is cleared away, and then the broker has to be as it was: its memory, its tasks, its
//! sessions, its subscriptions, its messages.
//!
//! Latency is measured three times: without a storm, with one over another broker beside this one, and with one over this one.
//! The second says what of the third is the machine's doing: clients and broker share its cores.
//!
//! `STORM_SECONDS` says how long it lasts, `STORM_SEED=N` makes the same choices again; the scheduling is
//! the machine's. `just storm SECONDS` runs it against the broker as it is released. Latency is printed and
//! not asserted, for it depends on who else uses the machine.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../it/broker.rs"]
mod broker;
mod client;
mod comeback;
mod counters;
mod flood;
mod idle;
mod packet;
mod pair;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../it/process.rs"]
mod process;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../it/wire.rs"]
mod wire;

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::auth::{Credential, ITERATIONS_MIN};
use mailboxqtt::ids::ProtocolVersion::V5;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::Broker;
use crate::client::{Client, Tally};
use crate::counters::Counters;
use crate::packet::{client_ids, hidden_topics};
use crate::pair::{Latency, Pair};
use crate::process::PATIENCE;
use crate::wire::{Got, Hello};

const CONNECTIONS: usize = 100;
/// How long it lasts where nobody says otherwise.
const SECONDS: u64 = 5;
/// What the broker's memory may have grown by.
const GROWTH_BYTES_MAX: u64 = 20 << 20;
/// Sessions that the storm has left without anybody knowing their identifiers end by themselves.
const SETTINGS: &str = "
    sys_interval_s = 1
    session_expiry_s_max = 10
    allow_anonymous = true
    [scram_users]
";

#[test]
fn broker_is_as_before_after_a_storm_and_others_lose_nothing_in_it() {
    let seconds = number("STORM_SECONDS").unwrap_or(SECONDS);
    let seed = number("STORM_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("STORM_SEED={seed} STORM_SECONDS={seconds}");
    let credential = Credential::new("secret", ITERATIONS_MIN).unwrap();
    let broker = Broker::start_configured(&format!("{SETTINGS}alice = \"{credential}\""));
    let mut counters = Counters::watch(broker.addr());
    let start = counters.settled();
    let start_bytes = broker.resident_bytes();

    let pair = Pair::start(broker.addr());
    let first = Instant::now();
    let calm = Duration::from_secs((seconds / 20).clamp(2, 20));
    counters.watch_for(calm);
    let elsewhere = rage_elsewhere(seed, Duration::from_secs((seconds / 6).max(2)));
    let begun = Instant::now();
    let tally = rage(&broker, &mut counters, seed, Duration::from_secs(seconds));
    let over = Instant::now();
    let latencies = pair.finish();
    println!("{tally}");

    let latency =
        |time: Range<Instant>| Latency::of(latencies.iter().filter(|it| time.contains(&it.sent)));
    let before = latency(first..elsewhere.start);
    let beside = latency(elsewhere);
    let during = latency(begun..over);
    println!("before the storm  {before}");
    println!("storm elsewhere   {beside}");
    println!("during the storm  {during}");
    println!(
        "p99               {:.2} times as long as before, {:.2} times as with the storm elsewhere",
        during.p99 / before.p99,
        during.p99 / beside.p99,
    );
    clear_away(broker.addr(), &mut counters, start.retained);
    counters
        .wait_until(&format!("it is as it was, {start:?}"), |counters| counters.state() == start);
    println!("then              {start:?}, {} KiB", start_bytes >> 10);
    println!("now               {:?}, {} KiB", counters.state(), broker.resident_bytes() >> 10);
    counters.wait_until("its memory is given back", |_| {
        broker.resident_bytes() <= start_bytes + GROWTH_BYTES_MAX
    });
    println!("given back        {} KiB", broker.resident_bytes() >> 10);
    drop(counters);
    broker.stop();
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// The same storm over another broker, on the same machine: what the pair suffers then is the machine's fault.
/// Returns when that was.
fn rage_elsewhere(seed: u64, time: Duration) -> Range<Instant> {
    let other = Broker::start_configured(SETTINGS);
    let mut counters = Counters::watch(other.addr());
    let begun = Instant::now();
    println!("elsewhere:");
    rage(&other, &mut counters, seed, time);
    let over = Instant::now();
    drop(counters);
    other.stop();
    println!("here:");
    begun..over
}

/// The storm itself.
fn rage(broker: &Broker, counters: &mut Counters, seed: u64, time: Duration) -> Arc<Tally> {
    let (addr, tally) = (broker.addr(), Arc::new(Tally::default()));
    let stop = CancellationToken::new();
    let (all_stop, all_tally) = (stop.clone(), tally.clone());
    // One thread, so that the broker has another core for itself where there are two.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let storm = thread::spawn(move || {
        runtime.block_on(async {
            let mut clients = JoinSet::new();
            for index in 0..CONNECTIONS {
                let client = Client::new(index, seed, addr, all_tally.clone());
                clients.spawn(client.live(all_stop.clone()));
            }
            while let Some(client) = clients.join_next().await {
                // The first that panics says why; the others would only go on.
                client.unwrap_or_else(|error| panic!("STORM_SEED={seed}: {error}"));
            }
        });
    });
    let begun = Instant::now();
    let pause = (time / 20).max(Duration::from_secs(1));
    while begun.elapsed() < time && !storm.is_finished() {
        counters.watch_for(pause.min(time.saturating_sub(begun.elapsed())));
        println!(
            "{:4} s {:6} KiB {:?}, {} bytes, {} protocol errors",
            begun.elapsed().as_secs(),
            broker.resident_bytes() >> 10,
            counters.state(),
            counters.value("store/messages/bytes"),
            counters.value("errors/protocol"),
        );
    }
    stop.cancel();
    storm.join().unwrap();
    tally
}

/// Ends the sessions and clears the retained messages that the storm has left.
fn clear_away(addr: SocketAddr, counters: &mut Counters, retained: u64) {
    for id in client_ids() {
        Hello::new(V5, &id).open(addr).0.disconnect();
    }
    // Those without a known identifier, and the wills that waited for their ends.
    counters.wait_until("all sessions have ended", |counters| counters.state().sessions == 1);
    let deadline = Instant::now() + PATIENCE;
    while counters.value("retained messages/count") != retained {
        let now = counters.value("retained messages/count");
        assert!(Instant::now() < deadline, "{now} retained messages do not go, or come back");
        clear_retained(addr);
        counters.next_round();
    }
}

/// Clears what a replay of all retained messages brings.
fn clear_retained(addr: SocketAddr) {
    let mut reader = Hello::new(V5, "reader").open(addr).0;
    reader.subscribe("#", 0);
    let mut topics = Vec::new();
    // Retained messages come chunk by chunk, and a ping may be answered before the first of them.
    let mut silent = 0;
    while silent < 100 {
        reader.send(&[0xC0, 0]);
        loop {
            match reader.next() {
                Got::Publish(message) => {
                    topics.push(message.topic);
                    silent = 0;
                }
                Got::PingResp => break,
                other => panic!("waited for a message, got {other:?}"),
            }
        }
        silent += 1;
    }
    drop(reader);
    let mut cleaner = Hello::new(V5, "cleaner").open(addr).0;
    for topic in topics.into_iter().chain(hidden_topics()) {
        cleaner.deliver_retained(&topic, "");
    }
    cleaner.disconnect();
}

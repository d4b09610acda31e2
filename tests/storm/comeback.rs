//! Everybody comes back at once, over TLS: after a restart of the broker, and after a cut of all sockets.
//!
//! Each client has a persistent session with a subscription. When all have lost their connection, all try to
//! get it back in the same moment, as client libraries do it: with a limit on each attempt, and growing pauses with
//! chance in them between attempts. What is asserted is that everybody is served, which is to have the session
//! back and to get a message; no time is. Beside them somebody whose connection is open sends
//! messages to himself.
//!
//! `STORM_CLIENTS` says how many they are, `STORM_KEY` is `ecdsa` or `rsa:BITS` for the server's key (made by
//! `openssl`), `STORM_TIMEOUT_S` is the limit on each attempt. `just tls-storm N` runs it against the broker as it is
//! released.

mod client;
mod server;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::ids::ProtocolVersion::V311;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::client::{Client, Link};
use self::server::Server;
use crate::number;
use crate::wire::Hello;

const CLIENTS: usize = 300;
/// Each attempt to connect, as paho and MQTT.js have it.
const TIMEOUT_S: u64 = 30;
/// Who has not been served then never will be.
const DEADLINE: Duration = Duration::from_secs(300);
/// How many come at a time when there is no storm.
const CALM: usize = 50;
/// Between the messages of the bystander.
const PAUSE: Duration = Duration::from_millis(5);

#[test]
fn everybody_is_served_who_comes_back_over_tls_when_all_do() {
    rlimit::increase_nofile_limit(rlimit::INFINITY).unwrap();
    let count = number("STORM_CLIENTS").map_or(CLIENTS, |count| count as usize);
    let limit = Duration::from_secs(number("STORM_TIMEOUT_S").unwrap_or(TIMEOUT_S));
    let key = std::env::var("STORM_KEY").unwrap_or_else(|_| "ecdsa".to_owned());
    println!("STORM_CLIENTS={count} STORM_KEY={key} STORM_TIMEOUT_S={}", limit.as_secs());
    let mut server = Server::start(&key);
    let config = server.client_config();
    let clients: Vec<_> =
        (0..count).map(|index| Client::new(index, server.tls(), &config, limit)).collect();
    let clients: Arc<[Client]> = clients.into();
    // One thread, so that the broker has another core for itself where there are two.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let links = runtime.block_on(begin(&clients));

    server.restart();
    drop(links);
    let (links, all_anew) = come_back(&runtime, &server, &clients);
    println!("restarted: {all_anew}");

    server.forget_peak();
    drop(links);
    let (links, resumed) = come_back(&runtime, &server, &clients);
    println!("cut:       {resumed}");
    let spared = resumed.resumed as u64 + resumed.retries;
    assert!(spared >= count as u64, "the tickets of the first attempt are good");
    drop(links);
    server.stop();
}

/// Everybody connects for the first time, a few at a time.
async fn begin(clients: &Arc<[Client]>) -> Vec<Link> {
    let (mut tasks, mut links) = (JoinSet::new(), Vec::new());
    for index in 0..clients.len() {
        if tasks.len() == CALM {
            links.extend(tasks.join_next().await.map(Result::unwrap));
        }
        let clients = clients.clone();
        tasks.spawn(async move { clients[index].begin().await });
    }
    links.extend(tasks.join_all().await);
    links
}

/// All at once.
fn come_back(runtime: &Runtime, server: &Server, clients: &Arc<[Client]>) -> (Vec<Link>, Outcome) {
    let bystander = Bystander::start(server.plain());
    thread::sleep(Duration::from_secs(1));
    let (begun, cpu_before) = (Instant::now(), server.cpu());
    let results = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for index in 0..clients.len() {
            let clients = clients.clone();
            tasks.spawn(async move { timeout(DEADLINE, clients[index].come_back(begun)).await });
        }
        tasks.join_all().await
    });
    let cpu = server.cpu() - cpu_before;
    let trips = bystander.finish();
    let (before, during): (Vec<_>, Vec<_>) = trips.into_iter().partition(|(sent, _)| *sent < begun);
    let (mut links, mut served) = (Vec::new(), Vec::new());
    for (link, outcome) in results.into_iter().flatten() {
        links.push(link);
        served.push(outcome);
    }
    let starved = clients.len() - served.len();
    assert_eq!(starved, 0, "of {} clients so many starve: {starved}", clients.len());
    let outcome = Outcome {
        connack: Times::of(served.iter().map(|it| it.connack)),
        message: Times::of(served.iter().map(|it| it.message)),
        retries: served.iter().map(|it| u64::from(it.retries)).sum(),
        retries_max: served.iter().map(|it| it.retries).max().unwrap_or(0),
        resumed: served.iter().filter(|it| it.is_resumed).count(),
        count: served.len(),
        cpu,
        peak_bytes: server.peak_bytes(),
        calm: Times::of(before.into_iter().map(|(_, time)| time)),
        bystander: Times::of(during.into_iter().map(|(_, time)| time)),
    };
    (links, outcome)
}

/// What it was like.
struct Outcome {
    connack: Times,
    message: Times,
    retries: u64,
    retries_max: u32,
    /// Clients whose last handshake was spared its costly half.
    resumed: usize,
    count: usize,
    /// Of the broker.
    cpu: Duration,
    /// Of the broker's resident memory.
    peak_bytes: u64,
    /// The bystander's messages before the storm, and in it.
    calm: Times,
    bystander: Times,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connack, message, retries, retries_max, resumed, count, .. } = self;
        let rate = *count as f64 / connack.max.as_secs_f64();
        writeln!(f, "{count} clients, {resumed} resumed, {rate:.0} connections a second")?;
        writeln!(f, "  CONNACK    {connack}; {retries} retries, at most {retries_max}")?;
        writeln!(f, "  message    {message}")?;
        writeln!(f, "  bystander  {}; before {}", self.bystander, self.calm)?;
        let (cpu, peak) = (self.cpu.as_secs_f64(), self.peak_bytes >> 20);
        write!(f, "  broker     {cpu:.2} s of CPU, at most {peak} MiB")
    }
}

/// How long something took.
struct Times {
    median: Duration,
    p99: Duration,
    max: Duration,
}

impl Times {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        let at = |percent: usize| {
            times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
        };
        let [median, p99, max] = [50, 99, 100].map(|it| at(it).copied().unwrap_or_default());
        Self { median, p99, max }
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, p99, max } = self;
        write!(f, "median {median:.2?}, p99 {p99:.2?}, max {max:.2?}")
    }
}

/// Sends messages to himself, over TCP, and notes when he did and how long each took.
struct Bystander {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Vec<(Instant, Duration)>>,
}

impl Bystander {
    fn start(addr: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let thread = thread::spawn(move || {
            let mut client = Hello::new(V311, "bystander").open(addr).0;
            client.subscribe("bystander", 0);
            let mut trips = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                let sent = Instant::now();
                client.publish("bystander", "", 0, 0);
                client.message();
                trips.push((sent, sent.elapsed()));
                thread::sleep(PAUSE);
            }
            client.disconnect();
            trips
        });
        Self { stop, thread }
    }

    fn finish(self) -> Vec<(Instant, Duration)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

//! A thousand clients that publish, drop their sockets, resume and take their own sessions over at
//! random, against a broker in this process; every client checks what it gets. And a thousand
//! connections that want the same session.
//!
//! Each client has one persistent session and publishes numbered messages to two others, at QoS 2
//! and at QoS 1; what it has not seen acknowledged it sends again when it comes back. A client
//! expects, per publisher and QoS, every number and in order: at QoS 2 exactly once, at QoS 1 with
//! repetitions. And a connection that nobody took over must not be closed.
//!
//! `CHURN_SEED=N cargo test --test churn` makes the same choices again; the scheduling is the
//! machine's. Nothing sleeps: a client acts when packets arrive, and the test ends when every
//! client has everything. If something is lost, the deadline says who waits for what.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mailboxqtt::broker::Broker;
use mailboxqtt::codec::Delivery as Flow;
use mailboxqtt::codec::{
    Ack, Connect, Packet, Properties, PropertiesBuf, Property, Publish, ReasonCode, Subscribe,
    SubscribeFiltersBuf, SubscribeOptions, decode, frame_len,
};
use mailboxqtt::config::{DurabilityLevel, File};
use mailboxqtt::ids::{PacketId, ProtocolVersion, Qos};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const CLIENTS: usize = 1_000;
/// To each of two clients.
const MESSAGES: u32 = 60;
/// Messages that a client has on their way at the same time.
const WINDOW: usize = 8;
/// Connections that a client gives up in the course of the test.
const ACCIDENTS: u32 = 15;
/// Connections that are being opened at the same time.
const OPENING_MAX: usize = 200;
/// The broker has the other end of each socket; a client has up to two, and tests run in parallel.
const FILES: u64 = 6 * CLIENTS as u64 + 500;
/// Far over what it takes; a test that hangs has lost something.
const DEADLINE: Duration = Duration::from_secs(40);

#[test]
fn nothing_is_lost_doubled_or_reordered_while_a_thousand_clients_come_and_go() {
    let seed = match std::env::var("CHURN_SEED") {
        Ok(seed) => seed.parse().expect("CHURN_SEED is a number"),
        Err(_) => fastrand::u64(..1_000_000),
    };
    println!("CHURN_SEED={seed}");
    let files = rlimit::increase_nofile_limit(FILES).unwrap();
    assert!(files >= FILES, "{FILES} open files are needed, {files} are allowed");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(churn(seed));
}

/// [MQTT-3.1.4-3]
#[test]
fn one_of_a_thousand_connections_with_the_same_client_id_stays() {
    rlimit::increase_nofile_limit(FILES).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = broker();
        let (addr, stop) = (broker.local_addr().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(broker.run(stop.clone().cancelled_owned()));
        let others_are_gone = CancellationToken::new();
        let gone = Arc::new(AtomicUsize::new(0));
        let mut rivals = JoinSet::new();
        for _ in 0..CLIENTS {
            rivals.spawn(rival(addr, gone.clone(), others_are_gone.clone()));
        }
        let outcomes = tokio::time::timeout(DEADLINE, rivals.join_all()).await.unwrap();
        assert_eq!(outcomes.into_iter().filter(|outcome| *outcome == Outcome::Stays).count(), 1);
        stop.cancel();
        serving.await.unwrap().unwrap();
    });
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    Stays,
    Closed,
}

/// Connects, and stays until it is closed or alone.
async fn rival(
    addr: SocketAddr,
    gone: Arc<AtomicUsize>,
    others_are_gone: CancellationToken,
) -> Outcome {
    let mut link = Link::connect(addr, ProtocolVersion::V311, "one", Properties::EMPTY).await;
    loop {
        tokio::select! {
            count = link.stream.read_buf(&mut link.read) => {
                if count.is_ok_and(|count| count > 0) {
                    continue;
                }
                if gone.fetch_add(1, Ordering::SeqCst) + 2 == CLIENTS {
                    others_are_gone.cancel();
                }
                return Outcome::Closed;
            }
            () = others_are_gone.cancelled() => break,
        }
    }
    // It is served, and not only forgotten. The CONNACK may have been read or not.
    link.write_all(&[0xc0, 0]).await;
    while !link.read.ends_with(&[0xd0, 0]) {
        if !link.stream.read_buf(&mut link.read).await.is_ok_and(|count| count > 0) {
            return Outcome::Closed;
        }
    }
    Outcome::Stays
}

fn broker() -> Broker {
    let listen = ([127, 0, 0, 1], 0).into();
    let durability = DurabilityLevel::None;
    let config =
        File { listen, shards: 3, durability, ..File::default() }.check(FILES as usize).unwrap();
    Broker::bind(config).unwrap()
}

async fn churn(seed: u64) {
    let broker = broker();
    let stop = CancellationToken::new();
    let arena = Arc::new(Arena {
        addr: broker.local_addr().unwrap(),
        subscribed: Barrier::new(CLIENTS),
        opening: Semaphore::new(OPENING_MAX),
        content: AtomicUsize::new(0),
        all_content: CancellationToken::new(),
        waiting: Mutex::default(),
    });
    let serving = tokio::spawn(broker.run(stop.clone().cancelled_owned()));

    let mut clients = JoinSet::new();
    for index in 0..CLIENTS {
        let rng = fastrand::Rng::with_seed(seed.wrapping_mul(1 << 20).wrapping_add(index as u64));
        clients.spawn(Client::new(index, rng, arena.clone()).live());
    }
    let all = tokio::time::timeout(DEADLINE, async {
        while let Some(client) = clients.join_next().await {
            // The first client that panics says why; the others would only wait for it.
            client.unwrap_or_else(|error| panic!("CHURN_SEED={seed}: {error}"));
        }
    });
    if all.await.is_err() {
        let waiting = arena.waiting.lock().unwrap();
        let some: Vec<_> = waiting.iter().take(10).collect();
        panic!("CHURN_SEED={seed}: {} clients wait for ever, as {some:#?}", waiting.len());
    }
    stop.cancel();
    serving.await.unwrap().unwrap();
}

/// What the clients share.
struct Arena {
    addr: SocketAddr,
    subscribed: Barrier,
    opening: Semaphore,
    /// Clients that have everything and whose messages are all acknowledged.
    content: AtomicUsize,
    all_content: CancellationToken,
    /// What is missing, per client that is not content.
    waiting: Mutex<HashMap<usize, String>>,
}

/// One client with its persistent session.
struct Client {
    index: usize,
    rng: fastrand::Rng,
    arena: Arc<Arena>,
    accidents_left: u32,
    /// Connections that were given up at their start: the broker may see them in any order, and
    /// take one of them for the newest.
    rivals: u32,
    is_content: bool,
    /// The broker has a session of it.
    has_session: bool,

    /// Numbers that were sent so far, at QoS 1 and at QoS 2.
    published: [u32; 2],
    next_id: PacketId,
    /// In the order of the first sending.
    open: VecDeque<Open>,

    /// QoS 2 identifiers between PUBLISH and PUBREL.
    received: HashSet<PacketId>,
    /// The next number to come, per publisher and QoS.
    expected: HashMap<(u32, u8), u32>,
}

/// A message of which the last acknowledgement has not come.
#[derive(Clone, Copy, Debug)]
struct Open {
    id: PacketId,
    qos: u8,
    number: u32,
    is_released: bool,
}

/// The present connection of a client.
struct Link {
    stream: TcpStream,
    version: ProtocolVersion,
    read: Vec<u8>,
    write: Vec<u8>,
}

/// How a client loses its connection.
#[derive(Clone, Copy, Debug)]
enum Accident {
    /// The socket is closed, with whatever is unread.
    Drop,
    /// The last packet is sent in part, then the socket is closed.
    DropInPacket,
    /// A new connection comes while the old one is open.
    TakeOver,
    /// A connection is opened and given up before its CONNACK came, then another one.
    TakeOverTwice,
}

impl Client {
    fn new(index: usize, rng: fastrand::Rng, arena: Arc<Arena>) -> Self {
        let publishers = [(before(index, 1) as u32, 2), (before(index, 7) as u32, 1)];
        Self {
            index,
            rng,
            arena,
            accidents_left: ACCIDENTS,
            rivals: 0,
            is_content: false,
            has_session: false,
            published: [0; 2],
            next_id: PacketId::FIRST,
            open: VecDeque::new(),
            received: HashSet::new(),
            expected: publishers.into_iter().map(|publisher| (publisher, 0)).collect(),
        }
    }

    async fn live(mut self) {
        let arena = self.arena.clone();
        let mut link = self.open_link().await;
        self.subscribe(&mut link).await;
        arena.subscribed.wait().await;
        loop {
            self.publish(&mut link);
            let bytes = std::mem::take(&mut link.write);
            match self.accident() {
                Some(accident) => link = self.suffer(accident, link, &bytes).await,
                None => link.write_all(&bytes).await,
            }
            self.settle();
            tokio::select! {
                count = link.stream.read_buf(&mut link.read) => {
                    if !self.is_open(count) {
                        link = self.open_link().await;
                        continue;
                    }
                }
                () = arena.all_content.cancelled() => return,
            }
            self.take_packets(&mut link);
        }
    }

    /// A connection may be closed for a rival only, once for each. What is left of a rival's life
    /// must not come back at a later connection.
    fn is_open(&mut self, read: std::io::Result<usize>) -> bool {
        let is_open = read.is_ok_and(|count| count > 0);
        if !is_open {
            let rivals = self.rivals.checked_sub(1);
            self.rivals = rivals.unwrap_or_else(|| {
                panic!("client {}: closed, though nobody took it over", self.index)
            });
        }
        is_open
    }

    fn accident(&mut self) -> Option<Accident> {
        if self.accidents_left == 0 || self.rng.u8(..100) >= 30 {
            return None;
        }
        self.accidents_left -= 1;
        Some(match self.rng.u8(..4) {
            0 => Accident::Drop,
            1 => Accident::DropInPacket,
            2 => Accident::TakeOver,
            _ => Accident::TakeOverTwice,
        })
    }

    /// Returns the next connection. `bytes` were to be written.
    async fn suffer(&mut self, accident: Accident, mut old: Link, bytes: &[u8]) -> Link {
        let whole = match accident {
            Accident::DropInPacket => bytes.len().saturating_sub(self.rng.usize(1..10)),
            _ => bytes.len(),
        };
        old.write_all(&bytes[..whole]).await;
        match accident {
            Accident::Drop | Accident::DropInPacket => drop(old),
            Accident::TakeOver => {
                let link = self.open_link().await;
                drop(old);
                return link;
            }
            Accident::TakeOverTwice => {
                self.rivals += 1;
                drop(self.say_connect().await);
                let link = self.open_link().await;
                drop(old);
                return link;
            }
        }
        self.open_link().await
    }

    async fn say_connect(&mut self) -> Link {
        let arena = self.arena.clone();
        let _permit = arena.opening.acquire().await.unwrap();
        let version = if self.rng.bool() { ProtocolVersion::V5 } else { ProtocolVersion::V311 };
        let mut properties = PropertiesBuf::new();
        if version == ProtocolVersion::V5 {
            properties.push(Property::SessionExpiryInterval(u32::MAX));
            properties.push(Property::ReceiveMaximum(self.rng.u16(1..30)));
        }
        let client_id = format!("churn-{}", self.index);
        Link::connect(arena.addr, version, &client_id, properties.as_properties()).await
    }

    /// CONNECT to CONNACK; sends again what is open.
    async fn open_link(&mut self) -> Link {
        let mut link = self.say_connect().await;
        let len = loop {
            if let Some(len) = link.whole_frame() {
                break len;
            }
            let count = link.stream.read_buf(&mut link.read).await;
            if !self.is_open(count) {
                link = self.say_connect().await;
            }
        };
        match decode(&link.read[..len], link.version).unwrap() {
            Packet::ConnAck(connack) => {
                assert!(!connack.reason.is_error(), "{connack:?}");
                // A session begun by a CONNECT that was given up at once may be there or not.
                assert!(connack.session_present || !self.has_session, "session forgotten");
                self.has_session = true;
            }
            other => panic!("{other:?} for a CONNECT"),
        }
        link.read.drain(..len);
        for open in &self.open {
            link.send_open(*open, self.index, Dup::Yes);
        }
        // What came right behind the CONNACK is handled now: nothing else may come and wake us.
        self.take_packets(&mut link);
        let bytes = std::mem::take(&mut link.write);
        link.write_all(&bytes).await;
        link
    }

    async fn subscribe(&mut self, link: &mut Link) {
        let mut filters = SubscribeFiltersBuf::new();
        let filter = match self.index % 2 {
            0 => format!("churn/{}/+", self.index),
            _ => format!("churn/{}/x", self.index),
        };
        filters.push(&filter, SubscribeOptions::new(Qos::ExactlyOnce));
        let subscribe = Subscribe {
            id: PacketId::FIRST,
            properties: Properties::EMPTY,
            filters: filters.as_filters(),
        };
        link.send(&Packet::Subscribe(subscribe));
        let bytes = std::mem::take(&mut link.write);
        link.write_all(&bytes).await;
        let len = loop {
            if let Some(len) = link.whole_frame() {
                break len;
            }
            let count = link.stream.read_buf(&mut link.read).await;
            assert!(self.is_open(count));
        };
        match decode(&link.read[..len], link.version).unwrap() {
            Packet::SubAck(suback) => assert_eq!(suback.reasons, [2]),
            other => panic!("{other:?} for a SUBSCRIBE"),
        }
        link.read.drain(..len);
    }

    fn publish(&mut self, link: &mut Link) {
        while self.open.len() < WINDOW && self.rng.u8(..10) > 0 {
            let qos = self.rng.u8(1..=2);
            let numbers = &mut self.published;
            let qos = if numbers[usize::from(qos) - 1] < MESSAGES { qos } else { 3 - qos };
            let Some(number) = numbers.get_mut(usize::from(qos) - 1).filter(|n| **n < MESSAGES)
            else {
                return;
            };
            let open = Open { id: self.next_id, qos, number: *number, is_released: false };
            *number += 1;
            self.next_id = self.next_id.next();
            self.open.push_back(open);
            link.send_open(open, self.index, Dup::No);
        }
        // With nothing on its way nothing would come back, and nobody would call again.
        if self.open.is_empty() && self.published.iter().any(|n| *n < MESSAGES) {
            self.publish(link);
        }
    }

    fn take_packets(&mut self, link: &mut Link) {
        let read = std::mem::take(&mut link.read);
        let mut taken = 0;
        while let Some(len) =
            frame_len(&read[taken..], u32::MAX).unwrap().filter(|len| taken + len <= read.len())
        {
            let packet = decode(&read[taken..taken + len], link.version).unwrap();
            self.take_packet(&packet, link);
            taken += len;
        }
        link.read = read[taken..].to_vec();
    }

    fn take_packet(&mut self, packet: &Packet<'_>, link: &mut Link) {
        match packet {
            Packet::Publish(publish) => self.take_publish(publish, link),
            Packet::PubRel(ack) => {
                self.received.remove(&ack.id);
                link.send(&Packet::PubComp(Ack::success(ack.id)));
            }
            Packet::PubRec(ack) => {
                assert!(!ack.reason.is_error(), "{ack:?}");
                if let Some(open) = self.open.iter_mut().find(|open| open.id == ack.id) {
                    open.is_released = true;
                }
                link.send(&Packet::PubRel(Ack::success(ack.id)));
            }
            Packet::PubAck(ack) => {
                assert!(!ack.reason.is_error(), "{ack:?}");
                self.open.retain(|open| open.id != ack.id);
            }
            // "Packet identifier not found" is the answer to a PUBREL that is sent again.
            Packet::PubComp(ack) => {
                self.open.retain(|open| open.id != ack.id);
            }
            // The end of the stream follows, and is looked at there.
            Packet::Disconnect(goodbye) if goodbye.reason == ReasonCode::SessionTakenOver => (),
            other => panic!("client {}: unexpected {other:?}", self.index),
        }
    }

    fn take_publish(&mut self, publish: &Publish<'_>, link: &mut Link) {
        let (from, number) = parse_payload(publish.payload);
        let qos = publish.delivery.qos() as u8;
        let is_news = match publish.delivery {
            Flow::AtMostOnce => panic!("client {}: QoS 0", self.index),
            Flow::AtLeastOnce { id, .. } => {
                link.send(&Packet::PubAck(Ack::success(id)));
                true
            }
            Flow::ExactlyOnce { id, .. } => {
                link.send(&Packet::PubRec(Ack::success(id)));
                self.received.insert(id)
            }
        };
        if !is_news {
            return;
        }
        let index = self.index;
        let expected = self.expected.get_mut(&(from, qos));
        let expected = expected.unwrap_or_else(|| panic!("client {index}: nothing from {from}"));
        if number == *expected {
            *expected += 1;
        } else {
            let is_repeated = number < *expected;
            let may_repeat = qos == 1;
            assert!(
                is_repeated && may_repeat,
                "client {index}: {number} from {from} at QoS {qos}, expected {expected}"
            );
        }
    }

    /// Notes what this client still waits for.
    fn settle(&mut self) {
        if self.is_content {
            return;
        }
        let has_sent = self.published == [MESSAGES; 2] && self.open.is_empty();
        let has_all = self.expected.values().all(|next| *next == MESSAGES);
        let mut waiting = self.arena.waiting.lock().unwrap();
        if has_sent && has_all {
            self.is_content = true;
            waiting.remove(&self.index);
            if self.arena.content.fetch_add(1, Ordering::SeqCst) + 1 == CLIENTS {
                self.arena.all_content.cancel();
            }
            return;
        }
        let Self { published, open, expected, .. } = self;
        let state = format!("published {published:?}, open {open:?}, expects {expected:?}");
        waiting.insert(self.index, state);
    }
}

/// Whether a message may have been sent before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Dup {
    Yes,
    No,
}

impl Link {
    /// A connection on which CONNECT was sent; the session is persistent.
    async fn connect(
        addr: SocketAddr,
        version: ProtocolVersion,
        client_id: &str,
        properties: Properties<'_>,
    ) -> Self {
        let connect = Connect {
            version,
            clean_start: false,
            keep_alive_s: 0,
            client_id,
            properties,
            will: None,
            user_name: None,
            password: None,
        };
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut link = Self { stream, version, read: Vec::new(), write: Vec::new() };
        link.send(&Packet::Connect(connect));
        let bytes = std::mem::take(&mut link.write);
        link.write_all(&bytes).await;
        link
    }

    fn send(&mut self, packet: &Packet<'_>) {
        packet.encode(self.version, &mut self.write);
    }

    fn send_open(&mut self, open: Open, from: usize, dup: Dup) {
        if open.is_released {
            return self.send(&Packet::PubRel(Ack::success(open.id)));
        }
        let (id, dup) = (open.id, dup == Dup::Yes);
        let (to, delivery) = match open.qos {
            1 => (after(from, 7), Flow::AtLeastOnce { id, dup }),
            _ => (after(from, 1), Flow::ExactlyOnce { id, dup }),
        };
        let mut payload = (from as u32).to_be_bytes().to_vec();
        payload.extend_from_slice(&open.number.to_be_bytes());
        self.send(&Packet::Publish(Publish {
            topic: &format!("churn/{to}/x"),
            payload: &payload,
            properties: Properties::EMPTY,
            delivery,
            retain: false,
        }));
    }

    /// A connection that was closed says so when it is read.
    async fn write_all(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    fn whole_frame(&self) -> Option<usize> {
        frame_len(&self.read, u32::MAX).unwrap().filter(|len| *len <= self.read.len())
    }
}

fn parse_payload(payload: &[u8]) -> (u32, u32) {
    let word = |at: usize| u32::from_be_bytes(*payload[at..].first_chunk().unwrap());
    (word(0), word(4))
}

fn after(index: usize, steps: usize) -> usize {
    (index + steps) % CLIENTS
}

fn before(index: usize, steps: usize) -> usize {
    (index + CLIENTS - steps) % CLIENTS
}

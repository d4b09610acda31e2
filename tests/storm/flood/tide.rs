//! The clients of a flood: they are held until it is over.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use mailboxqtt::codec::{Property, SubscribeOptions};
use mailboxqtt::ids::ProtocolVersion::V5;
use mailboxqtt::ids::{ProtocolVersion, Qos};
use socket2::SockRef;

use crate::wire::{Client, Got, Hello, PUBACK, Publication};

/// Bytes that a client offers at once.
const OFFER_BYTES: usize = 256 * 1024;
/// When the broker has taken nothing from anybody for so long, it is not going to.
const STILL: Duration = Duration::from_secs(3);
/// A flood does not last longer.
const POURING: Duration = Duration::from_secs(12);
/// Messages that a publisher has on their way.
const WINDOW: u16 = 100;
/// A publisher that has been refused so often has made its point.
const REFUSED_MAX: u64 = 20_000;

/// See the module comment.
pub(super) struct Tide {
    addr: SocketAddr,
    clients: Vec<Client>,
    /// Sessions that stay.
    sessions: Vec<String>,
    /// Topics with a retained message.
    retained: Vec<String>,
}

/// How often the broker has given which code.
#[derive(Default)]
pub(super) struct Codes(BTreeMap<u8, u64>);

impl Tide {
    /// Nobody yet.
    pub(super) fn new(addr: SocketAddr) -> Self {
        Self { addr, clients: Vec::new(), sessions: Vec::new(), retained: Vec::new() }
    }

    /// Everybody goes, and what stays of them is cleared away: what takes nothing more must be possible.
    pub(super) fn ebb(self) {
        drop(self.clients);
        for id in &self.sessions {
            Hello::new(V5, id).open(self.addr).0.disconnect();
        }
        let mut publisher = match self.retained.is_empty() {
            true => return,
            false => Hello::new(V5, "publisher").open(self.addr).0,
        };
        for topics in self.retained.chunks(WINDOW.into()) {
            for (topic, id) in topics.iter().zip(1..) {
                publisher.retain(topic, "", 1, id);
            }
            for _ in topics {
                let answer = publisher.next();
                assert!(matches!(answer, Got::Ack(PUBACK, _, 0 | 0x10)), "{answer:?}");
            }
        }
    }

    /// A tide of one more client.
    pub(super) fn source(&self) -> Self {
        let mut source = Self::new(self.addr);
        source.clients.push(Hello::new(V5, "source").open(self.addr).0);
        source
    }

    /// Sockets on which nothing was said.
    pub(super) fn connect_raw(&mut self, count: usize) {
        self.clients.extend((0..count).map(|_| Client::raw(self.addr, V5)));
    }

    /// Clients with clean sessions, the codes of whose CONNACK are counted.
    pub(super) fn connect(&mut self, version: ProtocolVersion, count: usize) -> Codes {
        let mut codes = Codes::default();
        for _ in 0..count {
            let id = format!("flood-{}", self.clients.len());
            let (client, answer) = Hello::new(version, &id).try_open(self.addr);
            codes.count_connack(&answer);
            self.clients.push(client);
        }
        codes
    }

    /// Clients that subscribe to `filter` and then read nothing.
    pub(super) fn connect_deaf(&mut self, count: usize, filter: &str, qos: u8) {
        self.connect(V5, count);
        self.make_deaf();
        let options = SubscribeOptions::new(Qos::new(qos).unwrap());
        for client in &mut self.clients {
            client.send_subscribe(&[(filter, options)]);
            client.next_answer();
        }
    }

    /// Little of what the broker sends them fits into their own system.
    pub(super) fn make_deaf(&self) {
        for client in &self.clients {
            SockRef::from(client.stream()).set_recv_buffer_size(4096).unwrap();
        }
    }

    /// Sessions that stay, with a subscription, of clients that do not.
    pub(super) fn leave(&mut self, count: usize, filter: &str) {
        for number in 0..count {
            let id = format!("away-{number}");
            let mut client = Hello::persistent(V5, &id).open(self.addr).0;
            client.subscribe(filter, 1);
            client.disconnect();
            self.sessions.push(id);
        }
    }

    /// A CONNECT after the other, each for a session that stays with its will.
    pub(super) fn leave_wills(&mut self, count: usize, will: &str) -> Codes {
        let mut codes = Codes::default();
        for number in 0..count {
            let id = format!("will-{number}");
            let delay = Property::WillDelayInterval(3600);
            let hello = Hello::persistent(V5, &id).will("will", will, 1, false).will_with(delay);
            let mut client = Client::raw(self.addr, V5);
            client.send_in_vain(&hello.bytes());
            let answer = client.next();
            codes.count_connack(&answer);
            if matches!(answer, Got::ConnAck(_, 0, _)) {
                self.sessions.push(id);
            }
            // No farewell, so that the will waits; and nothing of it stays in this system.
            SockRef::from(client.stream()).set_linger(Some(Duration::ZERO)).unwrap();
        }
        codes
    }

    /// All clients send `bytes`, all at once, as far as the broker takes them. Returns how many it took.
    pub(super) fn pour(&mut self, bytes: &[u8]) -> usize {
        let begun = Instant::now();
        let mut poured: Vec<usize> = vec![0; self.clients.len()];
        let mut last_progress = begun;
        for client in &self.clients {
            client.stream().set_nonblocking(true).unwrap();
        }
        while last_progress.elapsed() < STILL && begun.elapsed() < POURING {
            let mut is_over = true;
            for (client, from) in self.clients.iter().zip(&mut poured) {
                let end = bytes.len().min(*from + OFFER_BYTES);
                if *from == end {
                    continue;
                }
                match client.stream().write(&bytes[*from..end]) {
                    Ok(count) => {
                        *from += count;
                        last_progress = Instant::now();
                        is_over = false;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => is_over = false,
                    // The broker has closed it.
                    Err(_) => (),
                }
            }
            if is_over {
                break;
            }
            if last_progress.elapsed() > Duration::from_millis(1) {
                thread::sleep(Duration::from_millis(1));
            }
        }
        poured.iter().sum()
    }

    /// How many of the clients the broker has not closed.
    pub(super) fn open(&self) -> usize {
        let is_open = |client: &&Client| {
            client.stream().set_nonblocking(true).unwrap();
            let peeked = client.stream().peek(&mut [0]);
            matches!(peeked, Ok(1))
                || peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
        };
        self.clients.iter().filter(is_open).count()
    }

    /// Publishes at QoS 1 up to `count` messages of 10 kB, until very many are refused. `topic` says to which topic each.
    pub(super) fn publish(&mut self, count: u64, retain: bool, topic: fn(u64) -> String) -> Codes {
        // It has a session, so it may come again.
        let mut publisher = Hello::persistent(V5, "publisher").open(self.addr).0;
        let payload = vec![b'x'; 10_000];
        let mut codes = Codes::default();
        let mut sent = 0;
        while sent < count && codes.refused() < REFUSED_MAX {
            let mut packets = Vec::new();
            for id in 1..=WINDOW {
                let topic = topic(sent);
                let publication = Publication { retain, ..Publication::new(&topic, &payload) };
                packets.extend(publication.qos(1, id).bytes(V5));
                sent += 1;
            }
            publisher.send(&packets);
            for offset in 0..u64::from(WINDOW) {
                match publisher.next() {
                    Got::Ack(PUBACK, _, code) => {
                        codes.count(code);
                        if codes.refused() == 1 {
                            let why = publisher.properties().reason_string().unwrap_or_default();
                            println!("message {sent} is refused: {why}");
                        }
                        if retain && code < 0x80 {
                            self.retained.push(topic(sent - u64::from(WINDOW) + offset));
                        }
                    }
                    other => panic!("no PUBACK, but {other:?}"),
                }
            }
        }
        codes
    }

    /// Subscribes to `count` filters, a few in a packet, until very many are refused.
    pub(super) fn subscribe(&mut self, count: u64, filter: fn(u64) -> String) -> Codes {
        let mut client = Hello::new(V5, "subscriber").open(self.addr).0;
        let mut codes = Codes::default();
        let mut sent = 0;
        while sent < count && codes.refused() < REFUSED_MAX {
            let filters: Vec<String> = (sent..sent + 200).map(filter).collect();
            let filters: Vec<_> = filters.iter().map(|filter| (filter.as_str(), 1)).collect();
            sent += filters.len() as u64;
            client.subscribe_all(&filters).into_iter().for_each(|code| codes.count(code));
        }
        self.clients.push(client);
        codes
    }
}

impl Codes {
    fn count(&mut self, code: u8) {
        *self.0.entry(code).or_default() += 1;
    }

    fn count_connack(&mut self, answer: &Got) {
        match answer {
            Got::ConnAck(_, code, _) => self.count(*code),
            other => panic!("CONNECT was answered by {other:?}"),
        }
    }

    fn refused(&self) -> u64 {
        self.0.iter().filter(|(code, _)| **code >= 0x80).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accepted: u64 = self.0.values().sum::<u64>() - self.refused();
        write!(f, "{accepted} accepted")?;
        for (code, count) in self.0.iter().filter(|(code, _)| **code >= 0x80) {
            write!(f, ", {count} refused with 0x{code:02X}")?;
        }
        Ok(())
    }
}

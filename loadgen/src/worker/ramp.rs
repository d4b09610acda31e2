//! Connecting: opens the clients of a thread, a bounded number at a time, and takes each through
//! CONNACK and SUBACK. Called by the loop in `worker`. Says in a sentence what went wrong.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;

use anyhow::{Context, bail};
use mailboxqtt::codec::{Packet, decode};
use mailboxqtt::ids::ProtocolVersion;
use mio::{Interest, Token};

use super::Worker;
use crate::block::Block;
use crate::client::{Client, Login, Part, Publisher, Stage, Subscriber};
use crate::payload::Stamp;
use crate::receive;
use crate::scenario::Role;
use crate::sequence::Tracker;
use crate::settings::{Pace, Planned};

/// Loopback connections from one source address; beyond, the next address of 127.0.0.0/8 is used.
const CONNECTIONS_PER_SOURCE: usize = 20_000;
/// More connections than this do not fit the usual range of ports of one address.
const SOURCE_PORTS: usize = 28_000;
/// Frames per publisher in an open loop: how many may leave in one write, after a stall.
const OPEN_LOOP_FRAMES: u64 = 256;
/// The same where memory is for very many publishers.
const OPEN_LOOP_FRAMES_MANY: u64 = 16;
const MANY_PUBLISHERS: u32 = 1_000;

impl Worker<'_> {
    /// Keeps as many handshakes under way as are allowed.
    pub(super) fn open_more(&mut self) -> anyhow::Result<()> {
        while self.opening < self.settings.concurrent {
            let Some(Planned { number, role }) = self.planned.pop() else { return Ok(()) };
            let part = self.part(role);
            let settings = self.settings;
            let source = source(settings.target, settings.clients, number);
            let now_ns = self.shared.clock.now_ns();
            let mut client = Client::open(settings.target, source, part, now_ns)
                .with_context(|| self.unreachable(number))?;
            let client_id = format!("{}-{:08x}-{number}", settings.client_prefix, settings.run);
            let login = Login {
                user_name: settings.user_name.as_deref(),
                password: settings.password.as_deref(),
            };
            client.say_connect(&client_id, login);
            let index = self.clients.len();
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut client.socket, Token(index), interest)?;
            if let Part::Publisher(publisher) = &client.part {
                self.owned[publisher.id as usize] = Some(index as u32);
            }
            self.clients.push(client);
            self.numbers.push(number);
            self.opening += 1;
            self.enqueue(index);
        }
        Ok(())
    }

    /// CONNACK and SUBACK; anything that follows them in the same read is left to the caller.
    pub(super) fn shake_hands(&mut self, index: usize, bytes: &[u8]) -> anyhow::Result<usize> {
        let mut used = 0;
        while self.clients[index].stage != Stage::Ready {
            let Some(frame) = receive::next_frame(&bytes[used..])? else { return Ok(used) };
            used += frame.bytes.len();
            let packet = decode(frame.bytes, ProtocolVersion::V311)
                .context("the broker answered the handshake with a malformed packet")?;
            let client = &mut self.clients[index];
            match (client.stage, packet) {
                (Stage::Connecting { since_ns }, Packet::ConnAck(answer)) => {
                    if answer.reason.as_u8() >= 0x80 {
                        let number = self.numbers[index];
                        bail!("the broker refused client {number}: {}", answer.reason);
                    }
                    let now_ns = self.shared.clock.now_ns();
                    self.tally.connect_ns.saturating_record(now_ns.saturating_sub(since_ns));
                    if client.say_subscribe(self.settings.qos) {
                        client.stage = Stage::Subscribing;
                        self.enqueue(index);
                    } else {
                        self.ready(index);
                    }
                }
                (Stage::Subscribing, Packet::SubAck(answer)) => {
                    if let Some(reason) = answer.reasons.iter().find(|reason| **reason > 2) {
                        bail!("the broker refused a subscription with 0x{reason:02x}");
                    }
                    self.ready(index);
                }
                (stage, _) => bail!("the broker sent an unexpected packet while {stage:?}"),
            }
        }
        Ok(used + self.digest(index, &bytes[used..])?)
    }

    /// A connection that fails ends the run: the sentence says what it means.
    pub(super) fn broken(&self, index: usize, error: io::Error) -> anyhow::Error {
        let number = self.numbers[index];
        let closed = matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        );
        let target = self.settings.target;
        match self.clients[index].stage {
            Stage::Connecting { .. } if closed => anyhow::anyhow!(
                "the broker at {target} closed connection {number} before CONNACK \
                 (it may be out of open files, or limit its connections)"
            ),
            Stage::Connecting { .. } => anyhow::Error::new(error).context(self.unreachable(number)),
            _ if closed => anyhow::anyhow!(
                "the broker at {target} closed the connection of client {number} during the run: \
                 it has stopped, or the client broke one of its limits"
            ),
            _ => anyhow::Error::new(error)
                .context(format!("the connection of client {number} to {target} broke")),
        }
    }

    /// What the role needs on this thread: frames, or trackers.
    fn part(&mut self, role: Role) -> Part {
        match role {
            Role::Idle => Part::Idle,
            Role::Publisher { id, topics } => {
                let frames_min = match self.settings.pace {
                    Pace::Window(window) => window,
                    Pace::Rate(_) if self.settings.publishers > MANY_PUBLISHERS => {
                        OPEN_LOOP_FRAMES_MANY
                    }
                    Pace::Rate(_) => OPEN_LOOP_FRAMES,
                };
                let stamp =
                    Stamp { run: self.settings.run, publisher: id, sequence: 0, sent_ns: 0 };
                let (qos, payload_bytes) = (self.settings.qos, self.settings.payload_bytes);
                Part::Publisher(Publisher {
                    id,
                    block: Block::new(&topics, frames_min, qos, stamp, payload_bytes),
                    acked: 0,
                    due: 0,
                    written_off: 0,
                    moved: (0, 0),
                })
            }
            Role::Subscriber { filters, publishers, first } => {
                let trackers_at = self.trackers.len();
                for publisher in publishers.clone() {
                    self.gates[publisher as usize].add(self.trackers.len() as u32);
                    self.trackers.push(Tracker::new(first, self.settings.stride));
                }
                let count = publishers.len() as u32;
                let publisher_first = publishers.start;
                Part::Subscriber(Subscriber {
                    filters,
                    trackers_at,
                    publisher_first,
                    publishers: count,
                })
            }
        }
    }

    fn ready(&mut self, index: usize) {
        self.clients[index].stage = Stage::Ready;
        self.opening -= 1;
        self.shared.ready.fetch_add(1, Ordering::AcqRel);
    }

    fn unreachable(&self, number: usize) -> String {
        let target = self.settings.target;
        if self.shared.ready.load(Ordering::Acquire) == 0 {
            format!(
                "no broker answers at {target}: start one with `just run`, \
                 or say where it is with --addr HOST:PORT"
            )
        } else {
            format!("connection {number} to {target} could not be opened")
        }
    }
}

/// Over loopback, one address has too few ports for very many connections; `None` leaves the choice
/// to the system.
fn source(target: SocketAddr, clients: usize, number: usize) -> Option<SocketAddr> {
    let IpAddr::V4(address) = target.ip() else { return None };
    if clients <= SOURCE_PORTS || !address.is_loopback() {
        return None;
    }
    let host = (number / CONNECTIONS_PER_SOURCE) as u32;
    let source = Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + host);
    Some(SocketAddr::new(source.into(), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_loopback_connections_come_from_several_addresses() {
        let target = "127.0.0.1:1883".parse().unwrap();
        assert_eq!(source(target, 10_000, 9_999), None);
        assert_eq!(source(target, 50_000, 0), "127.0.0.1:0".parse().ok());
        assert_eq!(source(target, 50_000, 49_999), "127.0.0.3:0".parse().ok());
        assert_eq!(source("192.0.2.1:1883".parse().unwrap(), 50_000, 0), None);
    }
}

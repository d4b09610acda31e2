//! Connecting: opens the clients of a thread, a bounded number at a time, and takes each through
//! CONNACK and SUBACK. Called by the loop in `worker`. Says in a sentence what went wrong.

use std::io::{self, ErrorKind};
use std::sync::atomic::Ordering;

use anyhow::Context;
use mio::{Interest, Token};

use super::Worker;
use crate::block::{Block, Message};
use crate::client::{Client, Part, Publisher, Stage, Subscriber};
use crate::handshake::Login;
use crate::payload::Source;
use crate::scenario::Role;
use crate::sequence::Tracking;
use crate::settings::{Arrival, Pace, Planned};
use crate::source;

/// Frames per publisher in an open loop: how many may leave in one write, after a stall.
const OPEN_LOOP_FRAMES: u64 = 256;
/// The same where memory is for very many publishers.
const OPEN_LOOP_FRAMES_MANY: u64 = 16;
const MANY_PUBLISHERS: u32 = 1_000;

impl<T: Tracking> Worker<'_, T> {
    /// Opens what may be opened now.
    pub(super) fn open_more(&mut self) -> anyhow::Result<()> {
        while !self.planned.is_empty() {
            let now_ns = self.shared.clock.now_ns();
            let since_ns = match self.settings.arrival {
                Arrival::Concurrent(most) if self.opening < most => now_ns,
                Arrival::Concurrent(_) => return Ok(()),
                Arrival::Rate(_) => match self.arrives_ns() {
                    Some(arrives_ns) if arrives_ns <= now_ns => arrives_ns,
                    _ => return Ok(()),
                },
            };
            let Some(Planned { number, role }) = self.planned.pop() else { return Ok(()) };
            let part = self.part(role);
            let settings = self.settings;
            let source = source::of(&settings.sources, number);
            let mut client = Client::open(settings.target, source, None, part, since_ns)
                .with_context(|| self.unreachable(number))?;
            let login = Login {
                client_id: &settings.client_id(number),
                session: settings.session,
                keep_alive_s: settings.keep_alive_s,
                user_name: settings.user_name.as_deref(),
                password: settings.password.as_deref(),
            };
            client.say_connect(settings.wire, login);
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

    /// When the next connection is to be opened, where a schedule says so.
    pub(super) fn arrives_ns(&self) -> Option<u64> {
        let Arrival::Rate(rate) = self.settings.arrival else { return None };
        Some((self.planned.last()?.number as f64 * 1e9 / rate) as u64)
    }

    /// CONNACK and SUBACK; anything that follows them in the same read is left to the caller.
    pub(super) fn shake_hands(&mut self, index: usize, bytes: &[u8]) -> anyhow::Result<usize> {
        let client = &mut self.clients[index];
        let shaken = client.shake_hands(bytes, self.settings.wire, self.settings.qos)?;
        if let Some(since_ns) = shaken.since_ns {
            let now_ns = self.shared.clock.now_ns();
            self.tally.connect_ns.saturating_record(now_ns.saturating_sub(since_ns));
        }
        if let Some(wished_s) = shaken.keep_alive_s {
            self.pinger.hurry(wished_s);
        }
        if client.stage != Stage::Ready {
            self.enqueue(index);
            return Ok(shaken.used);
        }
        self.opening -= 1;
        self.shared.ready.fetch_add(1, Ordering::AcqRel);
        Ok(shaken.used + self.digest(index, &bytes[shaken.used..])?)
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
                let message = Message {
                    source: Source::new(self.settings.run, id),
                    wire: self.settings.wire,
                    qos: self.settings.qos,
                    retain: false,
                    payload_bytes: self.settings.payload_bytes,
                };
                Part::Publisher(Publisher {
                    id,
                    block: Block::new(&topics, frames_min, message),
                    acked: 0,
                    receive_max: u64::MAX,
                    due: 0,
                    written_off: 0,
                    moved: (0, 0),
                })
            }
            Role::Subscriber { filters, publishers, first } => {
                let trackers_at = if self.settings.grouped { 0 } else { self.trackers.len() };
                if trackers_at == self.trackers.len() {
                    for publisher in publishers.clone() {
                        self.gates[publisher as usize].add(self.trackers.len() as u32);
                        self.trackers.push(T::new(first, self.settings.stride));
                    }
                }
                Part::Subscriber(Subscriber {
                    filters,
                    trackers_at,
                    publisher_first: publishers.start,
                    publishers: publishers.len() as u32,
                })
            }
        }
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

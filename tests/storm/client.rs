//! One of the clients of the storm.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use mailboxqtt::codec::{Delivery, Packet, decode, frame_len};
use mailboxqtt::ids::ProtocolVersion::{V31, V311};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::packet::Maker;
use crate::process::PATIENCE;

/// The longest pause between two things that a client does.
const PAUSE_MAX_US: u64 = 40_000;
/// How long it waits for a broker that does not read.
const WRITE_MAX: Duration = Duration::from_secs(1);

/// See the module comment.
pub(crate) struct Client {
    index: usize,
    rng: Rng,
    addr: SocketAddr,
    tally: Arc<Tally>,
}

/// What all of them did.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    connections: AtomicU64,
    /// That were answered by CONNACK.
    answered: AtomicU64,
    writes: AtomicU64,
    bytes: AtomicU64,
    packets_received: AtomicU64,
}

/// What a client does with what it gets.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Manners {
    /// Acknowledges it.
    Good,
    /// Acknowledges some of it.
    Careless,
    /// Reads and says nothing.
    Silent,
    /// Does not read.
    Deaf,
}

/// One connection.
struct Life {
    stream: TcpStream,
    maker: Maker,
    manners: Manners,
    /// The broker understands CONNECT as it was made, so what it sends can be understood.
    is_understood: bool,
    is_answered: bool,
    received: Vec<u8>,
    /// To be written.
    output: Vec<u8>,
    tally: Arc<Tally>,
}

impl Client {
    pub(crate) fn new(index: usize, seed: u64, addr: SocketAddr, tally: Arc<Tally>) -> Self {
        let rng = Rng::with_seed(seed.wrapping_mul(1 << 20).wrapping_add(index as u64));
        Self { index, rng, addr, tally }
    }

    /// One life after the other.
    pub(crate) async fn live(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let opening = timeout(PATIENCE, self.open());
            let stream = opening.await.expect("the broker accepts connections in time");
            let mut life = Life::new(stream, self.rng.fork(), self.tally.clone());
            tokio::select! {
                // Whatever ends it.
                _ = life.go_on() => life.end().await,
                () = stop.cancelled() => return,
            }
        }
    }

    /// From an address of its own, whose ports nobody else uses up.
    async fn open(&self) -> TcpStream {
        let [a, b, c, _] = [127, 0, 0, 0];
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([a, b, c, 2 + self.index as u8], 0))).unwrap();
        let stream = socket.connect(self.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        self.tally.connections.fetch_add(1, Ordering::Relaxed);
        stream
    }
}

impl Life {
    fn new(stream: TcpStream, rng: Rng, tally: Arc<Tally>) -> Self {
        let mut maker = Maker::new(rng);
        let manners = match maker.rng.u8(..10) {
            0..=4 => Manners::Good,
            5..=6 => Manners::Careless,
            7..=8 => Manners::Silent,
            _ => Manners::Deaf,
        };
        let (received, output) = (Vec::new(), Vec::new());
        let (is_understood, is_answered) = (false, false);
        Self { stream, maker, manners, is_understood, is_answered, received, output, tally }
    }

    /// Until the broker has enough of it, or it of the broker.
    async fn go_on(&mut self) -> io::Result<()> {
        self.begin().await?;
        let answer_by = Instant::now() + PATIENCE;
        let mut left = self.maker.rng.u32(1..60);
        let mut next = Instant::now();
        while left > 0 {
            let reads = self.manners != Manners::Deaf;
            tokio::select! {
                count = self.stream.read_buf(&mut self.received), if reads => {
                    if count? == 0 {
                        return Ok(());
                    }
                    self.take_packets();
                }
                () = sleep_until(next) => {
                    left -= 1;
                    next = Instant::now() + self.pause();
                    self.act();
                    let is_late = Instant::now() > answer_by && reads && self.is_understood;
                    assert!(self.is_answered || !is_late, "CONNECT was not answered in time");
                }
            }
            self.write().await?;
        }
        Ok(())
    }

    /// What comes instead of CONNECT, or as it.
    async fn begin(&mut self) -> io::Result<()> {
        match self.maker.rng.u8(..100) {
            0..=4 => self.output = self.maker.garbage(),
            5..=9 => {
                self.output = self.maker.connect();
                self.maker.damage(&mut self.output);
            }
            10..=12 => {
                self.output = self.maker.connect();
                let cut = self.maker.rng.usize(..self.output.len());
                self.output.truncate(cut);
                self.write().await?;
                sleep(Duration::from_millis(self.maker.rng.u64(..500))).await;
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            13..=15 => self.output = self.maker.legal(),
            16..=17 => self.output = self.maker.illegal(),
            // Nothing at all, for a moment.
            18 => {}
            _ => {
                self.output = self.maker.connect();
                self.is_understood = true;
            }
        }
        self.write().await
    }

    /// Puts something into the output.
    fn act(&mut self) {
        let mut packet = match self.maker.rng.u8(..100) {
            0 => self.maker.illegal(),
            1 => self.maker.garbage(),
            2..=4 => self.maker.stray_ack(),
            5 => {
                let mut packet = self.maker.legal();
                self.maker.damage(&mut packet);
                packet
            }
            6 => {
                let mut packet = self.maker.legal();
                packet.truncate(self.maker.rng.usize(..packet.len()));
                packet
            }
            _ => self.maker.legal(),
        };
        self.output.append(&mut packet);
    }

    fn pause(&mut self) -> Duration {
        Duration::from_micros(self.maker.rng.u64(..PAUSE_MAX_US))
    }

    async fn write(&mut self) -> io::Result<()> {
        if self.output.is_empty() {
            return Ok(());
        }
        self.tally.writes.fetch_add(1, Ordering::Relaxed);
        self.tally.bytes.fetch_add(self.output.len() as u64, Ordering::Relaxed);
        // A broker that does not read is one that wants less.
        timeout(WRITE_MAX, self.stream.write_all(&self.output)).await??;
        self.output.clear();
        Ok(())
    }

    /// Every packet of the broker can be decoded, however odd the client is, and is no larger than the
    /// client takes.
    fn take_packets(&mut self) {
        if !self.is_understood {
            self.received.clear();
            return;
        }
        let received = std::mem::take(&mut self.received);
        let mut rest = &received[..];
        while let Some(len) = frame_len(rest, u32::MAX).unwrap()
            && len <= rest.len()
        {
            let (frame, behind) = rest.split_at(len);
            assert!(frame.len() <= self.maker.packet_bytes_max, "larger than the client takes");
            self.tally.packets_received.fetch_add(1, Ordering::Relaxed);
            self.take_packet(frame);
            rest = behind;
        }
        self.received = rest.to_vec();
    }

    fn take_packet(&mut self, frame: &[u8]) {
        let version = if self.maker.version == V31 { V311 } else { self.maker.version };
        let packet = decode(frame, version);
        let packet = packet.unwrap_or_else(|error| panic!("{frame:x?} in {version:?}: {error}"));
        let answer = match packet {
            Packet::ConnAck(_) => {
                self.is_answered = true;
                self.tally.answered.fetch_add(1, Ordering::Relaxed);
                None
            }
            Packet::Publish(publish) => match publish.delivery {
                Delivery::AtMostOnce => None,
                Delivery::AtLeastOnce { id, .. } => Some((0x40, id)),
                Delivery::ExactlyOnce { id, .. } => Some((0x50, id)),
            },
            Packet::PubRec(ack) => (!ack.reason.is_error()).then_some((0x62, ack.id)),
            Packet::PubRel(ack) => Some((0x70, ack.id)),
            Packet::Auth(_) => {
                let mut auth = self.maker.auth(0x18, b"c=biws,r=storm,p=wrong");
                self.output.append(&mut auth);
                None
            }
            _ => None,
        };
        let Some((first_byte, id)) = answer else { return };
        let says_it = match self.manners {
            Manners::Good => true,
            Manners::Careless => self.maker.rng.bool(),
            Manners::Silent | Manners::Deaf => false,
        };
        if says_it {
            let mut ack = self.maker.ack(first_byte, id.get());
            self.output.append(&mut ack);
        }
    }

    /// Leaves, in one of the ways in which clients leave.
    async fn end(mut self) {
        match self.maker.rng.u8(..10) {
            0..=2 => {
                // Nobody need hear it.
                let _ = timeout(WRITE_MAX, self.stream.write_all(&[0xE0, 0])).await;
            }
            // The end of one side, and the wait for that of the other.
            3 => {
                let _ = self.stream.shutdown().await;
                let mut rest = Vec::new();
                let reading = self.stream.read_to_end(&mut rest);
                let _ = timeout(Duration::from_millis(500), reading).await;
            }
            // Open, and nobody there.
            4 => sleep(Duration::from_millis(self.maker.rng.u64(..3_000))).await,
            5..=6 => {
                let _ = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
            }
            _ => {}
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connections, answered, writes, bytes, packets_received } = self;
        let [connections, answered, writes, bytes, packets_received] =
            [connections, answered, writes, bytes, packets_received]
                .map(|counter| counter.load(Ordering::Relaxed));
        write!(
            f,
            "{connections} connections, of which {answered} got a CONNACK; {writes} writes of {} MiB; \
             {packets_received} packets received",
            bytes >> 20,
        )
    }
}

//! A client that wants its connection back.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mailboxqtt::codec::{Delivery, Packet, decode, frame_len};
use mailboxqtt::ids::ProtocolVersion::V311;
use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::process::PATIENCE;
use crate::wire::{Hello, publish};

/// The pause after the first attempt that failed, give or take a half; it doubles each time.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Clients share so many addresses, so that none runs out of ports.
const ADDRESSES: usize = 50;

/// See the module comment.
pub(super) struct Client {
    id: String,
    /// Where it comes from.
    address: SocketAddr,
    server: SocketAddr,
    connector: TlsConnector,
    /// Of each attempt, to the CONNACK.
    limit: Duration,
}

/// What it was like.
pub(super) struct Served {
    /// From the start of the storm.
    pub(super) connack: Duration,
    /// The message came, from the start of the storm.
    pub(super) message: Duration,
    /// Attempts that failed.
    pub(super) retries: u32,
    pub(super) is_resumed: bool,
}

/// A connection that has its CONNACK.
pub(super) struct Link {
    stream: TlsStream<TcpStream>,
    received: Vec<u8>,
}

impl Client {
    pub(super) fn new(
        index: usize,
        server: SocketAddr,
        config: &ClientConfig,
        limit: Duration,
    ) -> Self {
        // Its tickets are its own.
        let mut config = config.clone();
        config.resumption = Resumption::in_memory_sessions(1);
        let address = SocketAddr::from(([127, 0, 0, 2 + (index % ADDRESSES) as u8], 0));
        let connector = TlsConnector::from(Arc::new(config));
        Self { id: format!("client-{index}"), address, server, connector, limit }
    }

    /// Connects for the first time, and subscribes to its own topic.
    pub(super) async fn begin(&self) -> Link {
        let opening = timeout(PATIENCE, self.open());
        let (mut link, was_present) = opening.await.expect("in time").unwrap();
        assert!(!was_present, "a new broker knows nobody");
        let topic = self.id.as_bytes();
        let mut subscribe = vec![0x82, 5 + topic.len() as u8, 0, 1, 0, topic.len() as u8];
        subscribe.extend_from_slice(topic);
        subscribe.push(1);
        link.stream.write_all(&subscribe).await.unwrap();
        assert_eq!(link.next_frame().await.unwrap(), [0x90, 3, 0, 1, 1]);
        link
    }

    /// Until it is served.
    pub(super) async fn come_back(&self, begun: Instant) -> (Link, Served) {
        let (mut retries, mut pause) = (0, PAUSE_MIN);
        loop {
            if let Ok(Ok((mut link, was_present))) = timeout(self.limit, self.open()).await {
                assert!(was_present, "{} had a session", self.id);
                let connack = begun.elapsed();
                // It fails where the CONNECT of an attempt that was given up is read late: that takes the session over.
                if link.exchange(&self.id).await.is_ok() {
                    let message = begun.elapsed();
                    let kind = link.stream.get_ref().1.handshake_kind();
                    let is_resumed = kind == Some(HandshakeKind::Resumed);
                    return (link, Served { connack, message, retries, is_resumed });
                }
            }
            retries += 1;
            sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// One attempt, to the CONNACK. The flag is its session present.
    async fn open(&self) -> io::Result<(Link, bool)> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(self.address)?;
        let stream = socket.connect(self.server).await?;
        stream.set_nodelay(true)?;
        let name = "localhost".try_into().unwrap();
        let stream = self.connector.connect(name, stream).await?;
        let mut link = Link { stream, received: Vec::new() };
        link.stream.write_all(&Hello::persistent(V311, &self.id).bytes()).await?;
        let connack = link.next_frame().await?;
        let [0x20, 2, was_present, 0] = connack[..] else {
            return Err(io::Error::other(format!("{connack:?}")));
        };
        Ok((link, was_present == 1))
    }
}

impl Link {
    /// Publishes to its own topic and gets that.
    async fn exchange(&mut self, topic: &str) -> io::Result<()> {
        self.stream.write_all(&publish(V311, topic, b"here again", 1, 7, false)).await?;
        let (mut is_acknowledged, mut has_come) = (false, false);
        while !(is_acknowledged && has_come) {
            let frame = self.next_frame().await?;
            let packet = decode(&frame, V311).map_err(io::Error::other)?;
            match packet {
                Packet::PubAck(_) => is_acknowledged = true,
                Packet::Publish(message) => {
                    assert_eq!(message.payload, b"here again");
                    let Delivery::AtLeastOnce { id, .. } = message.delivery else {
                        panic!("{message:?}")
                    };
                    let [high, low] = id.get().to_be_bytes();
                    self.stream.write_all(&[0x40, 2, high, low]).await?;
                    has_come = true;
                }
                other => panic!("{topic} got {other:?}"),
            }
        }
        Ok(())
    }

    async fn next_frame(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let len = frame_len(&self.received, u32::MAX).map_err(io::Error::other)?;
            if let Some(len) = len.filter(|len| *len <= self.received.len()) {
                return Ok(self.received.drain(..len).collect());
            }
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

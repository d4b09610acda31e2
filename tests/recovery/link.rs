//! A connection that may be cut at any moment, which is no error here.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use mailboxqtt::codec::{Packet, decode, frame_len};
use mailboxqtt::ids::ProtocolVersion;
use socket2::SockRef;

use crate::stage::{STALL, Stage, Visit};
use crate::wire::Hello;

/// A connection whose CONNACK has come.
pub(crate) struct Link {
    stream: TcpStream,
    version: ProtocolVersion,
    received: Vec<u8>,
    /// Bytes of `received` that were taken.
    taken: usize,
}

/// What comes next.
#[derive(Debug)]
pub(crate) enum Event {
    /// A whole packet.
    Packet(Vec<u8>),
    /// Nothing, in the time that was given.
    Quiet,
    /// The end of the connection.
    Gone,
}

/// What a client knows of its session before it connects.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Session {
    /// The broker has acknowledged that there is one.
    Established,
    /// It wants a new one, or does not know.
    Any,
}

impl Link {
    /// Connects; says whether there was a session. `None` if that did not succeed.
    pub(crate) fn open(
        stage: &Stage,
        visit: &Visit,
        hello: &Hello<'_>,
        session: Session,
    ) -> Option<(Self, bool)> {
        let mut link = match TcpStream::connect_timeout(&visit.addr, STALL) {
            Ok(stream) => {
                stream.set_nodelay(true).unwrap();
                stream.set_write_timeout(Some(STALL)).unwrap();
                Self { stream, version: hello.version, received: Vec::new(), taken: 0 }
            }
            Err(error) => {
                stage.lost(visit, hello.id, format!("cannot connect: {error}"));
                return None;
            }
        };
        link.send(&hello.bytes());
        let frame = match link.next(STALL) {
            Event::Packet(frame) => frame,
            other => {
                stage.lost(visit, hello.id, format!("{other:?} instead of CONNACK"));
                return None;
            }
        };
        match link.decode(&frame) {
            Packet::ConnAck(connack) if !connack.reason.is_error() => {
                if session == Session::Established && !connack.session_present {
                    stage.complain(format!("{}: its session is gone", hello.id));
                }
                let is_present = connack.session_present;
                Some((link, is_present))
            }
            other => {
                stage.complain(format!("{}: CONNECT was answered by {other:?}", hello.id));
                None
            }
        }
    }

    /// Whether it arrives, nobody knows.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        // A connection that has ended says so when it is read.
        let _ = self.stream.write_all(bytes);
    }

    /// The next packet, for which it waits `time`.
    pub(crate) fn next(&mut self, time: Duration) -> Event {
        let deadline = Instant::now() + time;
        loop {
            let rest = &self.received[self.taken..];
            if let Some(len) = frame_len(rest, u32::MAX).unwrap()
                && len <= rest.len()
            {
                self.taken += len;
                return Event::Packet(rest[..len].to_vec());
            }
            self.received.drain(..self.taken);
            self.taken = 0;
            let left = deadline.saturating_duration_since(Instant::now());
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            // Otherwise the kernel keeps the second of two short packets back for 40 ms.
            let _ = SockRef::from(&self.stream).set_tcp_quickack(true);
            let mut chunk = [0; 64 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Event::Gone,
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return Event::Quiet;
                }
                Err(_) => return Event::Gone,
            }
        }
    }

    /// What the broker says must be well-formed.
    pub(crate) fn decode<'f>(&self, frame: &'f [u8]) -> Packet<'f> {
        decode(frame, self.version).unwrap_or_else(|error| panic!("{error}: {frame:x?}"))
    }

    /// DISCONNECT, and all that still comes until the broker closes.
    pub(crate) fn disconnect(mut self) {
        self.send(&[0xE0, 0]);
        while let Event::Packet(_) = self.next(STALL) {}
    }
}

//! One connection: its socket, what it still has to write, and what it plays in the scenario.
//!
//! `worker` owns all clients of its thread and calls [`Client::flush`] once per turn; `receive`
//! parses what arrives. CONNECT and SUBSCRIBE are in `handshake`.
//!
//! # Invariant
//!
//! Packets never interleave: acknowledgements are written before PUBLISH frames, except when the
//! last write ended inside a frame, which is then finished first.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use socket2::{Domain, Protocol, Socket, Type};

use crate::block::Block;

const DISCONNECT: [u8; 2] = [0xe0, 0];

/// See the module.
#[derive(Debug)]
pub(crate) struct Client {
    /// Nonblocking, without Nagle's delay.
    pub(crate) socket: TcpStream,
    /// How far the handshake has come.
    pub(crate) stage: Stage,
    /// What it does once it is ready.
    pub(crate) part: Part,
    /// Whether it waits in the worker's queue to be refilled and flushed.
    pub(crate) queued: bool,
    /// The beginning of a packet whose end has not arrived.
    pub(crate) partial: Vec<u8>,
    /// Packets other than PUBLISH that wait to be written.
    pub(crate) control: Vec<u8>,
}

/// How far the handshake has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// CONNECT is on its way, or even the TCP handshake.
    Connecting {
        /// When the connection was asked for.
        since_ns: u64,
    },
    /// SUBSCRIBE is on its way.
    Subscribing,
    /// Takes part.
    Ready,
}

/// What a client does once it is ready.
#[derive(Debug)]
pub(crate) enum Part {
    /// Sends.
    Publisher(Publisher),
    /// Receives.
    Subscriber(Subscriber),
    /// Holds its connection.
    Idle,
}

/// The sending half of the scenario.
#[derive(Debug)]
pub(crate) struct Publisher {
    /// Counts publishers from zero, over all threads.
    pub(crate) id: u32,
    /// Its frames; knows how many messages were sent.
    pub(crate) block: Block,
    /// Messages whose flow the broker has ended: PUBACK at QoS 1, PUBCOMP at QoS 2.
    pub(crate) acked: u64,
    /// Unacknowledged messages that the broker allows at QoS 1 and 2.
    pub(crate) receive_max: u64,
    /// Open loop: messages whose time has come.
    pub(crate) due: u64,
    /// Closed loop at QoS 0: what no longer counts as outstanding, in terms of its trackers.
    pub(crate) written_off: u64,
    /// Closed loop: the last position that was seen, and when it was first seen.
    pub(crate) moved: (u64, u64),
}

/// The receiving half of the scenario.
#[derive(Debug)]
pub(crate) struct Subscriber {
    /// Sent once, in one SUBSCRIBE.
    pub(crate) filters: Vec<String>,
    /// Index of its first tracker in the worker.
    pub(crate) trackers_at: usize,
    /// The publisher of that tracker; further ones follow.
    pub(crate) publisher_first: u32,
    /// How many publishers it receives from.
    pub(crate) publishers: u32,
}

impl Client {
    /// Begins to connect, from `source` if the system should not choose. So many bytes are kept for
    /// the client to read, or as many as the system chooses.
    pub(crate) fn open(
        target: SocketAddr,
        source: Option<SocketAddr>,
        receive_buffer_bytes: Option<usize>,
        part: Part,
        now_ns: u64,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(bytes) = receive_buffer_bytes {
            // Before the handshake: a window that shrinks later stalls the sender.
            socket.set_recv_buffer_size(bytes)?;
        }
        if let Some(source) = source {
            socket.bind(&source.into())?;
        }
        match socket.connect(&target.into()) {
            Ok(()) => {}
            // Under way; a failure shows itself at the first write.
            Err(error)
                if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(Self {
            socket: TcpStream::from_std(socket.into()),
            stage: Stage::Connecting { since_ns: now_ns },
            part,
            queued: false,
            partial: Vec::new(),
            control: Vec::new(),
        })
    }

    /// Takes leave, unless something is still to be written: the connection closes in any case.
    pub(crate) fn say_disconnect(&mut self) {
        if self.stage == Stage::Ready && self.is_flushed() {
            self.control.extend_from_slice(&DISCONNECT);
            let _ = self.flush();
        }
    }

    /// Reads what has arrived behind the beginning of a packet that is held, into `scratch`.
    /// `None` when there is nothing; otherwise how much of `scratch` is filled, and whether the
    /// socket may have more. Zero bytes from the socket are an error: the broker closed.
    #[inline]
    pub(crate) fn fill(&mut self, scratch: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
        let held = self.partial.len();
        scratch[..held].copy_from_slice(&self.partial);
        let bytes = loop {
            match self.socket.read(&mut scratch[held..]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => break bytes,
                Err(error) if is_not_yet(&error) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        self.partial.clear();
        Ok(Some((held + bytes, held + bytes == scratch.len())))
    }

    /// Writes all that waits, as far as the socket takes it; the rest waits for it to be writable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        loop {
            let block = match &mut self.part {
                Part::Publisher(publisher) => Some(&mut publisher.block),
                Part::Subscriber(_) | Part::Idle => None,
            };
            let (front, back) = block.as_ref().map_or_else(Default::default, |it| it.unwritten());
            if self.control.is_empty() && front.is_empty() {
                return Ok(());
            }
            let block_first = block.as_ref().is_some_and(|block| block.is_mid_frame());
            let written = if self.control.is_empty() && back.is_empty() {
                self.socket.write(front)
            } else if front.is_empty() {
                self.socket.write(&self.control)
            } else if block_first {
                self.socket.write_vectored(&[front, back, &self.control].map(IoSlice::new))
            } else {
                self.socket.write_vectored(&[&self.control, front, back].map(IoSlice::new))
            };
            let written = match written {
                Ok(written) => written,
                Err(error) if is_not_yet(&error) => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let of_block = if block_first {
                written.min(front.len() + back.len())
            } else {
                written.saturating_sub(self.control.len())
            };
            let of_control = written - of_block;
            if of_control == self.control.len() {
                self.control.clear();
            } else {
                self.control.drain(..of_control);
            }
            if let Some(block) = block {
                block.wrote(of_block);
            }
        }
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_flushed(&self) -> bool {
        let block_flushed = match &self.part {
            Part::Publisher(publisher) => publisher.block.is_flushed(),
            Part::Subscriber(_) | Part::Idle => true,
        };
        self.control.is_empty() && block_flushed
    }
}

/// A socket that is still connecting says `NotConnected`.
fn is_not_yet(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected)
}

//! What all threads of a run are told before it begins. Built by `run` from the arguments.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use mailboxqtt::ids::{ProtocolVersion, Qos};

use crate::handshake::Session;
use crate::scenario::Role;

/// What all threads of a run are told.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The broker.
    pub(crate) target: SocketAddr,
    /// How packets are written and read.
    pub(crate) wire: Wire,
    /// Of publishing and of subscriptions.
    pub(crate) qos: Qos,
    /// Size of a payload.
    pub(crate) payload_bytes: usize,
    /// Open loop with this rate, or closed loop with this window.
    pub(crate) pace: Pace,
    /// How many subscribers each message reaches.
    pub(crate) receivers: u64,
    /// A subscriber receives every how-manieth message of its publishers.
    pub(crate) stride: u64,
    /// All subscribers are one group, of which one receives each message; they are on one thread.
    pub(crate) grouped: bool,
    /// Tells this run from others.
    pub(crate) run: u32,
    /// Clients of all threads.
    pub(crate) clients: usize,
    /// Publishers of all threads.
    pub(crate) publishers: u32,
    /// Whether sessions outlive connections.
    pub(crate) session: Session,
    /// How connections are opened.
    pub(crate) arrival: Arrival,
    /// Local addresses to come from in turn; empty for the system's choice.
    pub(crate) sources: Vec<IpAddr>,
    /// Seconds; 0 for none.
    pub(crate) keep_alive_s: u16,
    /// First part of each client identifier.
    pub(crate) client_prefix: String,
    /// What CONNECT says.
    pub(crate) user_name: Option<String>,
    /// What CONNECT says.
    pub(crate) password: Option<String>,
}

impl Settings {
    /// The client identifier of a client.
    pub(crate) fn client_id(&self, number: usize) -> String {
        format!("{}-{:08x}-{number}", self.client_prefix, self.run)
    }
}

/// How packets are written and read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire {
    /// What all clients speak.
    pub(crate) version: ProtocolVersion,
    /// Whether publishers say each topic once, and an alias afterwards. MQTT 5 only.
    pub(crate) topic_alias: bool,
}

/// Who decides when the next message leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// The subscribers: at most so many messages of a publisher are outstanding.
    Window(u64),
    /// The clock: so many messages per second over all publishers.
    Rate(f64),
}

/// How connections are opened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arrival {
    /// At most so many handshakes of a thread are under way.
    Concurrent(usize),
    /// The clock: so many per second over all threads.
    Rate(f64),
}

/// A client to be connected.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// Counts the clients of the run from zero, over all threads.
    pub(crate) number: usize,
    /// What it does.
    pub(crate) role: Role,
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Window(window) => write!(f, "closed loop, window {window}"),
            Self::Rate(rate) => write!(f, "open loop at {rate}/s"),
        }
    }
}

impl Pace {
    /// A quarter of the window: what a refill brings at least.
    pub(crate) fn step(self) -> u64 {
        match self {
            Self::Window(window) => (window / 4).max(1),
            Self::Rate(_) => u64::MAX,
        }
    }
}

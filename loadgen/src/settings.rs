//! What all threads of a run are told before it begins. Built by `run` from the arguments.

use std::fmt;
use std::net::SocketAddr;

use mailboxqtt::ids::Qos;

use crate::scenario::Role;

/// What all threads of a run are told.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The broker.
    pub(crate) target: SocketAddr,
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
    /// Tells this run from others.
    pub(crate) run: u32,
    /// Clients of all threads.
    pub(crate) clients: usize,
    /// Publishers of all threads.
    pub(crate) publishers: u32,
    /// Handshakes under way at the same time, per thread.
    pub(crate) concurrent: usize,
    /// First part of each client identifier.
    pub(crate) client_prefix: String,
    /// What CONNECT says.
    pub(crate) user_name: Option<String>,
    /// What CONNECT says.
    pub(crate) password: Option<String>,
}

/// Who decides when the next message leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// The subscribers: at most so many messages of a publisher are outstanding.
    Window(u64),
    /// The clock: so many messages per second over all publishers.
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

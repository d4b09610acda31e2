//! Sockets: where bytes, clock, session and router meet. Floor 5.
//!
//! [`accept`] listens and accepts, `transport` makes a stream of what was accepted ([`proxy`], [`tls`],
//! [`upgrade`], [`websocket`]), `listener` and `handshake` read the CONNECT, `connection` serves the session until
//! it ends. One driver serves every transport.

pub mod accept;
pub mod admission;
mod connection;
mod gates;
mod handshake;
pub mod health;
mod listener;
pub mod pace;
mod peer;
pub mod proxy;
mod scratch;
mod socket;
pub mod tls;
mod transport;
mod unsent;
pub mod upgrade;
pub mod websocket;

use std::time::Duration;

use crate::session;

/// Bounds of all connections together.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Connections at the same time; one more is closed as soon as it is accepted.
    pub connections_max: usize,
    /// Sessions, their clients connected or away.
    pub sessions_max: u64,
    /// How long a session stays whose user nobody knows any more; `None` is for ever.
    pub removed_user_session_max: Option<Duration>,
}

/// Bounds of each connection through a listener.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Largest CONNECT, in bytes.
    pub connect_bytes_max: u32,
    /// How long a new connection may take until its CONNECT has come, with all that its transport needs before.
    pub handshake_max: Duration,
    /// What response topics begin with, before the client identifier; empty where clients are told none.
    pub response_topic_prefix: Box<str>,
    /// How much one client may publish.
    pub publish: pace::PublishRates,
    /// Of each session.
    pub session: session::Limits,
}

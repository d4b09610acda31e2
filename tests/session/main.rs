//! The session over a virtual link and a virtual clock: no sockets, no tasks, no waiting.
//!
//! [`pair::Pair`] drives a `Session` as `net::connection` does and reads what it writes as a client
//! would. One file per subject; [`fuzz`] plays random [`operations`] against an oracle.
//!
//! Invariant: nothing here looks inside the session. A scenario rests on packets, routes, requests
//! and the tally, the same things that the connection sees.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may")]

mod accounting;
mod authenticating;
#[allow(dead_code, reason = "the fuzz targets use more of it")]
#[path = "../../fuzz/src/choices.rs"]
mod choices;
mod delivering;
mod forwarding;
mod fuzz;
mod keep_alive;
mod mounting;
mod operations;
mod pair;
mod publishing;
mod reasons;
mod resuming;
mod subscribing;
mod terms;
mod will;

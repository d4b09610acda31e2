//! The running broker seen from outside, one integration test binary.
//!
//! Each test starts its own broker ([`broker::Broker`]), talks to it through a client program or
//! library that other people wrote, or with raw bytes ([`wire`]), and stops it. Nothing here looks inside
//! the broker: a test may rely on what a client can see and on the line that the broker prints when it
//! serves. [`conformance`] is the part that speaks for the standard alone.
//!
//! `just setup` installs the clients. A test whose client is missing fails and says so, because a
//! test that is skipped in silence looks exactly like one that passes.
//!
//! `MAILBOXQTT_TEST_ADDR=HOST:PORT` points the tests of this binary at a broker that runs already,
//! see [`broker`]. `MAILBOXQTT_TEST_TOOLS` is the folder into which `just setup` put the clients
//! that do not come from the system, see [`process::tools`].
//!
//! Invariants: topics and client identifiers come from [`process::unique`], so that tests run in
//! parallel against one broker; nobody sleeps, everything waits for an event with a deadline.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may")]

mod abuse;
mod access;
mod auth;
mod auth_call_out;
mod auth_listener;
mod auth_password;
mod auth_reload;
mod auth_token;
mod bounds;
mod broker;
mod config;
mod conformance;
mod handing_over;

mod lifecycle;
mod listener_limits;
mod mosquitto;
mod mounting;
mod mqttjs;
mod packages;
mod paho;
mod process;
mod queues;
mod reasons;
mod reload;
mod rumqttc;
mod service;
mod sharing;
mod terms;
mod transports;
mod wire;

//! The mailboxqtt broker as a library: everything that the binary wires together.
//!
//! Seven floors; a module imports only from floors below its own (`tests/tidy.rs` holds the table).
//! Start reading at [`session`], which is the protocol, or at [`router`], which moves the messages.

#![forbid(unsafe_code)]

pub mod access;
pub mod auth;
pub mod broker;
pub mod codec;
pub mod config;
pub mod ids;
pub mod message;
pub mod metrics;
pub mod net;
pub mod record;
pub mod retained;
pub mod router;
pub mod session;
pub mod store;
pub mod subscriptions;
pub mod sys;
pub mod topic;

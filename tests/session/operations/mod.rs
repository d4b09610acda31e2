//! Random operations on a session, with an oracle for all that it may do.
//!
//! A list of bytes drives both ends. The client publishes, subscribes, acknowledges out of order and
//! late, breaks rules, and loses its link at any byte, in both directions. Shards deliver, own what
//! they got in any order, and answer requests late. The clock jumps. In the end everything is
//! brought to rest, and the books must be even.
//!
//! ```text
//!            uplink, cut anywhere                     batches, requests
//!   client ----------------------> Pair (session) <-------------------> router
//!          <----------------------    |     ^          deliveries, receipts
//!            downlink, cut anywhere   v     |
//!                                  answers, sending: what has to come out
//! ```
//!
//! [`answers`] and [`sending`] are the oracle: they see each packet that the session is given, each
//! delivery and each receipt, and know by the words of the standard which packets must follow.
//! [`game`] compares. `client` and `router` only make things happen; a client that was corrupted on
//! purpose may lose messages of its own, so then its books are not looked at.
//!
//! Played by `fuzz.rs` with random bytes, and by the fuzz target `session_operations`. Who changes
//! what a session does changes `answers` or `sending`; who changes how it is called changes `Pair`.

mod answers;
mod catalogue;
mod client;
mod game;
mod router;
mod secret;
mod sending;

use mailboxqtt::session::Limits;

use super::choices::{self, Choices};
use super::pair;

/// Small enough to be met.
const LIMITS: Limits = Limits { check_payload_format: true, topic_alias_max: 3, ..pair::LIMITS };

/// Plays what `bytes` say, and panics where the session is wrong.
pub(crate) fn play(bytes: &[u8]) {
    game::Game::new(Choices::new(bytes)).play();
}

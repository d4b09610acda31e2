//! Application messages on their way through the broker: always many at a time. Floor 0.
//!
//! A message is never taken out of its PUBLISH frame. What crosses a channel is one shared buffer of
//! frames and a list of small `Copy` items beside it, one for each *run* of consecutive frames with
//! the same topic, QoS and flags:
//!
//! ```text
//! net::connection --Collector--> Batch --shard--> Delivery --mailbox--> session::outgoing
//!                                {frames, runs}   {buffers, pieces}
//! ```
//!
//! # Invariants
//!
//! - Every offset and length in a [`Run`] or [`Piece`] lies inside its buffer, and each range holds
//!   exactly `count` whole PUBLISH frames that `codec` has validated.
//! - The topic in a frame is complete and there is no topic alias: aliases end where a connection ends.
//! - A Message Expiry Interval in a frame counts from the moment that its buffer was received.

use std::fmt;
use std::hash::BuildHasher;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::ids::{ProtocolVersion, Qos};
use crate::topic::TopicFilter;

pub use collector::Collector;
pub use collector::Incoming;
pub use delivery::Buffer;
pub use delivery::Delivery;
pub use delivery::Kind;
pub use delivery::Logged;
pub use delivery::Piece;
pub use delivery::Undelivered;
pub use delivery::Via;
pub use stored::Stored;

mod collector;
mod delivery;
mod stored;

/// Hashes topic names. One per broker, seeded at start-up so that nobody can choose colliding topics.
#[derive(Clone)]
pub struct TopicHasher(foldhash::quality::RandomState);

impl TopicHasher {
    /// The seed comes from outside: this floor knows no randomness.
    pub fn new(state: foldhash::quality::RandomState) -> Self {
        Self(state)
    }

    /// The one hash of a topic: it picks the shard and probes the shard's route cache.
    pub fn hash(&self, topic: &[u8]) -> u64 {
        self.0.hash_one(topic)
    }
}

impl fmt::Debug for TopicHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TopicHasher")
    }
}

/// The shard of a topic hash, below `shards`. Uses other bits than a hash table's tag does.
pub fn shard_of(hash: u64, shards: usize) -> usize {
    (((hash & 0xffff_ffff) * shards as u64) >> 32) as usize
}

/// Consecutive PUBLISH frames of one publisher with the same topic, QoS and flags.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Run {
    /// Of the topic, by the broker's [`TopicHasher`].
    pub hash: u64,
    /// Where the first frame starts in the batch's buffer.
    pub offset: u32,
    /// Bytes of all frames of the run.
    pub len: u32,
    /// Frames, at least one.
    pub count: u32,
    /// Where the first frame's topic starts in the buffer.
    pub topic_at: u32,
    /// Bytes of the topic.
    pub topic_len: u16,
    /// As published.
    pub qos: Qos,
    /// As published.
    pub retain: bool,
    /// The frames have a Message Expiry Interval.
    pub expires: bool,
}

/// What one read of one connection brought for one shard.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Shared by all shards that this read touched.
    pub frames: Bytes,
    /// In the order of arrival.
    pub runs: Vec<Run>,
    /// How `frames` are encoded.
    pub version: ProtocolVersion,
    /// When they were read.
    pub received_at: Instant,
}

impl Batch {
    /// The topic of `run`; empty when the run is not of this batch.
    pub fn topic(&self, run: &Run) -> &[u8] {
        let start = run.topic_at as usize;
        self.frames.get(start..start + usize::from(run.topic_len)).unwrap_or_default()
    }

    /// Whether it is one message.
    pub fn is_single(&self) -> bool {
        matches!(self.runs[..], [Run { count: 1, .. }])
    }
}

/// What a subscription asks of a shard and of the trie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grant {
    /// Highest QoS to deliver with.
    pub qos: Qos,
    /// Do not send the session its own messages.
    pub no_local: bool,
    /// Keep the RETAIN flag of a live message.
    pub retain_as_published: bool,
    /// Subscription Identifier, 1 to 268,435,455.
    pub identifier: Option<NonZeroU32>,
}

/// Where the replay of retained messages to one new subscription stands in one shard.
///
/// It travels: the shard hands out the next chunk and a new `Replay` for the rest, the session gives
/// it back when the chunk is on the wire. So a replay is complete, paced by the reader, and holds
/// no more than one chunk in memory.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Which shard it belongs to.
    pub shard: usize,
    /// The session's request that asked for it.
    pub token: u64,
    /// The filters that are still to be replayed from `filter` on.
    pub filters: Arc<[(TopicFilter, Grant)]>,
    /// Index of the filter that is being replayed.
    pub filter: usize,
    /// The last topic that was sent for it.
    pub after: Option<Box<str>>,
    /// Messages stored later than this were delivered as live ones.
    pub stored_until: u64,
}

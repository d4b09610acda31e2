//! Application messages on their way through the broker: always many at a time. Floor 0.
//!
//! A message is never taken out of its PUBLISH frame. What crosses a channel is one shared buffer of
//! frames and a list of small `Copy` items beside it, one for each *run* of consecutive frames with
//! the same topic, QoS and RETAIN flag:
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
//! - The topic in a frame is complete: topic aliases are resolved before a frame gets here.

use std::fmt;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{ProtocolVersion, Qos};
use crate::topic::TopicFilter;

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

/// Consecutive PUBLISH frames of one publisher with the same topic, QoS and RETAIN flag.
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

/// Runs that a collector gathers before it asks for a flush. Frames of five bytes with changing topics
/// would else make lists ten times as large as the frames.
const RUNS_MAX: usize = 1024;

/// Gathers the PUBLISH frames of one read into at most one [`Batch`] per shard.
///
/// Frames are not copied one by one: the collector notes where they are in the read buffer, and
/// [`Collector::flush`] copies the region from the first to the last of them once.
#[derive(Debug)]
pub struct Collector {
    hasher: TopicHasher,
    version: ProtocolVersion,
    lists: Vec<Vec<Run>>,
    touched: Vec<usize>,
    /// Where the region starts and ends in the read buffer.
    region: Range<usize>,
    /// Runs in `lists`.
    runs: usize,
    /// Shard of the newest run and the address and length of its topic.
    newest: Option<(usize, usize, usize)>,
}

/// One PUBLISH of a read buffer, as [`Collector::add`] takes it.
#[derive(Clone, Debug)]
pub struct Incoming<'a> {
    /// Complete topic name, a slice of the read buffer or equal to an earlier one by address.
    pub topic: &'a str,
    /// As published.
    pub qos: Qos,
    /// As published.
    pub retain: bool,
    /// Where the frame is in the read buffer.
    pub frame: Range<usize>,
    /// Where the frame's own topic starts in the read buffer.
    pub topic_at: usize,
}

impl Collector {
    /// An empty collector for `shards` shards.
    pub fn new(hasher: TopicHasher, shards: usize) -> Self {
        Self {
            hasher,
            version: ProtocolVersion::V311,
            lists: vec![Vec::new(); shards],
            touched: Vec::new(),
            region: 0..0,
            runs: 0,
            newest: None,
        }
    }

    /// Takes the frames of the next read as encoded for `version`. Call it after a flush only.
    pub fn begin(&mut self, version: ProtocolVersion) {
        self.version = version;
    }

    /// Whether it is time for a flush: the lists would become larger than the frames.
    pub fn is_full(&self) -> bool {
        self.runs >= RUNS_MAX
    }

    /// How many shards the next flush touches.
    pub fn touched(&self) -> usize {
        self.touched.len()
    }

    /// Adds one message. `O(1)`; hashes the topic only where it differs from the one before.
    pub fn add(&mut self, message: Incoming<'_>) {
        if self.touched.is_empty() {
            self.region = message.frame.clone();
        }
        let topic = (message.topic.as_ptr() as usize, message.topic.len());
        let same_topic = self.newest.filter(|(_, at, len)| (*at, *len) == topic);
        let offset = (message.frame.start - self.region.start) as u32;
        let len = message.frame.len() as u32;
        self.region.end = message.frame.end;

        let mut newest_run = same_topic
            .and_then(|(shard, ..)| self.lists.get_mut(shard))
            .and_then(|list| list.last_mut());
        if let Some(run) = &mut newest_run
            && run.offset + run.len == offset
            && run.qos == message.qos
            && run.retain == message.retain
        {
            run.len += len;
            run.count += 1;
            return;
        }
        let hash = match newest_run {
            Some(run) => run.hash,
            None => self.hasher.hash(message.topic.as_bytes()),
        };
        let shard = shard_of(hash, self.lists.len());
        let Some(list) = self.lists.get_mut(shard) else { return };
        if list.is_empty() {
            self.touched.push(shard);
        }
        self.runs += 1;
        list.push(Run {
            hash,
            offset,
            len,
            count: 1,
            topic_at: (message.topic_at - self.region.start) as u32,
            topic_len: message.topic.len() as u16,
            qos: message.qos,
            retain: message.retain,
        });
        self.newest = Some((shard, topic.0, topic.1));
    }

    /// Copies the collected region out of `read` once and hands one batch to each touched shard.
    pub fn flush(&mut self, read: &[u8], mut send: impl FnMut(usize, Batch)) {
        if self.touched.is_empty() {
            return;
        }
        let frames = Bytes::copy_from_slice(read.get(self.region.clone()).unwrap_or_default());
        for shard in self.touched.drain(..) {
            let Some(list) = self.lists.get_mut(shard) else { continue };
            let runs = std::mem::take(list);
            send(shard, Batch { frames: frames.clone(), runs, version: self.version });
        }
        self.newest = None;
        self.runs = 0;
    }
}

/// A part of a [`Run`] on its way to one subscriber.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Index into the delivery's buffers.
    pub buffer: u32,
    /// Where the first frame starts in that buffer.
    pub offset: u32,
    /// Bytes of all frames of the piece.
    pub len: u32,
    /// Frames, at least one.
    pub count: u32,
    /// How the frames are encoded.
    pub version: ProtocolVersion,
    /// QoS in the frames.
    pub frame_qos: Qos,
    /// RETAIN flag in the frames.
    pub frame_retain: bool,
    /// QoS to deliver with: the lower one of the message's and the subscription's.
    pub qos: Qos,
    /// RETAIN flag to deliver with.
    pub retain: bool,
}

/// Whether a delivery has to be acknowledged. A delivery is of one kind only, so that a full window
/// of the one never holds back the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// QoS 0.
    Unacknowledged,
    /// QoS 1 and 2.
    Acknowledged,
}

/// What one turn of one shard has for one subscriber.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Each buffer once, however many pieces point into it.
    pub buffers: Vec<Bytes>,
    /// In the order of delivery.
    pub pieces: Vec<Piece>,
    /// Messages in all pieces.
    pub messages: u32,
    /// Bytes in all pieces.
    pub piece_bytes: usize,
    /// What the queue limit is charged: the buffers that are held, and a share for the lists.
    pub held_bytes: usize,
    /// QoS 0, or QoS 1 and 2.
    pub kind: Kind,
}

/// Memory of a queued delivery besides its buffers, charged to the queue limit.
fn overhead_bytes(pieces: &[Piece]) -> usize {
    160 + size_of_val(pieces)
}

impl Delivery {
    /// Takes the parts and works out the sums. Where the pieces are less than a quarter of the
    /// buffers, they are copied out, so that 20 waiting bytes do not pin 64 KiB.
    pub fn new(kind: Kind, buffers: Vec<Bytes>, pieces: Vec<Piece>) -> Self {
        let messages = pieces.iter().map(|piece| piece.count).sum();
        let piece_bytes = pieces.iter().map(|piece| piece.len as usize).sum();
        let buffer_bytes: usize = buffers.iter().map(Bytes::len).sum();
        let held_bytes = buffer_bytes + overhead_bytes(&pieces);
        let delivery = Self { buffers, pieces, messages, piece_bytes, held_bytes, kind };
        if piece_bytes < buffer_bytes / 4 { delivery.copied_out() } else { delivery }
    }

    /// The frames of `piece`; empty when the piece is not of this delivery.
    pub fn frames(&self, piece: &Piece) -> &[u8] {
        let start = piece.offset as usize;
        let buffer = self.buffers.get(piece.buffer as usize);
        buffer.and_then(|bytes| bytes.get(start..start + piece.len as usize)).unwrap_or_default()
    }

    fn copied_out(self) -> Self {
        let mut copy = Vec::with_capacity(self.piece_bytes);
        let mut pieces = self.pieces.clone();
        for (piece, copied) in self.pieces.iter().zip(&mut pieces) {
            copied.buffer = 0;
            copied.offset = copy.len() as u32;
            copy.extend_from_slice(self.frames(piece));
        }
        let held_bytes = copy.len() + overhead_bytes(&pieces);
        Self { buffers: vec![copy.into()], pieces, held_bytes, ..self }
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

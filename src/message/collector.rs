//! From one read of a connection to at most one batch per shard. Floor 0, filled by `session`.

use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;

use super::{Batch, Run, TopicHasher, shard_of};
use crate::ids::{ProtocolVersion, Qos};

/// Runs that a collector gathers before it asks for a flush. Frames of five bytes with changing topics
/// would else make lists ten times as large as the frames.
const RUNS_MAX: usize = 1024;
/// Bytes of rewritten frames after which it asks for a flush: behind a topic alias of two bytes may be
/// a topic of 64 KiB.
const REWRITTEN_BYTES_MAX: usize = 64 * 1024;
/// Set in an offset that counts from the start of the rewritten frames. A read is shorter than this.
const REWRITTEN: u32 = 1 << 31;

/// Gathers the PUBLISH frames of one read into at most one [`Batch`] per shard.
///
/// Frames are not copied one by one: the collector notes where they are in the read buffer, and
/// [`Collector::flush`] copies the region from the first to the last of them once. Only a frame that
/// cannot go on as it came is written into the collector, and put behind that region.
#[derive(Debug)]
pub struct Collector {
    hasher: TopicHasher,
    version: ProtocolVersion,
    lists: Vec<Vec<Run>>,
    touched: Vec<usize>,
    /// When the read came.
    received_at: Instant,
    /// Where the region starts and ends in the read buffer.
    region: Range<usize>,
    /// Frames that had to be written anew; their offsets have [`REWRITTEN`] set until the flush.
    rewritten: Vec<u8>,
    /// Runs in `lists`.
    runs: usize,
    /// Shard of the newest run and the address and length of its topic.
    newest: Option<(usize, usize, usize)>,
}

/// What the collector has to know of a message besides where it is.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// Complete topic name.
    pub topic: &'a str,
    /// As published.
    pub qos: Qos,
    /// As published.
    pub retain: bool,
    /// The frame has a Message Expiry Interval.
    pub expires: bool,
}

impl Collector {
    /// An empty collector for `shards` shards.
    pub fn new(hasher: TopicHasher, shards: usize, now: Instant) -> Self {
        Self {
            hasher,
            version: ProtocolVersion::V311,
            lists: vec![Vec::new(); shards],
            touched: Vec::new(),
            received_at: now,
            region: 0..0,
            rewritten: Vec::new(),
            runs: 0,
            newest: None,
        }
    }

    /// Takes the frames of the next read, which came at `now`, as encoded for `version`. Call it after a
    /// flush only.
    pub fn begin(&mut self, version: ProtocolVersion, now: Instant) {
        self.version = version;
        self.received_at = now;
    }

    /// Whether it is time for a flush: lists or rewritten frames would become larger than the read.
    pub fn is_full(&self) -> bool {
        self.runs >= RUNS_MAX || self.is_expanded()
    }

    /// Whether it is full of rewritten frames: more to do than the size of the read tells.
    pub fn is_expanded(&self) -> bool {
        self.rewritten.len() >= REWRITTEN_BYTES_MAX
    }

    /// How many shards the next flush touches.
    pub fn touched(&self) -> usize {
        self.touched.len()
    }

    /// Adds the message at `frame` of the read buffer, whose own topic starts at `topic_at`. Its topic
    /// is a slice of the read buffer, or equal to an earlier one by address. `O(1)`; hashes the topic only
    /// where it differs from the one before.
    pub fn add(&mut self, message: Incoming<'_>, frame: Range<usize>, topic_at: usize) {
        if self.region.is_empty() {
            self.region = frame.clone();
        }
        let topic = (message.topic.as_ptr() as usize, message.topic.len());
        let same_topic = self.newest.filter(|(_, at, len)| (*at, *len) == topic);
        let offset = (frame.start - self.region.start) as u32;
        let len = frame.len() as u32;
        self.region.end = frame.end;

        let mut newest_run = same_topic
            .and_then(|(shard, ..)| self.lists.get_mut(shard))
            .and_then(|list| list.last_mut());
        if let Some(run) = &mut newest_run
            && run.is_continued_by(&message, offset)
        {
            run.len += len;
            run.count += 1;
            return;
        }
        let hash = match newest_run {
            Some(run) => run.hash,
            None => self.hasher.hash(message.topic.as_bytes()),
        };
        let topic_at = (topic_at - self.region.start) as u32;
        let shard = self.push(message, hash, offset..offset + len, topic_at);
        self.newest = Some((shard, topic.0, topic.1));
    }

    /// Adds a message whose frame is not in the read buffer: `write` appends it, and returns where in
    /// its frame the topic starts.
    pub fn add_rewritten(
        &mut self,
        message: Incoming<'_>,
        write: impl FnOnce(&mut Vec<u8>) -> usize,
    ) {
        let start = self.rewritten.len();
        let topic_at = start + write(&mut self.rewritten);
        let offset = start as u32 | REWRITTEN;
        let len = (self.rewritten.len() - start) as u32;
        let hash = self.hasher.hash(message.topic.as_bytes());
        // The newest run of a shard may be this one: an address alone says nothing any more.
        self.newest = None;
        let shard = shard_of(hash, self.lists.len());
        if let Some(run) = self.lists.get_mut(shard).and_then(|list| list.last_mut())
            && run.hash == hash
            && run.is_continued_by(&message, offset)
            && self.rewritten.get(run.rewritten_topic()) == Some(message.topic.as_bytes())
        {
            run.len += len;
            run.count += 1;
            return;
        }
        self.push(message, hash, offset..offset + len, topic_at as u32 | REWRITTEN);
    }

    /// Copies what was collected out of `read` once and hands one batch to each touched shard.
    pub fn flush(&mut self, read: &[u8], mut send: impl FnMut(usize, Batch)) {
        if self.touched.is_empty() {
            return;
        }
        let region = read.get(self.region.clone()).unwrap_or_default();
        let frames = if self.rewritten.is_empty() {
            Bytes::copy_from_slice(region)
        } else {
            self.locate_rewritten(region.len() as u32);
            let frames = [region, &self.rewritten].concat().into();
            self.rewritten.clear();
            self.rewritten.shrink_to(2 * REWRITTEN_BYTES_MAX);
            frames
        };
        for shard in self.touched.drain(..) {
            let Some(list) = self.lists.get_mut(shard) else { continue };
            let runs = std::mem::take(list);
            let (version, received_at) = (self.version, self.received_at);
            send(shard, Batch { frames: frames.clone(), runs, version, received_at });
        }
        self.region = 0..0;
        self.newest = None;
        self.runs = 0;
    }

    /// Begins a run; returns its shard.
    fn push(
        &mut self,
        message: Incoming<'_>,
        hash: u64,
        frame: Range<u32>,
        topic_at: u32,
    ) -> usize {
        let shard = shard_of(hash, self.lists.len());
        let Some(list) = self.lists.get_mut(shard) else { return shard };
        if list.is_empty() {
            self.touched.push(shard);
        }
        self.runs += 1;
        list.push(Run {
            hash,
            offset: frame.start,
            len: frame.end - frame.start,
            count: 1,
            topic_at,
            topic_len: message.topic.len() as u16,
            qos: message.qos,
            retain: message.retain,
            expires: message.expires,
        });
        shard
    }

    /// The rewritten frames come behind `region_len` bytes of the read.
    fn locate_rewritten(&mut self, region_len: u32) {
        for run in self.lists.iter_mut().flatten().filter(|run| run.offset & REWRITTEN != 0) {
            run.offset = (run.offset ^ REWRITTEN) + region_len;
            run.topic_at = (run.topic_at ^ REWRITTEN) + region_len;
        }
    }
}

impl Run {
    /// Whether `message` at `offset`, of the same topic, belongs to this run.
    fn is_continued_by(&self, message: &Incoming<'_>, offset: u32) -> bool {
        self.offset + self.len == offset
            && self.qos == message.qos
            && self.retain == message.retain
            && self.expires == message.expires
    }

    /// Where its topic is, if it is among the rewritten frames.
    fn rewritten_topic(&self) -> Range<usize> {
        let start = (self.topic_at ^ REWRITTEN) as usize;
        start..start + usize::from(self.topic_len)
    }
}

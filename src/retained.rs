//! The retained messages of one shard. Floor 2: pure state, owned and called by `router::shard`.
//!
//! # Invariants
//!
//! - One message per topic, the newest [MQTT-3.3.1-5]; an empty payload removes it [MQTT-3.3.1-6].
//! - No message is handed out at or after its expiry [MQTT-3.3.2-5]; the owner calls [`Store::expire`] when
//!   [`Store::next_expiry`] has come.
//! - `stored_at` grows with every change, so "everything that was here when the subscription came
//!   into force" is a number, and a replay in many chunks neither misses nor doubles a message.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::ids::{ClientId, ProtocolVersion, Qos};
use crate::message::{Buffer, Delivery, Kind, Piece, Replay, Via};
use crate::topic::TopicFilter;

/// Most messages in one chunk of a replay.
const CHUNK_MESSAGES: usize = 256;
/// A chunk ends with the message that takes it over this.
const CHUNK_BYTES: usize = 64 * 1024;
/// Topics that one chunk looks at, so that a filter that matches few of many does not stall a shard.
const CHUNK_VISITS: usize = 4096;

/// A PUBLISH frame to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Retain<'a> {
    /// The whole frame.
    pub frame: &'a [u8],
    /// How it is encoded.
    pub version: ProtocolVersion,
    /// As published.
    pub qos: Qos,
    /// When it was received.
    pub received_at: Instant,
    /// Its Message Expiry Interval.
    pub expires_after: Option<Duration>,
    /// Who published it; `None` is the broker.
    pub publisher: Option<&'a ClientId>,
}

#[derive(Clone, Debug)]
struct Stored {
    /// In memory of its own.
    frame: Bytes,
    version: ProtocolVersion,
    qos: Qos,
    received_at: Instant,
    expires_at: Option<Instant>,
    publisher: Option<ClientId>,
    stored_at: u64,
}

/// What a change did to the sums of the store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// Messages more or fewer.
    pub messages: i64,
    /// Bytes of frames and topics more or fewer.
    pub bytes: i64,
}

/// See the module comment.
#[derive(Debug, Default)]
pub struct Store {
    by_topic: BTreeMap<Box<str>, Stored>,
    /// Exactly the messages that expire.
    by_expiry: BTreeSet<(Instant, Box<str>)>,
    last_change: u64,
}

impl Store {
    /// Keeps a message as the one of `topic`.
    pub fn set(&mut self, topic: &str, retain: Retain<'_>) -> Change {
        self.last_change += 1;
        let Retain { version, qos, received_at, .. } = retain;
        let frame = Bytes::copy_from_slice(retain.frame);
        let expires_at = retain.expires_after.and_then(|after| received_at.checked_add(after));
        if let Some(at) = expires_at {
            self.by_expiry.insert((at, topic.into()));
        }
        let (stored_at, publisher) = (self.last_change, retain.publisher.cloned());
        let stored = Stored { frame, version, qos, received_at, expires_at, publisher, stored_at };
        let added = stored.frame.len() as i64;
        if let Some(earlier) = self.by_topic.get_mut(topic) {
            let earlier = std::mem::replace(earlier, stored);
            if let Some(at) = earlier.expires_at.filter(|at| Some(*at) != expires_at) {
                self.by_expiry.remove(&(at, topic.into()));
            }
            return Change { messages: 0, bytes: added - earlier.frame.len() as i64 };
        }
        self.by_topic.insert(topic.into(), stored);
        Change { messages: 1, bytes: added + topic.len() as i64 }
    }

    /// Forgets the message of `topic`.
    pub fn remove(&mut self, topic: &str) -> Change {
        let Some((topic, earlier)) = self.by_topic.remove_entry(topic) else {
            return Change::default();
        };
        let bytes = (earlier.frame.len() + topic.len()) as i64;
        if let Some(at) = earlier.expires_at {
            self.by_expiry.remove(&(at, topic));
        }
        Change { messages: -1, bytes: -bytes }
    }

    /// Forgets the messages whose time has come, and adds their topics to `gone`.
    pub fn expire(&mut self, now: Instant, gone: &mut Vec<Box<str>>) -> Change {
        let mut change = Change::default();
        while self.next_expiry().is_some_and(|at| at <= now)
            && let Some((_, topic)) = self.by_expiry.pop_first()
        {
            let Change { messages, bytes } = self.remove(&topic);
            change.messages += messages;
            change.bytes += bytes;
            gone.push(topic);
        }
        change
    }

    /// When [`Store::expire`] has something to do.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.by_expiry.first().map(|(at, _)| *at)
    }

    /// Bytes of the frame that `topic` has.
    pub fn frame_len(&self, topic: &str) -> Option<usize> {
        self.by_topic.get(topic).map(|stored| stored.frame.len())
    }

    /// A number that everything stored so far is not above.
    pub fn last_change(&self) -> u64 {
        self.last_change
    }

    /// Whether a replay of `filter` could find anything.
    pub fn may_match(&self, filter: &TopicFilter) -> bool {
        if filter.has_wildcards() {
            !self.by_topic.is_empty()
        } else {
            self.by_topic.contains_key(filter.as_str())
        }
    }

    /// The next chunk of `replay` as deliveries of at most one of each kind, and what is left of it. Topics that the reader
    /// may not receive are left out. With No Local the messages of `reader` are left out [MQTT-3.8.3-3].
    pub fn replay(
        &self,
        mut replay: Replay,
        reader: Option<&ClientId>,
        may_receive: impl Fn(&str) -> bool,
        now: Instant,
    ) -> (Vec<Delivery>, Option<Replay>) {
        let mut chunk = Chunk::default();
        let mut visits = 0;
        while let Some((filter, grant)) = replay.filters.get(replay.filter).cloned() {
            let start = replay.after.take();
            let via = grant
                .identifier
                .map(|identifier| Arc::new(Via { identifiers: [identifier].into(), share: None }));
            let mut last = None;
            for (topic, stored) in self.from(&filter, start.as_deref()) {
                visits += 1;
                let is_due = stored.expires_at.is_some_and(|at| at <= now);
                let is_own = grant.no_local && stored.publisher.as_ref() == reader;
                if !is_due
                    && !is_own
                    && stored.stored_at <= replay.stored_until
                    && filter.matches(topic)
                    && may_receive(topic)
                {
                    chunk.add(stored, grant.qos, via.as_ref());
                }
                if chunk.is_full() || visits >= CHUNK_VISITS {
                    last = Some(topic.clone());
                    break;
                }
            }
            if last.is_some() {
                replay.after = last;
                return (chunk.deliveries(), Some(replay));
            }
            replay.filter += 1;
            if visits >= CHUNK_VISITS {
                break;
            }
            visits += 1;
        }
        let more = replay.filter < replay.filters.len();
        (chunk.deliveries(), more.then_some(replay))
    }

    /// The topics that `filter` may match, in order, behind `after`.
    fn from<'s>(
        &'s self,
        filter: &'s TopicFilter,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'s Box<str>, &'s Stored)> {
        let prefix = filter.literal_prefix();
        // `a/#` matches `a` too, so the search starts at the prefix without its last `/`.
        let parent = prefix.strip_suffix('/').filter(|_| filter.has_wildcards());
        let stem = parent.unwrap_or(prefix);
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(stem),
        };
        let end = if filter.has_wildcards() { Bound::Unbounded } else { Bound::Included(stem) };
        self.by_topic
            .range::<str, _>((start, end))
            .take_while(move |(topic, _)| topic.starts_with(stem))
    }
}

/// Messages of one chunk while it grows.
#[derive(Default)]
struct Chunk {
    unacknowledged: Pile,
    acknowledged: Pile,
    bytes: usize,
}

#[derive(Default)]
struct Pile {
    buffers: Vec<Buffer>,
    pieces: Vec<Piece>,
    vias: Vec<Arc<Via>>,
}

impl Chunk {
    fn add(&mut self, stored: &Stored, granted: Qos, via: Option<&Arc<Via>>) {
        let qos = stored.qos.min(granted);
        let Pile { buffers, pieces, vias } = match qos {
            Qos::AtMostOnce => &mut self.unacknowledged,
            Qos::AtLeastOnce | Qos::ExactlyOnce => &mut self.acknowledged,
        };
        if let Some(via) = via
            && !vias.last().is_some_and(|last| Arc::ptr_eq(last, via))
        {
            vias.push(via.clone());
        }
        pieces.push(Piece {
            buffer: buffers.len() as u32,
            offset: 0,
            len: stored.frame.len() as u32,
            count: 1,
            version: stored.version,
            frame_qos: stored.qos,
            frame_retain: true,
            qos,
            retain: true,
            expires: stored.expires_at.is_some(),
            via: via.map_or(0, |_| vias.len() as u32),
            record: 0,
            first: 0,
        });
        buffers.push(Buffer { frames: stored.frame.clone(), received_at: stored.received_at });
        self.bytes += stored.frame.len();
    }

    fn is_full(&self) -> bool {
        let messages = self.unacknowledged.pieces.len() + self.acknowledged.pieces.len();
        messages >= CHUNK_MESSAGES || self.bytes >= CHUNK_BYTES
    }

    fn deliveries(self) -> Vec<Delivery> {
        let parts =
            [(Kind::Unacknowledged, self.unacknowledged), (Kind::Acknowledged, self.acknowledged)];
        let used = parts.into_iter().filter(|(_, pile)| !pile.pieces.is_empty());
        used.map(|(kind, pile)| Delivery::new(kind, pile.buffers, pile.pieces, pile.vias)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Grant;

    #[test]
    fn newest_message_of_a_topic_replaces_the_earlier_one_and_sums_follow() {
        let mut store = Store::default();
        assert_eq!(set(&mut store, "a", "12345"), Change { messages: 1, bytes: 6 });
        assert_eq!(set(&mut store, "a", "12"), Change { messages: 0, bytes: -3 });
        assert_eq!(store.remove("a"), Change { messages: -1, bytes: -3 });
        assert_eq!(store.remove("a"), Change::default());
    }

    #[test]
    fn replay_of_many_messages_is_complete_and_in_chunks() {
        let mut store = Store::default();
        for i in 0..10_000 {
            set(&mut store, &format!("site/{i}/value"), "x");
        }
        set(&mut store, "other", "x");

        let (mut messages, mut chunks) = (0, 0);
        let mut next = Some(replay(&store, &["site/+/value"]));
        while let Some(replay) = next {
            let (deliveries, rest) = store.replay(replay, None, |_| true, Instant::now());
            let chunk: u32 = deliveries.iter().map(|delivery| delivery.messages).sum();
            assert!(chunk <= CHUNK_MESSAGES as u32);
            messages += chunk;
            chunks += 1;
            next = rest;
        }
        assert_eq!(messages, 10_000);
        assert!(chunks >= 10_000 / CHUNK_MESSAGES);
    }

    #[test]
    fn message_stored_after_the_subscription_is_left_to_the_live_path() {
        let mut store = Store::default();
        set(&mut store, "a", "old");
        set(&mut store, "b", "old");
        let pending = replay(&store, &["#"]);
        set(&mut store, "b", "new");

        let (deliveries, rest) = store.replay(pending, None, |_| true, Instant::now());
        assert!(rest.is_none());
        assert_eq!(deliveries.iter().map(|delivery| delivery.messages).sum::<u32>(), 1);
    }

    #[test]
    fn parent_level_and_prefix_siblings_are_told_apart() {
        let mut store = Store::default();
        for topic in ["a", "a/b", "a/b/c", "ab", "a!", "b"] {
            set(&mut store, topic, "x");
        }
        let found = |filter| {
            let (deliveries, _) =
                store.replay(replay(&store, &[filter]), None, |_| true, Instant::now());
            deliveries.iter().map(|delivery| delivery.messages).sum::<u32>()
        };
        assert_eq!(found("a/#"), 3);
        assert_eq!(found("a/+"), 1);
        assert_eq!(found("+"), 4);
        assert_eq!(found("a"), 1);
    }

    #[test]
    fn message_is_not_handed_out_at_its_expiry_and_then_forgotten() {
        let mut store = Store::default();
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        store.set("a", Retain { expires_after: Some(minute), ..retain("12345", now) });
        store.set("b", Retain { expires_after: Some(2 * minute), ..retain("1", now) });
        store.set("c", retain("1", now));
        let found = |store: &Store, now| {
            let (deliveries, _) = store.replay(replay(store, &["#"]), None, |_| true, now);
            deliveries.iter().map(|delivery| delivery.messages).sum::<u32>()
        };
        assert_eq!(found(&store, now), 3);
        assert_eq!(found(&store, now + minute), 2);

        assert_eq!(store.next_expiry(), Some(now + minute));
        let mut gone = Vec::new();
        assert_eq!(store.expire(now + minute, &mut gone), Change { messages: -1, bytes: -6 });
        store.set("b", retain("1", now));
        assert_eq!(store.next_expiry(), None);
        assert_eq!(store.expire(now + 3 * minute, &mut gone), Change::default());
        assert_eq!(gone.len(), 1);
    }

    fn set(store: &mut Store, topic: &str, frame: &str) -> Change {
        store.set(topic, retain(frame, Instant::now()))
    }

    fn retain(frame: &str, received_at: Instant) -> Retain<'_> {
        let (version, qos) = (ProtocolVersion::V311, Qos::AtMostOnce);
        let (expires_after, publisher) = (None, None);
        Retain { frame: frame.as_bytes(), version, qos, received_at, expires_after, publisher }
    }

    fn replay(store: &Store, filters: &[&str]) -> Replay {
        let grant = Grant {
            qos: Qos::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            identifier: None,
        };
        let filters = filters.iter().map(|text| (TopicFilter::parse(text).unwrap(), grant));
        Replay {
            shard: 0,
            token: 0,
            filters: filters.collect(),
            filter: 0,
            after: None,
            stored_until: store.last_change(),
        }
    }
}

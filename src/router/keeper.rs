//! The retained messages of one shard, within the limits of all. Floor 4, owned by `router::shard`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::codec::PublishView;
use crate::ids::ClientId;
use crate::message::{Batch, Delivery, Grant, Replay, Run};
use crate::metrics::{DropReason, Metrics};
use crate::retained::{Change, Retain, Store};
use crate::topic::TopicFilter;

/// Bounds of the retained messages of one shard.
#[derive(Clone, Copy, Debug)]
pub struct RetainedLimits {
    /// Messages of all shards together.
    pub messages_max: u64,
    /// Bytes of all shards together, topics included.
    pub bytes_max: u64,
}

/// See the module comment.
pub(super) struct Keeper {
    /// Which shard this is.
    shard: usize,
    store: Store,
    /// Topics whose messages have expired, for the log; taken after each call that may expire something.
    gone: Vec<Box<str>>,
    limits: RetainedLimits,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// Nothing is retained.
    pub(super) fn new(shard: usize, limits: RetainedLimits, metrics: Arc<Metrics>) -> Self {
        Self { shard, store: Store::default(), gone: Vec::new(), limits, metrics }
    }

    /// When [`Keeper::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.store.next_expiry()
    }

    /// Forgets the messages whose time has come.
    pub(super) fn expire(&mut self, now: Instant) {
        let change = self.store.expire(now, &mut self.gone);
        self.metrics.dropped(DropReason::Expired, change.messages.unsigned_abs());
        self.count(change);
    }

    /// Topics whose messages have expired since the last time.
    pub(super) fn take_gone(&mut self) -> std::vec::Drain<'_, Box<str>> {
        self.gone.drain(..)
    }

    /// The next chunk of `replay`, of those topics that its reader may receive, and what is left of it.
    pub(super) fn replay(
        &self,
        replay: Replay,
        reader: Option<&ClientId>,
        may_receive: impl Fn(&str) -> bool,
        now: Instant,
    ) -> (Vec<Delivery>, Option<Replay>) {
        self.store.replay(replay, reader, may_receive, now)
    }

    /// The replay of what matches `filters`, if there may be anything; `token` comes back with it.
    pub(super) fn plan_replay(
        &self,
        mut filters: Vec<(TopicFilter, Grant)>,
        token: u64,
    ) -> Option<Replay> {
        filters.retain(|(filter, _)| self.store.may_match(filter));
        if filters.is_empty() {
            return None;
        }
        Some(Replay {
            shard: self.shard,
            token,
            filters: filters.into(),
            filter: 0,
            after: None,
            stored_until: self.store.last_change(),
        })
    }

    /// Whether the topic of `run` has a retained message now.
    pub(super) fn holds(&self, batch: &Batch, run: &Run) -> bool {
        str::from_utf8(batch.topic(run)).is_ok_and(|topic| self.store.frame_len(topic).is_some())
    }

    /// Keeps the last message of `run` [MQTT-3.3.1-5], or removes the topic's one if it is
    /// empty [MQTT-3.3.1-6] [MQTT-3.3.1-7].
    pub(super) fn keep(
        &mut self,
        batch: &Batch,
        run: &Run,
        publisher: Option<&ClientId>,
        room: Room,
    ) -> Kept {
        let Some((topic, view, frame)) = newest_of(batch, run) else { return Kept::Refused };
        let mut kept = Kept::Newest;
        let interval_s = if run.expires { view.message_expiry_interval_s() } else { None };
        let change = if view.payload.is_empty() {
            self.store.remove(topic)
        } else if room == Room::Limited
            && (self.has_room(topic, frame) || self.makes_room(topic, frame, batch.received_at))
        {
            let retain = Retain {
                frame,
                version: batch.version,
                qos: run.qos,
                received_at: batch.received_at,
                expires_after: interval_s.map(|seconds| Duration::from_secs(seconds.into())),
                publisher,
            };
            self.store.set(topic, retain)
        } else {
            // The earlier message is not the topic's newest any more: none is better than a stale one.
            self.metrics.dropped(DropReason::RetainedFull, 1);
            kept = Kept::Refused;
            self.store.remove(topic)
        };
        self.count(change);
        kept
    }

    fn count(&self, change: Change) {
        self.metrics.retained_messages.add(change.messages);
        self.metrics.retained_bytes.add(change.bytes);
    }

    /// Whether there is room without what has expired, which goes at once then: as long as a shard has
    /// something to do it does not look for that.
    fn makes_room(&mut self, topic: &str, frame: &[u8], now: Instant) -> bool {
        self.expire(now);
        self.has_room(topic, frame)
    }

    fn has_room(&self, topic: &str, frame: &[u8]) -> bool {
        let (messages, bytes) =
            (self.metrics.retained_messages.value(), self.metrics.retained_bytes.value());
        let (new_messages, freed) = match self.store.frame_len(topic) {
            Some(earlier) => (0, earlier as u64),
            None => (1, 0),
        };
        let added = (frame.len() + topic.len()) as u64;
        messages + new_messages <= self.limits.messages_max
            && (bytes + added).saturating_sub(freed) <= self.limits.bytes_max
    }
}

/// Whether after `run` its topic has no retained message, whatever it has now.
pub(super) fn is_clear(batch: &Batch, run: &Run) -> bool {
    newest_of(batch, run).is_some_and(|(_, view, _)| view.payload.is_empty())
}

/// What there is room for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Room {
    /// As much as the limits say.
    Limited,
    /// Nothing: memory or disk are short.
    None,
}

/// What became of the topic's retained message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kept {
    /// It is the newest one; none where that is empty.
    Newest,
    /// There is no room: there is none.
    Refused,
}

/// Topic, fields and frame of the last message of `run`.
fn newest_of<'b>(batch: &'b Batch, run: &Run) -> Option<(&'b str, PublishView<'b>, &'b [u8])> {
    let start = run.offset as usize;
    let mut frames = batch.frames.get(start..start + run.len as usize)?;
    let mut newest = None;
    while let Some(view) = PublishView::parse(frames, batch.version) {
        let (frame, rest) = frames.split_at_checked(view.frame_len)?;
        newest = Some((view, frame));
        frames = rest;
    }
    let (view, frame) = newest?;
    Some((std::str::from_utf8(batch.topic(run)).ok()?, view, frame))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Delivery as Flow;
    use crate::codec::{Packet, PropertiesBuf, Property, Publish, header_len};
    use crate::ids::ProtocolVersion::V5;
    use crate::ids::Qos;

    /// A shard that always has something to do does not get round to [`Keeper::expire`].
    #[test]
    fn expired_message_makes_room_for_another_one_at_once() {
        let start = Instant::now();
        let limits = RetainedLimits { messages_max: 1, bytes_max: 1000 };
        let metrics = Arc::new(Metrics::default());
        let mut keeper = Keeper::new(0, limits, metrics.clone());
        let mut keep = |topic, interval_s, at| {
            let batch = batch(topic, interval_s, start + Duration::from_secs(at));
            keeper.keep(&batch, &batch.runs[0], None, Room::Limited);
            keeper.store.frame_len(topic).is_some()
        };
        assert!(keep("first", Some(10), 0));
        assert!(!keep("second", None, 9));
        assert!(keep("third", None, 10));
        assert_eq!(metrics.dropped_for(DropReason::Expired), 1);
        assert_eq!(metrics.dropped_for(DropReason::RetainedFull), 1);
        assert_eq!(metrics.retained_messages.value(), 1);
    }

    fn batch(topic: &str, interval_s: Option<u32>, received_at: Instant) -> Batch {
        let mut properties = PropertiesBuf::new();
        if let Some(interval_s) = interval_s {
            properties.push(Property::MessageExpiryInterval(interval_s));
        }
        let properties = properties.as_properties();
        let delivery = Flow::AtMostOnce;
        let publish = Publish { topic, payload: b"x", properties, delivery, retain: true };
        let mut frame = Vec::new();
        Packet::Publish(publish).encode(V5, &mut frame);
        let run = Run {
            hash: 0,
            offset: 0,
            len: frame.len() as u32,
            count: 1,
            topic_at: header_len(&frame).unwrap() as u32 + 2,
            topic_len: topic.len() as u16,
            qos: Qos::AtMostOnce,
            retain: true,
            expires: interval_s.is_some(),
        };
        Batch { frames: frame.into(), runs: vec![run], version: V5, received_at }
    }
}

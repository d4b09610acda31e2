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
    limits: RetainedLimits,
    metrics: Arc<Metrics>,
}

impl Keeper {
    /// Nothing is retained.
    pub(super) fn new(shard: usize, limits: RetainedLimits, metrics: Arc<Metrics>) -> Self {
        Self { shard, store: Store::default(), limits, metrics }
    }

    /// When [`Keeper::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.store.next_expiry()
    }

    /// Forgets the messages whose time has come.
    pub(super) fn expire(&mut self, now: Instant) {
        let change = self.store.expire(now);
        self.metrics.dropped(DropReason::Expired, change.messages.unsigned_abs());
        self.count(change);
    }

    /// The next chunk of `replay`, and what is left of it.
    pub(super) fn replay(
        &self,
        replay: Replay,
        reader: Option<&ClientId>,
        now: Instant,
    ) -> (Vec<Delivery>, Option<Replay>) {
        self.store.replay(replay, reader, now)
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

    /// Keeps the last message of `run` [MQTT-3.3.1-5], or removes the topic's one if it is
    /// empty [MQTT-3.3.1-6] [MQTT-3.3.1-7].
    pub(super) fn keep(&mut self, batch: &Batch, run: &Run, publisher: Option<&ClientId>) {
        let Some((topic, view, frame)) = newest_of(batch, run) else { return };
        let interval_s = if run.expires { view.message_expiry_interval_s() } else { None };
        let change = if view.payload.is_empty() {
            self.store.remove(topic)
        } else if self.has_room(topic, frame) {
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
            self.store.remove(topic)
        };
        self.count(change);
    }

    fn count(&self, change: Change) {
        self.metrics.retained_messages.add(change.messages);
        self.metrics.retained_bytes.add(change.bytes);
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

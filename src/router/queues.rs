//! What queues may hold, one and all together, and what happens to a message that finds no room. Floor 4, shared by
//! all mailboxes.
//!
//! # At the limit
//!
//! - [`Policy::Reject`]: shards ask before they accept a message (`Queues::is_tight` says when that is worth it), and
//!   its publisher is told. What was accepted is in the queue then, whatever other shards have put there meanwhile.
//! - [`Policy::DropOldest`]: the newest enters, and the session takes out its oldest.
//! - [`Policy::DropNewest`]: it is acknowledged and does not enter.
//!
//! When memory is short each queue may hold [`SHORT_BYTES_MAX`] only, and the policy is the same.
//!
//! # Invariants
//!
//! - A limit can be overrun by what each shard brings in one turn, and no further.
//! - With no queue more than half full a message costs one look at one number.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize};

use serde::{Deserialize, Serialize};

use crate::metrics::{Gauge, Metrics, Shortage};

/// What a queue may hold while memory is short.
pub const SHORT_BYTES_MAX: usize = 64 * 1024;

/// What happens to a message that finds no room.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Policy {
    /// It is refused as a whole, before any of its subscribers gets it: MQTT 5 publishers are told with 0x97, others are
    /// not acknowledged and their connection is closed [MQTT-4.8.0-2]. At QoS 0 it is dropped for who has no room.
    #[default]
    Reject,
    /// It enters, and what waits longest is dropped: QoS 0 first.
    DropOldest,
    /// It is acknowledged, and dropped for who has no room.
    DropNewest,
}

/// Bounds of one mailbox.
#[derive(Clone, Copy, Debug)]
pub struct QueueLimits {
    /// Messages that wait.
    pub messages_max: u64,
    /// Bytes held by messages that wait or are not acknowledged.
    pub bytes_max: usize,
}

/// Bounds of all mailboxes.
#[derive(Clone, Copy, Debug)]
pub struct QueuesLimits {
    /// At each of them.
    pub policy: Policy,
    /// Of each.
    pub each: QueueLimits,
    /// Messages that wait in all of them.
    pub messages_max: u64,
    /// Bytes held by all of them.
    pub bytes_max: u64,
}

/// See the module comment.
#[derive(Debug)]
pub struct Queues {
    policy: AtomicU8,
    messages_max: AtomicU64,
    bytes_max: AtomicUsize,
    all_messages_max: AtomicU64,
    all_bytes_max: AtomicU64,
    /// Mailboxes that are more than half full.
    pressed: Gauge,
    is_memory_short: AtomicBool,
    /// Of the whole process; `u64::MAX` where there is no limit.
    memory_bytes_max: AtomicU64,
}

/// What waits in one mailbox.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Held {
    /// Messages.
    pub(super) messages: u64,
    /// Bytes.
    pub(super) bytes: usize,
    /// Somebody may be taking them out.
    pub(super) is_connected: bool,
    /// The log has them, too: dropping them gives little memory back.
    pub(super) is_in_log: bool,
}

impl From<QueueLimits> for Arc<Queues> {
    /// Without a bound for all together; what finds no room is dropped.
    fn from(each: QueueLimits) -> Self {
        let (messages_max, bytes_max) = (u64::MAX, u64::MAX);
        let limits = QueuesLimits { policy: Policy::DropNewest, each, messages_max, bytes_max };
        Self::new(Queues::new(limits))
    }
}

impl Queues {
    /// Nothing waits.
    pub fn new(limits: QueuesLimits) -> Self {
        let queues = Self {
            policy: AtomicU8::new(0),
            messages_max: AtomicU64::new(0),
            bytes_max: AtomicUsize::new(0),
            all_messages_max: AtomicU64::new(0),
            all_bytes_max: AtomicU64::new(0),
            pressed: Gauge::default(),
            is_memory_short: AtomicBool::new(false),
            memory_bytes_max: AtomicU64::new(u64::MAX),
        };
        queues.replace(limits);
        queues
    }

    /// Other limits from now on. What waits already stays, unless the policy is [`Policy::DropOldest`] and more comes.
    pub fn replace(&self, limits: QueuesLimits) {
        let QueuesLimits { policy, each, messages_max, bytes_max } = limits;
        self.policy.store(policy as u8, Relaxed);
        self.messages_max.store(each.messages_max, Relaxed);
        self.bytes_max.store(each.bytes_max, Relaxed);
        self.all_messages_max.store(messages_max, Relaxed);
        self.all_bytes_max.store(bytes_max, Relaxed);
    }

    /// What happens at a limit.
    pub fn policy(&self) -> Policy {
        match self.policy.load(Relaxed) {
            code if code == Policy::Reject as u8 => Policy::Reject,
            code if code == Policy::DropOldest as u8 => Policy::DropOldest,
            _ => Policy::DropNewest,
        }
    }

    /// The process may use so many bytes from now on; 0 is no limit.
    pub fn set_memory_bytes_max(&self, bytes_max: u64) {
        self.memory_bytes_max.store(if bytes_max == 0 { u64::MAX } else { bytes_max }, Relaxed);
    }

    /// How many bytes the process may use.
    pub(super) fn memory_bytes_max(&self) -> u64 {
        self.memory_bytes_max.load(Relaxed)
    }

    /// The process has less memory left than it should, or enough again.
    pub fn set_memory_short(&self, is_short: bool) {
        self.is_memory_short.store(is_short, Relaxed);
    }

    /// Whether memory is short.
    pub fn is_memory_short(&self) -> bool {
        self.is_memory_short.load(Relaxed)
    }

    /// Whether some queue may have no room for messages that come with `turn`, which none of them has yet.
    pub(super) fn is_tight(&self, turn: Held, metrics: &Metrics) -> bool {
        self.pressed.value() > 0
            || self.is_half_full(turn)
            || self.is_memory_short()
            || self.all_are_full(metrics)
    }

    /// Why a mailbox that holds `held` takes nothing more.
    pub(super) fn shortage(&self, held: Held, metrics: &Metrics) -> Option<Shortage> {
        if held.messages >= self.messages_max.load(Relaxed)
            || held.bytes >= self.bytes_max.load(Relaxed)
        {
            return Some(Shortage::Queue);
        }
        if self.is_memory_short() && held.bytes >= SHORT_BYTES_MAX {
            return Some(Shortage::Memory);
        }
        // Who reads what comes at once adds nothing, and would suffer for the others.
        let waits = held.messages > 0 || !held.is_connected;
        (waits && self.all_are_full(metrics)).then_some(Shortage::Queues)
    }

    /// How many messages a mailbox may take that holds `held`, were it for their number alone.
    pub(super) fn messages_left(&self, held: Held) -> u64 {
        self.messages_max.load(Relaxed).saturating_sub(held.messages)
    }

    /// How much more a mailbox holds than it may.
    pub(super) fn excess(&self, held: Held, metrics: &Metrics) -> Held {
        let bytes_max = match self.is_memory_short() && !held.is_in_log {
            true => self.bytes_max.load(Relaxed).min(SHORT_BYTES_MAX),
            false => self.bytes_max.load(Relaxed),
        };
        let all_messages =
            metrics.queued_messages.value().saturating_sub(self.all_messages_max.load(Relaxed));
        let all_bytes =
            metrics.queued_bytes.value().saturating_sub(self.all_bytes_max.load(Relaxed));
        let messages = held.messages.saturating_sub(self.messages_max.load(Relaxed));
        let bytes = held.bytes.saturating_sub(bytes_max);
        Held { messages: messages.max(all_messages), bytes: bytes.max(all_bytes as usize), ..held }
    }

    /// Whether a mailbox holds twice what it may, and what one turn may bring: its session does not come round to
    /// taking its oldest out.
    pub(super) fn is_far_over(&self, held: Held) -> bool {
        let messages_max = self.messages_max.load(Relaxed).saturating_mul(2);
        let bytes_max = self.bytes_max.load(Relaxed).saturating_mul(2);
        held.messages >= messages_max.saturating_add(64 * 1024)
            || held.bytes >= bytes_max.saturating_add(4 * 1024 * 1024)
    }

    /// Whether a mailbox has to be watched.
    pub(super) fn is_half_full(&self, held: Held) -> bool {
        held.messages > self.messages_max.load(Relaxed) / 2
            || held.bytes > self.bytes_max.load(Relaxed) / 2
    }

    /// One mailbox more or less is more than half full.
    pub(super) fn count_pressed(&self, change: i64) {
        self.pressed.add(change);
    }

    fn all_are_full(&self, metrics: &Metrics) -> bool {
        metrics.queued_messages.value() >= self.all_messages_max.load(Relaxed)
            || metrics.queued_bytes.value() >= self.all_bytes_max.load(Relaxed)
    }
}

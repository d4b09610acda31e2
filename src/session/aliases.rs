//! Topic aliases of one connection, both ways. Floor 2, owned by `Session`.
//!
//! # Limits
//!
//! Each way holds at most `topic_alias_max` topics, so at most that many times 64 KiB. While memory is short a topic of
//! more than [`SHORT_TOPIC_BYTES_MAX`] gets none.

use std::collections::HashMap;

use crate::codec::TopicAlias;

/// The largest topic that gets an alias while memory is short.
pub(super) const SHORT_TOPIC_BYTES_MAX: usize = 1024;

/// What the client's aliases stand for [MQTT-3.3.2-12].
#[derive(Debug, Default)]
pub(super) struct ReceivedAliases {
    /// Alias `i + 1` at place `i`.
    topics: Vec<Box<str>>,
}

impl ReceivedAliases {
    /// A connection begins without any [MQTT-3.3.2-7].
    pub(super) fn clear(&mut self) {
        self.topics = Vec::new();
    }

    /// From now on `alias`, which is at least 1, stands for `topic`.
    pub(super) fn set(&mut self, alias: u16, topic: &str) {
        let index = usize::from(alias).saturating_sub(1);
        if index >= self.topics.len() {
            self.topics.resize(index + 1, Box::default());
        }
        if let Some(place) = self.topics.get_mut(index) {
            *place = topic.into();
        }
    }

    /// The topic of `alias`, if the client has named one.
    pub(super) fn get(&self, alias: u16) -> Option<&str> {
        let topic = self.topics.get(usize::from(alias).checked_sub(1)?)?;
        (!topic.is_empty()).then_some(&**topic)
    }
}

/// Aliases that the client has learnt. The first topics get one and keep it: to move an alias costs a
/// whole topic name, and with more topics than aliases it would move with every message.
#[derive(Debug, Default)]
pub(super) struct SentAliases {
    max: u16,
    by_topic: HashMap<Box<[u8]>, u16>,
}

impl SentAliases {
    /// A connection begins, whose client takes aliases up to `max` [MQTT-3.3.2-11].
    pub(super) fn attach(&mut self, max: u16) {
        self.max = max;
        self.by_topic = HashMap::new();
    }

    /// Whether there can be any.
    pub(super) fn are_allowed(&self) -> bool {
        self.max > 0
    }

    /// How to name `topic`; `None` by its name alone.
    pub(super) fn find(&self, topic: &[u8], is_memory_short: bool) -> Option<TopicAlias> {
        if let Some(alias) = self.by_topic.get(topic) {
            return Some(TopicAlias::Known(*alias));
        }
        if is_memory_short && topic.len() > SHORT_TOPIC_BYTES_MAX {
            return None;
        }
        let next = self.by_topic.len() as u16 + 1;
        (next <= self.max).then_some(TopicAlias::New(next))
    }

    /// The client was sent `topic` with `alias`.
    pub(super) fn learn(&mut self, topic: &[u8], alias: u16) {
        self.by_topic.insert(topic.into(), alias);
    }
}

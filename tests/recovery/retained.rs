//! Which retained messages there may be at the end, and which there are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

use mailboxqtt::ids::ProtocolVersion::V5;

use crate::history::{Published, Sent};
use crate::message::Key;
use crate::stage::STALL;
use crate::wire::{Got, Hello};

/// Rounds without a message, after which nothing more is expected.
const SILENT_ROUNDS: u32 = 50;

/// What was published to one topic with RETAIN.
#[derive(Debug, Default)]
struct Topic<'p> {
    /// In their order.
    messages: Vec<(Key, &'p Sent)>,
}

/// The retained messages under `keep/`, by their topics. Those that have to be there are waited for.
pub(crate) fn read(addr: SocketAddr, published: &Published) -> BTreeMap<String, Vec<u8>> {
    let topics = topics(published);
    let due: Vec<&str> =
        topics.iter().filter(|(_, it)| !it.may_be_absent()).map(|(topic, _)| *topic).collect();
    let deadline = Instant::now() + STALL;
    let mut reader = Hello::new(V5, "retained-reader").open(addr).0;
    reader.subscribe("keep/#", 1);
    let mut found = BTreeMap::new();
    // They come chunk by chunk, and a ping may be answered before the first of them.
    let mut silent = 0;
    let is_missing = |found: &BTreeMap<String, Vec<u8>>| {
        due.iter().any(|topic| !found.contains_key(*topic)) && Instant::now() < deadline
    };
    while silent < SILENT_ROUNDS || is_missing(&found) {
        silent += 1;
        reader.send(&[0xC0, 0]);
        loop {
            match reader.next() {
                Got::PingResp => break,
                Got::Publish(message) => {
                    silent = 0;
                    reader.ack(crate::wire::PUBACK, message.id);
                    found.insert(message.topic, message.payload);
                }
                other => panic!("waited for a retained message, got {other:?}"),
            }
        }
    }
    reader.disconnect();
    found
}

/// All that is wrong with what was `found`.
pub(crate) fn violations(published: &Published, found: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let topics = topics(published);
    let mut violations = Vec::new();
    for (topic, of_topic) in &topics {
        let payload = found.get(*topic);
        let is_right = match payload {
            None => of_topic.may_be_absent(),
            Some(payload) => Key::parse(topic, payload).is_some_and(|key| of_topic.may_be(key)),
        };
        if !is_right {
            violations.push(format!("{topic} holds {}\n{}", of(payload), of_topic.story()));
        }
    }
    for topic in found.keys().filter(|topic| !topics.contains_key(topic.as_str())) {
        violations.push(format!("{topic} was never published"));
    }
    violations
}

fn topics(published: &Published) -> BTreeMap<&str, Topic<'_>> {
    let mut topics: BTreeMap<&str, Topic<'_>> = BTreeMap::new();
    for (key, sent) in published.iter().filter(|(_, sent)| sent.topic.starts_with("keep/")) {
        topics.entry(&sent.topic).or_default().messages.push((key, sent));
    }
    topics
}

impl<'p> Topic<'p> {
    /// The newest that was acknowledged, and whatever is newer than that.
    fn candidates(&self) -> &[(Key, &'p Sent)] {
        let newest = self.messages.iter().rposition(|(_, sent)| sent.accepted.is_some());
        &self.messages[newest.unwrap_or(0)..]
    }

    fn may_be_absent(&self) -> bool {
        let is_unsure = self.messages.iter().all(|(_, sent)| sent.accepted.is_none());
        is_unsure || self.candidates().iter().any(|(_, sent)| sent.is_clear)
    }

    fn may_be(&self, key: Key) -> bool {
        self.candidates().iter().any(|(candidate, sent)| *candidate == key && !sent.is_clear)
    }

    fn story(&self) -> String {
        let from = self.messages.len().saturating_sub(8);
        let lines = self.messages[from..].iter().map(|(key, sent)| {
            let Sent { is_clear, first, accepted, again, .. } = sent;
            let accepted = accepted.map_or("never".to_owned(), |at| at.to_string());
            let what = if *is_clear { "clears it" } else { "sets it" };
            let repeats = again.len();
            format!(
                "      {key} {what}, sent {first}, again {repeats} times, accepted {accepted}\n"
            )
        });
        lines.collect()
    }
}

fn of(payload: Option<&Vec<u8>>) -> String {
    match payload {
        None => "nothing".to_owned(),
        Some(payload) => {
            let start: String = String::from_utf8_lossy(payload).chars().take(40).collect();
            format!("{start:?}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::When;

    const TOPIC: &str = "keep/t/q1";

    #[test]
    fn newest_acknowledged_value_or_a_newer_one_has_to_be_there() {
        let published = published(&[(false, true), (false, true), (false, false)]);
        for (number, count) in [(0, 1), (1, 0), (2, 0), (3, 1)] {
            assert_eq!(violations(&published, &holding(number)).len(), count, "{number}");
        }
        assert_eq!(violations(&published, &BTreeMap::new()).len(), 1);
    }

    #[test]
    fn cleared_value_must_not_be_there_and_what_nobody_published_neither() {
        let published = published(&[(false, true), (true, true)]);
        assert_eq!(violations(&published, &BTreeMap::new()), Vec::<String>::new());
        assert_eq!(violations(&published, &holding(0)).len(), 1);
        let stray = BTreeMap::from([("keep/stray".to_owned(), b"x".to_vec())]);
        assert_eq!(violations(&published, &stray).len(), 1);
    }

    #[test]
    fn unacknowledged_clear_may_have_happened_or_not() {
        let published = published(&[(false, true), (true, false)]);
        assert_eq!(violations(&published, &BTreeMap::new()), Vec::<String>::new());
        assert_eq!(violations(&published, &holding(0)), Vec::<String>::new());
    }

    #[test]
    fn value_that_is_not_as_it_was_published_is_found() {
        let published = published(&[(false, true)]);
        let mut found = holding(0);
        found.values_mut().for_each(|payload| payload.truncate(5));
        assert_eq!(violations(&published, &found).len(), 1);
    }

    fn holding(number: u32) -> BTreeMap<String, Vec<u8>> {
        let payload = Key { publisher: 0, number }.payload(TOPIC);
        BTreeMap::from([(TOPIC.to_owned(), payload.into_bytes())])
    }

    /// Whether each clears, and whether it was acknowledged.
    fn published(messages: &[(bool, bool)]) -> Published {
        let sent = |(number, (is_clear, is_accepted)): (usize, &(bool, bool))| {
            let at = When { moment: number as u64 + 1, life: 1 };
            Sent {
                topic: TOPIC.into(),
                qos: 1,
                is_clear: *is_clear,
                first: at,
                again: Vec::new(),
                accepted: is_accepted.then_some(at),
                completed: None,
            }
        };
        Published(vec![messages.iter().enumerate().map(sent).collect()])
    }
}

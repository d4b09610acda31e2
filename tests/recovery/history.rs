//! What was sent, what was promised, what has arrived; and the judgement of it.
//!
//! Publishers write [`Sent`], subscribers write an [`Inbox`], and [`Inbox::violations`] compares the two. Nothing here
//! has sockets or time but a [`When`]: a number that grows with every event of the test.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use mailboxqtt::topic;

use crate::message::Key;

/// When something happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct When {
    /// Counts the events of the whole test.
    pub(crate) moment: u64,
    /// Of the broker.
    pub(crate) life: u32,
}

/// A message that a publisher sent, or meant to send when its connection ended.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) topic: Arc<str>,
    pub(crate) qos: u8,
    /// Its payload is empty, which clears the retained message of its topic.
    pub(crate) is_clear: bool,
    pub(crate) first: When,
    /// The same PUBLISH with DUP.
    pub(crate) again: Vec<When>,
    /// PUBACK, or PUBREC. For a will, CONNACK.
    pub(crate) accepted: Option<When>,
    /// PUBCOMP.
    pub(crate) completed: Option<When>,
}

/// What all publishers sent, by their indices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Published(pub(crate) Vec<Vec<Sent>>);

impl Published {
    pub(crate) fn get(&self, key: Key) -> Option<&Sent> {
        self.0.get(usize::from(key.publisher))?.get(key.number as usize)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &Sent)> {
        let publishers = self.0.iter().enumerate();
        publishers.flat_map(|(publisher, messages)| {
            let key = move |number| Key { publisher: publisher as u8, number: number as u32 };
            messages.iter().enumerate().map(move |(number, sent)| (key(number), sent))
        })
    }
}

/// One subscription of an inbox.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) text: &'static str,
    pub(crate) qos: u8,
}

impl Filter {
    fn matches(&self, topic: &str) -> bool {
        let shared = self.text.strip_prefix("$share/").and_then(|rest| rest.split_once('/'));
        topic::matches(shared.map_or(self.text, |(_, filter)| filter), topic)
    }
}

/// Whether the subscriptions of an inbox are in force, as far as the client can know.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Cover {
    /// UNSUBACK has come, or there was no SUBSCRIBE yet.
    Out,
    /// SUBSCRIBE or UNSUBSCRIBE is sent and not answered.
    Unknown,
    /// SUBACK has come.
    In,
}

/// A message that a subscriber got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) key: Key,
    /// Which client of a shared subscription got it.
    pub(crate) member: u8,
    pub(crate) at: When,
    pub(crate) qos: u8,
    pub(crate) id: u16,
    pub(crate) dup: bool,
    /// With the identifier of a QoS 2 message that was not released: the same delivery, not another one.
    pub(crate) is_repeated: bool,
}

/// A session, or all sessions of a shared subscription, and what they got.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) name: &'static str,
    pub(crate) filters: Vec<Filter>,
    /// Messages of a shared subscription may overtake each other.
    pub(crate) is_shared: bool,
    cover: Vec<(u64, Cover)>,
    arrivals: Vec<Arrival>,
    /// What has still to come; `None` while messages are published.
    owed: Option<HashSet<Key>>,
}

/// Something that must not be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Violation {
    /// It was acknowledged, and did not arrive.
    Missing(Key),
    /// It arrived more than once at QoS 2.
    Doubled(Key),
    /// It arrived after a later one of the same publisher and topic, which is the second.
    OutOfOrder(Key, Key),
    /// Nobody asked for it.
    Uninvited(Key),
    /// Nobody sent it.
    Unknown(Key),
    /// At another QoS than that of message and subscription.
    WrongQos(Key),
}

impl Violation {
    pub(crate) fn key(self) -> Key {
        match self {
            Self::Missing(key)
            | Self::Doubled(key)
            | Self::OutOfOrder(key, _)
            | Self::Uninvited(key)
            | Self::Unknown(key)
            | Self::WrongQos(key) => key,
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(key) => write!(f, "{key} is missing"),
            Self::Doubled(key) => write!(f, "{key} came more than once"),
            Self::OutOfOrder(key, later) => write!(f, "{key} came behind {later}"),
            Self::Uninvited(key) => write!(f, "{key} came without a subscription"),
            Self::Unknown(key) => write!(f, "{key} came and was not sent"),
            Self::WrongQos(key) => write!(f, "{key} came at a wrong QoS"),
        }
    }
}

impl Inbox {
    pub(crate) fn new(name: &'static str, filters: Vec<Filter>) -> Self {
        let is_shared = filters.iter().any(|filter| filter.text.starts_with("$share/"));
        let cover = vec![(0, Cover::Out)];
        Self { name, filters, is_shared, cover, arrivals: Vec::new(), owed: None }
    }

    /// The subscriptions come into force, or leave it.
    pub(crate) fn covered(&mut self, cover: Cover, at: When) {
        self.cover.push((at.moment, cover));
    }

    pub(crate) fn arrived(&mut self, arrival: Arrival) {
        self.arrivals.push(arrival);
        if let Some(owed) = &mut self.owed {
            owed.remove(&arrival.key);
        }
    }

    /// From now on it is known what has still to come.
    pub(crate) fn demand(&mut self, published: &Published) {
        let arrived: HashSet<Key> = self.arrivals.iter().map(|arrival| arrival.key).collect();
        let is_missing = |key: &Key, sent: &Sent| self.is_owed(sent) && !arrived.contains(key);
        let missing = published.iter().filter(|(key, sent)| is_missing(key, sent));
        self.owed = Some(missing.map(|(key, _)| key).collect());
    }

    /// Nothing has to come any more.
    pub(crate) fn is_satisfied(&self) -> bool {
        self.owed.as_ref().is_some_and(HashSet::is_empty)
    }

    /// Whether something may still have to come.
    pub(crate) fn owed_count(&self) -> usize {
        self.owed.as_ref().map_or(0, HashSet::len)
    }

    pub(crate) fn arrivals(&self) -> &[Arrival] {
        &self.arrivals
    }

    /// The subscriptions that a message on `topic` comes by.
    pub(crate) fn matching(&self, topic: &str) -> impl Iterator<Item = (usize, &Filter)> {
        let all = self.filters.iter().enumerate();
        all.filter(move |(_, filter)| filter.matches(topic))
    }

    /// All that is wrong with what arrived, at most once per message and kind.
    pub(crate) fn violations(&self, published: &Published) -> Vec<Violation> {
        let mut violations = Vec::new();
        let mut counts: HashMap<Key, u32> = HashMap::new();
        let mut last: HashMap<(u8, &str), u32> = HashMap::new();
        for arrival in self.arrivals.iter().filter(|arrival| !arrival.is_repeated) {
            let key = arrival.key;
            let Some(sent) = published.get(key) else {
                violations.push(Violation::Unknown(key));
                continue;
            };
            let count = counts.entry(key).or_default();
            *count += 1;
            let qos = self.granted(&sent.topic).map(|granted| granted.min(sent.qos));
            if qos.is_some_and(|qos| qos != arrival.qos) {
                violations.push(Violation::WrongQos(key));
            }
            if *count == 2 && qos == Some(2) {
                violations.push(Violation::Doubled(key));
            }
            if *count == 1 && !self.is_shared {
                let last = last.entry((key.publisher, &sent.topic)).or_insert(key.number);
                if key.number < *last && !self.may_have_missed(sent) {
                    violations.push(Violation::OutOfOrder(key, Key { number: *last, ..key }));
                }
                *last = key.number.max(*last);
            }
        }
        for (key, sent) in published.iter() {
            match counts.contains_key(&key) {
                true if self.is_excluded(sent) => violations.push(Violation::Uninvited(key)),
                false if self.is_owed(sent) => violations.push(Violation::Missing(key)),
                _ => (),
            }
        }
        violations
    }

    /// What is known of the message: how it was sent, and how it came here.
    pub(crate) fn story(&self, key: Key, published: &Published) -> String {
        let mut story = String::new();
        match published.get(key) {
            None => story.push_str("      never sent\n"),
            Some(sent) => {
                let retain = if sent.is_clear { ", empty" } else { "" };
                let _ = writeln!(story, "      QoS {} on {}{retain}", sent.qos, sent.topic);
                let _ = writeln!(story, "      sent {}", sent.first);
                for again in &sent.again {
                    let _ = writeln!(story, "      sent again {again}");
                }
                let events = [("accepted", sent.accepted), ("completed", sent.completed)];
                for (what, when) in events {
                    let when = when.map_or("never".to_owned(), |when| when.to_string());
                    let _ = writeln!(story, "      {what} {when}");
                }
                let from = self.cover.partition_point(|(moment, _)| *moment <= sent.first.moment);
                for (moment, cover) in &self.cover[from.saturating_sub(1)..] {
                    let _ = writeln!(story, "      {} is {cover:?} from {moment}", self.name);
                }
            }
        }
        for arrival in self.arrivals.iter().filter(|arrival| arrival.key == key) {
            let Arrival { member, at, qos, id, dup, is_repeated, .. } = arrival;
            let _ = writeln!(
                story,
                "      came {at} at QoS {qos} to client {member}, identifier {id}, DUP {dup}, repeated {is_repeated}"
            );
        }
        story
    }

    /// The highest QoS of the subscriptions that match, which is what the message has to come with.
    fn granted(&self, topic: &str) -> Option<u8> {
        self.matching(topic).map(|(_, filter)| filter.qos).max()
    }

    /// It was acknowledged, and all the time between its PUBLISH and that the subscriptions were in force.
    fn is_owed(&self, sent: &Sent) -> bool {
        sent.accepted.is_some_and(|at| self.was(Cover::In, sent.first, at))
            && self.granted(&sent.topic).is_some()
    }

    /// It was perhaps not subscribed when the message was sent first: what came by sending it again came later.
    fn may_have_missed(&self, sent: &Sent) -> bool {
        sent.again.first().is_some_and(|again| !self.was(Cover::In, sent.first, *again))
    }

    fn is_excluded(&self, sent: &Sent) -> bool {
        sent.accepted.is_some_and(|at| self.was(Cover::Out, sent.first, at))
            || self.granted(&sent.topic).is_none()
    }

    fn was(&self, cover: Cover, from: When, to: When) -> bool {
        let next = self.cover.partition_point(|(moment, _)| *moment <= from.moment);
        let is_then = next.checked_sub(1).is_some_and(|index| self.cover[index].1 == cover);
        is_then && self.cover.get(next).is_none_or(|(moment, _)| *moment > to.moment)
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in life {} at {}", self.life, self.moment)
    }
}

#[cfg(test)]
mod tests {
    use super::Violation::{Doubled, Missing, OutOfOrder, Uninvited, Unknown, WrongQos};
    use super::*;

    #[test]
    fn what_came_as_it_was_sent_is_no_violation() {
        let published = published([sent(1, 1), sent(2, 3), sent(2, 5)]);
        let mut inbox = inbox();
        inbox.arrived(arrival(0, 1));
        inbox.arrived(arrival(1, 2));
        inbox.arrived(arrival(0, 1));
        inbox.arrived(Arrival { is_repeated: true, ..arrival(1, 2) });
        inbox.arrived(arrival(2, 2));
        assert_eq!(inbox.violations(&published), []);
    }

    #[test]
    fn missing_message_is_found_if_it_was_acknowledged() {
        let lost = Sent { accepted: None, ..sent(1, 3) };
        let published = published([sent(1, 1), lost, sent(2, 5)]);
        let mut inbox = inbox();
        inbox.arrived(arrival(0, 1));
        assert_eq!(inbox.violations(&published), [Missing(key(2))]);
        inbox.demand(&published);
        assert!(!inbox.is_satisfied());
        inbox.arrived(arrival(2, 2));
        assert!(inbox.is_satisfied());
        assert_eq!(inbox.violations(&published), []);
    }

    #[test]
    fn order_is_not_asked_of_what_was_sent_again_to_somebody_who_subscribed_meanwhile() {
        let again = Sent { again: vec![when(9)], ..sent(1, 1) };
        let published = published([again, sent(1, 7)]);
        let mut inbox = Inbox { cover: vec![(2, Cover::Out), (5, Cover::In)], ..inbox() };
        for number in [1, 0] {
            inbox.arrived(arrival(number, 1));
        }
        assert_eq!(inbox.violations(&published), []);
        inbox.cover = vec![(0, Cover::In)];
        assert_eq!(inbox.violations(&published), [OutOfOrder(key(0), key(1))]);
    }

    #[test]
    fn second_arrival_is_found_at_qos_2_also_of_what_was_not_acknowledged() {
        let published = published([sent(1, 1), Sent { accepted: None, ..sent(2, 3) }]);
        let mut inbox = inbox();
        for (number, qos) in [(0, 1), (0, 1), (1, 2), (1, 2), (1, 2)] {
            inbox.arrived(arrival(number, qos));
        }
        assert_eq!(inbox.violations(&published), [Doubled(key(1))]);
    }

    #[test]
    fn first_arrival_behind_a_later_message_of_the_topic_is_found() {
        let elsewhere = Sent { topic: "live/p0/1".into(), ..sent(1, 7) };
        let published = published([sent(1, 1), sent(1, 3), sent(1, 5), elsewhere]);
        let mut inbox = inbox();
        for number in [3, 0, 2, 0, 1] {
            inbox.arrived(arrival(number, 1));
        }
        assert_eq!(inbox.violations(&published), [OutOfOrder(key(1), key(2))]);
    }

    #[test]
    fn shared_subscription_has_no_order_and_gets_each_message_once() {
        let published = published([sent(2, 1), sent(2, 3)]);
        let mut inbox = Inbox::new("shared", vec![Filter { text: "$share/s/live/#", qos: 2 }]);
        inbox.covered(Cover::In, when(0));
        inbox.arrived(arrival(1, 2));
        inbox.arrived(arrival(0, 2));
        assert_eq!(inbox.violations(&published), []);
        inbox.arrived(Arrival { member: 1, ..arrival(0, 2) });
        assert_eq!(inbox.violations(&published), [Doubled(key(0))]);
    }

    #[test]
    fn only_what_is_certain_about_a_subscription_counts() {
        // Published at 11 and acknowledged at 12, and so on.
        let all = [11, 21, 31, 41, 51].map(|moment| sent(1, moment));
        let published = published(all);
        let mut inbox = Inbox::new("wanderer", vec![Filter { text: "live/#", qos: 2 }]);
        let changes =
            [(20, Cover::Unknown), (30, Cover::In), (40, Cover::Unknown), (50, Cover::Out)];
        for (moment, cover) in changes {
            inbox.covered(cover, when(moment));
        }
        assert_eq!(inbox.violations(&published), [Missing(key(2))]);
        (0..5).for_each(|number| inbox.arrived(arrival(number, 1)));
        assert_eq!(inbox.violations(&published), [Uninvited(key(0)), Uninvited(key(4))]);
    }

    #[test]
    fn change_of_a_subscription_between_publish_and_its_acknowledgement_excuses_both() {
        let published = published([sent(1, 10)]);
        let mut inbox = Inbox::new("wanderer", vec![Filter { text: "live/#", qos: 2 }]);
        inbox.covered(Cover::In, when(5));
        inbox.covered(Cover::Unknown, When { moment: 11, life: 1 });
        assert_eq!(inbox.violations(&published), []);
        inbox.arrived(arrival(0, 1));
        assert_eq!(inbox.violations(&published), []);
    }

    #[test]
    fn message_of_another_topic_or_of_nobody_or_at_another_qos_is_found() {
        let elsewhere = Sent { topic: "other".into(), ..sent(1, 3) };
        let published = published([sent(2, 1), elsewhere]);
        let mut inbox = inbox();
        inbox.arrived(arrival(0, 1));
        inbox.arrived(arrival(1, 1));
        inbox.arrived(arrival(9, 1));
        let found = inbox.violations(&published);
        assert_eq!(found, [WrongQos(key(0)), Unknown(key(9)), Uninvited(key(1))]);
    }

    #[test]
    fn overlapping_subscriptions_count_with_the_highest_qos() {
        let published = published([sent(2, 1)]);
        let filters = vec![Filter { text: "live/#", qos: 1 }, Filter { text: "live/+/0", qos: 2 }];
        let mut inbox = Inbox::new("overlapping", filters);
        inbox.covered(Cover::In, when(0));
        inbox.arrived(arrival(0, 2));
        assert_eq!(inbox.violations(&published), []);
        assert_eq!(inbox.matching("live/p0/0").map(|(index, _)| index).collect::<Vec<_>>(), [0, 1]);
    }

    /// Published at `moment`, acknowledged at the next.
    fn sent(qos: u8, moment: u64) -> Sent {
        Sent {
            topic: "live/p0/0".into(),
            qos,
            is_clear: false,
            first: when(moment),
            again: Vec::new(),
            accepted: Some(when(moment + 1)),
            completed: None,
        }
    }

    fn published<const N: usize>(messages: [Sent; N]) -> Published {
        Published(vec![messages.to_vec()])
    }

    /// Subscribed to everything from the beginning.
    fn inbox() -> Inbox {
        let mut inbox = Inbox::new("inbox", vec![Filter { text: "live/#", qos: 2 }]);
        inbox.covered(Cover::In, when(0));
        inbox
    }

    fn arrival(number: u32, qos: u8) -> Arrival {
        let (key, at) = (key(number), when(100));
        Arrival { key, member: 0, at, qos, id: 1, dup: false, is_repeated: false }
    }

    fn key(number: u32) -> Key {
        Key { publisher: 0, number }
    }

    fn when(moment: u64) -> When {
        When { moment, life: 1 }
    }
}
